//! The software bus: which device answers, what floats, and what is left when a device fails or panics.
#![cfg(feature = "std")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use common::Rng;
use ioemul::{
    AttachError, BuildError, DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet,
    Quirk, QuirkTable, SoftwareBus, StubLayout, Trigger, Width,
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

/// An access of `width` that `insn` makes: to its port and beyond it, when it is split.
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
    let (input, output) = (IoInsn::in_imm8(Width::Dword, 0x10), IoInsn::out_imm8(Width::Word, 0x12));
    emulator.execute(input, &mut gprs).unwrap();
    assert_eq!(gprs.rax, 0x1122_3344);
    emulator.execute(output, &mut gprs).unwrap();
    let expected = [(access(0x10, Width::Dword, input), 0), (access(0x12, Width::Word, output), 0x3344)];
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
    let (input, output) = (IoInsn::in_imm8(Width::Dword, 0x20), IoInsn::out_imm8(Width::Dword, 0x1f));
    emulator.execute(input, &mut gprs).unwrap();
    assert_eq!(gprs.rax, 0xffa2_ffa0);
    gprs.rax = 0x4433_2211;
    emulator.execute(output, &mut gprs).unwrap();
    let byte = |port, insn| access(port, Width::Byte, insn);
    let expected = [(byte(0x20, input), 0), (byte(0x20, output), 0x22)];
    assert_eq!(*low_log.lock().unwrap(), expected);
    let expected = [(byte(0x22, input), 0), (byte(0x22, output), 0x44)];
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

/// The emulator denies an access that would run past port 0xFFFF, a quirk's as well as the guest's. A bus alone has no
/// permissions, and must not turn it into accesses to port 0.
#[test]
fn nothing_wraps_past_the_last_port() {
    let ((first, first_log), (last, last_log)) = (recorder(0x11), recorder(0xee));
    let mut bus = SoftwareBus::new();
    bus.attach(0..=3, first).unwrap();
    bus.attach(0xffff..=0xffff, last).unwrap();
    let input = IoInsn::in_dx(Width::Dword);
    let mut gprs = Gprs { rdx: 0xffff, ..Gprs::default() };
    bus.access(input, &mut gprs).unwrap();
    assert_eq!((gprs.rax, gprs.rdx), (0xffff_ffee, 0xffff));
    assert_eq!(*last_log.lock().unwrap(), [(access(0xffff, Width::Byte, input), 0)]);

    // SAFETY: makes an access on a bus.
    let quirk = unsafe {
        Quirk::new("last port", Trigger::out_dx(Width::Byte, 0xffff), |payload| {
            payload.io(IoInsn::in_dx(Width::Dword));
        })
    };
    let quirks = QuirkTable::from_iter([quirk]);
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).quirks(quirks).build().unwrap();
    for width in [Width::Word, Width::Dword] {
        let mut gprs = Gprs { rdx: 0xffff, ..Gprs::default() };
        let error = emulator.execute(IoInsn::in_dx(width), &mut gprs).unwrap_err();
        assert!(matches!(error, Error::PortDenied { port: 0xffff, .. }));
    }
    let mut gprs = Gprs { rdx: 0xffff, ..Gprs::default() };
    let error = emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).unwrap_err();
    assert!(matches!(error, Error::QuirkDenied { quirk: "last port", port: 0xffff, width: Width::Dword, .. }));
    assert_eq!(last_log.lock().unwrap().len(), 1);
    assert!(first_log.lock().unwrap().is_empty());
}

/// Does what it is told, after it has changed every register.
enum Outcome {
    Answer,
    Refuse,
    Panic,
}

struct Fickle(Arc<Mutex<Outcome>>);

impl PortDevice for Fickle {
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

/// An emulator with quirks and a device, in each layout and without machine code.
fn everywhere<D: PortDevice + 'static>(
    ports: std::ops::RangeInclusive<u16>,
    device: impl Fn() -> D,
    quirks: &QuirkTable,
) -> impl Iterator<Item = (String, IoEmulator)> {
    let layouts = StubLayout::ALL.iter().copied().map(Some).chain([None]);
    layouts.map(move |layout| {
        let mut bus = SoftwareBus::new();
        bus.attach(ports.clone(), device()).unwrap();
        let builder = IoEmulator::builder().ports(PortSet::all()).bus(bus).quirks(quirks.clone());
        let builder = match layout {
            Some(layout) => builder.layout(layout),
            None => builder.direct(),
        };
        (layout.map_or("direct".into(), |layout| format!("{layout:?}")), builder.build().unwrap())
    })
}

