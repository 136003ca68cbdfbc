//! Stubs in the caller's memory, at the edges: too short, too far, around the end of the address space, options and
//! payloads that do not add up.
#![cfg(feature = "std")]

mod common;

use common::slots::{QUIRKS, VA, hardenings, helpers_at, options};
use common::{files, some_forms};
use dynasm::dynasm;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use ioemul::{
    CodeSink, CodeTable, EmitError, EmitOptions, Helper, Helpers, IoInsn, Payload, Quirk, RegisterFile, StubLayout,
    Trigger, Width, emit_stub,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const FAR: u64 = 1 << 31;

/// Memory with a pattern, of which the first `available` bytes are the slot: `emit` must refuse it, naming what it needs,
/// and leave all of it as it was; with as much as it needs, it must write no byte more.
fn every_length(emit: &dyn Fn(&mut [u8]) -> Result<usize, EmitError>) -> usize {
    const PATTERN: u8 = 0xaa;
    let mut memory = vec![PATTERN; 2048];
    let needed = emit(&mut memory).unwrap();
    // Of what is long, not quite every one.
    let step = needed / 64 + 1;
    for available in (0..needed).step_by(step).chain([needed - 1]) {
        memory.fill(PATTERN);
        assert_eq!(emit(&mut memory[..available]), Err(EmitError::SlotTooSmall { needed, available }));
        assert!(memory.iter().all(|byte| *byte == PATTERN), "{available} of {needed}: something was written");
    }
    for available in [needed, needed + 1, needed + 15, memory.len()] {
        memory.fill(PATTERN);
        assert_eq!(emit(&mut memory[..available]), Ok(needed));
        assert!(memory[needed..].iter().all(|byte| *byte == PATTERN), "{available}: written past the end");
    }
    needed
}

#[test]
fn every_length_of_a_slot() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let helpers = helpers_at(VA, &options);
            every_length(&|slot| emit_stub(slot, VA + 0x1000, OUT, &helpers));
        }
        let helpers = helpers_at(VA, &EmitOptions::new().layout(layout));
        for insn in some_forms().map(|form| form.insn).chain(IoInsn::strings()) {
            every_length(&|slot| emit_stub(slot, VA + 0x1000, insn, &helpers));
        }
    }
}

#[test]
fn every_length_for_the_helpers() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let needed = every_length(&|slot| Helpers::emit(slot, VA, &options).map(|helpers| helpers.len()));
            assert!(needed <= Helpers::MAX_LEN, "the documented bound");
        }
    }
}

#[test]
fn helpers_know_what_they_are() {
    for &layout in StubLayout::ALL {
        for va in [VA, 0x1000] {
            let mut memory = [0; Helpers::MAX_LEN];
            let helpers = Helpers::emit(&mut memory, va, &EmitOptions::new().layout(layout)).unwrap();
            assert_eq!((helpers.layout(), helpers.va()), (layout, va));
            assert!(memory[helpers.len() - 1] == 0xc3 && memory[helpers.len()..].iter().all(|byte| *byte == 0));
            let names: Vec<&str> = helpers.symbols().map(|symbol| symbol.0).collect();
            let expected: &[&str] = match layout {
                StubLayout::CallRet => &["load_guest_gprs", "save_guest_gprs", "landing_pads"],
                StubLayout::Compact => &["enter_guest", "leave_guest", "landing_pads"],
                StubLayout::Rop => &["host_to_guest", "guest_to_host", "landing_pads"],
                _ => &["landing_pads"],
            };
            assert_eq!(names, expected);
            let addresses: Vec<u64> = helpers.symbols().map(|symbol| symbol.1).collect();
            assert!(addresses[0] == va && addresses.is_sorted() && addresses.len() == names.len());
        }
    }
}

