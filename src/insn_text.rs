//! Instructions from their written form: the inverse of `Display`.

use core::str::FromStr;

use crate::{Direction, IoInsn, PortOperand, Width};

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
                Some(Self { direction, width: accumulator(register.trim())?, port: port_operand(port.trim())? })
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

/// `addr32 rep outsd`, without what is not so.
fn string(text: &str) -> Option<IoInsn> {
    let (addr32, text) = text.strip_prefix("addr32 ").map_or((false, text), |rest| (true, rest));
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
    Some(IoInsn { direction, width, port: PortOperand::String { rep, addr32 } })
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
        for insn in IoInsn::all().chain(IoInsn::strings()) {
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
}
