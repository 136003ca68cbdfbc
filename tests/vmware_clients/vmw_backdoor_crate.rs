//! The crate `vmw_backdoor`, as it is on crates.io. Its IN, OUT, REP INSB and REP OUTSB are executed by the CPU, which
//! refuses them to a process without privilege; the handler of the signal makes the access on the model, with the
//! registers that the crate had loaded, and goes on behind the instruction.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, Once};
use std::{mem, ptr, slice};

use ioemul::guest_rpc::GuestRpcStep;
use ioemul::{Direction, IoEmulator, IoInsn, PortAccess, PortDevice, SoftwareBus};
use vmw_backdoor::{BackdoorGuard, VmwError};

use super::common::gregs::GREGS;
use super::*;

thread_local! {
    /// The machine that this thread's accesses reach.
    static MACHINE: RefCell<Option<IoEmulator>> = const { RefCell::new(None) };
    static ACCESSES: RefCell<Vec<IoInsn>> = const { RefCell::new(Vec::new()) };
}

extern "C" fn serve(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's argument. The signal is synchronous, out of the crate's assembler code: nothing is interrupted.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let words = GREGS.map(|register| registers[register] as u64);
    // SAFETY: RIP is at an instruction, and behind the crate's there is more code.
    let code = unsafe { (registers[libc::REG_RIP as usize] as *const [u8; 4]).read_unaligned() };
    let mut gprs = Gprs::from_words(words);
    let Some(len) = access(&code, &mut gprs) else {
        // SAFETY: the access, or whatever it was, is tried again without a handler, and ends the process.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        return;
    };
    for (register, word) in GREGS.into_iter().zip(gprs.to_words()) {
        registers[register] = word as i64;
    }
    registers[libc::REG_RIP as usize] += len as i64;
}

/// Makes the access on this thread's machine. Returns the length of the instruction; nothing for what is none.
fn access(code: &[u8], gprs: &mut Gprs) -> Option<usize> {
    let (insn, len) = IoInsn::decode(code).ok()?;
    ACCESSES.with_borrow_mut(|accesses| accesses.push(insn));
    let count = usize::try_from(gprs.rcx).ok()?;
    MACHINE.with_borrow_mut(|machine| {
        let machine = machine.as_mut()?;
        match (insn.is_string(), insn.direction) {
            (false, _) => machine.execute(insn, gprs).ok()?,
            // SAFETY: the instruction would have read as many bytes there, in this process.
            (true, Direction::Out) => unsafe {
                let data = slice::from_raw_parts(ptr::with_exposed_provenance(gprs.rsi as usize), count);
                machine.write_string(insn, gprs, data).map(drop).ok()?;
            },
            // SAFETY: the instruction would have written as many bytes there.
            (true, Direction::In) => unsafe {
                let data = slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(gprs.rdi as usize), count);
                machine.read_string(insn, gprs, data).map(drop).ok()?;
            },
        }
        Some(len)
    })
}

/// Runs `guest` with its accesses going to `machine`. Returns the accesses that it made.
fn on(machine: IoEmulator, guest: impl FnOnce()) -> Vec<IoInsn> {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: all-zero is a valid sigaction; the handler has the signature of SA_SIGINFO.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (serve as *const () as usize, libc::SA_SIGINFO);
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
        }
    });
    MACHINE.replace(Some(machine));
    guest();
    MACHINE.take();
    ACCESSES.take()
}

/// Under VMware its host answers, whatever the permissions: nothing would be seen of the model.
fn is_vmware() -> bool {
    let is_vmware = vmw_backdoor::is_vmware_cpu();
    if is_vmware {
        eprintln!("not run: this is a VMware virtual machine, whose own backdoor answers");
    }
    is_vmware
}

fn guard() -> BackdoorGuard {
    vmw_backdoor::access_backdoor().unwrap() // asks for no privilege
}

