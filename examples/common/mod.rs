//! What the examples share: their command line, the choice of hardware or bus, and a view of what an access did to the registers.
#![allow(dead_code)] // no example uses all of it

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use ioemul::{CpuAffinity, Gprs, IoEmulator, IoInsn, IoPermission, PortSet, SoftwareBus};

pub type Result<T = (), E = Failure> = std::result::Result<T, E>;

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

/// Where an example makes its accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Bus,
    Hardware,
}

/// Reads a word of a command line, or says what is wrong with it.
pub type Word<T> = fn(&str) -> Result<T, String>;

/// Reads the command line of an example that takes `--native` and, if `word` is given, one word more, as `word` reads it.
///
/// Any other argument ends the program with exit status 2, before anything is executed: what is mistyped may not become an
/// access to the hardware that nobody asked for.
pub fn arguments<T>(usage: &str, word: Option<Word<T>>) -> (On, Option<T>) {
    let refuse = |why: String| -> ! {
        eprintln!("error: {why}\nusage: {usage}");
        std::process::exit(2)
    };
    let (mut on, mut found) = (On::Bus, None);
    // What is no UTF-8 is none of the words that are known, and is refused like them.
    for argument in std::env::args_os().skip(1) {
        let argument = argument.to_string_lossy();
        match (&*argument, word) {
            ("-h" | "--help", _) => {
                println!("usage: {usage}");
                std::process::exit(0)
            }
            ("--native", _) if on == On::Bus => on = On::Hardware,
            (option, _) if option.starts_with('-') => refuse(format!("{option:?} is no option, or is given twice")),
            (text, Some(read)) if found.is_none() => match read(text) {
                Ok(value) => found = Some(value),
                Err(why) => refuse(format!("{text:?}: {why}")),
            },
            (text, _) => refuse(format!("{text:?} is one argument too many")),
        }
    }
    (on, found)
}

/// Reads the command line of an example that takes `--native` and nothing else: `name` is the example's.
pub fn on(name: &str) -> On {
    arguments::<()>(&format!("{name} [--native]"), None).0
}

/// Runs `body` with an emulator over `bus`, or over the hardware: the ports opened to this thread if that can be had (some
/// hypervisors answer without), and the thread on CPU 0, where firmware is sure to answer.
pub fn run(on: On, ports: PortSet, bus: SoftwareBus, body: impl FnOnce(&mut IoEmulator) -> Result) -> Result {
    if on == On::Bus {
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
