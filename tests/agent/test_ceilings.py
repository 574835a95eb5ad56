"""The record of clock ceilings: what was set is known after a crash, and nothing else ever is.

An agent stepped by hand: messages in, sweep, beat, and what an apply round would do.
"""

import asyncio
import os
import shutil
import time
from dataclasses import dataclass, field, replace

import pytest

from controller.agent import found_limits
from controller.agent.config import NodeConfig
from controller.agent.node import Agent
from controller.agent.rounds import Rounds
from controller.clock import now_s
from protocols import agent_link
from protocols.agent_link import Call, Level, Order, Report, Table
from protocols.nvml import NOT_SUPPORTED, Device, NvmlFault, Reading

SITE_MHZ = (345, 1410)  # locked by the site, which node.yaml does not say
DEVICE = Device(
    index=0, uuid="GPU-0", name="g", min_w=200.0, max_w=700.0, default_w=700.0,
    clock_min_mhz=210, clock_max_mhz=1980, persistence=True,
)  # fmt: skip


@dataclass
class Driver:
    """One GPU. `on_ceiling` is called within the call that sets a ceiling."""

    lock_mhz: tuple[int, int] | None = SITE_MHZ
    limit_w: float = 700.0
    device: Device = DEVICE
    device_now: Device | None = None  # what it would say if asked anew
    fault: NvmlFault | None = None
    read_s: float = 0.0  # how long a read takes
    asked_mhz: list = field(default_factory=list)
    on_ceiling: object = staticmethod(lambda: None)
    gpu_count: int = 1
    first: int = 0
    driver_version: str = "1"

    def read(self, _gpu):
        return Reading(
            device=self.device, power_w=300.0, averaged=False, limit_w=self.limit_w,
            enforced_w=self.limit_w, clock_mhz=1400, generation=0,
        )  # fmt: skip

    def describe(self, _gpu):
        self.device = self.device_now or self.device
        return self.device

    def read_limit_w(self, _gpu):
        time.sleep(self.read_s)
        return self.limit_w

    def set_limit_w(self, _gpu, limit_w):
        self.limit_w = limit_w
        return limit_w

    def set_clock_ceiling(self, _gpu, ceiling_mhz):
        self.on_ceiling()
        self.asked_mhz.append(ceiling_mhz)
        if self.fault:
            raise self.fault
        self.lock_mhz = None if ceiling_mhz is None else (210, ceiling_mhz)
        return ceiling_mhz or 1980


class NoLink:
    def publish(self, topic, payload, qos=0):
        pass

    async def run(self):
        await asyncio.Event().wait()


class Host:
    """A node with one GPU and its agent; `restart` gives it a new one."""

    def __init__(self, folder, driver: Driver | None = None) -> None:
        self.driver = driver or Driver()
        self.seq = 0
        self.config = NodeConfig(
            block="b", node="n", mqtt={"url": "mqtt://h"}, fallback_w=300, state_dir=folder
        )  # fmt: skip
        self.restart()

    def restart(self) -> None:
        self.agent = Agent(self.config, self.driver, observe=False)
        self.rounds = Rounds([(self.agent, NoLink())])
        self.sweep()

    def sweep(self) -> None:
        self.agent.swept({0: self.driver.read(0)}, now_s())
        self.agent.beat(now_s())

    async def obey(self) -> Report:
        """What the round does that follows a message, and the beat after it, with the round that one asks for."""
        for _ in range(2):
            await self.rounds._apply([self.agent])
            self.agent.obeyed(now_s())
            self.sweep()
        return self.report()

    def report(self) -> Report:
        return agent_link.decode_report(self.agent.report(now_s()))

    def tell(self, kind, message) -> None:
        self.agent.on_message(f"powerblock/b/agent/n/{kind}", agent_link.encode(message), False)

    async def order(self, ceiling_mhz=0, limit_w=600.0) -> Report:
        """An order of one who knows what this agent holds."""
        for _ in range(2):
            self.seq += 1
            at_s = self.report().at_s
            self.tell(
                "order",
                Order(
                    epoch=1, seq=self.seq, sent_at_s=now_s(), echo_at_s=at_s, known_at_s=at_s,
                    lease_s=5.0, limits_w=(limit_w,), clocks_mhz=(ceiling_mhz,),
                ),
            )  # fmt: skip
            await self.obey()
        return self.report()

    async def table(self, ceiling_mhz) -> None:
        level = Level(limits_w=(300.0,), clocks_mhz=(ceiling_mhz,))
        self.tell("table", Table(epoch=1, version=1, levels=(level,)))
        await self.obey()

    def call(self) -> int:
        self.seq += 1
        self.tell("call", Call(epoch=1, seq=self.seq, version=1, level=0, sent_at_s=1.0))
        return self.seq

    def on_record_mhz(self) -> int:
        """Of the ceiling that may be of ours, as a restart or `--restore` would find it."""
        found = found_limits.read(self.config.state_dir).get("GPU-0")
        return 0 if found is None else found.ceiling_mhz


