//! Any bytes as a trace file: read or refused with the number of a line that is there, and what is read is written and
//! read again, and played back, strictly and leniently, without a panic. Read in part, a whole file is the same trace; cut off
//! anywhere, with zeros behind it or without, it keeps the records that are there, and goes on.
#![no_main]

use ioemul::trace::{PartialTrace, Record, RecordedError, Trace, TraceWriter};
use ioemul::{Direction, Error, IoEmulator, IoInsn, PortSet, SoftwareBus};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let lines = file.split_inclusive(|byte| *byte == b'\n').count();
    let partial = Trace::read_partial(file);
    let trace = match Trace::read(file) {
        Ok(trace) => trace,
        Err(error) => {
            assert!((1..=lines + 1).contains(&error.line), "{error}");
            match partial {
                Ok(partial) => check_partial(file, &partial),
                Err(error) => assert!((1..=lines + 1).contains(&error.line), "{error}"),
            }
            return;
        }
    };
    let partial = partial.unwrap();
    assert!(partial.is_whole && partial.pending.is_none() && partial.trace == trace);
    check_partial(file, &partial);
    // Cut off at any place: at one that depends on the file, so that the fuzzer finds all of them.
    let at = file.iter().fold(0, |at: usize, byte| at.wrapping_mul(31).wrapping_add(usize::from(*byte))) % file.len();
    for zeros in [0, 3] {
        let cut = [&file[..at], &vec![0; zeros]].concat();
        let Ok(partial) = Trace::read_partial(&*cut) else {
            assert!(!file[..at].contains(&b'\n'), "cut off behind the first line");
            continue;
        };
        assert!(!partial.is_whole && partial.len <= at as u64);
        assert!(trace.records().starts_with(partial.trace.records()));
        check_partial(&cut, &partial);
    }

    let mut written = Vec::new();
    trace.write(&mut written).unwrap();
    assert_eq!(Trace::read(&*written).as_ref().ok(), Some(&trace));
    let mut again = Vec::new();
    trace.write(&mut again).unwrap();
    assert_eq!(again, written);

    for record in trace.records() {
        assert_eq!(record.insn.to_string().parse::<IoInsn>(), Ok(record.insn));
    }
    let (bus, progress) = trace.clone().replay().strict();
    play(bus, trace.records());
    assert!(progress.replayed() <= trace.records().len());
    let (bus, progress) = trace.clone().replay().lenient();
    play(bus, trace.records());
    let _ = progress.finish();
});

/// What is good of a file reads as the same again, and goes on to a whole one.
fn check_partial(file: &[u8], partial: &PartialTrace) {
    let good = &file[..partial.len as usize];
    let again = Trace::read_partial(good).unwrap();
    assert_eq!((&again.trace, &again.pending, again.len), (&partial.trace, &partial.pending, partial.len));
    assert!(!again.is_whole);
    let Ok(writer) = TraceWriter::resume(good.to_vec(), partial) else { return }; // of version 1
    let count = writer.records();
    let whole = Trace::read(&*writer.finish().unwrap()).unwrap();
    assert_eq!(whole.records().len(), count);
    let (read, rest) = whole.records().split_at(partial.trace.records().len());
    assert_eq!(read, partial.trace.records());
    let did_not_return = rest.iter().map(|record| (record.insn, record.before));
    assert!(did_not_return.eq(partial.pending.iter().map(|pending| (pending.insn, pending.before))));
    assert!(rest.iter().all(|record| record.error == Some(RecordedError::DidNotReturn)));
}

/// Makes the recorded accesses.
fn play(bus: SoftwareBus, records: &[Record]) {
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).build().unwrap();
    for record in records {
        let mut gprs = record.before;
        match emulator.execute(record.insn, &mut gprs) {
            Ok(()) => {}
            Err(Error::StringForm { insn }) => {
                let mut memory = record.data.clone();
                let _ = match insn.direction {
                    Direction::In => emulator.read_string(insn, &mut gprs, &mut memory),
                    _ => emulator.write_string(insn, &mut gprs, &memory),
                };
            }
            Err(_) => assert_eq!(gprs, record.before),
        }
    }
}
