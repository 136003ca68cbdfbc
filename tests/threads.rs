//! One table, any number of threads.
#![cfg(feature = "std")]

mod common;

use std::arch::x86_64::__cpuid_count;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use common::{Rng, forms, host};
use ioemul::{
    CodeSink, CodeTable, Gprs, Helpers, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, Quirk, QuirkTable,
    SoftwareBus, Stub, StubLayout, StubTable, Trigger, Width,
};

const _: () = {
    const fn shared<T: Send + Sync>() {}
    const fn sent<T: Send>() {}
    shared::<StubTable>();
    shared::<Stub<'_>>();
    shared::<CodeTable>();
    shared::<Helpers>();
    shared::<Quirk>();
    shared::<QuirkTable>();
    shared::<PortSet>();
    shared::<Gprs>();
    shared::<ioemul::Error>();
    sent::<SoftwareBus>();
    sent::<IoEmulator>();
};

#[test]
fn one_table_for_all() {
    // SAFETY: CPUID changes four registers.
    let cpuid =
        unsafe { Quirk::new("CPUID", Trigger::out_dx(Width::Byte, 0x80), |payload| payload.extend(&[0x0f, 0xa2])) };
    let mut quirks = QuirkTable::none();
    quirks.push(cpuid);
    let leaf = __cpuid_count(0, 0);
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::builder().layout(layout).quirks(quirks.clone()).elide_io(true).build().unwrap();
        thread::scope(|scope| {
            for seed in 0..8 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..4 {
                        for form in forms() {
                            let given = Rng(seed << 8 | round).gprs();
                            let mut gprs = given;
                            // SAFETY: a stub without an access.
                            assert_eq!(unsafe { host::call(table.stub(form.insn).code().as_ptr(), &mut gprs) }, 0);
                            assert_eq!(gprs, given);
                        }
                        let mut gprs = Gprs { rdx: 0x80, r9: seed, ..Gprs::default() };
                        // SAFETY: CPUID in the place of an access.
                        unsafe { table.resolve(IoInsn::out_dx(Width::Byte), &gprs).run(&mut gprs) }.unwrap();
                        let expected = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u64::from);
                        assert_eq!(([gprs.rax, gprs.rbx, gprs.rcx, gprs.rdx], gprs.r9), (expected, seed));
                    }
                });
            }
        });
    }
}

/// Emulators are built in any thread and sent to others; those of one layout share their stubs.
#[test]
fn an_emulator_for_each_thread() {
    struct Counter(Arc<AtomicU32>);
    impl PortDevice for Counter {
        fn port_in(&mut self, _: PortAccess, gprs: &mut Gprs) -> u32 {
            gprs.rbx += 1;
            self.0.fetch_add(1, Ordering::Relaxed)
        }
        fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {}
    }
    let count = Arc::new(AtomicU32::new(0));
    let emulators: Vec<IoEmulator> = (0..8)
        .map(|i| {
            let mut bus = SoftwareBus::new();
            bus.attach(0x40..=0x40, Counter(count.clone())).unwrap();
            let layout = StubLayout::ALL[i % StubLayout::ALL.len()];
            IoEmulator::builder().layout(layout).ports(PortSet::all()).bus(bus).build().unwrap()
        })
        .collect();
    let threads: Vec<_> = emulators
        .into_iter()
        .map(|mut emulator| {
            thread::spawn(move || {
                let mut gprs = Gprs::default();
                for _ in 0..5_000 {
                    emulator.execute(IoInsn::in_imm8(Width::Dword, 0x40), &mut gprs).unwrap();
                }
                gprs.rbx
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 5_000));
    assert_eq!(count.load(Ordering::Relaxed), 40_000);
}

/// The table of this machine is built once, whoever asks first.
#[test]
fn the_global_table() {
    let asked: Vec<_> =
        (0..8).map(|_| thread::spawn(|| StubTable::global().unwrap().code().as_ptr() as usize)).collect();
    let addresses: Vec<usize> = asked.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(addresses.iter().all(|address| *address == addresses[0]));
    assert_eq!(StubTable::global().unwrap().layout(), StubLayout::CallRet);
}
