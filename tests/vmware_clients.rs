//! The VMware model against its clients. What iPXE, OpenBSD's vmt(4), open-vm-tools and Linux put into the registers, and
//! what of the registers they look at afterwards, is written down here call by call, from their public sources; and the
//! crate `vmw_backdoor`, unmodified, runs its own instructions (`vmware_clients/vmw_backdoor_crate.rs`).
#![cfg(feature = "std")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioemul::devices::VmwareBackdoor;
use ioemul::{
    DeviceError, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus, StringError, StubLayout, Width,
};

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[path = "vmware_clients/vmw_backdoor_crate.rs"]
mod vmw_backdoor_crate;

const MAGIC: u32 = 0x564d_5868;
const RPCI: u32 = 0x4943_5052;
const TCLO: u32 = 0x4f4c_4354;
const COOKIES: u32 = 1 << 31;

/// The model in every way in which it can be reached: without machine code, and through stubs of each layout.
fn machines(backdoor: impl Fn() -> Box<dyn PortDevice>) -> Vec<IoEmulator> {
    let machine = |layout: Option<StubLayout>| {
        let mut bus = SoftwareBus::new();
        bus.attach(0x5658..=0x565b, Boxed(backdoor())).unwrap();
        let builder = IoEmulator::builder().ports(PortSet::from(0x5658..=0x565b)).bus(bus);
        match layout {
            Some(layout) => builder.layout(layout).build().unwrap(),
            None => builder.direct().build().unwrap(),
        }
    };
    std::iter::once(None).chain(StubLayout::ALL.iter().copied().map(Some)).map(machine).collect()
}

struct Boxed(Box<dyn PortDevice>);

impl PortDevice for Boxed {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.0.try_access(access, value, gprs)
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.0.try_read_string(access, data, gprs)
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.0.try_write_string(access, data, gprs)
    }
}

/// What the host has been asked.
type Asked = Arc<Mutex<Vec<Vec<u8>>>>;

fn backdoor(asked: &Asked) -> VmwareBackdoor {
    let asked = asked.clone();
    VmwareBackdoor::new()
        .clock(|| Duration::new(0x2_6543_2100, 250_000_999))
        .frequencies(0x1_2345_6789, 66_000_000)
        .rpc(move |request| {
            asked.lock().unwrap().push(request.to_vec());
            match request {
                b"info-get guestinfo.name" | b"info-get guestinfo.name\0" => b"1 ioemul".to_vec(),
                b"log hello\0" | b"tools.set.version 2147483647\0" => b"1 ".to_vec(),
                _ => b"0 Unknown command".to_vec(),
            }
        })
}

/// A value that a client puts into a register.
#[derive(Clone, Copy)]
enum Given {
    Word(u32),
    /// The channel's number in the high word, a port in the low one.
    ChannelAnd(u16),
    CookieHigh,
    CookieLow,
}
use Given::{ChannelAnd, CookieHigh, CookieLow, Word};

/// What a client wants of a register.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Is(u32),
    IsNot(u32),
    Bits { mask: u32, value: u32 },
    NotBits { mask: u32, value: u32 },
}
use Wanted::{Bits, Is, IsNot, NotBits};

impl Wanted {
    fn is_met_by(self, word: u32) -> bool {
        match self {
            Is(value) => word == value,
            IsNot(value) => word != value,
            Bits { mask, value } => word & mask == value,
            NotBits { mask, value } => word & mask != value,
        }
    }
}

/// `MESSAGE_STATUS_SUCCESS` and its like in the high word.
const fn status(mask: u32, value: u32) -> Wanted {
    Bits { mask: mask << 16, value: value << 16 }
}

const SUCCESS: Wanted = status(1, 1);
const HIGH_WORD: u32 = 0xffff_0000;
const LOW_WORD: u32 = 0xffff;

#[derive(Clone, Copy)]
enum By {
    /// IN EAX, DX.
    Word,
    /// REP OUTSB of these bytes.
    Outs(&'static [u8]),
    /// REP INSB, which has to bring these bytes.
    Ins(&'static [u8]),
}

/// One call of the backdoor: EAX is the magic number, and what is not given is whatever was there.
struct Call {
    what: &'static str,
    by: By,
    given: &'static [(&'static str, Given)],
    wanted: &'static [(&'static str, Wanted)],
}

