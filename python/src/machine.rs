//! Machines that are kept: the hardware behind some ports, or a bus with models on it.
#![allow(unsafe_code)] // the hardware is granted here, to a caller that names ports

use std::ops::DerefMut;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::thread::{self, ThreadId};

use ioemul::{
    CpuAffinity, Error, Gprs, IoEmulator, IoInsn, IoPermission, PortAccess, PortSet, QuirkTable, SoftwareBus, Width,
    fault,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyDict;

use crate::arguments::{self, Cpu, Memory};
use crate::{errors, model, registers};

/// Somewhere to make accesses: `Machine("hardware", ports=...)`, or a `Bus` of device models.
///
/// The ports named are the promise that every access to them is harmless; no others are reached. They are opened
/// (ioperm) for the thread that makes an access, as long as it lasts; with acquire=False they have to be open
/// already. `cpu` is the CPU that accesses are made on. `quirks` are names of the library's; by default they are
/// those of this machine.
#[pyclass(module = "ioemul", subclass, frozen)]
pub struct Machine {
    emulator: Mutex<IoEmulator>,
    /// The thread that is in the middle of an access.
    busy: Mutex<Option<ThreadId>>,
    ports: PortSet,
    cpu: Option<usize>,
    is_bus: bool,
    acquire: bool,
}

impl Machine {
    /// The hardware behind `ports`.
    pub fn hardware(py: Python<'_>, ports: PortSet, quirks: Option<QuirkTable>) -> PyResult<Self> {
        let mut builder = IoEmulator::builder();
        if let Some(quirks) = quirks {
            builder = builder.quirks(quirks);
        }
        // SAFETY: the caller of Python's has named these ports to be touched on the hardware, by `Machine` or `smi`,
        // or an access at them that is none of the library's hazards, by `execute`. Nobody else's code runs here, and
        // no other port is reached.
        let builder = unsafe { builder.native(ports.clone()) };
        Self::around(py, builder.build(), ports, false)
    }

    fn bus(py: Python<'_>, ports: PortSet, quirks: Option<QuirkTable>) -> PyResult<Self> {
        // Direct: no executable memory and no signal handler, for tests that run wherever Python does.
        let builder = IoEmulator::builder().quirks(quirks.unwrap_or_default()).ports(ports.clone());
        Self::around(py, builder.bus(SoftwareBus::new()).direct().build(), ports, true)
    }

    fn around(
        py: Python<'_>,
        built: Result<IoEmulator, ioemul::BuildError>,
        ports: PortSet,
        is_bus: bool,
    ) -> PyResult<Self> {
        let emulator = Mutex::new(built.map_err(|error| errors::of_building(py, &error))?);
        Ok(Self { emulator, busy: Mutex::new(None), ports, cpu: None, is_bus, acquire: true })
    }

    /// The emulator, for one access. A model that wants the machine that it is called by would wait for itself.
    fn lock(&self, py: Python<'_>) -> PyResult<Turn<'_, impl DerefMut<Target = IoEmulator>>> {
        let busy = || self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let emulator = match self.emulator.try_lock() {
            Ok(emulator) => emulator,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if *busy() == Some(thread::current().id()) => {
                let message = "a device model has used the machine that it is called by, in the middle of its access: attach models and \
                               execute when the access is over, or use another machine";
                return Err(errors::plain(py, message.to_owned()));
            }
            // Without the GIL, which a model that another thread is waiting for may need.
            Err(TryLockError::WouldBlock) => self.emulator.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner),
        };
        *busy() = Some(thread::current().id());
        Ok(Turn { emulator, busy: &self.busy })
    }

    /// Does `work` on the CPU and with the ports that it takes; `accesses` have to be permitted before any is made.
    fn with<T>(
        &self,
        py: Python<'_>,
        cpu: Option<usize>,
        accesses: &[PortAccess],
        gprs: &mut Gprs,
        work: impl FnOnce(&mut IoEmulator, &mut Gprs) -> Result<T, Error>,
    ) -> PyResult<T> {
        if let Some(access) = accesses.iter().find(|access| !self.ports.permits(access.port, access.width)) {
            let PortAccess { port, width, direction, .. } = *access;
            return Err(errors::of_access(py, Error::PortDenied { port, width, direction }, gprs));
        }
        let mut turn = self.lock(py)?;
        let privilege = |error| errors::of_privilege(py, &error);
        let _on_cpu = cpu.map(CpuAffinity::pin).transpose().map_err(privilege)?;
        let open = !self.is_bus && self.acquire;
        let _open = open.then(|| IoPermission::acquire(self.ports.clone())).transpose().map_err(privilege)?;
        if !self.is_bus && !fault::is_installed() {
            // Python's faulthandler, for one, may have come later.
            fault::install().map_err(|error| errors::plain(py, error.to_string()))?;
        }
        work(&mut turn.emulator, gprs).map_err(|error| errors::of_access(py, error, gprs))
    }

    /// One instruction.
    pub fn run<'py>(
        &self,
        py: Python<'py>,
        insn: IoInsn,
        mut gprs: Gprs,
        mut memory: Memory<'py>,
        cpu: Cpu,
    ) -> PyResult<Bound<'py, PyDict>> {
        let access = PortAccess::of(insn, &gprs);
        let result = self.with(py, cpu.or(self.cpu), &[access], &mut gprs, |emulator, gprs| match &mut memory {
            Memory::None => emulator.execute(insn, gprs),
            Memory::Out(data) => emulator.write_string(insn, gprs, data).map(drop),
            Memory::In(_, buffer) => emulator.read_string(insn, gprs, buffer).map(drop),
        });
        memory.hand_back()?; // as much as has come, also where the instruction has ended early
        result?;
        registers::to_dict(py, &gprs)
    }

    /// A byte to the port behind `smi.port`, unless there is none, then the code to `smi.port`.
    pub fn raise<'py>(&self, py: Python<'py>, smi: &Smi, mut gprs: Gprs) -> PyResult<Bound<'py, PyDict>> {
        let out = |port: u16, gprs: &mut Gprs, al: u8| {
            gprs.rax = Width::Byte.merge(gprs.rax, al.into());
            match u8::try_from(port) {
                Ok(port) => IoInsn::out_imm8(Width::Byte, port),
                Err(_) => {
                    gprs.rdx = Width::Word.merge(gprs.rdx, port.into());
                    IoInsn::out_dx(Width::Byte)
                }
            }
        };
        let writes = smi.data.map(|data| (smi.port + 1, data)).into_iter().chain([(smi.port, smi.code)]);
        let access = |port, al| {
            let mut gprs = gprs;
            PortAccess::of(out(port, &mut gprs, al), &gprs)
        };
        let accesses: Vec<_> = writes.clone().map(|(port, al)| access(port, al)).collect();
        let default = self.cpu.or(if self.is_bus { None } else { Some(0) });
        self.with(py, smi.cpu.or(default), &accesses, &mut gprs, |emulator, gprs| {
            for (port, al) in writes {
                emulator.execute(out(port, gprs, al), gprs)?;
            }
            Ok(())
        })?;
        registers::to_dict(py, &gprs)
    }
}

