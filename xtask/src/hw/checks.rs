//! `cargo xtask hw`: the table of checks, on machines with the devices and on machines without.

use std::time::Duration;

use anyhow::Result;
use hw_shared::{CHECKS, Check, Mode, Params, Place};
use ioemul::Layout;

use super::guests::Image;
use super::qemu::{self, Guest, Output, Setup};
use super::table::Report;

/// SMIs with random registers, for each engine.
const SMIS: u64 = 500;

/// Runs everything and prints the report; whether all is good.
pub fn run(linux: &Image, ring0: &Image, seed: u64) -> Result<bool> {
    let mut guests = Vec::new();
    for image in [linux, ring0] {
        for control in [false, true] {
            let setup = if control { Setup::Bare } else { Setup::ProLiant };
            let params = Params { mode: Mode::Checks, seed, count: SMIS, seconds: 0, control, proliant: !control };
            guests.extend(["pc", "q35"].map(|machine| Guest { machine, setup, image, params }));
        }
    }
    let outputs = qemu::run_all(&guests)?;
    let runs: Vec<_> = guests.iter().zip(&outputs).map(|(guest, output)| Run::new(guest, output)).collect();
    print!("{}", Report(&runs));
    Ok(runs.iter().all(Run::good))
}

/// What one machine reported.
pub struct Run {
    pub machine: &'static str,
    pub place: Place,
    /// A negative control: every check must fail.
    pub control: bool,
    pub wall: Duration,
    /// By check and layout.
    pub cells: Vec<[Cell; LAYOUTS.len()]>,
    /// Trouble that belongs to no check.
    pub trouble: Option<String>,
}

/// The columns.
pub const LAYOUTS: [Layout; 4] = Layout::ALL;

/// One check in one layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Not a check for this place.
    None,
    /// Accesses made.
    Passed(u64),
    /// Which variants failed, and why the first one did.
    Failed { variants: Vec<&'static str>, why: String },
}

impl Cell {
    /// The variants that failed.
    pub fn failed(&self) -> &[&'static str] {
        match self {
            Cell::Failed { variants, .. } => variants,
            _ => &[],
        }
    }
}

impl Run {
    /// Sorts out what the guest wrote. What is expected and absent has failed.
    fn new(guest: &Guest, output: &Output) -> Self {
        let place = if matches!(guest.image, Image::Ring0 { .. }) { Place::Ring0 } else { Place::Ring3 };
        let lines = output.lines();
        let cells = CHECKS.iter().map(|check| LAYOUTS.map(|layout| cell(&lines, place, check, layout))).collect();
        let (machine, control) = (guest.machine, guest.params.control);
        Self { machine, place, control, wall: output.wall, cells, trouble: output.trouble() }
    }

    /// Machine and place.
    pub fn name(&self) -> String {
        let place = match self.place {
            Place::Ring3 => "Linux, ring 3",
            Place::Ring0 => "no OS, ring 0",
        };
        format!("{}: {place}", self.machine)
    }

    /// The same, in a few letters.
    pub fn short_name(&self) -> String {
        format!("{}, r{}", self.machine, if self.place == Place::Ring3 { 3 } else { 0 })
    }

    /// Everything passed; in a negative control, everything failed.
    pub fn good(&self) -> bool {
        self.trouble.is_none() && self.bad_cells().next().is_none()
    }

    /// Those that are not as they should be.
    pub fn bad_cells(&self) -> impl Iterator<Item = (&'static Check, Layout, &Cell)> {
        let cells = CHECKS.iter().zip(&self.cells);
        let cells = cells.flat_map(|(check, row)| LAYOUTS.iter().zip(row).map(move |(l, cell)| (check, *l, cell)));
        cells.filter(|(check, _, cell)| match cell {
            Cell::None => false,
            Cell::Passed(_) => self.control,
            // In a control every variant has to fail.
            Cell::Failed { variants, .. } => !self.control || variants.len() < check.kind.variants(self.place).len(),
        })
    }

    /// Sums over all cells.
    pub fn count(&self, of: fn(&Cell) -> u64) -> u64 {
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
