//! A task in ring 3 behind the I/O bitmap of its TSS. What the bitmap denies ends in #GP, whose handler makes the access for
//! the task, by one call and with the task's registers in view; what it permits, the CPU executes itself.

use core::ops::RangeInclusive;

use hw_shared::{DF, Engine, Failure, Refused, Rng, compare};
use ioemul::{CodeTable, Direction, EmitOptions, Gprs, IoInsn, KernelError, PortAccess, Quirk, RegisterFile, Width};

use crate::boot::ALIAS;
use crate::traps::{self, Frame, MAX_MAP};

/// The kernel's part: what the handler of #GP knows.
struct Kernel {
    table: CodeTable,
    may: fn(&PortAccess) -> bool,
    /// Accesses that were emulated.
    emulated: u64,
    /// How the task ended: with its UD2, or with a #GP of its own.
    end: Result<(), KernelError>,
    last: Frame,
}

static mut KERNEL: Option<Kernel> = None;

/// The kernel's part.
///
/// # Safety
///
/// Nobody has it already. (The image has one thread: the handler has it while it runs, and the others while no task does.)
unsafe fn kernel() -> &'static mut Kernel {
    let kernel = &raw mut KERNEL;
    // SAFETY: the caller's promise.
    unsafe { (*kernel).as_mut() }.expect("it has been put there")
}

/// What the task executes: an instruction and UD2.
#[repr(align(64))]
struct Code([u8; 64]);

static mut CODE: Code = Code([0; 64]);

extern "sysv64" fn exception(frame: &mut Frame) -> u32 {
    const GENERAL_PROTECTION: u64 = 13;
    // SAFETY: the handler.
    let kernel = unsafe { kernel() };
    let result = if frame.vector == GENERAL_PROTECTION { kernel.emulate(frame) } else { Ok(0) };
    kernel.end = result.map(|_| ());
    match result {
        Ok(length @ 1..) => {
            kernel.emulated += 1;
            frame.rip += length as u64;
            1
        }
        _ => {
            kernel.last = *frame;
            0
        }
    }
}

impl Kernel {
    /// The instruction at the task's RIP; returns its length.
    fn emulate(&self, frame: &mut Frame) -> Result<usize, KernelError> {
        // SAFETY: the task runs in `CODE`, which goes on behind its instruction for longer than one can be.
        let code: &[u8] = unsafe { core::slice::from_raw_parts(frame.rip as *const u8, 15) };
        let (insn, length) = IoInsn::decode(code)?;
        if !insn.is_string() {
            // SAFETY: the table is in place; the machine is ours, so that no access can do harm.
            return unsafe { self.table.emulate(ioemul::CodeSize::Bits64, code, frame, self.may) };
        }
        let (start, len) = memory(insn, &gprs(frame, frame.rflags));
        let memory = core::ptr::with_exposed_provenance_mut(start as usize);
        // SAFETY: as above. The task's memory is mapped here as it is there, and was lent to the task.
        let progress = unsafe {
            match insn.direction {
                Direction::In => {
                    self.table.read_string(insn, frame, core::slice::from_raw_parts_mut(memory, len), self.may)
                }
                _ => self.table.write_string(insn, frame, core::slice::from_raw_parts(memory, len), self.may),
            }
        };
        assert_eq!(progress?.left, 0, "all of it has room");
        Ok(length)
    }
}

/// What INS or OUTS accesses: where it starts, and how long it is.
fn memory(insn: IoInsn, gprs: &Gprs) -> (u64, usize) {
    let ioemul::PortOperand::String { rep, address, .. } = insn.operand else { return (0, 0) };
    let pointer = address.mask() & if insn.direction == Direction::In { gprs.rdi } else { gprs.rsi };
    let count = if rep { gprs.rcx & address.mask() } else { 1 };
    let (width, len) = (u64::from(insn.width.bytes()), count * u64::from(insn.width.bytes()));
    assert!(len <= 4096, "a task asks for no more");
    let start = if gprs.rflags & DF == 0 || count == 0 { pointer } else { pointer + width - len };
    (if count == 0 { 0x10_0000 } else { start }, len as usize)
}

