//! Any bytes in any mode, with any registers, through the emulator, on a bus with devices that do anything: no panic, the registers as given
//! whenever there is an error, and no bit of RFLAGS changed but a status flag.
//!
//! Input: a byte of options (which emulator, which mode); 128 bytes of registers; how many bytes of code, in a byte, and the code; what the devices
//! answer and leave.
#![no_main]

use std::cell::RefCell;

use ioemul::{
    CodeSize, DeviceError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortOperand, PortSet,
    QuirkTable, SoftwareBus, StubLayout,
};
use libfuzzer_sys::fuzz_target;

/// What is left of the input, for the device models.
#[derive(Default)]
struct Script(Vec<u8>);

thread_local!(static SCRIPT: RefCell<Script> = RefCell::default());

impl Script {
    fn byte(&mut self) -> u8 {
        self.0.pop().unwrap_or(0)
    }
}

/// Changes some registers, answers something, or refuses.
struct Device;

impl PortDevice for Device {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        assert!(u32::from(access.port) + u32::from(access.width.bytes()) <= 0x1_0000);
        assert!(access.direction == Direction::Out || value == 0);
        SCRIPT.with_borrow_mut(|script| {
            // Not in the middle of a poll, which would go on to its limit: once is enough, and in the tests.
            let polled = access.port == 0xcd4 && access.direction == Direction::In;
            if script.byte() == 0xee && !polled {
                return Err("refused".into());
            }
            let changed = usize::from(script.byte());
            let mut words = gprs.to_words();
            words[changed % 16] = u64::from_le_bytes(std::array::from_fn(|_| script.byte()));
            *gprs = Gprs::from_words(words);
            Ok(u32::from_le_bytes(std::array::from_fn(|_| script.byte())))
        })
    }
}

fn emulators() -> Vec<IoEmulator> {
    let emulator = |layout, quirks: QuirkTable| {
        let mut bus = SoftwareBus::new();
        bus.attach(0x20..=0x21, Device).unwrap();
        bus.attach(0x70..=0x77, Device).unwrap();
        bus.attach(0xcd4..=0xcd4, Device).unwrap();
        bus.attach(0x1000..=0xffff, Device).unwrap();
        let mut ports = PortSet::all();
        ports.deny(0x2000..=0x2fff);
        IoEmulator::builder().layout(layout).ports(ports).quirks(quirks).bus(bus).build().unwrap()
    };
    StubLayout::ALL
        .iter()
        .flat_map(|&layout| [emulator(layout, QuirkTable::none()), emulator(layout, QuirkTable::builtin())])
        .collect()
}

thread_local!(static EMULATORS: RefCell<Vec<IoEmulator>> = RefCell::new(emulators()));

/// RCX, RSI and RDI are a string instruction's own: they say how far it got.
fn without_string_registers(gprs: Gprs) -> Gprs {
    Gprs { rcx: 0, rsi: 0, rdi: 0, ..gprs }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[options, ref words @ .., len], rest)) = data.split_first_chunk::<130>() else { return };
    let word = |i: usize| u64::from_le_bytes(words[8 * i..8 * i + 8].try_into().unwrap());
    let given = Gprs::from_words(std::array::from_fn(word));
    let (code, script) = rest.split_at(usize::from(len).min(rest.len()));
    SCRIPT.set(Script(script.to_vec()));
    EMULATORS.with_borrow_mut(|emulators| {
        let count = emulators.len();
        let emulator = &mut emulators[usize::from(options) % count];
        let size = [CodeSize::Bits64, CodeSize::Bits32, CodeSize::Bits16][usize::from(options) / count % 3];
        let mut gprs = given;
        match emulator.emulate_in(size, code, &mut gprs) {
            Ok(len) => {
                assert!((1..=15).contains(&len) && len <= code.len());
                assert_eq!((gprs.rflags ^ given.rflags) & !Gprs::STATUS_FLAGS, 0);
            }
            Err(error) => {
                assert_eq!(gprs, given, "{error}");
                assert!(!error.to_string().is_empty());
                if let Error::StringForm { insn } = error {
                    string(emulator, insn, given, usize::from(options));
                }
            }
        }
    });
});

/// INS and OUTS, over memory of their own.
fn string(emulator: &mut IoEmulator, insn: IoInsn, given: Gprs, len: usize) {
    const PATTERN: u8 = 0xaa;
    let mut memory = vec![PATTERN; len + 8];
    let mut gprs = given;
    let result = match insn.direction {
        Direction::In => emulator.read_string(insn, &mut gprs, &mut memory[..len]),
        _ => emulator.write_string(insn, &mut gprs, &memory[..len]),
    };
    assert!(memory[len..].iter().all(|byte| *byte == PATTERN), "written past the end of the memory");
    let PortOperand::String { rep, .. } = insn.operand else { unreachable!() };
    match result {
        Ok(done) => assert!(done <= len && done.is_multiple_of(usize::from(insn.width.bytes()))),
        Err(Error::Device { .. }) => {
            assert_eq!(without_string_registers(gprs), without_string_registers(given));
            assert!(rep || gprs.rcx == given.rcx);
        }
        Err(_) => assert_eq!(gprs, given),
    }
}
