//! Stubs written through one mapping and executed in another, as a hypervisor's are, and resumed there after faults.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::arch::asm;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};
use std::{mem, ptr};

use common::alias::Alias;
use common::files::{self, Memory};
use common::slots::{QUIRKS, file, options};
use common::walk::is_io;
use common::{Rng, host, some_forms};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use ioemul::{
    CodeSink, CodeTable, EmitOptions, Gprs, Helpers, IoInsn, Payload, Quirk, Ring, StubLayout, SymbolName, Trigger,
    Width, emit_stub, stub_fixup,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);
const IN: IoInsn = IoInsn::in_dx(Width::Byte);

/// CPUID, which needs no privilege, where the access would be.
fn cpuid() -> Quirk {
    // SAFETY: CPUID changes four registers.
    unsafe { Quirk::new("CPUID", Trigger::out_dx(Width::Byte, 0x80), |payload| payload.extend(&[0x0f, 0xa2])) }
}

/// Accesses with 0, 1, 2, 29 and again 1 word on the stack, of a payload that is machine code.
fn at_many_depths() -> Quirk {
    fn payload(payload: &mut Payload<'_>) {
        payload.io(OUT);
        dynasm::dynasm!(payload ; .arch x64 ; push rbx);
        payload.pushed(8);
        payload.io(IoInsn::in_imm8(Width::Dword, 0x80));
        dynasm::dynasm!(payload ; .arch x64 ; pushfq);
        payload.pushed(8);
        payload.io(IoInsn::out_imm8(Width::Word, 0x81));
        dynasm::dynasm!(payload ; .arch x64 ; lea rsp, [DWORD rsp - 216]);
        payload.pushed(216);
        payload.io(IN);
        dynasm::dynasm!(payload ; .arch x64 ; lea rsp, [DWORD rsp + 216]);
        payload.popped(216);
        dynasm::dynasm!(payload ; .arch x64 ; popfq);
        payload.popped(8);
        payload.io(IoInsn::in_imm8(Width::Word, 0x82));
        dynasm::dynasm!(payload ; .arch x64 ; pop rbx);
        payload.popped(8);
    }
    // SAFETY: it pops what it pushes, says so, and touches nothing else.
    unsafe { Quirk::new("at many depths", Trigger::out(Width::Byte, 0x84), payload) }
}

/// A register file's contents as the memory of `file` can show them.
fn visible(gprs: Gprs, file: &files::File) -> Gprs {
    Gprs { rflags: if file.rflags.is_some() { gprs.rflags } else { 0 }, ..gprs }
}

/// Runs a stub that executes CPUID.
fn runs_cpuid(entry: u64, file: &files::File, seed: u64) {
    let random = Rng(seed).gprs();
    let given = Gprs { rax: 0x8000_0000, rdx: random.rdx & !0xffff | 0x80, ..random };
    let mut memory = Memory::new(*file, &given);
    // SAFETY: a stub and a register file.
    assert_eq!(unsafe { host::call(entry as *const u8, memory.pointer()) }, 0);
    let leaf = std::arch::x86_64::__cpuid_count(0x8000_0000, given.rcx as u32);
    let [rax, rbx, rcx, rdx] = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u64::from);
    assert_eq!(memory.gprs(), visible(Gprs { rax, rbx, rcx, rdx, ..given }, file));
}

#[test]
fn written_through_one_mapping_and_executed_in_another() {
    let quirks = [cpuid()];
    for &layout in StubLayout::ALL {
        for file in files::ALL {
            let mut alias = Alias::new(0x4000);
            let va = alias.va();
            let (first, second) = alias.memory().split_at_mut(0x1000);
            // A return thunk of the caller's: RET.
            first[0x800] = 0xc3;
            for bits in 0..8 {
                let options = EmitOptions::new()
                    .layout(layout)
                    .registers(file.library)
                    .endbr64(bits & 1 != 0)
                    .return_thunk((bits & 2 != 0).then_some(va + 0x800))
                    .int3(bits & 4 != 0)
                    .ring(Ring::Three)
                    .quirks(&quirks);
                let helpers = Helpers::emit(&mut first[..0x800], va, &options).unwrap();
                let at = 0x100 + 0x511 * bits;
                let va = va + 0x1000 + at as u64;
                emit_stub(&mut second[at..], va, OUT, &helpers).unwrap();
                runs_cpuid(va, file, bits as u64);
            }
        }
    }
}

