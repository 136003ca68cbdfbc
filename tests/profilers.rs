//! Stubs that fault in a process that is being profiled: signals come thick and fast, and their handlers want much stack.
//!
//! For 2 seconds, or as many as IOEMUL_TEST_SECONDS says.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::ffi::c_int;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{process, thread};

use common::{Rng, child, timer};
use ioemul::{Gprs, IoInsn, StubLayout, StubTable, Width};

/// Runs stubs that fault in two threads for a while; how many did.
fn faults() -> usize {
    let tables: Vec<_> = StubLayout::ALL.iter().map(|&layout| StubTable::new(layout).unwrap()).collect();
    let (end, count) = (Instant::now() + child::duration(), AtomicUsize::new(0));
    let work = || {
        let given = Gprs { rdx: 0x80, ..Rng(7).gprs() };
        while Instant::now() < end {
            for table in tables.iter().cycle().take(1_000) {
                let mut gprs = given;
                // SAFETY: the process has no privilege for any port.
                let fault = unsafe { table.stub(IoInsn::out_dx(Width::Byte)).run(&mut gprs) }.unwrap_err();
                assert_eq!((fault.vector, gprs), (13, given));
            }
            count.fetch_add(1_000, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    count.into_inner()
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Wants more stack than an alternate signal stack has.
extern "C" fn hungry(_: c_int) {
    black_box(&mut [0_u8; 64 << 10]).fill(1);
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

#[test]
#[ignore = "a process of its own, started by the other tests"]
fn scenario() {
    let Some(scenario) = child::requested() else { return };
    let (faults, samples) = match scenario.as_str() {
        "storm" => {
            timer::send_every(Duration::from_micros(50), libc::SIGPROF, hungry);
            (faults(), SIGNALS.load(Ordering::Relaxed))
        }
        "pprof" => {
            let profiler = pprof::ProfilerGuardBuilder::default().frequency(1_000).build().unwrap();
            let faults = faults();
            let report = profiler.report().build_unresolved().unwrap();
            (faults, report.data.values().sum::<isize>() as usize)
        }
        other => panic!("no such scenario: {other}"),
    };
    println!("{scenario}: {faults} faults, {samples} samples");
    assert!(faults > 1_000 && samples > 10);
    process::exit(0);
}

#[test]
fn a_storm_of_signals() {
    child::exits_with(0, "storm");
}

#[test]
fn pprof_takes_samples_of_stubs_that_fault() {
    child::exits_with(0, "pprof");
}
