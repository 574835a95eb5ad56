"""Ways to the values of one device: over Modbus, over OPC UA, or out of a running controller's image.

All three tell the same: a `Shown` for each point asked for, bad ones with their own reason, never a missing
one. A register that the device refuses costs its own point, like in the gateway; the raw registers come
along, because the first question on site is always what was on the wire.

A configured device is looked for in the image first. The controller may hold the only connection that the
device has, and a second one would push it out; whoever may not open the image does not get to the device.
"""

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from asyncua import Client, ua

from controller.clock import now_s
from controller.commissioning import belief
from controller.commissioning.shown import Shown, absent, bad, good, words_said
from controller.commissioning.shown import wanted as named
from controller.commissioning.talk import Talk
from controller.commissioning.target import Target, ToolError
from controller.field import ABSENT
from controller.gateway_config import opcua_security
from controller.image import model
from controller.image.feed import ImageFeed, heard
from controller.image.image import GroupCells
from controller.image.model import Quality
from controller.image.wire import SOCKET_NAME
from protocols import codec
from protocols.modbus.questions import LostError, RefusedError, SilentError
from protocols.modbus.reads import Read, plan_reads, span, words_of
from protocols.modbus.transport import TCP_PORT, TLS_PORT
from protocols.opcua.fence import PeerError, ask
from protocols.opcua.security import secured_client
from protocols.opcua.session import Session, look_around
from protocols.opcua.values import judge, raw_of
from protocols.profile import Point, Profile, ProfileError
from protocols.reading import DeviceError, Value
from protocols.sunspec import discover

HOST_RUN_DIR: Final = Path("/run/powerblock")  # of this host's controller, as the systemd unit makes it
PORTS: Final = {"modbus+tcp": TCP_PORT, "modbus+tls": TLS_PORT, "opc.tcp": 4840}
HEARD_WAIT_MAX_S: Final = 3.0  # a controller that runs tells its whole image within a second
CONNECT_WAIT_MAX_S: Final = 8.0  # a small OPC UA server needs seconds for its keys
ANSWER_WAIT_MAX_S: Final = 3.0
LEAVE_WAIT_MAX_S: Final = 0.5
RAW_SHOWN_CHARS: Final = 60
SILENCES_MAX: Final = 2  # in a row: the unit is off, and every further question would cost its wait


class Source(Protocol):
    """The values of one device.

    Attributes:
        where: the way, for people.
        by_controller: what it tells comes from a running controller.
        stranger: why it seems not to be the device of its profile; "" = nothing speaks against it.
    """

    where: str
    by_controller: bool
    stranger: str

    async def open(self) -> None:
        """Raises DeviceError or ToolError."""

    async def close(self) -> None:
        """Idempotent."""

    def points(self, names: Sequence[str]) -> tuple[Point, ...]:
        """Those named, all that can be read for none; known once it is open. Raises ToolError."""

    async def take(self, points: Sequence[Point]) -> dict[str, Shown]:
        """One of each, by name, as of now. Raises DeviceError where there is no connection any more."""


async def opened(target: Target) -> Source:
    """The best way to the device, open. Raises DeviceError or ToolError."""
    source = source_of(target)
    try:
        await source.open()
    except BaseException:
        await source.close()
        raise
    return source


def source_of(target: Target) -> Source:
    if target.run_dir is not None and controller_runs(target.run_dir):
        return ImageSource(target, target.run_dir)
    return OpcuaSource(target) if target.config.is_opcua else ModbusSource(target)


def _asked(target: Target) -> str:
    if target.name == target.config.url:
        return "asked directly" if target.config.is_opcua else f"unit {target.config.unit}, asked directly"
    return f"asked directly at {target.where}"


def controller_runs(run_dir: Path) -> bool:
    """Whether somebody serves the image there. Raises ToolError where this user may not know."""
    path = run_dir / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except PermissionError as error:
            raise ToolError(
                f"{path}: permission denied: the controller may hold the device's only connection, so it is"
                " not asked directly; run this as root or as a user of the controller's group"
            ) from error
        except OSError:
            return False
    return True


