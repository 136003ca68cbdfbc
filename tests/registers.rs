//! Random registers through every form in every layout on the bus: the device sees the guest's, the guest gets what the
//! device wrote and what IN merges, and the host notices nothing.
#![cfg(feature = "std")]

mod common;

use std::sync::{Arc, Mutex};

use common::{any_gprs, cases, forms, host};
use ioemul::{
    Direction, Error, Gprs, IoEmulator, PortAccess, PortDevice, PortOperand, PortSet, SoftwareBus, StubLayout,
    StubTable, Width,
};
use proptest::prelude::*;

/// What the device model is to do, and what it saw.
#[derive(Clone, Default)]
struct Script {
    /// The registers that it leaves, and its answer to an IN.
    leave: Gprs,
    answer: u32,
    /// The access, the value of an OUT, and the registers.
    saw: Option<(PortAccess, Option<u32>, Gprs)>,
}

struct Scripted(Arc<Mutex<Script>>);

impl PortDevice for Scripted {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        let mut script = self.0.lock().unwrap();
        script.saw = Some((access, None, *gprs));
        *gprs = script.leave;
        script.answer
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        let mut script = self.0.lock().unwrap();
        script.saw = Some((access, Some(value), *gprs));
        *gprs = script.leave;
    }
}

fn emulators() -> Vec<(StubLayout, IoEmulator, Arc<Mutex<Script>>)> {
    let emulator = |layout| {
        let script = Arc::new(Mutex::new(Script::default()));
        let mut bus = SoftwareBus::new();
        bus.attach(0..=0xffff, Scripted(script.clone())).unwrap();
        (layout, IoEmulator::builder().layout(layout).ports(PortSet::all()).bus(bus).build().unwrap(), script)
    };
    StubLayout::ALL.iter().copied().map(emulator).collect()
}

/// AL, AX or EAX of an OUT.
fn out_value(width: Width, rax: u64) -> u32 {
    match width {
        Width::Byte => u32::from(rax as u8),
        Width::Word => u32::from(rax as u16),
        _ => rax as u32,
    }
}

/// RAX after an IN: AL and AX leave the rest of RAX alone, EAX is zero-extended.
fn merged(width: Width, rax: u64, input: u32) -> u64 {
    let mut bytes = rax.to_le_bytes();
    match width {
        Width::Byte => bytes[0] = input as u8,
        Width::Word => bytes[..2].copy_from_slice(&(input as u16).to_le_bytes()),
        _ => bytes = u64::from(input).to_le_bytes(),
    }
    u64::from_le_bytes(bytes)
}

/// CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn every_form_in_every_layout(given in any_gprs(), leave in any_gprs(), answer in any::<u32>()) {
        for (layout, mut emulator, script) in emulators() {
            *script.lock().unwrap() = Script { leave, answer, saw: None };
            for form in forms() {
                let insn = form.insn;
                let port = match insn.operand {
                    PortOperand::Imm8(port) => u16::from(port),
                    _ => given.rdx as u16,
                };
                let mut gprs = given;
                let mut result = Ok(());
                host::watch(|| result = emulator.execute(insn, &mut gprs));
                let saw = script.lock().unwrap().saw.take();
                if usize::from(port) + usize::from(insn.width.bytes()) > 0x1_0000 {
                    let denied = matches!(result, Err(Error::PortDenied { .. }));
                    prop_assert!(denied && saw.is_none() && gprs == given, "{layout:?} {insn}: {result:?}");
                    continue;
                }
                prop_assert!(result.is_ok(), "{result:?}");
                let (access, value, seen) = saw.unwrap();
                let is_out = insn.direction == Direction::Out;
                prop_assert_eq!(access, PortAccess { port, width: insn.width, direction: insn.direction, insn });
                prop_assert_eq!(value, is_out.then(|| out_value(insn.width, given.rax)));
                prop_assert_eq!(seen, given, "{:?} {}: at the device", layout, insn);
                let rax = if is_out { leave.rax } else { merged(insn.width, leave.rax, answer) };
                // The status flags are the device's, the other bits come back as they were given.
                let rflags = given.rflags & !STATUS | leave.rflags & STATUS;
                prop_assert_eq!(gprs, Gprs { rax, rflags, ..leave }, "{:?} {}: afterwards", layout, insn);
            }
        }
    }

    /// With a no-op in place of the access, what goes in comes out, every bit of RFLAGS with it.
    #[test]
    fn loads_and_saves_are_inverse(given in any_gprs()) {
        for layout in StubLayout::ALL.iter().copied() {
            let table = StubTable::builder().layout(layout).elide_io(true).build().unwrap();
            for form in forms() {
                let mut gprs = given;
                // SAFETY: a stub of this table, which makes no access, and a register file.
                let rax = unsafe { host::call(table.stub(form.insn).code().as_ptr(), &mut gprs) };
                prop_assert_eq!(rax, 0, "no fault");
                prop_assert_eq!(gprs, given, "{:?} {}", layout, form.insn);
            }
        }
    }

    /// All 64 combinations of the status flags, in and out; the harness looks that the host keeps its own.
    #[test]
    fn all_combinations_of_status_flags(others in any::<u64>(), left in any::<u64>()) {
        let spread = |flags: u64| {
            flags & 1 | (flags & 2) << 1 | (flags & 4) << 2 | (flags & 0x18) << 3 | (flags & 0x20) << 6
        };
        for (_, mut emulator, script) in emulators() {
            for flags in 0..64_u64 {
                // Each comes in with each of its neighbours going out, and its opposite.
                for out in [flags, !flags & 63, flags ^ 1, (flags + 1) & 63] {
                    let (given, leave) = (others & !STATUS | spread(flags), left & !STATUS | spread(out));
                    *script.lock().unwrap() =
                        Script { leave: Gprs { rflags: leave, ..Gprs::default() }, answer: 0, saw: None };
                    let mut gprs = Gprs { rflags: given, ..Gprs::default() };
                    host::watch(|| emulator.execute(ioemul::IoInsn::out_dx(Width::Byte), &mut gprs).unwrap());
                    prop_assert_eq!(script.lock().unwrap().saw.unwrap().2.rflags, given);
                    prop_assert_eq!(gprs.rflags, others & !STATUS | spread(out));
                }
            }
        }
    }
}
