//! From what a hypervisor is told of an exit.

use crate::{AddressSize, Direction, Gprs, IoInsn, PortOperand, Segment, Width};

/// Bits `high` to `low` of a word.
const fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

const fn width_of(bytes: u64) -> Option<Width> {
    match bytes {
        1 => Some(Width::Byte),
        2 => Some(Width::Word),
        4 => Some(Width::Dword),
        _ => None,
    }
}

/// A segment register by its number, the same for both vendors.
const fn segment_of(number: u64) -> Option<Segment> {
    match number {
        0 => Some(Segment::Es),
        1 => Some(Segment::Cs),
        2 => Some(Segment::Ss),
        3 => Some(Segment::Ds),
        4 => Some(Segment::Fs),
        5 => Some(Segment::Gs),
        _ => None,
    }
}

/// INS, which has no segment to say, or OUTS.
const fn string(direction: Direction, width: Width, rep: bool, address: AddressSize, segment: u64) -> Option<IoInsn> {
    match (direction, segment_of(segment)) {
        (Direction::In, _) => Some(IoInsn::string(direction, width, rep, address)),
        (Direction::Out, Some(segment)) => Some(IoInsn::string_in(segment, direction, width, rep, address)),
        (Direction::Out, None) => None,
    }
}

/// The instruction that a guest has executed, from what a hypervisor is told of its exit: no bytes are fetched and decoded.
///
/// | exit | says | does not say |
/// |---|---|---|
/// | [VMX](IoInsn::from_vmx_qualification) | DX or imm8 | of INS and OUTS the address size and segment: they are in [another field](IoInsn::from_vmx_string) |
/// | [SVM](IoInsn::from_svm_ioio) | of INS and OUTS everything | DX or imm8 |
/// | [KVM](IoInsn::from_kvm_io) | how many elements | DX or imm8; INS and OUTS |
/// | [GHCB](IoInsn::from_ghcb_ioio) | count of INS and OUTS | all registers but RAX |
/// | [TDX](IoInsn::from_tdx_io) | | all registers but RAX |
///
/// Execute the result by `IoEmulator::execute` or [`CodeTable::execute`](crate::CodeTable::execute), INS and OUTS by `read_string`
/// and `write_string`. None of them moves RIP: add the VM-exit instruction length (VMX), or take the next RIP from EXITINFO2
/// (SVM); KVM does it itself. `None` means that exit and registers do not fit together, or that another of these functions is
/// for this instruction: fetch and decode the bytes instead.
///
/// Fields are numbered as in the manuals. Reserved bits are not looked at, as the manuals ask of software (SDM vol. 1,
/// 1.3.2).
///
/// ```
/// use ioemul::{Gprs, IoInsn, Width};
/// let gprs = Gprs { rdx: 0xcfc, ..Gprs::default() };
/// // VMX: 4 bytes, IN, port 0xcfc, in DX.
/// assert_eq!(IoInsn::from_vmx_qualification(0xcfc << 16 | 1 << 3 | 3, &gprs), Some(IoInsn::in_dx(Width::Dword)));
/// // SVM: the same.
/// assert_eq!(IoInsn::from_svm_ioio(0xcfc << 16 | 1 << 6 | 1, &gprs), Some(IoInsn::in_dx(Width::Dword)));
/// // Registers of another exit.
/// assert_eq!(IoInsn::from_svm_ioio(0xcfc << 16 | 1 << 6 | 1, &Gprs::default()), None);
/// ```
impl IoInsn {
    /// IN or OUT of this kind at `port`, for an exit that does not say how the port was named: by DX if DX holds it, else by an
    /// immediate byte. `None` where neither can: DX is another port, and `port` is above 0xFF.
    ///
    /// Where DX holds a port below 0x100, the guest may have used an immediate byte all the same. The access is the same one
    /// then, and only who looks at [`PortAccess::insn`](crate::PortAccess::insn), or a quirk that is for
    /// [one form alone](crate::TriggerForm), sees DX in its place. Firmware and devices that take the port from RDX find it
    /// there in either case. With an immediate byte, RDX is whatever the guest has in it.
    pub const fn for_access(direction: Direction, width: Width, port: u16, gprs: &Gprs) -> Option<IoInsn> {
        let operand = match port {
            _ if gprs.rdx as u16 == port => PortOperand::Dx,
            0..=0xff => PortOperand::Imm8(port as u8),
            _ => return None,
        };
        Some(IoInsn { direction, width, operand })
    }

