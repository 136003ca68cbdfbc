//! What a command is about to do, known before it does it: what `-n` prints, and what the interlocks judge.

use ioemul::{
    Direction, Gprs, Hazard, IoInsn, IoPortOwners, PortAccess, PortPermissions, PortSet, Quirk, QuirkTable, Width,
};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::failure::{Failure, Result};
use crate::firmware::Firmware;
use crate::output::{self, JSON_VERSION};
use crate::values::On;

/// The accesses that a command is going to make.
#[derive(Debug, Default)]
pub struct Plan {
    /// The whole of it in a phrase, for the prompt.
    pub title: String,
    /// The accesses in a sentence, where they are too many to be read one by one.
    pub detail: Option<String>,
    /// Those that are known beforehand, in their order.
    pub steps: Vec<(IoInsn, Gprs)>,
    /// Others, that depend on what the first ones answer.
    pub further: Vec<PortAccess>,
    /// Ports that the command is made for: no hazard to it.
    pub own: PortSet,
    /// Ports that it writes although a driver has them, since whatever is written there does not matter.
    pub scratch: PortSet,
    /// Whether the user has to be asked, on the hardware.
    pub asks: bool,
    /// Whether this machine has to be named.
    pub is_scan: bool,
    /// A quirk beside those of the machine.
    pub settle: Option<Quirk>,
    /// The CPU, unless the user names one.
    pub cpu: Option<usize>,
    /// For whoever may try without privilege: some hypervisors answer.
    pub tries: bool,
    /// Where SMIs are raised.
    pub firmware: Option<Firmware>,
}

impl Plan {
    pub fn new(title: impl Into<String>, steps: Vec<(IoInsn, Gprs)>) -> Self {
        Self { title: title.into(), steps, ..Self::default() }
    }

    /// The quirks that stand for some accesses: the machine's, on the machine, and the user's.
    pub fn quirks(&self, context: &Context) -> QuirkTable {
        // A recording has an access and what its quirk did as one record.
        if matches!(context.globals.on, On::Trace(_)) {
            return QuirkTable::none();
        }
        let of_machine = match context.is_hardware() {
            true => QuirkTable::for_platform(&context.dmi()),
            false => QuirkTable::none(),
        };
        self.settle.iter().chain(of_machine.as_slice()).copied().collect()
    }

    /// The quirk of an access.
    fn quirk_of(&self, context: &Context, insn: IoInsn, gprs: &Gprs) -> Option<Quirk> {
        self.quirks(context).as_slice().iter().find(|quirk| quirk.applies(insn, gprs.rax, gprs.rdx)).copied()
    }

    /// Every access, those of quirks too.
    fn accesses(&self, context: &Context) -> Vec<PortAccess> {
        let quirks = self.quirks(context);
        let mut accesses = Vec::new();
        for (insn, gprs) in &self.steps {
            match quirks.as_slice().iter().find(|quirk| quirk.applies(*insn, gprs.rax, gprs.rdx)) {
                Some(quirk) => accesses.extend(quirk.accesses(*insn)),
                None => accesses.push(PortAccess::of(*insn, gprs)),
            }
        }
        accesses.extend(&self.further);
        accesses
    }

    /// The ports of all accesses.
    pub fn ports(&self, context: &Context) -> PortPermissions {
        let mut ports = PortPermissions::default();
        for access in self.accesses(context) {
            let set = match access.direction {
                Direction::In => &mut ports.read,
                Direction::Out => &mut ports.write,
            };
            set.allow(access.port..=last_of(&access));
        }
        ports
    }

    /// Refuses what is dangerous on the hardware, unless the user has said that it is meant.
    pub fn interlocks(&self, context: &Context) -> Result {
        let accesses = self.accesses(context);
        accesses.iter().try_for_each(|access| self.hazards(context, access))?;
        if let Ok(owners) = IoPortOwners::read() {
            accesses.iter().try_for_each(|access| self.busy(context, &owners, access))?;
        }
        if self.is_scan && !context::is_virtual() {
            let product = context.dmi().product_name;
            let product = product.trim();
            if context.globals.host.as_deref().map(str::trim) != Some(product) {
                let message = format!(
                    "a scan of a real machine calls firmware that may do anything: say which machine is meant, by --host {product:?}"
                );
                return Err(Failure::refused("host", message).fact("product", product));
            }
        }
        Ok(())
    }

    fn hazards(&self, context: &Context, access: &PortAccess) -> Result {
        let hazard_at = |port: u16| {
            let hazard = Hazard::at(port, Width::Byte)?;
            let acts = access.direction == Direction::Out || hazard.reading_acts;
            let is_permitted = |set: &PortSet| set.permits(port, Width::Byte);
            (acts && !is_permitted(&self.own) && !is_permitted(&context.allow_hazard)).then_some((port, hazard))
        };
        let refused: Vec<_> = ports_of(access).filter_map(hazard_at).collect();
        let Some((first, hazard)) = refused.first() else { return Ok(()) };
        let all: PortSet = refused.iter().map(|(port, _)| *port..=*port).collect();
        let message = format!("{access} is refused: {hazard} (--allow-hazard {all} permits it)");
        Err(Failure::refused("hazard", message).fact("port", format!("{first:#x}")))
    }

