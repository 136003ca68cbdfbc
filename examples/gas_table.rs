//! Writes a table for a hypervisor or kernel in C: DIRECTORY/PREFIX_table.S and DIRECTORY/PREFIX_table.h.
//!
//! ```text
//! cargo run --features gas --example gas_table -- --registers pt_regs --endbr64 --int3 \
//!     --quirk "HP ProLiant SMM port" --out DIRECTORY
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ioemul::gas::HostTable;
use ioemul::{EmitOptions, Quirk, RegisterFile, Ring, StubLayout};

/// Writes a table of stubs as assembler source, and its C header
#[derive(Parser)]
struct Arguments {
    /// CallRet, Compact or Inline
    #[arg(long, default_value = "CallRet")]
    layout: String,
    /// `gprs`, `pt_regs` (Linux's, and Xen's cpu_user_regs), `kvm_regs`, or a file of names and offsets
    #[arg(long, default_value = "gprs")]
    registers: String,
    /// Start each stub with ENDBR64
    #[arg(long)]
    endbr64: bool,
    /// INT3 behind each final branch
    #[arg(long)]
    int3: bool,
    /// Zero what the caller does not get back
    #[arg(long)]
    scrub: bool,
    /// The symbol of the return thunk
    #[arg(long)]
    return_thunk: Option<String>,
    /// For code that runs in ring 3
    #[arg(long)]
    ring3: bool,
    /// A quirk, by its name; several may be given (`--quirk list` names them)
    #[arg(long)]
    quirk: Vec<String>,
    /// Leave out INS and OUTS
    #[arg(long)]
    no_strings: bool,
    /// What global names start with
    #[arg(long, default_value = "ioemul")]
    prefix: String,
    /// The section of the code
    #[arg(long, default_value = ".text")]
    section: String,
    /// Where the two files go
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let names = || Quirk::ALL.iter().map(Quirk::name).collect::<Vec<_>>().join("\n  ");
    if arguments.quirk.iter().any(|name| name == "list") {
        println!("  {}", names());
        return Ok(());
    }
    let quirk =
        |name: &String| Quirk::by_name(name).ok_or_else(|| format!("no quirk {name:?}; there are\n  {}", names()));
    let quirks = arguments.quirk.iter().map(quirk).collect::<Result<Vec<_>, _>>()?;
    let options = EmitOptions::new()
        .layout(layout(&arguments.layout)?)
        .registers(registers(&arguments.registers)?)
        .endbr64(arguments.endbr64)
        .int3(arguments.int3)
        .scrub(arguments.scrub)
        .ring(if arguments.ring3 { Ring::Three } else { Ring::Zero })
        .quirks(&quirks);
    let table = HostTable::new(&options)?.prefix(&*arguments.prefix)?;
    let table = table.section(&*arguments.section)?.strings(!arguments.no_strings);
    let table = match &arguments.return_thunk {
        Some(symbol) => table.return_thunk(&**symbol)?,
        None => table,
    };
    let path = |extension| arguments.out.join(format!("{}_table.{extension}", arguments.prefix));
    for (path, text) in [(path("S"), table.source().to_string()), (path("h"), table.header().to_string())] {
        std::fs::write(&path, &text).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        println!("{}: {} lines", path.display(), text.lines().count());
    }
    Ok(())
}

fn layout(name: &str) -> Result<StubLayout, String> {
    let found = StubLayout::ALL.iter().find(|layout| format!("{layout:?}").eq_ignore_ascii_case(name));
    let all = StubLayout::ALL.iter().map(|layout| format!("{layout:?}")).collect::<Vec<_>>().join(", ");
    found.copied().ok_or_else(|| format!("no layout {name}: there are {all}"))
}

fn registers(name: &str) -> Result<RegisterFile, String> {
    match name {
        "gprs" => Ok(RegisterFile::GPRS),
        "pt_regs" => Ok(RegisterFile::PT_REGS),
        "kvm_regs" => Ok(RegisterFile::KVM_REGS),
        file => match std::fs::read_to_string(file) {
            Ok(text) => text.parse().map_err(|error| format!("{file}: {error}")),
            Err(error) => Err(format!("{file} is none of gprs, pt_regs and kvm_regs, and no file to read: {error}")),
        },
    }
}
