//! The inputs, class by class. What comes of them is for `rules` to say.

use crate::case::Class;
use crate::rules::*;

const IN_OUT: [u8; 8] = [0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef];
const STRINGS: [u8; 4] = [0x6c, 0x6d, 0x6e, 0x6f];
const OVERRIDES: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
const PREFIXES: [u8; 10] = [0x66, 0x67, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];
const WIDTHS: [u8; 3] = [1, 2, 4];

pub fn all() -> Vec<Class> {
    vec![
        in_out(),
        immediates(),
        prefixes(),
        rex(),
        lock(),
        lengths(),
        truncated(),
        not_io(),
        strings(),
        wraps(),
        segments(),
        page_faults(),
        limits(),
        permission(),
    ]
}

fn opcodes() -> impl Iterator<Item = u8> {
    IN_OUT.into_iter().chain(STRINGS)
}

fn has_immediate(opcode: u8) -> bool {
    opcode & 0xfc == 0xe4
}

/// The opcode of a form: 6C, E4 or EC with the bits of direction and width.
fn opcode(base: u8, is_out: bool, width: u8) -> u8 {
    base | u8::from(is_out) << 1 | u8::from(width > 1)
}

/// Whether a form takes 66 in this mode.
fn takes_66(mode: Mode, width: u8) -> bool {
    width == if mode == Mode::Bits16 { 4 } else { 2 }
}

impl Class {
    /// Prefixes, opcode, and a random immediate port where there is one.
    fn code(&mut self, prefixes: &[u8], opcode: u8) -> Vec<u8> {
        let mut code = prefixes.to_vec();
        code.push(opcode);
        if has_immediate(opcode) {
            code.push(self.random.next() as u8);
        }
        code
    }

    /// Puts prefixes in a random order.
    fn shuffled(&mut self, mut prefixes: Vec<u8>) -> Vec<u8> {
        for index in (1..prefixes.len()).rev() {
            prefixes.swap(index, self.random.below(index as u64 + 1) as usize);
        }
        prefixes
    }

    /// A port that an access of this width does not run out of; the first and the last ones often.
    fn port(&mut self, width: u8) -> u16 {
        let last = 0x1_0000 - u64::from(width);
        match self.random.below(8) {
            0 => 0,
            1 => last as u16,
            2 => 0xff,
            _ => self.random.below(last + 1) as u16,
        }
    }

    /// As `machine`, ready for whatever the code is: a port in reach, and for strings some elements of mapped memory.
    fn ready(&mut self, mode: Mode, code: Vec<u8>, count: u64) -> Machine {
        let mut machine = self.machine(mode, code);
        let Ok(insn) = decode(mode, &machine.code) else { return machine };
        let port = self.port(insn.width);
        machine.set_port(port);
        if insn.is_string {
            self.segments(&mut machine);
            machine.set_count(&insn, count);
            let elements = machine.count(&insn);
            let offset = self.offset(&machine, &insn);
            machine.set_pointer(&insn, offset);
            machine.map(&insn, elements, &mut self.random);
        }
        machine
    }

    /// Gives segments the bases that they can have: in 16-bit code, those of real mode.
    fn segments(&mut self, machine: &mut Machine) {
        match machine.mode {
            Mode::Bits16 => {
                for segment in &mut machine.segments {
                    *segment = Descriptor { base: self.random.below(0xe000) << 4, limit: 0xffff };
                }
            }
            Mode::Bits32 => {
                for segment in [Segment::Fs, Segment::Gs] {
                    machine.segments[segment as usize].base = self.random.below(0x2000_0000);
                }
            }
            Mode::Bits64 => {
                for segment in [Segment::Fs, Segment::Gs] {
                    machine.segments[segment as usize].base = self.random.below(0x3000_0000_0000);
                }
            }
        }
    }

    /// An offset with room on both sides for some elements, within what the mode and address size reach.
    fn offset(&mut self, machine: &Machine, insn: &Decoded) -> u64 {
        match (machine.mode, insn.address_size) {
            (Mode::Bits16, _) | (_, 16) => 0x200 + self.random.below(0xfb00),
            (_, 32) => 0x200 + self.random.below(0x7fff_0000),
            _ => 0x200 + self.random.below(0x3fff_0000_0000),
        }
    }
}

