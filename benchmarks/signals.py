"""From the bytes of a signal to the law that obeys it, and what a flood of signals costs the beat.

The real controller of `controller.service` in this process, on a block of 72 GPUs, its own store and journal
on the local disk, a real broker, and the site as a process of its own (`speaker`).

    latency  a new setpoint that must bind at once: beside 100 others that are open, and beside 10,000
             stored intervals. `law`: from the moment in which the payload reaches the controller's callback
             until the tick that finds it binding has decided, the signal being on disk by then; `sent`: the
             same from the site's `send` on; `orders`: until that decision is on disk too and orders leave
    flood    5,000 messages a second for ten seconds, with a heartbeat a second among them. The beat must
             not skip, the heartbeats must be heard, and afterwards the newest wish holds or an alarm says
             why it does not
"""

import asyncio
import gc
import json
import logging
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, redirect_stderr, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

import structlog
import uvloop
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.live import broker
from benchmarks.result import Figure, Mode, quantiles_ms
from benchmarks.speaker import Saying, Speaker
from controller.clock import now_s
from controller.config import load_block
from controller.core import model
from controller.core.model import Decision, Snapshot
from controller.endless import Life
from controller.logs import configure
from controller.service import Controller
from firmware_sim.facility import free_port
from protocols.dsx_flex import envelope, signing, topics
from protocols.dsx_flex.envelope import Envelope

EVENTS, HEARTBEAT = "openadr/events", "site/heartbeat"
ISV, KID, AGENT = "isv-1", "isv-1", "block-1"
DSX: Final = f"grid/v1/isv/{ISV}/loadtarget/set"
FEEDS: Final = tuple(f"feed-{number}" for number in range(6))
NODES, GPUS_PER_NODE = 18, 4
RATING_KW: Final = 80.0
KEPT_KW: Final = 60.0  # of the signals that wait; those that are measured ask for less, each for less still
STEP_KW: Final = 0.001
AHEAD_S: Final = 86_400.0  # messages are made before they are sent
SIGNALS: Final = {Mode.TINY: 5, Mode.NORMAL: 100, Mode.FULL: 1000}
REPEATS: Final = {Mode.TINY: 1, Mode.NORMAL: 3, Mode.FULL: 3}
GAP_S: Final = (0.05, 0.15)  # between two signals: they come at any moment of the beat
EVENT_IDS: Final = 50  # that the measured signals share: each is new once, then a new version
OVERLAPPING: Final = 100
STORED, PER_EVENT = 10_000, 1000  # as many intervals as an event may have
INTERVAL_S: Final = 300
FLOOD_PER_S: Final = 5000
FLOOD_S: Final = {Mode.TINY: 0.4, Mode.NORMAL: 10.0, Mode.FULL: 10.0}
SETTLE_S: Final = {Mode.TINY: 0.5, Mode.NORMAL: 2.0, Mode.FULL: 2.0}
LATENCY_MAX_MS: Final = {"overlapping": 5.0, "stored": 20.0}
TINY_BESIDE, TINY_FLOODS = ("overlapping",), ("updates",)
LATE_MAX_MS: Final = 2.0  # as the beat bench on a machine that is not busy
SETTLED_S: Final = 1.0
CALM_S: Final = 2.0  # between what is kept and what is measured
ANSWER_MAX_S: Final = 10.0  # a wish that never bound counts as that long at least
KEPT_GAP_S: Final = {"overlapping": 0.02, "stored": 0.4}  # so that none of them waits for the one before
FLOODED: Final = {Mode.TINY: 1, Mode.NORMAL: 1, Mode.FULL: 3}
BLIND: Final = (model.Mode.FAILSAFE, model.Mode.INIT)

T = TypeVar("T")


# -- what is said -------------------------------------------------------------------------------------------


