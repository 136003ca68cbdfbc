//! Stubs in memory that the caller owns: a hypervisor's per-CPU slot, or its table of all forms.
//!
//! Nothing here allocates, maps or executes: bytes are written to a slice, for the address `va` at which they will
//! execute (which may be another mapping than the one written through). Everything is emitted twice, first without
//! memory, so that the size, every displacement and the quirk are checked before the first byte is written: an error
//! leaves the memory as it was.
//!
//! ```
//! use ioemul::{Helpers, IoInsn, Layout, Width, emit_stub};
//! let (mut helpers, mut slot) = ([0; 256], [0; 36]);
//! let helpers = Helpers::emit(&mut helpers, 0xffff_8000_0010_0000, Layout::CallRet)?;
//! let len = emit_stub(&mut slot, 0xffff_8000_0020_0000, IoInsn::out_dx(Width::Byte), &helpers)?;
//! assert_eq!((len, &slot[16..19]), (36, &[0x90, 0xee, 0x90][..]));
//! # Ok::<(), ioemul::EmitError>(())
//! ```

use crate::arena::{Arena, Fixup, QuirkStub};
use crate::helpers::{Returns, emit_helpers};
use crate::layout::{Backend, StubShape, StubStyle, emit_stub as emit};
use crate::{CodeSink, Gprs, IoInsn, Layout, Quirk, Ring};

/// What a hardened host wants of the code, and the quirk to apply.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotOptions {
    /// Start each stub with ENDBR64, for indirect-branch tracking (CET-IBT).
    pub endbr64: bool,
    /// The executable address of a return thunk: every RET becomes a JMP to it.
    pub return_thunk: Option<u64>,
    /// INT3 after every final RET or JMP, against straight-line speculation.
    pub int3: bool,
    /// The quirk whose payload replaces the I/O instruction ([`emit_stub_with`]: always; [`CodeTable`]: where it
    /// [applies](Quirk::applies)).
    pub quirk: Option<Quirk>,
    /// The privilege level that the code will run at: decides between the variants of a quirk. Ring 0 by default.
    pub ring: Ring,
}

impl SlotOptions {
    fn style(&self, layout: Layout) -> StubStyle {
        StubStyle {
            layout,
            backend: Backend::Hardware,
            endbr64: self.endbr64,
            returns: Returns { thunk: self.return_thunk.is_some(), int3: self.int3 },
            ring: self.ring,
        }
    }
}

/// Why code could not be emitted. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The memory is too short.
    #[error("the code needs {needed} bytes and the slot has {available}")]
    SlotTooSmall {
        /// Length of the code in bytes.
        needed: usize,
        /// Length of the memory in bytes.
        available: usize,
    },
    /// A helper or return thunk is more than ±2 GiB away from the call to it.
    #[error("the displacement {displacement:#x} to a helper or thunk does not fit the signed 32 bits of a near branch")]
    HelperOutOfRange {
        /// Target minus the address behind the branch, in bytes.
        displacement: i64,
    },
    /// The code would end past the end of the address space.
    #[error("code of {len} bytes at {va:#x} runs past the end of the address space")]
    AddressOverflow {
        /// Where the code was to execute.
        va: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// A quirk's payload pushes and pops different amounts, or more than can be recorded.
    #[error("the payload of the quirk {quirk:?} does not balance its pushes and pops")]
    UnbalancedPayload {
        /// Name of the quirk.
        quirk: &'static str,
    },
    /// A quirk's payload uses a label that is not defined, or too many of them.
    #[error("the label {label:?} is undefined, too far away, or one too many")]
    Label {
        /// Name of the label.
        label: &'static str,
    },
}

/// The helpers of a layout, emitted by the caller, shared by any number of stubs.
#[derive(Clone, Copy, Debug)]
pub struct Helpers {
    layout: Layout,
    va: u64,
    len: usize,
    labels: Labels,
    /// Address of the epilogue that stubs without one of their own share.
    epilogue: Option<u64>,
}

impl Helpers {
    /// Emits the helpers of `layout` into `buf`, to be executed at `va`. 256 bytes are enough for any layout.
    ///
    /// # Errors
    ///
    /// [`EmitError::SlotTooSmall`] with the size that is needed.
    pub fn emit(buf: &mut [u8], va: u64, layout: Layout) -> Result<Self, EmitError> {
        Self::emit_with(buf, va, layout, &SlotOptions::default())
    }

