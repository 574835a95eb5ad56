r"""What came of it: figures of merit from the recorded trace, and whether they meet what was expected.

Pure functions on arrays. The trace is the plant's own truth: means over 50 ms of block power, not what any
meter or the device under test says. Every figure is measured against a line that the contract alone
defines:

    baseline ----+                                     +---- baseline
                  \  ramp down                       /
                   \                               /   ramp up
                    +------------ limit -----------+
                 signal       deadline            end

`signal` is when the request was published (or begins, if that is later), `deadline` when the ramp has had its
time plus `response_s`, the promised dead time. Power and line go through the same mean of 1 s before they
are compared, so neither filter lag nor the exchange steps of a training job are mistaken for control error.

A figure that the trace cannot give (no drop seen, no full second of hold) is None, and fails its bound.

A rig that could not keep up with real time judges nobody: its plant stood still while the device under test
went on, so no other figure tells anything. Such a run has not passed either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MEAN_S: Final = 1.0  # contracts are judged on 1 s means
BASELINE_S: Final = 5.0  # before the signal: what power was
REACTION_MAX_S: Final = 3.0  # later than this is no reaction to this signal
REACTION_FIT_S: Final = 6.0
REACTION_EARLY_S: Final = 0.5  # a corner before the signal shows a bad fit, so let it show
REACTION_GRID_S: Final = 0.01
DROP_SIGMAS: Final = 4.0  # a drop must stand out of the baseline's noise by this
REACTION_MEAN_S: Final = 0.25
REACTION_BAND_RATIO: Final = 0.0025  # of the baseline, below its lowest mean
SETTLED_RATIOS: Final = (-0.03, 0.02)  # of the limit
TOKENS_BASELINE_S: Final = 10.0
RIG_LOST: Final = "rig_lost_s"
RIG_LOST_MAX_S: Final = 0.25  # of real time; a rig that lost more judges nobody


@dataclass(frozen=True)
class Trace:
    """Equal steps; each value is the mean over the step that ends at `t_s`. All arrays of shape (k)."""

    t_s: Floats
    block_w: Floats
    tokens_per_s: Floats
    capacity_w: Floats

    @property
    def step_s(self) -> float:
        return float(np.median(np.diff(self.t_s)))

    @property
    def centre_s(self) -> Floats:
        """The moment that a step's mean stands for."""
        return self.t_s - self.step_s / 2


@dataclass(frozen=True)
class Request:
    """What the site asked, on the trace's clock."""

    published_s: float
    starts_s: float
    ends_s: float
    baseline_w: float
    limit_w: float

    @property
    def signal_s(self) -> float:
        return max(self.published_s, self.starts_s)


@dataclass(frozen=True)
class Contract:
    ramp_down_w_per_s: float
    ramp_up_w_per_s: float
    rating_w: float
    response_s: float


@dataclass(frozen=True)
class Verdict:
    figures: Mapping[str, float | None]
    expectations: tuple["Expectation", ...]

    @property
    def judged(self) -> bool:
        """False: the rig itself was too slow."""
        return all(expectation.met for expectation in self.expectations if expectation.key == RIG_LOST)

    @property
    def passed(self) -> bool:
        return all(expectation.met for expectation in self.expectations)

    @property
    def word(self) -> str:
        return "not judged" if not self.judged else "PASSED" if self.passed else "FAILED"


@dataclass(frozen=True)
class Expectation:
    key: str
    value: float | None
    lowest: float | None
    highest: float | None

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        above = self.lowest is None or self.value >= self.lowest
        return above and (self.highest is None or self.value <= self.highest)


def judge(
    trace: Trace,
    requests: Sequence[Request],
    contract: Contract,
    bounds: Mapping[str, tuple[float | None, float | None]],
    extra: Mapping[str, float | None] | None = None,
) -> Verdict:
    """All figures, the worst over all requests, and every bound (lowest, highest) on them.

    Where nothing was requested there are no figures of requests; a bound on one fails all the same.
    """
    figures: dict[str, float | None] = {
        key: _worst([figure(trace, request, contract) for request in requests], worst)
        for key, (figure, worst) in FIGURES.items()
        if requests
    }
    figures["over_rating_s"] = over_s(trace, np.full(len(trace.t_s), contract.rating_w))
    figures["over_capacity_s"] = over_s(trace, trace.capacity_w)
    figures["over_capacity_ratio"] = over_ratio(trace, trace.capacity_w)
    figures["peak_w"] = float(np.nanmax(mean_of(trace, trace.block_w)))
    figures.update(extra or {})
    expectations = tuple(Expectation(key, figures.get(key), *bound) for key, bound in bounds.items())
    return Verdict(figures, expectations)


