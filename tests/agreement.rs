//! Every way to a device is the same: through the stubs of each layout, on a bus without machine code (`.direct()`), and
//! by `SoftwareBus::access`. The same registers, flags, data and errors come back, listeners are told the same, and the
//! devices see the same accesses, in the same order, with the same registers; whatever they do.
#![cfg(feature = "std")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use common::{Rng, forms};
use ioemul::events::{Attempt, Events, Outcome};
use ioemul::{
    AddressSize, DeviceError, Direction, Gprs, IoEmulator, IoFault, IoInsn, PortAccess, PortDevice, PortOperand,
    PortPermissions, PortSet, Quirk, QuirkTable, Segment, SoftwareBus, Step, StringError, StubLayout, Trigger, Width,
};

/// What somebody saw: a device, by the first of its ports, or the listener.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Access { device: u16, access: PortAccess, value: u32, gprs: Gprs },
    Slice { device: u16, access: PortAccess, data: Vec<u8>, gprs: Gprs },
    Event { name: &'static str, insn: IoInsn, gprs: Gprs, data: Vec<u8> },
}

/// What all devices of a bus do, a function of the seed and of how often they have been asked.
#[derive(Clone)]
struct Script(Arc<Mutex<(Rng, Vec<Seen>)>>);

impl Script {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((Rng(0), Vec::new()))))
    }

    fn start(&self, seed: u64) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = (Rng(seed), Vec::new());
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).1)
    }

    fn see(&self, seen: Seen) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).1.push(seen);
    }

    fn next(&self) -> u64 {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).0.next()
    }

    /// Changes some registers or all, DX now and then; then answers, refuses, says that the CPU would, or panics.
    fn act(&self, port: u16, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        let dice = self.next();
        let any = Rng(self.next()).gprs();
        match dice & 7 {
            0 => *gprs = any,
            1 => *gprs = Gprs { rdx: gprs.rdx, ..any },
            2 => *gprs = Gprs { rdx: any.rdx & !0xffff | u64::from(port), ..any },
            3 => (gprs.rax, gprs.rcx, gprs.rsi, gprs.rdi) = (any.rax, any.rcx, any.rsi, any.rdi),
            4 => gprs.rflags = any.rflags,
            5 => gprs.rdx ^= 1 << (any.rdx % 64),
            _ => {}
        }
        match dice >> 8 & 63 {
            0 => Err(format!("refused: {dice:#x}").into()),
            1 => Err(Box::new(IoFault::GENERAL_PROTECTION)),
            2 => panic!("{dice:#x}"),
            // "Busy", as a poll has it, more often than not.
            other if other % 8 != 7 => Ok((dice >> 32) as u32 & !1 | 0x80),
            _ => Ok((dice >> 32) as u32),
        }
    }
}

struct Device {
    first: u16,
    script: Script,
    /// Whether it takes slices of strings at once, and lies about them.
    slices: bool,
}

impl Device {
    fn slice(&self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.script.see(Seen::Slice { device: self.first, access, data: data.to_vec(), gprs: *gprs });
        let done = match self.script.next() % 4 {
            0 => self.script.next() as usize,
            _ => (self.script.next() % (data.len() as u64 + 2)) as usize,
        };
        self.script.act(access.port, gprs).map(drop).map_err(|source| StringError { done, source })
    }
}

impl PortDevice for Device {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.script.see(Seen::Access { device: self.first, access, value, gprs: *gprs });
        self.script.act(access.port, gprs)
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        if !self.slices {
            return Elements(self).try_read_string(access, data, gprs);
        }
        let mut rng = Rng(self.script.next());
        let written = rng.below(data.len() + 1);
        data[..written].fill_with(|| rng.next() as u8);
        self.slice(access, data, gprs)
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        if self.slices { self.slice(access, data, gprs) } else { Elements(self).try_write_string(access, data, gprs) }
    }
}

/// A device with string methods by default.
struct Elements<'d>(&'d mut Device);

impl PortDevice for Elements<'_> {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.0.try_access(access, value, gprs)
    }
}

