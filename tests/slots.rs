//! Stubs in the caller's memory, at the edges: too short, too far, around the end of the address space and its holes,
//! payloads that do not add up.
#![cfg(feature = "std")]

mod common;

use common::slots::{VA, helpers_at, options};
use common::some_forms;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind};
use ioemul::{
    CodeSink, CodeTable, EmitError, EmitOptions, Helper, Helpers, IoInsn, Payload, Quirk, RegisterFile, Ring,
    StubLayout, Trigger, Width, emit_stub,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const FAR: u64 = 1 << 31;
const PATTERN: u8 = 0xaa;

fn layouts() -> impl Iterator<Item = EmitOptions<'static>> {
    StubLayout::ALL.iter().map(|layout| EmitOptions::new().layout(*layout))
}

/// Memory with a pattern, of which the first `available` bytes are the slot: `emit` must refuse it, naming what it needs,
/// and leave all of it as it was; with as much as it needs, it must write no byte more.
fn every_length(emit: &dyn Fn(&mut [u8]) -> Result<usize, EmitError>) -> usize {
    let mut memory = vec![PATTERN; 2048];
    let needed = emit(&mut memory).unwrap();
    let step = 1 + needed / 300;
    for available in (0..needed).step_by(step).chain([needed - 1]) {
        memory.fill(PATTERN);
        assert_eq!(emit(&mut memory[..available]), Err(EmitError::SlotTooSmall { needed, available }));
        assert!(memory.iter().all(|byte| *byte == PATTERN), "{available} of {needed}: something was written");
    }
    for available in [needed, needed + 1, memory.len()] {
        memory.fill(PATTERN);
        assert_eq!(emit(&mut memory[..available]), Ok(needed));
        assert!(memory[needed..].iter().all(|byte| *byte == PATTERN), "{available}: written past the end");
    }
    needed
}

#[test]
fn every_length_of_a_slot() {
    for &layout in StubLayout::ALL {
        for options in options(layout).into_iter().step_by(3) {
            let helpers = helpers_at(VA, &options);
            every_length(&|slot| emit_stub(slot, VA + 0x1000, OUT, &helpers));
        }
        let helpers = helpers_at(VA, &EmitOptions::new().layout(layout));
        for form in some_forms() {
            every_length(&|slot| emit_stub(slot, VA + 0x1000, form.insn, &helpers));
        }
    }
}

#[test]
fn every_length_for_the_helpers() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let needed = every_length(&|slot| Helpers::emit(slot, VA, &options).map(|helpers| helpers.len()));
            assert!(needed <= Helpers::MAX_LEN, "the documented bound");
            let helpers = helpers_at(VA, &options);
            assert_eq!((helpers.layout(), helpers.va(), helpers.len()), (layout, VA, needed));
        }
    }
}

#[test]
fn a_table_that_is_a_byte_too_long() {
    for &layout in StubLayout::ALL {
        for options in options(layout).into_iter().step_by(4) {
            let needed = CodeTable::size(&options);
            let mut memory = vec![PATTERN; needed + 64];
            for available in [0, 1, needed / 2, needed - 1] {
                let error = CodeTable::emit(&mut memory[..available], VA, &options).unwrap_err();
                assert_eq!(error, EmitError::SlotTooSmall { needed, available });
                assert!(memory.iter().all(|byte| *byte == PATTERN));
            }
            CodeTable::emit(&mut memory, VA, &options).unwrap();
            assert!(memory[needed..].iter().all(|byte| *byte == PATTERN));
        }
    }
}

/// The branches of a stub that leave it: the address behind each, and its target.
fn branches(code: &[u8], va: u64) -> Vec<(u64, u64)> {
    let mut decoder = Decoder::with_ip(64, code, va, DecoderOptions::NONE);
    let all: Vec<Instruction> = decoder.iter().collect();
    let leaves = |insn: &&Instruction| insn.op0_kind() == OpKind::NearBranch64 && insn.len() == 5;
    all.iter().filter(leaves).map(|insn| (insn.next_ip(), insn.near_branch_target())).collect()
}

