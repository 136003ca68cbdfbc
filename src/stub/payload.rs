//! What stands between the loads and the saves of a stub: the I/O instruction, or a quirk's sequence around it.

use arrayvec::ArrayVec;
use dynasm::dynasm;

use super::style::{Backend, Ring, StubStyle};
use super::{CodeSink, Helper};
use crate::helpers::Landing;
use crate::{IoInsn, PortAccess, PortOperand};

/// The assembler handed to a quirk's payload: `dynasm!` writes to it, and I/O instructions go through [`Self::io`].
///
/// The payload runs with the guest's registers and status flags loaded and must come to its end with RSP as it found
/// it. It may use the stack (whatever it pushes, it says so with [`Self::pushed`] and [`Self::popped`], so that a fault
/// in between finds the landing pad for that depth) but nothing below RSP, and local labels, but no global ones. Labels
/// that start with `ioemul` are this crate's.
pub struct Payload<'a> {
    ops: &'a mut dyn CodeSink,
    style: &'a StubStyle,
    port: u16,
    /// Whether DX names the port at the start: not where the instruction has it in an immediate byte.
    in_dx: bool,
    start: usize,
    marks: &'a mut Marks,
    /// Where the accesses are written down, if somebody wants to know.
    accesses: Option<&'a mut Accesses>,
    problem: Option<PayloadProblem>,
}

/// So many accesses can a payload make.
const MAX_ACCESSES: usize = 8;

/// The accesses of a payload, each once.
pub(crate) type Accesses = ArrayVec<PortAccess, MAX_ACCESSES>;

/// Why a payload is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadProblem {
    /// Pushes and pops do not cancel out, are not of whole words, or are too many to be recorded.
    Unbalanced,
    /// More than [`MAX_ACCESSES`].
    TooManyAccesses,
    /// INS or OUTS.
    StringForm,
}

impl<'a> Payload<'a> {
    /// The payload of a quirk on `port`, in the place of `insn`.
    pub(crate) fn new(
        ops: &'a mut dyn CodeSink,
        style: &'a StubStyle,
        (port, insn): (u16, IoInsn),
        marks: &'a mut Marks,
        accesses: Option<&'a mut Accesses>,
    ) -> Self {
        let (start, in_dx) = (ops.offset(), insn.operand == PortOperand::Dx);
        Self { ops, style, port, in_dx, start, marks, accesses, problem: None }
    }

    pub(crate) fn finish(self) -> Option<PayloadProblem> {
        self.problem.or((!self.marks.is_balanced()).then_some(PayloadProblem::Unbalanced))
    }

    /// The privilege level that the payload will run at.
    pub fn ring(&self) -> Ring {
        self.style.ring
    }

    /// Whether the accesses are a [`SoftwareBus`](crate::SoftwareBus)'s: nothing happens there but in an access.
    pub(crate) fn is_for_bus(&self) -> bool {
        !matches!(self.style.backend, Backend::Hardware)
    }

    /// Emits an I/O instruction, in its shortest encoding. On a [`SoftwareBus`](crate::SoftwareBus) this is a call into
    /// the device model, in a benchmark table a no-op: a payload never writes the opcode itself.
    ///
    /// The access is recorded, and an emulator checks all of a quirk's accesses against its permissions before it makes
    /// the first one. So that it reaches no other port than it says, one through DX is made only if DX names the
    /// quirk's port at that moment, whatever firmware or device have written there; otherwise it is passed over.
    ///
    /// INS and OUTS are refused: the pointers that they follow are the guest's.
    pub fn io(&mut self, insn: IoInsn) {
        let untouched = self.in_dx && self.ops.offset() == self.start;
        match insn.operand {
            PortOperand::String { .. } => self.problem = self.problem.or(Some(PayloadProblem::StringForm)),
            PortOperand::Dx if !untouched => self.guarded(insn),
            _ => self.access(insn),
        }
    }

