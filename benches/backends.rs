//! What is behind a stub: a device model, a fault, nothing at all; and what comes before it in `execute`.

mod support;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, StubLayout, StubTable, Width};
use support::Silence;
use support::fault::BareHandler;

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const IN: IoInsn = IoInsn::in_dx(Width::Byte);

fn gprs() -> Gprs {
    Gprs { rdx: 0x80, ..Gprs::default() }
}

fn bus(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("backends, bus");
    let emulator = |devices: u16| {
        let mut bus = SoftwareBus::new();
        for port in 0..devices {
            bus.attach(0x80 + port..=0x80 + port, Silence).expect("nobody else is there");
        }
        IoEmulator::builder().ports(PortSet::all()).bus(bus).build().expect("a bus needs no privilege")
    };
    for (name, insn, devices) in [("OUT, 1 device", OUT, 1), ("IN, 1 device", IN, 1), ("IN, 64 devices", IN, 64)] {
        let (mut emulator, mut gprs) = (emulator(devices), gprs());
        group.bench_function(name, |b| b.iter(|| emulator.execute(black_box(insn), &mut gprs)));
    }
    let (mut emulator, mut gprs) = (emulator(1), gprs());
    group.bench_function("emulate, from the bytes", |b| b.iter(|| emulator.emulate(black_box(&[0xee]), &mut gprs)));
    let table = StubTable::builder().elide_io(true).build().expect("stubs without I/O");
    group.bench_function("the bare stub, for comparison", |b| {
        // SAFETY: the table makes no access.
        b.iter(|| unsafe { table.stub(black_box(OUT)).run(&mut gprs) });
    });
    group.finish();
}

fn fault(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("backends, fault");
    let table = StubTable::new(StubLayout::CallRet).expect("stubs");
    let (stub, mut gprs) = (table.stub(IN), gprs());
    // SAFETY: faults, or, with the privilege, reads the POST code.
    if unsafe { stub.run(&mut gprs) }.is_ok() {
        eprintln!("faults are not measured: this process may read port 0x80");
        return;
    }
    // SAFETY: as above.
    group.bench_function("#GP to an error", |b| b.iter(|| unsafe { stub.run(&mut gprs) }));
    // SAFETY: no port is named.
    let mut refused = unsafe { IoEmulator::builder().native(PortSet::default()) }.build().expect("stubs");
    group.bench_function("a port that is not permitted", |b| b.iter(|| refused.execute(black_box(IN), &mut gprs)));
    let handler = BareHandler::install().expect("SIGSEGV can be handled");
    group.bench_function("a bare SIGSEGV handler that steps over", |b| b.iter(|| handler.fault()));
    drop(handler);
    group.finish();
}

/// The same table on two cores at once.
fn threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("backends, threads on one table");
    let table = StubTable::builder().elide_io(true).build().expect("stubs without I/O");
    for threads in [1, 2] {
        let run = |core: usize, times: u64, start: &Barrier| {
            // Where the core is not ours to have, the thread runs where it may.
            let _ = support::clock::pin_to(core);
            let mut gprs = gprs();
            start.wait();
            let begin = Instant::now();
            for _ in 0..times {
                // SAFETY: the table makes no access.
                let _ = black_box(unsafe { table.stub(OUT).run(&mut gprs) });
            }
            begin.elapsed()
        };
        group.bench_function(format!("{threads} at once"), |b| {
            b.iter_custom(|times| {
                let start = Barrier::new(threads);
                std::thread::scope(|scope| {
                    let running: Vec<_> = (0..threads)
                        .map(|core| {
                            scope.spawn({
                                let start = &start;
                                move || run(core, times, start)
                            })
                        })
                        .collect();
                    let longest = running.into_iter().map(|thread| thread.join().expect("it does not panic")).max();
                    longest.unwrap_or(Duration::ZERO)
                })
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = bus, fault, threads }
criterion_main!(benches);