/// Both ends of ±2 GiB: the outermost displacement works, one byte further is an error that says how far it is.
#[test]
fn as_far_as_a_near_branch_reaches() {
    for options in layouts().filter(|options| options.layout != StubLayout::Inline) {
        let helpers = helpers_at(VA, &options);
        let mut slot = [0; 128];
        let len = emit_stub(&mut slot, VA + 0x1000, OUT, &helpers).unwrap();
        let to_helpers = branches(&slot[..len], VA + 0x1000);
        assert!(!to_helpers.is_empty());
        let displacements: Vec<i64> =
            to_helpers.iter().map(|(next, target)| target.wrapping_sub(*next) as i64).collect();
        let (lowest, highest) = (displacements.iter().min().unwrap(), displacements.iter().max().unwrap());
        // Moving the stub up lowers the displacements.
        let up = VA.wrapping_add(0x1000).wrapping_add_signed(lowest + FAR as i64);
        let down = VA.wrapping_add(0x1000).wrapping_add_signed(highest - (FAR as i64 - 1));
        for (va, step, displacement) in [(up, 1, -(FAR as i64) - 1), (down, -1, FAR as i64)] {
            let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
            let reached = branches(&slot[..len], va);
            assert!(to_helpers.iter().all(|(_, target)| reached.iter().any(|branch| branch.1 == *target)));
            let mut untouched = [PATTERN; 128];
            let error = emit_stub(&mut untouched, va.wrapping_add_signed(step), OUT, &helpers).unwrap_err();
            assert_eq!(error, EmitError::HelperOutOfRange { displacement }, "{:?}", options.layout);
            assert_eq!(untouched, [PATTERN; 128]);
        }
    }
}

#[test]
fn a_return_thunk_out_of_reach() {
    for options in layouts() {
        for (thunk, fits) in [(VA + FAR / 2, true), (VA + 2 * FAR, false), (1 << 62, false), (u64::MAX, false)] {
            let options = options.return_thunk(thunk);
            let mut memory = vec![PATTERN; CodeTable::size(&options)];
            let refused = |result: Result<(), EmitError>| match result {
                Ok(()) => false,
                Err(EmitError::HelperOutOfRange { .. } | EmitError::AddressOverflow { len: 1, .. }) => true,
                Err(other) => panic!("{other}"),
            };
            assert_eq!(refused(CodeTable::emit(&mut memory, VA, &options).map(drop)), !fits, "{thunk:#x}");
            assert_eq!(memory.iter().all(|byte| *byte == PATTERN), !fits);
            assert_eq!(refused(Helpers::emit(&mut memory, VA, &options).map(drop)), !fits, "{thunk:#x}");
        }
    }
}

#[test]
fn around_the_end_of_the_address_space() {
    for options in layouts() {
        // A distance that wraps is still a distance: from the last page to the first.
        let helpers = helpers_at(0x100, &options);
        let va = u64::MAX - 0xfff;
        let mut slot = [PATTERN; 256];
        let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
        let targets: Vec<u64> = helpers.symbols().map(|symbol| symbol.1).collect();
        for (_, target) in branches(&slot[..len], va) {
            assert!(target >= 0x100 && targets.contains(&target), "{target:#x}");
        }
        // Code that would run on from the last byte to the first.
        let mut slot = [PATTERN; 256];
        for va in [u64::MAX - len as u64 + 2, u64::MAX - 1, u64::MAX] {
            let error = emit_stub(&mut slot, va, OUT, &helpers).unwrap_err();
            assert_eq!(error, EmitError::AddressOverflow { va, len });
            assert_eq!(slot, [PATTERN; 256]);
        }
    }
}

