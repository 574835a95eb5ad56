"""Modbus TCP client: polls the units behind one connection and reports a `Reading` per poll.

One task per *connection*, not per device: Modbus answers one request at a time, many devices allow a single
connection, and gateways put several units behind one. `ModbusLink.run` never ends by anything a device or a
network does. It connects (a new client object each time), polls, and on loss says so and starts over.

The library is fenced where it enters. It accepts replies with a wrong function code, count or transaction
0, lets a request wait out its time-out though the peer is long gone, retries inside its lock, and swallows
the reason of a failed connect. So: no retries, every wait bounded here, every reply checked here, and a
lost connection cancels the request that waits on it.

Faults stay small. A unit that is silent costs its neighbours one bounded wait, then is asked less and less
often. A register the device refuses costs its own point: the read that held it is split and the others go on.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU

from protocols import codec
from protocols.profile import BIT_TABLES, Point, Profile, ProfileError, Table
from protocols.reading import DeviceError, Reading, retry_delay_s

CONNECT_WAIT_MAX_S: Final = 1.0  # a device in the same hall answers within a millisecond
LIBRARY_WAIT_S: Final = 10.0  # above every wait of ours, so that ours is the one that acts
SILENT_MAX: Final = 3  # unanswered requests in a row, none of the units alive: the connection is dead
SLOW_EVERY: Final = 10  # slow points are read with every tenth poll
WRITE_WAIT_MAX_S: Final = 3.0  # one read ahead of us, the write, and the read-backs
READ_BACK_TRIES: Final = 3  # some devices take a cycle of their own until a register shows what it was told
READ_BACK_GAP_S: Final = 0.05
UNITS_MAX: Final = 247  # unit ids 1..247; Modbus over serial line V1.02, 2.2

# table -> function code, client method
_READ: Final = {
    "coil": (1, "read_coils"),
    "discrete": (2, "read_discrete_inputs"),
    "holding": (3, "read_holding_registers"),
    "input": (4, "read_input_registers"),
}
_EXCEPTIONS: Final = {  # Modbus Application Protocol V1.1b3, 7
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledged but not done",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target does not respond",
}
_LASTING: Final = (1, 2, 3)  # asking again for the same registers will not help
_TARGET_SILENT: Final = (10, 11)  # the gateway answers, the unit behind it does not


class SilentError(DeviceError):
    """No answer within the wait."""


class LostError(DeviceError):
    """The connection is gone."""


class RefusedError(DeviceError):
    """An answer, but not the one asked for."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code  # Modbus exception code; 0: the reply was malformed


@dataclass(frozen=True)
class Span:
    """One read request: `count` registers or bits from `first`, and the points they carry."""

    table: Table
    first: int
    count: int
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class ModbusUnit:
    """One device behind a connection. `points` () = all of the profile; `on_reading` must not block."""

    name: str
    profile: Profile
    poll_s: float
    on_reading: Callable[[Reading], None]
    unit_id: int = 1
    points: tuple[str, ...] = ()


@dataclass
class _Poll:
    """What the link remembers of one unit."""

    unit: ModbusUnit
    points: tuple[Point, ...]
    due_s: float = 0.0  # on the event loop's clock
    rounds: int = 0
    silent: int = 0  # unanswered polls in a row
    spans: dict[str, tuple[Span, ...]] = field(default_factory=dict)  # by poll class
    seen: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)  # newest registers by place
    unchanged_since_s: float = 0.0


def plan_reads(points: Sequence[Point], profile: Profile) -> tuple[Span, ...]:
    """The fewest reads that cover `points`, none across a block edge or above the profile's read length."""
    spans: list[Span] = []
    for block in profile.blocks:
        inside = sorted((p for p in points if block.holds(p)), key=lambda p: p.address)
        group: list[Point] = []
        for point in inside:
            if group and point.last_address - group[0].address >= profile.max_registers_per_read:
                spans.append(_span(group))
                group = []
            group.append(point)
        if group:
            spans.append(_span(group))
    return tuple(spans)


def _span(points: Sequence[Point]) -> Span:
    first = points[0].address
    return Span(points[0].table, first, max(p.last_address for p in points) - first + 1, tuple(points))


