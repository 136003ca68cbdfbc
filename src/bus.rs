//! Device models in place of the hardware, behind the same stubs.
//!
//! On a bus, the I/O instruction in a stub is replaced by a call. Everything else stays: the layout, the loads and
//! saves, the quirk payloads. The guest's registers really are in the CPU when the device is reached, and what the device
//! writes to them really is loaded again.
//!
//! `bus/call.rs` is the way from a stub to here.
#![allow(unsafe_code)] // the memory of INS and OUTS is at an address

use core::ops::RangeInclusive;

use crate::{Direction, Error, Gprs, IoFault, IoInsn, PortAccess, PortOperand, Width};

mod call;

pub(crate) use call::run;

/// A device model.
///
/// `gprs` is the whole mailbox: all fifteen registers at the instant of the access. A device may read and change every
/// one of them, and the status flags in `rflags`; most leave it alone.
pub trait PortDevice: Send {
    /// Answers an IN. The result goes to AL, AX or EAX afterwards, over whatever the device wrote to `gprs.rax`.
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32;

    /// Takes an OUT of `value`: AL, AX or EAX, the bits above the width clear.
    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs);

    /// Either of the two, for a device that may refuse: the access then ends as [`Error::Device`]. What the bus calls; by
    /// default it never fails. `value` is 0 for an IN, and the result of an OUT is ignored.
    ///
    /// # Errors
    ///
    /// Whatever the device has to say. An [`IoFault`] stands for the CPU's own refusal, and ends as [`Error::Fault`].
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

    /// Answers INS: fills `data`, whole elements of the access's width. By default one IN after the other; a FIFO or a
    /// DMA-like device takes the slice at once. `gprs` is what the registers hold before the first element; RCX, RSI and
    /// RDI are the instruction's own and are set by the bus afterwards.
    ///
    /// # Errors
    ///
    /// Whatever the device has to say, and how far it got.
    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        read_elements(access.width, data, || self.try_access(access, 0, gprs))
    }

    /// Takes OUTS: all of `data`, as for [`Self::try_read_string`].
    ///
    /// # Errors
    ///
    /// Whatever the device has to say, and how far it got.
    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        write_elements(access.width, data, |value| self.try_access(access, value, gprs))
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

/// Ports with device models behind them.
///
/// An access goes to the device that claims all its ports; one that no device claims whole is split into bytes, as an ISA
/// bus does. A byte that nobody claims reads as 0xFF, and a write to it is lost.
///
/// ```
/// use ioemul::{Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus, Width};
///
/// /// Answers with the register that an OUT never shows: RBX.
/// struct Mailbox;
/// impl PortDevice for Mailbox {
///     fn port_in(&mut self, _: PortAccess, gprs: &mut Gprs) -> u32 {
///         gprs.rcx = !gprs.rbx;
///         0x42
///     }
///     fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {}
/// }
///
/// let mut bus = SoftwareBus::new();
/// bus.attach(0xb2..=0xb2, Mailbox)?;
/// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).build()?;
/// let mut gprs = Gprs { rbx: 7, ..Gprs::default() };
/// emulator.execute(IoInsn::in_imm8(Width::Byte, 0xb2), &mut gprs)?;
/// assert_eq!((gprs.rax, gprs.rcx), (0x42, !7));
/// # Ok::<(), ioemul::Error>(())
/// ```
#[derive(Default)]
pub struct SoftwareBus {
    /// In the order of their ports; no two overlap.
    claims: Vec<Claim>,
}

struct Claim {
    first: u16,
    last: u16,
    device: Box<dyn PortDevice>,
}

impl SoftwareBus {
    /// A bus with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device behind `ports`.
    ///
    /// # Errors
    ///
    /// [`Error::PortsTaken`] when another device has one of them, [`Error::NoPorts`] for an empty range.
    pub fn attach(&mut self, ports: RangeInclusive<u16>, device: impl PortDevice + 'static) -> Result<(), Error> {
        let (first, last) = (*ports.start(), *ports.end());
        if first > last {
            return Err(Error::NoPorts { ports });
        }
        let at = self.claims.partition_point(|claim| claim.last < first);
        match self.claims.get(at) {
            Some(claim) if claim.first <= last => Err(Error::PortsTaken { ports, by: claim.first..=claim.last }),
            _ => {
                self.claims.insert(at, Claim { first, last, device: Box::new(device) });
                Ok(())
            }
        }
    }

    /// The device that claims `port`.
    #[inline]
    fn claim(&mut self, port: u16) -> Option<&mut Claim> {
        let at = self.claims.partition_point(|claim| claim.last < port);
        self.claims.get_mut(at).filter(|claim| claim.first <= port)
    }

    /// The device that claims all ports of an access.
    #[inline]
    fn device(&mut self, access: PortAccess) -> Option<&mut dyn PortDevice> {
        let last = access.port.checked_add(u16::from(access.width.bytes()) - 1)?;
        let claim = self.claim(access.port).filter(|claim| last <= claim.last)?;
        Some(&mut *claim.device)
    }

    /// Makes an access, RAX included: what a stub's I/O instruction does on this bus.
    #[inline]
    fn access(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        let access = PortAccess::of(insn, gprs);
        let PortAccess { width, direction, .. } = access;
        let value = match direction {
            Direction::In => 0,
            Direction::Out => gprs.rax as u32 & width.mask(),
        };
        let input = self.perform(access, value, gprs).map_err(|source| refused(access, source))?;
        if direction == Direction::In {
            gprs.rax = width.merge(gprs.rax, input);
        }
        Ok(())
    }

