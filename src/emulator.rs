//! The safe front door: bytes or an instruction in, registers or an error out.
//!
//! ```text
//!   bytes ──decode──▶ IoInsn ──permitted?──▶ quirk? ──▶ stub ──▶ hardware or bus ──▶ registers
//! ```
#![allow(unsafe_code)] // runs stubs, on the authority given to `native`

use std::sync::Arc;

use once_cell::sync::OnceCell;

use crate::bus::{call, undone_unless};
use crate::error::BuildError;
use crate::events::{self, Attempt, Events, NoEvents};
use crate::{
    CodeSize, Error, Gprs, IoInsn, PortAccess, PortPermissions, PortSet, Quirk, QuirkTable, SoftwareBus, StubLayout,
    StubTable, Width,
};

mod string_io;

/// Executes port-I/O instructions with a guest's registers in view, on a [`SoftwareBus`], on the hardware, or some on
/// each.
///
/// No port is permitted until the builder says so. Whatever goes wrong, the registers come back as they were given.
///
/// ```
/// use ioemul::{Error, Gprs, IoEmulator, PortSet, SoftwareBus};
/// let mut emulator = IoEmulator::builder().ports("0x70-0x71".parse::<PortSet>()?).bus(SoftwareBus::new()).build()?;
/// let mut gprs = Gprs { rax: 0x1234, ..Gprs::default() };
/// assert_eq!(emulator.emulate(&[0xe4, 0x71], &mut gprs)?, 2); // in al, 0x71: nobody answers
/// assert_eq!(gprs.rax, 0x12ff);
/// // A dword at 0x70 would reach 0x73.
/// assert!(matches!(emulator.emulate(&[0xe5, 0x70], &mut gprs), Err(Error::PortDenied { port: 0x70, .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IoEmulator<E = NoEvents> {
    layout: StubLayout,
    quirks: Option<QuirkTable>,
    /// A bus, and the ports that may be touched on it.
    on_bus: Option<(PortPermissions, SoftwareBus, Stubs)>,
    /// The ports that may be touched on the hardware.
    native: Option<(PortPermissions, Arc<StubTable>)>,
    fault_recovery: bool,
    events: E,
}

/// An emulator goes to another thread with all that it holds.
const _: () = {
    const fn send<T: Send>() {}
    send::<IoEmulator>();
};

/// How a bus is reached.
#[derive(Clone, Debug)]
enum Stubs {
    /// Through machine code.
    Table(Arc<StubTable>),
    /// Without any.
    Direct(QuirkTable),
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Bus,
    Hardware,
}

impl IoEmulator {
    /// An emulator to be described step by step.
    pub fn builder() -> IoEmulatorBuilder {
        IoEmulatorBuilder::default()
    }
}

