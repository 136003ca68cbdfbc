//! INS and OUTS: the registers that the instruction owns, the memory it moves, and what is left when it ends early.
#![cfg(feature = "std")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use ioemul::{
    AddressSize, DeviceError, Direction, Error, Gprs, IoEmulator, IoFault, IoInsn, PortAccess, PortDevice, PortOperand,
    PortSet, Quirk, QuirkTable, Segment, SoftwareBus, Step, StringError, StubLayout, StubTable, Trigger, Width,
};

/// Counts up on IN, keeps what it is given on OUT, and refuses after so many elements.
struct Fifo {
    next: u32,
    taken: Taken,
    refuse_after: usize,
}

impl PortDevice for Fifo {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        self.next += 0x0101_0101;
        self.next
    }

    fn port_out(&mut self, _: PortAccess, value: u32, gprs: &mut Gprs) {
        self.taken.lock().unwrap().push((value, *gprs));
    }

    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        if self.refuse_after == 0 {
            return Err("the FIFO is stuck".into());
        }
        self.refuse_after -= 1;
        match access.direction {
            Direction::In => Ok(self.port_in(access, gprs)),
            _ => {
                self.port_out(access, value, gprs);
                Ok(0)
            }
        }
    }
}

type Taken = Arc<Mutex<Vec<(u32, Gprs)>>>;

/// Emulators, one in each layout and one without machine code, with the FIFO at 0x300 to 0x303, and what the FIFO was given.
fn emulators(refuse_after: usize) -> impl Iterator<Item = (IoEmulator, Taken)> {
    StubLayout::ALL.iter().copied().map(Some).chain([None]).map(move |layout| {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let mut bus = SoftwareBus::new();
        bus.attach(0x300..=0x303, Fifo { next: 0, taken: taken.clone(), refuse_after }).unwrap();
        let builder = IoEmulator::builder().ports(PortSet::from(0x300..=0x310)).bus(bus);
        let builder = match layout {
            Some(layout) => builder.layout(layout),
            None => builder.direct(),
        };
        (builder.build().unwrap(), taken)
    })
}

/// Registers that are all different; DX is the FIFO's port.
fn registers(rcx: u64) -> Gprs {
    let words = std::array::from_fn(|i| 0x0123_4567_89ab_cdef_u64.rotate_left(4 * i as u32));
    Gprs { rcx, rdx: 0xffff_0000_0000_0300, rflags: 0, ..Gprs::from_words(words) }
}

fn forms(direction: Direction) -> impl Iterator<Item = (IoInsn, bool, bool)> {
    IoInsn::strings().filter(move |insn| insn.direction == direction).map(|insn| match insn.operand {
        PortOperand::String { rep, address, .. } => (insn, rep, address == AddressSize::Bits32),
        other => panic!("{other:?}"),
    })
}

/// What a register holds after an instruction of this address size wrote to it.
fn written(value: u64, addr32: bool) -> u64 {
    if addr32 { value as u32 as u64 } else { value }
}

#[test]
fn ins_fills_memory_and_moves_its_registers_alone() {
    for (insn, rep, addr32) in forms(Direction::In) {
        for (mut emulator, _) in emulators(usize::MAX) {
            let before = registers(if addr32 { 0xdead_beef_0000_0003 } else { 3 });
            let (mut gprs, mut memory) = (before, [0xaa; 16]);
            let width = usize::from(insn.width.bytes());
            let len = if rep { 3 * width } else { width };
            assert_eq!(emulator.read_string(insn, &mut gprs, &mut memory).unwrap(), len, "{insn}");
            let expected: Vec<u8> = (0..len).map(|i| (i / width + 1) as u8).collect();
            assert_eq!((&memory[..len], &memory[len..]), (&expected[..], &[0xaa; 16][len..]), "{insn}");
            let after = Gprs {
                rcx: if rep { 0 } else { before.rcx },
                rdi: written(before.rdi.wrapping_add(len as u64), addr32),
                ..before
            };
            assert_eq!(gprs, after, "{insn}");
        }
    }
}

