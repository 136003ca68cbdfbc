//! Every byte that is emitted is an instruction that some stub reaches, or INT3; and every stub, followed from its entry
//! to its end, loads, saves and restores what it should, faults included (see `common/walk.rs` for what is checked on the
//! way).
#![cfg(feature = "std")]

mod common;

use std::collections::BTreeSet;

use common::files::{self, File};
use common::slots::{QUIRKS, VA, file, options};
use common::walk::{Listing, Walked, is_io};
use common::{forms, some_forms};
use iced_x86::{Code, FlowControl, Mnemonic};
use ioemul::{
    CodeSink, CodeTable, EmitOptions, Gprs, Helpers, IoInsn, Quirk, QuirkTable, Ring, StubLayout, StubTable, Trigger,
    Width, emit_stub, stub_fixup,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const TO_PROLIANT: Gprs = Gprs { rax: 0x80, rdx: 0xcd4, ..Gprs::from_words([0; 16]) };

/// RETs that a return predictor gets wrong: two in the historic layout, the stub's and the last; none in the others.
fn check_returns(layout: StubLayout, walked: &Walked) {
    assert_eq!(walked.mispredicted > 0, layout == StubLayout::Rop, "{layout:?}: {}", walked.mispredicted);
}

/// What no stub has reached is INT3.
fn check_gaps(listing: &Listing, visited: &BTreeSet<u64>) {
    for (ip, insn) in &listing.instructions {
        assert!(visited.contains(ip) || insn.code() == Code::Int3, "{ip:#x} is never reached: {insn}");
    }
}

/// No stub touches the flags with PUSHFQ and POPFQ: they are what the access costs on some CPUs. A string stub looks at
/// DF, once.
fn check_flags(listing: &Listing, walked: &Walked, insn: IoInsn) {
    let count = |mnemonic| walked.visited.iter().filter(|ip| listing.instructions[ip].mnemonic() == mnemonic).count();
    assert_eq!(count(Mnemonic::Pushfq), usize::from(insn.is_string()), "{insn}");
    assert_eq!((count(Mnemonic::Cld), count(Mnemonic::Std)), (count(Mnemonic::Pushfq), count(Mnemonic::Pushfq)));
    if !walked.pads.iter().any(|pad| listing.instructions[pad].mnemonic() == Mnemonic::Popfq) {
        assert_eq!(count(Mnemonic::Popfq), 0, "{insn}");
    }
    assert!(!walked.flags_given && !walked.flags_lost);
}

fn io(codes: &[&[Code]]) -> BTreeSet<Vec<Code>> {
    codes.iter().map(|path| path.to_vec()).collect()
}

/// Everything in a table, for these options.
fn check_table(code: &[u8], va: u64, table: &CodeTable, options: &EmitOptions<'_>) {
    let layout = options.layout;
    let listing = Listing::new(code, va, options.return_thunk, file(options)).scrubbed(options.scrub);
    let fixup = |rip| table.fixup(rip);
    let (mut visited, mut faulting) = (BTreeSet::new(), BTreeSet::new());
    for form in forms() {
        let walked = listing.walk(table.entry(form.insn).unwrap(), fixup);
        assert_eq!(walked.io, io(&[&[form.code]]), "{layout:?} {}", form.insn);
        assert_eq!(walked.mispredicted, if layout == StubLayout::Rop { 2 } else { 0 }, "{layout:?}");
        assert_eq!(walked.pads.len(), 1, "{layout:?} {}", form.insn);
        check_flags(&listing, &walked, form.insn);
        faulting.extend(walked.io_at);
        visited.extend(walked.visited);
    }
    for insn in IoInsn::strings() {
        let walked = listing.walk(table.string_entry(insn).unwrap(), fixup);
        check_returns(layout, &walked);
        check_flags(&listing, &walked, insn);
        assert_eq!((walked.io.len(), walked.pads.len()), (1, 1));
        faulting.extend(walked.io_at);
        visited.extend(walked.visited);
    }
    for quirk in options.quirks {
        for insn in quirk.trigger().forms().into_iter().flatten() {
            let trigger = quirk.trigger();
            let entry = table.resolve(insn, trigger.value.into(), trigger.port.into()).unwrap();
            assert_ne!(Some(entry), table.entry(insn), "{}", quirk.name());
            let walked = listing.walk(entry, fixup);
            check_returns(layout, &walked);
            check_quirk(quirk, &walked, &listing, options);
            faulting.extend(walked.io_at);
            visited.extend(walked.visited);
        }
    }
    check_gaps(&listing, &visited);
    check_hardening(&listing, options);
    // What the table says can fault is what can fault.
    let faults: Vec<(u64, u64)> = table.faults().collect();
    assert!(faults.is_sorted_by(|a, b| a.0 < b.0), "ascending, each once");
    assert!(faults.iter().all(|(rip, pad)| table.fixup(*rip) == Some(*pad)));
    let listed: BTreeSet<u64> = faults.iter().map(|fault| fault.0).collect();
    let all: BTreeSet<u64> =
        listing.instructions.values().filter(|insn| is_io(insn.code())).map(|insn| insn.ip()).collect();
    assert_eq!(listed, all, "{options:?}");
    assert_eq!(faulting, all, "{options:?}");
    for (ip, insn) in &listing.instructions {
        assert!(table.fixup(*ip).is_some() || !is_io(insn.code()));
    }
}

/// What a quirk's accesses are, and its flags.
fn check_quirk(quirk: &Quirk, walked: &Walked, listing: &Listing, options: &EmitOptions<'_>) {
    let (out, input) = (Code::Out_DX_AL, Code::In_AL_DX);
    let name = quirk.name();
    let masked = options.ring == Ring::Zero && name.contains("ProLiant");
    let unbounded = options.ring == Ring::Zero && name == Quirk::PROLIANT_UNBOUNDED.name();
    assert_eq!(walked.has(listing, Mnemonic::Cli), masked, "{name}");
    let (first, rest): (BTreeSet<Code>, BTreeSet<Vec<Code>>) =
        (walked.io.iter().map(|path| path[0]).collect(), walked.io.iter().map(|path| path[1..].to_vec()).collect());
    assert_eq!(first.len(), 1);
    let expected = match name {
        _ if unbounded => io(&[&[input], &[input; 2], &[input; 3]]),
        // Not at all if DX has changed; once, or again.
        _ if name.contains("ProLiant") => io(&[&[], &[input], &[input; 2], &[input; 3]]),
        "Dell SMM" | "ThinkPad SMAPI" => io(&[&[Code::Out_imm8_AL]]),
        "read-back" => io(&[&[], &[input]]),
        _ => io(&[&[]]),
    };
    assert!(first.contains(&out) || first.contains(&Code::Out_imm8_AL), "{name}");
    assert_eq!(rest, expected, "{name} {options:?}");
    if options.registers.rflags().is_some() {
        assert_eq!((walked.flags_given, walked.flags_left), (masked, !masked), "{name} {options:?}");
        assert_eq!(walked.flags_lost, unbounded, "{name}: TEST stands between the reads");
    }
}

#[test]
fn the_cached_table() {
    for &layout in StubLayout::ALL {
        let quirks = QUIRKS[8].iter().copied().collect::<QuirkTable>();
        let table = StubTable::builder().layout(layout).quirks(quirks).endbr64(true).build().unwrap();
        // It is the table that a host emits, for the same place.
        let va = table.code().as_ptr() as u64;
        let options = EmitOptions::new().layout(layout).endbr64(true).ring(Ring::Three).quirks(QUIRKS[8]);
        let mut memory = vec![0; CodeTable::size(&options)];
        let emitted = CodeTable::emit(&mut memory, va, &options).unwrap();
        assert!(memory == table.code(), "{layout:?}");
        check_table(table.code(), va, &emitted, &options);
        for form in forms() {
            assert_eq!(emitted.entry(form.insn), Some(table.stub(form.insn).code().as_ptr() as u64));
        }
        assert_eq!(
            emitted.resolve(OUT, TO_PROLIANT.rax, TO_PROLIANT.rdx),
            Some(table.resolve(OUT, &TO_PROLIANT).code().as_ptr() as u64)
        );
    }
}

#[test]
fn an_elided_table_has_no_io() {
    for &layout in StubLayout::ALL {
        let quirks = QUIRKS[8].iter().copied().collect::<QuirkTable>();
        let table = StubTable::builder().layout(layout).quirks(quirks).elide_io(true).build().unwrap();
        let listing = Listing::new(table.code(), table.code().as_ptr() as u64, None, files::GPRS);
        assert!(!listing.instructions.values().any(|insn| is_io(insn.code())));
    }
}

#[test]
fn tables_for_every_register_file() {
    for &layout in StubLayout::ALL {
        for File { library, .. } in files::ALL {
            check_emitted(&EmitOptions::new().layout(layout).registers(*library).quirks(QUIRKS[8]));
        }
    }
}

/// In ring 0, where a quirk has interrupts off: its landing pads scrub as well.
#[test]
fn a_hardened_table() {
    for &layout in StubLayout::ALL {
        let options = EmitOptions::new().layout(layout).endbr64(true).int3(true).scrub(true);
        check_emitted(&options.return_thunk(VA - 0x4000).quirks(QUIRKS[8]).registers(files::ALL[2].library));
    }
}

/// Machine code with words of its own on the stack, interrupts off: from each of its accesses, and whatever is between
/// them, a fault gives IF back.
#[test]
fn machine_code_with_interrupts_off() {
    // SAFETY: never executed.
    let quirk = unsafe {
        Quirk::new("machine code", Trigger::out_dx(Width::Byte, 0x80), |payload| {
            payload.io(OUT);
            for _ in 0..3 {
                dynasm::dynasm!(payload ; .arch x64 ; push BYTE 1);
                payload.pushed(8);
                payload.io(IoInsn::out_imm8(Width::Byte, 0x84));
            }
            for _ in 0..3 {
                dynasm::dynasm!(payload ; .arch x64 ; lea rsp, [BYTE rsp + 8]);
                payload.popped(8);
            }
        })
    };
    let quirks = [quirk.interrupts_off()];
    for &layout in StubLayout::ALL {
        for (ring, scrub) in [(Ring::Zero, false), (Ring::Zero, true), (Ring::Three, false)] {
            let options = EmitOptions::new().layout(layout).ring(ring).scrub(scrub).quirks(&quirks);
            let mut memory = vec![0; CodeTable::size(&options)];
            let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
            let listing = Listing::new(&memory, VA, None, file(&options)).scrubbed(scrub);
            let walked = listing.walk(table.resolve(OUT, 0, 0x80).unwrap(), |rip| table.fixup(rip));
            assert_eq!(walked.has(&listing, Mnemonic::Cli), ring == Ring::Zero);
            // One for each depth; in ring 0, one of them for PUSHFQ itself.
            assert_eq!(walked.pads.len(), if ring == Ring::Zero { 5 } else { 4 }, "{layout:?} {ring:?}");
        }
    }
}

fn check_emitted(options: &EmitOptions<'_>) {
    let mut memory = vec![0; CodeTable::size(options)];
    let table = CodeTable::emit(&mut memory, VA, options).unwrap();
    check_table(&memory, VA, &table, options);
}

/// The helpers and a few stubs in memory that is INT3 otherwise, and the stubs' addresses.
fn slots(options: &EmitOptions<'_>, insns: &[IoInsn]) -> (Listing, Helpers, Vec<u64>) {
    const SLOT: usize = 0x800;
    let mut memory = vec![0xcc; 0x1000 + SLOT * insns.len()];
    let helpers = Helpers::emit(&mut memory[..0x1000], VA, options).unwrap();
    let mut entries = Vec::new();
    for (i, insn) in insns.iter().enumerate() {
        let at = 0x1000 + SLOT * i;
        let va = VA + at as u64;
        emit_stub(&mut memory[at..at + SLOT], va, *insn, &helpers).unwrap();
        entries.push(va);
    }
    let listing = Listing::new(&memory, VA, options.return_thunk, file(options)).scrubbed(options.scrub);
    (listing, helpers, entries)
}

/// A slot looks at the register file, if a quirk may take the access: both ways are walked. The options are those that the
/// helpers were emitted with: where these are hardened, no stub is plain.
#[test]
fn slots_with_every_option() {
    let forms: Vec<_> = some_forms().step_by(3).collect();
    let strings: Vec<_> = IoInsn::strings().step_by(5).collect();
    let port_b2 = IoInsn::out_imm8(Width::Byte, 0xb2);
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let insns: Vec<IoInsn> =
                forms.iter().map(|form| form.insn).chain(strings.iter().copied()).chain([OUT, port_b2]).collect();
            let (listing, helpers, entries) = slots(&options, &insns);
            let mut visited = BTreeSet::new();
            for (i, (&insn, entry)) in insns.iter().zip(entries).enumerate() {
                let walked = listing.walk(entry, |rip| stub_fixup(entry, insn, &helpers, rip));
                check_returns(layout, &walked);
                let quirks: Vec<_> =
                    options.quirks.iter().filter(|quirk| quirk.trigger().forms().contains(&Some(insn))).collect();
                if quirks.is_empty() {
                    check_flags(&listing, &walked, insn);
                    if let Some(form) = forms.get(i) {
                        assert_eq!(walked.io, io(&[&[form.code]]), "{layout:?} {insn}");
                    }
                } else {
                    let plain = if insn == OUT { Code::Out_DX_AL } else { Code::Out_imm8_AL };
                    assert!(walked.io.contains(&vec![plain]), "{layout:?} {insn}");
                }
                let masked = quirks.iter().any(|quirk| quirk.name().contains("ProLiant")) && options.ring == Ring::Zero;
                assert_eq!(walked.has(&listing, Mnemonic::Cli), masked);
                assert_eq!(listing.instructions[&entry].code() == Code::Endbr64, options.endbr64);
                visited.extend(walked.visited);
            }
            check_gaps_but_pads(&listing, &visited, &helpers);
            check_hardening(&listing, &options);
        }
    }
}

