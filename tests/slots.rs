//! Code in the caller's memory, at the edges: too short, too far, at the holes of the address space, payloads that do not
//! add up. Whatever is refused, nothing has been written.
#![cfg(feature = "std")]

mod common;

use common::slots::{VA, hardenings, helpers_at, options};
use common::{files, some_forms};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use ioemul::{
    CodeSink, CodeSize, CodeTable, EmitError, EmitOptions, Gprs, Helper, Helpers, IoInsn, Payload, PortOperand, Quirk,
    RegisterFile, Ring, Segment, StubLayout, Trigger, Width, emit_stub,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const FAR: u64 = 1 << 31;
/// With more than ±2 GiB of canonical addresses around it.
const MIDDLE: u64 = 0xffff_9000_0000_0000;
const PATTERN: u8 = 0xaa;

fn decode(code: &[u8], va: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, code, va, DecoderOptions::NONE).iter().collect()
}

/// What `emit` says of memory of this length, which it must leave as it was if it refuses.
fn refused<T>(len: usize, emit: impl FnOnce(&mut [u8]) -> Result<T, EmitError>) -> Result<T, EmitError> {
    let mut memory = vec![PATTERN; len];
    let result = emit(&mut memory);
    assert!(result.is_ok() || memory.iter().all(|byte| *byte == PATTERN), "something was written");
    result
}

/// Memory with a pattern, of which the first `available` bytes are the slot: `emit` must refuse it, naming what it needs,
/// and leave all of it as it was; with as much as it needs, it must write no byte more.
fn every_length(emit: &dyn Fn(&mut [u8]) -> Result<usize, EmitError>) -> usize {
    let needed = emit(&mut [0; 0x1000]).unwrap();
    let mut memory = vec![PATTERN; needed + 32];
    for available in 0..needed {
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
            assert!(needed <= Helpers::MAX_LEN, "the documented bound: {needed}");
        }
    }
}

#[test]
fn a_table_that_is_a_byte_too_long() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let needed = CodeTable::size(&options);
            for available in [0, 1, needed / 2, needed - 1] {
                let error = refused(available, |memory| CodeTable::emit(memory, VA, &options)).unwrap_err();
                assert_eq!(error, EmitError::SlotTooSmall { needed, available });
            }
            let mut memory = vec![PATTERN; needed + 64];
            CodeTable::emit(&mut memory, VA, &options).unwrap();
            assert!(memory[needed..].iter().all(|byte| *byte == PATTERN));
        }
    }
}

/// The branches of a stub that leave it: the address behind each, and its target.
fn branches(code: &[u8], va: u64) -> Vec<(u64, u64)> {
    let leaves = |insn: &&Instruction| {
        let target = insn.near_branch_target();
        insn.op0_kind() == OpKind::NearBranch64 && !(va..va + code.len() as u64).contains(&target)
    };
    decode(code, va).iter().filter(leaves).map(|insn| (insn.next_ip(), insn.near_branch_target())).collect()
}

/// Both ends of ±2 GiB: the outermost displacement works, one byte further is an error that says how far it is.
#[test]
fn as_far_as_a_near_branch_reaches() {
    for layout in [StubLayout::CallRet, StubLayout::Compact, StubLayout::Rop] {
        for options in options(layout).into_iter().filter(|options| options.return_thunk.is_none()) {
            let helpers = helpers_at(MIDDLE, &options);
            for insn in [OUT, IoInsn::rep_outs(Width::Byte)] {
                let (va, mut slot) = (MIDDLE + 0x1000, [0; 0x1000]);
                let len = emit_stub(&mut slot, va, insn, &helpers).unwrap();
                let to_helpers = branches(&slot[..len], va);
                let displacements = to_helpers.iter().map(|(next, target)| target.wrapping_sub(*next) as i64);
                let (lowest, highest) = (displacements.clone().min().unwrap(), displacements.max().unwrap());
                // Moving the stub up lowers the displacements.
                let up = va.wrapping_add_signed(lowest + FAR as i64);
                let down = va.wrapping_add_signed(highest - (FAR as i64 - 1));
                for (va, step, displacement) in [(up, 1, -(FAR as i64) - 1), (down, -1, FAR as i64)] {
                    let len = emit_stub(&mut slot, va, insn, &helpers).unwrap();
                    let targets = |branches: &[(u64, u64)]| branches.iter().map(|branch| branch.1).collect::<Vec<_>>();
                    assert_eq!(targets(&branches(&slot[..len], va)), targets(&to_helpers));
                    let va = va.wrapping_add_signed(step);
                    let error = refused(0x1000, |slot| emit_stub(slot, va, insn, &helpers)).unwrap_err();
                    assert_eq!(error, EmitError::HelperOutOfRange { displacement }, "{layout:?}");
                }
            }
        }
    }
}

