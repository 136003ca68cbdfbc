//! What each error says, word for word: produced where it can be, made up where only a broken system would.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::error::Error as _;
use std::io;

use dynasm::dynasm;
use ioemul::{
    CodeSink, DeviceError, Direction, EmitError, Error, Gprs, Helpers, IoEmulator, IoInsn, Payload, PortAccess,
    PortDevice, PortSet, Quirk, QuirkTable, Ring, SlotOptions, SoftwareBus, StubLayout, StubTable, Width, emit_stub,
    emit_stub_with,
};

const OUT: IoInsn = IoInsn::out_dx(Width::Byte);

fn emulator(ports: &str) -> IoEmulator {
    IoEmulator::builder().ports(ports.parse::<PortSet>().unwrap()).bus(SoftwareBus::new()).build().unwrap()
}

#[test]
fn bytes_that_are_not_port_io() {
    let mut emulator = emulator("all");
    for (code, message) in [
        (&[][..], "the instruction is cut off after 0 bytes"),
        (&[0x66, 0xe5], "the instruction is cut off after 2 bytes"),
        (&[0x66; 15], "the instruction is longer than 15 bytes"),
        (&[0xf0, 0xec], "a LOCK prefix (f0) is not allowed on port I/O"),
        (&[0xf3, 0xec], "a repeat prefix (f3) has no meaning on IN and OUT"),
        (&[0xf2, 0xe7, 0x80], "a repeat prefix (f2) has no meaning on IN and OUT"),
        (&[0x64, 0x6e], "a segment override (64) to FS or GS is not supported on OUTS"),
        (&[0x0f, 0xa2], "opcode 0f is not IN, OUT, INS or OUTS"),
    ] {
        let error = emulator.emulate(code, &mut Gprs::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("not a port-I/O instruction: {message}"));
        assert_eq!(error.source().unwrap().to_string(), message);
    }
}

#[test]
fn accesses_that_are_not_permitted() {
    let mut emulator = emulator("0x70-0x71");
    for (insn, message) in [
        (IoInsn::out_imm8(Width::Byte, 0x80), "OUT of 1 byte to port 0x0080"),
        (IoInsn::in_imm8(Width::Word, 0x71), "IN of 2 bytes from port 0x0071"),
        (IoInsn::in_imm8(Width::Dword, 0x6e), "IN of 4 bytes from port 0x006e"),
    ] {
        let error = emulator.execute(insn, &mut Gprs::default()).unwrap_err();
        let reason = "is not permitted: the emulator's port set does not cover all of it";
        assert_eq!(error.to_string(), format!("{message} {reason}"));
    }
}

#[test]
fn string_forms() {
    let mut emulator = emulator("all");
    assert_eq!(
        emulator.execute(IoInsn::rep_outs(Width::Dword), &mut Gprs::default()).unwrap_err().to_string(),
        "`rep outsd` moves data between a port and memory: `read_string` runs INS, `write_string` OUTS, `execute` \
         neither"
    );
    let mut gprs = Gprs { rcx: 300, ..Gprs::default() };
    assert_eq!(
        emulator.read_string(IoInsn::rep_ins(Width::Word), &mut gprs, &mut [0; 512]).unwrap_err().to_string(),
        "`rep insw` moves 300 elements of 2 bytes, and the memory given for it has 512 bytes"
    );
    assert_eq!(
        emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, &[]).unwrap_err().to_string(),
        "`rep outsb` moves 300 elements of 1 byte, and the memory given for it has 0 bytes"
    );
}

struct Refuses;

impl PortDevice for Refuses {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        0
    }
    fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {}
    fn try_access(&mut self, access: PortAccess, _: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
        assert_eq!(access.direction, Direction::In);
        Err(io::Error::other("no medium").into())
    }
}

#[test]
fn the_bus() {
    let mut bus = SoftwareBus::new();
    bus.attach(0x3f8..=0x3ff, Refuses).unwrap();
    assert_eq!(
        bus.attach(0x3f0..=0x3f8, Refuses).unwrap_err().to_string(),
        "ports 0x03f0 to 0x03f8 are taken: another device has 0x03f8 to 0x03ff"
    );
    #[allow(clippy::reversed_empty_ranges)]
    let error = bus.attach(0x10..=0x0f, Refuses).unwrap_err();
    assert_eq!(error.to_string(), "the port range 0x0010 to 0x000f is empty");
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).build().unwrap();
    let mut gprs = Gprs { rdx: 0x3fd, ..Gprs::default() };
    let error = emulator.execute(IoInsn::in_dx(Width::Byte), &mut gprs).unwrap_err();
    assert_eq!(error.to_string(), "IN of 1 byte from port 0x03fd: the device refused the access: no medium");
    assert_eq!(error.source().unwrap().to_string(), "no medium");
    assert_eq!(
        IoEmulator::builder().build().unwrap_err().to_string(),
        "the emulator has no backend: give it a software bus (`.bus()`) or the hardware (`unsafe .native()`)"
    );
}

