//! Runs checks on an engine, whatever the engine is, and says what differed.

use ioemul::{Gprs, IoInsn};

use crate::carry::{carry, carry_late};
use crate::checks::{After, CHECKS, Check, Kind, Step};
use crate::engine::{Engine, Failure, Refused, compare};
use crate::fifo::fifo;
use crate::mix::{Devices, Mix};
use crate::params::Params;
use crate::rng::Rng;
use crate::smm::exchange;
use crate::strings::{backwards, refused, strings};

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

    /// The registers that it should end with.
    fn after(&self, before: &Gprs) -> Gprs {
        let mut gprs = *before;
        match self.after {
            After::Value(value) => gprs.rax = self.insn.width.merge(before.rax, value),
            After::Regs(registers) => {
                for &(register, value) in registers {
                    *register.of(&mut gprs) = value;
                }
            }
            After::Smm => gprs = exchange(before),
        }
        gprs
    }
}

/// Runs a check; returns the number of accesses. INS and OUTS get `memory`, which lies below 4 GiB.
pub fn run_check(check: &Check, engine: &mut dyn Engine, params: &Params, memory: &mut [u8]) -> Result<u64, Failure> {
    match check.kind {
        Kind::Script(steps) => run_steps(steps, engine),
        Kind::Strings => strings(engine, memory),
        Kind::Backwards => backwards(engine, memory),
        Kind::Fifo => fifo(engine, memory),
        Kind::Carry => carry(engine),
        Kind::CarryLate => carry_late(engine),
        Kind::RandomSmis => random_smis(engine, params),
        Kind::Unprivileged => unprivileged(engine),
        Kind::Broken => Err(Failure::Other("broken stubs are made by the guest")),
        Kind::Linux(_) => Err(Failure::Other("this is for the Linux guest to try")),
        Kind::Ring0(_) => Err(Failure::Other("this is for the image in ring 0 to try")),
    }
}

/// Runs accesses in order and compares each with the table.
pub fn run_steps(steps: &[Step], engine: &mut dyn Engine) -> Result<u64, Failure> {
    let mut rng = Rng::new(0);
    for (step, access) in steps.iter().zip(1..) {
        let before = step.before(&mut rng);
        one(engine, access, step.insn, before, &step.after(&before))?;
    }
    Ok(steps.len() as u64)
}

fn one(engine: &mut dyn Engine, access: u64, insn: IoInsn, before: Gprs, after: &Gprs) -> Result<(), Failure> {
    let port = insn.port(&before);
    let mut gprs = before;
    engine.execute(insn, &mut gprs).map_err(|Refused| Failure::Refused { access, insn, port })?;
    compare(&gprs, after).map_err(|first| Failure::Registers { access, insn, port, first })
}

/// SMIs with random registers.
fn random_smis(engine: &mut dyn Engine, params: &Params) -> Result<u64, Failure> {
    let mut mix = Mix::new(params.seed, Devices::Smm);
    for access in 1..=params.count {
        let (insn, before) = mix.next();
        one(engine, access, insn, before, &exchange(&before))?;
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
            compare(&gprs, &before).map_err(|first| Failure::Registers { access, insn, port, first })?;
        }
    }
    Ok(access + refused(engine)?)
}
