//! The devices of rust-vmm's `vm-superio` on a [`SoftwareBus`](crate::SoftwareBus).

use core::fmt::Debug;
use std::io::Write;

use vm_superio::serial::SerialEvents;
use vm_superio::{I8042Device, Serial, Trigger};

use super::ports_of;
use crate::{DeviceError, Direction, Gprs, PortAccess, PortDevice};

/// A device of byte registers, each at its own offset: what the devices of `vm-superio` have in common.
pub trait ByteRegisters: Send {
    /// Reads a register.
    fn read(&mut self, offset: u8) -> u8;

    /// Writes a register.
    ///
    /// # Errors
    ///
    /// The device could not do what the guest asked for: its output or its interrupt failed.
    fn write(&mut self, offset: u8, value: u8) -> Result<(), DeviceError>;
}

impl<T, EV, W> ByteRegisters for Serial<T, EV, W>
where
    T: Trigger + Send,
    EV: SerialEvents + Send,
    W: Write + Send,
{
    fn read(&mut self, offset: u8) -> u8 {
        Serial::read(self, offset)
    }

    fn write(&mut self, offset: u8, value: u8) -> Result<(), DeviceError> {
        Serial::write(self, offset, value).map_err(|error| refusal("UART", &error))
    }
}

impl<T: Trigger + Send> ByteRegisters for I8042Device<T> {
    fn read(&mut self, offset: u8) -> u8 {
        I8042Device::read(self, offset)
    }

    fn write(&mut self, offset: u8, value: u8) -> Result<(), DeviceError> {
        I8042Device::write(self, offset, value).map_err(|error| refusal("i8042", &error))
    }
}

/// A trigger's error need not be more than printable for debugging.
fn refusal(device: &str, error: &dyn Debug) -> DeviceError {
    format!("{device}: {error:?}").into()
}

/// Puts a device of `vm-superio` behind ports: register 0 at `base`, the next at `base + 1`, and so on. A wide access
/// is made byte by byte, lowest port first.
///
/// | device | `base` | attach to |
/// |---|---|---|
/// | `Serial`, a 16550 UART | 0x3F8, 0x2F8, … | `base..=base + 7` |
/// | `I8042Device`, CPU reset | 0x60 | `0x60..=0x64` |
///
/// Everything else of the device goes on working: input, interrupts and saved state are the program's, through an
/// `Arc<Mutex<Superio<…>>>` where it needs them later.
///
/// ```
/// use ioemul::devices::Superio;
/// use ioemul::{Gprs, IoEmulator, PortSet, SoftwareBus};
/// use std::sync::{Arc, Mutex};
/// use vm_superio::{Serial, Trigger};
///
/// struct NoInterrupt;
/// impl Trigger for NoInterrupt {
///     type E = std::convert::Infallible;
///     fn trigger(&self) -> Result<(), Self::E> {
///         Ok(())
///     }
/// }
///
/// let uart = Arc::new(Mutex::new(Superio::new(0x3f8, Serial::new(NoInterrupt, Vec::new()))));
/// let mut bus = SoftwareBus::new();
/// bus.attach(0x3f8..=0x3ff, uart.clone())?;
/// let mut emulator = IoEmulator::builder().ports(PortSet::from(0x3f8..=0x3ff)).bus(bus).build()?;
/// let mut gprs = Gprs { rax: b'!'.into(), rdx: 0x3f8, ..Gprs::default() };
/// emulator.emulate(&[0xee], &mut gprs)?; // out dx, al
/// assert_eq!(uart.lock().unwrap().get_ref().writer(), b"!");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Superio<D> {
    base: u16,
    device: D,
}

impl<D: ByteRegisters> Superio<D> {
    /// `device`, with its register 0 at port `base`.
    pub fn new(base: u16, device: D) -> Self {
        Self { base, device }
    }

    /// The device.
    pub fn get_ref(&self) -> &D {
        &self.device
    }

    /// The device, to give it input.
    pub fn get_mut(&mut self) -> &mut D {
        &mut self.device
    }

    fn offset(&self, port: u16) -> u8 {
        port.wrapping_sub(self.base) as u8
    }
}

impl<D: ByteRegisters> PortDevice for Superio<D> {
    fn port_in(&mut self, access: PortAccess, _: &mut Gprs) -> u32 {
        ports_of(access).enumerate().fold(0, |value, (byte, port)| {
            let offset = self.offset(port);
            value | u32::from(self.device.read(offset)) << (8 * byte)
        })
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        let _ = self.try_access(access, value, gprs); // a bus calls that, and reports the error
    }

    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        if access.direction == Direction::In {
            return Ok(self.port_in(access, gprs));
        }
        for (port, byte) in ports_of(access).zip(value.to_le_bytes()) {
            let offset = self.offset(port);
            self.device.write(offset, byte)?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::Width::{Byte, Word};
    use crate::devices::testing::{read, write};
    use crate::{IoEmulator, IoInsn, PortSet, SoftwareBus};

    struct Line(io::Result<()>);

    impl Trigger for Line {
        type E = io::ErrorKind;

        fn trigger(&self) -> Result<(), io::ErrorKind> {
            self.0.as_ref().copied().map_err(io::Error::kind)
        }
    }

    #[test]
    fn registers_are_found_by_their_offset() {
        let mut uart = Superio::new(0x3f8, Serial::new(Line(Ok(())), Vec::new()));
        write(&mut uart, 0x3ff, Byte, 0x5a); // the scratch register
        assert_eq!(read(&mut uart, 0x3ff, Byte), 0x5a);
        assert_eq!(read(&mut uart, 0x3fe, Word) >> 8, 0x5a);
        write(&mut uart, 0x3f8, Byte, b'A'.into());
        assert_eq!(uart.get_ref().writer(), b"A");
        assert_eq!(uart.get_mut().fifo_capacity(), 64);
    }

    #[test]
    fn a_reset_that_fails_is_an_error_of_the_access() {
        let broken = I8042Device::new(Line(Err(io::ErrorKind::BrokenPipe.into())));
        let mut bus = SoftwareBus::new();
        bus.attach(0x60..=0x64, Superio::new(0x60, broken)).unwrap();
        let mut emulator = IoEmulator::builder().ports(PortSet::from(0x60..=0x64)).bus(bus).build().unwrap();
        let mut gprs = Gprs { rax: 0xfe, ..Gprs::default() };
        let error = emulator.execute(IoInsn::out_imm8(Byte, 0x64), &mut gprs).unwrap_err();
        assert_eq!(error.to_string(), "OUT of 1 byte to port 0x0064: the device refused the access: i8042: BrokenPipe");
    }
}
