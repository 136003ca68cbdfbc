//! VMware's backdoor: a port access that is really a call, with arguments and answers in the other registers.

use core::fmt;
use std::time::{Duration, SystemTime};

use crate::{Gprs, PortAccess, PortDevice, StringError, Width};

mod message;

use message::Channels;

/// The VMware backdoor, port 0x5658: an IN or OUT of EAX with the magic number in EAX and a command in CX. Attach it to
/// `0x5658..=0x565b`, the ports that a dword there covers; the high-bandwidth port 0x5659 is among them.
///
/// | CX | command | answer |
/// |---|---|---|
/// | 1 | `GETMHZ` | EAX = MHz of the TSC, if [`frequencies`](Self::frequencies) says them |
/// | 10 | `GETVERSION` | EAX = 6, EBX = the magic number, ECX = the [`product`](Self::product) |
/// | 17 | `GETHWVERSION` | EAX = the [version](Self::hardware_version) of the virtual hardware |
/// | 19 | `GETUUID` | its sixteen bytes in EAX, EBX, ECX and EDX, each little-endian |
/// | 20 | `GETMEMSIZE` | EAX = MiB |
/// | 23 | `GETTIME` | EAX = seconds since 1970, EBX = microseconds, ECX = the lag to put up with, in microseconds |
/// | 30 | `MESSAGE` | see [`rpc`](Self::rpc) |
/// | 45 | `GETHZ` | EBX:EAX = Hz of the TSC, ECX = Hz of the APIC bus, if [`frequencies`](Self::frequencies) says them |
/// | 46 | `GETTIMEFULL` | ESI:EDX = seconds, EBX and ECX as for 23; EAX keeps the magic number |
/// | 68 | `GET_VCPU_INFO` | EAX = flags; bit 31 clear says that the command is there |
///
/// Any other command leaves `0xFFFF_FFFF` in EAX, and so does one whose answer is not known. Without the magic number,
/// or at another width, nobody is there: the port reads as all ones. OUT answers as IN does. Numbers and register roles
/// are those of open-vm-tools (`backdoor_def.h`, `guest_msg_def.h`, `vm_vmx_type.h`, and the programs that make the
/// calls) and of QEMU (`hw/i386/vmport.c`).
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
#[derive(Debug)]
#[doc(alias("vmport", "VMXh", "GuestRPC", "open-vm-tools"))]
pub struct VmwareBackdoor {
    product: u32,
    hardware_version: u32,
    uuid: [u8; 16],
    memory_mib: u32,
    vcpu_info: u32,
    frequencies: Option<Frequencies>,
    clock: Clock,
    channels: Option<Channels>,
}

#[derive(Clone, Copy, Debug)]
struct Frequencies {
    tsc_hz: u64,
    bus_hz: u32,
}

/// The time since 1970.
struct Clock(Box<dyn FnMut() -> Duration + Send>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

impl Default for VmwareBackdoor {
    fn default() -> Self {
        // A host whose clock stands before 1970 has no time to tell.
        let host = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            product: 2,
            hardware_version: 13,
            uuid: [0; 16],
            memory_mib: 0,
            vcpu_info: 0,
            frequencies: None,
            clock: Clock(Box::new(host)),
            channels: None,
        }
    }
}

impl VmwareBackdoor {
    /// The port of the low-bandwidth interface.
    pub const PORT: u16 = 0x5658;

    /// The port for INS and OUTS.
    pub const HIGH_BANDWIDTH_PORT: u16 = 0x5659;

    /// What EAX has to hold: `VMXh`.
    pub const MAGIC: u32 = 0x564d_5868;

    const UNSUPPORTED: u32 = u32::MAX;

    /// How far a guest's clock may be off before its tools set it: a second, in microseconds, as QEMU has it.
    const MAX_TIME_LAG: u32 = 1_000_000;

    /// A backdoor that knows its version and the host's time: an ESX server with hardware version 13, whose UUID, memory
    /// size and vCPU flags are 0. There are no frequencies, and there is no message channel.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which product this is: 1 VMware Express, 2 ESX server, 3 VMware Server (GSX), 4 Workstation, 5 ACE; 0 does not say.
    /// The default is 2, which QEMU says too.
    pub fn product(mut self, product: u32) -> Self {
        self.product = product;
        self
    }

