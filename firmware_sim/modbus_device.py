"""A field device with a Modbus TCP server: registers from its profile, values from the plant.

Registers are rendered when they are read, so the wire shows exactly what the plant's meter holds at that
moment. Only blocks that the profile declares exist; a read across their edge fails, as on the device.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from firmware_sim.device_fault import DeviceFault, distort
from protocols.codec import FLOATS, encode
from protocols.profile import Point, Profile

LOOPBACK: Final = "127.0.0.1"
NAN_WORDS: Final = {"f32": (0x7FC0, 0), "f64": (0x7FF8, 0, 0, 0)}  # quiet NaN, IEEE 754


class ModbusDevice:
    """Serves holding or input registers of one unit on loopback. Use as an async context manager."""

    def __init__(
        self, profile: Profile, values: Callable[[], Mapping[str, float]], *, port: int = 0, unit: int = 1
    ) -> None:
        """`values` gives point name -> value in its unit; points it leaves out read 0."""
        self.profile = profile
        self.port = port
        self._unit = unit
        self._values = values
        self._frozen: dict[str, float] | None = None
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
        blocks = [
            SimData(block.first, count=block.last - block.first + 1, values=0, datatype=DataType.REGISTERS)
            for block in self.profile.blocks
        ]
        device = SimDevice(self._unit, simdata=blocks, action=self._answer)
        server = ModbusTcpServer(device, address=(LOOPBACK, self.port), trace_packet=self._reply)
        await server.serve_forever(background=True)
        listener: Any = server.transport  # asyncio.Server: pymodbus declares its base class only
        self.port = listener.sockets[0].getsockname()[1]
        self._server = server

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None

    async def _answer(
        self,
        _function_code: int,
        first_address: int,
        _address: int,
        _count: int,
        registers: list[int],
        _written: list[int] | list[bool] | None,
    ) -> ExcCodes | None:
        values = distort(self._frozen if self._frozen is not None else self._values(), self._fault)
        for name, value in values.items():
            point = self.profile.points[name]
            words = self._words(point, value)
            at = point.address - first_address
            registers[at : at + len(words)] = words
        return None

    def _words(self, point: Point, value: float) -> list[int]:
        if self._fault is not None and self._fault.mode == "nan" and point.type in FLOATS:
            words = list(NAN_WORDS[point.type])
            return words if point.word_order == "big" else words[::-1]
        return encode(point, min(max(value, point.lowest), point.highest))

    def _reply(self, sending: bool, packet: bytes) -> bytes:
        silent = self._fault is not None and self._fault.mode == "silent"
        return b"" if sending and silent else packet
