//! The performance that this crate promises, each promise measured against its yardstick in turns, in one run.
//!
//! `cargo bench --bench targets` prints a line for each: medians, the ratio with its quartiles, the limit, the verdict.
//! `-- --strict` fails if one is missed, `-- --test` runs everything once and judges nothing.

mod support;

use core::cell::Cell;
use core::hint::black_box;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Barrier;

use ioemul::{
    BuildError, EmitOptions, Gprs, Helpers, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, Quirk, QuirkTable,
    RegisterFile, SoftwareBus, StubLayout, StubTable, Width, emit_stub,
};
use support::clock::{self, Paired, Summary, paired, pin_to, ticks, ticks_per_core_cycle, ticks_per_ns};
use support::fault::BareHandler;
use support::hand::{self, Entry, Ring};
use support::memory::{AliasedSlot, ElidedTable, copy_executable, entry};
use support::trace::Trace;
use support::{Silence, machine};

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
        println!("{}", format!("{what:<52} {measured:<48} {limit:>7}  {verdict}").trim_end());
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

    /// A figure without a limit.
    fn figure(&mut self, what: &str, unit: &str, figure: &Summary) {
        let measured = format!("{:>8.2}            {unit:<16} [{:.2}, {:.2}]", figure.median, figure.q1, figure.q3);
        self.judge(what, measured, true, String::new());
    }
}

/// Calls by pointer, in a loop of three instructions, with the stack at each of the four places that it can have in a
/// cache line. TSC cycles per call.
fn calls(entry: Entry, gprs: &Cell<Gprs>) -> impl FnMut() -> f64 {
    const CALLS: u64 = 200;
    move || {
        let sample = [0, 16, 32, 48].map(|lower| {
            // SAFETY: the entries are stubs without I/O.
            let cycles = ticks(|| unsafe { hand::ioemul_hand_repeat(gprs.as_ptr(), entry, CALLS, lower) });
            cycles as f64 / CALLS as f64
        });
        sample.iter().sum::<f64>() / 4.0
    }
}

/// As [`calls`], each with the next register file of a ring.
fn calls_in_ring(entry: Entry, ring: &Cell<Ring>) -> impl FnMut() -> f64 {
    const CALLS: u64 = 320;
    move || {
        let sample = [0, 16, 32, 48].map(|lower| {
            // SAFETY: the entries are stubs without I/O.
            let cycles = ticks(|| unsafe { hand::ioemul_hand_repeat_ring(ring.as_ptr(), entry, CALLS, lower) });
            cycles as f64 / CALLS as f64
        });
        sample.iter().sum::<f64>() / 4.0
    }
}

/// TSC cycles per element, of work that goes through so many.
fn each(count: usize, mut work: impl FnMut()) -> impl FnMut() -> f64 {
    move || ticks(&mut work) as f64 / count as f64
}

/// TSC cycles per instruction, of work that is handed one and the same, from memory, so that nothing is known of it. (Behind
/// a `black_box` of its own it would be stored in parts and loaded as a whole, which a store buffer cannot serve.)
fn one_form(insn: IoInsn, mut work: impl FnMut(IoInsn)) -> impl FnMut() -> f64 {
    let forms = vec![insn; 256];
    each(forms.len(), move || black_box(&forms).iter().for_each(|&insn| work(insn)))
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
    println!("{}, {}", machine::cpu(), machine::date());
    println!(
        "core {core}, {:.3} TSC cycles in a nanosecond, {:.3} in a core cycle. Medians, and the quartiles of the ratio.\n",
        report.ticks_per_ns,
        ticks_per_core_cycle()
    );
    stubs(report)?;
    ring(report)?;
    dispatch(report)?;
    own_structure(report)?;
    bus(report)?;
    fault(report)?;
    table(report)?;
    slot(report)?;
    threads(report, cores)?;
    println!("\n{:.3} TSC cycles in a core cycle at the end", ticks_per_core_cycle());
    Ok(())
}

