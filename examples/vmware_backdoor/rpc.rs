//! GuestRPC, as a guest's driver speaks it: a request to the host and its reply, through a channel of the backdoor. The
//! registers carry everything, cookies in ESI, EDI and EBP included, four bytes to an access, or all of them in one REP
//! OUTSB or REP INSB on the high-bandwidth port.

use ioemul::devices::VmwareBackdoor;
use ioemul::{Gprs, IoEmulator, IoInsn, Width};

/// `RPCI`, and the request for cookies.
const PROTOCOL: u32 = 0x4943_5052 | 1 << 31;
/// Statuses of the channel.
const SUCCESS: u16 = 1;
const HIGH_BANDWIDTH: u16 = 0x80;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The access was not made.
    #[error(transparent)]
    Access(#[from] ioemul::Error),
    /// The host does not go along.
    #[error("the host ended the exchange at the step \"{step}\", with status {status:#x}")]
    Refused {
        /// What was asked for.
        step: &'static str,
        /// The status it returned.
        status: u16,
    },
}

/// An open channel.
pub struct Channel<'e> {
    emulator: &'e mut IoEmulator,
    /// EDX, ESI and EDI as opening it left them: its number and its cookies.
    opened: Gprs,
}

impl<'e> Channel<'e> {
    /// Opens a channel.
    pub fn open(emulator: &'e mut IoEmulator) -> Result<Self, RpcError> {
        let mut channel = Self { emulator, opened: Gprs::default() };
        channel.opened = channel.step("open", 0, PROTOCOL)?.0;
        Ok(channel)
    }

    /// Sends a request and receives the reply, in strings if the host has them, else word by word.
    pub fn request(&mut self, request: &[u8]) -> Result<Vec<u8>, RpcError> {
        let (_, status) = self.step("request size", 1, request.len() as u32)?;
        let strings = status & HIGH_BANDWIDTH != 0;
        match strings {
            true => self.send_string(request)?,
            false => self.send_words(request)?,
        }
        let mut reply = vec![0; self.step("reply size", 3, 0)?.0.rbx as u32 as usize];
        match strings {
            true => self.receive_string(&mut reply)?,
            false => self.receive_words(&mut reply)?,
        }
        self.step("end of reply", 5, SUCCESS.into())?;
        Ok(reply)
    }

    /// Gives the channel back.
    pub fn close(mut self) -> Result<(), RpcError> {
        self.step("close", 6, 0).map(drop)
    }

    fn send_words(&mut self, request: &[u8]) -> Result<(), RpcError> {
        for chunk in request.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.step("request data", 2, u32::from_le_bytes(word))?;
        }
        Ok(())
    }

    fn receive_words(&mut self, reply: &mut [u8]) -> Result<(), RpcError> {
        for chunk in reply.chunks_mut(4) {
            let word = self.step("reply data", 4, SUCCESS.into())?.0.rbx as u32;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    fn send_string(&mut self, request: &[u8]) -> Result<(), RpcError> {
        // RSI is the data's: the cookie that is there otherwise goes to RBP.
        let mut gprs = Gprs { rbp: self.opened.rsi, ..self.string(request.len()) };
        self.emulator.write_string(IoInsn::rep_outs(Width::Byte), &mut gprs, request)?;
        succeeded("request string", (gprs.rbx >> 16) as u16)
    }

    fn receive_string(&mut self, reply: &mut [u8]) -> Result<(), RpcError> {
        let mut gprs = Gprs { rbp: self.opened.rdi, ..self.string(reply.len()) };
        self.emulator.read_string(IoInsn::rep_ins(Width::Byte), &mut gprs, reply)?;
        succeeded("reply string", (gprs.rbx >> 16) as u16)
    }

    /// One access to the low-bandwidth port: EBX in, registers and status out.
    fn step(&mut self, step: &'static str, number: u64, ebx: u32) -> Result<(Gprs, u16), RpcError> {
        let (rcx, rdx) = (number << 16 | 30, self.port(VmwareBackdoor::PORT));
        let mut gprs = Gprs { rax: VmwareBackdoor::MAGIC.into(), rbx: ebx.into(), rcx, rdx, ..self.opened };
        self.emulator.execute(IoInsn::in_dx(Width::Dword), &mut gprs)?;
        let status = (gprs.rcx >> 16) as u16;
        // Where there is no message channel, EAX is all ones and ECX as it was.
        let answered = gprs.rax as u32 != u32::MAX;
        succeeded(step, if answered { status } else { 0 })?;
        Ok((gprs, status))
    }

    /// The registers of a string instruction on the high-bandwidth port.
    fn string(&self, len: usize) -> Gprs {
        let (rax, rdx) = (VmwareBackdoor::MAGIC.into(), self.port(VmwareBackdoor::HIGH_BANDWIDTH_PORT));
        Gprs { rax, rbx: u64::from(SUCCESS) << 16, rcx: len as u64, rdx, ..self.opened }
    }

    /// DX, below the channel's number.
    fn port(&self, port: u16) -> u64 {
        self.opened.rdx & 0xffff_0000 | u64::from(port)
    }
}

fn succeeded(step: &'static str, status: u16) -> Result<(), RpcError> {
    if status & SUCCESS != 0 { Ok(()) } else { Err(RpcError::Refused { step, status }) }
}
