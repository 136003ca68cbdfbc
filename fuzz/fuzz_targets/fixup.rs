//! Where a fault resumes: in the I/O sequences of stubs, and nowhere else. Code is emitted with some options, and asked about addresses that
//! are in it, near it, and of other code: of other options, of another form, for another place.
#![no_main]

use arbitrary::Arbitrary;
use ioemul::{CodeTable, Helpers, IoInsn, Symbol, SymbolName, emit_stub, stub_fixup};
use ioemul_fuzz::{Address, Options, emitted, form, is_in_io};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    form: u16,
    helpers_va: u64,
    va: Address,
    options: Options,
    other_form: u16,
    other_va: Address,
    other_options: Options,
    table: bool,
    rips: [Address; 4],
}

fuzz_target!(|input: Input| if input.table { table(&input) } else { stub(&input) });

fn stub(input: &Input) {
    let (insn, other_insn) = (form(input.form), form(input.other_form));
    let mut memory = [0; 4096];
    let va = input.va.from(input.helpers_va);
    let options = input.options.at(input.helpers_va);
    let emit = |memory: &mut [u8]| Helpers::emit(memory, input.helpers_va, &options);
    let helpers = emitted(&mut memory, Helpers::MAX_LEN, emit, Helpers::len);
    let other_va = input.other_va.from(va);
    let other_options = input.other_options.at(other_va);
    let emit = |memory: &mut [u8]| Helpers::emit(memory, other_va, &other_options);
    let others = emitted(&mut memory, Helpers::MAX_LEN, emit, Helpers::len);
    let in_helpers = |helpers: &Helpers, pad: u64| pad.wrapping_sub(helpers.va()) < helpers.len() as u64;
    let emit = |helpers: &Helpers, memory: &mut [u8]| emit_stub(memory, va, insn, helpers).ok();
    let Some((helpers, len)) =
        helpers.and_then(|helpers| Some((emit(&helpers, &mut memory)?, helpers))).map(|(l, h)| (h, l))
    else {
        return;
    };
    let has_quirk = options.quirks.iter().any(|quirk| quirk.trigger().has_form(insn));
    let mut accesses = 0;
    for at in 0..len {
        let rip = va + at as u64;
        if let Some(pad) = stub_fixup(va, insn, &helpers, rip) {
            assert!(in_helpers(&helpers, pad));
            // What a quirk puts there is all of it such a sequence.
            let io = has_quirk || is_in_io(&memory[..len], at);
            assert!(io, "{insn}: a fixup at {at} of {:02x?}", &memory[..len]);
            accesses += 1;
        }
        // Of other code nothing is known: an answer is a pad of that code's, or none.
        if let Some(others) = &others {
            for (va, insn) in [(va, insn), (va, other_insn), (other_va, insn)] {
                assert!(stub_fixup(va, insn, others, rip).is_none_or(|pad| in_helpers(others, pad)));
            }
        }
    }
    assert!(accesses > 0, "{insn}: no access in {:02x?}", &memory[..len]);
    for rip in &input.rips {
        let rip = rip.from(va);
        let inside = rip.wrapping_sub(va) < len as u64;
        assert!(inside || stub_fixup(va, insn, &helpers, rip).is_none());
        if let Some(others) = &others {
            assert!(stub_fixup(other_va, other_insn, others, rip).is_none_or(|pad| in_helpers(others, pad)));
        }
    }
}

fn table(input: &Input) {
    let va = input.helpers_va;
    let options = input.options.at(va);
    let needed = CodeTable::size(&options);
    let mut memory = vec![0; needed];
    let emit = |memory: &mut [u8]| CodeTable::emit(memory, va, &options);
    let Some(table) = emitted(&mut memory, needed, emit, |_| needed) else { return };
    let faults: Vec<(u64, u64)> = table.faults().collect();
    // Every form has one, and what is found there is an access.
    assert!(faults.len() >= IoInsn::COUNT + IoInsn::STRING_COUNT);
    let at = |rip: u64| rip.wrapping_sub(va) as usize;
    for &(rip, pad) in &faults {
        assert!(IoInsn::decode(&memory[at(rip)..]).is_ok(), "{rip:#x}");
        assert_eq!(table.fixup(rip), Some(pad));
    }
    // Near them, and anywhere: in an I/O sequence, or no fixup.
    let some = &faults[usize::from(input.form) % faults.len()];
    let near = |fault: &(u64, u64)| (0..48).map(|by| fault.0.wrapping_add(by).wrapping_sub(24)).collect::<Vec<_>>();
    let mut rips = [&faults[0], some, &faults[faults.len() - 1]].map(near).concat();
    rips.extend([0, va.wrapping_sub(1), va, va.wrapping_add(needed as u64), u64::MAX]);
    rips.extend(input.rips.iter().map(|rip| rip.from(va)));
    rips.extend(input.rips.iter().map(|rip| va.wrapping_add(rip.from(va) % needed as u64)));
    let symbols: Vec<Symbol> = table.symbols().collect();
    for rip in rips {
        let Some(pad) = table.fixup(rip) else { continue };
        let within = |symbol: &&Symbol| rip.wrapping_sub(symbol.address) < symbol.len as u64;
        let symbol = symbols.iter().find(within).expect("a fixup outside of all stubs");
        let code = &memory[at(symbol.address)..][..symbol.len];
        match symbol.name {
            SymbolName::Stub(insn) => assert!(is_in_io(code, (rip - symbol.address) as usize), "{insn}: {code:02x?}"),
            SymbolName::Quirk { .. } => {}
            other => panic!("a fixup in {other}"),
        }
        assert!(at(pad) < needed && !IoInsn::decode(&memory[at(pad)..]).is_ok());
    }
}
