"""An OpenADR 3.1 VEN: asks a VTN what it wants of this site, and hears of changes at once.

OpenADR 3.1 has two wires. HTTPS holds the truth: programmes, events, who we are. MQTT, whose broker and
topics the VTN names, tells of changes: without sequence number, heartbeat or promise of delivery. So:
* one *round* over HTTPS does it all and is all there is: enrol, read programmes, ask for broker and topics,
  read events. A round comes every `poll_s`, after every connect of the broker (what happened meanwhile was
  missed), when the token wants renewal, and, after a fault, with jitter and back-off;
* between rounds, notifications pass through as they come. The receiver orders by modificationDateTime and
  drops duplicates: a round and a notification may tell the same thing, in either order;
* an event that is no longer listed is asked for by its id before it is reported as deleted: pages shift
  while they are read, and nobody may be released from a limit by a page boundary.
A VTN is somebody else's computer: every wait, body, page and list has a bound, and every fault of it is a
sentence in `status`. `run` ends only by cancellation or by a fault of the program.

HTTP by aiohttp: client and (for the simulator) server in one library, in active maintenance on one stable
line since 2016; httpx has had no stable release since 2024. Sources: OpenADR 3.1.0 openapi and Definition.
"""

import asyncio
import math
import random
import secrets
import ssl
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
import structlog

from protocols.mqtt import MqttConfigError, MqttLink, Subscription, Tls

REQUEST_WAIT_MAX_S: Final = 10.0  # a VTN answers in 0.1 s; ten times what a bad mobile line adds
ROUND_WAIT_MAX_S: Final = 60.0  # a round is some ten requests
ROUND_GAP_S: Final = 1.0  # between rounds, however often the broker flaps or a notification asks for one
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 60.0  # a VTN that comes back is asked within a minute
BODY_MAX_BYTES: Final = 2 * 1024 * 1024  # a page of PAGE_ITEMS events of 1,000 intervals is 1.6 MB
PAGE_ITEMS: Final = 20  # the standard allows 50; smaller pages keep a body small
ITEMS_MAX: Final = 1000  # of one listing; a site has tens of events
TARGETS_MAX: Final = 16  # each one is a query of its own; a site has one or two
PROGRAMS_MAX: Final = 64  # followed by topics of their own where the VTN has none for VENs
CONFIRMED_MAX: Final = 64  # vanished events asked for by id, per round; the rest waits for the next
KNOWN_MAX: Final = 4 * ITEMS_MAX  # event ids remembered, whatever a notifier floods us with
REPORTS_MAX: Final = 64  # waiting; the oldest makes room: of two reports the newer is worth more
REPORT_TRIES_MAX: Final = 5  # of one report that the VTN answers with a fault of its own
TOKEN_LIFE_MIN_S: Final = 2.0  # whatever `expires_in` says: tokens are not fetched in a tight loop
TOKEN_LIFE_MAX_S: Final = 86_400.0
TOKEN_RENEW_RATIO: Final = 0.8  # of its life: leaves time for retries
BROKER_DOWN_MAX_S: Final = 20.0  # then: a new token, the next address
BROKER_LOOK_S: Final = 0.5
BROKER_KEEPALIVE_S: Final = 30  # across the internet, not across a switch
STOP_WAIT_S: Final = 0.5  # a cancellation may be lost in the farewell to a broker: repeat it
TEXT_MAX_CHARS: Final = 120  # of what a VTN says about its own faults
FAULT_MAX_CHARS: Final = 500

# What the socket says, and what to do about it. First match wins: the special before the general.
HTTP_FAULTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        aiohttp.ClientConnectorCertificateError,
        "shows a certificate that our CA file or its host name disproves",
    ),
    (
        aiohttp.ClientSSLError,
        "does not agree on TLS: check that the port speaks TLS and wants our certificate",
    ),
    (aiohttp.ClientConnectorDNSError, "has no address: check the host name in the url, and DNS"),
    (TimeoutError, f"does not answer within {REQUEST_WAIT_MAX_S:g} s: check address, route and firewall"),
    (aiohttp.ClientConnectorError, "cannot be reached: check address, port and firewall"),
    (aiohttp.ServerDisconnectedError, "hung up without an answer"),
    (aiohttp.ClientPayloadError, "broke off in the middle of an answer"),
    (aiohttp.ClientResponseError, "does not speak HTTP as we know it"),
    (aiohttp.ClientError, "cannot be talked to"),
    (OSError, "cannot be reached"),
)
OTHER_FAULT: Final[tuple[type[BaseException], str]] = (Exception, "answers what HTTP does not allow")
# And what its answer says. 404 is not here: what it means depends on what was asked for.
STATUS_REMEDIES: Final[Mapping[int, str]] = {
    400: "it finds our request wrong",
    401: "it does not accept our token: check client id and secret",
    403: "it forbids that: ask its operator for the scope",
    404: "it does not know that: check the url, base path included",
    409: "the name is taken by another client: give this VEN its own",
    429: "it is asked too often: raise poll_s",
}
ABSENT: Final = frozenset({404, 405, 501})  # the endpoint does not exist: an older or a smaller VTN
GONE: Final = frozenset({403, 404, 410})  # an event by its id: deleted, or no longer ours to see
HAS_IT_ALREADY: Final = 409  # of a report