fn elided(layout: StubLayout) -> Result<StubTable, BuildError> {
    StubTable::builder().layout(layout).elide_io(true).build()
}

/// One register file: a call loads what the one before has just stored, and the status flags are a chain from each to the
/// next, about as long as a call takes otherwise.
fn stubs(report: &mut Report) -> Result<(), Box<dyn Error>> {
    const LIMITS: &[(StubLayout, f64)] =
        &[(StubLayout::CallRet, 1.10), (StubLayout::Compact, 1.10), (StubLayout::Inline, 1.05)];
    let rounds = report.rounds(400);
    // One and the same for both: where it lies is worth a tenth now and then.
    let gprs = Cell::new(Gprs::default());
    let mut compare = |what: &str, entry, yardstick, limit: Option<f64>| {
        let pair = paired(rounds, calls(entry, &gprs), calls(yardstick, &gprs));
        report.ratio(what, "cycles", &pair, limit);
    };
    for &(layout, limit) in LIMITS {
        let table = elided(layout)?;
        let what = format!("{layout:?} : the patch's order, no flags");
        compare(&what, entry(table.stub(INSN)), hand::ioemul_hand_patch_order, Some(limit));
    }
    // Where ring 0 does not come into it, and a device model neither: what is gained by XMM registers.
    compare("parked in XMM0-6 : the patch's order", hand::ioemul_hand_parked, hand::ioemul_hand_patch_order, None);
    Ok(())
}

/// A ring of register files: what a stub costs that waits for no store of the one before, against what this core needs for
/// as many stores, or for as many calls with their returns, whichever is more.
fn ring(report: &mut Report) -> Result<(), Box<dyn Error>> {
    // One and the same for all, as above.
    let ring = Cell::new(Ring::default());
    let mut store = || {
        const FILES: u64 = 320;
        // SAFETY: writes to the ring alone.
        ticks(|| unsafe { hand::ioemul_hand_stores(ring.as_ptr(), FILES) }) as f64 / (FILES * 16) as f64
    };
    let mut pair = || {
        const TIMES: u64 = 32;
        // SAFETY: does nothing but calls.
        ticks(|| unsafe { hand::ioemul_hand_pairs(TIMES) }) as f64 / (TIMES * 16) as f64
    };
    let rounds = report.rounds(400);
    for (what, yardstick) in [("a store", &mut store as &mut dyn FnMut() -> f64), ("a call and its return", &mut pair)]
    {
        let cost = Summary::of((0..rounds).map(|_| yardstick()).collect());
        report.figure(&format!("yardstick: {what}"), "cycles", &cost);
    }
    for layout in [StubLayout::CallRet, StubLayout::Compact, StubLayout::Inline] {
        let table = elided(layout)?;
        let entry = entry(table.stub(INSN));
        let Trace { stores, pairs, .. } = Trace::of(entry);
        let what = format!("{layout:?}, ring of 32 : max({stores} stores, {pairs} calls)");
        let bound = || (f64::from(stores) * store()).max(f64::from(pairs) * pair());
        let compared = paired(rounds, calls_in_ring(entry, &ring), bound);
        report.ratio(&what, "cycles", &compared, 1.30);
    }
    // Without the chain of one register file, whose length is a matter of luck in forwarding.
    for &(layout, by_hand) in hand::STUBS {
        let table = elided(layout)?;
        let (assembled, by_hand) = (calls_in_ring(entry(table.stub(INSN)), &ring), calls_in_ring(by_hand, &ring));
        let compared = paired(rounds, assembled, by_hand);
        report.ratio(&format!("{layout:?}, ring of 32 : the same by hand"), "cycles", &compared, 1.03);
    }
    Ok(())
}

