//! Traces written ahead: what stops the machine is named in the file, wherever that ends; and an access that cannot be
//! announced is not made.
#![cfg(feature = "trace")]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ioemul::events::{Attempt, DynEvents, Events, NoEvents, Outcome};
use ioemul::trace::{PartialTrace, Record, RecordedError, Trace, TraceHeader, TraceLimits, TraceProblem, TraceWriter};
use ioemul::{
    DeviceError, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, Quirk, QuirkTable, SoftwareBus,
    StringError, StubLayout, Width,
};

/// Counts accesses, and strings as one; refuses the value 3, and panics at the value 4.
#[derive(Clone, Default)]
struct Device(Arc<AtomicUsize>);

impl PortDevice for Device {
    fn try_access(&mut self, _: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        gprs.rbx += 1;
        match value {
            3 => Err("no".into()),
            4 => panic!("a bug of the model"),
            _ => Ok(0),
        }
    }

    fn try_write_string(&mut self, _: PortAccess, _: &[u8], _: &mut Gprs) -> Result<(), StringError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

const OUT: IoInsn = IoInsn::out_imm8(Width::Byte, 0xb2);
const OUTS: IoInsn = IoInsn::rep_outs(Width::Byte);

fn given(rax: u64) -> Gprs {
    Gprs { rax, rcx: 3, rdx: 0xb2, rflags: 0x246, ..Gprs::default() }
}

fn emulator<E: Events>(device: &Device, events: E) -> IoEmulator<E> {
    on(Some(StubLayout::CallRet), device, events)
}

fn on<E: Events>(layout: Option<StubLayout>, device: &Device, events: E) -> IoEmulator<E> {
    let mut bus = SoftwareBus::new();
    bus.attach(0x80..=0xb3, device.clone()).unwrap();
    let builder = IoEmulator::builder().quirks(QuirkTable::none()).ports(PortSet::from(0x80..=0xb3)).bus(bus);
    let builder = match layout {
        Some(layout) => builder.layout(layout),
        None => builder.direct(),
    };
    builder.events(events).build().unwrap()
}

/// A file in memory that says when it was synced, and fails when told to.
#[derive(Debug, Default)]
struct Disk {
    file: Vec<u8>,
    /// How much of it outlives the machine.
    synced: usize,
    /// Fails at the next write.
    is_full: bool,
    /// Fails at the next sync.
    is_broken: bool,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sync(disk: &mut Disk) -> io::Result<()> {
    if disk.is_broken {
        return Err(io::Error::other("the disk does not answer"));
    }
    disk.synced = disk.file.len();
    Ok(())
}

fn ahead(disk: Disk) -> TraceWriter<Disk> {
    TraceWriter::with_header(disk, &TraceHeader::default().on("a model")).unwrap().write_ahead(sync)
}

/// A whole file that was written ahead: of plain accesses, a string, one refused, one in which the model panicked.
fn whole() -> Vec<u8> {
    let mut emulator = emulator(&Device::default(), ahead(Disk::default()));
    for rax in [1, 2, 3, 4, 5] {
        let run = std::panic::AssertUnwindSafe(|| drop(emulator.execute(OUT, &mut given(rax))));
        let _ = std::panic::catch_unwind(run);
    }
    emulator.write_string(OUTS, &mut given(6), &[7, 8, 9]).unwrap();
    emulator.into_events().finish().unwrap().file
}

fn lines(file: &[u8]) -> Vec<&[u8]> {
    file.split_inclusive(|byte| *byte == b'\n').collect()
}

#[test]
fn each_access_is_announced_and_synced_before_it_is_made() {
    let file = whole();
    let trace = Trace::read(&*file).unwrap();
    let ends: Vec<_> = trace.records().iter().map(|record| (record.before.rax, record.error.clone())).collect();
    let refused = RecordedError::Refused("no".into());
    let expected =
        [(1, None), (2, None), (3, Some(refused)), (4, Some(RecordedError::DidNotReturn)), (5, None), (6, None)];
    assert_eq!(ends, expected);
    assert!(trace.records().iter().all(|record| record.duration.is_some() == (record.before.rax != 4)));
    let lines = lines(&file);
    assert_eq!(lines.len(), 2 + 2 * 6);
    for pair in lines[1..13].chunks(2) {
        assert!(pair[0].starts_with(b"{\"about_to\":\"") && pair[1].starts_with(b"{\"insn\":\""));
    }
    // The device finds the announcement on the disk.
    struct Looks(Arc<AtomicUsize>);
    impl Events for Looks {
        fn before(&mut self, _: &Attempt<'_>) {
            self.0.store(usize::MAX, Ordering::Relaxed);
        }
    }
    let seen = Arc::new(AtomicUsize::new(0));
    let mut emulator = emulator(&Device::default(), (Looks(seen.clone()), ahead(Disk::default())));
    emulator.execute(OUT, &mut given(1)).unwrap();
    let disk = emulator.into_events().1.finish().unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), usize::MAX);
    let announced: usize = self::lines(&disk.file)[..2].iter().map(|line| line.len()).sum();
    assert_eq!(disk.synced, announced, "the announcement is synced, and the record is not");
}

