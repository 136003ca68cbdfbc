//! A directory of DMI strings with anything in it: read as what is there, or refused with the file's name; and quirks
//! chosen by it as they say.
//!
//! Input: for each file what it is and its bytes; then what is asked of the strings.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::{fs, io};

use ioemul::{DmiIdentity, DmiMatch, Quirk, QuirkTable};
use ioemul_fuzz::Script;
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 5] = ["bios_vendor", "bios_version", "sys_vendor", "product_name", "board_name"];

/// In memory, and one for each process.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let directory = parent.join(format!("ioemul-fuzz-dmi-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).unwrap();
    // SAFETY: a function without arguments, as `atexit` takes it.
    unsafe { libc::atexit(remove) };
    directory
});

extern "C" fn remove() {
    let _ = fs::remove_dir_all(&*DIRECTORY);
}

/// What is made of a file, and what it reads as.
fn make(path: &Path, script: &mut Script<'_>) -> Result<String, io::ErrorKind> {
    let kind = script.u8();
    let len = usize::from(if kind == 255 { script.u16() } else { script.u8().into() });
    let bytes = script.bytes(len);
    match kind % 16 {
        0 => return Ok(String::new()), // not there
        1 => {
            fs::create_dir(path).unwrap();
            return Err(io::ErrorKind::IsADirectory);
        }
        2 => {
            std::os::unix::fs::symlink("nowhere", path).unwrap();
            return Ok(String::new());
        }
        3 => {
            std::os::unix::fs::symlink(path.file_name().unwrap(), path).unwrap();
            return Err(io::ErrorKind::Other);
        }
        _ => fs::write(path, bytes).unwrap(),
    }
    Ok(String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(bytes)).into_owned())
}

fn clear() {
    for name in FILES {
        let path = DIRECTORY.join(name);
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
}

type Fragments = &'static [&'static str];

/// What a quirk may ask for.
const ASKED: [Fragments; 6] = [&[], &["HP"], &["", "x"], &["ProLiant DL3", "ProLiant ML"], &["\u{fffd}"], &["é", "\n"]];

fuzz_target!(|data: &[u8]| {
    clear();
    let mut script = Script::new(data);
    let files = FILES.map(|name| make(&DIRECTORY.join(name), &mut script));
    let identity = match DmiIdentity::read_from(&*DIRECTORY) {
        Ok(identity) => identity,
        Err(error) => {
            let first = FILES.iter().zip(&files).find(|(_, file)| file.is_err()).expect("a file that cannot be read").0;
            assert!(error.to_string().contains(first), "{error}");
            return;
        }
    };
    let DmiIdentity { bios_vendor, bios_version, sys_vendor, product_name, board_name, .. } = &identity;
    let strings = [bios_vendor, bios_version, sys_vendor, product_name, board_name];
    for (file, string) in files.iter().zip(strings) {
        assert_eq!(file.as_ref(), Ok(string));
    }

    let asked: [Fragments; 5] = std::array::from_fn(|_| script.one_of(&ASKED));
    let [a, b, c, d, e] = asked;
    let dmi_match = DmiMatch::new().bios_vendor(a).bios_version(b).sys_vendor(c).product_name(d).board_name(e);
    let found = |asked: &Fragments, string: &str| {
        let at = |fragment: &str| (0..=string.len()).any(|at| string.as_bytes()[at..].starts_with(fragment.as_bytes()));
        asked.is_empty() || asked.iter().any(|fragment| at(fragment))
    };
    let expected = asked.iter().zip(strings).all(|(asked, string)| found(asked, string));
    assert_eq!(dmi_match.matches(&identity.strings()), expected);

    let models = ["DL3", "DL5", "DL7", "ML3", "ML5", "BL2", "BL4", "BL6"];
    let model = models.iter().any(|model| product_name.contains(&format!("ProLiant {model}")));
    let quirks = QuirkTable::for_platform(&identity);
    let proliant = quirks.as_slice().iter().any(|quirk| quirk.name() == Quirk::PROLIANT.name());
    assert_eq!(proliant, bios_vendor.contains("HP") && model);
});
