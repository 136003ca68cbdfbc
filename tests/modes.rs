//! Port I/O of guests in every CPU mode: what the bytes are, against an independent disassembler and against tables written
//! by hand; what an instruction of another mode does with the registers; and the text of all of them.
#![cfg(feature = "std")]

mod common;

use common::{Rng, modes};
use ioemul::{
    AddressSize, CodeSize, DecodeError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice,
    PortOperand, PortSet, Segment, SoftwareBus, StubLayout, Width,
};

use AddressSize as A;
use CodeSize::{Bits16, Bits32, Bits64};
use Segment::{Cs, Ds, Es, Fs, Gs, Ss};
use Width::{Byte, Dword, Word};

const OPCODES: [u8; 12] = [0x6c, 0x6d, 0x6e, 0x6f, 0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef];
const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];

/// Every string of up to three bytes of those that mean something, and every byte behind two of them: 27³ + 27² × 256 and
/// shorter ones, with and without something behind them, in three modes.
#[test]
fn short_strings_exhaustively() {
    // REX, opcodes like them, and others: DEC, MOV, NOP, VEX, EVEX, REX2, escapes.
    const OTHERS: [u8; 12] = [0x40, 0x48, 0x49, 0x4f, 0x90, 0x0f, 0x62, 0xc4, 0xc5, 0xd5, 0x9b, 0x80];
    let alphabet: Vec<u8> = OPCODES.into_iter().chain(PREFIXES).chain(OTHERS).collect();
    let (mut strings, mut accepted) = (0, 0);
    for &size in CodeSize::ALL {
        let mut check = |code: &[u8]| {
            strings += 1;
            accepted += u32::from(modes::check(size, code));
        };
        check(&[]);
        for first in 0..=u8::MAX {
            check(&[first]);
            for second in 0..=u8::MAX {
                check(&[first, second]);
            }
        }
        for &first in &alphabet {
            for &second in &alphabet {
                for third in 0..=u8::MAX {
                    check(&[first, second, third]);
                }
                for &third in PREFIXES.iter().chain(&OPCODES) {
                    for &opcode in &OPCODES {
                        check(&[first, second, third, opcode]);
                        check(&[first, second, third, opcode, 0x80]);
                    }
                }
            }
        }
    }
    assert!(strings > 1_500_000 && accepted > 500_000, "{accepted} of {strings}");
}

/// A million strings of any length up to 20, most of them prefixes and opcodes of port I/O, or nearly.
#[test]
fn a_million_random_strings() {
    let (mut rng, mut accepted) = (Rng(10), [0; 3]);
    for turn in 0..1_000_000 {
        let prefixes = [0, 1, 2, 3, 5, 8, 13, 14, 15, 17][rng.below(10)];
        let few = rng.below(2) == 0;
        let mut code: [u8; 20] = std::array::from_fn(|i| match rng.below(32) {
            _ if i >= prefixes => OPCODES[rng.below(12)],
            0 => rng.next() as u8,
            1..4 => 0x40 | rng.next() as u8 & 0x0f,
            _ if few => [0x66, 0x67, 0x2e, 0x64][rng.below(4)],
            _ => PREFIXES[rng.below(PREFIXES.len())],
        });
        code[19] = rng.next() as u8;
        let len = if rng.below(2) == 0 { 20 } else { rng.below(21) };
        let mode = turn % 3;
        accepted[mode] += u32::from(modes::check(CodeSize::ALL[mode], &code[..len]));
    }
    assert!(accepted.into_iter().all(|count| count > 100_000), "{accepted:?}");
}

