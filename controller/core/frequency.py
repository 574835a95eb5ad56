"""Frequency response: the block sheds what it committed when the grid's frequency falls, from its own meter.

    hear      every sample is judged: stale, bad, out of order or beyond all reason is no sample
    confirm   a share is wanted only if every sample of the last `hold_s` wants it: one spike moves nothing
    activate  from READY alone; the baseline is what the block drew at that moment
    hold      a step holds for `sustain_s`, whatever the frequency; a droop follows it down and up
    recover   at `release_w_per_s`; the next activation waits for rest, and after a step for `rearm_s`

A product is a droop (share of the commitment by frequency) or steps (a threshold each), never both. Only low
frequency counts: a load can shed, and has nothing to offer at 50.2 Hz.

Blindness never activates. Blind while active, it holds until `sustain_s` has run out, then recovers: what was
promised is kept, and a dead meter does not curtail the block for ever. Blind covers a silent meter and one
that answers for ever with the same bits.

A restart ends nothing of that: what was held goes on, and so do its times, whoever was down meanwhile. An
instrument that is still being connected to counts as blind only after `FOUND_S`.

The limit this makes is a bound like any other: the lowest of all binds, and limits do not add up.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from controller.core.frequency_model import (
    BELIEVED_HZ,
    FrequencySettings,
    FrequencyState,
    Heard,
    Phase,
    Sample,
    Underway,
)
from controller.core.model import FOREVER_S, NO_LIMIT_W, Alarm, Limit, Measurement, Ramp

SOURCE: Final = "frequency: "  # of its limit; the product follows
SAMPLES_MIN: Final = 2  # one is a spike until the next one agrees
CLOSEST_S: Final = 0.008  # no unit reports faster than 120/s; closer samples came in one bunch
BELIEVED_HZ_PER_S: Final = 10.0  # more than twice what islands were seen to do; a phase jump shows more
NOISE_HZ: Final = 0.05  # between two samples, on top of that
ARM_SHARE_MAX: Final = 0.05  # a droop is never quite at rest; a response that begins here began from rest
WAKE_SHARE: Final = 0.05  # less than this can wait for the beat
RISE_ELAPSED_MAX_S: Final = 0.1  # lateness may never add power
SILENT_ALARM_S: Final = 1.0
BASELINE_AGE_MAX_S: Final = 10.0
WILD_TOLD_S: Final = 10.0  # how long a refused sample stays on the panel
FOUND_S: Final = 30.0  # after a start; a gateway that still has our last session takes no new one before


class _Seen(NamedTuple):
    """What all samples of the last `hold_s` agree on."""

    least: float  # share that each of them wants
    most: float  # share that none of them exceeds
    since_s: float  # moment of the oldest
    lowest_hz: float


def start(settings: FrequencySettings, now_s: float, underway: Underway | None = None) -> FrequencyState:
    """Not armed: the frequency must have been seen at rest, or a restart in mid-event would shed twice.

    What was under way goes on where it stood. Its times are no longer than they ever were meant to be, as a
    clock of before may have been a wrong one.
    """
    waiting = FrequencyState(now_s, Phase.WAITING, Heard())
    if underway is None:
        return waiting
    waiting = waiting._replace(ready_from_s=min(underway.ready_from_s, now_s + settings.rearm_s))
    if underway.shed_w <= 0.0:
        return waiting
    recovers = underway.phase is Phase.RECOVERING and not settings.droop  # which looks before it lets go
    return waiting._replace(
        phase=Phase.RECOVERING if recovers else Phase.ACTIVE,
        share=underway.shed_w / settings.committed_w,
        baseline_w=underway.baseline_w,
        raised_at_s=min(underway.raised_at_s, now_s),
        found_by_s=now_s + FOUND_S,
    )


def to_inherit(settings: FrequencySettings | None, state: FrequencyState | None) -> Underway | None:
    """What a restart is to know; None: nothing is under way, or was ever committed."""
    if settings is None or state is None or (state.share <= 0.0 and state.ready_from_s <= state.at_s):
        return None
    shed_w = state.share * settings.committed_w
    return Underway(state.phase, state.baseline_w, shed_w, state.raised_at_s, state.ready_from_s)


def just_begun(settings: FrequencySettings, limit_w: float, now_s: float) -> Underway:
    """A response of which nothing was kept but its limit: it may have all of its time before it.

    A step has shed what it sheds. A droop may have shed next to nothing: it must not follow a frequency that
    stays where it is upwards.
    """
    shed_w = settings.committed_w * (ARM_SHARE_MAX if settings.droop else 1.0)
    return Underway(Phase.ACTIVE, limit_w + shed_w, shed_w, now_s, now_s + settings.rearm_s)


def step(
    settings: FrequencySettings, state: FrequencyState, hz: Measurement, draw_w: float | None, now_s: float
) -> FrequencyState:
    """The response at `now_s`; call it on the beat, and whenever `wakes` says so.

    Args:
        settings: constant.
        state: as the last call returned it.
        hz: newest frequency, Hz. The same one twice, or an older one, changes nothing.
        draw_w: what the block draws; None or below 0: unknown, and the last known stands.
        now_s: this moment.
    """
    elapsed_s = min(max(0.0, now_s - state.at_s), RISE_ELAPSED_MAX_S)
    state = state._replace(at_s=max(now_s, state.at_s), heard=_hear(settings, state.heard, hz, now_s))
    if draw_w is not None and 0.0 <= draw_w < NO_LIMIT_W:
        state = state._replace(draw_w=draw_w, draw_at_s=now_s)
    seen = _seen(settings, state.heard, now_s)
    return _PHASES[state.phase](settings, state, seen, now_s, elapsed_s)


def limit(settings: FrequencySettings, state: FrequencyState) -> Limit | None:
    """The bound on block power; None: there is none. Down at once, up at no more than its own rate."""
    if state.share <= 0.0:
        return None
    return Limit(
        max(0.0, state.baseline_w - state.share * settings.committed_w),
        f"{SOURCE}{settings.product}",
        protection=True,
        ramp=Ramp(down_w_per_s=NO_LIMIT_W, up_w_per_s=settings.release_w_per_s),
    )


def leaves_w(state: FrequencyState) -> float | None:
    """Block power that the commitment is taken off, now or when it began; None: not armed."""
    if state.phase is Phase.WAITING:
        return None
    return state.draw_w if state.phase is Phase.READY else state.baseline_w


def share(settings: FrequencySettings, hz: float) -> float:
    """What the product asks for at this frequency, 0 to 1; 0 inside the dead band and above."""
    if hz >= settings.nominal_hz - settings.dead_band_hz:
        return 0.0
    if settings.steps:
        return max((point.share for point in settings.steps if hz <= point.hz), default=0.0)
    droop = settings.droop
    if hz >= droop[0].hz:
        return 0.0
    for above, below in pairwise(droop):
        if hz > below.hz:
            return above.share + (below.share - above.share) * (above.hz - hz) / (above.hz - below.hz)
    return droop[-1].share


def wakes(settings: FrequencySettings, state: FrequencyState, hz: float) -> bool:
    """Whether a sample is worth a beat of its own: it asks for clearly more than is held, and may get it.

    While the newest one believed does so, every sample is, whatever it says: or two spikes would be seen, and
    not what is between them.
    """
    if state.phase not in (Phase.READY, Phase.ACTIVE):
        return False
    lowest_hz = min((hz, *(sample.hz for sample in state.heard.samples[-1:])))
    return share(settings, lowest_hz) > state.share + WAKE_SHARE


# --- hearing ----------------------------------------------------------------------------------------


def _hear(settings: FrequencySettings, heard: Heard, hz: Measurement, now_s: float) -> Heard:
    """Take in the newest sample, if it is one, is new, and can be true."""
    if hz.taken_at_s <= heard.looked_at_s or not hz.is_usable(now_s, settings.age_max_s):
        return heard
    sample = Sample(hz.taken_at_s, hz.value)
    samples, last = heard.samples, heard.samples[-1] if heard.samples else None
    if last is not None and sample.at_s - last.at_s > settings.age_max_s:
        samples = ()  # two samples with a gap between them prove nothing of the gap
    if not _believed(settings, samples, sample):
        return heard._replace(looked_at_s=sample.at_s, wild=heard.wild + 1, wild_at_s=sample.at_s)
    same = last is not None and last.hz == sample.hz
    return heard._replace(
        samples=_trail(samples, sample, settings.hold_s),
        looked_at_s=sample.at_s,
        unchanged_since_s=heard.unchanged_since_s if same else sample.at_s,
    )


def _believed(settings: FrequencySettings, samples: tuple[Sample, ...], sample: Sample) -> bool:
    """No grid gets there, or not so fast. A level that stays is believed as soon as it could be real."""
    if not abs(sample.hz - settings.nominal_hz) <= BELIEVED_HZ:  # also catches NaN
        return False
    if not samples:
        return True
    last = samples[-1]
    return abs(sample.hz - last.hz) <= NOISE_HZ + BELIEVED_HZ_PER_S * (sample.at_s - last.at_s)


def _trail(samples: tuple[Sample, ...], sample: Sample, hold_s: float) -> tuple[Sample, ...]:
    """With the newest added, and no more than reaches back over `hold_s`."""
    if len(samples) >= SAMPLES_MIN and sample.at_s - samples[-2].at_s < CLOSEST_S:
        samples = samples[:-1]
    while len(samples) > 1 and sample.at_s - samples[1].at_s >= hold_s:  # as `_seen` reckons it
        samples = samples[1:]
    return (*samples, sample)


def _seen(settings: FrequencySettings, heard: Heard, now_s: float) -> _Seen | None:
    """What is confirmed at this moment; None: blind."""
    samples = heard.samples
    if len(samples) < SAMPLES_MIN or now_s - samples[-1].at_s > settings.age_max_s:
        return None
    if samples[-1].at_s - samples[0].at_s < settings.hold_s or is_frozen(settings, heard):
        return None
    shares = [share(settings, sample.hz) for sample in samples]
    return _Seen(min(shares), max(shares), samples[0].at_s, min(sample.hz for sample in samples))


def is_frozen(settings: FrequencySettings, heard: Heard) -> bool:
    return bool(heard.samples) and heard.samples[-1].at_s - heard.unchanged_since_s > settings.frozen_after_s


# --- the phases -------------------------------------------------------------------------------------

_Step = Callable[[FrequencySettings, FrequencyState, _Seen | None, float, float], FrequencyState]


def _wait(
    settings: FrequencySettings, state: FrequencyState, seen: _Seen | None, now_s: float, elapsed_s: float
) -> FrequencyState:
    del settings, elapsed_s
    at_rest = seen is not None and seen.most <= ARM_SHARE_MAX
    if at_rest and state.draw_w is not None and now_s >= state.ready_from_s:
        return state._replace(phase=Phase.READY)
    return state


def _stand_by(
    settings: FrequencySettings, state: FrequencyState, seen: _Seen | None, now_s: float, elapsed_s: float
) -> FrequencyState:
    del elapsed_s
    state = _crossed(state, seen)
    if seen is None or not _is_due(settings, state, now_s):
        return state
    assert state.draw_w is not None  # or it would not be READY
    return state._replace(
        phase=Phase.ACTIVE,
        share=seen.least,
        baseline_w=state.draw_w,
        began_at_s=state.crossed_at_s,
        activated_at_s=now_s,
        raised_at_s=now_s,
        crossed_at_s=FOREVER_S,
        ready_from_s=now_s + settings.rearm_s,
        activations=state.activations + 1,
    )


def _act(
    settings: FrequencySettings, state: FrequencyState, seen: _Seen | None, now_s: float, elapsed_s: float
) -> FrequencyState:
    state = _crossed(state, seen)
    if seen is not None and _is_due(settings, state, now_s):
        return state._replace(share=seen.least, raised_at_s=now_s, crossed_at_s=FOREVER_S)
    if seen is not None and settings.droop:
        return _fallen(settings, state, seen.most, elapsed_s)
    if now_s - state.raised_at_s >= settings.sustain_s and _may_end(settings, state, seen, now_s):
        return state._replace(phase=Phase.RECOVERING)
    return state


def _may_end(settings: FrequencySettings, state: FrequencyState, seen: _Seen | None, now_s: float) -> bool:
    """Whether nothing but its time holds it: the frequency is back, was never to be, or cannot be seen."""
    if not settings.droop and settings.release_hz is None:
        return True
    if seen is None:
        return now_s >= state.found_by_s
    return settings.release_hz is not None and seen.lowest_hz >= settings.release_hz


def _recover(
    settings: FrequencySettings, state: FrequencyState, seen: _Seen | None, now_s: float, elapsed_s: float
) -> FrequencyState:
    if seen is not None and settings.droop:  # sight is back
        return _act(settings, state._replace(phase=Phase.ACTIVE), seen, now_s, elapsed_s)
    return _fallen(settings, state, 0.0, elapsed_s)


_PHASES: Final[dict[Phase, _Step]] = {
    Phase.WAITING: _wait,
    Phase.READY: _stand_by,
    Phase.ACTIVE: _act,
    Phase.RECOVERING: _recover,
}


def _crossed(state: FrequencyState, seen: _Seen | None) -> FrequencyState:
    """Since when more is wanted than is held."""
    if seen is None or seen.least <= state.share:
        return state._replace(crossed_at_s=FOREVER_S)
    return state._replace(crossed_at_s=min(state.crossed_at_s, seen.since_s))


def _is_due(settings: FrequencySettings, state: FrequencyState, now_s: float) -> bool:
    return now_s - state.crossed_at_s >= settings.delay_s


def _fallen(
    settings: FrequencySettings, state: FrequencyState, target: float, elapsed_s: float
) -> FrequencyState:
    """The share on its way down, and the limit on its way up; at nothing the response is over."""
    most = state.share - elapsed_s * settings.release_w_per_s / settings.committed_w
    held = max(0.0, min(state.share, target), most)
    return state._replace(share=held) if held > 0.0 else state._replace(share=0.0, phase=Phase.WAITING)


# --- what is told -----------------------------------------------------------------------------------


def alarms(settings: FrequencySettings, state: FrequencyState) -> Iterator[Alarm]:
    """What a person should know of this moment."""
    heard = state.heard
    silent_s = state.at_s - heard.samples[-1].at_s if heard.samples else FOREVER_S
    if silent_s > max(settings.age_max_s, SILENT_ALARM_S):
        since = f"for {silent_s:.0f} s" if heard.samples else "yet"
        yield Alarm(
            "frequency",
            f"grid frequency not heard {since}: {settings.product} {_blind_words(state)};"
            " check the instrument and its line",
        )
    elif is_frozen(settings, heard):
        still_s = heard.samples[-1].at_s - heard.unchanged_since_s
        yield Alarm(
            "frequency frozen",
            f"grid frequency has been {heard.samples[-1].hz:g} Hz to the last digit for {still_s:.0f} s:"
            f" {settings.product} {_blind_words(state)}; check the instrument",
        )
    if state.at_s - heard.wild_at_s < WILD_TOLD_S:
        yield Alarm(
            "frequency wild",
            f"{heard.wild} frequency samples since start were beyond what a grid can do, and not used;"
            " check the instrument",
        )
    if state.phase is not Phase.READY or state.draw_w is None:
        return
    if state.at_s - state.draw_at_s > BASELINE_AGE_MAX_S:
        yield Alarm(
            "frequency baseline",
            f"block power not measured for {state.at_s - state.draw_at_s:.0f} s: a response of"
            f" {settings.product} would start from the last known {state.draw_w / 1e3:.2f} kW",
        )


def _blind_words(state: FrequencyState) -> str:
    return "cannot respond" if state.share <= 0.0 else "holds until its sustain time is over"


def why(settings: FrequencySettings, state: FrequencyState) -> str:
    """Where the response stands, in one sentence for a panel."""
    wait_s = state.ready_from_s - state.at_s
    if state.phase is Phase.WAITING and wait_s > 0.0:
        return f"{settings.product}: armed again in {wait_s:.0f} s"
    if state.phase is Phase.WAITING:
        lacks = "block power was never measured" if state.draw_w is None else "the grid is not seen at rest"
        return f"{settings.product}: not armed, {lacks}"
    if state.phase is Phase.READY:
        return f"{settings.product}: armed with {settings.committed_w / 1e3:.2f} kW"
    shed_kw = state.share * settings.committed_w / 1e3
    return (
        f"{settings.product}: {state.phase} with {shed_kw:.2f} kW below the baseline of"
        f" {state.baseline_w / 1e3:.2f} kW"
    )