/// A word by IN: what it is for, what is given, what is wanted.
macro_rules! call {
    ($what:expr, $given:expr, $wanted:expr $(,)?) => {
        Call { what: $what, by: By::Word, given: $given, wanted: $wanted }
    };
}

/// A client's program, from its first call to its last.
struct Client {
    source: &'static str,
    calls: &'static [Call],
}

/// The number and cookies of the channel that was opened last.
#[derive(Default)]
struct Channel {
    edx: u32,
    esi: u32,
    edi: u32,
}

impl Client {
    fn run(&self, machine: &mut IoEmulator) {
        self.run_on(machine, Channel::default());
    }

    fn run_on(&self, machine: &mut IoEmulator, mut channel: Channel) {
        for call in self.calls {
            let after = call.make(machine, &channel);
            let is_open = call.given.iter().any(|(name, given)| *name == "ebx" && is_protocol(*given));
            if is_open {
                let word = |name| after.get(name).unwrap() as u32;
                channel = Channel { edx: word("edx"), esi: word("esi"), edi: word("edi") };
            }
            for (name, wanted) in call.wanted {
                let word = after.get(name).unwrap() as u32;
                assert!(wanted.is_met_by(word), "{}: {}: {name} is {word:#x}, not {wanted:x?}", self.source, call.what);
            }
        }
    }
}

fn is_protocol(given: Given) -> bool {
    matches!(given, Word(word) if matches!(word & !COOKIES, RPCI | TCLO))
}

impl Call {
    fn make(&self, machine: &mut IoEmulator, channel: &Channel) -> Gprs {
        let noise = std::array::from_fn(|word| 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(word as u64 + 1));
        let mut gprs = Gprs { rflags: 0x202, ..Gprs::from_words(noise) };
        for (name, given) in [("eax", Word(MAGIC))].iter().chain(self.given) {
            let value = match *given {
                Word(word) => word,
                ChannelAnd(port) => channel.edx & HIGH_WORD | u32::from(port),
                CookieHigh => channel.esi,
                CookieLow => channel.edi,
            };
            gprs.set(name, value.into()).unwrap();
        }
        match self.by {
            By::Word => machine.execute(IoInsn::in_dx(Width::Dword), &mut gprs).unwrap(),
            By::Outs(data) => {
                gprs.rcx = data.len() as u64;
                machine.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, data).unwrap();
            }
            By::Ins(expected) => {
                gprs.rcx = expected.len() as u64;
                let mut data = vec![0; expected.len()];
                machine.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut data).unwrap();
                assert_eq!(data, expected, "{}", self.what);
            }
        }
        gprs
    }
}

/// A step of a message without cookies, as iPXE makes it.
macro_rules! ipxe {
    ($what:literal, $step:literal, $ebx:expr, $($wanted:tt)*) => {
        call!(
            $what,
            &[("ebx", Word($ebx)), ("ecx", Word($step << 16 | 30)), ("edx", ChannelAnd(0x5658))],
            &[$($wanted)*],
        )
    };
}

/// It compares all of ECX, and has no cookies and no strings.
const IPXE: Client = Client {
    source: "iPXE src/arch/x86/interface/vmware/guestrpc.c, src/arch/x86/include/ipxe/guestrpc.h and vmware.h",
    calls: &[
        call!("version", &[("ebx", Word(0)), ("ecx", Word(10)), ("edx", Word(0x5658))], &[("ebx", Is(MAGIC))]),
        call!("open", &[("ebx", Word(RPCI)), ("ecx", Word(30)), ("edx", Word(0x5658))], &[("ecx", Is(0x0001_0000))]),
        ipxe!("command length", 1, 23, ("ecx", Is(0x0081_0000))),
        ipxe!("command data", 2, word(*b"info"), ("ecx", Is(0x0001_0000))),
        ipxe!("command data", 2, word(*b"-get"), ("ecx", Is(0x0001_0000))),
        ipxe!("command data", 2, word(*b" gue"), ("ecx", Is(0x0001_0000))),
        ipxe!("command data", 2, word(*b"stin"), ("ecx", Is(0x0001_0000))),
        ipxe!("command data", 2, word(*b"fo.n"), ("ecx", Is(0x0001_0000))),
        ipxe!("command data", 2, word(*b"ame\0"), ("ecx", Is(0x0001_0000))),
        // The high word of EDX is the reply's id, which goes to EBX in the next calls.
        ipxe!(
            "reply length",
            3,
            0,
            ("ecx", Is(0x0083_0000)),
            ("ebx", Is(8)),
            ("edx", Bits { mask: HIGH_WORD, value: 1 << 16 })
        ),
        ipxe!("reply data", 4, 1, ("ecx", Is(0x0001_0000)), ("ebx", Is(word(*b"1 io")))),
        ipxe!("reply data", 4, 1, ("ecx", Is(0x0001_0000)), ("ebx", Is(word(*b"emul")))),
        ipxe!("reply finish", 5, 1, ("ecx", Is(0x0001_0000))),
        ipxe!("close", 6, 0, ("ecx", Is(0x0001_0000))),
    ],
};

