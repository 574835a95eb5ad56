"""How many histories a second the deterministic world can check: one process, and two.

A seed is 60 simulated seconds of the real law, board, orders and leases under faults, with every promise
checked at every step. All runs use the same seeds, since some histories are harder than others. A seed that
breaks a promise is counted, not raised: finding it is the business of the tests and of the soak.
"""

import multiprocessing
import time
from multiprocessing.pool import Pool
from typing import Final, NamedTuple

from benchmarks.result import Figure, Mode
from tests.world import world
from tests.world.checkers import Broken

TARGET_PER_S: Final = 20.0
SEEDS: Final = {Mode.TINY: 1, Mode.NORMAL: 40, Mode.FULL: 400}
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 3, Mode.FULL: 3}
PROCESSES: Final = 2


def holds(seed: int) -> bool:
    """One history; False if it breaks a promise."""
    try:
        world.run(seed)
    except Broken:
        return False
    return True


class Timed(NamedTuple):
    per_s: float
    per_cpu_s: float  # of this process
    broken: int


def _timed(seeds: range, pool: Pool | None) -> Timed:
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    held = list(map(holds, seeds)) if pool is None else pool.map(holds, seeds, chunksize=1)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
    return Timed(len(held) / took_s, len(held) / cpu_s, held.count(False))


def run(mode: Mode) -> list[Figure]:
    seeds, repeats = range(SEEDS[mode]), range(REPEATS[mode])
    holds(0)  # imports and first calls are not what is measured
    one = [_timed(seeds, None) for _ in repeats]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(holds, range(PROCESSES), chunksize=1)
        two = [_timed(seeds, pool) for _ in repeats]
    gains = tuple(b.per_s / a.per_s for a, b in zip(one, two, strict=True))
    return [
        Figure("world_seeds_per_s_1_process", tuple(run.per_s for run in one)),
        Figure("world_seeds_per_cpu_s", tuple(run.per_cpu_s for run in one)),
        Figure("world_seeds_per_s_2_processes", tuple(run.per_s for run in two), at_least=TARGET_PER_S),
        Figure("world_gain_of_2_processes_ratio", gains),
        Figure("world_broken_seeds", tuple(float(run.broken) for run in one)),
    ]
