//! Making stubs: all of them, and one.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use dynasmrt::mmap::ExecutableBuffer;
use dynasmrt::{DynasmLabelApi, dynasm, x64};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, r12, r13, r14, r15, rbp, rbx, rdi};
use ioemul::{CodeTable, EmitOptions, Helpers, IoInsn, QuirkTable, StubLayout, StubTable, Width, emit_stub};

const INSN: IoInsn = IoInsn::out_dx(Width::Byte);
const HELPERS_VA: u64 = 0x10_0000;
const SLOT_VA: u64 = 0x20_0000;

fn build(criterion: &mut Criterion) {
    support::pin_or_say();
    let mut group = criterion.benchmark_group("build, all stubs");
    for layout in StubLayout::ALL.iter().copied() {
        let builder = StubTable::builder().layout(layout).quirks(QuirkTable::builtin());
        let name = format!("{layout:?}");
        group.bench_function(BenchmarkId::new("executable table", &name), |b| {
            b.iter_with_large_drop(|| builder.clone().build());
        });
        let options = EmitOptions::new().layout(layout);
        let mut memory = vec![0; CodeTable::size(&options)];
        group.bench_function(BenchmarkId::new("into the caller's memory", &name), |b| {
            b.iter(|| CodeTable::emit(black_box(&mut memory), SLOT_VA, &options));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("build, one stub");
    for layout in StubLayout::ALL.iter().copied() {
        let (mut room, mut slot) = ([0; Helpers::MAX_LEN], [0; 256]);
        let options = EmitOptions::new().layout(layout);
        let helpers = Helpers::emit(&mut room, HELPERS_VA, &options).expect("they have room enough");
        group.bench_function(BenchmarkId::new("into a slot", format!("{layout:?}")), |b| {
            b.iter(|| emit_stub(black_box(&mut slot), SLOT_VA, black_box(INSN), &helpers));
        });
    }
    assert_eq!(iced().expect("it assembles").len(), 36);
    assert_eq!(dynasm_assembler().len(), 36);
    group.bench_function(BenchmarkId::new("iced-x86 CodeAssembler, not executable", "CallRet"), |b| b.iter(iced));
    group.bench_function(BenchmarkId::new("dynasmrt Assembler, executable", "CallRet"), |b| {
        b.iter_with_large_drop(dynasm_assembler);
    });
    group.finish();
}

/// The stub of `StubLayout::CallRet` by another assembler.
fn iced() -> Result<Vec<u8>, IcedError> {
    let mut ops = CodeAssembler::new(64)?;
    for register in [rbx, rbp, r12, r13, r14, r15, rdi] {
        ops.push(register)?;
    }
    ops.call(HELPERS_VA)?;
    ops.db(&INSN.encode_padded())?;
    ops.call(HELPERS_VA + 64)?;
    for register in [rdi, r15, r14, r13, r12, rbp, rbx] {
        ops.pop(register)?;
    }
    ops.ret()?;
    ops.assemble(SLOT_VA)
}

/// The same with an assembler, and with it a mapping, of its own. (The helpers would be found through a register here,
/// or in the same mapping: two calls to the end of the stub are as long.)
fn dynasm_assembler() -> ExecutableBuffer {
    let mut ops = x64::Assembler::new().expect("memory");
    dynasm!(ops ; .arch x64
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15 ; push rdi
        ; call ->end
        ; .bytes INSN.encode_padded()
        ; call ->end
        ; pop rdi ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx ; ret
        ; ->end:
    );
    ops.finalize().expect("no other reader")
}

criterion_group! { name = benches; config = support::criterion(); targets = build }
criterion_main!(benches);