/// Operand and address size of each mode, without and with each prefix, from the tables of the manuals (SDM vol. 1, 3.6,
/// tables 3-3 and 3-4).
#[test]
fn sizes_of_every_mode() {
    for (size, prefixes, width, address) in [
        (Bits16, &[][..], Word, A::Bits16),
        (Bits16, &[0x66], Dword, A::Bits16),
        (Bits16, &[0x67], Word, A::Bits32),
        (Bits16, &[0x66, 0x67], Dword, A::Bits32),
        (Bits32, &[], Dword, A::Bits32),
        (Bits32, &[0x66], Word, A::Bits32),
        (Bits32, &[0x67], Dword, A::Bits16),
        (Bits32, &[0x66, 0x67], Word, A::Bits16),
        (Bits64, &[], Dword, A::Bits64),
        (Bits64, &[0x66], Word, A::Bits64),
        (Bits64, &[0x67], Dword, A::Bits32),
        (Bits64, &[0x66, 0x67], Word, A::Bits32),
        (Bits64, &[0x48], Dword, A::Bits64),
        (Bits64, &[0x66, 0x48], Dword, A::Bits64),
        (Bits64, &[0x67, 0x66, 0x48], Dword, A::Bits32),
        // Once is as good as twice.
        (Bits16, &[0x66, 0x66], Dword, A::Bits16),
        (Bits32, &[0x67, 0x67], Dword, A::Bits16),
    ] {
        for opcode in OPCODES {
            let code = [prefixes, &[opcode, 0x70]].concat();
            let (insn, len) = IoInsn::decode_in(size, &code).unwrap();
            let direction = if opcode & 2 == 0 { Direction::In } else { Direction::Out };
            let width = if opcode & 1 == 0 { Byte } else { width };
            let operand = match opcode {
                0xe4..=0xe7 => PortOperand::Imm8(0x70),
                0xec..=0xef => PortOperand::Dx,
                _ => {
                    let segment = if direction == Direction::In { Es } else { Ds };
                    PortOperand::String { rep: false, address, segment }
                }
            };
            assert_eq!(insn, IoInsn { direction, width, operand }, "{size:?} {code:02x?}");
            assert_eq!(len, prefixes.len() + 1 + usize::from(matches!(opcode, 0xe4..=0xe7)));
        }
    }
}

/// Where OUTS reads: the last override counts, of those that the mode has. INS has none, and its segment is ES.
#[test]
fn segments_of_every_mode() {
    for (prefixes, elsewhere, in_64_bit) in [
        (&[][..], Ds, Ds),
        (&[0x26], Es, Ds),
        (&[0x2e], Cs, Ds),
        (&[0x36], Ss, Ds),
        (&[0x3e], Ds, Ds),
        (&[0x64], Fs, Fs),
        (&[0x65], Gs, Gs),
        (&[0x64, 0x65], Gs, Gs),
        (&[0x65, 0x64], Fs, Fs),
        (&[0x64, 0x2e], Cs, Fs),
        (&[0x65, 0x3e], Ds, Gs),
        (&[0x2e, 0x64], Fs, Fs),
        (&[0x26, 0x36, 0xf3, 0x66], Ss, Ds),
    ] {
        for (size, expected) in [(Bits16, elsewhere), (Bits32, elsewhere), (Bits64, in_64_bit)] {
            for opcode in [0x6c, 0x6d, 0x6e, 0x6f] {
                let code = [prefixes, &[opcode]].concat();
                let PortOperand::String { segment, .. } = IoInsn::decode_in(size, &code).unwrap().0.operand else {
                    panic!("{code:02x?}")
                };
                assert_eq!(segment, if opcode < 0x6e { Es } else { expected }, "{size:?} {code:02x?}");
            }
            // On IN and OUT they change nothing.
            let code = [prefixes, &[0xec]].concat();
            assert_eq!(IoInsn::decode_in(size, &code), Ok((IoInsn::in_dx(Byte), code.len())), "{size:?} {code:02x?}");
        }
    }
}

#[test]
fn repeat_prefixes() {
    for &size in CodeSize::ALL {
        for (prefixes, expected) in [
            (&[][..], false),
            (&[0xf3], true),
            (&[0xf2], true),
            (&[0xf2, 0xf3], true),
            (&[0xf3, 0xf2], true),
            (&[0xf2, 0x66], true),
        ] {
            for opcode in OPCODES {
                let code = [prefixes, &[opcode, 0x70]].concat();
                let (insn, _) = IoInsn::decode_in(size, &code).unwrap();
                let plain: Vec<u8> = code.iter().copied().filter(|byte| !matches!(byte, 0xf2 | 0xf3)).collect();
                let (without, _) = IoInsn::decode_in(size, &plain).unwrap();
                match (insn.operand, without.operand) {
                    (
                        PortOperand::String { rep, address, segment },
                        PortOperand::String { rep: false, address: a, segment: s },
                    ) => assert_eq!((rep, address, segment), (expected, a, s), "{code:02x?}"),
                    _ => assert_eq!(insn, without, "{size:?} {code:02x?}: ignored on IN and OUT"),
                }
            }
        }
    }
}

