//! The message channels of the backdoor: a request and its reply, four bytes to an access or all in one string
//! instruction.

use core::fmt;

use crate::Gprs;

/// `RPCI`, guest to host: the protocol of GuestRPC.
const RPCI: u32 = 0x4943_5052;
/// `TCLO`, host to guest: the guest polls for messages, and answers them.
const TCLO: u32 = 0x4f4c_4354;
/// In the protocol word: the guest wants a channel that nobody else can use.
const WITH_COOKIES: u32 = 1 << 31;
/// What a guest can make the host hold, per channel.
const MAX_REQUEST: u32 = 64 * 1024;

/// Status, in the high word of ECX.
const FAILURE: u16 = 0;
const SUCCESS: u16 = 1;
const REPLY_WAITING: u16 = 2;
/// The data may go through the high-bandwidth port.
const HIGH_BANDWIDTH: u16 = 0x80;

/// All channels of one virtual machine.
pub(super) struct Channels {
    host: Box<Host>,
    channels: [Option<Channel>; 8],
    /// Of all times: what makes cookies differ.
    opened: u32,
}

/// Answers a request.
type Host = dyn FnMut(&[u8]) -> Vec<u8> + Send;

/// An open channel.
struct Channel {
    protocol: Protocol,
    cookies: Option<(u32, u32)>,
    request: Vec<u8>,
    /// Bytes of the request still to come.
    missing: usize,
    /// The answer to the last complete request, until the guest has taken it.
    reply: Option<Vec<u8>>,
    /// Bytes of the reply that the guest has.
    taken: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The host answers each request.
    Rpci,
    /// The host, that is us, has nothing to say.
    Tclo,
}

impl Channels {
    pub fn new(host: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        Self { host: Box::new(host), channels: Default::default(), opened: 0 }
    }

    /// One step of the protocol, as the registers describe it.
    pub fn step(&mut self, gprs: &mut Gprs) {
        let status = match (gprs.rcx >> 16) as u16 {
            0 => self.open(gprs),
            6 => self.close(gprs),
            step => match self.find(gprs, (gprs.rsi, gprs.rdi)) {
                None => FAILURE,
                Some((channel, host)) => match step {
                    1 => channel.begin(gprs.rbx as u32, host),
                    2 => channel.send(&(gprs.rbx as u32).to_le_bytes(), host),
                    3 => channel.reply_size(gprs),
                    4 => channel.reply_data(gprs),
                    5 => channel.end_of_reply(gprs),
                    _ => FAILURE,
                },
            },
        };
        gprs.rcx = in_high_word(status);
    }

    fn open(&mut self, gprs: &mut Gprs) -> u16 {
        let wanted = gprs.rbx as u32;
        let protocol = match wanted & !WITH_COOKIES {
            RPCI => Protocol::Rpci,
            TCLO => Protocol::Tclo,
            _ => return FAILURE,
        };
        let Some(id) = self.channels.iter().position(Option::is_none) else {
            return FAILURE;
        };
        self.opened = self.opened.wrapping_add(1).max(1); // cookies of 0 would look like none
        let cookies = (wanted & WITH_COOKIES != 0)
            .then(|| (self.opened.wrapping_mul(0x9e37_79b9), self.opened.wrapping_mul(0x85eb_ca6b)));
        if let Some((high, low)) = cookies {
            (gprs.rsi, gprs.rdi) = (high.into(), low.into());
        }
        gprs.rdx = in_high_word(id as u16);
        self.channels[id] = Some(Channel { protocol, cookies, request: Vec::new(), missing: 0, reply: None, taken: 0 });
        SUCCESS
    }

    fn close(&mut self, gprs: &Gprs) -> u16 {
        if self.find(gprs, (gprs.rsi, gprs.rdi)).is_none() {
            return FAILURE;
        }
        self.channels[usize::from(high_word(gprs.rdx))] = None;
        SUCCESS
    }

