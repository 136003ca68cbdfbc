//! `vmware`: the backdoor, and GuestRPC through it.

use std::io::{self, IsTerminal};

use ioemul::devices::VmwareBackdoor;
use ioemul::guest_rpc::GuestRpc;
use ioemul::{Direction, Gprs, IoInsn, PortAccess, Width};
use serde_json::json;

use crate::args::Vmware;
use crate::context::Context;
use crate::failure::{Failure, Kind, Result, first_of};
use crate::machine::{Access, Machine};
use crate::output::{JSON_VERSION, printable_lines};
use crate::plan::Plan;
use crate::report;
use crate::values::Registers;

const IN: IoInsn = IoInsn::in_dx(Width::Dword);
const GET_VERSION: u16 = 10;

pub fn run(context: &Context, command: &Vmware) -> Result {
    match command {
        Vmware::Info => info(context),
        Vmware::Rpc { request } => {
            let Some(reply) = request_once(context, request)? else { return Ok(()) };
            print(context, request, &reply)
        }
        Vmware::Get { key } => {
            let request = format!("info-get {}", variable(key)?);
            let Some(reply) = request_once(context, &request)? else { return Ok(()) };
            print(context, &request, &accepted(&request, reply)?)
        }
        Vmware::Set { key, value } => {
            let request = format!("info-set {} {value}", variable(key)?);
            let Some(reply) = request_once(context, &request)? else { return Ok(()) };
            let reply = accepted(&request, reply)?;
            if context.out.json { print(context, &request, &reply) } else { Ok(()) }
        }
        Vmware::Call { command, registers } => {
            let command = command.within(16, "a command").map_err(Failure::usage)? as u16;
            let mut registers = Registers::parse(registers, Gprs::default()).map_err(Failure::usage)?;
            let put = [
                ("eax", VmwareBackdoor::MAGIC.into(), "EAX holds the magic number"),
                ("cx", command.into(), "CX holds the command"),
                ("dx", VmwareBackdoor::PORT.into(), "DX names the port"),
            ];
            put.into_iter()
                .try_for_each(|(name, value, why)| registers.put(name, value, why))
                .map_err(Failure::usage)?;
            call(context, command, registers.gprs)
        }
    }
}

fn variable(key: &str) -> Result<String> {
    if key.is_empty() || key.contains([' ', '\0', '\n']) {
        return Err(Failure::usage(format!("{key:?}: a variable's name has no spaces")));
    }
    Ok(if key.starts_with("guestinfo.") { key.to_owned() } else { format!("guestinfo.{key}") })
}

/// The registers of a command, all others 0.
fn command(number: u16) -> Gprs {
    let (rax, rdx) = (VmwareBackdoor::MAGIC.into(), VmwareBackdoor::PORT.into());
    Gprs { rax, rcx: number.into(), rdx, ..Gprs::default() }
}

fn plan(title: String, steps: Vec<(IoInsn, Gprs)>) -> Plan {
    // The high-bandwidth port, for INSB and OUTSB.
    let port = VmwareBackdoor::HIGH_BANDWIDTH_PORT;
    let string = |direction, insn| PortAccess { port, width: Width::Byte, direction, insn };
    let further = vec![
        string(Direction::In, IoInsn::rep_ins(Width::Byte)),
        string(Direction::Out, IoInsn::rep_outs(Width::Byte)),
    ];
    // VMware answers without privilege.
    let version = (IN, command(GET_VERSION));
    Plan { further, tries: true, ..Plan::new(title, std::iter::once(version).chain(steps).collect()) }
}

/// Asks for the version, by which is known whether there is somebody.
fn greet(machine: &mut Machine<'_>) -> Result<Access> {
    let access = machine.execute(IN, command(GET_VERSION))?;
    match access.after.rbx as u32 {
        VmwareBackdoor::MAGIC => Ok(access),
        _ => Err(Failure::no_answer(
            "nobody answers at port 0x5658: no VMware, and no other hypervisor with this backdoor, or it is turned off",
        )),
    }
}

