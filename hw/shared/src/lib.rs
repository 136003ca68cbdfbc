//! What the guests in `hw/` and the host (`cargo xtask hw`) agree on.
//!
//! The guests link this crate and run [`CHECKS`]; the host links it too, so that it knows which results to wait for: a
//! result that never arrives is a failure, not an absence.
#![no_std]

pub mod by_hand;
pub mod carries;
mod carry;
mod checks;
mod cli;
mod engine;
pub mod fifo;
mod mix;
pub mod model;
mod params;
mod report;
mod rng;
mod run;
pub mod script;
mod smm;
pub mod soak;
mod strings;
pub mod stubs;

pub use checks::{
    After, CHECKS, Check, DMI_PRODUCT, DMI_VENDOR, EXAMPLES, Example, Kind, Linux, Machine, Reg, Ring0, Step,
};
pub use cli::{Row, Script};
pub use engine::{DF, Engine, Failure, Mismatch, Refused, Returned, compare, is_addr32};
pub use mix::{Devices, Mix};
pub use params::{Mode, Params};
pub use report::{BROKEN_VARIANTS, Line, NATIVE_VARIANTS, Place, RING0_VARIANTS, RING3_VARIANTS};
pub use rng::Rng;
pub use run::{run_broken, run_check, run_steps};
pub use smm::{Chipset, HANDLER_ADDRESS, SMI_COMMAND, SMI_PORT, exchange, handler};
pub use strings::{after_elements, counts, string_registers};
