//! The vectors of vectors/ (whose README explains the format), run on the library: on a bus without machine code, and with
//! stubs. `cargo test --test vectors -- --nocapture` prints the counts.
#![cfg(feature = "std")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ioemul::{
    AddressSize, CodeSize, DecodeError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice,
    PortOperand, PortSet, Segment, SoftwareBus, StubLayout, TssBitmap, Width,
};
use serde_json::Value;

const PAGE: u64 = 4096;
const DF: u64 = 1 << 10;

/// How a vector is executed.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `.direct()`, a string instruction at once.
    Direct,
    /// `.direct()`, one element of a string instruction at a time, as from a VMM that has little of the memory.
    Piecemeal,
    /// By a stub.
    Stub(StubLayout),
}

fn data() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/data")
}

fn manifest() -> Value {
    serde_json::from_str(&fs::read_to_string(data().join("manifest.json")).unwrap()).unwrap()
}

/// The vectors of each class.
fn classes() -> Vec<(String, Vec<Value>)> {
    let text = |file: &Value| fs::read_to_string(data().join(file.as_str().unwrap())).unwrap();
    let class = |class: &Value| {
        let vectors = text(&class["file"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (class["name"].as_str().unwrap().to_owned(), vectors)
    };
    manifest()["classes"].as_array().unwrap().iter().map(class).collect()
}

fn hex(text: &Value) -> u64 {
    u64::from_str_radix(text.as_str().unwrap(), 16).unwrap()
}

fn bytes(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The elements of a list that need not be there.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn has_tag(vector: &Value, tag: &str) -> bool {
    list(&vector["tags"]).any(|other| other == tag)
}

/// One access, as the vectors write it.
fn access_text(access: PortAccess, value: u32) -> Value {
    let (width, direction) = (access.width.bytes(), if access.direction == Direction::In { "in" } else { "out" });
    serde_json::json!([
        direction,
        format!("{:04x}", access.port),
        width,
        format!("{value:0digits$x}", digits = 2 * usize::from(width))
    ])
}

/// Has all ports, answers what the vector says, and writes everything down.
#[derive(Clone, Default)]
struct Device(Arc<Mutex<(std::collections::VecDeque<u32>, Vec<Value>)>>);

impl PortDevice for Device {
    fn port_in(&mut self, access: PortAccess, _: &mut Gprs) -> u32 {
        let (answers, log) = &mut *self.0.lock().unwrap();
        let answer = answers.pop_front().unwrap_or(0); // one too many shows in the log
        log.push(access_text(access, answer));
        // What is above the width is no part of an answer.
        if access.width == Width::Dword { answer } else { answer | !access.width.mask() }
    }

    fn port_out(&mut self, access: PortAccess, value: u32, _: &mut Gprs) {
        self.0.lock().unwrap().1.push(access_text(access, value));
    }
}

/// What came of a vector.
#[derive(Debug)]
struct Result {
    outcome: &'static str,
    length: Option<usize>,
    page: Option<u64>,
    gprs: Gprs,
    io: Vec<Value>,
    memory: BTreeMap<u64, u8>,
}

/// The host's part: the guest's memory and segments, its privilege.
struct Guest<'v> {
    vector: &'v Value,
    mode: CodeSize,
    memory: BTreeMap<u64, u8>,
}

impl<'v> Guest<'v> {
    fn new(vector: &'v Value) -> Self {
        let mode = match vector["mode"].as_u64() {
            Some(16) => CodeSize::Bits16,
            Some(32) => CodeSize::Bits32,
            _ => CodeSize::Bits64,
        };
        let mut memory = BTreeMap::new();
        put_all(&mut memory, &vector["memory"]["bytes"]);
        Self { vector, mode, memory }
    }

    fn gprs(&self) -> Gprs {
        let mut gprs = Gprs::default();
        for (name, value) in members(&self.vector["registers"]).filter(|(name, _)| *name != "rsp") {
            gprs.set(name, hex(value)).unwrap();
        }
        gprs
    }

    fn segment(&self, segment: Segment) -> (u64, u64) {
        let name = match segment {
            Segment::Es => "es",
            Segment::Cs => "cs",
            Segment::Ss => "ss",
            Segment::Ds => "ds",
            Segment::Fs => "fs",
            Segment::Gs => "gs",
        };
        let usual_limit = if self.mode == CodeSize::Bits16 { 0xffff } else { 0xffff_ffff };
        let segment = &self.vector["segments"][name];
        let word = |value: &Value, usual| if value.is_null() { usual } else { hex(value) };
        (word(&segment["base"], 0), word(&segment["limit"], usual_limit))
    }

    /// Which ports the guest may access: those of its bitmap, if it has to ask it.
    fn ports(&self, insn: IoInsn, gprs: &Gprs) -> PortSet {
        let privilege = &self.vector["privilege"];
        let asks = privilege["vm86"] == true || privilege["cpl"].as_u64() > privilege["iopl"].as_u64();
        if privilege.is_null() || !asks {
            return PortSet::all();
        }
        let mut map = vec![0; privilege["bitmap"]["bytes"].as_u64().unwrap() as usize];
        for run in list(&privilege["bitmap"]["denied"]) {
            for bit in hex(&run[0])..=hex(&run[1]) {
                map[bit as usize / 8] |= 1 << (bit % 8);
            }
        }
        let set = PortSet::from_tss_bitmap(&map);
        let (port, width) = (insn.port(gprs), insn.width);
        let permits = TssBitmap::new(&map).permits(port, width);
        if permits == set.permits(port, width) {
            return set;
        }
        // A set leaves out what reaches into a last byte that is not all ones, and a `TssBitmap` does not.
        assert!(permits && has_tag(self.vector, "open-end"));
        PortSet::all()
    }

    /// The linear addresses of an element, or what it raises instead.
    fn element(
        &self,
        insn: IoInsn,
        gprs: &Gprs,
        index: u64,
    ) -> core::result::Result<Vec<u64>, (&'static str, Option<u64>)> {
        let PortOperand::String { address, segment, .. } = insn.operand else { unreachable!() };
        let pointer = if insn.direction == Direction::In { gprs.rdi } else { gprs.rsi };
        let width = u64::from(insn.width.bytes());
        let moved = index.wrapping_mul(width);
        let moved = if gprs.rflags & DF == 0 { moved } else { moved.wrapping_neg() };
        let offset = pointer.wrapping_add(moved) & address.mask();
        let (base, limit) = self.segment(segment);
        if self.mode != CodeSize::Bits64 && offset + width - 1 > limit {
            return Err((if segment == Segment::Ss { "#SS(0)" } else { "#GP(0)" }, None));
        }
        let space = if self.mode == CodeSize::Bits64 { u64::MAX } else { 0xffff_ffff };
        let addresses: Vec<u64> = (0..width).map(|byte| base.wrapping_add(offset).wrapping_add(byte) & space).collect();
        if self.mode == CodeSize::Bits64 && addresses.iter().any(|address| !matches!(address >> 47, 0 | 0x1_ffff)) {
            return Err(("#GP(0)", None));
        }
        let memory = &self.vector["memory"];
        let is_in = |pages: &Value, page: u64| list(pages).any(|other| hex(other) == page);
        let usable = |page| {
            is_in(&memory["pages"], page) || insn.direction == Direction::Out && is_in(&memory["read_only"], page)
        };
        match addresses.iter().map(|address| address / PAGE * PAGE).find(|page| !usable(*page)) {
            Some(page) => Err(("#PF", Some(page))),
            None => Ok(addresses),
        }
    }

    fn run(mut self, way: Way) -> Result {
        let mut gprs = self.gprs();
        let mut result =
            Result { outcome: "done", length: None, page: None, gprs, io: vec![], memory: BTreeMap::new() };
        let code = bytes(&self.vector["code"]);
        let (insn, length) = match IoInsn::decode_in(self.mode, &code) {
            Ok(decoded) => decoded,
            Err(error) => {
                let wanted = Err(error);
                let emulated =
                    self.emulator(way, PortSet::all(), &Device::default()).emulate_in(self.mode, &code, &mut gprs);
                assert_eq!(emulated.map_err(decode_error), wanted);
                return Result { outcome: decode_outcome(error), gprs, memory: self.memory, ..result };
            }
        };
        let device = Device::default();
        device.0.lock().unwrap().0 = list(&self.vector["answers"]).map(|answer| hex(answer) as u32).collect();
        let mut emulator = self.emulator(way, self.ports(insn, &gprs), &device);
        if let PortOperand::String { rep, address, .. } = insn.operand {
            (result.outcome, result.page) = self.string(&mut emulator, insn, (rep, address), way, &mut gprs);
        } else {
            match emulator.emulate_in(self.mode, &code, &mut gprs) {
                Ok(advance) => assert_eq!(advance, length),
                Err(error) => result.outcome = denied(error),
            }
        }
        result.length = (result.outcome == "done").then_some(length);
        result.io = std::mem::take(&mut device.0.lock().unwrap().1);
        Result { gprs, memory: self.memory, ..result }
    }

    fn emulator(&self, way: Way, ports: PortSet, device: &Device) -> IoEmulator {
        let mut bus = SoftwareBus::new();
        bus.attach(0..=0xffff, device.clone()).unwrap();
        let builder = IoEmulator::builder().ports(ports).bus(bus);
        match way {
            Way::Direct | Way::Piecemeal => builder.direct(),
            Way::Stub(layout) => builder.layout(layout),
        }
        .build()
        .unwrap()
    }

    /// INS or OUTS, on as much memory as there is. Returns the outcome, and the page of a fault.
    fn string(
        &mut self,
        emulator: &mut IoEmulator,
        insn: IoInsn,
        (rep, address): (bool, AddressSize),
        way: Way,
        gprs: &mut Gprs,
    ) -> (&'static str, Option<u64>) {
        loop {
            let count = if rep { gprs.rcx & address.mask() } else { 1 };
            let most = if let Way::Piecemeal = way { count.min(1) } else { count };
            let mut elements = Vec::new();
            let mut fault = None;
            for index in 0..most {
                match self.element(insn, gprs, index) {
                    Ok(addresses) => elements.push(addresses),
                    Err(why) => {
                        fault = Some(why);
                        break;
                    }
                }
            }
            if gprs.rflags & DF != 0 {
                elements.reverse(); // the lowest address first
            }
            let addresses = elements.concat();
            let mut slice: Vec<u8> = addresses.iter().map(|at| self.memory.get(at).copied().unwrap_or(0)).collect();
            let progress = match insn.direction {
                Direction::In => emulator.read_string_partial(insn, gprs, &mut slice),
                Direction::Out => emulator.write_string_partial(insn, gprs, &slice),
            };
            let progress = match progress {
                Ok(progress) => progress,
                Err(error) => return (denied(error), None),
            };
            assert_eq!((progress.moved, progress.left), (slice.len(), count - elements.len() as u64));
            if insn.direction == Direction::In {
                self.memory.extend(addresses.into_iter().zip(slice));
            }
            match fault {
                Some(fault) => return fault,
                None if progress.left == 0 => return ("done", None),
                None => {}
            }
        }
    }
}

fn put_all(memory: &mut BTreeMap<u64, u8>, runs: &Value) {
    for (address, run) in members(runs) {
        let first = u64::from_str_radix(address, 16).unwrap();
        memory.extend(bytes(run).into_iter().enumerate().map(|(index, byte)| (first.wrapping_add(index as u64), byte)));
    }
}

fn decode_error(error: Error) -> DecodeError {
    match error {
        Error::Decode(error) => error,
        error => panic!("{error}"),
    }
}

/// What a CPU makes of bytes that are refused.
fn decode_outcome(error: DecodeError) -> &'static str {
    match error {
        DecodeError::Truncated { .. } => "truncated",
        DecodeError::TooLong => "#GP(0)",
        DecodeError::Lock => "#UD",
        _ => "not-io",
    }
}

fn denied(error: Error) -> &'static str {
    match error {
        Error::PortDenied { .. } => "#GP(0)",
        error => panic!("{error}"),
    }
}

