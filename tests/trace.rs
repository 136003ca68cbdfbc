//! Trace files: what is written is read back, and whatever is not a trace is refused by its line.
#![cfg(feature = "trace")]

use std::io;
use std::time::Duration;

use ioemul::devices::Latch;
use ioemul::trace::{Record, RecordedError, Trace, TraceError, TraceHeader, TraceProblem, TraceWriter};
use ioemul::{
    DeviceError, Error, Gprs, IoEmulator, IoFault, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus, Width,
};
use proptest::prelude::*;

const FILE: &str = r#"{"ioemul-trace":2}
{"insn":"out dx, al","before":{"rax":"0x85","rdx":"0xcd4"},"after":{"rflags":"0x246"}}
{"insn":"in al, dx","before":{"rax":"0x85","rdx":"0xcd4"},"after":{"rax":"0x5","rflags":"0x246"}}
{"insn":"out 0x80, al","before":{},"fault":{"vector":13,"error_code":0,"address":"0x0"}}
{"insn":"rep insb","before":{"rcx":"0x2","rdx":"0x1f0"},"after":{"rcx":"0x0","rdi":"0x2"},"data":"a55a"}
{"insn":"in eax, 0x70","before":{},"refused":"says \"no\""}
{"records":5}
"#;

fn read(file: &str) -> Result<Trace, TraceError> {
    Trace::read(file.as_bytes())
}

fn written(trace: &Trace) -> String {
    let mut file = Vec::new();
    trace.write(&mut file).unwrap();
    String::from_utf8(file).unwrap()
}

/// The documented file, with a line replaced.
fn with_line(number: usize, line: &str) -> String {
    let lines: Vec<_> = FILE.lines().enumerate().map(|(i, old)| if i + 1 == number { line } else { old }).collect();
    lines.join("\n") + "\n"
}

#[test]
fn the_documented_file() {
    let trace = read(FILE).unwrap();
    assert_eq!(written(&trace), FILE);
    let [call, poll, fault, string, refused] = trace.records() else { panic!("five records") };
    assert_eq!((call.insn, call.port()), (IoInsn::out_dx(Width::Byte), 0xcd4));
    assert_eq!(poll.after, Gprs { rax: 5, rflags: 0x246, ..poll.before });
    assert!(matches!(fault.error, Some(RecordedError::Fault(fault)) if fault.vector == 13));
    assert_eq!((string.after.rcx, string.after.rdi, &string.data[..]), (0, 2, &[0xa5, 0x5a][..]));
    assert_eq!(refused.error, Some(RecordedError::Refused("says \"no\"".into())));
}

#[test]
fn a_file_of_version_1_is_read_as_before() {
    let old = FILE.replace("\"ioemul-trace\":2", "\"ioemul-trace\":1");
    assert_eq!(read(&old).unwrap(), read(FILE).unwrap());
    assert_eq!(written(&read(&old).unwrap()), FILE);
}

/// Keys for others, in the order of an object or out of it, with values of every kind.
#[test]
fn keys_of_others_are_ignored_in_every_line() {
    let file = r#"{"ioemul-trace":2,"on":"hardware","cpu":"Xeon","smi_port":"0xb2","port_source":"FADT","reserved_codes":[["0xf1","ACPI_ENABLE"]]}
{"about_to":"out 0xb2, al","before":{"rax":"0x5a"}}
{"insn":"out 0xb2, al","before":{"rax":"0x5a"},"after":{"rbx":"0x1"},"ns":9812}
{"insn":"in al, dx","before":{},"returned":false}
{"records":2}
"#;
    let trace = read(file).unwrap();
    let mut header = TraceHeader::default().on("hardware").cpu("Xeon").port_source("FADT");
    (header.smi_port, header.reserved_codes) = (Some(0xb2), vec![(0xf1, "ACPI_ENABLE".to_owned())]);
    assert_eq!(*trace.header(), header);
    let [call, hang] = trace.records() else { panic!("two records") };
    assert_eq!((call.duration, hang.duration), (Some(Duration::from_nanos(9812)), None));
    assert_eq!((hang.error.clone(), hang.after), (Some(RecordedError::DidNotReturn), hang.before));
    for value in ["1", "null", "true", "\"text\"", r#"{"insn":[1,{"records":5}]}"#, "[]", "-1e9"] {
        for key in ["x-", "x-insn", "x-é", r"x-\u0041"] {
            let own = format!("\"{key}\":{value}");
            let first = |line: &str| line.replacen('{', &format!("{{{own},{own},"), 1) + "\n";
            let last = |line: &str| format!("{},{own}}}\n", line.strip_suffix('}').unwrap());
            for put in [&first as &dyn Fn(&str) -> String, &last] {
                assert_eq!(read(&file.lines().map(put).collect::<String>()).unwrap(), trace, "{own}");
                let old = file.replacen("trace\":2", "trace\":1", 1);
                assert_eq!(read(&old.lines().map(put).collect::<String>()).unwrap(), trace, "{own}");
            }
        }
    }
    for key in ["x", "X-a", "-x-a", "", " x-a", "x_a"] {
        for at in 0..file.lines().count() {
            let line = |(i, line): (usize, &str)| match i == at {
                true => line.replacen('{', &format!("{{\"{key}\":1,"), 1) + "\n",
                false => format!("{line}\n"),
            };
            let error = read(&file.lines().enumerate().map(line).collect::<String>()).unwrap_err();
            assert_eq!(error.line, at + 1, "{key}: {error}");
            assert!(error.to_string().contains("unknown field"), "{error}");
        }
    }
}

