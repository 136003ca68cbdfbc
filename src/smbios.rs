//! A machine's DMI strings, out of the SMBIOS structure table that its firmware has left in memory (DMTF DSP0134).
//!
//! ```text
//!   entry point  _SM3_ or _SM_, checksum, where the table is
//!   table        type  length  handle  fields …  string 1 NUL  string 2 NUL … NUL    type  length  handle  fields …  NUL NUL
//!                └──────── length bytes ───────┘                                     └───── length bytes ────────┘
//! ```
//!
//! Firmware wrote it, or whoever started this virtual machine: nothing in it is believed. It is read from its first byte to
//! its last, each byte a few times at most; what is cut off is left out.

use crate::DmiStrings;

impl<'a> DmiStrings<'a> {
    /// The strings in an SMBIOS structure table: of the first structure of each kind, as far as they are UTF-8.
    ///
    /// `table` is what an [`SmbiosEntryPoint`] leads to (Linux shows it as `/sys/firmware/dmi/tables/DMI`). Structures
    /// behind the first that is malformed are not looked at, and neither are those behind the one that marks the end.
    ///
    /// ```
    /// use ioemul::{DmiStrings, Quirk};
    /// let bios = [&[0, 6, 0, 0, 1, 2][..], b"HP\0P56\0\0"].concat(); // type 0: vendor is string 1, version string 2
    /// let system = [&[1, 6, 1, 0, 0, 1][..], b"ProLiant DL380 G5\0\0"].concat(); // type 1: no vendor, product
    /// let table = [bios, system].concat();
    /// let dmi = DmiStrings::from_smbios(&table);
    /// assert_eq!((dmi.bios_vendor, dmi.bios_version, dmi.product_name), ("HP", "P56", "ProLiant DL380 G5"));
    /// assert!(Quirk::PROLIANT.is_on_platform(&dmi));
    /// ```
    #[doc(alias("DMI", "dmidecode"))]
    pub fn from_smbios(table: &'a [u8]) -> Self {
        let mut strings = Self::default();
        let [mut bios, mut system, mut board] = [None; 3];
        for structure in structures(table) {
            let of_its_kind = match structure.kind {
                BIOS => &mut bios,
                SYSTEM => &mut system,
                BOARD => &mut board,
                _ => continue,
            };
            of_its_kind.get_or_insert(structure);
        }
        if let Some(bios) = bios {
            (strings.bios_vendor, strings.bios_version) = (bios.string(0x04), bios.string(0x05));
        }
        if let Some(system) = system {
            (strings.sys_vendor, strings.product_name) = (system.string(0x04), system.string(0x05));
        }
        if let Some(board) = board {
            strings.board_name = board.string(0x05);
        }
        strings
    }
}

/// Types of structures (DSP0134, 7).
const BIOS: u8 = 0;
const SYSTEM: u8 = 1;
const BOARD: u8 = 2;
const END_OF_TABLE: u8 = 127;

/// One structure.
#[derive(Clone, Copy)]
struct Structure<'a> {
    kind: u8,
    /// Header and fields.
    formatted: &'a [u8],
    /// Up to the NUL of the last string.
    strings: &'a [u8],
}

/// The structures of a table, up to the end or to one that is malformed: each is at least six bytes long.
fn structures(mut table: &[u8]) -> impl Iterator<Item = Structure<'_>> {
    core::iter::from_fn(move || {
        let (structure, rest) = Structure::split_from(table)?;
        table = rest;
        (structure.kind != END_OF_TABLE).then_some(structure)
    })
}

impl<'a> Structure<'a> {
    /// Type, length, handle.
    const HEADER: usize = 4;

    fn split_from(table: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&kind, &length) = (table.first()?, table.get(1)?);
        let (formatted, rest) =
            table.split_at_checked(length.into()).filter(|_| usize::from(length) >= Self::HEADER)?;
        let end = rest.windows(2).position(|pair| pair == [0, 0])?;
        let (strings, rest) = rest.split_at_checked(end + 2)?;
        Some((Self { kind, formatted, strings: strings.get(..end + 1)? }, rest))
    }

    /// The string whose number the field at this offset has: empty if it has none, or if there is no such field or string.
    fn string(&self, field: usize) -> &'a str {
        let number = self.formatted.get(field).copied().unwrap_or(0);
        let Some(index) = usize::from(number).checked_sub(1) else { return "" };
        let bytes = self.strings.split(|byte| *byte == 0).nth(index).unwrap_or_default();
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

