//! GuestRPC, as a guest's driver speaks it: requests to a VMware host, and their replies.
//!
//! A request goes through a channel of the VMware backdoor, by accesses whose registers carry everything: four bytes to
//! an access, or all of them in one REP OUTSB or REP INSB on the high-bandwidth port. The host is whoever answers behind
//! the emulator's ports 0x5658 to 0x565b: VMware, or the model [`VmwareBackdoor`].
//!
//! ```
//! use ioemul::devices::VmwareBackdoor;
//! use ioemul::guest_rpc::GuestRpc;
//! use ioemul::{IoEmulator, PortSet, SoftwareBus};
//!
//! let host = |request: &[u8]| match request {
//!     b"info-get guestinfo.name" => b"1 ioemul".to_vec(),
//!     _ => b"0 Unknown command".to_vec(),
//! };
//! let mut bus = SoftwareBus::new();
//! bus.attach(0x5658..=0x565b, VmwareBackdoor::new().rpc(host))?;
//! let mut emulator = IoEmulator::builder().ports(PortSet::from(0x5658..=0x565b)).bus(bus).build()?;
//!
//! let mut channel = GuestRpc::open(&mut emulator)?;
//! assert_eq!(channel.request(b"info-get guestinfo.name")?, b"1 ioemul");
//! channel.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The protocol is that of open-vm-tools (`lib/message/message.c`, `guest_msg_def.h`).

use core::fmt;

use crate::devices::VmwareBackdoor;
use crate::events::{Events, NoEvents};
use crate::{Error, Gprs, IoEmulator, IoInsn, Width};

/// `RPCI`, and the request for cookies.
const PROTOCOL: u32 = 0x4943_5052 | WITH_COOKIES;
const WITH_COOKIES: u32 = 1 << 31;

/// Bits of the status in ECX's high word.
const SUCCESS: u16 = 1;
const REPLY_WAITING: u16 = 2;
/// The machine was saved, or is here again, in the middle of a message: it has to be sent again.
const CHECKPOINT: u16 = 0x10;
const HIGH_BANDWIDTH: u16 = 0x80;

/// How often a message is tried again after a checkpoint.
const RETRIES: usize = 8;
/// What a host can make a guest hold.
const MAX_REPLY: u32 = 16 << 20;

/// An open channel to the host. It is closed when dropped; [`close`](Self::close) says how that went.
///
/// The [module](self) has an example.
#[derive(Debug)]
#[doc(alias("guestrpc", "RPCI", "vmware-rpctool", "guestinfo"))]
pub struct GuestRpc<'e, E: Events = NoEvents> {
    emulator: &'e mut IoEmulator<E>,
    /// EDX, ESI and EDI as opening it left them: its number and its cookies. All else is 0.
    opened: Gprs,
    words_only: bool,
    is_open: bool,
}

impl<'e, E: Events> GuestRpc<'e, E> {
    /// Opens a channel, with cookies if the host has them.
    ///
    /// # Errors
    ///
    /// [`GuestRpcError::Refused`] at [`GuestRpcStep::Open`] where there is no such host, or it has no channel left;
    /// [`GuestRpcError::Access`] where the emulator may not touch the ports, or the CPU does not permit it.
    pub fn open(emulator: &'e mut IoEmulator<E>) -> Result<Self, GuestRpcError> {
        let mut channel = Self { emulator, opened: Gprs::default(), words_only: false, is_open: false };
        let opened = match channel.step(GuestRpcStep::Open, PROTOCOL) {
            Err(GuestRpcError::Refused { .. }) => channel.step(GuestRpcStep::Open, PROTOCOL & !WITH_COOKIES)?,
            opened => opened?,
        };
        let Gprs { rdx, rsi, rdi, .. } = opened.gprs;
        channel.opened = Gprs { rdx: rdx & 0xffff_0000, rsi, rdi, ..Gprs::default() };
        channel.is_open = true;
        Ok(channel)
    }

