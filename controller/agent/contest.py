"""Somebody else writes the limits of our GPUs: how often we write ours again, and what we say of it. Pure.

A driver reload, an administrator, a node agent of the scheduler, a DCGM policy: all set the same limit, and
the last one wins. Ours is written again at the next beat; but two programs that correct each other for ever
wear out the driver and hide the quarrel. So after REASSERTS_PER_MINUTE_MAX within a minute

* a limit below ours is left alone until the minute is over: it costs work, it endangers nobody;
* a limit above ours is still lowered, once a second: that is what we are there for.

A limit that the board's controller (BMC) or a thermal guard sets does not show in the limit that was
requested, only in the one enforced, the lowest of all. Nothing can be written against it; it is told.
"""

from typing import Final, NamedTuple

REASSERTS_PER_MINUTE_MAX: Final = 6  # a program that reconciles every 15 s is corrected each time
MINUTE_S: Final = 60.0
LOWER_AGAIN_S: Final = 1.0
DIFFERENCE_MIN_W: Final = 1.0  # boards round what they enforce


class Contest(NamedTuple):
    """When we have written again what somebody had changed, newest last."""

    at_s: tuple[float, ...] = ()


NONE_YET: Final = Contest()


def may_reassert(contest: Contest, now_s: float, *, lowering: bool) -> bool:
    """May our limit be written again over somebody else's?"""
    if not is_hot(contest, now_s):
        return True
    return lowering and now_s - contest.at_s[-1] >= LOWER_AGAIN_S


def reasserted(contest: Contest, now_s: float) -> Contest:
    """It was."""
    return Contest((*contest.at_s, now_s)[-REASSERTS_PER_MINUTE_MAX:])


def is_hot(contest: Contest, now_s: float) -> bool:
    """It was written again so often that somebody must be writing on purpose."""
    return len(contest.at_s) == REASSERTS_PER_MINUTE_MAX and now_s - contest.at_s[0] < MINUTE_S


def changed(limit_w: float, ours_w: float, *, hot: bool) -> str:
    """A sentence on a requested limit that is not ours any more."""
    effect = _effect(limit_w, ours_w)
    if not hot:
        return (
            f"was set to {limit_w:.0f} W by someone else, {effect}, and is set again: driver reload, or "
            "another writer?"
        )
    then = "left at that for a minute" if limit_w < ours_w else "lowered once a second"
    return (
        f"is held at {limit_w:.0f} W by someone else: {effect}; it was set again "
        f"{REASSERTS_PER_MINUTE_MAX} times in a minute and is now {then}: find the other writer"
    )


def not_taken(written_w: float, shown_w: float) -> str:
    """A sentence on a limit that the driver shows otherwise right after it was written."""
    shown = f"the driver shows {shown_w:.0f} W, {_effect(shown_w, written_w)}"
    return f"{written_w:.0f} W were written, {shown}: is there another writer?"


def held_down(requested_w: float, enforced_w: float) -> str:
    """A sentence on a limit beyond the driver's; empty where there is none."""
    if requested_w - enforced_w < DIFFERENCE_MIN_W:
        return ""
    return (
        f"is held at {enforced_w:.0f} W by someone else: {requested_w - enforced_w:.0f} W below ours; "
        "see its BMC, and its temperature"
    )


def _effect(limit_w: float, ours_w: float) -> str:
    return f"{abs(ours_w - limit_w):.0f} W {'below' if limit_w < ours_w else 'above'} ours"
