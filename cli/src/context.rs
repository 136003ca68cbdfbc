//! What a command knows before it does anything: its options, and facts about the machine.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use ioemul::trace::{Progress, Trace, TraceHeader};
use ioemul::{DmiIdentity, Fadt, FadtReadError, PortSet};

use crate::args::Globals;
use crate::failure::{Failure, Kind, Result, sentence};
use crate::firmware::Firmware;
use crate::output::{Output, printable};
use crate::values::On;

/// Options and facts.
pub struct Context {
    pub globals: Globals,
    pub out: Output,
    pub allow_hazard: PortSet,
    pub allow_busy: PortSet,
    /// How a trace is replayed: each access in its turn, unless it is lenient.
    pub lenient: bool,
    /// How far the replay of a trace has come, once a machine has been made of it.
    pub progress: RefCell<Option<Progress>>,
    is_named: Cell<bool>,
}

impl Context {
    pub fn new(globals: Globals, lenient: bool) -> Self {
        let all = |sets: &[PortSet]| sets.iter().flat_map(PortSet::ranges).collect();
        Self {
            out: Output { json: globals.json, quiet: globals.quiet },
            allow_hazard: all(&globals.allow_hazard),
            allow_busy: all(&globals.allow_busy),
            globals,
            lenient,
            progress: RefCell::new(None),
            is_named: Cell::new(false),
        }
    }

    pub fn is_hardware(&self) -> bool {
        self.globals.on == On::Hardware
    }

    /// Says, once, where accesses go.
    pub fn name_backend(&self) {
        if self.is_named.replace(true) {
            return;
        }
        let what = match &self.globals.on {
            On::Hardware => format!("the hardware: {}", self.machine()),
            On::BusPc => "bus:pc: device models, not this machine".to_owned(),
            On::Trace(file) => format!("trace:{}: recorded accesses, not this machine", file.display()),
        };
        let by_variable = std::env::var_os("IOEMUL_ON").is_some_and(|on| on == *self.globals.on.to_string());
        self.out.remark(format_args!("on {what}{}", if by_variable { " (IOEMUL_ON)" } else { "" }));
    }

    /// The machine's DMI strings; empty where they cannot be read.
    pub fn dmi(&self) -> DmiIdentity {
        DmiIdentity::read().unwrap_or_default()
    }

    /// The machine's name, as its makers have it.
    pub fn machine(&self) -> String {
        let dmi = self.dmi();
        match format!("{} {}", dmi.sys_vendor.trim(), dmi.product_name.trim()).trim() {
            "" => "a machine without DMI strings".to_owned(),
            name => printable(name),
        }
    }

    /// The port for SMIs, and the codes to keep away from.
    pub fn firmware(&self) -> Result<Firmware> {
        if let Some(file) = &self.globals.fadt {
            let fadt = Fadt::read_from(file).map_err(|error| Failure::new(Kind::Io, sentence(&error)))?;
            let mut firmware = Firmware::of(&fadt, &file.display().to_string())?;
            // The file may be another machine's: what this one reserves is kept away from as well.
            if let (true, Ok(own)) = (self.is_hardware(), Fadt::read()) {
                firmware.reserve(&own);
            }
            return Ok(firmware);
        }
        match &self.globals.on {
            On::BusPc => Ok(Firmware::of_bus()),
            On::Trace(file) => {
                let trace = self.trace(file)?;
                Firmware::of_trace(trace.header()).ok_or_else(|| {
                    let message = format!(
                        "{}: its header names no SMI command port: it was recorded by something else than `smi` (--fadt FILE says \
                         the port)",
                        file.display()
                    );
                    Failure::new(Kind::Trace, message)
                })
            }
            On::Hardware => match self.firmware_of_machine() {
                // What would be done is no harm to anybody.
                Err(failure) if self.globals.dry_run => {
                    self.out.remark(format_args!("the SMI command port is taken to be 0xb2: {}", failure.message));
                    Ok(Firmware::usual(failure.message))
                }
                found => found,
            },
        }
    }

    fn firmware_of_machine(&self) -> Result<Firmware> {
        let error = match Fadt::read() {
            Ok(fadt) => return Firmware::of(&fadt, "FADT"),
            Err(error) => error,
        };
        let message = format!(
            "{}: without the FADT nobody knows which port raises an SMI, and which codes are ACPI's (--fadt FILE reads it from a \
             file)",
            sentence(&error)
        );
        match error {
            FadtReadError::NotPermitted { .. } => Err(Failure::new(Kind::NoPrivilege, message).fact("call", "open")),
            _ => Err(Failure::refused("fadt", message)),
        }
    }

    /// A trace file, whole.
    pub fn trace(&self, file: &Path) -> Result<Trace> {
        let reader = File::open(file).map_err(|error| Failure::io(file.display(), &error))?;
        Trace::read(BufReader::new(reader))
            .map_err(|error| Failure::new(Kind::Trace, format!("{}: {error}", file.display())).fact("line", error.line))
    }

    /// What stands at the head of a trace that is recorded now.
    pub fn header(&self, firmware: Option<&Firmware>) -> TraceHeader {
        let mut header = TraceHeader::default();
        header.on = self.globals.on.to_string();
        header.date = jiff::Timestamp::now().to_string();
        if self.is_hardware() {
            let dmi = self.dmi();
            header.machine = self.machine();
            header.bios = format!("{} {}", dmi.bios_vendor, dmi.bios_version).trim().to_owned();
            header.cpu = cpu_model().unwrap_or_default();
        }
        if let Some(firmware) = firmware {
            header.smi_port = Some(firmware.port);
            header.port_source = firmware.source.clone();
            header.reserved_codes = firmware.reserved.clone();
        }
        header
    }
}

/// A line of /proc/cpuinfo.
pub fn cpu_info(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value)
}

fn cpu_model() -> Option<String> {
    let number = |key| cpu_info(key).unwrap_or_else(|| "?".to_owned());
    let name = cpu_info("model name")?;
    Some(format!(
        "{name} (family {}, model {}, stepping {})",
        number("cpu family"),
        number("model"),
        number("stepping")
    ))
}

/// Whether the CPU says that it is a virtual machine's (CPUID leaf 1, ECX bit 31), and it is not the one that has the hardware: Xen's
/// dom0 has the bit set, and its accesses go to the real ports.
pub fn is_virtual() -> bool {
    let is_dom0 = fs::read_to_string("/proc/xen/capabilities").is_ok_and(|text| text.contains("control_d"));
    if is_dom0 {
        return false;
    }
    cpu_info("flags").is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| flag == "hypervisor"))
}
