//! Instructions from what exits say: every combination of fields that the manuals' tables have, each one that they do not, and
//! what an emulator makes of the outcome. The tables stand here in the manuals' own numbers, and not in the library's terms.

use ioemul::{AddressSize, CodeSize, Direction, Gprs, IoInsn, PortOperand, Segment, Width};

use Direction::{In, Out};

/// SDM vol. 3C, table 28-5, bits 2:0: size of access.
const VMX_SIZES: [(u64, Option<Width>); 8] = [
    (0, Some(Width::Byte)),
    (1, Some(Width::Word)),
    (2, None),
    (3, Some(Width::Dword)),
    (4, None),
    (5, None),
    (6, None),
    (7, None),
];

/// SDM vol. 3C, instruction information of INS and OUTS, bits 9:7: address size.
const VMX_ADDRESSES: [(u64, Option<AddressSize>); 8] = [
    (0, Some(AddressSize::Bits16)),
    (1, Some(AddressSize::Bits32)),
    (2, Some(AddressSize::Bits64)),
    (3, None),
    (4, None),
    (5, None),
    (6, None),
    (7, None),
];

/// APM vol. 2, 15.10.2, bits 6:4 SZ32, SZ16, SZ8: one of them is set.
const SVM_SIZES: [(u64, Option<Width>); 8] = [
    (0b000, None),
    (0b001, Some(Width::Byte)),
    (0b010, Some(Width::Word)),
    (0b011, None),
    (0b100, Some(Width::Dword)),
    (0b101, None),
    (0b110, None),
    (0b111, None),
];

/// The same, bits 9:7 A64, A32, A16.
const SVM_ADDRESSES: [(u64, Option<AddressSize>); 8] = [
    (0b000, None),
    (0b001, Some(AddressSize::Bits16)),
    (0b010, Some(AddressSize::Bits32)),
    (0b011, None),
    (0b100, Some(AddressSize::Bits64)),
    (0b101, None),
    (0b110, None),
    (0b111, None),
];

/// Segment registers by number, of SDM bits 17:15 and of APM bits 12:10.
const SEGMENTS: [(u64, Option<Segment>); 8] = [
    (0, Some(Segment::Es)),
    (1, Some(Segment::Cs)),
    (2, Some(Segment::Ss)),
    (3, Some(Segment::Ds)),
    (4, Some(Segment::Fs)),
    (5, Some(Segment::Gs)),
    (6, None),
    (7, None),
];

const PORTS: [u16; 9] = [0, 0x70, 0xb2, 0xff, 0x100, 0x1f0, 0x1ff, 0x5658, 0xffff];

/// Registers with a port in DX, and garbage in the rest.
fn with_dx(port: u16) -> Gprs {
    Gprs { rdx: 0xffff_ffff_ffff_0000 | u64::from(port), ..Gprs::from_words([0x7777_7777_7777_7777; 16]) }
}

fn string(direction: Direction, width: Width, rep: bool, address: AddressSize, segment: Segment) -> IoInsn {
    IoInsn { direction, width, operand: PortOperand::String { rep, address, segment } }
}

/// For an exit that says nothing of it: DX if it can be DX, else imm8 if it can be that.
fn dx_or_imm8(direction: Direction, width: Width, port: u16, dx: u16) -> Option<IoInsn> {
    let operand = match (port == dx, port < 0x100) {
        (true, _) => PortOperand::Dx,
        (false, true) => PortOperand::Imm8(port as u8),
        (false, false) => return None,
    };
    Some(IoInsn { direction, width, operand })
}

#[test]
fn for_access_is_dx_if_dx_names_the_port() {
    for direction in [In, Out] {
        for &width in Width::ALL {
            for port in PORTS {
                for dx in PORTS {
                    let insn = IoInsn::for_access(direction, width, port, &with_dx(dx));
                    assert_eq!(insn, dx_or_imm8(direction, width, port, dx), "{port:#x}, DX {dx:#x}");
                    // Whichever it is, the access is at the port.
                    assert!(insn.is_none_or(|insn| insn.port(&with_dx(dx)) == port));
                }
            }
            // All ports, of which only DX itself can be above 0xFF.
            for port in 0..=u16::MAX {
                let (same, other) = (with_dx(port), with_dx(!port));
                let is = |gprs| IoInsn::for_access(direction, width, port, gprs).map(|insn| insn.operand);
                assert_eq!(is(&same), Some(PortOperand::Dx));
                assert_eq!(is(&other), (port < 0x100).then_some(PortOperand::Imm8(port as u8)));
            }
        }
    }
}

