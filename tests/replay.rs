//! Record on a bus, replay without it: in order and by the register, or by the port alone.
#![cfg(feature = "std")]

use std::sync::{Arc, Mutex};

use ioemul::devices::{Latch, ProLiantPort, SmmMailbox, VmwareBackdoor};
use ioemul::events::Events;
use ioemul::trace::{Progress, Record, RecordedError, ReplayError, Trace};
use ioemul::{
    DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, QuirkTable, SoftwareBus,
    StringProgress, StubLayout, Width,
};
use proptest::prelude::*;

/// A device that refuses everything.
struct Broken;

impl PortDevice for Broken {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        unreachable!("the bus calls try_access")
    }

    fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {}

    fn try_access(&mut self, _: PortAccess, _: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
        Err("out of order".into())
    }
}

fn devices() -> SoftwareBus {
    let mut bus = SoftwareBus::new();
    bus.attach(0x5658..=0x565b, VmwareBackdoor::new().uuid([7; 16])).unwrap();
    bus.attach(0xe0..=0xe3, Latch::new(0xe0)).unwrap();
    bus.attach(0xcd4..=0xcd4, ProLiantPort::new(3)).unwrap();
    bus.attach(0x500..=0x503, Broken).unwrap();
    let firmware = SmmMailbox::new(|command, _, gprs| {
        gprs.r15 = command.into();
        gprs.rflags |= Gprs::CF;
    });
    bus.attach(0xb2..=0xb3, firmware).unwrap();
    bus
}

fn recorder(quirks: QuirkTable) -> IoEmulator<Trace> {
    IoEmulator::builder().quirks(quirks).ports(PortSet::all()).bus(devices()).events(Trace::new()).build().unwrap()
}

fn replayer((bus, progress): (SoftwareBus, Progress)) -> (IoEmulator, Progress) {
    (IoEmulator::builder().ports(PortSet::all()).bus(bus).build().unwrap(), progress)
}

fn gprs(rax: u64, rdx: u64) -> Gprs {
    Gprs { rax, rdx, rbx: 0xb, rcx: 19, rsi: 0x51, rdi: 0xd1, ..Gprs::default() }
}

/// What is done: instruction, registers, and for a string instruction its data.
type Step = (IoInsn, Gprs, Vec<u8>);

fn perform<E: ioemul::events::Events>(
    emulator: &mut IoEmulator<E>,
    step: &Step,
) -> (Result<(), String>, Gprs, Vec<u8>) {
    let (insn, mut gprs, mut data) = step.clone();
    let result = match (insn.is_string(), insn.direction) {
        (false, _) => emulator.execute(insn, &mut gprs),
        (true, ioemul::Direction::In) => emulator.read_string(insn, &mut gprs, &mut data).map(drop),
        (true, _) => emulator.write_string(insn, &mut gprs, &data).map(drop),
    };
    (result.map_err(|error| error.to_string()), gprs, data)
}

fn steps() -> Vec<Step> {
    let plain = |insn, gprs| (insn, gprs, Vec::new());
    vec![
        plain(IoInsn::in_dx(Width::Dword), gprs(0x564d_5868, 0x5658)),
        plain(IoInsn::out_imm8(Width::Word, 0xe1), gprs(0x1234, 0)),
        plain(IoInsn::in_imm8(Width::Dword, 0xe0), gprs(u64::MAX, 0)),
        plain(IoInsn::in_imm8(Width::Byte, 0xe2), gprs(u64::MAX, 0)),
        plain(IoInsn::out_imm8(Width::Byte, 0xb2), gprs(0x42, 0)),
        plain(IoInsn::in_dx(Width::Word), gprs(1, 0xffff - 1)),
        plain(IoInsn::in_dx(Width::Dword), gprs(1, 0x500)),
        (IoInsn::rep_outs(Width::Word), Gprs { rcx: 3, ..gprs(0, 0xe0) }, vec![1, 2, 3, 4, 5, 6]),
        (IoInsn::rep_ins(Width::Byte), Gprs { rcx: 2, ..gprs(0, 0xe0) }, vec![0; 8]),
        (IoInsn::ins(Width::Dword), gprs(0, 0xe0), vec![0; 4]),
        (IoInsn::rep_ins(Width::Word), Gprs { rcx: 0, ..gprs(0, 0xe0) }, vec![7; 4]), // no access
        (IoInsn::rep_ins(Width::Word), Gprs { rcx: 2, ..gprs(0, 0x500) }, vec![9; 4]),
        plain(IoInsn::out_dx(Width::Byte), gprs(0x85, 0xcd4)),
    ]
}

