"""The image as metrics, at `http://HOST:PORT/metrics`: Prometheus' text format, or OpenMetrics for who asks.

A point becomes `powerblock_QUANTITY_UNIT`, in base units as Prometheus' conventions want them (watts,
celsius, joules, pascals, ratio). Its group and its place in the group are labels, so that one name serves
every outlet of every PDU:

    powerblock_power_watts{block="hall-a",kind="device",name="pdu-1",part=""} 5000
    powerblock_power_watts{block="hall-a",kind="node",name="n1",part="gpus/0"} 612
    powerblock_quality{...,quantity="power_watts"} 2        0 bad, 1 uncertain, 2 good
    powerblock_age_seconds{...,quantity="power_watts"} 0.1
    powerblock_state{...,quantity="mode",state="limited"} 1        the one that it is in
    powerblock_device_info{...,kind="device",name="pdu-1",profile="xerus_pdu",rack="r1",...} 1
    powerblock_shed_step_seconds_bucket{block="hall-a",step="confirmed",le="0.02"} 3        a histogram

A value that is missing or stale has no sample, only a quality of 0; so has every one while the controller is
not heard. Texts are no metrics. Labels come from
the catalogue alone: what a device says can never make a new series.

Nothing is done until somebody scrapes. A scrape writes lines whose beginnings are made once per catalogue,
a few hundred at a time between turns of the loop. Measured for 2,400 points, which are 7,200 samples: 4 ms,
half a millisecond at a time. prometheus_client takes 5 to 7 us a sample, so 40 ms in one piece, and whatever
else this process serves would wait for it.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from controller.clock import now_s
from controller.facility.config import PrometheusConfig
from controller.facility.door import Door
from controller.image.feed import ImageFeed
from controller.image.image import GroupCells
from controller.image.model import Group, Point, Quality

PREFIX: Final = "powerblock"
BLOCK, SHED_STEPS = "block", "shed_steps"  # group and point whose text tells how long calls took
CHUNK: Final = 200  # points in one turn of the loop: half a millisecond
SCRAPES_MAX: Final = 4  # at a time; each holds its text in memory
CONNECTIONS_MAX: Final = 32  # the oldest makes room: descriptors are those of every other way out, too
CLOSE_WAIT_S: Final = 1.0

OTHERS: Final = (  # name, help and unit of what is told of every point besides its value
    ("quality", "0 bad, 1 uncertain, 2 good", ""),
    ("age_seconds", "since the value was taken", "seconds"),
    ("state", "that it is in", ""),
)

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Unit(NamedTuple):
    """Ending of a point's name, base unit, and the factor to it."""

    ending: str
    base: str = ""
    factor: float = 1.0


UNITS: Final[Mapping[str, Unit]] = {
    "W": Unit("_w", "watts"),
    "VA": Unit("_va", "volt_amperes"),
    "var": Unit("_var", "volt_amperes_reactive"),
    "Wh": Unit("_wh", "joules", 3600.0),
    "VAh": Unit("_vah", "volt_ampere_seconds", 3600.0),
    "varh": Unit("_varh", "volt_ampere_reactive_seconds", 3600.0),
    "V": Unit("_v", "volts"),
    "A": Unit("_a", "amperes"),
    "Ah": Unit("_ah", "coulombs", 3600.0),
    "Hz": Unit("_hz", "hertz"),
    "Ohm": Unit("_ohm", "ohms"),
    "degC": Unit("_c", "celsius"),
    "kPa": Unit("_kpa", "pascals", 1000.0),
    "L/min": Unit("_l_per_min", "liters_per_second", 1 / 60),
    "rpm": Unit("_rpm", "rpm"),  # as in node_exporter
    "s": Unit("_s", "seconds"),
    "W/s": Unit("_w_per_s", "watts_per_second"),
    "Hz/s": Unit("_hz_per_s", "hertz_per_second"),
    "ratio": Unit("_ratio", "ratio"),
}
NO_UNIT: Final = Unit("")

PART: Final = re.compile(r"(?P<part>.+_\d+)_(?P<quantity>.+)")  # outlet_1_power
PHASE: Final = re.compile(r"(?P<quantity>.+?)_(?P<part>(?:l[123]|n)(?:_(?:l[123]|n))?)")  # current_l1
TAIL: Final = re.compile(r"(?P<quantity>.+)_(?P<part>\d+)")  # temperature_1
RESERVED: Final = frozenset(
    {"quality", "age_seconds", "state", "device", "device_info", "controller_up", "alarms"}
)
INFO: Final = ("title", "profile", "kind", "rack", "feed", "url")  # of a group's `about`


class Name(NamedTuple):
    """Quantity with its unit, and the part of the group that has it."""

    quantity: str
    part: str


def named(point: Point) -> Name:
    """`gpus/0/power_w` -> power_watts of gpus/0; `current_l1_a` -> current_amperes of l1."""
    unit = UNITS.get(point.unit, NO_UNIT)
    part, _, own = point.name.rpartition("/")
    stem = own.removesuffix(unit.ending)
    for pattern in (PART, PHASE, TAIL):
        if found := pattern.fullmatch(stem):
            stem = found["quantity"]
            part = "/".join(filter(None, (part, found["part"])))
    return Name(_word("_".join(filter(None, (stem, unit.base)))), part)