    /// As [`Self::emit`], with the host's hardening. `endbr64`, `quirk` and `ring` make no difference: the helpers are
    /// never branched to indirectly, and no quirk is in them.
    ///
    /// # Errors
    ///
    /// [`EmitError::SlotTooSmall`], or [`EmitError::HelperOutOfRange`] for the return thunk.
    pub fn emit_with(buf: &mut [u8], va: u64, layout: Layout, options: &SlotOptions) -> Result<Self, EmitError> {
        let returns = options.style(layout).returns;
        let outside = Labels::default().with_thunk(options);
        let (epilogue, labels, len) = emit_checked(buf, va, outside, |sink| {
            Ok(emit_helpers(sink, layout, returns).map(|at| va.wrapping_add(at as u64)))
        })?;
        Ok(Self { layout, va, len, labels, epilogue })
    }

    /// The layout that these helpers are for.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The address at which they execute.
    pub fn va(&self) -> u64 {
        self.va
    }

    /// Their length in bytes; 0 for [`Layout::Inline`].
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Name and address of each helper, for a symbol table. They are not functions and cannot be called as such.
    pub fn symbols(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.labels.iter().filter(|&(name, _)| name != RETURN_THUNK)
    }
}

/// Emits the stub of `insn` into `slot`, to be executed at `va` as `extern "sysv64" fn(*mut Gprs)`. Returns its length:
/// 36 bytes for [`Layout::CallRet`], 13 for [`Layout::Compact`], 9 for [`Layout::Rop`].
///
/// # Errors
///
/// See [`EmitError`]; the slot is then as it was.
pub fn emit_stub(slot: &mut [u8], va: u64, insn: IoInsn, helpers: &Helpers) -> Result<usize, EmitError> {
    emit_stub_with(slot, va, insn, helpers, &SlotOptions::default())
}

/// As [`emit_stub`], with the host's hardening and a quirk.
///
/// # Errors
///
/// See [`EmitError`]; the slot is then as it was.
pub fn emit_stub_with(
    slot: &mut [u8],
    va: u64,
    insn: IoInsn,
    helpers: &Helpers,
    options: &SlotOptions,
) -> Result<usize, EmitError> {
    let (shape, _, _) =
        emit_checked(slot, va, helpers.labels.with_thunk(options), |sink| checked_stub(sink, insn, helpers, options))?;
    Ok(shape.len)
}

/// Where a fault at `rip` resumes, for a stub that [`emit_stub_with`] emitted with these arguments. `None`: `rip` is not
/// in the I/O sequence of that stub.
pub fn stub_fixup(va: u64, insn: IoInsn, helpers: &Helpers, options: &SlotOptions, rip: u64) -> Option<Fixup> {
    let mut labels = helpers.labels.with_thunk(options);
    let shape = checked_stub(&mut SlotSink::new(&mut [], va, &mut labels), insn, helpers, options).ok()?;
    let offset = usize::try_from(rip.checked_sub(va)?).ok()?;
    let rsp_adjust = shape.rsp_adjust(helpers.layout, offset)?;
    let resume = shape.epilogue.map(|epilogue| va + epilogue as u64).or(helpers.epilogue)?;
    Some(Fixup { resume, rsp_adjust })
}

/// Every form of a layout in memory that the caller owns: found by multiplication, never rewritten.
#[derive(Clone, Copy, Debug)]
pub struct CodeTable {
    va: u64,
    arena: Arena,
    quirk: Option<QuirkStub>,
}

impl CodeTable {
    /// How many bytes [`Self::emit`] needs.
    ///
    /// ```
    /// use ioemul::{CodeTable, Layout, SlotOptions};
    /// assert!(CodeTable::size(Layout::Compact, &SlotOptions::default()) < 32 * 1024);
    /// ```
    pub fn size(layout: Layout, options: &SlotOptions) -> usize {
        // Anywhere in the address space: the length does not depend on it.
        let mut labels = Labels::default().with_thunk(options);
        let mut sink = SlotSink::new(&mut [], 0, &mut labels);
        Arena::emit(&mut sink, &options.style(layout), options.quirk.as_slice(), |_| ()).len
    }

    /// Emits the helpers, all [`IoInsn::COUNT`] stubs, and the quirk's stub where there is one, to be executed at `va`.
    ///
    /// # Errors
    ///
    /// See [`EmitError`]; the memory is then as it was.
    pub fn emit(buf: &mut [u8], va: u64, layout: Layout, options: &SlotOptions) -> Result<Self, EmitError> {
        let outside = Labels::default().with_thunk(options);
        let ((arena, quirk), _, _) = emit_checked(buf, va, outside, |sink| {
            let mut placed = None;
            let arena = Arena::emit(sink, &options.style(layout), options.quirk.as_slice(), |stub| placed = Some(stub));
            if let Some(stub) = &placed {
                check_payload(&stub.quirk, &stub.shape)?;
            }
            Ok((arena, placed))
        })?;
        Ok(Self { va, arena, quirk })
    }

