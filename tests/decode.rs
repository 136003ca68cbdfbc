//! Decoding against an independent disassembler, and any bytes at all through the emulator.
#![cfg(feature = "std")]

mod common;

use common::{Rng, forms};
use iced_x86::{DecoderError, Instruction};
use ioemul::{
    CodeSize, DecodeError, DeviceError, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus,
    StubLayout, Width,
};

/// The form that iced-x86 sees, and its length.
fn oracle(code: &[u8]) -> (Option<(IoInsn, usize)>, Instruction, DecoderError) {
    common::modes::oracle(CodeSize::Bits64, code)
}

/// Compares with the oracle.
fn check(code: &[u8]) {
    common::modes::check(CodeSize::Bits64, code);
}

const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
const OPCODES: [u8; 12] = [0x6c, 0x6d, 0x6e, 0x6f, 0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef];

/// Random bytes, but mostly prefixes and the opcodes of port I/O.
fn bytes(rng: &mut Rng, buffer: &mut [u8; 20]) -> usize {
    // Few prefixes as a rule, so that LOCK does not refuse everything; now and then more than fit.
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
        if self.accesses % 8 == 0 { Err("the eighth".into()) } else { Ok(0x5a5a_5a5a) }
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