/// The examples of the documentation are files, or lines of one.
#[test]
fn the_examples_of_the_documentation() {
    const DOC: &str = include_str!("../docs/trace.md");
    let examples: Vec<_> = DOC.split("```text\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [whole, cut_off, did_not_return, old] = examples[..] else { panic!("{} examples", examples.len()) };
    let trace = read(whole).unwrap();
    assert_eq!(trace.records().len(), 6);
    assert_eq!(trace.header().machine, "ProLiant DL360 Gen9");
    // Written again, it is the same but for announcements and the keys of others.
    let plain = whole.lines().filter(|line| !line.contains("about_to")).map(|line| format!("{line}\n"));
    assert_eq!(written(&trace), plain.collect::<String>().replace(",\"x-comment\":\"sent by hand\"", ""));

    let partial = Trace::read_partial(cut_off.trim_end().as_bytes()).unwrap();
    let pending = partial.pending.clone().unwrap();
    assert_eq!((partial.trace.records().len(), pending.before.rax, pending.port()), (1, 0x5a, 0xb2));
    let lines: usize = cut_off.split_inclusive('\n').take(4).map(str::len).sum();
    assert_eq!((partial.len, partial.is_whole), (lines as u64, false));
    let file = TraceWriter::resume(cut_off.as_bytes()[..lines].to_vec(), &partial).unwrap().finish().unwrap();
    let end = String::from_utf8(file[lines..].to_vec()).unwrap();
    assert_eq!(end, format!("{did_not_return}{{\"records\":2}}\n"));

    assert_eq!(read(old).unwrap().records().len(), 2);
    assert!(old.starts_with("{\"ioemul-trace\":1}\n"));
}

#[test]
fn every_way_of_cutting_it_off_is_an_error_of_its_last_line() {
    for end in 0..FILE.len() {
        let error = read(&FILE[..end]).unwrap_err();
        assert_eq!(error.line, FILE[..end].matches('\n').count() + 1, "{end}");
        assert!(matches!(error.problem, TraceProblem::CutOff), "{end}: {error}");
    }
}

#[test]
fn a_line_missing_or_twice_is_noticed() {
    let lines: Vec<_> = FILE.split_inclusive('\n').collect();
    for gone in 0..lines.len() {
        let file: String = lines.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, line)| *line).collect();
        read(&file).unwrap_err();
        let file: String =
            lines.iter().enumerate().flat_map(|(i, line)| [*line].repeat(1 + usize::from(i == gone))).collect();
        read(&file).unwrap_err();
    }
}

