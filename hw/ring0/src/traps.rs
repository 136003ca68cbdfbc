//! Exceptions, and a way to ring 3 and back.
//!
//! An instruction breakpoint is a *fault*: it comes before the instruction has done anything, RIP being its address. So it
//! stands for any exception that an access may raise, none of which ring 0 can be made to raise here.

use core::arch::{asm, global_asm};

global_asm!(
    ".pushsection .text.traps, \"ax\"",
    // #DB: goes on where it was told to. Nothing but RIP is changed.
    "debug_exception:",
    "push rax",
    "mov rax, [breakpoint]",
    "cmp [rsp + 8], rax",
    "jne unexpected_exception",
    "mov rax, [breakpoint + 8]",
    "mov [rsp + 8], rax",
    "mov rax, [rsp + 24]",
    "mov [breakpoint + 16], rax",
    "inc qword ptr [breakpoint + 24]",
    "pop rax",
    "iretq",
    // What a program in ring 3 ends in: its vector in RAX and its RIP in RDX, back to who called `enter_ring3`.
    "general_protection_fault:",
    "cmp qword ptr [task_handler], 0",
    "je 3f",
    "mov qword ptr [rsp], 13", // in the place of the error code
    "jmp task_exception",
    "3:",
    "add rsp, 8", // the error code
    "mov eax, 13",
    "jmp 2f",
    "invalid_opcode:",
    "cmp qword ptr [task_handler], 0",
    "je 3f",
    "push 6",
    "jmp task_exception",
    "3:",
    "mov eax, 6",
    "2:",
    "pop rdx",
    "test byte ptr [rsp], 3",
    "jz unexpected_exception",
    "mov ecx, 16",
    "mov ss, ecx",
    "mov ds, ecx",
    "mov es, ecx",
    "mov rsp, [ring0_stack]",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
    // An exception of a task in ring 3: a frame like `pt_regs`, for the handler, which returns whether the task goes on.
    "task_exception:",
    "test byte ptr [rsp + 16], 3",
    "jz unexpected_exception",
    "push rdi; push rsi; push rdx; push rcx; push rax; push r8; push r9; push r10; push r11",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "cld",
    "mov rdi, rsp",
    "sub rsp, 8",
    "call [task_handler]",
    "add rsp, 8",
    "test eax, eax",
    "jnz resume_task",
    "mov ecx, 16",
    "mov ss, ecx",
    "mov ds, ecx",
    "mov es, ecx",
    "mov rsp, [ring0_stack]",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
    // RDI: the frame to start from.
    "enter_task:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "mov [ring0_stack], rsp",
    "mov rsp, rdi",
    "resume_task:",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "pop r11; pop r10; pop r9; pop r8; pop rax; pop rcx; pop rdx; pop rsi; pop rdi",
    "add rsp, 8", // the vector
    "iretq",
    // There is no gate for #BP: the machine resets, and the report has no end.
    "unexpected_exception:",
    "int3",
    // RDI: where the program starts; ESI: its DX. IF and IOPL are 0 there, and there is no stack.
    "enter_ring3:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "mov [ring0_stack], rsp",
    "push 0x1b", // SS
    "push 0",
    "push 2",
    "push 0x23", // CS
    "push rdi",
    "mov edx, esi",
    "iretq",
    "ring3_in_al: in al, dx; ud2",
    "ring3_in_ax: in ax, dx; ud2",
    "ring3_in_eax: in eax, dx; ud2",
    ".popsection",
    ".pushsection .bss.traps, \"aw\", @nobits",
    ".balign 16",
    "breakpoint: .skip 32",
    "ring0_stack: .skip 8",
    "task_handler: .skip 8",
    ".skip 32768",
    "exception_stack_top: .skip 8",
    ".popsection",
    ".global debug_exception, general_protection_fault, invalid_opcode, enter_ring3, enter_task, task_handler",
    ".global ring3_in_al, ring3_in_ax, ring3_in_eax, breakpoint, exception_stack_top",
);

/// What the handler of #DB is told, and what it tells.
#[repr(C)]
struct Breakpoint {
    at: u64,
    resume: u64,
    rflags: u64,
    hits: u64,
}

unsafe extern "C" {
    static debug_exception: u8;
    static general_protection_fault: u8;
    static invalid_opcode: u8;
    static ring3_in_al: u8;
    static ring3_in_ax: u8;
    static ring3_in_eax: u8;
    static mut breakpoint: Breakpoint;
    static exception_stack_top: u8;
    static mut task_handler: Option<Handler>;
    fn enter_ring3(entry: *const u8, dx: u32) -> Ended;
    fn enter_task(frame: *const Frame);
}

/// What an exception of a task goes to; returns whether the task goes on.
pub type Handler = extern "sysv64" fn(&mut Frame) -> u32;

/// The registers of a task in ring 3, as the handler's entry pushes them: `pt_regs`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Frame {
    /// R15 to RDI.
    pub registers: [u64; 15],
    /// Of the exception.
    pub vector: u64,
    pub rip: u64,
    cs: u64,
    pub rflags: u64,
    rsp: u64,
    ss: u64,
}

// SAFETY: the offsets of `pt_regs` are those of `registers` and `rflags`.
unsafe impl ioemul::HostRegisters for Frame {
    const FILE: ioemul::RegisterFile = ioemul::RegisterFile::PT_REGS;
}

