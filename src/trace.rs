//! Accesses recorded on the hardware, to be played back without it: a tool's tests run from a trace taken once.
//!
//! A [`Trace`] is a list of [`Record`]s, one for each instruction executed: the registers before and after, the data of
//! INS and OUTS, and the error if it ended in one. It is an [`Events`] listener, so that an emulator fills it, and
//! [`Trace::replay`] makes a [`SoftwareBus`](crate::SoftwareBus) of it that answers as the hardware did.
//!
//! ```
//! use ioemul::devices::VmwareBackdoor;
//! use ioemul::trace::Trace;
//! use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
//!
//! let ports = PortSet::from(0x5658..=0x565b);
//! let insn = IoInsn::in_dx(Width::Dword);
//! let version = Gprs { rax: 0x564d5868, rcx: 10, rdx: 0x5658, ..Gprs::default() };
//!
//! // Once, where the hardware is (here, a model of it):
//! let mut bus = SoftwareBus::new();
//! bus.attach(0x5658..=0x565b, VmwareBackdoor::new())?;
//! let mut emulator = IoEmulator::builder().ports(ports.clone()).bus(bus).events(Trace::new()).build()?;
//! emulator.execute(insn, &mut version.clone())?;
//! let trace = emulator.into_events();
//!
//! // Ever after:
//! let (bus, progress) = trace.replay().strict();
//! let mut emulator = IoEmulator::builder().ports(ports).bus(bus).build()?;
//! let mut gprs = version;
//! emulator.execute(insn, &mut gprs)?;
//! assert_eq!((gprs.rax, gprs.rbx), (6, 0x564d5868));
//! progress.finish()?; // nothing recorded was left out
//!
//! // One access more than was recorded:
//! let error = emulator.execute(insn, &mut gprs).unwrap_err();
//! assert!(error.to_string().contains("the trace ends"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What a trace holds is what the emulator's caller sees. The several accesses of a quirk's payload are one record, and
//! the replaying emulator is built without the quirk (as emulators on a bus are by default). An access that the
//! emulator's port set denied never reached a port, and is not recorded. Of RFLAGS, the status flags are played back
//! and the rest is this machine's.
//!
//! With the feature `trace`, traces are read from and written to files. `trace::format` describes them, and what helps
//! where a machine does not come back from an access: each is then in the file before it is made.

use std::time::Duration;

use crate::events::{Attempt, Events, Outcome};
use crate::{DeviceError, Gprs, IoFault, IoInsn};

#[cfg(feature = "trace")]
mod file;
mod header;
#[cfg(feature = "trace")]
mod problem;
#[cfg(feature = "trace")]
mod read;
mod replay;
#[cfg(feature = "trace")]
mod writer;

#[cfg(feature = "trace")]
#[doc = include_str!("../docs/trace.md")]
pub mod format {}

#[cfg(feature = "trace")]
pub use file::FORMAT_VERSION;
pub use header::TraceHeader;
#[cfg(feature = "trace")]
pub use problem::{TraceError, TraceProblem};
#[cfg(feature = "trace")]
pub use read::{PartialTrace, Pending, TraceLimits};
pub use replay::{Progress, Replay, ReplayError};
#[cfg(feature = "trace")]
pub use writer::TraceWriter;

/// One instruction, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The instruction.
    pub insn: IoInsn,
    /// The registers before it.
    pub before: Gprs,
    /// The registers after it. After an error they are as before, but for the progress of a string instruction.
    pub after: Gprs,
    /// The bytes that INS or OUTS moved; empty for IN and OUT.
    pub data: Vec<u8>,
    /// The error it ended in, if any.
    pub error: Option<RecordedError>,
    /// How long it took, if that is known. A replay takes no notice of it.
    pub duration: Option<Duration>,
}

/// An error as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordedError {
    /// The CPU refused the access.
    Fault(IoFault),
    /// A device model refused the access, with these words.
    Refused(String),
    /// The access was begun, and nothing is known of its end: the machine or the program went down in it. The registers
    /// after it are those before it.
    DidNotReturn,
}

impl Record {
    /// The first port that the instruction touched.
    pub fn port(&self) -> u16 {
        self.insn.port(&self.before)
    }

    fn new(attempt: &Attempt<'_>, outcome: &Outcome<'_>, error: Option<RecordedError>) -> Self {
        Self {
            insn: attempt.insn,
            before: *attempt.gprs,
            after: *outcome.gprs,
            data: outcome.data.to_vec(),
            error,
            duration: outcome.duration,
        }
    }
}

/// Records in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    header: TraceHeader,
    records: Vec<Record>,
}

impl Trace {
    /// A trace of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where, when and on what the accesses were made, as far as that is said.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// The trace with this header.
    pub fn with_header(mut self, header: TraceHeader) -> Self {
        self.header = header;
        self
    }

    /// The records.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Makes a bus of the trace: [strict](Replay::strict), or [lenient](Replay::lenient).
    pub fn replay(self) -> Replay {
        Replay::new(self)
    }
}

impl FromIterator<Record> for Trace {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        Self { header: TraceHeader::default(), records: records.into_iter().collect() }
    }
}

impl Extend<Record> for Trace {
    fn extend<I: IntoIterator<Item = Record>>(&mut self, records: I) {
        self.records.extend(records);
    }
}

/// An emulator's accesses become records, each with the time that it took.
impl Events for Trace {
    const TIMED: bool = true;

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.records.push(Record::new(attempt, outcome, None));
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        self.records.push(Record::new(attempt, outcome, Some(RecordedError::Fault(*fault))));
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        self.records.push(Record::new(attempt, outcome, Some(RecordedError::Refused(why.to_string()))));
    }
}