# ---- the line and the filter ----------------------------------------------------------------------------


def line_w(t_s: Floats, request: Request, contract: Contract, left_w: float | None = None) -> Floats:
    """The contract's line at `t_s`: down from the signal on, hold, up from the end on.

    `left_w`: where the way up begins; by default where the line stood, and an event may end in its ramp.
    """
    held_w = _falling_w(t_s, request, contract)
    stood_w = float(_falling_w(np.array([request.ends_s]), request, contract)[0])
    from_w = stood_w if left_w is None else min(left_w, stood_w)
    rising_w = from_w + contract.ramp_up_w_per_s * np.maximum(t_s - request.ends_s, 0)
    return np.where(t_s < request.ends_s, held_w, np.minimum(rising_w, max(request.baseline_w, from_w)))


def _falling_w(t_s: Floats, request: Request, contract: Contract) -> Floats:
    fallen_w = contract.ramp_down_w_per_s * np.maximum(t_s - request.signal_s, 0)
    return np.maximum(request.baseline_w - fallen_w, request.limit_w)


def mean_of(trace: Trace, values: Floats, mean_s: float = MEAN_S) -> Floats:
    """Trailing mean over `mean_s`; NaN until the first full one."""
    width = round(mean_s / trace.step_s)
    if len(values) < width:
        return np.full(len(values), np.nan)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    return np.concatenate([np.full(width - 1, np.nan), (sums[width:] - sums[:-width]) / width])


def fall_s(request: Request, contract: Contract) -> float:
    """How long the ramp down takes."""
    return max(0.0, request.baseline_w - request.limit_w) / contract.ramp_down_w_per_s


def rise_s(request: Request, contract: Contract) -> float:
    return max(0.0, request.baseline_w - request.limit_w) / contract.ramp_up_w_per_s


def deadline_s(request: Request, contract: Contract) -> float:
    return request.signal_s + fall_s(request, contract) + contract.response_s


# ---- figures --------------------------------------------------------------------------------------------


def reaction_s(trace: Trace, request: Request, _contract: Contract) -> float | None:
    """From the signal to the end of the first 0.25 s mean below all such means of the 5 s before, by 0.25 %.

    Nothing is fitted or extrapolated: noise and the window itself can only make it longer. 0.25 s, because
    single means of 50 ms dip with every exchange step of a training job. None: no such mean in the event.
    """
    mean_w = mean_of(trace, trace.block_w, REACTION_MEAN_S)
    before = (trace.t_s <= request.signal_s) & (trace.t_s > request.signal_s - BASELINE_S) & ~np.isnan(mean_w)
    if not before.any():
        return None
    lowest_w = float(mean_w[before].min()) - REACTION_BAND_RATIO * request.baseline_w
    seen = (trace.t_s > request.signal_s) & (trace.t_s <= request.ends_s) & (mean_w < lowest_w)
    return float(trace.t_s[seen][0] - request.signal_s) if seen.any() else None


def reaction_fit_s(trace: Trace, request: Request, contract: Contract) -> float | None:
    """From the signal to the corner of a hinge (level, then a straight fall) fitted to the 50 ms means.

    Least squares from 5 s before the signal to the end of the ramp, 6 s at most. Without the delay that noise
    gives a threshold, but only as good as the fall is straight: below 0 means that it began steeper than it
    went on. None if the fall does not stand out of the noise.
    """
    until_s = request.signal_s + min(REACTION_FIT_S, max(fall_s(request, contract), MEAN_S))
    window = (trace.t_s > request.signal_s - BASELINE_S) & (trace.t_s <= until_s)
    centre_s, power_w = trace.centre_s[window], trace.block_w[window]
    before = centre_s < request.signal_s
    if before.sum() < 2 or (~before).sum() < 2:
        return None
    last_s = min(request.signal_s + REACTION_MAX_S, until_s - 2 * trace.step_s)
    corners_s = np.arange(request.signal_s - REACTION_EARLY_S, last_s, REACTION_GRID_S)
    fits = [_hinge(centre_s, power_w, corner_s) for corner_s in corners_s]
    best = int(np.argmin([error for error, _ in fits]))
    slope_w_per_s = fits[best][1]
    noise_w = float(np.std(power_w[before])) + 1e-9
    fallen_w = slope_w_per_s * (until_s - corners_s[best])
    if fallen_w < DROP_SIGMAS * noise_w / np.sqrt(MEAN_S / trace.step_s) or slope_w_per_s <= 0:
        return None
    return float(corners_s[best] - request.signal_s)


