//! Where accesses are made: an emulator on the hardware, on device models or on a trace, with what surrounds each access.
#![allow(unsafe_code)] // `native`: for the ports of a plan that has passed the interlocks

use std::fs::File;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ioemul::events::{Attempt, Events, Outcome};
use ioemul::trace::TraceWriter;
use ioemul::{
    CpuAffinity, DeviceError, Direction, DmiIdentity, Error, Gprs, IoEmulator, IoFault, IoInsn, IoPermission,
    IoPortOwners, IoPortOwnersError, PortSet, PrivilegeError, SmiCounter, SmiCounterError, SoftwareBus,
};

use crate::context::Context;
use crate::failure::{Failure, Kind, Result, sentence};
use crate::files;
use crate::pc;
use crate::plan::Plan;
use crate::values::On;

/// An access that was made.
#[derive(Clone, Debug)]
pub struct Access {
    pub insn: IoInsn,
    pub before: Gprs,
    pub after: Gprs,
    /// What INS or OUTS moved.
    pub data: Vec<u8>,
    /// Unless it was replayed.
    pub duration: Option<Duration>,
    /// How many SMIs the CPU took meanwhile, where something counts them.
    pub smis: Option<u32>,
}

/// A machine that is ready for the accesses of a plan.
pub struct Machine<'c> {
    context: &'c Context,
    emulator: IoEmulator<Listener>,
    counter: Counter,
    is_cold: bool,
    /// Why the ports were not opened, where that was to be tried.
    refusal: Option<PrivilegeError>,
    /// Kept until the end.
    _permission: Option<IoPermission>,
    _affinity: Option<CpuAffinity>,
}

/// Begins a log, once nothing stands in the way of the accesses.
pub type Log<'l> = Box<dyn FnOnce() -> Result<TraceWriter<File>> + 'l>;

/// Who counts SMIs.
pub enum Counter {
    Msr(SmiCounter),
    Model(Arc<AtomicU32>),
    /// Nobody, and why.
    None(String),
    /// Nobody without privilege, and which.
    Forbidden(String),
}

impl Counter {
    /// The counter of a CPU of this machine.
    pub fn of_hardware(cpu: usize) -> Self {
        match SmiCounter::open(cpu) {
            Ok(counter) => Self::Msr(counter),
            Err(error @ SmiCounterError::NotPermitted { .. }) => Self::Forbidden(sentence(&error)),
            Err(error) => Self::None(sentence(&error)),
        }
    }

    pub fn read(&self) -> Option<u32> {
        match self {
            Self::Msr(counter) => counter.read().ok(),
            Self::Model(count) => Some(count.load(Ordering::Relaxed)),
            Self::None(_) | Self::Forbidden(_) => None,
        }
    }
}

impl<'c> Machine<'c> {
    /// Prepares for a plan; `None` where the plan was only to be shown.
    pub fn open(context: &'c Context, plan: &Plan) -> Result<Option<Self>> {
        Self::open_with_log(context, plan, None)
    }

    /// The same, with a log that each access is written to before it is made.
    pub fn open_with_log(context: &'c Context, plan: &Plan, log: Option<Log<'_>>) -> Result<Option<Self>> {
        if context.globals.dry_run {
            plan.print(context)?;
            return Ok(None);
        }
        context.name_backend();
        check_files(context)?;
        let cpu = context.globals.cpu.or(plan.cpu);
        let mut hardware = Hardware::default();
        if context.is_hardware() {
            // Without its names, the quirks of this machine would be left out in silence.
            DmiIdentity::read().map_err(|error| Failure::io("the machine's DMI strings", &error))?;
            plan.interlocks(context)?;
            if plan.asks {
                ask(context, plan)?;
            }
            hardware = Hardware::open(context, plan, cpu)?;
        }
        let log = log.map(|begin| begin()).transpose()?.map(|log| log.write_ahead(|file| file.sync_data()));
        let record = context.globals.record.as_deref().map(|file| record(context, plan, file)).transpose()?;
        let ports = plan.ports(context);
        let builder =
            IoEmulator::builder().quirks(plan.quirks(context)).events(Listener { record, log, duration: None });
        let (builder, counter) = match &context.globals.on {
            // SAFETY: these ports are the plan's and no others. A person at this machine has asked for its accesses, the hazards
            // among them by name, and has the privilege without which the CPU refuses them.
            On::Hardware => (unsafe { builder.native(ports) }, hardware.counter(plan, cpu)),
            On::BusPc => {
                let (bus, smis) = pc::build().map_err(|error| Failure::new(Kind::Build, error.to_string()))?;
                let counter = match plan.firmware {
                    Some(_) => Counter::Model(smis),
                    None => Counter::None(NOT_ASKED.to_owned()),
                };
                (builder.ports(ports).bus(bus), counter)
            }
            On::Trace(file) => {
                let bus = replay(context, file)?;
                (builder.ports(ports).bus(bus), Counter::None("a replay raises none".to_owned()))
            }
        };
        let emulator = builder.build()?;
        let Hardware { permission, affinity, refusal } = hardware;
        Ok(Some(Self {
            context,
            emulator,
            counter,
            is_cold: true,
            refusal,
            _permission: permission,
            _affinity: affinity,
        }))
    }

