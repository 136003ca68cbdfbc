//! The software bus: which device answers, what floats, and what is left when a device fails or panics.
#![cfg(feature = "std")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use common::Rng;
use ioemul::{
    AttachError, DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, Quirk,
    QuirkTable, SoftwareBus, StubLayout, Trigger, Width,
};

type Log = Arc<Mutex<Vec<(PortAccess, u32)>>>;

/// Answers every IN with the same value and keeps what it is asked.
struct Recorder {
    answer: u32,
    log: Log,
}

impl PortDevice for Recorder {
    fn port_in(&mut self, access: PortAccess, _: &mut Gprs) -> u32 {
        self.log.lock().unwrap().push((access, 0));
        self.answer
    }

    fn port_out(&mut self, access: PortAccess, value: u32, _: &mut Gprs) {
        self.log.lock().unwrap().push((access, value));
    }
}

fn recorder(answer: u32) -> (Recorder, Log) {
    let log = Log::default();
    (Recorder { answer, log: log.clone() }, log)
}

fn emulator(bus: SoftwareBus) -> IoEmulator {
    IoEmulator::builder().ports(PortSet::all()).bus(bus).build().unwrap()
}

/// What a device is told of an access by `insn`.
fn access(port: u16, width: Width, insn: IoInsn) -> PortAccess {
    PortAccess { port, width, direction: insn.direction, insn }
}

#[test]
fn a_device_that_claims_all_ports_sees_one_access() {
    let (device, log) = recorder(0x1122_3344);
    let mut bus = SoftwareBus::new();
    bus.attach(0x10..=0x13, device).unwrap();
    let mut emulator = emulator(bus);
    let mut gprs = Gprs { rax: u64::MAX, ..Gprs::default() };
    let (input, out) = (IoInsn::in_imm8(Width::Dword, 0x10), IoInsn::out_imm8(Width::Word, 0x12));
    emulator.execute(input, &mut gprs).unwrap();
    assert_eq!(gprs.rax, 0x1122_3344);
    emulator.execute(out, &mut gprs).unwrap();
    let expected = [(access(0x10, Width::Dword, input), 0), (access(0x12, Width::Word, out), 0x3344)];
    assert_eq!(*log.lock().unwrap(), expected);
}

#[test]
fn an_access_beyond_a_device_is_split_into_bytes() {
    let ((low, low_log), (high, high_log)) = (recorder(0xffff_ffa0), recorder(0xffff_ffa2));
    let mut bus = SoftwareBus::new();
    bus.attach(0x22..=0x22, high).unwrap();
    bus.attach(0x20..=0x20, low).unwrap();
    let mut emulator = emulator(bus);
    let mut gprs = Gprs::default();
    let (input, out) = (IoInsn::in_imm8(Width::Dword, 0x20), IoInsn::out_imm8(Width::Dword, 0x1f));
    emulator.execute(input, &mut gprs).unwrap();
    assert_eq!(gprs.rax, 0xffa2_ffa0);
    gprs.rax = 0x4433_2211;
    emulator.execute(out, &mut gprs).unwrap();
    let byte = |port, insn| access(port, Width::Byte, insn);
    let expected = [(byte(0x20, input), 0), (byte(0x20, out), 0x22)];
    assert_eq!(*low_log.lock().unwrap(), expected);
    let expected = [(byte(0x22, input), 0), (byte(0x22, out), 0x44)];
    assert_eq!(*high_log.lock().unwrap(), expected);
}

#[test]
fn what_nobody_claims_floats_high() {
    let mut emulator = emulator(SoftwareBus::new());
    for (width, rax) in
        [(Width::Byte, 0x0102_0304_0506_07ff), (Width::Word, 0x0102_0304_0506_ffff), (Width::Dword, 0xffff_ffff)]
    {
        let mut gprs = Gprs { rax: 0x0102_0304_0506_0708, ..Gprs::default() };
        emulator.execute(IoInsn::in_dx(width), &mut gprs).unwrap();
        assert_eq!(gprs.rax, rax);
        emulator.execute(IoInsn::out_dx(width), &mut gprs).unwrap();
        assert_eq!(gprs.rax, rax, "an OUT is lost");
    }
}

