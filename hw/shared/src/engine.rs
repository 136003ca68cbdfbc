//! Runs checks on an engine, whatever the engine is, and says what differed.

use core::fmt;

use ioemul::{AddressSize, Direction, Gprs, IoInsn, PortOperand};

use crate::fifo::fifo;
use crate::strings::{backwards, refused, strings};
use crate::{After, CHECKS, Check, Devices, Kind, Mix, Params, Rng, Step, exchange};

/// Something that executes port I/O with given registers.
pub trait Engine {
    /// Executes `insn`; a refusal leaves `gprs` alone.
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused>;

    /// The address of the stub that [`Self::execute`] would run, for those that let it be called.
    fn entry(&mut self, _insn: IoInsn, _gprs: &Gprs) -> Option<u64> {
        None
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

impl Step {
    /// The registers that the access starts from.
    pub fn before(&self, rng: &mut Rng) -> Gprs {
        let mut gprs = rng.gprs();
        for &(register, low) in self.set {
            let register = register.of(&mut gprs);
            *register = *register & !0xffff_ffff | u64::from(low);
        }
        if let Some(port) = self.dx {
            gprs.rdx = gprs.rdx & !0xffff | u64::from(port);
        }
        gprs
    }

    /// The registers that it should end with, and which bits of RFLAGS count.
    fn after(&self, before: &Gprs) -> (Gprs, u64) {
        let mut gprs = Gprs { rflags: Gprs::FLAGS_AT_IO, ..*before };
        let mut flags = Gprs::STATUS_FLAGS;
        match self.after {
            After::Value(value) => gprs.rax = self.insn.width.merge(before.rax, value),
            After::Polled(value) => {
                gprs.rax = self.insn.width.merge(before.rax, value);
                flags = 0;
            }
            After::Regs(registers) => {
                for &(register, value) in registers {
                    *register.of(&mut gprs) = value;
                }
            }
            After::Smm => gprs = exchange(before),
        }
        (gprs, flags)
    }
}

/// The first register in which `is` and `should_be` differ, RFLAGS by the bits in `flags` only.
pub fn compare(is: &Gprs, should_be: &Gprs, flags: u64) -> Result<(), Mismatch> {
    for ((&register, is), should_be) in Gprs::NAMES.iter().zip(is.to_words()).zip(should_be.to_words()) {
        let mask = if register == "rflags" { flags } else { u64::MAX };
        if is & mask != should_be & mask {
            return Err(Mismatch { register, is, should_be });
        }
    }
    Ok(())
}

/// Runs a check; returns the number of accesses. INS and OUTS get `memory`, which lies below 4 GiB.
pub fn run_check(check: &Check, engine: &mut dyn Engine, params: &Params, memory: &mut [u8]) -> Result<u64, Failure> {
    match check.kind {
        Kind::Script(steps) => run_steps(steps, engine),
        Kind::Strings => strings(engine, memory),
        Kind::Backwards => backwards(engine, memory),
        Kind::Fifo => fifo(engine, memory),
        Kind::RandomSmis => random_smis(engine, params),
        Kind::Unprivileged => unprivileged(engine),
        Kind::Broken => Err(Failure::Other("broken stubs are made by the guest")),
        Kind::Linux(_) => Err(Failure::Other("this is for the Linux guest to try")),
    }
}

/// Runs accesses in order and compares each with the table.
pub fn run_steps(steps: &[Step], engine: &mut dyn Engine) -> Result<u64, Failure> {
    let mut rng = Rng::new(0);
    for (step, access) in steps.iter().zip(1..) {
        let before = step.before(&mut rng);
        let (after, flags) = step.after(&before);
        one(engine, access, step.insn, before, &after, flags)?;
    }
    Ok(steps.len() as u64)
}

fn one(
    engine: &mut dyn Engine,
    access: u64,
    insn: IoInsn,
    before: Gprs,
    after: &Gprs,
    flags: u64,
) -> Result<(), Failure> {
    let port = insn.port(&before);
    let mut gprs = before;
    engine.execute(insn, &mut gprs).map_err(|Refused| Failure::Refused { access, insn, port })?;
    compare(&gprs, after, flags).map_err(|first| Failure::Registers { access, insn, port, first })
}

/// SMIs with random registers.
fn random_smis(engine: &mut dyn Engine, params: &Params) -> Result<u64, Failure> {
    let mut mix = Mix::new(params.seed, Devices::Smm);
    for access in 1..=params.count {
        let (insn, before) = mix.next();
        one(engine, access, insn, before, &exchange(&before), Gprs::STATUS_FLAGS)?;
    }
    Ok(params.count)
}

/// An access that changes nothing, by an engine that should get that wrong.
pub fn run_broken(engine: &mut dyn Engine) -> Result<u64, Failure> {
    let post_code =
        Step { insn: IoInsn::out_imm8(ioemul::Width::Byte, 0x80), dx: None, set: &[], after: After::Regs(&[]) };
    match run_steps(&[post_code], engine) {
        Err(Failure::Registers { .. }) => Ok(1),
        Err(other) => Err(other),
        Ok(_) => Err(Failure::Other("nothing was noticed")),
    }
}

fn unprivileged(engine: &mut dyn Engine) -> Result<u64, Failure> {
    let mut rng = Rng::new(0);
    let mut access = 0;
    for check in CHECKS {
        let Kind::Script(steps) = check.kind else { continue };
        for step in steps {
            access += 1;
            let before = step.before(&mut rng);
            let (insn, port) = (step.insn, step.insn.port(&before));
            let mut gprs = before;
            if engine.execute(insn, &mut gprs).is_ok() {
                return Err(Failure::Permitted { access, insn, port });
            }
            compare(&gprs, &before, u64::MAX).map_err(|first| Failure::Registers { access, insn, port, first })?;
        }
    }
    Ok(access + refused(engine)?)
}
