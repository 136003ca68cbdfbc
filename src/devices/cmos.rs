//! CMOS memory: the oldest index-and-data pair of the PC.

use super::ports_of;
use crate::{Gprs, PortAccess, PortDevice};

/// CMOS memory, 128 bytes: an index on port 0x70 and the byte at that index on port 0x71. Attach it to `0x70..=0x71`.
///
/// Bit 7 of the index masks NMIs and is no part of it. The index cannot be read back: port 0x70 reads 0xFF, as on the
/// Motorola MC146818 and its successors in PC chipsets. A word OUT to port 0x70 sets the index and then writes the
/// byte. The clock in the first bytes stands still.
#[derive(Clone, Debug)]
pub struct Cmos {
    bytes: [u8; 128],
    index: u8,
    nmi_masked: bool,
}

impl Cmos {
    /// CMOS memory with these contents.
    pub fn new(bytes: [u8; 128]) -> Self {
        Self { bytes, index: 0, nmi_masked: false }
    }

    /// What it holds now.
    pub fn bytes(&self) -> &[u8; 128] {
        &self.bytes
    }

    /// Whether the last index written had bit 7 set.
    pub fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    fn read(&self, port: u16) -> u8 {
        match port {
            0x71 => self.bytes[usize::from(self.index)],
            _ => 0xff,
        }
    }

    fn write(&mut self, port: u16, value: u8) {
        match port {
            0x70 => {
                self.index = value & 0x7f;
                self.nmi_masked = value & 0x80 != 0;
            }
            0x71 => self.bytes[usize::from(self.index)] = value,
            _ => {}
        }
    }
}

impl PortDevice for Cmos {
    fn port_in(&mut self, access: PortAccess, _: &mut Gprs) -> u32 {
        ports_of(access).rev().fold(0, |value, port| value << 8 | u32::from(self.read(port)))
    }

    fn port_out(&mut self, access: PortAccess, value: u32, _: &mut Gprs) {
        for (port, byte) in ports_of(access).zip(value.to_le_bytes()) {
            self.write(port, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Width::{Byte, Word};
    use crate::devices::testing::{read, write};

    fn counting() -> Cmos {
        Cmos::new(core::array::from_fn(|index| index as u8))
    }

    #[test]
    fn index_then_data() {
        let mut cmos = counting();
        write(&mut cmos, 0x70, Byte, 0x0f);
        assert_eq!(read(&mut cmos, 0x71, Byte), 0x0f);
        write(&mut cmos, 0x71, Byte, 0x55);
        assert_eq!((read(&mut cmos, 0x71, Byte), cmos.bytes()[0x0f]), (0x55, 0x55));
        assert_eq!(read(&mut cmos, 0x70, Byte), 0xff);
    }

    #[test]
    fn bit_7_of_the_index_masks_nmis() {
        let mut cmos = counting();
        write(&mut cmos, 0x70, Byte, 0x8e);
        assert!(cmos.nmi_masked());
        assert_eq!(read(&mut cmos, 0x71, Byte), 0x0e);
        write(&mut cmos, 0x70, Byte, 0x0e);
        assert!(!cmos.nmi_masked());
    }

    #[test]
    fn a_word_is_an_index_and_its_byte() {
        let mut cmos = counting();
        write(&mut cmos, 0x70, Word, 0xaa_10);
        assert_eq!(cmos.bytes()[0x10], 0xaa);
        assert_eq!(read(&mut cmos, 0x70, Word), 0xaaff);
    }
}