/// Offsets of the words in a frame, in the order of [`Gprs::NAMES`].
fn words(frame: &mut Frame) -> [&mut u64; 15] {
    let mut places = frame.registers.each_mut().map(Some);
    core::array::from_fn(|n| {
        let at = RegisterFile::PT_REGS.offsets()[n] as usize / 8;
        places[at].take().expect("each is there once")
    })
}

/// The registers in a frame; of RFLAGS the status flags, the others being as in `rflags`.
fn gprs(frame: &Frame, rflags: u64) -> Gprs {
    let mut frame = *frame;
    let rflags = rflags & !Gprs::STATUS_FLAGS | frame.rflags & Gprs::STATUS_FLAGS;
    let mut all = [0; 16];
    all.iter_mut().zip(words(&mut frame)).for_each(|(word, register)| *word = *register);
    Gprs { rflags, ..Gprs::from_words(all) }
}

/// What came of an instruction that a task has executed.
struct Outcome {
    end: Result<(), KernelError>,
    /// Whether the kernel made it.
    emulated: bool,
    gprs: Gprs,
}

/// Lets a task execute `insn`, from these registers (of RFLAGS the status flags and those in `flags`).
fn run(insn: IoInsn, before: &Gprs, flags: u64, bitmap: &[u8]) -> Outcome {
    let mut map = [0; MAX_MAP];
    map[..bitmap.len()].copy_from_slice(bitmap);
    traps::set_bitmap(&map, bitmap.len());
    let (bytes, len) = insn.encode();
    let code = &raw mut CODE;
    // SAFETY: the image has one thread, and no task runs.
    let code = unsafe { &mut (*code).0 };
    code[..len].copy_from_slice(&bytes[..len]);
    code[len..len + 2].copy_from_slice(&[0x0f, 0x0b]); // ud2
    let mut frame =
        Frame::new(code.as_ptr().expose_provenance() as u64, 2 | before.rflags & (Gprs::STATUS_FLAGS | flags));
    words(&mut frame).into_iter().zip(before.to_words()).for_each(|(register, word)| *register = word);
    let end = frame.rip + len as u64;
    traps::run_task(frame, exception);
    // SAFETY: the task has ended.
    let kernel = unsafe { kernel() };
    assert_eq!(kernel.end.is_ok(), kernel.last.rip == end, "the task ended somewhere");
    let emulated = core::mem::take(&mut kernel.emulated) > 0;
    Outcome { end: kernel.end, emulated, gprs: gprs(&kernel.last, before.rflags) }
}

/// The bitmap that permits nothing.
const NOTHING: &[u8] = &[];

/// Puts a table into the memory, for tasks; it is executed in the mapping that cannot be written.
///
/// # Safety
///
/// The memory is the kernel's alone until the next call.
unsafe fn install(memory: *mut [u8], options: &EmitOptions<'_>, may: fn(&PortAccess) -> bool) {
    // SAFETY: the caller's promise.
    let memory = unsafe { &mut *memory };
    let va = memory.as_ptr().expose_provenance() as u64 + ALIAS;
    let table = CodeTable::emit(memory, va, &options.registers(RegisterFile::PT_REGS)).expect("it fits");
    let kernel = Kernel { table, may, emulated: 0, end: Ok(()), last: Frame::new(0, 0) };
    // SAFETY: the image has one thread, and no task runs.
    unsafe { KERNEL = Some(kernel) };
}

/// Accesses by tasks that may make none themselves.
pub struct Task(());

impl Task {
    /// # Safety
    ///
    /// As for [`install`].
    pub unsafe fn new(memory: *mut [u8], options: &EmitOptions<'_>) -> Self {
        // SAFETY: the caller's promise.
        unsafe { install(memory, options, |_| true) };
        Self(())
    }
}

