"""One request at a time and its right answer: what every poll and every write goes through.

Here the rests between requests are kept, and what came late, twice or unasked is turned into doubt about the
unit that it came from. On RTU framing a question whose answer could be mistaken for an older one is not asked
before a question of another shape has cleared the line (see `station`).
"""

import asyncio

from protocols.modbus.questions import (
    HeldBackError,
    LostError,
    Question,
    RefusedError,
    SilentError,
    TargetSilentError,
)
from protocols.modbus.reads import Read, span, words_of
from protocols.modbus.station import Station
from protocols.modbus.wire import Wire
from protocols.profile import Point
from protocols.reading import DeviceError, Value


class Asker:
    """The wire of the present connection, and how it went. `least_gap_s`: the rest that the devices want."""

    def __init__(self, *, rtu: bool, least_gap_s: float) -> None:
        self.wire: Wire | None = None
        self.why_down = "not started"
        self.silences = 0  # unanswered requests in a row, over all units
        self.answered = False  # since this connection was made
        self._rtu, self._least_gap_s, self._gap_s = rtu, least_gap_s, least_gap_s
        self._rest_until_s = 0.0
        self._last: tuple[Station, Question] | None = None  # who was asked what before

    def take_up(self, wire: Wire) -> None:
        self.wire = wire
        self.silences, self.answered, self._last = 0, False, None
        self._gap_s = max(self._least_gap_s, wire.gap_s)

    def drop(self, why: str) -> None:
        wire, self.wire, self.why_down = self.wire, None, why
        if wire is not None:
            wire.drop()

    async def ask(self, station: Station, question: Question) -> bytes:
        """One request and its right answer. Raises SilentError, LostError or RefusedError."""
        if self._gap_s or station.doubt:
            await self._rest(station)
        self.listen()
        if station.owed and not station.may_ask(question, loop_s()):
            await self._resync(station, question)
            await self._rest(station)
            self.listen()
        wire = self.wire
        if wire is None:
            raise LostError(f"{station.name}: not connected: {self.why_down}")
        self._last = station, question
        try:
            answer = await wire.ask(station.unit.unit_id, question, station.reply_wait_max_s, station.owed)
        except (SilentError, RefusedError) as error:
            await self._went_wrong(wire, station, question, error)
            raise _named(station, error) from None
        except LostError as lost:
            if self._rtu:  # whoever kept the line open behind that connection may still pass the answer on
                station.owe(question, loop_s())
                station.slipped(str(lost))
            raise
        finally:
            if self._gap_s:
                self._rest_until_s = loop_s() + self._gap_s
        station.owed.clear()  # devices answer in order: nothing older is on its way
        self.silences, self.answered, station.heard, station.heard_s = 0, True, True, loop_s()
        return answer

    async def _rest(self, station: Station) -> None:
        """Between a reply and a request; longer where a second answer may follow the first."""
        left_s = self._rest_until_s - loop_s()
        if left_s > 0:
            await asyncio.sleep(left_s)
        if self._rtu and station.doubt and self.wire is not None:
            await self.wire.quiet()

    async def _went_wrong(
        self, wire: Wire, station: Station, question: Question, error: SilentError | RefusedError
    ) -> None:
        told = isinstance(error, TargetSilentError) or (isinstance(error, RefusedError) and error.code != 0)
        if told or isinstance(error, RefusedError):
            self.silences, self.answered = 0, True
            station.heard = station.heard or isinstance(error, RefusedError)
        else:
            self.silences += 1
        if self._rtu and (station.owed or not told):  # a refusal may be that of an older request
            station.owe(question, loop_s())
            station.slipped(str(error))
            await wire.quiet()
            wire.forget()

    async def _resync(self, station: Station, question: Question) -> None:
        """Ask for another shape: its answer proves that nothing older is still to come."""
        for probe in station.probes():
            if station.may_ask(probe, loop_s()):
                try:
                    await self.ask(station, probe)
                except RefusedError:
                    station.owe(probe, loop_s())
                    continue
                return
        raise HeldBackError(
            f"{station.name}: {question.what}: held back, a late answer could pass for its own "
            f"({station.doubt})",
            station.owed_until_s,
        )

    def listen(self) -> None:
        """Whoever was asked last has answered twice or late, or somebody spoke unasked."""
        unasked = self.wire.take_unasked() if self.wire is not None else ""
        if unasked and self._last is not None:
            station, question = self._last
            station.slipped(unasked)
            if self._rtu:
                station.owe(question, loop_s())

    async def look_at(self, station: Station, point: Point) -> tuple[Value, list[int]]:
        """Value and words of one point, read now."""
        answer = await self.ask(station, (read := Read(span([point]))).question)
        return read.values(answer, station.known)[point.name], words_of(point.table, read.span.count, answer)


def loop_s() -> float:
    """Now, on the event loop's clock."""
    return asyncio.get_running_loop().time()


def _named(station: Station, error: SilentError | RefusedError) -> DeviceError:
    """The same error, saying of which device."""
    text = f"{station.name}: {error}"
    return RefusedError(text, error.code) if isinstance(error, RefusedError) else type(error)(text)
