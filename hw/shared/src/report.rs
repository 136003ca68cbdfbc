//! One line per result on the guest's serial port: `ioemul|check|layout|variant|accesses|ok`, or why not in place of `ok`.
//! What the report is to show besides comes as `ioemul|shown|title|line`.

use core::fmt;

use ioemul::StubLayout;

use crate::checks::{Kind, Linux, Ring0};

/// Where the library runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Linux, in ring 3.
    Ring3,
    /// No operating system, in ring 0.
    Ring0,
}

/// In ring 3 every check runs through the safe front door, through the table beneath it, and through tables for two register
/// files of hosts.
pub const RING3_VARIANTS: &[&str] = &["emulator", "table", "pt_regs", "kvm_regs"];
/// In ring 0, through a slot rewritten for each access, a table of all forms, a hardened slot (ENDBR64 at the entry,
/// INT3 behind it, a return thunk in place of RET), a hardened table and a slot for register files of hosts, and by the
/// handler of #GP for a task in ring 3.
pub const RING0_VARIANTS: &[&str] = &["slot", "table", "hardened", "pt_regs", "kvm_regs", "task, #GP"];
/// Those whose stubs can be called by hand.
const RING0_STUBS: &[&str] = &["slot", "table", "hardened", "pt_regs", "kvm_regs"];
/// Slots of which one byte is changed, for [`Gprs`](ioemul::Gprs) and for `pt_regs`.
pub const BROKEN_VARIANTS: &[&str] = &["patched slot", "patched, pt_regs"];
/// What faults are raised in: a slot, a table, and one with all hardenings for `pt_regs`.
const FAULTING_VARIANTS: &[&str] = &["breakpoints, slot", "breakpoints, table", "breakpoints, hardened"];
/// Those of ring 3 that say what a fault was.
pub const NATIVE_VARIANTS: &[&str] = &["emulator", "table"];
/// Those of ring 3 whose stubs can be called by hand.
const STUBS: &[&str] = &["table", "pt_regs", "kvm_regs"];

impl Kind {
    /// The ways in which a check runs in one layout. Only stubs themselves can be called by hand, with DF set or with
    /// pointers to memory that is not there; and what is not a matter of the layout runs once. Ring 3
    /// has no timer of its own to raise a late SMI with.
    pub fn variants(&self, place: Place, layout: StubLayout) -> &'static [&'static str] {
        match (self, place) {
            (Kind::Broken, _) => BROKEN_VARIANTS,
            (Kind::Unprivileged | Kind::Linux(_), Place::Ring0) | (Kind::Ring0(_), Place::Ring3) => &[],
            (Kind::Ring0(Ring0::Faults), Place::Ring0) => FAULTING_VARIANTS,
            (Kind::Ring0(Ring0::TssBitmap), Place::Ring0) if layout == StubLayout::default() => &["in ring 3"],
            (Kind::Ring0(Ring0::TssBitmap), Place::Ring0) => &[],
            (Kind::Ring0(Ring0::Task), Place::Ring0) => &["in ring 3"],
            (Kind::Ring0(Ring0::TwoProcessors), Place::Ring0) => &["two at a time"],
            (Kind::Backwards, Place::Ring0) => RING0_STUBS,
            (_, Place::Ring0) => RING0_VARIANTS,
            (Kind::CarryLate, Place::Ring3) => &[],
            (Kind::Backwards | Kind::Carry, Place::Ring3) => STUBS,
            (Kind::Linux(Linux::PageFault), Place::Ring3) => &["table"],
            (Kind::Linux(Linux::Permission | Linux::Level | Linux::Busy), Place::Ring3) => NATIVE_VARIANTS,
            (Kind::Linux(_), Place::Ring3) if layout == StubLayout::default() => &["process"],
            (Kind::Linux(_), Place::Ring3) => &[],
            (_, Place::Ring3) => RING3_VARIANTS,
        }
    }
}

/// A result on its way to the host.
pub struct Line<'a, E> {
    pub check: &'a str,
    pub layout: StubLayout,
    pub variant: &'a str,
    /// Accesses made, or what went wrong.
    pub outcome: &'a Result<u64, E>,
}

impl<E: fmt::Display> fmt::Display for Line<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, layout, variant, outcome } = self;
        match outcome {
            Ok(accesses) => write!(f, "ioemul|{check}|{layout:?}|{variant}|{accesses}|ok"),
            Err(failure) => write!(f, "ioemul|{check}|{layout:?}|{variant}|0|{failure}"),
        }
    }
}