    /// IN or OUT, from the exit qualification of a VM exit with basic exit reason 30 (SDM vol. 3C, "Basic VM-Exit
    /// Information", 28.2.1, table 28-5 "Exit Qualification for I/O Instructions"; 27.2.1 and 27-5 in older editions):
    ///
    /// | bits | |
    /// |---|---|
    /// | 2:0 | size: 0, 1, 3 for 1, 2, 4 bytes |
    /// | 3 | 0 OUT, 1 IN |
    /// | 4 | string instruction |
    /// | 5 | REP |
    /// | 6 | 0 DX, 1 immediate |
    /// | 31:16 | port |
    ///
    /// REP counts for string instructions alone. The guest's registers at the exit are `gprs`.
    ///
    /// `None`: another size; an immediate port above 0xFF; DX, and `gprs` has another port in it (they are not the
    /// registers of this exit); and INS or OUTS, for which [`Self::from_vmx_string`] needs one field more.
    pub const fn from_vmx_qualification(qualification: u64, gprs: &Gprs) -> Option<IoInsn> {
        let Some(exit) = VmxExit::new(qualification, gprs) else { return None };
        let VmxExit { direction, width, port, is_string, immediate, .. } = exit;
        let operand = match (is_string, immediate) {
            (true, _) => return None,
            (false, true) => PortOperand::Imm8(port as u8),
            (false, false) => PortOperand::Dx,
        };
        Some(IoInsn { direction, width, operand })
    }

    /// INS or OUTS, from the exit qualification and the VM-exit instruction-information field (SDM vol. 3C, "Information for
    /// VM Exits Due to Instruction Execution", 28.2.5, table "Format of the VM-Exit Instruction-Information Field as Used for
    /// INS and OUTS"; 27.2.4 and 27-8 in older editions):
    ///
    /// | bits | |
    /// |---|---|
    /// | 9:7 | address size: 0, 1, 2 for 16, 32, 64 bits |
    /// | 17:15 | segment of OUTS: 0 to 5 for ES, CS, SS, DS, FS, GS; undefined for INS |
    ///
    /// CPUs without bit 54 of IA32_VMX_BASIC do not have that field: decode the guest's bytes there. The count is in RCX of the
    /// guest, and DF in its RFLAGS.
    ///
    /// `None`: as [`Self::from_vmx_qualification`]; an immediate port; another address size; another segment, on OUTS;
    /// and IN or OUT.
    pub const fn from_vmx_string(qualification: u64, information: u32, gprs: &Gprs) -> Option<IoInsn> {
        let Some(exit) = VmxExit::new(qualification, gprs) else { return None };
        let address = match bits(information as u64, 9, 7) {
            0 => AddressSize::Bits16,
            1 => AddressSize::Bits32,
            2 => AddressSize::Bits64,
            _ => return None,
        };
        match exit {
            VmxExit { is_string: true, immediate: false, direction, width, rep, .. } => {
                string(direction, width, rep, address, bits(information as u64, 17, 15))
            }
            _ => None,
        }
    }

    /// IN, OUT, INS or OUTS, from EXITINFO1 of a #VMEXIT with code VMEXIT_IOIO, 0x7B (APM vol. 2, 15.10.2, figure 15-2
    /// "EXITINFO1 for IOIO Intercept"):
    ///
    /// | bits | |
    /// |---|---|
    /// | 0 | TYPE: 0 OUT, 1 IN |
    /// | 2 | STR: string instruction |
    /// | 3 | REP |
    /// | 4, 5, 6 | SZ8, SZ16, SZ32: operand size |
    /// | 7, 8, 9 | A16, A32, A64: address size |
    /// | 12:10 | SEG: segment of OUTS: 0 to 5 for ES, CS, SS, DS, FS, GS |
    /// | 31:16 | PORT |
    ///
    /// REP, address size and segment count for string instructions alone. The guest's registers at the exit are `gprs`.
    /// Whether IN or OUT had the port in DX is not in EXITINFO1: see [`Self::for_access`].
    ///
    /// `None`: not exactly one operand size; a string instruction with not exactly one address size, or whose port DX does not
    /// hold; another segment, on OUTS; IN or OUT with a port that is neither in DX nor below 0x100.
    pub const fn from_svm_ioio(info1: u64, gprs: &Gprs) -> Option<IoInsn> {
        let direction = if bits(info1, 0, 0) != 0 { Direction::In } else { Direction::Out };
        let Some(width) = width_of(bits(info1, 6, 4)) else { return None };
        let port = bits(info1, 31, 16) as u16;
        if bits(info1, 2, 2) == 0 {
            return Self::for_access(direction, width, port, gprs);
        }
        let address = match bits(info1, 9, 7) {
            0b001 => AddressSize::Bits16,
            0b010 => AddressSize::Bits32,
            0b100 => AddressSize::Bits64,
            _ => return None,
        };
        if port != gprs.rdx as u16 {
            return None;
        }
        string(direction, width, bits(info1, 3, 3) != 0, address, bits(info1, 12, 10))
    }

    /// One access of a KVM_EXIT_IO, from `direction`, `size`, `port` and `count` of `io` in `struct kvm_run` (Linux,
    /// Documentation/virt/kvm/api.rst, section 5): `direction` is 0 for IN and 1 for OUT, `size` is 1, 2 or 4 bytes.
    ///
    /// KVM runs INS and OUTS itself, memory, RCX, RSI and RDI included, and asks for the accesses alone: `count` of them, one
    /// after the other, with their values at `data_offset`. So this is IN or OUT in all cases, to be executed once for each
    /// value. Only a string instruction has more than one, and its port is in DX. (With one, nothing tells the two apart.
    /// With the feature `kvm`, `kvm::serve_io` does all of this, and says what KVM takes back.)
    ///
    /// `None`: another direction or size; a count of 0; a port that is neither in DX nor below 0x100; more than one
    /// access, and DX is another port.
    pub const fn from_kvm_io(direction: u8, size: u8, port: u16, count: u32, gprs: &Gprs) -> Option<IoInsn> {
        let direction = match direction {
            0 => Direction::In,
            1 => Direction::Out,
            _ => return None,
        };
        match width_of(size as u64) {
            Some(width) if count == 1 || (count > 1 && gprs.rdx as u16 == port) => {
                Self::for_access(direction, width, port, gprs)
            }
            _ => None,
        }
    }

