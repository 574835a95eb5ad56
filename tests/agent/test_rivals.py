"""Who may command, and what happens when nobody can: two controllers, dead brokers, clocks that jump."""

import asyncio
import subprocess
import time

from controller import clock
from controller.agent.config import NodeConfig
from controller.agent.node import Agent
from controller.agent.rounds import Rounds
from controller.endless import Life
from protocols import agent_link
from protocols.nvml import Device, Reading
from tests.agent.conftest import MOSQUITTO, free_port

LIMITS_W = (600.0, 550.0, 500.0, 450.0)


async def test_a_second_controller_is_refused_and_both_can_see_it(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, epoch=2, boot="ours")
        assert n.newest.rivals_s == -1.0
        ours_s = n.newest.echo_sent_at_s
        assert n.newest.echo_epoch == 2
        n.order((700.0,) * 4, epoch=1, boot="older")  # it answers our report of a moment ago: it is alive
        report = await n.report(lambda report: report.refused != {})
        assert (report.epoch, report.refused) == (2, {"second_controller": 1})
        assert 0.0 <= report.rivals_s < 1.0
        n.order((700.0,) * 4, epoch=2, boot="other")
        report = await n.report(lambda report: report.refused.get("second_controller") == 2)
        assert (report.echo_epoch, report.echo_sent_at_s) == (
            2,
            ours_s,
        )  # a stranger's clock would make our readings look young
        assert n.limits_w() == list(LIMITS_W)
        assert "two are running, stop one of them" in n.logged()


async def test_a_newer_controller_takes_over_and_the_log_says_so(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, epoch=1)
        await n.lead((500.0,) * 4, epoch=2)
        assert (n.newest.epoch, n.newest.echo_epoch) == (2, 2)
        assert "another controller took over" in n.logged()


async def test_when_the_newer_controller_has_ended_the_older_one_leads_again(node):
    async with node(fallback_w=200) as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, epoch=1, boot="older", lease_s=1.0)
        await n.lead((500.0,) * 4, epoch=2, boot="newer", lease_s=1.0)  # and that is all of it
        held_w, deadline_s = n.limits_w(), time.monotonic() + 10.0
        while n.newest.epoch != 1 and time.monotonic() < deadline_s:
            n.order((700.0,) * 4, epoch=1, boot="older", lease_s=1.0)
            await asyncio.sleep(0.1)
            assert all(now <= was for now, was in zip(n.limits_w(), held_w, strict=True)), "handed over"
            held_w = n.limits_w()
        await n.report(lambda report: (report.epoch, report.mode) == (1, "leased"))
        assert held_w == [200.0] * 4
        await n.lead(LIMITS_W, epoch=1, boot="older")
        assert n.limits_w() == list(LIMITS_W)
        assert "an earlier controller leads again" in n.logged()


async def test_recorded_orders_neither_renew_the_lease_nor_age_the_readings(node):
    """All of minutes ago: the order in force itself, one before it, and one of an earlier controller."""
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, epoch=2, lease_s=1.0)
        seen = n.newest
        topic = agent_link.order_topic("b", n.folder.name)
        recorded = [
            agent_link.Order(
                epoch=epoch,
                seq=seq,
                sent_at_s=seen.echo_sent_at_s - 300.0,
                echo_at_s=seen.at_s - ago_s,
                known_at_s=seen.at_s - ago_s,
                lease_s=1.0,
                limits_w=(700.0,) * 4,
            )
            for epoch, seq, ago_s in ((2, n.seq, 1.5), (2, 1, 2.0), (1, 99, 300.0))
        ]
        ended = asyncio.create_task(n.report(lambda report: report.mode == "fallback"))
        while not ended.done():
            for order in recorded * 5:
                n.link.publish(topic, agent_link.encode(order))
                await asyncio.sleep(0.001)
            assert n.newest.echo_sent_at_s == seen.echo_sent_at_s
            assert max(n.limits_w()) <= max(LIMITS_W)
        assert (await ended).at_s - seen.at_s < 1.5
        assert set((await n.report()).refused) & {"overtaken", "expired", "earlier_agent"}


