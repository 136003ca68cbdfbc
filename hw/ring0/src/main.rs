//! A machine with nothing on it but this image: runs the checks in ring 0 through slots and tables in memory of its own.
#![no_std]
#![no_main]

mod boot;
mod engines;
mod machine;

use core::fmt::Write;

use hw_shared::{CHECKS, Chipset, Line, Params, run_check};

use machine::Serial;

extern "sysv64" fn main(start_info: &boot::StartInfo) -> ! {
    let params = Params::parse(start_info.command_line());
    engines::with_each(|index, layout, variant, engine| {
        if index == 0 {
            let chipset = Chipset::probe(engine).expect("nothing faults in ring 0");
            machine::install_smm_handler(chipset, engine, params.control).expect("nothing faults in ring 0");
        }
        for check in CHECKS.iter().filter(|check| check.kind.in_ring0()) {
            let outcome = run_check(check, engine, &params);
            let line = Line { check: check.name, layout, variant, outcome: outcome.as_ref().copied() };
            writeln!(Serial, "{line}").expect("the serial port takes it");
        }
    });
    writeln!(Serial, "ioemul|end").expect("the serial port takes it");
    machine::power_off()
}
