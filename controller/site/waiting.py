"""What one source has sent and nobody has looked at yet: the newest of it, in its order.

Each source has a room of its own, so that a flood from one does not push out what another has sent. Signs of
life do not queue behind signals: whoever floods us lives, and a heartbeat that waited its turn in a flood
would be pushed out, and the block go into failsafe for no other reason. Of them only the newest counts.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from controller.core.model import NEVER_S
from controller.site.source import Arrival

SIGNALS_MAX: Final = 512  # twice what a book of events holds: a site may tell its whole plan anew, at once
BYTES_MAX: Final = 8 * 1024 * 1024  # of them; a book of 10,000 intervals comes as 1.2 MB


class Waiting:
    """The room of one source.

    Attributes:
        flooded_at_s: when something was pushed out last.
    """

    def __init__(self) -> None:
        self.flooded_at_s = NEVER_S
        self._signals: deque[Arrival] = deque()
        self._bytes = 0
        self._vital: dict[str, Arrival] = {}

    def __bool__(self) -> bool:
        return bool(self._signals)

    def put(self, arrival: Arrival) -> Iterator[Arrival]:
        """Let it wait. Yields what has lost its place: the oldest."""
        self._signals.append(arrival)
        self._bytes += len(arrival.payload)
        while len(self._signals) > SIGNALS_MAX or self._bytes > BYTES_MAX:
            yield self.next()

    def has_room(self) -> bool:
        """Whether the next one will push nobody out."""
        return len(self._signals) < SIGNALS_MAX // 2 and self._bytes < BYTES_MAX // 2

    def next(self) -> Arrival:
        """The oldest signal that waits. Raises IndexError when none does."""
        arrival = self._signals.popleft()
        self._bytes -= len(arrival.payload)
        return arrival

    def put_vital(self, arrival: Arrival) -> None:
        """A sign of life; it takes the place of the one before on its topic."""
        self._vital[arrival.topic] = arrival

    def vital(self) -> tuple[Arrival, ...]:
        """All signs of life that wait, taken out."""
        taken = tuple(self._vital.values())
        self._vital.clear()
        return taken
