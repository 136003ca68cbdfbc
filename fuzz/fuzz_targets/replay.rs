//! A trace played with other accesses than were recorded, against the obvious player, which looks through all records each
//! time: a strict replay refuses them, leaves the registers, and takes the expected one afterwards; a lenient one answers
//! from the first unused record that fits, or finds nobody. Both count.
//!
//! Input: strict or lenient, records, and accesses made from them.
#![no_main]

use ioemul::trace::{Record, RecordedError, Trace};
use ioemul::{Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortOperand, PortSet, Width};
use ioemul_fuzz::Script;
use libfuzzer_sys::fuzz_target;

/// Bytes that INS or OUTS is to move; `None` for IN and OUT.
fn requested(record: &Record) -> Option<usize> {
    let PortOperand::String { rep, address, .. } = record.insn.operand else { return None };
    let count = if rep { (record.before.rcx & address.mask()) as usize } else { 1 };
    Some(count * usize::from(record.insn.width.bytes()))
}

const DF: u64 = 1 << 10;

/// Data of INS or OUTS from the order of memory to that in which its elements are moved, and back.
fn in_order(record: &Record, data: &[u8]) -> Vec<u8> {
    let mut elements: Vec<_> = data.chunks(record.insn.width.bytes().into()).collect();
    if record.before.rflags & DF != 0 {
        elements.reverse();
    }
    elements.concat()
}

/// A record that could be of a file: of few ports, widths and values, so that several answer the same access.
fn record(script: &mut Script<'_>) -> Record {
    let width = script.one_of(Width::ALL);
    let insn = match script.u8() % 8 {
        0 => IoInsn::in_dx(width),
        1 => IoInsn::in_imm8(width, script.u8() % 4),
        2 => IoInsn::out_dx(width),
        3 => IoInsn::out_imm8(width, script.u8() % 4),
        4 => IoInsn::rep_ins(width),
        5 => IoInsn::ins(width),
        6 => IoInsn::rep_outs(width),
        _ => IoInsn::outs(width),
    };
    let word = |script: &mut Script<'_>| script.one_of(&[0, 1, 2, 0xff, 0xffff_ffff, 1 << 32, u64::MAX]);
    let (rax, rbx) = (word(script), word(script));
    let (rdx, rcx) = (u64::from(script.u8() % 4), u64::from(script.u8() % 4));
    let rflags = u64::from(script.u8()) | if script.u8() < 64 { DF } else { 0 };
    let before = Gprs { rax, rbx, rcx, rdx, rflags, ..Gprs::default() };
    let mut after = before;
    after.rbx = word(script);
    after.rflags ^= u64::from(script.u8());
    match insn.direction {
        Direction::In if !insn.is_string() => after.rax = insn.width.merge(before.rax, script.u32()),
        _ => after.rax = word(script),
    }
    if script.u8() == 0 {
        after.rax = 1 << 40; // which no bus can give, where it is an input of 32 bits
    }
    let error = match script.u8() % 8 {
        0 => Some(RecordedError::Refused("no".into())),
        4 => Some(RecordedError::DidNotReturn),
        _ => None,
    };
    let mut record = Record { insn, before, after, data: Vec::new(), error, duration: None };
    let len = requested(&record).unwrap_or(0);
    let moved = if record.error.is_some() { len.min(script.u8().into()) } else { len };
    // From the start on, also a part of an element: a fault may have come in the middle of one.
    let whole = moved - moved % usize::from(insn.width.bytes());
    let moved = if rflags & DF != 0 { whole } else { moved };
    record.data = (0..moved).map(|_| script.u8() % 3).collect();
    record
}

/// The accesses that the obvious player has seen.
struct Model<'r> {
    records: &'r [Record],
    used: Vec<bool>,
    strict: bool,
    unexpected: usize,
}

/// What is to come of an access.
#[derive(Debug)]
enum Answer<'r> {
    Record(&'r Record),
    Refused,
    Nobody,
}

impl<'r> Model<'r> {
    fn ask(&mut self, access: &Record) -> Answer<'r> {
        let mut unused = (0..self.records.len()).filter(|at| !self.used[*at]);
        let found = match self.strict {
            true => unused.next().filter(|at| self.same_call(&self.records[*at], access)),
            false => unused.find(|at| self.fits(&self.records[*at], access)),
        };
        let record = found.map(|at| &self.records[at]);
        let wide = record.is_some_and(|record| {
            let IoInsn { direction, width, .. } = record.insn;
            let plain = requested(record).is_none() && record.error.is_none();
            plain && (direction, width) == (Direction::In, Width::Dword) && record.after.rax > 0xffff_ffff
        });
        match (found, record) {
            (Some(at), Some(record)) if !wide => {
                self.used[at] = true;
                Answer::Record(record)
            }
            (None, _) if !self.strict => {
                self.unexpected += 1;
                Answer::Nobody
            }
            _ => {
                self.unexpected += 1;
                Answer::Refused
            }
        }
    }

    /// Port, width, direction, and what is written. A string instruction that failed may have had less memory than it
    /// wanted.
    fn fits(&self, record: &Record, access: &Record) -> bool {
        let of = |record: &Record| {
            let PortAccess { port, width, direction, .. } = PortAccess::of(record.insn, &record.before);
            (port, width, direction)
        };
        let len_fits = match (requested(record), requested(access)) {
            (Some(wanted), Some(len)) if record.error.is_some() => (record.data.len()..=wanted).contains(&len),
            (wanted, len) => wanted == len,
        };
        let written = match (record.insn.direction, requested(record)) {
            (Direction::In, _) => true,
            (_, None) => (record.before.rax ^ access.before.rax) as u32 & record.insn.width.mask() == 0,
            (_, Some(_)) => in_order(access, &access.data).starts_with(&in_order(record, &record.data)),
        };
        of(record) == of(access) && len_fits && written
    }

    /// And all registers that an access is given, but for a string instruction's own.
    fn same_call(&self, record: &Record, access: &Record) -> bool {
        let seen = |record: &Record| {
            let mut gprs = record.before;
            gprs.rflags &= Gprs::STATUS_FLAGS;
            if record.insn.is_string() {
                gprs.rcx = 0;
            }
            gprs
        };
        self.fits(record, access) && seen(record) == seen(access)
    }
}

