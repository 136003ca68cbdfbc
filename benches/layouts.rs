//! One call of a stub, by layout: assembled here, written by hand, and in the order of the original patch.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ioemul::{Gprs, IoInsn, StubLayout, StubTable, Width};
use support::hand::{self, Entry};
use support::memory::entry;
use support::trace::Trace;

const INSN: IoInsn = IoInsn::out_dx(Width::Byte);

fn layouts(criterion: &mut Criterion) {
    support::pin_or_say();
    let table = |layout| StubTable::builder().layout(layout).elide_io(true).build().expect("stubs without I/O");
    let tables = StubLayout::ALL.iter().map(|&layout| (format!("{layout:?}"), table(layout))).collect::<Vec<_>>();
    let of = |layout: StubLayout| entry(tables[layout as usize].1.stub(INSN));
    for (layout, by_hand) in hand::STUBS {
        let (assembled, by_hand) = (Trace::of(of(*layout)), Trace::of(*by_hand));
        assert_eq!(assembled.instructions, by_hand.instructions, "{layout:?} is not the same by hand");
    }

    let mut group = criterion.benchmark_group("layouts");
    let mut bench = |family: &str, name: &str, entry: Entry| {
        let mut gprs = Gprs::default();
        // SAFETY: none of these makes an access.
        group.bench_function(BenchmarkId::new(family, name), |b| b.iter(|| unsafe { entry(black_box(&mut gprs)) }));
    };
    bench("empty", "function", hand::ioemul_hand_empty);
    for (name, table) in &tables {
        bench("assembled", name, entry(table.stub(INSN)));
    }
    for (layout, by_hand) in hand::STUBS {
        bench("by hand", &format!("{layout:?}"), *by_hand);
    }
    bench("by hand", "CallRet in the patch's order, no flags", hand::ioemul_hand_patch_order);
    bench("by hand", "host registers in XMM0-6", hand::ioemul_hand_parked);
    group.finish();

    let mut group = criterion.benchmark_group("layouts, run()");
    for (name, table) in &tables {
        let (stub, mut gprs) = (table.stub(INSN), Gprs::default());
        // SAFETY: the table makes no access.
        group.bench_function(name, |b| b.iter(|| unsafe { stub.run(black_box(&mut gprs)) }));
    }
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = layouts }
criterion_main!(benches);
