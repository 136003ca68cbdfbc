//! From an instruction to its execution: found in the table, or written into a slot for each access.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ioemul::{Gprs, IoInsn, StubLayout, StubTable, Width};
use support::memory::AliasedSlot;

fn dispatch(criterion: &mut Criterion) {
    support::pin_or_say();
    let table = StubTable::builder().layout(StubLayout::CallRet).elide_io(true).build().expect("stubs without I/O");
    let mut slot = AliasedSlot::new().expect("a page of shared memory");
    let mut group = criterion.benchmark_group("dispatch");
    let sequences = [
        ("one form", vec![IoInsn::out_dx(Width::Byte)]),
        ("64 forms in random order", support::random_forms(64)),
        ("all forms in random order", support::random_forms(IoInsn::COUNT)),
    ];
    for (name, forms) in &sequences {
        let (mut gprs, mut next) = (Gprs::default(), forms.iter().cycle());
        group.bench_function(BenchmarkId::new("find and run", name), |b| {
            b.iter(|| {
                let insn = *black_box(next.next()).expect("it has no end");
                // SAFETY: the table makes no access.
                unsafe { table.resolve(insn, &gprs).run(&mut gprs) }
            });
        });
        let bytes: Vec<_> = forms.iter().map(|&insn| slot.prepare_elided(insn)).collect();
        let (mut gprs, mut next) = (Gprs::default(), bytes.iter().cycle());
        group.bench_function(BenchmarkId::new("rewrite through an alias and run", name), |b| {
            b.iter(|| {
                let bytes = next.next().expect("it has no end");
                // SAFETY: the I/O instruction was taken out.
                unsafe { slot.rewrite(bytes)(&mut gprs) }
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = dispatch }
criterion_main!(benches);
