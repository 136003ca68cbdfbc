//! The fault handler among the handlers of others: who is called, with what blocked, on which stack, and who is back in
//! charge afterwards. Each scenario changes or ends a process: it runs in one of its own.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::ffi::{CStr, CString, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{mem, process, ptr, thread};

use common::child::{self, exits_with, killed_by};
use ioemul::fault::{self, HandlerError};
use ioemul::{
    BuildError, CodeSink, Gprs, IoEmulator, IoInsn, PortSet, Quirk, QuirkTable, StubLayout, StubTable, Trigger, Width,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const OUT_IMM8: IoInsn = IoInsn::out_imm8(Width::Byte, 0x80);

fn refused(table: &StubTable) -> bool {
    let given = Gprs { rax: 1, rdx: 0x80, r15: 15, ..Gprs::default() };
    let mut gprs = given;
    // SAFETY: the process has no privilege for any port.
    unsafe { table.stub(OUT).run(&mut gprs) }.is_err_and(|fault| fault.vector == 13) && gprs == given
}

fn table() -> StubTable {
    let table = StubTable::new(StubLayout::CallRet).unwrap();
    assert!(refused(&table));
    table
}

/// Reads an address where nothing is.
fn stray_read() {
    // SAFETY: none: the page at 0 is never mapped. A handler ends the process, or the kernel does.
    unsafe { ptr::without_provenance::<u8>(0x18).read_volatile() };
}

fn exit(code: c_int) -> ! {
    // SAFETY: ends the process, from a signal handler too.
    unsafe { libc::_exit(code) }
}

fn action(handler: usize, flags: c_int, blocked: &[c_int]) -> libc::sigaction {
    // SAFETY: all-zero is a valid sigaction, and its mask a valid set.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        (action.sa_sigaction, action.sa_flags) = (handler, flags);
        for signal in blocked {
            libc::sigaddset(&mut action.sa_mask, *signal);
        }
        action
    }
}

/// Puts an action in force and gives the one of before.
fn install(signal: c_int, new: &libc::sigaction) -> libc::sigaction {
    // SAFETY: the handlers here have the signature that their flags say.
    unsafe {
        let mut old: libc::sigaction = mem::zeroed();
        assert_eq!(libc::sigaction(signal, new, &mut old), 0);
        old
    }
}

fn installed(signal: c_int) -> libc::sigaction {
    // SAFETY: asks for the action in force.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        assert_eq!(libc::sigaction(signal, ptr::null(), &mut action), 0);
        action
    }
}

fn is_blocked(set: &libc::sigset_t, signal: c_int) -> bool {
    // SAFETY: a valid set and signal.
    unsafe { libc::sigismember(set, signal) == 1 }
}

/// What is blocked in this thread.
fn blocked() -> libc::sigset_t {
    // SAFETY: asks for the mask in force.
    unsafe {
        let mut mask: libc::sigset_t = mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
        mask
    }
}

fn block(signal: c_int) {
    // SAFETY: a valid set.
    unsafe {
        let set = action(0, 0, &[signal]).sa_mask;
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()), 0);
    }
}

/// Whether this runs on the alternate signal stack.
fn on_the_alternate_stack() -> bool {
    // SAFETY: asks for the stack in force.
    unsafe {
        let mut stack: libc::stack_t = mem::zeroed();
        assert_eq!(libc::sigaltstack(ptr::null(), &mut stack), 0);
        stack.ss_flags & libc::SS_ONSTACK != 0
    }
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);

fn handled() -> usize {
    HANDLED.load(Ordering::Relaxed)
}