#[test]
fn outs_reads_memory_with_the_guest_in_view() {
    for (insn, rep, addr32) in forms(Direction::Out) {
        for (mut emulator, taken) in emulators(usize::MAX) {
            let before = registers(2);
            let mut gprs = before;
            let width = usize::from(insn.width.bytes());
            let memory = [1, 2, 3, 4, 5, 6, 7, 8, 9];
            let len = if rep { 2 * width } else { width };
            assert_eq!(emulator.write_string(insn, &mut gprs, &memory).unwrap(), len, "{insn}");
            let taken = taken.lock().unwrap();
            let expected: Vec<u32> = memory[..len]
                .chunks(width)
                .map(|element| element.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
                .collect();
            assert_eq!(taken.iter().map(|taken| taken.0).collect::<Vec<_>>(), expected, "{insn}");
            // All of them are the guest's: those of the instruction as they are at the element.
            for (i, taken) in taken.iter().enumerate() {
                let moved = Gprs {
                    rcx: written(before.rcx - i as u64, addr32),
                    rsi: written(before.rsi + (i * width) as u64, addr32),
                    ..before
                };
                assert_eq!(taken.1, if i == 0 { before } else { moved }, "{insn}, element {i}");
            }
            let after = Gprs {
                rcx: if rep { 0 } else { before.rcx },
                rsi: written(before.rsi.wrapping_add(len as u64), addr32),
                ..before
            };
            assert_eq!(gprs, after, "{insn}");
        }
    }
}

#[test]
fn a_count_of_zero_changes_nothing() {
    for direction in [Direction::In, Direction::Out] {
        for (insn, _, addr32) in forms(direction).filter(|form| form.1) {
            for (mut emulator, taken) in emulators(usize::MAX) {
                let before = registers(if addr32 { 0xdead_beef_0000_0000 } else { 0 });
                let mut gprs = before;
                let done = match direction {
                    Direction::In => emulator.read_string(insn, &mut gprs, &mut []),
                    _ => emulator.write_string(insn, &mut gprs, &[]),
                };
                assert_eq!(done.unwrap(), 0, "{insn}");
                assert_eq!(gprs, before, "{insn}");
                assert!(taken.lock().unwrap().is_empty());
            }
        }
    }
}

#[test]
fn an_access_that_ends_early_says_how_far_it_got() {
    for (mut emulator, _) in emulators(2) {
        let before = registers(5);
        let (mut gprs, mut memory) = (before, [0; 20]);
        let error = emulator.read_string(IoInsn::rep_ins(Width::Word), &mut gprs, &mut memory).unwrap_err();
        assert_eq!(
            error.to_string(),
            "IN of 2 bytes from port 0x0300: the device refused the access: the FIFO is stuck"
        );
        assert_eq!(gprs, Gprs { rcx: 3, rdi: before.rdi + 4, ..before });
        assert_eq!(memory[..6], [1, 1, 2, 2, 0, 0]);
    }
}

/// Emulators with these devices: in each layout, and without machine code.
fn everywhere(devices: impl Fn() -> SoftwareBus, ports: PortSet) -> impl Iterator<Item = IoEmulator> {
    StubLayout::ALL.iter().copied().map(Some).chain([None]).map(move |layout| {
        let builder = IoEmulator::builder().ports(ports.clone()).bus(devices());
        match layout {
            Some(layout) => builder.layout(layout).build().unwrap(),
            None => builder.direct().build().unwrap(),
        }
    })
}

#[test]
fn an_outs_that_ends_early_says_how_far_it_got() {
    for (mut emulator, taken) in emulators(2) {
        let before = registers(5);
        let mut gprs = before;
        let data: Vec<u8> = (1..=20).collect();
        let error = emulator.write_string(IoInsn::rep_outs(Width::Dword), &mut gprs, &data).unwrap_err();
        assert!(matches!(error, Error::Device { access, .. } if access.insn == IoInsn::rep_outs(Width::Dword)));
        assert_eq!(gprs, Gprs { rcx: 3, rsi: before.rsi + 8, ..before });
        let taken: Vec<_> = taken.lock().unwrap().iter().map(|taken| taken.0).collect();
        assert_eq!(taken, [0x0403_0201, 0x0807_0605]);
    }
}

/// Ends after so many bytes, whole elements or not, having changed all registers; panics at `None`.
struct Ends(Option<usize>, Arc<Mutex<Vec<Gprs>>>);

impl Ends {
    fn end(&self, gprs: &mut Gprs) -> Result<(), StringError> {
        self.1.lock().unwrap().push(*gprs);
        *gprs = Gprs::from_words([!0; 16]);
        match self.0 {
            None => panic!("the device model has a bug"),
            Some(done) => Err(StringError { done, source: "no paper".into() }),
        }
    }
}

impl PortDevice for Ends {
    fn try_read_string(&mut self, _: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        data.fill(0x77);
        self.end(gprs)
    }

    fn try_write_string(&mut self, _: PortAccess, _: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.end(gprs)
    }
}

/// A device that stops within an element has not transferred it, and none has transferred more than it was given.
/// Whatever the device made of the registers, those of the instruction say how far it got and the others are put back.
#[test]
fn progress_is_in_whole_elements() {
    let lies = [0, 1, 3, 4, 7, 8, 11, 12, 13, 1000, isize::MAX as usize, usize::MAX - 3, usize::MAX];
    for done in lies.into_iter().map(Some).chain([None]) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let bus = || {
            let mut bus = SoftwareBus::new();
            bus.attach(0x300..=0x303, Ends(done, seen.clone())).unwrap();
            bus
        };
        for mut emulator in everywhere(bus, PortSet::all()) {
            for direction in [Direction::In, Direction::Out] {
                for (insn, rep, addr32) in forms(direction) {
                    let width = usize::from(insn.width.bytes());
                    let count = if rep { 12 / width as u64 } else { 1 };
                    let len = count as usize * width;
                    let before = registers(12 / width as u64);
                    let (mut gprs, mut memory) = (before, [0; 12]);
                    let result = catch_unwind(AssertUnwindSafe(|| match direction {
                        Direction::In => emulator.read_string(insn, &mut gprs, &mut memory),
                        Direction::Out => emulator.write_string(insn, &mut gprs, &memory),
                    }));
                    assert_eq!(
                        seen.lock().unwrap().pop(),
                        Some(before),
                        "{insn}: the device sees the guest's registers"
                    );
                    let Some(done) = done else {
                        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"the device model has a bug"));
                        assert_eq!(gprs, before, "{insn}");
                        let expected = if direction == Direction::In { 0x77 } else { 0 };
                        assert!(
                            memory[..len].iter().all(|byte| *byte == expected),
                            "{insn}: what the device put there"
                        );
                        assert!(memory[len..].iter().all(|byte| *byte == 0), "{insn}: {memory:x?}");
                        continue;
                    };
                    let error = result.unwrap().unwrap_err();
                    assert!(error.to_string().ends_with("the device refused the access: no paper"), "{error}");
                    let moved = done.min(len) / width * width;
                    let pointer = |start: u64| match moved {
                        0 => start,
                        _ => written(start.wrapping_add(moved as u64), addr32),
                    };
                    let after = match direction {
                        Direction::In => Gprs { rdi: pointer(before.rdi), ..before },
                        Direction::Out => Gprs { rsi: pointer(before.rsi), ..before },
                    };
                    let rcx = if rep { before.rcx - (moved / width) as u64 } else { before.rcx };
                    assert_eq!(gprs, Gprs { rcx, ..after }, "{insn}, {done} bytes");
                }
            }
        }
    }
}