# What reaches us now: (the last round read all events, broker connected).
STATES: Final[Mapping[tuple[bool, bool], "State"]] = {
    (True, True): "following",
    (True, False): "polling",
    (False, True): "listening",
    (False, False): "blind",
}
State = Literal["starting", "following", "polling", "listening", "blind"]

log = structlog.get_logger(__name__)


class VenConfigError(ValueError):
    """The VEN cannot work as configured; the text names the culprit and the remedy."""


class VtnFault(Exception):  # noqa: N818  the word of this project for what is expected to go wrong
    """The VTN did not do its part; the text is a sentence for the operator. Other requests may succeed."""


class Refusal(VtnFault):
    """An answer, but not the one wished for."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Unreachable(VtnFault):
    """Nobody there, or no token: no other request will fare better now."""


@dataclass(frozen=True, kw_only=True)
class VenSettings:
    """Who we are, whom we ask.

    Attributes:
        url: base path of the VTN: `https://vtn.example/openadr3/3.1.0`.
        client_id: from the VTN's operator, with its secret.
        client_secret: not from the url: urls end up in logs.
        ven_name: unique at the VTN.
        resources: names to register below it.
        token_url: None: asked of the VTN at /auth/server, else its own /auth/token.
        scope: None: what the VTN grants by itself.
        ca_file: PEM of who vouches for VTN and broker (a file may hold several); None: the system's.
        cert_file: our own certificate, where the VTN or its broker asks for one.
        key_file: its key; None: in `cert_file` as well.
        plain: http:// and mqtt:// are allowed: laboratories only.
        poll_s: longest time between two rounds.
    """

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    ven_name: str
    resources: tuple[str, ...] = ()
    token_url: str | None = None
    scope: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    plain: bool = False
    poll_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("client_id", "client_secret", "ven_name"):
            if not getattr(self, name):
                raise VenConfigError(f"{name}: empty; the VTN's operator assigns it")
        if not self.poll_s > 0:
            raise VenConfigError(f"poll_s: {self.poll_s:g}; give seconds above 0, 60 is usual")
        for name, url in (("url", self.url), ("token_url", self.token_url)):
            if url is not None and (wrong := _url_fault(url, "https", plain=self.plain)):
                raise VenConfigError(f"{name}: {wrong}")
        try:
            _tls_context(self)
        except OSError as error:  # ssl.SSLError is one
            raise VenConfigError(
                f"ca_file {self.ca_file}, cert_file {self.cert_file}, key_file {self.key_file}: {error}; "
                "give readable PEM files that belong together"
            ) from error


@dataclass(frozen=True)
class VenStatus:
    """For a panel.

    Attributes:
        state: "following": rounds read all events and the broker is connected; "polling": rounds alone;
            "listening": the broker alone; "blind": neither; "starting": no round is over yet.
        fault: what is wrong, in one sentence; empty: nothing. A VTN without a notifier is no fault.
        last_success_s: time.monotonic() when all events were read last; below 0: never yet.
        ven_id: empty: not enrolled yet.
        broker: host:port; empty: the VTN names none.
        events: how many the VTN stands by, as far as we know.
        notifications: received from the broker since the start.
        reports_waiting: for the VTN to take them.
        reports_sent: taken by the VTN.
        reports_lost: refused by the VTN, or displaced by newer ones.
    """

    state: State
    fault: str
    last_success_s: float
    ven_id: str
    broker: str
    events: int
    notifications: int
    reports_waiting: int
    reports_sent: int
    reports_lost: int


@dataclass(frozen=True)
class Binding:
    """Where and as whom to hear notifications, as the VTN says."""

    uris: tuple[str, ...]
    topics: tuple[str, ...]
    shared: bool  # the topics carry events for other VENs, too
    username: str | None = None
    bearer: bool = False  # the token is the password
    ca_pem: str | None = field(default=None, repr=False)
    cert_pem: str | None = field(default=None, repr=False)
    key_pem: str | None = field(default=None, repr=False)


class Item(NamedTuple):
    raw: bytes  # as it came
    said: dict[str, Any]  # what that says


class Listing(NamedTuple):
    """What a VTN listed, all pages of it."""

    source: str
    items: tuple[Item, ...]  # objects with an id
    spoiled: int  # how many were no such thing

    def check(self) -> None:
        """One bad item does not hide the others, but neither does it pass unnoticed."""
        if self.spoiled:
            raise VtnFault(f"{self.source}: {self.spoiled} items without a readable id; the others count")


class Ven:
    """One VEN at one VTN.

    Args:
        settings: checked when made.
        on_message: called as (payload, retained) for every notification as it came, and for every event of
            every round, wrapped as an UPDATE; must be cheap. An exception in it ends `run`.
        on_program: called with every programme that is new or changed, as the VTN wrote it, before the
            events of the same round.
    """

    def __init__(
        self,
        settings: VenSettings,
        *,
        on_message: Callable[[bytes, bool], None],
        on_program: Callable[[dict[str, Any]], None],
    ) -> None:
        self._settings = settings
        self._on_message = on_message
        self._on_program = on_program
        self._vtn = VtnClient(settings)

        self._ven_id = ""
        self._targets: frozenset[str] = frozenset()  # granted to us and our resources
        self._programs: dict[str, bytes] = {}  # id -> as last told
        self._known: dict[str, int] = {}  # event id -> round that saw it last
        self._deleted: set[str] = set()  # by notification, since the round began
        self._round = 0
        self._wake = asyncio.Event()

        self._binding: Binding | None = None
        self._rebind = asyncio.Event()
        self._uri_turn = 0
        self._link: MqttLink | None = None
        self._broker_fault = ""

        self._reports: deque[bytes] = deque()
        self._report_wake = asyncio.Event()
        self._report_fault = ""

        self._round_faults: tuple[str, ...] = ()
        self._last_success_s = -1.0
        self._events_read: bool | None = None  # by the last round; None: there was none
        self._notifications = 0
        self._reports_sent = 0
        self._reports_lost = 0

    @property
    def status(self) -> VenStatus:
        link = self._link
        heard = link is not None and link.connected
        faults = [*self._round_faults, self._broker_fault, self._report_fault]
        if link is not None and not heard:
            faults.append(link.fault)
        return VenStatus(
            state="starting" if self._events_read is None else STATES[self._events_read, heard],
            fault="; ".join(filter(None, faults))[:FAULT_MAX_CHARS],
            last_success_s=self._last_success_s,
            ven_id=self._ven_id,
            broker="" if link is None else link.address,
            events=len(self._known),
            notifications=self._notifications,
            reports_waiting=len(self._reports),
            reports_sent=self._reports_sent,
            reports_lost=self._reports_lost,
        )

    async def report(self, report: Mapping[str, Any]) -> None:
        """Leaves a report for the VTN and returns; the oldest one waiting makes room when there are too many.

        Raises:
            ValueError: without eventID or resources, or not JSON: a fault of the caller.
        """
        missing = [name for name in ("eventID", "resources") if name not in report]
        if missing:
            raise ValueError(f"report: {', '.join(missing)} missing")
        try:
            body = msgspec.json.encode({"clientName": self._settings.ven_name, **report})
        except (TypeError, OverflowError) as error:
            raise ValueError(f"report: {error}") from error
        if len(self._reports) >= REPORTS_MAX:
            self._reports.popleft()
            self._reports_lost += 1
        self._reports.append(body)
        self._report_wake.set()

    async def run(self) -> None:
        """Follows the VTN until cancelled. Run it as one task of the service's TaskGroup."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._rounds(), name="ven rounds")
                tasks.create_task(self._hear(), name="ven notifier")
                tasks.create_task(self._post_reports(), name="ven reports")
        finally:
            await self._vtn.close()

    # -- rounds ---------------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            faults = await self._one_round()
            failures = failures + 1 if faults else 0
            if faults != self._round_faults:
                log.warning("ven round", faults=faults) if faults else log.info("ven round: all is well")
            self._round_faults = faults
            await self._pause(self._wait_s(failures))

    async def _one_round(self) -> tuple[str, ...]:
        """Enrol, programmes, broker, events. What one step cannot do does not keep the next from trying."""
        self._round += 1
        self._deleted.clear()
        began_at_s = time.monotonic()
        faults: list[str] = []
        try:
            async with asyncio.timeout(ROUND_WAIT_MAX_S):
                for step in (self._enrol, self._read_programs, self._discover, self._read_events):
                    try:
                        await step()
                    except Unreachable:
                        raise
                    except VtnFault as fault:
                        faults.append(str(fault))
        except Unreachable as fault:
            faults.append(str(fault))
        except TimeoutError:
            faults.append(f"{self._vtn.name} needs more than {ROUND_WAIT_MAX_S:g} s for all we ask")
        self._events_read = self._last_success_s >= began_at_s
        return tuple(faults)

    def _wait_s(self, failures: int) -> float:
        """Jittered, so that the VENs of a region do not return as one."""
        if failures:
            return min(self._settings.poll_s, _retry_s(failures))
        poll_s = self._settings.poll_s * random.uniform(0.75, 1.0)  # noqa: S311  jitter
        return min(poll_s, self._vtn.renewal_due_in_s())

    async def _pause(self, wait_s: float) -> None:
        await asyncio.sleep(ROUND_GAP_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s - ROUND_GAP_S)):
                await self._wake.wait()

    async def _enrol(self) -> None:
        """Our VEN and its resources: found by name, else made. Tells which targets we have been granted."""
        name = self._settings.ven_name
        ven = await self._find_or_make("vens", {"venName": name}, {"objectType": "VEN_VEN_REQUEST"})
        self._ven_id = _id(ven)
        targets = set(_target_names(ven))
        faults = []
        for resource in self._settings.resources:
            keys = {"venID": self._ven_id, "resourceName": resource}
            try:
                made = await self._find_or_make("resources", keys, {"objectType": "VEN_RESOURCE_REQUEST"})
            except Refusal as refusal:  # what the others have been granted counts all the same
                faults.append(f"resource {resource}: {refusal}")
            else:
                targets.update(_target_names(made))
        self._targets = frozenset(sorted(targets)[:TARGETS_MAX])
        if len(targets) > TARGETS_MAX:
            faults.append(f"{self._vtn.name} grants us {len(targets)} targets, {TARGETS_MAX} are asked for")
        if faults:
            raise VtnFault("; ".join(faults))

    async def _find_or_make(self, path: str, keys: dict[str, str], more: dict[str, str]) -> dict[str, Any]:
        """The object whose attributes equal `keys`: a VTN may ignore the query and list them all."""
        for item in (await self._vtn.listing(path, keys)).items:
            said = _fold(item.said)
            if all(said.get(_folded(key), value) == value for key, value in keys.items()):
                return said
        made = _fold(_decoded(await self._vtn.call("POST", path, body=msgspec.json.encode(more | keys))))
        if not _id(made):
            raise VtnFault(f"{self._vtn.name} POST /{path}: its answer has no id")
        return made

    async def _read_programs(self) -> None:
        listing = await self._vtn.listing("programs")
        for item in listing.items:
            self._tell_program(item.said)
        listing.check()

    async def _read_events(self) -> None:
        """All events for us, and of those known before this round, the ones that are no more."""
        listed: set[str] = set()
        listings: list[Listing] = []
        # One query without target and one for each: some VTNs want every target of a query to match.
        for target in (None, *sorted(self._targets)):
            query = {} if target is None else {"targets": target}
            listings.append(await self._vtn.listing("events", query))
            for item in listings[-1].items:
                if self._is_ours(item.said) and self._tell_event(*item):
                    listed.add(_id(_fold(item.said)))
                await asyncio.sleep(0)  # a large event costs milliseconds: others want to run in between
        vanished = [name for name, seen in self._known.items() if seen < self._round and name not in listed]
        for event_id in vanished[:CONFIRMED_MAX]:
            await self._confirm(event_id)
        self._last_success_s = time.monotonic()
        for listing in listings:
            listing.check()

    async def _confirm(self, event_id: str) -> None:
        """Tells what became of an event that is not listed any more."""
        try:
            raw = await self._vtn.call("GET", f"events/{quote(event_id, safe='')}")
        except Refusal as refusal:
            if refusal.status not in GONE:
                raise
        else:
            said = _decoded(raw)
            if self._is_ours(said) and self._tell_event(raw, said):
                return
        if self._known.pop(event_id, None) is not None:  # unless a notification was faster
            gone = {"id": event_id, "objectType": "EVENT"}
            self._on_message(_wrapped(msgspec.json.encode(gone), "DELETE"), False)

    def _tell_event(self, raw: bytes, said: dict[str, Any]) -> bool:
        """False: not an event at all. One deleted while the list was on its way stays deleted."""
        event_id = _id(_fold(said))
        if not event_id:
            return False
        if event_id not in self._deleted:
            self._remember(event_id)
            self._on_message(_wrapped(raw, "UPDATE"), False)
        return True

    def _tell_program(self, program: dict[str, Any]) -> None:
        program_id = _id(_fold(program))
        text = msgspec.json.encode(program)
        if not program_id or self._programs.get(program_id) == text:
            return
        self._programs.pop(program_id, None)
        _make_room(self._programs, ITEMS_MAX)
        self._programs[program_id] = text
        self._on_program(program)

    def _remember(self, event_id: str) -> None:
        self._known.pop(event_id, None)  # the newest stand last
        _make_room(self._known, KNOWN_MAX)
        self._known[event_id] = self._round

    def _is_ours(self, event: dict[str, Any]) -> bool:
        """Without targets, for everybody; else one of them must name or describe us."""
        targets = set(_target_names(_fold(event)))
        ours = {self._ven_id, self._settings.ven_name, *self._settings.resources, *self._targets}
        return not targets or not targets.isdisjoint(ours)

    # -- notifications --------------------------------------------------------------------------------------

    async def _discover(self) -> None:
        """Which broker, as whom, on which topics. The VTN may change its mind at any time."""
        try:
            notifiers = _fold(_decoded(await self._vtn.call("GET", "notifiers")))
        except Refusal as refusal:
            if refusal.status not in ABSENT:
                raise
            notifiers = {}
        said = notifiers.get("mqtt")
        binding = None
        if isinstance(said, dict):
            topics, shared = await self._topics()
            binding = _binding(_fold(said), topics, self._settings, shared=shared)
        if binding != self._binding:
            self._binding = binding
            self._rebind.set()

    async def _topics(self) -> tuple[tuple[str, ...], bool]:
        """Topic filters, and whether they carry events for others, too: not every VTN has them per VEN."""
        own = await self._asked_topics(f"vens/{self._ven_id}/events") if self._ven_id else ()
        if own:
            return (*own, *await self._asked_topics(f"vens/{self._ven_id}/programs")), False
        found = list(await self._asked_topics("programs"))
        for program_id in list(self._programs)[-PROGRAMS_MAX:]:
            found += await self._asked_topics(f"programs/{quote(program_id, safe='')}/events")
        return tuple(dict.fromkeys(found)), True

    async def _asked_topics(self, path: str) -> tuple[str, ...]:
        """The VTN's names for CREATE, UPDATE and DELETE, or for all; empty: it has none for that."""
        try:
            said = _fold(_decoded(await self._vtn.call("GET", f"notifiers/mqtt/topics/{path}")))
        except Refusal as refusal:
            if refusal.status in GONE | ABSENT:
                return ()
            raise
        topics = said.get("topics")
        if not isinstance(topics, dict):
            raise VtnFault(f"{self._vtn.name} names no topics for {path}: its answer has no `topics`")
        names = _fold(topics)
        single = [name for verb in ("create", "update", "delete") if (name := _text(names, verb))]
        return tuple(single) or tuple(filter(None, [_text(names, "all")]))

    async def _hear(self) -> None:
        """One connection to the broker the VTN names; a new one whenever it names another."""
        while True:
            self._rebind.clear()
            self._broker_fault = ""
            if self._binding is not None:
                try:
                    await self._hear_one(self._binding)
                except (MqttConfigError, VtnFault) as fault:
                    self._broker_fault = f"the VTN's notifier cannot be used: {fault}"
                else:
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(BROKER_DOWN_MAX_S):
                    await self._rebind.wait()

    async def _hear_one(self, binding: Binding) -> None:
        """Returns when the binding has changed, or when the broker is away for too long."""
        uri = binding.uris[self._uri_turn % len(binding.uris)]
        password = await self._vtn.token() if binding.bearer else None
        with tempfile.TemporaryDirectory(prefix="ven-") as folder:  # readable by its owner alone
            self._link = MqttLink(
                uri,
                client_id=f"ven{secrets.token_hex(8)}",
                on_message=self._on_notification,
                on_connect=self._wake.set,
                subscriptions=tuple(Subscription(topic, 1) for topic in binding.topics),
                username=binding.username,
                password=password,
                tls=_broker_tls(uri, binding, self._settings, Path(folder)),
                keepalive_s=BROKER_KEEPALIVE_S,
            )
            task = asyncio.create_task(self._link.run(), name="ven broker")
            try:
                await self._watch(self._link, task, binding)
            finally:
                self._link = None
                while not task.done():
                    task.cancel()
                    await asyncio.wait({task}, timeout=STOP_WAIT_S)
        if not task.cancelled():
            task.result()  # ends by itself only when a callback failed: a fault of the program

    async def _watch(self, link: MqttLink, task: asyncio.Task[None], binding: Binding) -> None:
        up_at_s = time.monotonic()
        while not self._rebind.is_set() and not task.done():
            if link.connected:
                up_at_s = time.monotonic()
            elif time.monotonic() - up_at_s > BROKER_DOWN_MAX_S:
                self._uri_turn += 1
                self._vtn.drop_token()  # it may be what the broker dislikes
                self._wake.set()
                return
            if binding.bearer:
                link.password = self._vtn.newest_token
            await asyncio.wait({task}, timeout=BROKER_LOOK_S)

    def _on_notification(self, _topic: str, payload: bytes, retained: bool) -> None:
        """Passes it on as it is, were it garbage: who judges it also keeps the record."""
        self._notifications += 1
        try:
            said = _fold(_decoded(payload))
        except VtnFault:
            self._on_message(payload, retained)
            return
        thing = said.get("object")
        thing = thing if isinstance(thing, dict) else {}
        deleted = str(said.get("operation")).upper() == "DELETE"
        if said.get("objecttype") == "PROGRAM":
            if not deleted:
                self._tell_program(thing)
            return
        if self._note_event(thing, deleted=deleted):
            self._on_message(payload, retained)

    def _note_event(self, event: dict[str, Any], *, deleted: bool) -> bool:
        """Keeps account of an event that a notification tells of. False: it is for somebody else."""
        event_id = _id(_fold(event))
        known = event_id in self._known
        shared = self._binding is None or self._binding.shared
        if deleted:
            self._known.pop(event_id, None)
            if event_id and len(self._deleted) < KNOWN_MAX:
                self._deleted.add(event_id)
            return known or not shared or self._is_ours(event)
        if shared and not self._is_ours(event):
            if known:  # it was ours until now: let the VTN say what became of it
                self._wake.set()
            return False
        if event_id:
            self._deleted.discard(event_id)
            self._remember(event_id)
        if _fold(event).get("programid") not in self._programs:
            self._wake.set()
        return True

    # -- reports --------------------------------------------------------------------------------------------

    async def _post_reports(self) -> None:
        failures = 0
        while True:
            self._report_wake.clear()
            while self._reports:
                body = self._reports[0]
                try:
                    await self._post(body)
                except VtnFault as fault:
                    failures += 1
                    self._report_fault = f"report: {fault}"
                    if self._is_lost(fault, failures):
                        self._drop_report(body)
                        failures = 0
                    else:
                        await asyncio.sleep(_retry_s(failures))
                    continue
                self._reports_sent += 1
                self._report_fault, failures = "", 0
                self._drop_report(body, lost=False)
            await self._report_wake.wait()

    async def _post(self, body: bytes) -> None:
        try:
            await self._vtn.call("POST", "reports", body=body)
        except Refusal as refusal:
            if refusal.status != HAS_IT_ALREADY:  # its first answer was lost on the way
                raise

    def _is_lost(self, fault: VtnFault, failures: int) -> bool:
        """What the VTN judges wrong stays wrong; its own faults pass, or the next report may fare better."""
        if isinstance(fault, Unreachable):
            return False
        wrong = isinstance(fault, Refusal) and 400 <= fault.status < 500 and fault.status not in (401, 429)
        return wrong or failures >= REPORT_TRIES_MAX

    def _drop_report(self, body: bytes, *, lost: bool = True) -> None:
        if self._reports and self._reports[0] is body:  # else a newer one has displaced it, and was counted
            self._reports.popleft()
            self._reports_lost += lost


