//! A whole table of stubs in one piece of memory, and the way from an address in it to the place where a fault resumes.
//!
//! ```text
//!   helpers | landing pads | string stubs | quirk stubs | stub 0 | stub 1 | … | stub 1541
//!                                                       └ stride ┘
//! ```
//!
//! The stubs of IN and OUT all have one shape, and so have those of INS and OUTS: a form's stub is found by
//! multiplication. The assembler emits everything up to stub 0; the others are [copies](Arena::write_copies) of it.

use arrayvec::ArrayVec;

use super::emit::{Body, StubShape, emit_stub};
use super::payload::Marks;
use super::style::Backend;
use super::{CodeSink, StubStyle};
use crate::helpers::{Depths, Landing, Pads, emit_helpers, emit_pads};
use crate::{IoInsn, Width};

/// Stubs start on this boundary: a fetch block of the front end.
pub(crate) const ALIGN: usize = 16;

/// Where everything is in an emitted table, as offsets from its first byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arena {
    pads: Pads,
    is_for_bus: bool,
    /// INS and OUTS.
    strings: Group,
    /// IN and OUT.
    plain: Group,
}

/// Stubs of one shape, one after the other.
#[derive(Clone, Debug, Default)]
struct Group {
    first: u32,
    stride: u16,
    count: u16,
    /// Length of each.
    len: u16,
    /// Where its `<io>` starts and ends.
    io: (u16, u16),
    /// Ends of its displacements to helpers.
    branches: ArrayVec<u16, { Marks::MAX_BRANCHES }>,
}

impl Group {
    #[inline(never)]
    fn emit<S: CodeSink>(ops: &mut S, style: &StubStyle, forms: impl Iterator<Item = IoInsn>) -> Self {
        let mut group = Self { first: ops.offset() as u32, ..Self::default() };
        for insn in forms {
            let shape = emit_stub(ops, style, insn, None);
            pad(ops);
            (group.len, group.io) = (shape.len, shape.io);
            group.branches = super::as_many_as_fit(shape.branches().map(|end| end as u16));
            group.count += 1;
        }
        group.stride = group.len.next_multiple_of(ALIGN as u16);
        group
    }

    #[inline]
    fn stub(&self, index: usize) -> (usize, usize) {
        (self.first as usize + index * usize::from(self.stride), self.len.into())
    }

    /// How far an offset is from the start of the `<io>` that it is in.
    fn within_io(&self, offset: usize) -> Option<usize> {
        let len = usize::from(self.count) * usize::from(self.stride);
        let past = offset.checked_sub(self.first as usize).filter(|past| *past < len)?;
        let within = past.checked_rem(self.stride.into())?;
        within.checked_sub(self.io.0.into()).filter(|_| within < self.io.1.into())
    }
}

impl Arena {
    /// Emits, into a sink that is empty, helpers, landing pads, the stubs of INS and OUTS, those of `bodies` (`placed`
    /// is told of each which it is, where it is and how it looks), and the first stub of IN and OUT.
    pub fn emit<S: CodeSink, B: Body>(
        &mut self,
        ops: &mut S,
        style: &StubStyle,
        depths: Depths,
        bodies: &[B],
        placed: &mut dyn FnMut(usize, IoInsn, usize, &StubShape),
    ) {
        self.pads = emit_head(ops, style, depths);
        pad(ops);
        self.strings = Group::emit(ops, style, IoInsn::strings());
        for (index, body) in bodies.iter().enumerate() {
            for insn in body.forms().into_iter().flatten() {
                let at = ops.offset();
                let shape = emit_stub(ops, style, insn, Some(body));
                pad(ops);
                placed(index, insn, at, &shape);
            }
        }
        self.is_for_bus = style.words_at_access() > 0;
        let plain = [IoInsn::in_dx(Width::Byte)];
        self.plain = Group { count: IoInsn::COUNT as u16, ..Group::emit(ops, style, plain.into_iter()) };
    }

