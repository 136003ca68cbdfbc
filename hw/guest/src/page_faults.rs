//! INS and OUTS that come to the end of the mapped memory: what the fault says, how far the registers say that they got,
//! and how far the device does.

use hw_shared::fifo::{DEPTH, Fifo};
use hw_shared::{DF, Engine, Returned, Rng, after_elements, compare, counts, is_addr32, string_registers};
use ioemul::{Direction, IoInsn};

use crate::engines::Native;
use crate::machine;

/// So many elements are asked for: what the FIFO holds.
const COUNT: u64 = DEPTH as u64;

/// Every form, with every number of elements that fit, and with an element that lies astride.
pub fn run(engine: &mut dyn Native) -> Result<u64, String> {
    let memory = machine::low_memory(1).map_err(|error| error.to_string())?;
    let mut rng = Rng::new(0);
    let mut accesses = 0;
    for insn in IoInsn::strings() {
        let count = counts(insn, &[COUNT])[0];
        for fit in 0..=count {
            for astride in 0..usize::from(insn.width.bytes()) {
                let result = one(engine, &mut rng, memory, Attempt { insn, count, fit, astride });
                result.map_err(|why| format!("{insn}, {fit} of {count} elements and {astride} bytes fit: {why}"))?;
                accesses += 1;
            }
        }
    }
    Ok(accesses)
}

/// An instruction, of whose elements some fit into the memory, and some bytes of the next.
struct Attempt {
    insn: IoInsn,
    count: u64,
    fit: u64,
    astride: usize,
}

fn one(engine: &mut dyn Native, rng: &mut Rng, memory: &mut [u8], attempt: Attempt) -> Result<(), String> {
    let Attempt { insn, count, fit, astride } = attempt;
    let bytes = usize::from(insn.width.bytes());
    let at = memory.len() - fit as usize * bytes - astride;
    let end = memory.as_ptr_range().end.expose_provenance() as u64;
    let start = memory.as_mut_ptr().expose_provenance() as u64 + at as u64;
    prepare(engine, insn, &mut memory[at..])?;

    let mut before = string_registers(rng, insn, Fifo::PORT, count);
    let pointer = match insn.direction {
        Direction::In => &mut before.rdi,
        _ => &mut before.rsi,
    };
    *pointer = if is_addr32(insn) { *pointer & !0xffff_ffff | start } else { start };
    let after = after_elements(insn, &before, fit);
    let mut gprs = before;
    let result = engine.attempt(insn, &mut gprs);
    if fit == count {
        result.map_err(|error| error.to_string())?;
        compare(&gprs, &after).map_err(|first| first.to_string())?;
    } else {
        // The access was a user's, to a page that is not there; for INS a write.
        let code = if insn.direction == Direction::In { 6 } else { 4 };
        match result {
            Err(ioemul::Error::Fault { fault, .. })
                if (fault.vector, fault.error_code, fault.address) == (14, code, end)
                    && fault.to_string().starts_with(&format!("page fault at {end:#x} ")) => {}
            Err(error) => return Err(format!("{error}, should be a page fault at {end:#x}, error code {code}")),
            Ok(()) => return Err("no fault".into()),
        }
        compare(&gprs, &after).map_err(|first| first.to_string())?;
        check_data(engine, insn, fit as usize, &memory[at..])?;
        // The same once more, for a caller whose DF is set.
        prepare(engine, insn, &mut memory[at..])?;
        gprs = before;
        let returned = engine.call_with_df(insn, &mut gprs).ok_or("the stub cannot be called")?;
        let Returned { result, rflags } = returned;
        if (result, rflags & DF) != (1, DF) {
            return Err(format!("called with DF set: RAX is {result:#x}, RFLAGS {rflags:#x}"));
        }
        compare(&gprs, &after).map_err(|first| format!("called with DF set: {first}"))?;
    }
    check_data(engine, insn, fit as usize, &memory[at..])
}

/// For OUTS the elements go into the memory, as far as they fit, for INS into the FIFO.
fn prepare(engine: &mut dyn Native, insn: IoInsn, memory: &mut [u8]) -> Result<(), String> {
    let bytes = usize::from(insn.width.bytes());
    Fifo::reset(engine).map_err(|_| "the port faults")?;
    memory.fill(0xaa);
    match insn.direction {
        Direction::In => {
            (0..DEPTH).try_for_each(|number| Fifo::send(engine, Fifo::byte(number))).map_err(|_| "the port faults")?
        }
        _ => {
            for (number, element) in memory.chunks_mut(bytes).enumerate() {
                element.copy_from_slice(&Fifo::sent(number)[..element.len()]);
            }
        }
    }
    Ok(())
}

/// The FIFO has received as many elements as fit, or lacks as many; those are in the memory.
fn check_data(engine: &mut dyn Engine, insn: IoInsn, fit: usize, memory: &[u8]) -> Result<(), String> {
    let bytes = usize::from(insn.width.bytes());
    let (first, left) = match insn.direction {
        Direction::In => (fit, DEPTH - fit),
        _ => (0, fit),
    };
    let mut fetched = Vec::new();
    while let Some(byte) = Fifo::fetch(engine).map_err(|_| "the port faults")?.filter(|_| fetched.len() <= left) {
        fetched.push(byte);
    }
    if fetched != (first..first + left).map(Fifo::byte).collect::<Vec<_>>() {
        return Err(format!("in the FIFO are {} bytes, {fetched:02x?}, should be {left}", fetched.len()));
    }
    if insn.direction == Direction::In {
        let mut expected: Vec<u8> = (0..fit).flat_map(|number| Fifo::received(number)[..bytes].to_vec()).collect();
        expected.resize(memory.len(), 0xaa);
        if memory != expected {
            return Err(format!("the memory holds {memory:02x?}, should be {expected:02x?}"));
        }
    }
    Ok(())
}
