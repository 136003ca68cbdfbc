//! KVM's port accesses: `kvm::serve_io` without a kernel, and on /dev/kvm, where that can be opened.
//!
//! On /dev/kvm the tests also look at what the page of `ioemul::kvm` says of KVM: which exits it makes, and with which
//! registers.
#![cfg(all(feature = "kvm", target_os = "linux"))]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use ioemul::kvm::{ExitError, KvmIo, Next, io_exit, serve_io};
use ioemul::{
    DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortOperand, PortSet, SoftwareBus,
    Width,
};
use kvm_bindings::{KVM_EXIT_HLT, KVM_EXIT_IO, kvm_regs, kvm_run, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::Kvm;

#[allow(dead_code)]
#[path = "../examples/kvm_exit_io.rs"]
mod example;

/// Where the device is: a port that DX alone can name.
const PORT: u16 = 0x1f0;
const DF: u64 = 1 << 10;

type Seen = Arc<Mutex<Vec<(PortAccess, u32, Gprs)>>>;
type Change = fn(&mut Gprs);

/// Answers IN with bytes that count up, changes registers, and notes what it sees.
#[derive(Default)]
struct Recorder {
    seen: Seen,
    next: u8,
    change: Option<Change>,
    /// At this access it refuses, or panics.
    refuse_at: Option<usize>,
    panic_at: Option<usize>,
}

impl PortDevice for Recorder {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        let at = {
            let mut seen = self.seen.lock().unwrap();
            seen.push((access, value, *gprs));
            seen.len() - 1
        };
        assert!(self.panic_at != Some(at), "the device panics");
        if self.refuse_at == Some(at) {
            return Err("the device refuses".into());
        }
        if let Some(change) = self.change {
            change(gprs);
        }
        let answer = std::array::from_fn(|byte| self.next.wrapping_add(byte as u8));
        self.next = self.next.wrapping_add(access.width.bytes());
        Ok(u32::from_le_bytes(answer))
    }
}

/// What the recorder answers from its first access on.
fn answers(len: usize) -> Vec<u8> {
    (0..len).map(|byte| byte as u8).collect()
}

fn with_device(device: Recorder) -> (IoEmulator, Seen) {
    let seen = device.seen.clone();
    let mut bus = SoftwareBus::new();
    bus.attach(0..=0xfff, device).unwrap();
    (IoEmulator::builder().ports(PortSet::from(0..=0xfff)).bus(bus).build().unwrap(), seen)
}

fn raw(direction: Direction, width: Width) -> (u8, u8) {
    (u8::from(direction == Direction::Out), width.bytes())
}

fn kvm_io(direction: Direction, width: Width, port: u16, count: u32) -> KvmIo {
    let (direction, size) = raw(direction, width);
    KvmIo::new(direction, size, port, count).unwrap()
}

/// Registers that differ from each other, DX being the port. All flags are set but reserved ones.
fn regs() -> kvm_regs {
    let word = |low: u64| 0xa5a5_a5a5_0000_0000 | low;
    kvm_regs {
        rax: word(0x0102_e3e4),
        rbx: word(0xb),
        rcx: word(0x4000),
        rdx: word(0x5678_0000 | u64::from(PORT)),
        rsi: word(0x51),
        rdi: word(0xd1),
        rsp: word(0x7000),
        rbp: word(0xb9),
        r8: word(8),
        r9: word(9),
        r10: word(10),
        r11: word(11),
        r12: word(12),
        r13: word(13),
        r14: word(14),
        r15: word(15),
        rip: word(0x1000),
        rflags: 0x1_0ed7,
    }
}

/// Writes every register, and inverts the status flags.
fn everything(gprs: &mut Gprs) {
    let rflags = gprs.rflags ^ Gprs::STATUS_FLAGS;
    *gprs = Gprs { rflags, ..Gprs::from_words(std::array::from_fn(|i| 0xdede_dede_c0de_c0c0 + ((i as u64) << 8))) };
}

fn changed_by_device() -> Gprs {
    let mut gprs = Gprs::from(&regs());
    everything(&mut gprs);
    gprs
}

const DIRECTIONS: [Direction; 2] = [Direction::In, Direction::Out];

fn forms() -> impl Iterator<Item = (Direction, Width)> {
    DIRECTIONS.into_iter().flat_map(|direction| Width::ALL.iter().map(move |width| (direction, *width)))
}

