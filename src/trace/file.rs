//! Traces as files: a line of JSON for each record.

use core::fmt;
use std::io::{self, BufRead, Read, Write};

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::{Record, RecordedError, Trace};
use crate::events::{Attempt, Events, Outcome};
use crate::quote::{quoted, shortened};
use crate::{DeviceError, Gprs, IoFault, IoInsn, ParseInsnError};

/// The version of the file format that this crate writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    #[serde(rename = "ioemul-trace")]
    version: u32,
}

/// A line for each record.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    insn: String,
    before: Words,
    #[serde(default, skip_serializing_if = "Words::is_empty")]
    after: Words,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    vector: u8,
    error_code: u16,
    address: Hex,
}

/// The last line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    records: usize,
}

/// How much of a file [`Trace::read_with`] takes: what bounds the memory that a file from outside can ask for.
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
    /// How many records there may be. By default a million, which take some 320 MB.
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

impl Trace {
    /// Reads a trace file, within the default [`TraceLimits`].
    ///
    /// The format, version 1, is lines of JSON:
    ///
    /// ```text
    /// {"ioemul-trace":1}
    /// {"insn":"out dx, al","before":{"rax":"0x85","rdx":"0xcd4"},"after":{"rflags":"0x246"}}
    /// {"insn":"in al, dx","before":{"rax":"0x85","rdx":"0xcd4"},"after":{"rax":"0x5","rflags":"0x246"}}
    /// {"insn":"out 0x80, al","before":{},"fault":{"vector":13,"error_code":0,"address":"0x0"}}
    /// {"insn":"rep insb","before":{"rcx":"0x2","rdx":"0x1f0"},"after":{"rcx":"0x0","rdi":"0x2"},"data":"a55a"}
    /// {"records":4}
    /// ```
    ///
    /// - The first line names the format and its version, the last one says how many records there are between them:
    ///   without
    ///   it the file is cut off. Every line ends with a newline.
    /// - `insn` is the instruction as this crate writes it ([`IoInsn`]'s `Display`, and `FromStr`).
    /// - `before` holds the registers that are not 0, and `after` those that the instruction changed, as hexadecimal
    ///   strings
    ///   (not every reader of JSON has 64-bit numbers).
    /// - `data` is what INS or OUTS moved, two digits to a byte.
    /// - `fault` (the exception) or `refused` (the words of a device model) is there if the instruction ended in an
    ///   error.
    ///
    /// # Errors
    ///
    /// [`TraceError`], with the number of the line.
    pub fn read(file: impl BufRead) -> Result<Trace, TraceError> {
        Self::read_with(file, TraceLimits::new())
    }

    /// Reads a trace file, as [`Self::read`] does, within the limits given.
    ///
    /// A line that is too long is not read to its end. However a file is made, reading it takes at most 32 times as much
    /// memory as it has bytes (the shortest lines are a tenth of the [`Record`] that they stand for, and the list of
    /// records doubles as it grows); what remains is at most twelve times as much.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn read_with(mut file: impl BufRead, limits: TraceLimits) -> Result<Trace, TraceError> {
        let mut records = Vec::new();
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            number += 1;
            let at_line = |problem| TraceError { line: number, problem };
            let text = read_line(&mut file, &mut line, limits.line).map_err(at_line)?;
            if number == 1 {
                check_header(text).map_err(at_line)?;
                continue;
            }
            match serde_json::from_slice::<End>(text) {
                Ok(End { records: stated }) if stated == records.len() => break,
                Ok(End { records: stated }) => {
                    return Err(at_line(TraceProblem::Count { stated, found: records.len() }));
                }
                Err(_) if records.len() == limits.records => {
                    return Err(at_line(TraceProblem::TooManyRecords { limit: limits.records }));
                }
                Err(_) => records.push(parse_record(text).map_err(at_line)?),
            }
        }
        let after = TraceError { line: number + 1, problem: TraceProblem::AfterTheEnd };
        match file.take(1).read_to_end(&mut line) {
            Ok(0) => {
                records.shrink_to_fit();
                Ok(Trace { records })
            }
            Ok(_) => Err(after),
            Err(error) => Err(TraceError { problem: TraceProblem::Read(error), ..after }),
        }
    }

    /// Writes a trace file, in the format that [`Self::read`] describes.
    ///
    /// # Errors
    ///
    /// Those of the file.
    pub fn write(&self, mut file: impl Write) -> io::Result<()> {
        write_line(&mut file, &Header { version: FORMAT_VERSION })?;
        for record in &self.records {
            write_line(&mut file, &Line::from(record))?;
        }
        write_line(&mut file, &End { records: self.records.len() })?;
        file.flush()
    }
}

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
#[derive(Debug)]
#[must_use = "`finish` ends the file and has the errors"]
pub struct TraceWriter<W> {
    file: W,
    records: usize,
    error: Option<io::Error>,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace file.
    ///
    /// # Errors
    ///
    /// Those of writing the first line.
    pub fn new(mut file: W) -> io::Result<Self> {
        write_line(&mut file, &Header { version: FORMAT_VERSION })?;
        Ok(Self { file, records: 0, error: None })
    }

