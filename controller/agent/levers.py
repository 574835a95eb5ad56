"""Which lever moves the power of a GPU now: its power limit, or its clock? Learned by watching. Pure.

A power limit binds only where the work would draw more. Decoding of a language model draws far less than
any limit that one would set, and then only a lower clock sheds power. Nobody tells us which work runs; the
GPU shows it:

passive   the driver says of every moment whether the limit holds the clocks down ("capped"). Capped for most
          of the time: the limit is the lever. Busy, hardly ever capped, and drawing far less than the board
          may: the clock is. Not capped alone says little: under its highest limit nothing is, and under a
          ceiling of ours whatever was slowed is not, so that the verdict would prove itself.
tested    our own writes are experiments that cost nothing. Who lowers a limit below the power drawn must
          see it fall to the limit; who lowers a ceiling below the clock must see power fall. A lever that was
          pulled in vain is none, until it is seen to act or the work has changed.

An idle GPU has no lever: nothing takes from it what it does not draw. Before enough was seen the answer is
"": count with the limit, which is the guarantee whatever the lever is.

Work changes within minutes, so what was seen fades: shares have a time constant of SHARE_TIME_S, and a
verdict on a test is forgotten after VERDICT_S.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

LEARN_PERIOD_S: Final = 0.5  # readings closer together tell nothing new of a workload
SHARE_TIME_S: Final = 10.0  # time constant of the shares: a phase of a training step is shorter
LEARNED_MIN_S: Final = 3.0  # less says nothing
CAPPED_MOST: Final = 0.5
CAPPED_HARDLY: Final = 0.1
CAPPED_STILL: Final = 0.25  # where the clock was the lever, it is so up to here: a verdict must not flicker
IDLE_MOST: Final = 0.5
SETTLE_S: Final = 1.0  # limits settle within 0.2 s, sensors average over up to 1 s
VERDICT_S: Final = 120.0
LIMIT_KEPT_RATIO: Final = 1.05  # a limit holds an average: 5 % over it is still kept
MOVED_RATIO: Final = 0.03  # a smaller change of power is noise
SPARING_RATIO: Final = (
    0.6  # of the board's highest limit: decoding draws 0.4 of it, what computes 0.7 and more
)


class Lever(StrEnum):
    UNKNOWN = ""
    CAP = "cap"
    CLOCK = "clock"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Seen:
    """One GPU at one moment."""

    at_s: float
    power_w: float
    limit_w: float
    clock_mhz: int | None
    capped: bool
    idle: bool
    most_w: float  # the highest limit of the board
    slowed: bool  # a ceiling of ours stands


@dataclass(frozen=True, slots=True)
class Trial:
    """A lever that was pulled; what it was like before."""

    lever: Lever
    at_s: float
    before_w: float
    before_mhz: int | None
    bound: float  # the new limit in W, or the new ceiling in MHz


@dataclass(frozen=True, slots=True)
class Learned:
    """All that is remembered of one GPU."""

    began_at_s: float = 0.0
    last: Seen | None = None
    capped_share: float = 0.0  # of the time it was busy
    idle_share: float = 0.0
    taken_ratio: float = 0.0  # of the board's most, what its work takes at a free clock, as far as was seen
    trial: Trial | None = None
    cap_fails_until_s: float = 0.0
    clock_fails_until_s: float = 0.0
    by_clock: bool = False  # the last verdict


NOTHING_YET: Final = Learned()


def learn(learned: Learned, seen: Seen) -> Learned:
    """Take in a reading; one that comes too soon after the last changes nothing."""
    last = learned.last
    if last is None:
        return Learned(seen.at_s, seen, float(seen.capped), float(seen.idle), _taken_ratio(seen))
    elapsed_s = seen.at_s - last.at_s
    if elapsed_s < LEARN_PERIOD_S:
        return learned
    weight = min(elapsed_s / SHARE_TIME_S, 1.0)
    capped_share = learned.capped_share
    taken_ratio = learned.taken_ratio
    if not seen.idle:
        capped_share += weight * (seen.capped - capped_share)
    if not seen.idle and not seen.slowed:
        taken_ratio += weight * (_taken_ratio(seen) - taken_ratio)
    idle_share = learned.idle_share + weight * (seen.idle - learned.idle_share)
    watched = replace(
        learned, last=seen, capped_share=capped_share, idle_share=idle_share, taken_ratio=taken_ratio
    )
    after = _judged(watched, seen)
    return replace(after, by_clock=lever(after) is Lever.CLOCK)


def pulled_limit(learned: Learned, limit_w: float, now_s: float) -> Learned:
    """The limit was written. An experiment only where it lies below the power drawn."""
    last = learned.last
    if last is None or last.idle or limit_w >= last.power_w:
        return learned
    return replace(learned, trial=Trial(Lever.CAP, now_s, last.power_w, last.clock_mhz, limit_w))


def pulled_ceiling(learned: Learned, ceiling_mhz: int, now_s: float) -> Learned:
    """A ceiling was written. An experiment only where it lies below the present clock."""
    last = learned.last
    if last is None or last.idle or last.clock_mhz is None or not 0 < ceiling_mhz < last.clock_mhz:
        return learned
    return replace(learned, trial=Trial(Lever.CLOCK, now_s, last.power_w, last.clock_mhz, ceiling_mhz))


def lever(learned: Learned) -> Lever:
    """What moves the power of this GPU, as far as was seen."""
    last = learned.last
    if last is None or last.at_s - learned.began_at_s < LEARNED_MIN_S:
        return Lever.UNKNOWN
    if learned.idle_share > IDLE_MOST:
        return Lever.NONE
    cap_works = last.at_s >= learned.cap_fails_until_s
    clock_works = last.at_s >= learned.clock_fails_until_s
    if not cap_works and not clock_works:
        return Lever.NONE
    if learned.capped_share >= CAPPED_MOST and cap_works:
        return Lever.CAP
    hardly = CAPPED_STILL if learned.by_clock else CAPPED_HARDLY
    spares = learned.capped_share <= hardly and learned.taken_ratio <= SPARING_RATIO
    if (spares or not cap_works) and clock_works:
        return Lever.CLOCK
    return Lever.UNKNOWN


def _taken_ratio(seen: Seen) -> float:
    """What is capped would take more than it draws: nobody knows how much."""
    return 1.0 if seen.capped else min(1.0, seen.power_w / max(seen.most_w, 1.0))


def _judged(learned: Learned, seen: Seen) -> Learned:
    """The verdict on a trial, once power had the time to settle. Work that stopped ends it without one."""
    trial = learned.trial
    if trial is None or (not seen.idle and seen.at_s < trial.at_s + SETTLE_S):
        return learned
    cap_until_s, clock_until_s = learned.cap_fails_until_s, learned.clock_fails_until_s
    if not seen.idle:
        fails_until_s = 0.0 if _acted(trial, seen) else seen.at_s + VERDICT_S
        if trial.lever is Lever.CAP:
            cap_until_s = fails_until_s
        else:
            clock_until_s = fails_until_s
    return replace(learned, trial=None, cap_fails_until_s=cap_until_s, clock_fails_until_s=clock_until_s)


def _acted(trial: Trial, seen: Seen) -> bool:
    moved = trial.before_w - seen.power_w >= MOVED_RATIO * trial.before_w
    if trial.lever is Lever.CAP:
        return moved or seen.power_w <= trial.bound * LIMIT_KEPT_RATIO
    return moved