/// On either side of the hole of 48 bits, and of that of 57, but never in or across one.
#[test]
fn holes_of_the_address_space() {
    for options in layouts() {
        let needed = CodeTable::size(&options);
        let mut memory = vec![PATTERN; needed];
        for edge in [0x0000_8000_0000_0000, 0x0100_0000_0000_0000, 0xff00_0000_0000_0000, 0xffff_8000_0000_0000_u64] {
            let va = edge - needed as u64 / 2;
            let error = CodeTable::emit(&mut memory, va, &options).unwrap_err();
            assert_eq!(error, EmitError::AddressOverflow { va, len: needed });
            assert!(memory.iter().all(|byte| *byte == PATTERN));
        }
        for va in [0x0100_0000_0000_0000, 1 << 63, 0xfeff_0000_0000_0000, u64::MAX - needed as u64 / 2] {
            let error = CodeTable::emit(&mut memory, va, &options).unwrap_err();
            assert_eq!(error, EmitError::AddressOverflow { va, len: needed });
        }
        for va in [0, 0x8000_0000_0000 - needed as u64, 0xffff_8000_0000_0000, 0u64.wrapping_sub(needed as u64)] {
            CodeTable::emit(&mut memory, va, &options).unwrap();
        }
    }
}

/// Emits a payload in a slot and in a table: refused in the same words, and nothing is written.
fn refused(payload: fn(&mut Payload<'_>)) -> EmitError {
    // SAFETY: never executed.
    let quirk = [unsafe { Quirk::new("odd", Trigger::out_dx(Width::Byte, 0x80), payload) }];
    let options = EmitOptions::new().layout(StubLayout::Compact).quirks(&quirk);
    let mut memory = vec![PATTERN; CodeTable::size(&options)];
    let from_table = CodeTable::emit(&mut memory, VA, &options).unwrap_err();
    assert!(memory.iter().all(|byte| *byte == PATTERN));
    let helpers = helpers_at(VA, &options);
    let mut slot = [PATTERN; 1024];
    assert_eq!(emit_stub(&mut slot, VA, OUT, &helpers), Err(from_table));
    assert_eq!(slot, [PATTERN; 1024]);
    from_table
}

#[test]
fn payloads_that_do_not_add_up() {
    let unbalanced = EmitError::UnbalancedPayload { quirk: "odd" };
    assert_eq!(refused(|payload| payload.pushed(8)), unbalanced);
    assert_eq!(refused(|payload| payload.popped(8)), unbalanced);
    assert_eq!(refused(|payload| (0..40).for_each(|_| payload.pushed(8))), unbalanced);
    let of_half_a_word = |payload: &mut Payload<'_>| {
        payload.pushed(4);
        payload.popped(4);
    };
    assert_eq!(refused(of_half_a_word), unbalanced);
    assert_eq!(
        refused(|payload| payload.io(IoInsn::rep_outs(Width::Byte))),
        EmitError::StringInPayload { quirk: "odd" }
    );
    let nine = |payload: &mut Payload<'_>| (0..9).for_each(|port| payload.io(IoInsn::out_imm8(Width::Byte, port)));
    assert_eq!(refused(nine), EmitError::TooManyAccesses { quirk: "odd" });
    let undefined = |payload: &mut Payload<'_>| dynasm::dynasm!(payload ; .arch x64 ; jmp >nowhere);
    assert_eq!(refused(undefined), EmitError::Label { label: "nowhere" });
    let undefined = |payload: &mut Payload<'_>| dynasm::dynasm!(payload ; .arch x64 ; jmp <nowhere);
    assert_eq!(refused(undefined), EmitError::Label { label: "nowhere" });
    let undefined = |payload: &mut Payload<'_>| dynasm::dynasm!(payload ; .arch x64 ; call =>Helper::Trampoline);
    assert_eq!(refused(undefined), EmitError::Label { label: "trampoline" });
    let too_far = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; start:);
        payload.extend(&[0x90; 127]);
        dynasm::dynasm!(payload ; .arch x64 ; jmp BYTE <start);
    };
    assert_eq!(refused(too_far), EmitError::Label { label: "start" });
}