impl Events for Script {
    fn before(&mut self, attempt: &Attempt<'_>) {
        self.tell("before", attempt, attempt.gprs, &[]);
    }

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.tell("after", attempt, outcome.gprs, outcome.data);
    }

    fn denied(&mut self, attempt: &Attempt<'_>) {
        self.tell("denied", attempt, attempt.gprs, &[]);
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, _: &IoFault) {
        self.tell("faulted", attempt, outcome.gprs, outcome.data);
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, _: &DeviceError) {
        self.tell("refused", attempt, outcome.gprs, outcome.data);
    }
}

impl Script {
    fn tell(&self, name: &'static str, attempt: &Attempt<'_>, gprs: &Gprs, data: &[u8]) {
        self.see(Seen::Event { name, insn: attempt.insn, gprs: *gprs, data: data.to_vec() });
    }
}

/// Ports with a device, and others beside them: wider accesses go to several devices, or to one and to nobody.
const CLAIMS: [(u16, u16); 7] =
    [(0, 0x41), (0x42, 0x42), (0x45, 0xb1), (0xb2, 0xb2), (0xb3, 0xcd3), (0xcd4, 0xcd4), (0xcd5, 0xfffe)];

fn bus(script: &Script) -> SoftwareBus {
    let mut bus = SoftwareBus::new();
    for (at, (first, last)) in CLAIMS.into_iter().enumerate() {
        bus.attach(first..=last, Device { first, script: script.clone(), slices: at % 2 == 0 }).unwrap();
    }
    bus
}

/// One and the same machine, in every layout and without machine code; and a bus alone.
struct Ways {
    script: Script,
    emulators: Vec<(Option<StubLayout>, IoEmulator<Script>)>,
    bus: SoftwareBus,
    quirks: QuirkTable,
}

/// What came of an instruction.
#[derive(Debug, PartialEq)]
struct Came {
    /// How many bytes of a string, why not, or with which words somebody panicked.
    result: Result<Result<usize, String>, String>,
    gprs: Gprs,
    memory: Vec<u8>,
    seen: Vec<Seen>,
}

impl Ways {
    fn new(quirks: QuirkTable, ports: &PortPermissions) -> Self {
        let script = Script::new();
        let layouts = StubLayout::ALL.iter().copied().map(Some).chain([None]);
        let emulators = layouts.map(|layout| {
            let builder = IoEmulator::builder().ports(ports.clone()).bus(bus(&script)).quirks(quirks.clone());
            let builder = match layout {
                Some(layout) => builder.layout(layout),
                None => builder.direct(),
            };
            (layout, builder.events(script.clone()).build().unwrap())
        });
        Self { emulators: emulators.collect(), bus: bus(&script), script, quirks }
    }

    fn run(
        script: &Script,
        given: (Gprs, &[u8]),
        seed: u64,
        run: impl FnOnce(&mut Gprs, &mut [u8]) -> Result<usize, ioemul::Error>,
    ) -> Came {
        script.start(seed);
        let (mut gprs, mut memory) = (given.0, given.1.to_vec());
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut gprs, &mut memory)));
        let result = match result {
            Ok(result) => Ok(result.map_err(|error| format!("{error}: {error:?}"))),
            Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
        };
        Came { result, gprs, memory, seen: script.seen() }
    }

    /// Executes an instruction every way, and compares.
    fn agree(&mut self, insn: IoInsn, gprs: Gprs, memory: &[u8], seed: u64) -> Came {
        let Self { script, emulators, bus, quirks } = self;
        let mut came = emulators.iter_mut().map(|(layout, emulator)| {
            let came =
                Self::run(script, (gprs, memory), seed, |gprs, memory| match (insn.is_string(), insn.direction) {
                    (false, _) => emulator.execute(insn, gprs).map(|()| 0),
                    (true, Direction::In) => emulator.read_string(insn, gprs, memory),
                    (true, Direction::Out) => emulator.write_string(insn, gprs, memory),
                });
            (layout, came)
        });
        let (_, first) = came.next().unwrap();
        assert_eq!((first.gprs.rflags ^ gprs.rflags) & !Gprs::STATUS_FLAGS, 0, "{insn}, seed {seed}");
        if !matches!(first.result, Ok(Ok(_))) && !insn.is_string() {
            assert_eq!(first.gprs, gprs, "{insn}, seed {seed}");
        }
        for (layout, came) in came {
            assert_eq!(came, first, "{layout:?} {insn}, seed {seed}, given {gprs:x?}");
        }
        let denied = first.seen.iter().any(|seen| matches!(seen, Seen::Event { name: "denied", .. }));
        let taken = quirks.as_slice().iter().any(|quirk| quirk.applies(insn, gprs.rax, gprs.rdx));
        if !denied && !taken && !insn.is_string() {
            let came = Self::run(script, (gprs, memory), seed, |gprs, _| bus.access(insn, gprs).map(|()| 0));
            let accesses = first.seen.iter().filter(|seen| !matches!(seen, Seen::Event { .. })).cloned().collect();
            let first = Came { seen: accesses, memory: first.memory.clone(), result: first.result.clone(), ..first };
            assert_eq!(came, first, "SoftwareBus::access of {insn}, seed {seed}, given {gprs:x?}");
        }
        first
    }
}

