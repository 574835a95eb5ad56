"""What the VTN has told: who we are to it, its programmes, its events. Decides what is news, and for whom.

No IO and no clock. Rounds and notifications both tell of events, and overtake each other:
* an event that a round did not see again may be gone (`vanished`); the caller asks for it by its id;
* an event that a notification called off while a round was under way stays called off, though the round's
  list, older than the notification, still has it.
Not every VTN has topics per VEN: on those that all share, what names others and not us is passed over.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from protocols.ven.reading import ITEMS_MAX, Notification, target_names, text

KNOWN_MAX: Final = 4 * ITEMS_MAX  # event ids remembered, whatever a notifier floods us with


class Heard(NamedTuple):
    """What follows from a notification about an event."""

    is_news: bool  # to be passed on
    asks_round: bool  # the VTN knows more about it than it said


class Register:
    """All that is known of one VTN's objects.

    Args:
        names: ours: of the VEN and of its resources.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.ven_id = ""  # empty: not enrolled yet
        self.targets: frozenset[str] = frozenset()  # granted to us and our resources
        self._names = frozenset(names)
        self._programs: dict[str, bytes] = {}  # id -> digest of what was told last
        self._seen: dict[str, int] = {}  # id of an event -> round that saw it last, the newest last
        self._called_off: set[str] = set()  # by notification, since the round began
        self._round = 0

    @property
    def event_count(self) -> int:
        return len(self._seen)

    @property
    def program_ids(self) -> tuple[str, ...]:
        """The newest last."""
        return tuple(self._programs)

    def begin_round(self) -> None:
        self._round += 1
        self._called_off.clear()

    def is_ours(self, event: Mapping[str, Any]) -> bool:
        """Without targets, for everybody; else one of them must name or describe us. Keys folded."""
        targets = set(target_names(event))
        return not targets or not targets.isdisjoint({self.ven_id} | self._names | self.targets)

    def enter_program(self, program_id: str, raw: bytes) -> bool:
        """Whether it is new or changed, by its bytes as they came."""
        told = hashlib.sha256(raw).digest()
        if self._programs.get(program_id) == told:
            return False
        self._programs.pop(program_id, None)
        _make_room(self._programs, ITEMS_MAX)
        self._programs[program_id] = told
        return True

    def keep_programs(self, program_ids: Collection[str]) -> None:
        """Forgets all others: a complete list does not have them."""
        for program_id in self._programs.keys() - program_ids:
            del self._programs[program_id]

    def enter_listed(self, event_id: str) -> bool:
        """An event of ours that a round has found. False: called off while its answer was on the way."""
        if event_id in self._called_off:
            return False
        self._enter(event_id)
        return True

    def remember(self, event_ids: Collection[str]) -> None:
        """Events that the receiver stands by, which no round (the first is 1) has to have seen."""
        for event_id in event_ids:
            if event_id not in self._seen and len(self._seen) < KNOWN_MAX:
                self._seen[event_id] = 0

    def vanished(self) -> list[str]:
        """Events that neither this round nor a notification since it began has told of."""
        return [event_id for event_id, seen in self._seen.items() if seen < self._round]

    def drop(self, event_id: str) -> bool:
        """An event is no more. False: it was not known."""
        return self._seen.pop(event_id, None) is not None

    def hear(self, notification: Notification, *, shared: bool) -> Heard:
        """Takes account of an event that a notification tells of.

        Args:
            notification: about an event.
            shared: came on a topic that others hear, too.
        """
        event = notification.said
        event_id = text(event, "id") or ""
        is_for_us = not shared or self.is_ours(event)
        if notification.deleted:
            if event_id and len(self._called_off) < KNOWN_MAX:
                self._called_off.add(event_id)
            return Heard(self.drop(event_id) or is_for_us, asks_round=False)
        if not is_for_us:  # was it ours until now? Then let the VTN say what became of it
            return Heard(is_news=False, asks_round=event_id in self._seen)
        if event_id:
            self._called_off.discard(event_id)
            self._enter(event_id)
        return Heard(is_news=True, asks_round=text(event, "programid") not in self._programs)

    def _enter(self, event_id: str) -> None:
        self._seen.pop(event_id, None)
        _make_room(self._seen, KNOWN_MAX)
        self._seen[event_id] = self._round


def _make_room(book: dict[str, Any], most: int) -> None:
    while len(book) >= most:
        del book[next(iter(book))]