async def test_a_flood_of_stale_orders_changes_nothing_and_is_counted(node):
    async with node() as n:
        n.start()
        await n.report()
        n.order((200.0,) * 4)
        await n.report(lambda report: report.seq == 1)
        await n.lead(LIMITS_W)
        stale = agent_link.Order(
            epoch=1,
            seq=1,
            sent_at_s=0.0,
            echo_at_s=n.newest.at_s,
            known_at_s=n.newest.at_s,
            lease_s=5.0,
            limits_w=(200.0,) * 4,
        )
        for number in range(2000):
            topic = agent_link.order_topic("b", n.folder.name) + ("" if number % 2 else f"/../{number}")
            n.link.publish(topic, agent_link.encode(stale))
            if number % 50 == 0:
                n.link.publish(agent_link.order_topic("b", n.folder.name), agent_link.encode(stale))
                await asyncio.sleep(0.002)
        report = await n.report(lambda report: report.refused.get("overtaken", 0) > 5)
        assert report.mode == "leased"
        assert n.limits_w() == list(LIMITS_W)


def start_broker(folder, port: int) -> subprocess.Popen:
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    return subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL)


async def test_a_broker_that_dies_costs_the_lease_and_its_successor_brings_a_new_one(node, broker, tmp_path):
    port = free_port()
    process = start_broker(tmp_path, port)
    try:
        async with node(url=f"mqtt://127.0.0.1:{port}") as n:
            n.start()
            await n.report()
            await n.lead(LIMITS_W, lease_s=1.0)
            process.kill()
            process.wait(5)
            await n.until(lambda: n.limits_w() == [300.0] * 4)
            process = start_broker(tmp_path, port)
            await n.report(lambda report: report.mode == "fallback", within_s=15.0)
            await n.lead(LIMITS_W)
            assert n.limits_w() == list(LIMITS_W)
    finally:
        process.kill()
        process.wait(5)


def table(epoch: int, version: int) -> bytes:
    level = agent_link.Level(limits_w=(300.0, 300.0))
    return agent_link.encode(agent_link.Table(epoch=epoch, version=version, levels=(level,)))


async def test_the_tables_of_whoever_leads_are_kept_and_nothing_recorded_of_one_that_was_succeeded(tmp_path):
    async with Served(tmp_path) as served:
        ear = served.agent._ear
        ear.on_message("b/table", table(1, 3), False)
        ear.on_message("b/table", table(2, 1), False)  # nobody obeys that one yet
        assert (ear.table.epoch, ear.table.version) == (1, 3)
        ear.lease = ear.lease._replace(newest=(2, 1), epoch_max=2)  # now it leads
        ear.on_message("b/table", table(2, 1), False)
        assert (ear.table.epoch, ear.table.version) == (2, 1)
        ear.lease = ear.lease._replace(newest=(1, 9))  # and was succeeded by the older one
        for epoch, version, kept in ((1, 4, (1, 4)), (2, 9, (1, 4)), (1, 3, (1, 4)), (3, 1, (1, 4))):
            ear.on_message("b/table", table(epoch, version), False)
            assert (ear.table.epoch, ear.table.version) == kept


class Driver:
    """Two GPUs that obey."""

    gpu_count, first, driver_version = 2, 0, "1"

    def __init__(self) -> None:
        self.limits_w = [700.0, 700.0]

    def describe(self, gpu: int) -> Device:
        return Device(index=gpu, uuid=f"GPU-{gpu}", name="g", min_w=200.0, max_w=700.0, default_w=700.0)

    def read(self, gpu: int) -> Reading:
        limit_w = self.limits_w[gpu]
        return Reading(
            device=self.describe(gpu), power_w=400.0, averaged=False, limit_w=limit_w, enforced_w=limit_w
        )

    def read_limit_w(self, gpu: int) -> float:
        return self.limits_w[gpu]

    def set_limit_w(self, gpu: int, limit_w: float) -> float:
        self.limits_w[gpu] = limit_w
        return limit_w

    lower_limit_w = set_limit_w

    def probe_permission(self, gpu: int) -> None:
        pass