#[test]
fn claims_do_not_overlap() {
    let mut bus = SoftwareBus::new();
    bus.attach(0x70..=0x77, recorder(1).0).unwrap();
    for ports in [0x70..=0x77, 0x60..=0x70, 0x77..=0x80, 0x72..=0x73, 0x00..=0xffff] {
        match bus.attach(ports.clone(), recorder(2).0).unwrap_err() {
            AttachError::PortsTaken { ports: asked, by } => assert_eq!((asked, by), (ports, 0x70..=0x77)),
            other => panic!("{other}"),
        }
    }
    #[allow(clippy::reversed_empty_ranges)]
    let error = bus.attach(0x90..=0x8f, recorder(2).0).unwrap_err();
    assert!(matches!(error, AttachError::NoPorts { ports } if *ports.start() == 0x90));
    // Neighbours are no overlap; what was refused left nothing behind.
    bus.attach(0x6f..=0x6f, recorder(3).0).unwrap();
    bus.attach(0x78..=0xffff, recorder(4).0).unwrap();
    bus.attach(0x00..=0x00, recorder(5).0).unwrap();
    let mut emulator = emulator(bus);
    for (port, answer) in [(0x6e, 0xff), (0x6f, 3), (0x70, 1), (0x77, 1), (0x78, 4), (0xffff, 4), (0, 5), (1, 0xff)] {
        let mut gprs = Gprs { rdx: port, ..Gprs::default() };
        emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap();
        assert_eq!(gprs.rax, answer, "{port:#x}");
    }
    // Further devices may come later.
    emulator.bus_mut().unwrap().attach(0x01..=0x01, recorder(6).0).unwrap();
    let mut gprs = Gprs { rdx: 1, ..Gprs::default() };
    emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap();
    assert_eq!(gprs.rax, 6);
}

/// An emulator denies an access that would run past port 0xFFFF, and so it does a quirk that would make one. A bus without an
/// emulator in front of it must not turn it into accesses to port 0.
#[test]
fn nothing_wraps_past_the_last_port() {
    let devices = || {
        let ((first, first_log), (last, last_log)) = (recorder(0x11), recorder(0xee));
        let mut bus = SoftwareBus::new();
        bus.attach(0..=3, first).unwrap();
        bus.attach(0xffff..=0xffff, last).unwrap();
        (bus, first_log, last_log)
    };
    let insn = IoInsn::in_dx(Width::Dword);
    // SAFETY: makes an access on a bus.
    let quirk = unsafe {
        Quirk::new("last port", Trigger::out_dx(Width::Byte, 0xffff), |payload| {
            payload.io(IoInsn::in_dx(Width::Dword));
        })
    };
    let (bus, first_log, last_log) = devices();
    let quirks = QuirkTable::from_iter([quirk]);
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).quirks(quirks).build().unwrap();
    for width in [Width::Word, Width::Dword] {
        let mut gprs = Gprs { rdx: 0xffff, ..Gprs::default() };
        let error = emulator.execute(IoInsn::in_dx(width), &mut gprs).unwrap_err();
        assert!(matches!(error, Error::PortDenied { port: 0xffff, .. }));
    }
    let mut gprs = Gprs { rdx: 0xffff, ..Gprs::default() };
    let error = emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).unwrap_err();
    assert!(matches!(error, Error::QuirkDenied { port: 0xffff, width: Width::Dword, .. }));
    assert!(first_log.lock().unwrap().is_empty() && last_log.lock().unwrap().is_empty());

    let (mut bus, first_log, last_log) = devices();
    bus.access(insn, &mut gprs).unwrap();
    assert_eq!((gprs.rax, gprs.rdx), (0xffff_ffee, 0xffff));
    assert_eq!(*last_log.lock().unwrap(), [(access(0xffff, Width::Byte, insn), 0)]);
    assert!(first_log.lock().unwrap().is_empty());
}

