//! Calls that succeed: they do what the core does, and allocate nothing.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr;

use ioemul_core::{
    CodeTable, EmitOptions, Helpers, IoInsn, Quirk, RegisterFile, Ring, StubLayout, Width, emit_stub, stub_fixup,
};

use super::allocation::count;
use crate::insn::*;
use crate::options::*;
use crate::quirks::*;
use crate::slot::*;
use crate::table::*;

const VA: u64 = 0xffff_ffff_a000_0000;

pub(super) fn empty<T>(size: usize) -> Box<T> {
    let mut room = Box::new(MaybeUninit::<T>::zeroed());
    // SAFETY: integers only, of which the first is the size.
    unsafe {
        room.as_mut_ptr().cast::<usize>().write(size);
        room.assume_init()
    }
}

pub(super) fn no_insn() -> Insn {
    Insn { size: size_of::<Insn>(), ..Insn::default() }
}

/// Options of C's, and the same of the core's.
fn options(file: &Registers, quirks: &[QuirkChoice], layout: u32) -> Options {
    let flags = ENDBR64 | INT3 | SCRUB;
    Options {
        size: size_of::<Options>(),
        layout,
        ring: 3,
        flags,
        return_thunk: VA - 64,
        registers: file,
        quirks: quirks.as_ptr(),
        quirk_count: quirks.len(),
    }
}

#[test]
fn every_form_by_index_bytes_and_text() {
    for (index, insn) in IoInsn::all().enumerate() {
        let (mut given, mut decoded, mut at, mut len, mut length) = (no_insn(), no_insn(), 0, 0, 0);
        let (mut code, mut text) = ([0_u8; 5], [0x55_u8; MAX_TEXT]);
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        let (statuses, allocations) = count(|| unsafe {
            [
                ioemul_insn_at(index, &mut given),
                ioemul_insn_index(&given, &mut at),
                ioemul_insn_encode(&given, code.as_mut_ptr().cast(), code.len(), &mut len),
                ioemul_decode(code.as_ptr().cast(), len, 64, &mut decoded, &mut length),
                ioemul_insn_text(&given, text.as_mut_ptr().cast(), text.len()),
            ]
        });
        assert_eq!((statuses, allocations), ([0; 5], 0), "{insn}");
        assert_eq!((IoInsn::try_from(given), decoded, at, len), (Ok(insn), given, index, length));
        assert_eq!(CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap(), insn.to_string());
        let (bytes, count) = insn.encode();
        assert_eq!(code[..len], bytes[..count]);
    }
}

#[test]
fn forms_of_other_modes_keep_their_parts() {
    for (bits, code) in
        [(16, &[0x65, 0xf3, 0x6f][..]), (32, &[0x67, 0x2e, 0x6e]), (64, &[0x64, 0x66, 0x6f]), (16, &[0xed])]
    {
        let (mut insn, mut length, mut index) = (no_insn(), 0, 7);
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        assert_eq!(unsafe { ioemul_decode(code.as_ptr().cast(), code.len(), bits, &mut insn, &mut length) }, 0);
        let decoded = IoInsn::decode_in(code_size(bits).unwrap(), code).unwrap();
        assert_eq!((IoInsn::try_from(insn).unwrap(), length), decoded);
        let expected = if decoded.0.is_string() { (16, 7) } else { (0, 1) };
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        assert_eq!((unsafe { ioemul_insn_index(&insn, &mut index) }, index), expected);
    }
}

#[test]
fn register_files_are_those_of_the_core() {
    for (which, known) in [RegisterFile::GPRS, RegisterFile::KVM_REGS, RegisterFile::PT_REGS].into_iter().enumerate() {
        let mut file = Registers::from(RegisterFile::new([0; 15], None));
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        assert_eq!(unsafe { ioemul_register_file_of(which as u32, &mut file) }, 0);
        assert_eq!(RegisterFile::try_from(file), Ok(known));
    }
    let without = RegisterFile::new(std::array::from_fn(|index| 8 * index as i16), None);
    assert_eq!(RegisterFile::try_from(Registers::from(without)), Ok(without));
}

