//! The reference script: the accesses of the table, then as many random ones as wanted. Every engine that there is runs
//! it from the first access to the last, so that the registers can be compared.

use core::fmt;

use ioemul::{Gprs, IoInsn};

use crate::checks::{CHECKS, Kind};
use crate::engine::{Engine, Refused};
use crate::mix::{Devices, Mix};
use crate::params::Params;
use crate::rng::Rng;

/// Calls `visit` with the name, the instruction and the registers of each access.
pub fn for_each_access(params: &Params, mut visit: impl FnMut(&'static str, IoInsn, Gprs)) {
    for check in CHECKS {
        if let Kind::Script(steps) = check.kind {
            let mut rng = Rng::new(params.seed);
            for step in steps {
                visit(check.name, step.insn, step.before(&mut rng));
            }
        }
    }
    let mut mix = Mix::new(params.seed, Devices::All);
    for _ in 0..params.count {
        let (insn, gprs) = mix.next();
        visit("random", insn, gprs);
    }
}

/// Runs the script and writes a line for each access: `ioemul|access|<number>|<source>|<what changed>`.
pub fn record(
    source: &dyn fmt::Display,
    engine: &mut dyn Engine,
    params: &Params,
    out: &mut dyn fmt::Write,
) -> fmt::Result {
    let mut number = 0;
    let mut result = Ok(());
    for_each_access(params, |_, insn, before| {
        let mut gprs = before;
        let outcome = engine.execute(insn, &mut gprs);
        result = result.and_then(|()| match outcome {
            Ok(()) => writeln!(out, "ioemul|access|{number}|{source}|{}", Changes(&before, &gprs)),
            Err(Refused) => writeln!(out, "ioemul|access|{number}|{source}|refused"),
        });
        number += 1;
    });
    result
}

/// RFLAGS, and the other registers that differ.
struct Changes<'a>(&'a Gprs, &'a Gprs);

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rflags={:x}", self.1.rflags)?;
        for ((name, before), after) in Gprs::NAMES.iter().zip(self.0.to_words()).zip(self.1.to_words()).take(15) {
            if before != after {
                write!(f, " {name}={after:x}")?;
            }
        }
        Ok(())
    }
}

/// The inverse: the registers after an access, from those before and a line's last field. None: refused, or garbage.
pub fn apply_changes(before: &Gprs, changes: &str) -> Option<Gprs> {
    let mut words = before.to_words();
    for change in changes.split_ascii_whitespace() {
        let (name, value) = change.split_once('=')?;
        let register = Gprs::NAMES.iter().position(|known| *known == name)?;
        words[register] = u64::from_str_radix(value, 16).ok()?;
    }
    Some(Gprs::from_words(words))
}
