"""Dry contacts: a relay closes somewhere, a PLC shows it as a bit, and a level of shedding is called.

A contact calls for as long as it is closed. One that cannot be read is what it last was, or closed where the
configuration says that a lost contact calls; either way an alarm names it. A restart knows which contacts
called: those go on calling until they are read. Any other is not lost before it could be found, because a
restart must not shed a block.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Final

from controller.config import ShedConfig
from controller.core.model import UNKNOWN, Measurement, ShedRequest
from controller.field import Taker

SAME: Final = 1e-9
FOUND_S: Final = 5.0  # after a start, for connecting to its PLC and asking what it is


class Contacts:
    """All contacts of a block.

    Args:
        config: None: none.
        on_change: called when one has closed or opened.
        now_s: of the start.
        called: names of those that called before it.
    """

    def __init__(
        self,
        config: ShedConfig | None,
        on_change: Callable[[], None],
        now_s: float,
        called: Collection[str] = (),
    ) -> None:
        self._contacts = () if config is None else config.contacts
        self._requests = [
            ShedRequest(contact.name, config.level(contact.level)) for contact in self._contacts if config
        ]
        self._closed = [contact.name in called for contact in self._contacts]
        self._newest: list[Measurement] = [UNKNOWN] * len(self._contacts)
        self._on_change = on_change
        self._seen = [False] * len(self._contacts)
        self._lost_from_s = now_s + FOUND_S

    def takers(self) -> dict[str, Taker]:
        """By device, where readings go."""
        return {contact.name: partial(self._put, index) for index, contact in enumerate(self._contacts)}

    def _put(self, index: int, measurement: Measurement) -> None:
        self._newest[index] = measurement
        if not measurement.good:
            return
        self._seen[index] = True
        closed = abs(measurement.value - self._contacts[index].closed) < SAME
        if closed != self._closed[index]:
            self._closed[index] = closed
            self._on_change()

    def requests(self, now_s: float) -> tuple[ShedRequest, ...]:
        """What is called now."""
        lost = self._lost(now_s)
        return tuple(
            request
            for index, request in enumerate(self._requests)
            if self._closed[index] or (lost[index] and self._contacts[index].lost_calls)
        )

    def conditions(self, now_s: float) -> Iterator[tuple[str, str]]:
        """What is wrong, by key and text."""
        for index, lost in enumerate(self._lost(now_s)):
            contact = self._contacts[index]
            if lost:
                calls = contact.lost_calls or self._closed[index]
                counts = f"closed: level {contact.level} is called" if calls else "open"
                cannot = "cannot be read" if self._seen[index] else "has not been read since the start"
                yield f"contact {contact.name}", f"{cannot}, counts as {counts}"

    def _lost(self, now_s: float) -> Sequence[bool]:
        return [
            not newest.is_usable(now_s, contact.age_max_s) and (seen or now_s >= self._lost_from_s)
            for newest, seen, contact in zip(self._newest, self._seen, self._contacts, strict=True)
        ]
