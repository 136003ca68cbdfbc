//! Stubs written through one mapping and executed in another, as a hypervisor's are.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::{mem, ptr};

use common::alias::Alias;
use common::slots::options;
use common::{Rng, host};
use ioemul::{
    CodeSink, CodeTable, Fixup, Gprs, Helpers, IoInsn, Quirk, Ring, SlotOptions, StubLayout, Width, emit_stub_with,
    stub_fixup,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

/// CPUID, which needs no privilege, where the access would be.
fn cpuid() -> Quirk {
    // SAFETY: CPUID changes four registers.
    unsafe { Quirk::new("CPUID", |insn, _| insn == OUT, |payload, _| payload.extend(&[0x0f, 0xa2])) }
}

/// Runs a stub that executes CPUID.
fn runs_cpuid(entry: *const u8, seed: u64) {
    let given = Gprs { rax: 0x8000_0000, ..Rng(seed).gprs() };
    let mut gprs = given;
    // SAFETY: a stub and a register file.
    assert_eq!(unsafe { host::call(entry, &mut gprs) }, 0);
    let leaf = std::arch::x86_64::__cpuid_count(0x8000_0000, given.rcx as u32);
    let [rax, rbx, rcx, rdx] = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u64::from);
    assert_eq!(gprs, Gprs { rax, rbx, rcx, rdx, rflags: gprs.rflags, ..given });
}

#[test]
fn written_through_one_mapping_and_executed_in_another() {
    for layout in StubLayout::ALL.iter().copied() {
        let mut alias = Alias::new(0x2000);
        let va = alias.va();
        let (first, second) = alias.memory().split_at_mut(0x1000);
        // A return thunk of the caller's: RET.
        first[0x800] = 0xc3;
        for bits in 0..8 {
            let options = SlotOptions {
                endbr64: bits & 1 != 0,
                return_thunk: (bits & 2 != 0).then_some(va + 0x800),
                int3: bits & 4 != 0,
                quirk: Some(cpuid()),
                ring: Ring::Three,
            };
            let helpers = Helpers::emit_with(&mut first[..0x800], va, layout, &options).unwrap();
            let at = 0x100 + 0x111 * bits;
            emit_stub_with(&mut second[at..], va + 0x1000 + at as u64, OUT, &helpers, &options).unwrap();
            runs_cpuid((va + 0x1000 + at as u64) as *const u8, bits as u64);
        }
    }
}

#[test]
fn a_table_written_through_one_mapping_and_executed_in_another() {
    for layout in StubLayout::ALL.iter().copied() {
        let options = SlotOptions { quirk: Some(cpuid()), ring: Ring::Three, ..SlotOptions::default() };
        let mut alias = Alias::new(CodeTable::size(layout, &options));
        let va = alias.va();
        let table = CodeTable::emit(alias.memory(), va, layout, &options).unwrap();
        let entry = table.resolve(OUT, &Gprs::default());
        assert_ne!(entry, table.entry(OUT));
        assert_eq!(
            table.resolve(IoInsn::in_dx(Width::Byte), &Gprs::default()),
            table.entry(IoInsn::in_dx(Width::Byte))
        );
        runs_cpuid(entry as *const u8, 0);
    }
}

/// What a host's exception table does with a fixup: here in a SIGSEGV handler, on stubs that this crate's own knows
/// nothing of.
#[test]
fn a_fault_is_resumed_by_its_fixup() {
    static mut FIXUPS: Vec<(u64, u64, Fixup)> = Vec::new();

    extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel's context; the list is complete before the first fault.
        unsafe {
            let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            let rip = registers[libc::REG_RIP as usize] as u64;
            let list = &*ptr::addr_of!(FIXUPS);
            match list.iter().find(|(first, end, _)| (*first..*end).contains(&rip)) {
                Some((_, _, fixup)) => {
                    registers[libc::REG_RIP as usize] = fixup.resume as i64;
                    registers[libc::REG_RSP as usize] += i64::from(fixup.rsp_adjust);
                    registers[libc::REG_RAX as usize] = 0x1234;
                }
                None => {
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
        }
    }

    let mut aliases: Vec<Alias> = Vec::new();
    let mut entries = Vec::new();
    for layout in StubLayout::ALL.iter().copied() {
        for options in options() {
            let mut alias = Alias::new(0x2000);
            let va = alias.va();
            let options = SlotOptions { return_thunk: options.return_thunk.map(|_| va + 0x800), ..options };
            let (first, second) = alias.memory().split_at_mut(0x1000);
            first[0x800] = 0xc3;
            let helpers = Helpers::emit_with(&mut first[..256], va, layout, &options).unwrap();
            let len = emit_stub_with(second, va + 0x1000, OUT, &helpers, &options).unwrap() as u64;
            for rip in va + 0x1000..va + 0x1000 + len {
                if let Some(fixup) = stub_fixup(va + 0x1000, OUT, &helpers, &options, rip) {
                    // SAFETY: nobody looks at the list yet.
                    unsafe { (*ptr::addr_of_mut!(FIXUPS)).push((rip, rip + 1, fixup)) };
                }
            }
            entries.push(va + 0x1000);
            aliases.push(alias);
        }
    }
    // SAFETY: all-zero is a valid sigaction; the handler has the signature that the flags say.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
    }
    for (seed, entry) in entries.into_iter().enumerate() {
        let given = Rng(seed as u64).gprs();
        let mut gprs = given;
        // SAFETY: a stub and a register file; the process has no privilege for CLI and any port.
        let rax = unsafe { host::call(entry as *const u8, &mut gprs) };
        assert_eq!((rax, gprs), (0x1234, given));
    }
}