impl<E: Events> IoEmulator<E> {
    /// Executes `insn` with `gprs`, and leaves there what the registers hold afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::PortDenied`], [`Error::QuirkDenied`], [`Error::Stopped`], [`Error::Fault`] or [`Error::Device`]; and [`Error::StringForm`]
    /// for INS and OUTS, which take [`Self::read_string`] or [`Self::write_string`]. `gprs` is then as it was.
    ///
    /// # Panics
    ///
    /// When a device model does: its panic goes on here, `gprs` is as it was, and the emulator can be used further. When a
    /// listener does: what `gprs` is then is said [there](crate::events#when-a-listener-panics).
    #[inline]
    pub fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        if insn.is_string() {
            return Err(Error::StringForm { insn });
        }
        let before = call::by_words(gprs);
        let attempt = Attempt { insn, port: insn.port(gprs), gprs: &before };
        let side = self.permit(&attempt)?;
        events::begin(&mut self.events, &attempt)?;
        let started = events::start::<E>();
        let result = undone_unless(gprs, &before, |gprs| self.run(side, insn, gprs));
        events::end(&mut self.events, &attempt, (gprs, &[]), started, &result);
        result
    }

    /// Where the access goes, if it may be made at all, and so may all accesses of the quirk that would stand for it.
    #[inline]
    pub(crate) fn permit(&mut self, attempt: &Attempt<'_>) -> Result<Side, Error> {
        let Attempt { insn, port, gprs } = *attempt;
        let IoInsn { width, direction, .. } = insn;
        let native = self.native.as_ref().filter(|native| native.0.permits(port, width, direction));
        let on_bus = self.on_bus.as_ref().filter(|bus| bus.0.permits(port, width, direction));
        let (side, ports, quirk) = match (native, on_bus) {
            (Some((ports, table)), _) => (Side::Hardware, ports, table.quirk(insn, gprs)),
            (None, Some((ports, _, Stubs::Table(table)))) => (Side::Bus, ports, table.quirk(insn, gprs)),
            (None, Some((ports, _, Stubs::Direct(quirks)))) => (Side::Bus, ports, direct_quirk(quirks, insn, gprs)),
            (None, None) => {
                self.events.denied(attempt);
                return Err(Error::PortDenied { port, width, direction });
            }
        };
        let Some(quirk) = quirk else { return Ok(side) };
        let may = |access: &PortAccess| ports.permits(access.port, access.width, access.direction);
        let Some(access) = quirk.accesses(insn).find(|access| !may(access)) else { return Ok(side) };
        let quirk = quirk.name();
        self.events.denied(attempt);
        Err(Error::QuirkDenied { quirk, port: access.port, width: access.width, direction: access.direction })
    }

    /// Quirk and stub, of IN or OUT that [`Self::permit`] has let pass. A failure may leave anything in `gprs`.
    #[inline]
    fn run(&mut self, side: Side, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        match (side, &mut self.on_bus, &self.native) {
            (Side::Hardware, _, Some((_, table))) => {
                // SAFETY: whoever called `native` vouched for every access to these ports.
                let result = unsafe { table.resolve(insn, gprs).run(gprs) };
                result.map_err(|fault| Error::Fault { access: PortAccess::of(insn, gprs), fault })
            }
            (_, Some((_, bus, Stubs::Table(table))), _) => {
                // SAFETY: the builder pairs a bus with a bus table.
                unsafe { call::run(bus, table.resolve(insn, gprs), insn, gprs) }
            }
            (_, Some((_, bus, Stubs::Direct(quirks))), _) => match direct_quirk(quirks, insn, gprs) {
                Some(quirk) => bus.walk(quirk, insn, gprs),
                None => bus.try_access(insn, gprs),
            },
            (_, None, _) => {
                let PortAccess { port, width, direction, .. } = PortAccess::of(insn, gprs);
                Err(Error::PortDenied { port, width, direction })
            }
        }
    }

    /// Decodes the instruction at the start of `code`, **64-bit code**, and executes it: [`Self::emulate_in`] with
    /// [`CodeSize::Bits64`]. Returns its length, by which to advance the guest's RIP.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`], or as [`Self::execute`]; `gprs` is then as it was.
    ///
    /// # Panics
    ///
    /// As [`Self::execute`].
    pub fn emulate(&mut self, code: &[u8], gprs: &mut Gprs) -> Result<usize, Error> {
        self.emulate_in(CodeSize::Bits64, code, gprs)
    }

    /// Decodes the instruction at the start of `code`, of a guest in any mode, and executes it. Returns its length, by
    /// which to advance the guest's RIP, EIP or IP (which wraps within its own size).
    ///
    /// The register file is the same in every mode, and so is what an access does to it: an IN of 32 bits clears the upper
    /// half of RAX, others leave it. Outside 64-bit mode no program sees the upper halves, and the architecture does not keep
    /// them (SDM vol. 1, 3.4.1.1); a device sees what is there. R8 to R15 are loaded and stored like all others.
    ///
    /// ```
    /// use ioemul::{CodeSize, Gprs, IoEmulator, PortSet, SoftwareBus};
    /// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).build()?;
    /// let mut gprs = Gprs { rdx: 0x1f0, ..Gprs::default() };
    /// emulator.emulate_in(CodeSize::Bits16, &[0xed], &mut gprs)?; // in ax, dx
    /// assert_eq!(gprs.rax, 0xffff);
    /// emulator.emulate_in(CodeSize::Bits32, &[0xed], &mut gprs)?; // in eax, dx
    /// assert_eq!(gprs.rax, 0xffff_ffff);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Decode`], or as [`Self::execute`]; `gprs` is then as it was.
    ///
    /// # Panics
    ///
    /// As [`Self::execute`].
    pub fn emulate_in(&mut self, size: CodeSize, code: &[u8], gprs: &mut Gprs) -> Result<usize, Error> {
        let (insn, len) = IoInsn::decode_in(size, code)?;
        self.execute(insn, gprs)?;
        Ok(len)
    }

    /// What an IN of this width from `port` answers; RDX holds the port, and all other registers are 0.
    ///
    /// ```
    /// use ioemul::devices::Cmos;
    /// use ioemul::{IoEmulator, PortSet, SoftwareBus, Width};
    /// let mut bus = SoftwareBus::new();
    /// bus.attach(0x70..=0x71, Cmos::new([0x42; 128]))?;
    /// let mut emulator = IoEmulator::builder().ports(PortSet::from(0x70..=0x71)).bus(bus).build()?;
    /// emulator.port_out(0x70, Width::Byte, 0x10)?;
    /// assert_eq!(emulator.port_in(0x71, Width::Byte)?, 0x42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    ///
    /// # Panics
    ///
    /// As [`Self::execute`].
    #[doc(alias("inb", "inw", "inl"))]
    pub fn port_in(&mut self, port: u16, width: Width) -> Result<u32, Error> {
        let mut gprs = Gprs { rdx: port.into(), ..Gprs::default() };
        self.execute(IoInsn::in_dx(width), &mut gprs)?;
        Ok(gprs.rax as u32 & width.mask())
    }

    /// Writes `value` (as much of it as the width takes) to `port`. RDX holds the port, RAX the
    /// value, and all other registers are 0.
    ///
    /// ```
    /// use ioemul::{IoEmulator, PortSet, SoftwareBus, Width};
    /// let mut emulator = IoEmulator::builder().ports(PortSet::from(0x80..=0x80)).bus(SoftwareBus::new()).build()?;
    /// emulator.port_out(0x80, Width::Byte, 0x5a)?;
    /// assert!(emulator.port_out(0x80, Width::Word, 0x5a).is_err()); // port 0x81 is not permitted
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    ///
    /// # Panics
    ///
    /// As [`Self::execute`].
    #[doc(alias("outb", "outw", "outl"))]
    pub fn port_out(&mut self, port: u16, width: Width, value: u32) -> Result<(), Error> {
        let mut gprs = Gprs { rax: value.into(), rdx: port.into(), ..Gprs::default() };
        self.execute(IoInsn::out_dx(width), &mut gprs)
    }

    /// The ports that may be touched on the bus; `None` without one.
    pub fn ports(&self) -> Option<&PortPermissions> {
        self.on_bus.as_ref().map(|bus| &bus.0)
    }

    /// The ports that may be touched on the hardware; `None` for an emulator that has none.
    pub fn native_ports(&self) -> Option<&PortPermissions> {
        self.native.as_ref().map(|native| &native.0)
    }

    /// The bus, unless the emulator runs on the hardware alone.
    pub fn bus_mut(&mut self) -> Option<&mut SoftwareBus> {
        self.on_bus.as_mut().map(|bus| &mut bus.1)
    }

    /// The listener.
    pub fn events(&self) -> &E {
        &self.events
    }

    /// The listener.
    pub fn events_mut(&mut self) -> &mut E {
        &mut self.events
    }

    /// Ends the emulator and gives its listener back.
    pub fn into_events(self) -> E {
        self.events
    }

    /// Describes another emulator of the same layout, quirks and [ports of the bus](Self::ports), for another thread
    /// say. Give it a [`bus`](IoEmulatorBuilder::bus) or [`native`](IoEmulatorBuilder::native) of its own: if it is
    /// what this one has, the two run the same stubs, and nothing is assembled again.
    ///
    /// ```
    /// use ioemul::{IoEmulator, PortSet, QuirkTable, SoftwareBus};
    /// let builder = IoEmulator::builder().quirks(QuirkTable::builtin()).ports(PortSet::all());
    /// let first = builder.bus(SoftwareBus::new()).build()?;
    /// std::thread::scope(|scope| {
    ///     for _ in 0..8 {
    ///         let mut another = first.sibling().bus(SoftwareBus::new()).build().unwrap();
    ///         scope.spawn(move || another.emulate(&[0xe4, 0x71], &mut Default::default()).unwrap());
    ///     }
    /// });
    /// # Ok::<(), ioemul::BuildError>(())
    /// ```
    pub fn sibling(&self) -> IoEmulatorBuilder {
        let (ports, bus_table, direct) = match &self.on_bus {
            Some((ports, _, Stubs::Table(table))) => (ports.clone(), Some(table.clone()), false),
            Some((ports, _, Stubs::Direct(_))) => (ports.clone(), None, true),
            None => (PortPermissions::default(), None, false),
        };
        IoEmulatorBuilder {
            layout: self.layout,
            quirks: self.quirks.clone(),
            ports,
            direct,
            bus_table,
            fault_recovery: self.fault_recovery,
            native_table: self.native.as_ref().map(|native| native.1.clone()),
            ..IoEmulatorBuilder::default()
        }
    }
}

