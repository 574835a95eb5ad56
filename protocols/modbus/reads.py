"""Points to read requests: as few as the device allows, compiled once, asked at every poll."""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from protocols.codec import NOTHING_KNOWN, SpanDecoder, is_absent, width
from protocols.modbus.questions import Question, read_question
from protocols.profile import BIT_TABLES, Block, Point, Profile, Table
from protocols.reading import Value


@dataclass(frozen=True)
class Span:
    """One read request: `count` registers or bits from `first`, and the points they carry."""

    table: Table
    first: int
    count: int
    points: tuple[Point, ...]


def plan_reads(points: Sequence[Point], profile: Profile) -> tuple[Span, ...]:
    """The fewest reads that cover `points`, none across a block edge or above the profile's read length.

    Reads that carry scale factors come first: what rests on them can then be decoded as it comes.
    """
    spans = [
        span(group)
        for block in profile.blocks
        for group in _groups(sorted((p for p in points if block.holds(p)), key=_address), block, profile)
    ]
    factors = {point.scale_factor for point in points if point.scale_factor}
    return tuple(sorted(spans, key=lambda one: all(point.name not in factors for point in one.points)))


def _groups(points: Iterable[Point], block: Block, profile: Profile) -> Iterator[list[Point]]:
    longest = profile.max_bits_per_read if block.table in BIT_TABLES else profile.max_registers_per_read
    group: list[Point] = []
    for point in points:
        full = bool(group) and (
            profile.one_request_per_point or point.last_address - group[0].address >= longest
        )
        if full:
            yield group
            group = []
        group.append(point)
    if group:
        yield group


def _address(point: Point) -> int:
    return point.address


def span(points: Sequence[Point]) -> Span:
    """The read that takes in all of `points`, ordered by address and of one table."""
    first = points[0].address
    return Span(points[0].table, first, max(p.last_address for p in points) - first + 1, tuple(points))


@dataclass(slots=True)
class Read:
    """A span ready to be asked: its question, its decoder, and the newest data that came."""

    span: Span
    question: Question = field(init=False)
    _decoder: SpanDecoder = field(init=False)
    newest: bytes = b""  # on this connection
    before: bytes = b""  # the newest of earlier ones: a frozen device stays frozen however often it hangs up
    absent: frozenset[str] = frozenset()  # of the newest data, where somebody wants to know

    @property
    def last(self) -> bytes:
        return self.newest or self.before

    def __post_init__(self) -> None:
        self.question = read_question(self.span.table, self.span.first, self.span.count)
        self._decoder = SpanDecoder(self.span.points, self.span.first, self.span.count)

    def values(self, answer: bytes, known: Mapping[str, Value] = NOTHING_KNOWN) -> dict[str, Value]:
        """What a right answer (its whole PDU) says."""
        return self._decoder.values(answer[2:], known)

    def absent_in(self, answer: bytes) -> frozenset[str]:
        """Points that a right answer says the device does not have."""
        words, first = words_of(self.span.table, self.span.count, answer), self.span.first
        return frozenset(
            point.name
            for point in self.span.points
            if is_absent(point, words[point.address - first : point.address - first + width(point)])
        )


def words_of(table: Table, count: int, answer: bytes) -> list[int]:
    """Registers (or bits) of a right answer, to compare with what was written."""
    if table in BIT_TABLES:
        return [answer[2 + i // 8] >> i % 8 & 1 for i in range(count)]
    return list(struct.unpack_from(f">{count}H", answer, 2))
