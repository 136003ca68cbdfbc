//! VMware's backdoor: a dword IN from port 0x5658 with a magic number in EAX is a call to the hypervisor, with a command
//! in ECX and answers in EAX, EBX, ECX and EDX. Over a channel of it go GuestRPC requests, in strings on the port next to it.
//!
//! Under VMware, or QEMU with `vmport=on`, `--native` asks the real one. VMware itself answers in ring 3 whatever the I/O
//! permissions say; QEMU wants them.
//!
//! ```sh
//! cargo run --example vmware_backdoor
//! sudo target/debug/examples/vmware_backdoor --native
//! ```

#[path = "../common/mod.rs"]
mod common;

use ioemul::devices::VmwareBackdoor;
use ioemul::guest_rpc::{GuestRpc, GuestRpcError};
use ioemul::{Gprs, IoEmulator, IoInsn, SoftwareBus, Width};

const VERSION: u64 = 10;
const UUID: u64 = 19;
const MEMORY_SIZE: u64 = 20;
const VCPU_INFO: u64 = 68;

fn main() -> common::Result {
    let on = common::on("vmware_backdoor");
    let uuid = *b"\x56\x4d\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d";
    let mut bus = SoftwareBus::new();
    let host = |request: &[u8]| match request {
        b"info-get guestinfo.greeting" => b"1 hello from the host".to_vec(),
        _ => b"0 Unknown command".to_vec(),
    };
    let backdoor = VmwareBackdoor::new().uuid(uuid).memory_mib(4096).vcpu_info(1 << 3).rpc(host);
    bus.attach(0x5658..=0x565b, backdoor)?;
    common::run(on, (0x5658..=0x565b).into(), bus, |emulator| {
        let version = call(emulator, VERSION)?;
        if version.rbx as u32 != VmwareBackdoor::MAGIC {
            println!("\nNobody answers: this is no VMware virtual machine.");
            return Ok(());
        }
        println!("\nversion {}, product {}", version.rax as u32, version.rcx as u32);

        let answer = call(emulator, UUID)?;
        let words = [answer.rax, answer.rbx, answer.rcx, answer.rdx];
        print!("\nUUID ");
        for byte in words.into_iter().flat_map(|word| (word as u32).to_le_bytes()) {
            print!("{byte:02x}");
        }
        println!();

        let memory = call(emulator, MEMORY_SIZE)?.rax as u32;
        println!("\nmemory size {memory} (MiB under VMware, bytes under QEMU)");

        let flags = call(emulator, VCPU_INFO)?.rax as u32;
        let verdict = if flags >> 31 == 0 { "known" } else { "not known" };
        println!("\nvCPU information {verdict}, flags {flags:#x}");

        guest_rpc(emulator, "info-get guestinfo.greeting")
    })
}

/// A request that VMware's tools know as `vmware-rpctool "info-get …"`.
fn guest_rpc(emulator: &mut IoEmulator, request: &str) -> common::Result {
    match GuestRpc::open(emulator) {
        Ok(mut channel) => {
            let reply = channel.request(request.as_bytes())?;
            println!("\nGuestRPC {request:?}: {:?}", String::from_utf8_lossy(&reply));
            Ok(channel.close()?)
        }
        Err(error @ GuestRpcError::Refused { .. }) => {
            println!("\nno GuestRPC here: {error}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn call(emulator: &mut IoEmulator, command: u64) -> common::Result<Gprs> {
    let mut gprs = Gprs {
        rax: VmwareBackdoor::MAGIC.into(),
        rcx: command,
        rdx: VmwareBackdoor::PORT.into(),
        ..common::recognizable()
    };
    common::execute(emulator, IoInsn::in_dx(Width::Dword), &mut gprs)?;
    Ok(gprs)
}
