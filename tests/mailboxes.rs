//! The quirks on a bus: which accesses each makes, in which order, with which registers and flags; and the same from
//! the stubs of every layout as from a bus without machine code.
#![cfg(feature = "std")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Rng, any_gprs, cases, host};
use ioemul::{
    BuildError, DeviceError, Direction, EmitError, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, Quirk,
    QuirkTable, SoftwareBus, Step, StubLayout, StubTable, Trigger, Width,
};
use proptest::prelude::*;

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const IN: IoInsn = IoInsn::in_dx(Width::Byte);

/// What a device saw of an access.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    insn: IoInsn,
    port: u16,
    /// Of an OUT.
    value: Option<u32>,
    gprs: Gprs,
}

/// A device that answers by a function of the access's number, and writes down what it sees.
struct Model<F> {
    saw: Arc<Mutex<Vec<Seen>>>,
    answer: F,
}

impl<F: FnMut(usize, &mut Gprs) -> Result<u32, DeviceError> + Send> PortDevice for Model<F> {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        let PortAccess { insn, port, width, direction, .. } = access;
        assert_eq!((width, direction), (insn.width, insn.direction));
        let value = (direction == Direction::Out).then_some(value);
        let mut saw = self.saw.lock().unwrap();
        saw.push(Seen { insn, port, value, gprs: *gprs });
        (self.answer)(saw.len() - 1, gprs)
    }
}

/// Every layout, and none: a bus without machine code.
fn layouts() -> impl Iterator<Item = Option<StubLayout>> {
    StubLayout::ALL.iter().copied().map(Some).chain([None])
}

/// Executes an instruction where every port has the device: what came of it, what the device saw, the registers.
fn execute<F>(
    layout: Option<StubLayout>,
    quirk: Quirk,
    insn: IoInsn,
    given: Gprs,
    answer: F,
) -> (Result<(), String>, Vec<Seen>, Gprs)
where
    F: FnMut(usize, &mut Gprs) -> Result<u32, DeviceError> + Send + 'static,
{
    let saw = Arc::<Mutex<Vec<Seen>>>::default();
    let mut bus = SoftwareBus::new();
    bus.attach(0..=0xffff, Model { saw: saw.clone(), answer }).unwrap();
    let builder = IoEmulator::builder().ports(PortSet::all()).bus(bus).quirks(QuirkTable::from_iter([quirk]));
    let builder = match layout {
        Some(layout) => builder.layout(layout),
        None => builder.direct(),
    };
    let mut emulator = builder.build().unwrap();
    let (mut gprs, mut result) = (given, Ok(()));
    host::watch(|| result = emulator.execute(insn, &mut gprs));
    let saw = std::mem::take(&mut *saw.lock().unwrap());
    (result.map_err(|error| error.to_string()), saw, gprs)
}

/// Checks in every layout: at each access, by its instruction and port, the device leaves the registers that go with
/// it (and answers 0x5c to an IN), and sees those of the access before; the last ones are the guest's in the end.
fn expect(quirk: Quirk, insn: IoInsn, given: Gprs, accesses: &[(IoInsn, u16, Gprs)]) {
    const ANSWER: u8 = 0x5c;
    let (mut before, mut expected) = (given, Vec::new());
    for &(insn, port, left) in accesses {
        let value = (insn.direction == Direction::Out).then_some(u32::from(before.rax as u8));
        expected.push(Seen { insn, port, value, gprs: before });
        // Of RFLAGS, the status flags are the device's.
        let rflags = given.rflags & !Gprs::STATUS_FLAGS | left.rflags & Gprs::STATUS_FLAGS;
        let rax = if insn.direction == Direction::In { left.rax & !0xff | u64::from(ANSWER) } else { left.rax };
        before = Gprs { rax, rflags, ..left };
    }
    for layout in layouts() {
        let leave: Vec<Gprs> = accesses.iter().map(|access| access.2).collect();
        let answer = move |n: usize, gprs: &mut Gprs| {
            // One access too many is told by what was seen.
            *gprs = *leave.get(n).unwrap_or(gprs);
            Ok(ANSWER.into())
        };
        let (result, saw, gprs) = execute(layout, quirk, insn, given, answer);
        let name = quirk.name();
        assert_eq!((result, saw, gprs), (Ok(()), expected.clone(), before), "{name} {layout:?} {insn}");
    }
}

