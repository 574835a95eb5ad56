"""Measure and say it: JSON per bench, one table on the screen.

    python -m benchmarks                 all of them, about an hour
    python -m benchmarks tick world      some of them
    python -m benchmarks --full          with a whole simulated block-day and more windows of the beat

Run it from the repository root, on a machine with nothing else to do. A missed target is printed in bold
and recorded as such; the exit status is 0 all the same.
"""

import argparse
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from benchmarks import beat, block_day, memory, order_path, result, signals, tick, world
from benchmarks.block_scale import fast_path, scenario
from benchmarks.gateway import scada, side_by_side
from benchmarks.result import Figure, Mode, Report

BENCHES: Final[dict[str, Callable[[Mode], list[Figure] | Report]]] = {
    "tick": tick.run,
    "block_day": block_day.run,
    "world": world.run,
    "order_path": order_path.run,
    "signals": signals.run,
    "memory": memory.run,
    "beat": beat.run,
    "gateway": side_by_side.run,
    "scada": scada.run,
    "fast_path": fast_path.run,
    "fast_path_growth": fast_path.run_growth,
    "block_1152": scenario.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="measure what is promised")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for JSON")
    pace = parser.add_mutually_exclusive_group()
    for mode, text in ((Mode.TINY, "does it run? no figures to trust"), (Mode.FULL, "whole days")):
        pace.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, help=text)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench {', '.join(unknown)}; choose from {', '.join(BENCHES)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no child outlives us
    logging.basicConfig(level=logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    facts = ", ".join(f"{key} {value}" for key, value in result.machine().items())
    print(f"{facts}\n")
    missed = [
        figure.name
        for name in arguments.names or BENCHES
        for figure in _measure(name, arguments.mode or Mode.NORMAL, arguments.out)
        if not figure.met
    ]
    print(f"TARGETS MISSED: {', '.join(missed)}" if missed else "all targets met")


def _measure(name: str, mode: Mode, out_dir: Path) -> list[Figure]:
    before = result.conditions()
    began_s = time.monotonic()
    told = BENCHES[name](mode)
    report = told if isinstance(told, Report) else Report(told, about={}, text="")
    content = result.document(name, mode, report, before, time.monotonic() - began_s)
    path = result.write(out_dir, content)
    print(
        f"{name}: load {before['load_average'][0]} before, {content['load_average_after'][0]} after,"
        f" noise {before['noise_ratio']}, {content['wall_s']} s, {path}\n\n"
        f"{report.text}{result.table(report.figures)}\n",
        flush=True,
    )
    return report.figures


if __name__ == "__main__":
    main()