/// A device model panics in the last access: its record is written with the last line.
#[test]
fn a_panic_in_the_last_access_is_recorded() {
    let mut emulator = emulator(&Device::default(), ahead(Disk::default()));
    let run = std::panic::AssertUnwindSafe(|| drop(emulator.execute(OUT, &mut given(4))));
    std::panic::catch_unwind(run).unwrap_err();
    let trace = Trace::read(&*emulator.into_events().finish().unwrap().file).unwrap();
    assert_eq!(trace.records()[0].error, Some(RecordedError::DidNotReturn));
}

/// What there is to be read of the first so many bytes.
fn expected(file: &[u8], len: usize) -> (usize, Option<u64>, u64, bool) {
    let (mut good, mut records, mut pending, mut is_whole) = (0, 0, None, false);
    for line in lines(&file[..len]).into_iter().filter(|line| line.ends_with(b"\n")) {
        match line {
            _ if line.starts_with(b"{\"records\"") => {
                is_whole = true;
                continue; // which is not counted
            }
            _ if line.starts_with(b"{\"about_to\"") => pending = Some(records as u64 + 1),
            _ if line.starts_with(b"{\"insn\"") => {
                records += 1;
                pending = None;
            }
            _ => {}
        }
        good += line.len() as u64;
    }
    (records, pending, good, is_whole)
}

fn seen(partial: &PartialTrace) -> (usize, Option<u64>, u64, bool) {
    let pending = partial.pending.as_ref().map(|pending| pending.before.rax);
    assert!(partial.pending.iter().all(|pending| pending.port() == 0xb2));
    (partial.trace.records().len(), pending, partial.len, partial.is_whole)
}

/// Goes on with what is good of a file, and ends it.
fn resumed(file: &[u8], partial: &PartialTrace) -> Trace {
    let start = partial.trace.records().len() + usize::from(partial.pending.is_some());
    let disk = Disk { file: file[..partial.len as usize].to_vec(), ..Disk::default() };
    let writer = TraceWriter::resume(disk, partial).unwrap().write_ahead(sync);
    assert_eq!(writer.records(), start);
    let mut emulator = emulator(&Device::default(), writer);
    emulator.execute(OUT, &mut given(0x77)).unwrap();
    assert_eq!(emulator.events().records(), start + 1);
    Trace::read(&*emulator.into_events().finish().unwrap().file).unwrap()
}

#[test]
fn a_file_cut_off_at_any_byte_names_what_was_pending_and_goes_on() {
    let file = whole();
    let all = Trace::read(&*file).unwrap();
    let first = lines(&file)[0].len();
    for len in 0..=file.len() {
        // Cut off, and cut off with zeros behind it.
        for tail in [&[][..], &[0; 1], &[0; 5000]] {
            let cut = [&file[..len], tail].concat();
            let partial = match Trace::read_partial(&*cut) {
                Ok(partial) => partial,
                Err(error) => {
                    assert!(len < first && error.line == 1, "{len}: {error}");
                    continue;
                }
            };
            assert!(len >= first, "{len}");
            let (records, pending, good, is_whole) = expected(&file, len);
            assert_eq!(seen(&partial), (records, pending, good, is_whole && tail.is_empty()), "{len}");
            assert_eq!(partial.trace.header(), all.header());
            assert_eq!(partial.trace.records(), &all.records()[..records]);
            assert_eq!(Trace::read(&*cut).is_ok(), partial.is_whole);
            let trace = resumed(&file, &partial);
            assert_eq!(trace.records()[..records], all.records()[..records]);
            let [did_not_return @ .., last] = &trace.records()[records..] else { panic!("{len}: no record") };
            assert_eq!((last.before.rax, did_not_return.len()), (0x77, usize::from(pending.is_some())));
            for record in did_not_return {
                assert_eq!((Some(record.before.rax), record.insn), (pending, all.records()[records].insn));
                assert_eq!(record.error, Some(RecordedError::DidNotReturn));
            }
        }
    }
}

