//! `completions` and `man`: from the command line's own description.

use clap_complete::Shell;

use crate::args::Cli;
use crate::context::Context;
use crate::failure::{Failure, Result};

pub fn completions(context: &Context, shell: Shell) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::tree(), "ioemul", &mut script);
    context.out.bytes(&script)
}

pub fn man(context: &Context, subcommand: &[String]) -> Result {
    let mut tree = Cli::tree();
    tree.build();
    let mut command = &tree;
    for name in subcommand {
        command = command.find_subcommand(name).ok_or_else(|| {
            let known: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
            Failure::usage(format!("{name}: no such subcommand; there are: {}", known.join(", ")))
        })?;
    }
    let name = std::iter::once("ioemul").chain(subcommand.iter().map(String::as_str)).collect::<Vec<_>>().join("-");
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command.clone()).title(name).date("November 2026").render(&mut page);
    rendered.map_err(|error| Failure::io("the manual page", &error))?;
    context.out.bytes(&page)
}
