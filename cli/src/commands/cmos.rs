//! `cmos`: the PC's clock and its memory, by index and data port.

use ioemul::{Gprs, IoInsn, Width};
use serde_json::json;

use crate::args::CmosWhat;
use crate::commands::ports::{in_from, out_to, print_value};
use crate::context::Context;
use crate::failure::{Failure, Result, first_of};
use crate::machine::{Access, Machine};
use crate::output::JSON_VERSION;
use crate::plan::Plan;
use crate::report;
use crate::values::Number;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

/// The clock's registers (MC146818): seconds, minutes, hours, day, month, year; and where firmware keeps the century.
const CLOCK: [u8; 7] = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32];
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;

pub fn run(context: &Context, what: CmosWhat, value: Option<Number>) -> Result {
    match (what, value) {
        (CmosWhat::Date, None) => date(context),
        (CmosWhat::Dump, None) => dump(context),
        (CmosWhat::Byte(byte), None) => read_one(context, byte),
        (CmosWhat::Byte(byte), Some(value)) => {
            let value = value.within(8, "a byte of CMOS memory").map_err(Failure::usage)?;
            write_one(context, byte, value)
        }
        _ => Err(Failure::usage("a value can be written to one byte only")),
    }
}

fn select(byte: u8) -> (IoInsn, Gprs) {
    out_to(INDEX, Width::Byte, byte.into())
}

/// A plan that reads these bytes. To choose one is what port 0x70 is for.
fn reading(title: &str, bytes: impl IntoIterator<Item = u8>) -> Plan {
    let steps = bytes.into_iter().flat_map(|byte| [select(byte), in_from(DATA, Width::Byte)]).collect();
    Plan { own: (INDEX..=INDEX).into(), ..Plan::new(title, steps) }
}

fn read(machine: &mut Machine<'_>, byte: u8) -> Result<Access> {
    let (insn, gprs) = select(byte);
    machine.execute(insn, gprs)?;
    let (insn, gprs) = in_from(DATA, Width::Byte);
    machine.execute(insn, gprs)
}

fn read_byte(machine: &mut Machine<'_>, byte: u8) -> Result<u8> {
    read(machine, byte).map(|access| report::value(&access) as u8)
}

fn read_one(context: &Context, byte: u8) -> Result {
    let plan = reading(&format!("read byte {byte:#04x} of CMOS memory"), [byte]);
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let access = read(&mut machine, byte)?;
    let printed = print_value(context, &access);
    first_of([printed, machine.close()])
}

fn write_one(context: &Context, byte: u8, value: u32) -> Result {
    let data = out_to(DATA, Width::Byte, value);
    let title = format!("write {value:#04x} to byte {byte:#04x} of CMOS memory");
    let plan = Plan { own: (INDEX..=INDEX).into(), asks: true, ..Plan::new(title, vec![select(byte), data]) };
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let mut printed = Ok(());
    for (insn, gprs) in [select(byte), data] {
        let access = machine.execute(insn, gprs)?;
        if context.out.json && printed.is_ok() {
            printed = context.out.object(&report::object(context, &access));
        }
    }
    first_of([printed, machine.close()])
}

fn dump(context: &Context) -> Result {
    let plan = reading("read all of CMOS memory", 0..=0x7f);
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let bytes = (0..=0x7f).map(|byte| read_byte(&mut machine, byte)).collect::<Result<Vec<_>>>()?;
    machine.close()?;
    let hex = |bytes: &[u8], between| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between);
    if context.out.json {
        let on = context.globals.on.to_string();
        return context.out.object(&json!({ "v": JSON_VERSION, "on": on, "cmos": hex(&bytes, "") }));
    }
    bytes.chunks(16).enumerate().try_for_each(|(row, bytes)| {
        context.out.line(format_args!("{:02x}  {}  {}", row * 16, hex(&bytes[..8], " "), hex(&bytes[8..], " ")))
    })
}

