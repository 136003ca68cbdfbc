//! All stubs in memory that the caller owns: a table of every form, found by multiplication and never rewritten.
#![allow(unsafe_code)] // `CodeTable::call` runs machine code

use core::ffi::c_void;
use core::fmt;
use core::ptr;

use arrayvec::ArrayVec;

use crate::helpers::{Depths, emit_helpers, emit_pads};
use crate::quirk_table::{self, QuirkStub};
use crate::slot::{SlotSink, Targets, room, with_thunk};
use crate::stub::{Arena, Counter, Helper, StubStyle, as_many_as_fit};
use crate::{EmitError, EmitOptions, Gprs, IoInsn, PortAccess, Quirk, RegisterFile};

/// The entry point of a stub: called with the address of a register file, of the structure that it was emitted for.
///
/// It returns 0 when the access was made and the registers are stored, and 1 when the access faulted and execution went
/// on at a [landing pad](CodeTable::fixup); the register file is then as it was given, but that after INS and OUTS its
/// RCX, RSI and RDI say how far the instruction got.
pub type StubFn = unsafe extern "sysv64" fn(*mut c_void) -> u64;

/// Every form of a layout in memory that the caller owns.
///
/// ```
/// use ioemul::{CodeTable, EmitOptions, IoInsn, Quirk, RegisterFile, StubLayout, Width};
/// let options = EmitOptions::new().layout(StubLayout::Compact).registers(RegisterFile::PT_REGS);
/// let options = options.quirks(&[Quirk::PROLIANT]);
/// let mut memory = vec![0; CodeTable::size(&options)];
/// let table = CodeTable::emit(&mut memory, 0xffff_ffff_8200_0000, &options)?;
/// let out = IoInsn::out_dx(Width::Byte);
/// let (rax, rdx) = (0x85, 0xcd4);
/// assert_ne!(table.resolve(out, rax, rdx), table.entry(out)); // the quirk's stub
/// assert_eq!(table.resolve(out, rax, 0x80), table.entry(out));
/// assert_eq!(table.entry(IoInsn::rep_outs(Width::Byte)), None); // asked for by another name: `string_entry`
/// # Ok::<(), ioemul::EmitError>(())
/// ```
#[derive(Clone, Debug)]
pub struct CodeTable {
    va: u64,
    style: StubStyle,
    arena: Arena,
    return_thunk: Option<u64>,
    quirks: ArrayVec<Quirk, { EmitOptions::MAX_QUIRKS }>,
    quirk_stubs: QuirkStubs,
}

impl CodeTable {
    /// How many bytes [`Self::emit`] needs with these options, wherever the table is to be.
    ///
    /// ```
    /// use ioemul::{CodeTable, EmitOptions, StubLayout};
    /// assert!(CodeTable::size(&EmitOptions::new().layout(StubLayout::Compact)) < 32 * 1024);
    /// ```
    pub fn size(options: &EmitOptions<'_>) -> usize {
        // A register file or a quirk that `emit` refuses has a size all the same.
        let mut arena = Arena::default();
        let (style, quirks) = (options.style(), options.quirks);
        let depths = quirk_table::depths(&style, quirks);
        arena.emit(&mut Counter::default(), &style, depths, quirks, &mut |_, _, _, _| ());
        arena.len()
    }

    /// Emits the helpers, all [`IoInsn::COUNT`] stubs of IN and OUT, those of INS and OUTS, and those of the quirks, to
    /// be executed at `va`.
    ///
    /// # Errors
    ///
    /// See [`EmitError`]; the memory is then as it was.
    pub fn emit(buf: &mut [u8], va: u64, options: &EmitOptions<'_>) -> Result<Self, EmitError> {
        options.check()?;
        let (mut arena, mut quirk_stubs) = (Arena::default(), ArrayVec::new_const());
        emit(buf, va, options, &mut arena, &mut quirk_stubs)?;
        Ok(Self::new(va, options, &mut arena, &mut quirk_stubs))
    }