impl Frame {
    /// A task at the start: all registers are 0, and there is no stack.
    pub fn new(rip: u64, rflags: u64) -> Self {
        Self { registers: [0; 15], vector: 0, rip, cs: 0x23, rflags, rsp: 0, ss: 0x1b }
    }
}

/// Runs a task until its handler ends it.
pub fn run_task(frame: Frame, handler: Handler) {
    // SAFETY: the image has one thread; every exception of the task goes to the handler, and its end comes back to here.
    unsafe {
        (&raw mut task_handler).write_volatile(Some(handler));
        enter_task(&frame);
        (&raw mut task_handler).write_volatile(None);
    }
}

/// How a program in ring 3 ended.
#[repr(C)]
struct Ended {
    vector: u64,
    rip: *const u8,
}

/// The task-state segment, whose I/O bitmap is as long as the segment's limit says.
#[repr(C, align(16))]
struct Task {
    head: [u8; Self::HEAD],
    map: [u8; MAX_MAP],
}

impl Task {
    const HEAD: usize = 104;
}

/// So many bytes of a bitmap there is room for: some more than map all ports.
pub const MAX_MAP: usize = 8200;

static mut TASK: Task = Task { head: [0; Task::HEAD], map: [0; MAX_MAP] };
/// Nothing, code and data of ring 0, data and code of ring 3, the TSS.
static mut GDT: [u64; 7] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0, 0];
static mut IDT: [[u64; 2]; 14] = [[0; 2]; 14];

/// What LGDT and LIDT read.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Puts everything in place, and masks the interrupt controllers: IF may be set from now on.
pub fn install() {
    const GATE: u64 = 0x8e00_0008_0000; // present, DPL 0, interrupt gate, code segment 8
    // SAFETY: the image has one thread, and no exception comes before this has come to its end.
    unsafe {
        let gates = [
            (1, &raw const debug_exception),
            (6, &raw const invalid_opcode),
            (13, &raw const general_protection_fault),
        ];
        for (vector, handler) in gates {
            let at = handler as u64;
            IDT[vector] = [at & 0xffff | GATE | (at >> 16 & 0xffff) << 48, at >> 32];
        }
        let task = &raw mut TASK;
        let head = &mut (*task).head;
        head[4..12].copy_from_slice(&((&raw const exception_stack_top) as u64).to_le_bytes()); // RSP0
        head[102..].copy_from_slice(&(Task::HEAD as u16).to_le_bytes()); // where the bitmap starts
        let gdt = Pointer { limit: size_of::<[u64; 7]>() as u16 - 1, base: (&raw const GDT) as u64 };
        let idt = Pointer { limit: size_of::<[[u64; 2]; 14]>() as u16 - 1, base: (&raw const IDT) as u64 };
        asm!(
            "lgdt [{gdt}]", "lidt [{idt}]", "mov al, 0xff", "out 0x21, al", "out 0xa1, al",
            gdt = in(reg) &gdt, idt = in(reg) &idt, out("al") _,
        );
    }
}

/// Runs `f` with a breakpoint on the instruction at `at`, from which execution goes on at `resume`. Returns RFLAGS as they
/// were there, if it was reached.
pub fn with_breakpoint(at: u64, resume: u64, f: impl FnOnce()) -> Option<u64> {
    const DR0_ON_EXECUTION: u64 = 0x402;
    // SAFETY: the image has one thread; the handler of #DB is in place, and reads this only while the breakpoint is set.
    unsafe {
        (&raw mut breakpoint).write_volatile(Breakpoint { at, resume, rflags: 0, hits: 0 });
        asm!("mov dr0, {at}", "mov dr7, {on}", at = in(reg) at, on = in(reg) DR0_ON_EXECUTION);
        f();
        asm!("mov dr7, {off}", "mov dr6, {off}", off = in(reg) 0x400_u64);
        let Breakpoint { rflags, hits, .. } = (&raw const breakpoint).read_volatile();
        assert!(hits <= 1, "an instruction that was resumed elsewhere came twice");
        (hits == 1).then_some(rflags)
    }
}

/// Makes the first `len` bytes of `map` the I/O bitmap.
pub fn set_bitmap(map: &[u8; MAX_MAP], len: usize) {
    // SAFETY: the image has one thread; the segment is there for good.
    unsafe {
        TASK.map = *map;
        let (base, limit) = ((&raw const TASK) as u64, (Task::HEAD + len) as u64 - 1);
        const AVAILABLE_TSS: u64 = 0x89 << 40;
        GDT[5] = limit & 0xffff | (base & 0xff_ffff) << 16 | AVAILABLE_TSS | (base >> 24 & 0xff) << 56;
        GDT[6] = base >> 32;
        asm!("ltr {selector:x}", selector = in(reg) 5 * 8);
    }
}

/// Executes IN from `port` in ring 3; whether it did not end in #GP.
pub fn in_ring3(port: u16, width: ioemul::Width) -> bool {
    let (entry, len) = match width {
        ioemul::Width::Byte => (&raw const ring3_in_al, 1),
        ioemul::Width::Word => (&raw const ring3_in_ax, 2),
        ioemul::Width::Dword => (&raw const ring3_in_eax, 1),
    };
    // SAFETY: the program is an IN, of a port whose reading does no harm, and UD2.
    let Ended { vector, rip } = unsafe { enter_ring3(entry, port.into()) };
    match (vector, rip as usize - entry as usize) {
        (13, 0) => false,
        (6, past) if past == len => true,
        _ => panic!("exception {vector} at {rip:p}"),
    }
}
