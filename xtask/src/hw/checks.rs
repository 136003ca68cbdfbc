//! `cargo xtask hw`: the table of checks, on machines with the devices and on machines without.

use anyhow::Result;
use hw_shared::{Machine, Mode, Params};

use super::guests::Image;
use super::qemu::{self, Guest, Output, Setup};
use super::results::Run;
use super::table::Report;

/// SMIs with random registers, for each engine.
const SMIS: u64 = 500;

/// Runs everything and prints the report; whether all is good.
pub fn run(linux: &Image, ring0: &Image, seed: u64) -> Result<bool> {
    let runs = [(linux, false), (linux, true), (ring0, false), (ring0, true)];
    let runs = runs.into_iter().flat_map(|(image, control)| ["pc", "q35"].map(|machine| (image, control, machine)));
    // The guests of one run together run all checks.
    let guests: Vec<Vec<Guest>> = runs
        .map(|(image, control, machine)| {
            let setups: &[_] = match (image, control) {
                (_, true) => &[(Setup::Bare, Machine::Usual)],
                (Image::Linux { .. }, false) => &[
                    (Setup::ProLiant, Machine::Usual),
                    (Setup::LockedDown, Machine::LockedDown),
                    (Setup::Busy, Machine::Busy),
                ],
                (_, false) => &[(Setup::ProLiant, Machine::Usual)],
            };
            let guest = |&(setup, kind)| {
                let mode = Mode::Checks(kind);
                let params = Params { mode, seed, count: SMIS, seconds: 0, control, proliant: !control };
                Guest { machine, setup, image, params }
            };
            setups.iter().map(guest).collect()
        })
        .collect();
    let mut outputs = qemu::run_all(&guests.concat())?.into_iter();
    let outputs: Vec<Vec<Output>> = guests.iter().map(|run| outputs.by_ref().take(run.len()).collect()).collect();
    let runs: Vec<_> = guests.iter().zip(&outputs).map(|(guests, outputs)| Run::new(guests, outputs)).collect();
    print!("{}", Report(&runs));
    Ok(runs.iter().all(Run::good))
}
