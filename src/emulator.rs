//! The safe front door: bytes or an instruction in, registers or an error out.
//!
//! ```text
//!   bytes ──decode──▶ IoInsn ──permitted?──▶ quirk? ──▶ stub ──▶ hardware or bus ──▶ registers
//! ```
#![allow(unsafe_code)] // runs stubs, on the authority given to `native`

use std::sync::Arc;

use once_cell::sync::OnceCell;

use crate::events::{self, Attempt, Events, NoEvents};
use crate::{Error, Gprs, IoInsn, PortAccess, PortPermissions, QuirkTable, SoftwareBus, StubLayout, StubTable, bus};

mod string_io;

/// Executes port-I/O instructions with a guest's registers in view, on a [`SoftwareBus`] or on the hardware.
///
/// No port is permitted until the builder's [`ports`](IoEmulatorBuilder::ports) says so. Whatever goes wrong, the registers
/// come back as they were given.
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
    ports: PortPermissions,
    table: Arc<StubTable>,
    backend: Backend,
    events: E,
}

/// An emulator goes to another thread with all that it holds.
const _: () = {
    const fn send<T: Send>() {}
    send::<IoEmulator>();
};

#[derive(Debug)]
enum Backend {
    Native,
    Bus(SoftwareBus),
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
    /// [`Error::PortDenied`], [`Error::Fault`] or [`Error::Device`]; and [`Error::StringForm`] for INS and OUTS, which take
    /// [`Self::read_string`] or [`Self::write_string`]. `gprs` is then as it was.
    ///
    /// # Panics
    ///
    /// When a device model does: its panic goes on here, `gprs` is as it was, and the emulator can be used further.
    #[inline]
    pub fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        if insn.is_string() {
            return Err(Error::StringForm { insn });
        }
        let before = *gprs;
        let attempt = Attempt { insn, port: insn.port(gprs), gprs: &before };
        self.permit(&attempt)?;
        self.events.before(&attempt);
        let started = events::start::<E>();
        // SAFETY: the instruction is permitted and accesses no memory.
        let result = unsafe { self.run(insn, gprs) };
        events::end(&mut self.events, &attempt, (gprs, &[]), started, &result);
        result
    }

    /// Whether the access may be made at all.
    #[inline]
    pub(crate) fn permit(&mut self, attempt: &Attempt<'_>) -> Result<(), Error> {
        let Attempt { insn: IoInsn { width, direction, .. }, port, .. } = *attempt;
        if self.ports.permits(port, width, direction) {
            return Ok(());
        }
        self.events.denied(attempt);
        Err(Error::PortDenied { port, width, direction })
    }

    /// Quirk and stub.
    ///
    /// # Safety
    ///
    /// [`Self::permit`] has let the access pass. For INS and OUTS, the registers point to memory of this process that may
    /// be accessed.
    #[inline]
    pub(crate) unsafe fn run(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Error> {
        let stub = self.table.resolve(insn, gprs);
        match &mut self.backend {
            // SAFETY: whoever called `native` vouched for every access to a permitted port, and the caller for memory.
            Backend::Native => {
                unsafe { stub.run(gprs) }.map_err(|fault| Error::Fault { access: PortAccess::of(insn, gprs), fault })
            }
            // SAFETY: the builder pairs a bus with a bus table; the caller vouches for memory.
            Backend::Bus(bus) => unsafe { bus::run(bus, stub, insn, gprs) },
        }
    }

    /// Decodes the instruction at the start of `code` and executes it. Returns its length, by which to advance the
    /// guest's RIP.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`], or as [`Self::execute`]; `gprs` is then as it was.
    ///
    /// # Panics
    ///
    /// As [`Self::execute`].
    pub fn emulate(&mut self, code: &[u8], gprs: &mut Gprs) -> Result<usize, Error> {
        let (insn, len) = IoInsn::decode(code)?;
        self.execute(insn, gprs)?;
        Ok(len)
    }

    /// The ports that may be touched.
    pub fn ports(&self) -> &PortPermissions {
        &self.ports
    }

    /// The bus, unless the emulator runs on the hardware.
    pub fn bus_mut(&mut self) -> Option<&mut SoftwareBus> {
        match &mut self.backend {
            Backend::Native => None,
            Backend::Bus(bus) => Some(bus),
        }
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

    /// Describes another emulator of the same layout, quirks and ports, for another thread say. Give it a
    /// [`bus`](IoEmulatorBuilder::bus) or [`native`](IoEmulatorBuilder::native) of its own: if it is what this one has,
    /// the two run the same stubs, and nothing is assembled again.
    ///
    /// ```
    /// use ioemul::{IoEmulator, PortSet, QuirkTable, SoftwareBus};
    /// let first = IoEmulator::builder().quirks(QuirkTable::builtin()).ports(PortSet::all()).bus(SoftwareBus::new()).build()?;
    /// std::thread::scope(|scope| {
    ///     for _ in 0..8 {
    ///         let mut another = first.sibling().bus(SoftwareBus::new()).build().unwrap();
    ///         scope.spawn(move || another.emulate(&[0xe4, 0x71], &mut Default::default()).unwrap());
    ///     }
    /// });
    /// # Ok::<(), ioemul::Error>(())
    /// ```
    pub fn sibling(&self) -> IoEmulatorBuilder {
        IoEmulatorBuilder {
            layout: self.table.layout(),
            quirks: Some(self.table.quirks()),
            ports: self.ports.clone(),
            table: Some(self.table.clone()),
            ..IoEmulatorBuilder::default()
        }
    }
}

/// Describes an [`IoEmulator`].
#[derive(Debug, Default)]
#[must_use]
pub struct IoEmulatorBuilder<E = NoEvents> {
    layout: StubLayout,
    quirks: Option<QuirkTable>,
    ports: PortPermissions,
    backend: Option<Backend>,
    /// Finished stubs of this layout, with these quirks, for one kind of backend.
    table: Option<Arc<StubTable>>,
    events: E,
}

impl<E> IoEmulatorBuilder<E> {
    /// The stub layout; [`StubLayout::CallRet`] by default.
    pub fn layout(mut self, layout: StubLayout) -> Self {
        self.layout = layout;
        self.table = None;
        self
    }

    /// The quirks. By default those of this machine on the hardware, and none on a bus.
    pub fn quirks(mut self, quirks: QuirkTable) -> Self {
        self.quirks = Some(quirks);
        self.table = None;
        self
    }

    /// The ports that may be touched: one [`PortSet`](crate::PortSet) for both directions, or [`PortPermissions`]. None by
    /// default.
    pub fn ports(mut self, ports: impl Into<PortPermissions>) -> Self {
        self.ports = ports.into();
        self
    }

    /// Runs on device models. Needs no privilege and touches no hardware.
    pub fn bus(mut self, bus: SoftwareBus) -> Self {
        self.backend = Some(Backend::Bus(bus));
        self
    }

    /// Runs on the hardware.
    ///
    /// # Safety
    ///
    /// Every IN and OUT that the emulator is asked for, on any port that [`Self::ports`] permits, with any registers, must
    /// be harmless to this process and to the machine's other users: devices write memory by DMA, reset the machine, or
    /// call into firmware. The smaller the port set, the smaller the promise ([`Hazard`](crate::Hazard) lists what to keep
    /// out of it).
    pub unsafe fn native(mut self) -> Self {
        self.backend = Some(Backend::Native);
        self
    }

    /// Who is told what the emulator does. Nobody by default.
    pub fn events<L: Events>(self, events: L) -> IoEmulatorBuilder<L> {
        let Self { layout, quirks, ports, backend, table, events: _ } = self;
        IoEmulatorBuilder { layout, quirks, ports, backend, table, events }
    }

    /// Builds the emulator. One without quirks of its own shares its stubs with all others of its layout in the process.
    ///
    /// # Errors
    ///
    /// [`Error::NoBackend`] without [`Self::bus`] or [`Self::native`], and those of
    /// [`StubTableBuilder::build`](crate::StubTableBuilder::build).
    pub fn build(self) -> Result<IoEmulator<E>, Error> {
        let Self { layout, quirks, ports, backend, table, events } = self;
        let backend = backend.ok_or(Error::NoBackend)?;
        let for_this_backend = |table: &Arc<StubTable>| table.is_for_bus() == matches!(backend, Backend::Bus(_));
        if let Some(table) = table.filter(for_this_backend) {
            return Ok(IoEmulator { ports, table, backend, events });
        }
        let table = match (&backend, quirks) {
            (Backend::Native, None) if layout == StubLayout::CallRet => StubTable::global_arc()?.clone(),
            (Backend::Native, None) => {
                let identity = crate::DmiIdentity::read().map_err(Error::Dmi)?;
                Arc::new(StubTable::builder().layout(layout).quirks(QuirkTable::for_platform(&identity)).build()?)
            }
            (Backend::Native, Some(quirks)) => Arc::new(StubTable::builder().layout(layout).quirks(quirks).build()?),
            (Backend::Bus(_), None) => shared_bus_table(layout)?,
            (Backend::Bus(_), Some(quirks)) => {
                Arc::new(StubTable::builder().layout(layout).quirks(quirks).bus().build()?)
            }
        };
        Ok(IoEmulator { ports, table, backend, events })
    }
}

/// The stubs of all buses without quirks, built when the first is.
fn shared_bus_table(layout: StubLayout) -> Result<Arc<StubTable>, Error> {
    static TABLES: [OnceCell<Arc<StubTable>>; StubLayout::ALL.len()] =
        [const { OnceCell::new() }; StubLayout::ALL.len()];
    TABLES[layout as usize].get_or_try_init(|| StubTable::builder().layout(layout).bus().build().map(Arc::new)).cloned()
}
