//! What the fuzz targets that emit code share.

use arbitrary::Arbitrary;
use ioemul::{EmitError, Quirk, Ring, SlotOptions};

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
    endbr64: bool,
    int3: bool,
    return_thunk: Option<Address>,
    quirk: bool,
    ring_3: bool,
}

impl Options {
    /// With addresses that are relative to `base`.
    pub fn at(&self, base: u64) -> SlotOptions {
        SlotOptions {
            endbr64: self.endbr64,
            return_thunk: self.return_thunk.as_ref().map(|thunk| thunk.from(base)),
            int3: self.int3,
            quirk: self.quirk.then_some(Quirk::PROLIANT),
            ring: if self.ring_3 { Ring::Three } else { Ring::Zero },
        }
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
            assert!(va.checked_add(len as u64).is_none());
            None
        }
        Err(other) => panic!("{other}"),
    }
}
