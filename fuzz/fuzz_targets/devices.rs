//! Every device model, driven by a guest: whatever it does, what comes back goes with what was sent. A GuestRPC host sees
//! the requests that were sent, whole, and no more of them than the protocol has; the guest gets the replies to its own
//! requests, and a channel answers to nobody else. A latch, CMOS and a UART's scratch register hold what was written.
//!
//! Input: a script of accesses.
#![no_main]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use ioemul::devices::{Cmos, Latch, ProLiantPort, SmmMailbox, Superio, VmwareBackdoor};
use ioemul::{Direction, Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
use ioemul_fuzz::Script;
use libfuzzer_sys::fuzz_target;
use vm_superio::serial::NoEvents;
use vm_superio::{I8042Device, Serial, Trigger};

const MAX_REQUEST: usize = 64 << 10;
const MAGIC: u64 = VmwareBackdoor::MAGIC as u64;
const RPCI: u32 = 0x4943_5052;
const TCLO: u32 = 0x4f4c_4354;

struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A UART whose output is kept.
type Uart = Serial<NoInterrupt, NoEvents, Vec<u8>>;

/// What the host of GuestRPC has been asked, at all and last.
#[derive(Default)]
struct Asked {
    count: usize,
    last: Vec<u8>,
}

/// What a guest knows of a channel that it has opened.
struct Open {
    /// Opened for what the host has to say, which is nothing: what a guest says there is taken and lost.
    tclo: bool,
    cookies: Option<(u32, u32)>,
    announced: usize,
    sent: Vec<u8>,
    reply: Option<Vec<u8>>,
    received: usize,
}

struct Machine {
    emulator: IoEmulator,
    asked: Arc<Mutex<Asked>>,
    channels: [Option<Open>; 8],
    latch: Arc<Mutex<Latch>>,
    cmos: Arc<Mutex<Cmos>>,
    proliant: Arc<Mutex<ProLiantPort>>,
    uart: Arc<Mutex<Superio<Uart>>>,
    /// How many bytes were written to anything.
    written: usize,
}

fn reply_to(request: &[u8]) -> Vec<u8> {
    [b"1 ", request].concat()
}

impl Machine {
    fn new() -> Self {
        let asked = Arc::new(Mutex::new(Asked::default()));
        let host = asked.clone();
        let vmware = VmwareBackdoor::new().uuid([7; 16]).memory_mib(64).vcpu_info(2).rpc(move |request| {
            let mut asked = host.lock().unwrap();
            asked.count += 1;
            asked.last = request.to_vec();
            reply_to(request)
        });
        let firmware = SmmMailbox::new(|command, status, gprs| {
            gprs.rbx = command.into();
            gprs.rcx = status.into();
            gprs.rflags ^= Gprs::CF;
        });
        let latch = Arc::new(Mutex::new(Latch::new(0xe0)));
        let cmos = Arc::new(Mutex::new(Cmos::new([0; 128])));
        let proliant = Arc::new(Mutex::new(ProLiantPort::new(3)));
        let uart = Arc::new(Mutex::new(Superio::new(0x3f8, Serial::new(NoInterrupt, Vec::new()))));
        let mut bus = SoftwareBus::new();
        bus.attach(0x5658..=0x565b, vmware).unwrap();
        bus.attach(0xb2..=0xb3, firmware).unwrap();
        bus.attach(0xe0..=0xe3, latch.clone()).unwrap();
        bus.attach(0x70..=0x71, cmos.clone()).unwrap();
        bus.attach(0xcd4..=0xcd4, proliant.clone()).unwrap();
        bus.attach(0x3f8..=0x3ff, uart.clone()).unwrap();
        bus.attach(0x60..=0x64, Superio::new(0x60, I8042Device::new(NoInterrupt))).unwrap();
        let emulator = IoEmulator::builder().ports(PortSet::all()).bus(bus).direct().build().unwrap();
        Self { emulator, asked, channels: Default::default(), latch, cmos, proliant, uart, written: 0 }
    }

    /// An access that is a call of the backdoor.
    fn call(&mut self, insn: IoInsn, mut gprs: Gprs) -> Gprs {
        let before = gprs;
        self.emulator.execute(insn, &mut gprs).unwrap();
        assert_eq!((gprs.rbp, gprs.r8, gprs.rflags), (before.rbp, before.r8, before.rflags));
        gprs
    }

    /// The channel, if these cookies open it.
    fn channel(&mut self, id: u16, cookies: (u64, u64)) -> Option<&mut Open> {
        let shown = (cookies.0 as u32, cookies.1 as u32);
        self.channels.get_mut(usize::from(id))?.as_mut().filter(|open| open.cookies.is_none_or(|own| own == shown))
    }

    /// The cookies of a channel, or others.
    fn cookies(&self, id: u16, script: &mut Script) -> (u64, u64) {
        let own = self.channels.get(usize::from(id)).and_then(|open| open.as_ref()?.cookies).unwrap_or_default();
        match script.u8() % 8 {
            0 => (script.u32().into(), script.u32().into()),
            1 => (own.1.into(), own.0.into()),
            2 => (own.0.into(), (own.1 ^ 1 << (script.u8() % 32)).into()),
            3 => ((own.0 ^ 1 << (script.u8() % 32)).into(), own.1.into()),
            _ => (own.0.into(), own.1.into()),
        }
    }

    /// One step of the message protocol, dword by dword.
    fn step(&mut self, script: &mut Script) {
        let (step, id) = (u64::from(script.u8() % 9), u16::from(script.u8() % 10));
        let insn = script.one_of(&[IoInsn::in_dx(Width::Dword), IoInsn::out_dx(Width::Dword)]);
        let cookies = self.cookies(id, script);
        let rbx = match (step, script.u8() % 8) {
            (0, 0..4) => RPCI,
            (0, 4..6) => RPCI | 1 << 31,
            (0, 6) => TCLO | 1 << 31,
            (1, 0..6) => u32::from(script.u8()),
            (4 | 5, 0..6) => 1,
            _ => script.u32(),
        };
        let (rsi, rdi) = cookies;
        let rdx = u64::from(id) << 16 | 0x5658;
        let given = Gprs { rax: MAGIC, rbx: rbx.into(), rcx: step << 16 | 30, rdx, rsi, rdi, ..Gprs::default() };
        let asked = self.asked.lock().unwrap().count;
        let gprs = self.call(insn, given);
        assert_eq!(gprs.rcx & 0xffff, 0, "clients compare all of ECX");
        let status = (gprs.rcx >> 16) as u16;
        let success = status & 1 != 0;
        if step == 0 {
            if success {
                assert!(matches!(rbx & !(1 << 31), RPCI | TCLO));
                let tclo = rbx & !(1 << 31) == TCLO;
                let id = (gprs.rdx >> 16) as usize;
                assert!(self.channels[id].is_none(), "channel {id} was open");
                let cookies = (rbx >> 31 != 0).then_some((gprs.rsi as u32, gprs.rdi as u32));
                let open = Open { tclo, cookies, announced: 0, sent: Vec::new(), reply: None, received: 0 };
                self.channels[id] = Some(open);
            } else {
                assert!(!matches!(rbx & !(1 << 31), RPCI | TCLO) || self.channels.iter().all(Option::is_some));
            }
            return;
        }
        let now = self.asked.lock().unwrap().count;
        let Some(open) = self.channel(id, cookies) else {
            assert!(!success && now == asked, "step {step} on a channel of somebody else's");
            return;
        };
        match step {
            1 if success => {
                assert!(rbx as usize <= MAX_REQUEST);
                let Open { tclo, cookies, .. } = *open;
                *open = Open { tclo, cookies, announced: rbx as usize, sent: Vec::new(), reply: None, received: 0 };
                self.sent(id, asked, &[]);
            }
            1 => assert!(rbx as usize > MAX_REQUEST),
            2 if success => self.sent(id, asked, &rbx.to_le_bytes()),
            2 => assert_eq!(open.sent.len(), open.announced),
            3 if status & 2 != 0 => {
                assert_eq!(open.reply.as_ref().map(Vec::len), Some(gprs.rbx as usize));
                open.received = 0; // from the start, as after a checkpoint
            }
            3 => assert!(open.reply.is_none()),
            // The guest has not got it, and asks for it anew.
            4 | 5 if rbx & 1 == 0 => {
                assert!(success);
                open.reply = None;
            }
            4 if success => {
                let reply = open.reply.as_ref().expect("a reply");
                let rest = &reply[open.received..];
                let (rest, word) = (&rest[..rest.len().min(4)], (gprs.rbx as u32).to_le_bytes());
                assert_eq!(&word[..rest.len()], rest);
                open.received += rest.len();
            }
            5 if success => open.reply = None,
            // A reply that the guest does not want, or that is not there: gone or not, it is asked for again.
            5 => open.reply = None,
            6 => {
                assert!(success);
                self.channels[usize::from(id)] = None;
            }
            _ => {}
        }
        assert!(now == asked || matches!(step, 1 | 2));
    }

    /// More of a request has been taken: when it is whole, and only then, the host has been asked it.
    fn sent(&mut self, id: u16, asked_before: usize, bytes: &[u8]) {
        let asked = self.asked.lock().unwrap();
        let open = self.channels[usize::from(id)].as_mut().unwrap();
        let missing = open.announced - open.sent.len();
        open.sent.extend(&bytes[..bytes.len().min(missing)]);
        if open.sent.len() < open.announced {
            assert_eq!(asked.count, asked_before);
            return;
        }
        if open.tclo {
            assert_eq!(asked.count, asked_before);
            return;
        }
        assert_eq!((asked.count, &asked.last), (asked_before + 1, &open.sent));
        assert!(open.sent.len() <= MAX_REQUEST);
        open.reply = Some(reply_to(&open.sent));
        open.received = 0;
    }

    /// The data of a request, or of a reply, all at once.
    fn high_bandwidth(&mut self, script: &mut Script) {
        let (direction, id) = (script.one_of(&[Direction::In, Direction::Out]), u16::from(script.u8() % 9));
        let (high, low) = self.cookies(id, script);
        let len = match (self.channels.get(usize::from(id)).and_then(Option::as_ref), script.u8() % 4) {
            (Some(open), 0..2) if direction == Direction::Out => open.announced - open.sent.len(),
            (Some(Open { reply: Some(reply), received, .. }), 0..2) => reply.len() - received,
            (_, 2) => usize::from(script.u8() % 16),
            _ => script.u16().into(),
        };
        let rbx = if script.u8() == 0 { script.u32().into() } else { 0x1_0000 };
        let (rsi, rdi, rbp) = match direction {
            Direction::In => (high, 0x1000, low),
            Direction::Out => (0x1000, low, high),
        };
        let rdx = u64::from(id) << 16 | 0x5659;
        let mut gprs = Gprs { rax: MAGIC, rbx, rcx: len as u64, rdx, rsi, rdi, rbp, ..Gprs::default() };
        let asked = self.asked.lock().unwrap().count;
        match direction {
            Direction::Out => {
                let mut data = script.counted().to_vec();
                data.resize(len, 0x5a);
                self.emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, &data).unwrap();
                if len > 0 && gprs.rbx >> 16 & 1 != 0 {
                    assert!(rbx == 0x1_0000 && self.channel(id, (high, low)).is_some());
                    self.sent(id, asked, &data);
                } else {
                    assert_eq!(self.asked.lock().unwrap().count, asked);
                }
            }
            Direction::In => {
                let mut data = vec![0x77; len];
                self.emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut data).unwrap();
                assert_eq!(self.asked.lock().unwrap().count, asked);
                if len > 0 && gprs.rbx >> 16 & 1 != 0 {
                    assert_eq!(rbx, 0x1_0000);
                    let open = self.channel(id, (high, low)).expect("a channel of the guest's own");
                    let reply = open.reply.as_ref().expect("a reply");
                    assert_eq!(reply[open.received..][..len], data);
                    open.received += len;
                } else {
                    assert!(data.iter().all(|byte| *byte == 0xff));
                }
            }
        }
    }

    /// Another command of the backdoor; or one that is none, for want of the magic number, the width or the port.
    fn command(&mut self, script: &mut Script) {
        let width = script.one_of(&[Width::Dword, Width::Dword, Width::Dword, Width::Word, Width::Byte]);
        let insn = script.one_of(&[IoInsn::in_dx(width), IoInsn::out_dx(width)]);
        let rax = script.one_of(&[MAGIC, MAGIC, MAGIC | 1 << 40, MAGIC ^ 1]);
        let rdx = u64::from(script.one_of(&[0x5658_u16, 0x5658, 0x5658, 0x5659, 0x565b, 0x5657]));
        let command = u64::from(script.one_of(&[10_u16, 19, 20, 68, 7, 0, 0xffff]));
        let given = Gprs { rax, rbx: 0xb, rcx: command, rdx, rsi: 1, rdi: 2, rflags: 0x202, ..Gprs::default() };
        let gprs = self.call(insn, given);
        assert_eq!((gprs.rsi, gprs.rdi), (1, 2));
        let is_call = width == Width::Dword && rax as u32 == VmwareBackdoor::MAGIC && rdx == 0x5658;
        if !is_call {
            assert_eq!((gprs.rbx, gprs.rcx, gprs.rdx), (given.rbx, given.rcx, given.rdx));
            assert!(gprs.rax == rax || insn.direction == Direction::In);
        } else if command == 10 {
            assert_eq!((gprs.rax, gprs.rbx), (6, MAGIC));
        }
    }

    /// Plain accesses and strings, anywhere on the bus.
    fn access(&mut self, script: &mut Script) {
        let bases = [0xe0, 0x70, 0xb2, 0xcd4, 0x3f8, 0x3ff, 0x60, 0x64, 0x5658];
        let port: u16 = script.one_of(&bases) + u16::from(script.u8() % 4);
        let width = script.one_of(Width::ALL);
        let (rax, count) = (u64::from(script.u32()), usize::from(script.u8() % 8));
        let mut gprs = Gprs { rax, rcx: count as u64, rdx: port.into(), r9: 9, ..Gprs::default() };
        let bytes = usize::from(width.bytes());
        match script.u8() % 4 {
            0 => {
                self.emulator.execute(IoInsn::out_dx(width), &mut gprs).unwrap();
                self.written += bytes;
                self.holds(port, &rax.to_le_bytes()[..bytes]);
            }
            1 => {
                let expected = self.bytes_at(port, bytes);
                self.emulator.execute(IoInsn::in_dx(width), &mut gprs).unwrap();
                if let Some(expected) = expected {
                    assert_eq!(gprs.rax.to_le_bytes()[..bytes], expected);
                }
            }
            2 => {
                let data = vec![rax as u8; bytes * count];
                self.emulator.write_string(IoInsn::rep_outs(width), &mut gprs, &data).unwrap();
                self.written += data.len();
            }
            _ => {
                let mut data = vec![0; bytes * count];
                self.emulator.read_string(IoInsn::rep_ins(width), &mut gprs, &mut data).unwrap();
            }
        }
        assert_eq!(gprs.r9, 9);
    }

    /// What a latch or CMOS holds there, if it has all of it.
    fn bytes_at(&self, port: u16, len: usize) -> Option<Vec<u8>> {
        let at = usize::from(port);
        match port {
            0xe0..0xe4 => {
                self.latch.lock().unwrap().value().to_le_bytes().get(at - 0xe0..at - 0xe0 + len).map(<[u8]>::to_vec)
            }
            _ => None,
        }
    }

    /// After a write of these bytes.
    fn holds(&mut self, port: u16, bytes: &[u8]) {
        match (port, bytes) {
            (0xe0..0xe4, _) => {
                let held = self.latch.lock().unwrap().value().to_le_bytes();
                let at = usize::from(port - 0xe0);
                assert!(held[at..].iter().zip(bytes).all(|(held, byte)| held == byte));
            }
            (0x70, [index, value, ..]) => {
                let cmos = self.cmos.lock().unwrap();
                assert_eq!(cmos.bytes()[usize::from(index & 0x7f)], *value);
                assert_eq!(cmos.nmi_masked(), index & 0x80 != 0);
            }
            (0xcd4, [value, ..]) => assert_eq!(self.proliant.lock().unwrap().is_busy(), value & 0x80 != 0),
            (0x3ff, [value]) => assert_eq!(self.emulator.port_in(0x3ff, Width::Byte).unwrap(), u32::from(*value)),
            _ => {}
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let (mut machine, mut script) = (Machine::new(), Script::new(data));
    for _ in 0..400 {
        if script.is_at_end() {
            break;
        }
        match script.u8() % 8 {
            0..3 => machine.step(&mut script),
            3 | 4 => machine.high_bandwidth(&mut script),
            5 => machine.command(&mut script),
            _ => machine.access(&mut script),
        }
    }
    assert!(machine.uart.lock().unwrap().get_ref().writer().len() <= machine.written);
});
