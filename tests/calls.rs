//! How a host's stubs are called: a slot that looks at the register file itself, and a table by its own method.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::sync::Mutex;
use std::{mem, ptr};

use common::alias::Alias;
use common::{Rng, files, host, some_forms};
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
fn a_table_is_called_by_its_own_method() {
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

/// Calls a stub; returns its result, and RCX, RDX, RSI, RDI and R8 to R11.
unsafe fn call_and_keep(entry: u64, file: *mut u8) -> (u64, [u64; 8]) {
    let (result, mut left);
    left = [0; 8];
    // SAFETY: the caller vouches for the entry and its argument.
    unsafe {
        std::arch::asm!(
            "call rax",
            inout("rax") entry => result, out("rcx") left[0], out("rdx") left[1], out("rsi") left[2],
            inout("rdi") file as u64 => left[3], out("r8") left[4], out("r9") left[5], out("r10") left[6],
            out("r11") left[7], clobber_abi("sysv64"),
        );
    }
    (result, left)
}

/// Nothing that the guest had in a register is left there, neither by the end of a stub nor by that of a fault; without
/// the option it is.
#[test]
fn registers_of_the_guests_are_scrubbed() {
    // SAFETY: NOT of the fifteen registers changes nothing else.
    let not = |trigger| unsafe {
        Quirk::new("NOT", trigger, |payload| {
            [0, 1, 2, 3, 5, 6, 7].into_iter().for_each(|register| payload.extend(&[0x48, 0xf7, 0xd0 | register]));
            (0..8).for_each(|register| payload.extend(&[0x49, 0xf7, 0xd0 | register]));
        })
    };
    let quirks = [
        not(Trigger::out(Width::Byte, 0x80)),
        not(Trigger::out(Width::Dword, 0x80)),
        not(Trigger::input(Width::Word, 0x80)),
    ];
    let all = |file: files::File, layout, scrub, endbr64| {
        let options = EmitOptions::new().layout(layout).registers(file.library).ring(Ring::Three).quirks(&quirks);
        let options = options.scrub(scrub).endbr64(endbr64).int3(endbr64);
        let mut alias = Alias::new(CodeTable::size(&options));
        let va = alias.va();
        let table = CodeTable::emit(alias.memory(), va, &options).unwrap();
        PADS.lock().unwrap().extend(table.faults());
        install();
        let of_quirks = quirks.iter().flat_map(|quirk| quirk.trigger().forms()).flatten();
        let of_quirks = of_quirks.map(|insn| (table.resolve(insn, 0, 0x80).unwrap(), insn, 0));
        let plain = some_forms().map(|form| (table.entry(form.insn).unwrap(), form.insn, 1));
        let strings = IoInsn::strings().map(|insn| (table.string_entry(insn).unwrap(), insn, 1));
        for (entry, insn, expected) in of_quirks.chain(plain).chain(strings) {
            let given = Gprs { rdx: 0xffff_ffff_ffff_0080, ..Rng(insn.index() as u64).gprs() };
            let mut memory = files::Memory::new(file, &given);
            // SAFETY: a stub and its register file; the process has no privilege for any port.
            let (result, left) = unsafe { call_and_keep(entry, memory.pointer()) };
            assert_eq!(result, expected, "{insn}");
            let is_scrubbed = left == [0; 8];
            assert_eq!(is_scrubbed, scrub, "{layout:?} {} {insn}: {left:x?}", file.name);
        }
        forget(&table.faults().map(|fault| fault.0).collect::<Vec<_>>());
    };
    for &layout in StubLayout::ALL {
        for file in files::ALL {
            for (scrub, endbr64) in [(true, false), (true, true), (false, false)] {
                all(*file, layout, scrub, endbr64);
            }
        }
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
