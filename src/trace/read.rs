//! Trace files, read: whole ones, and what is there of others.

use std::io::{self, BufRead, Read, Write};

use super::file::{self, Line};
use super::problem::{TraceError, TraceProblem};
use super::{Record, RecordedError, Trace, TraceHeader};
use crate::{Gprs, IoInsn};

/// How much of a file [`Trace::read_with`] and [`Trace::read_partial_with`] take: what bounds the memory that a file from outside can ask for.
///
/// ```
/// use ioemul::trace::{Trace, TraceLimits};
/// let limits = TraceLimits::new().records(1);
/// let file = r#"{"ioemul-trace":1}
/// {"insn":"in al, 0x71","before":{},"after":{"rax":"0xff"}}
/// {"insn":"in al, 0x71","before":{},"after":{"rax":"0xff"}}
/// {"records":2}
/// "#;
/// let error = Trace::read_with(file.as_bytes(), limits).unwrap_err();
/// assert_eq!(error.line, 3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceLimits {
    /// The longest line in bytes, its newline not counted. By default 4 MiB, which holds a string instruction of 2 MiB.
    pub line: usize,
    /// How many records there may be. By default a million, which take some 380 MB.
    pub records: usize,
}

impl TraceLimits {
    /// The defaults.
    pub const fn new() -> Self {
        Self { line: 4 << 20, records: 1_000_000 }
    }

    /// The longest line.
    pub const fn line(mut self, bytes: usize) -> Self {
        self.line = bytes;
        self
    }

    /// The largest number of records.
    pub const fn records(mut self, records: usize) -> Self {
        self.records = records;
        self
    }
}

impl Default for TraceLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// An access that was about to be made, and of which no record is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pending {
    /// The instruction.
    pub insn: IoInsn,
    /// The registers before it.
    pub before: Gprs,
}

impl Pending {
    /// The first port that the instruction touches.
    pub fn port(&self) -> u16 {
        self.insn.port(&self.before)
    }

    fn is_of(&self, record: &Record) -> bool {
        (self.insn, &self.before) == (record.insn, &record.before)
    }

    /// The record with which a file goes on: the access did not return.
    pub(super) fn did_not_return(&self) -> Record {
        let Self { insn, before } = *self;
        let error = Some(RecordedError::DidNotReturn);
        Record { insn, before, after: before, data: Vec::new(), error, duration: None }
    }
}

/// What is there of a trace file that may be cut off: see [`Trace::read_partial`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartialTrace {
    /// The header, and the records that are whole.
    pub trace: Trace,
    /// The access that was announced last, if its record is not there. It did not return; or it did, and the machine went
    /// down before its record was on the disk.
    pub pending: Option<Pending>,
    /// Whether nothing is missing: [`Trace::read`] reads the file.
    pub is_whole: bool,
    /// How many bytes the lines have that are good: the first one, the records and the announcement of what is pending. The
    /// last line of a whole trace is not counted: it ends here for [`TraceWriter::resume`](super::TraceWriter::resume),
    /// which goes on behind so many bytes.
    pub len: u64,
    /// Of the format.
    pub(super) version: u32,
}

impl Trace {
    /// Reads a trace file, within the default [`TraceLimits`]. [The format](super::format) is lines of JSON, in version 2 or
    /// version 1:
    ///
    /// ```text
    /// {"ioemul-trace":2,"on":"hardware","cpu":"AMD EPYC 7763"}
    /// {"insn":"out dx, al","before":{"rax":"0x85","rdx":"0xcd4"},"after":{"rflags":"0x246"},"ns":9812}
    /// {"about_to":"in al, dx","before":{"rax":"0x85","rdx":"0xcd4"}}
    /// {"insn":"in al, dx","before":{"rax":"0x85","rdx":"0xcd4"},"after":{"rax":"0x5","rflags":"0x246"},"ns":1204}
    /// {"insn":"out 0x80, al","before":{},"fault":{"vector":13,"error_code":0,"address":"0x0"}}
    /// {"insn":"rep insb","before":{"rcx":"0x2","rdx":"0x1f0"},"after":{"rcx":"0x0","rdi":"0x2"},"data":"a55a"}
    /// {"records":4}
    /// ```
    ///
    /// # Errors
    ///
    /// [`TraceError`], with the number of the line. A file that is cut off is one: [`Self::read_partial`] reads what is there.
    pub fn read(file: impl BufRead) -> Result<Trace, TraceError> {
        Self::read_with(file, TraceLimits::new())
    }

