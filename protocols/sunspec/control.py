"""How a SunSpec device is commanded so that it falls back by itself when we are gone.

Models 704 and 123 limit power with a setpoint, an enable and a reversion timer: the device withdraws the
limit when the timer runs out. Models 715 and 802 watch a counter of ours and have a switch between local and
remote. The value to revert to is part of the plant's grid agreement, so it is read, never written.

While a timer is there, releasing means to let it run out. Switching the enable off instead could withdraw a
limit that somebody else has agreed for this plant; that is done only where there is no timer.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from protocols.profile import Control, Heartbeat, Identity, Reversion, Setting

REVERSION_S: Final = 60.0  # long against a restart of ours, short against a breaker that carries 110 %
HEARTBEAT_PERIOD_S: Final = (
    1.0  # SunSpec 715 and 802: "incremented every second, with periodic resets to zero"
)
HEARTBEAT_WRAPS_AT: Final = 32_767  # 0xFFFF would say "not implemented" in a 16-bit counter
LIMITS: Final = (
    # model, reversion timer, enable
    (704, "WMaxLimPctRvrtTms", "WMaxLimPctEna"),
    (123, "WMaxLimPct_RvrtTms", "WMaxLim_Ena"),
)
HEARTBEATS: Final = ((715, "ControllerHb"), (802, "CtrlHb"))
SWITCHES: Final = ((715, "LocRemCtl"), (802, "LocRemCtl"))
REMOTE: Final = 0.0
COMMANDS: Final = ("AlarmReset", "AlmRst", "ControllerHb", "CtrlHb", "OpCtl", "SetOp", "SetInvState")


# what must be read during discovery: only what the device implements is used
COMMANDED: Final = (
    *((model, timer) for model, timer, _ in LIMITS),
    *((model, enable) for model, _, enable in LIMITS),
    *HEARTBEATS,
    *SWITCHES,
)

Key = tuple[int, str]  # model and the standard's name of a point


def control_of(implemented: Mapping[Key, str]) -> Control | None:
    """The control block of a device that implements these points; None if it has nothing to command by."""
    heartbeat = _first(HEARTBEATS, implemented)
    switch = _first(SWITCHES, implemented)
    timer, enable = _limit(implemented)
    if not (heartbeat or enable):
        return None
    return Control(
        requires=(Identity(point=switch, equals=REMOTE),) if switch else (),
        arm=(Setting(point=enable, value=1),) if enable else (),
        release=(Setting(point=enable, value=0),) if enable and not timer else (),
        heartbeat=_heartbeat(heartbeat),
        reversion=Reversion(timer_point=timer, seconds=REVERSION_S) if timer else None,
    )


def _heartbeat(point: str) -> Heartbeat | None:
    if not point:
        return None
    return Heartbeat(point=point, period_s=HEARTBEAT_PERIOD_S, wraps_at=HEARTBEAT_WRAPS_AT)


def _first(wanted: Sequence[Key], implemented: Mapping[Key, str]) -> str:
    return next((implemented[key] for key in wanted if key in implemented), "")


def _limit(implemented: Mapping[Key, str]) -> tuple[str, str]:
    """Timer and enable of the first model that limits power; '' for what is not there."""
    for model, timer, enable in LIMITS:
        if (model, enable) in implemented:
            return implemented.get((model, timer), ""), implemented[model, enable]
    return "", ""
