//! The first process of a Linux guest (`/init`): runs the checks in ring 3, or a shell that does, and reports on the console.

mod cli;
mod engines;
mod examples;
mod machine;
mod page_faults;
mod privilege;
mod xen;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use hw_shared::model::Model;
use hw_shared::{
    BROKEN_VARIANTS, CHECKS, Check, Chipset, DMI_PRODUCT, DMI_VENDOR, Devices, Engine, Kind, Line, Linux, Machine, Mix,
    Mode, Params, Place, Rng, compare, run_broken, run_check, script, soak,
};
use ioemul::{
    Direction, DmiIdentity, Gprs, IoEmulator, IoInsn, IoPrivilegeLevel, PROLIANT_POLL_LIMIT, PortPermissions, PortSet,
    Quirk, QuirkTable, StubLayout, Width,
};

use engines::{Named, Native};

fn main() {
    if std::env::args().next().is_some_and(|name| name.ends_with(cli::SMIS)) {
        return cli::print_smis();
    }
    machine::mount("devtmpfs", "/dev");
    machine::mount("proc", "/proc");
    machine::mount("sysfs", "/sys");
    machine::mount("securityfs", "/sys/kernel/security");
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
        Mode::Checks(machine) => checks(console, machine, &params),
        Mode::Record => record(console, &mut engines::all()?, &params),
        Mode::RecordByHand => record(console, &mut engines::by_hand()?, &params),
        Mode::Soak => soak(console, &mut engines::all()?, Devices::All, &params),
        Mode::SoakSmm => soak(console, &mut engines::all()?, Devices::Smm, &params),
        Mode::XenHost => {
            record(console, &mut engines::by_hand()?, &Params { control: false, ..params })?;
            xen::carries(console, &params)?;
            if params.control { xen::fault(console) } else { Ok(()) }
        }
        Mode::XenHammer => xen::hammer(console, &params),
        Mode::XenCount => xen::count(console),
        Mode::Cli(script) => cli::run(console, script, &params),
    }
}

/// The checks for this machine, in every layout and variant; for a negative control all of them.
fn checks(console: &mut File, machine: Machine, params: &Params) -> Result<(), Box<dyn Error>> {
    let mut engines = engines::all()?;
    let mut privilege = None;
    let mut smm = machine == Machine::Usual;
    for check in CHECKS.iter().filter(|check| params.control || check.kind.machine() == machine) {
        match check.kind.is_privileged() || params.control {
            true if privilege.is_none() => privilege = Some(IoPrivilegeLevel::acquire()?),
            true => {}
            false => privilege = None,
        }
        if smm && privilege.is_some() {
            prepare_smm(&mut engines, params)?;
            smm = false;
        }
        run_on_all(console, check, &mut engines, params)?;
    }
    Ok(())
}

/// The reference script, once in every layout.
fn record(console: &mut File, engines: &mut [Named], params: &Params) -> Result<(), Box<dyn Error>> {
    let _privilege = IoPrivilegeLevel::acquire()?;
    prepare_smm(engines, params)?;
    let mut lines = String::new();
    for Named { layout, engine, .. } in
        engines.iter_mut().filter(|engine| ["emulator", "by hand"].contains(&engine.variant))
    {
        script::record(&format_args!("{layout:?}"), &mut **engine, params, &mut lines)?;
    }
    if params.mode == Mode::Record {
        script::record(
            &"broken",
            &mut engines::broken(StubLayout::CallRet, BROKEN_VARIANTS[0], true)?,
            params,
            &mut lines,
        )?;
    }
    console.write_all(lines.as_bytes())?;
    Ok(())
}

/// The mix, on all engines in turn, next to the model.
fn soak(console: &mut File, engines: &mut [Named], devices: Devices, params: &Params) -> Result<(), Box<dyn Error>> {
    let _privilege = IoPrivilegeLevel::acquire()?;
    prepare_smm(engines, &Params { control: false, ..*params })?;
    let mut broken = engines::broken(StubLayout::CallRet, BROKEN_VARIANTS[0], true)?;
    let mut names: Vec<String> = engines.iter().map(|e| format!("{:?}, {}", e.layout, e.variant)).collect();
    let mut turns: Vec<&mut dyn Engine> = engines.iter_mut().map(|e| &mut *e.engine as _).collect();
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
    let memory = machine::low_memory(1)?;
    let mut shown = Vec::new();
    for Named { layout, variant, engine } in engines {
        let layout = *layout;
        for &runs_as in check.kind.variants(Place::Ring3, layout) {
            let engine = &mut **engine;
            let outcome: Result<u64, Box<dyn Error>> = match (&check.kind, *variant == runs_as) {
                (_, true) => run_one(check, engine, params, memory, &mut shown),
                // What has no variants goes with the first of them.
                (Kind::Broken, _) if *variant == "emulator" => {
                    run_broken(&mut engines::broken(layout, runs_as, !params.control)?).map_err(Into::into)
                }
                (Kind::Linux(_), _) if runs_as == "process" && *variant == "emulator" => {
                    run_one(check, engine, params, memory, &mut shown)
                }
                _ => continue,
            };
            let outcome = outcome.map_err(|failure| failure.to_string().replace('\n', " "));
            writeln!(console, "{}", Line { check: check.name, layout, variant: runs_as, outcome: &outcome })?;
        }
    }
    for line in shown {
        writeln!(console, "ioemul|shown|{}|{line}", check.name)?;
    }
    Ok(())
}