    #[inline(never)] // on a frame of its own, as a kernel's stack is small
    fn new(va: u64, options: &EmitOptions<'_>, arena: &mut Arena, quirk_stubs: &mut QuirkStubs) -> Self {
        let quirks = as_many_as_fit(options.quirks.iter().copied());
        let (arena, quirk_stubs) = (core::mem::take(arena), core::mem::take(quirk_stubs));
        Self { va, style: options.style(), arena, return_thunk: options.return_thunk, quirks, quirk_stubs }
    }

    /// The executable address of the plain stub of `insn`, whatever the quirks say: a [`StubFn`]. `None` for INS and
    /// OUTS.
    #[inline]
    pub fn entry(&self, insn: IoInsn) -> Option<u64> {
        if insn.is_string() { None } else { Some(self.address(self.arena.stub(insn).0)) }
    }

    /// The executable address of the stub of INS or OUTS. `None` for IN and OUT, and for forms that have no stub: with
    /// 16-bit addresses, or a segment override.
    ///
    /// The stub follows RSI, RDI and RCX of the register file as they are. A guest's are not to be trusted: who asks
    /// has bounded the count, and translated the pointer to memory of the host's that may be accessed.
    pub fn string_entry(&self, insn: IoInsn) -> Option<u64> {
        (insn.is_string() && insn.has_stub()).then(|| self.address(self.arena.stub(insn).0))
    }

    /// The executable address of the stub for an access with these registers: that of the first quirk that takes it,
    /// else the plain one. `None` for INS and OUTS.
    #[inline]
    pub fn resolve(&self, insn: IoInsn, rax: u64, rdx: u64) -> Option<u64> {
        Some(self.find(insn, rax, rdx)?.0)
    }

    /// What [`Self::resolve`] does, and the quirk that it has found.
    #[inline(always)]
    pub(crate) fn find(&self, insn: IoInsn, rax: u64, rdx: u64) -> Option<(u64, Option<&Quirk>)> {
        match QuirkStub::resolve(&self.quirk_stubs, &self.quirks, insn, rax, rdx) {
            Some((stub, quirk)) => Some((self.address(stub.at as usize), Some(quirk))),
            None => Some((self.entry(insn)?, None)),
        }
    }

    /// The register file that it is for.
    pub(crate) fn registers(&self) -> &RegisterFile {
        &self.style.registers
    }

    /// Every access that the stub of [`Self::resolve`] makes, each once: what has to be permitted before it is called.
    ///
    /// All of them have to be: a quirk's stub goes on to its second access whatever became of the first. In ring 0 no
    /// bitmap is asked by the CPU; one that holds for the guest is asked here. For INS and OUTS this is one element.
    ///
    /// ```
    /// use ioemul::{CodeTable, EmitOptions, IoInsn, Quirk, TssBitmap, Width};
    /// let options = EmitOptions::new().quirks(&[Quirk::DELL_SMM]);
    /// let mut memory = vec![0; CodeTable::size(&options)];
    /// let table = CodeTable::emit(&mut memory, 0xffff_ffff_8200_0000, &options)?;
    /// let may_run = |map: TssBitmap<'_>, rax| {
    ///     let mut accesses = table.accesses(IoInsn::out_imm8(Width::Byte, 0xb2), rax, 0);
    ///     accesses.all(|access| map.permits(access.port, access.width))
    /// };
    /// let mut bits = [0xff; 0x20];
    /// bits[0xb2 / 8] &= !(1 << (0xb2 % 8)); // 0xb2 is permitted, 0x84 is not
    /// assert!(may_run(TssBitmap::new(&bits), 0));
    /// assert!(!may_run(TssBitmap::new(&bits), 0xa3)); // the quirk writes 0x84 as well
    /// # Ok::<(), ioemul::EmitError>(())
    /// ```
    pub fn accesses(&self, insn: IoInsn, rax: u64, rdx: u64) -> impl Iterator<Item = PortAccess> + use<> {
        let quirk = QuirkStub::resolve(&self.quirk_stubs, &self.quirks, insn, rax, rdx);
        let quirk = quirk.map(|(_, quirk)| *quirk);
        let plain = PortAccess::of(insn, &Gprs { rdx, ..Gprs::default() });
        let plain = quirk.is_none().then_some(plain);
        quirk.into_iter().flat_map(move |quirk| quirk.accesses(insn)).chain(plain)
    }