#[test]
fn a_table_written_through_one_mapping_and_executed_in_another() {
    let quirks = [cpuid()];
    for &layout in StubLayout::ALL {
        for file in files::ALL {
            let options = EmitOptions::new().layout(layout).registers(file.library).ring(Ring::Three).quirks(&quirks);
            let mut alias = Alias::new(CodeTable::size(&options));
            let va = alias.va();
            let table = CodeTable::emit(alias.memory(), va, &options).unwrap();
            let entry = table.resolve(OUT, 0, 0x80);
            assert_ne!(entry, table.entry(OUT));
            assert_eq!(table.resolve(OUT, 0, 0x81), table.entry(OUT));
            assert_eq!(table.resolve(IN, 0, 0x80), table.entry(IN));
            runs_cpuid(entry.unwrap(), file, 0);
        }
    }
}

/// What a host's exception table knows of an instruction.
struct Fault {
    rip: u64,
    pad: u64,
    next: u64,
    is_string: bool,
}

/// What the handler is to do with faults: pass over so many, as if the access had been made and had changed nothing,
/// then resume.
struct Resume {
    list: Vec<Fault>,
    skip: AtomicUsize,
    /// Move RCX, RSI and RDI first, as if a string instruction had got somewhere before it faulted.
    progress: AtomicBool,
    seen: AtomicUsize,
}

const PROGRESS: [i64; 3] = [-3, 0x10, 0x20];

static RESUME: AtomicPtr<Resume> = AtomicPtr::new(ptr::null_mut());

/// A host's handler, which this crate's own knows nothing of. It sets RIP, and nothing else.
extern "C" fn handler(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's context; the list is complete before the first fault.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        let fault = RESUME.load(SeqCst).as_ref().and_then(|resume| {
            let at = resume.list.binary_search_by_key(&rip, |fault| fault.rip).ok()?;
            Some((resume, &resume.list[at]))
        });
        let Some((resume, fault)) = fault else {
            libc::signal(signal, libc::SIG_DFL);
            return;
        };
        if resume.seen.fetch_add(1, SeqCst) < resume.skip.load(SeqCst) {
            registers[libc::REG_RIP as usize] = fault.next as i64;
            return;
        }
        if fault.is_string && resume.progress.load(SeqCst) {
            let moved = [libc::REG_RCX, libc::REG_RSI, libc::REG_RDI];
            for (register, by) in moved.into_iter().zip(PROGRESS) {
                registers[register as usize] = registers[register as usize].wrapping_add(by);
            }
        }
        registers[libc::REG_RIP as usize] = fault.pad as i64;
    }
}

/// Installs the handler, and keeps it for one test at a time.
fn with_handler(test: impl FnOnce()) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // SAFETY: all-zero is a valid sigaction; the handler has the signature that the flags say.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
    }
    test();
    RESUME.store(ptr::null_mut(), SeqCst);
}

impl Resume {
    fn new(mut list: Vec<Fault>) -> Box<Self> {
        list.sort_by_key(|fault| fault.rip);
        Box::new(Self { list, skip: 0.into(), progress: false.into(), seen: 0.into() })
    }

    fn prepare(&self, skip: usize, progress: bool) {
        self.skip.store(skip, SeqCst);
        self.progress.store(progress, SeqCst);
        self.seen.store(0, SeqCst);
        RESUME.store(ptr::from_ref(self).cast_mut(), SeqCst);
    }