/// The first quirk that takes an access on a bus without machine code.
fn direct_quirk<'q>(quirks: &'q QuirkTable, insn: IoInsn, gprs: &Gprs) -> Option<&'q Quirk> {
    quirks.as_slice().iter().find(|quirk| quirk.applies(insn, gprs.rax, gprs.rdx))
}

/// Describes an [`IoEmulator`].
#[derive(Debug)]
#[must_use]
pub struct IoEmulatorBuilder<E = NoEvents> {
    layout: StubLayout,
    quirks: Option<QuirkTable>,
    ports: PortPermissions,
    bus: Option<SoftwareBus>,
    direct: bool,
    native: Option<PortPermissions>,
    fault_recovery: bool,
    /// Finished stubs of this layout, with these quirks.
    bus_table: Option<Arc<StubTable>>,
    native_table: Option<Arc<StubTable>>,
    events: E,
}

impl Default for IoEmulatorBuilder {
    fn default() -> Self {
        Self {
            layout: StubLayout::default(),
            quirks: None,
            ports: PortPermissions::default(),
            bus: None,
            direct: false,
            native: None,
            fault_recovery: true,
            bus_table: None,
            native_table: None,
            events: NoEvents,
        }
    }
}

impl<E> IoEmulatorBuilder<E> {
    /// The stub layout; [`StubLayout::CallRet`] by default.
    pub fn layout(mut self, layout: StubLayout) -> Self {
        self.layout = layout;
        self.forget_tables()
    }

