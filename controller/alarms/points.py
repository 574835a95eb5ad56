"""Alarm conditions of single points: a value beyond a limit, a flag that a device raises.

A limit has a deadband: an alarm that is up stays up until the value is back inside by that much, so a value
that dances on the line rings once. A value that is not known (bad, missing, NaN) neither raises nor clears
anything: whether a device can be believed is an alarm of its own.

Rules are looked at when their point changes, never all at once: of ten thousand points those cost something
that change.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from controller.alarms.table import AlarmSettings, Entry, Priority

KINDS: Final = AlarmSettings()


class Level(StrEnum):
    HIGH_HIGH = "high-high"
    HIGH = "high"
    LOW = "low"
    LOW_LOW = "low-low"


UPPER: Final = frozenset({Level.HIGH_HIGH, Level.HIGH})
SEVERITIES: Final = MappingProxyType(
    {"warning": Priority.LOW, "alarm": Priority.HIGH, "critical": Priority.CRITICAL}
)


class Rule(Protocol):
    """A condition of one point.

    Attributes:
        point: address of the point in the process image, such as `devices/pdu-a1/power_w`.
        key: of the alarm.
    """

    @property
    def point(self) -> str: ...

    @property
    def key(self) -> str: ...

    def entry(self) -> Entry:
        """What the alarm system knows of it; to be given to `AlarmSettings.own`."""
        ...

    def holds(self, value: float, *, held: bool) -> bool:
        """Whether the condition holds now; `held`: it did before."""
        ...

    def text(self, value: float) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A limit on a point. Raises ValueError when it cannot work.

    Attributes:
        limit, deadband: in `unit`.
        on_delay_s, off_delay_s: how long the value is beyond, or inside by the deadband, until it counts.
        priority, latching: None: as of its level.
        response: what the operator is to do; empty: as of its level.
    """

    point: str
    level: Level
    limit: float
    unit: str = ""
    deadband: float = 0.0
    on_delay_s: float = 1.0
    off_delay_s: float = 2.0
    priority: Priority | None = None
    latching: bool | None = None
    response: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and math.isfinite(self.deadband) and self.deadband >= 0.0):
            raise ValueError(f"{self.key}: limit and deadband must be numbers, the deadband not below zero")

    @property
    def key(self) -> str:
        return f"{self.level} {self.point}"

    def entry(self) -> Entry:
        kind = KINDS.entry(self.key)
        priority = kind.priority if self.priority is None else self.priority
        return Entry(
            pattern=self.key,
            priority=priority,
            meaning=kind.meaning,
            by_itself=kind.by_itself,
            response=self.response or kind.response,
            group=_group(self.point),
            latching=kind.latching if self.latching is None else self.latching,
            suppressible=priority is not Priority.CRITICAL,
            on_delay_s=self.on_delay_s,
            off_delay_s=self.off_delay_s,
        )

    def holds(self, value: float, *, held: bool) -> bool:
        inside = self.deadband if held else 0.0
        return value > self.limit - inside if self.level in UPPER else value < self.limit + inside

    def text(self, value: float) -> str:
        side = "above" if self.level in UPPER else "below"
        return f"{self.point} reads {_said(value, self.unit)}, {side} {_said(self.limit, self.unit)}"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A bit of a point by which a device reports something itself. Raises ValueError for what is no alarm.

    Attributes:
        bit: its number, 0 the lowest.
        name: of what it reports.
        active: the bit's value when it does.
        severity: as in profiles: warning, alarm or critical.
    """

    point: str
    bit: int
    name: str
    active: int = 1
    severity: str = "alarm"
    latching: bool = False
    response: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(
                f"{self.key}: severity {self.severity!r} is no alarm; use {', '.join(SEVERITIES)}"
            )

    @property
    def key(self) -> str:
        return f"flag {self.point} {self.name}"

    def entry(self) -> Entry:
        kind, priority = KINDS.entry(self.key), SEVERITIES[self.severity]
        return Entry(
            pattern=self.key,
            priority=priority,
            meaning=kind.meaning,
            by_itself=kind.by_itself,
            response=self.response or kind.response,
            group=_group(self.point),
            latching=self.latching,
            suppressible=priority is not Priority.CRITICAL,
        )

    def holds(self, value: float, *, held: bool) -> bool:  # noqa: ARG002  a bit has no deadband
        return (int(value) >> self.bit & 1) == self.active

    def text(self, value: float) -> str:  # noqa: ARG002  the name says it all
        return f"{self.point} reports {self.name}"


class PointRules:
    """All rules, by point."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self._rules.setdefault(rule.point, []).append(rule)

    @property
    def points(self) -> frozenset[str]:
        """Those that any rule is about."""
        return frozenset(self._rules)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(rule.entry() for rules in self._rules.values() for rule in rules)

    def judged(self, held: Mapping[str, str], changed: Mapping[str, float | None]) -> Mapping[str, str]:
        """Conditions that hold, key to text, after some points have changed; None: not known any more.

        `held` is what held before: the same object is returned where nothing changes.
        """
        after = dict(held)
        for point, value in changed.items():
            if value is None or not math.isfinite(value):
                continue
            for rule in self._rules.get(point, ()):
                if rule.holds(value, held=rule.key in held):
                    after[rule.key] = rule.text(value)
                else:
                    after.pop(rule.key, None)
        return held if after == held else after


def _group(point: str) -> str:
    """Alarms of one device are one cascade: what tripped it came first."""
    return point.rpartition("/")[0]


def _said(value: float, unit: str) -> str:
    return f"{value:.6g} {unit}".rstrip()
