//! A whole table of stubs in one piece of memory, and the way from an address in it to the place where a fault resumes.
//!
//! ```text
//!   helpers | landing pads | string stubs | quirk stubs | stub 0 | stub 1 | … | stub 1541
//!                                                       └ stride ┘
//! ```
//!
//! The stubs of IN and OUT all have one shape, and so have those of INS and OUTS: a form's stub is found by
//! multiplication. The assembler emits everything up to stub 0; the others are [copies](Copies) of it.

use arrayvec::ArrayVec;

use super::emit::{Body, StubShape, emit_stub};
use super::style::Backend;
use super::{CodeSink, StubStyle};
use crate::helpers::{Depths, Landing, Pads, emit_helpers, emit_pads};
use crate::{IoInsn, Width};

/// Stubs start on this boundary: a fetch block of the front end.
pub(crate) const ALIGN: usize = 16;

/// Where everything is in an emitted table, as offsets from its first byte.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    pads: Pads,
    /// INS and OUTS.
    strings: Group,
    /// IN and OUT.
    plain: Group,
}

/// Stubs of one shape, one after the other.
#[derive(Clone, Debug, Default)]
struct Group {
    first: usize,
    stride: usize,
    count: usize,
    shape: StubShape,
}

impl Group {
    #[inline]
    fn stub(&self, index: usize) -> (usize, usize) {
        (self.first + index * self.stride, self.shape.len)
    }

    /// How far an offset is from the start of its stub.
    fn within(&self, offset: usize) -> Option<usize> {
        let past = offset.checked_sub(self.first).filter(|past| *past < self.count * self.stride)?;
        past.checked_rem(self.stride)
    }
}

/// The stubs of IN and OUT behind the first: how they differ from it.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    first: usize,
    stride: usize,
    /// Where the bytes are that the form decides.
    form_at: usize,
    branches: ArrayVec<usize, 4>,
    style: StubStyle,
}

impl Arena {
    /// Emits helpers, landing pads, the stubs of INS and OUTS, those of `bodies` (`placed` is told of each, in order, where it
    /// is and how it looks), and the first stub of IN and OUT.
    pub fn emit<'b, S: CodeSink>(
        ops: &mut S,
        style: &StubStyle,
        depths: Depths,
        bodies: impl Iterator<Item = (IoInsn, &'b dyn Body)>,
        mut placed: impl FnMut(usize, &StubShape),
    ) -> (Self, Copies) {
        let origin = ops.offset();
        emit_helpers(ops, style);
        let pads = emit_pads(ops, style, depths);
        #[cfg(feature = "std")]
        if style.backend == Backend::Bus {
            super::trampoline::emit_trampoline(ops);
        }
        pad(ops, origin);
        let mut strings = Group { first: ops.offset() - origin, ..Group::default() };
        for insn in IoInsn::strings() {
            strings.shape = emit_stub(ops, style, insn, None);
            pad(ops, origin);
            strings.count += 1;
        }
        strings.stride = strings.shape.len.next_multiple_of(ALIGN);
        for (insn, body) in bodies {
            let at = ops.offset() - origin;
            let shape = emit_stub(ops, style, insn, Some(body));
            pad(ops, origin);
            placed(at, &shape);
        }
        let first = ops.offset() - origin;
        let shape = emit_stub(ops, style, IoInsn::in_dx(Width::Byte), None);
        pad(ops, origin);
        let stride = ops.offset() - origin - first;
        let branches = super::as_many_as_fit(shape.branches());
        let copies = Copies { first, stride, form_at: form_at(style, &shape), branches, style: *style };
        let plain = Group { first, stride, count: IoInsn::COUNT, shape };
        (Self { pads, strings, plain }, copies)
    }

    /// How long the table is, all stubs included.
    pub fn len(&self) -> usize {
        self.plain.first + self.plain.count * self.plain.stride
    }

