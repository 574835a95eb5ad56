"""OPC UA client: watches the points of one device and reports them as `Reading`s.

The subscription makes it quick, the read makes it sure. A subscription says nothing while nothing changes,
and its library says nothing when the server is gone either; so silence proves nothing, and a notification
does not say how old its value is. Hence a notification only wakes us: all points are then read in one
request with a bounded wait, and at the latest once per beat. That one read is the value, its date and the
heartbeat; it finds an outage within `silence_max_s` and sees past a subscription that died unnoticed.

`OpcUaDevice.run` never ends by anything a server or a network does. On any loss it says so, drops the
client with all its state (re-used clients have hung) and starts over with a new one: connect, find the
namespaces by URI, subscribe. Points fail one by one: an unknown node or a Bad status is that point's None,
never its neighbour's. Only Good counts as a value: Uncertain mostly means "the last one I had".
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Literal, TypeVar

from asyncua import Client, Node, ua

from protocols import codec
from protocols.profile import Point, Profile, ProfileError
from protocols.reading import Reading, retry_delay_s

CONNECT_WAIT_MAX_S: Final = 4.0  # hello, channel, session and certificates on a slow controller
CLOSE_WAIT_MAX_S: Final = 0.5  # courtesy to the server; a dead one is not worth more
PUBLISH_PERIOD_S: Final = 0.1  # ten times faster than a coolant loop moves
SESSION_MAX_S: Final = 30.0  # small controllers have five sessions: ones we lost must not pile up there
MILLI: Final = 1000.0  # OPC UA durations are in ms


class PeerError(Exception):
    """The server is gone, slow, refuses, or talks nonsense."""


class OpcUaDevice:
    """One device behind one OPC UA endpoint, such as `opc.tcp://10.0.0.7:4840`.

    `points` () = all of the profile. `on_reading` must not block. `clock` stamps the readings. `security`
    is asyncua's security string ("Basic256Sha256,SignAndEncrypt,cert.pem,key.pem"); "" means none.

    Raises ProfileError when built with what cannot work: wrong protocol, unknown point, a useless wait.
    """

    def __init__(
        self,
        name: str,
        url: str,
        profile: Profile,
        *,
        on_reading: Callable[[Reading], None],
        clock: Callable[[], float],
        points: tuple[str, ...] = (),
        silence_max_s: float = 2.0,
        user: str = "",
        password: str = "",
        security: str = "",
    ) -> None:
        if profile.protocol != "opcua":
            raise ProfileError(f"{name}: profile {profile.name} speaks {profile.protocol}, not opcua")
        if not 0.1 <= silence_max_s <= 60:
            raise ProfileError(f"{name}: silence_max_s {silence_max_s}; use 0.1 to 60 s")
        self._name, self._url, self._clock, self._on_reading = name, url, clock, on_reading
        self._points = {point.name: point for point in profile.select(points)}
        self._user, self._password, self._security = user, password, security
        self._beat_s = self._wait_max_s = silence_max_s / 2  # a beat that comes late still finds an outage
        self._said = ""  # raw values of the last read, to see one change
        self._unchanged_since_s = clock()
        self._stirred = asyncio.Event()  # something changed at the server
        self._answered = False  # since this connection was made

    async def run(self) -> None:
        """Report for ever. Ends only by cancellation, or by a fault of the program."""
        failures = 0
        while True:
            self._answered = False
            client = Client(self._url, timeout=self._wait_max_s)
            client.session_timeout = round(SESSION_MAX_S * MILLI)
            # a task of its own: the library swallows cancellations, and ours must always be obeyed
            session = asyncio.create_task(self._serve(client))
            try:
                await asyncio.wait({session})
                self._tell_down(_end_of(session))
            finally:
                session.cancel()
                await _leave(client, session)
            failures = 0 if self._answered else failures + 1
            await asyncio.sleep(retry_delay_s(failures))

    async def _serve(self, client: Client) -> None:
        """One connection, until it fails."""
        nodes = await _ask(self._open(client), CONNECT_WAIT_MAX_S)
        while True:
            self._stirred.clear()  # before the read: a change during it wakes us again
            await self._read(client, nodes)
            try:
                async with asyncio.timeout(self._beat_s):
                    await self._stirred.wait()
            except TimeoutError:
                continue  # nothing changed for a beat: read all the same

    async def _open(self, client: Client) -> dict[str, Node]:
        """Connect, find the nodes, subscribe."""
        if self._user:
            client.set_user(self._user)
            client.set_password(self._password)
        if self._security:
            await client.set_security_string(self._security)
        await client.connect()
        nodes = await self._find_nodes(client)
        await self._subscribe(client, nodes)
        return nodes

    async def _find_nodes(self, client: Client) -> dict[str, Node]:
        """Nodes by point name; points whose namespace the server does not have are left out."""
        uris = await client.get_namespace_array()
        return {
            name: client.get_node(f"ns={uris.index(point.namespace_uri)};{point.identifier}")
            if point.namespace_uri
            else client.get_node(point.identifier)
            for name, point in self._points.items()
            if point.namespace_uri in ("", *uris)
        }

    async def _subscribe(self, client: Client, nodes: Mapping[str, Node]) -> None:
        """Ask to be woken. Nodes the server refuses are left to the read, which will say what is wrong."""
        subscription = await client.create_subscription(PUBLISH_PERIOD_S * MILLI, self)
        if nodes:
            await subscription.subscribe_data_change(
                list(nodes.values()), queuesize=1, sampling_interval=PUBLISH_PERIOD_S * MILLI
            )

    def datachange_notification(self, _node: Node, _value: object, _change: object) -> None:
        """The library calls this for every change."""
        self._stirred.set()

    async def _read(self, client: Client, nodes: Mapping[str, Node]) -> None:
        taken_at_s = self._clock()
        answers = await _ask(client.read_attributes(list(nodes.values())), self._wait_max_s)
        if len(answers) != len(nodes):
            raise PeerError(f"{len(nodes)} nodes asked for, {len(answers)} came")
        self._answered = True
        said = dict(zip(nodes, answers, strict=True))
        values: dict[str, float | None] = {}
        faults: list[str] = []
        for name, point in self._points.items():
            values[name], fault = _judge(point, said.get(name))
            faults += [f"{name}: {fault}"] if fault else []
        raw = repr([_raw(answer) for answer in answers])  # as text: a stuck NaN must equal itself
        if raw != self._said:
            self._said, self._unchanged_since_s = raw, taken_at_s
        self._report(values, taken_at_s, "up", "; ".join(faults))

    def _tell_down(self, why: str) -> None:
        fault = f"{self._url}: {why}: is the server on, its OPC UA enabled, and a session free?"
        self._report(dict.fromkeys(self._points), self._clock(), "down", fault)

    def _report(
        self, values: Mapping[str, float | None], taken_at_s: float, link: Literal["up", "down"], fault: str
    ) -> None:
        self._on_reading(
            Reading(
                device=self._name,
                values=values,
                taken_at_s=taken_at_s,
                unchanged_since_s=self._unchanged_since_s,
                link=link,
                fault=fault,
            )
        )


def _judge(point: Point, answer: ua.DataValue | None) -> tuple[float | None, str]:
    """(value, "") or (None, why not)."""
    if answer is None:
        return None, f"the server has no namespace {point.namespace_uri}; check the profile's node"
    if answer.StatusCode is not None and not answer.StatusCode.is_good():
        return None, f"{answer.StatusCode.name}; see the server's own diagnosis"
    raw = _raw(answer)
    if not isinstance(raw, (bool, int, float)):
        return None, f"a {type(raw).__name__} where a number belongs; check the profile's node"
    value = codec.from_raw(point, float(raw))
    if value is None:
        return None, f"{raw} is implausible; expected {point.lowest} to {point.highest} {point.unit}"
    return value, ""


def _raw(answer: ua.DataValue) -> Any:
    return answer.Value.Value if answer.Value is not None else None


_T = TypeVar("_T")


async def _ask(call: Coroutine[Any, Any, _T], wait_max_s: float) -> _T:
    """Await the library within a bound. PeerError for whatever it raises: its decoders guard nothing.

    A server's odd bytes come out as KeyError or TypeError as readily as ConnectionError, and one odd server
    must not end the process that serves all others.
    """
    try:
        async with asyncio.timeout(wait_max_s):
            return await call
    except TimeoutError:
        raise PeerError(f"no answer within {wait_max_s:g} s") from None
    except Exception as error:
        raise PeerError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def _end_of(session: asyncio.Task[None]) -> str:
    """Why a session ended. A fault that is not the peer's is ours, and goes on up."""
    error = None if session.cancelled() else session.exception()
    if error is not None and not isinstance(error, PeerError):
        raise error
    return str(error or "the library gave up a request")


async def _leave(client: Client, session: asyncio.Task[None]) -> None:
    """Say goodbye within a bound, whatever state the client is in, then cut the line."""
    goodbye = asyncio.create_task(client.disconnect())
    try:
        await asyncio.wait({goodbye, session}, timeout=CLOSE_WAIT_MAX_S)
    finally:
        client.disconnect_socket()
        for task in (goodbye, session):
            task.cancel()
            task.add_done_callback(_heed)


def _heed(task: asyncio.Task[None]) -> None:
    """Take note of how a task ended: the line is cut, and there is nobody left to tell."""
    if not task.cancelled():
        task.exception()
