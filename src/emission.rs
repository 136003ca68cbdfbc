//! What a host asks of emitted code, and why it cannot be had.

use crate::stub::{Backend, PayloadProblem, Returns, StubStyle};
use crate::{IoInsn, Quirk, RegisterFile, Ring, StubLayout};

/// How stubs and their helpers are to be emitted into memory of the caller's.
///
/// ```
/// use ioemul::{EmitOptions, Quirk, RegisterFile, StubLayout};
/// let options = EmitOptions::new()
///     .layout(StubLayout::Compact)
///     .registers(RegisterFile::PT_REGS)
///     .endbr64(true)
///     .return_thunk(0xffff_ffff_8100_0000)
///     .quirks(&[Quirk::PROLIANT]);
/// assert_eq!(options.layout, StubLayout::Compact);
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct EmitOptions<'q> {
    /// The layout; [`StubLayout::CallRet`] by default.
    pub layout: StubLayout,
    /// Where the host keeps the registers; [`RegisterFile::GPRS`] by default.
    pub registers: RegisterFile,
    /// Start each stub with ENDBR64, for indirect-branch tracking (CET-IBT).
    pub endbr64: bool,
    /// The executable address of a return thunk: every RET becomes a JMP to it.
    pub return_thunk: Option<u64>,
    /// INT3 after every final RET or JMP, against straight-line speculation.
    pub int3: bool,
    /// Zero RCX, RDX, RSI, RDI and R8 to R11 before a stub returns.
    pub scrub: bool,
    /// The privilege level that the code will run at: decides between the variants of a quirk. Ring 0 by default.
    pub ring: Ring,
    /// The quirks, in the order in which they are asked: each stands in the place of the accesses that its
    /// [`Trigger`](crate::Trigger) takes. At most [`Self::MAX_QUIRKS`].
    pub quirks: &'q [Quirk],
}

impl<'q> EmitOptions<'q> {
    /// So many quirks are taken.
    pub const MAX_QUIRKS: usize = 4;

    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the layout.
    pub fn layout(mut self, layout: StubLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets where the host keeps the registers.
    pub fn registers(mut self, registers: RegisterFile) -> Self {
        self.registers = registers;
        self
    }

    /// Whether each stub starts with ENDBR64.
    pub fn endbr64(mut self, endbr64: bool) -> Self {
        self.endbr64 = endbr64;
        self
    }

    /// The return thunk's address, or `None`.
    ///
    /// The thunk is jumped to with the guest's registers live, on the way to the I/O, and with the stub's result in RAX
    /// on the way back: it has to keep every register, RSP but for the return address, and every flag. (Linux' and
    /// Xen's thunks of INT3-fenced RETs do; one that writes a register does not.)
    pub fn return_thunk(mut self, address: impl Into<Option<u64>>) -> Self {
        self.return_thunk = address.into();
        self
    }

    /// Whether INT3 follows every final RET or JMP.
    pub fn int3(mut self, int3: bool) -> Self {
        self.int3 = int3;
        self
    }

    /// Whether a stub zeroes RCX, RDX, RSI, RDI and R8 to R11 before it returns, by its own end and by a landing pad.
    ///
    /// A guest chooses what those registers hold, and without this its values are still there when the host goes on: a
    /// branch of the host's that is predicted wrong may use them speculatively, as addresses or indices. (Linux clears
    /// its registers for that reason where it is entered.) RBX, RBP and R12 to R15 are the host's own again by then, RAX
    /// is the result, and the status flags are those of the last XOR.
    ///
    /// It costs eight instructions and 20 bytes: in each stub of [`StubLayout::CallRet`] and [`StubLayout::Inline`], once
    /// among the helpers of the other layouts, and once in the landing pads. Off, it costs nothing.
    ///
    /// A [`StubTable`](crate::StubTable) does not have it: there the handler of a fault passes what the fault was to the
    /// stub's caller, in RDX and R8.
    pub fn scrub(mut self, scrub: bool) -> Self {
        self.scrub = scrub;
        self
    }

    /// The privilege level that the code will run at.
    pub fn ring(mut self, ring: Ring) -> Self {
        self.ring = ring;
        self
    }

    /// The quirks, in the order in which they are asked.
    pub fn quirks<'r>(self, quirks: &'r [Quirk]) -> EmitOptions<'r>
    where
        'q: 'r,
    {
        EmitOptions { quirks, ..self }
    }

    pub(crate) fn style(&self) -> StubStyle {
        StubStyle {
            layout: self.layout,
            backend: Backend::Hardware,
            registers: self.registers,
            endbr64: self.endbr64,
            returns: Returns { thunk: self.return_thunk.is_some(), int3: self.int3 },
            scrub: self.scrub,
            ring: self.ring,
        }
    }

    pub(crate) fn check(&self) -> Result<(), EmitError> {
        check_registers(&self.registers)?;
        if let Some(va) = self.return_thunk.filter(|va| !is_canonical(*va, 1)) {
            return Err(EmitError::AddressOverflow { va, len: 1 });
        }
        match self.quirks.len() {
            0..=Self::MAX_QUIRKS => Ok(()),
            given => Err(EmitError::TooManyQuirks { given, limit: Self::MAX_QUIRKS }),
        }
    }
}