#[test]
fn a_strict_replay_gives_what_was_recorded() {
    // The ProLiant quirk is in the recording emulator only: its accesses are one record.
    let mut emulator = recorder(QuirkTable::builtin());
    let recorded: Vec<_> = steps().iter().map(|step| perform(&mut emulator, step)).collect();
    let trace = emulator.into_events();
    assert_eq!(trace.records().len(), steps().len());
    for layout in StubLayout::ALL.iter().copied() {
        let (bus, progress) = trace.clone().replay().strict();
        let mut emulator = IoEmulator::builder().layout(layout).ports(PortSet::all()).bus(bus).build().unwrap();
        let replayed: Vec<_> = steps().iter().map(|step| perform(&mut emulator, step)).collect();
        assert_eq!(replayed, recorded);
        progress.finish().unwrap();
        assert_eq!((progress.replayed(), progress.unexpected()), (steps().len(), 0));
    }
}

#[test]
fn denied_accesses_are_not_recorded() {
    let ports = PortSet::from(0xe0..=0xe0);
    let builder = IoEmulator::builder().ports(ports).bus(devices());
    let mut emulator = builder.events(Trace::new()).build().unwrap();
    emulator.execute(IoInsn::in_imm8(Width::Byte, 0xe1), &mut Gprs::default()).unwrap_err();
    emulator.execute(IoInsn::in_imm8(Width::Byte, 0xe0), &mut Gprs::default()).unwrap();
    assert_eq!(emulator.events().records().len(), 1);
}

#[test]
fn a_recorded_fault_is_a_fault_again() {
    // SAFETY: without privilege nothing is accessed, and writing port 0x80 would do nothing.
    let builder = unsafe { IoEmulator::builder().native(PortSet::from(0x80..=0x80)) };
    let mut emulator = builder.events(Trace::new()).build().unwrap();
    let insn = IoInsn::out_imm8(Width::Byte, 0x80);
    let Err(Error::Fault { fault, .. }) = emulator.execute(insn, &mut Gprs::default()) else {
        return; // a process with I/O privilege has no fault to record
    };
    let trace = emulator.into_events();
    assert_eq!(trace.records()[0].error, Some(RecordedError::Fault(fault)));
    let (mut emulator, _) = replayer(trace.replay().strict());
    let error = emulator.execute(insn, &mut Gprs::default()).unwrap_err();
    assert!(matches!(error, Error::Fault { fault: again, .. } if again == fault));
}

#[test]
fn after_a_mismatch_the_expected_access_can_still_be_made() {
    let mut emulator = recorder(QuirkTable::none());
    let all = steps();
    perform(&mut emulator, &all[0]).0.unwrap();
    perform(&mut emulator, &all[1]).0.unwrap();
    let (mut emulator, progress) = replayer(emulator.into_events().replay().strict());
    let (result, after, _) = perform(&mut emulator, &all[1]);
    assert!(result.unwrap_err().contains("access 1 of the trace was expected"));
    assert_eq!(after, all[1].1); // an error leaves the registers as given
    perform(&mut emulator, &all[0]).0.unwrap();
    assert!(progress.finish().unwrap_err().to_string().contains("access 2 never came"));
    perform(&mut emulator, &all[1]).0.unwrap();
    progress.finish().unwrap();
    assert_eq!(progress.unexpected(), 1);
}

#[test]
fn a_lenient_replay_goes_by_the_port() {
    let mut emulator = recorder(QuirkTable::none());
    for step in &steps()[..5] {
        perform(&mut emulator, step).0.unwrap();
    }
    let (mut emulator, progress) = replayer(emulator.into_events().replay().lenient());
    // In another order, with other registers: what the access changed is changed, and nothing else.
    let other = Gprs { r9: 9, rcx: 1, rsi: 1, ..gprs(0x42, 0xeeee) };
    let (result, after, _) = perform(&mut emulator, &(IoInsn::out_imm8(Width::Byte, 0xb2), other, vec![]));
    result.unwrap();
    assert_eq!(after, Gprs { r15: 0x42, rflags: other.rflags | Gprs::CF, ..other });
    assert_eq!(after.rflags & Gprs::CF, Gprs::CF);

    let before = Gprs { r9: 9, ..gprs(0x1111_2222_3333_4444, 0) };
    let (_, after, _) = perform(&mut emulator, &(IoInsn::in_imm8(Width::Byte, 0xe2), before, vec![]));
    assert_eq!(after, Gprs { rax: 0x1111_2222_3333_4412, rflags: after.rflags, ..before });
    // Another value, another port, or once more: nobody is there.
    let lost = (IoInsn::out_imm8(Width::Byte, 0xb2), gprs(0x43, 0), vec![]);
    assert_eq!(perform(&mut emulator, &lost).1.r15, 0);
    assert_eq!(perform(&mut emulator, &(IoInsn::in_imm8(Width::Word, 0xe2), gprs(0, 0), vec![])).1.rax, 0xffff);
    assert_eq!(perform(&mut emulator, &(IoInsn::in_imm8(Width::Byte, 0xe2), gprs(0, 0), vec![])).1.rax, 0xff);
    let string = (IoInsn::rep_ins(Width::Byte), gprs(0, 0xe0), vec![0; 19]);
    assert_eq!(perform(&mut emulator, &string).2, [0xff; 19]);
    assert_eq!((progress.replayed(), progress.unexpected()), (2, 4));
}