const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_le_bytes(bytes)
}

/// A step of a message with cookies, as vmt and open-vm-tools make it.
macro_rules! message {
    ($what:literal, $step:literal, $ebx:expr, $($wanted:tt)*) => {
        call!(
            $what,
            &[
                ("ebx", Word($ebx)),
                ("ecx", Word($step << 16 | 30)),
                ("edx", ChannelAnd(0x5658)),
                ("esi", CookieHigh),
                ("edi", CookieLow),
            ],
            &[$($wanted)*],
        )
    };
}

const VMT_OPENED: &[(&str, Wanted)] =
    &[("ecx", Bits { mask: HIGH_WORD, value: 1 << 16 }), ("edx", Bits { mask: LOW_WORD, value: 0 })];

const VMT_PROBE: Client = Client {
    source: "OpenBSD sys/dev/pv/vmt.c, vmt_probe and vmt_tick",
    calls: &[
        call!(
            "version",
            &[("ebx", Word(!MAGIC)), ("ecx", Word(0xffff_000a)), ("edx", Word(0x5658))],
            &[("eax", IsNot(u32::MAX)), ("ebx", Is(MAGIC))],
        ),
        call!(
            "speed",
            &[("ebx", Word(!MAGIC)), ("ecx", Word(0xffff_0001)), ("edx", Word(0x5658))],
            &[("eax", IsNot(MAGIC))],
        ),
        call!(
            "time",
            &[("ebx", Word(0)), ("ecx", Word(46)), ("edx", Word(0x5658))],
            &[("eax", IsNot(u32::MAX)), ("esi", Is(2)), ("edx", Is(0x6543_2100)), ("ebx", Is(250_000))],
        ),
    ],
};

const VMT_TCLO: Client = Client {
    source: "OpenBSD sys/dev/pv/vmt.c, vmt_attach, vmt_tclo_tick and vmt_shutdown",
    calls: &[
        call!("open", &[("ebx", Word(TCLO | COOKIES)), ("ecx", Word(30)), ("edx", Word(0x5658))], VMT_OPENED),
        message!("ping", 1, 0, ("ecx", SUCCESS)),
        // Not bit 1: no message, which is a length of 0.
        message!("is there a message?", 3, 0, ("ecx", status(3, 1))),
        message!("reset reply", 1, 14, ("ecx", SUCCESS)),
        Call {
            what: "reset reply",
            by: By::Outs(b"OK ATR toolbox"),
            given: &[("ebx", Word(0x1_0000)), ("edx", ChannelAnd(0x5659)), ("ebp", CookieHigh), ("edi", CookieLow)],
            wanted: &[("ebx", Is(0x1_0000))],
        },
        message!("is there a message?", 3, 0, ("ecx", status(3, 1))),
        message!(
            "close",
            6,
            0,
            ("ecx", NotBits { mask: HIGH_WORD, value: 0 }),
            ("ecx", Bits { mask: LOW_WORD, value: 0 })
        ),
    ],
};

const VMT_RPCI: Client = Client {
    source: "OpenBSD sys/dev/pv/vmt.c, vm_rpc_open, vm_rpc_send, vm_rpc_get_length, vm_rpc_get_data, vm_rpc_close",
    calls: &[
        call!("open", &[("ebx", Word(RPCI | COOKIES)), ("ecx", Word(30)), ("edx", Word(0x5658))], VMT_OPENED),
        message!("set length", 1, 23, ("ecx", SUCCESS)),
        Call {
            what: "send",
            by: By::Outs(b"info-get guestinfo.name"),
            given: &[("ebx", Word(0x1_0000)), ("edx", ChannelAnd(0x5659)), ("ebp", CookieHigh), ("edi", CookieLow)],
            wanted: &[("ebx", Is(0x1_0000))],
        },
        // The high word of EDX goes to EBX when the data has come.
        message!(
            "get length",
            3,
            0,
            ("ecx", status(3, 3)),
            ("ebx", Is(8)),
            ("edx", Bits { mask: HIGH_WORD, value: 1 << 16 })
        ),
        Call {
            what: "get data",
            by: By::Ins(b"1 ioemul"),
            given: &[("ebx", Word(0x1_0000)), ("edx", ChannelAnd(0x5659)), ("esi", CookieHigh), ("ebp", CookieLow)],
            wanted: &[("ebx", Is(0x1_0000))],
        },
        message!("get end", 5, 1, ("ecx", NotBits { mask: HIGH_WORD, value: 0 })),
        message!(
            "close",
            6,
            0,
            ("ecx", NotBits { mask: HIGH_WORD, value: 0 }),
            ("ecx", Bits { mask: LOW_WORD, value: 0 })
        ),
    ],
};

