//! Every form of the port-I/O instructions: what a guest executed, decoded from its bytes or named by its parts.

use crate::Gprs;

mod exit;
mod steps;
mod text;

pub(crate) use steps::Steps;
pub use steps::StringProgress;
pub use text::ParseInsnError;

/// What kind of code an instruction is from: which size operands and addresses have by default, and whether there are
/// REX prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, and code segments with CS.D = 0.
    Bits16,
    /// Code segments with CS.D = 1, outside 64-bit mode: compatibility mode among them.
    Bits32,
    /// 64-bit mode: EFER.LMA = 1 and CS.L = 1.
    Bits64,
}

impl CodeSize {
    /// All of them, smallest first.
    pub const ALL: &[CodeSize] = &[CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];
}

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
        /// Where OUTS reads: an address in RSI is relative to this segment's base, which the caller knows and adds. INS
        /// always writes to ES, whatever stands here; the decoder and the conversions from exits say `Es`.
        segment: Segment,
    },
}

/// Address size of INS and OUTS: which registers they take pointer and count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressSize {
    /// SI, DI and CX, which wrap within 16 bits; the bits above are kept. In 16-bit code, and in 32-bit code with an
    /// address-size prefix (67). There is no such form in 64-bit code.
    Bits16,
    /// ESI, EDI and ECX; a result is zero-extended. In 32-bit code, and in 16-bit and 64-bit code with an address-size
    /// prefix (67).
    Bits32,
    /// RSI, RDI and RCX. In 64-bit code only.
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
        Self::string_in(Segment::Ds, direction, width, rep, address)
    }

    /// INS, always to ES, or OUTS from a segment.
    const fn string_in(segment: Segment, direction: Direction, width: Width, rep: bool, address: AddressSize) -> Self {
        let segment = match direction {
            Direction::In => Segment::Es,
            Direction::Out => segment,
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

    /// Decodes the 64-bit code at the start of `code`: [`Self::decode_in`] with [`CodeSize::Bits64`].
    ///
    /// # Errors
    ///
    /// As [`Self::decode_in`].
    pub fn decode(code: &[u8]) -> Result<(IoInsn, usize), DecodeError> {
        Self::decode_in(CodeSize::Bits64, code)
    }

    /// Decodes the instruction at the start of `code`, of a guest in any mode; returns it and its length in bytes.
    ///
    /// The rules (SDM vol. 2, 2.1 and 2.2.1; APM vol. 3, 1.2):
    ///
    /// - Operands that are not bytes have 32 bits, in 16-bit code 16; `66` makes it the other one. In 64-bit code REX.W
    ///   overrides `66` (and does not widen port I/O beyond 32 bits); a REX that is not directly before the opcode is
    ///   void. Elsewhere `40` to `4f` are other instructions.
    /// - Addresses of INS and OUTS have the size of the code; `67` makes it 32 bits in 16-bit and 64-bit code, and 16
    ///   bits in 32-bit code. It changes nothing on IN and OUT.
    /// - OUTS reads from DS, or from the segment of the last override. In 64-bit code the overrides to ES, CS, SS and DS are
    ///   void and leave one to FS or GS in force. On INS, IN and OUT they change nothing.
    /// - `f3` and `f2` both repeat INS and OUTS, and change nothing on IN and OUT.
    ///
    /// ```
    /// use ioemul::{CodeSize, IoInsn};
    /// let text = |size, code: &[u8]| IoInsn::decode_in(size, code).unwrap().0.to_string();
    /// assert_eq!(text(CodeSize::Bits16, &[0xef]), "out dx, ax");
    /// assert_eq!(text(CodeSize::Bits32, &[0xef]), "out dx, eax");
    /// assert_eq!(text(CodeSize::Bits16, &[0x2e, 0xf3, 0x6e]), "cs addr16 rep outsb");
    /// assert_eq!(text(CodeSize::Bits64, &[0x2e, 0xf3, 0x6e]), "rep outsb");
    /// ```
    ///
    /// # Errors
    ///
    /// [`DecodeError`] says what was wrong, in the order in which a CPU finds it: it fetches the whole instruction first
    /// (what is cut off may become anything yet, what is longer than 15 bytes may not), and refuses LOCK then. Bytes after
    /// the instruction are never looked at.
    pub fn decode_in(size: CodeSize, code: &[u8]) -> Result<(IoInsn, usize), DecodeError> {
        let is_64_bit = matches!(size, CodeSize::Bits64);
        let (mut operand_size, mut address_size, mut rex_w) = (false, false, false);
        let (mut lock, mut rep, mut segment) = (false, false, Segment::Ds);
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
                0x40..=0x4f if is_64_bit => {
                    rex_w = byte & 0x08 != 0;
                    continue;
                }
                0x26 | 0x2e | 0x36 | 0x3e if is_64_bit => {} // void
                0x26 => segment = Segment::Es,
                0x2e => segment = Segment::Cs,
                0x36 => segment = Segment::Ss,
                0x3e => segment = Segment::Ds,
                0x64 => segment = Segment::Fs,
                0x65 => segment = Segment::Gs,
                0x66 => operand_size = true,
                0x67 => address_size = true,
                0xf0 => lock = true,
                0xf2 | 0xf3 => rep = true,
                _ => break byte,
            }
            rex_w = false;
        };
        let string = matches!(opcode, 0x6c..=0x6f);
        if !string && !matches!(opcode, 0xe4..=0xe7 | 0xec..=0xef) {
            return Err(DecodeError::NotPortIo { opcode });
        }
        let direction = if opcode & 0b10 != 0 { Direction::Out } else { Direction::In };
        let is_16_bit = match size {
            CodeSize::Bits16 => !operand_size,
            CodeSize::Bits32 | CodeSize::Bits64 => operand_size && !rex_w,
        };
        let width = match (opcode & 0b01, is_16_bit) {
            (0, _) => Width::Byte,
            (_, true) => Width::Word,
            (_, false) => Width::Dword,
        };
        let address = match (size, address_size) {
            (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => AddressSize::Bits16,
            (CodeSize::Bits64, false) => AddressSize::Bits64,
            _ => AddressSize::Bits32,
        };
        let insn = match (string, opcode & 0b1000 != 0) {
            (true, _) => Self::string_in(segment, direction, width, rep, address),
            (false, true) => Self { direction, width, operand: PortOperand::Dx },
            (false, false) => {
                let port = byte_at(at)?;
                at += 1;
                Self { direction, width, operand: PortOperand::Imm8(port) }
            }
        };
        if lock { Err(DecodeError::Lock) } else { Ok((insn, at)) }
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

    /// Every form of INS and OUTS that has a stub, which are those of 64-bit code with the segment that it has without an
    /// override: six instructions, with and without REP, with addresses of 64 and of 32 bits.
    ///
    /// Other forms, those with 16-bit addresses and with overrides, are forms of guests. An
    /// [`IoEmulator`](crate::IoEmulator) runs them, like all others, on memory
    /// that the caller gives, by a stub of this list ([`Self::index`]).
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

    /// Whether a stub can hold it as it is. One of INS or OUTS runs in 64-bit code, on pointers of the host's: there are no 16-bit
    /// addresses, and a segment override would add a base of the host's.
    pub(crate) const fn has_stub(self) -> bool {
        match self.operand {
            PortOperand::String { address: AddressSize::Bits16, .. } => false,
            PortOperand::String { segment, .. } => {
                matches!(self.direction, Direction::In) || matches!(segment, Segment::Ds)
            }
            _ => true,
        }
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

/// Why bytes are not, or not yet, a port-I/O instruction that this crate runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the instruction does: fetch more and try again.
    #[error("the instruction is cut off after {available} byte{}", if *available == 1 { "" } else { "s" })]
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
    /// Some other instruction.
    #[error("not a port-I/O instruction: opcode {opcode:02x} is not IN, OUT, INS or OUTS")]
    NotPortIo {
        /// The first byte that is not a prefix.
        opcode: u8,
    },
}
