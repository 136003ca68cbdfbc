//! Panics of device models and of listeners: where they go on, what the registers hold then, and that everything can be
//! used further. In every layout, and without machine code.
#![cfg(feature = "std")]

mod common;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::Rng;
use ioemul::events::{Attempt, Events, NoEvents, Outcome};
use ioemul::{
    DeviceError, Direction, Error, Gprs, IoEmulator, IoFault, IoInsn, PortAccess, PortDevice, PortSet, Quirk,
    QuirkTable, SoftwareBus, StringError, StubLayout, Width,
};

/// Every layout, and none: a bus without machine code.
fn layouts() -> impl Iterator<Item = Option<StubLayout>> {
    StubLayout::ALL.iter().copied().map(Some).chain([None])
}

const PORT: u16 = 0xb2;

/// An emulator with a device at `PORT`, where all ports but 0x60 are permitted.
fn emulator<E: Events>(layout: Option<StubLayout>, device: impl PortDevice + 'static, events: E) -> IoEmulator<E> {
    let mut bus = SoftwareBus::new();
    bus.attach(PORT..=PORT + 3, device).unwrap();
    let mut ports = PortSet::all();
    ports.deny(0x60..=0x60);
    let builder = IoEmulator::builder().ports(ports).bus(bus).quirks(QuirkTable::from_iter([Quirk::DELL_SMM]));
    let builder = match layout {
        Some(layout) => builder.layout(layout),
        None => builder.direct(),
    };
    builder.events(events).build().unwrap()
}

/// Any registers, with the port in DX and a count of 3.
fn given() -> Gprs {
    Gprs { rax: 0xa3, rcx: 3, rdx: PORT.into(), ..Rng(1).gprs() }
}

/// Runs something that panics; returns what it panics with.
fn caught<T>(work: impl FnOnce() -> T) -> Box<dyn Any + Send> {
    catch_unwind(AssertUnwindSafe(work)).map(drop).unwrap_err()
}

const DX: IoInsn = IoInsn::in_dx(Width::Byte);
/// Which the quirk takes.
const QUIRK: IoInsn = IoInsn::out_dx(Width::Byte);
const IMM8: IoInsn = IoInsn::out_imm8(Width::Word, PORT as u8);
const INS: IoInsn = IoInsn::rep_ins(Width::Byte);
const OUTS: IoInsn = IoInsn::rep_outs(Width::Word);

/// Executes any instruction; of INS, `memory` is filled.
fn run<E: Events>(emulator: &mut IoEmulator<E>, insn: IoInsn, gprs: &mut Gprs, memory: &mut [u8]) -> Result<(), Error> {
    match (insn.is_string(), insn.direction) {
        (false, _) => emulator.execute(insn, gprs),
        (true, Direction::In) => emulator.read_string(insn, gprs, memory).map(drop),
        (true, Direction::Out) => emulator.write_string(insn, gprs, memory).map(drop),
    }
}

/// What a device does next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    Answer,
    /// A string: after its first element.
    Refuse,
    Panic,
}

/// Changes all registers but those of a string instruction and then does what it was told; counts what it is asked.
#[derive(Clone)]
struct Device {
    next: Arc<Mutex<Next>>,
    asked: Arc<AtomicUsize>,
}

impl Device {
    fn new() -> Self {
        Self { next: Arc::new(Mutex::new(Next::Answer)), asked: Arc::default() }
    }

    fn tell(&self, next: Next) {
        *self.next.lock().unwrap() = next;
        self.asked.store(0, Ordering::Relaxed);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn next(&self, gprs: &mut Gprs) -> Next {
        *gprs = Gprs { rcx: gprs.rcx, rdx: gprs.rdx, rsi: gprs.rsi, rdi: gprs.rdi, ..Rng(2).gprs() };
        self.asked.fetch_add(1, Ordering::Relaxed);
        *self.next.lock().unwrap()
    }
}

impl PortDevice for Device {
    fn try_access(&mut self, _: PortAccess, _: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        match self.next(gprs) {
            Next::Answer => Ok(0x42),
            Next::Refuse => Err("not today".into()),
            Next::Panic => panic!("the device model has a bug"),
        }
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        data[0] = 0x77;
        self.try_write_string(access, &[], gprs)?;
        data.fill(0x77);
        Ok(())
    }