class NoLink:
    def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        pass

    async def run(self) -> None:
        await asyncio.Event().wait()


class Served:
    """An agent in this process, leased for five seconds."""

    def __init__(self, folder) -> None:
        self.driver = Driver()
        config = NodeConfig(
            block="b",
            node="n",
            mqtt={"url": "mqtt://127.0.0.1"},
            fallback_w=300,
            fallback_ramp_w_per_s=50,
            report_period_s=0.02,
            state_dir=folder,
        )
        self.agent = Agent(config, self.driver, observe=False)
        self.life = Life()

    async def __aenter__(self):
        rounds = Rounds([(self.agent, NoLink())])
        self.serving = asyncio.create_task(rounds.serve(self.life))
        await asyncio.sleep(0.05)
        now = clock.now_s()
        order = agent_link.Order(
            epoch=1, seq=1, sent_at_s=1.0, echo_at_s=now, known_at_s=now, lease_s=5.0, limits_w=(600.0, 650.0)
        )
        self.agent.on_message("", agent_link.encode(order), False)
        await self.until(lambda: self.driver.limits_w == [600.0, 650.0])
        return self

    async def __aexit__(self, *_):
        self.life.end()
        await asyncio.wait({self.serving})

    async def until(self, holds) -> None:
        async with asyncio.timeout(5.0):
            while not holds():  # noqa: ASYNC110  it looks into the driver, which has no event
                await asyncio.sleep(0.005)


async def test_a_second_agent_of_one_host_costs_work_for_it_holds_the_gpus_at_its_fallback(tmp_path):
    """Nobody tells it anything: a broker lets one client of a name in."""
    async with Served(tmp_path) as served:
        deaf = served.agent.config.model_copy(
            update={"waiting_max_s": 1.0, "fallback_ramp_w_per_s": 10_000.0}
        )
        life = Life()
        rounds = Rounds([(Agent(deaf, served.driver, observe=False), NoLink())])
        serving = asyncio.create_task(rounds.serve(life))
        try:
            for _ in range(20):
                await served.until(lambda: served.driver.limits_w == [300.0, 300.0])
                await asyncio.sleep(0.02)
            assert served.agent.lease.mode == "leased"
        finally:
            life.end()
            await asyncio.wait({serving})


async def test_a_host_that_was_suspended_wakes_up_without_a_lease(tmp_path, monkeypatch):
    """Time asleep counts: 30 s of it end the lease, and the ramp has gone on meanwhile."""
    async with Served(tmp_path) as served:
        gettime = time.clock_gettime
        monkeypatch.setattr(time, "clock_gettime", lambda which: gettime(which) + 30.0)
        await served.until(lambda: served.agent.lease.mode == "fallback")
        await served.until(lambda: served.driver.limits_w == [300.0, 300.0])  # 25 s at 50 W/s: past it


def test_the_clock_of_leases_counts_time_asleep(monkeypatch):
    asked = []
    monkeypatch.setattr(time, "clock_gettime", lambda which: asked.append(which) or 7.0)
    assert clock.now_s() == 7.0
    assert asked == [time.CLOCK_BOOTTIME]


async def test_a_step_of_the_wall_clock_changes_nothing(tmp_path, monkeypatch):
    async with Served(tmp_path) as served:
        walltime = time.time
        for step_s in (86_400.0, -86_400.0):
            monkeypatch.setattr(time, "time", lambda step_s=step_s: walltime() + step_s)
            await asyncio.sleep(0.2)
            assert served.agent.lease.mode == "leased"
            assert served.driver.limits_w == [600.0, 650.0]
