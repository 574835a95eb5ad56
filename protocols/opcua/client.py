"""OPC UA client: watches the points of one device and reports them as `Reading`s.

The subscription makes it quick, the read makes it sure. Changes come as notifications, a tenth of a second
old, and become readings of just the points that changed: a server of 2,000 nodes is not read ten times a
second. But a subscription says nothing while nothing changes, and the library nothing when the server is
gone; so silence proves nothing. Once per beat all points are read with a bounded wait: that is the truth, the
heartbeat, and what finds an outage within `silence_max_s`. Points that the server does not watch are read
more often instead.

`OpcUaDevice.run` never ends by anything a server or a network does. On any loss it says so, drops the client
with all its state (re-used clients have hung) and starts over with a new one: certificates, session,
namespaces by URI, subscription. Points fail one by one: an unknown node or a Bad status is that point's None,
never its neighbour's.

Dates are ours. A reading's date comes from our clock at the request, or for a notification from the moment
the server published it, translated to our clock and never before we asked. The device's own time stamps are
passed on, unless its clock is wrong: then that is said, and they are left out.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

from asyncua import Client, ua

from protocols.opcua.command import Commands
from protocols.opcua.fence import PeerError, ask, heed, status_name
from protocols.opcua.security import UNSECURED, Security, judge_again, secured_client
from protocols.opcua.session import Session, look_around
from protocols.opcua.values import judge, raw_of, source_stamp_s, trace, utc_s
from protocols.opcua.watch import News, Sampling, Watch
from protocols.profile import Profile, ProfileError
from protocols.reading import Reading, Value, WriteRule, Written, retry_delay_s

CONNECT_WAIT_MAX_S: Final = 8.0  # one step of connecting: a small controller needs seconds for its RSA keys
CLOSE_WAIT_MAX_S: Final = 0.5  # courtesy to the server; a dead one is not worth more
WRITE_WAIT_MAX_S: Final = 3.0
SESSION_MAX_S: Final = 30.0  # small controllers have five sessions: ones we lost must not pile up there
CHANNEL_LIFE_S: Final = 3600.0  # keys are renewed after three quarters of it
SLOW_EVERY: Final = 10  # slow points are read with every tenth beat, and not watched
FALLBACK_S: Final = 0.5  # reads of what is not watched; a server too small to watch must not be read at 10 Hz
REFUSED_WAIT_S: Final = 30.0  # after a refusal that will last; see `fence.LASTING`
TRUST_AGAIN_S: Final = 60.0  # a revocation holds within a minute, also on a standing connection
CLOCK_ERROR_MAX_S: Final = (
    30.0  # a plant without time server drifts seconds a day; beyond this nobody looks after it
)
FAULTS_SAID_MAX: Final = 10  # a sentence, not a list of two thousand nodes
MILLI: Final = 1000.0

UNFIT: Final = ("BadDecodingError", "BadEncodingLimitsExceeded", "BadResponseTooLarge")
SERVER_CLOCK: Final = ua.NodeId(2258)  # Server_ServerStatus_CurrentTime, OPC 10000-6, annex A
SERVER_STATE: Final = ua.NodeId(2259)
RUNNING: Final = 0
STATES: Final = {  # OPC 10000-5, 12.6
    1: "failed", 2: "without configuration", 3: "suspended", 4: "shutting down", 5: "in test",
    6: "without communication to its device", 7: "in a state that it does not know",
}  # fmt: skip

Link = Literal["up", "down"]


class OpcUaDevice:
    """One device behind one OPC UA endpoint, such as `opc.tcp://10.0.0.7:4840`.

    Readings are partial: each holds the points that were read, or have changed. Their `fault` speaks of the
    whole device all the same.

    Args:
        name: of the device, as readings carry it.
        url: `opc.tcp://host:port`, with a path where the server wants one.
        profile: of protocol opcua. Points of access "w" are written or called, never read.
        on_reading: must not block.
        clock: stamps the readings and paces the rate of writes.
        points: names to read; () = all.
        silence_max_s: an outage is found within it.
        sampling: what the server is asked to watch, and how fast.
        security: `UNSECURED` unless told otherwise; a real device deserves a `Security()`.
        writes: what may be written, by point; nothing else is.
        calls: which methods may be called with `call`, one rule for each argument.

    Raises:
        ProfileError: built with what cannot work: wrong protocol, unknown point, a useless wait.
    """

    def __init__(
        self,
        name: str,
        url: str,
        profile: Profile,
        *,
        on_reading: Callable[[Reading], None],
        clock: Callable[[], float],
        utc_now_s: Callable[[], float] = time.time,
        points: tuple[str, ...] = (),
        silence_max_s: float = 2.0,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
        security: Security = UNSECURED,
        writes: Mapping[str, WriteRule] | None = None,
        calls: Mapping[str, Sequence[WriteRule]] | None = None,
    ) -> None:
        _check(name, url, profile, silence_max_s)
        self._name, self._url, self._profile = name, url, profile
        self._clock, self._utc_now_s, self._on_reading = clock, utc_now_s, on_reading
        self._points = {point.name: point for point in profile.select(points) if point.readable}
        self._sampling, self._security = sampling, security
        self._beat_s = self._wait_max_s = silence_max_s / 2  # a beat that comes late still finds an outage
        self._commands = Commands(
            name,
            profile,
            writes=writes or {},
            calls={method: tuple(rules) for method, rules in (calls or {}).items()},
            clock=clock,
            session=lambda: self._session,
        )
        self._session: Session | None = None
        self._watch: Watch | None = None
        self._answered = False  # since this connection was made
        self._shown: dict[str, str] = {}  # newest raw value of each point, to see a change
        self._unchanged_since_s = clock()
        self._faults: dict[str, str] = {}  # by point, or by what else is wrong
        self._doubt = ""
        self._apart: set[str] = set()  # points that make whole answers useless: asked last, and seldom
        self._news: dict[str, Any] = {}  # notified since the read in progress began
        self._tick: tuple[float, float] | None = None  # our clock, and the server's a little later

    async def run(self) -> None:
        """Report for ever. Ends only by cancellation, or by a fault of the program."""
        failures = 0
        while True:
            self._answered = False
            try:
                await self._connection()
            except PeerError as error:
                self._tell_down(error)
                lasting = error.lasting
            failures = 0 if self._answered else failures + 1
            await asyncio.sleep(_jittered(REFUSED_WAIT_S) if lasting else retry_delay_s(failures))

    async def write(self, point: str, value: float, wait_max_s: float = WRITE_WAIT_MAX_S) -> Written:
        """Write `value` (in the point's unit), read it back and compare; a method point is called with it.

        Raises:
            DeviceError: no rule allows it, refused, not confirmed in time, or the device shows something
                else; the text says whether anything was sent.
        """
        return await self._commands.write(point, value, wait_max_s)

    async def release(self, wait_max_s: float = WRITE_WAIT_MAX_S) -> None:
        """Withdraw our commands: their upkeep stops, then the profile's release settings are written.

        Raises:
            DeviceError: the device did not take them. They are tried again until it does, or until a new
                command is written; a device with a reversion timer falls back by itself.
        """
        await self._commands.release(wait_max_s)

    async def call(
        self, point: str, *arguments: float, wait_max_s: float = WRITE_WAIT_MAX_S
    ) -> tuple[Value, ...]:
        """Call the method of a point with arguments as the method declares them; returns its outputs.

        Raises:
            DeviceError: as `write`.
        """
        return await self._commands.call(point, arguments, wait_max_s)

    # ---- one connection ----

    async def _connection(self) -> NoReturn:
        """One connection, until it fails: raises PeerError."""
        client, certificate = await secured_client(self._url, self._security, CONNECT_WAIT_MAX_S)
        client.session_timeout = round(SESSION_MAX_S * MILLI)
        client.secure_channel_timeout = round(CHANNEL_LIFE_S * MILLI)
        lost = asyncio.Event()
        client.connection_lost_callback = partial(_set, lost)
        tasks: list[asyncio.Task[None]] = []
        try:
            await ask(client.connect(), CONNECT_WAIT_MAX_S)
            session = await look_around(client, certificate, self._points, self._wait_max_s)
            await self._identify(session)
            await self._begin(session)
            assert self._watch is not None
            tasks.append(asyncio.create_task(self._watch.keep()))
            if self._commands.keeps_alive:
                tasks.append(asyncio.create_task(self._commands.keep_alive()))
            for task in tasks:
                task.add_done_callback(lambda _: lost.set())
            await self._beat(session, tasks, lost)
        finally:
            self._session = self._watch = None
            for task in tasks:
                task.cancel()
                task.add_done_callback(heed)
            self._commands.disconnected()
            await _leave(client)

    async def _identify(self, session: Session) -> None:
        """The wrong device behind an address is not used."""
        for wanted in self._profile.identity:
            point = self._profile.points[wanted.point]
            (answer,) = await session.read([session.node_id(point.node)])
            value, fault = judge(point, answer)
            if not wanted.accepts(value):
                raise PeerError(
                    f"another device? {wanted.point} is {fault or repr(value)}, "
                    f"expected {wanted.matches or wanted.equals!r}; check address and profile",
                    lasting=True,
                )

    async def _begin(self, session: Session) -> None:
        """The first read, before anything else is asked of a slow server."""
        self._faults = {
            name: f"the server has no namespace {uri}; check the profile's node"
            for name, uri in session.absent.items()
        }
        self._doubt, self._tick = "", None
        await self._read(session, session.nodes, absent=session.absent)
        self._session = session
        self._watch = Watch(
            session.client,
            self._of("fast", session),
            self._sampling,
            items_max=session.items_max,
            wait_max_s=CONNECT_WAIT_MAX_S,
            clock=self._clock,
            on_news=self._take_news,
            apart=self._apart,
        )

    async def _beat(
        self, session: Session, tasks: Sequence[asyncio.Task[None]], lost: asyncio.Event
    ) -> NoReturn:
        """Read all once per beat and what is not watched in between, until the connection is `lost`."""
        loop = asyncio.get_running_loop()
        assert self._watch is not None
        all_due_s = loop.time() + self._beat_s
        judged_at_s = loop.time()
        beats = 0
        while True:
            unwatched = self._watch.unwatched - self._apart
            due_s = min(all_due_s, loop.time() + FALLBACK_S) if unwatched else all_due_s
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await lost.wait()
                for task in tasks:
                    if task.done():
                        task.result()
                raise PeerError("the connection was closed")
            if loop.time() < all_due_s:
                if unwatched := self._watch.unwatched - self._apart:
                    await self._read(session, {name: session.nodes[name] for name in unwatched})
                continue
            beats += 1
            await self._read(session, self._due(session, beats), absent=session.absent)
            all_due_s = max(
                all_due_s + self._beat_s, loop.time() + self._beat_s / 2
            )  # a slow server rests, too
            if loop.time() - judged_at_s > TRUST_AGAIN_S:
                await judge_again(self._url, self._security, session.certificate, CONNECT_WAIT_MAX_S)
                judged_at_s = loop.time()

    def _of(self, poll: str, session: Session) -> dict[str, ua.NodeId]:
        """The points of one poll class that the server may have."""
        return {name: node for name, node in session.nodes.items() if self._points[name].poll == poll}

    def _due(self, session: Session, beats: int) -> dict[str, ua.NodeId]:
        """What to read at this beat; name plates only as long as there is something amiss with them."""
        due = self._of("fast", session)
        for name in self._apart & due.keys():
            del due[name]
        if beats % SLOW_EVERY == 0:
            due |= self._of("slow", session)
            due |= {name: node for name, node in self._of("once", session).items() if name in self._faults}
            due |= {name: session.nodes[name] for name in self._apart}
        return due

    # ---- values ----

    async def _read(
        self, session: Session, nodes: Mapping[str, ua.NodeId], absent: Mapping[str, str] | None = None
    ) -> None:
        """Read these nodes and report them, along with the points that the server does not have."""
        taken_at_s = self._clock()
        self._news.clear()
        await self._look_at_server(session)
        values: dict[str, Value] = dict.fromkeys(absent or ())
        stamps: dict[str, float] = {}
        self._apart -= nodes.keys()
        async for piece in session.read_all(nodes):
            self._apart |= {name for name, answer in piece if status_name(answer.StatusCode) in UNFIT}
            # what was notified while we asked may be the newer of the two
            self._take(
                [(name, _newer(answer, self._news.get(name))) for name, answer in piece],
                values,
                stamps,
                taken_at_s,
            )
        self._answered = True
        if self._watch is not None and (found := self._apart - self._watch.apart):
            self._watch.leave_out(found)
        self._say("subscription", self._watch.fault if self._watch is not None else "")
        self._say("its control", self._commands.fault)
        self._report(values, taken_at_s, "up", stamps)

    async def _look_at_server(self, session: Session) -> None:
        """The server's clock and state. Servers that do not show them are believed."""
        sent_at_s, sent_utc_s = self._clock(), self._utc_now_s()
        clock, state = await session.read([SERVER_CLOCK, SERVER_STATE])
        theirs_s = utc_s(raw_of(clock))
        self._tick = (sent_at_s, theirs_s) if theirs_s is not None else None
        error_s = 0.0 if theirs_s is None else _beyond(theirs_s, sent_utc_s, self._utc_now_s())
        wrong = abs(error_s) > CLOCK_ERROR_MAX_S
        direction = "ahead" if error_s > 0 else "behind"
        self._say("its clock", f"{abs(error_s):.0f} s {direction}; our times count: set it" if wrong else "")
        said = raw_of(state)
        running = said == RUNNING or not isinstance(said, int)
        self._doubt = "" if running else f"the server says that it is {STATES.get(said, f'in state {said}')}"

    def _take_news(self, news: News) -> None:
        """What the subscription tells."""
        if self._watch is None:
            return  # the connection is being closed
        now_s = self._clock()
        if (at_utc_s := utc_s(news.published_at)) is not None and self._tick is not None:
            ours_s, theirs_utc_s = self._tick
            published_at_s = ours_s + at_utc_s - theirs_utc_s
        else:
            published_at_s = news.asked_at_s
        # a clock that jumps, or lies, moves the date within these bounds and no further
        taken_at_s = max(news.asked_at_s, min(now_s, published_at_s)) - news.sampling_s
        values: dict[str, Value] = {}
        stamps: dict[str, float] = {}
        self._news.update(news.answers)
        self._take(list(news.answers.items()), values, stamps, taken_at_s)
        self._report(values, taken_at_s, "up", stamps)

    def _take(
        self,
        answers: Sequence[tuple[str, ua.DataValue]],
        values: dict[str, Value],
        stamps: dict[str, float],
        taken_at_s: float,
    ) -> None:
        """Judge answers into `values` and `stamps`, and see whether anything has changed."""
        latest_utc_s = self._utc_now_s() + CLOCK_ERROR_MAX_S
        for name, answer in answers:
            values[name], fault = judge(self._points[name], answer)
            stamp_s = source_stamp_s(answer)
            if stamp_s is not None and "its clock" not in self._faults:
                if stamp_s <= latest_utc_s:
                    stamps[name] = stamp_s
                else:
                    ahead_s = stamp_s - latest_utc_s + CLOCK_ERROR_MAX_S
                    fault = fault or f"dated {ahead_s:.0f} s ahead of now; our times count"
            self._say(name, fault)
            shown = trace(raw_of(answer))
            if self._shown.get(name) != shown:
                self._shown[name] = shown
                self._unchanged_since_s = max(self._unchanged_since_s, taken_at_s)

    def _say(self, what: str, fault: str) -> None:
        if fault:
            self._faults[what] = fault
        else:
            self._faults.pop(what, None)

    def _tell_down(self, why: PeerError) -> None:
        advice = "" if why.lasting else ": is the server on, and its OPC UA enabled?"
        self._faults, self._doubt = {self._url: f"{why}{advice}"}, ""
        self._report(dict.fromkeys(self._points), self._clock(), "down", {})

    def _report(
        self, values: Mapping[str, Value], taken_at_s: float, link: Link, stamps: Mapping[str, float]
    ) -> None:
        said = "; ".join(f"{what}: {fault}" for what, fault in islice(self._faults.items(), FAULTS_SAID_MAX))
        more = len(self._faults) - FAULTS_SAID_MAX
        self._on_reading(
            Reading(
                device=self._name,
                values=values,
                taken_at_s=taken_at_s,
                unchanged_since_s=self._unchanged_since_s,
                link=link,
                fault=f"{said}; and {more} more" if more > 0 else said,
                doubt=self._doubt,
                source_at_utc_s=stamps,
            )
        )


def _check(name: str, url: str, profile: Profile, silence_max_s: float) -> None:
    if profile.protocol != "opcua":
        raise ProfileError(f"{name}: profile {profile.name} speaks {profile.protocol}, not opcua")
    if not 0.1 <= silence_max_s <= 60:
        raise ProfileError(f"{name}: silence_max_s {silence_max_s}; use 0.1 to 60 s")
    if urlsplit(url).scheme != "opc.tcp":
        raise ProfileError(f"{name}: url {url!r}; use opc.tcp://host:port")
    if "@" in urlsplit(url).netloc:
        raise ProfileError(f"{name}: a user in the url would show in every fault; use Security(user=...)")


def _newer(read: ua.DataValue, notified: ua.DataValue | None) -> ua.DataValue:
    if notified is None:
        return read
    return notified if (source_stamp_s(notified) or 0.0) > (source_stamp_s(read) or 0.0) else read


def _beyond(value: float, lowest: float, highest: float) -> float:
    """How far the value lies outside; 0 inside."""
    return value - min(max(value, lowest), highest)


def _jittered(wait_s: float) -> float:
    return wait_s * retry_delay_s(10) / 2.0


async def _set(lost: asyncio.Event, _why: Exception) -> None:
    lost.set()


async def _leave(client: Client) -> None:
    """Say goodbye within a bound, whatever state the client is in, then cut the line."""
    try:
        await ask(client.disconnect(), CLOSE_WAIT_MAX_S)
    except PeerError:
        return  # the line is cut below, and the session at the server runs out
    finally:
        client.disconnect_socket()
