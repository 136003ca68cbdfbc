//! The one call of a kernel's handler: on hardware, which a handler of SIGSEGV stands for. It catches each access of a table,
//! does what a device would do with the registers, and goes on behind it; or it raises a fault, and sets RIP to the landing
//! pad.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::{mem, ptr};

use common::alias::Alias;
use common::gregs::GREGS;
use common::{Rng, host, some_forms};
use ioemul::{
    AddressSize, CodeSize, CodeTable, DecodeError, DeviceError, Direction, EmitOptions, Gprs, HostRegisters,
    IoEmulator, IoInsn, KernelError, PortAccess, PortDevice, PortOperand, PortPermissions, PortSet, Quirk,
    RegisterFile, Ring, Segment, SoftwareBus, StubLayout, TssBitmap, Width,
};

const DF: u64 = 1 << 10;

/// An access as the hardware saw it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    port: u16,
    width: u8,
    direction: Direction,
    gprs: Gprs,
}

/// What is behind all ports.
#[derive(Default)]
struct Hardware {
    seen: Vec<Seen>,
    /// Raises a fault at the access of this number.
    fault_at: Option<usize>,
    /// Does to the registers what firmware may do, after the access.
    firmware: Option<fn(&mut Gprs)>,
    /// Landing pads, by the instruction that faults.
    pads: BTreeMap<u64, u64>,
}

