//! Every form of the port-I/O instructions: what a guest executed, decoded from its bytes or named by its parts.

use crate::Gprs;

mod text;

pub use text::ParseInsnError;

/// Operand size of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Width {
    /// 8 bits, AL.
    Byte,
    /// 16 bits, AX.
    Word,
    /// 32 bits, EAX. An IN of this width clears the upper half of RAX.
    Dword,
}

impl Width {
    /// All widths, smallest first.
    pub const ALL: &[Width] = &[Width::Byte, Width::Word, Width::Dword];

    /// Size of the access in bytes: 1, 2 or 4.
    pub const fn bytes(self) -> u8 {
        match self {
            Width::Byte => 1,
            Width::Word => 2,
            Width::Dword => 4,
        }
    }

    /// The bits of RAX that take part in the access.
    pub const fn mask(self) -> u32 {
        match self {
            Width::Byte => 0xff,
            Width::Word => 0xffff,
            Width::Dword => u32::MAX,
        }
    }

    /// RAX after an IN of this width has delivered `value`: AL or AX are replaced and the rest of RAX kept; EAX is
    /// zero-extended (SDM vol. 1, 3.4.1.1).
    pub const fn merge(self, rax: u64, value: u32) -> u64 {
        match self {
            Width::Dword => value as u64,
            _ => rax & !(self.mask() as u64) | (value & self.mask()) as u64,
        }
    }
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the port to RAX.
    In,
    /// From RAX to the port.
    Out,
}

/// Where the instruction takes its port number from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PortOperand {
    /// An 8-bit immediate: ports 0 to 0xFF.
    Imm8(u8),
    /// DX: any port.
    Dx,
    /// DX, the data being in memory: the string instructions INS (to the address in RDI) and OUTS (from that in RSI).
    String {
        /// With a REP prefix: as often as the count register says.
        rep: bool,
        /// Which registers hold address and count.
        address: AddressSize,
        /// Where OUTS reads; INS always writes to ES.
        segment: Segment,
    },
}

/// Address size of INS and OUTS: which registers they take pointer and count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressSize {
    /// SI, DI and CX. There is no such form in 64-bit code.
    Bits16,
    /// ESI, EDI and ECX: in 64-bit code with an address-size prefix (67).
    Bits32,
    /// RSI, RDI and RCX.
    Bits64,
}

impl AddressSize {
    /// The bits of pointer and count register that take part.
    pub const fn mask(self) -> u64 {
        match self {
            AddressSize::Bits16 => 0xffff,
            AddressSize::Bits32 => 0xffff_ffff,
            AddressSize::Bits64 => u64::MAX,
        }
    }
}

/// A segment register.
#[allow(missing_docs)] // the variants are the registers they are named after
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// One port-I/O instruction: IN or OUT, of 8, 16 or 32 bits, with the port in an immediate byte or in DX; or their
/// string forms INS and OUTS.
///
/// ```
/// use ioemul::{Gprs, IoInsn, Width};
/// let (insn, len) = IoInsn::decode(&[0x66, 0xe5, 0x70]).unwrap();
/// assert_eq!(insn, IoInsn::in_imm8(Width::Word, 0x70));
/// assert_eq!((len, insn.port(&Gprs::default())), (3, 0x70));
/// assert_eq!(insn.to_string(), "in ax, 0x70");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias("inb", "inw", "inl", "outb", "outw", "outl", "IN", "OUT"))]
pub struct IoInsn {
    /// IN or OUT.
    pub direction: Direction,
    /// Operand size.
    pub width: Width,
    /// Immediate byte or DX.
    pub operand: PortOperand,
}

impl IoInsn {
    /// Number of forms of IN and OUT: 6 with DX and 6 × 256 with an immediate port.
    pub const COUNT: usize = 6 + 6 * 256;

    /// Number of forms of INS and OUTS: 6, with and without REP, with and without an address-size prefix.
    pub const STRING_COUNT: usize = 6 * 4;

