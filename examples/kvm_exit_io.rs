//! A KVM guest's port accesses, made with all of the guest's registers in view: the KVM_EXIT_IO flow.
//!
//! ```text
//!   KVM_RUN ──▶ io_exit: direction, width, port, count, data
//!   KVM_GET_REGS ──▶ serve_io ──▶ data; and KVM_SET_REGS, if a device has changed registers
//! ```
//!
//! The guest prints a text through REP OUTSB, reads five words through REP INSW, and asks the VMware backdoor for its
//! version, which answers in EAX, EBX and ECX. Without /dev/kvm the exits that it would cause are served, without the guest.
//!
//! ```sh
//! cargo run --example kvm_exit_io --features kvm
//! ```

mod common;

use std::sync::mpsc::{self, Receiver, Sender};

use ioemul::devices::VmwareBackdoor;
use ioemul::kvm::{self, KvmIo, Next};
use ioemul::{Gprs, IoEmulator, PortAccess, PortDevice, PortSet, SoftwareBus, Width};
use kvm_bindings::{KVM_EXIT_HLT, KVM_EXIT_IO, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};

const CONSOLE: u16 = 0x3f8;
const SQUARES: u16 = 0x1f0;
const BACKDOOR: u16 = 0x5658;

const TEXT: &[u8] = b"Hello from a guest, by REP OUTSB.\n";
const TEXT_AT: usize = 0x100;
const WORDS_AT: usize = 0x200;
const WORDS: usize = 5;

/// 16-bit code, at offset 0 of a segment that also holds its data.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0xba, CONSOLE as u8, (CONSOLE >> 8) as u8,  // mov dx, CONSOLE
    0xbe, 0x00, 0x01,                           // mov si, TEXT_AT
    0xb9, TEXT.len() as u8, 0,                  // mov cx, TEXT.len()
    0xf3, 0x6e,                                 // rep outsb
    0xba, SQUARES as u8, (SQUARES >> 8) as u8,  // mov dx, SQUARES
    0xbf, 0x00, 0x02,                           // mov di, WORDS_AT
    0xb9, WORDS as u8, 0,                       // mov cx, WORDS
    0xf3, 0x6d,                                 // rep insw
    0x66, 0xb8, 0x68, 0x58, 0x4d, 0x56,         // mov eax, 0x564d5868
    0x66, 0xb9, 10, 0, 0, 0,                    // mov ecx, 10: the version
    0xba, BACKDOOR as u8, (BACKDOOR >> 8) as u8, // mov dx, BACKDOOR
    0x66, 0xed,                                 // in eax, dx
    0xf4,                                       // hlt
];

/// What the guest has printed, read, and been answered.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub printed: String,
    pub words: [u16; WORDS],
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
}

fn main() -> common::Result {
    let outcome = match Kvm::new() {
        Ok(kvm) => run_guest(&kvm)?,
        Err(error) => {
            println!("/dev/kvm: {error}. It takes a CPU with VT-x or AMD-V, the kvm module, and the right to open it.");
            println!("The exits that the guest would cause, without the guest:");
            without_kvm()?
        }
    };
    let Outcome { printed, words, eax, ebx, ecx } = outcome;
    print!("the guest printed: {printed}");
    println!("the guest read: {words:?}");
    println!("the backdoor answered: eax = {eax}, ebx = {ebx:#x}, ecx = {ecx}");
    Ok(())
}

/// Takes bytes and passes them on.
struct Console(Sender<u8>);

impl PortDevice for Console {
    fn port_out(&mut self, _: PortAccess, value: u32, _: &mut Gprs) {
        let _ = self.0.send(value as u8); // nobody may be listening any more
    }
}

/// Answers 0, 1, 4, 9, …
struct Squares(u32);

impl PortDevice for Squares {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        self.0 += 1;
        (self.0 - 1).pow(2)
    }
}

/// The devices, and what comes out of the console.
fn emulator() -> common::Result<(IoEmulator, Receiver<u8>)> {
    let (console, printed) = mpsc::channel();
    let mut bus = SoftwareBus::new();
    bus.attach(CONSOLE..=CONSOLE, Console(console))?;
    bus.attach(SQUARES..=SQUARES + 1, Squares(0))?;
    bus.attach(BACKDOOR..=BACKDOOR + 3, VmwareBackdoor::new())?;
    let ports: PortSet = "0x3f8,0x1f0-0x1f1,0x5658-0x565b".parse()?;
    Ok((IoEmulator::builder().ports(ports).bus(bus).build()?, printed))
}