/// Where the structure table is: what an SMBIOS entry point says, checked by its checksums.
///
/// The entry point's address comes from the UEFI configuration table, or else from a search
/// ([`find`](Self::find)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias("_SM_", "_SM3_"))]
pub struct SmbiosEntryPoint {
    /// Physical address of the structure table.
    pub address: u64,
    /// Its length in bytes; of a 64-bit entry point (`_SM3_`) its greatest possible length.
    ///
    /// The caller maps as much of it as there is memory for: this is a number that firmware wrote.
    pub length: u32,
}

impl SmbiosEntryPoint {
    /// The segment below 1 MiB in which firmware without UEFI leaves the entry point (DSP0134, 5.2.1), for
    /// [`Self::find`].
    pub const SEGMENT: core::ops::Range<u64> = 0xf_0000..0x10_0000;

    /// The entry point at the start of `bytes`, of either kind; `None` if it is none, is cut off, or a checksum is wrong.
    ///
    /// ```
    /// use ioemul::SmbiosEntryPoint;
    /// let mut bytes = *b"_SM3_\0\x18\x03\x06\x00\x01\x00\x00\x10\x00\x00\x00\x00\xf0\x7e\x00\x00\x00\x00";
    /// assert_eq!(SmbiosEntryPoint::parse(&bytes), None); // the checksum
    /// bytes[5] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    /// let entry_point = SmbiosEntryPoint::parse(&bytes).unwrap();
    /// assert_eq!((entry_point.address, entry_point.length), (0x7ef0_0000, 0x1000));
    /// ```
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::parse_64_bit(bytes).or_else(|| Self::parse_32_bit(bytes))
    }

    /// The first entry point at a multiple of 16 bytes; a 64-bit one if there is any.
    pub fn find(memory: &[u8]) -> Option<Self> {
        let at_paragraphs = || (0..memory.len()).step_by(16).filter_map(|at| memory.get(at..));
        at_paragraphs().find_map(Self::parse_64_bit).or_else(|| at_paragraphs().find_map(Self::parse_32_bit))
    }

    /// DSP0134, 5.2.2.
    fn parse_64_bit(bytes: &[u8]) -> Option<Self> {
        let entry_point = checked(bytes, b"_SM3_", 6, 0x18)?;
        let length = u32::from_le_bytes(*entry_point.get(0x0c..)?.first_chunk()?);
        let address = u64::from_le_bytes(*entry_point.get(0x10..)?.first_chunk()?);
        Some(Self { address, length })
    }

    /// DSP0134, 5.2.1. (Version 2.1 of the specification gave the length as 0x1E by mistake, and so does some firmware: the
    /// last byte is there all the same.)
    fn parse_32_bit(bytes: &[u8]) -> Option<Self> {
        checked(bytes, b"_SM_", 5, 0x1e)?;
        let intermediate = bytes.get(0x10..)?;
        let sum = intermediate.get(..0x0f)?.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        let length = u16::from_le_bytes(*intermediate.get(6..)?.first_chunk()?);
        let address = u32::from_le_bytes(*intermediate.get(8..)?.first_chunk()?);
        let is_good = intermediate.starts_with(b"_DMI_") && sum == 0;
        is_good.then_some(Self { address: address.into(), length: length.into() })
    }
}

