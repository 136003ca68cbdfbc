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
    #[arg(long, global = true, env = "IOEMUL_ON", value_name = "WHERE", default_value = "hardware")]
    pub on: On,
    /// The CPU to run on; 0 by default for `smi` and `dell`
    #[arg(long, global = true, value_name = "N")]
    pub cpu: Option<usize>,
    /// Record every access to a trace file
    #[arg(long, global = true, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print the bare result and errors, and nothing else
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Do not ask before an access to the hardware
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Permit an access to these hazardous ports
    #[arg(long, global = true, value_name = "PORT")]
    pub allow_hazard: Vec<PortSet>,
    /// Permit writes to these ports, which a driver owns
    #[arg(long, global = true, value_name = "PORT")]
    pub allow_busy: Vec<PortSet>,
    /// The DMI product name of the machine that may be scanned
    #[arg(long, global = true, value_name = "NAME")]
    pub host: Option<String>,
    /// A file with the ACPI FADT, in place of this machine's
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
        /// How often
        #[arg(short = 'n', value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
    },
    /// Write a port
    Out {
        /// The port, and the width: `0x80`, `0xe0.w`, `0xcf8.l`
        port: PortWidth,
        /// What is written, decimal or hexadecimal
        value: Number,
    },
    /// Read or write a register behind an index and a data port
    Ix {
        /// The two ports: `0x70:0x71`, `0x2e:0x2f`
        #[arg(value_name = "INDEX:DATA")]
        ports: IndexData,
        /// The number of the register
        #[arg(value_name = "REG")]
        register: Number,
        /// What is written; without it, the register is read
        value: Option<Number>,
    },
    /// Read the clock, or read and write CMOS memory
    Cmos {
        /// `date`, `dump`, or the number of a byte, 0 to 127
        #[arg(value_name = "date|dump|REG")]
        what: CmosWhat,
        /// What is written to the byte
        value: Option<Number>,
    },
    /// Execute one instruction with registers
    Exec(Exec),
    /// Raise SMIs, and see what firmware does to the registers
    #[command(subcommand, arg_required_else_help = true)]
    Smi(Smi),
    /// Speak to Dell's SMM firmware
    #[command(subcommand, arg_required_else_help = true)]
    Dell(Dell),
    /// Speak to a VMware host
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
        /// The size of the code that it stands in
        #[arg(long, default_value = "64")]
        mode: Mode,
    },
    /// Show the machine code that an access runs through
    Listing(Listing),
    /// Write the table of all stubs as assembler source and C header
    Table(Table),
    /// Write a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual page
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
    /// The instruction as bytes
    #[arg(long, value_name = "BYTES")]
    pub hex: Option<String>,
    /// The size of the code that the bytes stand in
    #[arg(long, requires = "hex", default_value = "64")]
    pub mode: Mode,
    /// Where OUTS has its data from, or INS puts it; `-` is standard input or output
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub expect: Expect,
}

#[derive(Debug, Args)]
pub struct Expect {
    /// What a register has to hold afterwards (exit status 5 if it does not)
    #[arg(long, value_name = "REG=VALUE[/MASK]")]
    pub expect: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Smi {
    /// Raise one SMI
    Send {
        /// The code that is written to the SMI command port, one byte: `0x5a`
        code: Code,
        /// The byte that is written to the status port before
        #[arg(long, value_name = "BYTE", default_value = "0x00")]
        data: Number,
        /// Registers: `rbx=1`
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
    /// Raise an SMI for each code, and log what comes back
    Scan(Scan),
    /// Show the SMI command port, the codes that ACPI has, and how SMIs are counted
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
    /// What the registers hold that are not given: `recognizable`, `zero` or `random:SEED`
    #[arg(long, value_name = "HOW", default_value = "recognizable")]
    pub fill: crate::values::Fill,
    /// Registers that are the same in each SMI: `rbx=1`
    #[arg(value_name = "REG=VALUE")]
    pub registers: Vec<String>,
    /// Where each access is written before it is made
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// Go on behind the last SMI of the log
    #[arg(long)]
    pub resume: bool,
    /// Send ACPI's codes too, and ACPI_ENABLE last of all
    #[arg(long)]
    pub also_acpi: bool,
}

#[derive(Debug, Subcommand)]
pub enum Dell {
    /// Ask for the signature, fans and temperatures
    Info,
    /// Make one call
    Call {
        /// The function, in AX: `0x10a3`
        #[arg(value_parser = crate::values::word)]
        ax: u16,
        /// Registers: `ebx=1`
        #[arg(value_name = "REG=VALUE")]
        registers: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Vmware {
    /// Ask the host for its version and what it says of this virtual machine
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
        /// Registers: `ebx=1`
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
        /// The one
        a: PathBuf,
        /// The other
        b: PathBuf,
    },
    /// Run a command of `ioemul` on a trace (exit status 5 if it does something else)
    Replay {
        /// The file
        file: PathBuf,
        /// Answer each access from the first record that fits, in any order
        #[arg(long)]
        lenient: bool,
        /// The command, without `ioemul`: `-- smi send 0x5a`
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct Listing {
    /// The instruction
    #[arg(default_value = "in eax, dx", value_name = "INSN")]
    pub insn: String,
    #[command(flatten)]
    pub stubs: Stubs,
    /// A quirk that stands for the instruction, by its name (`list` names them)
    #[arg(long, value_name = "NAME")]
    pub quirk: Option<String>,
}

/// How stubs are built.
#[derive(Debug, Args)]
pub struct Stubs {
    /// How a stub switches registers: CallRet, Compact, Inline (or Rop, in listings)
    #[arg(long, value_name = "LAYOUT", default_value = "CallRet")]
    pub layout: String,
    /// Where the registers are
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
    /// The symbol of the return thunk
    #[arg(long, value_name = "SYMBOL")]
    pub return_thunk: Option<String>,
    /// INT3 behind each final branch
    #[arg(long)]
    pub int3: bool,
    /// Zero what the caller does not get back
    #[arg(long)]
    pub scrub: bool,
    /// For code that runs in ring 3
    #[arg(long)]
    pub ring3: bool,
    /// A quirk, by its name; several may be given (`list` names them)
    #[arg(long, value_name = "NAME")]
    pub quirk: Vec<String>,
    /// Leave out INS and OUTS
    #[arg(long)]
    pub no_strings: bool,
    /// What global names start with
    #[arg(long, default_value = "ioemul")]
    pub prefix: String,
    /// The section of the code
    #[arg(long, default_value = ".text")]
    pub section: String,
    /// The assembler source
    #[arg(short = 'o', value_name = "TABLE.S", required_unless_present = "quirk")]
    pub output: Option<PathBuf>,
    /// The C header
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
                _ => Err("CMOS memory has the bytes 0 to 0x7f".to_owned()),
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
        let mut level = Some(&matches);
        while let Some(matches) = level {
            cli.globals.dry_run |= matches.get_flag(DRY_RUN);
            level = matches.subcommand().map(|(_, matches)| matches);
        }
        Ok(cli)
    }
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