fn in_out() -> Class {
    let mut class = Class::new(
        "in-out",
        "IN and OUT of every width by immediate and DX: merge, zero-extension, dirty upper halves",
    );
    for mode in Mode::ALL {
        for base in [0xe4, 0xec] {
            for is_out in [false, true] {
                for width in WIDTHS {
                    for _ in 0..24 {
                        let prefixes: &[u8] = if takes_66(mode, width) { &[0x66] } else { &[] };
                        let code = class.code(prefixes, opcode(base, is_out, width));
                        let machine = class.ready(mode, code, 0);
                        class.add(machine);
                    }
                }
            }
        }
    }
    class
}

fn immediates() -> Class {
    let mut class =
        Class::new("immediates", "all 256 immediate ports in all six forms, the mode changing from one to the next");
    for port in 0..=255 {
        for (index, width) in WIDTHS.into_iter().chain(WIDTHS).enumerate() {
            let mode = Mode::ALL[(usize::from(port) + index) % 3];
            let mut code = if takes_66(mode, width) { vec![0x66] } else { vec![] };
            code.extend([opcode(0xe4, index >= 3, width), port]);
            let machine = class.machine(mode, code);
            class.add(machine);
        }
    }
    class
}

fn prefixes() -> Class {
    let mut class = Class::new("prefixes", "each prefix alone, and random sequences of several, before every opcode");
    for mode in Mode::ALL {
        for opcode in opcodes() {
            let mut sequences = vec![vec![]];
            sequences.extend(PREFIXES.map(|prefix| vec![prefix]));
            for _ in 0..8 {
                let length = 2 + class.random.below(4);
                sequences.push((0..length).map(|_| class.random.pick(&PREFIXES)).collect());
            }
            for sequence in sequences {
                let code = class.code(&sequence, opcode);
                let count = 1 + class.random.below(4);
                let machine = class.ready(mode, code, count);
                class.add(machine);
            }
        }
    }
    class
}

fn rex() -> Class {
    let mut class =
        Class::new("rex", "REX before every opcode in 64-bit code: W against 66, and void when a prefix follows");
    for opcode in opcodes() {
        let mut sequences = Vec::new();
        for rex in 0x40..=0x4f {
            let before: &[u8] = class.random.pick::<&[u8]>(&[&[], &[0x66], &[0x67], &[0xf3], &[0x66, 0x64]]);
            sequences.push([before, &[rex]].concat());
        }
        for rex in [0x40, 0x48, 0x4f] {
            for after in [0x66, 0x67, 0xf3, 0x65] {
                sequences.push(vec![0x66, rex, after]);
            }
        }
        sequences.extend([vec![0x66, 0x48, 0x40], vec![0x66, 0x40, 0x48], vec![0x48, 0x66, 0x4c]]);
        for sequence in sequences {
            let code = class.code(&sequence, opcode);
            let count = 1 + class.random.below(4);
            let machine = class.ready(Mode::Bits64, code, count);
            class.add(machine);
        }
    }
    class
}

fn lock() -> Class {
    let mut class = Class::new(
        "lock",
        "LOCK before every opcode, alone and among others: #UD, before any other check of the instruction",
    );
    for mode in Mode::ALL {
        for opcode in opcodes() {
            let other = class.random.pick(&PREFIXES);
            let mut sequences = vec![vec![0xf0], vec![0xf0, other], vec![other, 0xf0], vec![0xf0, 0xf0, 0xf3]];
            if mode == Mode::Bits64 {
                sequences.push(vec![0xf0, 0x48]);
            }
            for (index, sequence) in sequences.into_iter().enumerate() {
                let code = class.code(&sequence, opcode);
                let mut machine = class.machine(mode, code);
                if index == 0 {
                    machine.ask_bitmap(3, 0, Bitmap { bytes: 0, denied: vec![] });
                }
                class.add(machine);
            }
        }
    }
    class
}

fn lengths() -> Class {
    let mut class =
        Class::new("lengths", "instructions of 14 and 15 bytes, and #GP(0) for longer ones, by redundant prefixes");
    for mode in Mode::ALL {
        for opcode in opcodes() {
            for length in 14..=17 {
                let count = length - 1 - usize::from(has_immediate(opcode));
                let fill: &[u8] = class.random.pick::<&[u8]>(&[&[0x66], &[0x67], &[0x2e], &[0xf3, 0x26], &PREFIXES]);
                let prefixes: Vec<u8> = (0..count).map(|_| class.random.pick(fill)).collect();
                let code = class.code(&prefixes, opcode);
                let machine = class.ready(mode, code, 2);
                class.add(machine);
            }
            let code = class.code(&[0xf0; 14], opcode); // 15 bytes: #UD; with an immediate 16: #GP(0)
            let machine = class.machine(mode, code);
            class.add(machine);
        }
    }
    class
}