    /// How many records have been written.
    pub fn records(&self) -> usize {
        self.records
    }

    /// The error that ended the recording, if one did.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// Ends the file and gives it back, flushed.
    ///
    /// # Errors
    ///
    /// The error that ended the recording, or that of the last line. The file then has no last line, and reads as cut
    /// off.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(error) = self.error {
            return Err(error);
        }
        write_line(&mut self.file, &End { records: self.records })?;
        self.file.flush()?;
        Ok(self.file)
    }

    fn record(&mut self, record: &Record) {
        if self.error.is_none() {
            match write_line(&mut self.file, &Line::from(record)) {
                Ok(()) => self.records += 1,
                Err(error) => self.error = Some(error),
            }
        }
    }
}

impl<W: Write> Events for TraceWriter<W> {
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

/// A line of a trace file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("trace, line {line}: {problem}")]
#[non_exhaustive]
pub struct TraceError {
    /// Number of the line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: TraceProblem,
}

/// What is wrong with a line of a trace file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceProblem {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error("not a trace: a trace begins with {{\"ioemul-trace\":{FORMAT_VERSION}}}")]
    NotATrace,
    /// A format of another version.
    #[error("the format has version {found}, and this program reads version {FORMAT_VERSION}")]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// Not the JSON that a record is.
    #[error("column {column}: {message}")]
    Syntax {
        /// The byte, counted from 1.
        column: usize,
        /// What is wrong there; of a long message both ends.
        message: String,
    },
    /// The instruction is none.
    #[error("`{text}`: {source}")]
    Insn {
        /// The text in its place; of a long one the beginning, and an ellipsis.
        text: String,
        /// Why it is none.
        source: ParseInsnError,
    },
    /// `data` does not go with the instruction.
    #[error("`{insn}` asks for {requested} bytes, and `data` holds {found}")]
    Data {
        /// The instruction.
        insn: IoInsn,
        /// Bytes that it asks for.
        requested: u64,
        /// Bytes that are there.
        found: usize,
    },
    /// `data` is not hexadecimal.
    #[error("`data` is not a list of bytes, two hexadecimal digits each")]
    NotBytes,
    /// An instruction ends in one error at most.
    #[error("a record has `fault` or `refused`, not both")]
    TwoErrors,
    /// It is longer than may be read.
    #[error("the line is longer than {limit} bytes: `TraceLimits::line` is the longest that is read")]
    LongLine {
        /// The longest line that is read.
        limit: usize,
    },
    /// There are more records than may be read.
    #[error("the file has more than {limit} records: `TraceLimits::records` is how many are read")]
    TooManyRecords {
        /// How many are read.
        limit: usize,
    },
    /// The file ends before its last line does.
    #[error("the file is cut off: a trace ends with a line such as {{\"records\":7}}")]
    CutOff,
    /// Records are missing or too many.
    #[error("the last line states {stated} records, and there are {found}")]
    Count {
        /// The number in the last line.
        stated: usize,
        /// Records before it.
        found: usize,
    },
    /// Something follows the last line.
    #[error("there is more after the line that ends the trace")]
    AfterTheEnd,
}

/// Reads the next line into `line`, and no more than `limit` bytes of it.
fn read_line<'l>(file: &mut impl BufRead, line: &'l mut Vec<u8>, limit: usize) -> Result<&'l [u8], TraceProblem> {
    line.clear();
    let with_newline = (limit as u64).saturating_add(1);
    file.take(with_newline).read_until(b'\n', line).map_err(TraceProblem::Read)?;
    match line.strip_suffix(b"\n") {
        Some(text) => Ok(text),
        None if line.len() > limit => Err(TraceProblem::LongLine { limit }),
        None => Err(TraceProblem::CutOff),
    }
}