    /// The version of the virtual hardware (`virtualHW.version`): 13, that of ESXi 6.5, by default.
    pub fn hardware_version(mut self, version: u32) -> Self {
        self.hardware_version = version;
        self
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

    /// The frequencies of the guest's TSC and of its APIC's bus, in Hz. Guests believe them, and calibrate their clocks
    /// themselves where nobody says them.
    pub fn frequencies(mut self, tsc_hz: u64, bus_hz: u32) -> Self {
        self.frequencies = Some(Frequencies { tsc_hz, bus_hz });
        self
    }

    /// What time it is for the guest, as the time since 1970 (UTC). The host's clock by default.
    pub fn clock(mut self, clock: impl FnMut() -> Duration + Send + 'static) -> Self {
        self.clock = Clock(Box::new(clock));
        self
    }

    /// Opens the message channel, over which guests send GuestRPC requests such as `info-get guestinfo.x`: `host` is
    /// given each request and returns the reply, which by convention starts with `1 ` for success and `0 ` for failure.
    /// Requests come as they were sent, and some guests send the NUL at the end of their string too.
    /// [`GuestRpc`](crate::guest_rpc::GuestRpc) is the guest's side.
    ///
    /// A message goes in steps, named in ECX's high word; its low word is 30, EDX's high word the channel. ECX comes back
    /// as the status in its high word, and 0 in its low one: bit 0 success, bit 1 a reply is waiting. Without a message
    /// channel it comes back as 0, and EAX as all ones.
    ///
    /// | step | in | out |
    /// |---|---|---|
    /// | 0 open | EBX = `RPCI` or `TCLO`, bit 31 asks for cookies | EDX = channel << 16, ESI and EDI = cookies |
    /// | 1 request size | EBX = bytes | |
    /// | 2 request data | EBX = the next four bytes | |
    /// | 3 reply size | | EBX = bytes, EDX high = 1 |
    /// | 4 reply data | EBX = 1 (all well so far) | EBX = the next four bytes, EDX high = 2 |
    /// | 5 end of reply | EBX = 1 | |
    /// | 6 close | | |
    ///
    /// EBX = 0 at step 4 or 5 says that the reply could not be received: it is dropped.
    ///
    /// In place of steps 2 and 4, all the data may go at once by REP OUTSB to, or REP INSB from, the high-bandwidth
    /// port 0x5659 (bit 7 of the status of steps 1 and 3 says so): EBX = 0x10000, which comes back as the status in the
    /// high word, and the cookies in EBP and EDI (OUTSB) or ESI and EBP (INSB), the registers that the instruction
    /// leaves free.
    ///
    /// Over a channel of the protocol `TCLO` the host has the word: the guest asks whether there is a message, and sends
    /// what it has to say to the last one. This host never has any: what the guest sends is lost, and no reply is ever
    /// waiting.
    ///
    /// Eight channels, requests of at most 64 KiB; a channel opened with cookies answers only to them.
    #[doc(alias("guestrpc", "guestinfo", "RPCI", "TCLO"))]
    pub fn rpc(mut self, host: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        self.channels = Some(Channels::new(host));
        self
    }

    /// Carries out the command in CX. Returns what goes to EAX.
    fn call(&mut self, gprs: &mut Gprs) -> u32 {
        match gprs.rcx as u16 {
            1 => self.frequencies.map_or(Self::UNSUPPORTED, |frequencies| (frequencies.tsc_hz / 1_000_000) as u32),
            10 => {
                gprs.rbx = Self::MAGIC.into();
                gprs.rcx = self.product.into();
                6
            }
            17 => self.hardware_version,
            19 => {
                let [eax, ebx, ecx, edx] = core::array::from_fn(|word| {
                    u32::from_le_bytes(self.uuid[word * 4..][..4].try_into().expect("four bytes"))
                });
                (gprs.rbx, gprs.rcx, gprs.rdx) = (ebx.into(), ecx.into(), edx.into());
                eax
            }
            20 => self.memory_mib,
            23 => self.time(gprs) as u32,
            30 => self.message(gprs),
            45 => self.hertz(gprs),
            46 => {
                let seconds = self.time(gprs);
                (gprs.rsi, gprs.rdx) = (seconds >> 32, seconds & 0xffff_ffff);
                Self::MAGIC
            }
            68 => self.vcpu_info,
            _ => Self::UNSUPPORTED,
        }
    }

    /// The seconds; microseconds and lag go to their registers.
    fn time(&mut self, gprs: &mut Gprs) -> u64 {
        let now = (self.clock.0)();
        (gprs.rbx, gprs.rcx) = (now.subsec_micros().into(), Self::MAX_TIME_LAG.into());
        now.as_secs()
    }

    fn hertz(&self, gprs: &mut Gprs) -> u32 {
        let Some(Frequencies { tsc_hz, bus_hz }) = self.frequencies else {
            gprs.rbx = Self::UNSUPPORTED.into(); // where guests look, for any EAX may be a frequency
            return Self::UNSUPPORTED;
        };
        (gprs.rbx, gprs.rcx) = (tsc_hz >> 32, bus_hz.into());
        tsc_hz as u32
    }

    fn message(&mut self, gprs: &mut Gprs) -> u32 {
        match &mut self.channels {
            Some(channels) => {
                channels.step(gprs);
                gprs.rax as u32
            }
            None => {
                gprs.rcx = 0; // a status of failure, for those that look there and not at EAX
                Self::UNSUPPORTED
            }
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

    /// 2106-02-07, when 32 bits of seconds are not enough.
    const SECONDS: u64 = 0x1_0000_0005;

    #[test]
    fn commands_answer_in_their_registers() {
        let mut device = VmwareBackdoor::new()
            .product(4)
            .hardware_version(21)
            .uuid(core::array::from_fn(|index| index as u8))
            .memory_mib(256)
            .vcpu_info(u32::MAX)
            .frequencies(0x2_4000_0000, 66_000_000)
            .clock(|| Duration::new(SECONDS, 123_456_789));
        for direction in [Direction::In, Direction::Out] {
            let mut answer = |rcx| call(&mut device, direction, Width::Dword, command(rcx));
            let time = Gprs { rbx: 123_456, rcx: 1_000_000, ..command(0) };
            assert_eq!(answer(1), Gprs { rax: 9663, ..command(1) });
            assert_eq!(answer(10), Gprs { rax: 6, rbx: 0x564d_5868, rcx: 4, ..command(10) });
            assert_eq!(answer(17), Gprs { rax: 21, ..command(17) });
            assert_eq!(
                answer(19),
                Gprs { rax: 0x0302_0100, rbx: 0x0706_0504, rcx: 0x0b0a_0908, rdx: 0x0f0e_0d0c, ..command(19) }
            );
            assert_eq!(answer(20), Gprs { rax: 256, ..command(20) });
            assert_eq!(answer(23), Gprs { rax: 5, ..time });
            assert_eq!(answer(45), Gprs { rax: 0x4000_0000, rbx: 2, rcx: 66_000_000, ..command(45) });
            assert_eq!(answer(46), Gprs { rdx: 5, rsi: 1, ..time });
            assert_eq!(answer(68), Gprs { rax: 0x7fff_ffff, ..command(68) });
            assert_eq!(answer(99), Gprs { rax: 0xffff_ffff, ..command(99) });
        }
    }

    #[test]
    fn what_nobody_told_it_is_all_ones() {
        let mut device = VmwareBackdoor::new();
        let mut answer = |rcx| call(&mut device, Direction::In, Width::Dword, command(rcx));
        assert_eq!(answer(1), Gprs { rax: 0xffff_ffff, ..command(1) });
        assert_eq!(answer(45), Gprs { rax: 0xffff_ffff, rbx: 0xffff_ffff, ..command(45) });
        // Every step of a message fails.
        assert_eq!(answer(6 << 16 | 30), Gprs { rax: 0xffff_ffff, rcx: 0, ..command(30) });
        // The clock is the host's.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!((now..now + 600).contains(&answer(46).rdx), "{now}");
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