class VtnClient:
    """Requests to one VTN, with a valid token, within bounds. Every fault is a VtnFault."""

    def __init__(self, settings: VenSettings) -> None:
        self._settings = settings
        self._base = settings.url.rstrip("/")
        self._http: aiohttp.ClientSession | None = None
        self._token_lock = asyncio.Lock()
        self._renew_at_s = math.inf
        self.newest_token: str | None = None
        self.name = f"VTN {urlsplit(settings.url).netloc}"

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes | None = None,
    ) -> bytes:
        """The body of a successful answer. A token that is refused is renewed, once.

        Raises:
            Refusal: any status but 2xx.
            VtnFault: no usable answer: too late, too long.
            Unreachable: no connection, or no token.
        """
        what = f"{self.name} {method} /{path}"
        for renewed in (False, True):
            headers = {"Authorization": f"Bearer {await self.token()}"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            status, said = await self._exchange(
                method, f"{self._base}/{path}", headers=headers, params=query, data=body
            )
            if status != 401 or renewed:
                break
            self.drop_token()
        if not 200 <= status < 300:
            raise Refusal(f"{what}: {status}{_remedy(status)}{_problem(said)}", status)
        return said

    async def listing(self, path: str, query: Mapping[str, str | int] | None = None) -> Listing:
        """All pages of a list, each item as it came.

        Raises:
            VtnFault: as `call`; also for what is not a list, and for more than ITEMS_MAX items.
        """
        items: dict[str, Item] = {}
        skip = spoiled = 0
        while True:
            paged = {**(query or {}), "skip": skip, "limit": PAGE_ITEMS}
            page = _decoded_list(await self.call("GET", path, query=paged), f"{self.name} GET /{path}")
            known = len(items)
            for raw in page[: ITEMS_MAX + 1]:
                item = _item(bytes(raw))
                if item is None:
                    spoiled += 1
                else:
                    items[_id(_fold(item.said))] = item
                await asyncio.sleep(0)
            if max(len(items), spoiled) > ITEMS_MAX:
                raise VtnFault(
                    f"{self.name} GET /{path}: more than {ITEMS_MAX} items; narrow what we may see"
                )
            # A page without news: the VTN does not know how to skip and has told all it will.
            if len(page) < PAGE_ITEMS or len(items) == known:
                return Listing(f"{self.name} GET /{path}", tuple(items.values()), spoiled)
            skip += len(page)

    async def token(self) -> str:
        """A token that is still good for a while."""
        async with self._token_lock:  # rounds, reports and the broker ask at the same time
            if self.newest_token is None or time.monotonic() >= self._renew_at_s:
                self.newest_token, life_s = await self._new_token()
                self._renew_at_s = time.monotonic() + life_s * TOKEN_RENEW_RATIO
            return self.newest_token

    def drop_token(self) -> None:
        self._renew_at_s = -math.inf

    def renewal_due_in_s(self) -> float:
        return max(0.0, self._renew_at_s - time.monotonic())

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _new_token(self) -> tuple[str, float]:
        settings = self._settings
        form = {
            "grant_type": "client_credentials",
            "client_id": settings.client_id,
            "client_secret": settings.client_secret,
        }
        if settings.scope:
            form["scope"] = settings.scope
        try:
            url = settings.token_url or await self._token_url()
            status, said = await self._exchange("POST", url, data=form)
            return _token(status, said)
        except Unreachable:
            raise
        except VtnFault as fault:
            raise Unreachable(f"{self.name} gives no token: {fault}") from fault

    async def _token_url(self) -> str:
        """As the VTN says; where it does not say, the place the standard suggests."""
        status, said = await self._exchange("GET", f"{self._base}/auth/server")
        if status in ABSENT | {401, 403}:
            return f"{self._base}/auth/token"
        if not 200 <= status < 300:
            raise Refusal(f"GET /auth/server: {status}{_problem(said)}", status)
        url = _text(_fold(_decoded(said)), "tokenurl") or ""
        if wrong := _url_fault(url, "https", plain=self._settings.plain):
            raise VtnFault(f"it names a token url that is not to be trusted with our secret: {wrong}")
        return url

    async def _exchange(self, method: str, url: str, **request: Any) -> tuple[int, bytes]:
        """One request: status and body, whatever they are."""
        what = f"{self.name} {method} {urlsplit(url).path}"
        try:
            async with asyncio.timeout(REQUEST_WAIT_MAX_S):
                http = self._session()
                async with http.request(method, url, allow_redirects=False, **request) as answer:
                    body = bytearray()
                    async for chunk in answer.content.iter_any():
                        body += chunk
                        if len(body) > BODY_MAX_BYTES:
                            raise VtnFault(f"{what}: an answer of more than {BODY_MAX_BYTES} bytes")
                    return answer.status, bytes(body)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            told = f"{what}: {_sentence(error)}"
            if isinstance(error, aiohttp.ClientConnectorError):
                await self.close()  # the next one reads the TLS files anew: a certificate may be renewed
                raise Unreachable(told) from error
            raise VtnFault(told) from error

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=_tls_context(self._settings)),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # a small body must not become a large one
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, connect=REQUEST_WAIT_MAX_S / 2),
            )
        return self._http