/// A thunk that the helpers reach and a stub does not; and one that nobody reaches.
#[test]
fn a_return_thunk_out_of_reach() {
    const THUNK: u64 = MIDDLE + 0x7000_0000;
    for &layout in StubLayout::ALL {
        for quirks in common::slots::QUIRKS {
            let options = EmitOptions::new().layout(layout).return_thunk(THUNK).quirks(quirks);
            let helpers = helpers_at(MIDDLE, &options);
            let (va, mut slot) = (MIDDLE - 0x800_0000, [0; 0x1000]);
            let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
            let to_thunk = branches(&slot[..len], va).into_iter().filter(|branch| branch.1 == THUNK);
            let highest = to_thunk.map(|(next, target)| target - next).max();
            // In the compact layout the only RET is a helper's.
            assert_eq!(highest.is_none(), layout == StubLayout::Compact);
            let down = va - (FAR - 1 - highest.unwrap_or(THUNK - va));
            assert!(emit_stub(&mut slot, down, OUT, &helpers).is_ok());
            let result = refused(0x1000, |slot| emit_stub(slot, down - 1, OUT, &helpers));
            match layout {
                StubLayout::Compact => assert!(result.is_ok()),
                _ => assert_eq!(result, Err(EmitError::HelperOutOfRange { displacement: FAR as i64 })),
            }
            let options = options.return_thunk(MIDDLE + 2 * FAR);
            let error = refused(Helpers::MAX_LEN, |memory| Helpers::emit(memory, MIDDLE, &options)).unwrap_err();
            assert!(matches!(error, EmitError::HelperOutOfRange { .. }), "{layout:?}");
            let size = CodeTable::size(&options);
            let error = refused(size, |memory| CodeTable::emit(memory, MIDDLE, &options)).unwrap_err();
            assert!(matches!(error, EmitError::HelperOutOfRange { .. }), "{layout:?}");
        }
    }
}

/// A distance that wraps is still a distance: from the last page to the first.
#[test]
fn around_the_end_of_the_address_space() {
    for &layout in StubLayout::ALL {
        let helpers = helpers_at(0x100, &EmitOptions::new().layout(layout));
        let (va, mut slot) = (u64::MAX - 0xfff, [0; 256]);
        let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
        let targets: Vec<u64> = helpers.symbols().map(|symbol| symbol.1).collect();
        let branches = branches(&slot[..len], va);
        assert!(branches.iter().all(|(_, target)| targets.contains(target)));
        assert_eq!(branches.is_empty(), layout == StubLayout::Inline);
    }
}

/// One past the last address of each canonical piece, by what page tables of four and of five levels can map; the last
/// is the end of the address space.
const ENDS: [u64; 4] = [1 << 47, 1 << 56, 0xffff_8000_0000_0000, 0];
/// The first address of each piece.
const STARTS: [u64; 4] = [0, 1 << 47, 0xff << 56, 0xffff_8000_0000_0000];

