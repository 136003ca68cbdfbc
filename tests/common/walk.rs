//! Follows a stub through its code, instruction by instruction, with names in place of values: where each bit of each
//! register comes from, what is on the stack, what the register file was given. Panics at whatever a stub must not do.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::files::File;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    /// A register as the stub's caller left it.
    Host(Register),
    /// RFLAGS as the stub's caller left them.
    HostFlags,
    /// The first argument: the address of the register file.
    File,
    /// The return address of the stub's caller.
    Caller,
    /// A word of the register file, by its offset.
    Guest(i64),
    /// A register as the so-manieth I/O left it.
    After(usize, Register),
    /// RFLAGS as the so-manieth I/O left them.
    FlagsAfter(usize),
    /// An address in the code.
    Code(u64),
    /// Something that was computed, or that only a quirk uses.
    Unknown(u32),
}

/// A bit: the exclusive or of bits of values, and of a constant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bit {
    of: BTreeSet<(Value, u8)>,
    constant: bool,
}

impl Bit {
    fn constant(constant: bool) -> Self {
        Self { of: BTreeSet::new(), constant }
    }

    fn of(value: Value, bit: u8) -> Self {
        Self { of: BTreeSet::from([(value, bit)]), constant: false }
    }

    fn xor(&self, other: &Bit) -> Bit {
        Bit { of: &self.of ^ &other.of, constant: self.constant ^ other.constant }
    }

    fn is(&self, constant: bool) -> bool {
        self.of.is_empty() && self.constant == constant
    }
}

/// A word of 64 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Whole(Value),
    Bits(Vec<Bit>),
}

impl Word {
    fn bits(&self) -> Vec<Bit> {
        match self {
            Word::Whole(value) => (0..64).map(|bit| Bit::of(*value, bit)).collect(),
            Word::Bits(bits) => bits.clone(),
        }
    }

    fn constant(value: u64) -> Self {
        Word::Bits((0..64).map(|bit| Bit::constant(value >> bit & 1 != 0)).collect())
    }

    fn is(&self, value: Value) -> bool {
        match self {
            Word::Whole(own) => *own == value,
            Word::Bits(bits) => bits.iter().enumerate().all(|(at, bit)| *bit == Bit::of(value, at as u8)),
        }
    }
}

/// The status flags, by their positions in RFLAGS.
const CF: usize = 0;
const PF: usize = 2;
const AF: usize = 4;
const ZF: usize = 6;
const SF: usize = 7;
const OF: usize = 11;
const STATUS: [usize; 6] = [CF, PF, AF, ZF, SF, OF];
const IF: usize = 9;
const DF: usize = 10;

