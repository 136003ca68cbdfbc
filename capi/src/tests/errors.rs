//! Calls that fail: they say why, and write nothing.

use std::ffi::{CStr, c_int};
use std::ptr;

use ioemul_core::IoInsn;

use super::calls::{empty, no_insn};
use crate::insn::*;
use crate::options::*;
use crate::pointers::{self, Growing, GrowingPlace};
use crate::quirks::*;
use crate::slot::*;
use crate::status::{Status, guard, ioemul_error_text};
use crate::table::*;

const NULL: c_int = Status::Null as c_int;
const MISALIGNED: c_int = Status::Misaligned as c_int;
const SIZE: c_int = Status::Size as c_int;
const VALUE: c_int = Status::Value as c_int;
const NOT_EMITTED: c_int = Status::NotEmitted as c_int;
const TOO_SMALL: c_int = Status::TooSmall as c_int;

/// Memory for a result or an argument, that shows whether anything was written to it.
#[repr(align(64))]
struct Arena([u8; 4096]);

impl Arena {
    /// With what every structure here can begin with, if it is read: the size.
    fn new(size: usize) -> Box<Self> {
        let mut arena = Box::new(Self([0; 4096]));
        arena.0[..8].copy_from_slice(&size.to_ne_bytes());
        arena
    }