impl Outcome {
    fn new(printed: &Receiver<u8>, words: &[u8], regs: &kvm_regs) -> Self {
        let printed: Vec<u8> = printed.try_iter().collect();
        let word = |i: usize| u16::from_le_bytes([words[2 * i], words[2 * i + 1]]);
        Self {
            printed: String::from_utf8_lossy(&printed).into_owned(),
            words: std::array::from_fn(word),
            eax: regs.rax as u32,
            ebx: regs.rbx as u32,
            ecx: regs.rcx as u32,
        }
    }
}

/// Runs the guest to its HLT.
pub fn run_guest(kvm: &Kvm) -> common::Result<Outcome> {
    let (mut emulator, printed) = emulator()?;
    let vm = kvm.create_vm()?;
    let mut memory = Box::new(Page([0; 0x1000]));
    memory.0[..PROGRAM.len()].copy_from_slice(PROGRAM);
    memory.0[TEXT_AT..][..TEXT.len()].copy_from_slice(TEXT);
    let regs = serve_guest(&vm, &mut memory, &mut emulator)?;
    Ok(Outcome::new(&printed, &memory.0[WORDS_AT..], &regs))
}

/// The loop of a VMM: runs a vCPU and serves its port accesses.
fn serve_guest(vm: &VmFd, memory: &mut Page, emulator: &mut IoEmulator) -> common::Result<kvm_regs> {
    let region = kvm_userspace_memory_region {
        memory_size: memory.0.len() as u64,
        userspace_addr: memory.0.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the page outlives the vCPU, and is not touched while the guest runs.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rflags: 2, ..Default::default() })?;
    loop {
        vcpu.run()?;
        let mut regs = vcpu.get_regs()?;
        let run = vcpu.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => {}
            KVM_EXIT_HLT => return Ok(regs),
            other => return Err(std::io::Error::other(format!("the guest ended with exit reason {other}")).into()),
        }
        // SAFETY: `run` is the vCPU's memory as KVM_RUN has left it, and the vCPU runs again only after `data` is done with.
        let (io, data) = unsafe { kvm::io_exit(run) }?;
        if kvm::serve_io(emulator, &mut regs, io, data)? == Next::SetRegs {
            vcpu.set_regs(&regs)?;
        }
    }
}

/// The guest's exits as KVM delivers them, and KVM's part of the instructions.
pub fn without_kvm() -> common::Result<Outcome> {
    let (mut emulator, printed) = emulator()?;
    let mut regs = kvm_regs { rdx: CONSOLE.into(), rsi: TEXT_AT as u64, rcx: TEXT.len() as u64, ..Default::default() };
    for byte in TEXT {
        (regs.rsi, regs.rcx) = (regs.rsi + 1, regs.rcx - 1); // before the exit
        let _ = kvm::serve_io(&mut emulator, &mut regs, KvmIo::new(1, 1, CONSOLE, 1)?, &mut [*byte])?;
    }
    let mut words = [0; 2 * WORDS];
    (regs.rdx, regs.rdi, regs.rcx) = (SQUARES.into(), WORDS_AT as u64, WORDS as u64);
    let _ = kvm::serve_io(&mut emulator, &mut regs, KvmIo::new(0, 2, SQUARES, WORDS as u32)?, &mut words)?;
    (regs.rax, regs.rcx, regs.rdx) = (0x564d_5868, 10, BACKDOOR.into());
    let mut data = [0; 4];
    let _ = kvm::serve_io(&mut emulator, &mut regs, KvmIo::new(0, 4, BACKDOOR, 1)?, &mut data)?;
    regs.rax = Width::Dword.merge(regs.rax, u32::from_le_bytes(data)); // after the exit
    Ok(Outcome::new(&printed, &words, &regs))
}

/// The guest's memory, from address 0 on.
#[repr(C, align(4096))]
struct Page([u8; 0x1000]);