    /// Reads a trace file, as [`Self::read`] does, within the limits given.
    ///
    /// A line that is too long is not read to its end. However a file is made, reading it takes at most 36 times as much
    /// memory as it has bytes (the shortest lines are a twelfth of the [`Record`] that they stand for, and the list of
    /// records doubles as it grows); what remains is at most twelve times as much.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn read_with(file: impl BufRead, limits: TraceLimits) -> Result<Trace, TraceError> {
        let mut lines = Lines::new(file, limits.line);
        let mut reading = lines.begin()?;
        loop {
            match lines.next().and_then(|text| reading.take(text, limits.records)) {
                Ok(Taken::More) => {}
                Ok(Taken::End) => break,
                Err(problem) => return Err(lines.error(reading.if_pending(problem))),
            }
        }
        match lines.is_at_end()? {
            true => Ok(reading.trace()),
            false => Err(lines.error(TraceProblem::AfterTheEnd)),
        }
    }

    /// Reads what is there of a trace file that was cut off anywhere, within the default [`TraceLimits`]: when the machine or
    /// the program went down, or the disk was full. Names the access that was announced and has no record
    /// ([`TraceWriter::write_ahead`](super::TraceWriter::write_ahead)).
    ///
    /// A file is cut off where its last line is missing, and also where it ends with a part of a line, with zeros (which some
    /// file systems leave after a crash) or with anything else that holds no line of a trace. A file that is whole is read, too.
    ///
    /// ```
    /// use ioemul::trace::Trace;
    /// let file = r#"{"ioemul-trace":2}
    /// {"about_to":"out 0xb2, al","before":{"rax":"0x59"}}
    /// {"insn":"out 0xb2, al","before":{"rax":"0x59"},"ns":9812}
    /// {"about_to":"out 0xb2, al","before":{"rax":"0x5a"}}
    /// "#;
    /// let partial = Trace::read_partial(file.as_bytes())?;
    /// let pending = partial.pending.unwrap();
    /// assert_eq!((partial.trace.records().len(), pending.port(), pending.before.rax), (1, 0xb2, 0x5a));
    /// # Ok::<(), ioemul::trace::TraceError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`TraceError`], with the number of the line:
    ///
    /// - The first line is not there to its end, is not that of a trace, or names another version.
    /// - A line in the middle is wrong: what is behind it holds a line of a trace, so that the file is damaged, and not cut off.
    /// - A line contradicts those before it: the record of another access than was announced, or another number of records.
    /// - A line is longer than the limit, or there are more records.
    /// - The file cannot be read.
    pub fn read_partial(file: impl BufRead) -> Result<PartialTrace, TraceError> {
        Self::read_partial_with(file, TraceLimits::new())
    }

    /// Reads what is there of a trace file, as [`Self::read_partial`] does, within the limits given. It takes as much memory as
    /// [`Self::read_with`].
    ///
    /// # Errors
    ///
    /// As for [`Self::read_partial`].
    pub fn read_partial_with(file: impl BufRead, limits: TraceLimits) -> Result<PartialTrace, TraceError> {
        let mut lines = Lines::new(file, limits.line);
        let mut reading = lines.begin()?;
        let mut len = lines.read;
        let is_whole = loop {
            let problem = match lines.next().and_then(|text| reading.take(text, limits.records)) {
                Ok(Taken::More) => {
                    len = lines.read;
                    continue;
                }
                Ok(Taken::End) if lines.is_at_end()? => break true,
                Ok(Taken::End) => TraceProblem::AfterTheEnd,
                Err(TraceProblem::CutOff) => break false,
                Err(problem) => problem,
            };
            let error = lines.error(problem);
            if !lines.may_be_cut_off_here(&error.problem) || lines.hold_another()? {
                return Err(error);
            }
            break false;
        };
        let (pending, version) = (reading.pending.take(), reading.version);
        Ok(PartialTrace { trace: reading.trace(), pending, is_whole, len, version })
    }

    /// Writes a trace file, in the [format](super::format) of version 2.
    ///
    /// # Errors
    ///
    /// Those of the file.
    pub fn write(&self, mut file: impl Write) -> io::Result<()> {
        file::write_header(&mut file, &self.header)?;
        for record in &self.records {
            file::write_record(&mut file, record)?;
        }
        file::write_end(&mut file, self.records.len())?;
        file.flush()
    }
}

/// The lines of a file, and where in it they are.
struct Lines<R> {
    file: R,
    limit: usize,
    line: Vec<u8>,
    /// Of the line, counted from 1.
    number: usize,
    /// Bytes of the whole lines.
    read: u64,
}

impl<R: BufRead> Lines<R> {
    fn new(file: R, limit: usize) -> Self {
        Self { file, limit, line: Vec::new(), number: 0, read: 0 }
    }

    fn error(&self, problem: TraceProblem) -> TraceError {
        TraceError { line: self.number, problem }
    }

    /// Reads the first line.
    fn begin(&mut self) -> Result<Reading, TraceError> {
        match self.next().and_then(file::parse_header) {
            Ok((version, header)) => Ok(Reading { version, header, records: Vec::new(), pending: None }),
            Err(problem) => Err(self.error(problem)),
        }
    }