class Site:
    """Makes messages: genuine, each newer than the one before."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.public_pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.private_pem = pem
        self._signer = signing.Signer(KID, pem)
        self._signed: dict[str, str] = {}
        self._number = count()
        self.began_utc_s = time.time()

    def event(self, name: str, limit_kw: float, *, intervals: int = 1, priority: int | None = None) -> bytes:
        """Of one interval that is open now, or of many that follow each other from now on."""
        modified_utc_s = self.began_utc_s + 0.001 * next(self._number)
        length_s = INTERVAL_S if intervals > 1 else 86_400
        said = {
            "id": name,
            "modificationDateTime": _text(modified_utc_s),
            "programID": "bench",
            "priority": priority,
            "intervalPeriod": {"start": _text(self.began_utc_s - 60.0), "duration": f"PT{length_s}S"},
            "payloadDescriptors": [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"}],
            "intervals": [
                {"id": number, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [limit_kw]}]}
                for number in range(intervals)
            ],
        }
        return json.dumps({"objectType": "EVENT", "operation": "UPDATE", "object": said}).encode()

    def targets(self, *targets: dict[str, Any]) -> bytes:
        """A signed DSX Flex message."""
        data = {"targets": list(targets)}
        key = json.dumps(data)
        if key not in self._signed:
            self._signed[key] = self._signer.sign(data)
        said = Envelope(
            id=str(uuid.uuid4()),
            source=topics.source("isv", ISV),
            type=topics.LOAD_TARGET_SET,
            time_utc_s=self.began_utc_s,
            trace=envelope.start_trace(bytes(range(1, 25))),
            data=self._signed[key],
            correlation_id=str(uuid.uuid4()),
        )
        return envelope.write(said)

    def target(self, limit_kw: float, feed: str, starts_s: float = 0.0, length_s: float = 86_400.0) -> Any:
        starts_utc_s = self.began_utc_s - 60.0 + starts_s
        return {
            "interval": {"start_time": _text(starts_utc_s), "end_time": _text(starts_utc_s + length_s)},
            "load_constraint": {"value": round(limit_kw, 4), "unit": "kilowatt"},
            "feed_tags": [feed],
        }


def _text(utc_s: float) -> str:
    return datetime.fromtimestamp(utc_s, UTC).isoformat()


def _openadr(site: Site, number: int) -> bytes:
    """The n-th wish to be obeyed at once: the highest priority, and the lowest limit of all so far."""
    return site.event(f"now-{number % EVENT_IDS}", _limit_kw(number), priority=0)


def _dsx(site: Site, number: int) -> bytes:
    return site.targets(site.target(_limit_kw(number), FEEDS[0]))


def _limit_kw(number: int) -> float:
    return round(KEPT_KW - STEP_KW * (number + 1), 4)


def _openadr_overlapping(site: Site) -> Iterator[bytes]:
    for number in range(OVERLAPPING):
        yield site.event(f"kept-{number}", KEPT_KW + number % 7)


def _openadr_stored(site: Site) -> Iterator[bytes]:
    for number in range(STORED // PER_EVENT):
        yield site.event(f"kept-{number}", KEPT_KW + number % 7, intervals=PER_EVENT)


def _dsx_overlapping(site: Site) -> Iterator[bytes]:
    """Each within the one before, so that all of them are still there when the innermost is over."""
    for number in range(OVERLAPPING):
        length_s = 2.0 * INTERVAL_S * (OVERLAPPING - number)
        starts_s = -0.5 * number
        yield site.targets(site.target(KEPT_KW + number % 7, FEEDS[1], starts_s, length_s))


def _dsx_stored(site: Site) -> Iterator[bytes]:
    """All feeds but the first, which is left to what is measured; two messages fill a feed's line."""
    windows = [(feed, half) for feed in FEEDS[1:] for half in range(2)]
    for feed, half in windows:
        firsts = range(half * PER_EVENT, (half + 1) * PER_EVENT)
        yield site.targets(*(site.target(KEPT_KW + n % 7, feed, n * INTERVAL_S, INTERVAL_S) for n in firsts))


class Voice(NamedTuple):
    """One way to say it."""

    topic: str
    wish: Callable[[Site, int], bytes]
    overlapping: Callable[[Site], Iterator[bytes]]
    stored: Callable[[Site], Iterator[bytes]]


VOICES: Final = {
    "openadr": Voice(EVENTS, _openadr, _openadr_overlapping, _openadr_stored),
    "dsx": Voice(DSX, _dsx, _dsx_overlapping, _dsx_stored),
}


class Flood(NamedTuple):
    """A kind of message that comes five thousand times a second."""

    topic: str
    message: Callable[[Site, int], bytes]
    newest_kw: Callable[[int], float] | None  # by the number of the last one; None: none of them is a wish


def _garbage(_: Site, number: int) -> bytes:
    return b'{"id": %d' % number


def _update(site: Site, number: int) -> bytes:
    return site.event("one", _cycled_kw(number), priority=0)


