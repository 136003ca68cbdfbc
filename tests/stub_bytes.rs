//! The bytes of every form in every layout, against the published table: in slots and in the cached table.
#![cfg(feature = "std")]

mod common;

use common::forms;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use ioemul::{
    CodeTable, Helpers, IoInsn, PortOperand, Quirk, Ring, SlotOptions, StubLayout, StubTable, Width, emit_stub,
    emit_stub_with,
};

/// Hexadecimal bytes; `@helper` is a rel32 to it, `<io>` the three bytes of the access.
const STUBS: [(StubLayout, usize, &str); 3] = [
    (
        StubLayout::CallRet,
        36,
        "53 55 41 54 41 55 41 56 41 57 57 E8 @load_guest_gprs <io> E8 @save_guest_gprs \
         5F 41 5F 41 5E 41 5D 41 5C 5D 5B C3",
    ),
    (StubLayout::Compact, 13, "E8 @enter_guest <io> E9 @leave_guest"),
    (StubLayout::Rop, 9, "E8 @host_to_guest <io> C3"),
];

/// Without helpers: sub eax,eax and the fifteen loads, RDI last; jmp +0, pushfq and push rdi; its fifteen stores and
/// the flags.
const INLINE: &str = "53 55 41 54 41 55 41 56 41 57 57 \
     29 C0 48 8B 07 48 8B 5F 08 48 8B 4F 10 48 8B 57 18 48 8B 77 20 48 8B 6F 30 4C 8B 47 38 4C 8B 4F 40 \
     4C 8B 57 48 4C 8B 5F 50 4C 8B 67 58 4C 8B 6F 60 4C 8B 77 68 4C 8B 7F 70 48 8B 7F 28 \
     <io> EB 00 9C 57 48 8B 7C 24 10 \
     48 89 07 48 89 5F 08 48 89 4F 10 48 89 57 18 48 89 77 20 58 48 89 47 28 48 89 6F 30 4C 89 47 38 4C 89 4F 40 \
     4C 89 57 48 4C 89 5F 50 4C 89 67 58 4C 89 6F 60 4C 89 77 68 4C 89 7F 70 58 48 89 47 78 31 C0 \
     5F 41 5F 41 5E 41 5D 41 5C 5D 5B C3";

/// The bytes that `pattern` stands for, executed at `va`.
fn expand(pattern: &str, va: u64, io: &[u8], symbol: impl Fn(&str) -> u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for token in pattern.split_whitespace() {
        match (token, token.strip_prefix('@')) {
            ("<io>", _) => bytes.extend(io),
            (_, Some(helper)) => {
                let next = va + bytes.len() as u64 + 4;
                let displacement = i32::try_from(symbol(helper).wrapping_sub(next) as i64).unwrap();
                bytes.extend(displacement.to_le_bytes());
            }
            (hex, None) => bytes.push(u8::from_str_radix(hex, 16).unwrap()),
        }
    }
    bytes
}

fn pattern(layout: StubLayout) -> &'static str {
    STUBS.iter().find(|row| row.0 == layout).map_or(INLINE, |row| row.2)
}

const HELPERS_AT: u64 = 0xffff_8000_0010_0000;

fn helpers(layout: StubLayout) -> (Helpers, Vec<u8>) {
    let mut bytes = vec![0; 256];
    let helpers = Helpers::emit(&mut bytes, HELPERS_AT, layout).unwrap();
    bytes.truncate(helpers.len());
    (helpers, bytes)
}

fn address(helpers: &Helpers, name: &str) -> u64 {
    helpers.symbols().find(|symbol| symbol.0 == name).unwrap_or_else(|| panic!("no helper {name}")).1
}

#[test]
fn every_form_in_a_slot() {
    for layout in StubLayout::ALL.iter().copied() {
        let (helpers, _) = helpers(layout);
        for (i, form) in forms().enumerate() {
            // Before the helpers and behind them.
            let va = HELPERS_AT - 0x10_0000 + 0x200 * i as u64;
            let mut slot = [0xaa; 200];
            let len = emit_stub(&mut slot, va, form.insn, &helpers).unwrap();
            let expected = expand(pattern(layout), va, &form.io, |name| address(&helpers, name));
            assert_eq!(slot[..len], expected, "{layout:?} {}", form.insn);
        }
    }
}

#[test]
fn every_form_in_the_table() {
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::new(layout).unwrap();
        let (helpers, helper_bytes) = helpers(layout);
        let origin = table.code().as_ptr() as u64;
        assert_eq!(table.code()[..helper_bytes.len()], helper_bytes, "{layout:?}: helpers are position-independent");
        for form in forms() {
            let stub = table.stub(form.insn);
            let symbol = |name: &str| address(&helpers, name) - HELPERS_AT + origin;
            let expected = expand(pattern(layout), stub.code().as_ptr() as u64, &form.io, symbol);
            assert_eq!(stub.code(), expected, "{layout:?} {}", form.insn);
        }
    }
}

