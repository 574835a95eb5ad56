"""What an integration asks of our plant, under our guardrails. Pure: time and readings are arguments.

A request is an intent. What is written is held between `lowest` and `highest`, moves no faster than
`rate_per_s`, and is confirmed by nothing but the plant's own reading on the bus. Nothing is written before
there is a way back: a reading of the present value, or a configured safe one.

    IDLE --asked--> HELD --withdrawn, or its integration is silent--> BACK --there--> IDLE

Withdrawn means: a value that is missing, not good, or "unknown". After silence the integration has to ask
anew: what it wanted a while ago is not what it wants now. The way back is as slow as the way there. If
somebody else has set the point meanwhile, it is theirs: we neither fight nor put it back.

What was sent may be in force or not until the plant confirms it. A write that was refused, or whose answer
was lost, moves nothing on: it is tried again, and the value is ours whether the plant shows it or the one
before.

What we hold is kept over a restart, so that a silence is noticed and the way back found by whoever starts
next, even if the request has left the configuration meanwhile.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from controller.facility.config import BmsRequestConfig
from protocols.bms import GOOD, Value

STEP_S: Final = 1.0
RETRY_S: Final = 10.0  # after a refusal: a switch to LOCAL, a device that is away
SETTLE_S: Final = 1.0  # a reading this much later than our write shows it, unless somebody else wrote
SAME_RATIO: Final = 1e-3  # of the range: what a device rounds

YES_NO: Final = (0.0, 1.0)


class Kept(msgspec.Struct, frozen=True):
    """What must survive a restart."""

    asked: float | None
    before: float | None  # where it was
    tried: float | None  # what we sent last; None: nothing, it is only shown
    shown: float | None  # what the plant made of the last one that it confirmed; None: of none yet
    confirmed: bool = False  # what we sent last
    config: dict[str, Any] = {}  # of the request


@dataclass(frozen=True)
class Present:
    """What the point shows.

    Attributes:
        value: None: not known.
        taken_at_s: when it was.
    """

    value: float | None
    taken_at_s: float = 0.0


class Ask:
    """One request. Only those with `writes` are ever written; the others are remembered.

    Attributes:
        asked: the newest, as said; None: nothing is asked.
        why_not: why it is not carried out, or not to the letter; "" while it is.
    """

    def __init__(self, config: BmsRequestConfig, at_s: float, kept: Kept | None = None) -> None:
        self.config = config
        self.why_not = ""
        held = kept or Kept(None, None, None, None)
        self.asked = held.asked
        self._before, self._tried, self._shown = held.before, held.tried, held.shown
        self._confirmed, self._moved = held.confirmed, held.tried is not None
        self._settings = config.model_dump()
        self._written_at_s = self._retry_at_s = at_s
        self._theirs = False

    @property
    def kept(self) -> Kept | None:
        """None: we hold nothing."""
        if self._moved:
            return Kept(self.asked, self._before, self._tried, self._shown, self._confirmed, self._settings)
        if self.is_only_shown and self.asked is not None:
            return Kept(self.asked, None, None, None, config=self._settings)
        return None

    @property
    def is_only_shown(self) -> bool:
        return self.config.writes is None

    @property
    def is_flag(self) -> bool:
        return not self.config.point.startswith("Liquid")

    def hear(self, said: Value) -> None:
        """A new message of the integration."""
        asked = said.value if said.quality == GOOD else None
        if self.is_flag and asked not in YES_NO:
            asked = None
        if asked != self.asked:
            self._theirs, self.why_not = False, ""
        self.asked = asked

    def silence(self) -> None:
        """Its integration is heard no more."""
        self.asked = None

    def next_value(self, present: Present, at_s: float) -> float | None:
        """What is to be written now; None: nothing."""
        if self.config.writes is None or at_s < self._retry_at_s:
            return None
        if not self._look(present):
            return None
        target = self._target()
        if target is None or self._theirs:
            return None
        if not self._moved and present.value is None and self.config.safe is None:
            self.why_not = "its present value is not known, so there is no way back; give it a `safe` value"
            return None
        if self._is_there(target):
            self._moved = self.asked is not None
            return None
        return self._step(target, present.value)

    def writes(self, value: float, present: Present) -> None:
        """It is on its way."""
        if not self._moved:
            self._before, self._moved, self._shown = present.value, True, None
        self._tried, self._confirmed = value, False

    def wrote(self, shown: float | None, at_s: float) -> None:
        """The plant has taken it, and shows this."""
        self._shown, self._confirmed = self._tried if shown is None else shown, True
        self._written_at_s = at_s
        self.why_not = "" if self.asked is None else self._clamp_note(self.asked)

    def was_refused(self, reason: str, at_s: float) -> None:
        """Not carried out, or not known to be."""
        self.why_not, self._written_at_s, self._retry_at_s = reason, at_s, at_s + RETRY_S

    # --- one step ---------------------------------------------------------------------------------------

    def _look(self, present: Present) -> bool:
        """Whose value is it? False: too early to tell what became of our write."""
        if not self._moved or present.value is None:
            return True
        if present.taken_at_s < self._written_at_s + SETTLE_S:
            return self._confirmed
        if self._is_near(self._shown, present.value):
            return True
        if self._is_near(self._tried, present.value):
            self.wrote(present.value, present.taken_at_s)
            return True
        if self._shown is None and self.asked is not None:
            return True  # refused so far: it is tried again
        self._moved = False
        if self.asked is not None:
            self._theirs = True
            self.why_not = f"somebody else has set it to {present.value:g}; waits for a new request"
        return True

    def _is_near(self, ours: float | None, value: float) -> bool:
        lowest, highest = self._range
        return ours is not None and abs(value - ours) <= SAME_RATIO * (highest - lowest)

    def _is_there(self, target: float) -> bool:
        return self._moved and self._confirmed and self._tried == target

    def _target(self) -> float | None:
        if self.asked is not None:
            return self._clamped(self.asked)
        if not self._moved:
            return None
        return self.config.safe if self.config.safe is not None else self._before

    def _step(self, target: float, present: float | None) -> float | None:
        rate_per_s = self.config.rate_per_s
        if rate_per_s is None:
            return target
        base = present
        if self._moved and (self._confirmed or present is None):
            base = self._tried if self._confirmed else self._shown
        if base is None:
            self.why_not = "its present value is not known, so it cannot be ramped"
            return None
        most = rate_per_s * STEP_S
        if abs(target - base) <= most:
            return target
        return base + min(max(target - base, -most), most)

    @property
    def _range(self) -> tuple[float, float]:
        assert self.config.lowest is not None  # the configuration saw to that
        assert self.config.highest is not None
        return self.config.lowest, self.config.highest

    def _clamped(self, asked: float) -> float:
        lowest, highest = self._range
        return min(max(asked, lowest), highest)

    def _clamp_note(self, asked: float) -> str:
        held = self._clamped(asked)
        return "" if held == asked else f"asked {asked:g}, held at {held:g}: its limit here"
