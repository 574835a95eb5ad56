"""`grid.loadtarget.set.v1`: what the grid operator wants of which feed, and when.

A message holds targets: a span of time, the feeds it is for (none named: all), and a power to stay at or
below, or null: back to the feed's own default. No start means on arrival, no end means until replaced.
`read` takes a message whole or not at all.

`LoadTargetBook` keeps the rule of the contract's older sister, DPS NvGrid: for every point in time the latest
target that covers it is the effective one. It does so as a painter does: each target, as it arrives, is
painted over its span of its feeds' time lines, and null is painted as a gap. What is left are windows that
never overlap; what a short target covered shows again when that one is over. Latest is what its publisher
made last: a message that was overtaken on its way is refused.

A value of 0 is legal in the schema and not in its prose ("must be > 0"). It is read as 0 W, the strictest
of all limits: to refuse it would leave the feed at full power against an operator who wants none of it, and
to read it as "no limit" would be worse. What cannot be shed is the law's to say.

Source: docs.nvidia.com/datacenter/dps, NvGrid; DSX Flex 1.7.0, SetLoadTargetData.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

import msgspec

from protocols.dsx_flex.envelope import AHEAD_MAX_S, Envelope, Seen
from protocols.dsx_flex.topics import LOAD_TARGET_SET
from protocols.dsx_flex.wire import (
    FOREVER_UTC_S,
    POWER_MAX_W,
    DsxFlexError,
    a_list,
    a_text,
    an_object,
    moment,
    power,
    power_w,
    time_utc_s,
)
from protocols.members import shown

TARGETS_MAX: Final = 1000  # per message: 3 days of 5-minute targets
FEED_TAGS_MAX: Final = 64  # per target; a hall has a dozen feeds
WINDOWS_MAX: Final = 2000  # per feed: a full message, painted over another one
OVER_KEPT_S: Final = 86_400.0  # windows stay that long after their end: a wall clock may be wrong by hours
PRIORITY_FIRST_MESSAGE: Final = (
    2**31 - 1
)  # each later message gets the next lower number, for 68 years at 1/s
REMEDY_KEPT: Final = "move the file away and let the operator send anew"
PUBLISHERS_MAX: Final = 16  # whose newest message is remembered; one steers, the others did once
KEPT_VERSION: Final = 2  # 1 knew no newest message

OVER: Final = "every target in it is over by our clock; send it anew"
SENT_BEFORE: Final = (
    "this body was sent before; sign anew to loosen a limit (RS256 signs the same alike: put an exp into it)"
)


@dataclass(frozen=True)
class Target:
    """One wish, as said.

    Attributes:
        limit_w: stay at or below; None: back to the feed's default.
        starts_utc_s: None: on arrival.
        ends_utc_s: FOREVER_UTC_S: until replaced.
        feed_tags: empty: all feeds.
        best_effort: shed only what disturbs nobody.
    """

    limit_w: float | None
    starts_utc_s: float | None = None
    ends_utc_s: float = FOREVER_UTC_S
    feed_tags: tuple[str, ...] = ()
    best_effort: bool = False


def read(data: Mapping[str, Any]) -> tuple[Target, ...]:
    """The targets of a message, in its order.

    Args:
        data: the envelope's, opened.

    Raises:
        DsxFlexError: any of them cannot be meant; then none counts.
    """
    targets = a_list(data.get("targets"), "targets", TARGETS_MAX)
    if not targets:
        raise DsxFlexError("targets: empty; send one, with load_constraint null to remove a limit")
    return tuple(_target(one, f"targets[{number}]") for number, one in enumerate(targets))


def _target(value: object, path: str) -> Target:
    said = an_object(value, path)
    if "load_constraint" not in said:
        raise DsxFlexError(f"{path}.load_constraint: missing; send a power, or null to remove the limit")
    constraint = said["load_constraint"]
    starts_utc_s, ends_utc_s = _interval(said.get("interval"), f"{path}.interval")
    return Target(
        limit_w=None if constraint is None else power_w(constraint, f"{path}.load_constraint"),
        starts_utc_s=starts_utc_s,
        ends_utc_s=ends_utc_s,
        feed_tags=_feed_tags(said.get("feed_tags", []), f"{path}.feed_tags"),
        best_effort=_best_effort(said.get("strategy", {}), f"{path}.strategy"),
    )


def _interval(value: object, path: str) -> tuple[float | None, float]:
    said = an_object(value, path)
    start, end = said.get("start_time", ...), said.get("end_time", ...)
    starts_utc_s = None if start is ... else time_utc_s(start, f"{path}.start_time")
    ends_utc_s = FOREVER_UTC_S if end is ... else time_utc_s(end, f"{path}.end_time")
    if starts_utc_s is not None and ends_utc_s <= starts_utc_s:
        raise DsxFlexError(f"{path}.end_time: {shown(end)} is not after start_time {shown(start)}")
    return starts_utc_s, ends_utc_s


def _feed_tags(value: object, path: str) -> tuple[str, ...]:
    tags = a_list(value, path, FEED_TAGS_MAX)
    return tuple(dict.fromkeys(a_text(tag, f"{path}[{number}]") for number, tag in enumerate(tags)))


def _best_effort(value: object, path: str) -> bool:
    said = an_object(value, path).get("best_effort", False)
    if not isinstance(said, bool):
        raise DsxFlexError(f"{path}.best_effort: {shown(said)}; send true or false")
    return said


def data(targets: Iterable[Target]) -> dict[str, Any]:
    """The data of a message that holds these targets: the operator's side of `read`."""
    return {"targets": [_target_data(target) for target in targets]}


