//! TABLE.h: what C needs to know of the code, as constants and inline functions.

use std::fmt;

use super::parts::Parts;
use super::{HostTable, in_comment};
use crate::{Direction, Gprs, IoInsn, PortAccess, Quirk, SymbolName, Width};

pub(super) struct Header<'t>(pub &'t HostTable<'t>);

/// Fields of a DMI identity, in the order of the header's array.
const DMI_FIELDS: [&str; 5] = ["bios_vendor", "bios_version", "sys_vendor", "product_name", "board_name"];

impl fmt::Display for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok((table, code)) = self.0.emit() else { return Err(fmt::Error) };
        let parts = Parts::new(self.0, &table);
        let text = self.fill(&template(self.0.strings), &parts, parts.placed(code.len()));
        f.write_str(&text)
    }
}

impl Header<'_> {
    /// The template, with everything in its place.
    fn fill(&self, template: &str, parts: &Parts<'_>, size: usize) -> String {
        let prefix = &self.0.prefix;
        let [word, next] = [1, 2].map(|index| parts.plain(index));
        let first = parts.plain(0);
        // A fault in a stub of 16 bits is at its `<io>`'s first byte.
        let io = parts.faults.range(word..next).next().map_or(0, |(at, _)| at - word);
        let plain_pad = parts.faults.range(word..next).next().map_or(0, |(_, pad)| *pad);
        let [string, next_string] = [0, 1].map(|n| IoInsn::strings().nth(n).map_or(0, |insn| parts.stub(insn)));
        // First, while all text is the template's own.
        let named = |text: String| text.replace("PREFIX", &prefix.to_uppercase()).replace("prefix", prefix);
        named(template.to_owned())
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
            .replace("@OPTIONS@", &in_comment(&self.0.description(" * ")))
            .replace("@SIZE@", &size.to_string())
            .replace("@FIRST@", &parts.placed(first).to_string())
            .replace("@STRIDE@", &(word - first).to_string())
            .replace("@STRING_FIRST@", &string.to_string())
            .replace("@STRING_STRIDE@", &(next_string - string).to_string())
            .replace("@IO@", &io.to_string())
            .replace("@PLAIN_PAD@", &plain_pad.to_string())
            .replace("@FORMS@", &IoInsn::COUNT.to_string())
            .replace("@REGISTERS@", &named(self.registers()))
            .replace("@ASSERTIONS@", &named(self.assertions()))
            .replace("@FAULTS@", &faults(parts, first))
            .replace("@QUIRK_STUBS@", &self.quirk_stubs(parts))
            .replace("@DMI@", &self.dmi())
            .replace("@QUIRK_NAMES@", &self.quirk_names())
    }

    fn registers(&self) -> String {
        let file = &self.0.options.registers;
        let words = Gprs::NAMES.iter().copied().zip(file.offsets().iter().copied().chain(file.rflags()));
        let lines = words.map(|(name, offset)| format!("#define PREFIX_{} ({offset})\n", name.to_uppercase()));
        lines.collect()
    }

    fn assertions(&self) -> String {
        let file = &self.0.options.registers;
        let names = Gprs::NAMES.iter().take(15 + usize::from(file.rflags().is_some()));
        let parameters: Vec<_> = names.clone().map(|name| format!("at_{name}")).collect();
        let check =
            |name: &&str| format!("    PREFIX_ASSERT_WORD(type, {name}, at_{name}, PREFIX_{})", name.to_uppercase());
        let checks: Vec<_> = names.map(check).collect();
        format!("#define PREFIX_ASSERT_REGISTERS(type, {}) \\\n{}", parameters.join(", "), checks.join("; \\\n"))
    }

    fn quirk_stubs(&self, parts: &Parts<'_>) -> String {
        let mut lines = String::new();
        for part in &parts.parts {
            let (SymbolName::Quirk { name, insn }, Some(number)) = (part.name, part.quirk) else { continue };
            let quirk = &self.0.options.quirks[number];
            let trigger = quirk.trigger();
            let accesses: Vec<_> = quirk.accesses(insn).map(access).collect();
            lines += &format!(
                "    {{ {}, {:#06x}, {number}, {}, {:#x}, {:#x}, {}, {{ {} }} }}, /* {insn}: {} */\n",
                insn.index(),
                trigger.port,
                accesses.len(),
                trigger.mask,
                trigger.value,
                parts.placed(part.at),
                accesses.join(", "),
                in_comment(name)
            );
        }
        lines
    }

    fn dmi(&self) -> String {
        let mut lines = String::new();
        for (number, platform) in self.0.options.quirks.iter().map(Quirk::platform).enumerate() {
            let Some(platform) = platform else { continue };
            let fields = [
                platform.bios_vendor,
                platform.bios_version,
                platform.sys_vendor,
                platform.product_name,
                platform.board_name,
            ];
            for (field, fragments) in DMI_FIELDS.iter().zip(fields) {
                for fragment in fragments {
                    lines += &format!(
                        "    {{ {number}, {}_DMI_{}, \"{}\" }},\n",
                        self.0.prefix.to_uppercase(),
                        field.to_uppercase(),
                        escaped(fragment)
                    );
                }
            }
        }
        lines
    }

    fn quirk_names(&self) -> String {
        let prefix = self.0.prefix.to_uppercase();
        let quirk = |(number, quirk): (usize, &Quirk)| {
            let name = quirk.name();
            format!(
                "#define {prefix}_QUIRK_{number} (1u << {number}) /* {} */\n#define {prefix}_QUIRK_{number}_NAME \"{}\"\n",
                in_comment(name),
                escaped(name)
            )
        };
        self.0.options.quirks.iter().enumerate().map(quirk).collect()
    }
}

/// What can fault but for the plain stubs of IN and OUT, which all have one shape.
fn faults(parts: &Parts<'_>, first: usize) -> String {
    let fault = |(at, pad): (&usize, &usize)| format!("    {{ {}, {pad} }},\n", parts.placed(*at));
    parts.faults.range(..first).map(fault).chain(["    { 0, 0 }\n".to_owned()]).collect()
}

/// As C has it between quotation marks.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' => format!("\\{}", byte as char),
        b' '..=b'~' => (byte as char).to_string(),
        _ => format!("\\{byte:03o}"),
    };
    text.bytes().map(byte).collect()
}

fn access(access: PortAccess) -> String {
    let out = u8::from(access.direction == Direction::Out);
    format!("{{ {:#06x}, {}, {out} }}", access.port, Width::bytes(access.width))
}

/// The template; what is between the marks is about INS and OUTS.
fn template(strings: bool) -> String {
    let (mut text, mut skipping) = (String::new(), false);
    for line in include_str!("table.h").lines() {
        match line {
            "@STRINGS@" => skipping = !strings,
            "@END@" => skipping = false,
            _ if skipping => {}
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}
