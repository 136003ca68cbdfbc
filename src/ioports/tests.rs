use std::{env, fs, process};

use proptest::prelude::*;

use super::*;

/// A laptop, as root sees it: reservations, ACPI's registers, functions with and without a driver.
const LAPTOP: &str = "\
0000-0cf7 : PCI Bus 0000:00
  0000-001f : dma1
  0020-0021 : PNP0001:00
    0020-0021 : pic1
  0040-0043 : timer0
  0050-0053 : timer1
  0060-0060 : keyboard
  0061-0061 : PNP0800:00
  0062-0062 : PNP0C09:00
    0062-0062 : EC data
  0064-0064 : keyboard
  0066-0066 : PNP0C09:00
    0066-0066 : EC cmd
  0070-0077 : rtc0
  0080-008f : dma page reg
  00a0-00a1 : pic2
  00c0-00df : dma2
  00f0-00ff : fpu
  0400-041f : iTCO_wdt.1.auto
    0400-041f : iTCO_wdt
  0680-069f : pnp 00:04
0cf8-0cff : PCI conf1
0d00-ffff : PCI Bus 0000:00
  164e-164f : pnp 00:04
  1800-18fe : pnp 00:04
    1800-1803 : ACPI PM1a_EVT_BLK
    1804-1805 : ACPI PM1a_CNT_BLK
    1808-180b : ACPI PM_TMR
    1850-1850 : ACPI PM2_CNT_BLK
    1860-187f : ACPI GPE0_BLK
  3000-303f : 0000:00:02.0
  3060-307f : 0000:00:17.0
    3060-307f : ahci
  4000-5fff : PCI Bus 0000:01
    4000-40ff : 10000:e1:00.0
  efa0-efbf : 0000:00:1f.4
    efa0-efbf : i801_smbus
";

/// A small virtual machine.
const VIRTUAL: &str = "\
0000-0cf7 : PCI Bus 0000:00
  0000-001f : dma1
  0020-0021 : pic1
  0070-0071 : rtc_cmos
  03f8-03ff : serial
0cf8-0cff : PCI conf1
0d00-ffff : PCI Bus 0000:00
";

/// The same, as anybody but root sees it.
const HIDDEN: &str = "\
0000-0000 : PCI Bus 0000:00
  0000-0000 : dma1
  0000-0000 : pic1
  0000-0000 : rtc_cmos
  0000-0000 : serial
0000-0000 : PCI conf1
0000-0000 : PCI Bus 0000:00
";

fn owner(owners: &IoPortOwners, port: u16, width: Width) -> Option<&str> {
    owners.owner(port, width).map(|owner| &*owner.name)
}

#[test]
fn a_laptop() {
    let laptop = IoPortOwners::parse(LAPTOP).unwrap();
    assert_eq!(laptop.entries().len(), LAPTOP.lines().count());
    for (port, expected) in [
        (0x00, Some("dma1")),
        (0x20, Some("pic1")),
        (0x61, Some("PNP0800:00")), // a name that is not known counts as a driver's
        (0x66, Some("EC cmd")),
        (0x70, Some("rtc0")),
        (0x78, None),
        (0xb2, None),
        (0x400, Some("iTCO_wdt")),
        (0x680, None), // a reservation
        (0xcf8, Some("PCI conf1")),
        (0x1800, Some("ACPI PM1a_EVT_BLK")),
        (0x1806, None),
        (0x1860, Some("ACPI GPE0_BLK")),
        (0x3000, None), // a function without a driver
        (0x3060, Some("ahci")),
        (0x4000, None),
        (0xefbf, Some("i801_smbus")),
        (0xefc0, None),
        (0xffff, None),
    ] {
        assert_eq!(owner(&laptop, port, Width::Byte), expected, "port {port:#x}");
    }
}

#[test]
fn a_virtual_machine() {
    let machine = IoPortOwners::parse(VIRTUAL).unwrap();
    assert_eq!(owner(&machine, 0x71, Width::Byte), Some("rtc_cmos"));
    assert_eq!(owner(&machine, 0xb2, Width::Byte), None);
    let serial = machine.owner(0x3ff, Width::Byte).unwrap();
    assert_eq!((serial.ports.clone(), serial.depth), (0x3f8..=0x3ff, 1));
}

