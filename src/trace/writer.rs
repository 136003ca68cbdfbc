//! Records to a file while an emulator runs.

use std::io::{self, Write};

use super::file::{write_announcement, write_end, write_header, write_record};
use super::{PartialTrace, Pending, Record, RecordedError, TraceHeader};
use crate::events::{Attempt, Events, Outcome};
use crate::{DeviceError, IoFault};

/// Records to a file while an emulator runs: an [`Events`] listener.
///
/// Each record is written when its access is done; give it a [`BufWriter`](std::io::BufWriter) unless every line has to
/// be in the file before the next access. [`Self::finish`] writes the last line.
///
/// An access that was made cannot be taken back when its record cannot be written: the emulator goes on, nothing more
/// is written, and [`Self::error`] and [`Self::finish`] have the error.
///
/// ```
/// # use ioemul::{IoEmulator, PortSet, SoftwareBus};
/// use ioemul::trace::{Trace, TraceWriter};
/// let recorder = TraceWriter::new(Vec::new())?; // or a File in a BufWriter
/// let builder = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new());
/// let mut emulator = builder.events(recorder).build()?;
/// emulator.emulate(&[0xe4, 0x71], &mut Default::default())?; // in al, 0x71
/// let file = emulator.into_events().finish()?;
/// assert_eq!(Trace::read(&file[..])?.records().len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Where the machine may not come back from an access, [`Self::write_ahead`] has each of them in the file before it is
/// made, and [`Self::resume`] goes on with the file afterwards.
#[derive(Debug)]
#[must_use = "`finish` ends the file and has the errors"]
pub struct TraceWriter<W> {
    file: W,
    records: usize,
    /// Brings what was written to where it outlives the machine.
    sync: Option<fn(&mut W) -> io::Result<()>>,
    /// What has been announced and has no record yet.
    pending: Option<Pending>,
    error: Option<io::Error>,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace file that says nothing about itself.
    ///
    /// # Errors
    ///
    /// Those of writing the first line.
    pub fn new(file: W) -> io::Result<Self> {
        Self::with_header(file, &TraceHeader::default())
    }

    /// Begins a trace file whose first line says what the header says.
    ///
    /// # Errors
    ///
    /// Those of writing the first line.
    pub fn with_header(mut file: W, header: &TraceHeader) -> io::Result<Self> {
        write_header(&mut file, header)?;
        Ok(Self { file, records: 0, sync: None, pending: None, error: None })
    }

    /// Goes on with a file that [`Trace::read_partial`](super::Trace::read_partial) has read. The caller has cut it off at
    /// [`PartialTrace::len`], and writing goes on at that place; of a whole trace, this takes the last line away.
    ///
    /// If an access was pending, its record is written first: it [did not return](RecordedError::DidNotReturn).
    /// [`Self::records`] counts the records that are there. Whether accesses are to be announced has to be said again.
    ///
    /// ```
    /// # let path = std::env::temp_dir().join(format!("ioemul-resume-{}", std::process::id()));
    /// # let cut_off = "{\"ioemul-trace\":2}\n{\"about_to\":\"out 0xb2, al\",\"before\":{}}\n{\"insn\":\"out";
    /// # std::fs::write(&path, cut_off)?;
    /// use std::fs::File;
    /// use std::io::{BufReader, Seek, SeekFrom};
    /// use ioemul::trace::{Trace, TraceWriter};
    /// let mut file = File::options().read(true).write(true).open(&path)?;
    /// let partial = Trace::read_partial(BufReader::new(&file))?;
    /// file.set_len(partial.len)?;
    /// file.seek(SeekFrom::Start(partial.len))?;
    /// let recorder = TraceWriter::resume(file, &partial)?.write_ahead(|file| file.sync_data());
    /// // … an emulator runs, and then:
    /// recorder.finish()?;
    /// assert_eq!(Trace::read(BufReader::new(File::open(&path)?))?.records().len(), 1);
    /// # std::fs::remove_file(&path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of writing the record; [`io::ErrorKind::InvalidInput`] for a file of version 1, which has no place for what is
    /// written now: write its [`PartialTrace::trace`] to a new one.
    pub fn resume(file: W, partial: &PartialTrace) -> io::Result<Self> {
        if partial.version < super::FORMAT_VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the trace file has version 1, which ends where it ends: write its trace to a new file",
            ));
        }
        let records = partial.trace.records().len();
        let mut writer = Self { file, records, sync: None, pending: partial.pending.clone(), error: None };
        writer.end_pending()?;
        Ok(writer)
    }

    /// Announces each access before it is made: a line that says which one is written, `sync` is called, and only then the
    /// access is made. What stops the machine is then named in the file, and [`Trace::read_partial`](super::Trace::read_partial)
    /// finds it. The record follows when the access is done, and is not synced: the next announcement does that.
    ///
    /// `sync` brings what was written to where it outlives the machine: for a [`File`](std::fs::File),
    /// `|file| file.sync_data()`; for one in a [`BufWriter`](std::io::BufWriter), that after a `flush`.
    ///
    /// An access that cannot be announced is not made: [`Error::Stopped`](crate::Error::Stopped), with an [`io::Error`] as its
    /// source. Neither are those after it, and nothing more is written.
    ///
    /// Among several listeners this one has to be the last: if one behind it stops an access that was announced, the file
    /// says that the access did not return.
    pub fn write_ahead(mut self, sync: fn(&mut W) -> io::Result<()>) -> Self {
        self.sync = Some(sync);
        self
    }

    /// How many records have been written, those of a file that was [resumed](Self::resume) included.
    pub fn records(&self) -> usize {
        self.records
    }

    /// The error that ended the recording, if one did.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// Ends the file and gives it back, flushed. (It is not synced.)
    ///
    /// # Errors
    ///
    /// The error that ended the recording, or that of the last line. The file then has no last line, and reads as cut
    /// off.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.end_pending()?;
        write_end(&mut self.file, self.records)?;
        self.file.flush()?;
        Ok(self.file)
    }

    /// What was announced and had no end did not return: its device model has panicked, say.
    fn end_pending(&mut self) -> io::Result<()> {
        match self.pending.take() {
            None => Ok(()),
            Some(pending) => self.write(&pending.did_not_return()),
        }
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        write_record(&mut self.file, record)?;
        self.records += 1;
        Ok(())
    }

    /// Writes what is about to be done, so that it is there whatever comes of it.
    fn announce(&mut self, sync: fn(&mut W) -> io::Result<()>, pending: Pending) -> io::Result<()> {
        self.end_pending()?;
        write_announcement(&mut self.file, &pending)?;
        sync(&mut self.file)?;
        self.pending = Some(pending);
        Ok(())
    }

    fn record(&mut self, record: &Record) {
        self.pending = None;
        if self.error.is_none() {
            self.error = self.write(record).err();
        }
    }
}

/// Each access becomes a record, with the time that it took.
impl<W: Write> Events for TraceWriter<W> {
    const TIMED: bool = true;

    fn approve(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
        let Some(sync) = self.sync else { return Ok(()) };
        if self.error.is_none() {
            self.error = self.announce(sync, Pending { insn: attempt.insn, before: *attempt.gprs }).err();
        }
        match &self.error {
            None => Ok(()),
            Some(error) => {
                let message = format!("it could not be written to the trace beforehand: {error}");
                Err(io::Error::new(error.kind(), message).into())
            }
        }
    }

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.record(&Record::new(attempt, outcome, None));
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        self.record(&Record::new(attempt, outcome, Some(RecordedError::Fault(*fault))));
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        self.record(&Record::new(attempt, outcome, Some(RecordedError::Refused(why.to_string()))));
    }
}