#[test]
fn a_device_that_fails_leaves_the_registers_and_the_bus_as_they_were() {
    let outcome = Arc::new(Mutex::new(Outcome::Answer));
    let given = Gprs { rdx: 0xcd4, ..Rng(8).gprs() };
    for (layout, mut emulator) in everywhere(0xcd4..=0xcd4, || Fickle(outcome.clone()), &QuirkTable::none()) {
        for insn in [IoInsn::in_dx(Width::Byte), IoInsn::out_dx(Width::Byte), IoInsn::in_dx(Width::Dword)] {
            let mut gprs = given;
            *outcome.lock().unwrap() = Outcome::Refuse;
            let error = emulator.execute(insn, &mut gprs).unwrap_err();
            let access = match (insn.direction, insn.width) {
                (Direction::Out, _) => "OUT of 1 byte to",
                (_, Width::Byte) => "IN of 1 byte from",
                _ => "IN of 4 bytes from",
            };
            assert_eq!(error.to_string(), format!("{access} port 0x0cd4: the device refused the access: not today"));
            assert_eq!(gprs, given, "{layout} {insn}");

            *outcome.lock().unwrap() = Outcome::Panic;
            let panic = catch_unwind(AssertUnwindSafe(|| emulator.execute(insn, &mut gprs))).unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"the device model has a bug"));
            assert_eq!(gprs, given, "{layout} {insn}");

            emulator.execute(insn, &mut gprs).unwrap();
            assert_eq!(gprs.r15, Rng(7).gprs().r15, "the bus works on");
        }
    }
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
        for (layout, mut emulator) in everywhere(0xcd4..=0xcd4, || Aligned, &quirks) {
            let mut gprs = given;
            emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).unwrap();
            emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap();
            assert_eq!(gprs.rax, 0, "{layout}");
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

/// A device without methods of its own answers as if nobody were there, also to INS and OUTS.
#[test]
fn a_device_of_defaults() {
    struct Nothing;
    impl PortDevice for Nothing {}
    let given = Gprs { rcx: 2, rdx: 0x10, ..Rng(10).gprs() };
    for (layout, mut emulator) in everywhere(0x10..=0x13, || Nothing, &QuirkTable::none()) {
        for width in [Width::Byte, Width::Word, Width::Dword] {
            let mut gprs = given;
            emulator.execute(IoInsn::out_dx(width), &mut gprs).unwrap();
            assert_eq!(gprs, given, "{layout}");
            emulator.execute(IoInsn::in_dx(width), &mut gprs).unwrap();
            assert_eq!(gprs, Gprs { rax: width.merge(given.rax, u32::MAX), ..given }, "{layout}");
            let (mut gprs, mut memory, len) = (given, [0; 9], 2 * usize::from(width.bytes()));
            assert_eq!(emulator.read_string(IoInsn::rep_ins(width), &mut gprs, &mut memory).unwrap(), len);
            assert!(memory.iter().enumerate().all(|(i, byte)| *byte == if i < len { 0xff } else { 0 }), "{layout}");
            assert_eq!(gprs, Gprs { rcx: 0, rdi: given.rdi.wrapping_add(len as u64), ..given }, "{layout}");
            let mut gprs = given;
            assert_eq!(emulator.write_string(IoInsn::rep_outs(width), &mut gprs, &memory).unwrap(), len);
            assert_eq!(gprs, Gprs { rcx: 0, rsi: given.rsi.wrapping_add(len as u64), ..given }, "{layout}");
        }
    }
    // What a bus does not call is there for a caller of a device all the same.
    let mut gprs = given;
    let [input, output] =
        [IoInsn::in_dx(Width::Word), IoInsn::out_dx(Width::Word)].map(|insn| PortAccess::of(insn, &given));
    assert_eq!(Nothing.port_in(input, &mut gprs), u32::MAX);
    Nothing.port_out(output, 1, &mut gprs);
    assert_eq!(Nothing.try_access(input, 0, &mut gprs).unwrap(), u32::MAX);
    assert_eq!(Nothing.try_access(output, 1, &mut gprs).unwrap(), 0);
    assert_eq!(gprs, given);
}