    /// The quirks. By default those of this machine on the hardware, and none on a bus.
    pub fn quirks(mut self, quirks: QuirkTable) -> Self {
        self.quirks = Some(quirks);
        self.forget_tables()
    }

    fn forget_tables(mut self) -> Self {
        (self.bus_table, self.native_table) = (None, None);
        self
    }

    /// The ports that may be touched on the bus: one [`PortSet`](crate::PortSet) for both directions, or
    /// [`PortPermissions`]. None by default. (Those of the hardware are named in [`Self::native`].)
    pub fn ports(mut self, ports: impl Into<PortPermissions>) -> Self {
        self.ports = ports.into();
        self
    }

    /// Runs on device models. Needs no privilege and touches no hardware.
    pub fn bus(mut self, bus: SoftwareBus) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Reaches the bus without any machine code: no executable memory, no signal handler, no system call. Quirks are
    /// walked step by step; those of machine code are [refused](BuildError::DirectPayload). The registers are the same.
    pub fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Runs accesses to `ports` on the hardware. With a bus besides, an access goes to the one that has all its ports,
    /// and is refused if neither has; a port cannot be on [both](BuildError::PortsInBoth).
    ///
    /// # Safety
    ///
    /// Every IN and OUT that the emulator is asked for on these ports, with any registers, must be harmless to this
    /// process and to the machine's other users: devices write memory by DMA, reset the machine, or call into firmware.
    /// The smaller the port set, the smaller the promise ([`Hazard`](crate::Hazard) lists what to keep out of it).
    pub unsafe fn native(mut self, ports: impl Into<PortPermissions>) -> Self {
        self.native = Some(ports.into());
        self
    }