#[test]
fn every_direction_width_and_count() {
    for (direction, width) in forms() {
        for count in [1, 2, 3, 5, 256, 1024, 4096] {
            let what = format!("{direction:?} {width:?} {count}");
            let (mut emulator, seen) = with_device(Recorder::default());
            let given = regs();
            let mut regs = given;
            let len = count * usize::from(width.bytes());
            // For one element of OUT, what is in RAX; else no element is.
            let mut data = if count == 1 { given.rax.to_le_bytes()[..len].to_vec() } else { vec![0x77; len] };
            let out = data.clone();
            let next = serve_io(&mut emulator, &mut regs, kvm_io(direction, width, PORT, count as u32), &mut data);
            assert_eq!(next.unwrap(), Next::Run, "{what}");
            assert_eq!(regs, given, "{what}: RAX too: KVM merges the result, and RCX, RSI and RDI are KVM's");
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), count, "{what}");
            match direction {
                Direction::In => assert_eq!(data, answers(len), "{what}"),
                Direction::Out => {
                    let taken: Vec<u8> =
                        seen.iter().flat_map(|seen| seen.1.to_le_bytes()[..width.bytes().into()].to_vec()).collect();
                    assert_eq!((&taken, &data), (&out, &out), "{what}");
                }
            }
            let expected = match (direction, count) {
                (Direction::In, 1) => IoInsn::in_dx(width),
                (Direction::Out, 1) => IoInsn::out_dx(width),
                (Direction::In, _) => IoInsn::ins(width),
                (Direction::Out, _) => IoInsn::outs(width),
            };
            for (access, _, gprs) in seen.iter() {
                assert_eq!(*access, PortAccess { port: PORT, width, direction, insn: expected }, "{what}");
                assert_eq!(*gprs, Gprs::from(&given), "{what}: the registers of the exit at each element");
            }
        }
    }
}

#[test]
fn one_element_changes_all_registers_but_kvms() {
    for (direction, width) in forms() {
        let (mut emulator, _) = with_device(Recorder { change: Some(everything), ..Recorder::default() });
        let given = regs();
        let mut regs = given;
        let mut data = given.rax.to_le_bytes()[..width.bytes().into()].to_vec();
        let next = serve_io(&mut emulator, &mut regs, kvm_io(direction, width, PORT, 1), &mut data).unwrap();
        assert_eq!(next, Next::SetRegs);
        let mut expected = changed_by_device();
        if direction == Direction::In {
            // Where KVM_SET_REGS was called, KVM takes the result from RAX or from the data: both have it.
            expected.rax = width.merge(expected.rax, 0x0302_0100);
            assert_eq!(data, answers(data.len()));
        }
        assert_eq!(Gprs::from(&regs), expected, "{direction:?} {width:?}");
        assert_eq!((regs.rsp, regs.rip), (given.rsp, given.rip));
        assert_eq!(regs.rflags & !Gprs::STATUS_FLAGS, given.rflags & !Gprs::STATUS_FLAGS);
    }
}

#[test]
fn a_string_leaves_kvms_registers_alone() {
    for (direction, width) in forms() {
        for count in [1, 2, 5, 1024] {
            let (mut emulator, seen) = with_device(Recorder { change: Some(everything), ..Recorder::default() });
            let given = regs();
            let mut regs = given;
            let mut data = vec![0x77; count * usize::from(width.bytes())];
            let io = kvm_io(direction, width, PORT, count as u32).of_string();
            assert_eq!(serve_io(&mut emulator, &mut regs, io, &mut data).unwrap(), Next::SetRegs);
            let kvms = |gprs: Gprs| Gprs { rcx: given.rcx, rdx: given.rdx, rsi: given.rsi, rdi: given.rdi, ..gprs };
            // The flags of `everything` go to and fro.
            let rflags = if count % 2 == 1 { changed_by_device().rflags } else { given.rflags };
            assert_eq!(
                Gprs::from(&regs),
                Gprs { rflags, ..kvms(changed_by_device()) },
                "{direction:?} {width:?} {count}"
            );
            assert_eq!((regs.rsp, regs.rip), (given.rsp, given.rip));
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), count);
            for (access, _, gprs) in seen.iter() {
                assert_eq!((access.port, kvms(*gprs)), (PORT, *gprs), "every element at the port of the exit");
            }
            if direction == Direction::In {
                assert_eq!(data, answers(data.len()));
            }
        }
    }
}

