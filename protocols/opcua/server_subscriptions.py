"""Subscriptions of an OPC UA server, at a cost that does not grow with what happens between two publishings.

This takes the place of the library's subscription service, which copies every written value into a queue for
every client. The rules are those of OPC 10000-4, 5.13 and 5.14:

* A monitored item is looked at when it is due, by its sampling interval, and told when it has changed.
* What is newer than an item was told goes into the answer at the moment of publishing. A client that does not
  ask for a while gets the newest then, and costs nothing meanwhile.
* Items that need a queue are sampled into it (see server_items), events are queued, oldest first out.

An answer needs a question: without a publish request at hand nothing is sent, and after a lifetime of silence
the subscription ends. Everything a client can ask for is bounded, because it is kept on the client's behalf.
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog
from asyncua import ua
from asyncua.common.utils import ServiceError
from asyncua.ua.uaprotocol_auto import (
    DataChangeFilter,
)  # what comes off the wire; ua.DataChangeFilter is below it

from protocols.opcua.server_events import Event, EventFilter, FilterError
from protocols.opcua.server_items import (
    Hearing,
    Item,
    Newest,
    Nodes,
    Rate,
    Sampled,
    Sampling,
    Share,
    Wish,
    next_of,
    within,
)

KEEP_ALIVE_MAX: Final = 1000  # publishing intervals
LIFETIME_MAX: Final = 3000
LIFETIME_OF_KEEP_ALIVE: Final = 3  # the least: OPC 10000-4, 5.14.2
LIFETIME_MAX_S: Final = 600.0  # a client that is gone is forgotten, whatever it asked for
SUBSCRIPTIONS_MAX: Final = 20  # of one session
ITEMS_MAX: Final = 20_000  # of one subscription: every point of the largest block
NOTIFICATIONS_MAX: Final = 10_000  # in one answer: some 300 kB
QUEUE_MAX: Final = 100  # values of one item: ten seconds at 10 Hz
EVENTS_MAX: Final = 1000  # of one item: the first minute of a bad day
SENT_MAX: Final = 10  # answers kept for a client that lost one
DATA_CHANGE: Final = ua.NodeId(ua.ObjectIds.DataChangeNotification_Encoding_DefaultBinary)
EVENT_LIST: Final = ua.NodeId(ua.ObjectIds.EventNotificationList_Encoding_DefaultBinary)
NO_DIAGNOSTICS: Final = struct.pack("<i", -1)

log = structlog.get_logger(__name__)

_count = struct.Struct("<i").pack


class Asker(Protocol):
    """The connection of a session: where answers go and publish requests come from."""

    async def forward_publish_response(self, result: ua.PublishResult, request: Any) -> None: ...

    def get_publish_request(self, number: int) -> Any | None: ...


class Owner(Protocol):
    """A session."""

    session_id: ua.NodeId

    @property
    def role(self) -> int: ...


class Subscription:
    """One subscription. Its attributes without underscore are what the library's connections use.

    Attributes:
        session_id: whose it is.
        pub_result_callback, pub_request_callback: the way to its client now.
    """

    def __init__(
        self,
        number: int,
        nodes: Nodes,
        owner: Owner,
        asker: Asker,
        asked: ua.CreateSubscriptionParameters,
        *,
        fastest_s: float,
        on_expired: Callable[[int], None],
    ) -> None:
        self.number, self.session_id, self.owner = number, owner.session_id, owner
        self.pub_result_callback: Callable[..., Awaitable[None]] = asker.forward_publish_response
        self.pub_request_callback: Callable[[int], Any | None] = asker.get_publish_request
        self.enabled = bool(asked.PublishingEnabled)
        self._nodes, self._fastest_s, self._on_expired = nodes, fastest_s, on_expired
        self._items: dict[int, Item] = {}
        self._rates: dict[float, Rate] = {}
        self._sampled: dict[float, Sampling] = {}
        self._pending: dict[int, Sampled | Hearing] = {}
        self._item_numbers = 0
        self._sent: dict[int, ua.NotificationMessage] = {}
        self._sequence = 1
        self._quiet = 0  # publishing intervals without an answer
        self._unasked = 0  # publishing intervals with something to say and nobody to say it to
        self._is_new = True
        self._more = False
        self._wake = asyncio.Event()  # there is something new to sample
        self.revise(asked)
        self._task = asyncio.create_task(self._run(), name=f"opc ua subscription {number}")
        self._task.add_done_callback(self._ended)

    def revise(self, asked: Any) -> None:
        """Intervals and counts as near to what is asked as they may be."""
        self.interval_s = within(asked.RequestedPublishingInterval / 1000.0, self._fastest_s)
        self.keep_alive = min(max(asked.RequestedMaxKeepAliveCount, 1), KEEP_ALIVE_MAX)
        least = LIFETIME_OF_KEEP_ALIVE * self.keep_alive
        most = max(least, min(LIFETIME_MAX, int(LIFETIME_MAX_S / self.interval_s)))
        self.lifetime = min(max(asked.RequestedLifetimeCount, least), most)
        self._most = min(asked.MaxNotificationsPerPublish or NOTIFICATIONS_MAX, NOTIFICATIONS_MAX)

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.forget()

    def forget(self) -> None:
        self.delete(list(self._items))

    # --- items ------------------------------------------------------------------------------------------

    def create(
        self, times: ua.TimestampsToReturn, asked: ua.MonitoredItemCreateRequest
    ) -> ua.MonitoredItemCreateResult:
        result = ua.MonitoredItemCreateResult()
        if len(self._items) >= ITEMS_MAX:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadTooManyMonitoredItems)
            return result
        target, parameters = asked.ItemToMonitor, asked.RequestedParameters
        if target.IndexRange:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadIndexRangeInvalid)
            return result
        try:
            wish = self._wish(target.NodeId, target.AttributeId, asked.MonitoringMode, times, parameters)
            item = self._made(wish, parameters.Filter)
        except ServiceError as refused:
            result.StatusCode = ua.StatusCode(refused.code)
            return result
        self._item_numbers += 1
        result.MonitoredItemId = self._item_numbers
        result.RevisedSamplingInterval = wish.sampling_s * 1000.0
        result.RevisedQueueSize = wish.queue
        self._add(self._item_numbers, item)
        return result

    def modify(
        self, times: ua.TimestampsToReturn, asked: ua.MonitoredItemModifyRequest
    ) -> ua.MonitoredItemModifyResult:
        result = ua.MonitoredItemModifyResult()
        old, parameters = self._items.get(asked.MonitoredItemId), asked.RequestedParameters
        if old is None:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadMonitoredItemIdInvalid)
            return result
        try:
            wish = self._wish(old.wish.node_id, old.wish.attribute, old.wish.mode, times, parameters)
            item = self._made(wish, parameters.Filter)
        except ServiceError as refused:
            result.StatusCode = ua.StatusCode(refused.code)
            return result
        self._replace(asked.MonitoredItemId, item)
        result.RevisedSamplingInterval = wish.sampling_s * 1000.0
        result.RevisedQueueSize = wish.queue
        return result

    def set_mode(self, mode: ua.MonitoringMode, numbers: Iterable[int]) -> list[ua.StatusCode]:
        results = []
        for number in numbers:
            item = self._items.get(number)
            if item is None:
                results.append(ua.StatusCode(ua.StatusCodes.BadMonitoredItemIdInvalid))
                continue
            item_wish = replace(item.wish, mode=mode)
            self._remove(number)
            item.wish = item_wish
            self._add(number, item)
            results.append(ua.StatusCode())
        return results

    def delete(self, numbers: Iterable[int]) -> list[ua.StatusCode]:
        results = []
        for number in numbers:
            known = number in self._items
            if known:
                self._remove(number)
            code = ua.StatusCodes.Good if known else ua.StatusCodes.BadMonitoredItemIdInvalid
            results.append(ua.StatusCode(code))
        return results

    def find_again(self) -> None:
        """The address space was built anew: the same nodes are other objects now, or gone."""
        for number, item in list(self._items.items()):
            if not isinstance(item, Hearing):
                self._replace(number, self._watching(item.wish))

    def hear(self, event: Event, number: int | None = None) -> None:
        if self.owner.role < event.needs:
            return
        for item_number, item in self._items.items():
            if not isinstance(item, Hearing) or number not in {None, item_number}:
                continue
            if item.wish.mode is ua.MonitoringMode.Reporting and item.offer(event):
                self._pending[item_number] = item

    def has_item(self, number: int) -> bool:
        return number in self._items

    def _wish(
        self,
        node_id: ua.NodeId,
        attribute: int,
        mode: ua.MonitoringMode,
        times: ua.TimestampsToReturn,
        asked: ua.MonitoringParameters,
    ) -> Wish:
        """Raises ServiceError for what cannot be had."""
        if attribute == ua.AttributeIds.EventNotifier:
            queue = EVENTS_MAX if asked.QueueSize <= 1 else min(asked.QueueSize, EVENTS_MAX)
            return Wish(node_id, attribute, asked.ClientHandle, mode, 0.0, queue, True, times)
        sampling_s = self.interval_s if asked.SamplingInterval < 0 else asked.SamplingInterval / 1000.0
        wish = Wish(
            node_id,
            attribute,
            asked.ClientHandle,
            mode,
            within(sampling_s, self._fastest_s),
            min(max(asked.QueueSize, 1), QUEUE_MAX),
            bool(asked.DiscardOldest),
            times,
        )
        wanted = asked.Filter
        if isinstance(wanted, DataChangeFilter):
            deadband = self._deadband(node_id, wanted)
            return replace(wish, trigger=ua.DataChangeTrigger(wanted.Trigger), deadband=deadband)
        if wanted is not None and not (isinstance(wanted, ua.ExtensionObject) and wanted.TypeId.is_null()):
            raise ServiceError(ua.StatusCodes.BadFilterNotAllowed)
        return wish

    def _deadband(self, node_id: ua.NodeId, wanted: DataChangeFilter) -> float:
        if wanted.DeadbandType == ua.DeadbandType.None_:
            return 0.0
        variable = self._nodes.variable(node_id)
        if variable is None or variable.meaning.kind is not ua.VariantType.Double:
            raise ServiceError(ua.StatusCodes.BadFilterNotAllowed)
        if wanted.DeadbandType == ua.DeadbandType.Absolute:
            return max(float(wanted.DeadbandValue), 0.0)
        lowest, highest = variable.meaning.lowest, variable.meaning.highest
        if lowest is None or highest is None or not 0.0 <= wanted.DeadbandValue <= 100.0:
            raise ServiceError(ua.StatusCodes.BadDeadbandFilterInvalid)
        return float(wanted.DeadbandValue) / 100.0 * (highest - lowest)

    def _made(self, wish: Wish, wanted: Any) -> Item:
        if wish.attribute != ua.AttributeIds.EventNotifier:
            item = self._watching(wish)
            if item.variable is None:
                answer = self._nodes.read(wish.node_id, wish.attribute)
                if answer.StatusCode is not None and answer.StatusCode.value in NOT_THERE:
                    raise ServiceError(answer.StatusCode.value)
            return item
        if not self._nodes.is_notifier(wish.node_id):
            raise ServiceError(ua.StatusCodes.BadNodeIdInvalid)
        try:
            return Hearing(wish, EventFilter(wanted))
        except FilterError as error:
            raise ServiceError(ua.StatusCodes.BadEventFilterInvalid) from error

    def _watching(self, wish: Wish) -> Newest | Sampled:
        variable = self._nodes.variable(wish.node_id) if wish.attribute == ua.AttributeIds.Value else None
        if (
            variable is not None
            and wish.queue == 1
            and not wish.deadband
            and wish.trigger is ua.DataChangeTrigger.StatusValue
            and wish.times is ua.TimestampsToReturn.Both
        ):
            return Newest(wish, variable, wish.sampling_s if wish.sampling_s > self.interval_s else 0.0)
        return Sampled(wish, variable, self._nodes)

    def _add(self, number: int, item: Item) -> None:
        self._items[number] = item
        if item.wish.mode is not ua.MonitoringMode.Reporting:
            return  # sampling without reporting has no use without triggering, which is not offered
        if isinstance(item, Hearing):
            return
        if item.variable is not None:
            item.variable.batch.watch(item.variable)
        interval_s = item.wish.sampling_s
        if isinstance(item, Newest):
            item.seen = -1
            rate = self._rates.setdefault(item.rate_s, Rate(item.rate_s))
            share = rate.shares.setdefault(item.variable.batch, Share(item.variable.batch))
            share.items[number] = item
            share.version, rate.due_s = -1, 0.0
        else:
            item.forget()
            sampling = self._sampled.setdefault(interval_s, Sampling(interval_s))
            sampling.items[number], sampling.due_s = item, 0.0
            self._wake.set()

    def _remove(self, number: int) -> None:
        item = self._items.pop(number)
        self._pending.pop(number, None)
        if isinstance(item, Hearing) or item.wish.mode is not ua.MonitoringMode.Reporting:
            return
        if item.variable is not None:
            item.variable.batch.unwatch(item.variable)
        interval_s = item.wish.sampling_s
        if isinstance(item, Newest):
            rate = self._rates[item.rate_s]
            share = rate.shares[item.variable.batch]
            del share.items[number]
            if not share.items:
                del rate.shares[share.batch]
            if not rate.shares:
                del self._rates[item.rate_s]
        else:
            del self._sampled[interval_s].items[number]
            if not self._sampled[interval_s].items:
                del self._sampled[interval_s]

    def _replace(self, number: int, item: Item) -> None:
        self._remove(number)
        self._add(number, item)

    # --- publishing -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Publish and sample on a grid, until nobody has asked for a lifetime."""
        publish_s = time.monotonic()
        while self._unasked <= self.lifetime:
            now_s = time.monotonic()
            self._sample(now_s)
            if now_s >= publish_s:
                publish_s = next_of(publish_s, self.interval_s, now_s)
                self._quiet += 1
                await self.publish_results()
            self._wake.clear()
            due_s = min([publish_s, *(sampling.due_s for sampling in self._sampled.values())])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due_s - time.monotonic(), 0.0)):
                    await self._wake.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """By itself: its client is gone, or it cannot be told what it watches and shall begin anew."""
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("opc ua: subscription ended", number=self.number, why=repr(error))
        self.forget()
        self._on_expired(self.number)

    def _sample(self, now_s: float) -> None:
        for sampling in self._sampled.values():
            if sampling.due_s <= now_s:
                sampling.look(now_s, self._pending)

    async def publish_results(self, request: Any | None = None) -> bool:
        """Answer, if there is something to say and a request to answer; whether `request` was used."""
        used = False
        while True:
            changed = self._changed(time.monotonic()) if self.enabled else []
            has_news = bool(changed or (self.enabled and self._pending))
            if not has_news and not self._is_new and self._quiet < self.keep_alive:
                return used
            asked = request if not used and request is not None else self.pub_request_callback(self.number)
            if asked is None:
                self._unasked += 1
                return used
            used = used or request is not None
            self._quiet = self._unasked = 0
            self._is_new = False
            await self.pub_result_callback(self._answer(changed), asked)
            if not self._more:
                return used

    def _changed(self, now_s: float) -> list[Newest]:
        """Items that are due and have something newer than what they were told."""
        found: list[Newest] = []
        for rate in self._rates.values():
            if rate.due_s > now_s:
                continue
            before = len(found)
            for share in rate.shares.values():
                if share.batch.refresh() != share.version:
                    news = [item for item in share.items.values() if item.variable.version != item.seen]
                    found += news
                    if not news:
                        share.version = share.batch.version
            if len(found) == before:
                rate.advance(now_s)
        return found

    def _answer(self, changed: list[Newest]) -> ua.PublishResult:
        """As much of it as one answer holds; the rest is not touched and comes with the next one."""
        message = ua.NotificationMessage()
        self._more = len(changed) > self._most
        parts: list[bytes] = []
        for item in changed[: self._most] if self._more else changed:
            variable = item.variable
            item.seen = variable.version
            parts.append(item.handle)
            parts.append(variable.encoded)
        if not self._more:
            now_s = time.monotonic()
            for rate in self._rates.values():
                if rate.due_s <= now_s:
                    rate.advance(now_s)
        events: list[bytes] = []
        if self.enabled:
            self._take_pending(parts, events)
        if parts:
            message.NotificationData.append(_bulk(DATA_CHANGE, parts, NO_DIAGNOSTICS))
        if events:
            message.NotificationData.append(_bulk(EVENT_LIST, events))
        message.SequenceNumber = self._sequence
        if message.NotificationData:
            self._sequence = self._sequence % 0xFFFF_FFFF + 1
            self._sent[message.SequenceNumber] = message
            if len(self._sent) > SENT_MAX:
                del self._sent[next(iter(self._sent))]
        return ua.PublishResult(
            SubscriptionId=self.number,
            AvailableSequenceNumbers=list(self._sent),
            MoreNotifications=self._more,
            NotificationMessage=message,
        )

    def _take_pending(self, parts: list[bytes], events: list[bytes]) -> None:
        for number, item in list(self._pending.items()):
            room = self._most - (len(parts) + len(events)) // 2
            if room <= 0:
                self._more = True
                return
            for _ in range(min(room, len(item.queue))):
                if isinstance(item, Hearing):
                    events += (item.handle, item.queue.popleft())
                else:
                    parts += (item.handle, item.pop())
            if not item.queue:
                del self._pending[number]

    def acknowledge(self, sequence: int) -> ua.StatusCode:
        known = self._sent.pop(sequence, None) is not None
        code = ua.StatusCodes.Good if known else ua.StatusCodes.BadSequenceNumberUnknown
        return ua.StatusCode(code)

    def republish(self, sequence: int) -> ua.NotificationMessage:
        message = self._sent.get(sequence)
        if message is None:
            raise ServiceError(ua.StatusCodes.BadMessageNotAvailable)
        return message

    @property
    def available(self) -> list[int]:
        return list(self._sent)

    def asked(self) -> None:
        """Its client is alive."""
        self._unasked = 0