extern "C" fn count(_: c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// A reporter that writes down what it saw and returns.
extern "C" fn report(_: c_int) {
    if HANDLED.fetch_add(1, Ordering::Relaxed) == 10 {
        exit(77);
    }
    // SAFETY: one byte, to standard error.
    unsafe { libc::write(2, b"!".as_ptr().cast(), 1) };
}

/// Exit code: 10, 1 more if SIGSEGV is blocked, 2 if SIGUSR2 is (the handler's), 4 if SIGUSR1 is (the thread's), 8 if
/// any other is.
extern "C" fn tell_mask(_: c_int) {
    let mask = blocked();
    let known = [libc::SIGSEGV, libc::SIGUSR2, libc::SIGUSR1];
    let others = (1..=64).filter(|signal| !known.contains(signal) && is_blocked(&mask, *signal)).count();
    let code = known.iter().enumerate().map(|(bit, signal)| c_int::from(is_blocked(&mask, *signal)) << bit);
    exit(10 + code.sum::<c_int>() + 8 * c_int::from(others > 0));
}

/// Exit code: 30, 1 more if it runs on the alternate stack.
extern "C" fn tell_stack(_: c_int) {
    exit(30 + c_int::from(on_the_alternate_stack()));
}

/// Exit code: 50 and how many signals others have handled.
extern "C" fn tell_count(_: c_int) {
    exit(50 + handled() as c_int);
}

/// Whom [`reporter`] has found when it was installed.
static FOUND: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// A crash reporter as they are: it counts, and passes on to whom it has found.
extern "C" fn reporter(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    let found = FOUND[usize::from(signal == libc::SIGBUS)].load(Ordering::Relaxed);
    // SAFETY: it is one with SA_SIGINFO.
    let found: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = unsafe { mem::transmute(found) };
    found(signal, info, context);
}

fn install_reporter() {
    for (signal, found) in [libc::SIGSEGV, libc::SIGBUS].into_iter().zip(&FOUND) {
        let old = install(signal, &action(reporter as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK, &[]));
        found.store(old.sa_sigaction, Ordering::Relaxed);
    }
}

fn remove_reporter() {
    for (signal, found) in [libc::SIGSEGV, libc::SIGBUS].into_iter().zip(&FOUND) {
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        install(signal, &action(found.load(Ordering::Relaxed), flags, &[]));
    }
}

fn handler_of(function: extern "C" fn(c_int)) -> usize {
    function as *const () as usize
}

/// What a handler would be called with, of an action.
fn essence(action: &libc::sigaction) -> (usize, c_int, Vec<c_int>) {
    const SA_RESTORER: c_int = 0x0400_0000; // the C library's own
    let blocked = (1..=64).filter(|signal| is_blocked(&action.sa_mask, *signal)).collect();
    (action.sa_sigaction, action.sa_flags & !SA_RESTORER, blocked)
}

#[test]
#[ignore = "a process of its own, started by the other tests"]
fn scenario() {
    let Some(scenario) = child::requested() else { return };
    match scenario.as_str() {
        "everything is blocked" => {
            let _table = table();
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                let ours = installed(signal);
                assert_eq!(ours.sa_flags & libc::SA_NODEFER, 0);
                let left: Vec<_> = (1..=64).filter(|signal| !is_blocked(&ours.sa_mask, *signal)).collect();
                // 32 and 33 (musl: and 34) are the C library's own, which it lets nobody block; 9 and 19 nobody can.
                let others: &[_] = if cfg!(target_env = "musl") { &[9, 19, 32, 33, 34] } else { &[9, 19, 32, 33] };
                assert!(left.iter().all(|signal| others.contains(signal)), "{left:?} can interrupt");
            }
        }
        "mask" | "mask, not deferred" => {
            let flags = if scenario == "mask" { 0 } else { libc::SA_NODEFER };
            install(libc::SIGSEGV, &action(handler_of(tell_mask), flags, &[libc::SIGUSR2]));
            let _table = table();
            block(libc::SIGUSR1);
            stray_read();
        }
        "on the interrupted stack" | "on the alternate stack" => {
            let flags = if scenario == "on the alternate stack" { libc::SA_ONSTACK } else { 0 };
            install(libc::SIGSEGV, &action(handler_of(tell_stack), flags, &[]));
            let _table = table();
            stray_read();
        }
        "once" => {
            install(libc::SIGSEGV, &action(handler_of(report), libc::SA_RESETHAND, &[]));
            let _table = table();
            stray_read();
        }
        "once, of a signal that was sent" => {
            install(libc::SIGSEGV, &action(handler_of(report), libc::SA_RESETHAND, &[]));
            let table = table();
            // SAFETY: sends a signal to this thread.
            assert_eq!(unsafe { libc::raise(libc::SIGSEGV) }, 0);
            assert!(handled() == 1 && refused(&table), "stubs still recover");
            // SAFETY: as above.
            unsafe { libc::raise(libc::SIGSEGV) };
        }
        "blocked" => {
            let table = table();
            eprintln!("recovered");
            block(libc::SIGSEGV);
            refused(&table);
        }
        // Shown a signal that was sent, Rust's own handler sets the default action and returns.
        "a handler that gives the signal away" => {
            let table = table();
            // SAFETY: sends a signal to this thread.
            assert_eq!(unsafe { libc::raise(libc::SIGSEGV) }, 0);
            assert!(!fault::is_installed() && installed(libc::SIGSEGV).sa_sigaction == libc::SIG_DFL);
            let _another = self::table();
            assert!(fault::is_installed() && refused(&table));
        }
        "machine check" => {
            for (signal, si_code) in [(libc::SIGBUS, 4), (libc::SIGBUS, 5), (libc::SIGSEGV, libc::SI_USER)] {
                install(signal, &action(handler_of(count), 0, &[]));
                machine_check(signal, si_code);
            }
        }
        "displaced" => {
            install(libc::SIGSEGV, &action(handler_of(tell_count), 0, &[]));
            assert!(!fault::is_installed());
            let first = table();
            assert!(fault::is_installed());
            install_reporter();
            assert!(!fault::is_installed());
            assert!(refused(&first) && handled() == 1, "through the reporter, which is on top");
            let second = table();
            assert!(fault::is_installed() && refused(&first) && refused(&second) && handled() == 1, "on top again");
            stray_read(); // to the reporter, and through it to whom we had found
        }
        "displaced, and a table that is shared" => {
            // SAFETY: the process has no privilege for any port.
            let build = || unsafe { IoEmulator::builder().native(PortSet::all()) }.build().unwrap();
            let mut emulator = build();
            install_reporter();
            let _another = build();
            assert!(fault::is_installed());
            assert!(emulator.execute(OUT, &mut Gprs::default()).is_err() && handled() == 0);
        }
        "displaced too often" => {
            for _ in 0..4 {
                let _table = table();
                install_reporter();
            }
            let before = essence(&installed(libc::SIGSEGV));
            let error = StubTable::new(StubLayout::CallRet).unwrap_err();
            assert!(matches!(error, BuildError::SignalHandler(HandlerError::Displaced { signal: "SIGSEGV" })));
            assert!(error.to_string().contains("4 times") && error.to_string().contains("fault::recover"), "{error}");
            assert_eq!(essence(&installed(libc::SIGSEGV)), before);
            StubTable::builder().fault_recovery(false).build().unwrap();
        }
        "uninstalled" => {
            let mine = action(handler_of(tell_count), libc::SA_RESTART, &[libc::SIGUSR2, libc::SIGHUP]);
            install(libc::SIGSEGV, &mine);
            let before = [libc::SIGSEGV, libc::SIGBUS].map(|signal| essence(&installed(signal)));
            fault::uninstall().unwrap(); // nothing to do
            let table = table();
            for _ in 0..3 {
                fault::uninstall().unwrap();
                assert!(!fault::is_installed());
                assert_eq!([libc::SIGSEGV, libc::SIGBUS].map(|signal| essence(&installed(signal))), before);
                fault::install().unwrap();
                assert!(fault::is_installed() && refused(&table));
                fault::uninstall().unwrap();
                let _another = self::table();
                assert!(fault::is_installed() && refused(&table));
            }
            install_reporter();
            let in_use = |result| matches!(result, Err(HandlerError::InUse { signal: "SIGSEGV" }));
            assert!(in_use(fault::uninstall()), "the reporter may call us");
            assert!(refused(&table) && handled() == 1);
            let _on_top_again = self::table();
            assert!(in_use(fault::uninstall()), "it still may");
            remove_reporter();
            fault::uninstall().unwrap();
            assert_eq!([libc::SIGSEGV, libc::SIGBUS].map(|signal| essence(&installed(signal))), before);
            HANDLED.store(1, Ordering::Relaxed);
            refused(&table); // recovered by nobody
        }
        "plugin, taken out and closed" | "plugin, closed" => {
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                install(signal, &action(handler_of(tell_count), 0, &[libc::SIGUSR2]));
            }
            let before = essence(&installed(libc::SIGSEGV));
            let path = CString::new(plugin()).unwrap();
            // SAFETY: the plugin's functions have this signature.
            unsafe {
                let plugin = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
                assert!(!plugin.is_null());
                let function =
                    |name: &CStr| -> extern "C" fn() -> i32 { mem::transmute(libc::dlsym(plugin, name.as_ptr())) };
                assert_eq!(function(c"plugin_post_code")(), 1, "refused, and recovered");
                assert_ne!(essence(&installed(libc::SIGSEGV)), before);
                let taken_out = scenario.contains("taken out");
                if taken_out {
                    assert_eq!(function(c"plugin_unload")(), 0);
                    assert_eq!(essence(&installed(libc::SIGSEGV)), before);
                }
                assert_eq!(libc::dlclose(plugin), 0);
                let is_there = !libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD).is_null();
                assert_eq!(is_there, !taken_out);
            }
            stray_read();
        }
        "whoever comes in between" => {
            const ROUNDS: usize = 4_000;
            let original = installed(libc::SIGBUS);
            let other = action(handler_of(count), 0, &[libc::SIGUSR2]);
            let (arrived, found) = (AtomicUsize::new(0), Mutex::new(original));
            // A barrier that is quicker than one that sleeps.
            let meet = |meeting: usize| {
                arrived.fetch_add(1, Ordering::AcqRel);
                while arrived.load(Ordering::Acquire) < 2 * meeting {
                    thread::yield_now();
                }
            };
            thread::scope(|scope| {
                scope.spawn(|| {
                    for round in 0..ROUNDS {
                        meet(2 * round + 1);
                        (0..round % 50).for_each(|_| std::hint::spin_loop());
                        *found.lock().unwrap() = install(libc::SIGBUS, &other);
                        meet(2 * round + 2);
                    }
                });
                for round in 0..ROUNDS {
                    meet(2 * round + 1);
                    fault::install().unwrap();
                    meet(2 * round + 2);
                    if !fault::is_installed() {
                        // Too late to be replaced: it has replaced us, and goes away again.
                        install(libc::SIGBUS, &found.lock().unwrap());
                        fault::uninstall().unwrap();
                        assert_eq!(essence(&installed(libc::SIGBUS)), essence(&original));
                        continue;
                    }
                    fault::uninstall().unwrap();
                    if essence(&installed(libc::SIGBUS)) != essence(&other) {
                        exit(78); // lost; the other thread does not wait for a panic
                    }
                    install(libc::SIGBUS, &original);
                }
            });
        }
        other => panic!("no such scenario: {other}"),
    }
    process::exit(0);
}

