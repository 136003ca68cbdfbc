//! The front door of a kernel: what the handler of a #GP or of an I/O exit calls, without `std` and without an allocator.
//!
//! ```text
//!   bytes ──decode──▶ IoInsn ──every access permitted?──▶ quirk or plain ──▶ stub, on the registers ──▶ length, for RIP
//! ```
#![allow(unsafe_code)] // runs stubs, on the authority of who calls

use core::ptr;

use crate::insn::Steps;
use crate::table::call;
use crate::{
    CodeSize, CodeTable, DecodeError, Direction, Gprs, IoInsn, PortAccess, Quirk, RegisterFile, StringProgress,
};

/// A structure in which the host keeps a guest's registers, and for which it has a [`CodeTable`].
///
/// ```
/// use ioemul::{HostRegisters, RegisterFile};
///
/// /// What this kernel's entry code pushes.
/// #[repr(C)]
/// struct Frame {
///     r15: u64, r14: u64, r13: u64, r12: u64, rbp: u64, rbx: u64, r11: u64, r10: u64, r9: u64, r8: u64,
///     rax: u64, rcx: u64, rdx: u64, rsi: u64, rdi: u64,
///     vector: u64, rip: u64, cs: u64, rflags: u64, rsp: u64, ss: u64,
/// }
///
/// // SAFETY: the offsets are those of `pt_regs`, and each of these fields is a `u64`.
/// unsafe impl HostRegisters for Frame {
///     const FILE: RegisterFile = RegisterFile::PT_REGS;
/// }
/// ```
///
/// # Safety
///
/// At each offset of [`Self::FILE`] there is a `u64` of the structure, aligned, of which any value may be read and written.
/// (That the offsets are within the structure is checked when a call is compiled.)
pub unsafe trait HostRegisters {
    /// Where the registers are. Without a word for RFLAGS, status flags are neither loaded nor stored, and INS and OUTS go
    /// upwards.
    const FILE: RegisterFile;
}

// SAFETY: this is the structure.
unsafe impl HostRegisters for Gprs {
    const FILE: RegisterFile = RegisterFile::GPRS;
}

/// Whether all words of the register file are within a structure of so many bytes.
const fn is_within(file: &RegisterFile, size: usize) -> bool {
    let mut index = 0;
    while index < file.offsets().len() {
        if !is_word_within(file.offsets()[index], size) {
            return false;
        }
        index += 1;
    }
    match file.rflags() {
        Some(offset) => is_word_within(offset, size),
        None => true,
    }
}

const fn is_word_within(offset: i16, size: usize) -> bool {
    offset >= 0 && offset % 8 == 0 && offset as usize + 8 <= size
}

/// For kernels: decode, permission, quirk, access and length in one call.
///
/// What `permits` says is asked of each access that is going to be made, those of a quirk included, before the first one; an
/// access that would run past port 0xFFFF is refused without asking. In ring 0 the CPU asks nobody: the guest's own right
/// to the port (IOPL, the I/O bitmap of its TSS) is part of what `permits` has to know.
impl CodeTable {
    /// Emulates the IN or OUT at the start of `code`, with the guest's registers in view. Returns its length, by which the
    /// guest's RIP goes on.
    ///
    /// ```
    /// # // SAFETY: anonymous memory, which nobody else knows of.
    /// # let memory: &mut [u8] = unsafe {
    /// #     let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    /// #     let memory = libc::mmap(std::ptr::null_mut(), 1 << 20, rwx, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0);
    /// #     std::slice::from_raw_parts_mut(memory.cast(), 1 << 20)
    /// # };
    /// # let va = memory.as_ptr() as u64;
    /// use ioemul::{CodeSize, CodeTable, EmitOptions, Gprs, KernelError, TssBitmap};
    /// let table = CodeTable::emit(memory, va, &EmitOptions::new())?;
    ///
    /// // In the handler of #GP: 10 bytes at the guest's RIP, its registers, the bitmap of its TSS.
    /// let (code, mut gprs) = ([0xe6, 0x80, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0], Gprs::default()); // out 0x80, al
    /// let bitmap = TssBitmap::new(&[0xff; 0x20]);
    /// // SAFETY: the table is in place, and no access is permitted.
    /// let result = unsafe {
    ///     table.emulate(CodeSize::Bits64, &code, &mut gprs, |access| bitmap.permits(access.port, access.width))
    /// };
    /// assert!(matches!(result, Err(KernelError::PortDenied { access }) if access.port == 0x80));
    /// # Ok::<(), ioemul::EmitError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`KernelError`]; the registers are then as they were. INS and OUTS are [`KernelError::OtherCall`]:
    /// [decode](IoInsn::decode_in) first where a guest may use them, and go on with [`Self::execute`],
    /// [`Self::read_string`] or [`Self::write_string`].
    ///
    /// # Safety
    ///
    /// The table's bytes are in place at its address, executable. Every access that `permits` lets pass is harmless, on the
    /// real port, with all that the hardware or firmware behind it may do in answer. Every fault goes to a handler that
    /// uses [`Self::fixup`], or no fault can happen.
    pub unsafe fn emulate<R: HostRegisters>(
        &self,
        size: CodeSize,
        code: &[u8],
        registers: &mut R,
        permits: impl Fn(&PortAccess) -> bool,
    ) -> Result<usize, KernelError> {
        let (insn, length) = IoInsn::decode_in(size, code)?;
        // SAFETY: the caller's promise.
        unsafe { self.execute(insn, registers, permits) }?;
        Ok(length)
    }

