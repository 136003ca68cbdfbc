//! Faults and signals that are not a stub's: whoever handled them before still does, and the process still dies where
//! nobody did. Each scenario changes or ends a process: it runs in one of its own.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{mem, process, ptr};

use common::child::{self, exits_with, killed_by};
use ioemul::{
    CodeSink, Gprs, IoEmulator, IoInsn, PortSet, Quirk, QuirkTable, SoftwareBus, StubLayout, StubTable, Trigger, Width,
    fault,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

fn refused(table: &StubTable) -> bool {
    let given = Gprs { rax: 1, rdx: 0x80, r15: 15, ..Gprs::default() };
    let mut gprs = given;
    // SAFETY: the process has no privilege for any port.
    unsafe { table.stub(OUT).run(&mut gprs) }.is_err() && gprs == given
}

/// A table with recovery, seen to recover.
fn table() -> StubTable {
    let table = StubTable::new(StubLayout::CallRet).unwrap();
    assert!(refused(&table));
    table
}

/// Reads an address where nothing is.
fn stray_read() -> u8 {
    // SAFETY: none: the page at 0 is never mapped, and the process ends here.
    unsafe { ptr::without_provenance::<u8>(0x18).read_volatile() }
}

/// Sends a signal to the process (any thread may get it) and waits until it has been counted, or for a while.
fn send(signal: c_int) {
    let before = HANDLED.load(Ordering::Relaxed);
    // SAFETY: sends a signal to this process.
    assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
    let start = Instant::now();
    while HANDLED.load(Ordering::Relaxed) == before && start.elapsed() < Duration::from_millis(500) {}
}

/// Makes `handler` the process's own, with that flags and SIGUSR2 in its mask.
fn install(signal: c_int, handler: usize, flags: c_int) {
    // SAFETY: all-zero is a valid sigaction; the handlers below have the signature that the flags say.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaddset(&mut action.sa_mask, libc::SIGUSR2);
        assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
    }
}

fn installed(signal: c_int) -> usize {
    // SAFETY: asks for the action in force.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        assert_eq!(libc::sigaction(signal, ptr::null(), &mut action), 0);
        action.sa_sigaction
    }
}

