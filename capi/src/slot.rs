//! One stub at a time: the helpers, and a slot for each CPU.
#![allow(unsafe_code)] // pointers from C, and names that the linker sees

use core::ffi::{c_int, c_void};

use ioemul_core::{EmitOptions, Gprs, Helpers, PortAccess, Quirk, emit_stub, stub_fixup};

use crate::insn::{Access, Insn, has_a_stub, insn};
use crate::options::{Given, Options};
use crate::pointers::{Marked, Opaque, Place, elements_mut, write_all};
use crate::status::{Status, guard};

/// `struct ioemul_helpers`.
pub(crate) type HelpersRoom = Opaque<Shared, 255>;

/// The helpers, and the quirks that their stubs look out for.
pub(crate) struct Shared {
    helpers: Helpers,
    quirks: [Option<Quirk>; EmitOptions::MAX_QUIRKS],
}

impl Marked for Shared {
    const MARK: u64 = u64::from_le_bytes(*b"ioehelps");
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_helpers_emit(
    helpers: *mut HelpersRoom,
    code: *mut c_void,
    len: usize,
    va: u64,
    options: *const Options,
    length: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (given, room, length) = (Given::new(options)?, HelpersRoom::room(helpers)?, Place::new(length)?);
        let helpers = Helpers::emit(elements_mut(code.cast::<u8>(), len)?, va, &given.options())?;
        length.write(helpers.len());
        let mut quirks = [None; EmitOptions::MAX_QUIRKS];
        quirks.iter_mut().zip(given.quirks()).for_each(|(place, quirk)| *place = Some(*quirk));
        room.write(Shared { helpers, quirks });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_stub_emit(
    slot: *mut c_void,
    len: usize,
    va: u64,
    insn: *const Insn,
    helpers: *const HelpersRoom,
    length: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (shared, insn, length) = (HelpersRoom::get(helpers)?, self::insn(insn)?, Place::new(length)?);
        has_a_stub(insn)?;
        length.write(emit_stub(elements_mut(slot.cast::<u8>(), len)?, va, insn, &shared.helpers)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_stub_accesses(
    insn: *const Insn,
    helpers: *const HelpersRoom,
    rax: u64,
    rdx: u64,
    accesses: *mut Access,
    count: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (shared, insn) = (HelpersRoom::get(helpers)?, self::insn(insn)?);
        let quirk = shared.quirks.iter().flatten().find(|quirk| quirk.applies(insn, rax, rdx));
        let plain = PortAccess::of(insn, &Gprs { rdx, ..Gprs::default() });
        let nth = |nth| match quirk {
            Some(quirk) => quirk.accesses(insn).nth(nth),
            None => (nth == 0).then_some(plain),
        };
        write_all((0..).map_while(nth).map(Access::from), accesses, count)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_stub_fixup(
    va: u64,
    insn: *const Insn,
    helpers: *const HelpersRoom,
    rip: u64,
    resume: *mut u64,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (shared, insn, resume) = (HelpersRoom::get(helpers)?, self::insn(insn)?, Place::new(resume)?);
        resume.write(stub_fixup(va, insn, &shared.helpers, rip).ok_or(Status::NotFound)?);
        Ok(())
    })
}
