//! The roots from which everything that a kernel calls can be reached; the values that they are called with are anyone's.
#![no_std]
#![no_main]

use core::hint::black_box;

use ioemul::{
    CodeTable, EmitOptions, Gprs, Helpers, IoInsn, Quirk, RegisterFile, Ring, StubLayout, TssBitmap, emit_stub,
    stub_fixup,
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
    table(input) ^ slot(input) ^ decode(input) ^ u64::from(bitmap(input))
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

fn decode(input: &Input) -> u64 {
    match IoInsn::decode(input.code.get(..input.form).unwrap_or(&input.code)) {
        Ok((insn, len)) => len as u64 ^ u64::from(insn.port(&input.gprs)) ^ u64::from(black_box(insn.encode().0)[0]),
        Err(_) => 0,
    }
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