def settle_s(trace: Trace, request: Request, contract: Contract) -> float | None:
    """From the signal until the 1 s mean is near the moving line and stays there to the end.

    Near is at most 2 % above the line as promised, `response_s` late, and at most 3 % below the line: a limit
    bounds an average, and GPUs hold 1.5 % below theirs. The window's own second counts against the device:
    0 only if it never left the band.
    """
    held = (trace.t_s > request.signal_s) & (trace.t_s <= request.ends_s)
    if not held.any():
        return None
    centre_s, mean_w = trace.centre_s, mean_of(trace, trace.block_w)
    low_w, high_w = (
        mean_of(trace, line_w(centre_s - late_s, request, contract)) + ratio * request.limit_w
        for late_s, ratio in zip((0.0, contract.response_s), SETTLED_RATIOS, strict=True)
    )
    outside = held & ~((low_w <= mean_w) & (mean_w <= high_w))
    if not outside.any():
        return 0.0
    last_s = float(trace.t_s[outside][-1])
    return None if last_s >= trace.t_s[held][-1] else last_s - request.signal_s


def overshoot_ratio(trace: Trace, request: Request, contract: Contract) -> float | None:
    """Highest 1 s mean above the limit, over the limit, in windows that begin after the deadline."""
    begins_s = trace.t_s - MEAN_S
    held = (begins_s >= deadline_s(request, contract) - 1e-6) & (trace.t_s <= request.ends_s)
    if not held.any():
        return None
    return max(0.0, float(mean_of(trace, trace.block_w)[held].max()) / request.limit_w - 1)


def above_line_ratio(trace: Trace, request: Request, contract: Contract) -> float | None:
    """Highest 1 s mean above the line, ramps included, over the limit; going down, `response_s` late."""
    centre_s = trace.centre_s
    late_s = np.where(centre_s < request.ends_s, centre_s - contract.response_s, centre_s)
    allowed_w = mean_of(trace, line_w(late_s, request, contract))
    ends_s = request.ends_s + rise_s(request, contract)
    judged = (trace.t_s > request.signal_s + MEAN_S) & (trace.t_s <= ends_s)
    if not judged.any():
        return None
    return max(0.0, float(((mean_of(trace, trace.block_w) - allowed_w)[judged]).max()) / request.limit_w)


def ramp_excess_ratio(trace: Trace, request: Request, contract: Contract) -> float | None:
    """Worst change of the 1 s mean within 1 s during both ramps, over the allowed rate, minus 1."""
    mean_w = mean_of(trace, trace.block_w)
    width = round(MEAN_S / trace.step_s)
    rate = np.full(len(mean_w), np.nan)
    rate[width:] = (mean_w[width:] - mean_w[:-width]) / MEAN_S
    ramping = _ramping(trace, request, contract) & ~np.isnan(rate)
    if not ramping.any():
        return None
    falling = float((-rate[ramping]).max()) / contract.ramp_down_w_per_s
    rising = float(rate[ramping].max()) / contract.ramp_up_w_per_s
    return max(0.0, falling - 1, rising - 1)


def ramp_error_rms_ratio(trace: Trace, request: Request, contract: Contract) -> float | None:
    """Root mean square distance from the line during both ramps, 1 s means, over the block's rating.

    What was agreed on the way up is a rate: its line begins at what the block drew when the event ended.
    """
    mean_w = mean_of(trace, trace.block_w)
    held = np.flatnonzero(trace.t_s <= request.ends_s)
    left_w = float(mean_w[held[-1]]) if len(held) and not np.isnan(mean_w[held[-1]]) else None
    error_w = mean_w - mean_of(trace, line_w(trace.centre_s, request, contract, left_w))
    ramping = _ramping(trace, request, contract) & ~np.isnan(error_w)
    if not ramping.any():
        return None
    return float(np.sqrt(np.mean(error_w[ramping] ** 2))) / contract.rating_w


def tokens_kept_ratio(trace: Trace, request: Request, contract: Contract) -> float | None:
    """Throughput while held, over throughput in the 10 s before."""
    before, held = _before_and_held(trace, request, contract)
    if not before.any() or not held.any():
        return None
    return float(trace.tokens_per_s[held].mean() / max(trace.tokens_per_s[before].mean(), 1e-9))


