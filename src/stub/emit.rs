//! Emits one stub.

use dynasm::dynasm;

use super::payload::{Accesses, Marks, Payload, PayloadProblem, emit_access};
use super::sink::Counter;
use super::{CodeSink, Helper, StubLayout, StubStyle};
use crate::IoInsn;
use crate::helpers::{Landing, emit_epilogue, emit_loads, emit_prologue, emit_return, emit_saves, emit_stop};

/// Where the parts of an emitted stub are, as offsets from its first byte: what it takes to resume past a fault, and to
/// copy the stub.
#[derive(Clone, Debug, Default)]
pub(crate) struct StubShape {
    /// Length of the stub.
    pub len: u16,
    /// Where `<io>` starts and ends.
    pub io: (u16, u16),
    /// What is in it.
    pub marks: Marks,
    /// Whether it is of INS or OUTS.
    pub is_string: bool,
    /// Why a quirk's payload is refused.
    pub problem: Option<PayloadProblem>,
}

impl StubShape {
    /// If a fault at `offset` within the stub is one of the I/O's own: where it lands.
    pub fn landing(&self, offset: usize) -> Option<Landing> {
        let within = offset.checked_sub(self.io.0.into()).filter(|_| offset < self.io.1.into())?;
        Some(match self.marks.landing(within) {
            Landing::Plain(0) if self.is_string => Landing::String,
            landing => landing,
        })
    }

    /// The instructions at which an access can fault.
    pub fn accesses(&self) -> impl Iterator<Item = usize> {
        self.marks.accesses().map(|offset| usize::from(self.io.0) + offset)
    }

    /// Ends of the 32-bit displacements to helpers.
    pub fn branches(&self) -> impl Iterator<Item = usize> {
        self.marks.branches().map(|offset| usize::from(self.io.0) + offset)
    }
}

/// What a quirk puts in the place of the instruction.
pub(crate) trait Body {
    /// The port that it is for.
    fn port(&self) -> u16;

    /// The instructions in the place of which it can stand.
    fn forms(&self) -> [Option<IoInsn>; 2];

