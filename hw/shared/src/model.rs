//! The devices of the machine in plain Rust: what every access should do.
//!
//! The soak run compares the hardware with it, and the software bus plays it back.

use ioemul::{Direction, Gprs, IoInsn, Width};

use crate::engine::{Engine, Refused};
use crate::smm::{SMI_PORT, exchange};

/// Port of the VMware backdoor, and what EAX must hold there.
pub const VMWARE_PORT: u16 = 0x5658;
/// See [`VMWARE_PORT`].
pub const VMWARE_MAGIC: u32 = 0x564d_5868;
/// The mouse's command to say who it is, and the answer.
pub const MOUSE_COMMAND_READ_ID: u32 = 0x4541_4552;
/// See [`MOUSE_COMMAND_READ_ID`].
pub const MOUSE_ID: u64 = 0x3442_554a;
/// The mailbox of HP ProLiant servers.
pub const PROLIANT_PORT: u16 = 0xcd4;
/// What the debug console in the mailbox's place reads as.
pub const PROLIANT_ANSWER: u8 = 0x51;
/// The CMOS bytes that nobody else uses.
pub const CMOS_SPARE: core::ops::Range<u8> = 0x60..0x70;
/// How much memory the machines have, in bytes: what Xen and its dom0 need.
pub const MEMORY: u64 = 640 << 20;

/// The state of the devices.
#[derive(Clone, Debug)]
pub struct Model {
    /// Whether the machine says that it is a ProLiant.
    proliant: bool,
    latch: [u8; 4],
    cmos_index: u8,
    cmos: [u8; 0x80],
    pci_address: u32,
    /// How many words the mouse of the VMware backdoor has to say: always the same one.
    mouse_words: u32,
}

impl Model {
    /// The devices as they are before the first access. The spare CMOS bytes have to be written before they are read.
    pub fn new(proliant: bool) -> Self {
        let mut cmos = [0; 0x80];
        // 2031-05, as `-rtc base` says.
        (cmos[0x08], cmos[0x09], cmos[0x32]) = (0x05, 0x31, 0x20);
        Self { proliant, latch: [0; 4], cmos_index: 0, cmos, pci_address: 0, mouse_words: 0 }
    }

    /// Reads a port; the caller merges the value into RAX.
    pub fn input(&mut self, port: u16, width: Width, gprs: &mut Gprs) -> u32 {
        let value = match port {
            0xe0..=0xe3 => u32::from_le_bytes(self.latch) >> (8 * (port - 0xe0)),
            0x71 => self.cmos[usize::from(self.cmos_index)].into(),
            0xcf8 => self.pci_address,
            0xcfc..=0xcff => self.pci_configuration() >> (8 * (port - 0xcfc)),
            VMWARE_PORT => self.vmware(gprs),
            PROLIANT_PORT => PROLIANT_ANSWER.into(),
            _ => u32::MAX,
        };
        value & width.mask()
    }

    /// Writes a port. The device may change any register.
    pub fn output(&mut self, port: u16, width: Width, value: u32, gprs: &mut Gprs) {
        match port {
            0xe0..=0xe3 => {
                let at = usize::from(port - 0xe0);
                let bytes = usize::from(width.bytes());
                self.latch[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
            0x70 => self.cmos_index = value as u8 & 0x7f,
            0x71 => self.cmos[usize::from(self.cmos_index)] = value as u8,
            0xcf8 => self.pci_address = value,
            VMWARE_PORT => gprs.rax = self.vmware(gprs).into(),
            SMI_PORT => *gprs = exchange(gprs),
            _ => {}
        }
    }

    /// pci-testdev at 00:1d.0, and nothing at 00:1c.0; the registers that the accesses read.
    fn pci_configuration(&self) -> u32 {
        match self.pci_address {
            0x8000_e800 => 0x0005_1b36,
            0x8000_e82c => 0x1100_1af4,
            _ => u32::MAX,
        }
    }

    /// The commands of the backdoor that QEMU implements; returns the new EAX.
    fn vmware(&mut self, gprs: &mut Gprs) -> u32 {
        if gprs.rax as u32 != VMWARE_MAGIC {
            return u32::MAX;
        }
        match gprs.rcx as u8 {
            10 => {
                (gprs.rbx, gprs.rcx) = (VMWARE_MAGIC.into(), 2);
                6
            }
            19 => {
                (gprs.rbx, gprs.rcx, gprs.rdx) = (0x7766_5544, 0xbbaa_9988, 0xffee_ddcc);
                0x3322_1100
            }
            20 => {
                gprs.rbx = 0x1177;
                MEMORY as u32
            }
            39..=41 => self.mouse(gprs),
            45 => {
                gprs.rbx = u32::MAX.into();
                VMWARE_MAGIC
            }
            68 => 0,
            _ => u32::MAX,
        }
    }

    /// The mouse takes and gives six registers, as 32-bit words.
    fn mouse(&mut self, gprs: &mut Gprs) -> u32 {
        let Gprs { rax, rbx, rcx, rdx, rsi, rdi, .. } = gprs;
        let registers = [rax, rbx, rcx, rdx, rsi, rdi];
        let mut words = registers.each_ref().map(|register| **register as u32);
        match (words[2] as u8, words[1]) {
            (39, count) if (1..=self.mouse_words.min(6)).contains(&count) => {
                self.mouse_words -= count;
                words[..count as usize].fill(MOUSE_ID as u32);
            }
            (40, _) => words[0] = self.mouse_words,
            (41, MOUSE_COMMAND_READ_ID) => self.mouse_words += 1,
            _ => {} // nothing here asks for it
        }
        for (register, word) in registers.into_iter().zip(words) {
            *register = word.into();
        }
        words[0]
    }
}

impl Engine for Model {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        let (port, width) = (insn.port(gprs), insn.width);
        let poll = self.proliant && polls(insn, gprs);
        match insn.direction {
            Direction::In => {
                let value = self.input(port, width, gprs);
                gprs.rax = width.merge(gprs.rax, value);
            }
            _ => self.output(port, width, gprs.rax as u32 & width.mask(), gprs),
        }
        if poll {
            gprs.rax = width.merge(gprs.rax, PROLIANT_ANSWER.into());
        }
        Ok(())
    }
}

/// Whether the ProLiant quirk, where it is in force, follows this access with a poll.
pub fn polls(insn: IoInsn, gprs: &Gprs) -> bool {
    insn == IoInsn::out_dx(Width::Byte) && gprs.rdx as u16 == PROLIANT_PORT && gprs.rax & 0x80 != 0
}
