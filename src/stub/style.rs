//! Everything that decides the bytes of a stub, but for the instruction.

use super::StubLayout;
use crate::RegisterFile;

/// The privilege level that a stub will run at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[doc(alias("CPL", "privilege level"))]
pub enum Ring {
    /// Ring 0: a hypervisor or kernel. CLI is allowed, and a handler that takes long is nobody else's business.
    #[default]
    Zero,
    /// Ring 3: a process. CLI faults, and a wait must end.
    Three,
}

/// How a `ret` is written, for hosts that harden their indirect branches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Returns {
    /// `jmp =>Helper::ReturnThunk` in place of `ret`; the sink knows where that is.
    pub thunk: bool,
    /// `int3` after every final `ret` or `jmp`, against straight-line speculation.
    pub int3: bool,
}

/// What stands in the place of an I/O instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The instruction itself.
    #[default]
    Hardware,
    /// A no-op of the same length, for benchmarks.
    #[cfg(feature = "std")]
    Elided,
    /// A call into a device model.
    #[cfg(feature = "std")]
    Bus,
}

/// How stubs and helpers are to be; both have to be emitted in the same style.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StubStyle {
    pub layout: StubLayout,
    pub backend: Backend,
    pub registers: RegisterFile,
    pub endbr64: bool,
    pub returns: Returns,
    /// Zero what the caller does not get back.
    pub scrub: bool,
    pub ring: Ring,
}

impl StubStyle {
    /// How many words a plain stub has on the stack at its access, beyond those of the layout.
    pub fn words_at_access(&self) -> u8 {
        match self.backend {
            Backend::Hardware => 0,
            #[cfg(feature = "std")]
            Backend::Elided => 0,
            #[cfg(feature = "std")]
            Backend::Bus => 1, // the description, while the trampoline is called
        }
    }
}
