"""Run an x86 port-I/O instruction with somebody else's registers in view.

An SMM handler, the VMware backdoor or a vendor's mailbox behind a port reads and writes all general-purpose registers at
the instant of an IN or OUT. `execute` makes such an access with fifteen registers and the status flags as given, and
returns what they are afterwards, from an ordinary process on Linux (CAP_SYS_RAWIO) and without a kernel module:

    >>> import ioemul
    >>> bus = ioemul.Bus()                       # device models in place of the hardware
    >>> def firmware(access, gprs):
    ...     if access.port == 0xb2:
    ...         gprs.rbx += gprs.rcx
    >>> bus.attach(0xb2, 0xb3, firmware)
    >>> ioemul.execute("out 0xb2, al", {"al": 0x42, "rbx": 1, "rcx": 0x10}, on=bus)["rbx"]
    17
    >>> ioemul.smi(0x42, registers={"rbx": 1, "rcx": 0x10}, on=bus)["rbx"]
    17
    >>> ioemul.decode(b"\\x66\\xe5\\x70")
    ('in ax, 0x70', 3)

Arguments are looked at before anything is executed: a register that there is not, RSP, a value that is too wide are
ValueErrors, and nothing has happened then. `on` is "hardware" unless it is said otherwise, and never changes silently.
"""

from __future__ import annotations

import operator
from typing import Tuple, Union

from ._errors import Denied, DecodeError, DeviceError, Error, IoFault, NoSuchCpu, PrivilegeError
from ._ioemul import Access, Bus, Machine, Registers, decode, execute, smi

__all__ = [
    "Access",
    "Bus",
    "DecodeError",
    "Denied",
    "DeviceError",
    "Error",
    "IoFault",
    "Machine",
    "NoSuchCpu",
    "PrivilegeError",
    "Registers",
    "decode",
    "execute",
    "send_sw_smi",
    "smi",
]

for _error in (Denied, DecodeError, DeviceError, Error, IoFault, NoSuchCpu, PrivilegeError):
    _error.__module__ = "ioemul"  # where a reader of a traceback finds it
del _error


def send_sw_smi(
    cpu: int,
    SMI_code_data: int,
    rax: int,
    rbx: int,
    rcx: int,
    rdx: int,
    rsi: int,
    rdi: int,
    *,
    on: Union[str, Machine] = "hardware",
) -> Tuple[int, int, int, int, int, int, int]:
    """Raise an SMI by the conventions of chipsec's helpers, and return their tuple.

    `SMI_code_data` has the code for port 0xb2 in its low byte and the data for port 0xb3 in the high one. Both are
    written as bytes, the data first: some chipsets drop a word (chipsec's issue 1326). At the SMI, AX is `SMI_code_data`,
    whatever `rax` says, and the rest of the registers is as given, RDX too. Those that chipsec has no argument for are 0.

    The tuple is `SMI_code_data` as it was given, then RAX, RBX, RCX, RDX, RSI and RDI as the firmware left them. The
    thread is on `cpu` for the SMI, and free again afterwards.

    What does not fit is a ValueError, and None a TypeError: no register is left out.
    """
    try:
        code_data = operator.index(SMI_code_data)
    except TypeError:
        raise TypeError(f"SMI_code_data: the value is an int, not {type(SMI_code_data).__name__}") from None
    if not 0 <= code_data <= 0xFFFF:
        raise ValueError(f"SMI_code_data: {code_data:#x} is not a code in the low byte and data in the high one")
    code, data = code_data & 0xFF, code_data >> 8
    registers = {"rax": rax, "rbx": rbx, "rcx": rcx, "rdx": rdx, "rsi": rsi, "rdi": rdi}
    if isinstance(rax, int):
        # Of a value that is refused, what is wrong with it stays.
        registers["rax"] = (rax & ~0xFFFF) | data << 8
    after = smi(code, data, registers, cpu=cpu, on=on)
    return (code_data, after["rax"], after["rbx"], after["rcx"], after["rdx"], after["rsi"], after["rdi"])