def tokens_per_s_per_w_before(trace: Trace, request: Request, contract: Contract) -> float | None:
    before, _ = _before_and_held(trace, request, contract)
    return _tokens_per_s_per_w(trace, before)


def tokens_per_s_per_w_during(trace: Trace, request: Request, contract: Contract) -> float | None:
    _, held = _before_and_held(trace, request, contract)
    return _tokens_per_s_per_w(trace, held)


def over_s(trace: Trace, bound_w: Floats) -> float:
    """How long the 1 s mean of power was above a bound that may move, seconds."""
    with np.errstate(invalid="ignore"):
        return float((mean_of(trace, trace.block_w) > bound_w).sum()) * trace.step_s


def over_budget_ratio(trace: Trace, budget_w: Floats, settling_s: float) -> float | None:
    """Highest 1 s mean of power above the controller's own budget, over it.

    A window is held against the highest budget of its second and of `settling_s` before it: limits take time
    to move power. From time 0 on; None where no budget is known.
    """
    width = round((MEAN_S + settling_s) / trace.step_s)
    if len(budget_w) <= width or np.isnan(budget_w).all():
        return None
    windows = np.lib.stride_tricks.sliding_window_view(budget_w, width)
    allowed_w = np.concatenate([np.full(width - 1, np.nan), windows.max(axis=1)])
    ratio = (mean_of(trace, trace.block_w) / allowed_w)[trace.t_s >= 0]
    return None if np.isnan(ratio).all() else max(0.0, float(np.nanmax(ratio)) - 1)


def over_ratio(trace: Trace, bound_w: Floats) -> float:
    """Highest 1 s mean of power above a bound that may move, over the bound."""
    return max(0.0, float(np.nanmax(mean_of(trace, trace.block_w) / np.maximum(bound_w, 1.0))) - 1)


Figure = Callable[[Trace, Request, Contract], float | None]

FIGURES: Final[dict[str, tuple[Figure, Callable[..., float]]]] = {  # key -> figure, worst of several
    "reaction_s": (reaction_s, max),
    "reaction_fit_s": (reaction_fit_s, max),
    "settle_s": (settle_s, max),
    "overshoot_ratio": (overshoot_ratio, max),
    "above_line_ratio": (above_line_ratio, max),
    "ramp_excess_ratio": (ramp_excess_ratio, max),
    "ramp_error_rms_ratio": (ramp_error_rms_ratio, max),
    "tokens_kept_ratio": (tokens_kept_ratio, min),
    "tokens_per_s_per_w_before": (tokens_per_s_per_w_before, min),
    "tokens_per_s_per_w_during": (tokens_per_s_per_w_during, min),
}


def _hinge(t_s: Floats, power_w: Floats, corner_s: float) -> tuple[float, float]:
    """Least squares of level - slope * max(t - corner, 0): squared error and slope (positive falls)."""
    x = np.maximum(t_s - corner_s, 0)
    deviation = x - x.mean()
    spread = float(deviation @ deviation)
    slope = 0.0 if spread == 0 else -float(deviation @ power_w) / spread
    residual = power_w - power_w.mean() + slope * deviation
    return float(residual @ residual), slope


def _ramping(trace: Trace, request: Request, contract: Contract) -> npt.NDArray[np.bool_]:
    down_end_s = min(deadline_s(request, contract), request.ends_s)
    down = (trace.t_s >= request.signal_s + MEAN_S) & (trace.t_s <= down_end_s + MEAN_S)
    up_end_s = request.ends_s + rise_s(request, contract)
    up = (trace.t_s >= request.ends_s + MEAN_S) & (trace.t_s <= up_end_s + MEAN_S)
    return down | up


def _before_and_held(
    trace: Trace, request: Request, contract: Contract
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    before = (trace.t_s <= request.signal_s) & (trace.t_s > request.signal_s - TOKENS_BASELINE_S)
    held = (trace.t_s > deadline_s(request, contract)) & (trace.t_s <= request.ends_s)
    return before, held


def _tokens_per_s_per_w(trace: Trace, window: npt.NDArray[np.bool_]) -> float | None:
    if not window.any():
        return None
    return float(trace.tokens_per_s[window].mean() / trace.block_w[window].mean())


def _worst(values: Sequence[float | None], worst: Callable[..., float]) -> float | None:
    known = [value for value in values if value is not None]
    return worst(known) if known and len(known) == len(values) else None
