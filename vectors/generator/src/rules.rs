//! What a CPU does, from the manuals: Intel's SDM (vol. 1: 3.4.1.1, 3.7.7, 19.5; vol. 2: 2.1, 2.2.1, 2.3.11, and the pages
//! of IN, OUT, INS, OUTS and REP; vol. 3: 5.3) and AMD's APM (vol. 2: 12.2.5; vol. 3: 1.2 and the same instructions).
//!
//! Written to be compared with those pages, one step after the other, and not to be fast.

use std::collections::BTreeMap;

pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RSI: usize = 6;
pub const RDI: usize = 7;
pub const RFLAGS: usize = 16;

pub const FLAG_DF: u64 = 1 << 10;
pub const FLAG_VM: u64 = 1 << 17;
pub const PAGE: u64 = 4096;

const LONGEST: usize = 15;

/// What a code segment's D and L bits say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Bits16,
    Bits32,
    Bits64,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Bits16, Self::Bits32, Self::Bits64];

    pub fn bits(self) -> u8 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }

    /// A code byte that is a REX prefix here, and INC or DEC elsewhere.
    fn is_rex(self, byte: u8) -> bool {
        self == Self::Bits64 && byte & 0xf0 == 0x40
    }

    /// Address size in bits.
    pub fn address_size(self, override_67: bool) -> u8 {
        match (self, override_67) {
            (Self::Bits16, false) | (Self::Bits32, true) => 16,
            (Self::Bits16, true) | (Self::Bits32, false) | (Self::Bits64, true) => 32,
            (Self::Bits64, false) => 64,
        }
    }
}

/// Segment registers by their numbers in machine code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl Segment {
    pub const NAMES: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

    pub fn of_prefix(byte: u8) -> Option<Self> {
        match byte {
            0x26 => Some(Self::Es),
            0x2e => Some(Self::Cs),
            0x36 => Some(Self::Ss),
            0x3e => Some(Self::Ds),
            0x64 => Some(Self::Fs),
            0x65 => Some(Self::Gs),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
pub struct Descriptor {
    pub base: u64,
    /// The last offset. 64-bit code does not look at it.
    pub limit: u64,
}

pub const FLAT: Descriptor = Descriptor { base: 0, limit: 0xffff_ffff };

/// The I/O permission bitmap of the task's TSS.
#[derive(Clone)]
pub struct Bitmap {
    /// From the map's base to the segment limit.
    pub bytes: usize,
    /// Which bits are set: first and last of each run.
    pub denied: Vec<(u32, u32)>,
}

#[derive(Clone)]
pub struct Privilege {
    pub cpl: u8,
    pub iopl: u8,
    pub vm86: bool,
    pub bitmap: Bitmap,
}

#[derive(Clone, Default)]
pub struct Memory {
    /// Which pages there are, and whether they may be written.
    pub pages: BTreeMap<u64, bool>,
    /// What is not 0.
    pub bytes: BTreeMap<u64, u8>,
}

/// Everything that there is before the instruction.
#[derive(Clone)]
pub struct Machine {
    pub mode: Mode,
    pub code: Vec<u8>,
    pub rip: u64,
    pub registers: [u64; 17],
    pub segments: [Descriptor; 6],
    /// Without it: CPL 0.
    pub privilege: Option<Privilege>,
    pub memory: Memory,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    InvalidOpcode,
    GeneralProtection,
    StackFault,
    PageFault,
    Truncated,
    NotIo,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::InvalidOpcode => "#UD",
            Self::GeneralProtection => "#GP(0)",
            Self::StackFault => "#SS(0)",
            Self::PageFault => "#PF",
            Self::Truncated => "truncated",
            Self::NotIo => "not-io",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    pub is_out: bool,
    pub port: u16,
    pub width: u8,
    pub value: u32,
}

/// Everything that there is after it.
#[derive(Clone)]
pub struct After {
    pub outcome: Outcome,
    pub page: Option<u64>,
    pub accesses: Vec<Access>,
    /// One that may have been made besides, before the fault.
    pub maybe: Option<Access>,
    pub registers: [u64; 17],
    pub written: BTreeMap<u64, u8>,
}

/// An instruction, taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    pub is_out: bool,
    pub is_string: bool,
    pub width: u8,
    pub immediate: Option<u8>,
    pub address_size: u8,
    pub repeats: bool,
    pub segment: Segment,
    pub length: usize,
}

pub fn mask(width: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(width))
}

pub fn address_mask(address_size: u8) -> u64 {
    u64::MAX >> (64 - address_size)
}

