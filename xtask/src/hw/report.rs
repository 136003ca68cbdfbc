//! From serial lines to one table.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use hw_shared::{CHECKS, Check, Place};
use ioemul::Layout;

/// The columns.
const LAYOUTS: [Layout; 4] = Layout::ALL;

/// What one machine reported.
pub struct Run {
    pub place: Place,
    pub machine: &'static str,
    /// A negative control: every check must fail.
    pub control: bool,
    pub wall: Duration,
    log: PathBuf,
    /// By check and layout.
    cells: Vec<[Cell; LAYOUTS.len()]>,
    /// Trouble that belongs to no check.
    trouble: Vec<String>,
}

/// One check in one layout.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    /// Not a check for this ring.
    None,
    /// Accesses made.
    Passed(u64),
    /// Which variants failed, and why the first one did.
    Failed { variants: Vec<&'static str>, why: String },
}

impl Cell {
    fn failed(&self) -> &[&'static str] {
        match self {
            Cell::Failed { variants, .. } => variants,
            _ => &[],
        }
    }
}

impl Run {
    /// Sorts out the serial output. What is expected and absent has failed.
    pub fn new(
        place: Place,
        machine: &'static str,
        control: bool,
        output: Result<String>,
        log: PathBuf,
        wall: Duration,
    ) -> Self {
        let mut trouble = Vec::new();
        let output = output.unwrap_or_else(|error| {
            trouble.push(format!("{error:#}"));
            std::fs::read_to_string(&log).unwrap_or_default()
        });
        let lines: Vec<Vec<&str>> = output
            .lines()
            .filter_map(|line| line.trim_end().strip_prefix("ioemul|"))
            .map(|line| line.split('|').collect())
            .collect();
        for line in &lines {
            if let ["error", error] = line[..] {
                trouble.push(error.to_owned());
            }
        }
        if lines.last().is_none_or(|line| line[..] != ["end"]) {
            trouble.push(format!("the guest did not come to its end: {}", log.display()));
        }
        let cells = CHECKS.iter().map(|check| LAYOUTS.map(|layout| cell(&lines, place, check, layout))).collect();
        Self { place, machine, control, wall, log, cells, trouble }
    }

    fn name(&self) -> String {
        let place = match self.place {
            Place::Ring3 => "Linux, ring 3",
            Place::Ring0 => "no OS, ring 0",
        };
        format!("{}: {place}", self.machine)
    }

    /// Everything passed; in a negative control, everything failed.
    pub fn good(&self) -> bool {
        self.trouble.is_empty() && self.bad_cells().next().is_none()
    }

    fn bad_cells(&self) -> impl Iterator<Item = (&'static Check, Layout, &Cell)> {
        let cells = CHECKS.iter().zip(&self.cells);
        let cells = cells.flat_map(|(check, row)| LAYOUTS.iter().zip(row).map(move |(l, cell)| (check, *l, cell)));
        cells.filter(|(check, _, cell)| match cell {
            Cell::None => false,
            Cell::Passed(_) => self.control,
            // In a control every variant has to fail.
            Cell::Failed { variants, .. } => !self.control || variants.len() < check.kind.variants(self.place).len(),
        })
    }

    fn count(&self, of: fn(&Cell) -> u64) -> u64 {
        self.cells.iter().flatten().map(of).sum()
    }
}

fn cell(lines: &[Vec<&str>], place: Place, check: &Check, layout: Layout) -> Cell {
    let variants = check.kind.variants(place);
    if variants.is_empty() {
        return Cell::None;
    }
    let layout = format!("{layout:?}");
    let (mut total, mut failed, mut why) = (0, Vec::new(), None);
    for &variant in variants {
        let key = [check.name, &layout, variant];
        let results: Vec<_> = lines.iter().filter(|line| line.starts_with(&key)).map(|line| &line[3..]).collect();
        match results[..] {
            [[accesses, "ok"]] => total += accesses.parse().unwrap_or(0),
            [[_, reason]] => {
                failed.push(variant);
                why.get_or_insert((*reason).to_owned());
            }
            // Silence fails a check, and does not make a negative control work.
            _ => {
                let why = format!("{variant}: {} results", results.len());
                return Cell::Failed { variants: Vec::new(), why };
            }
        }
    }
    match why {
        None => Cell::Passed(total),
        Some(why) => Cell::Failed { variants: failed, why },
    }
}

/// The whole run, as it is printed.
pub struct Report<'a> {
    pub runs: &'a [Run],
    pub seed: u64,
    pub prepared: Duration,
    pub total: Duration,
}

/// Width of the column of names.
const NAME: usize = 26;