    /// Longest encoding that [`Self::encode`] gives, in bytes.
    pub const MAX_ENCODED: usize = 5;

    /// The architectural limit on the length of an instruction (SDM vol. 2, 2.3.11).
    const MAX_LENGTH: usize = 15;

    /// `in al/ax/eax, dx`.
    pub const fn in_dx(width: Width) -> Self {
        Self { direction: Direction::In, width, operand: PortOperand::Dx }
    }

    /// `in al/ax/eax, port`.
    pub const fn in_imm8(width: Width, port: u8) -> Self {
        Self { direction: Direction::In, width, operand: PortOperand::Imm8(port) }
    }

    /// `out dx, al/ax/eax`.
    pub const fn out_dx(width: Width) -> Self {
        Self { direction: Direction::Out, width, operand: PortOperand::Dx }
    }

    /// `out port, al/ax/eax`.
    pub const fn out_imm8(width: Width, port: u8) -> Self {
        Self { direction: Direction::Out, width, operand: PortOperand::Imm8(port) }
    }

    /// INS: one element from port DX to the address in RDI, which moves on.
    pub const fn ins(width: Width) -> Self {
        Self::string(Direction::In, width, false, AddressSize::Bits64)
    }

    /// OUTS: one element from the address in RSI, which moves on, to port DX.
    pub const fn outs(width: Width) -> Self {
        Self::string(Direction::Out, width, false, AddressSize::Bits64)
    }

    /// REP INS: RCX elements.
    pub const fn rep_ins(width: Width) -> Self {
        Self::string(Direction::In, width, true, AddressSize::Bits64)
    }

    /// REP OUTS: RCX elements.
    pub const fn rep_outs(width: Width) -> Self {
        Self::string(Direction::Out, width, true, AddressSize::Bits64)
    }

    /// INS or OUTS without a segment override.
    const fn string(direction: Direction, width: Width, rep: bool, address: AddressSize) -> Self {
        let segment = match direction {
            Direction::In => Segment::Es,
            Direction::Out => Segment::Ds,
        };
        Self { direction, width, operand: PortOperand::String { rep, address, segment } }
    }

    /// Whether this is INS or OUTS: an instruction that accesses memory.
    pub const fn is_string(self) -> bool {
        matches!(self.operand, PortOperand::String { .. })
    }

    /// The opcode byte: 0xE4 to 0xE7 with an immediate port, 0xEC to 0xEF with DX, 0x6C to 0x6F for INS and OUTS. The
    /// 16-bit forms take a 0x66 prefix besides.
    pub const fn opcode(self) -> u8 {
        let base = match self.operand {
            PortOperand::Imm8(_) => 0xe4,
            PortOperand::Dx => 0xec,
            PortOperand::String { .. } => 0x6c,
        };
        let out = matches!(self.direction, Direction::Out) as u8;
        let wide = !matches!(self.width, Width::Byte) as u8;
        base | out << 1 | wide
    }

    /// The instruction in its shortest encoding in 64-bit code: the bytes, of which the first so many count. (16-bit
    /// addresses cannot be expressed there; they are encoded as 32-bit ones.)
    pub const fn encode(self) -> ([u8; Self::MAX_ENCODED], usize) {
        let mut code = Encoding { bytes: [0; Self::MAX_ENCODED], len: 0 };
        if let PortOperand::String { rep, address, segment } = self.operand {
            match (self.direction, segment) {
                (Direction::In, _) | (_, Segment::Ds) => {}
                (_, Segment::Es) => code.push(0x26),
                (_, Segment::Cs) => code.push(0x2e),
                (_, Segment::Ss) => code.push(0x36),
                (_, Segment::Fs) => code.push(0x64),
                (_, Segment::Gs) => code.push(0x65),
            }
            if !matches!(address, AddressSize::Bits64) {
                code.push(0x67);
            }
            if rep {
                code.push(0xf3);
            }
        }
        if let Width::Word = self.width {
            code.push(0x66);
        }
        code.push(self.opcode());
        if let PortOperand::Imm8(port) = self.operand {
            code.push(port);
        }
        (code.bytes, code.len)
    }