#[test]
fn a_table_that_is_a_byte_too_long() {
    for &layout in StubLayout::ALL {
        for options in hardenings().flat_map(|options| QUIRKS.iter().map(move |quirks| options.quirks(quirks))) {
            let options = options.layout(layout);
            let needed = CodeTable::size(&options);
            let mut memory = vec![0xaa; needed + 64];
            for available in [0, 1, needed / 2, needed - 1] {
                let error = CodeTable::emit(&mut memory[..available], VA, &options).unwrap_err();
                assert_eq!(error, EmitError::SlotTooSmall { needed, available });
                assert!(memory.iter().all(|byte| *byte == 0xaa));
            }
            CodeTable::emit(&mut memory, VA, &options).unwrap();
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
        for options in options(layout) {
            let helpers = helpers_at(VA, &options);
            let mut slot = [0; 2048];
            let len = emit_stub(&mut slot, VA + 0x1000, OUT, &helpers).unwrap();
            // To the helpers, and to the return thunk.
            let there = branches(&slot[..len], VA + 0x1000);
            assert!(!there.is_empty());
            let displacements = || there.iter().map(|(next, target)| target.wrapping_sub(*next) as i64);
            // Moving the stub up lowers the displacements.
            let lowest = displacements().min().unwrap();
            let up = (VA + 0x1000).wrapping_add_signed(lowest + FAR as i64);
            let highest = displacements().max().unwrap();
            let down = (VA + 0x1000).wrapping_add_signed(highest - (FAR as i64 - 1));
            for (va, step, displacement) in [(up, 1, -(FAR as i64) - 1), (down, -1, FAR as i64)] {
                let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
                let reached = branches(&slot[..len], va);
                assert!(there.iter().all(|(_, target)| reached.iter().any(|branch| branch.1 == *target)));
                let mut untouched = [0xaa; 2048];
                let error = emit_stub(&mut untouched, va.wrapping_add_signed(step), OUT, &helpers).unwrap_err();
                assert_eq!(error, EmitError::HelperOutOfRange { displacement }, "{layout:?}");
                assert_eq!(untouched, [0xaa; 2048]);
            }
        }
    }
}

#[test]
fn a_return_thunk_out_of_reach() {
    for &layout in StubLayout::ALL {
        let plain = layout.stub_len();
        for (reach, fits) in [(FAR - 1, true), (FAR, false)] {
            // Seen from behind the JMP in place of the final RET, which is one byte long.
            let thunk = VA + plain as u64 - 1 + 5 + reach;
            let helpers = helpers_at(thunk - 0x1_0000, &EmitOptions::new().layout(layout).return_thunk(thunk));
            let result = emit_stub(&mut [0; 256], VA, OUT, &helpers);
            match layout {
                StubLayout::Compact => assert!(result.is_ok(), "its RET is in the helper"),
                _ if fits => assert_eq!(result, Ok(plain + 4)),
                _ => assert_eq!(result, Err(EmitError::HelperOutOfRange { displacement: FAR as i64 })),
            }
        }
        let options = EmitOptions::new().layout(layout).return_thunk(VA + 2 * FAR);
        let out_of_range = |error| matches!(error, EmitError::HelperOutOfRange { .. });
        let mut memory = vec![0; CodeTable::size(&options)];
        assert!(out_of_range(Helpers::emit(&mut memory, VA, &options).unwrap_err()), "{layout:?}");
        assert!(out_of_range(CodeTable::emit(&mut memory, VA, &options).unwrap_err()), "{layout:?}");
        assert!(memory.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn around_the_end_of_the_address_space() {
    for &layout in StubLayout::ALL {
        let options = EmitOptions::new().layout(layout);
        // A distance that wraps is still a distance: from the last page to the first.
        let helpers = helpers_at(0x100, &options);
        let va = u64::MAX - 0xfff;
        let mut slot = [0xaa; 256];
        let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
        let targets: Vec<u64> = helpers.symbols().map(|symbol| symbol.1).collect();
        for (_, target) in branches(&slot[..len], va) {
            assert!(targets.contains(&target), "{target:#x}");
        }
        // Code that would run on from the last byte to the first, or into a hole.
        let mut slot = [0xaa; 256];
        for va in [u64::MAX - len as u64 + 2, u64::MAX - 1, u64::MAX] {
            let error = emit_stub(&mut slot, va, OUT, &helpers).unwrap_err();
            assert_eq!(error, EmitError::AddressOverflow { va, len });
            assert_eq!(slot, [0xaa; 256]);
        }
        let needed = CodeTable::size(&options);
        let mut memory = vec![0xaa; needed];
        for va in [u64::MAX - needed as u64 / 2, 0x7fff_ffff_f000, 1 << 60] {
            let error = CodeTable::emit(&mut memory, va, &options).unwrap_err();
            assert_eq!(error, EmitError::AddressOverflow { va, len: needed });
        }
        assert!(memory.iter().all(|byte| *byte == 0xaa));
    }
}

/// Whatever is wrong with the options, helpers and table say so in the same words, and write nothing.
fn refuses(options: &EmitOptions<'_>, expected: EmitError) {
    let mut memory = vec![0xaa; CodeTable::size(options).max(Helpers::MAX_LEN)];
    assert_eq!(Helpers::emit(&mut memory, VA, options).unwrap_err(), expected);
    assert_eq!(CodeTable::emit(&mut memory, VA, options).unwrap_err(), expected);
    assert!(memory.iter().all(|byte| *byte == 0xaa));
}

#[test]
fn options_that_do_not_add_up() {
    for &layout in StubLayout::ALL {
        let options = EmitOptions::new().layout(layout);
        let overlapping = RegisterFile::new(files::GPRS.offsets, Some(files::GPRS.offsets[14] + 7));
        refuses(&options.registers(overlapping), EmitError::RegisterFile);
        let quirks = [Quirk::DELL_SMM; EmitOptions::MAX_QUIRKS + 1];
        refuses(&options.quirks(&quirks), EmitError::TooManyQuirks { given: 5, limit: 4 });
        for va in [1 << 63, 1 << 60, 0x0100_0000_0000_0000] {
            refuses(&options.return_thunk(va), EmitError::AddressOverflow { va, len: 1 });
        }
        // As many as are taken.
        helpers_at(VA, &options.quirks(&quirks[1..]));
    }
}

/// A quirk with this payload in place of OUT to port 0x80.
fn quirk(payload: fn(&mut Payload<'_>)) -> Quirk {
    // SAFETY: never executed.
    unsafe { Quirk::new("odd", Trigger::out(Width::Byte, 0x80), payload) }
}

#[test]
fn payloads_that_do_not_add_up() {
    let emit = |payload: fn(&mut Payload<'_>)| {
        let quirks = [quirk(payload)];
        let options = EmitOptions::new().layout(StubLayout::Compact).quirks(&quirks);
        let helpers = helpers_at(VA, &options);
        let mut slot = [0xaa; 1024];
        let error = emit_stub(&mut slot, VA, IoInsn::out_imm8(Width::Byte, 0x80), &helpers).unwrap_err();
        assert_eq!(slot, [0xaa; 1024]);
        let mut memory = vec![0xaa; CodeTable::size(&options)];
        let from_table = CodeTable::emit(&mut memory, VA, &options).unwrap_err();
        assert!(memory.iter().all(|byte| *byte == 0xaa));
        assert_eq!(from_table, error);
        // A form that the quirk does not take is none of its business.
        emit_stub(&mut slot, VA, IoInsn::in_dx(Width::Byte), &helpers).unwrap();
        error
    };
    let unbalanced = EmitError::UnbalancedPayload { quirk: "odd" };
    assert_eq!(emit(|payload| payload.pushed(8)), unbalanced);
    assert_eq!(emit(|payload| payload.popped(8)), unbalanced);
    assert_eq!(emit(|payload| (0..40).for_each(|_| payload.pushed(8))), unbalanced);
    // Parts of words.
    assert_eq!(
        emit(|payload| {
            payload.pushed(4);
            payload.popped(4);
        }),
        unbalanced
    );
    assert_eq!(
        emit(|payload| (0..9).for_each(|port| payload.io(IoInsn::in_imm8(Width::Byte, port)))),
        EmitError::TooManyAccesses { quirk: "odd" }
    );
    assert_eq!(emit(|payload| payload.io(IoInsn::rep_outs(Width::Byte))), EmitError::StringInPayload { quirk: "odd" });
    assert_eq!(emit(|payload| dynasm!(payload ; .arch x64 ; jmp >nowhere)), EmitError::Label { label: "nowhere" });
    assert_eq!(emit(|payload| dynasm!(payload ; .arch x64 ; jmp <nowhere)), EmitError::Label { label: "nowhere" });
    assert_eq!(
        emit(|payload| dynasm!(payload ; .arch x64 ; call =>Helper::Trampoline)),
        EmitError::Label { label: "trampoline" }
    );
    let too_far = |payload: &mut Payload<'_>| {
        dynasm!(payload ; .arch x64 ; start:);
        payload.extend(&[0x90; 127]);
        dynasm!(payload ; .arch x64 ; jmp BYTE <start);
    };
    assert_eq!(emit(too_far), EmitError::Label { label: "start" });
}

/// Several references to one label ahead, several labels ahead at once, and more labels than anybody needs, one after the
/// other.
#[test]
fn labels_ahead() {
    let two_at_once = quirk(|payload| {
        dynasm!(payload ; .arch x64
            ; jz BYTE >first
            ; jc >second
            ; jo BYTE >first
            ; js >second
            ; first:
            ; jz BYTE >first
            ; second:
            ; jc BYTE <first
            ; jo BYTE <second
            ; first:
            ; jz BYTE <first
        );
    });
    // Where each goes: the number of the instruction.
    check_labels(two_at_once, &[4, 5, 4, 5, 7, 4, 5, 7]);
    let one_after_the_other = quirk(|payload| {
        dynasm!(payload ; .arch x64 ; jz BYTE >a ; a: ; jz BYTE >b ; b: ; jz BYTE >c ; c: ; jz BYTE >d ; d: ; jz BYTE >e);
        dynasm!(payload ; .arch x64 ; e: ; jz BYTE >f ; f: ; jz BYTE >g ; g: ; jz BYTE >h ; h: ; jz BYTE >i ; i:);
        dynasm!(payload ; .arch x64 ; jz BYTE <i);
    });
    check_labels(one_after_the_other, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]);
}

fn check_labels(quirk: Quirk, targets: &[usize]) {
    let insn = IoInsn::out_imm8(Width::Byte, 0x80);
    for &layout in StubLayout::ALL {
        let quirks = [quirk];
        let options = EmitOptions::new().layout(layout).quirks(&quirks);
        let helpers = helpers_at(VA, &options);
        let mut slot = [0; 1024];
        let len = emit_stub(&mut slot, VA + 0x1000, insn, &helpers).unwrap();
        check_targets(&slot[..len], VA + 0x1000, targets);
        let mut memory = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
        let entry = table.resolve(insn, 0, 0).unwrap();
        check_targets(&memory[(entry - VA) as usize..], entry, targets);
        // dynasm's own assembler agrees.
        let builder = ioemul::StubTable::builder().layout(layout);
        let table = builder.quirks(ioemul::QuirkTable::from_iter([quirk])).build().unwrap();
        let stub = table.resolve(insn, &ioemul::Gprs::default());
        check_targets(stub.code(), stub.code().as_ptr() as u64, targets);
    }
}

/// The first conditional branches go to the instructions of these numbers, counted from the first of them.
fn check_targets(code: &[u8], va: u64, targets: &[usize]) {
    let all: Vec<Instruction> = Decoder::with_ip(64, code, va, DecoderOptions::NONE).iter().collect();
    let first = all.iter().position(|insn| insn.flow_control() == FlowControl::ConditionalBranch).unwrap();
    for (insn, target) in all[first..].iter().zip(targets) {
        assert_eq!(insn.flow_control(), FlowControl::ConditionalBranch);
        assert_eq!(insn.near_branch_target(), all[first + target].ip(), "{insn}");
    }
}

#[test]
fn lengths_that_a_host_can_plan_with() {
    for &layout in StubLayout::ALL {
        let mut memory = [0; Helpers::MAX_LEN];
        for file in files::ALL {
            for options in hardenings() {
                let options = options.layout(layout).registers(file.library).quirks(QUIRKS[8]);
                Helpers::emit(&mut memory, VA, &options).unwrap();
            }
        }
        let helpers = Helpers::emit(&mut memory, 0x1000, &EmitOptions::new().layout(layout)).unwrap();
        for insn in IoInsn::in_out() {
            assert_eq!(emit_stub(&mut [0; 256], 0x2000, insn, &helpers), Ok(layout.stub_len()), "{layout:?}");
        }
    }
}