impl Engine for Task {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        let outcome = run(insn, gprs, 0, NOTHING);
        assert!(outcome.emulated, "the CPU let the task make the access itself");
        outcome.end.map_err(|_| Refused)?;
        *gprs = outcome.gprs;
        Ok(())
    }

    fn emulates_strings(&self) -> bool {
        true
    }
}

/// pc-testdev's latch.
const LATCH: RangeInclusive<u16> = 0xe0..=0xe3;
const ALL: &[u8] = &[0; 8193];

/// What a task may do by the kernel's own list: the latch, and a ProLiant's mailbox for writing.
fn may(access: &PortAccess) -> bool {
    let last = access.port + u16::from(access.width.bytes()) - 1;
    let is_latch = LATCH.contains(&access.port) && LATCH.contains(&last);
    is_latch || (access.port == 0xcd4 && access.direction == Direction::Out)
}

/// The same task with the port open to it and without: the CPU and the handler come to the same registers, flags and memory.
/// And what the kernel does not permit stays refused. Returns how many accesses there were.
///
/// # Safety
///
/// As for [`install`].
pub unsafe fn check(memory: *mut [u8], options: &EmitOptions<'_>) -> Result<u64, Failure> {
    let quirks = [Quirk::PROLIANT];
    // SAFETY: the caller's promise.
    unsafe { install(memory, &options.quirks(&quirks), may) };
    let mut accesses = 0;
    for insn in latch_forms().chain(IoInsn::strings()) {
        let counts: &[u64] = if insn.is_string() { &[0, 1, 3] } else { &[1] };
        for (&count, df) in counts.iter().flat_map(|count| [0, DF].map(|df| (count, df))) {
            accesses += 1;
            next_to_the_cpu(accesses, insn, count, df)?;
        }
    }
    refusals(accesses)?;
    fault()?;
    Ok(accesses)
}

/// IN and OUT at the latch.
fn latch_forms() -> impl Iterator<Item = IoInsn> {
    let widths = Width::ALL.iter().copied();
    widths.flat_map(|width| {
        let port = *LATCH.start() as u8;
        [IoInsn::out_dx(width), IoInsn::in_dx(width), IoInsn::out_imm8(width, port), IoInsn::in_imm8(width, port)]
    })
}

fn next_to_the_cpu(access: u64, insn: IoInsn, count: u64, df: u64) -> Result<(), Failure> {
    const FIRST: usize = 16;
    let port = *LATCH.start();
    let mut results = [(Gprs::default(), [0; 40], 0); 2];
    for (result, bitmap) in results.iter_mut().zip([ALL, NOTHING]) {
        let mut rng = Rng::new(access);
        let mut memory: [u8; 40] = core::array::from_fn(|_| rng.next() as u8);
        let seed = rng.gprs();
        let start = memory.as_mut_ptr().expose_provenance() + FIRST;
        let mut gprs = Gprs { rflags: seed.rflags & Gprs::STATUS_FLAGS | df, ..seed };
        gprs.rdx = gprs.rdx & !0xffff | u64::from(port);
        if insn.is_string() {
            (gprs.rcx, gprs.rsi, gprs.rdi) = (count, start as u64, start as u64);
        }
        // What the latch holds before, whoever writes it.
        let value = Gprs { rax: rng.next(), rdx: port.into(), ..Gprs::default() };
        run(IoInsn::out_dx(Width::Dword), &value, 0, ALL);
        let outcome = run(insn, &gprs, DF, bitmap);
        let refused = || Failure::Refused { access, insn, port };
        outcome.end.map_err(|_| refused())?;
        if outcome.emulated != bitmap.is_empty() {
            return Err(Failure::Other("the bitmap of the TSS does not decide who makes the access"));
        }
        let latch = run(IoInsn::in_dx(Width::Dword), &Gprs { rdx: port.into(), ..gprs }, 0, ALL).gprs.rax;
        let written = match (insn.direction, insn.is_string()) {
            (Direction::Out, true) => None,
            (Direction::Out, false) => Some((gprs.rax, insn.width.mask())),
            _ => Some((value.rax, u32::MAX)),
        };
        if written.is_some_and(|(value, mask)| (latch ^ value) as u32 & mask != 0) {
            return Err(Failure::Other("the latch does not hold what was written"));
        }
        // SAFETY: the memory was lent to the task, which has come to its end.
        let memory = unsafe { (&raw const memory).read_volatile() };
        // The memory is in the same place both times, but nobody promises that.
        let moved = |pointer: u64| if insn.is_string() { pointer.wrapping_sub(start as u64) } else { pointer };
        *result = (Gprs { rsi: moved(outcome.gprs.rsi), rdi: moved(outcome.gprs.rdi), ..outcome.gprs }, memory, latch);
    }
    let [by_cpu, by_kernel] = results;
    compare(&by_kernel.0, &by_cpu.0).map_err(|first| Failure::Registers { access, insn, port, first })?;
    match by_cpu.1 == by_kernel.1 && by_cpu.2 == by_kernel.2 {
        true => Ok(()),
        false => Err(Failure::Other("memory or the latch is not what the CPU makes of it")),
    }
}

