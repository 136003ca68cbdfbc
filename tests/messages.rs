//! The transcript: every error message that a user of the front door can meet, word for word.

use ioemul::trace::{Record, Trace};
use ioemul::{
    DecodeError, DeviceError, Error, Gprs, IoEmulator, IoInsn, ParseInsnError, PortAccess, PortDevice, PortSet,
    SoftwareBus, Width,
};

fn emulator() -> IoEmulator {
    struct Grumpy;
    impl PortDevice for Grumpy {
        fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
            0
        }
        fn port_out(&mut self, _: PortAccess, _: u32, _: &mut Gprs) {}
        fn try_access(&mut self, _: PortAccess, _: u32, _: &mut Gprs) -> Result<u32, DeviceError> {
            Err("not before noon".into())
        }
    }
    let mut bus = SoftwareBus::new();
    bus.attach(0x70..=0x77, Grumpy).unwrap();
    IoEmulator::builder().ports(PortSet::from(0x60..=0x7f)).bus(bus).build().unwrap()
}

/// What `emulate` says to these bytes; whatever it is, the registers stay.
fn emulate(code: &[u8]) -> String {
    let before = Gprs { rax: 1, rdx: 0x80, rcx: 2, rsi: 3, rdi: 4, ..Gprs::default() };
    let mut gprs = before;
    let error = emulator().emulate(code, &mut gprs).unwrap_err();
    assert_eq!(gprs, before);
    error.to_string()
}

#[test]
fn decoding() {
    assert_eq!(emulate(&[]), "not a port-I/O instruction: the instruction is cut off after 0 bytes");
    assert_eq!(emulate(&[0x66, 0xe4]), "not a port-I/O instruction: the instruction is cut off after 2 bytes");
    assert_eq!(emulate(&[0x66; 16]), "not a port-I/O instruction: the instruction is longer than 15 bytes");
    assert_eq!(emulate(&[0xf0, 0xec]), "not a port-I/O instruction: a LOCK prefix (f0) is not allowed on port I/O");
    assert_eq!(emulate(&[0xf3, 0xec]), "not a port-I/O instruction: a repeat prefix (f3) has no meaning on IN and OUT");
    assert_eq!(
        emulate(&[0x64, 0x6e]),
        "not a port-I/O instruction: a segment override (64) to FS or GS is not supported on OUTS"
    );
    assert_eq!(emulate(&[0x90]), "not a port-I/O instruction: opcode 90 is not IN, OUT, INS or OUTS");
    assert!(matches!(Error::from(DecodeError::TooLong), Error::Decode(DecodeError::TooLong)));
}

#[test]
fn permission_and_devices() {
    assert_eq!(
        emulate(&[0xec]),
        "IN of 1 byte from port 0x0080 is not permitted: the emulator's port set does not cover all of it"
    );
    assert_eq!(
        emulate(&[0xe7, 0x7e]),
        "OUT of 4 bytes to port 0x007e is not permitted: the emulator's port set does not cover all of it"
    );
    assert_eq!(emulate(&[0xe4, 0x70]), "IN of 1 byte from port 0x0070: the device refused the access: not before noon");
}

#[test]
fn string_instructions() {
    assert_eq!(
        emulate(&[0xf3, 0x6c]),
        "`rep insb` moves data between a port and memory: `read_string` runs INS, `write_string` OUTS, `execute` \
         neither"
    );
    let mut gprs = Gprs { rcx: 3, rdx: 0x60, ..Gprs::default() };
    let error = emulator().read_string(IoInsn::rep_ins(Width::Word), &mut gprs, &mut [0; 5]).unwrap_err();
    assert_eq!(error.to_string(), "`rep insw` moves 3 elements of 2 bytes, and the memory given for it has 5 bytes");
}

#[test]
fn building() {
    let error = IoEmulator::builder().build().unwrap_err().to_string();
    assert_eq!(
        error,
        "the emulator has no backend: give it a software bus (`.bus()`) or the hardware (`unsafe .native()`)"
    );
    let mut bus = SoftwareBus::new();
    bus.attach(0x10..=0x1f, ioemul::devices::Latch::new(0x10)).unwrap();
    let error = bus.attach(0x1f..=0x2f, ioemul::devices::Latch::new(0x20)).unwrap_err().to_string();
    assert_eq!(error, "ports 0x001f to 0x002f are taken: another device has 0x0010 to 0x001f");
    #[allow(clippy::reversed_empty_ranges)]
    let error = bus.attach(5..=4, ioemul::devices::Latch::new(5)).unwrap_err().to_string();
    assert_eq!(error, "the port range 0x0005 to 0x0004 is empty");
}

#[test]
fn faults() {
    // SAFETY: without privilege nothing is accessed, and writing port 0x80 would do nothing.
    let mut emulator = unsafe { IoEmulator::builder().native(PortSet::from(0x80..=0x80)) }.build().unwrap();
    let Err(error) = emulator.execute(IoInsn::out_imm8(Width::Byte, 0x80), &mut Gprs::default()) else {
        return; // a process with I/O privilege
    };
    assert_eq!(
        error.to_string(),
        "OUT of 1 byte to port 0x0080: the CPU refused the port access with #GP (error code 0x0): this thread has \
         no I/O privilege for the port (ioperm or \
         iopl grant it), or the kernel cannot give any"
    );
}

#[test]
fn replay() {
    let record = |insn: &str, gprs: Gprs| Record {
        insn: insn.parse().unwrap(),
        before: gprs,
        after: gprs,
        data: vec![],
        error: None,
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
fn instructions_as_text() {
    assert_eq!("hlt".parse::<IoInsn>(), Err(ParseInsnError));
    assert_eq!(
        ParseInsnError.to_string(),
        "not a port-I/O instruction as in `in al, dx`, `out 0x80, eax` or `rep insb`"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn privilege() {
    use ioemul::{CpuAffinity, IoPermission, IoPrivilegeLevel, PrivilegeError, Refusal};

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
            Err(PrivilegeError::Refused { call: refused, reason: Refusal { .. } }) => assert_eq!(refused, call),
            Err(error) => panic!("{error}"),
        }
    }
}
