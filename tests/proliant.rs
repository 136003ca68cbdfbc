//! The ProLiant payload, executed: on a bus, in every layout and without machine code, against models of the port.
#![cfg(feature = "std")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Rng, host};
use ioemul::{
    CodeSink, DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortPermissions,
    PortSet, Quirk, QuirkTable, SoftwareBus, Step, StubLayout, Trigger, Width,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const BUSY: u32 = 0x80;
/// How often a poll reads the port of a device that is never ready.
const LIMIT: usize = Step::BUS_POLL_LIMIT as usize;

#[derive(Clone, Default)]
struct Counts {
    commands: Arc<AtomicUsize>,
    polls: Arc<AtomicUsize>,
}

/// Busy for so many polls after a command; then the service's results are in the registers.
struct Port {
    busy_for: usize,
    refuses: bool,
    panics: bool,
    counts: Counts,
}

impl PortDevice for Port {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        assert_eq!((access.port, access.width), (0xcd4, Width::Byte));
        let polls = self.counts.polls.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(!self.panics, "the device model has a bug");
        if polls <= self.busy_for {
            return BUSY | 1;
        }
        gprs.rbx = 0xb;
        gprs.r12 = 0xc;
        0x42
    }

    fn port_out(&mut self, _: PortAccess, value: u32, gprs: &mut Gprs) {
        assert_eq!(value, gprs.rax as u32 & 0xff);
        self.counts.commands.fetch_add(1, Ordering::Relaxed);
        gprs.rcx = 0xc0;
    }

    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        match access.direction {
            Direction::In if self.refuses => Err("in the middle".into()),
            Direction::In => Ok(self.port_in(access, gprs)),
            _ => {
                self.port_out(access, value, gprs);
                Ok(0)
            }
        }
    }
}

fn emulators(busy_for: usize) -> impl Iterator<Item = (Option<StubLayout>, IoEmulator, Counts)> {
    models(move || Port { busy_for, refuses: false, panics: false, counts: Counts::default() })
}

fn models(port: impl Fn() -> Port) -> impl Iterator<Item = (Option<StubLayout>, IoEmulator, Counts)> {
    layouts().map(move |layout| {
        let mut bus = SoftwareBus::new();
        let port = port();
        let counts = port.counts.clone();
        bus.attach(0xcd4..=0xcd4, port).unwrap();
        (layout, emulator(layout, Quirk::PROLIANT, PortSet::all(), bus), counts)
    })
}

/// Every layout, and none: `.direct()`.
fn layouts() -> impl Iterator<Item = Option<StubLayout>> {
    StubLayout::ALL.iter().copied().map(Some).chain([None])
}

fn emulator(
    layout: Option<StubLayout>,
    quirk: Quirk,
    ports: impl Into<PortPermissions>,
    bus: SoftwareBus,
) -> IoEmulator {
    let builder = IoEmulator::builder().ports(ports).bus(bus).quirks(QuirkTable::from_iter([quirk]));
    let builder = match layout {
        Some(layout) => builder.layout(layout),
        None => builder.direct(),
    };
    builder.build().unwrap()
}

/// A device that is a function: of the access's number, of the access, of the registers.
struct Model<F> {
    accesses: Arc<AtomicUsize>,
    answer: F,
}

impl<F: FnMut(usize, PortAccess, &mut Gprs) -> Result<u32, DeviceError> + Send> PortDevice for Model<F> {
    fn try_access(&mut self, access: PortAccess, _: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        (self.answer)(self.accesses.fetch_add(1, Ordering::Relaxed), access, gprs)
    }
}

/// A bus with such a device behind every port.
fn bus<F>(answer: F) -> (SoftwareBus, Arc<AtomicUsize>)
where
    F: FnMut(usize, PortAccess, &mut Gprs) -> Result<u32, DeviceError> + Send + 'static,
{
    let (mut bus, accesses) = (SoftwareBus::new(), Arc::<AtomicUsize>::default());
    bus.attach(0..=0xffff, Model { accesses: accesses.clone(), answer }).unwrap();
    (bus, accesses)
}

fn counted(counts: &Counts) -> (usize, usize) {
    (counts.commands.load(Ordering::Relaxed), counts.polls.load(Ordering::Relaxed))
}

/// Any registers that the quirk applies to.
fn command() -> Gprs {
    let any = Rng(1).gprs();
    Gprs { rax: any.rax & !0xff | 0x85, rdx: any.rdx & !0xffff | 0xcd4, ..any }
}

