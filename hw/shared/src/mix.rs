//! An endless mix of accesses to all devices, from a seed.

use ioemul::{Gprs, IoInsn, Width};

use crate::model::{CMOS_SPARE, PROLIANT_PORT, VMWARE_MAGIC, VMWARE_PORT};
use crate::rng::Rng;
use crate::smm::{SMI_COMMAND, SMI_PORT};

/// Which devices take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All of them.
    All,
    /// The SMM mailbox alone.
    Smm,
}

/// The stream of accesses.
pub struct Mix {
    rng: Rng,
    devices: Devices,
    /// The second half of a pair: CMOS data after its index, PCI data after its address.
    then: Option<IoInsn>,
    then_port: u16,
}

impl Mix {
    /// The stream of `seed`.
    pub const fn new(seed: u64, devices: Devices) -> Self {
        Self { rng: Rng::new(seed), devices, then: None, then_port: 0 }
    }

    /// The next access: the instruction, and the registers that it starts from. All that it does not look at is random.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> (IoInsn, Gprs) {
        let mut gprs = self.rng.gprs();
        let dice = self.rng.next();
        if let Some(insn) = self.then.take() {
            set16(&mut gprs.rdx, self.then_port);
            return (insn, gprs);
        }
        let device = match self.devices {
            Devices::All => dice % 6,
            Devices::Smm => 5,
        };
        let dice = dice >> 8;
        let insn = match device {
            0 => self.latch(&mut gprs, dice),
            1 => self.cmos(&mut gprs, dice),
            2 => self.pci(&mut gprs, dice),
            3 => vmware(&mut gprs, dice),
            4 => proliant(&mut gprs, dice),
            _ => smm(&mut gprs, dice),
        };
        (insn, gprs)
    }

    /// pc-testdev: any width, any form, aligned.
    fn latch(&mut self, gprs: &mut Gprs, dice: u64) -> IoInsn {
        let width = Width::ALL[(dice % 3) as usize];
        let port = 0xe0 | (dice >> 8) as u8 & 3 & !(width.bytes() - 1);
        set16(&mut gprs.rdx, port.into());
        match (dice >> 16) & 3 {
            0 => IoInsn::in_dx(width),
            1 => IoInsn::out_dx(width),
            2 => IoInsn::in_imm8(width, port),
            _ => IoInsn::out_imm8(width, port),
        }
    }

    /// A spare byte of CMOS is written, or the calendar read; the index first.
    fn cmos(&mut self, gprs: &mut Gprs, dice: u64) -> IoInsn {
        let spare = CMOS_SPARE.start + (dice % CMOS_SPARE.len() as u64) as u8;
        let (index, data) = match (dice >> 8) & 3 {
            0 => (spare, IoInsn::out_dx(Width::Byte)),
            1 => (spare, IoInsn::out_imm8(Width::Byte, 0x71)),
            2 => (0x08, IoInsn::in_dx(Width::Byte)),
            _ => (0x32, IoInsn::in_imm8(Width::Byte, 0x71)),
        };
        (self.then, self.then_port) = (Some(data), 0x71);
        set8(&mut gprs.rax, index);
        IoInsn::out_imm8(Width::Byte, 0x70)
    }

    /// The identity of a device that is there, or of one that is not; the address first.
    fn pci(&mut self, gprs: &mut Gprs, dice: u64) -> IoInsn {
        let address = [0x8000_e800, 0x8000_e82c, 0x8000_e000][(dice % 3) as usize];
        let width = Width::ALL[((dice >> 8) % 3) as usize];
        let offset = (dice >> 16) as u16 & 3 & !(u16::from(width.bytes()) - 1);
        (self.then, self.then_port) = (Some(IoInsn::in_dx(width)), 0xcfc + offset);
        set16(&mut gprs.rdx, 0xcf8);
        set32(&mut gprs.rax, address);
        IoInsn::out_dx(Width::Dword)
    }
}

fn vmware(gprs: &mut Gprs, dice: u64) -> IoInsn {
    set16(&mut gprs.rdx, VMWARE_PORT);
    set32(&mut gprs.rax, if dice & 15 == 0 { !VMWARE_MAGIC } else { VMWARE_MAGIC });
    set32(&mut gprs.rcx, [10, 19, 20, 45, 68][((dice >> 4) % 5) as usize]);
    if dice & 0x1000 == 0 { IoInsn::in_dx(Width::Dword) } else { IoInsn::out_dx(Width::Dword) }
}

/// With bit 7 of AL the quirk applies, without it declines.
fn proliant(gprs: &mut Gprs, dice: u64) -> IoInsn {
    set16(&mut gprs.rdx, PROLIANT_PORT);
    if dice & 3 == 0 { IoInsn::in_dx(Width::Byte) } else { IoInsn::out_dx(Width::Byte) }
}

/// One in sixteen is a command that the handler ignores.
fn smm(gprs: &mut Gprs, dice: u64) -> IoInsn {
    set16(&mut gprs.rdx, SMI_PORT);
    set8(&mut gprs.rax, if dice & 15 == 0 { !SMI_COMMAND } else { SMI_COMMAND });
    match (dice >> 4) & 3 {
        0 => IoInsn::out_imm8(Width::Byte, SMI_PORT as u8),
        _ => IoInsn::out_dx(Width::Byte),
    }
}

fn set8(register: &mut u64, value: u8) {
    *register = *register & !0xff | u64::from(value);
}

fn set16(register: &mut u64, value: u16) {
    *register = *register & !0xffff | u64::from(value);
}

fn set32(register: &mut u64, value: u32) {
    *register = *register & !0xffff_ffff | u64::from(value);
}