/// SDM vol. 2, 2.1 (prefixes), 2.2.1 (REX), 2.3.11 (15 bytes); LOCK is found when all bytes have been fetched.
pub fn decode(mode: Mode, code: &[u8]) -> Result<Decoded, Outcome> {
    let fetch = |at: usize| match code.get(at) {
        _ if at >= LONGEST => Err(Outcome::GeneralProtection),
        Some(byte) => Ok(*byte),
        None => Err(Outcome::Truncated),
    };
    let (mut has_66, mut has_67, mut has_lock, mut has_repeat) = (false, false, false, false);
    let (mut segment, mut rex) = (None, 0);
    let mut at = 0;
    let opcode = loop {
        let byte = fetch(at)?;
        at += 1;
        if mode.is_rex(byte) {
            rex = byte; // it counts if the opcode is next
            continue;
        }
        match byte {
            0x66 => has_66 = true,
            0x67 => has_67 = true,
            0xf0 => has_lock = true,
            0xf2 | 0xf3 => has_repeat = true,
            _ => match Segment::of_prefix(byte) {
                // APM vol. 3, 1.2.4: the others are ignored in 64-bit code, and do not take an FS or GS away either.
                Some(Segment::Es | Segment::Cs | Segment::Ss | Segment::Ds) if mode == Mode::Bits64 => {}
                Some(named) => segment = Some(named),
                None => break byte,
            },
        }
        rex = 0;
    };
    let is_string = matches!(opcode, 0x6c..=0x6f);
    if !is_string && !matches!(opcode, 0xe4..=0xe7 | 0xec..=0xef) {
        return Err(Outcome::NotIo);
    }
    let immediate = if matches!(opcode, 0xe4..=0xe7) {
        at += 1;
        Some(fetch(at - 1)?)
    } else {
        None
    };
    if has_lock {
        return Err(Outcome::InvalidOpcode);
    }
    let is_out = opcode & 2 != 0;
    let wide = match mode {
        Mode::Bits16 if has_66 => 4,
        Mode::Bits16 => 2,
        Mode::Bits64 if rex & 8 != 0 => 4, // there is no wider port
        _ if has_66 => 2,
        _ => 4,
    };
    Ok(Decoded {
        is_out,
        is_string,
        width: if opcode & 1 == 0 { 1 } else { wide },
        immediate,
        address_size: mode.address_size(has_67),
        repeats: is_string && has_repeat,
        segment: if is_out { segment.unwrap_or(Segment::Ds) } else { Segment::Es },
        length: at,
    })
}

impl Machine {
    /// How many elements the instruction moves, unless something stops it.
    pub fn count(&self, insn: &Decoded) -> u64 {
        if insn.repeats { self.registers[RCX] & address_mask(insn.address_size) } else { 1 }
    }

    pub fn port(&self, insn: &Decoded) -> u16 {
        insn.immediate.map_or(self.registers[RDX] as u16, u16::from)
    }

    /// The effective address of element `index`: it moves by the width, down if DF is set, within the address size.
    pub fn offset(&self, insn: &Decoded, index: u64) -> u64 {
        let pointer = self.registers[if insn.is_out { RSI } else { RDI }];
        let moved = index.wrapping_mul(u64::from(insn.width));
        let address = if self.registers[RFLAGS] & FLAG_DF != 0 {
            pointer.wrapping_sub(moved)
        } else {
            pointer.wrapping_add(moved)
        };
        address & address_mask(insn.address_size)
    }

    /// In 64-bit code only FS and GS have a base.
    pub fn base(&self, segment: Segment) -> u64 {
        match (self.mode, segment) {
            (Mode::Bits64, Segment::Fs | Segment::Gs) => self.segments[segment as usize].base,
            (Mode::Bits64, _) => 0,
            _ => self.segments[segment as usize].base,
        }
    }

