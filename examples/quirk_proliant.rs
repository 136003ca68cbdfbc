//! A platform quirk: HP ProLiant servers want an OUT to their SMM port 0xCD4 followed by a wait, in the same breath.
//!
//! The same instruction on the same device, first through a plain stub and then through the quirk's: without the wait the
//! answer is not there yet. On the hardware an emulator has the quirk when the machine's DMI strings say ProLiant.

mod common;

use ioemul::devices::ProLiantPort;
use ioemul::{DmiIdentity, Gprs, IoEmulator, IoInsn, PortSet, QuirkTable, SoftwareBus, Width};

fn main() -> common::Result {
    let this_machine = DmiIdentity::read()?;
    for (title, identity) in
        [("this machine", this_machine), ("a ProLiant DL380", DmiIdentity::new("HP", "ProLiant DL380 G5"))]
    {
        let quirks = QuirkTable::for_platform(&identity);
        let names: Vec<_> = quirks.as_slice().iter().map(|quirk| quirk.name()).collect();
        println!("\n{title}: BIOS {:?}, product {:?}", identity.bios_vendor, identity.product_name);
        println!("  quirks: {}", if names.is_empty() { "none".into() } else { names.join(", ") });

        let mut bus = SoftwareBus::new();
        bus.attach(0xcd4..=0xcd4, ProLiantPort::new(1000))?; // busy for a thousand polls
        let mut emulator = IoEmulator::builder().quirks(quirks).ports(PortSet::from(0xcd4..=0xcd4)).bus(bus).build()?;
        let mut gprs = Gprs { rax: 0x85, rdx: 0xcd4, ..common::recognizable() };
        common::execute(&mut emulator, IoInsn::out_dx(Width::Byte), &mut gprs)?;
        println!(
            "  bit 7 of AL is {}",
            if gprs.rax & 0x80 == 0 { "clear: done" } else { "as we set it: nobody waited" }
        );
    }
    Ok(())
}
