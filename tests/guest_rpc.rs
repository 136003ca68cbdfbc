//! GuestRPC requests through the VMware backdoor, with real instructions on a bus: the library's client against its
//! device model, and against hosts that do not go along.
#![cfg(feature = "std")]

use std::sync::{Arc, Mutex};

use ioemul::devices::VmwareBackdoor;
use ioemul::guest_rpc::{GuestRpc, GuestRpcError, GuestRpcStep};
use ioemul::{
    DeviceError, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, SoftwareBus, StringError,
    StubLayout, Width,
};

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
        assert_ne!(access.port, VmwareBackdoor::HIGH_BANDWIDTH_PORT);
        let eax = self.0.port_in(access, gprs);
        gprs.rcx &= !(0x80 << 16); // no high bandwidth
        eax
    }
}

fn on_bus(layout: StubLayout, backdoor: impl PortDevice + 'static) -> IoEmulator {
    let mut bus = SoftwareBus::new();
    bus.attach(0x5658..=0x565b, backdoor).unwrap();
    IoEmulator::builder().layout(layout).ports(PortSet::from(0x5658..=0x565b)).bus(bus).build().unwrap()
}

fn emulator(backdoor: impl PortDevice + 'static) -> IoEmulator {
    on_bus(StubLayout::default(), backdoor)
}

#[test]
fn requests_by_words_and_by_strings() {
    for layout in StubLayout::ALL.iter().copied() {
        let words = on_bus(layout, WordsOnly(VmwareBackdoor::new().rpc(host)));
        let strings = on_bus(layout, VmwareBackdoor::new().rpc(host));
        for mut emulator in [words, strings] {
            let mut channel = GuestRpc::open(&mut emulator).unwrap();
            assert_eq!(channel.request(b"info-get guestinfo.name").unwrap(), b"1 ioemul");
            assert_eq!(channel.request(b"frobnicate").unwrap(), b"0 Unknown command");
            assert_eq!(channel.request(b"").unwrap(), b"0 Unknown command");
            channel.close().unwrap();
        }
    }
}

/// Counts the accesses to both ports, and the steps of the messages.
#[derive(Default)]
struct Seen {
    words: usize,
    strings: usize,
}

struct Watched(VmwareBackdoor, Arc<Mutex<Seen>>);

impl PortDevice for Watched {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        self.1.lock().unwrap().words += 1;
        self.0.try_access(access, value, gprs)
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.1.lock().unwrap().strings += 1;
        self.0.try_read_string(access, data, gprs)
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.1.lock().unwrap().strings += 1;
        self.0.try_write_string(access, data, gprs)
    }
}

#[test]
fn the_strings_can_be_left_alone() {
    let request = b"info-get guestinfo.name"; // six words of it, and two of the reply
    for (words_only, words, strings) in [(false, 5, 2), (true, 5 + 6 + 2, 0)] {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut emulator = emulator(Watched(VmwareBackdoor::new().rpc(host), seen.clone()));
        let channel = GuestRpc::open(&mut emulator).unwrap();
        let mut channel = if words_only { channel.words_only() } else { channel };
        assert_eq!(channel.request(request).unwrap(), b"1 ioemul");
        drop(channel);
        let seen = seen.lock().unwrap();
        assert_eq!((seen.words, seen.strings), (words, strings));
    }
}

#[test]
fn a_channel_that_is_dropped_is_closed() {
    let mut emulator = emulator(VmwareBackdoor::new().rpc(host));
    for _ in 0..20 {
        GuestRpc::open(&mut emulator).unwrap(); // there are eight of them
    }
    for _ in 0..20 {
        GuestRpc::open(&mut emulator).unwrap().close().unwrap();
    }
}

#[test]
fn eight_channels_and_no_more() {
    let mut emulator = emulator(VmwareBackdoor::new().rpc(host));
    for _ in 0..8 {
        std::mem::forget(GuestRpc::open(&mut emulator).unwrap());
    }
    let error = GuestRpc::open(&mut emulator).unwrap_err();
    assert_eq!(error.to_string(), "the host ended the exchange at the step \"open\", with status 0x0");
}

#[test]
fn without_a_message_channel_the_client_says_so() {
    let mut emulator = emulator(VmwareBackdoor::new());
    let error = GuestRpc::open(&mut emulator).unwrap_err();
    assert!(matches!(error, GuestRpcError::Refused { step: GuestRpcStep::Open, status: 0 }), "{error}");
    let mut nobody = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build().unwrap();
    let error = GuestRpc::open(&mut nobody).unwrap_err();
    assert!(matches!(error, GuestRpcError::Refused { step: GuestRpcStep::Open, status: 0 }), "{error}");
    let mut denied = IoEmulator::builder().bus(SoftwareBus::new()).build().unwrap();
    let error = GuestRpc::open(&mut denied).unwrap_err();
    assert!(
        matches!(
            error,
            GuestRpcError::Access { step: GuestRpcStep::Open, error: Error::PortDenied { port: 0x5658, .. } }
        ),
        "{error}"
    );
}

