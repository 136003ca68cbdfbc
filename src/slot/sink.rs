//! The [`CodeSink`] of caller-owned memory: no allocator, and no byte past the end.

use arrayvec::ArrayVec;

use super::place::room;
use crate::EmitError;
use crate::stub::{CodeSink, Helper};

/// The addresses of the helpers that are there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Targets {
    /// In the order of [`Helper::ALL`].
    at: [u64; Helper::COUNT],
    /// A bit for each that is there: less of a kernel's stack than an option for each.
    known: u16,
}

impl Targets {
    /// The helpers and their addresses, but for the return thunk, which is the host's.
    pub fn helpers(self) -> impl Iterator<Item = (Helper, u64)> + Clone {
        let own = Helper::ALL.into_iter().filter(|helper| *helper != Helper::ReturnThunk);
        own.filter_map(move |helper| Some((helper, self.get(helper)?)))
    }

    fn get(&self, helper: Helper) -> Option<u64> {
        self.at.get(helper as usize).copied().filter(|_| self.known >> (helper as u16) & 1 != 0)
    }

    fn set(&mut self, helper: Helper, address: u64) {
        if let Some(at) = self.at.get_mut(helper as usize) {
            *at = address;
            self.known |= 1 << (helper as u16);
        }
    }
}

/// No helper yet, but the host's return thunk.
pub(crate) fn with_thunk(return_thunk: Option<u64>) -> Targets {
    let mut targets = Targets::default();
    if let Some(address) = return_thunk {
        targets.set(Helper::ReturnThunk, address);
    }
    targets
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
    sink.restart(room(buf, va, len)?);
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
const MAX_LOCALS: usize = 4;
const MAX_PENDING: usize = 5;

/// A reference that waits for its label.
#[derive(Clone, Copy)]
struct Pending {
    label: Label,
    /// The field, as an offset into the code, and its size.
    field: u16,
    size: u8,
    /// What the displacement is relative to, less the target's own offset: counted from the field.
    base: i8,
}

/// Writes to a slice as far as it reaches and counts on past its end.
pub(crate) struct SlotSink<'a> {
    buf: &'a mut [u8],
    va: u64,
    len: usize,
    pub helpers: Targets,
    /// The local labels defined so far, the latest last.
    locals: ArrayVec<(&'static str, u32), MAX_LOCALS>,
    pending: ArrayVec<Pending, MAX_PENDING>,
    error: Option<EmitError>,
}

impl<'a> SlotSink<'a> {
    pub fn new(buf: &'a mut [u8], va: u64, helpers: Targets) -> Self {
        Self { buf, va, len: 0, helpers, locals: ArrayVec::new(), pending: ArrayVec::new(), error: None }
    }

    /// Begins again, with memory. Helpers stay where they were the first time: they will be there once more.
    pub fn restart(&mut self, buf: &'a mut [u8]) {
        (self.buf, self.len) = (buf, 0);
        self.locals.clear();
    }

    /// The memory.
    pub fn into_room(self) -> &'a mut [u8] {
        self.buf
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

    /// Writes target − base into the field; the base is an offset into the code.
    #[inline]
    fn patch(&mut self, field: usize, size: u8, base: i64, target: u64, label: Label) {
        let displacement = target.wrapping_sub(self.va.wrapping_add_signed(base)) as i64;
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
        let base = self.len as i64 - i64::from(offsets.1) - target_offset as i64;
        match known {
            Some(target) => self.patch(field, size, base, target, label),
            None => {
                // What waits for a label is in one stub, or among the helpers: near the start of either the memory or a
                // table.
                let pending = || {
                    let base = i8::try_from(base - field as i64).ok()?;
                    Some(Pending { label, field: u16::try_from(field).ok()?, size, base })
                };
                if pending().is_none_or(|pending| self.pending.try_push(pending).is_err()) {
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
                let base = i64::from(field) + i64::from(base);
                self.patch(field.into(), size, base, target, label);
                let _ = self.pending.swap_pop(at);
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
        self.settle(Label::Local(name));
        self.locals.retain(|label| label.0 != name);
        if self.locals.is_full() {
            // Whoever goes back to the oldest is told that it is one too many.
            let _oldest = self.locals.pop_at(0);
        }
        let _ = self.locals.try_push((name, self.len as u32));
    }

    fn dynamic_label(&mut self, helper: Helper) {
        let here = self.settle(Label::Helper(helper));
        self.helpers.set(helper, here);
    }

    fn forward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.reloc(Label::Local(name), None, target_offset, (field_offset, ref_offset), kind);
    }

    fn backward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        match self.locals.iter().find(|label| label.0 == name).map(|label| self.va.wrapping_add(label.1.into())) {
            Some(va) => self.reloc(Label::Local(name), Some(va), target_offset, (field_offset, ref_offset), kind),
            None => self.fail(EmitError::Label { label: name }),
        }
    }

    #[inline]
    fn dynamic_reloc(&mut self, helper: Helper, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        let known = self.helpers.get(helper);
        self.reloc(Label::Helper(helper), known, target_offset, (field_offset, ref_offset), kind);
    }
}