#[test]
fn the_command_is_followed_by_polls_until_it_is_done() {
    for busy_for in [0, 1, 2, LIMIT - 1] {
        for (layout, mut emulator, counts) in emulators(busy_for) {
            let given = command();
            let mut gprs = given;
            host::watch(|| emulator.execute(OUT, &mut gprs).unwrap());
            assert_eq!(counted(&counts), (1, busy_for + 1), "{layout:?}");
            let rax = given.rax & !0xff | 0x42;
            assert_eq!(gprs, Gprs { rax, rbx: 0xb, rcx: 0xc0, r12: 0xc, ..given }, "{layout:?}");
        }
    }
}

#[test]
fn a_port_that_is_never_ready_is_given_up() {
    for (layout, mut emulator, counts) in emulators(usize::MAX) {
        let given = command();
        let mut gprs = given;
        host::watch(|| emulator.execute(OUT, &mut gprs).unwrap());
        assert_eq!(counted(&counts), (1, LIMIT), "{layout:?}");
        let rax = given.rax & !0xff | u64::from(BUSY) | 1;
        assert_eq!(gprs, Gprs { rax, rcx: 0xc0, ..given }, "{layout:?}: AL says that it is busy");
    }
}

#[test]
fn other_accesses_are_left_alone() {
    let command = command();
    let declined = [
        (OUT, Gprs { rax: command.rax & !0x80, ..command }),
        (IoInsn::out_dx(Width::Word), command),
        (IoInsn::out_dx(Width::Dword), command),
        (IoInsn::in_dx(Width::Byte), command),
        (OUT, Gprs { rdx: 0xcd5, ..command }),
        (IoInsn::out_imm8(Width::Byte, 0xd4), command),
    ];
    for (insn, given) in declined {
        for (layout, mut emulator, counts) in emulators(0) {
            let mut gprs = given;
            emulator.execute(insn, &mut gprs).unwrap();
            let here = insn.port(&given) == 0xcd4;
            let expected = if !here {
                (0, 0)
            } else if insn.direction == Direction::In {
                (0, 1)
            } else {
                (1, 0) // the OUT itself, as it stands in a plain stub
            };
            assert_eq!(counted(&counts), expected, "{layout:?} {insn}");
        }
    }
}

/// After the error no more accesses are made.
#[test]
fn an_error_in_the_middle_of_the_payload() {
    for (layout, mut emulator, counts) in
        models(|| Port { busy_for: 0, refuses: true, panics: false, counts: Counts::default() })
    {
        let mut gprs = command();
        host::watch(|| {
            let error = emulator.execute(OUT, &mut gprs).unwrap_err();
            assert_eq!(
                error.to_string(),
                "IN of 1 byte from port 0x0cd4: the device refused the access: in the middle"
            );
        });
        assert_eq!((gprs, counted(&counts)), (command(), (1, 0)), "{layout:?}");
    }
}

#[test]
fn a_panic_in_the_middle_of_the_payload() {
    for (layout, mut emulator, counts) in
        models(|| Port { busy_for: 0, refuses: false, panics: true, counts: Counts::default() })
    {
        let mut gprs = command();
        let panic = catch_unwind(AssertUnwindSafe(|| emulator.execute(OUT, &mut gprs))).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"the device model has a bug"));
        assert_eq!((gprs, counted(&counts)), (command(), (1, 1)), "{layout:?}");
        // The bus is usable: a plain access to the same device.
        let mut gprs = Gprs { rax: 0x05, rdx: 0xcd4, ..Gprs::default() };
        emulator.execute(OUT, &mut gprs).unwrap();
        assert_eq!(counted(&counts), (2, 1));
    }
}

/// CF and OF, which are kept in different bytes of RFLAGS.
const FLIPPED: u64 = 0x801;

const BOTH: [Quirk; 2] = [Quirk::PROLIANT, Quirk::PROLIANT_UNBOUNDED];

/// On a bus the unbounded poll is bounded as well.
#[test]
fn the_unbounded_poll_has_an_end_on_a_bus() {
    for layout in layouts() {
        let (bus, accesses) = bus(|_, _, _| Ok(BUSY));
        let given = command();
        let mut gprs = given;
        emulator(layout, Quirk::PROLIANT_UNBOUNDED, PortSet::all(), bus).execute(OUT, &mut gprs).unwrap();
        assert_eq!(accesses.load(Ordering::Relaxed), 1 + LIMIT, "{layout:?}");
        assert_eq!(gprs, Gprs { rax: given.rax & !0xff | u64::from(BUSY), ..given }, "{layout:?}");
    }
}