/// Emits code at addresses about the ends of every piece. `emit` is given memory, the code's address, and an address
/// nearby for what it needs besides.
fn at_the_edges(len: usize, emit: impl Fn(&mut [u8], u64, u64) -> Result<(), EmitError>) {
    let check = |va: u64, near: u64, fits: bool| {
        let expected = if fits { Ok(()) } else { Err(EmitError::AddressOverflow { va, len }) };
        assert_eq!(refused(len, |memory| emit(memory, va, near)), expected, "{len} bytes at {va:#x}");
    };
    let bytes = len as u64;
    for end in ENDS {
        let near = end.wrapping_sub(0x10_0000);
        check(end.wrapping_sub(bytes), near, true);
        for over in [1, bytes / 2, bytes - 1] {
            check(end.wrapping_sub(bytes).wrapping_add(over), near, false);
        }
    }
    for start in STARTS {
        let near = start + 0x10_0000;
        check(start, near, true);
        for below in [1, bytes / 2, bytes - 1] {
            check(start.wrapping_sub(below), near, false);
        }
    }
    // All of it in the hole that is one with either number of levels.
    check(1 << 56, (1 << 56) - 0x10_0000, false);
    check((0xff << 56) - bytes, 0xff << 56, false);
}

#[test]
fn at_both_holes_and_at_the_ends() {
    for &layout in StubLayout::ALL {
        for quirks in [&[][..], common::slots::QUIRKS[8]] {
            let options = EmitOptions::new().layout(layout).quirks(quirks);
            for insn in [OUT, IoInsn::in_imm8(Width::Dword, 0x80), IoInsn::rep_ins(Width::Word)] {
                let helpers = helpers_at(VA, &options);
                let len = emit_stub(&mut [0; 0x1000], VA + 0x1000, insn, &helpers).unwrap();
                at_the_edges(len, |slot, va, near| {
                    emit_stub(slot, va, insn, &helpers_at(near, &options)).map(|written| assert_eq!(written, len))
                });
            }
            let len = helpers_at(VA, &options).len();
            at_the_edges(len, |memory, va, _| Helpers::emit(memory, va, &options).map(|_| ()));
            at_the_edges(CodeTable::size(&options), |memory, va, _| CodeTable::emit(memory, va, &options).map(|_| ()));
        }
    }
}

#[test]
fn a_return_thunk_in_a_hole() {
    for &layout in StubLayout::ALL {
        for va in [1 << 56, 1 << 63, (0xff << 56) - 1] {
            let options = EmitOptions::new().layout(layout).return_thunk(va);
            let expected = EmitError::AddressOverflow { va, len: 1 };
            assert_eq!(refused(512, |memory| Helpers::emit(memory, va, &options)).unwrap_err(), expected);
            let size = CodeTable::size(&options);
            assert_eq!(refused(size, |memory| CodeTable::emit(memory, va, &options)).unwrap_err(), expected);
        }
    }
}

#[test]
fn register_files_that_overlap() {
    let offsets = files::GPRS.offsets;
    let with = |register: usize, offset: i16| {
        let mut offsets = offsets;
        offsets[register] = offset;
        RegisterFile::new(offsets, files::GPRS.rflags)
    };
    let overlapping = [
        with(0, 8),
        with(0, 7),
        with(5, -7 + 8),
        with(14, 104 - 7),
        with(14, 120),
        with(14, 120 + 7),
        RegisterFile::new(offsets, Some(112)),
        RegisterFile::new(offsets, Some(-7)),
        RegisterFile::new([0; 15], None),
        RegisterFile::new([i16::MIN; 15], Some(i16::MAX)),
    ];
    for &layout in StubLayout::ALL {
        for registers in overlapping {
            let options = EmitOptions::new().layout(layout).registers(registers);
            let error = refused(512, |memory| Helpers::emit(memory, VA, &options)).unwrap_err();
            assert_eq!(error, EmitError::RegisterFile, "{registers:?}");
            let size = CodeTable::size(&options);
            let error = refused(size, |memory| CodeTable::emit(memory, VA, &options)).unwrap_err();
            assert_eq!(error, EmitError::RegisterFile, "{registers:?}");
        }
        let apart = EmitOptions::new().layout(layout).registers(with(0, -8));
        assert!(refused(512, |memory| Helpers::emit(memory, VA, &apart)).is_ok());
    }
}