    fn try_write_string(&mut self, access: PortAccess, _: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        match self.next(gprs) {
            Next::Answer => Ok(()),
            Next::Refuse => Err(StringError { done: access.width.bytes().into(), source: "not today".into() }),
            Next::Panic => panic!("the device model has a bug"),
        }
    }
}

/// The events of a listener, by name.
const EVENTS: [&str; 6] = ["approve", "before", "after", "denied", "faulted", "refused"];

/// Panics at the event that is named, once; and writes down all the others.
#[derive(Clone, Default)]
struct Loud {
    at: Arc<Mutex<&'static str>>,
    heard: Arc<Mutex<Vec<(&'static str, Gprs)>>>,
}

impl Loud {
    fn hear(&self, event: &'static str, gprs: &Gprs) {
        let mut at = self.at.lock().unwrap();
        if *at == event {
            *at = "";
            drop(at);
            panic_any(event);
        }
        self.heard.lock().unwrap().push((event, *gprs));
    }

    fn heard(&self) -> Vec<&'static str> {
        self.heard.lock().unwrap().drain(..).map(|heard| heard.0).collect()
    }
}

impl Events for Loud {
    fn approve(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
        self.hear("approve", attempt.gprs);
        Ok(())
    }

    fn before(&mut self, attempt: &Attempt<'_>) {
        self.hear("before", attempt.gprs);
    }

    fn after(&mut self, _: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.hear("after", outcome.gprs);
    }

    fn denied(&mut self, attempt: &Attempt<'_>) {
        self.hear("denied", attempt.gprs);
    }

    fn faulted(&mut self, _: &Attempt<'_>, outcome: &Outcome<'_>, _: &IoFault) {
        self.hear("faulted", outcome.gprs);
    }

    fn refused(&mut self, _: &Attempt<'_>, outcome: &Outcome<'_>, _: &DeviceError) {
        self.hear("refused", outcome.gprs);
    }
}

/// What comes of an instruction when nobody panics: registers and memory.
fn quietly(layout: Option<StubLayout>, insn: IoInsn, next: Next) -> (Gprs, [u8; 6]) {
    let device = Device::new();
    device.tell(next);
    let (mut gprs, mut memory) = (given(), [0; 6]);
    let _ = run(&mut emulator(layout, device, NoEvents), insn, &mut gprs, &mut memory);
    (gprs, memory)
}

/// Lets the listener panic at each event, with each instruction, in each layout.
fn panics_of<E: Events>(listen: impl Fn(Loud) -> E) {
    for layout in layouts() {
        for insn in [DX, QUIRK, IMM8, INS, OUTS] {
            let ends = [("after", Next::Answer), ("refused", Next::Refuse)];
            for (event, next) in [("approve", Next::Answer), ("before", Next::Answer)].into_iter().chain(ends) {
                let (device, loud) = (Device::new(), Loud::default());
                let mut emulator = emulator(layout, device.clone(), listen(loud.clone()));
                device.tell(next);
                *loud.at.lock().unwrap() = event;
                let (mut gprs, mut memory) = (given(), [0; 6]);
                let panic = caught(|| run(&mut emulator, insn, &mut gprs, &mut memory));
                assert_eq!(panic.downcast_ref(), Some(&event));
                // Nothing has happened, or all that would have without the panic.
                let (asked, expected) = match event {
                    "approve" | "before" => (0, (given(), [0; 6])),
                    _ => (1, quietly(layout, insn, next)),
                };
                assert_eq!((device.asked(), (gprs, memory)), (asked, expected), "{layout:?} {insn} {event}");
                if event == "refused" && !insn.is_string() {
                    assert_eq!(gprs, given());
                }
                // Everything can be used further.
                device.tell(Next::Answer);
                loud.heard();
                let (mut gprs, mut memory) = (given(), [0; 6]);
                run(&mut emulator, insn, &mut gprs, &mut memory).unwrap();
                assert_eq!((gprs, memory), quietly(layout, insn, Next::Answer), "{layout:?} {insn} {event}");
                assert_eq!((device.asked(), loud.heard()), (1, vec!["approve", "before", "after"]));
            }
            // Denied: the port, and for a quirk one of its own.
            let (device, loud) = (Device::new(), Loud::default());
            let mut emulator = emulator(layout, device.clone(), listen(loud.clone()));
            let (insn, dx) = if insn == IMM8 { (IoInsn::out_imm8(Width::Word, 0x60), PORT) } else { (insn, 0x60) };
            let denied = Gprs { rdx: dx.into(), ..given() };
            let (mut gprs, mut memory) = (denied, [0; 6]);
            *loud.at.lock().unwrap() = "denied";
            let panic = caught(|| run(&mut emulator, insn, &mut gprs, &mut memory));
            assert_eq!(panic.downcast_ref(), Some(&"denied"));
            assert_eq!((gprs, memory, device.asked()), (denied, [0; 6], 0), "{layout:?} {insn}");
            let error = run(&mut emulator, insn, &mut gprs, &mut memory).unwrap_err();
            assert!(matches!(error, Error::PortDenied { .. }), "{error}");
            assert_eq!((gprs, loud.heard()), (denied, vec!["denied"]));
        }
    }
}

#[test]
fn a_listener_that_panics() {
    panics_of(|loud| loud);
}

/// A listener that is lent for each event.
struct Lender(Loud);

impl Events for Lender {
    fn approve(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
        Events::approve(&mut &mut self.0, attempt)
    }

