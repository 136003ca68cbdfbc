//! What the guests reported, sorted: a cell for each check in each layout.

use std::time::Duration;

use hw_shared::{CHECKS, Check, Params, Place};
use ioemul::StubLayout;

use super::guests::Image;
use super::qemu::{Guest, Output};

/// What one machine reported, in all its guises.
pub struct Run {
    pub machine: &'static str,
    pub place: Place,
    /// A negative control: every check must fail.
    pub control: bool,
    pub wall: Duration,
    /// By check and layout.
    pub cells: Vec<Vec<Cell>>,
    /// What the guests want to be shown, by check.
    pub shown: Vec<Vec<String>>,
    /// Trouble that belongs to no check.
    pub trouble: Option<String>,
}

/// The columns.
pub const LAYOUTS: &[StubLayout] = StubLayout::ALL;

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
    /// Sorts out what the guests wrote. What is expected and absent has failed.
    pub fn new(guests: &[Guest], outputs: &[Output]) -> Self {
        let Guest { machine, image, params: Params { control, .. }, .. } = guests[0];
        let place = if matches!(image, Image::Ring0 { .. }) { Place::Ring0 } else { Place::Ring3 };
        let lines: Vec<_> = outputs.iter().flat_map(Output::lines).collect();
        let cells = CHECKS
            .iter()
            .map(|check| LAYOUTS.iter().map(|layout| cell(&lines, place, check, *layout)).collect())
            .collect();
        let shown = CHECKS.iter().map(|check| {
            let lines = lines.iter().filter_map(|line| line.strip_prefix(&["shown", check.name]));
            lines.map(|line| line.join("|")).collect()
        });
        Self {
            machine,
            place,
            control,
            wall: outputs.iter().map(|output| output.wall).sum(),
            cells,
            shown: shown.collect(),
            trouble: outputs.iter().find_map(Output::trouble),
        }
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
    pub fn bad_cells(&self) -> impl Iterator<Item = (&'static Check, StubLayout, &Cell)> {
        let cells = CHECKS.iter().zip(&self.cells);
        let cells = cells.flat_map(|(check, row)| LAYOUTS.iter().zip(row).map(move |(l, cell)| (check, *l, cell)));
        cells.filter(|(check, layout, cell)| match cell {
            Cell::None => false,
            Cell::Passed(_) => self.control,
            // In a control every variant has to fail.
            Cell::Failed { variants, .. } => {
                !self.control || variants.len() < check.kind.variants(self.place, *layout).len()
            }
        })
    }

    /// Sums over all cells.
    pub fn count(&self, of: fn(&Cell) -> u64) -> u64 {
        self.cells.iter().flatten().map(of).sum()
    }
}

fn cell(lines: &[Vec<&str>], place: Place, check: &Check, layout: StubLayout) -> Cell {
    let variants = check.kind.variants(place, layout);
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
