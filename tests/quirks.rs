//! Which quirk takes an access: by machine, by instruction and registers, in the order of the table.
#![cfg(feature = "std")]

mod common;

use common::{any_gprs, cases, forms};
use ioemul::{
    CodeSink, DmiIdentity, DmiMatch, DmiStrings, Gprs, IoInsn, Quirk, QuirkTable, StubLayout, StubTable, Trigger, Width,
};
use proptest::prelude::*;

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

#[test]
fn proliant_by_dmi() {
    let machines = [
        // The eight families, each in a model that was sold.
        ("HP", "ProLiant DL320 G5", true),
        ("HP", "ProLiant DL380 G5", true),
        ("HP", "ProLiant DL585 G2", true),
        ("HP", "ProLiant DL740", true),
        ("HP", "ProLiant ML350 G4p", true),
        ("HP", "ProLiant ML570 G3", true),
        ("HP", "ProLiant BL20p G3", true),
        ("HP", "ProLiant BL460c G1", true),
        ("HP", "ProLiant BL685c G1", true),
        // Contained, not equal.
        ("HPE", "ProLiant DL380 Gen10", true),
        ("(c) HP Inc.", "a ProLiant DL360 in a box", true),
        // Near misses.
        ("HP", "ProLiant DL180 G6", false),
        ("HP", "ProLiant DL2x170h G6", false),
        ("HP", "ProLiant DL980 G7", false),
        ("HP", "ProLiant ML110 G5", false),
        ("HP", "ProLiant ML10", false),
        ("HP", "ProLiant BL10e", false),
        ("HP", "ProLiant BL8", false),
        ("HP", "ProLiant", false),
        ("HP", "ProLiantDL380", false),
        ("HP", "Proliant DL380", false),
        ("HP", "ProLiant  DL380", false),
        ("HP", "DL380", false),
        ("HP", "", false),
        ("Hp", "ProLiant DL380 G5", false),
        ("Hewlett-Packard", "ProLiant DL380 G5", false),
        ("SeaBIOS", "Standard PC (i440FX + PIIX, 1996)", false),
        ("", "", false),
    ];
    for (bios_vendor, product, expected) in machines {
        let id = DmiIdentity::new(bios_vendor, product);
        let names: Vec<&str> = QuirkTable::for_platform(&id).as_slice().iter().map(Quirk::name).collect();
        let expected_names: &[&str] = if expected { &["HP ProLiant SMM port"] } else { &[] };
        assert_eq!(names, expected_names, "{bios_vendor:?} {product:?}");
        assert_eq!(Quirk::PROLIANT.is_on_platform(&DmiStrings::new(bios_vendor, product)), expected);
    }
}

proptest! {
    #![proptest_config(cases(8))]

    /// A byte OUT through DX to 0xCD4 with bit 7 of AL, and nothing else, whatever is in the upper halves.
    #[test]
    fn proliant_by_access(given in any_gprs()) {
        for form in forms() {
            for port in [0xcd3, 0xcd4, 0xcd5, 0xd4] {
                for al in [0, 0x7f, 0x80, 0xff] {
                    let gprs = Gprs { rax: given.rax & !0xff | al, rdx: given.rdx & !0xffff | port, ..given };
                    let expected = form.insn == OUT && port == 0xcd4 && al >= 0x80;
                    prop_assert_eq!(Quirk::PROLIANT.applies(form.insn, gprs.rax, gprs.rdx), expected, "{}", form.insn);
                }
            }
        }
    }
}

/// A quirk whose payload is `mov eax, VALUE`.
fn load<const VALUE: u32>(name: &'static str, trigger: Trigger) -> Quirk {
    // SAFETY: changes RAX alone.
    unsafe {
        Quirk::new(name, trigger, |payload| {
            payload.push(0xb8);
            payload.extend(&VALUE.to_le_bytes());
        })
    }
}