fn text<T>(result: Result<T, VmwError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn the_crate_gets_its_answers() {
    if is_vmware() {
        return;
    }
    let asked = Asked::default();
    for machine in machines(|| Box::new(backdoor(&asked))) {
        let accesses = on(machine, || {
            let mut guard = vmw_backdoor::probe_backdoor().unwrap();
            let mut channel = guard.open_enhanced_chan().unwrap();
            assert_eq!(channel.get_guestinfo(b"guestinfo.name").unwrap().unwrap(), b"ioemul");
            assert_eq!(channel.get_guestinfo(b"guestinfo.nothing").unwrap(), None);
            channel.log("hello").unwrap();
            assert_eq!(text(channel.log("something else")), "vmware backdoor error: erpc log failed");
            channel.report_agent().unwrap();
            channel.close().unwrap();
        });
        let requests: [&[u8]; 5] = [
            b"info-get guestinfo.name\0",
            b"info-get guestinfo.nothing\0",
            b"log hello\0",
            b"log something else\0",
            b"tools.set.version 2147483647\0",
        ];
        assert_eq!(asked.lock().unwrap().split_off(0), requests);
        let (input, output) = (IoInsn::in_dx(Width::Dword), IoInsn::out_dx(Width::Dword));
        let (sent, received) = (IoInsn::rep_outs(Width::Byte), IoInsn::rep_ins(Width::Byte));
        let request = [output, sent, output, received];
        // Closed, the channel is dropped, and closed once more: that is refused, and only logged.
        let (opened, closed) = ([input, output], [output, output]);
        let expected = [&opened[..], &request, &request, &request, &request, &request, &closed].concat();
        assert_eq!(accesses, expected);
    }
}

#[test]
fn the_crate_takes_long_replies() {
    if is_vmware() {
        return;
    }
    let long = |request: &[u8]| [b"1 ", request].concat();
    let machine = || Box::new(VmwareBackdoor::new().rpc(long)) as Box<dyn PortDevice>;
    for machine in machines(machine) {
        on(machine, || {
            let mut guard = guard();
            let mut channel = guard.open_enhanced_chan().unwrap();
            for len in [0, 1, 2, 3, 4000, (64 << 10) - 10] {
                let key = vec![b'k'; len];
                let expected = [b"info-get ", &key[..], b"\0"].concat();
                assert_eq!(channel.get_guestinfo(&key).unwrap().unwrap(), expected, "{len}");
            }
            // 64 KiB are as much as the model takes.
            let key = vec![b'k'; (64 << 10) - 9];
            assert_eq!(text(channel.get_guestinfo(&key)), "vmware backdoor error: erpc send_command_len failed");
            assert_eq!(channel.get_guestinfo(b"k").unwrap().unwrap(), b"info-get k\0");
        });
    }
}

#[test]
fn the_crate_sees_that_nobody_is_there() {
    if is_vmware() {
        return;
    }
    let nobody = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build().unwrap();
    on(nobody, || {
        assert_eq!(text(vmw_backdoor::probe_backdoor()), "vmware backdoor error: get_version failed");
    });
    for machine in machines(|| Box::new(VmwareBackdoor::new())) {
        on(machine, || {
            let mut guard = vmw_backdoor::probe_backdoor().unwrap();
            let error = text(guard.open_enhanced_chan());
            assert_eq!(error, "vmware backdoor error: erpc open failed"); // there is no message channel
        });
    }
}

#[test]
fn the_crate_sees_that_all_channels_are_open() {
    if is_vmware() {
        return;
    }
    for machine in machines(|| Box::new(backdoor(&Asked::default()))) {
        on(machine, || {
            let mut guards: Vec<_> = (0..8).map(|_| guard()).collect();
            let channels: Vec<_> = guards.iter_mut().map(|guard| guard.open_enhanced_chan().unwrap()).collect();
            assert_eq!(text(guard().open_enhanced_chan()), "vmware backdoor error: erpc open failed");
            drop(channels);
            guard().open_enhanced_chan().unwrap();
        });
    }
}

/// Gets one step's registers wrong on their way to the model, which then refuses it.
struct Garbled {
    model: VmwareBackdoor,
    step: Arc<Mutex<Option<GuestRpcStep>>>,
}

impl Garbled {
    fn is(&self, step: u64) -> bool {
        self.step.lock().unwrap().is_some_and(|garbled| garbled as u64 == step)
    }
}

impl PortDevice for Garbled {
    fn port_out(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) {
        if self.is(gprs.rcx >> 16) {
            gprs.rbx ^= u64::from(gprs.rcx == 30); // the protocol, or
            gprs.rsi ^= 1; // a cookie
        }
        self.model.port_out(access, value, gprs);
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        gprs.rbp ^= u64::from(self.is(GuestRpcStep::ReplyData as u64));
        self.model.try_read_string(access, data, gprs)
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        gprs.rbp ^= u64::from(self.is(GuestRpcStep::RequestData as u64));
        self.model.try_write_string(access, data, gprs)
    }
}

/// Each step that the crate has, refused by the model; and the same channel, where it is open, all well afterwards.
#[test]
fn the_crate_sees_every_refusal() {
    use GuestRpcStep::{Close, Open, ReplyData, ReplySize, RequestData, RequestSize};
    if is_vmware() {
        return;
    }
    for layout in [None].into_iter().chain(StubLayout::ALL.iter().copied().map(Some)) {
        for (refused, expected) in [
            (Open, "erpc open failed"),
            (RequestSize, "erpc send_command_len failed"),
            (RequestData, "erpc send_command_len failed"), // which is what the crate says of the data too
            (ReplySize, "erpc recv_reply_len failed"),
            (ReplyData, "erpc recv_reply_data failed"),
            (Close, ""),
        ] {
            let step = Arc::new(Mutex::new(Some(refused)));
            let mut bus = SoftwareBus::new();
            let garbled = Garbled { model: backdoor(&Asked::default()), step: step.clone() };
            bus.attach(0x5658..=0x565b, garbled).unwrap();
            let builder = IoEmulator::builder().ports(PortSet::all()).bus(bus);
            let builder = match layout {
                Some(layout) => builder.layout(layout),
                None => builder.direct(),
            };
            on(builder.build().unwrap(), || {
                let mut guard = guard();
                let opened = guard.open_enhanced_chan();
                if refused == Open {
                    return assert_eq!(text(opened), format!("vmware backdoor error: {expected}"));
                }
                let mut channel = opened.unwrap();
                let request = channel.get_guestinfo(b"guestinfo.name");
                let channel = if refused == Close {
                    request.unwrap();
                    channel.close().expect_err("the channel is given back")
                } else {
                    assert_eq!(text(request), format!("vmware backdoor error: {expected}"), "{refused}");
                    channel
                };
                *step.lock().unwrap() = None;
                let mut channel = channel;
                assert_eq!(channel.get_guestinfo(b"guestinfo.name").unwrap().unwrap(), b"ioemul", "{refused}");
                channel.close().unwrap();
            });
        }
    }
}
