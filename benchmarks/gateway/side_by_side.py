"""Register to MQTT: how fast, how completely, and at what cost; ours beside what others use.

One device farm and one broker for all contenders of a run. Each polls 40 devices of 60 registers ten times a
second (400 reads, 24,000 values, hardly one the same as before), decodes and scales every value and publishes
it. One at a time: it starts, has a while to find all devices, then its processes are measured over a window,
then it is ended. This repeats; figures are medians over the repeats. Ours has a further turn with 400 devices
once a second.

    rate      what arrived, per device; `change`, `lost` and `wrong` as `account` says
    cpu       of all the contender's processes, per 10,000 values that arrived; not of broker, farm and bench
    resident  of all the contender's processes, at the end of the window

`node_red` and `thingsboard` are fetched before the first run (npm, PyPI). What cannot be had is left out, and
said so.
"""

import asyncio
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.gateway import farm, ours, peers
from benchmarks.gateway.contender import Contender, Missing
from benchmarks.gateway.contest import Turn, turn
from benchmarks.gateway.farm import Farm
from benchmarks.live import broker
from benchmarks.result import Figure, Mode, Report, quantiles_ms

Preparation = Callable[[Farm, int, float, Path], Contender]  # broker's port, poll period, an empty folder

OURS: Final = "ours"
CONTENDERS: Final[dict[str, Preparation]] = {
    OURS: ours.gateway,
    "bare": peers.bare,
    "node_red": peers.node_red,
    "thingsboard": peers.thingsboard,
}
TINY_CONTENDERS: Final = ("bare",)  # nothing is fetched


class Size(NamedTuple):
    devices: int
    poll_s: float


SIZE: Final = {Mode.TINY: Size(4, 0.1), Mode.NORMAL: Size(40, 0.1), Mode.FULL: Size(40, 0.1)}
WIDE: Final = Size(400, 1.0)
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 3, Mode.FULL: 5}
SETTLE_S: Final = {Mode.TINY: 0.2, Mode.NORMAL: 5.0, Mode.FULL: 10.0}
WINDOW_S: Final = {Mode.TINY: 1.0, Mode.NORMAL: 20.0, Mode.FULL: 60.0}

RATE_MIN_RATIO: Final = 0.99  # of the rate asked for: of 200 reads, one or two fall just out of the window
LATE_MAX_MS: Final = 5.0  # beyond one poll period
CPU_MAX_RATIO: Final = {"node_red": 0.7, "thingsboard": 0.2}
WIDE_CPU_MAX_RATIO: Final = 0.30
VALUES_UNIT: Final = 10_000


class Result(NamedTuple):
    """The turns of one contender."""

    versions: Mapping[str, str]
    turns: list[Turn]

    def runs(self, key: str) -> tuple[float, ...]:
        return tuple(MEASURES[key](turn) for turn in self.turns)

    def median(self, key: str) -> float:
        return statistics.median(self.runs(key))


def _change_ms(turn: Turn) -> tuple[float, float]:
    return quantiles_ms(turn.account.change_s)


MEASURES: Final[dict[str, Callable[[Turn], float]]] = {
    "rate_hz": lambda turn: turn.account.rate_hz,
    "rate_worst_hz": lambda turn: turn.account.rate_worst_hz,
    "change_p50_ms": lambda turn: _change_ms(turn)[0],
    "change_p99_ms": lambda turn: _change_ms(turn)[1],
    "cpu_s_per_10000": lambda turn: VALUES_UNIT * turn.cpu_s / turn.account.values,
    "cpu_ratio": lambda turn: turn.cpu_s / turn.window_s,
    "resident_mib": lambda turn: turn.resident_mib,
    "lost_values": lambda turn: turn.account.lost_values,
    "wrong_values": lambda turn: turn.account.wrong_values,
    "messages_per_s": lambda turn: turn.messages / turn.window_s,
}