/// A host that answers otherwise at one step, for as often as it is told to.
struct Stubborn {
    host: VmwareBackdoor,
    step: GuestRpcStep,
    status: u16,
    times: usize,
}

impl Stubborn {
    fn answers_otherwise(&mut self, step: u64) -> bool {
        let otherwise = step == self.step as u64 && self.times > 0;
        self.times -= usize::from(otherwise);
        otherwise
    }
}

impl PortDevice for Stubborn {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        if self.answers_otherwise(gprs.rcx >> 16) {
            gprs.rcx = u64::from(self.status) << 16;
            return gprs.rax as u32;
        }
        self.host.port_in(access, gprs)
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        if self.answers_otherwise(GuestRpcStep::ReplyData as u64) {
            gprs.rbx = u64::from(self.status) << 16;
            return Ok(());
        }
        self.host.try_read_string(access, data, gprs)
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        if self.answers_otherwise(GuestRpcStep::RequestData as u64) {
            gprs.rbx = u64::from(self.status) << 16;
            return Ok(());
        }
        self.host.try_write_string(access, data, gprs)
    }
}

/// The whole of an exchange.
fn exchange(emulator: &mut IoEmulator, words_only: bool) -> Result<Vec<u8>, GuestRpcError> {
    let channel = GuestRpc::open(emulator)?;
    let mut channel = if words_only { channel.words_only() } else { channel };
    let reply = channel.request(b"info-get guestinfo.name")?;
    channel.close()?;
    Ok(reply)
}

const STEPS: [GuestRpcStep; 7] = [
    GuestRpcStep::Open,
    GuestRpcStep::RequestSize,
    GuestRpcStep::RequestData,
    GuestRpcStep::ReplySize,
    GuestRpcStep::ReplyData,
    GuestRpcStep::ReplyEnd,
    GuestRpcStep::Close,
];

#[test]
fn an_error_names_the_step_that_was_refused() {
    for refused in STEPS {
        for words_only in [false, true] {
            let host = VmwareBackdoor::new().rpc(host);
            let mut emulator = emulator(Stubborn { host, step: refused, status: 4, times: usize::MAX });
            let error = exchange(&mut emulator, words_only).unwrap_err();
            assert!(
                matches!(error, GuestRpcError::Refused { step, status: 4 } if step == refused),
                "{refused}, {words_only}: {error}"
            );
        }
    }
}

/// VMware was suspended in the middle of it: the request is sent again, or the reply received again, not both.
#[test]
fn a_checkpoint_is_got_over() {
    use GuestRpcStep::{ReplyData, ReplyEnd, RequestData};
    for step in [RequestData, ReplyData, ReplyEnd] {
        for words_only in [false, true] {
            let requests = Arc::new(Mutex::new(0));
            let counter = requests.clone();
            let host = VmwareBackdoor::new().rpc(move |request| {
                *counter.lock().unwrap() += 1;
                host(request)
            });
            let mut emulator = emulator(Stubborn { host, step, status: 0x10, times: 1 });
            assert_eq!(exchange(&mut emulator, words_only).unwrap(), b"1 ioemul", "{step}, {words_only}");
            assert_eq!(*requests.lock().unwrap(), 1, "{step}, {words_only}");
        }
    }
    let host = VmwareBackdoor::new().rpc(host);
    let mut emulator = emulator(Stubborn { host, step: RequestData, status: 0x10, times: usize::MAX });
    let error = exchange(&mut emulator, false).unwrap_err(); // but not for ever
    assert!(matches!(error, GuestRpcError::Refused { step: RequestData, status: 0x10 }), "{error}");
}

#[test]
fn a_host_without_a_reply() {
    let host = VmwareBackdoor::new().rpc(host);
    let mut emulator = emulator(Stubborn { host, step: GuestRpcStep::ReplySize, status: 0x81, times: 1 });
    let mut channel = GuestRpc::open(&mut emulator).unwrap();
    let error = channel.request(b"x").unwrap_err();
    assert!(matches!(error, GuestRpcError::NoReply), "{error}");
    assert_eq!(channel.request(b"x").unwrap(), b"0 Unknown command");
}

/// A host that does not know cookies.
struct NoCookies(VmwareBackdoor);

impl PortDevice for NoCookies {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        if gprs.rcx == 30 && gprs.rbx >> 31 != 0 {
            gprs.rcx = 0;
            return gprs.rax as u32;
        }
        self.0.port_in(access, gprs)
    }
}

#[test]
fn a_host_without_cookies() {
    let mut emulator = emulator(NoCookies(VmwareBackdoor::new().rpc(host)));
    assert_eq!(exchange(&mut emulator, true).unwrap(), b"1 ioemul");
}

/// Writes down the steps, and what EBX says with them.
struct Noted(VmwareBackdoor, Arc<Mutex<Vec<(u64, u64)>>>);

