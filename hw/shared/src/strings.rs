//! INS and OUTS in all their forms on pc-testdev's latch: an OUTS leaves its last element there, an INS reads that as often
//! as it is told to.

use ioemul::{Direction, Gprs, IoInsn, PortOperand, Segment, Width};

use crate::engine::{DF, Engine, Failure, Mismatch, Refused, Returned, compare, is_addr32};
use crate::rng::Rng;

const PORT: u16 = 0xe0;
const ELEMENTS: u64 = 5;
/// How much memory the strings need.
const MEMORY: usize = 32;

/// Every form, with REP also for no elements; returns the number of instructions.
pub fn strings(engine: &mut dyn Engine, memory: &mut [u8]) -> Result<u64, Failure> {
    all_forms(engine, memory)
}

/// As [`strings`], called with DF set: data goes upwards all the same, and DF is set afterwards.
pub fn backwards(engine: &mut dyn Engine, memory: &mut [u8]) -> Result<u64, Failure> {
    let mut engine = Backwards { engine, lost: false };
    let accesses = all_forms(&mut engine, memory)?;
    if engine.lost {
        return Err(Failure::Other("a caller got its DF back clear"));
    }
    Ok(accesses)
}

fn all_forms(engine: &mut dyn Engine, memory: &mut [u8]) -> Result<u64, Failure> {
    let memory = &mut memory[..MEMORY];
    let mut run = Strings::new(engine, PORT);
    // What the latch holds, once it has been written.
    let mut latch = [0x11, 0x22, 0x33, 0x44];
    memory[..4].copy_from_slice(&latch);
    run.one(IoInsn::outs(Width::Dword), 1, 1, memory)?;
    for outs in IoInsn::strings().filter(|insn| insn.direction == Direction::Out) {
        let ins = reverse(outs);
        let bytes = usize::from(outs.width.bytes());
        for &elements in counts(outs, &[ELEMENTS, 0]) {
            let len = elements as usize * bytes;
            memory.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 37 + bytes + len) as u8);
            if let Some(last) = memory[..len].chunks_exact(bytes).last() {
                latch[..bytes].copy_from_slice(last);
            }
            run.one(outs, elements, elements, memory)?;
            let mut expected = [0xaa; MEMORY];
            memory.fill(0xaa);
            expected[..len].chunks_exact_mut(bytes).for_each(|element| element.copy_from_slice(&latch[..bytes]));
            run.one(ins, elements, elements, memory)?;
            run.memory(ins, memory, &expected)?;
        }
    }
    Ok(run.access)
}

/// The INS for an OUTS: of the same width, with as many elements, and with addresses of the same size.
pub fn reverse(outs: IoInsn) -> IoInsn {
    let PortOperand::String { rep, address, .. } = outs.operand else { return outs };
    let operand = PortOperand::String { rep, address, segment: Segment::Es };
    IoInsn { direction: Direction::In, operand, ..outs }
}

/// How many elements a form can be told to move: as many as wanted, or one.
pub fn counts(insn: IoInsn, with_rep: &[u64]) -> &[u64] {
    match insn.operand {
        PortOperand::String { rep: true, .. } => with_rep,
        _ => &[1],
    }
}

/// REP OUTSB without privilege: a fault before the first element, and also if there is none, where the CPU executes it.
pub fn refused(engine: &mut dyn Engine) -> Result<u64, Failure> {
    let mut run = Strings::new(engine, PORT);
    let (insn, emulated) = (IoInsn::rep_outs(Width::Byte), run.engine.emulates_strings());
    for count in [ELEMENTS, 0] {
        match run.one(insn, count, 0, &mut [0; MEMORY]) {
            Err(Failure::Refused { .. }) if count == 0 && emulated => {
                return Err(Failure::Other("no element is no access, and was refused"));
            }
            Err(Failure::Refused { .. }) => {}
            Err(other) => return Err(other),
            Ok(()) if count == 0 && emulated => {}
            Ok(()) => return Err(Failure::Permitted { access: run.access, insn, port: PORT }),
        }
    }
    Ok(run.access)
}

/// String instructions at one port, counted.
pub struct Strings<'a> {
    pub engine: &'a mut dyn Engine,
    pub access: u64,
    rng: Rng,
    port: u16,
}

impl<'a> Strings<'a> {
    pub fn new(engine: &'a mut dyn Engine, port: u16) -> Self {
        Self { engine, access: 0, rng: Rng::new(0), port }
    }

    /// One instruction, and the registers after it.
    pub fn one(&mut self, insn: IoInsn, count: u64, elements: u64, memory: &mut [u8]) -> Result<(), Failure> {
        self.access += 1;
        let mut before = string_registers(&mut self.rng, insn, self.port, count);
        if self.engine.emulates_strings() {
            before.rflags &= !DF; // these checks go upwards
        }
        let after = after_elements(insn, &before, elements);
        let (access, port) = (self.access, self.port);
        let mut gprs = before;
        match self.engine.execute_string(insn, &mut gprs, memory) {
            Ok(()) => compare(&gprs, &after),
            Err(Refused) => {
                compare(&gprs, &before).map_err(|first| Failure::Registers { access, insn, port, first })?;
                return Err(Failure::Refused { access, insn, port });
            }
        }
        .map_err(|first| Failure::Registers { access, insn, port, first })
    }

    /// The memory after an INS.
    pub fn memory(&self, insn: IoInsn, is: &[u8], should_be: &[u8]) -> Result<(), Failure> {
        let Some((is, should_be)) = is.iter().zip(should_be).find(|(is, should_be)| is != should_be) else {
            return Ok(());
        };
        let first = Mismatch { register: "memory", is: (*is).into(), should_be: (*should_be).into() };
        Err(Failure::Registers { access: self.access, insn, port: self.port, first })
    }
}

/// Random registers, for so many elements. With 32-bit addresses the upper half of RCX is random, too.
pub fn string_registers(rng: &mut Rng, insn: IoInsn, port: u16, count: u64) -> Gprs {
    let mut gprs = rng.gprs();
    gprs.rdx = gprs.rdx & !0xffff | u64::from(port);
    if let PortOperand::String { rep: true, address, .. } = insn.operand {
        gprs.rcx = gprs.rcx & !address.mask() | count;
    }
    gprs
}

/// The registers when so many elements have been moved. The results of 32-bit addressing are zero-extended, once there is
/// a first element.
pub fn after_elements(insn: IoInsn, before: &Gprs, elements: u64) -> Gprs {
    let mut after = *before;
    if elements == 0 {
        return after;
    }
    let written = |value: u64| if is_addr32(insn) { value & 0xffff_ffff } else { value };
    let moved = elements * u64::from(insn.width.bytes());
    match insn.direction {
        Direction::In => after.rdi = written(before.rdi.wrapping_add(moved)),
        _ => after.rsi = written(before.rsi.wrapping_add(moved)),
    }
    if matches!(insn.operand, PortOperand::String { rep: true, .. }) {
        after.rcx = written(before.rcx.wrapping_sub(elements));
    }
    after
}

/// Calls the stubs of another engine with DF set.
struct Backwards<'a> {
    engine: &'a mut dyn Engine,
    /// DF was clear after a call.
    lost: bool,
}

impl Engine for Backwards<'_> {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        let Returned { result, rflags } = self.engine.call_with_df(insn, gprs).ok_or(Refused)?;
        self.lost |= rflags & DF == 0;
        if result == 0 { Ok(()) } else { Err(Refused) }
    }
}
