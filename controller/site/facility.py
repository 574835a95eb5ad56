"""The facility's own voice among the sources: power limits that operators and SCADA set by hand.

Shape of a commandable BACnet object: every writer holds a slot at a priority, the highest occupied one
counts, giving it up lets the next one count, and with none left nothing is asked. What counts is one more
setpoint for the law, so it competes with grid and utility as they do with each other: the lowest binds, and
no operator can lift a limit that was agreed with the grid.

A slot ends by itself when its time is up, or when the heartbeat that its writer promised stays away. Then its
fallback holds, where it has one (SunSpec's reversion value). LOCAL and OFF are part of this: in LOCAL only
slots from the block's own panel count, and the first of them takes over what counted before, so that turning
the switch moves no power. OFF brings the block to the least that it can draw, whoever wants what.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

import msgspec

from controller.core.model import FOREVER_S, Contact, Decision, Floats, Ramp, Setpoint, Snapshot
from controller.site.config import FACILITY as NAME
from controller.site.outlook import Outlook
from controller.site.source import Arrival, Signal
from controller.site.wire import MqttWire

KIND: Final = "power limit"
PRIORITIES: Final = {  # BACnet's (ASHRAE 135, 19.2), as far as a power limit has use for them
    1: "manual life safety",
    5: "critical equipment",
    8: "operator",
    10: "site",
    16: "default",
}
SLOTS_MAX: Final = 32

Mode = Literal["remote", "local", "off"]
MODES: Final = get_args(Mode)


@dataclass(frozen=True)
class Slot:
    """One limit of one writer.

    Attributes:
        writer: way and name, such as `opcua alice`.
        priority: one of `PRIORITIES`.
        limit_w: what is asked.
        starts_utc_s, ends_utc_s: how long it was meant to hold.
        then_w: what holds after that, or when the heartbeat stays away; None: nothing.
        ramp: None: the block's.
        heartbeat_timeout_s: None: its writer promised none.
        local: from the block's own panel.
        is_over: only `then_w` is left of it.
    """

    writer: str
    priority: int
    limit_w: float
    starts_utc_s: float
    ends_utc_s: float = FOREVER_S
    then_w: float | None = None
    ramp: Ramp | None = None
    heartbeat_timeout_s: float | None = None
    local: bool = False
    is_over: bool = False

    @property
    def place(self) -> tuple[str, int]:
        return self.writer, self.priority

    @property
    def asked(self) -> Setpoint:
        """In the law's words."""
        return Setpoint(
            NAME,
            f"{self.writer} ({PRIORITIES[self.priority]})",
            KIND,
            self.limit_w,
            self.starts_utc_s,
            self.ends_utc_s,
            2 * self.priority,
            ramp=self.ramp,
        )

    def setpoints(self) -> Iterator[Setpoint]:
        """With its fallback, which stands behind it from the start: no gap between them."""
        if not self.is_over:
            yield self.asked
        if self.then_w is not None:
            yield replace(
                self.asked,
                id=f"{self.asked.id}, reverted",
                limit_w=self.then_w,
                ends_utc_s=FOREVER_S,
                priority=self.asked.priority + 1,
            )


