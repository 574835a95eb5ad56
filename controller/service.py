"""The block controller: serve, start up, beat, stop, on one page.

Tasks bring the newest values to the board: one per field connection, one for the broker. The beat takes a
snapshot twenty times a second, runs the law, sends what it ordered, and tells journal, status and systemd.
Deadlines are absolute, so lateness does not add up; a late beat skips what it missed and says so. A new
wish of the site wakes the beat early, at most once in `WAKE_GAP_S`.

Nothing that can fail outside ends this process: a missing broker, device or disk is data, and the block
holds what it may. A fault of the program does end it: systemd starts a new one, which holds the persisted
or the failsafe limit, and the agents' leases bridge the gap.
"""

import asyncio
import gc
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from controller.actuate import Actuate
from controller.actuate import Heard as NodesHeard
from controller.backstop import Backstop, Heard, obeys
from controller.board import Board
from controller.clock import now_s, now_utc_s
from controller.config import BlockConfig, ConfigError, GatewayConfig, load_config, settings_of
from controller.contacts import Contacts
from controller.core import frequency, law, watch
from controller.core.model import NEVER_S, Decision, Measurement, Site, Snapshot, State
from controller.endless import RELOAD, Life, ending, run_and_leave
from controller.field import Taker
from controller.frequency import FrequencyDesk
from controller.gateway import Gateway, block_points
from controller.grouping import FILE as GROUPING_FILE
from controller.grouping import Grouping, plan_of
from controller.incumbent import Newcomer, incumbent
from controller.journal import Journal
from controller.notify import notify
from controller.other_limits import OtherLimits
from controller.pure_gateway import PureGateway
from controller.reload import is_sound
from controller.site.desk import SiteDesk
from controller.status import PERIOD_S, StatusFile, block_status, shed_status, shed_words
from controller.steps import Steps
from controller.store import Store, StoreError, require_writable
from protocols import agent_link
from protocols.mqtt import MqttConfigError, MqttLink, Subscription

WAKE_GAP_S: Final = 0.005
REFRESH_S: Final = 5.0  # how often coming windows are looked up in the book
BEATS_KEPT: Final = 1200  # for the figures in the status: a minute at 20 Hz
WATCHDOG_S: Final = 0.5
GROUPING_S: Final = 0.25  # how soon it matters that a GPU is another one than was meant
GROUPING_FILE_S: Final = 2.0  # it has every GPU in it
MIB: Final = 1024 * 1024
RECORDS: Final = "records"  # of frequency responses
LED_BY_ANOTHER: Final = 2  # exit status, as of whatever keeps it from starting
STOPPED: Final = {
    BlockConfig: "stopped, limits stay as they are until their leases run out",
    GatewayConfig: "stopped; its values turn bad",
}

log = structlog.get_logger(__name__)


