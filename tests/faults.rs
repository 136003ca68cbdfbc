//! Without privilege every access faults: each fault is an error of its caller, with the registers as given, wherever
//! and however often it happens.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{ptr, thread};

use common::{Rng, any_gprs, cases, forms, host, some_forms};
use dynasm::dynasm;
use ioemul::{CodeSink, Gprs, IoInsn, Payload, Quirk, QuirkTable, Stub, StubLayout, StubTable, Trigger, Width};
use proptest::prelude::*;

const OUT: IoInsn = IoInsn::out_imm8(Width::Byte, 0x80);
const OUT_DX: IoInsn = IoInsn::out_dx(Width::Byte);

/// Runs a stub that must fault with this vector, with the host's registers watched, and once more the public way.
/// Returns the address that the fault reports.
fn refused(stub: Stub<'_>, given: Gprs, vector: u8) -> u64 {
    let mut gprs = given;
    // SAFETY: a stub and a register file; the process has no privilege for any port.
    let rax = unsafe { host::call(stub.code().as_ptr(), &mut gprs) };
    assert_eq!(rax, 1, "the stub reports the fault");
    assert_eq!(gprs, given);
    // SAFETY: as above.
    let fault = unsafe { stub.run(&mut gprs) }.unwrap_err();
    assert_eq!((fault.vector, gprs), (vector, given));
    fault.address
}