    /// Leaves the high-bandwidth port alone: four bytes to an access, even if the host can take them all at once.
    pub fn words_only(mut self) -> Self {
        self.words_only = true;
        self
    }

    /// Sends a request and receives the reply, which by convention starts with `1 ` for success and `0 ` for failure.
    ///
    /// A host takes at most 64 KiB, and refuses more ([`GuestRpcError::Refused`] at [`GuestRpcStep::RequestSize`]). If the virtual
    /// machine is saved or resumed in between, the message is sent again, up to eight times.
    ///
    /// # Errors
    ///
    /// Those of [`GuestRpcError`]. The channel is then still open, and the next request starts afresh.
    pub fn request(&mut self, request: &[u8]) -> Result<Vec<u8>, GuestRpcError> {
        retried(|| self.send(request))?;
        retried(|| self.receive())
    }

    /// Gives the channel back.
    ///
    /// # Errors
    ///
    /// [`GuestRpcError::Refused`] or [`GuestRpcError::Access`] at [`GuestRpcStep::Close`].
    pub fn close(mut self) -> Result<(), GuestRpcError> {
        self.is_open = false;
        self.step(GuestRpcStep::Close, 0).map(drop)
    }

    fn send(&mut self, request: &[u8]) -> Result<(), GuestRpcError> {
        // A host takes 64 KiB: what does not even fit the register, it has to refuse.
        let size = u32::try_from(request.len()).unwrap_or(u32::MAX);
        let answer = self.step(GuestRpcStep::RequestSize, size)?;
        if self.has_strings(&answer) {
            return self.send_string(request);
        }
        for chunk in request.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.step(GuestRpcStep::RequestData, u32::from_le_bytes(word))?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>, GuestRpcError> {
        let answer = self.step(GuestRpcStep::ReplySize, 0)?;
        if answer.status & REPLY_WAITING == 0 {
            return Err(GuestRpcError::NoReply);
        }
        let size = answer.gprs.rbx as u32;
        if size > MAX_REPLY {
            let _ = self.step(GuestRpcStep::ReplyData, 0); // the host may drop it
            return Err(GuestRpcError::ReplyTooLong { size });
        }
        let mut reply = vec![0; size as usize];
        if self.has_strings(&answer) {
            self.receive_string(&mut reply)?;
        } else {
            for chunk in reply.chunks_mut(4) {
                let word = self.step(GuestRpcStep::ReplyData, SUCCESS.into())?.gprs.rbx as u32;
                chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            }
        }
        self.step(GuestRpcStep::ReplyEnd, SUCCESS.into())?;
        Ok(reply)
    }

    fn has_strings(&self, answer: &Answer) -> bool {
        answer.status & HIGH_BANDWIDTH != 0 && !self.words_only
    }

    fn send_string(&mut self, request: &[u8]) -> Result<(), GuestRpcError> {
        if request.is_empty() {
            return Ok(());
        }
        // RSI is the data's: the cookie that is there otherwise goes to RBP.
        let mut gprs = Gprs { rbp: self.opened.rsi, ..self.string(request.len()) };
        let result = self.emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, request);
        string_done(GuestRpcStep::RequestData, result, &gprs)
    }

    fn receive_string(&mut self, reply: &mut [u8]) -> Result<(), GuestRpcError> {
        if reply.is_empty() {
            return Ok(());
        }
        let mut gprs = Gprs { rbp: self.opened.rdi, ..self.string(reply.len()) };
        let result = self.emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, reply);
        string_done(GuestRpcStep::ReplyData, result, &gprs)
    }

    /// The registers of a string instruction on the high-bandwidth port.
    fn string(&self, len: usize) -> Gprs {
        let rdx = self.opened.rdx | u64::from(VmwareBackdoor::HIGH_BANDWIDTH_PORT);
        Gprs { rax: MAGIC, rbx: u64::from(SUCCESS) << 16, rcx: len as u64, rdx, ..self.opened }
    }

    /// One access to the low-bandwidth port: EBX in, registers and status out.
    fn step(&mut self, step: GuestRpcStep, ebx: u32) -> Result<Answer, GuestRpcError> {
        let (rcx, rdx) = ((step as u64) << 16 | 30, self.opened.rdx | u64::from(VmwareBackdoor::PORT));
        let mut gprs = Gprs { rax: MAGIC, rbx: ebx.into(), rcx, rdx, ..self.opened };
        let result = self.emulator.execute(IoInsn::in_dx(Width::Dword), &mut gprs);
        result.map_err(|error| GuestRpcError::Access { step, error })?;
        // Where there is no message channel, EAX is all ones, and ECX may be as it was.
        let status = if gprs.rax as u32 == u32::MAX { 0 } else { (gprs.rcx >> 16) as u16 };
        succeeded(step, status)?;
        Ok(Answer { gprs, status })
    }
}

