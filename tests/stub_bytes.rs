//! The bytes of every form in every layout, against the published table: in slots and in the cached table.
#![cfg(feature = "std")]

mod common;

use common::forms;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};
use ioemul::{
    CodeTable, EmitOptions, Helpers, IoInsn, PortOperand, Quirk, Ring, StubLayout, StubTable, SymbolName, Width,
    emit_stub,
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

/// Without helpers. In: the status flags by way of AH, OF by an addition that overflows, and the fifteen registers, RDI
/// last. Out: `jmp +0`, RDI on the stack, the fifteen registers, RDI's word by way of RAX; then the flags, composed
/// with the bits of RFLAGS that are not for arithmetic.
const INLINE: &str = "53 55 41 54 41 55 41 56 41 57 57 \
     48 8B 47 78 0F B6 CC 88 C4 83 E1 08 80 C1 78 9E \
     48 8B 07 48 8B 5F 08 48 8B 4F 10 48 8B 57 18 48 8B 77 20 48 8B 6F 30 4C 8B 47 38 4C 8B 4F 40 \
     4C 8B 57 48 4C 8B 5F 50 4C 8B 67 58 4C 8B 6F 60 4C 8B 77 68 4C 8B 7F 70 48 8B 7F 28 \
     <io> EB 00 57 48 8B 7C 24 08 \
     48 89 07 48 89 5F 08 48 89 4F 10 48 89 57 18 48 89 77 20 58 48 89 47 28 48 89 6F 30 4C 89 47 38 4C 89 4F 40 \
     4C 89 57 48 4C 89 5F 50 4C 89 67 58 4C 89 6F 60 4C 89 77 68 4C 89 7F 70 \
     9F 0F 90 C2 48 8B 4F 78 0F B6 D2 C1 E2 0B 48 81 E1 2A F7 FF FF 0F B6 C4 48 8D 4C 11 FE 48 01 C1 48 89 4F 78 31 C0 \
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
    helpers_with(&EmitOptions::new().layout(layout))
}

fn helpers_with(options: &EmitOptions<'_>) -> (Helpers, Vec<u8>) {
    let mut bytes = vec![0; Helpers::MAX_LEN];
    let helpers = Helpers::emit(&mut bytes, HELPERS_AT, options).unwrap();
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
            let mut slot = [0xaa; 256];
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
        let options = EmitOptions::new().layout(layout);
        let mut memory = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut memory, HELPERS_AT, &options).unwrap();
        let (helpers, helper_bytes) = helpers(layout);
        assert_eq!(memory[..helper_bytes.len()], helper_bytes);
        for form in forms() {
            let va = table.entry(form.insn).unwrap();
            let expected = expand(pattern(layout), va, &form.io, |name| address(&helpers, name));
            let at = (va - HELPERS_AT) as usize;
            assert_eq!(memory[at..at + expected.len()], expected, "{layout:?} {}", form.insn);
        }
    }
}