class Controller:
    """One block. Raises StoreError, MqttConfigError, ConfigError at once."""

    def __init__(self, config: BlockConfig) -> None:
        settings = settings_of(config)
        self._config, self._settings = config, settings
        self._woken = asyncio.Event()  # these first: what is kept speaks up as soon as it is read
        self._wished = False
        self._steps = Steps(settings, config.state_dir)
        self._others = OtherLimits(settings)
        self._late_s: deque[float] = deque(maxlen=BEATS_KEPT)
        self._tick_s: deque[float] = deque(maxlen=BEATS_KEPT)
        self._beats = self._skipped = 0
        self._due = dict.fromkeys(("status", "refresh", "watchdog", "grouping", "grouping file"), NEVER_S)
        self._store = Store(config.state_dir)
        carried, running = self._store.inherited(now_s(), now_utc_s())
        self._predecessor, same_clock = self._store.kept.epoch, self._store.same_clock()
        self._epoch = self._store.begin(now_utc_s())
        self._boot = secrets.token_hex(4)
        self._started_utc_s = now_utc_s()
        self._board = Board(settings, self._epoch, same_clock)
        self.led_by = ""  # who leads in our place, in a sentence, when that is why this ends
        self._newcomer = Newcomer(self._epoch, now_s())
        self._leave: Callable[[], None] = lambda: None
        self._grouping = Grouping(settings, plan_of(config))
        self._nodes = {name: index for index, name in enumerate(settings.topology.node_names)}
        self._actuate = Actuate(settings, self._epoch, config.agents.lease_s, boot=self._boot)
        self._site = SiteDesk(
            config,
            self._store,
            clock=(now_s, now_utc_s),
            on_change=self._on_site,
            on_caps=self._board.put_caps,
            on_called=self._wake,
        )
        self._site.refresh(running, frozenset(), now_utc_s())
        self._grid = self._frequency_desk(config)
        self._backstop = self._new_backstop(config)
        self._link = self._new_link()
        self._site.attach(self._link)
        facility = self._site.facility
        self._contacts = Contacts(config.shed, self._wake, now_s(), self._store.kept.contacts)
        self._points = block_points(config)
        self._gateway = Gateway(
            config,
            epoch=self._epoch,
            groups=self._points.groups,
            takers={
                **_instruments(config, self._board),
                **self._contacts.takers(),
                **({} if self._grid is None else {"frequency": self._grid.put}),
            },
            facility=facility,
            settings=settings,
            on_moved=lambda: self._site.moved(now_utc_s()),
        )
        self._journal = Journal(
            config.journal.path,
            settings,
            file_max_bytes=config.journal.file_max_mib * MIB,
            files_max=config.journal.files_max,
        )
        self._status = StatusFile(config.run_dir)
        self._grouping_file = StatusFile(config.run_dir, GROUPING_FILE)
        self._grouping_written = -1
        self._state = law.start(settings, now_s(), carried, running)
        log.info("start", block=config.block, epoch=self._epoch, carried=carried, windows=len(running))

    async def incumbent(self) -> str:
        """Who leads this block already, in a sentence; empty: nobody."""
        return await incumbent(self._config, self._predecessor)

    async def serve(self, life: Life) -> None:
        """Run until `life` ends, or another controller turns out to lead: then `led_by` says who."""
        self._leave = life.end
        await life.live(
            {
                "broker": self._link.run,
                **self._site.runs(),
                **self._gateway.runs(),
                **({} if self._grid is None else self._grid.runs()),
                **({} if self._backstop is None else {"backstop": self._backstop.run}),
                "beat": self._beat_for_ever,
            }
        )

    # --- the beat ---------------------------------------------------------------------------------------

    async def _beat_for_ever(self) -> None:
        self._beat()  # the first decision stands before the first message is read
        gc.collect()
        gc.freeze()  # what lives now lives for good: collections need not walk it again
        notify("READY=1")
        period_s = self._settings.tick_s
        due_s = now_s() + period_s
        while True:
            if await self._wished_before(due_s) and now_s() < due_s:
                self._beat()
                await asyncio.sleep(min(WAKE_GAP_S, max(0.0, due_s - now_s())))
                continue
            late_s = now_s() - due_s
            missed = max(0, int(late_s / period_s))
            self._late_s.append(max(0.0, late_s))
            self._skipped += missed
            due_s += (missed + 1) * period_s
            self._beat(on_time=missed == 0)

    async def _wished_before(self, due_s: float) -> bool:
        """Sleep until the beat is due; True if a wish of the site came before."""
        timer = asyncio.get_running_loop().call_later(max(0.0, due_s - now_s()), self._woken.set)
        await self._woken.wait()
        timer.cancel()
        self._woken.clear()
        wished, self._wished = self._wished, False
        return wished

    def _beat(self, *, on_time: bool = True) -> None:
        """One tick: freeze the inputs, decide, act, then tell."""
        before = self._state
        self._site.before_beat(now_s())
        began_s = now_s()
        if self._backstop is not None:
            self._board.put_proven({one.node: one.limit_w for one in self._backstop.proven(began_s)})
        if self._is_due("grouping", GROUPING_S, began_s) and self._grouping.look(began_s):
            self._board.put_doubts(self._grouping.doubts)
        closed = self._contacts.requests(began_s)
        self._board.sheds = (*closed, *self._site.sheds)
        snapshot = self._board.snapshot(began_s, now_utc_s())
        decision = law.tick(self._settings, before, snapshot)
        self._tick_s.append(now_s() - began_s)
        self._state = decision.state
        self._call(before, snapshot, decision)
        self._store.keep_decision(
            decision,
            snapshot.now_utc_s,
            frequency.to_inherit(self._settings.frequency, decision.state.frequency),
            tuple(request.source for request in closed),
        )
        self._send(snapshot, decision)
        self._steps.beat(snapshot)
        self._others.ordered(decision.gpu_limits_w, snapshot.now_s)
        if self._grid is not None and decision.state.frequency is not None:
            metered = snapshot.meter.is_usable(snapshot.now_s, self._settings.meter_age_max_s)
            block_w = snapshot.meter.value if metered else None
            self._grid.after_beat(decision.state.frequency, block_w, decision.budget_w)
        self._beats += 1
        self._site.after_beat(snapshot, decision)
        self._journal.record(before, snapshot, decision)
        if self._is_due("status", PERIOD_S, began_s):
            self._tell(snapshot, decision)
        after = decision.state
        if self._is_due("refresh", REFRESH_S, began_s) or after.running != before.running:
            self._site.refresh(after.running, after.ended, snapshot.now_utc_s)
        if on_time and self._is_due("watchdog", WATCHDOG_S, began_s):
            notify(f"WATCHDOG=1\nSTATUS={decision.mode}: {watch.why(self._settings, decision)}")

    def _call(self, before: State, snapshot: Snapshot, decision: Decision) -> None:
        """Emergencies first, before the disk: what only lowers needs no memory to be safe."""
        decided_s = now_s()
        call = self._actuate.call(decision, decided_s)
        if call is not None:
            topic = agent_link.call_topic(self._config.block)
            self._link.publish(topic, agent_link.encode(call))
            self._link.flush()
            written_s = None if self._link.waiting else now_s()
            self._steps.sent(snapshot, decision, decided_s, written_s)
        elif self._beats and decision.state.shedding.level > before.shedding.level:
            # No node has its table: by orders alone. What a restart finds called was called before it.
            self._steps.sent(snapshot, decision, decided_s, None)

    def _send(self, snapshot: Snapshot, decision: Decision) -> None:
        block, names, gpus = self._config.block, self._settings.topology.node_names, snapshot.gpus
        heard = NodesHeard(
            confirmed_seq=gpus.node_seq.tolist(),
            report_at_s=self._board.report_at_s.tolist(),
            known_at_s=self._board.known_at_s.tolist(),
            table=gpus.node_table.tolist(),
        )
        for node, order in self._actuate.orders(decision, heard, now_s()):
            self._link.publish(agent_link.order_topic(block, names[node]), agent_link.encode(order))
        for node, table in self._actuate.tables(decision.state.shedding.table, heard, now_s()):
            self._link.publish(agent_link.table_topic(block, names[node]), agent_link.encode(table))
        self._link.flush()  # hosts can act while we write our books

    def _is_due(self, what: str, period_s: float, at_s: float) -> bool:
        if at_s - self._due[what] < period_s:
            return False
        self._due[what] = at_s
        return True

    def _frequency_desk(self, config: BlockConfig) -> FrequencyDesk | None:
        """None: nothing was committed to the grid."""
        if config.frequency is None or self._settings.frequency is None:
            return None

        def put(measurement: Measurement) -> None:
            self._board.frequency = measurement

        return FrequencyDesk(
            config.frequency,
            self._settings.frequency,
            clock=(now_s, now_utc_s),
            on_measurement=put,
            wake=self._wake,
            folder=config.state_dir / RECORDS,
        )

    def _new_backstop(self, config: BlockConfig) -> Backstop | None:
        """Raises ConfigError. None: none is configured."""
        if config.backstop is None:
            return None
        started_s, nodes = now_s(), {node.name: node.gpus for node in config.nodes}

        def hear(node: str) -> Heard:
            heard_s, seq, leased = self._board.heard(node)
            now, ledger, wait_s = now_s(), self._state.ledger, self._settings.ack_wait_s
            does = obeys(ledger, self._nodes[node], seq, now, leased=leased, wait_s=wait_s)
            # Whoever leads it has it under control: its BMC is not ours to hold, nor to keep held.
            return Heard(now - max(heard_s, started_s), does or self._board.is_led_by_another(node, now))

        return Backstop(config.backstop, nodes, hear, config.state_dir)

    # --- what comes in ----------------------------------------------------------------------------------

    def _new_link(self) -> MqttLink:
        config = self._config
        mqtt, block = config.mqtt, config.block
        self._reports = agent_link.report_topic(block, "+").split("+")
        return MqttLink(
            mqtt.url,
            # Its own for every start: a broker would end one session of two that share a name, and again.
            client_id=f"powerblock-{block}-controller-{self._boot}",
            on_message=self._on_message,
            on_oversized=self._on_oversized,
            on_connect=self._site.on_connect,
            subscriptions=(
                Subscription(agent_link.report_topic(block, "+")),
                Subscription(agent_link.facts_topic(block, "+")),
                *self._site.subscriptions,
                *(() if self._grid is None else self._grid.subscriptions),
            ),
            username=mqtt.username,
            password=mqtt.password(),
            tls=mqtt.tls(),
        )

    def _on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic.endswith(f"/{agent_link.FACTS}") and topic.startswith(self._reports[0]):
            self._on_facts(topic[len(self._reports[0]) : topic.rindex("/")], payload)
            return
        head, tail = self._reports
        if self._grid is not None and self._grid.on_message(topic, payload, retained):
            return
        if not (topic.startswith(head) and topic.endswith(tail)):
            self._site.on_message(topic, payload, retained)
            return
        speaker = topic[len(head) : -len(tail)]  # brokers grant rights by topic, not by what is told there
        try:
            report = agent_link.decode_report(payload)
        except agent_link.LinkError as error:
            why = self._board.refuse(str(error), speaker)
        else:
            why = self._take_report(speaker, report)
        if why and self._board.refused.get(why) == 1:
            log.warning("report refused", topic=topic, why=why)

    def _take_report(self, speaker: str, report: agent_link.Report) -> str:
        """Returns why it was refused, or an empty string."""
        if report.node != speaker:
            return self._board.refuse_false_name(speaker, report.node, now_s())
        if speaker not in self._nodes:
            self._grouping.hear_stranger(report, now_s())
        why = self._board.put_report(report, now_s())
        if not why:
            self._heard(report)
        return why

    def _heard(self, report: agent_link.Report) -> None:
        """A report that is on the board: whom does its agent obey?"""
        if report.epoch == self._epoch:
            self._steps.heard(self._nodes[report.node], report, now_s())
        if not self.led_by:
            self.led_by = self._newcomer.hear(report, now_s())
            if self.led_by:
                log.error("ends", why=self.led_by)
                self._leave()

    def _on_facts(self, speaker: str, payload: bytes) -> None:
        try:
            facts = agent_link.decode_facts(payload)
        except agent_link.LinkError as error:
            why = self._board.refuse(str(error))
        else:
            if facts.node != speaker:
                why = self._board.refuse_false_name(speaker, facts.node, now_s())
            else:
                self._grouping.hear(facts, now_s())
                why = self._board.put_facts(facts)
        if why and self._board.refused.get(why) == 1:
            log.warning("facts refused", why=why)

    def _on_oversized(self, topic: str, size_bytes: int) -> None:
        head, tail = self._reports
        if topic.startswith(head) and topic.endswith(tail):
            self._board.refuse(f"report of {size_bytes} bytes", topic[len(head) : -len(tail)])
        else:
            self._site.on_oversized(topic, size_bytes)

    def _on_site(self, site: Site) -> None:
        changed = site.setpoints != self._board.site.setpoints
        self._board.site = site
        if changed:
            self._wake()

    def _wake(self) -> None:
        """What has come cannot wait for the next beat."""
        self._steps.asked(now_s())
        self._wished = True
        self._woken.set()

    # --- what is told -----------------------------------------------------------------------------------

    def _tell(self, snapshot: Snapshot, decision: Decision) -> None:
        """The status, the alarms, and the block's points of the process image."""
        now = snapshot.now_s
        broker = {"name": "broker", "up": self._link.connected, "fault": self._link.fault, "age_s": None}
        shed = shed_status(self._settings, snapshot, decision)
        told = {
            "block": self._config.block,
            "epoch": self._epoch,
            "started_utc_s": self._started_utc_s,
            **block_status(
                self._settings, snapshot, decision, self._board.last_refusal, self._board.gpu_faults
            ),
            "alarms": self._gateway.tell(self._conditions(snapshot, decision, shed_words(shed))),
            "links": [broker, *self._gateway.links(), *map(dict, self._site.links(now))],
            "site": self._site.told(now, decision),
            "facility": self._gateway.told(),
            "shed": {**shed, **self._steps.told()},
            "frequency": None if self._grid is None else self._grid.told(),
            "backstop": [] if self._backstop is None else self._backstop.told(now),
            "beat": self._beat_status(),
        }
        self._status.write(told)
        self._tell_grouping(told)
        for update in self._points.updates(told, snapshot, decision, now_utc_s()):
            self._gateway.update(update)

    def _tell_grouping(self, told: dict[str, Any]) -> None:
        """Who is where, when that is other than before; at most once in two seconds, for a block is long."""
        if self._grouping.revision == self._grouping_written:
            return
        if not self._is_due("grouping file", GROUPING_FILE_S, now_s()):
            return
        self._grouping_written = self._grouping.revision
        self._grouping_file.write(
            {"block": told["block"], "at_utc_s": told["at_utc_s"], **self._grouping.told()}
        )

    def _conditions(self, snapshot: Snapshot, decision: Decision, called: str) -> Iterator[tuple[str, str]]:
        """What is wrong, by key and text: causes before effects. `called`: a shed level, and by whom."""
        now = snapshot.now_s
        if called:
            yield "shed", called
        for key, fault in (
            ("broker", self._link.fault if self._link.called else ""),
            ("state file", self._store.fault),
            ("journal", self._journal.fault),
            ("shed record", self._steps.fault),
        ):
            if fault:
                yield key, fault
        yield from self._board.conditions(now)
        yield from self._grouping.conditions()
        yield from self._contacts.conditions(now)
        if self._grid is not None:
            yield from self._grid.alarms()
        if self._backstop is not None:
            yield from self._backstop.conditions()
        yield from self._site.alarms(now)
        yield from ((f"report {node}", why) for node, why in self._board.last_refusal.items())
        yield from (
            (f"faults {node}", "; ".join(said)) for node, said in self._board.gpu_faults.items() if said
        )
        yield from (
            (f"notice {node}", "; ".join(said)) for node, said in self._board.gpu_notices.items() if said
        )
        yield from self._others.conditions(snapshot, decision.state.shares.desired_w, self._board.enforced_w)
        yield from ((alarm.key, alarm.text) for alarm in decision.alarms)

    def _beat_status(self) -> dict[str, float]:
        late_ms, tick_ms = 1e3 * np.array(self._late_s or [0.0]), 1e3 * np.array(self._tick_s or [0.0])
        return {
            "count": self._beats,
            "late_p99_ms": float(np.percentile(late_ms, 99)),
            "late_max_ms": float(late_ms.max()),
            "tick_p99_ms": float(np.percentile(tick_ms, 99)),
            "skipped": self._skipped,
        }

    def close(self) -> None:
        self._gateway.close()
        self._site.close()
        self._journal.close()
        self._steps.close()
        if self._grid is not None:
            self._grid.close()
        self._store.close()


