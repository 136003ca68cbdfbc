//! What executes port I/O, whatever it is, and how its work is compared.

use core::fmt;

use ioemul::{AddressSize, Direction, Gprs, IoInsn, PortOperand};

/// Something that executes port I/O with given registers.
pub trait Engine {
    /// Executes `insn`; a refusal leaves `gprs` alone.
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused>;

    /// Calls the stub that [`Self::execute`] would run, with the caller's DF set against the psABI; `None` from those that do
    /// not let their stubs be called.
    fn call_with_df(&mut self, _insn: IoInsn, _gprs: &mut Gprs) -> Option<Returned> {
        None
    }

    /// Whether INS and OUTS are emulated: they then follow DF, and make no access where there is no element. A stub goes
    /// upwards whatever DF is, and the CPU refuses its access even for no element.
    fn emulates_strings(&self) -> bool {
        false
    }

    /// Executes INS or OUTS on `memory`, which is large enough, and lies below 4 GiB if 32-bit addresses are used: RDI or
    /// RSI point to its start for as long as that takes, and have then moved on from what they were.
    fn execute_string(&mut self, insn: IoInsn, gprs: &mut Gprs, memory: &mut [u8]) -> Result<(), Refused> {
        let pointer = |gprs: &mut Gprs, change: fn(u64, u64) -> u64, by: u64| {
            let register = match insn.direction {
                Direction::In => &mut gprs.rdi,
                _ => &mut gprs.rsi,
            };
            // A 32-bit address leaves the upper half to chance.
            let half = if is_addr32(insn) { 0xffff_ffff } else { u64::MAX };
            *register = *register & !half | change(*register, by) & half;
        };
        let start = memory.as_mut_ptr().expose_provenance() as u64;
        assert!(!is_addr32(insn) || u32::try_from(start).is_ok(), "the memory is out of reach");
        let offset = match insn.direction {
            Direction::In => start.wrapping_sub(gprs.rdi),
            _ => start.wrapping_sub(gprs.rsi),
        };
        pointer(gprs, u64::wrapping_add, offset);
        let result = self.execute(insn, gprs);
        pointer(gprs, u64::wrapping_sub, offset);
        result
    }
}

/// What a stub leaves to its caller.
#[derive(Clone, Copy, Debug)]
pub struct Returned {
    /// RAX; 0: no fault.
    pub result: u64,
    /// The caller's RFLAGS.
    pub rflags: u64,
}

/// The direction flag.
pub const DF: u64 = 1 << 10;

/// Whether INS or OUTS use ECX, ESI and EDI.
pub const fn is_addr32(insn: IoInsn) -> bool {
    matches!(insn.operand, PortOperand::String { address: AddressSize::Bits32, .. })
}

/// The access did not happen: the processor raised #GP.
#[derive(Debug)]
pub struct Refused;

/// One register that is not what it should be.
#[derive(Debug)]
pub struct Mismatch {
    /// Which one.
    pub register: &'static str,
    /// What it held after the access.
    pub is: u64,
    /// What it should have held.
    pub should_be: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { register, is, should_be } = self;
        write!(f, "{register} is {is:#x}, should be {should_be:#x}")
    }
}

impl core::error::Error for Mismatch {}

/// Why a check failed.
#[derive(Debug)]
pub enum Failure {
    /// The access left wrong registers.
    Registers { access: u64, insn: IoInsn, port: u16, first: Mismatch },
    /// The access faulted.
    Refused { access: u64, insn: IoInsn, port: u16 },
    /// The access should have faulted.
    Permitted { access: u64, insn: IoInsn, port: u16 },
    /// Anything else.
    Other(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Registers { access, insn, port, first } => {
                write!(f, "access {access}, {insn} (port {port:#x}): {first}")
            }
            Failure::Refused { access, insn, port } => write!(f, "access {access}, {insn} (port {port:#x}): #GP"),
            Failure::Permitted { access, insn, port } => {
                write!(f, "access {access}, {insn} (port {port:#x}): happened, should have been refused")
            }
            Failure::Other(what) => f.write_str(what),
        }
    }
}

impl core::error::Error for Failure {}

/// The first register in which `is` and `should_be` differ, RFLAGS by all its bits.
pub fn compare(is: &Gprs, should_be: &Gprs) -> Result<(), Mismatch> {
    match is.differences(should_be).next() {
        Some((register, is, should_be)) => Err(Mismatch { register, is, should_be }),
        None => Ok(()),
    }
}
