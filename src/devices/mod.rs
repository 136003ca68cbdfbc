//! Device models for tests, examples and tools that want a mailbox without the hardware.
//!
//! | model | ports | what it stands for |
//! |---|---|---|
//! | [`VmwareBackdoor`] | 0x5658-0x565B | VMware's hypercall by port access: answers in other registers |
//! | [`SmmMailbox`] | 0xB2, 0xB3 | the APM ports that raise an SMI: firmware sees, and may exchange, every register |
//! | [`Cmos`] | 0x70, 0x71 | 128 bytes behind an index, with the NMI mask in its bit 7 |
//! | [`ProLiantPort`] | 0xCD4 | HP's SMM port: busy for a while after a call |
//! | [`Latch`] | any four | 32 bits that read back as written, at any width |
#![cfg_attr(
    feature = "vm-superio",
    doc = "| [`Superio`] | as the device has | an adapter for the devices of rust-vmm's `vm-superio` |"
)]
//!
//! They model what a driver can tell through the ports, and no more. A test that wants to look at a device after it has
//! gone to the bus attaches an `Arc<Mutex<…>>` of it:
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use ioemul::devices::Latch;
//! use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
//!
//! let latch = Arc::new(Mutex::new(Latch::new(0xe0)));
//! let mut bus = SoftwareBus::new();
//! bus.attach(0xe0..=0xe3, latch.clone())?;
//! let mut emulator = IoEmulator::builder().ports(PortSet::from(0xe0..=0xe3)).bus(bus).build()?;
//! let mut gprs = Gprs { rax: 0x1234, ..Gprs::default() };
//! emulator.execute(IoInsn::out_imm8(Width::Word, 0xe2), &mut gprs)?;
//! assert_eq!(latch.lock().unwrap().value(), 0x1234_0000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use core::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{DeviceError, Gprs, PortAccess, PortDevice, StringError};

mod cmos;
mod latch;
mod proliant;
mod smm;
#[cfg(feature = "vm-superio")]
mod superio;
mod vmware;

pub use cmos::Cmos;
pub use latch::Latch;
pub use proliant::ProLiantPort;
pub use smm::SmmMailbox;
#[cfg(feature = "vm-superio")]
pub use superio::{ByteRegisters, Superio};
pub use vmware::VmwareBackdoor;

/// A device shared with whoever wants to look at it. A panic inside it leaves it usable, as a bus leaves it.
impl<D: PortDevice + ?Sized> PortDevice for Arc<Mutex<D>> {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        self.lock().unwrap_or_else(PoisonError::into_inner).port_in(access, gprs)
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        self.lock().unwrap_or_else(PoisonError::into_inner).port_out(access, value, gprs);
    }

    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).try_access(access, value, gprs)
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).try_read_string(access, data, gprs)
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).try_write_string(access, data, gprs)
    }
}

/// The ports that an access touches, lowest first: how a device of byte registers takes a wide access.
fn ports_of(access: PortAccess) -> RangeInclusive<u16> {
    access.port..=access.port.saturating_add(u16::from(access.width.bytes()) - 1)
}

/// What the devices' tests share: accesses without a bus in between.
#[cfg(test)]
pub(crate) mod testing {
    use crate::{Gprs, IoInsn, PortAccess, PortDevice, Width};

    /// An access through DX.
    pub fn access(port: u16, insn: IoInsn) -> PortAccess {
        PortAccess::of(insn, &Gprs { rdx: port.into(), ..Gprs::default() })
    }

    /// An IN from `port`.
    pub fn read(device: &mut impl PortDevice, port: u16, width: Width) -> u32 {
        device.port_in(access(port, IoInsn::in_dx(width)), &mut Gprs::default())
    }

    /// An OUT of `value` to `port`.
    pub fn write(device: &mut impl PortDevice, port: u16, width: Width, value: u32) {
        device.port_out(access(port, IoInsn::out_dx(width)), value, &mut Gprs::default());
    }
}