fn check_header(text: &[u8]) -> Result<(), TraceProblem> {
    match serde_json::from_slice(text) {
        Ok(Header { version: FORMAT_VERSION }) => Ok(()),
        Ok(Header { version: found }) => Err(TraceProblem::Version { found }),
        Err(_) => Err(TraceProblem::NotATrace),
    }
}

fn parse_record(text: &[u8]) -> Result<Record, TraceProblem> {
    let line: Line = serde_json::from_slice(text).map_err(|error| {
        let message = error.to_string();
        // The line that serde_json counts is its own, always 1.
        let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
        TraceProblem::Syntax { column: error.column(), message: shortened(message) }
    })?;
    let insn = line.insn.parse().map_err(|source| TraceProblem::Insn { text: quoted(&line.insn), source })?;
    let error = match (line.fault, line.refused) {
        (None, None) => None,
        (Some(Fault { vector, error_code, address }), None) => {
            Some(RecordedError::Fault(IoFault { vector, error_code, address: address.0 }))
        }
        (None, Some(words)) => Some(RecordedError::Refused(words)),
        (Some(_), Some(_)) => return Err(TraceProblem::TwoErrors),
    };
    let before = Gprs::from_words(line.before.0.map(Option::unwrap_or_default));
    let mut after = before.to_words();
    for (word, changed) in after.iter_mut().zip(line.after.0) {
        *word = changed.unwrap_or(*word);
    }
    let after = Gprs::from_words(after);
    let data = bytes_from_hex(&line.data).ok_or(TraceProblem::NotBytes)?;
    let record = Record { insn, before, after, data, error };
    let (requested, found) = (record.requested().unwrap_or(0), record.data.len());
    match found as u64 {
        all if all == requested => Ok(record),
        part if part < requested && record.error.is_some() => Ok(record),
        _ => Err(TraceProblem::Data { insn, requested, found }),
    }
}

fn write_line(file: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

impl From<&Record> for Line {
    fn from(record: &Record) -> Self {
        let (before, after) = (record.before.to_words(), record.after.to_words());
        let (fault, refused) = match &record.error {
            None => (None, None),
            Some(RecordedError::Refused(words)) => (None, Some(words.clone())),
            Some(RecordedError::Fault(IoFault { vector, error_code, address })) => {
                (Some(Fault { vector: *vector, error_code: *error_code, address: Hex(*address) }), None)
            }
        };
        Self {
            insn: record.insn.to_string(),
            before: Words(before.map(|word| (word != 0).then_some(word))),
            after: Words(core::array::from_fn(|i| (after[i] != before[i]).then_some(after[i]))),
            data: record.data.iter().map(|byte| format!("{byte:02x}")).collect(),
            fault,
            refused,
        }
    }
}

fn bytes_from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = Vec::with_capacity(text.len().div_ceil(2)); // as many as are kept
    for pair in text.as_bytes().chunks(2) {
        bytes.push(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    }
    Some(bytes)
}

/// Some of the sixteen words, by their names.
#[derive(Default)]
struct Words([Option<u64>; 16]);

impl Words {
    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, word) in Gprs::NAMES.iter().zip(self.0) {
            if let Some(word) = word {
                map.serialize_entry(name, &Hex(word))?;
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Registers;

        impl<'de> Visitor<'de> for Registers {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("registers and their values")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Words, M::Error> {
                let mut words = Words::default();
                while let Some((name, Hex(word))) = map.next_entry::<String, Hex>()? {
                    let index = Gprs::NAMES.iter().position(|known| *known == name);
                    match index.map(|index| words.0[index].replace(word)) {
                        Some(None) => {}
                        Some(Some(_)) => {
                            return Err(M::Error::custom(format_args!("register `{}` twice", quoted(&name))));
                        }
                        None => {
                            return Err(M::Error::custom(format_args!("no register is called `{}`", quoted(&name))));
                        }
                    }
                }
                Ok(words)
            }
        }

        deserializer.deserialize_map(Registers)
    }
}

/// A 64-bit number as a string: `0x1f`.
struct Hex(u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number
            .map(Hex)
            .ok_or_else(|| D::Error::custom(format_args!("`{}` is not a 64-bit number such as 0x1f", quoted(&text))))
    }
}
