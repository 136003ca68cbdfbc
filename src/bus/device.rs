//! What a device model is.

use crate::insn::Steps;
use crate::{Direction, Gprs, PortAccess};

/// A device model.
///
/// `gprs` is the whole mailbox: all fifteen registers at the instant of the access. A device may read and change every
/// one of them, and the status flags in `rflags`; most leave it alone. All of them are the guest's, also RSI and RDI of
/// a string instruction, whose data comes as a slice.
#[allow(unused_variables)]
pub trait PortDevice: Send {
    /// Answers an IN. The result goes to AL, AX or EAX afterwards, over whatever the device wrote to `gprs.rax`. By
    /// default all ones, as where nobody is.
    #[inline]
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        u32::MAX
    }

    /// Takes an OUT of `value`: AL, AX or EAX, the bits above the width clear. By default it is lost.
    #[inline]
    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {}

    /// Either of the two, for a device that may refuse: the access then ends as
    /// [`Error::Device`](crate::Error::Device). What the bus calls; by default it never fails. `value` is 0 for an IN,
    /// and the result of an OUT is ignored.
    ///
    /// # Errors
    ///
    /// Whatever the device has to say. An [`IoFault`](crate::IoFault) stands for the CPU's own refusal, and ends as
    /// [`Error::Fault`](crate::Error::Fault).
    #[inline]
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        match access.direction {
            Direction::In => Ok(self.port_in(access, gprs)),
            Direction::Out => {
                self.port_out(access, value, gprs);
                Ok(0)
            }
        }
    }

    /// Answers INS: fills `data`, whole elements of the access's width, the first element first (also where the guest's DF
    /// is set, so that it has the highest address; the bus puts the elements in their places). RCX, RSI and RDI are the
    /// instruction's own where it moves them, whatever a device writes there.
    ///
    /// By default one IN after the other, each with RCX and RDI as they are at that element; a FIFO or a DMA-like device
    /// takes the slice at once, and `gprs` is what the registers hold before the first element.
    ///
    /// # Errors
    ///
    /// Whatever the device has to say, and how far it got.
    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        read_elements(access, data, gprs, |gprs| self.try_access(access, 0, gprs))
    }

    /// Takes OUTS: all of `data`, as for [`Self::try_read_string`], with RSI in the place of RDI.
    ///
    /// # Errors
    ///
    /// Whatever the device has to say, and how far it got.
    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        write_elements(access, data, gprs, |value, gprs| self.try_access(access, value, gprs))
    }
}

/// Why a string access ended early, and how far it got.
#[derive(Debug)]
pub struct StringError {
    /// How many bytes had been transferred: whole elements.
    pub done: usize,
    /// Why it ended.
    pub source: DeviceError,
}

/// Why a device model refused an access.
pub type DeviceError = Box<dyn std::error::Error + Send + Sync>;

/// INS as a sequence of INs.
pub(super) fn read_elements(
    access: PortAccess,
    data: &mut [u8],
    gprs: &mut Gprs,
    mut input: impl FnMut(&mut Gprs) -> Result<u32, DeviceError>,
) -> Result<(), StringError> {
    let (steps, width) = (Steps::of(access.insn, gprs), usize::from(access.width.bytes()));
    for (i, element) in data.chunks_exact_mut(width).enumerate() {
        step(steps, i, gprs);
        let value = input(gprs).map_err(|source| StringError { done: i * width, source })?;
        element.copy_from_slice(&value.to_le_bytes()[..width]);
    }
    Ok(())
}

/// OUTS as a sequence of OUTs.
pub(super) fn write_elements(
    access: PortAccess,
    data: &[u8],
    gprs: &mut Gprs,
    mut output: impl FnMut(u32, &mut Gprs) -> Result<u32, DeviceError>,
) -> Result<(), StringError> {
    let (steps, width) = (Steps::of(access.insn, gprs), usize::from(access.width.bytes()));
    for (i, element) in data.chunks_exact(width).enumerate() {
        step(steps, i, gprs);
        let mut value = [0; 4];
        value[..width].copy_from_slice(element);
        output(u32::from_le_bytes(value), gprs).map_err(|source| StringError { done: i * width, source })?;
    }
    Ok(())
}

/// Sets the instruction's own registers for an element. (Before the first one they are as the device's caller has them.)
fn step(steps: Option<Steps>, element: usize, gprs: &mut Gprs) {
    if let (Some(steps), 1..) = (steps, element) {
        steps.after(element as u64, gprs);
    }
}