impl PortDevice for Noted {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        self.1.lock().unwrap().push((gprs.rcx >> 16, gprs.rbx));
        self.0.port_in(access, gprs)
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.0.try_read_string(access, data, gprs)
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        self.0.try_write_string(access, data, gprs)
    }
}

/// It is not received, and the host is told so: step 4 with a status of 0.
#[test]
fn a_reply_that_is_too_long_is_refused() {
    let long = |request: &[u8]| vec![b'1'; if request == b"long" { (16 << 20) + 1 } else { 16 << 20 }];
    let steps = Arc::new(Mutex::new(Vec::new()));
    let mut emulator = emulator(Noted(VmwareBackdoor::new().rpc(long), steps.clone()));
    let mut channel = GuestRpc::open(&mut emulator).unwrap();
    let error = channel.request(b"long").unwrap_err();
    assert!(matches!(error, GuestRpcError::ReplyTooLong { size: 0x100_0001 }), "{error}");
    assert_eq!(steps.lock().unwrap().split_off(1), [(1, 4), (3, 0), (4, 0)]);
    assert_eq!(channel.request(b"short").unwrap().len(), 16 << 20);
}

/// A host that answers no more: EAX is all ones, and ECX as it was, where the numbers of some steps have bit 0.
#[test]
fn a_host_that_has_gone_is_not_taken_for_one_that_agrees() {
    struct Gone(VmwareBackdoor, GuestRpcStep);
    impl PortDevice for Gone {
        fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
            if gprs.rcx >> 16 >= self.1 as u64 { u32::MAX } else { self.0.port_in(access, gprs) }
        }
    }
    for gone in [GuestRpcStep::RequestSize, GuestRpcStep::ReplySize, GuestRpcStep::ReplyEnd] {
        let mut emulator = emulator(Gone(VmwareBackdoor::new().rpc(|_| Vec::new()), gone));
        let mut channel = GuestRpc::open(&mut emulator).unwrap().words_only();
        let error = channel.request(b"").unwrap_err();
        assert!(matches!(error, GuestRpcError::Refused { step, status: 0 } if step == gone), "{gone}: {error}");
    }
}

#[test]
fn a_request_that_is_too_long_is_refused() {
    let mut emulator = emulator(VmwareBackdoor::new().rpc(|request| request.to_vec()));
    let mut channel = GuestRpc::open(&mut emulator).unwrap();
    let error = channel.request(&[0; (64 << 10) + 1]).unwrap_err();
    assert!(matches!(error, GuestRpcError::Refused { step: GuestRpcStep::RequestSize, .. }), "{error}");
    assert_eq!(channel.request(&[7; 64 << 10]).unwrap(), [7; 64 << 10]);
}

/// A channel that is dropped because a device panicked does not ask that device again.
#[test]
fn a_device_that_panics_twice() {
    struct Panics(VmwareBackdoor, usize);
    impl PortDevice for Panics {
        fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
            self.1 += 1;
            assert!(self.1 < 2, "as the test has it");
            self.0.port_in(access, gprs)
        }
    }
    let mut emulator = emulator(Panics(VmwareBackdoor::new().rpc(host), 0));
    let request = std::panic::AssertUnwindSafe(|| GuestRpc::open(&mut emulator).unwrap().request(b"x"));
    std::panic::catch_unwind(request).unwrap_err();
}

#[test]
fn a_stranger_gets_nothing() {
    let mut emulator = emulator(VmwareBackdoor::new().rpc(host));
    let rax = VmwareBackdoor::MAGIC.into();
    let open = Gprs { rax, rbx: 0xc943_5052, rcx: 30, rdx: 0x5658, ..Gprs::default() };
    let mut opened = open;
    emulator.execute(IoInsn::in_dx(Width::Dword), &mut opened).unwrap();
    let mut size = Gprs { rax, rbx: 4, rcx: 1 << 16 | 30, rdx: opened.rdx | 0x5658, ..opened };
    emulator.execute(IoInsn::in_dx(Width::Dword), &mut size).unwrap();
    let string = Gprs { rax, rbx: 0x1_0000, rcx: 4, rdx: opened.rdx | 0x5659, ..opened };
    // With another cookie.
    let mut gprs = Gprs { rbp: opened.rsi ^ 1, ..string };
    emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, b"abcd").unwrap();
    assert_eq!(gprs.rbx, 0);
    // Without the magic number there is nobody at the port.
    let mut reply = [0; 4];
    let mut gprs = Gprs { rax: 0, ..string };
    emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, &mut reply).unwrap();
    assert_eq!((reply, gprs.rbx), ([0xff; 4], 0x1_0000));
    // With the cookie the string is taken.
    let mut gprs = Gprs { rbp: opened.rsi, ..string };
    emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, b"abcd").unwrap();
    assert_eq!(gprs.rbx, 0x1_0000);
}
