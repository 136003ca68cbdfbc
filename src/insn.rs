//! Every form of the port-I/O instructions: what a guest executed, decoded from its bytes or named by its parts.

use core::fmt;

use crate::Gprs;

/// Operand size of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
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
    pub const ALL: [Width; 3] = [Width::Byte, Width::Word, Width::Dword];

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
#[non_exhaustive]
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
        /// With a REP prefix: RCX times.
        rep: bool,
        /// With an address-size prefix (67): EDI, ESI and ECX are used in place of RDI, RSI and RCX.
        addr32: bool,
    },
}

/// One port-I/O instruction: IN or OUT, of 8, 16 or 32 bits, with the port in an immediate byte or in DX; or their string
/// forms INS and OUTS.
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
    pub port: PortOperand,
}

impl IoInsn {
    /// Number of forms of IN and OUT: 6 with DX and 6 × 256 with an immediate port.
    pub const COUNT: usize = 6 + 6 * 256;

    /// Number of forms of INS and OUTS: 6, with and without REP, with and without an address-size prefix.
    pub const STRING_COUNT: usize = 6 * 4;

    /// Longest encoding that [`Self::encode`] gives, in bytes.
    pub const MAX_ENCODED: usize = 4;

    /// The architectural limit on the length of an instruction (SDM vol. 2, 2.3.11).
    const MAX_LENGTH: usize = 15;

    /// `in al/ax/eax, dx`.
    pub const fn in_dx(width: Width) -> Self {
        Self { direction: Direction::In, width, port: PortOperand::Dx }
    }

    /// `in al/ax/eax, port`.
    pub const fn in_imm8(width: Width, port: u8) -> Self {
        Self { direction: Direction::In, width, port: PortOperand::Imm8(port) }
    }

    /// `out dx, al/ax/eax`.
    pub const fn out_dx(width: Width) -> Self {
        Self { direction: Direction::Out, width, port: PortOperand::Dx }
    }

    /// `out port, al/ax/eax`.
    pub const fn out_imm8(width: Width, port: u8) -> Self {
        Self { direction: Direction::Out, width, port: PortOperand::Imm8(port) }
    }

    /// INS: one element from port DX to the address in RDI, which moves on.
    pub const fn ins(width: Width) -> Self {
        Self { direction: Direction::In, width, port: PortOperand::String { rep: false, addr32: false } }
    }

    /// OUTS: one element from the address in RSI, which moves on, to port DX.
    pub const fn outs(width: Width) -> Self {
        Self { direction: Direction::Out, width, port: PortOperand::String { rep: false, addr32: false } }
    }

    /// REP INS: RCX elements.
    pub const fn rep_ins(width: Width) -> Self {
        Self { direction: Direction::In, width, port: PortOperand::String { rep: true, addr32: false } }
    }

    /// REP OUTS: RCX elements.
    pub const fn rep_outs(width: Width) -> Self {
        Self { direction: Direction::Out, width, port: PortOperand::String { rep: true, addr32: false } }
    }

    /// Whether this is INS or OUTS: an instruction that accesses memory.
    pub const fn is_string(self) -> bool {
        matches!(self.port, PortOperand::String { .. })
    }

    /// The opcode byte: 0xE4 to 0xE7 with an immediate port, 0xEC to 0xEF with DX, 0x6C to 0x6F for INS and OUTS. The
    /// 16-bit forms take a 0x66 prefix besides.
    pub const fn opcode(self) -> u8 {
        let base = match self.port {
            PortOperand::Imm8(_) => 0xe4,
            PortOperand::Dx => 0xec,
            PortOperand::String { .. } => 0x6c,
        };
        let out = matches!(self.direction, Direction::Out) as u8;
        let wide = !matches!(self.width, Width::Byte) as u8;
        base | out << 1 | wide
    }

