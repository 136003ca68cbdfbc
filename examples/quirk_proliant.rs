//! A platform quirk: HP ProLiant servers want an OUT to their SMM port 0xCD4 followed by a wait, in the same breath.
//!
//! The same instruction on the same device, first through a plain stub and then through the quirk's: without the wait the
//! answer is not there yet. **With `--native` the port of this machine is written**, if its DMI strings say that it is a
//! ProLiant; on any other nothing is tried.
//!
//! ```sh
//! cargo run --example quirk_proliant
//! sudo target/debug/examples/quirk_proliant --native
//! ```

mod common;

use ioemul::devices::ProLiantPort;
use ioemul::{DmiIdentity, Gprs, IoEmulator, IoInsn, PortSet, QuirkTable, SoftwareBus, Width};

const PORT: u16 = 0xcd4;

fn main() -> common::Result {
    let on = common::on("quirk_proliant");
    let this_machine = DmiIdentity::read()?;
    if on == common::On::Hardware {
        let quirks = describe("this machine", &this_machine);
        return match quirks.as_slice() {
            [] => Err(std::io::Error::other("this is not a ProLiant: what port 0xcd4 does here is not known").into()),
            _ => common::run(on, PortSet::from(PORT..=PORT), SoftwareBus::new(), call_firmware),
        };
    }
    for (title, identity) in
        [("this machine", this_machine), ("a ProLiant DL380", DmiIdentity::new("HP", "ProLiant DL380 G5"))]
    {
        let quirks = describe(title, &identity);
        let mut bus = SoftwareBus::new();
        bus.attach(PORT..=PORT, ProLiantPort::new(1000))?; // busy for a thousand polls
        // The quirk reads the port as well as writing it: a set permits both.
        let builder = IoEmulator::builder().quirks(quirks).ports(PortSet::from(PORT..=PORT));
        call_firmware(&mut builder.bus(bus).build()?)?;
    }
    Ok(())
}

/// The quirks of a machine, printed.
fn describe(title: &str, identity: &DmiIdentity) -> QuirkTable {
    let quirks = QuirkTable::for_platform(identity);
    let names: Vec<_> = quirks.as_slice().iter().map(|quirk| quirk.name()).collect();
    println!("\n{title}: BIOS {:?}, product {:?}", identity.bios_vendor, identity.product_name);
    println!("  quirks: {}", if names.is_empty() { "none".into() } else { names.join(", ") });
    quirks
}

fn call_firmware(emulator: &mut IoEmulator) -> common::Result {
    let mut gprs = Gprs { rax: 0x85, rdx: PORT.into(), ..common::recognizable() };
    common::execute(emulator, IoInsn::out_dx(Width::Byte), &mut gprs)?;
    let verdict = if gprs.rax & 0x80 == 0 { "clear: done" } else { "as we set it: nobody waited" };
    println!("  bit 7 of AL is {verdict}");
    Ok(())
}