# -- what the VTN says --------------------------------------------------------------------------------------


def _binding(
    said: dict[str, Any], topics: tuple[str, ...], settings: VenSettings, *, shared: bool
) -> Binding:
    """A broker we may use, out of an answer to GET /notifiers.

    Raises:
        VtnFault: nothing in it that we may use.
    """
    if _text(said, "serialization") not in (None, "JSON"):
        raise VtnFault(f"the VTN's notifier speaks {_shown(said['serialization'])}, not JSON")
    uris = said.get("uris")
    offered = [uri for uri in uris if isinstance(uri, str)] if isinstance(uris, list) else []
    usable = tuple(uri for uri in offered if not _url_fault(uri, "mqtts", plain=settings.plain))
    if not usable:
        first = _url_fault(offered[0], "mqtts", plain=settings.plain) if offered else "no address at all"
        raise VtnFault(f"the VTN's notifier: {first}")
    if not topics:
        raise VtnFault("the VTN names a notifier, but no topic to hear on it")
    auth = said.get("authentication")
    auth = _fold(auth) if isinstance(auth, dict) else {}
    method = _text(auth, "method") or "ANONYMOUS"
    if method == "ANONYMOUS":
        return Binding(usable, topics, shared)
    if method == "OAUTH2_BEARER_TOKEN":
        username = (_text(auth, "username") or "{clientID}").replace("{clientID}", settings.client_id)
        return Binding(usable, topics, shared, username=username, bearer=True)
    if method == "CERTIFICATE":
        pems = [_text(auth, name) for name in ("cacert", "clientcert", "clientkey")]
        return Binding(usable, topics, shared, None, False, *pems)
    raise VtnFault(f"the VTN's notifier wants authentication by {_shown(method)}, which OpenADR 3.1 has not")


