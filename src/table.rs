//! All stubs in memory that the caller owns: a table of every form, found by multiplication and never rewritten.
#![allow(unsafe_code)] // `CodeTable::call` runs machine code

use core::ffi::c_void;
use core::fmt;
use core::ptr;

use arrayvec::ArrayVec;

use crate::quirk_table::{self, QuirkStub};
use crate::slot::{SlotSink, Targets, room, with_thunk};
use crate::stub::{Arena, Body, Copies, Helper, StubStyle, as_many_as_fit};
use crate::{EmitError, EmitOptions, Gprs, IoInsn, PortAccess, RegisterFile};

/// The entry point of a stub: called with the address of a register file, of the structure that it was emitted for.
///
/// It returns 0 when the access was made and the registers are stored, and 1 when the access faulted and execution went
/// on at a [landing pad](CodeTable::fixup); the register file is then as it was given, but that after INS and OUTS its RCX,
/// RSI and RDI say how far the instruction got.
pub type StubFn = unsafe extern "sysv64" fn(*mut c_void) -> u64;

/// Every form of a layout in memory that the caller owns.
///
/// ```
/// use ioemul::{CodeTable, EmitOptions, IoInsn, Quirk, RegisterFile, StubLayout, Width};
/// let options = EmitOptions::new().layout(StubLayout::Compact).registers(RegisterFile::PT_REGS).quirks(&[Quirk::PROLIANT]);
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
    helpers: Targets,
    quirks: ArrayVec<QuirkStub, { 2 * EmitOptions::MAX_QUIRKS }>,
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
        let mut sink = SlotSink::new(&mut [], 0, with_thunk(options.return_thunk));
        let (arena, _) = emit(&mut sink, options, |_, _, _| ());
        arena.len()
    }

    /// Emits the helpers, all [`IoInsn::COUNT`] stubs of IN and OUT, those of INS and OUTS, and those of the quirks, to be
    /// executed at `va`.
    ///
    /// # Errors
    ///
    /// See [`EmitError`]; the memory is then as it was.
    pub fn emit(buf: &mut [u8], va: u64, options: &EmitOptions<'_>) -> Result<Self, EmitError> {
        options.check()?;
        let targets = with_thunk(options.return_thunk);
        let mut quirks = ArrayVec::new();
        let mut problem = Ok(());
        let mut sink = SlotSink::new(&mut [], va, targets);
        let (arena, copies) = emit(&mut sink, options, |stub, at, shape| {
            if let Some(found) = shape.problem {
                problem = problem.and(Err(EmitError::payload(&stub.quirk, found)));
            }
            // Each of `MAX_QUIRKS` has two forms at most.
            let _ = quirks.try_push(QuirkStub { at: at as u32, len: shape.len as u32, ..stub });
        });
        problem?;
        sink.finish()?;
        let room = room(buf, va, arena.len())?;
        sink = SlotSink::new(room, va, targets);
        let _as_before = emit(&mut sink, options, |_, _, _| ());
        sink.finish()?;
        let helpers = sink.helpers;
        if !copies.write(room) {
            return Err(EmitError::SlotTooSmall { needed: arena.len(), available: room.len() });
        }
        Ok(Self { va, style: options.style(), arena, helpers, quirks })
    }

    /// The executable address of the plain stub of `insn`, whatever the quirks say: a [`StubFn`]. `None` for INS and OUTS.
    #[inline]
    pub fn entry(&self, insn: IoInsn) -> Option<u64> {
        if insn.is_string() { None } else { Some(self.address(self.arena.stub(insn).0)) }
    }

    /// The executable address of the stub of INS or OUTS. `None` for IN and OUT, and for forms that have no stub: with 16-bit
    /// addresses, or a segment override.
    ///
    /// The stub follows RSI, RDI and RCX of the register file as they are. A guest's are not to be trusted: who asks has
    /// bounded the count, and translated the pointer to memory of the host's that may be accessed.
    pub fn string_entry(&self, insn: IoInsn) -> Option<u64> {
        let index = insn.index().checked_sub(IoInsn::COUNT)?;
        let has_a_stub = IoInsn::strings().nth(index) == Some(insn);
        has_a_stub.then(|| self.address(self.arena.stub(insn).0))
    }

    /// The executable address of the stub for an access with these registers: that of the first quirk that takes it, else
    /// the plain one. `None` for INS and OUTS.
    #[inline]
    pub fn resolve(&self, insn: IoInsn, rax: u64, rdx: u64) -> Option<u64> {
        match QuirkStub::resolve(&self.quirks, insn, rax, rdx) {
            Some(stub) => Some(self.address(stub.at as usize)),
            None => self.entry(insn),
        }
    }

    /// Every access that the stub of [`Self::resolve`] makes, each once: what has to be permitted before it is called.
    pub fn accesses(&self, insn: IoInsn, rax: u64, rdx: u64) -> impl Iterator<Item = PortAccess> + use<> {
        let quirk = QuirkStub::resolve(&self.quirks, insn, rax, rdx).map(|stub| stub.quirk);
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
    /// The table's bytes are in place at its address, executable. The access is made, on the real port, with all that the
    /// hardware or firmware behind it may do in answer: the caller vouches that it is permitted and harmless. A fault goes to
    /// a handler that knows [`Self::fixup`], or cannot be.
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

    /// Where a fault at `rip` resumes: the address of a landing pad, to be set as RIP, and nothing else. `None`: `rip` is
    /// not in an I/O sequence of this table.
    ///
    /// The pad puts RSP right, gives the caller its registers back and returns 1. Where a quirk had masked interrupts, IF is as it
    /// was before.
    pub fn fixup(&self, rip: u64) -> Option<u64> {
        let offset = usize::try_from(rip.checked_sub(self.va)?).ok().filter(|offset| *offset < self.arena.len())?;
        let quirk = || QuirkStub::landing(&self.quirks, &self.style, offset).map(|landing| self.arena.pad(landing));
        self.arena.fixup(offset).or_else(quirk).map(|pad| self.address(pad))
    }

    /// Every access of the table that can fault, with its landing pad: addresses of instructions, ascending, and what
    /// [`Self::fixup`] says of each. For an exception table of the host's own.
    pub fn faults(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let quirks = self.quirks.iter().flat_map(|stub| {
            let at = stub.at as usize;
            let offsets: ArrayVec<usize, 16> = as_many_as_fit(stub.shape(&self.style).accesses());
            offsets.into_iter().map(move |offset| at + offset)
        });
        let offsets = self.arena.string_accesses().chain(quirks).chain(self.arena.plain_accesses());
        offsets.filter_map(|offset| {
            let rip = self.address(offset);
            Some((rip, self.fixup(rip)?))
        })
    }

    /// Everything in the table that has a name: the helpers, then the stubs, by ascending address. For a symbol table, or
    /// a stack trace.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol> + '_ {
        let helpers = Helper::ALL.into_iter().zip(self.helpers).filter(|helper| helper.0 != Helper::ReturnThunk);
        let helpers = helpers.filter_map(|(helper, address)| Some((helper, address?)));
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
        let quirks = self.quirks.iter().map(|stub| Symbol {
            name: SymbolName::Quirk { name: stub.quirk.name(), insn: stub.insn },
            address: self.address(stub.at as usize),
            len: stub.len as usize,
        });
        helpers.chain(IoInsn::strings().map(stub)).chain(quirks).chain(IoInsn::in_out().map(stub))
    }

    /// The address of what is so many bytes into the table: within the address space, as `emit` has looked.
    #[inline]
    fn address(&self, offset: usize) -> u64 {
        self.va.wrapping_add(offset as u64)
    }
}

/// Emits everything up to the first stub of IN and OUT.
fn emit(
    sink: &mut SlotSink<'_>,
    options: &EmitOptions<'_>,
    mut placed: impl FnMut(QuirkStub, usize, &crate::stub::StubShape),
) -> (Arena, Copies) {
    let style = options.style();
    let mut stubs = QuirkStub::of(options.quirks);
    let bodies =
        options.quirks.iter().flat_map(|quirk| quirk.trigger().forms().map(move |insn| (insn, quirk as &dyn Body)));
    Arena::emit(sink, &style, quirk_table::depths(&style, options.quirks), bodies, |at, shape| {
        if let Some(stub) = stubs.next() {
            placed(stub, at, shape);
        }
    })
}

/// Calls a stub.
///
/// # Safety
///
/// `entry` is the address of a stub, and `file` that of a register file as it was emitted for.
#[inline]
unsafe fn call(entry: u64, file: *mut c_void) -> u64 {
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
