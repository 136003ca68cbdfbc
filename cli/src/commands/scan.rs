//! `smi scan`: an SMI for each code, each in the log before it is raised.

use std::path::Path;

use ioemul::trace::{PartialTrace, RecordedError};
use ioemul::{Gprs, IoInsn, PortSet};
use serde_json::{Value, json};

use crate::args::Scan;
use crate::commands::smi::Sequence;
use crate::context::Context;
use crate::failure::{Failure, Result, first_of};
use crate::files::{self, Earlier, is_same};
use crate::firmware::Firmware;
use crate::machine::{Access, Log, Machine};
use crate::output::{self, CHANGED, JSON_VERSION};
use crate::plan::Plan;
use crate::values::{self, Registers};

/// What is sent, and what is not.
struct Course {
    sequences: Vec<Sequence>,
    skipped: Vec<(u8, String)>,
}

/// What has come of it.
#[derive(Default)]
struct Tally {
    sent: usize,
    answered: Vec<u8>,
    lost: Vec<u8>,
}

pub fn run(context: &Context, arguments: &Scan) -> Result {
    if context.globals.record.as_deref().is_some_and(|record| is_same(record, &arguments.log)) {
        return Err(Failure::usage(
            "--record and --log name the same file: the log is a trace of all accesses as well",
        ));
    }
    let firmware = context.firmware()?;
    let course = Course::new(arguments, &firmware).map_err(Failure::usage)?;
    let mut tally = Tally::default();
    let earlier = arguments.resume.then(|| Earlier::read(&arguments.log)).transpose()?;
    let done = match &earlier {
        Some(Earlier { log, .. }) => {
            is_of_here(context, &firmware, &arguments.log, log)?;
            course.done(&arguments.log, log, &mut tally)?
        }
        None => 0,
    };
    let rest = &course.sequences[done..];
    let earlier = match (earlier, rest) {
        (Some(earlier), []) => {
            end(context, &arguments.log, earlier)?;
            return course.summary(context, arguments, &tally);
        }
        (earlier, _) => earlier,
    };
    let plan = Plan {
        own: firmware.own_ports(),
        asks: true,
        is_scan: true,
        cpu: Some(0),
        firmware: Some(firmware.clone()),
        detail: Some(detail(arguments, rest)),
        ..Plan::new(
            format!(
                "scan of {} SMI{}, port {:#x} ({})",
                rest.len(),
                if rest.len() == 1 { "" } else { "s" },
                firmware.port,
                firmware.source
            ),
            steps(rest),
        )
    };
    let log: Log<'_> = match earlier {
        Some(earlier) => Box::new(|| earlier.resume(&arguments.log)),
        None => Box::new(|| files::for_log(&arguments.log, &context.header(Some(&firmware)))),
    };
    let Some(mut machine) = Machine::open_with_log(context, &plan, Some(log))? else {
        return course.print_skipped(context);
    };
    if let Some(last) = done.checked_sub(1).and_then(|last| course.sequences.get(last)) {
        context.out.remark(format_args!("continues after code {:#04x}, data {:#04x}", last.code, last.data));
    }
    // What cannot be printed ends no scan: ACPI_ENABLE may be still to come, and the log has it all.
    let mut printed = match context.out.json || context.out.quiet {
        true => Ok(()),
        false => context
            .out
            .line(format_args!("{}, on {}", plan.title, context.globals.on))
            .and_then(|()| context.out.line("code data       time  SMIs  CF     changed")),
    };
    for smi in rest {
        let (status, command) = smi.raise(&mut machine)?;
        tally.add(smi.code, &command.before, &command.after);
        printed = printed.and_then(|()| print(context, smi, &status, &command, &firmware));
    }
    let closed = machine.close();
    first_of([printed.and_then(|()| course.summary(context, arguments, &tally)), closed])
}

/// Ends a log that has all of the scan, if nothing did so before.
fn end(context: &Context, file: &Path, earlier: Earlier) -> Result {
    context.name_backend();
    context.out.remark("nothing is left to send: the log has all of it");
    if earlier.log.is_whole || context.globals.dry_run {
        return Ok(());
    }
    earlier.resume(file)?.finish().map(drop).map_err(|error| Failure::io(file.display(), &error))
}

