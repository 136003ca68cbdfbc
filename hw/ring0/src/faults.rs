//! A fault at each instruction of `<io>`, in each quirk and without any: execution goes on at the landing pad, by RIP alone,
//! and the host finds everything as it was, IF included.

use core::arch::naked_asm;

use hw_shared::stubs::Thunk;
use hw_shared::{DF, Failure, Rng};
use ioemul::{
    CodeSink, CodeTable, EmitOptions, Helper, Helpers, IoInsn, Quirk, RegisterFile, Step, StubLayout, SymbolName,
    Trigger, Width, emit_stub, stub_fixup,
};

use crate::traps::with_breakpoint;

const IF: u64 = 1 << 9;
/// What was written there last: reading and writing it does no harm.
const POST_CODE: u16 = 0x80;

/// Every quirk of the library, one of all steps, and machine code with words on the stack: all of them in ring 0, with
/// interrupts off.
fn quirks() -> impl Iterator<Item = Quirk> {
    const STEPS: &[Step] = &[
        Step::Access,
        Step::Spin { count: 2 },
        Step::InAl,
        Step::WaitCarryClear { limit: 2 },
        Step::Poll { mask: 0x80, limit: 2 },
        Step::OutAl { port: POST_CODE as u8 },
    ];
    let steps = Quirk::from_steps("all steps", Trigger::out(Width::Byte, POST_CODE), STEPS);
    // SAFETY: pushes and pops, and accesses by way of the payload.
    let code = unsafe {
        Quirk::new("machine code", Trigger::out_dx(Width::Byte, POST_CODE), |payload| {
            for _ in 0..3 {
                payload.push(0x50); // push rax
                payload.pushed(8);
                payload.io(IoInsn::out_imm8(Width::Byte, POST_CODE as u8));
            }
            payload.extend(&[0x48, 0x8d, 0xa4, 0x24, 0x30, 0xff, 0xff, 0xff]); // lea rsp, [rsp - 208]
            payload.pushed(208);
            payload.io(IoInsn::in_imm8(Width::Word, POST_CODE as u8)); // as deep as it may be: 29 words, and the flags
            payload.extend(&[0x48, 0x8d, 0xa4, 0x24, 0xd0, 0x00, 0x00, 0x00]); // lea rsp, [rsp + 208]
            payload.popped(208);
            payload.io(IoInsn::in_dx(Width::Word));
            for _ in 0..3 {
                payload.extend(&[0x48, 0x8d, 0x64, 0x24, 0x08]); // lea rsp, [rsp + 8]
                payload.popped(8);
            }
        })
    };
    // 65,536 turns would be waited for at each instruction.
    let known = Quirk::ALL.iter().copied().filter(|quirk| quirk.name() != Quirk::GSMI_SPIN.name());
    // ProLiant's port is there, and its poll ends.
    let known = known.map(|quirk| if quirk.trigger().port == 0xcd4 { quirk } else { quirk.at_port(POST_CODE) });
    known.chain([steps, code]).map(Quirk::interrupts_off)
}

/// Runs everything in memory that can be executed; returns how many faults there were. In a control the landing pads do not
/// give the flags back.
pub fn run(memory: &mut [u8], layout: StubLayout, variant: &str, thunk: Thunk, control: bool) -> Result<u64, Failure> {
    let mut faults = 0;
    for quirk in quirks() {
        let quirks = [quirk];
        let options = EmitOptions::new().layout(layout).quirks(&quirks);
        let hardened = options.registers(RegisterFile::PT_REGS).endbr64(true).int3(true).scrub(true);
        let hardened = hardened.return_thunk(thunk.address);
        faults += match variant {
            "breakpoints, slot" => in_slots(memory, &options, control),
            "breakpoints, table" => in_a_table(memory, &options, control),
            _ => in_a_table(memory, &hardened, control),
        }?;
    }
    Ok(faults)
}

/// One stub, where its faults go, and what it is called with.
struct Stub<'a> {
    va: u64,
    len: usize,
    insn: IoInsn,
    /// If it is that of the quirk, or looks whether the quirk takes the access.
    quirk: Option<&'a Quirk>,
    options: &'a EmitOptions<'a>,
}

