//! Emits one stub.

use dynasm::dynasm;

use super::payload::{Payload, StackMap, emit_access};
use super::{CodeSink, Helper, StubLayout, StubStyle};
use crate::helpers::{emit_epilogue, emit_loads, emit_prologue, emit_return, emit_saves, emit_stop};
use crate::{IoInsn, Quirk};

/// Where the parts of an emitted stub are, as offsets from its first byte: what it takes to resume past a fault.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StubShape {
    /// Length of the stub.
    pub len: usize,
    /// Where `<io>` starts and ends.
    pub io: (usize, usize),
    /// The stub's own epilogue; `None` where it is in a helper.
    pub epilogue: Option<usize>,
    /// How much the payload has pushed, instruction by instruction.
    pub stack: StackMap,
}

impl StubShape {
    /// If a fault at `offset` within the stub is one of the I/O's own: by how many bytes RSP has to be raised there for
    /// the epilogue to find its frame.
    pub fn rsp_adjust(&self, layout: StubLayout, offset: usize) -> Option<u8> {
        (self.io.0..self.io.1).contains(&offset).then(|| layout.depth_at_io() + self.stack.depth_at(offset - self.io.0))
    }
}

/// Emits one stub for `insn`, or for what `quirk` puts in its place.
pub(crate) fn emit_stub<S: CodeSink>(ops: &mut S, style: &StubStyle, insn: IoInsn, quirk: Option<&Quirk>) -> StubShape {
    let start = ops.offset();
    let StubStyle { layout, returns, .. } = *style;
    if style.endbr64 {
        ops.extend(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64: dynasm knows no such mnemonic
    }
    match layout {
        StubLayout::CallRet => {
            emit_prologue(ops);
            dynasm!(ops ; .arch x64 ; call =>Helper::LoadGuestGprs);
        }
        StubLayout::Compact => dynasm!(ops ; .arch x64 ; call =>Helper::EnterGuest),
        StubLayout::Rop => dynasm!(ops ; .arch x64 ; call =>Helper::HostToGuest),
        StubLayout::Inline => {
            emit_prologue(ops);
            emit_loads(ops);
        }
    }
    let io = ops.offset();
    let stack = match quirk {
        None if !insn.is_string() => {
            let mut stack = StackMap::default();
            emit_access(ops, style, insn, &insn.encode_padded(), &mut stack, io);
            stack
        }
        _ => {
            let mut payload = Payload::new(ops, style);
            match quirk {
                Some(quirk) => quirk.emit(&mut payload, style.ring),
                None => payload.string(insn),
            }
            payload.finish()
        }
    };
    let io_end = ops.offset();
    let epilogue = match layout {
        StubLayout::CallRet => {
            dynasm!(ops ; .arch x64 ; call =>Helper::SaveGuestGprs);
            let epilogue = ops.offset();
            emit_epilogue(ops, returns);
            Some(epilogue)
        }
        StubLayout::Compact => {
            dynasm!(ops ; .arch x64 ; jmp =>Helper::LeaveGuest);
            emit_stop(ops, returns);
            None
        }
        StubLayout::Rop => {
            emit_return(ops, returns);
            None
        }
        StubLayout::Inline => {
            ops.extend(&[0xeb, 0x00]); // jmp short +0: the control transfer that an SMI may be waiting for
            emit_saves(ops, 0);
            let epilogue = ops.offset();
            emit_epilogue(ops, returns);
            Some(epilogue)
        }
    };
    StubShape {
        len: ops.offset() - start,
        io: (io - start, io_end - start),
        epilogue: epilogue.map(|at| at - start),
        stack,
    }
}
