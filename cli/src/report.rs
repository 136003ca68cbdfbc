//! What came of an access, for people and for programs.

use std::time::Duration;

use ioemul::{Direction, Gprs};
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::failure::{Failure, Kind, Result};
use crate::machine::Access;
use crate::output::{self, CHANGED, FAINT, JSON_VERSION};
use crate::values::Expectation;

/// What a program is told of an access: the schema is docs/cli.md's.
pub fn object(context: &Context, access: &Access) -> Map<String, Value> {
    let Access { insn, before, after, data, duration, smis } = access;
    let changed: Vec<_> = after.changed(before).collect();
    let after_words: Map<String, Value> =
        changed.iter().map(|(name, _, is)| ((*name).to_owned(), format!("{is:#x}").into())).collect();
    let object = json!({
        "v": JSON_VERSION,
        "on": context.globals.on.to_string(),
        "insn": insn.to_string(),
        "port": format!("{:#x}", insn.port(before)),
        "before": output::words(before),
        "after": after_words,
        "changed": changed.iter().map(|(name, ..)| *name).collect::<Vec<_>>(),
        "cf": after.rflags & Gprs::CF != 0,
        "ns": duration.map(|duration| duration.as_nanos() as u64),
        "smi_count": smis,
    });
    let Value::Object(mut object) = object else { unreachable!("it is written as an object") };
    if insn.direction == Direction::In && !insn.is_string() {
        object.insert("value".to_owned(), format!("{:#x}", value(access)).into());
    }
    if insn.is_string() {
        object.insert("data".to_owned(), output::hex(data).into());
    }
    object
}

/// What an IN read, or an OUT wrote.
pub fn value(access: &Access) -> u32 {
    let gprs = if access.insn.direction == Direction::In { &access.after } else { &access.before };
    gprs.rax as u32 & access.insn.width.mask()
}

/// The registers of an access: those that changed, and how many did not.
pub fn registers(context: &Context, title: &str, access: &Access) -> Result {
    let (before, after) = (&access.before, &access.after);
    let out = context.out;
    if out.quiet {
        let all = Gprs::NAMES.iter().zip(after.to_words()).map(|(name, word)| format!("{name}={word:#x}"));
        return out.line(all.collect::<Vec<_>>().join(" "));
    }
    let place = if context.is_hardware() { String::new() } else { format!(", on {}", context.globals.on) };
    out.line(format_args!("{title}{place}{}", circumstances(access)))?;
    let changed: Vec<_> = after.changed(before).filter(|(name, ..)| *name != "rflags").collect();
    for (name, was, is) in &changed {
        out.line(format_args!("  {name:<3} {was:#018x} -> {CHANGED}{is:#018x}{CHANGED:#}"))?;
    }
    if after.rflags != before.rflags {
        let text = |rflags| match output::flags(rflags) {
            none if none.is_empty() => "none".to_owned(),
            flags => flags,
        };
        out.line(format_args!("  flags {} -> {CHANGED}{}{CHANGED:#}", text(before.rflags), text(after.rflags)))?;
    }
    match 15 - changed.len() {
        0 => Ok(()),
        1 => out.line(format_args!("  {FAINT}(1 register unchanged){FAINT:#}")),
        unchanged => out.line(format_args!("  {FAINT}({unchanged} registers unchanged){FAINT:#}")),
    }
}

/// `: 9.8 us, SMI count +1, CF set`
fn circumstances(access: &Access) -> String {
    let mut parts = Vec::new();
    parts.extend(access.duration.map(output::time));
    parts.extend(access.smis.map(|smis| format!("SMI count +{smis}")));
    parts.push(format!("CF {}", if access.after.rflags & Gprs::CF == 0 { "clear" } else { "set" }));
    format!(": {}", parts.join(", "))
}

/// Whether an access took so much longer than one to the port beside it that an SMI explains it. To enter SMM and to leave it takes
/// microseconds; a port access takes one, more or less.
pub fn is_smi_by_time(access: Duration, yardstick: Duration) -> bool {
    access > Duration::from_micros(3) && access > yardstick * 3
}

/// Exit status 5 unless all of it holds.
pub fn expect(expectations: &[Expectation], gprs: &Gprs) -> Result {
    let unmet: Vec<_> = expectations.iter().filter_map(|expectation| expectation.unmet(gprs)).collect();
    match unmet.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Kind::Expectation, unmet.join("; ")).fact("unmet", unmet)),
    }
}
