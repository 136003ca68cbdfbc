//! What dom0 of a Xen does to find out how that runs its accesses. All of them are made by hand: they trap, and Xen's stub, or
//! the library's table that was built into Xen, executes them.

use std::arch::asm;
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hw_shared::model::{Model, VMWARE_MAGIC, VMWARE_PORT};
use hw_shared::{Engine, Params, Rng, carries, compare};
use ioemul::{Gprs, IoInsn, IoPrivilegeLevel, Width};

use crate::engines;

/// What is left of CF in each of the eight cases: `ioemul|carry|<number>|<CF>`. The SMM handler is there.
pub fn carries(console: &mut File, params: &Params) -> Result<(), Box<dyn Error>> {
    let _privilege = IoPrivilegeLevel::acquire()?;
    let mut engines = engines::by_hand()?;
    for (number, (_, mut gprs)) in carries::cases(params.seed).enumerate() {
        engines[0].engine.attempt(IoInsn::out_dx(Width::Byte), &mut gprs)?;
        writeln!(console, "ioemul|carry|{number}|{}", gprs.rflags & Gprs::CF)?;
    }
    Ok(())
}

/// The access whose stub has an instruction that faults in the place of its own: as it is encoded in our code.
const FAULTING: [u8; 2] = [0xe4, 0xea];
static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// A signal handler that passes over [`FAULTING`], and counts. It has nothing to do with any other fault.
extern "C" fn pass_over(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a context that may be written; RIP is where it was executing, and can be read.
    unsafe {
        let rip = &mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize];
        if (*rip as *const [u8; 2]).read() != FAULTING {
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        *rip += FAULTING.len() as i64;
    }
    FAULTS.fetch_add(1, Ordering::Relaxed);
}

/// A fault in Xen's stub: the guest gets a #GP at its own instruction, with its registers as they were, and the next access
/// works: `ioemul|fault|ok`.
pub fn fault(console: &mut File) -> Result<(), Box<dyn Error>> {
    let _privilege = IoPrivilegeLevel::acquire()?;
    // SAFETY: the handler keeps to what a handler may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = pass_over as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
    }
    let mut engines = engines::by_hand()?;
    let engine = &mut engines[0].engine;
    let mut rng = Rng::new(0);
    for round in 1..=100 {
        let random = rng.gprs();
        let before = Gprs { rax: random.rax | 0xfff8, ..random };
        let mut gprs = before;
        engine.attempt(IoInsn::in_imm8(Width::Byte, FAULTING[1]), &mut gprs)?;
        let outcome = match (FAULTS.load(Ordering::Relaxed) == round, compare(&gprs, &before)) {
            (false, _) => Err("the access did not fault".to_owned()),
            (_, Err(difference)) => Err(difference.to_string()),
            _ => Ok(()),
        };
        if let Err(why) = outcome {
            return Ok(writeln!(console, "ioemul|fault|{why}")?);
        }
        // The next access is made.
        engine.attempt(IoInsn::in_imm8(Width::Byte, 0xeb), &mut gprs)?;
    }
    Ok(writeln!(console, "ioemul|fault|ok")?)
}

/// Accesses of each processor in [`hammer`], at least.
const BLOWS: u64 = 5_000;
/// How often each has to see the other one go on between two of its own.
const SEEN: u64 = 500;

/// Two processors ask the VMware backdoor, with random registers, at the same time: `ioemul|hammer|<accesses>|ok`.
pub fn hammer(console: &mut File, params: &Params) -> Result<(), Box<dyn Error>> {
    static COUNTS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
    let blow = |own: usize| -> Result<u64, String> {
        pin(own)?;
        let _privilege = IoPrivilegeLevel::acquire().map_err(|error| error.to_string())?;
        let mut engines = engines::by_hand().map_err(|error| error.to_string())?;
        let (mut rng, mut seen, mut last) = (Rng::new(params.seed ^ own as u64), 0, 0);
        let start = Instant::now();
        let (insns, mut made) = ([IoInsn::in_dx(Width::Dword), IoInsn::out_dx(Width::Dword)], 0);
        while made < BLOWS || seen < SEEN {
            let random = rng.gprs();
            let command = [10, 19, 45, 68][(made / 2 % 4) as usize];
            let before = Gprs {
                rax: random.rax & !0xffff_ffff | u64::from(VMWARE_MAGIC),
                rcx: random.rcx & !0xffff_ffff | command,
                rdx: random.rdx & !0xffff | u64::from(VMWARE_PORT),
                ..random
            };
            let (mut is, mut should_be, insn) = (before, before, insns[(made % 2) as usize]);
            engines[0].engine.attempt(insn, &mut is).map_err(|error| error.to_string())?;
            Model::new(params.proliant).execute(insn, &mut should_be).expect("the model refuses nothing");
            compare(&is, &should_be).map_err(|difference| format!("processor {own}, access {made}: {difference}"))?;
            made += 1;
            COUNTS[own].store(made, Ordering::Relaxed);
            let other = COUNTS[1 - own].load(Ordering::Relaxed);
            seen += u64::from(other != last);
            last = other;
            if start.elapsed() > Duration::from_secs(40) {
                return Err(format!("processor {own} has seen the other one go on {seen} times in {made} accesses"));
            }
        }
        Ok(made)
    };
    let outcome = std::thread::scope(|scope| -> Result<u64, String> {
        let blows = [0, 1].map(|own| scope.spawn(move || blow(own)));
        blows.into_iter().map(|blow| blow.join().expect("nothing here panics")).sum()
    });
    match outcome {
        Ok(made) => writeln!(console, "ioemul|hammer|{made}|ok")?,
        Err(why) => writeln!(console, "ioemul|hammer|0|{why}")?,
    }
    Ok(())
}

/// Keeps this thread on one processor.
fn pin(processor: usize) -> Result<(), String> {
    // SAFETY: the set is a plain bit map, and the system call reads it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if result == 0 { Ok(()) } else { Err(format!("no processor {processor}: {}", std::io::Error::last_os_error())) }
}

/// How often an access is measured.
const SAMPLES: usize = 2_000;

/// Time-stamp counter ticks between two readings around an instruction, the port in DX.
macro_rules! ticks {
    ($access:literal) => {{
        let ticks: u32;
        // SAFETY: the port is that of a latch which nothing depends on.
        unsafe {
            asm!("rdtsc", "mov r8d, eax", "mov edx, 0xe0", "mov eax, 0x5a", $access, "rdtsc", "sub eax, r8d",
                 out("eax") ticks, out("edx") _, out("r8") _);
        }
        ticks
    }};
}

/// Instructions of an access, from the guest's to the one behind it: `ioemul|count|<access>|<instructions>|<how many of
/// the samples>`. The clock has to take one tick for each instruction. What is counted most often has not been interrupted.
pub fn count(console: &mut File) -> Result<(), Box<dyn Error>> {
    let _privilege = IoPrivilegeLevel::acquire()?;
    let most = |measure: fn() -> u32| {
        let mut counts = BTreeMap::new();
        (0..SAMPLES).for_each(|_| *counts.entry(measure()).or_insert(0) += 1);
        counts.into_iter().max_by_key(|(_, count)| *count).expect("there are samples")
    };
    let (empty, _) = most(|| ticks!("nop"));
    for (name, (ticks, samples)) in
        [("in al, dx", most(|| ticks!("in al, dx"))), ("out dx, al", most(|| ticks!("out dx, al")))]
    {
        writeln!(console, "ioemul|count|{name}|{}|{samples}", ticks - empty + 1)?;
    }
    Ok(())
}
