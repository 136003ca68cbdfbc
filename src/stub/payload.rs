//! What stands between the loads and the saves of a stub: the I/O instruction, or a quirk's sequence around it.

use dynasm::dynasm;

use super::style::{Backend, StubStyle};
use super::{CodeSink, Helper};
use crate::IoInsn;

/// The assembler handed to a quirk's payload: `dynasm!` writes to it, and I/O instructions go through [`Self::io`].
///
/// The payload runs with the guest's registers loaded and must come to its end with RSP as it found it. It may use the
/// stack (whatever it pushes, it says so with [`Self::pushed`] and [`Self::popped`], so that a fault in between can be
/// resumed with RSP put right) but nothing below RSP, and local labels, but no global ones.
pub struct Payload<'a> {
    ops: &'a mut dyn CodeSink,
    style: &'a StubStyle,
    start: usize,
    stack: StackMap,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(ops: &'a mut dyn CodeSink, style: &'a StubStyle) -> Self {
        let start = ops.offset();
        Self { ops, style, start, stack: StackMap::default() }
    }

    pub(crate) fn finish(self) -> StackMap {
        self.stack
    }

    /// Emits an I/O instruction, in its shortest encoding. On a [`SoftwareBus`](crate::SoftwareBus) this is a call into
    /// the device model, in a benchmark table a no-op: a payload never writes the opcode itself.
    pub fn io(&mut self, insn: IoInsn) {
        let (bytes, len) = insn.encode();
        self.access(insn, &bytes[..len]);
    }

    /// INS and OUTS, in four bytes whatever the form, with DF clear; it is as it was afterwards.
    pub(crate) fn string(&mut self, insn: IoInsn) {
        const DF: i32 = 1 << 10;
        dynasm!(self ; .arch x64 ; pushfq);
        self.pushed(8);
        dynasm!(self ; .arch x64 ; cld);
        let (bytes, len) = insn.encode();
        let mut padded = [0x90; IoInsn::MAX_ENCODED];
        padded[IoInsn::MAX_ENCODED - len..].copy_from_slice(&bytes[..len]);
        self.access(insn, &padded);
        // The flags as the I/O left them, but for DF, which is the caller's. No register is free for this.
        dynasm!(self ; .arch x64
            ; pushfq
            ; test DWORD [BYTE rsp + 8], DF
            ; jz BYTE >forward
            ; or DWORD [rsp], DF
            ; forward:
            ; popfq
            ; lea rsp, [BYTE rsp + 8]
        );
        self.popped(8);
    }

    fn access(&mut self, insn: IoInsn, encoding: &[u8]) {
        emit_access(self.ops, self.style, insn, encoding, &mut self.stack, self.start);
    }

    /// States that the instruction just emitted pushed `bytes` onto the stack.
    pub fn pushed(&mut self, bytes: u8) {
        self.stack.change(self.ops.offset() - self.start, i16::from(bytes));
    }

    /// States that the instruction just emitted popped `bytes` off the stack.
    pub fn popped(&mut self, bytes: u8) {
        self.stack.change(self.ops.offset() - self.start, -i16::from(bytes));
    }
}

/// Emits an access, or what the backend has in its place. `stack` is what has been pushed since `start`, where `<io>`
/// begins.
#[cfg_attr(not(feature = "std"), allow(unused_variables))] // only a bus asks which instruction it is, and how deep
#[inline]
pub(crate) fn emit_access<S: CodeSink + ?Sized>(
    ops: &mut S,
    style: &StubStyle,
    insn: IoInsn,
    encoding: &[u8],
    stack: &mut StackMap,
    start: usize,
) {
    match style.backend {
        Backend::Hardware => ops.extend(encoding),
        #[cfg(feature = "std")]
        Backend::Elided => ops.extend(match encoding.len() {
            1 => &[0x90],
            2 => &[0x66, 0x90],
            3 => &[0x0f, 0x1f, 0x00],
            _ => &[0x0f, 0x1f, 0x40, 0x00],
        }),
        #[cfg(feature = "std")]
        Backend::Bus => {
            let depth = style.layout.depth_at_io() + stack.depth_at(ops.offset() - start);
            super::trampoline::emit_description(ops, insn, depth);
            stack.change(ops.offset() - start, 8);
            super::trampoline::emit_call(ops);
            stack.change(ops.offset() - start, -8);
        }
    }
}

impl CodeSink for Payload<'_> {
    fn offset(&self) -> usize {
        self.ops.offset()
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.ops.extend(bytes);
    }

    fn local_label(&mut self, name: &'static str) {
        self.ops.local_label(name);
    }

    fn dynamic_label(&mut self, helper: Helper) {
        self.ops.dynamic_label(helper);
    }

    fn forward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.ops.forward_reloc(name, target_offset, field_offset, ref_offset, kind);
    }

    fn backward_reloc(&mut self, name: &'static str, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.ops.backward_reloc(name, target_offset, field_offset, ref_offset, kind);
    }

    fn dynamic_reloc(&mut self, helper: Helper, target_offset: isize, field_offset: u8, ref_offset: u8, kind: u8) {
        self.ops.dynamic_reloc(helper, target_offset, field_offset, ref_offset, kind);
    }
}

/// How many bytes a payload has on the stack, by offset into the payload.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StackMap {
    /// From this offset on, so many bytes. In the order of the offsets; the first `len` are in use.
    offsets: [u16; Self::MAX],
    depths: [u8; Self::MAX],
    len: u8,
    /// A push or pop that does not fit: the payload is refused.
    invalid: bool,
}

impl StackMap {
    /// A push and a pop for each access on a bus, and what a payload needs besides.
    const MAX: usize = 16;

    pub fn depth_at(&self, offset: usize) -> u8 {
        let in_force = self.offsets[..usize::from(self.len)].iter().rposition(|from| usize::from(*from) <= offset);
        in_force.map_or(0, |step| self.depths[step])
    }

    /// Whether every push and pop could be recorded, and they cancel out.
    pub fn is_balanced(&self) -> bool {
        !self.invalid && self.depth_at(usize::MAX) == 0
    }

    fn change(&mut self, offset: usize, by: i16) {
        let depth = u8::try_from(i16::from(self.depth_at(offset)) + by);
        // A word of head room: the depth is added to the layout's, and both have to fit a byte.
        match (usize::from(self.len), u16::try_from(offset), depth) {
            (step @ 0..Self::MAX, Ok(offset), Ok(depth @ 0..=240)) => {
                (self.offsets[step], self.depths[step]) = (offset, depth);
                self.len += 1;
            }
            _ => self.invalid = true,
        }
    }
}