def _broker_tls(uri: str, binding: Binding, settings: VenSettings, folder: Path) -> Tls | None:
    """The VTN's PEM texts as files, since files are what TLS libraries read; else those of the settings."""
    if urlsplit(uri).scheme == "mqtt":
        return None
    texts = {"ca.pem": binding.ca_pem, "cert.pem": binding.cert_pem, "key.pem": binding.key_pem}
    files: dict[str, str | None] = dict.fromkeys(texts)
    for name, text in texts.items():
        if text is not None:
            path = folder / name
            path.write_text(text)
            files[name] = str(path)
    if files["cert.pem"] is None:
        files |= {"cert.pem": settings.cert_file, "key.pem": settings.key_file}
    return Tls(files["ca.pem"] or settings.ca_file, files["cert.pem"], files["key.pem"])


def _url_fault(url: str, safe_scheme: str, *, plain: bool) -> str:
    """What is wrong with it; empty: nothing."""
    allowed = {safe_scheme, safe_scheme[:-1]} if plain else {safe_scheme}
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"{_shown(url)}: {error}; use {safe_scheme}://host"
    if parts.scheme + "s" == safe_scheme and not plain:
        return f"{_shown(url)} is not encrypted; use {safe_scheme}://, or set plain: true in a laboratory"
    if parts.scheme not in allowed or not parts.hostname:
        return f"{_shown(url)}: use {safe_scheme}://host"
    if parts.username is not None or parts.password is not None:
        return f"{parts.hostname}: a password in a url ends up in logs; give it on its own"
    return ""


