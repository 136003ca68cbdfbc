//! The one way from a stub to a device model, and the stub's way back: pointers, a panic that must not unwind, the
//! registers put back after a failure.
//!
//! ```text
//!  stub                          stub/trampoline.rs              here
//!  ────────────────────          ────────────────────────        ─────────────────────────────
//!  load guest registers
//!  push description      ──▶     registers → memory       ──▶    access(): bus, device, merge
//!  call trampoline               registers ← memory       ◀──
//!  lea rsp, [rsp + 8]    ◀──
//!  save guest registers
//! ```
#![allow(unsafe_code)] // runs stubs, and is called back from them with a pointer

use core::any::Any;
use core::arch::asm;
use core::mem::offset_of;
use core::ptr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::fault::StubResult;
use crate::stub::trampoline;
use crate::{Error, Gprs, IoInsn, PortAccess, SoftwareBus, Stub};

use super::Memory;

/// The way from a stub of a bus table back to Rust. The stub is called with its address in R12, which the prologue of
/// every layout pushes: there the trampoline finds it.
#[repr(C)]
struct BusFrame<'b, 'm> {
    /// Called by the trampoline.
    access: extern "sysv64" fn(*mut BusFrame<'_, '_>, *mut Gprs, u32),
    bus: &'b mut SoftwareBus,
    /// The guest's instruction. (A stub of INS or OUTS stands for forms of other address sizes and segments, too.)
    insn: IoInsn,
    /// The memory of INS or OUTS, and how many bytes of it were moved.
    memory: Option<&'b mut Memory<'m>>,
    done: usize,
    /// Why there was no access, on its way around the stub.
    failure: Option<Failure>,
}

// Where the trampoline looks for it.
const _: () = assert!(offset_of!(BusFrame<'_, '_>, access) == 0);

enum Failure {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

/// Runs a stub of a bus table: of IN, OUT, or a quirk in their place. A panic of a device model goes on here, the
/// registers as they were.
///
/// # Safety
///
/// `stub` is that of `insn`, or of a quirk in its place, in a table built with `StubTableBuilder::bus`.
#[inline]
pub(crate) unsafe fn run(bus: &mut SoftwareBus, stub: Stub<'_>, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    unsafe { run_with(bus, stub, insn, None, gprs) }.1
}

/// As [`run`], for INS and OUTS. Returns how many bytes were moved as well; RCX, RSI and RDI are left to the caller.
///
/// # Safety
///
/// As for [`run`].
pub(crate) unsafe fn run_string(
    bus: &mut SoftwareBus,
    stub: Stub<'_>,
    insn: IoInsn,
    memory: &mut Memory<'_>,
    gprs: &mut Gprs,
) -> (usize, Result<(), Error>) {
    // SAFETY: the caller's promise.
    unsafe { run_with(bus, stub, insn, Some(memory), gprs) }
}

#[inline]
unsafe fn run_with<'b, 'm>(
    bus: &'b mut SoftwareBus,
    stub: Stub<'_>,
    insn: IoInsn,
    memory: Option<&'b mut Memory<'m>>,
    gprs: &mut Gprs,
) -> (usize, Result<(), Error>) {
    let port = insn.port(gprs);
    let mut frame = BusFrame { access, bus, insn, memory, done: 0, failure: None };
    let mut result = StubResult::default();
    // SAFETY: the stub accesses no hardware, keeps the registers that a function keeps, and finds what it expects.
    unsafe {
        asm!(
            "call {stub}",
            stub = in(reg) stub.code().as_ptr(),
            in("rdi") ptr::from_mut(gprs),
            in("r12") &raw mut frame,
            lateout("rax") result.rax,
            lateout("rdx") result.rdx,
            lateout("r8") result.r8,
            clobber_abi("sysv64"),
        )
    };
    // Looked at before it is moved: a copy of what was just written in part would have to wait for that.
    if frame.failure.is_none() && result.rax == 0 {
        return (frame.done, Ok(()));
    }
    (frame.done, failed(frame.failure, result, (port, insn)))
}

#[cold]
fn failed(failure: Option<Failure>, result: StubResult, (port, insn): (u16, IoInsn)) -> Result<(), Error> {
    let access = PortAccess { port, width: insn.width, direction: insn.direction, insn };
    match failure {
        Some(Failure::Error(error)) => Err(error),
        Some(Failure::Panic(panic)) => resume_unwind(panic),
        // In a quirk's payload.
        None => result.check().map_err(|fault| Error::Fault { access, fault }),
    }
}

/// A copy, made in the words in which callers and stubs write registers: a vector load of two words that were just stored
/// one by one cannot be served from the store buffer, and would wait until both are in the cache.
#[inline(always)]
pub(crate) fn by_words(gprs: &Gprs) -> Gprs {
    let from = ptr::from_ref(gprs).cast::<u64>();
    // SAFETY: within the register file. Volatile, or the compiler would make vectors of them.
    Gprs::from_words(core::array::from_fn(|word| unsafe { from.add(word).read_volatile() }))
}

/// Where the trampoline arrives. A panic cannot unwind through a stub: it is kept, like an error, and the accesses that
/// may follow in a quirk's payload are not made.
extern "sysv64" fn access(frame: *mut BusFrame<'_, '_>, gprs: *mut Gprs, description: u32) {
    // SAFETY: the trampoline passes what `run` gave to the stub; nobody else uses it meanwhile.
    let (frame, gprs) = unsafe { (&mut *frame, &mut *gprs) };
    if frame.failure.is_none() {
        let BusFrame { bus, insn, memory, done, failure, .. } = frame;
        match catch_unwind(AssertUnwindSafe(|| match memory {
            None => bus.try_access(trampoline::decode(description), gprs),
            Some(memory) => {
                let (bytes, result) = bus.string(*insn, memory, gprs);
                *done = bytes;
                result
            }
        })) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => *failure = Some(Failure::Error(error)),
            Err(panic) => *failure = Some(Failure::Panic(panic)),
        }
    }
    // The registers will be put back: these end a quirk's polls and waits.
    gprs.rax |= 0xff;
    gprs.rflags &= !Gprs::CF;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::{QuirkTable, StubLayout, StubTable, Width};