#[test]
fn memory_and_ports_are_checked_before_the_first_element() {
    for (mut emulator, taken) in emulators(usize::MAX) {
        for count in [3, u64::MAX, 1 << 62] {
            let before = registers(count);
            let mut gprs = before;
            let error = emulator.write_string(IoInsn::rep_outs(Width::Dword), &mut gprs, &[0; 11]).unwrap_err();
            assert!(matches!(error, Error::StringOutOfBounds { available: 11, .. }), "{error}");
            assert_eq!(gprs, before);
        }
        let before = Gprs { rdx: 0x30e, ..registers(1) };
        let mut gprs = before;
        let error = emulator.write_string(IoInsn::rep_outs(Width::Dword), &mut gprs, &[0; 4]).unwrap_err();
        assert!(matches!(error, Error::PortDenied { port: 0x30e, .. }), "{error}");
        assert_eq!(gprs, before);
        assert!(taken.lock().unwrap().is_empty());
    }
}

#[test]
fn a_guests_addresses_are_never_followed() {
    let (mut emulator, _) = emulators(usize::MAX).next().unwrap();
    let before = registers(1);
    let mut gprs = before;
    for insn in IoInsn::strings() {
        let error = emulator.execute(insn, &mut gprs).unwrap_err();
        assert!(matches!(error, Error::StringForm { insn: refused } if refused == insn));
    }
    let error = emulator.emulate(&[0xf3, 0x6c], &mut gprs).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`rep insb` moves data between a port and memory: `read_string` runs INS, `write_string` OUTS, `execute` neither"
    );
    assert!(emulator.write_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &[0]).is_err());
    assert!(emulator.read_string(IoInsn::in_dx(Width::Byte), &mut gprs, &mut [0]).is_err());
    assert_eq!(gprs, before);
}

#[test]
fn several_devices_and_none_share_an_element() {
    let (mut emulator, _) = emulators(usize::MAX).next().unwrap();
    let mut gprs = Gprs { rdx: 0x302, ..registers(2) };
    let mut memory = [0; 8];
    emulator.read_string(IoInsn::rep_ins(Width::Dword), &mut gprs, &mut memory).unwrap();
    assert_eq!(memory, [1, 2, 255, 255, 3, 4, 255, 255]);
}

#[test]
fn a_device_may_take_the_slice_at_once() {
    struct Sector(Arc<Mutex<Vec<u8>>>);
    impl PortDevice for Sector {
        fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
            panic!("element by element")
        }
        fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {
            panic!("element by element")
        }
        fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
            assert_eq!((access.width, gprs.rcx), (Width::Word, 256));
            self.0.lock().unwrap().extend_from_slice(data);
            gprs.rbx = 0x1_0000; // a status in another register, as VMware's high-bandwidth channel has it
            Ok(())
        }
    }
    let sector = Arc::new(Mutex::new(Vec::new()));
    let mut bus = SoftwareBus::new();
    bus.attach(0x1f0..=0x1f7, Sector(sector.clone())).unwrap();
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).build().unwrap();
    let data: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let mut gprs = Gprs { rdx: 0x1f0, ..registers(256) };
    emulator.write_string(IoInsn::rep_outs(Width::Word), &mut gprs, &data).unwrap();
    assert_eq!((&*sector.lock().unwrap(), gprs.rbx, gprs.rcx), (&data, 0x1_0000, 0));
    // A count of 0 is no access at all: the device, which insists on 256, is not asked.
    let mut gprs = Gprs { rdx: 0x1f0, rbx: 7, ..registers(0) };
    assert_eq!(emulator.write_string(IoInsn::rep_outs(Width::Word), &mut gprs, &data).unwrap(), 0);
    assert_eq!(gprs.rbx, 7);
}

#[test]
fn without_privilege_nothing_moves() {
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::new(layout).unwrap();
        for insn in IoInsn::strings() {
            let mut memory = [0xaa_u8; 4];
            let before = Gprs { rsi: memory.as_mut_ptr() as u64, rdi: memory.as_mut_ptr() as u64, ..registers(1) };
            let mut gprs = before;
            // SAFETY: the registers point to four bytes; the process has no privilege for the port.
            let fault = unsafe { table.stub(insn).run(&mut gprs) }.unwrap_err();
            assert_eq!((fault.vector, gprs, memory), (13, before, [0xaa; 4]), "{layout:?} {insn}");
        }
    }
}

const DF: u64 = 1 << 10;

/// Calls a stub with the caller's DF set or clear; returns RAX, and the flags that it comes back with.
fn call_with_df(stub: *const u8, gprs: &mut Gprs, direction: u64) -> (u64, u64) {
    let (result, flags): (u64, u64);
    // SAFETY: the stub is a function of this signature, whose access does no harm; DF is cleared again.
    unsafe {
        std::arch::asm!(
            "test {set}, {set}", "jz 2f", "std", "2:", "call {stub}", "pushfq", "pop rdi", "cld",
            set = in(reg) direction, stub = in(reg) stub, lateout("rax") result,
            inout("rdi") &raw mut *gprs => flags, clobber_abi("sysv64"),
        )
    };
    (result, flags)
}

