//! From a machine before an instruction to a line of a file.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::*;
use crate::random::Random;
use crate::rules::*;

/// The vectors of one file.
pub struct Class {
    pub name: &'static str,
    pub about: &'static str,
    pub random: Random,
    lines: Vec<Line>,
}

impl Class {
    pub fn new(name: &'static str, about: &'static str) -> Self {
        Self { name, about, random: Random::for_class(name), lines: Vec::new() }
    }

    /// The lines of the file.
    pub fn lines(self) -> serde_json::Result<Vec<String>> {
        self.lines.iter().map(|line| Ok(serde_json::to_string(line)? + "\n")).collect()
    }

    /// A machine with all registers full of random bits, about to execute `code`.
    pub fn machine(&mut self, mode: Mode, code: impl Into<Vec<u8>>) -> Machine {
        let mut registers = [0; 17];
        registers.fill_with(|| self.random.next());
        registers[RFLAGS] = registers[RFLAGS] & (0x8d5 | 0x200 | FLAG_DF) | 2; // status flags, IF and DF
        Machine {
            mode,
            code: code.into(),
            rip: 0,
            registers,
            segments: [usual_segment(mode); 6],
            privilege: None,
            memory: Memory::default(),
        }
    }

    /// Executes the machine's instruction by the rules, and keeps what came of it as a vector.
    pub fn add(&mut self, mut machine: Machine) {
        self.place(&mut machine);
        let random = &mut self.random;
        let mut answers = Vec::new();
        let after = machine.execute(|width| {
            let answer = random.answer(width);
            answers.push(value(width, answer));
            answer
        });
        let outcomes = alternatives(&machine, after);
        let id = format!("{}-{:04}", self.name, self.lines.len());
        self.lines.push(line(id, &machine, answers, outcomes));
    }

    /// Finds a place for the code: at the end of a page that the data does not touch, nor the page behind it, which is
    /// not there.
    fn place(&mut self, machine: &mut Machine) {
        let cs = machine.base(Segment::Cs);
        let data = machine.touched_pages();
        loop {
            let offset = match machine.mode {
                Mode::Bits16 => 0x100 + self.random.below(0xe000),
                Mode::Bits32 => 0x10_0000 + self.random.below(0x3000_0000),
                Mode::Bits64 => 0x10_0000 + self.random.below(0x7fff_0000_0000),
            };
            let behind = (cs + offset).next_multiple_of(PAGE);
            let ip = behind.wrapping_sub(cs).wrapping_sub(machine.code.len() as u64);
            let in_reach = machine.mode != Mode::Bits16 || ip + (machine.code.len() as u64) < 0xfff0;
            if in_reach && !data.contains(&behind) && !data.contains(&(behind - PAGE)) {
                machine.rip = ip;
                return;
            }
        }
    }
}

impl Machine {
    /// The pages that are there, and that of the access that finds none.
    fn touched_pages(&self) -> BTreeSet<u64> {
        let mut pages: BTreeSet<u64> = self.memory.pages.keys().copied().collect();
        pages.extend(self.execute(|_| 0).page);
        pages
    }

    /// Sets RSI or RDI as far as the address size goes. What is above stays as dirty as it was.
    pub fn set_pointer(&mut self, insn: &Decoded, offset: u64) {
        self.set_part(if insn.is_out { RSI } else { RDI }, insn.address_size, offset);
    }

    pub fn set_count(&mut self, insn: &Decoded, count: u64) {
        self.set_part(RCX, insn.address_size, count);
    }

    fn set_part(&mut self, register: usize, bits: u8, value: u64) {
        let mask = address_mask(bits);
        self.registers[register] = self.registers[register] & !mask | value & mask;
    }

    pub fn set_port(&mut self, port: u16) {
        self.registers[RDX] = self.registers[RDX] & !0xffff | u64::from(port);
    }

    pub fn set_df(&mut self, df: bool) {
        self.registers[RFLAGS] = self.registers[RFLAGS] & !FLAG_DF | if df { FLAG_DF } else { 0 };
    }

