//! What can go wrong: with an access, with the building of stubs, with devices on a bus.

use core::ops::RangeInclusive;
use std::io;

use crate::access::AccessText;
use crate::bus::device::DeviceError;
use crate::{DecodeError, Direction, EmitError, IoFault, IoInsn, PortAccess, Width};

/// Why an access was not made, or not to its end. The registers are as they were given, but that RCX, RSI and RDI of
/// INS and OUTS say how far they got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not an instruction to be emulated.
    #[error(transparent)]
    Decode(#[from] DecodeError),

    /// The emulator may not touch a port of this access ([`PortSet`](crate::PortSet)).
    #[error(
        "{} is not permitted: {}",
        AccessText { port: *port, width: *width, direction: *direction },
        match port.checked_add(u16::from(width.bytes()) - 1) {
            Some(_) => "the emulator's port set does not cover all of it",
            None => "it runs past port 0xffff, whatever the port set",
        }
    )]
    PortDenied {
        /// The first port of the access.
        port: u16,
        /// Its width.
        width: Width,
        /// IN or OUT.
        direction: Direction,
    },

    /// The instruction is for another call. Of INS and OUTS, RSI or RDI is an address of the guest's, not of this process: the
    /// memory has to be given.
    #[error(
        "`{insn}` {}: `read_string` runs INS, `write_string` OUTS, {}",
        if insn.is_string() { "moves data between a port and memory" } else { "accesses no memory" },
        if insn.is_string() { "`execute` neither" } else { "and `execute` the others" }
    )]
    StringForm {
        /// The instruction.
        insn: IoInsn,
    },

    /// A string instruction would go past the end of the memory given for it.
    #[error(
        "`{insn}` moves {count} element{} of {} byte{}, and the memory given for it has {available} byte{}",
        plural(*count), insn.width.bytes(), plural(insn.width.bytes().into()), plural(*available as u64)
    )]
    StringOutOfBounds {
        /// The instruction.
        insn: IoInsn,
        /// How many elements RCX (or ECX) asks for.
        count: u64,
        /// Length of the memory in bytes.
        available: usize,
    },

    /// The CPU refused the access.
    #[error("{access}: {fault}")]
    Fault {
        /// The access; for INS and OUTS, that of one element.
        access: PortAccess,
        /// The exception that the CPU raised.
        fault: IoFault,
    },

    /// A device model refused the access.
    #[error("{access}: the device refused the access: {source}")]
    Device {
        /// The access.
        access: PortAccess,
        /// The device's own error.
        source: DeviceError,
    },

    /// The emulator's listener did not let the access pass ([`Events::approve`](crate::events::Events::approve)). No access
    /// was made.
    #[error("{access} was not made: the listener stopped it: {source}")]
    Stopped {
        /// The access; for INS and OUTS, that of one element.
        access: PortAccess,
        /// The listener's own error.
        source: DeviceError,
    },

    /// What is said of a KVM exit does not fit together. No access was made.
    #[cfg(all(feature = "kvm", target_os = "linux"))]
    #[error("the KVM exit cannot be served: {0}")]
    KvmExit(#[from] crate::kvm::ExitError),

    /// A quirk would have to touch a port that the emulator may not touch. No access was made.
    #[error(
        "{} is not permitted, and the quirk {quirk:?}, which stands for the instruction, makes it: permit it, or build the \
         emulator without the quirk",
        AccessText { port: *port, width: *width, direction: *direction }
    )]
    QuirkDenied {
        /// The quirk.
        quirk: &'static str,
        /// The first port of its access.
        port: u16,
        /// Its width.
        width: Width,
        /// IN or OUT.
        direction: Direction,
    },
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Why a device cannot be put on a [`SoftwareBus`](crate::SoftwareBus). The bus is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// A device claims ports that another one has.
    #[error("ports {:#06x} to {:#06x} are taken: another device has {:#06x} to {:#06x}", ports.start(), ports.end(), by.start(), by.end())]
    PortsTaken {
        /// The ports claimed.
        ports: RangeInclusive<u16>,
        /// The ports of the device that is there.
        by: RangeInclusive<u16>,
    },

    /// A device claims no ports.
    #[error("the port range {:#06x} to {:#06x} is empty", ports.start(), ports.end())]
    NoPorts {
        /// The empty range.
        ports: RangeInclusive<u16>,
    },
}

/// Why a [`StubTable`](crate::StubTable) or an [`IoEmulator`](crate::IoEmulator) cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A port that is to be on the bus and on the hardware.
    #[error(
        "port {port:#06x} is permitted on the bus and on the hardware: an access would have two places to go, name it once"
    )]
    PortsInBoth {
        /// The first such port.
        port: u16,
    },

    /// A quirk of machine code where there is to be none.
    #[error(
        "the quirk {quirk:?} is machine code, and a direct bus runs none: describe it as steps, or leave `.direct()` out"
    )]
    DirectPayload {
        /// The quirk.
        quirk: &'static str,
    },

    /// An emulator without anything to run on.
    #[error("the emulator has no backend: give it a software bus (`.bus()`) or the hardware (`unsafe .native(ports)`)")]
    NoBackend,

    /// [`StubLayout::Rop`](crate::StubLayout::Rop) where RETs are checked.
    #[error(
        "the Rop layout hijacks a return address, and this process runs with a user shadow stack, which would kill it"
    )]
    ShadowStack,

    /// A quirk's payload cannot be emitted.
    #[error(transparent)]
    Emit(#[from] EmitError),

    /// A quirk's payload cannot be assembled.
    #[error("the stubs do not assemble: {why}")]
    Assembler {
        /// What the assembler says.
        why: String,
    },

    /// No memory.
    #[error("no memory for the stubs: {0}")]
    Memory(#[source] io::Error),

    /// Memory that may not become executable.
    #[error(
        "the memory of the stubs may not become executable: {0}: mprotect is refused under PR_SET_MDWE (systemd's \
         MemoryDenyWriteExecute=), by SELinux (execmem) and by seccomp filters: permit it, build before the jail is entered, or \
         reach a software bus without machine code, by `.direct()`"
    )]
    Executable(#[source] io::Error),

    /// The executable memory is not write-protected, or not executable.
    #[error("the stubs' memory is {found} where r-x was asked for")]
    Protection {
        /// What it is instead: `rwx`, say.
        found: String,
    },

    /// The handler that makes faults errors is not in place.
    #[cfg(target_os = "linux")]
    #[error("the fault handler could not be installed: {0}")]
    SignalHandler(#[from] crate::fault::HandlerError),

    /// The machine has DMI strings that cannot be read.
    #[error(
        "the machine's DMI strings cannot be read: {0}: make it possible, or name the machine's quirks yourself, by `.quirks(…)`"
    )]
    Dmi(#[source] io::Error),
}