def _instruments(config: BlockConfig, board: Board) -> dict[str, Taker]:
    """Where the measurements go that the law lives by."""

    def put_meter(measurement: Measurement) -> None:
        board.meter = measurement

    def put_cooling(measurement: Measurement) -> None:
        board.cooling = measurement

    inlets = {inlet.name: partial(board.put_inlet, index) for index, inlet in enumerate(config.inlets)}
    return {"meter": put_meter, "cooling": put_cooling, **inlets}


async def run(
    config: GatewayConfig | BlockConfig, path: Path | None = None, *, take_over: bool = False
) -> int:
    """Serve until SIGTERM or SIGINT. A stop changes no limit: the agents' leases run out by themselves.

    Args:
        config: of the block.
        path: its file, which SIGHUP has read again; None: no reload.
        take_over: lead, whoever else does.

    Returns the exit status: 2 when it cannot work as set up or another controller leads, else 0.
    """
    life = Life()
    life.end_on_signals()
    if path is not None:
        life.reload_on_signal(partial(is_sound, path, writes=True))
    try:
        require_writable(state_dir=config.state_dir, run_dir=config.run_dir)
        controller = Controller(config) if isinstance(config, BlockConfig) else PureGateway(config)
    except (StoreError, MqttConfigError, ConfigError) as error:
        return _refused(error)
    try:
        led = "" if take_over or isinstance(controller, PureGateway) else await controller.incumbent()
        if led:
            log.error("cannot start", why=led)
            return LED_BY_ANOTHER
        await controller.serve(life)
    except asyncio.CancelledError:
        log.info(STOPPED[type(config)])
    finally:
        notify(ending(life))
        controller.close()
    if isinstance(controller, Controller) and controller.led_by:
        return LED_BY_ANOTHER
    return RELOAD if life.reloads else 0


def main(path: Path, *, take_over: bool = False) -> int:
    """Command `powerblock run`. Returns 2 for a bad configuration; else the process ends, see `run`."""
    from controller.logs import configure

    configure("INFO", json=not sys.stderr.isatty())
    try:
        config = load_config(path)
    except ConfigError as error:
        return _refused(error)
    return run_and_leave(run(config, path, take_over=take_over))


def _refused(error: Exception) -> int:
    for line in str(error).splitlines():
        log.error("cannot start", why=line)
    return 2
