//! What a listener is told, and when.
#![cfg(feature = "std")]

use std::time::Duration;

use ioemul::events::{Attempt, DynEvents, Events, NoEvents, Outcome};
use ioemul::{
    DeviceError, Error, Gprs, IoEmulator, IoFault, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus, Width,
};

/// Writes down every event.
#[derive(Default)]
struct Log<const TIMED: bool>(Vec<String>);

impl<const TIMED: bool> Log<TIMED> {
    fn end(&mut self, what: &str, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        assert_eq!(outcome.duration.is_some(), TIMED);
        assert!(outcome.duration.unwrap_or_default() < Duration::from_secs(10));
        let changed: Vec<_> = attempt
            .gprs
            .differences(outcome.gprs)
            .filter(|(name, ..)| *name != "rflags")
            .map(|(name, before, after)| format!("{name} {before:#x}->{after:#x}"))
            .collect();
        self.0.push(format!("{what} {} {changed:?} {:?}", attempt.insn, outcome.data));
    }
}

impl<const TIMED: bool> Events for Log<TIMED> {
    const TIMED: bool = TIMED;

    fn before(&mut self, attempt: &Attempt<'_>) {
        self.0.push(format!("before {} port {:#x}", attempt.insn, attempt.port));
    }

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.end("after", attempt, outcome);
    }

    fn denied(&mut self, attempt: &Attempt<'_>) {
        self.0.push(format!("denied {} port {:#x}", attempt.insn, attempt.port));
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        self.end(&format!("faulted {}", fault.vector), attempt, outcome);
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        self.end(&format!("refused ({why})"), attempt, outcome);
    }
}

/// Answers with a count; refuses the fourth access, and panics at the fifth.
struct Counter(u32);

impl PortDevice for Counter {
    fn port_in(&mut self, _: PortAccess, gprs: &mut Gprs) -> u32 {
        gprs.rbx = 0xb;
        self.0
    }

    fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {}

    fn try_access(&mut self, access: PortAccess, _: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.0 += 1;
        match self.0 {
            4 => Err("enough".into()),
            5 => panic!("too much"),
            _ => Ok(self.port_in(access, gprs)),
        }
    }
}

fn emulator<E: Events>(events: E) -> IoEmulator<E> {
    let mut bus = SoftwareBus::new();
    bus.attach(0x10..=0x10, Counter(0)).unwrap();
    IoEmulator::builder().ports(PortSet::from(0x10..=0x10)).bus(bus).events(events).build().unwrap()
}

fn transcript<const TIMED: bool>() -> Vec<String> {
    run(Log::<TIMED>::default()).0
}

/// One access of each kind.
fn told(events: impl Events) {
    run(events);
}

/// Everything that can happen, with a listener that is given back.
fn run<E: Events>(events: E) -> E {
    let mut emulator = emulator(events);
    let input = IoInsn::in_imm8(Width::Byte, 0x10);
    emulator.execute(input, &mut Gprs::default()).unwrap();
    emulator.execute(IoInsn::in_imm8(Width::Word, 0x10), &mut Gprs::default()).unwrap_err();
    emulator.emulate(&[0x90], &mut Gprs::default()).unwrap_err(); // no access, no event
    let mut gprs = Gprs { rcx: 3, rdx: 0x10, rdi: 0x1000, ..Gprs::default() };
    emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut [0; 3]).unwrap_err();
    let panic = std::panic::AssertUnwindSafe(|| emulator.execute(input, &mut Gprs::default()));
    std::panic::catch_unwind(panic).unwrap_err();
    emulator.execute(input, &mut Gprs::default()).unwrap();
    emulator.into_events()
}

const TRANSCRIPT: &[&str] = &[
    "before in al, 0x10 port 0x10",
    r#"after in al, 0x10 ["rax 0x0->0x1", "rbx 0x0->0xb"] []"#,
    "denied in ax, 0x10 port 0x10",
    "before rep insb port 0x10",
    r#"refused (enough) rep insb ["rcx 0x3->0x1", "rdi 0x1000->0x1002"] [2, 3]"#,
    "before in al, 0x10 port 0x10", // the device panics
    "before in al, 0x10 port 0x10",
    r#"after in al, 0x10 ["rax 0x0->0x6", "rbx 0x0->0xb"] []"#,
];

#[test]
fn every_end_of_an_access_is_told() {
    assert_eq!(transcript::<false>(), TRANSCRIPT);
}

#[test]
fn the_clock_is_read_for_those_who_ask() {
    assert_eq!(transcript::<true>(), TRANSCRIPT);
}

