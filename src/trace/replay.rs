//! A bus that answers from a trace.

use core::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Record, RecordedError, Trace};
use crate::{DeviceError, Direction, Gprs, PortAccess, PortDevice, PortOperand, SoftwareBus, StringError};

/// A [`Trace`] about to be played back: [`strict`](Self::strict) or [`lenient`](Self::lenient) says how.
#[derive(Debug)]
#[must_use = "`strict` or `lenient` makes a bus of it"]
pub struct Replay {
    trace: Trace,
}

impl Replay {
    pub(super) fn new(trace: Trace) -> Self {
        Self { trace }
    }

    /// A bus that takes the recorded accesses in their order, each with the registers that it was recorded with, and
    /// refuses any other: [`Error::Device`](crate::Error::Device), its source a [`ReplayError`] that shows what was
    /// expected and what came. The access that was expected can still be made afterwards.
    ///
    /// Of RFLAGS the status flags are compared, which the access was given with the other registers; the rest of it
    /// never reaches a port. What a string instruction has in RCX, and in RSI or RDI, is its own and not compared.
    pub fn strict(self) -> (SoftwareBus, Progress) {
        self.bus(false)
    }

    /// A bus that answers each access from the first unused record of its port, width and direction (and of the value
    /// written), wherever that is in the trace and whatever the other registers hold; of those, the ones that the
    /// recorded access changed are set. An access that was not recorded, or not so often, finds nobody: it reads as all
    /// ones, or is lost.
    pub fn lenient(self) -> (SoftwareBus, Progress) {
        self.bus(true)
    }

    fn bus(self, lenient: bool) -> (SoftwareBus, Progress) {
        let records = self.trace.records;
        // A string instruction with a count of 0 makes no access: it needs no answer.
        let used = records.iter().map(|record| AtomicBool::new(record.requested() == Some(0))).collect();
        let shared = Arc::new(Shared { records, used, unexpected: AtomicUsize::new(0) });
        let mut bus = SoftwareBus::new();
        bus.attach(0..=u16::MAX, Player { lenient, shared: shared.clone() }).expect("an empty bus has room");
        (bus, Progress { shared })
    }
}

/// What the player and those who watch it know.
#[derive(Debug)]
struct Shared {
    records: Vec<Record>,
    used: Vec<AtomicBool>,
    unexpected: AtomicUsize,
}

impl Shared {
    /// The records that have not been played, with their places.
    fn unused(&self) -> impl Iterator<Item = (usize, &Record)> {
        let unused = |&(index, _): &(usize, &Record)| !self.used[index].load(Ordering::Relaxed);
        self.records.iter().enumerate().filter(unused)
    }
}

/// How far a replay has come. It can be looked at while the bus is in use elsewhere.
#[derive(Clone, Debug)]
pub struct Progress {
    shared: Arc<Shared>,
}

impl Progress {
    /// How many records have been played.
    pub fn replayed(&self) -> usize {
        self.shared.records.len() - self.shared.unused().count()
    }

    /// How many accesses came that were not in the trace: refused by a strict replay, lost by a lenient one.
    pub fn unexpected(&self) -> usize {
        self.shared.unexpected.load(Ordering::Relaxed)
    }

    /// Whether everything recorded was asked for: the last line of a test.
    ///
    /// # Errors
    ///
    /// [`ReplayError::Unfinished`] names the first record that was left out.
    pub fn finish(&self) -> Result<(), ReplayError> {
        match self.shared.unused().next() {
            None => Ok(()),
            Some((index, record)) => Err(ReplayError::Unfinished {
                replayed: self.replayed(),
                recorded: self.shared.records.len(),
                number: index + 1,
                expected: recorded_access(record),
            }),
        }
    }
}

