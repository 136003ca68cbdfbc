//! What the fuzz targets share: input read as a script, and code emitted with any options.

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use ioemul::{EmitError, EmitOptions, IoInsn, Quirk, RegisterFile, Ring, StubLayout};

/// Input as a script, of which one thing after the other is taken: zeros when it is at its end. (Seeds of such a form can be
/// written by hand: `seeds.py`.)
#[derive(Clone, Debug, Default)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next bytes, as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// As many bytes as the next one says.
    pub fn counted(&mut self) -> &'a [u8] {
        let count = self.u8();
        self.bytes(count.into())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }
}

/// A form by any number.
pub fn form(index: u16) -> IoInsn {
    static FORMS: LazyLock<Vec<IoInsn>> = LazyLock::new(|| IoInsn::all().collect());
    FORMS[usize::from(index) % FORMS.len()]
}

/// Anywhere, or near the helpers and the edges of what a near branch reaches.
#[derive(Arbitrary, Debug)]
pub enum Address {
    Anywhere(u64),
    Near(i16),
    Below(i16),
    Above(i16),
}

impl Address {
    pub fn from(&self, base: u64) -> u64 {
        match *self {
            Self::Anywhere(va) => va,
            Self::Near(by) => base.wrapping_add_signed(by.into()),
            Self::Below(by) => base.wrapping_sub(1 << 31).wrapping_add_signed(by.into()),
            Self::Above(by) => base.wrapping_add(1 << 31).wrapping_add_signed(by.into()),
        }
    }
}

/// What may change the bytes.
#[derive(Arbitrary, Debug)]
pub struct Options {
    layout: u8,
    registers: Registers,
    endbr64: bool,
    int3: bool,
    return_thunk: Option<Address>,
    quirks: u8,
    ring_3: bool,
    scrub: bool,
}

/// Where the host keeps the registers.
#[derive(Arbitrary, Debug)]
enum Registers {
    Gprs,
    PtRegs,
    KvmRegs,
    /// Anywhere, as likely as not with two of them in one place.
    Others([i16; 15], Option<i16>),
}

impl Options {
    /// With addresses that are relative to `base`, and up to one quirk more than are taken.
    pub fn at(&self, base: u64) -> EmitOptions<'static> {
        let registers = match self.registers {
            Registers::Gprs => RegisterFile::GPRS,
            Registers::PtRegs => RegisterFile::PT_REGS,
            Registers::KvmRegs => RegisterFile::KVM_REGS,
            Registers::Others(offsets, rflags) => RegisterFile::new(offsets, rflags),
        };
        let first = usize::from(self.quirks >> 4) % Quirk::ALL.len();
        let quirks = &Quirk::ALL[first..];
        let count = usize::from(self.quirks & 15) % (EmitOptions::MAX_QUIRKS + 2);
        EmitOptions::new()
            .layout(StubLayout::ALL[usize::from(self.layout) % StubLayout::ALL.len()])
            .registers(registers)
            .endbr64(self.endbr64)
            .return_thunk(self.return_thunk.as_ref().map(|thunk| thunk.from(base)))
            .int3(self.int3)
            .scrub(self.scrub)
            .ring(if self.ring_3 { Ring::Three } else { Ring::Zero })
            .quirks(&quirks[..count.min(quirks.len())])
    }
}

const PATTERN: u8 = 0xaa;

/// Emits into the first `len` bytes of a pattern, and looks at all of it afterwards.
pub fn emitted<T>(
    memory: &mut [u8],
    len: usize,
    emit: impl FnOnce(&mut [u8]) -> Result<T, EmitError>,
    written: impl FnOnce(&T) -> usize,
) -> Option<T> {
    memory.fill(PATTERN);
    let result = emit(&mut memory[..len]);
    let written = result.as_ref().map_or(0, written);
    assert!(written <= len);
    assert!(memory[written..].iter().all(|byte| *byte == PATTERN), "written where nothing should be");
    match result {
        Ok(result) => Some(result),
        Err(EmitError::SlotTooSmall { needed, available }) => {
            assert!(needed > available && available == len);
            None
        }
        Err(EmitError::HelperOutOfRange { displacement }) => {
            assert!(i32::try_from(displacement).is_err());
            None
        }
        Err(EmitError::AddressOverflow { va, len }) => {
            let last = va.checked_add((len as u64).saturating_sub(1));
            assert!(last.is_none_or(|last| !canonical(va) || !canonical(last) || (va ^ last) >> 63 != 0));
            None
        }
        Err(EmitError::RegisterFile | EmitError::TooManyQuirks { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

/// Whether bits 63 to 47 are all the same.
fn canonical(va: u64) -> bool {
    let high = va as i64 >> 47;
    high == 0 || high == -1
}

/// Whether `at` is in the I/O sequence of a plain stub: in an instruction of port I/O, or in the no-ops that fill it up to
/// three bytes (four, for INS and OUTS).
pub fn is_in_io(code: &[u8], at: usize) -> bool {
    let begins = |first: usize| {
        let (len, padding) = match IoInsn::decode(&code[first..]) {
            Ok((insn, len)) if insn.is_string() => (len, 4 - len),
            Ok((_, len)) => (len, usize::from(code[first..first + len][0] != 0x66)),
            Err(_) => return false,
        };
        (first.saturating_sub(padding)..(first + len).max(first - padding.min(first) + 3)).contains(&at)
    };
    (at.saturating_sub(3)..(at + 4).min(code.len())).any(begins)
}