fn truncated() -> Class {
    let mut class = Class::new("truncated", "instructions of which the last bytes cannot be fetched");
    for mode in Mode::ALL {
        for opcode in opcodes() {
            for prefixes in [vec![], vec![0xf0], vec![0x66, 0xf3], vec![0x67, 0x64, 0xf0]] {
                let whole = class.code(&prefixes, opcode);
                for length in 0..whole.len() {
                    let machine = class.machine(mode, &whole[..length]);
                    class.add(machine);
                }
            }
        }
        for length in [14, 15, 16] {
            let machine = class.machine(mode, vec![0x66; length]); // fifteen prefixes are too long already
            class.add(machine);
        }
    }
    class
}

fn not_io() -> Class {
    let mut class =
        Class::new("not-io", "other instructions: 40 to 4F outside 64-bit code, and the neighbours of the I/O opcodes");
    for mode in [Mode::Bits16, Mode::Bits32] {
        for byte in 0x40..=0x4f {
            for opcode in [class.random.pick(&IN_OUT), class.random.pick(&STRINGS)] {
                let code = class.code(&[byte], opcode);
                let machine = class.machine(mode, code);
                class.add(machine);
            }
        }
    }
    for mode in Mode::ALL {
        for byte in [0x0f, 0x50, 0x6b, 0x70, 0x90, 0xa4, 0xaa, 0xcc, 0xe3, 0xe8, 0xeb, 0xf1, 0xf4, 0xf5, 0xfa, 0xff] {
            let prefixes = vec![class.random.pick(&PREFIXES); class.random.below(3) as usize];
            let code = [&prefixes[..], &[byte, 0xec, 0xec]].concat();
            let machine = class.machine(mode, code);
            class.add(machine);
        }
    }
    class
}

/// A form of INS or OUTS.
#[derive(Clone, Copy)]
struct Form {
    mode: Mode,
    is_out: bool,
    width: u8,
    has_67: bool,
}

impl Form {
    /// All of them, in all modes.
    fn all() -> impl Iterator<Item = Form> {
        let pairs = [(false, false), (false, true), (true, false), (true, true)];
        Mode::ALL.into_iter().flat_map(move |mode| {
            pairs.into_iter().flat_map(move |(is_out, has_67)| {
                WIDTHS.into_iter().map(move |width| Form { mode, is_out, width, has_67 })
            })
        })
    }

    fn code(self, class: &mut Class, more: &[u8]) -> Vec<u8> {
        let mut prefixes = more.to_vec();
        prefixes.extend(takes_66(self.mode, self.width).then_some(0x66));
        prefixes.extend(self.has_67.then_some(0x67));
        let prefixes = class.shuffled(prefixes);
        class.code(&prefixes, opcode(0x6c, self.is_out, self.width))
    }
}

fn strings() -> Class {
    let mut class = Class::new(
        "strings",
        "INS and OUTS in every form: counts 0, 1, 2 and more, DF, address sizes, dirt above count and pointer",
    );
    for form in Form::all() {
        for df in [false, true] {
            for count in [None, None, Some(0), Some(0), Some(1), Some(2), Some(3), Some(4 + class.random.below(13))] {
                let rep: &[u8] = if count.is_some() { &[0xf3] } else { &[] };
                let code = form.code(&mut class, rep);
                let count = count.unwrap_or(class.random.below(3));
                let mut machine = class.ready(form.mode, code, count);
                if machine.registers[RFLAGS] & FLAG_DF != if df { FLAG_DF } else { 0 } {
                    machine.turn_round(&mut class);
                }
                class.add(machine);
            }
        }
    }
    class
}

impl Machine {
    /// The other direction, from the same pointer.
    fn turn_round(&mut self, class: &mut Class) {
        self.registers[RFLAGS] ^= FLAG_DF;
        let insn = decode(self.mode, &self.code).expect("an instruction of these classes");
        self.memory = Memory::default();
        self.map(&insn, self.count(&insn), &mut class.random);
    }

