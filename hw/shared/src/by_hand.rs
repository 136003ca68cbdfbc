//! The same job as a stub, written by hand and sharing nothing with the library: load the status flags and fifteen
//! registers, call the I/O instruction, store them.
//!
//! This is how the reference run enters Xen: the instruction traps there and Xen's own stub executes it.

use ioemul::{Gprs, IoInsn};

core::arch::global_asm!(
    ".global ioemul_hw_by_hand",
    "ioemul_hw_by_hand:", // rdi: the register file, rsi: the code to call
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "push rsi",
    // The guest's status flags among the host's other ones. No MOV changes them.
    "mov rax, [rdi + 120]",
    "and eax, {status_flags}",
    "pushfq",
    "pop rcx",
    "and ecx, {other_flags}",
    "or rcx, rax",
    "push rcx",
    "popfq",
    "mov rax, [rdi]",
    "mov rbx, [rdi + 8]",
    "mov rcx, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov rsi, [rdi + 32]",
    "mov rbp, [rdi + 48]",
    "mov r8, [rdi + 56]",
    "mov r9, [rdi + 64]",
    "mov r10, [rdi + 72]",
    "mov r11, [rdi + 80]",
    "mov r12, [rdi + 88]",
    "mov r13, [rdi + 96]",
    "mov r14, [rdi + 104]",
    "mov r15, [rdi + 112]",
    "mov rdi, [rdi + 40]",
    "call [rsp]",
    "xchg rdi, [rsp + 8]", // the register file; the guest's RDI takes its place
    "mov [rdi], rax",
    "mov [rdi + 8], rbx",
    "mov [rdi + 16], rcx",
    "mov [rdi + 24], rdx",
    "mov [rdi + 32], rsi",
    "mov [rdi + 48], rbp",
    "mov [rdi + 56], r8",
    "mov [rdi + 64], r9",
    "mov [rdi + 72], r10",
    "mov [rdi + 80], r11",
    "mov [rdi + 88], r12",
    "mov [rdi + 96], r13",
    "mov [rdi + 104], r14",
    "mov [rdi + 112], r15",
    "pushfq",
    "pop rax",
    "and eax, {status_flags}",
    "mov rcx, [rdi + 120]",
    "and rcx, {other_flags}",
    "or rcx, rax",
    "mov [rdi + 120], rcx",
    "pop rsi",
    "pop rax",
    "mov [rdi + 40], rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    status_flags = const 0x8d5, // CF, PF, AF, ZF, SF, OF
    other_flags = const !0x8d5,
);

unsafe extern "sysv64" {
    fn ioemul_hw_by_hand(gprs: *mut Gprs, code: *const u8);
}

/// The instruction and a RET: what [`run`] wants to find in executable memory.
pub fn code(insn: IoInsn) -> [u8; 4] {
    let [a, b, c] = insn.encode_padded();
    [a, b, c, 0xc3]
}

/// Calls `code` with the registers of `gprs`.
///
/// # Safety
///
/// `code` is executable and holds [`code`]; the access it makes must do no harm, and be permitted.
pub unsafe fn run(gprs: &mut Gprs, code: *const u8) {
    // SAFETY: the assembly keeps every callee-saved register and RSP, and writes nothing but `gprs`; the caller vouches
    // for the access itself.
    unsafe { ioemul_hw_by_hand(gprs, code) }
}
