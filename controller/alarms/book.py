"""One step of all alarms: conditions in, a new book and what happened out.

A condition that is told becomes an alarm after the on-delay of its kind, and one that is told no more returns
after its off-delay. An alarm may rise `CHATTER_COUNT` times within `CHATTER_S`; then it stays up until that
time is over, however its condition flickers: a chattering contact must not bury the others.

First-out: alarms of one group whose conditions came within `CASCADE_S` are one cascade. The condition that
came first is marked, whatever the delays were; of those that came in the same step it is the one that stands
first in the table, where causes stand before effects. The others name it.

Bounded: `KIND_MAX` alarms of one kind, so that a flood of one kind crowds out no other. What finds no place
is counted in an alarm of its own. To make room the quiet go first, then those that have returned, which is
said.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from controller.alarms.model import (
    KEY_MAX_CHARS,
    NEVER_S,
    TEXT_MAX_CHARS,
    TRANSITIONS,
    Book,
    Happening,
    Hidden,
    Record,
    State,
    Stepped,
    Turn,
)
from controller.alarms.table import LEFT_OUT, AlarmSettings, Entry

KIND_MAX: Final = 96  # more of one kind is one fault, not many
CHATTER_COUNT: Final = 3  # three in a minute is what ISA-18.2 calls chattering
CHATTER_S: Final = 60.0
CASCADE_S: Final = 30.0  # from a lost broker to the last alarm that follows from it
SETTLE_S: Final = 15.0  # after a start until every condition can be judged: devices and sources were heard
FORGOTTEN: Final = "forgotten, to make room"


def step(
    settings: AlarmSettings,
    book: Book,
    conditions: Iterable[tuple[str, str]],
    now_s: float,
    now_utc_s: float,
) -> Stepped:
    """The book after what holds now: key and text of each condition; of one key the last counts."""
    told = {key[:KEY_MAX_CHARS]: text[:TEXT_MAX_CHARS] for key, text in conditions}
    records = dict(book.records)
    happenings = _make_room(settings, records, told, now_utc_s)
    raised: list[str] = []
    for key, before in records.items():
        if before.is_quiet and key not in told:
            continue
        after = _judged(before, told.get(key), now_s)
        for turn in _turns(settings.entry(key), after, now_s):
            was, after = after, turned(after, turn, now_s, now_utc_s)
            happenings.append(happening(was, after, turn.value, now_utc_s))
            if turn is Turn.RAISED:
                raised.append(key)
        records[key] = after
    firsts = _cascades(settings, book.firsts, records, raised)
    return Stepped(Book(records, firsts), tuple(happenings))


def resumed(settings: AlarmSettings, kept: Iterable[Record], now_s: float, now_utc_s: float) -> Book:
    """A book from before a restart, on this process's clocks.

    What stood goes on standing until every condition has had time to be judged anew. A shelf ends when it
    was meant to by the wall clock, and no later than after the time it was meant for.
    """
    room: Counter[str] = Counter()
    records: dict[str, Record] = {}
    for record in sorted(kept, key=lambda record: (record.is_quiet, not record.is_active)):
        entry = settings.entry(record.key)
        kind = settings.room(record.key)
        room[kind] += 1
        if room[kind] > KIND_MAX or len(record.key) > KEY_MAX_CHARS:
            continue
        records[record.key] = replace(
            record,
            text=record.text[:TEXT_MAX_CHARS],
            holds=False,
            changed_s=now_s + SETTLE_S,
            onset_s=NEVER_S,
            raised_s=(),
            hidden=_still_hidden(settings, record.hidden, entry, now_s, now_utc_s),
        )
    return Book(records)


def turned(record: Record, turn: Turn, now_s: float, now_utc_s: float) -> Record:
    """The record after a turn; what the table of transitions does not know changes no state."""
    state = TRANSITIONS.get((record.state, turn), record.state)
    record = replace(record, state=state, first_out="" if state is State.NORMAL else record.first_out)
    if turn is Turn.SHOWN_AGAIN:
        return replace(record, hidden=None)
    if turn is Turn.RAISED:
        return replace(
            record,
            onset_s=record.changed_s,
            since_utc_s=now_utc_s - (now_s - record.changed_s),
            count=record.count + 1,
            raised_s=(*record.raised_s, now_s)[-CHATTER_COUNT:],
            by="",
        )
    return record


def happening(
    was: Record, now: Record, what: str, now_utc_s: float, by: str = "", why: str = ""
) -> Happening:
    return Happening(now_utc_s, now.key, what, shown(was), shown(now), by, why, now.text)


def shown(record: Record) -> str:
    """The state in a word, as people see it."""
    return record.state.value if record.hidden is None else record.hidden.word


def text(record: Record) -> str:
    """Its sentence; what has gone and is kept up over its time, for it comes and goes, says so."""
    raised_s = record.raised_s
    chatters = len(raised_s) == CHATTER_COUNT and raised_s[-1] - raised_s[0] < CHATTER_S
    if record.is_active and not record.holds and chatters:
        return f"{record.text} (gone again; it came {CHATTER_COUNT} times within a minute)"
    return record.text


# --- one alarm ---------------------------------------------------------------------------------------------


def _judged(record: Record, text: str | None, now_s: float) -> Record:
    """What its condition says now; None: it does not hold."""
    if (text is not None) != record.holds:
        record = replace(record, holds=text is not None, changed_s=now_s)
    return record if text in {None, record.text} else replace(record, text=text)


def _turns(entry: Entry, record: Record, now_s: float) -> Iterator[Turn]:
    """What is due: at most the end of a shelf and one turn of the condition."""
    hidden, lasted_s = record.hidden, now_s - record.changed_s
    if hidden is not None and hidden.until_s is not None and now_s >= hidden.until_s:
        yield Turn.SHOWN_AGAIN
    if record.holds and not record.is_active and lasted_s >= entry.on_delay_s:
        yield Turn.RAISED
    gone = record.is_active and not record.holds and lasted_s >= entry.off_delay_s
    if gone and not _chatters(record, now_s):
        yield Turn.CAUGHT if entry.latching else Turn.CLEARED


def _chatters(record: Record, now_s: float) -> bool:
    return len(record.raised_s) == CHATTER_COUNT and now_s - record.raised_s[0] < CHATTER_S


def _still_hidden(
    settings: AlarmSettings, hidden: Hidden | None, entry: Entry, now_s: float, now_utc_s: float
) -> Hidden | None:
    """As ordered before the restart, except where it has run out or is not allowed: that ends at once."""
    if hidden is None or (hidden.until_utc_s is None and entry.suppressible):
        return hidden
    until_utc_s = now_utc_s if hidden.until_utc_s is None or not entry.suppressible else hidden.until_utc_s
    meant_s = min(until_utc_s - hidden.since_utc_s, settings.shelve_max_s)
    return replace(hidden, until_s=now_s + min(until_utc_s - now_utc_s, meant_s), until_utc_s=until_utc_s)


# --- all of them -------------------------------------------------------------------------------------------


def _make_room(
    settings: AlarmSettings, records: dict[str, Record], told: dict[str, str], now_utc_s: float
) -> list[Happening]:
    """Enter alarms told for the first time; count those that find no place, as conditions in `told`."""
    unknown = [key for key in told if key not in records]
    if not unknown:
        return []
    taken = Counter(settings.room(key) for key in records)
    spares: dict[str, list[Record]] = {}
    happenings: list[Happening] = []
    left_out: Counter[str] = Counter()
    for key in unknown:
        kind = settings.room(key)
        if taken[kind] < KIND_MAX:
            taken[kind] += 1
        else:
            if kind not in spares:
                spares[kind] = _spares(settings, records, told, kind)
            if not spares[kind]:
                left_out[kind] += 1
                continue
            spare = spares[kind].pop()
            del records[spare.key]
            if not spare.is_quiet:
                happenings.append(happening(spare, Record(spare.key), FORGOTTEN, now_utc_s))
        records[key] = Record(key)
    for kind, count in left_out.items():
        key = f"{LEFT_OUT} {kind}"
        told[key] = f"{count} more of `{kind}` than the {KIND_MAX} that are listed"
        records.setdefault(key, Record(key))
    return happenings


def _spares(
    settings: AlarmSettings, records: Mapping[str, Record], told: Mapping[str, str], kind: str
) -> list[Record]:
    """Alarms of a kind that may make room, the dearest first."""
    found = [
        record
        for key, record in records.items()
        if key not in told
        and record.hidden is None
        and record.state in {State.NORMAL, State.RETURNED}
        and settings.room(key) == kind
    ]
    return sorted(found, key=lambda record: (record.is_quiet, -record.changed_s))


def _cascades(
    settings: AlarmSettings, firsts: Mapping[str, str], records: dict[str, Record], raised: Iterable[str]
) -> Mapping[str, str]:
    """Mark in `records` who came first of what has risen. Returns the newest cascade's first, by group."""

    def place(key: str) -> tuple[float, int]:
        return records[key].onset_s, settings.rank(key)

    after = dict(firsts)
    for key in sorted(raised, key=place):
        group = settings.entry(key).group
        if not group:
            continue
        first = after.get(group, "")
        known = records.get(first)
        onset_s = records[key].onset_s
        follows = known is not None and bool(known.first_out) and abs(onset_s - known.onset_s) <= CASCADE_S
        if follows and place(first) <= place(key):
            records[key] = replace(records[key], first_out=first)
            continue
        after[group] = key
        records[key] = replace(records[key], first_out=key)
        if follows:  # its condition was there before, its delay is longer
            for other in [one for one in records.values() if one.first_out == first]:
                records[other.key] = replace(other, first_out=key)
    return after
