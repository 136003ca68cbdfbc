//! A machine with nothing on it but this image: runs the checks in ring 0 through slots and tables in memory of its own.
#![no_std]
#![no_main]

mod boot;
mod engines;
mod machine;
mod smbios;

use core::fmt::Write;

use hw_shared::{CHECKS, Chipset, Kind, Line, Mode, Params, Place, script, run_broken, run_check};
use ioemul::Layout;

use machine::Serial;

extern "sysv64" fn main(start_info: &boot::StartInfo) -> ! {
    let params = Params::parse(start_info.command_line());
    let mut chipset = None;
    engines::for_each(|layout, variant, engine| {
        chipset.get_or_insert_with(|| {
            let chipset = Chipset::probe(engine).expect("nothing faults in ring 0");
            machine::install_smm_handler(chipset, engine, params.control).expect("nothing faults in ring 0");
        });
        if params.mode == Mode::Record {
            if variant == "slot" {
                script::record(&format_args!("{layout:?}"), engine, &params, &mut Serial).expect("the serial port takes it");
            }
            return;
        }
        for check in CHECKS.iter().filter(|check| check.kind.variants(Place::Ring0).contains(&variant)) {
            report(Line { check: check.name, layout, variant, outcome: &run_check(check, engine, &params) });
        }
    });
    for check in CHECKS.iter().filter(|check| params.mode == Mode::Checks && matches!(check.kind, Kind::Broken)) {
        for layout in Layout::ALL {
            let outcome = &run_broken(&mut engines::broken(layout, !params.control));
            report(Line { check: check.name, layout, variant: "patched slot", outcome });
        }
    }
    writeln!(Serial, "ioemul|end").expect("the serial port takes it");
    machine::power_off()
}

fn report(line: Line) {
    writeln!(Serial, "{line}").expect("the serial port takes it");
}