#[test]
fn quirks_have_the_numbers_and_names_that_the_core_has() {
    assert!(Quirk::ALL.iter().all(|quirk| NUMBERED.iter().any(|(_, numbered)| numbered.name() == quirk.name())));
    assert!(Quirk::BUILTIN.len() <= EmitOptions::MAX_QUIRKS);
    for (number, (name, quirk)) in (1..).zip(&NUMBERED) {
        assert_eq!(name.to_str(), Ok(quirk.name()));
        let mut choice = QuirkChoice::default();
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        assert_eq!(unsafe { ioemul_quirk_by_name(name.as_ptr(), &mut choice) }, 0);
        assert_eq!(choice, QuirkChoice { number, port: 0, has_port: 0 });
        assert_eq!(ioemul_quirk_name(number), name.as_ptr());
    }
    assert!([0, NUMBERED.len() as u32 + 1].iter().all(|number| ioemul_quirk_name(*number).is_null()));
    let elsewhere = Quirk::try_from(QuirkChoice { number: 6, port: 0x1b2, has_port: 1 }).unwrap();
    assert!(elsewhere.applies(IoInsn::out_dx(Width::Byte), 0xef, 0x1b2));
}

#[test]
fn a_machine_has_its_quirks() {
    let bios = [&[0, 6, 0, 0, 1, 2][..], b"HP\0P56\0\0"].concat();
    let system = [&[1, 6, 1, 0, 0, 1][..], b"ProLiant DL380 G5\0\0"].concat();
    for (smbios, expected) in [([bios.clone(), system].concat(), 1), (bios, 0), (vec![], 0)] {
        let mut dmi: Box<Dmi> = empty(size_of::<Dmi>());
        let (mut quirks, mut found) = ([QuirkChoice::default(); 4], 4);
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        let (statuses, allocations) = count(|| unsafe {
            [
                ioemul_dmi_from_smbios(smbios.as_ptr().cast(), smbios.len(), &mut *dmi),
                ioemul_quirks_of_machine(&*dmi, quirks.as_mut_ptr(), &mut found),
            ]
        });
        assert_eq!((statuses, allocations, found), ([0; 2], 0, expected));
        assert_eq!(quirks[0].number, expected as u32); // IOEMUL_PROLIANT
    }
    let mut memory = [0; 64];
    memory[16..40].copy_from_slice(b"_SM3_\0\x18\x03\x06\x00\x01\x00\x00\x10\x00\x00\x00\x00\xf0\x7e\x00\x00\x00\x00");
    memory[21] = memory.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    let (mut address, mut length) = (0, 0);
    // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
    assert_eq!(unsafe { ioemul_smbios_find(memory.as_ptr().cast(), 64, &mut address, &mut length) }, 0);
    assert_eq!((address, length), (0x7ef0_0000, 0x1000));
}

