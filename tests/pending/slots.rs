//! Stubs in the caller's memory, at the edges: too short, too far, around the end of the address space, payloads that do
//! not add up.
#![cfg(feature = "std")]

mod common;

use common::slots::{VA, helpers_at, options};
use common::some_forms;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};
use ioemul::{
    CodeSink, CodeTable, EmitError, Helper, Helpers, IoInsn, Payload, Quirk, Ring, SlotOptions, StubLayout, Width,
    emit_stub, emit_stub_with,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const FAR: u64 = 1 << 31;

/// Memory with a pattern, of which the first `available` bytes are the slot: `emit` must refuse it, naming what it needs,
/// and leave all of it as it was; with as much as it needs, it must write no byte more.
fn every_length(emit: &dyn Fn(&mut [u8]) -> Result<usize, EmitError>) -> usize {
    const PATTERN: u8 = 0xaa;
    let mut memory = vec![PATTERN; 512];
    let needed = emit(&mut memory).unwrap();
    for available in 0..needed {
        memory.fill(PATTERN);
        assert_eq!(emit(&mut memory[..available]), Err(EmitError::SlotTooSmall { needed, available }));
        assert!(memory.iter().all(|byte| *byte == PATTERN), "{available} of {needed}: something was written");
    }
    for available in needed..memory.len() {
        memory.fill(PATTERN);
        assert_eq!(emit(&mut memory[..available]), Ok(needed));
        assert!(memory[needed..].iter().all(|byte| *byte == PATTERN), "{available}: written past the end");
    }
    needed
}

#[test]
fn every_length_of_a_slot() {
    for layout in StubLayout::ALL.iter().copied() {
        for options in options() {
            let helpers = helpers_at(VA, layout, &options);
            every_length(&|slot| emit_stub_with(slot, VA + 0x1000, OUT, &helpers, &options));
        }
        let helpers = helpers_at(VA, layout, &SlotOptions::default());
        for form in some_forms() {
            every_length(&|slot| emit_stub(slot, VA + 0x1000, form.insn, &helpers));
        }
    }
}

#[test]
fn every_length_for_the_helpers() {
    for layout in StubLayout::ALL.iter().copied() {
        for options in options() {
            let needed =
                every_length(&|slot| Helpers::emit_with(slot, VA, layout, &options).map(|helpers| helpers.len()));
            assert!(needed <= 256, "the documented bound");
        }
    }
}

#[test]
fn a_table_that_is_a_byte_too_long() {
    for layout in StubLayout::ALL.iter().copied() {
        for options in options() {
            let needed = CodeTable::size(layout, &options);
            let mut memory = vec![0xaa; needed + 64];
            for available in [0, 1, needed / 2, needed - 1] {
                let error = CodeTable::emit(&mut memory[..available], VA, layout, &options).unwrap_err();
                assert_eq!(error, EmitError::SlotTooSmall { needed, available });
                assert!(memory.iter().all(|byte| *byte == 0xaa));
            }
            CodeTable::emit(&mut memory, VA, layout, &options).unwrap();
            assert!(memory[needed..].iter().all(|byte| *byte == 0xaa));
        }
    }
}

/// The branches of a stub that leave it: the address behind each, and its target.
fn branches(code: &[u8], va: u64) -> Vec<(u64, u64)> {
    let mut decoder = Decoder::with_ip(64, code, va, DecoderOptions::NONE);
    let near = |insn: &Instruction| matches!(insn.op0_kind(), OpKind::NearBranch64);
    let all: Vec<Instruction> = decoder.iter().collect();
    let leaves = |insn: &&Instruction| near(insn) && insn.len() == 5;
    all.iter().filter(leaves).map(|insn| (insn.next_ip(), insn.near_branch_target())).collect()
}

/// Both ends of ±2 GiB: the outermost displacement works, one byte further is an error that says how far it is.
#[test]
fn as_far_as_a_near_branch_reaches() {
    for layout in [StubLayout::CallRet, StubLayout::Compact, StubLayout::Rop] {
        for options in options() {
            // The thunk stays close to the stub: it is the helpers that are moved away here.
            let options_at =
                |va: u64| SlotOptions { return_thunk: options.return_thunk.map(|_| va + 0x100), ..options };
            let emit = |slot: &mut [u8], helpers_va: u64, va| {
                let helpers = helpers_at(helpers_va, layout, &options_at(helpers_va));
                emit_stub_with(slot, va, OUT, &helpers, &options_at(va))
            };
            let mut slot = [0; 128];
            let helpers_va = VA;
            let len = emit(&mut slot, helpers_va, VA + 0x1000).unwrap();
            let thunk = options_at(VA + 0x1000).return_thunk;
            let to_helpers: Vec<(u64, u64)> =
                branches(&slot[..len], VA + 0x1000).into_iter().filter(|branch| Some(branch.1) != thunk).collect();
            assert!(!to_helpers.is_empty());
            let displacements: Vec<i64> =
                to_helpers.iter().map(|(next, target)| target.wrapping_sub(*next) as i64).collect();
            let (lowest, highest) = (displacements.iter().min().unwrap(), displacements.iter().max().unwrap());
            // Moving the stub up lowers the displacements.
            let up = VA.wrapping_add(0x1000).wrapping_add_signed(lowest + FAR as i64);
            let down = VA.wrapping_add(0x1000).wrapping_add_signed(highest - (FAR as i64 - 1));
            for (va, step, displacement) in [(up, 1, -(FAR as i64) - 1), (down, -1, FAR as i64)] {
                let len = emit(&mut slot, helpers_va, va).unwrap();
                let reached = branches(&slot[..len], va);
                assert!(to_helpers.iter().all(|(_, target)| reached.iter().any(|branch| branch.1 == *target)));
                let mut untouched = [0xaa; 128];
                let error = emit(&mut untouched, helpers_va, va.wrapping_add_signed(step)).unwrap_err();
                assert_eq!(error, EmitError::HelperOutOfRange { displacement }, "{layout:?}");
                assert_eq!(untouched, [0xaa; 128]);
            }
        }
    }
}

#[test]
fn a_return_thunk_out_of_reach() {
    for layout in StubLayout::ALL.iter().copied() {
        let helpers = helpers_at(VA, layout, &SlotOptions::default());
        let plain = emit_stub(&mut [0; 256], VA, OUT, &helpers).unwrap() as u64;
        for (thunk, fits) in [(FAR - 1, true), (FAR, false)] {
            // Seen from behind the JMP in place of the final RET, which is one byte long.
            let thunk = VA + plain - 1 + 5 + thunk;
            let options = SlotOptions { return_thunk: Some(thunk), ..SlotOptions::default() };
            let result = emit_stub_with(&mut [0; 256], VA, OUT, &helpers, &options);
            match layout {
                StubLayout::Compact => assert!(result.is_ok(), "its RET is in the helper"),
                _ if fits => assert_eq!(result, Ok(plain as usize + 4)),
                _ => assert_eq!(result, Err(EmitError::HelperOutOfRange { displacement: FAR as i64 })),
            }
        }
        let options = SlotOptions { return_thunk: Some(VA + 2 * FAR), ..SlotOptions::default() };
        let needs_thunk = layout != StubLayout::Inline;
        assert_eq!(Helpers::emit_with(&mut [0; 256], VA, layout, &options).is_err(), needs_thunk, "{layout:?}");
        let mut memory = vec![0; CodeTable::size(layout, &options)];
        assert!(matches!(CodeTable::emit(&mut memory, VA, layout, &options), Err(EmitError::HelperOutOfRange { .. })));
        assert!(memory.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn around_the_end_of_the_address_space() {
    for layout in StubLayout::ALL.iter().copied() {
        let options = SlotOptions::default();
        // A distance that wraps is still a distance: from the last page to the first.
        let helpers = helpers_at(0x100, layout, &options);
        let va = u64::MAX - 0xfff;
        let mut slot = [0xaa; 256];
        let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
        let targets: Vec<u64> = helpers.symbols().map(|symbol| symbol.1).collect();
        for (_, target) in branches(&slot[..len], va) {
            assert!(target >= 0x100 && (layout == StubLayout::Inline || targets.contains(&target)), "{target:#x}");
        }
        // Code that would run on from the last byte to the first.
        let mut slot = [0xaa; 256];
        for va in [u64::MAX - len as u64 + 2, u64::MAX - 1, u64::MAX] {
            let error = emit_stub(&mut slot, va, OUT, &helpers).unwrap_err();
            assert_eq!(error, EmitError::AddressOverflow { va, len });
            assert_eq!(slot, [0xaa; 256]);
        }
        let needed = CodeTable::size(layout, &options);
        let va = u64::MAX - needed as u64 / 2;
        let mut memory = vec![0xaa; needed];
        let error = CodeTable::emit(&mut memory, va, layout, &options).unwrap_err();
        assert_eq!(error, EmitError::AddressOverflow { va, len: needed });
        assert!(memory.iter().all(|byte| *byte == 0xaa));
    }
}

#[test]
fn payloads_that_do_not_add_up() {
    let emit = |payload: fn(&mut Payload<'_>, Ring)| {
        // SAFETY: never executed.
        let quirk = unsafe { Quirk::new("odd", |_, _| true, payload) };
        let options = SlotOptions { quirk: Some(quirk), ..SlotOptions::default() };
        let helpers = helpers_at(VA, StubLayout::Compact, &options);
        let mut slot = [0xaa; 128];
        let error = emit_stub_with(&mut slot, VA, OUT, &helpers, &options).unwrap_err();
        assert_eq!(slot, [0xaa; 128]);
        let mut memory = vec![0xaa; CodeTable::size(StubLayout::Compact, &options)];
        let from_table = CodeTable::emit(&mut memory, VA, StubLayout::Compact, &options).unwrap_err();
        assert!(memory.iter().all(|byte| *byte == 0xaa));
        assert_eq!(from_table, error);
        error
    };
    let unbalanced = EmitError::UnbalancedPayload { quirk: "odd" };
    assert_eq!(emit(|payload, _| payload.pushed(8)), unbalanced);
    assert_eq!(emit(|payload, _| payload.popped(8)), unbalanced);
    assert_eq!(emit(|payload, _| (0..40).for_each(|_| payload.pushed(8))), unbalanced);
    let undefined = |payload: &mut Payload<'_>, _| dynasm::dynasm!(payload ; .arch x64 ; jmp >nowhere);
    assert_eq!(emit(undefined), EmitError::Label { label: "nowhere" });
    let undefined = |payload: &mut Payload<'_>, _| dynasm::dynasm!(payload ; .arch x64 ; jmp <nowhere);
    assert_eq!(emit(undefined), EmitError::Label { label: "nowhere" });
    let undefined = |payload: &mut Payload<'_>, _| dynasm::dynasm!(payload ; .arch x64 ; call =>Helper::Trampoline);
    assert_eq!(emit(undefined), EmitError::Label { label: "trampoline" });
    let too_far = |payload: &mut Payload<'_>, _| {
        dynasm::dynasm!(payload ; .arch x64 ; start:);
        payload.extend(&[0x90; 127]);
        dynasm::dynasm!(payload ; .arch x64 ; jmp BYTE <start);
    };
    assert_eq!(emit(too_far), EmitError::Label { label: "start" });
}

#[test]
fn lengths_that_a_host_can_plan_with() {
    let hardened = SlotOptions { endbr64: true, return_thunk: Some(0), int3: true, ..SlotOptions::default() };
    for layout in StubLayout::ALL.iter().copied() {
        let mut memory = [0; Helpers::MAX_LEN];
        Helpers::emit_with(&mut memory, 0x1000, layout, &hardened).unwrap();
        let helpers = Helpers::emit(&mut memory, 0x1000, layout).unwrap();
        for insn in IoInsn::in_out() {
            assert_eq!(emit_stub(&mut [0; 200], 0x2000, insn, &helpers), Ok(layout.stub_len()), "{layout:?}");
        }
    }
}