def run(mode: Mode) -> Report:
    results, left_out, broker_name = asyncio.run(
        _contest(SIZE[mode], TINY_CONTENDERS if mode is Mode.TINY else CONTENDERS, mode)
    )
    wide, wide_out, _ = asyncio.run(_contest(WIDE, () if mode is Mode.TINY else (OURS,), mode))
    figures = [figure for name, result in results.items() for figure in _figures(name, result, SIZE[mode])]
    figures += [figure for name, most in CPU_MAX_RATIO.items() for figure in _beside(results, name, most)]
    farm_runs = [turn.farm_cpu_s / turn.window_s for result in results.values() for turn in result.turns]
    figures.append(Figure("farm_cpu_ratio", tuple(farm_runs)))
    for name, result in wide.items():
        figures += [
            Figure(f"{name}_wide_cpu_ratio", result.runs("cpu_ratio"), at_most=WIDE_CPU_MAX_RATIO),
            *(Figure(f"{name}_wide_{key}", result.runs(key)) for key in ("rate_worst_hz", "resident_mib")),
        ]
    if mode is not Mode.TINY:  # a target that could not even be tried is missed
        figures.append(Figure(f"{OURS}_turns", (_turns(results),), at_least=REPEATS[mode]))
        figures.append(Figure(f"{OURS}_wide_turns", (_turns(wide),), at_least=REPEATS[mode]))
    left_out |= {f"{name}, {WIDE.devices} devices": why for name, why in wide_out.items()}
    about: dict[str, Any] = {
        "broker": broker_name,
        "versions": {name: dict(result.versions) for name, result in results.items()},
        "left_out": left_out,
    }
    return Report(figures, about, _side_by_side(results, left_out))


async def _contest(
    size: Size, names: Iterable[str], mode: Mode
) -> tuple[dict[str, Result], dict[str, str], str]:
    """All turns, the contenders taking turns; why those are left out that are; the broker's name."""
    turns: defaultdict[str, list[Turn]] = defaultdict(list)
    versions: dict[str, Mapping[str, str]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="powerblock-bench-") as temporary:
        folder = Path(temporary)
        async with broker(folder) as (url, broker_name):
            port = int(url.rpartition(":")[2])
            with farm.running(size.devices, size.poll_s, folder) as source:
                for repeat in range(REPEATS[mode]):
                    for name in names:
                        if name in left_out:
                            continue
                        home = folder / f"{name}-{repeat}"
                        home.mkdir()
                        try:
                            contender = CONTENDERS[name](source, port, size.poll_s, home)
                            versions[name] = contender.versions
                            one = await turn(contender, source, port, home, SETTLE_S[mode], WINDOW_S[mode])
                            turns[name].append(one)
                        except Missing as missing:
                            left_out[name] = str(missing)
    return {name: Result(versions[name], turns[name]) for name in turns}, left_out, broker_name


def _figures(name: str, result: Result, size: Size) -> list[Figure]:
    """Those of one contender; the targets are ours."""
    targets: dict[str, dict[str, float]] = {
        "rate_worst_hz": {"at_least": RATE_MIN_RATIO / size.poll_s},
        "change_p99_ms": {"at_most": 1e3 * size.poll_s + LATE_MAX_MS},
        "lost_values": {"at_most": 0.0},
        "wrong_values": {"at_most": 0.0},
    }
    return [
        Figure(f"{name}_{key}", result.runs(key), **(targets.get(key, {}) if name == OURS else {}))
        for key in MEASURES
    ]


def _beside(results: Mapping[str, Result], name: str, at_most: float) -> list[Figure]:
    """Our CPU per value by theirs; turn by turn, as they followed each other."""
    if OURS not in results or name not in results:
        return []
    pairs = zip(results[OURS].runs("cpu_s_per_10000"), results[name].runs("cpu_s_per_10000"), strict=False)
    return [Figure(f"{OURS}_cpu_by_{name}_ratio", tuple(mine / his for mine, his in pairs), at_most=at_most)]


def _turns(results: Mapping[str, Result]) -> float:
    return float(len(results[OURS].turns)) if OURS in results else 0.0


def _side_by_side(results: Mapping[str, Result], left_out: Mapping[str, str]) -> str:
    """Medians, one line per contender."""
    rows = [("contender", *MEASURES), ("---", *("---:" for _ in MEASURES))]
    rows += [(name, *(f"{result.median(key):.4g}" for key in MEASURES)) for name, result in results.items()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += [
        f"{name}: {', '.join(f'{part} {number}' for part, number in result.versions.items())}"
        for name, result in results.items()
    ]
    lines += [f"{name} left out: {why}" for name, why in left_out.items()]
    return "\n".join((*lines[: len(rows)], "", *lines[len(rows) :], "", ""))
