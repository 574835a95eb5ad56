"""Field devices with a Modbus server: registers laid out as their documents say, values from the plant.

    ModbusUnit    one device: what its registers say at this moment, and what a write of them means
    ModbusLine    one server for several of them: a TCP port, or an RTU line behind a serial converter
    ModbusDevice  a device with a TCP port of its own

Registers are rendered when they are read, so the wire shows exactly what the plant holds at that moment.
Only what the layout declares exists, each in its own table; a read across an edge fails, as on the device.
Points that share a register (masks) are laid onto it one after the other. A write reaches the plant, or is
refused: nothing is kept here, so what is read back is what the plant made of it.

On an RTU line nobody can refuse a connection for one device alone: there, a device that is gone is silent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, Self

from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from firmware_sim.device_fault import DeviceFault, distort
from protocols.codec import FLOATS, Value, decode, encode, width
from protocols.profile import BIT_TABLES, Point, Profile, Table

LOOPBACK: Final = "127.0.0.1"
NAN_WORDS: Final = {"f32": (0x7FC0, 0), "f64": (0x7FF8, 0, 0, 0)}  # quiet NaN, IEEE 754
TABLES: Final[tuple[Table, ...]] = ("coil", "discrete", "holding", "input")  # the library's order
TABLE_OF_CODE: Final[Mapping[int, Table]] = {
    1: "coil", 5: "coil", 15: "coil", 2: "discrete", 4: "input",
    3: "holding", 6: "holding", 16: "holding", 22: "holding", 23: "holding",
}  # fmt: skip
UNUSED: Final = 0xFFFF  # the library wants something in every table: the last address, where no profile is
UNIT_AT: Final = {FramerType.SOCKET: 6, FramerType.RTU: 0}  # where a frame says whose it is
SCHEMES: Final = {FramerType.SOCKET: "modbus+tcp", FramerType.RTU: "modbus+rtu+tcp"}

Values = Mapping[str, float | str]
Framing = Literal["tcp", "rtu"]
FRAMERS: Final[Mapping[Framing, FramerType]] = {"tcp": FramerType.SOCKET, "rtu": FramerType.RTU}


class Layout(Protocol):
    """Where a device's values are in its registers."""

    def spans(self, table: Table) -> Sequence[tuple[int, int]]:
        """First and last address of what exists."""

    def lay(
        self, table: Table, first: int, registers: list[int], values: Values, fault: DeviceFault | None
    ) -> None:
        """Write `values` into the `registers` of a table that begins at `first`."""

    def meant(
        self, table: Table, at: int, words: Sequence[int], first: int, registers: list[int]
    ) -> Mapping[str, Value] | None:
        """Points that `words`, written from `at` on, set; None: not all of it can be written.

        `registers`: the table as it would be after the write.
        """