#[test]
fn a_table_is_the_cores() {
    let dell = QuirkChoice { number: 3, port: 0, has_port: 0 };
    let quirks = [dell, QuirkChoice { number: 1, port: 0x1234, has_port: 1 }];
    let file = Registers::from(RegisterFile::PT_REGS);
    for (layout, number) in
        [StubLayout::CallRet, StubLayout::Rop, StubLayout::Compact, StubLayout::Inline].iter().zip(0..)
    {
        let options = options(&file, &quirks, number);
        let (mut bytes, mut table): (_, Box<Table>) = (0, empty(size_of::<Table>()));
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        assert_eq!(unsafe { ioemul_table_size(&options, &mut bytes) }, 0);
        let mut code = vec![0_u8; bytes];
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        let emit = || unsafe { ioemul_table_emit(&mut *table, code.as_mut_ptr().cast(), bytes, VA, &options) };
        assert_eq!(count(emit), (0, 0));

        let known = [Quirk::DELL_SMM, Quirk::PROLIANT.at_port(0x1234)];
        let core = EmitOptions::new().layout(*layout).registers(RegisterFile::PT_REGS).ring(Ring::Three).quirks(&known);
        let core = core.endbr64(true).int3(true).scrub(true).return_thunk(VA - 64);
        let mut expected = vec![0; CodeTable::size(&core)];
        let core = CodeTable::emit(&mut expected, VA, &core).unwrap();
        assert!(code == expected, "{layout:?}: other bytes");

        for (insn, rax, rdx) in IoInsn::all().flat_map(|insn| [(insn, 0xa3, 0xb2), (insn, 0x80, 0x1234), (insn, 0, 0)])
        {
            let (given, mut at) = (Insn::from(insn), [u64::MAX; 3]);
            let [plain, string, resolved] = &mut at;
            let (mut accesses, mut number) = ([Access::default(); 8], 8);
            // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
            let run = || unsafe {
                [
                    ioemul_table_entry(&*table, &given, plain),
                    ioemul_table_string_entry(&*table, &given, string),
                    ioemul_table_resolve(&*table, &given, rax, rdx, resolved),
                    ioemul_table_accesses(&*table, &given, rax, rdx, accesses.as_mut_ptr(), &mut number),
                ]
            };
            let (statuses, allocations) = count(run);
            let entries = [core.entry(insn), core.string_entry(insn), core.resolve(insn, rax, rdx)];
            assert_eq!(at, entries.map(|entry| entry.unwrap_or(u64::MAX)), "{insn}");
            assert_eq!(statuses[..3], entries.map(|entry| if entry.is_some() { 0 } else { 16 }));
            assert_eq!((statuses[3], allocations), (0, 0));
            assert!(core.accesses(insn, rax, rdx).map(Access::from).eq(accesses[..number].iter().copied()), "{insn}");
        }

        let (mut address, mut length) = (0, 0);
        for symbol in core.symbols().filter(|symbol| symbol.len > 0) {
            let (mut text, from) = ([0_u8; MAX_TEXT], address + length as u64);
            let at = text.as_mut_ptr().cast();
            // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
            let next = || unsafe { ioemul_table_symbol(&*table, from, at, MAX_TEXT, &mut address, &mut length) };
            assert_eq!(count(next), (0, 0));
            assert_eq!(CStr::from_bytes_until_nul(&text).unwrap().to_str().unwrap(), symbol.name.to_string());
            assert_eq!((address, length), (symbol.address, symbol.len));
            let within = address + length as u64 - 1;
            // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
            assert_eq!(unsafe { ioemul_table_symbol(&*table, within, at, MAX_TEXT, &mut address, &mut length) }, 0);
            assert_eq!((address, length), (symbol.address, symbol.len));
        }
        let (mut text, end) = ([0; MAX_TEXT], address + length as u64);
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        let behind = unsafe { ioemul_table_symbol(&*table, end, text.as_mut_ptr(), 64, &mut address, &mut length) };
        assert_eq!((behind, text), (17, [0; MAX_TEXT]));

        let mut number = 0;
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        assert_eq!(count(|| unsafe { ioemul_table_fault_count(&*table, &mut number) }), (0, 0));
        let mut faults = vec![Fault::default(); number + 1];
        let mut filled = faults.len();
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        let list = count(|| unsafe { ioemul_table_faults(&*table, faults.as_mut_ptr(), &mut filled) });
        assert_eq!((list, filled), ((0, 0), number));
        assert!(core.faults().eq(faults[..number].iter().map(|fault| (fault.rip, fault.resume))));
        for rip in (VA - 2..VA + 4096).chain([u64::MAX]) {
            let mut resume = 1;
            // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
            let (status, allocations) = count(|| unsafe { ioemul_table_fixup(&*table, rip, &mut resume) });
            let expected = core.fixup(rip).map_or((17, 1), |resume| (0, resume));
            assert_eq!(((status, resume), allocations), (expected, 0), "{rip:#x}");
        }
    }
}