#[test]
fn more_quirks_than_are_kept() {
    assert_eq!(EmitOptions::MAX_QUIRKS, 4);
    for &layout in StubLayout::ALL {
        for given in [5, 6, 7] {
            let options = EmitOptions::new().layout(layout).quirks(&Quirk::ALL[..given]);
            let expected = EmitError::TooManyQuirks { given, limit: 4 };
            assert_eq!(refused(512, |memory| Helpers::emit(memory, VA, &options)).unwrap_err(), expected);
            let size = CodeTable::size(&options);
            assert_eq!(refused(size, |memory| CodeTable::emit(memory, VA, &options)).unwrap_err(), expected);
        }
    }
}

type PayloadFn = fn(&mut Payload<'_>);

/// A quirk of user code, on every layout, as a slot and in a table: both say the same. Of what is emitted, that of the
/// compact slot is returned.
fn try_payload(payload: PayloadFn) -> Result<Vec<u8>, EmitError> {
    // SAFETY: never executed.
    let quirks = [unsafe { Quirk::new("odd", Trigger::out_dx(Width::Byte, 0x80), payload) }];
    let mut results = Vec::new();
    for &layout in StubLayout::ALL {
        let options = EmitOptions::new().layout(layout).quirks(&quirks);
        let helpers = helpers_at(VA, &options);
        let mut code = vec![0; 0x1000];
        let slot = refused(0x1000, |slot| {
            let len = emit_stub(slot, VA + 0x1000, OUT, &helpers)?;
            code = slot[..len].to_vec();
            Ok(())
        });
        let size = CodeTable::size(&options);
        let table = refused(size, |memory| CodeTable::emit(memory, VA, &options).map(|_| ()));
        assert_eq!(slot, table, "{layout:?}");
        results.push((layout, slot.map(|()| code)));
    }
    let first = results[0].1.as_ref().err().copied();
    assert!(results.iter().all(|(_, result)| result.as_ref().err().copied() == first));
    results.into_iter().find(|result| result.0 == StubLayout::Compact).unwrap().1
}

fn error_of(payload: PayloadFn) -> EmitError {
    try_payload(payload).unwrap_err()
}

fn accesses(payload: &mut Payload<'_>, count: usize) {
    (0..count).for_each(|port| payload.io(IoInsn::out_imm8(Width::Byte, port as u8)));
}

fn push_and_pop(payload: &mut Payload<'_>, times: usize) {
    for _ in 0..times {
        dynasm::dynasm!(payload ; .arch x64 ; push rax);
        payload.pushed(8);
        dynasm::dynasm!(payload ; .arch x64 ; pop rax);
        payload.popped(8);
    }
}

#[test]
fn payloads_that_do_not_add_up() {
    let unbalanced = EmitError::UnbalancedPayload { quirk: "odd" };
    assert_eq!(error_of(|payload| payload.pushed(8)), unbalanced);
    assert_eq!(error_of(|payload| payload.popped(8)), unbalanced);
    // More than was pushed, if only for a while.
    let below = |payload: &mut Payload<'_>| {
        payload.popped(8);
        payload.pushed(8);
    };
    assert_eq!(error_of(below), unbalanced);
    // Not of whole words, even if they cancel out.
    for odd in [
        (|payload| payload.pushed(1)) as PayloadFn,
        |payload| {
            payload.pushed(4);
            payload.popped(4);
        },
        |payload| {
            payload.pushed(7);
            payload.popped(7);
        },
        |payload| {
            payload.pushed(4);
            payload.pushed(4);
            payload.popped(8);
        },
        |payload| {
            payload.pushed(20);
            payload.popped(20);
        },
        |payload| {
            payload.pushed(255);
            payload.popped(255);
        },
    ] {
        assert_eq!(error_of(odd), unbalanced);
    }
    // As deep as can be recorded, and deeper; as many times, and once more.
    assert!(try_payload(|payload| deep(payload, 30)).is_ok());
    assert_eq!(error_of(|payload| deep(payload, 31)), unbalanced);
    assert!(try_payload(|payload| push_and_pop(payload, 12)).is_ok());
    assert_eq!(error_of(|payload| push_and_pop(payload, 13)), unbalanced);
    assert_eq!(error_of(|payload| (0..40).for_each(|_| payload.pushed(8))), unbalanced);
}

