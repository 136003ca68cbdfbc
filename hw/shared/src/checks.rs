//! The table of checks: every access, with its registers in and its registers out. To add a check, add a row.

use ioemul::{Gprs, IoInsn, Width::*};

/// The HP machine that the quirk is for, as QEMU is told to impersonate it.
pub const DMI_VENDOR: &str = "HP";
/// See [`DMI_VENDOR`].
pub const DMI_PRODUCT: &str = "ProLiant DL380 G5";

/// One row of the table.
pub struct Check {
    /// What the report calls it.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
}

/// What a check does.
pub enum Kind {
    /// Accesses, in order.
    Script(&'static [Step]),
    /// INS and OUTS on pc-testdev.
    Strings,
    /// SMIs with random registers, compared with the handler's model; as many as the parameters say.
    RandomSmis,
    /// The DMI strings that the library reads in Linux.
    Dmi,
    /// Every access of every script, before the process has I/O privilege: a fault, with the registers as given.
    Unprivileged,
    /// A stub of which one byte was changed: the comparison has to notice.
    Broken,
}

/// One access.
pub struct Step {
    /// The form.
    pub insn: IoInsn,
    /// What DX holds, if the form takes its port from there.
    pub dx: Option<u16>,
    /// Low halves of registers; all that is not named here is random.
    pub set: &'static [(Reg, u32)],
    /// Registers afterwards.
    pub after: After,
}

/// What an access leaves; registers that are not mentioned stay as they were.
#[derive(Clone, Copy)]
pub enum After {
    /// This value in AL, AX or EAX, merged as an IN of the access's width does.
    Value(u32),
    /// Whole registers.
    Regs(&'static [(Reg, u64)]),
    /// As [`After::Value`], with status flags that belong to a poll loop and not to the device.
    Polled(u32),
    /// Whatever [`crate::exchange`] says.
    Smm,
}

/// A register, by its place in [`Gprs`].
#[allow(missing_docs)]
#[derive(Clone, Copy)]
pub enum Reg {
    Rax,
    Rbx,
    Rcx,
    Rdx,
}

impl Reg {
    /// The register itself.
    pub fn of(self, gprs: &mut Gprs) -> &mut u64 {
        match self {
            Reg::Rax => &mut gprs.rax,
            Reg::Rbx => &mut gprs.rbx,
            Reg::Rcx => &mut gprs.rcx,
            Reg::Rdx => &mut gprs.rdx,
        }
    }
}

/// An access through DX.
const fn dx(insn: IoInsn, port: u16, set: &'static [(Reg, u32)], after: After) -> Step {
    Step { insn, dx: Some(port), set, after }
}

/// An access through an immediate port.
const fn imm(insn: IoInsn, set: &'static [(Reg, u32)], after: After) -> Step {
    Step { insn, dx: None, set, after }
}

/// Nothing changes: what most OUTs do.
const NOTHING: After = After::Regs(&[]);

use After::{Polled, Regs, Value};
use Reg::*;

const VMWARE_PORT: u16 = 0x5658;
const VMWARE_MAGIC: u32 = 0x564d_5868;

/// The table.
pub const CHECKS: &[Check] = &[
    // First, while the process has no privilege: it is granted after this row.
    Check { name: "refused without privilege", kind: Kind::Unprivileged },
    // pc-testdev holds one 32-bit latch at 0xE0-0xE3, for any width of access.
    Check {
        name: "pc-testdev, byte",
        kind: Kind::Script(&[
            imm(IoInsn::out_imm8(Byte, 0xe0), &[(Rax, 0x1122_335a)], NOTHING),
            imm(IoInsn::in_imm8(Byte, 0xe0), &[], Value(0x5a)),
            dx(IoInsn::in_dx(Byte), 0xe0, &[], Value(0x5a)),
            dx(IoInsn::out_dx(Byte), 0xe0, &[(Rax, 0x4455_66c3)], NOTHING),
            imm(IoInsn::in_imm8(Byte, 0xe0), &[], Value(0xc3)),
            dx(IoInsn::in_dx(Byte), 0xe0, &[], Value(0xc3)),
        ]),
    },
    Check {
        name: "pc-testdev, word",
        kind: Kind::Script(&[
            imm(IoInsn::out_imm8(Word, 0xe0), &[(Rax, 0x1122_d00d)], NOTHING),
            imm(IoInsn::in_imm8(Word, 0xe0), &[], Value(0xd00d)),
            dx(IoInsn::in_dx(Word), 0xe0, &[], Value(0xd00d)),
            dx(IoInsn::out_dx(Word), 0xe0, &[(Rax, 0x3344_7e57)], NOTHING),
            imm(IoInsn::in_imm8(Word, 0xe0), &[], Value(0x7e57)),
            dx(IoInsn::in_dx(Word), 0xe0, &[], Value(0x7e57)),
        ]),
    },
    Check {
        name: "pc-testdev, dword",
        kind: Kind::Script(&[
            imm(IoInsn::out_imm8(Dword, 0xe0), &[(Rax, 0xfeed_f00d)], NOTHING),
            imm(IoInsn::in_imm8(Dword, 0xe0), &[], Value(0xfeed_f00d)),
            dx(IoInsn::in_dx(Dword), 0xe0, &[], Value(0xfeed_f00d)),
            dx(IoInsn::out_dx(Dword), 0xe0, &[(Rax, 0x8badf00d)], NOTHING),
            imm(IoInsn::in_imm8(Dword, 0xe0), &[], Value(0x8bad_f00d)),
            dx(IoInsn::in_dx(Dword), 0xe0, &[], Value(0x8bad_f00d)),
        ]),
    },
    Check { name: "pc-testdev, INS and OUTS", kind: Kind::Strings },
    // The clock is started at 2031-05-06 (`-rtc base`): century, year and month hold still while the checks run.
    Check {
        name: "CMOS clock",
        kind: Kind::Script(&[
            imm(IoInsn::out_imm8(Byte, 0x70), &[(Rax, 0x09)], NOTHING),
            imm(IoInsn::in_imm8(Byte, 0x71), &[], Value(0x31)),
            dx(IoInsn::out_dx(Byte), 0x70, &[(Rax, 0x32)], NOTHING),
            dx(IoInsn::in_dx(Byte), 0x71, &[], Value(0x20)),
            imm(IoInsn::out_imm8(Byte, 0x70), &[(Rax, 0x08)], NOTHING),
            dx(IoInsn::in_dx(Byte), 0x71, &[], Value(0x05)),
        ]),
    },
    // pci-testdev (1b36:0005) sits at 00:1d.0.
    Check {
        name: "PCI configuration",
        kind: Kind::Script(&[
            dx(IoInsn::out_dx(Dword), 0xcf8, &[(Rax, 0x8000_e800)], NOTHING),
            dx(IoInsn::in_dx(Dword), 0xcf8, &[], Value(0x8000_e800)),
            dx(IoInsn::in_dx(Dword), 0xcfc, &[], Value(0x0005_1b36)),
            dx(IoInsn::in_dx(Word), 0xcfe, &[], Value(0x0005)),
            dx(IoInsn::in_dx(Byte), 0xcfd, &[], Value(0x1b)),
        ]),
    },
    Check {
        name: "VMware: version",
        kind: Kind::Script(&[
            dx(
                IoInsn::in_dx(Dword),
                VMWARE_PORT,
                &[(Rax, VMWARE_MAGIC), (Rcx, 10)],
                Regs(&[(Rax, 6), (Rbx, VMWARE_MAGIC as u64), (Rcx, 2)]),
            ),
            // The registers are the mailbox: an OUT changes them too.
            dx(
                IoInsn::out_dx(Dword),
                VMWARE_PORT,
                &[(Rax, VMWARE_MAGIC), (Rcx, 10)],
                Regs(&[(Rax, 6), (Rbx, VMWARE_MAGIC as u64), (Rcx, 2)]),
            ),
        ]),
    },
    // `-uuid 00112233-4455-6677-8899-aabbccddeeff`: four registers change at once.
    Check {
        name: "VMware: UUID",
        kind: Kind::Script(&[dx(
            IoInsn::in_dx(Dword),
            VMWARE_PORT,
            &[(Rax, VMWARE_MAGIC), (Rcx, 19)],
            Regs(&[(Rax, 0x3322_1100), (Rbx, 0x7766_5544), (Rcx, 0xbbaa_9988), (Rdx, 0xffee_ddcc)]),
        )]),
    },
    Check { name: "DMI strings", kind: Kind::Dmi },
    // A debug console at 0xCD4 that reads as 0x51 stands in for the mailbox: with the quirk AL holds the answer to the
    // poll, without it the command.
    Check {
        name: "ProLiant quirk",
        kind: Kind::Script(&[dx(IoInsn::out_dx(Byte), 0xcd4, &[(Rax, 0x85)], Polled(0x51))]),
    },
    Check {
        name: "SMM: 15 registers and CF",
        kind: Kind::Script(&[
            dx(IoInsn::out_dx(Byte), crate::SMI_PORT, &[(Rax, 0x5a), (Rbx, 0x1000)], After::Smm),
            dx(IoInsn::out_dx(Byte), crate::SMI_PORT, &[(Rax, 0x5a), (Rbx, 0x1001)], After::Smm),
            imm(IoInsn::out_imm8(Byte, crate::SMI_PORT as u8), &[(Rax, 0x5a), (Rbx, 0x1000)], After::Smm),
            imm(IoInsn::out_imm8(Byte, crate::SMI_PORT as u8), &[(Rax, 0x5a), (Rbx, 0x1001)], After::Smm),
            dx(IoInsn::out_dx(Word), crate::SMI_PORT, &[(Rax, 0x5a), (Rbx, 0x1001)], After::Smm),
        ]),
    },
    Check { name: "SMM: random registers", kind: Kind::RandomSmis },
    Check { name: "a broken stub is noticed", kind: Kind::Broken },
];