/// A caller that has DF set, against the psABI, has it set afterwards; the instruction runs with DF clear. The DF of the
/// register file is the guest's, and is neither loaded nor stored.
#[test]
fn the_direction_flag_is_the_callers() {
    // pushfq; pop rax; test ah, 4; jz forwards; cld; call forwards; std; ret
    const ENTRY: [u8; 15] = [0x9c, 0x58, 0xf6, 0xc4, 0x04, 0x74, 0x08, 0xfc, 0xe8, 0x02, 0x00, 0x00, 0x00, 0xfd, 0xc3];
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::builder().layout(layout).elide_io(true).build().unwrap();
        for insn in IoInsn::strings() {
            let stub = table.stub(insn);
            assert!(stub.code().starts_with(&ENTRY), "{:02x?}", stub.code());
            for direction in [0, DF] {
                for guests in [0, DF] {
                    let before = Gprs { rflags: guests, ..registers(1) };
                    let mut gprs = before;
                    let (result, flags) = call_with_df(stub.code().as_ptr(), &mut gprs, direction);
                    assert_eq!((result, flags & DF, gprs), (0, direction, before), "{layout:?} {insn}");
                }
            }
        }
    }
}

/// A fault is no exception to that.
#[test]
fn the_direction_flag_is_the_callers_after_a_fault() {
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::new(layout).unwrap();
        for insn in IoInsn::strings() {
            for direction in [0, DF] {
                let before = Gprs { rflags: DF, ..registers(1) };
                let mut gprs = before;
                let (result, flags) = call_with_df(table.stub(insn).code().as_ptr(), &mut gprs, direction);
                assert_eq!((result, flags & DF, gprs), (1, direction, before), "{layout:?} {insn}");
            }
        }
    }
}

/// RCX, RSI and RDI are the instruction's own where it moves them, whatever a device writes there; all else is the
/// device's.
#[test]
fn a_device_has_the_other_registers_in_its_hands() {
    struct All;
    impl PortDevice for All {
        fn try_read_string(&mut self, _: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
            data.fill(7);
            *gprs = Gprs::from_words([0x77; 16]);
            Ok(())
        }
        fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
            self.try_read_string(access, &mut data.to_vec(), gprs)
        }
    }
    let bus = || {
        let mut bus = SoftwareBus::new();
        bus.attach(0x300..=0x30f, All).unwrap();
        bus
    };
    for mut emulator in everywhere(bus, PortSet::all()) {
        for direction in [Direction::In, Direction::Out] {
            for (insn, rep, addr32) in forms(direction) {
                let before = registers(2);
                let (mut gprs, mut memory) = (before, [0; 8]);
                let len = if rep { 2 } else { 1 } * usize::from(insn.width.bytes());
                let done = match direction {
                    Direction::In => emulator.read_string(insn, &mut gprs, &mut memory),
                    Direction::Out => emulator.write_string(insn, &mut gprs, &memory),
                };
                assert_eq!(done.unwrap(), len, "{insn}");
                let left = Gprs {
                    rflags: before.rflags & !Gprs::STATUS_FLAGS | 0x77 & Gprs::STATUS_FLAGS,
                    rcx: if rep { 0 } else { 0x77 },
                    ..Gprs::from_words([0x77; 16])
                };
                let moved = |start: u64| written(start.wrapping_add(len as u64), addr32);
                let after = match direction {
                    Direction::In => Gprs { rdi: moved(before.rdi), ..left },
                    Direction::Out => Gprs { rsi: moved(before.rsi), ..left },
                };
                assert_eq!(gprs, after, "{insn}");
            }
        }
    }
}

/// A fault, as the CPU makes one: `IoFault` is made by nobody else.
fn fault() -> IoFault {
    let mut gprs = Gprs { rdx: 0x80, ..Gprs::default() };
    // SAFETY: without privilege nothing is accessed, and writing port 0x80 would do nothing.
    unsafe { StubTable::global().unwrap().stub(IoInsn::out_dx(Width::Byte)).run(&mut gprs) }.unwrap_err()
}

/// Moves DX and everything else at its first element, and ends at the third: by a refusal, by a fault, by a panic.
struct Restless(u32, End);

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Refusal,
    Fault,
    Panic,
}

impl PortDevice for Restless {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        assert_eq!(access.port, 0x300, "the port of an element is that of the instruction");
        assert!(access.direction == Direction::Out || value == 0);
        *gprs = Gprs::from_words([!0; 16]);
        self.0 += 1;
        match (self.0, self.1) {
            (3, End::Refusal) => Err("enough".into()),
            (3, End::Fault) => Err(Box::new(fault())),
            (3, End::Panic) => panic!("the device model has a bug"),
            _ => Ok(self.0 * 0x0101_0101),
        }
    }
}

/// What a device that ends in the middle leaves: the elements before, the registers that say so, and nothing else. What
/// it did to DX leads nowhere.
#[test]
fn a_device_that_ends_in_the_middle_of_a_string() {
    for end in [End::Refusal, End::Fault, End::Panic] {
        for direction in [Direction::In, Direction::Out] {
            for (insn, rep, addr32) in forms(direction).filter(|form| form.1) {
                // A device of all the ports of the element, and one of its first port: the bus splits the elements.
                for last in [0x303, 0x300] {
                    let bus = || {
                        let mut bus = SoftwareBus::new();
                        bus.attach(0x300..=last, Restless(0, end)).unwrap();
                        bus
                    };
                    for mut emulator in everywhere(bus, PortSet::all()) {
                        let before = registers(5);
                        let (mut gprs, mut memory) = (before, [0xaa; 21]);
                        let result = catch_unwind(AssertUnwindSafe(|| match direction {
                            Direction::In => emulator.read_string(insn, &mut gprs, &mut memory),
                            Direction::Out => emulator.write_string(insn, &mut gprs, &memory),
                        }));
                        let width = usize::from(insn.width.bytes());
                        let moved = 2 * width;
                        let pointer = |start: u64| written(start.wrapping_add(moved as u64), addr32);
                        let after = match (end, direction) {
                            (End::Panic, _) => before,
                            (_, Direction::In) => Gprs { rcx: 3, rdi: pointer(before.rdi), ..before },
                            (_, Direction::Out) => Gprs { rcx: 3, rsi: pointer(before.rsi), ..before },
                        };
                        assert_eq!(gprs, after, "{insn} {end:?} {rep}");
                        match (end, result) {
                            (End::Panic, Err(panic)) => {
                                assert_eq!(panic.downcast_ref(), Some(&"the device model has a bug"));
                            }
                            (End::Refusal, Ok(Err(Error::Device { access, .. })))
                            | (End::Fault, Ok(Err(Error::Fault { access, .. }))) => {
                                assert_eq!((access.port, access.insn), (0x300, insn));
                            }
                            other => panic!("{insn} {end:?}: {other:?}"),
                        }
                        let expected: Vec<u8> = (0..moved)
                            .map(|i| if last == 0x303 || i % width == 0 { (i / width) as u8 + 1 } else { 0xff })
                            .collect();
                        if direction == Direction::In {
                            assert_eq!(memory[..moved], expected, "{insn} {end:?}");
                            assert!(memory[moved..].iter().all(|byte| *byte == 0xaa), "{insn} {end:?}");
                        }
                        // The bus works on.
                        let mut gprs = Gprs { rdx: 0x300, ..before };
                        emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap();
                    }
                }
            }
        }
    }
}

