//! What the host tells a guest, on the kernel command line.

use core::fmt;

use crate::checks::Machine;
use crate::cli::Script;

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Runs the table of checks: those that this machine is for. In a negative control, all of them.
    Checks(Machine),
    /// Runs the reference script and prints what every access changed.
    Record,
    /// As [`Mode::Record`], but by hand in place of the library: under Xen.
    RecordByHand,
    /// Runs the endless mix on all engines in turn and compares it with the model.
    Soak,
    /// As [`Mode::Soak`], with the SMM mailbox as the only device.
    SoakSmm,
    /// As [`Mode::RecordByHand`], then what is left of CF by SMIs of all kinds; in a negative control also an access whose stub
    /// faults in the hypervisor.
    XenHost,
    /// Two processors make accesses by hand at the same time.
    XenHammer,
    /// Counts instructions: QEMU's clock has to count them.
    XenCount,
    /// Runs a shell script of command lines of `ioemul`.
    Cli(Script),
}

/// The parameters of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// What to do.
    pub mode: Mode,
    /// Where random registers come from.
    pub seed: u64,
    /// [`Mode::Checks`]: how many SMIs with random registers each engine gets. [`Mode::Record`]: how many random accesses
    /// follow those of the table. [`Mode::Soak`]: after how many accesses to stop; 0 for no such limit.
    pub count: u64,
    /// [`Mode::Soak`] under Linux: after how many seconds to stop; 0 for no such limit.
    pub seconds: u64,
    /// A negative control. [`Mode::Checks`]: privilege is granted before anything runs, the SMM handler answers another
    /// command, the broken stubs are whole. [`Mode::Soak`]: one of the engines is broken. [`Mode::Cli`]: the SMM handler answers
    /// another command.
    pub control: bool,
    /// The machine says that it is a ProLiant.
    pub proliant: bool,
}

const MODES: [(Mode, &str); 13] = [
    (Mode::Checks(Machine::Usual), "checks"),
    (Mode::Checks(Machine::LockedDown), "checks-locked-down"),
    (Mode::Checks(Machine::Busy), "checks-busy"),
    (Mode::Record, "record"),
    (Mode::RecordByHand, "record-by-hand"),
    (Mode::Soak, "soak"),
    (Mode::SoakSmm, "soak-smm"),
    (Mode::XenHost, "xen-host"),
    (Mode::XenHammer, "xen-hammer"),
    (Mode::XenCount, "xen-count"),
    (Mode::Cli(Script::Usual), "cli-usual"),
    (Mode::Cli(Script::Physical), "cli-physical"),
    (Mode::Cli(Script::LockedDown), "cli-locked-down"),
];

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, seed, count, seconds, control, proliant } = *self;
        let mode = MODES.iter().find(|(known, _)| *known == mode).map_or("", |(_, name)| name);
        write!(f, "ioemul.mode={mode} ioemul.seed={seed} ioemul.count={count} ioemul.seconds={seconds} ")?;
        write!(f, "ioemul.control={} ioemul.proliant={}", u8::from(control), u8::from(proliant))
    }
}

impl Params {
    /// Reads them back from a command line; words of others are passed over.
    pub fn parse(command_line: &str) -> Self {
        let value = |name: &str| {
            let words = command_line.split_ascii_whitespace();
            let mut values =
                words.filter_map(|word| word.strip_prefix("ioemul.")?.strip_prefix(name)?.strip_prefix('='));
            values.next().unwrap_or("")
        };
        let number = |name| value(name).parse().unwrap_or(0);
        let mode = value("mode");
        Self {
            mode: MODES
                .iter()
                .find(|(_, known)| *known == mode)
                .map_or(Mode::Checks(Machine::Usual), |(mode, _)| *mode),
            seed: number("seed"),
            count: number("count"),
            seconds: number("seconds"),
            control: number("control") != 0,
            proliant: number("proliant") != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_the_command_line() {
        extern crate std;
        for (mode, _) in MODES {
            let params = Params { mode, seed: u64::MAX, count: 3, seconds: 0, control: true, proliant: false };
            assert_eq!(Params::parse(&std::format!("quiet panic=-1 {params} -- x")), params, "{params}");
        }
    }
}