    /// Runs at `cpl`, with `iopl` in RFLAGS.
    fn ask_bitmap(&mut self, cpl: u8, iopl: u8, bitmap: Bitmap) {
        self.registers[RFLAGS] |= u64::from(iopl) << 12;
        self.privilege = Some(Privilege { cpl, iopl, vm86: false, bitmap });
    }

    fn enter_vm86(&mut self) {
        self.registers[RFLAGS] |= FLAG_VM;
        if let Some(privilege) = &mut self.privilege {
            privilege.vm86 = true;
        }
    }
}

fn wraps() -> Class {
    let mut class = Class::new(
        "wraps",
        "pointers that go round the end of the address size, upwards and downwards, and operands across it",
    );
    for form in Form::all() {
        for df in [false, true] {
            for misaligned in [0, 1] {
                let code = form.code(&mut class, &[0xf3]);
                let mut machine = class.machine(form.mode, code);
                let insn = decode(form.mode, &machine.code).expect("an instruction of these classes");
                // An operand across the end of the address space itself is up to the model (or not canonical).
                let full = matches!((form.mode, insn.address_size), (Mode::Bits16 | Mode::Bits32, 32));
                if full && misaligned != 0 && insn.width > 1 {
                    continue;
                }
                machine.segments = [FLAT; 6];
                machine.set_df(df);
                let count = 3 + class.random.below(6);
                let before = 1 + class.random.below(count - 1);
                machine.set_count(&insn, count);
                let (moved, misaligned) = (before * u64::from(form.width), misaligned * u64::from(form.width / 2));
                let start =
                    if df { moved.wrapping_sub(misaligned) } else { moved.wrapping_neg().wrapping_sub(misaligned) };
                machine.set_pointer(&insn, start);
                machine.map(&insn, count, &mut class.random);
                class.add(machine);
            }
        }
    }
    class
}

fn segments() -> Class {
    let mut class = Class::new(
        "segments",
        "overrides: those that OUTS follows, in each mode, those that INS does not, and bases that wrap",
    );
    for form in Form::all().filter(|form| form.width != 2 || form.is_out) {
        for prefix in OVERRIDES {
            let code = form.code(&mut class, &[prefix, 0xf3]);
            let count = 1 + class.random.below(4);
            let machine = class.ready(form.mode, code, count);
            class.add(machine);
        }
    }
    for form in Form::all().filter(|form| form.is_out && form.mode != Mode::Bits16) {
        for (prefix, segment) in [(0x64, Segment::Fs), (0x65, Segment::Gs)] {
            let code = form.code(&mut class, &[prefix, 0xf3]);
            let mut machine = class.machine(form.mode, code);
            let insn = decode(form.mode, &machine.code).expect("an instruction of these classes");
            // The base is so high that the linear address comes out behind 0 again.
            let (bits, below) = if form.mode == Mode::Bits64 { (64, 0x7000) } else { (32, 0x7000) };
            machine.segments[segment as usize].base = below_zero(bits, below);
            let offset = below + 0x100 + class.random.below(0x1000);
            machine.set_pointer(&insn, offset);
            machine.set_count(&insn, 4);
            machine.map(&insn, 4, &mut class.random);
            class.add(machine);
        }
    }
    class
}

fn below_zero(bits: u8, distance: u64) -> u64 {
    distance.wrapping_neg() & address_mask(bits)
}

fn page_faults() -> Class {
    let mut class = Class::new(
        "page-faults",
        "strings that reach a page that is not there, or may not be written: so many elements are done",
    );
    for form in Form::all() {
        for df in [false, true] {
            for done in [0, 1, 2 + class.random.below(8)] {
                for straddles in [false, true] {
                    if straddles && form.width == 1 {
                        continue;
                    }
                    let code = form.code(&mut class, &[0xf3]);
                    let mut machine = class.machine(form.mode, code);
                    let insn = decode(form.mode, &machine.code).expect("an instruction of these classes");
                    class.segments(&mut machine);
                    machine.set_df(df);
                    let left = match class.random.below(4) {
                        0 => address_mask(insn.address_size) - done,
                        _ => 1 + class.random.below(5),
                    };
                    machine.set_count(&insn, done + left);
                    class.end_of_memory(&mut machine, &insn, done, straddles);
                    class.add(machine);
                }
            }
            let code = form.code(&mut class, &[]);
            let mut machine = class.machine(form.mode, code);
            let insn = decode(form.mode, &machine.code).expect("an instruction of these classes");
            class.segments(&mut machine);
            machine.set_df(df);
            class.end_of_memory(&mut machine, &insn, 0, form.width == 4);
            class.add(machine);
        }
    }
    class
}

