"""Monitored items: what a client watches, and how each kind of them is looked at.

Most items want the newest value only (a queue of 1, sampled no faster than published). Such an item has no
queue: it remembers which version of the value it was told. Those that are due together and watch one batch
are a `Share`: one look at the batch tells whether any of them can have changed.

All others are looked at one by one and have a queue: longer queues, deadbands of the client's own, attributes
other than the value, triggers other than a change, fewer times than both.
"""

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary

from protocols.opcua.server_events import Event, EventFilter
from protocols.opcua.server_values import Batch, Variable, overflowed, stamped

SLOWEST_S: Final = 3600.0

_u32 = struct.Struct("<I").pack


class Nodes(Protocol):
    """What is there to be watched."""

    def variable(self, node_id: ua.NodeId) -> Variable | None: ...

    def read(self, node_id: ua.NodeId, attribute: int) -> ua.DataValue: ...

    def is_notifier(self, node_id: ua.NodeId) -> bool: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """A monitored item as a client wants it, revised."""

    node_id: ua.NodeId
    attribute: int
    handle: int
    mode: ua.MonitoringMode
    sampling_s: float
    queue: int
    discard_oldest: bool
    times: ua.TimestampsToReturn
    trigger: ua.DataChangeTrigger = ua.DataChangeTrigger.StatusValue
    deadband: float = 0.0


class Newest:
    """Wants the newest value of a variable, nothing else."""

    __slots__ = ("handle", "rate_s", "seen", "variable", "wish")

    def __init__(self, wish: Wish, variable: Variable, rate_s: float) -> None:
        self.wish, self.variable, self.rate_s = wish, variable, rate_s
        self.handle = _u32(wish.handle)
        self.seen = -1


@dataclass(eq=False, slots=True)
class Share:
    """Items of one rate that watch one batch."""

    batch: Batch
    items: dict[int, Newest] = field(default_factory=dict)
    version: int = -1


@dataclass(eq=False, slots=True)
class Rate:
    """Items that are due together; those of interval 0 with every publishing."""

    interval_s: float
    due_s: float = 0.0
    shares: dict[Batch, Share] = field(default_factory=dict)

    def advance(self, now_s: float) -> None:
        for share in self.shares.values():
            share.version = share.batch.version
        self.due_s = next_of(self.due_s, self.interval_s, now_s)


class Sampled:
    """An item that is looked at by itself, with a queue of what it saw."""

    __slots__ = ("handle", "is_plain", "is_read", "nodes", "queue", "seen", "told", "variable", "wish")

    def __init__(self, wish: Wish, variable: Variable | None, nodes: Nodes) -> None:
        self.wish, self.variable, self.nodes = wish, variable, nodes
        self.handle = _u32(wish.handle)
        self.queue: deque[bytes] = deque()
        self.is_read = variable is None or wish.trigger is ua.DataChangeTrigger.StatusValueTimestamp
        self.is_plain = not wish.deadband and wish.trigger is ua.DataChangeTrigger.StatusValue
        self.forget()

    def forget(self) -> None:
        """As if nothing had been told."""
        self.seen = -1
        self.told: tuple[Any, int, Any] | None = None

    def sample(self) -> bool:
        """Whether there is something new in the queue; its batch has just been refreshed."""
        variable = self.variable
        if variable is None or self.is_read:
            return self._sample_node()
        if variable.version == self.seen:
            return False
        self.seen = variable.version
        if not self.is_plain:
            now = (variable.value, variable.status, None)
            if not self._is_news(now):
                return False
            self.told = now
        self._put(variable.encoded)
        return True

    def _sample_node(self) -> bool:
        """Of whatever is no variable of ours, or is told with every new time."""
        answer = self.nodes.read(self.wish.node_id, self.wish.attribute)
        status = answer.StatusCode.value if answer.StatusCode is not None else 0
        now = (answer.Value.Value if answer.Value is not None else None, status, answer.SourceTimestamp)
        if not self._is_news(now):
            return False
        self.told = now
        self._put(struct_to_binary(_with_times(answer, self.wish.times)))
        return True

    def _is_news(self, now: tuple[Any, int, Any]) -> bool:
        told, trigger = self.told, self.wish.trigger
        if told is None or told[1] != now[1]:
            return True
        if trigger is ua.DataChangeTrigger.StatusValueTimestamp and told[2] != now[2]:
            return True
        if trigger is ua.DataChangeTrigger.Status or told[0] == now[0]:
            return False
        if self.wish.deadband and isinstance(told[0], float) and isinstance(now[0], float):
            return abs(now[0] - told[0]) > self.wish.deadband
        return True

    def _put(self, encoded: bytes) -> None:
        """Newest in; what has no room goes, and the one beside the gap says so."""
        queue, wish = self.queue, self.wish
        if len(queue) < wish.queue:
            queue.append(encoded)
            return
        queue.popleft() if wish.discard_oldest else queue.pop()
        queue.append(encoded)
        if wish.queue > 1 and not self.is_read:
            place = 0 if wish.discard_oldest else -1
            queue[place] = overflowed(queue[place])

    def pop(self) -> bytes:
        encoded, times = self.queue.popleft(), self.wish.times
        return encoded if self.is_read or times is ua.TimestampsToReturn.Both else stamped(encoded, times)


@dataclass(eq=False, slots=True)
class Sampling:
    """Items of one interval that are looked at one by one."""

    interval_s: float
    due_s: float = 0.0
    items: dict[int, Sampled] = field(default_factory=dict)

    def look(self, now_s: float, pending: dict[int, "Sampled | Hearing"]) -> None:
        """Sample those that are due; whoever has something new is pending."""
        self.due_s = next_of(self.due_s, self.interval_s, now_s)
        fresh: set[Batch] = set()
        for number, item in self.items.items():
            if item.variable is not None and item.variable.batch not in fresh:
                item.variable.batch.refresh()
                fresh.add(item.variable.batch)
            if item.sample():
                pending[number] = item


class Hearing:
    """An item that hears events."""

    __slots__ = ("filter", "handle", "queue", "wish")

    def __init__(self, wish: Wish, wanted: EventFilter) -> None:
        self.wish, self.filter = wish, wanted
        self.handle = _u32(wish.handle)
        self.queue: deque[bytes] = deque(maxlen=wish.queue)

    def offer(self, event: Event) -> bool:
        if self.wish.node_id not in event.notifiers or not self.filter.wants(event):
            return False
        self.queue.append(event.encoded(self.filter.fields))
        return True


Item = Newest | Sampled | Hearing


def within(interval_s: float, fastest_s: float) -> float:
    """An interval that is not too fast and not for ever; also for NaN, which is less than nothing."""
    return min(max(fastest_s, interval_s), SLOWEST_S)


def next_of(due_s: float, interval_s: float, now_s: float) -> float:
    """The next point of the grid; a new one where it was left by more than one."""
    following_s = due_s + interval_s
    return following_s if following_s > now_s else now_s + interval_s


def _with_times(answer: ua.DataValue, times: ua.TimestampsToReturn) -> ua.DataValue:
    keep_source = times in {ua.TimestampsToReturn.Source, ua.TimestampsToReturn.Both}
    keep_server = times in {ua.TimestampsToReturn.Server, ua.TimestampsToReturn.Both}
    return ua.DataValue(
        answer.Value,
        answer.StatusCode,
        SourceTimestamp=answer.SourceTimestamp if keep_source else None,
        ServerTimestamp=answer.ServerTimestamp if keep_server else None,
    )