/// A device that changes one register alone, and only then, has the registers written back.
#[test]
fn each_register_by_itself_asks_for_set_regs() {
    const CHANGES: &[(&str, Change)] = &[
        ("rax", |gprs| gprs.rax ^= 1 << 63),
        ("rbx", |gprs| gprs.rbx ^= 1),
        ("rcx", |gprs| gprs.rcx ^= 1),
        ("rdx", |gprs| gprs.rdx ^= 1),
        ("rsi", |gprs| gprs.rsi ^= 1),
        ("rdi", |gprs| gprs.rdi ^= 1),
        ("rbp", |gprs| gprs.rbp ^= 1),
        ("r8", |gprs| gprs.r8 ^= 1),
        ("r15", |gprs| gprs.r15 ^= 1 << 63),
        ("rflags", |gprs| gprs.rflags ^= Gprs::CF),
    ];
    for (direction, width) in forms() {
        for (name, change) in CHANGES {
            let given = regs();
            for string in [false, true] {
                let (mut emulator, _) = with_device(Recorder { change: Some(*change), ..Recorder::default() });
                let mut regs = given;
                let mut data = given.rax.to_le_bytes()[..width.bytes().into()].to_vec();
                let io = kvm_io(direction, width, PORT, 1);
                let io = if string { io.of_string() } else { io };
                let next = serve_io(&mut emulator, &mut regs, io, &mut data).unwrap();
                let kvms = string && ["rcx", "rdx", "rsi", "rdi"].contains(name);
                // An IN of 32 bits has all of RAX for its result.
                let overwritten = !string && *name == "rax" && (direction, width) == (Direction::In, Width::Dword);
                let expected = if kvms || overwritten { Next::Run } else { Next::SetRegs };
                assert_eq!(next, expected, "{direction:?} {width:?} {name} {string}");
                assert_eq!(regs != given, next == Next::SetRegs, "{direction:?} {width:?} {name} {string}");
            }
        }
    }
}

#[test]
fn the_form_is_that_of_dx_where_dx_holds_the_port() {
    for (direction, width) in forms() {
        for (port, rdx, operand) in [
            (PORT, 0x1f0, Some(PortOperand::Dx)),
            (0x71, 0x71, Some(PortOperand::Dx)),
            (0x71, 0xffff_0071, Some(PortOperand::Dx)),
            (0x71, 0x1_0072, Some(PortOperand::Imm8(0x71))),
            (0xff, 0, Some(PortOperand::Imm8(0xff))),
            (0, 0xffff, Some(PortOperand::Imm8(0))),
            (0x100, 0x71, None),
            (PORT, 0xf0, None),
        ] {
            let (mut emulator, seen) = with_device(Recorder::default());
            let given = kvm_regs { rdx, ..regs() };
            let mut regs = given;
            let mut data = given.rax.to_le_bytes()[..width.bytes().into()].to_vec();
            let result = serve_io(&mut emulator, &mut regs, kvm_io(direction, width, port, 1), &mut data);
            let seen = seen.lock().unwrap();
            match operand {
                Some(operand) => {
                    assert_eq!(result.unwrap(), Next::Run);
                    assert_eq!((seen[0].0.port, seen[0].0.insn), (port, IoInsn { direction, width, operand }));
                    assert_eq!(seen[0].2.rdx, rdx, "RDX is the guest's");
                }
                None => {
                    let expected = ExitError::Registers { port, dx: rdx as u16 };
                    assert!(matches!(result, Err(Error::KvmExit(error)) if error == expected));
                    assert!(seen.is_empty() && regs == given);
                }
            }
        }
    }
}

#[test]
fn an_out_of_something_else_than_rax_is_of_a_string() {
    for width in Width::ALL.iter().copied() {
        for byte in 0..usize::from(width.bytes()) {
            let (mut emulator, seen) = with_device(Recorder::default());
            let given = regs();
            let mut data = given.rax.to_le_bytes()[..width.bytes().into()].to_vec();
            data[byte] ^= 1;
            let io = kvm_io(Direction::Out, width, PORT, 1);
            assert_eq!(serve_io(&mut emulator, &mut given.clone(), io, &mut data).unwrap(), Next::Run);
            let seen = seen.lock().unwrap();
            assert_eq!(seen[0].0.insn, IoInsn::outs(width));
            assert_eq!(seen[0].2.rax, given.rax, "the guest's, not the element");
            assert_eq!(&seen[0].1.to_le_bytes()[..data.len()], data);
        }
    }
}

#[test]
fn what_does_not_fit_together_is_an_error() {
    for direction in 0..=u8::MAX {
        for size in 0..=u8::MAX {
            let expected = match (direction, size) {
                (2.., _) => Some(ExitError::Direction { direction }),
                (_, 1 | 2 | 4) => None,
                _ => Some(ExitError::Size { size }),
            };
            for count in [1, 2, u32::MAX] {
                assert_eq!(KvmIo::new(direction, size, PORT, count).err(), expected, "{direction} {size}");
            }
            assert_eq!(KvmIo::new(direction, size, PORT, 0).err(), Some(expected.unwrap_or(ExitError::Empty)));
        }
    }
    let given = regs();
    for (direction, width) in forms() {
        let (mut emulator, seen) = with_device(Recorder::default());
        for count in [1, 2, 5, 0x4000_0000, u32::MAX] {
            for len in (0..40).filter(|len| *len as u64 != u64::from(count) * u64::from(width.bytes())) {
                let (mut regs, mut data) = (given, vec![0x77; len]);
                let result = serve_io(&mut emulator, &mut regs, kvm_io(direction, width, PORT, count), &mut data);
                let expected = ExitError::Data { count, width, len };
                assert!(matches!(result, Err(Error::KvmExit(error)) if error == expected), "{count} {len}");
                assert!(regs == given && data == vec![0x77; len]);
            }
        }
        // A string whose port is not in DX.
        let (mut regs, mut data) = (given, vec![0; 2 * usize::from(width.bytes())]);
        let result = serve_io(&mut emulator, &mut regs, kvm_io(direction, width, 0x71, 2), &mut data);
        assert!(matches!(result, Err(Error::KvmExit(ExitError::Registers { port: 0x71, dx: PORT }))));
        // The fields are to be written: a count of 0 is an error here, too.
        let mut io = kvm_io(direction, width, PORT, 1);
        io.count = 0;
        let result = serve_io(&mut emulator, &mut regs, io, &mut []);
        assert!(matches!(result, Err(Error::KvmExit(ExitError::Data { count: 0, len: 0, .. }))));
        assert!(seen.lock().unwrap().is_empty() && regs == given);
    }
}

