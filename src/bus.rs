//! Device models in place of the hardware, behind the same stubs.
//!
//! On a bus, the I/O instruction in a stub is replaced by a call. Everything else stays: the layout, the loads and
//! saves, the quirk payloads. The guest's registers really are in the CPU when the device is reached, and what the device
//! writes to them really is loaded again.
//!
//! ```text
//!  stub                          bridge (bridge.rs)              here
//!  ────────────────────          ────────────────────────        ─────────────────────────────
//!  load guest registers
//!  push description      ──▶     registers → memory       ──▶    access(): bus, device, merge
//!  call bus_access               registers ← memory       ◀──
//!  lea rsp, [rsp + 8]    ◀──
//!  save guest registers
//! ```
#![allow(unsafe_code)] // runs stubs, and is called back from them with a pointer

use core::any::Any;
use core::arch::asm;
use core::mem::{MaybeUninit, offset_of};
use core::ops::RangeInclusive;
use core::ptr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::bridge;
use crate::fault::StubResult;
use crate::{Direction, Error, Gprs, IoFault, IoInsn, PortOperand, Stub, Width};

/// One access to a port, as a device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortAccess {
    /// The first port of the access.
    pub port: u16,
    /// How many bytes it covers.
    pub width: Width,
    /// IN or OUT.
    pub direction: Direction,
}

impl PortAccess {
    /// The access that an instruction makes with these registers: for INS and OUTS, that of one element.
    #[inline]
    pub const fn of(insn: IoInsn, gprs: &Gprs) -> Self {
        Self { port: insn.port(gprs), width: insn.width, direction: insn.direction }
    }
}

impl core::fmt::Display for PortAccess {
    /// `OUT of 1 byte to port 0x0cd4`
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (mnemonic, preposition) = match self.direction {
            Direction::In => ("IN", "from"),
            Direction::Out => ("OUT", "to"),
        };
        let (bytes, plural) = (self.width.bytes(), if self.width == Width::Byte { "" } else { "s" });
        write!(f, "{mnemonic} of {bytes} byte{plural} {preposition} port {:#06x}", self.port)
    }
}

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
        let IoInsn { direction, width, port } = insn;
        let rep = matches!(port, PortOperand::String { rep: true, .. });
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

impl core::fmt::Debug for SoftwareBus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list()
            .entries(self.claims.iter().map(|claim| format!("{:#06x}..={:#06x}", claim.first, claim.last)))
            .finish()
    }
}

/// The way from a stub of a bus table back to Rust. The stub is called with its address in R12, which the prologue of
/// every layout pushes: there the bridge finds it.
#[repr(C)]
struct BusFrame<'b> {
    /// Called by the bridge.
    access: extern "sysv64" fn(*mut BusFrame<'_>, *mut Gprs, u32),
    bus: &'b mut SoftwareBus,
    /// Why there was no access, on its way around the stub.
    failure: Option<Failure>,
}

