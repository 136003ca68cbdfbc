//! `cargo xtask hw`: the library on emulated hardware, in ring 3 under Linux and in ring 0 under nothing.

mod bus;
mod checks;
mod cli;
mod guests;
pub mod host;
mod initramfs;
mod kernel;
mod pe;
mod qemu;
mod reference;
mod results;
mod soak;
mod table;
mod uefi;
mod xen;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use guests::Image;

#[derive(clap::Args)]
pub struct Options {
    /// Compare the library, in all places and layouts, with Xen: one script of accesses, every register
    #[arg(long)]
    reference: bool,
    /// Run a random mix of accesses for so many seconds, and compare each with a model
    #[arg(long, value_name = "SECONDS", conflicts_with = "reference")]
    soak: Option<u64>,
    /// Send an SMI from a UEFI application, and show sixteen words before and after
    #[arg(long, conflicts_with_all = ["reference", "soak"])]
    uefi: bool,
    /// Build Debian's Xen from source, as it is and with the library's table in the place of its stub, and compare the two
    #[arg(long, conflicts_with_all = ["reference", "soak", "uefi"])]
    xen_host: bool,
    /// Run the command `ioemul` from a shell, next to Debian's `inb`: as root, as nobody, locked down, in the middle of a scan
    #[arg(long, conflicts_with_all = ["reference", "soak", "uefi", "xen_host"])]
    cli: bool,
    /// Seed of the random registers [default: random, and printed]
    #[arg(long)]
    seed: Option<u64>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let seed = options.seed.unwrap_or_else(random_seed);
    host::ensure_programs(host::PROGRAMS)?;
    let good = match options {
        Options { uefi: true, .. } => uefi::run(&uefi::image()?, seed)?,
        Options { cli: true, .. } => cli::run(&cli::image()?, seed)?,
        _ => on_linux_and_bare(options, seed)?,
    };
    let verdict = if good { "everything is as it should be" } else { "FAILED" };
    println!("seed {seed}; all in all {:.1} s: {verdict}", start.elapsed().as_secs_f64());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What takes a Linux, and mostly the image without an operating system as well.
fn on_linux_and_bare(options: &Options, seed: u64) -> Result<bool> {
    let linux = Image::linux()?;
    if options.xen_host {
        return xen::run(&linux, seed);
    }
    let ring0 = Image::ring0()?;
    match options.soak {
        Some(seconds) => soak::run(&linux, seed, seconds),
        None if options.reference => reference::run(&linux, &ring0, &Image::xen(&linux)?, seed),
        None => checks::run(&linux, &ring0, seed),
    }
}

/// Good enough to be different every time; it is printed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) >> 32
}