/// How many failures of a machine are spelled out.
const DETAILS: usize = 8;

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (controls, runs): (Vec<_>, Vec<_>) = self.runs.iter().partition(|run| run.control);
        self.checks(f, &runs)?;
        self.controls(f, &controls)?;
        self.failures(f)?;
        self.totals(f)
    }
}

impl Report<'_> {
    fn checks(&self, f: &mut fmt::Formatter<'_>, runs: &[&Run]) -> fmt::Result {
        let heads: Vec<_> = runs.iter().map(|run| format!(" | {:23}", run.name())).collect();
        let names: String = LAYOUTS.iter().map(|layout| format!(" {:5.5}", format!("{layout:?}"))).collect();
        writeln!(f, "{:NAME$}{}", "", heads.concat().trim_end())?;
        writeln!(f, "{:NAME$}{}", "Checks", format!(" |{names}").repeat(runs.len()).trim_end())?;
        for (index, check) in CHECKS.iter().enumerate() {
            let mut row = format!("{:NAME$}", check.name);
            for run in runs {
                row.push_str(" |");
                for cell in &run.cells[index] {
                    let word = match cell {
                        Cell::None => "-",
                        Cell::Passed(_) => "ok",
                        Cell::Failed { .. } => "BAD",
                    };
                    row.push_str(&format!(" {word:5}"));
                }
            }
            writeln!(f, "{}", row.trim_end())?;
        }
        Ok(())
    }

    fn controls(&self, f: &mut fmt::Formatter<'_>, controls: &[&Run]) -> fmt::Result {
        writeln!(f, "\nNegative controls: on a machine without the devices, every check fails in every layout and variant\n")?;
        let heads: String = controls.iter().map(|run| format!(" | {:18}", run.name())).collect();
        writeln!(f, "{:NAME$}{heads} | for example", "")?;
        for (index, check) in CHECKS.iter().enumerate() {
            let mut row = format!("{:NAME$}", check.name);
            for run in controls {
                let expected = check.kind.variants(run.place).len() * LAYOUTS.len();
                let failed: usize = run.cells[index].iter().map(|cell| cell.failed().len()).sum();
                let word = match (expected, failed) {
                    (0, _) => "-".to_owned(),
                    (expected, failed) if expected == failed => format!("{failed} of {expected} fail"),
                    (expected, failed) => format!("BAD: {failed} of {expected}"),
                };
                row.push_str(&format!(" | {word:18}"));
            }
            let why = controls.iter().flat_map(|run| &run.cells[index]).find_map(|cell| match cell {
                Cell::Failed { why, .. } => Some(why.as_str()),
                _ => None,
            });
            writeln!(f, "{row} | {}", why.unwrap_or("nothing fails"))?;
        }
        Ok(())
    }

    fn failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in self.runs.iter().filter(|run| !run.good()) {
            writeln!(f, "\n{} ({})", run.name(), run.log.display())?;
            for trouble in &run.trouble {
                writeln!(f, "  {trouble}")?;
            }
            for (check, layout, cell) in run.bad_cells().take(DETAILS) {
                match cell {
                    Cell::Failed { variants, why } if !run.control => {
                        writeln!(f, "  {}, {layout:?} ({}): {why}", check.name, variants.join(", "))?;
                    }
                    Cell::Failed { why, .. } => writeln!(f, "  {}, {layout:?}: not every variant fails: {why}", check.name)?,
                    _ => writeln!(f, "  {}, {layout:?}: passes without its device", check.name)?,
                }
            }
            let more = run.bad_cells().skip(DETAILS).count();
            if more > 0 {
                writeln!(f, "  and {more} more")?;
            }
        }
        Ok(())
    }

    fn totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        for run in self.runs {
            let passed = run.count(|cell| matches!(cell, Cell::Passed(_)).into());
            let failed = run.count(|cell| matches!(cell, Cell::Failed { .. }).into());
            let accesses = run.count(|cell| if let Cell::Passed(accesses) = cell { *accesses } else { 0 });
            let kind = if run.control { "control" } else { "checks" };
            let (name, wall) = (run.name(), run.wall.as_secs_f64());
            write!(f, "{name:18} {kind:7} {passed:3} passed {failed:3} failed {wall:5.2} s")?;
            writeln!(f, "{}", if run.control { String::new() } else { format!(" {accesses:7} accesses compared") })?;
        }
        let (prepared, total) = (self.prepared.as_secs_f64(), self.total.as_secs_f64());
        let verdict = if self.runs.iter().all(Run::good) { "everything is as it should be" } else { "FAILED" };
        writeln!(f, "seed {}; fetching and building {prepared:.1} s, all in all {total:.1} s", self.seed)?;
        writeln!(f, "{verdict}")
    }
}
