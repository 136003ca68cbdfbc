//! Follows a stub through its code, instruction by instruction, with names in place of values: where each register comes
//! from, what is on the stack, what the register file was given. Panics at whatever a stub must not do.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// A register as the stub's caller left it.
    Host(Register),
    /// The first argument: the address of the register file.
    Gprs,
    /// The return address of the stub's caller.
    Caller,
    /// A word of the register file.
    Guest(u64),
    /// A register as the I/O left it.
    After(Register),
    Flags(Flags),
    /// An address in the code.
    Code(u64),
    Zero,
    /// Something that only the payload of a quirk uses.
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flags {
    Host,
    /// Of `sub eax, eax`.
    AtIo,
    After,
}

/// The order of the words of the register file.
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

/// Disassembled code.
pub struct Listing {
    pub instructions: BTreeMap<u64, Instruction>,
    /// A JMP to here is a RET.
    thunk: Option<u64>,
}

/// What a walk has passed.
#[derive(Debug, Default)]
pub struct Walked {
    /// Addresses of the instructions.
    pub visited: BTreeSet<u64>,
    /// The port-I/O instructions, in their order.
    pub io: Vec<Code>,
    /// How many RETs went elsewhere than behind the latest CALL that was not returned from.
    pub mispredicted: usize,
}

#[derive(Clone)]
struct State {
    ip: u64,
    registers: BTreeMap<Register, Value>,
    flags: Flags,
    /// From the word that RSP pointed to at entry, downwards.
    stack: Vec<Value>,
    /// What a shadow stack or return predictor holds.
    calls: Vec<Value>,
    stored: BTreeMap<u64, Value>,
    /// A control transfer since the I/O; `None` before it.
    transferred: Option<bool>,
    branches: u32,
}

impl Listing {
    /// All of `code` from one end to the other.
    pub fn new(code: &[u8], va: u64, thunk: Option<u64>) -> Self {
        let mut instructions = BTreeMap::new();
        for insn in Decoder::with_ip(64, code, va, DecoderOptions::NONE).iter() {
            assert!(!insn.is_invalid(), "no instruction at {:#x}", insn.ip());
            instructions.insert(insn.ip(), insn);
        }
        Self { instructions, thunk }
    }

    /// Runs the stub at `entry` to its end, on every path.
    pub fn walk(&self, entry: u64) -> Walked {
        let host = |register| (register, if register == Register::RDI { Value::Gprs } else { Value::Host(register) });
        let mut paths = vec![State {
            ip: entry,
            registers: WORDS.into_iter().map(host).collect(),
            flags: Flags::Host,
            stack: vec![Value::Caller],
            calls: vec![Value::Caller],
            stored: BTreeMap::new(),
            transferred: None,
            branches: 0,
        }];
        let mut walked = Walked::default();
        while let Some(mut state) = paths.pop() {
            while self.step(&mut state, &mut paths, &mut walked) {}
            state.check_end();
        }
        walked
    }

