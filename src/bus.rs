//! Device models in place of the hardware.
//!
//! On a bus, the I/O instruction in a stub is replaced by a call (`bus/call.rs`). Everything else stays: the layout,
//! the loads and saves, the quirks. The guest's registers really are in the CPU when the device is reached, and what
//! the device writes to them really is loaded again. The same accesses are to be had without any machine code:
//! [`SoftwareBus::access`].

use core::ops::RangeInclusive;

use crate::insn::Steps;
use crate::{AttachError, Direction, Error, Gprs, IoFault, IoInsn, PortAccess, Quirk, Step, Width};

pub(crate) mod call;
pub(crate) mod device;

pub use device::{DeviceError, PortDevice, StringError};
use device::{read_elements, write_elements};

/// Ports with device models behind them.
///
/// An access goes to the device that claims all its ports; one that no device claims whole is split into bytes, as an
/// ISA bus does. A byte that nobody claims reads as 0xFF, and a write to it is lost.
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
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct SoftwareBus {
    /// In the order of their ports; no two overlap.
    claims: Vec<Claim>,
    /// The elements of INS and OUTS that go downwards, in the order in which a device sees them. Kept, so that not every
    /// such instruction allocates.
    downwards: Vec<u8>,
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
    /// [`AttachError::PortsTaken`] when another device has one of them, [`AttachError::NoPorts`] for an empty range.
    pub fn attach(&mut self, ports: RangeInclusive<u16>, device: impl PortDevice + 'static) -> Result<(), AttachError> {
        let (first, last) = (*ports.start(), *ports.end());
        if first > last {
            return Err(AttachError::NoPorts { ports });
        }
        let at = self.claims.partition_point(|claim| claim.last < first);
        match self.claims.get(at) {
            Some(claim) if claim.first <= last => Err(AttachError::PortsTaken { ports, by: claim.first..=claim.last }),
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
    fn device(&mut self, port: u16, width: Width) -> Option<&mut dyn PortDevice> {
        let last = port.checked_add(u16::from(width.bytes()) - 1)?;
        let claim = self.claim(port).filter(|claim| last <= claim.last)?;
        Some(&mut *claim.device)
    }

    /// Makes an access on this bus, RAX included, without any machine code: what a stub's I/O instruction does here.
    ///
    /// Nothing is checked but the instruction's form: permissions and quirks are an
    /// [`IoEmulator`](crate::IoEmulator)'s.
    ///
    /// ```
    /// use ioemul::{Gprs, IoInsn, SoftwareBus, Width};
    /// let mut gprs = Gprs { rax: 0x1234, ..Gprs::default() };
    /// SoftwareBus::new().access(IoInsn::in_imm8(Width::Byte, 0x71), &mut gprs)?; // nobody is there
    /// assert_eq!(gprs.rax, 0x12ff);
    /// # Ok::<(), ioemul::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Device`], [`Error::Fault`], and [`Error::StringForm`] for INS and OUTS, whose memory is the caller's.
    /// `gprs` is then as it was.
    ///
    /// # Panics
    ///
    /// When a device model does; `gprs` is then as it was.
    #[inline]
    pub fn access(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        if insn.is_string() {
            return Err(Error::StringForm { insn });
        }
        let before = *gprs;
        undone_unless(gprs, &before, |gprs| self.try_access(insn, gprs))
    }

    /// What a quirk does in the place of `insn`, step by step. A failure leaves `gprs` as the device did.
    pub(crate) fn walk(&mut self, quirk: &Quirk, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        const IN: IoInsn = IoInsn::in_dx(Width::Byte);
        let port = quirk.trigger().port;
        for step in quirk.steps().unwrap_or_default() {
            match *step {
                Step::Access if insn.port(gprs) == port => self.try_access(insn, gprs)?,
                Step::OutAl { port } => self.try_access(IoInsn::out_imm8(Width::Byte, port), gprs)?,
                Step::InAl if gprs.rdx as u16 == port => self.try_access(IN, gprs)?,
                Step::Poll { mask, limit } => self.poll(port, mask, limit, gprs)?,
                Step::PollUnbounded { mask } => self.poll(port, mask, crate::PROLIANT_POLL_LIMIT, gprs)?,
                // DX no longer names the port; and nothing happens here while one waits.
                Step::Access | Step::InAl | Step::WaitCarryClear { .. } | Step::Spin { .. } => {}
            }
        }
        Ok(())
    }

    /// Reads a port until the bits are clear, as the stub of [`Step::Poll`] does.
    fn poll(&mut self, port: u16, mask: u8, limit: u32, gprs: &mut Gprs) -> Result<(), Error> {
        for _ in 0..Step::limit_on_bus(limit) {
            if gprs.rdx as u16 != port {
                break;
            }
            self.try_access(IoInsn::in_dx(Width::Byte), gprs)?;
            let al = gprs.rax as u8;
            if al == 0xff || al & mask == 0 {
                break;
            }
        }
        Ok(())
    }

    /// As [`Self::access`]; a failure leaves `gprs` as the device did.
    #[inline(always)]
    pub(crate) fn try_access(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        let (port, IoInsn { width, direction, .. }) = (insn.port(gprs), insn);
        let value = match direction {
            Direction::In => 0,
            Direction::Out => gprs.rax as u32 & width.mask(),
        };
        let rflags = gprs.rflags;
        // Made where it is passed on: a copy of what was written field by field would have to wait for the fields.
        let access = || PortAccess { port, width, direction, insn };
        let input = match self.device(port, width) {
            Some(device) => device.try_access(access(), value, gprs),
            None => self.access_bytes(access(), value, gprs),
        }
        .map_err(|source| refused(access(), source))?;
        if direction == Direction::In {
            gprs.rax = width.merge(gprs.rax, input);
        }
        // Where nothing changed, nothing is written: the next access of these registers need not wait for it.
        if gprs.rflags != rflags {
            gprs.rflags = of_the_device(rflags, gprs.rflags);
        }
        Ok(())
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

    /// Makes the accesses of INS or OUTS: to one device as a slice, to several byte by byte. `memory` has as many
    /// elements as are to be moved. Returns how many bytes were, whole elements, and why not all.
    #[cold]
    pub(crate) fn string(
        &mut self,
        insn: IoInsn,
        memory: &mut Memory<'_>,
        gprs: &mut Gprs,
    ) -> (usize, Result<(), Error>) {
        let access = PortAccess::of(insn, gprs);
        let len = memory.as_slice().len();
        if len == 0 {
            return (0, Ok(())); // no access, whatever the instruction
        }
        let (width, rflags) = (usize::from(insn.width.bytes()), gprs.rflags);
        let result = if len > width && Steps::of(insn, gprs).is_some_and(|steps| steps.downwards()) {
            self.transfer_downwards(access, memory, gprs)
        } else {
            self.transfer(access, memory, gprs)
        };
        gprs.rflags = of_the_device(rflags, gprs.rflags);
        match result {
            Ok(()) => (len, Ok(())),
            Err(StringError { done, source }) => {
                let done = done.min(len);
                (done - done % width, Err(refused(access, source)))
            }
        }
    }

    /// Moves the elements of `memory` from its start to its end.
    fn transfer(&mut self, access: PortAccess, memory: &mut Memory<'_>, gprs: &mut Gprs) -> Result<(), StringError> {
        match memory {
            Memory::In(data) => match self.device(access.port, access.width) {
                Some(device) => device.try_read_string(access, data, gprs),
                None => read_elements(access, data, gprs, |gprs| self.access_bytes(access, 0, gprs)),
            },
            Memory::Out(data) => match self.device(access.port, access.width) {
                Some(device) => device.try_write_string(access, data, gprs),
                None => write_elements(access, data, gprs, |value, gprs| self.access_bytes(access, value, gprs)),
            },
        }
    }

    /// Moves the elements of `memory` from its end to its start: as a copy in which they are the other way round. (A
    /// device that panics has changed the copy only.)
    fn transfer_downwards(
        &mut self,
        access: PortAccess,
        memory: &mut Memory<'_>,
        gprs: &mut Gprs,
    ) -> Result<(), StringError> {
        let width = usize::from(access.width.bytes());
        let mut copy = core::mem::take(&mut self.downwards);
        copy.clear();
        copy.reserve(memory.as_slice().len());
        copy.extend(memory.as_slice().chunks_exact(width).rev().flatten());
        let result = match memory {
            Memory::In(data) => {
                let result = self.transfer(access, &mut Memory::In(&mut copy), gprs);
                let elements = data.chunks_exact_mut(width).rev().zip(copy.chunks_exact(width));
                elements.for_each(|(to, from)| to.copy_from_slice(from));
                result
            }
            Memory::Out(_) => self.transfer(access, &mut Memory::Out(&copy), gprs),
        };
        self.downwards = copy;
        result
    }
}

/// Of RFLAGS, a device has the status flags in its hands.
const fn of_the_device(before: u64, after: u64) -> u64 {
    before & !Gprs::STATUS_FLAGS | after & Gprs::STATUS_FLAGS
}

/// The memory of a string instruction.
pub(crate) enum Memory<'m> {
    /// INS fills it.
    In(&'m mut [u8]),
    /// OUTS reads it.
    Out(&'m [u8]),
}

impl Memory<'_> {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Memory::In(data) => data,
            Memory::Out(data) => data,
        }
    }
}

/// Does something with registers, and puts them back, as they were `before`, if it fails or panics.
#[inline]
pub(crate) fn undone_unless<T>(
    gprs: &mut Gprs,
    before: &Gprs,
    work: impl FnOnce(&mut Gprs) -> Result<T, Error>,
) -> Result<T, Error> {
    struct Undo<'g> {
        gprs: &'g mut Gprs,
        before: &'g Gprs,
        done: bool,
    }
    impl Drop for Undo<'_> {
        #[inline]
        fn drop(&mut self) {
            if !self.done {
                *self.gprs = *self.before;
            }
        }
    }
    let mut undo = Undo { gprs, before, done: false };
    match work(undo.gprs) {
        Ok(result) => {
            undo.done = true;
            Ok(result)
        }
        Err(error) => Err(error),
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

impl core::fmt::Debug for SoftwareBus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list()
            .entries(self.claims.iter().map(|claim| format!("{:#06x}..={:#06x}", claim.first, claim.last)))
            .finish()
    }
}
