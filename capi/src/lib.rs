//! `ioemul` for C: what `include/ioemul.h` declares, and describes.
//!
//! ```text
//!   C ──▶ guard ──▶ pointers looked at ──▶ values looked at ──▶ ioemul (no_std part) ──▶ results written, all or none
//!         status.rs  pointers.rs            insn.rs options.rs   ..                       pointers.rs
//! ```
//!
//! A call keeps nothing and allocates nothing; there is no global state. There is no panic in what is here, nor in what it
//! calls: tests/c/reach.rs follows the machine code to see it. [`guard`](status::guard) is there for a build in which
//! that is otherwise, without optimization say: a panic ends there, and the caller gets an error.
#![deny(missing_docs)]
#![deny(unsafe_code)] // allowed, with a reason, at the head of the modules that take pointers from C
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::missing_safety_doc)] // what each function asks of its caller is in ioemul.h

mod insn;
mod options;
mod pointers;
mod quirks;
mod slot;
mod status;
mod table;

#[cfg(test)]
mod tests;

/// The version of the interface: 16 bits that change when a caller has to be changed, and 16 that count what was added.
const ABI_VERSION: u32 = 1 << 16;

mod version {
    #![allow(unsafe_code)] // a name that the linker sees

    #[unsafe(no_mangle)]
    pub(crate) extern "C" fn ioemul_abi_version() -> u32 {
        super::ABI_VERSION
    }
}