    /// Whether a fault at the hardware becomes an [`Error::Fault`], which takes a process-wide signal handler
    /// ([`fault`](crate::fault)); it does by default. An emulator without hardware installs none in any case.
    pub fn fault_recovery(mut self, recovery: bool) -> Self {
        self.fault_recovery = recovery;
        self.native_table = None;
        self
    }

    /// Who is told what the emulator does. Nobody by default.
    pub fn events<L: Events>(self, events: L) -> IoEmulatorBuilder<L> {
        let Self { layout, quirks, ports, bus, direct, native, fault_recovery, bus_table, native_table, .. } = self;
        IoEmulatorBuilder {
            layout,
            quirks,
            ports,
            bus,
            direct,
            native,
            fault_recovery,
            bus_table,
            native_table,
            events,
        }
    }

    /// Builds the emulator. One without quirks of its own shares its stubs with all others of its layout in the
    /// process.
    ///
    /// # Errors
    ///
    /// [`BuildError::NoBackend`] without [`Self::bus`] or [`Self::native`], [`BuildError::PortsInBoth`],
    /// [`BuildError::DirectPayload`], and those of [`StubTableBuilder::build`](crate::StubTableBuilder::build).
    pub fn build(self) -> Result<IoEmulator<E>, BuildError> {
        let Self { layout, quirks, ports, bus, direct, native, fault_recovery, bus_table, native_table, events } = self;
        if let (Some(_), Some(native)) = (&bus, &native) {
            let first = |a: &PortSet, b: &PortSet| (a.clone() & b.clone()).ranges().next().map(|range| *range.start());
            if let Some(port) = first(&ports.read, &native.read).or(first(&ports.write, &native.write)) {
                return Err(BuildError::PortsInBoth { port });
            }
        }
        let on_bus = match (bus, direct) {
            (None, _) => None,
            (Some(bus), true) => {
                let quirks = quirks.clone().unwrap_or_default();
                for quirk in quirks.as_slice() {
                    if quirk.steps().is_none() {
                        return Err(BuildError::DirectPayload { quirk: quirk.name() });
                    }
                    quirk.check()?; // what no stub could do, and what could not be checked, is not walked either
                }
                Some((ports, bus, Stubs::Direct(quirks)))
            }
            (Some(bus), false) => {
                let table = match (bus_table, &quirks) {
                    (Some(table), _) => table,
                    (None, None) => shared_bus_table(layout)?,
                    (None, Some(quirks)) => {
                        Arc::new(StubTable::builder().layout(layout).quirks(quirks.clone()).bus().build()?)
                    }
                };
                Some((ports, bus, Stubs::Table(table)))
            }
        };
        let native = match native {
            None => None,
            Some(ports) => {
                let builder = StubTable::builder().layout(layout).fault_recovery(fault_recovery);
                let table = match (native_table, &quirks) {
                    (Some(table), _) => table,
                    (None, None) if layout == StubLayout::CallRet && fault_recovery => StubTable::global_arc()?.clone(),
                    (None, None) => {
                        let identity = crate::DmiIdentity::read().map_err(BuildError::Dmi)?;
                        Arc::new(builder.quirks(QuirkTable::for_platform(&identity)).build()?)
                    }
                    (None, Some(quirks)) => Arc::new(builder.quirks(quirks.clone()).build()?),
                };
                #[cfg(target_os = "linux")]
                if fault_recovery {
                    crate::fault::install()?; // where the table is not new, another handler may be on top by now
                }
                Some((ports, table))
            }
        };
        if on_bus.is_none() && native.is_none() {
            return Err(BuildError::NoBackend);
        }
        Ok(IoEmulator { layout, quirks, on_bus, native, fault_recovery, events })
    }
}

/// The stubs of all buses without quirks, built when the first is.
fn shared_bus_table(layout: StubLayout) -> Result<Arc<StubTable>, BuildError> {
    static TABLES: [OnceCell<Arc<StubTable>>; StubLayout::ALL.len()] =
        [const { OnceCell::new() }; StubLayout::ALL.len()];
    TABLES[layout as usize].get_or_try_init(|| StubTable::builder().layout(layout).bus().build().map(Arc::new)).cloned()
}
