//! Decoding against an independent disassembler, and any bytes at all through the emulator.
#![cfg(feature = "std")]

mod common;

use common::{Rng, forms};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use ioemul::{
    AddressSize, DecodeError, DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice,
    PortOperand, PortSet, Segment, SoftwareBus, StubLayout, Width,
};

/// The form that iced-x86 sees, and its length.
fn oracle(code: &[u8]) -> (Option<(IoInsn, usize)>, Instruction, DecoderError) {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let insn = decoder.decode();
    let error = decoder.last_error();
    let len = insn.len();
    let form = match insn.code() {
        Code::Insb_m8_DX => string(Direction::In, Width::Byte, &insn, code),
        Code::Insw_m16_DX => string(Direction::In, Width::Word, &insn, code),
        Code::Insd_m32_DX => string(Direction::In, Width::Dword, &insn, code),
        Code::Outsb_DX_m8 => string(Direction::Out, Width::Byte, &insn, code),
        Code::Outsw_DX_m16 => string(Direction::Out, Width::Word, &insn, code),
        Code::Outsd_DX_m32 => string(Direction::Out, Width::Dword, &insn, code),
        io => {
            // F2 and F3 mean nothing on IN and OUT: iced-x86 passes over them, this crate refuses them.
            let repeats = code[..len].iter().take_while(|byte| !matches!(byte, 0xe4..=0xef)).any(is_repeat);
            let operand = match insn.op_kinds().position(|kind| kind == OpKind::Immediate8) {
                Some(at) => PortOperand::Imm8(insn.immediate(at as u32) as u8),
                None => PortOperand::Dx,
            };
            common::kind(io).filter(|_| !repeats).map(|(direction, width)| IoInsn { direction, width, operand })
        }
    };
    (form.map(|form| (form, len)), insn, error)
}

fn is_repeat(byte: &u8) -> bool {
    matches!(byte, 0xf2 | 0xf3)
}

/// INS and OUTS; not with an FS or GS override on OUTS, which this crate refuses.
fn string(direction: Direction, width: Width, insn: &Instruction, code: &[u8]) -> Option<IoInsn> {
    let addr32 = match direction {
        Direction::In => insn.op0_kind() == OpKind::MemoryESEDI,
        _ => insn.op1_kind() == OpKind::MemorySegESI,
    };
    let far = matches!(insn.segment_prefix(), Register::FS | Register::GS) && direction == Direction::Out;
    let rep = code[..insn.len() - 1].iter().any(is_repeat);
    let address = if addr32 { AddressSize::Bits32 } else { AddressSize::Bits64 };
    let segment = if direction == Direction::In { Segment::Es } else { Segment::Ds };
    (!far).then_some(IoInsn { direction, width, operand: PortOperand::String { rep, address, segment } })
}

/// Compares with the oracle.
fn check(code: &[u8]) {
    let ours = IoInsn::decode(code);
    let (theirs, insn, error) = oracle(code);
    assert_eq!(ours.ok(), theirs, "{code:02x?}: {ours:?}, iced-x86: {insn}");
    match ours {
        Err(DecodeError::Truncated { available }) => {
            assert_eq!((available, error), (code.len(), DecoderError::NoMoreBytes), "{code:02x?}");
        }
        Err(DecodeError::TooLong) => assert!(code.len() >= 15 && insn.is_invalid(), "{code:02x?}"),
        Err(DecodeError::Lock) => assert!(insn.is_invalid() && code.contains(&0xf0), "{code:02x?}"),
        Err(DecodeError::Repeat { .. }) => assert!(!insn.is_invalid(), "{code:02x?}"),
        _ => {}
    }
}

const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
const OPCODES: [u8; 12] = [0x6c, 0x6d, 0x6e, 0x6f, 0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef];

/// Random bytes, but mostly prefixes and the opcodes of port I/O.
fn bytes(rng: &mut Rng, buffer: &mut [u8; 20]) -> usize {
    // Few prefixes as a rule, so that LOCK and REP do not refuse everything; now and then more than fit.
    let prefixes = [0, 1, 2, 3, 5, 17][rng.below(6)];
    for (i, byte) in buffer.iter_mut().enumerate() {
        *byte = match rng.below(16) {
            _ if i >= prefixes => OPCODES[rng.below(12)],
            0 => rng.next() as u8,
            1..=5 => 0x40 | rng.next() as u8 & 0x0f,
            6 => PREFIXES[rng.below(11)],
            _ => [0x66, 0x67, 0x26, 0x2e, 0x36, 0x3e, 0x64][rng.below(7)],
        };
    }
    buffer[19] = rng.next() as u8;
    rng.below(21)
}

#[test]
fn random_bytes() {
    let (mut rng, mut buffer, mut accepted) = (Rng(1), [0; 20], 0);
    for _ in 0..200_000 {
        let len = bytes(&mut rng, &mut buffer);
        check(&buffer[..len]);
        accepted += u32::from(IoInsn::decode(&buffer[..len]).is_ok());
    }
    assert!(accepted > 50_000, "{accepted}: most of what is generated should be an instruction");
}