#[test]
fn a_listener_can_be_watched_from_outside() {
    // A bus that is replayed, its device shared, its emulator recorded again: the same trace.
    let mut emulator = recorder(QuirkTable::none());
    for step in &steps() {
        let _ = perform(&mut emulator, step);
    }
    let trace = emulator.into_events();
    let (bus, _) = trace.clone().replay().strict();
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).events(Trace::new()).build().unwrap();
    for step in &steps() {
        let _ = perform(&mut emulator, step);
    }
    // But for the time that it took.
    let untimed = |trace: Trace| -> Vec<_> {
        trace.records().iter().map(|record| Record { duration: None, ..record.clone() }).collect()
    };
    assert!(trace.records().iter().all(|record| record.duration.is_some()));
    assert_eq!(untimed(emulator.into_events()), untimed(trace));
}

/// What did not return when it was recorded has no answer: an error that says so, in both kinds of replay, also of a string.
#[test]
fn an_access_that_did_not_return_is_replayed_as_an_error() {
    let before = Gprs { rax: 0x5a, rcx: 2, rdx: 0xb2, ..Gprs::default() };
    let record = |insn| Record {
        insn,
        before,
        after: before,
        data: vec![],
        error: Some(RecordedError::DidNotReturn),
        duration: None,
    };
    let insns = [IoInsn::out_imm8(Width::Byte, 0xb2), IoInsn::rep_ins(Width::Word)];
    for is_strict in [true, false] {
        let replay = Trace::from_iter(insns.map(record)).replay();
        let (mut emulator, progress) = replayer(if is_strict { replay.strict() } else { replay.lenient() });
        for insn in insns {
            let (mut gprs, mut memory) = (before, [0; 4]);
            let error = match insn.is_string() {
                true => emulator.read_string(insn, &mut gprs, &mut memory).unwrap_err(),
                false => emulator.execute(insn, &mut gprs).unwrap_err(),
            };
            let Error::Device { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.downcast_ref(), Some(&ReplayError::DidNotReturn));
            assert!(error.to_string().ends_with("the recorded access did not return"), "{error}");
            assert_eq!((gprs, memory), (before, [0; 4]));
        }
        progress.finish().unwrap();
    }
}

#[test]
fn devices_are_shared_with_those_who_look_at_them() {
    let latch = Arc::new(Mutex::new(Latch::new(0xe0)));
    let mut bus = SoftwareBus::new();
    bus.attach(0xe0..=0xe3, latch.clone()).unwrap();
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).build().unwrap();
    let step = (IoInsn::rep_outs(Width::Dword), Gprs { rcx: 2, ..gprs(0, 0xe0) }, (0..8).collect());
    perform(&mut emulator, &step).0.unwrap();
    assert_eq!(latch.lock().unwrap().value(), 0x0706_0504);
}

fn any_gprs() -> impl Strategy<Value = Gprs> {
    prop::array::uniform16(any::<u64>()).prop_map(Gprs::from_words)
}