/// What is sent, to be read at a glance.
fn detail(arguments: &Scan, sequences: &[Sequence]) -> String {
    let set = |bytes: &mut dyn Iterator<Item = u8>| bytes.map(|byte| byte.into()..=byte.into()).collect::<PortSet>();
    let codes = set(&mut sequences.iter().map(|smi| smi.code));
    let data = set(&mut sequences.iter().map(|smi| smi.data));
    let registers = match arguments.registers.join(" ") {
        none if none.is_empty() => "none given".to_owned(),
        given => given,
    };
    format!("codes {codes}; data {data}; registers: {registers}, the others {}", arguments.fill)
}

/// All accesses, in their order.
fn steps(sequences: &[Sequence]) -> Vec<(IoInsn, Gprs)> {
    let Some((first, others)) = sequences.split_first() else { return Vec::new() };
    first.first().into_iter().chain(others.iter().flat_map(|smi| [smi.status, smi.command])).collect()
}

impl Course {
    fn new(arguments: &Scan, firmware: &Firmware) -> std::result::Result<Self, String> {
        let mut codes = values::byte_set(&arguments.codes).map_err(|why| format!("--codes: {why}"))?;
        let data = values::byte_set(&arguments.data).map_err(|why| format!("--data: {why}"))?;
        let mut skipped = Vec::new();
        if arguments.also_acpi {
            // The machine is to be left as ACPI has it, and not to be without for longer than one SMI.
            let last = ["ACPI_DISABLE", "ACPI_ENABLE"];
            let place = |code: &u8| firmware.name_of(*code).and_then(|name| last.iter().position(|last| *last == name));
            codes.extend(firmware.acpi_enable().filter(|enable| !codes.contains(enable)));
            codes.sort_by_key(|code| place(code).map_or(0, |place| place + 1));
        } else {
            skipped.extend(firmware.reserved.iter().filter(|(code, _)| codes.contains(code)).cloned());
            codes.retain(|code| firmware.name_of(*code).is_none());
        }
        let mut sequences = Vec::new();
        for code in codes {
            for &data in &data {
                let fill = arguments.fill.gprs(u64::from(code) << 8 | u64::from(data));
                let registers = Registers::parse(&arguments.registers, fill)?;
                sequences.push(Sequence::new(firmware, code, data, registers, None)?);
            }
        }
        if sequences.is_empty() {
            return Err(format!(
                "--codes {}: they are ACPI's, and nothing is left to send (--also-acpi sends them)",
                arguments.codes
            ));
        }
        Ok(Self { sequences, skipped })
    }

    /// How many of the sequences an earlier log has, which must be of the same scan.
    fn done(&self, file: &Path, earlier: &PartialTrace, tally: &mut Tally) -> Result<usize> {
        let mut done = 0;
        let records = earlier.trace.records().iter().enumerate();
        for (number, record) in records {
            let Some(smi) = self.check(file, done, number + 1, record.insn, &record.before)? else { continue };
            match record.error {
                Some(RecordedError::DidNotReturn) => tally.lose(smi.code),
                _ => tally.add(smi.code, &record.before, &record.after),
            }
            done += 1;
        }
        if let Some(pending) = &earlier.pending {
            let number = earlier.trace.records().len() + 1;
            if let Some(smi) = self.check(file, done, number, pending.insn, &pending.before)? {
                tally.lose(smi.code);
                done += 1;
            }
        }
        Ok(done)
    }

    /// The sequence of which this access is the second one; `None` for a first one.
    fn check(&self, file: &Path, done: usize, number: usize, insn: IoInsn, before: &Gprs) -> Result<Option<&Sequence>> {
        let smi = self.sequences.get(done);
        let is = |step: fn(&Sequence) -> (IoInsn, Gprs)| smi.is_some_and(|smi| step(smi) == (insn, *before));
        match (is(|smi| smi.command), is(|smi| smi.status)) {
            (true, _) => Ok(smi),
            (_, true) => Ok(None),
            _ => Err(Failure::usage(format!(
                "{}: access {number} is `{insn}` with {}, which this scan would not make there: --resume needs the \
                 same codes, data, registers and fill as before",
                file.display(),
                output::assignments(before)
            ))),
        }
    }

