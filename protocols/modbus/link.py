"""Modbus client: polls the units behind one connection, carries out writes, reports a `Reading` per poll.

One task per *connection*, not per device: Modbus answers one request at a time, many devices allow a single
connection, and gateways put several units behind one. `ModbusLink.run` never ends by anything a device or a
network does. It connects (a new client each time), polls, and on loss says so and starts over. It alone
sends, so nothing can collide on a line, and what comes first is decided in one place: writes, then what keeps
commands alive, then due units, then the units that have long been silent.

Faults stay small. A unit that is silent costs its neighbours a wait or two, then a small share of the line's
time. A register the device refuses costs its own point: the read that held it is split and the others go on.
"""

import asyncio
import math
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from protocols.modbus.asker import Asker, loop_s
from protocols.modbus.commands import Commands
from protocols.modbus.questions import (
    HeldBackError,
    LostError,
    RefusedError,
    SilentError,
    read_question,
)
from protocols.modbus.station import EARLY_S, ModbusUnit, Station, common_line, unit_complaints
from protocols.modbus.transport import Serial, Transport
from protocols.modbus.wire import Wire
from protocols.profile import Identity, Line, Profile, ProfileError
from protocols.reading import DeviceError, Value, Written, retry_delay_s
from protocols.sunspec import discover

SILENT_MAX: Final = 3  # unanswered requests in a row, none of the units alive: the connection is dead
PROBE_SHARE: Final = 0.05  # of the line's time, at most, goes into asking dead units beside living ones
STARVED_S: Final = 30.0  # a line that is never idle still looks this often whether a dead unit is back
STRANGER_RETRY_S: Final = 10.0  # the wrong device stays until somebody exchanges it, or corrects the file
WRITE_WAIT_MAX_S: Final = 3.0  # one read ahead of us, the write, and the read-backs


class StrangerError(DeviceError):
    """The unit answers, and is not the device that its profile describes; look again after `retry_s`."""

    def __init__(self, text: str, retry_s: float) -> None:
        super().__init__(text)
        self.retry_s = retry_s


