//! Which addresses have a landing pad: the instructions of an I/O sequence, and no others.
#![cfg(feature = "std")]

mod common;

use std::collections::BTreeSet;

use common::slots::{VA, options};
use common::walk::is_io;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use ioemul::{CodeTable, Helpers, IoInsn, StubLayout, emit_stub, stub_fixup};

fn instructions(code: &[u8], va: u64) -> impl Iterator<Item = Instruction> {
    Decoder::with_ip(64, code, va, DecoderOptions::NONE).into_iter().collect::<Vec<_>>().into_iter()
}

/// The I/O instructions that a disassembler finds are those of the list, whose pads are those of `fixup`.
#[test]
fn the_list_of_faults_is_that_of_the_io_instructions() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let mut memory = vec![0; CodeTable::size(&options)];
            let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
            let faults: Vec<(u64, u64)> = table.faults().collect();
            assert!(faults.is_sorted_by(|a, b| a.0 < b.0), "{layout:?} {options:?}");
            let found: BTreeSet<u64> =
                instructions(&memory, VA).filter(|insn| is_io(insn.code())).map(|insn| insn.ip()).collect();
            assert_eq!(faults.iter().map(|fault| fault.0).collect::<BTreeSet<_>>(), found, "{layout:?} {options:?}");
            let first_stub = table.string_entry(IoInsn::strings().next().unwrap()).unwrap();
            let mut pads = BTreeSet::new();
            for (rip, pad) in faults {
                assert_eq!(table.fixup(rip), Some(pad));
                assert!((VA..first_stub).contains(&pad), "the pads lie with the helpers");
                pads.insert(pad);
            }
            assert!(pads.len() <= 2 + options.quirks.len().min(1) * 5, "{layout:?}: {} pads", pads.len());
        }
    }
}

#[test]
fn no_other_address_has_a_pad() {
    for &layout in StubLayout::ALL {
        for options in options(layout).into_iter().step_by(5) {
            let mut memory = vec![0; CodeTable::size(&options)];
            let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
            let len = memory.len() as u64;
            let first_stub = table.string_entry(IoInsn::strings().next().unwrap()).unwrap();
            for rip in [0, 1, VA - 1, VA + len, u64::MAX - 1, u64::MAX].into_iter().chain(VA..first_stub) {
                assert_eq!(table.fixup(rip), None, "{rip:#x}");
            }
            for insn in IoInsn::in_out().chain(IoInsn::strings()) {
                let entry = table.entry(insn).or(table.string_entry(insn)).unwrap();
                assert_eq!((table.fixup(entry), table.fixup(entry - 1)), (None, None), "{insn}");
            }
        }
    }
}

#[test]
fn fixups_of_a_slot() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let mut memory = vec![0; Helpers::MAX_LEN];
            let helpers = Helpers::emit(&mut memory, VA, &options).unwrap();
            let landing_pads = helpers.symbols().find(|symbol| symbol.0 == "landing_pads").unwrap().1;
            for insn in [IoInsn::out_dx(ioemul::Width::Byte), IoInsn::rep_ins(ioemul::Width::Word)] {
                let (mut slot, va) = ([0; 2048], VA + 0x1000);
                let len = emit_stub(&mut slot, va, insn, &helpers).unwrap();
                for found in instructions(&slot[..len], va) {
                    let pad = stub_fixup(va, insn, &helpers, found.ip());
                    match pad {
                        Some(pad) => assert!((landing_pads..VA + helpers.len() as u64).contains(&pad)),
                        None => assert!(!is_io(found.code()), "{layout:?} {insn} {found}"),
                    }
                }
                for rip in [0, va - 1, va, va + len as u64 - 1, va + len as u64, VA, u64::MAX] {
                    assert_eq!(stub_fixup(va, insn, &helpers, rip), None, "{rip:#x}");
                }
                assert_eq!(stub_fixup(u64::MAX, insn, &helpers, u64::MAX), None);
                assert_eq!(stub_fixup(0, insn, &helpers, u64::MAX), None);
            }
        }
    }
}