/// An error of a reader who takes whole files only says what is pending.
#[test]
fn a_whole_reader_names_the_pending_access() {
    let file = whole();
    let lines = lines(&file);
    for count in 1..lines.len() {
        let error = Trace::read(&*lines[..count].concat()).unwrap_err();
        match error.problem {
            TraceProblem::DidNotReturn { port: 0xb2, insn } if count % 2 == 0 => {
                assert_eq!((insn, error.line), (if count == 12 { OUTS } else { OUT }, count + 1));
            }
            TraceProblem::CutOff if count % 2 == 1 => assert_eq!(error.line, count + 1),
            _ => panic!("{count}: {error}"),
        }
    }
}

#[test]
fn what_is_damaged_is_not_taken_for_cut_off() {
    let file = whole();
    let lines = lines(&file);
    let text = |lines: &[&[u8]]| lines.concat();
    for wrong in [&b"{\"insn\":\"in al, dx\"}\n"[..], b"\n", b"\0\0\0\0\n", b"\xff\xfe\n", b"{\"insn\":\"in al"] {
        // One without a newline takes the next line with it, behind which there has to be another.
        for at in 1..lines.len() - 1 - usize::from(!wrong.ends_with(b"\n")) {
            let mut damaged = lines.clone();
            damaged[at] = wrong;
            let error = Trace::read_partial(&*text(&damaged)).unwrap_err();
            assert_eq!(error.line, at + 1, "{error}");
            // With nothing behind it, it is where the file was cut off; what was pending before it is, still.
            damaged.truncate(at + 1);
            for tail in [&[][..], &[0; 3], b"{\"re", b"\n\n \n", b"\0\n\0\n"] {
                let partial = Trace::read_partial(&*[text(&damaged), tail.to_vec()].concat()).unwrap();
                assert_eq!(seen(&partial), expected(&file, text(&lines[..at]).len()));
            }
        }
    }
    // Zeros in place of a line, or of a part of one, and longer than a line may be: a hole, if something follows.
    for zeros in [1, 4096, 100_000] {
        let limits = TraceLimits::new().line(50_000);
        let hole = vec![0; zeros];
        for (before, after) in [(4, 4), (4, 5), (4, 13)] {
            for torn in [&[][..], b"{\"ins"] {
                let damaged = [&text(&lines[..before]), torn, &hole, &text(&lines[after..])].concat();
                let error = Trace::read_partial_with(&*damaged, limits).unwrap_err();
                assert_eq!(error.line, before + 1, "{zeros} {after}: {error}");
                let cut = [&text(&lines[..before]), torn, &hole, b"{\"ins", &hole[..zeros / 2]].concat();
                let partial = Trace::read_partial_with(&*cut, limits).unwrap();
                assert_eq!(seen(&partial), expected(&file, text(&lines[..before]).len()));
            }
        }
    }
    // Behind the last line.
    let partial = Trace::read_partial(&*[&*file, b"{\"ab"].concat()).unwrap();
    assert_eq!(seen(&partial).2, (file.len() - lines[13].len()) as u64);
    assert!(!partial.is_whole);
    let error = Trace::read_partial(&*[&*file, lines[1]].concat()).unwrap_err();
    assert!(error.line == 15 && matches!(error.problem, TraceProblem::AfterTheEnd), "{error}");
    // What is right in itself contradicts what is before it, at the end as well.
    for (wrong, number) in [(lines[1], 3), (lines[4], 3), (lines[13], 3)] {
        let error = Trace::read_partial(&*[lines[0], lines[1], wrong].concat()).unwrap_err();
        assert!(error.line == number && matches!(error.problem, TraceProblem::Mismatch { .. }), "{error}");
    }
    let error = Trace::read_partial(&*[&text(&lines[..5]), lines[13]].concat()).unwrap_err();
    assert!(matches!(error.problem, TraceProblem::Count { stated: 6, found: 2 }), "{error}");
    // And a limit is no cut.
    let error = Trace::read_partial_with(&*file, TraceLimits::new().records(5)).unwrap_err();
    assert!(matches!(error.problem, TraceProblem::TooManyRecords { limit: 5 }), "{error}");
    let long = lines[..3].iter().map(|line| line.len() - 1).max().unwrap();
    for last in [3, 14] {
        let limit = if last == 3 { long - 5 } else { 60 };
        let error = Trace::read_partial_with(&*text(&lines[..last]), TraceLimits::new().line(limit)).unwrap_err();
        assert!(matches!(error.problem, TraceProblem::LongLine { limit: stated } if stated == limit), "{error}");
    }
    assert!(Trace::read_partial_with(&*text(&lines[..3]), TraceLimits::new().line(long)).is_ok());
}