async def holder(target: Target, *, any_unit: bool = False) -> str:
    """The name under which the controller of this host has a device named by its URL; "" = it has not.

    With `any_unit` also one beside it on the same connection. Raises ToolError where this user may not know.
    """
    if target.run_dir is not None or not controller_runs(HOST_RUN_DIR):
        return ""
    try:
        async with heard(HOST_RUN_DIR / SOCKET_NAME) as feed:
            groups = [cells.group for cells in feed.image.groups]
    except TimeoutError:
        return ""
    place, unit = _endpoint(target.config.url), str(target.config.unit)
    for group in groups:
        if group.kind != "device" or _endpoint(group.about["url"]) != place:
            continue
        if any_unit or group.about["unit"] == unit:
            return group.path.rpartition("/")[2]
    return ""


def _endpoint(url: str) -> tuple[str, int, str]:
    """What a URL leads to, however it is written."""
    parts = urlsplit(url)
    line = str(Path(parts.path).resolve()) if not parts.netloc else ""
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0), line


# --- Modbus ------------------------------------------------------------------------------------------------


class ModbusSource:
    """A unit, asked directly."""

    def __init__(self, target: Target) -> None:
        self.where, self.by_controller, self.stranger = _asked(target), False, ""
        self._target, self._unit_id = target, target.config.unit
        self._profile = target.profile()
        self.talk = Talk(target.config.transport(), profile=self._profile)
        self._known: dict[str, Value] = {}

    async def open(self) -> None:
        await self.talk.connect()
        if self._profile is None:
            try:
                self._profile = await discover(
                    lambda first, count: self.talk.holding(self._unit_id, first, count),
                    name=self._target.name,
                )
            except ProfileError as error:
                raise ToolError(f"{error}: --profile, see `powerblock points`") from error
        self.stranger = await introduced(self.talk, self._unit_id, self._profile)

    async def close(self) -> None:
        self.talk.close()

    @property
    def profile(self) -> Profile:
        assert self._profile is not None, "open it first"
        return self._profile

    def points(self, names: Sequence[str]) -> tuple[Point, ...]:
        return readable(self.profile, names or self._target.config.points)

    async def take(self, points: Sequence[Point]) -> dict[str, Shown]:
        if not self.talk.connected:
            await self.talk.connect()
            self.stranger = await introduced(self.talk, self._unit_id, self.profile)
        told = self._target.profile() is None
        taken = await taken_from(self.talk, self._unit_id, self.profile, points, self._known, told=told)
        return {point.name: taken[point.name] for point in points}


def readable(profile: Profile, names: Sequence[str]) -> tuple[Point, ...]:
    """Raises ToolError."""
    try:
        chosen = profile.select(tuple(names))
    except ProfileError as error:
        raise ToolError(str(error)) from error
    for point in chosen:
        if names and not point.readable:
            raise ToolError(f"{profile.name}: {point.name!r} is a command, it cannot be read")
    return tuple(point for point in chosen if point.readable)


async def introduced(talk: Talk, unit_id: int, profile: Profile) -> str:
    """Why it seems not to be the device that the profile describes; "" = nothing speaks against it.

    Raises DeviceError where it does not answer at all.
    """
    for identity in profile.identity:
        point = profile.points[identity.point]
        try:
            value = (await taken_from(talk, unit_id, profile, [point], {}))[point.name].value
        except SilentError as silent:
            raise DeviceError(str(silent)) from silent
        if not identity.accepts(value):
            said = "nothing" if value is None else repr(value)
            wanted = f"profile {profile.name} wants {named(profile, identity)}"
            return f"another device? {identity.point} says {said}, {wanted}"
    return ""