#[test]
fn errors_say_what_to_do() {
    let text = |error: ExitError| Error::from(error).to_string();
    assert_eq!(
        text(ExitError::Data { count: 5, width: Width::Word, len: 8 }),
        "the KVM exit cannot be served: 5 elements of 2 bytes have 10 bytes of data, and there are 8: pass all of it, and no more"
    );
    assert_eq!(
        text(ExitError::Registers { port: 0x1f0, dx: 0x71 }),
        "the KVM exit cannot be served: the exit is for port 0x01f0, which is not in DX (0x0071), and the instruction cannot \
         have it from elsewhere: pass the registers that KVM_GET_REGS gives at this exit"
    );
    assert!(text(ExitError::Size { size: 8 }).ends_with("there are those of 1, 2 and 4 bytes"));
    assert!(text(ExitError::NotIo { exit_reason: 5 }).contains("the exit reason is 5, and only 2, KVM_EXIT_IO,"));
}

#[test]
fn a_port_that_is_not_permitted() {
    for (direction, width) in forms() {
        for count in [1, 5] {
            // All of it on the bus, but not permitted: past the end by a byte, or by far.
            for port in [0x1000 - u16::from(width.bytes()) + 1, 0x1000, 0xffff] {
                let (mut emulator, seen) = with_device(Recorder::default());
                let given = kvm_regs { rdx: port.into(), ..regs() };
                let mut regs = given;
                let mut data = vec![0x77; count * usize::from(width.bytes())];
                let result =
                    serve_io(&mut emulator, &mut regs, kvm_io(direction, width, port, count as u32), &mut data);
                assert!(matches!(result, Err(Error::PortDenied { port: denied, .. }) if denied == port), "{result:?}");
                assert!(regs == given && seen.lock().unwrap().is_empty() && data.iter().all(|byte| *byte == 0x77));
            }
        }
    }
}

#[test]
fn a_device_that_refuses_or_panics_in_the_middle() {
    for (direction, width) in forms() {
        for (count, at) in [(1, 0), (5, 0), (5, 3), (5, 4)] {
            for panics in [false, true] {
                let device = Recorder {
                    change: Some(everything),
                    refuse_at: (!panics).then_some(at),
                    panic_at: panics.then_some(at),
                    ..Recorder::default()
                };
                let (mut emulator, seen) = with_device(device);
                let given = regs();
                let mut regs = given;
                let width_bytes = usize::from(width.bytes());
                let mut data = vec![0x77; count * width_bytes];
                let io = kvm_io(direction, width, PORT, count as u32);
                let result = catch_unwind(AssertUnwindSafe(|| serve_io(&mut emulator, &mut regs, io, &mut data)));
                match result {
                    Ok(result) => assert!(!panics && matches!(result, Err(Error::Device { .. })), "{result:?}"),
                    Err(panic) => assert_eq!((panics, panic.downcast_ref()), (true, Some(&"the device panics"))),
                }
                assert_eq!(regs, given, "{direction:?} {width:?}");
                let done = at * width_bytes;
                if direction == Direction::In {
                    assert_eq!(data[..done], answers(done));
                }
                assert!(data[done..].iter().all(|byte| *byte == 0x77));
                assert_eq!(seen.lock().unwrap().len(), at + 1, "and no access after it");
            }
        }
    }
}

