"""The alarm system as the controller uses it: tell it what holds, pass orders on, show what there is.

A thin shell around `book` and `orders`: it keeps the present book, and hands what changed to the memory on
disk and to the journal. Faults of its own disk are conditions like any other.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from controller.alarms import book as books
from controller.alarms import memory, orders
from controller.alarms.journal import AlarmJournal
from controller.alarms.memory import Memory
from controller.alarms.model import CAUGHT, UNSEEN, Book, Happening, Record, State, Stepped
from controller.alarms.orders import Order, Verb
from controller.alarms.table import URGENCY, AlarmSettings, Priority
from controller.clock import now_s, now_utc_s
from controller.image.model import AlarmView, Outcome, Result

EVENTS_KEPT: Final = 200  # for servers and panels; the journal has them all
Clock = Callable[[], float]


class AlarmDesk:
    """All alarms of the block.

    Args:
        state_dir: where book and journal are kept.
        settings: entries of configured points, longest shelving.
        clock: monotonic and wall clock, s.

    Attributes:
        events: what happened, the newest last.
    """

    def __init__(
        self,
        state_dir: Path,
        settings: AlarmSettings | None = None,
        *,
        clock: tuple[Clock, Clock] = (now_s, now_utc_s),
    ) -> None:
        kept, unreadable = memory.load(state_dir)
        self.events: deque[Happening] = deque(maxlen=EVENTS_KEPT)
        self._settings = settings or AlarmSettings()
        self._now_s, self._now_utc_s = clock
        self._book: Book = books.resumed(self._settings, kept, self._now_s(), self._now_utc_s())
        self._unreadable = unreadable
        self._memory = Memory(state_dir)
        self._journal = AlarmJournal(state_dir)
        self._shown: tuple[AlarmView, ...] = ()
        self._shown_of: Book | None = None

    @property
    def fault(self) -> str:
        """Why book or journal are not on disk; empty: they are."""
        return self._memory.fault or self._journal.fault

    def update(self, conditions: Iterable[tuple[str, str]], at_s: float, at_utc_s: float) -> None:
        """Everything that holds now: key and text. What is left out holds no longer."""
        told = [*conditions, *self._own()]
        self._unreadable = ""  # said once: it stays until somebody has seen it
        self._take(books.step(self._settings, self._book, told, at_s, at_utc_s), at_s)

    def command(
        self, verb: str, by: str, *, key: str = orders.ALL, for_s: float = 0.0, reason: str = ""
    ) -> Outcome:
        """Carry an operator's order out; `key` "" means all. Raises ValueError for what is no verb."""
        order = Order(verb=Verb(verb), key=key, by=by, reason=reason, for_s=for_s)
        at_s = self._now_s()
        done = orders.carry_out(self._settings, self._book, order, at_s, self._now_utc_s())
        self._take(done, at_s)
        return Outcome(result=Result.REJECTED if done.refused else Result.ACCEPTED, reason=done.refused)

    def view(self) -> tuple[AlarmView, ...]:
        """Every alarm that is not normal or is hidden: hidden ones last, else the most urgent first."""
        if self._shown_of is not self._book:
            self._shown_of = self._book
            shown = [self._view(one) for one in self._book.records.values() if _is_listed(one)]
            self._shown = tuple(sorted(shown, key=_order))
        return self._shown

    def close(self) -> None:
        self._memory.close()
        self._journal.close()

    def _own(self) -> Iterator[tuple[str, str]]:
        for key, fault in (
            ("alarm file", self._memory.fault),
            ("alarm memory", self._unreadable),
            ("alarm journal", self._journal.fault),
        ):
            if fault:
                yield key, fault

    def _take(self, done: Stepped, at_s: float) -> None:
        self._book = done.book
        for happening in done.happenings:
            self.events.append(happening)
            self._journal.record(happening, at_s)
        if done.happenings:
            self._memory.keep(done.book)

    def _view(self, record: Record) -> AlarmView:
        entry, hidden = self._settings.entry(record.key), record.hidden
        return AlarmView(
            key=record.key,
            text=books.text(record),
            priority=entry.priority.value,
            state=books.shown(record),
            active=record.is_active,
            acknowledged=record.state not in UNSEEN,
            since_utc_s=record.since_utc_s,
            latched=record.state in CAUGHT or (record.is_active and entry.latching),
            shelved_until_utc_s=None if hidden is None else hidden.until_utc_s,
            out_of_service=hidden is not None and hidden.until_s is None,
            first_out=record.first_out,
            response=entry.response.replace("`", ""),
            count=record.count,
            by=record.by if hidden is None else f"{hidden.by}: {hidden.reason}",
        )


def _is_listed(record: Record) -> bool:
    return record.state is not State.NORMAL or record.hidden is not None


def _order(view: AlarmView) -> tuple[bool, int, bool, float, str]:
    hidden = view.out_of_service or view.shelved_until_utc_s is not None
    return hidden, URGENCY[Priority(view.priority)], view.acknowledged, -view.since_utc_s, view.key