/// Random registers with these in AX or AL, and in DX.
fn with(rng: &mut Rng, (mask, rax): (u64, u64), dx: u64) -> Gprs {
    let any = rng.gprs();
    Gprs { rax: any.rax & !mask | rax, rdx: any.rdx & !0xffff | dx, ..any }
}

const fn imm8(port: u8) -> IoInsn {
    IoInsn::out_imm8(Width::Byte, port)
}

#[test]
fn dell() {
    let mut rng = Rng(1);
    for _ in 0..8 {
        let given = with(&mut rng, (0xff, 0xa3), 0xb2);
        // Through DX, and by an immediate whatever is in DX. AL and DX are as the device leaves them.
        let [first, second] = [(); 2].map(|()| rng.gprs());
        expect(Quirk::DELL_SMM, OUT, given, &[(OUT, 0xb2, first), (imm8(0x84), 0x84, second)]);
        let given = with(&mut rng, (0xff, 0xa3), 0x1234);
        expect(Quirk::DELL_SMM, imm8(0xb2), given, &[(imm8(0xb2), 0xb2, first), (imm8(0x84), 0x84, second)]);
        // Another command, another port.
        let given = with(&mut rng, (0xff, 0xa2), 0xb2);
        expect(Quirk::DELL_SMM, OUT, given, &[(OUT, 0xb2, first)]);
        let given = with(&mut rng, (0xff, 0xa3), 0xb3);
        expect(Quirk::DELL_SMM, OUT, given, &[(OUT, 0xb3, first)]);
        expect(Quirk::DELL_SMM, imm8(0xb3), given, &[(imm8(0xb3), 0xb3, first)]);
    }
}

#[test]
fn smapi() {
    let mut rng = Rng(2);
    for _ in 0..8 {
        let [first, second] = [(); 2].map(|()| rng.gprs());
        let given = with(&mut rng, (0xffff, 0x5380), 0xb2);
        expect(Quirk::THINKPAD_SMAPI, OUT, given, &[(OUT, 0xb2, first), (imm8(0x4f), 0x4f, second)]);
        // By an immediate it is none of SMAPI's.
        expect(Quirk::THINKPAD_SMAPI, imm8(0xb2), given, &[(imm8(0xb2), 0xb2, first)]);
        let given = with(&mut rng, (0xffff, 0x5280), 0xb2);
        expect(Quirk::THINKPAD_SMAPI, OUT, given, &[(OUT, 0xb2, first)]);
        // The port that the CMOS names.
        let given = with(&mut rng, (0xffff, 0x5380), 0x2f8);
        let accesses = [(OUT, 0x2f8, first), (imm8(0x4f), 0x4f, second)];
        expect(Quirk::THINKPAD_SMAPI.at_port(0x2f8), OUT, given, &accesses);
    }
}

#[test]
fn read_back() {
    let mut rng = Rng(3);
    for _ in 0..8 {
        let given = with(&mut rng, (0, 0), 0xb2);
        let first = with(&mut rng, (0, 0), 0xb2);
        let [other, second] = [(); 2].map(|()| rng.gprs());
        expect(Quirk::READ_BACK, OUT, given, &[(OUT, 0xb2, first), (IN, 0xb2, second)]);
        let elsewhere = Gprs { rdx: first.rdx ^ 0x100, ..other };
        expect(Quirk::READ_BACK, OUT, given, &[(OUT, 0xb2, elsewhere)]);
        expect(Quirk::READ_BACK, imm8(0xb2), given, &[(imm8(0xb2), 0xb2, other)]);
    }
}

/// On a bus nothing happens but in an access, so there is nothing to wait for: CF and all others come back as the
/// device left them.
#[test]
fn gsmi() {
    let mut rng = Rng(4);
    for quirk in [Quirk::GSMI_CARRY, Quirk::GSMI_SPIN] {
        for flags in 0..64_u64 {
            let spread = flags & 1 | (flags & 2) << 1 | (flags & 4) << 2 | (flags & 0x18) << 3 | (flags & 0x20) << 6;
            let given = with(&mut rng, (0xff, 0xef), 0xb2);
            let left = Gprs { rflags: spread, ..rng.gprs() };
            expect(quirk, OUT, given, &[(OUT, 0xb2, left)]);
            // And in, left alone by the device.
            let given = Gprs { rflags: given.rflags & !Gprs::STATUS_FLAGS | spread, ..given };
            expect(quirk, OUT, given, &[(OUT, 0xb2, given)]);
            let moved = Gprs { rdx: 0x4d8, ..given };
            expect(quirk.at_port(0x4d8), OUT, moved, &[(OUT, 0x4d8, left)]);
        }
    }
}

