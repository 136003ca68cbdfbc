//! How a command ends if it does not end well: what is said, what a program reads, and the exit status.

use ioemul::guest_rpc::GuestRpcError;
use ioemul::trace::ReplayError;
use ioemul::{Error, IoInsn, PrivilegeError, Refusal};
use serde_json::{Map, Value, json};

pub type Result<T = ()> = std::result::Result<T, Failure>;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    /// What a program may want to know without reading the message.
    pub facts: Map<String, Value>,
}

/// The kinds, by the names that they have in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Standard output is closed: nobody wants to know.
    ClosedPipe,
    Fault,
    Device,
    NoAnswer,
    Io,
    Trace,
    Build,
    Decode,
    Usage,
    Refused,
    NoPrivilege,
    NoSuchCpu,
    Expectation,
    Replay,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClosedPipe => "closed_pipe",
            Self::Fault => "fault",
            Self::Device => "device",
            Self::NoAnswer => "no_answer",
            Self::Io => "io",
            Self::Trace => "trace",
            Self::Build => "build",
            Self::Decode => "decode",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::NoPrivilege => "no_privilege",
            Self::NoSuchCpu => "no_such_cpu",
            Self::Expectation => "expectation",
            Self::Replay => "replay",
        }
    }

    pub const fn exit_status(self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Fault | Self::Device | Self::NoAnswer | Self::Io | Self::Trace | Self::Build | Self::Decode => 1,
            Self::Usage | Self::NoSuchCpu => 2,
            Self::Refused => 3,
            Self::NoPrivilege => 4,
            Self::Expectation | Self::Replay => 5,
        }
    }
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), facts: Map::new() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn no_answer(message: impl Into<String>) -> Self {
        Self::new(Kind::NoAnswer, message)
    }

    /// A file or another resource that cannot be had.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new(Kind::Io, format!("{what}: {error}"))
    }

    /// Refused by the interlock of this name.
    pub fn refused(interlock: &str, message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message).fact("interlock", interlock)
    }

    pub fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// An instruction's failure.
    pub fn access(insn: IoInsn, error: &Error) -> Self {
        let message = format!("`{insn}`: {error}");
        let failure = |kind| Self::new(kind, &*message).fact("insn", insn.to_string());
        match error {
            Error::Fault { access, fault } => failure(Kind::Fault)
                .fact("port", format!("{:#x}", access.port))
                .fact("vector", fault.vector)
                .fact("error_code", fault.error_code),
            Error::Device { source, access } => {
                let kind = if source.is::<ReplayError>() { Kind::Replay } else { Kind::Device };
                failure(kind).fact("port", format!("{:#x}", access.port))
            }
            Error::Decode(_) => failure(Kind::Decode),
            Error::PortDenied { .. } | Error::QuirkDenied { .. } => failure(Kind::Refused).fact("interlock", "ports"),
            _ => failure(Kind::Io),
        }
    }

    pub fn guest_rpc(error: &GuestRpcError) -> Self {
        match error {
            GuestRpcError::Access { error, .. } => {
                let insn = IoInsn::in_dx(ioemul::Width::Dword);
                let failure = Self::access(insn, error);
                Self { message: format!("VMware backdoor: {error}"), ..failure }
            }
            _ => Self::no_answer(format!("VMware backdoor: {error}")),
        }
    }
}

impl From<PrivilegeError> for Failure {
    fn from(error: PrivilegeError) -> Self {
        let message = sentence(&error);
        match error {
            PrivilegeError::Refused { call, reason: Refusal { capable, locked_down, .. } } => {
                Self::new(Kind::NoPrivilege, message)
                    .fact("call", call)
                    .fact("cap_sys_rawio", json!(capable))
                    .fact("lockdown", json!(locked_down))
            }
            PrivilegeError::Unsupported { call } => {
                Self::new(Kind::NoPrivilege, message).fact("call", call).fact("unsupported", true)
            }
            PrivilegeError::NoSuchCpu { cpu } => Self::new(Kind::NoSuchCpu, message).fact("cpu", cpu),
            PrivilegeError::Os { call, .. } => Self::new(Kind::NoPrivilege, message).fact("call", call),
            _ => Self::new(Kind::Usage, message),
        }
    }
}

impl From<ioemul::BuildError> for Failure {
    fn from(error: ioemul::BuildError) -> Self {
        Self::new(Kind::Build, error.to_string())
    }
}

/// The first failure of several results. A pipe that nobody reads is none, and hides none: it comes last.
pub fn first_of(results: impl IntoIterator<Item = Result>) -> Result {
    let mut pipe = Ok(());
    for result in results {
        match result {
            Err(failure) if failure.kind == Kind::ClosedPipe => pipe = Err(failure),
            result => result?,
        }
    }
    pipe
}

/// An error and what is behind it.
pub fn sentence(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", sentence(source)),
        None => error.to_string(),
    }
}