/// A stub whose payload sends the signal to its own thread, as the kernel sends a machine check, and makes an access right
/// behind: the signal arrives with RIP at the access. It goes to the handler, and the access is then made.
fn machine_check(signal: c_int, si_code: c_int) {
    // SAFETY: SYSCALL changes RAX, RCX and R11.
    let quirk = unsafe {
        Quirk::new("rt_tgsigqueueinfo", Trigger::out_dx(Width::Byte, 0), |payload| {
            payload.extend(&[0x0f, 0x05]);
            payload.io(OUT_IMM8);
        })
    };
    // SAFETY: all-zero is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    (info.si_signo, info.si_code) = (signal, si_code);
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::builder().layout(layout).quirks(QuirkTable::from_iter([quirk])).build().unwrap();
        // SAFETY: asks who this is.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        let trigger = Gprs { rdx: 0, ..Gprs::default() };
        let given = Gprs {
            rax: libc::SYS_rt_tgsigqueueinfo as u64,
            rdi: process as u64,
            rsi: thread as u64,
            rdx: signal as u64,
            r10: ptr::from_ref(&info).expose_provenance() as u64,
            r15: 15,
            ..Gprs::default()
        };
        let before = handled();
        let mut gprs = given;
        // SAFETY: the system call is harmless, and the process has no privilege for the port.
        let fault = unsafe { table.resolve(OUT, &trigger).run(&mut gprs) }.unwrap_err();
        assert_eq!((handled(), fault.vector), (before + 1, 13), "{layout:?}, si_code {si_code}");
        assert_eq!(gprs, given);
    }
}

