//! Where a fault in a stub resumes, found by disassembly: in the I/O sequence and nowhere else, at a landing pad.
#![cfg(feature = "std")]

mod common;

use std::collections::BTreeMap;

use common::slots::{VA, options};
use common::walk::is_io;
use common::{forms, some_forms};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use ioemul::{CodeTable, Helper, Helpers, IoInsn, StubLayout, SymbolName, Width, emit_stub, stub_fixup};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

fn decode(code: &[u8], va: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, code, va, DecoderOptions::NONE).iter().collect()
}

/// A stub without a quirk has one access, padded to so many bytes with no-ops in front or behind. Every byte of that has
/// a landing pad, and no other.
fn check_plain(code: &[u8], va: u64, padded: u64, fixup: &dyn Fn(u64) -> Option<u64>) {
    let instructions = decode(code, va);
    let at = instructions.iter().position(|insn| is_io(insn.code())).unwrap();
    let nop = |insn: &&Instruction| insn.mnemonic() == Mnemonic::Nop;
    let before: u64 = instructions[..at].iter().rev().take_while(nop).map(|insn| insn.len() as u64).sum();
    let after: u64 = instructions[at + 1..].iter().take_while(nop).map(|insn| insn.len() as u64).sum();
    let io = instructions[at];
    assert_eq!(before + io.len() as u64 + after, padded, "{io}");
    let pad = fixup(io.ip());
    assert!(pad.is_some(), "{io}");
    let range = io.ip() - before..io.next_ip() + after;
    for rip in va..va + code.len() as u64 {
        assert_eq!(fixup(rip), pad.filter(|_| range.contains(&rip)), "{:#x} in the stub of {io}", rip - va);
    }
    assert_eq!(instructions.iter().filter(|insn| is_io(insn.code())).count(), 1);
}

/// The stub of a quirk has pads from its first access or CLI to the last, without a gap, and none at its ends.
fn check_quirk(code: &[u8], va: u64, fixup: &dyn Fn(u64) -> Option<u64>) {
    let instructions = decode(code, va);
    let has: Vec<bool> = instructions.iter().map(|insn| fixup(insn.ip()).is_some()).collect();
    let can_fault = |insn: &Instruction| is_io(insn.code()) || insn.mnemonic() == Mnemonic::Cli;
    for (insn, has) in instructions.iter().zip(&has) {
        assert!(*has || !can_fault(insn), "{insn}");
    }
    let (first, last) = (has.iter().position(|has| *has).unwrap(), has.iter().rposition(|has| *has).unwrap());
    assert!(has[first..=last].iter().all(|has| *has), "a gap");
    assert!(first > 0 && last + 1 < has.len(), "none at the ends");
}

/// Every pad is in the helpers' piece that is named so.
fn check_pads(pads: impl Iterator<Item = u64>, start: u64, end: u64) {
    pads.for_each(|pad| assert!((start..end).contains(&pad), "{pad:#x}"));
}

#[test]
fn fixups_of_single_stubs() {
    let plain: Vec<IoInsn> = some_forms().map(|form| form.insn).chain(IoInsn::strings()).collect();
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let (helpers_va, va) = (VA, VA + 0x1000);
            let mut memory = vec![0; Helpers::MAX_LEN + 0x1000];
            let helpers = Helpers::emit(&mut memory, helpers_va, &options).unwrap();
            let pads = helpers.symbols().find(|symbol| symbol.0 == "landing_pads").unwrap().1;
            let helpers_end = helpers_va + helpers.len() as u64;
            let quirks = options.quirks.iter().flat_map(|quirk| quirk.trigger().forms()).flatten();
            for insn in plain.iter().copied().chain(quirks) {
                let mut slot = vec![0; 0x1000];
                let len = emit_stub(&mut slot, va, insn, &helpers).unwrap();
                let fixup = |rip| stub_fixup(va, insn, &helpers, rip);
                let code = &slot[..len];
                let quirks = options.quirks.iter().filter(|quirk| quirk.trigger().has_form(insn)).count();
                if quirks == 0 {
                    check_plain(code, va, if insn.is_string() { 4 } else { 3 }, &fixup);
                } else {
                    // One stub after the other: whatever can fault has a pad, and there is a run for each.
                    let instructions = decode(code, va);
                    let has = |insn: &Instruction| fixup(insn.ip()).is_some();
                    for insn in
                        instructions.iter().filter(|insn| is_io(insn.code()) || insn.mnemonic() == Mnemonic::Cli)
                    {
                        assert!(has(insn), "{layout:?} {insn}");
                    }
                    let starts = instructions.windows(2).filter(|pair| !has(&pair[0]) && has(&pair[1])).count();
                    assert_eq!(starts, quirks + 1, "{layout:?} {insn}");
                }
                check_pads((va..va + len as u64).filter_map(fixup), pads, helpers_end);
                let outside = [0, va - 1, va, va + len as u64 - 1, va + len as u64, u64::MAX - 1, u64::MAX];
                for rip in outside.into_iter().chain(helpers_va..helpers_end) {
                    assert_eq!(fixup(rip), None, "{layout:?} {insn} {rip:#x}");
                }
            }
        }
    }
}