    fn before(&mut self, attempt: &Attempt<'_>) {
        Events::before(&mut &mut self.0, attempt);
    }

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        Events::after(&mut &mut self.0, attempt, outcome);
    }

    fn denied(&mut self, attempt: &Attempt<'_>) {
        Events::denied(&mut &mut self.0, attempt);
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        Events::faulted(&mut &mut self.0, attempt, outcome, fault);
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        Events::refused(&mut &mut self.0, attempt, outcome, why);
    }
}

#[test]
fn a_listener_that_panics_within_others() {
    panics_of(Some);
    panics_of(|loud| (loud, Loud::default()));
    panics_of(|loud| (Loud::default(), loud));
    panics_of(|loud| (None::<Loud>, (NoEvents, Some((loud, NoEvents)))));
    panics_of(Lender);
}

/// Of a pair, the first has been told, and the second is not.
#[test]
fn the_listeners_beside_one_that_panics() {
    for layout in layouts() {
        let ends = [("after", Next::Answer), ("refused", Next::Refuse)];
        for (event, next) in [("approve", Next::Answer), ("before", Next::Answer)].into_iter().chain(ends) {
            let (first, loud, last) = (Loud::default(), Loud::default(), Loud::default());
            let device = Device::new();
            let listeners = (first.clone(), (loud.clone(), last.clone()));
            let mut emulator = emulator(layout, device.clone(), listeners);
            device.tell(next);
            *loud.at.lock().unwrap() = event;
            caught(|| emulator.execute(DX, &mut given()));
            let told = match event {
                "approve" => vec!["approve"],
                "before" => vec!["approve", "before"],
                _ => vec!["approve", "before", event],
            };
            let not_told = &told[..told.len() - 1];
            assert_eq!((&*first.heard(), &*last.heard()), (&*told, not_told), "{layout:?} {event}");
        }
    }
}

