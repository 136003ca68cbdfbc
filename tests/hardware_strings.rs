//! INS and OUTS on the hardware, which a handler of SIGSEGV stands for: it catches the instruction, moves the data between a
//! port of its own and the memory that the registers point to, as a CPU would, and goes on behind it.
#![cfg(all(feature = "std", target_os = "linux"))]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::Once;
use std::{mem, ptr};

use ioemul::{
    AddressSize, Direction, Error, Gprs, IoEmulator, IoInsn, PortOperand, PortSet, QuirkTable, Segment, StubLayout,
    Width, fault,
};

const DF: u64 = 1 << 10;
const PORT: u64 = 0x1f0;

/// One element, as it was moved.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Moved {
    value: u32,
    rcx: u64,
    /// RDI of INS, RSI of OUTS: an address of this process.
    pointer: u64,
    dx: u16,
}

/// What is behind the port: it counts up on IN, keeps what is written, and plays tricks.
#[derive(Default)]
struct Port {
    moved: Vec<Moved>,
    /// Refuses the element of this number.
    fault_at: Option<usize>,
    /// Changes RBX at every element, or RDX, or the address register.
    trick: Trick,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Trick {
    #[default]
    None,
    Rbx,
    Rdx,
    Pointer,
}

thread_local!(static HARDWARE: RefCell<Port> = RefCell::default());

extern "C" fn cpu(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's arguments; RIP is at INS or OUTS of a stub, whose registers point to memory lent for it.
    let done = unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        HARDWARE.with_borrow_mut(|port| execute(port, registers))
    };
    // SAFETY: as above.
    if !done && !unsafe { fault::recover(info, context) } {
        std::process::abort();
    }
}

/// Executes the string instruction at RIP; false if the port refuses an element.
unsafe fn execute(port: &mut Port, registers: &mut [i64; 23]) -> bool {
    let mut rip = registers[libc::REG_RIP as usize] as *const u8;
    let (mut rep, mut word) = (false, false);
    let opcode = loop {
        // SAFETY: the caller's promise.
        let byte = unsafe { rip.read() };
        rip = rip.wrapping_add(1);
        match byte {
            0x66 => word = true,
            0xf3 => rep = true,
            0x6c..=0x6f => break byte,
            other => panic!("{other:#x} is not in a string stub of 64-bit addresses"),
        }
    };
    assert_eq!(registers[libc::REG_EFL as usize] as u64 & DF, 0, "stubs run with DF clear");
    let width = if opcode & 1 == 0 { 1 } else { 4 >> u32::from(word) };
    let pointer = if opcode & 2 == 0 { libc::REG_RDI } else { libc::REG_RSI } as usize;
    let (rcx, rdx, rbx) = (libc::REG_RCX as usize, libc::REG_RDX as usize, libc::REG_RBX as usize);
    while !rep || registers[rcx] != 0 {
        let number = port.moved.len();
        if port.fault_at == Some(number) {
            return false;
        }
        let memory = registers[pointer] as *mut u8;
        let mut bytes = [number as u8 + 1; 4];
        // SAFETY: the caller's promise.
        unsafe {
            match opcode & 2 {
                0 => ptr::copy_nonoverlapping(bytes.as_ptr(), memory, width),
                _ => ptr::copy_nonoverlapping(memory, bytes.as_mut_ptr(), width),
            }
        }
        bytes[width..].fill(0);
        port.moved.push(Moved {
            value: u32::from_le_bytes(bytes),
            rcx: registers[rcx] as u64,
            pointer: registers[pointer] as u64,
            dx: registers[rdx] as u16,
        });
        registers[pointer] += width as i64;
        match port.trick {
            Trick::None => {}
            Trick::Rbx => registers[rbx] = registers[rbx].wrapping_add(1),
            Trick::Rdx => registers[rdx] = 0x60,
            Trick::Pointer => registers[pointer] += 0x1000,
        }
        if !rep {
            break;
        }
        registers[rcx] -= 1;
    }
    registers[libc::REG_RIP as usize] = rip as i64;
    true
}

