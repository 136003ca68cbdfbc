//! A UEFI application out of an ELF file: one segment, linked for one address, behind the headers that firmware reads
//! (Microsoft's PE format; UEFI specification 2.10, 2.1.1).

use anyhow::{Context, Result, ensure};

const PAGE: usize = 0x1000;
const SECTOR: usize = 0x200;

/// The file: its one section lies a page behind `base`, which is where firmware has to load it.
pub fn from_elf(elf: &[u8], base: u64) -> Result<Vec<u8>> {
    let Segment { address, entry, bytes, size } = segment(elf)?;
    ensure!(address == base + PAGE as u64, "the segment is at {address:#x}, and not a page behind {base:#x}");
    let (raw, size) = (bytes.len().next_multiple_of(SECTOR), u32::try_from(size.next_multiple_of(PAGE))?);
    let mut file = Vec::new();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // DOS header: its magic number, and where the next one is.
    put(b"MZ");
    put(&[0; 58]);
    put(&64_u32.to_le_bytes());
    // COFF header: x86-64, one section, 240 bytes of optional header; no relocations, executable, large addresses.
    put(b"PE\0\0");
    for half in [0x8664_u16, 1, 0, 0, 0, 0, 0, 0, 240, 0x0001 | 0x0002 | 0x0020] {
        put(&half.to_le_bytes());
    }
    // Optional header, PE32+.
    put(&0x20b_u16.to_le_bytes());
    put(&[0; 2]);
    let entry = u32::try_from(entry - base)?;
    for word in [raw as u32, 0, 0, entry, PAGE as u32] {
        put(&word.to_le_bytes()); // sizes of code and data, entry, base of code
    }
    put(&base.to_le_bytes());
    for word in [PAGE as u32, SECTOR as u32, 0, 0, 0, 0, PAGE as u32 + size, SECTOR as u32 * 2, 0] {
        put(&word.to_le_bytes()); // alignments, versions, sizes of image and headers, checksum
    }
    put(&10_u16.to_le_bytes()); // an EFI application
    put(&[0; 2]);
    put(&[0; 32]); // sizes of stack and heap
    put(&[0; 4]);
    put(&16_u32.to_le_bytes());
    put(&[0; 16 * 8]); // directories: none
    // The section: code and data, executable, readable, writable.
    put(b".image\0\0");
    for word in [size, PAGE as u32, raw as u32, SECTOR as u32 * 2, 0, 0, 0, 0xe000_0060] {
        put(&word.to_le_bytes());
    }
    file.resize(SECTOR * 2, 0);
    file.extend_from_slice(bytes);
    file.resize(SECTOR * 2 + raw, 0);
    Ok(file)
}

/// What is to be loaded.
struct Segment<'a> {
    address: u64,
    entry: u64,
    bytes: &'a [u8],
    /// In memory, zeros behind the bytes included.
    size: usize,
}

/// The only PT_LOAD of a 64-bit ELF file.
fn segment(elf: &[u8]) -> Result<Segment<'_>> {
    let number = |at: usize, len: usize| -> Result<u64> {
        let bytes = elf.get(at..at + len).context("the ELF file is cut off")?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "this is no 64-bit ELF file");
    let (headers, each, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    let mut found = None;
    for at in (0..count).map(|index| headers + index * each) {
        const LOAD: u64 = 1;
        if number(at, 4)? == LOAD {
            ensure!(found.is_none(), "there is more than one segment");
            let (offset, len) = (number(at + 8, 8)? as usize, number(at + 32, 8)? as usize);
            let bytes = elf.get(offset..offset + len).context("the segment is cut off")?;
            let (address, size) = (number(at + 16, 8)?, number(at + 40, 8)? as usize);
            found = Some(Segment { address, entry: number(24, 8)?, bytes, size });
        }
    }
    found.context("there is no segment to be loaded")
}
