//! `in`, `out`, `ix`: ports without any other register.

use ioemul::{Gprs, IoInsn, Width};

use crate::context::Context;
use crate::failure::{Failure, Result, first_of};
use crate::machine::{Access, Machine};
use crate::plan::Plan;
use crate::report;
use crate::values::{IndexData, Number, PortWidth};

/// IN by the form that fits: an immediate port where there is one, so that no register but RAX is touched.
pub fn in_from(port: u16, width: Width) -> (IoInsn, Gprs) {
    match u8::try_from(port) {
        Ok(port) => (IoInsn::in_imm8(width, port), Gprs::default()),
        Err(_) => (IoInsn::in_dx(width), Gprs { rdx: port.into(), ..Gprs::default() }),
    }
}

/// OUT, likewise.
pub fn out_to(port: u16, width: Width, value: u32) -> (IoInsn, Gprs) {
    let gprs = Gprs { rax: value.into(), ..Gprs::default() };
    match u8::try_from(port) {
        Ok(port) => (IoInsn::out_imm8(width, port), gprs),
        Err(_) => (IoInsn::out_dx(width), Gprs { rdx: port.into(), ..gprs }),
    }
}

pub fn input(context: &Context, port: PortWidth, count: u32) -> Result {
    let step = in_from(port.port, port.width);
    let plan = Plan::new(format!("read {} from port {:#x}", bytes(port.width), port.port), vec![step]);
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let printed =
        (0..count).try_for_each(|_| machine.execute(step.0, step.1).and_then(|access| print_value(context, &access)));
    first_of([printed, machine.close()])
}

pub fn output(context: &Context, port: PortWidth, value: Number) -> Result {
    let value = value.within(8 * u32::from(port.width.bytes()), "the access").map_err(Failure::usage)?;
    let step = out_to(port.port, port.width, value);
    let title = format!("write {value:#x} ({}) to port {:#x}", bytes(port.width), port.port);
    let plan = Plan { asks: true, ..Plan::new(title, vec![step]) };
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let access = machine.execute(step.0, step.1)?;
    let printed = if context.out.json { context.out.object(&report::object(context, &access)) } else { Ok(()) };
    first_of([printed, machine.close()])
}

pub fn index(context: &Context, ports: IndexData, register: Number, value: Option<Number>) -> Result {
    let register = register.within(8, "a register number").map_err(Failure::usage)?;
    let value = value.map(|value| value.within(8, "the data port")).transpose().map_err(Failure::usage)?;
    let select = out_to(ports.index, Width::Byte, register);
    let (title, data) = match value {
        None => (format!("read register {register:#x}"), in_from(ports.data, Width::Byte)),
        Some(value) => (format!("write {value:#x} to register {register:#x}"), out_to(ports.data, Width::Byte, value)),
    };
    let title = format!("{title} behind ports {:#x} and {:#x}", ports.index, ports.data);
    let plan = Plan { asks: true, ..Plan::new(title, vec![select, data]) };
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    // One without the other would be neither: a result that nobody reads does not come between them.
    let mut printed = Ok(());
    for (insn, gprs) in [select, data] {
        let access = machine.execute(insn, gprs)?;
        printed = printed.and_then(|()| match insn.direction {
            ioemul::Direction::In => print_value(context, &access),
            ioemul::Direction::Out if context.out.json => context.out.object(&report::object(context, &access)),
            ioemul::Direction::Out => Ok(()),
        });
    }
    first_of([printed, machine.close()])
}

/// What an IN read: as many digits as it has, or, where only the value is wanted, as Debian's `inb` prints it.
pub fn print_value(context: &Context, access: &Access) -> Result {
    let value = report::value(access);
    match context.out {
        out if out.json => out.object(&report::object(context, access)),
        out if out.quiet => out.line(value),
        out => out.line(format_args!("{value:#0digits$x}", digits = 2 + 2 * usize::from(access.insn.width.bytes()))),
    }
}

fn bytes(width: Width) -> &'static str {
    match width {
        Width::Byte => "1 byte",
        Width::Word => "2 bytes",
        Width::Dword => "4 bytes",
    }
}
