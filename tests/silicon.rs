//! Stubs run on the CPU itself, without privilege: instructions that change registers and flags stand in place of the
//! access, as the payload of a quirk.
#![cfg(feature = "std")]

mod common;

use std::arch::x86_64::__cpuid_count;

use common::{any_gprs, cases, host};
use dynasm::dynasm;
use ioemul::{CodeSink, Gprs, IoInsn, Payload, Quirk, QuirkTable, StubLayout, StubTable, Trigger, Width};
use proptest::prelude::*;

const INSN: IoInsn = IoInsn::out_imm8(Width::Byte, 0x80);

/// Runs `payload` with `given` in the registers, in every layout.
fn run_each(payload: fn(&mut Payload<'_>), given: Gprs) -> Vec<Gprs> {
    // SAFETY: the payloads below change general-purpose registers and status flags alone.
    let quirk = unsafe { Quirk::new("test", Trigger::out(Width::Byte, 0x80), payload) };
    let mut quirks = QuirkTable::none();
    quirks.push(quirk);
    StubLayout::ALL
        .iter()
        .map(|&layout| {
            let table = StubTable::builder().layout(layout).quirks(quirks.clone()).build().unwrap();
            let mut gprs = given;
            let stub = table.resolve(INSN, &gprs);
            // SAFETY: a stub and a register file; the payload makes no access.
            let rax = unsafe { host::call(stub.code().as_ptr(), &mut gprs) };
            assert_eq!(rax, 0, "{layout:?}: no fault");
            gprs
        })
        .collect()
}

/// The same; the layouts must agree.
fn run(payload: fn(&mut Payload<'_>), given: Gprs) -> Gprs {
    let results = run_each(payload, given);
    assert!(results.iter().all(|gprs| *gprs == results[0]), "the layouts differ: {results:#?}");
    results[0]
}

#[test]
fn the_public_way() {
    // SAFETY: CPUID changes four registers.
    let cpuid =
        unsafe { Quirk::new("CPUID", Trigger::out(Width::Byte, 0x80), |payload| payload.extend(&[0x0f, 0xa2])) };
    let mut quirks = QuirkTable::none();
    quirks.push(cpuid);
    let table = StubTable::builder().quirks(quirks).build().unwrap();
    let mut gprs = Gprs::default();
    // SAFETY: the payload makes no access.
    unsafe { table.resolve(INSN, &gprs).run(&mut gprs) }.unwrap();
    let leaf = __cpuid_count(0, 0);
    assert_eq!([gprs.rax, gprs.rbx, gprs.rcx, gprs.rdx], [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u64::from));
}

proptest! {
    #![proptest_config(cases(16))]

    /// Four registers at once, zero-extended; the others stay.
    #[test]
    fn cpuid(given in any_gprs()) {
        // Leaves whose answer is the same on every CPU of the machine.
        for leaf in [0, 0x8000_0000, 0x8000_0002, 0x8000_0003, 0x8000_0004] {
            let given = Gprs { rax: given.rax & !0xffff_ffff | leaf, ..given };
            let gprs = run(|payload| payload.extend(&[0x0f, 0xa2]), given);
            let expected = __cpuid_count(leaf as u32, given.rcx as u32);
            let expected = Gprs {
                rax: expected.eax.into(),
                rbx: expected.ebx.into(),
                rcx: expected.ecx.into(),
                rdx: expected.edx.into(),
                ..given
            };
            prop_assert_eq!(gprs, expected);
        }
    }

    #[test]
    fn mul(given in any_gprs()) {
        let gprs = run(|payload| dynasm!(payload ; .arch x64 ; mul rbx), given);
        let product = u128::from(given.rax) * u128::from(given.rbx);
        let (rax, rdx) = (product as u64, (product >> 64) as u64);
        prop_assert_eq!(gprs, Gprs { rax, rdx, rflags: gprs.rflags, ..given });
        // CF and OF say whether the upper half is in use.
        prop_assert_eq!(gprs.rflags & 0x801, if rdx != 0 { 0x801 } else { 0 });
    }

    /// Each register moves to the place of its neighbour.
    #[test]
    fn exchange_of_all_registers(given in any_gprs()) {
        let rotate: fn(&mut Payload<'_>) = |payload| dynasm!(payload ; .arch x64
            ; xchg rax, rbx ; xchg rbx, rcx ; xchg rcx, rdx ; xchg rdx, rsi ; xchg rsi, rdi ; xchg rdi, rbp ; xchg rbp, r8
            ; xchg r8, r9 ; xchg r9, r10 ; xchg r10, r11 ; xchg r11, r12 ; xchg r12, r13 ; xchg r13, r14 ; xchg r14, r15
        );
        let mut expected = given.to_words();
        expected[..15].rotate_left(1);
        let gprs = run(rotate, given);
        // XCHG leaves the flags alone.
        prop_assert_eq!(gprs.to_words(), expected);
    }
}

const OF: u64 = 0x800;
const SF: u64 = 0x80;
const ZF: u64 = 0x40;
const AF: u64 = 0x10;
const PF: u64 = 0x04;
const CF: u64 = 0x01;

/// Every combination of the status flags.
fn all_flags() -> impl Iterator<Item = u64> {
    let flags = [CF, PF, AF, ZF, SF, OF];
    (0..64_u64).map(move |bits| (0..6).filter(|flag| bits >> flag & 1 != 0).map(|flag| flags[flag]).sum())
}

/// The flags are the guest's at the access, and what it leaves is the guest's again; the bits that are not status flags
/// never leave the register file.
#[test]
fn flags() {
    const OTHERS: u64 = 0xfedc_ba98_7654_3000 & !Gprs::STATUS_FLAGS | 0x202;
    type Step = (&'static str, fn(&mut Payload<'_>), fn(u64) -> u64);
    let steps: &[Step] = &[
        ("nothing", |_| (), |flags| flags),
        ("stc", |payload| payload.extend(&[0xf9]), |flags| flags | CF),
        ("clc", |payload| payload.extend(&[0xf8]), |flags| flags & !CF),
        ("cmc", |payload| payload.extend(&[0xf5]), |flags| flags ^ CF),
        // cmp bl, 1 of BL 0: 0xff, with a borrow in and out of the lower half.
        ("cmp", |payload| payload.extend(&[0x80, 0xfb, 0x01]), |_| CF | PF | AF | SF),
        // mov al, 0x7f; inc al: CF stays.
        ("inc", |payload| payload.extend(&[0xb0, 0x7f, 0xfe, 0xc0]), |flags| flags & CF | OF | AF | SF),
    ];
    for flags in all_flags() {
        for (name, payload, expected) in steps {
            let given = Gprs { rflags: OTHERS | flags, ..Gprs::default() };
            let gprs = run(*payload, given);
            assert_eq!(gprs.rflags, OTHERS | expected(flags), "{name} with {flags:#x}");
        }
    }
}

/// Instructions that read flags prove that each was loaded.
#[test]
fn flags_that_instructions_read() {
    for flags in all_flags() {
        let given = Gprs { rflags: flags, rbx: 5, rcx: 0x80, ..Gprs::default() };
        let is = |flag: u64| u64::from(flags & flag != 0);
        // seto al; setc bl; setz cl; sets dl; setp sil; setc dil.
        let setcc = run(
            |payload| {
                dynasm!(payload ; .arch x64 ; seto al ; setc bl ; setz cl ; sets dl ; setp sil ; setnc dil);
            },
            given,
        );
        let read = [setcc.rax, setcc.rbx, setcc.rcx, setcc.rdx, setcc.rsi, setcc.rdi];
        assert_eq!(read, [is(OF), is(CF), is(ZF), is(SF), is(PF), 1 - is(CF)], "{flags:#x}");
        assert_eq!(setcc.rflags, flags);
        // AF is read by no such instruction, but by LAHF.
        let lahf = run(|payload| dynasm!(payload ; .arch x64 ; lahf), given);
        assert_eq!(lahf.rax, (flags & 0xff | 2) << 8);
        let adc = run(|payload| dynasm!(payload ; .arch x64 ; adc rbx, 1), given);
        assert_eq!(adc.rbx, 6 + is(CF));
        let rcl = run(|payload| dynasm!(payload ; .arch x64 ; rcl cl, 1), given);
        assert_eq!((rcl.rcx, rcl.rflags & CF), (is(CF), CF), "{flags:#x}");
        // The other flags stay but OF, which the rotation defines.
        assert_eq!(rcl.rflags & !(CF | OF), flags & !(CF | OF));
    }
}

/// The time stamps are in the order in which they were taken.
#[test]
fn rdtsc() {
    // SAFETY: reads a counter.
    let now = || unsafe { std::arch::x86_64::_rdtsc() };
    let before = now();
    let ones = Gprs { rax: u64::MAX, rdx: u64::MAX, ..Gprs::default() };
    let stamp = |gprs: Gprs| {
        assert!(gprs.rax <= u32::MAX.into() && gprs.rdx <= u32::MAX.into(), "zero-extended");
        gprs.rdx << 32 | gprs.rax
    };
    let stamps: Vec<u64> = run_each(|payload| payload.extend(&[0x0f, 0x31]), ones).into_iter().map(stamp).collect();
    assert!(stamps.is_sorted() && before <= stamps[0] && stamps[stamps.len() - 1] <= now(), "{before} {stamps:?}");
}

/// A payload's own words on the stack, between two accesses of the guest's registers.
#[test]
fn a_payload_uses_the_stack() {
    let swap: fn(&mut Payload<'_>) = |payload| {
        dynasm!(payload ; .arch x64 ; push r8);
        payload.pushed(8);
        dynasm!(payload ; .arch x64 ; push r15);
        payload.pushed(8);
        dynasm!(payload ; .arch x64 ; pop r8);
        payload.popped(8);
        dynasm!(payload ; .arch x64 ; pop r15);
        payload.popped(8);
    };
    let given = Gprs { r8: 8, r15: 15, ..Gprs::default() };
    let gprs = run(swap, given);
    assert_eq!(gprs, Gprs { r8: 15, r15: 8, ..given });
}
