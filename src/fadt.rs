//! Where this machine takes software SMIs, and which of their codes are ACPI's: the FADT, a table that firmware leaves in
//! memory (ACPI specification, "Fixed ACPI Description Table").
//!
//! ```text
//!    0  "FACP"  length  revision  checksum  OEM ID  OEM table ID …      header: the bytes add up to 0
//!   48  SMI_CMD        the port, as 32 bits
//!   52  ACPI_ENABLE    the bytes that an operating system writes to it
//!   53  ACPI_DISABLE
//!   54  S4BIOS_REQ
//!   55  PSTATE_CNT
//!   95  CST_CNT
//!  112  flags          bit 20: no ACPI hardware, and no SMI_CMD
//! ```
//!
//! Firmware wrote it, or whoever started this virtual machine: only what the checksum covers is looked at.

#[cfg(feature = "std")]
mod sysfs;

#[cfg(feature = "std")]
pub use sysfs::FadtReadError;

const SIGNATURE: [u8; 4] = *b"FACP";
const HARDWARE_REDUCED: u32 = 1 << 20;

/// Offsets of the fields.
mod at {
    pub const LENGTH: usize = 4;
    pub const REVISION: usize = 8;
    pub const CHECKSUM: usize = 9;
    pub const OEM_ID: usize = 10;
    pub const OEM_TABLE_ID: usize = 16;
    pub const SMI_CMD: usize = 48;
    pub const ACPI_ENABLE: usize = 52;
    pub const ACPI_DISABLE: usize = 53;
    pub const S4BIOS_REQ: usize = 54;
    pub const PSTATE_CNT: usize = 55;
    pub const CST_CNT: usize = 95;
    pub const FLAGS: usize = 112;
}

/// What the FADT says about software SMIs: the port, and the codes that an operating system writes to it.
///
/// ```
/// use ioemul::Fadt;
/// let fadt = Fadt::new(0xb2, 0xf0, 0xf1).with_cst_cnt(0xe3);
/// assert_eq!(Fadt::parse(&fadt.to_table()), Ok(fadt));
/// assert_eq!(fadt.smi_port(), Some(0xb2));
/// let reserved: Vec<_> = fadt.reserved_codes().collect();
/// assert_eq!(reserved, [(0xf0, "ACPI_ENABLE"), (0xf1, "ACPI_DISABLE"), (0xe3, "CST_CNT")]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias("FACP", "SMI_CMD", "ACPI_ENABLE", "ACPI_DISABLE"))]
pub struct Fadt {
    revision: u8,
    oem_id: [u8; 6],
    oem_table_id: [u8; 8],
    smi_cmd: u32,
    acpi_enable: u8,
    acpi_disable: u8,
    s4bios_req: u8,
    pstate_cnt: u8,
    cst_cnt: u8,
    is_hardware_reduced: bool,
}

impl Fadt {
    /// Bytes of the shortest FADT, that of ACPI 1.0. All fields that are read here are in it.
    pub const SHORTEST: usize = 116;

    /// A table with this port and these codes, for tests and models of machines. All else is 0; the revision is 1.
    pub const fn new(smi_port: u16, acpi_enable: u8, acpi_disable: u8) -> Self {
        Self {
            revision: 1,
            oem_id: [0; 6],
            oem_table_id: [0; 8],
            smi_cmd: smi_port as u32,
            acpi_enable,
            acpi_disable,
            s4bios_req: 0,
            pstate_cnt: 0,
            cst_cnt: 0,
            is_hardware_reduced: false,
        }
    }

    /// The same with this S4BIOS_REQ.
    #[must_use]
    pub const fn with_s4bios_req(mut self, code: u8) -> Self {
        self.s4bios_req = code;
        self
    }

    /// The same with this PSTATE_CNT.
    #[must_use]
    pub const fn with_pstate_cnt(mut self, code: u8) -> Self {
        self.pstate_cnt = code;
        self
    }

    /// The same with this CST_CNT.
    #[must_use]
    pub const fn with_cst_cnt(mut self, code: u8) -> Self {
        self.cst_cnt = code;
        self
    }