#[test]
fn every_vmx_qualification() {
    let (mut valid, mut invalid) = (0, 0);
    for (size, width) in VMX_SIZES {
        for (direction, name) in [(0, Out), (1, In)] {
            for string in [0, 1] {
                for rep in [0, 1] {
                    for immediate in [0, 1] {
                        for port in PORTS {
                            for dx in PORTS {
                                let qualification = size
                                    | direction << 3
                                    | string << 4
                                    | rep << 5
                                    | immediate << 6
                                    | u64::from(port) << 16;
                                let operand = match (string, immediate) {
                                    (0, 0) if port == dx => Some(PortOperand::Dx),
                                    (0, 1) if port < 0x100 => Some(PortOperand::Imm8(port as u8)),
                                    _ => None,
                                };
                                let expected = width.and_then(|width| {
                                    operand.map(|operand| IoInsn { direction: name, width, operand })
                                });
                                let gprs = with_dx(dx);
                                for reserved in [0, 0xff80, !0xffff_ffff, !0xffff_007f] {
                                    let insn = IoInsn::from_vmx_qualification(qualification | reserved, &gprs);
                                    assert_eq!(insn, expected, "{qualification:#x}, DX {dx:#x}");
                                    assert!(insn.is_none_or(|insn| insn.port(&gprs) == port));
                                }
                                valid += u32::from(expected.is_some());
                                invalid += u32::from(expected.is_none());
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(valid > 400 && invalid > 4000, "{valid}, {invalid}");
    // As a CPU writes it: in al, dx at port 0x3f8; out 0x70, al; rep in eax, dx.
    let gprs = with_dx(0x3f8);
    assert_eq!(IoInsn::from_vmx_qualification(0x03f8_0008, &gprs), Some(IoInsn::in_dx(Width::Byte)));
    assert_eq!(IoInsn::from_vmx_qualification(0x0070_0040, &gprs), Some(IoInsn::out_imm8(Width::Byte, 0x70)));
    assert_eq!(IoInsn::from_vmx_qualification(0x03f8_002b, &gprs), Some(IoInsn::in_dx(Width::Dword)));
}

#[test]
fn every_vmx_string() {
    let (mut valid, mut invalid) = (0, 0);
    for (size, width) in VMX_SIZES {
        for (number, direction) in [(0, Out), (1, In)] {
            for (is_string, rep, immediate) in (0..8).map(|bits| (bits & 1, bits >> 1 & 1, bits >> 2)) {
                for (address_number, address) in VMX_ADDRESSES {
                    for (segment_number, segment) in SEGMENTS {
                        for (port, dx) in [(0x1f0, 0x1f0), (0x70, 0x70), (0x1f0, 0x1f1), (0x70, 0x170)] {
                            let qualification =
                                size | number << 3 | is_string << 4 | rep << 5 | immediate << 6 | u64::from(port) << 16;
                            let information = (address_number << 7 | segment_number << 15) as u32;
                            // Undefined for INS, which writes to ES.
                            let segment = if direction == In { Some(Segment::Es) } else { segment };
                            let expected = match (width, address, segment) {
                                (Some(width), Some(address), Some(segment))
                                    if is_string == 1 && immediate == 0 && port == dx =>
                                {
                                    Some(string(direction, width, rep == 1, address, segment))
                                }
                                _ => None,
                            };
                            for undefined in [0, 0x7f | 0x7c00 | 0xfffc_0000] {
                                let information = information | undefined;
                                let insn = IoInsn::from_vmx_string(qualification, information, &with_dx(dx));
                                assert_eq!(insn, expected, "{qualification:#x}, {information:#x}, DX {dx:#x}");
                            }
                            valid += u32::from(expected.is_some());
                            invalid += u32::from(expected.is_none());
                        }
                    }
                }
            }
        }
    }
    // 3 sizes, 3 address sizes, REP or not; OUTS from 6 segments, INS whatever the 8 numbers; 2 ports.
    assert_eq!(valid, 3 * 3 * 2 * (6 + 8) * 2);
    assert!(invalid > valid);
}

#[test]
fn every_svm_exitinfo1() {
    let (mut valid, mut invalid) = (0, 0);
    for (size, width) in SVM_SIZES {
        for (number, direction) in [(0, Out), (1, In)] {
            for (is_string, rep) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for (address_number, address) in SVM_ADDRESSES {
                    for (segment_number, segment) in SEGMENTS {
                        for (port, dx) in [(0x1f0, 0x1f0), (0x70, 0x70), (0x70, 0x170), (0x1f0, 0x70), (0xffff, 0xffff)]
                        {
                            let info1 = number
                                | is_string << 2
                                | rep << 3
                                | size << 4
                                | address_number << 7
                                | segment_number << 10
                                | u64::from(port) << 16;
                            let segment = if direction == In { Some(Segment::Es) } else { segment };
                            let expected = match (is_string, width, address, segment) {
                                (0, Some(width), _, _) => dx_or_imm8(direction, width, port, dx),
                                (1, Some(width), Some(address), Some(segment)) if port == dx => {
                                    Some(string(direction, width, rep == 1, address, segment))
                                }
                                _ => None,
                            };
                            let gprs = with_dx(dx);
                            for reserved in [0, 0b10, 0xe000, !0xffff_ffff, !0xffff_1ffd] {
                                let insn = IoInsn::from_svm_ioio(info1 | reserved, &gprs);
                                assert_eq!(insn, expected, "{info1:#x}, DX {dx:#x}");
                                assert!(insn.is_none_or(|insn| insn.port(&gprs) == port));
                            }
                            valid += u32::from(expected.is_some());
                            invalid += u32::from(expected.is_none());
                        }
                    }
                }
            }
        }
    }
    assert!(valid > 3000 && invalid > 3000, "{valid}, {invalid}");
    // As a CPU writes it: in al, dx at port 0x3f8 in 64-bit code; rep outsw at 0x1f0 in real mode.
    let info1 = 0x03f8_0000 | 1 << 9 | 1 << 4 | 1;
    assert_eq!(IoInsn::from_svm_ioio(info1, &with_dx(0x3f8)), Some(IoInsn::in_dx(Width::Byte)));
    let info1 = 0x01f0_0000 | 3 << 10 | 1 << 7 | 1 << 5 | 1 << 3 | 1 << 2;
    let outs = string(Out, Width::Word, true, AddressSize::Bits16, Segment::Ds);
    assert_eq!(IoInsn::from_svm_ioio(info1, &with_dx(0x1f0)), Some(outs));
    assert_eq!(IoInsn::decode_in(CodeSize::Bits16, &[0xf3, 0x6f]), Ok((outs, 2)));
}

/// Linux, api.rst: KVM_EXIT_IO_IN is 0, KVM_EXIT_IO_OUT is 1; `size` in bytes.
#[test]
fn every_kvm_io() {
    for direction in 0..=u8::MAX {
        for size in 0..=u8::MAX {
            for port in PORTS {
                for dx in PORTS {
                    for count in [0, 1, 2, 0x1000, u32::MAX] {
                        let name = match direction {
                            0 => Some(In),
                            1 => Some(Out),
                            _ => None,
                        };
                        let width = match size {
                            1 => Some(Width::Byte),
                            2 => Some(Width::Word),
                            4 => Some(Width::Dword),
                            _ => None,
                        };
                        let expected = match (name, width, count) {
                            (_, _, 0) | (None, _, _) | (_, None, _) => None,
                            (Some(name), Some(width), 1) => dx_or_imm8(name, width, port, dx),
                            // Several: a string instruction, whose port is in DX.
                            (Some(direction), Some(width), _) => {
                                (port == dx).then_some(IoInsn { direction, width, operand: PortOperand::Dx })
                            }
                        };
                        let insn = IoInsn::from_kvm_io(direction, size, port, count, &with_dx(dx));
                        assert_eq!(insn, expected, "{direction}, {size}, {port:#x}, {count}, DX {dx:#x}");
                    }
                }
            }
            if direction > 2 && size > 5 {
                break; // no more of these
            }
        }
    }
}

/// What comes back of a guest that shows no registers: the port, the value or the count, and zeros.
fn shown(rax: u64, rcx: u64, port: u16) -> Gprs {
    Gprs { rax, rcx, rdx: port.into(), ..Gprs::default() }
}

const VALUE: u64 = 0x1122_3344_5566_7788;

const fn value_of(width: Width) -> u64 {
    match width {
        Width::Byte => 0x88,
        Width::Word => 0x7788,
        Width::Dword => 0x5566_7788,
    }
}

#[test]
fn every_ghcb_ioio() {
    let mut valid = 0;
    for (size, width) in SVM_SIZES {
        for (number, direction) in [(0, Out), (1, In)] {
            for (is_string, rep) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for (address_number, address) in SVM_ADDRESSES {
                    for (segment_number, segment) in SEGMENTS {
                        for port in PORTS {
                            for count in [0, 1, 2, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
                                let info1 = number
                                    | is_string << 2
                                    | rep << 3
                                    | size << 4
                                    | address_number << 7
                                    | segment_number << 10
                                    | u64::from(port) << 16;
                                let segment = if direction == In { Some(Segment::Es) } else { segment };
                                let room = match address {
                                    Some(AddressSize::Bits16) => 0xffff,
                                    Some(AddressSize::Bits32) => 0xffff_ffff,
                                    _ => u64::MAX,
                                };
                                let expected = match (is_string, width, address, segment) {
                                    (0, Some(width), _, _) => {
                                        let rax = if direction == Out { value_of(width) } else { 0 };
                                        let insn = IoInsn { direction, width, operand: PortOperand::Dx };
                                        Some((insn, shown(rax, 0, port)))
                                    }
                                    (1, Some(width), Some(address), Some(segment))
                                        if count <= room && (rep == 1 || count == 1) =>
                                    {
                                        let insn = string(direction, width, rep == 1, address, segment);
                                        Some((insn, shown(0, count, port)))
                                    }
                                    _ => None,
                                };
                                let is = IoInsn::from_ghcb_ioio(info1, count, VALUE);
                                assert_eq!(is, expected, "{info1:#x}, {count:#x}");
                                valid += u32::from(expected.is_some());
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(valid > 10_000, "{valid}");
}

#[test]
fn every_tdx_io() {
    for r12 in (0..=9).chain([0x100, 0x1_0000_0001, 1 << 63, u64::MAX]) {
        for r13 in [0, 1, 2, 3, 0x100, 0x1_0000_0000, u64::MAX] {
            for r14 in PORTS.map(u64::from).into_iter().chain([0x1_0000, 0x1_01f0, 0x1_0000_01f0, u64::MAX]) {
                let width = match r12 {
                    1 => Some(Width::Byte),
                    2 => Some(Width::Word),
                    4 => Some(Width::Dword),
                    _ => None,
                };
                let direction = match r13 {
                    0 => Some(In),
                    1 => Some(Out),
                    _ => None,
                };
                let expected = match (width, direction) {
                    (Some(width), Some(direction)) if r14 <= 0xffff => {
                        let rax = if direction == Out { value_of(width) } else { 0 };
                        let insn = IoInsn { direction, width, operand: PortOperand::Dx };
                        Some((insn, shown(rax, 0, r14 as u16)))
                    }
                    _ => None,
                };
                assert_eq!(IoInsn::from_tdx_io(r12, r13, r14, VALUE), expected, "{r12:#x}, {r13:#x}, {r14:#x}");
            }
        }
    }
}

/// Whatever the words, there is an answer and no panic; and an instruction that comes of them is one that a guest can
/// have executed at that port.
#[test]
fn any_words_at_all() {
    let mut state = 0x5eed_u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state ^ state >> 29
    };
    let mut some = 0;
    for _ in 0..300_000 {
        // Few bits as a rule: most words have two sizes, or none.
        let (a, b, c) = (next() & next(), next() & next(), next() & next() & next());
        let port = (a >> 16) as u16;
        let gprs = Gprs { rdx: if b & 1 == 0 { port.into() } else { b }, ..Gprs::from_words([c; 16]) };
        for insn in [
            IoInsn::from_vmx_qualification(a, &gprs),
            IoInsn::from_vmx_string(a, b as u32, &gprs),
            IoInsn::from_svm_ioio(a, &gprs),
            IoInsn::from_kvm_io(a as u8 & 3, b as u8 & 7, port, c as u32, &gprs),
            IoInsn::from_ghcb_ioio(a, c, b).map(|(insn, gprs)| {
                assert_eq!(gprs.rdx, u64::from(port));
                insn
            }),
        ]
        .into_iter()
        .flatten()
        {
            some += 1;
            if let PortOperand::String { segment, .. } = insn.operand {
                assert!(insn.direction == Out || segment == Segment::Es, "{insn}");
            }
            let from_text: IoInsn = insn.to_string().parse().expect("what is written is read back");
            assert_eq!(from_text, insn);
        }
        let _ = IoInsn::from_tdx_io(a & 7, b & 3, c, a);
    }
    assert!(some > 50_000, "{some}");
}

#[cfg(feature = "std")]
mod executed {
    use super::*;
    use ioemul::{IoEmulator, PortAccess, PortDevice, PortSet, SoftwareBus};

    /// Answers with the port and the count of its accesses.
    struct Echo(u32);
    impl PortDevice for Echo {
        fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
            self.0 += 1;
            gprs.rbx = gprs.rdx;
            self.0 << 16 | u32::from(access.port)
        }
        fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
            gprs.rbx = u64::from(value) << 16 | u64::from(access.port);
        }
    }

    fn emulator() -> IoEmulator {
        let mut bus = SoftwareBus::new();
        bus.attach(0x1f0..=0x1f7, Echo(0)).unwrap();
        IoEmulator::builder().ports(PortSet::all()).bus(bus).build().unwrap()
    }

    /// The exit of `rep insw` in real mode, to the guest's registers and memory.
    #[test]
    fn a_string_exit_runs_on_the_guests_registers() {
        let given = Gprs { rcx: 0xaaaa_0002, rdx: 0x1f0, rdi: 0x5_fffe, ..Gprs::default() };
        let vmx = IoInsn::from_vmx_string(0x01f0_0039, 0, &given).unwrap();
        let svm = IoInsn::from_svm_ioio(0x01f0_0000 | 1 << 7 | 1 << 5 | 1 << 3 | 1 << 2 | 1, &given).unwrap();
        assert_eq!((vmx.to_string(), vmx), ("addr16 rep insw".into(), svm));
        let (mut gprs, mut memory) = (given, [0; 4]);
        assert_eq!(emulator().read_string(svm, &mut gprs, &mut memory).unwrap(), 4);
        assert_eq!((gprs.rcx, gprs.rdi, memory), (0xaaaa_0000, 0x5_0002, [0xf0, 0x01, 0xf0, 0x01]));
    }

    /// TDX and SEV-ES: the value goes back by RAX, or by the shared buffer.
    #[test]
    fn an_exit_without_registers() {
        let mut emulator = emulator();
        let (insn, mut gprs) = IoInsn::from_tdx_io(2, 0, 0x1f4, 0).unwrap();
        emulator.execute(insn, &mut gprs).unwrap();
        assert_eq!((gprs.rax, gprs.rbx), (0x01f4, 0x1f4), "R11, and the port in DX for the device");
        let (insn, mut gprs) = IoInsn::from_ghcb_ioio(0x01f4_0000 | 1 << 5, 0, VALUE).unwrap();
        emulator.execute(insn, &mut gprs).unwrap();
        assert_eq!(gprs.rbx, 0x7788_01f4);
        let rep_insd = 0x01f0_0000 | 1 << 9 | 1 << 6 | 1 << 3 | 1 << 2 | 1;
        let (insn, mut gprs) = IoInsn::from_ghcb_ioio(rep_insd, 2, 0).unwrap();
        let mut shared = [0; 2032];
        assert_eq!(emulator.read_string(insn, &mut gprs, &mut shared).unwrap(), 8);
        assert_eq!(shared[..9], [0xf0, 1, 2, 0, 0xf0, 1, 3, 0, 0]);
        assert_eq!(gprs.rcx, 0);
    }

    /// KVM asks for each access: `count` of them, with the values one after the other.
    #[test]
    fn accesses_of_a_kvm_string() {
        let (mut emulator, given) = (emulator(), Gprs { rcx: 9, rdx: 0x1f0, rdi: 0x1000, ..Gprs::default() });
        let insn = IoInsn::from_kvm_io(0, 2, 0x1f0, 3, &given).unwrap();
        let mut values = Vec::new();
        for _ in 0..3 {
            let mut gprs = given;
            emulator.execute(insn, &mut gprs).unwrap();
            assert_eq!((gprs.rcx, gprs.rdi), (9, 0x1000), "KVM's own");
            values.push(gprs.rax as u16);
        }
        assert_eq!(values, [0x1f0; 3]);
    }
}
