//! `cargo xtask hw`: the library on emulated hardware, in ring 3 under Linux and in ring 0 under nothing.

mod guests;
mod host;
mod initramfs;
mod kernel;
mod qemu;
mod report;

use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hw_shared::{Mode, Params, Place};

use report::Run;

#[derive(clap::Args)]
pub struct Options {
    /// Seed of the random registers [default: random, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// SMIs with random registers, for each layout and variant
    #[arg(long, default_value_t = 500)]
    smis: u64,
}

/// One machine to start.
struct Job<'a> {
    place: Place,
    machine: &'static str,
    control: bool,
    image: &'a qemu::Image,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    host::ensure_programs()?;
    let linux = qemu::Image { kernel: kernel::vmlinux()?, initramfs: Some(guests::linux()?) };
    let ring0 = qemu::Image { kernel: guests::ring0()?, initramfs: None };
    let prepared = start.elapsed();

    let seed = options.seed.unwrap_or_else(random_seed);
    let mut jobs = Vec::new();
    for (place, image) in [(Place::Ring3, &linux), (Place::Ring0, &ring0)] {
        for control in [false, true] {
            jobs.extend(["pc", "q35"].map(|machine| Job { place, machine, control, image }));
        }
    }
    let runs = run_all(&jobs, seed, options.smis)?;

    print!("{}", report::Report { runs: &runs, seed, prepared, total: start.elapsed() });
    Ok(if runs.iter().all(Run::good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the jobs, as many at a time as there are processors, and returns the results in the jobs' order.
fn run_all(jobs: &[Job], seed: u64, smis: u64) -> Result<Vec<Run>> {
    let waiting = Mutex::new(jobs.iter().enumerate());
    let workers = thread::available_parallelism()?.get().min(jobs.len());
    let work = || -> Result<Vec<(usize, Run)>> {
        let mut done = Vec::new();
        loop {
            let next = waiting.lock().expect("no worker panics with the lock").next();
            let Some((index, job)) = next else { return Ok(done) };
            done.push((index, run_one(job, seed, smis)?));
        }
    };
    let mut runs = thread::scope(|scope| -> Result<Vec<(usize, Run)>> {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| worker.join().expect("no worker panics"));
        Ok(results.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })?;
    runs.sort_by_key(|(index, _)| *index);
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

fn run_one(job: &Job, seed: u64, smis: u64) -> Result<Run> {
    let Job { place, machine, control, image } = *job;
    let params = Params { mode: Mode::Checks, seed, count: smis, seconds: 0, control, proliant: !control };
    let command_line = match place {
        Place::Ring3 => format!("console=ttyS0 quiet panic=-1 {params}"),
        Place::Ring0 => params.to_string(),
    };
    let kind = if control { "control" } else { "checks" };
    let log = host::scratch()?.join(format!("{machine}-{place:?}-{kind}.log").to_lowercase());
    let start = Instant::now();
    let output = qemu::run(machine, control, image, &command_line, &log, Duration::from_secs(60));
    Ok(Run::new(place, machine, control, output, log, start.elapsed()))
}

/// Good enough to be different every time; it is printed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) >> 32
}
