//! The serial port, the end of the machine, SMRAM, and the memory functions that the compiler takes for granted.

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

// `core` was built to unwind and names this; an image that aborts never calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack)) };
    to
}

/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= n {
        // SAFETY: copying upwards reads each byte before it is overwritten.
        return unsafe { memcpy(to, from, n) };
    }
    for i in (0..n).rev() {
        // SAFETY: the caller's promise; downwards, since the end of the source is overwritten.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
    to
}

/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("al") byte as u8, options(nostack)) };
    to
}

/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: the caller's promise; volatile, so that the loop is not turned into a call to this function.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, n) }
}

/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(s: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: the caller's promise; volatile as in memcmp.
    while unsafe { s.add(n).read_volatile() } != 0 {
        n += 1;
    }
    n
}