fn date(context: &Context) -> Result {
    let plan = reading("read the clock", [STATUS_B, STATUS_A].into_iter().chain(CLOCK));
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let is_binary = read_byte(&mut machine, STATUS_B)?;
    let registers = settled(&mut machine)?;
    machine.close()?;
    let date = decode(registers, is_binary).ok_or_else(|| {
        let found = registers.map(|byte| format!("{byte:02x}")).join(" ");
        Failure::no_answer(format!("the clock's registers hold no date: {found} (00, 02, 04, 07, 08, 09, 32)"))
    })?;
    match context.out.json {
        true => {
            let on = context.globals.on.to_string();
            context.out.object(&json!({ "v": JSON_VERSION, "on": on, "date": date.to_string() }))
        }
        false => context.out.line(date.strftime("%Y-%m-%d %H:%M:%S")),
    }
}

/// The clock's registers, twice the same, and not in the middle of an update.
fn settled(machine: &mut Machine<'_>) -> Result<[u8; 7]> {
    const TRIES: usize = 20_000; // an update takes 2 ms at most, and a port access a microsecond
    let mut last = None;
    for _ in 0..TRIES {
        if read_byte(machine, STATUS_A)? & 0x80 != 0 {
            continue;
        }
        let mut registers = [0; 7];
        for (register, byte) in registers.iter_mut().zip(CLOCK) {
            *register = read_byte(machine, byte)?;
        }
        if last.replace(registers) == Some(registers) {
            return Ok(registers);
        }
    }
    Err(Failure::no_answer("the clock is always in the middle of an update: there may be none"))
}

/// A date and time, if the registers hold one. Bit 2 of status B: binary in place of BCD; bit 1: 24 hours, else bit 7 of the hour says
/// that it is one of the afternoon.
fn decode(registers: [u8; 7], status_b: u8) -> Option<jiff::civil::DateTime> {
    let number = |byte: u8| match status_b & 4 {
        0 => (byte >> 4 < 10 && byte & 15 < 10).then_some((byte >> 4) * 10 + (byte & 15)),
        _ => Some(byte),
    };
    let [second, minute, hour, day, month, year, century] = registers;
    let hour = match (status_b & 2, hour & 0x80) {
        (0, afternoon) => number(hour & 0x7f)? % 12 + if afternoon == 0 { 0 } else { 12 },
        _ => number(hour)?,
    };
    // Firmware that keeps no century there leaves something else.
    let century = number(century).filter(|century| (19..=21).contains(century)).unwrap_or(20);
    let year = i16::from(century) * 100 + i16::from(number(year)?);
    let part = |byte| number(byte).and_then(|number| i8::try_from(number).ok());
    jiff::civil::DateTime::new(
        year,
        part(month)?,
        part(day)?,
        i8::try_from(hour).ok()?,
        part(minute)?,
        part(second)?,
        0,
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(registers: [u8; 7], status_b: u8) -> String {
        decode(registers, status_b).map_or_else(|| "none".to_owned(), |date| date.to_string())
    }

    #[test]
    fn every_mode_of_the_clock() {
        assert_eq!(decoded([0x59, 0x30, 0x23, 0x28, 0x11, 0x26, 0x20], 0x02), "2026-11-28T23:30:59");
        assert_eq!(decoded([59, 30, 23, 28, 11, 26, 20], 0x06), "2026-11-28T23:30:59");
        assert_eq!(decoded([0x59, 0x30, 0x91, 0x28, 0x11, 0x26, 0x20], 0x00), "2026-11-28T23:30:59");
        assert_eq!(decoded([0x00, 0x00, 0x12, 0x01, 0x01, 0x00, 0x20], 0x00), "2000-01-01T00:00:00"); // 12 AM
        assert_eq!(decoded([0x00, 0x00, 0x92, 0x01, 0x01, 0x00, 0x20], 0x00), "2000-01-01T12:00:00"); // 12 PM
        assert_eq!(decoded([59, 30, 0x80 | 11, 28, 11, 26, 20], 0x04), "2026-11-28T23:30:59");
    }

    #[test]
    fn what_is_no_date() {
        assert_eq!(decoded([0xff; 7], 0xff), "none"); // nobody is there
        assert_eq!(decoded([0x5a, 0x30, 0x23, 0x28, 0x11, 0x26, 0x20], 0x02), "none");
        assert_eq!(decoded([0x59, 0x30, 0x23, 0x31, 0x11, 0x26, 0x20], 0x02), "none");
        assert_eq!(decoded([0x59, 0x30, 0x23, 0x28, 0x11, 0x26, 0x00], 0x02), "2026-11-28T23:30:59"); // no century
    }
}
