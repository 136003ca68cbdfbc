//! What each error says, word for word: produced where it can be, made up where only a broken system would.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::error::Error as _;
use std::io;

use dynasm::dynasm;
use ioemul::fault::HandlerError;
use ioemul::trace::{Record, Trace};
use ioemul::{
    BuildError, CodeSink, CodeTable, CpuAffinity, DecodeError, DeviceError, Direction, EmitError, EmitOptions, Error,
    Faulted, Gprs, Helpers, IoEmulator, IoInsn, IoPermission, IoPrivilegeLevel, ParseInsnError, Payload, PortAccess,
    PortDevice, PortSet, PrivilegeError, Quirk, QuirkTable, RegisterFile, SoftwareBus, Step, StubTable, Trigger, Width,
    emit_stub,
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
        (&[0x66], "the instruction is cut off after 1 byte"),
        (&[0x66, 0xe5], "the instruction is cut off after 2 bytes"),
        (&[0x66; 15], "the instruction is longer than 15 bytes"),
        (&[0xf0, 0xec], "a LOCK prefix (f0) is not allowed on port I/O"),
        (&[0x0f, 0xa2], "not a port-I/O instruction: opcode 0f is not IN, OUT, INS or OUTS"),
    ] {
        let before = Gprs { rax: 1, rdx: 0x80, rcx: 2, rsi: 3, rdi: 4, ..Gprs::default() };
        let mut gprs = before;
        let error = emulator.emulate(code, &mut gprs).unwrap_err();
        assert_eq!(gprs, before);
        assert_eq!(error.to_string(), message);
    }
    assert!(matches!(Error::from(DecodeError::TooLong), Error::Decode(DecodeError::TooLong)));
    assert_eq!("hlt".parse::<IoInsn>(), Err(ParseInsnError));
    assert_eq!(
        ParseInsnError.to_string(),
        "not a port-I/O instruction as in `in al, dx`, `out 0x80, eax` or `rep insb`"
    );
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
fn quirks_that_are_not_permitted() {
    let quirks = QuirkTable::from_iter([Quirk::DELL_SMM]);
    let builder = IoEmulator::builder().quirks(quirks).ports(PortSet::from(0xb2..=0xb2));
    let mut emulator = builder.bus(SoftwareBus::new()).build().unwrap();
    let mut gprs = Gprs { rax: 0xa3, ..Gprs::default() };
    assert_eq!(
        emulator.execute(IoInsn::out_imm8(Width::Byte, 0xb2), &mut gprs).unwrap_err().to_string(),
        "OUT of 1 byte to port 0x0084 is not permitted, and the quirk \"Dell SMM\", which stands for the instruction, \
         makes it: permit it, or build the emulator without the quirk"
    );
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
    fn try_access(&mut self, access: PortAccess, _: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
        assert_eq!(access.direction, Direction::In);
        Err(io::Error::other("no medium").into())
    }
}

/// No set of ports would help, and no other call would.
#[test]
fn what_is_not_a_matter_of_the_port_set() {
    let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build().unwrap();
    for (port, width) in [(0xffff, Width::Word), (0xfffd, Width::Dword), (0xffff, Width::Dword)] {
        let error = emulator.port_in(port, width).unwrap_err().to_string();
        assert!(error.ends_with("is not permitted: it runs past port 0xffff, whatever the port set"), "{error}");
    }
    assert!(emulator.port_in(0xfffe, Width::Word).is_ok());
    let error = emulator.read_string(IoInsn::in_dx(Width::Byte), &mut Gprs::default(), &mut []).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`in al, dx` accesses no memory: `read_string` runs INS, `write_string` OUTS, and `execute` the others"
    );
    let one = Gprs { rcx: 1, ..Gprs::default() };
    let error = emulator.read_string(IoInsn::rep_ins(Width::Word), &mut { one }, &mut [0]).unwrap_err();
    assert_eq!(error.to_string(), "`rep insw` moves 1 element of 2 bytes, and the memory given for it has 1 byte");
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
}

