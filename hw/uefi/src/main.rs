//! A UEFI application that sends an SMI with all registers in view, and prints sixteen words before and after.
//!
//! Firmware without SMM of its own leaves SMBASE where the CPU has it at reset, so the SMM handler at the other end is
//! ours: at first one that answers another command (all registers have to come back as they were), then the one that exchanges
//! all of them.
#![no_std]
#![no_main]

mod firmware;
#[path = "../../ring0/src/memory.rs"]
mod memory;

use core::fmt::Write;

use firmware::{Console, SystemTable};
use hw_shared::{Chipset, Engine, Refused, Rng, SMI_COMMAND, SMI_PORT, exchange, handler};
use ioemul::{CodeTable, DmiStrings, EmitOptions, Gprs, IoInsn, SmbiosEntryPoint, Width};

/// What the firmware calls.
#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(_image: *const (), system: &'static SystemTable) -> usize {
    let mut console = system.console();
    match run(system, &mut console) {
        Ok(()) => say(&mut console, format_args!("end")),
        Err(what) => say(&mut console, format_args!("error|{what}")),
    }
    system.shut_down()
}

fn say(console: &mut Console, text: core::fmt::Arguments) {
    let _ = write!(console, "ioemul|{text}\r\n"); // a console that takes nothing cannot be told so
}

fn run(system: &SystemTable, console: &mut Console) -> Result<(), &'static str> {
    let dmi = system.smbios().and_then(SmbiosEntryPoint::parse).map_or_else(DmiStrings::default, |at| {
        // SAFETY: the firmware has memory mapped as it lies, and says that its table is there.
        DmiStrings::from_smbios(unsafe { core::slice::from_raw_parts(at.address as *const u8, at.length as usize) })
    });
    say(console, format_args!("shown|{}, {}", dmi.bios_vendor, dmi.product_name));
    let mut hardware = Hardware::new().ok_or("there is no room for the table")?;
    let chipset = Chipset::probe(&mut hardware).map_err(|Refused| "the host bridge does not answer")?;
    chipset.enable_smi(&mut hardware).map_err(|Refused| "SMIs cannot be enabled")?;
    let random = Rng::new(0x5a).gprs();
    let before = Gprs {
        rax: random.rax & !0xff | u64::from(SMI_COMMAND),
        rdx: random.rdx & !0xffff | u64::from(SMI_PORT),
        rbx: random.rbx & !0b111, // CF is to be cleared
        rflags: Gprs::STATUS_FLAGS,
        ..random
    };
    for (deaf, expected) in [(true, before), (false, exchange(&before))] {
        install(system, deaf)?;
        let mut after = before;
        let out = IoInsn::out_dx(Width::Byte);
        hardware.execute(out, &mut after).map_err(|Refused| "the access faulted")?;
        say(
            console,
            format_args!("shown|{out}: {}", if deaf { "a handler for another command" } else { "the handler" }),
        );
        show(console, "before", &before);
        show(console, "after", &after);
        let outcome = match after.differences(&expected).next() {
            None => "ok",
            Some((register, ..)) => register,
        };
        say(console, format_args!("smi|{}|{outcome}", if deaf { "control" } else { "exchange" }));
    }
    Ok(())
}

fn show(console: &mut Console, title: &str, gprs: &Gprs) {
    say(console, format_args!("shown|{title}"));
    let words = gprs.to_words();
    for (names, words) in Gprs::NAMES.chunks(4).zip(words.chunks(4)) {
        let _ = write!(console, "ioemul|shown|");
        for (name, word) in names.iter().zip(words) {
            let _ = write!(console, " {name:>6}={word:016x}");
        }
        let _ = write!(console, "\r\n");
    }
}

/// Puts the handler where the CPU looks for it after a reset: at SMBASE + 0x8000, SMBASE being 0x30000.
fn install(system: &SystemTable, deaf: bool) -> Result<(), &'static str> {
    const SMBASE: usize = 0x3_0000;
    static HAVE: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);
    if !HAVE.swap(true, core::sync::atomic::Ordering::SeqCst) && !system.allocate_at(SMBASE as u64, 16) {
        return Err("the memory at SMBASE is in use");
    }
    for (offset, byte) in handler(deaf).enumerate() {
        // SAFETY: the memory is ours, as the firmware has just said.
        unsafe { ((SMBASE + 0x8000 + offset) as *mut u8).write_volatile(byte) };
    }
    Ok(())
}

/// A table of stubs in this image, which can be executed as all of it can.
struct Hardware(CodeTable);

impl Hardware {
    fn new() -> Option<Self> {
        static mut MEMORY: [u8; 1 << 17] = [0; 1 << 17];
        // SAFETY: there is one of these.
        let memory = unsafe { (&raw mut MEMORY).as_mut() }?;
        let va = memory.as_ptr().expose_provenance() as u64;
        CodeTable::emit(memory, va, &EmitOptions::new()).ok().map(Self)
    }
}

impl Engine for Hardware {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        // SAFETY: the table is in place; the machine is ours, so that no access can do harm.
        unsafe { self.0.execute(insn, gprs, |_| true) }.map_err(|_| Refused)
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