thread_local! {
    static HARDWARE: RefCell<Hardware> = RefCell::default();
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

/// What an IN answers.
fn counts_up() -> u32 {
    COUNT.set(COUNT.get().wrapping_add(0x0101_0203));
    COUNT.get()
}

extern "C" fn cpu(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's context. What faults in these tests is an access of a table; else the default is put back, and
    // the instruction faults again.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let known = HARDWARE.with_borrow_mut(|hardware| hardware.execute(registers));
        if !known {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

impl Hardware {
    /// Executes the instruction at RIP.
    unsafe fn execute(&mut self, registers: &mut [i64; 23]) -> bool {
        let rip = registers[libc::REG_RIP as usize] as u64;
        let Some(pad) = self.pads.get(&rip) else { return false };
        if self.fault_at == Some(self.seen.len()) {
            registers[libc::REG_RIP as usize] = *pad as i64;
            return true;
        }
        // SAFETY: RIP is at an access of a table.
        let code = unsafe { std::slice::from_raw_parts(rip as *const u8, 3) };
        let (insn, len) = IoInsn::decode(code).expect("an access is at RIP");
        let mut gprs = Gprs::default();
        let mut words = gprs.to_words();
        words.iter_mut().zip(GREGS).for_each(|(word, at)| *word = registers[at] as u64);
        words[15] = registers[libc::REG_EFL as usize] as u64 & Gprs::STATUS_FLAGS;
        gprs = Gprs::from_words(words);
        let (width, direction) = (insn.width.bytes(), insn.direction);
        let bytes = usize::from(width);
        let mut seen = Seen { port: insn.port(&gprs), width, direction, gprs };
        match (insn.operand, direction) {
            (PortOperand::String { .. }, Direction::In) => {
                // SAFETY: the memory is lent for an element.
                unsafe { ptr::copy_nonoverlapping(counts_up().to_le_bytes().as_ptr(), gprs.rdi as *mut u8, bytes) };
                gprs.rdi += bytes as u64;
            }
            (PortOperand::String { .. }, Direction::Out) => {
                let mut value = [0; 4];
                // SAFETY: as above.
                unsafe { ptr::copy_nonoverlapping(gprs.rsi as *const u8, value.as_mut_ptr(), bytes) };
                seen.gprs.rax = u32::from_le_bytes(value).into(); // what was written
                gprs.rsi += bytes as u64;
            }
            (_, Direction::In) => gprs.rax = insn.width.merge(gprs.rax, counts_up()),
            (_, Direction::Out) => {}
        }
        self.seen.push(seen);
        if let Some(firmware) = self.firmware {
            firmware(&mut gprs);
        }
        gprs.to_words().into_iter().take(15).zip(GREGS).for_each(|(word, at)| registers[at] = word as i64);
        let flags = &mut registers[libc::REG_EFL as usize];
        *flags = *flags & !(Gprs::STATUS_FLAGS as i64) | (gprs.rflags & Gprs::STATUS_FLAGS) as i64;
        registers[libc::REG_RIP as usize] += len as i64;
        true
    }
}

/// A kernel's structure: `pt_regs`.
#[repr(C)]
#[derive(Clone, Debug, PartialEq)]
struct Frame {
    words: [u64; 21],
}

// SAFETY: 21 words, and the offsets of `pt_regs` are below that.
unsafe impl HostRegisters for Frame {
    const FILE: RegisterFile = RegisterFile::PT_REGS;
}

/// One without a word for RFLAGS.
#[repr(C)]
#[derive(Clone, Debug, PartialEq)]
struct NoFlags([u64; 15]);

// SAFETY: fifteen words.
unsafe impl HostRegisters for NoFlags {
    const FILE: RegisterFile = RegisterFile::new([0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112], None);
}

/// Structures of which the tests know where everything is.
trait Structure: HostRegisters {
    fn filled(gprs: &Gprs) -> Self;
    /// All of it is looked at: what is no register has to be as it was.
    fn gprs(&self) -> Gprs;
}

impl Structure for Gprs {
    fn filled(gprs: &Gprs) -> Self {
        *gprs
    }

    fn gprs(&self) -> Gprs {
        *self
    }
}

impl Structure for Frame {
    fn filled(gprs: &Gprs) -> Self {
        let mut words = std::array::from_fn(|n| 0xf7a3_0000 + n as u64);
        let offsets = RegisterFile::PT_REGS.offsets().iter().copied().chain([144]);
        offsets.zip(gprs.to_words()).for_each(|(offset, word)| words[offset as usize / 8] = word);
        Self { words }
    }

    fn gprs(&self) -> Gprs {
        let offsets = RegisterFile::PT_REGS.offsets().iter().copied().chain([144]);
        let mut words = [0; 16];
        words.iter_mut().zip(offsets).for_each(|(word, offset)| *word = self.words[offset as usize / 8]);
        let gprs = Gprs::from_words(words);
        assert_eq!(*self, Self::filled(&gprs), "a word that is no register has changed");
        gprs
    }
}

impl Structure for NoFlags {
    fn filled(gprs: &Gprs) -> Self {
        let mut words = [0; 15];
        words.copy_from_slice(&gprs.to_words()[..15]);
        Self(words)
    }

    fn gprs(&self) -> Gprs {
        let mut words = [0; 16];
        words[..15].copy_from_slice(&self.0);
        Gprs::from_words(words)
    }
}

/// A table for a structure, on the hardware above.
struct Machine {
    table: CodeTable,
    _memory: Alias,
}

impl Machine {
    fn new<R: HostRegisters>(layout: StubLayout, quirks: &[Quirk]) -> Self {
        let options = EmitOptions::new().layout(layout).registers(R::FILE).ring(Ring::Three).quirks(quirks);
        let mut memory = Alias::new(CodeTable::size(&options));
        let va = memory.va();
        let table = CodeTable::emit(memory.memory(), va, &options).unwrap();
        HARDWARE.set(Hardware { pads: table.faults().collect(), ..Hardware::default() });
        COUNT.set(0);
        // SAFETY: all-zero is a valid sigaction; the handler has the signature that the flags say. (It is one of the kernel's
        // machine: the host's registers, RSP and flags among them, are watched around each call.)
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = cpu as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
        }
        Self { table, _memory: memory }
    }

    /// The call, from registers; what came of it, the registers afterwards, and what the hardware saw.
    fn emulate<R: Structure>(
        &self,
        code: &[u8],
        gprs: &Gprs,
        permits: impl Fn(&PortAccess) -> bool,
    ) -> (Result<usize, KernelError>, Gprs, Vec<Seen>) {
        let mut registers = R::filled(gprs);
        let mut result = None;
        // SAFETY: the table is in place, and no access reaches a port.
        host::watch(|| result = Some(unsafe { self.table.emulate(CodeSize::Bits64, code, &mut registers, &permits) }));
        let seen = HARDWARE.with_borrow_mut(|hardware| mem::take(&mut hardware.seen));
        (result.unwrap(), registers.gprs(), seen)
    }
}

/// What firmware does to registers here: it moves all of them on by one, and complements their bits and all status flags.
fn exchange(gprs: &mut Gprs) {
    let mut words = gprs.to_words();
    words[..15].rotate_left(1);
    words[..15].iter_mut().for_each(|word| *word = !*word);
    words[15] ^= Gprs::STATUS_FLAGS;
    *gprs = Gprs::from_words(words);
}

#[test]
fn every_register_is_in_view_and_comes_back() {
    fn check<R: Structure>(has_flags: bool) {
        for &layout in StubLayout::ALL {
            let machine = Machine::new::<R>(layout, &[]);
            HARDWARE.with_borrow_mut(|hardware| hardware.firmware = Some(exchange));
            for form in some_forms() {
                let random = Rng(form.insn.index() as u64).gprs();
                let given = Gprs { rflags: if has_flags { random.rflags } else { 0 }, ..random };
                let (code, len) = form.insn.encode();
                COUNT.set(0);
                let permits = |_: &PortAccess| true;
                let port = form.insn.port(&given);
                let result = machine.emulate::<R>(&code[..len], &given, permits);
                if port.checked_add(u16::from(form.insn.width.bytes()) - 1).is_none() {
                    let access = PortAccess::of(form.insn, &given);
                    assert_eq!(result, (Err(KernelError::PortDenied { access }), given, vec![]));
                    continue;
                }
                COUNT.set(0);
                let mut expected = given;
                if form.insn.direction == Direction::In {
                    expected.rax = form.insn.width.merge(given.rax, counts_up());
                }
                exchange(&mut expected);
                expected.rflags = if has_flags { expected.rflags } else { 0 };
                assert_eq!((result.0, result.1), (Ok(len), expected), "{layout:?} {}", form.insn);
                let [seen] = result.2[..] else { panic!("{} accesses", result.2.len()) };
                let visible = Gprs { rflags: given.rflags & Gprs::STATUS_FLAGS, ..given };
                let seen_flags = if has_flags { seen.gprs.rflags } else { 0 };
                assert_eq!((seen.port, Gprs { rflags: seen_flags, ..seen.gprs }), (port, visible));
            }
        }
    }
    check::<Gprs>(true);
    check::<Frame>(true);
    check::<NoFlags>(false);
}

#[test]
fn the_length_and_the_mode_are_those_of_the_code() {
    let machine = Machine::new::<Gprs>(StubLayout::default(), &[]);
    let emulate = |size, code: &[u8]| {
        let mut gprs = Gprs { rdx: 0x80, ..Gprs::default() };
        // SAFETY: the table is in place, and no access reaches a port.
        let result = unsafe { machine.table.emulate(size, code, &mut gprs, |_| true) };
        let seen = HARDWARE.with_borrow_mut(|hardware| mem::take(&mut hardware.seen));
        (result, seen.first().map_or(0, |seen| seen.width))
    };
    assert_eq!(emulate(CodeSize::Bits16, &[0xef, 0xcc]), (Ok(1), 2));
    assert_eq!(emulate(CodeSize::Bits32, &[0xef, 0xcc]), (Ok(1), 4));
    assert_eq!(emulate(CodeSize::Bits16, &[0x66, 0xef]), (Ok(2), 4));
    assert_eq!(emulate(CodeSize::Bits64, &[0x66, 0x67, 0x2e, 0xe7, 0x80]), (Ok(5), 2));
    for (code, error) in [
        (&[0x66][..], DecodeError::Truncated { available: 1 }),
        (&[0xf0, 0xee], DecodeError::Lock),
        (&[0x66; 15], DecodeError::TooLong),
        (&[0x90], DecodeError::NotPortIo { opcode: 0x90 }),
    ] {
        assert_eq!(emulate(CodeSize::Bits64, code), (Err(KernelError::Decode(error)), 0));
    }
}

#[test]
fn nothing_is_accessed_that_is_not_permitted() {
    let machine = Machine::new::<Frame>(StubLayout::default(), &[]);
    for form in common::forms().step_by(7) {
        let (code, len) = form.insn.encode();
        let given = Gprs { rdx: 0x1234, ..Rng(form.insn.index() as u64).gprs() };
        let given = Gprs { rdx: given.rdx & !0xffff | 0x1234, ..given };
        let asked = RefCell::new(Vec::new());
        let refuse = |access: &PortAccess| {
            asked.borrow_mut().push(*access);
            false
        };
        let access = PortAccess::of(form.insn, &given);
        let result = machine.emulate::<Frame>(&code[..len], &given, refuse);
        assert_eq!(result, (Err(KernelError::PortDenied { access }), given, vec![]));
        assert_eq!(asked.take(), [access]);
    }
    // By the bitmap of a TSS, and by sets of ports.
    let mut map = [0xff; 0x100];
    map[0x80 / 8] = !1;
    let (bitmap, set) = (TssBitmap::new(&map), PortPermissions { read: PortSet::none(), write: (0x80..=0x80).into() });
    for (code, expected) in [(&[0xe6, 0x80][..], true), (&[0xe7, 0x80], false), (&[0xe6, 0x81], false)] {
        let by_bitmap = |access: &PortAccess| bitmap.permits(access.port, access.width);
        let by_set = |access: &PortAccess| set.permits(access.port, access.width, access.direction);
        let (given, count) = (Gprs::default(), usize::from(expected));
        let (result, _, seen) = machine.emulate::<Frame>(code, &given, by_bitmap);
        assert_eq!((result.is_ok(), seen.len()), (expected, count));
        let (result, _, seen) = machine.emulate::<Frame>(code, &given, by_set);
        assert_eq!((result.is_ok(), seen.len()), (expected, count));
    }
}

/// Whatever the host's own check says.
#[test]
fn no_access_runs_past_the_last_port() {
    let machine = Machine::new::<Gprs>(StubLayout::default(), &[]);
    for (code, rdx, good) in [
        (&[0xec][..], 0xffff, true),
        (&[0x66, 0xed], 0xffff, false),
        (&[0x66, 0xef], 0xfffe, true),
        (&[0xed], 0xfffc, true),
        (&[0xef], 0xfffd, false),
    ] {
        let (result, _, seen) = machine.emulate::<Gprs>(code, &Gprs { rdx, ..Gprs::default() }, |_| true);
        assert_eq!((result.is_ok(), seen.len()), (good, usize::from(good)), "{code:x?} {rdx:#x}");
    }
}

#[test]
fn every_access_of_every_quirk_is_permitted_before_the_first() {
    let quirks = [Quirk::PROLIANT, Quirk::DELL_SMM, Quirk::GSMI_CARRY];
    for &layout in StubLayout::ALL {
        let machine = Machine::new::<Frame>(layout, &quirks);
        // The quirk's own accesses, and what the guest asks for.
        for (rax, port, quirk, accesses) in [
            (0xa3, 0xb2, Some("Dell SMM"), &[(0xb2, Direction::Out), (0x84, Direction::Out)][..]),
            (0xa2, 0xb2, None, &[(0xb2, Direction::Out)]),
            (0xef, 0xb2, Some("GSMI carry handshake"), &[(0xb2, Direction::Out)]),
            // The poll ends at the answer of the first read: bit 7 is clear.
            (0x85, 0xcd4, Some("HP ProLiant SMM port"), &[(0xcd4, Direction::Out), (0xcd4, Direction::In)]),
        ] {
            let given = Gprs { rax, rdx: port, rflags: 0, ..Rng(rax).gprs() };
            let code = [0xee]; // out dx, al
            let is_one = |access: &PortAccess| accesses.contains(&(access.port, access.direction));
            let (result, after, seen) = machine.emulate::<Frame>(&code, &given, is_one);
            assert_eq!(result, Ok(1));
            let made: Vec<_> = seen.iter().map(|seen| (seen.port, seen.direction)).collect();
            assert_eq!(made, accesses, "{layout:?} {rax:#x}");
            let polled = accesses.iter().any(|access| access.1 == Direction::In);
            let al = if polled { u64::from(COUNT.get() & 0xff) } else { rax & 0xff };
            assert_eq!(after, Gprs { rax: rax & !0xff | al, ..given });
            for (number, denied) in accesses.iter().enumerate() {
                let may = |access: &PortAccess| (access.port, access.direction) != *denied;
                let (result, after, seen) = machine.emulate::<Frame>(&code, &given, may);
                match (result, quirk) {
                    (Err(KernelError::QuirkDenied { quirk: name, access }), Some(quirk)) => {
                        assert_eq!((name, (access.port, access.direction)), (quirk, *denied));
                    }
                    (Err(KernelError::PortDenied { .. }), None) => {}
                    (other, _) => panic!("{rax:#x}, without access {number}: {other:?}"),
                }
                assert_eq!((after, seen), (given, vec![]), "{rax:#x}, without access {number}");
            }
        }
    }
}

#[test]
fn a_fault_leaves_the_registers_as_given() {
    for &layout in StubLayout::ALL {
        let machine = Machine::new::<Frame>(layout, &[Quirk::DELL_SMM]);
        for fault_at in 0..2 {
            HARDWARE.with_borrow_mut(|hardware| {
                hardware.fault_at = Some(fault_at);
                hardware.firmware = Some(|gprs| gprs.rbx = !gprs.rbx);
            });
            let given = Gprs { rax: 0xa3, ..Rng(3).gprs() };
            let access = PortAccess::of(IoInsn::out_imm8(Width::Byte, 0xb2), &given);
            let (result, after, seen) = machine.emulate::<Frame>(&[0xe6, 0xb2], &given, |_| true);
            assert_eq!((result, after, seen.len()), (Err(KernelError::Fault { access }), given, fault_at));
        }
    }
}

#[test]
fn a_table_for_another_structure_is_not_called() {
    let machine = Machine::new::<Frame>(StubLayout::default(), &[]);
    let given = Rng(0).gprs();
    let error = KernelError::OtherRegisterFile;
    assert_eq!(machine.emulate::<Gprs>(&[0xec], &given, |_| true), (Err(error), given, vec![]));
    let mut gprs = given;
    // SAFETY: makes no access.
    let result = unsafe { machine.table.read_string(IoInsn::ins(Width::Byte), &mut gprs, &mut [0], |_| true) };
    assert_eq!((result, gprs), (Err(error), given));
}

#[test]
fn each_instruction_has_its_call() {
    let machine = Machine::new::<Gprs>(StubLayout::default(), &[]);
    for insn in IoInsn::all().step_by(5).chain(IoInsn::strings()) {
        let other_call = KernelError::OtherCall { insn };
        let (mut gprs, mut memory) = (Gprs::default(), [0; 8]);
        // SAFETY: the table is in place, and no access reaches a port.
        let results = unsafe {
            [
                machine.table.execute(insn, &mut gprs, |_| false),
                machine.table.read_string(insn, &mut gprs, &mut memory, |_| false).map(|_| ()),
                machine.table.write_string(insn, &mut gprs, &memory, |_| false).map(|_| ()),
            ]
        };
        let right = match (insn.is_string(), insn.direction) {
            (false, _) => 0,
            (true, Direction::In) => 1,
            (true, Direction::Out) => 2,
        };
        for (call, result) in results.into_iter().enumerate() {
            let denied = KernelError::PortDenied { access: PortAccess::of(insn, &gprs) };
            assert_eq!(result, Err(if call == right { denied } else { other_call }), "{insn}");
        }
    }
}

/// Forms of guests in all modes.
fn strings() -> Vec<IoInsn> {
    let mut insns = Vec::new();
    for address in [AddressSize::Bits16, AddressSize::Bits32, AddressSize::Bits64] {
        for (rep, segment) in [(false, Segment::Ds), (true, Segment::Ds), (true, Segment::Gs)] {
            for &width in Width::ALL {
                let operand = PortOperand::String { rep, address, segment };
                insns.extend([Direction::In, Direction::Out].map(|direction| IoInsn { direction, width, operand }));
            }
        }
    }
    insns
}

/// The device of the comparison: counts up, and remembers what it sees.
struct Device;

thread_local!(static ON_BUS: RefCell<Vec<Seen>> = RefCell::default());

impl PortDevice for Device {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        let PortAccess { port, width, direction, .. } = access;
        let rax = if direction == Direction::Out { value.into() } else { gprs.rax };
        let gprs = Gprs { rax, rflags: gprs.rflags & Gprs::STATUS_FLAGS, ..*gprs };
        ON_BUS.with_borrow_mut(|seen| seen.push(Seen { port, width: width.bytes(), direction, gprs }));
        Ok(counts_up())
    }
}

/// INS and OUTS next to the emulator's on a bus, whose semantics are tested by themselves: registers, memory, progress, and
/// what the device saw.
#[test]
fn strings_are_those_of_the_emulator() {
    fn check<R: Structure>(has_flags: bool) {
        let machine = Machine::new::<R>(StubLayout::Compact, &[]);
        let mut bus = SoftwareBus::new();
        bus.attach(0..=0xffff, Device).unwrap();
        let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).direct().build().unwrap();
        let mut rng = Rng(7);
        for insn in strings().into_iter().cycle().take(2000) {
            let (count, len, random) = (rng.below(6) as u64, rng.below(20), rng.gprs());
            let mask = match insn.operand {
                PortOperand::String { address, .. } => address.mask(),
                _ => u64::MAX,
            };
            let mut given = Gprs { rcx: random.rcx & !mask | count, rdx: random.rdx & !0xffff | 0x1f0, ..random };
            given.rflags = if has_flags { random.rflags } else { 0 };
            let memory: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
            let (mut on_bus, mut memory_on_bus) = (given, memory.clone());
            COUNT.set(0);
            let expected = match insn.direction {
                Direction::In => emulator.read_string_partial(insn, &mut on_bus, &mut memory_on_bus),
                Direction::Out => emulator.write_string_partial(insn, &mut on_bus, &memory_on_bus),
            };
            let (mut registers, mut in_memory) = (R::filled(&given), memory);
            COUNT.set(0);
            let mut result = None;
            // SAFETY: the table is in place, and no access reaches a port.
            host::watch(|| unsafe {
                result = Some(match insn.direction {
                    Direction::In => machine.table.read_string(insn, &mut registers, &mut in_memory, |_| true),
                    Direction::Out => machine.table.write_string(insn, &mut registers, &in_memory, |_| true),
                });
            });
            assert_eq!(result.unwrap().unwrap(), expected.unwrap(), "{insn} {given:?} {len}");
            assert_eq!((registers.gprs(), in_memory), (on_bus, memory_on_bus), "{insn} {given:?} {len}");
            // The pointer that the hardware sees is that of the memory.
            let mut seen = HARDWARE.with_borrow_mut(|hardware| mem::take(&mut hardware.seen));
            let mut expected = ON_BUS.take();
            for seen in seen.iter_mut().chain(&mut expected) {
                match insn.direction {
                    Direction::In => seen.gprs.rdi = 0,
                    Direction::Out => seen.gprs.rsi = 0,
                }
                seen.gprs.rflags = if has_flags { seen.gprs.rflags } else { 0 };
                seen.gprs.rax = if insn.direction == Direction::In { 0 } else { seen.gprs.rax };
            }
            assert_eq!(seen, expected, "{insn} {given:?} {len}");
        }
    }
    check::<Gprs>(true);
    check::<Frame>(true);
    check::<NoFlags>(false);
}

