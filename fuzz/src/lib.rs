//! What the fuzz targets that emit code share.

use arbitrary::Arbitrary;
use ioemul::{EmitError, EmitOptions, Quirk, RegisterFile, Ring, StubLayout};

/// Anywhere, or near the helpers and the edges of what a near branch reaches.
#[derive(Arbitrary, Debug)]
pub enum Address {
    Anywhere(u64),
    Near(i16),
    Below(i16),
    Above(i16),
}

impl Address {
    pub fn from(&self, base: u64) -> u64 {
        match *self {
            Self::Anywhere(va) => va,
            Self::Near(by) => base.wrapping_add_signed(by.into()),
            Self::Below(by) => base.wrapping_sub(1 << 31).wrapping_add_signed(by.into()),
            Self::Above(by) => base.wrapping_add(1 << 31).wrapping_add_signed(by.into()),
        }
    }
}

/// What may change the bytes.
#[derive(Arbitrary, Debug)]
pub struct Options {
    layout: u8,
    registers: Registers,
    endbr64: bool,
    int3: bool,
    return_thunk: Option<Address>,
    quirks: u8,
    ring_3: bool,
}

/// Where the host keeps the registers.
#[derive(Arbitrary, Debug)]
enum Registers {
    Gprs,
    PtRegs,
    KvmRegs,
    /// Anywhere, as likely as not with two of them in one place.
    Others([i16; 15], Option<i16>),
}

impl Options {
    /// With addresses that are relative to `base`, and up to one quirk more than are taken.
    pub fn at(&self, base: u64) -> EmitOptions<'static> {
        let registers = match self.registers {
            Registers::Gprs => RegisterFile::GPRS,
            Registers::PtRegs => RegisterFile::PT_REGS,
            Registers::KvmRegs => RegisterFile::KVM_REGS,
            Registers::Others(offsets, rflags) => RegisterFile::new(offsets, rflags),
        };
        let first = usize::from(self.quirks >> 4) % Quirk::ALL.len();
        let quirks = &Quirk::ALL[first..];
        let count = usize::from(self.quirks & 15) % (EmitOptions::MAX_QUIRKS + 2);
        EmitOptions::new()
            .layout(StubLayout::ALL[usize::from(self.layout) % StubLayout::ALL.len()])
            .registers(registers)
            .endbr64(self.endbr64)
            .return_thunk(self.return_thunk.as_ref().map(|thunk| thunk.from(base)))
            .int3(self.int3)
            .ring(if self.ring_3 { Ring::Three } else { Ring::Zero })
            .quirks(&quirks[..count.min(quirks.len())])
    }
}

const PATTERN: u8 = 0xaa;

/// Emits into the first `len` bytes of a pattern, and looks at all of it afterwards.
pub fn emitted<T>(
    memory: &mut [u8],
    len: usize,
    emit: impl FnOnce(&mut [u8]) -> Result<T, EmitError>,
    written: impl FnOnce(&T) -> usize,
) -> Option<T> {
    memory.fill(PATTERN);
    let result = emit(&mut memory[..len]);
    let written = result.as_ref().map_or(0, written);
    assert!(written <= len);
    assert!(memory[written..].iter().all(|byte| *byte == PATTERN), "written where nothing should be");
    match result {
        Ok(result) => Some(result),
        Err(EmitError::SlotTooSmall { needed, available }) => {
            assert!(needed > available && available == len);
            None
        }
        Err(EmitError::HelperOutOfRange { displacement }) => {
            assert!(i32::try_from(displacement).is_err());
            None
        }
        Err(EmitError::AddressOverflow { va, len }) => {
            let last = va.checked_add((len as u64).saturating_sub(1));
            assert!(last.is_none_or(|last| !canonical(va) || !canonical(last) || (va ^ last) >> 63 != 0));
            None
        }
        Err(EmitError::RegisterFile | EmitError::TooManyQuirks { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

/// Whether bits 63 to 47 are all the same.
fn canonical(va: u64) -> bool {
    let high = va as i64 >> 47;
    high == 0 || high == -1
}