/// All ports of an access count, and no port behind it.
#[test]
fn the_width_of_an_access() {
    let laptop = IoPortOwners::parse(LAPTOP).unwrap();
    assert_eq!(owner(&laptop, 0x6d, Width::Word), None);
    assert_eq!(owner(&laptop, 0x6c, Width::Dword), None);
    assert_eq!(owner(&laptop, 0x6d, Width::Dword), Some("rtc0"));
    assert_eq!(owner(&laptop, 0x6f, Width::Word), Some("rtc0"));
    assert_eq!(owner(&laptop, 0x77, Width::Word), Some("rtc0"));
    assert_eq!(owner(&laptop, 0x60, Width::Dword), Some("keyboard")); // the lowest of three
    assert_eq!(owner(&laptop, 0xffff, Width::Dword), None);
    let last = IoPortOwners::parse("ffff-ffff : last\n").unwrap();
    assert_eq!(owner(&last, 0xfffe, Width::Dword), Some("last"));
}

#[test]
fn all_entries_of_an_access() {
    let laptop = IoPortOwners::parse(LAPTOP).unwrap();
    let all = |port, width| laptop.all(port, width).map(|entry| (entry.depth, &*entry.name)).collect::<Vec<_>>();
    assert_eq!(
        all(0x1802, Width::Dword),
        [(0, "PCI Bus 0000:00"), (1, "pnp 00:04"), (2, "ACPI PM1a_EVT_BLK"), (2, "ACPI PM1a_CNT_BLK")]
    );
    assert_eq!(all(0xb2, Width::Byte), [(0, "PCI Bus 0000:00")]);
}

#[test]
fn names_of_drivers_and_of_others() {
    let is_driver = |name: &str| PortOwner { ports: 0..=0, name: name.to_owned(), depth: 0 }.is_driver();
    for name in [
        "PCI Bus 0000:00",
        "PCI Bus #01",
        "PCI CardBus 0000:03",
        "0000:00:1f.2",
        "10000:e1:00.0",
        "0000:ff:1f.7",
        "pnp 00:05",
    ] {
        assert!(!is_driver(name), "{name}");
    }
    for name in [
        "PCI conf1",
        "ACPI PM_TMR",
        "ACPI GPE0_BLK",
        "pnpbios",
        "pnp",
        "pnp driver",
        "pnp zz:05",
        "pnp 01:01.00", // a function of an ISA card
        "PNP0C09:00",
        "00:1f.2",
        "0000:00:1f",
        "0000:00:1f.8",
        "0000:00:1f.10",
        "0000:00:1f.",
        "0000:00:1f.2 ahci",
        "0000:0:1f.2",
        "0000:00:00:1f.2",
        "iTCO_wdt.1.auto",
        "PCI Business",
        "<BAD>",
        "",
        "reserved",
    ] {
        assert!(is_driver(name), "{name}");
    }
}

/// Whoever is shown zeros must not take every port for free.
#[test]
fn what_the_kernel_hides_is_no_free_port() {
    for text in [HIDDEN, &HIDDEN.replace("0000-0000", "00000000-00000000"), "0000-0000 : PCI Bus 0000:00"] {
        assert!(matches!(IoPortOwners::parse(text), Err(IoPortOwnersError::Hidden)), "{text}");
    }
    // One that has a port is enough, and so is port 0 next to others.
    let shown = IoPortOwners::parse("0000-0000 : a\n0000-0001 : b\n").unwrap();
    assert_eq!(owner(&shown, 1, Width::Byte), Some("b"));
}

#[test]
fn a_text_without_entries_is_no_free_port() {
    for text in ["", "\n", "\n\n"] {
        assert!(matches!(IoPortOwners::parse(text), Err(IoPortOwnersError::Empty)), "{text:?}");
    }
}

#[test]
fn lines_of_another_form() {
    for line in [
        "0070-0077 rtc0",
        "0070-0077: rtc0",
        "0070 : rtc0",
        "0070-00g7 : rtc0",
        "+070-0077 : rtc0",
        "0077-0070 : rtc0",
        "70-77 : rtc0",
        "-0077 : rtc0",
        "0070- : rtc0",
        "\t0070-0077 : rtc0",
        "0070-10000 : rtc0",
        "00010000-0001ffff : beyond",
        "ffffffffffffffffff-ffffffffffffffffff : beyond",
        "  ",
        "\u{fffd}",
    ] {
        let text = format!("{VIRTUAL}{line}\n{VIRTUAL}");
        let Err(IoPortOwnersError::Line { number, .. }) = IoPortOwners::parse(&text) else { panic!("{line}") };
        assert_eq!(number, 8, "{line}");
    }
    // Eight digits, as kernels have them whose ports go on beyond 0xffff.
    let wide = IoPortOwners::parse("00000070-00000077 : rtc0\n").unwrap();
    assert_eq!(owner(&wide, 0x70, Width::Byte), Some("rtc0"));
}