/// Neither the bitmap nor the kernel's list has the port, or not all of the access, or not what the quirk does.
fn refusals(accesses: u64) -> Result<(), Failure> {
    let mut rng = Rng::new(accesses);
    for (insn, port, rax, by_quirk) in [
        (IoInsn::in_dx(Width::Byte), 0xe4, 0, false),
        (IoInsn::in_dx(Width::Word), 0xe3, 0, false),
        (IoInsn::out_dx(Width::Dword), 0xe1, 0, false),
        (IoInsn::rep_outs(Width::Byte), 0x80, 0, false),
        (IoInsn::in_dx(Width::Byte), 0xcd4, 0, false),
        (IoInsn::out_dx(Width::Byte), 0xcd4, 0x80, true),
    ] {
        let random = rng.gprs();
        let given =
            Gprs { rax, rcx: 1, rdx: port, rsi: 0x10_0000, rflags: random.rflags & Gprs::STATUS_FLAGS, ..random };
        let outcome = run(insn, &given, 0, NOTHING);
        let is_right = match outcome.end {
            Err(KernelError::PortDenied { .. }) => !by_quirk,
            Err(KernelError::QuirkDenied { .. }) => by_quirk,
            _ => false,
        };
        let (access, port) = (accesses, port as u16);
        if !is_right || outcome.emulated {
            return Err(Failure::Permitted { access, insn, port });
        }
        compare(&outcome.gprs, &given).map_err(|first| Failure::Registers { access, insn, port, first })?;
    }
    Ok(())
}

/// The hardware's own fault, in the handler: the task has its registers, and its #GP.
fn fault() -> Result<(), Failure> {
    let insn = IoInsn::out_dx(Width::Byte);
    let given = Gprs { rdx: 0xe0, rflags: 0, ..Rng::new(0).gprs() };
    // SAFETY: the image has one thread.
    let table = &unsafe { kernel() }.table;
    let entry = table.entry(insn).expect("it is no string");
    let (rip, pad) = table.faults().find(|(rip, _)| *rip > entry).expect("it has an access");
    let mut outcome = None;
    let reached = traps::with_breakpoint(rip, pad, || outcome = Some(run(insn, &given, 0, NOTHING)));
    let outcome = outcome.expect("it has run");
    match outcome.end {
        Err(KernelError::Fault { .. }) if reached.is_some() && outcome.gprs == given => Ok(()),
        _ => Err(Failure::Other("a fault in the handler is not the task's")),
    }
}