#[test]
fn rex_is_for_64_bit_code_only() {
    for rex in 0x40..=0x4f {
        for opcode in OPCODES {
            for size in [Bits16, Bits32] {
                let code = [rex, opcode, 0x70];
                assert_eq!(IoInsn::decode_in(size, &code), Err(DecodeError::NotPortIo { opcode: rex }), "INC and DEC");
                let code = [0x66, rex, opcode, 0x70];
                assert_eq!(IoInsn::decode_in(size, &code), Err(DecodeError::NotPortIo { opcode: rex }));
            }
            assert!(IoInsn::decode_in(Bits64, &[rex, opcode, 0x70]).is_ok());
        }
    }
}

/// A CPU has fetched an instruction before it refuses it; it fetches 15 bytes at most; and it knows the opcode before it
/// knows whether LOCK may stand there.
#[test]
fn errors_in_the_order_in_which_a_cpu_finds_them() {
    let locks = |count: usize, rest: &[u8]| [&vec![0xf0; count][..], rest].concat();
    for &size in CodeSize::ALL {
        let decode = |code: &[u8]| IoInsn::decode_in(size, code).map(|decoded| decoded.1);
        for (code, expected) in [
            (locks(1, &[]), DecodeError::Truncated { available: 1 }),
            (locks(1, &[0xe4]), DecodeError::Truncated { available: 2 }),
            (locks(1, &[0xe4, 0x70]), DecodeError::Lock),
            (locks(1, &[0xec]), DecodeError::Lock),
            (locks(1, &[0x6e]), DecodeError::Lock),
            (locks(1, &[0xf3, 0x66, 0x6f]), DecodeError::Lock),
            (locks(1, &[0x90]), DecodeError::NotPortIo { opcode: 0x90 }),
            (locks(13, &[0xe4]), DecodeError::Truncated { available: 14 }),
            (locks(13, &[0xe4, 0x70]), DecodeError::Lock),
            (locks(14, &[]), DecodeError::Truncated { available: 14 }),
            (locks(14, &[0xec]), DecodeError::Lock),
            (locks(14, &[0x6c]), DecodeError::Lock),
            (locks(14, &[0x90]), DecodeError::NotPortIo { opcode: 0x90 }),
            (locks(14, &[0xe4]), DecodeError::TooLong),
            (locks(14, &[0xe4, 0x70]), DecodeError::TooLong),
            (locks(15, &[]), DecodeError::TooLong),
            (locks(15, &[0xec]), DecodeError::TooLong),
            (locks(15, &[0x90]), DecodeError::TooLong),
        ] {
            assert_eq!(decode(&code), Err(expected), "{size:?} {code:02x?}");
        }
        // And without a LOCK.
        for opcode in OPCODES {
            let tail: &[u8] = if matches!(opcode, 0xe4..=0xe7) { &[opcode, 0x70] } else { &[opcode] };
            for prefixes in 0..20 {
                let code = [&vec![0x67; prefixes][..], tail].concat();
                let expected = if code.len() <= 15 { Ok(code.len()) } else { Err(DecodeError::TooLong) };
                assert_eq!(decode(&code), expected, "{code:02x?}");
                for available in 0..code.len().min(15) {
                    assert_eq!(decode(&code[..available]), Err(DecodeError::Truncated { available }), "{code:02x?}");
                }
            }
        }
    }
}

/// Every form that `decode_in` can give.
fn every_string_form() -> impl Iterator<Item = IoInsn> {
    let forms = [Direction::In, Direction::Out].into_iter().flat_map(|direction| {
        let segments: &[Segment] = if direction == Direction::In { &[Es] } else { &[Es, Cs, Ss, Ds, Fs, Gs] };
        segments.iter().map(move |segment| (direction, *segment))
    });
    forms.flat_map(|(direction, segment)| {
        [A::Bits16, A::Bits32, A::Bits64].into_iter().flat_map(move |address| {
            [false, true].into_iter().flat_map(move |rep| {
                let operand = PortOperand::String { rep, address, segment };
                Width::ALL.iter().map(move |width| IoInsn { direction, width: *width, operand })
            })
        })
    })
}

