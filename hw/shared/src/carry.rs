//! The carry handshake of Google's GSMI, as [`Quirk::GSMI_CARRY`](ioemul::Quirk::GSMI_CARRY) does it: the firmware is called
//! with CF set, and has the registers until it clears CF.
//!
//! Our handler answers the command in the second SMI, and leaves a trace of the first in AL ([`LATE_COMMAND`]).

use core::arch::x86_64::_rdtsc;

use ioemul::{CARRY_LIMIT, Gprs, IoInsn, Width};

use crate::engine::{Engine, Failure, Refused, compare};
use crate::rng::Rng;
use crate::smm::{KEEP_CARRY, LATE_COMMAND, SET_CARRY, SMI_PORT, START_TIMER, exchange};

/// The quirk takes the form with DX and not the other.
const WITH_QUIRK: IoInsn = IoInsn::out_dx(Width::Byte);
const WITHOUT: IoInsn = IoInsn::out_imm8(Width::Byte, SMI_PORT as u8);

/// A wait is longer than an access without one by at least so many ticks: one for each look at CF. (The whole access may be a
/// long one: an engine that writes its slot first is slow under emulation.)
const LONGER: u64 = CARRY_LIMIT as u64;
/// How often a fast access is timed, and how often a slow answer is waited for: the machine may be busy elsewhere.
const ATTEMPTS: u64 = 5;

/// Calls of [`LATE_COMMAND`], counted.
struct Calls<'a> {
    engine: &'a mut dyn Engine,
    rng: Rng,
    access: u64,
}

impl<'a> Calls<'a> {
    fn new(engine: &'a mut dyn Engine) -> Self {
        Self { engine, rng: Rng::new(0), access: 0 }
    }

    /// Random registers, but for CF and what RBX tells the handler.
    fn before(&mut self, rbx: u64, cf: u64) -> Gprs {
        let gprs = self.rng.gprs();
        Gprs {
            rax: gprs.rax & !0xff | u64::from(LATE_COMMAND),
            rbx: gprs.rbx & !(SET_CARRY | KEEP_CARRY | START_TIMER) | rbx,
            rdx: gprs.rdx & !0xffff | u64::from(SMI_PORT),
            rflags: gprs.rflags & !Gprs::CF | cf,
            ..gprs
        }
    }

    /// Makes the access; returns the registers, and how long it took.
    fn call(&mut self, insn: IoInsn, before: &Gprs) -> Result<(Gprs, u64), Failure> {
        self.access += 1;
        let (access, mut gprs) = (self.access, *before);
        // SAFETY: every x86-64 CPU has a time-stamp counter, and nobody here forbids reading it.
        let now = || unsafe { _rdtsc() };
        let start = now();
        let result = self.engine.execute(insn, &mut gprs);
        let took = now().wrapping_sub(start);
        result.map_err(|Refused| Failure::Refused { access, insn, port: SMI_PORT })?;
        Ok((gprs, took))
    }

    fn compare(&self, insn: IoInsn, is: &Gprs, should_be: &Gprs) -> Result<(), Failure> {
        let access = self.access;
        compare(is, should_be).map_err(|first| Failure::Registers { access, insn, port: SMI_PORT, first })
    }

    /// The handler is called once, and CF stays; returns how long that takes at least.
    fn one_smi(&mut self, insn: IoInsn, cf: u64, attempts: u64) -> Result<u64, Failure> {
        let mut shortest = u64::MAX;
        for _ in 0..attempts {
            let before = self.before(0, cf);
            let (after, took) = self.call(insn, &before)?;
            self.compare(insn, &after, &exchange(&before))?;
            shortest = shortest.min(took);
        }
        Ok(shortest)
    }
}

/// With a handler that never clears CF the wait comes to its end, CF being set; there is no wait without the quirk, nor
/// where CF is clear.
pub fn carry(engine: &mut dyn Engine) -> Result<u64, Failure> {
    let mut calls = Calls::new(engine);
    let without = calls.one_smi(WITHOUT, Gprs::CF, ATTEMPTS)?;
    let clear = calls.one_smi(WITH_QUIRK, 0, ATTEMPTS)?;
    let waited = calls.one_smi(WITH_QUIRK, Gprs::CF, 1)?;
    if waited < without + LONGER {
        return Err(Failure::Other("CF was set, and nobody waited"));
    }
    if waited < clear + LONGER {
        return Err(Failure::Other("CF was clear, and was waited for"));
    }
    Ok(calls.access)
}

/// A handler that clears CF in the next SMI, which its timer raises: the wait lasts until then, and the stub stores what the
/// handler has left, CF included.
pub fn carry_late(engine: &mut dyn Engine) -> Result<u64, Failure> {
    let mut calls = Calls::new(engine);
    let mut attempt = 1;
    loop {
        let before = calls.before(START_TIMER, Gprs::CF);
        let (after, _) = calls.call(WITH_QUIRK, &before)?;
        // Two SMIs: the first leaves CF, the second one clears it.
        let result = calls.compare(WITH_QUIRK, &after, &exchange(&exchange(&before)));
        // The timer may have been so late that the wait had come to its end.
        let too_late = after == exchange(&before);
        match result {
            Err(_) if too_late && attempt < ATTEMPTS => attempt += 1,
            result => return result.map(|()| calls.access),
        }
    }
}