def _new_event(site: Site, number: int) -> bytes:
    return site.event(f"e-{number}", _limit_kw(number), priority=0)


def _new_target(site: Site, number: int) -> bytes:
    return site.targets(site.target(_cycled_kw(number), FEEDS[0]))


def _cycled_kw(number: int) -> float:
    """Two in a row are never the same; few enough to be signed in advance."""
    return _limit_kw(number % 499)


FLOODS: Final = {
    "garbage": Flood(EVENTS, _garbage, None),
    "updates": Flood(EVENTS, _update, _cycled_kw),
    "events": Flood(EVENTS, _new_event, _limit_kw),
    "targets": Flood(DSX, _new_target, _cycled_kw),
}


# -- who hears it -------------------------------------------------------------------------------------------


class Metered(Controller):
    """The controller with a stop-watch at both ends."""

    def __init__(self, *arguments: Any) -> None:
        self.entered_at_s: dict[bytes, float] = {}
        self._bound: list[tuple[float, float, float]] = []  # W, when decided, when its orders leave
        self._decided_at_s = 0.0
        self.decision: Decision | None = None
        self.arrived = self.blind_beats = 0
        self.heartbeat_age_max_s = 0.0
        super().__init__(*arguments)
        keep = self._store.keep_decision

        def keep_decision(*arguments: Any) -> None:
            self._decided_at_s = time.monotonic()
            keep(*arguments)

        self._store.keep_decision = keep_decision

    def _on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic != HEARTBEAT:
            self.arrived += 1
            self.entered_at_s[payload] = time.monotonic()
        super()._on_message(topic, payload, retained)

    def _send(self, snapshot: Snapshot, decision: Decision) -> None:
        self.decision = decision
        of_site = decision.binding.source.startswith(tuple(VOICES))
        if of_site and (not self._bound or decision.binding.power_w < self._bound[-1][0]):
            self._bound.append((decision.binding.power_w, self._decided_at_s, time.monotonic()))
        self.blind_beats += decision.mode in BLIND
        heard_at_s = min(contact.heartbeat_at_s for contact in snapshot.site.contacts)
        self.heartbeat_age_max_s = max(self.heartbeat_age_max_s, snapshot.now_s - heard_at_s)
        super()._send(snapshot, decision)

    @property
    def is_heard(self) -> bool:
        return self._link.connected

    @property
    def binding_kw(self) -> float:
        return 0.0 if self.decision is None else self.decision.binding.power_w / 1e3

    @property
    def alarms(self) -> dict[str, str]:
        return dict(self._site.alarms(now_s()))

    @property
    def counts(self) -> Counter[str]:
        return self._site.counts

    @property
    def newest(self) -> Any:
        """The last signal and what was said to it."""
        return self._site.signals[-1]

    @property
    def intervals(self) -> int:
        sources = (self._site.sources[name] for name in self._site.names)
        return sum(len(source.book.windows(model.NEVER_S)) for source in sources)

    def forget(self) -> None:
        """The figures begin here."""
        self._late_s.clear()
        self._skipped = self.blind_beats = 0
        self.heartbeat_age_max_s = 0.0
        self.counts.clear()
        self.arrived = 0

    def obeyed_at_s(self, limit_w: float) -> tuple[float, float]:
        """When that or less bound for the first time, decision and orders; now, if it never did."""
        for bound_w, decided_at_s, left_at_s in self._bound:
            if bound_w <= limit_w:
                return decided_at_s, left_at_s
        return time.monotonic(), time.monotonic()

    @property
    def beat(self) -> dict[str, float]:
        return self._beat_status()