#[test]
fn the_text_of_every_string_form_is_read_back() {
    let mut texts = std::collections::BTreeSet::new();
    for insn in every_string_form() {
        let text = insn.to_string();
        assert_eq!(text.parse(), Ok(insn), "{text}");
        assert!(texts.insert(text), "{insn:?}");
    }
    assert_eq!(texts.len(), 7 * 3 * 2 * 3);
    for (code, text) in [
        (&[0xf3, 0x6e][..], ["addr16 rep outsb", "addr32 rep outsb", "rep outsb"]),
        (&[0x65, 0x67, 0x6f], ["gs addr32 outsw", "gs addr16 outsd", "gs addr32 outsd"]),
        (&[0x26, 0x66, 0x6f], ["es addr16 outsd", "es addr32 outsw", "outsw"]),
        (&[0x36, 0x6c], ["addr16 insb", "addr32 insb", "insb"]),
    ] {
        for (size, text) in CodeSize::ALL.iter().zip(text) {
            assert_eq!(IoInsn::decode_in(*size, code).unwrap().0.to_string(), text, "{size:?} {code:02x?}");
        }
    }
}

/// What is listed as having a stub: of the forms that guests have, those without an override in 64-bit code. All others
/// run by one of these.
#[test]
fn the_forms_that_have_stubs() {
    let listed: Vec<IoInsn> = IoInsn::strings().collect();
    for insn in every_string_form() {
        let PortOperand::String { address, segment, .. } = insn.operand else { panic!("{insn}") };
        let own = segment == if insn.direction == Direction::In { Es } else { Ds };
        assert_eq!(listed.contains(&insn), own && address != A::Bits16, "{insn}");
        let stands_in = listed[insn.index() - IoInsn::COUNT];
        assert_eq!((stands_in.direction, stands_in.width), (insn.direction, insn.width), "{insn}");
        let PortOperand::String { rep, address: wide, .. } = stands_in.operand else { panic!("{stands_in}") };
        assert!(matches!(insn.operand, PortOperand::String { rep: same, .. } if same == rep), "{insn}");
        assert_eq!(wide, if address == A::Bits32 { A::Bits32 } else { A::Bits64 }, "{insn}");
    }
}

/// Answers all ones but for the last bit, and counts.
struct Ones(u32);

impl PortDevice for Ones {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        self.0 += 1;
        0xffff_fffe
    }
}

fn emulators() -> impl Iterator<Item = IoEmulator> {
    StubLayout::ALL.iter().copied().map(Some).chain([None]).map(|layout| {
        let mut bus = SoftwareBus::new();
        bus.attach(0x70..=0x7f, Ones(0)).unwrap();
        let builder = IoEmulator::builder().ports(PortSet::from(0x70..=0x7f)).bus(bus);
        match layout {
            Some(layout) => builder.layout(layout).build().unwrap(),
            None => builder.direct().build().unwrap(),
        }
    })
}