#[test]
fn proliant() {
    let mut rng = Rng(5);
    for quirk in [Quirk::PROLIANT, Quirk::PROLIANT_UNBOUNDED] {
        for _ in 0..8 {
            let given = with(&mut rng, (0x80, 0x80), 0xcd4);
            // The answer, 0x5c, is "ready".
            let first = with(&mut rng, (0, 0), 0xcd4);
            let second = rng.gprs();
            expect(quirk, OUT, given, &[(OUT, 0xcd4, first), (IN, 0xcd4, second)]);
            let elsewhere = Gprs { rdx: first.rdx ^ 1, ..first };
            expect(quirk, OUT, given, &[(OUT, 0xcd4, elsewhere)]);
            let declined = Gprs { rax: given.rax ^ 0x80, ..given };
            expect(quirk, OUT, declined, &[(OUT, 0xcd4, second)]);
        }
    }
}

/// The device sees in each read what it left in the one before, the flags too: the poll's own tests do not show.
#[test]
fn each_turn_of_the_poll() {
    for quirk in [Quirk::PROLIANT, Quirk::PROLIANT_UNBOUNDED] {
        for layout in layouts() {
            let given = with(&mut Rng(6), (0xff, 0x85), 0xcd4);
            let leave = |n: usize| with(&mut Rng(100 + n as u64), (0, 0), 0xcd4);
            let answer = |n: usize| if n < 20 { 0x80 | n as u32 } else { 0x7f };
            let (result, saw, gprs) = execute(layout, quirk, OUT, given, move |n, gprs| {
                *gprs = leave(n);
                Ok(answer(n))
            });
            let (mut before, mut expected) = (given, Vec::new());
            for n in 0..=20 {
                let (insn, value) = if n == 0 { (OUT, Some(0x85)) } else { (IN, None) };
                expected.push(Seen { insn, port: 0xcd4, value, gprs: before });
                let left = leave(n);
                let rax = if n == 0 { left.rax } else { left.rax & !0xff | u64::from(answer(n)) };
                let rflags = given.rflags & !Gprs::STATUS_FLAGS | left.rflags & Gprs::STATUS_FLAGS;
                before = Gprs { rax, rflags, ..left };
            }
            assert_eq!((result, saw, gprs), (Ok(()), expected, before), "{} {layout:?}", quirk.name());
        }
    }
}

/// Without any access, what goes into a quirk's stub comes out: waits and looks change no register and no flag.
#[test]
fn without_an_access_nothing_changes() {
    for quirk in Quirk::ALL {
        for &layout in StubLayout::ALL {
            let quirks = QuirkTable::from_iter([*quirk]);
            let table = StubTable::builder().layout(layout).quirks(quirks).elide_io(true).build().unwrap();
            let trigger = quirk.trigger();
            for seed in 0..4 {
                let (mask, value) = (trigger.mask.into(), trigger.value.into());
                let given = with(&mut Rng(seed), (mask, value), trigger.port.into());
                for insn in trigger.forms().into_iter().flatten() {
                    let stub = table.resolve(insn, &given);
                    assert_ne!(stub.code().as_ptr(), table.stub(insn).code().as_ptr());
                    let mut gprs = given;
                    // SAFETY: a stub without an access, and a register file.
                    assert_eq!(unsafe { host::call(stub.entry() as *const u8, &mut gprs) }, 0);
                    assert_eq!(gprs, given, "{} {layout:?} {insn}", quirk.name());
                }
            }
        }
    }
}

