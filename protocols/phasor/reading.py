"""One frequency sample, and its plainest form on a wire: `{"hz": 49.98, "at": 1767225600.02}`.

`at` is when it was measured, seconds since 1970 on the sender's clock; `good` may say false. Anything else in
the message, or anything missing, is an error of whoever sends it: better seen at commissioning than guessed.
"""

import math
from dataclasses import dataclass
from typing import Final

import msgspec

from protocols.phasor.moments import Moments

MESSAGE_MAX_BYTES: Final = 256  # ten times such a message
KINDS_MAX: Final = 32  # reasons that are counted apart
STAMP_MAX_S: Final = 2.0**32  # of a C37.118 frame, and the year 2106


@dataclass(frozen=True, slots=True)
class Sample:
    """Grid frequency at a moment.

    Attributes:
        hz: as measured; not a number if `good` is false and the sender has none.
        good: the sender's own word.
        taken_at_s: when it was measured, on the clock of whoever listens.
        doubt: what the sender says against its own clock; "" for nothing. Frequency does not suffer from it.
    """

    hz: float
    good: bool
    taken_at_s: float
    doubt: str = ""


class Refusals:
    """What came and could not be used, counted by reason."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.newest = ""

    def add(self, why: str) -> None:
        self.newest = why
        if why in self.counts or len(self.counts) < KINDS_MAX:
            self.counts[why] = self.counts.get(why, 0) + 1

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hz: float
    at: float
    good: bool = True


class JsonReadings:
    """Messages of one sender, in their order: one that is not newer than the last is refused."""

    def __init__(self) -> None:
        self.refusals = Refusals()
        self._decoder = msgspec.json.Decoder(_Message)
        self._moments = Moments()
        self._newest_s = -math.inf

    def take(self, payload: bytes, arrived_at_s: float) -> Sample | None:
        """What it says; None: refused, and counted."""
        if len(payload) > MESSAGE_MAX_BYTES:
            self.refusals.add(f"message of more than {MESSAGE_MAX_BYTES} bytes")
            return None
        try:
            message = self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.refusals.add('not of the form {"hz": 49.98, "at": 1767225600.02}')
            return None
        if not (math.isfinite(message.hz) and 0.0 <= message.at < STAMP_MAX_S):
            self.refusals.add("a frequency or a time that is no such thing")
            return None
        taken_at_s = self._moments.moment_s(message.at, arrived_at_s)
        if taken_at_s <= self._newest_s:
            self.refusals.add("not newer than the one before")
            return None
        self._newest_s = taken_at_s
        return Sample(message.hz, message.good, taken_at_s)
