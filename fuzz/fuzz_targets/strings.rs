//! Devices that lie, through every kind of bus emulator at once: devices that move strings themselves and say that they have
//! moved more than there was, or parts of elements; that change every register; that refuse. Different ports to be read
//! and to be written, quirks as steps and as machine code. However it goes, the stubs of all layouts and the bus without
//! any agree in registers, data and words, nothing is written past the end, and an error leaves the registers.
//!
//! Input: a script of instructions with their registers, and of what the devices do.
#![no_main]

use std::cell::RefCell;

use ioemul::{
    AddressSize, CodeSink, DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, Payload, PortAccess, PortDevice,
    PortOperand, PortPermissions, PortSet, Quirk, QuirkTable, Segment, SoftwareBus, StringError, StubLayout, Trigger,
    Width,
};
use ioemul_fuzz::Script;
use libfuzzer_sys::fuzz_target;

thread_local!(static SCRIPT: RefCell<(Vec<u8>, usize)> = RefCell::default());

/// Has the rest of the script read, and keeps what is left of it.
fn with_script<T>(work: impl FnOnce(&mut Script<'_>) -> T) -> T {
    SCRIPT.with_borrow_mut(|(bytes, at)| {
        let rest = &bytes[*at..];
        let mut script = Script::new(rest);
        let result = work(&mut script);
        *at += rest.len() - script.bytes(usize::MAX).len();
        result
    })
}

/// Does as the script says.
struct Liar;

fn change(gprs: &mut Gprs, script: &mut Script<'_>) {
    let mut words = gprs.to_words();
    for _ in 0..script.u8() % 4 {
        let changed = usize::from(script.u8() % 16);
        words[changed] = script.u64();
    }
    *gprs = Gprs::from_words(words);
}

/// Whether all went well; if not, how far it came, or says that it did.
fn outcome(len: usize, script: &mut Script<'_>) -> Result<(), StringError> {
    let done = match script.u8() {
        0..128 => return Ok(()),
        128..144 => usize::MAX,
        144..160 => len + 1,
        160..176 => len,
        176..192 => len.saturating_sub(1),
        192..208 => usize::MAX - 3,
        _ => script.u8().into(),
    };
    Err(StringError { done, source: "refused".into() })
}

impl PortDevice for Liar {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        assert!(access.direction == Direction::Out || value == 0);
        assert_eq!(value & !access.width.mask(), 0);
        with_script(|script| {
            change(gprs, script);
            if script.u8() == 0xee { Err("no".into()) } else { Ok(script.u32()) }
        })
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        assert!(!data.is_empty() && data.len().is_multiple_of(access.width.bytes().into()));
        with_script(|script| {
            change(gprs, script);
            let count = usize::from(script.u8()) % (data.len() + 1);
            data[..count].fill(script.u8());
            outcome(data.len(), script)
        })
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        assert!(!data.is_empty() && data.len().is_multiple_of(access.width.bytes().into()));
        assert!(data.iter().all(|byte| *byte == PATTERN));
        with_script(|script| {
            change(gprs, script);
            outcome(data.len(), script)
        })
    }
}

/// The same device, string instructions going element by element.
struct Elements;

impl PortDevice for Elements {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        Liar.try_access(access, value, gprs)
    }
}

fn permissions() -> PortPermissions {
    let ports = |text: &str| text.parse::<PortSet>().unwrap();
    PortPermissions {
        read: ports("0x10-0x21,0x30-0x3f,0xb0-0xb3,0xcd4-0xcd7,0xffff"),
        write: ports("0x14-0x2f,0x84,0xb2-0xb3,0xcd4,0xfffc-0xffff"),
    }
}

fn bus() -> SoftwareBus {
    let mut bus = SoftwareBus::new();
    for ports in [0x10..=0x17, 0x1a..=0x1a, 0xb2..=0xb3, 0xcd4..=0xcd4] {
        bus.attach(ports, Liar).unwrap();
    }
    for ports in [0x18..=0x19, 0x20..=0x2f, 0x84..=0x84, 0xfff0..=0xffff] {
        bus.attach(ports, Elements).unwrap();
    }
    bus
}

