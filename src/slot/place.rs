//! Where code may lie.

use crate::EmitError;
use crate::emission::is_canonical;

/// The memory for `len` bytes of code that will execute at `va`.
pub(crate) fn room(buf: &mut [u8], va: u64, len: usize) -> Result<&mut [u8], EmitError> {
    let available = buf.len();
    let room = buf.get_mut(..len).ok_or(EmitError::SlotTooSmall { needed: len, available })?;
    if is_canonical(va, len) { Ok(room) } else { Err(EmitError::AddressOverflow { va, len }) }
}
