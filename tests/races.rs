//! Everything at once: faults on eight threads, tables that are built and dropped, accesses within accesses, forks, and
//! timer signals whose handlers run stubs that fault.
//!
//! For 2 seconds, or as many as IOEMUL_TEST_SECONDS says.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{process, thread};

use common::{Rng, child, forms, timer};
use ioemul::{
    Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, QuirkTable, SoftwareBus, StubLayout, StubTable,
    Width,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

struct Counts {
    faults: AtomicUsize,
    tables: AtomicUsize,
    nested: AtomicUsize,
    forks: AtomicUsize,
    signals: AtomicUsize,
    faults_in_handlers: AtomicUsize,
}

static COUNTS: Counts = Counts {
    faults: AtomicUsize::new(0),
    tables: AtomicUsize::new(0),
    nested: AtomicUsize::new(0),
    forks: AtomicUsize::new(0),
    signals: AtomicUsize::new(0),
    faults_in_handlers: AtomicUsize::new(0),
};

fn add(count: &AtomicUsize, by: usize) {
    count.fetch_add(by, Ordering::Relaxed);
}

/// Tables that are there all the time.
static TABLES: OnceLock<Vec<StubTable>> = OnceLock::new();

fn fails(table: &StubTable, insn: IoInsn, given: Gprs) -> bool {
    let mut gprs = given;
    // SAFETY: the process has no privilege for any port.
    unsafe { table.stub(insn).run(&mut gprs) }.is_err_and(|fault| fault.vector == 13) && gprs == given
}

extern "C" fn alarm(_: c_int) {
    add(&COUNTS.signals, 1);
    let Some(tables) = TABLES.get() else { return };
    for table in tables {
        if !fails(table, OUT, Gprs { rdx: 0x80, r12: 12, ..Gprs::default() }) {
            // SAFETY: ends the process, from a signal handler too.
            unsafe { libc::_exit(3) };
        }
        add(&COUNTS.faults_in_handlers, 1);
    }
}

fn faults(end: Instant, seed: u64) {
    let (tables, forms) = (TABLES.get().unwrap(), forms().map(|form| form.insn).collect::<Vec<_>>());
    let mut rng = Rng(seed);
    while Instant::now() < end {
        let own = (seed % 2 == 0).then(|| build(&mut rng));
        for _ in 0..200 {
            let shared = &tables[rng.below(tables.len())];
            let table = own.as_ref().filter(|_| rng.next() % 2 == 0).unwrap_or(shared);
            assert!(fails(table, forms[rng.below(forms.len())], rng.gprs()));
        }
        add(&COUNTS.faults, 200);
    }
}

fn build(rng: &mut Rng) -> StubTable {
    let quirks = if rng.next() % 2 == 0 { QuirkTable::none() } else { QuirkTable::builtin() };
    let builder = StubTable::builder().layout(StubLayout::ALL[rng.below(StubLayout::ALL.len())]);
    add(&COUNTS.tables, 1);
    builder.quirks(quirks).endbr64(rng.next() % 2 == 0).build().unwrap()
}

fn tables(end: Instant) {
    let mut rng = Rng(99);
    let mut kept: Vec<StubTable> = Vec::new();
    while Instant::now() < end {
        kept.push(build(&mut rng));
        let table = &kept[rng.below(kept.len())];
        assert!(fails(table, OUT, rng.gprs()));
        if kept.len() > 50 {
            let gone = rng.below(kept.len());
            kept.swap_remove(gone);
        }
    }
}

/// A device that asks another emulator, which asks another one, and the last one the hardware.
struct Nested(IoEmulator);

impl PortDevice for Nested {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        let mut inner = *gprs;
        match self.0.execute(access.insn, &mut inner) {
            Ok(()) => inner.rax as u32,
            Err(Error::Fault { .. }) => {
                assert_eq!(inner, *gprs);
                0x5a
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn nested(end: Instant) {
    let mut rng = Rng(5);
    while Instant::now() < end {
        // SAFETY: the process has no privilege for any port.
        let hardware = unsafe { IoEmulator::builder().native(PortSet::all()) };
        let mut emulator = hardware.quirks(QuirkTable::none()).build().unwrap();
        for depth in 0..8 {
            let mut bus = SoftwareBus::new();
            bus.attach(0..=0xffff, Nested(emulator)).unwrap();
            let builder = IoEmulator::builder().layout(StubLayout::ALL[depth % 4]).ports(PortSet::all()).bus(bus);
            emulator = if depth == 5 { builder.direct() } else { builder }.build().unwrap();
        }
        for _ in 0..50 {
            let given = rng.gprs();
            let mut gprs = given;
            emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap();
            assert_eq!(gprs, Gprs { rax: given.rax & !0xff | 0x5a, ..given });
        }
        add(&COUNTS.nested, 50);
    }
}

/// A child of `fork` is where all others threads have stopped: at any point of building, dropping, and finding a table.
fn forks(end: Instant) {
    while Instant::now() < end {
        // SAFETY: the child runs stubs and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let good = TABLES.get().unwrap().iter().all(|table| fails(table, OUT, Rng(1).gprs()));
            // SAFETY: ends the child.
            unsafe { libc::_exit(if good { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for a child of this process.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "the child ended with {status:#x}");
        add(&COUNTS.forks, 1);
    }
}

#[test]
#[ignore = "a process of its own, started by the other test"]
fn scenario() {
    let Some(_) = child::requested() else { return };
    let end = Instant::now() + child::duration();
    TABLES.get_or_init(|| StubLayout::ALL.iter().map(|&layout| StubTable::new(layout).unwrap()).collect());
    timer::send_every(Duration::from_micros(200), libc::SIGALRM, alarm);
    thread::scope(|scope| {
        (0..8).for_each(|seed| drop(scope.spawn(move || faults(end, seed))));
        scope.spawn(move || tables(end));
        scope.spawn(move || nested(end));
        scope.spawn(move || forks(end));
    });
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let Counts { faults, tables, nested, forks, signals, faults_in_handlers } = &COUNTS;
    let counts = [faults, tables, nested, forks, signals, faults_in_handlers].map(count);
    let names = ["faults", "tables", "nested accesses", "forks", "signals", "faults in their handlers"];
    let text: Vec<_> = names.iter().zip(counts).map(|(name, count)| format!("{count} {name}")).collect();
    println!("\n{:?}: {}", child::duration(), text.join(", "));
    assert!(counts.iter().all(|count| *count >= 10));
    process::exit(0);
}

#[test]
fn everything_at_once() {
    child::exits_with(0, "everything at once");
}
