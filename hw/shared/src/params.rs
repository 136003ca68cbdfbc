//! What the host tells a guest, on the kernel command line.

use core::fmt;

/// The parameters of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Where random registers come from.
    pub seed: u64,
    /// How many SMIs with random registers each engine gets.
    pub smis: u64,
    /// A negative control: privilege is granted before anything runs, and the SMM handler answers another command.
    pub control: bool,
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ioemul.seed={} ioemul.smis={} ioemul.control={}", self.seed, self.smis, self.control as u8)
    }
}

impl Params {
    /// Reads them back from a command line; words of others are passed over.
    pub fn parse(command_line: &str) -> Self {
        let number = |name: &str| {
            let words = command_line.split_ascii_whitespace();
            let mut values = words.filter_map(|word| word.strip_prefix("ioemul.")?.strip_prefix(name)?.strip_prefix('='));
            values.next().and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Self { seed: number("seed"), smis: number("smis"), control: number("control") != 0 }
    }
}