/// Two references to one label, and two labels that are waited for at a time, lead where they say.
#[test]
fn labels_that_are_waited_for() {
    let payload = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64
            ; je BYTE >first
            ; jb BYTE >second
            ; jo DWORD >first
            ; first:
            ; nop
            ; second:
        );
    };
    // SAFETY: never executed.
    let quirk = [unsafe { Quirk::new("labels", Trigger::out_dx(Width::Byte, 0x80), payload) }];
    for options in layouts() {
        let options = options.quirks(&quirk);
        let mut memory = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
        let at = (table.resolve(OUT, 0, 0x80).unwrap() - VA) as usize;
        let body = [0x74, 0x08, 0x72, 0x07, 0x0f, 0x80, 0, 0, 0, 0, 0x90];
        assert!(memory[at..].windows(body.len()).any(|bytes| bytes == body), "{:?}", options.layout);
        let mut slot = [0; 1024];
        let len = emit_stub(&mut slot, VA, OUT, &helpers_at(VA, &options)).unwrap();
        assert!(slot[..len].windows(body.len()).any(|bytes| bytes == body), "{:?}", options.layout);
    }
}

#[test]
fn a_register_file_whose_words_overlap_and_quirks_that_are_too_many() {
    let file = RegisterFile::new([0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 111], None);
    let five = [Quirk::PROLIANT, Quirk::DELL_SMM, Quirk::READ_BACK, Quirk::GSMI_SPIN, Quirk::GSMI_CARRY];
    let too_many = EmitError::TooManyQuirks { given: 5, limit: EmitOptions::MAX_QUIRKS };
    for options in layouts() {
        for (options, expected) in
            [(options.registers(file), EmitError::RegisterFile), (options.quirks(&five), too_many)]
        {
            let mut memory = vec![PATTERN; 1 << 20];
            assert_eq!(Helpers::emit(&mut memory, VA, &options).unwrap_err(), expected);
            assert_eq!(CodeTable::emit(&mut memory, VA, &options).unwrap_err(), expected);
            assert!(memory.iter().all(|byte| *byte == PATTERN));
        }
    }
}

/// Every four of the quirks that are known, in both rings.
#[test]
fn quirks_in_every_combination() {
    let all = Quirk::ALL;
    for options in layouts() {
        for choice in 0..1_u32 << all.len() {
            let chosen: Vec<Quirk> =
                all.iter().enumerate().filter(|(n, _)| choice >> n & 1 != 0).map(|(_, q)| *q).collect();
            if chosen.len() > EmitOptions::MAX_QUIRKS {
                continue;
            }
            for ring in [Ring::Zero, Ring::Three] {
                let options = options.ring(ring).quirks(&chosen).endbr64(true);
                let mut memory = vec![0; 2048];
                let helpers = Helpers::emit(&mut memory, VA, &options).unwrap();
                for insn in [OUT, IoInsn::out_imm8(Width::Byte, 0xb2)] {
                    emit_stub(&mut memory, VA + 0x1000, insn, &helpers).unwrap();
                }
                if choice.count_ones() >= 3 {
                    let mut memory = vec![0; CodeTable::size(&options)];
                    let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
                    assert!(table.faults().count() >= 1542);
                }
            }
        }
    }
}

/// The stubs have the options of their helpers: what is hardened cannot be plain.
#[test]
fn a_hardened_slot_is_never_plain() {
    for options in layouts() {
        let options = options.endbr64(true).int3(true).return_thunk(VA - 0x4000).quirks(&[Quirk::PROLIANT]);
        let helpers = helpers_at(VA, &options);
        for insn in IoInsn::all() {
            let mut slot = [0; 2048];
            let len = emit_stub(&mut slot, VA + 0x1000, insn, &helpers).unwrap();
            assert!(slot.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]), "{insn}");
            let mut decoder = Decoder::with_ip(64, &slot[..len], VA + 0x1000, DecoderOptions::NONE);
            assert!(decoder.iter().all(|insn| insn.code() != Code::Retnq), "{insn}");
            assert_eq!(slot[len - 1], 0xcc, "{insn}");
        }
    }
}

#[test]
fn lengths_that_a_host_can_plan_with() {
    for options in layouts() {
        let helpers = helpers_at(0x1000, &options);
        for insn in IoInsn::in_out() {
            let len = emit_stub(&mut [0; 256], 0x2000, insn, &helpers);
            assert_eq!(len, Ok(options.layout.stub_len()), "{:?}", options.layout);
        }
    }
}
