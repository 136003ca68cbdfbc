//! What an access costs a hypervisor in C: `cargo bench --features gas --bench host`. The program is benches/host/bench.c, built by
//! the system's compiler with a table for `pt_regs` that has no-ops for the I/O.
//!
//! `-- --test` measures one round.

#[path = "support/clock.rs"]
#[allow(dead_code)]
mod clock;
#[path = "support/machine.rs"]
#[allow(dead_code)]
mod machine;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

use ioemul::gas::HostTable;
use ioemul::{EmitOptions, Quirk, RegisterFile, Ring};

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = if std::env::args().any(|argument| argument == "--test") { "1" } else { "200" };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("host-bench");
    fs::create_dir_all(&directory)?;
    let options = EmitOptions::new().registers(RegisterFile::PT_REGS).ring(Ring::Three).quirks(&[Quirk::PROLIANT]);
    let table = HostTable::new(&options)?;
    let (source, io) = (table.source().to_string(), ".byte \\prefix, \\opcode, \\last");
    assert_eq!(source.matches(io).count(), 1, "the macro has one access");
    fs::write(directory.join("table.S"), source.replace(io, ".byte 0x90, 0x90, 0x90"))?;
    fs::write(directory.join("table.h"), table.header().to_string())?;
    let program = directory.join("bench");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/host/bench.c");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-I"]).arg(&directory).arg(source);
    let built = cc.arg(directory.join("table.S")).arg("-o").arg(&program).status()?;
    assert!(built.success(), "cc: {built}");
    println!("{}, TSC cycles an access: median [quartiles], and the ratio to the bare stub\n", machine::cpu());
    let core = clock::pin().map_or_else(|error| error.to_string(), |core| core.to_string());
    let status = Command::new(program).arg(rounds).status()?;
    println!("\ncore {core}");
    assert!(status.success(), "{status}");
    Ok(())
}