    #[inline]
    fn perform(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        match self.device(access) {
            Some(device) => device.try_access(access, value, gprs),
            None => self.access_bytes(access, value, gprs),
        }
    }

    /// Byte by byte. The ports of an access do not wrap past 0xFFFF: nobody claims what would be beyond.
    #[cold]
    fn access_bytes(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        let mut input = 0;
        for byte in 0..access.width.bytes() {
            let claimed = access.port.checked_add(byte.into()).and_then(|port| Some((port, self.claim(port)?)));
            let answer = match claimed {
                Some((port, claim)) => {
                    let access = PortAccess { port, width: Width::Byte, ..access };
                    claim.device.try_access(access, value >> (8 * byte) & 0xff, gprs)?
                }
                None => 0xff,
            };
            input |= (answer & 0xff) << (8 * byte);
        }
        Ok(input)
    }

    /// Makes the accesses of INS or OUTS: to one device as a slice, to several byte by byte. Leaves RCX, RSI and RDI as
    /// the instruction does, also when it ends early.
    #[cold]
    fn access_string(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        let IoInsn { direction, width, operand } = insn;
        let rep = matches!(operand, PortOperand::String { rep: true, .. });
        let access = PortAccess::of(insn, gprs);
        let (rcx, rsi, rdi) = (gprs.rcx, gprs.rsi, gprs.rdi);
        let len = if rep { rcx as usize } else { 1 } * usize::from(width.bytes());
        if len == 0 {
            return Ok(()); // no access, whatever the instruction
        }
        let result = match direction {
            Direction::In => {
                // SAFETY: `IoEmulator::read_string` alone runs INS on a bus; it points RDI to a buffer of this length.
                let data = unsafe { string_buffer_mut(rdi, len) };
                match self.device(access) {
                    Some(device) => device.try_read_string(access, data, gprs),
                    None => read_elements(width, data, || self.access_bytes(access, 0, gprs)),
                }
            }
            Direction::Out => {
                // SAFETY: `IoEmulator::write_string` alone runs OUTS on a bus; it points RSI to data of this length.
                let data = unsafe { string_buffer(rsi, len) };
                match self.device(access) {
                    Some(device) => device.try_write_string(access, data, gprs),
                    None => write_elements(width, data, |value| self.access_bytes(access, value, gprs)),
                }
            }
        };
        let done = result.as_ref().err().map_or(len, |error| error.done.min(len)) as u64;
        gprs.rcx = if rep { rcx - done / u64::from(width.bytes()) } else { rcx };
        (gprs.rsi, gprs.rdi) = match direction {
            Direction::In => (rsi, rdi + done),
            Direction::Out => (rsi + done, rdi),
        };
        result.map_err(|error| refused(access, error.source))
    }
}

/// What a device's refusal is to the caller: the fault that it models, or its own error.
#[cold]
fn refused(access: PortAccess, source: DeviceError) -> Error {
    match source.downcast::<IoFault>() {
        Ok(fault) => Error::Fault { access, fault: *fault },
        Err(source) => Error::Device { access, source },
    }
}

/// INS as a sequence of INs.
fn read_elements(
    width: Width,
    data: &mut [u8],
    mut input: impl FnMut() -> Result<u32, DeviceError>,
) -> Result<(), StringError> {
    let width = usize::from(width.bytes());
    for (i, element) in data.chunks_exact_mut(width).enumerate() {
        let value = input().map_err(|source| StringError { done: i * width, source })?;
        element.copy_from_slice(&value.to_le_bytes()[..width]);
    }
    Ok(())
}

/// OUTS as a sequence of OUTs.
fn write_elements(
    width: Width,
    data: &[u8],
    mut output: impl FnMut(u32) -> Result<u32, DeviceError>,
) -> Result<(), StringError> {
    let width = usize::from(width.bytes());
    for (i, element) in data.chunks_exact(width).enumerate() {
        let mut value = [0; 4];
        value[..width].copy_from_slice(element);
        output(u32::from_le_bytes(value)).map_err(|source| StringError { done: i * width, source })?;
    }
    Ok(())
}

/// The memory of a string access.
///
/// # Safety
///
/// `address` is that of `len` bytes (unless there are none) that nobody else writes to meanwhile, its provenance exposed.
pub(crate) unsafe fn string_buffer<'a>(address: u64, len: usize) -> &'a [u8] {
    match len {
        0 => &[],
        // SAFETY: the caller's promise.
        _ => unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address as usize), len) },
    }
}

/// As [`string_buffer`], to be written.
///
/// # Safety
///
/// As there; and nobody else reads it meanwhile.
unsafe fn string_buffer_mut<'a>(address: u64, len: usize) -> &'a mut [u8] {
    match len {
        0 => &mut [],
        // SAFETY: the caller's promise.
        _ => unsafe { core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(address as usize), len) },
    }
}

impl core::fmt::Debug for SoftwareBus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list()
            .entries(self.claims.iter().map(|claim| format!("{:#06x}..={:#06x}", claim.first, claim.last)))
            .finish()
    }
}