    /// [`Self::emulate`] for an instruction that is decoded already, by the exit of a guest for example.
    ///
    /// # Errors
    ///
    /// As [`Self::emulate`].
    ///
    /// # Safety
    ///
    /// As for [`Self::emulate`].
    pub unsafe fn execute<R: HostRegisters>(
        &self,
        insn: IoInsn,
        registers: &mut R,
        permits: impl Fn(&PortAccess) -> bool,
    ) -> Result<(), KernelError> {
        let words = Words::of(self, registers)?;
        let before = words.read();
        let (entry, quirk) = self.find(insn, before.rax, before.rdx).ok_or(KernelError::OtherCall { insn })?;
        let access = PortAccess::of(insn, &before);
        match quirk {
            None => permit(access, None, &permits)?,
            Some(quirk) => quirk.accesses(insn).try_for_each(|access| permit(access, Some(quirk), &permits))?,
        }
        // SAFETY: a stub for this register file, by the caller's promise in place; the accesses are permitted.
        unsafe { words.run(entry) }.then_some(()).ok_or(KernelError::Fault { access })
    }

    /// Executes INS or REP INS on the hardware, the data going to `buffer`: the guest's memory, or a copy of it, its lowest
    /// address first. Moves as many whole elements as `buffer` has room for, none if it is shorter than one element, and says
    /// how many are left: the instruction is complete, and RIP goes on, when none are.
    ///
    /// The guest's RDI is its own, and not followed: the caller has translated it. Its count and DF decide as on a CPU
    /// (`IoEmulator::read_string` says how, of which this is the counterpart). With DF set, the first element goes to the end
    /// of `buffer`. Quirks do not take INS and OUTS.
    ///
    /// Each element is an access of its own, with the guest's registers in view but RDI, which is the element's address in
    /// `buffer`. The port is the one that DX named at first, and RCX and RDI go on by themselves, whatever
    /// firmware does to them.
    ///
    /// # Errors
    ///
    /// See [`KernelError`]. After [`KernelError::Fault`], RCX and RDI say how far the instruction came; everything else is as
    /// it was.
    ///
    /// # Safety
    ///
    /// As for [`Self::emulate`].
    pub unsafe fn read_string<R: HostRegisters>(
        &self,
        insn: IoInsn,
        registers: &mut R,
        buffer: &mut [u8],
        permits: impl Fn(&PortAccess) -> bool,
    ) -> Result<StringProgress, KernelError> {
        let memory = (buffer.as_mut_ptr().expose_provenance(), buffer.len());
        let words = Words::of(self, registers)?;
        // SAFETY: the caller's promise; the memory is lent to be written.
        unsafe { self.string((insn, Direction::In), &words, memory, permits) }
    }

    /// Executes OUTS or REP OUTS on the hardware, the data coming from `data`. Otherwise as [`Self::read_string`], with RSI in
    /// the place of RDI.
    ///
    /// # Errors
    ///
    /// As [`Self::read_string`].
    ///
    /// # Safety
    ///
    /// As for [`Self::emulate`].
    pub unsafe fn write_string<R: HostRegisters>(
        &self,
        insn: IoInsn,
        registers: &mut R,
        data: &[u8],
        permits: impl Fn(&PortAccess) -> bool,
    ) -> Result<StringProgress, KernelError> {
        let memory = (data.as_ptr().expose_provenance(), data.len());
        let words = Words::of(self, registers)?;
        // SAFETY: the caller's promise; the memory is lent to be read.
        unsafe { self.string((insn, Direction::Out), &words, memory, permits) }
    }

    /// One element after the other.
    ///
    /// # Safety
    ///
    /// As for [`Self::emulate`]; and so many bytes from the address are lent for it, to be written for INS, read for OUTS.
    unsafe fn string(
        &self,
        (insn, direction): (IoInsn, Direction),
        words: &Words<'_>,
        (address, len): (usize, usize),
        permits: impl Fn(&PortAccess) -> bool,
    ) -> Result<StringProgress, KernelError> {
        let (before, other_call) = (words.read(), KernelError::OtherCall { insn });
        let steps = Steps::of(insn, &before).filter(|_| insn.direction == direction).ok_or(other_call)?;
        let element = match insn.direction {
            Direction::In => IoInsn::ins(insn.width),
            Direction::Out => IoInsn::outs(insn.width),
        };
        let entry = self.string_entry(element).ok_or(other_call)?;
        let access = PortAccess::of(insn, &before);
        permit(access, None, &permits)?;
        let width = steps.width();
        let room = len.checked_div(width).unwrap_or(0);
        let elements = usize::try_from(steps.count()).unwrap_or(usize::MAX).min(room);
        let mut gprs = before;
        for done in 0..elements {
            // Of the element: within the memory, as there is room for this many.
            let offset = done.wrapping_mul(width);
            let offset = if steps.downwards() { len.wrapping_sub(offset).wrapping_sub(width) } else { offset };
            steps.after(done as u64, &mut gprs);
            gprs.rdx = before.rdx;
            let mut live = gprs;
            *pointer(direction, &mut live) = address.wrapping_add(offset) as u64;
            words.write(&live);
            // SAFETY: a stub for this register file, in place; its element is in the memory that is lent.
            if !unsafe { words.run(entry) } {
                gprs = before;
                steps.after(done as u64, &mut gprs);
                words.write(&gprs);
                return Err(KernelError::Fault { access });
            }
            gprs = words.read();
        }
        steps.after(elements as u64, &mut gprs);
        words.write(&gprs);
        let left = steps.count().wrapping_sub(elements as u64);
        Ok(StringProgress { moved: elements.wrapping_mul(width), left })
    }
}

