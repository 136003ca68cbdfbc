extern crate std;

use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// QEMU's `-M pc`, as its memory has it after SeaBIOS: a table of ACPI 1.0.
#[rustfmt::skip]
const QEMU_PC: [u8; 116] = [
    0x46, 0x41, 0x43, 0x50, 0x74, 0x00, 0x00, 0x00, 0x01, 0xf1, 0x42, 0x4f, 0x43, 0x48, 0x53, 0x20,
    0x42, 0x58, 0x50, 0x43, 0x20, 0x20, 0x20, 0x20, 0x01, 0x00, 0x00, 0x00, 0x42, 0x58, 0x50, 0x43,
    0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0xfe, 0x07, 0x40, 0x00, 0xfe, 0x07, 0x01, 0x00, 0x09, 0x00,
    0xb2, 0x00, 0x00, 0x00, 0xf1, 0xf0, 0x00, 0x00, 0x00, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x04, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x06, 0x00, 0x00,
    0xe0, 0xaf, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x02, 0x00, 0x04, 0x04, 0x00, 0x00, 0x00,
    0xff, 0x0f, 0xff, 0x0f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x32, 0x00, 0x00, 0x00,
    0xa5, 0x80, 0x00, 0x00,
];

/// QEMU's `-M q35`: revision 3.
#[rustfmt::skip]
const QEMU_Q35: [u8; 244] = [
    0x46, 0x41, 0x43, 0x50, 0xf4, 0x00, 0x00, 0x00, 0x03, 0x28, 0x42, 0x4f, 0x43, 0x48, 0x53, 0x20,
    0x42, 0x58, 0x50, 0x43, 0x20, 0x20, 0x20, 0x20, 0x01, 0x00, 0x00, 0x00, 0x42, 0x58, 0x50, 0x43,
    0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0xfe, 0x07, 0x40, 0x00, 0xfe, 0x07, 0x01, 0x00, 0x09, 0x00,
    0xb2, 0x00, 0x00, 0x00, 0x02, 0x03, 0x00, 0x00, 0x00, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x04, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x06, 0x00, 0x00,
    0x20, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x02, 0x00, 0x04, 0x10, 0x00, 0x00, 0x00,
    0xff, 0x0f, 0xff, 0x0f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x32, 0x02, 0x00, 0x00,
    0xa5, 0x84, 0x00, 0x00, 0x01, 0x08, 0x00, 0x00, 0xf9, 0x0c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x0f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x40, 0x00, 0xfe, 0x07,
    0x00, 0x00, 0x00, 0x00, 0x01, 0x20, 0x00, 0x00, 0x00, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x10, 0x00, 0x00,
    0x04, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x01, 0x20, 0x00, 0x00, 0x08, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x80, 0x00, 0x00,
    0x20, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00,
];

fn sealed(mut table: Vec<u8>) -> Vec<u8> {
    table[at::CHECKSUM] = 0;
    table[at::CHECKSUM] = sum(&table).wrapping_neg();
    table
}

/// A table that is right but for these bytes.
fn with(at: usize, bytes: &[u8]) -> Fadt {
    let mut table = QEMU_Q35.to_vec();
    table[at..at + bytes.len()].copy_from_slice(bytes);
    Fadt::parse(&sealed(table)).unwrap()
}

fn reserved(fadt: &Fadt) -> Vec<(u8, &'static str)> {
    fadt.reserved_codes().collect()
}

#[test]
fn tables_of_qemu() {
    let pc = Fadt::parse(&QEMU_PC).unwrap();
    assert_eq!((pc.smi_port(), pc.smi_command()), (Some(0xb2), Ok(0xb2)));
    assert_eq!((pc.acpi_enable(), pc.acpi_disable()), (Some(0xf1), Some(0xf0)));
    assert_eq!((pc.s4bios_req(), pc.pstate_cnt(), pc.cst_cnt()), (None, None, None));
    assert_eq!(reserved(&pc), [(0xf1, "ACPI_ENABLE"), (0xf0, "ACPI_DISABLE")]);
    assert_eq!((pc.revision(), pc.oem_id(), pc.oem_table_id()), (1, "BOCHS", "BXPC"));
    assert!(!pc.is_hardware_reduced());

    let q35 = Fadt::parse(&QEMU_Q35).unwrap();
    assert_eq!((q35.smi_port(), q35.revision()), (Some(0xb2), 3));
    assert_eq!(reserved(&q35), [(2, "ACPI_ENABLE"), (3, "ACPI_DISABLE")]);
}

