//! `trace`: what was recorded, compared, and replayed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use ioemul::trace::{PartialTrace, Record, RecordedError, TraceHeader};
use ioemul::{Direction, Gprs, IoInsn};
use serde_json::{Map, Value, json};

use crate::args::{self, Cli};
use crate::commands;
use crate::context::Context;
use crate::failure::{Failure, Kind, Result, first_of};
use crate::files::partial;
use crate::output::{self, CHANGED, FAINT, JSON_VERSION};
use crate::values::On;

pub fn run(context: &Context, command: args::Trace) -> Result {
    match command {
        args::Trace::Show { file } => show(context, &file),
        args::Trace::Stat { file } => stat(context, &file),
        args::Trace::Diff { a, b } => diff(context, &a, &b),
        args::Trace::Replay { file, lenient, command } => replay(context, &file, lenient, command),
    }
}

fn read(path: &Path) -> Result<PartialTrace> {
    let file = File::open(path).map_err(|error| Failure::io(path.display(), &error))?;
    partial(&file, path)
}

/// What a record did, as an object: the trace's own keys, and the port.
fn object(number: usize, record: &Record) -> Map<String, Value> {
    let mut object = Map::new();
    let after: Map<String, Value> = record
        .after
        .changed(&record.before)
        .map(|(name, _, is)| (name.to_owned(), format!("{is:#x}").into()))
        .collect();
    object.insert("v".to_owned(), JSON_VERSION.into());
    object.insert("record".to_owned(), number.into());
    object.insert("insn".to_owned(), record.insn.to_string().into());
    object.insert("port".to_owned(), format!("{:#x}", record.port()).into());
    object.insert("before".to_owned(), output::words(&record.before).into());
    object.insert("after".to_owned(), after.into());
    if record.insn.is_string() {
        object.insert("data".to_owned(), output::hex(&record.data).into());
    }
    object.insert("error".to_owned(), record.error.as_ref().map(error_text).into());
    object.insert("ns".to_owned(), record.duration.map(|duration| duration.as_nanos() as u64).into());
    object
}

fn error_text(error: &RecordedError) -> String {
    match error {
        RecordedError::Fault(fault) => fault.to_string(),
        RecordedError::Refused(words) => format!("refused: {}", output::printable(words)),
        RecordedError::DidNotReturn => "did not return".to_owned(),
        _ => "ended in an error".to_owned(),
    }
}

fn show(context: &Context, file: &Path) -> Result {
    let PartialTrace { trace, pending, is_whole, .. } = read(file)?;
    let (out, header) = (context.out, trace.header());
    if out.json {
        out.object(&header_object(header, is_whole))?;
        for (index, record) in trace.records().iter().enumerate() {
            out.object(&object(index + 1, record))?;
        }
        if let Some(pending) = &pending {
            let record = trace.records().len() + 1;
            out.object(&json!({
                "v": JSON_VERSION, "record": record, "insn": pending.insn.to_string(), "port": format!("{:#x}", pending.port()),
                "before": output::words(&pending.before), "error": "did not return",
            }))?;
        }
        return Ok(());
    }
    for (name, text) in lines(header) {
        out.line(format_args!("{FAINT}{name:<12} {text}{FAINT:#}"))?;
    }
    for (index, record) in trace.records().iter().enumerate() {
        out.line(format_args!("{}{}", access(index + 1, record.insn, record.port()), outcome(header, record)))?;
    }
    if let Some(pending) = &pending {
        let number = trace.records().len() + 1;
        let code = code_of(header, pending.insn, &pending.before);
        let registers = output::assignments(&pending.before);
        let access = access(number, pending.insn, pending.port());
        out.line(format_args!("{access}  {CHANGED}did not return{CHANGED:#}{code}: {registers}"))?;
    }
    if !is_whole {
        out.line("the file is cut off here: the recording was not finished")?;
    }
    Ok(())
}

fn access(number: usize, insn: IoInsn, port: u16) -> String {
    format!("{number:>5}  {:<16} {port:#06x}", insn.to_string())
}

