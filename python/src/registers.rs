//! Registers as Python sees them: the mapping that a device model is given, and dictionaries on their way in and out.

use ioemul::Gprs;
use pyo3::exceptions::{PyAttributeError, PyKeyError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMapping, PyString};

/// The registers at the instant of an access, for a device model to read and to change.
///
/// A register, or a part of one, is an attribute and an item of its name: `gprs.rbx`, `gprs["ah"]`. What is written
/// to a part leaves the rest of the register as it is. After the model has returned, the object is a copy of what was
/// there then.
#[pyclass(module = "ioemul", mapping)]
pub struct Registers {
    /// Not a `Gprs`: that begins a cache line, and Python's allocator knows of no such wish.
    words: [u64; 16],
}

impl From<Gprs> for Registers {
    fn from(gprs: Gprs) -> Self {
        Self { words: gprs.to_words() }
    }
}

impl Registers {
    /// What they are now.
    pub fn gprs(&self) -> Gprs {
        Gprs::from_words(self.words)
    }

    /// The value is asked for before the registers are: an `__index__` of the caller's may use them, too.
    fn set(slf: &Bound<'_, Self>, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let value = unsigned(value, name)?;
        let mut registers = slf.try_borrow_mut()?;
        let mut gprs = registers.gprs();
        set(&mut gprs, name, value)?;
        *registers = gprs.into();
        Ok(())
    }
}

#[pymethods]
impl Registers {
    fn __getitem__(&self, name: &str) -> PyResult<u64> {
        self.gprs().get(name).ok_or_else(|| PyKeyError::new_err(no_such(name)))
    }

    fn __setitem__(slf: &Bound<'_, Self>, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        if Gprs::default().get(name).is_none() {
            return Err(PyKeyError::new_err(no_such(name)));
        }
        Self::set(slf, name, value)
    }

    fn __delitem__(&mut self, name: &str) -> PyResult<()> {
        Err(PyTypeError::new_err(format!("{name}: a register cannot be deleted")))
    }

    fn __getattr__(&self, name: &str) -> PyResult<u64> {
        self.gprs().get(name).ok_or_else(|| PyAttributeError::new_err(no_such(name)))
    }

    fn __setattr__(slf: &Bound<'_, Self>, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        if Gprs::default().get(name).is_none() {
            return Err(PyAttributeError::new_err(no_such(name)));
        }
        Self::set(slf, name, value)
    }

    fn __len__(&self) -> usize {
        Gprs::NAMES.len()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.keys(py)?.try_iter()?.into_any())
    }

    /// The names of the sixteen words, in the order of the library, so that `dict(gprs)` works.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, Gprs::NAMES)
    }

    fn __repr__(&self) -> String {
        format!("<Registers\n{}>", self.gprs())
    }
}

/// The sixteen words by their names.
pub fn to_dict<'py>(py: Python<'py>, gprs: &Gprs) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, word) in Gprs::NAMES.iter().zip(gprs.to_words()) {
        dict.set_item(name, word)?;
    }
    Ok(dict)
}

/// Registers from a mapping of names and values; what is not named is 0. No bit may be named twice.
pub fn from_mapping(mapping: Option<&Bound<'_, PyAny>>) -> PyResult<Gprs> {
    let Some(mapping) = mapping else { return Ok(Gprs::default()) };
    if let Ok(registers) = mapping.cast::<Registers>() {
        return Ok(registers.try_borrow()?.gprs());
    }
    let Ok(mapping) = mapping.cast::<PyMapping>() else {
        let message = format!(
            "registers are a dict of names and values, as in {{\"rax\": 5, \"bl\": 7}}, not {}",
            mapping.get_type().name()?
        );
        return Err(PyTypeError::new_err(message));
    };
    let (mut gprs, mut named) = (Gprs::default(), [0; 16]);
    for item in mapping.items()? {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let Ok(name) = name.cast::<PyString>() else {
            return Err(PyTypeError::new_err(format!("{}: a register is named by a str", name.repr()?)));
        };
        let name = name.to_cow()?;
        if gprs.get(&name).is_none() {
            return Err(PyValueError::new_err(no_such(&name)));
        }
        for (named, bits) in named.iter_mut().zip(bits_of(&name)) {
            if *named & bits != 0 {
                let message = format!("{name}: another name of the mapping names the same bits: say each of them once");
                return Err(PyValueError::new_err(message));
            }
            *named |= bits;
        }
        set(&mut gprs, &name, unsigned(&value, &name)?)?;
    }
    Ok(gprs)
}

/// Which bits of the sixteen words a name stands for.
fn bits_of(name: &str) -> [u64; 16] {
    let mut gprs = Gprs::default();
    for bits in [64, 32, 16, 8] {
        if gprs.set(name, u64::MAX >> (64 - bits)).is_ok() {
            break;
        }
    }
    gprs.to_words()
}

/// Sets a register that there is to a number that fits it.
fn set(gprs: &mut Gprs, name: &str, value: u64) -> PyResult<()> {
    gprs.set(name, value).map_err(|error| PyValueError::new_err(format!("{error} (0x{value:x})")))
}

/// A number of 64 bits, of which an error says what it was for.
pub fn unsigned(value: &Bound<'_, PyAny>, what: &str) -> PyResult<u64> {
    value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(value.py()) {
            let negative = value.lt(0).unwrap_or(false);
            let why = if negative { "is negative" } else { "does not fit 64 bits" };
            return PyValueError::new_err(format!("{what}: the value {why}"));
        }
        if error.is_instance_of::<PyTypeError>(value.py()) {
            let kind = value.get_type().name().map_or_else(|_| "that".to_owned(), |name| name.to_string());
            return PyTypeError::new_err(format!("{what}: the value is an int, not {kind}"));
        }
        error // of an `__index__` of the caller's own
    })
}

fn no_such(name: &str) -> String {
    if matches!(name, "rsp" | "esp" | "sp" | "spl") {
        return format!(
            "{name}: the stack pointer is not the guest's to set: the host's stack stays in place during the access, for signals and \
             interrupts to land on"
        );
    }
    match Gprs::default().set(name, 0) {
        Err(error) => error.to_string(),
        Ok(()) => name.to_owned(),
    }
}