    /// The instruction in its shortest encoding: the bytes, of which the first so many count.
    pub const fn encode(self) -> ([u8; Self::MAX_ENCODED], usize) {
        let (mut bytes, mut len) = ([0; Self::MAX_ENCODED], 0);
        if let PortOperand::String { rep, addr32 } = self.port {
            if addr32 {
                (bytes[len], len) = (0x67, len + 1);
            }
            if rep {
                (bytes[len], len) = (0xf3, len + 1);
            }
        }
        if let Width::Word = self.width {
            (bytes[len], len) = (0x66, len + 1);
        }
        (bytes[len], len) = (self.opcode(), len + 1);
        if let PortOperand::Imm8(port) = self.port {
            (bytes[len], len) = (port, len + 1);
        }
        (bytes, len)
    }

    /// IN and OUT as the stubs hold them: always three bytes, `90` or (16-bit) `66`, the opcode, and the port or `90`.
    pub const fn encode_padded(self) -> [u8; 3] {
        let prefix = match self.width {
            Width::Word => 0x66,
            _ => 0x90,
        };
        let last = match self.port {
            PortOperand::Imm8(port) => port,
            _ => 0x90,
        };
        [prefix, self.opcode(), last]
    }

    /// The first port that the instruction touches, given the registers it runs with.
    pub const fn port(self, gprs: &Gprs) -> u16 {
        match self.port {
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
        let port = match (string, opcode & 0b1000 != 0) {
            (true, _) => PortOperand::String { rep: repeat.is_some(), addr32 },
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
        Ok((Self { direction, width, port }, at))
    }

    /// Every form of IN and OUT, the six with DX first, then those with an immediate port.
    pub fn all() -> impl Iterator<Item = IoInsn> {
        let imm8 = Self::kinds().flat_map(|(direction, width)| {
            (0..=u8::MAX).map(move |port| Self { direction, width, port: PortOperand::Imm8(port) })
        });
        Self::kinds().map(|(direction, width)| Self { direction, width, port: PortOperand::Dx }).chain(imm8)
    }

    /// Every form of INS and OUTS.
    pub fn strings() -> impl Iterator<Item = IoInsn> {
        [(false, false), (true, false), (false, true), (true, true)].into_iter().flat_map(|(rep, addr32)| {
            Self::kinds().map(move |(direction, width)| Self {
                direction,
                width,
                port: PortOperand::String { rep, addr32 },
            })
        })
    }

    fn kinds() -> impl Iterator<Item = (Direction, Width)> {
        [Direction::In, Direction::Out]
            .into_iter()
            .flat_map(|direction| Width::ALL.into_iter().map(move |width| (direction, width)))
    }

    /// Position in [`Self::all`], and from [`Self::COUNT`] on in [`Self::strings`].
    pub(crate) const fn index(self) -> usize {
        let kind = match self.direction {
            Direction::In => 0,
            Direction::Out => 3,
        } + self.width as usize;
        match self.port {
            PortOperand::Dx => kind,
            PortOperand::Imm8(port) => 6 + kind * 256 + port as usize,
            PortOperand::String { rep, addr32 } => Self::COUNT + (rep as usize + 2 * addr32 as usize) * 6 + kind,
        }
    }
}

impl fmt::Display for IoInsn {
    /// Intel syntax: `in al, dx`, `out 0x80, eax`, `rep insb`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let register = match self.width {
            Width::Byte => "al",
            Width::Word => "ax",
            Width::Dword => "eax",
        };
        match (self.direction, self.port) {
            (Direction::In, PortOperand::Dx) => write!(f, "in {register}, dx"),
            (Direction::In, PortOperand::Imm8(port)) => write!(f, "in {register}, {port:#04x}"),
            (Direction::Out, PortOperand::Dx) => write!(f, "out dx, {register}"),
            (Direction::Out, PortOperand::Imm8(port)) => write!(f, "out {port:#04x}, {register}"),
            (direction, PortOperand::String { rep, addr32 }) => {
                let mnemonic = match direction {
                    Direction::In => "ins",
                    Direction::Out => "outs",
                };
                let suffix = match self.width {
                    Width::Byte => "b",
                    Width::Word => "w",
                    Width::Dword => "d",
                };
                let prefixes = if addr32 { "addr32 " } else { "" };
                let rep = if rep { "rep " } else { "" };
                write!(f, "{prefixes}{rep}{mnemonic}{suffix}")
            }
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