def _block(folder: Path, url: str, source: dict[str, Any]) -> Path:
    """A block of one rack. Nobody listens where its meter and its PDUs should be: they cost it little."""

    def device() -> str:
        return f"modbus+tcp://127.0.0.1:{free_port()}"

    pdu = {"rating_a": 125, "voltage_v": 230, "profile": "xerus_pdu"}
    content = {
        "block": "bench",
        "state_dir": str(folder / "state"),
        "run_dir": str(folder / "run"),
        "journal": {"path": str(folder / "journal.jsonl")},
        "mqtt": {"url": url},
        "site": {
            "failsafe_kw": 30,
            "ramp": {"down_kw_per_s": 4, "up_kw_per_s": 3},
            "sources": [source],
        },
        "feed": {"rating_kw": RATING_KW},
        "base_load": {"min_kw": 2, "max_kw": 12},
        "meter": {"profile": "pm5000_meter", "url": device()},
        "racks": [
            {
                "name": "r1",
                "inlets": [{"name": f"r1-{f}", "feed": f, "url": device(), **pdu} for f in "AB"],
                "nodes": [
                    {"name": f"n{node}", "gpus": GPUS_PER_NODE, "min_w": 200, "max_w": 1000}
                    for node in range(NODES)
                ],
            }
        ],
        "tiers": {"standard": {"floor_w": 250}},
    }
    path = folder / "block.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _source(folder: Path, site: Site, name: str) -> dict[str, Any]:
    if name == "openadr":
        return {"kind": "openadr_mqtt", "name": name, "topics": [EVENTS], "heartbeat_topic": HEARTBEAT}
    (folder / f"{ISV}.pem").write_bytes(site.public_pem)
    (folder / f"{AGENT}.pem").write_bytes(site.private_pem)
    return {
        "kind": "dsx_flex",
        "name": name,
        "agent_id": AGENT,
        "feeds": dict.fromkeys(FEEDS, 1.0),
        "publishers": {ISV: str(folder / f"{ISV}.pem")},
        "signing_key": str(folder / f"{AGENT}.pem"),
        "signing_kid": AGENT,
        "age_max_s": AHEAD_S,
        "heartbeat_topic": HEARTBEAT,
    }


@asynccontextmanager
async def _serving(
    site: Site, voice: str, *speeches: list[Saying]
) -> AsyncIterator[tuple[Metered, list[Speaker]]]:
    """A controller at work, and speakers that are ready before it begins."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="powerblock-bench-")))
        stack.enter_context(_logged(folder))
        url, _ = await stack.enter_async_context(broker(folder))
        speakers = [await stack.enter_async_context(Speaker(url, one)) for one in speeches]
        controller = Metered(load_block(_block(folder, url, _source(folder, site, voice))))
        stack.callback(gc.unfreeze)
        stack.callback(controller.close)
        life = Life()
        serving = asyncio.create_task(controller.serve(life))
        try:
            while not controller.is_heard:  # noqa: ASYNC110  the link tells nobody else
                await asyncio.sleep(0.05)
            yield controller, speakers
        finally:
            life.end()
            with suppress(asyncio.CancelledError):
                await serving


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Log lines as the daemon writes them, into a file."""
    before = structlog.get_config()
    with (folder / "log").open("w") as log, redirect_stderr(log):
        configure("INFO", json=True)
        try:
            yield
        finally:
            logging.getLogger().handlers.clear()
            structlog.configure(**before)


def _with_heartbeats(sayings: list[Saying], site: Site, length_s: float) -> list[Saying]:
    beats = [
        Saying(float(at_s), HEARTBEAT, json.dumps({"sent_at": _text(site.began_utc_s + at_s)}).encode())
        for at_s in range(round(length_s) + 1)
    ]
    return sorted([*sayings, *beats], key=lambda one: one.at_s)


# -- latency ------------------------------------------------------------------------------------------------


async def _latency(name: str, beside: str, signals: int, seed: int) -> dict[str, list[float]]:
    """Times of every signal, s."""
    rng, site, voice = Random(seed), Site(), VOICES[name]
    kept = list((voice.overlapping if beside == "overlapping" else voice.stored)(site))
    gap_s = KEPT_GAP_S[beside]
    at_s = 1.0 + gap_s * len(kept) + CALM_S
    sayings = [Saying(1.0 + gap_s * number, voice.topic, one) for number, one in enumerate(kept)]
    wishes: dict[bytes, float] = {}
    for number in range(signals):
        at_s += rng.uniform(*GAP_S)
        wish = voice.wish(site, number)
        wishes[wish] = 1e3 * _limit_kw(number)
        sayings.append(Saying(at_s, voice.topic, wish))
    sayings = _with_heartbeats(sayings, site, at_s)
    async with _serving(site, name, sayings) as (controller, (speaker,)):
        sent_at_s = await speaker.say()
        for _ in range(round(ANSWER_MAX_S / SETTLED_S)):
            await asyncio.sleep(SETTLED_S)
            if controller.binding_kw <= _limit_kw(signals - 1):
                break
        entered_at_s = controller.entered_at_s
        stored = controller.intervals
    if beside == "stored" and stored < STORED:
        raise RuntimeError(f"{name}: {stored} intervals stored of {STORED}: {controller.newest}")
    sent = {one.payload: sent_s for one, sent_s in zip(sayings, sent_at_s, strict=True)}
    obeyed = {wish: controller.obeyed_at_s(limit_w) for wish, limit_w in wishes.items()}
    return {
        "law": [decided_at_s - entered_at_s[wish] for wish, (decided_at_s, _) in obeyed.items()],
        "sent": [decided_at_s - sent[wish] for wish, (decided_at_s, _) in obeyed.items()],
        "orders": [left_at_s - entered_at_s[wish] for wish, (_, left_at_s) in obeyed.items()],
    }