#[test]
fn what_is_no_trace_is_not_read_in_part() {
    let version = |error: ioemul::trace::TraceError| matches!(error.problem, TraceProblem::Version { found: 3 });
    assert!(version(Trace::read_partial(&b"{\"ioemul-trace\":3,\"when\":1}\n"[..]).unwrap_err()));
    for text in ["", "\n", "#!/bin/sh\n", "{}\n", "{\"ioemul-trace\":2}", "\0\0\0\0", "{\"records\":0}\n"] {
        assert_eq!(Trace::read_partial(text.as_bytes()).unwrap_err().line, 1, "{text:?}");
    }
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk does not answer"))
        }
    }
    let start = &b"{\"ioemul-trace\":2}\n"[..];
    for rest in [&b""[..], b"{\"insn\"", b"wrong\n", b"{\"records\":0}\n"] {
        let error = Trace::read_partial(start.chain(rest).chain(BufReader::new(Fails))).unwrap_err();
        assert!(matches!(error.problem, TraceProblem::Read(_)), "{error}");
    }
}

/// A file of version 1 is read, and nothing is written behind it that it has no place for.
#[test]
fn a_file_of_version_1_does_not_go_on() {
    let file = "{\"ioemul-trace\":1}\n{\"insn\":\"in al, dx\",\"before\":{}}\n";
    let partial = Trace::read_partial(file.as_bytes()).unwrap();
    assert_eq!((partial.trace.records().len(), partial.len), (1, file.len() as u64));
    let error = TraceWriter::resume(Vec::new(), &partial).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let limited = TraceLimits::new().records(0);
    assert!(Trace::read_partial_with(file.as_bytes(), limited).is_err());
}

/// Stops all accesses, and hears of none.
struct Stops;

impl Events for Stops {
    fn approve(&mut self, _: &Attempt<'_>) -> Result<(), DeviceError> {
        Err("not now".into())
    }

    fn before(&mut self, _: &Attempt<'_>) {
        panic!("told of an access that is not made");
    }

    fn after(&mut self, _: &Attempt<'_>, _: &Outcome<'_>) {
        panic!("told of an access that is not made");
    }
}

/// Nothing is made with a listener that stops it: of every kind of instruction, in every layout.
fn stops(listen: impl Fn() -> Box<dyn DynEvents>) {
    for layout in StubLayout::ALL.iter().copied().map(Some).chain([None]) {
        let device = Device::default();
        let mut emulator = on(layout, &device, listen());
        let (mut gprs, mut memory) = (given(1), [7; 3]);
        let out = emulator.execute(OUT, &mut gprs).unwrap_err();
        assert_eq!(out.to_string(), "OUT of 1 byte to port 0x00b2 was not made: the listener stopped it: not now");
        let errors = [
            out,
            emulator.emulate(&[0xec], &mut gprs).unwrap_err(),
            emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut memory).unwrap_err(),
            emulator.write_string(OUTS, &mut gprs, &memory).unwrap_err(),
            emulator
                .read_string_partial(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut memory[..1])
                .map(drop)
                .unwrap_err(),
            emulator.port_out(0xb2, Width::Byte, 1).unwrap_err(),
        ];
        for error in errors {
            let Error::Stopped { access, source } = &error else { panic!("{error}") };
            assert_eq!((access.port, &*source.to_string()), (0xb2, "not now"));
        }
        assert_eq!((gprs, memory, device.0.load(Ordering::Relaxed)), (given(1), [7; 3], 0), "{layout:?}");
        // What is denied is not asked about.
        let error = emulator.port_in(0x60, Width::Byte).unwrap_err();
        assert!(matches!(error, Error::PortDenied { .. }), "{error}");
    }
}

