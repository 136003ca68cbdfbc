//! Port I/O with all registers in view, from the command line.
//!
//! ```text
//! arguments ──▶ Plan ──interlocks──▶ Machine ──access──▶ report
//! args.rs       plan.rs              machine.rs          report.rs, output.rs
//! values.rs     commands/            hardware, pc.rs, trace
//! ```
#![deny(unsafe_code)] // allowed in machine.rs, for `native`

mod args;
mod commands;
mod context;
mod failure;
mod files;
mod firmware;
mod machine;
mod output;
mod pc;
mod plan;
mod report;
mod values;

use std::ffi::OsString;
use std::process::ExitCode;

use args::Cli;
use context::Context;
use failure::{Failure, Kind};
use output::Output;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match read(&arguments) {
        Ok(cli) => {
            let (command, context) = (cli.command, Context::new(cli.globals, false));
            end(context.out, commands::run(&context, command))
        }
        Err(status) => status,
    }
}

/// Parses arguments; what clap has to say (help is no failure) is said here.
fn read(arguments: &[OsString]) -> Result<Cli, ExitCode> {
    Cli::read(arguments.iter().cloned()).map_err(|error| {
        let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
        if json && error.use_stderr() {
            let message = error.render().to_string();
            let message = message.trim().trim_start_matches("error: ").to_owned();
            return end(Output { json, quiet: false }, Err(Failure::new(Kind::Usage, message)));
        }
        let is_lost = error.print().is_err_and(|lost| lost.kind() != std::io::ErrorKind::BrokenPipe);
        if is_lost && !error.use_stderr() {
            return ExitCode::from(Kind::Io.exit_status());
        }
        ExitCode::from(if error.use_stderr() { Kind::Usage.exit_status() } else { 0 })
    })
}

fn end(out: Output, result: failure::Result) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.kind.exit_status())
        }
    }
}
