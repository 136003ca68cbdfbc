//! VMware's backdoor: a port access that is really a call, with arguments and answers in the other registers.

use crate::{Gprs, PortAccess, PortDevice, StringError, Width};

mod message;

use message::Channels;

/// The VMware backdoor, port 0x5658: an IN or OUT of EAX with the magic number in EAX and a command in CX. Attach it to
/// `0x5658..=0x565b`, the ports that a dword there covers; the high-bandwidth port 0x5659 is among them.
///
/// | CX | command | answer |
/// |---|---|---|
/// | 10 | version | EAX = 6, EBX = the magic number, ECX = 2 (the product: GSX, as QEMU says too) |
/// | 19 | UUID | its sixteen bytes in EAX, EBX, ECX and EDX, each little-endian |
/// | 20 | memory size | EAX = MiB |
/// | 30 | message channel | see [`rpc`](Self::rpc) |
/// | 68 | vCPU information | EAX = flags; bit 31 clear says that the command is there |
///
/// Any other command leaves `0xFFFF_FFFF` in EAX. Without the magic number, or at another width, nobody is there: the
/// port reads as all ones. OUT answers as IN does. Numbers and register roles are those of open-vm-tools
/// (`backdoor_def.h`, `guest_msg_def.h`).
///
/// ```
/// use ioemul::devices::VmwareBackdoor;
/// use ioemul::{Gprs, IoEmulator, IoInsn, PortSet, SoftwareBus, Width};
///
/// let mut bus = SoftwareBus::new();
/// bus.attach(0x5658..=0x565b, VmwareBackdoor::new())?;
/// let mut emulator = IoEmulator::builder().ports(PortSet::from(0x5658..=0x565b)).bus(bus).build()?;
/// let mut gprs = Gprs { rax: VmwareBackdoor::MAGIC.into(), rcx: 10, rdx: 0x5658, ..Gprs::default() };
/// emulator.execute(IoInsn::in_dx(Width::Dword), &mut gprs)?;
/// assert_eq!((gprs.rax, gprs.rbx, gprs.rcx), (6, VmwareBackdoor::MAGIC.into(), 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct VmwareBackdoor {
    uuid: [u8; 16],
    memory_mib: u32,
    vcpu_info: u32,
    channels: Option<Channels>,
}

impl VmwareBackdoor {
    /// The port of the low-bandwidth interface.
    pub const PORT: u16 = 0x5658;

    /// The port for INS and OUTS.
    pub const HIGH_BANDWIDTH_PORT: u16 = 0x5659;

    /// What EAX has to hold: `VMXh`.
    pub const MAGIC: u32 = 0x564d_5868;

    const UNSUPPORTED: u32 = u32::MAX;

    /// A backdoor that knows its version: the UUID, the memory size and the vCPU flags are 0, and there is no message
    /// channel.
    pub fn new() -> Self {
        Self::default()
    }

    /// The UUID of the virtual machine, as its sixteen bytes stand in SMBIOS.
    pub fn uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = uuid;
        self
    }

    /// The size of its memory.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The vCPU flags: bit 1, TSCs are in step; bit 3, the x2APIC needs no interrupt remapping; bit 4, MMIO honours
    /// PAT.
    pub fn vcpu_info(mut self, flags: u32) -> Self {
        self.vcpu_info = flags & !(1 << 31);
        self
    }

    /// Opens the message channel, over which guests send GuestRPC requests such as `info-get guestinfo.x`: `host` is
    /// given each request and returns the reply, which by convention starts with `1 ` for success and `0 ` for failure.
    ///
    /// A message goes in steps, named in ECX's high word; its low word is 30, EDX's high word the channel. Status comes
    /// back in ECX's high word: bit 0 success, bit 1 a reply is waiting.
    ///
    /// | step | in | out |
    /// |---|---|---|
    /// | 0 open | EBX = `RPCI`, bit 31 asks for cookies | EDX high = channel, ESI and EDI = cookies |
    /// | 1 request size | EBX = bytes | |
    /// | 2 request data | EBX = the next four bytes | |
    /// | 3 reply size | | EBX = bytes, EDX high = 1 |
    /// | 4 reply data | EBX = 1 (all well so far) | EBX = the next four bytes, EDX high = 2 |
    /// | 5 end of reply | EBX = 1 | |
    /// | 6 close | | |
    ///
    /// In place of steps 2 and 4, all the data may go at once by REP OUTSB to, or REP INSB from, the high-bandwidth
    /// port 0x5659 (bit 7 of the status of steps 1 and 3 says so): EBX = 0x10000, with the status coming back in its
    /// high word, and the cookies in EBP and EDI (OUTSB) or ESI and EBP (INSB), the registers that the instruction
    /// leaves free.
    ///
    /// Eight channels, requests of at most 64 KiB; a channel opened with cookies answers only to them.
    pub fn rpc(mut self, host: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        self.channels = Some(Channels::new(host));
        self
    }

    /// Carries out the command in CX. Returns what goes to EAX.
    fn call(&mut self, gprs: &mut Gprs) -> u32 {
        match (gprs.rcx as u16, &mut self.channels) {
            (10, _) => {
                gprs.rbx = Self::MAGIC.into();
                gprs.rcx = 2;
                6
            }
            (19, _) => {
                let [eax, ebx, ecx, edx] = core::array::from_fn(|word| {
                    u32::from_le_bytes(self.uuid[word * 4..][..4].try_into().expect("four bytes"))
                });
                (gprs.rbx, gprs.rcx, gprs.rdx) = (ebx.into(), ecx.into(), edx.into());
                eax
            }
            (20, _) => self.memory_mib,
            (30, Some(channels)) => {
                channels.step(gprs);
                gprs.rax as u32
            }
            (68, _) => self.vcpu_info,
            _ => Self::UNSUPPORTED,
        }
    }

    /// The channels, for a string instruction of bytes with the magic number.
    fn high_bandwidth(&mut self, access: PortAccess, gprs: &Gprs) -> Option<&mut Channels> {
        let is_call = access.port == Self::HIGH_BANDWIDTH_PORT && access.width == Width::Byte;
        self.channels.as_mut().filter(|_| is_call && gprs.rax as u32 == Self::MAGIC)
    }

    fn is_call(access: PortAccess, gprs: &Gprs) -> bool {
        access.port == Self::PORT && access.width == Width::Dword && gprs.rax as u32 == Self::MAGIC
    }
}

