//! The figures as a table, and as JSON.

use serde_json::{Value, json};

use crate::knee::Knee;
use crate::measure::{DEEPEST, Measured};
use crate::support::clock::Summary;

/// The depths that have a line in the table.
const LINES: [usize; 13] = [0, 1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, DEEPEST];

pub fn print(measured: &Measured) {
    let machine = &measured.machine;
    println!("{}, core {}", machine.cpu, machine.core);
    println!(
        "TSC at {:.2} GHz; the core ran at {:.2} GHz. Figures are TSC cycles: medians ± half the distance of the quartiles.\n",
        machine.ticks_per_ns,
        machine.ticks_per_ns / machine.clock.median,
    );

    println!("Cycles per call, the frames included:\n");
    print!("frames");
    for series in &measured.series {
        print!("{:>16}", series.name);
    }
    println!("{:>16}{:>16}", "Rop − CallRet", "per frame");
    for (line, depth) in LINES.into_iter().enumerate() {
        print!("{depth:>6}");
        for series in &measured.series {
            print!("{:>16}", figure(&series.cycles[depth]));
        }
        let excess = &measured.excess[depth];
        print!("{:>16}", figure(excess));
        match line.checked_sub(1).map(|previous| LINES[previous]) {
            Some(previous) => {
                let added = (excess.median - measured.excess[previous].median) / (depth - previous) as f64;
                println!("{added:>+16.1}");
            }
            None => println!(),
        }
    }

    println!("\nAdded per outer frame, from 0 to 12 and from 28 to {DEEPEST} frames, over the frames alone:\n");
    for series in measured.series.iter().filter(|series| series.layout.is_some()) {
        let slope = |from: usize, to: usize| {
            let rise = |of: &[Summary]| of[to].median - of[from].median;
            (rise(&series.cycles) - rise(&measured.series[0].cycles)) / (to - from) as f64
        };
        println!("{:>16}{:>+10.1}{:>+10.1}", series.name, slope(0, 12), slope(28, DEEPEST));
    }

    println!();
    match measured.return_stack {
        Some(frames) => println!(
            "Return stack: about {frames:.0} entries. Returns that are all paired cost more from {frames:.0} frames on, the \
             stub's call being one more."
        ),
        None => println!("Return stack: more than {DEEPEST} entries, or no cost when it is full."),
    }
    match measured.level_at {
        Some(knee) if knee.before > 2.0 * knee.behind.abs() => {
            let level = measured.excess[DEEPEST].median;
            println!(
                "Rop's excess grows by {:.1} cycles a frame ({:.0} of the core's own), the price of a mispredicted return, and \
                 levels off at about {:.0} frames and {level:.0} cycles: the price of {:.0}.",
                knee.before,
                knee.before / machine.clock.median,
                knee.at,
                level / knee.before,
            );
        }
        _ => println!("Rop's excess does not level off up to {DEEPEST} frames."),
    }

    println!();
    match &measured.no_counters {
        Some(reason) => println!("Mispredicted branches per call: {reason}."),
        None => {
            println!("Mispredicted branches per call:\n");
            for series in &measured.series {
                if let Some(misses) = &series.misses {
                    let at = |depth: usize| format!("{:>8.2}", misses[depth]);
                    println!("{:>16}{}", series.name, LINES.map(at).concat());
                }
            }
        }
    }
    if !measured.noise.is_empty() {
        println!("\nThis machine is too noisy to conclude from this run:");
        for reason in &measured.noise {
            println!("  {reason}");
        }
    }
}

fn figure(summary: &Summary) -> String {
    format!("{:.1} ±{:>4.1}", summary.median, summary.spread())
}

pub fn json(measured: &Measured) -> Value {
    let machine = &measured.machine;
    let knee = |knee: &Knee| json!({ "frames": knee.at, "slope_before": knee.before, "slope_behind": knee.behind });
    let curve = |of: &[Summary]| -> Vec<Value> {
        let point =
            |(depth, at): (usize, &Summary)| json!({ "frames": depth, "median": at.median, "q1": at.q1, "q3": at.q3 });
        of.iter().enumerate().map(point).collect()
    };
    let series: Vec<Value> = measured
        .series
        .iter()
        .map(|series| {
            json!({ "name": series.name, "tsc_cycles": curve(&series.cycles), "branch_misses_per_call": series.misses })
        })
        .collect();
    json!({
        "cpu": machine.cpu,
        "core": machine.core,
        "tsc_ghz": machine.ticks_per_ns,
        "tsc_cycles_per_core_cycle": machine.clock.median,
        "series": series,
        "rop_excess": curve(&measured.excess),
        "return_stack_entries": measured.return_stack,
        "rop_levels_off": measured.level_at.as_ref().map(knee),
        "branch_misses": measured.no_counters.as_deref().unwrap_or("available"),
        "noise": measured.noise,
    })
}