/// A quirk that is denied is told as well, and nothing of it has happened.
#[test]
fn a_listener_that_panics_at_a_quirk_that_is_denied() {
    for layout in layouts() {
        let (device, loud, mut bus) = (Device::new(), Loud::default(), SoftwareBus::new());
        bus.attach(0..=0xffff, device.clone()).unwrap();
        let builder = IoEmulator::builder().ports(PortSet::from(PORT..=PORT)).bus(bus);
        let builder = builder.quirks(QuirkTable::from_iter([Quirk::DELL_SMM])).events(loud.clone());
        let builder = if let Some(layout) = layout { builder.layout(layout) } else { builder.direct() };
        let mut emulator = builder.build().unwrap();
        *loud.at.lock().unwrap() = "denied";
        let mut gprs = given();
        assert_eq!(caught(|| emulator.execute(QUIRK, &mut gprs)).downcast_ref(), Some(&"denied"));
        assert!(matches!(emulator.execute(QUIRK, &mut gprs), Err(Error::QuirkDenied { port: 0x84, .. })));
        assert_eq!((gprs, device.asked()), (given(), 0), "{layout:?}");
    }
}

/// On the hardware: what this process has no privilege for.
#[cfg(target_os = "linux")]
#[test]
fn a_listener_that_panics_at_a_fault() {
    for &layout in StubLayout::ALL {
        for insn in [IoInsn::out_imm8(Width::Byte, 0x80), IoInsn::rep_outs(Width::Byte)] {
            for event in ["approve", "before", "faulted"] {
                let loud = Loud::default();
                let builder = IoEmulator::builder().layout(layout).quirks(QuirkTable::none()).events(loud.clone());
                // SAFETY: without privilege nothing is accessed, and writing port 0x80 would do nothing.
                let mut emulator = unsafe { builder.native(PortSet::from(0x80..=0x80)) }.build().unwrap();
                let given = Gprs { rdx: 0x80, ..given() };
                let (mut gprs, mut memory) = (given, [0; 6]);
                if run(&mut emulator, insn, &mut gprs, &mut memory).is_ok() {
                    return; // there is privilege after all
                }
                *loud.at.lock().unwrap() = event;
                let panic = caught(|| run(&mut emulator, insn, &mut gprs, &mut memory));
                assert_eq!(panic.downcast_ref(), Some(&event));
                assert_eq!(gprs, given, "{layout:?} {insn} {event}");
                loud.heard();
                run(&mut emulator, insn, &mut gprs, &mut memory).unwrap_err();
                assert_eq!((gprs, loud.heard()), (given, vec!["approve", "before", "faulted"]));
            }
        }
    }
    assert_eq!(EVENTS.len(), 6, "every event is in one of these tests");
}

/// `emulate` is `execute` behind a decoder, and the helpers for one port are, too.
#[test]
fn the_other_ways_into_an_emulator() {
    for layout in layouts() {
        let (device, loud) = (Device::new(), Loud::default());
        let mut emulator = emulator(layout, device.clone(), loud.clone());
        for event in ["approve", "before", "after"] {
            *loud.at.lock().unwrap() = event;
            let mut gprs = given();
            assert_eq!(caught(|| emulator.emulate(&[0xec], &mut gprs)).downcast_ref(), Some(&event));
            let expected = if event == "after" { quietly(layout, DX, Next::Answer).0 } else { given() };
            assert_eq!(gprs, expected, "{layout:?} {event}");
            *loud.at.lock().unwrap() = event;
            assert_eq!(caught(|| emulator.port_in(PORT, Width::Byte)).downcast_ref(), Some(&event));
            *loud.at.lock().unwrap() = event;
            assert_eq!(caught(|| emulator.port_out(PORT, Width::Byte, 1)).downcast_ref(), Some(&event));
        }
        device.tell(Next::Panic);
        let mut gprs = given();
        caught(|| emulator.emulate(&[0xec], &mut gprs));
        assert_eq!(gprs, given());
        caught(|| emulator.port_in(PORT, Width::Byte));
        caught(|| emulator.port_out(PORT, Width::Byte, 1));
        device.tell(Next::Answer);
        assert_eq!(emulator.port_in(PORT, Width::Byte).unwrap(), 0x42);
    }
}

