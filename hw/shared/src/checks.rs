//! The table of checks: every access, with its registers in and its registers out. To add a check, add a row.

use ioemul::{Gprs, IoInsn, PortOperand, Width::*};

use crate::model::{MEMORY, MOUSE_COMMAND_READ_ID, MOUSE_ID, VMWARE_MAGIC, VMWARE_PORT};
use crate::smm::{KEEP_CARRY, SET_CARRY, SMI_COMMAND, SMI_PORT};

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
    /// INS and OUTS on pc-testdev, in all their forms.
    Strings,
    /// The same, for a caller whose DF is set.
    Backwards,
    /// INS and OUTS on the FIFO of a serial port: element by element.
    Fifo,
    /// SMIs with random registers, compared with the handler's model; as many as the parameters say.
    RandomSmis,
    /// The carry handshake of Google's GSMI: with a handler that does not clear CF.
    Carry,
    /// The same, with a handler that clears CF in a second SMI, a while after the first.
    CarryLate,
    /// Every access of every script, before the process has I/O privilege: a fault, with the registers as given.
    Unprivileged,
    /// A stub of which one byte was changed: the comparison has to notice.
    Broken,
    /// What only a process can try.
    Linux(Linux),
    /// What only the image without an operating system can try.
    Ring0(Ring0),
}

/// What a check does where exceptions are ours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ring0 {
    /// A fault at each instruction of `<io>`, with interrupts on and off, is resumed at its landing pad: IF is as it was.
    Faults,
    /// IN in ring 3 about the ends of I/O bitmaps: permitted where `TssBitmap` says so.
    TssBitmap,
    /// A task in ring 3, whose accesses the CPU makes if its bitmap permits them, and the handler of #GP if not: with the
    /// same result.
    Task,
    /// Stubs of one table on two processors at the same time.
    TwoProcessors,
}

/// What a check does in the Linux guest, by means of the operating system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Linux {
    /// The DMI strings that the library reads.
    Dmi,
    /// INS and OUTS that come to the end of the mapped memory.
    PageFault,
    /// `IoPermission`: which ports it opens and for how long, and what the faults at the others say.
    Permission,
    /// `IoPrivilegeLevel`: for how long.
    Level,
    /// `CpuAffinity`, on a machine with two processors.
    Affinity,
    /// What the guards say to a user without CAP_SYS_RAWIO.
    Nobody,
    /// What they say to root if the kernel is locked down.
    Lockdown,
    /// A ProLiant mailbox that stays busy.
    Busy,
    /// A quirk that would read a port of which only writing is permitted.
    QuirkDenied,
    /// One of the library's examples, as a process of its own, on the hardware.
    Example(&'static Example),
}

/// How an example is run.
#[derive(PartialEq, Eq)]
pub struct Example {
    /// Its name.
    pub name: &'static str,
    /// Arguments besides `--native`.
    pub arguments: &'static [&'static str],
    /// How many accesses it shows. Each has to be what the model makes of it.
    pub accesses: usize,
    /// Whether the report shows what it prints.
    pub shown: bool,
}

/// The examples that run in the guest.
pub const EXAMPLES: &[Example] = &[
    Example { name: "in_out_byte", arguments: &[], accesses: 4, shown: false },
    Example { name: "vmware_backdoor", arguments: &[], accesses: 4, shown: true },
    Example { name: "smm_mailbox", arguments: &["0x5a"], accesses: 1, shown: false },
    Example { name: "quirk_proliant", arguments: &[], accesses: 1, shown: false },
];

/// The machine that a check of ring 3 wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The one with all the devices.
    Usual,
    /// Two processors, and a kernel that was told `lockdown=integrity`.
    LockedDown,
    /// A ProLiant whose mailbox stays busy.
    Busy,
}

impl Kind {
    /// Where it runs.
    pub const fn machine(&self) -> Machine {
        match self {
            Kind::Linux(Linux::Affinity | Linux::Lockdown) => Machine::LockedDown,
            Kind::Linux(Linux::Busy) => Machine::Busy,
            _ => Machine::Usual,
        }
    }

    /// Whether the guest holds I/O privilege meanwhile.
    pub const fn is_privileged(&self) -> bool {
        use Linux::{Affinity, Example, Level, Lockdown, Nobody, Permission};
        !matches!(
            self,
            Kind::Unprivileged | Kind::Linux(Permission | Level | Affinity | Nobody | Lockdown | Example(_))
        )
    }
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
    Rsi,
    Rdi,
    Rflags,
}

