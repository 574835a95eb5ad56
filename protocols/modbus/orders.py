"""Writes on their way: bounded, the newest per point wins, none is carried out after its deadline.

An order ends exactly once: done, refused, replaced by a newer one for the same point, or out of time. What
ran out of time waiting never leaves: a command of a minute ago is not what anybody wants now.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from protocols.profile import Point
from protocols.reading import NOTHING_SENT, DeviceError, Written

ORDERS_MAX: Final = 256  # waiting on one connection; a site that writes more at once has a fault in a loop

Key = tuple[str, str]


@dataclass(eq=False, slots=True)
class Order:
    """One write, or a release (`point` None). Times are on the event loop's clock."""

    device: str
    point: Point | None
    value: float
    not_before_s: float
    done: asyncio.Future[Written | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    taken: bool = False

    @property
    def key(self) -> Key:
        return self.device, self.point.name if self.point is not None else ""

    @property
    def what(self) -> str:
        return ".".join(part for part in self.key if part)

    def end(self, outcome: Written | DeviceError | None) -> None:
        if self.done.done():
            return
        if isinstance(outcome, DeviceError):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)

    def expire(self, wait_max_s: float) -> None:
        state = (
            "not confirmed: it may be in force or not" if self.taken else "nothing was sent: the line is busy"
        )
        self.end(DeviceError(f"{self.what}: {wait_max_s:g} s are over; {state}"))


class Orders:
    """The orders that wait for their turn on one connection, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[Key, Order] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Order]:
        return iter(self._waiting.values())

    @property
    def due_s(self) -> float:
        return min((order.not_before_s for order in self._waiting.values()), default=math.inf)

    def put(self, order: Order) -> None:
        """Take an order in place of an older one for the same point; DeviceError if there are too many."""
        older = self._waiting.pop(order.key, None)
        if older is not None:
            older.end(DeviceError(f"{older.what}: replaced by a newer write; nothing was sent"))
        if len(self._waiting) >= ORDERS_MAX:
            raise DeviceError(f"{order.what}: {ORDERS_MAX} writes wait already; nothing was sent")
        self._waiting[order.key] = order

    def take(self, now_s: float) -> Order | None:
        """The oldest order that may go now, no longer waiting."""
        for order in tuple(self._waiting.values()):
            if order.done.done():  # out of time, or its caller has gone
                self.forget(order)
            elif order.not_before_s <= now_s:
                self.forget(order)
                order.taken = True
                return order
        return None

    def forget(self, order: Order) -> None:
        if self._waiting.get(order.key) is order:
            del self._waiting[order.key]

    def fail_all(self, why: str) -> None:
        self._fail(tuple(self._waiting.values()), why)

    def withdraw(self, device: str) -> None:
        """Writes to a device that is released now; releases go on waiting."""
        writes = (order for order in self._waiting.values() if order.device == device and order.point)
        self._fail(tuple(writes), "withdrawn by a release")

    def _fail(self, orders: Iterable[Order], why: str) -> None:
        for order in orders:
            order.end(DeviceError(f"{order.what}: {why}; {NOTHING_SENT}"))
            self.forget(order)
