"""One node: its GPUs, its lease, and what must be read, written and told. No task, no thread of its own.

`rounds` asks an agent what it wants read and written, has it done in the lanes, and brings the results back;
so one process serves one host, or a hundred nodes of a farm, with the same code. Calls are keyed by the NVML
index of the GPU, since the nodes of a farm share the lanes.

Order of things where a GPU is touched: what was found goes to disk, then limits (decreases first), then
clocks, then profiles and presets. A disk that does not answer delays that by a second and no more.
"""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import structlog

from controller.agent import found_limits, telling
from controller.agent.config import NodeConfig
from controller.agent.found_limits import ceiling_line, limit_line, settings_line
from controller.agent.gpu_view import NEVER_AGAIN_S, GpuView
from controller.agent.hearing import Ear
from controller.agent.lease import Ceiling, Lease, LeaseSettings, Mode, Write, beat, due, due_clocks
from controller.clock import now_s, now_utc_s
from protocols import agent_link
from protocols.nvml import (
    DRIVER_GONE,
    NOT_SUPPORTED,
    Nvml,
    NvmlFault,
    Profiles,
    Smoothing,
    suspected_ceiling_mhz,
)

FACTS_PERIOD_S: Final = 10.0
FACTS_LOOK_S: Final = 1.0  # how soon a change of facts is told
SLOW_PERIOD_S: Final = 10.0  # power smoothing of a GPU is read so often: three calls each
SET_UP_AGAIN_S: Final = 60.0  # profiles that were refused
LEFT: Final = Ceiling(1)  # a ceiling of an earlier agent: how low, nobody knows, so nothing goes below

log = structlog.get_logger(__name__)

Calls = dict[int, Callable[[], Any]]
Results = Mapping[int, Any]


class DriverGoneError(RuntimeError):
    """Every call says that the driver is no longer there; only a new process gets a new one."""


