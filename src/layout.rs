//! The four stub layouts, and the emitter of one stub.
//!
//! ```text
//!  CallRet, 36 bytes          Compact, 13 bytes       Rop, 9 bytes              Inline
//!  ─────────────────────      ───────────────────     ─────────────────────     ──────────────────
//!  push rbx … r15, rdi        call enter_guest        call host_to_guest        push rbx … r15, rdi
//!  call load_guest_gprs       <io>                    <io>                      load 15 registers
//!  <io>                       jmp leave_guest         ret → guest_to_host       <io>
//!  call save_guest_gprs                                                         jmp short +0
//!  pop rdi, r15 … rbx                                                           save 15 and flags
//!  ret                                                                          pop …, ret
//! ```
//!
//! Behind `<io>` there is always a control transfer before the first register is saved. An SMI that the access raises
//! may be taken only there (under emulation it is), and a save before it would store what was in the register before
//! the SMM handler ran.

use dynasm::dynasm;

use crate::helpers::{Returns, emit_epilogue, emit_loads, emit_prologue, emit_return, emit_saves, emit_stop};
use crate::payload::{Payload, StackMap, emit_access};
use crate::{CodeSink, Helper, IoInsn, Quirk, Ring};

/// How a stub switches registers around its I/O instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// Prologue, call to a load helper, I/O, call to a save helper, epilogue: 36 bytes, every RET paired with a CALL.
    #[default]
    CallRet,
    /// **A measurement mode.** The historic layout of 9 bytes: the first helper leaves the address of the second one on
    /// the stack, where the stub's RET finds it. That RET, and with it every RET of the callers further out, is
    /// mispredicted. Refused where a user shadow stack is active, which would raise #CP.
    Rop,
    /// 13 bytes, and every RET paired with a CALL: `call enter_guest; <io>; jmp leave_guest`, the helpers doing the
    /// stub's pushes and pops.
    Compact,
    /// No helper at all: about 160 bytes for each stub.
    Inline,
}

impl Layout {
    /// All layouts, the default first.
    pub const ALL: [Layout; 4] = [Layout::CallRet, Layout::Rop, Layout::Compact, Layout::Inline];

    /// Length in bytes of a stub of IN or OUT that neither a quirk nor an option of the host makes longer.
    pub const fn stub_len(self) -> usize {
        match self {
            Layout::CallRet => 36,
            Layout::Rop => 9,
            Layout::Compact => 13,
            Layout::Inline => 163,
        }
    }

    /// Bytes on the stack between RSP at the I/O and the pointer to the register file.
    pub(crate) const fn depth_at_io(self) -> u8 {
        match self {
            Layout::Rop => 8, // the address of guest_to_host
            Layout::CallRet | Layout::Compact | Layout::Inline => 0,
        }
    }
}

/// What stands in the place of `<io>` when no quirk replaces it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The instruction itself.
    #[default]
    Hardware,
    /// A no-op of the same length, for benchmarks.
    #[cfg(feature = "std")]
    Elided,
    /// A call into a device model.
    #[cfg(feature = "std")]
    Bus,
}

/// Everything that decides a stub's bytes, but for the instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StubStyle {
    pub layout: Layout,
    pub backend: Backend,
    pub endbr64: bool,
    pub returns: Returns,
    pub ring: Ring,
}

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
    pub fn rsp_adjust(&self, layout: Layout, offset: usize) -> Option<u8> {
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
        Layout::CallRet => {
            emit_prologue(ops);
            dynasm!(ops ; .arch x64 ; call =>Helper::LoadGuestGprs);
        }
        Layout::Compact => dynasm!(ops ; .arch x64 ; call =>Helper::EnterGuest),
        Layout::Rop => dynasm!(ops ; .arch x64 ; call =>Helper::HostToGuest),
        Layout::Inline => {
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
        Layout::CallRet => {
            dynasm!(ops ; .arch x64 ; call =>Helper::SaveGuestGprs);
            let epilogue = ops.offset();
            emit_epilogue(ops, returns);
            Some(epilogue)
        }
        Layout::Compact => {
            dynasm!(ops ; .arch x64 ; jmp =>Helper::LeaveGuest);
            emit_stop(ops, returns);
            None
        }
        Layout::Rop => {
            emit_return(ops, returns);
            None
        }
        Layout::Inline => {
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
