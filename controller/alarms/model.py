"""States of an alarm, and the one table of how it gets from one to another.

    condition:      comes                           goes
    operator:                  acknowledges                       acknowledges       resets

    plain      normal -> unacknowledged -> acknowledged           -> normal
                         unacknowledged -> returned                -> normal
    latching             unacknowledged -> latched_unacknowledged -> latched      -> normal
                         acknowledged   -> latched                                -> normal

ISA-18.2 calls these A to F. What is not in the table cannot happen: an order is refused with a reason, a
condition changes nothing. Acknowledging never clears a latch, and a reset never acknowledges.

Shelved and out of service (G and I) stand beside the state, as in OPC UA Part 9: what is hidden goes on
living underneath, so that nothing is lost while it is. Suppression by design (H) is not used: what follows
from another alarm names it as its first-out and stays visible.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

NEVER_S: Final = -1e12
KEY_MAX_CHARS: Final = 200
TEXT_MAX_CHARS: Final = 500  # three lines of a panel
WORDS_MAX_CHARS: Final = 300  # of what an operator or a client writes


class State(StrEnum):
    NORMAL = "normal"
    UNACKNOWLEDGED = "unacknowledged"
    ACKNOWLEDGED = "acknowledged"
    RETURNED = "returned"  # condition gone, nobody has seen it
    LATCHED_UNACKNOWLEDGED = "latched, unacknowledged"  # the same, and a reset is due as well
    LATCHED = "latched"  # condition gone, seen, to be reset


class Turn(StrEnum):
    """What moves an alarm on."""

    RAISED = "raised"
    CLEARED = "cleared"
    CAUGHT = "cleared, stays latched"
    ACKNOWLEDGED = "acknowledge"
    RESET = "reset"
    SHOWN_AGAIN = "shown again"  # no longer hidden: whoever acknowledged it has not seen it since


ACTIVE: Final = frozenset({State.UNACKNOWLEDGED, State.ACKNOWLEDGED})
UNSEEN: Final = frozenset({State.UNACKNOWLEDGED, State.RETURNED, State.LATCHED_UNACKNOWLEDGED})
CAUGHT: Final = frozenset({State.LATCHED, State.LATCHED_UNACKNOWLEDGED})

TRANSITIONS: Final[Mapping[tuple[State, Turn], State]] = MappingProxyType(
    {
        (State.NORMAL, Turn.RAISED): State.UNACKNOWLEDGED,
        (State.RETURNED, Turn.RAISED): State.UNACKNOWLEDGED,
        (State.LATCHED, Turn.RAISED): State.UNACKNOWLEDGED,
        (State.LATCHED_UNACKNOWLEDGED, Turn.RAISED): State.UNACKNOWLEDGED,
        (State.UNACKNOWLEDGED, Turn.CLEARED): State.RETURNED,
        (State.ACKNOWLEDGED, Turn.CLEARED): State.NORMAL,
        (State.UNACKNOWLEDGED, Turn.CAUGHT): State.LATCHED_UNACKNOWLEDGED,
        (State.ACKNOWLEDGED, Turn.CAUGHT): State.LATCHED,
        (State.UNACKNOWLEDGED, Turn.ACKNOWLEDGED): State.ACKNOWLEDGED,
        (State.RETURNED, Turn.ACKNOWLEDGED): State.NORMAL,
        (State.LATCHED_UNACKNOWLEDGED, Turn.ACKNOWLEDGED): State.LATCHED,
        (State.LATCHED_UNACKNOWLEDGED, Turn.RESET): State.RETURNED,
        (State.LATCHED, Turn.RESET): State.NORMAL,
        (State.ACKNOWLEDGED, Turn.SHOWN_AGAIN): State.UNACKNOWLEDGED,
    }
)


@dataclass(frozen=True, slots=True)
class Hidden:
    """Why an alarm is not shown among the others, by whose order, and until when."""

    by: str
    reason: str
    since_utc_s: float
    until_s: float | None = None  # None: out of service, until somebody returns it
    until_utc_s: float | None = None  # the same moment, for people

    @property
    def word(self) -> str:
        return "out of service" if self.until_s is None else "shelved"


@dataclass(frozen=True, slots=True)
class Record:
    """One alarm and its life so far. `*_s` on the clock that does not step, `*_utc_s` for people.

    Attributes:
        text: the condition's newest sentence.
        holds: whether the condition was told in the last step, before any delay.
        changed_s: since when it has been told, or has not.
        onset_s: when the condition of the present activation came.
        since_utc_s: the same, for people.
        count: activations.
        raised_s: the newest activations, oldest first.
        first_out: key of the alarm that came first in its cascade; its own: it was the first.
        by: who has acted on it last.
    """

    key: str
    text: str = ""
    state: State = State.NORMAL
    holds: bool = False
    changed_s: float = NEVER_S
    onset_s: float = NEVER_S
    since_utc_s: float = 0.0
    count: int = 0
    raised_s: tuple[float, ...] = ()
    first_out: str = ""
    by: str = ""
    hidden: Hidden | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def is_quiet(self) -> bool:
        """Nothing to show; kept for its count."""
        return self.state is State.NORMAL and not self.holds and self.hidden is None


@dataclass(frozen=True, slots=True)
class Book:
    """All alarms by key, and by group which one came first in its newest cascade."""

    records: Mapping[str, Record] = field(default_factory=dict)
    firsts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Happening:
    """A line of the alarm journal: what happened to an alarm, from which state to which, by whom and why."""

    at_utc_s: float
    key: str
    what: str
    was: str
    now: str
    by: str = ""
    why: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Stepped:
    """The book after a step or an order. `refused`: why the order changed nothing; empty: it was obeyed."""

    book: Book
    happenings: tuple[Happening, ...] = ()
    refused: str = ""
