//! `ports` and `check`: what is known of this machine without touching it.

use std::fmt;

use ioemul::{Hazard, IoPermission, IoPortOwners, PortSet, PrivilegeError, QuirkTable, Width};
use serde_json::json;

use crate::context::{self, Context};
use crate::failure::{Failure, Result};
use crate::machine::Counter;
use crate::output::{AVAILABLE, JSON_VERSION, MISSING, printable};

pub fn ports(context: &Context, set: Option<PortSet>) -> Result {
    let wanted = set.clone().unwrap_or_else(PortSet::all);
    let owners = match context.is_hardware() {
        true => IoPortOwners::read().map_err(|error| crate::failure::sentence(&error)),
        false => Err("bus:pc and traces have no drivers".to_owned()),
    };
    if let Err(why) = &owners {
        context.out.remark(format_args!("owners are not known: {why}"));
    }
    let quirks = match context.is_hardware() {
        true => QuirkTable::for_platform(&context.dmi()),
        false => QuirkTable::none(),
    };
    // What is said of a port; neighbours of which the same is said are one row.
    let about = |port| {
        let entry = owners.as_ref().ok().and_then(|owners| owners.all(port, Width::Byte).last());
        let quirk = quirks.as_slice().iter().find(|quirk| quirk.trigger().port == port);
        let hazard = Hazard::at(port, Width::Byte).map(|hazard| (hazard.device, hazard.reason));
        (entry.map(|entry| (entry.name.as_str(), entry.is_driver())), hazard, quirk.map(|quirk| quirk.name()))
    };
    let mut rows = Vec::new();
    for range in wanted.ranges() {
        for port in range {
            let said = about(port);
            match rows.last_mut() {
                Some((first, last, before)) if *before == said && port - 1 == *last && *first <= port => *last = port,
                _ => rows.push((port, port, said)),
            }
        }
    }
    // Ports of which nothing is known are shown to those who asked for them.
    if set.is_none() {
        rows.retain(|(.., (owner, hazard, quirk))| {
            owner.is_some_and(|(_, is_driver)| is_driver) || hazard.is_some() || quirk.is_some()
        });
    }
    if !context.out.json {
        context.out.line("ports            owner             hazard, quirk")?;
    }
    for (first, last, (owner, hazard, quirk)) in rows {
        let ports = if first == last { format!("{first:#x}") } else { format!("{first:#x}-{last:#x}") };
        if context.out.json {
            context.out.object(&json!({
                "v": JSON_VERSION,
                "ports": ports,
                "owner": owner.map(|(name, _)| name),
                "is_driver": owner.map(|(_, is_driver)| is_driver),
                "hazard": hazard.map(|(device, reason)| format!("{device}: {reason}")),
                "quirk": quirk,
            }))?;
            continue;
        }
        let owner = owner.map_or_else(|| "-".to_owned(), |(name, _)| printable(name));
        let mut remarks = Vec::new();
        remarks.extend(hazard.map(|(device, reason)| format!("{device}: {reason}")));
        remarks.extend(quirk.map(|name| format!("quirk {name:?}")));
        let remarks = if remarks.is_empty() { "-".to_owned() } else { remarks.join("; ") };
        context.out.line(format_args!("{ports:<15}  {owner:<16}  {remarks}"))?;
    }
    Ok(())
}

/// Something that an access may need, and whether it is there.
struct Finding {
    what: &'static str,
    is_there: bool,
    /// Without it there is no access at all.
    is_needed: bool,
    words: String,
}

impl Finding {
    fn of<T, E: fmt::Display>(
        what: &'static str,
        result: std::result::Result<T, E>,
        words: impl FnOnce(&T) -> String,
    ) -> Self {
        let (is_there, words) = match &result {
            Ok(found) => (true, words(found)),
            Err(error) => (false, error.to_string()),
        };
        Self { what, is_there, is_needed: false, words }
    }
}

pub fn check(context: &Context) -> Result {
    context.name_backend();
    if !context.is_hardware() {
        let message = format!("{} takes no privilege and no hardware", context.globals.on);
        return match context.out.json {
            true => context.out.object(&object("ports", true, true, &message)),
            false => context.out.line(message),
        };
    }
    let cpu = context.globals.cpu.unwrap_or(0);
    if context.globals.dry_run {
        return context.out.line(format_args!("asks the kernel for port 0x80 and for CPU {cpu}, and gives them back"));
    }
    let permission = IoPermission::acquire(0x80..=0x80);
    let affinity = ioemul::CpuAffinity::pin(cpu);
    let mut findings = vec![
        Finding { is_needed: true, ..Finding::of("ports", permission.as_ref(), |_| "ioperm opens them".to_owned()) },
        Finding::of("CPU", affinity, |_| format!("this thread may run on CPU {cpu}")),
        Finding::of("FADT", firmware(context), |firmware| format!("the SMI command port is {:#x}", firmware.port)),
        Finding::of("SMI count", counted(cpu), Clone::clone),
        Finding::of("owners", IoPortOwners::read().map_err(|error| crate::failure::sentence(&error)), |owners| {
            format!("/proc/ioports has {} entries", owners.entries().len())
        }),
        Finding::of("DMI", named(context), Clone::clone),
    ];
    let kind = if context::is_virtual() {
        "the CPU says that this is a virtual machine"
    } else {
        "the CPU reports no hypervisor"
    };
    findings.push(Finding { what: "machine", is_there: true, is_needed: false, words: kind.to_owned() });
    for Finding { what, is_there, words, is_needed } in &findings {
        if context.out.json {
            context.out.object(&object(what, *is_there, *is_needed, words))?;
            continue;
        }
        let (style, verdict) = if *is_there { (AVAILABLE, "yes") } else { (MISSING, "no ") };
        context.out.line(format_args!("{style}{verdict}{style:#}  {what:<10} {words}"))?;
    }
    match permission {
        Ok(_) => Ok(()),
        Err(error @ PrivilegeError::NoSuchCpu { .. }) => Err(error.into()),
        Err(error) => Err(Failure::from(error)),
    }
}

fn object(what: &str, ok: bool, needed: bool, message: &str) -> serde_json::Value {
    json!({ "v": JSON_VERSION, "check": what, "ok": ok, "needed": needed, "message": message })
}

/// The FADT's part, whose messages begin with its name.
fn firmware(context: &Context) -> std::result::Result<crate::firmware::Firmware, String> {
    context.firmware().map_err(|failure| failure.message.trim_start_matches("FADT: ").to_owned())
}

fn counted(cpu: usize) -> std::result::Result<String, String> {
    let counter = Counter::of_hardware(cpu);
    match (counter.read(), counter) {
        (Some(count), _) => Ok(format!("MSR 0x34 counts them: {count} so far")),
        (None, Counter::None(why) | Counter::Forbidden(why)) => {
            Err(format!("{why}: an SMI is recognized by how long it takes"))
        }
        (None, _) => Err("MSR 0x34 cannot be read any more".to_owned()),
    }
}

fn named(context: &Context) -> std::result::Result<String, &'static str> {
    let name = context.machine();
    let dmi = context.dmi();
    match dmi.product_name.is_empty() && dmi.sys_vendor.is_empty() {
        true => Err("the machine has no DMI strings: quirks of platforms are not applied, and --host cannot name it"),
        false => Ok(name),
    }
}
