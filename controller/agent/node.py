"""One node: its GPUs, its lease, and what must be read, written and told. No task, no thread of its own.

`rounds` asks an agent what it wants read and written, has it done in the lanes, and brings the results back;
so one process serves one host, or a hundred nodes of a farm, with the same code. Calls are keyed by the NVML
index of the GPU, since the nodes of a farm share the lanes.

Order of things where a GPU is touched: what was found goes to disk, then limits (decreases first), then
ceilings to disk and to the clocks, then profiles and presets. A disk that does not answer delays each of them
by a second and no more.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog

from controller.agent import found_limits, telling, waiting
from controller.agent.config import NodeConfig
from controller.agent.found_limits import ceiling_line, limit_line, settings_line
from controller.agent.gpu_view import NEVER_AGAIN_S, NEVER_OURS, GpuView
from controller.agent.hearing import Ear
from controller.agent.lease import Ceiling, Lease, LeaseSettings, Mode, Write, beat, due, due_clocks
from controller.agent.shares import WHOLE, Modules, Range, Share, module_with, modules_of, shares
from controller.clock import now_s
from protocols import agent_link
from protocols.nvml import (
    DRIVER_GONE,
    NOT_SUPPORTED,
    Device,
    Nvml,
    NvmlFault,
    Profiles,
    Smoothing,
    suspected_ceiling_mhz,
)

FACTS_PERIOD_S: Final = 10.0
FACTS_LOOK_S: Final = 1.0  # how soon a change of facts is told
SLOW_PERIOD_S: Final = 10.0  # a GPU is described anew so often: some five calls each
SET_UP_AGAIN_S: Final = 60.0  # profiles that were refused
APART_AFTER_S: Final = 2.0  # GPUs of one module show one limit in every sweep; only a slow driver might lag

# What is wrong with `gpus.per_module`.
UNSAID: Final = (
    "the driver limits it by its module, and whether GPUs share one it does not say: give `gpus.per_module`"
    " in node.yaml (1: each has its own)"
)
APART: Final = (
    "shows another limit than the GPUs that node.yaml has in one module with it, so each is limited alone:"
    " correct `gpus.per_module`"
)

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
        self._waits = not observe
        self._ear = Ear(
            config.node,
            self._settings,
            lambda: self.on_change(),  # noqa: PLW0108
            observe=observe,
            waits_from_s=waiting.since_s(config.state_dir, now_s()) if self._waits else None,
        )
        self._keys = range(driver.first, driver.first + driver.gpu_count)
        self._reads: Calls = {key: partial(driver.read, gpu) for gpu, key in enumerate(self._keys)}
        self._modules: Modules = ()
        self._apart: set[int] = set()  # GPUs whose modules are not as in node.yaml
        self._differ_since_s: dict[tuple[int, ...], float] = {}  # modules whose GPUs show several limits
        self._record = found_limits.Record(config.state_dir, self._boot)
        # UUIDs whose found limit, or that of its module, is in the record, be it not on disk yet
        self._recorded: set[tuple[str, bool]] = set()
        self._recorded_mhz: dict[str, int] = {} if observe else self._what_was_left()  # ceilings, by UUID
        self._suspected: set[str] = set()  # UUIDs that were looked at for a lock of the site
        self._applied: Lease = self.lease  # what the writes under way are for
        self._applied_came_at_s = 0.0
        self._asked_w: dict[int, float] = {}  # of the writes under way, by NVML index
        self._concerned: dict[int, tuple[int, ...]] = {}  # and which GPUs hold that limit then
        self._asked_mhz: dict[int, int] = {}
        self._acknowledged = (0, 0)  # newest order written and read back
        self._acknowledged_came_at_s = 0.0
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

    def sensor_reads(self) -> Calls:
        """Its powers with the driver's time stamps, for whoever looks how often they are renewed."""
        return {key: partial(self._driver.read_sensors, gpu) for gpu, key in enumerate(self._keys)}

    def swept(self, results: Results, began_at_s: float) -> None:
        """Take in a sweep of all GPUs. Raises DriverGoneError."""
        gone = True
        for key, view in zip(self._keys, self.views, strict=True):
            result = results[key]
            before = view.device
            view.swept(result, began_at_s)
            if view.device is not before:
                self._met(view, before)
            gone = gone and isinstance(result, NvmlFault) and result.code in DRIVER_GONE
        self.swept_at_s = began_at_s
        if gone:
            raise DriverGoneError(self.views[0].read_fault)

    def slow_reads(self, now: float) -> Calls:
        """What is read seldom, of one GPU at a time; mostly nothing. Comes with the sweep after it."""
        if now < self._slow_at_s:
            return {}
        self._slow_at_s = now + SLOW_PERIOD_S / len(self.views)
        self._slow_next = (self._slow_next + 1) % len(self.views)
        view = self.views[self._slow_next]
        if view.reading is None:
            return {}
        return {self._keys[self._slow_next]: partial(self._driver.describe, self._slow_next)}

    # ---- time ----

    def beat(self, now: float) -> None:
        """Let time pass for the lease; asks for writes where something is due."""
        self.beaten_at_s = now
        before = self.lease
        self._look_for_strays(now)
        found = [view.found() for view in self.views]
        found_w = [
            None if seen is None else share.held_ratio * seen.limit_w
            for seen, share in zip(found, self._shares(before), strict=True)
        ]
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
        unlocked = {write.gpu for write in due_clocks(after, [view.ceiling for view in self.views])}
        for gpu, view in enumerate(self.views):
            if view.write_fault and gpu not in unsettled and found[gpu] is not None:
                view.settle()
            if view.clock_fault and gpu not in unlocked:
                view.clock_fault = ""
        to_record = self._to_record() or self._unrecorded_mhz() or self._record.is_due(now)
        if unsettled or unlocked or to_record or self._to_set_up(now):
            self.on_change()

    # ---- telling ----

    def report(self, now: float) -> bytes | None:
        """None: no GPU was ever readable; silence is what the controller counts worst."""
        gpus = telling.described(self.views, now, self._shares(self._applied), self._unsure())
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
            echo_epoch=ear.heard_epoch,
            epoch=epoch,
            seq=seq,
            mode=lease.mode,
            gpus=gpus,
            table_epoch=0 if table is None else table.epoch,
            table=0 if table is None else table.version,
            came_ago_s=now - self._acknowledged_came_at_s if seq else -1.0,
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
        present.append(self._modules)
        if now < self._facts_at_s and present == self._told:
            return None
        self._told, self._facts_at_s = present, now + FACTS_PERIOD_S
        return agent_link.encode(
            telling.facts(
                self.config, self._driver.driver_version, self._boot, self.views, self._modules, now
            )
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
        """Puts on disk what was found and will be changed; None: it has all, or cannot be waited for.

        Raises OSError.
        """
        lines = self._to_record()
        self._record.add(lines)
        self._recorded |= {(line["uuid"], line["module"]) for line in lines}
        return self._record.write if self._record.is_due(now_s()) else None

    def end_waiting(self) -> None:
        """Once, after an order was obeyed. In a thread of its own: a disk that hangs holds nothing up."""
        if self._waits and self._acknowledged != (0, 0):
            self._waits = False
            threading.Thread(target=waiting.end, args=(self.config.state_dir,), daemon=True).start()

    def limit_writes(self, now: float) -> Calls:
        """Limits that are due, decreases first; of a module one, the sum of what its GPUs should hold."""
        self._applied, self._applied_came_at_s = self.lease, self._ear.newest_at_s
        self._asked_w.clear()
        self._concerned.clear()
        writes: Calls = {}
        found = [view.found() for view in self.views]
        for members, write in self._one_of_each(due(self._applied, found, self._modules)).items():
            view = self.views[write.gpu]
            if not view.may_write(write.limit_w, now):
                continue
            view.about_to_write(write.limit_w, now)
            key = self._keys[write.gpu]
            self._asked_w[key], self._concerned[key] = write.limit_w, members
            writes[key] = partial(_write, self._driver, write)
        return writes

    def _one_of_each(self, writes: Sequence[Write]) -> dict[tuple[int, ...], Write]:
        """One write by the GPUs that hold its limit then, in the order given: by one that takes writes."""
        chosen: dict[tuple[int, ...], Write] = {}
        for write in writes:
            members = module_with(self._modules, write.gpu)
            first = chosen.setdefault(members, write)
            if self.views[first.gpu].write_fault and not self.views[write.gpu].write_fault:
                chosen[members] = write
        return chosen

    def read_backs(self) -> Calls:
        """After the writes: what the driver shows now, of all GPUs concerned. No write waits for it."""
        return {
            self._keys[gpu]: partial(self._driver.read_limit_w, gpu)
            for members in self._concerned.values()
            for gpu in members
        }

    def limits_wrote(self, written: Results, found: Results, now: float) -> None:
        """`written`: the limits after clamping, or faults; `found`: limits by GPU as read back, or faults."""
        for key, asked_w in self._asked_w.items():
            fault = next((one for one in (written[key], found[key]) if isinstance(one, NvmlFault)), None)
            for gpu in self._concerned[key]:
                view, shown = self.views[gpu], found[self._keys[gpu]]
                if self._keys[gpu] == key:
                    view.wrote(asked_w, (written[key], shown) if fault is None else fault, now)
                elif fault is None and not isinstance(shown, NvmlFault):
                    view.wrote(asked_w, (written[key], shown), now)
                else:
                    view.was_concerned(now)

    def clock_writes(self, now: float) -> Calls:
        """Ceilings that are due. No ceiling goes above the site's own lock, and release brings that back."""
        self._asked_mhz.clear()
        writes: Calls = {}
        for gpu, ceiling_mhz in due_clocks(self._applied, [view.ceiling for view in self.views]):
            view = self.views[gpu]
            if now < view.clock_again_at_s or view.read_fault:
                continue
            key = self._keys[gpu]
            self._asked_mhz[key] = ceiling_mhz
            writes[key] = partial(_write_clocks, self._driver, gpu, ceiling_mhz, self.config.clock_lock_mhz)
        return writes

    def record_ceilings(self) -> Callable[[], None] | None:
        """Puts on disk which ceilings are about to be set, and which are ours no more; None: it has them.

        Only what is really set: whoever comes after us takes away what stands there, whosever it is by then.
        Raises OSError.
        """
        self._suspect_locks()
        unrecorded_mhz = self._unrecorded_mhz()
        if not unrecorded_mhz:
            return None
        self._recorded_mhz |= {device.uuid: mhz for device, mhz in unrecorded_mhz}
        self._record.add([ceiling_line(device, mhz) for device, mhz in unrecorded_mhz])
        return self._record.write if self._record.is_due(now_s()) else None

    def clocks_wrote(self, results: Results, now: float) -> None:
        for key, asked_mhz in self._asked_mhz.items():
            self.views[key - self._keys.start].ceiling_wrote(asked_mhz, results[key], now)

    def obeyed(self, now: float) -> bool:
        """All that was due is written or has a fault. True: that is news for a controller in force."""
        if self._applied.mode is not Mode.LEASED or self.lease.mode is not Mode.LEASED:
            return False  # the lease may have lapsed while the driver was busy
        is_new = self._acknowledged != self._applied.newest
        if is_new:
            self._acknowledged_came_at_s = self._applied_came_at_s
            self._obeyed_in_s = now - self._applied_came_at_s
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
        for key, result in results.items():
            view = self.views[key - self._keys.start]
            if isinstance(result, NvmlFault) or view.device is None:
                view.set_up_again_at_s = now + SET_UP_AGAIN_S
                continue
            view.profiles = result
            preset = None if view.smoothing is None else view.smoothing.preset
            self._record.add([settings_line(view.device, result, self.config.profiles, preset)])
        return self._record.write

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

    def _met(self, view: GpuView, before: Device | None) -> None:
        """A GPU is seen for the first time, after it began anew, or described anew."""
        device = view.device
        assert device is not None
        self._group()
        if before is None or before.uuid != device.uuid:
            left_mhz = self._recorded_mhz.get(device.uuid, 0)
            view.ceiling = Ceiling(left_mhz, sure=False) if left_mhz else NEVER_OURS
        if device.persistence is False and (before is None or before.persistence is not False):
            log.warning(
                "persistence mode is off",
                node=self.config.node,
                gpu=device.index,
                effect="limits are lost when no program holds the driver; this agent does while it runs",
                remedy="enable nvidia-persistenced",
            )

    def _group(self) -> None:
        """Who shares a limit with whom, as far as the driver and node.yaml tell it."""
        by_module = [view.device is not None and view.device.module for view in self.views]
        per_module = None if self.config.gpus is None else self.config.gpus.per_module
        self._modules = modules_of(by_module, per_module or 1, self._apart)
        for gpu, view in enumerate(self.views):
            unsaid = by_module[gpu] and per_module is None and len(self.views) > 1
            view.module_fault = APART if gpu in self._apart else UNSAID if unsaid else ""
            shares_one = len(module_with(self._modules, gpu)) > 1
            if shares_one and view.device is not None and not view.device.module:
                self._driver.limit_by_module(gpu)  # another GPU of its module has been found to need that

    def _look_for_strays(self, now: float) -> None:
        """GPUs that show several limits for long are not of one module: its sum would be each one's."""
        for members in self._modules:
            limits_w = [self.views[gpu].limit_w for gpu in members]
            if len({round(limit_w * 1000) for limit_w in limits_w if limit_w is not None}) < 2:
                self._differ_since_s.pop(members, None)
            elif now - self._differ_since_s.setdefault(members, now) >= APART_AFTER_S:
                log.error("not of one module", node=self.config.node, gpus=members, limits_w=limits_w)
                self._apart.update(members)
        if any(gpu in self._apart for members in self._modules if len(members) > 1 for gpu in members):
            self._group()

    def _shares(self, lease: Lease) -> tuple[Share, ...]:
        """What of the driver's numbers is each GPU's."""
        if not self._modules:
            return (WHOLE,) * len(self.views)
        devices = [view.device for view in self.views]
        allowed = [None if one is None else Range(one.min_w, one.max_w) for one in devices]
        return shares(lease.held_w, allowed, self._modules)

    def _unsure(self) -> frozenset[int]:
        """GPUs of modules in which a write hangs: it may change what the others show, at any moment."""
        return frozenset(
            gpu
            for members in self._modules
            if any(self.views[one].hangs for one in members)
            for gpu in members
        )

    def _to_record(self) -> list[dict[str, Any]]:
        if self.lease.mode is Mode.OBSERVE:
            return []
        return [
            limit_line(view.reading)
            for view in self.views
            if view.reading is not None
            and (view.reading.device.uuid, view.reading.device.module) not in self._recorded
        ]

    def _unrecorded_mhz(self) -> list[tuple[Device, int]]:
        """Ceilings that are being set or may be in force, 0 for those that are not, where the record differs.

        It says whether there is one: how low it is changes with every beat, which no disk need follow.
        After a write that failed nobody knows what holds: the record keeps what was asked.
        """
        found: list[tuple[Device, int]] = []
        for key, view in zip(self._keys, self.views, strict=True):
            asked_mhz, device = self._asked_mhz.get(key, 0), view.device
            if device is None or (view.clock_fault and not asked_mhz):
                continue
            mhz = asked_mhz or view.ceiling.asked_mhz or 0
            if bool(mhz) != bool(self._recorded_mhz.get(device.uuid, 0)):
                found.append((device, mhz))
        return found

    def _suspect_locks(self) -> None:
        """A lock of the site goes with our first ceiling: say so when one is held or in store in a table."""
        levels = () if self._ear.table is None else self._ear.table.levels
        for clocks_mhz in (*(level.clocks_mhz for level in levels), self.lease.held_mhz):
            for view, ceiling_mhz in zip(self.views, clocks_mhz, strict=False):
                if ceiling_mhz and view.device is not None and view.device.uuid not in self._suspected:
                    self._suspected.add(view.device.uuid)
                    self._suspect(view.device.index, view)

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

    def _what_was_left(self) -> dict[str, int]:
        """Ceilings that an agent before this one has set and not taken away, MHz by UUID."""
        try:
            found = found_limits.read(self.config.state_dir)
        except OSError as error:
            log.warning("record of found limits not readable", node=self.config.node, why=repr(error))
            return {}
        return {uuid: one.ceiling_mhz for uuid, one in found.items()}


def _write(driver: Nvml, write: Write) -> float:
    """Returns the limit written, or kept, after clamping, W."""
    ask = driver.lower_limit_w if write.lower_only else driver.set_limit_w
    return ask(write.gpu, write.limit_w)


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