/// An emulator that is used while a panic unwinds, in a destructor, and whose device panics there.
#[test]
fn a_panic_of_a_device_within_a_panic() {
    struct Cleanup {
        emulator: IoEmulator,
        device: Device,
        done: Arc<AtomicBool>,
    }
    impl Drop for Cleanup {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            for insn in [DX, QUIRK, IMM8, INS, OUTS] {
                self.device.tell(Next::Panic);
                let (mut gprs, mut memory) = (given(), [0; 6]);
                let panic = caught(|| run(&mut self.emulator, insn, &mut gprs, &mut memory));
                assert_eq!(panic.downcast_ref(), Some(&"the device model has a bug"));
                assert_eq!((gprs, self.device.asked()), (given(), 1));
                self.device.tell(Next::Answer);
                run(&mut self.emulator, insn, &mut gprs, &mut memory).unwrap();
                assert_eq!(self.device.asked(), 1);
            }
            self.done.store(true, Ordering::Relaxed);
        }
    }
    for layout in layouts() {
        let (device, done) = (Device::new(), Arc::<AtomicBool>::default());
        let quiet = emulator(layout, device.clone(), NoEvents);
        let cleanup = Cleanup { emulator: quiet, device, done: done.clone() };
        let panic = caught(move || {
            let _cleanup = cleanup;
            panic_any("the first panic");
        });
        assert_eq!(panic.downcast_ref(), Some(&"the first panic"), "{layout:?}");
        assert!(done.load(Ordering::Relaxed) && !std::thread::panicking(), "{layout:?}");
    }
}

/// A device with a destructor that panics.
struct Doomed(bool, Arc<AtomicUsize>);

impl PortDevice for Doomed {}

impl Drop for Doomed {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
        if self.0 {
            panic_any("a destructor");
        }
    }
}

/// The panic goes on where the emulator, or its bus, is dropped; the other devices are dropped all the same.
#[test]
fn a_panic_of_a_devices_destructor() {
    for layout in layouts() {
        let dropped = Arc::<AtomicUsize>::default();
        let devices = || {
            dropped.store(0, Ordering::Relaxed);
            let mut bus = SoftwareBus::new();
            for (port, doomed) in [(0x10, false), (0x20, true), (0x30, false)] {
                bus.attach(port..=port, Doomed(doomed, dropped.clone())).unwrap();
            }
            bus
        };
        let build = |bus| {
            let builder = IoEmulator::builder().ports(PortSet::all()).bus(bus);
            if let Some(layout) = layout { builder.layout(layout) } else { builder.direct() }.build().unwrap()
        };
        let panic = caught(|| drop(devices()));
        assert_eq!((panic.downcast_ref(), dropped.load(Ordering::Relaxed)), (Some(&"a destructor"), 3));
        let mut doomed = build(devices());
        doomed.execute(IoInsn::in_imm8(Width::Byte, 0x20), &mut given()).unwrap();
        let mut sibling = doomed.sibling().bus(SoftwareBus::new()).build().unwrap();
        let panic = caught(|| drop(doomed));
        assert_eq!((panic.downcast_ref(), dropped.load(Ordering::Relaxed)), (Some(&"a destructor"), 3));
        sibling.execute(DX, &mut given()).unwrap(); // the same stubs
        // A bus that is replaced in an emulator that goes on.
        let mut emulator = build(devices());
        let device = Device::new();
        let mut another = SoftwareBus::new();
        another.attach(PORT..=PORT, device.clone()).unwrap();
        caught(|| *emulator.bus_mut().unwrap() = another);
        assert_eq!(dropped.load(Ordering::Relaxed), 3, "{layout:?}");
        emulator.execute(DX, &mut given()).unwrap();
        assert_eq!(device.asked(), 1, "{layout:?}");
        // One that was refused its ports is dropped as well, and the bus goes on.
        let taken = caught(|| emulator.bus_mut().unwrap().attach(PORT..=PORT, Doomed(true, dropped.clone())));
        assert_eq!(taken.downcast_ref(), Some(&"a destructor"));
        emulator.execute(DX, &mut given()).unwrap();
        assert_eq!(device.asked(), 2, "{layout:?}");
    }
}

