//! The command `ioemul` as its users start it, from a shell: the machine is made ready, then a script of `hw/guest/cli` runs.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::process::{Command, Stdio};

use hw_shared::{Chipset, HANDLER_ADDRESS, Params, SMI_PORT, Script, handler};
use ioemul::IoPrivilegeLevel;

use crate::{engines, machine};

/// The name by which a script starts this program to learn which SMIs there were: `smis` prints each code and how often the
/// handler has seen it, `smis CODE` only how often it has seen that code, and `smis forget` sets all counters to 0.
pub const SMIS: &str = "smis";

/// While the low word of pc-testdev's latch, at this port, holds the code of an SMI below the byte [`HOLD`], the handler does not
/// come back: the processor is away until the script, on the other one, writes something else there.
const LATCH: u16 = 0xe0;
/// See [`LATCH`].
const HOLD: u8 = 0x51;
/// Where in SMRAM a counter of four bytes lies for each code.
const COUNTERS: usize = HANDLER_ADDRESS + 0x6000;

// Runs ahead of the handler, which sets up its own registers; RSM loads all of them from the save state. The code is read from the port: QEMU raises an SMI at the end of its translated block, and by then a
// program that was not made for that, like Debian's `outb`, may have something else in AL.
core::arch::global_asm!(
    ".pushsection .rodata.ioemul_hw_counter, \"a\"",
    ".code16",
    ".global ioemul_hw_counter_start, ioemul_hw_counter_end",
    "ioemul_hw_counter_start:",
    "mov ax, cs",
    "mov ds, ax",
    "in al, {smi_port}",
    "movzx bx, al",
    "shl bx, 2",
    "inc dword ptr [bx + {counters}]",
    "mov cl, al",
    "mov ch, {hold}",
    "2:",
    "in ax, {latch}",
    "cmp ax, cx",
    "je 2b",
    "ioemul_hw_counter_end:",
    ".code64",
    ".popsection",
    smi_port = const SMI_PORT,
    counters = const COUNTERS - HANDLER_ADDRESS + 0x8000,
    hold = const HOLD,
    latch = const LATCH,
);

unsafe extern "C" {
    static ioemul_hw_counter_start: u8;
    static ioemul_hw_counter_end: u8;
}

/// The code that counts SMIs and falls through to what is behind it.
fn counter() -> &'static [u8] {
    // SAFETY: the two symbols delimit one read-only object of this program.
    unsafe {
        let (start, end) = (&raw const ioemul_hw_counter_start, &raw const ioemul_hw_counter_end);
        std::slice::from_raw_parts(start, end.offset_from(start) as usize)
    }
}

/// Runs a script, which reports on the console. In a negative control the SMM handler neither counts nor answers.
pub fn run(console: &File, script: Script, params: &Params) -> Result<(), Box<dyn Error>> {
    // For the shell's `<(…)`, and for terminals.
    symlink("/proc/self/fd", "/dev/fd")?;
    std::fs::create_dir("/dev/pts")?;
    std::fs::create_dir("/busybox")?;
    machine::mount("devpts", "/dev/pts");
    // A kernel that is locked down gives nobody a port, and so does not let a handler be installed.
    if script != Script::LockedDown {
        let code: Vec<u8> = match params.control {
            false => counter().iter().copied().chain(handler(false)).collect(),
            true => handler(true).collect(),
        };
        with_smram(|memory| {
            memory.write_all_at(&[0; 4 * 256], COUNTERS as u64)?;
            memory.write_all_at(&code, HANDLER_ADDRESS as u64)
        })?;
    }
    let mut shell = Command::new("/bin/bash");
    shell
        .arg(format!("/cli/{}.sh", script.name()))
        .env_clear()
        .envs([("PATH", "/bin:/busybox"), ("SHELL", "/bin/bash")]);
    let status = shell.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console.try_clone()?).status()?;
    if status.success() { Ok(()) } else { Err(format!("the script: {status}").into()) }
}

/// What a script sees of the handler's counters.
pub fn print_smis() {
    let wanted = std::env::args().nth(1);
    let mut counters = [0; 4 * 256];
    let work = |memory: &File| match wanted.as_deref() {
        Some("forget") => memory.write_all_at(&counters, COUNTERS as u64),
        _ => memory.read_exact_at(&mut counters, COUNTERS as u64),
    };
    with_smram(work).expect("root may look into SMRAM");
    for (code, count) in counters.chunks_exact(4).enumerate() {
        let (code, count) = (format!("{code:#04x}"), u32::from_le_bytes(count.try_into().expect("four bytes")));
        match &wanted {
            Some(wanted) if *wanted == code => println!("{count}"),
            None if count != 0 => println!("{code} {count}"),
            _ => {}
        }
    }
}

/// Does something with SMRAM, which the machine leaves open to us, and lets SMIs happen.
fn with_smram<T>(work: impl FnOnce(&File) -> io::Result<T>) -> Result<T, Box<dyn Error>> {
    // Not a moment longer: the shell would inherit it.
    let _privilege = IoPrivilegeLevel::acquire()?;
    let mut engines = engines::all()?;
    let engine = &mut *engines[0].engine;
    let chipset = Chipset::probe(engine).map_err(|_| "PCI configuration space faults")?;
    chipset.enable_smi(engine).map_err(|_| "the chipset's ports fault")?;
    Ok(machine::with_smram(chipset, engine, work)?)
}