    /// Fills `code`, which holds the table up to the first stub of IN and OUT, with the others. `false`: it is too
    /// short.
    #[must_use]
    pub fn write_copies(&self, style: &StubStyle, code: &mut [u8]) -> bool {
        let Group { first, stride, io, ref branches, .. } = self.plain;
        let Some((_, stubs)) = code.split_at_mut_checked(first as usize) else { return false };
        let Some((first, others)) = stubs.split_at_mut_checked(stride.into()) else { return false };
        let (mut forms, form_at) = (IoInsn::in_out(), form_at(style, io.0));
        let _first = forms.next();
        // Where the displacements are, and what they are in the first.
        let fields: ArrayVec<(u16, i32), { Marks::MAX_BRANCHES }> = super::as_many_as_fit(branches.iter().map(|end| {
            let at = end.saturating_sub(4);
            let field = first.get(at.into()..).and_then(|field| field.first_chunk());
            (at, field.map_or(0, |field| i32::from_le_bytes(*field)))
        }));
        let mut distance = 0;
        for copy in others.chunks_exact_mut(usize::from(stride).max(1)) {
            let Some(insn) = forms.next() else { break };
            // Stubs are whole blocks long.
            for (to, from) in copy.chunks_exact_mut(ALIGN).zip(first.chunks_exact(ALIGN)) {
                to.copy_from_slice(from);
            }
            distance += i32::from(stride);
            for (at, displacement) in &fields {
                if let Some(field) = copy.get_mut(usize::from(*at)..).and_then(|field| field.first_chunk_mut()) {
                    *field = displacement.wrapping_sub(distance).to_le_bytes();
                }
            }
            write_form(style, insn, copy.get_mut(form_at..).unwrap_or_default());
        }
        forms.next().is_none()
    }

    /// How long the table is, all stubs included.
    pub fn len(&self) -> usize {
        self.plain.stub(self.plain.count.into()).0
    }

    /// First byte and length of the stub of a form.
    #[inline]
    pub fn stub(&self, insn: IoInsn) -> (usize, usize) {
        match insn.index().checked_sub(IoInsn::COUNT) {
            None => self.plain.stub(insn.index()),
            Some(index) => self.strings.stub(index),
        }
    }

    /// Where a fault at the instruction `offset` bytes into the table resumes (an offset again), in a stub without a
    /// quirk.
    /// `None`: there is no I/O instruction there.
    pub fn fixup(&self, offset: usize) -> Option<usize> {
        let landing = |group: &Group, landing: Landing| match group.within_io(offset)? {
            // On a bus, what is behind the push has a word more on the stack.
            within if self.is_for_bus && within > 0 => Some(Landing::Plain(1)),
            _ => Some(landing),
        };
        let landing = landing(&self.plain, Landing::Plain(0)).or_else(|| landing(&self.strings, Landing::String))?;
        Some(self.pad(landing))
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
            self.strings.stub(index).0 + usize::from(self.strings.io.0) + padding
        })
    }

    /// The same of IN and OUT.
    pub fn plain_accesses(&self) -> impl Iterator<Item = usize> {
        // An instruction of 16 bits starts with its prefix, where those of others have a no-op.
        IoInsn::in_out().enumerate().map(|(index, insn)| {
            let padding = usize::from(insn.width != Width::Word);
            self.plain.stub(index).0 + usize::from(self.plain.io.0) + padding
        })
    }
}

/// Where the bytes of a plain stub are that the form decides, `<io>` being at `io`.
pub(crate) fn form_at(style: &StubStyle, io: u16) -> usize {
    match style.backend {
        Backend::Hardware => io.into(),
        #[cfg(feature = "std")]
        Backend::Elided => io.into(),
        #[cfg(feature = "std")]
        Backend::Bus => usize::from(io) + 1, // behind the opcode of PUSH
    }
}

/// Writes them.
#[inline]
pub(crate) fn write_form(style: &StubStyle, insn: IoInsn, code: &mut [u8]) {
    match style.backend {
        Backend::Hardware => write_chunk(code, insn.encode_padded()),
        #[cfg(feature = "std")]
        Backend::Elided => {}
        #[cfg(feature = "std")]
        Backend::Bus => {
            write_chunk(code, super::trampoline::encode(insn, style.layout.depth_at_io()).to_le_bytes());
        }
    }
}

#[inline(always)]
fn write_chunk<const N: usize>(code: &mut [u8], bytes: [u8; N]) {
    if let Some(room) = code.first_chunk_mut() {
        *room = bytes;
    }
}

/// Helpers and landing pads. (On a frame of its own: a kernel's stack is small.)
#[inline(never)]
fn emit_head<S: CodeSink>(ops: &mut S, style: &StubStyle, depths: Depths) -> Pads {
    emit_helpers(ops, style);
    let pads = emit_pads(ops, style, depths);
    #[cfg(feature = "std")]
    if style.backend == Backend::Bus {
        super::trampoline::emit_trampoline(ops);
    }
    pads
}

/// INT3 up to the next boundary.
fn pad<S: CodeSink>(ops: &mut S) {
    let len = ops.offset();
    (len..len.next_multiple_of(ALIGN)).for_each(|_| ops.push(0xcc));
}