/// Whatever the fields, the registers and the data are: an answer or an error, and no panic.
#[test]
fn anything_at_all() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut emulator, _) = with_device(Recorder { change: Some(everything), ..Recorder::default() });
    let (mut served, mut refused) = (0, 0);
    for _ in 0..50_000 {
        let (direction, size) = ((random() % 3) as u8, (random() % 6) as u8);
        let port = [PORT, random() as u16, (random() % 0x100) as u16][(random() % 3) as usize];
        let count = [1, 1, (random() % 9) as u32, random() as u32][(random() % 4) as usize];
        let rdx = if random().is_multiple_of(2) { port.into() } else { random() };
        let given = kvm_regs { rax: random(), rcx: random(), rdx, rflags: random(), ..regs() };
        let Ok(io) = KvmIo::new(direction, size, port, count) else { continue };
        let io = if random().is_multiple_of(4) { io.of_string() } else { io };
        let len = if random().is_multiple_of(8) { random() % 50 } else { (u64::from(count) * u64::from(size)).min(50) };
        let mut data = vec![random() as u8; len as usize];
        let mut regs = given;
        match serve_io(&mut emulator, &mut regs, io, &mut data) {
            Ok(next) => {
                served += 1;
                assert_eq!(regs != given, next == Next::SetRegs);
                assert_eq!(regs.rflags & !Gprs::STATUS_FLAGS, given.rflags & !Gprs::STATUS_FLAGS);
            }
            Err(_) => {
                refused += 1;
                assert_eq!(regs, given);
            }
        }
        assert_eq!((regs.rsp, regs.rip), (given.rsp, given.rip));
    }
    assert!(served > 2_000 && refused > 2_000, "{served} served, {refused} refused");
}

/// A `kvm_run` as the kernel leaves it, its data in the page behind it.
#[test]
fn an_exit_is_read_from_kvm_run() {
    #[repr(C, align(4096))]
    struct Shared([u8; 0x3000]);
    let mut shared = Box::new(Shared(std::array::from_fn(|byte| byte as u8)));
    let address = shared.0.as_mut_ptr();
    // SAFETY: there is room for it, and any bytes are a value.
    let run = unsafe { &mut *address.cast::<kvm_run>() };
    let mut ask = |reason, direction, size, count| {
        run.exit_reason = reason;
        run.__bindgen_anon_1.io = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4 {
            direction,
            size,
            port: PORT,
            count,
            data_offset: 0x1004,
        };
        // SAFETY: the memory is longer than any data asked for below, and this is the only reference to it.
        unsafe { io_exit(run) }.map(|(io, data)| (io, data.to_vec()))
    };
    let expected = |len: usize| (4..4 + len).map(|byte| byte as u8).collect::<Vec<_>>();
    for (direction, width) in forms() {
        for count in [1, 2, 1024] {
            let (raw_direction, size) = raw(direction, width);
            let exit = ask(KVM_EXIT_IO, raw_direction, size, count);
            let len = count as usize * usize::from(size);
            assert_eq!(exit, Ok((kvm_io(direction, width, PORT, count), expected(len))));
        }
    }
    for exit_reason in (0..50).filter(|reason| *reason != KVM_EXIT_IO) {
        assert_eq!(ask(exit_reason, 0, 1, 1), Err(ExitError::NotIo { exit_reason }));
    }
    assert_eq!(ask(KVM_EXIT_IO, 2, 1, 1), Err(ExitError::Direction { direction: 2 }));
    assert_eq!(ask(KVM_EXIT_IO, 0, 8, 1), Err(ExitError::Size { size: 8 }));
    assert_eq!(ask(KVM_EXIT_IO, 0, 1, 0), Err(ExitError::Empty));
}

// On /dev/kvm.

/// KVM, or the reason why a test is not run. Where /dev/kvm is, it has to be usable in CI.
fn kvm(test: &str) -> Option<Kvm> {
    let error = match Kvm::new() {
        Ok(kvm) => return Some(kvm),
        Err(error) => error,
    };
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!(in_ci && Path::new("/dev/kvm").exists()), "/dev/kvm is there and cannot be opened: {error}");
    // Not by a macro, whose output the test harness would keep to itself.
    let _ = writeln!(std::io::stderr(), "NOT RUN: {test}: /dev/kvm: {error}");
    None
}

#[test]
fn the_guest_of_the_example() {
    let expected = example::Outcome {
        printed: "Hello from a guest, by REP OUTSB.\n".into(),
        words: [0, 1, 4, 9, 16],
        eax: 6,
        ebx: 0x564d_5868,
        ecx: 2,
    };
    assert_eq!(example::without_kvm().unwrap(), expected);
    let Some(kvm) = kvm("the_guest_of_the_example") else { return };
    assert_eq!(example::run_guest(&kvm).unwrap(), expected);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Real,
    Long,
}

/// 64 KiB from address 0 on: the code, tables that map it as it is, and bytes that count up.
#[repr(C, align(4096))]
struct Memory([u8; 0x1_0000]);

const CODE: usize = 0x1000;

