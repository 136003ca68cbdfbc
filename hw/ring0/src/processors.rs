//! Two processors that run the stubs of one table at the same time, each with registers of its own.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::SeqCst};

use hw_shared::model::{VMWARE_MAGIC, VMWARE_PORT};
use hw_shared::{Failure, Rng};
use ioemul::{CodeTable, EmitOptions, Gprs, IoInsn, Width};

use crate::boot::ALIAS;

/// Each makes so many accesses, at least.
const ACCESSES: u64 = 2000;
/// So often each has to see the other one go on between two of its own.
const ENOUGH: u64 = 20;
/// For so many ticks of the time-stamp counter the other one is waited for: a second or two.
const PATIENCE: u64 = 5_000_000_000;

/// What the second one is to run.
static TABLE: AtomicPtr<CodeTable> = AtomicPtr::new(core::ptr::null_mut());
/// Accesses made by each.
static MADE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
/// How often each has seen the other one go on between two of its own accesses.
static TURNS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
/// How many are there, how many have come to their end, and how many accesses went wrong.
static THERE: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    static second_processor: u8;
    static second_processor_end: u8;
}

/// Runs the table on both; returns how many accesses there were.
///
/// # Safety
///
/// The memory is this function's alone.
pub unsafe fn run(memory: *mut [u8], options: &EmitOptions<'_>) -> Result<u64, Failure> {
    // SAFETY: the caller's promise.
    let memory = unsafe { &mut *memory };
    let va = memory.as_ptr().expose_provenance() as u64 + ALIAS;
    let mut table = CodeTable::emit(memory, va, options).expect("it fits");
    TABLE.store(&mut table, SeqCst);
    for counter in MADE.iter().chain(&TURNS) {
        counter.store(0, SeqCst);
    }
    for counter in [&THERE, &DONE, &WRONG] {
        counter.store(0, SeqCst);
    }
    start_second();
    let came = work(0, &table) && wait(|| DONE.load(SeqCst) == 2);
    TABLE.store(core::ptr::null_mut(), SeqCst);
    if !came {
        return Err(Failure::Other("there is no second processor"));
    }
    if WRONG.load(SeqCst) != 0 {
        return Err(Failure::Other("a register is not as it should be"));
    }
    if TURNS.iter().any(|turns| turns.load(SeqCst) < ENOUGH) {
        return Err(Failure::Other("they did not run at the same time"));
    }
    Ok(MADE.iter().map(|made| made.load(SeqCst)).sum())
}

/// Where the second processor comes to; it waits to be started again when it is done.
pub extern "sysv64" fn second() -> ! {
    // SAFETY: whoever started this one waits for its end, and the table lives as long.
    if let Some(table) = unsafe { TABLE.load(SeqCst).as_ref() } {
        work(1, table);
    }
    loop {
        // SAFETY: nothing comes any more but INIT.
        unsafe { asm!("cli", "hlt") };
    }
}

/// The accesses of one of them: the VMware backdoor's UUID, which comes in four registers and is the same each time. Whether
/// the other one came.
fn work(me: usize, table: &CodeTable) -> bool {
    THERE.fetch_add(1, SeqCst);
    if !wait(|| THERE.load(SeqCst) == 2) {
        return false;
    }
    let (mut rng, mut seen) = (Rng::new(me as u64), 0);
    let all = |counters: &[AtomicU64; 2], least| counters.iter().all(|counter| counter.load(SeqCst) >= least);
    // The host may be so busy that they take turns: then they go on until there have been enough.
    wait(|| {
        let other = MADE[1 - me].load(SeqCst);
        TURNS[me].fetch_add(u64::from(other != seen), SeqCst);
        seen = other;
        let random = rng.gprs();
        let given = Gprs { rax: VMWARE_MAGIC.into(), rcx: 19, rdx: VMWARE_PORT.into(), ..random };
        let mut gprs = given;
        // SAFETY: the table is in place; asking for a UUID does no harm.
        let result = unsafe { table.execute(IoInsn::in_dx(Width::Dword), &mut gprs, |_| true) };
        let (rax, rbx, rcx, rdx) = (0x3322_1100, 0x7766_5544, 0xbbaa_9988, 0xffee_ddcc);
        let good = result.is_ok() && gprs == Gprs { rax, rbx, rcx, rdx, ..given };
        WRONG.fetch_add(u32::from(!good), SeqCst);
        MADE[me].fetch_add(1, SeqCst);
        all(&MADE, ACCESSES) && all(&TURNS, ENOUGH)
    });
    DONE.fetch_add(1, SeqCst);
    true
}

fn wait(mut until: impl FnMut() -> bool) -> bool {
    // SAFETY: every x86-64 CPU has a time-stamp counter.
    let now = || unsafe { _rdtsc() };
    let start = now();
    while now().wrapping_sub(start) < PATIENCE {
        if until() {
            return true;
        }
        spin_loop();
    }
    until()
}

/// INIT, and twice SIPI, for all processors but this one (SDM vol. 3, 9.4.4).
fn start_second() {
    const START: usize = 0x8000;
    const COMMAND: *mut u32 = 0xfee0_0300 as *mut u32;
    const ALL_BUT_SELF: u32 = 0xc_0000;
    const ASSERT: u32 = 0x4000;
    let (init, start_up) = (0x500, 0x600 | (START >> 12) as u32);
    // SAFETY: nobody else uses that memory, which the firmware has left; the APIC is mapped as it lies.
    unsafe {
        let (code, end) = (&raw const second_processor, &raw const second_processor_end);
        core::ptr::copy(code, START as *mut u8, end.offset_from(code) as usize);
        for command in [init, start_up, start_up] {
            COMMAND.write_volatile(ALL_BUT_SELF | ASSERT | command);
            (0..100_000).for_each(|_| spin_loop());
        }
    }
}
