"""The grid's frequency, the instrument that tells it, and what was committed: drawn from a stream of their own.

The truth wanders by some millihertz and dips now and then: deep enough for the product, not quite, again before
it is armed again, or upwards, which is nothing to a load. The instrument tells it; what is wrong with it never
changes what is. Times of the products are cut short, because a history has a minute.
"""

import json
from dataclasses import dataclass, field, replace
from random import Random

from controller.core.frequency_model import FrequencySettings
from controller.core.frequency_presets import PRESETS
from controller.core.model import UNKNOWN, Measurement, Ramp
from controller.frequency import FrequencyConfig, frequency_settings

FINE_S = 0.02  # the instrument's own pace; the world goes by it while a dip is young
WANDER_HZ, WANDER_S = 0.002, 1.0
DIPS_FROM_S, DIPS_UNTIL_S = 7.0, 32.0
BLINDING = ("silent", "bad", "late", "broken")
LATE_S = 1.5  # what a buffer holds back
YOUNG_S = 2.5  # after a dip began: in this time it is answered
TIMES_MAX_S = {"sustain_s": 5.0, "rearm_s": 9.0, "frozen_after_s": 2.0}
OWN = {
    "title": "two steps",
    "nominal_hz": 60,
    "full_s": 0.8,
    "sustain_s": 3.0,
    "steps": [{"hz": 59.7, "share": 0.5}, {"hz": 59.5, "share": 1.0}],
    "release_hz": 59.9,
}


@dataclass(frozen=True)
class Dip:
    """Down within `fall_s`, there for `stay_s`, back within `back_s`."""

    at_s: float
    depth_hz: float
    fall_s: float
    stay_s: float
    back_s: float

    def share(self, t_s: float) -> float:
        """Of the depth, at this moment."""
        since_s = t_s - self.at_s
        left_s = self.fall_s + self.stay_s + self.back_s - since_s
        return max(0.0, min(1.0, since_s / self.fall_s, left_s / self.back_s))


@dataclass
class Grid:
    """Truth and instrument of one history; times from the start of the world."""

    rng: Random
    nominal_hz: float
    dips: tuple[Dip, ...]
    hz: float = 0.0
    mode: str = "good"  # good, silent, frozen, bad, late, broken, spiky
    shown: Measurement = UNKNOWN
    shown_before: Measurement = UNKNOWN
    told_from_s: float = -1e12  # when it last did not tell the truth
    blind_s: float = 0.0  # for how long nothing that can be used has come
    _wander_hz: float = 0.0
    _frozen_hz: float = 0.0
    _past: list = field(default_factory=list)  # (at, hz) of the last seconds, for one that is late

    def is_young(self, t_s: float) -> bool:
        return any(-0.1 < t_s - dip.at_s < YOUNG_S for dip in self.dips)

    def step(self, t_s: float, now_s: float, dt_s: float) -> None:
        keep = max(0.0, 1.0 - dt_s / WANDER_S)
        self._wander_hz = keep * self._wander_hz + WANDER_HZ * (1.0 - keep * keep) ** 0.5 * self.rng.gauss(
            0.0, 1.0
        )
        self.hz = self.nominal_hz + self._wander_hz - sum(d.depth_hz * d.share(t_s) for d in self.dips)
        self._past = [one for one in self._past if one[0] > now_s - 3.0]
        self._past.append((now_s, self.hz))
        if self.mode != "good":
            self.told_from_s = now_s
        self.blind_s = self.blind_s + dt_s if self.mode in BLINDING else 0.0
        self.shown_before, self.shown = self.shown, self._told(now_s)

    def _told(self, now_s: float) -> Measurement:
        match self.mode:
            case "silent":
                return self.shown
            case "late":
                at_s, hz = min(self._past, key=lambda one: abs(one[0] - now_s + LATE_S))
                return Measurement(hz, True, at_s)
            case "frozen":
                return Measurement(self._frozen_hz, True, now_s)
            case "broken":  # another register, or none
                return Measurement(self.rng.choice((0.0, 6553.5, float("nan"))), True, now_s)
            case "spiky" if self.rng.random() < 0.1 and self.shown.value > self.nominal_hz - 0.2:
                return Measurement(self.hz - self.rng.uniform(0.5, 4.0), True, now_s)
        self._frozen_hz = self.hz
        return Measurement(self.hz, self.mode != "bad", now_s)


def commit(rng: Random, peak_w: float, ramp: Ramp) -> FrequencySettings:
    """A product of any preset or of one's own, in terms that a minute has room for."""
    preset = rng.choice((*PRESETS, "own"))
    said = {"committed_kw": rng.uniform(0.05, 0.15) * peak_w / 1e3, "input": {"way": "mqtt", "topic": "hz"}}
    said["input"]["period_s"] = 0.05  # a beat of 10 Hz looks no more often
    if preset == "own":
        said["own"] = OWN
    else:
        said["preset"] = preset
        if PRESETS[preset].needs_trigger:
            said["trigger_hz"] = PRESETS[preset].nominal_hz - 0.3
    config = FrequencyConfig.model_validate_json(json.dumps(said), strict=True)
    settings = frequency_settings(config, ramp)
    cut = {name: min(most_s, getattr(settings, name)) for name, most_s in TIMES_MAX_S.items()}
    return replace(settings, **cut)


def grid_for(rng: Random, settings: FrequencySettings) -> Grid:
    """Dips of all kinds for this product."""
    points = settings.droop or settings.steps
    full_hz = settings.nominal_hz - points[-1].hz  # below nominal, at which all of it is wanted
    first_hz = settings.nominal_hz - points[0].hz
    dips = []
    at_s = rng.uniform(DIPS_FROM_S, 15.0)
    while at_s < DIPS_UNTIL_S and len(dips) < 3:
        deep_hz = full_hz + rng.uniform(0.03, 0.3)
        depth_hz = rng.choice((deep_hz, deep_hz, rng.uniform(first_hz, deep_hz), 0.7 * first_hz, -0.2))
        dip = Dip(at_s, depth_hz, rng.uniform(0.1, 1.0), rng.uniform(0.3, 3.0), rng.uniform(0.3, 2.0))
        dips.append(dip)
        at_s += dip.fall_s + dip.stay_s + dip.back_s + rng.choice((0.2, 3.0, 12.0))
    return Grid(rng, settings.nominal_hz, tuple(dips))