/// A bus that is asked without an emulator does what one does, RAX included, and undoes what fails.
#[test]
fn a_bus_by_itself() {
    let outcome = Arc::new(Mutex::new(Outcome::Answer));
    let mut bus = SoftwareBus::new();
    bus.attach(0..=0xffff, Fickle(outcome.clone())).unwrap();
    for form in common::forms().filter(|form| form.insn.width == Width::Byte) {
        let given = Rng(3).gprs();
        let left = Rng(7).gprs();
        let mut gprs = given;
        bus.access(form.insn, &mut gprs).unwrap();
        let rax = if form.insn.direction == Direction::In { left.rax & !0xff | 0x5a } else { left.rax };
        let rflags = given.rflags & !Gprs::STATUS_FLAGS | left.rflags & Gprs::STATUS_FLAGS;
        assert_eq!(gprs, Gprs { rax, rflags, ..left }, "{}", form.insn);
    }
    let given = Rng(3).gprs();
    let mut gprs = given;
    *outcome.lock().unwrap() = Outcome::Refuse;
    assert!(matches!(bus.access(IoInsn::in_dx(Width::Byte), &mut gprs), Err(Error::Device { .. })));
    assert_eq!(gprs, given);
    *outcome.lock().unwrap() = Outcome::Panic;
    catch_unwind(AssertUnwindSafe(|| bus.access(IoInsn::in_dx(Width::Byte), &mut gprs))).unwrap_err();
    assert_eq!(gprs, given);
    for insn in IoInsn::strings() {
        assert!(matches!(bus.access(insn, &mut gprs), Err(Error::StringForm { insn: refused }) if refused == insn));
    }
    assert_eq!(gprs, given);
}

/// Who has nothing to say answers with all ones, and takes whatever comes.
#[test]
fn a_device_without_a_method_of_its_own() {
    struct Silent;
    impl PortDevice for Silent {}
    let mut bus = SoftwareBus::new();
    bus.attach(0x10..=0x13, Silent).unwrap();
    let given = Rng(4).gprs();
    let mut gprs = given;
    bus.access(IoInsn::out_imm8(Width::Dword, 0x10), &mut gprs).unwrap();
    assert_eq!(gprs, given);
    bus.access(IoInsn::in_imm8(Width::Word, 0x10), &mut gprs).unwrap();
    assert_eq!(gprs, Gprs { rax: given.rax | 0xffff, ..given });
}

/// Does what it is told, after it has changed every register.
enum Outcome {
    Answer,
    Refuse,
    Panic,
}

struct Fickle(Arc<Mutex<Outcome>>);

impl PortDevice for Fickle {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        unreachable!()
    }

    fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {
        unreachable!()
    }

    fn try_access(&mut self, _: PortAccess, _: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        *gprs = Rng(7).gprs();
        let outcome = std::mem::replace(&mut *self.0.lock().unwrap(), Outcome::Answer);
        match outcome {
            Outcome::Answer => Ok(0x5a),
            Outcome::Refuse => Err("not today".into()),
            Outcome::Panic => panic!("the device model has a bug"),
        }
    }
}

fn each_layout(
    device: impl Fn() -> Box<dyn PortDevice>,
    quirks: QuirkTable,
) -> impl Iterator<Item = (StubLayout, IoEmulator)> {
    StubLayout::ALL.iter().copied().map(move |layout| {
        let mut bus = SoftwareBus::new();
        bus.attach(0xcd4..=0xcd4, Boxed(device())).unwrap();
        let builder = IoEmulator::builder().layout(layout).ports(PortSet::all()).bus(bus).quirks(quirks.clone());
        (layout, builder.build().unwrap())
    })
}

struct Boxed(Box<dyn PortDevice>);

