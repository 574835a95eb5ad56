"""Commands to the units of one connection: orders in, writes out, and what stands is kept alive.

Callers of `write` and `release` wait in their own tasks; everything that leaves is sent by the link's task,
in `carry_out` and `keep_up`. All writes leave through `_put`, which asks the unit's rules; a link whose units
have no rules has a wire that cannot write at all. After a write the point is read back and compared: what a
device acknowledges and what it does are two things.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from protocols import codec
from protocols.control import RETRY_S
from protocols.modbus.asker import Asker, loop_s
from protocols.modbus.orders import Order, Orders
from protocols.modbus.questions import LostError, SilentError, write_question
from protocols.modbus.station import Station
from protocols.profile import Point, ProfileError, Setting
from protocols.reading import DeviceError, Value, Written

AT_ONCE_MAX: Final = 8  # orders before a due unit is read again: a flood of writes must not blind us
READ_BACK_TRIES: Final = 3  # some devices take a cycle of their own until a register shows what it was told
READ_BACK_GAP_S: Final = 0.05


class Commands:
    """Orders for these stations.

    Args:
        asker: sends.
        stations: by name.
        wake: tells the link's task that there is something to carry out.
        introduce: makes sure that a unit is the device meant; raises DeviceError.
        fell_silent: takes down that a unit did not answer, and why; may raise LostError.
    """

    def __init__(
        self,
        asker: Asker,
        stations: Mapping[str, Station],
        *,
        wake: Callable[[], None],
        introduce: Callable[[Station], Awaitable[None]],
        fell_silent: Callable[[Station, SilentError], None],
    ) -> None:
        self._asker, self._stations = asker, stations
        self._wake, self._introduce, self._fell_silent = wake, introduce, fell_silent
        self._orders = Orders()
        self._under_way: Order | None = None

    @property
    def due_s(self) -> float:
        """When the next order may go or the next upkeep is due."""
        kept = self._kept()
        return min(self._orders.due_s, math.inf if kept is None else _upkeep_due_s(kept))

    def fail_all(self, why: str) -> None:
        self._orders.fail_all(why)

    # ---- the callers' side ----

    async def write(self, station: Station, name: str, value: float, wait_max_s: float) -> Written:
        target = self._target(station, name, value)
        now_s = loop_s()
        rest_s = station.profile.write_gap_s if station.profile is not None else 0.0
        not_before_s = max(now_s, station.written_s.get(name, -math.inf) + rest_s)
        if not_before_s > now_s + wait_max_s:
            raise DeviceError(
                f"{station.name}.{name}: written {now_s - station.written_s[name]:.1f} s ago, and its device "
                f"bears one write per {rest_s:g} s; nothing was sent"
            )
        written = await self._wait(Order(station.name, target, value, not_before_s), wait_max_s)
        assert written is not None
        return written

    async def release(self, station: Station, wait_max_s: float) -> None:
        upkeep = station.upkeep
        self._orders.withdraw(station.name)
        order = self._under_way
        ours = order is not None and order.device == station.name and order.point is not None
        if ours and order is not None:
            order.end(DeviceError(f"{order.what}: withdrawn by a release; it may be in force until then"))
        if upkeep is None or not (upkeep.standing or upkeep.releasing or ours):
            return
        upkeep.standing.clear()
        upkeep.releasing = True
        await self._wait(Order(station.name, None, 0.0, 0.0), wait_max_s)

    def _target(self, station: Station, name: str, value: float) -> Point:
        """The point to write, once everything is sure that can be known before its turn comes."""
        if station.profile is None:
            raise DeviceError(f"{station.name}.{name}: its device is not discovered yet; nothing was sent")
        try:
            target = station.profile.select((name,))[0]
        except ProfileError as error:
            raise DeviceError(f"{station.name}: {error}") from error
        self._permit(station, target, value, value)  # its step is judged when its turn has come
        if not (target.scale_factor or target.mask):
            _words(station, _within(station, target), value, None)
        return target

    async def _wait(self, order: Order, wait_max_s: float) -> Written | None:
        if self._asker.wire is None:
            raise DeviceError(f"{order.what}: not connected: {self._asker.why_down}; nothing was sent")
        self._orders.put(order)
        timer = asyncio.get_running_loop().call_later(wait_max_s, order.expire, wait_max_s)
        self._wake()
        try:
            return await order.done
        finally:
            timer.cancel()
            self._orders.forget(order)

    # ---- the link's side ----

    async def carry_out(self) -> None:
        """Carry out what waits and may go now; raises LostError."""
        for _ in range(AT_ONCE_MAX):
            order = self._orders.take(loop_s())
            if order is None:
                return
            await self._carry_out(order)

    async def _carry_out(self, order: Order) -> None:
        station = self._stations[order.device]
        self._under_way = order
        try:
            if not station.is_met(loop_s()):
                await self._introduce(station)
            if order.point is None:
                await self._disarm(station)
                order.end(None)
            else:
                order.end(await self._command(station, order, order.point))
        except DeviceError as error:
            order.end(error)
            self._forsake(station, str(error))
            if isinstance(error, LostError):
                raise
            if isinstance(error, SilentError):
                self._fell_silent(station, error)
        finally:
            self._under_way = None

    def _forsake(self, station: Station, why: str) -> None:
        """A command failed: without another one that stands, what was armed for it must not stay so."""
        upkeep = station.upkeep
        if upkeep is None or upkeep.standing:
            return
        if upkeep.touched:
            upkeep.releasing = True
        if upkeep.releasing:
            upkeep.failed(f"not released yet: {why}", loop_s())

    async def _command(self, station: Station, order: Order, point: Point) -> Written:
        """Write one point by its rule, read back what came of it, and keep it alive from then on."""
        value = order.value
        was, onto = await self._before(station, point)
        if not _says_so(station, _within(station, point), value, onto):
            self._permit(station, point, value, was)
        upkeep = station.upkeep
        stands = point.read_back and point.name not in station.upkept
        if upkeep is not None and stands and not upkeep.armed:
            await self._arm(station)
        if order.done.done():  # out of time meanwhile, withdrawn, or its caller has gone
            raise DeviceError(f"{order.what}: too late; nothing was sent")
        written = await self._change(station, point, value, was, onto)
        if order.done.done():
            self._forsake(station, "it came too late")
        elif upkeep is not None and stands:
            upkeep.standing[point.name] = value
            upkeep.releasing = False
            station.to_tell.discard(point.name)
        return written

    async def _before(self, station: Station, point: Point) -> tuple[Value, list[int] | None]:
        """Value and words of the point before a write, read anew where the write rests on them."""
        await self._learn_factor(station, point)
        rated = station.unit.writes[point.name].rate_per_s is not None
        if point.readable and (rated or _bears_few(station) or point.mask):
            return await self._asker.look_at(station, point)
        return station.newest(point.name), None

    async def _learn_factor(self, station: Station, point: Point) -> None:
        """Some devices change it while they run; a write by an old one would be wrong by powers of ten."""
        if point.scale_factor and station.profile is not None:
            factor = station.profile.points[point.scale_factor]
            station.known[factor.name], _ = await self._asker.look_at(station, factor)

    async def _change(
        self, station: Station, point: Point, value: float, was: Value, onto: Sequence[int] | None
    ) -> Written:
        if _says_so(station, _within(station, point), value, onto):
            return Written(value, was, confirmed=True)
        words = await self._put(station, point, value, was, onto)
        if not (point.readable and point.read_back):
            return Written(value, was, confirmed=False)
        shown = await self._read_back(station, point, words)
        return Written(shown if isinstance(shown, float | int) else value, was, confirmed=True)

    async def _put(
        self,
        station: Station,
        point: Point,
        value: float,
        was: Value,
        onto: Sequence[int] | None,
        *,
        by_us: bool = False,
    ) -> list[int]:
        """Send one write: the only function that does. `by_us`: a setting of the profile's control block."""
        self._permit(station, point, value, was, by_us=by_us)
        words = _words(station, point if by_us else _within(station, point), value, onto)
        try:
            question = write_question(point.table, point.address, words, point.write, point.name)
        except ValueError as error:
            raise DeviceError(f"{station.name}.{error}; nothing was sent") from error
        station.written_s[point.name] = loop_s()
        await self._asker.ask(station, question)
        return words

    def _permit(
        self, station: Station, point: Point, value: float, was: Value, *, by_us: bool = False
    ) -> None:
        """Raise DeviceError unless this write may follow `was` now."""
        what = f"{station.name}.{point.name}"
        rules = station.unit.writes
        rule = rules.get(point.name)
        if not point.writable:
            raise DeviceError(f"{what}: read-only by its profile; nothing was sent")
        if by_us and rules and point.name in station.upkept:
            return
        if rule is None:
            raise DeviceError(f"{what}: nobody may write it here; allow it in `writes`; nothing was sent")
        since_s = loop_s() - station.written_s.get(point.name, -math.inf)
        if why := rule.complaint(value, was, since_s):
            raise DeviceError(f"{what}: {why}; nothing was sent")

    async def _read_back(self, station: Station, point: Point, words: list[int]) -> Value:
        wanted = codec.decode(point, words, station.known)
        for attempt in range(READ_BACK_TRIES):
            if attempt:
                await asyncio.sleep(READ_BACK_GAP_S)
            value, back = await self._asker.look_at(station, point)
            if back == words or (point.mask and value == wanted):
                return value
        raise DeviceError(
            f"{station.name}.{point.name}: wrote {words}, reads back {back}; "
            f"local mode, a limit of the device, or another master?"
        )

    # ---- what keeps commands alive ----

    async def _arm(self, station: Station) -> None:
        upkeep, profile = station.upkeep, station.profile
        assert upkeep is not None
        assert profile is not None
        for condition in upkeep.control.requires:
            value, _ = await self._asker.look_at(station, profile.points[condition.point])
            if not condition.accepts(value):
                raise DeviceError(
                    f"{station.name}: {condition.point} reads {value!r}, a command needs {condition.wanted}: "
                    f"local mode? nothing was sent"
                )
        upkeep.touched = True
        await self._set(station, upkeep.to_arm())
        upkeep.took_arms(loop_s())
        station.to_tell, station.tell_s = set(upkeep.standing), 0.0  # who forgot its arms forgot them, too

    async def _disarm(self, station: Station) -> None:
        upkeep = station.upkeep
        if upkeep is None or not upkeep.releasing:
            return
        await self._set(station, upkeep.to_release())
        upkeep.took_release()

    async def _set(self, station: Station, settings: Sequence[Setting]) -> None:
        assert station.profile is not None
        for setting in settings:
            point = station.profile.points[setting.point]
            await self._learn_factor(station, point)
            watched = station.upkeep is not None and not station.upkeep.unwatched(point.name)
            spared = watched and point.readable and _bears_few(station)
            onto = (await self._asker.look_at(station, point))[1] if point.mask or spared else None
            if spared and _says_so(station, point, setting.value, onto):
                continue
            words = await self._put(station, point, setting.value, None, onto, by_us=True)
            if watched and point.read_back and point.readable:
                await self._read_back(station, point, words)

    async def keep_up(self) -> None:
        """Write what is due so that standing commands stay alive, or end; raises LostError."""
        station = self._kept()
        if station is None or station.upkeep is None or _upkeep_due_s(station) > loop_s():
            return
        upkeep = station.upkeep
        try:
            if not station.is_met(loop_s()):
                await self._introduce(station)
            if upkeep.releasing:
                await self._disarm(station)
                return
            if not upkeep.armed:
                await self._arm(station)
            await self._set(station, upkeep.upkeep(loop_s()))
            await self._tell_again(station)
        except LostError:
            raise
        except DeviceError as error:
            kept = "not released" if upkeep.releasing else "commands not kept alive"
            upkeep.failed(f"{kept}: {error}", loop_s())
            if isinstance(error, SilentError):
                self._fell_silent(station, error)

    async def _tell_again(self, station: Station) -> None:
        """The device was away and may have fallen back. What it refuses costs the other commands nothing."""
        upkeep, profile = station.upkeep, station.profile
        assert upkeep is not None
        assert profile is not None
        station.to_tell &= upkeep.standing.keys()
        if station.to_tell and station.tell_s > loop_s():
            return
        faults = []
        for name in sorted(station.to_tell):
            point, value = profile.points[name], upkeep.standing[name]
            try:
                was, onto = await self._before(station, point)
                since_s = loop_s() - station.written_s.get(name, -math.inf)
                step = station.unit.writes[name].towards(value, was, since_s)
                await self._change(station, point, step, was, onto)
                if step == value:
                    station.to_tell.discard(name)
                else:
                    faults.append(f"{station.name}.{name}: on its way back to {value:g}, at {step:g}")
            except (LostError, SilentError):
                raise
            except DeviceError as error:
                faults.append(str(error))
        upkeep.fault = f"commands not kept alive: {'; '.join(faults)}" if faults else ""
        station.tell_s = loop_s() + RETRY_S

    def _kept(self) -> Station | None:
        """The answering unit whose upkeep is due first."""
        kept = [s for s in self._stations.values() if s.upkeep is not None and not s.silent]
        return min(kept, key=_upkeep_due_s, default=None)


def _upkeep_due_s(station: Station) -> float:
    upkeep = station.upkeep
    if upkeep is None:
        return math.inf
    tells = station.to_tell and upkeep.armed and not upkeep.releasing
    return min(upkeep.due_s, station.tell_s) if tells else upkeep.due_s


def _bears_few(station: Station) -> bool:
    return station.profile is not None and station.profile.write_gap_s > 0


def _says_so(station: Station, point: Point, value: float, onto: Sequence[int] | None) -> bool:
    """Whether a device that bears few writes shows the value already: its memory is spared."""
    return _bears_few(station) and onto is not None and list(onto) == _words(station, point, value, onto)


def _within(station: Station, point: Point) -> Point:
    """The point with the range that its rule leaves: no rounding may lead out of it."""
    rule = station.unit.writes[point.name]
    return replace(point, lowest=max(point.lowest, rule.lowest), highest=min(point.highest, rule.highest))


def _words(station: Station, point: Point, value: float, onto: Sequence[int] | None) -> list[int]:
    try:
        return codec.encode(point, value, station.known, onto)
    except codec.CodecError as error:
        raise DeviceError(f"{station.name}.{error}; nothing was sent") from error
