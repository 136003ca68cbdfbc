//! What `native(ports)` vouches for, and what the hardware is shown: each access is caught at the instant at which it is
//! made, in this process's own handler of SIGSEGV.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::Once;
use std::{mem, ptr};

use common::gregs::GREGS;
use common::{Rng, kind, some_forms};
use iced_x86::{Decoder, DecoderOptions};
use ioemul::events::{Attempt, Events};
use ioemul::{
    BuildError, Direction, Error, Gprs, IoEmulator, IoEmulatorBuilder, IoInsn, PortPermissions, PortSet, Quirk,
    QuirkTable, SoftwareBus, StubLayout, Width, fault,
};

/// An access as the CPU was about to make it.
#[derive(Clone, Copy)]
struct Caught {
    gprs: Gprs,
    /// The bytes at RIP.
    code: [u8; 4],
}

thread_local!(static CAUGHT: RefCell<Vec<Caught>> = RefCell::default());

extern "C" fn catch(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's arguments; RIP is at an instruction. The signal is synchronous: nothing is interrupted.
    unsafe {
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let gprs = Gprs::from_words(GREGS.map(|register| registers[register] as u64));
        let code = (registers[libc::REG_RIP as usize] as *const [u8; 4]).read_unaligned();
        CAUGHT.with_borrow_mut(|caught| caught.push(Caught { gprs, code }));
        if !fault::recover(info, context) {
            libc::abort();
        }
    }
}

/// What was caught since the last call.
fn caught() -> Vec<Caught> {
    CAUGHT.take()
}

/// An emulator on the hardware, whose accesses [`catch`] sees.
fn native(ports: impl Into<PortPermissions>) -> IoEmulatorBuilder {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: all-zero is a valid sigaction; the handler has the signature of SA_SIGINFO.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (catch as *const () as usize, libc::SA_SIGINFO);
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
        }
    });
    let builder = IoEmulator::builder().quirks(QuirkTable::none()).fault_recovery(false);
    // SAFETY: the process has no privilege for any port.
    unsafe { builder.native(ports) }
}

/// The instruction, by an independent decoder.
fn is_at(insn: IoInsn, code: &[u8]) -> bool {
    let decoded = Decoder::new(64, code, DecoderOptions::NONE).decode();
    kind(decoded.code()) == Some((insn.direction, insn.width))
}

/// What the hardware sees of registers: the guest's, and of RFLAGS the status flags; IF is set in a process, and nothing
/// else that a guest might have liked to set.
fn as_seen(given: Gprs) -> Gprs {
    const ALWAYS: u64 = 1 << 1 | 1 << 9;
    Gprs { rflags: given.rflags & Gprs::STATUS_FLAGS | ALWAYS, ..given }
}

/// RF is the CPU's, set in the image of RFLAGS that a fault saves.
fn without_rf(gprs: Gprs) -> Gprs {
    Gprs { rflags: gprs.rflags & !(1 << 16), ..gprs }
}

/// Every register and every bit of RFLAGS at the instant of the access, in every layout.
#[test]
fn the_hardware_sees_the_guests_registers_exactly() {
    let mut rng = Rng(0x5eed);
    let forms: Vec<_> = some_forms().collect();
    for layout in StubLayout::ALL.iter().copied() {
        for bus in [None, Some(())] {
            let builder = native(PortSet::from(0x40..=0xffff)).layout(layout);
            let builder = match bus {
                None => builder,
                Some(()) => builder.ports(PortSet::from(0x0..=0x3f)).bus(SoftwareBus::new()),
            };
            let mut emulator = builder.build().unwrap();
            for form in forms.iter().cycle().take(200) {
                let mut given = rng.gprs();
                given.rdx |= 0x4000;
                if form.insn.port(&given) < 0x40 || form.insn.port(&given) > 0xfff0 {
                    continue;
                }
                let mut gprs = given;
                let error = emulator.execute(form.insn, &mut gprs).unwrap_err();
                assert!(matches!(error, Error::Fault { .. }), "{error}");
                let caught = caught();
                let [access] = caught[..] else { panic!("{} accesses of {}", caught.len(), form.insn) };
                assert_eq!(without_rf(access.gprs), as_seen(given), "{layout:?}, {}", form.insn);
                assert!(is_at(form.insn, &access.code), "{:02x?}", access.code);
                assert_eq!(gprs, given);
            }
        }
    }
}

