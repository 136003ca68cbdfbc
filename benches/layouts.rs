//! One call of a stub, by layout: assembled here, written by hand, and in the order of the original patch.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl};
use ioemul::{Gprs, IoInsn, StubLayout, StubTable, Width};
use support::hand::{self, Entry};
use support::memory::entry;

const INSN: IoInsn = IoInsn::out_dx(Width::Byte);

fn layouts(criterion: &mut Criterion) {
    support::pin_or_say();
    let table = |layout| StubTable::builder().layout(layout).elide_io(true).build().expect("stubs without I/O");
    let tables = StubLayout::ALL.iter().map(|&layout| (format!("{layout:?}"), table(layout))).collect::<Vec<_>>();
    let of = |layout: StubLayout| entry(tables[layout as usize].1.stub(INSN));
    assert_eq!(trace(of(StubLayout::CallRet)), trace(hand::ioemul_hand_call_ret), "not the same by hand");
    assert_eq!(trace(of(StubLayout::Inline)), trace(hand::ioemul_hand_inline), "not the same by hand");

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
    bench("by hand", "CallRet", hand::ioemul_hand_call_ret);
    bench("by hand", "Inline", hand::ioemul_hand_inline);
    bench("by hand", "CallRet in the patch's order, no RFLAGS", hand::ioemul_hand_patch_order);
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

/// The instructions that a call executes, less the branches' distances: what has to be the same for two ways to write it.
fn trace(entry: Entry) -> Vec<String> {
    let (mut at, mut callers, mut trace) = (entry as *const () as u64, Vec::new(), Vec::new());
    loop {
        // SAFETY: the code of a stub or a helper, which ends with a RET, an instruction being 15 bytes at most.
        let code = unsafe { core::slice::from_raw_parts(at as *const u8, 15) };
        let insn = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
        match insn.flow_control() {
            FlowControl::Call | FlowControl::UnconditionalBranch => {
                trace.push(format!("{:?}", insn.mnemonic()));
                if insn.flow_control() == FlowControl::Call {
                    callers.push(insn.next_ip());
                }
                at = insn.near_branch_target();
                continue;
            }
            FlowControl::Return => {
                trace.push("ret".to_owned());
                match callers.pop() {
                    Some(caller) => at = caller,
                    None => return trace,
                }
                continue;
            }
            _ => assert_ne!(insn.code(), Code::INVALID, "no instruction at {at:#x}"),
        }
        trace.push(insn.to_string());
        at = insn.next_ip();
    }
}

criterion_group! { name = benches; config = support::criterion(); targets = layouts }
criterion_main!(benches);