/// Accesses with changes of registers and flags between them; DX stays, or does not.
fn payload(payload: &mut Payload<'_>) {
    payload.io(IoInsn::out_dx(Width::Byte));
    payload.extend(&[0x48, 0xff, 0xc3]); // inc rbx
    payload.io(IoInsn::in_dx(Width::Byte));
    payload.extend(&[0x48, 0x87, 0xf7]); // xchg rdi, rsi
    payload.extend(&[0x57]); // push rdi
    payload.pushed(8);
    payload.io(IoInsn::out_imm8(Width::Byte, 0x84));
    payload.extend(&[0x5f]); // pop rdi
    payload.popped(8);
    payload.extend(&[0xf9]); // stc
}

/// Emulators that have to agree.
struct Group(Vec<IoEmulator>);

fn groups() -> Vec<Group> {
    let builder = |layout| IoEmulator::builder().layout(layout).ports(permissions()).bus(bus());
    let group = |quirks: &[Quirk], direct: bool| {
        let table = || {
            let mut table = QuirkTable::none();
            quirks.iter().for_each(|quirk| table.push(*quirk));
            table
        };
        let stubs = StubLayout::ALL.iter().map(|layout| builder(*layout).quirks(table()).build().unwrap());
        let direct = direct.then(|| builder(StubLayout::default()).quirks(table()).direct().build().unwrap());
        Group(stubs.chain(direct).collect())
    };
    // SAFETY: the code changes guest registers and the status flags, pops what it pushes, and says so.
    let code = unsafe { Quirk::new("code", Trigger::out_dx(Width::Byte, 0xb2).rax(3, 1), payload) };
    let steps: Vec<Quirk> =
        Quirk::ALL.iter().copied().filter(|quirk| *quirk.name() != *Quirk::PROLIANT.name()).collect();
    vec![
        group(&[], true),
        group(Quirk::BUILTIN, true),
        group(&steps, true),
        group(&[Quirk::READ_BACK.at_port(0x1a), Quirk::GSMI_CARRY.at_port(0x15)], true),
        group(&[code, Quirk::DELL_SMM], false),
    ]
}

thread_local!(static GROUPS: RefCell<Vec<Group>> = RefCell::new(groups()));

const PATTERN: u8 = 0xa5;

/// What came of it: bytes or words, registers, memory.
type Outcome = (Result<usize, String>, Gprs, Vec<u8>);

fn run(emulator: &mut IoEmulator, insn: IoInsn, given: Gprs, len: usize) -> Outcome {
    let (mut gprs, mut memory) = (given, vec![PATTERN; len + 8]);
    let result = match (insn.is_string(), insn.direction) {
        (false, _) => emulator.execute(insn, &mut gprs).map(|()| 0),
        (true, Direction::In) => emulator.read_string(insn, &mut gprs, &mut memory[..len]),
        (true, _) => emulator.write_string(insn, &mut gprs, &memory[..len]),
    };
    check(insn, &given, &gprs, &memory, len, &result);
    (result.map_err(|error| error.to_string()), gprs, memory)
}

