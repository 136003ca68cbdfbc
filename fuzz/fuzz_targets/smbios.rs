//! Any bytes as an SMBIOS structure table, next to a parser that goes byte by byte; and any bytes as memory in which an
//! entry point is looked for.
#![no_main]

use ioemul::{DmiStrings, SmbiosEntryPoint};
use libfuzzer_sys::fuzz_target;

/// The structures of the kinds that count, first ones only: their formatted part, and their strings.
fn parse(table: &[u8]) -> [Option<(Vec<u8>, Vec<Vec<u8>>)>; 3] {
    let mut found = [const { None }; 3];
    let mut at = 0;
    while at + 4 <= table.len() {
        let (kind, len) = (table[at], table[at + 1] as usize);
        if len < 4 || at + len > table.len() {
            break;
        }
        let formatted = table[at..at + len].to_vec();
        let (mut strings, mut string, mut end) = (vec![], vec![], at + len);
        loop {
            if end + 1 >= table.len() {
                return found; // cut off
            }
            if table[end] == 0 {
                strings.push(std::mem::take(&mut string));
                if table[end + 1] == 0 {
                    break;
                }
            } else {
                string.push(table[end]);
            }
            end += 1;
        }
        if kind == 127 {
            break;
        }
        if let Some(place @ None) = found.get_mut(kind as usize) {
            *place = Some((formatted, strings));
        }
        at = end + 2;
    }
    found
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).split('\u{fffd}').next().unwrap().to_owned()
}

fuzz_target!(|data: &[u8]| {
    let dmi = DmiStrings::from_smbios(data);
    let structures = parse(data);
    let string = |kind: usize, field: usize| {
        let (formatted, strings) = structures[kind].as_ref()?;
        let number = *formatted.get(field)? as usize;
        strings.get(number.checked_sub(1)?).map(|string| utf8(string))
    };
    for (is, kind, field) in [
        (dmi.bios_vendor, 0, 4),
        (dmi.bios_version, 0, 5),
        (dmi.sys_vendor, 1, 4),
        (dmi.product_name, 1, 5),
        (dmi.board_name, 2, 5),
    ] {
        // A U+FFFD that firmware has written cannot be told from one that stands for a mistake.
        if !is.contains('\u{fffd}') {
            assert_eq!(is, string(kind, field).unwrap_or_default());
        }
    }

    let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let good = |at: usize| {
        let bytes = &data[at..];
        let whole = |at: usize, least: usize| {
            bytes
                .get(at)
                .is_some_and(|len| *len as usize >= least && bytes.get(..*len as usize).is_some_and(|b| sum(b) == 0))
        };
        let v3 = bytes.starts_with(b"_SM3_") && whole(6, 0x18);
        let dmi = bytes.get(0x10..0x1f).is_some_and(|dmi| dmi.starts_with(b"_DMI_") && sum(dmi) == 0);
        v3 || bytes.starts_with(b"_SM_") && whole(5, 0x1e) && dmi
    };
    let expected = (0..data.len()).step_by(16).any(good);
    assert_eq!(SmbiosEntryPoint::find(data).is_some(), expected);
    assert_eq!(SmbiosEntryPoint::parse(data).is_some(), !data.is_empty() && good(0));
});
