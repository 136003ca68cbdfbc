//! The code that switches between host and guest registers, shared by all stubs of a layout.
//!
//! A stub is called as `extern "sysv64" fn(*mut Gprs)`. Its stack, in every layout, while guest registers are live:
//!
//! ```text
//!             ┌───────────────────────────────┐
//!             │ return address (the caller's) │ ← RSP at entry
//!  push rbx   ├───────────────────────────────┤
//!  push rbp   │ the registers that the psABI  │
//!  push r12   │ makes the callee save         │
//!     …       │                               │
//!  push r15   ├───────────────────────────────┤
//!  push rdi   │ Gprs pointer                  │ ← RSP at the I/O: no guest register is the host's,
//!             └───────────────────────────────┘   so the way back hangs on RSP alone
//! ```
//!
//! (`Rop` has one word more, the address of `guest_to_host`, below the pointer.) Nothing is ever written below RSP: a
//! signal or an interrupt may arrive at any instruction.
//!
//! None of this is a function: the helpers take their argument below the return address, or clobber every register
//! there is. They have labels, never function pointers.

use core::mem::offset_of;

use dynasm::dynasm;

use crate::Gprs;
use crate::stub::{CodeSink, Helper, Returns, StubLayout};

const RBX: i8 = offset_of!(Gprs, rbx) as i8;
const RCX: i8 = offset_of!(Gprs, rcx) as i8;
const RDX: i8 = offset_of!(Gprs, rdx) as i8;
const RSI: i8 = offset_of!(Gprs, rsi) as i8;
const RDI: i8 = offset_of!(Gprs, rdi) as i8;
const RBP: i8 = offset_of!(Gprs, rbp) as i8;
const R8: i8 = offset_of!(Gprs, r8) as i8;
const R9: i8 = offset_of!(Gprs, r9) as i8;
const R10: i8 = offset_of!(Gprs, r10) as i8;
const R11: i8 = offset_of!(Gprs, r11) as i8;
const R12: i8 = offset_of!(Gprs, r12) as i8;
const R13: i8 = offset_of!(Gprs, r13) as i8;
const R14: i8 = offset_of!(Gprs, r14) as i8;
const R15: i8 = offset_of!(Gprs, r15) as i8;
pub(crate) const RFLAGS: i8 = offset_of!(Gprs, rflags) as i8;
const _: () = assert!(offset_of!(Gprs, rax) == 0 && offset_of!(Gprs, rflags) == 120);

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

/// Host to guest, RDI pointing to the register file: status flags, then every register, RDI last.
pub(crate) fn emit_loads<S: CodeSink + ?Sized>(ops: &mut S) {
    dynasm!(ops ; .arch x64
        ; sub eax, eax // Gprs::FLAGS_AT_IO; XOR would leave AF undefined
    );
    emit_register_loads(ops);
}

/// The loads alone; they leave the flags as they are.
pub(crate) fn emit_register_loads<S: CodeSink + ?Sized>(ops: &mut S) {
    dynasm!(ops ; .arch x64
        ; mov rax, [rdi]
        ; mov rbx, [BYTE rdi + RBX]
        ; mov rcx, [BYTE rdi + RCX]
        ; mov rdx, [BYTE rdi + RDX]
        ; mov rsi, [BYTE rdi + RSI]
        ; mov rbp, [BYTE rdi + RBP]
        ; mov r8, [BYTE rdi + R8]
        ; mov r9, [BYTE rdi + R9]
        ; mov r10, [BYTE rdi + R10]
        ; mov r11, [BYTE rdi + R11]
        ; mov r12, [BYTE rdi + R12]
        ; mov r13, [BYTE rdi + R13]
        ; mov r14, [BYTE rdi + R14]
        ; mov r15, [BYTE rdi + R15]
        ; mov rdi, [BYTE rdi + RDI]
    );
}

