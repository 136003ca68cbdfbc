//! Real outer call frames: a chain of functions, each with a return address of its own.
//!
//! ```text
//!   driver ──call──▶ frame d ──call──▶ frame d-1 ──call──▶ … frame 1 ──call──▶ stub
//!          ◀──ret──          ◀──ret──                                ◀──ret──
//! ```
//!
//! A recursive function would not do: all its returns but one go to the same address, and a return stack that is out
//! of step by one would still predict them.

use core::arch::global_asm;

use ioemul::Gprs;

use super::hand::Entry;

/// The deepest chain.
pub const MAX_DEPTH: usize = 64;

/// From one frame's code to the next, in bytes.
const STRIDE: usize = 32;

global_asm!(
    r#"
    .pushsection .text.ioemul_frames, "ax", @progbits

    .globl ioemul_frames
    .p2align 6
    ioemul_frames:
        jmp rsi
    .rept {max_depth}
    .p2align 5
        .byte 0xe8 # call, to the frame before
        .long -{stride} - 5
        ret
    .endr

    .globl ioemul_frames_repeat
    .p2align 6
    ioemul_frames_repeat:
        push rbp
        push rbx
        push r12
        push r13
        push r14
        mov rbp, rsp
        and rsp, -64
        mov rbx, rcx
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
    .p2align 6
    2:
        mov rdi, r12
        mov rsi, r13
        call r14
        dec rbx
        jnz 2b
        mov rsp, rbp
        pop r14
        pop r13
        pop r12
        pop rbx
        pop rbp
        ret

    .popsection
    "#,
    max_depth = const MAX_DEPTH,
    stride = const STRIDE,
);

unsafe extern "sysv64" {
    /// Depth 0; each deeper frame is a stride further.
    fn ioemul_frames(gprs: *mut Gprs, stub: Entry);
    fn ioemul_frames_repeat(gprs: *mut Gprs, stub: Entry, frame: usize, times: u64);
}

/// Calls `stub` so many times (at least once), each time through `depth` frames.
///
/// # Safety
///
/// `stub` may be called with `gprs`.
pub unsafe fn call_under(depth: usize, stub: Entry, gprs: &mut Gprs, times: u64) {
    assert!(depth <= MAX_DEPTH && times > 0);
    let frame = ioemul_frames as *const () as usize + depth * STRIDE;
    // SAFETY: the frame is one of the chain; the caller vouches for the stub.
    unsafe { ioemul_frames_repeat(gprs, stub, frame, times) }
}
