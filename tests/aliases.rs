//! Stubs written through one mapping and executed in another, as a hypervisor's are; and their faults, resumed by a handler
//! that sets RIP and nothing else.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::sync::Mutex;
use std::{mem, ptr};

use common::alias::Alias;
use common::slots::{QUIRKS, hardenings, options};
use common::{Rng, files, host};
use dynasm::dynasm;
use ioemul::{
    CodeSink, CodeTable, EmitOptions, Faulted, Gprs, Helpers, IoInsn, Payload, Quirk, Ring, StubLayout, Trigger, Width,
    emit_stub, stub_fixup,
};

const OUT: IoInsn = IoInsn::out_imm8(Width::Byte, 0x80);

/// CPUID, which needs no privilege, where the access would be.
fn cpuid() -> Quirk {
    // SAFETY: CPUID changes four registers.
    unsafe { Quirk::new("CPUID", Trigger::out(Width::Byte, 0x80), |payload| payload.extend(&[0x0f, 0xa2])) }
}

/// What CPUID makes of these registers.
fn after_cpuid(given: Gprs) -> Gprs {
    let leaf = std::arch::x86_64::__cpuid_count(given.rax as u32, given.rcx as u32);
    let [rax, rbx, rcx, rdx] = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u64::from);
    Gprs { rax, rbx, rcx, rdx, ..given }
}

/// Runs a stub that executes CPUID.
fn runs_cpuid(entry: *const u8, seed: u64) {
    let given = Gprs { rax: 0x8000_0000, ..Rng(seed).gprs() };
    let mut gprs = given;
    // SAFETY: a stub and a register file.
    assert_eq!(unsafe { host::call(entry, &mut gprs) }, 0);
    assert_eq!(gprs, after_cpuid(given));
}

#[test]
fn written_through_one_mapping_and_executed_in_another() {
    let quirks = [cpuid()];
    for &layout in StubLayout::ALL {
        let mut alias = Alias::new(0x3000);
        let va = alias.va();
        let (first, second) = alias.memory().split_at_mut(0x1000);
        // A return thunk of the caller's: RET.
        first[0x800] = 0xc3;
        for (seed, options) in hardenings().enumerate() {
            let thunk = options.return_thunk.map(|_| va + 0x800);
            let options = options.layout(layout).return_thunk(thunk).quirks(&quirks).ring(Ring::Three);
            let helpers = Helpers::emit(&mut first[..0x800], va, &options).unwrap();
            let at = 0x100 + 0x311 * seed;
            emit_stub(&mut second[at..], va + 0x1000 + at as u64, OUT, &helpers).unwrap();
            runs_cpuid((va + 0x1000 + at as u64) as *const u8, seed as u64);
        }
    }
}