/// From an instruction to its execution.
fn dispatch(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let table = elided(StubLayout::CallRet)?;
    let all = || support::random_forms(IoInsn::COUNT);
    let compact = elided(StubLayout::Compact)?;
    for (what, forms, table) in [
        ("one form", vec![INSN; 256], &table),
        ("64 at random", support::random_forms(64).repeat(4), &table),
        ("all at random", all(), &table),
        ("all at random, Compact", all(), &compact),
    ] {
        let pointers: Vec<Entry> = forms.iter().map(|&insn| entry(table.stub(insn))).collect();
        let (mut a, mut b) = (Gprs::default(), Gprs::default());
        let found = || {
            for &insn in black_box(&forms) {
                // SAFETY: the table makes no access.
                black_box(unsafe { table.resolve(insn, &a).run(&mut a) }.is_ok());
            }
        };
        let called = || {
            for pointer in black_box(&pointers) {
                // SAFETY: as above.
                unsafe { pointer(&mut b) };
            }
        };
        let pair = paired(report.rounds(300), each(forms.len(), found), each(forms.len(), called));
        report.ratio(&format!("find and run : calls by pointer, {what}"), "cycles", &pair, 1.15);
    }
    let mut slot = AliasedSlot::new()?;
    let bytes = slot.prepare_elided(INSN);
    let (mut a, mut b) = (Gprs::default(), Gprs::default());
    let find = one_form(INSN, |insn| {
        // SAFETY: the table makes no access.
        assert!(unsafe { table.resolve(insn, &a).run(&mut a) }.is_ok());
    });
    // SAFETY: the I/O instruction was taken out.
    let rewrite = || unsafe { slot.rewrite(black_box(&bytes))(&mut b) };
    let pair = paired(report.rounds(300), find, cycles(256, rewrite));
    report.ratio("find and run : rewrite one slot and run", "cycles", &pair, None);
    Ok(())
}

/// A host that keeps its guest's registers in Linux' `struct pt_regs`, and calls through the table's own lookup, inline. (A
/// host in C is to have the same from a header, which does not exist yet: that measurement belongs to it.)
fn own_structure(report: &mut Report) -> Result<(), Box<dyn Error>> {
    /// R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI; ORIG_RAX, RIP, CS, RFLAGS, RSP, SS.
    #[repr(C)]
    #[derive(Default)]
    struct PtRegs([u64; 21]);
    const RAX: usize = 10;
    const RDX: usize = 12;
    type Entry = unsafe extern "sysv64" fn(*mut PtRegs) -> u64;
    // SAFETY: the addresses given are those of stubs for this structure.
    let function = |address: u64| unsafe { core::mem::transmute::<*const (), Entry>(address as *const ()) };

    for (what, quirks, limit) in [("", &[][..], Some(1.4)), (", 1 quirk", &[Quirk::PROLIANT], None)] {
        let options = EmitOptions::new().registers(RegisterFile::PT_REGS).quirks(quirks);
        let memory = ElidedTable::new(&options)?;
        let table = &memory.table;
        let (mut a, mut b) = (PtRegs::default(), PtRegs::default());
        let pointer = function(table.entry(INSN).expect("an OUT has a stub"));
        let host = one_form(INSN, |insn| {
            let entry = table.resolve(insn, a.0[RAX], a.0[RDX]).map(function);
            // SAFETY: the I/O instruction was taken out; this is the structure that the table is for.
            assert!(entry.is_some_and(|entry| unsafe { entry(&mut a) } == 0));
        });
        // SAFETY: as above.
        let bare = || assert!(unsafe { black_box(pointer)(&mut b) } == 0);
        let pair = paired(report.rounds(300), host, cycles(256, bare));
        report.ratio(&format!("a host's own structure{what} : the bare stub"), "cycles", &pair, limit);
    }
    Ok(())
}

