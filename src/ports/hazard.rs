//! The ports that no tool should touch by accident, and why.

use core::fmt;
use core::ops::RangeInclusive;

use crate::Width;

/// Ports at the same fixed place on every PC whose misuse resets the machine, loses data or pulls a device out from
/// under the kernel.
///
/// The list is advice, not a boundary: it holds fixed ports only. Those that firmware places where it likes (the ACPI
/// PM1 control register, which powers the machine off; I/O BARs of PCI devices) are not in it.
///
/// ```
/// use ioemul::{Hazard, Width};
/// let hazard = Hazard::at(0xcf9, Width::Byte).unwrap();
/// assert_eq!(hazard.to_string(), "0xcf9, reset control: writing 0x06 resets the machine, and 0x0e power-cycles it");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hazard {
    /// The ports.
    pub ports: RangeInclusive<u16>,
    /// What answers there.
    pub device: &'static str,
    /// What an access can do.
    pub reason: &'static str,
    /// Whether a read does something as well: it takes a byte, moves a flip-flop, or comes between two accesses of a
    /// driver. Other hazards are in writing only.
    pub reading_acts: bool,
}

const fn hazard(ports: RangeInclusive<u16>, device: &'static str, reason: &'static str) -> Hazard {
    Hazard { ports, device, reason, reading_acts: false }
}

/// One of which reading is a part.
const fn active(ports: RangeInclusive<u16>, device: &'static str, reason: &'static str) -> Hazard {
    Hazard { reading_acts: true, ..hazard(ports, device, reason) }
}

impl Hazard {
    /// Every hazard, ascending by port, none overlapping. Port numbers are from Intel's ICH and PCH datasheets ("Fixed
    /// I/O Address Ranges"), the ACPI specification (embedded controller) and the PCI Local Bus Specification.
    ///
    /// Port 0x80 is not among them, though it lies with the DMA page registers: it takes POST codes, and writing it is
    /// the customary way to waste a microsecond.
    pub const ALL: &[Hazard] = &[
        active(
            0x00..=0x0f,
            "DMA controller 1",
            "a channel programmed here makes a device read or overwrite memory that the kernel owns",
        ),
        hazard(0x20..=0x21, "interrupt controller 1", "a changed mask or a stray end-of-interrupt loses interrupts"),
        hazard(
            0x2e..=0x2f,
            "Super I/O configuration",
            "a stray write can move or disable serial ports, fan control or the watchdog",
        ),
        active(
            0x40..=0x43,
            "interval timer",
            "a reprogrammed counter stops or skews the clock that the kernel may run on",
        ),
        hazard(
            0x4e..=0x4f,
            "Super I/O configuration",
            "a stray write can move or disable serial ports, fan control or the watchdog",
        ),
        active(
            0x60..=0x60,
            "keyboard controller data",
            "a read takes a byte from the keyboard driver, and after command 0xd1 a write with bit 0 clear resets the CPU",
        ),
        hazard(
            0x61..=0x61,
            "system control port B",
            "a write changes which hardware errors raise an NMI, and gates timer counter 2",
        ),
        active(
            0x62..=0x62,
            "embedded controller data",
            "an access in the middle of the ACPI driver's transaction corrupts it: battery, fans, power button",
        ),
        hazard(0x64..=0x64, "keyboard controller command", "command 0xfe pulses the reset line of the CPU"),
        active(
            0x66..=0x66,
            "embedded controller command",
            "an access in the middle of the ACPI driver's transaction corrupts it: battery, fans, power button",
        ),
        hazard(
            0x70..=0x77,
            "CMOS memory, clock and NMI mask",
            "bit 7 of 0x70 masks NMIs, and a data write at an index shared with the kernel changes clock or setup",
        ),
        hazard(
            0x81..=0x8f,
            "DMA page registers",
            "a changed page sends a DMA transfer that the kernel has set up to other memory",
        ),
        hazard(0x92..=0x92, "system control port A", "bit 0 resets the CPU and bit 1 switches address line A20"),
        hazard(0xa0..=0xa1, "interrupt controller 2", "a changed mask or a stray end-of-interrupt loses interrupts"),
        hazard(
            0xb2..=0xb3,
            "APM control and status",
            "a write to 0xb2 raises an SMI, and firmware obeys it above the kernel",
        ),
        active(
            0xc0..=0xdf,
            "DMA controller 2",
            "a channel programmed here makes a device read or overwrite memory that the kernel owns",
        ),
        active(0x170..=0x177, "secondary IDE channel", "a command written here can overwrite a disk"),
        active(0x1f0..=0x1f7, "primary IDE channel", "a command written here can overwrite a disk"),
        hazard(
            0x4d0..=0x4d1,
            "interrupt edge/level control",
            "a changed trigger mode loses interrupts or storms the CPU",
        ),
        hazard(
            0xcf8..=0xcf8,
            "PCI configuration address",
            "a write sends the kernel's next configuration access to another device",
        ),
        hazard(0xcf9..=0xcf9, "reset control", "writing 0x06 resets the machine, and 0x0e power-cycles it"),
        hazard(
            0xcfa..=0xcff,
            "PCI configuration",
            "a write reconfigures whichever device was addressed last, by the kernel or by you",
        ),
    ];

