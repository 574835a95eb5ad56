"""What the backstop does about one host: three phases and one table. Pure.

    watching    the agent is heard; limits of the BMC are as they were found
    holding     it was silent for `after_s`: limits are set, read back, read again
    releasing   it obeys again, for `release_after_s` without a break: limits go back up, slowly

Being heard is not enough to be released: an agent that reports and does not obey is a host without control.
A host that was held when the controller ended is held when it starts, until its agent obeys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Heard:
    """What the controller knows of one agent at this moment.

    Attributes:
        silent_s: since its newest report; before the first one, since the controller began to listen.
        obeys: leased by this controller, and its newest order confirmed.
        limit_w: what each GPU is to be held at while it is silent, if that is less than configured.
    """

    silent_s: float
    obeys: bool
    limit_w: float | None = None


@dataclass(frozen=True, slots=True)
class Proven:
    """What the BMC of one host has shown: an upper bound of each of its GPUs, as long as it is true.

    Attributes:
        node: its name.
        limit_w: W per GPU; inf: not proven of this one. In no order that NVML knows: sums of them count.
        read_at_s: when the oldest of these was asked for, on the clock of `controller.clock.now_s`.
    """

    node: str
    limit_w: tuple[float, ...]
    read_at_s: float


class Phase(StrEnum):
    WATCHING = "watching"
    HOLDING = "holding"
    RELEASING = "releasing"


class Turn(StrEnum):
    SILENT = "silent"
    OBEYS = "obeys for long enough"
    RESTORED = "restored"


TRANSITIONS: Final[Mapping[tuple[Phase, Turn], Phase]] = MappingProxyType(
    {
        (Phase.WATCHING, Turn.SILENT): Phase.HOLDING,
        (Phase.HOLDING, Turn.OBEYS): Phase.RELEASING,
        (Phase.RELEASING, Turn.SILENT): Phase.HOLDING,
        (Phase.RELEASING, Turn.RESTORED): Phase.WATCHING,
    }
)


@dataclass(frozen=True, slots=True)
class Guard:
    """Phase of one host. `obeys_since_s`: since when its agent obeys without a break; None: it does not."""

    phase: Phase = Phase.WATCHING
    obeys_since_s: float | None = None


def step(
    guard: Guard, heard: Heard, now_s: float, *, after_s: float, release_after_s: float, restored: bool
) -> Guard:
    """One look. `restored`: nothing that the backstop changed is changed any more."""
    is_silent = heard.silent_s >= after_s
    since_s = guard.obeys_since_s
    if is_silent or not heard.obeys:
        since_s = None
    elif since_s is None:
        since_s = now_s
    turn = None
    if is_silent:
        turn = Turn.SILENT
    elif guard.phase is Phase.RELEASING and restored:
        turn = Turn.RESTORED
    elif since_s is not None and now_s - since_s >= release_after_s:
        turn = Turn.OBEYS
    return Guard(guard.phase if turn is None else TRANSITIONS.get((guard.phase, turn), guard.phase), since_s)
