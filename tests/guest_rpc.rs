//! A GuestRPC request through the VMware backdoor, with real instructions on a bus: the example's driver against the
//! device model.
#![cfg(feature = "std")]

#[path = "../examples/vmware_backdoor/rpc.rs"]
mod rpc;

use ioemul::devices::VmwareBackdoor;
use ioemul::{Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus, StubLayout, Width};
use rpc::{Channel, RpcError};

fn host(request: &[u8]) -> Vec<u8> {
    match request {
        b"info-get guestinfo.name" => b"1 ioemul".to_vec(),
        _ => b"0 Unknown command".to_vec(),
    }
}

/// A backdoor as it was before there were strings.
struct WordsOnly(VmwareBackdoor);

impl PortDevice for WordsOnly {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        let eax = self.0.port_in(access, gprs);
        gprs.rcx &= !(0x80 << 16); // no high bandwidth
        eax
    }

    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        self.0.port_out(access, value, gprs);
    }
}

fn emulator(layout: StubLayout, backdoor: impl PortDevice + 'static) -> IoEmulator {
    let mut bus = SoftwareBus::new();
    bus.attach(0x5658..=0x565b, backdoor).unwrap();
    IoEmulator::builder().layout(layout).ports(PortSet::from(0x5658..=0x565b)).bus(bus).build().unwrap()
}

#[test]
fn requests_by_words_and_by_strings() {
    for layout in StubLayout::ALL.iter().copied() {
        let words = emulator(layout, WordsOnly(VmwareBackdoor::new().rpc(host)));
        let strings = emulator(layout, VmwareBackdoor::new().rpc(host));
        for mut emulator in [words, strings] {
            let mut channel = Channel::open(&mut emulator).unwrap();
            assert_eq!(channel.request(b"info-get guestinfo.name").unwrap(), b"1 ioemul");
            assert_eq!(channel.request(b"frobnicate").unwrap(), b"0 Unknown command");
            assert_eq!(channel.request(b"").unwrap(), b"0 Unknown command");
            channel.close().unwrap();
        }
    }
}

#[test]
fn eight_channels_and_no_more() {
    let mut emulator = emulator(StubLayout::default(), VmwareBackdoor::new().rpc(host));
    for _ in 0..8 {
        Channel::open(&mut emulator).unwrap(); // and not closed
    }
    let error = Channel::open(&mut emulator).err().unwrap();
    assert_eq!(error.to_string(), "the host ended the exchange at the step \"open\", with status 0x0");
}

#[test]
fn without_a_message_channel_the_driver_says_so() {
    let mut emulator = emulator(StubLayout::default(), VmwareBackdoor::new());
    assert!(matches!(Channel::open(&mut emulator), Err(RpcError::Refused { step: "open", status: 0 })));
    let mut denied = IoEmulator::builder().bus(SoftwareBus::new()).build().unwrap();
    assert!(matches!(Channel::open(&mut denied), Err(RpcError::Access(Error::PortDenied { port: 0x5658, .. }))));
}

#[test]
fn a_stranger_gets_nothing() {
    let mut emulator = emulator(StubLayout::default(), VmwareBackdoor::new().rpc(host));
    let rax = VmwareBackdoor::MAGIC.into();
    let open = Gprs { rax, rbx: 0xc943_5052, rcx: 30, rdx: 0x5658, ..Gprs::default() };
    let mut opened = open;
    emulator.execute(IoInsn::in_dx(Width::Dword), &mut opened).unwrap();
    let mut size = Gprs { rax, rbx: 4, rcx: 1 << 16 | 30, ..opened };
    emulator.execute(IoInsn::in_dx(Width::Dword), &mut size).unwrap();
    let string = Gprs { rax, rbx: 0x1_0000, rcx: 4, rdx: opened.rdx & 0xffff_0000 | 0x5659, ..opened };
    // With another cookie.
    let mut gprs = Gprs { rbp: opened.rsi ^ 1, ..string };
    emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, b"abcd").unwrap();
    assert_eq!(gprs.rbx >> 16, 0);
    // Without the magic number there is nobody at the port.
    let mut reply = [0; 4];
    let mut gprs = Gprs { rax: 0, ..string };
    emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut reply).unwrap();
    assert_eq!((reply, gprs.rbx), ([0xff; 4], 0x1_0000));
    // With the cookie the string is taken.
    let mut gprs = Gprs { rbp: opened.rsi, ..string };
    emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, b"abcd").unwrap();
    assert_eq!(gprs.rbx >> 16, 1);
}
