//! A mailbox in System Management Mode that touches every register: the handler, what it should do, and how to install it.
//!
//! SeaBIOS leaves SMRAM unlocked, so that a guest can replace the handler at SMBASE + 0x8000. The handler answers one
//! command: every general-purpose register receives the complement of its neighbour, and CF receives bit 0 of RBX, unless
//! bit 1 says that CF is to be left alone. A second command is answered by the next SMI: the first one writes that other
//! command to AL and leaves everything else, CF included, as it is; if bit 2 of RBX is set, it also starts a timer that
//! raises the next SMI (see [`DELAY`]). Other commands leave everything alone.

use ioemul::{Gprs, IoInsn, Width};

use crate::engine::{Engine, Refused};

/// APMC: a byte written here raises an SMI.
pub const SMI_PORT: u16 = 0xb2;
/// The command in AL to which the handler answers.
pub const SMI_COMMAND: u8 = 0x5a;
/// The command in AL that is answered by the next SMI: that of Google's GSMI.
pub const LATE_COMMAND: u8 = 0xef;
/// Bit of RBX: CF after [`SMI_COMMAND`].
pub const SET_CARRY: u64 = 1;
/// Bit of RBX: CF is left alone.
pub const KEEP_CARRY: u64 = 2;
/// Bit of RBX: [`LATE_COMMAND`] raises the next SMI itself.
pub const START_TIMER: u64 = 4;
/// What the handler writes to the initial count of the local APIC's timer, which takes a nanosecond a turn in QEMU.
pub const DELAY: u32 = 100_000;
/// Where SMRAM holds the handler: SeaBIOS moves SMBASE to 0xA0000.
pub const HANDLER_ADDRESS: usize = 0xa_8000;

// The save state, in the AMD64 layout that QEMU uses, as offsets from CS (SMBASE): RAX FFF8, RCX FFF0, RDX FFE8,
// RBX FFE0, RSP FFD8, RBP FFD0, RSI FFC8, RDI FFC0, R8 FFB8 … R15 FF80, RFLAGS FF70 (AMD64 manual vol. 2, 10.2.3).
core::arch::global_asm!(
    ".pushsection .rodata.ioemul_hw_smm, \"a\"",
    ".code16",
    ".global ioemul_hw_smm_start, ioemul_hw_smm_end",
    "ioemul_hw_smm_start:",
    "mov ax, cs",
    "mov ds, ax",
    "cmp byte ptr [0xfff8], {command}",
    "je 7f",
    "cmp byte ptr [0xfff8], {late_command}",
    "jne 5f",
    "mov byte ptr [0xfff8], {command}",
    "test byte ptr [0xffe0], {start_timer}",
    "je 5f",
    "mov edi, 0xfee00380", // the local APIC's initial count; ES starts at 0 and reaches everywhere
    "mov dword ptr es:[edi], {delay}",
    "jmp 5f",
    "7:",
    "mov al, [0xffe0]",
    "test al, {keep_carry}",
    "jne 6f",
    "and al, {set_carry}",
    "and byte ptr [0xff70], 0xfe",
    "or [0xff70], al",
    "6:",
    "mov eax, [0xfff8]", // RAX, for the last of the ring
    "mov edx, [0xfffc]",
    "mov di, 0xfff8",
    "2:",
    "mov si, di",
    "sub si, 8",
    "cmp si, 0xffd8", // RSP keeps out of the ring
    "jne 3f",
    "sub si, 8",
    "3:",
    "mov ebx, [si]",
    "not ebx",
    "mov [di], ebx",
    "mov ebx, [si + 4]",
    "not ebx",
    "mov [di + 4], ebx",
    "mov di, si",
    "cmp di, 0xff80",
    "jne 2b",
    "not eax",
    "mov [0xff80], eax",
    "not edx",
    "mov [0xff84], edx",
    "5:",
    "rsm",
    "ioemul_hw_smm_end:",
    ".code64",
    ".popsection",
    command = const SMI_COMMAND,
    late_command = const LATE_COMMAND,
    set_carry = const SET_CARRY,
    keep_carry = const KEEP_CARRY,
    start_timer = const START_TIMER,
    delay = const DELAY,
);

unsafe extern "C" {
    static ioemul_hw_smm_start: u8;
    static ioemul_hw_smm_end: u8;
}

/// The handler's bytes: 16-bit code that runs wherever CS puts it. A deaf one answers some other command.
pub fn handler(deaf: bool) -> impl Iterator<Item = u8> {
    // SAFETY: the two symbols delimit one read-only object of this program.
    let bytes = unsafe {
        let (start, end) = (&raw const ioemul_hw_smm_start, &raw const ioemul_hw_smm_end);
        core::slice::from_raw_parts(start, end.offset_from(start) as usize)
    };
    bytes.iter().map(move |&byte| if deaf && byte == SMI_COMMAND { !byte } else { byte })
}

