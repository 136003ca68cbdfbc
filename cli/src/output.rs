//! What a user reads: results on standard output, everything else on standard error, as text or as JSON.

use std::fmt;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use ioemul::Gprs;
use serde::Serialize;

use crate::failure::{Failure, Kind, Result};
use crate::values::FLAGS;

/// The version of the JSON objects.
pub const JSON_VERSION: u32 = 1;

/// What stands out in a result.
pub const CHANGED: Style = Style::new().bold();
/// What is beside the point.
pub const FAINT: Style = Style::new().dimmed();
/// What is there, and what is not.
pub const AVAILABLE: Style = AnsiColor::Green.on_default();
pub const MISSING: Style = AnsiColor::Yellow.on_default();
const ERROR: Style = AnsiColor::Red.on_default().bold();

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
}

impl Output {
    /// A line of a result.
    pub fn line(self, line: impl fmt::Display) -> Result {
        written(writeln!(anstream::stdout().lock(), "{line}"))
    }

    /// Bytes, as they are.
    pub fn bytes(self, bytes: &[u8]) -> Result {
        let mut stdout = io::stdout().lock();
        written(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// An object of JSON, on a line.
    pub fn object(self, object: &impl Serialize) -> Result {
        let text = serde_json::to_string(object).map_err(|error| Failure::new(Kind::Io, error.to_string()))?;
        let mut stdout = io::stdout().lock();
        written(writeln!(stdout, "{text}"))
    }

    /// A remark, for whoever sits in front of it.
    pub fn remark(self, remark: impl fmt::Display) {
        if !self.quiet && !self.json {
            let _ = writeln!(anstream::stderr().lock(), "{FAINT}{}{FAINT:#}", printable_lines(&remark.to_string()));
        }
    }

    /// What went wrong.
    pub fn failure(self, failure: &Failure) {
        if failure.kind == Kind::ClosedPipe {
            return;
        }
        if self.json {
            let mut object = serde_json::Map::new();
            object.insert("v".to_owned(), JSON_VERSION.into());
            object.insert("error".to_owned(), failure.kind.name().into());
            object.extend(failure.facts.clone());
            object.insert("message".to_owned(), failure.message.clone().into());
            match self.object(&object) {
                Err(unwritten) if unwritten.kind != Kind::ClosedPipe => {}
                _ => return,
            }
        }
        // Also where the object cannot be written.
        let _ = writeln!(anstream::stderr().lock(), "{ERROR}error:{ERROR:#} {}", printable_lines(&failure.message));
    }
}

fn written(result: io::Result<()>) -> Result {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(Kind::ClosedPipe, ""),
        _ => Failure::io("standard output", &error),
    })
}

/// Sixteen words as a map of those that are not 0.
pub fn words(gprs: &Gprs) -> serde_json::Map<String, serde_json::Value> {
    let named = Gprs::NAMES.iter().zip(gprs.to_words()).filter(|(_, word)| *word != 0);
    named.map(|(name, word)| ((*name).to_owned(), format!("{word:#x}").into())).collect()
}

/// `rax=0x5a rbx=0x1`, of the words that are not 0.
pub fn assignments(gprs: &Gprs) -> String {
    let named = Gprs::NAMES.iter().zip(gprs.to_words()).filter(|(_, word)| *word != 0);
    named.map(|(name, word)| format!("{name}={word:#x}")).collect::<Vec<_>>().join(" ")
}

/// Bytes, two digits each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The flags that are set: `CF ZF`.
pub fn flags(rflags: u64) -> String {
    let set = FLAGS.iter().filter(|(_, bit)| rflags >> bit & 1 == 1).map(|(name, _)| name.to_uppercase());
    set.collect::<Vec<_>>().join(" ")
}

/// A text of somebody else's, with control characters escaped: a terminal obeys some of them.
pub fn printable(text: &str) -> String {
    escaped(text, |letter| letter.is_control())
}

/// The same, of a text that may have several lines.
pub fn printable_lines(text: &str) -> String {
    escaped(text, |letter| letter.is_control() && !matches!(letter, '\n' | '\t'))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut printable, letter| {
        match is_escaped(letter) {
            true => printable.extend(letter.escape_default()),
            false => printable.push(letter),
        }
        printable
    })
}

/// A time that is read at a glance: `9.8 us`, `1.25 ms`.
pub fn time(duration: std::time::Duration) -> String {
    let ns = duration.as_nanos();
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}