    /// Runs a stub to its fault behind `skip` others. Returns whether there was one.
    fn run(&self, entry: u64, file: &files::File, given: Gprs, skip: usize, progress: bool) -> bool {
        let mut memory = Memory::new(*file, &given);
        self.prepare(skip, progress);
        // SAFETY: a stub and a register file; the process has no privilege for CLI and any port.
        let result = unsafe { host::call(entry as *const u8, memory.pointer()) };
        let faulted = self.seen.load(SeqCst) > skip;
        assert_eq!(result, u64::from(faulted), "{}, {skip} passed over", file.name);
        let moved = |value: u64, by: usize| value.wrapping_add_signed(if progress { PROGRESS[by] } else { 0 });
        let expected = Gprs { rcx: moved(given.rcx, 0), rsi: moved(given.rsi, 1), rdi: moved(given.rdi, 2), ..given };
        assert_eq!(memory.gprs(), visible(expected, file), "{}, {skip} passed over", file.name);
        faulted
    }

    fn run_string(&self, entry: u64, file: &files::File, seed: u64) {
        let given = Gprs { rcx: 7, ..Rng(seed).gprs() };
        assert!(self.run(entry, file, given, 0, false));
        assert!(self.run(entry, file, given, 0, true));
        assert!(!self.run(entry, file, given, 1, false), "one access");
    }

    fn run_plain(&self, entry: u64, file: &files::File, seed: u64) {
        // No quirk is for this port.
        let given = Rng(seed).gprs();
        let given = Gprs { rdx: given.rdx & !0xffff | 0x1234, ..given };
        assert!(self.run(entry, file, given, 0, false));
        assert!(!self.run(entry, file, given, 1, false), "one access");
    }

    fn run_quirk(&self, entry: u64, file: &files::File, given: Gprs) -> usize {
        let faults = (0..7).take_while(|skip| self.run(entry, file, given, *skip, false)).count();
        assert!(faults > 0);
        faults
    }
}

/// Registers with which the quirk takes an access.
fn triggering(quirk: &Quirk, seed: u64) -> Gprs {
    let (trigger, random) = (quirk.trigger(), Rng(seed).gprs());
    Gprs {
        rax: random.rax & !u64::from(trigger.mask) | u64::from(trigger.value),
        rdx: random.rdx & !0xffff | u64::from(trigger.port),
        ..random
    }
}

/// How many faults a quirk goes through when each is passed over, as far as they are counted: CLI is one of them.
fn check_count(quirk: &Quirk, insn: IoInsn, ring: Ring, faults: usize) {
    let expected = match quirk.name() {
        "at many depths" => 5,
        "Dell SMM" | "ThinkPad SMAPI" | "read-back" => 2,
        "GSMI carry handshake" | "GSMI spin" => 1,
        _ => return assert!(faults >= 2, "{} {insn} {ring:?}", quirk.name()),
    };
    assert_eq!(faults, expected, "{} {insn} {ring:?}", quirk.name());
}

/// What a fault can be at: the accesses, and CLI, which a process may not execute.
fn can_fault(insn: &Instruction) -> bool {
    is_io(insn.code()) || insn.mnemonic() == Mnemonic::Cli
}

fn fault(insn: &Instruction, pad: u64) -> Fault {
    Fault { rip: insn.ip(), pad, next: insn.next_ip(), is_string: insn.is_string_instruction() }
}

fn decode(code: &[u8], va: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, code, va, DecoderOptions::NONE).iter().collect()
}

/// All options, and every quirk for every register file, in as few tables as hold them.
fn all_options<'q>(layout: StubLayout, lists: &'q [Vec<Quirk>]) -> Vec<EmitOptions<'q>> {
    let mut all: Vec<EmitOptions<'q>> =
        options(layout).into_iter().map(|options| options.quirks(options.quirks)).collect();
    for file in files::ALL {
        for quirks in lists {
            for ring in [Ring::Zero, Ring::Three] {
                all.push(EmitOptions::new().layout(layout).registers(file.library).ring(ring).quirks(quirks));
            }
        }
    }
    for quirks in lists {
        all.extend(
            common::slots::hardenings().map(|options| {
                options.layout(layout).ring(Ring::Three).registers(files::ALL[2].library).quirks(quirks)
            }),
        );
    }
    all
}

