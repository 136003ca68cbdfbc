//! An SMM mailbox: a byte OUT to port 0xB2 raises an SMI, and the firmware above the kernel reads its arguments from, and
//! leaves its answers in, any register it likes.
//!
//! The firmware here is a closure; it exchanges every register, and reports a command that it does not know in CF, as
//! Dell's does. **With `--native` a real SMI is raised**, with the command that is given and with no other; what firmware
//! does then is its own affair. The status port 0xB3 is written first, and the thread stays on CPU 0, where some firmware
//! alone answers. (`ioemul smi send` asks the FADT for the port, knows ACPI's codes and counts SMIs; this does not.)
//!
//! ```sh
//! cargo run --example smm_mailbox          # on device models: 0x42, and 0xff, which they do not know
//! sudo target/debug/examples/smm_mailbox --native 0x42
//! ```

mod common;

use common::On;
use ioemul::devices::SmmMailbox;
use ioemul::{Gprs, IoInsn, SoftwareBus, Width};

const COMMAND: u8 = 0xb2;
const STATUS: u8 = 0xb3;

const USAGE: &str = "smm_mailbox [CODE], or smm_mailbox --native CODE; CODE is one byte, as 0x42";

fn main() -> common::Result {
    let (on, command) = common::arguments(USAGE, Some(code));
    if (on, command) == (On::Hardware, None) {
        eprintln!("error: --native raises a real SMI: say with which code\nusage: {USAGE}");
        std::process::exit(2);
    }
    let firmware = SmmMailbox::new(|command, _status, gprs| match command {
        0x42 => *gprs = Gprs { rflags: gprs.rflags, ..Gprs::from_words(gprs.to_words().map(|word| !word)) },
        _ => gprs.rflags |= Gprs::CF,
    });
    let mut bus = SoftwareBus::new();
    bus.attach(0xb2..=0xb3, firmware)?;

    let commands = command.map_or_else(|| vec![0x42, 0xff], |command| vec![command]);
    common::run(on, (0xb2..=0xb3).into(), bus, |emulator| {
        for command in commands {
            let mut gprs = Gprs { rax: 0, ..common::recognizable() };
            emulator.execute(IoInsn::out_imm8(Width::Byte, STATUS), &mut gprs)?;
            gprs.rax = command.into();
            common::execute(emulator, IoInsn::out_imm8(Width::Byte, COMMAND), &mut gprs)?;
            let verdict = if gprs.rflags & Gprs::CF == 0 { "clear" } else { "set: the firmware reports a failure" };
            println!("  CF is {verdict}");
        }
        Ok(())
    })
}

/// A code as `0x42`. Decimal numbers are refused: most codes that people know are hexadecimal, and 12 may be either.
fn code(text: &str) -> Result<u8, String> {
    let is_hex = |digits: &&str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    match text.strip_prefix("0x").filter(is_hex) {
        Some(digits) => u8::from_str_radix(digits, 16).map_err(|_| "a code is one byte, 0x00 to 0xff".to_owned()),
        None => match text.parse::<u8>() {
            Ok(number @ 0..=9) => Err(format!("say {number:#x}")),
            Ok(number) => Err(format!("say 0x{text} or {number:#x}")),
            Err(_) => Err("a code is one byte that starts with 0x, as 0x42".to_owned()),
        },
    }
}