    /// IN, OUT, INS or OUTS of an SEV-ES guest, from SW_EXITINFO1, SW_EXITINFO2 and RAX of its GHCB with SW_EXITCODE 0x7B
    /// (AMD 56421, SEV-ES Guest-Hypervisor Communication Block Standardization, section 4, table "List of Supported
    /// Non-Automatic Events", IOIO_PROT); and the registers to execute it with.
    ///
    /// SW_EXITINFO1 is as EXITINFO1 for [`Self::from_svm_ioio`]. For INS and OUTS, SW_EXITINFO2 is how many elements there
    /// are, and their data is at SW_SCRATCH, the first element first: `read_string` and `write_string` take that buffer,
    /// whatever the guest's DF.
    ///
    /// The guest keeps all other registers to itself. Those that come back here have the port in DX (so IN and OUT are always
    /// those with DX), AL, AX or EAX of an OUT in RAX, the count in RCX, and are 0 elsewhere. An IN answers by RAX.
    ///
    /// `None`: as [`Self::from_svm_ioio`]; a count that the address size has no room for; more or fewer than one element
    /// without REP.
    pub const fn from_ghcb_ioio(info1: u64, info2: u64, rax: u64) -> Option<(IoInsn, Gprs)> {
        let Some(insn) = Self::from_svm_ioio(info1, &at_port(bits(info1, 31, 16) as u16)) else { return None };
        let mut gprs = at_port(bits(info1, 31, 16) as u16);
        match insn.operand {
            PortOperand::String { rep, address, .. } => {
                if info2 & !address.mask() != 0 || (!rep && info2 != 1) {
                    return None;
                }
                gprs.rcx = info2;
            }
            _ => gprs.rax = written(insn, rax),
        }
        Some((insn, gprs))
    }

    /// IN or OUT of a trust domain, from R12 to R15 of its TDG.VP.VMCALL<Instruction.IO>, R11 being 30 (Intel TDX
    /// Guest-Host-Communication Interface, 3.9); and the registers to execute it with.
    ///
    /// | register | |
    /// |---|---|
    /// | R12 | size: 1, 2 or 4 bytes |
    /// | R13 | 0 IN, 1 OUT |
    /// | R14 | port |
    /// | R15 | data of an OUT |
    ///
    /// There are no string instructions: the guest makes their accesses one by one. It keeps all other registers to itself.
    /// Those that come back here have the port in DX (so the form is always that with DX), AL, AX or EAX of an OUT in RAX, and
    /// are 0 elsewhere. What an IN has left in RAX is to be given back in R11.
    ///
    /// `None`: another size or direction; a port above 0xFFFF.
    pub const fn from_tdx_io(r12: u64, r13: u64, r14: u64, r15: u64) -> Option<(IoInsn, Gprs)> {
        let direction = match r13 {
            0 => Direction::In,
            1 => Direction::Out,
            _ => return None,
        };
        match width_of(r12) {
            Some(width) if r14 <= 0xffff => {
                let insn = IoInsn { direction, width, operand: PortOperand::Dx };
                let mut gprs = at_port(r14 as u16);
                gprs.rax = written(insn, r15);
                Some((insn, gprs))
            }
            _ => None,
        }
    }
}

/// Registers of a guest that shows none, with the port of its access in DX.
const fn at_port(port: u16) -> Gprs {
    let mut gprs = Gprs::from_words([0; 16]);
    gprs.rdx = port as u64;
    gprs
}

/// As much of a value as an OUT writes.
const fn written(insn: IoInsn, value: u64) -> u64 {
    match insn.direction {
        Direction::In => 0,
        Direction::Out => value & insn.width.mask() as u64,
    }
}

/// The fields of the exit qualification.
struct VmxExit {
    direction: Direction,
    width: Width,
    is_string: bool,
    rep: bool,
    immediate: bool,
    port: u16,
}

impl VmxExit {
    /// `None` where size and port cannot be.
    const fn new(qualification: u64, gprs: &Gprs) -> Option<Self> {
        let Some(width) = width_of(bits(qualification, 2, 0) + 1) else { return None };
        let (port, immediate) = (bits(qualification, 31, 16) as u16, bits(qualification, 6, 6) != 0);
        if if immediate { port > 0xff } else { port != gprs.rdx as u16 } {
            return None;
        }
        Some(Self {
            direction: if bits(qualification, 3, 3) != 0 { Direction::In } else { Direction::Out },
            width,
            is_string: bits(qualification, 4, 4) != 0,
            rep: bits(qualification, 5, 5) != 0,
            immediate,
            port,
        })
    }
}