    /// The first hazard among the ports that an access of `width` at `port` touches.
    pub fn at(port: u16, width: Width) -> Option<&'static Hazard> {
        let last = port.saturating_add(u16::from(width.bytes()) - 1);
        Self::ALL.iter().find(|hazard| *hazard.ports.start() <= last && port <= *hazard.ports.end())
    }
}

impl fmt::Display for Hazard {
    /// One line: the ports, the device, the reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.ports.start(), self.ports.end());
        write!(f, "{first:#x}")?;
        if first != last {
            write!(f, "-{last:#x}")?;
        }
        write!(f, ", {}: {}", self.device, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PortSet;

    #[test]
    fn ascending_and_disjoint() {
        assert!(Hazard::ALL.iter().all(|hazard| !hazard.ports.is_empty()));
        assert!(Hazard::ALL.windows(2).all(|pair| pair[0].ports.end() < pair[1].ports.start()));
    }

    #[test]
    fn the_set_and_the_table_agree() {
        let set = PortSet::hazardous();
        for port in 0..=u16::MAX {
            assert_eq!(set.permits(port, Width::Byte), Hazard::at(port, Width::Byte).is_some(), "{port:#x}");
        }
        assert_eq!(
            set.to_string(),
            "0x0-0xf,0x20-0x21,0x2e-0x2f,0x40-0x43,0x4e-0x4f,0x60-0x62,0x64,0x66,0x70-0x77,0x81-0x8f,0x92,0xa0-0xa1,\
             0xb2-0xb3,0xc0-0xdf,0x170-0x177,0x1f0-0x1f7,0x4d0-0x4d1,0xcf8-0xcff"
        );
    }

    #[test]
    fn reading_acts_where_a_read_takes_or_turns_something() {
        let acts = |port| Hazard::at(port, Width::Byte).unwrap().reading_acts;
        // Flip-flops of the DMA controllers and the timer, the keyboard's byte, the controller's, a disk's interrupt.
        assert!([0x0, 0x40, 0x60, 0x62, 0x66, 0xc0, 0x177, 0x1f7].into_iter().all(acts));
        assert!(![0x20, 0x61, 0x64, 0x71, 0xb2, 0xcf8, 0xcf9].into_iter().any(acts));
    }

    #[test]
    fn a_wide_access_meets_the_hazard_beside_it() {
        assert_eq!(Hazard::at(0x1ef, Width::Byte), None);
        assert_eq!(Hazard::at(0x1ef, Width::Word).unwrap().device, "primary IDE channel");
        assert_eq!(Hazard::at(0xffff, Width::Dword), None);
        assert_eq!(
            Hazard::at(0x91, Width::Dword).unwrap().to_string(),
            "0x92, system control port A: bit 0 resets the CPU and bit 1 switches address line A20"
        );
    }
}