const TOOLS_OPEN: Call =
    call!("open", &[("ebx", Word(RPCI | COOKIES)), ("ecx", Word(30)), ("edx", Word(0x5658))], &[("ecx", SUCCESS)]);

/// Bit 7 of the first status says that strings will do.
const TOOLS_STRINGS: Client = Client {
    source: "open-vm-tools lib/message/message.c, over the high-bandwidth port",
    calls: &[
        TOOLS_OPEN,
        message!("send size", 1, 23, ("ecx", status(0x81, 0x81))),
        Call {
            what: "send",
            by: By::Outs(b"info-get guestinfo.name"),
            given: &[("ebx", Word(0x1_0000)), ("edx", ChannelAnd(0x5659)), ("ebp", CookieHigh), ("edi", CookieLow)],
            wanted: &[("ebx", SUCCESS)],
        },
        message!(
            "receive size",
            3,
            0,
            ("ecx", status(0x83, 0x83)),
            ("edx", Bits { mask: HIGH_WORD, value: 1 << 16 }),
            ("ebx", Is(8))
        ),
        Call {
            what: "receive",
            by: By::Ins(b"1 ioemul"),
            given: &[("ebx", Word(0x1_0000)), ("edx", ChannelAnd(0x5659)), ("esi", CookieHigh), ("ebp", CookieLow)],
            wanted: &[("ebx", SUCCESS)],
        },
        message!("receive status", 5, 1, ("ecx", SUCCESS)),
        message!("receive size", 3, 0, ("ecx", status(3, 1))),
        message!("close", 6, 0, ("ecx", SUCCESS)),
    ],
};

const TOOLS_WORDS: Client = Client {
    source: "open-vm-tools lib/message/message.c, over the low-bandwidth port",
    calls: &[
        TOOLS_OPEN,
        message!("send size", 1, 23, ("ecx", status(0x81, 1))),
        message!("send payload", 2, word(*b"info"), ("ecx", SUCCESS)),
        message!("send payload", 2, word(*b"-get"), ("ecx", SUCCESS)),
        message!("send payload", 2, word(*b" gue"), ("ecx", SUCCESS)),
        message!("send payload", 2, word(*b"stin"), ("ecx", SUCCESS)),
        message!("send payload", 2, word(*b"fo.n"), ("ecx", SUCCESS)),
        message!("send payload", 2, word(*b"ame\0"), ("ecx", SUCCESS)),
        message!(
            "receive size",
            3,
            0,
            ("ecx", status(0x83, 3)),
            ("edx", Bits { mask: HIGH_WORD, value: 1 << 16 }),
            ("ebx", Is(8))
        ),
        message!(
            "receive payload",
            4,
            1,
            ("ecx", SUCCESS),
            ("edx", Bits { mask: HIGH_WORD, value: 2 << 16 }),
            ("ebx", Is(word(*b"1 io")))
        ),
        message!(
            "receive payload",
            4,
            1,
            ("ecx", SUCCESS),
            ("edx", Bits { mask: HIGH_WORD, value: 2 << 16 }),
            ("ebx", Is(word(*b"emul")))
        ),
        message!("receive status", 5, 1, ("ecx", SUCCESS)),
        message!("close", 6, 0, ("ecx", SUCCESS)),
    ],
};

