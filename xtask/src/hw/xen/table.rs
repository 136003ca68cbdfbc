//! The table for Xen, as its sources are to have it: an assembler file, a header, and the entries of the exception table.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use ioemul::gas::HostTable;
use ioemul::{CodeTable, EmitOptions, Gprs, Quirk, RegisterFile, Ring, StubLayout};

/// What is built into Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The table as it is meant to be.
    Whole,
    /// A negative control: R13 and R14 are taken from, and put to, each other's places, and the stub of `in al, 0xea` has in
    /// the place of its access an instruction that faults.
    Broken,
}

/// The access whose stub faults in [`Table::Broken`], and the instruction there: `mov ds, eax`, with a selector beyond the
/// GDT in AX. (No access faults by itself in ring 0.)
const FAULTS: (&str, &str) = ("0x90, 0xe4, 0xea", "0x90, 0x8e, 0xd8");

/// TABLE.S and TABLE.h for a Xen of this configuration.
pub fn sources(configuration: &str, table: Table) -> Result<(String, String)> {
    let has = |option: &str| configuration.lines().any(|line| line == format!("{option}=y"));
    let thunk = has("CONFIG_RETURN_THUNK");
    // Xen's cpu_user_regs has the registers where Linux's pt_regs has them.
    let options = EmitOptions::new()
        .layout(StubLayout::CallRet)
        .registers(RegisterFile::PT_REGS)
        .ring(Ring::Zero)
        .endbr64(has("CONFIG_XEN_IBT"))
        .int3(true)
        .quirks(&[Quirk::PROLIANT]);
    let exchanged = options.clone().registers(exchanged());
    let header = host(&options, thunk)?.header().to_string();
    let mut source = match table {
        Table::Whole => host(&options, thunk)?.source().to_string(),
        Table::Broken => {
            let source = host(&exchanged, thunk)?.source().to_string();
            ensure!(source.matches(FAULTS.0).count() == 1, "the stub that is to fault is not there once");
            source.replace(FAULTS.0, FAULTS.1)
        }
    };
    source += &exception_table(&options, thunk)?;
    Ok((source, header))
}

fn host<'q>(options: &EmitOptions<'q>, thunk: bool) -> Result<HostTable<'q>> {
    let host = HostTable::new(options)?;
    Ok(if thunk { host.return_thunk("__x86_return_thunk") } else { host })
}

/// Two registers in each other's places.
fn exchanged() -> RegisterFile {
    let mut offsets: [i16; 15] = RegisterFile::PT_REGS.offsets().try_into().expect("15 registers");
    let [a, b] = ["r13", "r14"].map(|name| Gprs::NAMES.iter().position(|known| *known == name).expect("a register"));
    offsets.swap(a, b);
    RegisterFile::new(offsets, RegisterFile::PT_REGS.rflags())
}

/// An entry for each access that can fault: where it is, and where to go on, both relative to the entry. Xen sorts them.
fn exception_table(options: &EmitOptions<'_>, thunk: bool) -> Result<String> {
    // Wherever the thunk is: it is near, and a jump to it has one length.
    let options = options.clone().return_thunk(thunk.then_some(0x4000_0000));
    let mut code = vec![0; CodeTable::size(&options)];
    let table = CodeTable::emit(&mut code, 0, &options).context("the table")?;
    let mut text = String::from("\n\t.section .ex_table, \"a\", @progbits\n\t.balign 4\n");
    for (fault, pad) in table.faults() {
        writeln!(text, "\t.long ioemul_table + {fault} - ., ioemul_table + {pad} - .")?;
    }
    Ok(text)
}
