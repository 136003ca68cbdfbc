//! What the integration tests share: the table of I/O forms, random registers, a call that watches the host's.
#![allow(dead_code)] // each test binary uses a part of it

#[cfg(target_os = "linux")]
pub mod alias;
#[cfg(target_os = "linux")]
pub mod child;
pub mod files;
#[cfg(target_os = "linux")]
pub mod gregs;
pub mod host;
pub mod modes;
pub mod slots;
#[cfg(target_os = "linux")]
pub mod timer;
pub mod walk;

use iced_x86::Code;
use ioemul::{Direction, Gprs, IoInsn, PortOperand, Width};
use proptest::prelude::*;

/// One form of the port-I/O instructions, as the SDM's opcode tables and the stubs have it.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub insn: IoInsn,
    /// The three bytes of `<io>` in a stub.
    pub io: [u8; 3],
    /// What a disassembler calls it.
    pub code: Code,
}

/// Direction, width, first byte of `<io>`; opcode and name of the imm8 form; opcode and name of the DX form.
type Row = (Direction, Width, u8, (u8, Code), (u8, Code));

const ROWS: [Row; 6] = [
    (Direction::In, Width::Byte, 0x90, (0xe4, Code::In_AL_imm8), (0xec, Code::In_AL_DX)),
    (Direction::In, Width::Word, 0x66, (0xe5, Code::In_AX_imm8), (0xed, Code::In_AX_DX)),
    (Direction::In, Width::Dword, 0x90, (0xe5, Code::In_EAX_imm8), (0xed, Code::In_EAX_DX)),
    (Direction::Out, Width::Byte, 0x90, (0xe6, Code::Out_imm8_AL), (0xee, Code::Out_DX_AL)),
    (Direction::Out, Width::Word, 0x66, (0xe7, Code::Out_imm8_AX), (0xef, Code::Out_DX_AX)),
    (Direction::Out, Width::Dword, 0x90, (0xe7, Code::Out_imm8_EAX), (0xef, Code::Out_DX_EAX)),
];

/// All 1,542 forms, from the table above and not from the library.
pub fn forms() -> impl Iterator<Item = Form> {
    ROWS.into_iter().flat_map(|(direction, width, first, imm8, dx)| {
        let dx =
            Form { insn: IoInsn { direction, width, operand: PortOperand::Dx }, io: [first, dx.0, 0x90], code: dx.1 };
        let imm8 = (0..=u8::MAX).map(move |port| Form {
            insn: IoInsn { direction, width, operand: PortOperand::Imm8(port) },
            io: [first, imm8.0, port],
            code: imm8.1,
        });
        std::iter::once(dx).chain(imm8)
    })
}

/// Which of the six instructions a disassembler's name stands for.
pub fn kind(code: Code) -> Option<(Direction, Width)> {
    let row = ROWS.iter().find(|row| row.3.1 == code || row.4.1 == code)?;
    Some((row.0, row.1))
}

/// A few forms that differ in everything a stub may depend on, for tests that are slow for each.
pub fn some_forms() -> impl Iterator<Item = Form> {
    forms().filter(|form| matches!(form.insn.operand, PortOperand::Dx | PortOperand::Imm8(0x00 | 0xc3 | 0xff)))
}

/// Any contents of the register file.
pub fn any_gprs() -> impl Strategy<Value = Gprs> {
    any::<[u64; 16]>().prop_map(Gprs::from_words)
}

/// Proptest without files of its own in the repository.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// SplitMix64, for loops that are too long for proptest.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn gprs(&mut self) -> Gprs {
        Gprs::from_words(std::array::from_fn(|_| self.next()))
    }
}