fn in_slots(memory: &mut [u8], options: &EmitOptions<'_>, control: bool) -> Result<u64, Failure> {
    let (helpers_memory, slot) = memory.split_at_mut(Helpers::MAX_LEN);
    let va = helpers_memory.as_ptr() as u64;
    let helpers = Helpers::emit(helpers_memory, va, options).expect("it fits");
    if control {
        let pads = helpers.symbols().find(|symbol| symbol.0 == Helper::LandingPads.name()).expect("they are there");
        forget_the_flags(&mut helpers_memory[(pads.1 - helpers.va()) as usize..helpers.len()]);
    }
    let quirk = &options.quirks[0];
    let of_quirk = quirk.trigger().forms().into_iter().flatten().map(|insn| (insn, Some(quirk)));
    let mut faults = 0;
    for (insn, quirk) in of_quirk.chain(plain().map(|insn| (insn, None))) {
        let va = slot.as_ptr() as u64;
        let len = emit_stub(slot, va, insn, &helpers).expect("it fits");
        let stub = Stub { va, len, insn, quirk, options };
        faults += stub.fault_everywhere(|rip| stub_fixup(va, insn, &helpers, rip), |_| ())?;
    }
    Ok(faults)
}

fn in_a_table(memory: &mut [u8], options: &EmitOptions<'_>, control: bool) -> Result<u64, Failure> {
    let va = memory.as_ptr() as u64;
    let table = CodeTable::emit(memory, va, options).expect("it fits");
    if control {
        let pads = table.symbols().find(|symbol| symbol.name == SymbolName::Helper(Helper::LandingPads));
        let pads = pads.expect("they are there");
        forget_the_flags(&mut memory[(pads.address - va) as usize..][..pads.len]);
    }
    let mut faults = 0;
    for symbol in table.symbols() {
        let (insn, quirk) = match symbol.name {
            SymbolName::Quirk { insn, .. } => (insn, Some(&options.quirks[0])),
            SymbolName::Stub(insn) if plain().any(|plain| plain == insn) => (insn, None),
            _ => continue,
        };
        let stub = Stub { va: symbol.address, len: symbol.len, insn, quirk, options };
        // What the table lists has to be among the instructions that a fault was raised at.
        let within = |rip: &u64| (stub.va..stub.va + stub.len as u64).contains(rip);
        let mut unseen = [0; 8];
        unseen.iter_mut().zip(table.faults().map(|fault| fault.0).filter(within)).for_each(|(at, rip)| *at = rip);
        let raised = |rip| unseen.iter_mut().filter(|at| **at == rip).for_each(|at| *at = 0);
        faults += stub.fault_everywhere(|rip| table.fixup(rip), raised)?;
        if unseen != [0; 8] {
            return Err(Failure::Other("an access was not reached"));
        }
    }
    Ok(faults)
}

/// Some forms of the rest.
fn plain() -> impl Iterator<Item = IoInsn> {
    let port = POST_CODE as u8;
    [IoInsn::in_dx(Width::Dword), IoInsn::out_imm8(Width::Word, port), IoInsn::in_imm8(Width::Byte, port)]
        .into_iter()
        .chain(IoInsn::strings().step_by(5))
}

/// Makes the POPFQ of the landing pads a POP RAX.
fn forget_the_flags(pads: &mut [u8]) {
    let mut found = pads.iter_mut().filter(|byte| **byte == 0x9d);
    *found.next().expect("a quirk has interrupts off") = 0x58;
}

/// Words of the register file's structure, and where it starts: room on both sides.
const WORDS: usize = 40;
const START: usize = 8;

