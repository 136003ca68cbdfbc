//! What a run of each stub executes, to the instruction: a slower stub shows here on the noisiest machine.
//!
//! The stub runs with the trap flag set, and the handler of SIGTRAP writes down where it is after each instruction. The
//! expected counts are in `instruction_counts.txt`; `UPDATE_INSTRUCTION_COUNTS=1 cargo test --test instruction_counts`
//! writes them anew.
#![cfg(all(feature = "std", target_os = "linux"))]

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

mod common;

use common::alias::Alias;
use iced_x86::{Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess};
use ioemul::{
    CodeSink, CodeTable, EmitOptions, Gprs, IoInsn, Quirk, Ring, StubLayout, StubTable, SymbolName, Trigger, Width,
};

/// Where the steps led: as many as fit, and how many there were.
static TRAIL: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];
static STEPS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the machine context to an SA_SIGINFO handler.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let step = STEPS.fetch_add(1, Ordering::Relaxed);
    if let Some(place) = TRAIL.get(step) {
        place.store(context.uc_mcontext.gregs[libc::REG_RIP as usize] as u64, Ordering::Relaxed);
    }
}

/// The addresses of the instructions that a call of `entry` executes within `code`, in their order.
fn trail(code: &[u8], entry: *const u8, gprs: &mut Gprs) -> Vec<u64> {
    STEPS.store(0, Ordering::Relaxed);
    // SAFETY: the stub makes no access, and the handler of SIGTRAP is installed. The trap flag acts from the instruction
    // behind POPFQ on: the first step arrives at the stub's entry.
    unsafe {
        asm!(
            "pushfq", "or qword ptr [rsp], 0x100", "popfq",
            "call {entry}",
            "pushfq", "and qword ptr [rsp], -0x101", "popfq",
            entry = in(reg) entry, in("rdi") gprs, clobber_abi("sysv64"),
        );
    }
    let steps = STEPS.load(Ordering::Relaxed);
    assert!(steps <= TRAIL.len(), "{steps} steps");
    let code = code.as_ptr_range();
    let trail = TRAIL[..steps].iter().map(|place| place.load(Ordering::Relaxed));
    trail.filter(|rip| (code.start as u64..code.end as u64).contains(rip)).collect()
}

/// What the instructions do.
#[derive(Default)]
struct Counts {
    instructions: usize,
    loads: usize,
    stores: usize,
    branches: usize,
}

fn counts(trail: &[u64]) -> Counts {
    let mut info = InstructionInfoFactory::new();
    let mut counts = Counts { instructions: trail.len(), ..Counts::default() };
    for &at in trail {
        // SAFETY: an instruction that was just executed, in a table whose code ends with padding or a shorter one.
        let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, 8) };
        let insn = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
        assert!(!insn.is_invalid(), "{bytes:02x?}");
        counts.branches += usize::from(insn.flow_control() != FlowControl::Next);
        for memory in info.info(&insn).used_memory() {
            counts.loads += usize::from(matches!(memory.access(), OpAccess::Read | OpAccess::ReadWrite));
            counts.stores += usize::from(matches!(memory.access(), OpAccess::Write | OpAccess::ReadWrite));
        }
    }
    counts
}

/// A line of the table: what a run of `stub`, somewhere in `code`, executes.
fn row(name: &str, code: &[u8], stub: &[u8]) -> String {
    let given = Gprs { rax: 1, rdi: 2, r15: 3, rflags: Gprs::STATUS_FLAGS, ..Gprs::default() };
    let mut gprs = given;
    let trail = trail(code, stub.as_ptr(), &mut gprs);
    assert_eq!(gprs, given, "{name}");
    // SAFETY: the last instruction that was executed within the table.
    let last = trail.last().map(|at| unsafe { *(*at as *const u8) });
    assert_eq!(last, Some(0xc3), "{name} did not come to its end");
    let Counts { instructions, loads, stores, branches } = counts(&trail);
    format!("{name:<20}{:>5}{instructions:>14}{loads:>8}{stores:>8}{branches:>10}\n", stub.len())
}

/// The same of a stub with the option [`scrub`](EmitOptions::scrub), which is the caller's own: a quirk of its makes no
/// access.
fn scrubbing_row(layout: StubLayout) -> String {
    // SAFETY: a no-op.
    let nop =
        unsafe { Quirk::new("NOP", Trigger::out_dx(Width::Byte, 0), |payload| payload.extend(&[0x0f, 0x1f, 0x00])) };
    let quirks = [nop];
    let options = EmitOptions::new().layout(layout).scrub(true).ring(Ring::Three).quirks(&quirks);
    let mut memory = Alias::new(CodeTable::size(&options));
    let va = memory.va();
    let table = CodeTable::emit(memory.memory(), va, &options).unwrap();
    let stub = table.symbols().find(|symbol| matches!(symbol.name, SymbolName::Quirk { .. })).unwrap();
    let code = memory.code();
    row(&format!("{layout:?}, scrubbing"), code, &code[(stub.address - va) as usize..][..stub.len])
}

#[test]
fn as_many_as_ever() {
    // SAFETY: all-zero is a valid action: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = step as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe and of the signature that SA_SIGINFO asks for.
    assert_eq!(unsafe { libc::sigaction(libc::SIGTRAP, &action, core::ptr::null_mut()) }, 0);

    let mut table = format!(
        "# A run of each stub, a no-op in place of the I/O.\n{:<20}{:>5}{:>14}{:>8}{:>8}{:>10}\n",
        "# layout", "bytes", "instructions", "loads", "stores", "branches"
    );
    for layout in StubLayout::ALL.iter().copied() {
        let stubs = StubTable::builder().layout(layout).elide_io(true).build().unwrap();
        table += &row(&format!("{layout:?}"), stubs.code(), stubs.stub(IoInsn::out_dx(Width::Byte)).code());
    }
    StubLayout::ALL.iter().for_each(|layout| table += &scrubbing_row(*layout));

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/instruction_counts.txt");
    if std::env::var_os("UPDATE_INSTRUCTION_COUNTS").is_some() {
        std::fs::write(&file, &table).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        table == expected,
        "the stubs execute something else than before.\n\nnow:\n{table}\ncommitted in tests/instruction_counts.txt:\n\
         {expected}\nIf it is meant, UPDATE_INSTRUCTION_COUNTS=1 cargo test --test instruction_counts commits it."
    );
}
