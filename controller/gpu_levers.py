"""What agents tell of the levers of their GPUs: which one moves the power, how it is set, what floor holds.

It comes with every report and mostly stands still for minutes, so arrays are touched where something changed.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from protocols.agent_link import Facts, Report

CLOCK: Final = "clock"  # as agents name the lever


class Levers:
    """Newest word on all GPUs. `slices`: which GPUs are whose, by node."""

    def __init__(self, slices: Sequence[slice], count: int) -> None:
        self.floor_w = np.zeros(count)
        self.capped = np.zeros(count, dtype=np.bool_)
        self.by_clock = np.zeros(count, dtype=np.bool_)
        self.clock_max_mhz = np.zeros(count, dtype=np.int64)
        self.ceiling_mhz = np.zeros(count, dtype=np.int64)
        self._slices = slices
        self._told: list[list[tuple[bool, str, int, float | None]]] = [[] for _ in slices]
        self._hidden = [0] * len(slices)  # GPUs whose smoothing does not tell its floor

    def put_report(self, report: Report, node: int) -> None:
        told = [(gpu.capped, gpu.lever, gpu.ceiling_mhz, gpu.floor_w) for gpu in report.gpus]
        if told == self._told[node]:
            return
        self._told[node] = told
        members = self._slices[node]
        capped, levers, ceilings_mhz, floors_w = zip(*told, strict=True)
        self.capped[members], self.ceiling_mhz[members] = capped, ceilings_mhz
        self.by_clock[members] = [lever == CLOCK for lever in levers]
        self.floor_w[members] = [floor_w or 0.0 for floor_w in floors_w]
        self._hidden[node] = sum(floor_w is None for floor_w in floors_w)

    def put_facts(self, facts: Facts, node: int) -> None:
        self.clock_max_mhz[self._slices[node]] = [gpu.clock_max_mhz for gpu in facts.gpus]

    def conditions(self) -> Iterator[tuple[str, str]]:
        hidden = sum(self._hidden)
        if hidden:
            text = (
                f"power smoothing of {hidden} GPUs does not tell its floor: it may keep them above their"
                " limits, which counts only once it is seen; let their agents read it, or switch it off"
            )
            yield "floors unknown", text