#[test]
fn messages_name_the_line_and_what_is_wrong() {
    let cases = [
        (String::new(), "trace, line 1: the file is cut off: a trace ends with a line such as {\"records\":7}"),
        ("#!/bin/sh\n".into(), "trace, line 1: not a trace: a trace begins with {\"ioemul-trace\":2}"),
        (
            with_line(1, r#"{"ioemul-trace":3,"new":1}"#),
            "trace, line 1: the format has version 3, and this program reads versions 1 to 2",
        ),
        (
            with_line(1, r#"{"ioemul-trace":0}"#),
            "trace, line 1: the format has version 0, and this program reads versions 1 to 2",
        ),
        (
            with_line(1, r#"{"ioemul-trace":2,"machin":"x"}"#),
            "trace, line 1: column 26: unknown field `machin`, expected one of `ioemul-trace`, `on`, `machine`, `bios`, \
             `date`, `cpu`, `smi_port`, `port_source`, `reserved_codes`",
        ),
        (
            with_line(1, r#"{"ioemul-trace":2,"smi_port":"0x10000"}"#),
            "trace, line 1: column 39: 0x10000 has more than 16 bits",
        ),
        (
            with_line(3, r#"{"about_to":"in al, dx","before":{"rdx":"0x71"},"after":{}}"#),
            "trace, line 3: column 55: unknown field `after`, expected `about_to` or `before`",
        ),
        (
            with_line(6, r#"{"about_to":"in al, dx","before":{"rdx":"0x71"}}"#),
            "trace, line 7: the line before says that `in al, dx` was about to be executed on port 0x0071, and this is \
             not its record",
        ),
        (
            with_line(2, r#"{"about_to":"in al, dx","before":{"rdx":"0x71"}}"#),
            "trace, line 3: the line before says that `in al, dx` was about to be executed on port 0x0071, and this is \
             not its record",
        ),
        (
            with_line(7, r#"{"about_to":"in al, dx","before":{"rdx":"0x71"}}"#),
            "trace, line 8: the file is cut off: `in al, dx` on port 0x0071 was about to be executed, and what came of it is \
             not there: `Trace::read_partial` reads what is",
        ),
        (
            with_line(4, r#"{"insn":"out 0x80, al","before":{},"returned":false,"refused":"x"}"#),
            "trace, line 4: a record has one of `fault`, `refused` and `\"returned\":false`, and this one has several",
        ),
        (with_line(7, r#"{"records":-1}"#), "trace, line 7: column 13: invalid value: integer `-1`, expected usize"),
        (with_line(1, "[2]"), "trace, line 1: not a trace: a trace begins with {\"ioemul-trace\":2}"),
        (with_line(7, "[5]"), "trace, line 7: column 1: invalid type: sequence, expected an object"),
        (
            with_line(2, r#"{"insn":"mov eax, 1","before":{}}"#),
            "trace, line 2: `mov eax, 1`: not a port-I/O instruction as in `in al, dx`, `out 0x80, eax` or `rep insb`",
        ),
        (with_line(3, r#"{"insn":"in al, dx","before":{"#), "trace, line 3: column 30: EOF while parsing an object"),
        (with_line(3, r#"{"insn":"in al, dx"}"#), "trace, line 3: column 20: missing field `before`"),
        (
            with_line(3, r#"{"insn":"in al, dx","before":{"rsp":"0x1"}}"#),
            "trace, line 3: column 42: no register is called `rsp`",
        ),
        (
            with_line(3, r#"{"insn":"in al, dx","before":{"rax":"0x1","rax":"0x2"}}"#),
            "trace, line 3: column 54: register `rax` twice",
        ),
        (
            with_line(3, r#"{"insn":"in al, dx","before":{"rax":"10"}}"#),
            "trace, line 3: column 41: `10` is not a 64-bit number such as 0x1f",
        ),
        (
            with_line(3, r#"{"insn":"in al, dx","before":{"rax":1}}"#),
            "trace, line 3: column 37: invalid type: integer `1`, expected a string",
        ),
        (
            with_line(3, r#"{"insn":"in al, dx","before":{},"comment":"x"}"#),
            "trace, line 3: column 41: unknown field `comment`, expected one of `insn`, `before`, `after`, `data`, `fault`, \
             `refused`, `returned`, `ns`",
        ),
        (
            with_line(5, r#"{"insn":"rep insb","before":{"rcx":"0x3"},"data":"a55a"}"#),
            "trace, line 5: `rep insb` asks for 3 bytes, and `data` holds 2",
        ),
        (
            with_line(5, r#"{"insn":"in al, dx","before":{},"data":"a5"}"#),
            "trace, line 5: `in al, dx` asks for 0 bytes, and `data` holds 1",
        ),
        (
            with_line(5, r#"{"insn":"insb","before":{},"data":"a"}"#),
            "trace, line 5: `data` is not a list of bytes, two hexadecimal digits each",
        ),
        (
            with_line(
                5,
                r#"{"insn":"in al, dx","before":{},"refused":"","fault":{"vector":13,"error_code":0,"address":"0x0"}}"#,
            ),
            "trace, line 5: a record has one of `fault`, `refused` and `\"returned\":false`, and this one has several",
        ),
        (with_line(7, r#"{"records":6}"#), "trace, line 7: the last line states 6 records, and there are 5"),
        (format!("{FILE}\n"), "trace, line 8: there is more after the line that ends the trace"),
    ];
    for (file, message) in cases {
        assert_eq!(read(&file).unwrap_err().to_string(), message);
    }
    let not_text = Trace::read(&b"{\"ioemul-trace\":1}\n\xff\n"[..]).unwrap_err().to_string();
    assert_eq!(not_text, "trace, line 2: column 1: expected value");
}

/// A file on a disk that fills up.
struct Disk {
    room: usize,
}

impl io::Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn emulator(disk: Disk) -> IoEmulator<TraceWriter<Disk>> {
    let mut bus = SoftwareBus::new();
    bus.attach(0xe0..=0xe3, Latch::new(0xe0)).unwrap();
    let builder = IoEmulator::builder().ports(PortSet::all()).bus(bus);
    builder.events(TraceWriter::new(disk).unwrap()).build().unwrap()
}

#[test]
fn a_full_disk_ends_the_recording_and_not_the_emulator() {
    let mut emulator = emulator(Disk { room: 130 });
    for _ in 0..10 {
        emulator.execute(IoInsn::in_imm8(Width::Byte, 0xe0), &mut Gprs::default()).unwrap();
    }
    let recorder = emulator.into_events();
    assert_eq!(recorder.records(), 2);
    assert_eq!(recorder.error().unwrap().kind(), io::ErrorKind::StorageFull);
    assert_eq!(recorder.finish().map(drop).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(TraceWriter::new(Disk { room: 3 }).is_err());
}

#[test]
fn a_writer_and_a_trace_write_the_same() {
    let steps = |emulator: &mut dyn FnMut(IoInsn, &mut Gprs)| {
        let mut gprs = Gprs { rax: 0x1234_5678, ..Gprs::default() };
        emulator(IoInsn::out_imm8(Width::Dword, 0xe0), &mut gprs);
        emulator(IoInsn::in_imm8(Width::Word, 0xe1), &mut gprs);
    };
    let builder = || {
        let mut bus = SoftwareBus::new();
        bus.attach(0xe0..=0xe3, Latch::new(0xe0)).unwrap();
        IoEmulator::builder().ports(PortSet::all()).bus(bus)
    };
    // Both listen to one emulator.
    let mut both = builder().events((Trace::new(), TraceWriter::new(Vec::new()).unwrap())).build().unwrap();
    steps(&mut |insn, gprs| both.execute(insn, gprs).unwrap());
    let (trace, writer) = both.into_events();
    assert_eq!(String::from_utf8(writer.finish().unwrap()).unwrap(), written(&trace));
}

/// What is refused and what faults is written with its error, as a trace in memory has it.
#[test]
fn a_writer_has_faults_and_refusals() {
    struct Models;
    impl PortDevice for Models {
        fn try_access(&mut self, access: PortAccess, _: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
            match access.port {
                0x10 => Err("out of paper".into()),
                // A fault as the CPU reports it, which a device model may stand for.
                _ => Err(Box::new(fault())),
            }
        }
    }
    fn fault() -> IoFault {
        let file = format!("{}\n{}\n{{\"records\":1}}\n", FILE.lines().next().unwrap(), FILE.lines().nth(3).unwrap());
        match read(&file).unwrap().records()[0].error {
            Some(RecordedError::Fault(fault)) => fault,
            ref other => panic!("{other:?}"),
        }
    }
    let mut bus = SoftwareBus::new();
    bus.attach(0x10..=0x11, Models).unwrap();
    let events = (Trace::new(), TraceWriter::new(Vec::new()).unwrap());
    let mut emulator = IoEmulator::builder().ports(PortSet::from(0x10..=0x11)).bus(bus).events(events).build().unwrap();
    let mut gprs = Gprs { rax: 0x85, rcx: 2, rdx: 0x10, ..Gprs::default() };
    let error = emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error}");
    let error = emulator.execute(IoInsn::in_imm8(Width::Byte, 0x11), &mut gprs).unwrap_err();
    assert!(matches!(error, Error::Fault { fault: same, .. } if same == fault()), "{error}");
    emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut [0; 2]).unwrap_err();
    emulator.execute(IoInsn::in_imm8(Width::Byte, 0x12), &mut gprs).unwrap_err(); // denied, and not recorded
    let (trace, writer) = emulator.into_events();
    assert_eq!(writer.records(), 3);
    let file = String::from_utf8(writer.finish().unwrap()).unwrap();
    assert_eq!(file, written(&trace));
    let ns = |record: &Record| format!(r#","ns":{}"#, record.duration.unwrap().as_nanos());
    let untimed = trace.records().iter().fold(file.clone(), |file, record| file.replacen(&ns(record), "", 1));
    assert_eq!(
        untimed,
        r#"{"ioemul-trace":2}
{"insn":"out dx, al","before":{"rax":"0x85","rcx":"0x2","rdx":"0x10"},"refused":"out of paper"}
{"insn":"in al, 0x11","before":{"rax":"0x85","rcx":"0x2","rdx":"0x10"},"fault":{"vector":13,"error_code":0,"address":"0x0"}}
{"insn":"rep insb","before":{"rax":"0x85","rcx":"0x2","rdx":"0x10"},"refused":"out of paper"}
{"records":3}
"#
    );
    assert_eq!(read(&file).unwrap(), trace);
}

fn any_record() -> impl Strategy<Value = Record> {
    let gprs = || {
        let word = prop_oneof![Just(0), any::<u64>()];
        prop::array::uniform16(word).prop_map(Gprs::from_words)
    };
    let insn = (0..IoInsn::COUNT + IoInsn::STRING_COUNT).prop_map(|index| IoInsn::all().nth(index).unwrap());
    let error = prop_oneof![
        any::<String>().prop_map(RecordedError::Refused),
        Just(RecordedError::DidNotReturn),
        any::<(u8, u16, u64)>().prop_map(|(v, code, address)| RecordedError::Fault(IoFault::new(v, code, address))),
    ];
    let duration = prop::option::of(any::<u64>().prop_map(Duration::from_nanos));
    let end = (prop::option::of(error), duration);
    (insn, gprs(), gprs(), 0..20_u64, end).prop_map(|(insn, mut before, after, count, (error, duration))| {
        let mut data = Vec::new();
        if let ioemul::PortOperand::String { rep, .. } = insn.operand {
            before.rcx = count;
            let elements = if rep { count as usize } else { 1 };
            data = (0..elements * usize::from(insn.width.bytes())).map(|i| i as u8).collect();
            if error.is_some() {
                data.truncate(data.len() / 2);
            }
        }
        Record { insn, before, after, data, error, duration }
    })
}

fn any_header() -> impl Strategy<Value = TraceHeader> {
    let facts = (any::<Option<u16>>(), prop::collection::vec(any::<(u8, String)>(), 0..3));
    (any::<[String; 6]>(), facts).prop_map(|([on, machine, bios, date, cpu, port_source], facts)| {
        let header = TraceHeader::default().on(on).machine(machine).bios(bios);
        let mut header = header.date(date).cpu(cpu).port_source(port_source);
        (header.smi_port, header.reserved_codes) = facts;
        header
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(records in prop::collection::vec(any_record(), 0..8), header in any_header()) {
        let trace = Trace::from_iter(records).with_header(header);
        let file = written(&trace);
        prop_assert_eq!(file.lines().count(), trace.records().len() + 2);
        prop_assert_eq!(Trace::read(file.as_bytes()).unwrap(), trace);
    }

    /// A flipped bit gives another trace or an error, and never anything else.
    #[test]
    fn a_corrupted_file_does_no_harm(position in 0..FILE.len(), bit in 0..8) {
        let mut file = FILE.as_bytes().to_vec();
        file[position] ^= 1u8 << bit;
        if let Err(error) = Trace::read(&file[..]) {
            prop_assert!((1..=8).contains(&error.line));
        }
    }

    #[test]
    fn any_bytes_at_all(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Trace::read(&bytes[..]).is_err());
        let file = [FILE.lines().next().unwrap().as_bytes(), b"\n", &bytes].concat();
        prop_assert!(Trace::read(&file[..]).is_err());
    }
}
