//! A guest program prints through a 16550 UART: its bytes are run here one instruction after the other, and each IN and OUT
//! goes through `emulate` to the UART model of rust-vmm's `vm-superio`.
//!
//! The program is a loop as firmware has it: fetch a character, wait until the transmitter is empty, send it. There is a
//! processor here for its other instructions, of which there are ten; a hypervisor has a real one.
//!
//! ```sh
//! cargo run --example serial_console --features vm-superio
//! ```

mod common;

use std::convert::Infallible;
use std::io;

use ioemul::devices::Superio;
use ioemul::{Gprs, IoEmulator, PortSet, SoftwareBus};
use vm_superio::{Serial, Trigger};

/// The guest's program. Its text follows it.
#[rustfmt::skip]
const PROGRAM: [u8; 29] = [
    0x8a, 0x06,             //  0  next: mov al, [rsi]
    0x84, 0xc0,             //  2        test al, al
    0x74, 0x16,             //  4        jz done
    0x88, 0xc3,             //  6        mov bl, al
    0x66, 0xba, 0xfd, 0x03, //  8        mov dx, 0x3fd   ; line status
    0xec,                   // 12  wait: in al, dx
    0xa8, 0x20,             // 13        test al, 0x20   ; transmitter empty
    0x74, 0xfb,             // 15        jz wait
    0x66, 0xba, 0xf8, 0x03, // 17        mov dx, 0x3f8   ; transmitter
    0x88, 0xd8,             // 21        mov al, bl
    0xee,                   // 23        out dx, al
    0xff, 0xc6,             // 24        inc esi
    0xeb, 0xe4,             // 26        jmp next
    0xf4,                   // 28  done: hlt
];
const TEXT: &[u8] = b"Hello from a guest, through a real UART model.\n\0";

/// The guest polls; nobody waits for the interrupt.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

fn main() -> common::Result {
    let uart = Serial::new(NoInterrupt, io::stdout());
    let mut bus = SoftwareBus::new();
    bus.attach(0x3f8..=0x3ff, Superio::new(0x3f8, uart))?;
    let mut emulator = IoEmulator::builder().ports(PortSet::from(0x3f8..=0x3ff)).bus(bus).build()?;

    let memory = [&PROGRAM, TEXT].concat();
    let mut gprs = Gprs { rsi: PROGRAM.len() as u64, ..Gprs::default() };
    let (mut rip, mut zero, mut accesses) = (0, false, 0);
    loop {
        let code = &memory[rip..];
        let short = |taken: bool| if taken { 2 + code[1] as i8 as isize } else { 2 };
        let advance = match code {
            [0x8a, 0x06, ..] => {
                gprs.rax = gprs.rax & !0xff | u64::from(memory[gprs.rsi as usize]); // mov al, [rsi]
                2
            }
            [0x84, 0xc0, ..] => {
                zero = gprs.rax as u8 == 0; // test al, al
                2
            }
            [0xa8, mask, ..] => {
                zero = gprs.rax as u8 & mask == 0; // test al, mask
                2
            }
            [0x88, 0xc3, ..] => {
                gprs.rbx = gprs.rbx & !0xff | gprs.rax & 0xff; // mov bl, al
                2
            }
            [0x88, 0xd8, ..] => {
                gprs.rax = gprs.rax & !0xff | gprs.rbx & 0xff; // mov al, bl
                2
            }
            [0x66, 0xba, low, high, ..] => {
                gprs.rdx = u16::from_le_bytes([*low, *high]).into(); // mov dx, port
                4
            }
            [0xff, 0xc6, ..] => {
                gprs.rsi += 1; // inc esi
                2
            }
            [0x74, ..] => short(zero), // jz
            [0xeb, ..] => short(true), // jmp
            [0xf4, ..] => break,       // hlt
            // Whatever else there is had better be IN or OUT: this is what a hypervisor does on an I/O exit.
            code => {
                accesses += 1;
                emulator.emulate(code, &mut gprs)? as isize
            }
        };
        rip = rip.wrapping_add_signed(advance);
    }
    println!("({accesses} port accesses emulated)");
    Ok(())
}
