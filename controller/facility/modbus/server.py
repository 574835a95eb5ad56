"""Writes of Modbus masters become commands; reads are `Shown`.

The SunSpec registers are one set for all clients, as SunSpec has it, so the limit is held by `sunspec
registers`, whoever wrote them; the log says who did. Their timers run here only for show: the controller has
expiry, fallback and heartbeat of each limit, and keeps them when this process dies. After a restart the
registers take up what the controller says still holds, with the settings that this server has kept; until it
has said so, they can neither be read nor written (exception 6).

Every other master holds its own limit and has a handshake of its own, by way and name: one without TLS by its
address, one in TLS by its certificate. Requests are kept over a restart, too (kept.py).
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog

from controller.facility.config import ModbusServerConfig
from controller.facility.door import Door
from controller.facility.modbus import kept, native, sunspec
from controller.facility.modbus.native import Handshake, SenselessError
from controller.facility.modbus.registers import (
    ANSWER_AT,
    NATIVE_UNIT,
    REQUEST_AT,
    SUNSPEC_UNIT,
    Page,
    Record,
    is_writable,
)
from controller.facility.modbus.shown import Feed, Shown
from controller.image.model import Command, Outcome, Result, Role
from protocols.modbus.answer import ExceptionCode, Peer, Refusal, Table
from protocols.modbus.server import Access, Bounds, ModbusServer, server_tls

VIA, VIA_TLS = "modbus", "modbus+tls"  # an address is nobody's certificate, nor the other way round
SUNSPEC: Final = ("sunspec", "registers")  # way and name of what the SunSpec registers ask
MASTERS_MAX: Final = 64  # who write, and whose handshakes are remembered
BEAT_S: Final = 1.0

log = structlog.get_logger(__name__)


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
        self._config, self._feed, self._now_s = config, feed, now_s
        self._state_dir = state_dir
        self._kept = kept.Kept() if state_dir is None else kept.read(state_dir)
        self._masters = self._kept.masters
        self._controls: sunspec.Controls | None = None  # not known yet
        self._is_busy = False
        self._group: asyncio.TaskGroup | None = None
        self._shown = Shown(
            feed,
            meter=config.meter,
            version=version,
            now_s=now_s,
            master_of=self._master,
            controls_of=self._controls_now,
        )
        self.servers = tuple(self._server(in_tls) for in_tls in (False, True) if self._is_wanted(in_tls))
        self._doors = [Door("facility.modbus", config.host, server.port) for server in self.servers]

    @property
    def fault(self) -> str:
        """Why masters cannot connect; "": they can."""
        return "; ".join(door.fault for door in self._doors if door.fault)

    async def run(self) -> None:
        """Serve for ever, on each port as soon as it is to be had. Raises OSError for a certificate."""
        async with asyncio.TaskGroup() as self._group:
            for server, door in zip(self.servers, self._doors, strict=True):
                self._group.create_task(_serve(server, door), name=f"modbus server {server.port}")
            while True:
                await asyncio.sleep(BEAT_S)
                self._shown.beat()

    # --- the bank ---------------------------------------------------------------------------------------

    def read(self, table: Table, unit: int, first: int, count: int, peer: Peer) -> Sequence[int]:
        return self._shown.read(table, unit, first, count, peer)

    def identity(self, unit: int) -> Mapping[int, str]:
        return self._shown.identity(unit)

    async def write(self, table: Table, unit: int, first: int, values: Sequence[int], peer: Peer) -> None:
        self._shown.serves(unit)
        if table != "holding":
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        if unit == SUNSPEC_UNIT:
            await self._write_sunspec(first, values, peer)
        elif unit == NATIVE_UNIT and REQUEST_AT <= first < ANSWER_AT:
            await self._write_request(first, values, peer)
        else:
            await self._write_point(unit, first, values, peer)

    async def _command(
        self, verb: str, arguments: native.Arguments, peer: Peer, writer: "_Writer | None" = None
    ) -> Outcome:
        """`writer`: another than the peer itself."""
        via, by = writer or _writer(peer)
        return await self._feed.command(
            Command(verb=verb, arguments=dict(arguments), by=by, role=self._role(peer), via=via)
        )

    async def _write_sunspec(self, first: int, words: Sequence[int], peer: Peer) -> None:
        changes = sunspec.changes_of(first, words)
        if math.isnan(self._shown.rating_w) and changes.keys() & sunspec.LIMITING:
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
        for asked in after.asks(before, changes, self._shown.rating_w, self._config.heartbeat_timeout_s):
            outcome = await self._command(asked.verb, asked.arguments, peer, SUNSPEC)
            if asked.verb != "heartbeat":
                log.info("sunspec write", peer=peer.name, result=outcome.result.name.lower(), **changes)
            if outcome.result is Result.REJECTED and not (asked.verb == "release" and self._is_remote):
                raise Refusal(ExceptionCode.SERVER_DEVICE_FAILURE, outcome.reason)
            if outcome.result is Result.CLAMPED and outcome.value is not None:
                percent = round(sunspec.PERCENT_MAX * outcome.value / self._shown.rating_w)
                after = replace(after, percent=percent)
        return after

    @property
    def _is_remote(self) -> bool:
        """Then a release is refused only where there is nothing to release."""
        return self._shown.good("facility", "mode") == 0.0

    def _controls_now(self) -> sunspec.Controls | None:
        """As time has left them; at first, as the controller says that they stand; None: it has not yet."""
        now_s = self._now_s()
        if self._controls is None:
            slots = self._shown.good("facility", "slots")
            if not isinstance(slots, str):
                return None
            told = msgspec.json.decode(slots, type=tuple[sunspec.Slot, ...])
            mine = next((slot for slot in told if slot.writer == " ".join(SUNSPEC)), None)
            self._controls = self._kept.controls.taken_up(mine, self._shown.rating_w, now_s)
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
                outcome = await self._command(*asked, peer)
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
        outcome = await self._command("heartbeat", {}, peer)
        if outcome.result is not Result.REJECTED:
            master.beat = beat
        return outcome

    def _master(self, peer: Peer) -> Handshake:
        """Of this peer, to be read."""
        return self._masters.get(" ".join(_writer(peer))) or Handshake()

    def _writing(self, peer: Peer) -> Handshake:
        """Of this peer; whoever wrote longest ago is forgotten when there are too many."""
        writer = " ".join(_writer(peer))
        master = self._masters.pop(writer, None) or Handshake()
        if len(self._masters) >= MASTERS_MAX:
            del self._masters[next(iter(self._masters))]
        self._masters[writer] = master
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
        outcome = await self._command("write", arguments, peer)
        if outcome.result is Result.REJECTED:
            raise Refusal(ExceptionCode.SERVER_DEVICE_FAILURE, outcome.reason)

    def _point_at(self, unit: int, first: int, count: int) -> tuple[Page, Record]:
        for page in self._shown.pages:
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


async def _serve(server: ModbusServer, door: Door) -> None:
    await door.is_free()
    await server.run()


_Writer = tuple[str, str]  # way and name


def _writer(peer: Peer) -> _Writer:
    """As whom this peer holds limits; only certificates say a role, and who writes in TLS has one."""
    return VIA_TLS if peer.role else VIA, peer.name