class ModbusLink:
    """One connection and the units behind it.

    Raises ProfileError when built with a unit that cannot work: wrong protocol, unknown point, twice the
    same name, unit id or poll period out of range. `clock` stamps the readings; it is the caller's choice.
    """

    def __init__(
        self, transport: Transport, units: Sequence[ModbusUnit], *, clock: Callable[[], float]
    ) -> None:
        complaints = unit_complaints(units)
        if complaints:
            raise ProfileError("\n".join(complaints))
        self.transport, self._clock = transport, clock
        self._stations = {unit.name: Station(unit, clock()) for unit in units}
        profiles = [unit.profile for unit in units if unit.profile is not None]
        if isinstance(transport, Serial) and transport.line is None:
            self._line = common_line(units)
        else:  # for the time that bytes take behind a serial device server, the slowest counts
            self._line = min((profile.line for profile in profiles), key=lambda it: it.baud, default=Line())
        self._pause_s = max((profile.pause_after_connect_s for profile in profiles), default=0.0)
        self.single_connection = any(profile.single_connection for profile in profiles)
        self._writable = any(unit.writes for unit in units)
        self._asker = Asker(
            rtu=transport.rtu,
            least_gap_s=max((profile.min_gap_s for profile in profiles), default=0.0),
        )
        self._commands = Commands(
            self._asker,
            self._stations,
            wake=self._wake,
            introduce=self._introduce,
            fell_silent=self._fell_silent,
        )
        self._waker: asyncio.Future[None] | None = None
        self._offset_s = 0.0  # our clock minus the event loop's
        self._probe_from_s = 0.0

    @property
    def where(self) -> str:
        return self.transport.where

    async def run(self) -> None:
        """Poll for ever. Ends only by cancellation, or by a fault of the program."""
        failures = 0
        try:
            while True:
                self._asker.answered = False
                try:
                    await self._connect()
                    await self._serve()
                except LostError as lost:
                    self._drop(str(lost))
                    self._tell_down(str(lost))
                failures = 0 if self._asker.answered else failures + 1
                await asyncio.sleep(retry_delay_s(failures))
        finally:
            self._drop("not running")

    async def look(self, rounds: int = 1) -> None:
        """Connect, poll every unit so many times at once, and close: for whoever only wants to see.

        Raises LostError; units that stay silent report so as always.
        """
        try:
            await self._connect()
            for _ in range(rounds):
                for station in self._stations.values():
                    await self._poll(station)
        finally:
            self._drop("not running")

    async def write(
        self, device: str, point: str, value: float, wait_max_s: float = WRITE_WAIT_MAX_S
    ) -> Written:
        """Write `value` (in the point's unit), read it back and compare.

        Raises DeviceError: not allowed, out of its rule, refused, silent, too late, replaced by a newer
        write, or the read-back differs; the text says whether it may be in force.
        """
        return await self._commands.write(self._station(device), point, value, wait_max_s)

    async def release(self, device: str, wait_max_s: float = WRITE_WAIT_MAX_S) -> None:
        """Withdraw our commands: their upkeep stops at once, then the profile's release settings are written.

        Raises DeviceError if the device did not take them. They are tried again until it does, or until a new
        command is written; a device with a reversion timer falls back by itself.
        """
        await self._commands.release(self._station(device), wait_max_s)

    def _station(self, device: str) -> Station:
        station = self._stations.get(device)
        if station is None:
            raise DeviceError(f"no device {device!r} at {self.where}; it has {', '.join(self._stations)}")
        return station

    # ---- one connection ----

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        wire = self.transport.wire(self._line, writable=self._writable)
        try:
            async with asyncio.timeout(self.transport.connect_wait_max_s):
                await wire.connect()
        except TimeoutError:
            wire.drop()
            raise LostError(f"no answer from {self.where}: check power, address and route") from None
        except ConnectionRefusedError:
            raise LostError(f"connection refused by {self.where}: is the device on, is Modbus on?") from None
        except OSError as error:  # TLS and serial errors are OSErrors, too
            raise LostError(f"no way to {self.where}: {error}; check address and network") from None
        except BaseException:
            wire.drop()
            raise
        self._take_up(wire, loop.time())
        await asyncio.sleep(self._pause_s)

    def _take_up(self, wire: Wire, now_s: float) -> None:
        self._asker.take_up(wire)
        wire.gone.add_done_callback(lambda _gone: self._wake())
        self._offset_s = self._clock() - now_s
        self._probe_from_s = 0.0
        for station in self._stations.values():
            station.connected()

    def _drop(self, why: str) -> None:
        self._asker.drop(why)
        self._commands.fail_all(why)

    async def _serve(self) -> None:
        """The order of things: writes, upkeep, due units, dead ones."""
        while True:
            command_s = math.inf
            if self._writable:
                await self._attend()
                command_s = self._commands.due_s
            now_s = loop_s()
            station, due_s = self._next(now_s)
            if due_s - now_s <= EARLY_S:
                await self._poll(station)
            elif command_s > now_s:
                await self._pause(min(due_s, command_s))

    async def _attend(self) -> None:
        await self._commands.carry_out()
        await self._commands.keep_up()

    def _next(self, now_s: float) -> tuple[Station, float]:
        """Whom to ask next, and when: the living when they are due, the dead when nobody else is."""
        if len(self._stations) == 1:
            (station,) = self._stations.values()
            return station, station.due_s
        living = min((s for s in self._stations.values() if not s.dead), key=_due_s, default=None)
        dead = min((s for s in self._stations.values() if s.dead), key=_due_s, default=None)
        if dead is None:
            assert living is not None
            return living, living.due_s
        if living is None:
            return dead, dead.due_s
        probe_s = max(dead.due_s, self._probe_from_s)
        if living.due_s - EARLY_S <= now_s:
            return (dead, probe_s) if now_s - probe_s > STARVED_S else (living, living.due_s)
        return min((living, living.due_s), (dead, probe_s), key=lambda choice: choice[1])

    async def _pause(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        waker = self._waker = loop.create_future()
        timer = loop.call_at(until_s, self._wake) if until_s < math.inf else None
        wire = self._asker.wire
        if wire is not None and wire.lost is not None:
            self._wake()
        try:
            await waker
        finally:
            self._waker = None
            if timer is not None:
                timer.cancel()
        if wire is not None and wire.lost is not None:
            raise wire.lost

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    # ---- one poll ----

    async def _poll(self, station: Station) -> None:
        taken_at_s = self._clock()
        try:
            if not station.is_met(loop_s()):
                await self._introduce(station, self._others)
                taken_at_s = self._clock()
            await self._round(station, taken_at_s)
        except SilentError as silent:
            self._fell_silent(station, silent)
        except StrangerError as stranger:
            station.silent = 0
            station.due_s = loop_s() + stranger.retry_s
            station.unit.on_reading(station.reading(station.nothing(), taken_at_s, "up", str(stranger)))
        else:
            station.due_s = station.next_due_s(loop_s(), self._offset_s)

    async def _round(self, station: Station, taken_at_s: float) -> None:
        values: dict[str, Value] = {}
        faults: list[str] = []
        absent: frozenset[str] = frozenset()
        changed, profile = False, station.profile
        full, reads = station.round()
        slips = station.slips
        for read in reads:
            if self._writable:
                await self._attend()
                if station.profile is not profile:
                    return  # a command has found another device there
            try:
                answer = await self._asker.ask(station, read.question)
            except RefusedError as refused:
                values |= station.refused(read)
                faults.append(str(refused))
                station.split(read, refused)
                continue
            moved, told = station.take(read, answer)
            changed |= moved
            absent |= read.absent
            values = values | told if values else told
        self._asker.listen()
        doubt = station.finished(changed=changed, full=full, slips=slips, taken_at_s=taken_at_s)
        if not faults and None in values.values():
            faults = [
                f"{name}: not present or implausible"
                for name, value in values.items()
                if value is None and name not in absent
            ]
        station.unit.on_reading(station.reading(values, taken_at_s, "up", "; ".join(faults), doubt, absent))

    def _fell_silent(self, station: Station, why: SilentError) -> None:
        """Report it, ask the unit less and less often, and give the connection up if all are silent."""
        now_s = loop_s()
        station.unit.on_reading(station.reading(station.nothing(), self._clock(), "down", str(why)))
        if isinstance(why, HeldBackError):
            # past it, however early timers come
            station.due_s = max(why.until_s + EARLY_S, now_s + 2 * EARLY_S)
            return
        station.silent += 1
        station.unanswered()
        station.due_s = now_s + max(station.unit.poll_s, retry_delay_s(station.silent))
        if station.dead:
            station.discovered = False
            if any(not other.dead for other in self._stations.values()):
                self._probe_from_s = now_s + station.reply_wait_max_s / PROBE_SHARE
        if self._asker.silences >= SILENT_MAX and all(other.silent for other in self._stations.values()):
            raise LostError(f"{why}; {SILENT_MAX} requests unanswered, connecting anew")

    def _tell_down(self, fault: str) -> None:
        for station in self._stations.values():
            station.unit.on_reading(station.reading(station.nothing(), self._clock(), "down", fault))

    # ---- who is there ----

    async def _introduce(
        self, station: Station, meanwhile: Callable[[Station], Awaitable[None]] | None = None
    ) -> None:
        """Before any other use: is it the device that the profile describes?

        `meanwhile`: done between the reads of a long chain. Raises SilentError or StrangerError.
        """
        try:
            profile = station.unit.profile or (station.profile if station.discovered else None)
            profile = profile or await self._discover(station, meanwhile)
            for identity in profile.identity:
                await self._look(station, profile, identity)
        except (RefusedError, ProfileError) as error:
            station.unanswered()
            busy = isinstance(error, RefusedError) and not error.lasting
            raise StrangerError(
                f"{station.name}: cannot tell what device it is: {error}",
                station.unit.poll_s if busy else STRANGER_RETRY_S,
            ) from error
        except StrangerError:
            station.discovered = False
            station.unanswered()
            raise
        station.introduced = True

    async def _others(self, busy: Station) -> None:
        """Poll who is due: others do not wait until the chain of one has been walked."""
        for other in self._stations.values():
            short = other.unit.profile is not None or other.discovered  # no chain of its own to walk
            if other is not busy and short and not other.silent and other.due_s <= loop_s():
                await self._poll(other)

    async def _discover(
        self, station: Station, meanwhile: Callable[[Station], Awaitable[None]] | None
    ) -> Profile:
        async def read(address: int, count: int) -> Sequence[int]:
            if meanwhile is not None:
                await meanwhile(station)
            answer = await self._asker.ask(station, read_question("holding", address, count))
            return struct.unpack_from(f">{count}H", answer, 2)

        profile = await discover(read, name=station.name)
        if profile != station.profile:
            station.adopt(profile)
            if station.unit.on_profile is not None:
                station.unit.on_profile(profile)
        station.discovered = True
        return profile

    async def _look(self, station: Station, profile: Profile, identity: Identity) -> None:
        value, _ = await self._asker.look_at(station, profile.points[identity.point])
        if not identity.accepts(value):
            raise StrangerError(
                f"{station.name}: {identity.point} reads {value!r}, {profile.name} wants {identity.wanted}: "
                f"another device behind this address and unit id?",
                STRANGER_RETRY_S,
            )


def _due_s(station: Station) -> float:
    return station.due_s