    /// Makes an access.
    pub fn execute(&mut self, insn: IoInsn, gprs: Gprs) -> Result<Access> {
        self.access(insn, gprs, Vec::new(), |emulator, gprs, _| emulator.execute(insn, gprs))
    }

    /// Makes the accesses of INS, which fills `data`, or of OUTS.
    pub fn execute_string(&mut self, insn: IoInsn, gprs: Gprs, data: Vec<u8>) -> Result<Access> {
        self.access(insn, gprs, data, |emulator, gprs, data| match insn.direction {
            Direction::In => emulator.read_string(insn, gprs, data).map(drop),
            Direction::Out => emulator.write_string(insn, gprs, data).map(drop),
        })
    }

    fn access(
        &mut self,
        insn: IoInsn,
        before: Gprs,
        mut data: Vec<u8>,
        make: impl FnOnce(&mut IoEmulator<Listener>, &mut Gprs, &mut Vec<u8>) -> std::result::Result<(), Error>,
    ) -> Result<Access> {
        self.is_cold = false;
        let mut after = before;
        let count = self.counter.read();
        make(&mut self.emulator, &mut after, &mut data).map_err(|error| self.failure(insn, &error))?;
        let smis = count.zip(self.counter.read()).map(|(before, after)| SmiCounter::since(before, after));
        let is_replay = matches!(self.context.globals.on, On::Trace(_));
        let duration = self.emulator.events_mut().duration.take().filter(|_| !is_replay);
        Ok(Access { insn, before, after, data, duration, smis })
    }

    /// A fault of an access whose port could not be opened is a matter of privilege.
    fn failure(&mut self, insn: IoInsn, error: &Error) -> Failure {
        match (error, self.refusal.take()) {
            (Error::Fault { .. }, Some(refusal)) => refusal.into(),
            _ => Failure::access(insn, error),
        }
    }

    /// Whether no access has been made yet: the first one takes longer, since nothing of what it runs through is in a cache.
    pub fn is_cold(&self) -> bool {
        self.is_cold
    }

    /// The emulator itself, for the library's own protocols.
    pub fn emulator(&mut self) -> &mut IoEmulator<Listener> {
        &mut self.emulator
    }

    /// What the emulator's error is, if it comes from somebody who used it directly.
    pub fn failure_of(&mut self, error: &ioemul::guest_rpc::GuestRpcError) -> Failure {
        match (error, self.refusal.take()) {
            (ioemul::guest_rpc::GuestRpcError::Access { error: Error::Fault { .. }, .. }, Some(refusal)) => {
                refusal.into()
            }
            _ => Failure::guest_rpc(error),
        }
    }

    pub fn counter(&self) -> &Counter {
        &self.counter
    }

    /// Ends recording and log.
    pub fn close(self) -> Result {
        let mut listener = self.emulator.into_events();
        for writer in [listener.record.take(), listener.log.take()].into_iter().flatten() {
            writer.finish().map_err(|error| Failure::io("the trace", &error))?;
        }
        Ok(())
    }
}

/// Why nobody counts SMIs where none are raised.
const NOT_ASKED: &str = "the command raises none";

/// What is asked of the kernel.
#[derive(Default)]
struct Hardware {
    permission: Option<IoPermission>,
    affinity: Option<CpuAffinity>,
    refusal: Option<PrivilegeError>,
}