    /// First byte and length of the stub of a form.
    #[inline]
    pub fn stub(&self, insn: IoInsn) -> (usize, usize) {
        match insn.index().checked_sub(IoInsn::COUNT) {
            None => self.plain.stub(insn.index()),
            Some(index) => self.strings.stub(index),
        }
    }

    /// Where a fault at the instruction `offset` bytes into the table resumes (an offset again), in a stub without a quirk.
    /// `None`: there is no I/O instruction there.
    pub fn fixup(&self, offset: usize) -> Option<usize> {
        let landing = |group: &Group| group.shape.landing(group.within(offset)?);
        landing(&self.plain).or_else(|| landing(&self.strings)).map(|landing| self.pad(landing))
    }

    /// The offset of a landing pad.
    pub fn pad(&self, landing: Landing) -> usize {
        self.pads.at(landing).into()
    }

    /// The accesses of INS and OUTS that can fault on hardware, by ascending offset.
    pub fn string_accesses(&self) -> impl Iterator<Item = usize> {
        // What is shorter than the longest form has no-ops in front.
        IoInsn::strings().enumerate().map(|(index, insn)| {
            let padding = 4 - insn.encode().1;
            self.strings.stub(index).0 + self.strings.shape.io.0 + padding
        })
    }

    /// The same of IN and OUT.
    pub fn plain_accesses(&self) -> impl Iterator<Item = usize> {
        // An instruction of 16 bits starts with its prefix, where those of others have a no-op.
        IoInsn::in_out().enumerate().map(|(index, insn)| {
            let padding = usize::from(insn.width != Width::Word);
            self.plain.stub(index).0 + self.plain.shape.io.0 + padding
        })
    }
}

impl Copies {
    /// Fills `code`, which holds the table up to the first stub of IN and OUT, with the others. `false`: it is too short.
    #[must_use]
    pub fn write(&self, code: &mut [u8]) -> bool {
        let Some((_, stubs)) = code.split_at_mut_checked(self.first) else { return false };
        let Some((first, others)) = stubs.split_at_mut_checked(self.stride) else { return false };
        let mut forms = IoInsn::in_out();
        let _first = forms.next();
        let mut distance = 0;
        for (copy, insn) in others.chunks_exact_mut(self.stride.max(1)).zip(forms.by_ref()) {
            copy.iter_mut().zip(first.iter()).for_each(|(to, from)| *to = *from);
            distance += self.stride as i32;
            for end in &self.branches {
                let field = copy.get_mut(end.saturating_sub(4)..);
                if let Some(field) = field.and_then(|field| field.first_chunk_mut::<4>()) {
                    *field = i32::from_le_bytes(*field).wrapping_sub(distance).to_le_bytes();
                }
            }
            write_form(&self.style, insn, copy.get_mut(self.form_at..).unwrap_or_default());
        }
        forms.next().is_none()
    }
}

/// Where the bytes of a plain stub are that the form decides.
pub(crate) fn form_at(style: &StubStyle, shape: &StubShape) -> usize {
    match style.backend {
        Backend::Hardware => shape.io.0,
        #[cfg(feature = "std")]
        Backend::Elided => shape.io.0,
        #[cfg(feature = "std")]
        Backend::Bus => shape.io.0 + 1, // behind the opcode of PUSH
    }
}

/// Writes them.
pub(crate) fn write_form(style: &StubStyle, insn: IoInsn, code: &mut [u8]) {
    match style.backend {
        Backend::Hardware => code.iter_mut().zip(insn.encode_padded()).for_each(|(to, from)| *to = from),
        #[cfg(feature = "std")]
        Backend::Elided => {}
        #[cfg(feature = "std")]
        Backend::Bus => {
            let description = super::trampoline::encode(insn, style.layout.depth_at_io());
            code.iter_mut().zip(description.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
    }
}

/// INT3 up to the next boundary.
fn pad<S: CodeSink>(ops: &mut S, origin: usize) {
    let len = ops.offset() - origin;
    (len..len.next_multiple_of(ALIGN)).for_each(|_| ops.push(0xcc));
}
