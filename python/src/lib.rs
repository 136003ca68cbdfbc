//! The Python module `ioemul._ioemul`. What a user imports is the package `ioemul` around it (python/ioemul), and
//! what each function promises is said in `ioemul/_ioemul.pyi` and in the docstrings here.
//!
//! ```text
//!   Python ──▶ arguments.rs ──▶ machine.rs ──▶ ioemul::IoEmulator ──▶ hardware
//!              all looked at    CPU pinned,     │                     or a bus
//!              before anything  ports opened    │                        │
//!   Python ◀── errors.rs ◀──────────────────────┘      model.rs ◀────────┘
//!              exceptions with facts                   a callable of Python's
//! ```
//!
//! An access holds the GIL from its beginning to its end: it is one instruction, the privilege that it needs is the
//! thread's, and a device model needs the GIL in any case. Ports are opened, and the thread is pinned, for one call
//! at a time, so that a machine can be used from any thread.
#![deny(missing_docs)]
#![deny(unsafe_code)] // allowed, with a reason, at the head of the one module that reaches the hardware
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::undocumented_unsafe_blocks)]

mod arguments;
mod errors;
mod functions;
mod machine;
mod model;
mod registers;

#[pyo3::pymodule]
mod _ioemul {
    #[pymodule_export]
    use super::functions::{decode, execute, smi};
    #[pymodule_export]
    use super::machine::{Bus, Machine};
    #[pymodule_export]
    use super::model::Access;
    #[pymodule_export]
    use super::registers::Registers;
}
