"""Commands to one device: allowed or not, carried out one at a time, kept alive while they stand.

Nothing leaves without a rule of the site for that very point, and a value outside the rule is refused, not
clamped; what the profile's control block wants written is covered by any rule, because no command works
without it. All of it leaves through `_put`.

Of several writes that wait for the same point the newest counts. Every command has a deadline, and what is
not confirmed by then may be in force or not: the error says which of the two it knows. A command that failed,
and none other standing, is withdrawn: what was armed for it must not stay so.

While a command stands, `keep_alive` counts the heartbeat and winds the timer that `protocols.control` speaks
of, on whatever connection there is.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn, TypeVar

from protocols import codec
from protocols.control import Upkeep, control_points
from protocols.opcua import nodes, values
from protocols.opcua.fence import PeerError, explained
from protocols.opcua.session import Session
from protocols.profile import Point, Profile, Setting
from protocols.reading import DeviceError, Value, WriteRule, Written

RELEASE: Final = ""  # takes its turn like a point, and no point has this name

_T = TypeVar("_T")
Rules = Mapping[str, tuple[WriteRule, ...]]


class Commands:
    """Writes and calls for one device, over whatever connection there is at the moment."""

    def __init__(
        self,
        device: str,
        profile: Profile,
        *,
        writes: Mapping[str, WriteRule],
        calls: Rules,
        clock: Callable[[], float],
        session: Callable[[], Session | None],
    ) -> None:
        profile.select((*writes, *calls))  # a misspelt rule would forbid in silence what it was to allow
        self._device, self._profile, self._writes, self._calls = device, profile, writes, calls
        self._clock, self._session = clock, session
        self._turn = asyncio.Lock()
        self._newest: dict[str, object] = {}
        self._written_at_s: dict[str, float] = {}
        self._upkeep = Upkeep(profile.control) if profile.control is not None and writes else None
        self._upkept = control_points(profile)
        self._stirred = asyncio.Event()

    @property
    def fault(self) -> str:
        """Why what stands is not kept alive, or not released; '' if all is well."""
        return self._upkeep.fault if self._upkeep is not None else ""

    # ---- the callers' side ----

    async def write(self, name: str, value: float, wait_max_s: float) -> Written:
        """See `OpcUaDevice.write`."""
        point = self._point(name)
        rule = self._writes.get(name)
        if not point.writable:
            raise DeviceError(f"{self._device}.{name}: read-only by its profile; nothing was sent")
        if rule is None:
            raise DeviceError(f"{self._device}.{name}: no rule allows to write it; nothing was sent")
        return await self._in_turn(name, wait_max_s, lambda: self._command(point, rule, value))

    async def call(self, name: str, arguments: Sequence[float], wait_max_s: float) -> tuple[Value, ...]:
        """See `OpcUaDevice.call`."""
        point = self._point(name)
        rules = self._calls.get(name)
        what = f"{self._device}.{name}"
        if not point.method:
            raise DeviceError(f"{what}: no method by its profile; nothing was sent")
        if rules is None:
            raise DeviceError(f"{what}: no rule allows to call it; nothing was sent")
        if len(arguments) != len(rules):
            raise DeviceError(
                f"{what}: {len(arguments)} arguments, its rule names {len(rules)}; nothing was sent"
            )
        for number, (rule, argument) in enumerate(zip(rules, arguments, strict=True), 1):
            if complaint := rule.complaint(argument, None):
                raise DeviceError(f"{what}: argument {number}: {complaint}; nothing was sent")
        return await self._in_turn(
            name, wait_max_s, lambda: nodes.call(self._open(name), what, point, arguments)
        )

    async def release(self, wait_max_s: float) -> None:
        """See `OpcUaDevice.release`."""
        if self._upkeep is None:
            return
        try:
            await self._in_turn(RELEASE, wait_max_s, self._release)
        finally:  # also for a device that is away: `keep_alive` makes good for it
            self._withdraw()

    def _point(self, name: str) -> Point:
        if name not in self._profile.points:
            raise DeviceError(f"{self._device}: its profile {self._profile.name} has no point {name!r}")
        return self._profile.points[name]

    async def _in_turn(self, name: str, wait_max_s: float, act: Callable[[], Awaitable[_T]]) -> _T:
        """One at a time for the device, the newest of those that wait for a point, all within the wait."""
        mine = self._newest[name] = object()
        what = f"{self._device}.{name}" if name else self._device
        sent = False
        try:
            async with asyncio.timeout(wait_max_s), self._turn:
                if self._newest[name] is not mine:
                    raise DeviceError(f"{what}: replaced by a newer write; nothing was sent")
                sent = True
                return await act()
        except TimeoutError as error:
            known = "it may be in force or not" if sent else "nothing was sent"
            raise DeviceError(f"{what}: not confirmed within {wait_max_s:g} s; {known}") from error
        except PeerError as error:
            raise DeviceError(f"{what}: {error}; it may be in force or not") from error
        finally:
            self._stirred.set()

    def _open(self, name: str) -> Session:
        session = self._session()
        if session is None:
            what = f"{self._device}.{name}" if name else self._device
            raise DeviceError(f"{what}: not connected; nothing was sent")
        return session

    # ---- one command ----

    async def _command(self, point: Point, rule: WriteRule, value: float) -> Written:
        """Write one point by its rule, and keep it alive from then on."""
        session, upkeep = self._open(point.name), self._upkeep
        if upkeep is None or not point.read_back or point.name in self._upkept:
            return await self._put(session, point, value, rule)
        try:
            written = await self._put(session, point, value, rule, arm=not upkeep.armed)
        except (DeviceError, PeerError, asyncio.CancelledError) as error:
            self._forsake(str(error) or "out of time")
            raise
        upkeep.standing[point.name] = value
        upkeep.releasing = False
        return written

    async def _put(
        self, session: Session, point: Point, value: float, rule: WriteRule | None, *, arm: bool = False
    ) -> Written:
        """Send one write or call: nothing else does. `rule` None: a setting of the control block."""
        what = f"{self._device}.{point.name}"
        if rule is None and not (self._writes and point.name in self._upkept):
            raise DeviceError(f"{what}: no rule allows to write it; nothing was sent")
        if point.method:
            return await self._press(session, point, value, rule)
        try:
            node = session.node_id(point.node)
            was, kind = await nodes.before(session, point, node)
        except PeerError as error:
            raise DeviceError(f"{what}: {error}; nothing was sent") from error
        since_last_s = self._clock() - self._written_at_s.get(point.name, -math.inf)
        if rule is not None and (complaint := rule.complaint(value, was, since_last_s)):
            raise DeviceError(f"{what}: {complaint}; nothing was sent")
        lowest, highest = (rule.lowest, rule.highest) if rule is not None else (point.lowest, point.highest)
        try:
            variant = values.variant(point, value, kind, lowest, highest)
        except (values.UnfitError, codec.CodecError) as error:
            raise DeviceError(f"{what}: {error}; nothing was sent") from error
        if arm:
            await self._arm(session)
        self._written_at_s[point.name] = self._clock()
        status = await nodes.send(session, node, variant)
        if status != "Good":
            raise DeviceError(f"{what}: refused: {explained(status)}")
        if not (point.read_back and point.readable) or self._moves_by_itself(point):
            return Written(value, was, confirmed=False)
        return Written(await nodes.read_back(session, what, point, node, variant), was, confirmed=True)

    async def _press(self, session: Session, point: Point, value: float, rule: WriteRule | None) -> Written:
        """A write to a method: calls it with the value; one of unit bool is a button, and takes only 1."""
        what = f"{self._device}.{point.name}"
        if rule is not None and (complaint := rule.complaint(value, None)):
            raise DeviceError(f"{what}: {complaint}; nothing was sent")
        if point.unit == "bool" and value != 1:
            raise DeviceError(f"{what}: a call cannot be taken back, write 1; nothing was sent")
        try:
            arguments = () if point.unit == "bool" else (codec.to_raw(point, value),)
        except codec.CodecError as error:
            raise DeviceError(f"{what}: {error}; nothing was sent") from error
        await nodes.call(session, what, point, arguments)
        return Written(value, None, confirmed=False)

    def _moves_by_itself(self, point: Point) -> bool:
        """A timer that runs down, or a heartbeat: what it reads back proves nothing."""
        return self._upkeep is not None and self._upkeep.unwatched(point.name)

    def _forsake(self, why: str) -> None:
        """A command failed: without another one that stands, what was armed for it must not stay so."""
        upkeep = self._upkeep
        if upkeep is None or upkeep.standing or not (upkeep.touched or upkeep.releasing):
            return
        upkeep.releasing = True
        upkeep.failed(f"not released yet: {why}", _loop_s())

    # ---- what keeps commands alive ----

    async def keep_alive(self) -> NoReturn:
        """On one connection, for as long as it lasts: tend what stands. Ends by cancellation."""
        upkeep = self._upkeep
        assert upkeep is not None
        while True:
            self._stirred.clear()
            wait_s = upkeep.due_s - _loop_s()
            if wait_s > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s if wait_s < math.inf else None):
                        await self._stirred.wait()
                continue
            async with self._turn:
                if upkeep.due_s <= _loop_s():  # a command that had its turn meanwhile may have done it
                    await self._tend(upkeep)

    @property
    def keeps_alive(self) -> bool:
        """Whether there is anything to keep alive: a control block, and a site that allows commands."""
        return self._upkeep is not None

    def disconnected(self) -> None:
        """The device may fall back from now on, and knows nothing of earlier connections."""
        if self._upkeep is not None:
            self._upkeep.disconnected()

    async def _tend(self, upkeep: Upkeep) -> None:
        kept = "not released" if upkeep.releasing else "commands not kept alive"
        try:
            session = self._open(RELEASE)
            if upkeep.releasing:
                await self._disarm(session, upkeep)
            elif not upkeep.armed:
                await self._restore(session, upkeep)
            else:
                await self._set(session, upkeep.upkeep(_loop_s()))
                upkeep.fault = ""
        except (DeviceError, PeerError) as error:
            upkeep.failed(f"{kept}: {error}", _loop_s())

    async def _arm(self, session: Session) -> None:
        upkeep = self._upkeep
        assert upkeep is not None
        for condition in upkeep.control.requires:
            value, fault = await nodes.look(session, self._profile.points[condition.point])
            if not condition.accepts(value):
                raise DeviceError(
                    f"{self._device}: {condition.point} reads {fault or repr(value)}, a command needs "
                    f"{condition.matches or condition.equals!r}: local mode? nothing was sent"
                )
        upkeep.touched = True
        await self._set(session, upkeep.to_arm())
        upkeep.took_arms(_loop_s())

    async def _restore(self, session: Session, upkeep: Upkeep) -> None:
        """The device was away: it may have fallen back, and it does not know that a command stands."""
        await self._arm(session)
        for name, value in tuple(upkeep.standing.items()):
            await self._put(session, self._profile.points[name], value, self._writes[name])

    async def _release(self) -> None:
        upkeep = self._upkeep
        assert upkeep is not None
        self._withdraw()
        if upkeep.releasing:
            await self._disarm(self._open(RELEASE), upkeep)

    def _withdraw(self) -> None:
        upkeep = self._upkeep
        if upkeep is not None and upkeep.standing:
            upkeep.standing.clear()
            upkeep.releasing = True

    async def _disarm(self, session: Session, upkeep: Upkeep) -> None:
        await self._set(session, upkeep.to_release())
        upkeep.took_release()

    async def _set(self, session: Session, settings: Iterable[Setting]) -> None:
        for setting in settings:
            await self._put(session, self._profile.points[setting.point], setting.value, None)


def _loop_s() -> float:
    return asyncio.get_running_loop().time()
