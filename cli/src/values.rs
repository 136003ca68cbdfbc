//! Values on the command line: ports, codes, numbers, registers, expectations.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ioemul::{Gprs, Width};

use crate::output::printable;

/// Where accesses go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum On {
    #[default]
    Hardware,
    BusPc,
    Trace(PathBuf),
}

impl On {
    /// The trace that is replayed.
    pub fn trace(&self) -> Option<&PathBuf> {
        match self {
            Self::Trace(file) => Some(file),
            Self::Hardware | Self::BusPc => None,
        }
    }
}

impl FromStr for On {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "hardware" => Ok(Self::Hardware),
            Some(("bus", "pc")) => Ok(Self::BusPc),
            Some(("trace", file)) if !file.is_empty() => Ok(Self::Trace(file.into())),
            _ => Err("use `hardware`, `bus:pc` or `trace:FILE`".to_owned()),
        }
    }
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => f.write_str("hardware"),
            Self::BusPc => f.write_str("bus:pc"),
            Self::Trace(file) => write!(f, "trace:{}", printable(&file.display().to_string())),
        }
    }
}

/// A number, decimal or, with 0x, hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, radix) = match text.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (text, 10),
        };
        let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
        if radix == 10 && digits.len() > 1 && digits.starts_with('0') {
            return Err("a leading 0 could mean octal: leave it out, or say 0x".to_owned());
        }
        match is_number.then(|| u64::from_str_radix(digits, radix)) {
            None => Err("a value is a number, decimal or, with 0x, hexadecimal".to_owned()),
            Some(Err(_)) => Err("the value does not fit 64 bits".to_owned()),
            Some(Ok(number)) => Ok(Self(number)),
        }
    }
}

impl Number {
    /// The number, if it fits so many bits.
    pub fn within(self, bits: u32, what: &str) -> Result<u32, String> {
        match u32::try_from(self.0) {
            Ok(number) if bits == 32 || number >> bits == 0 => Ok(number),
            _ => Err(format!("{:#x} does not fit: {what} has {bits} bits", self.0)),
        }
    }
}

/// A hexadecimal number with its 0x: of ports and codes, which are easily mistaken for decimal ones.
fn hexadecimal(text: &str) -> Result<u64, String> {
    if text.starts_with("0x") {
        return Ok(text.parse::<Number>()?.0);
    }
    match text.parse::<u64>() {
        Ok(decimal) if decimal > 9 && text.starts_with(|digit: char| digit.is_ascii_digit()) => {
            Err(format!("say 0x{text} or {decimal:#x}"))
        }
        Ok(decimal) => Err(format!("say {decimal:#x}")),
        Err(_) if !text.is_empty() && text.chars().all(|digit| digit.is_ascii_hexdigit()) => {
            Err(format!("say 0x{}", text.to_lowercase()))
        }
        Err(_) => Err("a number that starts with 0x is wanted".to_owned()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    u16::try_from(hexadecimal(text)?).map_err(|_| "the last port is 0xffff".to_owned())
}

/// A port and the width of an access to it: `0x71`, `0xe0.w`.
#[derive(Clone, Copy, Debug)]
pub struct PortWidth {
    pub port: u16,
    pub width: Width,
}

impl FromStr for PortWidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, suffix) = text.split_once('.').unwrap_or((text, "b"));
        let width = match suffix {
            "b" => Width::Byte,
            "w" => Width::Word,
            "l" => Width::Dword,
            _ => return Err("the width is .b, .w or .l".to_owned()),
        };
        let port = port(number)?;
        match port.checked_add(u16::from(width.bytes()) - 1) {
            Some(_) => Ok(Self { port, width }),
            None => Err(format!("{} bytes from {port:#x} run past the last port, 0xffff", width.bytes())),
        }
    }
}

/// An index port and a data port.
#[derive(Clone, Copy, Debug)]
pub struct IndexData {
    pub index: u16,
    pub data: u16,
}

impl FromStr for IndexData {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (index, data) = text.split_once(':').ok_or("two ports are wanted, as 0x70:0x71")?;
        Ok(Self { index: port(index)?, data: port(data)? })
    }
}

/// A code for the SMI command port.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub u8);

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let code = hexadecimal(text)?;
        u8::try_from(code).map(Self).map_err(|_| "a code is one byte, 0x00 to 0xff".to_owned())
    }
}

/// A function of Dell's firmware.
pub fn word(text: &str) -> Result<u16, String> {
    u16::try_from(hexadecimal(text)?).map_err(|_| "a function is two bytes, 0x0000 to 0xffff".to_owned())
}