/// Counts how often it is dropped, and panics at it.
#[derive(Debug)]
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic_any("the bomb");
    }
}

impl std::fmt::Display for Bomb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("tick")
    }
}

impl std::error::Error for Bomb {}

/// What a device panics with, and what it refuses with, is the caller's, to the last byte: nothing of it is dropped on
/// the way.
#[test]
fn what_a_device_panics_or_refuses_with_is_passed_on_whole() {
    struct Bomber(Arc<AtomicUsize>, Arc<AtomicBool>);
    impl Bomber {
        fn throw(&self) -> DeviceError {
            let bomb = Bomb(self.0.clone());
            if self.1.load(Ordering::Relaxed) { Box::new(bomb) } else { panic_any(bomb) }
        }
    }
    impl PortDevice for Bomber {
        fn try_access(&mut self, _: PortAccess, _: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
            Err(self.throw())
        }
        fn try_read_string(&mut self, _: PortAccess, _: &mut [u8], _: &mut Gprs) -> Result<(), StringError> {
            Err(StringError { done: 1, source: self.throw() })
        }
    }
    for layout in layouts() {
        let (dropped, refuses) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let device = Bomber(dropped.clone(), refuses.clone());
        let mut emulator = emulator(layout, device, NoEvents);
        for insn in [DX, QUIRK, IMM8, INS, OUTS] {
            let (mut gprs, mut memory) = (given(), [0; 6]);
            dropped.store(0, Ordering::Relaxed);
            refuses.store(false, Ordering::Relaxed);
            let panic = caught(|| run(&mut emulator, insn, &mut gprs, &mut memory));
            assert!(panic.is::<Bomb>());
            assert_eq!((gprs, dropped.load(Ordering::Relaxed)), (given(), 0), "{layout:?} {insn}");
            assert_eq!(caught(|| drop(panic)).downcast_ref(), Some(&"the bomb"));
            refuses.store(true, Ordering::Relaxed);
            let error = run(&mut emulator, insn, &mut gprs, &mut memory).unwrap_err();
            let Error::Device { source, .. } = error else { panic!("{error}") };
            assert!(source.is::<Bomb>());
            assert_eq!(dropped.load(Ordering::Relaxed), 1, "{layout:?} {insn}");
            caught(|| drop(source));
        }
    }
}

/// A device with an emulator in it, which has a device with an emulator in it: a panic goes through all of them.
struct Nested {
    inner: IoEmulator,
    /// Whether a panic of the inner device is the outer one's as well.
    fragile: bool,
    /// The inner registers, as they were found after a panic.
    left: Arc<Mutex<Vec<Gprs>>>,
}

impl PortDevice for Nested {
    fn try_access(&mut self, access: PortAccess, _: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        let mut inner = given();
        let result = catch_unwind(AssertUnwindSafe(|| self.inner.execute(access.insn, &mut inner)));
        gprs.rbx = inner.rax;
        match result {
            Ok(result) => result.map(|()| 0x17).map_err(Into::into),
            Err(panic) => {
                self.left.lock().unwrap().push(inner);
                if self.fragile { std::panic::resume_unwind(panic) } else { Ok(0x99) }
            }
        }
    }
}

