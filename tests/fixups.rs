//! Where a fault in a stub resumes: in the I/O sequence at a landing pad, and nowhere else at all. (That the pads do what
//! they should is in `disassembly.rs` and `aliases.rs`.)
#![cfg(feature = "std")]

mod common;

use common::slots::{VA, helpers_at, options};
use common::{forms, some_forms};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Register};
use ioemul::{CodeTable, EmitOptions, IoInsn, StubLayout, Width, emit_stub, stub_fixup};

/// Which instructions of a stub (of a slot's several stubs) lie between the loads and the saves.
struct Inside {
    layout: StubLayout,
    inside: bool,
}

impl Inside {
    fn next(&mut self, insn: &Instruction) -> bool {
        let call = insn.flow_control() == FlowControl::Call && insn.len() == 5;
        let falls_through = insn.is_jmp_short() && insn.near_branch_target() == insn.next_ip();
        let ends = match self.layout {
            StubLayout::CallRet => call,
            StubLayout::Compact | StubLayout::Rop => insn.code() == Code::Retnq || insn.code() == Code::Jmp_rel32_64,
            _ => falls_through,
        };
        // The last load is that of RDI, by RDI.
        let last_load = insn.op0_register() == Register::RDI && insn.memory_base() == Register::RDI;
        let begins = match self.layout {
            StubLayout::Inline => insn.code() == Code::Mov_r64_rm64 && last_load,
            _ => call,
        };
        let here = self.inside && !ends;
        self.inside = here || (begins && !self.inside);
        here
    }
}

#[test]
fn fixups_of_single_stubs() {
    let insns: Vec<IoInsn> = some_forms().map(|form| form.insn).chain([IoInsn::out_imm8(Width::Byte, 0xb2)]).collect();
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let (helpers, va) = (helpers_at(VA, &options), VA + 0x1000);
            let pads = helpers.symbols().find(|symbol| symbol.0 == "landing_pads").unwrap().1;
            for insn in &insns {
                let mut slot = [0; 2048];
                let len = emit_stub(&mut slot, va, *insn, &helpers).unwrap();
                let mut inside = Inside { layout, inside: false };
                let mut found = 0;
                for instruction in Decoder::with_ip(64, &slot[..len], va, DecoderOptions::NONE).iter() {
                    let (inside, fixup) =
                        (inside.next(&instruction), stub_fixup(va, *insn, &helpers, instruction.ip()));
                    assert_eq!(fixup.is_some(), inside, "{layout:?} {insn}: {instruction}");
                    found += usize::from(inside);
                    if let Some(pad) = fixup {
                        assert!((pads..VA + helpers.len() as u64).contains(&pad));
                    }
                }
                assert!(found > 0);
                for rip in [0, va - 1, va + len as u64, u64::MAX, VA, pads] {
                    assert_eq!(stub_fixup(va, *insn, &helpers, rip), None);
                }
            }
        }
    }
}

#[test]
fn fixups_of_string_stubs() {
    for &layout in StubLayout::ALL {
        let helpers = helpers_at(VA, &EmitOptions::new().layout(layout));
        let pads = helpers.symbols().find(|symbol| symbol.0 == "landing_pads").unwrap().1;
        for insn in IoInsn::strings() {
            let (mut slot, va) = ([0; 512], VA + 0x1000);
            let len = emit_stub(&mut slot, va, insn, &helpers).unwrap();
            let (bytes, encoded) = insn.encode();
            let padded = [&[0x90; 4][encoded..], &bytes[..encoded]].concat();
            let io = slot[..len].windows(4).position(|window| *window == padded[..]).unwrap() + 4 - encoded;
            let fixups: Vec<u64> =
                (0..len as u64).filter(|at| stub_fixup(va, insn, &helpers, va + at).is_some()).collect();
            let end = (io + encoded) as u64;
            assert_eq!(fixups, (end - 4..end).collect::<Vec<_>>(), "{layout:?} {insn}");
            // It is the pad that stores how far the instruction got.
            assert_eq!(stub_fixup(va, insn, &helpers, va + io as u64), Some(pads));
            // Of an access without memory, it is another.
            let plain = IoInsn::in_dx(Width::Byte);
            emit_stub(&mut slot, va, plain, &helpers).unwrap();
            let io = slot.windows(3).position(|window| window == [0x90, 0xec, 0x90]).unwrap() as u64;
            assert_ne!(stub_fixup(va, plain, &helpers, va + io).unwrap(), pads);
        }
    }
}

#[test]
fn fixups_of_a_table() {
    for &layout in StubLayout::ALL {
        for options in options(layout) {
            let mut memory = vec![0; CodeTable::size(&options)];
            let table = CodeTable::emit(&mut memory, VA, &options).unwrap();
            let len = memory.len() as u64;
            for form in forms() {
                let entry = table.entry(form.insn).unwrap();
                let stub = &memory[(entry - VA) as usize..];
                let io = entry + stub.windows(3).position(|bytes| bytes == form.io).unwrap() as u64;
                let pads: Vec<_> = (0..3).map(|byte| table.fixup(io + byte)).collect();
                assert!(pads[0].is_some_and(|pad| pad < entry) && pads.iter().all(|pad| *pad == pads[0]));
                assert_eq!((table.fixup(io - 1), table.fixup(io + 3)), (None, None), "{layout:?} {}", form.insn);
            }
            let found = (VA..VA + len).filter(|ip| table.fixup(*ip).is_some()).count();
            let (plain, strings) = (3 * IoInsn::COUNT, 4 * IoInsn::STRING_COUNT);
            assert_eq!(found > plain + strings, !options.quirks.is_empty(), "{layout:?}: {found}");
            assert!(found >= plain + strings);
            assert_eq!((table.fixup(VA - 1), table.fixup(VA + len), table.fixup(u64::MAX)), (None, None, None));
        }
    }
}