/// With interrupts off there is a word on the stack that is not the payload's: it counts, and may not be popped.
#[test]
fn payloads_that_pop_the_hosts_flags() {
    let refused = |payload: PayloadFn, ring| {
        // SAFETY: never executed.
        let quirks = [unsafe { Quirk::new("odd", Trigger::out_dx(Width::Byte, 0x80), payload) }.interrupts_off()];
        let options = EmitOptions::new().ring(ring).quirks(&quirks);
        let table = CodeTable::emit(&mut vec![0; CodeTable::size(&options)], VA, &options);
        let slot = emit_stub(&mut [0; 0x1000], VA + 0x1000, OUT, &helpers_at(VA, &options));
        assert_eq!(table.is_err(), slot.is_err());
        table.is_err_and(|error| error == EmitError::UnbalancedPayload { quirk: "odd" })
    };
    let pops_first = |payload: &mut Payload<'_>| {
        payload.popped(8);
        payload.pushed(8);
    };
    assert!(refused(pops_first, Ring::Zero) && refused(pops_first, Ring::Three));
    assert!(!refused(|payload| deep(payload, 29), Ring::Zero) && !refused(|payload| deep(payload, 30), Ring::Three));
    assert!(refused(|payload| deep(payload, 30), Ring::Zero));
    assert!(refused(|payload| payload.pushed(8), Ring::Zero) && refused(|payload| payload.popped(8), Ring::Zero));
}

fn deep(payload: &mut Payload<'_>, words: u8) {
    payload.pushed(8 * words);
    payload.popped(8 * words);
}

#[test]
fn accesses_of_a_payload() {
    assert!(try_payload(|payload| accesses(payload, 8)).is_ok());
    let too_many = EmitError::TooManyAccesses { quirk: "odd" };
    assert_eq!(error_of(|payload| accesses(payload, 9)), too_many);
    assert_eq!(error_of(|payload| accesses(payload, 40)), too_many);
    // The same one is one each time.
    assert_eq!(error_of(|payload| (0..9).for_each(|_| payload.io(IoInsn::in_imm8(Width::Byte, 1)))), too_many);
    let string = EmitError::StringInPayload { quirk: "odd" };
    assert_eq!(error_of(|payload| payload.io(IoInsn::ins(Width::Byte))), string);
    assert_eq!(error_of(|payload| payload.io(IoInsn::outs(Width::Word))), string);
    assert_eq!(error_of(|payload| payload.io(IoInsn::rep_ins(Width::Dword))), string);
    let later = |payload: &mut Payload<'_>| {
        payload.io(OUT);
        payload.io(IoInsn::rep_outs(Width::Byte));
        payload.io(OUT);
    };
    assert_eq!(error_of(later), string);
}

