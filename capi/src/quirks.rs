//! Quirks: by number, by name, by what machine this is.
#![allow(unsafe_code)] // pointers from C, and names that the linker sees

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;

use ioemul_core::{DmiStrings, Quirk, SmbiosEntryPoint};

use crate::pointers::{Growing, GrowingPlace, Place, check, elements, read, write_all};
use crate::status::{Status, guard};

/// `struct ioemul_quirk`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct QuirkChoice {
    pub number: u32,
    pub port: u16,
    pub has_port: u16,
}

/// The quirks by number, from 1 on. The numbers are the interface's: they stay, whatever becomes of `Quirk::ALL`.
pub(crate) const NUMBERED: [(&CStr, Quirk); 7] = [
    (c"HP ProLiant SMM port", Quirk::PROLIANT),
    (c"HP ProLiant SMM port, unbounded", Quirk::PROLIANT_UNBOUNDED),
    (c"Dell SMM", Quirk::DELL_SMM),
    (c"ThinkPad SMAPI", Quirk::THINKPAD_SMAPI),
    (c"read-back", Quirk::READ_BACK),
    (c"GSMI carry handshake", Quirk::GSMI_CARRY),
    (c"GSMI spin", Quirk::GSMI_SPIN),
];

fn numbered(number: u32) -> Option<&'static (&'static CStr, Quirk)> {
    const { &NUMBERED }.get(usize::try_from(number.checked_sub(1)?).ok()?)
}

impl TryFrom<QuirkChoice> for Quirk {
    type Error = Status;

    fn try_from(choice: QuirkChoice) -> Result<Self, Status> {
        let (_, quirk) = numbered(choice.number).ok_or(Status::Value)?;
        match choice {
            QuirkChoice { has_port: 0, port: 0, .. } => Ok(*quirk),
            QuirkChoice { has_port: 1, port, .. } => Ok(quirk.at_port(port)),
            _ => Err(Status::Value),
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn ioemul_quirk_name(number: u32) -> *const c_char {
    numbered(number).map_or(ptr::null(), |(name, _)| name.as_ptr())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_quirk_by_name(name: *const c_char, quirk: *mut QuirkChoice) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h; the name ends with a NUL.
    guard(|| unsafe {
        let quirk = Place::new(quirk)?;
        check(name)?;
        let name = CStr::from_ptr(name);
        let found = const { &NUMBERED }.iter().zip(1..).find(|((known, _), _)| *known == name);
        let (_, number) = found.ok_or(Status::NotFound)?;
        quirk.write(QuirkChoice { number, ..QuirkChoice::default() });
        Ok(())
    })
}

/// `struct ioemul_string`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Text {
    pub at: *const c_char,
    pub len: usize,
}

impl Text {
    fn new(text: &str) -> Self {
        let at = if text.is_empty() { ptr::null() } else { text.as_ptr().cast() };
        Self { at, len: text.len() }
    }

    /// As much of it as is UTF-8: what is not is no part of a string that is looked for.
    unsafe fn get<'a>(self) -> Result<&'a str, Status> {
        // SAFETY: the caller's promise is passed on.
        let bytes = unsafe { elements(self.at.cast::<u8>(), self.len)? };
        Ok(bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid()))
    }
}

/// `struct ioemul_dmi`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Dmi {
    pub size: usize,
    pub bios_vendor: Text,
    pub bios_version: Text,
    pub sys_vendor: Text,
    pub product_name: Text,
    pub board_name: Text,
}

// SAFETY: the first field is a `usize`, and all are integers and raw pointers.
unsafe impl Growing for Dmi {
    const FIRST: usize = 88;
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_dmi_from_smbios(table: *const c_void, len: usize, dmi: *mut Dmi) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let dmi = GrowingPlace::new(dmi)?;
        let strings = DmiStrings::from_smbios(elements(table.cast::<u8>(), len)?);
        dmi.write(Dmi {
            size: size_of::<Dmi>(),
            bios_vendor: Text::new(strings.bios_vendor),
            bios_version: Text::new(strings.bios_version),
            sys_vendor: Text::new(strings.sys_vendor),
            product_name: Text::new(strings.product_name),
            board_name: Text::new(strings.board_name),
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_smbios_find(
    memory: *const c_void,
    len: usize,
    address: *mut u64,
    length: *mut u32,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (address, length) = (Place::new(address)?, Place::new(length)?);
        let found = SmbiosEntryPoint::find(elements(memory.cast::<u8>(), len)?).ok_or(Status::NotFound)?;
        address.write(found.address);
        length.write(found.length);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_quirks_of_machine(
    dmi: *const Dmi,
    quirks: *mut QuirkChoice,
    count: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let dmi = read(dmi)?;
        let mut strings = DmiStrings::new(dmi.bios_vendor.get()?, dmi.product_name.get()?);
        strings.bios_version = dmi.bios_version.get()?;
        strings.sys_vendor = dmi.sys_vendor.get()?;
        strings.board_name = dmi.board_name.get()?;
        let is_built_in = |quirk: &Quirk| Quirk::BUILTIN.iter().any(|known| known.name() == quirk.name());
        let of_machine = const { &NUMBERED }
            .iter()
            .zip(1..)
            .filter(|((_, quirk), _)| is_built_in(quirk) && quirk.is_on_platform(&strings));
        let choices = of_machine.map(|(_, number)| QuirkChoice { number, ..QuirkChoice::default() });
        write_all(choices, quirks, count)
    })
}
