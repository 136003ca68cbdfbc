//! What a caller hands over, looked at before anything is executed.

use ioemul::{CodeSize, IoInsn, PortSet, Quirk, QuirkTable};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyInt, PySlice, PyString};

use crate::errors;
use crate::registers::unsigned;

/// A number of 8 bits.
pub fn byte(value: &Bound<'_, PyAny>, what: &str) -> PyResult<u8> {
    let value = unsigned(value, what)?;
    value.try_into().map_err(|_| PyValueError::new_err(format!("{what}: {value:#x} does not fit a byte")))
}

/// The number of a port.
pub fn port(value: &Bound<'_, PyAny>, what: &str) -> PyResult<u16> {
    let value = unsigned(value, what)?;
    value.try_into().map_err(|_| PyValueError::new_err(format!("{what}: {value:#x} is no port: they end at 0xffff")))
}

/// Which CPU is to make an access.
#[derive(Clone, Copy)]
pub enum Cpu {
    /// Whatever the machine says.
    Default,
    /// Whichever the thread is on.
    Any,
    /// This one.
    Only(usize),
}

impl Cpu {
    /// Reads `None`, `"any"` or a number.
    pub fn of(value: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(value) = value else { return Ok(Self::Default) };
        if let Ok(text) = value.cast::<PyString>() {
            return match &*text.to_cow()? {
                "any" => Ok(Self::Any),
                text => Err(PyValueError::new_err(format!("cpu: {text:?}: it is a number, or \"any\""))),
            };
        }
        // One that does not fit is none that there is.
        Ok(Self::Only(usize::try_from(unsigned(value, "cpu")?).unwrap_or(usize::MAX)))
    }

    /// The CPU to pin the thread to.
    pub fn or(self, default: Option<usize>) -> Option<usize> {
        match self {
            Self::Default => default,
            Self::Any => None,
            Self::Only(cpu) => Some(cpu),
        }
    }
}

/// The size of code, in bits.
pub fn code_size(mode: u32) -> PyResult<CodeSize> {
    match mode {
        16 => Ok(CodeSize::Bits16),
        32 => Ok(CodeSize::Bits32),
        64 => Ok(CodeSize::Bits64),
        _ => Err(PyValueError::new_err(format!("mode: {mode}: code has 16, 32 or 64 bits"))),
    }
}

/// The bytes of `bytes` or a `bytearray`.
pub fn bytes(value: &Bound<'_, PyAny>, what: &str) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    match value.cast::<PyByteArray>() {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(_) => Err(PyTypeError::new_err(format!("{what}: bytes or a bytearray, not {}", value.get_type().name()?))),
    }
}

/// An instruction as text, or as the bytes of it and no more.
pub fn insn(value: &Bound<'_, PyAny>, mode: u32) -> PyResult<IoInsn> {
    let size = code_size(mode)?;
    if let Ok(text) = value.cast::<PyString>() {
        let text = text.to_cow()?;
        return text.parse().map_err(|error| PyValueError::new_err(format!("{:?}: {error}", &*text)));
    }
    let code = bytes(value, "insn: the text of an instruction")?;
    let (insn, length) = IoInsn::decode_in(size, &code).map_err(|error| errors::of_decoding(value.py(), error))?;
    if length != code.len() {
        return Err(PyValueError::new_err(format!(
            "`{insn}` is {length} of these {} bytes: give the bytes of one instruction (`decode` says how many they are)",
            code.len()
        )));
    }
    Ok(insn)
}

/// A set of ports: the library's written form, a number, or numbers.
pub fn ports(value: &Bound<'_, PyAny>) -> PyResult<PortSet> {
    if let Ok(text) = value.cast::<PyString>() {
        return text.to_cow()?.parse().map_err(|error| PyValueError::new_err(format!("ports: {error}")));
    }
    let mut set = PortSet::none();
    let mut allow = |number: &Bound<'_, PyAny>| {
        let port = port(number, "ports")?;
        set.allow(port..=port);
        PyResult::Ok(())
    };
    if value.is_instance_of::<PyInt>() {
        allow(value)?;
        return Ok(set);
    }
    let Ok(numbers) = value.try_iter() else {
        let message =
            format!("ports: text such as \"0xb2-0xb3\", a number, or numbers, not {}", value.get_type().name()?);
        return Err(PyTypeError::new_err(message));
    };
    for number in numbers {
        allow(&number?)?;
    }
    Ok(set)
}

/// Quirks by their names in the library.
pub fn quirks(names: Option<Vec<String>>) -> PyResult<Option<QuirkTable>> {
    let Some(names) = names else { return Ok(None) };
    let quirk = |name: String| {
        Quirk::by_name(&name).ok_or_else(|| {
            let known: Vec<_> = Quirk::ALL.iter().map(|quirk| format!("{:?}", quirk.name())).collect();
            PyValueError::new_err(format!(
                "quirks: {name:?}: there is none of that name: there are {}",
                known.join(", ")
            ))
        })
    };
    names.into_iter().map(quirk).collect::<PyResult<QuirkTable>>().map(Some)
}

/// The memory of INS or OUTS.
pub enum Memory<'py> {
    /// IN and OUT have none.
    None,
    /// What OUTS writes.
    Out(Vec<u8>),
    /// What INS fills, and its bytes as they are now.
    In(Bound<'py, PyByteArray>, Vec<u8>),
}

impl<'py> Memory<'py> {
    /// Memory that fits the instruction's kind.
    pub fn of(insn: IoInsn, data: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        let refuse = |why: &str| Err(PyValueError::new_err(format!("`{insn}` {why}")));
        match (insn.is_string(), insn.direction, data) {
            (false, _, None) => Ok(Self::None),
            (false, _, Some(_)) => refuse("accesses no memory: leave `data` out"),
            (true, ioemul::Direction::In, Some(data)) => match data.cast::<PyByteArray>() {
                Ok(array) => Ok(Self::In(array.clone(), array.to_vec())),
                Err(_) => refuse("fills memory: give a bytearray as `data`"),
            },
            (true, _, Some(data)) => Ok(Self::Out(bytes(data, "data")?)),
            (true, _, None) => refuse(
                "moves data between a port and memory, and the address in its register is not one of this process: give the memory as \
                 `data`, bytes for OUTS, a bytearray for INS",
            ),
        }
    }

    /// Gives what INS has read to the caller's array.
    pub fn hand_back(&self) -> PyResult<()> {
        let Self::In(array, bytes) = self else { return Ok(()) };
        let py = array.py();
        array.set_item(PySlice::full(py), PyBytes::new(py, bytes))
    }
}
