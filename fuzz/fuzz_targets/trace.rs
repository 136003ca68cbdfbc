//! Any bytes as a trace file: read or refused with the number of a line that is there, and what is read is written and
//! read again, and played back, strictly and leniently, without a panic.
#![no_main]

use ioemul::trace::{Record, Trace};
use ioemul::{Direction, Error, IoEmulator, IoInsn, PortSet, SoftwareBus};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let lines = file.split_inclusive(|byte| *byte == b'\n').count();
    let trace = match Trace::read(file) {
        Ok(trace) => trace,
        Err(error) => {
            assert!((1..=lines + 1).contains(&error.line), "{error}");
            return;
        }
    };
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
