//! INS and OUTS, over memory that the caller gives.
//!
//! A guest's RDI and RSI are addresses of the guest's. On a bus the device sees them as they are, and the data as a
//! slice beside them. On the hardware they are replaced, for the instruction only, by the address of the slice. They
//! come back moved by as much as the data was: upwards, or downwards if the guest's DF is set.
//!
//! ```text
//!               DF clear                           DF set
//!   slice:      │ 1st │ 2nd │ 3rd │ not used │     │ not used │ 3rd │ 2nd │ 1st │      lowest address first
//!   RSI, RDI:   ▲ before          ▲ after                ▲ after        ▲ before
//! ```
#![allow(unsafe_code)] // runs string stubs

use super::{Side, Stubs};
use crate::bus::{Memory, call, undone_unless};
use crate::events::{self, Attempt, Events};
use crate::insn::Steps;
use crate::{
    AddressSize, Direction, Error, Gprs, IoEmulator, IoFault, IoInsn, PortAccess, PortOperand, StringProgress,
    StubTable,
};

impl<E: Events> IoEmulator<E> {
    /// Executes INS or REP INS, the data going to `buffer`. Returns how many bytes came: as many elements as RCX says (ECX
    /// or CX for a narrower address size, one without REP).
    ///
    /// `buffer` is the guest's memory, its lowest address first, and RDI is the guest's address of one of its ends:
    ///
    /// - With the guest's DF (bit 10 of `rflags`) clear, the first element goes to the start of `buffer`, and RDI moves up.
    /// - With DF set, the first element goes to the *end* of `buffer`, the next one below it, and RDI moves down: the last byte
    ///   of `buffer` is the last byte of the element that RDI points to.
    ///
    /// Afterwards RCX is 0 and RDI has moved on. With a 32-bit address size they are zero-extended, as every result of
    /// a 32-bit operation (outside 64-bit mode nobody can see the upper half, and the architecture does not keep it); with
    /// a 16-bit one the bits above are kept. A count of 0 changes nothing: so do AMD's CPUs; Intel's clear the upper half of
    /// RCX, of a 32-bit address size in 64-bit code.
    ///
    /// The segment's base is the caller's to add: `buffer` is where INS writes, at ES:RDI.
    ///
    /// ```
    /// use ioemul::{Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus, Width};
    ///
    /// struct Counter(u32);
    /// impl PortDevice for Counter {
    ///     fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
    ///         self.0 += 1;
    ///         self.0
    ///     }
    /// }
    ///
    /// let mut bus = SoftwareBus::new();
    /// bus.attach(0x1f0..=0x1f1, Counter(0))?;
    /// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).build()?;
    ///
    /// // Guest memory from 0x1000 on; the first word goes to 0x1000.
    /// let mut memory = [0; 8];
    /// let mut gprs = Gprs { rcx: 3, rdx: 0x1f0, rdi: 0x1000, ..Gprs::default() };
    /// assert_eq!(emulator.read_string(IoInsn::rep_ins(Width::Word), &mut gprs, &mut memory)?, 6);
    /// assert_eq!((gprs.rcx, gprs.rdi, memory), (0, 0x1006, [1, 0, 2, 0, 3, 0, 0, 0]));
    ///
    /// // With DF set, the first word goes to 0x1006, where this memory ends.
    /// let mut memory = [0; 8];
    /// let mut gprs = Gprs { rcx: 3, rdx: 0x1f0, rdi: 0x1006, rflags: 1 << 10, ..Gprs::default() };
    /// assert_eq!(emulator.read_string(IoInsn::rep_ins(Width::Word), &mut gprs, &mut memory)?, 6);
    /// assert_eq!((gprs.rcx, gprs.rdi, memory), (0, 0x1000, [0, 0, 6, 0, 5, 0, 4, 0]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// On a bus, a device sees RCX and RDI as they are at each element, or before the first one if it takes all of them at
    /// once; elements that go downwards come to it in the order in which they are moved, by way of a buffer that the bus
    /// keeps.
    ///
    /// On the hardware, an instruction that goes upwards is one instruction, and one that goes downwards is executed element
    /// by element, all of them at the port that DX named at first. In the one instruction, the CPU reads DX anew where firmware
    /// behind the port resumes it: if that firmware changes DX, the elements that follow are at another port, as they would be
    /// for the guest. Where the firmware is not trusted as far as the ports are, execute the elements one by one, without REP.
    ///
    /// # Errors
    ///
    /// - [`Error::StringForm`], [`Error::StringOutOfBounds`], [`Error::PortDenied`], [`Error::Stopped`]: nothing has happened.
    /// - [`Error::Fault`], [`Error::Device`]: RCX and RDI say how far the instruction got (as much is in `buffer`; what is
    ///   behind that is the device's doing); the other registers are as they were. After a page fault the device may have
    ///   been read once more than they say: a CPU may read the port before it finds that it cannot write the memory (SDM
    ///   vol. 2, INS). On the hardware [`Error::Device`] says that firmware has changed RDI, so that nobody knows how far
    ///   the instruction got: all registers are as they were then.
    ///
    /// # Panics
    ///
    /// When a device model does; the registers are then as they were, and `buffer` holds what the device has put there
    /// (nothing of that, where it goes downwards). When a listener does, as for [`Self::execute`].
    #[doc(alias("insb", "insw", "insl", "rep insb"))]
    pub fn read_string(&mut self, insn: IoInsn, gprs: &mut Gprs, buffer: &mut [u8]) -> Result<usize, Error> {
        self.string(insn, Memory::In(buffer), Extent::Whole, gprs).map(|progress| progress.moved)
    }

