//! INS and OUTS, over memory that the caller gives.
//!
//! A guest's RDI and RSI are addresses of the guest's. On a bus the device sees them as they are, and the data as a
//! slice beside them. On the hardware they are replaced, for the instruction only, by the address of the slice. They
//! come back moved by as much as the data was. DF is clear for the access: data goes upwards.
#![allow(unsafe_code)] // runs string stubs

use super::{Side, Stubs};
use crate::bus::{Memory, call, undone_unless};
use crate::events::{self, Attempt, Events};
use crate::{AddressSize, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortOperand, StubTable};

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
    /// - [`Error::Fault`], [`Error::Device`]: RCX and RDI say how far the instruction got (as much is in `buffer`); the
    ///   other
    ///   registers are as they were. After a page fault the device may have been read once more than they say: a CPU may
    ///   read the port before it finds that it cannot write the memory (SDM vol. 2, INS).
    ///
    /// # Panics
    ///
    /// When a device model does; the registers are then as they were.
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
        (gprs.rsi, gprs.rdi) = match insn.direction {
            Direction::In => (if result.is_ok() { gprs.rsi } else { before.rsi }, moved(before.rdi)),
            Direction::Out => (moved(before.rsi), if result.is_ok() { gprs.rdi } else { before.rdi }),
        };
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
    let (len, width) = (memory.as_slice().len(), usize::from(insn.width.bytes()));
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
    // Firmware behind the port may have changed any register: what is not a whole number of elements within the slice
    // is no answer, and counts as nothing.
    let moved = pointer(insn.direction, &mut live).wrapping_sub(address);
    let done = usize::try_from(moved).ok().filter(|done| *done <= len && done.is_multiple_of(width)).unwrap_or(0);
    match result {
        Ok(()) => {
            *pointer(insn.direction, &mut live) = *pointer(insn.direction, gprs);
            *gprs = live;
            (done, Ok(()))
        }
        Err(fault) => (done, Err(Error::Fault { access, fault })),
    }
}

/// RDI for INS, RSI for OUTS.
fn pointer(direction: Direction, gprs: &mut Gprs) -> &mut u64 {
    match direction {
        Direction::In => &mut gprs.rdi,
        Direction::Out => &mut gprs.rsi,
    }
}