fn lists() -> [Vec<Quirk>; 2] {
    let second = [Quirk::PROLIANT_UNBOUNDED, Quirk::THINKPAD_SMAPI, Quirk::GSMI_SPIN, at_many_depths()];
    let lists = [QUIRKS[8].to_vec(), second.to_vec()];
    let listed = |quirk: &Quirk| lists.iter().flatten().any(|other| other.name() == quirk.name());
    assert!(Quirk::ALL.iter().all(listed));
    lists
}

#[test]
fn a_fault_in_a_slot_is_resumed_by_rip_alone() {
    let lists = lists();
    let plain: Vec<IoInsn> =
        some_forms().step_by(5).map(|form| form.insn).chain(IoInsn::strings().step_by(3)).collect();
    with_handler(|| {
        for &layout in StubLayout::ALL {
            let alone: Vec<Vec<Quirk>> = Quirk::ALL.iter().map(|quirk| vec![*quirk]).collect();
            let all = all_options(layout, &lists).into_iter();
            for (seed, options) in all.chain(all_options(layout, &alone)).enumerate() {
                const SLOT: usize = 0x1000;
                let quirk_forms = || {
                    let quirks = options.quirks.iter();
                    quirks
                        .flat_map(|quirk| quirk.trigger().forms().into_iter().flatten().map(move |insn| (quirk, insn)))
                };
                let insns: Vec<IoInsn> = plain.iter().copied().chain(quirk_forms().map(|form| form.1)).collect();
                let mut alias = Alias::new(SLOT * (1 + insns.len()));
                let va = alias.va();
                let options = options.return_thunk(options.return_thunk.map(|_| va + 0x800));
                let memory = alias.memory();
                memory[0x800] = 0xc3;
                let helpers = Helpers::emit(&mut memory[..0x800], va, &options).unwrap();
                let (mut list, mut entries) = (Vec::new(), Vec::new());
                for (index, &insn) in insns.iter().enumerate() {
                    let at = SLOT * (1 + index);
                    let entry = va + at as u64;
                    let len = emit_stub(&mut memory[at..at + SLOT], entry, insn, &helpers).unwrap();
                    for code in decode(&memory[at..at + len], entry).iter().filter(|code| can_fault(code)) {
                        list.push(fault(code, stub_fixup(entry, insn, &helpers, code.ip()).unwrap()));
                    }
                    entries.push(entry);
                }
                let (resume, file, seed) = (Resume::new(list), file(&options), seed as u64);
                for (insn, entry) in plain.iter().zip(&entries) {
                    match insn.is_string() {
                        true => resume.run_string(*entry, &file, seed),
                        false => resume.run_plain(*entry, &file, seed),
                    }
                }
                for ((quirk, insn), entry) in quirk_forms().zip(&entries[plain.len()..]) {
                    let given = triggering(quirk, seed);
                    let faults = resume.run_quirk(*entry, &file, given);
                    let first = options.quirks.iter().find(|quirk| quirk.applies(insn, given.rax, given.rdx));
                    check_count(first.unwrap(), insn, options.ring, faults);
                    if quirk.trigger().port != 0x84 && insn == OUT {
                        resume.run_plain(*entry, &file, seed); // the quirk's slot, with another port
                    }
                }
            }
        }
    });
}

