//! `ioemul` runs an x86 port-I/O instruction **with somebody else's registers in view**.
//!
//! A guest executed IN or OUT, and the access has to be made for it. An SMM handler, the VMware backdoor or a vendor
//! mailbox behind the port reads and writes *every* general-purpose register at that instant, so `outb(port, value)` is
//! not enough: the access must run with the guest's fifteen registers loaded, and give all fifteen back, with the
//! flags. Machine-code *stubs* do that. There is one for each of the 1,542 forms of IN and OUT (and the string forms),
//! all assembled once, by dynasm-rs, into one immutable executable buffer.
//!
//! ```text
//! guest bytes ──decode──▶ IoInsn ──permitted?──▶ quirk for this platform? ──▶ stub ──run──▶ Gprs / Error
//!                         insn.rs  ports.rs      quirk_table.rs               jit.rs
//! ```
//!
//! # Where to start
//!
//! - [`IoEmulator`] is the safe front door: bytes and registers in, registers or an [`Error`] out, on a [`SoftwareBus`]
//!   of device models or, on the authority of one `unsafe` call, on the hardware.
//! - [`StubTable`] is the engine under it, for callers that run stubs themselves.
//! - [`emit_stub`] and [`CodeTable`] write the same stubs to memory that the caller owns, without `std` and without an
//!   allocator: a hypervisor's per-CPU slot, or its table of all forms.
//! - [`CodeTable::emulate`] is the front door of a kernel, without `std` as well: [the guide](kernel_guide) builds all that
//!   is around it.
//! - [`TssBitmap`] answers, without `std` as well, which of a guest's accesses a CPU would permit.
//! - [`StubLayout`] says how a stub switches registers; [`Quirk`] what stands in place of the instruction on platforms that
//!   need more; [`fault`] how a #GP becomes an error.
//! - [`events`] tells what an emulator does, [`trace`] records it and plays it back without the hardware, [`devices`]
//!   has models to test against, and [`guest_rpc`] speaks to a VMware host.
//! - [`Fadt`] knows the port for software SMIs and the codes that are ACPI's, [`IoPortOwners`] which driver has a port, and
//!   [`SmiCounter`] how many SMIs there were.
//!
//! The command `ioemul` (package `ioemul-cli`) does much of this without a program of yours.
//!
//! # Features
//!
//! `std` (default): everything that needs a process. Without it the crate is `no_std` and holds registers,
//! instructions, helpers, slots and quirks. All others are off by default:
//!
//! - `alloc`: sets of ports ([`PortSet`], [`PortPermissions`], [`Hazard`]) without `std`, which has it in any case.
//! - `gas`: the table of all stubs as assembler source and C header, for hypervisors in C.
//! - `trace`: trace files, by serde.
//! - `tracing`: a listener that emits `tracing` events.
//! - `vm-superio`: rust-vmm's 16550 UART and i8042 on a software bus.
//! - `kvm` (Linux): a guest's port accesses as KVM delivers them, and conversions between [`Gprs`] and KVM's registers.
//!
//! x86-64 only. Linux is the supported system: fault recovery, DMI, privilege and SMI counts are Linux's.
#![cfg_attr(not(feature = "std"), allow(rustdoc::broken_intra_doc_links))] // to what there is with it
#![cfg_attr(all(not(feature = "std"), not(test)), no_std)] // its own tests have a process to run in
#![deny(missing_docs)]
#![deny(unsafe_code)] // allowed, with a reason, at the head of the modules that run machine code
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("ioemul assembles x86-64 port-I/O stubs: build it for an x86_64 target");

#[cfg(feature = "alloc")]
extern crate alloc;

// What a guest did: registers, instruction, access.
mod access;
mod fadt;
mod gprs;
mod insn;
#[cfg(feature = "alloc")]
mod ports;
#[cfg(feature = "alloc")]
mod quote;
mod smbios;
mod tss;
// Machine code for it, wherever it goes.
mod emission;
mod helpers;
mod quirk_table;
mod slot;
mod stub;
mod table;
// All of that in one call, for a kernel.
mod kernel;
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
pub mod events;
#[cfg(feature = "std")]
pub mod fault;
#[cfg(feature = "gas")]
pub mod gas;
#[cfg(feature = "std")]
pub mod guest_rpc;
#[cfg(feature = "std")]
mod ioports;
#[cfg(feature = "std")]
mod jit;
#[cfg(all(feature = "kvm", target_os = "linux"))]
pub mod kvm;
#[cfg(all(feature = "std", target_os = "linux"))]
mod privilege;
#[cfg(all(feature = "std", target_os = "linux"))]
mod smi_count;
#[cfg(feature = "std")]
pub mod trace;

#[doc = include_str!("../docs/threat-model.md")]
pub mod threat_model {}

#[doc = include_str!("../docs/kernel.md")]
pub mod kernel_guide {}

#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use access::PortAccess;
pub use fadt::{Fadt, FadtError, NoSmiPort};
pub use gprs::{Excerpt, Gprs, ParseGprsError, ParseRegisterFileError, RegisterFile};
pub use insn::{
    AddressSize, CodeSize, DecodeError, Direction, IoInsn, ParseInsnError, PortOperand, Segment, StringProgress, Width,
};
#[cfg(feature = "alloc")]
pub use ports::{Hazard, ParsePortSetError, PortPermissions, PortSet, PortSetProblem};
pub use smbios::SmbiosEntryPoint;
pub use tss::TssBitmap;

pub use emission::{EmitError, EmitOptions};
pub use kernel::{HostRegisters, KernelError};
pub use quirk_table::{CARRY_LIMIT, DmiMatch, DmiStrings, PROLIANT_POLL_LIMIT, Quirk, Step, Trigger, TriggerForm};
pub use slot::{Helpers, emit_stub, stub_fixup};
pub use stub::{CodeSink, Helper, Payload, Ring, StubLayout};
pub use table::{CodeTable, Faulted, StubFn, Symbol, SymbolName};

#[cfg(feature = "std")]
pub use {
    bus::{DeviceError, PortDevice, SoftwareBus, StringError},
    dmi::DmiIdentity,
    emulator::{IoEmulator, IoEmulatorBuilder},
    error::{AttachError, BuildError, Error},
    fadt::FadtReadError,
    fault::IoFault,
    ioports::{IoPortOwners, IoPortOwnersError, PortOwner},
    jit::{Stub, StubTable, StubTableBuilder},
    quirk_table::QuirkTable,
    stub::DynasmSink,
};

#[cfg(all(feature = "std", target_os = "linux"))]
pub use privilege::{CpuAffinity, IoPermission, IoPrivilegeLevel, PrivilegeError, Refusal};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use smi_count::{SmiCounter, SmiCounterError};
