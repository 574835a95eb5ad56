"""What keeps a command alive in a device, so that the plant falls back by itself when we are gone. Pure.

A command stands from its confirmed write until its release. While one stands, the device's mode is armed,
its heartbeat counts and its reversion timer is written anew long before it runs out. Nothing of this is
written while no command stands: an idle gateway leaves no trace in the plant.

A device that went away and came back is armed anew and told its commands again: its timer may have run out
meanwhile, and then it has fallen back, as it should.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from protocols.profile import Control, Profile, Setting

REFRESH_SHARE: Final = 1 / 3  # of the timer's life: two refreshes may be lost before the plant falls back
RETRY_S: Final = 1.0  # after an upkeep write that failed


def control_points(profile: Profile) -> frozenset[str]:
    """Points that the link itself writes where the site allows at least one command."""
    control = profile.control
    if control is None:
        return frozenset()
    names = {setting.point for setting in (*control.arm, *control.release, *_reversion(control))}
    return frozenset(names | ({control.heartbeat.point} if control.heartbeat else set()))


@dataclass
class Upkeep:
    """The standing commands of one device and when their upkeep is due (event loop's clock)."""

    control: Control
    standing: dict[str, float] = field(default_factory=dict)
    armed: bool = False  # on this connection
    touched: bool = False  # something of what arms it has been sent since the last release
    releasing: bool = False
    fault: str = ""
    _beats: int = 0
    _beat_s: float = 0.0
    _refresh_s: float = 0.0
    _retry_s: float = 0.0

    @property
    def due_s(self) -> float:
        if self.releasing:
            return self._retry_s
        if not self.standing:
            return math.inf
        if not self.armed:
            return self._retry_s
        return max(self._retry_s, min(self._beat_s, self._refresh_s))

    def to_arm(self) -> tuple[Setting, ...]:
        return (*self.control.arm, *_reversion(self.control))

    def to_release(self) -> tuple[Setting, ...]:
        return self.control.release

    def unwatched(self, point: str) -> bool:
        """Whether the device may change this point by itself, so that a read-back proves nothing."""
        beat, reversion = self.control.heartbeat, self.control.reversion
        return (beat is not None and beat.point == point) or (
            reversion is not None and reversion.timer_point == point
        )

    def disconnected(self) -> None:
        self.armed = False
        self._retry_s = 0.0

    def took_arms(self, now_s: float) -> None:
        self.armed, self.fault = True, ""
        self._beat_s = now_s
        self._refreshed(now_s)

    def took_release(self) -> None:
        self.releasing, self.armed, self.touched, self.fault = False, False, False, ""

    def failed(self, why: str, now_s: float) -> None:
        self.fault = why
        self._retry_s = now_s + RETRY_S
        if self.control.reversion is not None:
            self._refresh_s = min(self._refresh_s, self._retry_s)

    def upkeep(self, now_s: float) -> tuple[Setting, ...]:
        """What is to be written now; due again from now on."""
        settings: list[Setting] = []
        beat, reversion = self.control.heartbeat, self.control.reversion
        if beat is not None and self._beat_s <= now_s:
            self._beats = 0 if self._beats >= beat.wraps_at else self._beats + 1
            self._beat_s += beat.period_s * math.floor((now_s - self._beat_s) / beat.period_s + 1)
            settings.append(Setting(point=beat.point, value=float(self._beats)))
        if reversion is not None and self._refresh_s <= now_s:
            self._refreshed(now_s)
            settings.append(Setting(point=reversion.timer_point, value=reversion.seconds))
        return tuple(settings)

    def _refreshed(self, now_s: float) -> None:
        beat, reversion = self.control.heartbeat, self.control.reversion
        self._refresh_s = now_s + reversion.seconds * REFRESH_SHARE if reversion is not None else math.inf
        if beat is None:
            self._beat_s = math.inf


def _reversion(control: Control) -> tuple[Setting, ...]:
    """Value first, enable last: a timer must never run towards a value that is not there yet."""
    reversion = control.reversion
    if reversion is None:
        return ()
    settings = [Setting(point=reversion.timer_point, value=reversion.seconds)]
    if reversion.value is not None:
        settings.insert(0, Setting(point=reversion.value_point, value=reversion.value))
    if reversion.enable_point:
        settings.append(Setting(point=reversion.enable_point, value=reversion.enable_value))
    return tuple(settings)
