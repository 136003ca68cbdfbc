//! The library's errors as the exceptions of `ioemul/_errors.py`, with their facts as attributes.

use std::error::Error as _;

use ioemul::{BuildError, DecodeError, Error, Gprs, PrivilegeError};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::model::direction;
use crate::registers;

/// An exception of the package, by its name.
///
/// If the package itself is broken, the exception says that.
pub fn exception(class: &str, message: String, facts: &Bound<'_, PyDict>) -> PyErr {
    let made =
        facts.py().import("ioemul._errors").and_then(|module| module.getattr(class)?.call((message,), Some(facts)));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// One without facts.
pub fn plain(py: Python<'_>, message: String) -> PyErr {
    exception("Error", message, &PyDict::new(py))
}

/// Why an access was not made, or not to its end. Of INS and OUTS, `gprs` says how far it came.
pub fn of_access(py: Python<'_>, error: Error, gprs: &Gprs) -> PyErr {
    let message = error.to_string();
    let facts = PyDict::new(py);
    let made = (|| {
        let describe = |port: u16, width: ioemul::Width, way| {
            facts.set_item("port", port)?;
            facts.set_item("width", width.bytes())?;
            facts.set_item("direction", direction(way))
        };
        Ok(match error {
            Error::Decode(error) => return Ok(of_decoding(py, error)),
            Error::PortDenied { port, width, direction } => {
                describe(port, width, direction)?;
                "Denied"
            }
            Error::QuirkDenied { quirk, port, width, direction } => {
                describe(port, width, direction)?;
                facts.set_item("quirk", quirk)?;
                "Denied"
            }
            Error::Fault { access, fault } => {
                describe(access.port, access.width, access.direction)?;
                facts.set_item("vector", fault.vector)?;
                facts.set_item("error_code", fault.error_code)?;
                facts.set_item("address", (fault.vector == 14).then_some(fault.address))?;
                facts.set_item("registers", registers::to_dict(py, gprs)?)?;
                "IoFault"
            }
            Error::Device { access, source } => match source.downcast::<PyErr>() {
                Ok(raised) => return Ok(*raised),
                Err(_) => {
                    describe(access.port, access.width, access.direction)?;
                    facts.set_item("registers", registers::to_dict(py, gprs)?)?;
                    "DeviceError"
                }
            },
            Error::StringOutOfBounds { .. } | Error::StringForm { .. } => {
                return Ok(PyValueError::new_err(message.clone()));
            }
            _ => "Error",
        })
        .map(|class| exception(class, message, &facts))
    })();
    made.unwrap_or_else(|error: PyErr| error)
}

/// Why bytes are no instruction for this module.
pub fn of_decoding(py: Python<'_>, error: DecodeError) -> PyErr {
    let facts = PyDict::new(py);
    match facts.set_item("truncated", matches!(error, DecodeError::Truncated { .. })) {
        Ok(()) => exception("DecodeError", error.to_string(), &facts),
        Err(error) => error,
    }
}

/// Why there is no machine.
pub fn of_building(py: Python<'_>, error: &BuildError) -> PyErr {
    match error {
        BuildError::Dmi(why) => plain(
            py,
            format!(
                "the machine's DMI strings, which tell its quirks, cannot be read: {why}: make it possible, or name the quirks yourself \
                 (`quirks=[]` for none)"
            ),
        ),
        error => plain(py, error.to_string()),
    }
}

/// Why a CPU or ports were not given.
pub fn of_privilege(py: Python<'_>, error: &PrivilegeError) -> PyErr {
    let message = match error.source() {
        Some(why) => format!("{error}: {why}"),
        None => error.to_string(),
    };
    let facts = PyDict::new(py);
    let made = (|| match error {
        PrivilegeError::NoSuchCpu { cpu } => {
            facts.set_item("cpu", cpu)?;
            Ok(exception("NoSuchCpu", message, &facts))
        }
        PrivilegeError::NoPorts => Ok(PyValueError::new_err(message)),
        error => {
            let (call, errno) = match error {
                PrivilegeError::Unsupported { call } => (Some(*call), libc_errno::ENOSYS),
                PrivilegeError::Refused { call, reason } => {
                    facts.set_item("capable", reason.capable)?;
                    facts.set_item("locked_down", reason.locked_down)?;
                    (Some(*call), libc_errno::EPERM)
                }
                PrivilegeError::Os { call, source } => {
                    (Some(*call), source.raw_os_error().unwrap_or(libc_errno::EPERM))
                }
                _ => (None, libc_errno::EPERM),
            };
            facts.set_item("call", call)?;
            facts.set_item("errno", errno)?;
            Ok(exception("PrivilegeError", message, &facts))
        }
    })();
    made.unwrap_or_else(|error: PyErr| error)
}

/// Two of Linux's numbers.
mod libc_errno {
    pub const EPERM: i32 = 1;
    pub const ENOSYS: i32 = 38;
}