/// The host's reply; `None` where it was not to be asked.
fn request_once(context: &Context, request: &str) -> Result<Option<Vec<u8>>> {
    let plan = plan(format!("GuestRPC request {request:?}"), Vec::new());
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(None) };
    greet(&mut machine)?;
    let reply = GuestRpc::open(machine.emulator()).and_then(|mut channel| {
        let reply = channel.request(request.as_bytes())?;
        channel.close().map(|()| reply)
    });
    let reply = reply.map_err(|error| machine.failure_of(&error))?;
    machine.close()?;
    Ok(Some(reply))
}

/// What follows the `1 ` of success.
fn accepted(request: &str, reply: Vec<u8>) -> Result<Vec<u8>> {
    match reply.strip_prefix(b"1 ").or(reply.strip_prefix(b"1")) {
        Some(value) => Ok(value.to_vec()),
        None => {
            let words = String::from_utf8_lossy(reply.strip_prefix(b"0 ").unwrap_or(&reply)).into_owned();
            Err(Failure::new(Kind::Device, format!("the host refuses {request:?}: {words}")).fact("reply", words))
        }
    }
}

fn print(context: &Context, request: &str, reply: &[u8]) -> Result {
    if context.out.json {
        let (on, reply) = (context.globals.on.to_string(), String::from_utf8_lossy(reply));
        return context.out.object(&json!({ "v": JSON_VERSION, "on": on, "request": request, "reply": reply }));
    }
    if io::stdout().is_terminal() {
        return context.out.line(printable_lines(&String::from_utf8_lossy(reply)));
    }
    let mut line = reply.to_vec();
    line.push(b'\n');
    context.out.bytes(&line)
}

fn call(context: &Context, number: u16, gprs: Gprs) -> Result {
    let plan = plan(format!("VMware backdoor, command {number}"), vec![(IN, gprs)]);
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    greet(&mut machine)?;
    let access = machine.execute(IN, gprs)?;
    let printed = match context.out.json {
        true => context.out.object(&report::object(context, &access)),
        false => report::registers(context, &plan.title, &access),
    };
    first_of([printed, machine.close()])
}

fn info(context: &Context) -> Result {
    const QUESTIONS: [u16; 4] = [17, 20, 1, 19];
    let plan =
        plan("ask a VMware host who it is".to_owned(), QUESTIONS.iter().map(|number| (IN, command(*number))).collect());
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let version = greet(&mut machine)?.after;
    let mut ask = |number| machine.execute(IN, command(number)).map(|access| access.after);
    let [hardware, memory, mhz, uuid] = [ask(17)?, ask(20)?, ask(1)?, ask(19)?];
    machine.close()?;
    let known = |gprs: Gprs| Some(gprs.rax as u32).filter(|answer| *answer != u32::MAX);
    // VMware says MiB, and QEMU bytes.
    let memory = known(memory).map(|memory| if memory >> 20 == 0 { memory } else { memory >> 20 });
    let product = match version.rcx as u32 {
        1 => "VMware Express",
        2 => "ESX server",
        3 => "VMware Server (GSX)",
        4 => "Workstation",
        5 => "ACE",
        _ => "unknown",
    };
    let words = [uuid.rax, uuid.rbx, uuid.rcx, uuid.rdx].map(|word| (word as u32).to_le_bytes());
    let uuid = words.concat().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let out = context.out;
    if out.json {
        return out.object(&json!({
            "v": JSON_VERSION,
            "on": context.globals.on.to_string(),
            "version": version.rax as u32,
            "product": product,
            "hardware_version": known(hardware),
            "memory_mib": memory,
            "mhz": known(mhz),
            "uuid": uuid,
        }));
    }
    let line = |name: &str, value: Option<u32>| match value {
        Some(value) => out.line(format_args!("{name:<18}{value}")),
        None => out.line(format_args!("{name:<18}not said")),
    };
    line("version", Some(version.rax as u32))?;
    out.line(format_args!("{:<18}{product}", "product"))?;
    line("virtual hardware", known(hardware))?;
    line("memory, MiB", memory)?;
    line("TSC, MHz", known(mhz))?;
    out.line(format_args!("{:<18}{uuid}", "UUID"))
}
