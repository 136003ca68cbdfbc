//! What does a hijacked return cost on this machine?
//!
//! The same stub, laid out in four ways, is called through 0 to 40 real call frames. Three layouts pair every RET with a
//! CALL. The fourth, the historic one, leaves an address on the stack for its RET to find, as return-oriented programming
//! does: the CPU's return stack is out of step from then on, and every RET of the callers further out is mispredicted.
//! `docs/return-stack.md` explains the curve.
//!
//! ```text
//! cargo run --release --example rop_vs_call                    # a table, and target/rop_vs_call.svg
//! cargo run --release --example rop_vs_call -- --json          # for machines
//! ```
//!
//! There is a no-op in place of the I/O instruction: no privilege is needed, and no port is touched.

mod chart;
mod counters;
mod knee;
mod measure;
mod report;
#[path = "../../benches/support/mod.rs"]
mod support;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Measures what a hijacked return costs, by layout of the stub and by depth of the callers.
#[derive(Parser)]
struct Arguments {
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Where the chart goes
    #[arg(long, value_name = "FILE", default_value = "target/rop_vs_call.svg")]
    svg: PathBuf,
    /// The core to measure on; by default the one that the program starts on
    #[arg(long)]
    core: Option<usize>,
    /// How often everything is measured
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    sweeps: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let core = match arguments.core {
        Some(core) => support::clock::pin_to(core).map(|()| core),
        None => support::clock::pin(),
    }
    .map_err(|error| format!("this thread cannot be pinned to a core: {error}"))?;

    let target = if arguments.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let progress = ProgressBar::with_draw_target(Some(arguments.sweeps.into()), target);
    progress.set_style(ProgressStyle::with_template("measuring {wide_bar} {pos}/{len} sweeps, {eta} left")?);
    let measured = measure::measure(core, arguments.sweeps, || progress.inc(1))?;
    progress.finish_and_clear();

    if let Some(folder) = arguments.svg.parent() {
        std::fs::create_dir_all(folder)?;
    }
    chart::draw(&measured, &arguments.svg)?;
    if arguments.json {
        println!("{:#}", report::json(&measured));
    } else {
        report::print(&measured);
        println!("\nchart: {}", arguments.svg.display());
    }
    Ok(())
}
