//! INS and OUTS, over memory that the caller gives.
//!
//! A guest's RDI and RSI are addresses of the guest's. On a bus the device sees them as they are, and the data as a
//! slice beside them. On the hardware they are replaced, for the instruction only, by the address of the slice. They
//! come back moved by as much as the data was. DF is clear for the access: data goes upwards.
#![allow(unsafe_code)] // runs string stubs

use super::{Side, Stubs};
use crate::bus::{Memory, call, undone_unless};
use crate::events::{self, Attempt, Events};
use crate::{AddressSize, Direction, Error, Gprs, IoEmulator, IoFault, IoInsn, PortAccess, PortOperand, StubTable};

impl<E: Events> IoEmulator<E> {
    /// Executes INS or REP INS, the data going to the start of `buffer`. Returns how many bytes came: as many elements
    /// as RCX says (ECX for a 32-bit address size, one without REP).
    ///
    /// Afterwards RCX is 0 and RDI has moved on. With a 32-bit address size they are zero-extended, as every result of
    /// a 32-bit operation; a count of 0 changes nothing.
    ///
    /// ```
    /// use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
    /// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build()?;
    /// let mut gprs = Gprs { rcx: 3, rdx: 0x1f0, rdi: 0x1000, ..Gprs::default() };
    /// let mut sector = [0; 512];
    /// assert_eq!(emulator.read_string(IoInsn::rep_ins(Width::Word), &mut gprs, &mut sector)?, 6);
    /// assert_eq!((gprs.rcx, gprs.rdi, &sector[..8]), (0, 0x1006, &[255, 255, 255, 255, 255, 255, 0, 0][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::StringForm`], [`Error::StringOutOfBounds`], [`Error::PortDenied`]: nothing has happened.
    /// - [`Error::Fault`], [`Error::Device`]: RCX and RDI say how far the instruction got (as much is in `buffer`; what is
    ///   behind that is the device's doing); the other registers are as they were. After a page fault the device may have
    ///   been read once more than they say: a CPU may read the port before it finds that it cannot write the memory (SDM
    ///   vol. 2, INS). On the hardware [`Error::Device`] says that firmware has changed RDI, so that nobody knows how far
    ///   the instruction got: all registers are as they were then.
    ///
    /// # Panics
    ///
    /// When a device model does; the registers are then as they were, and `buffer` holds what the device has put there. When
    /// a listener does, as for [`Self::execute`].
    #[doc(alias("insb", "insw", "insl", "rep insb"))]
    pub fn read_string(&mut self, insn: IoInsn, gprs: &mut Gprs, buffer: &mut [u8]) -> Result<usize, Error> {
        self.string(insn, Memory::In(buffer), gprs)
    }

    /// Executes OUTS or REP OUTS, the data coming from the start of `data`. Otherwise as [`Self::read_string`], with
    /// RSI in the place of RDI.
    ///
    /// # Errors
    ///
    /// As [`Self::read_string`].
    ///
    /// # Panics
    ///
    /// As [`Self::read_string`].
    #[doc(alias("outsb", "outsw", "outsl", "rep outsb"))]
    pub fn write_string(&mut self, insn: IoInsn, gprs: &mut Gprs, data: &[u8]) -> Result<usize, Error> {
        self.string(insn, Memory::Out(data), gprs)
    }

    fn string(&mut self, insn: IoInsn, memory: Memory<'_>, gprs: &mut Gprs) -> Result<usize, Error> {
        let (rep, address, segment) = match (insn.operand, &memory, insn.direction) {
            (PortOperand::String { rep, address, segment }, Memory::In(_), Direction::In)
            | (PortOperand::String { rep, address, segment }, Memory::Out(_), Direction::Out) => {
                (rep, address, segment)
            }
            _ => return Err(Error::StringForm { insn }),
        };
        let count = if rep { gprs.rcx & address.mask() } else { 1 };
        let (width, available) = (u64::from(insn.width.bytes()), memory.as_slice().len());
        let len = match count.checked_mul(width).and_then(|len| usize::try_from(len).ok()) {
            Some(len) if len <= available => len,
            _ => return Err(Error::StringOutOfBounds { insn, count, available }),
        };
        let before = call::by_words(gprs);
        let attempt = Attempt { insn, port: insn.port(gprs), gprs: &before };
        let side = self.permit(&attempt)?;
        self.events.before(&attempt);
        let started = events::start::<E>();
        let mut memory = match memory {
            Memory::In(data) => Memory::In(&mut data[..len]),
            Memory::Out(data) => Memory::Out(&data[..len]),
        };
        let (done, result) = match (side, &mut self.on_bus, &self.native) {
            (Side::Hardware, _, Some((_, table))) => {
                // The slice may be anywhere: always the instruction of 64-bit address size.
                let operand = PortOperand::String { rep, address: AddressSize::Bits64, segment };
                native(table, IoInsn { operand, ..insn }, count, &mut memory, gprs)
            }
            (_, Some((_, bus, stubs)), _) => {
                let mut done = 0;
                let result = undone_unless(gprs, &before, |gprs| {
                    let result;
                    (done, result) = match stubs {
                        // SAFETY: the builder pairs a bus with a bus table.
                        Stubs::Table(table) => unsafe {
                            call::run_string(bus, table.stub(insn), insn, &mut memory, gprs)
                        },
                        Stubs::Direct(_) => bus.string(insn, &mut memory, gprs),
                    };
                    result
                });
                (done, result)
            }
            (_, None, _) => (0, Err(Error::StringForm { insn })), // `permit` names a side that is there
        };
        // These are the instruction's own, whatever a device has left there. With 32-bit addresses the results are
        // zero-extended, with 16-bit ones the upper bits stay; where nothing was moved, nothing is written.
        let kept = if address == AddressSize::Bits16 { !address.mask() } else { 0 };
        let moved = |start: u64| {
            if done == 0 { start } else { start & kept | start.wrapping_add(done as u64) & address.mask() }
        };
        match insn.direction {
            Direction::In => gprs.rdi = moved(before.rdi),
            Direction::Out => gprs.rsi = moved(before.rsi),
        }
        if rep {
            gprs.rcx = if done == 0 { before.rcx } else { before.rcx & kept | (count - done as u64 / width) };
        }
        let data = memory.as_slice().get(..done).unwrap_or_default();
        events::end(&mut self.events, &attempt, (gprs, data), started, &result);
        result.map(|()| done)
    }
}

