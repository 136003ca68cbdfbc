//! Events for the `tracing` ecosystem.

use core::fmt;

use tracing::{Level, event};

use super::{Attempt, Events, Outcome};
use crate::{DeviceError, Gprs, IoFault};

/// Emits a `tracing` event for each access, with the target `ioemul`.
///
/// | message | level | fields |
/// |---|---|---|
/// | `port access` | DEBUG | `insn`, `port`, `changed`, `duration` |
/// | `port denied` | WARN | `insn`, `port` |
/// | `port fault`, `port refused` | WARN | `insn`, `port`, `error`, `duration` |
///
/// `changed` lists the registers that the access changed, as `rbx: 0x7 → 0x8`. The data of INS and OUTS is not shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracing;

impl Events for Tracing {
    const TIMED: bool = true;

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        event!(
            target: "ioemul",
            Level::DEBUG,
            insn = %attempt.insn,
            port = format_args!("{:#06x}", attempt.port),
            changed = %Changed(attempt.gprs, outcome.gprs),
            duration = ?outcome.duration,
            "port access"
        );
    }

    fn denied(&mut self, attempt: &Attempt<'_>) {
        event!(
            target: "ioemul",
            Level::WARN,
            insn = %attempt.insn,
            port = format_args!("{:#06x}", attempt.port),
            "port denied"
        );
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        event!(
            target: "ioemul",
            Level::WARN,
            insn = %attempt.insn,
            port = format_args!("{:#06x}", attempt.port),
            error = %fault,
            duration = ?outcome.duration,
            "port fault"
        );
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        event!(
            target: "ioemul",
            Level::WARN,
            insn = %attempt.insn,
            port = format_args!("{:#06x}", attempt.port),
            error = %why,
            duration = ?outcome.duration,
            "port refused"
        );
    }
}

struct Changed<'a>(&'a Gprs, &'a Gprs);

impl fmt::Display for Changed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, before, after) in self.1.changed(self.0) {
            write!(f, "{separator}{name}: {before:#x} → {after:#x}")?;
            separator = ", ";
        }
        Ok(())
    }
}
