//! Which machines have a quirk.

/// A machine's DMI (SMBIOS) strings, borrowed; empty where the firmware gives none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are those of `DmiIdentity`
pub struct DmiStrings<'a> {
    pub bios_vendor: &'a str,
    pub bios_version: &'a str,
    pub sys_vendor: &'a str,
    pub product_name: &'a str,
    pub board_name: &'a str,
}

impl<'a> DmiStrings<'a> {
    /// The two strings that the built-in quirks look at; the others are empty, and can be set.
    pub const fn new(bios_vendor: &'a str, product_name: &'a str) -> Self {
        Self { bios_vendor, bios_version: "", sys_vendor: "", product_name, board_name: "" }
    }
}

/// A list of fragments, one of which a string has to contain; the empty list asks for nothing.
type Fragments = &'static [&'static str];

/// The machines that have a quirk, by their DMI (SMBIOS) strings: each string that is asked for contains one of its
/// fragments.
///
/// ```
/// use ioemul::{DmiMatch, DmiStrings};
/// const LATITUDE: DmiMatch = DmiMatch::new().sys_vendor(&["Dell Inc."]).product_name(&["Latitude E", "Latitude 7"]);
/// let mut dmi = DmiStrings::new("Dell Inc.", "Latitude E6420");
/// assert!(!LATITUDE.matches(&dmi)); // who built the machine is not known
/// dmi.sys_vendor = "Dell Inc.";
/// assert!(LATITUDE.matches(&dmi));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias("SMBIOS", "dmi_system_id"))]
pub struct DmiMatch {
    /// BIOS vendor (type 0).
    pub bios_vendor: &'static [&'static str],
    /// BIOS version (type 0).
    pub bios_version: &'static [&'static str],
    /// Who built the machine (type 1).
    pub sys_vendor: &'static [&'static str],
    /// Model of the machine (type 1).
    pub product_name: &'static [&'static str],
    /// Model of the main board (type 2).
    pub board_name: &'static [&'static str],
}

impl DmiMatch {
    /// Every machine.
    pub const fn new() -> Self {
        Self { bios_vendor: &[], bios_version: &[], sys_vendor: &[], product_name: &[], board_name: &[] }
    }

    /// The BIOS vendor contains one of these.
    pub const fn bios_vendor(mut self, fragments: &'static [&'static str]) -> Self {
        self.bios_vendor = fragments;
        self
    }

    /// The BIOS version contains one of these.
    pub const fn bios_version(mut self, fragments: &'static [&'static str]) -> Self {
        self.bios_version = fragments;
        self
    }

    /// The system's vendor contains one of these.
    pub const fn sys_vendor(mut self, fragments: &'static [&'static str]) -> Self {
        self.sys_vendor = fragments;
        self
    }

    /// The product name contains one of these.
    pub const fn product_name(mut self, fragments: &'static [&'static str]) -> Self {
        self.product_name = fragments;
        self
    }

    /// The board's name contains one of these.
    pub const fn board_name(mut self, fragments: &'static [&'static str]) -> Self {
        self.board_name = fragments;
        self
    }

    /// Whether a machine with these strings is meant.
    pub fn matches(&self, dmi: &DmiStrings<'_>) -> bool {
        let contains = |fragments: Fragments, string: &str| {
            fragments.is_empty() || fragments.iter().any(|fragment| is_within(fragment, string))
        };
        contains(self.bios_vendor, dmi.bios_vendor)
            && contains(self.bios_version, dmi.bios_version)
            && contains(self.sys_vendor, dmi.sys_vendor)
            && contains(self.product_name, dmi.product_name)
            && contains(self.board_name, dmi.board_name)
    }
}

/// `string.contains(fragment)`, in which there is no panic to be linked into a kernel.
fn is_within(fragment: &str, string: &str) -> bool {
    let (fragment, string) = (fragment.as_bytes(), string.as_bytes());
    (0..=string.len()).any(|at| string.get(at..).is_some_and(|rest| rest.starts_with(fragment)))
}
