//! The report of the checks: from results to one table.

use std::fmt;

use hw_shared::CHECKS;
use ioemul::StubLayout;

use super::results::{Cell, LAYOUTS, Run};

/// The whole run, as it is printed.
pub struct Report<'a>(pub &'a [Run]);

/// Width of the column of names.
const NAME: usize = 28;

/// How many failures of a machine are spelled out.
const DETAILS: usize = 8;

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (controls, runs): (Vec<_>, Vec<_>) = self.0.iter().partition(|run| run.control);
        self.checks(f, &runs)?;
        self.controls(f, &controls)?;
        self.shown(f, &runs)?;
        self.failures(f)?;
        self.totals(f)
    }
}

impl Report<'_> {
    fn checks(&self, f: &mut fmt::Formatter<'_>, runs: &[&Run]) -> fmt::Result {
        writeln!(
            f,
            "Each ok is the same accesses by one layout, all 16 registers compared after each: in ring 3 through"
        )?;
        writeln!(
            f,
            "the emulator and the table, in ring 0 through a slot, a table, and a slot with ENDBR64 and a return thunk that"
        )?;
        writeln!(
            f,
            "scrubs; in both through stubs for two structures of hosts, pt_regs and kvm_regs, whose other words have to stay."
        )?;
        writeln!(f, "-: not a matter of the layout, or not of ring 0.\n")?;
        let heads: Vec<_> = runs.iter().map(|run| format!(" | {:23}", run.name())).collect();
        let names: String = LAYOUTS.iter().map(|layout| format!(" {:5}", abbreviation(*layout))).collect();
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
        writeln!(
            f,
            "\nNegative controls: without the devices, every check has to fail, in every layout and variant\n"
        )?;
        let heads: String = controls.iter().map(|run| format!(" | {:8}", run.short_name())).collect();
        writeln!(f, "{:NAME$}{heads} | for example", "Failures")?;
        for (index, check) in CHECKS.iter().enumerate() {
            let mut row = format!("{:NAME$}", check.name);
            for run in controls {
                let expected: usize = LAYOUTS.iter().map(|layout| check.kind.variants(run.place, *layout).len()).sum();
                let failed: usize = run.cells[index].iter().map(|cell| cell.failed().len()).sum();
                let word = match (expected, failed) {
                    (0, _) => "-".to_owned(),
                    (expected, failed) if expected == failed => format!("{failed}/{expected}"),
                    (expected, failed) => format!("BAD {failed}/{expected}"),
                };
                row.push_str(&format!(" | {word:8}"));
            }
            let why = controls.iter().flat_map(|run| &run.cells[index]).find_map(|cell| match cell {
                Cell::Failed { why, .. } => Some(why.as_str()),
                _ => None,
            });
            writeln!(f, "{row} | {}", why.unwrap_or("nothing fails"))?;
        }
        Ok(())
    }

    /// What guests printed themselves, from the first that has it.
    fn shown(&self, f: &mut fmt::Formatter<'_>, runs: &[&Run]) -> fmt::Result {
        for (index, check) in CHECKS.iter().enumerate() {
            let Some(run) = runs.iter().find(|run| !run.shown[index].is_empty()) else { continue };
            writeln!(f, "\n{}, on {}", check.name, run.name())?;
            run.shown[index].iter().try_for_each(|line| writeln!(f, "{}", format!("  {line}").trim_end()))?;
        }
        Ok(())
    }

    fn failures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in self.0.iter().filter(|run| !run.good()) {
            writeln!(f, "\n{}", run.name())?;
            if let Some(trouble) = &run.trouble {
                writeln!(f, "  {trouble}")?;
            }
            for (check, layout, cell) in run.bad_cells().take(DETAILS) {
                match cell {
                    Cell::Failed { variants, why } if !run.control => {
                        writeln!(f, "  {}, {layout:?} ({}): {why}", check.name, variants.join(", "))?;
                    }
                    Cell::Failed { why, .. } => {
                        writeln!(f, "  {}, {layout:?}: not every variant fails: {why}", check.name)?
                    }
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
        for run in self.0 {
            let passed = run.count(|cell| matches!(cell, Cell::Passed(_)).into());
            let failed = run.count(|cell| matches!(cell, Cell::Failed { .. }).into());
            let accesses = run.count(|cell| if let Cell::Passed(accesses) = cell { *accesses } else { 0 });
            let kind = if run.control { "control" } else { "checks" };
            let (name, wall) = (run.name(), run.wall.as_secs_f64());
            write!(f, "{name:18} {kind:7} {passed:3} passed {failed:3} failed {wall:5.2} s")?;
            writeln!(f, "{}", if run.control { String::new() } else { format!(" {accesses:7} accesses compared") })?;
        }
        Ok(())
    }
}

fn abbreviation(layout: StubLayout) -> &'static str {
    match layout {
        StubLayout::CallRet => "call",
        StubLayout::Rop => "rop",
        StubLayout::Compact => "comp",
        StubLayout::Inline => "inl",
        _ => "new",
    }
}
