//! The code that switches between host and guest registers, shared by all stubs of a layout.
//!
//! A stub is called as [`StubFn`](crate::StubFn) with a pointer to the register file. Its stack, in every layout, while
//! guest registers are live:
//!
//! ```text
//!             ┌───────────────────────────────┐
//!             │ return address (the caller's) │ ← RSP at entry
//!  push rbx   ├───────────────────────────────┤
//!  push rbp   │ the registers that the psABI  │
//!  push r12   │ makes the callee save         │
//!     …       │                               │
//!  push r15   ├───────────────────────────────┤
//!  push rdi   │ register file's address       │ ← RSP at the I/O: no guest register is the host's,
//!             └───────────────────────────────┘   so the way back hangs on RSP alone
//! ```
//!
//! (`Rop` has one word more, the address of `guest_to_host`, below the pointer.) Nothing is ever written below RSP: a
//! signal or an interrupt may arrive at any instruction.
//!
//! The *landing pads* are where a stub goes on whose access faulted: one for each depth of the stack at which that can
//! be. A host's fault handler sets RIP to a pad and nothing else; the pad puts RSP right, returns 1, and leaves the
//! register file as it was given.
//!
//! None of this is a function: the helpers take their argument below the return address, or clobber every register
//! there is. They have labels, never function pointers.
#![allow(clippy::useless_conversion)] // in what `dynasm!` makes of registers that are variables

use dynasm::dynasm;

use crate::RegisterFile;
use crate::stub::{CodeSink, Helper, Returns, StubLayout, StubStyle};

/// `ret`, as the host wants it written.
pub(crate) fn emit_return<S: CodeSink + ?Sized>(ops: &mut S, returns: Returns) {
    if returns.thunk {
        dynasm!(ops ; .arch x64 ; jmp =>Helper::ReturnThunk);
    } else {
        dynasm!(ops ; .arch x64 ; ret);
    }
    emit_stop(ops, returns);
}

/// What follows a branch that is never fallen through.
pub(crate) fn emit_stop<S: CodeSink + ?Sized>(ops: &mut S, returns: Returns) {
    if returns.int3 {
        dynasm!(ops ; .arch x64 ; int3);
    }
}

/// `mov register, [rdi + offset]`, in its shortest form.
fn emit_load<S: CodeSink + ?Sized>(ops: &mut S, register: u8, offset: i16) {
    match (offset, i8::try_from(offset)) {
        (0, _) => dynasm!(ops ; .arch x64 ; mov Rq(register), [rdi]),
        (_, Ok(offset)) => dynasm!(ops ; .arch x64 ; mov Rq(register), [BYTE rdi + offset]),
        (_, Err(_)) => dynasm!(ops ; .arch x64 ; mov Rq(register), [DWORD rdi + offset.into()]),
    }
}

/// `mov [rdi + offset], register`, in its shortest form.
fn emit_store<S: CodeSink + ?Sized>(ops: &mut S, offset: i16, register: u8) {
    match (offset, i8::try_from(offset)) {
        (0, _) => dynasm!(ops ; .arch x64 ; mov [rdi], Rq(register)),
        (_, Ok(offset)) => dynasm!(ops ; .arch x64 ; mov [BYTE rdi + offset], Rq(register)),
        (_, Err(_)) => dynasm!(ops ; .arch x64 ; mov [DWORD rdi + offset.into()], Rq(register)),
    }
}

/// OF, in the second byte of RFLAGS.
const OF_IN_BYTE_1: i8 = 1 << 3;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Host to guest, RDI pointing to the register file: the status flags, then every register by ascending address, RDI
/// last.
pub(crate) fn emit_loads<S: CodeSink + ?Sized>(ops: &mut S, file: &RegisterFile) {
    if let Some(rflags) = file.rflags() {
        emit_load(ops, RAX, rflags);
        dynasm!(ops ; .arch x64
            ; movzx ecx, ah
            ; mov ah, al // SF, ZF, AF, PF and CF, where SAHF wants them
            ; and ecx, BYTE OF_IN_BYTE_1
            ; add cl, BYTE 0x78 // overflows exactly when OF was set
            ; sahf
        );
    }
    for (register, offset) in file.ascending().filter(|register| register.0 != RDI) {
        emit_load(ops, register, offset);
    }
    emit_load(ops, RDI, file.rdi());
}