#[test]
fn a_table_may_be_moved() {
    let (mut table, mut code): (Box<Table>, _) = (empty(size_of::<Table>()), vec![0_u8; 100_000]);
    // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
    assert_eq!(unsafe { ioemul_table_emit(&mut *table, code.as_mut_ptr().cast(), code.len(), VA, ptr::null()) }, 0);
    let mut moved: Box<Table> = empty(0);
    // SAFETY: both are tables, of which one is this test's room for the other; what is copied is integers.
    unsafe { ptr::copy_nonoverlapping(&*table, &mut *moved, 1) };
    drop(table);
    let (mut entry, insn) = (0, IoInsn::out_imm8(Width::Byte, 0x80));
    // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
    assert_eq!(unsafe { ioemul_table_entry(&*moved, &insn.into(), &mut entry) }, 0);
    let at = (entry - VA) as usize;
    assert!(code[at..at + 36].windows(2).any(|bytes| bytes == [0xe6, 0x80]));
}

#[test]
fn a_slot_is_the_cores() {
    let quirks = [QuirkChoice { number: 3, port: 0, has_port: 0 }];
    let file = Registers::from(RegisterFile::KVM_REGS);
    let options = options(&file, &quirks, 2);
    let (mut shared, mut code): (Box<HelpersRoom>, _) = (empty(size_of::<HelpersRoom>()), [0_u8; 512]);
    let mut used = 0;
    // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
    let emit = || unsafe { ioemul_helpers_emit(&mut *shared, code.as_mut_ptr().cast(), 512, VA, &options, &mut used) };
    assert_eq!(count(emit), (0, 0));
    let core = EmitOptions::new().layout(StubLayout::Compact).registers(RegisterFile::KVM_REGS).ring(Ring::Three);
    let core = core.quirks(&[Quirk::DELL_SMM]).endbr64(true).int3(true).scrub(true).return_thunk(VA - 64);
    let mut expected = [0; 512];
    let core = Helpers::emit(&mut expected, VA, &core).unwrap();
    assert_eq!((code, used), (expected, core.len()));

    let va = VA + 0x1000;
    for insn in IoInsn::all() {
        let (given, mut slot, mut expected, mut length) = (Insn::from(insn), [0_u8; 256], [0; 256], 0);
        let write =
            // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
            || unsafe { ioemul_stub_emit(slot.as_mut_ptr().cast(), slot.len(), va, &given, &*shared, &mut length) };
        assert_eq!(count(write), (0, 0));
        assert_eq!(emit_stub(&mut expected, va, insn, &core), Ok(length));
        assert_eq!(slot, expected);
        for rip in va - 1..va + 257 {
            let mut resume = 1;
            // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
            let (status, allocations) = count(|| unsafe { ioemul_stub_fixup(va, &given, &*shared, rip, &mut resume) });
            let expected = stub_fixup(va, insn, &core, rip).map_or((17, 1), |resume| (0, resume));
            assert_eq!(((status, resume), allocations), (expected, 0));
        }
        for rax in [0, 0xa3] {
            let (mut accesses, mut number) = ([Access::default(); 8], 8);
            let ask =
                // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
                || unsafe { ioemul_stub_accesses(&given, &*shared, rax, 0xb2, accesses.as_mut_ptr(), &mut number) };
            assert_eq!(count(ask), (0, 0));
            let is_dell = Quirk::DELL_SMM.applies(insn, rax, 0xb2);
            assert_eq!(number, if is_dell { 2 } else { 1 }, "{insn}");
            assert_eq!(accesses[usize::from(is_dell)].port == 0x84, is_dell || given.port == 0x84, "{insn}");
        }
    }
}
