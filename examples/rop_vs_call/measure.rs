//! The measurement itself.

use ioemul::{BuildError, Gprs, IoInsn, StubLayout, StubTable, Width};

use crate::counters::BranchMisses;
use crate::knee::{Knee, departure};
use crate::support::clock::{Summary, ticks, ticks_per_core_cycle, ticks_per_ns};
use crate::support::frames::call_under;
use crate::support::hand::{self, Entry};
use crate::support::machine;
use crate::support::memory::entry;

/// How many frames are around the stub: 0 to this.
pub const DEEPEST: usize = 40;

/// Calls in one reading of the clock.
const CALLS: u64 = 100;

/// One curve: a layout, or the frames alone.
pub struct Series {
    pub name: &'static str,
    pub layout: Option<StubLayout>,
    /// TSC cycles per call, stub and frames together, by depth.
    pub cycles: Vec<Summary>,
    /// Mispredicted branches per call, by depth, where they can be counted.
    pub misses: Option<Vec<f64>>,
}

/// Everything that came out.
pub struct Measured {
    pub machine: Machine,
    /// The frames alone, then the layouts.
    pub series: Vec<Series>,
    /// Excess of Rop over CallRet, by depth.
    pub excess: Vec<Summary>,
    /// So many frames around an empty function, and their returns, though all paired, cost more than in proportion: one
    /// call more than the return stack has entries.
    pub return_stack: Option<f64>,
    /// Where Rop's excess levels off.
    pub level_at: Option<Knee>,
    /// Why there are no counters.
    pub no_counters: Option<String>,
    /// Why these figures should not be trusted; empty on a quiet machine.
    pub noise: Vec<String>,
}

/// What it was measured on.
pub struct Machine {
    pub cpu: String,
    pub core: usize,
    pub ticks_per_ns: f64,
    /// TSC cycles per core cycle, over the sweeps.
    pub clock: Summary,
}

pub fn measure(core: usize, sweeps: u32, mut swept: impl FnMut()) -> Result<Measured, BuildError> {
    let insn = IoInsn::out_dx(Width::Byte);
    let table = |layout| StubTable::builder().layout(layout).elide_io(true).build();
    let layouts = [StubLayout::Inline, StubLayout::Compact, StubLayout::CallRet, StubLayout::Rop];
    let tables = layouts.map(table).into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut subjects = vec![("frames alone", None, hand::ioemul_hand_empty as Entry)];
    for (layout, table) in layouts.into_iter().zip(&tables) {
        subjects.push((name(layout), Some(layout), entry(table.stub(insn))));
    }

    let mut gprs = Gprs::default();
    let mut samples = vec![vec![Vec::new(); DEEPEST + 1]; subjects.len()];
    let (mut clock, mut excess) = (Vec::new(), vec![Vec::new(); DEEPEST + 1]);
    let preempted = preemptions();
    for _ in 0..sweeps {
        clock.push(ticks_per_core_cycle());
        for depth in 0..=DEEPEST {
            // There and back again, A B C … C B A: a drift hits all alike.
            let order: Vec<usize> = (0..subjects.len()).chain((0..subjects.len()).rev()).collect();
            let mut sums = vec![0.0; subjects.len()];
            for index in order {
                let stub = subjects[index].2;
                // The predictors forget the subject before.
                // SAFETY: the stubs make no access.
                unsafe { call_under(depth, stub, &mut gprs, CALLS / 2) };
                // SAFETY: as above.
                let cycles = ticks(|| unsafe { call_under(depth, stub, &mut gprs, CALLS) });
                sums[index] += cycles as f64 / CALLS as f64 / 2.0;
            }
            for (index, sum) in sums.iter().enumerate() {
                samples[index][depth].push(*sum);
            }
            excess[depth].push(sums[4] - sums[3]); // Rop, CallRet
        }
        swept();
    }
    let preempted = preemptions() - preempted;

    let (mut counters, no_counters) = match BranchMisses::new() {
        Ok(counters) => (Some(counters), None),
        Err(reason) => (None, Some(reason)),
    };
    let mut series = Vec::new();
    for ((name, layout, stub), samples) in subjects.into_iter().zip(samples) {
        let misses = counters.as_mut().and_then(|counters| misses(counters, stub, &mut gprs).ok());
        series.push(Series { name, layout, cycles: samples.into_iter().map(Summary::of).collect(), misses });
    }
    let excess: Vec<Summary> = excess.into_iter().map(Summary::of).collect();
    let clock = Summary::of(clock);
    Ok(Measured {
        machine: Machine { cpu: machine::cpu(), core, ticks_per_ns: ticks_per_ns(), clock },
        return_stack: departure(&points(&series[0].cycles), 10.0, 0.05),
        level_at: Knee::fit(&points(&excess)),
        noise: noise(&series, &clock, preempted, sweeps),
        series,
        excess,
        no_counters,
    })
}

pub fn name(layout: StubLayout) -> &'static str {
    match layout {
        StubLayout::CallRet => "CallRet",
        StubLayout::Compact => "Compact",
        StubLayout::Inline => "Inline",
        StubLayout::Rop => "Rop",
        _ => "another layout",
    }
}

fn points(curve: &[Summary]) -> Vec<(f64, f64)> {
    curve.iter().enumerate().map(|(depth, summary)| (depth as f64, summary.median)).collect()
}

fn misses(counters: &mut BranchMisses, stub: Entry, gprs: &mut Gprs) -> std::io::Result<Vec<f64>> {
    let mut of = |depth| {
        const CALLS: u64 = 10_000;
        // SAFETY: the stubs make no access.
        let misses = counters.during(|| unsafe { call_under(depth, stub, gprs, CALLS) })?;
        Ok(misses as f64 / CALLS as f64)
    };
    (0..=DEEPEST).map(&mut of).collect()
}

/// What speaks against drawing conclusions.
fn noise(series: &[Series], clock: &Summary, preempted: u64, sweeps: u32) -> Vec<String> {
    let mut reasons = Vec::new();
    let relative = |summary: &Summary| summary.spread() / summary.median;
    for series in series {
        let mut spreads: Vec<f64> = series.cycles.iter().map(relative).collect();
        spreads.sort_unstable_by(f64::total_cmp);
        let typical = spreads[spreads.len() / 2];
        if typical > 0.05 {
            reasons.push(format!("{}: readings of one depth spread by ±{:.0} %", series.name, typical * 100.0));
        }
    }
    let drift = (clock.q3 - clock.q1) / clock.median;
    if drift > 0.10 {
        reasons.push(format!("the core's clock drifted by {:.0} % against the TSC", drift * 100.0));
    }
    if preempted > u64::from(sweeps) {
        reasons.push(format!("other programs took the core {preempted} times"));
    }
    reasons
}

/// How often this thread lost its core to another.
fn preemptions() -> u64 {
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a rusage.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    usage.ru_nivcsw.unsigned_abs()
}
