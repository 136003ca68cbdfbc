//! What firmware and kernel say about a machine, with anything in it: a FADT and a list of ports, against readers written a
//! second time, in the plainest way.
#![no_main]

use ioemul::{Fadt, FadtError, IoPortOwners, IoPortOwnersError, Width};
use libfuzzer_sys::fuzz_target;

fn sum(bytes: &[u8]) -> u8 {
    (bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>() % 256) as u8
}

/// The bytes as they are, and with a checksum that is right: a search for one is not the point.
fn fadt(data: &[u8]) {
    let mut sealed = data.to_vec();
    if let Some(length) = data.get(4..8).map(|length| u32::from_le_bytes(length.try_into().unwrap()) as usize) {
        if length > 9 && length <= data.len() {
            sealed[9] = sealed[9].wrapping_sub(sum(&data[..length]));
        }
    }
    for table in [data, &sealed] {
        let parsed = Fadt::parse(table);
        let length = table.get(4..8).map(|length| u32::from_le_bytes(length.try_into().unwrap()) as usize);
        let is_good = table.starts_with(b"FACP")
            && length.is_some_and(|length| length >= 116 && length <= table.len() && sum(&table[..length]) == 0);
        assert_eq!(parsed.is_ok(), is_good);
        let fadt = match parsed {
            Ok(fadt) => fadt,
            Err(FadtError::Signature { found }) => {
                assert_eq!(found, table[..4]);
                continue;
            }
            Err(error) => {
                assert!(table.len() < 4 || table.starts_with(b"FACP"), "{error}");
                continue;
            }
        };
        assert_eq!(Fadt::parse(&fadt.to_table()), Ok(fadt));
        let smi_cmd = u32::from_le_bytes(table[48..52].try_into().unwrap());
        let is_reduced = table[114] & 0x10 != 0;
        let port = u16::try_from(smi_cmd).ok().filter(|port| *port != 0 && !is_reduced);
        assert_eq!(fadt.smi_port(), port);
        assert_eq!(fadt.smi_command().ok(), port);

        let fields = [52, 53, 54, 55, 95].map(|at| table[at]);
        let getters = [fadt.acpi_enable(), fadt.acpi_disable(), fadt.s4bios_req(), fadt.pstate_cnt(), fadt.cst_cnt()];
        let mut reserved = fadt.reserved_codes().map(|(code, _)| code);
        for (index, (field, getter)) in fields.into_iter().zip(getters).enumerate() {
            let is_code = field != 0 || index < 2 && (fields[0] != 0 || fields[1] != 0);
            assert_eq!(getter, (is_code && smi_cmd != 0 && !is_reduced).then_some(field));
            assert!(!is_code || reserved.next() == Some(field));
        }
        assert_eq!(reserved.next(), None);
        for text in [fadt.oem_id(), fadt.oem_table_id()] {
            assert!(text.chars().all(|letter| matches!(letter, ' '..='~')), "{text:?}");
        }
    }
}

/// First and last port, and the name.
type Entry = (u32, u32, String);

/// The entries of a list; the number of the first line that is none.
fn list(text: &str) -> Result<Vec<Entry>, usize> {
    let mut entries = vec![];
    let count = text.split('\n').count();
    for (index, line) in text.split('\n').enumerate() {
        // "\r\n" ends a line, and "\r" alone does not.
        let line = if index + 1 < count { line.strip_suffix('\r').unwrap_or(line) } else { line };
        if line.is_empty() {
            continue;
        }
        let entry = || {
            let (ports, name) =
                line.trim_start_matches(' ').split_at_checked(line.trim_start_matches(' ').find(" : ")?)?;
            let (first, last) = ports.split_at_checked(ports.find('-')?)?;
            let number = |digits: &str| {
                let value = digits.chars().try_fold(0_u64, |value, digit| {
                    Some((value * 16).saturating_add(digit.to_digit(16)?.into()).min(1 << 40))
                });
                value.filter(|value| digits.len() >= 4 && *value <= 0xffff).map(|value| value as u32)
            };
            let (first, last) = (number(first)?, number(&last[1..])?);
            (first <= last).then(|| (first, last, name[3..].to_owned()))
        };
        entries.push(entry().ok_or(index + 1)?);
    }
    Ok(entries)
}

fn ports(text: &str) {
    let owners = IoPortOwners::parse(text);
    match list(text) {
        Err(line) => assert!(matches!(owners, Err(IoPortOwnersError::Line { number, .. }) if number == line)),
        Ok(entries) if entries.is_empty() => assert!(matches!(owners, Err(IoPortOwnersError::Empty))),
        Ok(entries) if entries.iter().all(|entry| (entry.0, entry.1) == (0, 0)) => {
            assert!(matches!(owners, Err(IoPortOwnersError::Hidden)));
        }
        Ok(entries) => {
            let owners = owners.unwrap();
            let read = owners.entries().iter();
            let read =
                read.map(|entry| (u32::from(*entry.ports.start()), u32::from(*entry.ports.end()), entry.name.clone()));
            assert!(read.eq(entries.iter().cloned()));
            let near =
                entries.iter().take(16).flat_map(|entry| [entry.0.saturating_sub(1), entry.0, entry.1, entry.1 + 1]);
            for port in near.filter_map(|port| u16::try_from(port).ok()) {
                for &width in Width::ALL {
                    let all: Vec<_> = owners.all(port, width).collect();
                    let end = u32::from(port) + u32::from(width.bytes());
                    let expected = entries.iter().filter(|entry| entry.0 < end && entry.1 >= port.into()).count();
                    assert_eq!(all.len(), expected);
                    // No port that a driver has is free, and none has an owner that is no driver.
                    let owner = owners.owner(port, width);
                    assert_eq!(owner.is_some(), all.iter().any(|entry| entry.is_driver()));
                    assert!(owner.is_none_or(|owner| owner.is_driver() && all.contains(&owner)));
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    fadt(data);
    ports(&String::from_utf8_lossy(data));
});
