//! The serial port, the end of the machine, SMRAM.

use core::arch::asm;
use core::fmt;

use hw_shared::{Chipset, Engine, HANDLER_ADDRESS, Refused, handler};

/// COM1. (This is the report, not a check: plain OUTs will do.)
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            // SAFETY: the transmit register of COM1 takes any byte, and QEMU is never busy.
            unsafe { asm!("out dx, al", in("dx") 0x3f8, in("al") byte, options(nomem, nostack)) };
        }
        Ok(())
    }
}

/// Resets the machine through port 0xCF9; QEMU runs with `-no-reboot`.
pub fn power_off() -> ! {
    loop {
        // SAFETY: nothing of this machine is worth keeping.
        unsafe { asm!("out dx, al", "out dx, al", in("dx") 0xcf9, in("al") 6u8, options(nomem, nostack)) };
    }
}

/// Tells the local APIC that its timer, once the SMM handler has set it, ends in an SMI. (QEMU looks at the delivery mode of
/// this entry as at that of any other.)
pub fn let_the_timer_raise_smis() {
    const APIC: usize = 0xfee0_0000;
    const SOFTWARE_ENABLE: u32 = 0x1ff;
    const ONE_SHOT_SMI: u32 = 0x200;
    const DIVIDE_BY_1: u32 = 0xb;
    for (register, value) in [(0xf0, SOFTWARE_ENABLE), (0x320, ONE_SHOT_SMI), (0x3e0, DIVIDE_BY_1)] {
        // SAFETY: the APIC is mapped as it lies, and nobody else uses it.
        unsafe { ((APIC + register) as *mut u32).write_volatile(value) };
    }
}

/// Puts the handler into SMRAM; a deaf one answers some other command.
pub fn install_smm_handler(chipset: Chipset, engine: &mut dyn Engine, deaf: bool) -> Result<(), Refused> {
    chipset.enable_smi(engine)?;
    chipset.open_smram(engine, true)?;
    for (offset, byte) in handler(deaf).enumerate() {
        // SAFETY: SMRAM is open and mapped as it lies, and nobody else has a reference to it.
        unsafe { ((HANDLER_ADDRESS + offset) as *mut u8).write_volatile(byte) };
    }
    chipset.open_smram(engine, false)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    use fmt::Write;
    let _ = writeln!(Serial, "ioemul|error|{}", info.message());
    power_off()
}
