//! Every stub of a layout, assembled in one pass into one executable buffer.
//!
//! A hypervisor that rewrites one slot for each access pays hundreds of cycles for the self-modifying code; all 1,542
//! forms together fit a few pages. So the table is built once and never changes: a form is found by its index, any
//! number of threads run the same stubs, and the memory is writable or executable, never both.
#![allow(unsafe_code)] // runs machine code

use core::fmt;
use std::sync::Arc;

use dynasmrt::VecAssembler;
use dynasmrt::mmap::ExecutableBuffer;
use dynasmrt::x64::X64Relocation;
use once_cell::sync::OnceCell;

use crate::emission::check_registers;
use crate::error::BuildError;
use crate::fault::{FaultMap, Registration, StubResult};
use crate::quirk_table::{self, QuirkStub};
use crate::stub::{Arena, Backend, DynasmSink, StubStyle};
mod memory;

use crate::{
    DmiIdentity, EmitError, Gprs, Helper, IoFault, IoInsn, Quirk, QuirkTable, RegisterFile, Ring, StubFn, StubLayout,
};

/// All stubs of one layout, and those of its quirks. Immutable: `Send` and `Sync`.
///
/// ```
/// use ioemul::{Gprs, IoInsn, StubLayout, StubTable, Width};
/// let table = StubTable::new(StubLayout::CallRet)?;
/// let mut gprs = Gprs { rax: 0x1122_3344, rdx: 0x80, ..Gprs::default() };
/// # if false {
/// // SAFETY: this process may write to port 0x80, and nothing happens when it does.
/// unsafe { table.stub(IoInsn::out_dx(Width::Byte)).run(&mut gprs) }?;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StubTable {
    // Dropped in this order: the fault handler forgets the arena before it is unmapped.
    _registration: Registration,
    map: Box<FaultMap>,
    /// The bytes of `memory`, at hand: every access looks its stub up here. Never given out for longer than the table.
    code: &'static [u8],
    _memory: ExecutableBuffer,
    /// Whether the stubs are for `Gprs`.
    on_gprs: bool,
    protection_is_verified: bool,
}

impl StubTable {
    /// The plain stubs of `layout`, without quirks.
    ///
    /// # Errors
    ///
    /// See [`StubTableBuilder::build`].
    pub fn new(layout: StubLayout) -> Result<StubTable, BuildError> {
        Self::builder().layout(layout).build()
    }

    /// A table to be described step by step.
    pub fn builder() -> StubTableBuilder {
        StubTableBuilder::default()
    }

    /// The table for this machine: [`StubLayout::CallRet`], and the quirks that the machine's DMI strings ask for.
    /// Built at the first call, once for the process.
    ///
    /// # Errors
    ///
    /// See [`StubTableBuilder::build`]; and [`BuildError::Dmi`] when the machine's identity is there and cannot be
    /// read.
    pub fn global() -> Result<&'static StubTable, BuildError> {
        Self::global_arc().map(|table| &**table)
    }

    pub(crate) fn global_arc() -> Result<&'static Arc<StubTable>, BuildError> {
        static GLOBAL: OnceCell<Arc<StubTable>> = OnceCell::new();
        GLOBAL.get_or_try_init(|| {
            let identity = DmiIdentity::read().map_err(BuildError::Dmi)?;
            Self::builder().quirks(QuirkTable::for_platform(&identity)).build().map(Arc::new)
        })
    }

    /// The layout of the stubs.
    pub fn layout(&self) -> StubLayout {
        self.map.style.layout
    }

    /// The plain stub of a form, whatever the quirks say.
    #[inline(always)]
    pub fn stub(&self, insn: IoInsn) -> Stub<'_> {
        let (at, len) = self.map.arena.stub(insn);
        self.stub_at(at, len)
    }

    /// The stub for an access with these registers: that of the first quirk that takes it, else the plain one.
    #[inline(always)]
    pub fn resolve(&self, insn: IoInsn, gprs: &Gprs) -> Stub<'_> {
        match self.quirk_stub(insn, gprs) {
            Some((stub, _)) => self.stub_at(stub.at as usize, stub.len.into()),
            None => self.stub(insn),
        }
    }

    /// The first quirk that takes the access.
    #[inline(always)]
    pub(crate) fn quirk(&self, insn: IoInsn, gprs: &Gprs) -> Option<&Quirk> {
        self.quirk_stub(insn, gprs).map(|(_, quirk)| quirk)
    }

    #[inline(always)]
    fn quirk_stub(&self, insn: IoInsn, gprs: &Gprs) -> Option<(&QuirkStub, &Quirk)> {
        QuirkStub::resolve(&self.map.quirk_stubs, self.map.quirks.as_slice(), insn, gprs.rax, gprs.rdx)
    }

    #[inline(always)]
    fn stub_at(&self, at: usize, len: usize) -> Stub<'_> {
        // SAFETY: the arena's own offsets, and its stubs all lie within the code that was made of it.
        Stub { code: unsafe { self.code.get_unchecked(at..at + len) }, on_gprs: self.on_gprs }
    }

    /// Whether the process's memory map was looked at when the table was built, and said that the code is readable and
    /// executable, and not writable. Without /proc, or in a jail that may not open it, there is only the kernel's word
    /// for it: its answer to mprotect.
    pub fn protection_is_verified(&self) -> bool {
        self.protection_is_verified
    }

    /// The whole arena: the helpers, then the stubs, with INT3 in between.
    pub fn code(&self) -> &[u8] {
        self.code
    }
}

