"""The facility's own voice among the sources: power limits that operators and SCADA set by hand.

Shape of a commandable BACnet object: every writer holds a slot at a priority, the highest occupied one
counts, giving it up lets the next one count, and with none left nothing is asked. What counts is one more
setpoint for the law, so it competes with grid and utility as they do with each other: the lowest binds, and
no operator can lift a limit that was agreed with the grid.

A slot ends by itself when its time is up, or when the heartbeat that its writer promised stays away. Then its
fallback holds, where it has one (SunSpec's reversion value), at the same priority.

The switch. In LOCAL slots of the block's own panel stand before all others; without one, the others go on
counting, so that turning the switch moves no power. In REMOTE priority alone decides. OFF brings the block to
the least that it can draw, whoever wants what; whoever turns it back leaves a slot behind that holds that
power until it is released: nothing starts by itself.

A call of a level of shedding is a slot as well, beside the power limits: of those the lowest binds, too.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import msgspec

from controller.core.model import FOREVER_S, Contact, Decision, Floats, Ramp, Setpoint, ShedRequest, Snapshot
from controller.site.config import FACILITY as NAME
from controller.site.outlook import Outlook
from controller.site.source import Arrival, Signal
from controller.site.wire import MqttWire
from controller.verbs import OPERATOR, PRIORITIES, Mode

KIND: Final = "power limit"
SHED: Final = "shed"  # a level that is called competes with power limits: the lower binds
KW: Final = 1000.0
SLOTS_MAX: Final = 32  # as many again for those above operators: safety finds a place
CRITICAL_EQUIPMENT: Final = 5  # where calls of shed levels stand
BEHIND_THE_PANEL: Final = 100  # added to priorities of all others in LOCAL
LAPSES_MAX: Final = 32

Place = tuple[str, int, bool]  # writer, priority, whether it calls a level of shedding


@dataclass(frozen=True)
class Slot:
    """One limit of one writer.

    Attributes:
        writer: way and name, such as `opcua alice`.
        priority: one of `PRIORITIES`.
        limit_w: what is asked.
        ends_utc_s: how long it was meant to hold.
        then_w: what holds after that, or when the heartbeat stays away; None: nothing.
        ramp: None: the block's.
        heartbeat_timeout_s: None: its writer promised none.
        local: from the block's own panel.
        is_over: only `then_w` is left of it.
        shed_level: of shedding, called at once; -1: none, the ramp is kept.
    """

    writer: str
    priority: int
    limit_w: float
    ends_utc_s: float = FOREVER_S
    then_w: float | None = None
    ramp: Ramp | None = None
    heartbeat_timeout_s: float | None = None
    local: bool = False
    is_over: bool = False
    shed_level: int = -1

    @property
    def place(self) -> Place:
        return self.writer, self.priority, self.shed_level >= 0

    @property
    def asks_w(self) -> float:
        """What it asks now."""
        return self.then_w if self.is_over and self.then_w is not None else self.limit_w

    @property
    def id(self) -> str:
        return (
            f"{self.writer} ({PRIORITIES[self.priority]})" if self.shed_level < 0 else f"{self.writer}'s call"
        )

    def setpoints(self, rank: int) -> Iterator[Setpoint]:
        """In the law's words, with its fallback, which stands behind it from the start: no gap between them.

        They have always begun: no step of the wall clock keeps one from opening.
        """
        kind = KIND if self.shed_level < 0 else SHED
        asked = Setpoint(
            NAME,
            self.id,
            kind,
            self.limit_w,
            0.0,
            self.ends_utc_s,
            rank,
            ramp=self.ramp,
            shed_level=self.shed_level,
        )
        if not self.is_over:
            yield asked
        if self.then_w is not None:
            behind = 0 if self.is_over else 1
            yield replace(
                asked,
                id=f"{self.id}, reverted",
                limit_w=self.then_w,
                ends_utc_s=FOREVER_S,
                priority=rank + behind,
            )


class Facility:
    """Slots and mode, as a source of setpoints.

    Args:
        least_w: what the block draws at most with all GPUs at their lowest limits: where OFF leads.
        kept: as `kept` gave it.
        shed_levels_w: power of every level of shedding, the gentlest first.
    """

    def __init__(self, least_w: float, kept: Any = None, shed_levels_w: Sequence[float] = ()) -> None:
        self.name = NAME
        self.outlook = Outlook(lambda setpoint: setpoint, 0.0)
        self.contact = Contact()
        self.wire: MqttWire | None = None
        self.cap_w: Floats | None = None
        self.sheds: tuple[ShedRequest, ...] = ()  # its calls are windows
        self.has_room: Callable[[], bool] = lambda: True
        self.pending: list[Signal] = []
        self.revision = 0
        self.mode: Mode = "remote"
        self.least_w = least_w
        self._since_utc_s = 0.0  # of the mode
        self._slots: dict[Place, Slot] = {}
        self._heard_at_s: dict[str, float] = {}  # heartbeats by writer
        self._held: frozenset[str] = frozenset()  # setpoints that the law holds open
        self._ends_at_s: dict[Place, float] = {}  # on the clock that does not step
        self._lapsed: dict[str, str] = {}  # writers that fell silent, until they speak again
        if kept is not None:
            self._reopen(kept, shed_levels_w)
        self._learn()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All of them, in the order in which they count: the first one does."""
        return tuple(sorted(self._slots.values(), key=lambda slot: (self._rank(slot), slot.asks_w)))

    @property
    def limits(self) -> tuple[Slot, ...]:
        """Those that set a power limit, in that order."""
        return tuple(slot for slot in self.slots if slot.shed_level < 0)

    @property
    def calls(self) -> tuple[Slot, ...]:
        """Those that call a level of shedding, in that order."""
        return tuple(slot for slot in self.slots if slot.shed_level >= 0)

    @property
    def limit_w(self) -> float | None:
        """What the strongest power limit asks; None: nobody asks anything."""
        limits = self.limits
        return limits[0].asks_w if limits else None

    def put(self, slot: Slot, now_s: float) -> str:
        """Occupy a slot, or replace what its writer had there. Returns why not, or an empty string."""
        room = SLOTS_MAX if slot.priority >= OPERATOR else 2 * SLOTS_MAX
        if slot.place not in self._slots and len(self._slots) >= room:
            return f"{len(self._slots)} limits are set already; release one"
        self._slots[slot.place] = slot
        self._ends_at_s.pop(slot.place, None)
        writers = {writer for writer, _, _ in self._slots}
        self._heard_at_s = {name: at_s for name, at_s in self._heard_at_s.items() if name in writers}
        self._heard_at_s[slot.writer] = now_s
        self._lapsed.pop(slot.writer, None)
        self._learn()
        return ""

    def release(self, writer: str, priority: int | None, *, shed: bool = False) -> int:
        """Give up limits, or calls of levels, of this writer: one, or all. Returns how many there were."""
        mine = [
            place
            for place in self._slots
            if place[0] == writer and priority in (None, place[1]) and place[2] == shed
        ]
        for place in mine:
            del self._slots[place]
        self._lapsed.pop(writer, None)
        if mine:
            self._learn()
        return len(mine)

    def heartbeat(self, writer: str, now_s: float) -> bool:
        """Sign of life of a writer; False: nothing of it lives by that."""
        lives = any(
            slot.writer == writer and slot.heartbeat_timeout_s is not None and not slot.is_over
            for slot in self._slots.values()
        )
        if lives:
            self._heard_at_s[writer] = now_s
        return lives

    def switch(self, mode: Mode, writer: str, now_utc_s: float, *, local: bool) -> None:
        """Turn the switch; `writer`: who did. Power stays where it is until somebody moves it."""
        if mode == self.mode:
            return
        if self.mode == "off":
            left_off = Slot(writer, min(PRIORITIES), self.least_w, local=local)
            self._slots[left_off.place] = left_off
        self.mode, self._since_utc_s = mode, now_utc_s
        self._learn()

    def remaining_s(self, slot: Slot, now_s: float) -> float | None:
        """Until it runs out; None: it does not."""
        ends_at_s = self._ends_at_s.get(slot.place, FOREVER_S)
        return None if ends_at_s >= FOREVER_S or slot.is_over else max(0.0, ends_at_s - now_s)

    # --- as every source --------------------------------------------------------------------------------

    def take(self, _arrival: Arrival) -> Signal | None:
        """It has no wire of its own: commands come one by one, with an answer each."""
        return None

    def beat(self, now_s: float) -> None:
        """Slots whose writer has fallen silent are over."""
        for place, slot in list(self._slots.items()):
            timeout_s = slot.heartbeat_timeout_s
            if timeout_s is None or slot.is_over:
                continue
            if now_s - self._heard_at_s.setdefault(slot.writer, now_s) > timeout_s:
                self._end(place)
                then = "nothing of it holds" if slot.then_w is None else f"{slot.then_w / KW:.2f} kW holds"
                if len(self._lapsed) < LAPSES_MAX:
                    self._lapsed[slot.writer] = (
                        f"{slot.writer} fell silent: its limit of {slot.limit_w / KW:.2f} kW ended, {then}"
                    )

    def tell(self, snapshot: Snapshot, _decision: Decision) -> None:
        """Slots whose time is up and that the law does not hold open any more."""
        for place, slot in list(self._slots.items()):
            if slot.is_over or slot.ends_utc_s >= FOREVER_S:
                continue
            left_s = slot.ends_utc_s - snapshot.now_utc_s
            self._ends_at_s.setdefault(place, snapshot.now_s + left_s)
            if left_s <= 0.0 and slot.id not in self._held:
                self._end(place)

    def hold(self, setpoint_ids: frozenset[str]) -> None:
        """What the law has seen end is over, whatever the wall clock says."""
        ended = self._held - setpoint_ids
        self._held = setpoint_ids
        for slot in self.slots:
            if slot.id in ended and not slot.is_over:
                self._end(slot.place)

    def overrun(self) -> None:
        """Nothing waits here."""

    def kept(self) -> Any:
        slots = [asdict(slot) for slot in self._slots.values()]
        return {"mode": self.mode, "since_utc_s": self._since_utc_s, "slots": slots}

    def alarms(self, _now_s: float) -> Iterator[tuple[str, str]]:
        if self.mode != "remote":
            yield (
                "facility mode",
                f"the block is switched to {self.mode.upper()}: only its own panel may command",
            )
        yield from ((f"lapsed {writer}", text) for writer, text in self._lapsed.items())

    def links(self, _now_s: float) -> Iterator[Mapping[str, Any]]:
        return iter(())

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return {}

    # --- slots ------------------------------------------------------------------------------------------

    def _end(self, place: Place) -> None:
        slot = self._slots[place]
        self._ends_at_s.pop(place, None)
        if slot.then_w is None:
            del self._slots[place]
        else:
            self._slots[place] = replace(slot, is_over=True)
        self._learn()

    def _rank(self, slot: Slot) -> int:
        """The lower the stronger."""
        behind = BEHIND_THE_PANEL if self.mode == "local" and not slot.local else 0
        return behind + 2 * slot.priority

    def _learn(self) -> None:
        windows = [one for slot in self.slots for one in slot.setpoints(self._rank(slot))]
        if self.mode == "off":
            windows.append(Setpoint(NAME, "off", "switch", self.least_w, self._since_utc_s, FOREVER_S, 0))
        self.outlook.learn(sorted(windows, key=lambda one: one.starts_utc_s))
        self.revision += 1

    def _reopen(self, kept: Any, shed_levels_w: Sequence[float] = ()) -> None:
        """Raises msgspec.ValidationError."""
        said = msgspec.convert(kept, _Kept)
        self.mode, self._since_utc_s = said.mode, said.since_utc_s
        slots = (_called_again(slot, shed_levels_w) for slot in said.slots if slot.priority in PRIORITIES)
        self._slots = {slot.place: slot for slot in slots}


def _called_again(slot: Slot, shed_levels_w: Sequence[float]) -> Slot:
    """A call after a start, when levels may be others than before: its power is what was meant.

    It calls the gentlest level that sheds as much, or the deepest; without levels it is a power limit.
    """
    if slot.shed_level < 0:
        return slot
    if not shed_levels_w:
        return replace(slot, shed_level=-1)
    enough = (number for number, level_w in enumerate(shed_levels_w) if level_w <= slot.limit_w)
    number = next(enough, len(shed_levels_w) - 1)
    return replace(slot, shed_level=number, limit_w=shed_levels_w[number])


class _Kept(msgspec.Struct, frozen=True):
    mode: Mode
    since_utc_s: float
    slots: tuple[Slot, ...]