/// The last read that the limit allows still counts.
#[test]
fn ready_at_the_last_read() {
    for layout in layouts() {
        let (bus, accesses) = bus(|n, _, _| Ok(if n == LIMIT { 0x42 } else { BUSY }));
        let mut gprs = command();
        emulator(layout, Quirk::PROLIANT, PortSet::all(), bus).execute(OUT, &mut gprs).unwrap();
        assert_eq!(accesses.load(Ordering::Relaxed), 1 + LIMIT, "{layout:?}");
        assert_eq!(gprs.rax as u8, 0x42, "{layout:?}");
    }
}

/// A port that reads as all ones is one without a device: bit 7 will not clear.
#[test]
fn all_ones_end_the_poll() {
    for quirk in BOTH {
        for layout in layouts() {
            for busy_for in [0, 3] {
                let (bus, accesses) = bus(move |n, _, _| Ok(if n > busy_for { 0xff } else { 0xfe }));
                let given = command();
                let mut gprs = given;
                emulator(layout, quirk, PortSet::all(), SoftwareBus::new()).execute(OUT, &mut gprs).unwrap();
                assert_eq!(gprs, Gprs { rax: given.rax | 0xff, ..given }, "{layout:?}: nobody on the bus");
                gprs = given;
                emulator(layout, quirk, PortSet::all(), bus).execute(OUT, &mut gprs).unwrap();
                assert_eq!(accesses.load(Ordering::Relaxed), 2 + busy_for, "{layout:?}");
                assert_eq!(gprs, Gprs { rax: given.rax | 0xff, ..given }, "{layout:?}");
            }
        }
    }
}

/// Wherever the device lets DX point to, no access goes there.
#[test]
fn dx_is_not_followed() {
    for quirk in [Quirk::PROLIANT, Quirk::PROLIANT_UNBOUNDED, Quirk::READ_BACK.at_port(0xcd4)] {
        for layout in layouts() {
            for (changed_at, dx) in [(0, 0x64), (0, 0xcd5), (0, 0x1cd4), (0, 0xd4), (1, 0x64), (3, 0xc4d4)] {
                let (bus, accesses) = bus(move |n, access, gprs| {
                    assert_eq!(access.port, 0xcd4);
                    gprs.rflags ^= FLIPPED;
                    if n == changed_at {
                        gprs.rdx = gprs.rdx & !0xffff | dx;
                    }
                    Ok(BUSY)
                });
                let given = command();
                let mut gprs = given;
                let mut emulator = emulator(layout, quirk, PortSet::all(), bus);
                host::watch(|| emulator.execute(OUT, &mut gprs).unwrap());
                let reads_once = quirk.name() == Quirk::READ_BACK.name();
                let made = if reads_once { changed_at.min(1) } else { changed_at } + 1;
                assert_eq!(accesses.load(Ordering::Relaxed), made, "{} {layout:?} {dx:#x}", quirk.name());
                let rdx = if changed_at < made { given.rdx & !0xffff | dx } else { given.rdx };
                let rax = if made > 1 { given.rax & !0xff | u64::from(BUSY) } else { given.rax };
                let rflags = given.rflags ^ if made % 2 == 1 { FLIPPED } else { 0 };
                assert_eq!(gprs, Gprs { rax, rdx, rflags, ..given }, "{} {layout:?} {dx:#x}", quirk.name());
            }
        }
    }
}

/// What lies beyond DX does not keep the poll from going on.
#[test]
fn the_upper_bits_of_rdx_are_not_the_port() {
    for quirk in BOTH {
        for layout in layouts() {
            let (bus, accesses) = bus(|n, _, gprs| {
                gprs.rdx = gprs.rdx & 0xffff | (n as u64) << 16;
                Ok(if n == 5 { 0 } else { BUSY })
            });
            let mut gprs = command();
            emulator(layout, quirk, PortSet::all(), bus).execute(OUT, &mut gprs).unwrap();
            assert_eq!((accesses.load(Ordering::Relaxed), gprs.rdx), (6, 5 << 16 | 0xcd4), "{layout:?}");
        }
    }
}