impl PortDevice for Boxed {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        self.0.port_in(access, gprs)
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        self.0.port_out(access, value, gprs);
    }

    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.0.try_access(access, value, gprs)
    }
}

#[test]
fn a_device_that_fails_leaves_the_registers_and_the_bus_as_they_were() {
    let outcome = Arc::new(Mutex::new(Outcome::Answer));
    let device = || Box::new(Fickle(outcome.clone())) as Box<dyn PortDevice>;
    let given = Gprs { rdx: 0xcd4, ..Rng(8).gprs() };
    for (layout, mut emulator) in each_layout(device, QuirkTable::none()) {
        for insn in [IoInsn::in_dx(Width::Byte), IoInsn::out_dx(Width::Byte), IoInsn::in_dx(Width::Dword)] {
            let mut gprs = given;
            *outcome.lock().unwrap() = Outcome::Refuse;
            let error = emulator.execute(insn, &mut gprs).unwrap_err();
            let Error::Device { access, source } = error else { panic!("{error}") };
            assert_eq!((access, source.to_string()), (at_cd4(insn), "not today".into()));
            assert_eq!(gprs, given, "{layout:?} {insn}");

            *outcome.lock().unwrap() = Outcome::Panic;
            let panic = catch_unwind(AssertUnwindSafe(|| emulator.execute(insn, &mut gprs))).unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"the device model has a bug"));
            assert_eq!(gprs, given, "{layout:?} {insn}");

            emulator.execute(insn, &mut gprs).unwrap();
            assert_eq!(gprs.r15, Rng(7).gprs().r15, "the bus works on");
        }
    }
}

/// What an instruction through DX asks of port 0xCD4.
fn at_cd4(insn: IoInsn) -> PortAccess {
    access(0xcd4, insn.width, insn)
}

/// A local variable of a device model is where the psABI says: the stub's stack is aligned for it, whatever the payload
/// has pushed.
#[test]
fn a_device_runs_on_an_aligned_stack() {
    #[repr(align(16))]
    struct Vector([u8; 16]);
    struct Aligned;
    impl PortDevice for Aligned {
        fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
            let vector = std::hint::black_box(Vector([1; 16]));
            (std::hint::black_box(&raw const vector.0) as usize % 16) as u32
        }
        fn port_out(&mut self, access: PortAccess, _: u32, gprs: &mut Gprs) {
            assert_eq!(self.port_in(access, gprs), 0);
        }
    }
    let given = Gprs { rax: 0x80, rdx: 0xcd4, ..Gprs::default() };
    for quirks in [QuirkTable::none(), QuirkTable::builtin()] {
        for (layout, mut emulator) in each_layout(|| Box::new(Aligned), quirks) {
            let mut gprs = given;
            emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).unwrap();
            emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap();
            assert_eq!(gprs.rax, 0, "{layout:?}");
        }
    }
}

/// A device model may use an emulator of its own.
#[test]
fn an_emulator_within_a_device() {
    struct Bridge(IoEmulator);
    impl PortDevice for Bridge {
        fn port_in(&mut self, _: PortAccess, gprs: &mut Gprs) -> u32 {
            let mut inner = Gprs { rdx: 0x20, ..Gprs::default() };
            self.0.execute(IoInsn::in_dx(Width::Byte), &mut inner).unwrap();
            gprs.rbx = 0xb;
            inner.rax as u32
        }
        fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {}
    }
    let mut inner = SoftwareBus::new();
    inner.attach(0x20..=0x20, recorder(0x42).0).unwrap();
    let mut outer = SoftwareBus::new();
    outer.attach(0x10..=0x10, Bridge(emulator(inner))).unwrap();
    let given = Rng(9).gprs();
    let mut gprs = given;
    emulator(outer).execute(IoInsn::in_imm8(Width::Byte, 0x10), &mut gprs).unwrap();
    assert_eq!(gprs, Gprs { rax: given.rax & !0xff | 0x42, rbx: 0xb, ..given });
}