/// A table behind its return thunk, in memory of its own.
fn table(options: EmitOptions<'_>) -> (Alias, CodeTable, EmitOptions<'_>, Box<Resume>) {
    const THUNK: usize = 64;
    let size = CodeTable::size(&options.return_thunk(options.return_thunk.map(|_| 0)));
    let mut alias = Alias::new(THUNK + size);
    let va = alias.va();
    let options = options.return_thunk(options.return_thunk.map(|_| va));
    let memory = alias.memory();
    memory[0] = 0xc3;
    let table = CodeTable::emit(&mut memory[THUNK..], va + THUNK as u64, &options).unwrap();
    let at = |rip: u64| &memory[(rip - va) as usize..];
    let mut list: Vec<Fault> = table
        .faults()
        .map(|(rip, pad)| {
            assert_eq!(table.fixup(rip), Some(pad));
            fault(&Decoder::with_ip(64, at(rip), rip, DecoderOptions::NONE).decode(), pad)
        })
        .collect();
    // CLI is no access: an exception table that is to have it as well asks for it.
    for symbol in table.symbols().filter(|symbol| matches!(symbol.name, SymbolName::Quirk { .. })) {
        let code = decode(&at(symbol.address)[..symbol.len], symbol.address);
        let cli = code.iter().filter(|code| code.mnemonic() == Mnemonic::Cli);
        list.extend(cli.map(|code| fault(code, table.fixup(code.ip()).unwrap())));
    }
    (alias, table, options, Resume::new(list))
}

#[test]
fn a_fault_in_a_table_is_resumed_by_rip_alone() {
    let lists = lists();
    with_handler(|| {
        for &layout in StubLayout::ALL {
            for (seed, options) in all_options(layout, &lists).into_iter().enumerate() {
                let (_alias, table, options, resume) = table(options);
                let (file, seed) = (file(&options), seed as u64);
                for form in some_forms() {
                    resume.run_plain(table.entry(form.insn).unwrap(), &file, seed);
                }
                for insn in IoInsn::strings() {
                    resume.run_string(table.string_entry(insn).unwrap(), &file, seed);
                }
                for quirk in options.quirks {
                    for insn in quirk.trigger().forms().into_iter().flatten() {
                        let given = triggering(quirk, seed);
                        let entry = table.resolve(insn, given.rax, given.rdx).unwrap();
                        assert_ne!(Some(entry), table.entry(insn));
                        let faults = resume.run_quirk(entry, &file, given);
                        let first = options.quirks.iter().find(|quirk| quirk.applies(insn, given.rax, given.rdx));
                        check_count(first.unwrap(), insn, options.ring, faults);
                    }
                }
            }
        }
    });
}

/// Calls a stub with DF set, which the psABI forbids. Returns its result, and RFLAGS as it left them.
fn call_backwards(entry: u64, file: *mut u8) -> (u64, u64) {
    let (result, rflags): (u64, u64);
    // SAFETY: a stub and a register file; DF is clear again before any other code runs.
    unsafe {
        asm!(
            "std",
            "call {entry}",
            "pushfq",
            "pop r12",
            "cld",
            entry = in(reg) entry,
            in("rdi") file,
            lateout("rax") result,
            out("r12") rflags,
            clobber_abi("sysv64"),
        );
    }
    (result, rflags)
}

#[test]
fn the_direction_flag_comes_back_as_it_was() {
    const DF: u64 = 1 << 10;
    with_handler(|| {
        for &layout in StubLayout::ALL {
            for options in options(layout).into_iter().filter(|options| options.quirks.is_empty()) {
                let (_alias, table, options, resume) = table(options);
                for insn in IoInsn::strings() {
                    let entry = table.string_entry(insn).unwrap();
                    for (skip, expected) in [(0, 1), (1, 0)] {
                        let given = Gprs { rcx: 7, ..Rng(skip as u64).gprs() };
                        let file = file(&options);
                        let mut memory = Memory::new(file, &given);
                        resume.prepare(skip, false);
                        let (result, rflags) = call_backwards(entry, memory.pointer());
                        assert_eq!((result, rflags & DF), (expected, DF), "{layout:?} {insn}");
                        assert_eq!(memory.gprs(), visible(given, &file), "{layout:?} {insn}");
                    }
                }
            }
        }
    });
}