    /// Makes the pages of the first elements, and fills the elements with random bytes.
    pub fn map(&mut self, insn: &Decoded, elements: u64, random: &mut Random) {
        for index in 0..elements {
            for address in self.linear(insn, self.offset(insn, index)) {
                self.memory.pages.insert(address / PAGE * PAGE, true);
                self.memory.bytes.insert(address, random.next() as u8 | 1);
            }
        }
    }
}

/// Base 0, and the limit that real mode or a flat segment has.
fn usual_segment(mode: Mode) -> Descriptor {
    Descriptor { base: 0, limit: if mode == Mode::Bits16 { 0xffff } else { FLAT.limit } }
}

/// What the manuals, or the vendors' CPUs, allow in place of `after`.
fn alternatives(machine: &Machine, after: After) -> Vec<(Option<&'static str>, After)> {
    let Ok(insn) = decode(machine.mode, &machine.code) else { return vec![(None, after)] };
    if !insn.repeats || machine.count(&insn) != 0 {
        return vec![(None, after)];
    }
    if after.outcome == Outcome::GeneralProtection {
        // The pages of REP have no iteration for a count of 0; CPUs check the port before they look at the count.
        let done = Machine { privilege: None, ..machine.clone() }.execute(|_| 0);
        return vec![(Some("CPUs"), after), (Some("SDM pseudo-code"), done)];
    }
    if machine.mode == Mode::Bits64 && insn.address_size == 32 && machine.registers[RCX] != 0 {
        let mut cleared = after.clone();
        cleared.registers[RCX] = 0;
        return vec![(Some("AMD"), after), (Some("Intel"), cleared)];
    }
    vec![(None, after)]
}

/// Writes down everything of a vector.
fn line(id: String, machine: &Machine, answers: Vec<String>, outcomes: Vec<(Option<&'static str>, After)>) -> Line {
    let registers = if machine.mode == Mode::Bits64 { 0..17 } else { 0..8 };
    let registers = registers.chain([RFLAGS]).map(|index| (Register(index), Hex(machine.registers[index])));
    let memory = (!machine.memory.pages.is_empty()).then(|| MemoryLine {
        pages: machine.memory.pages.iter().filter(|(_, writable)| **writable).map(|(page, _)| Hex(*page)).collect(),
        read_only: machine
            .memory
            .pages
            .iter()
            .filter(|(_, writable)| !**writable)
            .map(|(page, _)| Hex(*page))
            .collect(),
        bytes: runs(&machine.memory.bytes),
    });
    let privilege = machine.privilege.as_ref().map(|privilege| PrivilegeLine {
        cpl: privilege.cpl,
        iopl: privilege.iopl,
        vm86: privilege.vm86,
        bitmap: BitmapLine {
            bytes: privilege.bitmap.bytes,
            denied: privilege
                .bitmap
                .denied
                .iter()
                .map(|(first, last)| [first, last].map(|n| format!("{n:04x}")))
                .collect(),
        },
    });
    Line {
        id,
        mode: machine.mode.bits(),
        tags: tags(machine, &outcomes),
        code: Bytes(machine.code.clone()),
        rip: Hex(machine.rip),
        registers: registers.collect(),
        segments: segments(machine),
        privilege,
        memory,
        answers,
        expect: outcomes.into_iter().map(|(who, after)| expected(machine, who, after)).collect(),
    }
}

fn expected(machine: &Machine, who: Option<&'static str>, after: After) -> ExpectLine {
    let io = |access: Access| {
        let direction = if access.is_out { "out" } else { "in" };
        Io(direction, value(2, access.port.into()), access.width, value(access.width, access.value))
    };
    let mask = machine.register_mask();
    let changed = (0..17).filter(|index| (machine.registers[*index] ^ after.registers[*index]) & mask != 0);
    let length = decode(machine.mode, &machine.code).ok().map(|insn| insn.length);
    ExpectLine {
        who,
        outcome: after.outcome.name(),
        length: length.filter(|_| after.outcome == Outcome::Done),
        page: after.page.map(Hex),
        io: after.accesses.into_iter().map(io).collect(),
        maybe_io: after.maybe.map(io),
        registers: changed.map(|index| (Register(index), Hex(after.registers[index] & mask))).collect(),
        memory: runs(&after.written),
    }
}

/// Segments that are not the usual ones. (In 64-bit code only FS and GS can be otherwise.)
fn segments(machine: &Machine) -> BTreeMap<&'static str, SegmentLine> {
    let is_long = machine.mode == Mode::Bits64;
    let usual = usual_segment(machine.mode);
    let all = Segment::NAMES.into_iter().zip(machine.segments);
    let odd = all.filter(|(_, segment)| segment.base != usual.base || (segment.limit != usual.limit && !is_long));
    odd.map(|(name, Descriptor { base, limit })| {
        (name, SegmentLine { base: Hex(base), limit: (!is_long).then_some(Hex(limit)) })
    })
    .collect()
}