    /// Emits it, in the place of `insn`.
    fn emit(&self, payload: &mut Payload<'_>, insn: IoInsn);

    /// What it has on the stack and, if somebody wants to know, which accesses it makes, without code.
    fn survey(
        &self,
        style: &StubStyle,
        insn: IoInsn,
        marks: &mut Marks,
        accesses: Option<&mut Accesses>,
    ) -> Option<PayloadProblem>
    where
        Self: Sized,
    {
        let mut nowhere = Counter::default();
        let mut payload = Payload::new(&mut nowhere, style, (self.port(), insn), marks, accesses);
        self.emit(&mut payload, insn);
        payload.finish()
    }
}

/// Emits one stub for `insn`, or for what a quirk puts in its place.
#[inline(always)]
pub(crate) fn emit_stub<S: CodeSink>(
    ops: &mut S,
    style: &StubStyle,
    insn: IoInsn,
    body: Option<&dyn Body>,
) -> StubShape {
    let mut shape = StubShape::default();
    emit_stub_into(ops, style, insn, body, &mut shape);
    shape
}

/// As [`emit_stub`], for callers that have the shape already: a kernel's stack is small.
#[inline(never)]
fn emit_stub_into<S: CodeSink>(
    ops: &mut S,
    style: &StubStyle,
    insn: IoInsn,
    body: Option<&dyn Body>,
    shape: &mut StubShape,
) {
    let start = ops.offset();
    if style.endbr64 {
        emit_endbr64(ops);
    }
    let is_string = body.is_none() && insn.is_string();
    if is_string {
        emit_direction(ops, style);
    }
    shape.is_string = is_string;
    emit_switch(ops, style, insn, body, start, shape);
}

/// ENDBR64, of which dynasm does not know. Its bytes are put together here: standing in this crate's own code as they
/// are, they would be a landing pad for an indirect branch.
pub(crate) fn emit_endbr64<S: CodeSink + ?Sized>(ops: &mut S) {
    let complement = core::hint::black_box([0x0c_u8, 0xf0, 0xe1, 0x05]);
    complement.into_iter().for_each(|byte| ops.push(!byte));
}

/// What INS and OUTS have in front of the stub. They run with DF clear; a caller whose DF is set, which the psABI
/// forbids, gets it back set, after a fault too.
fn emit_direction<S: CodeSink + ?Sized>(ops: &mut S, style: &StubStyle) {
    const DF_IN_AH: i8 = 1 << 2;
    dynasm!(ops ; .arch x64
        ; pushfq
        ; pop rax
        ; test ah, BYTE DF_IN_AH
        ; jz BYTE >ioemul_forwards
        ; cld
        ; call >ioemul_forwards
        ; std
    );
    emit_return(ops, style.returns);
    dynasm!(ops ; .arch x64 ; ioemul_forwards:);
}

/// Registers in, `<io>`, registers out.
fn emit_switch<S: CodeSink>(
    ops: &mut S,
    style: &StubStyle,
    insn: IoInsn,
    body: Option<&dyn Body>,
    start: usize,
    shape: &mut StubShape,
) {
    let StubStyle { layout, returns, ref registers, .. } = *style;
    let StubShape { marks, problem, .. } = shape;
    match layout {
        StubLayout::CallRet => {
            emit_prologue(ops);
            dynasm!(ops ; .arch x64 ; call =>Helper::LoadGuestGprs);
        }
        StubLayout::Compact => dynasm!(ops ; .arch x64 ; call =>Helper::EnterGuest),
        StubLayout::Rop => dynasm!(ops ; .arch x64 ; call =>Helper::HostToGuest),
        StubLayout::Inline => {
            emit_prologue(ops);
            emit_loads(ops, registers);
        }
    }
    let io = ops.offset();
    match body {
        None => {
            let (bytes, len) = padded(insn);
            emit_access(ops, style, insn, bytes.get(..len).unwrap_or_default(), marks, io);
        }
        Some(body) => {
            let mut payload = Payload::new(ops, style, (body.port(), insn), marks, None);
            body.emit(&mut payload, insn);
            *problem = payload.finish();
        }
    }
    let io_end = ops.offset();
    // The head's displacement ends where `<io>` begins.
    if layout != StubLayout::Inline {
        marks.branch(0);
    }
    match layout {
        StubLayout::CallRet => {
            dynasm!(ops ; .arch x64 ; call =>Helper::SaveGuestGprs);
            marks.branch(ops.offset() - io);
            emit_epilogue(ops, style);
        }
        StubLayout::Compact => {
            dynasm!(ops ; .arch x64 ; jmp =>Helper::LeaveGuest);
            marks.branch(ops.offset() - io);
            emit_stop(ops, returns);
        }
        StubLayout::Rop => emit_return(ops, returns),
        StubLayout::Inline => {
            dynasm!(ops ; .arch x64
                ; jmp BYTE >ioemul_transferred // the control transfer that an SMI may be waiting for
                ; ioemul_transferred:
            );
            emit_saves(ops, registers, 0);
            emit_epilogue(ops, style);
        }
    }
    if returns.thunk && layout != StubLayout::Compact {
        marks.branch(ops.offset() - usize::from(returns.int3) - io);
    }
    let at = |offset: usize| u16::try_from(offset - start).unwrap_or(u16::MAX);
    (shape.len, shape.io) = (at(ops.offset()), (at(io), at(io_end)));
    if shape.len == u16::MAX {
        // The longest payload whose pushes can be recorded is far shorter.
        shape.problem = shape.problem.or(Some(PayloadProblem::Unbalanced));
    }
}

/// The instruction as plain stubs hold it: IN and OUT in three bytes, INS and OUTS in four, whatever the form.
fn padded(insn: IoInsn) -> ([u8; 4], usize) {
    if !insn.is_string() {
        let [prefix, opcode, last] = insn.encode_padded();
        return ([prefix, opcode, last, 0], 3);
    }
    let (bytes, len) = insn.encode();
    let mut padded = [0x90; 4];
    padded.iter_mut().rev().zip(bytes.iter().take(len).rev()).for_each(|(to, from)| *to = *from);
    (padded, 4)
}