/// A slot decides when it is called which quirk takes the access, if any does: as [`CodeTable::resolve`] does before.
#[test]
fn a_slot_looks_at_the_register_file() {
    fn load<const VALUE: u32>(payload: &mut Payload<'_>) {
        payload.push(0xbb); // mov ebx
        payload.extend(&VALUE.to_le_bytes());
    }
    let dx = |port| Trigger::out_dx(Width::Byte, port);
    // SAFETY: each changes RBX alone.
    let quirks = unsafe {
        [
            Quirk::new("masked", dx(0x8001).rax(0x8000_00ff, 0x8000_0012), load::<1>),
            Quirk::new("the same port", dx(0x8001).rax(0x0f, 0x02), load::<2>),
            Quirk::new("any RAX", dx(0x7001), load::<3>),
            Quirk::new("everything else", dx(0xcd4).rax(1, 1), load::<4>),
        ]
    };
    let insn = IoInsn::out_dx(Width::Byte);
    let high = 0xffff_ffff_0000_0000_u64;
    let cases: [(u64, u64, Option<u32>); 9] = [
        (0x8000_0012, 0x8001, Some(1)),
        (high | 0x8fff_ff12, high | 0x1234_8001, Some(1)),
        (0x0000_0012, 0x8001, Some(2)),
        (0x8000_0032, 0x8001, Some(2)),
        (0x8000_0012, 0x7001, Some(3)),
        (0x0000_0000, 0x7001, Some(3)),
        (0x0000_0001, 0x0cd4, Some(4)),
        (0x8000_0011, 0x8001, None),
        (0x0000_0002, 0x0cd4, None),
    ];
    for &layout in StubLayout::ALL {
        for file in files::ALL {
            for endbr64 in [false, true] {
                let options = EmitOptions::new().layout(layout).registers(file.library).endbr64(endbr64);
                let options = options.quirks(&quirks).ring(Ring::Three);
                let mut alias = Alias::new(0x2000);
                let va = alias.va();
                let (first, second) = alias.memory().split_at_mut(0x1000);
                let helpers = Helpers::emit(first, va, &options).unwrap();
                let len = emit_stub(second, va + 0x1000, insn, &helpers).unwrap();
                // Where none takes it, the access faults: the flow is seen by which stub's fault is none of a quirk's.
                let fixups: Vec<u64> = (va + 0x1000..va + 0x1000 + len as u64)
                    .filter(|rip| stub_fixup(va + 0x1000, insn, &helpers, *rip).is_some())
                    .collect();
                PADS.lock()
                    .unwrap()
                    .extend(fixups.iter().map(|rip| (*rip, stub_fixup(va + 0x1000, insn, &helpers, *rip).unwrap())));
                install();
                for (rax, rdx, expected) in cases {
                    let mut given = Gprs { rax, rdx, ..Rng(rax).gprs() };
                    if file.rflags.is_none() {
                        given.rflags = 0;
                    }
                    let mut memory = files::Memory::new(*file, &given);
                    // SAFETY: a stub and its register file; the process has no privilege for any port.
                    let result = unsafe { host::call((va + 0x1000) as *const u8, memory.pointer()) };
                    let rbx = expected.map_or(given.rbx, u64::from);
                    assert_eq!((result, memory.gprs()), (u64::from(expected.is_none()), Gprs { rbx, ..given }));
                }
                forget(&fixups);
            }
        }
    }
}

#[test]
fn a_table_written_through_one_mapping_and_executed_in_another() {
    let quirks = [cpuid()];
    for &layout in StubLayout::ALL {
        let options = EmitOptions::new().layout(layout).quirks(&quirks).ring(Ring::Three);
        let mut alias = Alias::new(CodeTable::size(&options));
        let va = alias.va();
        let table = CodeTable::emit(alias.memory(), va, &options).unwrap();
        let entry = table.resolve(OUT, 0, 0).unwrap();
        assert_ne!(Some(entry), table.entry(OUT));
        let input = IoInsn::in_dx(Width::Byte);
        assert_eq!(table.resolve(input, 0, 0), table.entry(input));
        runs_cpuid(entry as *const u8, 0);
        // The same by the table's own call.
        let given = Gprs { rax: 0x8000_0000, ..Rng(1).gprs() };
        let mut gprs = given;
        // SAFETY: the bytes are in place, and CPUID is no access.
        host::watch(|| assert_eq!(unsafe { table.call(OUT, &mut gprs) }, Ok(())));
        assert_eq!(gprs, after_cpuid(given));
        PADS.lock().unwrap().extend(table.faults());
        install();
        let given = Rng(2).gprs();
        let mut gprs = given;
        // SAFETY: the process has no privilege for any port, and a handler knows where the fault resumes.
        host::watch(|| assert_eq!(unsafe { table.call(input, &mut gprs) }, Err(Faulted::AtAccess)));
        for insn in IoInsn::strings() {
            // SAFETY: makes no access.
            assert_eq!(unsafe { table.call(insn, &mut gprs) }, Err(Faulted::StringForm { insn }));
            assert_eq!((table.entry(insn), table.resolve(insn, 0, 0)), (None, None));
        }
        let options = options.registers(ioemul::RegisterFile::PT_REGS);
        let other = CodeTable::emit(&mut vec![0; CodeTable::size(&options)], va, &options).unwrap();
        // SAFETY: makes no access.
        assert_eq!(unsafe { other.call(input, &mut gprs) }, Err(Faulted::OtherRegisterFile));
        assert_eq!(gprs, given);
        forget(&table.faults().map(|fault| fault.0).collect::<Vec<_>>());
    }
}

