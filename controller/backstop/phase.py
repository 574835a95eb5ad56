"""What the backstop does about one host: three phases and one table. Pure.

    watching    the agent is heard; limits of the BMC are as they were found
    holding     it was silent for `after_s`: limits are set, read back, read again
    releasing   it obeys again, for `release_after_s` without a break: limits go back up, slowly

Being heard is not enough to be released: an agent that reports and does not obey is a host without control.
One that no longer obeys while it is released is held again, after `after_s`. A host that was held when the
controller ended is held when it starts, until its agent obeys.

On a ramp every host gets an order with every beat, and one whose driver takes longer than a beat has never
confirmed the newest: obedience is asked of orders that are old enough to be answered.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from controller.core.model import Ledger

PAUSE_MAX_S: Final = 2.0  # between two looks that see it obey: five times what the law waits for an answer


@dataclass(frozen=True, slots=True)
class Heard:
    """What the controller knows of one agent at this moment.

    Attributes:
        silent_s: since it was heard last; before the first time, since the controller began to listen.
        obeys: leased by this controller, and no order unconfirmed for too long, see `obeys`; or leased by
            another controller that lives.
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
    DISOBEYS = "has not obeyed for long enough"
    RESTORED = "restored"


TRANSITIONS: Final[Mapping[tuple[Phase, Turn], Phase]] = MappingProxyType(
    {
        (Phase.WATCHING, Turn.SILENT): Phase.HOLDING,
        (Phase.HOLDING, Turn.OBEYS): Phase.RELEASING,
        (Phase.RELEASING, Turn.SILENT): Phase.HOLDING,
        (Phase.RELEASING, Turn.DISOBEYS): Phase.HOLDING,
        (Phase.RELEASING, Turn.RESTORED): Phase.WATCHING,
    }
)


@dataclass(frozen=True, slots=True)
class Guard:
    """Phase of one host.

    Attributes:
        phase: what is done about it.
        obeys_since_s: since when its agent obeys without a break; None: it does not.
        obeyed_at_s: when it was last seen to.
    """

    phase: Phase = Phase.WATCHING
    obeys_since_s: float | None = None
    obeyed_at_s: float = -math.inf


def obeys(
    ledger: "Ledger", node: int, confirmed_seq: int, now_s: float, *, leased: bool, wait_s: float
) -> bool:
    """Whether a host is leased and has confirmed every order of the ledger that is older than `wait_s`."""
    old = ledger.at_s <= now_s - wait_s
    return leased and confirmed_seq >= int(ledger.node_seq[old, node].max(initial=0))


def step(
    guard: Guard, heard: Heard, now_s: float, *, after_s: float, release_after_s: float, restored: bool
) -> Guard:
    """One look. `restored`: nothing that the backstop changed is changed any more."""
    is_silent = heard.silent_s >= after_s
    since_s, obeyed_at_s = guard.obeys_since_s, now_s if heard.obeys else guard.obeyed_at_s
    if is_silent or now_s - obeyed_at_s > PAUSE_MAX_S:
        since_s = None
    elif since_s is None:
        since_s = now_s
    turn = None
    if is_silent:
        turn = Turn.SILENT
    elif guard.phase is Phase.RELEASING and restored:
        turn = Turn.RESTORED
    elif now_s - obeyed_at_s >= after_s:
        turn = Turn.DISOBEYS
    elif since_s is not None and now_s - since_s >= release_after_s:
        turn = Turn.OBEYS
    phase = guard.phase if turn is None else TRANSITIONS.get((guard.phase, turn), guard.phase)
    return Guard(phase, since_s, obeyed_at_s)
