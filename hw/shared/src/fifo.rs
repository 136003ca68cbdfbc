//! INS and OUTS on the FIFO of a serial port (16550A) in loopback mode: what is sent comes back in order, and what has not
//! been fetched can be counted.
//!
//! An access of two or four bytes reaches the next registers, too: IER, then FCR (IIR when it is read) and LCR. The
//! elements are made so that this leaves them as they are.

use ioemul::{Direction, Gprs, IoInsn, Width};

use crate::engine::{Engine, Failure, Mismatch, Refused};
use crate::strings::{Strings, counts, reverse};

/// The second serial port, which is nobody's console.
const PORT: u16 = 0x2f8;
/// How many bytes go in before some get lost.
pub const DEPTH: usize = 16;
/// FIFO on; 8 bits, no parity; loopback.
const FCR: u8 = 0x01;
const LCR: u8 = 0x03;
const MCR: u8 = 0x10;

/// The port.
pub struct Fifo;

impl Fifo {
    /// Its address.
    pub const PORT: u16 = PORT;

    /// Puts it into loopback mode, with nothing in the FIFO.
    pub fn reset(engine: &mut dyn Engine) -> Result<(), Refused> {
        for (register, value) in [(3, LCR), (1, 0), (4, MCR), (2, FCR | 0x06)] {
            let mut gprs = Gprs { rdx: (PORT + register).into(), rax: value.into(), ..Gprs::default() };
            engine.execute(IoInsn::out_dx(Width::Byte), &mut gprs)?;
        }
        Ok(())
    }

    /// Sends one byte.
    pub fn send(engine: &mut dyn Engine, byte: u8) -> Result<(), Refused> {
        let mut gprs = Gprs { rdx: PORT.into(), rax: byte.into(), ..Gprs::default() };
        engine.execute(IoInsn::out_dx(Width::Byte), &mut gprs)
    }

    /// Fetches one byte, if there is one.
    pub fn fetch(engine: &mut dyn Engine) -> Result<Option<u8>, Refused> {
        let mut input = |register: u16| -> Result<u8, Refused> {
            let mut gprs = Gprs { rdx: (PORT + register).into(), ..Gprs::default() };
            engine.execute(IoInsn::in_dx(Width::Byte), &mut gprs)?;
            Ok(gprs.rax as u8)
        };
        // LSR: data ready.
        if input(5)? & 1 == 0 { Ok(None) } else { input(0).map(Some) }
    }

    /// Element `number` of a string, as it is sent.
    pub fn sent(number: usize) -> [u8; 4] {
        [Self::byte(number), 0, FCR, LCR]
    }

    /// As it comes back: IIR says that the FIFO is on and that there is no interrupt.
    pub fn received(number: usize) -> [u8; 4] {
        [Self::byte(number), 0, 0xc1, LCR]
    }

    /// What the FIFO holds of it.
    pub fn byte(number: usize) -> u8 {
        (number * 29 + 7) as u8
    }
}

/// Every form: as many elements as fit, sent at once, fetched in two goes; and a count of 0, which sends and fetches
/// nothing. Returns the number of instructions.
pub fn fifo(engine: &mut dyn Engine, memory: &mut [u8]) -> Result<u64, Failure> {
    let mut run = Strings::new(engine, PORT);
    for outs in IoInsn::strings().filter(|insn| insn.direction == Direction::Out) {
        let ins = reverse(outs);
        let bytes = usize::from(outs.width.bytes());
        for &count in counts(outs, &[DEPTH as u64, 0]) {
            let refused = |_| Failure::Refused { access: 0, insn: outs, port: PORT };
            Fifo::reset(run.engine).map_err(refused)?;
            let elements = count as usize;
            for (number, element) in memory.chunks_exact_mut(bytes).enumerate().take(DEPTH) {
                element.copy_from_slice(&Fifo::sent(number)[..bytes]);
            }
            run.one(outs, count, count, memory)?;
            let mut fetched = 0;
            for &go in counts(ins, &[count / 3, count - count / 3]) {
                memory.fill(0xaa);
                run.one(ins, go, go, memory)?;
                let mut expected = [0xaa; 4 * DEPTH];
                for (number, element) in expected.chunks_exact_mut(bytes).enumerate().take(go as usize) {
                    element.copy_from_slice(&Fifo::received(fetched + number)[..bytes]);
                }
                run.memory(ins, memory, &expected)?;
                fetched += go as usize;
            }
            let left = Fifo::fetch(run.engine).map_err(refused)?;
            if fetched != elements || left.is_some() {
                let first = Mismatch { register: "bytes left in the FIFO", is: 1, should_be: 0 };
                return Err(Failure::Registers { access: run.access, insn: outs, port: PORT, first });
            }
        }
    }
    Ok(run.access)
}
