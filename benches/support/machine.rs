//! What the figures were measured on, and when: they mean nothing without it.

use std::time::{SystemTime, UNIX_EPOCH};

/// The CPU as the system names it, and the numbers that identify it.
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |wanted: &str| {
        let mut fields = info.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.trim() == wanted).map_or("?", |(_, value)| value.trim())
    };
    let virtual_machine =
        if field("flags").split(' ').any(|flag| flag == "hypervisor") { ", virtual machine" } else { "" };
    format!(
        "{}, family {} model {} stepping {}{virtual_machine}",
        field("model name"),
        field("cpu family"),
        field("model"),
        field("stepping"),
    )
}

/// Today's date in UTC, as in 2026-01-31.
pub fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Days since 1 March of year 0, in eras of 400 years: the leap day comes last in a year, and months repeat every five.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    format!("{:04}-{month:02}-{day:02}", 400 * era + year)
}