def _word(text: str) -> str:
    word = re.sub(r"[^a-z0-9_]", "_", text.lower())
    return f"{word}_value" if word in RESERVED else word


class Fact(NamedTuple):
    """A gauge of somebody else: messages that wait on disk, say."""

    name: str
    help: str
    values: Callable[[], Iterable[tuple[Mapping[str, str], float]]]  # by labels


class Lengths(msgspec.Struct, frozen=True):
    """How often a step took how long: upper ends of buckets, what fell into each; the last has no end."""

    buckets_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float


class _Sample(NamedTuple):
    """One point, with its lines begun."""

    cells: GroupCells
    place: int
    factor: float
    value: str
    quality: str
    age: str
    states: Mapping[int, str]  # number -> line


class _Family(NamedTuple):
    """One metric."""

    name: str
    unit: str
    samples: list[_Sample]

    @property
    def help(self) -> str:
        return self.name.removeprefix(f"{PREFIX}_").replace("_", " ")


class Prometheus:
    """Serves the image to Prometheus.

    Args:
        config: where.
        feed: the image.
        block: its name, a label of everything; "" = as the controller says.
        facts: of others in this process.
    """

    def __init__(
        self, config: PrometheusConfig, feed: ImageFeed, *, block: str = "", facts: Sequence[Fact] = ()
    ) -> None:
        self._config, self._feed, self._block = config, feed, block
        self._facts = facts
        self._families: list[_Family] = []
        self._info: list[str] = []
        self._scrapes = asyncio.Semaphore(SCRAPES_MAX)
        self.port = config.port
        self._door = Door("facility.prometheus", config.host, config.port)
        self._shape()
        feed.on_shape.append(self._shape)

    @property
    def fault(self) -> str:
        """Why nobody can scrape; "": one can."""
        return self._door.fault

    async def run(self) -> None:
        """Serve for ever, as soon as the port is to be had."""
        await self._door.is_free()
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_WAIT_S)
        await runner.setup()
        try:
            assert runner.server is not None  # since setup
            host, port = self._config.host, self._config.port
            let_in = partial(_let_in, runner.server)
            loop = asyncio.get_running_loop()
            door = await loop.create_server(let_in, host, port, backlog=CONNECTIONS_MAX)
            self.port = door.sockets[0].getsockname()[1]
            async with door:
                await loop.create_future()
        finally:
            await runner.cleanup()

    # --- the catalogue ----------------------------------------------------------------------------------

    def _shape(self) -> None:
        families: dict[str, _Family] = {}
        for cells in self._feed.image.groups:
            names = _unique(cells.group)
            for place, point in enumerate(cells.group.points):
                if not point.text:
                    self._add(families, cells, place, names[place])
        self._families = [families[name] for name in sorted(families)]
        self._info = [self._info_line(cells.group) for cells in self._feed.image.groups]

    def _add(self, families: dict[str, _Family], cells: GroupCells, place: int, name: Name) -> None:
        point = cells.group.points[place]
        unit = UNITS.get(point.unit, NO_UNIT)
        family = families.setdefault(
            name.quantity,
            _Family(f"{PREFIX}_{name.quantity}", unit.base, []),
        )
        own = self._labels(cells.group) | {"part": name.part}
        quality = _labelled(own | {"quantity": name.quantity})
        sample = _Sample(
            cells,
            place,
            unit.factor,
            f"{family.name}{_labelled(own)} ",
            f"{PREFIX}_quality{quality} ",
            f"{PREFIX}_age_seconds{quality} ",
            {
                number: f"{PREFIX}_state{_labelled(own | {'quantity': name.quantity, 'state': state})} 1\n"
                for number, state in point.states.items()
            },
        )
        family.samples.append(sample)

    @property
    def _name(self) -> str:
        return self._block or self._feed.block

    def _labels(self, group: Group) -> dict[str, str]:
        name = group.path.partition("/")[2] or group.path
        return {"block": self._name, "kind": group.kind, "name": name}

    def _info_line(self, group: Group) -> str:
        about = {"title": group.title, **group.about}
        labels = {("device_kind" if key == "kind" else key): about.get(key, "") for key in INFO}
        return f"{PREFIX}_device_info{_labelled(self._labels(group) | labels)} 1\n"

    # --- a scrape ---------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.Response:
        is_open = "application/openmetrics-text" in request.headers.get("Accept", "")
        async with self._scrapes:
            text = "".join([part async for part in self._text(is_open=is_open)])
        return web.Response(body=text.encode(), headers={"Content-Type": OPEN if is_open else PLAIN})

    async def _text(self, *, is_open: bool) -> AsyncIterator[str]:
        """All metrics, in pieces; a scrape that the catalogue changes under goes on with the old one."""
        at_s, alive, families = now_s(), self._feed.alive, self._families
        others: tuple[list[str], ...] = ([], [], [])
        for family in families:
            yield _head(family.name, family.help, family.unit, is_open=is_open)
            for start in range(0, len(family.samples), CHUNK):
                some = family.samples[start : start + CHUNK]
                yield "".join(_lines(some, at_s, *others, alive=alive))
                await asyncio.sleep(0)
        for (name, text, unit), lines in zip(OTHERS, others, strict=True):
            yield _head(f"{PREFIX}_{name}", text, unit, is_open=is_open)
            yield "".join(lines)
        for part in self._rest(is_open=is_open):
            yield part
        if is_open:
            yield "# EOF\n"

    def _steps(self, *, is_open: bool) -> Iterator[str]:
        """How long every step of calls of shed levels took, where the controller tells it."""
        told = self._told_steps()
        if not told:
            return
        name = f"{PREFIX}_shed_step_seconds"
        text = "from the signal that called a level to this step"
        yield _head(name, text, "seconds", kind="histogram", is_open=is_open)
        for step, lengths in told.items():
            yield from _histogram(name, {"block": self._name, "step": step}, lengths)

    def _told_steps(self) -> Mapping[str, Lengths]:
        blocks = (cells for cells in self._feed.image.groups if cells.group.path == BLOCK)
        for cells in blocks:
            place = cells.places.get(SHED_STEPS)
            value = None if place is None else cells.cell(place, now_s()).value
            if isinstance(value, str) and self._feed.alive:
                return msgspec.json.decode(value, type=dict[str, Lengths])
        return {}

    def _rest(self, *, is_open: bool) -> Iterator[str]:
        yield _head(f"{PREFIX}_device", "what a group is", "", kind="info", is_open=is_open)
        yield "".join(self._info)
        own = {"block": self._name}
        yield _head(f"{PREFIX}_controller_up", "the controller is heard", "", is_open=is_open)
        yield f"{PREFIX}_controller_up{_labelled(own)} {int(self._feed.alive)}\n"
        yield _head(f"{PREFIX}_alarms", "that are shown to operators", "", is_open=is_open)
        counts: dict[tuple[str, str], int] = {}
        for alarm in self._feed.alarms:
            place = (alarm.priority, alarm.state)
            counts[place] = counts.get(place, 0) + 1
        for (priority, state), count in sorted(counts.items()):
            yield f"{PREFIX}_alarms{_labelled(own | {'priority': priority, 'state': state})} {count}\n"
        yield from self._steps(is_open=is_open)
        for fact in self._facts:
            name = f"{PREFIX}_{fact.name}"
            yield _head(name, fact.help, "", is_open=is_open)
            for labels, value in fact.values():
                yield f"{name}{_labelled(own | dict(labels))} {value:.12g}\n"


