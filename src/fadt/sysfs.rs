//! The FADT of this machine, as Linux shows it.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::{Fadt, FadtError};

/// Of a file, no more than this is read: a FADT has a few hundred bytes.
const LONGEST: u64 = 64 << 10;

impl Fadt {
    /// Where Linux shows the FADT. Only root may read it.
    pub const PATH: &str = "/sys/firmware/acpi/tables/FACP";

    /// This machine's, from [`PATH`](Self::PATH).
    ///
    /// ```no_run
    /// let port = ioemul::Fadt::read()?.smi_command()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`FadtReadError`]; each of its cases leaves something else to do.
    pub fn read() -> Result<Self, FadtReadError> {
        Self::read_from(Self::PATH)
    }

    /// As [`read`](Self::read), from a file that holds the table, such as `acpidump -b -n FACP` writes.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub fn read_from(path: impl AsRef<Path>) -> Result<Self, FadtReadError> {
        let path = path.as_ref();
        let mut table = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut table));
        read.map_err(|source| FadtReadError::of(path, source))?;
        Self::parse(&table).map_err(|source| FadtReadError::NotAFadt { path: path.to_owned(), source })
    }
}

/// Why there is no FADT to be had from a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FadtReadError {
    /// The file is not there.
    #[error(
        "there is no {}{}",
        path.display(),
        match path.to_str() {
            Some(Fadt::PATH) => {
                ": the machine has no ACPI, or this system does not show its tables (as in a container). Give a file with \
                 the table"
            }
            _ => "",
        }
    )]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// This user may not read it.
    #[error("{} may not be read by this user (run as root, or give a file with the table)", path.display())]
    NotPermitted {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is there, and is no FADT.
    #[error("{} has no FADT in it (give another file)", path.display())]
    NotAFadt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FadtError,
    },
    /// Any other failure.
    #[error("{} cannot be read", path.display())]
    Os {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl FadtReadError {
    pub(super) fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::NotFound => Self::NotFound { path },
            ErrorKind::PermissionDenied => Self::NotPermitted { path, source },
            _ => Self::Os { path, source },
        }
    }
}
