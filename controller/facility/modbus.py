"""The process image as a Modbus server, and the commands of its masters.

Reads come out of the mirror of the image, rendered when somebody asks and at most ten times a second per
page. Writes become commands: this module knows who asks and with which right, the controller decides. So a
write over Modbus competes like every other, is refused in LOCAL like every other, and is in the same log.

    unit 1       SunSpec: the reply to a write waits for the outcome, a refusal is exception 4
    unit 2       status, request, answer: the reply does not wait, the outcome comes with SP_Ack
    unit 3 on    pages; a writable point of a device is written there, the reply waits for its read-back

The SunSpec registers are one set for all clients, as SunSpec has it, so the limit is held in the name
`sunspec`, whoever wrote it; the log says who did. Their timers run here only for show: the controller has
expiry, fallback and heartbeat of each limit, and keeps them when this process dies. After a restart the
registers take up what the controller says still holds, with the settings that this server has kept; until it
has said so, they can neither be read nor written (exception 6). Requests of the native map are kept as well
(modbus_kept.py). While the controller is not heard no value is good.
"""

import asyncio
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from controller.facility import modbus_kept
from controller.facility import modbus_native as native
from controller.facility import modbus_sunspec as sunspec
from controller.facility.config import ModbusServerConfig
from controller.facility.modbus_native import Handshake, SenselessError
from controller.facility.register_map import (
    ANSWER_AT,
    MAP_VERSION,
    NATIVE_UNIT,
    NONE_U16,
    REQUEST_AT,
    STATUS,
    STATUS_AT,
    SUNSPEC_UNIT,
    Page,
    Record,
    Register,
    fingerprint,
    is_writable,
    native_registers,
    pages,
)
from controller.image.image import Image
from controller.image.model import Cell, Command, Group, Outcome, Quality, Result, Role, Value
from protocols.modbus.answer import ExceptionCode, Peer, Refusal, Table
from protocols.modbus.server import Access, Bounds, ModbusServer, server_tls

VIA: Final = "modbus"
SUNSPEC: Final = "sunspec"
STEPS_PER_S: Final = 10  # a page is not rendered more often while nothing changes: its ages are in tenths
MASTERS_MAX: Final = 64  # who write, and whose handshakes are remembered
BEAT_S: Final = 1.0

log = structlog.get_logger(__name__)


class Feed(Protocol):
    """What this needs of `controller.image.feed.ImageFeed`."""

    @property
    def image(self) -> Image: ...
    @property
    def alive(self) -> bool: ...
    @property
    def block(self) -> str: ...
    async def command(self, command: Command) -> Outcome: ...


def register_map(groups: Sequence[Group]) -> tuple[Register, ...]:
    """All that is served for these groups, in the order of units and addresses."""
    return (*sunspec.registers(), *native_registers(groups))