impl Hardware {
    fn open(context: &Context, plan: &Plan, cpu: Option<usize>) -> Result<Self> {
        let affinity = cpu.map(CpuAffinity::pin).transpose()?;
        let ports = plan.ports(context);
        let (permission, refusal) = match IoPermission::acquire(ports.read | ports.write) {
            Ok(permission) => (Some(permission), None),
            Err(error) if plan.tries => (None, Some(error)),
            Err(error) => return Err(error.into()),
        };
        if let (true, Err(error)) = (permission.is_some(), IoPortOwners::read()) {
            unknown_owner(context, plan, &error)?;
        }
        Ok(Self { permission, affinity, refusal })
    }

    fn counter(&self, plan: &Plan, cpu: Option<usize>) -> Counter {
        match plan.firmware {
            Some(_) => Counter::of_hardware(cpu.unwrap_or(0)),
            None => Counter::None(NOT_ASKED.to_owned()),
        }
    }
}

/// Refuses to write where nobody can tell who else does.
fn unknown_owner(context: &Context, plan: &Plan, error: &IoPortOwnersError) -> Result {
    let unnamed: PortSet = plan.ports(context).write - &context.allow_busy - &plan.scratch;
    if unnamed.is_empty() {
        return Ok(());
    }
    let message = format!("writing {unnamed} is refused: {error} (--allow-busy {unnamed} permits it all the same)");
    Err(Failure::refused("busy", message).fact("port", unnamed.to_string()))
}

/// Asks whoever sits there, or wants `--yes`.
fn ask(context: &Context, plan: &Plan) -> Result {
    if context.globals.yes {
        return Ok(());
    }
    let accesses = match &plan.detail {
        Some(detail) => format!("  {detail}"),
        None => plan.lines(context).join("\n"),
    };
    let question = format!("{}, on {}\n{accesses}", plan.title, context.machine());
    let refused = |why| Err(Failure::refused("confirmation", format!("{}: {why}", plan.title)));
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return refused("there is no terminal to ask on: --yes confirms it beforehand");
    }
    let mut stderr = anstream::stderr().lock();
    let _ = write!(stderr, "{question}\nDo it? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => refused("not confirmed"),
    }
}

/// A recording does not go over what it is a recording of.
fn check_files(context: &Context) -> Result {
    match (&context.globals.record, &context.globals.on) {
        (Some(record), On::Trace(trace)) if files::is_same(record, trace) => {
            Err(Failure::usage(format!("--record {}: that is the trace to be replayed", record.display())))
        }
        _ => Ok(()),
    }
}

/// Begins a recording. On the hardware each access is in the file before it is made: the machine may not survive it.
fn record(context: &Context, plan: &Plan, file: &Path) -> Result<TraceWriter<File>> {
    let header = context.header(plan.firmware.as_ref());
    let writer = TraceWriter::with_header(files::for_recording(file)?, &header);
    let writer = writer.map_err(|error| Failure::io(file.display(), &error))?;
    Ok(if context.is_hardware() { writer.write_ahead(|file| file.sync_data()) } else { writer })
}

fn replay(context: &Context, file: &Path) -> Result<SoftwareBus> {
    let replay = context.trace(file)?.replay();
    let (bus, progress) = if context.lenient { replay.lenient() } else { replay.strict() };
    *context.progress.borrow_mut() = Some(progress);
    Ok(bus)
}

/// Takes the time of the last access, and passes everything on to recordings.
pub struct Listener {
    record: Option<TraceWriter<File>>,
    /// Asked last, so that nothing stops an access that it has been told of.
    log: Option<TraceWriter<File>>,
    duration: Option<Duration>,
}

/// A recording of a command that failed comes to its end all the same: its last record says how. A log does not, since the scan that it
/// is of can go on.
impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.record.take().map(TraceWriter::finish);
    }
}

impl Listener {
    fn writers(&mut self) -> impl Iterator<Item = &mut TraceWriter<File>> {
        self.record.iter_mut().chain(&mut self.log)
    }
}

impl Events for Listener {
    const TIMED: bool = true;

    fn approve(&mut self, attempt: &Attempt<'_>) -> std::result::Result<(), DeviceError> {
        self.writers().try_for_each(|writer| writer.approve(attempt))
    }

    fn before(&mut self, attempt: &Attempt<'_>) {
        self.writers().for_each(|writer| writer.before(attempt));
    }

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.duration = outcome.duration;
        self.writers().for_each(|writer| writer.after(attempt, outcome));
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        self.writers().for_each(|writer| writer.faulted(attempt, outcome, fault));
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        self.writers().for_each(|writer| writer.refused(attempt, outcome, why));
    }
}
