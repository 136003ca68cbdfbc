"""Software SMIs for chipsec without its kernel module.

chipsec's helper "linuxnative" needs no driver, and raises NotImplementedError where an SMI is to be sent. `install` gives
chipsec a helper that is the same in all else and sends it:

    import ioemul.chipsec
    from chipsec.chipset import cs

    chipset = cs()
    chipset.init(None, None, ioemul.chipsec.install())
    Interrupts(chipset).send_SW_SMI(0, 0x5a, 0, rax, rbx, rcx, rdx, rsi, rdi)

The helper is known to chipsec by the name "ioemulhelper" from then on. On the command line:

    sudo python3 -m ioemul.chipsec util smi send 0 0x5a 0 0 1 2 3 4 5
    sudo python3 -m ioemul.chipsec main -m tools.smm.rogue_mmio_bar

are chipsec_util and chipsec_main with that helper.

What is not there: `send_sw_smi_timed`, which chipsec's native helper does not have either.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any, List, Optional, Tuple, Union

from . import Error, Machine, send_sw_smi

NAME = "ioemulhelper"
"""What chipsec calls the helper: its `--helper`, and `helper_name` of `Chipset.init`."""

Tuple7 = Tuple[int, int, int, int, int, int, int]


class _Sender:
    """What a helper is given: chipsec's methods, by its names and in its order."""

    def __init__(self, on: Union[str, Machine]) -> None:
        if isinstance(on, str) and on != "hardware":
            raise ValueError(f'on: {on!r}: it is "hardware", or a machine')
        if not isinstance(on, (str, Machine)):
            raise TypeError(f'on: "hardware" or a machine, not {type(on).__name__}')
        self.on = on

    def send_sw_smi(
        self,
        cpu_thread_id: int,
        SMI_code_data: int,
        _rax: int,
        _rbx: int,
        _rcx: int,
        _rdx: int,
        _rsi: int,
        _rdi: int,
    ) -> Tuple7:
        return send_sw_smi(cpu_thread_id, SMI_code_data, _rax, _rbx, _rcx, _rdx, _rsi, _rdi, on=self.on)

    def read_io_port(self, io_port: int, size: int) -> int:
        assert isinstance(self.on, Machine)
        return self.on.execute(f"in {_accumulator(size)}, dx", {"dx": io_port})["rax"]

    def write_io_port(self, io_port: int, value: int, size: int) -> bool:
        assert isinstance(self.on, Machine)
        accumulator = _accumulator(size)
        self.on.execute(f"out dx, {accumulator}", {"dx": io_port, accumulator: value})
        return True

    def plug_into(self, helper: Any) -> None:
        helper.send_sw_smi = self.send_sw_smi
        if isinstance(self.on, Machine) and self.on.on == "bus":
            # chipsec sends an SMI without registers by two byte writes of its own: on a bus they must not be real ones.
            helper.read_io_port = self.read_io_port
            helper.write_io_port = self.write_io_port


def _accumulator(size: int) -> str:
    """As chipsec's native helper has it: one, two or four bytes, or a ValueError."""
    accumulators = {1: "al", 2: "ax", 4: "eax"}
    if size not in accumulators:
        raise ValueError("Invalid size")
    return accumulators[size]


def install(helper: Optional[Any] = None, *, on: Union[str, Machine] = "hardware") -> Any:
    """Let chipsec send software SMIs, and return the helper that does.

    Without an argument, a new native helper is made and returned, for `Chipset.init` or `load_helper`, and chipsec knows its
    like by the name "ioemulhelper". Nothing of chipsec's is changed. Given a helper that a chipset has already, that one
    object is changed.

    `on` is where SMIs go: "hardware", or a machine. If it is a Bus, the helper's port accesses go there as well, and all
    else (memory, PCI, MSRs) is that of the machine chipsec runs on.
    """
    sender = _Sender(on)
    if helper is not None:
        base = importlib.import_module("chipsec.helper.basehelper").Helper
        if not isinstance(helper, base):
            raise TypeError(f"helper: one of chipsec's, not {type(helper).__name__}")
        sender.plug_into(helper)
        return helper
    native = importlib.import_module("chipsec.helper.linuxnative.linuxnativehelper")

    def get_helper() -> Any:
        made = native.LinuxNativeHelper()
        made.name = "IoemulHelper"
        sender.plug_into(made)
        return made

    helpers = importlib.import_module("chipsec.helper.oshelper").helper()
    helpers.avail_helpers[NAME] = SimpleNamespace(get_helper=get_helper)
    return get_helper()


def main(arguments: Optional[List[str]] = None) -> int:
    """`python3 -m ioemul.chipsec util|main ARGUMENTS`: chipsec_util or chipsec_main, with the helper."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in ("util", "main"):
        print("usage: python3 -m ioemul.chipsec util|main ARGUMENTS OF chipsec_util OR chipsec_main", file=sys.stderr)
        return 2
    install()
    program = importlib.import_module(f"chipsec_{arguments[0]}")
    try:
        return int(program.main(["--helper", NAME, *arguments[1:]]) or 0)
    except Error as error:
        print(f"ioemul: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