@pytest.fixture
def host(tmp_path) -> Host:
    return Host(tmp_path / "state")


async def test_a_ceiling_that_only_stands_in_a_table_leaves_no_trace(host):
    await host.order()
    await host.table(1200)
    assert host.on_record_mhz() == 0
    host.restart()
    assert (await host.order()).gpus[0].ceiling_mhz == 0
    assert host.driver.lock_mhz == SITE_MHZ


async def test_a_call_puts_its_ceiling_on_disk_before_it_sets_it_and_after_the_limits(host):
    seen = []
    host.driver.on_ceiling = lambda: seen.append((host.on_record_mhz(), host.driver.limit_w))
    await host.order()
    await host.table(1200)
    host.call()
    await host.obey()
    assert seen == [(1200, 300.0)]


async def test_that_there_is_a_ceiling_is_on_record_and_its_end_as_well(host):
    for ceiling_mhz in (1200, 1005, 1500, 0, 990, 0):
        assert (await host.order(ceiling_mhz)).gpus[0].ceiling_mhz == ceiling_mhz
        assert bool(host.on_record_mhz()) == bool(ceiling_mhz)


async def test_a_ceiling_that_moves_with_every_beat_waits_for_no_disk(host, monkeypatch):
    await host.order(1200)
    syncs = []
    monkeypatch.setattr(os, "fsync", syncs.append)
    for ceiling_mhz in (1185, 1170, 1155, 1200):
        assert (await host.order(ceiling_mhz)).gpus[0].ceiling_mhz == ceiling_mhz
    assert syncs == []
    await host.order(0)
    assert len(syncs) == 1


async def test_an_agent_that_finds_its_own_ceiling_on_record_sets_the_next_one_whatever_it_is(host):
    """It may stand lower by now than when it was recorded."""
    await host.order(1200)
    await host.order(1005)
    host.restart()
    await host.order(1200)
    assert host.driver.lock_mhz == (210, 1200)


async def test_after_a_release_the_next_agent_leaves_the_clocks_alone(host):
    await host.order(1200)
    await host.order(0)
    host.driver.lock_mhz = SITE_MHZ  # the site locks again
    host.restart()
    await host.order(0)
    assert host.driver.lock_mhz == SITE_MHZ


async def test_a_ceiling_left_by_an_agent_that_died_is_not_counted_on_and_is_taken_away(host):
    await host.order(1200)
    host.restart()
    assert host.report().gpus[0].ceiling_mhz == 0
    assert host.driver.lock_mhz == (210, 1200)
    assert (await host.order(0)).gpus[0].ceiling_mhz == 0
    assert host.driver.lock_mhz is None
    assert host.on_record_mhz() == 0


async def test_a_reboot_of_the_host_clears_all_locks_and_the_record_of_ours(host, monkeypatch, tmp_path):
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(found_limits, "HOST_BOOT", boot)
    boot.write_text("before\n")
    await host.order(1200)
    assert host.on_record_mhz() == 1200
    boot.write_text("after\n")
    assert host.on_record_mhz() == 0
    host.driver.lock_mhz = SITE_MHZ  # as its boot script does
    host.restart()
    assert host.report().gpus[0].ceiling_mhz == 0
    await host.order(0)
    assert host.driver.lock_mhz == SITE_MHZ