/// Why a replay refused an access, or did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// An access other than the next one recorded, or with other registers. Both texts name the access and the
    /// registers in which they differ.
    #[error(
        "access {number} of the trace was expected, and another one came\n  expected: {expected}\n       got: {got}"
    )]
    Unexpected {
        /// Number of the record, counted from 1.
        number: usize,
        /// The access recorded.
        expected: String,
        /// The access made.
        got: String,
    },
    /// An access after the last one recorded.
    #[error("the trace ends after {recorded} accesses, and another one came\n       got: {got}")]
    Ended {
        /// Number of records.
        recorded: usize,
        /// The access made.
        got: String,
    },
    /// Records were left out.
    #[error(
        "{replayed} of {recorded} recorded accesses were replayed; access {number} never came\n  expected: {expected}"
    )]
    Unfinished {
        /// How many came.
        replayed: usize,
        /// Number of records.
        recorded: usize,
        /// Number of the first that did not, counted from 1.
        number: usize,
        /// What it is.
        expected: String,
    },
    /// An IN that left bits 63 to 32 of RAX set, which a bus cannot reproduce: it zero-extends EAX as a processor does.
    #[error("access {number} of the trace cannot be replayed: an IN of 4 bytes left RAX at {rax:#x}")]
    WideInput {
        /// Number of the record, counted from 1.
        number: usize,
        /// RAX as recorded.
        rax: u64,
    },
}

/// The device behind all ports.
struct Player {
    lenient: bool,
    shared: Arc<Shared>,
}

/// An access as it comes from the bus.
struct Got<'a> {
    access: PortAccess,
    /// AL, AX or EAX of an OUT.
    value: u32,
    /// Bytes to be moved by INS or OUTS.
    string: Option<usize>,
    /// What OUTS brings.
    data: &'a [u8],
}

impl Player {
    /// The record that answers `got`; `None` where a lenient replay finds nobody.
    fn find(&self, got: &Got<'_>, gprs: &Gprs) -> Result<Option<&Record>, ReplayError> {
        let fits = |&(_, record): &(usize, &Record)| match self.lenient {
            true => got.is_access_of(record) && got.writes_as(record),
            false => true,
        };
        let Some((index, record)) = self.shared.unused().find(fits) else {
            return match self.lenient {
                true => Ok(None),
                false => {
                    let recorded = self.shared.records.len();
                    Err(ReplayError::Ended { recorded, got: got.describe() })
                }
            };
        };
        if !self.lenient {
            got.check(index + 1, record, gprs)?;
        }
        if got.string.is_none() && got.access.direction == Direction::In && got.access.width.bytes() == 4 {
            let rax = record.after.rax;
            if record.error.is_none() && rax > u32::MAX.into() {
                return Err(ReplayError::WideInput { number: index + 1, rax });
            }
        }
        self.shared.used[index].store(true, Ordering::Relaxed);
        Ok(Some(record))
    }

    /// Finds the record, counts what was not found, and sets the registers.
    fn play(&self, got: &Got<'_>, gprs: &mut Gprs) -> Result<Option<&Record>, DeviceError> {
        let record = self.find(got, gprs);
        if matches!(record, Err(_) | Ok(None)) {
            self.shared.unexpected.fetch_add(1, Ordering::Relaxed);
        }
        let Some(record) = record? else {
            return Ok(None);
        };
        if record.error.is_none() {
            change(record, gprs);
        }
        Ok(Some(record))
    }
}

/// Does to the registers what the recorded access did.
fn change(record: &Record, gprs: &mut Gprs) {
    let (before, after) = (record.before.to_words(), record.after.to_words());
    let mut words = gprs.to_words();
    for (word, (before, after)) in words.iter_mut().zip(before.into_iter().zip(after)) {
        if before != after {
            *word = after;
        }
    }
    *gprs = Gprs {
        rflags: gprs.rflags & !Gprs::STATUS_FLAGS | record.after.rflags & Gprs::STATUS_FLAGS,
        ..Gprs::from_words(words)
    };
}

impl RecordedError {
    fn to_device_error(&self) -> DeviceError {
        match self {
            Self::Fault(fault) => Box::new(*fault),
            Self::Refused(words) => words.clone().into(),
        }
    }
}

impl PortDevice for Player {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        self.try_access(access, 0, gprs).unwrap_or(u32::MAX) // a bus calls that, and reports the error
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        let _ = self.try_access(access, value, gprs); // as above
    }

    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        let rax = gprs.rax;
        let record = self.play(&Got { access, value, string: None, data: &[] }, gprs)?;
        let Some(Record { before, after, error, .. }) = record else {
            return Ok(u32::MAX);
        };
        if access.direction == Direction::In && access.width.merge(before.rax, after.rax as u32) == after.rax {
            gprs.rax = rax; // nothing but the input changed it, and that is for the bus to merge
        }
        match error {
            None => Ok(after.rax as u32),
            Some(error) => Err(error.to_device_error()),
        }
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        let got = Got { access, value: 0, string: Some(data.len()), data: &[] };
        match self.play(&got, gprs).map_err(|source| StringError { done: 0, source })? {
            None => data.fill(0xff),
            Some(record) => {
                data.iter_mut().zip(&record.data).for_each(|(byte, recorded)| *byte = *recorded);
                record.end_of_string()?;
            }
        }
        Ok(())
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        let got = Got { access, value: 0, string: Some(data.len()), data };
        match self.play(&got, gprs).map_err(|source| StringError { done: 0, source })? {
            None => Ok(()),
            Some(record) => record.end_of_string(),
        }
    }
}

