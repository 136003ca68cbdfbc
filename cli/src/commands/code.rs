//! `decode` and `listing`: instructions, and the machine code that they run through.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, SymbolResolver, SymbolResult};
use ioemul::{
    CodeSize, CodeTable, Direction, EmitOptions, IoInsn, PortOperand, Quirk, RegisterFile, StubLayout, SymbolName,
};
use serde_json::json;

use crate::args::{Listing, Stubs};
use crate::context::Context;
use crate::failure::{Failure, Kind, Result};
use crate::output::{FAINT, JSON_VERSION};
use crate::plan;
use crate::values;

pub fn decode(context: &Context, text: &str, size: CodeSize) -> Result {
    let bytes = values::bytes(text).map_err(Failure::usage)?;
    let (insn, len) =
        IoInsn::decode_in(size, &bytes).map_err(|error| Failure::new(Kind::Decode, format!("{text}: {error}")))?;
    let direction = if insn.direction == Direction::In { "IN" } else { "OUT" };
    let port = match insn.operand {
        PortOperand::Imm8(port) => format!("{port:#04x}"),
        _ => "DX".to_owned(),
    };
    if context.out.json {
        return context.out.object(&json!({
            "v": JSON_VERSION,
            "insn": insn.to_string(),
            "length": len,
            "direction": if insn.direction == Direction::In { "in" } else { "out" },
            "bytes": insn.width.bytes(),
            "port": port.to_lowercase(),
            "is_string": insn.is_string(),
        }));
    }
    let length = if len == 1 { "1 byte of code".to_owned() } else { format!("{len} bytes of code") };
    let what = if insn.is_string() { format!("{direction}S") } else { direction.to_owned() };
    let width = insn.width.bytes();
    let plural = if width == 1 { "" } else { "s" };
    context.out.line(format_args!("{insn}"))?;
    context.out.remark(format_args!("{what} of {width} byte{plural}, the port in {port}, {length}"));
    if let more @ 1.. = bytes.len() - len {
        context.out.remark(format_args!("what follows ({more} more) is not looked at"));
    }
    Ok(())
}

/// A layout by its name, in any case.
pub fn layout(name: &str) -> Result<StubLayout> {
    let all = || StubLayout::ALL.iter().map(|layout| format!("{layout:?}")).collect::<Vec<_>>().join(", ");
    let found = StubLayout::ALL.iter().find(|layout| format!("{layout:?}").eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| Failure::usage(format!("--layout {name}: there are {}", all())))
}

/// A register file by its name, or from a file.
pub fn registers(name: &str) -> Result<RegisterFile> {
    match name {
        "gprs" => Ok(RegisterFile::GPRS),
        "pt_regs" => Ok(RegisterFile::PT_REGS),
        "kvm" | "kvm_regs" => Ok(RegisterFile::KVM_REGS),
        file => match std::fs::read_to_string(file) {
            Ok(text) => text.parse().map_err(|error| Failure::usage(format!("--registers {file}: {error}"))),
            Err(error) => Err(Failure::usage(format!(
                "--registers {file}: it is none of gprs, kvm and pt_regs, and no file to read: {error}"
            ))),
        },
    }
}

/// Quirks by their names; `None` where the names themselves were asked for, which are printed.
pub fn quirks<'n>(context: &Context, names: impl IntoIterator<Item = &'n String>) -> Result<Option<Vec<Quirk>>> {
    let mut quirks = Vec::new();
    for name in names {
        if name == "list" {
            Quirk::ALL.iter().try_for_each(|quirk| match context.out.json {
                true => context.out.object(&json!({ "v": JSON_VERSION, "quirk": quirk.name() })),
                false => context.out.line(quirk.name()),
            })?;
            return Ok(None);
        }
        let found = Quirk::by_name(name).ok_or_else(|| {
            Failure::usage(format!("--quirk {name:?}: there is none of that name (--quirk list shows them)"))
        })?;
        quirks.push(found);
    }
    Ok(Some(quirks))
}