impl fmt::Debug for StubTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StubTable")
            .field("layout", &self.map.style.layout)
            .field("code", &self.code.as_ptr_range())
            .field("quirks", &self.map.quirks.as_slice().iter().map(crate::Quirk::name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Describes a [`StubTable`].
#[derive(Clone, Debug)]
#[must_use]
pub struct StubTableBuilder {
    style: StubStyle,
    quirks: QuirkTable,
    fault_recovery: bool,
}

impl Default for StubTableBuilder {
    fn default() -> Self {
        let style = StubStyle { ring: Ring::Three, ..StubStyle::default() };
        Self { style, quirks: QuirkTable::none(), fault_recovery: true }
    }
}

impl StubTableBuilder {
    /// The layout; [`StubLayout::CallRet`] by default.
    pub fn layout(mut self, layout: StubLayout) -> Self {
        self.style.layout = layout;
        self
    }

    /// The quirks; none by default.
    pub fn quirks(mut self, quirks: QuirkTable) -> Self {
        self.quirks = quirks;
        self
    }

    /// Whether stubs start with ENDBR64, for processes with indirect-branch tracking. Off by default.
    pub fn endbr64(mut self, endbr64: bool) -> Self {
        self.style.endbr64 = endbr64;
        self
    }

    /// Where the registers lie in the structure that the stubs are called with; [`RegisterFile::GPRS`] by default.
    /// Stubs for another are called by their [entries](Stub::entry).
    pub fn registers(mut self, registers: RegisterFile) -> Self {
        self.style.registers = registers;
        self
    }

    /// Puts a no-op of the same length in place of each I/O instruction: what is left is the cost of the stub. For
    /// benchmarks, which then need no privilege.
    pub fn elide_io(mut self, elide: bool) -> Self {
        self.style.backend = if elide { Backend::Elided } else { Backend::Hardware };
        self
    }

    /// Whether building the table installs the process-wide handler that makes faults errors (it does by default).
    /// Without it a #GP in a stub goes to the program's own handler, which may call
    /// [`fault::recover`](crate::fault::recover).
    pub fn fault_recovery(mut self, recovery: bool) -> Self {
        self.fault_recovery = recovery;
        self
    }

    /// Calls into device models in place of I/O instructions: stubs to be run with a `BusFrame` only.
    pub(crate) fn bus(mut self) -> Self {
        self.style.backend = Backend::Bus;
        self
    }

    /// Assembles the table.
    ///
    /// # Errors
    ///
    /// - [`BuildError::ShadowStack`]: [`StubLayout::Rop`] in a process with a user shadow stack.
    /// - [`BuildError::Emit`], [`BuildError::Assembler`]: a quirk's payload does not assemble.
    /// - [`BuildError::Memory`]: the system gave no memory.
    /// - [`BuildError::Executable`]: it refused to make it executable, as it does in some jails.
    /// - [`BuildError::Protection`]: the memory is not what was asked for, readable and executable and not writable.
    /// - [`BuildError::SignalHandler`]: the fault handler could not be installed, or put back on top of another one.
    pub fn build(self) -> Result<StubTable, BuildError> {
        let Self { style, quirks, fault_recovery } = self;
        check_returns(style.layout, shadow_stack_is_active())?;
        check_registers(&style.registers)?;
        let given = quirks.as_slice().len();
        if given > u8::MAX.into() {
            return Err(EmitError::TooManyQuirks { given, limit: u8::MAX.into() }.into());
        }
        let (mut quirk_stubs, mut quirk_shapes) = (Vec::new(), Vec::new());
        // Room for everything, so that nothing is copied on the way.
        let mut assembler = VecAssembler::<X64Relocation>::new_with_capacity(0, 16 << 10, 0, 0, Helper::COUNT, 0, 256);
        let mut sink = DynasmSink::new(&mut assembler, VecAssembler::new_dynamic_label);
        let (mut arena, mut problem) = (Arena::default(), Ok(()));
        let depths = quirk_table::depths(&style, quirks.as_slice());
        arena.emit(&mut sink, &style, depths, quirks.as_slice(), &mut |index, insn, at, shape| {
            quirk_stubs.push(QuirkStub::new(index, insn, at, shape));
            quirk_shapes.push(shape.clone());
            if let (Some(found), Ok(()), Some(quirk)) = (shape.problem, &problem, quirks.as_slice().get(index)) {
                problem = Err(EmitError::payload(quirk, found));
            }
        });
        problem?;
        let head = assembler.finalize().map_err(|error| BuildError::Assembler { why: error.to_string() })?;
        let mut memory = memory::writable(arena.len()).map_err(BuildError::Memory)?;
        memory[..head.len()].copy_from_slice(&head);
        assert!(arena.write_copies(&style, &mut memory), "the memory is as long as the table");
        let (memory, protection_is_verified) = memory::make_executable(memory)?;
        // SAFETY: the memory is unmapped when the table is dropped, and does not move before.
        let code: &'static [u8] = unsafe { core::slice::from_raw_parts(memory.as_ptr(), memory.len()) };
        let recovers = fault_recovery && style.backend == Backend::Hardware;
        let map = Box::new(FaultMap { arena, style, quirks, quirk_stubs, quirk_shapes });
        #[cfg(target_os = "linux")]
        if recovers {
            crate::fault::install()?;
        }
        #[cfg(target_os = "linux")]
        // SAFETY: the map is boxed, and the table drops the registration before it.
        let registration = unsafe { Registration::new(code, &map) };
        #[cfg(not(target_os = "linux"))]
        let (registration, _) = (Registration, recovers);
        Ok(StubTable {
            _registration: registration,
            map,
            code,
            _memory: memory,
            on_gprs: style.registers == RegisterFile::GPRS,
            protection_is_verified,
        })
    }
}

/// A hijacked return address is a control-protection fault where RETs are checked.
fn check_returns(layout: StubLayout, shadow_stack: bool) -> Result<(), BuildError> {
    if layout == StubLayout::Rop && shadow_stack { Err(BuildError::ShadowStack) } else { Ok(()) }
}

/// Whether RETs of this thread are checked against a shadow stack: RDSSP leaves its operand alone when they are not
/// (SDM vol. 1, 18.2.3; it is a NOP on CPUs that have none).
fn shadow_stack_is_active() -> bool {
    let ssp: u64;
    // SAFETY: reads one register, or does nothing.
    unsafe { core::arch::asm!("rdsspq {ssp}", ssp = inout(reg) 0u64 => ssp, options(nomem, nostack, preserves_flags)) };
    ssp != 0
}

/// One stub of a [`StubTable`].
#[derive(Clone, Copy)]
pub struct Stub<'t> {
    code: &'t [u8],
    /// Whether it is for `Gprs`.
    on_gprs: bool,
}

impl<'t> Stub<'t> {
    /// The bytes of the stub, without the helpers it calls.
    pub fn code(&self) -> &'t [u8] {
        self.code
    }

    /// The entry point, valid as long as the table is. It is called with the address of the table's register file
    /// ([`Gprs`], unless the builder was [told otherwise](StubTableBuilder::registers)).
    #[inline]
    pub fn entry(&self) -> StubFn {
        // SAFETY: the bytes are a stub, which has this signature.
        unsafe { core::mem::transmute::<*const u8, StubFn>(self.code.as_ptr()) }
    }

    /// Runs the instruction with `gprs` in the CPU's registers, and stores there what the registers hold afterwards.
    ///
    /// # Errors
    ///
    /// [`IoFault`] when the CPU refused the access (see [`fault`](crate::fault)): every word of `gprs` is then as it
    /// was (of INS and OUTS, all but RCX, RSI and RDI, which say how far they got).
    ///
    /// # Panics
    ///
    /// When the table is for [another register file](StubTableBuilder::registers).
    ///
    /// # Safety
    ///
    /// The access is made, on the real port, with all that the hardware or firmware behind it may do in answer: reset
    /// the machine, write memory by DMA, change registers. The caller vouches that it is harmless to this process and
    /// to the machine's other users. Where the table was built [without fault
    /// recovery](StubTableBuilder::fault_recovery), also that it does not fault, or that a handler deals with it.
    #[inline]
    pub unsafe fn run(&self, gprs: &mut Gprs) -> Result<(), IoFault> {
        assert!(self.on_gprs, "the table is for another register file than Gprs: call `entry`");
        let (rax, rdx, r8);
        // SAFETY: the bytes are a stub, which keeps to the calling convention; the caller vouches for the access.
        unsafe {
            core::arch::asm!(
                "call {entry}",
                entry = in(reg) self.code.as_ptr(),
                in("rdi") core::ptr::from_mut(gprs),
                lateout("rax") rax,
                lateout("rdx") rdx,
                lateout("r8") r8,
                clobber_abi("sysv64"),
            );
        }
        StubResult { rax, rdx, r8 }.check()
    }
}

impl fmt::Debug for Stub<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stub({:p}: {:02x?})", self.code.as_ptr(), self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rop_alone_is_refused_with_a_shadow_stack() {
        for layout in StubLayout::ALL.iter().copied() {
            assert!(check_returns(layout, false).is_ok());
            assert_eq!(check_returns(layout, true).is_err(), layout == StubLayout::Rop);
        }
    }

    /// The kernel's word against the CPU's: `x86_Thread_features` lists `shstk` where a shadow stack is on. (No CPU
    /// without one can show the other answer.)
    #[cfg(target_os = "linux")]
    #[test]
    fn the_shadow_stack_is_detected_as_the_kernel_reports_it() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let features = status.lines().find_map(|line| line.strip_prefix("x86_Thread_features:")).unwrap_or("");
        assert_eq!(shadow_stack_is_active(), features.split_whitespace().any(|feature| feature == "shstk"));
    }
}
