//! The performance that this crate promises, each promise measured against its yardstick in turns, in one run.
//!
//! `cargo bench --bench targets` prints a line for each: medians, the ratio with its quartiles, the limit, the verdict.
//! `-- --strict` fails if one is missed, `-- --test` runs everything once and judges nothing.

mod support;

use core::hint::black_box;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::Instant;

use ioemul::{
    Gprs, Helpers, IoEmulator, IoInsn, PortSet, QuirkTable, SoftwareBus, StubLayout, StubTable, Width, emit_stub,
};
use support::clock::{self, Paired, Summary, paired, ticks, ticks_per_core_cycle, ticks_per_ns};
use support::fault::BareHandler;
use support::hand::{self, Entry};
use support::memory::{AliasedSlot, entry};
use support::{Silence, clock::pin_to};

const INSN: IoInsn = IoInsn::out_dx(Width::Byte);

/// How a run is measured and what came of it.
struct Report {
    brief: bool,
    missed: Vec<String>,
    ticks_per_ns: f64,
}

impl Report {
    fn rounds(&self, rounds: usize) -> usize {
        if self.brief { 1 } else { rounds }
    }

    /// `limit` is empty for what is no promise but good to know.
    fn judge(&mut self, what: &str, measured: String, holds: bool, limit: String) {
        let verdict = match (self.brief || limit.is_empty(), holds) {
            (true, _) => "",
            (_, true) => "met",
            (_, false) => "MISSED",
        };
        println!("{what:<46} {measured:<50} {limit:>11}  {verdict}");
        if !holds && !self.brief {
            self.missed.push(what.to_owned());
        }
    }

    /// A ratio, perhaps with an upper limit.
    fn ratio(&mut self, what: &str, unit: &str, pair: &Paired, limit: impl Into<Option<f64>>) {
        let limit = limit.into();
        let Paired { a, b, ratio } = pair;
        let measured = format!(
            "{:>8.2} : {:<8.2} {unit:<6} = {:.3}  [{:.3}, {:.3}]",
            a.median, b.median, ratio.median, ratio.q1, ratio.q3
        );
        let (holds, limit) = match limit {
            Some(limit) => (ratio.median <= limit, format!("≤ {limit:.3}")),
            None => (true, String::new()),
        };
        self.judge(what, measured, holds, limit);
    }

    /// A figure with an upper limit.
    fn figure(&mut self, what: &str, unit: &str, figure: &Summary, limit: f64) {
        let measured = format!("{:>8.2} {unit:<17} [{:.2}, {:.2}]", figure.median, figure.q1, figure.q3);
        self.judge(what, measured, figure.median <= limit, format!("≤ {limit} {unit}"));
    }
}

/// Calls by pointer, in a loop of three instructions, with the stack at each of the four places that it can have in a
/// cache line. TSC cycles per call.
fn calls(entry: Entry, gprs: &mut Gprs) -> impl FnMut() -> f64 {
    const CALLS: u64 = 200;
    move || {
        let sample = [0, 16, 32, 48].map(|lower| {
            // SAFETY: the entries are stubs without I/O.
            let cycles = ticks(|| unsafe { hand::ioemul_hand_repeat(gprs, entry, CALLS, lower) });
            cycles as f64 / CALLS as f64
        });
        sample.iter().sum::<f64>() / 4.0
    }
}

/// TSC cycles per run of `work`, which is run so often that reading the clock does not count.
fn cycles(times: u32, mut work: impl FnMut()) -> impl FnMut() -> f64 {
    move || ticks(|| (0..times).for_each(|_| work())) as f64 / f64::from(times)
}