    /// IN and OUT as the stubs hold them: always three bytes, `90` or (16-bit) `66`, the opcode, and the port or `90`.
    pub const fn encode_padded(self) -> [u8; 3] {
        let prefix = match self.width {
            Width::Word => 0x66,
            _ => 0x90,
        };
        let last = match self.operand {
            PortOperand::Imm8(port) => port,
            _ => 0x90,
        };
        [prefix, self.opcode(), last]
    }

    /// The first port that the instruction touches, given the registers it runs with.
    pub const fn port(self, gprs: &Gprs) -> u16 {
        match self.operand {
            PortOperand::Imm8(port) => port as u16,
            PortOperand::Dx | PortOperand::String { .. } => gprs.rdx as u16,
        }
    }

    /// Decodes the instruction at the start of `code`; returns it and its length in bytes.
    ///
    /// 64-bit mode rules (SDM vol. 2, 2.1 and 2.2.1): `66` selects 16 bits unless REX.W overrides it (W does not widen
    /// port I/O beyond 32 bits); a REX that is not directly before the opcode is void; segment overrides and `67` have
    /// no effect on IN and OUT. `67` makes INS and OUTS use 32-bit registers, `F2` and `F3` both repeat them, and an
    /// override to FS or GS, which would move the data of OUTS, is refused.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] says what was wrong; bytes after the instruction are never looked at.
    pub fn decode(code: &[u8]) -> Result<(IoInsn, usize), DecodeError> {
        let (mut operand_size, mut addr32, mut rex_w, mut lock) = (false, false, false, false);
        let (mut repeat, mut segment) = (None, None);
        let mut at = 0;
        let byte_at = |at: usize| {
            if at >= Self::MAX_LENGTH {
                return Err(DecodeError::TooLong);
            }
            code.get(at).copied().ok_or(DecodeError::Truncated { available: code.len() })
        };
        let opcode = loop {
            let byte = byte_at(at)?;
            at += 1;
            match byte {
                0x40..=0x4f => {
                    rex_w = byte & 0x08 != 0;
                    continue;
                }
                0x66 => operand_size = true,
                0xf0 => lock = true,
                0xf2 | 0xf3 => repeat = Some(byte),
                0x67 => addr32 = true,
                0x64 | 0x65 => segment = Some(byte),
                0x26 | 0x2e | 0x36 | 0x3e => {} // no effect in 64-bit mode
                _ => break byte,
            }
            rex_w = false;
        };
        let string = matches!(opcode, 0x6c..=0x6f);
        if !string && !matches!(opcode, 0xe4..=0xe7 | 0xec..=0xef) {
            return Err(DecodeError::NotPortIo { opcode });
        }
        if lock {
            return Err(DecodeError::Lock);
        }
        let direction = if opcode & 0b10 != 0 { Direction::Out } else { Direction::In };
        let width = match opcode & 0b01 {
            0 => Width::Byte,
            _ if operand_size && !rex_w => Width::Word,
            _ => Width::Dword,
        };
        let operand = match (string, opcode & 0b1000 != 0) {
            (true, _) => {
                let address = if addr32 { AddressSize::Bits32 } else { AddressSize::Bits64 };
                Self::string(direction, width, repeat.is_some(), address).operand
            }
            (false, true) => PortOperand::Dx,
            (false, false) => {
                let port = byte_at(at)?;
                at += 1;
                PortOperand::Imm8(port)
            }
        };
        match (string, repeat, segment) {
            (false, Some(prefix), _) => return Err(DecodeError::Repeat { prefix }),
            (true, _, Some(prefix)) if matches!(direction, Direction::Out) => {
                return Err(DecodeError::Segment { prefix });
            }
            _ => {}
        }
        Ok((Self { direction, width, operand }, at))
    }