fn native() -> impl Iterator<Item = IoEmulator> {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: all-zero is a valid sigaction; the handler has the signature of SA_SIGINFO.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (cpu as *const () as usize, libc::SA_SIGINFO);
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
        }
    });
    StubLayout::ALL.iter().map(|layout| {
        let builder = IoEmulator::builder().quirks(QuirkTable::none()).fault_recovery(false).layout(*layout);
        // SAFETY: the process has no privilege for any port.
        unsafe { builder.native(PortSet::from(PORT as u16..=PORT as u16 + 3)) }.build().unwrap()
    })
}

fn forms() -> impl Iterator<Item = (IoInsn, bool)> {
    [Direction::In, Direction::Out].into_iter().flat_map(|direction| {
        [AddressSize::Bits16, AddressSize::Bits32, AddressSize::Bits64].into_iter().flat_map(move |address| {
            [false, true].into_iter().flat_map(move |rep| {
                let segment = if direction == Direction::In { Segment::Es } else { Segment::Fs };
                let operand = PortOperand::String { rep, address, segment };
                // With a segment of its own, the stub reads from the slice all the same.
                Width::ALL.iter().map(move |width| (IoInsn { direction, width: *width, operand }, rep))
            })
        })
    })
}

/// Runs an instruction of up to three elements on a slice with two bytes to spare.
fn run(
    emulator: &mut IoEmulator,
    insn: IoInsn,
    given: Gprs,
    port: Port,
) -> (Result<usize, Error>, Gprs, Vec<u8>, Vec<Moved>) {
    HARDWARE.set(port);
    let mut memory: Vec<u8> = (0x80..).take(3 * usize::from(insn.width.bytes()) + 2).collect();
    let mut gprs = given;
    let result = match insn.direction {
        Direction::In => emulator.read_string(insn, &mut gprs, &mut memory),
        Direction::Out => emulator.write_string(insn, &mut gprs, &memory),
    };
    let mut moved = HARDWARE.take().moved;
    // Where in the slice.
    moved.iter_mut().for_each(|moved| moved.pointer = moved.pointer.wrapping_sub(memory.as_ptr() as u64));
    (result, gprs, memory, moved)
}

fn given(rflags: u64) -> Gprs {
    let words = std::array::from_fn(|i| 0x0101_0101_0101_0101 * (i as u64 + 0x30));
    Gprs { rcx: 3, rdx: 0xffff_0000 | PORT, rsi: 0x8000, rdi: 0x8000, rflags, ..Gprs::from_words(words) }
}

/// What the guest has after so many elements.
fn after(insn: IoInsn, rep: bool, elements: usize, before: Gprs) -> Gprs {
    let bytes = (elements * usize::from(insn.width.bytes())) as u64;
    let to = if before.rflags & DF == 0 { 0x8000 + bytes } else { 0x8000 - bytes };
    let rcx = if rep { before.rcx - elements as u64 } else { before.rcx };
    match insn.direction {
        Direction::In => Gprs { rcx, rdi: to, ..before },
        Direction::Out => Gprs { rcx, rsi: to, ..before },
    }
}

