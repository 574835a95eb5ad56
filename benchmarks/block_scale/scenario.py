"""A whole block on one machine: plays examples/block_1152.yaml in real time, turns its verdict into figures.

16 racks of 72 GPUs with their plant, meters, cooling, a DSX Flex operator and mosquitto with TLS: a quarter
less for a while, an emergency, a dip of the grid's frequency, a host that comes back at full power. The rig
measures what it does at the simulated meter; `shed_reaction_s` ends when the block's power is within 2 % of
the level. The plant runs on the same cores as controller, agents and broker.
"""

import asyncio
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml

from benchmarks.live import POWERBLOCK
from benchmarks.result import Figure, Mode, Report
from firmware_sim.rig import Outcome, Rig
from firmware_sim.scenario import parse_scenario

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 1, Mode.FULL: 3}
TARGETS: Final[dict[str, dict[str, float]]] = {
    "ramp_error_rms_ratio": {"at_most": 0.01},
    "above_line_ratio": {"at_most": 0.02},
    "over_budget_ratio": {"at_most": 0.02},
    "shed_reaction_s": {"at_most": 0.25},
    "frequency_reaction_s": {"at_most": 1.3},
    "gpus_in_excess": {"at_most": 0.0},
    "rig_lost_s": {"at_most": 0.25},
    "tokens_kept_ratio": {"at_least": 0.7},
    "controller_core_ratio": {"at_most": 0.35},
    "controller_memory_mib": {"at_most": 200.0},
}
TINY: Final[dict[str, Any]] = {  # of the emergency of one rack: does it run?
    "warm_up_s": 3,
    "duration_s": 3,
    "timeline": [{"at_s": 1, "contact": {"name": "trip", "closed": True}}],
    "expect": {},
}
TINY_RAMP_KW_PER_S: Final = 20


def run(mode: Mode) -> Report:
    outcomes = [_played(mode) for _ in range(REPEATS[mode])]
    told = [outcome.verdict.figures for outcome in outcomes]
    figures = [
        Figure(f"block_1152_{name}", runs, **TARGETS.get(name, {}))
        for name in told[0]
        if (runs := tuple(value for one in told if (value := one.get(name)) is not None))
    ]
    missing = sorted(TARGETS.keys() - {name for name, value in told[0].items() if value is not None})
    passed = [outcome.verdict.passed for outcome in outcomes]
    about = {
        "passed": passed,
        "expectations_missed": sorted(
            {one.key for outcome in outcomes for one in outcome.verdict.expectations if not one.met}
        ),
        "not_measured": missing,
        "alarms": sorted({alarm for outcome in outcomes for alarm in outcome.alarms}),
        "excesses": [outcome.excesses for outcome in outcomes],
    }
    lines = [f"{sum(passed)} of {len(passed)} plays passed"]
    lines += [f"not measured: {', '.join(missing)}"] if missing else []
    return Report(figures, about, "\n".join(lines) + "\n\n")


def _played(mode: Mode) -> Outcome:
    with TemporaryDirectory(prefix="powerblock-bench-") as name:
        folder = Path(name)
        rig = Rig(parse_scenario(_content(mode), "bench"), folder / "report", _command(folder))
        return asyncio.run(rig.run(lambda _view: None))


def _content(mode: Mode) -> dict[str, Any]:
    path = EXAMPLES / ("emergency.yaml" if mode is Mode.TINY else "block_1152.yaml")
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    if mode is Mode.TINY:
        content |= TINY
        content["block"] |= dict.fromkeys(("ramp_down_kw_per_s", "ramp_up_kw_per_s"), TINY_RAMP_KW_PER_S)
    return content


def _command(folder: Path) -> Path:
    """`powerblock` of this source tree, whatever is installed."""
    command = folder / "powerblock"
    command.write_text(f'#!/bin/sh\nexec {" ".join(POWERBLOCK)} "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return command
