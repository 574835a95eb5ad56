"""The GPU node agent: obeys limits while its lease runs, falls back by itself when it does not.

Four tasks and one state. Nothing waits for anything that may not come:
    sweep   reads all GPUs, every report period; a stuck GPU costs one deadline, once
    beat    lets time pass for the lease, publishes a report; after each sweep, or without one
    apply   writes limits as soon as they are due: an order, a ramp, a limit somebody else changed
    link    the broker; orders come in by callback, the newest report waits for the wire

What each GPU should hold is decided in `lease` (pure). This file gives it time and readings and does what
it says. The agent runs on through everything but a driver that is gone (a new process gets a new one) and
a lack of permission at the start. A stop or a restart changes no limit.
"""

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import structlog

from controller.agent import found_limits
from controller.agent.config import ConfigError, NodeConfig, load_node
from controller.agent.gpu_view import GpuView, described
from controller.agent.lanes import Lane, Stuck
from controller.agent.lease import LeaseSettings, Mode, Refusal, Write, beat, begin, due, offer, shed
from controller.clock import now_s, now_utc_s
from controller.endless import Life, run_and_leave
from controller.notify import notify
from protocols import agent_link
from protocols.mqtt import MqttConfigError, MqttLink, Subscription
from protocols.nvml import DRIVER_GONE, NO_PERMISSION, Nvml, NvmlFault

DRIVER_RETRY_S: Final = 3.0  # a driver that is being installed or loaded takes minutes
DRIVER_OPEN_MAX_S: Final = 30.0  # nvmlInit has been seen to queue for 12 s behind other processes
BEAT_WAIT_RATIO: Final = (
    1.5  # of the report period, for a sweep; longer than it, or each sweep would bring two beats
)
RECORD_WAIT_MAX_S: Final = 1.0  # for the disk
WATCHDOG_PERIOD_S: Final = 1.0
HEALTHY_AGE_MAX_S: Final = 5.0  # no sweep or no end of writing for longer: let systemd start a new process
OPENING: Final = -1  # stands for the driver itself where a lane wants a GPU index

log = structlog.get_logger(__name__)


class Link(Protocol):
    """What the agent needs of a broker connection; `protocols.mqtt.MqttLink` is one."""

    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None: ...
    async def run(self) -> None: ...


class DriverGoneError(RuntimeError):
    """Every call says that the driver is no longer there; only a new process gets a new one."""


class NotPermittedError(RuntimeError):
    """The driver refuses our writes; the text says what to grant."""