/// The call of a firmware.
pub struct Smi {
    /// Where the code goes.
    pub port: u16,
    /// The code.
    pub code: u8,
    /// What goes to the next port first.
    pub data: Option<u8>,
    /// Where it is made.
    pub cpu: Cpu,
}

impl Smi {
    /// Looks at the arguments of `smi`, and puts its registers together.
    pub fn of(
        code: &Bound<'_, PyAny>,
        data: Data,
        registers: Option<&Bound<'_, PyAny>>,
        port: Option<&Bound<'_, PyAny>>,
        cpu: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(Self, Gprs)> {
        let code = arguments::byte(code, "code")?;
        let port = port.map_or(Ok(APM_CNT), |port| arguments::port(port, "port"))?;
        if data.0.is_some() && port == u16::MAX {
            return Err(PyValueError::new_err(
                "port: there is none behind 0xffff for the data: leave it out, by data=None",
            ));
        }
        let gprs = registers::from_mapping(registers)?;
        if let Some(registers) = registers {
            if registers.contains("al")? {
                return Err(PyValueError::new_err("al: it holds the code of the SMI: leave it out of the registers"));
            }
        }
        Ok((Self { port, code, data: data.0, cpu: Cpu::of(cpu)? }, gprs))
    }

    /// The two ports, or the one.
    pub fn ports(&self) -> PortSet {
        PortSet::from(self.port..=self.port + u16::from(self.data.is_some()))
    }
}

/// The port that raises SMIs on PCs, unless the FADT says otherwise (APM_CNT in Intel's datasheets).
const APM_CNT: u16 = 0xb2;

/// What goes to the port behind: a byte, or `None` for nothing.
pub struct Data(pub Option<u8>);

impl FromPyObject<'_, '_> for Data {
    type Error = PyErr;

    fn extract(data: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        Ok(Self(if data.is_none() { None } else { Some(arguments::byte(&data, "data")?) }))
    }
}

/// An access under way.
struct Turn<'m, E> {
    emulator: E,
    busy: &'m Mutex<Option<ThreadId>>,
}

impl<E> Drop for Turn<'_, E> {
    fn drop(&mut self) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[pymethods]