/// What the handler makes of `gprs` in one SMI.
pub fn exchange(gprs: &Gprs) -> Gprs {
    let mut after = *gprs;
    match gprs.rax as u8 {
        SMI_COMMAND => {}
        LATE_COMMAND => {
            after.rax = gprs.rax & !0xff | u64::from(SMI_COMMAND);
            return after;
        }
        _ => return after,
    }
    if gprs.rbx & KEEP_CARRY == 0 {
        after.rflags = gprs.rflags & !Gprs::CF | gprs.rbx & SET_CARRY;
    }
    let g = gprs;
    let ring = [
        (&mut after.rax, g.rcx),
        (&mut after.rcx, g.rdx),
        (&mut after.rdx, g.rbx),
        (&mut after.rbx, g.rbp),
        (&mut after.rbp, g.rsi),
        (&mut after.rsi, g.rdi),
        (&mut after.rdi, g.r8),
        (&mut after.r8, g.r9),
        (&mut after.r9, g.r10),
        (&mut after.r10, g.r11),
        (&mut after.r11, g.r12),
        (&mut after.r12, g.r13),
        (&mut after.r13, g.r14),
        (&mut after.r14, g.r15),
        (&mut after.r15, g.rax),
    ];
    for (register, neighbour) in ring {
        *register = !neighbour;
    }
    after
}

/// The two chipsets that QEMU emulates, as far as SMM is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chipset {
    /// `-M pc`
    I440fx,
    /// `-M q35`
    Q35,
}

impl Chipset {
    /// Which of them this machine has, by the PCI identity of its host bridge.
    pub fn probe(engine: &mut dyn Engine) -> Result<Self, Refused> {
        Ok(match pci_read(engine, 0x00, 0, 0x00)? {
            0x1237_8086 => Self::I440fx,
            _ => Self::Q35,
        })
    }

    /// Lets writes to port 0xB2 raise SMIs.
    pub fn enable_smi(self, engine: &mut dyn Engine) -> Result<(), Refused> {
        match self {
            // PIIX4 power management, function 3 of 00:01: APMC_EN is bit 25 of DEVACTB at 0x58.
            Self::I440fx => {
                let devactb = pci_read(engine, 0x01, 3, 0x58)?;
                out(engine, Width::Dword, 0xcfc, devactb | 1 << 25)
            }
            // ICH9 LPC bridge 00:1f.0: PMBASE at 0x40; SMI_EN at PMBASE + 0x30, GBL_SMI_EN bit 0, APMC_EN bit 5.
            Self::Q35 => {
                let smi_en = (pci_read(engine, 0x1f, 0, 0x40)? & 0xff80) as u16 + 0x30;
                let enabled = input(engine, Width::Dword, smi_en)?;
                out(engine, Width::Dword, smi_en, enabled | 0x21)
            }
        }
    }

    /// Makes SMRAM readable and writable from outside SMM, or hides it again.
    pub fn open_smram(self, engine: &mut dyn Engine, open: bool) -> Result<(), Refused> {
        // The SMRAM control register of the host bridge: C_BASE_SEG 2, G_SMRAME 8, D_OPEN 40.
        let register = match self {
            Self::I440fx => 0x72,
            Self::Q35 => 0x9d,
        };
        pci_select(engine, 0x00, 0, register)?;
        out(engine, Width::Byte, 0xcfc + u16::from(register & 3), if open { 0x4a } else { 0x0a })
    }
}

fn input(engine: &mut dyn Engine, width: Width, port: u16) -> Result<u32, Refused> {
    let mut gprs = Gprs { rdx: port.into(), ..Gprs::default() };
    engine.execute(IoInsn::in_dx(width), &mut gprs)?;
    Ok(gprs.rax as u32)
}

fn out(engine: &mut dyn Engine, width: Width, port: u16, value: u32) -> Result<(), Refused> {
    let mut gprs = Gprs { rdx: port.into(), rax: value.into(), ..Gprs::default() };
    engine.execute(IoInsn::out_dx(width), &mut gprs)
}

/// Configuration mechanism 1: the address to 0xCF8, then the data at 0xCFC. Bus 0 is all there is here.
fn pci_select(engine: &mut dyn Engine, device: u32, function: u32, register: u8) -> Result<(), Refused> {
    out(engine, Width::Dword, 0xcf8, 1 << 31 | device << 11 | function << 8 | u32::from(register & 0xfc))
}

fn pci_read(engine: &mut dyn Engine, device: u32, function: u32, register: u8) -> Result<u32, Refused> {
    pci_select(engine, device, function, register)?;
    input(engine, Width::Dword, 0xcfc)
}
