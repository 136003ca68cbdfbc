//! `smi send`, `smi info`, `smi count`.

use ioemul::{CARRY_LIMIT, Gprs, IoInsn, Quirk, Step, Trigger, Width};
use serde_json::json;

use crate::args::Smi;
use crate::context::Context;
use crate::failure::{Failure, Kind, Result, first_of};
use crate::firmware::Firmware;
use crate::machine::{Access, Counter, Machine};
use crate::output::JSON_VERSION;
use crate::pc;
use crate::plan::Plan;
use crate::report;
use crate::values::{Expectation, On, Registers, Settle};

pub fn run(context: &Context, command: &Smi) -> Result {
    match command {
        Smi::Send { code, data, registers, settle, also_acpi, expect } => {
            let data = data.within(8, "the status port").map_err(Failure::usage)? as u8;
            let expectations = Expectation::parse_all(&expect.expect).map_err(Failure::usage)?;
            let registers = Registers::parse(registers, Gprs::default()).map_err(Failure::usage)?;
            let mut firmware = context.firmware()?;
            match firmware.refuse_reserved(code.0, "--also-acpi") {
                Err(failure) if context.globals.dry_run && !also_acpi => firmware.refusal = Some(failure.message),
                Err(failure) if !also_acpi => return Err(failure),
                _ => {}
            }
            let smi = Sequence::new(&firmware, code.0, data, registers, *settle).map_err(Failure::usage)?;
            send(context, firmware, smi, &expectations)
        }
        Smi::Info => info(context),
        Smi::Count => count(context),
        Smi::Scan(_) => unreachable!("scans have a module of their own"),
    }
}

/// One SMI: a byte to the status port, then the code to the command port.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    pub code: u8,
    pub data: u8,
    pub status: (IoInsn, Gprs),
    pub command: (IoInsn, Gprs),
    settle: Option<Settle>,
}

impl Sequence {
    /// A byte each, never a word: some chipsets drop that.
    pub fn new(
        firmware: &Firmware,
        code: u8,
        data: u8,
        mut registers: Registers,
        settle: Option<Settle>,
    ) -> std::result::Result<Self, String> {
        registers.put("al", code.into(), "AL holds the code")?;
        if matches!(settle, Some(Settle::Carry)) {
            registers.put("cf", 1, "`--settle carry` sets CF on the way in")?;
        }
        if matches!(settle, Some(Settle::Port(port)) if u16::from(port) == firmware.port) {
            return Err(format!(
                "--settle {:#x}: that is the SMI command port: whatever the firmware leaves in AL would be sent as another code",
                firmware.port
            ));
        }
        let narrow = u8::try_from(firmware.port).ok().filter(|port| *port < 0xff);
        let by_dx = narrow.is_none() || matches!(settle, Some(Settle::ReadBack));
        if by_dx {
            registers.put("dx", firmware.port.into(), "DX names the port")?;
        }
        let command = registers.gprs;
        let status = Gprs { rax: command.rax & !0xff | u64::from(data), ..command };
        let status = match narrow {
            Some(port) => (IoInsn::out_imm8(Width::Byte, port + 1), status),
            None => {
                let port = firmware.port.checked_add(1).ok_or("the FADT's port has no status port behind it")?;
                (IoInsn::out_dx(Width::Byte), Gprs { rdx: status.rdx & !0xffff | u64::from(port), ..status })
            }
        };
        let insn = match narrow {
            Some(port) if !by_dx => IoInsn::out_imm8(Width::Byte, port),
            _ => IoInsn::out_dx(Width::Byte),
        };
        Ok(Self { code, data, status, command: (insn, command), settle })
    }

    /// What follows the command, as a quirk that stands for it.
    pub fn quirk(&self, firmware: &Firmware) -> Option<Quirk> {
        let trigger = Trigger::out(Width::Byte, firmware.port);
        Some(match self.settle? {
            Settle::Port(port) => {
                // Steps live as long as the program: one allocation, once.
                let steps: &'static [Step] = Box::leak(Box::new([Step::Access, Step::OutAl { port }]));
                Quirk::from_steps("--settle PORT", trigger, steps)
            }
            Settle::ReadBack => Quirk::READ_BACK.at_port(firmware.port),
            Settle::Carry => {
                const STEPS: &[Step] = &[Step::Access, Step::WaitCarryClear { limit: CARRY_LIMIT }];
                Quirk::from_steps("--settle carry", trigger, STEPS)
            }
        })
    }

    /// The accesses of the first SMI: the byte is written twice, so that the time of the second write is one to go by.
    pub fn first(&self) -> Vec<(IoInsn, Gprs)> {
        vec![self.status, self.status, self.command]
    }

    /// Makes both accesses. The first one is the yardstick for the time of the second.
    pub fn raise(&self, machine: &mut Machine<'_>) -> Result<(Access, Access)> {
        if machine.is_cold() {
            machine.execute(self.status.0, self.status.1)?;
        }
        let status = machine.execute(self.status.0, self.status.1)?;
        let command = machine.execute(self.command.0, self.command.1)?;
        Ok((status, command))
    }