/// Runs a string stub on the hardware, where the address has to be in the register: for as long as that takes, RSI or
/// RDI is the slice's. Returns how many bytes were moved.
fn native(
    table: &StubTable,
    insn: IoInsn,
    count: u64,
    memory: &mut Memory<'_>,
    gprs: &mut Gprs,
) -> (usize, Result<(), Error>) {
    let len = memory.as_slice().len();
    let address = match memory {
        Memory::In(data) => data.as_mut_ptr().expose_provenance(),
        Memory::Out(data) => data.as_ptr().expose_provenance(),
    } as u64;
    let rep = matches!(insn.operand, PortOperand::String { rep: true, .. });
    let access = PortAccess::of(insn, gprs);
    let mut live = *gprs;
    *pointer(insn.direction, &mut live) = address;
    if rep {
        live.rcx = count;
    }
    // SAFETY: whoever called `native` vouched for the port; the pointer is to as many bytes as the count says, to be
    // written for INS and read for OUTS.
    let result = unsafe { table.stub(insn).run(&mut live) };
    settle(access, result, live, (address, len), gprs)
}

/// What an instruction on the hardware has come to that left `live` in the registers, and had a slice by its address and
/// length. The guest's registers are written if it succeeded, and their address register never.
fn settle(
    access: PortAccess,
    result: Result<(), IoFault>,
    mut live: Gprs,
    (address, len): (u64, usize),
    gprs: &mut Gprs,
) -> (usize, Result<(), Error>) {
    let PortAccess { direction, width, .. } = access;
    let moved = moved((address, *pointer(direction, &mut live)), len, width.bytes().into());
    match (result, moved) {
        (Ok(()), Some(done)) => {
            *pointer(direction, &mut live) = *pointer(direction, gprs);
            *gprs = live;
            (done, Ok(()))
        }
        (Ok(()), None) => (0, Err(Error::Device { access, source: Box::new(Astray(direction)) })),
        (Err(fault), moved) => (moved.unwrap_or(0), Err(Error::Fault { access, fault })),
    }
}

/// How many bytes an instruction has moved that took the address register from the one value to the other, in memory of
/// `len` bytes. Firmware behind the port may have changed any register: what is not a whole number of elements within
/// the memory is no answer.
fn moved((from, to): (u64, u64), len: usize, width: usize) -> Option<usize> {
    let moved = usize::try_from(to.checked_sub(from)?).ok()?;
    (moved <= len && moved.is_multiple_of(width)).then_some(moved)
}

/// What was behind the port has changed the register that says how far INS or OUTS came.
#[derive(Debug, thiserror::Error)]
#[error("it has changed {}, and how far the instruction came is not known", match .0 { Direction::In => "RDI", Direction::Out => "RSI" })]
struct Astray(Direction);

