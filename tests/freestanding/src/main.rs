//! The roots from which everything that a kernel calls can be reached; the values that they are called with are anyone's.
#![no_std]
#![no_main]

use core::hint::black_box;

use ioemul::{
    CodeSize, CodeTable, DmiStrings, EmitOptions, Gprs, Helpers, HostRegisters, IoInsn, PortAccess, Quirk,
    RegisterFile, Ring, SmbiosEntryPoint, StubLayout, TssBitmap, emit_stub, stub_fixup,
};

/// What the roots are given.
#[repr(C)]
pub struct Input {
    memory: [u8; 1 << 16],
    len: usize,
    va: u64,
    rip: u64,
    form: usize,
    layout: u8,
    bits: u8,
    quirks: usize,
    offsets: [i16; 15],
    rflags: i16,
    code: [u8; 16],
    gprs: Gprs,
    frame: Frame,
}

/// A host's own structure.
#[repr(C)]
struct Frame([u64; 21]);

// SAFETY: the offsets of `pt_regs` are those of the first 19 words.
unsafe impl HostRegisters for Frame {
    const FILE: RegisterFile = RegisterFile::PT_REGS;
}

fn options(input: &Input) -> EmitOptions<'static> {
    let layout = StubLayout::ALL.iter().copied().nth(input.layout.into()).unwrap_or_default();
    EmitOptions::new()
        .layout(layout)
        .registers(RegisterFile::new(input.offsets, (input.bits & 1 != 0).then_some(input.rflags)))
        .endbr64(input.bits & 2 != 0)
        .int3(input.bits & 4 != 0)
        .scrub(input.bits & 32 != 0)
        .return_thunk((input.bits & 8 != 0).then_some(input.rip))
        .ring(if input.bits & 16 != 0 { Ring::Zero } else { Ring::Three })
        .quirks(Quirk::ALL.get(input.quirks..).unwrap_or_default())
}

fn insn(input: &Input) -> IoInsn {
    IoInsn::all().nth(input.form).unwrap_or(IoInsn::in_dx(ioemul::Width::Byte))
}

#[unsafe(no_mangle)]
pub extern "C" fn roots(input: &mut Input) -> u64 {
    let sum = table(input) ^ slot(input) ^ decode(input) ^ exits(input) ^ u64::from(bitmap(input));
    sum ^ handler(input) ^ smbios(input)
}

fn table(input: &mut Input) -> u64 {
    let (options, insn) = (options(input), insn(input));
    let Some(memory) = input.memory.get_mut(..input.len) else { return 0 };
    let mut sum = CodeTable::size(&options) as u64;
    let Ok(table) = CodeTable::emit(memory, input.va, &options) else { return sum };
    let Gprs { rax, rdx, .. } = input.gprs;
    for address in [table.entry(insn), table.string_entry(insn), table.resolve(insn, rax, rdx), table.fixup(input.rip)]
    {
        sum ^= address.unwrap_or(0);
    }
    table.faults().for_each(|(rip, pad)| sum ^= rip ^ pad);
    table.symbols().for_each(|symbol| sum ^= symbol.address);
    table.accesses(insn, rax, rdx).for_each(|access| sum ^= u64::from(access.port));
    // SAFETY: this program is looked at, and never runs.
    sum ^ u64::from(unsafe { table.call(insn, &mut input.gprs) }.is_ok())
}

fn slot(input: &mut Input) -> u64 {
    let (options, insn) = (options(input), insn(input));
    let Some((front, back)) = input.memory.split_at_mut_checked(input.len) else { return 0 };
    let Ok(helpers) = Helpers::emit(front, input.va, &options) else { return 1 };
    let len = emit_stub(back, input.rip, insn, &helpers).unwrap_or(0);
    helpers.symbols().map(|symbol| symbol.1).sum::<u64>()
        ^ len as u64
        ^ stub_fixup(input.rip, insn, &helpers, input.va).unwrap_or(0)
}

fn bitmap(input: &Input) -> bool {
    let insn = insn(input);
    let map = TssBitmap::new(input.memory.get(..input.len).unwrap_or_default());
    map.permits(insn.port(&input.gprs), insn.width)
}

