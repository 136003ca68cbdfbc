//! Writes a table for Xen's register structure.
use ioemul::gas::HostTable;
use ioemul::{EmitOptions, Quirk, RegisterFile, StubLayout};
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layout = match std::env::args().nth(1).as_deref() {
        Some("Compact") => StubLayout::Compact,
        Some("Inline") => StubLayout::Inline,
        Some("Rop") => StubLayout::Rop,
        _ => StubLayout::CallRet,
    };
    let hard = std::env::args().nth(2).is_some();
    let quirks = [Quirk::PROLIANT, Quirk::GSMI_CARRY];
    let options = EmitOptions::new().layout(layout).registers(RegisterFile::PT_REGS).quirks(&quirks);
    let options = if hard { options.endbr64(true).int3(true).scrub(true) } else { options };
    let table = HostTable::new(&options)?;
    let table = if hard { table.return_thunk("__x86_return_thunk") } else { table };
    print!("{}", table.source());
    Ok(())
}
