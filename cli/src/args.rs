//! The command line: every subcommand and option, and what `--help` says of it.

use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ioemul::{CodeSize, PortSet};

use crate::values::{Code, IndexData, Number, On, PortWidth, Settle, TABLE_REGISTERS};

/// Port I/O with all registers in view.
///
/// SMI handlers, the VMware backdoor and vendor mailboxes read and write every general-purpose register at the instant of a
/// port access. `ioemul` loads fifteen registers and the status flags, makes the access, and shows what came back.
#[derive(Debug, Parser)]
#[command(name = "ioemul", version, after_help = EXAMPLES, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  An SMI on device models, without privilege and without hardware:
    ioemul --on bus:pc smi send 0x42 rcx=0x10
  What would be done on this machine, without doing it:
    ioemul -n smi send 0x5a rbx=1
  The SMI itself:
    sudo ioemul smi send 0x5a rbx=1
  Any instruction with any registers:
    ioemul exec 'in eax, dx' eax=0x564d5868 ecx=10 edx=0x5658

Exit status:
  0  done
  1  the access failed
  2  usage
  3  refused by an interlock
  4  no privilege
  5  an expectation or a replay did not hold";

/// What every subcommand takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Where accesses go: `hardware`, `bus:pc` (device models) or `trace:FILE` (a recording, replayed)
    /// [default: the environment variable IOEMUL_ON, or the hardware]
    #[arg(long = "on", global = true, value_name = "WHERE")]
    pub given_on: Option<On>,
    /// What that comes to: set by `Cli::read`.
    #[arg(skip)]
    pub on: On,
    /// Run on this CPU; `smi` and `dell` run on CPU 0 otherwise
    #[arg(long, global = true, value_name = "N")]
    pub cpu: Option<usize>,
    /// Record every access in a trace file, for `trace replay`
    #[arg(long, global = true, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print the bare result and errors, and nothing else
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Do not ask before a write to the hardware
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Permit accesses to these ports although they may do harm; several may be given
    #[arg(long, global = true, value_name = "PORT")]
    pub allow_hazard: Vec<PortSet>,
    /// Permit writes to these ports although a driver owns them; several may be given
    #[arg(long, global = true, value_name = "PORT")]
    pub allow_busy: Vec<PortSet>,
    /// The DMI product name of this machine: `smi scan` wants it on real hardware
    #[arg(long, global = true, value_name = "NAME")]
    pub host: Option<String>,
    /// Read the ACPI FADT, which names the SMI port, from this file and not from this machine
    #[arg(long, global = true, value_name = "FILE")]
    pub fadt: Option<PathBuf>,
    /// Set by `Cli::read` from `-n`, which each subcommand has by itself.
    #[arg(skip)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read a port
    In {
        /// The port, and the width: `0x71`, `0xe0.w`, `0xcf8.l`
        port: PortWidth,
        /// Read it so many times, a line each
        #[arg(short = 'n', value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
    },
    /// Write a port
    Out {
        /// The port, and the width: `0x80`, `0xe0.w`, `0xcf8.l`
        port: PortWidth,
        /// The value to write, decimal or, with 0x, hexadecimal
        value: Number,
    },
    /// Read or write a register behind an index and a data port
    Ix {
        /// The two ports: `0x70:0x71`, `0x2e:0x2f`
        #[arg(value_name = "INDEX:DATA")]
        ports: IndexData,
        /// The number of the register, which is written to the index port
        #[arg(value_name = "REG")]
        register: Number,
        /// The value to write; without it, the register is read
        value: Option<Number>,
    },
    /// Read the clock, or read and write CMOS memory
    Cmos {
        /// `date`, `dump`, or the number of a byte, 0 to 127
        #[arg(value_name = "date|dump|REG")]
        what: CmosWhat,
        /// The value to write; without it, the byte is read
        value: Option<Number>,
    },
    /// Execute one IN, OUT, INS or OUTS with registers of your choice
    Exec(Exec),
    /// Raise SMIs, and see what firmware does to the registers
    #[command(subcommand, arg_required_else_help = true)]
    Smi(Smi),
    /// Ask Dell's SMM firmware: fans, temperatures, any call
    #[command(subcommand, arg_required_else_help = true)]
    Dell(Dell),
    /// Ask a VMware host: version, guestinfo variables, any call
    #[command(subcommand, arg_required_else_help = true)]
    Vmware(Vmware),
    /// Look at recorded accesses, and replay them
    #[command(subcommand, arg_required_else_help = true)]
    Trace(Trace),
    /// Say who owns ports, which are hazardous, and which have a quirk
    Ports {
        /// Which ports, as `0x60-0x6f,0xcf8`; all by default
        set: Option<PortSet>,
    },
    /// Say whether this machine permits port I/O, and if not, why not
    Check,
    /// Decode an I/O instruction
    Decode {
        /// Its bytes, in hexadecimal: `66ed`
        bytes: String,
        /// The code segment that it stands in: 16, 32 or 64 bits
        #[arg(long, default_value = "64")]
        mode: Mode,
    },
    /// Show the machine code that surrounds an instruction when it is executed
    Listing(Listing),
    /// Write the stubs of all instructions as assembler source and C header, for a hypervisor
    Table(Table),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page: `ioemul man | man -l -`
    Man {
        /// The subcommand, as `smi scan`; without it, the page of `ioemul`
        subcommand: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct Exec {
    /// The instruction (`in eax, dx`), unless --hex has it; then registers: `rax=0x5 bl=7`
    #[arg(value_name = "INSN|REG=VALUE", required_unless_present = "hex")]
    pub words: Vec<String>,
    /// The instruction as its bytes, in hexadecimal: `66ed`
    #[arg(long, value_name = "BYTES")]
    pub hex: Option<String>,
    /// The code segment that the bytes stand in: 16, 32 or 64 bits
    #[arg(long, requires = "hex", default_value = "64")]
    pub mode: Mode,
    /// The file that OUTS reads, or INS writes; `-` is standard input or output
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub expect: Expect,
}

#[derive(Debug, Args)]
pub struct Expect {
    /// What a register has to hold afterwards, or exit status 5; several may be given
    #[arg(long, value_name = "REG=VALUE[/MASK]")]
    pub expect: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Smi {
    /// Raise one SMI
    Send {
        /// The byte to write to the SMI command port, which raises the SMI: `0x5a`
        code: Code,
        /// The byte to write to the status port first
        #[arg(long, value_name = "BYTE", default_value = "0x00")]
        data: Number,
        /// Registers and flags, 0 unless given: `rbx=1 cf=1`
        #[arg(value_name = "REG=VALUE")]
        registers: Vec<String>,
        /// What follows the write: an OUT of AL to this port, `read-back`, or `carry` (wait until CF is clear)
        #[arg(long, value_name = "PORT|read-back|carry")]
        settle: Option<Settle>,
        /// Send the code although it is one of ACPI's
        #[arg(long)]
        also_acpi: bool,
        #[command(flatten)]
        expect: Expect,
    },
    /// Raise an SMI for each code; each is in the log before it is raised
    Scan(Scan),
    /// Show the SMI ports, the codes that ACPI reserves, and how SMIs are counted
    Info,
    /// Show how many SMIs this CPU has taken
    Count,
}

#[derive(Debug, Args)]
pub struct Scan {
    /// The codes, as `0x00-0x7f,0xa0`; all by default
    #[arg(long, value_name = "SET", default_value = "0x00-0xff")]
    pub codes: String,
    /// The bytes for the status port; each code is sent with each of them
    #[arg(long, value_name = "SET", default_value = "0x00")]
    pub data: String,
    /// What registers hold that are not given: `recognizable` values, `zero` or `random:SEED`
    #[arg(long, value_name = "HOW", default_value = "recognizable")]
    pub fill: crate::values::Fill,
    /// Registers that are the same in each SMI: `rbx=1`
    #[arg(value_name = "REG=VALUE")]
    pub registers: Vec<String>,
    /// The log, a trace file: each access is on the disk before it is made
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// Go on with the scan of an existing log, after its last SMI
    #[arg(long)]
    pub resume: bool,
    /// Send ACPI's codes too, and ACPI_ENABLE last of all
    #[arg(long)]
    pub also_acpi: bool,
}

#[derive(Debug, Subcommand)]
pub enum Dell {
    /// Show the signature, the fans and the temperatures
    Info,
    /// Make one call
    Call {
        /// The function, in AX: `0x10a3`
        #[arg(value_parser = crate::values::word)]
        ax: u16,
        /// Registers, 0 unless given: `ebx=1`
        #[arg(value_name = "REG=VALUE")]
        registers: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Vmware {
    /// Show the host's version, and what it says of this virtual machine
    Info,
    /// Send a GuestRPC request, and print the reply
    Rpc {
        /// The request: `info-get guestinfo.ip`
        request: String,
    },
    /// Print a guestinfo variable
    Get {
        /// Its name, with or without `guestinfo.`
        key: String,
    },
    /// Set a guestinfo variable
    Set {
        /// Its name, with or without `guestinfo.`
        key: String,
        /// Its value
        value: String,
    },
    /// Make one call of the backdoor
    Call {
        /// The command, in CX
        command: Number,
        /// Registers, 0 unless given: `ebx=1`
        #[arg(value_name = "REG=VALUE")]
        registers: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Trace {
    /// Print the accesses of a trace, whole or cut off
    Show {
        /// The file
        file: PathBuf,
    },
    /// Count the accesses of a trace by port
    Stat {
        /// The file
        file: PathBuf,
    },
    /// Compare two traces (exit status 5 if they differ)
    Diff {
        /// One trace file
        a: PathBuf,
        /// The other
        b: PathBuf,
    },
    /// Run a command of `ioemul` again, answered from a trace (exit status 5 if it does something else)
    Replay {
        /// The file
        file: PathBuf,
        /// Take the records in any order: each access is answered by the first one that fits
        #[arg(long)]
        lenient: bool,
        /// The command, without `ioemul`: `-- smi send 0x5a`
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct Listing {
    /// The instruction: `out 0x80, al`
    #[arg(default_value = "in eax, dx", value_name = "INSN")]
    pub insn: String,
    #[command(flatten)]
    pub stubs: Stubs,
    /// With a platform's quirk in place of the instruction, by its name (`list` prints the names)
    #[arg(long, value_name = "NAME")]
    pub quirk: Option<String>,
}

/// How stubs are built.
#[derive(Debug, Args)]
pub struct Stubs {
    /// How a stub switches registers: CallRet, Compact, Inline, or Rop (for measurements only)
    #[arg(long, value_name = "LAYOUT", default_value = "CallRet")]
    pub layout: String,
    /// The structure that holds the registers; FILE has the name and the offset of each: `rax 80`
    #[arg(long, value_name = TABLE_REGISTERS, default_value = "gprs")]
    pub registers: String,
}

#[derive(Debug, Args)]
pub struct Table {
    #[command(flatten)]
    pub stubs: Stubs,
    /// Start each stub with ENDBR64
    #[arg(long)]
    pub endbr64: bool,
    /// Return by a jump to this symbol, a return thunk
    #[arg(long, value_name = "SYMBOL")]
    pub return_thunk: Option<String>,
    /// Put INT3 after each final branch
    #[arg(long)]
    pub int3: bool,
    /// Zero the registers that hold values of the guest when a stub returns
    #[arg(long)]
    pub scrub: bool,
    /// For code that runs in ring 3, not in a kernel
    #[arg(long)]
    pub ring3: bool,
    /// Include a platform's quirk, by its name; several may be given (`list` prints the names)
    #[arg(long, value_name = "NAME")]
    pub quirk: Vec<String>,
    /// Leave out INS and OUTS
    #[arg(long)]
    pub no_strings: bool,
    /// What global names start with
    #[arg(long, default_value = "ioemul")]
    pub prefix: String,
    /// The section that the code goes to
    #[arg(long, default_value = ".text")]
    pub section: String,
    /// The file for the assembler source
    #[arg(short = 'o', value_name = "TABLE.S", required_unless_present = "quirk")]
    pub output: Option<PathBuf>,
    /// The file for the C header
    #[arg(long, value_name = "TABLE.h", required_unless_present = "quirk")]
    pub header: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    #[value(name = "16")]
    Bits16,
    #[value(name = "32")]
    Bits32,
    #[value(name = "64")]
    Bits64,
}

impl From<Mode> for CodeSize {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Bits16 => CodeSize::Bits16,
            Mode::Bits32 => CodeSize::Bits32,
            Mode::Bits64 => CodeSize::Bits64,
        }
    }
}

/// What `cmos` is asked for.
#[derive(Clone, Copy, Debug)]
pub enum CmosWhat {
    Date,
    Dump,
    Byte(u8),
}

impl std::str::FromStr for CmosWhat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "date" => Ok(Self::Date),
            "dump" => Ok(Self::Dump),
            _ => match text.parse::<Number>()?.0 {
                byte @ 0..=0x7f => Ok(Self::Byte(byte as u8)),
                _ => Err("CMOS memory has bytes 0 to 127 (0x7f)".to_owned()),
            },
        }
    }
}

impl Cli {
    /// The whole tree, with `-n` in each command that has no other use for that letter.
    pub fn tree() -> clap::Command {
        with_dry_run(Self::command())
    }

    /// Parses arguments, the first of which is the program's name.
    pub fn read(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, clap::Error> {
        let arguments: Vec<_> = arguments.into_iter().collect();
        let matches = Self::tree().try_get_matches_from(&arguments)?;
        if let Some(name) = given_twice(&arguments) {
            let message =
                format!("the argument '{name}' cannot be used multiple times, before and behind a subcommand");
            return Err(Self::tree().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.globals.on = match cli.globals.given_on.take() {
            Some(on) => on,
            None => on_by_variable()?,
        };
        let mut level = Some(&matches);
        while let Some(matches) = level {
            cli.globals.dry_run |= matches.get_flag(DRY_RUN);
            level = matches.subcommand().map(|(_, matches)| matches);
        }
        Ok(cli)
    }
}

/// Where accesses go by IOEMUL_ON. One that is empty says nothing.
fn on_by_variable() -> Result<On, clap::Error> {
    let value = std::env::var_os("IOEMUL_ON").unwrap_or_default();
    match value.to_str() {
        Some("") => Ok(On::Hardware),
        Some(text) => text.parse().map_err(|why: String| (text.to_owned(), why)),
        None => Err((value.to_string_lossy().into_owned(), "it is not UTF-8".to_owned())),
    }
    .map_err(|(text, why)| {
        let message = format!("the environment variable IOEMUL_ON is '{text}': {why}");
        Cli::tree().error(clap::error::ErrorKind::ValueValidation, message)
    })
}

/// The name of a global option that is there twice. At one level of subcommands clap refuses that; of two levels it takes the inner one
/// without a word.
fn given_twice(arguments: &[std::ffi::OsString]) -> Option<&'static str> {
    let own: Vec<_> =
        arguments.iter().take_while(|argument| *argument != "--").map(|argument| argument.to_string_lossy()).collect();
    let count = |name: &str| {
        own.iter().filter(|argument| argument.split_once('=').map_or(&***argument, |(name, _)| name) == name).count()
    };
    ["--on", "--cpu", "--record", "--host", "--fadt"].into_iter().find(|name| count(name) > 1)
}

const DRY_RUN: &str = "dry_run";

fn with_dry_run(command: clap::Command) -> clap::Command {
    let is_taken = command.get_arguments().any(|argument| argument.get_short() == Some('n'));
    let dry_run = Arg::new(DRY_RUN)
        .long("dry-run")
        .action(ArgAction::SetTrue)
        .help_heading("Global options")
        .help("Say what would be done, and touch nothing");
    let command = command.arg(if is_taken { dry_run } else { dry_run.short('n') });
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, with_dry_run))
}
