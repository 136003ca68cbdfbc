//! TABLE.S: the code.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use iced_x86::{
    Code, Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, OpKind, SymbolResolver, SymbolResult,
};

use super::parts::{Part, Parts};
use super::{HostTable, THUNK, in_comment};
use crate::{Direction, IoInsn, PortOperand, SymbolName, Width};

pub(super) struct Source<'t>(pub &'t HostTable<'t>);

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok((table, code)) = self.0.emit() else { return Err(fmt::Error) };
        let writer = Writer { parts: Parts::new(self.0, &table), code: &code };
        writer.head(f)?;
        writer.helpers(f)?;
        writer.whole_stubs(f)?;
        writer.plain_stubs(f)?;
        writer.tail(f)
    }
}

struct Writer<'t> {
    parts: Parts<'t>,
    code: &'t [u8],
}

impl Writer<'_> {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostTable { prefix, section, .. } = self.parts.host;
        let version = env!("CARGO_PKG_VERSION");
        writeln!(
            f,
            "/* Stubs for port I/O with a guest's registers in view. Made by ioemul {version}: do not edit.\n *"
        )?;
        write!(f, "{}", in_comment(&self.parts.host.description(" * ")))?;
        writeln!(f, " *\n * Position-independent, text only. SPDX-License-Identifier: MIT OR Apache-2.0")?;
        writeln!(f, " *\n * A file that defines these, and includes this one, is assembled in its place:")?;
        writeln!(
            f,
            " * {upper}_EXTABLE(fault, pad)  an entry of the host's exception table",
            upper = prefix.to_uppercase()
        )?;
        writeln!(
            f,
            " * {upper}_ENDBR64              the host's name for ENDBR64 (four bytes) */",
            upper = prefix.to_uppercase()
        )?;
        let upper = prefix.to_uppercase();
        writeln!(f, "#ifndef {upper}_ENDBR64\n#define {upper}_ENDBR64 .byte 0xf3, 0x0f, 0x1e, 0xfa\n#endif")?;
        writeln!(f, "\t.section {section}, \"ax\", @progbits\n\t.balign 16")?;
        writeln!(f, "\t.globl {prefix}_table\n\t.hidden {prefix}_table\n{prefix}_table:")
    }

    fn helpers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut end = 0;
        for part in self.parts.parts.iter().filter(|part| matches!(part.name, SymbolName::Helper(_))) {
            writeln!(f, "\n{}:", self.label(part))?;
            self.lines(f, part.at, part.len)?;
            end = part.at + part.len;
        }
        self.padding(f, end)
    }

    /// Those of INS, OUTS and quirks, each by itself.
    fn whole_stubs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts.parts {
            let what = match part.name {
                SymbolName::Stub(insn) if insn.is_string() => insn.to_string(),
                SymbolName::Quirk { name, insn } => format!("{insn}: {name}"),
                _ => continue,
            };
            writeln!(f, "\n{}:\t/* {} */", self.label(part), in_comment(&what))?;
            self.lines(f, part.at, part.len)?;
            self.size(f, part)?;
            self.padding(f, part.at + part.len)?;
        }
        Ok(())
    }

    /// Those of IN and OUT: one macro, and a line for each.
    fn plain_stubs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain =
            || self.parts.parts.iter().filter(|part| matches!(part.name, SymbolName::Stub(insn) if !insn.is_string()));
        let Some(first) = plain().next() else { return Ok(()) };
        let prefix = &self.parts.host.prefix;
        writeln!(f, "\n\t.macro {prefix}_stub prefix, opcode, last")?;
        self.lines(f, first.at, first.len)?;
        writeln!(f, "\t.balign 16, 0xcc")?;
        writeln!(f, "\t.endm")?;
        let mut group: Option<&Part> = None;
        for part in plain() {
            let SymbolName::Stub(insn) = part.name else { continue };
            if !matches!(insn.operand, PortOperand::Imm8(1..)) {
                group.map_or(Ok(()), |group| self.size(f, group))?;
                writeln!(f, "\n{}:", self.label(part))?;
                group = Some(part);
            }
            let [first, opcode, last] = insn.encode_padded();
            writeln!(f, "\t{prefix}_stub {first:#04x}, {opcode:#04x}, {last:#04x}\t/* {insn} */")?;
        }
        group.map_or(Ok(()), |group| self.size(f, group))
    }

    fn tail(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = &self.parts.host.prefix;
        writeln!(f, "\n\t.type {prefix}_table, @function")?;
        writeln!(f, "\t.size {prefix}_table, . - {prefix}_table")?;
        // An assembler that is told to put something of its own between instructions moves what the header says where it is.
        // A comparison that holds is -1 there, and `.org` backwards an error; each has a byte to go back over.
        let places = [
            (format!(".L{prefix}_end"), self.parts.placed(self.code.len())),
            (format!("{prefix}_in_al_dx"), self.parts.placed(self.parts.plain(0))),
        ];
        writeln!(f, ".L{prefix}_end:\n\t.pushsection .discard.{prefix}, \"\", @progbits")?;
        for (label, at) in places {
            writeln!(f, "\t.byte 0\n\t.org . + (({label} - {prefix}_table) != {at})")?;
        }
        writeln!(f, "\t.popsection")?;
        writeln!(f, "\t.section .note.GNU-stack, \"\", @progbits")
    }

    fn size(&self, f: &mut fmt::Formatter<'_>, part: &Part) -> fmt::Result {
        let label = self.label(part);
        writeln!(f, "\t.type {label}, @function\n\t.size {label}, . - {label}")
    }

    fn padding(&self, f: &mut fmt::Formatter<'_>, end: usize) -> fmt::Result {
        if end % 16 == 0 { Ok(()) } else { writeln!(f, "\t.balign 16, 0xcc") }
    }

    fn label(&self, part: &Part) -> String {
        let prefix = &self.parts.host.prefix;
        match part.name {
            SymbolName::Helper(helper) => format!(".L{prefix}_{}", helper.name()),
            SymbolName::Stub(insn) => format!("{prefix}_{}", form_name(insn)),
            SymbolName::Quirk { name, insn } => {
                let name: String = name
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
                    .collect();
                format!("{prefix}_{}__{}_{name}", form_name(insn), part.quirk.unwrap_or_default())
            }
        }
    }

    /// The instructions of a part.
    fn lines(&self, f: &mut fmt::Formatter<'_>, at: usize, len: usize) -> fmt::Result {
        let code = &self.code[at..at + len];
        let instructions: Vec<_> = Decoder::with_ip(64, code, at as u64, DecoderOptions::NONE).into_iter().collect();
        let numbered = self.places_within(&instructions, at..at + len);
        let names = Names { named: self.names(), numbered: numbered.clone() };
        let mut formatter = GasFormatter::with_options(Some(Box::new(names)), None);
        formatter.options_mut().set_rip_relative_addresses(true);
        let is_plain = |part: &Part| matches!(part.name, SymbolName::Stub(insn) if !insn.is_string());
        let in_macro = self.parts.parts.iter().any(|part| part.at == at && is_plain(part));
        let mut access_seen = false;
        for insn in &instructions {
            let ip = insn.ip() as usize;
            let bytes = &code[ip - at..][..insn.len()];
            if let Some(label) = self.parts.pads.get(&ip) {
                writeln!(f, "{label}:")?;
            }
            if let Ok(number) = numbered.binary_search(&insn.ip()) {
                writeln!(f, "{}:", number + 1)?;
            }
            let mut text = String::new();
            formatter.format(insn, &mut text);
            let extable = format!("{}_EXTABLE", self.parts.host.prefix.to_uppercase());
            if let Some(pad) = self.parts.faults.get(&ip).filter(|_| !in_macro) {
                writeln!(f, "#ifdef {extable}\n77:\t{extable}(77b, {})\n#endif", self.parts.pads[pad])?;
            }
            if text == "endbr64" {
                let name = format!("{}_ENDBR64", self.parts.host.prefix.to_uppercase());
                writeln!(f, "78:\t{name}\n\t.if . - 78b - 4\n\t.error \"{name} is not four bytes\"\n\t.endif")?;
                continue;
            }
            if in_macro && self.is_io(insn) {
                // One line for all of it; the CPU reports the prefix of 16 bits, or else the opcode.
                if !access_seen {
                    let pad = self.parts.faults.range(at..at + len).next().map_or("", |(_, pad)| &self.parts.pads[pad]);
                    writeln!(f, "77:\t.byte \\prefix, \\opcode, \\last")?;
                    writeln!(f, "#ifdef {extable}\n\t.if \\prefix == 0x66\n\t{extable}(77b, {pad})\n\t.else")?;
                    writeln!(f, "\t{extable}(77b + 1, {pad})\n\t.endif\n#endif")?;
                }
                access_seen = true;
            } else if is_branch(insn) {
                let target = text.split_ascii_whitespace().last().unwrap_or_default();
                match bytes {
                    [opcode, _] => writeln!(f, "\t.byte {opcode:#04x}, {target} - . - 1\t/* {text} */")?,
                    _ => {
                        let opcode = listed(&bytes[..bytes.len() - 4]);
                        writeln!(f, "\t.byte {opcode}\t/* {text} */\n\t.long {target} - . - 4")?;
                    }
                }
            } else if is_chosen(insn) {
                writeln!(f, "\t{text}")?;
            } else {
                writeln!(f, "\t.byte {}\t/* {text} */", listed(bytes))?;
            }
        }
        Ok(())
    }

    /// Everything outside a part that its instructions can name.
    fn names(&self) -> BTreeMap<u64, String> {
        let thunk = self.parts.host.return_thunk.iter().map(|symbol| (THUNK, symbol.clone()));
        let parts = self.parts.parts.iter().map(|part| (part.at as u64, self.label(part)));
        let pads = self.parts.pads.iter().map(|(at, label)| (*at as u64, label.clone()));
        parts.chain(pads).chain(thunk).collect()
    }

    /// Where instructions of a part refer to places within it that have no name.
    fn places_within(&self, instructions: &[Instruction], part: Range<usize>) -> Vec<u64> {
        let mut places: Vec<_> = instructions
            .iter()
            .filter(|insn| is_branch(insn))
            .map(Instruction::near_branch_target)
            .filter(|at| part.contains(&(*at as usize)) && !self.parts.pads.contains_key(&(*at as usize)))
            .collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Whether an instruction of the first plain stub is of its `<io>`: no-op, IN, no-op.
    fn is_io(&self, insn: &Instruction) -> bool {
        matches!(insn.code(), Code::Nopd | Code::Nopw | Code::Nopq | Code::In_AL_DX)
    }
}

