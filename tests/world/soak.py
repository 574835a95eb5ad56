"""Many seeds: `python -m tests.world.soak --seeds 5000`. Exit status 1 and the seeds if a promise was broken.

A failing seed is a full bug report: `python -m tests.world.soak --from 4711 --seeds 1` plays it again. When
it is mended it goes into `kept_seeds.py` with the reason, and stays in the test suite.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.world.checkers import Broken
from tests.world.world import LENGTH_S, run

CHUNK = 20


def play(first: int, count: int) -> list[str]:
    """Broken promises among `count` seeds from `first` on, as sentences."""
    found = []
    for seed in range(first, first + count):
        try:
            run(seed)
        except Broken as broken:
            found.append("\n    ".join((f"seed {seed}: {broken}", *broken.__notes__[1:])))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    began_s = time.monotonic()
    chunks = [
        (first, min(CHUNK, args.first + args.seeds - first))
        for first in range(args.first, args.first + args.seeds, CHUNK)
    ]
    broken: list[str] = []
    with ProcessPoolExecutor(args.processes) as pool:
        for done, found in enumerate(pool.map(play, *zip(*chunks, strict=True)), start=1):
            broken += found
            for sentence in found:
                print(sentence, flush=True)
            if done % 10 == 0:
                print(
                    f"  {min(done * CHUNK, args.seeds)} of {args.seeds} seeds, {len(broken)} broken",
                    flush=True,
                )
    took_s = time.monotonic() - began_s
    print(
        f"soak: {args.seeds} seeds of {LENGTH_S:.0f} s from {args.first}, {len(broken)} broken promises,"
        f" {took_s:.0f} s, {args.seeds / took_s:.1f} seeds/s"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