class Agent:
    """One node. `driver` is open; `observe` means that nothing is ever written."""

    def __init__(self, config: NodeConfig, driver: Nvml, *, observe: bool) -> None:
        self.config = config
        self.views = [GpuView() for _ in range(driver.gpu_count)]
        self.beaten_at_s = now_s()
        self.swept_at_s = now_s()  # begin of the newest complete sweep
        self.on_change: Callable[[], None] = lambda: None
        self._driver = driver
        self._boot = secrets.token_hex(8)
        self._settings = LeaseSettings(
            fallback_w=config.fallback_limits_w(driver.gpu_count),
            fallback_ramp_w_per_s=config.fallback_ramp_w_per_s,
            lease_max_s=config.lease_max_s,
            waiting_max_s=config.waiting_max_s,
        )
        self._ear = Ear(config.node, self._settings, lambda: self.on_change(), observe=observe)  # noqa: PLW0108
        self._keys = range(driver.first, driver.first + driver.gpu_count)
        self._reads: Calls = {key: partial(driver.read, gpu) for gpu, key in enumerate(self._keys)}
        self._modules: tuple[tuple[int, ...], ...] = ()
        self._recorded: set[str] = set()  # UUIDs whose found limit is on disk
        self._ceilings_recorded: set[str] = set()
        self._left: dict[str, found_limits.Found] = {} if observe else self._what_was_left()
        self._applied: Lease = self.lease  # what the writes under way are for
        self._asked_w: dict[int, float] = {}  # of the writes under way, by NVML index
        self._asked_mhz: dict[int, int] = {}
        self._acknowledged = (0, 0)  # newest order written and read back
        self._obeyed_in_s = -1.0  # from its arrival to its last limit read back
        self._told: list[object] = []
        self._facts_at_s = self._facts_look_at_s = 0.0
        self._slow_at_s = 0.0
        self._slow_next = 0
        self._logged_faults: dict[int, str] = {}

    @property
    def lease(self) -> Lease:
        return self._ear.lease

    def on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        """Something came. Decides at once, has it written later."""
        self._ear.on_message(topic, payload, retained)

    # ---- reading ----

    def reads(self) -> Calls:
        return self._reads

    def swept(self, results: Results, began_at_s: float) -> None:
        """Take in a sweep of all GPUs. Raises DriverGoneError."""
        gone = True
        for key, view in zip(self._keys, self.views, strict=True):
            result = results[key]
            before = view.device
            view.swept(result, began_at_s)
            if view.device is not before:
                self._met(view)
            gone = gone and isinstance(result, NvmlFault) and result.code in DRIVER_GONE
        self.swept_at_s = began_at_s
        if gone:
            raise DriverGoneError(self.views[0].read_fault)

    def slow_reads(self, now: float) -> Calls:
        """What is read seldom, of one GPU at a time; mostly nothing."""
        if now < self._slow_at_s:
            return {}
        self._slow_at_s = now + SLOW_PERIOD_S / len(self.views)
        self._slow_next = (self._slow_next + 1) % len(self.views)
        view = self.views[self._slow_next]
        if view.smoothing is None or view.reading is None:
            return {}
        return {self._keys[self._slow_next]: partial(self._driver.read_smoothing, self._slow_next)}

    def slow_came(self, results: Results) -> None:
        for key, result in results.items():
            if isinstance(result, Smoothing):
                self.views[key - self._keys.start].smoothing = result

    # ---- time ----

    def beat(self, now: float) -> None:
        """Let time pass for the lease; asks for writes where something is due."""
        self.beaten_at_s = now
        before = self.lease
        found = [view.found() for view in self.views]
        found_w = [None if seen is None else seen.limit_w for seen in found]
        after = self._ear.lease = beat(self._settings, before, found_w, now)
        if after.mode is not before.mode:
            self._acknowledged = (0, 0)
            log.warning(
                "mode",
                node=self.config.node,
                was=before.mode,
                now=after.mode,
                why="no order with a valid lease",
            )
        unsettled = {write.gpu for write in due(after, found, self._modules)}
        unlocked = {write.gpu for write in due_clocks(after, self._ceilings())}
        for gpu, view in enumerate(self.views):
            if view.write_fault and gpu not in unsettled and found[gpu] is not None:
                view.settle()
            if view.clock_fault and gpu not in unlocked:
                view.clock_fault = ""
        if unsettled or unlocked or self._to_record() or self._to_set_up(now):
            self.on_change()

    # ---- telling ----

    def report(self, now: float) -> bytes | None:
        """None: no GPU was ever readable; silence is what the controller counts worst."""
        gpus = telling.described(self.views, now)
        if not gpus:
            return None
        ear, lease = self._ear, self.lease
        epoch, seq = self._acknowledged if lease.mode is Mode.LEASED else (0, 0)
        table = ear.table
        report = agent_link.Report(
            node=self.config.node,
            boot=self._boot,
            at_s=self.swept_at_s,
            echo_sent_at_s=ear.heard_sent_at_s,
            echo_age_s=self.swept_at_s - ear.heard_at_s if ear.heard_sent_at_s >= 0 else 0.0,
            epoch=epoch,
            seq=seq,
            mode=lease.mode,
            gpus=gpus,
            table_epoch=0 if table is None else table.epoch,
            table=0 if table is None else table.version,
            obeyed_in_s=self._obeyed_in_s,
            refused={refusal.name.lower(): count for refusal, count in lease.refused.items()},
            rivals_s=-1.0 if lease.rival_at_s < 0 else max(0.0, now - lease.rival_at_s),
        )
        return agent_link.encode(report)

    def facts(self, now: float) -> bytes | None:
        """None: they were told a moment ago, and have not changed."""
        if now < self._facts_look_at_s:
            return None
        self._facts_look_at_s = now + FACTS_LOOK_S
        present: list[object] = [(view.device, view.smoothing, view.profiles) for view in self.views]
        if now < self._facts_at_s and present == self._told:
            return None
        self._told, self._facts_at_s = present, now + FACTS_PERIOD_S
        return agent_link.encode(
            telling.facts(self.config, self._driver.driver_version, self._boot, self.views, now)
        )

    def log_faults(self) -> int:
        """One line when a fault comes, one when it goes; its seconds and watts are not news.

        Returns how many GPUs have one.
        """
        faulty = 0
        for gpu, view in enumerate(self.views):
            fault, was = view.fault(), self._logged_faults.get(gpu, "")
            faulty += bool(fault)
            if bool(fault) == bool(was):
                continue
            self._logged_faults[gpu] = fault
            if fault:
                log.warning("gpu fault", node=self.config.node, gpu=gpu, fault=fault)
            else:
                log.info("gpu well again", node=self.config.node, gpu=gpu)
        return faulty

    # ---- writing ----

    def record(self) -> Callable[[], None] | None:
        """Puts on disk what was found and will be changed; None: all is there already. Raises OSError."""
        lines = self._to_record()
        if not lines:
            return None
        self._recorded |= {line["uuid"] for line in lines if "limit_w" in line}
        for line in lines:
            if "ceiling_mhz" in line:
                self._ceilings_recorded.add(line["uuid"])
                self._suspect(line["gpu"], self.views[line["gpu"]])
        return self._recorder(lines)

    def limit_writes(self, now: float) -> Calls:
        """Limits that are due, decreases first; of a module only one."""
        self._applied = self.lease
        self._asked_w.clear()
        writes: Calls = {}
        modules_met: set[tuple[int, ...]] = set()
        for write in due(self._applied, [view.found() for view in self.views], self._modules):
            view = self.views[write.gpu]
            if not view.may_write(write.limit_w, now):
                continue
            module = next((members for members in self._modules if write.gpu in members), None)
            if module is not None:
                if module in modules_met:
                    continue
                modules_met.add(module)
            view.about_to_write(write.limit_w, now)
            key = self._keys[write.gpu]
            self._asked_w[key] = write.limit_w
            writes[key] = partial(_write_and_read_back, self._driver, write, module)
        return writes

    def limits_wrote(self, results: Results, now: float) -> None:
        for key, asked_w in self._asked_w.items():
            result = results[key]
            if isinstance(result, NvmlFault):
                self.views[key - self._keys.start].wrote(asked_w, result, now)
                continue
            written_w, held_w = result
            for gpu, limit_w in held_w.items():
                self.views[gpu].wrote(asked_w, (written_w, limit_w), now)

    def clock_writes(self, now: float) -> Calls:
        """Ceilings that are due. No ceiling goes above the site's own lock, and release brings that back."""
        self._asked_mhz.clear()
        writes: Calls = {}
        for gpu, ceiling_mhz in due_clocks(self._applied, self._ceilings()):
            view = self.views[gpu]
            if now < view.clock_again_at_s or view.read_fault:
                continue
            key = self._keys[gpu]
            self._asked_mhz[key] = ceiling_mhz
            writes[key] = partial(_write_clocks, self._driver, gpu, ceiling_mhz, self.config.clock_lock_mhz)
        return writes

    def clocks_wrote(self, results: Results, now: float) -> None:
        for key, asked_mhz in self._asked_mhz.items():
            self.views[key - self._keys.start].ceiling_wrote(asked_mhz, results[key], now)

    def obeyed(self, now: float) -> bool:
        """All that was due is written or has a fault. True: that is news for a controller in force."""
        if self._applied.mode is not Mode.LEASED or self.lease.mode is not Mode.LEASED:
            return False  # the lease may have lapsed while the driver was busy
        is_new = self._acknowledged != self._applied.newest
        if is_new and self._applied.newest == self.lease.newest:
            self._obeyed_in_s = now - self._ear.newest_at_s
        self._acknowledged = self._applied.newest
        return is_new or bool(self._asked_w or self._asked_mhz)

    def permission_probe(self) -> Calls:
        """Writes back the limit of one healthy GPU."""
        for key, view in zip(self._keys, self.views, strict=True):
            if view.reading is not None and self.lease.mode is not Mode.OBSERVE:
                return {key: partial(self._driver.probe_permission, key - self._keys.start)}
        return {}

    # ---- profiles and presets ----

    def surveys(self, now: float) -> Calls:
        """Reads what profiles were requested before ours, where ours are to be requested."""
        return {self._keys[gpu]: partial(self._driver.read_profiles, gpu) for gpu in self._to_set_up(now)}

    def surveyed(self, results: Results, now: float) -> Callable[[], None]:
        """Puts on disk what was found; a GPU that did not answer is asked again later. Raises OSError."""
        lines = []
        for key, result in results.items():
            view = self.views[key - self._keys.start]
            if isinstance(result, NvmlFault) or view.device is None:
                view.set_up_again_at_s = now + SET_UP_AGAIN_S
                continue
            view.profiles = result
            preset = None if view.smoothing is None else view.smoothing.preset
            lines.append(settings_line(view.device, result, self.config.profiles, preset))
        return self._recorder(lines)

    def set_ups(self, now: float) -> Calls:
        return {
            self._keys[gpu]: partial(_set_up, self._driver, gpu, self.config, self.views[gpu].profiles)
            for gpu in self._to_set_up(now)
        }

    def set_up(self, results: Results, now: float) -> None:
        for key, result in results.items():
            gpu = key - self._keys.start
            view = self.views[gpu]
            view.set_up_in = view.generation
            if not isinstance(result, NvmlFault):
                view.profiles, view.smoothing = result
                continue
            again_s = NEVER_AGAIN_S if result.code == NOT_SUPPORTED else SET_UP_AGAIN_S
            view.set_up_in, view.set_up_again_at_s = -1, now + again_s
            log.warning("profiles or preset not set", node=self.config.node, gpu=gpu, why=result.sentence)

    # ---- how ----

    def _met(self, view: GpuView) -> None:
        """A GPU is seen for the first time, or after it began anew."""
        device = view.device
        assert device is not None
        self._modules = telling.modules(self.config, self.views)
        if device.uuid in self._left and view.ceiling.asked_mhz is None:
            view.ceiling = LEFT
        if device.persistence is False and view.generation == 0:
            log.warning(
                "persistence mode is off",
                node=self.config.node,
                gpu=device.index,
                effect="limits are lost when no program holds the driver; this agent does while it runs",
                remedy="enable nvidia-persistenced",
            )

    def _ceilings(self) -> list[Ceiling]:
        """A ceiling that an earlier agent left is sure to be there or gone; it is never set anew."""
        return [LEFT if view.ceiling.asked_mhz == LEFT.asked_mhz else view.ceiling for view in self.views]

    def _to_record(self) -> list[dict[str, Any]]:
        if self.lease.mode is Mode.OBSERVE:
            return []
        lines = [
            limit_line(view.reading)
            for view in self.views
            if view.reading is not None and view.reading.device.uuid not in self._recorded
        ]
        for gpu, ceiling_mhz in self._ceilings_to_come().items():
            device = self.views[gpu].device
            if device is not None and device.uuid not in self._ceilings_recorded:
                lines.append(ceiling_line(device, ceiling_mhz))
        return lines

    def _ceilings_to_come(self) -> dict[int, int]:
        """Ceilings that are held, or that a table has in store: an emergency does not wait for a disk."""
        table = self._ear.table
        levels = () if table is None else table.levels
        return {
            gpu: ceiling_mhz
            for clocks_mhz in (*(level.clocks_mhz for level in levels), self.lease.held_mhz)
            for gpu, ceiling_mhz in enumerate(clocks_mhz)
            if ceiling_mhz
        }

    def _suspect(self, gpu: int, view: GpuView) -> None:
        suspected_mhz = suspected_ceiling_mhz(view.early)
        if suspected_mhz is not None and self.config.clock_lock_mhz is None:
            log.warning(
                "clocks seem to be locked by the site",
                node=self.config.node,
                gpu=gpu,
                at_most_mhz=suspected_mhz,
                remedy="name the lock in node.yaml (clock_lock_mhz), or it is gone with our first ceiling",
            )

    def _to_set_up(self, now: float) -> list[int]:
        if not (self.config.profiles or self.config.smoothing) or self.lease.mode is Mode.OBSERVE:
            return []
        return [
            gpu
            for gpu, view in enumerate(self.views)
            if view.reading is not None
            and view.set_up_in != view.generation
            and now >= view.set_up_again_at_s
        ]

    def _recorder(self, lines: list[dict[str, Any]]) -> Callable[[], None]:
        return partial(
            found_limits.record, self.config.state_dir, lines, boot=self._boot, now_utc_s=now_utc_s()
        )

    def _what_was_left(self) -> dict[str, found_limits.Found]:
        """GPUs that an agent before this one has set a ceiling on."""
        try:
            found = found_limits.read(self.config.state_dir)
        except OSError as error:
            log.warning("record of found limits not readable", node=self.config.node, why=repr(error))
            return {}
        return {uuid: one for uuid, one in found.items() if one.ceiling_mhz}


