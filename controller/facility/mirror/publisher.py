"""The two ways of a message: live, and over the disk.

Live messages leave in the same turn of the loop in which their update came; the disk has a thread of its own.
While the controller is not heard, all points are bad. With `send: changes` a message names the points that
moved beyond their deadbands, and every `repeat_s` all. A broker that hangs up over one certain message does
so a few times, then that message is left out.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog

from controller.clock import now_s, now_utc_s
from controller.facility.config import MirrorConfig
from controller.facility.mirror.spool import Record, Spool, SpoolError
from controller.facility.mirror.voice import Voice, body_of
from controller.image.feed import ImageFeed
from controller.image.wire import Update
from protocols.mqtt import MqttLink, NotDeliveredError, Outgoing

SPOOL_NAME: Final = "mirror.db"
STORE_S: Final = 0.05  # gathered for one transaction
RETRY_S: Final = 1.0  # after a fault of the disk
MEMORY_MAX_BYTES: Final = 32 * 1024 * 1024  # a minute of 24,000 values a second with a disk that hangs
POSTS_MAX: Final = 64  # unconfirmed at a time; a broker that has more to do is as good as away
SWEEP_S: Final = 1.0  # what has grown stale is told this late at most
SWEEP_GROUPS: Final = 20  # at a time: a millisecond
STATUS_S: Final = 10.0
REPLAY_S: Final = 0.1
CATALOGUE_POSTS: Final = 50
HANG_UPS_MAX: Final = 3  # over the same messages: then one by one; over one alone: its topic is left out
SHUN_S: Final = 600.0  # then it is tried again: the broker may only have been dying just then
CLOSE_WAIT_S: Final = 1.0  # for the disk, at the end

log = structlog.get_logger(__name__)
T = TypeVar("T")


class _Patience:
    """With a broker that hangs up: some messages together a few times, then one by one."""

    def __init__(self) -> None:
        self._hang_ups = 0
        self._alone = 0  # so many go one by one

    def portion(self, usual: int) -> int:
        return 1 if self._alone else usual

    def delivered(self, count: int) -> None:
        self._hang_ups, self._alone = 0, max(0, self._alone - count)

    def lost_over(self, count: int) -> bool:
        """A session broke over so many messages; True: over this one, and often enough."""
        self._hang_ups += 1
        if self._hang_ups < HANG_UPS_MAX:
            return False
        self._hang_ups, self._alone = 0, self._alone or count
        return count == 1


class Mirror:
    """Publisher of the image over MQTT. Raises MqttConfigError, ConfigError at once for what cannot work.

    Args:
        config: of this mirror.
        feed: the image.
        block: its name.
        state_dir: where the spool lies.

    Attributes:
        stored: messages on disk.
        lost: messages that are gone: no room on the disk, or for it in memory.
        refused: messages that the broker would not have.
        fault: why messages are not delivered or not stored; "" while all is well.
    """

    def __init__(self, config: MirrorConfig, feed: ImageFeed, *, block: str, state_dir: Path) -> None:
        self._config, self._feed = config, feed
        self._prefix = f"{config.prefix}/{block}"
        self._path = state_dir / SPOOL_NAME
        self._encode = msgspec.json.Encoder().encode
        offline = self._encode({"online": False, "stored": 0, "lost": 0})
        self._link = MqttLink(
            config.mqtt.url,
            client_id=f"powerblock-{block}-mirror",
            on_message=lambda *_: None,
            on_connect=self._connected,
            username=config.mqtt.username,
            password=config.mqtt.password(),
            tls=config.mqtt.tls(),
            will=Outgoing(f"{self._prefix}/mirror", offline, 1, retain=True),
        )
        self._voices: list[Voice] = []
        self._untold: dict[str, bytes] = {}  # of the catalogue, by topic
        self._gathered: list[Outgoing] = []
        self._posts: dict[asyncio.Future[None], list[Outgoing]] = {}
        self._waiting: deque[Outgoing] = deque()  # for the disk
        self._waiting_bytes = 0
        self._waits = asyncio.Event()
        self._spool: Spool | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._disk_fault = ""
        self._patience, self._catalogue_patience = _Patience(), _Patience()
        self._shunned: dict[str, float] = {}  # topic -> until when
        self._lost = 0
        self.refused = 0
        self._learn()
        feed.on_shape.append(self._learn)
        feed.on_update.append(self._take)

    @property
    def stored(self) -> int:
        return (0 if self._spool is None else self._spool.count) + len(self._waiting)

    @property
    def lost(self) -> int:
        return self._lost + (0 if self._spool is None else self._spool.dropped)

    @property
    def fault(self) -> str:
        return self._disk_fault or self._link.fault

    async def run(self) -> None:
        """Mirror for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._link.run(), name="mirror link")
                tasks.create_task(self._store(), name="mirror store")
                tasks.create_task(self._replay(), name="mirror replay")
                tasks.create_task(self._sweep(), name="mirror sweep")
        finally:
            self._close()

    # --- what the image says ----------------------------------------------------------------------------

    def _learn(self) -> None:
        """The catalogue has changed."""
        gone = {voice.catalogue_topic: b"" for voice in self._voices}
        self._voices = [Voice(self._prefix, cells) for cells in self._feed.image.groups]
        self._untold |= gone | self._catalogue()

    def _catalogue(self) -> dict[str, bytes]:
        return {voice.catalogue_topic: self._encode(voice.cells.group) for voice in self._voices}

    def _connected(self) -> None:
        self._untold |= self._catalogue()  # the broker may have lost what it retained
        self._tell_status()

    def _tell_status(self) -> None:
        status = {"online": True, "stored": self.stored, "lost": self.lost}
        self._link.publish(f"{self._prefix}/mirror", self._encode(status), 1, retain=True)

    def _take(self, index: int, places: Sequence[int] | None) -> None:
        """A group has new values."""
        voice = self._voices[index]
        updates = voice.cells.updates
        if not updates or places == []:
            return
        update: Update | None = updates[0 if places is None else places[0]]
        if self._config.send == "changes":
            assert update is not None
            update = voice.changed(update)
        if update is not None:
            self._say(voice, update)

    def _say(self, voice: Voice, update: Update) -> None:
        if self._is_shunned(voice.topic):
            self.refused += 1
            return
        message = Outgoing(voice.topic, self._encode(body_of(voice.names, update)), self._config.qos)
        self._gathered.append(message)
        if len(self._gathered) == 1:  # the feed takes all frames of one read in one turn
            asyncio.get_running_loop().call_soon(self._send)

    async def _sweep(self) -> None:
        """What nobody tells of: points grown stale; and with `changes`, everything now and then."""
        told_at_s = 0.0
        while True:
            await asyncio.sleep(SWEEP_S)
            for number, voice in enumerate(self._voices):
                self._look_at(voice, now_s())
                if number % SWEEP_GROUPS == SWEEP_GROUPS - 1:
                    await asyncio.sleep(0)
            if now_s() - told_at_s >= STATUS_S and self._link.connected:
                told_at_s = now_s()
                self._tell_status()

    def _look_at(self, voice: Voice, at_s: float) -> None:
        stale = voice.newly_stale(at_s, alive=self._feed.alive)
        if stale:
            self._say(voice, voice.silence(stale, at_s, now_utc_s()))
        if self._config.send == "changes" and at_s - voice.told_at_s >= self._config.repeat_s:
            voice.told_at_s = at_s
            for update in voice.whole(at_s, now_utc_s()):
                self._say(voice, update)

    # --- the live way -----------------------------------------------------------------------------------

    def _send(self) -> None:
        batch, self._gathered = self._gathered, []
        batch[-1] = batch[-1]._replace(qos=1)  # confirms all before it: see MqttLink.post
        if not self._link.connected or len(self._posts) >= POSTS_MAX:
            self._keep(batch)
            return
        post = self._link.post(batch)
        self._posts[post] = batch
        post.add_done_callback(self._settled)

    def _settled(self, post: asyncio.Future[None]) -> None:
        batch = self._posts.pop(post)
        if post.cancelled() or post.exception() is not None:
            self._keep(batch)

    # --- the way over the disk --------------------------------------------------------------------------

    def _keep(self, batch: Sequence[Outgoing]) -> None:
        """For the disk. In memory, too, the oldest make room."""
        self._waiting.extend(batch)
        self._waiting_bytes += sum(_size(message) for message in batch)
        while self._waiting_bytes > MEMORY_MAX_BYTES:
            self._waiting_bytes -= _size(self._waiting.popleft())
            self._lost += 1
        self._waits.set()

    async def _store(self) -> None:
        """Everything that waits goes to the disk, some of it at a time."""
        while True:
            try:
                if self._spool is None:
                    self._spool = await self._on_disk(self._open)
                await self._waits.wait()
                self._waits.clear()
                await asyncio.sleep(STORE_S)
                await self._store_some(self._spool)
                self._note("")
            except SpoolError as error:
                self._note(str(error))
                self._waits.set()
                await asyncio.sleep(RETRY_S)

    async def _store_some(self, spool: Spool) -> None:
        batch, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        try:
            await self._on_disk(spool.append, [message[:2] for message in batch])
        except (
            SpoolError,
            asyncio.CancelledError,
        ):  # cancelled: it may be there already, then it comes twice
            since, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
            self._keep([*batch, *since])
            raise

    async def _replay(self) -> None:
        """The catalogue, and what is stored, oldest first, whenever the broker is there."""
        while True:
            await asyncio.sleep(REPLAY_S)
            if not self._link.connected:
                continue
            try:
                await self._tell_catalogue()
                if self._spool is not None and self._spool.count:
                    await self._replay_some(self._spool)
            except NotDeliveredError as error:
                log.debug("mirror: not delivered", why=str(error))
            except SpoolError as error:
                self._note(str(error))
                await asyncio.sleep(RETRY_S)

    async def _tell_catalogue(self) -> None:
        while self._untold:
            count = self._catalogue_patience.portion(CATALOGUE_POSTS)
            some = dict(list(self._untold.items())[:count])
            messages = [Outgoing(topic, payload, 1, retain=True) for topic, payload in some.items()]
            await self._deliver(messages, self._catalogue_patience)
            for topic, payload in some.items():
                if self._untold.get(topic) is payload:
                    del self._untold[topic]

    async def _replay_some(self, spool: Spool) -> None:
        """One portion; it leaves the disk once the broker has it."""
        count = self._patience.portion(max(1, int(self._config.replay_per_s * REPLAY_S)))
        records: list[Record] = await self._on_disk(spool.first, count)
        messages = [Outgoing(one.topic, _marked(one.payload), 1) for one in records]
        await self._deliver(messages, self._patience)
        await self._on_disk(spool.drop, records[-1].id)

    async def _deliver(self, messages: Sequence[Outgoing], patience: "_Patience") -> None:
        """Done when the broker has them, or has shown that it will never take the one there is.

        Raises NotDeliveredError.
        """
        welcome = [message for message in messages if not self._is_shunned(message.topic)]
        self.refused += len(messages) - len(welcome)
        try:
            await self._link.post(welcome)
        except NotDeliveredError as error:
            if not error.hung_up or not patience.lost_over(len(messages)):
                raise
            self._shun(messages[0])
        patience.delivered(len(messages))

    def _shun(self, message: Outgoing) -> None:
        self.refused += 1
        self._shunned[message.topic] = now_s() + SHUN_S
        log.error(
            "the broker hangs up over this topic; left out for a while",
            topic=message.topic,
            bytes=len(message.payload),
            for_s=SHUN_S,
            remedy="check topic, size and our rights at the broker",
        )

    def _is_shunned(self, topic: str) -> bool:
        if not self._shunned:
            return False
        if self._shunned.get(topic, 0.0) > now_s():
            return True
        self._shunned.pop(topic, None)
        return False

    def _open(self) -> Spool:
        return Spool(self._path, max_bytes=self._config.spool_mib * 1024 * 1024)

    async def _on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    def _note(self, fault: str) -> None:
        if fault != self._disk_fault:
            self._disk_fault = fault
            (log.error if fault else log.info)(
                "mirror's spool", fault=fault or "none any more", lost=self.lost
            )

    def _close(self) -> None:
        """A clean end loses nothing, if the disk takes it in time."""
        left = [*(one for batch in self._posts.values() for one in batch), *self._gathered, *self._waiting]
        spool = self._spool
        if spool is not None:
            work = self._disk.submit(_end, spool, [message[:2] for message in left])
            with suppress(TimeoutError, SpoolError):
                work.result(CLOSE_WAIT_S)
        self._disk.shutdown(wait=False)


def _end(spool: Spool, left: Sequence[tuple[str, bytes]]) -> None:
    try:
        spool.append(left)
    finally:
        spool.close()


def _size(message: Outgoing) -> int:
    return sys.getsizeof(message.payload) + len(message.topic)


def _marked(payload: bytes) -> bytes:
    """As it was stored, and a note that it was."""
    return payload[:-1] + b',"stored":true}'