impl Memory {
    fn new(code: &[u8]) -> Box<Self> {
        let mut memory = Box::new(Self(std::array::from_fn(|byte| byte as u8)));
        memory.0[CODE..][..code.len()].copy_from_slice(code);
        memory.0[CODE + code.len()] = 0xf4; // hlt
        for (at, entry) in [(0x2000, 0x3003_u64), (0x3000, 0x4003), (0x4000, 0x83)] {
            memory.0[at..at + 0x1000].fill(0);
            memory.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        memory
    }
}

type Serve<'s> = &'s mut dyn FnMut(&[u8], &mut kvm_regs, KvmIo, &mut [u8]) -> Next;

/// Runs code to the HLT behind it. `serve` also gets the guest's code from RIP on.
fn run(kvm: &Kvm, mode: Mode, code: &[u8], given: kvm_regs, serve: Serve<'_>) -> (kvm_regs, Box<Memory>) {
    let mut memory = Memory::new(code);
    let vm = kvm.create_vm().unwrap();
    let region = kvm_userspace_memory_region {
        memory_size: memory.0.len() as u64,
        userspace_addr: memory.0.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the vCPU, and is not touched while the guest runs.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    if mode == Mode::Long {
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, 0x2000, 0x20, 0x500);
        let flat =
            kvm_segment { limit: u32::MAX, type_: 3, present: 1, s: 1, g: 1, selector: 16, ..Default::default() };
        sregs.cs = kvm_segment { type_: 11, l: 1, selector: 8, ..flat };
        let data = kvm_segment { db: 1, ..flat };
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    }
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: CODE as u64, ..given }).unwrap();
    for _ in 0..10_000 {
        vcpu.run().unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        let run = vcpu.get_kvm_run();
        if run.exit_reason == KVM_EXIT_HLT {
            drop(vcpu);
            return (regs, memory);
        }
        // SAFETY: `run` is what KVM_RUN has left, and `data` is done with before the next one.
        let (io, data) = unsafe { io_exit(run) }.unwrap();
        let at_rip = memory.0[regs.rip as usize..][..15].to_vec();
        if serve(&at_rip, &mut regs, io, data) == Next::SetRegs {
            vcpu.set_regs(&regs).unwrap();
        }
    }
    panic!("the guest does not come to its end");
}

/// Registers for a guest: RAX is none of the bytes that it sends or is sent.
fn guest_regs(rcx: u64, rsi: u64, rdi: u64, flags: u64) -> kvm_regs {
    let rax = 0x1122_3344_eeee_eeee;
    kvm_regs { rax, rcx, rdx: PORT.into(), rsi, rdi, rsp: 0x7000, rflags: 2 | flags, ..Default::default() }
}

