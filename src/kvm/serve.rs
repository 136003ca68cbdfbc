//! The accesses of an exit, made by an emulator.

use kvm_bindings::kvm_regs;

use super::{ExitError, KvmIo};
use crate::events::Events;
use crate::{Direction, Error, Gprs, IoEmulator, IoInsn};

/// What a VMM does next, after an exit was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "after `SetRegs` the guest's registers have to go to KVM_SET_REGS; after `Run` they must not"]
pub enum Next {
    /// KVM_RUN at once. The registers are as they were given, and KVM has all that it needs in `data`. After KVM_SET_REGS,
    /// it might not look there.
    Run,
    /// KVM_SET_REGS, then KVM_RUN: a device has changed registers.
    SetRegs,
}

/// Serves a KVM_EXIT_IO: makes its accesses with the guest's registers in view, and leaves what an IN has read in `data`.
///
/// `regs` is what KVM_GET_REGS gives at this exit. The accesses are permitted, made, and reported to the listener one by
/// one.
///
/// - **One element** is IN or OUT: of DX, where DX holds the port, and else of an immediate byte. (The guest may have used an
///   immediate byte for a port that DX happens to hold. The access is the same; a device sees the form in
///   [`PortAccess::insn`](crate::PortAccess::insn), and a quirk may be for one form alone.) All registers and status flags
///   that a device has changed are in `regs` then, and an IN's result in RAX.
/// - **More elements**, an OUT of something else than AL, AX or EAX, and an exit that is known to be
///   [of a string](KvmIo::of_string) are INS or OUTS: of one element at a time, without REP, since KVM has taken that part.
///   RCX, RDX, RSI and RDI are the same at each element and stay as they are in `regs`: KVM goes on with them. RAX is the
///   guest's, at the access and afterwards, but for what a device writes there.
///
/// RSP, RIP and all flags but the status flags stay as they are in `regs`.
///
/// ```
/// use ioemul::kvm::{KvmIo, Next, serve_io};
/// use ioemul::{IoEmulator, PortSet, SoftwareBus};
/// use kvm_bindings::kvm_regs;
/// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build()?;
/// // REP INSW of five words, from a port where nobody is.
/// let mut regs = kvm_regs { rcx: 5, rdx: 0x1f0, rdi: 0x9000, ..Default::default() };
/// let mut data = [0; 10];
/// let next = serve_io(&mut emulator, &mut regs, KvmIo::new(0, 2, 0x1f0, 5)?, &mut data)?;
/// assert_eq!((next, data, regs.rcx), (Next::Run, [0xff; 10], 5)); // RCX is KVM's
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::KvmExit`]: nothing has happened. [`Error::PortDenied`], [`Error::QuirkDenied`], [`Error::Stopped`],
/// [`Error::Fault`], [`Error::Device`]: as for [`IoEmulator::execute`], at one of the accesses.
///
/// `regs` is then as it was, and `data` has the results of the accesses that were made. KVM knows no failure: at the next
/// KVM_RUN it completes the instruction with what is in `data`. What the guest is to see is the VMM's to say: all ones
/// (`data.fill(0xff)`), say, as from a port where nobody is.
///
/// # Panics
///
/// When a device model does; `regs` is then as it was. When a listener does, as for [`IoEmulator::execute`], but that `regs`
/// is as it was in any case.
pub fn serve_io<E: Events>(
    emulator: &mut IoEmulator<E>,
    regs: &mut kvm_regs,
    io: KvmIo,
    data: &mut [u8],
) -> Result<Next, Error> {
    let KvmIo { width, count, .. } = io;
    if data.len() as u64 != io.data_len() || data.is_empty() {
        return Err(ExitError::Data { count, width, len: data.len() }.into());
    }
    let before = Gprs::from(&*regs);
    let (given, after) = if is_string(io, data, &before) {
        (before, serve_string(emulator, before, io, data)?)
    } else {
        serve_one(emulator, before, io, data)?
    };
    if after == given {
        return Ok(Next::Run);
    }
    after.write_back(regs);
    Ok(Next::SetRegs)
}

/// Whether the exit shows that it is of INS or OUTS. The data of OUT is AL, AX or EAX.
fn is_string(io: KvmIo, data: &[u8], gprs: &Gprs) -> bool {
    let rax = gprs.rax.to_le_bytes();
    io.string || io.count > 1 || io.direction == Direction::Out && !rax.starts_with(data)
}

/// IN or OUT. Returns the registers as KVM will have them by itself, and as they are.
fn serve_one<E: Events>(
    emulator: &mut IoEmulator<E>,
    before: Gprs,
    io: KvmIo,
    data: &mut [u8],
) -> Result<(Gprs, Gprs), Error> {
    let KvmIo { direction, width, port, .. } = io;
    let insn = IoInsn::for_access(direction, width, port, &before).ok_or_else(|| foreign(port, &before))?;
    let (mut given, mut after) = (before, before);
    emulator.execute(insn, &mut after)?;
    if direction == Direction::In {
        data.copy_from_slice(&after.rax.to_le_bytes()[..data.len()]);
        given.rax = width.merge(before.rax, after.rax as u32);
    }
    Ok((given, after))
}

/// INS or OUTS. Returns the registers as they are.
fn serve_string<E: Events>(
    emulator: &mut IoEmulator<E>,
    before: Gprs,
    io: KvmIo,
    data: &mut [u8],
) -> Result<Gprs, Error> {
    if before.rdx as u16 != io.port {
        return Err(foreign(io.port, &before).into());
    }
    let mut gprs = before;
    for element in data.chunks_exact_mut(io.width.bytes().into()) {
        match io.direction {
            Direction::In => emulator.read_string(IoInsn::ins(io.width), &mut gprs, element)?,
            Direction::Out => emulator.write_string(IoInsn::outs(io.width), &mut gprs, element)?,
        };
        let Gprs { rcx, rdx, rsi, rdi, .. } = before; // KVM's
        gprs = Gprs { rcx, rdx, rsi, rdi, ..gprs };
    }
    Ok(gprs)
}

/// The registers do not go with the exit.
fn foreign(port: u16, gprs: &Gprs) -> ExitError {
    ExitError::Registers { port, dx: gprs.rdx as u16 }
}
