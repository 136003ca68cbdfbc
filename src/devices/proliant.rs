//! HP's SMM port, which has to be waited for.

use crate::{Gprs, PortAccess, PortDevice};

/// The SMM port of HP's ProLiant servers, 0xCD4: a byte OUT with bit 7 set calls a service, and until that is done the
/// port reads with bit 7 set.
///
/// Whoever does not poll reads an answer that is not there yet: what [`Quirk::PROLIANT`](crate::Quirk::PROLIANT) is
/// for.
///
/// ```
/// use ioemul::devices::ProLiantPort;
/// use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, QuirkTable, SoftwareBus, Width};
///
/// let mut bus = SoftwareBus::new();
/// bus.attach(0xcd4..=0xcd4, ProLiantPort::new(5))?;
/// let ports = PortSet::from(0xcd4..=0xcd4);
/// let mut emulator = IoEmulator::builder().quirks(QuirkTable::builtin()).ports(ports).bus(bus).build()?;
/// let mut gprs = Gprs { rax: 0x85, rdx: 0xcd4, ..Gprs::default() };
/// emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs)?;
/// assert_eq!(gprs.rax, 0x05); // it has waited: bit 7 is clear
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProLiantPort {
    polls: u32,
    polls_left: u32,
    service: u8,
}

impl ProLiantPort {
    /// A port that reads busy `polls` times after each call, and then as the number of the service with bit 7 clear. (A
    /// quirk's poll gives up after [`Step::BUS_POLL_LIMIT`](crate::Step::BUS_POLL_LIMIT) reads.)
    pub fn new(polls: u32) -> Self {
        Self { polls, polls_left: 0, service: 0 }
    }

    /// Whether a call is not done yet.
    pub fn is_busy(&self) -> bool {
        self.polls_left > 0
    }
}

impl PortDevice for ProLiantPort {
    fn port_in(&mut self, _: PortAccess, _: &mut Gprs) -> u32 {
        let busy = if self.is_busy() { 0x80 } else { 0 };
        self.polls_left = self.polls_left.saturating_sub(1);
        u32::from(self.service | busy)
    }

    fn port_out(&mut self, _: PortAccess, value: u32, _: &mut Gprs) {
        self.service = value as u8 & 0x7f;
        self.polls_left = if value & 0x80 != 0 { self.polls } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Width::Byte;
    use crate::devices::testing::{read, write};

    #[test]
    fn busy_for_as_many_polls_as_it_was_told() {
        let mut port = ProLiantPort::new(2);
        write(&mut port, 0xcd4, Byte, 0x85);
        assert!(port.is_busy());
        let answers = [(); 4].map(|()| read(&mut port, 0xcd4, Byte));
        assert_eq!(answers, [0x85, 0x85, 0x05, 0x05]);
    }

    #[test]
    fn without_bit_7_nothing_is_called() {
        let mut port = ProLiantPort::new(2);
        write(&mut port, 0xcd4, Byte, 0x05);
        assert_eq!(read(&mut port, 0xcd4, Byte), 0x05);
    }
}
