//! Who has which ports on this machine: `/proc/ioports`, Linux's tree of them.
//!
//! ```text
//! 0000-0cf7 : PCI Bus 0000:00        a window: what is behind it, not who drives it
//!   0070-0077 : rtc0                 a driver
//!   0400-047f : pnp 00:05            kept free for the main board: nobody drives it
//!     0400-0403 : ACPI PM1a_EVT_BLK  the kernel itself
//! 3000-3fff : PCI Bus 0000:01
//!   3060-307f : 0000:00:1f.2         a PCI function: nobody drives it
//!     3060-307f : ahci               or somebody does
//! ```
//!
//! (Linux: kernel/resource.c writes the file; drivers/pnp/system.c makes the reservations.)

use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::Width;
use crate::quote::quoted;

/// Of a file, no more than this is read: on a large server it has some ten kilobytes.
const LONGEST: u64 = 1 << 20;

/// Who has which ports, for those who are about to touch some.
///
/// A value of this type knows: where the kernel hides the ports from this process, or a line cannot be understood, there is
/// an error and no value, and no port is taken for free.
///
/// ```
/// use ioemul::{IoPortOwners, Width};
/// let owners = IoPortOwners::parse("0000-0cf7 : PCI Bus 0000:00\n  0070-0071 : rtc_cmos\n  0400-047f : pnp 00:05\n")?;
/// assert_eq!(owners.owner(0x70, Width::Byte).unwrap().name, "rtc_cmos");
/// assert_eq!(owners.owner(0x6e, Width::Dword).unwrap().ports, 0x70..=0x71); // it covers 0x6e to 0x71
/// assert_eq!(owners.owner(0x400, Width::Byte), None); // kept free, driven by nobody
/// # Ok::<(), ioemul::IoPortOwnersError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "/proc/ioports")]
pub struct IoPortOwners {
    /// As in the file: each entry before those within it.
    entries: Vec<PortOwner>,
}

/// One entry of `/proc/ioports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PortOwner {
    /// The ports.
    pub ports: RangeInclusive<u16>,
    /// The kernel's name for whoever has them.
    pub name: String,
    /// How many entries this one is within.
    pub depth: usize,
}

impl PortOwner {
    /// Whether a driver, or the kernel itself, uses the ports, so that an access from elsewhere comes between.
    ///
    /// Three kinds of entry say that nobody does: the window of a bus (`PCI Bus 0000:00`), a PCI function that no driver
    /// has claimed (`0000:00:1f.2`), and what the PNP system driver keeps other drivers away from (`pnp 00:05`). A name of
    /// any other form counts as a driver's.
    pub fn is_driver(&self) -> bool {
        let name = &*self.name;
        let is_window = name.starts_with("PCI Bus ") || name.starts_with("PCI CardBus ");
        !is_window && !is_pci_function(name) && !is_pnp_reservation(name)
    }
}

/// `0000:00:1f.2`: domain (longer behind some bridges), bus, device, function.
fn is_pci_function(name: &str) -> bool {
    let Some((address, function)) = name.rsplit_once('.') else { return false };
    let mut parts = address.split(':');
    let mut is_hex_of = |least, most| {
        let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        parts.next().is_some_and(|part| (least..=most).contains(&part.len()) && is_hex(part))
    };
    let is_address = is_hex_of(4, 8) && is_hex_of(2, 2) && is_hex_of(2, 2);
    is_address && parts.next().is_none() && matches!(function.as_bytes(), [b'0'..=b'7'])
}

/// `pnp 00:05`: protocol and number of a device.
fn is_pnp_reservation(name: &str) -> bool {
    let is_hex = |part: &str| part.len() >= 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let device = name.strip_prefix("pnp ").and_then(|device| device.split_once(':'));
    device.is_some_and(|(protocol, number)| is_hex(protocol) && is_hex(number))
}

impl IoPortOwners {
    /// Where Linux tells. It shows the numbers to those that have CAP_SYS_ADMIN, and zeros to all others.
    pub const PATH: &str = "/proc/ioports";

    /// This machine's, from [`PATH`](Self::PATH).
    ///
    /// # Errors
    ///
    /// [`IoPortOwnersError::Hidden`] without CAP_SYS_ADMIN; [`IoPortOwnersError::Os`] for a file that cannot be read; and
    /// as for [`parse`](Self::parse).
    pub fn read() -> Result<Self, IoPortOwnersError> {
        Self::read_from(Self::PATH)
    }