/// What the handler knows: addresses of instructions, and where their faults resume.
static PADS: Mutex<std::collections::BTreeMap<u64, u64>> = Mutex::new(std::collections::BTreeMap::new());

fn forget(rips: &[u64]) {
    let mut pads = PADS.lock().unwrap();
    for rip in rips {
        pads.remove(rip);
    }
}

/// What a host's exception table does: it sets RIP, and nothing else. The stubs here are none that this crate's own handler
/// knows.
extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's context. A fault in a stub interrupts nobody who holds the lock.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        match PADS.lock().unwrap().get(&rip) {
            Some(pad) => registers[libc::REG_RIP as usize] = *pad as i64,
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

fn install() {
    // SAFETY: all-zero is a valid sigaction; the handler has the signature that the flags say.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
    }
}

/// Calls a stub that must fault, with the host's registers watched: it returns 1, and the register file is as it was.
fn faults(entry: u64, file: files::File, given: Gprs) {
    let given = if file.rflags.is_none() { Gprs { rflags: 0, ..given } } else { given };
    let mut memory = files::Memory::new(file, &given);
    // SAFETY: a stub and its register file; the process has no privilege for CLI and any port.
    let result = unsafe { host::call(entry as *const u8, memory.pointer()) };
    assert_eq!((result, memory.gprs()), (1, given), "{}", file.name);
}

/// Registers with which a string instruction would move one element of nobody's memory.
fn registers(seed: u64, element: *mut u64) -> Gprs {
    Gprs { rcx: 1, rsi: element as u64, rdi: element as u64, ..Rng(seed).gprs() }
}