class ModbusLink:
    """One TCP connection and the units behind it.

    Raises ProfileError when built with a unit that cannot work: wrong protocol, unknown point, twice the
    same name, unit id or poll period out of range. `clock` stamps the readings; it is the caller's choice.
    """

    def __init__(
        self, host: str, port: int, units: Sequence[ModbusUnit], *, clock: Callable[[], float]
    ) -> None:
        _check(units)
        self._host, self._port, self._clock = host, port, clock
        self._polls = {
            unit.name: _Poll(unit, unit.profile.select(unit.points), unchanged_since_s=clock())
            for unit in units
        }
        self._gap_s = max(unit.profile.min_gap_s for unit in units)  # the line behind is shared
        self._turn = asyncio.Lock()  # one request at a time; fair, so a write waits for one read at most
        self._rest_until_s = 0.0
        self._client: AsyncModbusTcpClient | None = None
        self._request: asyncio.Task[ModbusPDU] | None = None
        self._gone = asyncio.Event()
        self._silent = 0  # unanswered requests in a row, over all units
        self._answered = False  # since this connection was made

    @property
    def where(self) -> str:
        return f"{self._host}:{self._port}"

    async def run(self) -> None:
        """Poll for ever. Ends only by cancellation, or by a fault of the program."""
        failures = 0
        while True:
            self._answered = False
            try:
                await self._connect()
                await self._serve()
            except LostError as lost:
                self._tell_down(str(lost))
            finally:
                self._drop()
            failures = 0 if self._answered else failures + 1
            await asyncio.sleep(retry_delay_s(failures))

    async def write(self, device: str, point: str, value: float) -> None:
        """Write `value` (in the point's unit), read it back and compare.

        Raises:
            DeviceError: read-only, refused, silent, or the read-back differs; then it may be in force or not.
            codec.CodecError: the value does not fit the point.
        """
        poll = self._polls.get(device)
        if poll is None:
            raise DeviceError(f"no device {device!r} at {self.where}; it has {', '.join(self._polls)}")
        target = poll.unit.profile.select((point,))[0]
        if target.access != "rw":
            raise DeviceError(f"{device}.{point}: read-only by its profile; nothing was sent")
        words = codec.encode(target, value)
        try:
            async with asyncio.timeout(WRITE_WAIT_MAX_S):
                await self._write(poll.unit, target, words)
                await self._read_back(poll.unit, target, words)
        except TimeoutError as error:
            raise DeviceError(f"{device}.{point}: not confirmed within {WRITE_WAIT_MAX_S} s") from error

    # ---- one connection ----

    async def _connect(self) -> None:
        self._gone.clear()
        self._silent = 0
        for poll in self._polls.values():
            poll.spans = {}  # the device may have been exchanged: plan anew
            poll.due_s = asyncio.get_running_loop().time()
        self._client = AsyncModbusTcpClient(
            self._host,
            port=self._port,
            timeout=LIBRARY_WAIT_S,
            retries=0,
            reconnect_delay=0,
            trace_connect=self._on_connection,
        )
        try:
            async with asyncio.timeout(CONNECT_WAIT_MAX_S):
                await self._client.ctx.call_create()  # client.connect() would keep the reason to itself
        except TimeoutError:
            raise LostError(f"no answer from {self.where}: check power, address and route") from None
        except ConnectionRefusedError:
            raise LostError(f"connection refused by {self.where}: is the device on, is Modbus on?") from None
        except OSError as error:
            raise LostError(f"no way to {self.where}: {error}; check address and network") from None

    def _on_connection(self, connected: bool) -> None:
        if connected:
            return
        self._gone.set()
        if self._request is not None:
            self._request.cancel()  # the library would wait out its time-out for an answer that cannot come

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if self._request is not None:  # a write may be waiting
            self._request.cancel()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            poll = min(self._polls.values(), key=lambda p: p.due_s)
            await self._sleep(poll.due_s - loop.time())
            await self._poll(poll)
            poll.due_s = self._next_due_s(poll, loop.time())

    def _next_due_s(self, poll: _Poll, now_s: float) -> float:
        """Absolute beats; a late one moves those after it, none is made up for. The silent wait longer."""
        if poll.silent:
            return now_s + max(poll.unit.poll_s, retry_delay_s(poll.silent))
        return max(poll.due_s + poll.unit.poll_s, now_s)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._gone.wait()
        except TimeoutError:
            return
        raise LostError(f"{self.where} closed the connection: device restarted, or another master holds it?")

    # ---- one poll ----

    async def _poll(self, poll: _Poll) -> None:
        taken_at_s = self._clock()
        values: dict[str, float | None] = {}
        faults: list[str] = []
        changed = False
        for span in self._spans_due(poll):
            try:
                registers = await self._read(poll.unit, span)
            except SilentError as silent:
                poll.silent += 1
                self._report(poll, {p.name: None for p in poll.points}, taken_at_s, "down", str(silent))
                self._count_silence(str(silent))
                return
            except RefusedError as refused:
                values |= {p.name: None for p in span.points}
                faults.append(str(refused))
                self._split(poll, span, refused.code)
                continue
            changed |= poll.seen.get((span.table, span.first)) != registers
            poll.seen[span.table, span.first] = registers
            values |= _values(span, registers)
        poll.silent = 0
        poll.rounds += 1
        if changed:
            poll.unchanged_since_s = taken_at_s
        if not faults:
            faults = [f"{name}: not present or implausible" for name in values if values[name] is None]
        self._report(poll, values, taken_at_s, "up", "; ".join(faults))

    def _spans_due(self, poll: _Poll) -> list[Span]:
        if not poll.spans:
            poll.spans = {
                speed: plan_reads([p for p in poll.points if p.poll == speed], poll.unit.profile)
                for speed in ("fast", "slow")
            }
            poll.rounds = 0
        slow = poll.rounds % SLOW_EVERY == 0 or not poll.spans["fast"]
        return [*poll.spans["fast"], *(poll.spans["slow"] if slow else ())]

    def _split(self, poll: _Poll, span: Span, code: int) -> None:
        """From the next poll on, read the points of a span that was refused one by one."""
        if code not in _LASTING or len(span.points) == 1:
            return
        for speed, spans in poll.spans.items():
            singles = tuple(_span([p]) for p in span.points)
            poll.spans[speed] = tuple(s for old in spans for s in (singles if old == span else (old,)))

    def _count_silence(self, why: str) -> None:
        if self._silent >= SILENT_MAX and all(poll.silent for poll in self._polls.values()):
            raise LostError(f"{why}; {SILENT_MAX} requests unanswered, connecting anew")

    def _report(
        self,
        poll: _Poll,
        values: Mapping[str, float | None],
        taken_at_s: float,
        link: Literal["up", "down"],
        fault: str,
    ) -> None:
        poll.unit.on_reading(
            Reading(
                device=poll.unit.name,
                values=values,
                taken_at_s=taken_at_s,
                unchanged_since_s=poll.unchanged_since_s,
                link=link,
                fault=fault,
            )
        )

    def _tell_down(self, fault: str) -> None:
        for poll in self._polls.values():
            self._report(poll, {p.name: None for p in poll.points}, self._clock(), "down", fault)

    # ---- one request ----

    async def _read(self, unit: ModbusUnit, span: Span) -> tuple[int, ...]:
        code, method = _READ[span.table]
        what = f"{unit.name}: reading {span.table} {span.first}..{span.first + span.count - 1}"
        reply = await self._ask(unit, what, code, method, span.first, count=span.count)
        bits = span.table in BIT_TABLES
        got = [int(bit) for bit in reply.bits] if bits else list(reply.registers)
        wanted = (span.count + 7) // 8 * 8 if bits else span.count  # bits come in whole bytes
        if len(got) != wanted:
            raise RefusedError(f"{what}: {wanted} asked, {len(got)} came; is the profile the device's?")
        return tuple(got[: span.count])

    async def _write(self, unit: ModbusUnit, point: Point, words: list[int]) -> None:
        what = f"{unit.name}: writing {point.name} at {point.table} {point.address}"
        if point.table == "coil":
            reply = await self._ask(unit, what, 5, "write_coil", point.address, bool(words[0]))
        elif len(words) == 1:
            reply = await self._ask(unit, what, 6, "write_register", point.address, words[0])
        else:
            reply = await self._ask(unit, what, 16, "write_registers", point.address, words)
        if reply.address != point.address:
            raise RefusedError(f"{what}: the device confirmed address {reply.address} instead; check there")

    async def _read_back(self, unit: ModbusUnit, point: Point, words: list[int]) -> None:
        for _ in range(READ_BACK_TRIES):
            back = await self._read(unit, _span([point]))
            if list(back) == words:
                return
            await asyncio.sleep(READ_BACK_GAP_S)
        raise DeviceError(
            f"{unit.name}.{point.name}: wrote {words}, reads back {list(back)}; "
            f"local mode, a limit of the device, or another master?"
        )

    async def _ask(
        self, unit: ModbusUnit, what: str, code: int, method: str, *args: Any, **kwargs: Any
    ) -> ModbusPDU:
        """One request and its checked reply. Raises SilentError, LostError or RefusedError."""
        async with self._turn:
            await asyncio.sleep(self._rest_until_s - asyncio.get_running_loop().time())
            if self._client is None or not self._client.connected:
                raise LostError(f"{what}: not connected to {self.where}")
            call: Coroutine[Any, Any, ModbusPDU] = getattr(self._client, method)(
                *args, device_id=unit.unit_id, **kwargs
            )
            reply = await self._await_reply(call, what, unit.profile.reply_wait_max_s)
        self._silent = 0
        self._answered = True
        _check_reply(reply, what, code, unit)
        return reply

    async def _await_reply(
        self, call: Coroutine[Any, Any, ModbusPDU], what: str, wait_max_s: float
    ) -> ModbusPDU:
        self._request = asyncio.create_task(call)
        try:
            done, _ = await asyncio.wait({self._request}, timeout=wait_max_s)
            if not done:
                self._silent += 1
                raise SilentError(
                    f"{what}: no answer within {wait_max_s} s: is the unit on, and its id right?"
                )
            if self._request.cancelled():
                raise LostError(f"{what}: {self.where} closed the connection; did the device restart?")
            return self._request.result()
        except ModbusException as error:
            raise LostError(f"{what}: {error}") from error
        finally:
            self._request.cancel()
            self._request = None
            self._rest_until_s = asyncio.get_running_loop().time() + self._gap_s