#[test]
fn messages() {
    let message = |text: &str| IoPortOwners::parse(text).unwrap_err().to_string();
    assert_eq!(
        message("0000-001f : dma1\n\u{1b}[2J"),
        "line 2 of this /proc/ioports is not of the form `0070-0077 : rtc0`, or has ports above ffff: \\u{1b}[2J"
    );
    assert!(message(&"x".repeat(1 << 20)).len() < 200);
    assert!(message(HIDDEN).contains("CAP_SYS_ADMIN"));
    assert!(message("").contains("no entries"));
}

/// A text that ends anywhere is an error, or has the same owners as far as it goes.
#[test]
fn a_text_that_is_cut_off_anywhere() {
    let whole = IoPortOwners::parse(LAPTOP).unwrap();
    for length in 0..LAPTOP.len() {
        if let Ok(owners) = IoPortOwners::parse(&LAPTOP[..length]) {
            let (last, before) = owners.entries().split_last().unwrap();
            assert_eq!(before, &whole.entries()[..before.len()]);
            assert_eq!(last.ports, whole.entries()[before.len()].ports, "{length} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn text_of_any_kind(text in any::<String>(), lines in "( {0,5}[0-9a-f]{3,5}-[0-9a-f]{3,5} ?: [a-z :.0-7]{0,12}\n){0,4}") {
        for text in [text, lines] {
            if let Ok(owners) = IoPortOwners::parse(&text) {
                prop_assert_eq!(owners.entries().len(), text.lines().filter(|line| !line.is_empty()).count());
            }
        }
    }

    /// Against the plain definition: the deepest driver of the first port that has one.
    #[test]
    fn the_innermost_driver(port: u16, width in prop::sample::select(Width::ALL)) {
        let laptop = IoPortOwners::parse(LAPTOP).unwrap();
        let ports = (u32::from(port)..u32::from(port) + u32::from(width.bytes())).filter_map(|port| u16::try_from(port).ok());
        let expected = ports.into_iter().find_map(|port| {
            let drivers = laptop.entries().iter().filter(|entry| entry.is_driver() && entry.ports.contains(&port));
            drivers.max_by_key(|entry| entry.depth)
        });
        prop_assert_eq!(laptop.owner(port, width), expected);
        let has_driver = laptop.all(port, width).any(PortOwner::is_driver);
        prop_assert_eq!(has_driver, expected.is_some());
    }
}

/// A file of its own for each test, gone at the end of it.
struct ListFile(PathBuf);

impl ListFile {
    fn new(test: &str, bytes: &[u8]) -> Self {
        let path = env::temp_dir().join(format!("ioemul-ioports-{test}-{}", process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for ListFile {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn files() {
    let file = ListFile::new("text", LAPTOP.as_bytes());
    assert_eq!(IoPortOwners::read_from(&file.0).unwrap(), IoPortOwners::parse(LAPTOP).unwrap());
    let file = ListFile::new("no-text", b"0070-0077 : rtc\xff\n");
    assert_eq!(IoPortOwners::read_from(&file.0).unwrap().entries()[0].name, "rtc\u{fffd}");
}

#[test]
fn a_file_that_is_not_there() {
    let error = IoPortOwners::read_from("/nonexistent/ioports").unwrap_err();
    assert!(matches!(error, IoPortOwnersError::Os { .. }));
    assert_eq!(error.to_string(), "/nonexistent/ioports cannot be read: who has which port is not known");
}

/// What is cut off at the limit would have ports without owners.
#[test]
fn a_file_that_is_too_long_is_not_cut() {
    let line = "0070-0077 : rtc0\n";
    let lines = LONGEST as usize / line.len() + 1;
    let file = ListFile::new("long", line.repeat(lines).as_bytes());
    let error = IoPortOwners::read_from(&file.0).unwrap_err();
    assert!(matches!(error, IoPortOwnersError::TooLong { .. }), "{error:?}");
    fs::write(&file.0, line.repeat(lines - 1)).unwrap();
    assert_eq!(IoPortOwners::read_from(&file.0).unwrap().entries().len(), lines - 1);
}

/// Whatever this machine shows, it is understood: as root its owners, and else that they are hidden.
#[cfg(target_os = "linux")]
#[test]
fn this_machine() {
    match IoPortOwners::read() {
        Ok(owners) => assert!(owners.entries().iter().any(PortOwner::is_driver), "{owners:?}"),
        Err(IoPortOwnersError::Hidden) => {}
        Err(IoPortOwnersError::Os { path, .. }) => assert!(!path.exists()), // as in some containers
        Err(error) => panic!("{error}"),
    }
}