/// Asked first, and stopped by another: told nothing.
#[derive(Clone, Default)]
struct Asked(Arc<AtomicUsize>);

impl Events for Asked {
    fn approve(&mut self, _: &Attempt<'_>) -> Result<(), DeviceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn before(&mut self, _: &Attempt<'_>) {
        panic!("told of an access that is not made");
    }
}

#[test]
fn a_listener_stops_an_access_wherever_it_is() {
    stops(|| Box::new(Stops));
    stops(|| Box::new(Box::new(Stops)));
    stops(|| Box::new(Some(Stops)));
    stops(|| Box::new((NoEvents, Stops)));
    stops(|| Box::new((Stops, NoEvents)));
    stops(|| Box::new(Box::leak(Box::new(Stops))));
    stops(|| Box::new((NoEvents, Some(Box::new(Stops) as Box<dyn DynEvents + Send>))));
    stops(|| Box::new(Box::new(Stops) as Box<dyn DynEvents + Send + Sync>));
    // The first of two is asked first, and the second not where the first one stops it.
    for (order, count) in [(true, 1), (false, 0)] {
        let asked = Asked::default();
        let device = Device::default();
        let pair: Box<dyn DynEvents> =
            if order { Box::new((asked.clone(), Stops)) } else { Box::new((Stops, asked.clone())) };
        emulator(&device, pair).execute(OUT, &mut given(1)).unwrap_err();
        assert_eq!(asked.0.load(Ordering::Relaxed), count);
    }
    // One that is not there stops nothing.
    emulator(&Device::default(), None::<Stops>).execute(OUT, &mut given(1)).unwrap();
}

/// What a quirk stands for is asked about once, and none of its accesses is made.
#[test]
fn an_instruction_with_a_quirk_is_stopped_as_a_whole() {
    for listener in [Box::new(Stops) as Box<dyn DynEvents>, Box::new((NoEvents, Stops))] {
        let device = Device::default();
        let mut bus = SoftwareBus::new();
        bus.attach(0x80..=0xb3, device.clone()).unwrap();
        let builder = IoEmulator::builder().quirks(QuirkTable::from_iter([Quirk::DELL_SMM])).ports(PortSet::all());
        let mut emulator = builder.bus(bus).events(listener).build().unwrap();
        let mut gprs = given(0xa3);
        let error = emulator.execute(OUT, &mut gprs).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        assert_eq!((gprs, device.0.load(Ordering::Relaxed)), (given(0xa3), 0));
    }
}

/// An access that cannot be announced is not made, nor is any after it, and nothing more is written.
#[test]
fn what_cannot_be_announced_is_not_made() {
    type Break = fn(&mut Disk);
    let breaks: [(Break, io::ErrorKind); 2] = [
        (|disk| disk.is_broken = true, io::ErrorKind::Other),
        (|disk| disk.is_full = true, io::ErrorKind::StorageFull),
    ];
    for (breaks, kind) in breaks {
        let device = Device::default();
        let mut emulator = emulator(&device, (NoEvents, Some(ahead_of(breaks))));
        for rax in 1..=2 {
            emulator.execute(OUT, &mut given(rax)).unwrap();
        }
        for _ in 0..3 {
            for insn in [OUT, OUTS] {
                let mut gprs = given(9);
                let error = match insn.is_string() {
                    true => emulator.write_string(insn, &mut gprs, &[1; 3]).map(drop).unwrap_err(),
                    false => emulator.execute(insn, &mut gprs).unwrap_err(),
                };
                let Error::Stopped { source, .. } = &error else { panic!("{error}") };
                assert_eq!(source.downcast_ref::<io::Error>().unwrap().kind(), kind);
                let message = "OUT of 1 byte to port 0x00b2 was not made: the listener stopped it: it could not be written to \
                               the trace beforehand: ";
                assert!(error.to_string().starts_with(message), "{error}");
                assert_eq!(gprs, given(9));
            }
        }
        assert_eq!(device.0.load(Ordering::Relaxed), 2);
        let writer = emulator.into_events().1.unwrap();
        assert_eq!((writer.records(), writer.error().unwrap().kind()), (2, kind));
        assert_eq!(writer.finish().unwrap_err().kind(), kind);
    }
}