/// A quirk takes IN and OUT: a string instruction at its port, with RAX as it asks for, is none of its accesses, and is
/// not held to its permissions.
#[test]
fn a_quirk_at_the_port_of_a_string_is_not_applied() {
    const STEPS: &[Step] = &[Step::Access, Step::OutAl { port: 0x84 }, Step::InAl];
    for width in [Width::Byte, Width::Word, Width::Dword] {
        let triggers = [Trigger::out(width, 0x300), Trigger::input(width, 0x300)];
        let quirks = || -> QuirkTable {
            triggers.map(|trigger| Quirk::from_steps("at the port", trigger, STEPS)).into_iter().collect()
        };
        for layout in StubLayout::ALL.iter().copied().map(Some).chain([None]) {
            let taken = Arc::new(Mutex::new(Vec::new()));
            let mut bus = SoftwareBus::new();
            bus.attach(0..=0xffff, Fifo { next: 0, taken: taken.clone(), refuse_after: usize::MAX }).unwrap();
            // The quirks' other port is not permitted.
            let builder = IoEmulator::builder().ports(PortSet::from(0x300..=0x303)).quirks(quirks()).bus(bus);
            let builder = match layout {
                Some(layout) => builder.layout(layout),
                None => builder.direct(),
            };
            let mut emulator = builder.build().unwrap();
            let (mut gprs, mut memory) = (registers(2), [0; 8]);
            let denied = emulator.execute(IoInsn::out_dx(width), &mut gprs);
            assert!(matches!(denied, Err(Error::QuirkDenied { port: 0x84, .. })), "{layout:?}");
            let len = 2 * usize::from(width.bytes());
            assert_eq!(emulator.write_string(IoInsn::rep_outs(width), &mut gprs, &memory).unwrap(), len);
            assert_eq!(taken.lock().unwrap().len(), 2, "{layout:?}: an OUT for each element");
            let mut gprs = registers(2);
            assert_eq!(emulator.read_string(IoInsn::rep_ins(width), &mut gprs, &mut memory).unwrap(), len);
            assert_eq!((memory[0], memory[len - 1]), (1, 2), "{layout:?}: an IN for each element");
            assert_eq!(taken.lock().unwrap().len(), 2);
        }
    }
}

/// Addresses and counts are as wide as the instruction says: what is above is neither read nor, at 16 bits, written; an
/// address wraps within its width, and no count makes a product that wraps.
#[test]
fn addresses_and_counts_of_every_size() {
    let sizes = [AddressSize::Bits16, AddressSize::Bits32, AddressSize::Bits64];
    for (mut emulator, _) in emulators(usize::MAX) {
        for (address, bits) in sizes.into_iter().zip([16, 32, 64]) {
            let mask = u64::MAX >> (64 - bits);
            for segment in [Segment::Es, Segment::Ds, Segment::Fs] {
                for width in [Width::Byte, Width::Word, Width::Dword] {
                    let bytes = u64::from(width.bytes());
                    let operand = PortOperand::String { rep: true, address, segment };
                    let [ins, outs] =
                        [Direction::In, Direction::Out].map(|direction| IoInsn { direction, width, operand });
                    // One element below the end of the address space, garbage above the width.
                    let start = 0xdead_beef_dead_0000 & !mask | (mask - (bytes - 1));
                    let garbage = 0xfeed_f00d_feed_0000 & !mask;
                    let before = Gprs { rcx: garbage | 2, rsi: start, rdi: start, ..registers(0) };
                    let (end, zero) = match address {
                        AddressSize::Bits16 => (start & !mask | bytes, garbage),
                        _ => (bytes, 0),
                    };
                    // The slice ends where the elements do, or in the middle of one more.
                    for spare in 0..bytes as usize {
                        let len = 2 * bytes as usize;
                        let (mut gprs, mut memory) = (before, vec![0xaa; len + spare]);
                        assert_eq!(emulator.read_string(ins, &mut gprs, &mut memory).unwrap(), len, "{ins}");
                        assert_eq!(gprs, Gprs { rcx: zero, rdi: end, ..before }, "{ins}");
                        assert!(memory[len..].iter().all(|byte| *byte == 0xaa) && memory[len - 1] != 0xaa, "{ins}");
                        let mut gprs = before;
                        assert_eq!(emulator.write_string(outs, &mut gprs, &memory).unwrap(), len, "{outs}");
                        assert_eq!(gprs, Gprs { rcx: zero, rsi: end, ..before }, "{outs}");
                    }
                    // A count whose product wraps to less than the slice, to 0, or is just one element too many.
                    let counts = [
                        u64::MAX,
                        (u64::MAX / bytes).wrapping_add(1),
                        (u64::MAX / bytes).wrapping_add(2),
                        1 << 63,
                        (1 << 62) + 1,
                        1 << 62,
                        3,
                    ];
                    for count in counts {
                        let given = Gprs { rcx: garbage | count & mask, ..before };
                        if count & mask <= 2 {
                            continue; // a count that fits, at this width
                        }
                        let (mut gprs, mut memory) = (given, vec![0xaa; 3 * bytes as usize - 1]);
                        for result in [
                            emulator.read_string(ins, &mut gprs, &mut memory),
                            emulator.write_string(outs, &mut gprs, &memory),
                        ] {
                            let error = result.unwrap_err();
                            let Error::StringOutOfBounds { count: asked, .. } = error else { panic!("{error}") };
                            assert_eq!((asked, gprs), (count & mask, given), "{ins}");
                        }
                        assert!(memory.iter().all(|byte| *byte == 0xaa), "{ins}");
                    }
                }
            }
        }
    }
}

