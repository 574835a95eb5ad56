"""The rig: one scenario, the simulated facility around it, and the device under test as child processes.

The device under test is started as an operator would start it, `powerblock run block.yaml` and, where a
scenario has SCADA, `powerblock serve block.yaml` on the edge host, `powerblock agent node.yaml` on each GPU
host, and is never imported. It meets the facility at the wire only: Modbus, OPC UA, MQTT, HTTP, and an NVML
library whose GPUs are the plant's.

Order of things: devices serve, broker and children start, everything warms up, time 0, the time line plays,
children are ended whatever happened, and the report is written from what was recorded.
"""

import asyncio
import gc
import heapq
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

from firmware_sim import bench_config, emergency, plot, recorder
from firmware_sim.agreement import Outage
from firmware_sim.bench_config import Outside
from firmware_sim.broken_link import BrokenLink
from firmware_sim.child import Child
from firmware_sim.emergency import Shed
from firmware_sim.facility import Facility, Heal, Sample
from firmware_sim.gpu_firmware import build_library, environment
from firmware_sim.grid_operator import GridEvent
from firmware_sim.grid_side import GridSide
from firmware_sim.lifetime import RigError, end_tasks
from firmware_sim.recorder import Beat, Mark, beat_of
from firmware_sim.scada_plan import USER, ServedAt
from firmware_sim.scada_side import Line, ScadaSide
from firmware_sim.scenario import Contact, Event, Fault, GridFrequency, Scenario, rack_names
from firmware_sim.scenario_block import Shed as ShedSpec
from firmware_sim.scenario_facility import Command, Write
from firmware_sim.usage import Used, used_by
from firmware_sim.verdict import (
    RIG_LOST,
    RIG_LOST_MAX_S,
    Contract,
    Floats,
    Request,
    Verdict,
    judge,
    over_budget_ratio,
)

BASELINE_S: Final = 5.0  # what "25 % less" is less than
VIEW_PERIOD_S: Final = 0.25
AT_WORK_S: Final = 2.0  # the budget has stood for so long: GPUs have followed long before
AT_WORK_RATIO: Final = 0.01  # measured cooling capacity wanders by less
AT_WORK_MAX_S: Final = 40.0
CHILD_CHECK_S: Final = 0.5

PANEL_MAX_S: Final = 20.0  # the panel's command is a Python that has to start
EXCESS_SHOWN_S: Final = 1.0  # a GPU that is above its limit for less is on its way down
EXCESSES_MAX: Final = 64

RIVALS: Final = {"twice": (), "usurped": ("--take-over",)}  # how a second controller is started
SPEECHLESS: Final = frozenset({"silent", "refusing", "nan"})

Act = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class View:
    """What there is to see at one moment. `t_s` is negative during the warm-up."""

    t_s: float
    sample: Sample
    status: dict[str, Any]
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    alarms: tuple[str, ...]
    report_dir: Path
    excesses: tuple[str, ...] = ()  # GPUs that drew more than their limit, in words, the worst first