    /// Reads the next line, and no more of it than the limit.
    fn next(&mut self) -> Result<&[u8], TraceProblem> {
        self.number += 1;
        self.line.clear();
        let with_newline = (self.limit as u64).saturating_add(1);
        let read = (&mut self.file).take(with_newline).read_until(b'\n', &mut self.line).map_err(TraceProblem::Read)?;
        match self.line.strip_suffix(b"\n") {
            Some(text) => {
                self.read += read as u64;
                Ok(text)
            }
            None if self.line.len() > self.limit => Err(TraceProblem::LongLine { limit: self.limit }),
            None => Err(TraceProblem::CutOff),
        }
    }

    /// Whether the file ends here; if not, the line that follows is the one that an error is about.
    fn is_at_end(&mut self) -> Result<bool, TraceError> {
        self.number += 1;
        self.line.clear();
        match self.count_next(|_| true) {
            Ok(left) => Ok(left == 0),
            Err(error) => Err(self.error(TraceProblem::Read(error))),
        }
    }

    /// How many bytes of what can be read at once are such, from the first one on. They are not taken.
    fn count_next(&mut self, is_such: impl Fn(&u8) -> bool) -> io::Result<usize> {
        loop {
            match self.file.fill_buf() {
                Ok(buffer) => return Ok(buffer.iter().take_while(|byte| is_such(byte)).count()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the line that was read last may be where the file was cut off, if nothing else follows.
    fn may_be_cut_off_here(&self, problem: &TraceProblem) -> bool {
        match problem {
            // Zeros, of which there may be any number.
            TraceProblem::LongLine { .. } => self.line.ends_with(&[0]),
            TraceProblem::Syntax { .. }
            | TraceProblem::Insn { .. }
            | TraceProblem::Data { .. }
            | TraceProblem::NotBytes
            | TraceProblem::TwoErrors
            | TraceProblem::AfterTheEnd => true,
            // A line that is whole, and not the one that belongs here; a limit; an error of the file.
            _ => false,
        }
    }

    /// Whether what is left of the line that was read last, or what follows, holds a line of a trace.
    fn hold_another(&mut self) -> Result<bool, TraceError> {
        let at = self.number;
        loop {
            if is_line(&self.line) {
                return Ok(true);
            }
            let read = self.skip_zeros().map_err(TraceProblem::Read).and_then(|()| match self.next() {
                Err(TraceProblem::LongLine { .. }) => Ok(true), // the rest of it is the next one
                Err(TraceProblem::CutOff) => Ok(false),
                read => read.map(|_| true),
            });
            match read {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(problem) => return Err(TraceError { line: at, problem }),
            }
        }
    }

    fn skip_zeros(&mut self) -> io::Result<()> {
        loop {
            match self.count_next(|byte| *byte == 0)? {
                0 => return Ok(()),
                zeros => self.file.consume(zeros),
            }
        }
    }
}

/// Whether a line of a trace is there, behind zeros perhaps.
fn is_line(text: &[u8]) -> bool {
    let text = text.rsplit(|byte| *byte == 0).next().unwrap_or_default().trim_ascii_start();
    text.starts_with(b"{") && Line::parse(text).is_ok()
}

/// What has been read.
struct Reading {
    version: u32,
    header: TraceHeader,
    records: Vec<Record>,
    /// What was announced and has no record yet.
    pending: Option<Pending>,
}

/// What a line was.
enum Taken {
    More,
    End,
}

impl Reading {
    /// Takes a line behind the first one. What is pending stays so if the line is not its record.
    fn take(&mut self, text: &[u8], limit: usize) -> Result<Taken, TraceProblem> {
        let line = Line::parse(text)?;
        match (&self.pending, &line) {
            (Some(pending), Line::Record(record)) if pending.is_of(record) => self.pending = None,
            (Some(pending), _) => return Err(TraceProblem::Mismatch { insn: pending.insn, port: pending.port() }),
            (None, _) => {}
        }
        match line {
            Line::Record(_) if self.records.len() == limit => return Err(TraceProblem::TooManyRecords { limit }),
            Line::Record(record) => self.records.push(record),
            Line::Announcement(pending) => self.pending = Some(pending),
            Line::End(stated) if stated == self.records.len() => return Ok(Taken::End),
            Line::End(stated) => return Err(TraceProblem::Count { stated, found: self.records.len() }),
        }
        Ok(Taken::More)
    }

    /// A problem of the line that follows an announcement: a file that is cut off there names the access.
    fn if_pending(&self, problem: TraceProblem) -> TraceProblem {
        match (problem, &self.pending) {
            (TraceProblem::CutOff, Some(pending)) => {
                TraceProblem::DidNotReturn { insn: pending.insn, port: pending.port() }
            }
            (problem, _) => problem,
        }
    }

    fn trace(mut self) -> Trace {
        self.records.shrink_to_fit();
        Trace { header: self.header, records: self.records }
    }
}
