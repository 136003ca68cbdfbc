//! Where a fault in a stub resumes, found by disassembly: in the I/O sequence and nowhere else, at an epilogue, with RSP
//! put right.
#![cfg(feature = "std")]

mod common;

use common::forms;
use common::slots::{VA, options};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};
use ioemul::{CodeTable, Fixup, Helpers, IoInsn, Ring, StubLayout, Width, emit_stub_with, stub_fixup};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

/// A fault anywhere but in an I/O instruction is none of the stub's; in one, it resumes at the stub's epilogue (or the
/// helper's), which is found here by disassembly.
fn check_fixups(code: &[u8], va: u64, io: (u64, u64), fixup: impl Fn(u64) -> Option<Fixup>) {
    let mut decoder = Decoder::with_ip(64, code, va, DecoderOptions::NONE);
    for insn in decoder.iter() {
        let inside = (io.0..io.1).contains(&insn.ip());
        assert_eq!(fixup(insn.ip()).is_some(), inside, "{insn}");
    }
}

/// The bytes from `ip` on: `pop rdi; pop r15; …; pop rbx`, and a return.
fn is_epilogue(code: &[u8]) -> bool {
    code.starts_with(&[0x5f, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b])
        && matches!(code[11], 0xc3 | 0xe9)
}

#[test]
fn fixups_of_single_stubs() {
    for layout in StubLayout::ALL.iter().copied() {
        for options in options() {
            let (helpers_va, va) = (VA, VA + 0x1000);
            let mut memory = [0; 0x1200];
            let helpers = Helpers::emit_with(&mut memory[..256], helpers_va, layout, &options).unwrap();
            let len = emit_stub_with(&mut memory[0x1000..], va, OUT, &helpers, &options).unwrap();
            let code = &memory[0x1000..0x1000 + len];
            let instructions: Vec<Instruction> = Decoder::with_ip(64, code, va, DecoderOptions::NONE).iter().collect();
            // From behind the loads to the branch before the saves.
            let is_io = |insn: &&Instruction| matches!(insn.code(), Code::Out_DX_AL | Code::In_AL_DX);
            for io in instructions.iter().filter(is_io) {
                let fixup = stub_fixup(va, OUT, &helpers, &options, io.ip()).unwrap();
                assert!(is_epilogue(&memory[(fixup.resume - VA) as usize..]), "{layout:?} {options:?}");
                let rop = if layout == StubLayout::Rop { 8 } else { 0 };
                let pushed = if options.quirk.is_some() { 8 } else { 0 };
                assert_eq!(fixup.rsp_adjust, rop + pushed, "{layout:?} {options:?}");
            }
            let first = match options.quirk {
                None => instructions.iter().find(is_io).unwrap().ip() - 1, // the NOP before it is part of it
                Some(_) => {
                    let first = instructions.iter().position(|insn| is_io(&insn)).unwrap();
                    let before = if options.ring == Ring::Zero { 2 } else { 1 };
                    instructions[first - before].ip()
                }
            };
            let last = instructions.iter().rposition(|insn| is_io(&insn)).unwrap();
            let end = instructions[last..]
                .iter()
                .find(|insn| {
                    matches!(
                        insn.flow_control(),
                        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::Return
                    )
                })
                .unwrap()
                .ip();
            check_fixups(code, va, (first, end), |rip| stub_fixup(va, OUT, &helpers, &options, rip));
            for rip in [0, va - 1, va + len as u64, u64::MAX, helpers_va] {
                assert_eq!(stub_fixup(va, OUT, &helpers, &options, rip), None);
            }
        }
    }
}

#[test]
fn fixups_of_a_table() {
    for layout in StubLayout::ALL.iter().copied() {
        for options in options() {
            let mut memory = vec![0; CodeTable::size(layout, &options)];
            let table = CodeTable::emit(&mut memory, VA, layout, &options).unwrap();
            let len = memory.len() as u64;
            let decode_io = |ip: u64| {
                let code = &memory[(ip - VA) as usize..];
                Decoder::with_ip(64, code, ip, DecoderOptions::NONE).decode().code()
            };
            let mut found = 0;
            for ip in VA..VA + len {
                let Some(fixup) = table.fixup(ip) else { continue };
                found += 1;
                assert!(is_epilogue(&memory[(fixup.resume - VA) as usize..]), "{layout:?} {ip:#x}");
            }
            // Three bytes for each IN and OUT; INS, OUTS and the quirk besides.
            assert!(found > 3 * IoInsn::COUNT, "{found}");
            for form in forms() {
                let entry = table.entry(form.insn);
                let io = memory[(entry - VA) as usize..].windows(3).position(|bytes| bytes == form.io).unwrap() as u64;
                let ip = entry + io + u64::from(form.io[0] == 0x90);
                assert_eq!(decode_io(ip), form.code);
                let fixup = table.fixup(ip).unwrap();
                assert_eq!(fixup.rsp_adjust, if layout == StubLayout::Rop { 8 } else { 0 });
                // Resumes in this stub or in the helpers, not in a neighbour.
                let own = fixup.resume.wrapping_sub(entry) < 256;
                assert_eq!(own, matches!(layout, StubLayout::CallRet | StubLayout::Inline));
                assert!(own || fixup.resume < table.entry(IoInsn::in_dx(Width::Byte)));
            }
            assert_eq!((table.fixup(VA - 1), table.fixup(VA + len), table.fixup(u64::MAX)), (None, None, None));
        }
    }
}
