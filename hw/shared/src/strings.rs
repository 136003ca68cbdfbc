//! INS and OUTS, with and without REP, on pc-testdev's latch: an OUTS leaves its last element there, an INS reads that as
//! often as it is told to.

use ioemul::{Gprs, IoInsn, Width};

use crate::engine::{Engine, Failure, Refused, compare};
use crate::{Mismatch, Rng};

const PORT: u16 = 0xe0;
const ELEMENTS: u64 = 5;

/// Every width, once, repeated, and repeated no times; returns the number of instructions.
pub fn strings(engine: &mut dyn Engine) -> Result<u64, Failure> {
    let mut run = Run { engine, rng: Rng::new(0), access: 0 };
    for width in Width::ALL {
        let bytes = usize::from(width.bytes());
        let plain = [(IoInsn::outs(width), IoInsn::ins(width), None, 1)];
        let repeated = [0, ELEMENTS].map(|n| (IoInsn::rep_outs(width), IoInsn::rep_ins(width), Some(n), n));
        for (outs, ins, rcx, elements) in plain.into_iter().chain(repeated) {
            let len = elements as usize * bytes;
            let data: [u8; 32] = core::array::from_fn(|n| (n * 37 + bytes + len) as u8);
            let mut memory = data;
            run.one(outs, rcx, elements, &mut memory)?;
            let (mut is, mut should_be) = ([0xaa; 32], [0xaa; 32]);
            run.one(ins, rcx, elements, &mut is)?;
            for element in should_be[..len].chunks_exact_mut(bytes) {
                element.copy_from_slice(&data[len - bytes..len]);
            }
            if let Some(at) = (0..is.len()).find(|&at| is[at] != should_be[at]) {
                let first = Mismatch { register: "memory", is: is[at].into(), should_be: should_be[at].into() };
                return Err(Failure::Registers { access: run.access, insn: ins, port: PORT, first });
            }
        }
    }
    Ok(run.access)
}

/// REP OUTSB without privilege: a fault before the first element.
pub fn refused(engine: &mut dyn Engine) -> Result<(), Failure> {
    let insn = IoInsn::rep_outs(Width::Byte);
    let mut run = Run { engine, rng: Rng::new(0), access: 0 };
    match run.one(insn, Some(ELEMENTS), 0, &mut [0; 32]) {
        Err(Failure::Refused { .. }) => Ok(()),
        Err(other) => Err(other),
        Ok(()) => Err(Failure::Permitted { access: 1, insn, port: PORT }),
    }
}

struct Run<'a> {
    engine: &'a mut dyn Engine,
    rng: Rng,
    access: u64,
}

impl Run<'_> {
    /// One instruction, and the registers after it.
    fn one(&mut self, insn: IoInsn, rcx: Option<u64>, elements: u64, memory: &mut [u8]) -> Result<(), Failure> {
        self.access += 1;
        let mut before = self.rng.gprs();
        before.rdx = before.rdx & !0xffff | u64::from(PORT);
        if let Some(rcx) = rcx {
            before.rcx = rcx;
        }
        let mut after = Gprs { rflags: Gprs::FLAGS_AT_IO, ..before };
        let moved = elements * u64::from(insn.width.bytes());
        match insn.direction {
            ioemul::Direction::In => after.rdi = after.rdi.wrapping_add(moved),
            _ => after.rsi = after.rsi.wrapping_add(moved),
        }
        if rcx.is_some() {
            after.rcx = 0;
        }
        let (access, port) = (self.access, PORT);
        let mut gprs = before;
        match self.engine.execute_string(insn, &mut gprs, memory) {
            Ok(()) => compare(&gprs, &after, Gprs::STATUS_FLAGS),
            Err(Refused) => {
                compare(&gprs, &before, u64::MAX).map_err(|first| Failure::Registers { access, insn, port, first })?;
                return Err(Failure::Refused { access, insn, port });
            }
        }
        .map_err(|first| Failure::Registers { access, insn, port, first })
    }
}