#[test]
fn the_first_that_applies() {
    let mut quirks = QuirkTable::none();
    assert!(quirks.as_slice().is_empty());
    quirks.push(load::<1>("RAX is odd", Trigger::out(Width::Byte, 0x10).rax(1, 1)));
    quirks.push(load::<2>("through DX", Trigger::out_dx(Width::Byte, 0x10)));
    quirks.push(load::<3>("either", Trigger::out(Width::Byte, 0x10)));
    quirks.push(load::<4>("IN", Trigger::input(Width::Word, 0x11).rax(0xf0, 0x40)));
    let low = 0xffff_0000_0000_0000;
    for &layout in StubLayout::ALL {
        let table = StubTable::builder().layout(layout).quirks(quirks.clone()).elide_io(true).build().unwrap();
        for (insn, rax, rdx, expected) in [
            (IoInsn::out_dx(Width::Byte), 7, low | 0x10, 1),
            (IoInsn::out_imm8(Width::Byte, 0x10), low | 1, 0xffff, 1),
            (IoInsn::out_dx(Width::Byte), 6, 0x10, 2),
            (IoInsn::out_imm8(Width::Byte, 0x10), 6, 0x11, 3),
            (IoInsn::in_dx(Width::Word), 0x4f, 0x11, 4),
            (IoInsn::in_imm8(Width::Word, 0x11), low | 0x140, 0, 4),
            // Another port, form, width, direction, or RAX.
            (IoInsn::out_dx(Width::Byte), 78, 0x11, 78),
            (IoInsn::out_imm8(Width::Byte, 0x11), 78, 0x10, 78),
            (IoInsn::out_dx(Width::Word), 78, 0x10, 78),
            (IoInsn::in_dx(Width::Byte), 78, 0x10, 78),
            (IoInsn::in_dx(Width::Word), 0x50, 0x11, 0x50),
        ] {
            let mut gprs = Gprs { rax, rdx, ..Gprs::default() };
            let stub = table.resolve(insn, &gprs);
            let own = expected == gprs.rax;
            assert_eq!(stub.code().as_ptr() == table.stub(insn).code().as_ptr(), own, "declined: the plain stub");
            // SAFETY: the table's accesses are left out, and the payloads make none.
            unsafe { stub.run(&mut gprs) }.unwrap();
            assert_eq!((gprs.rax, gprs.rdx), (expected, rdx), "{layout:?} {insn}");
        }
    }
}

/// The forms and accesses that each quirk is about, and its names.
#[test]
fn what_the_quirks_take_and_make() {
    let imm8 = |port| IoInsn::out_imm8(Width::Byte, port);
    let (b2, input) = (imm8(0xb2), IoInsn::in_dx(Width::Byte));
    type Row<'a> = (Quirk, &'a [IoInsn], &'a [(IoInsn, u16)], (u64, u64));
    let rows: [Row<'_>; 7] = [
        (Quirk::PROLIANT, &[OUT], &[(OUT, 0xcd4), (input, 0xcd4)], (0x80, 0x7f)),
        (Quirk::PROLIANT_UNBOUNDED, &[OUT], &[(OUT, 0xcd4), (input, 0xcd4)], (0x80, 0x7f)),
        (Quirk::DELL_SMM, &[OUT, b2], &[(OUT, 0xb2), (imm8(0x84), 0x84)], (0xffa3, 0xffa2)),
        (Quirk::THINKPAD_SMAPI, &[OUT], &[(OUT, 0xb2), (imm8(0x4f), 0x4f)], (0xf_5380, 0x5381)),
        (Quirk::READ_BACK, &[OUT], &[(OUT, 0xb2), (input, 0xb2)], (0, u64::MAX)),
        (Quirk::GSMI_CARRY, &[OUT], &[(OUT, 0xb2)], (0x12ef, 0xee)),
        (Quirk::GSMI_SPIN, &[OUT], &[(OUT, 0xb2)], (0x12ef, 0xee)),
    ];
    assert_eq!(Quirk::ALL.len(), rows.len());
    for (quirk, forms, accesses, (taken, left)) in rows {
        assert_eq!(quirk.trigger().forms().into_iter().flatten().collect::<Vec<_>>(), forms, "{}", quirk.name());
        let made: Vec<_> = quirk.accesses(OUT).map(|access| (access.insn, access.port)).collect();
        assert_eq!(made, accesses, "{}", quirk.name());
        let port = u64::from(quirk.trigger().port);
        assert!(quirk.applies(OUT, taken, port) && !quirk.applies(OUT, taken, port ^ 1), "{}", quirk.name());
        // Reading back is for every value.
        assert_eq!(quirk.applies(OUT, left, port), quirk.name() == "read-back", "{}", quirk.name());
        let moved = quirk.at_port(0x1b2);
        assert!(moved.applies(OUT, taken, 0x1b2) && !moved.applies(OUT, taken, port), "{}", quirk.name());
        assert_eq!(moved.accesses(OUT).next().unwrap().port, 0x1b2);
        assert_eq!(Quirk::by_name(quirk.name()).unwrap().name(), quirk.name());
    }
    assert!(Quirk::by_name("Dell").is_none());
    let builtin: Vec<_> = QuirkTable::builtin().as_slice().iter().map(Quirk::name).collect();
    assert_eq!(builtin, ["HP ProLiant SMM port"]);
}