    /// Executes OUTS or REP OUTS, the data coming from `data`. Otherwise as [`Self::read_string`], with RSI in the place
    /// of RDI, and the segment that the instruction names in the place of ES.
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
        self.string(insn, Memory::Out(data), Extent::Whole, gprs).map(|progress| progress.moved)
    }

    /// As [`Self::read_string`], on memory that need not hold all elements: moves as many as have room, and says how many are
    /// left, in RCX as well. So does a CPU that meets a page fault; and a VMM that has one page of the guest's at a time
    /// goes on with the next one.
    ///
    /// No element is moved in part. One that lies across the end of `buffer` is left (and if it is the first one, nothing is
    /// moved): give it a buffer of its own.
    ///
    /// ```
    /// use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
    /// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build()?;
    /// let mut memory = vec![0; 0x4000]; // the guest's, from address 0 on
    /// let mut gprs = Gprs { rcx: 0x900, rdx: 0x1f0, rdi: 0x1ffc, ..Gprs::default() };
    /// let mut pieces = Vec::new();
    /// loop {
    ///     let at = gprs.rdi as usize;
    ///     let page = &mut memory[at..(at | 0xfff) + 1];
    ///     let progress = emulator.read_string_partial(IoInsn::rep_ins(Width::Word), &mut gprs, page)?;
    ///     pieces.push((progress.moved, progress.left));
    ///     if progress.left == 0 {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(pieces, [(4, 0x8fe), (0x1000, 0xfe), (0x1fc, 0)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::read_string`], but for [`Error::StringOutOfBounds`].
    ///
    /// # Panics
    ///
    /// As [`Self::read_string`].
    pub fn read_string_partial(
        &mut self,
        insn: IoInsn,
        gprs: &mut Gprs,
        buffer: &mut [u8],
    ) -> Result<StringProgress, Error> {
        self.string(insn, Memory::In(buffer), Extent::AsMuchAsFits, gprs)
    }

    /// As [`Self::write_string`], on memory that need not hold all elements: see [`Self::read_string_partial`].
    ///
    /// # Errors
    ///
    /// As [`Self::read_string_partial`].
    ///
    /// # Panics
    ///
    /// As [`Self::read_string`].
    pub fn write_string_partial(
        &mut self,
        insn: IoInsn,
        gprs: &mut Gprs,
        data: &[u8],
    ) -> Result<StringProgress, Error> {
        self.string(insn, Memory::Out(data), Extent::AsMuchAsFits, gprs)
    }

    fn string(
        &mut self,
        insn: IoInsn,
        memory: Memory<'_>,
        extent: Extent,
        gprs: &mut Gprs,
    ) -> Result<StringProgress, Error> {
        let steps = match (Steps::of(insn, gprs), &memory, insn.direction) {
            (Some(steps), Memory::In(_), Direction::In) | (Some(steps), Memory::Out(_), Direction::Out) => steps,
            _ => return Err(Error::StringForm { insn }),
        };
        let (count, width, available) = (steps.count(), steps.width(), memory.as_slice().len());
        // As many as have room: no more bytes than the slice has.
        let elements = usize::try_from(count).unwrap_or(usize::MAX).min(available / width);
        if extent == Extent::Whole && (elements as u64) < count {
            return Err(Error::StringOutOfBounds { insn, count, available });
        }
        let before = call::by_words(gprs);
        let attempt = Attempt { insn, port: insn.port(gprs), gprs: &before };
        let side = self.permit(&attempt)?;
        if elements == 0 && count > 0 {
            return Ok(StringProgress { moved: 0, left: count }); // nothing is executed, and no listener told of it
        }
        events::begin(&mut self.events, &attempt)?;
        let started = events::start::<E>();
        let mut memory = memory.first_elements(elements * width, steps.downwards());
        let (done, result) = match (side, &mut self.on_bus, &self.native) {
            (Side::Hardware, _, Some((_, table))) if steps.downwards() => {
                native_downwards(table, insn, &steps, &mut memory, gprs)
            }
            (Side::Hardware, _, Some((_, table))) => native(table, insn, elements as u64, &mut memory, gprs),
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
        // These are the instruction's own, whatever a device has left there.
        let moved = (done / width) as u64;
        steps.after(moved, gprs);
        let memory = memory.first_elements(done, steps.downwards());
        events::end(&mut self.events, &attempt, (gprs, memory.as_slice()), started, &result);
        result.map(|()| StringProgress { moved: done, left: count - moved })
    }
}

