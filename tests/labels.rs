//! Where labels lead: a payload's own, to and fro, and those of the helpers.
#![cfg(feature = "std")]

mod common;

use common::slots::{VA, helpers_at};
use dynasm::dynasm;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use ioemul::{
    CodeSink, CodeTable, EmitOptions, Gprs, Helpers, IoInsn, Payload, Quirk, QuirkTable, StubLayout, StubTable,
    Trigger, Width, emit_stub,
};

/// A quirk with this payload in place of OUT to port 0x80.
fn quirk(payload: fn(&mut Payload<'_>)) -> Quirk {
    // SAFETY: never executed.
    unsafe { Quirk::new("odd", Trigger::out(Width::Byte, 0x80), payload) }
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
        let builder = StubTable::builder().layout(layout);
        let table = builder.quirks(QuirkTable::from_iter([quirk])).build().unwrap();
        let stub = table.resolve(insn, &Gprs::default());
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