/// Each field is read from its own bytes, whose offsets are here once more, as the specification has them.
#[test]
fn every_field_has_its_place() {
    let all = with(52, &[0xa0, 0xa1, 0xa2, 0xa3]);
    assert_eq!((all.acpi_enable(), all.acpi_disable()), (Some(0xa0), Some(0xa1)));
    assert_eq!((all.s4bios_req(), all.pstate_cnt(), all.cst_cnt()), (Some(0xa2), Some(0xa3), None));
    let cst = with(95, &[0xa4]);
    assert_eq!((cst.cst_cnt(), cst.pstate_cnt()), (Some(0xa4), None));
    assert_eq!(reserved(&cst), [(2, "ACPI_ENABLE"), (3, "ACPI_DISABLE"), (0xa4, "CST_CNT")]);
    assert_eq!(with(48, &[0x34, 0x12]).smi_port(), Some(0x1234));
    let names = with(10, b"HPQOEMSLIC-BPC");
    assert_eq!((names.oem_id(), names.oem_table_id()), ("HPQOEM", "SLIC-BPC"));
    // Flags of Firecracker, which has no ACPI hardware, and all others.
    assert!(with(112, &[0x30, 0, 0x10, 0]).is_hardware_reduced());
    assert!(!with(112, &[0xff, 0xff, 0xef, 0xff]).is_hardware_reduced());
}

#[test]
fn a_code_under_two_names_comes_twice() {
    let fadt = Fadt::new(0xb2, 0x80, 0x80).with_s4bios_req(0x80).with_pstate_cnt(0x81).with_cst_cnt(0x81);
    let names = ["ACPI_ENABLE", "ACPI_DISABLE", "S4BIOS_REQ", "PSTATE_CNT", "CST_CNT"];
    let codes = [0x80, 0x80, 0x80, 0x81, 0x81];
    assert_eq!(reserved(&fadt), codes.into_iter().zip(names).collect::<Vec<_>>());
}

/// 0 is no code, but for one of a pair whose other is none.
#[test]
fn a_code_of_zero() {
    let neither = Fadt::new(0xb2, 0, 0);
    assert_eq!((neither.acpi_enable(), neither.acpi_disable()), (None, None));
    assert_eq!(reserved(&neither), []);
    let old = Fadt::new(0xb2, 0xf0, 0);
    assert_eq!((old.acpi_enable(), old.acpi_disable()), (Some(0xf0), Some(0)));
    assert_eq!(reserved(&old), [(0xf0, "ACPI_ENABLE"), (0, "ACPI_DISABLE")]);
    let older = Fadt::new(0xb2, 0, 0xf1);
    assert_eq!((older.acpi_enable(), older.acpi_disable()), (Some(0), Some(0xf1)));
}

/// There are three reasons for no port, and each code is then without a use; those who know better are warned of it.
#[test]
fn tables_without_a_port() {
    let zero = with(at::SMI_CMD, &[0; 4]);
    let reduced = with(at::FLAGS, &HARDWARE_REDUCED.to_le_bytes());
    for (fadt, reason) in [(zero, NoSmiPort::Zero), (reduced, NoSmiPort::HardwareReduced)] {
        assert_eq!((fadt.smi_port(), fadt.smi_command()), (None, Err(reason)));
        assert_eq!((fadt.acpi_enable(), fadt.acpi_disable()), (None, None));
        assert_eq!(reserved(&fadt), [(2, "ACPI_ENABLE"), (3, "ACPI_DISABLE")]);
    }
    let beyond = with(at::SMI_CMD, &0x1_00b2_u32.to_le_bytes());
    assert_eq!((beyond.smi_port(), beyond.smi_command()), (None, Err(NoSmiPort::OutOfRange { smi_cmd: 0x1_00b2 })));
    assert_eq!(beyond.acpi_enable(), Some(2));
    assert_eq!(with(at::SMI_CMD, &0xffff_u32.to_le_bytes()).smi_port(), Some(0xffff));
}