/// A listener behind a pointer is told the same; and its time, if and only if it asked for it.
#[test]
fn who_listens_can_be_decided_later() {
    let (mut plain, mut timed) = (Log::<false>::default(), Log::<true>::default());
    let listeners: [&mut dyn DynEvents; 2] = [&mut plain, &mut timed];
    listeners.into_iter().for_each(told);
    assert_eq!([&plain.0[..], &timed.0[..]], [TRANSCRIPT, TRANSCRIPT]);

    let (mut plain, mut timed) = (Log::<false>::default(), Log::<true>::default());
    let boxed: [Box<dyn DynEvents + Send + '_>; 2] = [Box::new(&mut plain), Box::new(&mut timed)];
    for listener in boxed {
        told((Some(listener), None::<Box<dyn DynEvents>>));
    }
    assert_eq!([&plain.0[..], &timed.0[..]], [TRANSCRIPT, TRANSCRIPT]);

    let mut boxed = Box::new(Log::<false>::default());
    told(&mut boxed);
    assert_eq!(boxed.0, TRANSCRIPT);
    const { assert!(!<Box<Log<false>> as Events>::TIMED && <Box<Log<true>> as Events>::TIMED) };
}

/// An emulator that has such a listener goes to another thread.
#[test]
fn an_emulator_with_a_listener_behind_a_pointer_is_sent() {
    let listener: Box<dyn DynEvents + Send> = Box::new(Log::<false>::default());
    let mut emulator = emulator(listener);
    std::thread::spawn(move || emulator.port_in(0x10, Width::Byte).unwrap()).join().unwrap();
}

/// A listener hears the same wherever it is: lent, one of two, one that may be there; and the clock is read if one of
/// them asks for it.
#[test]
fn listeners_within_others() {
    let log = Log::<false>::default;
    assert_eq!(run(Some(log())).unwrap().0, TRANSCRIPT);
    assert!(run(None::<Log<true>>).is_none());
    let (mut lent, mut both) = (log(), (log(), Some((log(), NoEvents))));
    run(&mut lent);
    run(&mut both);
    let (first, second) = (both.0.0, both.1.unwrap().0.0);
    assert_eq!([lent.0, first, second], [(); 3].map(|()| TRANSCRIPT.to_vec()));
    const { assert!(<(NoEvents, Log<true>)>::TIMED && <(Log<true>, NoEvents)>::TIMED) };
    const { assert!(<&mut Log<true>>::TIMED && <Option<Log<true>>>::TIMED) };
    const { assert!(!<(Log<false>, NoEvents)>::TIMED && !<&mut NoEvents>::TIMED && !<Option<NoEvents>>::TIMED) };
    // Of two, one is told the time, and one that does not ask is not (`Log` asserts both).
    let both = run((Log::<false>::default(), Some(Log::<true>::default())));
    assert_eq!([both.0.0, both.1.unwrap().0], [(); 2].map(|()| TRANSCRIPT.to_vec()));
    let mut both = (Log::<false>::default(), Log::<true>::default());
    run(&mut both as &mut (dyn DynEvents + Send + Sync));
    assert_eq!([both.0.0, both.1.0], [(); 2].map(|()| TRANSCRIPT.to_vec()));
}

/// A device model refuses in the CPU's place, with an exception of its own making.
#[test]
fn a_devices_fault_is_told_as_the_cpus() {
    struct Refuses;
    impl PortDevice for Refuses {
        fn try_access(&mut self, _: PortAccess, _: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
            Err(Box::new(IoFault::new(14, 2, 0x1000)))
        }
    }
    let mut bus = SoftwareBus::new();
    bus.attach(0x80..=0x80, Refuses).unwrap();
    let mut log = Log::<false>::default();
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).events(&mut log).build().unwrap();
    let error = emulator.execute(IoInsn::in_imm8(Width::Byte, 0x80), &mut Gprs::default()).unwrap_err();
    assert!(matches!(error, Error::Fault { fault: IoFault { vector: 14, error_code: 2, address: 0x1000, .. }, .. }));
    drop(emulator);
    assert_eq!(log.0, ["before in al, 0x80 port 0x80", "faulted 14 in al, 0x80 [] []"]);
    assert_eq!(IoFault::GENERAL_PROTECTION, IoFault::new(13, 0, 0));
}

#[test]
fn a_fault_is_told() {
    // SAFETY: without privilege nothing is accessed, and writing port 0x80 would do nothing.
    let builder = unsafe { IoEmulator::builder().native(PortSet::from(0x80..=0x80)) };
    let mut log = Log::<false>::default();
    let mut emulator = builder.events(&mut log).build().unwrap();
    let faults = emulator.execute(IoInsn::out_imm8(Width::Byte, 0x80), &mut Gprs::default()).is_err();
    drop(emulator);
    let end = if faults { "faulted 13 out 0x80, al [] []" } else { "after out 0x80, al [] []" };
    assert_eq!(log.0, ["before out 0x80, al port 0x80", end]);
}

#[cfg(feature = "tracing")]
mod tracing {
    use std::fmt::{Debug, Write};
    use std::sync::{Arc, Mutex};

    use ::tracing::field::{Field, Visit};
    use ::tracing::span::{Attributes, Id, Record};
    use ::tracing::{Event, Metadata, Subscriber};
    use ioemul::events::Tracing;

    use super::*;

    /// Collects events as lines; durations are left out.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() != "duration" {
                let _ = write!(self.0, " {}={value:?}", field.name());
            }
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut line = Line(format!("{} {}", event.metadata().level(), event.metadata().target()));
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn accesses_become_tracing_events() {
        let lines = Lines::default();
        ::tracing::subscriber::with_default(lines.clone(), || {
            let mut emulator = emulator(Tracing);
            let input = IoInsn::in_imm8(Width::Byte, 0x10);
            let mut gprs = Gprs { rflags: 0x246, ..Gprs::default() };
            for _ in 0..4 {
                let _ = emulator.execute(input, &mut gprs);
            }
            emulator.execute(IoInsn::in_imm8(Width::Byte, 0x11), &mut gprs).unwrap_err();
        });
        let lines = lines.0.lock().unwrap();
        assert_eq!(
            [&lines[1], &lines[3], &lines[4]],
            [
                "DEBUG ioemul message=port access insn=in al, 0x10 port=0x0010 changed=rax: 0x1 → 0x2",
                "WARN ioemul message=port refused insn=in al, 0x10 port=0x0010 error=enough",
                "WARN ioemul message=port denied insn=in al, 0x11 port=0x0011",
            ]
        );
    }
}
