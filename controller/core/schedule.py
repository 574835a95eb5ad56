"""From setpoints with windows to the limits that hold now.

The wall clock may open a window, never close one: once a window is open, its end hangs on the monotonic
clock, so a step of the wall clock cannot release an active limit, and a window that has run out does not
open again when the clock is set back.

Setpoints of one source and kind replace each other: the lowest priority number wins, and among equals
the lowest limit. Kinds and sources are independent wishes: each yields a limit, and the lowest binds.
A setpoint that must be met when its window opens binds ahead of time, along the line of the ramp.
"""

from collections.abc import Iterable, Iterator

from controller.core.model import FOREVER_S, NO_LIMIT_W, Limit, Ramp, Running, Setpoint, ShedRequest
from controller.core.ramp import arrival_line_w


def open_windows(
    running: tuple[Running, ...],
    ended: frozenset[Setpoint],
    setpoints: tuple[Setpoint, ...],
    now_s: float,
    now_utc_s: float,
) -> tuple[tuple[Running, ...], frozenset[Setpoint]]:
    """Setpoints whose window is open now, and those that have had their time."""
    if not setpoints:
        return (), frozenset()
    known = {_window(entry.setpoint): entry for entry in running}
    still: list[Running] = []
    over = set(ended.intersection(setpoints)) if ended else set()
    for setpoint in setpoints:
        entry = known.get(_window(setpoint)) if known else None
        if entry is None:
            opens = setpoint.starts_utc_s <= now_utc_s < setpoint.ends_utc_s and setpoint not in over
            if not opens:
                continue
            entry = Running(setpoint, now_s + min(setpoint.ends_utc_s - now_utc_s, FOREVER_S))
        elif entry.setpoint is not setpoint:
            entry = Running(setpoint, entry.ends_at_s)
        if now_s < entry.ends_at_s:
            still.append(entry)
        else:
            over.add(setpoint)
    return tuple(still), frozenset(over)


def _window(setpoint: Setpoint) -> tuple[str, str, str, float, float]:
    """What makes a window the same one in a new version of its event: it keeps its end, whatever it asks."""
    return setpoint.source, setpoint.id, setpoint.kind, setpoint.starts_utc_s, setpoint.ends_utc_s


def winners(setpoints: Iterable[Setpoint]) -> list[Setpoint]:
    """One setpoint per source and kind: highest priority, then lowest limit."""
    best: dict[tuple[str, str], Setpoint] = {}
    for setpoint in setpoints:
        key = (setpoint.source, setpoint.kind)
        rival = best.get(key)
        if rival is None or (setpoint.priority, setpoint.limit_w) < (rival.priority, rival.limit_w):
            best[key] = setpoint
    return list(best.values())


def limits(
    running: tuple[Running, ...],
    ended: frozenset[Setpoint],
    setpoints: tuple[Setpoint, ...],
    *,
    now_utc_s: float,
    lead_s: float,
    ramp: Ramp,
    ceiling_w: float = NO_LIMIT_W,
) -> Iterator[Limit]:
    """The limits that open windows impose now, and those that coming ones cast ahead.

    Args:
        running: open windows.
        ended: those that have had their time.
        setpoints: all that are known, coming ones included.
        now_utc_s: by the wall clock, for coming ones.
        lead_s: from a command to obeyed power.
        ramp: of setpoints that bring none.
        ceiling_w: lines at or above it bind nobody and are left out: most of a long plan is far ahead.
    """
    opened = [entry.setpoint for entry in running]
    for setpoint in winners(opened):
        if setpoint.limit_w < NO_LIMIT_W and setpoint.shed_level < 0:
            yield Limit(setpoint.limit_w, name(setpoint), ramp=setpoint.ramp or ramp)
    for setpoint in setpoints:
        if not setpoint.arrive_at_start or setpoint.ends_utc_s <= now_utc_s:
            continue
        left_s = setpoint.starts_utc_s - now_utc_s - lead_s
        line_w = arrival_line_w(setpoint.limit_w, left_s, (setpoint.ramp or ramp).down_w_per_s)
        if line_w >= ceiling_w or setpoint in opened or setpoint in ended:
            continue
        rivals = (s for s in setpoints if s.starts_utc_s <= setpoint.starts_utc_s < s.ends_utc_s)
        if setpoint in winners(rivals):
            yield Limit(line_w, f"{name(setpoint)}, to be met at its start", ramp=setpoint.ramp)


def called(running: tuple[Running, ...]) -> Iterator[ShedRequest]:
    """The levels of shedding that open windows call."""
    for setpoint in winners(entry.setpoint for entry in running):
        if setpoint.shed_level >= 0:
            yield ShedRequest(name(setpoint), setpoint.shed_level)


def name(setpoint: Setpoint) -> str:
    return f"{setpoint.source} {setpoint.id}"