def _check(units: Sequence[ModbusUnit]) -> None:
    names = [unit.name for unit in units]
    errors = [] if units else ["no units: a connection without a device has nothing to do"]
    for unit in units:
        if unit.profile.protocol != "modbus":
            errors.append(
                f"{unit.name}: profile {unit.profile.name} speaks {unit.profile.protocol}, not modbus"
            )
        if names.count(unit.name) > 1:
            errors.append(f"{unit.name}: named twice on one connection; give each unit its own name")
        if not 1 <= unit.unit_id <= UNITS_MAX:
            errors.append(
                f"{unit.name}: unit id {unit.unit_id}; use 1 to {UNITS_MAX} (0 would accept any reply)"
            )
        if not 0.01 <= unit.poll_s <= 60:
            errors.append(f"{unit.name}: poll_s {unit.poll_s}; use 0.01 to 60 s")
    if errors:
        raise ProfileError("\n".join(errors))


def _check_reply(reply: ModbusPDU, what: str, code: int, unit: ModbusUnit) -> None:
    if reply.isError():
        meaning = _EXCEPTIONS.get(reply.exception_code, f"exception {reply.exception_code}")
        if reply.exception_code in _TARGET_SILENT:
            raise SilentError(f"{what}: {meaning}: is the unit on, and its id right?")
        raise RefusedError(f"{what}: {meaning}; is the profile the device's?", reply.exception_code)
    if reply.function_code != code:
        raise RefusedError(f"{what}: asked with function {code}, answered with {reply.function_code}")
    if reply.dev_id != unit.unit_id or reply.transaction_id == 0:
        raise RefusedError(
            f"{what}: the answer is of unit {reply.dev_id}, transaction {reply.transaction_id}"
        )


def _values(span: Span, registers: tuple[int, ...]) -> dict[str, float | None]:
    return {
        p.name: codec.decode(p, registers[p.address - span.first : p.last_address - span.first + 1])
        for p in span.points
    }