/// The example `plugin`, a shared object with a copy of the library of its own.
fn plugin() -> String {
    let mut cargo = process::Command::new(env!("CARGO"));
    // What this test was built with is not what the plugin is to be built with.
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(variable);
    }
    cargo.args(["build", "--quiet", "--all-features", "--example", "plugin", "--message-format", "json"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8(built.stdout).unwrap();
    let file = |message: &str| {
        let message: serde_json::Value = serde_json::from_str(message).unwrap();
        let file = message["filenames"][0].as_str()?;
        (message["target"]["name"] == "plugin").then(|| file.to_owned())
    };
    messages.lines().find_map(file).expect("cargo names the file")
}

#[test]
fn nothing_interrupts_the_handler() {
    exits_with(0, "everything is blocked");
}

#[test]
fn the_previous_handler_has_its_own_mask_and_the_threads() {
    exits_with(10 + 1 + 2 + 4, "mask");
    exits_with(10 + 2 + 4, "mask, not deferred");
}

#[test]
fn the_previous_handler_has_its_own_stack() {
    exits_with(30, "on the interrupted stack");
    exits_with(31, "on the alternate stack");
}

#[test]
fn a_handler_that_wants_one_signal_gets_one() {
    for scenario in ["once", "once, of a signal that was sent"] {
        let output = killed_by(libc::SIGSEGV, scenario);
        let reports = output.stderr.iter().filter(|byte| **byte == b'!').count();
        assert_eq!(reports, 1, "{scenario}: {output:?}");
    }
}

#[test]
fn a_blocked_signal_ends_the_process() {
    let output = killed_by(libc::SIGSEGV, "blocked");
    assert!(String::from_utf8_lossy(&output.stderr).contains("recovered"), "not before: {output:?}");
}

#[test]
fn a_machine_check_is_not_a_stubs() {
    exits_with(0, "machine check");
}

#[test]
fn a_displaced_handler_is_put_back() {
    exits_with(50 + 2, "displaced");
    exits_with(0, "displaced, and a table that is shared");
    exits_with(0, "displaced too often");
}

#[test]
fn the_next_table_recovers_where_the_signal_was_given_away() {
    exits_with(0, "a handler that gives the signal away");
}

#[test]
fn what_was_before_is_put_back() {
    exits_with(50 + 1, "uninstalled");
}

#[test]
#[cfg_attr(target_env = "musl", ignore = "a program that is linked statically loads no plugin")]
fn a_plugin_that_is_closed_leaves_no_handler_in_unmapped_memory() {
    exits_with(50, "plugin, taken out and closed");
    exits_with(50, "plugin, closed");
}

#[test]
fn who_comes_in_between_is_not_lost() {
    exits_with(0, "whoever comes in between");
}

/// How much of an alternate stack some work needs that ends in a signal handler, the kernel's frame included.
fn stack_of(work: impl FnOnce() + Send) -> usize {
    const SIZE: usize = 64 << 10;
    const PAINT: u8 = 0xa5;
    thread::scope(|scope| {
        let used = scope.spawn(|| {
            let mut memory = vec![PAINT; SIZE];
            let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIZE };
            // SAFETY: a valid structure, and memory that outlives its use as a stack: the old one is put back.
            unsafe {
                let mut before: libc::stack_t = mem::zeroed();
                assert_eq!(libc::sigaltstack(&stack, &mut before), 0);
                work();
                assert_eq!(libc::sigaltstack(&before, ptr::null_mut()), 0);
            }
            SIZE - memory.iter().take_while(|byte| **byte == PAINT).count()
        });
        used.join().unwrap()
    })
}

