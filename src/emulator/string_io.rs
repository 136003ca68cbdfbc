//! INS and OUTS, over memory that the caller gives.
//!
//! A guest's RDI and RSI are addresses of the guest's. Here they are replaced, for the instruction only, by the address of
//! a slice, and come back moved by as much as the data was; all other registers are the guest's throughout, as for IN and
//! OUT. DF is clear for the access: data goes upwards.
#![allow(unsafe_code)] // runs string stubs

use crate::events::{self, Attempt, Events};
use crate::{AddressSize, Direction, Error, Gprs, IoEmulator, IoInsn, PortOperand};

impl<E: Events> IoEmulator<E> {
    /// Executes INS or REP INS, the data going to the start of `buffer`. Returns how many bytes came: as many elements as
    /// RCX says (ECX for a 32-bit address size, one without REP).
    ///
    /// Afterwards RCX is 0 and RDI has moved on. With a 32-bit address size they are zero-extended, as every result of a
    /// 32-bit operation; a count of 0 changes nothing.
    ///
    /// ```
    /// use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
    /// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build()?;
    /// let mut gprs = Gprs { rcx: 3, rdx: 0x1f0, rdi: 0x1000, ..Gprs::default() };
    /// let mut sector = [0; 512];
    /// assert_eq!(emulator.read_string(IoInsn::rep_ins(Width::Word), &mut gprs, &mut sector)?, 6);
    /// assert_eq!((gprs.rcx, gprs.rdi, &sector[..8]), (0, 0x1006, &[255, 255, 255, 255, 255, 255, 0, 0][..]));
    /// # Ok::<(), ioemul::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::StringForm`], [`Error::StringOutOfBounds`], [`Error::PortDenied`]: nothing has happened.
    /// - [`Error::Fault`], [`Error::Device`]: RCX and RDI say how far the instruction got (as much is in `buffer`); the other
    ///   registers are as they were. After a page fault the device may have been read once more than they say: a CPU may
    ///   read the port before it finds that it cannot write the memory (SDM vol. 2, INS).
    ///
    /// # Panics
    ///
    /// When a device model does; the registers are then as they were.
    #[doc(alias("insb", "insw", "insl", "rep insb"))]
    pub fn read_string(&mut self, insn: IoInsn, gprs: &mut Gprs, buffer: &mut [u8]) -> Result<usize, Error> {
        // SAFETY: the pointer is to as many bytes as the length says, which may be written.
        unsafe { self.string(insn, Direction::In, gprs, buffer.as_mut_ptr().expose_provenance(), buffer.len()) }
    }

    /// Executes OUTS or REP OUTS, the data coming from the start of `data`. Otherwise as [`Self::read_string`], with RSI in
    /// the place of RDI.
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
        // SAFETY: the pointer is to as many bytes as the length says; OUTS only reads them.
        unsafe { self.string(insn, Direction::Out, gprs, data.as_ptr().expose_provenance(), data.len()) }
    }

    /// # Safety
    ///
    /// `address` is that of `available` bytes, to be read for OUTS and written for INS, its provenance exposed.
    unsafe fn string(
        &mut self,
        insn: IoInsn,
        direction: Direction,
        gprs: &mut Gprs,
        address: usize,
        available: usize,
    ) -> Result<usize, Error> {
        let (rep, address_size) = match insn.operand {
            PortOperand::String { rep, address, .. } if insn.direction == direction => (rep, address),
            _ => return Err(Error::StringForm { insn }),
        };
        let register = |value: u64| value & address_size.mask();
        let count = if rep { register(gprs.rcx) } else { 1 };
        let width = u64::from(insn.width.bytes());
        if count.checked_mul(width).is_none_or(|len| len > available as u64) {
            return Err(Error::StringOutOfBounds { insn, count, available });
        }
        let before = *gprs;
        let attempt = Attempt { insn, port: insn.port(gprs), gprs: &before };
        self.permit(&attempt)?;
        self.events_mut().before(&attempt);
        let started = events::start::<E>();
        // The slice may be anywhere: always the instruction of 64-bit address size.
        let PortOperand::String { segment, .. } = insn.operand else { return Err(Error::StringForm { insn }) };
        let operand = PortOperand::String { rep, address: AddressSize::Bits64, segment };
        let insn = IoInsn { operand, ..insn };
        let mut live = *gprs;
        *pointer(direction, &mut live) = address as u64;
        if rep {
            live.rcx = count;
        }
        // SAFETY: the access is permitted, and the pointer is to memory for `count` elements.
        let result = unsafe { self.run(insn, &mut live) };
        let done = *pointer(direction, &mut live) - address as u64;
        // With 32-bit addresses the results are zero-extended; where nothing was moved, nothing is written.
        let (start, left) = (*pointer(direction, gprs), gprs.rcx);
        if result.is_ok() {
            *gprs = live;
        }
        *pointer(direction, gprs) = if done == 0 { start } else { register(start.wrapping_add(done)) };
        if rep {
            gprs.rcx = if done == 0 { left } else { count - done / width };
        }
        // SAFETY: so many bytes at the address, which the instruction is done with.
        let data = unsafe { crate::bus::string_buffer(address as u64, done as usize) };
        events::end(self.events_mut(), &attempt, (gprs, data), started, &result);
        result.map(|()| done as usize)
    }
}

/// RDI for INS, RSI for OUTS.
fn pointer(direction: Direction, gprs: &mut Gprs) -> &mut u64 {
    match direction {
        Direction::In => &mut gprs.rdi,
        Direction::Out => &mut gprs.rsi,
    }
}
