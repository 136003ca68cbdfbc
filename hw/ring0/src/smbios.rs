//! Who this machine is: the DMI strings that quirks are chosen by, from the table that the firmware has left in memory.

use ioemul::{DmiStrings, SmbiosEntryPoint};

/// The strings; empty where the firmware says nothing.
pub fn strings() -> DmiStrings<'static> {
    // SAFETY: memory below 1 GiB is mapped as it lies, and nothing writes to the firmware's.
    let memory = |at: u64, len: usize| unsafe { core::slice::from_raw_parts(at as usize as *const u8, len) };
    let segment = SmbiosEntryPoint::SEGMENT;
    let entry_point = SmbiosEntryPoint::find(memory(segment.start, (segment.end - segment.start) as usize));
    let is_mapped = |at: &SmbiosEntryPoint| at.address + u64::from(at.length) <= 1 << 30;
    let table = entry_point.filter(is_mapped).map_or(&[][..], |at| memory(at.address, at.length as usize));
    DmiStrings::from_smbios(table)
}