#[test]
fn labels_of_a_payload() {
    let label = |label| EmitError::Label { label };
    assert_eq!(error_of(|payload| dynasm::dynasm!(payload ; .arch x64 ; jmp >nowhere)), label("nowhere"));
    assert_eq!(error_of(|payload| dynasm::dynasm!(payload ; .arch x64 ; jmp BYTE >nowhere)), label("nowhere"));
    assert_eq!(error_of(|payload| dynasm::dynasm!(payload ; .arch x64 ; jmp <nowhere)), label("nowhere"));
    // Defined, but on the other side.
    assert_eq!(error_of(|payload| dynasm::dynasm!(payload ; .arch x64 ; it: ; jmp >it)), label("it"));
    assert_eq!(error_of(|payload| dynasm::dynasm!(payload ; .arch x64 ; jmp <it ; it:)), label("it"));
    assert_eq!(
        error_of(|payload| dynasm::dynasm!(payload ; .arch x64 ; call =>Helper::Trampoline)),
        label("trampoline")
    );
    // A byte does not reach.
    let back = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; start:);
        (0..127).for_each(|_| dynasm::dynasm!(payload ; .arch x64 ; nop));
        dynasm::dynasm!(payload ; .arch x64 ; jmp BYTE <start);
    };
    assert_eq!(error_of(back), label("start"));
    let ahead = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; jmp BYTE >end);
        (0..128).for_each(|_| dynasm::dynasm!(payload ; .arch x64 ; nop));
        dynasm::dynasm!(payload ; .arch x64 ; end:);
    };
    assert_eq!(error_of(ahead), label("end"));
    // Four are remembered.
    let four = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; one: ; two: ; three: ; four: ; jmp <one);
    };
    assert!(try_payload(four).is_ok());
    let five = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; one: ; two: ; three: ; four: ; five: ; jmp <one);
    };
    assert_eq!(error_of(five), label("one"));
    // One that is defined again takes no more room.
    let again = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; one: ; two: ; two: ; two: ; two: ; two: ; jmp <one);
    };
    assert!(try_payload(again).is_ok());
    // More references than can wait at once.
    let six = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; jz >l ; jc >l ; jo >l ; js >l ; jp >l ; jmp >l ; l:);
    };
    assert_eq!(error_of(six), label("l"));
}

/// Three references wait at once, two of them for one label, and each goes where it should.
#[test]
fn labels_that_are_waited_for_together() {
    let payload = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64
            ; jz >outer
            ; jc BYTE >inner
            ; jo >outer
            ; cmc
            ; inner:
            ; stc
            ; outer:
            ; clc
        );
    };
    let code = decode(&try_payload(payload).unwrap(), VA + 0x1000);
    let at = |mnemonic| code.iter().find(|insn| insn.mnemonic() == mnemonic).unwrap();
    assert_eq!(at(Mnemonic::Je).near_branch_target(), at(Mnemonic::Clc).ip());
    assert_eq!(at(Mnemonic::Jo).near_branch_target(), at(Mnemonic::Clc).ip());
    assert_eq!(at(Mnemonic::Jb).near_branch_target(), at(Mnemonic::Stc).ip());
    // The same name again, behind its first label, is another label.
    let again = |payload: &mut Payload<'_>| {
        dynasm::dynasm!(payload ; .arch x64 ; jz >it ; cmc ; it: ; stc ; jo >it ; jc <it ; it: ; clc);
    };
    let code = decode(&try_payload(again).unwrap(), VA + 0x1000);
    let at = |mnemonic| code.iter().find(|insn| insn.mnemonic() == mnemonic).unwrap();
    assert_eq!(at(Mnemonic::Je).near_branch_target(), at(Mnemonic::Stc).ip());
    assert_eq!(at(Mnemonic::Jb).near_branch_target(), at(Mnemonic::Stc).ip());
    assert_eq!(at(Mnemonic::Jo).near_branch_target(), at(Mnemonic::Clc).ip());
}

