from typing import Any, Callable, Dict, Iterable, Iterator, List, Literal, Mapping, Optional, Tuple, Union, final

from typing_extensions import disjoint_base

__all__ = ["decode", "execute", "smi", "Bus", "Machine", "Access", "Registers"]

_Code = Union[bytes, bytearray]
_Ports = Union[str, int, Iterable[int]]
_Cpu = Union[int, Literal["any"], None]
_Registers = Union[Mapping[str, int], Registers]

def decode(code: _Code, mode: int = 64) -> Tuple[str, int]: ...
def execute(
    insn: Union[str, _Code],
    registers: Optional[_Registers] = None,
    *,
    on: Union[str, Machine] = "hardware",
    ports: Optional[_Ports] = None,
    mode: int = 64,
    data: Optional[_Code] = None,
    cpu: _Cpu = None,
) -> Dict[str, int]: ...
def smi(
    code: int,
    data: Optional[int] = 0,
    registers: Optional[_Registers] = None,
    *,
    port: Optional[int] = None,
    cpu: _Cpu = None,
    on: Union[str, Machine] = "hardware",
) -> Dict[str, int]: ...

@disjoint_base
class Machine:
    def __new__(
        cls,
        on: str,
        ports: _Ports,
        *,
        cpu: _Cpu = None,
        quirks: Optional[List[str]] = None,
        acquire: bool = True,
    ) -> Machine: ...
    def execute(
        self,
        insn: Union[str, _Code],
        registers: Optional[_Registers] = None,
        *,
        mode: int = 64,
        data: Optional[_Code] = None,
        cpu: _Cpu = None,
    ) -> Dict[str, int]: ...
    def smi(
        self,
        code: int,
        data: Optional[int] = 0,
        registers: Optional[_Registers] = None,
        *,
        port: Optional[int] = None,
        cpu: _Cpu = None,
    ) -> Dict[str, int]: ...
    @property
    def on(self) -> str: ...
    @property
    def ports(self) -> str: ...
    @property
    def cpu(self) -> Optional[int]: ...

@final
class Bus(Machine):
    def __new__(cls, ports: _Ports = "all", *, quirks: Optional[List[str]] = None) -> Bus: ...
    def attach(self, first: int, last: int, model: Callable[[Access, Registers], Any]) -> None: ...

@final
class Access:
    @property
    def port(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def direction(self) -> str: ...
    @property
    def value(self) -> int: ...
    @property
    def insn(self) -> str: ...

@final
class Registers:
    def __getitem__(self, name: str, /) -> int: ...
    def __setitem__(self, name: str, value: int, /) -> None: ...
    def __delitem__(self, name: str, /) -> None: ...
    def __getattr__(self, name: str, /) -> int: ...
    def __setattr__(self, name: str, value: int, /) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> List[str]: ...
