//! `ioemul` runs an x86 port-I/O instruction **with somebody else's registers in view**.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]
#![deny(unsafe_code)] // allowed, with a reason, at the head of the modules that run machine code
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("ioemul assembles x86-64 port-I/O stubs: build it for an x86_64 target");

mod gprs;
mod insn;

mod arena;
mod helpers;
mod layout;
mod payload;
mod quirk_table;
mod sink;
mod slot;

pub use gprs::Gprs;
pub use insn::{DecodeError, Direction, IoInsn, PortOperand, Width};

pub use arena::Fixup;
pub use layout::Layout;
pub use payload::Payload;
pub use quirk_table::{DmiMatch, PROLIANT_POLL_LIMIT, Quirk, Ring};
pub use sink::CodeSink;
pub use slot::{CodeTable, EmitError, Helpers, SlotOptions, emit_stub, emit_stub_with, stub_fixup};
