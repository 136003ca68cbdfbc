//! The only process of a Linux guest (`/init`): runs the checks in ring 3 and reports on the console.

mod engines;
mod machine;

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use hw_shared::model::Model;
use hw_shared::{
    CHECKS, Check, Chipset, DMI_PRODUCT, DMI_VENDOR, Devices, Engine, Failure, Kind, Line, Mix, Mode, Params,
    run_broken, run_check, script, soak,
};
use ioemul::{DmiIdentity, IoPrivilegeLevel, Layout};

use engines::Named;

fn main() {
    machine::mount("devtmpfs", "/dev");
    machine::mount("proc", "/proc");
    machine::mount("sysfs", "/sys");
    let mut console = File::options().write(true).open("/dev/console").expect("the kernel has a console");
    if let Err(error) = run(&mut console) {
        writeln!(console, "ioemul|error|{error}").expect("the console takes it");
    }
    writeln!(console, "ioemul|end").expect("the console takes it");
    machine::power_off();
}

fn run(console: &mut File) -> Result<(), Box<dyn Error>> {
    let params = Params::parse(&std::fs::read_to_string("/proc/cmdline")?);
    match params.mode {
        Mode::Checks => checks(console, &params),
        Mode::Record => record(console, &mut engines::all()?, &params),
        Mode::RecordByHand => record(console, &mut engines::by_hand()?, &params),
        Mode::Soak => soak(console, &mut engines::all()?, Devices::All, &params),
        Mode::SoakSmm => soak(console, &mut engines::all()?, Devices::Smm, &params),
    }
}

/// The table of checks, in every layout and variant.
fn checks(console: &mut File, params: &Params) -> Result<(), Box<dyn Error>> {
    let mut engines = engines::all()?;
    let (unprivileged, privileged) = CHECKS.split_first().ok_or("the table of checks is empty")?;
    let early = params.control.then(IoPrivilegeLevel::acquire).transpose()?;
    run_on_all(console, unprivileged, &mut engines, params)?;
    drop(early);

    let _privilege = IoPrivilegeLevel::acquire()?;
    prepare_smm(&mut engines, params)?;
    for check in privileged {
        run_on_all(console, check, &mut engines, params)?;
    }
    Ok(())
}

/// The reference script, once in every layout.
fn record(console: &mut File, engines: &mut [Named], params: &Params) -> Result<(), Box<dyn Error>> {
    let _privilege = IoPrivilegeLevel::acquire()?;
    prepare_smm(engines, params)?;
    let mut lines = String::new();
    for Named { layout, engine, .. } in engines.iter_mut().filter(|engine| engine.variant != "table") {
        script::record(&format_args!("{layout:?}"), &mut **engine, params, &mut lines)?;
    }
    if params.mode == Mode::Record {
        script::record(&"broken", &mut engines::broken(Layout::CallRet, true)?, params, &mut lines)?;
    }
    console.write_all(lines.as_bytes())?;
    Ok(())
}

/// The mix, on all engines in turn, next to the model.
fn soak(console: &mut File, engines: &mut [Named], devices: Devices, params: &Params) -> Result<(), Box<dyn Error>> {
    let _privilege = IoPrivilegeLevel::acquire()?;
    prepare_smm(engines, &Params { control: false, ..*params })?;
    let mut broken = engines::broken(Layout::CallRet, true)?;
    let mut names: Vec<String> = engines.iter().map(|e| format!("{:?}, {}", e.layout, e.variant)).collect();
    let mut turns: Vec<&mut dyn Engine> = engines.iter_mut().map(|e| &mut *e.engine).collect();
    if params.control {
        names.push("the broken slot".to_owned());
        turns.push(&mut broken);
    }
    let (start, limit) = (Instant::now(), Duration::from_secs(params.seconds));
    let go_on = |accesses: u64| {
        (params.count == 0 || accesses < params.count)
            // The clock is asked now and then: it costs more than an access.
            && (params.seconds == 0 || !accesses.is_multiple_of(64) || start.elapsed() < limit)
    };
    let mut mix = Mix::new(params.seed, devices);
    match soak::soak(&mut turns, &mut mix, &mut Model::new(params.proliant), go_on) {
        Ok(counts) => writeln!(console, "ioemul|soak|{counts}|ok")?,
        Err((turn, failure)) => writeln!(console, "ioemul|soak|{}|{failure}", names[turn])?,
    }
    Ok(())
}

/// Puts our handler into SMRAM.
fn prepare_smm(engines: &mut [Named], params: &Params) -> Result<(), Box<dyn Error>> {
    let engine = &mut *engines[0].engine;
    let chipset = Chipset::probe(engine).map_err(|_| "PCI configuration space faults")?;
    Ok(machine::install_smm_handler(chipset, engine, params.control)?)
}

/// Runs one check in every layout and variant.
fn run_on_all(console: &mut File, check: &Check, engines: &mut [Named], params: &Params) -> Result<(), Box<dyn Error>> {
    let mut report = |layout, variant, outcome: &Result<u64, Failure>| -> io::Result<()> {
        writeln!(console, "{}", Line { check: check.name, layout, variant, outcome })
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