/// Writes ahead to a disk that breaks with the third access.
fn ahead_of(breaks: fn(&mut Disk)) -> TraceWriter<Breaking> {
    let disk = Breaking { disk: Disk::default(), announced: 0, breaks };
    TraceWriter::new(disk).unwrap().write_ahead(|breaking| sync(&mut breaking.disk))
}

#[derive(Debug)]
struct Breaking {
    disk: Disk,
    announced: usize,
    breaks: fn(&mut Disk),
}

impl Write for Breaking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.announced += usize::from(bytes.starts_with(b"{\"about_to\""));
        if self.announced == 3 {
            (self.breaks)(&mut self.disk);
        }
        assert!(self.announced <= 3, "written to after it broke");
        self.disk.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A record that cannot be written ends the recording, and the access after it is not made.
#[test]
fn after_a_record_that_was_lost_nothing_is_made() {
    #[derive(Debug)]
    struct NoRecords;
    impl Write for NoRecords {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.starts_with(b"{\"insn\"") {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(bytes.len()),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let device = Device::default();
    let mut emulator = emulator(&device, TraceWriter::new(NoRecords).unwrap().write_ahead(|_| Ok(())));
    emulator.execute(OUT, &mut given(1)).unwrap();
    let error = emulator.execute(OUT, &mut given(2)).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert_eq!(device.0.load(Ordering::Relaxed), 1);
}

const CHILD: &str = "IOEMUL_TEST_TRACE_OF_CHILD";

/// Says that an access has come, and never returns from the one with the value 2.
struct Hangs;

impl PortDevice for Hangs {
    fn try_access(&mut self, _: PortAccess, value: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
        if value == 2 {
            println!("\nhanging");
            loop {
                std::thread::park();
            }
        }
        Ok(0)
    }
}

/// The child of the test below, and nothing by itself.
#[test]
fn a_child_that_hangs() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mut bus = SoftwareBus::new();
    bus.attach(0xb2..=0xb2, Hangs).unwrap();
    let writer = TraceWriter::new(File::create(path).unwrap()).unwrap().write_ahead(|file| file.sync_data());
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).events(writer).build().unwrap();
    for rax in 0.. {
        emulator.execute(OUT, &mut given(rax)).unwrap();
    }
}

#[test]
fn a_process_that_is_killed_in_an_access_has_named_it() {
    let path: PathBuf = std::env::temp_dir().join(format!("ioemul-killed-{}.trace", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_that_hangs", "--nocapture", "--test-threads=1"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let hangs = BufReader::new(child.stdout.take().unwrap()).lines().any(|line| line.unwrap() == "hanging");
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(hangs);

    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    let partial = Trace::read_partial(BufReader::new(&file)).unwrap();
    let pending = partial.pending.as_ref().unwrap();
    assert_eq!((pending.insn, pending.before, pending.port()), (OUT, given(2), 0xb2));
    assert_eq!((partial.trace.records().len(), partial.is_whole), (2, false));
    assert_eq!(partial.len, file.metadata().unwrap().len());
    file.seek(SeekFrom::Start(partial.len)).unwrap();
    TraceWriter::resume(file, &partial).unwrap().finish().unwrap();
    let trace = Trace::read(BufReader::new(File::open(&path).unwrap())).unwrap();
    let Record { before, error, .. } = &trace.records()[2];
    assert_eq!((before.rax, error), (2, &Some(RecordedError::DidNotReturn)));
    fs::remove_file(&path).unwrap();
}