/// A quirk whose second access fails: what the first one did to the registers is undone as well.
#[test]
fn a_quirk_that_fails_half_way_leaves_the_registers_as_they_were() {
    struct Second(bool, Arc<Mutex<Outcome>>);
    impl PortDevice for Second {
        fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
            self.0 = !self.0;
            if self.0 {
                gprs.rbx = 1;
                return Ok(0);
            }
            Fickle(self.1.clone()).try_access(access, value, gprs)
        }
    }
    let outcome = Arc::new(Mutex::new(Outcome::Answer));
    let quirks = QuirkTable::from_iter([Quirk::READ_BACK.at_port(0xcd4)]);
    let given = Gprs { rdx: 0xcd4, ..Rng(11).gprs() };
    for (layout, mut emulator) in everywhere(0xcd4..=0xcd4, || Second(false, outcome.clone()), &quirks) {
        let mut gprs = given;
        *outcome.lock().unwrap() = Outcome::Refuse;
        let error = emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).unwrap_err();
        assert!(matches!(error, Error::Device { access, .. } if access.insn == IoInsn::in_dx(Width::Byte)), "{layout}");
        assert_eq!(gprs, given, "{layout}");
        *outcome.lock().unwrap() = Outcome::Panic;
        let run = AssertUnwindSafe(|| emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs));
        catch_unwind(run).unwrap_err();
        assert_eq!(gprs, given, "{layout}");
        emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).unwrap();
        assert_eq!(gprs.r15, Rng(7).gprs().r15, "the bus works on");
    }
}

/// [`SoftwareBus::access`] puts the registers back itself.
#[test]
fn a_bus_without_an_emulator_puts_the_registers_back() {
    let outcome = Arc::new(Mutex::new(Outcome::Refuse));
    let mut bus = SoftwareBus::new();
    bus.attach(0xcd4..=0xcd4, Fickle(outcome.clone())).unwrap();
    let given = Gprs { rdx: 0xcd4, ..Rng(12).gprs() };
    let (mut gprs, insn) = (given, IoInsn::in_dx(Width::Byte));
    assert!(matches!(bus.access(insn, &mut gprs), Err(Error::Device { .. })));
    assert_eq!(gprs, given);
    *outcome.lock().unwrap() = Outcome::Panic;
    catch_unwind(AssertUnwindSafe(|| bus.access(insn, &mut gprs))).unwrap_err();
    assert_eq!(gprs, given);
    assert!(matches!(bus.access(IoInsn::ins(Width::Byte), &mut gprs), Err(Error::StringForm { .. })));
    assert_eq!(gprs, given);
    bus.access(insn, &mut gprs).unwrap();
    let written = Rng(7).gprs();
    let rflags = given.rflags & !Gprs::STATUS_FLAGS | written.rflags & Gprs::STATUS_FLAGS;
    assert_eq!(gprs, Gprs { rax: Width::Byte.merge(written.rax, 0x5a), rflags, ..written });
}

#[cfg(target_os = "linux")]
mod beside_the_hardware {
    use ioemul::PortPermissions;

    use super::*;

    /// A bus at 0x40 to 0x7F, and the hardware at 0x80 to 0x87, where this process has no privilege.
    fn mixed(direct: bool) -> (IoEmulator, Log) {
        let (device, log) = recorder(0x42);
        let mut bus = SoftwareBus::new();
        bus.attach(0x00..=0xff, device).unwrap();
        let builder = IoEmulator::builder().quirks(QuirkTable::none()).ports(PortSet::from(0x40..=0x7f)).bus(bus);
        // SAFETY: without privilege nothing is accessed, and only port 0x80 is, which does nothing.
        let builder = unsafe { builder.native(PortSet::from(0x80..=0x87)) };
        let builder = if direct { builder.direct() } else { builder };
        (builder.build().unwrap(), log)
    }

