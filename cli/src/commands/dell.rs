//! `dell`: the registers of Dell's SMM firmware (protocol of Linux's drivers/hwmon/dell-smm-hwmon.c).

use ioemul::{Gprs, IoInsn, Quirk, Step, Trigger, Width};
use serde_json::json;

use crate::args::Dell;
use crate::context::Context;
use crate::failure::{Failure, Kind, Result, first_of};
use crate::firmware::Firmware;
use crate::machine::{Access, Machine};
use crate::output::JSON_VERSION;
use crate::plan::Plan;
use crate::report;
use crate::values::Registers;

const PORT: u8 = 0xb2;
/// What AL is written to behind each call.
const SETTLE: u8 = 0x84;
const STEPS: &[Step] = &[Step::Access, Step::OutAl { port: SETTLE }];

/// The two calls that answer with `DIAG` in EAX and `DELL` in EDX. One of them is enough.
const SIGNATURES: [u16; 2] = [0xfea3, 0xffa3];
const DIAG: u32 = 0x4449_4147;
const DELL: u32 = 0x4445_4c4c;

const FAN_STATE: u16 = 0x00a3;
const FAN_SPEED: u16 = 0x02a3;
const TEMPERATURE: u16 = 0x10a3;
/// The most fans and sensors that are asked for.
const FANS: u32 = 4;
const SENSORS: u32 = 10;

pub fn run(context: &Context, command: &Dell) -> Result {
    match command {
        Dell::Info => info(context),
        Dell::Call { ax, registers } => {
            let mut registers = Registers::parse(registers, Gprs::default()).map_err(Failure::usage)?;
            registers.put("ax", (*ax).into(), "AX holds the function").map_err(Failure::usage)?;
            keep_off_acpi(context, *ax as u8)?;
            call(context, *ax, registers.gprs)
        }
    }
}

/// AL of a function is what the SMI port gets: it may be none of ACPI's codes. Dell's own are nearly all 0xa3; for others it has to be
/// known which are ACPI's.
fn keep_off_acpi(context: &Context, code: u8) -> Result {
    const USUAL: u8 = 0xa3;
    match context.firmware() {
        Ok(firmware) => firmware.refuse_reserved(code, "`smi send --also-acpi`"),
        Err(failure) if context.is_hardware() && code != USUAL => Err(failure),
        Err(_) => Ok(()),
    }
}

fn step(ax: u16, gprs: Gprs) -> (IoInsn, Gprs) {
    let rax = gprs.rax & !0xffff | u64::from(ax);
    (IoInsn::out_imm8(Width::Byte, PORT), Gprs { rax, ..gprs })
}

fn function(ax: u16, ebx: u32) -> (IoInsn, Gprs) {
    step(ax, Gprs { rbx: ebx.into(), ..Gprs::default() })
}

fn plan(title: String, steps: Vec<(IoInsn, Gprs)>) -> Plan {
    let signatures = SIGNATURES.map(|ax| function(ax, 0));
    let mut own = ioemul::PortSet::from(PORT.into()..=PORT.into());
    own.allow(SETTLE.into()..=SETTLE.into());
    Plan {
        own,
        // The kernel has port 0x84 among the DMA page registers, and its own driver writes it like this.
        scratch: (SETTLE.into()..=SETTLE.into()).into(),
        asks: true,
        settle: Some(Quirk::from_steps("Dell SMM", Trigger::out(Width::Byte, PORT.into()), STEPS)),
        cpu: Some(0),
        // An SMI like others, and the port is the protocol's.
        firmware: Some(Firmware {
            port: PORT.into(),
            source: "Dell's protocol".to_owned(),
            reserved: Vec::new(),
            refusal: None,
        }),
        ..Plan::new(title, signatures.into_iter().chain(steps).collect())
    }
}