pub(crate) fn check_registers(registers: &RegisterFile) -> Result<(), EmitError> {
    if registers.is_valid() { Ok(()) } else { Err(EmitError::RegisterFile) }
}

/// Why code could not be emitted. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The memory is too short.
    #[error("the code needs {needed} bytes and the memory for it has {available}")]
    SlotTooSmall {
        /// Length of the code in bytes.
        needed: usize,
        /// Length of the memory in bytes.
        available: usize,
    },
    /// A helper or return thunk is more than ±2 GiB away from the call to it.
    #[error(
        "the displacement {}{:#x} to a helper or thunk does not fit the signed 32 bits of a near branch: place the code \
         within 2 GiB of it",
        if *displacement < 0 { "-" } else { "" },
        displacement.unsigned_abs()
    )]
    HelperOutOfRange {
        /// Target minus the address behind the branch, in bytes.
        displacement: i64,
    },
    /// The code, or the return thunk, would not lie in one piece of canonical address space.
    #[error("code of {len} bytes at {va:#x} does not lie in one piece of canonical address space")]
    AddressOverflow {
        /// Where the code was to execute.
        va: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// Two words of the register file overlap.
    #[error("two registers of the register file overlap: each needs 8 bytes of its own")]
    RegisterFile,
    /// More quirks than a table or its helpers keep.
    #[error("{given} quirks were given, and at most {limit} are taken: leave out those of other machines")]
    TooManyQuirks {
        /// How many there were.
        given: usize,
        /// How many are taken.
        limit: usize,
    },
    /// A quirk's payload pushes and pops different amounts, or more than can be recorded, or not whole words.
    #[error(
        "the payload of the quirk {quirk:?} does not balance its pushes and pops, which are of whole words of 8 bytes"
    )]
    UnbalancedPayload {
        /// Name of the quirk.
        quirk: &'static str,
    },
    /// A quirk's payload makes more accesses than can be checked.
    #[error("the payload of the quirk {quirk:?} makes more than 8 accesses")]
    TooManyAccesses {
        /// Name of the quirk.
        quirk: &'static str,
    },
    /// A quirk's payload has INS or OUTS in it.
    #[error("the payload of the quirk {quirk:?} has INS or OUTS in it, whose pointers are a guest's")]
    StringInPayload {
        /// Name of the quirk.
        quirk: &'static str,
    },
    /// INS or OUTS in a form that a stub cannot hold: with 16-bit addresses, or a segment override.
    #[error(
        "`{insn}` has no stub: translate its pointers, and run the form with 64-bit addresses and without a segment override"
    )]
    NoStub {
        /// The instruction.
        insn: IoInsn,
    },
    /// A quirk's payload uses a label that is not defined, or too many of them.
    #[error("the label {label:?} is undefined, too far away, or one too many")]
    Label {
        /// Name of the label.
        label: &'static str,
    },
}

impl EmitError {
    pub(crate) fn payload(quirk: &Quirk, problem: PayloadProblem) -> Self {
        let quirk = quirk.name();
        match problem {
            PayloadProblem::Unbalanced => EmitError::UnbalancedPayload { quirk },
            PayloadProblem::TooManyAccesses => EmitError::TooManyAccesses { quirk },
            PayloadProblem::StringForm => EmitError::StringInPayload { quirk },
        }
    }
}

/// Whether all of it is in one piece of canonical address space: with four levels of page tables, or with five (SDM
/// vol. 1,
/// 3.3.7.1). What ends at a hole of either kind could be run on by a CPU no further than to there.
pub(crate) fn is_canonical(va: u64, len: usize) -> bool {
    let Some(last) = (len as u64).checked_sub(1).and_then(|len| va.checked_add(len)) else { return len == 0 };
    let piece = |address: u64| match address >> 47 {
        0 => Some(0),
        0x1_ffff => Some(1),
        _ => match address >> 56 {
            0 => Some(2),
            0xff => Some(3),
            _ => None,
        },
    };
    piece(va).is_some() && piece(va) == piece(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holes() {
        for (va, len, expected) in [
            (0, 1, true),
            (0x7fff_ffff_fff0, 0x10, true),
            (0x7fff_ffff_fff0, 0x11, false), // on four levels, the last byte is in the hole
            (0x0000_8000_0000_0000, 0x1000, true), // on five levels
            (0x00ff_ffff_ffff_fff0, 0x10, true),
            (0x00ff_ffff_ffff_fff0, 0x11, false),
            (0x0100_0000_0000_0000, 1, false),
            (0xfeff_ffff_ffff_ffff, 1, false),
            (0xfeff_ffff_ffff_ffff, 2, false),
            (0xff00_0000_0000_0000, 0x1000, true),
            (0xffff_7fff_ffff_fff0, 0x10, true),
            (0xffff_7fff_ffff_fff0, 0x11, false),
            (0xffff_8000_0000_0000, 0x1000, true),
            (0xffff_ffff_ffff_fff0, 0x10, true),
            (0xffff_ffff_ffff_fff0, 0x11, false), // around the end
            (u64::MAX, 0, true),
        ] {
            assert_eq!(is_canonical(va, len), expected, "{va:#x}, {len:#x}");
        }
    }
}