async def taken_from(
    talk: Talk,
    unit_id: int,
    profile: Profile,
    points: Sequence[Point],
    known: dict[str, Value],
    *,
    told: bool = False,
) -> dict[str, Shown]:
    """Values of `points` and of the scale factors they rest on, by as few questions as the profile allows.

    `known` holds scale factors, and is kept up to date here. `told`: the profile is the device's own, of all
    that its standard knows; what it lacks is no fault. Raises LostError when the connection is gone,
    SilentError when the unit answered nothing at all.
    """
    taken: dict[str, Shown] = {}
    reads = [Read(one) for one in plan_reads(profile.with_scale_factors(tuple(points)), profile)]
    silences, heard = 0, False
    while reads:
        read = reads.pop(0)
        try:
            answer = await talk.ask(unit_id, read.question)
        except RefusedError as refused:
            heard, silences = True, 0
            if refused.lasting and len(read.span.points) > 1:
                reads[:0] = [Read(span([point])) for point in read.span.points]
            else:
                taken |= _all_bad([read], short(refused))
        except SilentError as silent:
            silences += 1
            taken |= _all_bad([read], short(silent))
            if silences >= SILENCES_MAX or not (heard or reads):
                if not heard:
                    raise
                return taken | _all_bad(reads, f"not asked any more: {short(silent)}")
        else:
            heard, silences = True, 0
            taken |= _shown(read, answer, known, told=told)
    return taken


def _all_bad(reads: Sequence[Read], why: str) -> dict[str, Shown]:
    return {point.name: bad(point, why) for read in reads for point in read.span.points}


def _shown(read: Read, answer: bytes, known: dict[str, Value], *, told: bool) -> dict[str, Shown]:
    values = read.values(answer, known)
    words = words_of(read.span.table, read.span.count, answer)
    known.update(values)
    lacking = read.absent_in(answer) if told else frozenset()
    shown: dict[str, Shown] = {}
    for point in read.span.points:
        at = point.address - read.span.first
        own = words[at : at + codec.width(point)]
        shown[point.name] = (
            absent(point, words_said(own))
            if point.name in lacking
            else _believed(point, values[point.name], own, known)
        )
    return shown


def _believed(point: Point, value: Value, words: Sequence[int], known: Mapping[str, Value]) -> Shown:
    raw, hint = words_said(words), belief.other_order(point, words, known)
    if value is not None:
        return good(point, value, raw, hint)
    came = belief.number_in(point, words, known)
    return bad(point, "; ".join(filter(None, (belief.why_refused(point, came), hint))), raw, came)


def short(error: Exception | str) -> str:
    """Without the unit, which the sheet names, and without the general remedy."""
    text = str(error)
    text = text.partition(": ")[2] if text.startswith("unit ") else text
    return text.removesuffix("; is the profile the device's?")


# --- OPC UA ------------------------------------------------------------------------------------------------


class OpcuaSource:
    """A server, asked directly."""

    def __init__(self, target: Target) -> None:
        self.where, self.by_controller, self.stranger = _asked(target), False, ""
        self._target = target
        self.profile = target.known_profile()
        self.session: Session | None = None
        self._client: Client | None = None

    async def open(self) -> None:
        url, security = self._target.config.url, opcua_security(self._target.config)
        readable_points = {point.name: point for point in self.profile.points.values() if point.readable}
        try:
            self._client, certificate = await secured_client(url, security, CONNECT_WAIT_MAX_S)
            await ask(self._client.connect(), CONNECT_WAIT_MAX_S)
            self.session = await look_around(self._client, certificate, readable_points, ANSWER_WAIT_MAX_S)
            self.stranger = await self._introduced()
        except PeerError as error:
            raise LostError(f"{url}: {error}") from error

    async def close(self) -> None:
        client, self._client, self.session = self._client, None, None
        if client is not None:
            with suppress(PeerError):  # the line is cut, and the session at the server runs out
                await ask(client.disconnect(), LEAVE_WAIT_MAX_S)
            client.disconnect_socket()

    def points(self, names: Sequence[str]) -> tuple[Point, ...]:
        return readable(self.profile, names or self._target.config.points)

    async def take(self, points: Sequence[Point]) -> dict[str, Shown]:
        if self.session is None:
            await self.open()
        session = self.session
        assert session is not None
        taken = {
            point.name: bad(point, f"the server has no namespace {session.absent[point.name]}")
            for point in points
            if point.name in session.absent
        }
        wanted = {point.name: point for point in points if point.name not in taken}
        try:
            async for piece in session.read_all({name: session.nodes[name] for name in wanted}):
                taken |= {name: _judged(wanted[name], answer) for name, answer in piece}
        except PeerError as error:
            await self.close()
            raise LostError(f"{self._target.config.url}: {error}") from error
        return {point.name: taken[point.name] for point in points}

    async def _introduced(self) -> str:
        identity = self.profile.identity
        wanted = [self.profile.points[one.point] for one in identity]
        said = await self.take(wanted) if wanted else {}
        for one in identity:
            if not one.accepts(said[one.point].value):
                shown = said[one.point]
                says = shown.why or shown.said
                return f"another device? {one.point} says {says}, wanted {named(self.profile, one)}"
        return ""


