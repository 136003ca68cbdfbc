//! An SMM mailbox: a byte OUT to port 0xB2 raises an SMI, and the firmware above the kernel reads its arguments from, and
//! leaves its answers in, any register it likes.
//!
//! The firmware here is a closure; it exchanges every register, and reports a command that it does not know in CF, as
//! Dell's does. **With `--native` a real SMI is raised**, with command 0xFF unless another is given; what firmware does
//! then is its own affair. The status port 0xB3 is written first, and the thread stays on CPU 0, where some firmware
//! alone answers.
//!
//! ```sh
//! cargo run --example smm_mailbox
//! sudo target/debug/examples/smm_mailbox --native 0xff
//! ```

mod common;

use ioemul::devices::SmmMailbox;
use ioemul::{Gprs, IoInsn, SoftwareBus, Width};

const COMMAND: u8 = 0xb2;
const STATUS: u8 = 0xb3;

fn main() -> common::Result {
    let firmware = SmmMailbox::new(|command, _status, gprs| match command {
        0x42 => *gprs = Gprs { rflags: gprs.rflags, ..Gprs::from_words(gprs.to_words().map(|word| !word)) },
        _ => gprs.rflags |= Gprs::CF,
    });
    let mut bus = SoftwareBus::new();
    bus.attach(0xb2..=0xb3, firmware)?;

    let commands = match std::env::args().skip(1).find_map(|argument| argument.strip_prefix("0x").map(str::to_owned)) {
        Some(digits) => vec![u8::from_str_radix(&digits, 16)?],
        None if common::native() => vec![0xff],
        None => vec![0x42, 0xff],
    };
    common::on_bus_or_hardware((0xb2..=0xb3).into(), bus, |emulator| {
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