/// The guest's DF says which way, and the stubs run with DF clear: elements, their places, the count and the port at each.
#[test]
fn the_guests_df_says_which_way() {
    for mut emulator in native() {
        for (insn, rep) in forms() {
            let width = usize::from(insn.width.bytes());
            for rflags in [0, DF, Gprs::CF | DF] {
                for trick in [Trick::None, Trick::Rbx, Trick::Rdx] {
                    let (before, count) = (given(rflags), if rep { 3 } else { 1 });
                    let port = Port { trick, ..Port::default() };
                    let (result, gprs, memory, moved) = run(&mut emulator, insn, before, port);
                    assert_eq!(result.unwrap(), count * width, "{insn}");
                    let start = |i: usize| if rflags & DF == 0 { i * width } else { memory.len() - (i + 1) * width };
                    for (i, moved) in moved.iter().enumerate() {
                        let value =
                            memory[start(i)..][..width].iter().rev().fold(0, |v, byte| v << 8 | u32::from(*byte));
                        let rcx = if rep { 3 - i as u64 } else { 3 };
                        let tricked = trick == Trick::Rdx && i > 0 && rflags & DF == 0; // the CPU's own REP
                        let dx = if tricked { 0x60 } else { PORT as u16 };
                        assert_eq!(*moved, Moved { value, rcx, pointer: start(i) as u64, dx }, "{insn}, {rflags:#x}");
                    }
                    assert_eq!(moved.len(), count, "{insn}");
                    let mut expected: Vec<u8> = (0x80..).take(memory.len()).collect();
                    if insn.direction == Direction::In {
                        (0..count).for_each(|i| expected[start(i)..][..width].fill(i as u8 + 1));
                    }
                    assert_eq!(memory, expected, "{insn}, {rflags:#x}");
                    let after = after(insn, rep, count, before);
                    let after = match trick {
                        Trick::Rbx => Gprs { rbx: before.rbx + count as u64, ..after },
                        Trick::Rdx => Gprs { rdx: 0x60, ..after },
                        _ => after,
                    };
                    assert_eq!(gprs, after, "{insn}, {rflags:#x}, {trick:?}");
                }
            }
        }
    }
}

/// A fault at an element: those before it are done, and the registers say so.
#[test]
fn a_fault_at_any_element() {
    for mut emulator in native() {
        for (insn, rep) in forms() {
            for rflags in [0, DF] {
                for fault_at in 0..if rep { 3 } else { 1 } {
                    let before = given(rflags);
                    let port = Port { fault_at: Some(fault_at), trick: Trick::Rbx, ..Port::default() };
                    let (result, gprs, _, moved) = run(&mut emulator, insn, before, port);
                    let error = result.unwrap_err();
                    assert!(matches!(error, Error::Fault { access, .. } if access.insn == insn), "{error}");
                    assert_eq!(moved.len(), fault_at);
                    assert_eq!(gprs, after(insn, rep, fault_at, before), "{insn}, {rflags:#x}");
                }
            }
        }
    }
}

/// Firmware that moves the address register: nobody knows how far the instruction came, and the registers are as given.
#[test]
fn a_pointer_that_goes_astray() {
    for mut emulator in native() {
        for (insn, rep) in forms() {
            // Downwards, after one element; the CPU's own REP would go on with the pointer that it is left.
            if rep {
                let before = given(DF);
                let port = Port { trick: Trick::Pointer, ..Port::default() };
                let (result, gprs, _, moved) = run(&mut emulator, insn, before, port);
                assert!(matches!(result, Err(Error::Device { .. })), "{insn}: {result:?}");
                assert_eq!((moved.len(), gprs), (1, before), "{insn}");
            }
        }
    }
}

/// What has no room, or is none, is not executed: the form without REP would not look at a count of 0.
#[test]
fn no_element_is_no_access() {
    for mut emulator in native() {
        for (insn, rep) in forms() {
            for rflags in [0, DF] {
                HARDWARE.set(Port::default());
                let before = given(rflags);
                let (mut gprs, mut memory) = (before, [0xaa; 3]);
                let room = &mut memory[..usize::from(insn.width.bytes()) - 1];
                let progress = match insn.direction {
                    Direction::In => emulator.read_string_partial(insn, &mut gprs, room),
                    Direction::Out => emulator.write_string_partial(insn, &mut gprs, room),
                };
                let progress = progress.unwrap();
                assert_eq!((progress.moved, progress.left), (0, if rep { 3 } else { 1 }), "{insn}");
                assert_eq!(gprs, before);
                if rep {
                    let mut none = Gprs { rcx: 0, ..before };
                    let done = match insn.direction {
                        Direction::In => emulator.read_string(insn, &mut none, &mut memory),
                        Direction::Out => emulator.write_string(insn, &mut none, &memory),
                    };
                    assert_eq!((done.unwrap(), none), (0, Gprs { rcx: 0, ..before }), "{insn}");
                }
                assert!(HARDWARE.take().moved.is_empty(), "{insn}");
                assert_eq!(memory, [0xaa; 3]);
            }
        }
    }
}
