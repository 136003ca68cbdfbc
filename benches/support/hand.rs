//! The stubs as a person would write them, to hold the assembled ones against.
//!
//! All have the signature of a stub, `extern "sysv64" fn(*mut Gprs)`, and a three-byte no-op in place of the I/O.

use core::arch::global_asm;
use core::mem::offset_of;

use ioemul::{Gprs, StubLayout};

/// What the entry point of a stub is.
pub type Entry = unsafe extern "sysv64" fn(*mut Gprs);

unsafe extern "sysv64" {
    /// Returns at once: what the call itself costs.
    pub fn ioemul_hand_empty(gprs: *mut Gprs);
    /// `StubLayout::CallRet`, instruction for instruction.
    pub fn ioemul_hand_call_ret(gprs: *mut Gprs);
    /// `StubLayout::Compact`, instruction for instruction.
    pub fn ioemul_hand_compact(gprs: *mut Gprs);
    /// `StubLayout::Inline`, instruction for instruction.
    pub fn ioemul_hand_inline(gprs: *mut Gprs);
    /// Call/ret in the order in which the original patch loads and stores, on its register file (its order in memory
    /// is another: R15 first, RDI last), without any flags.
    pub fn ioemul_hand_patch_order(gprs: *mut Gprs);
    /// The compact layout with the host's registers parked in XMM0-6.
    pub fn ioemul_hand_parked(gprs: *mut Gprs);
    /// Calls `entry` with `gprs` so many times (at least once), RSP being `lower` bytes (a multiple of 16) below the
    /// start of a cache line before each call.
    pub fn ioemul_hand_repeat(gprs: *mut Gprs, entry: Entry, times: u64, lower: u64);
    /// The same, each call with the next register file of the ring.
    pub fn ioemul_hand_repeat_ring(ring: *mut Ring, entry: Entry, times: u64, lower: u64);
    /// Fills `files` (at least one) register files of the ring, one after the other, by ascending address: sixteen stores
    /// each.
    pub fn ioemul_hand_stores(ring: *mut Ring, files: u64);
    /// Calls a RET sixteen times, and that so many times (at least once).
    pub fn ioemul_hand_pairs(times: u64);
}

/// The register files of a host with as many guests: no two calls in a row write the same lines.
pub type Ring = [Gprs; 32];

// It is gone through by masking.
const _: () = assert!(size_of::<Ring>().is_power_of_two() && size_of::<Gprs>() == 16 * 8);

/// The layouts that are here, instruction for instruction.
pub const STUBS: &[(StubLayout, Entry)] = &[
    (StubLayout::CallRet, ioemul_hand_call_ret),
    (StubLayout::Compact, ioemul_hand_compact),
    (StubLayout::Inline, ioemul_hand_inline),
];