// Where the bridge looks for it.
const _: () = assert!(offset_of!(BusFrame<'_>, access) == 0);

enum Failure {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

/// Runs a stub of a bus table. A panic of a device model goes on here, the registers as they were.
///
/// # Safety
///
/// `stub` is that of `insn`, or of a quirk in its place, in a table built with `StubTableBuilder::bus`. For INS and OUTS,
/// the registers point to memory of this process that may be accessed.
#[inline]
pub(crate) unsafe fn run(bus: &mut SoftwareBus, stub: Stub<'_>, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
    let (before, requested) = (Saved::new(gprs), PortAccess::of(insn, gprs));
    let mut frame = BusFrame { access, bus, failure: None };
    let mut result = StubResult::default();
    // SAFETY: the stub accesses no hardware, keeps the registers that a function keeps, and finds what it expects.
    unsafe {
        asm!(
            "call {stub}",
            stub = in(reg) stub.as_ptr(),
            in("rdi") ptr::from_mut(gprs),
            in("r12") &raw mut frame,
            lateout("rax") result.rax,
            lateout("rdx") result.rdx,
            clobber_abi("sysv64"),
        )
    };
    let failure = match (frame.failure, result.check()) {
        (None, Ok(())) => return Ok(()),
        (Some(failure), _) => failure,
        // In a quirk's payload.
        (None, Err(fault)) => Failure::Error(Error::Fault { access: requested, fault }),
    };
    let after = core::mem::replace(gprs, before.into_gprs());
    match failure {
        Failure::Error(error) => {
            if insn.is_string() {
                (gprs.rcx, gprs.rsi, gprs.rdi) = (after.rcx, after.rsi, after.rdi);
            }
            Err(error)
        }
        Failure::Panic(panic) => resume_unwind(panic),
    }
}

/// The registers as they were, copied in the words in which callers and stubs write them: a vector load of two words that
/// were just stored one by one cannot be served from the store buffer, and would wait until both are in the cache.
struct Saved(MaybeUninit<Gprs>);

impl Saved {
    #[inline]
    fn new(gprs: &Gprs) -> Self {
        let mut copy = MaybeUninit::<Gprs>::uninit();
        let (to, from) = (copy.as_mut_ptr().cast::<u64>(), ptr::from_ref(gprs).cast::<u64>());
        for word in 0..size_of::<Gprs>() / size_of::<u64>() {
            // SAFETY: within the two register files. Volatile, or the compiler would make vectors of them.
            unsafe { to.add(word).write(from.add(word).read_volatile()) };
        }
        Self(copy)
    }

    fn into_gprs(self) -> Gprs {
        // SAFETY: `new` wrote every word, and a register file is nothing but words.
        unsafe { self.0.assume_init() }
    }
}

/// Where the bridge arrives. A panic cannot unwind through a stub: it is kept, like an error, and the accesses that
/// may follow in a quirk's payload are not made.
extern "sysv64" fn access(frame: *mut BusFrame<'_>, gprs: *mut Gprs, description: u32) {
    // SAFETY: the bridge passes what `run` gave to the stub; nobody else uses it meanwhile.
    let (frame, gprs) = unsafe { (&mut *frame, &mut *gprs) };
    if frame.failure.is_none() {
        let BusFrame { bus, failure, .. } = frame;
        let insn = bridge::decode(description);
        match catch_unwind(AssertUnwindSafe(|| match insn.is_string() {
            false => bus.access(insn, gprs),
            true => bus.access_string(insn, gprs),
        })) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => *failure = Some(Failure::Error(error)),
            Err(panic) => *failure = Some(Failure::Panic(panic)),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::{Layout, QuirkTable, StubTable};

    /// The stack may end between the description and the return address of a bus access: like any fault in a stub, it
    /// is an error that leaves the host's registers alone.
    #[test]
    fn a_stack_that_ends_within_an_access() {
        extern "sysv64" fn not_reached(_: *mut BusFrame<'_>, _: *mut Gprs, _: u32) {
            unreachable!("there is no stack left for it")
        }
        const PAGE: usize = 4096;
        // SAFETY: asks for new memory, of which the lower page is taken back.
        let stack = unsafe {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let stack = libc::mmap(core::ptr::null_mut(), 2 * PAGE, protection, flags, -1, 0);
            assert!(stack != libc::MAP_FAILED && libc::mprotect(stack, PAGE, libc::PROT_NONE) == 0);
            stack
        };
        let given = Gprs { rax: 0x80, rdx: 0xcd4, ..Gprs::default() };
        let insn = IoInsn::out_dx(Width::Byte);
        for layout in Layout::ALL {
            let table = StubTable::builder().layout(layout).quirks(QuirkTable::builtin()).bus().build().unwrap();
            // Words between the call of the stub and the return address of the access, which finds no room: return
            // address, seven registers, the description; and what the payload has pushed.
            let words = 9 + usize::from(layout == Layout::Rop);
            for (stub, words) in [(table.stub(insn), words), (table.resolve(insn, &given), words + 1)] {
                let mut bus = SoftwareBus::new();
                let mut frame = BusFrame { access: not_reached, bus: &mut bus, failure: None };
                let mut gprs = given;
                let result: u64;
                // SAFETY: the stub keeps R13, and with it the way back to this stack.
                unsafe {
                    core::arch::asm!(
                        "xchg rsp, r13", "call {stub}", "mov rsp, r13",
                        stub = in(reg) stub.as_ptr(),
                        inout("r13") stack as usize + PAGE + 8 * words => _,
                        inout("rdi") &raw mut gprs => _,
                        in("r12") &raw mut frame,
                        lateout("rax") result,
                        clobber_abi("sysv64"),
                    )
                };
                assert_eq!(result as u8, 14, "{layout:?}: a page fault");
                assert_eq!(gprs, given);
            }
        }
        // SAFETY: mapped above, and no longer in use.
        unsafe { libc::munmap(stack, 2 * PAGE) };
    }
}
