//! What the module does without a machine being made first.

use ioemul::{Hazard, IoInsn, PortAccess, PortSet};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::arguments::{self, Cpu, Memory};
use crate::machine::{Data, Machine, Smi};
use crate::{errors, model, registers};

/// Decodes the port-I/O instruction at the start of `code`, which is code of `mode` bits: its text and its length in
/// bytes.
#[pyfunction]
#[pyo3(signature = (code, mode=64))]
pub fn decode(code: &Bound<'_, PyAny>, mode: u32) -> PyResult<(String, usize)> {
    let size = arguments::code_size(mode)?;
    let bytes = arguments::bytes(code, "code")?;
    let (insn, length) = IoInsn::decode_in(size, &bytes).map_err(|error| errors::of_decoding(code.py(), error))?;
    Ok((insn.to_string(), length))
}

/// Executes one IN or OUT with these registers, and returns the sixteen words as they are afterwards.
///
/// `insn` is text ("out 0xb2, al") or the bytes of one instruction, of `mode` bits. `registers` are named by any of
/// their names; what is not named is 0. `on` is "hardware" or a machine. On "hardware" the ports of the access are
/// opened for it, and no others. If they are among those that no tool should touch by accident, `ports` has to name
/// them. `data` is the memory of INS (a bytearray, which is filled) and OUTS (bytes). `cpu` is a number, "any", or
/// None: as the machine has it.
#[pyfunction]
#[pyo3(signature = (insn, registers=None, *, on=On::Hardware, ports=None, mode=64, data=None, cpu=None))]
#[pyo3(text_signature = "(insn, registers=None, *, on='hardware', ports=None, mode=64, data=None, cpu=None)")]
#[allow(clippy::too_many_arguments)] // by keyword
pub fn execute<'py>(
    py: Python<'py>,
    insn: &Bound<'py, PyAny>,
    registers: Option<&Bound<'py, PyAny>>,
    on: On<'py>,
    ports: Option<&Bound<'py, PyAny>>,
    mode: u32,
    data: Option<&Bound<'py, PyAny>>,
    cpu: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let insn = arguments::insn(insn, mode)?;
    let gprs = registers::from_mapping(registers)?;
    let (memory, cpu) = (Memory::of(insn, data)?, Cpu::of(cpu)?);
    if let On::Machine(machine) = on {
        if ports.is_some() {
            return Err(PyValueError::new_err(
                "ports: the machine has its own: leave them out, or make another machine",
            ));
        }
        return machine.get().run(py, insn, gprs, memory, cpu);
    }
    let ports = match ports {
        Some(ports) => arguments::ports(ports)?,
        None => own_ports(py, PortAccess::of(insn, &gprs))?,
    };
    Machine::hardware(py, ports, None)?.run(py, insn, gprs, memory, cpu)
}

/// Raises an SMI: writes `data` to the port behind `port`, then `code` to `port`, with these registers.
///
/// Returns the sixteen words as the firmware left them. AL holds the code at the SMI (and the data at the write
/// before); every other register is as given, DX also unless `port` is above 0xff. The two are byte writes: some
/// chipsets drop a word, as chipsec found (its issue 1326). `data=None` writes none. `port` is 0xb2 unless given. The
/// SMI is raised on `cpu`: None is the machine's own, or else CPU 0 on hardware, where some firmware alone answers,
/// and any on a bus; "any" pins nothing.
///
/// On hardware this is a call of the firmware, and what that does is its own affair. ACPI_ENABLE and ACPI_DISABLE (in
/// the FADT) take the machine's power management from the kernel, or give it back.
#[pyfunction]
#[pyo3(signature = (code, data=Data(Some(0)), registers=None, *, port=None, cpu=None, on=On::Hardware))]
#[pyo3(text_signature = "(code, data=0, registers=None, *, port=None, cpu=None, on='hardware')")]
pub fn smi<'py>(
    py: Python<'py>,
    code: &Bound<'py, PyAny>,
    data: Data,
    registers: Option<&Bound<'py, PyAny>>,
    port: Option<&Bound<'py, PyAny>>,
    cpu: Option<&Bound<'py, PyAny>>,
    on: On<'py>,
) -> PyResult<Bound<'py, PyDict>> {
    let (smi, gprs) = Smi::of(code, data, registers, port, cpu)?;
    match on {
        On::Machine(machine) => machine.get().raise(py, &smi, gprs),
        On::Hardware => Machine::hardware(py, smi.ports(), None)?.raise(py, &smi, gprs),
    }
}

/// Where an access is made. There is no None: a bus that somebody forgot to make is not the hardware.
pub enum On<'py> {
    /// The hardware as it is.
    Hardware,
    /// A machine that is kept.
    Machine(Bound<'py, Machine>),
}

impl<'py> FromPyObject<'_, 'py> for On<'py> {
    type Error = PyErr;

    fn extract(on: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(machine) = on.cast::<Machine>() {
            return Ok(Self::Machine(machine.to_owned()));
        }
        match on.cast::<PyString>() {
            Ok(name) if &*name.to_cow()? == "hardware" => Ok(Self::Hardware),
            Ok(name) => Err(PyValueError::new_err(format!("on: {}: it is \"hardware\", or a machine", name.repr()?))),
            Err(_) => Err(PyTypeError::new_err(format!("\"hardware\" or a machine, not {}", on.get_type().name()?))),
        }
    }
}

/// The ports of an access, unless one of them wants to be named.
fn own_ports(py: Python<'_>, access: PortAccess) -> PyResult<PortSet> {
    let last = access.port.saturating_add(u16::from(access.width.bytes()) - 1);
    let Some(hazard) = Hazard::at(access.port, access.width) else { return Ok(PortSet::from(access.port..=last)) };
    let facts = PyDict::new(py);
    facts.set_item("port", access.port)?;
    facts.set_item("width", access.width.bytes())?;
    facts.set_item("direction", model::direction(access.direction))?;
    facts.set_item("hazard", hazard.to_string())?;
    let message = format!(
        "{access} was not made: {hazard}. If it is meant, name the ports: ports=\"{:#x}-{last:#x}\"",
        access.port
    );
    Err(errors::exception("Denied", message, &facts))
}
