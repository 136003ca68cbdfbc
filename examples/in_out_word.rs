//! IN and OUT of 16 bits, in both forms: the port in DX, and in an immediate byte.
//!
//! The device is a latch at ports 0xE0 to 0xE3, which reads back as written. With `--native` the same ports of this machine
//! are accessed: under QEMU with `-device pc-testdev` there is such a latch, and on a PC there is nothing (reads are ones).
//!
//! ```sh
//! cargo run --example in_out_word
//! sudo target/debug/examples/in_out_word --native
//! ```

mod common;

use ioemul::devices::Latch;
use ioemul::{Gprs, IoInsn, SoftwareBus, Width};

fn main() -> common::Result {
    let on = common::on("in_out_word");
    let mut bus = SoftwareBus::new();
    bus.attach(0xe0..=0xe3, Latch::new(0xe0))?;
    common::run(on, (0xe0..=0xe3).into(), bus, |emulator| {
        // The port is in DX; what else the registers hold is nobody's business, and stays.
        let mut gprs = Gprs { rax: 0x8877_6655_4433_2211, rdx: 0xe0, ..common::recognizable() };
        common::execute(emulator, IoInsn::out_dx(Width::Word), &mut gprs)?;
        gprs.rax = u64::MAX;
        common::execute(emulator, IoInsn::in_dx(Width::Word), &mut gprs)?;

        // The port is in the instruction, and DX is as free as any other register.
        let mut gprs = Gprs { rax: 0x1122_3344_5566_7788, ..common::recognizable() };
        common::execute(emulator, IoInsn::out_imm8(Width::Word, 0xe0), &mut gprs)?;
        gprs.rax = u64::MAX;
        common::execute(emulator, IoInsn::in_imm8(Width::Word, 0xe0), &mut gprs)?;
        Ok(())
    })
}