/// What the element of a count of 0 would be is not looked at: no device, no slice, no register. (A listener is told: the
/// instruction was permitted, and executed.)
#[test]
fn slices_of_no_bytes() {
    for (mut emulator, taken) in emulators(0) {
        for width in [Width::Byte, Width::Word, Width::Dword] {
            let before = registers(0);
            let mut gprs = before;
            assert_eq!(emulator.read_string(IoInsn::rep_ins(width), &mut gprs, &mut []).unwrap(), 0);
            assert_eq!(emulator.write_string(IoInsn::rep_outs(width), &mut gprs, &[]).unwrap(), 0);
            // One element is one too many for them.
            let one = emulator.read_string(IoInsn::ins(width), &mut gprs, &mut []).unwrap_err();
            assert!(matches!(one, Error::StringOutOfBounds { count: 1, available: 0, .. }), "{one}");
            let one = emulator.write_string(IoInsn::outs(width), &mut gprs, &[]).unwrap_err();
            assert!(matches!(one, Error::StringOutOfBounds { count: 1, available: 0, .. }), "{one}");
            assert_eq!((gprs, taken.lock().unwrap().len()), (before, 0));
        }
    }
}

/// Every form, its segment and its 16-bit addresses included.
fn all_forms(direction: Direction) -> impl Iterator<Item = (IoInsn, bool, AddressSize)> {
    let addresses = [AddressSize::Bits16, AddressSize::Bits32, AddressSize::Bits64];
    addresses.into_iter().flat_map(move |address| {
        [false, true].into_iter().flat_map(move |rep| {
            let segment = if direction == Direction::In { Segment::Es } else { Segment::Gs };
            let operand = PortOperand::String { rep, address, segment };
            Width::ALL.iter().map(move |width| (IoInsn { direction, width: *width, operand }, rep, address))
        })
    })
}

/// A register after it was moved, by the rules of its size (SDM vol. 1, 3.4.1.1 and 3.7.5; vol. 2, REP).
fn moved(before: u64, by: i64, address: AddressSize) -> u64 {
    let sum = before.wrapping_add(by as u64);
    match address {
        _ if by == 0 => before,
        AddressSize::Bits16 => before & !0xffff | sum & 0xffff,
        AddressSize::Bits32 => sum & 0xffff_ffff,
        AddressSize::Bits64 => sum,
    }
}

/// The registers of an instruction after so many elements.
fn after(insn: IoInsn, elements: usize, before: Gprs) -> Gprs {
    let PortOperand::String { rep, address, .. } = insn.operand else { panic!("{insn}") };
    let bytes = (elements * usize::from(insn.width.bytes())) as i64;
    let by = if before.rflags & DF == 0 { bytes } else { -bytes };
    let rcx = if rep { moved(before.rcx, -(elements as i64), address) } else { before.rcx };
    match insn.direction {
        Direction::In => Gprs { rcx, rdi: moved(before.rdi, by, address), ..before },
        Direction::Out => Gprs { rcx, rsi: moved(before.rsi, by, address), ..before },
    }
}

/// The elements of a slice in the order in which an instruction moves them: from its start, or from its end.
fn elements(memory: &[u8], width: Width, downwards: bool) -> Vec<&[u8]> {
    let width = width.bytes().into();
    if downwards { memory.rchunks_exact(width).collect() } else { memory.chunks_exact(width).collect() }
}