def _histogram(name: str, labels: Mapping[str, str], lengths: Lengths) -> Iterator[str]:
    """Buckets count all that is not longer than their end."""
    ends = [*map(str, lengths.buckets_s), "+Inf"]
    for end, count in zip(ends, accumulate(lengths.counts), strict=True):
        yield f"{name}_bucket{_labelled({**labels, 'le': end})} {count}\n"
    yield f"{name}_sum{_labelled(labels)} {lengths.sum_s:.12g}\n"
    yield f"{name}_count{_labelled(labels)} {sum(lengths.counts)}\n"


def _let_in(server: web.Server) -> asyncio.Protocol:
    """One more connection."""
    there = [one for one in server.connections if one.transport is not None]
    if len(there) >= CONNECTIONS_MAX:
        there[0].force_close()
    return server()


def _lines(
    samples: Iterable[_Sample],
    at_s: float,
    qualities: list[str],
    ages: list[str],
    states: list[str],
    *,
    alive: bool,
) -> Iterator[str]:
    """Values; the other three lists are filled by the way."""
    for sample in samples:
        cell = sample.cells.cell(sample.place, at_s)
        value, quality = (cell.value, cell.quality) if alive else (None, Quality.BAD)
        qualities.append(f"{sample.quality}{int(quality)}\n")
        if cell.received_at_utc_s > 0.0:
            ages.append(f"{sample.age}{cell.age_s:.3f}\n")
        if isinstance(value, (int, float)):  # what is bad has none
            if value in sample.states:
                states.append(sample.states[int(value)])
            yield f"{sample.value}{value * sample.factor:.12g}\n"


def _unique(group: Group) -> list[Name]:
    """One name per point: where two would be the same series, each keeps its own name as a part."""
    names = [named(point) for point in group.points]
    counts = Counter(names)
    return [
        name if counts[name] == 1 else Name(name.quantity, point.name)
        for name, point in zip(names, group.points, strict=True)
    ]


def _head(name: str, text: str, unit: str, *, kind: str = "gauge", is_open: bool) -> str:
    if kind == "info" and not is_open:
        name, kind = f"{name}_info", "gauge"
    lines = [f"# HELP {name} {_escaped(text)}", f"# TYPE {name} {kind}"]
    if is_open and unit and name.endswith(f"_{unit}"):
        lines.append(f"# UNIT {name} {unit}")
    return "\n".join(lines) + "\n"


def _labelled(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
