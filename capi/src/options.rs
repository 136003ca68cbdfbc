//! What a caller asks of emitted code.
#![allow(unsafe_code)] // pointers from C, and names that the linker sees

use core::ffi::c_int;

use ioemul_core::{EmitOptions, Quirk, RegisterFile, Ring, StubLayout};

use crate::pointers::{Growing, GrowingPlace, elements, read};
use crate::quirks::QuirkChoice;
use crate::status::{Status, guard};

/// `struct ioemul_register_file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Registers {
    pub size: usize,
    pub gprs: [i16; 15],
    pub rflags: i16,
    pub has_rflags: u32,
    pub reserved: u32,
}

// SAFETY: the first field is a `usize`, and all are integers.
unsafe impl Growing for Registers {
    const FIRST: usize = 48;
}

impl From<RegisterFile> for Registers {
    fn from(file: RegisterFile) -> Self {
        let mut gprs = [0; 15];
        gprs.iter_mut().zip(file.offsets()).for_each(|(place, offset)| *place = *offset);
        let (rflags, has_rflags) = (file.rflags().unwrap_or(0), file.rflags().is_some().into());
        Self { size: size_of::<Self>(), gprs, rflags, has_rflags, reserved: 0 }
    }
}

impl TryFrom<Registers> for RegisterFile {
    type Error = Status;

    fn try_from(file: Registers) -> Result<Self, Status> {
        let rflags = match file {
            Registers { has_rflags: 0, rflags: 0, reserved: 0, .. } => None,
            Registers { has_rflags: 1, reserved: 0, .. } => Some(file.rflags),
            _ => return Err(Status::Value),
        };
        Ok(Self::new(file.gprs, rflags))
    }
}

/// `enum ioemul_registers`.
pub(crate) const FILES: [RegisterFile; 3] = [RegisterFile::GPRS, RegisterFile::KVM_REGS, RegisterFile::PT_REGS];

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_register_file_of(which: u32, file: *mut Registers) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let file = GrowingPlace::new(file)?;
        let found = usize::try_from(which).ok().and_then(|which| FILES.get(which));
        file.write((*found.ok_or(Status::Value)?).into());
        Ok(())
    })
}

/// `struct ioemul_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Options {
    pub size: usize,
    pub layout: u32,
    pub ring: u32,
    pub flags: u64,
    pub return_thunk: u64,
    pub registers: *const Registers,
    pub quirks: *const QuirkChoice,
    pub quirk_count: usize,
}

// SAFETY: the first field is a `usize`, and all are integers and raw pointers.
unsafe impl Growing for Options {
    const FIRST: usize = 56;
}

pub(crate) const ENDBR64: u64 = 1;
pub(crate) const INT3: u64 = 2;
pub(crate) const SCRUB: u64 = 4;

/// `enum ioemul_layout`.
pub(crate) const LAYOUTS: [StubLayout; 4] =
    [StubLayout::CallRet, StubLayout::Rop, StubLayout::Compact, StubLayout::Inline];

/// The options, with room for the quirks of the core's kind.
pub(crate) struct Given {
    options: EmitOptions<'static>,
    quirks: [Quirk; EmitOptions::MAX_QUIRKS],
    quirk_count: usize,
}

impl Given {
    /// The caller's options, all of them looked at; NULL are the defaults.
    pub unsafe fn new(at: *const Options) -> Result<Self, Status> {
        let mut given =
            Self { options: EmitOptions::new(), quirks: [Quirk::PROLIANT; EmitOptions::MAX_QUIRKS], quirk_count: 0 };
        if at.is_null() {
            return Ok(given);
        }
        // SAFETY: the caller's promise is passed on.
        let options = unsafe { read(at)? };
        if options.flags & !(ENDBR64 | INT3 | SCRUB) != 0 {
            return Err(Status::Value);
        }
        let layout = usize::try_from(options.layout).ok().and_then(|layout| LAYOUTS.get(layout));
        let ring = match options.ring {
            0 => Ring::Zero,
            3 => Ring::Three,
            _ => return Err(Status::Value),
        };
        if !options.registers.is_null() {
            // SAFETY: the caller's promise is passed on.
            given.options = given.options.registers(unsafe { read(options.registers)? }.try_into()?);
        }
        given.options = given
            .options
            .layout(*layout.ok_or(Status::Value)?)
            .ring(ring)
            .endbr64(options.flags & ENDBR64 != 0)
            .int3(options.flags & INT3 != 0)
            .scrub(options.flags & SCRUB != 0)
            .return_thunk((options.return_thunk != 0).then_some(options.return_thunk));
        if options.quirk_count > given.quirks.len() {
            return Err(Status::TooManyQuirks);
        }
        // SAFETY: the caller's promise is passed on.
        let quirks = unsafe { elements(options.quirks, options.quirk_count)? };
        for (place, quirk) in given.quirks.iter_mut().zip(quirks) {
            *place = (*quirk).try_into()?;
        }
        given.quirk_count = quirks.len();
        Ok(given)
    }

    pub fn options(&self) -> EmitOptions<'_> {
        self.options.quirks(self.quirks())
    }

    pub fn quirks(&self) -> &[Quirk] {
        self.quirks.get(..self.quirk_count).unwrap_or_default()
    }
}
