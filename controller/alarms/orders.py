"""What operators order, and why it is refused.

    acknowledge   I have seen it
    reset         take a latched alarm off the list whose condition is gone; starts nothing
    shelve        do not show it to me for so long, because ...; ends by itself
    unshelve      show it again now
    out_of_service, return_to_service   the same without an end, for what is under repair

Acknowledge and reset may be asked of all alarms at once: that is, of those shown. Hidden ones are named or
left alone. Whatever could cost equipment is never hidden. Every order is journalled, the refused ones too.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from controller.alarms.book import happening, shown, turned
from controller.alarms.model import (
    CAUGHT,
    KEY_MAX_CHARS,
    UNSEEN,
    WORDS_MAX_CHARS,
    Book,
    Hidden,
    Record,
    State,
    Stepped,
    Turn,
)
from controller.alarms.table import AlarmSettings, Entry

ALL: Final = ""


class Verb(StrEnum):
    ACKNOWLEDGE = "acknowledge"
    RESET = "reset"
    SHELVE = "shelve"
    UNSHELVE = "unshelve"
    OUT_OF_SERVICE = "out_of_service"
    RETURN_TO_SERVICE = "return_to_service"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked, of which alarm (its key or `ALL`), by whom and why."""

    verb: Verb
    key: str
    by: str
    reason: str = ""
    for_s: float = 0.0

    def shortened(self) -> "Order":
        """As far as it is kept: a client writes what it likes."""
        return replace(
            self,
            key=self.key[:KEY_MAX_CHARS],
            by=self.by.strip()[:WORDS_MAX_CHARS],
            reason=self.reason.strip()[:WORDS_MAX_CHARS],
        )


class _Case(NamedTuple):
    """An order and everything that decides about it."""

    order: Order
    record: Record
    entry: Entry
    settings: AlarmSettings
    now_s: float
    now_utc_s: float


def carry_out(settings: AlarmSettings, book: Book, order: Order, now_s: float, now_utc_s: float) -> Stepped:
    """The book after an order; `refused` says why it changed nothing."""
    order = order.shortened()
    if not order.by:
        return _refusal(book, order, "nobody's order: say who asks", now_utc_s)
    if order.key == ALL:
        return _all(settings, book, order, now_s, now_utc_s)
    record = book.records.get(order.key)
    if record is None and settings.is_one(order.key):
        record = Record(order.key)  # never came yet, but is known to be possible: repairs are planned
    if record is None:
        why = f"no alarm {order.key!r} is known here; `powerblock alarms` lists the names"
        return _refusal(book, order, why, now_utc_s)
    case = _Case(order, record, settings.entry(order.key), settings, now_s, now_utc_s)
    found = VERBS[order.verb](case)
    return (
        _refusal(book, order, found, now_utc_s) if isinstance(found, str) else _obeyed(book, [(case, found)])
    )


def _all(settings: AlarmSettings, book: Book, order: Order, now_s: float, now_utc_s: float) -> Stepped:
    states = OF_ALL.get(order.verb)
    if states is None:
        return _refusal(book, order, f"{order.verb} needs the name of one alarm", now_utc_s)
    chosen = [one for one in book.records.values() if one.hidden is None and one.state in states]
    cases = [_Case(order, one, settings.entry(one.key), settings, now_s, now_utc_s) for one in chosen]
    done = _obeyed(book, [(case, VERBS[order.verb](case)) for case in cases])
    everything = Record("all", text=f"{len(cases)} alarms")
    line = happening(everything, everything, order.verb.value, now_utc_s, order.by, order.reason)
    return replace(done, happenings=(line, *done.happenings))


def _obeyed(book: Book, found: Iterable[tuple[_Case, Record | str]]) -> Stepped:
    records, happenings = dict(book.records), []
    for case, record in found:
        assert isinstance(record, Record), record
        order = case.order
        records[record.key] = after = replace(record, by=order.by)
        line = happening(case.record, after, order.verb.value, case.now_utc_s, order.by, order.reason)
        happenings.append(line)
    return Stepped(replace(book, records=records), tuple(happenings))


def _refusal(book: Book, order: Order, why: str, now_utc_s: float) -> Stepped:
    record = book.records.get(order.key) or Record(order.key)
    line = happening(record, record, f"{order.verb} refused", now_utc_s, order.by, why)
    return Stepped(book, (line,), why)


# --- one verb each: the record after it, or why not ---------------------------------------------------------


def _acknowledge(case: _Case) -> Record | str:
    record = case.record
    if record.state not in UNSEEN:
        return f"{record.key} is {record.state.value}: there is nothing to acknowledge"
    return turned(record, Turn.ACKNOWLEDGED, case.now_s, case.now_utc_s)


def _reset(case: _Case) -> Record | str:
    record = case.record
    if record.is_active:
        return f"{record.key} cannot be reset while it lasts: {record.text}"
    if record.state not in CAUGHT:
        return f"{record.key} is {record.state.value}, not latched: there is nothing to reset"
    return turned(record, Turn.RESET, case.now_s, case.now_utc_s)


def _shelve(case: _Case) -> Record | str:
    order, most_s = case.order, case.settings.shelve_max_s
    if not (math.isfinite(order.for_s) and 0.0 < order.for_s <= most_s):
        return f"an alarm can be shelved for {most_s:g} s at most, and for more than none"
    if case.record.hidden is not None and case.record.hidden.until_s is None:
        return f"{case.record.key} is out of service: nothing is left to shelve"
    return _hide(case, order.for_s)


def _out_of_service(case: _Case) -> Record | str:
    if case.record.hidden is not None and case.record.hidden.until_s is None:
        return f"{case.record.key} is out of service already"
    return _hide(case, None)


def _hide(case: _Case, for_s: float | None) -> Record | str:
    order, record = case.order, case.record
    if not case.entry.suppressible:
        return f"{record.key} is never hidden: it could cost equipment"
    if not order.reason:
        return "say why: whoever comes next must know"
    until_s = None if for_s is None else case.now_s + for_s
    until_utc_s = None if for_s is None else case.now_utc_s + for_s
    return replace(record, hidden=Hidden(order.by, order.reason, case.now_utc_s, until_s, until_utc_s))


def _unshelve(case: _Case) -> Record | str:
    return _shown_again(case, "shelved")


def _return_to_service(case: _Case) -> Record | str:
    return _shown_again(case, "out of service")


def _shown_again(case: _Case, word: str) -> Record | str:
    if case.record.hidden is None or case.record.hidden.word != word:
        return f"{case.record.key} is {shown(case.record)}, not {word}"
    return turned(case.record, Turn.SHOWN_AGAIN, case.now_s, case.now_utc_s)


VERBS: Final[Mapping[Verb, Callable[[_Case], Record | str]]] = MappingProxyType(
    {
        Verb.ACKNOWLEDGE: _acknowledge,
        Verb.RESET: _reset,
        Verb.SHELVE: _shelve,
        Verb.UNSHELVE: _unshelve,
        Verb.OUT_OF_SERVICE: _out_of_service,
        Verb.RETURN_TO_SERVICE: _return_to_service,
    }
)
OF_ALL: Final[Mapping[Verb, frozenset[State]]] = MappingProxyType(
    {Verb.ACKNOWLEDGE: UNSEEN, Verb.RESET: CAUGHT}
)