/// `in_al_imm8`, `outs_dx_byte`, …
fn form_name(insn: IoInsn) -> String {
    let direction = if insn.direction == Direction::In { "in" } else { "out" };
    let register = ["al", "ax", "eax"][insn.width as usize];
    match insn.operand {
        PortOperand::Imm8(_) => format!("{direction}_{register}_imm8"),
        PortOperand::Dx => format!("{direction}_{register}_dx"),
        PortOperand::String { rep, address, .. } => {
            let letter = match insn.width {
                Width::Byte => 'b',
                Width::Word => 'w',
                Width::Dword => 'd',
            };
            let rep = if rep { "rep_" } else { "" };
            let address = if address == crate::AddressSize::Bits64 { "" } else { "_addr32" };
            format!("{rep}{direction}s{letter}{address}")
        }
    }
}

fn is_branch(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::NearBranch64
}

fn listed(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:#04x}")).collect();
    bytes.join(", ")
}

/// Whether an assembler, given the text, chooses these bytes, whatever its options are: it has an order of its own for the
/// prefixes of INS, OUTS and no-ops, takes an immediate byte where 32 bits would do, and may put something in front of RET (as
/// in front of all branches, which are bytes therefore).
fn is_chosen(insn: &Instruction) -> bool {
    use iced_x86::Mnemonic::{Add, And, Cmp, Insb, Insd, Insw, Nop, Or, Outsb, Outsd, Outsw, Ret, Sub, Xor};
    match insn.mnemonic() {
        Ret => false,
        Insb | Insw | Insd | Outsb | Outsw | Outsd | Nop => insn.len() == 1,
        Add | And | Cmp | Or | Sub | Xor => (0..insn.op_count()).all(|op| match insn.op_kind(op) {
            OpKind::Immediate32 | OpKind::Immediate32to64 => i8::try_from(insn.immediate(op) as i32).is_err(),
            _ => true,
        }),
        _ => true,
    }
}

/// What targets are called.
#[derive(Default)]
struct Names {
    /// Helpers, landing pads, the thunk.
    named: BTreeMap<u64, String>,
    /// Places within the part, by ascending address: `1`, `2`, …
    numbered: Vec<u64>,
}

impl SymbolResolver for Names {
    fn symbol(&mut self, insn: &Instruction, _: u32, _: Option<u32>, address: u64, _: u32) -> Option<SymbolResult<'_>> {
        if !is_branch(insn) && !insn.is_ip_rel_memory_operand() {
            return None; // a displacement
        }
        match self.numbered.binary_search(&address) {
            Ok(number) => {
                let name = format!("{}{}", number + 1, if address > insn.ip() { 'f' } else { 'b' });
                Some(SymbolResult::with_string(address, name))
            }
            Err(_) => Some(SymbolResult::with_str(address, self.named.get(&address)?)),
        }
    }
}
