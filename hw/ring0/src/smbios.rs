//! Who this machine is: the two DMI strings that quirks are chosen by, from the tables that the firmware left below 1 MiB
//! (DMTF DSP0134).

/// BIOS vendor and product name; empty where the firmware says nothing.
pub fn vendor_and_product() -> (&'static str, &'static str) {
    // SAFETY: the firmware's segment is mapped as it lies, and nothing writes to it.
    let firmware = unsafe { core::slice::from_raw_parts(0xf_0000 as *const u8, 0x1_0000) };
    let Some(anchor) = firmware.chunks(16).position(|line| line.starts_with(b"_SM_")) else { return ("", "") };
    let entry_point = &firmware[anchor * 16..];
    let length = u16::from_le_bytes([entry_point[0x16], entry_point[0x17]]);
    let address = u32::from_le_bytes([entry_point[0x18], entry_point[0x19], entry_point[0x1a], entry_point[0x1b]]);
    // SAFETY: the entry point says that the table is there.
    let mut table = unsafe { core::slice::from_raw_parts(address as usize as *const u8, length.into()) };
    let (mut vendor, mut product) = ("", "");
    // A structure: type, length, handle, fields; then strings, each ending in NUL, and one NUL more.
    while let [kind, length, ..] = *table {
        let (fields, rest) = table.split_at(usize::from(length).min(table.len()));
        match kind {
            0 => vendor = string(rest, fields[4]),
            1 => product = string(rest, fields[5]),
            _ => {}
        }
        let Some(end) = rest.windows(2).position(|pair| pair == [0, 0]) else { break };
        table = &rest[end + 2..];
    }
    (vendor, product)
}

/// String number `index` (from 1) of a structure.
fn string(strings: &'static [u8], index: u8) -> &'static str {
    let found = usize::from(index).checked_sub(1).and_then(|index| strings.split(|byte| *byte == 0).nth(index));
    found.and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
}
