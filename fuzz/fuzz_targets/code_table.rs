//! A whole table emitted for any address, into as much memory as it needs or a byte less: as for single slots, every address
//! that it gives is within it, and its list of faults is in order and agrees with its answers.
#![no_main]

use arbitrary::Arbitrary;
use ioemul::{CodeTable, IoInsn, Width};
use ioemul_fuzz::{Options, emitted};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    va: u64,
    options: Options,
    short: bool,
    rip: u64,
    rax: u64,
}

fuzz_target!(|input: Input| {
    let options = input.options.at(input.va);
    let needed = CodeTable::size(&options);
    let mut memory = vec![0; needed + 16];
    let len = needed - usize::from(input.short);
    let emit = |memory: &mut [u8]| CodeTable::emit(memory, input.va, &options);
    let Some(table) = emitted(&mut memory, len, emit, |_| needed) else { return };
    assert!(!input.short);
    let inside = |address: u64| address.wrapping_sub(input.va) < needed as u64;
    assert!(IoInsn::in_out().all(|insn| table.entry(insn).is_some_and(inside)));
    assert!(IoInsn::strings().all(|insn| table.entry(insn).is_none() && table.string_entry(insn).is_some_and(inside)));
    for port in [0xb2, 0xcd4] {
        assert!(table.resolve(IoInsn::out_dx(Width::Byte), input.rax, port).is_some_and(inside));
        assert!(table.accesses(IoInsn::out_dx(Width::Byte), input.rax, port).next().is_some());
    }
    for rip in [input.rip, input.va.wrapping_add(input.rip % needed as u64)] {
        assert!(table.fixup(rip).is_none_or(|pad| inside(rip) && inside(pad)));
    }
    let mut last = None;
    for (rip, pad) in table.faults() {
        assert!(last.is_none_or(|last| last < rip), "the faults are not in order");
        assert_eq!(table.fixup(rip), Some(pad));
        last = Some(rip);
    }
    assert!(table.symbols().all(|symbol| inside(symbol.address) && symbol.len <= needed));
});
