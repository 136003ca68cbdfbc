"""What can go wrong, with the facts as attributes. An argument that cannot be is a ValueError or a TypeError."""

from __future__ import annotations

from typing import Dict, Optional

Words = Dict[str, int]


class Error(Exception):
    """Whatever else goes wrong; all others of this module are of this class."""


class DecodeError(Error, ValueError):
    """The bytes are not a port-I/O instruction."""

    truncated: bool
    """Whether the bytes end before the instruction does: with more of them it may become one."""

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


class _AccessError(Error):
    port: Optional[int]
    """The first port of the access."""
    width: Optional[int]
    """How many bytes it covers."""
    direction: Optional[str]
    """"in" or "out"."""

    def __init__(
        self, message: str, *, port: Optional[int] = None, width: Optional[int] = None, direction: Optional[str] = None
    ) -> None:
        super().__init__(message)
        self.port = port
        self.width = width
        self.direction = direction


class Denied(_AccessError):
    """The access was not made: its ports are not among those that were named."""

    quirk: Optional[str]
    """The quirk that would have made the access in the instruction's place."""
    hazard: Optional[str]
    """Why no tool should touch the port by accident."""

    def __init__(
        self,
        message: str,
        *,
        port: Optional[int] = None,
        width: Optional[int] = None,
        direction: Optional[str] = None,
        quirk: Optional[str] = None,
        hazard: Optional[str] = None,
    ) -> None:
        super().__init__(message, port=port, width=width, direction=direction)
        self.quirk = quirk
        self.hazard = hazard


class IoFault(_AccessError):
    """The CPU has raised an exception at the access. The process goes on."""

    vector: Optional[int]
    """13 is #GP: the thread has no privilege for the port."""
    error_code: Optional[int]
    address: Optional[int]
    """What a page fault (vector 14) was at."""
    registers: Optional[Words]
    """As they were given; of INS and OUTS, RCX, RSI and RDI say how far it came."""

    def __init__(
        self,
        message: str,
        *,
        port: Optional[int] = None,
        width: Optional[int] = None,
        direction: Optional[str] = None,
        vector: Optional[int] = None,
        error_code: Optional[int] = None,
        address: Optional[int] = None,
        registers: Optional[Words] = None,
    ) -> None:
        super().__init__(message, port=port, width=width, direction=direction)
        self.vector = vector
        self.error_code = error_code
        self.address = address
        self.registers = registers


class DeviceError(_AccessError):
    """A device has refused the access. For device models to raise, too."""

    registers: Optional[Words]
    """As of an IoFault."""

    def __init__(
        self,
        message: str,
        *,
        port: Optional[int] = None,
        width: Optional[int] = None,
        direction: Optional[str] = None,
        registers: Optional[Words] = None,
    ) -> None:
        super().__init__(message, port=port, width=width, direction=direction)
        self.registers = registers


class NoSuchCpu(Error, ValueError):
    """The thread cannot run on that CPU: there is none, or it is offline or outside the cpuset."""

    cpu: Optional[int]

    def __init__(self, message: str, *, cpu: Optional[int] = None) -> None:
        super().__init__(message)
        self.cpu = cpu


class PrivilegeError(Error, PermissionError):
    """The kernel did not open the ports. Nothing was accessed."""

    call: Optional[str]
    """The system call: "ioperm"."""
    capable: Optional[bool]
    """Whether the thread has CAP_SYS_RAWIO; None where nobody could find out."""
    locked_down: Optional[bool]
    """Whether the kernel is locked down, as under Secure Boot; None where nobody could find out."""

    def __init__(
        self,
        message: str,
        *,
        errno: Optional[int] = None,
        call: Optional[str] = None,
        capable: Optional[bool] = None,
        locked_down: Optional[bool] = None,
    ) -> None:
        super().__init__(message)
        self.errno = errno
        self.strerror = message
        self.call = call
        self.capable = capable
        self.locked_down = locked_down

    def __str__(self) -> str:
        return str(self.args[0])