/// Whether the memory has to have room for all elements.
#[derive(Clone, Copy, PartialEq)]
enum Extent {
    Whole,
    AsMuchAsFits,
}

impl<'m> Memory<'m> {
    /// The part that the first elements are in, so many bytes (or all there is): the start, or downwards the end.
    fn first_elements(self, len: usize, downwards: bool) -> Memory<'m> {
        let total = self.as_slice().len();
        let len = len.min(total);
        let range = if downwards { total - len..total } else { 0..len };
        match self {
            Memory::In(data) => Memory::In(&mut data[range]),
            Memory::Out(data) => Memory::Out(&data[range]),
        }
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
    if memory.as_slice().is_empty() {
        return (0, Ok(())); // a form without REP would not look at the count
    }
    let mut live = *gprs;
    let rep = matches!(insn.operand, PortOperand::String { rep: true, .. });
    if rep {
        live.rcx = count;
    }
    let (address, len) = (memory.address(), memory.as_slice().len());
    // SAFETY: the count is that of the elements in the slice.
    let result = unsafe { run_on(table, (insn, rep), address, &mut live) };
    settle(PortAccess::of(insn, gprs), result, live, (address, len), gprs)
}

/// As [`native`], from the end of the slice to its start: one element after the other, as the stubs run with DF clear. RCX
/// is what it is for the guest at each of them.
fn native_downwards(
    table: &StubTable,
    insn: IoInsn,
    steps: &Steps,
    memory: &mut Memory<'_>,
    gprs: &mut Gprs,
) -> (usize, Result<(), Error>) {
    let (width, access) = (steps.width(), PortAccess::of(insn, gprs));
    let (start, len) = (memory.address(), memory.as_slice().len());
    let mut left_by_device = *gprs;
    for done in (0..len).step_by(width) {
        let (mut live, address) = (left_by_device, start + (len - done - width) as u64);
        steps.after((done / width) as u64, &mut live);
        // The port of an instruction is that of its first element, whatever firmware makes of DX.
        live.rdx = gprs.rdx;
        // SAFETY: the address is that of an element in the slice, and without REP it is one.
        let result = unsafe { run_on(table, (insn, false), address, &mut live) };
        match settle(access, result, live, (address, width), &mut left_by_device) {
            (_, Ok(())) => {}
            (_, Err(error @ Error::Fault { .. })) => return (done, Err(error)),
            (_, Err(error)) => return (0, Err(error)),
        }
    }
    *gprs = left_by_device;
    (len, Ok(()))
}

/// Runs the stub of INS or OUTS with or without REP, on memory of this process.
///
/// # Safety
///
/// As many elements as RCX of `live` says, or one without REP, lie in memory that is lent for it from `address` on: to be
/// written for INS, and read for OUTS.
unsafe fn run_on(table: &StubTable, (insn, rep): (IoInsn, bool), address: u64, live: &mut Gprs) -> Result<(), IoFault> {
    *pointer(insn.direction, live) = address;
    let operand = match insn.operand {
        // The slice may be anywhere: always the instruction of 64-bit address size.
        PortOperand::String { segment, .. } => PortOperand::String { rep, address: AddressSize::Bits64, segment },
        operand => operand,
    };
    // SAFETY: whoever called `native` of the builder vouched for the port; of the memory, the caller.
    unsafe { table.stub(IoInsn { operand, ..insn }).run(live) }
}

impl Memory<'_> {
    fn address(&mut self) -> u64 {
        match self {
            Memory::In(data) => data.as_mut_ptr().expose_provenance() as u64,
            Memory::Out(data) => data.as_ptr().expose_provenance() as u64,
        }
    }
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
    (moved <= len && moved % width == 0).then_some(moved)
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