    /// What a program is told, beside the access.
    pub fn object(
        &self,
        context: &Context,
        status: &Access,
        command: &Access,
        firmware: &Firmware,
    ) -> serde_json::Value {
        let mut object = report::object(context, command);
        object.insert("code".to_owned(), format!("{:#04x}", self.code).into());
        object.insert("data_byte".to_owned(), format!("{:#04x}", self.data).into());
        object.insert("port_source".to_owned(), firmware.source.clone().into());
        let (happened, by) = happened(status, command).unzip();
        object.insert("smi".to_owned(), happened.into());
        object.insert("smi_by".to_owned(), by.into());
        object.into()
    }
}

/// Whether there was an SMI, and how that is known: by the count; by a register or flag that changed; or by the time that it took.
pub fn happened(status: &Access, command: &Access) -> Option<(bool, &'static str)> {
    match (command.smis, command.before == command.after) {
        (Some(smis), _) => Some((smis > 0, "count")),
        (None, false) => Some((true, "registers")),
        (None, true) => Some((report::is_smi_by_time(command.duration?, status.duration?), "time")),
    }
}

fn send(context: &Context, firmware: Firmware, smi: Sequence, expectations: &[Expectation]) -> Result {
    let mut title =
        format!("SMI {:#04x}, data {:#04x}, port {:#x} ({})", smi.code, smi.data, firmware.port, firmware.source);
    let plan = Plan {
        own: firmware.own_ports(),
        asks: true,
        settle: smi.quirk(&firmware),
        cpu: Some(0),
        firmware: Some(firmware.clone()),
        ..Plan::new(title.clone(), smi.first())
    };
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    if context.is_hardware() {
        title += &format!(", CPU {}", context.globals.cpu.unwrap_or(0));
    }
    let (status, command) = smi.raise(&mut machine)?;
    let printed = if context.out.json {
        context.out.object(&smi.object(context, &status, &command, &firmware))
    } else {
        let printed = report::registers(context, &title, &command);
        if let (Some((is_smi, "time")), Some(took), Some(yardstick)) =
            (happened(&status, &command), command.duration, status.duration)
        {
            let verdict = if is_smi { "an SMI, by its time" } else { "no SMI, by its time" };
            let (took, yardstick) = (crate::output::time(took), crate::output::time(yardstick));
            context
                .out
                .remark(format_args!("{verdict}: {took}, and {yardstick} for the status port ({})", why(&machine)));
        }
        printed
    };
    first_of([printed, machine.close(), report::expect(expectations, &command.after)])
}

/// Why nobody counts.
fn why(machine: &Machine<'_>) -> String {
    match machine.counter() {
        Counter::None(why) | Counter::Forbidden(why) => format!("not counted: {why}"),
        Counter::Msr(_) | Counter::Model(_) => "counted".to_owned(),
    }
}

fn counter(context: &Context) -> Result<Counter> {
    Ok(match &context.globals.on {
        On::Hardware => Counter::of_hardware(context.globals.cpu.unwrap_or(0)),
        On::BusPc => Counter::Model(pc::build().map_err(|error| Failure::new(Kind::Build, error.to_string()))?.1),
        On::Trace(_) => Counter::None("a trace has no SMIs of its own".to_owned()),
    })
}

fn count(context: &Context) -> Result {
    context.name_backend();
    let counter = counter(context)?;
    let count = match (counter.read(), counter) {
        (Some(count), _) => count,
        (None, Counter::Forbidden(why)) => return Err(Failure::new(Kind::NoPrivilege, why).fact("call", "open")),
        (None, Counter::None(why)) => return Err(Failure::no_answer(format!("SMIs are not counted here: {why}"))),
        (None, _) => return Err(Failure::new(Kind::Io, "the count of SMIs cannot be read any more")),
    };
    match context.out.json {
        true => {
            context.out.object(&json!({ "v": JSON_VERSION, "on": context.globals.on.to_string(), "smi_count": count }))
        }
        false => context.out.line(count),
    }
}

fn info(context: &Context) -> Result {
    context.name_backend();
    let firmware = context.firmware()?;
    let counter = counter(context)?;
    let counted = match &counter {
        Counter::Msr(counter) => format!("MSR 0x34 of CPU {}", counter.cpu()),
        Counter::Model(_) => "the model".to_owned(),
        Counter::None(why) | Counter::Forbidden(why) => {
            format!("nobody: {why}; an SMI is recognized by how long it takes")
        }
    };
    if context.out.json {
        let reserved =
            firmware.reserved.iter().map(|(code, name)| json!({ "code": format!("{code:#04x}"), "name": name }));
        return context.out.object(&json!({
            "v": JSON_VERSION,
            "on": context.globals.on.to_string(),
            "smi_port": format!("{:#x}", firmware.port),
            "port_source": firmware.source,
            "reserved": reserved.collect::<Vec<_>>(),
            "smi_count": counter.read(),
            "counted_by": counted,
        }));
    }
    let out = context.out;
    out.line(format_args!("command port  {:#x} ({})", firmware.port, firmware.source))?;
    out.line(format_args!("status port   {:#x}", firmware.port.saturating_add(1)))?;
    for (code, name) in &firmware.reserved {
        out.line(format_args!("reserved      {code:#04x} {name}"))?;
    }
    if firmware.reserved.is_empty() {
        out.line("reserved      no codes")?;
    }
    out.line(format_args!("counted by    {counted}"))?;
    match counter.read() {
        Some(count) => out.line(format_args!("SMIs so far   {count}")),
        None => Ok(()),
    }
}