impl Reg {
    /// The register itself.
    pub fn of(self, gprs: &mut Gprs) -> &mut u64 {
        match self {
            Reg::Rax => &mut gprs.rax,
            Reg::Rbx => &mut gprs.rbx,
            Reg::Rcx => &mut gprs.rcx,
            Reg::Rdx => &mut gprs.rdx,
            Reg::Rsi => &mut gprs.rsi,
            Reg::Rdi => &mut gprs.rdi,
            Reg::Rflags => &mut gprs.rflags,
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

/// A call of the VMware backdoor.
const fn vmware(set: &'static [(Reg, u32)], after: &'static [(Reg, u64)]) -> Step {
    dx(IoInsn::in_dx(Dword), VMWARE_PORT, set, After::Regs(after))
}

/// Nothing changes: what most OUTs do.
const NOTHING: After = After::Regs(&[]);

use After::{Regs, Value};
use Reg::*;

/// A call of the SMM handler: what RBX says of CF, and the flags of before.
macro_rules! smi {
    ($insn:expr, $rbx:expr, $rflags:expr) => {
        Step {
            insn: $insn,
            dx: if matches!($insn.operand, PortOperand::Dx) { Some(SMI_PORT) } else { None },
            set: &[(Rax, SMI_COMMAND as u32), (Rbx, $rbx as u32), (Rflags, $rflags as u32)],
            after: After::Smm,
        }
    };
}

/// All status flags are set, and all other bits, which no stub may take notice of.
const SET: u64 = u64::MAX;
/// The status flags are clear, all other bits set.
const CLEAR: u64 = !Gprs::STATUS_FLAGS;

/// Says that it is there, which is kept until it is asked for; the upper halves of six registers get lost.
const MOUSE_READ_ID: Step = vmware(
    &[(Rax, VMWARE_MAGIC), (Rbx, MOUSE_COMMAND_READ_ID), (Rcx, 41), (Rdx, 0xd), (Rsi, 0x51), (Rdi, 0xd1)],
    &[
        (Rax, VMWARE_MAGIC as u64),
        (Rbx, MOUSE_COMMAND_READ_ID as u64),
        (Rcx, 41),
        (Rdx, VMWARE_PORT as u64),
        (Rsi, 0x51),
        (Rdi, 0xd1),
    ],
);

/// The table.
pub const CHECKS: &[Check] = &[
    // First, while the process has no privilege.
    Check { name: "refused without privilege", kind: Kind::Unprivileged },
    Check { name: "IoPermission", kind: Kind::Linux(Linux::Permission) },
    Check { name: "IoPrivilegeLevel", kind: Kind::Linux(Linux::Level) },
    Check { name: "CpuAffinity", kind: Kind::Linux(Linux::Affinity) },
    Check { name: "no CAP_SYS_RAWIO: said so", kind: Kind::Linux(Linux::Nobody) },
    Check { name: "kernel lockdown: said so", kind: Kind::Linux(Linux::Lockdown) },
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
    Check { name: "the caller's DF is set", kind: Kind::Backwards },
    // A second serial port in loopback mode: what is written comes back in order, and what is left can be counted.
    Check { name: "serial FIFO, INS and OUTS", kind: Kind::Fifo },
    Check { name: "page fault in INS or OUTS", kind: Kind::Linux(Linux::PageFault) },
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
    Check {
        name: "VMware: other commands",
        kind: Kind::Script(&[
            // Memory size: in bytes, where VMware's own answer is in MiB.
            vmware(&[(Rax, VMWARE_MAGIC), (Rcx, 20)], &[(Rax, MEMORY), (Rbx, 0x1177)]),
            // Frequencies, which TCG does not have: all ones in EBX.
            vmware(&[(Rax, VMWARE_MAGIC), (Rcx, 45)], &[(Rax, VMWARE_MAGIC as u64), (Rbx, 0xffff_ffff)]),
            // vCPU information: no x2APIC, no flag.
            vmware(&[(Rax, VMWARE_MAGIC), (Rcx, 68)], &[(Rax, 0)]),
            vmware(&[(Rax, VMWARE_MAGIC), (Rcx, 99)], &[(Rax, 0xffff_ffff)]),
        ]),
    },
    // The absolute pointer answers in as many registers as it is asked for words: six of them at once.
    Check {
        name: "VMware: the mouse",
        kind: Kind::Script(&[
            MOUSE_READ_ID,
            MOUSE_READ_ID,
            MOUSE_READ_ID,
            MOUSE_READ_ID,
            MOUSE_READ_ID,
            MOUSE_READ_ID,
            vmware(
                &[(Rax, VMWARE_MAGIC), (Rbx, 0xb), (Rcx, 40), (Rdx, 0xd), (Rsi, 0x51), (Rdi, 0xd1)],
                &[(Rax, 6), (Rbx, 0xb), (Rcx, 40), (Rdx, VMWARE_PORT as u64), (Rsi, 0x51), (Rdi, 0xd1)],
            ),
            vmware(
                &[(Rax, VMWARE_MAGIC), (Rbx, 6), (Rcx, 39)],
                &[(Rax, MOUSE_ID), (Rbx, MOUSE_ID), (Rcx, MOUSE_ID), (Rdx, MOUSE_ID), (Rsi, MOUSE_ID), (Rdi, MOUSE_ID)],
            ),
        ]),
    },
    Check { name: "DMI strings", kind: Kind::Linux(Linux::Dmi) },
    // A debug console at 0xCD4 that reads as 0x51 stands in for the mailbox: with the quirk AL holds the answer to the
    // poll, without it the command.
    Check {
        name: "ProLiant quirk",
        kind: Kind::Script(&[dx(IoInsn::out_dx(Byte), 0xcd4, &[(Rax, 0x85)], Value(0x51))]),
    },
    Check { name: "quirk refused: a port lacks", kind: Kind::Linux(Linux::QuirkDenied) },
    Check { name: "ProLiant: busy for ever", kind: Kind::Linux(Linux::Busy) },
    Check {
        name: "SMM: 15 registers and CF",
        kind: Kind::Script(&[
            // CF is cleared, set, and left alone (twice), where it was set and where it was clear.
            smi!(IoInsn::out_dx(Byte), 0, SET),
            smi!(IoInsn::out_dx(Byte), SET_CARRY, SET),
            smi!(IoInsn::out_dx(Byte), KEEP_CARRY, SET),
            smi!(IoInsn::out_dx(Byte), SET_CARRY | KEEP_CARRY, SET),
            smi!(IoInsn::out_dx(Byte), 0, CLEAR),
            smi!(IoInsn::out_dx(Byte), SET_CARRY, CLEAR),
            smi!(IoInsn::out_dx(Byte), KEEP_CARRY, CLEAR),
            smi!(IoInsn::out_dx(Byte), SET_CARRY | KEEP_CARRY, CLEAR),
            smi!(IoInsn::out_imm8(Byte, SMI_PORT as u8), 0, SET),
            smi!(IoInsn::out_imm8(Byte, SMI_PORT as u8), SET_CARRY, CLEAR),
            smi!(IoInsn::out_imm8(Byte, SMI_PORT as u8), KEEP_CARRY, SET),
            smi!(IoInsn::out_imm8(Byte, SMI_PORT as u8), KEEP_CARRY, CLEAR),
            smi!(IoInsn::out_dx(Word), 0, SET),
            smi!(IoInsn::out_dx(Word), SET_CARRY, CLEAR),
        ]),
    },
    Check { name: "SMM: random registers", kind: Kind::RandomSmis },
    Check { name: "GSMI: CF is never cleared", kind: Kind::Carry },
    Check { name: "GSMI: CF is cleared late", kind: Kind::CarryLate },
    Check { name: "fault at an access: IF stays", kind: Kind::Ring0(Ring0::Faults) },
    Check { name: "TssBitmap: as the CPU does", kind: Kind::Ring0(Ring0::TssBitmap) },
    Check { name: "a task's #GP: as the CPU", kind: Kind::Ring0(Ring0::Task) },
    Check { name: "two processors, one table", kind: Kind::Ring0(Ring0::TwoProcessors) },
    Check { name: "a broken stub is noticed", kind: Kind::Broken },
    // Last: they open their ports themselves.
    Check { name: "example in_out_byte", kind: Kind::Linux(Linux::Example(&EXAMPLES[0])) },
    Check { name: "example vmware_backdoor", kind: Kind::Linux(Linux::Example(&EXAMPLES[1])) },
    Check { name: "example smm_mailbox", kind: Kind::Linux(Linux::Example(&EXAMPLES[2])) },
    Check { name: "example quirk_proliant", kind: Kind::Linux(Linux::Example(&EXAMPLES[3])) },
];