#[test]
fn every_form_in_a_table_of_the_callers() {
    for layout in StubLayout::ALL.iter().copied() {
        let options = SlotOptions::default();
        let mut memory = vec![0; CodeTable::size(layout, &options)];
        let table = CodeTable::emit(&mut memory, HELPERS_AT, layout, &options).unwrap();
        let (helpers, helper_bytes) = helpers(layout);
        assert_eq!(memory[..helper_bytes.len()], helper_bytes);
        for form in forms() {
            let va = table.entry(form.insn);
            let expected = expand(pattern(layout), va, &form.io, |name| address(&helpers, name));
            let at = (va - HELPERS_AT) as usize;
            assert_eq!(memory[at..at + expected.len()], expected, "{layout:?} {}", form.insn);
        }
    }
}

#[test]
fn the_published_lengths() {
    for (layout, len, _) in STUBS {
        let (helpers, _) = helpers(layout);
        assert_eq!(emit_stub(&mut [0; 64], HELPERS_AT + 0x1000, IoInsn::in_dx(Width::Byte), &helpers), Ok(len));
        assert_eq!(StubTable::new(layout).unwrap().stub(IoInsn::in_dx(Width::Byte)).code().len(), len);
    }
}

#[test]
fn the_list_of_forms() {
    let ours: std::collections::BTreeSet<_> = forms().map(|form| form.insn).collect();
    let theirs: Vec<_> = IoInsn::in_out().collect();
    assert_eq!((ours.len(), theirs.len(), IoInsn::COUNT), (1542, 1542, 1542));
    assert_eq!(theirs.iter().copied().collect::<std::collections::BTreeSet<_>>(), ours);
    assert!(theirs[..6].iter().all(|insn| insn.operand == PortOperand::Dx));
}

#[test]
fn endbr64_comes_first() {
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::builder().layout(layout).endbr64(true).build().unwrap();
        let plain = StubTable::new(layout).unwrap();
        for form in forms() {
            let (stub, plain) = (table.stub(form.insn), plain.stub(form.insn));
            assert_eq!((stub.code().len(), &stub.code()[..4]), (plain.code().len() + 4, &[0xf3, 0x0f, 0x1e, 0xfa][..]));
        }
    }
}

/// A no-op of three bytes in place of `<io>`, and nothing else changed.
#[test]
fn an_elided_access_is_as_long() {
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::builder().layout(layout).elide_io(true).build().unwrap();
        let (helpers, _) = helpers(layout);
        let origin = table.code().as_ptr() as u64;
        for form in forms() {
            let stub = table.stub(form.insn);
            let symbol = |name: &str| address(&helpers, name) - HELPERS_AT + origin;
            let expected = expand(pattern(layout), stub.code().as_ptr() as u64, &[0x0f, 0x1f, 0x00], symbol);
            assert_eq!(stub.code(), expected);
        }
    }
}

#[test]
fn proliant_in_ring_0() {
    const PAYLOAD: [u8; 9] = [0x9c, 0xfa, 0xee, 0xec, 0xa8, 0x80, 0x75, 0xfb, 0x9d];
    let options = SlotOptions { quirk: Some(Quirk::PROLIANT), ring: Ring::Zero, ..SlotOptions::default() };
    for layout in StubLayout::ALL.iter().copied() {
        let (helpers, _) = helpers(layout);
        let (mut slot, va) = ([0; 256], HELPERS_AT + 0x1000);
        let len = emit_stub_with(&mut slot, va, IoInsn::out_dx(Width::Byte), &helpers, &options).unwrap();
        let expected = expand(pattern(layout), va, &PAYLOAD, |name| address(&helpers, name));
        assert_eq!(slot[..len], expected, "{layout:?}");
    }
}

/// No CLI, and a count on the stack that ends the poll.
#[test]
fn proliant_in_ring_3() {
    let options = SlotOptions { quirk: Some(Quirk::PROLIANT), ring: Ring::Three, ..SlotOptions::default() };
    let (helpers, _) = helpers(StubLayout::Rop);
    let (mut slot, va) = ([0; 64], HELPERS_AT + 0x1000);
    let len = emit_stub_with(&mut slot, va, IoInsn::out_dx(Width::Byte), &helpers, &options).unwrap();
    let payload = &slot[5..len - 1]; // call … ret
    let code: Vec<Instruction> = Decoder::with_ip(64, payload, 0, DecoderOptions::NONE).iter().collect();
    assert_eq!(
        code.iter().map(Instruction::code).collect::<Vec<_>>(),
        [
            Code::Pushq_imm32,
            Code::Out_DX_AL,
            Code::In_AL_DX,
            Code::Test_AL_imm8,
            Code::Je_rel8_64,
            Code::Dec_rm32,
            Code::Jne_rel8_64,
            Code::Lea_r64_m,
        ]
    );
    assert_eq!(code[0].immediate(0), 1_000_000);
    assert_eq!(code[3].immediate(1), 0x80);
    assert_eq!(code[4].near_branch_target(), code[7].ip(), "ready: past the count");
    assert_eq!(code[6].near_branch_target(), code[2].ip(), "not ready: read again");
    assert_eq!(code[7].memory_displacement64(), 8);
}