def _target_data(target: Target) -> dict[str, Any]:
    interval = {}
    if target.starts_utc_s is not None:
        interval["start_time"] = moment(target.starts_utc_s)
    if target.ends_utc_s < FOREVER_UTC_S:
        interval["end_time"] = moment(target.ends_utc_s)
    said: dict[str, Any] = {
        "interval": interval,
        "load_constraint": None if target.limit_w is None else power(target.limit_w),
        "strategy": {"best_effort": target.best_effort},
    }
    return said | ({"feed_tags": list(target.feed_tags)} if target.feed_tags else {})


# -- the book of targets ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """One power on one feed for one span of time. Windows of one feed never overlap.

    Attributes:
        priority: lower wins, later messages are lower. Of use where windows are kept open on another clock
            and may overlap for an instant; it never changes once given.
        message_id: of the message that asked for it, by `source`.
        correlation_id: by which status and alerts refer to it.
    """

    feed: str
    limit_w: float
    starts_utc_s: float
    ends_utc_s: float  # FOREVER_UTC_S: until replaced
    best_effort: bool
    priority: int
    source: str
    message_id: str
    correlation_id: str

    def covers(self, utc_s: float) -> bool:
        return self.starts_utc_s <= utc_s < self.ends_utc_s


@dataclass(frozen=True)
class Verdict:
    """What became of a message.

    Attributes:
        accepted: the book now says what the operator wants. False: the book is as it was.
        reason: "accepted", "repeated" (a new message that says what stands already), "duplicate" (the same
            message twice), or a sentence.
        ignored: feeds named in it that are not ours.
        is_ours: False: it names feeds, and none of ours.
    """

    accepted: bool
    reason: str
    ignored: tuple[str, ...] = ()
    is_ours: bool = True


class LoadTargetBook:
    """The targets in force and to come on our feeds. "Now" is resolved once, on arrival.

    Windows that are over stay for a day, since a wrong wall clock may only seem to have passed them.
    """

    def __init__(self, feeds: Iterable[str]) -> None:
        self.feeds: Final = tuple(dict.fromkeys(feeds))
        self.revision = 0  # grows with every message that changed the schedule
        self._lines: dict[str, tuple[Window, ...]] = dict.fromkeys(self.feeds, ())
        self._seen = Seen()
        self._held: frozenset[str] = frozenset()
        self._newest_utc_s: dict[str, float] = {}  # by publisher, when the newest accepted message was made

    def apply(
        self,
        envelope: Envelope,
        targets: tuple[Target, ...],
        now_utc_s: float,
        *,
        may_loosen: bool = True,
    ) -> Verdict:
        """Takes a message into the book, as a whole or not at all.

        Args:
            envelope: verified.
            targets: its data, from `read`.
            now_utc_s: the moment of its arrival.
            may_loosen: False: it counts only where it lifts or raises no limit, at any moment from now on.
        """
        if envelope.type != LOAD_TARGET_SET:
            raise ValueError(f"a book of load targets does not take {envelope.type}")
        if envelope in self._seen:
            return Verdict(True, "duplicate")
        ignored = tuple(sorted({tag for one in targets for tag in one.feed_tags} - self._lines.keys()))
        ours = [one for one in targets if not one.feed_tags or self._lines.keys() & one.feed_tags]
        if not ours:
            named, known = ", ".join(ignored), ", ".join(self.feeds) or "none"
            return Verdict(
                False,
                f"feed_tags: none of our feeds among {shown(named)}; ours: {known}",
                ignored,
                is_ours=False,
            )
        coming = [one for one in ours if one.ends_utc_s > now_utc_s]
        if self._is_overtaken(envelope, now_utc_s) or not coming:
            reason = OVER if not coming else "older than known"
            return Verdict(False, reason, ignored)
        lines = self._painted(envelope, coming, now_utc_s)
        if reason := self._unfit(lines, now_utc_s, may_loosen=may_loosen):
            return Verdict(False, reason, ignored)
        self._enter(envelope)
        settled = {feed: self._settled(line, envelope, now_utc_s) for feed, line in lines.items()}
        if all(
            _coming(line, now_utc_s) == _coming(self._lines[feed], now_utc_s)
            for feed, line in settled.items()
        ):
            return Verdict(True, "repeated", ignored)
        self._lines = settled
        self.revision += 1
        return Verdict(True, "accepted", ignored)

    def hold(self, correlation_ids: frozenset[str]) -> None:
        """Names the windows that the caller acts on: they stay in the book, however long over they seem."""
        self._held = correlation_ids

    def windows(self, now_utc_s: float) -> tuple[Window, ...]:
        """All windows that are not over, by feed and start."""
        return tuple(one for line in self._lines.values() for one in line if one.ends_utc_s > now_utc_s)

    def effective(self, feed: str, now_utc_s: float) -> Window | None:
        """What the operator wants of a feed at that moment; None: its default."""
        line = self._lines[feed]
        index = bisect_right(line, now_utc_s, key=_start) - 1
        return line[index] if index >= 0 and line[index].covers(now_utc_s) else None

    def to_dict(self) -> dict[str, Any]:
        """The whole book, ready for JSON. Not to be changed: its windows are the book's own."""
        return {
            "v": KEPT_VERSION,
            "revision": self.revision,
            "seen": self._seen.keys,
            "windows": [vars(one) for line in self._lines.values() for one in line],
            "newest_utc_s": dict(self._newest_utc_s),
        }

    @classmethod
    def from_dict(cls, feeds: Iterable[str], said: object) -> "LoadTargetBook":
        """A book as `to_dict` left it; windows of feeds that are no longer ours are dropped.

        Raises:
            DsxFlexError: anything else than `to_dict` made.
        """
        book = cls(feeds)
        try:
            kept = msgspec.convert(said, _Kept)
        except msgspec.ValidationError as error:
            raise DsxFlexError(f"kept load targets: {error}; {REMEDY_KEPT}") from error
        if kept.v not in (1, KEPT_VERSION):
            raise DsxFlexError(f"kept load targets: version {kept.v}, not {KEPT_VERSION}; {REMEDY_KEPT}")
        for feed in book.feeds:
            line = tuple(window for window in kept.windows if window.feed == feed)
            if not all(map(_is_sound, line)) or any(
                one.ends_utc_s > two.starts_utc_s for one, two in pairwise(line)
            ):
                raise DsxFlexError(f"kept load targets: windows of feed {feed} make no sense; {REMEDY_KEPT}")
            book._lines[feed] = line
        book.revision = kept.revision
        book._seen = Seen(kept.seen)
        book._newest_utc_s = dict(kept.newest_utc_s)
        return book

    def _unfit(self, lines: Mapping[str, tuple[Window, ...]], now_utc_s: float, *, may_loosen: bool) -> str:
        """Why these lines may not become ours; empty: they may."""
        for feed, line in lines.items():
            if len(line) > WINDOWS_MAX:
                return f"feed {feed}: over {WINDOWS_MAX} windows ahead; send fewer or longer targets"
            if not may_loosen and _loosens(self._lines[feed], line, now_utc_s):
                return SENT_BEFORE
        return ""

    def _is_overtaken(self, envelope: Envelope, now_utc_s: float) -> bool:
        """Whether its publisher has said something newer. What lies ahead of us, a wrong clock has said."""
        newest_utc_s = self._newest_utc_s.get(envelope.source, -math.inf)
        return envelope.time_utc_s < newest_utc_s <= now_utc_s + AHEAD_MAX_S

    def _enter(self, envelope: Envelope) -> None:
        self._seen.enter(envelope)
        self._newest_utc_s.pop(envelope.source, None)
        self._newest_utc_s[envelope.source] = envelope.time_utc_s
        if len(self._newest_utc_s) > PUBLISHERS_MAX:
            del self._newest_utc_s[next(iter(self._newest_utc_s))]

    def _painted(
        self, envelope: Envelope, targets: list[Target], now_utc_s: float
    ) -> dict[str, tuple[Window, ...]]:
        """The time lines with these targets on top, in their order."""
        lines = {feed: list(_shed(line, now_utc_s, self._held)) for feed, line in self._lines.items()}
        for target in targets:
            for feed in target.feed_tags or self.feeds:
                if feed in lines:
                    window = self._window(envelope, target, feed, now_utc_s)
                    _paint(lines[feed], target, window)
        return {feed: tuple(line) for feed, line in lines.items()}

    def _settled(self, line: tuple[Window, ...], envelope: Envelope, now_utc_s: float) -> tuple[Window, ...]:
        """A line on which a wish that stands already, repeated, is still the first one.

        Operators repeat themselves: what says "now" every second must not begin anew every second.
        """

        def first(window: Window) -> Window:
            if window.message_id != envelope.id:
                return window
            known = (one for one in self._lines[window.feed] if _repeats(window, one, envelope, now_utc_s))
            return next(known, window)

        settled: list[Window] = []
        for window in line:
            kept = first(window)
            if settled and settled[-1].ends_utc_s > kept.starts_utc_s:
                if settled[-1].starts_utc_s == kept.starts_utc_s:
                    settled.pop()  # the piece of it that the repetition has cut off
                else:
                    kept = window
            settled.append(kept)
        return tuple(settled)

    def _window(self, envelope: Envelope, target: Target, feed: str, now_utc_s: float) -> Window | None:
        if target.limit_w is None:
            return None
        return Window(
            feed=feed,
            limit_w=target.limit_w,
            starts_utc_s=now_utc_s if target.starts_utc_s is None else target.starts_utc_s,
            ends_utc_s=target.ends_utc_s,
            best_effort=target.best_effort,
            priority=PRIORITY_FIRST_MESSAGE - self.revision,
            source=envelope.source,
            message_id=envelope.id,
            correlation_id=envelope.thread_id,
        )


