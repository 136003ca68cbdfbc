//! Time in TSC cycles, and the statistics of repeated measurements.

use core::arch::asm;
use core::arch::x86_64::{__rdtscp, _mm_lfence, _rdtsc};

/// Cycles of the time-stamp counter that `work` took. LFENCE before RDTSC waits for everything earlier, RDTSCP for the
/// work, and the LFENCE behind it keeps everything later from starting (SDM vol. 2, RDTSC and RDTSCP).
#[inline(always)]
pub fn ticks(work: impl FnOnce()) -> u64 {
    // SAFETY: every x86-64 CPU has these instructions.
    let start = unsafe {
        _mm_lfence();
        let start = _rdtsc();
        _mm_lfence();
        start
    };
    work();
    let mut core = 0;
    // SAFETY: as above; `core` is written.
    let end = unsafe {
        let end = __rdtscp(&mut core);
        _mm_lfence();
        end
    };
    end - start
}

/// TSC cycles per core cycle, by a chain of 1,000 dependent multiplications of three cycles each (on every Intel core
/// since Nehalem and every AMD core since Zen; additions would not do, as recent cores carry them out while renaming).
pub fn ticks_per_core_cycle() -> f64 {
    const CYCLES: u64 = 3 * 1000;
    let chain = || {
        ticks(|| {
            // SAFETY: changes a register of its own and the flags.
            unsafe { asm!(".rept 1000", "imul {0}, {0}", ".endr", inout(reg) 3u64 => _, options(nomem, nostack)) }
        })
    };
    let overhead = (0..64).map(|_| ticks(|| ())).min().unwrap_or(0);
    let fastest = (0..64).map(|_| chain()).min().unwrap_or(0);
    fastest.saturating_sub(overhead) as f64 / CYCLES as f64
}

/// TSC cycles in a nanosecond, against the system's clock.
pub fn ticks_per_ns() -> f64 {
    let start = std::time::Instant::now();
    let cycles = ticks(|| std::thread::sleep(std::time::Duration::from_millis(50)));
    cycles as f64 / start.elapsed().as_nanos() as f64
}

/// The middle of a sample and how far it spreads.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Lower quartile.
    pub q1: f64,
    /// Median.
    pub median: f64,
    /// Upper quartile.
    pub q3: f64,
}

impl Summary {
    /// Of a sample that is not empty.
    pub fn of(mut sample: Vec<f64>) -> Self {
        sample.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| sample[((sample.len() - 1) as f64 * share).round() as usize];
        Self { q1: at(0.25), median: at(0.5), q3: at(0.75) }
    }

    /// Half the distance between the quartiles.
    pub fn spread(&self) -> f64 {
        (self.q3 - self.q1) / 2.0
    }
}

/// Two things measured in turns.
#[derive(Clone, Copy, Debug)]
pub struct Paired {
    /// The first, per run.
    pub a: Summary,
    /// The second, per run.
    pub b: Summary,
    /// First by second, round by round: what disturbs both alike drops out.
    pub ratio: Summary,
}

/// Measures `a` and `b` in turns, A B B A, for so many rounds. Each returns what one of its runs took.
pub fn paired(rounds: usize, mut a: impl FnMut() -> f64, mut b: impl FnMut() -> f64) -> Paired {
    let (mut all_a, mut all_b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds + 2 {
        let (a1, b1) = (a(), b());
        let (b2, a2) = (b(), a());
        if round >= 2 {
            all_a.extend([a1, a2]);
            all_b.extend([b1, b2]);
            ratios.push((a1 + a2) / (b1 + b2));
        }
    }
    Paired { a: Summary::of(all_a), b: Summary::of(all_b), ratio: Summary::of(ratios) }
}

/// Pins this thread to the core it is on, so that one counter and one set of predictors is looked at. Returns which.
pub fn pin() -> std::io::Result<usize> {
    // SAFETY: no arguments; the result is checked.
    let core = usize::try_from(unsafe { libc::sched_getcpu() }).map_err(|_| std::io::Error::last_os_error())?;
    pin_to(core)?;
    Ok(core)
}

/// Pins this thread to `core`.
pub fn pin_to(core: usize) -> std::io::Result<()> {
    // SAFETY: all-zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: CPU_SET checks the bound.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set is one, of the size given.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
