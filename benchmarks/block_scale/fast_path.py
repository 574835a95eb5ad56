"""From a signal to the last of all limits written, in a block of 1,152 GPUs; and what standing by costs.

The block is real but for its boards (`block`): controller, agents and broker are processes of their own on
the machine that measures. `written` ends with the last write in the driver, by its own time stamp; `first`
with the first one, `own` with the last one of the four nodes whose agent has a process of its own, as every
agent has on its host. Every signal moves every GPU.

    alert      OpenADR ALERT_GRID_EMERGENCY over MQTT calls a level of shedding
    panel      the command of `powerblock shed LEVEL`, from the controller's socket on
    contact    a relay behind a PLC on Modbus TCP, from the moment its bit changes: the poll period is in it
    setpoint   OpenADR IMPORT_CAPACITY_LIMIT over MQTT, ramp agreed as a step: an order for every node

The steps of a call are the controller's own record: since it knew of the signal `decided`, `sent` and, by the
last agent and at the latest, `received`; on the slowest node, from the call's arrival to its last limit read
back, `obeyed`; `confirmed` when the last answer was back. In `steady` nobody asks for anything; the feed's
rating binds and work wanders, so that orders flow.

The rivals (`rivals`) write as many limits in the same run. Growth is a bench of its own: blocks of 72 to
4,608 GPUs, fewer signals, no targets.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple

from benchmarks.block_scale import rivals
from benchmarks.block_scale.block import GPUS_PER_RACK, Block, Reaction, block_of, report_period_s
from benchmarks.result import Figure, Mode, Report, quantiles_ms
from firmware_sim.bench_config import CONTACT_POLL_S

RACKS: Final = {Mode.TINY: 1, Mode.NORMAL: 16, Mode.FULL: 16}
GROWTH_RACKS: Final = {Mode.TINY: (1,), Mode.NORMAL: (1, 4, 64), Mode.FULL: (1, 4, 64)}
SIGNALS: Final = {  # each way, so many times
    Mode.TINY: {"alert": 2, "setpoint": 2, "panel": 2, "contact": 2},
    Mode.NORMAL: {"alert": 100, "setpoint": 100, "panel": 20, "contact": 20},
    Mode.FULL: {"alert": 500, "setpoint": 500, "panel": 200, "contact": 200},
}
GROWTH_SIGNALS: Final = {
    Mode.TINY: {"alert": 1},
    Mode.NORMAL: {"alert": 15, "setpoint": 15},
    Mode.FULL: {"alert": 100, "setpoint": 100},
}
GAP_S: Final = (0.3, 0.4)  # signals come at any moment of the beat
STEADY_S: Final = {Mode.TINY: 1.0, Mode.NORMAL: 30.0, Mode.FULL: 120.0}
ROUNDS: Final = {Mode.TINY: 3, Mode.NORMAL: 100, Mode.FULL: 500}
CHILDREN: Final = {
    Mode.TINY: {"children_c": 8, "children_python": 2},
    Mode.NORMAL: {"children_c": 1152, "children_python": 24},
    Mode.FULL: {"children_c": 1152, "children_python": 72},
}
STEPS: Final = ("decided", "sent", "received", "obeyed", "confirmed")
WRITTEN_MAX_MS: Final = {"alert": 20.0, "panel": 20.0, "setpoint": 60.0}
CORE_MAX_RATIO, RESIDENT_MAX_MIB = 0.35, 200.0
MIB: Final = 2**20


class Told(NamedTuple):
    """Of one block."""

    reactions: Mapping[str, Sequence[Reaction]]
    sheds: Mapping[str, Sequence[Mapping[str, Any]]]
    steady: Mapping[str, float]


async def _measure(racks: int, signals: Mapping[str, int], steady_s: float) -> Told:
    reactions: dict[str, list[Reaction]] = {}
    sheds: dict[str, list[dict[str, Any]]] = {}
    async with block_of(racks) as block:
        steady = await _steady(block, steady_s)
        for way, times in signals.items():
            reactions[way] = [one async for one in _reactions(block, way, times, Random(racks))]
            sheds[way] = block.sheds()
    return Told(reactions, sheds, steady)


async def _reactions(block: Block, way: str, times: int, rng: Random) -> AsyncIterator[Reaction]:
    for _ in range(times):
        await asyncio.sleep(rng.uniform(*GAP_S))
        yield await block.react(way)


async def _steady(block: Block, length_s: float) -> dict[str, float]:
    before, writes = block.used(), block.boards.writes
    await asyncio.sleep(length_s)
    after, beat = block.used(), block.status()["beat"]
    return {
        **{f"{name}_core_ratio": (after[name].cpu_s - before[name].cpu_s) / length_s for name in after},
        **{f"{name}_resident_mib": used.memory_bytes / MIB for name, used in after.items()},
        "writes_per_s": (block.boards.writes - writes) / length_s,
        "late_p99_ms": beat["late_p99_ms"],
        "tick_p99_ms": beat["tick_p99_ms"],
    }


def _figures(gpus: int, told: Told, *, has_targets: bool) -> Iterator[Figure]:
    for way, reactions in told.reactions.items():
        at_most = WRITTEN_MAX_MS.get(way) if has_targets else None
        written = [one.last_s for one in reactions]
        yield from _quantiles(f"{way}_{gpus}_written", written, at_most)
        yield from _quantiles(f"{way}_{gpus}_own", [one.own_s for one in reactions])
        yield from _quantiles(f"{way}_{gpus}_first", [one.first_s for one in reactions])
        for step in STEPS:
            times_s = [shed[f"{step}_s"] for shed in told.sheds[way] if shed[f"{step}_s"] is not None]
            if times_s:
                yield from _quantiles(f"{way}_{gpus}_{step}", times_s)
    targets = {"controller_core_ratio": CORE_MAX_RATIO, "controller_resident_mib": RESIDENT_MAX_MIB}
    for name, value in told.steady.items():
        yield Figure(f"steady_{gpus}_{name}", (value,), at_most=targets.get(name) if has_targets else None)


def _quantiles(name: str, times_s: Sequence[float], p99_max_ms: float | None = None) -> Iterator[Figure]:
    p50_ms, p99_ms = quantiles_ms(times_s)
    yield Figure(f"{name}_p50_ms", (p50_ms,))
    yield Figure(f"{name}_p99_ms", (p99_ms,), at_most=p99_max_ms)


def _rival_figures(gpus: int, ours_s: Sequence[float], mode: Mode) -> Iterator[Figure]:
    """Beside the median of our own, which has a signal, a decision, a network and read-backs in it."""
    ours_ms, _ = quantiles_ms(ours_s)
    for kind, times_s in rivals.measure(gpus, ROUNDS[mode], CHILDREN[mode]).items():
        p50_ms, p99_ms = quantiles_ms(times_s)
        yield Figure(f"rival_{kind}_{gpus}_written_p50_ms", (p50_ms,))
        if len(times_s) > 1:
            yield Figure(f"rival_{kind}_{gpus}_written_p99_ms", (p99_ms,))
        yield Figure(f"rival_{kind}_{gpus}_by_ours_ratio", (p50_ms / ours_ms,))


def run(mode: Mode) -> Report:
    """The size that the targets are for, and the rivals beside it."""
    racks, signals, children = RACKS[mode], SIGNALS[mode], CHILDREN[mode]
    gpus = racks * GPUS_PER_RACK
    told = asyncio.run(_measure(racks, signals, STEADY_S[mode]))
    figures = [*_figures(gpus, told, has_targets=mode is not Mode.TINY)]
    figures += _rival_figures(gpus, [one.last_s for one in told.reactions["alert"]], mode)
    about = {"signals": signals, "contact_poll_s": CONTACT_POLL_S, "rival_children": children}
    started = ", ".join(f"{count} {kind}" for kind, count in children.items())
    text = (
        f"signals: {_listed(signals)}; the contact is polled every {1e3 * CONTACT_POLL_S:g} ms;\n"
        f"children really started, and scaled: {started}\n\n"
    )
    return Report(figures, about, text)


def run_growth(mode: Mode) -> Report:
    """Smaller blocks and a larger one. A size that cannot be measured is said and costs no other anything."""
    figures: list[Figure] = []
    lost: list[str] = []
    for racks in GROWTH_RACKS[mode]:
        try:
            told = asyncio.run(_measure(racks, GROWTH_SIGNALS[mode], STEADY_S[mode]))
        except RuntimeError as error:
            lost.append(f"NOT MEASURED: {racks * GPUS_PER_RACK} GPUs: {error}\n")
            continue
        figures += _figures(racks * GPUS_PER_RACK, told, has_targets=False)
    periods_s = {racks * GPUS_PER_RACK: report_period_s(racks) for racks in GROWTH_RACKS[mode]}
    about = {"signals": GROWTH_SIGNALS[mode], "report_period_s": periods_s, "not_measured": lost}
    return Report(figures, about, f"signals: {_listed(GROWTH_SIGNALS[mode])}\n{''.join(lost)}\n")


def _listed(signals: Mapping[str, int]) -> str:
    return ", ".join(f"{times} {way}" for way, times in signals.items())