/// The code of an SMI, if it was one.
fn code_of(header: &TraceHeader, insn: IoInsn, before: &Gprs) -> String {
    let is_smi = insn.direction == Direction::Out && Some(insn.port(before)) == header.smi_port;
    if is_smi { format!(", SMI code {:#04x}", before.rax as u8) } else { String::new() }
}

fn outcome(header: &TraceHeader, record: &Record) -> String {
    let mut text = record.duration.map_or_else(String::new, |duration| format!("  {:>8}", output::time(duration)));
    if let Some(error) = &record.error {
        let (code, registers) = (code_of(header, record.insn, &record.before), output::assignments(&record.before));
        return format!("{text}  {CHANGED}{}{CHANGED:#}{code}: {registers}", error_text(error));
    }
    if record.insn.direction == Direction::Out && !record.insn.is_string() {
        text += &format!("  wrote {:#x}", record.before.rax as u32 & record.insn.width.mask());
    }
    let changed: Vec<_> = record.after.changed(&record.before).map(|(name, _, is)| format!("{name}={is:#x}")).collect();
    if !changed.is_empty() {
        text += &format!("  {}", changed.join(" "));
    }
    if !record.data.is_empty() {
        text += &format!("  {} bytes of data", record.data.len());
    }
    text
}

fn lines(header: &TraceHeader) -> Vec<(&'static str, String)> {
    let smi_port = header.smi_port.map_or_else(String::new, |port| format!("{port:#x} ({})", header.port_source));
    let rows = [
        ("on", header.on.clone()),
        ("machine", header.machine.clone()),
        ("BIOS", header.bios.clone()),
        ("CPU", header.cpu.clone()),
        ("date", header.date.clone()),
        ("SMI port", smi_port),
    ];
    let said = rows.into_iter().filter(|(_, text)| !text.is_empty());
    said.map(|(name, text)| (name, output::printable(&text))).collect()
}

fn header_object(header: &TraceHeader, is_whole: bool) -> Value {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "v": JSON_VERSION,
        "trace": {
            "on": text(&header.on), "machine": text(&header.machine), "bios": text(&header.bios), "cpu": text(&header.cpu),
            "date": text(&header.date), "smi_port": header.smi_port.map(|port| format!("{port:#x}")),
            "port_source": text(&header.port_source),
            "reserved": header.reserved_codes.iter().map(reserved).collect::<Vec<_>>(),
        },
        "is_whole": is_whole,
    })
}

fn reserved((code, name): &(u8, String)) -> Value {
    json!({ "code": format!("{code:#04x}"), "name": name })
}

fn stat(context: &Context, file: &Path) -> Result {
    let PartialTrace { trace, pending, is_whole, .. } = read(file)?;
    #[derive(Default)]
    struct Row {
        count: usize,
        changed: usize,
        errors: usize,
        times: Vec<u128>,
    }
    let mut rows = BTreeMap::<(u16, &str, u8), Row>::new();
    for record in trace.records() {
        let direction = if record.insn.direction == Direction::In { "in" } else { "out" };
        let row = rows.entry((record.port(), direction, record.insn.width.bytes())).or_default();
        row.count += 1;
        row.changed += usize::from(record.after != record.before);
        row.errors += usize::from(record.error.is_some());
        row.times.extend(record.duration.map(|duration| duration.as_nanos()));
    }
    let out = context.out;
    if !out.json {
        out.line("  port  access  bytes   count  changed  errors      median")?;
    }
    for ((port, direction, bytes), mut row) in rows {
        row.times.sort_unstable();
        let median = row.times.get(row.times.len() / 2).copied();
        let Row { count, changed, errors, .. } = row;
        if out.json {
            out.object(&json!({
                "v": JSON_VERSION, "port": format!("{port:#x}"), "access": direction, "bytes": bytes, "count": count,
                "changed": changed, "errors": errors, "median_ns": median.map(|ns| ns as u64),
            }))?;
            continue;
        }
        let median =
            median.map_or_else(|| "-".to_owned(), |ns| output::time(std::time::Duration::from_nanos(ns as u64)));
        out.line(format_args!(
            "{port:#06x}  {direction:<6}  {bytes:>5}  {count:>6}  {changed:>7}  {errors:>6}  {median:>10}"
        ))?;
    }
    match (pending, is_whole) {
        (pending, is_whole) if out.json => out.object(&json!({
            "v": JSON_VERSION, "records": trace.records().len(), "is_whole": is_whole,
            "did_not_return": pending.map(|pending| pending.insn.to_string()),
        })),
        (Some(pending), _) => out.line(format_args!("cut off: `{}` did not return", pending.insn)),
        (None, false) => out.line("cut off"),
        (None, true) => Ok(()),
    }
}