/// Bytes as a set: `0x00-0x7f,0xa0`.
pub fn byte_set(text: &str) -> Result<Vec<u8>, String> {
    match text.trim() {
        "" | "none" => return Err("the set is empty".to_owned()),
        "all" => return Ok((0..=0xff).collect()),
        _ => {}
    }
    let mut bytes = BTreeSet::new();
    for item in text.split(',').map(str::trim) {
        if item.is_empty() {
            return Err(format!("{text}: a byte is missing before or behind a comma"));
        }
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let byte = |text: &str| {
            let number = hexadecimal(text).map_err(|why| format!("{item}: {why}"))?;
            u8::try_from(number).map_err(|_| format!("{item}: there is room for one byte, 0x00 to 0xff"))
        };
        let (first, last) = (byte(first)?, byte(last)?);
        if first > last {
            return Err(format!("{item}: the range ends before it starts"));
        }
        bytes.extend(first..=last);
    }
    Ok(bytes.into_iter().collect())
}

/// What follows the write of an SMI code.
#[derive(Clone, Copy, Debug)]
pub enum Settle {
    /// OUT of AL to this port.
    Port(u8),
    /// IN of AL from the command port.
    ReadBack,
    /// CF is set before, and waited for until it is clear.
    Carry,
}

impl FromStr for Settle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "read-back" => Ok(Self::ReadBack),
            "carry" => Ok(Self::Carry),
            _ => match u8::try_from(port(text)?) {
                Ok(port) => Ok(Self::Port(port)),
                Err(_) => Err("a port from 0x00 to 0xff is wanted: DX is not free to name a higher one".to_owned()),
            },
        }
    }
}

/// What registers hold that nobody has given a value.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    Recognizable,
    Zero,
    Random(u64),
}

impl FromStr for Fill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "recognizable" => Ok(Self::Recognizable),
            None if text == "zero" => Ok(Self::Zero),
            Some(("random", seed)) => Ok(Self::Random(seed.parse::<Number>()?.0)),
            _ => Err("there are `recognizable`, `zero` and `random:SEED`".to_owned()),
        }
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recognizable => f.write_str("recognizable"),
            Self::Zero => f.write_str("zero"),
            Self::Random(seed) => write!(f, "random:{seed:#x}"),
        }
    }
}

impl Fill {
    /// The registers for the SMI of this number. Each number has its own random ones, so that a scan that is resumed goes on
    /// with those that it would have had.
    pub fn gprs(self, number: u64) -> Gprs {
        let words = match self {
            Self::Zero => [0; 16],
            Self::Recognizable => std::array::from_fn(|word| 0x0101_0101_0101_0101 * (0x10 + word as u64)),
            Self::Random(seed) => std::array::from_fn(|word| mixed(seed ^ mixed(number << 4 | word as u64))),
        };
        Gprs { rflags: 0, ..Gprs::from_words(words) }
    }
}

/// The finalizer of SplitMix64: each bit of the result depends on each bit of the argument.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// What `table --registers` takes, for its help.
pub const TABLE_REGISTERS: &str = "gprs|kvm|pt_regs|FILE";

/// The status flags by their names, and their bits in RFLAGS (SDM vol. 1, 3.4.3.1).
pub const FLAGS: [(&str, u32); 6] = [("cf", 0), ("pf", 2), ("af", 4), ("zf", 6), ("sf", 7), ("of", 11)];

fn flag(name: &str) -> Option<u64> {
    FLAGS.iter().find(|(known, _)| *known == name).map(|(_, bit)| 1 << bit)
}

/// A register of that name, or a flag.
fn register(gprs: &Gprs, name: &str) -> Option<u64> {
    match flag(name) {
        Some(bit) => Some(u64::from(gprs.rflags & bit != 0)),
        None => gprs.get(name),
    }
}

fn set_register(gprs: &mut Gprs, name: &str, value: u64) -> Result<(), String> {
    match flag(name) {
        Some(bit) => match value {
            0 | 1 => {
                gprs.rflags = gprs.rflags & !bit | (bit * value);
                Ok(())
            }
            _ => Err(format!("{name}: a flag is 0 or 1")),
        },
        None if name == "rflags" && value & !Gprs::STATUS_FLAGS != 0 => Err(format!(
            "rflags: of {value:#x} only the status flags can be given ({:#x}: CF, PF, AF, ZF, SF and OF): no other bit reaches the CPU",
            value & Gprs::STATUS_FLAGS
        )),
        None => gprs.set(name, value).map_err(|error| error.to_string()),
    }
}

/// Why some registers cannot be given.
fn is_possible(name: &str) -> Result<(), String> {
    match name {
        "rsp" | "esp" | "sp" | "spl" => Err(format!(
            "{name}: the stack pointer cannot be given: it stays this process's own while the access is made, since signals \
             are delivered on that stack"
        )),
        "rip" | "eip" | "ip" => {
            Err(format!("{name}: the instruction pointer cannot be given: the access runs in this process"))
        }
        _ => Ok(()),
    }
}