/// The offset is from the stub's address, wherever that is.
#[test]
fn fixups_at_the_ends_of_the_address_space() {
    for &layout in StubLayout::ALL {
        let options = ioemul::EmitOptions::new().layout(layout);
        for va in [0, 0x10, u64::MAX - 0xfff] {
            let helpers = common::slots::helpers_at(0x1000, &options);
            let mut slot = [0; 256];
            let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
            check_plain(&slot[..len], va, 3, &|rip| stub_fixup(va, OUT, &helpers, rip));
            for rip in [0, va, va + len as u64, u64::MAX] {
                assert_eq!(stub_fixup(va, OUT, &helpers, rip), None, "{layout:?} {va:#x} {rip:#x}");
            }
        }
    }
}

#[test]
fn fixups_of_a_table() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let mut memory = vec![0; CodeTable::size(&options)];
            let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
            let (len, fixup) = (memory.len() as u64, |rip| table.fixup(rip));
            let code = |address: u64, len: usize| &memory[(address - VA) as usize..][..len];
            // What is listed is what a disassembler finds, and what is answered.
            let listed: Vec<(u64, u64)> = table.faults().collect();
            assert!(listed.is_sorted_by(|a, b| a.0 < b.0), "ascending, each once: {options:?}");
            for (rip, pad) in &listed {
                assert_eq!(fixup(*rip), Some(*pad));
            }
            let listed: BTreeMap<u64, u64> = listed.into_iter().collect();
            let found: Vec<u64> =
                decode(&memory, VA).iter().filter(|insn| is_io(insn.code())).map(Instruction::ip).collect();
            assert!(listed.keys().eq(&found), "{options:?}");
            assert!(found.len() >= IoInsn::all().count());
            // Nothing but what the symbols name is in the table, and of that only the stubs can fault.
            let (mut covered, mut quirks, mut pads) = (VA, 0, None);
            let (mut numbered, mut strings) = (forms().count(), IoInsn::strings().count());
            for symbol in table.symbols() {
                assert!(symbol.address >= covered, "{}: overlaps", symbol.name);
                let gap = code(covered, (symbol.address - covered) as usize);
                assert!(gap.iter().all(|byte| *byte == 0xcc), "{}: code in front of it", symbol.name);
                let gap = covered..symbol.address;
                assert!(gap.into_iter().all(|rip| fixup(rip).is_none()), "{}: in front of it", symbol.name);
                covered = symbol.address + symbol.len as u64;
                let bytes = code(symbol.address, symbol.len);
                match symbol.name {
                    SymbolName::Helper(helper) => {
                        assert!((symbol.address..covered).all(|rip| fixup(rip).is_none()), "{}", symbol.name);
                        if helper == Helper::LandingPads {
                            pads = Some((symbol.address, covered));
                        }
                    }
                    SymbolName::Stub(insn) if insn.is_string() => {
                        strings -= 1;
                        assert_eq!(table.string_entry(insn), Some(symbol.address));
                        check_plain(bytes, symbol.address, 4, &fixup);
                    }
                    SymbolName::Stub(insn) => {
                        numbered -= 1;
                        assert_eq!(table.entry(insn), Some(symbol.address));
                        // Each byte where a table's are few; elsewhere some of them.
                        if layout != StubLayout::Inline || insn.index() % 16 == 0 {
                            check_plain(bytes, symbol.address, 3, &fixup);
                        }
                    }
                    SymbolName::Quirk { .. } => {
                        quirks += 1;
                        check_quirk(bytes, symbol.address, &fixup);
                    }
                    _ => panic!("another kind of symbol: {}", symbol.name),
                }
            }
            assert!(code(covered, (VA + len - covered) as usize).iter().all(|byte| *byte == 0xcc));
            let expected = options.quirks.iter().flat_map(|quirk| quirk.trigger().forms()).flatten().count();
            assert_eq!((numbered, strings, quirks), (0, 0, expected));
            let (start, end) = pads.unwrap();
            check_pads(listed.values().copied(), start, end);
            for rip in [0, VA - 1, VA, VA + len - 1, VA + len, u64::MAX - 1, u64::MAX] {
                assert_eq!(fixup(rip), None, "{rip:#x}");
            }
        }
    }
}
