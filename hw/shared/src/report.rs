//! One line per result on the guest's serial port: `ioemul|check|layout|variant|accesses|ok`, or why not in place of `ok`.

use core::fmt;

use crate::Failure;

/// The columns of the report.
pub const LAYOUTS: [&str; 4] = ["CallRet", "Rop", "Compact", "Inline"];
/// In ring 3 every check runs through the safe front door and through the table beneath it.
pub const RING3_VARIANTS: &[&str] = &["emulator", "table"];
/// In ring 0, through a slot rewritten for each access, a table of all forms, and a hardened slot (endbr64 at the entry,
/// a return thunk in place of RET).
pub const RING0_VARIANTS: &[&str] = &["slot", "table", "hardened"];

/// How a check ended.
pub type Outcome<'a> = Result<u64, &'a Failure>;

/// A result on its way to the host.
pub struct Line<'a> {
    pub check: &'a str,
    pub layout: &'a str,
    pub variant: &'a str,
    pub outcome: Outcome<'a>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, layout, variant, .. } = self;
        match self.outcome {
            Ok(accesses) => write!(f, "ioemul|{check}|{layout}|{variant}|{accesses}|ok"),
            Err(failure) => write!(f, "ioemul|{check}|{layout}|{variant}|0|{failure}"),
        }
    }
}