/// Makes an access: what came of it, the registers, the memory.
fn perform(emulator: &mut IoEmulator, access: &Record) -> (Result<(), Error>, Gprs, Vec<u8>) {
    let (mut gprs, mut memory) = (access.before, access.data.clone());
    let result = match (access.insn.is_string(), access.insn.direction) {
        (false, _) => emulator.execute(access.insn, &mut gprs),
        (true, Direction::In) => emulator.read_string(access.insn, &mut gprs, &mut memory).map(drop),
        (true, _) => emulator.write_string(access.insn, &mut gprs, &memory).map(drop),
    };
    (result, gprs, memory)
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let strict = script.u8().is_multiple_of(2);
    let records: Vec<Record> = (0..script.u8() % 24).map(|_| record(&mut script)).collect();
    let replay = Trace::from_iter(records.iter().cloned()).replay();
    let (bus, progress) = if strict { replay.strict() } else { replay.lenient() };
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).direct().build().unwrap();
    let used = records.iter().map(|record| requested(record) == Some(0)).collect();
    let mut model = Model { records: &records, used, strict, unexpected: 0 };
    for _ in 0..64 {
        if script.is_at_end() {
            break;
        }
        // One of the records, as often as not the next; or as often as not another access.
        let next = records.iter().zip(&model.used).find(|(_, used)| !**used).map(|(record, _)| record);
        let mut access = match script.u8() {
            0..128 => next.cloned(),
            at => records.get(usize::from(at - 128)).cloned(),
        }
        .unwrap_or_else(|| record(&mut script));
        match script.u8() % 16 {
            0 => access.before.rdx = u64::from(script.u8() % 4),
            1 => access.before.rax ^= 1 << (script.u8() % 64),
            2 => access.before.rbx ^= 1 << (script.u8() % 64),
            3 => access.before.rflags ^= 1 << (script.u8() % 64),
            4 => access.insn.width = script.one_of(Width::ALL),
            5 => access = record(&mut script),
            _ => {}
        }
        let len = requested(&access).unwrap_or(0);
        access.data.resize(len, 1);
        if len == 0 && access.insn.is_string() {
            continue; // no access at all
        }
        let answer = model.ask(&access);
        let (result, gprs, memory) = perform(&mut emulator, &access);
        match answer {
            Answer::Refused => {
                assert!(matches!(result, Err(Error::Device { .. })), "{answer:?}, {result:?}");
                assert_eq!((gprs, &memory), (access.before, &access.data));
            }
            Answer::Nobody => {
                result.unwrap();
                if access.insn.direction == Direction::In && !access.insn.is_string() {
                    assert_eq!(gprs.rax, access.insn.width.merge(access.before.rax, u32::MAX));
                }
                assert_eq!((gprs.rbx, gprs.rdx), (access.before.rbx, access.before.rdx));
            }
            Answer::Record(record @ Record { error: Some(_), data, insn, .. }) => {
                assert!(matches!(result, Err(Error::Device { .. })), "{answer:?}, {result:?}");
                assert_eq!((gprs.rax, gprs.rbx), (access.before.rax, access.before.rbx));
                let whole = data.len() - data.len() % usize::from(insn.width.bytes());
                let (is, should_be) = (in_order(&access, &memory), in_order(record, data));
                assert!(insn.direction == Direction::Out || is[..whole] == should_be[..whole]);
            }
            Answer::Record(record @ Record { before, after, data, insn, .. }) => {
                result.unwrap();
                let rbx = if before.rbx == after.rbx { access.before.rbx } else { after.rbx };
                assert_eq!((gprs.rbx, (gprs.rflags ^ after.rflags) & Gprs::STATUS_FLAGS), (rbx, 0));
                assert!(insn.direction == Direction::Out || in_order(&access, &memory) == in_order(record, data));
                if strict {
                    assert_eq!(gprs.rax, after.rax);
                }
            }
        }
        let used = model.used.iter().filter(|used| **used).count();
        assert_eq!((progress.replayed(), progress.unexpected()), (used, model.unexpected));
        assert_eq!(progress.finish().is_ok(), used == records.len());
    }
});
