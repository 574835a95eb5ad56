"""The VEN itself: rounds over HTTPS, notifications between them, reports the other way.

Three tasks share one client and one register. What one step of a round cannot do does not keep the next from
trying; what no step can do is waited for, with jitter and back-off.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
import structlog

from protocols.ven.client import VtnClient, retry_s
from protocols.ven.faults import GONE, Refusal, Unreachable, VtnFault
from protocols.ven.notifier import Notifier
from protocols.ven.outbox import Outbox
from protocols.ven.reading import (
    Item,
    Listing,
    decoded,
    folded,
    item,
    notification,
    target_names,
    wrapped,
)
from protocols.ven.register import Register
from protocols.ven.settings import VenSettings

ROUND_WAIT_MAX_S: Final = 60.0  # a round is some ten requests
ROUND_GAP_S: Final = 1.0  # between rounds, however often the broker flaps or a notification asks for one
TARGETS_MAX: Final = 16  # each one is a query of its own; a site has one or two
ROOM_LOOK_S: Final = 0.05  # while the owner is busy: about one beat of it
CONFIRMED_MAX: Final = 64  # vanished events asked for by id, per round; the rest waits for the next
FAULT_MAX_CHARS: Final = 500

State = Literal["starting", "following", "polling", "listening", "blind"]
# What reaches us now: (the last round read all events, broker connected).
STATES: Final[Mapping[tuple[bool, bool], State]] = {
    (True, True): "following",
    (True, False): "polling",
    (False, True): "listening",
    (False, False): "blind",
}

log = structlog.get_logger(__name__)


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


class Ven:
    """One VEN at one VTN. An exception in one of its callbacks ends `run`.

    Args:
        settings: checked when made.
        on_message: called as (payload, retained) for every notification as it came, and for every event of
            every round, wrapped as an UPDATE; must be cheap.
        on_program: called with every programme that a round finds new or changed, as the VTN wrote it, before
            the events of the same round.
        on_round: called after every round and the last event it tells; True: we are enrolled and it has read
            all events of the VTN, so the VTN is alive and has told what it wants of us.
        known_event_ids: of events told in an earlier life: those that are no more are reported as deleted.
        has_room: whether `on_message` may be called now: a round waits for it, within ROUND_WAIT_MAX_S;
            notifications do not.
    """

    def __init__(
        self,
        settings: VenSettings,
        *,
        on_message: Callable[[bytes, bool], None],
        on_program: Callable[[dict[str, Any]], None],
        on_round: Callable[[bool], None] | None = None,
        known_event_ids: Collection[str] = (),
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._on_message = on_message
        self._on_program = on_program
        self._on_round = on_round
        self._has_room = has_room
        self._vtn = VtnClient(settings)
        self._register = Register((settings.ven_name, *settings.resources))
        self._register.remember(known_event_ids)
        self._grants_known = False  # this round has read all targets that we and our resources were granted
        self._outbox = Outbox(self._vtn)
        self._wake = asyncio.Event()
        self._notifier = Notifier(
            settings, self._vtn, on_notification=self._on_notification, on_gap=self._wake.set
        )
        self._round_faults: tuple[str, ...] = ()
        self._last_success_s = -1.0
        self._events_read: bool | None = None  # by the last round; None: there was none
        self._notifications = 0

    @property
    def status(self) -> VenStatus:
        notifier, outbox = self._notifier, self._outbox
        heard = notifier.is_heard
        faults = filter(None, [*self._round_faults, notifier.fault, outbox.fault])
        return VenStatus(
            state="starting" if self._events_read is None else STATES[self._events_read, heard],
            fault="; ".join(faults)[:FAULT_MAX_CHARS],
            last_success_s=self._last_success_s,
            ven_id=self._register.ven_id,
            broker=notifier.address,
            events=self._register.event_count,
            notifications=self._notifications,
            reports_waiting=outbox.waiting,
            reports_sent=outbox.sent,
            reports_lost=outbox.lost,
        )

    def report(self, report: Mapping[str, Any]) -> None:
        """Leaves a report for the VTN and returns; the oldest one waiting makes room when there are too many.

        Raises:
            ValueError: without eventID or resources, or not JSON: a fault of the caller.
        """
        missing = [name for name in ("eventID", "resources") if name not in report]
        if missing:
            raise ValueError(f"report: {', '.join(missing)} missing")
        try:
            self._outbox.put(msgspec.json.encode({"clientName": self._settings.ven_name, **report}))
        except (TypeError, OverflowError) as error:
            raise ValueError(f"report: {error}") from error

    def refresh(self, known_event_ids: Collection[str] = ()) -> None:
        """Asks for a round soon, for a receiver that has lost messages. At most one comes per ROUND_GAP_S.

        Args:
            known_event_ids: what the receiver stands by: it may have lost that one of them was deleted.
        """
        self._register.remember(known_event_ids)
        self._wake.set()

    async def run(self) -> None:
        """Follows the VTN until cancelled. Run it as one task of the service's TaskGroup."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._rounds(), name="ven rounds")
                tasks.create_task(self._notifier.run(), name="ven notifier")
                tasks.create_task(self._outbox.run(), name="ven reports")
        finally:
            await self._vtn.close()

    # -- rounds ---------------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            began_at_s = time.monotonic()
            faults = await self._one_round()
            failures = failures + 1 if faults else 0
            if faults != self._round_faults:
                log.warning("ven round", faults=faults) if faults else log.info("ven round: all is well")
            self._round_faults = faults
            self._events_read = self._last_success_s >= began_at_s
            if self._on_round is not None:
                self._on_round(self._events_read and bool(self._register.ven_id))
            await self._pause(self._wait_s(failures))

    async def _one_round(self) -> tuple[str, ...]:
        """Enrol, programmes, broker, events. What one step cannot do does not keep the next from trying."""
        self._register.begin_round()
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
            who = f"{self._vtn.name} needs" if self._has_room() else "the site, told too much at once, took"
            faults.append(f"{who} more than {ROUND_WAIT_MAX_S:g} s for all we ask")
        return tuple(faults)

    def _wait_s(self, failures: int) -> float:
        """Jittered, so that the VENs of a region do not return as one."""
        if failures:
            return min(self._settings.poll_s, retry_s(failures))
        poll_s = self._settings.poll_s * random.uniform(0.75, 1.0)  # noqa: S311  jitter
        return min(poll_s, self._vtn.renewal_due_in_s())

    async def _pause(self, wait_s: float) -> None:
        await asyncio.sleep(ROUND_GAP_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s - ROUND_GAP_S)):
                await self._wake.wait()

    async def _enrol(self) -> None:
        """Our VEN and its resources: found by name, else made. Tells which targets we have been granted."""
        self._grants_known = False
        name = self._settings.ven_name
        ven = await self._find_or_make("vens", {"venName": name}, {"objectType": "VEN_VEN_REQUEST"})
        self._register.ven_id = ven.id
        targets = set(target_names(ven.said))
        faults = []
        for resource in self._settings.resources:
            keys = {"venID": ven.id, "resourceName": resource}
            try:
                made = await self._find_or_make("resources", keys, {"objectType": "VEN_RESOURCE_REQUEST"})
            except Refusal as refusal:  # what the others have been granted counts all the same
                faults.append(f"resource {resource}: {refusal}")
            else:
                targets.update(target_names(made.said))
        self._register.targets = frozenset(sorted(targets)[:TARGETS_MAX])
        if len(targets) > TARGETS_MAX:
            faults.append(f"{self._vtn.name} grants us {len(targets)} targets, {TARGETS_MAX} are asked for")
        if faults:
            raise VtnFault("; ".join(faults))
        self._grants_known = True

    async def _find_or_make(self, path: str, keys: dict[str, str], more: dict[str, str]) -> Item:
        """The object whose attributes equal `keys`: a VTN may ignore the query and list them all."""
        for found in (await self._vtn.listing(path, keys)).items:
            if all(found.said.get(folded(key), value) == value for key, value in keys.items()):
                return found
        made = item(await self._vtn.call("POST", path, body=msgspec.json.encode(more | keys)))
        if made is None:
            raise VtnFault(f"{self._vtn.name} POST /{path}: its answer has no id")
        return made

    async def _read_programs(self) -> None:
        listing = await self._vtn.listing("programs")
        for program in listing.items:
            if self._register.enter_program(program.id, program.raw):
                self._on_program(decoded(program.raw))
                await asyncio.sleep(0)  # a large one costs milliseconds: others want to run in between
        listing.check()
        self._register.keep_programs({program.id for program in listing.items})

    async def _discover(self) -> None:
        await self._notifier.discover(self._register.ven_id, self._register.program_ids)

    async def _read_events(self) -> None:
        """All events for us, and of those known before this round, the ones that are no more."""
        listings: list[Listing] = []
        # One query without target and one for each: some VTNs want every target of a query to match.
        for target in (None, *sorted(self._register.targets)):
            query = {} if target is None else {"targets": target}
            listings.append(await self._vtn.listing("events", query))
            for event in listings[-1].items:
                await self._room()
                self._tell_event(*event)
                await asyncio.sleep(0)  # a large event costs milliseconds: others want to run in between
        for event_id in self._register.vanished()[:CONFIRMED_MAX]:
            await self._confirm(event_id)
        self._last_success_s = time.monotonic()
        for listing in listings:
            listing.check()

    async def _confirm(self, event_id: str) -> None:
        """Tells what became of an event that is not listed any more."""
        path = f"events/{quote(event_id, safe='')}"
        event = None
        try:
            event = item(await self._vtn.call("GET", path))
        except Refusal as refusal:
            if refusal.status not in GONE:
                raise
        else:
            if event is None or event.id != event_id:
                raise VtnFault(f"{self._vtn.name} GET /{path}: its answer is about something else")
        await self._room()
        if event is not None and (self._tell_event(*event) or not self._grants_known):
            return  # not for us, perhaps, but for a target that we may have: nobody is released by a guess
        if event_id in self._register.vanished():  # unless a notification was faster
            self._register.drop(event_id)
            gone = {"id": event_id, "objectType": "EVENT"}
            self._on_message(wrapped(msgspec.json.encode(gone), "DELETE"), False)

    async def _room(self) -> None:
        while not self._has_room():  # noqa: ASYNC110  how much room there is, only the owner knows
            await asyncio.sleep(ROOM_LOOK_S)

    # -- what is told ---------------------------------------------------------------------------------------

    def _tell_event(self, raw: bytes, said: dict[str, Any]) -> bool:
        """Of a round. False: it is not for us."""
        if not self._register.is_ours(said):
            return False
        if self._register.enter_listed(said["id"]):
            self._on_message(wrapped(raw, "UPDATE"), False)
        return True

    def _on_notification(self, _topic: str, payload: bytes, retained: bool) -> None:
        """Passes it on as it is, were it garbage: who judges it also keeps the record."""
        self._notifications += 1
        try:
            told = notification(payload)
        except VtnFault:
            self._on_message(payload, retained)
            return
        if told.type == "PROGRAM":
            self._wake.set()  # a round reads them: bounded, and not in the socket's read event
            return
        heard = self._register.hear(told, shared=self._notifier.is_shared)
        if heard.asks_round:
            self._wake.set()
        if heard.is_news:
            self._on_message(payload, retained)