    /// Runs the stub of [`Self::resolve`] on `gprs`.
    ///
    /// The call is written in assembly: a kernel that checks the type of each function that it calls through a pointer
    /// (kCFI) would die of a stub, which has none.
    ///
    /// # Errors
    ///
    /// See [`Faulted`]; `gprs` is then as it was.
    ///
    /// # Safety
    ///
    /// The table's bytes are in place at its address, executable. The access is made, on the real port, with all that
    /// the hardware or firmware behind it may do in answer: the caller vouches that it is permitted and harmless. A
    /// fault goes to a handler that knows [`Self::fixup`], or cannot be.
    #[inline]
    pub unsafe fn call(&self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Faulted> {
        if self.style.registers != RegisterFile::GPRS {
            return Err(Faulted::OtherRegisterFile);
        }
        let entry = self.resolve(insn, gprs.rax, gprs.rdx).ok_or(Faulted::StringForm { insn })?;
        // SAFETY: the caller vouches for the memory and for the access; this is a stub, and `gprs` its register file.
        match unsafe { call(entry, ptr::from_mut(gprs).cast()) } {
            0 => Ok(()),
            _ => Err(Faulted::AtAccess),
        }
    }

    /// Where a fault at `rip` resumes: the address of a landing pad, to be set as RIP, and nothing else. `None`: `rip`
    /// is not in an I/O sequence of this table.
    ///
    /// The pad puts RSP right, gives the caller its registers back and returns 1. Where a quirk had masked interrupts,
    /// IF is as it was before.
    pub fn fixup(&self, rip: u64) -> Option<u64> {
        let offset = usize::try_from(rip.checked_sub(self.va)?).ok().filter(|offset| *offset < self.arena.len())?;
        let quirk = || {
            let landing = QuirkStub::landing(&self.quirk_stubs, &self.quirks, &self.style, offset);
            landing.map(|landing| self.arena.pad(landing))
        };
        self.arena.fixup(offset).or_else(quirk).map(|pad| self.address(pad))
    }

    /// Every access of the table that can fault, with its landing pad: addresses of instructions, ascending, and what
    /// [`Self::fixup`] says of each. For an exception table of the host's own.
    pub fn faults(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let quirks = self.quirk_stubs.iter().flat_map(|stub| {
            let shape = stub.shape(&self.quirks, &self.style).unwrap_or_default();
            let offsets: ArrayVec<u16, 8> = as_many_as_fit(shape.accesses().map(|offset| offset as u16));
            offsets.into_iter().map(move |offset| stub.at as usize + usize::from(offset))
        });
        let offsets = self.arena.string_accesses().chain(quirks).chain(self.arena.plain_accesses());
        offsets.filter_map(|offset| {
            let rip = self.address(offset);
            Some((rip, self.fixup(rip)?))
        })
    }

    /// Everything in the table that has a name: the helpers, then the stubs, by ascending address. For a symbol table,
    /// or a stack trace.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol> + '_ {
        let helpers = self.helpers().helpers();
        // Each is as long as it is far to the next one; they are defined in the order of their names' list.
        let first_stub = self.address(IoInsn::strings().next().map_or(0, |insn| self.arena.stub(insn).0));
        let ends = helpers.clone().skip(1).map(|helper| helper.1).chain([first_stub]);
        let helpers = helpers.zip(ends).map(|((helper, address), end)| Symbol {
            name: SymbolName::Helper(helper),
            address,
            len: end.saturating_sub(address) as usize,
        });
        let stub = |insn| {
            let (at, len) = self.arena.stub(insn);
            Symbol { name: SymbolName::Stub(insn), address: self.address(at), len }
        };
        let quirks = self.quirk_stubs.iter().map(|stub| Symbol {
            name: SymbolName::Quirk { name: stub.quirk(&self.quirks).map_or("", Quirk::name), insn: stub.insn },
            address: self.address(stub.at as usize),
            len: stub.len as usize,
        });
        helpers.chain(IoInsn::strings().map(stub)).chain(quirks).chain(IoInsn::in_out().map(stub))
    }

