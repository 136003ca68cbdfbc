//! What INS and OUTS make of their own registers, element by element.

use crate::{AddressSize, Direction, Gprs, IoInsn, PortOperand};

/// RFLAGS.DF: INS and OUTS go downwards.
const DF: u64 = 1 << 10;

/// How far INS or OUTS came on memory that need not hold all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct StringProgress {
    /// Bytes that were moved: whole elements.
    pub moved: usize,
    /// Elements that are left. At 0 the instruction is complete, and the guest's RIP goes behind it; else RIP stays, and
    /// RCX and RSI or RDI are what the instruction goes on with.
    pub left: u64,
}

/// The registers of a string instruction as they were before its first element, and with that what they are at every
/// other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    direction: Direction,
    rep: bool,
    address: AddressSize,
    width: u8,
    downwards: bool,
    rcx: u64,
    /// RDI of INS, RSI of OUTS.
    pointer: u64,
}

impl Steps {
    /// Those of an instruction that is about to run with these registers. `None` for IN and OUT.
    #[inline]
    pub fn of(insn: IoInsn, gprs: &Gprs) -> Option<Self> {
        let PortOperand::String { rep, address, .. } = insn.operand else { return None };
        Some(Self {
            direction: insn.direction,
            rep,
            address,
            width: insn.width.bytes(),
            downwards: gprs.rflags & DF != 0,
            rcx: gprs.rcx,
            pointer: match insn.direction {
                Direction::In => gprs.rdi,
                Direction::Out => gprs.rsi,
            },
        })
    }

    /// How many elements the instruction moves.
    pub fn count(&self) -> u64 {
        if self.rep { self.rcx & self.address.mask() } else { 1 }
    }

    /// Bytes of an element.
    pub fn width(&self) -> usize {
        self.width.into()
    }

    /// Whether DF was set: the first element has the highest address.
    pub fn downwards(&self) -> bool {
        self.downwards
    }

    /// Writes RCX and RDI or RSI as they are after so many elements: as they were after none, else with the bits above the
    /// address size kept (16 bits) or clear (32).
    pub fn after(&self, elements: u64, gprs: &mut Gprs) {
        let mask = self.address.mask();
        let kept = if self.address == AddressSize::Bits16 { !mask } else { 0 };
        let write = |before: u64, result: u64| if elements == 0 { before } else { before & kept | result & mask };
        let moved = elements.wrapping_mul(self.width.into());
        let end = if self.downwards { self.pointer.wrapping_sub(moved) } else { self.pointer.wrapping_add(moved) };
        match self.direction {
            Direction::In => gprs.rdi = write(self.pointer, end),
            Direction::Out => gprs.rsi = write(self.pointer, end),
        }
        if self.rep {
            gprs.rcx = write(self.rcx, self.rcx.wrapping_sub(elements));
        }
    }
}