/// Its buffer is too small: the message is given up before any of it has come, in the middle, or at its end.
const TOOLS_GIVE_UP: Client = Client {
    source: "open-vm-tools lib/message/message.c, Message_Receive's error_quit",
    calls: &[
        TOOLS_OPEN,
        message!("send size", 1, 0, ("ecx", SUCCESS)), // complete at once
        message!("receive size", 3, 0, ("ecx", status(3, 3))),
        message!("give up", 4, 0, ("ecx", SUCCESS)),
        message!("receive size", 3, 0, ("ecx", status(3, 1))), // nothing to receive
        message!("send size", 1, 0, ("ecx", SUCCESS)),
        message!("receive size", 3, 0, ("ecx", status(3, 3))),
        message!("receive payload", 4, 1, ("ecx", SUCCESS), ("ebx", Is(word(*b"0 Un")))),
        message!("give up", 4, 0, ("ecx", SUCCESS)),
        message!("receive size", 3, 0, ("ecx", status(3, 1))),
        message!("send size", 1, 0, ("ecx", SUCCESS)),
        message!("receive size", 3, 0, ("ecx", status(3, 3))),
        message!("give up", 5, 0, ("ecx", SUCCESS)),
        message!("receive size", 3, 0, ("ecx", status(3, 1))),
        // A checkpoint in the middle: the size is asked for again, and the reply is all there.
        message!("send size", 1, 0, ("ecx", SUCCESS)),
        message!("receive size", 3, 0, ("ecx", status(3, 3))),
        message!("receive payload", 4, 1, ("ecx", SUCCESS), ("ebx", Is(word(*b"0 Un")))),
        message!("receive size", 3, 0, ("ecx", status(3, 3))),
        message!("receive payload", 4, 1, ("ecx", SUCCESS), ("ebx", Is(word(*b"0 Un")))),
        message!("receive payload", 4, 1, ("ecx", SUCCESS), ("ebx", Is(word(*b"know")))),
        message!("close", 6, 0, ("ecx", SUCCESS)),
    ],
};

const TOOLS_COMMANDS: Client = Client {
    source: "open-vm-tools lib/vmCheck/vmcheck.c, checkvm/checkvm.c, services/plugins/timeSync/timeSync.c",
    calls: &[
        call!(
            "version",
            &[("ebx", Word(!MAGIC)), ("ecx", Word(0xffff_000a)), ("edx", Word(0x5658))],
            // Not the high word that was given: old products leave it, and do not say what they are.
            &[("eax", Is(6)), ("ebx", Is(MAGIC)), ("ecx", Is(2))],
        ),
        call!("hardware version", &[("ecx", Word(17)), ("edx", Word(0x5658))], &[("eax", Is(13))]),
        // What says that a command is there is the magic number that it leaves in EAX.
        call!("time and lag", &[("ecx", Word(55)), ("edx", Word(0x5658))], &[("eax", IsNot(MAGIC))]),
        call!(
            "time",
            &[("ecx", Word(46)), ("edx", Word(0x5658))],
            &[
                ("eax", Is(MAGIC)),
                ("esi", Is(2)),
                ("edx", Is(0x6543_2100)),
                ("ebx", Is(250_000)),
                ("ecx", Is(1_000_000)),
            ],
        ),
        call!(
            "time of 32 bits",
            &[("ecx", Word(23)), ("edx", Word(0x5658))],
            &[("eax", Is(0x6543_2100)), ("ebx", Is(250_000)), ("ecx", Is(1_000_000))],
        ),
    ],
};

const LINUX: Client = Client {
    source: "Linux arch/x86/kernel/cpu/vmware.c",
    calls: &[
        call!(
            "version",
            &[("ebx", Word(0)), ("ecx", Word(10)), ("edx", Word(0x5658))],
            &[("eax", IsNot(u32::MAX)), ("ebx", Is(MAGIC))],
        ),
        call!(
            "frequencies",
            &[("ebx", Word(u32::MAX)), ("ecx", Word(45)), ("edx", Word(0x5658))],
            &[("ebx", IsNot(u32::MAX)), ("ebx", Is(1)), ("eax", Is(0x2345_6789)), ("ecx", Is(66_000_000))],
        ),
        call!(
            "vCPU",
            &[("ebx", Word(0)), ("ecx", Word(68)), ("edx", Word(0x5658))],
            &[("eax", Bits { mask: 1 << 31, value: 0 })],
        ),
    ],
};

#[test]
fn clients_get_what_they_want_of_the_registers() {
    let clients =
        [IPXE, VMT_PROBE, VMT_TCLO, VMT_RPCI, TOOLS_STRINGS, TOOLS_GIVE_UP, TOOLS_COMMANDS, LINUX, VMT_RPCI, IPXE];
    for mut machine in machines(|| Box::new(backdoor(&Asked::default()))) {
        for client in &clients {
            client.run(&mut machine);
        }
    }
}