/// Device models, with machine code on the way to them and without.
fn bus(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let table = elided(StubLayout::CallRet)?;
    for (name, insn) in [("OUT", INSN), ("IN", IoInsn::in_dx(Width::Byte))] {
        let attached = || {
            let mut bus = SoftwareBus::new();
            bus.attach(0x80..=0x80, Silence).map(|()| bus)
        };
        let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(attached()?).build()?;
        let (mut a, mut b) = (Gprs { rdx: 0x80, ..Gprs::default() }, Gprs::default());
        let pointer = entry(table.stub(insn));
        let access = one_form(insn, |insn| assert!(emulator.execute(insn, &mut a).is_ok()));
        // SAFETY: the table makes no access.
        let bare = || unsafe { black_box(pointer)(&mut b) };
        let pair = paired(report.rounds(300), access, cycles(256, bare));
        report.ratio(&format!("bus access, {name} : the bare stub"), "cycles", &pair, 4.0);

        let mut bus = attached()?;
        let mut device: Box<dyn PortDevice> = black_box(Box::new(Silence));
        let (mut a, mut b) = (Gprs { rdx: 0x80, ..Gprs::default() }, Gprs { rdx: 0x80, ..Gprs::default() });
        let access = one_form(insn, |insn| assert!(bus.access(insn, &mut a).is_ok()));
        let call = one_form(insn, |insn| {
            let access = PortAccess::of(insn, &b);
            assert!(black_box(&mut device).try_access(access, 0, &mut b).is_ok());
        });
        let pair = paired(report.rounds(300), access, call);
        report.ratio(&format!("SoftwareBus::access, {name} : a virtual call"), "cycles", &pair, 3.0);
    }
    Ok(())
}

/// Building everything, against the least that as many bytes of executable memory cost.
fn table(report: &mut Report) -> Result<(), Box<dyn Error>> {
    for layout in [StubLayout::CallRet, StubLayout::Compact] {
        let builder = StubTable::builder().layout(layout).quirks(QuirkTable::builtin());
        let code = builder.clone().build()?.code().to_vec();
        let ns = report.ticks_per_ns * 1000.0;
        let build = || ticks(|| drop(builder.clone().build().expect("it could be built before"))) as f64 / ns;
        let copy = || ticks(|| copy_executable(&code).expect("there is memory for it")) as f64 / ns;
        let pair = paired(report.rounds(300), build, copy);
        report.ratio(&format!("{layout:?} table built : its bytes copied, mapped"), "µs", &pair, 2.5);
    }
    Ok(())
}

fn slot(report: &mut Report) -> Result<(), Box<dyn Error>> {
    for layout in [StubLayout::CallRet, StubLayout::Compact] {
        let (mut room, mut slot) = ([0; Helpers::MAX_LEN], [0; 64]);
        let helpers = Helpers::emit(&mut room, 0x10_0000, &EmitOptions::new().layout(layout))?;
        let mut emit = cycles(200, || {
            black_box(emit_stub(&mut slot, 0x20_0000, black_box(INSN), &helpers).is_ok());
        });
        let sample = (0..report.rounds(300)).map(|_| emit()).collect();
        report.figure(&format!("{layout:?} stub into a slot"), "cycles", &Summary::of(sample));
    }
    Ok(())
}

fn fault(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let table = StubTable::new(StubLayout::CallRet)?;
    let stub = table.stub(IoInsn::in_dx(Width::Byte));
    let mut gprs = Gprs { rdx: 0x80, ..Gprs::default() };
    // SAFETY: faults, or, with the privilege, reads the POST code.
    if unsafe { stub.run(&mut gprs) }.is_ok() {
        println!("{:<52} not measured: this process may read port 0x80", "fault to error");
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
        println!("{:<52} not measured: one core only", "two threads on one table");
        return Ok(());
    }
    let table = elided(StubLayout::CallRet)?;
    let entry = entry(table.stub(INSN));
    let (rounds, together) = (report.rounds(300), Barrier::new(2));
    let worker = |core: usize| {
        // Where the core is not ours to have, the thread runs where it may.
        let _ = pin_to(core);
        let gprs = Cell::new(Gprs::default());
        let mut batch = calls(entry, &gprs);
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
            format!("{:>34.3}  [{:.3}, {:.3}]", speed.median, speed.q1, speed.q3),
            true,
            String::new(),
        );
    }
    Ok(())
}
