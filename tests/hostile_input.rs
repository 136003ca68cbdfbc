//! Text and files from outside: what they cost is in proportion to their length, in memory and in time, and what is said
//! of them can be read.
#![cfg(all(feature = "trace", target_os = "linux"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

use ioemul::trace::{Record, Replay, Trace, TraceError, TraceLimits, TraceProblem};
use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};

/// Counts what each thread has allocated, and the most that it ever had.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn grow(by: usize) {
    NOW.set(NOW.get().wrapping_add(by));
    PEAK.set(PEAK.get().max(NOW.get()));
}

#[allow(unsafe_code)]
// SAFETY: all of it is the system's allocator; what is counted is in cells without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.set(NOW.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
    // `realloc` is the trait's own: allocate, copy, free, both sizes counted at once.
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` gives, the most memory that it had allocated at one time, and what it has not freed.
fn with_memory<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before, NOW.get().saturating_sub(before))
}

/// The processor time of `work`, which a busy machine does not make longer as it does a clock's: the less of two.
fn time(mut work: impl FnMut()) -> Duration {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to room for one.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let once = |_| {
        let started = now();
        work();
        now() - started
    };
    (0..2).map(once).min().unwrap()
}

/// A tenth may not take less than a thirtieth of the time (and a little, for what is too short to be measured): of what
/// grows with the square it takes a hundredth.
fn is_linear(what: &str, count: usize, mut work: impl FnMut(usize)) {
    let (short, long) = (time(|| work(count / 10)), time(|| work(count)));
    println!("{what}: {short:?} for {}, {long:?} for {count}", count / 10);
    assert!(
        long < 30 * short + Duration::from_millis(10),
        "{what}: {short:?} for {}, {long:?} for {count}",
        count / 10
    );
}

const HEADER: &str = "{\"ioemul-trace\":1}\n";

fn file(records: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut file = HEADER.to_owned();
    let mut count = 0;
    for record in records {
        file.push_str(record.as_ref());
        file.push('\n');
        count += 1;
    }
    file + &format!("{{\"records\":{count}}}\n")
}

fn read(file: impl BufRead, limits: TraceLimits) -> Result<Trace, TraceError> {
    Trace::read_with(file, limits)
}

const SMALLEST: &str = r#"{"insn":"in al,dx","before":{}}"#;

/// Says how much was read.
struct Endless<'r> {
    read: &'r Cell<usize>,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read.set(self.read.get() + buffer.len());
        assert!(self.read.get() < 64 << 20, "a line without an end is read to its end");
        buffer.fill(b' ');
        Ok(buffer.len())
    }
}

#[test]
fn a_line_without_an_end_is_not_read_to_its_end() {
    const BUFFER: usize = 8 << 10;
    for (limits, limit) in [(TraceLimits::new(), 4 << 20), (TraceLimits::new().line(1000), 1000)] {
        for (lines, number) in [("", 1), (HEADER, 2), (&file([SMALLEST])[..HEADER.len() + SMALLEST.len() + 1], 3)] {
            let count = Cell::new(0);
            let endless = lines.as_bytes().chain(BufReader::with_capacity(BUFFER, Endless { read: &count }));
            let (error, peak, _) = with_memory(|| read(endless, limits).unwrap_err());
            assert_eq!(error.line, number, "{error}");
            assert!(matches!(error.problem, TraceProblem::LongLine { limit: stated } if stated == limit), "{error}");
            assert!(count.get() <= limit + 2 * BUFFER, "{} bytes read", count.get());
            assert!(peak < 4 * limit + 16 * BUFFER, "{peak} bytes allocated");
        }
        // What follows the end is not looked at, but that it is there.
        let (count, whole) = (Cell::new(0), file([SMALLEST]));
        let endless = whole.as_bytes().chain(BufReader::with_capacity(BUFFER, Endless { read: &count }));
        let error = read(endless, limits).unwrap_err();
        assert!(error.line == 4 && matches!(error.problem, TraceProblem::AfterTheEnd), "{error}");
        assert!(count.get() <= BUFFER, "{} bytes read", count.get());
    }
}

#[test]
fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
    let padded = |len: usize| format!("{SMALLEST}{}", " ".repeat(len - SMALLEST.len()));
    let limits = TraceLimits::new().line(100);
    assert_eq!(read(file([padded(100)]).as_bytes(), limits).unwrap().records().len(), 1);
    let error = read(file([SMALLEST.into(), padded(101)]).as_bytes(), limits).unwrap_err();
    assert_eq!(
        error.to_string(),
        "trace, line 3: the line is longer than 100 bytes: `TraceLimits::line` is the longest that is read"
    );
    assert!(read(file([padded(101)]).as_bytes(), limits.line(101)).is_ok());
    assert!(read(file([padded(101)]).as_bytes(), limits.line(usize::MAX)).is_ok());
    assert_eq!(read(file([padded(100)]).as_bytes(), limits.line(0)).unwrap_err().line, 1);
}

#[test]
fn there_may_be_as_many_records_as_the_limit_and_no_more() {
    let limits = TraceLimits::new().records(3);
    assert_eq!(read(file([SMALLEST; 3]).as_bytes(), limits).unwrap().records().len(), 3);
    let error = read(file([SMALLEST; 4]).as_bytes(), limits).unwrap_err();
    assert_eq!(
        error.to_string(),
        "trace, line 5: the file has more than 3 records: `TraceLimits::records` is how many are read"
    );
    assert!(read(file([""; 0]).as_bytes(), limits.records(0)).is_ok());
}

/// The shapes that a file may have, each of about `len` bytes, as far as its lines go.
fn shapes(len: usize) -> Vec<(&'static str, String)> {
    let long = |before: &str, filler: &str, after: &str| {
        let count = len.saturating_sub(before.len() + after.len()) / filler.len();
        file([format!("{before}{}{after}", filler.repeat(count))])
    };
    let many = |record: &str| file(vec![record; len / (record.len() + 1)]);
    // Two digits are a byte: `rcx` has to say how many.
    let bytes = (len - 100) / 2;
    let data = format!(r#"{{"insn":"rep insb","before":{{"rcx":"{bytes:#x}"}},"data":""#);
    let data = file([format!("{data}{}\"}}", "a5".repeat(bytes))]);
    vec![
        ("many tiny records", many(SMALLEST)),
        ("one record more than a list has room for", file(vec![SMALLEST; (len / 64).next_power_of_two() + 1])),
        ("many records of a byte", many(r#"{"insn":"insb","before":{},"data":"a5"}"#)),
        ("many records refused", many(r#"{"insn":"insb","before":{},"refused":"x"}"#)),
        ("long data", data),
        ("data that is not bytes", long(r#"{"insn":"insb","before":{},"data":""#, "x", "\"}")),
        ("a long text of refusal", long(r#"{"insn":"insb","before":{},"refused":""#, "x", "\"}")),
        ("escapes", long(r#"{"insn":"insb","before":{},"refused":""#, r"\u0000", "\"}")),
        ("a long instruction", long(r#"{"insn":""#, "x", r#"","before":{}}"#)),
        ("a long name of a register", long(r#"{"insn":"insb","before":{""#, "x", r#"":"0x1"}}"#)),
        ("a long value of a register", long(r#"{"insn":"insb","before":{"rax":""#, "1", "\"}}")),
        ("zeros before a value", long(r#"{"insn":"insb","before":{"rax":"0x"#, "0", "1\"}}")),
        ("many registers", long(r#"{"insn":"insb","before":{"rax":"0x1""#, r#","rax":"0x1""#, "}}")),
        ("a long name of a field", long("{\"", "x", "\":1}")),
        ("what serde shows of a string", long(r#"{"insn":"insb","before":{},"fault":{"vector":""#, "\u{7f}", "\"}}")),
        ("what serde shows of a map", long(r#"{"insn":"insb","before":""#, "\u{e000}", "\"}")),
        ("deep lists", long("", "[", "")),
        ("deep maps", long("", "{\"a\":", "")),
        ("deep values", long(r#"{"insn":"insb","before":{"rax":"#, "[", "")),
        ("a long number", long(r#"{"records":"#, "9", "}")),
        ("spaces", long("", " ", "")),
        ("nothing", long("", "\0", "")),
        ("no text", long("", "\u{fffd}", "")),
        ("empty lines", file(vec![""; len])),
        ("a long first line", "x".repeat(len) + "\n"),
    ]
}

/// What is read takes memory in proportion to the file, whatever its shape: the factors are those of the documentation.
#[test]
fn memory_is_in_proportion_to_the_file() {
    for len in [1 << 16, 1 << 20] {
        for (shape, file) in shapes(len) {
            let (_trace, peak, kept) = with_memory(|| read(file.as_bytes(), TraceLimits::new()).ok());
            let factor = |bytes: usize| bytes as f64 / file.len() as f64;
            println!("{len:>8}, {shape}: {:.2} at most, {:.2} kept", factor(peak), factor(kept));
            assert!(factor(peak) < 36.0, "{shape}: {peak} bytes for a file of {}", file.len());
            assert!(factor(kept) < 12.0, "{shape}: {kept} bytes kept of a file of {}", file.len());
            // The same of what is there of it.
            let file = &file[..file.len() - 2];
            let (_partial, peak, kept) = with_memory(|| Trace::read_partial(file.as_bytes()).ok());
            assert!(factor(peak) < 36.0, "{shape}: {peak} bytes for a file of {}", file.len());
            assert!(factor(kept) < 12.0, "{shape}: {kept} bytes kept of a file of {}", file.len());
        }
    }
}

/// Whatever is wrong with a file of a megabyte, what is said of it fits a few lines of a terminal, and is text.
#[test]
fn errors_quote_no_more_than_can_be_read() {
    let mut refused = 0;
    for (shape, file) in shapes(1 << 20) {
        if let Err(error) = read(file.as_bytes(), TraceLimits::new()) {
            let (message, debug) = (error.to_string(), format!("{error:?}"));
            assert!(message.chars().count() < 400, "{shape}: {message}");
            assert!(debug.len() < 2000, "{shape}: {debug}");
            assert!(!message.contains(char::is_control), "{shape}: {message:?}");
            refused += 1;
        }
    }
    assert!(refused > 15, "{refused}");
    let error = "0x70, \u{1b}[31m".parse::<PortSet>().unwrap_err();
    assert!(error.to_string().starts_with("port set, column 7: `\\u{1b}[31m`: "), "{error}");
    let error = format!("0x70,{}", "é".repeat(1 << 20)).parse::<PortSet>().unwrap_err();
    assert!(error.to_string().starts_with(&format!("port set, column 6: `{}…`: a port is", "é".repeat(63))), "{error}");
    for text in ["x".repeat(1 << 20), "x=".repeat(1 << 20), format!("rax={}", "9".repeat(1 << 20))] {
        assert!(text.parse::<Gprs>().unwrap_err().to_string().len() < 400);
        assert!(text.parse::<IoInsn>().unwrap_err().to_string().len() < 400);
    }
}

#[test]
fn a_port_set_is_read_in_linear_time() {
    for item in ["0x0-0xffff,", "0x1-0xfffe,", "0x0/65536,", "0x70,", "  0x70 - ,", "é,", "0xffff-0x0,", ",", " ", "0"]
    {
        is_linear(item, 80_000, |count| drop(item.repeat(count).parse::<PortSet>()));
        let text = item.repeat(1_100_000 / item.len()) + "0x80";
        let time = time(|| drop(text.parse::<PortSet>()));
        assert!(time < Duration::from_millis(500), "{time:?} for a megabyte of `{item}`");
    }
    let ranges = |count| std::iter::repeat_n(0..=u16::MAX, count);
    is_linear("from_iter", 80_000, |count| assert_eq!(ranges(count).collect::<PortSet>(), PortSet::all()));
}

#[test]
fn registers_and_instructions_are_read_in_linear_time() {
    for item in ["rax=0x1 ", "r15b=255,", "=", "rax", " ", "rax=0x"] {
        is_linear(item, 80_000, |count| {
            assert!(
                item.repeat(count).parse::<Gprs>().is_ok() == item.trim_end_matches([' ', ',']).parse::<Gprs>().is_ok()
            )
        });
    }
    for item in ["in ", "out 0x80, ", ",", " ", "gs ", "rep "] {
        is_linear(item, 80_000, |count| assert!(item.repeat(count).parse::<IoInsn>().is_err()));
    }
}

#[test]
fn a_trace_is_read_in_linear_time() {
    is_linear("many tiny records", 80_000, |count| {
        drop(read(file(vec![SMALLEST; count]).as_bytes(), TraceLimits::new()).unwrap())
    });
    // What follows a wrong line is looked through for lines of a trace.
    for tail in ["\n", "\0", "\0\n", "{", "{\n", "\0x", r#"{"insn":"#] {
        is_linear(tail, 80_000, |count| {
            let file = format!("{HEADER}{SMALLEST}\nwrong\n{}", tail.repeat(count));
            assert_eq!(Trace::read_partial(file.as_bytes()).unwrap().trace.records().len(), 1);
        });
    }
}

/// Steps to be recorded and played: OUT of ever other values to a few ports, IN, and OUTS of ever other data.
fn steps(count: usize) -> Vec<Record> {
    let step = |i: usize| {
        let (insn, data) = match i % 4 {
            0 => (IoInsn::out_dx(Width::Dword), vec![]),
            1 => (IoInsn::in_dx(Width::Byte), vec![]),
            2 => (IoInsn::rep_outs(Width::Dword), (i as u64).to_le_bytes().to_vec()),
            _ => (IoInsn::rep_ins(Width::Word), vec![i as u8; 4]),
        };
        let before = Gprs { rax: i as u64, rcx: 2, rdx: 0xe0 + i as u64 % 3, ..Gprs::default() };
        let after = Gprs { rbx: i as u64, rcx: if insn.is_string() { 0 } else { 2 }, ..before };
        Record { insn, before, after, data, error: None, duration: None }
    };
    (0..count).map(step).collect()
}

fn perform(emulator: &mut IoEmulator, record: &Record) -> (Result<(), String>, Gprs) {
    let (mut gprs, mut data) = (record.before, record.data.clone());
    let result = match (record.insn.is_string(), record.insn.direction) {
        (false, _) => emulator.execute(record.insn, &mut gprs),
        (true, ioemul::Direction::In) => emulator.read_string(record.insn, &mut gprs, &mut data).map(drop),
        (true, _) => emulator.write_string(record.insn, &mut gprs, &data).map(drop),
    };
    (result.map_err(|error| error.to_string()), gprs)
}

fn emulator(bus: SoftwareBus) -> IoEmulator {
    IoEmulator::builder().ports(PortSet::all()).bus(bus).direct().build().unwrap()
}

/// Plays a trace in the order given, a watcher looking on after each access.
fn play<'r>(replay: Replay, strict: bool, order: impl Iterator<Item = &'r Record>) -> usize {
    let (bus, progress) = if strict { replay.strict() } else { replay.lenient() };
    let mut emulator = emulator(bus);
    for (done, record) in order.enumerate() {
        assert!(progress.finish().is_err());
        assert_eq!(progress.replayed(), done);
        perform(&mut emulator, record).0.unwrap();
    }
    progress.finish().unwrap();
    progress.replayed()
}

#[test]
fn a_replay_is_as_long_as_its_trace() {
    for strict in [true, false] {
        is_linear(if strict { "strictly" } else { "leniently" }, 80_000, |count| {
            let steps = steps(count);
            let replay = Trace::from_iter(steps.iter().cloned()).replay();
            assert_eq!(play(replay, strict, steps.iter()), count);
        });
    }
    // In another order, in which the first record is the last to be asked for.
    is_linear("backwards", 20_000, |count| {
        let steps = steps(count);
        let replay = Trace::from_iter(steps.iter().cloned()).replay();
        assert_eq!(play(replay, false, steps.iter().rev()), count);
    });
    // Accesses that were not recorded.
    for strict in [true, false] {
        is_linear("other accesses", 20_000, |count| {
            let steps = steps(count);
            let replay = Trace::from_iter(steps.iter().cloned()).replay();
            let (bus, progress) = if strict { replay.strict() } else { replay.lenient() };
            let mut emulator = emulator(bus);
            for record in &steps {
                let other = Gprs { rdx: 0x80, ..record.before };
                let _ = perform(&mut emulator, &Record { before: other, ..record.clone() });
                let _ = progress.finish();
            }
            assert_eq!((progress.replayed(), progress.unexpected()), (0, count));
        });
    }
}