impl PortDevice for VmwareBackdoor {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        if Self::is_call(access, gprs) { self.call(gprs) } else { u32::MAX }
    }

    fn port_out(&mut self, access: PortAccess, _: u32, gprs: &mut Gprs) {
        if Self::is_call(access, gprs) {
            gprs.rax = self.call(gprs).into();
        }
    }

    fn try_read_string(&mut self, access: PortAccess, data: &mut [u8], gprs: &mut Gprs) -> Result<(), StringError> {
        data.fill(0xff);
        if let Some(channels) = self.high_bandwidth(access, gprs) {
            channels.receive_string(data, gprs);
        }
        Ok(())
    }

    fn try_write_string(&mut self, access: PortAccess, data: &[u8], gprs: &mut Gprs) -> Result<(), StringError> {
        if let Some(channels) = self.high_bandwidth(access, gprs) {
            channels.send_string(data, gprs);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Direction, IoInsn};

    fn call(device: &mut VmwareBackdoor, direction: Direction, width: Width, gprs: Gprs) -> Gprs {
        let access = PortAccess { port: 0x5658, width, direction, insn: IoInsn::in_dx(width) };
        let mut after = gprs;
        match direction {
            Direction::In => after.rax = width.merge(gprs.rax, device.port_in(access, &mut after)),
            Direction::Out => device.port_out(access, gprs.rax as u32, &mut after),
        }
        after
    }

    fn command(rcx: u64) -> Gprs {
        Gprs { rax: VmwareBackdoor::MAGIC.into(), rcx, rdx: 0x5658, rsi: 7, ..Gprs::default() }
    }

    #[test]
    fn commands_answer_in_their_registers() {
        let mut device =
            VmwareBackdoor::new().uuid(core::array::from_fn(|index| index as u8)).memory_mib(256).vcpu_info(u32::MAX);
        for direction in [Direction::In, Direction::Out] {
            let mut answer = |rcx| call(&mut device, direction, Width::Dword, command(rcx));
            assert_eq!(answer(10), Gprs { rax: 6, rbx: 0x564d_5868, rcx: 2, ..command(10) });
            assert_eq!(
                answer(19),
                Gprs { rax: 0x0302_0100, rbx: 0x0706_0504, rcx: 0x0b0a_0908, rdx: 0x0f0e_0d0c, ..command(19) }
            );
            assert_eq!(answer(20), Gprs { rax: 256, ..command(20) });
            assert_eq!(answer(68), Gprs { rax: 0x7fff_ffff, ..command(68) });
            assert_eq!(answer(30), Gprs { rax: 0xffff_ffff, ..command(30) }); // no message channel
            assert_eq!(answer(99), Gprs { rax: 0xffff_ffff, ..command(99) });
        }
    }

    #[test]
    fn without_the_magic_number_or_a_dword_nobody_is_there() {
        let mut device = VmwareBackdoor::new();
        let stranger = Gprs { rax: 1, ..command(10) };
        assert_eq!(call(&mut device, Direction::In, Width::Dword, stranger), Gprs { rax: 0xffff_ffff, ..stranger });
        assert_eq!(call(&mut device, Direction::Out, Width::Dword, stranger), stranger);
        assert_eq!(call(&mut device, Direction::In, Width::Word, command(10)).rbx, 0);
    }
}