fn any_plain_insn() -> impl Strategy<Value = IoInsn> {
    (0..IoInsn::COUNT).prop_map(|index| IoInsn::in_out().nth(index).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever registers an access is recorded with, before and after, a strict replay gives them: but for the system
    /// flags, which are this machine's, and the upper half of RAX, which an IN of EAX clears.
    #[test]
    fn any_change_of_registers_is_replayed(insn in any_plain_insn(), before in any_gprs(), mut after in any_gprs()) {
        if insn.direction == ioemul::Direction::In && insn.width == Width::Dword {
            after.rax &= u64::from(u32::MAX);
        }
        prop_assume!(insn.port(&before).checked_add(3).is_some());
        let record = Record { insn, before, after, data: vec![], error: None, duration: None };
        let (mut emulator, progress) = replayer(Trace::from_iter([record]).replay().strict());
        let mut gprs = before;
        emulator.execute(insn, &mut gprs).unwrap();
        progress.finish().unwrap();
        prop_assert_eq!(gprs.rflags & Gprs::STATUS_FLAGS, after.rflags & Gprs::STATUS_FLAGS);
        prop_assert_eq!(Gprs { rflags: 0, ..gprs }, Gprs { rflags: 0, ..after });
    }

    /// And whichever single register differs, the access is refused and the message names it.
    #[test]
    fn any_other_register_is_noticed(insn in any_plain_insn(), before in any_gprs(), index in 0..15_usize, bit in 0..64) {
        prop_assume!(insn.port(&before).checked_add(3).is_some());
        let mut words = before.to_words();
        words[index] ^= 1u64 << bit;
        let mut gprs = Gprs::from_words(words);
        prop_assume!(insn.port(&gprs).checked_add(3).is_some());
        let record = Record { insn, before, after: before, data: vec![], error: None, duration: None };
        let (mut emulator, _) = replayer(Trace::from_iter([record]).replay().strict());
        let message = emulator.execute(insn, &mut gprs).unwrap_err().to_string();
        prop_assert!(message.contains(&format!("{} = {:#x}", Gprs::NAMES[index], words[index])), "{}", message);
        prop_assert_eq!(gprs.to_words(), words);
    }
}

#[test]
fn an_input_that_no_bus_can_give_is_refused() {
    let insn = IoInsn::in_imm8(Width::Dword, 0xe0);
    let after = Gprs { rax: 1 << 32, ..Gprs::default() };
    let record = Record { insn, before: Gprs::default(), after, data: vec![], error: None, duration: None };
    let (mut emulator, _) = replayer(Trace::from_iter([record]).replay().lenient());
    let message = emulator.execute(insn, &mut Gprs::default()).unwrap_err().to_string();
    assert!(message.ends_with("an IN of 4 bytes left RAX at 0x100000000"), "{message}");
}

/// All ones in EAX are an answer like any other, whether or not somebody wrote them there.
#[test]
fn all_ones_are_replayed() {
    let insn = IoInsn::in_dx(Width::Dword);
    for before in [gprs(0, 0xe0), gprs(0xffff_ffff, 0xe0), gprs(u64::MAX, 0xe0)] {
        let after = Gprs { rax: 0xffff_ffff, rbx: 1, ..before };
        let record = Record { insn, before, after, data: vec![], error: None, duration: None };
        let trace = Trace::from_iter([record]);
        for replay in [trace.clone().replay().strict(), trace.replay().lenient()] {
            let (mut emulator, progress) = replayer(replay);
            let mut gprs = before;
            emulator.execute(insn, &mut gprs).unwrap();
            assert_eq!(gprs, after);
            progress.finish().unwrap();
            assert_eq!(progress.unexpected(), 0);
        }
    }
}

/// The status flags are part of a call; the rest of RFLAGS never reaches the port. (DF shows in the order of the data.)
#[test]
fn other_status_flags_are_another_access() {
    let before = Gprs { rflags: 0x202 | Gprs::CF, ..gprs(0, 0xe0) };
    let mut plain = (IoInsn::in_dx(Width::Byte), before, vec![]);
    let mut string = (IoInsn::rep_outs(Width::Byte), Gprs { rcx: 2, ..before }, vec![1, 2]);
    for step in [&mut plain, &mut string] {
        let record =
            Record { insn: step.0, before: step.1, after: step.1, data: step.2.clone(), error: None, duration: None };
        for bit in 0..64 {
            let (mut emulator, progress) = replayer(Trace::from_iter([record.clone()]).replay().strict());
            step.1.rflags = record.before.rflags ^ 1 << bit;
            let (result, after, _) = perform(&mut emulator, step);
            if bit == 10 && step.0.is_string() {
                let message = result.unwrap_err();
                assert!(message.contains(", byte 0 = 0x01\n") && message.ends_with(", byte 0 = 0x02"), "{message}");
            } else if Gprs::STATUS_FLAGS >> bit & 1 == 0 {
                result.unwrap();
                progress.finish().unwrap();
            } else {
                let message = result.unwrap_err();
                let (expected, got) = (Gprs::CF, Gprs::CF ^ 1 << bit);
                assert!(message.contains(&format!("rflags = {expected:#x}\n")), "{message}");
                assert!(message.ends_with(&format!("rflags = {got:#x}")), "{message}");
                assert_eq!(after, step.1);
                step.1.rflags = record.before.rflags;
                perform(&mut emulator, step).0.unwrap();
                progress.finish().unwrap();
            }
        }
    }
}

/// Of several records that a lenient replay may answer from, it takes the first: whether it was whole or ended early, and
/// in whatever order they are asked for.
#[test]
fn the_first_record_that_fits_answers() {
    let insn = IoInsn::rep_outs(Width::Byte);
    let record = |rbx: u64, data: &[u8]| {
        let before = Gprs { rcx: 2, ..gprs(0, 0xe0) };
        let error = (data.len() < 2).then(|| RecordedError::Refused(format!("number {rbx}")));
        Record { insn, before, after: Gprs { rbx, ..before }, data: data.to_vec(), error, duration: None }
    };
    let records = [record(0, &[1, 1]), record(1, &[2]), record(2, &[2, 1]), record(3, &[]), record(4, &[1, 1])];
    let answer = |emulator: &mut IoEmulator, data: &[u8]| {
        let (result, after, _) = perform(emulator, &(insn, Gprs { rcx: 2, ..gprs(0, 0xe0) }, data.to_vec()));
        match result {
            Ok(()) => after.rbx.to_string(),
            Err(error) => error.split_once("access: ").unwrap().1.to_owned(),
        }
    };
    let (mut emulator, progress) = replayer(Trace::from_iter(records).replay().lenient());
    let mut answers =
        [[2, 1], [2, 1], [1, 1], [1, 1], [1, 1], [2, 1]].into_iter().map(|data| answer(&mut emulator, &data));
    let expected = ["number 1", "2", "0", "number 3", "4", "11"]; // the last finds nobody: RBX stays
    assert!(answers.by_ref().eq(expected));
    progress.finish().unwrap();
    assert_eq!((progress.replayed(), progress.unexpected()), (5, 1));
}

/// Strings that go downwards, and those that were made piece by piece, are replayed as they were recorded: from a file, to
/// the same registers and memory.
#[test]
fn strings_downwards_and_in_pieces() {
    /// Counts up on IN; refuses the seventh element.
    struct Counter(u8);
    impl PortDevice for Counter {
        fn try_access(&mut self, _: PortAccess, _: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
            self.0 += 1;
            gprs.rbx = gprs.rcx;
            if self.0 == 7 { Err("the seventh".into()) } else { Ok(0x0101_0101 * u32::from(self.0)) }
        }
    }
    const DF: u64 = 1 << 10;
    type Came = Vec<(Result<StringProgress, String>, Gprs, Vec<u8>)>;
    fn run<E: Events>(emulator: &mut IoEmulator<E>, insn: IoInsn, rflags: u64) -> Came {
        let mut gprs = Gprs { rcx: 8, rdx: 0xe0, rsi: 0x1000, rdi: 0x1000, rflags, ..Gprs::default() };
        let pieces = [9, 3, 100].into_iter().map(|len: usize| {
            let mut memory: Vec<u8> = (100..).take(len).collect();
            let result = match insn.direction {
                Direction::In => emulator.read_string_partial(insn, &mut gprs, &mut memory),
                Direction::Out => emulator.write_string_partial(insn, &mut gprs, &memory),
            };
            (result.map_err(|error| error.to_string()), gprs, memory)
        });
        pieces.collect()
    }
    for insn in [IoInsn::rep_ins(Width::Word), IoInsn::rep_outs(Width::Word), IoInsn::rep_outs(Width::Byte)] {
        for rflags in [0, DF] {
            let mut bus = SoftwareBus::new();
            bus.attach(0xe0..=0xe3, Counter(0)).unwrap();
            let builder = IoEmulator::builder().ports(PortSet::all()).bus(bus);
            let mut emulator = builder.events(Trace::new()).build().unwrap();
            let recorded = run(&mut emulator, insn, rflags);
            assert!(recorded.iter().any(|came| came.0.is_err()) && recorded.iter().any(|came| came.0.is_ok()));
            let trace = emulator.into_events();
            #[cfg(feature = "trace")]
            let trace = {
                let mut file = Vec::new();
                trace.write(&mut file).unwrap();
                Trace::read(&file[..]).unwrap()
            };
            for replay in [trace.clone().replay().strict(), trace.clone().replay().lenient()] {
                let (mut emulator, progress) = replayer(replay);
                assert_eq!(run(&mut emulator, insn, rflags), recorded, "{insn}, {rflags:#x}");
                progress.finish().unwrap();
            }
        }
    }
}
