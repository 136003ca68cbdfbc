//! The cheapest way out of a #GP that there is in a process: a SIGSEGV handler that steps over the instruction.

use core::arch::global_asm;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use std::io;

global_asm!(
    ".pushsection .text.ioemul_bare_fault, \"ax\", @progbits",
    ".globl ioemul_bare_fault",
    ".p2align 6",
    "ioemul_bare_fault:",
    "mov edx, 0x80",
    "in al, dx", // one byte long
    "ret",
    ".popsection",
);

unsafe extern "sysv64" {
    fn ioemul_bare_fault();
}

extern "C" fn step_over(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the machine context to an SA_SIGINFO handler.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RIP as usize] += 1;
}

/// The handler in force; the one before it is back when this is dropped. For a process with one thread.
pub struct BareHandler(libc::sigaction);

impl BareHandler {
    /// Puts the handler in the place of the present one.
    pub fn install() -> io::Result<Self> {
        // SAFETY: all-zero is a valid action: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = step_over as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut previous = MaybeUninit::uninit();
        // SAFETY: the handler is async-signal-safe and of the signature that SA_SIGINFO asks for.
        match unsafe { libc::sigaction(libc::SIGSEGV, &action, previous.as_mut_ptr()) } {
            // SAFETY: sigaction succeeded and filled it in.
            0 => Ok(Self(unsafe { previous.assume_init() })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Faults, and comes back.
    #[inline]
    pub fn fault(&self) {
        // SAFETY: the handler is installed and steps over the fault. Where the process has the privilege, port 0x80 is
        // the POST code, harmless to read.
        unsafe { ioemul_bare_fault() }
    }
}

impl Drop for BareHandler {
    fn drop(&mut self) {
        // SAFETY: the action is one that was in force before.
        unsafe { libc::sigaction(libc::SIGSEGV, &self.0, core::ptr::null_mut()) };
    }
}