    /// The executable address of the plain stub of `insn`: an `extern "sysv64" fn(*mut Gprs)`.
    pub fn entry(&self, insn: IoInsn) -> u64 {
        self.va + self.arena.stub(insn).0 as u64
    }

    /// The executable address of the stub for this access: the quirk's where it applies, else the plain one.
    pub fn resolve(&self, insn: IoInsn, gprs: &Gprs) -> u64 {
        match crate::arena::resolve(self.quirk.as_slice(), insn, gprs) {
            Some(stub) => self.va + stub.at as u64,
            None => self.entry(insn),
        }
    }

    /// Where a fault at `rip` resumes. `None`: `rip` is not in the I/O sequence of a stub of this table.
    pub fn fixup(&self, rip: u64) -> Option<Fixup> {
        let offset = usize::try_from(rip.checked_sub(self.va)?).ok()?;
        let (resume, rsp_adjust) = self.arena.fixup(self.quirk.as_slice(), offset)?;
        Some(Fixup { resume: self.va + resume as u64, rsp_adjust })
    }
}

fn checked_stub(
    sink: &mut SlotSink<'_>,
    insn: IoInsn,
    helpers: &Helpers,
    options: &SlotOptions,
) -> Result<StubShape, EmitError> {
    let shape = emit(sink, &options.style(helpers.layout), insn, options.quirk.as_ref());
    if let Some(quirk) = &options.quirk {
        check_payload(quirk, &shape)?;
    }
    Ok(shape)
}

pub(crate) fn check_payload(quirk: &Quirk, shape: &StubShape) -> Result<(), EmitError> {
    match shape.stack.is_balanced() {
        true => Ok(()),
        false => Err(EmitError::UnbalancedPayload { quirk: quirk.name() }),
    }
}