class Agent:
    """One node. `driver` is open; `observe` means that nothing is ever written."""

    def __init__(self, config: NodeConfig, driver: Nvml, *, observe: bool) -> None:
        self._config = config
        self._driver = driver
        self._boot = secrets.token_hex(8)
        self._settings = LeaseSettings(
            fallback_w=config.fallback_limits_w(driver.gpu_count),
            fallback_ramp_w_per_s=config.fallback_ramp_w_per_s,
            lease_max_s=config.lease_max_s,
            waiting_max_s=config.waiting_max_s,
        )
        self.lease = begin(self._settings, now_s(), observe=observe)
        self.views = [GpuView() for _ in range(driver.gpu_count)]
        self._recorded: set[int] = set()  # GPUs whose found limit is on disk
        self._acknowledged = (0, 0)  # newest order written and read back
        self._heard_sent_at_s = -1.0  # of the newest order heard, controller's clock
        self._heard_at_s = 0.0  # when it came, our clock
        stuck = Stuck()
        self._reads = Lane("nvml read", deadline_s=config.call_deadline_s, stuck=stuck)
        self._writes = Lane("nvml write", deadline_s=config.call_deadline_s, stuck=stuck)
        self._swept_at_s = now_s()  # begin of the newest complete sweep
        self._applying_since_s: float | None = None
        self._swept = asyncio.Event()
        self._changed = asyncio.Event()
        self._table: agent_link.Table | None = None  # what to do when a level is called
        self._hears: dict[str, Callable[[bytes], str | None]] = {
            agent_link.ORDER: self._hear_order,
            agent_link.TABLE: self._hear_table,
            agent_link.CALL: self._hear_call,
        }
        self._newest_at_s = 0.0  # when the newest order or call came
        self._obeyed_in_s = -1.0  # from then to its last limit read back
        self._logged_faults: dict[int, str] = {}
        self._logged_refusal = ""
        self._watchdog_at_s = 0.0

    async def serve(self, link: Link, life: Life) -> None:
        """Run until `life` ends. Raises NotPermittedError, DriverGoneError."""
        await self._sweep()
        if self.lease.mode is not Mode.OBSERVE:
            await self._check_permission()
        notify("READY=1")
        log.info("agent ready", node=self._config.node, gpus=len(self.views), mode=self.lease.mode)
        try:
            await life.live(
                {
                    "link": link.run,
                    "sweep": self._sweep_for_ever,
                    "beat": partial(self._beat_for_ever, link),
                    "apply": partial(self._apply_for_ever, link),
                }
            )
        except BaseExceptionGroup as ended:
            expected, unexpected = ended.split(DriverGoneError)
            if expected is None or unexpected is not None:
                raise
            raise expected.exceptions[0] from None

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        """Something came. Runs inside the socket's read event: decides at once, writes later."""
        if retained:  # a broker's memory is not a controller
            self._refused("it was retained: publish orders without the retain flag")
            return
        hear = self._hears.get(topic.rpartition("/")[2], self._hear_order)
        before = self.lease
        try:
            refusal = hear(payload)
        except agent_link.LinkError as error:
            refusal = str(error)
        if refusal is not None:
            self._refused(refusal)
            return
        self._logged_refusal = ""
        if self.lease.mode is not before.mode:
            log.info("mode", was=before.mode, now=self.lease.mode, newest=self.lease.newest)
        if self.lease.newest != before.newest:
            self._newest_at_s = now_s()
        if (self.lease.mode, self.lease.newest, self.lease.held_w) != (
            before.mode,
            before.newest,
            before.held_w,
        ):
            self._changed.set()

    def _hear_order(self, payload: bytes) -> str | None:
        """Why it is refused, or None. Raises LinkError."""
        order = agent_link.decode_order(payload)
        self.lease, refusal = offer(self._settings, self.lease, order, now_s())
        if refusal is not Refusal.OVERTAKEN:  # the clock of another controller would mislead ours
            self._heard_sent_at_s, self._heard_at_s = order.sent_at_s, now_s()
        return refusal

    def _hear_table(self, payload: bytes) -> str | None:
        table = agent_link.decode_table(payload)
        if any(len(level.limits_w) != len(self.views) for level in table.levels):
            return Refusal.OTHER_GPU_COUNT
        newest = (
            (self.lease.newest[0], 0) if self._table is None else (self._table.epoch, self._table.version)
        )
        if (table.epoch, table.version) < max(newest, (self.lease.newest[0], 0)):
            return Refusal.OVERTAKEN
        self._table = table
        return None

    def _hear_call(self, payload: bytes) -> str | None:
        call = agent_link.decode_call(payload)
        table = self._table
        if table is None or table.epoch != call.epoch or call.level >= len(table.levels):
            return f"level {call.level} is called, and this agent has no table for it: its orders will come"
        self.lease, refusal = shed(self.lease, call, table.levels[call.level].limits_w)
        return refusal

    def _refused(self, why: str) -> None:
        """One line per reason, not one per order: orders come twenty times a second."""
        if why != self._logged_refusal:
            log.warning(
                "order refused", why=why, refused={str(key): n for key, n in self.lease.refused.items()}
            )
        self._logged_refusal = why

    # ---- reading ----

    async def _sweep_for_ever(self) -> None:
        next_at_s = now_s()
        while True:
            next_at_s = max(next_at_s + self._config.report_period_s, now_s())
            await self._sweep()
            self._swept.set()
            await asyncio.sleep(max(0.0, next_at_s - now_s()))

    async def _sweep(self) -> None:
        began_at_s = now_s()
        calls = {gpu: partial(self._driver.read, gpu) for gpu in range(len(self.views))}
        results = await self._reads.run(calls)
        for gpu, result in results.items():
            self.views[gpu].swept(result, began_at_s)
        self._swept_at_s = began_at_s
        codes = {result.code if isinstance(result, NvmlFault) else 0 for result in results.values()}
        if codes <= DRIVER_GONE:
            raise DriverGoneError(self.views[0].read_fault)

    # ---- time ----

    async def _beat_for_ever(self, link: Link) -> None:
        while True:
            with suppress(TimeoutError):  # a sweep that hangs stops neither the lease nor the reports
                async with asyncio.timeout(BEAT_WAIT_RATIO * self._config.report_period_s):
                    await self._swept.wait()
            self._swept.clear()
            self._beat()
            self._publish(link)
            self._tell_systemd()
            self._log_faults()

    def _beat(self) -> None:
        before = self.lease
        found = [view.found() for view in self.views]
        self.lease = beat(self._settings, before, self._found_w(), now_s())
        if self.lease.mode is not before.mode:
            self._acknowledged = (0, 0)
            log.warning("mode", was=before.mode, now=self.lease.mode, why="no order with a valid lease")
        unsettled = {write.gpu for write in due(self.lease, found)}
        for gpu, view in enumerate(self.views):
            if gpu not in unsettled and found[gpu] is not None:
                view.settle()
        if unsettled:
            self._changed.set()

    def _found_w(self) -> list[float | None]:
        """The limit that each driver holds, as last read; None where it could not be read."""
        found = [view.found() for view in self.views]
        return [None if seen is None else seen.limit_w for seen in found]

    def _publish(self, link: Link) -> None:
        gpus = described(self.views, now_s())
        if not gpus:  # no GPU was ever readable: silence is what the controller counts worst
            return
        epoch, seq = self._acknowledged if self.lease.mode is Mode.LEASED else (0, 0)
        heard = self._heard_sent_at_s >= 0
        report = agent_link.Report(
            node=self._config.node,
            boot=self._boot,
            at_s=self._swept_at_s,
            echo_sent_at_s=self._heard_sent_at_s,
            echo_age_s=self._swept_at_s - self._heard_at_s if heard else 0.0,
            epoch=epoch,
            seq=seq,
            mode=self.lease.mode,
            gpus=gpus,
            table_epoch=0 if self._table is None else self._table.epoch,
            table=0 if self._table is None else self._table.version,
            obeyed_in_s=self._obeyed_in_s,
        )
        link.publish(
            agent_link.report_topic(self._config.block, self._config.node), agent_link.encode(report)
        )

    def _tell_systemd(self) -> None:
        now = now_s()
        healthy = now - self._swept_at_s < HEALTHY_AGE_MAX_S and (
            self._applying_since_s is None or now - self._applying_since_s < HEALTHY_AGE_MAX_S
        )
        if not healthy or now < self._watchdog_at_s:
            return
        self._watchdog_at_s = now + WATCHDOG_PERIOD_S
        faulty = sum(bool(view.fault(now)) for view in self.views)
        notify(f"WATCHDOG=1\nSTATUS={self.lease.mode}, {len(self.views)} GPUs, {faulty} with a fault")

    def _log_faults(self) -> None:
        """One line when a fault comes, one when it goes; its seconds and watts are not news."""
        for gpu, view in enumerate(self.views):
            fault, was = view.fault(now_s()), self._logged_faults.get(gpu, "")
            self._logged_faults[gpu] = fault
            if fault and not was:
                log.warning("gpu fault", gpu=gpu, fault=fault)
            elif was and not fault:
                log.info("gpu well again", gpu=gpu)

    # ---- writing ----

    async def _apply_for_ever(self, link: Link) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._applying_since_s = now_s()
            await self._apply()
            self._applying_since_s = None
            if self.lease.mode is Mode.LEASED:
                self._publish(link)  # the acknowledgement does not wait for the next beat

    async def _apply(self) -> None:
        """Write what is due and read it back. After that every GPU holds its limit or has a fault."""
        lease = self.lease
        await self._record_found()
        writes = {}
        for write in due(lease, [view.found() for view in self.views]):
            view = self.views[write.gpu]
            if view.may_write(write.limit_w, now_s()):
                view.notice_foreign_change(write.limit_w, now_s())
                writes[write.gpu] = partial(_write_and_read_back, self._driver, write)
        results = await self._writes.run(writes)
        for gpu, result in results.items():
            self.views[gpu].wrote(writes[gpu].args[1].limit_w, result, now_s())
        # The lease may have lapsed while the driver was busy.
        if lease.mode is Mode.LEASED and self.lease.mode is Mode.LEASED:
            if self._acknowledged != lease.newest == self.lease.newest:
                self._obeyed_in_s = now_s() - self._newest_at_s
            self._acknowledged = lease.newest

    async def _record_found(self) -> None:
        """Put the found limits of all GPUs on disk that we may write to and have not recorded yet."""
        new = {
            gpu: view.reading
            for gpu, view in enumerate(self.views)
            if view.reading is not None and gpu not in self._recorded
        }
        if not new:
            return
        self._recorded |= new.keys()
        record = partial(
            found_limits.record, self._config.state_dir, new.values(), boot=self._boot, now_utc_s=now_utc_s()
        )
        try:
            async with asyncio.timeout(RECORD_WAIT_MAX_S):
                await asyncio.to_thread(record)
        except OSError as error:  # TimeoutError is one
            # A full or dead disk must not keep a limit from being lowered: the log remembers instead.
            found_w = {gpu: reading.limit_w for gpu, reading in new.items()}
            log.warning("found limits not on disk", why=repr(error), found_w=found_w)

    async def _check_permission(self) -> None:
        """Write back the limit of one healthy GPU. Raises NotPermittedError."""
        await self._record_found()
        for gpu, view in enumerate(self.views):
            if view.reading is None:
                continue
            result = (await self._writes.run({gpu: partial(self._driver.probe_permission, gpu)}))[gpu]
            if not isinstance(result, NvmlFault):
                return
            if result.code == NO_PERMISSION:
                raise NotPermittedError(result.sentence)