    /// The stack may end between the description and the return address of a bus access: like any fault in a stub, it
    /// is an error that leaves the host's registers alone.
    #[test]
    fn a_stack_that_ends_within_an_access() {
        extern "sysv64" fn not_reached(_: *mut BusFrame<'_, '_>, _: *mut Gprs, _: u32) {
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
        // A bus installs no handler: this table does.
        let _native = StubTable::new(StubLayout::CallRet).unwrap();
        for layout in StubLayout::ALL.iter().copied() {
            let table = StubTable::builder().layout(layout).quirks(QuirkTable::builtin()).bus().build().unwrap();
            // Words between the call of the stub and the return address of the access, which finds no room: return
            // address, seven registers, the description.
            let words = 9 + usize::from(layout == StubLayout::Rop);
            for stub in [table.stub(insn), table.resolve(insn, &given)] {
                let mut bus = SoftwareBus::new();
                let mut frame =
                    BusFrame { access: not_reached, bus: &mut bus, insn, memory: None, done: 0, failure: None };
                let mut gprs = given;
                let (result, exception): (u64, u64);
                // SAFETY: the stub keeps R13, and with it the way back to this stack.
                unsafe {
                    core::arch::asm!(
                        "xchg rsp, r13", "call {stub}", "mov rsp, r13",
                        stub = in(reg) stub.code().as_ptr(),
                        inout("r13") stack as usize + PAGE + 8 * words => _,
                        inout("rdi") &raw mut gprs => _,
                        in("r12") &raw mut frame,
                        lateout("rax") result,
                        lateout("rdx") exception,
                        clobber_abi("sysv64"),
                    )
                };
                assert_eq!((result, exception as u8), (1, 14), "{layout:?}: a page fault");
                assert_eq!(gprs, given);
            }
        }
        // SAFETY: mapped above, and no longer in use.
        unsafe { libc::munmap(stack, 2 * PAGE) };
    }
}