    #[test]
    fn each_access_goes_to_the_side_that_has_all_its_ports() {
        for direct in [false, true] {
            let (mut emulator, log) = mixed(direct);
            assert!(emulator.ports().unwrap().permits(0x7f, Width::Byte, Direction::In));
            assert!(!emulator.ports().unwrap().permits(0x80, Width::Byte, Direction::In));
            assert!(emulator.native_ports().unwrap().permits(0x80, Width::Byte, Direction::Out));
            assert!(!emulator.native_ports().unwrap().permits(0x7f, Width::Byte, Direction::Out));
            assert_eq!(emulator.port_in(0x7f, Width::Byte).unwrap(), 0x42);
            emulator.port_out(0x40, Width::Dword, 0x1234).unwrap();
            let mut gprs = Gprs { rcx: 1, rdx: 0x7f, ..Gprs::default() };
            emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, &[9]).unwrap();
            assert_eq!(log.lock().unwrap().iter().map(|seen| seen.1).collect::<Vec<_>>(), [0, 0x1234, 9]);
            // The device claims port 0x80 as well, and is not asked.
            let before = Gprs { rcx: 1, rdx: 0x80, ..Rng(13).gprs() };
            let mut gprs = before;
            let result = emulator.execute(IoInsn::out_imm8(Width::Byte, 0x80), &mut gprs);
            if let Err(error) = result {
                assert!(matches!(error, Error::Fault { .. }), "{error}");
                assert_eq!(gprs, before);
                let error = emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, &[9]).unwrap_err();
                assert!(matches!(error, Error::Fault { .. }), "{error}");
                assert_eq!(gprs, before);
            }
            assert_eq!(log.lock().unwrap().len(), 3);
        }
    }

    #[test]
    fn an_access_that_straddles_the_two_is_refused() {
        for direct in [false, true] {
            let (mut emulator, log) = mixed(direct);
            for (port, width) in [
                (0x7f, Width::Word),
                (0x7d, Width::Dword),
                (0x3f, Width::Word),
                (0x87, Width::Word),
                (0x85, Width::Dword),
                (0x88, Width::Byte),
            ] {
                for insn in [IoInsn::in_dx(width), IoInsn::out_dx(width)] {
                    let before = Gprs { rdx: port, ..Rng(14).gprs() };
                    let mut gprs = before;
                    let error = emulator.execute(insn, &mut gprs).unwrap_err();
                    assert!(matches!(error, Error::PortDenied { port: at, .. } if u64::from(at) == port), "{error}");
                    assert_eq!(gprs, before);
                }
                let mut gprs = Gprs { rdx: port, ..Gprs::default() };
                let error = emulator.read_string(IoInsn::ins(width), &mut gprs, &mut [0; 4]).unwrap_err();
                assert!(matches!(error, Error::PortDenied { .. }), "{error}");
            }
            assert!(log.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn a_port_is_on_one_side_only() {
        let (low, high) = (PortSet::from(0x40..=0x80), PortSet::from(0x80..=0x87));
        let build = |bus: PortPermissions, hardware: PortPermissions| {
            let builder = IoEmulator::builder().quirks(QuirkTable::none()).ports(bus).bus(SoftwareBus::new());
            // SAFETY: no access is made.
            unsafe { builder.native(hardware) }.build().map(drop)
        };
        let read = |ports: &PortSet| PortPermissions { read: ports.clone(), ..PortPermissions::default() };
        let write = |ports: &PortSet| PortPermissions { write: ports.clone(), ..PortPermissions::default() };
        let both = build(low.clone().into(), high.clone().into());
        assert!(matches!(both, Err(BuildError::PortsInBoth { port: 0x80 })));
        for direction in [read, write] as [fn(&PortSet) -> PortPermissions; 2] {
            let both = build(direction(&low), direction(&high));
            assert!(matches!(both, Err(BuildError::PortsInBoth { port: 0x80 })));
        }
        build(read(&low), write(&high)).unwrap();
        build(PortSet::from(0x40..=0x7f).into(), high.into()).unwrap();
    }
}

#[test]
fn a_bus_shows_its_ports() {
    let mut bus = SoftwareBus::new();
    assert_eq!(format!("{bus:?}"), "[]");
    bus.attach(0x70..=0x71, ioemul::devices::Latch::new(0x70)).unwrap();
    assert_eq!(format!("{bus:?}"), r#"["0x0070..=0x0071"]"#);
}