#[test]
fn emulators_that_cannot_be_built() {
    assert_eq!(
        IoEmulator::builder().build().unwrap_err().to_string(),
        "the emulator has no backend: give it a software bus (`.bus()`) or the hardware (`unsafe .native(ports)`)"
    );
    let builder = IoEmulator::builder().ports("0x60-0x71".parse::<PortSet>().unwrap()).bus(SoftwareBus::new());
    // SAFETY: it is not built.
    let error = unsafe { builder.native("0x70-0x7f".parse::<PortSet>().unwrap()) }.build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "port 0x0070 is permitted on the bus and on the hardware: an access would have two places to go, name it once"
    );
    // SAFETY: never executed.
    let quirk = unsafe { Quirk::new("frobnicate", Trigger::out_dx(Width::Byte, 0), |payload| payload.io(OUT)) };
    let builder = IoEmulator::builder().bus(SoftwareBus::new()).direct().quirks(QuirkTable::from_iter([quirk]));
    assert_eq!(
        builder.build().unwrap_err().to_string(),
        "the quirk \"frobnicate\" is machine code, and a direct bus runs none: describe it as steps, or leave \
         `.direct()` out"
    );
}

fn fault(payload: fn(&mut Payload<'_>)) -> String {
    // SAFETY: the payloads fault before they do anything else.
    let quirk = unsafe { Quirk::new("test", Trigger::out_dx(Width::Byte, 0), payload) };
    let table = StubTable::builder().quirks(QuirkTable::from_iter([quirk])).build().unwrap();
    let mut gprs = Gprs { rbx: 0xabc, rbp: 1 << 62, ..Gprs::default() };
    // SAFETY: the process has no privilege for any port.
    let fault = unsafe { table.resolve(OUT, &gprs).run(&mut gprs) }.unwrap_err();
    fault.to_string()
}

#[test]
fn faults() {
    const REFUSED: &str = "the CPU refused the port access with #GP (error code 0x0): this thread has no I/O privilege \
                           for the port (ioperm or iopl grant it), or the kernel cannot give any";
    assert_eq!(fault(|payload| payload.io(OUT)), REFUSED);
    // Error code 4: a read in user mode, of a page that is not there.
    assert_eq!(
        fault(|payload| dynasm!(payload ; .arch x64 ; mov rax, [rbx])),
        "page fault at 0xabc (error code 0x4) during the port access"
    );
    assert_eq!(
        fault(|payload| dynasm!(payload ; .arch x64 ; mov rax, [rbp + 0])),
        "exception 12 (error code 0x0) in the I/O sequence of the stub"
    );
    // SAFETY: without privilege nothing is accessed, and writing port 0x80 would do nothing.
    let mut emulator = unsafe { IoEmulator::builder().native(PortSet::from(0x80..=0x80)) }.build().unwrap();
    if let Err(error) = emulator.execute(IoInsn::out_imm8(Width::Byte, 0x80), &mut Gprs::default()) {
        assert_eq!(error.to_string(), format!("OUT of 1 byte to port 0x0080: {REFUSED}"));
    }
}

#[test]
fn slots() {
    let options = EmitOptions::new();
    let len = emit_stub(&mut [0; 64], 0x2000, OUT, &Helpers::emit(&mut [0; 512], 0x1000, &options).unwrap()).unwrap();
    let helpers = Helpers::emit(&mut [0; 512], 0x10_0000_0000, &options).unwrap();
    for (room, va, message) in [
        (len - 1, 0x10_0000_1000, format!("the code needs {len} bytes and the memory for it has {}", len - 1)),
        (
            len,
            0x20_0000_1000,
            "the displacement -0x1000001010 to a helper or thunk does not fit the signed 32 bits of a near branch: place \
             the code within 2 GiB of it"
                .into(),
        ),
        (
            len,
            0,
            "the displacement 0xffffffff0 to a helper or thunk does not fit the signed 32 bits of a near branch: place \
             the code within 2 GiB of it"
                .into(),
        ),
    ] {
        let error = emit_stub(&mut vec![0; room], va, OUT, &helpers).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(BuildError::from(error).to_string(), message);
    }
    let at_0 = Helpers::emit(&mut [0; 512], 0, &options).unwrap();
    assert_eq!(
        emit_stub(&mut [0; 64], u64::MAX, OUT, &at_0).unwrap_err().to_string(),
        format!("code of {len} bytes at 0xffffffffffffffff does not lie in one piece of canonical address space")
    );
}

/// What helpers, a table in memory and the stubs of a process say to the same options: all the same.
fn refused(registers: RegisterFile, quirks: &[Quirk]) -> String {
    let options = EmitOptions::new().registers(registers).quirks(quirks);
    let error = Helpers::emit(&mut [0; 512], 0x1000, &options)
        .and_then(|helpers| emit_stub(&mut [0; 512], 0x2000, OUT, &helpers).map(drop))
        .unwrap_err();
    let table = CodeTable::emit(&mut vec![0; 1 << 17], 0x1000, &options).unwrap_err();
    assert_eq!(table, error);
    if quirks.len() <= EmitOptions::MAX_QUIRKS && !matches!(error, EmitError::Label { .. }) {
        let builder = StubTable::builder().registers(registers).quirks(QuirkTable::from_iter(quirks.iter().copied()));
        assert!(matches!(builder.build(), Err(BuildError::Emit(same)) if same == error));
    }
    error.to_string()
}

fn refused_payload(payload: fn(&mut Payload<'_>)) -> String {
    // SAFETY: never executed.
    let quirk = unsafe { Quirk::new("frobnicate", Trigger::out_dx(Width::Byte, 0), payload) };
    refused(RegisterFile::GPRS, &[quirk])
}

#[test]
fn options_that_cannot_be_emitted() {
    const UNBALANCED: &str = "the payload of the quirk \"frobnicate\" does not balance its pushes and pops, which are \
                              of whole words of 8 bytes";
    assert_eq!(refused_payload(|payload| payload.pushed(8)), UNBALANCED);
    assert_eq!(refused_payload(|payload| payload.popped(8)), UNBALANCED);
    assert_eq!(
        refused_payload(|payload| {
            payload.pushed(4);
            payload.popped(4);
        }),
        UNBALANCED
    );
    assert_eq!(
        refused_payload(|payload| (0..9).for_each(|port| payload.io(IoInsn::out_imm8(Width::Byte, port)))),
        "the payload of the quirk \"frobnicate\" makes more than 8 accesses"
    );
    assert_eq!(
        refused_payload(|payload| payload.io(IoInsn::rep_outs(Width::Byte))),
        "the payload of the quirk \"frobnicate\" has INS or OUTS in it, whose pointers are a guest's"
    );
    assert_eq!(
        refused_payload(|payload| dynasm!(payload ; .arch x64 ; jmp >ready)),
        "the label \"ready\" is undefined, too far away, or one too many"
    );
    let steps: &[Step] = &[Step::Access];
    let quirk = Quirk::from_steps("plain", Trigger::out_dx(Width::Byte, 0), steps);
    assert_eq!(
        refused(RegisterFile::GPRS, &[quirk; 5]),
        "5 quirks were given, and at most 4 are taken: leave out those of other machines"
    );
    let overlapping = RegisterFile::new(std::array::from_fn(|i| if i == 1 { 4 } else { 8 * i as i16 }), None);
    assert_eq!(refused(overlapping, &[]), "two registers of the register file overlap: each needs 8 bytes of its own");
}

#[test]
fn stubs_that_do_not_assemble() {
    // SAFETY: never executed.
    let quirk = unsafe {
        Quirk::new("frobnicate", Trigger::out_dx(Width::Byte, 0), |payload| dynasm!(payload ; .arch x64 ; jmp >nowhere))
    };
    let error = StubTable::builder().quirks(QuirkTable::from_iter([quirk])).build().unwrap_err();
    assert_eq!(error.to_string(), "the stubs do not assemble: Unknown label: 'label nowhere'");
}

#[test]
fn systems_that_are_not_as_they_should_be() {
    let denied = || io::Error::from_raw_os_error(libc::EACCES);
    for (error, message) in [
        (
            BuildError::ShadowStack,
            "the Rop layout hijacks a return address, and this process runs with a user shadow stack, which would \
             kill it",
        ),
        (BuildError::Memory(denied()), "no memory for the stubs: Permission denied (os error 13)"),
        (
            BuildError::Executable(denied()),
            "the memory of the stubs may not become executable: Permission denied (os error 13): mprotect is refused under \
             PR_SET_MDWE (systemd's MemoryDenyWriteExecute=), by SELinux (execmem) and by seccomp filters: permit it, build \
             before the jail is entered, or reach a software bus without machine code, by `.direct()`",
        ),
        (BuildError::Protection { found: "rw-".into() }, "the stubs' memory is rw- where r-x was asked for"),
        (
            BuildError::SignalHandler(HandlerError::System { signal: "SIGSEGV", source: denied() }),
            "the fault handler could not be installed: sigaction of SIGSEGV: Permission denied (os error 13)",
        ),
        (
            BuildError::Dmi(denied()),
            "the machine's DMI strings cannot be read: Permission denied (os error 13): make it possible, or name the machine's \
             quirks yourself, by `.quirks(…)`",
        ),
    ] {
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn replay() {
    let record = |insn: &str, gprs: Gprs| Record {
        insn: insn.parse().unwrap(),
        before: gprs,
        after: gprs,
        data: vec![],
        error: None,
        duration: None,
    };
    let call = Gprs { rax: 0x85, rdx: 0x64, rbx: 7, ..Gprs::default() };
    let string = Gprs { rdx: 0x60, rcx: 2, ..Gprs::default() };
    let records = [
        record("out dx, al", call),
        Record { data: vec![1, 2], ..record("rep outsb", string) },
        Record { after: Gprs { rax: 1 << 40, ..call }, ..record("in eax, dx", call) },
    ];
    let (bus, progress) = Trace::from_iter(records).replay().strict();
    let mut emulator = IoEmulator::builder().ports(PortSet::from(0x60..=0x7f)).bus(bus).build().unwrap();

    let mut other = Gprs { rbx: 8, ..call };
    let error = emulator.execute(IoInsn::out_dx(Width::Byte), &mut other).unwrap_err();
    assert_eq!(
        error.to_string(),
        "OUT of 1 byte to port 0x0064: the device refused the access: access 1 of the trace was expected, and \
         another one came\n  \
         expected: OUT of 1 byte to port 0x0064 (`out dx, al`), rbx = 0x7\n       \
         got: OUT of 1 byte to port 0x0064, rbx = 0x8"
    );
    let error = emulator.execute(IoInsn::in_imm8(Width::Word, 0x60), &mut call.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IN of 2 bytes from port 0x0060: the device refused the access: access 1 of the trace was expected, and \
         another one came\n  \
         expected: OUT of 1 byte to port 0x0064 (`out dx, al`)\n       \
         got: IN of 2 bytes from port 0x0060"
    );
    emulator.execute(IoInsn::out_dx(Width::Byte), &mut call.clone()).unwrap();
    let error = emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut string.clone(), &[1, 3]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "OUT of 1 byte to port 0x0060: the device refused the access: access 2 of the trace was expected, and \
         another one came\n  \
         expected: OUTS of 2 bytes, 1 at a time, to port 0x0060 (`rep outsb`), byte 1 = 0x02\n       \
         got: OUTS of 2 bytes, 1 at a time, to port 0x0060, byte 1 = 0x03"
    );
    assert_eq!(
        progress.finish().unwrap_err().to_string(),
        "1 of 3 recorded accesses were replayed; access 2 never came\n  \
         expected: OUTS of 2 bytes, 1 at a time, to port 0x0060 (`rep outsb`)"
    );
    emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut string.clone(), &[1, 2]).unwrap();
    let error = emulator.execute(IoInsn::in_dx(Width::Dword), &mut call.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IN of 4 bytes from port 0x0064: the device refused the access: access 3 of the trace cannot be replayed: \
         an IN of 4 bytes left RAX at \
         0x10000000000"
    );

    let (bus, _) = Trace::new().replay().strict();
    let mut emulator = IoEmulator::builder().ports(PortSet::from(0x60..=0x7f)).bus(bus).build().unwrap();
    let error = emulator.execute(IoInsn::in_imm8(Width::Byte, 0x70), &mut Gprs::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IN of 1 byte from port 0x0070: the device refused the access: the trace ends after 0 accesses, and another \
         one came\n       \
         got: IN of 1 byte from port 0x0070"
    );
}

#[test]
fn privilege() {
    assert_eq!(
        IoPermission::acquire(PortSet::none()).unwrap_err().to_string(),
        "no ports to open: the range or set is empty"
    );
    assert_eq!(
        CpuAffinity::pin(9999).unwrap_err().to_string(),
        "this thread cannot run on CPU 9999: there is none, or it is offline or outside the cpuset"
    );
    // What this kernel says to ioperm and iopl differs; each answer has its words.
    let errors =
        [("ioperm", IoPermission::acquire(0x80..=0x80).map(drop)), ("iopl", IoPrivilegeLevel::acquire().map(drop))];
    for (call, result) in errors {
        match result {
            Ok(()) => {}
            Err(error @ PrivilegeError::Unsupported { .. }) => assert_eq!(
                error.to_string(),
                format!("this kernel has no {call} (ENOSYS): it was built without CONFIG_X86_IOPL_IOPERM")
            ),
            Err(PrivilegeError::Refused { call: refused, .. }) => assert_eq!(refused, call),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn calls_of_a_table() {
    assert_eq!(Faulted::AtAccess.to_string(), "the CPU refused the access");
    assert_eq!(
        Faulted::StringForm { insn: IoInsn::rep_ins(Width::Byte) }.to_string(),
        "`rep insb` follows a guest's pointers: bound and translate them, and ask for `string_entry`"
    );
    assert_eq!(
        Faulted::OtherRegisterFile.to_string(),
        "the table is for another register file than `Gprs`: call its entries with one of those"
    );
}
