//! What iced-x86 makes of bytes in each mode.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use ioemul::{AddressSize, CodeSize, DecodeError, Direction, IoInsn, PortOperand, Segment, Width};

/// The form of port I/O that iced-x86 sees, and its length.
pub fn oracle(size: CodeSize, code: &[u8]) -> (Option<(IoInsn, usize)>, Instruction, DecoderError) {
    let bits = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let mut decoder = Decoder::with_ip(bits, code, 0, DecoderOptions::NONE);
    let insn = decoder.decode();
    let error = decoder.last_error();
    let form = match insn.code() {
        Code::Insb_m8_DX => Some(string(Direction::In, Width::Byte, &insn, code, size)),
        Code::Insw_m16_DX => Some(string(Direction::In, Width::Word, &insn, code, size)),
        Code::Insd_m32_DX => Some(string(Direction::In, Width::Dword, &insn, code, size)),
        Code::Outsb_DX_m8 => Some(string(Direction::Out, Width::Byte, &insn, code, size)),
        Code::Outsw_DX_m16 => Some(string(Direction::Out, Width::Word, &insn, code, size)),
        Code::Outsd_DX_m32 => Some(string(Direction::Out, Width::Dword, &insn, code, size)),
        io => super::kind(io).map(|(direction, width)| {
            let operand = match insn.op_kinds().position(|kind| kind == OpKind::Immediate8) {
                Some(at) => PortOperand::Imm8(insn.immediate(at as u32) as u8),
                None => PortOperand::Dx,
            };
            IoInsn { direction, width, operand }
        }),
    };
    (form.map(|form| (form, insn.len())), insn, error)
}

/// INS and OUTS. Two things iced-x86 leaves to its reader: it keeps a REPNE apart from a REP, where CPUs repeat by either;
/// and it names an override that 64-bit mode ignores, where FS and GS alone have a base.
fn string(direction: Direction, width: Width, insn: &Instruction, code: &[u8], size: CodeSize) -> IoInsn {
    let rep = code[..insn.len() - 1].iter().any(|byte| matches!(byte, 0xf2 | 0xf3));
    assert_eq!(rep, insn.has_rep_prefix() || insn.has_repne_prefix());
    let pointer = match direction {
        Direction::In => insn.op0_kind(),
        Direction::Out => insn.op1_kind(),
    };
    let address = match pointer {
        OpKind::MemoryESDI | OpKind::MemorySegSI => AddressSize::Bits16,
        OpKind::MemoryESEDI | OpKind::MemorySegESI => AddressSize::Bits32,
        OpKind::MemoryESRDI | OpKind::MemorySegRSI => AddressSize::Bits64,
        other => panic!("{other:?}"),
    };
    let segment = match (direction, insn.segment_prefix()) {
        (Direction::In, _) => Segment::Es,
        (_, Register::FS) => Segment::Fs,
        (_, Register::GS) => Segment::Gs,
        _ if size == CodeSize::Bits64 => Segment::Ds,
        (_, Register::ES) => Segment::Es,
        (_, Register::CS) => Segment::Cs,
        (_, Register::SS) => Segment::Ss,
        (_, Register::DS | Register::None) => Segment::Ds,
        (_, other) => panic!("{other:?}"),
    };
    IoInsn { direction, width, operand: PortOperand::String { rep, address, segment } }
}

/// Compares this crate with it; returns whether the bytes are port I/O.
pub fn check(size: CodeSize, code: &[u8]) -> bool {
    let ours = IoInsn::decode_in(size, code);
    let (theirs, insn, error) = oracle(size, code);
    assert_eq!(ours.ok(), theirs, "{size:?} {code:02x?}: {ours:?}, iced-x86: {insn}");
    match ours {
        Ok(_) => {}
        Err(DecodeError::Truncated { available }) => {
            assert_eq!((available, error), (code.len(), DecoderError::NoMoreBytes), "{size:?} {code:02x?}");
        }
        Err(DecodeError::TooLong) => {
            assert!(
                code.len() >= 15 && insn.is_invalid() && error != DecoderError::NoMoreBytes,
                "{size:?} {code:02x?}"
            );
        }
        // Found after the whole instruction was: there is none without the LOCK that would be something else.
        Err(DecodeError::Lock) => {
            assert!(insn.is_invalid() && error != DecoderError::NoMoreBytes, "{size:?} {code:02x?}");
            let without: Vec<u8> = code.iter().map(|byte| if *byte == 0xf0 { 0x3e } else { *byte }).collect();
            assert!(IoInsn::decode_in(size, &without).is_ok(), "{size:?} {code:02x?}");
        }
        Err(DecodeError::NotPortIo { opcode }) => {
            assert!(code.contains(&opcode), "{size:?} {code:02x?}");
        }
        Err(other) => panic!("{size:?} {code:02x?}: {other}"),
    }
    theirs.is_some()
}
