"""One unit behind a connection: what is asked of it, how it has answered lately, what may be believed. No IO.

A unit that does not answer is *dead* after its second silence in a row (one lost frame is noise), or after
the first if it has not been heard on this connection. A dead unit is asked one read, ever more rarely,
until it answers.

On RTU framing an answer does not say which request it belongs to. So the shapes of requests that were left
unanswered are *owed*: a question of such a shape must not be asked, because what comes may be the late answer
to the older one. A question of another shape is safe, and since a device answers in order, its answer proves
that nothing older is on the way. Until a full round has come cleanly after such a slip, readings carry doubt;
then all of it is read once more, so that no point stays in doubt for longer than the others.

A silence may also have been a restart or an exchange. Whoever did not answer, or was not heard for so long
as an exchange takes, is asked who it is before it is believed, and told again what it may have forgotten.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from protocols import codec
from protocols.control import Upkeep, control_points
from protocols.modbus.questions import Question, RefusedError
from protocols.modbus.reads import Read, plan_reads, span
from protocols.profile import Line, Point, Profile, ProfileError
from protocols.reading import Reading, Value, WriteRule

SLOW_EVERY: Final = 10  # slow points are read with every tenth poll
DEAD_AFTER: Final = 2  # silences in a row
LATE_WAITS: Final = 10  # a device that needs ten times its allowed wait never answers
EXCHANGE_S: Final = 5.0  # nobody exchanges a device in less: who was heard since then is who it was
EARLY_S: Final = 0.001  # event loops round to the millisecond, some of them down
UNKNOWN_WAIT_MAX_S: Final = 1.0  # for the answers of a device whose profile is still to be discovered
UNITS_MAX: Final = 247  # unit ids 1..247; Modbus over serial line V1.02, 2.2


@dataclass(frozen=True, kw_only=True)
class ModbusUnit:
    """One device behind a connection.

    `profile` None: SunSpec, discovered from the device's own model chain and told to `on_profile`.
    `points` (): all of the profile. Polls fall on k * poll_s + phase_s of the link's clock.
    `writes`: the points that may be written, each with its rule; none is what makes a unit read-only.
    `on_reading` and `on_profile` must not block.
    """

    name: str
    profile: Profile | None
    poll_s: float
    on_reading: Callable[[Reading], None]
    unit_id: int = 1
    points: tuple[str, ...] = ()
    phase_s: float = 0.0
    writes: Mapping[str, WriteRule] = field(default_factory=dict)
    on_profile: Callable[[Profile], None] | None = None


class Station:
    """State of one unit. Times of `due_s` and the like are on the event loop's clock."""

    def __init__(self, unit: ModbusUnit, now_s: float) -> None:
        self.unit = unit
        self.profile: Profile | None = None
        self.points: tuple[Point, ...] = ()  # told; beside them their scale factors are asked for
        self.upkeep: Upkeep | None = None
        self.upkept: frozenset[str] = frozenset()
        self.known: dict[str, Value] = {}  # scale factors
        self.written_s: dict[str, float] = {}
        self.reply_wait_max_s = UNKNOWN_WAIT_MAX_S
        self.due_s = 0.0
        self.silent = 0  # unanswered rounds in a row
        self.heard = False  # on this connection
        self.heard_s = -math.inf
        self.introduced = False  # it is the device that the profile describes
        self.discovered = False  # the profile is what its model chain said; for a unit that brings none
        self.to_tell: set[str] = set()  # standing commands that the device may have forgotten
        self.tell_s = 0.0  # when they are told again
        self.doubt = ""
        self.slips = 0  # ever; to see whether a round passed without one
        self.owed: set[bytes] = set()
        self.owed_until_s = -math.inf
        self._unchanged_since_s = now_s
        self._rounds = 0
        self._reads: dict[str, tuple[Read, ...]] = {}
        self._asked: tuple[Point, ...] = ()
        self._factors: frozenset[str] = frozenset()
        self._untold: frozenset[str] = frozenset()  # factors that nobody has named
        self._probes: tuple[Question, ...] = ()
        if unit.profile is not None:
            self.adopt(unit.profile)

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def dead(self) -> bool:
        return self.silent >= (DEAD_AFTER if self.heard else 1)

    def is_met(self, now_s: float) -> bool:
        """Whether it is sure who it is; before any other use it is asked otherwise."""
        return self.introduced and now_s - self.heard_s <= EXCHANGE_S

    def adopt(self, profile: Profile) -> None:
        """Take over a profile; ProfileError if it cannot be used for this unit."""
        points = tuple(point for point in profile.select(self.unit.points) if point.readable)
        for name in self.unit.writes:
            if not profile.select((name,))[0].writable:
                raise ProfileError(
                    f"{self.name}: writes of {name} are allowed and its profile makes it read-only; "
                    f"remove one of them"
                )
        self.points, self._asked = points, profile.with_scale_factors(points)
        self.upkeep = self._upkeep_by(profile)
        self.upkept = control_points(profile)
        self.reply_wait_max_s = profile.reply_wait_max_s
        self.profile = profile
        self.known.clear()
        self._probes = tuple(_probes(profile))
        self._plan(profile)

    def _upkeep_by(self, profile: Profile) -> Upkeep | None:
        """Commands that stand go on standing where the device is still commanded in the same way."""
        before, control = self.upkeep, profile.control
        if control is None:
            return None
        if before is None or not before.standing:
            return before if before is not None and before.control == control else Upkeep(control)
        if before.control == control and before.standing.keys() <= profile.points.keys():
            return before
        lost = ", ".join(before.standing)
        return Upkeep(control, fault=f"commands not kept alive: its map has changed; write {lost} again")

    def _plan(self, profile: Profile) -> None:
        self._rounds = 0
        self._factors = frozenset(point.scale_factor for point in self.points if point.scale_factor)
        self._untold = self._factors - {point.name for point in self.points}
        before = {read.question.pdu: read.last for reads in self._reads.values() for read in reads}
        self._reads = {
            speed: tuple(Read(it) for it in plan_reads([p for p in self._asked if p.poll == speed], profile))
            for speed in ("fast", "slow", "once")
        }
        for read in (read for reads in self._reads.values() for read in reads):
            read.before = before.get(read.question.pdu, b"")

    def connected(self) -> None:
        """A new connection: the device may have been exchanged, and knows nothing of earlier ones."""
        self.due_s = 0.0
        self.heard = self.discovered = False
        self.known.clear()
        self.unanswered()
        if self.profile is not None:
            self._plan(self.profile)

    def unanswered(self) -> None:
        """It may have been restarted since, or exchanged: who is it, and does it know what we told it?"""
        self.introduced = False
        if self.upkeep is not None:
            self.upkeep.disconnected()

    def next_due_s(self, now_s: float, offset_s: float) -> float:
        """The next beat k * poll_s + phase_s, on a clock that is `offset_s` ahead of that of `now_s`."""
        poll_s, phase_s = self.unit.poll_s, self.unit.phase_s
        beat = math.floor((now_s + EARLY_S + offset_s - phase_s) / poll_s) + 1
        return beat * poll_s + phase_s - offset_s

    # ---- one round ----

    def round(self) -> tuple[bool, tuple[Read, ...]]:
        """Whether the next round is a full one, and its reads."""
        reads = self._reads
        if self._rounds == 0:
            return True, (*reads["once"], *reads["slow"], *reads["fast"])  # scale factors are seldom fast
        if self._rounds % SLOW_EVERY == 0 or not reads["fast"]:
            return False, (*reads["fast"], *reads["slow"])
        return False, reads["fast"]

    def take(self, read: Read, answer: bytes) -> tuple[bool, dict[str, Value]]:
        """Whether a bit has changed since the last time, and the values that a right answer says."""
        changed = answer != read.last
        if answer != read.newest and self.unit.profile is None:
            read.absent = read.absent_in(answer)
        read.newest = answer
        values = read.values(answer, self.known)
        if self._factors:
            self.known.update((name, values[name]) for name in self._factors & values.keys())
        return changed, self.told(values) if self._untold else values

    def told(self, values: dict[str, Value]) -> dict[str, Value]:
        """Without the scale factors that nobody has named."""
        return {name: value for name, value in values.items() if name not in self._untold}

    def refused(self, read: Read) -> dict[str, Value]:
        """Nothing is known of a read that was refused, and nothing that rests on it."""
        nothing: dict[str, Value] = {point.name: None for point in read.span.points}
        self.known.update((name, None) for name in self._factors & nothing.keys())
        return self.told(nothing)

    def split(self, read: Read, refused: RefusedError) -> None:
        """From the next round on, read the points of a span that was refused one by one."""
        if not refused.lasting or len(read.span.points) == 1:
            return
        singles = tuple(Read(span([point])) for point in read.span.points)
        for speed, reads in self._reads.items():
            self._reads[speed] = tuple(s for old in reads for s in (singles if old is read else (old,)))

    def finished(self, *, changed: bool, full: bool, slips: int, taken_at_s: float) -> str:
        """A round has been answered; returns the doubt that its values carry."""
        self.silent = 0
        self._rounds = self._rounds + 1 if slips == self.slips else 0
        if changed:
            self._unchanged_since_s = taken_at_s
        doubt = self.doubt
        if doubt and full and slips == self.slips:
            self.doubt = ""
            self._rounds = 0  # what was read in doubt is read once more, the slow points too
        return doubt

    def newest(self, point: str) -> Value:
        """Value of a point as last read; None if it is not known."""
        for read in (read for reads in self._reads.values() for read in reads):
            if read.newest and any(it.name == point for it in read.span.points):
                return read.values(read.newest, self.known)[point]
        return None

    def reading(
        self,
        values: Mapping[str, Value],
        taken_at_s: float,
        link: Literal["up", "down"],
        fault: str,
        doubt: str = "",
        absent: frozenset[str] = frozenset(),
    ) -> Reading:
        if self.upkeep is not None and self.upkeep.fault:
            fault = "; ".join(filter(None, (fault, self.upkeep.fault)))
        return Reading(
            device=self.unit.name,
            values=values,
            taken_at_s=taken_at_s,
            unchanged_since_s=self._unchanged_since_s,
            link=link,
            fault=fault,
            doubt=doubt,
            absent=absent,
        )

    def nothing(self) -> dict[str, Value]:
        return dict.fromkeys(point.name for point in self.points)

    # ---- what may be on its way ----

    def slipped(self, why: str) -> None:
        """The order of questions and answers is in doubt until a full round has come cleanly."""
        self.doubt = f"{why}; in doubt until a full round has come cleanly"
        self.slips += 1
        self._rounds = 0

    def owe(self, question: Question, now_s: float) -> None:
        """The answer to this question may still come, and does not say that it is late."""
        self.owed.add(question.head)
        self.owed_until_s = now_s + LATE_WAITS * self.reply_wait_max_s

    def may_ask(self, question: Question, now_s: float) -> bool:
        """Whether no late answer could pass for the answer to this question."""
        if self.owed and now_s >= self.owed_until_s:
            self.owed.clear()
        return question.head not in self.owed

    def probes(self) -> Iterable[Question]:
        """Small reads, the smallest first, each of another shape."""
        return self._probes