fn number(element: &[u8]) -> u32 {
    element.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// The slice is the guest's memory, lowest address first. With DF clear the first element is at its start; with DF set at its
/// end, and the pointers move down. At each element the device sees the registers as they are there.
#[test]
fn df_says_which_way() {
    for rflags in [0, DF, DF | Gprs::STATUS_FLAGS, !DF, u64::MAX] {
        let downwards = rflags & DF != 0;
        for (mut emulator, taken) in emulators(usize::MAX) {
            for (insn, rep, address) in all_forms(Direction::Out) {
                let width = insn.width;
                for spare in 0..5 {
                    let before = Gprs { rcx: 0xdead_beef_0000_0000 & !address.mask() | 3, rflags, ..registers(0) };
                    let count = if rep { 3 } else { 1 };
                    let memory: Vec<u8> = (1..).take(3 * usize::from(width.bytes()) + spare).collect();
                    let (mut gprs, len) = (before, count * usize::from(width.bytes()));
                    assert_eq!(emulator.write_string(insn, &mut gprs, &memory).unwrap(), len, "{insn}");
                    let seen: Vec<_> = taken.lock().unwrap().drain(..).collect();
                    let expected: Vec<_> = elements(&memory, width, downwards)[..count]
                        .iter()
                        .enumerate()
                        .map(|(i, element)| (number(element), after(insn, i, before)))
                        .collect();
                    assert_eq!(seen, expected, "{insn}, DF {downwards}, {spare} bytes to spare");
                    assert_eq!(gprs, after(insn, count, before), "{insn}, DF {downwards}");
                }
            }
        }
        for (insn, rep, address) in all_forms(Direction::In) {
            for (mut emulator, _) in emulators(usize::MAX) {
                let mut next = 0;
                for spare in 0..5 {
                    let before = Gprs { rcx: 0xdead_beef_0000_0000 & !address.mask() | 3, rflags, ..registers(0) };
                    let (count, width) = (if rep { 3 } else { 1 }, usize::from(insn.width.bytes()));
                    let (mut gprs, mut memory) = (before, vec![0xaa; 3 * width + spare]);
                    let len = emulator.read_string(insn, &mut gprs, &mut memory).unwrap();
                    assert_eq!(len, count * width, "{insn}");
                    for (i, element) in elements(&memory, insn.width, downwards).iter().enumerate() {
                        next += u32::from(i < count);
                        let expected = if i < count { next as u8 } else { 0xaa };
                        assert!(element.iter().all(|byte| *byte == expected), "{insn}, DF {downwards}: {memory:x?}");
                    }
                    let untouched = memory.iter().filter(|byte| **byte == 0xaa).count();
                    assert_eq!(untouched, memory.len() - len, "{insn}: {memory:x?}");
                    assert_eq!(gprs, after(insn, count, before), "{insn}, DF {downwards}");
                }
            }
        }
    }
}

/// Takes slices at once, as they come: the first element first. Ends after so many bytes.
struct Slices(Arc<Mutex<Vec<Given>>>, usize);

/// A slice, and the registers that came with it.
type Given = (Vec<u8>, Gprs);

impl Slices {
    fn end(&self, len: usize) -> Result<(), StringError> {
        if self.1 < len { Err(StringError { done: self.1, source: "full".into() }) } else { Ok(()) }
    }
}

impl PortDevice for Slices {
    fn try_read_string(&mut self, _: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.0.lock().unwrap().push((data.to_vec(), *gprs));
        let end = self.1.min(data.len());
        data.iter_mut().zip(1..).take(end).for_each(|(to, byte)| *to = byte);
        self.end(data.len())
    }

    fn try_write_string(&mut self, _: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.0.lock().unwrap().push((data.to_vec(), *gprs));
        self.end(data.len())
    }
}

/// A device that takes all elements at once has them in the order of the instruction, whatever DF says of their places in
/// memory, and the registers as they are before the first; what it has not done is left as it was, in its place.
#[test]
fn a_slice_comes_in_the_order_of_the_instruction() {
    for rflags in [0, DF] {
        for done in [0, 3, 4, 9, 12] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let bus = || {
                let mut bus = SoftwareBus::new();
                bus.attach(0x300..=0x303, Slices(seen.clone(), done)).unwrap();
                bus
            };
            for mut emulator in everywhere(bus, PortSet::all()) {
                for (insn, _, _) in all_forms(Direction::In).filter(|form| form.1) {
                    let width = usize::from(insn.width.bytes());
                    let whole = done / width * width;
                    let before = Gprs { rflags, ..registers(12 / width as u64) };
                    let given: Vec<u8> = (100..115).collect();
                    let in_order = elements(&given, insn.width, rflags != 0)[..12 / width].concat();

                    let (mut gprs, mut memory) = (before, given.clone());
                    let result = emulator.read_string(insn, &mut gprs, &mut memory);
                    assert_eq!(result.is_ok(), done == 12);
                    assert_eq!(seen.lock().unwrap().pop(), Some((in_order.clone(), before)), "{insn}");
                    assert_eq!(gprs, after(insn, whole / width, before), "{insn}, {done} bytes");
                    let expected: Vec<u8> = (1..).take(done).chain(in_order[done..].iter().copied()).collect();
                    let is: Vec<u8> = elements(&memory, insn.width, rflags != 0)[..12 / width].concat();
                    assert_eq!(is, expected, "{insn}, {done} bytes");
                    let rest = if rflags == 0 { (&memory[12..], &given[12..]) } else { (&memory[..3], &given[..3]) };
                    assert_eq!(rest.0, rest.1, "{insn}");

                    let outs = IoInsn { direction: Direction::Out, ..insn };
                    let mut gprs = before;
                    let result = emulator.write_string(outs, &mut gprs, &given);
                    assert_eq!(result.is_ok(), done == 12);
                    assert_eq!(seen.lock().unwrap().pop(), Some((in_order, before)), "{outs}");
                    assert_eq!(gprs, after(outs, whole / width, before), "{outs}, {done} bytes");
                }
            }
        }
    }
}

/// A device that ends in the middle of what goes downwards, by an error or by a panic, element by element.
#[test]
fn an_early_end_downwards() {
    for end in [End::Refusal, End::Fault, End::Panic] {
        for (insn, _, _) in [Direction::In, Direction::Out].into_iter().flat_map(all_forms).filter(|form| form.1) {
            for last in [0x303, 0x300] {
                let bus = || {
                    let mut bus = SoftwareBus::new();
                    bus.attach(0x300..=last, Restless(0, end)).unwrap();
                    bus
                };
                for mut emulator in everywhere(bus, PortSet::all()) {
                    let before = Gprs { rflags: DF, ..registers(5) };
                    let (mut gprs, mut memory) = (before, [0xaa; 21]);
                    let result = catch_unwind(AssertUnwindSafe(|| match insn.direction {
                        Direction::In => emulator.read_string(insn, &mut gprs, &mut memory),
                        Direction::Out => emulator.write_string(insn, &mut gprs, &memory),
                    }));
                    assert_eq!(result.is_err(), end == End::Panic);
                    assert!(!matches!(result, Ok(Ok(_))));
                    let done = if end == End::Panic { 0 } else { 2 };
                    assert_eq!(gprs, after(insn, done, before), "{insn} {end:?}");
                    let done = if insn.direction == Direction::In { done } else { 0 };
                    for (i, element) in elements(&memory, insn.width, true).iter().enumerate() {
                        let expected = if i < done { i as u8 + 1 } else { 0xaa };
                        assert_eq!(element[0], expected, "{insn} {end:?}: {memory:x?}");
                    }
                    // The bus works on.
                    let mut gprs = Gprs { rdx: 0x300, ..before };
                    emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap();
                }
            }
        }
    }
}

