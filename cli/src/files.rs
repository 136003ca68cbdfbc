//! Files that accesses are written to: what is there already is not lost, and nobody else writes to them.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ioemul::trace::{PartialTrace, Trace, TraceHeader, TraceWriter};
use rustix::fs::{FlockOperation, flock};

use crate::failure::{Failure, Kind, Result};

/// A file for a recording: a new one, an empty one, or one with a recording that came to its end, which is replaced.
pub fn for_recording(path: &Path) -> Result<File> {
    let failed = |error| Failure::io(path.display(), &error);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = match file {
        // A pipe or a device, which may be for writing only.
        Err(error) if error.kind() == ErrorKind::PermissionDenied && !path.is_file() => {
            File::options().write(true).open(path)
        }
        file => file,
    }
    .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Ok(file);
    }
    lock(&file, path)?;
    if metadata.len() > 0 && Trace::read(BufReader::new(&file)).is_err() {
        return Err(Failure::usage(format!(
            "--record {}: what is there is no recording that came to its end: remove it, or name another file",
            path.display()
        )));
    }
    sync_name(path);
    let mut file = file;
    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(failed)?;
    Ok(file)
}

/// A file for the log of a scan, and the beginning of it. One that is there may be all that a machine has left behind.
pub fn for_log(path: &Path, header: &TraceHeader) -> Result<TraceWriter<File>> {
    let file = match File::create_new(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::usage(format!(
                "--log {}: the file is there already: --resume goes on with it, or name another",
                path.display()
            )));
        }
        created => created.map_err(|error| Failure::io(path.display(), &error))?,
    };
    lock(&file, path)?;
    sync_name(path);
    TraceWriter::with_header(file, header).map_err(|error| Failure::io(path.display(), &error))
}

/// A log that was begun before: the file, which nobody else goes on with, and what it holds.
#[derive(Debug)]
pub struct Earlier {
    file: File,
    pub log: PartialTrace,
}

impl Earlier {
    pub fn read(path: &Path) -> Result<Self> {
        let opened = File::options().read(true).write(true).open(path);
        let file = opened.map_err(|error| Failure::io(path.display(), &error))?;
        lock(&file, path)?;
        let log = partial(&file, path)?;
        Ok(Self { file, log })
    }

    /// A writer behind what is there.
    pub fn resume(mut self, path: &Path) -> Result<TraceWriter<File>> {
        let cut = self.file.set_len(self.log.len).and_then(|()| self.file.seek(SeekFrom::Start(self.log.len)));
        let writer = cut.and_then(|_| TraceWriter::resume(self.file, &self.log));
        writer.map_err(|error| Failure::io(path.display(), &error))
    }
}

/// What a trace file holds, whole or cut off.
pub fn partial(file: &File, path: &Path) -> Result<PartialTrace> {
    Trace::read_partial(BufReader::new(file))
        .map_err(|error| Failure::new(Kind::Trace, format!("{}: {error}", path.display())).fact("line", error.line))
}

/// Keeps others away from a file for as long as it is open. Where a file system has no locks there is none.
fn lock(file: &File, path: &Path) -> Result {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Failure::usage(format!("{}: another program is writing to it just now", path.display())))
        }
        _ => Ok(()),
    }
}

/// Brings the name of a new file to the disk: `fdatasync` of the file need not, and a log that nobody finds is none. Some file systems
/// sync no directories.
fn sync_name(path: &Path) {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
}

/// Whether two paths lead to one file, which may have several names.
pub fn is_same(a: &Path, b: &Path) -> bool {
    if let (Ok(a), Ok(b)) = (a.metadata(), b.metadata()) {
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    // One that is not there yet is told by the directory that it is going to be in.
    let resolved = |path: &Path| match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(path), ..) => Some(path),
        (_, Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Some(parent.canonicalize().ok()?.join(name))
        }
        _ => None,
    };
    a == b || resolved(a).is_some_and(|a| resolved(b) == Some(a))
}
