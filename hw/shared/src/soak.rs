//! The endless mix on the hardware, next to the model, until it is time to stop or they differ.

use core::fmt;

use crate::engine::{Engine, Failure, compare};
use crate::mix::Mix;
use crate::model::{Model, PROLIANT_PORT, VMWARE_PORT};
use crate::smm::SMI_PORT;

/// How many accesses went to each device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    by_device: [u64; DEVICES.len()],
}

const DEVICES: [&str; 6] = ["pc-testdev", "CMOS", "PCI", "VMware", "ProLiant", "SMM"];

impl Counts {
    /// Over all devices.
    pub fn total(&self) -> u64 {
        self.by_device.iter().sum()
    }

    fn add(&mut self, port: u16) {
        let device = match port {
            0x70 | 0x71 => 1,
            0xcf8..=0xcff => 2,
            VMWARE_PORT => 3,
            PROLIANT_PORT => 4,
            SMI_PORT => 5,
            _ => 0,
        };
        self.by_device[device] += 1;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} accesses", self.total())?;
        for (device, count) in DEVICES.iter().zip(self.by_device).filter(|(_, count)| *count > 0) {
            write!(f, ", {device} {count}")?;
        }
        Ok(())
    }
}

/// Runs the mix, each access on the next of `engines`, as long as `go_on` says (it gets the number of accesses so far).
/// Which access is which depends on the seed alone: what fails once fails again.
pub fn soak<E: Engine + ?Sized>(
    engines: &mut [&mut E],
    mix: &mut Mix,
    model: &mut Model,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Counts, (usize, Failure)> {
    let mut counts = Counts::default();
    let mut access = 0;
    while go_on(access) {
        let turn = access as usize % engines.len();
        access += 1;
        let (insn, before) = mix.next();
        let port = insn.port(&before);
        let (mut is, mut should_be) = (before, before);
        let refused = engines[turn].execute(insn, &mut is).is_err();
        if refused {
            return Err((turn, Failure::Refused { access, insn, port }));
        }
        model.execute(insn, &mut should_be).expect("the model refuses nothing");
        compare(&is, &should_be).map_err(|first| (turn, Failure::Registers { access, insn, port, first }))?;
        counts.add(port);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::{CHECKS, Devices, Kind, run_steps};

    #[test]
    fn the_model_does_what_the_table_says() {
        for check in CHECKS {
            if let Kind::Script(steps) = check.kind {
                run_steps(steps, &mut Model::new(true)).unwrap_or_else(|failure| panic!("{}: {failure}", check.name));
            }
        }
    }

    #[test]
    fn the_mix_reaches_every_device_and_depends_on_the_seed_alone() {
        let run = || {
            let (mut engine, mut model) = (Model::new(true), Model::new(true));
            soak(&mut [&mut engine], &mut Mix::new(7, Devices::All), &mut model, |n| n < 10_000).unwrap()
        };
        assert_eq!(run(), run());
        assert!(run().by_device.iter().all(|count| *count > 1000), "{}", run());
    }

    #[test]
    fn a_difference_is_found() {
        let (mut engine, mut model) = (Model::new(false), Model::new(true));
        let mut mix = Mix::new(7, Devices::All);
        let (_, failure) = soak(&mut [&mut engine], &mut mix, &mut model, |n| n < 10_000).unwrap_err();
        assert!(std::format!("{failure}").contains("0xcd4"), "{failure}");
    }
}
