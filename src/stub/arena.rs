//! A whole table of stubs in one piece of memory, and the way from an address in it to the place where a fault resumes.
//!
//! ```text
//!   helpers | padding | stub 0 | padding | stub 1 | … | stub 1541 | string stubs | quirk stubs
//!                     └── stride ────────┘
//! ```
//!
//! The stubs of IN and OUT all have one shape, and so have those of INS and OUTS: a form's stub is found by
//! multiplication.

use crate::helpers::emit_helpers;
use crate::{Gprs, IoInsn, Quirk};

use super::emit::{StubShape, emit_stub};
use super::{CodeSink, StubLayout, StubStyle};

/// Stubs start on this boundary: a fetch block of the front end.
const ALIGN: usize = 16;

/// Where everything is in an emitted table, as offsets from its first byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arena {
    layout: StubLayout,
    /// The epilogue that stubs without one of their own share.
    helper_epilogue: Option<usize>,
    /// IN and OUT.
    plain: Group,
    /// INS and OUTS.
    strings: Group,
    /// End of the last stub, quirks included.
    pub len: usize,
}

/// Stubs of one shape, one after the other.
#[derive(Clone, Copy, Debug)]
struct Group {
    first: usize,
    stride: usize,
    count: usize,
    shape: StubShape,
}

impl Group {
    fn emit<S: CodeSink>(ops: &mut S, origin: usize, style: &StubStyle, forms: impl Iterator<Item = IoInsn>) -> Self {
        let first = ops.offset() - origin;
        let (mut count, mut shape) = (0, StubShape::default());
        for insn in forms {
            shape = emit_stub(ops, style, insn, None);
            pad(ops, origin);
            count += 1;
        }
        Self { first, stride: shape.len.next_multiple_of(ALIGN), count, shape }
    }

    #[inline]
    fn stub(&self, index: usize) -> (usize, usize) {
        (self.first + index * self.stride, self.shape.len)
    }

    /// The stub that holds an offset.
    fn holding(&self, offset: usize) -> Option<(usize, &StubShape)> {
        let past = offset.checked_sub(self.first).filter(|past| *past < self.count * self.stride)?;
        Some((offset - past % self.stride, &self.shape))
    }
}

/// The stub of a quirk, behind the plain ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuirkStub {
    pub quirk: Quirk,
    pub at: usize,
    pub shape: StubShape,
}

/// Where execution resumes after a fault in a stub's I/O, for a host's exception table.
///
/// Control goes on at the stub's own epilogue, with the register file in memory as it was given: set RIP to `resume`, add
/// `rsp_adjust` to RSP, and RAX to anything that the caller can tell from the 0 which a stub returns otherwise. No frame
/// is popped by hand and a shadow stack stays in step. (After a fault in INS or OUTS the CPU's RCX, RSI and RDI say how far
/// it got, and DF is clear whatever the caller's was.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixup {
    /// The address to go on at.
    pub resume: u64,
    /// Bytes to add to RSP: what the I/O sequence had pushed.
    pub rsp_adjust: u8,
}

impl Arena {
    /// Emits helpers, every plain stub, and a stub for each quirk, which is handed to `placed`.
    pub fn emit<S: CodeSink>(
        ops: &mut S,
        style: &StubStyle,
        quirks: &[Quirk],
        mut placed: impl FnMut(QuirkStub),
    ) -> Self {
        let origin = ops.offset();
        let helper_epilogue = emit_helpers(ops, style.layout, style.returns).map(|at| at - origin);
        #[cfg(feature = "std")]
        if style.backend == super::style::Backend::Bus {
            super::trampoline::emit_trampoline(ops);
        }
        pad(ops, origin);
        let plain = Group::emit(ops, origin, style, IoInsn::in_out());
        let strings = Group::emit(ops, origin, style, IoInsn::strings());
        for &quirk in quirks {
            let at = ops.offset() - origin;
            let shape = emit_stub(ops, style, IoInsn::in_dx(crate::Width::Byte), Some(&quirk));
            pad(ops, origin);
            placed(QuirkStub { quirk, at, shape });
        }
        Self { layout: style.layout, helper_epilogue, plain, strings, len: ops.offset() - origin }
    }

    /// First byte and length of the stub of a form.
    #[inline]
    pub fn stub(&self, insn: IoInsn) -> (usize, usize) {
        match insn.index().checked_sub(IoInsn::COUNT) {
            None => self.plain.stub(insn.index()),
            Some(index) => self.strings.stub(index),
        }
    }

    /// If the instruction `offset` bytes into the table is in the I/O of INS or OUTS: how many bytes that has pushed there.
    #[cfg(feature = "std")]
    pub fn string_depth(&self, offset: usize) -> Option<u8> {
        let (at, shape) = self.strings.holding(offset)?;
        Some(shape.stack.depth_at((offset - at).checked_sub(shape.io.0)?))
    }

    /// Where a fault at the instruction `offset` bytes into the table resumes (an offset again), and by how much RSP is
    /// raised there. `None`: there is no I/O instruction there.
    pub fn fixup(&self, quirks: &[QuirkStub], offset: usize) -> Option<(usize, u8)> {
        let quirk = || quirks.iter().rfind(|stub| stub.at <= offset).map(|stub| (stub.at, &stub.shape));
        let (at, shape) = self.plain.holding(offset).or_else(|| self.strings.holding(offset)).or_else(quirk)?;
        let rsp_adjust = shape.rsp_adjust(self.layout, offset - at)?;
        let resume = shape.epilogue.map(|epilogue| at + epilogue).or(self.helper_epilogue)?;
        Some((resume, rsp_adjust))
    }
}

/// The first quirk that takes the access.
#[inline]
pub(crate) fn resolve<'q>(quirks: &'q [QuirkStub], insn: IoInsn, gprs: &Gprs) -> Option<&'q QuirkStub> {
    quirks.iter().find(|stub| stub.quirk.applies(insn, gprs))
}

/// INT3 up to the next boundary.
fn pad<S: CodeSink>(ops: &mut S, origin: usize) {
    let len = (ops.offset() - origin).next_multiple_of(ALIGN) - (ops.offset() - origin);
    ops.extend(&[0xcc; ALIGN][..len]);
}
