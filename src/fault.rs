//! A #GP in a stub becomes an error of its caller, not the end of the process.
//!
//! Without I/O privilege an IN raises #GP, and the kernel sends SIGSEGV. The handler installed here asks whose fault it
//! is. If RIP is in the I/O sequence of a stub, the thread goes on *inside that stub*, at its epilogue, with RSP put
//! right and RAX saying what happened: the host's registers come back as they always do, the register file in memory
//! was never written, and no frame is popped by hand. Any other fault belongs to whoever handled the signal before.
//!
//! ```text
//!   RIP ──▶ a registered arena? ──no──▶ the previous handler, or the default action
//!              │ yes
//!           in <io> of a stub? ──no──▶ the same
//!              │ yes
//!           RIP := epilogue, RSP += what the payload pushed, RAX := fault, RDX := address
//! ```
//!
//! The handler is installed when the first table with recovery is built, for the whole process, to run on the alternate signal stack
//! where a thread has one. A program with a handler of its own either installs it before (it is then chained to), or
//! builds its tables [without recovery](crate::StubTableBuilder::fault_recovery) and calls [`recover`].
//!
//! What a previous handler does is its own affair. Rust's own, for one, sets the default action when it is shown a SIGSEGV
//! that somebody sent with `kill`, and returns: from then on nobody recovers anything.

use crate::stub::{Arena, QuirkStub};

#[cfg(target_os = "linux")]
mod signal;
#[cfg(target_os = "linux")]
pub(crate) use signal::Registration;
#[cfg(target_os = "linux")]
pub use signal::recover;

/// A CPU exception raised by the I/O instruction of a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoFault {
    /// The exception's vector (SDM vol. 3, 6.15): 13 is #GP, the answer to a port that the process has no privilege for.
    pub vector: u8,
    /// The error code that the CPU pushed; 0 for a port without privilege.
    pub error_code: u16,
    /// For a page fault (vector 14) the address that was accessed.
    pub address: u64,
}

impl core::fmt::Display for IoFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.vector {
            13 => write!(
                f,
                "the CPU refused the port access with #GP (error code {:#x}): this thread has no I/O privilege for the port \
                 (ioperm or iopl grant it), or the kernel cannot give any",
                self.error_code
            ),
            14 => {
                write!(
                    f,
                    "page fault at {:#x} (error code {:#x}) during the port access",
                    self.address, self.error_code
                )
            }
            vector => {
                write!(f, "exception {vector} (error code {:#x}) in the I/O sequence of the stub", self.error_code)
            }
        }
    }
}

impl std::error::Error for IoFault {}

/// What a stub returns in RAX and RDX. RAX is 0 when the registers were stored; RDX then has no meaning.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct StubResult {
    pub rax: u64,
    pub rdx: u64,
}

impl StubResult {
    /// RAX of a stub whose I/O raised an exception. Never 0.
    const fn fault(vector: u8, error_code: u16) -> u64 {
        1 << 63 | (error_code as u64) << 8 | vector as u64
    }

    #[inline]
    pub fn check(self) -> Result<(), IoFault> {
        match self.rax {
            0 => Ok(()),
            rax => Err(IoFault { vector: rax as u8, error_code: (rax >> 8) as u16, address: self.rdx }),
        }
    }
}

/// What the handler has to know of a table. It does not move while it is registered.
#[derive(Debug)]
pub(crate) struct FaultMap {
    pub arena: Arena,
    pub quirks: Vec<QuirkStub>,
}

/// Elsewhere than on Linux a fault is not recovered.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(crate) struct Registration;