/// Guest to host: every register and the status flags into the register file that RDI points to, by ascending address
/// (the flags last: they are composed in registers). The guest's RDI is on the stack and is popped; the host keeps RDI
/// and RSP, all else is free afterwards.
///
/// A core that commits two stores a cycle does so only for neighbours in one cache line: hence the order.
pub(crate) fn emit_stores<S: CodeSink + ?Sized>(ops: &mut S, file: &RegisterFile) {
    let mut stored = None;
    for (register, offset) in file.ascending() {
        match (register, stored) {
            (RDI, Some(free)) => {
                emit_pop(ops, free);
                emit_store(ops, offset, free);
            }
            (RDI, None) => dynasm!(ops ; .arch x64 ; pop QWORD [DWORD rdi + offset.into()]),
            _ => emit_store(ops, offset, register),
        }
        stored = stored.or(Some(register).filter(|register| *register != RDI));
    }
    if let Some(rflags) = file.rflags() {
        const OTHERS: i32 = !(crate::Gprs::STATUS_FLAGS as i32);
        // None of the stores has changed a flag.
        dynasm!(ops ; .arch x64
            ; lahf
            ; seto dl
        );
        emit_load(ops, RCX, rflags);
        dynasm!(ops ; .arch x64
            ; movzx edx, dl
            ; shl edx, BYTE 11
            ; and rcx, DWORD OTHERS
            ; movzx eax, ah // and bit 1, which is always set in LAHF's
            ; lea rcx, [BYTE rcx + rdx - 2] // no two have a bit in common: sums are unions
            ; add rcx, rax
        );
        emit_store(ops, rflags, RCX);
    }
}

fn emit_pop<S: CodeSink + ?Sized>(ops: &mut S, register: u8) {
    match register {
        RAX => dynasm!(ops ; .arch x64 ; pop rax),
        _ => dynasm!(ops ; .arch x64 ; pop Rq(register)),
    }
}

/// Guest to host, the register file's address `depth` bytes up the stack. Returns 0 in RAX: the stub's "no fault".
pub(crate) fn emit_saves<S: CodeSink + ?Sized>(ops: &mut S, file: &RegisterFile, depth: i8) {
    dynasm!(ops ; .arch x64
        ; push rdi // one free register, to address the others by
        ; mov rdi, [BYTE rsp + depth + 8]
    );
    emit_stores(ops, file);
    dynasm!(ops ; .arch x64 ; xor eax, eax);
}

/// The registers that the psABI makes the callee save, and the pointer to the register file.
pub(crate) fn emit_prologue<S: CodeSink + ?Sized>(ops: &mut S) {
    dynasm!(ops ; .arch x64 ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15 ; push rdi);
}

/// The inverse of [`emit_prologue`], and the return to the stub's caller. RAX is the stub's result and is left alone.
pub(crate) fn emit_epilogue<S: CodeSink + ?Sized>(ops: &mut S, style: &StubStyle) {
    dynasm!(ops ; .arch x64 ; pop rdi ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx);
    if style.scrub {
        emit_scrub(ops);
    }
    emit_return(ops, style.returns);
}

/// Zeroes every register that the caller does not get back, but for the result: what a guest has put there is gone, and
/// the status flags are those of XOR.
fn emit_scrub<S: CodeSink + ?Sized>(ops: &mut S) {
    dynasm!(ops ; .arch x64
        ; xor ecx, ecx ; xor edx, edx ; xor esi, esi ; xor edi, edi
        ; xor r8d, r8d ; xor r9d, r9d ; xor r10d, r10d ; xor r11d, r11d
    );
}