class ModbusFacility:
    """Serves the image; see the module.

    Args:
        config: `facility.modbus` of the block.
        feed: the mirror, and the way for commands.
        version: of this program.
        now_s: the clock that does not step.
        state_dir: where requests are kept over a restart; None: they are not.

    Attributes:
        servers: the plain one, the one in TLS, or both; their `counts` are for metrics.
    """

    def __init__(
        self,
        config: ModbusServerConfig,
        feed: Feed,
        *,
        version: str,
        now_s: Callable[[], float],
        state_dir: Path | None = None,
    ) -> None:
        self._config, self._feed, self._version, self._now_s = config, feed, version, now_s
        self._beats = self._beats_heard = 0
        self._state_dir = state_dir
        self._kept = modbus_kept.Kept() if state_dir is None else modbus_kept.read(state_dir)
        self._masters = self._kept.masters
        self._controls: sunspec.Controls | None = None  # not known yet
        self._is_busy = False
        self._group: asyncio.TaskGroup | None = None
        self._shaped_at = -1
        self._shown: dict[object, tuple[object, Sequence[int]]] = {}
        self._shape()
        self.servers = tuple(self._server(in_tls) for in_tls in (False, True) if self._is_wanted(in_tls))

    async def run(self) -> None:
        """Serve for ever. Raises OSError when a port or a certificate cannot be had."""
        async with asyncio.TaskGroup() as self._group:
            for server in self.servers:
                self._group.create_task(server.run(), name=f"modbus server {server.port}")
            while True:
                await asyncio.sleep(BEAT_S)
                self._beats += 1
                self._beats_heard += self._feed.alive

    # --- the bank: reading ------------------------------------------------------------------------------

    def read(self, table: Table, unit: int, first: int, count: int, peer: Peer) -> Sequence[int]:
        self._reshape()
        if unit not in self._spans:
            raise Refusal(ExceptionCode.GATEWAY_TARGET_SILENT)
        if table not in ("holding", "input") or (unit == SUNSPEC_UNIT and table != "holding"):
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        words: list[int] = []
        while len(words) < count:
            words += self._piece(unit, first + len(words), count - len(words), peer)
        return words

    def identity(self, unit: int) -> Mapping[int, str]:
        self._reshape()
        if unit not in self._spans:
            raise Refusal(ExceptionCode.GATEWAY_TARGET_SILENT)
        return {
            0: "powerblock",
            1: "powerblock",
            2: self._version,
            4: "Power block",
            5: "SunSpec" if unit == SUNSPEC_UNIT else f"map {MAP_VERSION}.{self._fingerprint:08x}",
            6: self._feed.block,
        }

    def _piece(self, unit: int, first: int, count: int, peer: Peer) -> Sequence[int]:
        """As much as one span has of it. Room between the last value of a span and the next one is ones."""
        starts, spans = self._spans[unit]
        number = bisect_right(starts, first) - 1
        if number < 0 or first >= starts[number] + spans[number][0]:
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        start, (length, render) = starts[number], spans[number]
        end = min(first + count, start + length)
        words = render(peer)[first - start : end - start]
        return [*words, *[NONE_U16] * (end - first - len(words))]

    def _shape(self) -> None:
        """Where everything is, for the catalogue as it stands."""
        image = self._feed.image
        groups = [cells.group for cells in image.groups]
        self._shaped_at, self._shown = image.shaped_at, {}
        self._fingerprint = fingerprint(register_map(groups))
        self._pages = tuple(pages(groups))
        self._nameplate = sunspec.nameplate(block=self._feed.block, version=self._version)
        about = next((group.about for group in groups if group.kind == "block"), {})
        self._rating_w = float(about.get("feed_rating_w", "nan"))
        if not math.isnan(self._rating_w):
            self._nameplate = {**self._nameplate, **sunspec.capacity(self._rating_w)}
        self._spans = self._arranged()
        for page in self._pages:
            if page.left_out:
                log.warning("modbus map: no room", group=page.group.path, points=page.left_out)
        if len(self._pages) < len(groups):
            log.warning("modbus map: no room", groups=len(groups) - len(self._pages))

    def _reshape(self) -> None:
        if self._feed.image.shaped_at != self._shaped_at:
            self._shape()

    def _arranged(self) -> "Mapping[int, _Spans]":
        """Per unit, where each span begins, with its length and what fills it."""
        whole = len(sunspec.encode({}))
        placed: list[tuple[int, int, int, _Render]] = [
            (SUNSPEC_UNIT, sunspec.BASE, whole, self._sunspec_words),
            (NATIVE_UNIT, STATUS_AT, REQUEST_AT - STATUS_AT, self._status_words),
            (NATIVE_UNIT, REQUEST_AT, ANSWER_AT - REQUEST_AT, lambda peer: self._master(peer).request),
            (NATIVE_UNIT, ANSWER_AT, 1000 - ANSWER_AT, self._answer_words),
            *((p.unit_id, p.first, p.length, partial(self._page_words, p)) for p in self._pages),
        ]
        units: dict[int, tuple[list[int], list[tuple[int, _Render]]]] = {}
        for unit, first, length, render in sorted(placed, key=lambda one: one[:2]):
            starts, spans = units.setdefault(unit, ([], []))
            starts.append(first)
            spans.append((length, render))
        return units

    def _cached(self, key: object, mark: object, render: Callable[[], Sequence[int]]) -> Sequence[int]:
        """Rendered anew when the mark has changed, or a tenth of a second has passed."""
        mark = (mark, self._feed.alive, int(self._now_s() * STEPS_PER_S))
        known = self._shown.get(key)
        if known is None or known[0] != mark:
            known = self._shown[key] = (mark, render())
        return known[1]

    def _page_words(self, page: Page, _peer: Peer) -> Sequence[int]:
        image = self._feed.image
        cells = image.groups[image.index(page.group.path)]
        render = partial(native.page_words, page, cells, self._now_s(), is_heard=self._feed.alive)
        return self._cached(page.group.path, cells.revision, render)

    def _status_words(self, _peer: Peer) -> Sequence[int]:
        return self._cached("status", self._feed.image.revision, self._status)

    def _status(self) -> Sequence[int]:
        power = self._cell("block", "power_w")
        told: dict[str, Value] = {
            "map_version": float(MAP_VERSION),
            "map_fingerprint": float(self._fingerprint),
            "heartbeat": float(self._beats & 0xFFFF),
            "controller_heard": float(self._feed.alive),
            "switch": self._good("facility", "mode"),
            "alarms_active": self._good("facility", "alarms_active"),
            "alarms_unacknowledged": self._good("facility", "alarms_unacknowledged"),
            "rating_w": self._rating_w,
            "power_quality": float(Quality.BAD if power is None else power.quality),
            "power_age": float(NONE_U16 if power is None else native.age_of(power)),
        }
        for name in ("power_w", "limit_w", "budget_w", "shortfall_w", "least_w", "limit_source"):
            told[name] = self._good("block", name)
        return native.encode(STATUS, told)

    def _answer_words(self, peer: Peer) -> Sequence[int]:
        return self._master(peer).answer(
            {
                "SP_Active_W": self._good("facility", "limit_w"),
                "SP_Remaining_s": self._good("facility", "remaining_s"),
                "SP_ActivePriority": self._good("facility", "priority"),
                "SP_Source": self._good("facility", "by"),
                "SP_Heartbeat_Out": float(self._beats & 0xFFFF),
            }
        )

    def _sunspec_words(self, _peer: Peer) -> Sequence[int]:
        controls = self._controls_now()
        if controls is None and not math.isnan(self._rating_w):
            raise Refusal(ExceptionCode.SERVER_DEVICE_BUSY)
        return self._cached(SUNSPEC, (self._feed.image.revision, controls), partial(self._sunspec, controls))

    def _sunspec(self, controls: sunspec.Controls | None) -> Sequence[int]:
        meter = {(sunspec.METER, key): self._metered(names) for key, names in sunspec.meter_names().items()}
        is_missing = meter[sunspec.METER, "W"] is None
        meter[sunspec.METER, "Evt"] = float(sunspec.MISSING_SENSOR * is_missing)
        limit = {} if controls is None or math.isnan(self._rating_w) else controls.values(self._now_s())
        switch = self._good("facility", "mode")
        control: dict[sunspec.Name, Value] = {
            (715, "LocRemCtl"): None if switch is None else float(switch != 0.0),
            (715, "DERHb"): float(self._beats_heard & 0xFFFFFFFF),
        }
        return sunspec.encode({**self._nameplate, **meter, **limit, **control})

    def _metered(self, names: Sequence[str]) -> Value:
        """The first that the meter has and that is good; the block's own power stands in for its."""
        for name in names:
            value = self._good(self._config.meter, name)
            if value is not None:
                return value
        return self._good("block", "power_w") if "power_w" in names else None

    def _cell(self, path: str, name: str) -> Cell | None:
        try:
            cell = self._feed.image.cell(path, name, self._now_s())
        except KeyError:
            return None
        return native.as_heard(cell, is_heard=self._feed.alive)

    def _good(self, path: str, name: str) -> Value:
        """The value, where nothing speaks against it: these registers cannot say that it is doubted."""
        cell = self._cell(path, name)
        return cell.value if cell is not None and cell.quality is Quality.GOOD else None

    # --- the bank: writing ------------------------------------------------------------------------------

    async def write(self, table: Table, unit: int, first: int, values: Sequence[int], peer: Peer) -> None:
        self._reshape()
        if unit not in self._spans:
            raise Refusal(ExceptionCode.GATEWAY_TARGET_SILENT)
        if table != "holding":
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        if unit == SUNSPEC_UNIT:
            await self._write_sunspec(first, values, peer)
        elif unit == NATIVE_UNIT and REQUEST_AT <= first < ANSWER_AT:
            await self._write_request(first, values, peer)
        else:
            await self._write_point(unit, first, values, peer)

    async def _command(self, verb: str, arguments: native.Arguments, by: str, peer: Peer) -> Outcome:
        return await self._feed.command(
            Command(verb=verb, arguments=dict(arguments), by=by, role=self._role(peer), via=VIA)
        )

    async def _write_sunspec(self, first: int, words: Sequence[int], peer: Peer) -> None:
        changes = sunspec.changes_of(first, words)
        if math.isnan(self._rating_w) and changes.keys() & sunspec.LIMITING:
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        if self._is_busy:
            raise Refusal(ExceptionCode.SERVER_DEVICE_BUSY)
        self._is_busy = True
        try:
            self._controls = await self._carried_out(changes, peer)
        finally:
            self._is_busy = False
        if changes.keys() & sunspec.LIMITING:
            self._kept.controls = self._controls
            self._keep()

    async def _carried_out(self, changes: Mapping[str, int], peer: Peer) -> sunspec.Controls:
        """The registers after a write that the block took. Raises Refusal, and nothing has changed."""
        before = self._controls_now()
        if before is None:
            raise Refusal(ExceptionCode.SERVER_DEVICE_BUSY)
        after = before.written(changes, self._now_s())
        for asked in after.asks(before, changes, self._rating_w, self._config.heartbeat_timeout_s):
            outcome = await self._command(asked.verb, asked.arguments, SUNSPEC, peer)
            if asked.verb != "heartbeat":
                log.info("sunspec write", peer=peer.name, result=outcome.result.name.lower(), **changes)
            if outcome.result is Result.REJECTED and not (asked.verb == "release" and self._is_remote):
                raise Refusal(ExceptionCode.SERVER_DEVICE_FAILURE, outcome.reason)
            if outcome.result is Result.CLAMPED and outcome.value is not None:
                percent = round(sunspec.PERCENT_MAX * outcome.value / self._rating_w)
                after = replace(after, percent=percent)
        return after

    @property
    def _is_remote(self) -> bool:
        """Then a release is refused only where there is nothing to release."""
        return self._good("facility", "mode") == 0.0

    def _controls_now(self) -> sunspec.Controls | None:
        """As time has left them; at first, as the controller says that they stand; None: it has not yet."""
        now_s = self._now_s()
        if self._controls is None:
            slots = self._good("facility", "slots")
            if not isinstance(slots, str):
                return None
            told = msgspec.json.decode(slots, type=tuple[sunspec.Slot, ...])
            mine = next((slot for slot in told if slot.writer == f"{VIA} {SUNSPEC}"), None)
            self._controls = self._kept.controls.taken_up(mine, self._rating_w, now_s)
        self._controls = self._controls.after(now_s, self._config.heartbeat_timeout_s)
        return self._controls

    async def _write_request(self, first: int, words: Sequence[int], peer: Peer) -> None:
        master = self._writing(peer)
        before = master.meant
        said, beats = master.write(first, words)
        master.is_busy = master.is_busy or said is not None
        if master.meant != before:
            self._keep()  # before the request leaves: whoever starts next must not send it again
        if said is not None and self._group is not None:
            decided = self._decide(master, said, peer, beats=beats)
            self._group.create_task(decided, name=f"modbus request {peer.name}")
        elif beats:
            outcome = await self._beat(master, peer)
            if outcome.result is Result.REJECTED:
                raise Refusal(ExceptionCode.SERVER_DEVICE_FAILURE, outcome.reason)

    async def _decide(self, master: Handshake, said: native.Said, peer: Peer, *, beats: bool) -> None:
        """Have a request carried out, and show its outcome."""
        outcome, code = Outcome(result=Result.NONE), native.NO_REASON
        try:
            asked = native.asked(said, self._config.heartbeat_timeout_s)
        except SenselessError as error:
            outcome, code = Outcome(result=Result.REJECTED, reason=str(error)), native.SENSELESS
        else:
            if asked is not None:
                outcome = await self._command(*asked, peer.name, peer)
                if asked[0] == "set_power_limit" and outcome.value is not None:
                    master.set_w = outcome.value
                elif asked[0] == "release" and outcome.result is Result.ACCEPTED:
                    master.set_w = None
        master.decided(said["SP_Seq"], outcome, code)
        self._keep()
        if beats:
            await self._beat(master, peer)

    async def _beat(self, master: Handshake, peer: Peer) -> Outcome:
        """Pass the heartbeat on. One that was refused is passed on again when it is written again."""
        beat = master.said["SP_Heartbeat"]
        outcome = await self._command("heartbeat", {}, peer.name, peer)
        if outcome.result is not Result.REJECTED:
            master.beat = beat
        return outcome

    def _master(self, peer: Peer) -> Handshake:
        """Of this peer, to be read."""
        return self._masters.get(peer.name) or Handshake()

    def _writing(self, peer: Peer) -> Handshake:
        """Of this peer; whoever wrote longest ago is forgotten when there are too many."""
        master = self._masters.pop(peer.name, None) or Handshake()
        if len(self._masters) >= MASTERS_MAX:
            del self._masters[next(iter(self._masters))]
        self._masters[peer.name] = master
        return master

    def _keep(self) -> None:
        if self._state_dir is not None:
            self._kept.write(self._state_dir)

    async def _write_point(self, unit: int, first: int, words: Sequence[int], peer: Peer) -> None:
        """One writable point of a device, whole."""
        page, record = self._point_at(unit, first, len(words))
        value = native.number(record.type, words)
        if not math.isfinite(value):
            raise Refusal(ExceptionCode.ILLEGAL_DATA_VALUE)
        device = page.group.path.partition("/")[2]
        arguments: native.Arguments = {"device": device, "point": record.point.name, "value": value}
        outcome = await self._command("write", arguments, peer.name, peer)
        if outcome.result is Result.REJECTED:
            raise Refusal(ExceptionCode.SERVER_DEVICE_FAILURE, outcome.reason)

    def _point_at(self, unit: int, first: int, count: int) -> tuple[Page, Record]:
        for page in self._pages:
            if page.unit_id == unit and page.first <= first < page.first + page.length:
                for record in page.records:
                    if (page.first + record.at, record.words) == (first, count) and is_writable(page, record):
                        return page, record
        raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)

    # --- who asks ---------------------------------------------------------------------------------------

    def _role(self, peer: Peer) -> Role:
        """What the network or the certificate allows; whoever may not write observes."""
        if not peer.may_write:
            return Role.OBSERVE
        named = self._config.roles[peer.role] if peer.role else self._config.plain_role
        return Role[named.upper()]

    def _is_wanted(self, in_tls: bool) -> bool:
        return self._config.tls is not None if in_tls else self._config.port is not None

    def _server(self, in_tls: bool) -> ModbusServer:
        config, tls = self._config, self._config.tls
        writing = {role for role, named in config.roles.items() if Role[named.upper()] >= Role.OPERATE}
        access = Access(
            read_from=config.networks, write_from=config.write_networks, writing_roles=frozenset(writing)
        )
        bounds = Bounds(
            connections_max=config.connections_max,
            idle_s=config.idle_s,
            requests_per_s=config.requests_per_s,
        )
        if not in_tls or tls is None:
            return ModbusServer(self, access, host=config.host, port=config.port or 0, bounds=bounds)
        made = partial(server_tls, ca=tls.ca, cert=tls.cert, key=tls.key, crl=tls.crl)
        return ModbusServer(self, access, host=config.host, port=tls.port, tls=made, bounds=bounds)


_Render = Callable[[Peer], Sequence[int]]
_Spans = tuple[list[int], list[tuple[int, _Render]]]
