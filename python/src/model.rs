//! A callable of Python's as a device on a bus.

use ioemul::{DeviceError, Direction, Gprs, PortAccess, PortDevice};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::machine::Machine;
use crate::registers::{Registers, unsigned};

/// One access, as a device model sees it.
#[pyclass(module = "ioemul", frozen)]
pub struct Access {
    access: PortAccess,
    value: u32,
}

#[pymethods]
impl Access {
    /// The first port of the access.
    #[getter]
    fn port(&self) -> u16 {
        self.access.port
    }

    /// How many bytes it covers: 1, 2 or 4.
    #[getter]
    fn width(&self) -> u8 {
        self.access.width.bytes()
    }

    /// "in" or "out".
    #[getter]
    fn direction(&self) -> &'static str {
        direction(self.access.direction)
    }

    /// What an OUT writes; 0 of an IN.
    #[getter]
    fn value(&self) -> u32 {
        self.value
    }

    /// The instruction that makes it, such as "out 0xb2, al".
    #[getter]
    fn insn(&self) -> String {
        self.access.insn.to_string()
    }

    fn __repr__(&self) -> String {
        match self.access.direction {
            Direction::In => format!("<Access: {}>", self.access),
            Direction::Out => format!("<Access: {}, value {:#x}>", self.access, self.value),
        }
    }
}

/// Python's allocator gives objects 16 bytes of alignment, whatever is in them.
const _: () = assert!(align_of::<Access>() <= 16 && align_of::<Registers>() <= 16 && align_of::<Machine>() <= 16);

/// The direction of an access, as the module has it everywhere.
pub fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

/// A device whose behaviour is a callable.
pub struct Model(pub Py<PyAny>);

impl PortDevice for Model {
    fn try_access(&mut self, access: PortAccess, value: u32, gprs: &mut Gprs) -> Result<u32, DeviceError> {
        // What the model raises goes around the instruction as it is: errors.rs finds it again.
        Python::attach(|py| self.call(py, access, value, gprs)).map_err(Into::into)
    }
}

impl Model {
    fn call(&self, py: Python<'_>, access: PortAccess, value: u32, gprs: &mut Gprs) -> PyResult<u32> {
        let registers = Bound::new(py, Registers::from(*gprs))?;
        let answer = self.0.bind(py).call1((Access { access, value }, &registers))?;
        let input = match access.direction {
            Direction::Out => 0,
            Direction::In if answer.is_none() => access.width.mask(),
            Direction::In => {
                let what = format!("the model's answer to an {access}");
                let input = unsigned(&answer, &what)?;
                let fits = u32::try_from(input).ok().filter(|input| input & !access.width.mask() == 0);
                fits.ok_or_else(|| PyValueError::new_err(format!("{what}: {input:#x} is too wide")))?
            }
        };
        *gprs = registers.try_borrow()?.gprs();
        Ok(input)
    }
}