impl Record {
    /// Bytes that INS or OUTS was asked to move; `None` for IN and OUT.
    pub(super) fn requested(&self) -> Option<u64> {
        let PortOperand::String { rep, address, .. } = self.insn.operand else {
            return None;
        };
        let count = if rep { self.before.rcx & address.mask() } else { 1 };
        Some(count.saturating_mul(self.insn.width.bytes().into()))
    }

    fn end_of_string(&self) -> Result<(), StringError> {
        match &self.error {
            None => Ok(()),
            Some(error) => Err(StringError { done: self.data.len(), source: error.to_device_error() }),
        }
    }
}

impl Got<'_> {
    fn is_access_of(&self, record: &Record) -> bool {
        let PortAccess { port, width, direction, .. } = self.access;
        (port, width, direction) == (record.port(), record.insn.width, record.insn.direction)
            && self.string.map(|len| len as u64) == record.requested()
    }

    /// Whether it writes what was recorded; true for an IN.
    fn writes_as(&self, record: &Record) -> bool {
        match (self.access.direction, self.string) {
            (Direction::In, _) => true,
            (Direction::Out, None) => self.value == record.before.rax as u32 & self.access.width.mask(),
            (Direction::Out, Some(_)) => self.data.starts_with(&record.data),
        }
    }

    /// Compares everything but a string instruction's own registers, and of RFLAGS the status flags.
    fn check(&self, number: usize, record: &Record, gprs: &Gprs) -> Result<(), ReplayError> {
        let own: &[&str] = match (self.string, self.access.direction) {
            (None, _) => &[],
            (Some(_), Direction::In) => &["rcx", "rdi"],
            (Some(_), Direction::Out) => &["rcx", "rsi"],
        };
        let seen = |gprs: &Gprs| Gprs { rflags: gprs.rflags & Gprs::STATUS_FLAGS, ..*gprs };
        let registers: Vec<_> =
            seen(&record.before).differences(&seen(gprs)).filter(|(register, ..)| !own.contains(register)).collect();
        let writes_as = self.writes_as(record);
        if self.is_access_of(record) && writes_as && registers.is_empty() {
            return Ok(());
        }
        let (mut expected, mut got) = (recorded_access(record), self.describe());
        for (register, here, there) in registers {
            let _ = write!(expected, ", {register} = {here:#x}");
            let _ = write!(got, ", {register} = {there:#x}");
        }
        if let Some(at) = record.data.iter().zip(self.data).position(|(a, b)| a != b) {
            let _ = write!(expected, ", byte {at} = {:#04x}", record.data[at]);
            let _ = write!(got, ", byte {at} = {:#04x}", self.data[at]);
        }
        Err(ReplayError::Unexpected { number, expected, got })
    }

    fn describe(&self) -> String {
        describe(self.access, self.string.map(|len| len as u64))
    }
}

fn recorded_access(record: &Record) -> String {
    let access = PortAccess::of(record.insn, &record.before);
    format!("{} (`{}`)", describe(access, record.requested()), record.insn)
}

/// `OUT of 1 byte to port 0x0cd4`, or `INS of 512 bytes, 2 at a time, from port 0x01f0`.
fn describe(access: PortAccess, string: Option<u64>) -> String {
    let Some(len) = string else {
        return access.to_string();
    };
    let PortAccess { port, width, direction, .. } = access;
    let (mnemonic, preposition) = match direction {
        Direction::In => ("INS", "from"),
        Direction::Out => ("OUTS", "to"),
    };
    let plural = if len == 1 { "" } else { "s" };
    format!("{mnemonic} of {len} byte{plural}, {} at a time, {preposition} port {port:#06x}", width.bytes())
}
