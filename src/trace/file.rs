//! The lines of a trace file: each an object of JSON.

use core::fmt;
use std::io::{self, Write};
use std::time::Duration;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::problem::TraceProblem;
use super::read::Pending;
use super::{Record, RecordedError, TraceHeader};
use crate::quote::{quoted, shortened};
use crate::{Gprs, IoFault, IoInsn};

mod extension;

use extension::{Extended, Ignored};

/// The version of the file format that this crate writes. It reads this one and those before it, from 1 on.
pub const FORMAT_VERSION: u32 = 2;

/// The first line.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Header {
    #[serde(rename = "ioemul-trace")]
    version: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    on: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    machine: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    bios: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    date: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cpu: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    smi_port: Option<Small<u16>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    port_source: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reserved_codes: Vec<(Small<u8>, String)>,
}

/// What every version of the first line says.
#[derive(Deserialize)]
struct Version {
    #[serde(rename = "ioemul-trace")]
    version: u32,
}

/// The line of a record.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLine {
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
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    returned: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ns: Option<u64>,
}

fn yes() -> bool {
    true
}

fn is_true(returned: &bool) -> bool {
    *returned
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    vector: u8,
    error_code: u16,
    address: Hex,
}

/// The line of an access that is about to be made.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Announcement {
    about_to: String,
    before: Words,
}

/// The last line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    records: usize,
}

/// The keys that tell the lines behind the first one from each other.
#[derive(Deserialize)]
struct Kind {
    records: Option<Ignored>,
    about_to: Option<Ignored>,
}

/// A line behind the first one.
pub(super) enum Line {
    Announcement(Pending),
    Record(Record),
    /// The last one, and how many records it states.
    End(usize),
}

impl Line {
    pub(super) fn parse(text: &[u8]) -> Result<Line, TraceProblem> {
        match serde_json::from_slice(text) {
            Ok(Extended(Kind { records: Some(_), .. })) => parse(text).map(|End { records }| Line::End(records)),
            Ok(Extended(Kind { about_to: Some(_), .. })) => {
                let Announcement { about_to, before } = parse(text)?;
                Ok(Line::Announcement(Pending { insn: parse_insn(&about_to)?, before: before.or(&Gprs::default()) }))
            }
            _ => parse_record(text).map(Line::Record), // which says what is wrong with it if it is no JSON
        }
    }
}

/// Returns the version, and what the line says about the trace.
pub(super) fn parse_header(text: &[u8]) -> Result<(u32, TraceHeader), TraceProblem> {
    match serde_json::from_slice(text) {
        Ok(Extended(Version { version: 1..=FORMAT_VERSION })) => {}
        Ok(Extended(Version { version: found })) => return Err(TraceProblem::Version { found }),
        Err(_) => return Err(TraceProblem::NotATrace),
    }
    let Header { version, on, machine, bios, date, cpu, smi_port, port_source, reserved_codes } = parse(text)?;
    let smi_port = smi_port.map(|port| port.0);
    let reserved_codes = reserved_codes.into_iter().map(|(code, name)| (code.0, name)).collect();
    Ok((version, TraceHeader { on, machine, bios, date, cpu, smi_port, port_source, reserved_codes }))
}

/// Parses an object in which keys that begin with `x-` are ignored.
fn parse<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T, TraceProblem> {
    let parsed = serde_json::from_slice(text);
    parsed.map(|Extended(object)| object).map_err(|error: serde_json::Error| {
        let message = error.to_string();
        // The line that serde_json counts is its own, always 1.
        let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
        TraceProblem::Syntax { column: error.column(), message: shortened(message) }
    })
}

fn parse_insn(text: &str) -> Result<IoInsn, TraceProblem> {
    text.parse().map_err(|source| TraceProblem::Insn { text: quoted(text), source })
}

