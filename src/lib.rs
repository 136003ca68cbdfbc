//! `ioemul` runs an x86 port-I/O instruction **with somebody else's registers in view**.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]
#![deny(unsafe_code)] // allowed, with a reason, at the head of the modules that run machine code
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("ioemul assembles x86-64 port-I/O stubs: build it for an x86_64 target");

// What a guest did: registers and instruction.
mod gprs;
mod insn;
// Machine code for it, wherever it goes.
mod arena;
mod helpers;
mod layout;
mod payload;
mod quirk_table;
mod sink;
mod slot;
// The same in a process: built once, run safely.
#[cfg(feature = "std")]
mod bus;
#[cfg(feature = "std")]
pub mod devices;
#[cfg(feature = "std")]
mod dmi;
#[cfg(feature = "std")]
mod emulator;
#[cfg(feature = "std")]
mod error;
#[cfg(feature = "std")]
pub mod fault;
#[cfg(feature = "std")]
mod hazard;
#[cfg(feature = "std")]
mod jit;
#[cfg(feature = "std")]
mod ports;
#[cfg(all(feature = "std", target_os = "linux"))]
mod privilege;

pub use gprs::Gprs;
pub use insn::{DecodeError, Direction, IoInsn, PortOperand, Width};

pub use arena::Fixup;
pub use layout::Layout;
pub use payload::Payload;
pub use quirk_table::{DmiMatch, PROLIANT_POLL_LIMIT, Quirk, Ring};
pub use sink::CodeSink;
pub use slot::{CodeTable, EmitError, Helpers, SlotOptions, emit_stub, emit_stub_with, stub_fixup};

#[cfg(feature = "std")]
pub use {
    bus::{DeviceError, PortAccess, PortDevice, SoftwareBus},
    dmi::DmiIdentity,
    emulator::{IoEmulator, IoEmulatorBuilder},
    error::Error,
    fault::IoFault,
    hazard::Hazard,
    jit::{Stub, StubTable, StubTableBuilder},
    ports::{ParsePortSetError, PortPermissions, PortSet, PortSetProblem},
    quirk_table::QuirkTable,
    sink::DynasmSink,
};

#[cfg(all(feature = "std", target_os = "linux"))]
pub use privilege::{CpuAffinity, IoPermission, IoPrivilegeLevel, PrivilegeError, Refusal};