#[test]
fn a_quirk_for_one_platform() {
    static MACHINE: DmiMatch =
        DmiMatch::new().bios_vendor(&["Contoso"]).product_name(&["T1", "T2"]).sys_vendor(&["C."]);
    let anywhere = load::<1>("test", Trigger::out(Width::Byte, 0x10));
    let quirk = anywhere.on_platform(&MACHINE);
    let is = |bios_vendor, product, sys_vendor| {
        let mut strings = DmiStrings::new(bios_vendor, product);
        strings.sys_vendor = sys_vendor;
        quirk.is_on_platform(&strings)
    };
    assert!(anywhere.is_on_platform(&DmiStrings::new("", "")) && !is("", "", ""));
    assert!(is("Contoso Ltd.", "T2 rev. 3", "C. & Sons"));
    assert!(!is("Contoso Ltd.", "T3", "C."));
    assert!(!is("Fabrikam", "T1", "C."));
    assert!(!is("Contoso", "T1", ""));
    assert_eq!(quirk.name(), "test");
}

/// Each of the five strings decides, and none that is not asked for.
#[test]
fn a_platform_by_each_string() {
    let mut machine = DmiStrings::new("one", "two");
    (machine.bios_version, machine.sys_vendor, machine.board_name) = ("three", "four", "five");
    type Asked = fn(DmiMatch, &'static [&'static str]) -> DmiMatch;
    type String = for<'m, 's> fn(&'m mut DmiStrings<'s>) -> &'m mut &'s str;
    let strings: [(Asked, String); 5] = [
        (DmiMatch::bios_vendor, |dmi| &mut dmi.bios_vendor),
        (DmiMatch::bios_version, |dmi| &mut dmi.bios_version),
        (DmiMatch::sys_vendor, |dmi| &mut dmi.sys_vendor),
        (DmiMatch::product_name, |dmi| &mut dmi.product_name),
        (DmiMatch::board_name, |dmi| &mut dmi.board_name),
    ];
    assert!(DmiMatch::new().matches(&machine) && DmiMatch::new().matches(&DmiStrings::default()));
    for (at, (asked, _)) in strings.iter().enumerate() {
        let platform = asked(DmiMatch::new(), &["fragment", "no such"]);
        for (other, (_, string)) in strings.iter().enumerate() {
            for (text, contains) in
                [("a fragment of it", true), ("no such", true), ("Fragment", false), ("fragmen", false), ("", false)]
            {
                let mut dmi = machine;
                *string(&mut dmi) = text;
                assert_eq!(platform.matches(&dmi), at == other && contains, "{at} {other} {text:?}");
            }
        }
    }
    // All that are asked for.
    let platform = strings.iter().fold(DmiMatch::new(), |platform, (asked, _)| asked(platform, &["x"]));
    let mut dmi = machine;
    for (_, string) in strings {
        assert!(!platform.matches(&dmi));
        *string(&mut dmi) = "xyz";
    }
    assert!(platform.matches(&dmi));
}

/// What the platform's quirks leave in place: the stubs of `builtin` are those of a table without quirks.
#[test]
fn a_quirk_adds_a_stub_and_changes_none() {
    for &layout in StubLayout::ALL {
        let plain = StubTable::builder().layout(layout).elide_io(true).build().unwrap();
        let quirks = QuirkTable::builtin();
        let with = StubTable::builder().layout(layout).elide_io(true).quirks(quirks).build().unwrap();
        assert!(with.code().len() > plain.code().len());
        for form in forms() {
            // Further away from the helpers, so that displacements differ.
            let (plain, with) = (plain.stub(form.insn).code(), with.stub(form.insn).code());
            assert_eq!(plain.len(), with.len());
            let same = plain.iter().zip(with).filter(|(plain, with)| plain == with).count();
            assert!(plain.len() - same <= 8, "{plain:02x?} {with:02x?}");
        }
    }
}
