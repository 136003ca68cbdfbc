//! A latch: the simplest device that shows what arrived.

use crate::{Gprs, PortAccess, PortDevice};

/// A 32-bit latch on four ports, a byte on each: what is written reads back, at any width.
///
/// Like the latch at 0xE0 of QEMU's `pc-testdev`, so that one test runs on both.
#[derive(Clone, Debug)]
pub struct Latch {
    base: u16,
    bytes: [u8; 4],
}

impl Latch {
    /// A latch that holds 0, to be attached to the four ports from `base` on.
    pub fn new(base: u16) -> Self {
        Self { base, bytes: [0; 4] }
    }

    /// What the latch holds.
    pub fn value(&self) -> u32 {
        u32::from_le_bytes(self.bytes)
    }

    /// The bytes behind an access; those outside the latch are not there.
    fn touched(&mut self, access: PortAccess) -> &mut [u8] {
        let first = usize::from(access.port.wrapping_sub(self.base)).min(4);
        let last = (first + usize::from(access.width.bytes())).min(4);
        &mut self.bytes[first..last]
    }
}

impl PortDevice for Latch {
    fn port_in(&mut self, access: PortAccess, _: &mut Gprs) -> u32 {
        let mut value = [0xff; 4];
        let bytes = self.touched(access);
        value[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(value)
    }

    fn port_out(&mut self, access: PortAccess, value: u32, _: &mut Gprs) {
        let bytes = self.touched(access);
        bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Width::{Byte, Dword, Word};
    use crate::devices::testing::{read, write};

    #[test]
    fn any_width_at_any_of_its_ports() {
        let mut latch = Latch::new(0xe0);
        write(&mut latch, 0xe0, Dword, 0x4433_2211);
        assert_eq!(read(&mut latch, 0xe0, Dword), 0x4433_2211);
        assert_eq!(read(&mut latch, 0xe1, Word) & 0xffff, 0x3322);
        write(&mut latch, 0xe3, Byte, 0xaa);
        write(&mut latch, 0xe1, Word, 0xcc_bb);
        assert_eq!(latch.value(), 0xaacc_bb11);
    }

    #[test]
    fn beyond_its_ports_there_is_nothing() {
        let mut latch = Latch::new(0xe0);
        write(&mut latch, 0xe2, Dword, 0x4433_2211);
        assert_eq!(latch.value(), 0x2211_0000);
        assert_eq!(read(&mut latch, 0xe2, Dword), 0xffff_2211);
        assert_eq!(read(&mut latch, 0xdf, Byte), u32::MAX);
    }
}
