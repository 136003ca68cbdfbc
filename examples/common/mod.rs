//! What the examples share: the choice of hardware or bus, and a view of what an access did to the registers.
#![allow(dead_code)] // no example uses all of it

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use ioemul::{CpuAffinity, Gprs, IoEmulator, IoInsn, IoPermission, PortSet, SoftwareBus};

pub type Result<T = ()> = std::result::Result<T, Failure>;

/// Any error, which `main` prints as a sentence.
pub struct Failure(Box<dyn Error>);

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Whether the user asked for the hardware.
pub fn native() -> bool {
    std::env::args().skip(1).any(|argument| argument == "--native")
}

/// Runs `body` with an emulator over `bus`, or, with `--native`, over the hardware: the ports opened to this thread if that
/// can be had (some hypervisors answer without), and the thread on CPU 0, where firmware is sure to answer.
pub fn on_bus_or_hardware(ports: PortSet, bus: SoftwareBus, body: impl FnOnce(&mut IoEmulator) -> Result) -> Result {
    if !native() {
        println!("ports {ports} of a software bus (--native for the hardware)");
        return body(&mut IoEmulator::builder().ports(ports).bus(bus).build()?);
    }
    println!("ports {ports} of this machine");
    let _cpu_0 = CpuAffinity::pin(0)?;
    let permission = IoPermission::acquire(&ports);
    if let Err(error) = &permission {
        println!("not opened, tried all the same: {error}");
    }
    // SAFETY: nothing but these ports is touched; whoever typed `--native` asked for what the example says it does there.
    let builder = unsafe { IoEmulator::builder().native(ports) };
    body(&mut builder.build()?)
}

/// Executes one instruction and prints the registers before and after it, those that changed standing out.
pub fn execute(emulator: &mut IoEmulator, insn: IoInsn, gprs: &mut Gprs) -> Result {
    let before = *gprs;
    println!("\n{insn}   (port {:#06x})", insn.port(gprs));
    emulator.execute(insn, gprs)?;
    print_registers("before", &before, &before)?;
    print_registers("after", gprs, &before)?;
    Ok(())
}

/// Four lines of four registers; those that are not as in `before` are bold on a terminal, and starred elsewhere.
pub fn print_registers(title: &str, gprs: &Gprs, before: &Gprs) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let (bold, plain, star) = if out.is_terminal() { ("\x1b[1;33m", "\x1b[0m", "") } else { ("", "", "*") };
    let words: Vec<_> = Gprs::NAMES.iter().zip(gprs.to_words()).zip(before.to_words()).collect();
    for (i, line) in words.chunks(4).enumerate() {
        let cells = line.iter().map(|&((name, word), before)| match word == before {
            true => format!("{name:>3}={word:016x} "),
            false => format!("{bold}{name:>3}={word:016x}{plain}{star:<1}"),
        });
        let line = cells.collect::<Vec<_>>().join(" ");
        writeln!(out, "{:<8}{}", if i == 0 { title } else { "" }, line.trim_end())?;
    }
    Ok(())
}

/// A register file with something to recognize in every word.
pub fn recognizable() -> Gprs {
    let words: [u64; 16] = std::array::from_fn(|i| 0x0101_0101_0101_0101 * (0x10 + i as u64));
    Gprs { rflags: 0, ..Gprs::from_words(words) }
}