/// A device that does anything, the same for the same seed: it changes registers and flags, now and then DX, and
/// seldom refuses.
fn anything(seed: u64, port: u16) -> impl FnMut(usize, &mut Gprs) -> Result<u32, DeviceError> + Send + 'static {
    let mut rng = Rng(seed);
    move |_, gprs| {
        let dice = rng.next();
        let any = rng.gprs();
        let rdx = match dice & 7 {
            0 => any.rdx,
            1 => any.rdx & !0xffff | u64::from(port),
            2 => any.rdx & !0xffff | u64::from(port ^ 1 << (any.rcx % 16)),
            _ => gprs.rdx,
        };
        let rflags = if dice & 0x10 == 0 { any.rflags } else { gprs.rflags };
        match dice >> 8 & 3 {
            0 => *gprs = any,
            1 => (gprs.rax, gprs.r15) = (any.rax, any.r15),
            _ => {}
        }
        (gprs.rdx, gprs.rflags) = (rdx, rflags);
        if dice >> 16 & 31 == 0 {
            return Err(format!("refused: {dice:#x}").into());
        }
        // "Busy" more often than not.
        let answer = (dice >> 32) as u32;
        Ok(if dice & 0x60 == 0 { answer } else { answer & !1 | 0x80 })
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn every_way_is_the_same(given in any_gprs(), seed in any::<u64>(), elsewhere in any::<u16>(), taken in 0..8) {
        for quirk in Quirk::ALL {
            let own = quirk.trigger().port;
            for quirk in [*quirk, quirk.at_port(elsewhere), quirk.at_port(elsewhere & 0xff)] {
                let trigger = *quirk.trigger();
                for insn in [OUT, imm8(trigger.port as u8)] {
                    // Taken as a rule.
                    let (mask, value) = if taken > 0 { (trigger.mask, trigger.value) } else { (0, 0) };
                    let rax = given.rax & !u64::from(mask) | u64::from(value);
                    let given = Gprs { rax, rdx: given.rdx & !0xffff | u64::from(trigger.port), ..given };
                    let run = |layout| execute(layout, quirk, insn, given, anything(seed, trigger.port));
                    let expected = run(None);
                    let first = expected.1[0];
                    prop_assert_eq!((first.insn, first.gprs), (insn, given));
                    prop_assert!(expected.0.is_ok() || expected.2 == given);
                    let permitted: Vec<_> = if quirk.applies(insn, given.rax, given.rdx) {
                        quirk.accesses(insn).map(|access| (access.insn, access.port)).collect()
                    } else {
                        vec![(insn, insn.port(&given))]
                    };
                    prop_assert!(expected.1.iter().all(|seen| permitted.contains(&(seen.insn, seen.port))));
                    for &layout in StubLayout::ALL {
                        let found = run(Some(layout));
                        prop_assert_eq!(&found, &expected, "{} at {:#x} ({:#x}) {:?} {}", quirk.name(), trigger.port,
                            own, layout, insn);
                    }
                }
            }
        }
    }
}

/// Steps of the program's own reach no port but the trigger's through DX, whatever a guest or a device has put there.
#[test]
fn an_access_through_dx_is_made_only_while_dx_names_the_port() {
    const TWICE: &[Step] = &[Step::Access, Step::Access];
    const READ_FIRST: &[Step] = &[Step::InAl, Step::Access];
    let trigger = Trigger::out(Width::Byte, 0xb2);
    let (twice, read_first) =
        (Quirk::from_steps("twice", trigger, TWICE), Quirk::from_steps("read", trigger, READ_FIRST));
    let mut rng = Rng(9);
    for _ in 0..8 {
        let given = with(&mut rng, (0, 0), 0xb2);
        let away = Gprs { rdx: 0x60, ..rng.gprs() };
        // A device that moves DX ends what would follow; one that leaves it does not, and an immediate port stays.
        expect(twice, OUT, given, &[(OUT, 0xb2, away)]);
        expect(twice, OUT, given, &[(OUT, 0xb2, given), (OUT, 0xb2, away)]);
        expect(twice, imm8(0xb2), given, &[(imm8(0xb2), 0xb2, away), (imm8(0xb2), 0xb2, away)]);
        // A guest that has its port in the instruction, and another in DX.
        expect(read_first, imm8(0xb2), Gprs { rdx: 0x60, ..given }, &[(imm8(0xb2), 0xb2, away)]);
        expect(read_first, OUT, given, &[(IN, 0xb2, away)]);
    }
}

