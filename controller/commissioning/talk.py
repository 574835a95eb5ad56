"""One connection to Modbus devices, one paced question at a time: what every tool here asks with.

It is the gateway's own client underneath, with its rules: an answer that comes too late is never taken for
another one, function, unit and length of each answer are checked, and the wire cannot write. What is added is
pace and a limit on patience.

A question that could be answered by a late answer to an older one is not refused here but held back until
that cannot happen any more: a person would rather wait.
"""

import asyncio
import struct
from collections.abc import Sequence
from functools import partial
from typing import Final, Self

from controller.commissioning.nameplate import named
from protocols.modbus import read_identification
from protocols.modbus.asker import Asker
from protocols.modbus.questions import LostError, Question, RefusedError, SilentError, read_question
from protocols.modbus.station import ModbusUnit, Station
from protocols.modbus.transport import Transport
from protocols.profile import BIT_TABLES, Line, Profile, Table
from protocols.reading import Reading

GAP_S: Final = 0.05  # between two questions where nothing says otherwise: gentle, and a profile in a second
SILENT_WAIT_MAX_S: Final = 1.0  # for an answer, where no profile says otherwise


class Talk:
    """A connection. Use as an async context manager, or `connect` and `close`.

    Args:
        transport: the way.
        profile: of the device there, for its pace and its line; None: not known.
        gap_s: rest between two questions, at least; None: `GAP_S`.
        wait_max_s: for an answer; None: as the profile has it.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        profile: Profile | None = None,
        gap_s: float | None = None,
        wait_max_s: float | None = None,
    ) -> None:
        self.transport = transport
        self.asked = 0
        self._profile = profile
        pace_s = max(GAP_S if gap_s is None else gap_s, 0.0 if profile is None else profile.min_gap_s)
        self._pause_s = 0.0 if profile is None else profile.pause_after_connect_s
        known_s = SILENT_WAIT_MAX_S if profile is None else profile.reply_wait_max_s
        self._wait_max_s = known_s if wait_max_s is None else wait_max_s
        self._asker = Asker(rtu=transport.rtu, least_gap_s=pace_s)
        self._stations: dict[int, Station] = {}

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        wire = self._asker.wire
        return wire is not None and wire.lost is None

    async def connect(self) -> None:
        """Raises LostError, which says what to check."""
        self.close()
        line = Line() if self._profile is None else self._profile.line
        wire = self.transport.wire(line, writable=False)
        where = self.transport.where
        try:
            async with asyncio.timeout(self.transport.connect_wait_max_s):
                await wire.connect()
        except TimeoutError:
            wire.drop()
            raise LostError(f"no answer from {where}: check power, address and route") from None
        except ConnectionRefusedError:
            raise LostError(f"connection refused by {where}: is the device on, is Modbus on?") from None
        except OSError as error:  # TLS and serial errors are OSErrors, too
            raise LostError(f"no way to {where}: {error}; check address and network") from None
        except BaseException:
            wire.drop()
            raise
        self._asker.take_up(wire)
        await asyncio.sleep(self._pause_s)

    def close(self) -> None:
        self._asker.drop("closed")

    async def ask(self, unit_id: int, question: Question) -> bytes:
        """PDU of the right answer. Raises SilentError, RefusedError or LostError."""
        loop = asyncio.get_running_loop()
        station = self._station(unit_id)
        if station.owed and not station.may_ask(question, loop.time()):
            await asyncio.sleep(station.owed_until_s - loop.time())
        self.asked += 1
        return await self._asker.ask(station, question)

    async def words(self, unit_id: int, table: Table, first: int, count: int) -> list[int]:
        """Registers (or bits), as they are. Raises as `ask`."""
        answer = await self.ask(unit_id, read_question(table, first, count))
        if table in BIT_TABLES:
            return [answer[2 + i // 8] >> i % 8 & 1 for i in range(count)]
        return list(struct.unpack_from(f">{count}H", answer, 2))

    async def holding(self, unit_id: int, first: int, count: int) -> Sequence[int]:
        """Holding registers: what SunSpec discovery asks for."""
        return await self.words(unit_id, "holding", first, count)

    async def nameplate(self, unit_id: int) -> dict[str, str]:
        """What the device says that it is. Raises as `ask`."""
        return named(await read_identification(partial(self.ask, unit_id)))

    async def introduction(self, unit_id: int) -> tuple[dict[str, str], str]:
        """The name plate, or {} and why there is none.

        Many devices do not know the function, and some hang up over it: then a new connection is made. Raises
        LostError if that fails.
        """
        try:
            return await self.nameplate(unit_id), ""
        except RefusedError as refused:
            return {}, str(refused)
        except SilentError:
            return {}, "no answer: many devices do not know it"
        except LostError:
            await self.connect()
            return {}, "the device closed the connection over it"

    def _station(self, unit_id: int) -> Station:
        station = self._stations.get(unit_id)
        if station is None:
            unit = ModbusUnit(
                name=f"unit {unit_id}", profile=None, poll_s=1.0, on_reading=_nobody_listens, unit_id=unit_id
            )
            station = self._stations[unit_id] = Station(unit, 0.0)
            station.reply_wait_max_s = self._wait_max_s
        return station


def _nobody_listens(_reading: Reading) -> None:
    """A station's readings are the gateway's business; here the answers are used."""
