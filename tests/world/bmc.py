"""BMCs of the hosts and the backstop that uses them: the real phases and bounds, a wire made of time.

A round reads all levers, writes those that are too high, reads them back: seconds, and all that it learnt is
as old as its beginning. What is between the backstop and a BMC is left out; what a BMC may do to us is not:

    good      shows what it holds and what its GPUs draw
    slow      the same, a round takes far longer
    ignores   accepts, shows the old limit, holds nothing
    mirrors   accepts, shows the new limit, holds nothing
    dead      never answers
    dies      answers until it has held for a while
"""

from dataclasses import dataclass, field
from functools import partial
from random import Random

import numpy as np

from controller.backstop.node import bounds_w
from controller.backstop.phase import Guard, Heard, Phase, Proven, step
from controller.backstop.said import NodeSaid, Said
from controller.core.model import FOREVER_S
from protocols.redfish import Lever
from tests.world.facility import Truth

AFTER_S, RELEASE_AFTER_S = 3.0, 1.0
CAP_W, FREE_W = 300.0, 1e6
LONG_SILENT_S = 10.0  # and the law believes no more in what it held
BEAT_MAX_S = 0.11
PAUSE_S, TOLD_S = 1.0, 0.5
RISE_W = 250.0  # a round of release
ROUND_S = {"slow": (2.0, 4.0)}
DIES_AFTER_S = 11.0  # of a host's silence


@dataclass
class Bmc:
    """One of them, and what the backstop knows of its host."""

    members: np.ndarray
    shown_w: np.ndarray
    guard: Guard = field(default_factory=Guard)
    proof: Proven | None = None
    next_at_s: float = 0.0
    later: list = field(default_factory=list)  # (at, what): the rest of a round
    held: bool = False  # something of it is changed
    wrong_until_s: float = 0.0  # what it has shown is not so, and the draw alone may tell