    /// REP OUTSB to the high-bandwidth port: what is missing of the request.
    pub fn send_string(&mut self, data: &[u8], gprs: &mut Gprs) {
        let status = match self.find(gprs, (gprs.rbp, gprs.rdi)) {
            Some((channel, host)) if is_message(gprs) => channel.send(data, host),
            _ => FAILURE,
        };
        gprs.rbx = in_high_word(status);
    }

    /// REP INSB from the high-bandwidth port: what the guest does not have yet of the reply.
    pub fn receive_string(&mut self, data: &mut [u8], gprs: &mut Gprs) {
        let status = match self.find(gprs, (gprs.rsi, gprs.rbp)) {
            Some((channel, _)) if is_message(gprs) => channel.receive(data),
            _ => FAILURE,
        };
        gprs.rbx = in_high_word(status);
    }

    /// The channel that EDX names, if it is open and these are its cookies, the high one first.
    fn find(&mut self, gprs: &Gprs, (high, low): (u64, u64)) -> Option<(&mut Channel, &mut Host)> {
        let channel = self.channels.get_mut(usize::from(high_word(gprs.rdx)))?.as_mut()?;
        let shown = (high as u32, low as u32);
        channel.cookies.is_none_or(|cookies| cookies == shown).then_some((channel, &mut *self.host))
    }
}

impl Channel {
    /// A new request of `size` bytes. What was left of an old one, or of its reply, is gone.
    fn begin(&mut self, size: u32, host: &mut Host) -> u16 {
        if size > MAX_REQUEST {
            return FAILURE;
        }
        self.request.clear();
        self.missing = size as usize;
        self.reply = None;
        if size == 0 {
            self.complete(host);
        }
        SUCCESS | HIGH_BANDWIDTH
    }

    /// The next bytes of the request; those beyond its end are padding.
    fn send(&mut self, bytes: &[u8], host: &mut Host) -> u16 {
        if self.missing == 0 {
            return FAILURE;
        }
        let count = bytes.len().min(self.missing);
        self.request.extend_from_slice(&bytes[..count]);
        self.missing -= count;
        if self.missing == 0 {
            self.complete(host);
        }
        SUCCESS
    }

    fn complete(&mut self, host: &mut Host) {
        if self.protocol == Protocol::Rpci {
            self.reply = Some(host(&self.request));
            self.taken = 0;
        }
    }

    fn reply_size(&mut self, gprs: &mut Gprs) -> u16 {
        let Some(reply) = &self.reply else {
            return SUCCESS;
        };
        self.taken = 0; // a guest that was interrupted asks again, and begins anew
        gprs.rbx = reply.len() as u64;
        gprs.rdx = in_high_word(1); // what the host does now: step 1, from its side
        SUCCESS | REPLY_WAITING | HIGH_BANDWIDTH
    }

    fn reply_data(&mut self, gprs: &mut Gprs) -> u16 {
        if !is_well(gprs) {
            return self.drop_reply();
        }
        let left = self.reply.as_ref().map_or(0, |reply| reply.len() - self.taken);
        let mut word = [0; 4];
        if self.receive(&mut word[..left.min(4)]) == FAILURE {
            return FAILURE;
        }
        gprs.rbx = u32::from_le_bytes(word).into();
        gprs.rdx = in_high_word(2); // step 2, from the host's side
        SUCCESS
    }

    /// The next bytes of the reply, as many as there is room for.
    fn receive(&mut self, data: &mut [u8]) -> u16 {
        let rest = self.reply.as_ref().and_then(|reply| reply.get(self.taken..self.taken + data.len()));
        let Some(rest) = rest else {
            return FAILURE;
        };
        data.copy_from_slice(rest);
        self.taken += data.len();
        SUCCESS
    }

    fn end_of_reply(&mut self, gprs: &Gprs) -> u16 {
        match &self.reply {
            None if is_well(gprs) => FAILURE,
            _ => self.drop_reply(),
        }
    }

    /// The guest could not receive it, or has it.
    fn drop_reply(&mut self) -> u16 {
        self.reply = None;
        SUCCESS
    }
}