impl Machine {
    #[new]
    #[pyo3(signature = (on, ports, *, cpu=None, quirks=None, acquire=true))]
    fn new(
        py: Python<'_>,
        on: &str,
        ports: &Bound<'_, PyAny>,
        cpu: Option<&Bound<'_, PyAny>>,
        quirks: Option<Vec<String>>,
        acquire: bool,
    ) -> PyResult<Self> {
        if on != "hardware" {
            let message = format!("on: {on:?}: a machine is made of \"hardware\"; device models go on an ioemul.Bus");
            return Err(PyValueError::new_err(message));
        }
        let (ports, cpu) = (arguments::ports(ports)?, Cpu::of(cpu)?.or(None));
        if ports.is_empty() {
            return Err(PyValueError::new_err("ports: none: name those that this machine may touch"));
        }
        Ok(Self { cpu, acquire, ..Self::hardware(py, ports, arguments::quirks(quirks)?)? })
    }

    /// Executes one IN or OUT with these registers, and returns the sixteen words as they are afterwards.
    ///
    /// `insn` is text ("out 0xb2, al") or the bytes of one instruction, of `mode` bits. `data` is the memory of INS (a
    /// bytearray, which is filled) and OUTS (bytes). `cpu` is a number, "any", or None: as the machine has it.
    #[pyo3(signature = (insn, registers=None, *, mode=64, data=None, cpu=None))]
    fn execute<'py>(
        &self,
        py: Python<'py>,
        insn: &Bound<'py, PyAny>,
        registers: Option<&Bound<'py, PyAny>>,
        mode: u32,
        data: Option<&Bound<'py, PyAny>>,
        cpu: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let insn = arguments::insn(insn, mode)?;
        let (gprs, memory) = (registers::from_mapping(registers)?, Memory::of(insn, data)?);
        self.run(py, insn, gprs, memory, Cpu::of(cpu)?)
    }

    /// Raises an SMI: writes `data` to the port behind `port`, then `code` to `port`, with these registers. See
    /// `ioemul.smi`.
    #[pyo3(signature = (code, data=Data(Some(0)), registers=None, *, port=None, cpu=None))]
    #[pyo3(text_signature = "($self, code, data=0, registers=None, *, port=None, cpu=None)")]
    fn smi<'py>(
        &self,
        py: Python<'py>,
        code: &Bound<'py, PyAny>,
        data: Data,
        registers: Option<&Bound<'py, PyAny>>,
        port: Option<&Bound<'py, PyAny>>,
        cpu: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (smi, gprs) = Smi::of(code, data, registers, port, cpu)?;
        self.raise(py, &smi, gprs)
    }

    /// "hardware" or "bus".
    #[getter]
    fn on(&self) -> &'static str {
        if self.is_bus { "bus" } else { "hardware" }
    }

    /// The ports that may be touched, in the library's written form.
    #[getter]
    fn ports(&self) -> String {
        self.ports.to_string()
    }

    /// The CPU that accesses are made on; None for any.
    #[getter]
    fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    fn __repr__(&self) -> String {
        let cpu = self.cpu.map_or(String::new(), |cpu| format!(", cpu={cpu}"));
        if self.is_bus {
            return format!("<ioemul.Bus, ports {}>", self.ports);
        }
        format!("ioemul.Machine(\"hardware\", \"{}\"{cpu})", self.ports)
    }
}

/// A machine without hardware: ports with device models behind them.
///
/// A byte that no model has reads as 0xff, and a write to it is lost. No privilege is needed, and no machine code runs.
#[pyclass(module = "ioemul", extends = Machine, frozen)]
pub struct Bus;

#[pymethods]
impl Bus {
    #[new]
    #[pyo3(signature = (ports=None, *, quirks=None))]
    #[pyo3(text_signature = "(ports='all', *, quirks=None)")]
    fn new(
        py: Python<'_>,
        ports: Option<&Bound<'_, PyAny>>,
        quirks: Option<Vec<String>>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let ports = ports.map_or_else(|| Ok(PortSet::all()), arguments::ports)?;
        let machine = Machine::bus(py, ports, arguments::quirks(quirks)?)?;
        Ok(PyClassInitializer::from(machine).add_subclass(Self))
    }

    /// Puts a device model behind the ports `first` to `last`: a callable that is given an Access and the Registers.
    ///
    /// It may read and change every register, and returns what an IN answers; None is all ones. What it returns for
    /// an OUT is ignored. What it raises reaches the caller of the access, whose registers are then as they were. An
    /// access that lies in several models' ports, or reaches beyond the model's own, comes byte by byte.
    fn attach(
        slf: &Bound<'_, Self>,
        first: &Bound<'_, PyAny>,
        last: &Bound<'_, PyAny>,
        model: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let ports = arguments::port(first, "first")?..=arguments::port(last, "last")?;
        if !model.is_callable() {
            return Err(PyTypeError::new_err(format!("model: a callable, not {}", model.get_type().name()?)));
        }
        let machine = slf.as_super().get();
        let mut turn = machine.lock(slf.py())?;
        match turn.emulator.bus_mut() {
            Some(bus) => bus
                .attach(ports, model::Model(model.unbind()))
                .map_err(|error| PyValueError::new_err(error.to_string())),
            None => Ok(()), // a Bus has one
        }
    }
}