def _probes(profile: Profile) -> Iterable[Question]:
    readable = [point for point in profile.points.values() if point.readable]
    shapes: dict[bytes, Question] = {}
    for point in sorted(readable, key=codec.width):
        question = Read(span([point])).question
        shapes.setdefault(question.head, question)
    return shapes.values()


def unit_complaints(units: Iterable[ModbusUnit]) -> list[str]:
    """What is wrong with these units on one connection; one line each."""
    units = list(units)
    names = [unit.name for unit in units]
    errors = [] if units else ["no units: a connection without a device has nothing to do"]
    for unit in units:
        if unit.profile is not None and unit.profile.protocol != "modbus":
            errors.append(
                f"{unit.name}: profile {unit.profile.name} speaks {unit.profile.protocol}, not modbus"
            )
        if names.count(unit.name) > 1:
            errors.append(f"{unit.name}: named twice on one connection; give each unit its own name")
        if not 1 <= unit.unit_id <= UNITS_MAX:
            errors.append(
                f"{unit.name}: unit id {unit.unit_id}; use 1 to {UNITS_MAX} (0 would accept any reply)"
            )
        if not 0.01 <= unit.poll_s <= 60:
            errors.append(f"{unit.name}: poll_s {unit.poll_s}; use 0.01 to 60 s")
        if not 0 <= unit.phase_s < max(unit.poll_s, 1e-9):
            errors.append(f"{unit.name}: phase_s {unit.phase_s}; use 0 to less than poll_s")
    return errors


def common_line(units: Iterable[ModbusUnit]) -> Line:
    """How all units want their serial line; ProfileError if they do not agree."""
    lines = {unit.profile.line: unit for unit in units if unit.profile is not None}
    if len(lines) > 1:
        wants = "; ".join(
            f"{unit.name} {line.baud} {line.parity} {line.stop_bits}" for line, unit in lines.items()
        )
        raise ProfileError(
            f"devices on one serial line that want different lines ({wants}); set them alike and "
            f"say it in the url: ?baud=..&parity=..&stop_bits=.."
        )
    return next(iter(lines), Line())
