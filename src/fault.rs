//! A #GP in a stub becomes an error of its caller, not the end of the process.
//!
//! Without I/O privilege an IN raises #GP, and the kernel sends SIGSEGV. The handler installed here asks whose fault it
//! is. If RIP is in the I/O sequence of a stub, the thread goes on *inside that table*, at the landing pad for that
//! depth of the stack: the pad puts RSP right and gives the caller its registers back, the register file in memory was
//! never written, and no frame is popped by hand. Any other fault belongs to whoever handled the signal before.
//!
//! ```text
//!   RIP ──▶ a registered arena? ──no──▶ the previous handler, or the default action
//!              │ yes
//!           in <io> of a stub? ──no──▶ the same
//!              │ yes
//!           RIP := landing pad, RDX := vector and error code, R8 := address
//! ```
//!
//! The handler is installed when the first table with recovery is built that touches hardware (a bus needs none), for
//! the whole process, and stays until [`uninstall`]. A program with a handler of its own either installs it before (it
//! is then passed what is not a stub's), or builds its tables [without
//! recovery](crate::StubTableBuilder::fault_recovery) and calls [`recover`].
//!
//! - It runs with all signals blocked (but two that the C library keeps to itself): nothing else comes to lie on the stack
//!   that it runs on.
//! - The handler of before is called as the kernel would have called it: with its mask, once if it asked for
//!   SA_RESETHAND, and on its stack. That is why this one runs on the alternate signal stack if the one of before did
//!   (or if there was none), and else on the stack of the interrupted thread.
//! - A handler that is installed *on top* of this one has it displaced: faults in stubs go there first. The next table
//!   that is built with recovery, or [`install`], puts this one on top again; the other is then passed what is not a
//!   stub's, and may itself pass that on to what it has replaced. [`is_installed`] tells.
//! - What is sent by `kill` or a timer is no fault, and a machine check (`BUS_MCEERR_AO`, `BUS_MCEERR_AR`) is never a
//!   stub's.
//! - A thread that has SIGSEGV *blocked* (as handlers of other signals may have) cannot recover from anything: the
//!   kernel then ends the process at a fault, whatever handler there is.
//!
//! What a previous handler does is its own affair. Rust's own, for one, sets the default action when it is shown a
//! SIGSEGV that somebody sent with `kill`, and returns: from then on, until the next table is built, nobody recovers
//! anything.

use crate::QuirkTable;
use crate::quirk_table::QuirkStub;
use crate::stub::{Arena, StubShape, StubStyle};

#[cfg(target_os = "linux")]
mod index;
#[cfg(target_os = "linux")]
mod pin;
#[cfg(target_os = "linux")]
mod signal;
#[cfg(target_os = "linux")]
pub(crate) use index::Registration;
#[cfg(target_os = "linux")]
pub use signal::{HandlerError, install, is_installed, recover, uninstall};

/// A CPU exception raised by the I/O instruction of a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoFault {
    /// The exception's vector (SDM vol. 3, 6.15): 13 is #GP, the answer to a port that the process has no privilege
    /// for.
    pub vector: u8,
    /// The error code that the CPU pushed; 0 for a port without privilege.
    pub error_code: u16,
    /// For a page fault (vector 14) the address that was accessed.
    pub address: u64,
}

impl IoFault {
    /// #GP(0): what a device model refuses an access with in the CPU's place
    /// ([`PortDevice::try_access`](crate::PortDevice::try_access)).
    pub const GENERAL_PROTECTION: Self = Self::new(13, 0, 0);

    /// An exception with this vector, error code and, for a page fault, address.
    pub const fn new(vector: u8, error_code: u16, address: u64) -> Self {
        Self { vector, error_code, address }
    }
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

/// What a stub returns. RAX is 0 when the registers were stored; 1 when it came by a landing pad, and the handler has
/// then left in RDX and R8 what the exception was.
#[derive(Clone, Copy, Default)]
pub(crate) struct StubResult {
    pub rax: u64,
    pub rdx: u64,
    pub r8: u64,
}

impl StubResult {
    #[inline]
    pub fn check(self) -> Result<(), IoFault> {
        match self.rax {
            0 => Ok(()),
            _ => Err(IoFault { vector: self.rdx as u8, error_code: (self.rdx >> 8) as u16, address: self.r8 }),
        }
    }
}

/// What the handler has to know of a table. It does not move while it is registered.
#[derive(Debug)]
pub(crate) struct FaultMap {
    pub arena: Arena,
    pub style: StubStyle,
    pub quirks: QuirkTable,
    pub quirk_stubs: Vec<QuirkStub>,
    /// How each of them looks. (They could be emitted once more to find out, but a payload is somebody else's code, and
    /// not for a signal handler.)
    pub quirk_shapes: Vec<StubShape>,
}

impl FaultMap {
    /// The landing pad for a fault at the instruction `offset` bytes into the table: an offset again.
    pub fn fixup(&self, offset: usize) -> Option<usize> {
        let quirk = || {
            self.quirk_stubs.iter().zip(&self.quirk_shapes).find_map(|(stub, shape)| {
                let landing = shape.landing(offset.checked_sub(stub.at as usize)?)?;
                Some(self.arena.pad(landing))
            })
        };
        self.arena.fixup(offset).or_else(quirk)
    }
}

/// Elsewhere than on Linux a fault is not recovered.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(crate) struct Registration;