    /// Where the helpers are: emitting them tells.
    #[inline(never)]
    fn helpers(&self) -> Targets {
        let mut sink = SlotSink::new(&mut [], self.va, with_thunk(self.return_thunk));
        emit_helpers(&mut sink, &self.style);
        emit_pads(&mut sink, &self.style, Depths::default());
        sink.helpers
    }

    /// The address of what is so many bytes into the table: within the address space, as `emit` has looked.
    #[inline]
    fn address(&self, offset: usize) -> u64 {
        self.va.wrapping_add(offset as u64)
    }
}

/// The stubs that quirks ask for, as many as there can be: each of them has two forms at most.
type QuirkStubs = ArrayVec<QuirkStub, { 2 * EmitOptions::MAX_QUIRKS }>;

/// Emits a table. (On a frame of its own, as a kernel's stack is small.)
#[inline(never)]
fn emit(
    buf: &mut [u8],
    va: u64,
    options: &EmitOptions<'_>,
    arena: &mut Arena,
    quirk_stubs: &mut QuirkStubs,
) -> Result<(), EmitError> {
    let style = options.style();
    let (mut problem, quirks) = (None, options.quirks);
    let depths = quirk_table::depths(&style, quirks);
    let mut sink = SlotSink::new(&mut [], va, with_thunk(options.return_thunk));
    arena.emit(&mut sink, &style, depths, quirks, &mut |index, insn, at, shape| {
        if let (None, Some(found), Some(quirk)) = (problem, shape.problem, quirks.get(index)) {
            problem = Some(EmitError::payload(quirk, found));
        }
        let _ = quirk_stubs.try_push(QuirkStub::new(index, insn, at, shape));
    });
    if let Some(problem) = problem {
        return Err(problem);
    }
    sink.finish()?;
    let room = room(buf, va, arena.len())?;
    sink.restart(room);
    arena.emit(&mut sink, &style, depths, quirks, &mut |_, _, _, _| ());
    sink.finish()?;
    match arena.write_copies(&style, sink.into_room()) {
        true => Ok(()),
        false => Err(EmitError::SlotTooSmall { needed: arena.len(), available: 0 }),
    }
}

/// Calls a stub.
///
/// # Safety
///
/// `entry` is the address of a stub, and `file` that of a register file as it was emitted for.
#[inline]
pub(crate) unsafe fn call(entry: u64, file: *mut c_void) -> u64 {
    let result;
    // SAFETY: a stub keeps to the calling convention, by the caller's promise.
    unsafe {
        core::arch::asm!(
            "call {entry}",
            entry = in(reg) entry,
            in("rdi") file,
            lateout("rax") result,
            clobber_abi("sysv64"),
        );
    }
    result
}

/// Why [`CodeTable::call`] made no access. The registers are as they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Faulted {
    /// The CPU raised an exception at the access, and a handler resumed at a landing pad.
    #[error("the CPU refused the access")]
    AtAccess,
    /// INS or OUTS, whose pointers are a guest's.
    #[error("`{insn}` follows a guest's pointers: bound and translate them, and ask for `string_entry`")]
    StringForm {
        /// The instruction.
        insn: IoInsn,
    },
    /// The table is for another structure than [`Gprs`].
    #[error("the table is for another register file than `Gprs`: call its entries with one of those")]
    OtherRegisterFile,
}

/// A name for a part of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Symbol {
    /// Whose code it is.
    pub name: SymbolName,
    /// Its executable address.
    pub address: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// What a [`Symbol`] names; its `Display` is a name for a symbol table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SymbolName {
    /// A helper, or the landing pads.
    Helper(Helper),
    /// The plain stub of a form.
    Stub(IoInsn),
    /// A quirk's stub for a form.
    Quirk {
        /// The name of the quirk.
        name: &'static str,
        /// The form.
        insn: IoInsn,
    },
}

impl fmt::Display for SymbolName {
    /// `ioemul:load_guest_gprs`, `ioemul:in al, dx`, `ioemul:out dx, al (Dell SMM)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SymbolName::Helper(helper) => write!(f, "ioemul:{}", helper.name()),
            SymbolName::Stub(insn) => write!(f, "ioemul:{insn}"),
            SymbolName::Quirk { name, insn } => write!(f, "ioemul:{insn} ({name})"),
        }
    }
}
