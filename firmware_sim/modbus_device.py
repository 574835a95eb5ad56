"""A field device with a Modbus TCP server: registers from its profile, values from the plant.

Registers are rendered when they are read, so the wire shows exactly what the plant's meter holds at that
moment. Only blocks that the profile declares exist, each in its own table; a read across their edge fails, as
on the device. Points that share a register (masks) are laid onto it one after the other.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from firmware_sim.device_fault import DeviceFault, distort
from protocols.codec import FLOATS, Value, encode, width
from protocols.profile import BIT_TABLES, Point, Profile, Table

LOOPBACK: Final = "127.0.0.1"
NAN_WORDS: Final = {"f32": (0x7FC0, 0), "f64": (0x7FF8, 0, 0, 0)}  # quiet NaN, IEEE 754
TABLES: Final[tuple[Table, ...]] = ("coil", "discrete", "holding", "input")  # the library's order
TABLE_OF_CODE: Final[Mapping[int, Table]] = {
    1: "coil", 5: "coil", 15: "coil", 2: "discrete", 4: "input",
    3: "holding", 6: "holding", 16: "holding", 22: "holding", 23: "holding",
}  # fmt: skip
UNUSED: Final = 0xFFFF  # the library wants something in every table: the last address, where no profile is


class ModbusDevice:
    """Serves one unit's registers, coils and discrete inputs on loopback. Use as an async context manager."""

    def __init__(
        self,
        profile: Profile,
        values: Callable[[], Mapping[str, float | str]],
        *,
        port: int = 0,
        unit: int = 1,
    ) -> None:
        """`values` gives point name -> value in its unit; points it leaves out read 0."""
        self.profile = profile
        self.port = port
        self._unit = unit
        self._values = values
        self._frozen: dict[str, float | str] | None = None
        self._fault: DeviceFault | None = None
        self._server: ModbusTcpServer | None = None

    @property
    def url(self) -> str:
        return f"modbus+tcp://{LOOPBACK}:{self.port}"

    @property
    def fault(self) -> DeviceFault | None:
        return self._fault

    async def set_fault(self, fault: DeviceFault | None) -> None:
        """Put the fault in force; None heals."""
        self._frozen = dict(self._values()) if fault is not None and fault.mode == "frozen" else None
        self._fault = fault
        refusing = fault is not None and fault.mode == "refusing"
        if refusing and self._server is not None:
            await self._stop()
        elif not refusing and self._server is None:
            await self._start()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        coils, discretes, holding, inputs = (self._table(table) for table in TABLES)
        device = SimDevice(self._unit, simdata=(coils, discretes, holding, inputs), action=self._answer)
        server = ModbusTcpServer(device, address=(LOOPBACK, self.port), trace_packet=self._reply)
        await server.serve_forever(background=True)
        listener: Any = server.transport  # asyncio.Server: pymodbus declares its base class only
        self.port = listener.sockets[0].getsockname()[1]
        self._server = server

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None

    def _table(self, table: Table) -> list[SimData]:
        bits = table in BIT_TABLES
        spans = [(block.first, block.last) for block in self.profile.blocks if block.table == table]
        return [
            SimData(
                first,
                count=1 if bits else last - first + 1,
                values=[False] * (last - first + 1) if bits else 0,
                datatype=DataType.BITS if bits else DataType.REGISTERS,
            )
            for first, last in spans or [(UNUSED, UNUSED)]
        ]

    async def _answer(
        self,
        function_code: int,
        first_address: int,
        _address: int,
        _count: int,
        registers: list[int],
        _written: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        values = distort(self._frozen if self._frozen is not None else self._values(), self._fault)
        for name, value in values.items():
            point = self.profile.points[name]
            if point.table != TABLE_OF_CODE[function_code]:
                continue
            if point.type == "bool":  # sixteen to a register here, the first in the lowest bit
                register, bit = divmod(point.address, 16)
                at = register - first_address
                registers[at] = registers[at] & ~(1 << bit) | int(bool(value)) << bit
                continue
            at = point.address - first_address
            place = slice(at, at + width(point))
            registers[place] = self._words(point, value, values, registers[place])
        return None

    def _words(
        self, point: Point, value: float | str, known: Mapping[str, Value], onto: list[int]
    ) -> list[int]:
        if self._fault is not None and self._fault.mode == "nan" and point.type in FLOATS:
            words = list(NAN_WORDS[point.type])
            return words if point.word_order == "big" else words[::-1]
        if not isinstance(value, str):
            value = min(max(value, point.lowest), point.highest)
        return encode(point, value, known, onto)

    def _reply(self, sending: bool, packet: bytes) -> bytes:
        silent = self._fault is not None and self._fault.mode == "silent"
        return b"" if sending and silent else packet
