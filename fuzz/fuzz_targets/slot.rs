//! Stubs and helpers emitted for any address into memory of any length: no panic, nothing written past the end, and an
//! error leaves the memory as it was.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use ioemul::{Helpers, IoInsn, StubLayout, emit_stub_with, stub_fixup};
use ioemul_fuzz::{Address, Options, emitted};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    layout: u8,
    form: u16,
    helpers_va: u64,
    va: Address,
    len: u16,
    options: Options,
    rip: u64,
}

static FORMS: LazyLock<Vec<IoInsn>> = LazyLock::new(|| IoInsn::all().collect());

fuzz_target!(|input: Input| {
    let layout = StubLayout::ALL[usize::from(input.layout % 4)];
    let insn = FORMS[usize::from(input.form) % FORMS.len()];
    let options = input.options.at(input.helpers_va);
    let mut memory = [0; 600];
    let len = usize::from(input.len) % 400;
    let emit = |memory: &mut [u8]| Helpers::emit_with(memory, input.helpers_va, layout, &options);
    emitted(&mut memory, len, emit, Helpers::len);
    let Some(helpers) = emitted(&mut memory, 256, emit, Helpers::len) else { return };
    let in_helpers = helpers.va()..helpers.va() + helpers.len() as u64;
    assert!(helpers.symbols().all(|(_, va)| in_helpers.contains(&va)));

    let va = input.va.from(input.helpers_va);
    let emit = |memory: &mut [u8]| emit_stub_with(memory, va, insn, &helpers, &options);
    let Some(len) = emitted(&mut memory, len, emit, |len| *len) else { return };
    let in_stub = va..va + len as u64;
    for rip in [input.rip, va.wrapping_add(input.rip % 256)] {
        if let Some(fixup) = stub_fixup(va, insn, &helpers, &options, rip) {
            assert!(in_stub.contains(&rip));
            assert!(in_helpers.contains(&fixup.resume) || in_stub.contains(&fixup.resume));
        }
    }
});