/// The registers are one file in all modes: an IN of 8 or 16 bits keeps the rest of RAX, one of 32 bits clears the upper half.
#[test]
fn emulate_in_changes_rax_by_the_operand_size() {
    const RAX: u64 = 0x1122_3344_5566_7788;
    for mut emulator in emulators() {
        for (size, code, rax) in [
            (Bits16, &[0xec][..], 0x1122_3344_5566_77fe),
            (Bits16, &[0xed], 0x1122_3344_5566_fffe),
            (Bits16, &[0x66, 0xed], 0xffff_fffe),
            (Bits16, &[0x66, 0xe5, 0x70], 0xffff_fffe),
            (Bits32, &[0xe4, 0x71], 0x1122_3344_5566_77fe),
            (Bits32, &[0xed], 0xffff_fffe),
            (Bits32, &[0x66, 0xed], 0x1122_3344_5566_fffe),
            (Bits32, &[0xf3, 0x66, 0xed], 0x1122_3344_5566_fffe),
            (Bits64, &[0xed], 0xffff_fffe),
            (Bits64, &[0xf2, 0x66, 0xed], 0x1122_3344_5566_fffe),
        ] {
            let given = Gprs { rax: RAX, rdx: 0xaaaa_0070, r9: 9, ..Gprs::from_words([0x55; 16]) };
            let mut gprs = given;
            assert_eq!(emulator.emulate_in(size, code, &mut gprs).unwrap(), code.len());
            assert_eq!(gprs, Gprs { rax, ..given }, "{size:?} {code:02x?}");
        }
        // 64-bit code is what `emulate` takes: 48 is a REX there, and DEC EAX elsewhere.
        let mut gprs = Gprs { rdx: 0x70, ..Gprs::default() };
        assert_eq!(emulator.emulate(&[0x48, 0xed], &mut gprs).unwrap(), 2);
        let before = gprs;
        let error = emulator.emulate_in(Bits32, &[0x48, 0xed], &mut gprs).unwrap_err();
        assert!(matches!(error, Error::Decode(DecodeError::NotPortIo { opcode: 0x48 })), "{error}");
        // The width counts for the permission: 32 bits at 0x7e reach 0x81.
        let mut gprs = Gprs { rdx: 0x7e, ..before };
        emulator.emulate_in(Bits16, &[0xed], &mut gprs).unwrap();
        let error = emulator.emulate_in(Bits32, &[0xed], &mut gprs).unwrap_err();
        assert!(matches!(error, Error::PortDenied { port: 0x7e, width: Dword, .. }), "{error}");
        let error = emulator.emulate_in(Bits16, &[0xf3, 0x6c], &mut gprs).unwrap_err();
        assert!(matches!(error, Error::StringForm { .. }), "{error}");
    }
}

/// String forms of each mode as decoded: the registers of their size move, wrap within it, and keep or lose what is above.
#[test]
fn strings_of_every_mode() {
    const UP: u64 = 0xdead_beef_cafe_0000;
    for mut emulator in emulators() {
        for (size, code, rcx, rdi, moved) in [
            // The bits above 16 stay.
            (Bits16, &[0xf3, 0x6c][..], (UP | 3, UP), (UP | 0xfffe, UP | 1), 3),
            (Bits16, &[0xf3, 0x6d], (UP | 2, UP), (UP | 0xfffc, UP), 4),
            (Bits16, &[0x6d], (UP | 2, UP | 2), (UP | 0xfffe, UP), 2),
            (Bits32, &[0x67, 0xf3, 0x6d], (UP | 1, UP), (UP | 0xfffc, UP), 4),
            // 32-bit results are zero-extended.
            (Bits16, &[0x67, 0xf3, 0x6d], (0xdead_beef_0000_0002, 0), (UP | 0x0fff, 0xcafe_1003), 4),
            (Bits32, &[0xf3, 0x6d], (0xdead_beef_0000_0001, 0), (0xffff_ffff_ffff_fffc, 0), 4),
            (Bits64, &[0x67, 0xf3, 0x6c], (0xdead_beef_0000_0001, 0), (0x1_ffff_ffff, 0), 1),
            (Bits64, &[0xf3, 0x6c], (1, 0), (u64::MAX, 0), 1),
        ] {
            let (insn, len) = IoInsn::decode_in(size, code).unwrap();
            assert_eq!(len, code.len());
            for rsi in [0, UP | 0xabcd] {
                let given = Gprs { rcx: rcx.0, rdx: 0x74, rsi, rdi: rdi.0, ..Gprs::default() };
                let (mut gprs, mut memory) = (given, [0; 8]);
                assert_eq!(emulator.read_string(insn, &mut gprs, &mut memory).unwrap(), moved, "{size:?} {insn}");
                assert_eq!(gprs, Gprs { rcx: rcx.1, rdi: rdi.1, ..given }, "{size:?} {insn}");
                assert!(
                    memory[..moved].iter().all(|byte| *byte >= 0xfe) && memory[moved..].iter().all(|byte| *byte == 0)
                );
                // OUTS moves SI in the same way.
                let outs = IoInsn { direction: Direction::Out, ..insn };
                let given = Gprs { rsi: rdi.0, rdi: rsi, ..given };
                let mut gprs = given;
                assert_eq!(emulator.write_string(outs, &mut gprs, &memory).unwrap(), moved, "{size:?} {outs}");
                assert_eq!(gprs, Gprs { rcx: rcx.1, rsi: rdi.1, ..given }, "{size:?} {outs}");
            }
        }
    }
}