    /// An access of a quirk that is steps: nothing but an access can have changed DX there.
    pub(crate) fn step(&mut self, insn: IoInsn) {
        let untouched = self.in_dx && self.marks.accesses().next().is_none();
        match insn.operand {
            PortOperand::Dx if !untouched => self.guarded(insn),
            _ => self.access(insn),
        }
    }

    /// The instruction, if DX names the port.
    fn guarded(&mut self, insn: IoInsn) {
        let port = self.port as i16;
        dynasm!(self ; .arch x64 ; pushfq);
        self.pushed(8);
        dynasm!(self ; .arch x64
            ; cmp dx, WORD port
            ; jne BYTE >ioemul_elsewhere
            ; popfq
        );
        self.popped(8);
        self.access(insn);
        dynasm!(self ; .arch x64 ; jmp BYTE >ioemul_done ; ioemul_elsewhere:);
        self.pushed(8);
        dynasm!(self ; .arch x64 ; popfq ; ioemul_done:);
        self.popped(8);
    }

    /// The instruction, whatever DX names: for callers that have just checked it, or know.
    pub(crate) fn access(&mut self, insn: IoInsn) {
        let port = match insn.operand {
            PortOperand::Imm8(port) => port.into(),
            _ => self.port,
        };
        let access = PortAccess { port, width: insn.width, direction: insn.direction, insn };
        if let Some(accesses) = self.accesses.as_mut().filter(|accesses| !accesses.contains(&access)) {
            let _ = accesses.try_push(access); // as many as there are marks for
        }
        if self.marks.accesses().count() == MAX_ACCESSES {
            self.problem = self.problem.or(Some(PayloadProblem::TooManyAccesses));
        }
        let (bytes, len) = insn.encode();
        let encoding = bytes.get(..len).unwrap_or_default();
        emit_access(self.ops, self.style, insn, encoding, self.marks, self.start);
    }

    /// States that the instruction just emitted pushed `bytes` onto the stack: whole words of 8.
    pub fn pushed(&mut self, bytes: u8) {
        self.marks.change(self.ops.offset() - self.start, i16::from(bytes));
    }

    /// States that the instruction just emitted popped `bytes` off the stack.
    pub fn popped(&mut self, bytes: u8) {
        self.marks.change(self.ops.offset() - self.start, -i16::from(bytes));
    }

    /// `pushfq; cli`: faults will find the flags of before on the stack.
    pub(crate) fn mask_interrupts(&mut self) {
        dynasm!(self ; .arch x64 ; pushfq);
        self.marks.masked = true;
        self.pushed(8);
        dynasm!(self ; .arch x64 ; cli);
    }

    /// `popfq`: the inverse.
    pub(crate) fn unmask_interrupts(&mut self) {
        dynasm!(self ; .arch x64 ; popfq);
        self.marks.masked = false;
        self.popped(8);
    }
}

/// Emits an access, or what the backend has in its place. `marks` are relative to `start`, where `<io>` begins.
#[inline]
pub(crate) fn emit_access<S: CodeSink + ?Sized>(
    ops: &mut S,
    style: &StubStyle,
    #[cfg_attr(not(feature = "std"), allow(unused_variables))] insn: IoInsn,
    encoding: &[u8],
    marks: &mut Marks,
    start: usize,
) {
    // What a fault's RIP is: the first byte that is not a no-op.
    let padding = encoding.iter().take_while(|byte| **byte == 0x90).count();
    marks.access(ops.offset() + padding - start);
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
            let depth = style.layout.depth_at_io() + 8 * marks.words_at(ops.offset() - start);
            super::trampoline::emit_description(ops, insn, depth);
            marks.change(ops.offset() - start, 8);
            super::trampoline::emit_call(ops);
            marks.branch(ops.offset() - start - super::trampoline::BEHIND_CALL);
            marks.change(ops.offset() - start, -8);
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

/// What has to be known of `<io>` besides its bytes, by offset from its start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    /// From some offset on, so many words are on the stack: in the order of the offsets.
    depths: ArrayVec<Depth, { Self::MAX_DEPTHS }>,
    /// The instructions at which an access can fault.
    accesses: ArrayVec<u16, MAX_ACCESSES>,
    /// Ends of the 32-bit displacements to helpers.
    branches: ArrayVec<u16, { Self::MAX_BRANCHES }>,
    /// While the lowest word on the stack is the flags of before a CLI.
    masked: bool,
    /// A push or pop that does not fit: the payload is refused.
    invalid: bool,
}