#[test]
fn panics_through_nested_emulators() {
    for outer in layouts() {
        for inner in layouts() {
            for insn in [DX, IoInsn::out_dx(Width::Dword)] {
                for fragile in [false, true] {
                    let (device, left) = (Device::new(), Arc::<Mutex<Vec<Gprs>>>::default());
                    let quiet = || NoEvents;
                    let nest = |layout, inner, fragile| {
                        emulator(layout, Nested { inner, fragile, left: left.clone() }, quiet())
                    };
                    // Four deep, the layouts in turns; the second from outside is where a panic ends, or none.
                    let innermost = emulator(inner, device.clone(), quiet());
                    let mut nested = nest(outer, nest(inner, nest(outer, innermost, true), fragile), true);
                    device.tell(Next::Panic);
                    let mut gprs = given();
                    let result = catch_unwind(AssertUnwindSafe(|| nested.execute(insn, &mut gprs)));
                    let mut left = std::mem::take(&mut *left.lock().unwrap());
                    left.dedup();
                    assert_eq!(left, [given()], "{outer:?} {inner:?} {insn}: each level's registers, as given");
                    if fragile {
                        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"the device model has a bug"));
                        assert_eq!(gprs, given(), "{outer:?} {inner:?} {insn}");
                    } else {
                        result.unwrap().unwrap();
                    }
                    // All of them work on; so does a refusal, which is an error of an error of an error.
                    device.tell(Next::Answer);
                    let mut gprs = given();
                    nested.execute(insn, &mut gprs).unwrap();
                    let rax = if insn == DX { given().rax & !0xff | 0x17 } else { given().rax };
                    assert_eq!((gprs.rax, gprs.rbp, device.asked()), (rax, given().rbp, 1));
                    device.tell(Next::Refuse);
                    let mut gprs = given();
                    let error = nested.execute(insn, &mut gprs).unwrap_err().to_string();
                    assert_eq!(error.matches("the device refused the access").count(), 4, "{error}");
                    assert!(error.ends_with(": not today"), "{error}");
                    assert_eq!(gprs, given());
                }
            }
        }
    }
}

/// What changes or ends the process: run in one of their own.
#[cfg(target_os = "linux")]
mod alone {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::common::child;

    /// One panic is told once, while the device is still on the stack; what its hook does with emulators works.
    pub fn hook() {
        static TOLD: AtomicUsize = AtomicUsize::new(0);
        std::panic::set_hook(Box::new(|_| {
            TOLD.fetch_add(1, Ordering::Relaxed);
            for layout in layouts() {
                let mut emulator = emulator(layout, Device::new(), NoEvents);
                let mut gprs = given();
                emulator.execute(DX, &mut gprs).unwrap();
                assert_eq!(gprs, quietly(layout, DX, Next::Answer).0);
            }
        }));
        for layout in layouts() {
            let (device, mut gprs) = (Device::new(), given());
            let mut emulator = emulator(layout, device.clone(), NoEvents);
            device.tell(Next::Panic);
            TOLD.store(0, Ordering::Relaxed);
            caught(|| emulator.execute(DX, &mut gprs));
            assert_eq!((TOLD.load(Ordering::Relaxed), gprs), (1, given()), "{layout:?}");
        }
        println!("as it should be");
    }

    /// A panic that leaves a destructor while another one unwinds ends the process, as everywhere in Rust: in order, and
    /// not by a crash in a stub.
    pub fn destructor(layout: Option<StubLayout>) {
        struct Cleanup(IoEmulator);
        impl Drop for Cleanup {
            fn drop(&mut self) {
                let _ = self.0.execute(DX, &mut given());
            }
        }
        let device = Device::new();
        device.tell(Next::Panic);
        let _cleanup = Cleanup(emulator(layout, device, NoEvents));
        panic!("the first panic");
    }

    #[test]
    fn a_panic_is_told_once_by_a_hook_that_uses_emulators() {
        let output = child::run("hook");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("as it should be"), "{text}");
    }

    #[test]
    fn a_panic_out_of_a_destructor_within_a_panic() {
        for layout in layouts() {
            let output = child::run(&format!("{layout:?}"));
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{layout:?}: {text}");
            for what in ["the first panic", "the device model has a bug", "panic in a destructor during cleanup"] {
                assert!(text.contains(what), "{layout:?}: {text}");
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "a scenario of the other tests"]
fn scenario() {
    match common::child::requested().as_deref() {
        Some("hook") => alone::hook(),
        Some(name) => alone::destructor(layouts().find(|layout| format!("{layout:?}") == name).unwrap()),
        None => {}
    }
}
