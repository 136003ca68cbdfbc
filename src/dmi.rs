//! Who this machine is: the strings that firmware leaves in SMBIOS (DMI), by which platform quirks are matched.

use std::io::Read;
use std::path::Path;
use std::{fs, io};

/// A machine's DMI strings; empty where firmware gives none.
///
/// ```
/// use ioemul::DmiIdentity;
/// let dl380 = DmiIdentity::new("HP", "ProLiant DL380 G5");
/// assert_eq!(dl380.bios_vendor, "HP");
/// let this_machine = DmiIdentity::read()?; // without DMI: all strings empty
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[doc(alias("SMBIOS", "dmidecode"))]
pub struct DmiIdentity {
    /// Who wrote the firmware (SMBIOS type 0).
    pub bios_vendor: String,
    /// Version of the firmware (type 0).
    pub bios_version: String,
    /// Who built the machine (type 1).
    pub sys_vendor: String,
    /// Model of the machine (type 1).
    pub product_name: String,
    /// Model of the main board (type 2).
    pub board_name: String,
}

impl DmiIdentity {
    /// An identity made up of the two strings that the built-in quirks look at; the others are empty.
    pub fn new(bios_vendor: impl Into<String>, product_name: impl Into<String>) -> Self {
        Self { bios_vendor: bios_vendor.into(), product_name: product_name.into(), ..Self::default() }
    }

    /// The strings, borrowed.
    pub fn strings(&self) -> crate::DmiStrings<'_> {
        let mut strings = crate::DmiStrings::new(&self.bios_vendor, &self.product_name);
        strings.bios_version = &self.bios_version;
        strings.sys_vendor = &self.sys_vendor;
        strings.board_name = &self.board_name;
        strings
    }

    /// This machine's, from Linux's `/sys/class/dmi/id`. A machine without DMI, or a system that keeps it elsewhere, is
    /// an ordinary case: the strings are empty.
    ///
    /// # Errors
    ///
    /// A file that is there and cannot be read; the message names it.
    pub fn read() -> io::Result<Self> {
        Self::read_from("/sys/class/dmi/id")
    }

    /// As [`read`](Self::read), from a directory of the same shape: a file for each string, named as the field is.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub fn read_from(directory: impl AsRef<Path>) -> io::Result<Self> {
        let string = |name| read_string(&directory.as_ref().join(name));
        Ok(Self {
            bios_vendor: string("bios_vendor")?,
            bios_version: string("bios_version")?,
            sys_vendor: string("sys_vendor")?,
            product_name: string("product_name")?,
            board_name: string("board_name")?,
        })
    }
}

/// Contents without the newline that sysfs adds; a missing file is an empty string, and bytes that are not UTF-8
/// (firmware writes what it likes) become U+FFFD. Of a longer file than sysfs has, a page, only the start is read.
fn read_string(path: &Path) -> io::Result<String> {
    const PAGE: u64 = 4096;
    let mut bytes = Vec::new();
    let mut read = || fs::File::open(path)?.take(PAGE).read_to_end(&mut bytes);
    match read() {
        Ok(_) => Ok(String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A directory of its own for each test, gone at the end of it.
    struct Directory(PathBuf);

    impl Directory {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ioemul-dmi-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn strings_without_their_newline() {
        let directory = Directory::new("strings");
        fs::write(directory.0.join("bios_vendor"), "HP\n").unwrap();
        fs::write(directory.0.join("product_name"), "ProLiant DL380 G5 \n").unwrap();
        fs::write(directory.0.join("board_name"), b"X\xff\n").unwrap();
        let identity = DmiIdentity::read_from(&directory.0).unwrap();
        let mut expected = DmiIdentity::new("HP", "ProLiant DL380 G5 ");
        expected.board_name = "X\u{fffd}".into();
        assert_eq!(identity, expected);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_without_an_end_is_read_for_a_page() {
        let directory = Directory::new("endless");
        std::os::unix::fs::symlink("/dev/zero", directory.0.join("bios_vendor")).unwrap();
        let identity = DmiIdentity::read_from(&directory.0).unwrap();
        assert_eq!(identity.bios_vendor, "\0".repeat(4096));
    }

    #[test]
    fn a_machine_without_dmi_is_no_failure() {
        assert_eq!(DmiIdentity::read_from("/nonexistent/dmi").unwrap(), DmiIdentity::default());
        DmiIdentity::read().unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let directory = Directory::new("unreadable");
        let file = directory.0.join("product_name");
        fs::create_dir(&file).unwrap(); // a directory there fails for root too, unlike a file of mode 0
        let error = DmiIdentity::read_from(&directory.0).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: Is a directory (os error 21)", file.display()));
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
