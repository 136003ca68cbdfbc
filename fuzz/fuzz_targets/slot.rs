//! Stubs and helpers emitted for any address into memory of any length: no panic, nothing written past the end, and an
//! error leaves the memory as it was.
#![no_main]

use arbitrary::Arbitrary;
use ioemul::{Helpers, emit_stub, stub_fixup};
use ioemul_fuzz::{Address, Options, emitted, form};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    form: u16,
    helpers_va: u64,
    va: Address,
    len: u16,
    options: Options,
    rip: u64,
}

fuzz_target!(|input: Input| {
    let insn = form(input.form);
    let options = input.options.at(input.helpers_va);
    // A quirk's stub stands before the plain one, which is up to 300 bytes long, and so would be its own.
    let mut memory = [0; 4096];
    let len = usize::from(input.len) % 4000;
    let emit = |memory: &mut [u8]| Helpers::emit(memory, input.helpers_va, &options);
    emitted(&mut memory, len, emit, Helpers::len);
    let Some(helpers) = emitted(&mut memory, Helpers::MAX_LEN, emit, Helpers::len) else { return };
    let in_helpers = |address: u64| address.wrapping_sub(helpers.va()) < helpers.len() as u64;
    assert!(helpers.symbols().all(|(_, va)| in_helpers(va)));

    let va = input.va.from(input.helpers_va);
    let emit = |memory: &mut [u8]| emit_stub(memory, va, insn, &helpers);
    let Some(len) = emitted(&mut memory, len, emit, |len| *len) else { return };
    let in_stub = |address: u64| address.wrapping_sub(va) < len as u64;
    for rip in [input.rip, va.wrapping_add(input.rip % 1024)] {
        if let Some(pad) = stub_fixup(va, insn, &helpers, rip) {
            assert!(in_stub(rip) && in_helpers(pad));
        }
    }
});
