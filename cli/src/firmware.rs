//! The SMI command port and the codes that are ACPI's: from the FADT, or from the trace that is replayed.

use ioemul::trace::TraceHeader;
use ioemul::{Fadt, PortSet};

use crate::failure::{Failure, Result};
use crate::output::printable;
use crate::pc;

/// What ACPI says of SMIs.
#[derive(Clone, Debug)]
pub struct Firmware {
    pub port: u16,
    /// Where the port is from: `FADT`, say.
    pub source: String,
    /// Codes that are not for a scan, and their names.
    pub reserved: Vec<(u8, String)>,
    /// Why nothing can be sent, where the port is a guess for a dry run.
    pub refusal: Option<String>,
}

impl Firmware {
    pub fn of(fadt: &Fadt, source: &str) -> Result<Self> {
        let port = fadt.smi_command().map_err(|error| Failure::refused("fadt", format!("{source}: {error}")))?;
        let reserved = fadt.reserved_codes().map(|(code, name)| (code, name.to_owned())).collect();
        Ok(Self { port, source: printable(source), reserved, refusal: None })
    }

    pub fn of_bus() -> Self {
        let fadt = Fadt::new(pc::SMI_PORT, pc::ACPI_ENABLE, pc::ACPI_DISABLE);
        Self::of(&fadt, "FADT").expect("it names a port")
    }

    pub fn of_trace(header: &TraceHeader) -> Option<Self> {
        let reserved = header.reserved_codes.iter().map(|(code, name)| (*code, printable(name))).collect();
        Some(Self { port: header.smi_port?, source: printable(&header.port_source), reserved, refusal: None })
    }

    /// The port that nearly every PC has, for a dry run where the FADT cannot be had.
    pub fn usual(refusal: String) -> Self {
        Self { port: 0xb2, source: "the usual one".to_owned(), reserved: Vec::new(), refusal: Some(refusal) }
    }

    /// The ports that are written for an SMI, as far as they are where PCs have them: other ports that a FADT names, which may be a file
    /// of another machine's, are judged like all others.
    pub fn own_ports(&self) -> PortSet {
        // A port beside these would have the other of its two writes, the data or nothing of the kind, raise the SMI.
        if self.port == 0xb2 { PortSet::from(0xb2..=0xb3) } else { PortSet::none() }
    }

    /// Refuses a code that is ACPI's: `instead` says how it is sent all the same.
    pub fn refuse_reserved(&self, code: u8, instead: &str) -> Result {
        match self.name_of(code) {
            None => Ok(()),
            Some(name) => {
                let message = format!("{code:#04x} is ACPI's code {name}: {instead} sends it all the same");
                Err(Failure::refused("acpi", message).fact("code", format!("{code:#04x}")))
            }
        }
    }

    /// Keeps away from the codes of another FADT as well.
    pub fn reserve(&mut self, fadt: &Fadt) {
        for (code, name) in fadt.reserved_codes() {
            if self.name_of(code).is_none() {
                self.reserved.push((code, name.to_owned()));
            }
        }
    }

    pub fn name_of(&self, code: u8) -> Option<&str> {
        self.reserved.iter().find(|(reserved, _)| *reserved == code).map(|(_, name)| &**name)
    }

    pub fn acpi_enable(&self) -> Option<u8> {
        self.reserved.iter().find(|(_, name)| name == "ACPI_ENABLE").map(|(code, _)| *code)
    }
}
