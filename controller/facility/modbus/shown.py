"""What masters read: the image as registers, rendered when somebody asks.

A page is rendered at most ten times a second while nothing changes, because its ages are in tenths. All
registers of one read are of one moment. While the controller is not heard no value is good; the SunSpec
registers, which cannot say that a value is doubted, show good ones alone.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import structlog

from controller.facility.modbus import native, sunspec
from controller.facility.modbus.native import Handshake
from controller.facility.modbus.registers import (
    ANSWER_AT,
    MAP_VERSION,
    NATIVE_UNIT,
    NONE_U16,
    REQUEST_AT,
    STATUS,
    STATUS_AT,
    SUNSPEC_UNIT,
    Page,
    Register,
    fingerprint,
    native_registers,
    pages,
)
from controller.image.image import Image
from controller.image.model import Cell, Command, Group, Outcome, Quality, Value
from protocols.modbus.answer import ExceptionCode, Peer, Refusal, Table

STEPS_PER_S: Final = 10
NATIVE_END: Final = 1000  # of the fixed blocks of the native unit

log = structlog.get_logger(__name__)


class Feed(Protocol):
    """What this needs of `controller.image.feed.ImageFeed`."""

    @property
    def image(self) -> Image: ...
    @property
    def alive(self) -> bool: ...
    @property
    def block(self) -> str: ...
    async def command(self, command: Command) -> Outcome: ...


def register_map(groups: Sequence[Group]) -> tuple[Register, ...]:
    """All that is served for these groups, in the order of units and addresses."""
    return (*sunspec.registers(), *native_registers(groups))


class Shown:
    """All registers, to be read.

    Args:
        feed: the mirror.
        meter: group that the SunSpec meter shows.
        version: of this program.
        now_s: the clock that does not step.
        master_of: handshake of a peer.
        controls_of: the SunSpec registers that can be written; None: not known yet.

    Attributes:
        pages: of the image, as the catalogue stands.
        rating_w: what is 100 %; NaN: there is nothing to limit.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        meter: str,
        version: str,
        now_s: Callable[[], float],
        master_of: Callable[[Peer], Handshake],
        controls_of: Callable[[], sunspec.Controls | None],
    ) -> None:
        self._feed, self._meter, self._version, self._now_s = feed, meter, version, now_s
        self._master_of, self._controls_of = master_of, controls_of
        self._beats = self._beats_heard = 0
        self._shaped_at = -1
        self._cache: dict[object, tuple[object, Sequence[int]]] = {}
        self._shape()

    def beat(self) -> None:
        """Once a second."""
        self._beats += 1
        self._beats_heard += self._feed.alive

    def serves(self, unit: int) -> None:
        """Raises Refusal for a unit that is not there."""
        if self._feed.image.shaped_at != self._shaped_at:
            self._shape()
        if unit not in self._spans:
            raise Refusal(ExceptionCode.GATEWAY_TARGET_SILENT)

    def read(self, table: Table, unit: int, first: int, count: int, peer: Peer) -> Sequence[int]:
        self.serves(unit)
        if table not in ("holding", "input") or (unit == SUNSPEC_UNIT and table != "holding"):
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        words: list[int] = []
        while len(words) < count:
            words += self._piece(unit, first + len(words), count - len(words), peer)
        return words

    def identity(self, unit: int) -> Mapping[int, str]:
        self.serves(unit)
        return {
            0: "powerblock",
            1: "powerblock",
            2: self._version,
            4: "Power block",
            5: "SunSpec" if unit == SUNSPEC_UNIT else f"map {MAP_VERSION}.{self._fingerprint:08x}",
            6: self._feed.block,
        }

    def _piece(self, unit: int, first: int, count: int, peer: Peer) -> Sequence[int]:
        """As much as one span has of it. Room between the last value of a span and the next one is ones."""
        starts, spans = self._spans[unit]
        number = bisect_right(starts, first) - 1
        if number < 0 or first >= starts[number] + spans[number][0]:
            raise Refusal(ExceptionCode.ILLEGAL_DATA_ADDRESS)
        start, (length, render) = starts[number], spans[number]
        end = min(first + count, start + length)
        words = render(peer)[first - start : end - start]
        return [*words, *[NONE_U16] * (end - first - len(words))]

    def _shape(self) -> None:
        """Where everything is, for the catalogue as it stands."""
        image = self._feed.image
        groups = [cells.group for cells in image.groups]
        self._shaped_at, self._cache = image.shaped_at, {}
        self._fingerprint = fingerprint(register_map(groups))
        self.pages = tuple(pages(groups))
        self._nameplate = sunspec.nameplate(block=self._feed.block, version=self._version)
        about = next((group.about for group in groups if group.kind == "block"), {})
        self.rating_w = float(about.get("feed_rating_w", "nan"))
        if not math.isnan(self.rating_w):
            self._nameplate = {**self._nameplate, **sunspec.capacity(self.rating_w)}
        self._spans = self._arranged()
        for page in self.pages:
            if page.left_out:
                log.warning("modbus map: no room", group=page.group.path, points=page.left_out)
        if len(self.pages) < len(groups):
            log.warning("modbus map: no room", groups=len(groups) - len(self.pages))

    def _arranged(self) -> "Mapping[int, _Spans]":
        """Per unit, where each span begins, with its length and what fills it."""
        whole = len(sunspec.encode({}))
        placed: list[tuple[int, int, int, _Render]] = [
            (SUNSPEC_UNIT, sunspec.BASE, whole, self._sunspec_words),
            (NATIVE_UNIT, STATUS_AT, REQUEST_AT - STATUS_AT, self._status_words),
            (NATIVE_UNIT, REQUEST_AT, ANSWER_AT - REQUEST_AT, lambda peer: self._master_of(peer).request),
            (NATIVE_UNIT, ANSWER_AT, NATIVE_END - ANSWER_AT, self._answer_words),
            *((p.unit_id, p.first, p.length, partial(self._page_words, p)) for p in self.pages),
        ]
        units: dict[int, tuple[list[int], list[tuple[int, _Render]]]] = {}
        for unit, first, length, render in sorted(placed, key=lambda one: one[:2]):
            starts, spans = units.setdefault(unit, ([], []))
            starts.append(first)
            spans.append((length, render))
        return units

    def _cached(self, key: object, mark: object, render: Callable[[], Sequence[int]]) -> Sequence[int]:
        """Rendered anew when the mark has changed, or a tenth of a second has passed."""
        mark = (mark, self._feed.alive, int(self._now_s() * STEPS_PER_S))
        known = self._cache.get(key)
        if known is None or known[0] != mark:
            known = self._cache[key] = (mark, render())
        return known[1]

    def _page_words(self, page: Page, _peer: Peer) -> Sequence[int]:
        image = self._feed.image
        cells = image.groups[image.index(page.group.path)]
        render = partial(native.page_words, page, cells, self._now_s(), is_heard=self._feed.alive)
        return self._cached(page.group.path, cells.revision, render)

    def _status_words(self, _peer: Peer) -> Sequence[int]:
        return self._cached("status", self._feed.image.revision, self._status)

    def _status(self) -> Sequence[int]:
        power = self._cell("block", "power_w")
        told: dict[str, Value] = {
            "map_version": float(MAP_VERSION),
            "map_fingerprint": float(self._fingerprint),
            "heartbeat": float(self._beats & 0xFFFF),
            "controller_heard": float(self._feed.alive),
            "switch": self.good("facility", "mode"),
            "alarms_active": self.good("facility", "alarms_active"),
            "alarms_unacknowledged": self.good("facility", "alarms_unacknowledged"),
            "rating_w": self.rating_w,
            "power_quality": float(Quality.BAD if power is None else power.quality),
            "power_age": float(NONE_U16 if power is None else native.age_of(power)),
        }
        for name in ("power_w", "limit_w", "budget_w", "shortfall_w", "least_w", "limit_source"):
            told[name] = self.good("block", name)
        return native.encode(STATUS, told)

    def _answer_words(self, peer: Peer) -> Sequence[int]:
        return self._master_of(peer).answer(
            {
                "SP_Active_W": self.good("facility", "limit_w"),
                "SP_Remaining_s": self.good("facility", "remaining_s"),
                "SP_ActivePriority": self.good("facility", "priority"),
                "SP_Source": self.good("facility", "by"),
                "SP_Heartbeat_Out": float(self._beats & 0xFFFF),
            }
        )

    def _sunspec_words(self, _peer: Peer) -> Sequence[int]:
        controls = self._controls_of()
        if controls is None and not math.isnan(self.rating_w):
            raise Refusal(ExceptionCode.SERVER_DEVICE_BUSY)
        return self._cached(
            "sunspec", (self._feed.image.revision, controls), partial(self._sunspec, controls)
        )

    def _sunspec(self, controls: sunspec.Controls | None) -> Sequence[int]:
        meter = {(sunspec.METER, key): self._metered(names) for key, names in sunspec.meter_names().items()}
        is_missing = meter[sunspec.METER, "W"] is None
        meter[sunspec.METER, "Evt"] = float(sunspec.MISSING_SENSOR * is_missing)
        limit = {} if controls is None or math.isnan(self.rating_w) else controls.values(self._now_s())
        switch = self.good("facility", "mode")
        control: dict[sunspec.Name, Value] = {
            (715, "LocRemCtl"): None if switch is None else float(switch != 0.0),
            (715, "DERHb"): float(self._beats_heard & 0xFFFFFFFF),
        }
        return sunspec.encode({**self._nameplate, **meter, **limit, **control})

    def _metered(self, names: Sequence[str]) -> Value:
        """The first that the meter has and that is good; the block's own power stands in for its."""
        for name in names:
            value = self.good(self._meter, name)
            if value is not None:
                return value
        return self.good("block", "power_w") if "power_w" in names else None

    def _cell(self, path: str, name: str) -> Cell | None:
        try:
            cell = self._feed.image.cell(path, name, self._now_s())
        except KeyError:
            return None
        return native.as_heard(cell, is_heard=self._feed.alive)

    def good(self, path: str, name: str) -> Value:
        """The value, where nothing speaks against it: these registers cannot say that it is doubted."""
        cell = self._cell(path, name)
        return cell.value if cell is not None and cell.quality is Quality.GOOD else None


_Render = Callable[[Peer], Sequence[int]]
_Spans = tuple[list[int], list[tuple[int, _Render]]]