    /// One instruction; false at the end of the stub.
    fn step(&self, state: &mut State, paths: &mut Vec<State>, walked: &mut Walked) -> bool {
        let ip = state.ip;
        let insn = self.instructions.get(&ip).unwrap_or_else(|| panic!("{ip:#x} is not the start of an instruction"));
        walked.visited.insert(ip);
        state.ip = insn.next_ip();
        state.check_memory(insn);
        if insn.flow_control() != FlowControl::Next {
            state.transferred = state.transferred.map(|_| true);
        }
        match insn.code() {
            Code::Endbr64 | Code::Nopd | Code::Nopw | Code::Cli | Code::Cld | Code::Jmp_rel8_64
                if insn.flow_control() == FlowControl::Next => {}
            Code::Push_r64 => state.stack.push(state.registers[&insn.op0_register()]),
            Code::Pushq_imm32 => state.stack.push(Value::Own),
            Code::Pushfq => state.stack.push(Value::Flags(state.flags)),
            Code::Pop_r64 => {
                let value = state.pop();
                state.registers.insert(insn.op0_register(), value);
            }
            Code::Popfq => {
                // Of a payload, which runs with the flags of the I/O or of the loads.
                assert!(matches!(state.pop(), Value::Flags(Flags::AtIo | Flags::After) | Value::Own), "{insn}");
                state.flags = Flags::After;
            }
            Code::Sub_r32_rm32 | Code::Sub_rm32_r32 | Code::Xor_r32_rm32 | Code::Xor_rm32_r32 => {
                assert_eq!((insn.op0_register(), insn.op1_register()), (Register::EAX, Register::EAX), "{insn}");
                state.registers.insert(Register::RAX, Value::Zero);
                state.flags = if insn.mnemonic() == iced_x86::Mnemonic::Sub { Flags::AtIo } else { Flags::Host };
            }
            Code::Mov_r64_rm64 if insn.op1_kind() == OpKind::Memory => {
                let value = match insn.memory_base() {
                    Register::RSP => state.stack[state.slot(insn)],
                    _ => Value::Guest(insn.memory_displacement64()),
                };
                state.registers.insert(insn.op0_register(), value);
            }
            Code::Mov_rm64_r64 if insn.op0_kind() == OpKind::Memory => {
                assert_eq!(state.transferred, Some(true), "a register is saved before control was transferred: {insn}");
                let value = state.registers[&insn.op1_register()];
                let before = state.stored.insert(insn.memory_displacement64(), value);
                assert_eq!(before, None, "stored twice: {insn}");
            }
            Code::Lea_r64_m if insn.op0_register() == Register::RSP => {
                assert_eq!((insn.memory_base(), insn.memory_displacement64()), (Register::RSP, 8), "{insn}");
                assert!(matches!(state.pop(), Value::Own | Value::Flags(_)), "{insn}");
            }
            Code::Lea_r64_m if insn.is_ip_rel_memory_operand() => {
                state.registers.insert(insn.op0_register(), Value::Code(insn.ip_rel_memory_address()));
            }
            // Of the payloads: the poll, and DF of the string forms.
            Code::Test_AL_imm8 | Code::Test_rm32_imm32 => {}
            Code::Dec_rm32 | Code::Or_rm32_imm32 => {
                let slot = state.slot(insn);
                assert!(matches!(state.stack[slot], Value::Own | Value::Flags(_)), "{insn}");
            }
            Code::Je_rel8_64 | Code::Jne_rel8_64 => {
                state.branches += 1;
                if state.branches < 4 {
                    paths.push(State { ip: insn.near_branch_target(), ..state.clone() });
                }
            }
            Code::Call_rel32_64 => {
                state.stack.push(Value::Code(state.ip));
                state.calls.push(Value::Code(state.ip));
                state.ip = insn.near_branch_target();
            }
            Code::Jmp_rel32_64 if Some(insn.near_branch_target()) != self.thunk => state.ip = insn.near_branch_target(),
            Code::Jmp_rel8_64 => state.ip = insn.near_branch_target(),
            Code::Retnq | Code::Jmp_rel32_64 => {
                let target = state.pop();
                walked.mispredicted += usize::from(Some(target) != state.calls.pop());
                match target {
                    Value::Code(target) => state.ip = target,
                    Value::Caller => return false,
                    other => panic!("returns to {other:?}"),
                }
            }
            io if is_io(io) => {
                if walked.io.is_empty() {
                    state.check_io();
                }
                walked.io.push(io);
                for (register, value) in &mut state.registers {
                    *value = Value::After(*register);
                }
                state.flags = Flags::After;
                state.transferred = Some(false);
            }
            _ => panic!("what is this for: {insn}"),
        }
        true
    }
}

impl State {
    fn pop(&mut self) -> Value {
        self.stack.pop().expect("popped what is the caller's")
    }

    /// Position on the stack of the word at [RSP + displacement].
    fn slot(&self, insn: &Instruction) -> usize {
        assert_eq!((insn.memory_base(), insn.memory_index()), (Register::RSP, Register::None), "{insn}");
        let words = insn.memory_displacement64() as i64 / 8;
        assert!(words >= 0, "below RSP: {insn}");
        let slot = self.stack.len() as i64 - 1 - words;
        usize::try_from(slot).unwrap_or_else(|_| panic!("beyond the stub's own frame: {insn}"))
    }

    /// Memory is accessed on the stack, by PUSH and the like or above RSP, and in the register file: nowhere else.
    fn check_memory(&self, insn: &Instruction) {
        let implicit = insn.is_stack_instruction() || is_io(insn.code());
        let none = matches!(insn.code(), Code::Lea_r64_m | Code::Nopd | Code::Nopw);
        let explicit =
            insn.op_kinds().any(|kind| !matches!(kind, OpKind::Register | OpKind::Immediate8 | OpKind::NearBranch64));
        if implicit || none || !explicit {
            return;
        }
        match insn.memory_base() {
            Register::RSP => {
                self.slot(insn);
            }
            base => {
                assert_eq!(self.registers.get(&base), Some(&Value::Gprs), "memory that is nobody's: {insn}");
                assert!(insn.memory_displacement64() <= 120 && insn.memory_index() == Register::None, "{insn}");
            }
        }
    }

    /// At the I/O every register is the guest's, and RSP is the only way back.
    fn check_io(&self) {
        for (i, register) in WORDS.into_iter().enumerate() {
            assert_eq!(self.registers[&register], Value::Guest(8 * i as u64), "{register:?} at the I/O");
        }
        assert!(matches!(self.flags, Flags::AtIo), "{:?} at the I/O", self.flags);
        assert!(self.stack.contains(&Value::Gprs));
    }

    /// At the end everything is stored, and the host has its registers back.
    fn check_end(&self) {
        assert!(self.stack.is_empty() && self.calls.is_empty(), "{:?} {:?}", self.stack, self.calls);
        for register in CALLEE_SAVED {
            assert_eq!(self.registers[&register], Value::Host(register));
        }
        assert_eq!(self.registers[&Register::RAX], Value::Zero, "the result: no fault");
        for (i, register) in WORDS.into_iter().enumerate() {
            assert_eq!(self.stored.get(&(8 * i as u64)), Some(&Value::After(register)), "{register:?} as stored");
        }
        assert_eq!(self.stored.get(&120), Some(&Value::Flags(Flags::After)), "RFLAGS as stored");
    }
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
