"""How many histories a second the deterministic world can check: one process, and two.

A seed is 60 simulated seconds of the real law, board, orders and leases under faults, with every promise
checked at every step. All runs use the same seeds, since some histories are harder than others. A seed that
breaks a promise is counted, not raised: finding it is the business of the tests and of the soak.
"""

import multiprocessing
import time
from multiprocessing.pool import Pool
from typing import Final

from benchmarks.result import Figure, Mode
from tests.world import world
from tests.world.checkers import Broken

TARGET_PER_S: Final = 20.0
SEEDS: Final = {Mode.TINY: 1, Mode.NORMAL: 60, Mode.FULL: 400}
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 3, Mode.FULL: 3}
PROCESSES: Final = 2


def holds(seed: int) -> bool:
    """One history; False if it breaks a promise."""
    try:
        world.run(seed)
    except Broken:
        return False
    return True


def _timed(seeds: range, pool: Pool | None) -> tuple[float, int]:
    """Seeds per second, and how many broke a promise."""
    began_s = time.perf_counter()
    held = list(map(holds, seeds)) if pool is None else pool.map(holds, seeds, chunksize=1)
    return len(held) / (time.perf_counter() - began_s), held.count(False)


def run(mode: Mode) -> list[Figure]:
    seeds, repeats = range(SEEDS[mode]), range(REPEATS[mode])
    holds(0)  # imports and first calls are not what is measured
    one = [_timed(seeds, None) for _ in repeats]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(holds, range(PROCESSES), chunksize=1)
        two = [_timed(seeds, pool) for _ in repeats]
    one_per_s, two_per_s = (tuple(rate for rate, _ in runs) for runs in (one, two))
    return [
        Figure("world_seeds_per_s_1_process", one_per_s),
        Figure("world_seeds_per_s_2_processes", two_per_s, at_least=TARGET_PER_S),
        Figure(
            "world_gain_of_2_processes_ratio", tuple(b / a for a, b in zip(one_per_s, two_per_s, strict=True))
        ),
        Figure("world_broken_seeds", tuple(float(broken) for _, broken in one)),
    ]