def _write_and_read_back(
    driver: Nvml, write: Write, module: tuple[int, ...] | None
) -> tuple[float, dict[int, float]]:
    """Returns the limit written, or kept, after clamping, and what the driver shows then, W by GPU."""
    ask = driver.lower_limit_w if write.lower_only else driver.set_limit_w
    written_w = ask(write.gpu, write.limit_w)
    return written_w, {gpu: driver.read_limit_w(gpu) for gpu in module or (write.gpu,)}


def _write_clocks(driver: Nvml, gpu: int, ceiling_mhz: int, site_mhz: tuple[int, int] | None) -> int:
    """Returns the highest clock that is allowed then, MHz."""
    if site_mhz is None:
        return driver.set_clock_ceiling(gpu, ceiling_mhz or None)
    if ceiling_mhz:
        return driver.set_clock_ceiling(gpu, min(ceiling_mhz, site_mhz[1]))
    driver.set_clock_lock(gpu, *site_mhz)
    return site_mhz[1]


def _set_up(
    driver: Nvml, gpu: int, config: NodeConfig, found: Profiles | None
) -> tuple[Profiles | None, Smoothing | None]:
    """Request the profiles and activate the preset of node.yaml; returns what is in force then."""
    missing = [number for number in config.profiles if found is None or number not in found.requested]
    profiles = driver.request_profiles(gpu, missing) if missing else found
    smoothing = driver.read_smoothing(gpu)
    preset = None if config.smoothing is None else config.smoothing.preset
    if preset is not None and (smoothing is None or smoothing.preset != preset):
        driver.activate_preset(gpu, preset)
        smoothing = driver.read_smoothing(gpu)
    return profiles, smoothing