/// INS and OUTS on the hardware: RSI or RDI is the address of the slice (of its last element, if the guest's DF is set), RCX
/// the count, and all else the guest's.
#[test]
fn a_string_instruction_has_the_slice_in_its_pointer_alone() {
    let mut rng = Rng(0x5eed);
    let mut memory = [0_u8; 64];
    let address = memory.as_ptr().expose_provenance() as u64;
    for layout in StubLayout::ALL.iter().copied() {
        let mut emulator = native(PortSet::from(0x40..=0xffff)).layout(layout).build().unwrap();
        for insn in IoInsn::strings() {
            let given = Gprs { rcx: 5, rdx: 0x1f0, ..rng.gprs() };
            let mut gprs = given;
            let address = match given.rflags >> 10 & 1 {
                0 => address,
                _ => address + memory.len() as u64 - u64::from(insn.width.bytes()),
            };
            let (result, live) = match insn.direction {
                Direction::In => (emulator.read_string(insn, &mut gprs, &mut memory), Gprs { rdi: address, ..given }),
                _ => (emulator.write_string(insn, &mut gprs, &memory), Gprs { rsi: address, ..given }),
            };
            assert!(matches!(result, Err(Error::Fault { .. })), "{insn}: {result:?}");
            let caught = caught();
            let [access] = caught[..] else { panic!("{} accesses of {insn}", caught.len()) };
            assert_eq!(without_rf(access.gprs), as_seen(live), "{layout:?}, {insn}");
            assert_eq!(gprs, given);
        }
    }
}

/// Everything that safe code can say to a builder, before and after `native`, and what becomes of the emulator.
#[test]
fn nothing_safe_widens_what_was_vouched_for() {
    type Safe = fn(IoEmulatorBuilder) -> IoEmulatorBuilder;
    let safe: [(&str, Safe); 7] = [
        ("ports", |builder| builder.ports(PortSet::all() - PortSet::from(0x80..=0x81))),
        ("bus", |builder| builder.bus(SoftwareBus::new())),
        ("direct", |builder| builder.direct()),
        ("layout", |builder| builder.layout(StubLayout::Compact)),
        ("recovery", |builder| builder.fault_recovery(false)),
        ("quirks", |builder| builder.quirks(Quirk::ALL.iter().map(|quirk| quirk.at_port(0x80)).collect())),
        ("sibling", |builder| builder.build().map_or_else(|_| IoEmulator::builder(), |emulator| emulator.sibling())),
    ];
    let mut faulted = 0;
    for (first, one) in safe {
        for (second, two) in safe {
            for (third, three) in safe {
                let builder = three(two(one(native(PortSet::from(0x80..=0x81)))));
                let mut emulator = match builder.build() {
                    Ok(emulator) => emulator,
                    Err(BuildError::NoBackend) => continue, // a sibling is given its own bus, and is not native
                    Err(error) => panic!("{first}, {second}, {third}: {error}"),
                };
                for port in [0x7f, 0x80, 0x81, 0x82, 0xb2, 0xcd4] {
                    for insn in [IoInsn::in_dx(Width::Byte), IoInsn::out_dx(Width::Byte), IoInsn::out_dx(Width::Word)] {
                        for rax in [0x00ef, 0x00a3, 0x5380, 0x0085] {
                            let _ = emulator.execute(insn, &mut Gprs { rax, rdx: port, ..Gprs::default() });
                        }
                        for access in caught() {
                            faulted += 1;
                            let vouched = (0x80..=0x81).contains(&(access.gprs.rdx as u16));
                            let dx = matches!(access.code[..2], [0xec..=0xef, _] | [0x66, 0xed | 0xef]);
                            assert!(
                                vouched && dx,
                                "{first}, {second}, {third}: {insn} at {port:#x}: {:x?}",
                                access.code
                            );
                        }
                    }
                }
            }
        }
    }
    assert!(faulted > 500, "{faulted} accesses on the hardware are none");
}

/// Read and write are vouched for apart.
#[test]
fn reading_is_not_writing() {
    let look_only = PortPermissions { read: PortSet::from(0x80..=0x87), write: PortSet::from(0x86..=0x86) };
    let mut emulator = native(look_only).build().unwrap();
    for (insn, port, accesses) in [
        (IoInsn::in_dx(Width::Dword), 0x84, 1),
        (IoInsn::out_dx(Width::Byte), 0x86, 1),
        (IoInsn::out_dx(Width::Word), 0x86, 0),
        (IoInsn::out_dx(Width::Byte), 0x84, 0),
        (IoInsn::in_dx(Width::Dword), 0x85, 0),
    ] {
        emulator.execute(insn, &mut Gprs { rdx: port, ..Gprs::default() }).unwrap_err();
        assert_eq!(caught().len(), accesses, "{insn} at {port:#x}");
    }
}

/// What is denied is told as denied, and no access follows, whatever a listener is told of it.
#[test]
fn what_is_denied_is_not_made() {
    #[derive(Default)]
    struct Denied(Vec<u16>);
    impl Events for Denied {
        fn denied(&mut self, attempt: &Attempt<'_>) {
            self.0.push(attempt.port);
        }
    }
    let mut emulator = native(PortSet::from(0xb2..=0xb2))
        .quirks(QuirkTable::from_iter([Quirk::DELL_SMM]))
        .events(Denied::default())
        .build()
        .unwrap();
    // The quirk would write to port 0x84 afterwards, and does not write to 0xb2 either.
    let error =
        emulator.execute(IoInsn::out_imm8(Width::Byte, 0xb2), &mut Gprs { rax: 0xa3, ..Gprs::default() }).unwrap_err();
    assert!(matches!(error, Error::QuirkDenied { port: 0x84, .. }), "{error}");
    assert_eq!((emulator.events().0.as_slice(), caught().len()), (&[0xb2][..], 0));
}