/// What the page of `ioemul::kvm` says that KVM delivers: the count, RCX, and RSI or RDI at each exit.
#[test]
fn what_kvm_delivers() {
    let Some(kvm) = kvm("what_kvm_delivers") else { return };
    const REP_OUTSB: &[u8] = &[0xf3, 0x6e];
    const REP_INSB: &[u8] = &[0xf3, 0x6c];
    const REP_INSW: [&[u8]; 2] = [&[0xf3, 0x6d], &[0xf3, 0x66, 0x6d]];
    for (mode, rep_insw) in [(Mode::Real, REP_INSW[0]), (Mode::Long, REP_INSW[1])] {
        let exits = |code: &[u8], given: kvm_regs| {
            let mut exits = Vec::new();
            let (mut next, mut sent) = (0_u8, Vec::new());
            let (after, memory) = run(&kvm, mode, code, given, &mut |_, regs, io, data| {
                let pointer = if io.direction == Direction::In { regs.rdi } else { regs.rsi };
                exits.push((io.count, regs.rcx, pointer));
                assert_eq!((io.port, regs.rax, regs.rdx), (PORT, given.rax, given.rdx));
                for byte in data {
                    match io.direction {
                        Direction::In => *byte = next,
                        Direction::Out => sent.push(*byte),
                    }
                    next = next.wrapping_add(1);
                }
                Next::Run
            });
            assert_eq!(after.rax, given.rax);
            (exits, sent, after, memory)
        };
        // One element an exit, the registers behind it.
        let (found, sent, after, _) = exits(REP_OUTSB, guest_regs(5, 0x8001, 0, 0));
        assert_eq!(found, [(1, 4, 0x8002), (1, 3, 0x8003), (1, 2, 0x8004), (1, 1, 0x8005), (1, 0, 0x8006)], "{mode:?}");
        assert_eq!((sent, after.rsi), (vec![1, 2, 3, 4, 5], 0x8006));
        let (found, sent, ..) = exits(REP_OUTSB, guest_regs(3, 0x8003, 0, DF));
        assert_eq!((found, sent), (vec![(1, 2, 0x8002), (1, 1, 0x8001), (1, 0, 0x8000)], vec![3, 2, 1]), "{mode:?}");
        let (found, sent, ..) = exits(&[0x6e], guest_regs(9, 0x8001, 0, 0));
        assert_eq!((found, sent), (vec![(1, 9, 0x8002)], vec![1]), "{mode:?}");
        // A batch an exit, the registers before it, and the data in the order in which it is moved.
        let (found, _, after, memory) = exits(rep_insw, guest_regs(5, 0, 0x9f00, 0));
        assert_eq!((found, after.rcx, after.rdi), (vec![(5, 5, 0x9f00)], 0, 0x9f0a), "{mode:?}");
        assert_eq!(memory.0[0x9f00..0x9f0a], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let (found, _, after, memory) = exits(rep_insw, guest_regs(5, 0, 0x9f08, DF));
        assert_eq!((found, after.rcx, after.rdi), (vec![(5, 5, 0x9f08)], 0, 0x9efe), "{mode:?}");
        assert_eq!(memory.0[0x9f00..0x9f0a], [8, 9, 6, 7, 4, 5, 2, 3, 0, 1]);
        // 1,024 bytes at most.
        let (found, _, after, memory) = exits(REP_INSB, guest_regs(4096, 0, 0x9000, 0));
        let quarters = [(1024, 4096, 0x9000), (1024, 3072, 0x9400), (1024, 2048, 0x9800), (1024, 1024, 0x9c00)];
        assert_eq!((found, after.rcx, after.rdi), (quarters.to_vec(), 0, 0xa000), "{mode:?}");
        assert!(memory.0[0x9000..0xa000].iter().enumerate().all(|(at, byte)| *byte == at as u8));
        // To the end of the page, but one element at least: here one that lies across it.
        let (found, ..) = exits(rep_insw, guest_regs(3, 0, 0x9fff, 0));
        assert_eq!(found, [(1, 3, 0x9fff), (2, 2, 0xa001)], "{mode:?}");
        let (found, ..) = exits(REP_INSB, guest_regs(0x300, 0, 0x9f00, 0));
        assert_eq!(found, [(0x100, 0x300, 0x9f00), (0x200, 0x200, 0xa000)], "{mode:?}");
        // One element is not told from IN.
        let (found, _, after, _) = exits(&[0x6c], guest_regs(9, 0, 0x9f00, 0));
        assert_eq!((found, after.rcx, after.rdi), (vec![(1, 9, 0x9f00)], 9, 0x9f01), "{mode:?}");
        // None makes no exit.
        assert_eq!(exits(REP_INSB, guest_regs(0, 0, 0x9f00, 0)).0, [], "{mode:?}");
    }
}

/// Opcode and prefixes of a form in the code of a mode.
fn code_of(mode: Mode, insn: IoInsn) -> Vec<u8> {
    let default = if mode == Mode::Real { Width::Word } else { Width::Dword };
    let rep = matches!(insn.operand, PortOperand::String { rep: true, .. }).then_some(0xf3);
    let operand_size = (insn.width != Width::Byte && insn.width != default).then_some(0x66);
    let immediate = if let PortOperand::Imm8(port) = insn.operand { Some(port) } else { None };
    rep.into_iter().chain(operand_size).chain([insn.opcode()]).chain(immediate).collect()
}

fn modes_and_forms() -> impl Iterator<Item = (Mode, Direction, Width)> {
    let modes = [Mode::Real, Mode::Long].into_iter();
    modes.flat_map(|mode| forms().map(move |(direction, width)| (mode, direction, width)))
}

/// A string instruction of a guest's, and a VMM.
#[derive(Clone, Copy, Debug)]
struct StringRun {
    mode: Mode,
    insn: IoInsn,
    count: u64,
    start: u64,
    flags: u64,
    /// Whether the device changes all registers.
    changes: bool,
    /// Whether the VMM looks at the guest's code.
    looks: bool,
}

/// Strings through `serve_io`, with a device that leaves the registers alone, and with one that changes all of them: KVM
/// comes to its end, with the data and the registers that it should.
#[test]
fn strings_of_a_guest() {
    let Some(kvm) = kvm("strings_of_a_guest") else { return };
    for (mode, direction, width) in modes_and_forms() {
        let (once, rep) = match direction {
            Direction::In => (IoInsn::ins(width), IoInsn::rep_ins(width)),
            Direction::Out => (IoInsn::outs(width), IoInsn::rep_outs(width)),
        };
        for (insn, count, start, flags) in [
            (once, 1, 0x9f00, 0),
            (once, 1, 0x9f00, DF),
            (rep, 0, 0x9f00, 0),
            (rep, 1, 0x9f00, 0),
            (rep, 5, 0x9f00, 0),
            (rep, 5, 0x9f80, DF),
            (rep, 3, 0x9fff, 0), // the first of several bytes lies across the end of a page
        ] {
            let run = StringRun { mode, insn, count, start, flags, changes: false, looks: false };
            check_string(&kvm, run);
            check_string(&kvm, StringRun { looks: true, ..run });
            check_string(&kvm, StringRun { looks: true, changes: true, ..run });
            if direction == Direction::Out {
                check_string(&kvm, StringRun { changes: true, ..run }); // the data shows what it is
            }
        }
    }
}

fn check_string(kvm: &Kvm, case: StringRun) {
    let StringRun { mode, insn, count, start, flags, changes, looks } = case;
    let (mut emulator, seen) = with_device(Recorder { change: changes.then_some(everything), ..Recorder::default() });
    let rep = matches!(insn.operand, PortOperand::String { rep: true, .. });
    let given = guest_regs(if rep { count } else { 7 }, start, start, flags);
    let code = code_of(mode, insn);
    let (after, memory) = run(kvm, mode, &code, given, &mut |at_rip, regs, io, data| {
        let is_string = looks && IoInsn::decode(at_rip).is_ok_and(|(insn, _)| insn.is_string());
        serve_io(&mut emulator, regs, if is_string { io.of_string() } else { io }, data).unwrap()
    });
    let width = usize::from(insn.width.bytes());
    let address = |element: u64| match flags & DF {
        0 => start + element * width as u64,
        _ => start - element * width as u64,
    };
    let (rsi, rdi) = match insn.direction {
        Direction::In => (start, address(count)),
        Direction::Out => (address(count), start),
    };
    assert_eq!((after.rsi, after.rdi, after.rdx), (rsi, rdi, given.rdx), "{case:x?}");
    assert_eq!(after.rcx, if rep { 0 } else { given.rcx }, "{case:x?}");
    // RAX is the device's or the guest's: no element goes there.
    let rax = if changes && count > 0 { changed_by_device().rax } else { given.rax };
    assert_eq!(after.rax, rax, "{case:x?}");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len() as u64, count, "{case:x?}");
    let mut expected = Memory::new(&code);
    for (element, (_, value, _)) in (0..).zip(seen.iter()) {
        let memory = &mut expected.0[address(element) as usize..][..width];
        match insn.direction {
            Direction::In => memory.copy_from_slice(&answers(1024)[element as usize * width..][..width]),
            Direction::Out => assert_eq!(&value.to_le_bytes()[..width], memory, "{case:x?}"),
        }
    }
    // (The page tables, at lower addresses, gain accessed bits.)
    assert!(memory.0[0x8000..] == expected.0[0x8000..], "{case:x?}: the guest's memory");
}