/// RDI for INS, RSI for OUTS.
fn pointer(direction: Direction, gprs: &mut Gprs) -> &mut u64 {
    match direction {
        Direction::In => &mut gprs.rdi,
        Direction::Out => &mut gprs.rsi,
    }
}

fn permit(
    access: PortAccess,
    quirk: Option<&Quirk>,
    permits: &impl Fn(&PortAccess) -> bool,
) -> Result<(), KernelError> {
    let last = access.port.checked_add(u16::from(access.width.bytes()) - 1);
    match quirk {
        _ if last.is_some() && permits(&access) => Ok(()),
        None => Err(KernelError::PortDenied { access }),
        Some(quirk) => Err(KernelError::QuirkDenied { quirk: quirk.name(), access }),
    }
}

/// The words of a structure of the host's.
struct Words<'r> {
    start: *mut u8,
    file: RegisterFile,
    /// Nobody else has it meanwhile.
    _lent: core::marker::PhantomData<&'r mut u8>,
}

impl<'r> Words<'r> {
    /// Those of a structure that this table is for.
    fn of<R: HostRegisters>(table: &CodeTable, registers: &'r mut R) -> Result<Self, KernelError> {
        const { assert!(is_within(&R::FILE, size_of::<R>()), "a register is not within the structure, or not aligned") };
        const { assert!(align_of::<R>() >= 8, "the structure is not aligned to 8 bytes") };
        if *table.registers() != R::FILE {
            return Err(KernelError::OtherRegisterFile);
        }
        let start = ptr::from_mut(registers).cast();
        Ok(Self { start, file: R::FILE, _lent: core::marker::PhantomData })
    }

    /// Where each word is, in the order of [`Gprs::NAMES`].
    fn places(&self) -> impl Iterator<Item = *mut u64> {
        let offsets = self.file.offsets().iter().copied().chain(self.file.rflags());
        offsets.map(|offset| self.start.wrapping_offset(isize::from(offset)).cast())
    }

    fn read(&self) -> Gprs {
        let mut words = [0; 16];
        for (word, place) in words.iter_mut().zip(self.places()) {
            // SAFETY: a word of the structure (`HostRegisters`), which was looked at to be within (`of`).
            *word = unsafe { place.read() };
        }
        Gprs::from_words(words)
    }

    fn write(&self, gprs: &Gprs) {
        for (word, place) in gprs.to_words().into_iter().zip(self.places()) {
            // SAFETY: as above.
            unsafe { place.write(word) };
        }
    }

    /// Runs a stub; whether there was no fault.
    ///
    /// # Safety
    ///
    /// As for [`call`].
    unsafe fn run(&self, entry: u64) -> bool {
        // SAFETY: the caller's promise; this is a register file that the stub is for.
        unsafe { call(entry, self.start.cast()) == 0 }
    }
}

/// Why a kernel's call did not complete. The registers are as they were given, except after a fault in INS or OUTS, where they
/// say how far the instruction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The bytes are no port-I/O instruction, or not all of one.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The access is not permitted: the guest gets its #GP.
    #[error("{access} is not permitted")]
    PortDenied {
        /// The access.
        access: PortAccess,
    },
    /// An access that a quirk makes in the place of the guest's is not permitted.
    #[error("{access} is not permitted, and the quirk {quirk:?} makes it")]
    QuirkDenied {
        /// Name of the quirk.
        quirk: &'static str,
        /// The access.
        access: PortAccess,
    },
    /// The instruction is for another call.
    #[error("`{insn}` is for another call: IN and OUT for `execute`, INS for `read_string`, OUTS for `write_string`")]
    OtherCall {
        /// The instruction.
        insn: IoInsn,
    },
    /// The CPU raised an exception at an access, and a handler resumed at a landing pad.
    #[error("{access}: the CPU refused it")]
    Fault {
        /// The guest's access; in the place of it, a quirk may have made others.
        access: PortAccess,
    },
    /// The table was emitted for another structure.
    #[error("the table is for another register file than this structure's: emit one with `EmitOptions::registers`")]
    OtherRegisterFile,
}