/// How many runs ended in each way: all of them have to be among what was compared.
#[derive(Debug, Default)]
struct Ends {
    made: usize,
    refused: usize,
    faulted: usize,
    denied: usize,
    panicked: usize,
    /// Of devices.
    accesses: usize,
}

impl Ends {
    fn count(&mut self, came: &Came) {
        let last = came.seen.iter().rev().find_map(|seen| match seen {
            Seen::Event { name, .. } => Some(*name),
            _ => None,
        });
        match (&came.result, last) {
            (Err(_), _) => self.panicked += 1,
            (_, Some("after")) => self.made += 1,
            (_, Some("refused")) => self.refused += 1,
            (_, Some("faulted")) => self.faulted += 1,
            (_, Some("denied")) => self.denied += 1,
            _ => {} // a string that its memory has no room for
        }
        self.accesses += came.seen.iter().filter(|seen| !matches!(seen, Seen::Event { .. })).count();
    }

    fn all(&self, at_least: usize) {
        let Self { made, refused, faulted, denied, panicked, accesses } = *self;
        let ends = [made, refused, faulted, denied, panicked, accesses];
        assert!(ends.into_iter().all(|count| count >= at_least), "{self:?}");
    }
}

fn all_but(ports: &[u16]) -> PortSet {
    let mut set = PortSet::all();
    ports.iter().for_each(|port| set.deny(*port..=*port));
    set
}

/// A port at which something is: a device begins or ends, a quirk has its trigger, nothing is permitted, or any.
fn port(rng: &mut Rng) -> u64 {
    const PORTS: [u64; 12] = [0x41, 0x42, 0x43, 0x44, 0x60, 0xb0, 0xb1, 0xb2, 0xcd1, 0xcd4, 0xfffc, 0xffff];
    if rng.next() % 3 == 0 { rng.next() & 0xffff } else { PORTS[rng.below(PORTS.len())] }
}

fn registers(rng: &mut Rng) -> Gprs {
    let any = rng.gprs();
    Gprs { rdx: any.rdx & !0xffff | port(rng), ..any }
}

#[test]
fn every_form() {
    let ports = PortPermissions { read: all_but(&[0x60, 0xfffd]), write: all_but(&[0x61, 0x43]) };
    let mut ways = Ways::new(QuirkTable::none(), &ports);
    let (mut rng, mut ends) = (Rng(1), Ends::default());
    for turn in 0..6 {
        for form in forms() {
            let seed = rng.next() ^ turn;
            ends.count(&ways.agree(form.insn, registers(&mut rng), &[], seed));
        }
    }
    for _ in 0..3000 {
        let width = Width::ALL[rng.below(3)];
        let insn = if rng.below(2) == 0 { IoInsn::in_dx(width) } else { IoInsn::out_dx(width) };
        let seed = rng.next();
        ends.count(&ways.agree(insn, registers(&mut rng), &[], seed));
    }
    ends.all(20);
}

