"""What all sources of setpoints have in common.

A source takes in what arrives on its wires, keeps what it accepted, and says three things: which windows it
knows (`outlook`), when it was last heard (`contact`), and what of it must survive a restart (`kept`). It
acts on nothing: the desk does, once what was accepted is on disk.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from controller.core.model import Contact, Decision, Floats, ShedRequest, Snapshot
from controller.site.outlook import Outlook

if TYPE_CHECKING:
    from controller.site.wire import MqttWire

REFUSAL_SHOWN_S: Final = 600.0  # how long a refused signal is an alarm, unless it is put right before
REFUSALS_MAX: Final = 64
TEXT_MAX_CHARS: Final = 300  # two lines of a panel


class Arrival(NamedTuple):
    """A message as it came, and when by both clocks."""

    topic: str
    payload: bytes
    retained: bool
    now_s: float
    now_utc_s: float


@dataclass(frozen=True)
class Signal:
    """One message from the site and what became of it."""

    at_utc_s: float
    source: str
    sender: str  # who sent it, as far as anybody knows
    about: str  # what it is about: operation and id
    accepted: bool
    reason: str

    def shortened(self) -> "Signal":
        """For logs, panels and the history: what a stranger wrote may be as long as his message."""
        sender, about, reason = (shortened(text) for text in (self.sender, self.about, self.reason))
        return replace(self, sender=sender, about=about, reason=reason)


def shortened(text: str) -> str:
    return text if len(text) <= TEXT_MAX_CHARS else f"{text[:TEXT_MAX_CHARS]}…"


class Source(Protocol):
    """One of the site's voices.

    Attributes:
        name: as configured; its setpoints carry it.
        outlook: its windows.
        contact: its signs of life.
        wire: its MQTT side; None: it has none.
        cap_w: what it asks of single GPUs, (n); a new array when that changes; None: nothing ever.
        sheds: levels of shedding that it calls otherwise than by a window.
        has_room: whether more may be told to it now; whoever can wait asks before.
        pending: signals of its own making, for the desk to note.
        revision: grows when its windows change.
    """

    name: str
    outlook: Outlook
    contact: Contact
    wire: "MqttWire | None"
    cap_w: Floats | None
    sheds: tuple[ShedRequest, ...]
    has_room: Callable[[], bool]
    pending: list[Signal]
    revision: int

    def take(self, arrival: Arrival) -> Signal | None:
        """Take a message in. None: a sign of life, not worth a line."""
        ...

    def beat(self, now_s: float) -> None:
        """Time to send what is due."""
        ...

    def tell(self, snapshot: Snapshot, decision: Decision) -> None:
        """What was decided, for those who want to be told."""
        ...

    def hold(self, setpoint_ids: frozenset[str]) -> None:
        """What the law holds open, whatever the wall clock says: not to be forgotten."""
        ...

    def overrun(self) -> None:
        """Messages were dropped unread."""
        ...

    def kept(self) -> Any:
        """What must survive a restart, for JSON."""
        ...

    def alarms(self, now_s: float) -> Iterator[tuple[str, str]]:
        """Key and text of each."""
        ...

    def links(self, now_s: float) -> Iterator[Mapping[str, Any]]:
        """Connections of its own, for the status."""
        ...

    def runs(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Tasks of its own, by name."""
        ...


class Refusals:
    """What was refused lately and has not been put right since, by what it was about."""

    def __init__(self) -> None:
        self._refused: dict[str, tuple[str, float]] = {}

    def note(self, key: str, signal: Signal, now_s: float) -> bool:
        """False: it was refused for the same reason before."""
        known = self._refused.pop(key, None)
        if signal.accepted:
            return True
        self._refused[key] = (shortened(signal.reason), now_s)
        if len(self._refused) > REFUSALS_MAX:
            del self._refused[next(iter(self._refused))]
        return known is None or known[0] != signal.reason

    def clear(self) -> None:
        self._refused.clear()

    def alarm(self, source: str, now_s: float) -> Iterator[tuple[str, str]]:
        """The newest one, and how many there are."""
        standing = [text for text, at_s in self._refused.values() if now_s - at_s < REFUSAL_SHOWN_S]
        if standing:
            more = f" (and {len(standing) - 1} more)" if len(standing) > 1 else ""
            yield f"signal {source}", f"refused: {standing[-1]}{more}"
