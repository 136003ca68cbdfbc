//! `table`: all stubs as assembler source and C header, for hypervisors in C.

use std::fs;

use ioemul::gas::{HostTable, HostTableError};
use ioemul::{EmitOptions, Ring};

use crate::args::Table;
use crate::commands::code::{layout, quirks, registers};
use crate::context::Context;
use crate::failure::{Failure, Result};

pub fn run(context: &Context, arguments: &Table) -> Result {
    let Some(quirks) = quirks(context, &arguments.quirk)? else { return Ok(()) };
    let (Some(output), Some(header)) = (&arguments.output, &arguments.header) else {
        return Err(Failure::usage("a table is two files: -o TABLE.S and --header TABLE.h name them"));
    };
    let options = EmitOptions::new()
        .layout(layout(&arguments.stubs.layout)?)
        .registers(registers(&arguments.stubs.registers)?)
        .endbr64(arguments.endbr64)
        .int3(arguments.int3)
        .scrub(arguments.scrub)
        .ring(if arguments.ring3 { Ring::Three } else { Ring::Zero })
        .quirks(&quirks);
    let table = build(arguments, &options).map_err(|error| Failure::usage(error.to_string()))?;
    let files = [(output, table.source().to_string()), (header, table.header().to_string())];
    for (path, text) in files {
        if context.globals.dry_run {
            context.out.line(format_args!(
                "{}: {} lines, which are not written",
                path.display(),
                text.lines().count()
            ))?;
            continue;
        }
        fs::write(path, &text).map_err(|error| Failure::io(path.display(), &error))?;
        context.out.remark(format_args!("{}: {} lines", path.display(), text.lines().count()));
    }
    Ok(())
}

fn build<'o>(arguments: &Table, options: &EmitOptions<'o>) -> std::result::Result<HostTable<'o>, HostTableError> {
    let table = HostTable::new(options)?.prefix(&*arguments.prefix)?;
    let table = table.section(&*arguments.section)?.strings(!arguments.no_strings);
    match &arguments.return_thunk {
        Some(symbol) => table.return_thunk(&**symbol),
        None => Ok(table),
    }
}
