//! Calls a stub as its ABI says, and looks what became of the host's registers.

use std::arch::naked_asm;

use ioemul::Gprs;

/// What a callee has to preserve, as it was found after the call.
#[derive(Debug, PartialEq, Eq)]
#[repr(C)]
struct Preserved {
    rflags: u64,
    rbx: u64,
    rbp: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
}

/// What the registers hold at the call.
const RBX: u64 = 0xb0b0_0000_1111_0003;
const RBP: u64 = 0xb0b0_0000_1111_0005;
const R12: u64 = 0xb0b0_0000_1111_000c;
const R13: u64 = 0xb0b0_0000_1111_000d;
const R14: u64 = 0xb0b0_0000_1111_000e;
const R15: u64 = 0xb0b0_0000_1111_000f;

#[repr(C)]
struct Found {
    rax: u64,
    after: Preserved,
    rflags_before: u64,
}

/// Calls `entry(argument)` with known values in every register that it has to preserve, and the ID flag turned over (of
/// the flags that are not for arithmetic, the one that a process may change without harm). Ends with UD2 if RSP comes
/// back changed: nothing else could be trusted then.
#[unsafe(naked)]
unsafe extern "sysv64" fn call_and_look(entry: *const u8, argument: *mut u8, found: *mut Found) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rsp", // a word that knows where it is
        "push 0",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rbx, {rbx}",
        "mov rbp, {rbp}",
        "mov r12, {r12}",
        "mov r13, {r13}",
        "mov r14, {r14}",
        "mov r15, {r15}",
        "pushfq",
        "btc qword ptr [rsp], 21", // ID
        "popfq",
        "pushfq",
        "pop qword ptr [rdx + 64]",
        "call rax",
        "pushfq",
        "push rax",
        "lea rax, [rsp + 32]",
        "cmp [rsp + 24], rax",
        "je 2f",
        "ud2",
        "2:",
        "mov rdx, [rsp + 32]",
        "pop qword ptr [rdx]",
        "pop qword ptr [rdx + 8]",
        "mov [rdx + 16], rbx",
        "mov [rdx + 24], rbp",
        "mov [rdx + 32], r12",
        "mov [rdx + 40], r13",
        "mov [rdx + 48], r14",
        "mov [rdx + 56], r15",
        "pushfq",
        "btc qword ptr [rsp], 21",
        "popfq",
        "add rsp, 24",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        rbx = const RBX, rbp = const RBP, r12 = const R12, r13 = const R13, r14 = const R14, r15 = const R15,
    )
}

/// Calls `entry(argument)` and returns RAX; panics if a register that a callee preserves, or RFLAGS beyond the status
/// flags, came back changed.
///
/// # Safety
///
/// As for a call of an `extern "sysv64" fn(*mut T)`.
pub unsafe fn call<T>(entry: *const u8, argument: *mut T) -> u64 {
    const UNKNOWN: u64 = 0xdead;
    let mut found = Found {
        rax: UNKNOWN,
        after: Preserved { rflags: 0, rbx: 0, rbp: 0, r12: 0, r13: 0, r14: 0, r15: 0 },
        rflags_before: UNKNOWN,
    };
    // SAFETY: the caller vouches for the entry and its argument; `found` is what the function fills in.
    unsafe { call_and_look(entry, argument.cast(), &mut found) };
    found.after.rflags &= !Gprs::STATUS_FLAGS;
    let rflags = found.rflags_before & !Gprs::STATUS_FLAGS;
    let expected = Preserved { rflags, rbx: RBX, rbp: RBP, r12: R12, r13: R13, r14: R14, r15: R15 };
    assert_eq!(found.after, expected, "the host's registers changed");
    found.rax
}

/// As [`call`], for a closure.
pub fn watch<F: FnMut()>(mut f: F) {
    extern "sysv64" fn run<F: FnMut()>(f: *mut F) {
        // SAFETY: the pointer is the one that `watch` passes.
        unsafe { (*f)() }
    }
    // SAFETY: `run::<F>` takes this argument.
    unsafe { call(run::<F> as *const u8, &mut f) };
}
