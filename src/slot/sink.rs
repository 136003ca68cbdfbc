//! The [`CodeSink`] of caller-owned memory: no allocator, and no byte past the end.

use arrayvec::ArrayVec;

use super::place::room;
use crate::EmitError;
use crate::stub::{CodeSink, Helper};

/// The addresses of helpers, in the order of [`Helper::ALL`].
pub(crate) type Targets = [Option<u64>; Helper::COUNT];

/// No helper yet, but the host's return thunk.
pub(crate) fn with_thunk(return_thunk: Option<u64>) -> Targets {
    Helper::ALL.map(|helper| return_thunk.filter(|_| helper == Helper::ReturnThunk))
}

/// Runs `emit` without memory, checks everything, and then once more to write. Returns the number of bytes.
pub(crate) fn emit_checked(
    buf: &mut [u8],
    va: u64,
    targets: Targets,
    mut emit: impl FnMut(&mut SlotSink<'_>) -> Result<(), EmitError>,
) -> Result<usize, EmitError> {
    let mut sink = SlotSink::new(&mut [], va, targets);
    emit(&mut sink)?;
    let len = sink.finish()?;
    sink = SlotSink::new(room(buf, va, len)?, va, targets);
    emit(&mut sink)?;
    sink.finish()
}

/// What a branch goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Local(&'static str),
    Helper(Helper),
}

impl Label {
    fn name(self) -> &'static str {
        match self {
            Label::Local(name) => name,
            Label::Helper(helper) => helper.name(),
        }
    }
}

/// Local labels, and forward references that may be open at once: no payload needs more than a couple.
const MAX_LOCALS: usize = 8;
const MAX_PENDING: usize = 8;

/// A reference that waits for its label.
#[derive(Clone, Copy)]
struct Pending {
    label: Label,
    /// The field, as an offset into the code, and its size.
    field: usize,
    size: usize,
    /// What the displacement is relative to, less the target's own offset.
    base: u64,
}

/// Writes to a slice as far as it reaches and counts on past its end.
pub(crate) struct SlotSink<'a> {
    buf: &'a mut [u8],
    va: u64,
    len: usize,
    pub helpers: Targets,
    /// The local labels defined so far, the latest last.
    locals: ArrayVec<(&'static str, u64), MAX_LOCALS>,
    pending: ArrayVec<Pending, MAX_PENDING>,
    error: Option<EmitError>,
}

impl<'a> SlotSink<'a> {
    pub fn new(buf: &'a mut [u8], va: u64, helpers: Targets) -> Self {
        Self { buf, va, len: 0, helpers, locals: ArrayVec::new(), pending: ArrayVec::new(), error: None }
    }

    /// The length, or the first thing that went wrong.
    pub fn finish(&self) -> Result<usize, EmitError> {
        match (self.error, self.pending.first()) {
            (Some(error), _) => Err(error),
            (None, Some(pending)) => Err(EmitError::Label { label: pending.label.name() }),
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
    #[inline]
    fn patch(&mut self, field: usize, size: usize, base: u64, target: u64, label: Label) {
        let displacement = target.wrapping_sub(base) as i64;
        let (short, near) = (i8::try_from(displacement), i32::try_from(displacement));
        match (size, short, near, label) {
            (1, Ok(short), ..) => self.write(field, short.to_le_bytes()),
            (2.., _, Ok(near), _) => self.write(field, near.to_le_bytes()),
            (.., Label::Local(label)) => self.fail(EmitError::Label { label }),
            (.., Label::Helper(_)) => self.fail(EmitError::HelperOutOfRange { displacement }),
        }
    }

    #[inline]
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        if let Some(room) = self.buf.get_mut(at..).and_then(|room| room.first_chunk_mut()) {
            *room = bytes;
        }
    }

    #[inline]
    fn reloc(&mut self, label: Label, known: Option<u64>, target_offset: isize, offsets: (u8, u8), kind: u8) {
        // dynasm's encoding: 0 is a byte, 2 a doubleword, both relative. No emitter here uses another.
        let size = if kind == 0 { 1 } else { 4 };
        let field = self.len - usize::from(offsets.0);
        let base = self.here().wrapping_sub(u64::from(offsets.1)).wrapping_sub(target_offset as u64);
        match known {
            Some(target) => self.patch(field, size, base, target, label),
            None => {
                if self.pending.try_push(Pending { label, field, size, base }).is_err() {
                    self.fail(EmitError::Label { label: label.name() });
                }
            }
        }
    }

    /// Resolves what waited for this label. Returns its address.
    fn settle(&mut self, label: Label) -> u64 {
        let target = self.here();
        let mut at = 0;
        while let Some(&Pending { label: wanted, field, size, base }) = self.pending.get(at) {
            if wanted == label {
                self.patch(field, size, base, target, label);
                self.pending.swap_remove(at);
            } else {
                at += 1;
            }
        }
        target
    }
}

impl CodeSink for SlotSink<'_> {
    fn offset(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn extend(&mut self, bytes: &[u8]) {
        if let Some(room) = self.buf.get_mut(self.len..).and_then(|room| room.get_mut(..bytes.len())) {
            room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        }
        self.len += bytes.len();
    }

    fn local_label(&mut self, name: &'static str) {
        let here = self.settle(Label::Local(name));
        self.locals.retain(|label| label.0 != name);
        if self.locals.is_full() {
            let _oldest = self.locals.pop_at(0); // who still refers to it is told so
        }
        let _has_room = self.locals.try_push((name, here));
    }

    fn dynamic_label(&mut self, helper: Helper) {
        let here = self.settle(Label::Helper(helper));
        if let Some(target) = self.helpers.get_mut(helper as usize) {
            *target = Some(here);
        }
    }

    fn forward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.reloc(Label::Local(name), None, target_offset, (field_offset, ref_offset), kind);
    }

    fn backward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        match self.locals.iter().find(|label| label.0 == name).map(|label| label.1) {
            Some(va) => self.reloc(Label::Local(name), Some(va), target_offset, (field_offset, ref_offset), kind),
            None => self.fail(EmitError::Label { label: name }),
        }
    }

    #[inline]
    fn dynamic_reloc(&mut self, helper: Helper, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        let known = self.helpers.get(helper as usize).copied().flatten();
        self.reloc(Label::Helper(helper), known, target_offset, (field_offset, ref_offset), kind);
    }
}