/// Firmware's text goes to a terminal sooner or later.
#[test]
fn names_are_printable() {
    let fadt = with(at::OEM_ID, b"A B \x1b[\xff\0\0\0\0\0\0\0");
    assert_eq!((fadt.oem_id(), fadt.oem_table_id()), ("A B", ""));
}

#[test]
fn a_table_is_written_as_it_is_read() {
    for table in [&QEMU_PC[..], &QEMU_Q35, &Fadt::new(0, 0, 0).to_table()] {
        let fadt = Fadt::parse(table).unwrap();
        assert_eq!(Fadt::parse(&fadt.to_table()), Ok(fadt));
    }
}

#[test]
fn what_lies_behind_a_table_is_not_looked_at() {
    let longer = [&QEMU_PC[..], &[0x55; 4096]].concat();
    assert_eq!(Fadt::parse(&longer), Fadt::parse(&QEMU_PC));
}

#[test]
fn a_table_that_is_cut_off_anywhere() {
    for table in [&QEMU_PC[..], &QEMU_Q35] {
        for given in 0..table.len() {
            let expected = match given {
                ..8 => FadtError::TooShort { length: given },
                _ => FadtError::CutOff { length: table.len(), given },
            };
            assert_eq!(Fadt::parse(&table[..given]), Err(expected), "{given} bytes");
        }
    }
}

