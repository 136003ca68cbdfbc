//! A whole table emitted for any address, into as much memory as it needs or a byte less: as for single slots, and every
//! address that it gives is within it.
#![no_main]

use arbitrary::Arbitrary;
use ioemul::{CodeTable, Gprs, IoInsn, StubLayout, Width};
use ioemul_fuzz::{Options, emitted};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    layout: u8,
    va: u64,
    options: Options,
    short: bool,
    rip: u64,
}

fuzz_target!(|input: Input| {
    let layout = StubLayout::ALL[usize::from(input.layout % 4)];
    let options = input.options.at(input.va);
    let needed = CodeTable::size(layout, &options);
    let mut memory = vec![0; needed + 16];
    let len = needed - usize::from(input.short);
    let emit = |memory: &mut [u8]| CodeTable::emit(memory, input.va, layout, &options);
    let Some(table) = emitted(&mut memory, len, emit, |_| needed) else { return };
    assert!(!input.short);
    let inside = input.va..input.va + needed as u64;
    assert!(IoInsn::all().all(|insn| inside.contains(&table.entry(insn))));
    let proliant = Gprs { rax: 0x80, rdx: 0xcd4, ..Gprs::default() };
    assert!(inside.contains(&table.resolve(IoInsn::out_dx(Width::Byte), &proliant)));
    for rip in [input.rip, input.va.wrapping_add(input.rip % needed as u64)] {
        let fixup = table.fixup(rip);
        assert!(fixup.is_none_or(|fixup| inside.contains(&rip) && inside.contains(&fixup.resume)));
    }
});