/// Guest to host: every register and the flags into the register file that RDI points to, in the order of their
/// addresses. The guest's RDI is on the stack and is popped; the host keeps RDI and RSP, all else is free afterwards.
pub(crate) fn emit_register_stores<S: CodeSink + ?Sized>(ops: &mut S) {
    dynasm!(ops ; .arch x64
        ; mov [rdi], rax
        ; mov [BYTE rdi + RBX], rbx
        ; mov [BYTE rdi + RCX], rcx
        ; mov [BYTE rdi + RDX], rdx
        ; mov [BYTE rdi + RSI], rsi
        ; pop rax // the guest's RDI
        ; mov [BYTE rdi + RDI], rax
        ; mov [BYTE rdi + RBP], rbp
        ; mov [BYTE rdi + R8], r8
        ; mov [BYTE rdi + R9], r9
        ; mov [BYTE rdi + R10], r10
        ; mov [BYTE rdi + R11], r11
        ; mov [BYTE rdi + R12], r12
        ; mov [BYTE rdi + R13], r13
        ; mov [BYTE rdi + R14], r14
        ; mov [BYTE rdi + R15], r15
    );
}

/// Guest to host, the register file's address `depth` bytes up the stack. Returns 0 in RAX: the stub's "no fault" (see
/// `fault.rs`).
///
/// First everything that goes to the stack, then the register file in the order of its addresses: a core that commits two
/// stores a cycle does so only for neighbours in one cache line.
pub(crate) fn emit_saves<S: CodeSink + ?Sized>(ops: &mut S, depth: i8) {
    dynasm!(ops ; .arch x64
        ; pushfq
        ; push rdi // one free register, to address the others by
        ; mov rdi, [BYTE rsp + depth + 16]
    );
    emit_register_stores(ops);
    dynasm!(ops ; .arch x64
        ; pop rax
        ; mov [BYTE rdi + RFLAGS], rax
        ; xor eax, eax
    );
}

/// The registers that the psABI makes the callee save, and the pointer to the register file.
pub(crate) fn emit_prologue<S: CodeSink + ?Sized>(ops: &mut S) {
    dynasm!(ops ; .arch x64 ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15 ; push rdi);
}

/// The inverse of [`emit_prologue`], and the return to the stub's caller. RAX is the stub's result and is left alone.
pub(crate) fn emit_epilogue<S: CodeSink + ?Sized>(ops: &mut S, returns: Returns) {
    dynasm!(ops ; .arch x64 ; pop rdi ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx);
    emit_return(ops, returns);
}

/// Emits the helpers of `layout`, each under its global label. Returns the offset of the epilogue within them, for the
/// layouts whose stubs have none of their own: where a fault in a stub resumes.
pub(crate) fn emit_helpers<S: CodeSink + ?Sized>(ops: &mut S, layout: StubLayout, returns: Returns) -> Option<usize> {
    match layout {
        StubLayout::CallRet => {
            dynasm!(ops ; .arch x64 ; =>Helper::LoadGuestGprs);
            emit_loads(ops);
            emit_return(ops, returns);
            dynasm!(ops ; .arch x64 ; =>Helper::SaveGuestGprs);
            emit_saves(ops, 8);
            emit_return(ops, returns);
            None
        }
        StubLayout::Compact => {
            dynasm!(ops ; .arch x64
                ; =>Helper::EnterGuest
                ; pop rax // the return address, at the I/O instruction
            );
            emit_prologue(ops);
            dynasm!(ops ; .arch x64 ; push rax);
            emit_loads(ops);
            emit_return(ops, returns);
            dynasm!(ops ; .arch x64 ; =>Helper::LeaveGuest);
            Some(emit_leave(ops, returns))
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
            emit_loads(ops);
            emit_return(ops, returns);
            dynasm!(ops ; .arch x64 ; =>Helper::GuestToHost);
            Some(emit_leave(ops, returns))
        }
        StubLayout::Inline => None,
    }
}

/// Save, restore, return to the stub's caller: the second half of the layouts that have no epilogue in the stub.
fn emit_leave<S: CodeSink + ?Sized>(ops: &mut S, returns: Returns) -> usize {
    emit_saves(ops, 0);
    let epilogue = ops.offset();
    emit_epilogue(ops, returns);
    epilogue
}