pub fn listing(context: &Context, arguments: &Listing) -> Result {
    let insn: IoInsn = arguments
        .insn
        .to_lowercase()
        .parse()
        .map_err(|error| Failure::usage(format!("{}: {error}", arguments.insn)))?;
    let Some(quirks) = quirks(context, &arguments.quirk)? else { return Ok(()) };
    if let Some(quirk) = quirks.iter().find(|quirk| !quirk.trigger().has_form(insn)) {
        let forms: Vec<_> = quirk.trigger().forms().into_iter().flatten().map(|insn| format!("`{insn}`")).collect();
        let message =
            format!("--quirk {:?}: it does not stand for `{insn}`, but for {}", quirk.name(), forms.join(" and "));
        return Err(Failure::usage(message));
    }
    let Stubs { layout: name, registers: file } = &arguments.stubs;
    let options = EmitOptions::new().layout(layout(name)?).registers(registers(file)?).quirks(&quirks);
    let failed = |error: ioemul::EmitError| Failure::new(Kind::Build, error.to_string());
    let mut code = vec![0; CodeTable::size(&options)];
    const BASE: u64 = 0x10_0000; // in no memory: addresses are there to be read
    let table = CodeTable::emit(&mut code, BASE, &options).map_err(failed)?;
    let mut symbols: Vec<_> = table.symbols().collect();
    // The stub, and then what it calls.
    symbols.sort_by_key(|symbol| matches!(symbol.name, SymbolName::Helper(_)));
    let is_wanted = |name: &SymbolName| match name {
        SymbolName::Quirk { insn: form, .. } => *form == insn,
        SymbolName::Stub(stub) => quirks.is_empty() && *stub == insn,
        _ => true,
    };
    let names = Names(symbols.iter().map(|symbol| (symbol.address, symbol.name.to_string())).collect());
    if !context.out.json {
        let layout = &arguments.stubs.layout;
        context.out.line(format_args!("{insn}   ({} in the guest, layout {layout})", plan::bytes(insn)))?;
    }
    for symbol in symbols.iter().filter(|symbol| is_wanted(&symbol.name)) {
        let start = (symbol.address - BASE) as usize;
        let Some(bytes) = code.get(start..start + symbol.len) else { continue };
        print(context, &symbol.name.to_string(), symbol.address, bytes, &names)?;
    }
    Ok(())
}

fn print(context: &Context, name: &str, va: u64, code: &[u8], names: &Names) -> Result {
    let mut lines = Vec::new();
    let mut decoder = Decoder::with_ip(64, code, va, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::with_options(Some(Box::new(names.clone())), None);
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_first_operand_char_index(6);
    formatter.options_mut().set_space_after_operand_separator(true);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let at = (instruction.ip() - va) as usize;
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let hex: String = code[at..at + instruction.len()].iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push((at, hex, text));
    }
    let out = context.out;
    if out.json {
        let lines = lines.iter().map(|(at, bytes, text)| json!({ "at": at, "bytes": bytes, "text": text }));
        let lines = lines.collect::<Vec<_>>();
        return out.object(&json!({ "v": JSON_VERSION, "symbol": name, "length": code.len(), "code": lines }));
    }
    let plural = if code.len() == 1 { "" } else { "s" };
    out.line(format_args!("\n{name}: {} byte{plural}", code.len()))?;
    lines.iter().try_for_each(|(at, hex, text)| out.line(format_args!("  {FAINT}{at:>4x}  {hex:<20}{FAINT:#}  {text}")))
}

/// The table's symbols.
#[derive(Clone)]
struct Names(Vec<(u64, String)>);

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &iced_x86::Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        if address == instruction.next_ip() {
            return Some(SymbolResult::with_str(address, "$+2")); // a jump to the next instruction
        }
        let (_, name) = self.0.iter().find(|(va, _)| *va == address)?;
        Some(SymbolResult::with_str(address, name))
    }
}