/// What a handler of #GP calls.
fn handler(input: &mut Input) -> u64 {
    let options = options(input);
    let Some((front, back)) = input.memory.split_at_mut_checked(input.len) else { return 0 };
    let Ok(table) = CodeTable::emit(front, input.va, &options) else { return 1 };
    let Some((map, buffer)) = back.split_at_mut_checked(input.form) else { return 2 };
    let permits = |access: &PortAccess| TssBitmap::new(map).permits(access.port, access.width);
    let size = CodeSize::ALL.iter().copied().nth(input.layout.into()).unwrap_or(CodeSize::Bits64);
    // SAFETY: this program is looked at, and never runs.
    unsafe {
        let by_gprs = table.emulate(size, &input.code, &mut input.gprs, permits);
        let by_frame = table.emulate(size, &input.code, &mut input.frame, permits);
        let Ok((insn, len)) = IoInsn::decode_in(size, &input.code) else { return 3 };
        let read = table.read_string(insn, &mut input.gprs, buffer, permits);
        let written = table.write_string(insn, &mut input.frame, buffer, permits);
        let moved = [read, written].into_iter().flatten().fold(0, |sum, progress| sum ^ progress.moved as u64);
        moved ^ len as u64 ^ by_gprs.unwrap_or(0) as u64 ^ by_frame.unwrap_or(0) as u64
    }
}

fn smbios(input: &Input) -> u64 {
    let memory = input.memory.get(..input.len).unwrap_or_default();
    let table = SmbiosEntryPoint::find(memory).or(SmbiosEntryPoint::parse(memory));
    let table = table.and_then(|at| memory.get(at.address as usize..)?.get(..at.length as usize));
    let dmi = DmiStrings::from_smbios(table.unwrap_or(memory));
    u64::from(Quirk::ALL.iter().any(|quirk| quirk.is_on_platform(&dmi))) ^ dmi.board_name.len() as u64
}

fn decode(input: &Input) -> u64 {
    let code = input.code.get(..input.form).unwrap_or(&input.code);
    let size = CodeSize::ALL.iter().copied().nth(input.quirks).unwrap_or(CodeSize::Bits64);
    [IoInsn::decode(code), IoInsn::decode_in(size, code)].into_iter().flatten().fold(0, |sum, (insn, len)| {
        sum ^ len as u64 ^ u64::from(insn.port(&input.gprs)) ^ u64::from(black_box(insn.encode().0)[0])
    })
}

fn exits(input: &Input) -> u64 {
    let (gprs, port, width) = (&input.gprs, input.rip as u16, ioemul::Width::Word);
    let [a, b, c, d] = [input.va, input.rip, gprs.rax, gprs.rcx];
    let shown = [IoInsn::from_ghcb_ioio(a, b, c), IoInsn::from_tdx_io(a, b, c, d)];
    [
        IoInsn::for_access(ioemul::Direction::In, width, port, gprs),
        IoInsn::from_vmx_qualification(a, gprs),
        IoInsn::from_vmx_string(a, b as u32, gprs),
        IoInsn::from_svm_ioio(a, gprs),
        IoInsn::from_kvm_io(a as u8, b as u8, port, c as u32, gprs),
    ]
    .into_iter()
    .chain(shown.map(|shown| shown.map(|(insn, _)| insn)))
    .flatten()
    .fold(0, |sum, insn| sum ^ insn.index() as u64)
}

/// Nothing may reach it: the test looks for its name.
#[panic_handler]
#[inline(never)]
fn this_is_the_panic_handler(_: &core::panic::PanicInfo) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

// What a compiler takes for granted.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    for i in 0..n {
        // SAFETY: the caller's promise; volatile, so that the loop is not turned into a call of this function.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    for i in 0..n {
        // SAFETY: as above.
        unsafe { to.add(i).write_volatile(byte as u8) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: as above.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: as above.
    unsafe { memcmp(a, b, n) }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: as above; nothing here overlaps.
    unsafe { memcpy(to, from, n) }
}