#[test]
fn every_string() {
    let ports = PortPermissions { read: all_but(&[0x60, 0xfffd]), write: all_but(&[0x61, 0x43]) };
    let mut ways = Ways::new(QuirkTable::from_iter(Quirk::ALL.iter().copied()), &ports);
    let (mut rng, mut ends) = (Rng(2), Ends::default());
    let sizes = [AddressSize::Bits16, AddressSize::Bits32, AddressSize::Bits64];
    let mut others = Vec::new();
    for address in sizes {
        for &width in Width::ALL {
            let operand = PortOperand::String { rep: true, address, segment: Segment::Cs };
            others.extend([Direction::In, Direction::Out].map(|direction| IoInsn { direction, width, operand }));
        }
    }
    for insn in IoInsn::strings().chain(others) {
        for _ in 0..150 {
            let (len, any) = (rng.below(24), registers(&mut rng));
            let bytes = u64::from(insn.width.bytes());
            // As many as fit, or fewer, or by one too many; above a narrow count anything.
            let count = match rng.below(8) {
                0 => any.rcx,
                1 => len as u64 / bytes + 1,
                _ => rng.next() % (len as u64 / bytes + 1),
            };
            let PortOperand::String { address, .. } = insn.operand else { panic!("{insn}") };
            let mask = match address {
                AddressSize::Bits16 => 0xffff,
                AddressSize::Bits32 => 0xffff_ffff,
                _ => u64::MAX,
            };
            let gprs = Gprs { rcx: any.rcx & !mask | count & mask, ..any };
            let memory: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
            let seed = rng.next();
            ends.count(&ways.agree(insn, gprs, &memory, seed));
        }
    }
    ends.all(20);
}

/// What the known quirks do not do: an access that is not the first, through DX or not; widths; polls one after the other.
const OWN: &[Quirk] = &[
    Quirk::from_steps("twice", Trigger::out(Width::Word, 0x41), &[Step::Access, Step::Access]),
    Quirk::from_steps("in first", Trigger::input(Width::Dword, 0xb0), &[Step::InAl, Step::Access, Step::InAl]),
    Quirk::from_steps(
        "everything",
        Trigger::out(Width::Byte, 0x45).rax(1, 1),
        &[
            Step::OutAl { port: 0x42 },
            Step::Poll { mask: 0x41, limit: 3 },
            Step::Access,
            Step::PollUnbounded { mask: 1 },
        ],
    ),
    Quirk::from_steps(
        "waits",
        Trigger::out(Width::Byte, 0x42),
        &[Step::Access, Step::WaitCarryClear { limit: u32::MAX }, Step::Spin { count: u32::MAX }, Step::InAl],
    ),
    Quirk::from_steps("nothing", Trigger::input(Width::Byte, 0xb1), &[]),
];

#[test]
fn every_quirk() {
    let permitted = PortPermissions { read: all_but(&[0x60]), write: all_but(&[0x60]) };
    // Some accesses of the quirks are not.
    let denied = PortPermissions { read: all_but(&[0xcd4]), write: all_but(&[0x84]) };
    let alone = Quirk::ALL.iter().chain(OWN).map(|quirk| vec![*quirk]);
    let all = [Quirk::ALL, OWN].concat();
    // Where nobody is, and where a device ends.
    let elsewhere = |port| Quirk::ALL.iter().map(move |quirk| quirk.at_port(port)).collect::<Vec<_>>();
    let mut ends = Ends::default();
    for quirks in alone.chain([all, elsewhere(0x43), elsewhere(0x42), elsewhere(0xffff)]) {
        for (turn, ports) in [&permitted, &denied].into_iter().enumerate() {
            let mut ways = Ways::new(quirks.iter().copied().collect(), ports);
            let mut rng = Rng(3 + turn as u64);
            for quirk in &quirks {
                let trigger = quirk.trigger();
                for insn in trigger.forms().into_iter().flatten() {
                    for _ in 0..200 {
                        let any = registers(&mut rng);
                        let mask = u64::from(trigger.mask);
                        // Taken as a rule.
                        let rax = any.rax & !mask | u64::from(trigger.value);
                        let rdx = any.rdx & !0xffff | u64::from(trigger.port);
                        let gprs = if rng.below(8) == 0 { any } else { Gprs { rax, rdx, ..any } };
                        let seed = rng.next();
                        ends.count(&ways.agree(insn, gprs, &[], seed));
                    }
                }
            }
        }
    }
    ends.all(50);
    // Quirks make more accesses than the instructions are.
    let runs = ends.made + ends.refused + ends.faulted + ends.panicked;
    assert!(ends.accesses > runs + runs / 4, "{ends:?}");
}
