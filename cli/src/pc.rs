//! `bus:pc`: a machine of device models, to try commands on.
//!
//! | ports | device |
//! |---|---|
//! | 0x60-0x64 | i8042 |
//! | 0x70, 0x71 | CMOS memory with a clock, in BCD and UTC |
//! | 0x80 | POST code, which reads back |
//! | 0xB2, 0xB3 | SMI mailbox: 0x42 adds RCX to RBX, 0x5A complements every register and sets CF; Dell's calls; ACPI's two codes |
//! | 0x3F8-0x3FF | 16550 UART, whose line leads nowhere |
//! | 0x5658-0x565B | VMware backdoor, with GuestRPC and a variable `greeting` |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ioemul::devices::{Cmos, SmmMailbox, VmwareBackdoor};
use ioemul::{AttachError, Direction, Gprs, PortAccess, PortDevice, SoftwareBus, Width};

/// The SMI command port of its FADT, and ACPI's codes there.
pub const SMI_PORT: u16 = 0xb2;
pub const ACPI_ENABLE: u8 = 0xf0;
pub const ACPI_DISABLE: u8 = 0xf1;

/// The machine, and how many SMIs it has taken.
pub fn build() -> Result<(SoftwareBus, Arc<AtomicU32>), AttachError> {
    let smis = Arc::new(AtomicU32::new(0));
    let mut bus = SoftwareBus::new();
    bus.attach(0x70..=0x71, Rtc::default())?;
    bus.attach(0x80..=0x80, Post(0))?;
    let counter = smis.clone();
    let firmware = move |command, _status, gprs: &mut Gprs| {
        counter.fetch_add(1, Ordering::Relaxed);
        firmware(command, gprs);
    };
    bus.attach(0xb2..=0xb3, SmmMailbox::new(firmware))?;
    bus.attach(0x5658..=0x565b, VmwareBackdoor::new().memory_mib(1024).rpc(guestinfo()))?;
    #[cfg(feature = "vm-superio")]
    superio::attach(&mut bus)?;
    Ok((bus, smis))
}

fn firmware(command: u8, gprs: &mut Gprs) {
    match command {
        0x42 => gprs.rbx = gprs.rbx.wrapping_add(gprs.rcx),
        0x5a => {
            let rflags = gprs.rflags | Gprs::CF;
            *gprs = Gprs { rflags, ..Gprs::from_words(gprs.to_words().map(|word| !word)) };
        }
        0xa3 => dell(gprs),
        _ => {} // ACPI's codes have no effect on registers, and nobody answers the others
    }
}

/// Two fans and two sensors of a Dell laptop (protocol of Linux's drivers/hwmon/dell-smm-hwmon.c).
fn dell(gprs: &mut Gprs) {
    let answer = match (gprs.rax as u16, gprs.rbx as u32) {
        (0xfea3 | 0xffa3, _) => {
            gprs.rdx = 0x4445_4c4c;
            Some(0x4449_4147)
        }
        (0x00a3, 0..=1) => Some(2),
        (0x02a3, fan @ 0..=1) => Some(2400 + 300 * fan),
        (0x03a3, fan @ 0..=1) => Some(fan),
        (0x10a3, sensor @ 0..=1) => Some(45 + 7 * sensor),
        (0x11a3, sensor @ 0..=1) => Some(sensor),
        _ => None,
    };
    gprs.rflags &= !Gprs::CF;
    match answer {
        Some(eax) => gprs.rax = eax.into(),
        None => gprs.rflags |= Gprs::CF,
    }
}

/// The host's end of GuestRPC: variables that last as long as the machine.
fn guestinfo() -> impl FnMut(&[u8]) -> Vec<u8> + Send + 'static {
    let mut variables = BTreeMap::from([("guestinfo.greeting".to_owned(), "hello".to_owned())]);
    move |request| {
        let request = String::from_utf8_lossy(request.strip_suffix(b"\0").unwrap_or(request)).into_owned();
        let mut words = request.splitn(3, ' ');
        let reply = match (words.next(), words.next(), words.next()) {
            (Some("info-get"), Some(key), None) => match variables.get(key) {
                Some(value) => format!("1 {value}"),
                None => "0 No value found".to_owned(),
            },
            (Some("info-set"), Some(key), Some(value)) if key.starts_with("guestinfo.") => {
                variables.insert(key.to_owned(), value.to_owned());
                "1 ".to_owned()
            }
            _ => "0 Unknown command".to_owned(),
        };
        reply.into_bytes()
    }
}

/// CMOS memory whose first bytes are a clock: the MC146818 in BCD and 24-hour mode.
struct Rtc {
    cmos: Cmos,
    index: u8,
}

impl Default for Rtc {
    fn default() -> Self {
        let mut bytes = [0; 128];
        (bytes[0x0a], bytes[0x0b], bytes[0x0d]) = (0x26, 0x02, 0x80); // 32,768 Hz; 24 hours, BCD; the battery is good
        Self { cmos: Cmos::new(bytes), index: 0 }
    }
}

impl Rtc {
    /// What the clock shows at its index; `None` for all other bytes.
    fn clock(&self) -> Option<u8> {
        let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
        let value = match self.index {
            0x00 => i16::from(now.second()),
            0x02 => i16::from(now.minute()),
            0x04 => i16::from(now.hour()),
            0x06 => i16::from(now.weekday().to_sunday_one_offset()),
            0x07 => i16::from(now.day()),
            0x08 => i16::from(now.month()),
            0x09 => now.year() % 100,
            0x32 => now.year() / 100,
            _ => return None,
        };
        let value = value as u8;
        Some(((value / 10) << 4) | (value % 10))
    }
}

impl PortDevice for Rtc {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        match self.clock() {
            Some(value) if access.port == 0x71 && access.width == Width::Byte => value.into(),
            _ => self.cmos.port_in(access, gprs),
        }
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        if access.port == 0x70 {
            self.index = value as u8 & 0x7f;
        }
        self.cmos.port_out(access, value, gprs);
    }
}

/// The last POST code.
struct Post(u8);

impl PortDevice for Post {
    fn try_access(&mut self, access: PortAccess, value: u32, _: &mut Gprs) -> Result<u32, ioemul::DeviceError> {
        if access.direction == Direction::Out {
            self.0 = value as u8;
        }
        Ok(self.0.into())
    }
}

#[cfg(feature = "vm-superio")]
mod superio {
    use std::convert::Infallible;
    use std::io;

    use ioemul::devices::Superio;
    use ioemul::{AttachError, SoftwareBus};
    use vm_superio::{I8042Device, Serial, Trigger};

    /// Nobody waits for an interrupt, and a reset of the machine would be the end of nothing.
    struct Nobody;

    impl Trigger for Nobody {
        type E = Infallible;

        fn trigger(&self) -> Result<(), Infallible> {
            Ok(())
        }
    }

    pub fn attach(bus: &mut SoftwareBus) -> Result<(), AttachError> {
        bus.attach(0x60..=0x64, Superio::new(0x60, I8042Device::new(Nobody)))?;
        bus.attach(0x3f8..=0x3ff, Superio::new(0x3f8, Serial::new(Nobody, io::sink())))
    }
}