def _latency_figures(mode: Mode) -> Iterator[Figure]:
    for name in VOICES:
        for beside in TINY_BESIDE if mode is Mode.TINY else LATENCY_MAX_MS:
            runs = [_run(_latency(name, beside, SIGNALS[mode], seed)) for seed in range(REPEATS[mode])]
            for what in runs[0]:
                quantiles = [quantiles_ms(run[what]) for run in runs]
                stem = f"signal_{name}_{beside}_{what}"
                yield Figure(f"{stem}_p50_ms", tuple(p50 for p50, _ in quantiles))
                target = LATENCY_MAX_MS[beside] if what == "law" else None
                yield Figure(f"{stem}_p99_ms", tuple(p99 for _, p99 in quantiles), at_most=target)


# -- flood --------------------------------------------------------------------------------------------------


async def _flood(kind: str, mode: Mode) -> dict[str, float]:
    site, flood = Site(), FLOODS[kind]
    voice = "dsx" if flood.topic == DSX else "openadr"
    # a heartbeat and a plan: the site is there before the flood comes
    calm = [Saying(0.2, VOICES[voice].topic, next(VOICES[voice].overlapping(site)))]
    number, length_s = round(FLOOD_PER_S * FLOOD_S[mode]), FLOOD_S[mode]
    messages = [flood.message(site, n) for n in range(number)]
    rushed = [Saying(n / FLOOD_PER_S, flood.topic, one) for n, one in enumerate(messages)]
    calm, rushed = _with_heartbeats(calm, site, 1.0), _with_heartbeats(rushed, site, length_s)
    async with _serving(site, voice, calm, rushed) as (controller, speakers):
        for speaker in speakers:
            controller.forget()
            cpu_began_s = time.process_time()
            await speaker.say()
        took_s = time.process_time() - cpu_began_s
        await asyncio.sleep(SETTLE_S[mode])
        beat, told = controller.beat, controller.alarms
        holds = flood.newest_kw is None or controller.binding_kw == flood.newest_kw(number - 1)
        return {
            "skipped": beat["skipped"],
            "late_p99_ms": beat["late_p99_ms"],
            "late_max_ms": beat["late_max_ms"],
            "tick_p99_ms": beat["tick_p99_ms"],
            "blind_beats": float(controller.blind_beats),
            "heartbeat_age_max_s": controller.heartbeat_age_max_s,
            "taken_per_s": controller.counts["accepted"] / length_s,
            "arrived_ratio": controller.arrived / number,
            "cpu_ratio": took_s / length_s,
            "newest_holds_or_told_ratio": float(holds or any(key.startswith("signal") for key in told)),
        }


FLOOD_TARGETS: Final[dict[str, dict[str, float]]] = {
    "skipped": {"at_most": 0.0},
    "late_p99_ms": {"at_most": LATE_MAX_MS},
    "blind_beats": {"at_most": 0.0},
    "newest_holds_or_told_ratio": {"at_least": 1.0},
}


def _flood_figures(mode: Mode) -> Iterator[Figure]:
    for kind in TINY_FLOODS if mode is Mode.TINY else FLOODS:
        runs = [_run(_flood(kind, mode)) for _ in range(FLOODED[mode])]
        for name in runs[0]:
            yield Figure(
                f"flood_{kind}_{name}", tuple(run[name] for run in runs), **FLOOD_TARGETS.get(name, {})
            )


def _run(measured: Coroutine[Any, Any, T]) -> T:
    """On the loop that the daemon has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measured)


def run(mode: Mode) -> list[Figure]:
    return [*_latency_figures(mode), *_flood_figures(mode)]