/// Every selection of so many of all quirks, in every order.
fn selections(count: usize) -> Vec<Vec<Quirk>> {
    let mut all: Vec<Vec<usize>> = vec![vec![]];
    for _ in 0..count {
        let longer = |chosen: &Vec<usize>| {
            let chosen = chosen.clone();
            let left = (0..Quirk::ALL.len()).filter(|index| !chosen.contains(index)).collect::<Vec<_>>();
            left.into_iter().map(move |index| [chosen.clone(), vec![index]].concat()).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all.into_iter().map(|chosen| chosen.into_iter().map(|index| Quirk::ALL[index]).collect()).collect()
}

#[test]
fn quirks_together() {
    let forms = Quirk::ALL.iter().flat_map(|quirk| quirk.trigger().forms()).flatten();
    let forms: Vec<IoInsn> = forms.collect();
    // Offsets that take four bytes make the longest code.
    let far = files::ALL.iter().find(|file| file.name == "scattered").unwrap().library;
    for &layout in StubLayout::ALL {
        for ring in [Ring::Zero, Ring::Three] {
            for registers in [RegisterFile::GPRS, far] {
                for quirks in (1..=3).flat_map(selections) {
                    let options = EmitOptions::new().layout(layout).ring(ring).registers(registers).quirks(&quirks);
                    let options = options.endbr64(true).int3(true).scrub(true).return_thunk(VA - 0x4000);
                    let helpers = Helpers::emit(&mut [0; Helpers::MAX_LEN], VA, &options).unwrap();
                    for insn in &forms {
                        let len = emit_stub(&mut [0; 0x1000], VA + 0x1000, *insn, &helpers);
                        assert!(len.is_ok(), "{layout:?} {insn} {len:?} {options:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn quirks_together_in_a_table() {
    let names = |quirks: &[Quirk]| quirks.iter().map(|quirk| quirk.name()).collect::<Vec<_>>();
    for &layout in StubLayout::ALL {
        for ring in [Ring::Zero, Ring::Three] {
            for quirks in (2..=3).flat_map(selections) {
                // In one order; what the order decides is who is asked first.
                if !names(&quirks).is_sorted() {
                    continue;
                }
                let options = EmitOptions::new().layout(layout).ring(ring).quirks(&quirks);
                let mut memory = vec![0; CodeTable::size(&options)];
                let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
                for quirk in &quirks {
                    let trigger = quirk.trigger();
                    let gprs = Gprs { rax: trigger.value.into(), rdx: trigger.port.into(), ..Gprs::default() };
                    for insn in trigger.forms().into_iter().flatten() {
                        assert_ne!(table.resolve(insn, gprs.rax, gprs.rdx), table.entry(insn));
                    }
                }
            }
        }
    }
}

/// A stub is hardened as its helpers are: in front, at each return, and behind each branch that is not fallen through.
fn check_hardened(code: &[u8], va: u64, options: &EmitOptions<'_>) {
    let code = decode(code, va);
    let starts: Vec<usize> = (0..code.len()).filter(|at| code[*at].code() == Code::Endbr64).collect();
    assert_eq!(starts, if options.endbr64 { vec![0] } else { vec![] }, "at the start, and nowhere else");
    let to_thunk = |insn: &Instruction| insn.is_jmp_near() && Some(insn.near_branch_target()) == options.return_thunk;
    let returns = code.iter().filter(|insn| insn.flow_control() == FlowControl::Return).count();
    let thunks = code.iter().filter(|insn| to_thunk(insn)).count();
    match options.return_thunk {
        Some(_) => assert_eq!(returns, 0),
        None => assert_eq!(thunks, 0),
    }
    // A string stub has a RET for its own CALL, in whatever layout.
    let is_string = code.iter().any(|insn| insn.is_string_instruction());
    assert_eq!(returns + thunks == 0, options.layout == StubLayout::Compact && !is_string);
    for (at, insn) in code.iter().enumerate() {
        // Short jumps are of quirks, and the control transfer behind the access.
        let stops = insn.flow_control() == FlowControl::Return || insn.is_jmp_near();
        if stops {
            let stopped = code.get(at + 1).is_some_and(|next| next.code() == Code::Int3);
            assert_eq!(stopped, options.int3, "{insn}");
        }
    }
    assert!(options.int3 || code.iter().all(|insn| insn.code() != Code::Int3));
}

#[test]
fn hardened_helpers_give_hardened_stubs() {
    let quirks = Quirk::ALL.iter().map(|quirk| vec![*quirk]);
    let lists: Vec<Vec<Quirk>> = quirks.chain([vec![], common::slots::QUIRKS[8].to_vec()]).collect();
    for &layout in StubLayout::ALL {
        for hardening in hardenings() {
            for quirks in &lists {
                for (ring, file) in [(Ring::Zero, files::ALL[0]), (Ring::Three, files::ALL[3])] {
                    let options = hardening.layout(layout).ring(ring).registers(file.library).quirks(quirks);
                    let helpers = helpers_at(VA, &options);
                    let of_quirks = quirks.iter().flat_map(|quirk| quirk.trigger().forms()).flatten();
                    let plain = some_forms().step_by(3).map(|form| form.insn);
                    for insn in plain.chain(IoInsn::strings().step_by(3)).chain(of_quirks) {
                        let (va, mut slot) = (VA + 0x1000, [0; 0x1000]);
                        let len = emit_stub(&mut slot, va, insn, &helpers).unwrap();
                        check_hardened(&slot[..len], va, &options);
                    }
                }
            }
        }
    }
}

/// The lengths that are documented, at whatever address; helpers of another kind in the same memory are forgotten.
#[test]
fn lengths_that_a_host_can_plan_with() {
    for &layout in StubLayout::ALL {
        let mut memory = [0; Helpers::MAX_LEN];
        let hardened = EmitOptions::new().layout(layout).endbr64(true).return_thunk(0).int3(true);
        let hardened = Helpers::emit(&mut memory, 0x1000, &hardened).unwrap();
        let helpers = Helpers::emit(&mut memory, 0x1000, &EmitOptions::new().layout(layout)).unwrap();
        for insn in IoInsn::in_out() {
            assert_eq!(emit_stub(&mut [0; 256], 0x2000, insn, &helpers), Ok(layout.stub_len()), "{layout:?}");
            assert!(emit_stub(&mut [0; 256], 0x2000, insn, &hardened).unwrap() > layout.stub_len(), "{layout:?}");
        }
    }
}

/// A guest's segment override would be a base of the host's (FS and GS), and 16-bit addresses there are none: a slot refuses what a
/// table has no stub for, and is as it was.
#[test]
fn forms_of_a_guest_that_no_stub_can_hold() {
    let helpers = helpers_at(MIDDLE, &EmitOptions::new());
    let mut memory = vec![0; CodeTable::size(&EmitOptions::new())];
    let table = CodeTable::emit(&mut memory, MIDDLE, &EmitOptions::new()).unwrap();
    for code in
        [&[0x64, 0x6e][..], &[0x65, 0xf3, 0x6f], &[0x2e, 0x6e], &[0x67, 0x64, 0x66, 0x6f], &[0x6c], &[0xf3, 0x6f]]
    {
        for &size in CodeSize::ALL {
            let (insn, _) = IoInsn::decode_in(size, code).unwrap();
            let is_there = IoInsn::strings().any(|form| form == insn);
            assert_eq!(table.string_entry(insn).is_some(), is_there, "{insn}");
            let mut slot = [0xaa; 64];
            match emit_stub(&mut slot, MIDDLE + 0x1000, insn, &helpers) {
                Ok(_) => assert!(is_there, "{insn}"),
                Err(error) => {
                    assert!(!is_there && slot == [0xaa; 64], "{insn}");
                    assert_eq!(error, EmitError::NoStub { insn });
                    assert_eq!(
                        error.to_string(),
                        format!(
                            "`{insn}` has no stub: translate its pointers, and run the form with 64-bit addresses and without a \
                             segment override"
                        )
                    );
                }
            }
        }
    }
    // INS writes to ES, whatever its segment is said to be.
    let PortOperand::String { rep, address, .. } = IoInsn::rep_ins(Width::Word).operand else { unreachable!() };
    let operand = PortOperand::String { rep, address, segment: Segment::Gs };
    let insn = IoInsn { operand, ..IoInsn::rep_ins(Width::Word) };
    assert_eq!(table.string_entry(insn), table.string_entry(IoInsn::rep_ins(Width::Word)));
}