    /// The linear addresses of the bytes of the element at `offset`.
    pub fn linear(&self, insn: &Decoded, offset: u64) -> Vec<u64> {
        let space = if self.mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff };
        let first = self.base(insn.segment).wrapping_add(offset);
        (0..u64::from(insn.width)).map(|byte| first.wrapping_add(byte) & space).collect()
    }

    /// What accessing the element at `offset` raises: SDM vol. 3, 5.3 (limits); canonical addresses; pages.
    fn memory_fault(&self, insn: &Decoded, offset: u64) -> Option<(Outcome, Option<u64>)> {
        let addresses = self.linear(insn, offset);
        if self.mode == Mode::Bits64 {
            let canonical = |address: u64| matches!(address >> 47, 0 | 0x1_ffff);
            if !addresses.iter().all(|address| canonical(*address)) {
                return Some((Outcome::GeneralProtection, None));
            }
        } else {
            let last = offset + u64::from(insn.width) - 1;
            assert!(last <= 0xffff_ffff, "what becomes of an operand that goes round 4 GiB is up to the model");
            if last > self.segments[insn.segment as usize].limit {
                let is_stack = insn.segment == Segment::Ss;
                return Some((if is_stack { Outcome::StackFault } else { Outcome::GeneralProtection }, None));
            }
        }
        let usable = |address: u64| match self.memory.pages.get(&(address / PAGE * PAGE)) {
            Some(writable) => insn.is_out || *writable,
            None => false,
        };
        let bad = addresses.into_iter().find(|address| !usable(*address))?;
        Some((Outcome::PageFault, Some(bad / PAGE * PAGE)))
    }

    /// SDM vol. 1, 19.5.1 and 19.5.2: who has to ask the bitmap, and what it says. Two bytes are read, always, and both
    /// have to be within the segment's limit.
    pub fn is_denied(&self, port: u16, width: u8) -> bool {
        let Some(Privilege { cpl, iopl, vm86, bitmap }) = &self.privilege else { return false };
        if !vm86 && cpl <= iopl {
            return false;
        }
        let is_set = |bit: u32| bitmap.denied.iter().any(|(first, last)| (*first..=*last).contains(&bit));
        usize::from(port / 8) + 1 >= bitmap.bytes || (0..u32::from(width)).any(|byte| is_set(u32::from(port) + byte))
    }

    /// What the instruction does. `answer` is asked for the value of each IN, given its width.
    pub fn execute(&self, mut answer: impl FnMut(u8) -> u32) -> After {
        let mut after = After {
            outcome: Outcome::Done,
            page: None,
            accesses: Vec::new(),
            maybe: None,
            registers: self.registers,
            written: BTreeMap::new(),
        };
        let insn = match decode(self.mode, &self.code) {
            Ok(insn) => insn,
            Err(outcome) => return After { outcome, ..after },
        };
        let (port, width) = (self.port(&insn), insn.width);
        if self.is_denied(port, width) {
            return After { outcome: Outcome::GeneralProtection, ..after };
        }
        let access = |value| Access { is_out: insn.is_out, port, width, value };
        if !insn.is_string {
            let value = if insn.is_out { self.registers[RAX] as u32 & mask(width) } else { answer(width) };
            if !insn.is_out {
                self.write(&mut after.registers, RAX, width * 8, value.into());
            }
            after.accesses.push(access(value));
            return after;
        }
        let mut memory = self.memory.clone();
        for index in 0..self.count(&insn) {
            let offset = self.offset(&insn, index);
            if let Some((outcome, page)) = self.memory_fault(&insn, offset) {
                let maybe = (!insn.is_out).then(|| access(answer(width)));
                return After { outcome, page, maybe, ..after };
            }
            let addresses = self.linear(&insn, offset);
            let value = if insn.is_out {
                let bytes = addresses.iter().map(|address| memory.bytes.get(address).copied().unwrap_or(0));
                bytes.rev().fold(0, |value, byte| value << 8 | u32::from(byte))
            } else {
                let value = answer(width);
                for (address, byte) in addresses.into_iter().zip(value.to_le_bytes()) {
                    memory.bytes.insert(address, byte);
                    after.written.insert(address, byte);
                }
                value
            };
            after.accesses.push(access(value));
            let pointer = if insn.is_out { RSI } else { RDI };
            self.write(&mut after.registers, pointer, insn.address_size, self.offset(&insn, index + 1));
            if insn.repeats {
                let left = (self.count(&insn) - 1).wrapping_sub(index);
                self.write(&mut after.registers, RCX, insn.address_size, left);
            }
        }
        after
    }

    /// SDM vol. 1, 3.4.1.1: 8 and 16 bits leave the rest of the register, 32 bits clear the upper half. In 16- and
    /// 32-bit code nothing is said of the upper half.
    fn write(&self, registers: &mut [u64; 17], register: usize, bits: u8, value: u64) {
        let kept = if bits >= 32 { 0 } else { !address_mask(bits) };
        registers[register] = registers[register] & kept | value & address_mask(bits);
    }

    /// The bits of registers that this mode has.
    pub fn register_mask(&self) -> u64 {
        if self.mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff }
    }
}