/// A payload of user code is held to the same, wherever it makes its accesses.
#[test]
fn a_payload_does_not_follow_dx_either() {
    let trigger = Trigger::out_dx(Width::Byte, 0xcd4);
    // SAFETY: accesses alone.
    let twice = unsafe {
        Quirk::new("twice", trigger, |payload| {
            payload.io(OUT);
            payload.io(OUT);
            payload.io(IoInsn::in_dx(Width::Word));
        })
    };
    // SAFETY: an access, behind an instruction that changes nothing.
    let not_at_first = unsafe {
        Quirk::new("not at first", trigger, |payload| {
            payload.push(0x90);
            payload.io(OUT);
        })
    };
    // SAFETY: changes RDX alone, and makes accesses.
    let own = unsafe {
        Quirk::new("changes DX itself", trigger, |payload| {
            payload.extend(&[0xba, 0x64, 0x00, 0x00, 0x00]); // mov edx, 0x64
            payload.io(OUT);
            payload.io(IoInsn::out_imm8(Width::Byte, 0x80));
        })
    };
    for &layout in StubLayout::ALL {
        let layout = Some(layout);
        for (quirk, changed_at, ports) in [
            (twice, usize::MAX, &[0xcd4, 0xcd4, 0xcd4][..]),
            (twice, 0, &[0xcd4]),
            (twice, 1, &[0xcd4, 0xcd4]),
            (not_at_first, 0, &[0xcd4]),
            (own, 0, &[0x80]),
        ] {
            let saw = Arc::new(std::sync::Mutex::new(Vec::new()));
            let seen = saw.clone();
            let (bus, _) = bus(move |n, access, gprs| {
                seen.lock().unwrap().push((access.port, gprs.rflags));
                if n == changed_at {
                    gprs.rdx = 0x64;
                }
                Ok(0)
            });
            let given = command();
            let mut gprs = given;
            let mut emulator = emulator(layout, quirk, PortSet::all(), bus);
            host::watch(|| emulator.execute(OUT, &mut gprs).unwrap());
            let expected: Vec<_> = ports.iter().map(|port| (*port, given.rflags)).collect();
            assert_eq!(*saw.lock().unwrap(), expected, "{layout:?} {} {changed_at}", quirk.name());
            assert_eq!(gprs.rflags, given.rflags, "{layout:?} {}: looking at DX shows in no flag", quirk.name());
        }
    }
}

/// A refusal ends the payload at once, at each of its accesses: the device is not asked again.
#[test]
fn a_refusal_ends_it_at_once() {
    for quirk in BOTH {
        for layout in layouts() {
            for refused_at in [0, 1, 2, 50] {
                let (bus, accesses) = bus(move |n, _, gprs| {
                    *gprs = Gprs { rdx: 0xcd4, ..Gprs::from_words([n as u64; 16]) };
                    if n == refused_at { Err("no".into()) } else { Ok(BUSY) }
                });
                let mut gprs = command();
                let mut emulator = emulator(layout, quirk, PortSet::all(), bus);
                host::watch(|| {
                    let error = emulator.execute(OUT, &mut gprs).unwrap_err();
                    let Error::Device { access, .. } = error else { panic!("{error}") };
                    let expected = if refused_at == 0 { Direction::Out } else { Direction::In };
                    assert_eq!((access.port, access.direction), (0xcd4, expected));
                });
                assert_eq!(accesses.load(Ordering::Relaxed), refused_at + 1, "{layout:?}");
                assert_eq!(gprs, command(), "{layout:?}");
            }
        }
    }
}