impl Class {
    /// Sets the pointer so that the element after the first `done` is the first one on a page that is not there (or, for
    /// INS, may not be written), wholly or with some bytes.
    fn end_of_memory(&mut self, machine: &mut Machine, insn: &Decoded, done: u64, straddles: bool) {
        let base = machine.base(insn.segment);
        let width = u64::from(insn.width);
        let over = if straddles { 1 + self.random.below(width - 1) } else { 0 };
        // The boundary lies well inside the segment.
        let boundary = (base + 0x2000 + self.offset(machine, insn) / 2).next_multiple_of(PAGE);
        let (pointer, good, bad) = if machine.registers[RFLAGS] & FLAG_DF == 0 {
            (boundary - done * width - over, boundary - PAGE, boundary)
        } else {
            (boundary + done * width - width + over, boundary, boundary - PAGE)
        };
        machine.set_pointer(insn, pointer - base);
        machine.memory.pages.insert(good, true);
        for index in 0..done {
            for address in machine.linear(insn, machine.offset(insn, index)) {
                machine.memory.bytes.insert(address, self.random.next() as u8 | 1);
            }
        }
        if !insn.is_out && self.random.chance(3) {
            machine.memory.pages.insert(bad, false);
        }
    }
}

fn limits() -> Class {
    let mut class = Class::new(
        "limits",
        "strings that reach a segment's limit (#GP, #SS) or a non-canonical address: so many elements are done",
    );
    for form in Form::all() {
        for (index, done) in [0, 1, 2 + class.random.below(8), 3].into_iter().enumerate() {
            for crosses in [false, true] {
                if crosses && form.width == 1 {
                    continue;
                }
                let prefixes: &[u8] = if index == 3 && form.mode != Mode::Bits64 { &[0xf3, 0x36] } else { &[0xf3] };
                let code = form.code(&mut class, prefixes);
                let mut machine = class.machine(form.mode, code);
                let insn = decode(form.mode, &machine.code).expect("an instruction of these classes");
                let width = u64::from(insn.width);
                class.segments(&mut machine);
                machine.set_df(false);
                let end = match (form.mode, insn.address_size) {
                    (Mode::Bits64, 64) => 1 << 47,
                    (Mode::Bits64, _) => continue, // 4 GiB are all canonical
                    (Mode::Bits16, 16) => 0x1_0000,
                    _ => 0x2000 + class.random.below(0xd000),
                };
                machine.segments[insn.segment as usize].limit = (end - 1) & 0xffff_ffff;
                let over = if crosses { 1 + class.random.below(width - 1) } else { 0 };
                let pointer = end - done * width - over;
                if pointer > address_mask(insn.address_size) {
                    continue; // at FFFF + 1 there is no pointer
                }
                machine.set_pointer(&insn, pointer);
                // With 16 bits a pointer goes round before it is past a limit of FFFF, unless an operand is across.
                let goes_round = end > address_mask(insn.address_size) && !crosses;
                machine.set_count(&insn, done + 1 + class.random.below(3));
                let elements = if goes_round { machine.count(&insn) } else { done };
                machine.map(&insn, elements, &mut class.random);
                class.add(machine);
            }
        }
    }
    class
}

fn permission() -> Class {
    let mut class = Class::new(
        "permission",
        "CPL, IOPL and the I/O bitmap: each bit of a wide access, the ends of the map, virtual-8086 mode",
    );
    for mode in Mode::ALL {
        for base in [0xe4, 0xec, 0x6c] {
            for is_out in [false, true] {
                for width in WIDTHS {
                    for scenario in scenarios(width) {
                        let prefixes: &[u8] = if takes_66(mode, width) { &[0x66] } else { &[] };
                        class.denied_or_not(mode, prefixes, opcode(base, is_out, width), &scenario);
                    }
                }
            }
        }
    }
    for form in Form::all().filter(|form| form.width != 4) {
        let code = form.code(&mut class, &[0xf3]);
        for count in [0, 0, 2] {
            // With a count of 0; and where the memory is not there either.
            let mut machine = class.ready(form.mode, code.clone(), count);
            machine.memory = Memory::default();
            let port = machine.registers[RDX] as u16;
            machine.ask_bitmap(3, 0, bitmap(8193, &[(port.into(), port.into())]));
            class.add(machine);
        }
    }
    class
}