/// An offset in ten bits, a number of words in five, and whether the lowest of them is the flags of before a CLI: a
/// kernel's stack is small.
#[derive(Clone, Copy, Debug, Default)]
struct Depth(u16);

impl Depth {
    fn new(offset: usize, words: i16, masked: bool) -> Option<Self> {
        let (offset, words) = (u16::try_from(offset).ok()?, u16::try_from(words).ok()?);
        // The flags of before a CLI are none of the payload's to pop.
        let fits = offset < 1 << 10 && (u16::from(masked)..=Marks::MAX_WORDS.into()).contains(&words);
        fits.then_some(Self(offset << 6 | words << 1 | u16::from(masked)))
    }

    fn offset(self) -> usize {
        (self.0 >> 6).into()
    }

    fn words(self) -> u8 {
        (self.0 >> 1) as u8 & 0x1f
    }

    fn masked(self) -> bool {
        self.0 & 1 != 0
    }
}

impl Marks {
    /// A push and a pop for each access on a bus, and what a payload needs besides.
    const MAX_DEPTHS: usize = 24;
    /// A head and a tail, a trampoline, and a return thunk.
    pub const MAX_BRANCHES: usize = 4;
    /// A word of head room: the depth in bytes is added to the layout's, and both have to fit a byte.
    const MAX_WORDS: u8 = 30;

    fn depth_at(&self, offset: usize) -> Depth {
        self.depths.iter().rfind(|depth| depth.offset() <= offset).copied().unwrap_or_default()
    }

    /// How many words are on the stack at the instruction at `offset`.
    pub fn words_at(&self, offset: usize) -> u8 {
        self.depth_at(offset).words()
    }

    /// Where a fault at the instruction at `offset` lands.
    pub fn landing(&self, offset: usize) -> Landing {
        let depth = self.depth_at(offset);
        if depth.masked() { Landing::Masked(depth.words()) } else { Landing::Plain(depth.words()) }
    }

    /// The landings at every depth.
    pub fn landings(&self) -> impl Iterator<Item = Landing> {
        self.depths.iter().map(|depth| self.landing(depth.offset()))
    }

    /// The instructions at which an access can fault.
    pub fn accesses(&self) -> impl Iterator<Item = usize> {
        self.accesses.iter().map(|offset| (*offset).into())
    }

    /// Ends of the 32-bit displacements to helpers.
    pub fn branches(&self) -> impl Iterator<Item = usize> {
        self.branches.iter().map(|offset| (*offset).into())
    }

    /// Whether every push and pop could be recorded, and they cancel out.
    pub fn is_balanced(&self) -> bool {
        !self.invalid && self.words_at(usize::MAX) == 0
    }

    fn change(&mut self, offset: usize, bytes: i16) {
        let words = i16::from(self.words_at(usize::MAX)) + bytes / 8;
        let recorded = match (Depth::new(offset, words, self.masked), bytes % 8) {
            (Some(depth), 0) => self.depths.try_push(depth).is_ok(),
            _ => false,
        };
        self.invalid |= !recorded;
    }

    fn access(&mut self, offset: usize) {
        let recorded = u16::try_from(offset).is_ok_and(|offset| self.accesses.try_push(offset).is_ok());
        self.invalid |= !recorded;
    }

    pub fn branch(&mut self, offset: usize) {
        // More than there is room for are in payloads only, which nobody copies.
        let _ = u16::try_from(offset).map(|offset| self.branches.try_push(offset));
    }
}
