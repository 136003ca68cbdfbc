//! What the front door costs: nothing from the allocator, and a few nanoseconds over the bare stub.
#![cfg(feature = "std")]

use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

use ioemul::devices::Latch;
use ioemul::events::{Attempt, Events, Outcome};
use ioemul::{
    CodeSink, Gprs, IoEmulator, IoInsn, PortSet, Quirk, QuirkTable, SoftwareBus, StubLayout, StubTable, Trigger, Width,
};

/// The system's allocator, with a count of its calls by this thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is done by the system's allocator; the counter neither allocates nor is dropped.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, block: Block) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, block) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<R>(body: impl FnOnce() -> R) -> usize {
    let before = CALLS.get();
    black_box(body());
    CALLS.get() - before
}

fn on_a_latch(layout: StubLayout) -> IoEmulator {
    let mut bus = SoftwareBus::new();
    bus.attach(0xe0..=0xe3, Latch::new(0xe0)).unwrap();
    let builder = IoEmulator::builder().layout(layout).quirks(QuirkTable::builtin());
    builder.ports(PortSet::from(0xe0..=0xe3)).bus(bus).build().unwrap()
}

#[test]
fn nothing_is_allocated() {
    assert_ne!(allocations(|| Box::new(1)), 0); // the counter counts
    for layout in StubLayout::ALL.iter().copied() {
        let mut emulator = on_a_latch(layout);
        let mut gprs = Gprs { rcx: 4, rdx: 0xe0, ..Gprs::default() };
        let mut data = [0; 16];
        let calls = allocations(|| {
            for insn in [IoInsn::in_dx(Width::Byte), IoInsn::out_imm8(Width::Word, 0xe1), IoInsn::in_dx(Width::Dword)] {
                emulator.execute(insn, &mut gprs).unwrap();
            }
            emulator.emulate(&[0xed], &mut gprs).unwrap();
            emulator.read_string(IoInsn::rep_ins(Width::Dword), &mut gprs, &mut data).unwrap();
            // What is refused for its bytes or its ports costs no more.
            assert!(emulator.emulate(&[0x90], &mut gprs).is_err());
            assert!(emulator.execute(IoInsn::in_imm8(Width::Byte, 0xe4), &mut gprs).is_err());
        });
        assert_eq!(calls, 0, "{layout:?}");
    }
}

/// A bus keeps the buffer for strings that go downwards: the first one of a length pays for all.
#[test]
fn downwards_little_is_allocated() {
    const DF: u64 = 1 << 10;
    for layout in StubLayout::ALL.iter().copied() {
        let mut emulator = on_a_latch(layout);
        let mut data = [0; 64];
        let mut run = || {
            allocations(|| {
                let mut gprs = Gprs { rcx: 16, rdx: 0xe0, rflags: DF, ..Gprs::default() };
                emulator.read_string(IoInsn::rep_ins(Width::Dword), &mut gprs, &mut data).unwrap();
                gprs.rcx = 30;
                emulator.write_string(IoInsn::rep_outs(Width::Word), &mut gprs, &data).unwrap();
            })
        };
        assert_eq!([run(), run(), run()], [1, 0, 0], "{layout:?}");
    }
}

#[test]
fn a_fault_allocates_nothing() {
    // SAFETY: without privilege nothing is accessed, and writing port 0x80 would do nothing.
    let builder = unsafe { IoEmulator::builder().native(PortSet::from(0x80..=0x80)) };
    let mut emulator = builder.build().unwrap();
    let calls = allocations(|| emulator.execute(IoInsn::out_imm8(Width::Byte, 0x80), &mut Gprs::default()).is_err());
    assert_eq!(calls, 0);
}

#[test]
fn siblings_share_their_stubs() {
    let first = on_a_latch(StubLayout::Compact);
    let started = CALLS.get();
    let second = first.sibling().bus(SoftwareBus::new()).build().unwrap();
    assert!(CALLS.get() - started < 20, "a table was built");
    let table = |emulator: &IoEmulator| {
        let text = format!("{emulator:?}");
        text[text.find("StubTable").unwrap()..].split('}').next().unwrap().to_owned()
    };
    assert_eq!(table(&first), table(&second));
    assert_eq!(second.ports(), first.ports());

    // Of another kind, it has stubs of its own, with the same quirks.
    // SAFETY: nothing is executed.
    let native = unsafe { first.sibling().native(PortSet::from(0x80..=0x80)) }.build().unwrap();
    assert_ne!(table(&first), table(&native));
    assert!(table(&native).contains("HP ProLiant SMM port") && table(&native).contains("Compact"));
    let other_layout = first.sibling().layout(StubLayout::Inline).bus(SoftwareBus::new()).build().unwrap();
    assert!(table(&other_layout).contains("HP ProLiant SMM port") && table(&other_layout).contains("Inline"));
}

/// A listener that does something, for comparison.
#[derive(Default)]
struct Sum(u64);

impl Events for Sum {
    fn after(&mut self, _: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.0 = self.0.wrapping_add(outcome.gprs.rax);
    }
}

/// Time of `count` calls, the least of several.
fn time(count: u32, mut call: impl FnMut()) -> Nanoseconds {
    let run = || {
        let started = Instant::now();
        (0..count).for_each(|_| call());
        started.elapsed()
    };
    let least = std::iter::repeat_with(run).take(50).min().unwrap();
    Nanoseconds(least.as_secs_f64() * 1e9 / f64::from(count))
}

struct Nanoseconds(f64);

impl std::fmt::Debug for Nanoseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ns", self.0)
    }
}

/// A no-op in the place of OUT to port 0x80: what is left of a native access is the way to it and back.
fn no_access() -> QuirkTable {
    let mut quirks = QuirkTable::none();
    // SAFETY: a no-op does nothing.
    quirks.push(unsafe {
        Quirk::new("no access", Trigger::out(Width::Byte, 0x80), |payload| payload.extend(&[0x0f, 0x1f, 0x00]))
    });
    quirks
}

/// Prints the cost of each way in. Measured in a release build: `cargo test --release --test cost -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a measurement: for a release build on an idle machine"]
fn cost() {
    const COUNT: u32 = 200_000;
    let insn = IoInsn::out_imm8(Width::Byte, 0x80);
    let mut gprs = Gprs::default();
    let table = StubTable::builder().quirks(no_access()).build().unwrap();
    let stub = table.resolve(insn, &gprs);
    // SAFETY: the stub's payload is a no-op.
    let bare = time(COUNT, || unsafe { stub.run(black_box(&mut gprs)) }.unwrap());
    // SAFETY: the one port that is permitted is not accessed.
    let builder = || unsafe { IoEmulator::builder().quirks(no_access()).native(PortSet::from(0x80..=0x80)) };
    let mut emulator = builder().build().unwrap();
    let execute = time(COUNT, || emulator.execute(insn, black_box(&mut gprs)).unwrap());
    let mut emulator = builder().events(Sum::default()).build().unwrap();
    let listened = time(COUNT, || emulator.execute(insn, black_box(&mut gprs)).unwrap());
    println!("bare stub {bare:?}; execute {execute:?}; execute with a listener {listened:?}");
}
