//! A bus that answers from a trace.

use core::fmt::Write;
use core::hash::BuildHasher;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Record, RecordedError, Trace};
use crate::insn::Steps;
use crate::{DeviceError, Direction, Gprs, PortAccess, PortDevice, PortOperand, SoftwareBus, StringError, Width};

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
        self.bus(None)
    }

    /// A bus that answers each access from the first unused record of its port, width and direction (and of the value
    /// written), wherever that is in the trace and whatever the other registers hold; of those, the ones that the
    /// recorded access changed are set. An access that was not recorded, or not so often, finds nobody: it reads as all
    /// ones, or is lost.
    pub fn lenient(self) -> (SoftwareBus, Progress) {
        let index = Index::new(&self.trace.records);
        self.bus(Some(index))
    }

    fn bus(self, lenient: Option<Index>) -> (SoftwareBus, Progress) {
        let records = self.trace.records;
        // A string instruction with a count of 0 makes no access: it needs no answer.
        let used: Vec<_> = records.iter().map(|record| record.requested() == Some(0)).collect();
        let replayed = used.iter().filter(|used| **used).count();
        let shared = Shared { records, replayed: replayed.into(), first_unused: 0.into(), unexpected: 0.into() };
        let player = Player { lenient, used, shared: Arc::new(shared) };
        player.pass_over_used();
        let progress = Progress { shared: player.shared.clone() };
        let mut bus = SoftwareBus::new();
        bus.attach(0..=u16::MAX, player).expect("an empty bus has room");
        (bus, progress)
    }
}

/// What the player and those who watch it know.
#[derive(Debug)]
struct Shared {
    records: Vec<Record>,
    /// How many records have been played.
    replayed: AtomicUsize,
    /// Index of the first that has not; as many as there are when all have.
    first_unused: AtomicUsize,
    unexpected: AtomicUsize,
}

/// How far a replay has come. It can be looked at while the bus is in use elsewhere.
#[derive(Clone, Debug)]
pub struct Progress {
    shared: Arc<Shared>,
}