fn parse_record(text: &[u8]) -> Result<Record, TraceProblem> {
    let line: RecordLine = parse(text)?;
    let insn = parse_insn(&line.insn)?;
    let error = match (line.fault, line.refused, line.returned) {
        (None, None, true) => None,
        (Some(Fault { vector, error_code, address }), None, true) => {
            Some(RecordedError::Fault(IoFault { vector, error_code, address: address.0 }))
        }
        (None, Some(words), true) => Some(RecordedError::Refused(words)),
        (None, None, false) => Some(RecordedError::DidNotReturn),
        _ => return Err(TraceProblem::TwoErrors),
    };
    let before = line.before.or(&Gprs::default());
    let after = line.after.or(&before);
    let data = bytes_from_hex(&line.data).ok_or(TraceProblem::NotBytes)?;
    let record = Record { insn, before, after, data, error, duration: line.ns.map(Duration::from_nanos) };
    let (requested, found) = (record.requested().unwrap_or(0), record.data.len());
    match found as u64 {
        all if all == requested => Ok(record),
        part if part < requested && record.error.is_some() => Ok(record),
        _ => Err(TraceProblem::Data { insn, requested, found }),
    }
}

pub(super) fn write_header(file: &mut impl Write, header: &TraceHeader) -> io::Result<()> {
    let TraceHeader { on, machine, bios, date, cpu, smi_port, port_source, reserved_codes } = header.clone();
    let smi_port = smi_port.map(Small);
    let reserved_codes = reserved_codes.into_iter().map(|(code, name)| (Small(code), name)).collect();
    let version = FORMAT_VERSION;
    write_line(file, &Header { version, on, machine, bios, date, cpu, smi_port, port_source, reserved_codes })
}

pub(super) fn write_announcement(file: &mut impl Write, pending: &Pending) -> io::Result<()> {
    let before = Words::other_than(&pending.before, &Gprs::default());
    write_line(file, &Announcement { about_to: pending.insn.to_string(), before })
}

pub(super) fn write_record(file: &mut impl Write, record: &Record) -> io::Result<()> {
    write_line(file, &RecordLine::from(record))
}

pub(super) fn write_end(file: &mut impl Write, records: usize) -> io::Result<()> {
    write_line(file, &End { records })
}

/// In one piece: a file that takes whole writes has whole lines.
fn write_line(file: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

impl From<&Record> for RecordLine {
    fn from(record: &Record) -> Self {
        let (mut fault, mut refused, mut returned) = (None, None, true);
        match &record.error {
            None => {}
            Some(RecordedError::Refused(words)) => refused = Some(words.clone()),
            Some(RecordedError::Fault(IoFault { vector, error_code, address })) => {
                fault = Some(Fault { vector: *vector, error_code: *error_code, address: Hex(*address) });
            }
            Some(RecordedError::DidNotReturn) => returned = false,
        }
        Self {
            insn: record.insn.to_string(),
            before: Words::other_than(&record.before, &Gprs::default()),
            after: Words::other_than(&record.after, &record.before),
            data: record.data.iter().map(|byte| format!("{byte:02x}")).collect(),
            fault,
            refused,
            returned,
            // More than a u64 has room for are 584 years.
            ns: record.duration.map(|duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
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
    /// The registers, where they differ from others.
    fn other_than(gprs: &Gprs, others: &Gprs) -> Self {
        let (words, others) = (gprs.to_words(), others.to_words());
        Self(core::array::from_fn(|i| (words[i] != others[i]).then_some(words[i])))
    }

    /// All registers: those that are not here are as in `others`.
    fn or(&self, others: &Gprs) -> Gprs {
        let mut words = others.to_words();
        for (word, here) in words.iter_mut().zip(self.0) {
            *word = here.unwrap_or(*word);
        }
        Gprs::from_words(words)
    }

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

/// A number of fewer bits than 64, written likewise.
struct Small<T>(T);

impl<T: fmt::LowerHex> Serialize for Small<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de, T: TryFrom<u64>> Deserialize<'de> for Small<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Hex(number) = Hex::deserialize(deserializer)?;
        let small = T::try_from(number).map(Small);
        small.map_err(|_| D::Error::custom(format_args!("{number:#x} has more than {} bits", 8 * size_of::<T>())))
    }
}
