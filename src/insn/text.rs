//! The written form of instructions, in Intel syntax, both ways.

use core::fmt;
use core::str::FromStr;

use crate::{AddressSize, Direction, IoInsn, PortOperand, Segment, Width};

/// Overrides, as they stand in front of OUTS.
const SEGMENTS: [(&str, Segment); 5] =
    [("es ", Segment::Es), ("cs ", Segment::Cs), ("ss ", Segment::Ss), ("fs ", Segment::Fs), ("gs ", Segment::Gs)];

impl fmt::Display for IoInsn {
    /// Intel syntax: `in al, dx`, `out 0x80, eax`, `rep insb`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let register = match self.width {
            Width::Byte => "al",
            Width::Word => "ax",
            Width::Dword => "eax",
        };
        match (self.direction, self.operand) {
            (Direction::In, PortOperand::Dx) => write!(f, "in {register}, dx"),
            (Direction::In, PortOperand::Imm8(port)) => write!(f, "in {register}, {port:#04x}"),
            (Direction::Out, PortOperand::Dx) => write!(f, "out dx, {register}"),
            (Direction::Out, PortOperand::Imm8(port)) => write!(f, "out {port:#04x}, {register}"),
            (direction, PortOperand::String { rep, address, segment }) => {
                let mnemonic = match direction {
                    Direction::In => "ins",
                    Direction::Out => "outs",
                };
                let suffix = match self.width {
                    Width::Byte => "b",
                    Width::Word => "w",
                    Width::Dword => "d",
                };
                let address = match address {
                    AddressSize::Bits16 => "addr16 ",
                    AddressSize::Bits32 => "addr32 ",
                    AddressSize::Bits64 => "",
                };
                let segment = match (direction, segment) {
                    (Direction::In, _) | (_, Segment::Ds) => "",
                    (_, segment) => SEGMENTS.iter().find(|row| row.1 == segment).map_or("", |row| row.0),
                };
                let rep = if rep { "rep " } else { "" };
                write!(f, "{segment}{address}{rep}{mnemonic}{suffix}")
            }
        }
    }
}

impl FromStr for IoInsn {
    type Err = ParseInsnError;

    /// Parses what [`Display`](core::fmt::Display) writes: `in al, dx`, `out 0x80, eax`, `rep insb`.
    ///
    /// ```
    /// use ioemul::{IoInsn, Width};
    /// assert_eq!("out 0x80, eax".parse(), Ok(IoInsn::out_imm8(Width::Dword, 0x80)));
    /// assert!("mov eax, 1".parse::<IoInsn>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Self, ParseInsnError> {
        let operands = |direction, register: Option<(&str, &str)>| match (direction, register?) {
            (Direction::In, (register, port)) | (Direction::Out, (port, register)) => {
                Some(Self { direction, width: accumulator(register.trim())?, operand: port_operand(port.trim())? })
            }
        };
        let insn = match text.trim().split_once(' ') {
            Some(("in", rest)) => operands(Direction::In, rest.split_once(',')),
            Some(("out", rest)) => operands(Direction::Out, rest.split_once(',')),
            _ => string(text.trim()),
        };
        insn.ok_or(ParseInsnError)
    }
}

fn accumulator(register: &str) -> Option<Width> {
    match register {
        "al" => Some(Width::Byte),
        "ax" => Some(Width::Word),
        "eax" => Some(Width::Dword),
        _ => None,
    }
}

fn port_operand(port: &str) -> Option<PortOperand> {
    match port.strip_prefix("0x") {
        None => (port == "dx").then_some(PortOperand::Dx),
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            Some(PortOperand::Imm8(u8::from_str_radix(digits, 16).ok()?))
        }
        Some(_) => None,
    }
}

/// `gs addr32 rep outsd`, without what is not so.
fn string(text: &str) -> Option<IoInsn> {
    let mut overrides = SEGMENTS.iter().filter_map(|(name, segment)| Some((*segment, text.strip_prefix(name)?)));
    let (segment, text) = overrides.next().map_or((None, text), |(segment, rest)| (Some(segment), rest));
    let sizes = [("addr16 ", AddressSize::Bits16), ("addr32 ", AddressSize::Bits32)];
    let mut sizes = sizes.into_iter().filter_map(|(name, size)| Some((size, text.strip_prefix(name)?)));
    let (address, text) = sizes.next().unwrap_or((AddressSize::Bits64, text));
    let (rep, text) = text.strip_prefix("rep ").map_or((false, text), |rest| (true, rest));
    let (direction, width) = match text {
        "insb" => (Direction::In, Width::Byte),
        "insw" => (Direction::In, Width::Word),
        "insd" => (Direction::In, Width::Dword),
        "outsb" => (Direction::Out, Width::Byte),
        "outsw" => (Direction::Out, Width::Word),
        "outsd" => (Direction::Out, Width::Dword),
        _ => return None,
    };
    let segment = match (direction, segment) {
        (Direction::In, None) => Segment::Es,
        (Direction::In, Some(_)) => return None,
        (Direction::Out, segment) => segment.unwrap_or(Segment::Ds),
    };
    Some(IoInsn { direction, width, operand: PortOperand::String { rep, address, segment } })
}

/// A text is not an instruction of port I/O, or not as this crate writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a port-I/O instruction as in `in al, dx`, `out 0x80, eax` or `rep insb`")]
pub struct ParseInsnError;

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_back() {
        for insn in IoInsn::all() {
            assert_eq!(insn.to_string().parse(), Ok(insn), "{insn}");
        }
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "",
            "in",
            "in al",
            "in al,",
            "in al dx",
            "in dx, al",
            "out al, dx",
            "in rax, dx",
            "in al, cx",
            "in al, 0x100",
            "in al, 0x+1",
            "in al, 80",
            "in al, 0x",
            "rep in al, dx",
            "insq",
            "rep addr32 insb",
            "in al, dx, dx",
        ] {
            assert_eq!(text.parse::<IoInsn>(), Err(ParseInsnError), "{text}");
        }
        assert_eq!(" in  al , dx ".parse(), Ok(IoInsn::in_dx(Width::Byte)));
    }

    #[test]
    fn forms_of_other_modes_and_segments() {
        for text in ["gs addr16 rep outsb", "fs outsd", "es addr32 outsw", "addr16 insb", "cs rep outsb"] {
            assert_eq!(text.parse::<IoInsn>().unwrap().to_string(), text);
        }
        for text in ["ds outsb", "gs insb", "addr32 gs outsb", "addr64 insb"] {
            assert_eq!(text.parse::<IoInsn>(), Err(ParseInsnError), "{text}");
        }
    }
}