/// An entry point that starts with `anchor`, has its length at an offset, is as long as that and no shorter than `shortest`,
/// and whose bytes add up to 0.
fn checked<'a>(bytes: &'a [u8], anchor: &[u8], length_at: usize, shortest: usize) -> Option<&'a [u8]> {
    if !bytes.starts_with(anchor) {
        return None;
    }
    let length = usize::from(*bytes.get(length_at)?);
    let entry_point = bytes.get(..length).filter(|_| length >= shortest)?;
    let sum = entry_point.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    (sum == 0).then_some(entry_point)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn structure(kind: u8, fields: &[u8], strings: &[u8]) -> Vec<u8> {
        [&[kind, fields.len() as u8 + 4, 0x34, 0x12], fields, strings, &[0]].concat()
    }

    fn table() -> Vec<u8> {
        let structures = [
            structure(17, &[1, 2, 3], b"DIMM 0\0bank\0"),
            structure(BOARD, &[1, 2], b"maker\0board\0"),
            structure(SYSTEM, &[2, 3, 1], b"1.0\0HPE\0ProLiant DL380 G5\0"),
            structure(4, &[], b"\0"),
            structure(BIOS, &[1, 2, 0, 0], b"HP\0P56 (01/01/2008)\0"),
            structure(SYSTEM, &[1, 1], b"a second one\0"),
            structure(END_OF_TABLE, &[], b"\0"),
            structure(BIOS, &[1, 1], b"behind the end\0"),
        ];
        structures.concat()
    }

    fn expected() -> DmiStrings<'static> {
        let mut strings = DmiStrings::new("HP", "ProLiant DL380 G5");
        (strings.bios_version, strings.sys_vendor, strings.board_name) = ("P56 (01/01/2008)", "HPE", "board");
        strings
    }

    #[test]
    fn the_first_structure_of_each_kind() {
        assert_eq!(DmiStrings::from_smbios(&table()), expected());
        assert_eq!(DmiStrings::from_smbios(&[]), DmiStrings::default());
        let behind_the_end = [structure(END_OF_TABLE, &[], b"\0"), table()].concat();
        assert_eq!(DmiStrings::from_smbios(&behind_the_end), DmiStrings::default());
    }

    /// A table that ends anywhere: what is whole counts, and nothing else.
    #[test]
    fn a_table_that_is_cut_off_anywhere() {
        let (table, whole) = (table(), expected());
        for len in 0..=table.len() {
            let strings = DmiStrings::from_smbios(&table[..len]);
            for (is, should_be) in [
                (strings.bios_vendor, whole.bios_vendor),
                (strings.sys_vendor, whole.sys_vendor),
                (strings.product_name, whole.product_name),
                (strings.board_name, whole.board_name),
            ] {
                assert!(is.is_empty() || is == should_be, "{len} bytes: {is:?}");
            }
        }
    }

    #[test]
    fn structures_that_are_malformed_end_the_table() {
        let good = structure(BIOS, &[1, 2], b"HP\0P56\0");
        for length in 0..4 {
            let bad = [&[BOARD, length, 7, 7, 0, 0][..], &good].concat();
            assert_eq!(DmiStrings::from_smbios(&bad), DmiStrings::default(), "length {length}");
        }
        let without_an_end = [&[BOARD, 4, 0, 0][..], &[b'x'; 100]].concat();
        assert_eq!(DmiStrings::from_smbios(&without_an_end), DmiStrings::default());
        let longer_than_the_table = [&[BIOS, 255, 0, 0, 1, 1][..], b"HP\0\0"].concat();
        assert_eq!(DmiStrings::from_smbios(&longer_than_the_table), DmiStrings::default());
    }

    #[test]
    fn numbers_of_strings_that_are_not_there() {
        for (fields, expected) in [
            (&[1, 2][..], ("HP", "P56")),
            (&[2, 1], ("P56", "HP")),
            (&[0, 3], ("", "")),
            (&[255, 4], ("", "")),
            (&[1], ("HP", "")),
            (&[], ("", "")),
        ] {
            let table = structure(BIOS, fields, b"HP\0P56\0");
            let strings = DmiStrings::from_smbios(&table);
            assert_eq!((strings.bios_vendor, strings.bios_version), expected, "{fields:?}");
        }
        // A field that is not there is not the first byte of the strings.
        let short = structure(BIOS, &[1], b"\x02HP\0P56\0");
        let strings = DmiStrings::from_smbios(&short);
        assert_eq!((strings.bios_vendor, strings.bios_version), ("\x02HP", ""));
        let not_utf8 = structure(BIOS, &[1, 2], b"\xffHP\0ProLiant \xae\0");
        let strings = DmiStrings::from_smbios(&not_utf8);
        assert_eq!((strings.bios_vendor, strings.bios_version), ("", "ProLiant "));
    }

    /// Ten megabytes of the smallest structures, of none, and of one that has no end.
    #[test]
    fn a_hostile_table_takes_linear_time() {
        // Counted, not timed: every structure starts at least six bytes behind the one before.
        let smallest = [3, 4, 0, 0, 0, 0].repeat(1_000_000);
        assert_eq!(structures(&smallest).count(), 1_000_000);
        let strings = [&[BIOS, 6, 0, 0, 255, 255][..], &[1, 0].repeat(3_000_000)].concat();
        assert_eq!(structures(&strings).count(), 0);
        DmiStrings::from_smbios(&strings);
    }

    fn seal(bytes: &mut [u8], checksum_at: usize) {
        bytes[checksum_at] = 0;
        bytes[checksum_at] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    }

    fn entry_point_64() -> [u8; 0x18] {
        let mut bytes = [0; 0x18];
        bytes[..7].copy_from_slice(b"_SM3_\0\x18");
        bytes[0x0c..0x10].copy_from_slice(&0x1234_u32.to_le_bytes());
        bytes[0x10..].copy_from_slice(&0x1_7ef0_0020_u64.to_le_bytes());
        seal(&mut bytes, 5);
        bytes
    }

    fn entry_point_32(length: u8) -> [u8; 0x1f] {
        let mut bytes = [0; 0x1f];
        bytes[..6].copy_from_slice(&[b'_', b'S', b'M', b'_', 0, length]);
        bytes[0x10..0x15].copy_from_slice(b"_DMI_");
        bytes[0x16..0x18].copy_from_slice(&0x0777_u16.to_le_bytes());
        bytes[0x18..0x1c].copy_from_slice(&0x000e_0010_u32.to_le_bytes());
        seal(&mut bytes[0x10..], 5);
        seal(&mut bytes[..length.into()], 4);
        bytes
    }

    const AT_64: SmbiosEntryPoint = SmbiosEntryPoint { address: 0x1_7ef0_0020, length: 0x1234 };
    const AT_32: SmbiosEntryPoint = SmbiosEntryPoint { address: 0x000e_0010, length: 0x0777 };

    #[test]
    fn entry_points_of_both_kinds() {
        assert_eq!(SmbiosEntryPoint::parse(&entry_point_64()), Some(AT_64));
        for length in [0x1f, 0x1e] {
            assert_eq!(SmbiosEntryPoint::parse(&entry_point_32(length)), Some(AT_32), "{length:#x}");
        }
        let longer = [&entry_point_64()[..], &[0x55; 16]].concat();
        assert_eq!(SmbiosEntryPoint::parse(&longer), Some(AT_64));
    }

    /// Any byte that is changed, and any length.
    #[test]
    fn an_entry_point_with_a_mistake_is_none() {
        for good in [&entry_point_64()[..], &entry_point_32(0x1f)] {
            for len in 0..good.len() {
                assert_eq!(SmbiosEntryPoint::parse(&good[..len]), None, "{len} bytes");
            }
            for at in 0..good.len() {
                let mut bad = good.to_vec();
                bad[at] ^= 0x20;
                assert_eq!(SmbiosEntryPoint::parse(&bad), None, "byte {at}");
            }
        }
        // Sums that are right, around a length that is not.
        for length in 7..0x18 {
            let mut short = entry_point_64();
            short[6] = length;
            seal(&mut short[..length.into()], 5);
            assert_eq!(SmbiosEntryPoint::parse(&short), None, "{length:#x}");
        }
        for length in 6..0x1e {
            let mut short = entry_point_32(0x1f);
            short[5] = length;
            seal(&mut short[..length.into()], 4);
            assert_eq!(SmbiosEntryPoint::parse(&short), None, "{length:#x}");
        }
        // The outer sum alone is not enough.
        let mut outer = entry_point_32(0x1f);
        outer[0x18] ^= 1;
        seal(&mut outer, 4);
        assert_eq!(SmbiosEntryPoint::parse(&outer), None);
    }

    #[test]
    fn a_search_finds_the_64_bit_one_first() {
        let mut segment = [0; 0x400];
        assert_eq!(SmbiosEntryPoint::find(&segment), None);
        segment[0x108..][..0x18].copy_from_slice(&entry_point_64()); // not at a multiple of 16
        assert_eq!(SmbiosEntryPoint::find(&segment), None);
        segment[0x200..][..0x1f].copy_from_slice(&entry_point_32(0x1f));
        assert_eq!(SmbiosEntryPoint::find(&segment), Some(AT_32));
        segment[0x300..][..0x18].copy_from_slice(&entry_point_64());
        assert_eq!(SmbiosEntryPoint::find(&segment), Some(AT_64));
        segment[0x310] ^= 1;
        assert_eq!(SmbiosEntryPoint::find(&segment), Some(AT_32));
        assert_eq!(SmbiosEntryPoint::find(&entry_point_32(0x1f)[1..]), None);
    }

    /// Linux' reading of this machine's table next to ours, where there is one and we may read it.
    #[cfg(all(feature = "std", target_os = "linux"))]
    #[test]
    fn as_linux_reads_this_machines_table() {
        let Ok(table) = std::fs::read("/sys/firmware/dmi/tables/DMI") else {
            std::println!("skipped: no SMBIOS table of this machine's can be read");
            return;
        };
        let entry_point = std::fs::read("/sys/firmware/dmi/tables/smbios_entry_point").unwrap();
        assert!(SmbiosEntryPoint::parse(&entry_point).is_some());
        let (identity, strings) = (crate::DmiIdentity::read().unwrap(), DmiStrings::from_smbios(&table));
        let utf8 = |string: &str| string.split('\u{fffd}').next().unwrap_or_default().trim().to_owned();
        for (linux, ours) in [
            (&identity.bios_vendor, strings.bios_vendor),
            (&identity.bios_version, strings.bios_version),
            (&identity.sys_vendor, strings.sys_vendor),
            (&identity.product_name, strings.product_name),
            (&identity.board_name, strings.board_name),
        ] {
            assert_eq!(utf8(linux), ours.trim());
        }
    }
}