    /// The FADT at the start of `table`. What lies behind the length that it gives for itself is not looked at.
    ///
    /// # Errors
    ///
    /// [`FadtError`] for bytes that are another table, are cut off, or do not add up to 0.
    pub fn parse(table: &[u8]) -> Result<Self, FadtError> {
        let too_short = FadtError::TooShort { length: table.len() };
        let found = *table.first_chunk().ok_or(too_short)?;
        if found != SIGNATURE {
            return Err(FadtError::Signature { found });
        }
        let length = table.get(at::LENGTH..).and_then(|rest| rest.first_chunk()).ok_or(too_short)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length < Self::SHORTEST {
            return Err(FadtError::TooShort { length });
        }
        let given = table.len();
        let table = table.get(..length).ok_or(FadtError::CutOff { length, given })?;
        let sum = sum(table);
        if sum != 0 {
            return Err(FadtError::Checksum { sum });
        }
        let fields: &[u8; Self::SHORTEST] = table.first_chunk().ok_or(FadtError::TooShort { length })?;
        Ok(Self {
            revision: fields[at::REVISION],
            oem_id: array(fields, at::OEM_ID),
            oem_table_id: array(fields, at::OEM_TABLE_ID),
            smi_cmd: u32::from_le_bytes(array(fields, at::SMI_CMD)),
            acpi_enable: fields[at::ACPI_ENABLE],
            acpi_disable: fields[at::ACPI_DISABLE],
            s4bios_req: fields[at::S4BIOS_REQ],
            pstate_cnt: fields[at::PSTATE_CNT],
            cst_cnt: fields[at::CST_CNT],
            is_hardware_reduced: u32::from_le_bytes(array(fields, at::FLAGS)) & HARDWARE_REDUCED != 0,
        })
    }

    /// A table of the shortest form that [`parse`](Self::parse) reads as this value. It is not the one that was parsed:
    /// fields that are not kept here are 0.
    pub fn to_table(&self) -> [u8; Self::SHORTEST] {
        let mut table = [0; Self::SHORTEST];
        let flags = if self.is_hardware_reduced { HARDWARE_REDUCED } else { 0 };
        for (at, bytes) in [
            (0, &SIGNATURE[..]),
            (at::LENGTH, &(Self::SHORTEST as u32).to_le_bytes()),
            (at::REVISION, &[self.revision]),
            (at::OEM_ID, &self.oem_id),
            (at::OEM_TABLE_ID, &self.oem_table_id),
            (at::SMI_CMD, &self.smi_cmd.to_le_bytes()),
            (at::ACPI_ENABLE, &[self.acpi_enable, self.acpi_disable, self.s4bios_req, self.pstate_cnt]),
            (at::CST_CNT, &[self.cst_cnt]),
            (at::FLAGS, &flags.to_le_bytes()),
        ] {
            table[at..at + bytes.len()].copy_from_slice(bytes);
        }
        table[at::CHECKSUM] = sum(&table).wrapping_neg();
        table
    }

    /// The SMI command port (SMI_CMD), if there is one: [`smi_command`](Self::smi_command) says why there is none.
    pub fn smi_port(&self) -> Option<u16> {
        self.smi_command().ok()
    }

    /// The SMI command port (SMI_CMD), or why there is none.
    ///
    /// # Errors
    ///
    /// [`NoSmiPort`], the reason.
    pub fn smi_command(&self) -> Result<u16, NoSmiPort> {
        if self.is_hardware_reduced {
            return Err(NoSmiPort::HardwareReduced);
        }
        match self.smi_cmd {
            0 => Err(NoSmiPort::Zero),
            smi_cmd => u16::try_from(smi_cmd).map_err(|_| NoSmiPort::OutOfRange { smi_cmd }),
        }
    }

    /// Gives the ACPI registers to the operating system. `None` where that is not supported: there is no SMI_CMD, or
    /// ACPI_ENABLE and ACPI_DISABLE are both 0. (If one of them is not, 0 may be meant as a code: so did firmware from
    /// before ACPI 2.0, and ACPICA takes it as one.)
    pub fn acpi_enable(&self) -> Option<u8> {
        self.mode_code(self.acpi_enable)
    }

    /// Gives the ACPI registers back to the firmware; `None` as for [`acpi_enable`](Self::acpi_enable).
    pub fn acpi_disable(&self) -> Option<u8> {
        self.mode_code(self.acpi_disable)
    }

    /// Has the firmware save memory and enter S4. `None` where there is no SMI_CMD, or the field is 0. (Whether the
    /// firmware does that is not in the FADT: S4BIOS_F of the FACS says so.)
    pub fn s4bios_req(&self) -> Option<u8> {
        self.code(self.s4bios_req)
    }

    /// Takes control of the processor's performance states. `None` where there is no SMI_CMD, or the field is 0. (ACPI 1.0
    /// had no such field, and some of its firmware left a value in the byte.)
    pub fn pstate_cnt(&self) -> Option<u8> {
        self.code(self.pstate_cnt)
    }

