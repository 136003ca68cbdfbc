//! Any bytes as an instruction, against an independent disassembler: what this crate takes, iced-x86 calls the same
//! instruction of the same length, port, width and memory; what iced-x86 calls port I/O, this crate takes.
#![no_main]

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use ioemul::{AddressSize, DecodeError, Direction, IoInsn, PortOperand, Segment, Width};
use libfuzzer_sys::fuzz_target;

/// Direction and width of what iced-x86 calls port I/O.
fn kind(code: Code) -> Option<(Direction, Width)> {
    Some(match code {
        Code::In_AL_imm8 | Code::In_AL_DX | Code::Insb_m8_DX => (Direction::In, Width::Byte),
        Code::In_AX_imm8 | Code::In_AX_DX | Code::Insw_m16_DX => (Direction::In, Width::Word),
        Code::In_EAX_imm8 | Code::In_EAX_DX | Code::Insd_m32_DX => (Direction::In, Width::Dword),
        Code::Out_imm8_AL | Code::Out_DX_AL | Code::Outsb_DX_m8 => (Direction::Out, Width::Byte),
        Code::Out_imm8_AX | Code::Out_DX_AX | Code::Outsw_DX_m16 => (Direction::Out, Width::Word),
        Code::Out_imm8_EAX | Code::Out_DX_EAX | Code::Outsd_DX_m32 => (Direction::Out, Width::Dword),
        _ => return None,
    })
}

/// What iced-x86 sees, in this crate's words.
fn form(insn: &Instruction) -> Option<IoInsn> {
    let (direction, width) = kind(insn.code())?;
    let kinds: Vec<OpKind> = insn.op_kinds().collect();
    let string = |address, segment| {
        let rep = insn.has_rep_prefix() || insn.has_repne_prefix();
        PortOperand::String { rep, address, segment }
    };
    let segment = match insn.memory_segment() {
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::Ds, // overrides to ES, CS and SS are void in 64-bit mode
    };
    let operand = match kinds[..] {
        [OpKind::MemoryESRDI, _] => string(AddressSize::Bits64, Segment::Es),
        [OpKind::MemoryESEDI, _] => string(AddressSize::Bits32, Segment::Es),
        [_, OpKind::MemorySegRSI] => string(AddressSize::Bits64, segment),
        [_, OpKind::MemorySegESI] => string(AddressSize::Bits32, segment),
        [OpKind::Immediate8, _] | [_, OpKind::Immediate8] => PortOperand::Imm8(insn.immediate8()),
        _ => PortOperand::Dx,
    };
    Some(IoInsn { direction, width, operand })
}

/// The bytes before the opcode.
fn prefixes(code: &[u8]) -> &[u8] {
    let prefix = |byte: &&u8| {
        matches!(byte, 0x40..=0x4f | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x64 | 0x65 | 0x26 | 0x2e | 0x36 | 0x3e)
    };
    &code[..code.iter().take_while(prefix).count()]
}

fuzz_target!(|code: &[u8]| {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let theirs = decoder.decode();
    let error = decoder.last_error();
    let prefixes = prefixes(code);
    match IoInsn::decode(code) {
        Ok((insn, len)) => {
            assert_eq!((Some(insn), len), (form(&theirs), theirs.len()), "{code:02x?}: iced-x86 has {theirs}");
            assert!(len <= 15 && len <= code.len());
            // As much was looked at, and no more.
            assert_eq!(IoInsn::decode(&code[..len]), Ok((insn, len)));
            for cut in 0..len {
                assert_eq!(IoInsn::decode(&code[..cut]), Err(DecodeError::Truncated { available: cut }));
            }
            let (bytes, len) = insn.encode();
            assert_eq!(IoInsn::decode(&bytes[..len]), Ok((insn, len)));
        }
        Err(DecodeError::Lock) => assert!(theirs.is_invalid() && prefixes.contains(&0xf0), "iced-x86 has {theirs}"),
        Err(DecodeError::Truncated { available }) => {
            assert_eq!((available, error), (code.len(), DecoderError::NoMoreBytes), "{code:02x?}");
        }
        Err(DecodeError::TooLong) => assert!(code.len() >= 15 && theirs.is_invalid(), "{code:02x?}: {theirs}"),
        Err(DecodeError::NotPortIo { opcode }) => {
            assert_eq!(form(&theirs), None, "{code:02x?}: iced-x86 has {theirs}");
            assert_eq!(code.get(prefixes.len()), Some(&opcode));
        }
        Err(other) => panic!("{other}"),
    }
});