/// Neighbouring bytes together.
fn runs(bytes: &BTreeMap<u64, u8>) -> BTreeMap<Hex, Bytes> {
    let mut runs: BTreeMap<Hex, Bytes> = BTreeMap::new();
    for (address, byte) in bytes {
        match runs.last_entry() {
            Some(mut run) if run.key().0.checked_add(run.get().0.len() as u64) == Some(*address) => {
                run.get_mut().0.push(*byte);
            }
            _ => {
                runs.insert(Hex(*address), Bytes(vec![*byte]));
            }
        }
    }
    runs
}

/// What an implementation has to have for this vector: the list in vectors/README.md.
fn tags(machine: &Machine, outcomes: &[(Option<&'static str>, After)]) -> Vec<&'static str> {
    let mut tags = prefix_tags(machine);
    let mut tag = |name, holds| {
        if holds {
            tags.push(name);
        }
    };
    let after = &outcomes[0].1;
    let denied = match &machine.privilege {
        Some(privilege) => {
            tag("permission", true);
            tag("vm86", privilege.vm86);
            let bitmap = &privilege.bitmap;
            let ends_in_ones = (bitmap.bytes as u32 * 8)
                .checked_sub(8)
                .is_some_and(|bit| bitmap.denied.iter().any(|(first, last)| *first <= bit && bit + 7 <= *last));
            tag("open-end", bitmap.bytes > 0 && !ends_in_ones);
            after.outcome == Outcome::GeneralProtection
        }
        None => false,
    };
    tag("vendor", outcomes.len() > 1);
    let Ok(insn) = decode(machine.mode, &machine.code) else { return tags };
    if !insn.is_string {
        return tags;
    }
    tag("string", true);
    tag("rep", insn.repeats);
    tag("df", machine.registers[RFLAGS] & FLAG_DF != 0);
    tag("segment", !denied && machine.base(insn.segment) != 0);
    let limit = !denied && matches!(after.outcome, Outcome::GeneralProtection | Outcome::StackFault);
    tag("limit", limit && machine.mode != Mode::Bits64);
    tag("canonical", limit && machine.mode == Mode::Bits64);
    tag("page", after.page.is_some());
    tags
}

/// `redundant`: more than one prefix of a group (SDM vol. 2, 2.1.1). `undocumented`: a repeat prefix of which the manuals
/// say only that it is reserved.
fn prefix_tags(machine: &Machine) -> Vec<&'static str> {
    let mut groups = [0; 4];
    let mut has_f2 = false;
    let mut bytes = machine.code.iter();
    let opcode = bytes.find(|byte| {
        let group = match **byte {
            0xf0 | 0xf2 | 0xf3 => 0,
            0x66 => 1,
            0x67 => 2,
            prefix if Segment::of_prefix(prefix).is_some() => 3,
            rex => return !(machine.mode == Mode::Bits64 && rex & 0xf0 == 0x40),
        };
        groups[group] += 1;
        has_f2 |= **byte == 0xf2;
        false
    });
    let has_repeat =
        machine.code.iter().take_while(|byte| Some(*byte) != opcode).any(|byte| matches!(byte, 0xf2 | 0xf3));
    let reserved = match opcode {
        Some(0x6c..=0x6f) => has_f2,
        Some(_) => has_repeat,
        None => false,
    };
    let mut tags = Vec::new();
    if groups.iter().any(|count| *count > 1) {
        tags.push("redundant");
    }
    if reserved {
        tags.push("undocumented");
    }
    tags
}