/// A host whose status never has bit 7.
struct WordsOnly(VmwareBackdoor);

impl PortDevice for WordsOnly {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        let eax = self.0.port_in(access, gprs);
        gprs.rcx &= !(0x80 << 16);
        eax
    }
}

#[test]
fn open_vm_tools_does_without_strings() {
    let asked = Asked::default();
    for mut machine in machines(|| Box::new(WordsOnly(backdoor(&asked)))) {
        TOOLS_WORDS.run(&mut machine);
        assert_eq!(asked.lock().unwrap().pop().unwrap(), b"info-get guestinfo.name");
    }
}

/// vmt holds a channel of one protocol while it uses the other.
#[test]
fn two_protocols_at_once() {
    let asked = Asked::default();
    for mut machine in machines(|| Box::new(backdoor(&asked))) {
        let (open, rest) = VMT_TCLO.calls.split_at(1);
        let tclo = open[0].make(&mut machine, &Channel::default());
        assert_eq!(tclo.rdx, 0); // the first channel
        VMT_RPCI.run(&mut machine);
        let channel = Channel { edx: tclo.rdx as u32, esi: tclo.rsi as u32, edi: tclo.rdi as u32 };
        Client { calls: rest, ..VMT_TCLO }.run_on(&mut machine, channel);
        assert_eq!(asked.lock().unwrap().split_off(0), [b"info-get guestinfo.name"]); // and nothing of TCLO's
    }
}

/// Where a step is refused, no client takes it for done: all of ECX, or of EBX, is 0.
#[test]
fn a_refusal_is_a_register_of_zero() {
    const REFUSED: Client = Client {
        source: "every client",
        calls: &[
            call!("open", &[("ebx", Word(0)), ("ecx", Word(30)), ("edx", Word(0x5658))], &[("ecx", Is(0))]),
            message!("size", 1, 4, ("ecx", Is(0))),
            message!("data", 2, 4, ("ecx", Is(0))),
            message!("reply size", 3, 4, ("ecx", Is(0))),
            message!("reply data", 4, 1, ("ecx", Is(0))),
            message!("end", 5, 1, ("ecx", Is(0))),
            message!("close", 6, 0, ("ecx", Is(0))),
            message!("there is no such step", 7, 0, ("ecx", Is(0))),
            message!("nor this", 0xffff, 0, ("ecx", Is(0))),
        ],
    };
    const REFUSED_STRINGS: Client = Client {
        source: "every client",
        calls: &[
            Call {
                what: "nobody's channel",
                by: By::Outs(b"data"),
                given: &[("ebx", Word(0x1_0000)), ("edx", ChannelAnd(0x5659))],
                wanted: &[("ebx", Is(0))],
            },
            Call {
                what: "nobody's channel",
                by: By::Ins(b"\xff\xff\xff\xff"),
                given: &[("ebx", Word(0x1_0000)), ("edx", ChannelAnd(0x5659))],
                wanted: &[("ebx", Is(0))],
            },
            Call {
                what: "another command",
                by: By::Outs(b"data"),
                given: &[("ebx", Word(0x1_0001)), ("edx", ChannelAnd(0x5659))],
                wanted: &[("ebx", Is(0))],
            },
        ],
    };
    for mut machine in machines(|| Box::new(VmwareBackdoor::new())) {
        REFUSED.run(&mut machine); // no message channel at all
    }
    for mut machine in machines(|| Box::new(backdoor(&Asked::default()))) {
        REFUSED.run(&mut machine);
        REFUSED_STRINGS.run(&mut machine);
    }
}

/// What is written is written in 32 bits: the upper half of the register is cleared.
#[test]
fn answers_are_zero_extended() {
    for mut machine in machines(|| Box::new(backdoor(&Asked::default()))) {
        let version = call!("version", &[("ecx", Word(10)), ("edx", Word(0x5658))], &[]);
        let after = version.make(&mut machine, &Channel::default());
        assert_eq!((after.rax, after.rbx, after.rcx), (6, MAGIC.into(), 2));
        let open = &VMT_RPCI.calls[0];
        let after = open.make(&mut machine, &Channel::default());
        assert_eq!((after.rcx, after.rdx), (1 << 16, 0));
        assert!(after.rsi <= u32::MAX.into() && after.rdi <= u32::MAX.into());
    }
}
