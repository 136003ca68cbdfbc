//! Which quirk takes an access: by machine, by instruction and registers, in the order of the table.
#![cfg(feature = "std")]

mod common;

use common::{any_gprs, cases, forms};
use ioemul::{
    CodeSink, DmiIdentity, DmiMatch, Gprs, IoInsn, PortOperand, Quirk, QuirkTable, StubLayout, StubTable, Width,
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
        assert_eq!(Quirk::PROLIANT.is_on_platform(bios_vendor, product), expected);
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
                    prop_assert_eq!(Quirk::PROLIANT.applies(form.insn, &gprs), expected, "{}", form.insn);
                }
            }
        }
    }
}

/// A quirk whose payload is `mov eax, VALUE`.
fn load<const VALUE: u32>(name: &'static str, applies: fn(IoInsn, &Gprs) -> bool) -> Quirk {
    // SAFETY: changes RAX alone.
    unsafe {
        Quirk::new(name, applies, |payload, _| {
            payload.push(0xb8);
            payload.extend(&VALUE.to_le_bytes());
        })
    }
}

#[test]
fn the_first_that_applies() {
    let mut quirks = QuirkTable::none();
    assert!(quirks.as_slice().is_empty());
    quirks.push(load::<1>("port 1", |insn, gprs| insn.port(gprs) == 1));
    quirks.push(load::<2>("low ports", |insn, gprs| insn.port(gprs) < 0x10));
    quirks.push(load::<3>("all byte accesses with an immediate", |insn, _| {
        insn.width == Width::Byte && matches!(insn.operand, PortOperand::Imm8(_))
    }));
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::builder().layout(layout).quirks(quirks.clone()).elide_io(true).build().unwrap();
        for (insn, rdx, expected) in [
            (IoInsn::in_dx(Width::Byte), 1, 1),
            (IoInsn::out_imm8(Width::Dword, 1), 0xffff, 1),
            (IoInsn::in_dx(Width::Word), 0xffff_0000_0000_0002, 2),
            (IoInsn::out_imm8(Width::Byte, 0x0f), 0, 2),
            (IoInsn::out_imm8(Width::Byte, 0x10), 0, 3),
            (IoInsn::out_imm8(Width::Word, 0x10), 0, 77),
            (IoInsn::out_dx(Width::Byte), 0x10, 77),
        ] {
            let mut gprs = Gprs { rax: 77, rdx, ..Gprs::default() };
            let stub = table.resolve(insn, &gprs);
            assert_eq!(stub.as_ptr() == table.stub(insn).as_ptr(), expected == 77, "declined: the plain stub");
            // SAFETY: the table's accesses are left out, and the payloads make none.
            unsafe { stub.run(&mut gprs) }.unwrap();
            assert_eq!((gprs.rax, gprs.rdx), (expected, rdx), "{layout:?} {insn}");
        }
    }
}

#[test]
fn a_quirk_for_one_platform() {
    static MACHINE: DmiMatch = DmiMatch { bios_vendor: "Contoso", product_names: &["T1", "T2"] };
    let anywhere = load::<1>("test", |_, _| true);
    let quirk = anywhere.on_platform(&MACHINE);
    assert!(anywhere.is_on_platform("", "") && !quirk.is_on_platform("", ""));
    assert!(quirk.is_on_platform("Contoso Ltd.", "T2 rev. 3"));
    assert!(!quirk.is_on_platform("Contoso Ltd.", "T3"));
    assert!(!quirk.is_on_platform("Fabrikam", "T1"));
    assert_eq!(quirk.name(), "test");
}

/// What the platform's quirks leave in place: the stubs of `builtin` are those of a table without quirks.
#[test]
fn a_quirk_adds_a_stub_and_changes_none() {
    for layout in StubLayout::ALL.iter().copied() {
        let plain = StubTable::new(layout).unwrap();
        let with = StubTable::builder().layout(layout).quirks(QuirkTable::builtin()).build().unwrap();
        assert_eq!(with.code()[..plain.code().len()], *plain.code());
        assert!(with.code().len() > plain.code().len());
    }
}