/// In what a result is not as the vector's first expectation has it. (Where vendors differ the library follows the first
/// one, and says so.)
fn differences(vector: &Value, result: &Result) -> Vec<String> {
    let expect = &vector["expect"][0];
    let mut wrong = Vec::new();
    let mut compare = |what: &str, same: bool| {
        if !same {
            wrong.push(what.to_owned());
        }
    };
    compare("outcome", expect["outcome"] == result.outcome);
    compare("length", expect["length"].as_u64() == result.length.map(|length| length as u64));
    compare("page", result.page == (!expect["page"].is_null()).then(|| hex(&expect["page"])));
    compare("io", list(&expect["io"]).eq(&result.io));
    let mask = if vector["mode"] == 64 { u64::MAX } else { 0xffff_ffff };
    for (name, before) in members(&vector["registers"]).filter(|(name, _)| *name != "rsp") {
        let after = expect["registers"].get(name).unwrap_or(before);
        compare(name, (result.gprs.get(name).unwrap() ^ hex(after)) & mask == 0);
    }
    let mut memory = BTreeMap::new();
    put_all(&mut memory, &vector["memory"]["bytes"]);
    put_all(&mut memory, &expect["memory"]);
    compare("memory", memory == result.memory);
    wrong
}

/// Runs all vectors, the way of each being a function of its position, and prints the counts.
fn all(title: &str, way: impl Fn(usize) -> Way) {
    println!("{title}\n{:14} {:>8} {:>8}", "class", "vectors", "pass");
    let (mut total, mut passed) = (0, 0);
    let mut failures = Vec::new();
    for (name, vectors) in classes() {
        let before = failures.len();
        for (index, vector) in vectors.iter().enumerate() {
            let result = Guest::new(vector).run(way(index));
            let wrong = differences(vector, &result);
            if !wrong.is_empty() {
                failures.push(format!(
                    "{} differs in {}, {:?}:\n  {vector}\n  {result:x?}",
                    vector["id"],
                    wrong.join(", "),
                    way(index)
                ));
            }
        }
        let pass = vectors.len() - (failures.len() - before);
        println!("{name:14} {:8} {pass:8}", vectors.len());
        (total, passed) = (total + vectors.len(), passed + pass);
    }
    println!("{:14} {total:8} {passed:8}", "total");
    assert!(
        failures.is_empty(),
        "{} of {total} vectors fail:\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}

#[test]
fn without_machine_code() {
    all("without machine code", |_| Way::Direct);
}

#[test]
fn one_element_at_a_time() {
    all("one element at a time", |_| Way::Piecemeal);
}

/// Every vector by one layout, every layout for a part of each class.
#[test]
fn by_stubs() {
    all("by stubs, the layouts in turn", |index| Way::Stub(StubLayout::ALL[index % StubLayout::ALL.len()]));
}

/// What the README promises of the set; and no vector is lost on the way into the tests.
#[test]
fn the_manifest_says_what_there_is() {
    let (manifest, classes) = (manifest(), classes());
    assert_eq!(manifest["format"], 1, "the runner is written for this format");
    let total: usize = classes.iter().map(|(_, vectors)| vectors.len()).sum();
    assert!(total >= 5000 && manifest["total"] == total);
    for (class, (name, vectors)) in list(&manifest["classes"]).zip(&classes) {
        assert_eq!(class["vectors"], vectors.len(), "{name}");
    }
    // Every form of string and plain instruction is done in every mode, DF and segments included.
    let mut done = std::collections::BTreeSet::new();
    for vector in
        classes.iter().flat_map(|(_, vectors)| vectors).filter(|vector| vector["expect"][0]["outcome"] == "done")
    {
        let mode = Guest::new(vector).mode;
        let (IoInsn { direction, width, operand }, _) = IoInsn::decode_in(mode, &bytes(&vector["code"])).unwrap();
        let kind = match operand {
            PortOperand::Imm8(_) => "imm8".to_owned(),
            PortOperand::Dx => "dx".to_owned(),
            PortOperand::String { rep, address, segment } => {
                format!("{rep} {address:?} {segment:?} {}", has_tag(vector, "df"))
            }
            _ => unreachable!(),
        };
        done.insert(format!("{mode:?} {direction:?} {width:?} {kind}"));
    }
    // 3 modes × 3 widths × (4 plain forms, INS with and without REP, and DF, in two address sizes; OUTS so with REP from six
    // segments, without from DS at least).
    assert!(done.len() >= 3 * 3 * (4 + 8 + 8 + 5), "{}", done.len());
}