impl Stub<'_> {
    /// Calls the stub again and again, a fault being raised at another byte of it each time; `raised` is told of those at
    /// which there is an instruction that it came to.
    fn fault_everywhere(
        &self,
        fixup: impl Fn(u64) -> Option<u64>,
        mut raised: impl FnMut(u64),
    ) -> Result<u64, Failure> {
        let (mut faults, mut masked) = (0, 0);
        for rip in self.va..self.va + self.len as u64 {
            let Some(pad) = fixup(rip) else { continue };
            let mut reached = false;
            for rflags in [0, IF, DF, IF | DF] {
                let at_fault = self.fault_at(rip, pad, rflags)?;
                reached |= at_fault.is_some();
                faults += u64::from(at_fault.is_some());
                masked += u64::from(at_fault.is_some_and(|at_fault| rflags & IF != 0 && at_fault & IF == 0));
            }
            if reached {
                raised(rip);
            }
        }
        match (faults, masked > 0) {
            (0, _) => Err(Failure::Other("no fault was raised")),
            (_, masked) if masked != self.quirk.is_some() => Err(Failure::Other("IF at the access")),
            _ => Ok(faults),
        }
    }

    /// Calls the stub with these flags, a fault being raised at `rip`; returns RFLAGS as they were there, if that was
    /// reached.
    fn fault_at(&self, rip: u64, pad: u64, rflags: u64) -> Result<Option<u64>, Failure> {
        let mut scratch = [0_u32; 4];
        let mut file = self.register_file(rip, scratch.as_mut_ptr());
        let given = file;
        let mut found = [0; FOUND];
        let pointer = file.as_mut_ptr().wrapping_add(START);
        // SAFETY: a stub, and a register file as it was emitted for.
        let at_fault = with_breakpoint(rip, pad, || unsafe { call(self.va, pointer, rflags, &mut found) });
        let [before, after, result, left @ .., _, _, _, _, _, _] = found;
        let saved = &found[FOUND - SAVED.len()..];
        let others = !ioemul::Gprs::STATUS_FLAGS;
        let wrong = match at_fault {
            _ if (before ^ after) & others & IF != 0 => "IF is not what it was",
            _ if (before ^ after) & others != 0 => "RFLAGS are not what they were",
            _ if saved != SAVED => "a register that a callee saves is not what it was",
            _ if self.options.scrub && left != [0; 8] => "a register is not scrubbed",
            _ if result != u64::from(at_fault.is_some()) => "the result is wrong",
            Some(_) if file != given => "the register file is not as it was given",
            _ => return Ok(at_fault),
        };
        Err(Failure::Other(wrong))
    }

    /// Random registers with which the quirk takes the access, and INS and OUTS move one element.
    fn register_file(&self, seed: u64, scratch: *mut u32) -> [u64; WORDS] {
        let mut rng = Rng::new(seed);
        let mut file = core::array::from_fn(|_| rng.next());
        let mut gprs = rng.gprs();
        let port = self.quirk.map_or(POST_CODE, |quirk| quirk.trigger().port);
        gprs.rdx = gprs.rdx & !0xffff | u64::from(port);
        if let Some(quirk) = self.quirk {
            let trigger = quirk.trigger();
            gprs.rax = gprs.rax & !u64::from(trigger.mask) | u64::from(trigger.value);
            gprs.rflags &= !ioemul::Gprs::CF; // what GSMI waits for
        }
        if self.insn.is_string() {
            (gprs.rcx, gprs.rsi, gprs.rdi) = (1, scratch as u64, scratch as u64);
        }
        let registers = &self.options.registers;
        let offsets = registers.offsets().iter().copied().chain(registers.rflags());
        for (offset, word) in offsets.zip(gprs.to_words()) {
            file[START.strict_add_signed(isize::from(offset) / 8)] = word;
        }
        file
    }
}

/// What RBX, RBP and R12 to R15 hold at the call.
const SAVED: [u64; 6] = [0xb0b0_0003, 0xb0b0_0005, 0xb0b0_000c, 0xb0b0_000d, 0xb0b0_000e, 0xb0b0_000f];

/// RFLAGS before and after, RAX, RCX, RDX, RSI, RDI, R8 to R11, and those of [`SAVED`].
const FOUND: usize = 3 + 8 + SAVED.len();

/// Calls `entry(file)` with these bits of RFLAGS set; fills in what was found afterwards. RSP has to come back: else the
/// machine resets.
#[unsafe(naked)]
unsafe extern "sysv64" fn call(entry: u64, file: *mut u64, rflags: u64, found: &mut [u64; FOUND]) {
    naked_asm!(
        "push rbx; push rbp; push r12; push r13; push r14; push r15",
        "push rcx",
        "push rsp", // a word that knows where it is
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov ebx, {rbx}; mov ebp, {rbp}; mov r12d, {r12}; mov r13d, {r13}; mov r14d, {r14}; mov r15d, {r15}",
        "pushfq",
        "or [rsp], rdx",
        "popfq",
        "pushfq",
        "pop qword ptr [rcx]",
        "call rax",
        "pushfq",
        "cli",
        "cld",
        "push rax",
        "lea rax, [rsp + 24]",
        "cmp [rsp + 16], rax",
        "je 2f",
        "int3",
        "2:",
        "mov rax, [rsp + 24]",
        "pop qword ptr [rax + 16]",
        "pop qword ptr [rax + 8]",
        "mov [rax + 24], rcx; mov [rax + 32], rdx; mov [rax + 40], rsi; mov [rax + 48], rdi",
        "mov [rax + 56], r8; mov [rax + 64], r9; mov [rax + 72], r10; mov [rax + 80], r11",
        "mov [rax + 88], rbx; mov [rax + 96], rbp; mov [rax + 104], r12",
        "mov [rax + 112], r13; mov [rax + 120], r14; mov [rax + 128], r15",
        "add rsp, 16",
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
        "ret",
        rbx = const SAVED[0], rbp = const SAVED[1], r12 = const SAVED[2], r13 = const SAVED[3], r14 = const SAVED[4],
        r15 = const SAVED[5],
    )
}
