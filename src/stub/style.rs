//! Everything that decides the bytes of a stub, but for the instruction.

use super::StubLayout;

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

/// What stands in the place of `<io>` when no quirk replaces it.
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

/// Everything that decides a stub's bytes, but for the instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StubStyle {
    pub layout: StubLayout,
    pub backend: Backend,
    pub endbr64: bool,
    pub returns: Returns,
    pub ring: Ring,
}
