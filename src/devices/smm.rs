//! The mailbox to firmware above the kernel: the APM ports.

use core::fmt;

use super::ports_of;
use crate::{Gprs, PortAccess, PortDevice};

/// The APM ports, through which a PC calls its firmware: a byte OUT to the command port 0xB2 raises an SMI, and the
/// handler above the kernel finds every register in its save state and may exchange each of them. Attach it to
/// `0xb2..=0xb3`.
///
/// The handler is given the command, the byte in the status port 0xB3 (a scratch register that callers write first),
/// and the registers. Firmware reports as it likes: Dell's sets CF on failure, others leave a code in AL.
///
/// ```
/// use ioemul::devices::SmmMailbox;
/// use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
///
/// let firmware = SmmMailbox::new(|command, _status, gprs| match command {
///     0x42 => (gprs.rbx, gprs.rcx) = (gprs.rcx, gprs.rbx),
///     _ => gprs.rflags |= Gprs::CF, // no such command
/// });
/// let mut bus = SoftwareBus::new();
/// bus.attach(0xb2..=0xb3, firmware)?;
/// let mut emulator = IoEmulator::builder().ports(PortSet::from(0xb2..=0xb3)).bus(bus).build()?;
///
/// let mut gprs = Gprs { rax: 0x42, rbx: 1, rcx: 2, ..Gprs::default() };
/// emulator.execute(IoInsn::out_imm8(Width::Byte, 0xb2), &mut gprs)?;
/// assert_eq!((gprs.rbx, gprs.rcx, gprs.rflags & Gprs::CF), (2, 1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Port numbers are from Intel's ICH and PCH datasheets (APM_CNT and APM_STS). A word OUT to 0xB2 writes the status
/// first, so that the handler sees all of it.
#[doc(alias("SMI", "SMM", "APM_CNT", "firmware"))]
pub struct SmmMailbox {
    handler: Box<Handler>,
    command: u8,
    status: u8,
}

/// What firmware does with a command, a status byte and the registers.
type Handler = dyn FnMut(u8, u8, &mut Gprs) + Send;

impl SmmMailbox {
    /// A mailbox with this firmware behind it.
    pub fn new(handler: impl FnMut(u8, u8, &mut Gprs) + Send + 'static) -> Self {
        Self { handler: Box::new(handler), command: 0, status: 0 }
    }
}

impl PortDevice for SmmMailbox {
    fn port_in(&mut self, access: PortAccess, _: &mut Gprs) -> u32 {
        ports_of(access).rev().fold(0, |value, port| {
            let byte = if port == 0xb2 { self.command } else { self.status };
            value << 8 | u32::from(byte)
        })
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        for (port, byte) in ports_of(access).zip(value.to_le_bytes()).rev() {
            match port {
                0xb2 => {
                    self.command = byte;
                    (self.handler)(byte, self.status, gprs);
                }
                _ => self.status = byte,
            }
        }
    }
}

impl fmt::Debug for SmmMailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmmMailbox")
            .field("command", &self.command)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::IoInsn;
    use crate::Width::{Byte, Word};
    use crate::devices::testing::{access, read, write};

    #[test]
    fn a_command_byte_calls_the_firmware_with_the_status_byte() {
        let (calls, seen) = mpsc::channel();
        let mut mailbox = SmmMailbox::new(move |command, status, _| calls.send((command, status)).unwrap());
        write(&mut mailbox, 0xb3, Byte, 0x11);
        assert!(seen.try_recv().is_err());
        write(&mut mailbox, 0xb2, Byte, 0x42);
        write(&mut mailbox, 0xb2, Word, 0x22_43);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [(0x42, 0x11), (0x43, 0x22)]);
        assert_eq!(read(&mut mailbox, 0xb2, Word), 0x2243);
        assert_eq!(read(&mut mailbox, 0xb3, Byte), 0x22);
    }

    #[test]
    fn every_register_can_be_exchanged() {
        let mut mailbox = SmmMailbox::new(|_, _, gprs| *gprs = Gprs::from_words(gprs.to_words().map(|word| !word)));
        let before = Gprs::from_words(core::array::from_fn(|index| index as u64));
        let mut gprs = before;
        mailbox.port_out(access(0xb2, IoInsn::out_dx(Byte)), 1, &mut gprs);
        assert_eq!(gprs.to_words(), before.to_words().map(|word| !word));
    }
}