    /// Tells the firmware that the operating system uses _CST. `None` as for [`pstate_cnt`](Self::pstate_cnt).
    pub fn cst_cnt(&self) -> Option<u8> {
        self.code(self.cst_cnt)
    }

    /// The codes that ACPI has taken, with their names in the specification: those that a scan keeps away from. A code
    /// under two names comes twice.
    ///
    /// They come even if the table names no port. Whoever knows the port from elsewhere keeps away from them as well.
    pub fn reserved_codes(&self) -> impl Iterator<Item = (u8, &'static str)> + use<> {
        let has_modes = self.has_modes();
        [
            (has_modes, self.acpi_enable, "ACPI_ENABLE"),
            (has_modes, self.acpi_disable, "ACPI_DISABLE"),
            (self.s4bios_req != 0, self.s4bios_req, "S4BIOS_REQ"),
            (self.pstate_cnt != 0, self.pstate_cnt, "PSTATE_CNT"),
            (self.cst_cnt != 0, self.cst_cnt, "CST_CNT"),
        ]
        .into_iter()
        .filter_map(|(is_reserved, code, name)| is_reserved.then_some((code, name)))
    }

    /// Whether the machine has no ACPI hardware (HW_REDUCED_ACPI, bit 20 of the flags): SMI_CMD and the codes then mean
    /// nothing.
    pub fn is_hardware_reduced(&self) -> bool {
        self.is_hardware_reduced
    }

    /// Revision of the table: 1 for ACPI 1.0, 3 for 2.0, 6 for 6.0. Firmware is careless with it.
    pub fn revision(&self) -> u8 {
        self.revision
    }

    /// Who made the table (OEMID), as far as it is printable ASCII; without the spaces at its end.
    pub fn oem_id(&self) -> &str {
        text(&self.oem_id)
    }

    /// Which table of that maker's it is (OEM Table ID); as for [`oem_id`](Self::oem_id).
    pub fn oem_table_id(&self) -> &str {
        text(&self.oem_table_id)
    }

    fn has_modes(&self) -> bool {
        self.acpi_enable != 0 || self.acpi_disable != 0
    }

    fn takes_commands(&self) -> bool {
        self.smi_cmd != 0 && !self.is_hardware_reduced
    }

    fn mode_code(&self, code: u8) -> Option<u8> {
        (self.takes_commands() && self.has_modes()).then_some(code)
    }

    fn code(&self, code: u8) -> Option<u8> {
        (self.takes_commands() && code != 0).then_some(code)
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The bytes at an offset that is one of `at`'s: the field is within the table.
fn array<const N: usize>(fields: &[u8; Fadt::SHORTEST], at: usize) -> [u8; N] {
    core::array::from_fn(|index| fields[at + index])
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| !matches!(byte, b' '..=b'~')).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..end]).unwrap_or_default().trim_end()
}

/// Why bytes are no FADT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FadtError {
    /// It starts with the signature of another table, or with none.
    #[error("this is not a FADT: it starts with \"{}\" and not with \"FACP\"", found.escape_ascii())]
    Signature {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The bytes, or the length that the table gives for itself, are fewer than [`Fadt::SHORTEST`].
    #[error("this FADT has {length} bytes, and the shortest, that of ACPI 1.0, has 116")]
    TooShort {
        /// Length in bytes.
        length: usize,
    },
    /// Fewer bytes were given than the table has.
    #[error("this FADT is cut off: by its own account it has {length} bytes, and only {given} are there")]
    CutOff {
        /// The length that the table gives for itself.
        length: usize,
        /// Number of bytes given.
        given: usize,
    },
    /// The bytes do not add up to 0: some of them are not what the firmware wrote, or it never computed the checksum.
    #[error("the checksum of this FADT is wrong: its bytes add up to {sum:#04x} and not to 0")]
    Checksum {
        /// Sum of the bytes.
        sum: u8,
    },
}

/// Why a FADT names no port for software SMIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoSmiPort {
    /// SMI_CMD is 0.
    #[error("SMI_CMD in the FADT is 0: this machine takes no commands by SMI, or does not say where")]
    Zero,
    /// HW_REDUCED_ACPI is set, and SMI_CMD means nothing: many virtual machines, few others.
    #[error("this machine has no ACPI hardware (HW_REDUCED_ACPI in the FADT), and so no SMI_CMD")]
    HardwareReduced,
    /// SMI_CMD is above 0xffff. There is no such port.
    #[error("SMI_CMD in the FADT is {smi_cmd:#x}, and ports end at 0xffff: the firmware is wrong")]
    OutOfRange {
        /// The field.
        smi_cmd: u32,
    },
}

#[cfg(test)]
mod tests;
