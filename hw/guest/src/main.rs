//! The only process of a Linux guest (`/init`): runs the checks in ring 3 and reports on the serial port.

mod engines;
mod machine;

use std::fs::File;
use std::io::{self, Write};

use hw_shared::{CHECKS, Check, Chipset, DMI_PRODUCT, DMI_VENDOR, Failure, Kind, Line, Params, run_broken, run_check};
use ioemul::{DmiIdentity, IoPrivilegeLevel, Layout};

use engines::Named;

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
    let (unprivileged, privileged) = CHECKS.split_first().ok_or("the table of checks is empty")?;
    let early = params.control.then(IoPrivilegeLevel::acquire).transpose()?;
    run_on_all(serial, unprivileged, &mut engines, &params)?;
    drop(early);

    let _privilege = IoPrivilegeLevel::acquire()?;
    let chipset = Chipset::probe(&mut *engines[0].engine).map_err(|_| "PCI configuration space faults")?;
    machine::install_smm_handler(chipset, &mut *engines[0].engine, params.control)?;
    for check in privileged {
        run_on_all(serial, check, &mut engines, &params)?;
    }
    Ok(())
}

/// Runs one check in every layout and variant.
fn run_on_all(
    serial: &mut File,
    check: &Check,
    engines: &mut [Named],
    params: &Params,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut report = |layout, variant, outcome: &Result<u64, Failure>| -> io::Result<()> {
        writeln!(serial, "{}", Line { check: check.name, layout, variant, outcome })
    };
    if matches!(check.kind, Kind::Broken) {
        for layout in Layout::ALL {
            report(layout, "patched slot", &run_broken(&mut engines::broken(layout, !params.control)?))?;
        }
        return Ok(());
    }
    for Named { layout, variant, engine } in engines {
        let outcome = match check.kind {
            Kind::Dmi => dmi(),
            _ => run_check(check, &mut **engine, params),
        };
        report(*layout, variant, &outcome)?;
    }
    Ok(())
}

/// Does the library read what the firmware of this machine says?
fn dmi() -> Result<u64, Failure> {
    match DmiIdentity::read() {
        Ok(identity) if (&*identity.bios_vendor, &*identity.product_name) == (DMI_VENDOR, DMI_PRODUCT) => Ok(2),
        Ok(_) => Err(Failure::Other("the DMI strings are not those of the ProLiant")),
        Err(_) => Err(Failure::Other("DMI cannot be read")),
    }
}
