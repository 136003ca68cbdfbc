//! A KVM guest's port access, made with all of the guest's registers in view: the KVM_EXIT_IO flow.
//!
//! ```text
//!   KVM_RUN ──▶ exit: port, size, data
//!   KVM_GET_REGS ──▶ Gprs::from ──▶ execute ──▶ write_back ──▶ KVM_SET_REGS
//!   an IN's result ──▶ data, from where KVM takes it into RAX when the guest goes on
//! ```
//!
//! Most VMMs look at `data` alone: for a UART that is enough. For a mailbox it is not, and here the guest calls the VMware
//! backdoor, which answers in EAX, EBX and ECX.
//!
//! RIP stays as KVM has it: at the instruction, which KVM completes at the next KVM_RUN. INS and OUTS, for which `data` may
//! hold several elements, are refused here: this guest has none.
//!
//! ```sh
//! cargo run --example kvm_exit_io --features kvm
//! ```

mod common;

use std::io;

use ioemul::devices::VmwareBackdoor;
use ioemul::{Direction, Gprs, IoEmulator, IoInsn, PortOperand, PortSet, SoftwareBus, Width};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};

/// 16-bit code: ask the backdoor for its version, and stop.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0x66, 0xb8, 0x68, 0x58, 0x4d, 0x56, // mov eax, 0x564d5868
    0x66, 0xb9, 10, 0, 0, 0,            // mov ecx, 10
    0xba, 0x58, 0x56,                   // mov dx, 0x5658
    0x66, 0xed,                         // in eax, dx
    0xf4,                               // hlt
];
const LOAD_ADDRESS: u64 = 0x1000;

fn main() -> common::Result {
    let mut bus = SoftwareBus::new();
    bus.attach(0x5658..=0x565b, VmwareBackdoor::new())?;
    let mut emulator = IoEmulator::builder().ports(PortSet::from(0x5658..=0x565b)).bus(bus).build()?;
    let regs = match Kvm::new() {
        Ok(kvm) => run_guest(&kvm, &mut emulator)?,
        Err(error) => {
            println!("/dev/kvm: {error}. It takes a CPU with VT-x or AMD-V, the kvm module, and the right to open it.");
            println!("The exit that the guest would cause, without the guest:");
            let mut regs = kvm_regs {
                rax: 0x564d_5868,
                rcx: 10,
                rdx: 0x5658,
                rip: 0x100f,
                rsp: 0x2000,
                rflags: 2,
                ..Default::default()
            };
            let mut data = [0; 4];
            serve(&mut emulator, &mut regs, Direction::In, 0x5658, &mut data)?;
            regs.rax = u32::from_le_bytes(data).into(); // KVM's part
            regs
        }
    };
    println!("eax = {}, ebx = {:#x}, ecx = {}", regs.rax, regs.rbx, regs.rcx);
    println!("rip = {:#x}, rsp = {:#x}: KVM's own", regs.rip, regs.rsp);
    Ok(())
}

/// What a VMM does on KVM_EXIT_IO.
fn serve(
    emulator: &mut IoEmulator,
    regs: &mut kvm_regs,
    direction: Direction,
    port: u16,
    data: &mut [u8],
) -> common::Result {
    let width = match data.len() {
        1 => Width::Byte,
        2 => Width::Word,
        4 => Width::Dword,
        len => return Err(io::Error::other(format!("{len} bytes at port {port:#x} are no single IN or OUT")).into()),
    };
    let mut gprs = Gprs::from(&*regs);
    // KVM does not say which form the guest used. If DX is not the port, it was in the instruction.
    let operand = match u8::try_from(port) {
        Ok(imm8) if gprs.rdx as u16 != port => PortOperand::Imm8(imm8),
        _ => PortOperand::Dx,
    };
    emulator.execute(IoInsn { direction, width, operand }, &mut gprs)?;
    gprs.write_back(regs);
    if direction == Direction::In {
        data.copy_from_slice(&gprs.rax.to_le_bytes()[..data.len()]);
    }
    Ok(())
}

fn run_guest(kvm: &Kvm, emulator: &mut IoEmulator) -> common::Result<kvm_regs> {
    let vm = kvm.create_vm()?;
    let mut memory = Page([0; 0x1000]);
    memory.0[..PROGRAM.len()].copy_from_slice(PROGRAM);
    let region = kvm_userspace_memory_region {
        guest_phys_addr: LOAD_ADDRESS,
        memory_size: memory.0.len() as u64,
        userspace_addr: memory.0.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the page outlives the virtual machine, and is not touched while the guest runs.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: LOAD_ADDRESS, rflags: 2, ..Default::default() })?;
    loop {
        let (direction, port, data) = match vcpu.run()? {
            VcpuExit::IoIn(port, data) => (Direction::In, port, std::ptr::from_mut(data)),
            VcpuExit::IoOut(port, data) => (Direction::Out, port, std::ptr::from_ref(data).cast_mut()),
            _ => return Ok(vcpu.get_regs()?), // HLT, or something that the program does not do
        };
        let mut regs = vcpu.get_regs()?;
        // SAFETY: it is in the memory shared with KVM, which is mapped as long as `vcpu` lives and used by nobody until
        // the next `run`. (The reference that KVM's wrapper gives would keep `vcpu` borrowed.)
        serve(emulator, &mut regs, direction, port, unsafe { &mut *data })?;
        vcpu.set_regs(&regs)?;
    }
}

/// The guest's memory.
#[repr(C, align(4096))]
struct Page([u8; 0x1000]);