fn with_quirk(layout: StubLayout, payload: fn(&mut Payload<'_>)) -> StubTable {
    // SAFETY: the payloads here keep RSP, and fault before they do anything else.
    let quirk = unsafe { Quirk::new("test", Trigger::out(Width::Byte, 0x80), payload) };
    let mut quirks = QuirkTable::none();
    quirks.push(quirk);
    StubTable::builder().layout(layout).quirks(quirks).build().unwrap()
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn every_form_in_every_layout(given in any_gprs()) {
        for layout in StubLayout::ALL.iter().copied() {
            for endbr64 in [false, true] {
                let table = StubTable::builder().layout(layout).endbr64(endbr64).build().unwrap();
                for form in forms() {
                    refused(table.stub(form.insn), given, 13);
                }
            }
        }
    }

    /// The ProLiant payload has a word on the stack when its OUT faults.
    #[test]
    fn the_builtin_quirk(given in any_gprs()) {
        let given = Gprs { rax: given.rax | 0x80, rdx: given.rdx & !0xffff | 0xcd4, ..given };
        for layout in StubLayout::ALL.iter().copied() {
            let table = StubTable::builder().layout(layout).quirks(QuirkTable::builtin()).build().unwrap();
            let stub = table.resolve(OUT_DX, &given);
            assert_ne!(stub.code().as_ptr(), table.stub(OUT_DX).code().as_ptr());
            refused(stub, given, 13);
        }
    }

    /// A fault at any depth of a payload's own stack.
    #[test]
    fn payloads_with_words_on_the_stack(given in any_gprs()) {
        let payloads: [fn(&mut Payload<'_>); 4] = [
            |payload| payload.io(OUT),
            |payload| {
                dynasm!(payload ; .arch x64 ; push rax);
                payload.pushed(8);
                payload.io(OUT);
                dynasm!(payload ; .arch x64 ; pop rax);
                payload.popped(8);
            },
            |payload| {
                dynasm!(payload ; .arch x64 ; push rax);
                payload.pushed(8);
                dynasm!(payload ; .arch x64 ; push rbx);
                payload.pushed(8);
                dynasm!(payload ; .arch x64 ; pop rbx);
                payload.popped(8);
                dynasm!(payload ; .arch x64 ; push 7);
                payload.pushed(8);
                payload.io(IoInsn::in_imm8(Width::Word, 0x70));
                dynasm!(payload ; .arch x64 ; lea rsp, [rsp + 16]);
                payload.popped(16);
            },
            |payload| {
                dynasm!(payload ; .arch x64 ; lea rsp, [rsp - 64]);
                payload.pushed(64);
                dynasm!(payload ; .arch x64 ; lea rsp, [rsp + 64]);
                payload.popped(64);
                payload.io(IoInsn::out_imm8(Width::Dword, 0x80));
            },
        ];
        for (layout, payload) in StubLayout::ALL.iter().copied().flat_map(|layout| payloads.map(|payload| (layout, payload))) {
            let table = with_quirk(layout, payload);
            refused(table.resolve(OUT, &given), given, 13);
        }
    }
}

#[test]
fn a_payload_that_reads_where_nothing_is() {
    for layout in StubLayout::ALL.iter().copied() {
        let table = with_quirk(layout, |payload| dynasm!(payload ; .arch x64 ; mov rax, [rbx]));
        let given = Gprs { rbx: 0x18, ..Rng(1).gprs() };
        assert_eq!(refused(table.resolve(OUT, &given), given, 14), 0x18);
        // A stack-segment fault, which arrives as SIGBUS: RBP is not canonical.
        let table = with_quirk(layout, |payload| dynasm!(payload ; .arch x64 ; mov rax, [rbp + 0]));
        let given = Gprs { rbp: 0x5555_5555_0000_0000, ..Rng(2).gprs() };
        assert_eq!(refused(table.resolve(OUT, &given), given, 12), 0);
    }
}

/// A payload is somebody's code: it may take locks or allocate, and runs when the table is built, never in the handler.
#[test]
fn no_payload_runs_in_the_handler() {
    static EMITTED: AtomicUsize = AtomicUsize::new(0);
    for layout in StubLayout::ALL.iter().copied() {
        let table = with_quirk(layout, |payload| {
            EMITTED.fetch_add(1, Ordering::Relaxed);
            dynasm!(payload ; .arch x64 ; push rax);
            payload.pushed(8);
            payload.io(IoInsn::out_imm8(Width::Byte, 0x80));
            dynasm!(payload ; .arch x64 ; pop rax);
            payload.popped(8);
        });
        let emitted = EMITTED.load(Ordering::Relaxed);
        let given = Rng(3).gprs();
        refused(table.resolve(OUT, &given), given, 13);
        assert_eq!(EMITTED.load(Ordering::Relaxed), emitted);
    }
}

#[test]
fn eight_threads_with_a_hundred_thousand_each() {
    let tables: Vec<_> = StubLayout::ALL.iter().map(|&layout| StubTable::new(layout).unwrap()).collect();
    thread::scope(|scope| {
        for seed in 0..8 {
            let tables = &tables;
            scope.spawn(move || {
                let mut rng = Rng(seed);
                let forms: Vec<IoInsn> = forms().map(|form| form.insn).collect();
                let given = rng.gprs();
                let mut gprs = given;
                for i in 0..100_000 {
                    let stub = tables[i % tables.len()].stub(forms[rng.below(forms.len())]);
                    // SAFETY: the process has no privilege for any port.
                    let fault = unsafe { stub.run(&mut gprs) }.unwrap_err();
                    assert_eq!((fault.vector, fault.error_code), (13, 0));
                    assert_eq!(gprs, given);
                }
            });
        }
    });
}

#[test]
fn tables_come_and_go_meanwhile() {
    let done = AtomicBool::new(false);
    let builds = AtomicUsize::new(0);
    thread::scope(|scope| {
        let mut faulting = Vec::new();
        for layout in [StubLayout::CallRet, StubLayout::Compact] {
            // Two that live and die all the time, among them the ones that fault.
            scope.spawn({
                let (done, builds) = (&done, &builds);
                move || {
                    while !done.load(Ordering::Relaxed) {
                        let table = StubTable::new(layout).unwrap();
                        refused(table.stub(OUT), Gprs::default(), 13);
                        builds.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            faulting.push(scope.spawn(move || {
                let table = StubTable::new(layout).unwrap();
                let given = Rng(3).gprs();
                for _ in 0..20_000 {
                    refused(table.stub(OUT), given, 13);
                }
            }));
        }
        faulting.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    assert!(builds.into_inner() > 10);
}

/// Memory of a table that is gone is used again: the handler must know the new one by its own layout.
#[test]
fn a_table_in_the_place_of_another() {
    for round in 0..50 {
        let layout = StubLayout::ALL[round % StubLayout::ALL.len()];
        let table = StubTable::new(layout).unwrap();
        for form in some_forms() {
            refused(table.stub(form.insn), Gprs::default(), 13);
        }
    }
}

/// The kernel then puts the signal frame on the thread's own stack, below RSP: where the stub keeps nothing.
#[test]
fn without_an_alternate_signal_stack() {
    thread::spawn(|| {
        let disable = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: a valid structure; nothing runs on the alternate stack.
        assert_eq!(unsafe { libc::sigaltstack(&disable, ptr::null_mut()) }, 0);
        for layout in StubLayout::ALL.iter().copied() {
            let table = StubTable::builder().layout(layout).quirks(QuirkTable::builtin()).build().unwrap();
            let given = Gprs { rax: 0x80, rdx: 0xcd4, ..Rng(4).gprs() };
            for form in some_forms() {
                refused(table.stub(form.insn), given, 13);
            }
            refused(table.resolve(OUT_DX, &given), given, 13);
        }
    })
    .join()
    .unwrap();
}

static INTERRUPTED: OnceLock<Vec<StubTable>> = OnceLock::new();
static FAULTS_IN_HANDLER: AtomicUsize = AtomicUsize::new(0);

extern "C" fn fault_in_a_handler(_: c_int) {
    let Some(tables) = INTERRUPTED.get() else { return };
    for table in tables {
        let given = Gprs { rax: 1, r15: 15, ..Gprs::default() };
        let mut gprs = given;
        // SAFETY: the process has no privilege for any port.
        if unsafe { table.stub(IoInsn::in_imm8(Width::Word, 0x71)).run(&mut gprs) }.is_err() && gprs == given {
            FAULTS_IN_HANDLER.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A signal arrives at any instruction of a stub, guest registers live, or in the fault handler itself; its handler runs
/// stubs that fault.
#[test]
fn in_a_signal_handler() {
    const SIGNALS: usize = 2_000;
    INTERRUPTED.get_or_init(|| StubLayout::ALL.iter().map(|&layout| StubTable::new(layout).unwrap()).collect());
    // SAFETY: all-zero is a valid sigaction, and the handler does nothing but run stubs and count.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = fault_in_a_handler as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel();
        let target = scope.spawn({
            let done = &done;
            move || {
                // Room for nested signal frames, each up to 11 KiB with all of the vector state.
                let mut memory = vec![0_u8; 256 * 1024];
                let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
                let mut before = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
                // SAFETY: the memory outlives its use as a stack: the old one is put back below.
                assert_eq!(unsafe { libc::sigaltstack(&stack, &mut before) }, 0);
                // SAFETY: asks who this thread is.
                send.send(unsafe { libc::gettid() }).unwrap();
                let tables = INTERRUPTED.get().unwrap();
                let elided: Vec<_> = StubLayout::ALL
                    .iter()
                    .map(|&layout| StubTable::builder().layout(layout).elide_io(true).build().unwrap())
                    .collect();
                let given = Rng(5).gprs();
                let mut runs = 0;
                while !done.load(Ordering::Relaxed) {
                    for (faulting, harmless) in tables.iter().zip(&elided) {
                        refused(faulting.stub(OUT), given, 13);
                        let mut gprs = given;
                        // SAFETY: a stub without an access.
                        assert_eq!(unsafe { host::call(harmless.stub(OUT).code().as_ptr(), &mut gprs) }, 0);
                        assert_eq!(gprs, given);
                        runs += 1;
                    }
                }
                // SAFETY: the stack that was in use before.
                assert_eq!(unsafe { libc::sigaltstack(&before, ptr::null_mut()) }, 0);
                runs
            }
        });
        let thread = receive.recv().unwrap();
        for sent in 1..=SIGNALS {
            // SAFETY: the thread runs until it is told that this is done.
            assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) }, 0);
            // Until this one was handled, with four faults each.
            while FAULTS_IN_HANDLER.load(Ordering::Relaxed) < StubLayout::ALL.len() * sent {
                assert!(!target.is_finished());
                std::hint::spin_loop();
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(target.join().unwrap() > 0);
    });
    assert_eq!(FAULTS_IN_HANDLER.load(Ordering::Relaxed), StubLayout::ALL.len() * SIGNALS);
}