/// As much as there is room for, and no element in part: piece after piece comes to the same as all at once.
#[test]
fn in_pieces_as_at_once() {
    let mut pieces_made = 0;
    for direction in [Direction::In, Direction::Out] {
        for (insn, rep, address) in all_forms(direction) {
            for rflags in [0, DF] {
                for piece in [1, 2, 3, 4, 5, 7, 8, 11, 1000] {
                    for (mut emulator, taken) in emulators(usize::MAX) {
                        let width = usize::from(insn.width.bytes());
                        let before = Gprs { rcx: 0xdead_beef_0000_0000 & !address.mask() | 6, rflags, ..registers(0) };
                        let count = if rep { 6 } else { 1 };
                        let data: Vec<u8> = (1..).take(6 * width).collect();
                        let (mut gprs, mut memory) = (before, data.clone());
                        let mut done = 0;
                        loop {
                            // The guest's memory from where it is now, to the end of the piece.
                            let left = memory.len() - done * width;
                            let room = piece.min(left);
                            let range = if rflags == 0 { done * width..done * width + room } else { left - room..left };
                            let progress = match direction {
                                Direction::In => emulator.read_string_partial(insn, &mut gprs, &mut memory[range]),
                                Direction::Out => emulator.write_string_partial(insn, &mut gprs, &memory[range]),
                            };
                            let progress = progress.unwrap();
                            let elements = (room / width).min(count - done);
                            done += elements;
                            let expected = (elements * width, (count - done) as u64);
                            assert_eq!((progress.moved, progress.left), expected, "{insn}, pieces of {piece}");
                            assert_eq!(gprs, after(insn, done, before), "{insn}, pieces of {piece}");
                            pieces_made += 1;
                            if progress.left == 0 || elements == 0 {
                                break;
                            }
                        }
                        assert_eq!(done, if piece < width { 0 } else { count }, "{insn}, pieces of {piece}");
                        let taken: Vec<u32> = taken.lock().unwrap().iter().map(|taken| taken.0).collect();
                        let in_order = elements(&data, insn.width, rflags != 0);
                        match direction {
                            Direction::Out => {
                                let expected: Vec<u32> = in_order[..done].iter().map(|&it| number(it)).collect();
                                assert_eq!(taken, expected, "{insn}, pieces of {piece}");
                            }
                            Direction::In => {
                                for (i, element) in elements(&memory, insn.width, rflags != 0).iter().enumerate() {
                                    let byte = [i as u8 + 1; 4];
                                    let expected = if i < done { &byte[..width] } else { in_order[i] };
                                    assert_eq!(*element, expected, "{insn}, pieces of {piece}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(pieces_made > 5000, "{pieces_made}");
}

/// What is not possible at all is an error of the partial calls too, before anything happens; and what has no room at all
/// is no access: nobody is told of one.
#[test]
fn pieces_that_cannot_be() {
    #[derive(Default)]
    struct Told(usize);
    impl ioemul::events::Events for Told {
        fn before(&mut self, _: &ioemul::events::Attempt<'_>) {
            self.0 += 1;
        }
    }
    let mut bus = SoftwareBus::new();
    bus.attach(0x300..=0x303, Ends(None, Arc::default())).unwrap();
    let builder = IoEmulator::builder().ports(PortSet::from(0x300..=0x303)).bus(bus);
    let mut emulator = builder.events(Told::default()).build().unwrap();
    let before = registers(u64::MAX);
    let mut gprs = before;
    let (ins, outs) = (IoInsn::rep_ins(Width::Dword), IoInsn::rep_outs(Width::Dword));
    for rflags in [0, DF] {
        let before = Gprs { rflags, ..before };
        gprs.rflags = rflags;
        let progress = emulator.read_string_partial(ins, &mut gprs, &mut [0; 3]).unwrap();
        assert_eq!((progress.moved, progress.left, gprs), (0, u64::MAX, before));
        let progress = emulator.write_string_partial(IoInsn::outs(Width::Word), &mut gprs, &[0]).unwrap();
        assert_eq!((progress.moved, progress.left, gprs), (0, 1, before));
        assert_eq!(emulator.events().0, 0);
        for insn in [outs, IoInsn::in_dx(Width::Byte)] {
            let error = emulator.read_string_partial(insn, &mut gprs, &mut [0; 8]).unwrap_err();
            assert!(matches!(error, Error::StringForm { .. }), "{error}");
        }
        let error = emulator.write_string_partial(ins, &mut gprs, &[0; 8]).unwrap_err();
        assert!(matches!(error, Error::StringForm { .. }), "{error}");
        let mut elsewhere = Gprs { rdx: 0x301, ..gprs };
        let error = emulator.write_string_partial(outs, &mut elsewhere, &[0; 8]).unwrap_err();
        assert!(matches!(error, Error::PortDenied { port: 0x301, .. }), "{error}");
        assert_eq!((gprs, emulator.events().0), (before, 0));
    }
}