/// Emits the helpers of a style, each under its global label.
pub(crate) fn emit_helpers<S: CodeSink + ?Sized>(ops: &mut S, style: &StubStyle) {
    let StubStyle { returns, ref registers, .. } = *style;
    match style.layout {
        StubLayout::CallRet => {
            dynasm!(ops ; .arch x64 ; =>Helper::LoadGuestGprs);
            emit_loads(ops, registers);
            emit_return(ops, returns);
            dynasm!(ops ; .arch x64 ; =>Helper::SaveGuestGprs);
            emit_saves(ops, registers, 8);
            emit_return(ops, returns);
        }
        StubLayout::Compact => {
            dynasm!(ops ; .arch x64
                ; =>Helper::EnterGuest
                ; pop rax // the return address, at the I/O instruction
            );
            emit_prologue(ops);
            dynasm!(ops ; .arch x64 ; push rax);
            emit_loads(ops, registers);
            emit_return(ops, returns);
            dynasm!(ops ; .arch x64 ; =>Helper::LeaveGuest);
            emit_saves(ops, registers, 0);
            emit_epilogue(ops, style);
        }
        StubLayout::Rop => {
            dynasm!(ops ; .arch x64
                ; =>Helper::HostToGuest
                ; pop rax // the return address, at the I/O instruction
            );
            emit_prologue(ops);
            dynasm!(ops ; .arch x64
                ; lea rcx, [=>Helper::GuestToHost]
                ; push rcx // what the stub's RET will return into
                ; push rax
            );
            emit_loads(ops, registers);
            emit_return(ops, returns);
            dynasm!(ops ; .arch x64 ; =>Helper::GuestToHost);
            emit_saves(ops, registers, 0);
            emit_epilogue(ops, style);
        }
        StubLayout::Inline => {}
    }
}

/// At which depths of the stack an access can fault, in words beyond those of the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Depths {
    /// The deepest that is not behind a [mask](Self::masked).
    pub plain: u8,
    /// The deepest with the flags of before a CLI on the stack, that word included; 0: interrupts are never masked.
    pub masked: u8,
}

/// The landing pads, as offsets from where the sink started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pads {
    /// For an access in a plain stub. The pad for one more word on the stack is a byte lower.
    plain: u16,
    /// With nothing on the stack but the flags of before a CLI. The pad for one more word is a byte lower.
    masked: u16,
    /// For INS and OUTS.
    string: u16,
}

/// Which pad a fault wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landing {
    /// With so many words on the stack beyond those of the layout.
    Plain(u8),
    /// The same, the uppermost of them being the flags of before a CLI.
    Masked(u8),
    /// In INS or OUTS.
    String,
}

impl Pads {
    pub fn at(&self, landing: Landing) -> u16 {
        match landing {
            Landing::Plain(words) => self.plain.wrapping_sub(words.into()),
            Landing::Masked(words) => self.masked.wrapping_sub(words.saturating_sub(1).into()),
            Landing::String => self.string,
        }
    }
}

/// Emits the landing pads.
///
/// ```text
///  string:   RCX, RSI, RDI → register file: how far INS or OUTS came   ─┐
///  masked:   pop rax …, popfq: IF as it was                            ─┤
///  plain:    pop rax …                                                 ◀┘
///            mov eax, 1; the epilogue
/// ```
pub(crate) fn emit_pads<S: CodeSink + ?Sized>(ops: &mut S, style: &StubStyle, depths: Depths) -> Pads {
    let StubStyle { layout, returns, registers: ref file, .. } = *style;
    let here = |ops: &mut S| ops.offset() as u16;
    dynasm!(ops ; .arch x64 ; =>Helper::LandingPads);
    let string = here(ops);
    let depth = layout.depth_at_io() as i8;
    dynasm!(ops ; .arch x64
        ; push rdi
        ; mov rdi, [BYTE rsp + depth + 8]
    );
    emit_store(ops, file.rcx(), RCX);
    emit_store(ops, file.rsi(), RSI);
    dynasm!(ops ; .arch x64 ; pop rax);
    emit_store(ops, file.rdi(), RAX);
    let mut masked = 0;
    if depths.masked > 0 {
        dynasm!(ops ; .arch x64 ; jmp BYTE >plain_pad);
        emit_stop(ops, returns);
        (1..depths.masked).for_each(|_| dynasm!(ops ; .arch x64 ; pop rax));
        masked = here(ops);
        dynasm!(ops ; .arch x64 ; popfq);
    }
    if depths.plain > 0 {
        dynasm!(ops ; .arch x64 ; jmp BYTE >plain_pad);
        emit_stop(ops, returns);
        (0..depths.plain).for_each(|_| dynasm!(ops ; .arch x64 ; pop rax));
    }
    dynasm!(ops ; .arch x64 ; plain_pad:);
    let plain = here(ops);
    (0..layout.depth_at_io() / 8).for_each(|_| dynasm!(ops ; .arch x64 ; pop rax));
    dynasm!(ops ; .arch x64 ; mov eax, DWORD 1);
    emit_epilogue(ops, style);
    Pads { plain, masked, string }
}
