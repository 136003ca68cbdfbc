//! Every byte that is emitted is an instruction that some stub reaches, or INT3; and every stub, followed from its entry
//! to its end, loads, saves and restores what it should (see `common/walk.rs` for what is checked on the way).
#![cfg(feature = "std")]

mod common;

use std::collections::BTreeSet;

use common::slots::{VA, options};
use common::walk::{Listing, Walked};
use common::{forms, some_forms};
use iced_x86::{Code, FlowControl};
use ioemul::{
    CodeTable, Gprs, Helpers, IoInsn, QuirkTable, Ring, SlotOptions, StubLayout, StubTable, Width, emit_stub_with,
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

#[test]
fn the_cached_table() {
    for layout in StubLayout::ALL.iter().copied() {
        let quirks = QuirkTable::builtin();
        let table = StubTable::builder().layout(layout).quirks(quirks).endbr64(true).build().unwrap();
        let listing = Listing::new(table.code(), table.code().as_ptr() as u64, None);
        let mut visited = BTreeSet::new();
        for form in forms() {
            let walked = listing.walk(table.stub(form.insn).as_ptr() as u64);
            assert_eq!(walked.io, [form.code], "{layout:?} {}", form.insn);
            assert_eq!(walked.mispredicted, if layout == StubLayout::Rop { 2 } else { 0 }, "{layout:?}");
            visited.extend(walked.visited);
        }
        for insn in IoInsn::strings() {
            let walked = listing.walk(table.stub(insn).as_ptr() as u64);
            check_returns(layout, &walked);
            visited.extend(walked.visited);
        }
        let quirk = table.resolve(OUT, &TO_PROLIANT);
        let walked = listing.walk(quirk.as_ptr() as u64);
        assert_eq!(walked.io[..2], [Code::Out_DX_AL, Code::In_AL_DX]);
        check_returns(layout, &walked);
        visited.extend(walked.visited);
        check_gaps(&listing, &visited);
    }
}

#[test]
fn an_elided_table_has_no_io() {
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::builder().layout(layout).elide_io(true).build().unwrap();
        let listing = Listing::new(table.code(), table.code().as_ptr() as u64, None);
        assert!(!listing.instructions.values().any(|insn| common::walk::is_io(insn.code())));
    }
}

/// The helpers and a few stubs in memory that is INT3 otherwise, and the stubs' addresses.
fn slots(layout: StubLayout, options: &SlotOptions, insns: &[IoInsn]) -> (Listing, Vec<u64>) {
    let mut memory = vec![0xcc; 0x1000 + 0x200 * insns.len()];
    let helpers = Helpers::emit_with(&mut memory[..0x1000], VA, layout, options).unwrap();
    let mut entries = Vec::new();
    for (i, insn) in insns.iter().enumerate() {
        let at = 0x1000 + 0x200 * i;
        let va = VA + at as u64;
        emit_stub_with(&mut memory[at..at + 0x200], va, *insn, &helpers, options).unwrap();
        entries.push(va);
    }
    (Listing::new(&memory, VA, options.return_thunk), entries)
}

#[test]
fn slots_with_every_option() {
    let (forms, strings): (Vec<_>, Vec<_>) = (some_forms().collect(), IoInsn::strings().collect());
    for layout in StubLayout::ALL.iter().copied() {
        for options in options() {
            let insns: Vec<IoInsn> = forms.iter().map(|form| form.insn).chain(strings.iter().copied()).collect();
            let (listing, entries) = slots(layout, &options, &insns);
            let mut visited = BTreeSet::new();
            for (i, entry) in entries.into_iter().enumerate() {
                let walked = listing.walk(entry);
                check_returns(layout, &walked);
                match (options.quirk, forms.get(i)) {
                    (Some(_), _) => assert_eq!(walked.io[..2], [Code::Out_DX_AL, Code::In_AL_DX]),
                    (None, Some(form)) => assert_eq!(walked.io, [form.code], "{layout:?} {}", form.insn),
                    (None, None) => assert!(!walked.io.is_empty()),
                }
                let has = |code| walked.visited.iter().any(|ip| listing.instructions[ip].code() == code);
                assert_eq!(has(Code::Cli), options.quirk.is_some() && options.ring == Ring::Zero);
                assert_eq!(listing.instructions[&entry].code() == Code::Endbr64, options.endbr64);
                visited.extend(walked.visited);
            }
            check_gaps(&listing, &visited);
            check_hardening(&listing, &options);
        }
    }
}

fn check_hardening(listing: &Listing, options: &SlotOptions) {
    let mut after = None;
    for insn in listing.instructions.values() {
        if options.return_thunk.is_some() {
            assert_ne!(insn.code(), Code::Retnq, "a RET is left: {:#x}", insn.ip());
        }
        if let (true, Some(branch)) = (options.int3, after) {
            assert_eq!(insn.code(), Code::Int3, "speculation goes past {branch:#x}");
        }
        // `jmp short +0` is fallen through by design.
        let falls_through = insn.is_jmp_short() && insn.near_branch_target() == insn.next_ip();
        let stops = matches!(insn.flow_control(), FlowControl::Return | FlowControl::UnconditionalBranch);
        after = (stops && !falls_through).then_some(insn.ip());
    }
}

#[test]
fn a_hardened_table() {
    for layout in StubLayout::ALL.iter().copied() {
        let options = options()[15]; // everything at once
        let mut memory = vec![0; CodeTable::size(layout, &options)];
        let table = CodeTable::emit(&mut memory, VA, layout, &options).unwrap();
        let listing = Listing::new(&memory, VA, options.return_thunk);
        check_hardening(&listing, &options);
        let mut visited = BTreeSet::new();
        for insn in IoInsn::all() {
            visited.extend(listing.walk(table.entry(insn)).visited);
        }
        visited.extend(listing.walk(table.resolve(OUT, &TO_PROLIANT)).visited);
        check_gaps(&listing, &visited);
    }
}
