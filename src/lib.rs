//! `ioemul` runs an x86 port-I/O instruction **with somebody else's registers in view**.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]
#![deny(unsafe_code)] // allowed, with a reason, at the head of the modules that run machine code
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("ioemul assembles x86-64 port-I/O stubs: build it for an x86_64 target");

#[cfg(feature = "std")]
mod dmi;
mod gprs;
#[cfg(feature = "std")]
mod hazard;
mod insn;
#[cfg(feature = "std")]
mod ports;
#[cfg(all(feature = "std", target_os = "linux"))]
mod privilege;

#[cfg(feature = "std")]
pub use dmi::DmiIdentity;
pub use gprs::Gprs;
#[cfg(feature = "std")]
pub use hazard::Hazard;
pub use insn::{DecodeError, Direction, IoInsn, PortOperand, Width};
#[cfg(feature = "std")]
pub use ports::{ParsePortSetError, PortPermissions, PortSet, PortSetProblem};
#[cfg(all(feature = "std", target_os = "linux"))]
pub use privilege::{CpuAffinity, IoPermission, IoPrivilegeLevel, PrivilegeError, Refusal};
