"""Which lever moves the power of a GPU now: its power limit, or its clock? Learned by watching. Pure.

A power limit binds only where the work would draw more. Decoding of a language model draws far less than
any limit that one would set, and then only a lower clock sheds power. Nobody tells us which work runs; the
GPU shows it:

passive   the driver says of every moment whether the limit holds the clocks down ("capped"). Capped for most
          of the time: the limit is the lever. Busy, hardly ever capped, and hardly ever drawing much of what
          the board may: the clock is. Not capped alone says little: under its highest limit nothing is, and
          under a ceiling of ours whatever was slowed is not, so that the verdict would prove itself.
tested    our own writes are experiments that cost nothing. Who lowers a limit below the power drawn must
          see it fall to the limit; who lowers a ceiling below the clock must see power fall. A lever that was
          pulled in vain is none, until it is seen to act or the work has changed. What is let go before
          power had the time to follow proves nothing.

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
VERDICT_AFTER_S: Final = 3.0  # by the mean from SETTLE_S on: one reading may be of another phase of the work
VERDICT_S: Final = 120.0
BELIEVED_S: Final = 600.0  # under a ceiling of ours: three minutes until it is lifted to look again
LIMIT_KEPT_RATIO: Final = 1.05  # a limit holds an average: 5 % over it is still kept
MOVED_RATIO: Final = 0.03  # a smaller change of power is noise
HUNGRY_RATIO: Final = 0.6  # of the highest limit: decoding draws 0.4 of it, what computes 0.7 and more


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
    at_s: float  # of the first pull: on a way down others follow
    before_w: float
    bound: float  # the newest limit in W, or the newest ceiling in MHz
    seen_w: float = 0.0  # mean power since it had the time to settle
    readings: int = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """All that is remembered of one GPU."""

    began_at_s: float = 0.0
    last: Seen | None = None
    capped_share: float = 0.0  # of the time it was busy
    idle_share: float = 0.0
    hungry_share: float = 1.0  # of the time it was busy at a free clock, as far as was seen
    trial: Trial | None = None
    cap_fails_until_s: float = 0.0
    clock_fails_until_s: float = 0.0
    by_clock: bool = False  # the last verdict


NOTHING_YET: Final = Learned()


def learn(learned: Learned, seen: Seen) -> Learned:
    """Take in a reading; one that comes too soon after the last changes nothing."""
    last = learned.last
    if last is None:
        return Learned(seen.at_s, seen, float(seen.capped), float(seen.idle))
    elapsed_s = seen.at_s - last.at_s
    if elapsed_s < LEARN_PERIOD_S:
        return learned
    weight = min(elapsed_s / SHARE_TIME_S, 1.0)
    capped_share = learned.capped_share
    hungry_share = learned.hungry_share
    if not seen.idle:
        capped_share += weight * (seen.capped - capped_share)
    if not seen.idle and not seen.slowed:
        hungry_share += weight * (_is_hungry(seen) - hungry_share)
    elif seen.slowed:  # nobody sees what it would take: look again some day
        hungry_share += min(elapsed_s / BELIEVED_S, 1.0) * (1.0 - hungry_share)
    idle_share = learned.idle_share + weight * (seen.idle - learned.idle_share)
    watched = replace(
        learned, last=seen, capped_share=capped_share, idle_share=idle_share, hungry_share=hungry_share
    )
    after = _judged(watched, seen)
    return replace(after, by_clock=lever(after) is Lever.CLOCK)


def pulled_limit(learned: Learned, limit_w: float, now_s: float) -> Learned:
    """The limit was written. An experiment only where it lies below the power drawn."""
    last = learned.last
    if last is None or last.idle or limit_w >= last.power_w:
        return _let_go(learned, Lever.CAP)
    return _pulled(learned, Trial(Lever.CAP, now_s, last.power_w, limit_w))


def pulled_ceiling(learned: Learned, ceiling_mhz: int, now_s: float) -> Learned:
    """A ceiling was written. An experiment only where it lies below the present clock."""
    last = learned.last
    if last is None or last.idle or last.clock_mhz is None or not 0 < ceiling_mhz < last.clock_mhz:
        return _let_go(learned, Lever.CLOCK)
    return _pulled(learned, Trial(Lever.CLOCK, now_s, last.power_w, ceiling_mhz))


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
    spares = learned.capped_share <= hardly and learned.hungry_share <= hardly
    if (spares or not cap_works) and clock_works:
        return Lever.CLOCK
    return Lever.UNKNOWN


def _is_hungry(seen: Seen) -> bool:
    """It takes much of what the board may, or would if it were let."""
    return seen.capped or seen.power_w > HUNGRY_RATIO * seen.most_w


def _pulled(learned: Learned, trial: Trial) -> Learned:
    """An experiment begins, or the one under way goes on."""
    before = learned.trial
    if before is not None and before.lever is trial.lever:
        trial = replace(before, bound=trial.bound)
    return replace(learned, trial=trial)


def _let_go(learned: Learned, which: Lever) -> Learned:
    """A write that pulls nothing ends the experiment that was under way."""
    trial = learned.trial
    return learned if trial is None or trial.lever is not which else replace(learned, trial=None)


def _judged(learned: Learned, seen: Seen) -> Learned:
    """The verdict on a trial, once power had the time to settle. Work that stopped ends it without one."""
    trial = learned.trial
    if trial is None or (not seen.idle and seen.at_s < trial.at_s + SETTLE_S):
        return learned
    raised = trial.lever is Lever.CAP and seen.limit_w > trial.bound * LIMIT_KEPT_RATIO  # by somebody else
    if seen.idle or raised:
        return replace(learned, trial=None)
    readings = trial.readings + 1
    seen_w = trial.seen_w + (seen.power_w - trial.seen_w) / readings
    if seen.at_s < trial.at_s + VERDICT_AFTER_S:
        return replace(learned, trial=replace(trial, seen_w=seen_w, readings=readings))
    fails_until_s = 0.0 if _acted(trial, seen_w) else seen.at_s + VERDICT_S
    if trial.lever is Lever.CAP:
        return replace(learned, trial=None, cap_fails_until_s=fails_until_s)
    return replace(learned, trial=None, clock_fails_until_s=fails_until_s)


def _acted(trial: Trial, seen_w: float) -> bool:
    moved = trial.before_w - seen_w >= MOVED_RATIO * trial.before_w
    return moved or (trial.lever is Lever.CAP and seen_w <= trial.bound * LIMIT_KEPT_RATIO)
