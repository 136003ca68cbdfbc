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
        self.table(f, "Checks", "ok", &runs)?;
        writeln!(f)?;
        let why = "the same checks on machines without the devices: every one has to fail";
        writeln!(f, "Negative controls: {why}\n")?;
        self.table(f, "Check", "fails", &controls)?;
        self.failures(f)?;
        self.totals(f)
    }
}

impl Report<'_> {
    fn table(&self, f: &mut fmt::Formatter<'_>, title: &str, good: &str, runs: &[&Run]) -> fmt::Result {
        write!(f, "{:NAME$}", "")?;
        for run in runs {
            write!(f, " | {:23}", format!("{}: {}", run.machine, place(run.place)))?;
        }
        write!(f, "\n{title:NAME$}")?;
        for _ in runs {
            write!(f, " | {:5} {:5} {:5} {:5}", "call", "rop", "compt", "inlin")?;
        }
        writeln!(f)?;
        for (index, check) in CHECKS.iter().enumerate() {
            write!(f, "{:NAME$}", check.name)?;
            for run in runs {
                write!(f, " |")?;
                for cell in &run.cells[index] {
                    let bad = run.bad_cells().any(|(_, _, other)| std::ptr::eq(other, cell));
                    let word = match cell {
                        Cell::None => "-",
                        Cell::Passed(_) | Cell::Failed { .. } if !bad => good,
                        _ => "BAD",
                    };
                    write!(f, " {word:5}")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in self.runs.iter().filter(|run| !run.good()) {
            writeln!(f, "\n{}: {} ({})", run.machine, place(run.place), run.log.display())?;
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
            writeln!(
                f,
                "{:4} {} {kind:8} {passed:3} passed {failed:3} failed {accesses:8} accesses compared {:6.2} s",
                run.machine,
                place(run.place),
                run.wall.as_secs_f64()
            )?;
        }
        let (prepared, total) = (self.prepared.as_secs_f64(), self.total.as_secs_f64());
        let verdict = if self.runs.iter().all(Run::good) { "everything is as it should be" } else { "FAILED" };
        writeln!(f, "seed {}; fetching and building {prepared:.1} s, all in all {total:.1} s", self.seed)?;
        writeln!(f, "{verdict}")
    }
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Ring3 => "Linux, ring 3",
        Place::Ring0 => "no OS, ring 0",
    }
}
