//! What is asked of a port: the question that permissions, quirks and device models answer.

use crate::{Direction, Gprs, IoInsn, Width};

/// One access to a port, as a device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortAccess {
    /// The first port of the access.
    pub port: u16,
    /// How many bytes it covers.
    pub width: Width,
    /// IN or OUT.
    pub direction: Direction,
    /// The instruction that makes it: whether the port was in DX or in the instruction, and whether this is one element
    /// of INS or OUTS.
    pub insn: IoInsn,
}

impl PortAccess {
    /// The access that an instruction makes with these registers: for INS and OUTS, that of one element.
    #[inline]
    pub const fn of(insn: IoInsn, gprs: &Gprs) -> Self {
        Self { port: insn.port(gprs), width: insn.width, direction: insn.direction, insn }
    }
}

impl core::fmt::Display for PortAccess {
    /// `OUT of 1 byte to port 0x0cd4`
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { port, width, direction, .. } = *self;
        AccessText { port, width, direction }.fmt(f)
    }
}

/// An access in words.
pub(crate) struct AccessText {
    pub port: u16,
    pub width: Width,
    pub direction: Direction,
}

impl core::fmt::Display for AccessText {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (mnemonic, preposition) = match self.direction {
            Direction::In => ("IN", "from"),
            Direction::Out => ("OUT", "to"),
        };
        let (bytes, plural) = (self.width.bytes(), if self.width == Width::Byte { "" } else { "s" });
        write!(f, "{mnemonic} of {bytes} byte{plural} {preposition} port {:#06x}", self.port)
    }
}
