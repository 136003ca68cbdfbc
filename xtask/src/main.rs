//! `cargo xtask`: chores of this repository that take more than cargo.

mod hw;
mod platforms;
mod sanitize;
mod vectors;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about, bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run the library on emulated hardware, under QEMU: see hw/README.md
    Hw(hw::Options),
    /// Check the library on the oldest Rust that it promises, and for other systems
    Platforms(platforms::Options),
    /// Run the tests under AddressSanitizer, valgrind and Miri
    Sanitize(sanitize::Options),
    /// The test vectors for all implementations of port I/O: see vectors/README.md
    #[command(subcommand)]
    Vectors(vectors::Task),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    match Arguments::parse().chore {
        Chore::Hw(options) => hw::run(&options),
        Chore::Platforms(options) => platforms::run(&options),
        Chore::Sanitize(options) => sanitize::run(&options),
        Chore::Vectors(task) => vectors::run(&task),
    }
}