fn fault(payload: fn(&mut Payload<'_>, Ring)) -> String {
    // SAFETY: the payloads fault before they do anything else.
    let quirk = unsafe { Quirk::new("test", |_, _| true, payload) };
    let mut quirks = QuirkTable::none();
    quirks.push(quirk);
    let table = StubTable::builder().quirks(quirks).build().unwrap();
    let mut gprs = Gprs { rbx: 0xabc, rbp: 1 << 62, ..Gprs::default() };
    // SAFETY: the process has no privilege for any port.
    let fault = unsafe { table.resolve(OUT, &gprs).run(&mut gprs) }.unwrap_err();
    fault.to_string()
}

#[test]
fn faults() {
    assert_eq!(
        fault(|payload, _| payload.io(OUT)),
        "the CPU refused the port access with #GP (error code 0x0): this thread has no I/O privilege for the port \
         (ioperm or iopl grant it), or the kernel cannot give any"
    );
    // Error code 4: a read in user mode, of a page that is not there.
    assert_eq!(
        fault(|payload, _| dynasm!(payload ; .arch x64 ; mov rax, [rbx])),
        "page fault at 0xabc (error code 0x4) during the port access"
    );
    assert_eq!(
        fault(|payload, _| dynasm!(payload ; .arch x64 ; mov rax, [rbp + 0])),
        "exception 12 (error code 0x0) in the I/O sequence of the stub"
    );
}

fn emit(payload: fn(&mut Payload<'_>, Ring)) -> EmitError {
    // SAFETY: never executed.
    let quirk = unsafe { Quirk::new("frobnicate", |_, _| true, payload) };
    let options = SlotOptions { quirk: Some(quirk), ..SlotOptions::default() };
    let helpers = Helpers::emit(&mut [0; 256], 0x1000, StubLayout::CallRet).unwrap();
    emit_stub_with(&mut [0; 64], 0x2000, OUT, &helpers, &options).unwrap_err()
}

#[test]
fn slots() {
    let helpers = Helpers::emit(&mut [0; 256], 0x10_0000_0000, StubLayout::CallRet).unwrap();
    for (len, va, message) in [
        (35, 0x10_0000_1000, "the code needs 36 bytes and the slot has 35"),
        (
            36,
            0x20_0000_1000,
            "the displacement -0x1000001010 to a helper or thunk does not fit the signed 32 bits of a near branch",
        ),
        (36, 0, "the displacement 0xffffffff0 to a helper or thunk does not fit the signed 32 bits of a near branch"),
    ] {
        let error = emit_stub(&mut vec![0; len], va, OUT, &helpers).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(Error::from(error).to_string(), message);
    }
    let at_0 = Helpers::emit(&mut [0; 256], 0, StubLayout::CallRet).unwrap();
    assert_eq!(
        emit_stub(&mut [0; 64], u64::MAX, OUT, &at_0).unwrap_err().to_string(),
        "code of 36 bytes at 0xffffffffffffffff runs past the end of the address space"
    );
    assert_eq!(
        emit(|payload, _| payload.pushed(8)).to_string(),
        "the payload of the quirk \"frobnicate\" does not balance its pushes and pops"
    );
    assert_eq!(
        emit(|payload, _| dynasm!(payload ; .arch x64 ; jmp >ready)).to_string(),
        "the label \"ready\" is undefined, too far away, or one too many"
    );
}

#[test]
fn tables() {
    // SAFETY: never executed.
    let build = |payload: fn(&mut Payload<'_>, Ring)| unsafe {
        let mut quirks = QuirkTable::none();
        quirks.push(Quirk::new("frobnicate", |_, _| true, payload));
        StubTable::builder().quirks(quirks).build().unwrap_err()
    };
    assert_eq!(
        build(|payload, _| payload.popped(8)).to_string(),
        "the payload of the quirk \"frobnicate\" does not balance its pushes and pops"
    );
    let error = build(|payload, _| dynasm!(payload ; .arch x64 ; jmp >nowhere));
    assert_eq!(error.to_string(), "the stubs do not assemble: Unknown label: 'label nowhere'");
}

#[test]
fn systems_that_are_not_as_they_should_be() {
    let denied = || io::Error::from_raw_os_error(libc::EACCES);
    for (error, message) in [
        (
            Error::ShadowStack,
            "the Rop layout hijacks a return address, and this process runs with a user shadow stack, which would \
             kill it",
        ),
        (Error::Memory(denied()), "no executable memory for the stubs: Permission denied (os error 13)"),
        (
            Error::Query(region::Error::UnmappedRegion),
            "the protection of the stubs' memory cannot be verified: Queried memory is unmapped",
        ),
        (
            Error::Protection { found: region::Protection::READ_WRITE },
            "the stubs' memory is rw- where r-x was asked for",
        ),
        (Error::SignalHandler(denied()), "the fault handler could not be installed: Permission denied (os error 13)"),
        (Error::Dmi(denied()), "the machine's DMI strings cannot be read: Permission denied (os error 13)"),
    ] {
        assert_eq!(error.to_string(), message);
    }
}