class ModbusUnit:
    """One device on a line.

    Args:
        layout: of its registers, or the profile that says it.
        values: point name -> value in its unit; points it leaves out read 0.
        unit: its address on the line.
        write: puts a written point into the plant; None: the device cannot be written.
    """

    def __init__(
        self,
        layout: Layout | Profile,
        values: Callable[[], Values],
        *,
        unit: int = 1,
        write: Callable[[str, float], None] | None = None,
    ) -> None:
        self.unit = unit
        self._layout = ProfileLayout(layout) if isinstance(layout, Profile) else layout
        self._values, self._write = values, write
        self._frozen: Values | None = None
        self._fault: DeviceFault | None = None

    @property
    def fault(self) -> DeviceFault | None:
        return self._fault

    async def set_fault(self, fault: DeviceFault | None) -> None:
        """Put the fault in force; None heals."""
        self._frozen = dict(self._values()) if fault is not None and fault.mode == "frozen" else None
        self._fault = fault

    def sim_device(self) -> SimDevice:
        """For the library."""
        coils, discretes, holding, inputs = (self._table(table) for table in TABLES)
        return SimDevice(self.unit, simdata=(coils, discretes, holding, inputs), action=self._answer)

    def _table(self, table: Table) -> list[SimData]:
        bits = table in BIT_TABLES
        return [
            SimData(
                first,
                count=1 if bits else last - first + 1,
                values=[False] * (last - first + 1) if bits else 0,
                datatype=DataType.BITS if bits else DataType.REGISTERS,
            )
            for first, last in self._layout.spans(table) or [(UNUSED, UNUSED)]
        ]

    async def _answer(
        self,
        function_code: int,
        first: int,
        address: int,
        _count: int,
        registers: list[int],
        written: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        table = TABLE_OF_CODE[function_code]
        values = distort(self._frozen if self._frozen is not None else self._values(), self._fault)
        self._layout.lay(table, first, registers, values, self._fault)
        return None if written is None else self._take(table, first, address, registers, written)

    def _take(
        self, table: Table, first: int, at: int, registers: list[int], written: Sequence[int]
    ) -> ExcCodes | None:
        if table in BIT_TABLES or self._write is None:
            return ExcCodes.ILLEGAL_ADDRESS  # no device here has coils that do something
        after = registers.copy()
        after[at - first : at - first + len(written)] = written
        meant = self._layout.meant(table, at, written, first, after)
        if meant is None:
            return ExcCodes.ILLEGAL_ADDRESS
        numbers = {name: value for name, value in meant.items() if isinstance(value, float)}
        if len(numbers) < len(meant):
            return ExcCodes.ILLEGAL_VALUE
        for name, value in numbers.items():
            self._write(name, value)
        return None


class ModbusLine:
    """Serves its units on loopback, on a port that is chosen at the first start and kept."""

    def __init__(self, units: Sequence[ModbusUnit], framing: Framing = "tcp", *, port: int = 0) -> None:
        self.port = port
        self._units = {unit.unit: unit for unit in units}
        self._framer = FRAMERS[framing]
        self._server: ModbusTcpServer | None = None

    @property
    def url(self) -> str:
        return f"{SCHEMES[self._framer]}://{LOOPBACK}:{self.port}"

    @property
    def is_up(self) -> bool:
        return self._server is not None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        server = ModbusTcpServer(
            [unit.sim_device() for unit in self._units.values()],
            framer=self._framer,
            address=(LOOPBACK, self.port),
            trace_packet=self._reply,
        )
        await server.serve_forever(background=True)
        listener: Any = server.transport  # asyncio.Server: pymodbus declares its base class only
        self.port = listener.sockets[0].getsockname()[1]
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None

    def _reply(self, sending: bool, packet: bytes) -> bytes:
        if not sending:
            return packet
        unit = self._units.get(packet[UNIT_AT[self._framer]])
        if unit is None:  # on a line there is nobody to answer for a unit that is not there
            return b"" if self._framer is FramerType.RTU else packet
        is_mute = unit.fault is not None and unit.fault.mode in {"silent", "refusing"}
        return b"" if is_mute else packet


class ModbusDevice(ModbusUnit):
    """A device with a TCP port of its own. Use as an async context manager."""

    def __init__(
        self,
        layout: Layout | Profile,
        values: Callable[[], Values],
        *,
        port: int = 0,
        unit: int = 1,
        write: Callable[[str, float], None] | None = None,
    ) -> None:
        super().__init__(layout, values, unit=unit, write=write)
        self._line = ModbusLine([self], port=port)

    @property
    def url(self) -> str:
        return self._line.url

    @property
    def port(self) -> int:
        return self._line.port

    async def set_fault(self, fault: DeviceFault | None) -> None:
        await super().set_fault(fault)
        refusing = fault is not None and fault.mode == "refusing"
        if refusing and self._line.is_up:
            await self._line.stop()
        elif not refusing and not self._line.is_up:
            await self._line.start()

    async def __aenter__(self) -> Self:
        await self._line.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._line.stop()


class ProfileLayout:
    """Registers as a profile has them."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def spans(self, table: Table) -> Sequence[tuple[int, int]]:
        return [(block.first, block.last) for block in self._profile.blocks if block.table == table]

    def lay(
        self, table: Table, first: int, registers: list[int], values: Values, fault: DeviceFault | None
    ) -> None:
        for name, value in values.items():
            point = self._profile.points[name]
            if point.table != table:
                continue
            if point.type == "bool":  # sixteen to a register here, the first in the lowest bit
                register, bit = divmod(point.address, 16)
                at = register - first
                registers[at] = registers[at] & ~(1 << bit) | int(bool(value)) << bit
                continue
            place = _place(point, first)
            registers[place] = _words(point, value, values, registers[place], fault)

    def meant(
        self, table: Table, at: int, words: Sequence[int], first: int, registers: list[int]
    ) -> Mapping[str, Value] | None:
        end = at + len(words)
        points = [
            point
            for point in self._profile.points.values()
            if point.table == table
            and point.writable
            and at <= point.address
            and point.address + width(point) <= end
        ]
        covered = {address for p in points for address in range(p.address, p.address + width(p))}
        if covered != set(range(at, end)):
            return None
        return {point.name: decode(point, registers[_place(point, first)]) for point in points}


def _place(point: Point, first: int) -> slice:
    at = point.address - first
    return slice(at, at + width(point))


def _words(
    point: Point, value: float | str, known: Mapping[str, Value], onto: list[int], fault: DeviceFault | None
) -> list[int]:
    if fault is not None and fault.mode == "nan" and point.type in FLOATS:
        words = list(NAN_WORDS[point.type])
        return words if point.word_order == "big" else words[::-1]
    if not isinstance(value, str):
        value = min(max(value, point.lowest), point.highest)
    return encode(point, value, known, onto)
