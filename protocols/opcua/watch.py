"""One subscription: what changes is told at once, and whether it still lives is known.

Nothing of it is trusted for long. A server may refuse some nodes, or the subscription itself; it may forget
it after a while, and the library says nothing about any of that. Hence each answer to a publish request,
empty ones included, is taken as a sign of life; without one for three times as long as agreed the
subscription is given up and asked for anew. `unwatched` names the points that are not covered right now:
those are read instead. So are those that the server would look at more slowly than they are read: what it
told of them would be older news.

The library's own subscription class is left out: it starts a task per value, two thousand at a time.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Any, Final

from asyncua import Client, ua

from protocols.opcua.fence import PeerError, ask, explained, status_name

ITEMS_MAX: Final = 50  # asked for at a time: a slow controller answers in time, and ours is not held up
NEWS_MAX: Final = 50  # values per message: decoding more than that at once would make our own beat late
KEEPALIVE_S: Final = 1.0  # a server with nothing to say says so this often
KEEPALIVES_MISSED: Final = 3
KEEPALIVE_MAX_S: Final = 20.0  # whatever a server grants
SAMPLING_MAX_S: Final = 1.0  # granted; slower than that, or than asked for, it is no watch
LIFE_S: Final = 30.0  # a server drops a subscription that nobody asks about for so long
AGAIN_S: Final = 10.0  # a server that refused may have room again
SOON_S: Final = 0.5  # one that granted it and lost it gets asked at once, or nearly
DEATHS_MAX: Final = 20  # on one connection; then it is the connection that is renewed
MILLI: Final = 1000.0  # OPC UA durations are in ms


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a server shall watch: look every `sampling_s`, keep `queue_size` values, tell every `publishing_s`.

    With a queue of more than one, each value it kept becomes a reading, oldest first. When the queue is full
    the oldest gives way, or else (`discard_oldest` False) the newest.
    """

    publishing_s: float = 0.1  # ten times faster than a coolant loop moves
    sampling_s: float = 0.1
    queue_size: int = 1
    discard_oldest: bool = True

    def __post_init__(self) -> None:
        for name, value in (("publishing_s", self.publishing_s), ("sampling_s", self.sampling_s)):
            if not 0.01 <= value <= 60:
                raise ValueError(f"{name} {value}; use 0.01 to 60 s")
        if not 1 <= self.queue_size <= 1000:
            raise ValueError(f"queue_size {self.queue_size}; use 1 to 1000")


@dataclass(frozen=True)
class News:
    """Values that changed. The server wrote this after `asked_at_s` on our clock.

    `sampling_s` is how old a value may have been by then.
    """

    answers: Mapping[str, Any]  # ua.DataValue by point
    published_at: Any  # datetime on the server's clock, or None
    asked_at_s: float
    sampling_s: float


