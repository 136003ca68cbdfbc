//! The only process of a Linux guest (`/init`): runs the checks in ring 3 and reports on the serial port.

mod engines;
mod machine;

use std::fs::File;
use std::io::Write;

use hw_shared::{CHECKS, Check, Chipset, DMI_PRODUCT, DMI_VENDOR, Failure, Kind, Line, Outcome, Params, run_check};

fn main() {
    machine::mount("devtmpfs", "/dev");
    machine::mount("proc", "/proc");
    machine::mount("sysfs", "/sys");
    let mut serial = File::options().write(true).open("/dev/ttyS0").expect("the kernel has a serial port");
    if let Err(error) = run(&mut serial) {
        writeln!(serial, "ioemul|error|{error}").expect("the serial port takes it");
    }
    writeln!(serial, "ioemul|end").expect("the serial port takes it");
    machine::power_off();
}

fn run(serial: &mut File) -> Result<(), Box<dyn std::error::Error>> {
    let params = Params::parse(&std::fs::read_to_string("/proc/cmdline")?);
    let mut engines = engines::all()?;
    let mut report = |check: &Check, engine: &engines::Named, outcome: Outcome| {
        let line = Line { check: check.name, layout: engine.layout, variant: engine.variant, outcome };
        writeln!(serial, "{line}")
    };
    let (unprivileged, privileged) = CHECKS.split_first().ok_or("the table of checks is empty")?;
    if params.control {
        machine::grant_privilege()?;
    }
    for engine in engines.iter_mut().filter(|_| params.control) {
        let outcome = run_check(unprivileged, &mut *engine.engine, &params);
        report(unprivileged, engine, outcome.as_ref().copied())?;
    }
    machine::grant_privilege()?;
    let chipset = Chipset::probe(&mut *engines[0].engine).map_err(|_| "PCI configuration space faults")?;
    machine::install_smm_handler(chipset, &mut *engines[0].engine, params.control)?;
    for check in privileged {
        for engine in &mut engines {
            let outcome = match check.kind {
                Kind::Dmi => dmi(),
                _ => run_check(check, &mut *engine.engine, &params),
            };
            report(check, engine, outcome.as_ref().copied())?;
        }
    }
    Ok(())
}

/// Does the library read what the firmware of this machine says?
fn dmi() -> Result<u64, Failure> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/class/dmi/id/{name}")).unwrap_or_default();
    match (read("bios_vendor").trim(), read("product_name").trim()) {
        (DMI_VENDOR, DMI_PRODUCT) => Ok(2),
        _ => Err(Failure::Other("the DMI strings are not those of the ProLiant")),
    }
}