/// Of the pads, those of quirks that none of the slots has are not reached: each is the tail of the same ladder.
fn check_gaps_but_pads(listing: &Listing, visited: &BTreeSet<u64>, helpers: &Helpers) {
    let pads = helpers.symbols().find(|symbol| symbol.0 == "landing_pads").unwrap().1;
    let end = helpers.va() + helpers.len() as u64;
    let stubs_and_helpers = Listing::new(&[], 0, None, files::GPRS);
    assert!(stubs_and_helpers.instructions.is_empty());
    for (ip, insn) in &listing.instructions {
        let reached = visited.contains(ip) || insn.code() == Code::Int3;
        assert!(reached || (pads..end).contains(ip), "{ip:#x} is never reached: {insn}");
    }
}

fn check_hardening(listing: &Listing, options: &EmitOptions<'_>) {
    let (mut after, mut thunks) = (None, 0);
    for insn in listing.instructions.values() {
        if options.return_thunk.is_some() {
            assert_ne!(insn.code(), Code::Retnq, "a RET is left: {:#x}", insn.ip());
            thunks += usize::from(insn.is_jmp_near() && Some(insn.near_branch_target()) == options.return_thunk);
        }
        if let (true, Some(branch)) = (options.int3, after) {
            assert_eq!(insn.code(), Code::Int3, "speculation goes past {branch:#x}");
        }
        // `jmp short +0` is fallen through by design; other short ones are of a quirk's own, or of the pads.
        let stops = matches!(insn.flow_control(), FlowControl::Return | FlowControl::UnconditionalBranch);
        after = (stops && !insn.is_jmp_short()).then_some(insn.ip());
    }
    assert_eq!(thunks > 0, options.return_thunk.is_some());
}