#[test]
fn the_handler_needs_little_stack() {
    let builder = |layout| StubTable::builder().layout(layout).quirks(QuirkTable::builtin());
    let tables: Vec<_> = StubLayout::ALL.iter().map(|&layout| builder(layout).build().unwrap()).collect();
    install(libc::SIGUSR1, &action(handler_of(count), libc::SA_ONSTACK, &[]));
    let bare = stack_of(|| {
        // SAFETY: sends a signal to this thread.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
    });
    let ours = stack_of(|| {
        for table in &tables {
            let trigger = Gprs { rax: 0x80, rdx: 0xcd4, ..Gprs::default() };
            // SAFETY: the process has no privilege for any port.
            unsafe { table.resolve(OUT, &trigger).run(&mut trigger.clone()) }.unwrap_err();
            assert!(refused(table));
        }
    });
    println!("{ours} bytes of stack, where a handler that counts takes {bare}");
    assert!(bare > 500 && ours > bare && ours < bare + 2_048, "{ours} bytes of stack against {bare}");
}

/// The handler finds a table among thousands, and after thousands, as fast as when there was one.
#[test]
fn a_fault_costs_the_same_after_twenty_thousand_tables() {
    let table = table();
    let cost = || {
        let mut costs: Vec<Duration> = (0..301)
            .map(|_| {
                let start = Instant::now();
                assert!(refused(&table));
                start.elapsed()
            })
            .collect();
        costs.sort();
        costs[costs.len() / 4]
    };
    let build = || StubTable::builder().layout(StubLayout::Compact).build().unwrap();
    cost();
    let alone = cost();
    let (mut kept, mut among) = (Vec::new(), alone);
    for round in 0..10 {
        kept = (0..2_000).map(|_| build()).collect();
        if round == 4 {
            among = cost();
        }
    }
    kept.drain(..kept.len() - 1);
    let after = cost();
    println!("a fault alone: {alone:?}, among 2,000 other tables: {among:?}, after 20,000: {after:?}");
    assert!(among < 3 * alone && after < 3 * alone, "{alone:?} alone, {among:?} among 2,000, {after:?} after 20,000");
}
