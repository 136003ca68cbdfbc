//! `cargo xtask hw --soak`: random accesses next to the model, in every layout and variant in turn.

use anyhow::{Result, bail};
use hw_shared::{Mode, Params};

use super::guests::Image;
use super::qemu::{self, Guest, Output, Setup};

/// Both machine types for as long as it takes, then one with a broken stub among the others; whether all is good.
pub fn run(linux: &Image, seed: u64, seconds: u64) -> Result<bool> {
    let params = Params { mode: Mode::Soak, seed, count: 0, seconds, control: false, proliant: true };
    let control = Params { count: CONTROL, seconds: 0, control: true, ..params };
    let guests = [("pc", params), ("q35", params), ("pc", control)].map(|(machine, params)| Guest {
        machine,
        setup: Setup::ProLiant,
        image: linux,
        params,
    });
    println!("Soak: seed {seed}, {seconds} s in ring 3 under Linux, all layouts and variants in turn\n");
    report(&guests, &qemu::run_all(&guests)?)
}

/// In so many accesses a broken stub has to be found.
pub const CONTROL: u64 = 1000;

/// One line for each run.
pub fn report(guests: &[Guest], outputs: &[Output]) -> Result<bool> {
    let mut good = true;
    for (guest, output) in guests.iter().zip(outputs) {
        let result = result(guest, output).unwrap_or_else(|error| {
            good = false;
            format!("FAILED: {error:#}")
        });
        println!("{:4} {:?}: {result} ({:.2} s)", guest.machine, guest.image, output.wall.as_secs_f64());
    }
    Ok(good)
}

fn result(guest: &Guest, output: &Output) -> Result<String> {
    let lines = output.good_lines()?;
    let Some(["soak", first, second]) = lines.first().map(|line| &line[..]) else { bail!("the guest reports nothing") };
    match (*second, guest.params.control) {
        ("ok", false) => Ok(format!("as modelled: {first}")),
        ("ok", true) => bail!("one byte of a stub was changed, and nothing was noticed in {first}"),
        (failure, true) => Ok(format!("with one byte of a stub changed, {first} is noticed: {failure}")),
        (failure, false) => bail!("{first}: {failure}; --seed {} makes it happen again", guest.params.seed),
    }
}
