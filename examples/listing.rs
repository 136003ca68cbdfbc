//! The four layouts side by side: for each the stub of one IN or OUT and the helpers that it calls, disassembled.
//!
//! ```sh
//! cargo run --example listing              # in eax, dx
//! cargo run --example listing out 0x80, al
//! ```

mod common;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, FormatterOutput, FormatterTextKind};
use iced_x86::{Instruction, IntelFormatter, Mnemonic, OpKind, Register, SymbolResolver, SymbolResult};
use ioemul::{EmitOptions, Helper, Helpers, IoInsn, StubLayout, StubTable, Width};

/// Columns of the terminal, for each layout.
const COLUMN: usize = 26;

fn main() -> common::Result {
    let text = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let insn = if text.is_empty() { IoInsn::in_dx(Width::Dword) } else { text.parse()? };
    if insn.is_string() {
        println!("The stub of `{insn}` also clears and restores DF, and is too wide for this listing: try IN and OUT.");
        return Ok(());
    }
    let tables = StubLayout::ALL.iter().copied().map(StubTable::new).collect::<Result<Vec<_>, _>>()?;
    let columns = tables.iter().map(|table| column(table, insn)).collect::<common::Result<Vec<_>>>()?;
    println!("{insn}, and what it takes to run it with all of a guest's registers\n");
    for line in 0..columns.iter().map(Vec::len).max().unwrap_or(0) {
        let cells = columns.iter().map(|column| column.get(line).map_or("", String::as_str));
        println!("{}", cells.map(|cell| format!("{cell:<COLUMN$}")).collect::<String>().trim_end());
    }
    Ok(())
}

/// A stub and its helpers, a line to an instruction, with a remark where something else begins.
fn column(table: &StubTable, insn: IoInsn) -> common::Result<Vec<String>> {
    let (stub, layout) = (table.stub(insn), table.layout());
    // The table begins with the helpers: emitted once more, for the same address, they say where each of them is.
    let start = table.code().as_ptr() as u64;
    let helpers = Helpers::emit(&mut [0; Helpers::MAX_LEN], start, &EmitOptions::new().layout(layout))?;
    let symbols = Symbols(helpers.symbols().filter(|(name, _)| *name != LANDING_PADS).collect());

    let mut lines = vec![format!("{layout:?}"), "─".repeat(20), format!("stub: {} bytes", stub.code().len())];
    disassemble(stub.code(), &symbols, &mut lines);
    for &(name, at) in &symbols.0 {
        lines.extend([String::new(), format!("{name}:")]);
        disassemble(&table.code()[(at - start) as usize..], &symbols, &mut lines);
    }
    Ok(lines)
}

/// Appends the instructions up to the one that leaves for good.
fn disassemble(code: &[u8], symbols: &Symbols, lines: &mut Vec<String>) {
    let mut decoder = Decoder::with_ip(64, code, code.as_ptr() as u64, DecoderOptions::NONE);
    let mut remark = "";
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if let Some(now) = purpose(&instruction, remark).filter(|now| *now != remark) {
            lines.push(format!("; {now}"));
            remark = now;
        }
        let mut formatter = IntelFormatter::with_options(Some(Box::new(symbols.clone())), None);
        formatter.options_mut().set_first_operand_char_index(4);
        formatter.options_mut().set_hex_prefix("0x");
        formatter.options_mut().set_hex_suffix("");
        let mut line = Line("  ".to_owned());
        formatter.format(&instruction, &mut line);
        lines.push(line.0);
        match instruction.flow_control() {
            FlowControl::Return => break,
            // `jmp short +0` goes to the next instruction; the jump to a helper does not come back.
            FlowControl::UnconditionalBranch if instruction.near_branch64() != instruction.next_ip() => break,
            _ => {}
        }
    }
}

/// Where a stub goes on whose access faulted: no part of what an access takes.
const LANDING_PADS: &str = Helper::LandingPads.name();

const KEEP: &str = "keep the host's";
const LOAD: &str = "load the guest's";
const ACCESS: &str = "the access";
const SAVE: &str = "save the guest's";
const RESTORE: &str = "the host's again";

/// What an instruction is for, given what the one before was for; `None` for those that lead elsewhere.
fn purpose(instruction: &Instruction, before: &str) -> Option<&'static str> {
    let stores = instruction.op0_kind() == OpKind::Memory;
    match instruction.mnemonic() {
        Mnemonic::Call | Mnemonic::Jmp | Mnemonic::Ret => None,
        Mnemonic::In | Mnemonic::Out | Mnemonic::Nop => Some(ACCESS),
        Mnemonic::Mov if stores || instruction.memory_base() == Register::RSP => Some(SAVE),
        Mnemonic::Mov if instruction.memory_base() == Register::RDI && before != SAVE => Some(LOAD),
        Mnemonic::Push if instruction.op0_register() == Register::RDI && before != KEEP => Some(SAVE),
        Mnemonic::Push | Mnemonic::Lea => Some(KEEP),
        Mnemonic::Pop if instruction.op0_register() != Register::RAX => Some(RESTORE),
        Mnemonic::Pop => Some(if before == SAVE { SAVE } else { KEEP }),
        _ => None, // the flags, as part of what was begun
    }
}

/// The helpers' names and addresses.
#[derive(Clone)]
struct Symbols(Vec<(&'static str, u64)>);

impl SymbolResolver for Symbols {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        if address == instruction.next_ip() {
            return Some(SymbolResult::with_str(address, "$+2"));
        }
        let (name, _) = self.0.iter().find(|(_, known)| *known == address)?;
        Some(SymbolResult::with_str(address, name))
    }
}

struct Line(String);

impl FormatterOutput for Line {
    fn write(&mut self, text: &str, _: FormatterTextKind) {
        self.0.push_str(text);
    }
}