/// Registers with the values given to them, and which bits of them were given.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    pub gprs: Gprs,
    given: [u64; 16],
}

impl Registers {
    /// Reads words such as `rax=5`, over what is in `gprs`.
    pub fn parse(words: &[String], gprs: Gprs) -> Result<Self, String> {
        let mut registers = Self { gprs, given: [0; 16] };
        for word in words {
            let (name, value) = pair(word)?;
            let bits = Self::bits(&name)?;
            if registers.given.iter().zip(bits).any(|(given, bits)| given & bits != 0) {
                return Err(format!("{word}: {name}, or a part of it, is given twice"));
            }
            set_register(
                &mut registers.gprs,
                &name,
                value.parse::<Number>().map_err(|why| format!("{word}: {why}"))?.0,
            )?;
            registers.given.iter_mut().zip(bits).for_each(|(given, bits)| *given |= bits);
        }
        Ok(registers)
    }

    /// The bits of the sixteen words that a name stands for.
    fn bits(name: &str) -> Result<[u64; 16], String> {
        is_possible(name)?;
        if let Some(bit) = flag(name) {
            return Ok(Gprs { rflags: bit, ..Gprs::default() }.to_words());
        }
        // All bits set that the register has: the widest value that it takes.
        let mut gprs = Gprs::default();
        let widest = [u64::MAX, 0xffff_ffff, 0xffff, 0xff];
        match widest.iter().map(|value| gprs.set(name, *value)).find(|result| result.is_ok()) {
            Some(_) => Ok(gprs.to_words()),
            None => Err(gprs.set(name, 0).map_or_else(|error| error.to_string(), |()| name.to_owned())),
        }
    }

    /// Puts a value that the protocol asks for to a register, unless something else was given for these bits.
    pub fn put(&mut self, name: &str, value: u64, why: &str) -> Result<(), String> {
        let [bits] = Self::bits(name).map(|bits| [bits])?;
        let is_other = self.given.iter().zip(bits).any(|(given, bits)| given & bits != 0)
            && register(&self.gprs, name) != Some(value);
        if is_other {
            let given = register(&self.gprs, name).unwrap_or_default();
            return Err(format!("the registers given have {given:#x} in {name}: {why}, {value:#x} here"));
        }
        set_register(&mut self.gprs, name, value)
    }
}

fn pair(word: &str) -> Result<(String, &str), String> {
    let (name, value) =
        word.split_once('=').ok_or_else(|| format!("{word}: registers are written REG=VALUE, as in rax=0x5"))?;
    Ok((name.to_ascii_lowercase(), value))
}

/// What a register has to hold.
#[derive(Clone, Debug)]
pub struct Expectation {
    name: String,
    value: u64,
    mask: u64,
}

impl Expectation {
    pub fn parse_all(words: &[String]) -> Result<Vec<Self>, String> {
        words.iter().map(|word| Self::parse(word)).collect()
    }

    fn parse(word: &str) -> Result<Self, String> {
        let (name, rest) = pair(word)?;
        let bits = Registers::bits(&name)?;
        let (value, mask) = match rest.split_once('/') {
            Some((value, mask)) => (value, Some(mask)),
            None => (rest, None),
        };
        let number = |text: &str| text.parse::<Number>().map(|number| number.0).map_err(|why| format!("{word}: {why}"));
        let (value, mask) = (number(value)?, mask.map_or(Ok(u64::MAX), number)?);
        let all = register(&Gprs::from_words(bits), &name).unwrap_or_default();
        if value & !all != 0 {
            return Err(format!("{word}: the value does not fit {name}"));
        }
        if value & !mask != 0 {
            return Err(format!("{word}: the mask leaves out bits that the value has, so that it could never hold"));
        }
        Ok(Self { name, value, mask })
    }

    /// What is there instead, if it does not hold.
    pub fn unmet(&self, gprs: &Gprs) -> Option<String> {
        let found = register(gprs, &self.name)?;
        let Self { name, value, mask } = self;
        (found & mask != *value).then(|| match *mask {
            u64::MAX => format!("{name} is {found:#x}, and {value:#x} was expected"),
            mask => format!("{name} is {found:#x}, and {value:#x} was expected in the bits {mask:#x}"),
        })
    }
}

/// Bytes in hexadecimal, with or without spaces.
pub fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|letter| *letter != ' ')
        .map(|letter| letter.to_digit(16))
        .collect::<Option<_>>()
        .filter(|digits: &Vec<u32>| !digits.is_empty() && digits.len() % 2 == 0)
        .ok_or_else(|| format!("{text}: bytes are written as pairs of hexadecimal digits, as 66ed"))?;
    Ok(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}