def _judged(point: Point, answer: ua.DataValue) -> Shown:
    value, why = judge(point, answer)
    raw = raw_of(answer)
    shown = "" if raw is None else f"{raw!r:.{RAW_SHOWN_CHARS}}"
    return bad(point, why, shown) if value is None else good(point, value, shown)


# --- the image of a running controller ---------------------------------------------------------------------


class ImageSource:
    """What the controller has of the device: quality and age as it judges them."""

    def __init__(self, target: Target, run_dir: Path) -> None:
        self.where = f"told by the running controller ({run_dir / SOCKET_NAME})"
        self.by_controller, self.stranger = True, ""
        self._target = target
        self._feed = ImageFeed(run_dir / SOCKET_NAME)
        self._running: asyncio.Task[None] | None = None

    async def open(self) -> None:
        told = asyncio.Event()
        self._feed.on_update.append(lambda _group, _points: told.set())
        self._running = asyncio.create_task(self._feed.run())
        until_s = time.monotonic() + HEARD_WAIT_MAX_S
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await told.wait()
            except TimeoutError:
                break
            told.clear()
            cells = self._cells()
            if cells is not None and cells.revision:
                return
        if self._cells() is None:
            raise ToolError(
                f"{self._target.name}: the running controller does not know it;"
                " was it started with another file?"
            )

    async def close(self) -> None:
        running, self._running = self._running, None
        self._feed.alive = False  # we leave, it does not: nothing to log
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def points(self, names: Sequence[str]) -> tuple[Point, ...]:
        cells = self._cells()
        known: Mapping[str, model.Point] = (
            {} if cells is None else {point.name: point for point in cells.group.points}
        )
        missing = [name for name in names if name not in known]
        if missing:
            has = ", ".join(known) or "none yet: it has not said what it is"
            raise ToolError(f"{self._target.name}: no point {', '.join(missing)}; it has {has}")
        profile = self._target.profile()
        return tuple(_point(known[name], profile) for name in names or known)

    async def take(self, points: Sequence[Point]) -> dict[str, Shown]:
        cells = self._cells()
        if cells is None or not self._feed.alive:
            raise LostError(f"{self._target.name}: the controller is not heard any more")
        return {point.name: _of_cell(point, cells) for point in points}

    def _cells(self) -> GroupCells | None:
        path = f"devices/{self._target.name}"
        return next((cells for cells in self._feed.image.groups if cells.group.path == path), None)


def _point(told: model.Point, profile: Profile | None) -> Point:
    """As the profile has it; of a device that told its profile itself, what the image says."""
    if profile is not None and told.name in profile.points:
        return profile.points[told.name]
    return Point(
        name=told.name,
        unit=told.unit,
        access="rw" if told.writable else "r",
        title=told.title,
        lowest=float("-inf") if told.lowest is None else told.lowest,
        highest=float("inf") if told.highest is None else told.highest,
        enum=told.states,
    )


def _of_cell(point: Point, cells: GroupCells) -> Shown:
    if point.name not in cells.places:
        return bad(point, "the controller does not read it")
    cell = cells.cell(cells.places[point.name], now_s())
    value = None if cell.quality is Quality.BAD else cell.value
    if value is None and cell.why == ABSENT:
        return absent(point)
    return Shown(point=point, value=value, quality=cell.quality, why=cell.why, age_s=cell.age_s)