fn exit(code: c_int) -> ! {
    // SAFETY: ends the process, from a signal handler too.
    unsafe { libc::_exit(code) }
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// Exit code: 40, and 1 if the address is the stray read's, 2 if SIGSEGV is blocked meanwhile, 4 if SIGUSR2 is.
extern "C" fn with_siginfo(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's arguments, passed on; the mask is only read.
    unsafe {
        let mut mask: libc::sigset_t = mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
        let address = (*info).si_addr() as usize == 0x18 && !context.is_null();
        let blocked = |signal| libc::sigismember(&mask, signal);
        exit(40 + c_int::from(address) + 2 * blocked(libc::SIGSEGV) + 4 * blocked(libc::SIGUSR2));
    }
}

extern "C" fn without_siginfo(signal: c_int) {
    exit(50 + c_int::from(signal == libc::SIGSEGV));
}

extern "C" fn count(_: c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn recover_or_exit(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's arguments, passed on.
    if !unsafe { fault::recover(info, context) } {
        exit(60);
    }
}

/// Runs a stub on the page at 0.
fn run_with_null(entry: *const u8) {
    // SAFETY: none: the loads fault, and the process ends here.
    unsafe {
        let entry: extern "sysv64" fn(*mut Gprs) -> u64 = mem::transmute(entry);
        entry(ptr::null_mut());
    }
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let depth = std::hint::black_box(depth);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + 1 }
}

#[test]
#[ignore = "a process of its own, started by the other tests"]
fn scenario() {
    let Some(scenario) = child::requested() else { return };
    match scenario.as_str() {
        "stray read" => {
            let _table = table();
            stray_read();
        }
        "stray access to a port" => {
            let _table = table();
            // SAFETY: none: the process has no privilege for the port, and ends here.
            unsafe { std::arch::asm!("out 0x80, al", in("al") 0_u8) };
        }
        "stray register file, read in a helper" => {
            let table = table();
            run_with_null(table.stub(OUT).code().as_ptr());
        }
        "stray register file, read in the stub" => {
            let table = StubTable::new(StubLayout::Inline).unwrap();
            assert!(refused(&table));
            run_with_null(table.stub(OUT).code().as_ptr());
        }
        "a table that is gone" => {
            let table = table();
            let entry = table.stub(OUT).code().as_ptr();
            let (at, code) = (table.code().as_ptr(), table.code().to_vec());
            drop(table);
            // The same bytes at the same address, but no table's.
            // SAFETY: asks for memory where there is none, and fills it.
            unsafe {
                let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                let flags = flags | libc::MAP_FIXED_NOREPLACE;
                let memory = libc::mmap(at.cast_mut().cast(), code.len(), protection, flags, -1, 0);
                assert_eq!(memory.cast_const().cast(), at);
                memory.cast::<u8>().copy_from(code.as_ptr(), code.len());
                assert_eq!(libc::mprotect(memory, code.len(), libc::PROT_READ | libc::PROT_EXEC), 0);
                let entry: extern "sysv64" fn(*mut Gprs) -> u64 = mem::transmute(entry);
                entry(&mut Gprs::default());
            }
        }
        "signal" => {
            // Not Rust's own handler, which lets a signal that was sent pass once.
            install(libc::SIGSEGV, libc::SIG_DFL, 0);
            let _table = table();
            send(libc::SIGSEGV);
        }
        "stack overflow" => {
            let _table = table();
            recurse(0);
        }
        "siginfo" => {
            install(libc::SIGSEGV, with_siginfo as *const () as usize, libc::SA_SIGINFO);
            let _table = table();
            stray_read();
        }
        "no siginfo" => {
            install(libc::SIGSEGV, without_siginfo as *const () as usize, 0);
            let _table = table();
            stray_read();
        }
        "signal to a handler" => {
            install(libc::SIGSEGV, count as *const () as usize, 0);
            install(libc::SIGBUS, count as *const () as usize, 0);
            let table = table();
            send(libc::SIGSEGV);
            send(libc::SIGBUS);
            exit(if HANDLED.load(Ordering::Relaxed) == 2 && refused(&table) { 70 } else { 71 });
        }
        "ignored signal" => {
            install(libc::SIGSEGV, libc::SIG_IGN, 0);
            let table = table();
            send(libc::SIGSEGV);
            assert!(refused(&table));
            stray_read(); // a fault cannot be ignored
        }
        // The payload sends SIGSEGV to its own thread: RIP is between the loads and the saves, but nothing faulted.
        "signal in a payload" => {
            install(libc::SIGSEGV, count as *const () as usize, 0);
            // SAFETY: SYSCALL changes RAX, RCX and R11; the NOP is where the signal arrives.
            let quirk = unsafe {
                Quirk::new("tgkill", Trigger::out_dx(Width::Byte, libc::SIGSEGV as u16), |payload| {
                    payload.extend(&[0x0f, 0x05, 0x90]);
                })
            };
            let mut quirks = QuirkTable::none();
            quirks.push(quirk);
            for layout in StubLayout::ALL.iter().copied() {
                let table = StubTable::builder().layout(layout).quirks(quirks.clone()).build().unwrap();
                assert!(refused(&table));
                // SAFETY: asks who this is.
                let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
                let mut gprs = Gprs {
                    rax: libc::SYS_tgkill as u64,
                    rdi: process as u64,
                    rsi: thread as u64,
                    rdx: libc::SIGSEGV as u64,
                    r15: 15,
                    ..Gprs::default()
                };
                let before = HANDLED.load(Ordering::Relaxed);
                // SAFETY: a system call with these arguments is harmless.
                unsafe { table.resolve(OUT, &gprs).run(&mut gprs) }.unwrap();
                assert_eq!((gprs.rax, gprs.r15, HANDLED.load(Ordering::Relaxed)), (0, 15, before + 1));
            }
            exit(80);
        }
        // There is no fault to recover from where there is no hardware.
        "no hardware" => {
            let before = (installed(libc::SIGSEGV), installed(libc::SIGBUS));
            let quirks = QuirkTable::builtin;
            let _elided = StubTable::builder().quirks(quirks()).elide_io(true).build().unwrap();
            for &layout in StubLayout::ALL {
                let builder = || IoEmulator::builder().layout(layout).ports(PortSet::all()).bus(SoftwareBus::new());
                for builder in [builder(), builder().quirks(quirks()), builder().direct()] {
                    let mut emulator = builder.build().unwrap();
                    emulator.execute(OUT, &mut Gprs::default()).unwrap();
                }
            }
            assert_eq!((installed(libc::SIGSEGV), installed(libc::SIGBUS)), before);
            // SAFETY: nothing is executed.
            let native = unsafe { IoEmulator::builder().native(PortSet::all()) };
            let native = native.fault_recovery(false).build().unwrap();
            // SAFETY: as above.
            let sibling = || unsafe { native.sibling().native(PortSet::all()) };
            let _like_the_first = sibling().build().unwrap();
            let _of_another_layout = sibling().layout(StubLayout::Compact).build().unwrap();
            assert_eq!((installed(libc::SIGSEGV), installed(libc::SIGBUS)), before);
            // One that wants faults recovered has stubs of its own.
            let mut recovering = sibling().fault_recovery(true).build().unwrap();
            assert!(installed(libc::SIGSEGV) != before.0 && installed(libc::SIGBUS) != before.1);
            let refused = recovering.execute(OUT, &mut Gprs { rdx: 0x80, ..Gprs::default() });
            assert!(matches!(refused, Err(ioemul::Error::Fault { .. })), "{refused:?}");
            let _table = table();
            assert!(installed(libc::SIGSEGV) != before.0 && installed(libc::SIGBUS) != before.1);
            exit(90);
        }
        "opted out" => {
            let handler = recover_or_exit as *const () as usize;
            install(libc::SIGSEGV, handler, libc::SA_SIGINFO);
            for layout in StubLayout::ALL.iter().copied() {
                let table = StubTable::builder().layout(layout).fault_recovery(false).build().unwrap();
                let before = HANDLED.load(Ordering::Relaxed);
                assert!(refused(&table) && HANDLED.load(Ordering::Relaxed) == before + 1);
                assert!(installed(libc::SIGSEGV) == handler && installed(libc::SIGBUS) != handler);
            }
            stray_read();
        }
        "opted out without a handler" => {
            let table = StubTable::builder().fault_recovery(false).build().unwrap();
            refused(&table);
        }
        "a handler on top" => {
            let table = table();
            // A program that installs its handler afterwards and asks this crate first.
            install(libc::SIGSEGV, recover_or_exit as *const () as usize, libc::SA_SIGINFO);
            assert!(refused(&table) && HANDLED.load(Ordering::Relaxed) == 1);
            // A further table puts this crate's handler on top, which passes on what is not a stub's.
            let _another = self::table();
            assert!(refused(&table) && HANDLED.load(Ordering::Relaxed) == 1);
            stray_read();
        }
        other => panic!("no such scenario: {other}"),
    }
    process::exit(99);
}

#[test]
fn without_hardware_no_handler_is_installed() {
    exits_with(90, "no hardware");
}

#[test]
fn a_foreign_fault_ends_the_process() {
    killed_by(libc::SIGSEGV, "stray read");
    killed_by(libc::SIGSEGV, "stray access to a port");
    killed_by(libc::SIGSEGV, "stray register file, read in a helper");
    killed_by(libc::SIGSEGV, "stray register file, read in the stub");
    killed_by(libc::SIGSEGV, "a table that is gone");
}

#[test]
fn a_signal_that_was_sent_ends_the_process() {
    killed_by(libc::SIGSEGV, "signal");
}

#[test]
fn a_stack_overflow_is_still_reported() {
    let output = killed_by(libc::SIGABRT, "stack overflow");
    assert!(String::from_utf8_lossy(&output.stderr).contains("has overflowed its stack"), "{output:?}");
}

#[test]
fn the_previous_handler_is_reached_as_the_kernel_would_have() {
    exits_with(40 + 1 + 2 + 4, "siginfo");
    exits_with(51, "no siginfo");
}

#[test]
fn a_signal_that_was_sent_reaches_the_previous_handler() {
    exits_with(70, "signal to a handler");
    exits_with(80, "signal in a payload");
}

#[test]
fn what_was_ignored_stays_ignored_unless_it_is_a_fault() {
    killed_by(libc::SIGSEGV, "ignored signal");
}

#[test]
fn without_recovery_the_processs_own_handler_is_in_charge() {
    exits_with(60, "opted out");
    killed_by(libc::SIGSEGV, "opted out without a handler");
    exits_with(60, "a handler on top");
}