    fn print_skipped(&self, context: &Context) -> Result {
        if self.skipped.is_empty() || context.out.json {
            return Ok(());
        }
        let codes: Vec<_> = self.skipped.iter().map(|(code, name)| format!("{code:#04x} {name}")).collect();
        context.out.line(format_args!("skipped: {} (--also-acpi sends them)", codes.join(", ")))
    }

    fn summary(&self, context: &Context, arguments: &Scan, tally: &Tally) -> Result {
        let out = context.out;
        let hex = |codes: &[u8]| codes.iter().map(|code| format!("{code:#04x}")).collect::<Vec<_>>();
        if out.json {
            let skipped =
                self.skipped.iter().map(|(code, name)| json!({ "code": format!("{code:#04x}"), "name": name }));
            return out.object(&json!({
                "v": JSON_VERSION,
                "on": context.globals.on.to_string(),
                "scan": {
                    "sent": tally.sent,
                    "answered": hex(&tally.answered),
                    "did_not_return": hex(&tally.lost),
                    "skipped": skipped.collect::<Vec<Value>>(),
                    "log": arguments.log.display().to_string(),
                },
            }));
        }
        if out.quiet {
            return Ok(());
        }
        let answered = match hex(&tally.answered).join(", ") {
            none if none.is_empty() => "none changed a register or a flag".to_owned(),
            codes => format!("{} changed registers or flags: {codes}", tally.answered.len()),
        };
        out.line(format_args!("{} sent, {answered}", tally.sent))?;
        self.print_skipped(context)?;
        if !tally.lost.is_empty() {
            out.line(format_args!("did not return: {}", hex(&tally.lost).join(", ")))?;
        }
        out.line(format_args!("log: {}", output::printable(&arguments.log.display().to_string())))
    }
}

impl Tally {
    fn add(&mut self, code: u8, before: &Gprs, after: &Gprs) {
        self.sent += 1;
        if before != after && self.answered.last() != Some(&code) {
            self.answered.push(code);
        }
    }

    fn lose(&mut self, code: u8) {
        self.sent += 1;
        self.lost.push(code);
    }
}

fn print(context: &Context, smi: &Sequence, status: &Access, command: &Access, firmware: &Firmware) -> Result {
    if context.out.json {
        return context.out.object(&smi.object(context, status, command, firmware));
    }
    if command.before == command.after {
        return Ok(()); // nobody answered
    }
    let time = command.duration.map_or_else(|| "-".to_owned(), output::time);
    let smis = command.smis.map_or_else(|| "-".to_owned(), |smis| format!("+{smis}"));
    let carry = if command.after.rflags & Gprs::CF == 0 { "clear" } else { "set" };
    let changed: Vec<_> = command.after.changed(&command.before).map(|(name, ..)| name).collect();
    let changed = if changed.len() > 15 { "every register, and flags".to_owned() } else { changed.join(" ") };
    let (code, data) = (smi.code, smi.data);
    context
        .out
        .line(format_args!("{code:#04x} {data:#04x} {time:>10} {smis:>5}  {carry:<5}  {CHANGED}{changed}{CHANGED:#}"))
}

/// Refuses to go on with a log of another machine: it would be one of neither.
fn is_of_here(context: &Context, firmware: &Firmware, file: &Path, earlier: &PartialTrace) -> Result {
    let (there, here) = (earlier.trace.header(), context.header(Some(firmware)));
    if (&there.on, &there.machine) == (&here.on, &here.machine) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{}: its SMIs were sent on {}, and this is {}: --resume goes on where the scan began",
        file.display(),
        output::printable(format!("{} {}", there.on, there.machine).trim()),
        format!("{} {}", here.on, here.machine).trim()
    )))
}