async def test_without_a_boot_id_no_line_is_void(host, monkeypatch, tmp_path):
    monkeypatch.setattr(found_limits, "HOST_BOOT", tmp_path / "none")
    await host.order(1200)
    assert host.on_record_mhz() == 1200


async def test_a_call_of_the_driver_that_timed_out_may_have_set_its_ceiling(host):
    host.driver.fault = NvmlFault(10, "not returned in time")
    await host.order(1200)
    host.driver.fault = None
    host.driver.lock_mhz = (210, 1200)  # it had
    host.agent.views[0].clock_again_at_s = 0.0
    await host.order(0)
    assert host.driver.lock_mhz is None
    assert host.on_record_mhz() == 0


async def test_a_gpu_without_the_lever_keeps_no_ceiling_on_record(host):
    host.driver.fault = NvmlFault(NOT_SUPPORTED, "does not have it")
    await host.order(1200)
    assert host.on_record_mhz() == 1200
    report = await host.order(0)
    assert (host.on_record_mhz(), report.gpus[0].fault) == (0, "")
    assert host.driver.asked_mhz == [1200]


async def test_a_ceiling_whose_record_failed_is_recorded_as_soon_as_the_disk_is_well(host):
    shutil.rmtree(host.config.state_dir)
    host.config.state_dir.write_text("a file where the directory should be")
    await host.order(1200)
    assert host.driver.lock_mhz == (210, 1200)
    host.config.state_dir.unlink()
    for _ in range(100):  # it rests a little after a failure
        await host.obey()
        if host.on_record_mhz():
            break
        await asyncio.sleep(0.01)
    assert host.on_record_mhz() == 1200


async def test_the_time_to_obey_is_that_of_the_order_it_is_told_with(host):
    await host.order()
    await host.table(0)
    seq = host.call()
    host.driver.read_s = 0.2
    applying = asyncio.create_task(host.rounds._apply([host.agent]))
    await asyncio.sleep(0.1)
    at_s = host.report().at_s
    host.tell(
        "order",
        Order(
            epoch=1, seq=seq + 1, sent_at_s=now_s(), echo_at_s=at_s, known_at_s=at_s,
            lease_s=5.0, limits_w=(300.0,),
        ),
    )  # fmt: skip
    await applying
    host.agent.obeyed(now_s())
    report = host.report()
    assert report.seq == seq
    assert report.obeyed_in_s >= 0.2


async def test_an_order_that_came_long_ago_and_is_granted_again_was_not_obeyed_that_long(host):
    """A controller that knows nothing new says the same again after a lapse."""
    for _ in range(2):
        at_s = host.report().at_s
        host.tell(
            "order",
            Order(
                epoch=1, seq=1, sent_at_s=now_s(), echo_at_s=at_s, known_at_s=at_s,
                lease_s=0.1, limits_w=(300.0,),
            ),
        )  # fmt: skip
        report = await host.obey()
        assert report.mode == "leased"
        assert 0.0 <= report.obeyed_in_s < 0.1
        await asyncio.sleep(0.2)
        host.sweep()
        assert host.report().mode == "fallback"


async def test_what_a_gpu_is_is_told_as_it_is_now(host):
    host.driver.device_now = replace(DEVICE, mig=True, persistence=False)
    assert not agent_link.decode_facts(host.agent.facts(now_s())).gpus[0].mig
    await host.rounds._read_slowly([(host.agent, NoLink())])
    host.sweep()
    told = agent_link.decode_facts(host.agent.facts(now_s() + 2.0)).gpus[0]
    assert (told.mig, told.persistence) == (True, False)


async def test_persistence_that_ends_is_logged_once(host, capsys):
    capsys.readouterr()
    host.driver.device_now = replace(DEVICE, persistence=False)
    for _ in range(3):
        host.agent._slow_at_s = 0.0
        host.driver.device_now = replace(host.driver.device_now)
        await host.rounds._read_slowly([(host.agent, NoLink())])
        host.sweep()
    assert capsys.readouterr().out.count("persistence mode is off") == 1
