//! What the header says, and what calls do.
#![allow(unsafe_code)] // the calls take pointers, as C passes them
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

mod allocation;
mod calls;
mod errors;
mod header;
