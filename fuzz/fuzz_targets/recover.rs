//! `fault::recover` on any signal and any machine context, RIP often in a table's code: what is recovered is a fault at an
//! access of a table that is there, RIP goes to a landing pad of that table, RDX and R8 say what it was, and nothing else
//! changes; what is not recovered changes nothing.
//!
//! Input: which tables there are, where RIP is, and the signal and the registers.
#![no_main]

use std::mem::{MaybeUninit, size_of};
use std::sync::LazyLock;

use ioemul::fault::recover;
use ioemul::{Gprs, IoInsn, Quirk, QuirkTable, Stub, StubLayout, StubTable};
use ioemul_fuzz::{Script, is_in_io};
use libc::{REG_CR2, REG_ERR, REG_R8, REG_RDX, REG_RIP, REG_TRAPNO, siginfo_t, ucontext_t};
use libfuzzer_sys::fuzz_target;

fn build(layout: StubLayout, quirks: &[Quirk]) -> StubTable {
    let mut table = QuirkTable::none();
    quirks.iter().for_each(|quirk| table.push(*quirk));
    StubTable::builder().layout(layout).quirks(table).fault_recovery(false).build().unwrap()
}

/// For the hardware, which nobody touches here; and no handler.
static TABLES: LazyLock<Vec<StubTable>> = LazyLock::new(|| {
    let layouts = StubLayout::ALL.iter().copied();
    layouts.flat_map(|layout| [build(layout, &[]), build(layout, Quirk::ALL)]).collect()
});

/// A stub of one of the tables, and whether it may be that of a quirk.
fn stub<'t>(tables: &'t [StubTable], script: &mut Script<'_>) -> (Stub<'t>, bool) {
    let table = &tables[usize::from(script.u8()) % tables.len()];
    let index = usize::from(script.u16()) % (IoInsn::COUNT + IoInsn::STRING_COUNT);
    let quirk = script.one_of(Quirk::ALL);
    match script.u8() % 2 {
        0 => (table.stub(IoInsn::all().nth(index).unwrap()), false),
        _ => {
            let trigger = quirk.trigger();
            let gprs = Gprs { rax: trigger.value.into(), rdx: trigger.port.into(), ..Gprs::default() };
            (table.resolve(trigger.forms()[0].unwrap(), &gprs), true)
        }
    }
}

fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: the value was made of bytes, all of them; it is borrowed as long as they are.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A structure of the C library's, all of it from the input.
fn filled<T>(script: &mut Script<'_>) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    let given = script.counted();
    let bytes = &given[..given.len().min(size_of::<T>())];
    // SAFETY: as many bytes as there is room for; the structures are of integers and pointers, which nobody follows.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), bytes.len());
        value.assume_init()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    // Now and then a table of the moment, and one that is gone.
    let of_the_moment = (script.u8() >= 250).then(|| build(StubLayout::ALL[data.len() % StubLayout::ALL.len()], &[]));
    let dropped = (script.u8() >= 250).then(|| build(StubLayout::Compact, &[])).map(|table| {
        let code = table.stub(IoInsn::all().next().unwrap()).code();
        code.as_ptr() as usize..code.as_ptr() as usize + code.len()
    });
    let tables = of_the_moment.as_ref().map_or(&TABLES[..], std::slice::from_ref);
    let (stub, is_quirk) = stub(tables, &mut script);
    let code = stub.code();
    let at = usize::from(script.u16());
    let rip = match (script.u8() % 4, &dropped) {
        (0, None) => script.u64(),
        (0, Some(code)) => (code.start + at % code.len()) as u64,
        // Around the stub, on either side.
        (1, _) => (code.as_ptr() as u64).wrapping_add(at as u64).wrapping_sub(0x8000),
        _ => code.as_ptr() as u64 + (at % code.len()) as u64,
    };
    let code_choice = script.u8();
    let (kind, mut info) = (script.u8(), filled::<siginfo_t>(&mut script));
    match kind % 4 {
        0 => {}
        // SIGSEGV of the kernel's own: a #GP.
        1 => (info.si_signo, info.si_code) = (libc::SIGSEGV, 0x80),
        _ => (info.si_signo, info.si_code) = (libc::SIGBUS, i32::from(code_choice as i8)),
    }
    let mut context = filled::<ucontext_t>(&mut script);
    context.uc_mcontext.gregs[REG_RIP as usize] = rip as i64;
    let vector = script.one_of(&[13_u64, 14, 12, 17, 0x1_000d]);
    context.uc_mcontext.gregs[REG_TRAPNO as usize] = vector as i64;
    // Far into the context: of their own, so that they are seldom zero.
    context.uc_mcontext.gregs[REG_ERR as usize] = i64::from(script.u32());
    context.uc_mcontext.gregs[REG_CR2 as usize] = script.u64() as i64;

    let before = context;
    // SAFETY: what is passed is as the kernel would pass it, but for what it says.
    let recovered = unsafe { recover(&info, (&raw mut context).cast()) };
    let within = (rip as usize).checked_sub(code.as_ptr() as usize).filter(|at| *at < code.len());
    if !recovered {
        assert!(bytes_of(&before) == bytes_of(&context), "not recovered, and changed");
        let fault = info.si_signo == libc::SIGSEGV && info.si_code == 0x80 && vector == 13;
        // The access itself: its first byte that is neither prefix nor no-op is the opcode of a form of three bytes.
        let plain = code.windows(3).position(|io| matches!(io, [0x66 | 0x90, 0xe4..=0xe7 | 0xec..=0xef, _]));
        let rip_of = plain.map(|at| if code[at] == 0x90 { at + 1 } else { at });
        assert!(!fault || within.is_none() || within != rip_of, "a #GP at an access is not recovered: {code:02x?}");
        return;
    }
    assert!(info.si_code > 0, "a signal that was sent is no fault");
    let registers = &context.uc_mcontext.gregs;
    let pad = registers[REG_RIP as usize] as u64;
    assert_ne!(pad, rip);
    assert!(pad.abs_diff(rip) < 1 << 20, "not in the same table");
    assert_eq!(registers[REG_RDX as usize] as u64 & 0xff, vector & 0xff);
    let code_of = (before.uc_mcontext.gregs[REG_ERR as usize] as u16, registers[REG_RDX as usize] >> 8);
    assert_eq!(i64::from(code_of.0), code_of.1);
    let address = if vector as u8 == 14 { before.uc_mcontext.gregs[REG_CR2 as usize] } else { 0 };
    assert_eq!(registers[REG_R8 as usize], address);
    if let Some(at) = within {
        assert!(is_quirk || is_in_io(code, at), "{at} of {code:02x?} is no access");
    }
    // And nothing else.
    let mut rest = context;
    for register in [REG_RIP, REG_RDX, REG_R8] {
        rest.uc_mcontext.gregs[register as usize] = before.uc_mcontext.gregs[register as usize];
    }
    assert!(bytes_of(&before) == bytes_of(&rest), "recovered, and more changed than RIP, RDX and R8");
});