/// More accesses than can be checked, and more polls than can be emitted, are refused before there is an emulator, with
/// stubs and without.
#[test]
fn a_quirk_of_too_many_steps_is_refused() {
    const NINE: &[Step] = &[const { Step::OutAl { port: 0 } }; 9];
    let nine = Quirk::from_steps("nine", Trigger::out(Width::Byte, 0xb2), NINE);
    const POLLS: &[Step] = &[const { Step::Poll { mask: 0x80, limit: 1 } }; 4];
    let polls = Quirk::from_steps("four polls", Trigger::out(Width::Byte, 0xb2), POLLS);
    for layout in layouts() {
        let refusal = |quirk: Quirk| {
            let builder = IoEmulator::builder().bus(SoftwareBus::new()).quirks(QuirkTable::from_iter([quirk]));
            let builder = match layout {
                Some(layout) => builder.layout(layout),
                None => builder.direct(),
            };
            match builder.build() {
                Err(BuildError::Emit(error)) => error,
                other => panic!("{layout:?} {}: {:?}", quirk.name(), other.map(drop)),
            }
        };
        assert!(matches!(refusal(nine), EmitError::TooManyAccesses { quirk: "nine" }), "{layout:?}");
        assert!(matches!(refusal(polls), EmitError::UnbalancedPayload { quirk: "four polls" }), "{layout:?}");
    }
}

/// A device cannot hold up whoever runs the guest: not by "busy" for ever, in any bit that a poll may look at, not with
/// CF set, not with anything else.
#[test]
fn an_instruction_makes_a_bounded_number_of_calls_whatever_the_device_answers() {
    const EVER: Step = Step::Poll { mask: 0xff, limit: u32::MAX };
    const THREE: &[Step] = &[EVER, Step::PollUnbounded { mask: 0x80 }, EVER];
    const NEVER: &[Step] = &[Step::Poll { mask: 0xff, limit: 0 }, Step::Poll { mask: 0xff, limit: 1 }];
    let trigger = Trigger::out_dx(Width::Byte, 0xb2);
    let known = Quirk::ALL.iter().map(|quirk| match quirk.trigger().port {
        0xcd4 => (*quirk, 1 + 1024),
        _ => (*quirk, 2),
    });
    let own = [
        (Quirk::from_steps("three polls", trigger, THREE), 3 * 1024), // as many as there may be
        (Quirk::from_steps("one read each", trigger, NEVER), 2),
    ];
    for (quirk, limit) in known.chain(own) {
        let trigger = *quirk.trigger();
        let given = with(&mut Rng(7), (trigger.mask.into(), trigger.value.into()), trigger.port.into());
        for layout in layouts() {
            for answer in [0x80, 0x81, 0xfe, 0x7f, 0x00, 0xff] {
                for insn in trigger.forms().into_iter().flatten() {
                    let (result, saw, _) = execute(layout, quirk, insn, given, move |_, gprs| {
                        gprs.rflags |= Gprs::CF;
                        Ok(answer)
                    });
                    let (name, calls) = (quirk.name(), saw.len());
                    assert_eq!(result, Ok(()), "{name} {layout:?}");
                    assert!(calls <= limit, "{name} {layout:?} {answer:#x}: {calls} calls");
                    // The limit is reached, and so it is known to be one.
                    assert!(answer != 0x80 || limit == 2 || calls == limit, "{name} {layout:?}: {calls} calls");
                }
            }
            for seed in 0..16 {
                let insn = trigger.forms().into_iter().flatten().next().unwrap();
                let mut device = anything(seed, trigger.port);
                // A refusal is an answer as well, but ends it.
                let (_, saw, _) = execute(layout, quirk, insn, given, move |n, gprs| device(n, gprs).or(Ok(BUSY)));
                assert!(saw.len() <= limit, "{} {layout:?} {seed}: {} calls", quirk.name(), saw.len());
            }
        }
    }
}

/// What a device answers that is not ready.
const BUSY: u32 = 0x80;

/// A port where nobody is reads as 0xFF, and a refusal ends the quirk: neither is asked a second time.
#[test]
fn a_port_that_nobody_claims_or_that_refuses_ends_a_poll_at_once() {
    for quirk in Quirk::ALL {
        let trigger = *quirk.trigger();
        let given = with(&mut Rng(8), (trigger.mask.into(), trigger.value.into()), trigger.port.into());
        for layout in layouts() {
            for insn in trigger.forms().into_iter().flatten() {
                let refuse = |_: usize, _: &mut Gprs| Err("no".into());
                let (result, saw, gprs) = execute(layout, *quirk, insn, given, refuse);
                assert!(result.unwrap_err().ends_with("the device refused the access: no"));
                assert_eq!((saw.len(), gprs), (1, given), "{} {layout:?}", quirk.name());
                let all_ones = |_: usize, _: &mut Gprs| Ok(0xff);
                let (_, saw, _) = execute(layout, *quirk, insn, given, all_ones);
                assert!(saw.len() <= 2, "{} {layout:?}", quirk.name());
            }
        }
    }
}