@dataclass
class Bmcs:
    """All of them. `modes`: what is wrong, by node."""

    rng: Random
    truth: Truth
    nodes: dict[str, np.ndarray]
    age_max_s: float = 6.0
    now_s: float = 0.0
    told: tuple[Proven, ...] = ()  # to the law, with its last beat
    proofs: int = 0  # readings that showed a bound
    counted: int = 0  # moments at which a host was long silent and proven

    def __post_init__(self) -> None:
        self.modes = dict.fromkeys(self.nodes, "good")
        self.bmcs = {
            name: Bmc(members, np.full(len(members), FREE_W)) for name, members in self.nodes.items()
        }

    def step(self, now_s: float, hear) -> None:
        self.now_s = now_s
        for name, bmc in self.bmcs.items():
            while bmc.later and bmc.later[0][0] <= now_s:
                bmc.later.pop(0)[1]()
            heard = hear(name)
            self.counted += heard.silent_s > LONG_SILENT_S and bmc.proof is not None
            was = bmc.guard.phase
            bmc.guard = step(
                bmc.guard,
                heard,
                now_s,
                after_s=AFTER_S,
                release_after_s=RELEASE_AFTER_S,
                restored=not bmc.held,
            )
            if bmc.guard.phase is Phase.WATCHING:
                bmc.proof = None
            elif bmc.guard.phase is not was:
                bmc.next_at_s = now_s
            if bmc.guard.phase is not Phase.WATCHING and not bmc.later and now_s >= bmc.next_at_s:
                self._begin(name, bmc, heard, now_s)

    def _begin(self, name: str, bmc: Bmc, heard: Heard, now_s: float) -> None:
        """A round: what is read at its beginning is known at its middle, what is written then at its end."""
        mode = self.modes[name]
        round_s = self.rng.uniform(*ROUND_S.get(mode, (0.3, 1.0)))
        bmc.next_at_s = now_s + round_s + PAUSE_S
        if mode == "dead" or (mode == "dies" and heard.silent_s > DIES_AFTER_S):
            return
        seen = self._read(bmc, now_s)
        middle_s, end_s = now_s + 0.4 * round_s, now_s + round_s
        wish_w = np.full(len(bmc.members), CAP_W)
        if bmc.guard.phase is Phase.RELEASING:
            wish_w = np.where(bmc.shown_w + RISE_W < 700.0, bmc.shown_w + RISE_W, FREE_W)
            rising = [lever_of(gpu, limit_w) for gpu, limit_w in enumerate(wish_w)]
            bmc.later = [
                (middle_s, partial(self._prove, name, bmc, rising, now_s)),
                (middle_s + TOLD_S, partial(self._write, name, bmc, wish_w)),
            ]
            return
        bmc.held = True
        bmc.later = [
            (middle_s, partial(self._prove, name, bmc, seen, now_s)),
            (middle_s, partial(self._write, name, bmc, wish_w)),
            (end_s, lambda: self._prove(name, bmc, self._read(bmc, end_s), middle_s)),
        ]

    def _read(self, bmc: Bmc, now_s: float) -> list[Lever]:
        drawn_w = self.truth.power_w[bmc.members]
        return [
            lever_of(gpu, limit_w, draw_w)
            for gpu, (limit_w, draw_w) in enumerate(zip(bmc.shown_w, drawn_w, strict=True))
        ]

    def _prove(self, name: str, bmc: Bmc, seen: list[Lever], at_s: float) -> None:
        limits_w = bounds_w(seen, len(bmc.members))
        bmc.proof = Proven(name, limits_w, at_s) if np.isfinite(limits_w).any() else None
        self.proofs += bmc.proof is not None

    def _write(self, name: str, bmc: Bmc, limit_w: np.ndarray) -> None:
        mode = self.modes[name]
        if mode != "ignores":  # which leaves what was shown before, be it so or not
            bmc.shown_w = limit_w.copy()
            bmc.wrong_until_s = FOREVER_S if mode == "mirrors" else 0.0
        if mode not in ("ignores", "mirrors"):
            self.truth.bmc_w[bmc.members] = limit_w
        bmc.held = bool((bmc.shown_w < FREE_W).any())  # a release is over when it is read back

    def heal(self, name: str) -> None:
        """From now on it holds what it shows, also what was shown and not held before."""
        bmc = self.bmcs[name]
        self.modes[name] = "good"
        self.truth.bmc_w[bmc.members] = bmc.shown_w
        if bmc.wrong_until_s == FOREVER_S:
            bmc.wrong_until_s = 0.0

    def forget(self, name: str) -> None:
        """The host restarts, and its limits with it."""
        bmc = self.bmcs[name]
        bmc.wrong_until_s = self.now_s + self.age_max_s
        bmc.shown_w[:] = FREE_W
        self.truth.bmc_w[bmc.members] = FREE_W

    def proven(self, now_s: float) -> tuple[Proven, ...]:
        said = Said(tuple(NodeSaid(name, "", "", "", bmc.proof) for name, bmc in self.bmcs.items()))
        self.told = said.proven(now_s, self.age_max_s)
        return self.told

    def unknowable_w(self, now_s: float) -> float:
        """What GPUs may draw above a bound that their BMC shows, and that their draw does not give away."""
        most_w = np.minimum(self.truth.limit_w, self.truth.bmc_w)
        total_w = 0.0
        for one in self.told:
            if now_s < self.bmcs[one.node].wrong_until_s + BEAT_MAX_S:
                limits_w = most_w[self.bmcs[one.node].members]
                total_w += float(np.maximum(0.0, limits_w - np.array(one.limit_w)).sum())
        return total_w


def lever_of(gpu: int, limit_w: float, draw_w: float | None = None) -> Lever:
    return Lever(
        f"/redfish/v1/{gpu}",
        "gpu",
        gpu,
        setpoint_w=limit_w if limit_w < FREE_W else None,
        reading_w=draw_w,
    )