/// A way to be let through or not.
struct Scenario {
    cpl: u8,
    iopl: u8,
    vm86: bool,
    map: Map,
}

enum Map {
    /// Bits relative to the port, set in a complete map.
    Denied(Vec<(i64, i64)>),
    /// A map of as many bytes as that of the port, and so many more. All clear.
    Ends(usize),
    /// As `Ends`, the last byte being all ones.
    EndsInOnes(usize),
    /// No byte is within the limit.
    Empty,
    /// A complete map, and an access at the last ports, so many of them past the last.
    Last(u16),
}

fn scenarios(width: u8) -> Vec<Scenario> {
    let width = i64::from(width);
    let mut maps = vec![Map::Denied(vec![]), Map::Denied(vec![(-1, -1), (width, width)]), Map::Denied(vec![(-70, 70)])];
    maps.extend((0..width).map(|byte| Map::Denied(vec![(byte, byte)])));
    maps.extend([Map::Ends(0), Map::Ends(1), Map::Ends(2), Map::EndsInOnes(1), Map::Empty]);
    maps.extend((0..width as u16).map(Map::Last));
    let mut scenarios: Vec<Scenario> =
        maps.into_iter().map(|map| Scenario { cpl: 3, iopl: 0, vm86: false, map }).collect();
    for (cpl, iopl) in [(0, 0), (3, 3), (1, 2), (1, 0), (3, 2), (2, 1)] {
        scenarios.push(Scenario { cpl, iopl, vm86: false, map: Map::Denied(vec![(0, 0)]) });
    }
    for map in [Map::Denied(vec![]), Map::Denied(vec![(0, 0)]), Map::Empty] {
        scenarios.push(Scenario { cpl: 3, iopl: 3, vm86: true, map });
    }
    scenarios
}

/// A map with these bits set, and the byte behind the last port's.
fn bitmap(bytes: usize, denied: &[(u32, u32)]) -> Bitmap {
    Bitmap { bytes, denied: denied.iter().copied().chain([(0x1_0000, 0x1_0007)]).collect() }
}

impl Class {
    fn denied_or_not(&mut self, mode: Mode, prefixes: &[u8], opcode: u8, scenario: &Scenario) {
        if (scenario.vm86 && mode != Mode::Bits16) || (has_immediate(opcode) && matches!(scenario.map, Map::Last(_))) {
            return;
        }
        let code = self.code(prefixes, opcode);
        let mut machine = self.ready(mode, code, 1);
        let insn = decode(mode, &machine.code).expect("an instruction of these classes");
        match scenario.map {
            Map::Last(past) => machine.set_port((0x1_0000 - u32::from(insn.width) + u32::from(past)) as u16),
            _ if self.random.chance(2) => machine.set_port(0x3f8 + (self.random.below(16) as u16)),
            _ => {}
        }
        let port = i64::from(machine.port(&insn));
        let at = port as usize / 8;
        let bitmap = match &scenario.map {
            Map::Denied(runs) => {
                let absolute = runs
                    .iter()
                    .map(|(first, last)| ((port + first).max(0) as u32, (port + last).clamp(0, 0xffff) as u32));
                let real: Vec<_> = absolute
                    .zip(runs)
                    .filter(|(_, (first, last))| port + last >= 0 && port + first <= 0xffff)
                    .map(|(run, _)| run)
                    .collect();
                bitmap(8193, &real)
            }
            Map::Ends(more) => Bitmap { bytes: at + 1 + more, denied: vec![] },
            Map::EndsInOnes(more) => {
                let first = ((at + more) * 8) as u32;
                Bitmap { bytes: at + 1 + more, denied: vec![(first, first + 7)] }
            }
            Map::Empty => Bitmap { bytes: 0, denied: vec![] },
            Map::Last(_) => bitmap(8193, &[]),
        };
        machine.ask_bitmap(scenario.cpl, scenario.iopl, bitmap);
        if scenario.vm86 {
            machine.enter_vm86();
        }
        self.add(machine);
    }
}