/// What holds of each by itself.
fn check(insn: IoInsn, given: &Gprs, gprs: &Gprs, memory: &[u8], len: usize, result: &Result<usize, Error>) {
    let IoInsn { direction, width, operand } = insn;
    assert!(memory[len..].iter().all(|byte| *byte == PATTERN), "written past the end");
    assert_eq!((gprs.rflags ^ given.rflags) & !Gprs::STATUS_FLAGS, 0);
    let permitted = permissions().permits(insn.port(given), width, direction);
    assert_eq!(
        matches!(result, Err(Error::PortDenied { .. })),
        !permitted && !matches!(result, Err(Error::StringOutOfBounds { .. }))
    );
    let own = |gprs: &Gprs| match (operand, direction) {
        (PortOperand::String { rep, .. }, Direction::In) => {
            Gprs { rcx: if rep { 0 } else { gprs.rcx }, rdi: 0, ..*gprs }
        }
        (PortOperand::String { rep, .. }, _) => Gprs { rcx: if rep { 0 } else { gprs.rcx }, rsi: 0, ..*gprs },
        _ => *gprs,
    };
    match (result, operand) {
        (Err(Error::Device { .. }), _) => assert_eq!(own(gprs), own(given)),
        (Err(_), _) => assert_eq!(gprs, given),
        (Ok(done), PortOperand::String { rep, address, .. }) => {
            let count = if rep { given.rcx & address.mask() } else { 1 };
            assert_eq!(*done as u64, count * u64::from(width.bytes()));
        }
        (Ok(_), _) => {}
    }
    if let PortOperand::String { rep, address, .. } = operand {
        // Pointer and count say the same, in whole elements, whatever a device said; with DF set the pointer goes down.
        const DF: u64 = 1 << 10;
        let up = match direction {
            Direction::In => gprs.rdi.wrapping_sub(given.rdi),
            Direction::Out => gprs.rsi.wrapping_sub(given.rsi),
        };
        let moved = if given.rflags & DF != 0 { up.wrapping_neg() } else { up } & address.mask();
        assert!(moved <= len as u64 && moved.is_multiple_of(width.bytes().into()));
        if rep {
            let count = given.rcx.wrapping_sub(gprs.rcx) & address.mask();
            assert_eq!(count * u64::from(width.bytes()), moved);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let forms = IoInsn::COUNT + IoInsn::STRING_COUNT;
    for _ in 0..8 {
        if script.is_at_end() {
            break;
        }
        let group = usize::from(script.u8());
        let index = match script.u8() % 4 {
            0 => usize::from(script.u16()) % forms,
            1 => usize::from(script.u8() % 6),
            _ => IoInsn::COUNT + usize::from(script.u8()) % IoInsn::STRING_COUNT,
        };
        let mut insn = IoInsn::all().nth(index).unwrap();
        if let PortOperand::String { address, segment, .. } = &mut insn.operand {
            match script.u8() {
                0 => *address = AddressSize::Bits16,
                1 if insn.direction == Direction::Out => *segment = Segment::Gs,
                _ => {}
            }
        }
        let port = script.one_of(&[
            0x10, 0x12, 0x14, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1f, 0x20, 0x2c, 0x30, 0xb2, 0xcd4, 0xfffc, 0xffff, 0u16,
        ]);
        let count = u64::from(script.u8() % 20);
        let far =
            |script: &mut Script<'_>| script.one_of(&[0, 0xfff8, 0xffff_fff8, u64::MAX - 3, 0x1234_5678_9abc_0000]);
        let given = Gprs {
            rax: script.one_of(&[0, 0x85, 0xa3, 0xef, 0x5380, 0x1_0001, u64::MAX]),
            rcx: if script.u8() < 16 { far(&mut script) } else { count },
            rdx: port.into(),
            rsi: far(&mut script),
            rdi: far(&mut script),
            rflags: u64::from(script.u16()),
            rbx: script.u8().into(),
            ..Gprs::default()
        };
        let len = usize::from(script.u8());
        let devices = script.counted();
        GROUPS.with_borrow_mut(|groups| {
            let count = groups.len();
            let mut first: Option<Outcome> = None;
            for emulator in &mut groups[group % count].0 {
                SCRIPT.set((devices.to_vec(), 0));
                let outcome = run(emulator, insn, given, len);
                match &first {
                    None => first = Some(outcome),
                    Some(first) => assert_eq!(first, &outcome, "{insn}: {emulator:?}"),
                }
            }
        });
    }
});