    fn at<T>(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

/// Calls with each pointer as it should be, but one: NULL, then misaligned. `run` gets the pointers, each to an arena
/// that begins with the size in `sizes`; 1 is for bytes, which have no alignment.
fn each_pointer<const N: usize>(name: &str, sizes: [usize; N], run: impl Fn([*mut u8; N]) -> c_int) {
    for bad in 0..N {
        for (expected, is_null) in [(NULL, true), (MISALIGNED, false)] {
            if sizes[bad] == 1 && !is_null {
                continue;
            }
            let mut arenas = sizes.map(Arena::new);
            let mut pointers = arenas.each_mut().map(|arena| arena.at::<u8>());
            pointers[bad] = if is_null { ptr::null_mut() } else { pointers[bad].wrapping_add(1) };
            let before = arenas.each_ref().map(|arena| arena.0);
            let status = run(pointers);
            // A table or an instruction that is not filled may be noticed first; nothing is written in any case.
            let earlier = [NOT_EMITTED, VALUE, Status::Truncated as c_int, Status::NotFound as c_int];
            assert!(status == expected || earlier.contains(&status), "{name}, pointer {bad}: {status}");
            assert!(
                arenas.iter().zip(before).all(|(arena, before)| arena.0 == before),
                "{name}, pointer {bad}: written"
            );
        }
    }
}

#[test]
fn null_and_misaligned_pointers() {
    let (insn, table, helpers) = (size_of::<Insn>(), size_of::<Table>(), size_of::<HelpersRoom>());
    let options = size_of::<Options>();
    // SAFETY: `each_pointer` passes arenas that are larger than what is asked for, and pointers that are null or misaligned, which
    // a call looks at and does not follow.
    unsafe {
        each_pointer("decode", [1, insn, 0], |[a, b, c]| ioemul_decode(a.cast(), 1, 64, b.cast(), c.cast()));
        each_pointer("insn_at", [insn], |[a]| ioemul_insn_at(0, a.cast()));
        each_pointer("insn_index", [insn, 0], |[a, b]| ioemul_insn_index(a.cast(), b.cast()));
        each_pointer("insn_encode", [insn, 1, 0], |[a, b, c]| ioemul_insn_encode(a.cast(), b.cast(), 5, c.cast()));
        each_pointer("insn_text", [insn, 1], |[a, b]| ioemul_insn_text(a.cast(), b.cast(), 64));
        each_pointer("register_file", [size_of::<Registers>()], |[a]| ioemul_register_file_of(0, a.cast()));
        each_pointer("quirk_by_name", [1, 0], |[a, b]| ioemul_quirk_by_name(a.cast(), b.cast()));
        each_pointer("smbios_find", [1, 0, 0], |[a, b, c]| ioemul_smbios_find(a.cast(), 64, b.cast(), c.cast()));
        let dmi = size_of::<Dmi>();
        each_pointer("dmi_from_smbios", [1, dmi], |[a, b]| ioemul_dmi_from_smbios(a.cast(), 64, b.cast()));
        // None is found, so the array is not looked at.
        each_pointer("quirks_of_machine", [dmi, 0], |[a, b]| {
            ioemul_quirks_of_machine(a.cast(), ptr::null_mut(), b.cast())
        });
        each_pointer("table_size", [0], |[a]| ioemul_table_size(ptr::null(), a.cast()));
        each_pointer("table_emit", [table, 1], |[a, b]| ioemul_table_emit(a.cast(), b.cast(), 4096, 0, ptr::null()));
        each_pointer("table_entry", [table, insn, 0], |[a, b, c]| ioemul_table_entry(a.cast(), b.cast(), c.cast()));
        each_pointer("table_string_entry", [table, insn, 0], |[a, b, c]| {
            ioemul_table_string_entry(a.cast(), b.cast(), c.cast())
        });
        each_pointer("table_resolve", [table, insn, 0], |[a, b, c]| {
            ioemul_table_resolve(a.cast(), b.cast(), 0, 0, c.cast())
        });
        each_pointer("table_accesses", [table, insn, 0, 8], |[a, b, c, d]| {
            ioemul_table_accesses(a.cast(), b.cast(), 0, 0, c.cast(), d.cast())
        });
        each_pointer("table_fixup", [table, 0], |[a, b]| ioemul_table_fixup(a.cast(), 0, b.cast()));
        each_pointer("table_fault_count", [table, 0], |[a, b]| ioemul_table_fault_count(a.cast(), b.cast()));
        each_pointer("table_faults", [table, 0, 9999], |[a, b, c]| ioemul_table_faults(a.cast(), b.cast(), c.cast()));
        each_pointer("table_symbol", [table, 1, 0, 8], |[a, b, c, d]| {
            ioemul_table_symbol(a.cast(), 0, b.cast(), 64, c.cast(), d.cast())
        });
        each_pointer("helpers_emit", [helpers, 1, 0], |[a, b, c]| {
            ioemul_helpers_emit(a.cast(), b.cast(), 512, 0, ptr::null(), c.cast())
        });
        each_pointer("stub_emit", [1, insn, helpers, 0], |[a, b, c, d]| {
            ioemul_stub_emit(a.cast(), 64, 0, b.cast(), c.cast(), d.cast())
        });
        each_pointer("stub_accesses", [insn, helpers, 0, 8], |[a, b, c, d]| {
            ioemul_stub_accesses(a.cast(), b.cast(), 0, 0, c.cast(), d.cast())
        });
        each_pointer("stub_fixup", [insn, helpers, 0], |[a, b, c]| {
            ioemul_stub_fixup(0, a.cast(), b.cast(), 0, c.cast())
        });
        // Options may be NULL, and not misaligned.
        let (mut arena, mut bytes) = (Arena::new(options), 7);
        let misaligned = arena.at::<u8>().wrapping_add(1).cast();
        assert_eq!((ioemul_table_size(misaligned, &mut bytes), bytes), (MISALIGNED, 7));
    }
}

/// With a table and helpers that are there, so that no other error is found first.
#[test]
fn null_results_of_a_table_that_is_there() {
    let (mut table, mut code): (Box<Table>, _) = (empty(size_of::<Table>()), vec![0_u8; 100_000]);
    let (mut helpers, mut len): (Box<HelpersRoom>, _) = (empty(size_of::<HelpersRoom>()), 0);
    let (insn, null) = (Insn::from(IoInsn::all().next().unwrap()), ptr::null_mut::<u64>());
    // SAFETY: as above.
    unsafe {
        assert_eq!(ioemul_table_emit(&mut *table, code.as_mut_ptr().cast(), code.len(), 0, ptr::null()), 0);
        let helpers_code = code.as_mut_ptr().cast();
        assert_eq!(ioemul_helpers_emit(&mut *helpers, helpers_code, 512, 0, ptr::null(), &mut len), 0);
        for (status, expected) in [
            (ioemul_table_entry(&*table, &insn, null), NULL),
            (ioemul_table_entry(&*table, &insn, (&raw mut len).cast::<u8>().wrapping_add(4).cast()), MISALIGNED),
            (ioemul_table_string_entry(&*table, &insn, null), NULL),
            (ioemul_table_resolve(&*table, &insn, 0, 0, null), NULL),
            (ioemul_table_fixup(&*table, 0, null), NULL),
            (ioemul_table_fault_count(&*table, ptr::null_mut()), NULL),
            (ioemul_table_faults(&*table, ptr::null_mut(), &mut 9999), NULL),
            (ioemul_table_accesses(&*table, &insn, 0, 0, ptr::null_mut(), &mut 8), NULL),
            (ioemul_table_symbol(&*table, 0, ptr::null_mut(), 64, &mut 0, &mut 0), NULL),
            (ioemul_table_symbol(&*table, 0, [0; 64].as_mut_ptr(), 64, null, &mut 0), NULL),
            (ioemul_table_symbol(&*table, 0, [0; 64].as_mut_ptr(), 64, &mut 0, ptr::null_mut()), NULL),
            (ioemul_table_symbol(&*table, 0, [0; 64].as_mut_ptr(), 5, &mut 0, &mut 0), TOO_SMALL),
            (ioemul_stub_accesses(&insn, &*helpers, 0, 0, ptr::null_mut(), &mut 8), NULL),
            (ioemul_stub_fixup(0, &insn, &*helpers, 0, null), NULL),
            (ioemul_stub_emit(ptr::null_mut(), 64, 0, &insn, &*helpers, &mut len), NULL),
            (
                ioemul_stub_emit(code.as_mut_ptr().cast(), 64, 0, &insn, (&*table as *const Table).cast(), &mut len),
                SIZE,
            ),
        ] {
            assert_eq!(status, expected);
        }
    }
}

#[test]
fn what_was_not_emitted_is_an_error() {
    for fill in [0_u8, 0xa5, 0xff] {
        let (mut entry, insn) = (1, Insn::from(IoInsn::all().next().unwrap()));
        let mut table: Box<Table> = empty(size_of::<Table>());
        // SAFETY: null and misaligned pointers are looked at and not followed; the others are to variables of this test, with their
        // lengths, or ones that are shorter.
        unsafe {
            ptr::write_bytes(ptr::from_mut(&mut *table).cast::<u8>().add(8), fill, size_of::<Table>() - 8);
            assert_eq!((ioemul_table_entry(&*table, &insn, &mut entry), entry), (NOT_EMITTED, 1));
        }
    }
    // Helpers, whose structure is longer, are no table.
    let (mut helpers, mut code, mut len): (Box<HelpersRoom>, _, _) = (empty(size_of::<HelpersRoom>()), [0_u8; 512], 0);
    let mut resume = 1;
    // SAFETY: within the table, which is integers; the pointers are to variables of this test.
    unsafe {
        assert_eq!(ioemul_helpers_emit(&mut *helpers, code.as_mut_ptr().cast(), 512, 0, ptr::null(), &mut len), 0);
        let table = ptr::from_ref(&*helpers).cast();
        assert_eq!((ioemul_table_fixup(table, 0, &mut resume), resume), (NOT_EMITTED, 1));
    }
}

/// Emitting fails, for every reason that there is: code, length and structure stay as they were.
#[test]
fn a_table_that_cannot_be_emitted_leaves_everything_as_it_was() {
    let file = Registers::from(ioemul_core::RegisterFile::GPRS);
    let (mut overlapping, mut flags_unknown, mut file_reserved) = (file, file, file);
    overlapping.gprs[3] = overlapping.gprs[2] + 4;
    flags_unknown.has_rflags = 2;
    file_reserved.reserved = 1;
    let quirk = QuirkChoice { number: 1, port: 0, has_port: 0 };
    let five = [quirk; 5];
    let unknown = [0, 8, u32::MAX].map(|number| QuirkChoice { number, ..quirk });
    let half_a_port = [QuirkChoice { port: 1, ..quirk }, QuirkChoice { has_port: 2, ..quirk }];
    let good = Options {
        size: size_of::<Options>(),
        layout: 0,
        ring: 3,
        flags: 0,
        return_thunk: 0,
        registers: &file,
        quirks: ptr::null(),
        quirk_count: 0,
    };
    let one = |quirk: &QuirkChoice| Options { quirks: quirk, quirk_count: 1, ..good };
    let cases = [
        (Options { size: 0, ..good }, 100_000, 0, SIZE),
        (Options { size: size_of::<Options>() - 1, ..good }, 100_000, 0, SIZE),
        (Options { size: usize::MAX, ..good }, 100_000, 0, SIZE),
        (Options { layout: 4, ..good }, 100_000, 0, VALUE),
        (Options { ring: 1, ..good }, 100_000, 0, VALUE),
        (Options { flags: 8, ..good }, 100_000, 0, VALUE),
        (Options { flags: 1 << 63, ..good }, 100_000, 0, VALUE),
        (Options { registers: &overlapping, ..good }, 100_000, 0, Status::RegisterFile as c_int),
        (Options { registers: &flags_unknown, ..good }, 100_000, 0, VALUE),
        (Options { registers: &file_reserved, ..good }, 100_000, 0, VALUE),
        (Options { quirks: five.as_ptr(), quirk_count: 5, ..good }, 100_000, 0, Status::TooManyQuirks as c_int),
        (Options { quirk_count: usize::MAX, ..good }, 100_000, 0, Status::TooManyQuirks as c_int),
        (Options { quirk_count: 1, ..good }, 100_000, 0, NULL),
        (one(&unknown[0]), 100_000, 0, VALUE),
        (one(&unknown[1]), 100_000, 0, VALUE),
        (one(&unknown[2]), 100_000, 0, VALUE),
        (one(&half_a_port[0]), 100_000, 0, VALUE),
        (one(&half_a_port[1]), 100_000, 0, VALUE),
        (good, 0, 0, TOO_SMALL),
        (good, 255, 0, TOO_SMALL),
        (good, usize::MAX, 0, VALUE),
        (good, 100_000, 1 << 56, Status::Address as c_int),
        (good, 100_000, u64::MAX - 64, Status::Address as c_int),
        (Options { return_thunk: 1 << 56, ..good }, 100_000, 0, Status::Address as c_int),
        (Options { return_thunk: 1 << 33, ..good }, 100_000, 0, Status::OutOfRange as c_int),
    ];
    for (index, (options, len, va, expected)) in cases.iter().enumerate() {
        let (mut code, mut length) = (vec![0x5a_u8; 100_000], 7);
        let mut table: Box<Table> = empty(size_of::<Table>());
        let mut helpers: Box<HelpersRoom> = empty(size_of::<HelpersRoom>());
        let code_len = code.len();
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        unsafe {
            let at = code.as_mut_ptr().cast();
            assert_eq!(ioemul_table_emit(&mut *table, at, *len, *va, options), *expected, "case {index}");
            // The helpers are shorter: 255 bytes are enough for them, and 0 are not.
            if *len != 255 {
                let status = ioemul_helpers_emit(&mut *helpers, at, *len, *va, options, &mut length);
                assert_eq!(status, *expected, "case {index}");
            }
            let words = |at: *const u8, size: usize| std::slice::from_raw_parts(at.add(8), size - 8);
            assert!(words((&raw const *table).cast(), size_of::<Table>()).iter().all(|byte| *byte == 0));
            assert!(words((&raw const *helpers).cast(), size_of::<HelpersRoom>()).iter().all(|byte| *byte == 0));
        }
        assert!(
            length == 7 && code.len() == code_len && code.iter().all(|byte| *byte == 0x5a),
            "case {index}: written"
        );
    }
}

#[test]
fn bytes_that_are_no_port_access() {
    for (code, bits, expected) in [
        (&[][..] as &[u8], 64, Status::Truncated as c_int),
        (&[0x66, 0xe4], 64, Status::Truncated as c_int),
        (&[0x66; 16], 64, Status::TooLong as c_int),
        (&[0xf0, 0xee], 64, Status::Lock as c_int),
        (&[0x90], 64, Status::NotPortIo as c_int),
        (&[0x48, 0xee], 32, Status::NotPortIo as c_int),
        (&[0xee], 0, VALUE),
        (&[0xee], 63, VALUE),
    ] {
        let (mut insn, mut length) = (no_insn(), 99);
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        let status = unsafe { ioemul_decode(code.as_ptr().cast(), code.len(), bits, &mut insn, &mut length) };
        assert_eq!((status, insn, length), (expected, no_insn(), 99), "{code:02x?}");
    }
    let (mut insn, mut length) = (no_insn(), 99);
    // SAFETY: as above; of a length of 0 nothing is read.
    let nothing = unsafe { ioemul_decode(ptr::null(), 0, 64, &mut insn, &mut length) };
    assert_eq!(nothing, Status::Truncated as c_int);
    // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
    assert_eq!(unsafe { ioemul_insn_at(1566, &mut insn) }, Status::NotFound as c_int);
}

#[test]
fn instructions_that_there_are_not() {
    let good = Insn::from(IoInsn::all().next().unwrap());
    let string = Insn::from(IoInsn::strings().next().unwrap());
    for bad in [
        Insn { direction: 2, ..good },
        Insn { width: 0, ..good },
        Insn { width: 8, ..good },
        Insn { operand: 3, ..good },
        Insn { port: 1, ..good },
        Insn { rep: 1, ..good },
        Insn { address: 64, ..good },
        Insn { segment: 3, ..good },
        Insn { reserved: 1, ..good },
        Insn { rep: 2, ..string },
        Insn { address: 0, ..string },
        Insn { segment: 6, ..string },
        Insn { port: 1, ..string },
    ] {
        let mut index = 77;
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        assert_eq!((unsafe { ioemul_insn_index(&bad, &mut index) }, index), (VALUE, 77), "{bad:?}");
    }
}

#[test]
fn arrays_that_are_too_short_are_not_begun() {
    let quirks = [QuirkChoice { number: 3, port: 0, has_port: 0 }];
    let mut options: Box<Options> = empty(size_of::<Options>());
    (options.quirks, options.quirk_count) = (quirks.as_ptr(), 1);
    let (mut table, mut code): (Box<Table>, _) = (empty(size_of::<Table>()), vec![0_u8; 100_000]);
    let insn = Insn::from("out 0xb2, al".parse::<IoInsn>().unwrap());
    let (mut faults, mut text) = ([Fault::default(); 4], [0x55_u8; 12]);
    // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
    unsafe {
        assert_eq!(ioemul_table_emit(&mut *table, code.as_mut_ptr().cast(), 100_000, 0, &*options), 0);
        let (mut accesses, mut count) = ([Access::default(); 2], 1);
        let ask = |accesses: &mut [Access; 2], count| {
            ioemul_table_accesses(&*table, &insn, 0xa3, 0, accesses.as_mut_ptr(), count)
        };
        assert_eq!((ask(&mut accesses, &mut count), accesses, count), (TOO_SMALL, [Access::default(); 2], 1));
        count = 2;
        assert_eq!((ask(&mut accesses, &mut count), accesses[1].port), (0, 0x84));
        let mut count = 4;
        let status = ioemul_table_faults(&*table, faults.as_mut_ptr(), &mut count);
        assert_eq!((status, faults, count), (TOO_SMALL, [Fault::default(); 4], 4));
        assert_eq!((ioemul_insn_text(&insn, text.as_mut_ptr().cast(), 12), text), (TOO_SMALL, [0x55; 12]));
        let mut length = 9;
        let status = ioemul_insn_encode(&insn, text.as_mut_ptr().cast(), 1, &mut length);
        assert_eq!((status, text, length), (TOO_SMALL, [0x55; 12], 9));
    }
}

#[test]
fn a_stub_that_cannot_be_emitted_leaves_the_slot_as_it_was() {
    let (mut helpers, mut code, mut len): (Box<HelpersRoom>, _, _) = (empty(size_of::<HelpersRoom>()), [0_u8; 512], 0);
    // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
    let status = unsafe { ioemul_helpers_emit(&mut *helpers, code.as_mut_ptr().cast(), 512, 0, ptr::null(), &mut len) };
    assert_eq!(status, 0);
    let decode = |bits, code: &[u8]| Insn::from(IoInsn::decode_in(code_size(bits).unwrap(), code).unwrap().0);
    for (insn, len, va, expected) in [
        (decode(64, &[0xee]), 35, 0x1000, TOO_SMALL),
        (decode(64, &[0x6e]), 8, 0x1000, TOO_SMALL),
        (decode(64, &[0xee]), 64, 1 << 40, Status::OutOfRange as c_int),
        (decode(64, &[0x65, 0x6e]), 64, 0x1000, Status::NoStub as c_int),
        (decode(16, &[0xf3, 0x6c]), 64, 0x1000, Status::NoStub as c_int),
    ] {
        let (mut slot, mut length) = ([0x5a_u8; 64], 7);
        // SAFETY: the pointers are to variables of this test, and the lengths are theirs.
        let status = unsafe { ioemul_stub_emit(slot.as_mut_ptr().cast(), len, va, &insn, &*helpers, &mut length) };
        assert_eq!((status, slot, length), (expected, [0x5a; 64], 7), "{insn:?}");
    }
}

/// A structure that grew: two words in its first version, three now.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Grown {
    size: usize,
    first: u64,
    second: u64,
}

// SAFETY: integers, of which the first is a `usize`.
unsafe impl Growing for Grown {
    const FIRST: usize = 16;
}

#[test]
fn structures_of_older_and_newer_callers() {
    // SAFETY: five words, and no size that is believed is longer.
    let read = |words: [u64; 5]| unsafe { pointers::read(words.as_ptr().cast::<Grown>()) };
    let grown = |size, first, second| Ok(Grown { size, first, second });
    assert_eq!(read([15, 1, 2, 3, 4]), Err(Status::Size));
    assert_eq!(read([16, 1, 2, 3, 4]), grown(16, 1, 0)); // what is behind it is not the structure's
    assert_eq!(read([24, 1, 2, 3, 4]), grown(24, 1, 2));
    assert_eq!(read([32, 1, 2, 0, 4]), grown(32, 1, 2));
    assert_eq!(read([32, 1, 2, 1 << 63, 4]), Err(Status::Size));
    assert_eq!(read([4097, 0, 0, 0, 0]), Err(Status::Size));

    let write = |size: u64| {
        let mut words = [size, 9, 9, 9, 9];
        // SAFETY: as above.
        let place = unsafe { GrowingPlace::new(words.as_mut_ptr().cast::<Grown>()) };
        let written = place.map(|place| place.write(Grown { size: 24, first: 1, second: 2 }));
        (written.is_ok(), words)
    };
    assert_eq!(write(8), (false, [8, 9, 9, 9, 9]));
    assert_eq!(write(16), (true, [16, 1, 9, 9, 9]));
    assert_eq!(write(24), (true, [24, 1, 2, 9, 9]));
    assert_eq!(write(32), (true, [32, 1, 2, 0, 9]));
}

#[test]
fn a_panic_ends_at_the_border() {
    let panics = || -> Result<(), Status> { std::panic::resume_unwind(Box::new(1)) };
    assert_eq!(guard(panics), Status::Internal as c_int);
}

#[test]
fn each_error_has_a_text_of_its_own() {
    // SAFETY: a text that ends with 0, for every number.
    let text = |code| unsafe { CStr::from_ptr(ioemul_error_text(code)) }.to_str().unwrap();
    let codes = [-1, 0].into_iter().chain(Status::ALL.iter().map(|status| *status as c_int));
    let texts: std::collections::BTreeSet<&str> = codes.map(text).collect();
    assert_eq!(texts.len(), Status::ALL.len() + 2);
    assert_eq!(text(Status::ALL.len() as c_int + 1), text(c_int::MIN));
}
