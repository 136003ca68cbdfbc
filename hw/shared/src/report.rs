//! One line per result on the guest's serial port: `ioemul|check|layout|variant|accesses|ok`, or why not in place of `ok`.

use core::fmt;

use ioemul::Layout;

use crate::{Failure, Kind};

/// Where the library runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Linux, in ring 3.
    Ring3,
    /// No operating system, in ring 0.
    Ring0,
}

/// In ring 3 every check runs through the safe front door and through the table beneath it.
pub const RING3_VARIANTS: &[&str] = &["emulator", "table"];
/// In ring 0, through a slot rewritten for each access, a table of all forms, and a hardened slot (ENDBR64 at the entry,
/// INT3 behind it, a return thunk in place of RET).
pub const RING0_VARIANTS: &[&str] = &["slot", "table", "hardened"];

impl Kind {
    /// The ways in which a check runs: DMI is Linux's, privilege a matter of ring 3, and only memory of our own can be
    /// patched.
    pub const fn variants(&self, place: Place) -> &'static [&'static str] {
        match (self, place) {
            (Kind::Broken, _) => &["patched slot"],
            (_, Place::Ring3) => RING3_VARIANTS,
            (Kind::Dmi | Kind::Unprivileged, Place::Ring0) => &[],
            (_, Place::Ring0) => RING0_VARIANTS,
        }
    }
}

/// A result on its way to the host.
pub struct Line<'a> {
    pub check: &'a str,
    pub layout: Layout,
    pub variant: &'a str,
    pub outcome: &'a Result<u64, Failure>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, layout, variant, outcome } = self;
        match outcome {
            Ok(accesses) => write!(f, "ioemul|{check}|{layout:?}|{variant}|{accesses}|ok"),
            Err(failure) => write!(f, "ioemul|{check}|{layout:?}|{variant}|0|{failure}"),
        }
    }
}