/// Reading and writing are permitted apart, and everything is looked at before the first access.
#[test]
fn denied_before_the_first_access() {
    let ports = |text: &str| text.parse::<PortSet>().unwrap();
    let all_but = |port: u16| {
        let mut ports = PortSet::all();
        ports.deny(port..=port);
        ports
    };
    let dell = Gprs { rax: 0xa3, rdx: 0xb2, ..command() };
    let smapi = Gprs { rax: 0x5380, rdx: 0xb2, ..command() };
    let (read, write) = (Direction::In, Direction::Out);
    type Row = (Quirk, Gprs, PortSet, PortSet, (u16, Direction));
    let rows: [Row; 7] = [
        (Quirk::PROLIANT, command(), PortSet::none(), ports("0xcd4"), (0xcd4, read)),
        (Quirk::PROLIANT, command(), all_but(0xcd4), PortSet::all(), (0xcd4, read)),
        (Quirk::PROLIANT_UNBOUNDED, command(), all_but(0xcd4), PortSet::all(), (0xcd4, read)),
        (Quirk::READ_BACK, dell, all_but(0xb2), PortSet::all(), (0xb2, read)),
        (Quirk::DELL_SMM, dell, PortSet::all(), all_but(0x84), (0x84, write)),
        (Quirk::DELL_SMM, dell, PortSet::none(), ports("0xb2"), (0x84, write)),
        (Quirk::THINKPAD_SMAPI, smapi, PortSet::all(), all_but(0x4f), (0x4f, write)),
    ];
    for (wanted, given, may_read, may_write, (port, direction)) in rows {
        for layout in layouts() {
            let (bus, accesses) = bus(|_, _, _| Ok(0));
            let permissions = PortPermissions { read: may_read.clone(), write: may_write.clone() };
            let mut emulator = emulator(layout, wanted, permissions, bus);
            let mut gprs = given;
            host::watch(|| match emulator.execute(OUT, &mut gprs) {
                Err(Error::QuirkDenied { quirk, port: denied, width: Width::Byte, direction: how }) => {
                    assert_eq!((quirk, denied, how), (wanted.name(), port, direction), "{layout:?}");
                }
                other => panic!("{} {layout:?}: {other:?}", wanted.name()),
            });
            assert_eq!((accesses.load(Ordering::Relaxed), gprs), (0, given), "{layout:?}: nothing happened");
            // What the quirk does not take is permitted as ever.
            let mut gprs = Gprs { rax: 0, ..given };
            if wanted.name() != Quirk::READ_BACK.name() {
                emulator.execute(OUT, &mut gprs).unwrap();
                assert_eq!(accesses.load(Ordering::Relaxed), 1, "{layout:?}");
            }
        }
    }
    // The guest's own access is none of the quirk's.
    for layout in layouts() {
        let (bus, accesses) = bus(|_, _, _| Ok(0));
        let permissions = PortPermissions { read: PortSet::all(), write: all_but(0xcd4) };
        let mut gprs = command();
        let error = emulator(layout, Quirk::PROLIANT, permissions, bus).execute(OUT, &mut gprs).unwrap_err();
        assert!(matches!(error, Error::PortDenied { port: 0xcd4, width: Width::Byte, direction: Direction::Out }));
        assert_eq!((accesses.load(Ordering::Relaxed), gprs), (0, command()), "{layout:?}");
    }
    // As much as the quirk needs is enough.
    for layout in layouts() {
        let (bus, accesses) = bus(|_, _, _| Ok(0));
        let permissions = PortPermissions { read: ports("0xcd4"), write: ports("0xcd4") };
        emulator(layout, Quirk::PROLIANT, permissions, bus).execute(OUT, &mut command()).unwrap();
        assert_eq!(accesses.load(Ordering::Relaxed), 2, "{layout:?}");
    }
}

/// How often the payloads below have looked for an end.
static TURNS: AtomicUsize = AtomicUsize::new(0);

/// A loop around IN from DX, of at most 1,000 turns, until the flags that `test` leaves let `done`, a short jump, be taken.
fn wait(payload: &mut ioemul::Payload<'_>, test: &[u8], done: u8) {
    payload.extend(&[0x48, 0xbb]); // mov rbx, imm64
    payload.extend(&(TURNS.as_ptr() as u64).to_le_bytes());
    let again = payload.offset();
    payload.extend(&[0xff, 0x03, 0xf9]); // inc dword [rbx]; stc
    payload.io(IoInsn::in_dx(Width::Byte));
    payload.extend(test);
    payload.extend(&[done, 8]);
    payload.extend(&[0x81, 0x3b, 0xe8, 0x03, 0x00, 0x00]); // cmp dword [rbx], 1000
    let back = again as isize - (payload.offset() as isize + 2);
    payload.extend(&[0x72, i8::try_from(back).unwrap() as u8]); // jb again
}

/// After a refusal or a panic the device is not asked again, and to a payload its port then looks like one where nobody
/// is: AL reads as all ones and CF as clear, so that a wait for either ends at the first look.
#[test]
fn a_refusal_ends_the_waits_of_a_payload() {
    let trigger = Trigger::out_dx(Width::Byte, 0xcd4);
    // SAFETY: an access in a loop that ends, RBX, and a counter of this test's own.
    let until_all_ones = unsafe { Quirk::new("all ones", trigger, |payload| wait(payload, &[0x3c, 0xff], 0x74)) };
    // SAFETY: as above.
    let until_carry_is_clear = unsafe { Quirk::new("carry", trigger, |payload| wait(payload, &[], 0x73)) };
    for quirk in [until_all_ones, until_carry_is_clear] {
        for &layout in StubLayout::ALL {
            for panics in [false, true] {
                let (bus, accesses) = bus(move |_, _, _| {
                    assert!(!panics, "the device model has a bug");
                    Err("no".into())
                });
                let mut emulator = emulator(Some(layout), quirk, PortSet::all(), bus);
                let mut gprs = command();
                TURNS.store(0, Ordering::Relaxed);
                let result = catch_unwind(AssertUnwindSafe(|| emulator.execute(OUT, &mut gprs)));
                assert_eq!(result.is_err(), panics);
                assert_eq!((accesses.load(Ordering::Relaxed), gprs), (1, command()), "{layout:?} {}", quirk.name());
                assert_eq!(TURNS.load(Ordering::Relaxed), 1, "{layout:?} {}", quirk.name());
            }
        }
    }
}
