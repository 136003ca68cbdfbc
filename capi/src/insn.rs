//! Instructions: decoded, numbered, encoded, named.
#![allow(unsafe_code)] // pointers from C, and names that the linker sees

use core::ffi::{c_char, c_int, c_void};
use core::fmt::{Display, Write};

use ioemul_core::{AddressSize, CodeSize, Direction, IoInsn, PortAccess, PortOperand, Segment, Width};

use crate::pointers::{Growing, GrowingPlace, Place, elements, elements_mut, read};
use crate::status::{Status, guard};

/// `struct ioemul_insn`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    pub size: usize,
    pub direction: u8,
    pub width: u8,
    pub operand: u8,
    pub port: u8,
    pub rep: u8,
    pub address: u8,
    pub segment: u8,
    pub reserved: u8,
}

// SAFETY: the first field is a `usize`, and all are integers.
unsafe impl Growing for Insn {
    const FIRST: usize = 16;
}

pub(crate) const IN: u8 = 0;
pub(crate) const OUT: u8 = 1;
pub(crate) const DX: u8 = 0;
pub(crate) const IMM8: u8 = 1;
pub(crate) const STRING: u8 = 2;
/// In the order of their numbers.
pub(crate) const SEGMENTS: [Segment; 6] =
    [Segment::Es, Segment::Cs, Segment::Ss, Segment::Ds, Segment::Fs, Segment::Gs];

fn direction(direction: Direction) -> u8 {
    match direction {
        Direction::In => IN,
        Direction::Out => OUT,
    }
}

impl From<IoInsn> for Insn {
    fn from(insn: IoInsn) -> Self {
        let plain = Self {
            size: size_of::<Self>(),
            direction: direction(insn.direction),
            width: insn.width.bytes(),
            ..Self::default()
        };
        match insn.operand {
            PortOperand::Imm8(port) => Self { operand: IMM8, port, ..plain },
            PortOperand::String { rep, address, segment } => Self {
                operand: STRING,
                rep: rep.into(),
                address: match address {
                    AddressSize::Bits16 => 16,
                    AddressSize::Bits32 => 32,
                    AddressSize::Bits64 => 64,
                },
                segment: SEGMENTS.iter().zip(0..).find(|of| *of.0 == segment).map_or(0, |of| of.1),
                ..plain
            },
            _ => plain, // DX
        }
    }
}

impl TryFrom<Insn> for IoInsn {
    type Error = Status;

    fn try_from(insn: Insn) -> Result<Self, Status> {
        let direction = match insn.direction {
            IN => Direction::In,
            OUT => Direction::Out,
            _ => return Err(Status::Value),
        };
        let width = Width::ALL.iter().find(|width| width.bytes() == insn.width).ok_or(Status::Value)?;
        let operand = match (insn.operand, insn.rep, insn.address, insn.segment) {
            (DX, 0, 0, 0) => PortOperand::Dx,
            (IMM8, 0, 0, 0) => PortOperand::Imm8(insn.port),
            (STRING, rep @ (0 | 1), address, segment) => PortOperand::String {
                rep: rep == 1,
                address: match address {
                    16 => AddressSize::Bits16,
                    32 => AddressSize::Bits32,
                    64 => AddressSize::Bits64,
                    _ => return Err(Status::Value),
                },
                segment: *SEGMENTS.get(usize::from(segment)).ok_or(Status::Value)?,
            },
            _ => return Err(Status::Value),
        };
        let has_port = insn.operand == IMM8 || insn.port == 0;
        if has_port && insn.reserved == 0 { Ok(Self { direction, width: *width, operand }) } else { Err(Status::Value) }
    }
}

/// The caller's instruction.
pub(crate) unsafe fn insn(at: *const Insn) -> Result<IoInsn, Status> {
    // SAFETY: the caller's promise is passed on.
    unsafe { read(at)? }.try_into()
}

/// Strings with 16-bit addresses or a segment override are a guest's: no stub may make their access as it is.
pub(crate) fn has_a_stub(insn: IoInsn) -> Result<(), Status> {
    let has = !insn.is_string() || IoInsn::all().nth(insn.index()) == Some(insn);
    if has { Ok(()) } else { Err(Status::NoStub) }
}

/// `struct ioemul_access`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Access {
    pub port: u16,
    pub width: u8,
    pub direction: u8,
}

impl From<PortAccess> for Access {
    fn from(access: PortAccess) -> Self {
        Self { port: access.port, width: access.width.bytes(), direction: direction(access.direction) }
    }
}

pub(crate) fn code_size(bits: u32) -> Result<CodeSize, Status> {
    match bits {
        16 => Ok(CodeSize::Bits16),
        32 => Ok(CodeSize::Bits32),
        64 => Ok(CodeSize::Bits64),
        _ => Err(Status::Value),
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_decode(
    code: *const c_void,
    len: usize,
    bits: u32,
    insn: *mut Insn,
    length: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (insn, length) = (GrowingPlace::new(insn)?, Place::new(length)?);
        let (decoded, bytes) = IoInsn::decode_in(code_size(bits)?, elements(code.cast::<u8>(), len)?)?;
        insn.write(decoded.into());
        length.write(bytes);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_insn_at(index: usize, insn: *mut Insn) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let insn = GrowingPlace::new(insn)?;
        insn.write(IoInsn::all().nth(index).ok_or(Status::NotFound)?.into());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_insn_index(insn: *const Insn, index: *mut usize) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (insn, index) = (self::insn(insn)?, Place::new(index)?);
        has_a_stub(insn)?;
        index.write(insn.index());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_insn_encode(
    insn: *const Insn,
    code: *mut c_void,
    len: usize,
    length: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (insn, length) = (self::insn(insn)?, Place::new(length)?);
        let (bytes, count) = insn.encode();
        if len < count {
            return Err(Status::TooSmall);
        }
        elements_mut(code.cast::<u8>(), count)?.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        length.write(count);
        Ok(())
    })
}

/// An instruction's text, with the NUL, is no longer (`fs addr32 rep outsd`), and neither is a symbol's
/// (`ioemul:out dx, al (HP ProLiant SMM port, unbounded)`).
pub(crate) const MAX_TEXT: usize = 64;

/// Text, before it goes to memory of the caller's: all of it, or none.
struct Text {
    bytes: [u8; MAX_TEXT],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            *self.bytes.get_mut(self.len).ok_or(core::fmt::Error)? = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// Writes text with a NUL behind it to `len` bytes of the caller's.
pub(crate) unsafe fn write_text(what: impl Display, text: *mut c_char, len: usize) -> Result<(), Status> {
    let mut written = Text { bytes: [0; MAX_TEXT], len: 0 };
    write!(written, "{what}\0").map_err(|_| Status::Internal)?;
    if len < written.len {
        return Err(Status::TooSmall);
    }
    // SAFETY: the caller's promise is passed on.
    let room = unsafe { elements_mut(text.cast::<u8>(), written.len)? };
    room.iter_mut().zip(written.bytes).for_each(|(place, byte)| *place = byte);
    Ok(())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_insn_text(insn: *const Insn, text: *mut c_char, len: usize) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let insn = self::insn(insn)?;
        write_text(insn, text, len)
    })
}