/// A fault at any element, and firmware that changes every register: the memory is never left, the port stays, and RCX and
/// the pointer go on by themselves.
#[test]
fn a_string_that_firmware_or_a_fault_meddles_with() {
    for rflags in [0, DF] {
        let machine = Machine::new::<Frame>(StubLayout::default(), &[]);
        for insn in [IoInsn::rep_ins(Width::Word), IoInsn::rep_outs(Width::Word)] {
            let given = Gprs { rcx: 5, rdx: 0x1f0, rsi: 0x1000, rdi: 0x2000, rflags, ..Rng(1).gprs() };
            let moved = |gprs: Gprs, elements: u64| {
                let by = |start: u64| if rflags == DF { start - 2 * elements } else { start + 2 * elements };
                let rcx = given.rcx - elements;
                match insn.direction {
                    Direction::In => Gprs { rcx, rdi: by(given.rdi), ..gprs },
                    Direction::Out => Gprs { rcx, rsi: by(given.rsi), ..gprs },
                }
            };
            for fault_at in [Some(0), Some(1), Some(4), None] {
                HARDWARE.with_borrow_mut(|hardware| {
                    hardware.fault_at = fault_at;
                    hardware.firmware = Some(exchange);
                });
                let (mut frame, mut memory) = (Frame::filled(&given), [0x55; 16]);
                let inner = &mut memory[3..13];
                let start = inner.as_ptr() as u64;
                // SAFETY: the table is in place, and no access reaches a port.
                let result = unsafe {
                    match insn.direction {
                        Direction::In => machine.table.read_string(insn, &mut frame, inner, |_| true),
                        Direction::Out => machine.table.write_string(insn, &mut frame, inner, |_| true),
                    }
                };
                let seen = HARDWARE.with_borrow_mut(|hardware| mem::take(&mut hardware.seen));
                let elements = fault_at.unwrap_or(5);
                assert_eq!(seen.len(), elements);
                for (number, seen) in seen.iter().enumerate() {
                    let at = if rflags == DF { 8 - 2 * number as u64 } else { 2 * number as u64 };
                    let pointer = if insn.direction == Direction::In { seen.gprs.rdi } else { seen.gprs.rsi };
                    assert_eq!((seen.port, pointer), (0x1f0, start + at));
                    assert_eq!(seen.gprs.rcx, 5 - number as u64);
                }
                assert_eq!((&memory[..3], &memory[13..]), (&[0x55; 3][..], &[0x55; 3][..]));
                let after = frame.gprs();
                match fault_at {
                    Some(_) => {
                        let access = PortAccess::of(insn, &given);
                        assert_eq!(result, Err(KernelError::Fault { access }));
                        assert_eq!(after, moved(given, elements as u64));
                    }
                    None => {
                        assert!(result.is_ok());
                        // What firmware has done to the others stays.
                        assert_ne!(after.rbx, given.rbx);
                        assert_eq!(after, moved(after, 5));
                    }
                }
            }
        }
    }
}