fn diff(context: &Context, a: &Path, b: &Path) -> Result {
    let (one, other) = (read(a)?.trace, read(b)?.trace);
    let what = |record: &Record| {
        let (insn, before, after) = (record.insn, record.before, record.after);
        (insn, before, after, record.data.clone(), record.error.clone())
    };
    let (mut differences, mut printed) = (0, Ok(()));
    for number in 0..one.records().len().max(other.records().len()) {
        let (left, right) = (one.records().get(number), other.records().get(number));
        if left.map(what) == right.map(what) {
            continue;
        }
        differences += 1;
        if context.out.json {
            let side = |record: Option<&Record>| record.map(|record| Value::from(object(number + 1, record)));
            let both = json!({ "v": JSON_VERSION, "record": number + 1, "a": side(left), "b": side(right) });
            printed = printed.and_then(|()| context.out.object(&both));
            continue;
        }
        for (sign, header, record) in [('-', one.header(), left), ('+', other.header(), right)] {
            let Some(record) = record else { continue };
            let access = access(number + 1, record.insn, record.port());
            let before = output::assignments(&record.before);
            let text = outcome(header, &Record { duration: None, ..record.clone() });
            let line = format_args!("{sign} {access}  before: {before}{text}");
            printed = printed.and_then(|()| context.out.line(line));
        }
    }
    let verdict = match differences {
        0 => Ok(()),
        1 => Err(Failure::new(Kind::Expectation, "one record differs")),
        more => Err(Failure::new(Kind::Expectation, format!("{more} records differ"))),
    };
    first_of([printed, verdict])
}

/// Whether a command is one that the records of a trace can be held against.
fn makes_accesses(command: &args::Command) -> bool {
    use args::Command::*;
    match command {
        In { .. } | Out { .. } | Ix { .. } | Cmos { .. } | Exec(_) | Dell(_) | Vmware(_) => true,
        Smi(command) => matches!(command, args::Smi::Send { .. } | args::Smi::Scan(_)),
        _ => false,
    }
}

fn replay(context: &Context, file: &Path, lenient: bool, command: Vec<String>) -> Result {
    let arguments = std::iter::once("ioemul".to_owned()).chain(command).map(OsString::from);
    let inner = Cli::read(arguments).map_err(|error| {
        let text = error.render().to_string();
        Failure::usage(format!("the command to replay: {}", text.trim().trim_start_matches("error: ")))
    })?;
    if !makes_accesses(&inner.command) {
        return Err(Failure::usage(
            "the command to replay makes no access: there is nothing to hold against the trace",
        ));
    }
    let mut globals = inner.globals;
    globals.on = On::Trace(file.to_owned());
    globals.record = globals.record.or_else(|| context.globals.record.clone());
    globals.fadt = globals.fadt.or_else(|| context.globals.fadt.clone());
    globals.json |= context.globals.json;
    globals.quiet |= context.globals.quiet;
    globals.dry_run |= context.globals.dry_run;
    let replayed = Context::new(globals, lenient);
    let result = commands::run(&replayed, inner.command);
    let Some(progress) = replayed.progress.take() else {
        return match result {
            Err(failure) if failure.kind == Kind::Trace => Err(Failure { kind: Kind::Replay, ..failure }),
            result => result,
        };
    };
    let finished = progress.finish();
    let finished = finished.map_err(|error| Failure::new(Kind::Replay, format!("{}: {error}", file.display())));
    first_of([result, finished])?;
    context.out.remark(format_args!("all {} records replayed", progress.replayed()));
    Ok(())
}
