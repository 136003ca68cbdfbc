//! Where code may lie.

use crate::EmitError;

/// The memory for `len` bytes of code that will execute at `va`.
pub(crate) fn room(buf: &mut [u8], va: u64, len: usize) -> Result<&mut [u8], EmitError> {
    let available = buf.len();
    let room = buf.get_mut(..len).ok_or(EmitError::SlotTooSmall { needed: len, available })?;
    if is_canonical(va, len) { Ok(room) } else { Err(EmitError::AddressOverflow { va, len }) }
}

/// Whether all of it is in one piece of canonical address space: with four levels of page tables, or with five (SDM
/// vol. 1,
/// 3.3.7.1). What ends at a hole of either kind could be run on by a CPU no further than to there.
fn is_canonical(va: u64, len: usize) -> bool {
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