#[test]
fn a_table_that_says_that_it_is_shorter_or_longer() {
    for length in (0..116).chain([117, 243, 244, 245, u32::MAX]) {
        let mut table = QEMU_Q35.to_vec();
        table[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        table[at::CHECKSUM] = 0;
        let covered = table.len().min(length as usize).max(at::CHECKSUM + 1);
        table[at::CHECKSUM] = sum(&table[..covered]).wrapping_neg();
        let (length, given) = (length as usize, table.len());
        match Fadt::parse(&table) {
            Err(error) if length < 116 => assert_eq!(error, FadtError::TooShort { length }),
            Err(error) => assert_eq!(error, FadtError::CutOff { length, given }),
            Ok(fadt) => assert!((116..=244).contains(&length) && fadt.smi_port() == Some(0xb2), "{length}"),
        }
    }
}

/// Any byte, changed to anything else. (A table that is taken for shorter than it is may have bytes that add up to 0 as well:
/// what is read is then the same.)
#[test]
fn a_byte_that_is_wrong() {
    for table in [&QEMU_PC[..], &QEMU_Q35] {
        let good = Fadt::parse(table);
        for at in 0..table.len() {
            for difference in 1..=255 {
                let mut bad = table.to_vec();
                bad[at] ^= difference;
                let parsed = Fadt::parse(&bad);
                assert!(parsed.is_err() || at == at::LENGTH && parsed == good, "byte {at} is {:#x}", bad[at]);
            }
        }
    }
}

#[test]
fn messages() {
    let message = |table: &[u8]| Fadt::parse(table).unwrap_err().to_string();
    assert_eq!(message(b"SSDT\x24\0\0\0"), "this is not a FADT: it starts with \"SSDT\" and not with \"FACP\"");
    assert_eq!(message(b"\x1b[2J"), "this is not a FADT: it starts with \"\\x1b[2J\" and not with \"FACP\"");
    assert_eq!(message(b"FAC"), "this FADT has 3 bytes, and the shortest, that of ACPI 1.0, has 116");
    assert_eq!(
        message(&QEMU_Q35[..100]),
        "this FADT is cut off: by its own account it has 244 bytes, and only 100 are there"
    );
    let mut bad = QEMU_PC;
    bad[at::SMI_CMD] += 1;
    assert_eq!(message(&bad), "the checksum of this FADT is wrong: its bytes add up to 0x01 and not to 0");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_of_any_kind(bytes in proptest::collection::vec(any::<u8>(), 0..300), is_sealed: bool) {
        let mut table = [&SIGNATURE[..], &[0; 4], &bytes].concat();
        let length = table.len() as u32;
        table[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        if is_sealed && table.len() > at::CHECKSUM {
            table = sealed(table);
        }
        if let Ok(fadt) = Fadt::parse(&table) {
            prop_assert_eq!(Fadt::parse(&fadt.to_table()), Ok(fadt));
            prop_assert!(fadt.reserved_codes().count() <= 5);
        } else {
            prop_assert!(table.len() < 116 || sum(&table) != 0);
        }
        let _ = Fadt::parse(&bytes);
    }
}

#[cfg(feature = "std")]
mod files {
    use std::error::Error;
    use std::path::PathBuf;
    use std::{env, format, fs, process};

    use super::*;

    /// A file of its own for each test, gone at the end of it.
    struct TableFile(PathBuf);

    impl TableFile {
        fn new(test: &str, bytes: &[u8]) -> Self {
            let path = env::temp_dir().join(format!("ioemul-fadt-{test}-{}", process::id()));
            fs::write(&path, bytes).unwrap();
            Self(path)
        }
    }

    impl Drop for TableFile {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn a_file_with_a_table() {
        let file = TableFile::new("table", &QEMU_Q35);
        assert_eq!(Fadt::read_from(&file.0).unwrap(), Fadt::parse(&QEMU_Q35).unwrap());
    }

    #[test]
    fn a_file_with_something_else() {
        let file = TableFile::new("else", b"");
        let error = Fadt::read_from(&file.0).unwrap_err();
        let message = format!("{} has no FADT in it (give another file)", file.0.display());
        assert_eq!(error.to_string(), message);
        assert_eq!(error.source().unwrap().to_string(), FadtError::TooShort { length: 0 }.to_string());
    }

    #[test]
    fn no_file() {
        let error = Fadt::read_from("/nonexistent/FACP").unwrap_err();
        assert!(matches!(error, FadtReadError::NotFound { .. }));
        assert_eq!(error.to_string(), "there is no /nonexistent/FACP");
        // Only of the machine's own can it be said why.
        let own = FadtReadError::NotFound { path: Fadt::PATH.into() }.to_string();
        assert!(own.contains("FACP: the machine has no ACPI, or this system does not show its tables"), "{own}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_without_an_end_and_one_that_is_a_directory() {
        let endless = Fadt::read_from("/dev/zero").unwrap_err();
        assert!(matches!(endless, FadtReadError::NotAFadt { source: FadtError::Signature { .. }, .. }), "{endless:?}");
        let directory = Fadt::read_from("/proc").unwrap_err();
        assert!(matches!(directory, FadtReadError::Os { .. }), "{directory:?}");
    }

    #[test]
    fn the_system_says_no() {
        let error = FadtReadError::of("/x".as_ref(), std::io::ErrorKind::PermissionDenied.into());
        assert!(matches!(error, FadtReadError::NotPermitted { .. }));
        assert_eq!(error.to_string(), "/x may not be read by this user (run as root, or give a file with the table)");
    }

    /// Whatever this machine has, it is told in order.
    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine() {
        match Fadt::read() {
            Ok(fadt) => assert_eq!(Fadt::parse(&fs::read(Fadt::PATH).unwrap()), Ok(fadt)),
            Err(FadtReadError::NotFound { path }) => assert!(!path.exists()),
            Err(FadtReadError::NotPermitted { .. }) => assert!(fs::read(Fadt::PATH).is_err()),
            Err(error) => panic!("{error}: {:?}", error.source()),
        }
    }
}