/// All of the one-byte and two-byte strings, and every opcode behind every pair of prefixes.
#[test]
fn short_strings() {
    check(&[]);
    for first in 0..=u8::MAX {
        check(&[first]);
        for second in 0..=u8::MAX {
            check(&[first, second]);
        }
    }
    let prefixes: Vec<u8> = PREFIXES.into_iter().chain(0x40..=0x4f).collect();
    for first in &prefixes {
        for second in &prefixes {
            for opcode in OPCODES {
                check(&[*first, *second, opcode]);
                check(&[*first, *second, opcode, 0x80, 0x90]);
            }
        }
    }
}

#[test]
fn fifteen_bytes_and_no_more() {
    for opcode in OPCODES {
        for prefixes in 0..20 {
            let mut code = vec![0x66; prefixes];
            code.extend([opcode, 0x80]);
            check(&code);
            let len = prefixes + if matches!(opcode, 0xe4..=0xe7) { 2 } else { 1 };
            let result = IoInsn::decode(&code).map(|decoded| decoded.1);
            assert_eq!(result, if len <= 15 { Ok(len) } else { Err(DecodeError::TooLong) }, "{code:02x?}");
        }
    }
}

#[test]
fn what_is_cut_off_says_so() {
    for form in forms().map(|form| form.insn).chain(IoInsn::strings()) {
        let (bytes, len) = form.encode();
        for available in 0..len {
            assert_eq!(IoInsn::decode(&bytes[..available]), Err(DecodeError::Truncated { available }));
        }
    }
}

#[test]
fn encode_and_decode_are_inverse() {
    for form in forms() {
        let (bytes, len) = form.insn.encode();
        assert_eq!(IoInsn::decode(&bytes[..len]), Ok((form.insn, len)));
        assert_eq!(oracle(&bytes[..len]).0, Some((form.insn, len)));
        assert_eq!(form.insn.encode_padded(), form.io);
        assert_eq!(form.insn.opcode(), form.io[1]);
    }
    for form in IoInsn::strings() {
        let (bytes, len) = form.encode();
        assert_eq!(IoInsn::decode(&bytes[..len]), Ok((form, len)));
        assert_eq!(oracle(&bytes[..len]).0, Some((form, len)));
    }
    assert_eq!(IoInsn::strings().count(), IoInsn::STRING_COUNT);
}

#[test]
fn rex_counts_directly_before_the_opcode_only() {
    let width = |code: &[u8]| IoInsn::decode(code).unwrap().0.width;
    assert_eq!(width(&[0x48, 0xef]), Width::Dword, "W does not widen port I/O");
    assert_eq!(width(&[0x66, 0x48, 0xef]), Width::Dword, "W overrides 66");
    assert_eq!(width(&[0x48, 0x66, 0xef]), Width::Word, "a REX before another prefix is void");
    assert_eq!(width(&[0x66, 0x40, 0xef]), Width::Word, "a REX without W changes nothing");
    assert_eq!(width(&[0x48, 0xee]), Width::Byte);
}

/// Changes every register, so that it shows if one was kept in spite of an error; refuses every eighth access.
struct Scrambler {
    accesses: u32,
}

impl PortDevice for Scrambler {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        unreachable!("the bus calls try_access")
    }

    fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {
        unreachable!("the bus calls try_access")
    }

    fn try_access(&mut self, _: PortAccess, _: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        *gprs = Gprs::from_words(gprs.to_words().map(|word| !word));
        self.accesses += 1;
        if self.accesses.is_multiple_of(8) { Err("the eighth".into()) } else { Ok(0x5a5a_5a5a) }
    }
}

#[test]
fn a_million_strings_through_the_emulator() {
    let mut emulators: Vec<IoEmulator> = StubLayout::ALL
        .iter()
        .map(|&layout| {
            let mut bus = SoftwareBus::new();
            bus.attach(0x20..=0x7fff, Scrambler { accesses: 0 }).unwrap();
            let mut ports = PortSet::all();
            ports.deny(0x4000..=0xbfff);
            IoEmulator::builder().layout(layout).ports(ports).bus(bus).build().unwrap()
        })
        .collect();
    let (mut rng, mut buffer) = (Rng(2), [0; 20]);
    let (mut executed, mut failed, mut denied, mut refused) = (0, 0, 0, 0);
    for i in 0..1_000_000 {
        let len = match i % 2 {
            0 => bytes(&mut rng, &mut buffer),
            _ => {
                buffer.fill_with(|| rng.next() as u8);
                rng.below(21)
            }
        };
        let code = &buffer[..len];
        let given = if i % 16 < 2 { rng.gprs() } else { Gprs { rdx: rng.next(), r8: 8, ..Gprs::default() } };
        let mut gprs = given;
        match emulators[i % StubLayout::ALL.len()].emulate(code, &mut gprs) {
            Ok(len) => {
                executed += 1;
                assert_eq!(IoInsn::decode(code).map(|decoded| decoded.1), Ok(len));
            }
            Err(error) => {
                assert_eq!(gprs, given, "{code:02x?}: {error}");
                match error {
                    Error::Device { .. } => failed += 1,
                    Error::PortDenied { .. } => denied += 1,
                    Error::Decode(_) | Error::StringForm { .. } => refused += 1,
                    other => panic!("{code:02x?}: {other}"),
                }
            }
        }
    }
    assert!(
        [executed, failed, denied, refused].into_iter().all(|count| count > 10_000),
        "{executed} {failed} {denied} {refused}"
    );
}