    /// Every form of IN and OUT, the six with DX first, then those with an immediate port.
    #[inline]
    pub fn in_out() -> impl Iterator<Item = IoInsn> + Clone {
        (0..Self::COUNT).map(|index| {
            let (kind, operand) = match index.checked_sub(6) {
                None => (index, PortOperand::Dx),
                Some(index) => (index / 256, PortOperand::Imm8(index as u8)),
            };
            let (direction, width) = Self::kind(kind);
            Self { direction, width, operand }
        })
    }

    /// Every form of INS and OUTS that has a stub: six instructions, with and without REP, with addresses of 64 and of
    /// 32 bits, no segment override.
    pub fn strings() -> impl Iterator<Item = IoInsn> + Clone {
        (0..Self::STRING_COUNT).map(|index| {
            let (direction, width) = Self::kind(index % 6);
            let address = if index / 12 == 0 { AddressSize::Bits64 } else { AddressSize::Bits32 };
            Self::string(direction, width, index / 6 % 2 == 1, address)
        })
    }

    /// [`Self::in_out`], then [`Self::strings`]: in the order of [`Self::index`].
    pub fn all() -> impl Iterator<Item = IoInsn> + Clone {
        Self::in_out().chain(Self::strings())
    }

    /// IN, then OUT, each by width: from 0 to 5.
    const fn kind(kind: usize) -> (Direction, Width) {
        let direction = if kind < 3 { Direction::In } else { Direction::Out };
        let width = match kind % 3 {
            0 => Width::Byte,
            1 => Width::Word,
            _ => Width::Dword,
        };
        (direction, width)
    }

    /// The position of its stub: in [`Self::in_out`], and from [`Self::COUNT`] on in [`Self::strings`].
    ///
    /// A segment override makes no difference, and 16-bit addresses are not 32-bit ones: whoever runs such a form for a
    /// guest has translated its pointers, and runs the form with 64-bit addresses.
    #[inline(always)]
    pub const fn index(self) -> usize {
        let kind = match self.direction {
            Direction::In => 0,
            Direction::Out => 3,
        } + self.width as usize;
        match self.operand {
            PortOperand::Dx => kind,
            PortOperand::Imm8(port) => 6 + kind * 256 + port as usize,
            PortOperand::String { rep, address, .. } => {
                let addr32 = matches!(address, AddressSize::Bits32);
                Self::COUNT + (rep as usize + 2 * addr32 as usize) * 6 + kind
            }
        }
    }
}

/// An instruction in the making.
struct Encoding {
    bytes: [u8; IoInsn::MAX_ENCODED],
    len: usize,
}

impl Encoding {
    const fn push(&mut self, byte: u8) {
        // Four prefixes and an opcode: no form has more.
        if self.len < self.bytes.len() {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }
}

/// Why bytes are not a port-I/O instruction that this crate runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the instruction does: fetch more and try again.
    #[error("the instruction is cut off after {available} bytes")]
    Truncated {
        /// How many bytes there were.
        available: usize,
    },
    /// Prefixes push the instruction over the architectural limit; a CPU raises #GP.
    #[error("the instruction is longer than 15 bytes")]
    TooLong,
    /// A LOCK prefix, with which a CPU raises #UD.
    #[error("a LOCK prefix (f0) is not allowed on port I/O")]
    Lock,
    /// A REP prefix on an instruction that is not a string instruction.
    #[error("a repeat prefix ({prefix:02x}) has no meaning on IN and OUT")]
    Repeat {
        /// 0xF2 or 0xF3.
        prefix: u8,
    },
    /// OUTS from a segment with a base of its own, FS or GS.
    #[error("a segment override ({prefix:02x}) to FS or GS is not supported on OUTS")]
    Segment {
        /// 0x64 or 0x65.
        prefix: u8,
    },
    /// Some other instruction.
    #[error("opcode {opcode:02x} is not IN, OUT, INS or OUTS")]
    NotPortIo {
        /// The first byte that is not a prefix.
        opcode: u8,
    },
}
