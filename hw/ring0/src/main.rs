//! A machine with nothing on it but this image: runs the checks in ring 0 through slots and tables in memory of its own.
#![no_std]
#![no_main]

mod bitmap;
mod boot;
mod engines;
mod faults;
mod machine;
mod memory;
mod processors;
mod smbios;
mod task;
mod traps;

use core::fmt::Write;

use hw_shared::model::Model;
use hw_shared::{
    BROKEN_VARIANTS, CHECKS, Chipset, Devices, Kind, Line, Mix, Mode, Params, Place, Ring0, run_broken, run_check,
    script, soak,
};
use ioemul::{EmitOptions, RegisterFile, StubLayout};

use engines::LAYOUTS;
use machine::Serial;

extern "sysv64" fn main(start_info: &boot::StartInfo) -> ! {
    let params = Params::parse(start_info.command_line());
    traps::install();
    prepare_smm(&params);
    match params.mode {
        Mode::Checks(_) => {
            checks(&params);
            by_exceptions(&params);
        }
        Mode::Record | Mode::RecordByHand => record(&params),
        Mode::Soak => soak(Devices::All, &params),
        Mode::SoakSmm => soak(Devices::Smm, &params),
        Mode::XenHost | Mode::XenHammer | Mode::XenCount | Mode::Cli(_) => {
            print(format_args!("ioemul|error|this is no Linux\n"));
        }
    }
    print(format_args!("ioemul|end\n"));
    machine::power_off()
}

/// Puts our handler into SMRAM.
fn prepare_smm(params: &Params) {
    machine::let_the_timer_raise_smis();
    let engine = &mut engines::slot(StubLayout::CallRet, 0, false);
    let chipset = Chipset::probe(engine).expect("nothing faults in ring 0");
    let deaf = params.control && matches!(params.mode, Mode::Checks(_));
    machine::install_smm_handler(chipset, engine, deaf).expect("nothing faults in ring 0");
}

/// The table of checks, in every layout and variant.
fn checks(params: &Params) {
    let mut memory = [0; 64]; // below 4 GiB, as everything here
    engines::for_each(|layout, variant, engine| {
        for check in CHECKS.iter().filter(|check| check.kind.variants(Place::Ring0, layout).contains(&variant)) {
            let outcome = run_check(check, engine, params, &mut memory);
            print(format_args!("{}\n", Line { check: check.name, layout, variant, outcome: &outcome }));
        }
    });
    for check in CHECKS.iter().filter(|check| matches!(check.kind, Kind::Broken)) {
        for layout in StubLayout::ALL.iter().copied() {
            for (&variant, registers) in BROKEN_VARIANTS.iter().zip([RegisterFile::GPRS, RegisterFile::PT_REGS]) {
                let outcome = run_broken(&mut engines::slot_on(registers, layout, 0, !params.control));
                print(format_args!("{}\n", Line { check: check.name, layout, variant, outcome: &outcome }));
            }
        }
    }
}

/// What no engine is asked for: faults at accesses, and accesses from ring 3.
fn by_exceptions(params: &Params) {
    for check in CHECKS {
        let Kind::Ring0(kind) = check.kind else { continue };
        for layout in StubLayout::ALL.iter().copied() {
            for &variant in check.kind.variants(Place::Ring0, layout) {
                let outcome = match kind {
                    // SAFETY: the engines before are gone.
                    Ring0::Faults => unsafe {
                        faults::run(&mut *engines::memory(), layout, variant, engines::thunk(), params.control)
                    },
                    Ring0::TssBitmap => bitmap::run(params.control),
                    // SAFETY: as above.
                    Ring0::Task => unsafe { task::check(engines::memory(), &engines::hardened(layout)) },
                    // SAFETY: as above.
                    Ring0::TwoProcessors => unsafe {
                        processors::run(engines::memory(), &EmitOptions::new().layout(layout))
                    },
                };
                print(format_args!("{}\n", Line { check: check.name, layout, variant, outcome: &outcome }));
            }
        }
    }
}

/// The reference script, once in every layout.
fn record(params: &Params) {
    for layout in StubLayout::ALL.iter().copied() {
        script::record(&format_args!("{layout:?}"), &mut engines::slot(layout, 0, false), params, &mut Serial)
            .expect("the serial port takes it");
    }
    script::record(&"broken", &mut engines::slot(StubLayout::CallRet, 0, true), params, &mut Serial)
        .expect("the serial port takes it");
}

/// The mix, on a slot of each layout in turn, next to the model.
fn soak(devices: Devices, params: &Params) {
    let broken = |n| params.control && n == LAYOUTS - 1;
    let mut slots = core::array::from_fn::<_, LAYOUTS, _>(|n| engines::slot(StubLayout::ALL[n], n, broken(n)));
    let (mut mix, mut model) = (Mix::new(params.seed, devices), Model::new(params.proliant));
    match soak::soak(&mut slots.each_mut(), &mut mix, &mut model, |accesses| accesses < params.count) {
        Ok(counts) => print(format_args!("ioemul|soak|{counts}|ok\n")),
        Err((turn, failure)) => print(format_args!("ioemul|soak|{:?}, slot|{failure}\n", StubLayout::ALL[turn])),
    }
}

fn print(text: core::fmt::Arguments) {
    Serial.write_fmt(text).expect("the serial port takes it");
}