/// Runs one check once; what it adds to `shown` is for the report.
fn run_one(
    check: &Check,
    engine: &mut dyn Native,
    params: &Params,
    memory: &mut [u8],
    shown: &mut Vec<String>,
) -> Result<u64, Box<dyn Error>> {
    let Kind::Linux(kind) = &check.kind else {
        return Ok(run_check(check, engine, params, memory)?);
    };
    match kind {
        Linux::Dmi => dmi(),
        Linux::PageFault => Ok(page_faults::run(engine)?),
        Linux::Permission => privilege::permission(engine),
        Linux::Level => privilege::level(engine),
        Linux::Affinity => privilege::affinity(),
        Linux::Nobody => privilege::nobody(params.control),
        Linux::Lockdown => privilege::lockdown(),
        Linux::Busy => busy(engine, shown),
        Linux::QuirkDenied => quirk_denied(engine, shown),
        Linux::Example(example) => {
            let printed = examples::run(example)?;
            if example.shown {
                // Of the registers, the lines in which something changed.
                let lines = printed.lines().filter(|line| !line.contains('=') || line.contains('*'));
                shown.extend(lines.map(str::to_owned));
            }
            Ok(example.accesses as u64)
        }
    }
}

/// Does the library read what the firmware of this machine says?
fn dmi() -> Result<u64, Box<dyn Error>> {
    let identity = DmiIdentity::read()?;
    match (&*identity.bios_vendor, &*identity.product_name) {
        (DMI_VENDOR, DMI_PRODUCT) => Ok(2),
        _ => Err("the DMI strings are not those of the ProLiant".into()),
    }
}

/// Does the wait for a mailbox that stays busy come to its end, with the last answer in AL?
fn busy(engine: &mut dyn Native, shown: &mut Vec<String>) -> Result<u64, Box<dyn Error>> {
    let insn = IoInsn::out_dx(Width::Byte);
    let gprs = Rng::new(0).gprs();
    let before = Gprs { rax: gprs.rax & !0xff | 0x85, rdx: gprs.rdx & !0xffff | 0xcd4, ..gprs };
    let (mut gprs, start) = (before, Instant::now());
    engine.attempt(insn, &mut gprs)?;
    let waited = start.elapsed();
    compare(&gprs, &Gprs { rax: before.rax & !0xff | 0xd1, ..before })?;
    if shown.is_empty() {
        shown.push(format!("given up after {PROLIANT_POLL_LIMIT} reads, here {} ms", waited.as_millis()));
    }
    Ok(1)
}

/// Is a quirk refused that would read a port of which only writing is permitted, before anything is written?
fn quirk_denied(engine: &mut dyn Native, shown: &mut Vec<String>) -> Result<u64, Box<dyn Error>> {
    const LATCH: u16 = 0xe0;
    let mut rng = Rng::new(0);
    // That of this machine, at its own port; and the same at a port that shows whether it was written.
    let moved: QuirkTable = [Quirk::PROLIANT.at_port(LATCH)].into_iter().collect();
    let this_machine = QuirkTable::for_platform(&DmiIdentity::read()?);
    for (quirks, port) in [(this_machine, 0xcd4), (moved, LATCH)] {
        let ports = PortPermissions { read: PortSet::none(), write: PortSet::from(port..=port) };
        // SAFETY: the machine is ours alone and was made for this.
        let mut emulator = unsafe { IoEmulator::builder().quirks(quirks).native(ports) }.build()?;
        let out = IoInsn::out_dx(Width::Byte);
        let with_al = |gprs: Gprs, al: u64| Gprs {
            rax: gprs.rax & !0xff | al,
            rdx: gprs.rdx & !0xffff | u64::from(port),
            ..gprs
        };
        // Without bit 7 the quirk does not take the access.
        emulator.execute(out, &mut with_al(rng.gprs(), 0x05))?;
        let before = with_al(rng.gprs(), 0x85);
        let mut gprs = before;
        match emulator.execute(out, &mut gprs) {
            Err(
                error @ ioemul::Error::QuirkDenied {
                    port: denied, width: Width::Byte, direction: Direction::In, ..
                },
            ) if denied == port => shown.push(error.to_string()),
            Err(error) => return Err(error.into()),
            Ok(()) => return Err(format!("the quirk read port {port:#x}, which was not permitted").into()),
        }
        compare(&gprs, &before)?;
    }
    let mut gprs = rng.gprs();
    engine.attempt(IoInsn::in_imm8(Width::Byte, LATCH as u8), &mut gprs)?;
    match gprs.rax as u8 {
        0x05 => Ok(5),
        value => Err(format!("the latch holds {value:#x}, and should hold what was permitted").into()),
    }
}