class Watch:
    """One subscription on one connection. `on_news` must not block; what it raises comes out of `keep`.

    Attributes:
        unwatched: points that the subscription does not cover now.
        fault: why not; "" while it covers all.
        apart: points to leave out at the next subscription: they are read, and rarely.
    """

    def __init__(
        self,
        client: Client,
        nodes: Mapping[str, ua.NodeId],
        sampling: Sampling,
        *,
        items_max: int,
        wait_max_s: float,
        clock: Callable[[], float],
        on_news: Callable[[News], None],
        apart: Iterable[str] = (),
    ) -> None:
        self._client, self._nodes, self._sampling = client, nodes, sampling
        self.apart = set(apart)
        self._names = [name for name in nodes if name not in self.apart]
        self._items_max, self._wait_max_s = min(items_max, ITEMS_MAX), wait_max_s
        self._clock, self._on_news = clock, on_news
        self._stirred = asyncio.Event()
        self._number = 0  # of the subscription, as the server counts
        self._heard_at_s = 0.0  # on the loop's clock
        self._asked_at_s = 0.0
        self._ended = ""
        self._broken: Exception | None = None
        self.unwatched = set(self._names)
        self.fault = ""
        self._sampling_s: dict[str, float] = {}  # as granted, by point
        self._slowest_s = max(sampling.sampling_s, SAMPLING_MAX_S)

    def leave_out(self, names: set[str]) -> None:
        """Subscribe anew without these: one of them makes whole messages useless."""
        self.apart |= names
        self._ended = f"without {', '.join(sorted(names)):.100}"
        self._stirred.set()

    async def keep(self) -> None:
        """Watch for ever. Ends by cancellation, or by what `on_news` raised.

        Raises PeerError when the subscription has died too often: the connection may be at fault.
        """
        deaths = 0
        while True:
            pause_s = AGAIN_S
            try:
                silence_max_s = await self._subscribe()
                pause_s = SOON_S
                await self._listen(silence_max_s)
            except PeerError as error:
                self.fault = f"no subscription: {error}; reading instead"
            self.unwatched = set(self._nodes) - self.apart
            if self._number:
                await self._forget(self._number)
                deaths += 1
            if deaths >= DEATHS_MAX:
                raise PeerError(f"the subscription died {deaths} times; last: {self.fault}")
            await asyncio.sleep(pause_s)

    async def _subscribe(self) -> float:
        """Returns how long the subscription may be silent."""
        wish = ua.CreateSubscriptionParameters()
        wish.RequestedPublishingInterval = self._sampling.publishing_s * MILLI
        wish.RequestedMaxKeepAliveCount = ceil(KEEPALIVE_S / self._sampling.publishing_s)
        wish.RequestedLifetimeCount = max(
            ceil(LIFE_S / self._sampling.publishing_s), 3 * wish.RequestedMaxKeepAliveCount
        )
        wish.MaxNotificationsPerPublish = NEWS_MAX
        self._number, self._ended, self._asked_at_s = 0, "", self._clock()
        self._names = [name for name in self._nodes if name not in self.apart]
        made = await ask(self._client.uaclient.create_subscription(wish, self._published), self._wait_max_s)
        self._number, self._heard_at_s = made.SubscriptionId, asyncio.get_running_loop().time()
        refused: dict[str, str] = {}
        for first in range(0, len(self._names), self._items_max):
            places = range(first, min(first + self._items_max, len(self._names)))
            refused |= await self._add(self._number, places)
        self.fault = _sentence(refused)
        granted_s = made.RevisedPublishingInterval * made.RevisedMaxKeepAliveCount / MILLI
        keepalive_s = min(max(KEEPALIVE_S, granted_s), KEEPALIVE_MAX_S)  # the least one, if it says NaN
        return float(KEEPALIVES_MISSED * keepalive_s)

    async def _add(self, number: int, places: Sequence[int]) -> dict[str, str]:
        """Have these points watched; returns those that the server refuses, with its reason."""
        wish = ua.CreateMonitoredItemsParameters()
        wish.SubscriptionId = number
        wish.TimestampsToReturn = ua.TimestampsToReturn.Both
        wish.ItemsToCreate = [self._item(place) for place in places]
        results = await ask(self._client.uaclient.create_monitored_items(wish), self._wait_max_s)
        if len(results) != len(places):
            raise PeerError(f"{len(places)} nodes to watch, {len(results)} answers came")
        refused = {}
        for place, result in zip(places, results, strict=True):
            name = self._names[place]
            granted_s = self._sampling_s[name] = float(result.RevisedSamplingInterval / MILLI)
            if not result.StatusCode.is_good():
                refused[name] = status_name(result.StatusCode)
            elif not granted_s <= self._slowest_s:
                refused[name] = f"only every {granted_s:g} s"
            else:
                self.unwatched.discard(name)
        return refused

    def _item(self, place: int) -> ua.MonitoredItemCreateRequest:
        item = ua.MonitoredItemCreateRequest()
        item.ItemToMonitor.NodeId = self._nodes[self._names[place]]
        item.ItemToMonitor.AttributeId = ua.AttributeIds.Value
        item.MonitoringMode = ua.MonitoringMode.Reporting
        item.RequestedParameters.ClientHandle = place
        item.RequestedParameters.SamplingInterval = self._sampling.sampling_s * MILLI
        item.RequestedParameters.QueueSize = self._sampling.queue_size
        item.RequestedParameters.DiscardOldest = self._sampling.discard_oldest
        return item

    async def _listen(self, silence_max_s: float) -> None:
        """Until the subscription has died."""
        loop = asyncio.get_running_loop()
        while True:
            if self._broken is not None:
                raise self._broken
            if self._ended:
                raise PeerError(f"the server ended it: {self._ended}")
            left_s = self._heard_at_s + silence_max_s - loop.time()
            if left_s <= 0:
                raise PeerError(f"silent for {silence_max_s:g} s")
            self._stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._stirred.wait()

    async def _forget(self, number: int) -> None:
        """Have the server drop it too, if it listens."""
        try:
            await ask(self._client.uaclient.delete_subscriptions([number]), self._wait_max_s)
        except PeerError:
            return  # it is gone anyway, or will be after `LIFE_S`

    def _published(self, result: ua.PublishResult) -> None:
        """The library calls this with every answer to a publish request, and would swallow what it raises."""
        self._heard_at_s = asyncio.get_running_loop().time()
        message = result.NotificationMessage
        try:
            for answers in self._layers(message.NotificationData or ()):
                granted_s = (self._sampling_s.get(name, 0.0) for name in answers)
                oldest_s = max(self._sampling.sampling_s, *granted_s)
                self._on_news(News(answers, message.PublishTime, self._asked_at_s, oldest_s))
        except Exception as error:  # noqa: BLE001  (kept for `keep`, which raises it)
            self._broken = error
            self._stirred.set()
        self._asked_at_s = self._clock()  # the library asks again as soon as we return

    def _layers(self, notifications: Sequence[Any]) -> list[dict[str, Any]]:
        """The values by point; those that a queue kept for the same point go to the next layer."""
        layers: list[dict[str, Any]] = []
        depth: dict[str, int] = {}
        for notification in notifications:
            if isinstance(notification, ua.StatusChangeNotification):
                self._ended = explained(status_name(notification.Status))
                self._stirred.set()
            elif isinstance(notification, ua.DataChangeNotification):
                for name, answer in self._named(notification):
                    layer = depth[name] = depth.get(name, -1) + 1
                    if layer == len(layers):
                        layers.append({})
                    layers[layer][name] = answer
        return layers

    def _named(self, notification: ua.DataChangeNotification) -> Iterator[tuple[str, Any]]:
        for item in notification.MonitoredItems or ():
            if not 0 <= item.ClientHandle < len(self._names) or item.Value is None:
                continue
            name = self._names[item.ClientHandle]
            if self._sampling_s.get(name, 0.0) <= self._slowest_s:
                yield name, item.Value


def _sentence(refused: Mapping[str, str], named_max: int = 5) -> str:
    if not refused:
        return ""
    some = ", ".join(f"{name} ({status})" for name, status in islice(refused.items(), named_max))
    more = f" and {len(refused) - named_max} more" if len(refused) > named_max else ""
    return f"not watched: {some}{more}; reading instead"