def _tls_context(settings: VenSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file is not None:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def _decoded(raw: bytes) -> dict[str, Any]:
    said = _json(raw)
    if not isinstance(said, dict):
        raise VtnFault(f"the VTN says {_shown(said)} where a JSON object belongs")
    return cast("dict[str, Any]", said)


def _decoded_list(raw: bytes, what: str) -> list[msgspec.Raw]:
    try:
        return _items_decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise VtnFault(f"{what}: not a JSON list: {_shown(raw)}") from error


def _json(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise VtnFault(f"the VTN does not speak JSON: {_shown(raw)}") from error


_items_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def _item(raw: bytes) -> Item | None:
    """None: not an object with an id."""
    try:
        said = _decoded(raw)
    except VtnFault:
        return None
    return Item(raw, said) if _id(_fold(said)) else None


def _wrapped(raw: bytes, operation: str) -> bytes:
    """A notification about an object, whose bytes stay as they came: no number is rounded on the way."""
    return b'{"objectType":"EVENT","operation":"' + operation.encode() + b'","object":' + raw + b"}"


def _folded(key: str) -> str:
    return key.replace("_", "").lower()


def _fold(said: Mapping[str, Any]) -> dict[str, Any]:
    """camelCase, snake_case and UPPER CASE are all met in the field."""
    return {_folded(key): value for key, value in said.items()}


def _id(folded: Mapping[str, Any]) -> str:
    return _text(folded, "id") or ""


def _text(folded: Mapping[str, Any], key: str) -> str | None:
    value = folded.get(key)
    return value if isinstance(value, str) and value else None


def _target_names(folded: Mapping[str, Any]) -> Iterable[str]:
    """Strings in 3.1; {type, values} in 3.0, where the values are what names us."""
    targets = folded.get("targets")
    for target in targets if isinstance(targets, list) else []:
        values = target.get("values") if isinstance(target, dict) else [target]
        yield from (value for value in values if isinstance(value, str)) if isinstance(values, list) else ()


def _token(status: int, body: bytes) -> tuple[str, float]:
    """The token in an answer of the token endpoint, and for how long it is good."""
    if not 200 <= status < 300:
        raise Refusal(f"{status}{_problem(body)}; check client id and secret", status)
    try:
        answer = _fold(_decoded(body))
    except VtnFault:  # whose sentence would show it, and a token in the wrong format is still a token
        raise VtnFault("the answer is not a JSON object") from None
    token = _text(answer, "accesstoken")
    if not token or not token.isascii() or not token.isprintable():
        raise VtnFault("the answer has no usable access_token")
    return token, _life_s(answer.get("expiresin"))


def _life_s(expires_in: object) -> float:
    """`expires_in` of a token: seconds, as a number or, against the standard, as text; else a day."""
    try:
        life_s = float(cast("Any", expires_in))
    except (TypeError, ValueError, OverflowError):
        return TOKEN_LIFE_MAX_S
    return min(max(life_s, TOKEN_LIFE_MIN_S), TOKEN_LIFE_MAX_S) if life_s == life_s else TOKEN_LIFE_MAX_S  # noqa: PLR0124  nan


def _problem(body: bytes) -> str:
    """What the VTN's `problem` object says, as the end of a sentence."""
    try:
        said = _fold(_decoded(body))
    except VtnFault:
        return ""
    texts = [text for key in ("title", "detail", "error", "errordescription") if (text := _text(said, key))]
    return f" ({_shown(', '.join(texts))})" if texts else ""


def _remedy(status: int) -> str:
    if 300 <= status < 400:
        return ", a redirection: our token goes only where the settings say; put the new address there"
    remedy = STATUS_REMEDIES.get(status)
    return f", {remedy}" if remedy else ""


def _sentence(error: BaseException) -> str:
    text = next(text for kind, text in (*HTTP_FAULTS, OTHER_FAULT) if isinstance(error, kind))
    told = str(error)
    return f"{text} ({_shown(told)})" if told else text


def _shown(value: object) -> str:
    """Text of a stranger, safe in one line of a log."""
    if isinstance(value, bytes):
        value = value[:TEXT_MAX_CHARS].decode(errors="replace")
    text = value if isinstance(value, str) else repr(value)
    shown = "".join(sign if sign.isprintable() else "?" for sign in text[:TEXT_MAX_CHARS])
    return shown if len(text) <= TEXT_MAX_CHARS else f"{shown}..."


def _make_room(book: dict[str, Any], most: int) -> None:
    while len(book) >= most:
        del book[next(iter(book))]


def _retry_s(failures: int) -> float:
    ceiling_s = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(failures - 1, 10))
    return random.uniform(ceiling_s / 2, ceiling_s)  # noqa: S311  jitter