@dataclass(frozen=True)
class _Kept:
    v: int
    revision: int
    seen: tuple[tuple[str, str], ...]
    windows: tuple[Window, ...]
    newest_utc_s: dict[str, float] = field(default_factory=dict)


def _paint(line: list[Window], target: Target, window: Window | None) -> None:
    """One target over one time line, in place; cheap, for a message may hold a thousand.

    What says "now" also covers the past: nothing before it can matter, whatever our clock says tomorrow, and
    a site that repeats itself every minute leaves no trail of windows that are over.
    """
    starts_utc_s = -math.inf if target.starts_utc_s is None else target.starts_utc_s
    first = bisect_right(line, starts_utc_s, key=_end)
    after = bisect_left(line, target.ends_utc_s, key=_start)
    covered = line[first:after]
    pieces = [] if window is None else [window]
    if covered and covered[0].starts_utc_s < starts_utc_s:
        pieces.insert(0, replace(covered[0], ends_utc_s=starts_utc_s))
    if covered and covered[-1].ends_utc_s > target.ends_utc_s:
        pieces.append(replace(covered[-1], starts_utc_s=target.ends_utc_s))
    line[first:after] = pieces


def _shed(line: tuple[Window, ...], now_utc_s: float, held: frozenset[str]) -> tuple[Window, ...]:
    """Without those long over; of those over, only as many as leave half the room to what is to come."""
    over = [one for one in line if one.ends_utc_s <= now_utc_s]
    first = max(0, len(over) - WINDOWS_MAX // 2)
    kept = (
        one
        for number, one in enumerate(over)
        if (number >= first and one.ends_utc_s > now_utc_s - OVER_KEPT_S) or one.correlation_id in held
    )
    return (*kept, *line[len(over) :])


def _repeats(window: Window, known: Window, envelope: Envelope, now_utc_s: float) -> bool:
    """Whether a new window is a known one, said again."""
    began = (
        known.starts_utc_s == window.starts_utc_s or known.starts_utc_s <= window.starts_utc_s == now_utc_s
    )
    thread = envelope.correlation_id in (None, known.correlation_id)
    said = (window.limit_w, window.ends_utc_s, window.best_effort)
    return began and thread and said == (known.limit_w, known.ends_utc_s, known.best_effort)


def _loosens(before: tuple[Window, ...], after: tuple[Window, ...], now_utc_s: float) -> bool:
    """Whether some moment from now on is without a limit that it had, or with a higher or a softer one."""
    for known in _coming(before, now_utc_s):
        reached_utc_s = max(known.starts_utc_s, now_utc_s)
        for window in after[bisect_right(after, reached_utc_s, key=_end) :]:
            if window.starts_utc_s > reached_utc_s or reached_utc_s >= known.ends_utc_s:
                break
            if window.limit_w > known.limit_w or window.best_effort > known.best_effort:
                return True
            reached_utc_s = window.ends_utc_s
        if reached_utc_s < known.ends_utc_s:
            return True
    return False


def _coming(line: tuple[Window, ...], now_utc_s: float) -> list[Window]:
    return [window for window in line if window.ends_utc_s > now_utc_s]


def _start(window: Window) -> float:
    return window.starts_utc_s


def _end(window: Window) -> float:
    return window.ends_utc_s


def _is_sound(window: Window) -> bool:
    return (
        0 <= window.limit_w <= POWER_MAX_W and 0 <= window.starts_utc_s < window.ends_utc_s <= FOREVER_UTC_S
    )