/// A slot of each option and form. With 32-bit addresses INS and OUTS are no good here: there is no memory of theirs.
#[test]
fn a_fault_in_a_slot_is_resumed_by_rip_alone() {
    let mut element = 0_u64;
    let string = |insn: &IoInsn| {
        matches!(insn.operand, ioemul::PortOperand::String { address: ioemul::AddressSize::Bits64, .. })
    };
    let insns: Vec<IoInsn> = [
        IoInsn::out_dx(Width::Byte),
        IoInsn::out_imm8(Width::Byte, 0xb2),
        IoInsn::in_imm8(Width::Word, 0x71),
        IoInsn::in_dx(Width::Dword),
    ]
    .into_iter()
    .chain(IoInsn::strings().filter(string))
    .collect();
    install();
    for &layout in StubLayout::ALL {
        for (seed, options) in options(layout).into_iter().enumerate() {
            let file = common::slots::file(&options);
            let mut alias = Alias::new(0x1000 + 0x800 * insns.len());
            let va = alias.va();
            let options = options.return_thunk(options.return_thunk.map(|_| va + 0x800));
            let (first, second) = alias.memory().split_at_mut(0x1000);
            first[0x800] = 0xc3;
            let helpers = Helpers::emit(&mut first[..0x800], va, &options).unwrap();
            for (i, insn) in insns.iter().enumerate() {
                let entry = va + 0x1000 + 0x800 * i as u64;
                let len = emit_stub(&mut second[0x800 * i..0x800 * (i + 1)], entry, *insn, &helpers).unwrap() as u64;
                let pads: Vec<(u64, u64)> = (entry..entry + len)
                    .filter_map(|rip| Some((rip, stub_fixup(entry, *insn, &helpers, rip)?)))
                    .collect();
                PADS.lock().unwrap().extend(pads.iter().copied());
                let given = registers(seed as u64, &raw mut element);
                faults(entry, file, given);
                for trigger in options.quirks.iter().map(Quirk::trigger) {
                    let (rax, rdx) = (trigger.value.into(), trigger.port.into());
                    faults(entry, file, Gprs { rax, rdx, ..given });
                }
                forget(&pads.iter().map(|pad| pad.0).collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(element, 0);
}

/// The exception table that a table of all forms gives its host.
#[test]
fn a_fault_in_a_table_is_resumed_by_rip_alone() {
    install();
    for &layout in StubLayout::ALL {
        for file in files::ALL {
            let options = EmitOptions::new().layout(layout).registers(file.library).quirks(QUIRKS[8]);
            let options = options.ring(Ring::Three); // CLI is no access, and would fault here
            let mut alias = Alias::new(CodeTable::size(&options));
            let va = alias.va();
            let table = CodeTable::emit(alias.memory(), va, &options).unwrap();
            PADS.lock().unwrap().extend(table.faults());
            let mut element = 0_u64;
            let given = registers(9, &raw mut element);
            for form in common::forms() {
                faults(table.entry(form.insn).unwrap(), *file, given);
            }
            for insn in IoInsn::strings().take(IoInsn::STRING_COUNT / 2) {
                faults(table.string_entry(insn).unwrap(), *file, given);
            }
            for trigger in options.quirks.iter().map(Quirk::trigger) {
                for insn in trigger.forms().into_iter().flatten() {
                    let given = Gprs { rax: trigger.value.into(), rdx: trigger.port.into(), ..given };
                    let entry = table.resolve(insn, given.rax, given.rdx).unwrap();
                    assert_ne!(Some(entry), table.entry(insn));
                    faults(entry, *file, given);
                }
            }
            forget(&table.faults().map(|fault| fault.0).collect::<Vec<_>>());
        }
    }
}

/// So many words on the stack at the access.
fn deep<const WORDS: u8>(payload: &mut Payload<'_>) {
    for _ in 0..WORDS {
        dynasm!(payload ; .arch x64 ; push 7);
        payload.pushed(8);
    }
    payload.io(OUT);
    for _ in 0..WORDS {
        dynasm!(payload ; .arch x64 ; pop rbx);
        payload.popped(8);
    }
}

#[test]
fn a_fault_at_each_depth_of_a_payload() {
    const PAYLOADS: [fn(&mut Payload<'_>); 8] =
        [deep::<0>, deep::<1>, deep::<2>, deep::<3>, deep::<4>, deep::<5>, deep::<7>, deep::<8>];
    install();
    for &layout in StubLayout::ALL {
        for file in files::ALL {
            for (seed, payload) in PAYLOADS.into_iter().enumerate() {
                // SAFETY: what is pushed is popped; the process has no privilege for the port.
                let deep = unsafe { Quirk::new("deep", Trigger::out(Width::Byte, 0x80), payload) };
                // With others besides: the pads are for all of them.
                for quirks in [&[deep][..], &[deep, Quirk::PROLIANT], &[Quirk::GSMI_CARRY, deep]] {
                    let options = EmitOptions::new().layout(layout).registers(file.library).quirks(quirks);
                    let mut alias = Alias::new(CodeTable::size(&options));
                    let va = alias.va();
                    let table = CodeTable::emit(alias.memory(), va, &options).unwrap();
                    PADS.lock().unwrap().extend(table.faults());
                    faults(table.resolve(OUT, 0, 0).unwrap(), *file, Rng(seed as u64).gprs());
                    faults(table.entry(OUT).unwrap(), *file, Rng(seed as u64).gprs());
                    forget(&table.faults().map(|fault| fault.0).collect::<Vec<_>>());
                }
            }
        }
    }
}