fn main() -> ExitCode {
    let has = |flag| std::env::args().any(|argument| argument == flag);
    let mut report = Report { brief: has("--test"), missed: Vec::new(), ticks_per_ns: ticks_per_ns() };
    if let Err(error) = measure(&mut report) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    match report.missed.as_slice() {
        [] => ExitCode::SUCCESS,
        missed => {
            println!("\nmissed: {}", missed.join("; "));
            if has("--strict") { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}

fn measure(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let cores = std::thread::available_parallelism()?.get();
    let core = clock::pin()?;
    println!(
        "core {core}, {:.3} TSC cycles in a nanosecond, {:.3} in a core cycle\n",
        report.ticks_per_ns,
        ticks_per_core_cycle()
    );
    stubs(report)?;
    run(report)?;
    table(report)?;
    slot(report)?;
    dispatch(report)?;
    bus(report)?;
    fault(report)?;
    threads(report, cores)?;
    println!("\n{:.3} TSC cycles in a core cycle at the end", ticks_per_core_cycle());
    Ok(())
}

fn elided(layout: StubLayout) -> Result<StubTable, ioemul::Error> {
    StubTable::builder().layout(layout).elide_io(true).build()
}

fn stubs(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let rounds = report.rounds(400);
    let (mut a, mut b) = (Gprs::default(), Gprs::default());
    let tables = [elided(StubLayout::CallRet)?, elided(StubLayout::Compact)?, elided(StubLayout::Inline)?];
    let [call_ret, compact, inline] = tables.each_ref().map(|table| entry(table.stub(INSN)));
    let mut compare = |what, entry, yardstick, limit: Option<f64>| {
        let pair = paired(rounds, calls(entry, &mut a), calls(yardstick, &mut b));
        report.ratio(what, "cycles", &pair, limit);
        pair
    };
    compare("CallRet : the same by hand", call_ret, hand::ioemul_hand_call_ret, Some(1.03));
    compare("Inline : the same by hand", inline, hand::ioemul_hand_inline, Some(1.03));
    // With the number of their stores (`tests/instruction_counts.txt`), the return address that the caller pushes included.
    let pairs = [
        ("CallRet", 28, compare("CallRet : the patch's order", call_ret, hand::ioemul_hand_patch_order, Some(0.92))),
        ("Compact", 28, compare("Compact : the patch's order", compact, hand::ioemul_hand_patch_order, Some(0.92))),
        ("Inline", 26, compare("Inline : the patch's order", inline, hand::ioemul_hand_patch_order, None)),
        (
            "parked",
            19,
            compare(
                "parked in XMM0-6 : the patch's order",
                hand::ioemul_hand_parked,
                hand::ioemul_hand_patch_order,
                None,
            ),
        ),
    ];
    println!(
        "\n{:<46} {:>8} {:>12} {:>20} {:>18}",
        "", "cycles", "core cycles", "to 25 stores' bound", "to its own stores'"
    );
    let core_cycle = ticks_per_core_cycle();
    for (name, stores, pair) in pairs {
        let cycles = pair.a.median / core_cycle;
        // Two stores a cycle.
        let (bound, own) = (cycles / 12.5, cycles / (f64::from(stores) / 2.0));
        println!("{name:<46} {:>8.2} {cycles:>12.2} {bound:>18.2} × {own:>8.2} × ({stores})", pair.a.median);
    }
    println!();
    Ok(())
}

fn run(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let table = elided(StubLayout::CallRet)?;
    let stub = table.stub(INSN);
    let pointer = entry(stub);
    let (mut a, mut b) = (Gprs::default(), Gprs::default());
    let pair = paired(
        report.rounds(400),
        // SAFETY: the table makes no access.
        cycles(200, || assert!(unsafe { black_box(stub).run(&mut a) }.is_ok())),
        // SAFETY: as above.
        cycles(200, || unsafe { black_box(pointer)(&mut b) }),
    );
    let added = Summary {
        q1: (pair.ratio.q1 - 1.0) * pair.b.median / report.ticks_per_ns,
        median: (pair.ratio.median - 1.0) * pair.b.median / report.ticks_per_ns,
        q3: (pair.ratio.q3 - 1.0) * pair.b.median / report.ticks_per_ns,
    };
    report.figure("run() over a call through the pointer", "ns", &added, 2.0);
    Ok(())
}

fn table(report: &mut Report) -> Result<(), Box<dyn Error>> {
    for layout in [StubLayout::CallRet, StubLayout::Compact] {
        let mut sample = Vec::new();
        for _ in 0..report.rounds(300) {
            let start = Instant::now();
            let table = StubTable::builder().layout(layout).quirks(QuirkTable::builtin()).build()?;
            sample.push(start.elapsed().as_nanos() as f64 / 1000.0);
            drop(table);
        }
        report.figure(&format!("{layout:?} table, executable"), "µs", &Summary::of(sample), 100.0);
    }
    let size = StubTable::builder().layout(StubLayout::Compact).quirks(QuirkTable::builtin()).build()?.code().len();
    report.judge("Compact table, memory", format!("{size:>8} bytes"), size <= 32 << 10, "≤ 32 KiB".to_owned());
    Ok(())
}

fn slot(report: &mut Report) -> Result<(), Box<dyn Error>> {
    for layout in [StubLayout::CallRet, StubLayout::Compact] {
        let (mut room, mut slot) = ([0; 256], [0; 64]);
        let helpers = Helpers::emit(&mut room, 0x10_0000, layout)?;
        let mut emit = cycles(200, || {
            black_box(emit_stub(&mut slot, 0x20_0000, black_box(INSN), &helpers).is_ok());
        });
        let sample = (0..report.rounds(300)).map(|_| emit() / report.ticks_per_ns).collect();
        report.figure(&format!("{layout:?} stub into a slot"), "ns", &Summary::of(sample), 25.0);
    }
    Ok(())
}

fn dispatch(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let (call_ret, compact) = (elided(StubLayout::CallRet)?, elided(StubLayout::Compact)?);
    let mut slot = AliasedSlot::new()?;
    // Among all forms in random order nearly every call of a stub is a mispredicted indirect branch: that bounds it.
    for (what, forms, table) in [
        ("one form", vec![INSN], &call_ret),
        ("64 forms at random", support::random_forms(64), &call_ret),
        ("all forms at random", support::random_forms(IoInsn::COUNT), &call_ret),
        ("the same, Compact", support::random_forms(IoInsn::COUNT), &compact),
    ] {
        let bytes: Vec<_> = forms.iter().map(|&insn| slot.prepare_elided(insn)).collect();
        let (mut a, mut b) = (Gprs::default(), Gprs::default());
        let (mut form, mut next) = (forms.iter().cycle(), bytes.iter().cycle());
        let find = || {
            if let Some(&insn) = black_box(form.next()) {
                // SAFETY: the table makes no access.
                black_box(unsafe { table.resolve(insn, &a).run(&mut a) }.is_ok());
            }
        };
        let rewrite = || {
            if let Some(bytes) = next.next() {
                // SAFETY: the I/O instruction was taken out.
                unsafe { slot.rewrite(bytes)(&mut b) }
            }
        };
        let pair = paired(report.rounds(300), cycles(256, find), cycles(256, rewrite));
        report.ratio(&format!("find and run : rewrite and run, {what}"), "cycles", &pair, 1.0 / 30.0);
    }
    Ok(())
}

fn bus(report: &mut Report) -> Result<(), Box<dyn Error>> {
    for (name, insn) in [("OUT", INSN), ("IN", IoInsn::in_dx(Width::Byte))] {
        let mut bus = SoftwareBus::new();
        bus.attach(0x80..=0x80, Silence)?;
        let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).build()?;
        let mut gprs = Gprs { rdx: 0x80, ..Gprs::default() };
        let mut access = cycles(200, || assert!(emulator.execute(black_box(insn), &mut gprs).is_ok()));
        let sample = (0..report.rounds(300)).map(|_| access() / report.ticks_per_ns).collect();
        report.figure(&format!("bus access, empty device, {name}"), "ns", &Summary::of(sample), 20.0);
    }
    Ok(())
}

fn fault(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let table = StubTable::new(StubLayout::CallRet)?;
    let stub = table.stub(IoInsn::in_dx(Width::Byte));
    let mut gprs = Gprs { rdx: 0x80, ..Gprs::default() };
    // SAFETY: faults, or, with the privilege, reads the POST code.
    if unsafe { stub.run(&mut gprs) }.is_ok() {
        println!("{:<46} not measured: this process may read port 0x80", "fault to error");
        return Ok(());
    }
    let ns = report.ticks_per_ns;
    // SAFETY: as above.
    let mut recovered = cycles(20, || assert!(unsafe { stub.run(&mut gprs) }.is_err()));
    let bare = || {
        let handler = BareHandler::install().expect("SIGSEGV can be handled");
        cycles(20, || handler.fault())() / ns
    };
    let pair = paired(report.rounds(300), || recovered() / ns, bare);
    report.ratio("fault to error : bare SIGSEGV", "ns", &pair, 1.15);
    Ok(())
}

/// Two threads on one table, each on a core of its own, against one of them alone.
fn threads(report: &mut Report, cores: usize) -> Result<(), Box<dyn Error>> {
    if cores < 2 {
        println!("{:<46} not measured: one core only", "two threads on one table");
        return Ok(());
    }
    let table = elided(StubLayout::CallRet)?;
    let entry = entry(table.stub(INSN));
    let (rounds, together) = (report.rounds(300), Barrier::new(2));
    let worker = |core: usize| {
        // Where the core is not ours to have, the thread runs where it may.
        let _ = pin_to(core);
        let mut gprs = Gprs::default();
        let mut batch = calls(entry, &mut gprs);
        let mut sample = Vec::new();
        for _ in 0..rounds {
            // Alone, one core after the other, and then both.
            for turn in 0..2 {
                together.wait();
                if turn == core {
                    sample.push((0..8).map(|_| batch()).sum::<f64>());
                }
            }
            together.wait();
            sample.push((0..8).map(|_| batch()).sum::<f64>());
        }
        Summary::of(sample.chunks_exact(2).map(|pair| pair[0] / pair[1]).collect())
    };
    let each = std::thread::scope(|scope| {
        let threads = [0, 1].map(|core| scope.spawn(move || worker(core)));
        threads.map(|thread| thread.join().expect("the worker does not panic"))
    });
    for (core, speed) in each.iter().enumerate() {
        report.judge(
            &format!("two threads on one table, thread {core} : alone"),
            format!("{:>30.3}  [{:.3}, {:.3}]", speed.median, speed.q1, speed.q3),
            speed.median >= 0.95,
            "≥ 0.950".to_owned(),
        );
    }
    Ok(())
}