    /// Refuses to write where a driver does.
    fn busy(&self, context: &Context, owners: &IoPortOwners, access: &PortAccess) -> Result {
        let is_permitted =
            |port| context.allow_busy.permits(port, Width::Byte) || self.scratch.permits(port, Width::Byte);
        if access.direction == Direction::In {
            return Ok(());
        }
        for port in ports_of(access).filter(|port| !is_permitted(*port)) {
            let Some(owner) = owners.owner(port, Width::Byte) else { continue };
            let message = format!(
                "{access} is refused: port {port:#x} belongs to the driver \"{}\" (/proc/ioports; --allow-busy {port:#x} permits it)",
                output::printable(&owner.name)
            );
            return Err(Failure::refused("busy", message)
                .fact("port", format!("{port:#x}"))
                .fact("owner", &*owner.name));
        }
        Ok(())
    }

    /// What `-n` prints.
    pub fn print(&self, context: &Context) -> Result {
        let (ports, cpu) = (self.ports(context), context.globals.cpu.or(self.cpu));
        let quirk = |insn, gprs: &Gprs| self.quirk_of(context, insn, gprs).map(|quirk| quirk.name());
        if context.out.json {
            let access = |(insn, gprs): &(IoInsn, Gprs)| {
                json!({
                    "insn": insn.to_string(),
                    "bytes": bytes(*insn),
                    "port": format!("{:#x}", insn.port(gprs)),
                    "before": output::words(gprs),
                    "quirk": quirk(*insn, gprs),
                })
            };
            return context.out.object(&json!({
                "v": JSON_VERSION,
                "on": context.globals.on.to_string(),
                "dry_run": true,
                "accesses": self.steps.iter().map(access).collect::<Vec<Value>>(),
                "opens": { "read": ports.read.to_string(), "write": ports.write.to_string() },
                "cpu": cpu,
                "refused": self.refusal(context),
            }));
        }
        context.out.line(format_args!("{}, on {}: nothing is done", self.title, context.globals.on))?;
        self.lines(context).into_iter().try_for_each(|line| context.out.line(line))?;
        if context.is_hardware() {
            context.out.line(format_args!("  opens for reading: {}", ports.read))?;
            context.out.line(format_args!("  opens for writing: {}", ports.write))?;
            match cpu {
                Some(cpu) => context.out.line(format_args!("  runs on CPU {cpu}"))?,
                None => context.out.line("  runs on any CPU")?,
            }
        }
        match self.refusal(context) {
            Some(refusal) => context.out.line(format_args!("  would be refused: {refusal}")),
            None => Ok(()),
        }
    }

    /// The accesses, to be read by a person: each with its registers, and with what a quirk does besides.
    pub fn lines(&self, context: &Context) -> Vec<String> {
        const SHOWN: usize = 32;
        let mut lines = Vec::new();
        for (insn, gprs) in self.steps.iter().take(SHOWN) {
            lines.push(format!("  {:<6} {:<14} port {:#x}", bytes(*insn), insn.to_string(), insn.port(gprs)));
            let registers = output::assignments(gprs);
            lines.push(format!("         {}", if registers.is_empty() { "all registers 0" } else { &registers }));
            if let Some(quirk) = self.quirk_of(context, *insn, gprs) {
                let others = quirk.accesses(*insn).skip(1).map(|access| access.to_string()).collect::<Vec<_>>();
                let then = if others.is_empty() { String::new() } else { format!(", then {}", others.join(", ")) };
                lines.push(format!("         by the quirk {:?}{then}", quirk.name()));
            }
        }
        if let more @ 1.. = self.steps.len().saturating_sub(SHOWN) {
            lines.push(format!("  … and {more} more accesses"));
        }
        lines.extend(self.further.iter().map(|access| format!("  and, as the answers want it, {access}")));
        lines
    }

    fn refusal(&self, context: &Context) -> Option<String> {
        let own = self.firmware.as_ref().and_then(|firmware| firmware.refusal.clone());
        let by_interlock = || context.is_hardware().then(|| self.interlocks(context).err()).flatten();
        own.or_else(|| by_interlock().map(|failure| failure.message))
    }
}

fn ports_of(access: &PortAccess) -> impl Iterator<Item = u16> + use<> {
    access.port..=last_of(access)
}

/// The last port of an access; of one that would run past the last port of all, which no emulator makes, that one.
fn last_of(access: &PortAccess) -> u16 {
    access.port.saturating_add(u16::from(access.width.bytes()) - 1)
}

/// An instruction's bytes in 64-bit code, in hexadecimal.
pub fn bytes(insn: IoInsn) -> String {
    let (bytes, len) = insn.encode();
    bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect()
}
