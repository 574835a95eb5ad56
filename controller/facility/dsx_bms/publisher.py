"""The session with the bus: values, metadata and heartbeats out, heartbeats and requests in.

Values are told by comparing, a few hundred points at a time, so updates of the image cost nothing here. While
the controller is not heard, all are missing. Nothing waits in a queue: what an outage swallows is told anew
when the broker is back, metadata first.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog
from pydantic import ValidationError

from controller.clock import now_s, now_utc_s
from controller.facility.config import BmsConfig, BmsRequestConfig
from controller.facility.dsx_bms.bus_map import BusMap, BusRequest, reasons
from controller.facility.dsx_bms.mapping import bus_map
from controller.facility.dsx_bms.requests import STEP_S, Ask, Kept, Present
from controller.facility.dsx_bms.system import Integration, System
from controller.facility.dsx_bms.told import Told
from controller.image.feed import ImageFeed
from controller.image.model import Command, Quality, Result, Role
from controller.yaml_config import ConfigError
from protocols.bms import BmsError, Value, read_value, request_filter
from protocols.mqtt import MqttLink, Outgoing, Subscription

HEARTBEAT_S: Final = 10.0
CHUNK: Final = 200  # points looked at in one turn: half a millisecond
FILE_NAME: Final = "bms_requests.json"
REASONS_LOGGED_MAX: Final = 10  # there are half a dozen, and those of wrong entries, which are complaints

log = structlog.get_logger(__name__)


class BmsPublisher:
    """The block on the bus. Raises MqttConfigError, ConfigError, BmsError at once for what cannot work.

    Args:
        config: of the bus.
        feed: the image.
        block: its name, the site's if the configuration gives none.
        state_dir: where requests that stand are kept.

    Attributes:
        map: what is told, what is not, and why.
        integrations: by name.
    """

    def __init__(self, config: BmsConfig, feed: ImageFeed, *, block: str, state_dir: Path) -> None:
        self._config, self._feed, self._block = config, feed, block
        self._site = config.site or block
        self._file = state_dir / FILE_NAME
        self._link = MqttLink(
            config.mqtt.url,
            client_id=f"powerblock-{block}-bms",
            on_message=self._hear,
            on_connect=self._connected,
            subscriptions=tuple(Subscription(request_filter(name)) for name in config.integrations),
            username=config.mqtt.username,
            password=config.mqtt.password(),
            tls=config.mqtt.tls(),
        )
        self.integrations = {name: Integration(name, of, now_s()) for name, of in config.integrations.items()}
        self.map = BusMap()
        self.ignored = 0  # messages of integrations that break the contract, or that nobody asked for
        self._told: list[Told] = []
        self._asks: dict[str, Ask] = {}  # by topic
        self._requests: dict[str, BusRequest] = {}
        self._saved = _read(self._file)
        known = {topic: kept for topic, kept in self._saved.items() if self._is_configured(topic, kept)}
        self._left = {
            topic: kept
            for topic, kept in self._saved.items()
            if kept.tried is not None and topic not in known
        }
        self._kept = known | self._left
        self._ways_back = dict(_ways_back(self._left, now_s()))
        self._system = System(config, self._site)
        self._writing: set[asyncio.Task[None]] = set()
        self._is_new = True  # the catalogue, since the map was made
        feed.on_shape.append(self._shape_changed)

    @property
    def fault(self) -> str:
        return self._link.fault or self._link.denial

    def flags(self) -> Iterable[tuple[str, str]]:
        """What people should know: by key and sentence."""
        for name, integration in self.integrations.items():
            if not integration.alive:
                silent_s = integration.config.silent_after_s
                yield f"bms {name}", f"integration {name} has not been heard for {silent_s:g} s"
        for topic, ask in self._asks.items():
            request = self._requests[topic]
            what = f"{request.meta.integration} asks {request.config.point} at {request.config.at}"
            if ask.is_flag and ask.asked:
                yield f"bms {request.tag}", what
            elif ask.asked is not None and ask.why_not:
                yield f"bms {request.tag}", f"{what}: {ask.asked:g}; {ask.why_not}"
        for topic, kept in self._left.items():
            yield f"bms {topic.split('/', 6)[-1]}", self._farewell(topic, kept)

    async def run(self) -> None:
        """Publish for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run(), name="bms link")
            tasks.create_task(self._tell(), name="bms values")
            tasks.create_task(self._beat(), name="bms heartbeat")
            tasks.create_task(self._follow(), name="bms requests")

    # --- values and metadata ----------------------------------------------------------------------------

    def _shape_changed(self) -> None:
        self._is_new = True

    async def _tell(self) -> None:
        while True:
            if self._is_new and self._feed.image.groups:
                await self._make_map()
            if self._link.connected:
                await self._tell_changes()
            await asyncio.sleep(self._config.gap_s)

    async def _tell_changes(self) -> None:
        repeat_s = max(self._config.repeat_s - 2 * self._config.gap_s, self._config.repeat_s / 2)
        for start in range(0, len(self._told), CHUNK):
            at_s = now_s()
            batch = [
                message
                for told in self._told[start : start + CHUNK]
                for message in told.messages(at_s, repeat_s, alive=self._feed.alive)
            ]
            if batch:
                self._post(batch)
            await asyncio.sleep(0)

    async def _make_map(self) -> None:
        """In a thread: 0.1 s for 2,400 points."""
        groups = [cells.group for cells in self._feed.image.groups]
        self._is_new = False
        made = await asyncio.to_thread(bus_map, self._config, groups, self._block)
        if not self._is_new:  # else it is of a catalogue that is no more
            self._take_map(made)

    def _take_map(self, made: BusMap) -> None:
        before = {told.metadata.topic for told in self._told} | {
            request.metadata_topic for request in self.map.requests
        }
        self.map = made
        for complaint in self.map.complaints:
            log.warning("bms configuration", complaint=complaint)
        self._told = list(self._all_told())
        for request in self.map.requests:  # one whose device is gone for now stays: it may hold something
            self._requests[request.topic] = request
            if request.topic not in self._asks and request.topic not in self._left:
                self._asks[request.topic] = Ask(request.config, now_s(), self._kept.get(request.topic))
        after = {told.metadata.topic for told in self._told} | {
            request.metadata_topic for request in self.map.requests
        }
        gone = [Outgoing(topic, b"", 0, retain=True) for topic in sorted(before - after)]
        self._post([*gone, *self._introductions()])
        log.info("bms map", points=len(self._told), requests=len(self._asks), left_out=len(self.map.left_out))
        groups = frozenset(cells.group.path for cells in self._feed.image.groups)
        for why, points in reasons(self.map.left_out, groups)[:REASONS_LOGGED_MAX]:
            log.info("bms: not told", points=points, why=why)

    def _all_told(self) -> Iterator[Told]:
        image = self._feed.image
        count = len(self.map.points)
        for number, point in enumerate(self.map.points):
            groups = [(image.groups[image.index(source.path)], source.name) for source in point.sources]
            sources = [(cells, cells.places[name]) for cells, name in groups]
            yield Told(point, sources, (number + 1) / count)

    def _connected(self) -> None:
        """A broker may have forgotten what it retained: metadata of everything, before anything else."""
        self._post(self._introductions())
        for told in self._told:
            told.due_at_s = 0.0
        self._post(self._heartbeat())

    def _introductions(self) -> list[Outgoing]:
        """Metadata of what has no value of ours in the image."""
        requests = [
            Outgoing(one.metadata_topic, one.meta.payload(), 0, retain=True) for one in self.map.requests
        ]
        return [*self._system.metadata, *requests]

    def _post(self, messages: Sequence[Outgoing]) -> None:
        """What does not arrive is told anew in the next session."""
        if messages and self._link.connected:
            self._link.post(messages).add_done_callback(lambda post: post.cancelled() or post.exception())

    # --- heartbeats -------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        introduced_at_s = now_s()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._renew_password()
            if now_s() - introduced_at_s >= self._config.repeat_s - HEARTBEAT_S:
                introduced_at_s = now_s()
                self._post(self._introductions())
            self._post(self._heartbeat())

    def _heartbeat(self) -> list[Outgoing]:
        return [self._system.beat(now_utc_s())] if self._feed.alive else []

    def _renew_password(self) -> None:
        """A token in the file may have been renewed; the next connect uses it."""
        try:
            self._link.password = self._config.mqtt.password()
        except ConfigError as error:
            log.warning("bms password", why=str(error))

    def _hear(self, topic: str, payload: bytes, retained: bool) -> None:
        ask, system = self._asks.get(topic), self._system.heard.get(topic)
        if retained or (ask is None and system is None):
            self.ignored += not retained
            return
        try:
            said = read_value(payload)
        except BmsError as error:
            self.ignored += 1
            log.warning("bms message ignored", topic=topic, why=str(error))
            return
        if ask is not None:
            self._hear_request(topic, ask, said)
        elif system is not None and said.value is not None:
            self._hear_system(*system, said.value)

    def _hear_system(self, name: str, is_echo: bool, stamp: float) -> None:
        integration = self.integrations[name]
        if is_echo:
            integration.round_trip_s = max(0.0, now_utc_s() - stamp / 1000)
            return
        was_alive = integration.alive
        if integration.beats(stamp, now_s()):
            self._post([self._system.echo(name, stamp, now_utc_s())])
        if not was_alive and integration.alive:
            log.info("integration is heard again", name=name)

    # --- requests ---------------------------------------------------------------------------------------

    def _hear_request(self, topic: str, ask: Ask, said: Value) -> None:
        before = ask.asked
        if self.integrations[self._requests[topic].meta.integration].alive:
            ask.hear(said)
        if ask.asked != before:
            self._keep()
            request = self._requests[topic]
            log.warning(
                "request",
                integration=request.meta.integration,
                point=request.config.point,
                at=request.config.at,
                asked=ask.asked,
            )

    async def _follow(self) -> None:
        """One step of every request, each second."""
        while True:
            await asyncio.sleep(STEP_S)
            at_s = now_s()
            silent = {name for name, one in self.integrations.items() if one.falls_silent(at_s)}
            for name in silent:
                log.warning("integration is silent: what it asked is taken back", name=name)
            busy = {task.get_name() for task in self._writing}
            for topic, ask in self._asks.items():
                if self._requests[topic].meta.integration in silent and not ask.is_only_shown:
                    ask.silence()  # but a leak does not dry up because its witness has fallen silent
            for topic, ask in (*self._asks.items(), *self._ways_back.items()):
                if topic not in busy:
                    self._step(topic, ask, at_s)
            self._forget_what_is_back()
            self._keep()  # before a write leaves: whoever starts next must know the way back

    def _is_configured(self, topic: str, kept: Kept) -> bool:
        """Whether the same integration may still ask for the same."""
        integration = self._config.integrations.get(_integration(topic))
        return integration is not None and any(
            topic.endswith(f"/{self._site}/{one.at}/{one.point}")
            and kept.config.get("writes", one.writes) == one.writes
            for one in integration.requests
        )

    def _forget_what_is_back(self) -> None:
        for topic in [topic for topic, ask in self._ways_back.items() if ask.kept is None]:
            del self._ways_back[topic], self._left[topic], self._kept[topic]
            self._is_new = True  # its topic may have been given to another point

    def _farewell(self, topic: str, kept: Kept) -> str:
        what = f"{topic} is not configured any more and had set {kept.config.get('writes', 'its point')}"
        ask = self._ways_back.get(topic)
        if ask is None:
            before = "not known" if kept.before is None else f"{kept.before:g}"
            return f"{what}; before: {before}; set it by hand, then delete it from {self._file}"
        return f"{what}; on its way back{ask.why_not and ': '}{ask.why_not}"

    def _step(self, topic: str, ask: Ask, at_s: float) -> None:
        if ask.config.writes is None or not self._feed.alive:
            return
        present = self._present(ask.config.writes, at_s)
        value = ask.next_value(present, at_s)
        if value is not None:
            ask.writes(value, present)
            task = asyncio.create_task(self._write(topic, ask, ask.config.writes, value), name=topic)
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    def _present(self, writes: str, at_s: float) -> Present:
        _, device, point = writes.split("/", 2)
        try:
            cell = self._feed.image.cell(f"devices/{device}", point, at_s)
        except KeyError:
            return Present(None)
        if cell.quality is not Quality.GOOD or not isinstance(cell.value, (int, float)):
            return Present(None)
        return Present(float(cell.value), at_s - cell.age_s)

    async def _write(self, topic: str, ask: Ask, writes: str, value: float) -> None:
        _, device, point = writes.split("/", 2)
        command = Command(
            verb="write",
            arguments={"device": device, "point": point, "value": value},
            by=_integration(topic),
            role=Role.OPERATE,
            via="bms",
        )
        outcome = await self._feed.command(command)
        if outcome.result is Result.REJECTED:
            ask.was_refused(outcome.reason, now_s())
            log.warning("request not carried out", at=writes, value=value, why=outcome.reason)
        else:
            ask.wrote(outcome.value, now_s())
        self._keep()

    def _keep(self) -> None:
        asks = self._ways_back | self._asks
        standing = {topic: ask.kept for topic, ask in asks.items() if ask.kept is not None}
        unseen = {topic: kept for topic, kept in self._kept.items() if topic not in asks}
        keeps = {**unseen, **standing}
        if keeps == self._saved:
            return
        part = self._file.with_suffix(".part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(keeps))
            part.replace(self._file)
        except OSError as error:
            log.error("requests cannot be kept: after a restart nobody takes them back", why=str(error))
        self._saved = keeps


def _integration(topic: str) -> str:
    """Whose topic it is: BMS/v1/INTEGRATION/Value/..."""
    return topic.split("/", 3)[2]


def _ways_back(left: Mapping[str, Kept], at_s: float) -> Iterator[tuple[str, Ask]]:
    """Requests that left the configuration while they held something: nobody asks, so they go back."""
    for topic, kept in left.items():
        try:
            ask = Ask(BmsRequestConfig.model_validate(kept.config), at_s, kept)
        except ValidationError as error:
            log.error("of an older version, it cannot be put back", topic=topic, why=str(error))
            continue
        ask.silence()
        yield topic, ask


def _read(path: Path) -> dict[str, Kept]:
    """Requests that stood when the last one ended."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Kept])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        log.error("requests of before the restart cannot be read", path=str(path), why=str(error))
        return {}
