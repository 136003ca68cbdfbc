//! The table for Xen, as its sources are to have it: an assembler file with what is Xen's about it, the stubs, and the header.

use anyhow::{Result, ensure};
use ioemul::gas::HostTable;
use ioemul::{EmitOptions, Gprs, Quirk, RegisterFile, Ring, StubLayout};

/// What is built into Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The table as it is meant to be.
    Whole,
    /// A negative control: R13 and R14 are taken from, and put to, each other's places, and the stub of `in al, 0xea` has in
    /// the place of its access an instruction that faults.
    Broken,
    /// As [`Table::Broken`], and Xen's exception table does not know the stubs.
    Unknown,
}

/// The access whose stub faults in [`Table::Broken`], and the instruction there: `mov ds, eax`, with a selector beyond the
/// GDT in AX. (No access faults by itself in ring 0.)
const FAULTS: (&str, &str) = ("0x90, 0xe4, 0xea", "0x90, 0x8e, 0xd8");

/// What Xen's build takes for the table: the stubs, which can fault and be jumped to, in Xen's own terms.
const OBJECT: &str = "\
#include <asm/asm_defns.h>
#define IOEMUL_EXTABLE(fault, pad) _ASM_EXTABLE(fault, pad)
#define IOEMUL_ENDBR64 ENDBR64
#include \"ioemul_stubs.S\"
";

/// The files for a Xen of this configuration, by their names.
pub fn sources(configuration: &str, table: Table) -> Result<[(&'static str, String); 3]> {
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
    let exchanged = options.registers(exchanged());
    let header = host(&options, thunk)?.header().to_string();
    let stubs = match table {
        Table::Whole => host(&options, thunk)?.source().to_string(),
        Table::Broken | Table::Unknown => {
            let source = host(&exchanged, thunk)?.source().to_string();
            ensure!(source.matches(FAULTS.0).count() == 1, "the stub that is to fault is not there once");
            source.replace(FAULTS.0, FAULTS.1)
        }
    };
    let object = match table {
        Table::Unknown => {
            OBJECT.lines().filter(|line| !line.contains("EXTABLE")).map(|line| format!("{line}\n")).collect()
        }
        _ => OBJECT.to_owned(),
    };
    Ok([("ioemul_table.S", object), ("ioemul_stubs.S", stubs), ("ioemul_table.h", header)])
}

fn host<'q>(options: &EmitOptions<'q>, thunk: bool) -> Result<HostTable<'q>> {
    // INS and OUTS of a guest are single accesses in Xen, by code of its own.
    let host = HostTable::new(options)?.strings(false);
    Ok(if thunk { host.return_thunk("__x86_return_thunk")? } else { host })
}

/// Two registers in each other's places.
fn exchanged() -> RegisterFile {
    let mut offsets: [i16; 15] = RegisterFile::PT_REGS.offsets().try_into().expect("15 registers");
    let [a, b] = ["r13", "r14"].map(|name| Gprs::NAMES.iter().position(|known| *known == name).expect("a register"));
    offsets.swap(a, b);
    RegisterFile::new(offsets, RegisterFile::PT_REGS.rflags())
}