/// Whether the guest could receive what came so far. Of the status that it sends, no other bit is its to set.
fn is_well(gprs: &Gprs) -> bool {
    gprs.rbx as u16 & SUCCESS != 0
}

/// The high-bandwidth port's command 0, with its status so far.
fn is_message(gprs: &Gprs) -> bool {
    gprs.rbx as u32 == u32::from(SUCCESS) << 16
}

fn high_word(register: u64) -> u16 {
    (register >> 16) as u16
}

/// A whole register: clients compare all of it (iPXE), or want the low word 0 (vmt(4)).
fn in_high_word(word: u16) -> u64 {
    u64::from(word) << 16
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.channels.iter().flatten().count();
        f.debug_struct("Channels").field("open", &open).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels() -> Channels {
        Channels::new(|request| [b"1 ", request].concat())
    }

    /// A step with these registers; returns the status and the registers afterwards.
    fn step(channels: &mut Channels, step: u64, rbx: u32, guest: &Gprs) -> (u16, Gprs) {
        let mut gprs = Gprs { rbx: rbx.into(), rcx: step << 16 | 30, ..*guest };
        channels.step(&mut gprs);
        assert_eq!(gprs.rcx & !0xffff_0000, 0);
        (high_word(gprs.rcx), gprs)
    }

    fn open(channels: &mut Channels) -> Gprs {
        let (status, gprs) = step(channels, 0, RPCI | WITH_COOKIES, &Gprs { rdx: 0x5658, ..Gprs::default() });
        assert_eq!((status, gprs.rdx & 0xffff), (SUCCESS, 0));
        gprs
    }

    #[test]
    fn a_request_and_its_reply() {
        let channels = &mut channels();
        let guest = open(channels);
        assert_eq!(step(channels, 1, 5, &guest).0, SUCCESS | HIGH_BANDWIDTH);
        assert_eq!(step(channels, 2, u32::from_le_bytes(*b"hell"), &guest).0, SUCCESS);
        assert_eq!(step(channels, 3, 0, &guest).0, SUCCESS); // no reply yet
        assert_eq!(step(channels, 2, u32::from_le_bytes(*b"oXYZ"), &guest).0, SUCCESS);
        assert_eq!(step(channels, 2, 0, &guest).0, FAILURE); // more than was announced

        let (status, gprs) = step(channels, 3, 0, &guest);
        assert_eq!((status, gprs.rbx, high_word(gprs.rdx)), (SUCCESS | REPLY_WAITING | HIGH_BANDWIDTH, 7, 1));
        let words = [(); 2].map(|()| {
            let (status, gprs) = step(channels, 4, 1, &guest);
            assert_eq!((status, high_word(gprs.rdx)), (SUCCESS, 2));
            (gprs.rbx as u32).to_le_bytes()
        });
        assert_eq!(words.concat(), b"1 hello\0");
        step(channels, 3, 0, &guest); // from the beginning
        assert_eq!(step(channels, 4, 1, &guest).1.rbx as u32, u32::from_le_bytes(*b"1 he"));
        assert_eq!(step(channels, 5, 1, &guest).0, SUCCESS);
        assert_eq!(step(channels, 3, 0, &guest).0, SUCCESS);
        assert_eq!(step(channels, 6, 0, &guest).0, SUCCESS);
        assert_eq!(step(channels, 1, 5, &guest).0, FAILURE); // closed
    }

    #[test]
    fn what_a_guest_may_not_do() {
        let channels = &mut channels();
        let nobody = Gprs::default();
        assert_eq!(step(channels, 0, 0x4f4c_4355, &nobody).0, FAILURE); // no such protocol
        assert_eq!(step(channels, 1, 5, &nobody).0, FAILURE); // no channel is open
        let guest = open(channels);
        assert_eq!(step(channels, 1, MAX_REQUEST + 1, &guest).0, FAILURE);
        assert_eq!(step(channels, 1, 5, &Gprs { rdi: 0, ..guest }).0, FAILURE); // somebody else's cookie
        assert_eq!(step(channels, 4, 1, &guest).0, FAILURE); // no reply
        assert_eq!(step(channels, 5, 1, &guest).0, FAILURE);
        assert_eq!(step(channels, 7, 0, &guest).0, FAILURE);
        assert_eq!(step(channels, 1, 5, &Gprs { rdx: 0xffff_5658, ..guest }).0, FAILURE);
        for _ in 1..8 {
            open(channels);
        }
        assert_eq!(step(channels, 0, RPCI, &nobody).0, FAILURE); // all eight are open
    }

    #[test]
    fn a_request_and_its_reply_as_strings() {
        let channels = &mut channels();
        let guest = open(channels);
        step(channels, 1, 5, &guest);
        let high_bandwidth = |rbp, rsi, rdi| Gprs { rbx: 0x1_0000, rbp, rsi, rdi, ..guest };
        let mut gprs = high_bandwidth(guest.rsi, 0, guest.rdi);
        channels.send_string(b"hello", &mut gprs);
        assert_eq!(high_word(gprs.rbx), SUCCESS);
        assert_eq!(step(channels, 3, 0, &guest).1.rbx, 7);

        let (mut reply, mut gprs) = ([0; 7], high_bandwidth(guest.rdi, guest.rsi, 0));
        channels.receive_string(&mut reply, &mut gprs);
        assert_eq!((high_word(gprs.rbx), &reply), (SUCCESS, b"1 hello"));
        channels.receive_string(&mut reply, &mut Gprs { rbx: 0x1_0000, ..gprs });
        for wrong in [Gprs { rbp: 1, ..gprs }, Gprs { rbx: 0x1_0001, ..gprs }, gprs] {
            let mut gprs = wrong;
            channels.receive_string(&mut reply, &mut gprs); // another cookie, another command, nothing left
            assert_eq!(gprs.rbx, 0);
        }
    }

    #[test]
    fn a_reply_that_could_not_be_received_is_dropped() {
        for failing in [4, 5] {
            let channels = &mut channels();
            let guest = open(channels);
            step(channels, 1, 4, &guest);
            step(channels, 2, 0, &guest);
            assert_eq!(step(channels, 3, 0, &guest).0, SUCCESS | REPLY_WAITING | HIGH_BANDWIDTH);
            assert_eq!(step(channels, failing, 0x80 | REPLY_WAITING as u32, &guest).0, SUCCESS);
            assert_eq!(step(channels, 3, 0, &guest).0, SUCCESS); // nothing is waiting
            assert_eq!(step(channels, 4, 1, &guest).0, FAILURE);
            assert_eq!(step(channels, failing, 0, &guest).0, SUCCESS); // again, to no effect
        }
    }

    #[test]
    fn over_tclo_there_is_never_a_message() {
        let channels = &mut Channels::new(|_| panic!("what the guest says is no request"));
        for cookies in [0, WITH_COOKIES] {
            let (status, guest) = step(channels, 0, TCLO | cookies, &Gprs::default());
            assert_eq!(status, SUCCESS);
            for word in [None, Some(u32::from_le_bytes(*b"OK A"))] {
                let size = if word.is_some() { 4 } else { 0 };
                assert_eq!(step(channels, 1, size, &guest).0, SUCCESS | HIGH_BANDWIDTH);
                if let Some(word) = word {
                    assert_eq!(step(channels, 2, word, &guest).0, SUCCESS);
                }
                let (status, gprs) = step(channels, 3, 0, &guest);
                assert_eq!((status, gprs.rbx), (SUCCESS, 0));
            }
            assert_eq!(step(channels, 6, 0, &guest).0, SUCCESS);
        }
    }

    #[test]
    fn an_empty_request_is_complete_at_once() {
        let channels = &mut channels();
        let guest = open(channels);
        step(channels, 1, 0, &guest);
        assert_eq!(step(channels, 3, 0, &guest).1.rbx, 2);
    }
}