impl<E: Events> Drop for GuestRpc<'_, E> {
    fn drop(&mut self) {
        // A device model that has panicked may panic again, which would end the process.
        if self.is_open && !std::thread::panicking() {
            let _ = self.step(GuestRpcStep::Close, 0);
        }
    }
}

const MAGIC: u64 = VmwareBackdoor::MAGIC as u64;

/// What came of a step that succeeded.
struct Answer {
    gprs: Gprs,
    status: u16,
}

/// Tries again what a checkpoint of the virtual machine has interrupted.
fn retried<T>(mut attempt: impl FnMut() -> Result<T, GuestRpcError>) -> Result<T, GuestRpcError> {
    for _ in 0..RETRIES {
        match attempt() {
            Err(GuestRpcError::Refused { status, .. }) if status & CHECKPOINT != 0 => {}
            result => return result,
        }
    }
    attempt()
}

fn string_done(step: GuestRpcStep, result: Result<usize, Error>, gprs: &Gprs) -> Result<(), GuestRpcError> {
    result.map_err(|error| GuestRpcError::Access { step, error })?;
    succeeded(step, (gprs.rbx >> 16) as u16)
}

fn succeeded(step: GuestRpcStep, status: u16) -> Result<(), GuestRpcError> {
    if status & SUCCESS != 0 { Ok(()) } else { Err(GuestRpcError::Refused { step, status }) }
}

/// The steps of a request, by the numbers that they have in ECX's high word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GuestRpcStep {
    /// A channel is opened.
    Open = 0,
    /// The request is announced.
    RequestSize = 1,
    /// The request is sent: four bytes of it, or all.
    RequestData = 2,
    /// The host is asked how long the reply is.
    ReplySize = 3,
    /// The reply is received: four bytes of it, or all.
    ReplyData = 4,
    /// The host is told that the reply has come.
    ReplyEnd = 5,
    /// The channel is closed.
    Close = 6,
}

impl fmt::Display for GuestRpcStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::RequestSize => "request size",
            Self::RequestData => "request data",
            Self::ReplySize => "reply size",
            Self::ReplyData => "reply data",
            Self::ReplyEnd => "end of reply",
            Self::Close => "close",
        })
    }
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestRpcError {
    /// The access was not made.
    #[error("the step \"{step}\" could not be made: {error}")]
    Access {
        /// The step that it was for.
        step: GuestRpcStep,
        /// The emulator's error.
        error: Error,
    },
    /// The host does not go along; or there is none.
    #[error("the host ended the exchange at the step \"{step}\", with status {status:#x}")]
    Refused {
        /// What was asked for.
        step: GuestRpcStep,
        /// The status that it returned (`MESSAGE_STATUS_…` in `guest_msg_def.h`), without bit 0; 0 where nobody answered.
        status: u16,
    },
    /// The host took the request, and has nothing to say.
    #[error("the host took the request and has no reply to it")]
    NoReply,
    /// The reply is longer than 16 MiB.
    #[error("the host's reply of {size} bytes is longer than the {MAX_REPLY} that are received")]
    ReplyTooLong {
        /// Its length in bytes.
        size: u32,
    },
}