// The labels are local: nothing but the entry points can be called.
global_asm!(
    r#"
    .pushsection .text.ioemul_hand, "ax", @progbits

    .macro IOEMUL_HAND_PROLOGUE
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        push rdi
    .endm

    .macro IOEMUL_HAND_EPILOGUE
        pop rdi
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret
    .endm

    // The status flags, from the register file that RDI points to. RAX and RCX are free.
    .macro IOEMUL_HAND_FLAGS_IN
        mov rax, [rdi + {rflags}]
        movzx ecx, ah
        mov ah, al
        and ecx, 8
        add cl, 0x78
        sahf
    .endm

    // The status flags, to the register file that RDI points to. RAX and RCX are free.
    .macro IOEMUL_HAND_FLAGS_OUT
        lahf
        seto dl
        mov rcx, [rdi + {rflags}]
        movzx edx, dl
        shl edx, 11
        and rcx, ~0x8d5
        movzx eax, ah
        lea rcx, [rcx + rdx - 2]
        add rcx, rax
        mov [rdi + {rflags}], rcx
    .endm

    .macro IOEMUL_HAND_LOADS
        IOEMUL_HAND_FLAGS_IN
        mov rax, [rdi + {rax}]
        mov rbx, [rdi + {rbx}]
        mov rcx, [rdi + {rcx}]
        mov rdx, [rdi + {rdx}]
        mov rsi, [rdi + {rsi}]
        mov rbp, [rdi + {rbp}]
        mov r8, [rdi + {r8}]
        mov r9, [rdi + {r9}]
        mov r10, [rdi + {r10}]
        mov r11, [rdi + {r11}]
        mov r12, [rdi + {r12}]
        mov r13, [rdi + {r13}]
        mov r14, [rdi + {r14}]
        mov r15, [rdi + {r15}]
        mov rdi, [rdi + {rdi}]
    .endm

    .macro IOEMUL_HAND_SAVES depth
        push rdi
        mov rdi, [rsp + \depth + 8]
        mov [rdi + {rax}], rax
        mov [rdi + {rbx}], rbx
        mov [rdi + {rcx}], rcx
        mov [rdi + {rdx}], rdx
        mov [rdi + {rsi}], rsi
        pop rax
        mov [rdi + {rdi}], rax
        mov [rdi + {rbp}], rbp
        mov [rdi + {r8}], r8
        mov [rdi + {r9}], r9
        mov [rdi + {r10}], r10
        mov [rdi + {r11}], r11
        mov [rdi + {r12}], r12
        mov [rdi + {r13}], r13
        mov [rdi + {r14}], r14
        mov [rdi + {r15}], r15
        IOEMUL_HAND_FLAGS_OUT
        xor eax, eax
    .endm

    .globl ioemul_hand_empty
    .p2align 6
    ioemul_hand_empty:
        ret

    .globl ioemul_hand_call_ret
    .p2align 6
    ioemul_hand_call_ret:
        IOEMUL_HAND_PROLOGUE
        call 2f
        nop dword ptr [rax]
        call 3f
        IOEMUL_HAND_EPILOGUE
    .p2align 6
    2:
        IOEMUL_HAND_LOADS
        ret
    3:
        IOEMUL_HAND_SAVES 8
        ret

    .globl ioemul_hand_compact
    .p2align 6
    ioemul_hand_compact:
        call 2f
        nop dword ptr [rax]
        jmp 3f
    .p2align 6
    2:
        pop rax
        IOEMUL_HAND_PROLOGUE
        push rax
        IOEMUL_HAND_LOADS
        ret
    3:
        IOEMUL_HAND_SAVES 0
        IOEMUL_HAND_EPILOGUE

    .globl ioemul_hand_inline
    .p2align 6
    ioemul_hand_inline:
        IOEMUL_HAND_PROLOGUE
        IOEMUL_HAND_LOADS
        nop dword ptr [rax]
        jmp 2f
    2:
        IOEMUL_HAND_SAVES 0
        IOEMUL_HAND_EPILOGUE

    .globl ioemul_hand_patch_order
    .p2align 6
    ioemul_hand_patch_order:
        IOEMUL_HAND_PROLOGUE
        call 2f
        nop dword ptr [rax]
        call 3f
        IOEMUL_HAND_EPILOGUE
    .p2align 6
    2:
        mov rdx, [rdi + 96]
        mov rax, [rdi + 80]
        mov rbx, [rdi + 40]
        mov rsi, [rdi + 104]
        mov rbp, [rdi + 32]
        mov r8,  [rdi + 72]
        mov r12, [rdi + 24]
        mov r9,  [rdi + 64]
        mov r13, [rdi + 16]
        mov r10, [rdi + 56]
        mov r14, [rdi + 8]
        mov r11, [rdi + 48]
        mov r15, [rdi]
        mov rcx, [rdi + 88]
        mov rdi, [rdi + 112]
        ret
    .p2align 6
    3:
        push rdi
        mov rdi, [rsp + 16]
        mov [rdi + 80], rax
        pop qword ptr [rdi + 112]
        mov [rdi],      r15
        mov [rdi + 48], r11
        mov [rdi + 8],  r14
        mov [rdi + 56], r10
        mov [rdi + 16], r13
        mov [rdi + 64], r9
        mov [rdi + 24], r12
        mov [rdi + 72], r8
        mov [rdi + 32], rbp
        mov [rdi + 104], rsi
        mov [rdi + 40], rbx
        mov [rdi + 96], rdx
        mov [rdi + 88], rcx
        ret

    .globl ioemul_hand_parked
    .p2align 6
    ioemul_hand_parked:
        call 2f
        nop dword ptr [rax]
        jmp 3f
    .p2align 6
    2:
        movq xmm0, rbx
        movq xmm1, rbp
        movq xmm2, r12
        movq xmm3, r13
        movq xmm4, r14
        movq xmm5, r15
        movq xmm6, rdi
        IOEMUL_HAND_LOADS
        ret
    .p2align 6
    3:
        movq xmm7, rdi
        movq rdi, xmm6
        mov [rdi + {rax}], rax
        mov [rdi + {rbx}], rbx
        mov [rdi + {rcx}], rcx
        mov [rdi + {rdx}], rdx
        mov [rdi + {rsi}], rsi
        movq [rdi + {rdi}], xmm7
        mov [rdi + {rbp}], rbp
        mov [rdi + {r8}], r8
        mov [rdi + {r9}], r9
        mov [rdi + {r10}], r10
        mov [rdi + {r11}], r11
        mov [rdi + {r12}], r12
        mov [rdi + {r13}], r13
        mov [rdi + {r14}], r14
        mov [rdi + {r15}], r15
        IOEMUL_HAND_FLAGS_OUT
        movq rbx, xmm0
        movq rbp, xmm1
        movq r12, xmm2
        movq r13, xmm3
        movq r14, xmm4
        movq r15, xmm5
        xor eax, eax
        ret

    .globl ioemul_hand_repeat
    .p2align 6
    ioemul_hand_repeat:
        push rbp
        push rbx
        push r12
        push r13
        mov rbp, rsp
        and rsp, -64
        sub rsp, rcx
        mov rbx, rdx
        mov r12, rdi
        mov r13, rsi
    .p2align 6
    2:
        mov rdi, r12
        call r13
        dec rbx
        jnz 2b
        mov rsp, rbp
        pop r13
        pop r12
        pop rbx
        pop rbp
        ret

    .globl ioemul_hand_repeat_ring
    .p2align 6
    ioemul_hand_repeat_ring:
        push rbp
        push rbx
        push r12
        push r13
        push r14
        mov rbp, rsp
        and rsp, -64
        sub rsp, rcx
        mov rbx, rdx
        mov r12, rdi
        mov r13, rsi
        xor r14d, r14d
    .p2align 6
    2:
        lea rdi, [r12 + r14]
        call r13
        add r14d, {file}
        and r14d, {ring} - 1
        dec rbx
        jnz 2b
        mov rsp, rbp
        pop r14
        pop r13
        pop r12
        pop rbx
        pop rbp
        ret

    .globl ioemul_hand_stores
    .p2align 6
    ioemul_hand_stores:
        xor ecx, ecx
    .p2align 6
    2:
        lea rdx, [rdi + rcx]
        mov [rdx], rax
        mov [rdx + 8], rax
        mov [rdx + 16], rax
        mov [rdx + 24], rax
        mov [rdx + 32], rax
        mov [rdx + 40], rax
        mov [rdx + 48], rax
        mov [rdx + 56], rax
        mov [rdx + 64], rax
        mov [rdx + 72], rax
        mov [rdx + 80], rax
        mov [rdx + 88], rax
        mov [rdx + 96], rax
        mov [rdx + 104], rax
        mov [rdx + 112], rax
        mov [rdx + 120], rax
        add ecx, {file}
        and ecx, {ring} - 1
        dec rsi
        jnz 2b
        ret

    .globl ioemul_hand_pairs
    .p2align 6
    ioemul_hand_pairs:
    2:
        .rept 16
        call 3f
        .endr
        dec rdi
        jnz 2b
        ret
    .p2align 6
    3:
        ret

    .popsection
    "#,
    rax = const offset_of!(Gprs, rax),
    rbx = const offset_of!(Gprs, rbx),
    rcx = const offset_of!(Gprs, rcx),
    rdx = const offset_of!(Gprs, rdx),
    rsi = const offset_of!(Gprs, rsi),
    rdi = const offset_of!(Gprs, rdi),
    rbp = const offset_of!(Gprs, rbp),
    r8 = const offset_of!(Gprs, r8),
    r9 = const offset_of!(Gprs, r9),
    r10 = const offset_of!(Gprs, r10),
    r11 = const offset_of!(Gprs, r11),
    r12 = const offset_of!(Gprs, r12),
    r13 = const offset_of!(Gprs, r13),
    r14 = const offset_of!(Gprs, r14),
    r15 = const offset_of!(Gprs, r15),
    rflags = const offset_of!(Gprs, rflags),
    file = const size_of::<Gprs>(),
    ring = const size_of::<Ring>(),
);