def _write_and_read_back(driver: Nvml, write: Write) -> tuple[float, float]:
    """Returns the limit written, or kept, after clamping, and the limit the driver shows then, W."""
    ask = driver.lower_limit_w if write.lower_only else driver.set_limit_w
    return ask(write.gpu, write.limit_w), driver.read_limit_w(write.gpu)


async def _open_driver(config: NodeConfig) -> Nvml:
    """The driver, however long it takes to come: a host may boot, or be repaired, with the agent running."""
    lane = Lane("nvml open", deadline_s=DRIVER_OPEN_MAX_S, stuck=Stuck())
    logged = ""
    while True:
        opened = (await lane.run({OPENING: Nvml}))[OPENING]
        why = _why_unusable(opened)
        if isinstance(opened, Nvml) and not why:
            expected = opened.gpu_count if config.gpus is None else config.gpus.count
            if opened.gpu_count != expected:
                log.error(
                    "gpu count", expected=expected, found=opened.gpu_count, remedy="see Xid in the kernel log"
                )
            log.info("driver open", version=opened.driver_version, gpus=opened.gpu_count)
            return opened
        if why != logged:
            log.error("driver not usable, trying again", why=why, every_s=DRIVER_RETRY_S)
        logged = why
        # The unit's start time-out must not end this patience.
        notify(
            f"STATUS=waiting for the driver: {why}\nEXTEND_TIMEOUT_USEC={int((DRIVER_OPEN_MAX_S + 30) * 1e6)}"
        )
        await asyncio.sleep(DRIVER_RETRY_S)