/// The registers in the order in which a register file names them.
const WORDS: [Register; 15] = [
    Register::RAX,
    Register::RBX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::RBP,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

const CALLEE_SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// What a callee may change, but for the result.
const SCRUBBED: [Register; 8] = [
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Disassembled code.
pub struct Listing {
    pub instructions: BTreeMap<u64, Instruction>,
    /// A JMP to here is a RET.
    thunk: Option<u64>,
    file: File,
    /// Whether the registers that the caller does not get back are zeroed at the end.
    scrubbed: bool,
}

/// What a walk has passed.
#[derive(Debug, Default)]
pub struct Walked {
    /// Addresses of the instructions.
    pub visited: BTreeSet<u64>,
    /// The port-I/O instructions of each path, in their order.
    pub io: BTreeSet<Vec<Code>>,
    /// Where the port-I/O instructions are.
    pub io_at: BTreeSet<u64>,
    /// How many RETs went elsewhere than behind the latest CALL that was not returned from.
    pub mispredicted: usize,
    /// The landing pads that were reached from faults.
    pub pads: BTreeSet<u64>,
    /// Whether an access behind the first was made with other flags than the one before it has left.
    pub flags_lost: bool,
    /// Whether the status flags that were stored are those of the register file, on some path with accesses.
    pub flags_given: bool,
    /// The same of those that the last access left.
    pub flags_left: bool,
}

impl Walked {
    /// Whether an instruction of this name was passed, other than on a landing pad.
    pub fn has(&self, listing: &Listing, mnemonic: Mnemonic) -> bool {
        self.visited.iter().any(|ip| listing.instructions[ip].mnemonic() == mnemonic)
    }
}

#[derive(Clone)]
struct State {
    ip: u64,
    registers: BTreeMap<Register, Word>,
    /// All of RFLAGS.
    flags: Vec<Bit>,
    /// From the word that RSP pointed to at entry, downwards.
    stack: Vec<Word>,
    /// What a shadow stack or return predictor holds.
    calls: Vec<Word>,
    /// The words of the register file that were loaded before the I/O, behind it, and stored: in this order.
    loaded: Vec<i64>,
    read_again: Vec<i64>,
    stored: Vec<(i64, Word)>,
    /// A control transfer since the I/O; `None` before it.
    transferred: Option<bool>,
    io: Vec<Code>,
    is_string: bool,
    /// What branches have found.
    assumed: BTreeMap<(Value, u8), bool>,
    branches: BTreeMap<u64, u32>,
    unknown: u32,
    /// The register that is 2 short of what it is said to hold.
    owed: Option<Register>,
    /// Behind a fault.
    landed: bool,
}

impl Listing {
    /// All of `code` from one end to the other.
    pub fn new(code: &[u8], va: u64, thunk: Option<u64>, file: File) -> Self {
        let mut instructions = BTreeMap::new();
        for insn in Decoder::with_ip(64, code, va, DecoderOptions::NONE).iter() {
            assert!(!insn.is_invalid(), "no instruction at {:#x}", insn.ip());
            instructions.insert(insn.ip(), insn);
        }
        Self { instructions, thunk, file, scrubbed: false }
    }

    /// Whether the stubs [scrub](ioemul::EmitOptions::scrub).
    pub fn scrubbed(self, scrubbed: bool) -> Self {
        Self { scrubbed, ..self }
    }

    /// Runs the stub at `entry` to its end, on every path; and from every instruction for which `fixup` names a landing
    /// pad, also over that.
    pub fn walk(&self, entry: u64, fixup: impl Fn(u64) -> Option<u64>) -> Walked {
        let host = |register| {
            (register, Word::Whole(if register == Register::RDI { Value::File } else { Value::Host(register) }))
        };
        let mut paths = vec![State {
            ip: entry,
            registers: WORDS.into_iter().map(host).collect(),
            flags: Word::Whole(Value::HostFlags).bits(),
            stack: vec![Word::Whole(Value::Caller)],
            calls: vec![Word::Whole(Value::Caller)],
            loaded: vec![],
            read_again: vec![],
            stored: vec![],
            transferred: None,
            io: vec![],
            is_string: false,
            assumed: BTreeMap::new(),
            branches: BTreeMap::new(),
            unknown: 0,
            owed: None,
            landed: false,
        }];
        let mut walked = Walked::default();
        while let Some(mut state) = paths.pop() {
            loop {
                if let Some(pad) = fixup(state.ip).filter(|_| !state.landed) {
                    walked.pads.insert(pad);
                    // No-ops stand in front of a shorter form.
                    let mut next = self.instructions.range(state.ip..).map(|insn| insn.1.code());
                    let code = next.find(|code| code.mnemonic() != Mnemonic::Nop).unwrap();
                    paths.push(state.landing(pad, code));
                }
                if !self.step(&mut state, &mut paths, &mut walked) {
                    break;
                }
            }
            match state.landed {
                true => state.check_landed(&self.file),
                false => state.check_end(&self.file, &mut walked),
            }
            state.check_scrubbed(self.scrubbed);
        }
        walked
    }

    /// One instruction; false at the end of the stub.
    fn step(&self, state: &mut State, paths: &mut Vec<State>, walked: &mut Walked) -> bool {
        let ip = state.ip;
        let insn = self.instructions.get(&ip).unwrap_or_else(|| panic!("{ip:#x} is not the start of an instruction"));
        walked.visited.insert(ip);
        state.ip = insn.next_ip();
        state.check_memory(insn, &self.file);
        if insn.flow_control() != FlowControl::Next {
            state.transferred = state.transferred.map(|_| true);
        }
        let (op0, op1) = (insn.op0_register(), insn.op1_register());
        let immediate = |at| insn.immediate(at);
        match insn.mnemonic() {
            Mnemonic::Endbr64 | Mnemonic::Nop => {}
            Mnemonic::Cli => state.flags[IF] = Bit::constant(false),
            Mnemonic::Cld => state.flags[DF] = Bit::constant(false),
            Mnemonic::Std => state.flags[DF] = Bit::constant(true),
            Mnemonic::Push if insn.op0_kind() == OpKind::Register => {
                let value = state.registers[&op0].clone();
                let guests = matches!(value, Word::Whole(Value::After(..)));
                assert!(
                    !guests || state.landed || state.transferred == Some(true),
                    "saved before control was transferred: {insn}"
                );
                state.stack.push(value);
            }
            Mnemonic::Push => {
                let unknown = state.unknown();
                state.stack.push(Word::Whole(unknown));
            }
            Mnemonic::Pushfq => state.stack.push(Word::Bits(state.flags.clone())),
            Mnemonic::Pop if insn.op0_kind() == OpKind::Register => {
                let value = state.pop();
                state.registers.insert(op0, value);
            }
            Mnemonic::Pop => {
                let value = state.pop();
                state.store(insn, value);
            }
            Mnemonic::Popfq => {
                let bits = state.pop().bits();
                for (at, bit) in bits.iter().enumerate().filter(|(at, _)| ![IF, DF].contains(at)) {
                    assert!(STATUS.contains(&at) || *bit == Bit::of(Value::HostFlags, at as u8), "bit {at}: {insn}");
                }
                state.flags = bits;
            }
            Mnemonic::Mov if insn.op1_kind() == OpKind::Memory => {
                let word = match insn.memory_base() {
                    Register::RSP => state.stack[state.slot(insn)].clone(),
                    _ => state.load(insn, &self.file),
                };
                let bits = 8 * op0.size();
                state.write(op0, &word, bits);
            }
            Mnemonic::Mov if insn.op0_kind() == OpKind::Memory => {
                assert_eq!(op1.size(), 8, "{insn}");
                let value = state.registers[&op1].clone();
                state.store(insn, value);
            }
            Mnemonic::Mov if insn.op1_kind() == OpKind::Register => {
                let bits = state.read(op1);
                state.write(op0, &Word::Bits(bits), 8 * op0.size());
            }
            Mnemonic::Mov => state.write(op0, &Word::constant(immediate(1)), 8 * op0.size()),
            Mnemonic::Xor => {
                let bits: Vec<Bit> = state.read(op0).iter().zip(state.read(op1)).map(|(a, b)| a.xor(&b)).collect();
                state.write(op0, &Word::Bits(bits), 8 * op0.size());
                state.clobber_flags(&STATUS);
            }
            Mnemonic::And | Mnemonic::Or if insn.op0_kind() == OpKind::Memory => {
                let (slot, mask) = (state.slot(insn), immediate(1));
                let mut bits = state.stack[slot].bits();
                for (at, bit) in bits.iter_mut().enumerate().take(8 * insn.memory_size().size()) {
                    let set = mask >> at & 1 != 0;
                    match insn.mnemonic() {
                        Mnemonic::And if !set => *bit = Bit::constant(false),
                        Mnemonic::Or if set => *bit = Bit::constant(true),
                        _ => {}
                    }
                }
                state.stack[slot] = Word::Bits(bits);
                state.clobber_flags(&STATUS);
            }
            Mnemonic::And => {
                let mut bits = state.read(op0);
                let masked = bits.iter_mut().enumerate().filter(|(at, _)| immediate(1) >> at & 1 == 0);
                masked.for_each(|(_, bit)| *bit = Bit::constant(false));
                state.write(op0, &Word::Bits(bits), 8 * op0.size());
                state.clobber_flags(&STATUS);
            }
            Mnemonic::Or => {
                let bits = union(&state.read(op0), &state.read(op1), insn);
                state.write(op0, &Word::Bits(bits), 8 * op0.size());
                state.clobber_flags(&STATUS);
            }
            Mnemonic::Shr | Mnemonic::Shl | Mnemonic::Rol | Mnemonic::Ror => {
                let (mut bits, count) = (state.read(op0), immediate(1) as usize);
                let len = bits.len();
                match insn.mnemonic() {
                    Mnemonic::Rol => bits.rotate_right(count),
                    Mnemonic::Ror => bits.rotate_left(count),
                    Mnemonic::Shr => {
                        bits.rotate_left(count);
                        bits[len - count..].fill(Bit::constant(false));
                    }
                    _ => {
                        bits.rotate_right(count);
                        bits[..count].fill(Bit::constant(false));
                    }
                }
                state.write(op0, &Word::Bits(bits), 8 * len / 8);
                state.clobber_flags(&STATUS);
            }
            // Of one bit, alone in its byte, to what is short of 0x80 by it: overflows exactly when the bit is set.
            Mnemonic::Add if op0.size() == 1 => {
                let (bits, one) = (state.read(op0), (0x80 - immediate(1)).trailing_zeros() as usize);
                assert_eq!(0x80 - immediate(1), 1 << one, "{insn}");
                assert!(bits.iter().enumerate().all(|(at, bit)| at == one || bit.is(false)), "{insn}");
                let unknown = state.unknown();
                state.write(op0, &Word::Whole(unknown), 8);
                state.clobber_flags(&STATUS);
                state.flags[OF] = bits[one].clone();
            }
            // Sums of what has no bit in common are unions. Bit 1, which LAHF always sets, has been taken off before.
            Mnemonic::Add => {
                assert_eq!(state.owed.take(), Some(op0), "{insn}");
                let mut other = state.read(op1);
                assert!(other[1].is(true), "bit 1 of LAHF: {insn}");
                other[1] = Bit::constant(false);
                let bits = union(&state.read(op0), &other, insn);
                state.write(op0, &Word::Bits(bits), 64);
                state.clobber_flags(&STATUS);
            }
            Mnemonic::Lea if insn.memory_index() != Register::None => {
                assert_eq!((insn.memory_displacement64() as i64, insn.memory_index_scale()), (-2, 1), "{insn}");
                let bits = union(&state.read(insn.memory_base()), &state.read(insn.memory_index()), insn);
                state.write(op0, &Word::Bits(bits), 64);
                state.owed = Some(op0);
            }
            Mnemonic::Movzx => {
                let mut bits = state.read(op1);
                bits.resize(8 * op0.size(), Bit::constant(false));
                state.write(op0, &Word::Bits(bits), 8 * op0.size());
            }
            Mnemonic::Sahf => {
                let ah = state.read(Register::AH);
                [CF, PF, AF, ZF, SF].into_iter().for_each(|flag| state.flags[flag] = ah[flag].clone());
            }
            Mnemonic::Lahf => {
                let mut ah = vec![Bit::constant(false); 8];
                ah[1] = Bit::constant(true);
                [CF, PF, AF, ZF, SF].into_iter().for_each(|flag| ah[flag] = state.flags[flag].clone());
                state.write(Register::AH, &Word::Bits(ah), 8);
            }
            Mnemonic::Seto => {
                let mut bits = vec![Bit::constant(false); 8];
                bits[0] = state.flags[OF].clone();
                state.write(op0, &Word::Bits(bits), 8);
            }
            // One bit, as of DF.
            Mnemonic::Test if op0 == Register::AH && immediate(1).is_power_of_two() => {
                let bit = state.read(op0)[immediate(1).trailing_zeros() as usize].clone();
                state.clobber_flags(&STATUS);
                state.flags[ZF] = bit.xor(&Bit::constant(true));
            }
            Mnemonic::Test | Mnemonic::Cmp => state.clobber_flags(&STATUS),
            Mnemonic::Dec => {
                let slot = state.slot(insn);
                assert!(matches!(state.stack[slot], Word::Whole(Value::Unknown(_))), "{insn}");
                state.clobber_flags(&STATUS[1..]); // not CF
            }
            Mnemonic::Lea if op0 == Register::RSP => {
                assert_eq!((insn.memory_base(), insn.memory_displacement64()), (Register::RSP, 8), "{insn}");
                state.pop();
            }
            Mnemonic::Lea if insn.is_ip_rel_memory_operand() => {
                state.registers.insert(op0, Word::Whole(Value::Code(insn.ip_rel_memory_address())));
            }
            Mnemonic::Je => return self.branch(state, paths, insn, ZF, true),
            Mnemonic::Jne => return self.branch(state, paths, insn, ZF, false),
            Mnemonic::Jb => return self.branch(state, paths, insn, CF, true),
            Mnemonic::Jae => return self.branch(state, paths, insn, CF, false),
            Mnemonic::Call if insn.op0_kind() == OpKind::NearBranch64 => {
                state.stack.push(Word::Whole(Value::Code(state.ip)));
                state.calls.push(Word::Whole(Value::Code(state.ip)));
                state.ip = insn.near_branch_target();
            }
            Mnemonic::Jmp
                if insn.op0_kind() == OpKind::NearBranch64 && Some(insn.near_branch_target()) != self.thunk =>
            {
                state.ip = insn.near_branch_target();
            }
            Mnemonic::Ret | Mnemonic::Jmp => {
                assert!(matches!(insn.code(), Code::Retnq | Code::Jmp_rel32_64), "{insn}");
                let target = state.pop();
                let predicted = state.calls.pop();
                if !state.landed {
                    walked.mispredicted += usize::from(Some(&target) != predicted.as_ref());
                }
                match target {
                    Word::Whole(Value::Code(target)) => state.ip = target,
                    Word::Whole(Value::Caller) => return false,
                    other => panic!("returns to {other:?}"),
                }
            }
            _ if is_io(insn.code()) => {
                state.check_io(&self.file, walked, insn);
                let count = state.io.len();
                state.io.push(insn.code());
                walked.io_at.insert(ip);
                for (register, value) in &mut state.registers {
                    *value = Word::Whole(Value::After(count, *register));
                }
                let after = Word::Whole(Value::FlagsAfter(count)).bits();
                STATUS.into_iter().for_each(|flag| state.flags[flag] = after[flag].clone());
                state.transferred = Some(false);
            }
            _ => panic!("what is this for: {insn}"),
        }
        true
    }

    /// On to both sides of a conditional branch, each a few times, unless it is known where it goes.
    fn branch(&self, state: &mut State, paths: &mut Vec<State>, insn: &Instruction, flag: usize, set: bool) -> bool {
        let bit = state.resolve(&state.flags[flag]);
        if bit.of.is_empty() {
            if bit.constant == set {
                state.ip = insn.near_branch_target();
            }
            return true;
        }
        let times = state.branches.entry(insn.ip()).or_default();
        *times += 1;
        let again = *times <= 2;
        let assume = |state: &mut State, value: bool| {
            if let (1, Some(atom)) = (bit.of.len(), bit.of.first()) {
                state.assumed.insert(*atom, value ^ bit.constant);
            }
        };
        if again {
            let mut other = State { ip: insn.near_branch_target(), ..state.clone() };
            assume(&mut other, set);
            paths.push(other);
        }
        assume(state, !set);
        true
    }
}

impl State {
    fn unknown(&mut self) -> Value {
        self.unknown += 1;
        Value::Unknown(self.unknown)
    }

    fn clobber_flags(&mut self, flags: &[usize]) {
        for flag in flags {
            let unknown = self.unknown();
            self.flags[*flag] = Bit::of(unknown, 0);
        }
    }

    /// With what branches have found put in.
    fn resolve(&self, bit: &Bit) -> Bit {
        let mut bit = bit.clone();
        for (atom, value) in &self.assumed {
            if bit.of.remove(atom) {
                bit.constant ^= value;
            }
        }
        bit
    }

    fn are(&self, flags: &[Bit], value: Value) -> bool {
        STATUS.into_iter().all(|at| self.resolve(&flags[at]) == self.resolve(&Bit::of(value, at as u8)))
    }

    fn pop(&mut self) -> Word {
        self.stack.pop().expect("popped what is the caller's")
    }

    fn read(&self, register: Register) -> Vec<Bit> {
        let bits = self.registers[&register.full_register()].bits();
        let from = if is_high(register) { 8 } else { 0 };
        bits[from..from + 8 * register.size()].to_vec()
    }

    /// Writes the lowest bits of a word to a register; those of 32 are zero-extended.
    fn write(&mut self, register: Register, word: &Word, bits: usize) {
        let full = register.full_register();
        if bits == 64 {
            self.registers.insert(full, word.clone());
            return;
        }
        let mut all = if bits == 32 { vec![Bit::constant(false); 64] } else { self.registers[&full].bits() };
        let from = if is_high(register) { 8 } else { 0 };
        all[from..from + bits].clone_from_slice(&word.bits()[..bits]);
        self.registers.insert(full, Word::Bits(all));
    }

    fn load(&mut self, insn: &Instruction, file: &File) -> Word {
        let at = insn.memory_displacement64() as i64;
        // Not what a quirk's trigger looks at.
        if insn.memory_size().size() == 8 || Some(at) == file.rflags.map(i64::from) {
            let list = if self.io.is_empty() { &mut self.loaded } else { &mut self.read_again };
            list.push(at);
        }
        Word::Whole(Value::Guest(at))
    }

    fn store(&mut self, insn: &Instruction, value: Word) {
        assert!(
            self.landed || self.transferred == Some(true),
            "a register is saved before control was transferred: {insn}"
        );
        self.stored.push((insn.memory_displacement64() as i64, value));
    }

    /// Position on the stack of the word at [RSP + displacement].
    fn slot(&self, insn: &Instruction) -> usize {
        assert_eq!((insn.memory_base(), insn.memory_index()), (Register::RSP, Register::None), "{insn}");
        let displacement = insn.memory_displacement64() as i64;
        assert!(displacement >= 0 && displacement % 8 == 0, "below RSP, or no word of its own: {insn}");
        let slot = self.stack.len() as i64 - 1 - displacement / 8;
        usize::try_from(slot).unwrap_or_else(|_| panic!("beyond the stub's own frame: {insn}"))
    }

    /// Memory is accessed on the stack, by PUSH and the like or above RSP, and in the register file: nowhere else.
    fn check_memory(&self, insn: &Instruction, file: &File) {
        if !insn.op_kinds().any(|kind| kind == OpKind::Memory)
            || matches!(insn.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
        {
            return;
        }
        match insn.memory_base() {
            Register::RSP => {
                self.slot(insn);
            }
            base => {
                assert!(self.registers[&base].is(Value::File), "memory that is nobody's: {insn}");
                let at = insn.memory_displacement64() as i64;
                let known = file.offsets.iter().copied().chain(file.rflags).any(|offset| i64::from(offset) == at);
                assert!(known && insn.memory_index() == Register::None, "no register is there: {insn}");
                assert!(insn.memory_size().size() == 8 || self.transferred.is_none(), "a part of a register: {insn}");
            }
        }
    }

    /// At the first I/O every register is the guest's, at the others what the one before has left, and RSP is the only
    /// way back.
    fn check_io(&mut self, file: &File, walked: &mut Walked, insn: &Instruction) {
        let count = self.io.len();
        for (register, offset) in WORDS.into_iter().zip(file.offsets) {
            let expected = match count {
                0 => Value::Guest(offset.into()),
                _ => Value::After(count - 1, register),
            };
            assert!(self.registers[&register].is(expected), "{register:?} at the I/O: {:?}", self.registers[&register]);
        }
        assert!(self.stack.iter().any(|word| word.is(Value::File)));
        self.is_string |= insn.is_string_instruction();
        if self.is_string {
            assert!(self.resolve(&self.flags[DF]).is(false), "DF at the I/O");
        }
        let Some(rflags) = file.rflags else { return };
        match count {
            0 => {
                assert!(self.are(&self.flags, Value::Guest(rflags.into())), "flags at the I/O: {:?}", self.flags);
            }
            _ => walked.flags_lost |= !self.are(&self.flags, Value::FlagsAfter(count - 1)),
        }
    }

    /// What is common to both ends: the host has its registers back, RSP, IF and DF with them.
    fn check_return(&self) {
        assert!(self.stack.is_empty(), "{:?}", self.stack);
        for register in CALLEE_SAVED {
            assert!(self.registers[&register].is(Value::Host(register)), "{register:?} at the end");
        }
        for flag in [IF, DF] {
            let expected = self.resolve(&Bit::of(Value::HostFlags, flag as u8));
            assert_eq!(self.resolve(&self.flags[flag]), expected, "RFLAGS, bit {flag}, at the end");
        }
    }

    /// Of what a guest had in the registers nothing is left, or else all of it is, but for what served as a scratch.
    fn check_scrubbed(&self, scrubbed: bool) {
        let zero = Word::constant(0);
        if scrubbed {
            let left = SCRUBBED.iter().find(|register| self.registers[register] != zero);
            assert_eq!(left, None, "a register is not zero at the end");
            let unknown = |bit: &Bit| bit.of.iter().all(|(value, _)| matches!(value, Value::Unknown(_)));
            assert!(STATUS.into_iter().all(|flag| unknown(&self.flags[flag])), "a flag of the guest's at the end");
        } else {
            let cleared = SCRUBBED.iter().find(|register| self.registers[register] == zero);
            assert_eq!(cleared, None, "a register is zero at the end, which nobody asked for");
        }
    }

    /// At the end everything is stored.
    fn check_end(&self, file: &File, walked: &mut Walked) {
        self.check_return();
        assert!(self.calls.is_empty(), "{:?}", self.calls);
        assert_eq!(self.registers[&Register::RAX], Word::constant(0), "the result: no fault");
        walked.io.insert(self.io.clone());
        let last = self.io.len().checked_sub(1).expect("a path without an access");
        let (mut ascending, rflags) = (file.offsets.map(i64::from), file.rflags.map(i64::from));
        ascending.sort_unstable();
        // The flags first, RDI last; out again by address, the flags last.
        let rdi = i64::from(file.offsets[5]);
        let mut in_order: Vec<i64> = rflags.into_iter().chain(ascending).filter(|offset| *offset != rdi).collect();
        in_order.push(rdi);
        assert_eq!(self.loaded, in_order, "the order of the loads");
        assert_eq!(self.read_again, rflags.into_iter().collect::<Vec<_>>(), "read behind the I/O");
        let stored: Vec<i64> = self.stored.iter().map(|stored| stored.0).collect();
        assert_eq!(stored, ascending.into_iter().chain(rflags).collect::<Vec<_>>(), "the order of the stores");
        let at = |offset: i64| &self.stored.iter().find(|stored| stored.0 == offset).unwrap().1;
        for (register, offset) in WORDS.into_iter().zip(file.offsets) {
            assert!(at(offset.into()).is(Value::After(last, register)), "{register:?} as stored");
        }
        if let Some(rflags) = rflags {
            let bits = at(rflags).bits();
            for (position, bit) in bits.iter().enumerate().filter(|(position, _)| !STATUS.contains(position)) {
                assert_eq!(*bit, Bit::of(Value::Guest(rflags), position as u8), "RFLAGS as stored, bit {position}");
            }
            let (given, left) = (self.are(&bits, Value::Guest(rflags)), self.are(&bits, Value::FlagsAfter(last)));
            assert!(given || left, "RFLAGS as stored: {bits:?}");
            walked.flags_given |= given;
            walked.flags_left |= left;
        }
    }

    /// A fault at the next instruction: RIP is set, and nothing else.
    fn landing(&self, pad: u64, code: Code) -> State {
        // Whatever is in the registers: nothing but RSP is to be relied on, and RCX, RSI, RDI of a string instruction.
        let kept = string_registers(code);
        let mut landed = State { ip: pad, landed: true, is_string: !kept.is_empty(), stored: vec![], ..self.clone() };
        for (register, value) in &mut landed.registers {
            if !kept.contains(register) {
                landed.unknown += 1;
                *value = Word::Whole(Value::Unknown(landed.unknown));
            } else {
                *value = Word::Whole(Value::After(usize::MAX, *register));
            }
        }
        landed
    }

    /// Behind a landing pad nothing is stored but how far a string instruction got.
    fn check_landed(&self, file: &File) {
        self.check_return();
        assert_eq!(self.registers[&Register::RAX], Word::constant(1), "the result: a fault");
        let own = if self.is_string { STRING_REGISTERS } else { &[] };
        assert_eq!(self.stored.len(), own.len(), "stored behind a fault: {:?}", self.stored);
        for register in own {
            let word = WORDS.iter().position(|other| other == register).unwrap();
            let stored = self.stored.iter().find(|stored| stored.0 == i64::from(file.offsets[word]));
            assert!(stored.is_some_and(|stored| stored.1.is(Value::After(usize::MAX, *register))), "{register:?}");
        }
    }
}

const STRING_REGISTERS: &[Register] = &[Register::RCX, Register::RSI, Register::RDI];

/// The registers that say how far an instruction got.
fn string_registers(code: Code) -> &'static [Register] {
    if is_io(code) && super::kind(code).is_none() { STRING_REGISTERS } else { &[] }
}

/// Of two words that have no bit in common.
fn union(a: &[Bit], b: &[Bit], insn: &Instruction) -> Vec<Bit> {
    let either = |(a, b): (&Bit, &Bit)| match (a.is(false), b.is(false)) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => panic!("the union of two bits: {insn}"),
    };
    a.iter().zip(b).map(either).collect()
}

fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// Whether an instruction is port I/O.
pub fn is_io(code: Code) -> bool {
    let strings = [
        Code::Insb_m8_DX,
        Code::Insw_m16_DX,
        Code::Insd_m32_DX,
        Code::Outsb_DX_m8,
        Code::Outsw_DX_m16,
        Code::Outsd_DX_m32,
    ];
    super::kind(code).is_some() || strings.contains(&code)
}