/// IN and OUT: what the device has left in the registers is what the guest has.
#[test]
fn in_and_out_of_a_guest() {
    let Some(kvm) = kvm("in_and_out_of_a_guest") else { return };
    for (mode, direction, width) in modes_and_forms() {
        for (operand, rdx) in [
            (PortOperand::Dx, u64::from(PORT)),
            (PortOperand::Imm8(0x71), 0x1234_5678),
            (PortOperand::Imm8(0x71), 0x71), // the device sees DX there
        ] {
            for change in [None, Some(everything as Change)] {
                check_in_out(&kvm, mode, IoInsn { direction, width, operand }, rdx, change);
            }
        }
    }
}

fn check_in_out(kvm: &Kvm, mode: Mode, insn: IoInsn, rdx: u64, change: Option<Change>) {
    let what = format!("{mode:?} {insn} {rdx:#x} {}", change.is_some());
    let (mut emulator, seen) = with_device(Recorder { change, ..Recorder::default() });
    let given = kvm_regs { rdx, ..guest_regs(1, 2, 3, 0) };
    let code = code_of(mode, insn);
    let (after, _) =
        run(kvm, mode, &code, given, &mut |_, regs, io, data| serve_io(&mut emulator, regs, io, data).unwrap());
    let mut expected = Gprs::from(&given);
    if let Some(change) = change {
        change(&mut expected);
    }
    if insn.direction == Direction::In {
        expected.rax = insn.width.merge(expected.rax, 0x0302_0100);
        expected.rflags = after.rflags; // KVM's emulator may write its own
    }
    // In real mode nobody promises anything of the upper halves.
    let visible = if mode == Mode::Long { u64::MAX } else { u32::MAX.into() };
    let words = |gprs: Gprs| gprs.to_words().map(|word| word & visible);
    assert_eq!(words(Gprs::from(&after)), words(expected), "{what}");
    assert_eq!((after.rip, after.rsp), ((CODE + code.len() + 1) as u64, given.rsp), "{what}");
    let (seen, port) = (seen.lock().unwrap(), insn.port(&Gprs::from(&given)));
    assert_eq!((seen.len(), seen[0].0.port, seen[0].2.rdx), (1, port, rdx), "{what}");
    let form = if rdx as u16 == port { PortOperand::Dx } else { insn.operand };
    assert_eq!(seen[0].0.insn, IoInsn { operand: form, ..insn }, "{what}");
}
