//! A stub called from the bottom of 0 to 40 real call frames: what a hijacked return costs the callers.

mod support;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ioemul::{Gprs, IoInsn, StubLayout, StubTable, Width};
use support::frames::call_under;
use support::hand;
use support::memory::entry;

fn depth(criterion: &mut Criterion) {
    support::pin_or_say();
    let table = |layout| StubTable::builder().layout(layout).elide_io(true).build().expect("stubs without I/O");
    let tables = [StubLayout::CallRet, StubLayout::Compact, StubLayout::Rop].map(table);
    let mut subjects = vec![("frames alone".to_owned(), hand::ioemul_hand_empty as hand::Entry)];
    subjects.extend(
        tables.iter().map(|table| (format!("{:?}", table.layout()), entry(table.stub(IoInsn::out_dx(Width::Byte))))),
    );
    let mut group = criterion.benchmark_group("depth, frames around the stub");
    for (name, stub) in subjects {
        for frames in [0, 4, 8, 12, 16, 24, 32, 40] {
            let mut gprs = Gprs::default();
            // The whole run is one loop in assembly, so that the return stack sees nothing but these frames.
            group.bench_function(BenchmarkId::new(&name, frames), |b| {
                b.iter_custom(|times| {
                    let start = std::time::Instant::now();
                    // SAFETY: none of these makes an access.
                    unsafe { call_under(frames, stub, &mut gprs, times) };
                    start.elapsed()
                });
            });
        }
    }
    group.finish();
}

criterion_group! { name = benches; config = support::criterion(); targets = depth }
criterion_main!(benches);