    /// As [`read`](Self::read), from a file of the same form. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read), and [`IoPortOwnersError::TooLong`].
    pub fn read_from(path: impl AsRef<Path>) -> Result<Self, IoPortOwnersError> {
        let path = path.as_ref();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
            .map_err(|source| IoPortOwnersError::Os { path: path.to_owned(), source })?;
        if bytes.len() as u64 > LONGEST {
            return Err(IoPortOwnersError::TooLong { path: path.to_owned() });
        }
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    ///
    /// [`IoPortOwnersError::Line`] for a line that is none of the file's; [`IoPortOwnersError::Hidden`] where all ports are
    /// zeros; [`IoPortOwnersError::Empty`] for a text without lines.
    pub fn parse(text: &str) -> Result<Self, IoPortOwnersError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
        let entries = lines.map(|(index, line)| {
            parse_line(line).ok_or_else(|| IoPortOwnersError::Line { number: index + 1, line: quoted(line) })
        });
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Err(IoPortOwnersError::Empty);
        }
        if entries.iter().all(|entry| entry.ports == (0..=0)) {
            return Err(IoPortOwnersError::Hidden);
        }
        Ok(Self { entries })
    }

    /// The driver of a port that an access of this width to `port` touches: of the lowest such port that has one, and of
    /// several drivers within each other the innermost.
    ///
    /// `None` means that no driver has any of the ports. [`all`](Self::all) has the other drivers, if there are more.
    pub fn owner(&self, port: u16, width: Width) -> Option<&PortOwner> {
        // Entries that share a port are within each other, and the innermost is the last in the file.
        let driver = |port| self.entries.iter().rfind(|entry| entry.ports.contains(&port) && entry.is_driver());
        touched(port, width).find_map(driver)
    }

    /// All entries that have a port which such an access touches, drivers or not, each before those within it.
    pub fn all(&self, port: u16, width: Width) -> impl Iterator<Item = &PortOwner> {
        let touched = touched(port, width);
        let overlaps =
            move |ports: &RangeInclusive<u16>| ports.start() <= touched.end() && touched.start() <= ports.end();
        self.entries.iter().filter(move |entry| overlaps(&entry.ports))
    }

    /// All entries, each before those within it.
    pub fn entries(&self) -> &[PortOwner] {
        &self.entries
    }
}

/// The ports of an access, up to the last that there is.
fn touched(port: u16, width: Width) -> RangeInclusive<u16> {
    port..=port.saturating_add(u16::from(width.bytes()) - 1)
}

/// `  0070-0077 : rtc0`: two spaces for each entry that it is within.
fn parse_line(line: &str) -> Option<PortOwner> {
    let entry = line.trim_start_matches(' ');
    let depth = (line.len() - entry.len()) / 2;
    let (ports, name) = entry.split_once(" : ")?;
    let (first, last) = ports.split_once('-')?;
    let ports = number(first)?..=number(last)?;
    (!ports.is_empty()).then(|| PortOwner { ports, name: name.to_owned(), depth })
}

/// Digits alone, four or more of them.
fn number(digits: &str) -> Option<u16> {
    let is_number = digits.len() >= 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| is_number)
}

/// Why it is not known who has which ports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoPortOwnersError {
    /// All entries are shown as port 0.
    #[error(
        "/proc/ioports hides from this process who has which port: it shows that to CAP_SYS_ADMIN alone (run as root; \
         CAP_SYS_RAWIO is not enough)"
    )]
    Hidden,
    /// There are no entries. On a PC there are always some: of the interrupt controller, for one.
    #[error("this /proc/ioports has no entries, which cannot be on a PC: no port is known to be free")]
    Empty,
    /// A line has another form, or ports that are none.
    #[error(
        "line {number} of this /proc/ioports is not of the form `0070-0077 : rtc0`, or has ports above ffff: {line}"
    )]
    Line {
        /// Its number, from 1.
        number: usize,
        /// Its text: at most 64 characters, control characters escaped.
        line: String,
    },
    /// It has more than a mebibyte.
    #[error("{} has more than 1 MiB, and is not read as a list of ports", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{} cannot be read: who has which port is not known", path.display())]
    Os {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
