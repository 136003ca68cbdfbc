//! The subcommands.

mod about;
mod cmos;
mod code;
mod dell;
mod exec;
mod ports;
mod scan;
mod shell;
mod smi;
mod table;
mod trace;
mod vmware;

use crate::args::{Command, Smi};
use crate::context::Context;
use crate::failure::Result;

/// Runs a subcommand.
pub fn run(context: &Context, command: Command) -> Result {
    match command {
        Command::In { port, count } => ports::input(context, port, count),
        Command::Out { port, value } => ports::output(context, port, value),
        Command::Ix { ports, register, value } => ports::index(context, ports, register, value),
        Command::Cmos { what, value } => cmos::run(context, what, value),
        Command::Exec(arguments) => exec::run(context, &arguments),
        Command::Smi(Smi::Scan(arguments)) => scan::run(context, &arguments),
        Command::Smi(command) => smi::run(context, &command),
        Command::Dell(command) => dell::run(context, &command),
        Command::Vmware(command) => vmware::run(context, &command),
        Command::Trace(command) => trace::run(context, command),
        Command::Ports { set } => about::ports(context, set),
        Command::Check => about::check(context),
        Command::Decode { bytes, mode } => code::decode(context, &bytes, mode.into()),
        Command::Listing(arguments) => code::listing(context, &arguments),
        Command::Table(arguments) => table::run(context, &arguments),
        Command::Completions { shell } => shell::completions(context, shell),
        Command::Man { subcommand } => shell::man(context, &subcommand),
    }
}