class Rig:
    """One run of one scenario. `powerblock`: command of the device under test; None: facility alone."""

    def __init__(self, scenario: Scenario, report_dir: Path, powerblock: Path | None) -> None:
        self.scenario = scenario
        self.report_dir = report_dir
        self.work_dir = report_dir / "work"
        shutil.rmtree(self.work_dir, ignore_errors=True)  # yesterday's state must not steer today's run
        self.work_dir.mkdir(parents=True)
        self.marks: list[Mark] = []
        self.requests: dict[str, Request] = {}
        self.sheds: dict[str, Shed] = {}  # by who calls
        self.outages: list[Outage] = []
        self._powerblock = powerblock
        self._zero_s = scenario.warm_up_s  # plant time of the time line's 0
        self._agenda: list[tuple[float, int, Act]] = []
        self._order = count()
        self._intruders = 0  # second controllers, started by mistake, that were let in
        self._used: dict[str, Used] = {}  # at time 0
        self._refused: list[str] = []  # by the panel
        self._at_panel: set[str] = set()  # calls that were made there

    async def run(self, watch: Callable[[View], None]) -> Outcome:
        """Play the scenario and judge it. Raises RigError when it cannot be played."""
        async with self.facility() as facility:
            await self._start_dut()
            self._plan()
            background = [
                asyncio.create_task(self._show(watch), name="live view"),
                asyncio.create_task(self._guard(), name="guard of the children"),
            ]
            play = asyncio.create_task(self._play(), name="time line")
            everybody = (play, *background, *self._world)
            try:
                await asyncio.wait(everybody, return_when=asyncio.FIRST_COMPLETED)
                for task in everybody:
                    if task.done():
                        task.result()  # the time line has ended, or somebody failed: raise it
            finally:
                await end_tasks([play, *background, *self._orders])
            samples = list(facility.samples)
            lost_s = facility.lost_s
            usage = self._usage()
            self._last_status = recorder.read_status(bench_config.status_path(self.work_dir))
        return self._report(samples, lost_s, usage)

    @asynccontextmanager
    async def facility(self) -> AsyncIterator[Facility]:
        """Everything but the device under test, running."""
        self._children: dict[str, Child] = {}
        self._world: list[asyncio.Task[None]] = []
        self._orders: set[asyncio.Task[None]] = set()
        self.scada: ScadaSide | None = None
        served = await ServedAt.prepare(self.work_dir) if self.scenario.facility.serve else None
        async with (
            Facility(self.scenario, self.work_dir) as facility,
            GridSide(self.scenario, self.work_dir) as grid,  # ends last: the others say good-bye through it
            AsyncExitStack() as stack,
        ):
            self._facility, self.grid = facility, grid
            if served is not None:
                served.users.touch(mode=0o600)
                served.users.write_text(bench_config.users_file(USER, served.password))
                self.scada = await stack.enter_async_context(self._scada_side(facility, grid, served))
            self._children |= {child.name: child for child in self._brokers()}
            try:
                self.device_urls = facility.urls
                self._links = await self._broken_links(stack)
                self.written = bench_config.write_configs(
                    self.scenario, self.work_dir, grid, self._outside(), served
                )
                self.block_path, self.node_paths = self.written.block, self.written.nodes
                gc.collect()
                gc.freeze()  # an OPC UA address space would cost 100 ms per full collection
                self._world += [asyncio.create_task(facility.run(), name="plant"), *grid.speak()]
                yield facility
            finally:
                try:
                    await end_tasks(self._world)
                finally:
                    await asyncio.gather(*(child.stop() for child in self._dut()))

    def _outside(self) -> Outside:
        contacts = self._facility.contacts
        return Outside(
            urls=self.device_urls,
            plc_profile=None if contacts is None else contacts.profile_path,
            phasor_port=self._facility.phasor_port,
            link_ports={rack: link.port for rack, link in self._links.items()},
        )

    async def _broken_links(self, stack: AsyncExitStack) -> dict[str, BrokenLink]:
        """One for every rack that the scenario cuts off."""
        broker = self.grid.block_broker
        return {
            rack: await stack.enter_async_context(
                BrokenLink(broker.host, broker.port, sees_packets=sees, seed=self.scenario.seed)
            )
            for rack, sees in self.scenario.linked().items()
        }

    def _scada_side(self, facility: Facility, grid: GridSide, served: ServedAt) -> ScadaSide:
        mqtt = grid.broker.mqtt_config("scada")
        return ScadaSide(self.scenario, self.work_dir, served, mqtt, facility)

    # ---- device under test ----------------------------------------------------------------------------

    def _child(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> Child:
        return Child(name, argv, self.work_dir / f"{name}.log", env)

    async def _start_dut(self) -> None:
        if self._powerblock is None:
            return
        command = str(self._powerblock)
        library = build_library(self.work_dir)
        apart = [node.name for node in self.scenario.block.apart]
        for name, (verb, path) in self.written.agents(apart).items():
            env = environment(library, self._facility.memories[name].path)
            self._children[f"agent {name}"] = self._child(name, [command, verb, str(path)], env)
        self._children["controller"] = self._child("controller", [command, "run", str(self.block_path)])
        for child in self._dut():
            child.start()
        if self.scada is not None:
            await self.scada.begin(command, self.block_path)
            self._children["scada"] = self.scada.child
            # last: a bus does not say twice what stands still, so somebody should be there to hear it
            self._children["server"] = self._child("server", [command, "serve", str(self.block_path)])
            self._children["server"].start()

    def _dut(self) -> list[Child]:
        return [child for child in self._children.values() if child not in self._brokers()]

    def _brokers(self) -> list[Child]:
        """Those that the rig started, the site's first."""
        children = (self.grid.broker.child, self.grid.block_broker.child)
        return [child for child in dict.fromkeys(children) if child is not None]

    async def _guard(self) -> None:
        while True:
            for child in self._children.values():
                if child.died:
                    raise RigError(
                        f"{child.name} ended by itself with status {child.returncode}; "
                        f"last lines of {child.log_path}:\n{child.tail()}"
                    )
            await asyncio.sleep(CHILD_CHECK_S)

    async def _show(self, watch: Callable[[View], None]) -> None:
        while True:
            await asyncio.sleep(VIEW_PERIOD_S)
            if self._facility.samples:
                status = recorder.read_status(bench_config.status_path(self.work_dir))
                sample = self._facility.samples[-1]
                watch(View(self._now_s(), sample, status, tuple(self.marks), self._seen(sample)))

    def _seen(self, sample: Sample) -> tuple[Line, ...]:
        return () if self.scada is None else tuple(self.scada.lines(sample))

    # ---- time line ------------------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self._facility.now_s() - self._zero_s

    def _at(self, at_s: float, act: Act) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._order), act))

    def _plan(self) -> None:
        for moment in self.scenario.timeline:
            if moment.event is not None:
                self._at(moment.at_s, partial(self._publish, moment.event))
            elif moment.cancel is not None:
                self._at(moment.at_s, partial(self._withdraw, moment.cancel))
            elif moment.command is not None:
                self._at(moment.at_s, partial(self._command, moment.command))
            elif moment.write is not None:
                self._at(moment.at_s, partial(self._write, moment.write))
            elif moment.contact is not None:
                self._at(moment.at_s, partial(self._switch, moment.contact))
            elif moment.frequency is not None:
                self._at(moment.at_s, partial(self._move, moment.frequency))
            elif moment.fault is not None:
                self._at(moment.at_s, partial(self._break, moment.fault))

    async def _play(self) -> None:
        await self._warm_up()
        while self._agenda:
            at_s, _, act = heapq.heappop(self._agenda)
            if at_s > self.scenario.duration_s:
                break
            await asyncio.sleep(max(0.0, at_s - self._now_s()))
            await act()
        await asyncio.sleep(max(0.0, self.scenario.duration_s - self._now_s()))

    async def _warm_up(self) -> None:
        """Time 0 is when plant and controller are warm and SCADA sees all, however slow this machine is."""
        await asyncio.sleep(max(0.0, self.scenario.warm_up_s - self._facility.now_s()))
        if self._powerblock is None:
            return
        if not self.scenario.facility.alone:
            await self._is_at_work()
        if self.scada is not None:
            await self.scada.sees_everything()
        self._zero_s = self._facility.now_s()
        self._used = self._used_now()

    async def _is_at_work(self) -> None:
        """Until the ramp out of the failsafe limit is over: what comes before is no baseline for anything.

        Waits no longer than `AT_WORK_MAX_S`; what is wrong then, the verdict will say.
        """
        until_s = self._facility.now_s() + AT_WORK_MAX_S
        budget_w, since_s = -1.0, self._facility.now_s()
        while self._facility.now_s() < until_s:
            beat = beat_of(recorder.read_status(bench_config.status_path(self.work_dir)))
            now_s, told_w = self._facility.now_s(), -1.0 if beat is None else beat.budget_w
            if abs(told_w - budget_w) > AT_WORK_RATIO * budget_w:
                budget_w, since_s = told_w, now_s
            if budget_w > 0.0 and now_s - since_s >= AT_WORK_S:
                return
            await asyncio.sleep(VIEW_PERIOD_S)

    async def _publish(self, event: Event) -> None:
        limit_kw = None if event.is_alert else round(self._ask(event, event.notice_s) / 1000, 3)
        now_utc_s = time.time()
        told = GridEvent(
            id=event.id, type=event.type, limit_kw=limit_kw, priority=event.priority,
            starts_utc_s=now_utc_s + event.notice_s, duration_s=event.duration_s,
        )  # fmt: skip
        if event.is_alert:
            self._call(event.id, self._shed.alerts[event.type], event.duration_s, event.notice_s)
        await self.grid.publish(told, event.via or self.scenario.site.signals[0])

    # ---- emergencies ----------------------------------------------------------------------------------

    @property
    def _shed(self) -> ShedSpec:
        shed = self.scenario.block.shed
        assert shed is not None  # the scenario was checked: nothing calls a level where there is none
        return shed

    def _call(self, name: str, level: str, for_s: float | None = None, notice_s: float = 0.0) -> None:
        """Note down that a level is called, from now on."""
        at_s = self._facility.plant.now_s + notice_s
        ends_s = np.inf if for_s is None else at_s + for_s
        self.sheds[name] = Shed(name, self._shed.level_w(level), at_s, ends_s)
        self._mark(f"{name}: {level}", "event")

    def _call_ends(self, name: str) -> None:
        if name in self.sheds:
            self.sheds[name] = replace(self.sheds[name], ends_s=self._facility.plant.now_s)
            self._mark(f"{name} over", "event")

    async def _switch(self, contact: Contact) -> None:
        """The relay's bit is what the PLC answers from this line on."""
        contacts = self._facility.contacts
        assert contacts is not None
        contacts.set(contact.name, contact.closed)
        if contact.closed:
            self._call(contact.name, self._shed.contacts[contact.name])
        else:
            self._call_ends(contact.name)

    async def _move(self, grid: GridFrequency) -> None:
        self._facility.plant.mains.move(grid.to_hz, grid.within_s)
        self._mark(f"{grid.to_hz:g} Hz", "event")

    async def _panel(self, command: Command) -> None:
        """As an operator at the edge host does it.

        The call counts from when the controller had it, by its own word: before that a Python starts.
        """
        asked = (str(self.block_path), str(command.shed), "--for", f"{command.duration_s}s")
        argv = (str(self._powerblock), "shed", *asked)
        self._call(command.id, str(command.shed), command.duration_s)
        self._at_panel.add(command.id)
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(PANEL_MAX_S):
                said, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            said = b"no answer"
        if process.returncode:
            self._refused.append(f"{' '.join(argv[1:])}: {said.decode(errors='replace').strip()}")

    async def _command(self, command: Command) -> None:
        """SCADA's own wish, which is judged as the grid's are; nobody takes it back, it runs out."""
        if command.via == "panel":
            self._send(self._panel(command), command.id)
            return
        if command.shed is not None:
            self._call(command.id, command.shed, command.duration_s)
            self._send(self._scada().shed(command.via, command.shed, command.duration_s), command.id)
            return
        limit_w = self._ask(command)
        self._send(self._scada().limit(command.via, limit_w, command.duration_s), command.id)

    def _ask(self, wish: Event | Command, notice_s: float = 0.0) -> float:
        """Note down what is wished, from now on; returns the limit, W."""
        baseline_w = self._recent_w()
        limit_w = (
            wish.limit_kw * 1000 if wish.limit_kw is not None else baseline_w * (1 - (wish.reduce_ratio or 0))
        )
        now_s = self._now_s()
        starts_s = now_s + notice_s
        ends_s = np.inf if wish.duration_s is None else starts_s + wish.duration_s
        self.requests[wish.id] = Request(now_s, starts_s, ends_s, baseline_w, limit_w)
        via = f" by {wish.via}" if isinstance(wish, Command) else ""
        self._mark(f"{wish.id}: {limit_w / 1000:.1f} kW{via}", "event")
        return limit_w

    async def _write(self, write: Write) -> None:
        self._mark(str(write), "event")
        self._send(self._scada().write(write), str(write))

    def _send(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Beside the time line, which must not wait for an answer."""
        task = asyncio.create_task(work, name=name)
        self._orders.add(task)

    def _scada(self) -> ScadaSide:
        assert self.scada is not None  # the scenario was checked: no orders without a way for them
        return self.scada

    async def _withdraw(self, event_id: str) -> None:
        if event_id in self.sheds:
            self._call_ends(event_id)
            await self.grid.cancel(event_id)
            return
        self.requests[event_id] = replace(self.requests[event_id], ends_s=self._now_s())
        self._mark(f"{event_id} cancelled", "event")
        await self.grid.cancel(event_id)

    def _recent_w(self) -> float:
        recent = [
            s.block_w for s in self._facility.samples if s.t_s > self._facility.plant.now_s - BASELINE_S
        ]
        return float(np.mean(recent))

    def _mark(self, text: str, kind: str) -> None:
        self.marks.append(Mark(self._now_s(), text, kind))

    # ---- faults ---------------------------------------------------------------------------------------

    async def _break(self, fault: Fault) -> None:
        breakers: dict[str, Callable[[Fault], Awaitable[Heal]]] = {
            "device": self._facility.break_device,
            "gpu": self._facility.break_gpu,
            "feed": self._facility.break_feed,
            "chiller": self._facility.break_chiller,
            "operator": self.grid.break_operator,
            "vtn": self.grid.break_vtn,
            "certificate": self.grid.break_certificate,
            "phasor": self._facility.break_phasor,
            "link": self._break_link,
            "host": self._reboot,
            "broker": self._break_child,
            "agent": self._break_child,
            "controller": self._break_child,
            "server": self._break_child,
        }
        self._mark(str(fault), "fault")
        self.outages += self._outages(fault)
        heal = await breakers[fault.target](fault)
        if fault.for_s is not None:
            self._at(self._now_s() + fault.for_s, partial(self._heal, fault, heal))

    def _outages(self, fault: Fault) -> Iterator[Outage]:
        """What SCADA may miss because of it."""
        begins_s = self._now_s()
        ends_s = np.inf if fault.for_s is None else begins_s + fault.for_s
        outage = partial(Outage, begins_s, ends_s)
        if fault.target in {"server", "controller"}:
            yield outage()
        elif fault.target in {"broker", "certificate"}:
            yield outage(ways=("bms", "mirror"))
        elif fault.target == "device":
            yield outage(device=fault.name, is_dead=fault.mode in SPEECHLESS)
        elif fault.target == "feed":
            for rack in self.scenario.block.racks:
                yield outage(device=f"{rack.name}-{fault.name}")

    async def _heal(self, fault: Fault, heal: Heal) -> None:
        self._mark(f"{fault.target} {fault.name}".strip() + " back", "fault")
        await heal()

    async def _break_child(self, fault: Fault) -> Heal:
        name = f"{fault.target} {fault.name}".strip()
        child = self._children.get(name)
        if child is None:
            raise RigError(f"the rig did not start the {name} and cannot {fault.mode} it; remove the fault")
        if fault.mode in RIVALS:
            return self._start_rival(fault.mode)
        if fault.mode == "replaced":
            child.kill()
            child.start()
            return _nothing
        killing = fault.mode == "kill"
        (child.kill if killing else child.freeze)()

        async def heal() -> None:
            (child.start if killing else child.thaw)()

        return heal

    def _start_rival(self, how: str) -> Heal:
        """Somebody starts a second controller of this block on another host."""
        path = bench_config.write_rival(self.written, self.work_dir)
        rival = self._child("rival", [str(self._powerblock), "run", str(path), *RIVALS[how]])
        self._children["rival"] = rival
        rival.start()
        rival.expected = False  # it may find that it is not wanted, and end

        async def heal() -> None:
            self._intruders += how == "twice" and bench_config.rival_status_path(self.work_dir).exists()
            await rival.stop()

        return heal

    async def _break_link(self, fault: Fault) -> Heal:
        links = [self._links[rack] for rack in rack_names(fault.name)]
        for link in links:
            if fault.mode == "partition":
                link.partitioned = True
            elif fault.mode == "lossy":
                link.lost_ratio = fault.lost_ratio
            else:
                link.flood_per_s = fault.per_s

        async def heal() -> None:
            for link in links:
                link.partitioned, link.lost_ratio, link.flood_per_s = False, 0.0, 0.0

        return heal

    async def _reboot(self, fault: Fault) -> Heal:
        """A host loses power: its agent dies, its boards forget, and its work is back before its agent is."""
        agent = self._children.get(f"agent {fault.name}")
        if agent is not None:
            agent.kill()
        self._facility.power_off(fault.name)

        async def back() -> None:
            self._mark(f"{fault.name} at full power", "fault")
            self._facility.power_on(fault.name)

        async def heal() -> None:
            if agent is not None:
                agent.start()

        self._at(self._now_s() + fault.dark_s, back)
        return heal

    # ---- report ---------------------------------------------------------------------------------------

    def _used_now(self) -> dict[str, Used]:
        """By every process of the run, the rig's own included."""
        pids = {name: child.pid for name, child in self._children.items()} | {"rig": os.getpid()}
        found = {name: used_by(pid) for name, pid in pids.items() if pid is not None}
        return {name: used for name, used in found.items() if used is not None}

    def _usage(self) -> dict[str, dict[str, float]]:
        """Cores and memory of every process, over the time line."""
        lasted_s = self._now_s()
        return {
            name: {
                "core_ratio": round((used.cpu_s - self._used[name].cpu_s) / lasted_s, 4),
                "memory_mib": round(used.memory_bytes / 2**20, 1),
            }
            for name, used in self._used_now().items()
            if name in self._used and lasted_s > 0
        }

    def _excesses(self) -> list[dict[str, Any]]:
        """GPUs that drew more than their driver showed as their limit, the worst first."""
        excess, names = self._facility.excess, self._facility.gpu_names()
        rows = np.argsort(-excess.worst_w)
        return [
            {
                "gpu": names[row],
                "worst_w": round(excess.worst_w[row], 1),
                "for_s": round(excess.for_s[row], 2),
            }
            for row in rows
            if excess.for_s[row] > EXCESS_SHOWN_S
        ]

    def _emergency(self) -> dict[str, float | None]:
        product = self.scenario.block.frequency
        sold = None if product is None else (product.trigger_hz, product.committed_kw * 1000)
        return emergency.figures(self._facility.fine, list(self.sheds.values()), sold, self._told_sheds)

    def _date_panel_calls(self, samples: list[Sample]) -> None:
        """Let them begin when the controller says it had them."""
        started_utc_s = samples[0].utc_s - samples[0].t_s
        for name in self._at_panel:
            shed = self.sheds[name]
            told_s = [line["at_utc_s"] - started_utc_s for line in self._told_sheds]
            late_s = next((at_s - shed.at_s for at_s in sorted(told_s) if at_s >= shed.at_s), 0.0)
            self.sheds[name] = replace(shed, at_s=shed.at_s + late_s, ends_s=shed.ends_s + late_s)

    def _report(self, samples: list[Sample], lost_s: float, usage: dict[str, dict[str, float]]) -> Outcome:
        scenario, block = self.scenario, self.scenario.block
        beats = recorder.read_journal(bench_config.journal_path(self.work_dir))
        aligned = recorder.align(samples, beats)
        trace = recorder.trace_of(samples, self._zero_s)
        contract = Contract(
            block.ramp_down_kw_per_s * 1000, block.ramp_up_kw_per_s * 1000,
            block.feed_rating_kw * 1000, scenario.response_s,
        )  # fmt: skip
        scada = self.scada
        always = {
            RIG_LOST: (None, RIG_LOST_MAX_S),
            **self.grid.bounds(),
            **({} if scada is None else scada.bounds()),
        }
        bounds = {key: (bound.min, bound.max) for key, bound in scenario.expect.items()} | always
        requests = list(self.requests.values())
        self._told_sheds = emergency.read_told(bench_config.sheds_path(self.work_dir))
        self._date_panel_calls(samples)
        excesses = self._excesses()
        budget_w = recorder.budget_w(aligned)
        extra = {
            RIG_LOST: lost_s,
            **self.grid.figures(),
            **self._emergency(),
            "over_budget_ratio": over_budget_ratio(trace, budget_w, scenario.response_s),
            "gpus_in_excess": float(len(excesses)),
            "gpus_unleased": _unleased(self._last_status),
            "second_controllers": float(self._intruders),
            **_cost(usage),
        }
        if self._refused or any(moment.command for moment in scenario.timeline):
            extra["orders_refused"] = float(len(self._refused))
        if scada is not None:
            told = scada.figures(samples, self._zero_s, self.outages)
            extra |= {**told, "orders_refused": (told["orders_refused"] or 0.0) + len(self._refused)}
        verdict = judge(trace, requests, contract, bounds, extra)
        started_utc_s = samples[0].utc_s + self._zero_s - samples[0].t_s
        alarms = tuple(dict.fromkeys(key for b in beats if b.utc_s >= started_utc_s for key in b.alarms))
        recorder.write_csv(self.report_dir / "record.csv", samples, self._zero_s, aligned)
        more = {"excesses": excesses[:EXCESSES_MAX], "usage": usage, "sheds": self._shed_record()}
        self._write_verdict(verdict, alarms, beats, started_utc_s, more)
        title, picture = f"{scenario.name}: {scenario.about}".rstrip(": "), self.report_dir / "plot.png"
        seen = [] if scada is None else scada.powers(samples, self._zero_s)
        if scenario.facility.alone and seen:
            plot.draw_seen(picture, title, self.marks, seen, verdict)
        else:
            plot.draw(
                picture, title, trace, budget_w, requests, contract, self.marks, verdict,
                seen[0] if seen else None, self._racks(samples), self._called(),
            )  # fmt: skip
        named = tuple(f"{one['gpu']} by {one['worst_w']:.0f} W for {one['for_s']:.1f} s" for one in excesses)
        return Outcome(verdict, alarms, self.report_dir, named)

    def _racks(self, samples: list[Sample]) -> dict[str, Floats]:
        """Power of every rack, W, one number per sample."""
        rack_w = np.array([sample.rack_w for sample in samples])
        return {rack.name: rack_w[:, row] for row, rack in enumerate(self.scenario.block.racks)}

    def _called(self) -> list[tuple[float, float, float]]:
        """Levels that were called: from, to, and power; on the time line's clock."""
        return [
            (shed.at_s - self._zero_s, shed.ends_s - self._zero_s, shed.level_w)
            for shed in self.sheds.values()
        ]

    def _shed_record(self) -> dict[str, Any]:
        asked = [
            {
                "by": shed.name,
                "level_w": shed.level_w,
                "at_s": round(shed.at_s - self._zero_s, 3),
                "ends_s": None if shed.ends_s == np.inf else round(shed.ends_s - self._zero_s, 3),
            }
            for shed in self.sheds.values()
        ]
        return {"asked": asked, "told": self._told_sheds, "refused": self._refused}

    def _write_verdict(
        self,
        verdict: Verdict,
        alarms: tuple[str, ...],
        beats: list[Beat],
        started_utc_s: float,
        more: dict[str, Any],
    ) -> None:
        document = {
            "scenario": self.scenario.name,
            "seed": self.scenario.seed,
            "judged": verdict.judged,
            "passed": verdict.passed,
            **verdict.figures,
            "expectations": [asdict(e) | {"met": e.met} for e in verdict.expectations],
            "requests": {
                key: {k: None if v == np.inf else v for k, v in asdict(request).items()}
                for key, request in self.requests.items()
            },
            "marks": [asdict(mark) for mark in self.marks],
            "alarms": list(alarms),
            "journal_beats": len(beats),
            **more,
            "heard": self.grid.record(started_utc_s),
            **({} if self.scada is None else {"scada": self.scada.record()}),
        }
        (self.report_dir / "verdict.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


async def _nothing() -> None:
    """There is nothing to heal."""


def _unleased(status: dict[str, Any]) -> float | None:
    """GPUs that nobody leads; None: the controller says nothing about nodes."""
    nodes = status.get("nodes")
    return None if nodes is None else float(sum(node["gpus"] for node in nodes if not node["leased"]))


def _cost(usage: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Of one core: the rig with its plant, the controller, all agents together, and the broker."""
    groups = {"rig": "rig", "controller": "controller", "agents": "agent ", "broker": "broker"}
    cores: dict[str, float | None] = {
        f"{key}_core_ratio": sum(used["core_ratio"] for name, used in usage.items() if name.startswith(start))
        for key, start in groups.items()
        if any(name.startswith(start) for name in usage)
    }
    if "controller" in usage:
        cores["controller_memory_mib"] = usage["controller"]["memory_mib"]
    return cores