def _why_unusable(opened: Nvml | NvmlFault) -> str:
    if isinstance(opened, NvmlFault):
        return opened.sentence
    return "" if opened.gpu_count > 0 else "the driver shows no GPU: see `nvidia-smi` and the kernel log"


def _link(config: NodeConfig, on_message: Callable[[str, bytes, bool], None]) -> MqttLink:
    """Raises MqttConfigError, ConfigError."""
    return MqttLink(
        config.mqtt.url,
        client_id=f"powerblock-agent-{config.block}-{config.node}",
        on_message=on_message,
        subscriptions=(
            Subscription(agent_link.call_topic(config.block)),
            Subscription(agent_link.order_topic(config.block, config.node)),
            Subscription(agent_link.table_topic(config.block, config.node)),
        ),
        username=config.mqtt.username,
        password=config.mqtt.password(),
        tls=config.mqtt.tls(),
    )


async def run(config: NodeConfig, *, observe: bool) -> int:
    """The agent's life. Returns the exit code: 0 stopped, 1 driver gone, 2 cannot work as set up."""
    life = Life()
    life.end_on_signals()
    try:
        # First the link, whose settings may be wrong; it brings messages only once the agent serves it.
        link = _link(config, lambda *message: agent.on_message(*message))  # noqa: PLW0108  no agent yet
        agent = Agent(config, await _open_driver(config), observe=observe)
        await agent.serve(link, life)
    except asyncio.CancelledError:
        code, why = 0, "stopped"
    except DriverGoneError as error:
        code, why = 1, f"the driver is gone, a new process must open it: {error}"
    except NotPermittedError as error:
        code, why = 2, f"{error}; or only watch with --observe"
    except (MqttConfigError, ConfigError) as error:
        code, why = 2, f"node.yaml: mqtt: {error}"
    notify("STOPPING=1")
    log.log(
        logging.INFO if code == 0 else logging.ERROR,
        "agent ends, limits stay as they are",
        why=why,
        code=code,
    )
    return code


def main(path: Path, observe: bool) -> int:
    """Command `powerblock agent`. Returns 2 for a bad configuration; else the process ends, see `run`."""
    try:
        config = load_node(path)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return run_and_leave(run(config, observe=observe))
