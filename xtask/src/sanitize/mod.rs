//! `cargo xtask sanitize`: the tests under tools that see what a test does not: memory that is freed, out of bounds,
//! leaked or not initialized, and what Rust does not define.

mod plan;
mod report;
mod tools;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use plan::Scope;
use report::Report;
use tools::Tool;

#[derive(clap::Args)]
pub struct Options {
    /// Run one of the tools only
    #[arg(long, value_enum)]
    tool: Option<Tool>,
    /// Leave out the tests that take long: what CI runs
    #[arg(long)]
    quick: bool,
    /// Run this test binary only: `lib`, or a file of tests/ without its ending
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let binaries = plan::binaries()?;
    plan::check(&binaries)?;
    if let Some(test) = &options.test {
        ensure!(binaries.contains(test), "there is no test binary {test:?}, but: {}", binaries.join(", "));
    }
    let mut report = Report::default();
    for tool in Tool::ALL.iter().copied().filter(|tool| options.tool.is_none_or(|wanted| wanted == *tool)) {
        if let Err(why) = tool.prepare() {
            report.not_run(tool, &why.to_string(), must_run(tool, options));
            continue;
        }
        let wanted = wanted(tool, &binaries, options, &mut report);
        let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
        if let Err(why) = tool.build(&names) {
            report.failed(tool, &format!("{why:#}"));
            continue;
        }
        for (name, scope) in wanted {
            report.add(tool, tool.run(name, &scope)?);
        }
    }
    let good = report.print();
    let verdict = if good { "everything that was run is as it should be" } else { "FAILED" };
    println!("\nall in all {:.0} s: {verdict}", start.elapsed().as_secs_f64());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a tool that cannot be run here is a failure: where it was asked for, and in CI, where all of them can be had
/// but Miri, which is a component of the toolchain that CI's has not.
fn must_run(tool: Tool, options: &Options) -> bool {
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    options.tool == Some(tool) || in_ci && tool != Tool::Miri
}

/// The binaries that a tool runs, each with what of it. The report is told of the others.
fn wanted<'n>(tool: Tool, binaries: &'n [String], options: &Options, report: &mut Report) -> Vec<(&'n str, Scope)> {
    let mut wanted = Vec::new();
    for name in binaries.iter().filter(|name| options.test.as_ref().is_none_or(|test| test == *name)) {
        match plan::scope(tool, name, options.quick) {
            Scope::Nothing(why) => report.skipped(tool, name.clone(), why),
            scope => {
                scope.left_out().for_each(|(test, why)| report.skipped(tool, format!("{name} {test}"), why));
                wanted.push((name.as_str(), scope));
            }
        }
    }
    wanted
}
