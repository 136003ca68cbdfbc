//! `exec`: one instruction with the registers that the user gives it.

use std::fs;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::Path;

use ioemul::devices::VmwareBackdoor;
use ioemul::{AddressSize, Direction, IoInsn, PortOperand};

use crate::args::Exec;
use crate::context::Context;
use crate::failure::{Failure, Kind, Result, first_of};
use crate::files::is_same;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::report;
use crate::values::{self, Expectation, Registers};

/// The backdoor's two ports.
const VMWARE: RangeInclusive<u16> = VmwareBackdoor::PORT..=VmwareBackdoor::HIGH_BANDWIDTH_PORT;

/// The most that INS or OUTS may move.
const LONGEST: u64 = 16 << 20;

pub fn run(context: &Context, arguments: &Exec) -> Result {
    let (insn, words) = instruction(arguments)?;
    let gprs = Registers::parse(words, Default::default()).map_err(Failure::usage)?.gprs;
    let expectations = Expectation::parse_all(&arguments.expect.expect).map_err(Failure::usage)?;
    let data = match (&arguments.data, insn.is_string()) {
        (Some(_), false) => return Err(Failure::usage(format!("--data: `{insn}` moves no data to or from memory"))),
        (None, true) => return Err(Failure::usage(format!("`{insn}` moves data: --data FILE says where it is"))),
        (Some(file), true) => Some((file, memory(insn, &gprs, file)?)),
        (None, false) => None,
    };
    if insn.port(&gprs).checked_add(u16::from(insn.width.bytes()) - 1).is_none() {
        let message = format!(
            "`{insn}`: {} bytes from {:#x} run past the last port, 0xffff",
            insn.width.bytes(),
            insn.port(&gprs)
        );
        return Err(Failure::usage(message));
    }
    let traces = context.globals.record.iter().chain(context.globals.on.trace());
    if let (Direction::In, Some(data)) = (insn.direction, &arguments.data) {
        if let Some(trace) = traces.into_iter().find(|trace| is_same(trace, data)) {
            return Err(Failure::usage(format!(
                "--data {}: that is the trace {}, which the data would go over",
                data.display(),
                trace.display()
            )));
        }
    }
    let title = format!("`{insn}`, port {:#x}", insn.port(&gprs));
    let asks = insn.direction == Direction::Out;
    // VMware answers there without privilege.
    let tries = VMWARE.contains(&insn.port(&gprs));
    let plan = Plan { asks, tries, ..Plan::new(title, vec![(insn, gprs)]) };
    let Some(mut machine) = Machine::open(context, &plan)? else { return Ok(()) };
    let mut saved = Ok(());
    let access = match data {
        None => machine.execute(insn, gprs)?,
        Some((file, memory)) => {
            // Before the access: what it reads may be there only once.
            if insn.direction == Direction::In && file.as_os_str() != "-" {
                // What is there is replaced by what is read, and not by an access that fails.
                let opened = fs::File::options().write(true).create(true).truncate(false).open(file);
                opened.map_err(|error| Failure::io(file.display(), &error))?;
            }
            let access = machine.execute_string(insn, gprs, memory)?;
            if insn.direction == Direction::In {
                saved = save(context, file, &access.data);
            }
            access
        }
    };
    let is_taken = insn.direction == Direction::In && arguments.data.as_deref() == Some(Path::new("-"));
    let printed = match context.out.json {
        true => context.out.object(&report::object(context, &access)),
        false if is_taken => Ok(()), // standard output has the data, and nothing else
        false => report::registers(context, &plan.title, &access),
    };
    first_of([saved, printed, machine.close(), report::expect(&expectations, &access.after)])
}

/// The instruction, and the words behind it.
fn instruction(arguments: &Exec) -> Result<(IoInsn, &[String])> {
    let Some(hex) = &arguments.hex else {
        // One word, or as many as a shell made of an instruction that was not quoted.
        let is_register = |word: &String| word.contains('=');
        let end = arguments.words.iter().position(is_register).unwrap_or(arguments.words.len());
        let (text, registers) = arguments.words.split_at(end);
        let parse = |text: &str| text.to_lowercase().parse();
        return match (text, parse(&text.join(" "))) {
            (_, Ok(insn)) => Ok((insn, registers)),
            ([], _) => {
                Err(Failure::usage(format!("{}: an instruction has to stand before it", arguments.words.join(" "))))
            }
            ([insn, word, ..], _) if parse(insn).is_ok() => {
                Err(Failure::usage(format!("{word}: registers are written REG=VALUE, as in rax=0x5")))
            }
            (_, Err(error)) => Err(Failure::usage(format!("{}: {error}", text.join(" ")))),
        };
    };
    if let Some(word) = arguments.words.first().filter(|word| !word.contains('=')) {
        return Err(Failure::usage(format!("{word}: --hex has the instruction: only registers follow, as in rax=0x5")));
    }
    let bytes = values::bytes(hex).map_err(Failure::usage)?;
    let (insn, len) = IoInsn::decode_in(arguments.mode.into(), &bytes)
        .map_err(|error| Failure::new(Kind::Usage, format!("{hex}: {error}")))?;
    if len != bytes.len() {
        let message =
            format!("{hex}: `{insn}` has {len} bytes, and there are {}: one instruction is executed", bytes.len());
        return Err(Failure::usage(message));
    }
    Ok((insn, &arguments.words))
}

/// The memory of a string instruction: what it reads, or room for what it writes.
fn memory(insn: IoInsn, gprs: &ioemul::Gprs, file: &Path) -> Result<Vec<u8>> {
    let elements = match insn.operand {
        PortOperand::String { rep: true, address, .. } => match address {
            AddressSize::Bits16 => gprs.rcx & 0xffff,
            AddressSize::Bits32 => gprs.rcx & 0xffff_ffff,
            AddressSize::Bits64 => gprs.rcx,
        },
        _ => 1,
    };
    let len = elements.checked_mul(insn.width.bytes().into()).filter(|len| *len <= LONGEST);
    let len = len.ok_or_else(|| {
        Failure::usage(format!(
            "`{insn}` would move {elements} elements, and at most 16 MiB are moved: rcx is the count"
        ))
    })? as usize;
    if insn.direction == Direction::In {
        return Ok(vec![0; len]);
    }
    let failed = |error| Failure::io(file.display(), &error);
    let mut data = Vec::new();
    let limit = LONGEST + 1;
    match file.as_os_str() == "-" {
        true => io::stdin().lock().take(limit).read_to_end(&mut data).map_err(failed)?,
        false => fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut data)).map_err(failed)?,
    };
    if data.len() != len {
        let message = format!(
            "`{insn}` moves {len} bytes with this rcx ({elements} elements of {}), and {} has {}",
            insn.width.bytes(),
            file.display(),
            data.len()
        );
        return Err(Failure::usage(message));
    }
    Ok(data)
}

fn save(context: &Context, file: &Path, data: &[u8]) -> Result {
    match file.as_os_str() == "-" {
        true if context.out.json => Ok(()), // they are in the object
        true => context.out.bytes(data),
        false => fs::write(file, data).map_err(|error| Failure::io(file.display(), &error)),
    }
}
