//! A vector as it stands in the files: see vectors/README.md. Every number but counts of bytes is a hexadecimal string.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// Which registers there are, in the order of their numbers in machine code; RFLAGS behind them.
pub const REGISTERS: [&str; 17] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rflags",
];

/// A 64-bit number: sixteen digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

/// Bytes, two digits each, in the order of their addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

#[derive(Serialize)]
pub struct Line {
    pub id: String,
    pub mode: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<&'static str>,
    pub code: Bytes,
    pub rip: Hex,
    pub registers: BTreeMap<Register, Hex>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub segments: BTreeMap<&'static str, SegmentLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privilege: Option<PrivilegeLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryLine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    pub expect: Vec<ExpectLine>,
}

/// A register by its number, which is what orders them; it is written by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register(pub usize);

impl Serialize for Register {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REGISTERS[self.0])
    }
}

#[derive(Serialize)]
pub struct SegmentLine {
    pub base: Hex,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Hex>,
}

#[derive(Serialize)]
pub struct PrivilegeLine {
    pub cpl: u8,
    pub iopl: u8,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub vm86: bool,
    pub bitmap: BitmapLine,
}

#[derive(Serialize)]
pub struct BitmapLine {
    /// How many bytes lie between the map's base and the segment limit, the byte at the limit included.
    pub bytes: usize,
    /// The bits that are set: first and last of each run.
    pub denied: Vec<[String; 2]>,
}

#[derive(Serialize)]
pub struct MemoryLine {
    pub pages: Vec<Hex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read_only: Vec<Hex>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bytes: BTreeMap<Hex, Bytes>,
}

#[derive(Serialize, PartialEq)]
pub struct ExpectLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<&'static str>,
    pub outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<Hex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io: Vec<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maybe_io: Option<Io>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub registers: BTreeMap<Register, Hex>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub memory: BTreeMap<Hex, Bytes>,
}

/// Direction, port, width in bytes, value.
#[derive(Serialize, PartialEq, Clone)]
pub struct Io(pub &'static str, pub String, pub u8, pub String);

pub fn value(width: u8, value: u32) -> String {
    format!("{value:0digits$x}", digits = usize::from(width) * 2)
}