class Facility:
    """Slots and mode, as a source of setpoints.

    Args:
        least_w: what the block draws at most with all GPUs at their lowest limits: where OFF leads.
        kept: as `kept` gave it.
    """

    def __init__(self, least_w: float, kept: Any = None) -> None:
        self.name = NAME
        self.outlook = Outlook(lambda setpoint: setpoint, 0.0)
        self.contact = Contact()
        self.wire: MqttWire | None = None
        self.cap_w: Floats | None = None
        self.has_room: Callable[[], bool] = lambda: True
        self.pending: list[Signal] = []
        self.revision = 0
        self.mode: Mode = "remote"
        self.least_w = least_w
        self._since_utc_s = 0.0  # of the mode
        self._slots: dict[tuple[str, int], Slot] = {}
        self._heard_at_s: dict[str, float] = {}  # heartbeats by writer
        self._held: frozenset[str] = frozenset()  # setpoints that the law holds open
        if kept is not None:
            self._reopen(kept)
        self._learn()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Those that count in this mode, the strongest first."""
        local = self.mode == "local"
        return tuple(
            sorted(
                (slot for slot in self._slots.values() if slot.local == local),
                key=lambda slot: (slot.priority, slot.limit_w),
            )
        )

    @property
    def limit_w(self) -> float | None:
        """What the strongest slot asks; None: nobody asks anything."""
        counting = self.slots[0] if self.slots else None
        if counting is None:
            return None
        return counting.then_w if counting.is_over else counting.limit_w

    def put(self, slot: Slot, now_s: float) -> str:
        """Occupy a slot, or replace what its writer had there. Returns why not, or an empty string."""
        if slot.place not in self._slots and len(self._slots) >= SLOTS_MAX:
            return f"{SLOTS_MAX} limits are set already; release one"
        self._slots[slot.place] = slot
        self._heard_at_s[slot.writer] = now_s
        self._learn()
        return ""

    def release(self, writer: str, priority: int | None) -> int:
        """Give up slots of this writer: one, or all. Returns how many there were."""
        mine = [
            place
            for place in self._slots
            if place[0] == writer and (priority is None or place[1] == priority)
        ]
        for place in mine:
            del self._slots[place]
        if mine:
            self._learn()
        return len(mine)

    def heartbeat(self, writer: str, now_s: float) -> bool:
        """Sign of life of a writer; False: nothing of it depends on that."""
        if writer not in self._heard_at_s:
            return False
        self._heard_at_s[writer] = now_s
        return True

    def switch(self, mode: Mode, panel: str, now_s: float, now_utc_s: float) -> None:
        """Turn the switch; `panel`: who stands at it. Power stays where it is until somebody moves it."""
        if mode == self.mode:
            return
        counted = self.slots
        self.mode, self._since_utc_s = mode, now_utc_s
        self._slots = {place: slot for place, slot in self._slots.items() if not slot.local}
        if mode == "local" and counted:
            taken_over = Slot(panel, 8, counted[0].limit_w, now_utc_s, ramp=counted[0].ramp, local=True)
            self.put(taken_over, now_s)
        self._learn()

    def remaining_s(self, now_utc_s: float) -> float | None:
        """Until the slot that counts runs out; None: it does not, or there is none."""
        counting = next((slot for slot in self.slots if not slot.is_over), None)
        if counting is None or counting.ends_utc_s >= FOREVER_S:
            return None
        return max(0.0, counting.ends_utc_s - now_utc_s)

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

    def tell(self, snapshot: Snapshot, _decision: Decision) -> None:
        """Slots whose time is up and that the law does not hold open any more."""
        for place, slot in list(self._slots.items()):
            timed = not slot.is_over and slot.ends_utc_s <= snapshot.now_utc_s
            if timed and slot.asked.id not in self._held:
                self._end(place)

    def hold(self, setpoint_ids: frozenset[str]) -> None:
        """What the law has seen end is over, whatever the wall clock says."""
        ended = self._held - setpoint_ids
        self._held = setpoint_ids
        for slot in self.slots:
            if slot.asked.id in ended and not slot.is_over:
                self._end(slot.place)

    def overrun(self) -> None:
        """Nothing waits here."""

    def kept(self) -> Any:
        slots = [asdict(slot) for slot in self._slots.values()]
        return {"mode": self.mode, "since_utc_s": self._since_utc_s, "slots": slots}

    def alarms(self, _now_s: float) -> Iterator[tuple[str, str]]:
        if self.mode != "remote":
            yield "facility mode", f"the block is switched to {self.mode.upper()}: remote limits do not count"

    def links(self, _now_s: float) -> Iterator[Mapping[str, Any]]:
        return iter(())

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return {}

    # --- slots ------------------------------------------------------------------------------------------

    def _end(self, place: tuple[str, int]) -> None:
        slot = self._slots[place]
        if slot.then_w is None:
            del self._slots[place]
        else:
            self._slots[place] = replace(slot, is_over=True)
        self._learn()

    def _learn(self) -> None:
        windows = [setpoint for slot in self.slots for setpoint in slot.setpoints()]
        if self.mode == "off":
            windows.append(Setpoint(NAME, "off", "switch", self.least_w, self._since_utc_s, FOREVER_S, 0))
        self.outlook.learn(sorted(windows, key=lambda one: one.starts_utc_s))
        self.revision += 1

    def _reopen(self, kept: Any) -> None:
        """Raises msgspec.ValidationError."""
        said = msgspec.convert(kept, _Kept)
        self.mode, self._since_utc_s = said.mode, said.since_utc_s
        self._slots = {slot.place: slot for slot in said.slots[:SLOTS_MAX] if slot.priority in PRIORITIES}


class _Kept(msgspec.Struct, frozen=True):
    mode: Mode
    since_utc_s: float
    slots: tuple[Slot, ...]