/// RDI for INS, RSI for OUTS.
fn pointer(direction: Direction, gprs: &mut Gprs) -> &mut u64 {
    match direction {
        Direction::In => &mut gprs.rdi,
        Direction::Out => &mut gprs.rsi,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StubLayout, Width};

    #[test]
    fn an_address_register_is_not_believed() {
        const START: u64 = 0x7f00_0000_1000;
        for (to, len, width, expected) in [
            (START, 12, 4, Some(0)),
            (START + 4, 12, 4, Some(4)),
            (START + 12, 12, 4, Some(12)),
            (START + 12, 12, 1, Some(12)),
            (START + 11, 12, 1, Some(11)),
            (START, 0, 1, Some(0)),
            // In the middle of an element.
            (START + 1, 12, 4, None),
            (START + 11, 12, 4, None),
            (START + 3, 12, 2, None),
            // Past the end: by an element, by a byte, by far.
            (START + 16, 12, 4, None),
            (START + 13, 12, 1, None),
            (START + 1, 0, 1, None),
            (u64::MAX, 12, 1, None),
            (START + (1 << 32), 12, 4, None),
            (START + 4 + (1 << 63), 12, 4, None),
            // Before the start, and what a subtraction that wraps would make of it.
            (START - 4, 12, 4, None),
            (START - 1, usize::MAX, 1, None),
            (0, usize::MAX, 4, None),
        ] {
            assert_eq!(moved((START, to), len, width), expected, "{to:#x}, {len} bytes of {width}");
        }
        // Memory at either end of the address space.
        assert_eq!(moved((u64::MAX - 8, u64::MAX), 8, 4), Some(8));
        assert_eq!(moved((u64::MAX - 8, u64::MAX - 4), 8, 4), Some(4));
        assert_eq!(moved((u64::MAX - 4, 0), 8, 1), None);
        assert_eq!(moved((0, u64::MAX), usize::MAX, 1), Some(usize::MAX));
    }

    #[test]
    fn how_far_it_came_is_said_by_a_register() {
        for (direction, register) in [(Direction::In, "RDI"), (Direction::Out, "RSI")] {
            let text = format!("it has changed {register}, and how far the instruction came is not known");
            assert_eq!(Astray(direction).to_string(), text);
        }
    }

    /// The address of the slice is in the register for the instruction only: the guest gets its own back. (A no-op
    /// stands for the instruction here, which moves nothing.)
    #[test]
    fn the_hosts_address_does_not_stay_in_a_register() {
        let given = Gprs { rcx: 2, rdx: 0x80, ..Gprs::from_words([0x1234_5678_9abc_def0; 16]) };
        for layout in StubLayout::ALL.iter().copied() {
            let table = StubTable::builder().layout(layout).elide_io(true).build().unwrap();
            for insn in IoInsn::strings() {
                let (mut gprs, mut data) = (given, [0; 8]);
                let mut memory = match insn.direction {
                    Direction::In => Memory::In(&mut data),
                    Direction::Out => Memory::Out(&data),
                };
                let (done, result) = native(&table, insn, 2, &mut memory, &mut gprs);
                assert!(result.is_ok() && done == 0, "{layout:?} {insn}");
                assert_eq!(gprs, given, "{layout:?} {insn}");
            }
        }
    }

    /// Firmware may leave anything in the registers. All of them are the guest's afterwards but the address register; if
    /// that says nothing that can be believed, there is an error, and nothing of the host's in the guest's registers.
    #[test]
    fn what_firmware_leaves_in_the_registers() {
        const START: u64 = 0x7f00_0000_1000;
        const FAULT: IoFault = IoFault { vector: 14, error_code: 6, address: START + 4 };
        let given = Gprs { rsi: 0x51, rdi: 0xd1, ..Gprs::from_words([0x77; 16]) };
        for insn in [IoInsn::rep_ins(Width::Dword), IoInsn::rep_outs(Width::Dword)] {
            let access = PortAccess::of(insn, &given);
            let settled = |result, to| {
                let (mut live, mut gprs) = (Gprs::from_words([0xfee1; 16]), given);
                *pointer(insn.direction, &mut live) = to;
                let (done, result) = settle(access, result, live, (START, 8), &mut gprs);
                (done, result, gprs)
            };
            for done in [0, 4, 8] {
                let (moved, result, mut gprs) = settled(Ok(()), START + done);
                assert!(result.is_ok() && moved as u64 == done);
                let mut expected = given;
                assert_eq!(pointer(insn.direction, &mut gprs), pointer(insn.direction, &mut expected));
                *pointer(insn.direction, &mut gprs) = 0xfee1;
                assert_eq!(gprs, Gprs::from_words([0xfee1; 16]));
                let (moved, result, gprs) = settled(Err(FAULT), START + done);
                assert!(matches!(result, Err(Error::Fault { fault: FAULT, .. })) && moved as u64 == done);
                assert_eq!(gprs, given);
            }
            for to in [START - 4, START + 1, START + 9, START + 12, 0, u64::MAX] {
                let (moved, result, gprs) = settled(Ok(()), to);
                assert!(matches!(result, Err(Error::Device { .. })), "{to:#x}");
                assert_eq!((moved, gprs), (0, given), "{to:#x}");
                let (moved, result, gprs) = settled(Err(FAULT), to);
                assert!(matches!(result, Err(Error::Fault { fault: FAULT, .. })), "{to:#x}");
                assert_eq!((moved, gprs), (0, given), "{to:#x}");
            }
        }
    }
}