#[test]
fn the_published_lengths() {
    let inline = (StubLayout::Inline, 207, INLINE);
    for (layout, len, _) in STUBS.into_iter().chain([inline]) {
        let (helpers, _) = helpers(layout);
        assert_eq!(emit_stub(&mut [0; 256], HELPERS_AT + 0x1000, IoInsn::in_dx(Width::Byte), &helpers), Ok(len));
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

/// `xor ecx, ecx` … `xor r11d, r11d`, in front of each return to the caller, and nothing else changed.
#[test]
fn a_stub_that_scrubs() {
    const XORS: &str = "31 C9 31 D2 31 F6 31 FF 45 31 C0 45 31 C9 45 31 D2 45 31 DB C3";
    for layout in StubLayout::ALL.iter().copied() {
        let (plain, _) = helpers(layout);
        let options = EmitOptions::new().layout(layout).scrub(true);
        let (scrubbing, bytes) = helpers_with(&options);
        // At the end of the stub, or of the helper that it ends in; and of the landing pads.
        let of_stub = matches!(layout, StubLayout::CallRet | StubLayout::Inline);
        assert_eq!(scrubbing.len() - plain.len(), if of_stub { 20 } else { 40 }, "{layout:?}");
        assert_eq!(bytes[bytes.len() - 21..], expand(XORS, 0, &[], |_| 0), "{layout:?}");
        let pattern = match of_stub {
            true => pattern(layout).strip_suffix("C3").unwrap().to_owned() + XORS,
            false => pattern(layout).to_owned(),
        };
        for form in forms() {
            let (va, mut slot) = (HELPERS_AT + 0x1000, [0xaa; 256]);
            let len = emit_stub(&mut slot, va, form.insn, &scrubbing).unwrap();
            let expected = expand(&pattern, va, &form.io, |name| address(&scrubbing, name));
            assert_eq!(slot[..len], expected, "{layout:?} {}", form.insn);
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

/// The unbounded poll with interrupts off: `pushf; cli; out dx, al; 1: in al, dx; test al, 0x80; jnz 1b; popf`.
const UNBOUNDED: [u8; 9] = [0x9c, 0xfa, 0xee, 0xec, 0xa8, 0x80, 0x75, 0xfb, 0x9d];

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

#[test]
fn unbounded_in_ring_0_in_a_table() {
    for layout in StubLayout::ALL.iter().copied() {
        let options = EmitOptions::new().layout(layout).ring(Ring::Zero).quirks(&[Quirk::PROLIANT_UNBOUNDED]);
        let (helpers, helper_bytes) = helpers_with(&options);
        let mut memory = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut memory, HELPERS_AT, &options).unwrap();
        assert_eq!(memory[..helper_bytes.len()], helper_bytes, "{layout:?}");
        let plain = table.entry(OUT).unwrap();
        let va = table.resolve(OUT, 0x80, 0xcd4).unwrap();
        assert_ne!(va, plain);
        assert_eq!([(0x7f, 0xcd4), (0x80, 0xcd5)].map(|(rax, rdx)| table.resolve(OUT, rax, rdx)), [Some(plain); 2]);
        for (va, io) in [(va, &UNBOUNDED[..]), (plain, &[0x90, 0xee, 0x90])] {
            let expected = expand(pattern(layout), va, io, |name| address(&helpers, name));
            let at = (va - HELPERS_AT) as usize;
            assert_eq!(memory[at..at + expected.len()], expected, "{layout:?}");
        }
    }
}

/// A slot looks at the register file itself: the trigger, the quirk's stub, the plain stub.
#[test]
fn unbounded_in_ring_0_in_a_slot() {
    for layout in StubLayout::ALL.iter().copied() {
        let options = EmitOptions::new().layout(layout).ring(Ring::Zero).quirks(&[Quirk::PROLIANT_UNBOUNDED]);
        let (helpers, _) = helpers_with(&options);
        let (mut slot, va) = ([0; 512], HELPERS_AT + 0x1000);
        let len = emit_stub(&mut slot, va, OUT, &helpers).unwrap();
        let code: Vec<Instruction> =
            Decoder::with_ip(64, &slot[..len], va, DecoderOptions::NONE).iter().take(6).collect();
        let codes: Vec<Code> = code.iter().map(Instruction::code).collect();
        assert_eq!((codes[0], codes[1]), (Code::Cmp_rm16_imm16, Code::Jne_rel32_64), "{layout:?}");
        assert_eq!((code[0].memory_base(), code[0].memory_displacement64()), (Register::RDI, 24));
        assert_eq!(code[0].immediate(1), 0xcd4);
        assert_eq!((codes[2], code[2].op0_register()), (Code::Mov_r32_rm32, Register::EAX));
        assert_eq!((code[2].memory_base(), code[2].memory_displacement64()), (Register::RDI, 0));
        for insn in &code[3..5] {
            assert_eq!((insn.op0_register(), insn.immediate(1)), (Register::EAX, 0x80));
        }
        assert_eq!(codes[5], Code::Jne_rel32_64);
        let quirk_at = code[5].next_ip();
        let mut expected = expand(pattern(layout), quirk_at, &UNBOUNDED, |name| address(&helpers, name));
        let plain_at = quirk_at + expected.len() as u64;
        assert_eq!([1, 5].map(|at: usize| code[at].near_branch_target()), [plain_at; 2], "{layout:?}: declined");
        expected.extend(expand(pattern(layout), plain_at, &[0x90, 0xee, 0x90], |name| address(&helpers, name)));
        assert_eq!(slot[(quirk_at - va) as usize..len], expected, "{layout:?}");
        // Other forms are not looked at.
        let len = emit_stub(&mut slot, va, IoInsn::out_dx(Width::Word), &helpers).unwrap();
        let expected = expand(pattern(layout), va, &[0x66, 0xef, 0x90], |name| address(&helpers, name));
        assert_eq!(slot[..len], expected, "{layout:?}");
    }
}

/// What the quirk has in the place of `out dx, al`.
fn payload(quirk: Quirk, ring: Ring) -> Vec<Instruction> {
    let quirks = [quirk];
    let options = EmitOptions::new().layout(StubLayout::Rop).ring(ring).quirks(&quirks);
    let mut memory = vec![0; CodeTable::size(&options)];
    let table = CodeTable::emit(&mut memory, HELPERS_AT, &options).unwrap();
    let expected = SymbolName::Quirk { name: quirk.name(), insn: OUT };
    let symbol = table.symbols().find(|symbol| symbol.name == expected).unwrap();
    assert_eq!(Some(symbol.address), table.resolve(OUT, 0x80, 0xcd4));
    let stub = &memory[(symbol.address - HELPERS_AT) as usize..][..symbol.len];
    // call … ret
    Decoder::with_ip(64, &stub[5..stub.len() - 1], 0, DecoderOptions::NONE).iter().collect()
}

/// DX before each read; nobody there, ready or the limit behind it. The flags are kept on the stack meanwhile.
#[test]
fn the_bounded_poll() {
    const POLL: [Code; 15] = [
        Code::Pushq_imm32,
        Code::Pushfq,
        Code::Cmp_rm16_imm16,
        Code::Jne_rel8_64,
        Code::Popfq,
        Code::In_AL_DX,
        Code::Pushfq,
        Code::Cmp_AL_imm8,
        Code::Je_rel8_64,
        Code::Test_AL_imm8,
        Code::Je_rel8_64,
        Code::Dec_rm32,
        Code::Jne_rel8_64,
        Code::Popfq,
        Code::Lea_r64_m,
    ];
    // In ring 3 the unbounded one is bounded as well.
    for (quirk, ring, head, tail) in [
        (Quirk::PROLIANT, Ring::Zero, &[Code::Pushfq, Code::Cli, Code::Out_DX_AL][..], &[Code::Popfq][..]),
        (Quirk::PROLIANT, Ring::Three, &[Code::Out_DX_AL], &[]),
        (Quirk::PROLIANT_UNBOUNDED, Ring::Three, &[Code::Out_DX_AL], &[]),
    ] {
        let code = payload(quirk, ring);
        let expected: Vec<Code> = head.iter().chain(&POLL).chain(tail).copied().collect();
        assert_eq!(code.iter().map(Instruction::code).collect::<Vec<_>>(), expected, "{} {ring:?}", quirk.name());
        let poll = &code[head.len()..][..POLL.len()];
        assert_eq!(poll[0].immediate(0), 1_000_000);
        assert_eq!((poll[2].op0_register(), poll[2].immediate(1)), (Register::DX, 0xcd4));
        assert_eq!(poll[7].immediate(1) as u8, 0xff, "nobody there");
        assert_eq!(poll[9].immediate(1), 0x80);
        assert_eq!([3, 8, 10].map(|at: usize| poll[at].near_branch_target()), [poll[13].ip(); 3], "to the end");
        assert_eq!(poll[12].near_branch_target(), poll[2].ip(), "not ready: DX is looked at and read again");
        assert_eq!((poll[11].op0_kind(), poll[11].memory_base()), (OpKind::Memory, Register::RSP));
        assert_eq!([11, 14].map(|at: usize| poll[at].memory_displacement64()), [8; 2], "the count, and past it");
    }
    assert_eq!(payload(Quirk::PROLIANT_UNBOUNDED, Ring::Zero).len(), 7);
}

/// GSMI's waits, instruction by instruction: CF is live throughout, and the count is what it is said to be.
#[test]
fn waits_of_gsmi() {
    let common = |branch: &[Code]| {
        let head = [Code::Out_DX_AL, Code::Pushq_imm32, Code::Pushfq];
        let tail = [
            Code::Jb_rel8_64,
            Code::And_rm32_imm32,
            Code::Jmp_rel8_64,
            Code::Or_rm32_imm32,
            Code::Popfq,
            Code::Lea_r64_m,
        ];
        [&head[..], branch, &tail].concat()
    };
    for (quirk, branch, count) in [
        (Quirk::GSMI_CARRY, &[Code::Jae_rel8_64, Code::Dec_rm32, Code::Jne_rel8_64][..], ioemul::CARRY_LIMIT),
        (Quirk::GSMI_SPIN, &[Code::Dec_rm32, Code::Jne_rel8_64][..], 0x1_0000),
    ] {
        for ring in [Ring::Zero, Ring::Three] {
            let quirks = [quirk];
            let options = EmitOptions::new().layout(StubLayout::Rop).ring(ring).quirks(&quirks);
            let mut memory = vec![0; CodeTable::size(&options)];
            let table = CodeTable::emit(&mut memory, HELPERS_AT, &options).unwrap();
            let entry = table.resolve(IoInsn::out_dx(Width::Byte), 0xef, 0xb2).unwrap();
            let stub = &memory[(entry - HELPERS_AT) as usize..];
            let code: Vec<Instruction> =
                Decoder::with_ip(64, &stub[5..], 0, DecoderOptions::NONE).iter().take(3 + branch.len() + 6).collect();
            assert_eq!(code.iter().map(Instruction::code).collect::<Vec<_>>(), common(branch), "{}", quirk.name());
            assert_eq!(code[1].immediate(0), u64::from(count));
            let (first, last) = (3, 3 + branch.len() - 1);
            assert_eq!(code[last].near_branch_target(), code[first].ip(), "the loop");
            assert_eq!(code[last - 1].memory_displacement64(), 8, "the count is below the flags");
            if branch.len() == 3 {
                assert_eq!(code[first].near_branch_target(), code[last + 1].ip(), "CF is clear: no more looks at it");
            }
        }
    }
}
