//! Any text as a port set: parsed or refused with the item and its place, and what is parsed is printed and parsed again.
#![no_main]

use ioemul::{PortSet, Width};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<PortSet>() {
        Ok(set) => {
            let printed = set.to_string();
            assert_eq!(printed.parse::<PortSet>().as_ref(), Ok(&set), "{printed}");
            let ranges: Vec<_> = set.ranges().collect();
            assert!(ranges.windows(2).all(|pair| u32::from(*pair[0].end()) + 1 < u32::from(*pair[1].start())));
            assert_eq!(ranges.iter().cloned().collect::<PortSet>(), set);
            assert_eq!(PortSet::from_tss_bitmap(set.as_tss_bitmap()), set);
            for range in ranges {
                assert!(set.permits(*range.start(), Width::Byte) && set.permits(*range.end(), Width::Byte));
                assert!(range.end().checked_add(1).is_none_or(|port| !set.permits(port, Width::Byte)));
            }
        }
        Err(error) => {
            // Quoted from there on: at most 64 characters, control characters escaped.
            let rest = text.chars().skip(error.column - 1);
            let rest: String =
                rest.map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect();
            let (shown, cut) = error.item.strip_suffix('…').map_or((&*error.item, false), |shown| (shown, true));
            assert!(rest.starts_with(&error.item) || cut && rest.starts_with(shown), "{error}");
            assert!(error.item.chars().filter(|c| *c != '\\').count() <= 64 * 8);
            assert!(error.to_string().contains(&error.problem.to_string()));
        }
    }
});