/// Runs `emit` without memory, checks everything, and then once more to write. Returns its result, the global labels it
/// defined (besides those of `outside`), and the number of bytes.
fn emit_checked<T>(
    buf: &mut [u8],
    va: u64,
    outside: Labels,
    emit: impl Fn(&mut SlotSink<'_>) -> Result<T, EmitError>,
) -> Result<(T, Labels, usize), EmitError> {
    let mut labels = outside;
    let mut dry = SlotSink::new(&mut [], va, &mut labels);
    emit(&mut dry)?;
    let len = dry.finish()?;
    if len > buf.len() {
        return Err(EmitError::SlotTooSmall { needed: len, available: buf.len() });
    }
    if va.checked_add(len as u64).is_none() {
        return Err(EmitError::AddressOverflow { va, len });
    }
    let mut labels = outside;
    let mut sink = SlotSink::new(&mut buf[..len], va, &mut labels);
    let result = emit(&mut sink)?;
    sink.finish()?;
    Ok((result, labels, len))
}

const RETURN_THUNK: &str = "return_thunk";

/// A few names with their addresses.
#[derive(Clone, Copy, Debug, Default)]
struct Labels {
    entries: [(&'static str, u64); Self::MAX],
    len: usize,
}

impl Labels {
    const MAX: usize = 4;

    fn with_thunk(mut self, options: &SlotOptions) -> Self {
        self.remove(RETURN_THUNK);
        if let Some(va) = options.return_thunk {
            self.define(RETURN_THUNK, va);
        }
        self
    }

    /// False when there is no room.
    fn define(&mut self, name: &'static str, va: u64) -> bool {
        match self.entries.get_mut(self.len) {
            Some(entry) => {
                *entry = (name, va);
                self.len += 1;
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, name: &str) {
        let found = self.iter().position(|(defined, _)| defined == name);
        if let Some(at) = found {
            self.entries.copy_within(at + 1..self.len, at);
            self.len -= 1;
        }
    }

    /// The latest definition: a local label may be defined again.
    fn get(&self, name: &str) -> Option<u64> {
        self.entries[..self.len].iter().rfind(|entry| entry.0 == name).map(|entry| entry.1)
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.entries[..self.len].iter().copied()
    }
}

/// Forward references that may be open at once: no payload needs more than a couple.
const MAX_PENDING: usize = 8;

/// A reference that waits for its label.
#[derive(Clone, Copy, Default)]
struct Pending {
    name: &'static str,
    global: bool,
    /// The field, as an offset into the code, and its size.
    field: usize,
    size: usize,
    /// What the displacement is relative to, less the target's own offset.
    base: u64,
}

/// Writes to a slice as far as it reaches and counts on past its end.
struct SlotSink<'a> {
    buf: &'a mut [u8],
    va: u64,
    len: usize,
    globals: &'a mut Labels,
    locals: Labels,
    pending: [Pending; MAX_PENDING],
    pending_len: usize,
    error: Option<EmitError>,
}

impl<'a> SlotSink<'a> {
    fn new(buf: &'a mut [u8], va: u64, globals: &'a mut Labels) -> Self {
        Self {
            buf,
            va,
            len: 0,
            globals,
            locals: Labels::default(),
            pending: Default::default(),
            pending_len: 0,
            error: None,
        }
    }

    /// The length, or the first thing that went wrong.
    fn finish(self) -> Result<usize, EmitError> {
        match (self.error, self.pending[..self.pending_len].first()) {
            (Some(error), _) => Err(error),
            (None, Some(pending)) => Err(EmitError::Label { label: pending.name }),
            (None, None) => Ok(self.len),
        }
    }

    fn here(&self) -> u64 {
        self.va.wrapping_add(self.len as u64)
    }

    fn fail(&mut self, error: EmitError) {
        self.error.get_or_insert(error);
    }

    /// Writes target − base into the field.
    fn patch(&mut self, field: usize, size: usize, base: u64, target: u64, name: &'static str) {
        let displacement = target.wrapping_sub(base) as i64;
        let fits = match size {
            1 => i8::try_from(displacement).is_ok(),
            _ => i32::try_from(displacement).is_ok(),
        };
        if !fits {
            return self.fail(match size {
                1 => EmitError::Label { label: name },
                _ => EmitError::HelperOutOfRange { displacement },
            });
        }
        if let Some(bytes) = self.buf.get_mut(field..field + size) {
            bytes.copy_from_slice(&displacement.to_le_bytes()[..size]);
        }
    }

    fn reloc(
        &mut self,
        label: (&'static str, bool),
        known: Option<u64>,
        target_offset: isize,
        offsets: (u8, u8),
        kind: u8,
    ) {
        // dynasm's encoding: 0 is a byte, 2 a doubleword, both relative. No emitter here uses another.
        let size = if kind == 0 { 1 } else { 4 };
        let (name, global) = label;
        let field = self.len - usize::from(offsets.0);
        let base = self.here().wrapping_sub(u64::from(offsets.1)).wrapping_sub(target_offset as u64);
        match known {
            Some(target) => self.patch(field, size, base, target, name),
            None => match self.pending.get_mut(self.pending_len) {
                Some(slot) => {
                    *slot = Pending { name, global, field, size, base };
                    self.pending_len += 1;
                }
                None => self.fail(EmitError::Label { label: name }),
            },
        }
    }

    /// Resolves what waited for this label.
    fn settle(&mut self, name: &'static str, global: bool) {
        let target = self.here();
        let mut at = 0;
        while at < self.pending_len {
            let Pending { name: wanted, global: is_global, field, size, base } = self.pending[at];
            if wanted == name && is_global == global {
                self.patch(field, size, base, target, name);
                self.pending_len -= 1;
                self.pending[at] = self.pending[self.pending_len];
            } else {
                at += 1;
            }
        }
    }
}

impl CodeSink for SlotSink<'_> {
    fn offset(&self) -> usize {
        self.len
    }

    fn extend(&mut self, bytes: &[u8]) {
        if let Some(room) = self.buf.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
        }
        self.len += bytes.len();
    }

    fn local_label(&mut self, name: &'static str) {
        self.settle(name, false);
        self.locals.remove(name);
        if !self.locals.define(name, self.here()) {
            self.fail(EmitError::Label { label: name });
        }
    }

    fn global_label(&mut self, name: &'static str) {
        self.settle(name, true);
        if !self.globals.define(name, self.here()) {
            self.fail(EmitError::Label { label: name });
        }
    }

    fn forward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.reloc((name, false), None, target_offset, (field_offset, ref_offset), kind);
    }

    fn backward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        match self.locals.get(name) {
            Some(va) => self.reloc((name, false), Some(va), target_offset, (field_offset, ref_offset), kind),
            None => self.fail(EmitError::Label { label: name }),
        }
    }

    fn global_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        let known = self.globals.get(name);
        self.reloc((name, true), known, target_offset, (field_offset, ref_offset), kind);
    }
}
