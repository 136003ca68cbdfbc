//! The ProLiant payload, executed: on a bus, in every layout, against models of the port.
#![cfg(feature = "std")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Rng, host};
use ioemul::{
    DeviceError, Direction, Gprs, IoEmulator, IoInsn, PROLIANT_POLL_LIMIT, PortAccess, PortDevice, PortSet, QuirkTable,
    SoftwareBus, StubLayout, Width,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const BUSY: u32 = 0x80;

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

fn emulators(busy_for: usize) -> impl Iterator<Item = (StubLayout, IoEmulator, Counts)> {
    models(move || Port { busy_for, refuses: false, panics: false, counts: Counts::default() })
}

fn models(port: impl Fn() -> Port) -> impl Iterator<Item = (StubLayout, IoEmulator, Counts)> {
    StubLayout::ALL.iter().copied().map(move |layout| {
        let mut bus = SoftwareBus::new();
        let port = port();
        let counts = port.counts.clone();
        bus.attach(0xcd4..=0xcd4, port).unwrap();
        let builder = IoEmulator::builder().layout(layout).ports(PortSet::all()).bus(bus);
        (layout, builder.quirks(QuirkTable::builtin()).build().unwrap(), counts)
    })
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
    for busy_for in [0, 1, 2, 1000] {
        for (layout, mut emulator, counts) in emulators(busy_for) {
            let given = command();
            let mut gprs = given;
            host::watch(|| emulator.execute(OUT, &mut gprs).unwrap());
            assert_eq!(counted(&counts), (1, busy_for + 1), "{layout:?}");
            let rax = given.rax & !0xff | 0x42;
            assert_eq!(gprs, Gprs { rax, rbx: 0xb, rcx: 0xc0, r12: 0xc, rflags: gprs.rflags, ..given }, "{layout:?}");
        }
    }
}

#[test]
fn a_port_that_is_never_ready_is_given_up() {
    for (layout, mut emulator, counts) in emulators(usize::MAX) {
        let given = command();
        let mut gprs = given;
        host::watch(|| emulator.execute(OUT, &mut gprs).unwrap());
        assert_eq!(counted(&counts), (1, PROLIANT_POLL_LIMIT as usize), "{layout:?}");
        let rax = given.rax & !0xff | u64::from(BUSY) | 1;
        assert_eq!(gprs, Gprs { rax, rcx: 0xc0, rflags: gprs.rflags, ..given }, "{layout:?}: AL says that it is busy");
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

/// After the error no more accesses are made, and the poll comes to its end by the count.
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
