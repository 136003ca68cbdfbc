//! The same script on the software bus, in this process: device models in place of the machine.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use hw_shared::model::{Model, PROLIANT_PORT, VMWARE_PORT};
use hw_shared::{DMI_PRODUCT, DMI_VENDOR, Engine, Params, Refused, SMI_PORT, script};
use ioemul::{
    DmiIdentity, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, QuirkTable, SoftwareBus, StubLayout,
};

/// Runs the script in every layout, on the bare model, and with one device that is wrong; the lines are those that a guest
/// would print.
pub fn record(params: &Params) -> Result<String> {
    let mut lines = String::new();
    for layout in StubLayout::ALL.iter().copied() {
        let mut engine = Emulator(emulator(layout, params.proliant, false)?);
        script::record(&format_args!("{layout:?}"), &mut engine, params, &mut lines)?;
    }
    script::record(&"model", &mut Model::new(params.proliant), params, &mut lines)?;
    let mut broken = Emulator(emulator(StubLayout::CallRet, params.proliant, true)?);
    script::record(&"broken", &mut broken, params, &mut lines)?;
    Ok(lines)
}

fn emulator(layout: StubLayout, proliant: bool, broken: bool) -> Result<IoEmulator> {
    let model = Arc::new(Mutex::new(Model::new(proliant)));
    let mut bus = SoftwareBus::new();
    let ports = [
        0x70..=0x71,
        SMI_PORT..=SMI_PORT + 1,
        0xe0..=0xe3,
        PROLIANT_PORT..=PROLIANT_PORT,
        0xcf8..=0xcff,
        VMWARE_PORT..=VMWARE_PORT + 3,
    ];
    for ports in ports {
        bus.attach(ports, Device { model: Arc::clone(&model), broken })?;
    }
    let quirks = match proliant {
        true => QuirkTable::for_platform(&DmiIdentity::new(DMI_VENDOR, DMI_PRODUCT)),
        false => QuirkTable::none(),
    };
    Ok(IoEmulator::builder().layout(layout).quirks(quirks).ports(PortSet::all()).bus(bus).build()?)
}

struct Emulator(IoEmulator);

impl Engine for Emulator {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        self.0.execute(insn, gprs).map_err(|_| Refused)
    }
}

/// A part of the model, on the bus.
struct Device {
    model: Arc<Mutex<Model>>,
    /// Loses R14.
    broken: bool,
}

impl PortDevice for Device {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        if self.broken {
            gprs.r14 = gprs.r13;
        }
        self.model.lock().expect("no device panics").input(access.port, access.width, gprs)
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        if self.broken {
            gprs.r14 = gprs.r13;
        }
        self.model.lock().expect("no device panics").output(access.port, access.width, value, gprs);
    }
}
