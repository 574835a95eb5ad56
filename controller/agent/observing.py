"""What driver calls cost, and how often sensors renew, on the hardware at hand: `powerblock agent --observe`.

Per GPU, a line in the log after each look at it:
* `read_ms`, `sensors_ms`: how long its calls took, median and 99 of 100. The first is what the agent does all
  the time (powers, limits, clock and its reasons), the second one call for the three fields below;
* `average_ms`, `instant_ms`, `energy_ms`: the time between two renewals of fields 185, 186 and 191.

For a look one GPU is asked as fast as its driver answers, a call every `STEP_S` at most, for `LOOK_S`; calls
of the sweep do not count meanwhile, since both wait for one driver. The renewals are told by the fields' own
time stamps. A driver that stamps every answer anew tells nothing by that; then renewals are the moments at
which the value was seen to change. Those are too few where a GPU draws the same for long, and never nearer to
each other than two calls.

An agent waits for its driver however long that takes, for it has to be there when the driver comes. Who
observes waits for an answer: `driver_fault` ends that.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, Final, NamedTuple

import structlog

from controller.agent.lanes import Lane, Stuck
from controller.agent.node import Agent, Calls
from controller.clock import now_s
from protocols.nvml import AVERAGE, ENERGY, INSTANT, LIBRARY_MISSING, Nvml, NvmlFault, Stamped

FIELDS: Final = {"average": AVERAGE, "instant": INSTANT, "energy": ENERGY}
LOOK_S: Final = 2.0  # 20 renewals of the slowest sensor known
REST_S: Final = 1.0  # before it, for the sweeps
ROUND_LEAST_S: Final = 10.0  # a look at every GPU: one GPU is not asked without end
STEP_S: Final = 0.002  # a tenth of the fastest sensor's period
RENEWALS_MIN: Final = 3
STAMPED_ANEW_RATIO: Final = 0.9  # of the calls brought another stamp: it is the moment of the call
CALLS_KEPT: Final = 1000
OPEN_WAIT_MAX_S: Final = 30.0  # a driver loads in seconds; opening it has been seen to queue for 12 s
OPEN_RETRY_S: Final = 1.0
OPENING: Final = -1  # stands for the driver itself where a lane wants a GPU index
MS: Final = 1e3

log = structlog.get_logger(__name__)


class Sample(NamedTuple):
    """A field in one answer, which came at `at_s` by our clock."""

    at_s: float
    stamped: Stamped


class Renewed(NamedTuple):
    """How often a field is renewed, and what tells so: "stamps" or "values"."""

    period_s: float
    by: str


def renewed(samples: Sequence[Sample]) -> Renewed | None:
    """None: it was not seen often enough."""
    stamps_us = [one.stamped.at_us for one in samples]
    renewals_s = [b * 1e-6 for a, b in pairwise(stamps_us) if a != b]
    if len(renewals_s) <= STAMPED_ANEW_RATIO * (len(samples) - 1):
        return _between(renewals_s, "stamps")
    changed_s = [b.at_s for a, b in pairwise(samples) if a.stamped.value != b.stamped.value]
    return _between(changed_s, "values")


def _between(moments_s: Sequence[float], by: str) -> Renewed | None:
    if len(moments_s) < RENEWALS_MIN:
        return None
    return Renewed(median(b - a for a, b in pairwise(moments_s)), by)


class Observer:
    """Of one process that writes nothing. `lane`: for its calls alone."""

    def __init__(self, agents: Sequence[Agent], lane: Lane) -> None:
        self._agents = agents
        self._lane = lane
        self._read_s = defaultdict[int, deque[float]](_newest)  # by NVML index
        self._sensors_s = defaultdict[int, deque[float]](_newest)
        self._looking = False

    def timed(self, calls: Calls) -> Calls:
        """The same calls, whose length counts while no look is under way."""
        if self._looking:
            return calls
        return {key: partial(_timed, call, self._read_s[key]) for key, call in calls.items()}

    async def run(self) -> None:
        while True:
            next_s = now_s() + ROUND_LEAST_S
            for agent in self._agents:
                for gpu, (key, call) in enumerate(agent.sensor_reads().items()):
                    await asyncio.sleep(REST_S)
                    samples = await self._look(key, call)
                    self._tell(agent.config.node, gpu, key, samples)
            await asyncio.sleep(max(0.0, next_s - now_s()))

    async def _look(self, key: int, call: Callable[[], dict[int, Stamped]]) -> dict[int, list[Sample]]:
        """Samples by field; a GPU that fails has given what it has given."""
        samples: defaultdict[int, list[Sample]] = defaultdict(list)
        self._looking, ends_s = True, now_s() + LOOK_S
        while now_s() < ends_s:
            answer = (await self._lane.run({key: partial(_timed, call, self._sensors_s[key])}))[key]
            if isinstance(answer, NvmlFault):
                break
            at_s = now_s()
            for field, stamped in answer.items():
                samples[field].append(Sample(at_s, stamped))
            await asyncio.sleep(STEP_S)
        self._looking = False
        return samples

    def _tell(self, node: str, gpu: int, key: int, samples: dict[int, list[Sample]]) -> None:
        seen = {name: renewed(samples.get(field, ())) for name, field in FIELDS.items()}
        log.info(
            "observed",
            node=node,
            gpu=gpu,
            read_ms=_told_ms(self._read_s[key]),
            sensors_ms=_told_ms(self._sensors_s[key]),
            **{
                f"{name}_ms": None if one is None else round(MS * one.period_s, 1)
                for name, one in seen.items()
            },
            by={name: one.by for name, one in seen.items() if one is not None},
        )


async def driver_fault() -> str:
    """Why there is nothing to observe on this host, and what to do; "" as soon as there is something.

    A driver that is being loaded gets `OPEN_WAIT_MAX_S`. A library that is not installed is not waited for.
    """
    lane = Lane("nvml open", deadline_s=OPEN_WAIT_MAX_S, stuck=Stuck())
    until_s = now_s() + OPEN_WAIT_MAX_S
    logged = ""
    while True:
        opened = (await lane.run({OPENING: Nvml}))[OPENING]
        if isinstance(opened, NvmlFault):
            why = opened.sentence
            if opened.code == LIBRARY_MISSING:
                return why
        elif opened.gpu_count > 0:
            return ""
        else:
            why = "the driver shows no GPU: see `nvidia-smi` and the kernel log"
        if now_s() >= until_s:
            return f"{why} (tried for {OPEN_WAIT_MAX_S:g} s)"
        if why != logged:
            log.warning("driver not usable, trying again", why=why, for_s=OPEN_WAIT_MAX_S)
        logged = why
        await asyncio.sleep(OPEN_RETRY_S)


def _newest() -> deque[float]:
    return deque(maxlen=CALLS_KEPT)


def _timed(call: Callable[[], Any], lengths_s: deque[float]) -> Any:
    began_s = now_s()
    try:
        return call()
    finally:
        lengths_s.append(now_s() - began_s)


def _told_ms(lengths_s: Iterable[float]) -> dict[str, float]:
    """Median and 99 of 100, of how many calls; empty: none."""
    ordered = sorted(lengths_s)
    if not ordered:
        return {}
    p50_s, p99_s = (ordered[int(ratio * len(ordered))] for ratio in (0.5, 0.99))
    return {"p50": round(MS * p50_s, 3), "p99": round(MS * p99_s, 3), "calls": len(ordered)}
