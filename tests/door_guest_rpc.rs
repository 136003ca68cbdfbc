//! A GuestRPC request through the VMware backdoor, with real instructions on a bus: the registers carry the protocol, four
//! bytes to an access or all of them in one REP OUTSB and one REP INSB.

use ioemul::devices::VmwareBackdoor;
use ioemul::{Gprs, IoEmulator, IoInsn, Layout, PortSet, SoftwareBus, Width};

/// What a guest's driver is made of.
struct Driver {
    emulator: IoEmulator,
    /// EDX, ESI and EDI as the open call left them: channel and cookies.
    channel: Gprs,
}

impl Driver {
    fn open(layout: Layout) -> Self {
        let backdoor = VmwareBackdoor::new().rpc(|request| match request {
            b"info-get guestinfo.name" => b"1 ioemul".to_vec(),
            _ => b"0 Unknown command".to_vec(),
        });
        let mut bus = SoftwareBus::new();
        bus.attach(0x5658..=0x565b, backdoor).unwrap();
        let ports = PortSet::from(0x5658..=0x565b);
        let emulator = IoEmulator::builder().layout(layout).ports(ports).bus(bus).build().unwrap();
        let mut driver = Self { emulator, channel: Gprs { rdx: 0x5658, ..Gprs::default() } };
        let (status, opened) = driver.step(0, 0x4943_5052 | 1 << 31);
        assert_eq!(status, 1);
        driver.channel = opened;
        driver
    }

    /// One step of the protocol: EBX in, status and registers out.
    fn step(&mut self, step: u64, ebx: u32) -> (u16, Gprs) {
        let rdx = self.channel.rdx & 0xffff_0000 | 0x5658;
        let rax = VmwareBackdoor::MAGIC.into();
        let mut gprs = Gprs { rax, rbx: ebx.into(), rcx: step << 16 | 30, rdx, ..self.channel };
        self.emulator.execute(IoInsn::in_dx(Width::Dword), &mut gprs).unwrap();
        ((gprs.rcx >> 16) as u16, gprs)
    }

    /// The registers of a string instruction on the high-bandwidth port.
    fn string(&self, len: usize) -> Gprs {
        Gprs {
            rax: VmwareBackdoor::MAGIC.into(),
            rbx: 0x1_0000,
            rcx: len as u64,
            rdx: self.channel.rdx & 0xffff_0000 | 0x5659,
            ..self.channel
        }
    }

    fn request_by_words(&mut self, request: &[u8]) -> Vec<u8> {
        assert_eq!(self.step(1, request.len() as u32).0 & 1, 1);
        for chunk in request.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            assert_eq!(self.step(2, u32::from_le_bytes(word)).0, 1);
        }
        let (status, gprs) = self.step(3, 0);
        assert_eq!(status & 3, 3);
        let len = gprs.rbx as usize;
        let mut reply = Vec::new();
        while reply.len() < len {
            let (status, gprs) = self.step(4, 1);
            assert_eq!((status, gprs.rdx >> 16), (1, 2));
            reply.extend_from_slice(&(gprs.rbx as u32).to_le_bytes());
        }
        reply.truncate(len);
        assert_eq!(self.step(5, 1).0, 1);
        reply
    }

    fn request_by_string(&mut self, request: &[u8]) -> Vec<u8> {
        assert_eq!(self.step(1, request.len() as u32).0 & 0x81, 0x81);
        let mut gprs = Gprs { rbp: self.channel.rsi, ..self.string(request.len()) };
        self.emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, request).unwrap();
        assert_eq!((gprs.rbx >> 16, gprs.rcx), (1, 0));
        let mut reply = vec![0; self.step(3, 0).1.rbx as usize];
        let mut gprs = Gprs { rbp: self.channel.rdi, ..self.string(reply.len()) };
        self.emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut reply).unwrap();
        assert_eq!((gprs.rbx >> 16, gprs.rcx), (1, 0));
        assert_eq!(self.step(5, 1).0, 1);
        reply
    }
}

#[test]
fn a_request_by_words_and_by_strings() {
    for layout in Layout::ALL {
        let mut driver = Driver::open(layout);
        assert_eq!(driver.request_by_words(b"info-get guestinfo.name"), b"1 ioemul");
        assert_eq!(driver.request_by_string(b"info-get guestinfo.name"), b"1 ioemul");
        assert_eq!(driver.request_by_string(b"frobnicate"), b"0 Unknown command");
        assert_eq!(driver.request_by_words(b""), b"0 Unknown command");
        assert_eq!(driver.step(6, 0).0, 1);
        assert_eq!(driver.step(1, 4).0, 0); // closed
    }
}

#[test]
fn a_stranger_gets_nothing() {
    let mut driver = Driver::open(Layout::default());
    driver.step(1, 4);
    driver.channel.rsi ^= 1; // not the cookie
    let mut gprs = Gprs { rbp: driver.channel.rsi, ..driver.string(4) };
    driver.emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, b"abcd").unwrap();
    assert_eq!(gprs.rbx >> 16, 0);
    // Without the magic number there is nobody at the port.
    let mut gprs = Gprs { rax: 0, ..driver.string(4) };
    let mut reply = [0; 4];
    driver.emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut reply).unwrap();
    assert_eq!((reply, gprs.rbx), ([0xff; 4], 0x1_0000));
}