/// Makes sure that there is such firmware, before it is told anything else.
fn sign(machine: &mut Machine<'_>) -> Result<u16> {
    for ax in SIGNATURES {
        let (insn, gprs) = function(ax, 0);
        let after = machine.execute(insn, gprs)?.after;
        if (after.rax as u32, after.rdx as u32) == (DIAG, DELL) {
            return Ok(ax);
        }
    }
    Err(Failure::no_answer(
        "no Dell SMM firmware: neither 0xfea3 nor 0xffa3 is answered by DIAG in EAX and DELL in EDX",
    ))
}

/// Why a call failed, if it did. (An answer of EAX as it was is none.)
fn failure(access: &Access) -> Option<&'static str> {
    let Access { before, after, .. } = access;
    match (after.rflags & Gprs::CF, after.rax as u16) {
        (0, 0xffff) => Some("AX is 0xffff"),
        (0, _) if after.rax as u32 == before.rax as u32 => Some("EAX is as it was"),
        (0, _) => None,
        _ => Some("CF is set"),
    }
}

fn call(context: &Context, ax: u16, gprs: Gprs) -> Result {
    let (insn, gprs) = step(ax, gprs);
    let plan = plan(format!("Dell SMM call {ax:#06x}"), vec![(insn, gprs)]);
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    sign(&mut machine)?;
    let access = machine.execute(insn, gprs)?;
    let printed = match context.out.json {
        true => context.out.object(&report::object(context, &access)),
        false => report::registers(context, &plan.title, &access),
    };
    let answer =
        match failure(&access) {
            None => Ok(()),
            Some(why) => Err(Failure::new(Kind::Device, format!("the firmware reports a failure of {ax:#06x}: {why}"))
                .fact("why", why)),
        };
    first_of([printed, machine.close(), answer])
}

fn info(context: &Context) -> Result {
    let fans = (0..FANS).flat_map(|fan| [function(FAN_STATE, fan), function(FAN_SPEED, fan)]);
    let sensors = (0..SENSORS).map(|sensor| function(TEMPERATURE, sensor));
    let plan = plan("ask Dell's SMM firmware for fans and temperatures".to_owned(), fans.chain(sensors).collect());
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let signature = sign(&mut machine)?;
    let mut ask = |ax, number| -> Result<Option<u32>> {
        let (insn, gprs) = function(ax, number);
        let access = machine.execute(insn, gprs)?;
        Ok(failure(&access).is_none().then_some(access.after.rax as u32))
    };
    let mut fans = Vec::new();
    for fan in 0..FANS {
        if let (Some(state), Some(rpm)) = (ask(FAN_STATE, fan)?, ask(FAN_SPEED, fan)?) {
            fans.push((fan, state & 0xff, rpm & 0xffff));
        }
    }
    let mut temperatures = Vec::new();
    for sensor in 0..SENSORS {
        // Sensors that are not there answer by an error, or by a temperature that cannot be.
        if let Some(celsius) = ask(TEMPERATURE, sensor)?.map(|answer| answer & 0xff).filter(|celsius| *celsius < 127) {
            temperatures.push((sensor, celsius));
        }
    }
    machine.close()?;
    let out = context.out;
    if out.json {
        let fans = fans.iter().map(|(fan, state, rpm)| json!({ "fan": fan, "state": state, "rpm": rpm }));
        let sensors = temperatures.iter().map(|(sensor, celsius)| json!({ "sensor": sensor, "celsius": celsius }));
        return out.object(&json!({
            "v": JSON_VERSION,
            "on": context.globals.on.to_string(),
            "signature": format!("{signature:#06x}"),
            "fans": fans.collect::<Vec<_>>(),
            "temperatures": sensors.collect::<Vec<_>>(),
        }));
    }
    out.line(format_args!("Dell SMM firmware, by the signature call {signature:#06x}"))?;
    for (fan, state, rpm) in fans {
        out.line(format_args!("fan {fan}     state {state}, {rpm} rpm"))?;
    }
    for (sensor, celsius) in temperatures {
        out.line(format_args!("sensor {sensor}  {celsius} °C"))?;
    }
    Ok(())
}