impl Progress {
    /// How many records have been played.
    pub fn replayed(&self) -> usize {
        self.shared.replayed.load(Ordering::Relaxed)
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
        let index = self.shared.first_unused.load(Ordering::Acquire);
        match self.shared.records.get(index) {
            None => Ok(()),
            Some(record) => Err(ReplayError::Unfinished {
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
    /// The access was recorded as one that did not return: what the hardware would have answered is not known.
    #[error("the recorded access did not return")]
    DidNotReturn,
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
    /// Where a lenient replay finds its records; a strict one takes the next.
    lenient: Option<Index>,
    /// For each record, whether it has been played.
    used: Vec<bool>,
    shared: Arc<Shared>,
}

/// The records that have not been played, by what they answer: finding one takes as long in a long trace as in a short
/// one.
struct Index {
    unused: HashMap<Question, VecDeque<usize>>,
    /// Those of INS and OUTS that ended in an error, which answer accesses of several lengths: they are looked through.
    failed: HashMap<(u16, Width, Direction), BTreeSet<usize>>,
    /// Has keys of its own: nobody writes a trace in which the data of all records have one hash.
    hasher: RandomState,
}

/// What an access asks for.
#[derive(PartialEq, Eq, Hash)]
struct Question {
    port: u16,
    width: Width,
    direction: Direction,
    /// Bytes to be moved by INS or OUTS.
    string: Option<usize>,
    /// What is written: the value of OUT, the hash of the data of OUTS.
    written: u64,
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

impl Index {
    fn new(records: &[Record]) -> Self {
        let mut index = Self { unused: HashMap::new(), failed: HashMap::new(), hasher: RandomState::new() };
        for (at, record) in records.iter().enumerate() {
            let access = PortAccess::of(record.insn, &record.before);
            let string = match record.requested() {
                None => None,
                Some(0) => continue, // no access
                Some(_) if record.error.is_some() => {
                    index.failed.entry((access.port, access.width, access.direction)).or_default().insert(at);
                    continue;
                }
                Some(len) => match usize::try_from(len) {
                    Ok(len) => Some(len),
                    Err(_) => continue, // none that can be made
                },
            };
            let (value, data) = match access.direction {
                Direction::In => (0, Vec::new()),
                Direction::Out => (record.before.rax as u32 & access.width.mask(), record.elements().collect()),
            };
            let question = index.question(&Got { access, value, string, data: &data });
            index.unused.entry(question).or_default().push_back(at);
        }
        index
    }

    fn question(&self, got: &Got<'_>) -> Question {
        let PortAccess { port, width, direction, .. } = got.access;
        let written = match got.string {
            Some(_) => self.hasher.hash_one(got.data),
            None => got.value.into(),
        };
        Question { port, width, direction, string: got.string, written }
    }

    /// Takes out the first of the records that answers `got`, if `may` says so.
    fn take<E>(
        &mut self,
        got: &Got<'_>,
        records: &[Record],
        may: impl FnOnce(usize) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        let PortAccess { port, width, direction, .. } = got.access;
        let question = self.question(got);
        let whole = self.unused.get_mut(&question);
        let failed = self.failed.get_mut(&(port, width, direction)).filter(|_| got.string.is_some());
        let fits =
            |at: &&usize| records.get(**at).is_some_and(|record| got.is_access_of(record) && got.writes_as(record));
        let first_failed = failed.as_ref().and_then(|failed| failed.iter().find(fits).copied());
        let first_whole = whole.as_ref().and_then(|whole| whole.front().copied());
        let Some(first) = first_whole.into_iter().chain(first_failed).min() else { return Ok(None) };
        may(first)?;
        match (whole, failed) {
            (Some(whole), _) if first_whole == Some(first) => drop(whole.pop_front()),
            (_, Some(failed)) => drop(failed.remove(&first)),
            _ => {}
        }
        Ok(Some(first))
    }
}

impl Player {
    /// The place of the record that answers `got`; `None` where a lenient replay finds nobody.
    fn find(&mut self, got: &Got<'_>, gprs: &Gprs) -> Result<Option<usize>, ReplayError> {
        let records = &self.shared.records;
        let may = |at: usize| match records.get(at) {
            Some(record) => got.can_be_given(at + 1, record),
            None => Err(ReplayError::Ended { recorded: records.len(), got: got.describe() }),
        };
        let at = match &mut self.lenient {
            Some(index) => match index.take(got, records, may)? {
                Some(at) => at,
                None => return Ok(None),
            },
            None => {
                let at = self.shared.first_unused.load(Ordering::Relaxed);
                if let Some(record) = records.get(at) {
                    got.check(at + 1, record, gprs)?;
                }
                may(at)?;
                at
            }
        };
        self.used[at] = true;
        self.shared.replayed.fetch_add(1, Ordering::Relaxed);
        self.pass_over_used();
        Ok(Some(at))
    }

    /// Moves on to the first record that has not been played.
    fn pass_over_used(&self) {
        let first = self.shared.first_unused.load(Ordering::Relaxed);
        let passed = self.used[first..].iter().take_while(|used| **used).count();
        // Whoever sees that all have been played sees how many that are.
        self.shared.first_unused.store(first + passed, Ordering::Release);
    }

    /// Finds the record, counts what was not found, and sets the registers.
    fn play(&mut self, got: &Got<'_>, gprs: &mut Gprs) -> Result<Option<&Record>, DeviceError> {
        let found = self.find(got, gprs);
        if matches!(found, Err(_) | Ok(None)) {
            self.shared.unexpected.fetch_add(1, Ordering::Relaxed);
        }
        let Some(record) = found?.and_then(|at| self.shared.records.get(at)) else {
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
            Self::DidNotReturn => Box::new(ReplayError::DidNotReturn),
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
                data.iter_mut().zip(record.elements()).for_each(|(byte, recorded)| *byte = recorded);
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
    /// Bytes that INS or OUTS was asked to move; `None` for IN and OUT. Those that its memory had no room for are not among
    /// them: it has left them in RCX.
    pub(super) fn requested(&self) -> Option<u64> {
        let steps = Steps::of(self.insn, &self.before)?;
        let bytes = |elements: u64| elements.saturating_mul(self.insn.width.bytes().into());
        let moved = match self.insn.operand {
            PortOperand::String { rep: true, address, .. } if self.error.is_none() && !self.data.is_empty() => {
                bytes(steps.count().saturating_sub(self.after.rcx & address.mask()))
            }
            _ => 0,
        };
        let is_part = moved == self.data.len() as u64 && moved > 0;
        Some(if is_part { moved } else { bytes(steps.count()) })
    }

    /// The data in the order in which a device sees it: that of the elements, which with DF set is not that of memory.
    fn elements(&self) -> impl Iterator<Item = u8> {
        let (width, len) = (usize::from(self.insn.width.bytes()), self.data.len());
        let downwards = Steps::of(self.insn, &self.before).is_some_and(|steps| steps.downwards());
        let place = move |i: usize| if downwards { (len - 1 - i) / width * width + i % width } else { i };
        (0..len).map(move |i| self.data[place(i)])
    }

    fn end_of_string(&self) -> Result<(), StringError> {
        match &self.error {
            None => Ok(()),
            Some(error) => Err(StringError { done: self.data.len(), source: error.to_device_error() }),
        }
    }
}

impl Got<'_> {
    /// Whether a bus can give what was recorded: an IN of 4 bytes has zero-extended EAX.
    fn can_be_given(&self, number: usize, record: &Record) -> Result<(), ReplayError> {
        let is_dword_in =
            self.string.is_none() && self.access.direction == Direction::In && self.access.width == Width::Dword;
        let rax = record.after.rax;
        match is_dword_in && record.error.is_none() && rax > u32::MAX.into() {
            true => Err(ReplayError::WideInput { number, rax }),
            false => Ok(()),
        }
    }

    fn is_access_of(&self, record: &Record) -> bool {
        let PortAccess { port, width, direction, .. } = self.access;
        (port, width, direction) == (record.port(), record.insn.width, record.insn.direction)
            && match (self.string.map(|len| len as u64), record.requested()) {
                (Some(len), Some(requested)) if record.error.is_some() => {
                    len <= requested && len >= record.data.len() as u64
                }
                (len, requested) => len == requested,
            }
    }

    /// Whether it writes what was recorded; true for an IN.
    fn writes_as(&self, record: &Record) -> bool {
        match (self.access.direction, self.string) {
            (Direction::In, _) => true,
            (Direction::Out, None) => self.value == record.before.rax as u32 & self.access.width.mask(),
            (Direction::Out, Some(_)) => {
                record.data.len() <= self.data.len()
                    && record.elements().eq(self.data[..record.data.len()].iter().copied())
            }
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
        let mut bytes = record.elements().zip(self.data).enumerate();
        if let Some((at, (recorded, written))) = bytes.find(|(_, (recorded, written))| recorded != *written) {
            let _ = write!(expected, ", byte {at} = {recorded:#04x}");
            let _ = write!(got, ", byte {at} = {written:#04x}");
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