class SubscriptionService:
    """All subscriptions of a server: what the library's sessions and connections ask for.

    Args:
        nodes: what there is.
        fastest_s: nothing is sampled or published faster.
        most: subscriptions of all clients together.
    """

    def __init__(self, nodes: Nodes, *, fastest_s: float, most: int) -> None:
        self.subscriptions: dict[int, Subscription] = {}
        self._nodes, self._fastest_s, self._most = nodes, fastest_s, most
        self._numbers = 0

    def of(self, owner: Owner) -> list[Subscription]:
        return [one for one in self.subscriptions.values() if one.session_id == owner.session_id]

    def find(self, owner: Owner, number: int) -> Subscription:
        """Raises ServiceError for a subscription that is not its own."""
        subscription = self.subscriptions.get(number)
        if subscription is None or subscription.session_id != owner.session_id:
            raise ServiceError(ua.StatusCodes.BadSubscriptionIdInvalid)
        return subscription

    def create(
        self, owner: Owner, asker: Asker, asked: ua.CreateSubscriptionParameters
    ) -> ua.CreateSubscriptionResult:
        if len(self.subscriptions) >= self._most or len(self.of(owner)) >= SUBSCRIPTIONS_MAX:
            raise ServiceError(ua.StatusCodes.BadTooManySubscriptions)
        self._numbers += 1
        one = self.subscriptions[self._numbers] = Subscription(
            self._numbers,
            self._nodes,
            owner,
            asker,
            asked,
            fastest_s=self._fastest_s,
            on_expired=self._expired,
        )
        return ua.CreateSubscriptionResult(
            SubscriptionId=one.number,
            RevisedPublishingInterval=one.interval_s * 1000.0,
            RevisedLifetimeCount=one.lifetime,
            RevisedMaxKeepAliveCount=one.keep_alive,
        )

    def modify(self, owner: Owner, asked: ua.ModifySubscriptionParameters) -> ua.ModifySubscriptionResult:
        one = self.find(owner, asked.SubscriptionId)
        one.revise(asked)
        one.find_again()  # which items are sampled apart depends on the interval
        return ua.ModifySubscriptionResult(
            RevisedPublishingInterval=one.interval_s * 1000.0,
            RevisedLifetimeCount=one.lifetime,
            RevisedMaxKeepAliveCount=one.keep_alive,
        )

    async def delete(self, owner: Owner, numbers: Sequence[int]) -> list[ua.StatusCode]:
        results = []
        for number in numbers:
            try:
                one = self.find(owner, number)
            except ServiceError as refused:
                results.append(ua.StatusCode(refused.code))
                continue
            del self.subscriptions[number]
            await one.close()
            results.append(ua.StatusCode())
        return results

    def _expired(self, number: int) -> None:
        self.subscriptions.pop(number, None)

    async def close(self) -> None:
        while self.subscriptions:
            await self.subscriptions.popitem()[1].close()

    def publish(
        self, owner: Owner, acks: Iterable[ua.SubscriptionAcknowledgement]
    ) -> tuple[int, list[ua.StatusCode]]:
        own = self.of(owner)
        if not own:
            raise ServiceError(ua.StatusCodes.BadNoSubscription)
        for one in own:
            one.asked()
        return len(own), list(self._acknowledged(owner, acks))

    def _acknowledged(
        self, owner: Owner, acks: Iterable[ua.SubscriptionAcknowledgement]
    ) -> Iterator[ua.StatusCode]:
        for ack in acks:
            try:
                yield self.find(owner, ack.SubscriptionId).acknowledge(ack.SequenceNumber)
            except ServiceError as refused:
                yield ua.StatusCode(refused.code)

    def transfer(self, number: int, owner: Owner, asker: Asker, *, tell_all: bool) -> ua.TransferResult:
        """Let another session of the same user have it; who is the same is for the caller to know."""
        one = self.subscriptions[number]
        one.session_id, one.owner = owner.session_id, owner
        one.pub_result_callback, one.pub_request_callback = (
            asker.forward_publish_response,
            asker.get_publish_request,
        )
        one.asked()
        if tell_all:
            one.find_again()  # which begins with everything
        return ua.TransferResult(AvailableSequenceNumbers=one.available)

    def tell(self, event: Event) -> None:
        for one in self.subscriptions.values():
            one.hear(event)

    def find_again(self) -> None:
        for one in self.subscriptions.values():
            one.find_again()


def _bulk(kind: ua.NodeId, pairs: list[bytes], tail: bytes = b"") -> ua.ExtensionObject:
    """Handles and contents in turn, as one object that needs no more encoding."""
    return ua.ExtensionObject(TypeId=kind, Body=b"".join((_count(len(pairs) // 2), *pairs, tail)))


NOT_THERE: Final = frozenset(
    {int(ua.StatusCodes.BadNodeIdUnknown), int(ua.StatusCodes.BadAttributeIdInvalid)}
)
