"""Records a device: the registers of a profile, or a range, once or again and again.

Slow, and reads alone. A profile knows where its device's map has holes; a range does not, so a read that is
refused is cut in halves until it is known which addresses refuse. That costs questions, so the range is
bounded, and an interrupted capture is written as far as it came.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from controller.commissioning.recording import ADDRESSES, READS_MAX, Range, Recording, Taken
from controller.commissioning.sources import readable
from controller.commissioning.talk import Talk
from controller.commissioning.target import Target, ToolError
from controller.gateway_config import SUNSPEC
from protocols.modbus.questions import READ_CODES, RefusedError, SilentError
from protocols.modbus.reads import plan_reads
from protocols.profile import BIT_TABLES, Profile, ProfileError, Table
from protocols.reading import DeviceError
from protocols.sunspec import discover

CHUNK: Final = (
    32  # registers of a range in one read: half of what the least able device in the profiles takes
)
RANGE_MAX: Final = 10_000  # addresses of all ranges; where nothing lies, each costs two questions
ROUNDS_MAX: Final = 100_000
SILENCES_MAX: Final = 3  # in a row: the unit has gone

_RANGE: Final = re.compile(r"(holding|input|coil|discrete):(\d+)(?:-(\d+))?")

Reads = list[tuple[Table, int, int]]  # table, first, count


def ranges(words: Sequence[str]) -> list[Range]:
    """`holding:0-99` and the like. Raises ToolError."""
    found = []
    for word in words:
        match = _RANGE.fullmatch(word)
        if match is None:
            raise ToolError(f"--range {word!r}: write it like holding:0-99; tables: {', '.join(READ_CODES)}")
        first, last = int(match[2]), int(match[3] or match[2])
        if not first <= last < ADDRESSES:
            raise ToolError(f"--range {word!r}: addresses 0 to {ADDRESSES - 1}, the lower one first")
        found.append(Range(match[1], first, last))  # type: ignore[arg-type]  # the pattern names the tables
    total = sum(one.last - one.first + 1 for one in found)
    if total > RANGE_MAX:
        raise ToolError(f"--range: {total} addresses; {RANGE_MAX} at most: take what the document names")
    return found


class Capture:
    """One recording in the making.

    Attributes:
        recording: what there is of it at any moment.
        unanswered: reads that were not answered, not even the second time.
    """

    def __init__(
        self, target: Target, wanted: Sequence[Range], *, gap_s: float, rounds: int, every_s: float
    ) -> None:
        if target.config.is_opcua:
            raise ToolError(f"{target.name}: capture records Modbus registers; `read --json` takes OPC UA")
        if not 1 <= rounds <= ROUNDS_MAX:
            raise ToolError(f"--rounds: {rounds}; use 1 to {ROUNDS_MAX}")
        self._target, self._ranges = target, wanted
        self._gap_s, self._rounds, self._every_s = gap_s, rounds, every_s
        self._reads: Reads = []
        self.unanswered: dict[tuple[Table, int, int], None] = {}
        self._walked: Reads = []  # what discovery had to read
        self._taken: list[Taken] = []
        self._nameplate: dict[str, str] = {}
        self._began_utc = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def recording(self) -> Recording:
        return Recording(
            url=self._target.config.url,
            unit=self._target.config.unit,
            profile="" if self._ranges else self._target.config.profile,
            began_utc=self._began_utc,
            nameplate=self._nameplate,
            note=f"not answered: {self.missing}" if self.unanswered else "",
            reads=self._taken,
        )

    @property
    def missing(self) -> str:
        return ", ".join(f"{table} {first}..{first + count - 1}" for table, first, count in self.unanswered)

    async def run(self, on_step: Callable[[str], None] = lambda _: None) -> None:
        """Raises DeviceError when the device is lost; what came until then is kept."""
        profile = None if self._ranges else self._target.profile()
        unit_id = self._target.config.unit
        async with Talk(self._target.config.transport(), profile=profile, gap_s=self._gap_s) as talk:
            on_step("device identification")
            self._nameplate, _ = await talk.introduction(unit_id)
            if not self._ranges and profile is None:
                on_step(SUNSPEC)
                profile = await self._discovered(talk)
            self._reads = self._first_reads(profile)
            begun_s = time.monotonic()
            for number in range(self._rounds):
                name = f"round {number + 1} of {self._rounds}"
                on_step(name)
                await asyncio.sleep(max(0.0, begun_s + number * self._every_s - time.monotonic()))
                await self._round(talk, begun_s, name, on_step)

    async def _discovered(self, talk: Talk) -> Profile:
        """What discovery reads is part of the device, too: a replay must answer it."""
        unit_id = self._target.config.unit

        async def read(first: int, count: int) -> Sequence[int]:
            words = await talk.holding(unit_id, first, count)
            self._walked.append(("holding", first, count))
            return words

        try:
            profile = await discover(read, name=self._target.name)
        except ProfileError as error:
            raise ToolError(f"{error}: --profile or --range") from error
        return profile

    def _first_reads(self, profile: Profile | None) -> Reads:
        if profile is None:
            return [
                (one.table, at, min(CHUNK, one.last - at + 1))
                for one in self._ranges
                for at in range(one.first, one.last + 1, CHUNK)
            ]
        points = profile.with_scale_factors(readable(profile, self._target.config.points))
        planned: Reads = [(one.table, one.first, one.count) for one in plan_reads(points, profile)]
        return [*self._walked, *planned]

    async def _round(self, talk: Talk, begun_s: float, name: str, on_step: Callable[[str], None]) -> None:
        """All reads once; what was silent or busy once more at the end."""
        waiting, kept = list(self._reads), []
        again: Reads = []
        silences = 0
        while waiting or again:
            if len(self._taken) >= READS_MAX:
                raise ToolError(f"{READS_MAX} reads are in the file; fewer --rounds")
            last_try = not waiting
            read = again.pop(0) if last_try else waiting.pop(0)
            on_step(f"{name}: {read[0]} {read[1]}, {len(self._taken)} in the file, {len(waiting)} to go")
            try:
                instead = await self._read(talk, read, begun_s)
            except (SilentError, RefusedError) as error:
                silences = silences + 1 if isinstance(error, SilentError) else 0
                if silences >= SILENCES_MAX:
                    raise
                if last_try:
                    self.unanswered[read] = None
                    kept.append(read)
                else:
                    again.append(read)
                continue
            silences = 0
            if instead is None:
                kept.append(read)
            else:
                waiting[:0] = instead
        self._reads = kept  # what refuses once refuses again
        if not kept:
            raise DeviceError(f"{self._target.where}: every address of the range is refused")

    async def _read(self, talk: Talk, read: tuple[Table, int, int], begun_s: float) -> Reads | None:
        """Take it. None: it was there; else what to read instead, nothing for a hole in the map.

        Raises SilentError, or RefusedError for what may be otherwise in a moment, such as busy.
        """
        table, first, count = read
        at_s = round(time.monotonic() - begun_s, 3)
        try:
            words = await talk.words(self._target.config.unit, table, first, count)
        except RefusedError as refused:
            if not refused.lasting:
                raise
            if count > 1 and table not in BIT_TABLES:
                half = count // 2
                return [(table, first, half), (table, first + half, count - half)]
            self._refused(Taken(at_s=at_s, table=table, first=first, refused=refused.code, count=count))
            return []
        self._taken.append(Taken(at_s=at_s, table=table, first=first, words=words))
        return None

    def _refused(self, taken: Taken) -> None:
        """A hole in the map is one line."""
        before = self._taken[-1] if self._taken else taken
        if (before.table, before.refused) == (
            taken.table,
            taken.refused,
        ) and before.addresses.stop == taken.first:
            count = before.count + taken.count
            self._taken[-1] = before.model_copy(update={"count": count})
        else:
            self._taken.append(taken)
