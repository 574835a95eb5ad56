"""Two controllers of one block: the second start finds the first one alive at the agents, or is let in."""

import asyncio
import contextlib
import json
import time

import pytest

from controller.agent.hearing import Ear
from controller.agent.lease import LeaseSettings, Mode
from controller.clock import now_s
from controller.config import load_block
from controller.incumbent import HEAR_S, NEWCOMER_S, Newcomer, incumbent
from controller.incumbent import Ear as DoorEar
from controller.service import LED_BY_ANOTHER, run
from protocols import agent_link
from protocols.mqtt import MqttLink, Subscription
from tests.brokers import Mosquitto, free_port, needs_mosquitto, open_folder, running, speaker

pytestmark = needs_mosquitto
THEIRS, OURS = 1_700_000_000, 1_700_000_007


@pytest.fixture(scope="module")
def url():
    with open_folder() as folder, Mosquitto(folder) as broker:
        yield broker.url


@pytest.fixture
def block(block_with, url):
    def made(**changes):
        return load_block(block_with({"mqtt.url": url, **changes}))

    return made


def said(
    count: int, *, node="node-a", epoch=THEIRS, mode="leased", sent_at_s=None, **more
) -> agent_link.Report:
    return agent_link.Report(
        node=node,
        boot="b",
        at_s=float(count),
        echo_sent_at_s=count / 10 if sent_at_s is None else sent_at_s,
        echo_age_s=0.0,
        epoch=epoch,
        seq=1,
        mode=mode,
        gpus=(),
        **more,
    )


def report(count: int, **fields) -> bytes:
    return agent_link.encode(said(count, **fields))


@contextlib.asynccontextmanager
async def agent(url, block="hall-a", **said):
    """Reports ten times a second."""

    async def speak() -> None:
        for count in range(1000):
            mouth.publish(agent_link.report_topic(block, "node-a"), report(count, **said))
            await asyncio.sleep(0.1)

    mouth = speaker(url)
    async with running(mouth):
        speaking = asyncio.create_task(speak())
        try:
            yield
        finally:
            speaking.cancel()
            await asyncio.wait({speaking})


async def test_a_living_controller_is_found_and_named_with_the_remedy(block, url):
    async with agent(url):
        led = await incumbent(block(), OURS)
    assert led.startswith("node-a obeys another controller of block hall-a, start 1700000000")
    assert "--take-over" in led


@pytest.mark.parametrize(
    "said",
    [
        {"sent_at_s": 5.0},  # it has died: nothing new comes
        {"epoch": OURS},  # it was ourselves, before this start
        {"mode": "fallback", "epoch": 0},
        {"block": "hall-b"},
        {"node": "bench-1"},  # that block.yaml does not know
    ],
)
async def test_whoever_does_not_lead_this_block_any_more_keeps_nobody_out(block, url, said):
    async with agent(url, **said):
        assert await incumbent(block(), OURS) == ""


async def test_who_is_obeyed_counts_and_not_whose_order_was_written_last(block, url):
    """Its drivers hang: it goes on naming our predecessor's order, and hears another controller."""
    async with agent(url, epoch=OURS, echo_epoch=THEIRS):
        assert f"start {THEIRS} " in await incumbent(block(), OURS)


async def test_a_node_that_nobody_leads_is_no_predecessor_of_the_first_start_of_all():
    """Nor does it cut short the listening."""
    door = DoorEar(0, frozenset({"node-a"}))
    door.on_message("", report(1, mode="waiting", epoch=0), False)
    began_s = time.monotonic()
    await door.decided(still_max_s=0.0)
    assert time.monotonic() - began_s >= HEAR_S


async def test_our_own_predecessor_costs_no_waiting(block, url, monkeypatch):
    monkeypatch.setattr("controller.incumbent.HEAR_S", 30.0)
    async with agent(url, epoch=OURS), asyncio.timeout(10.0):
        await incumbent(block(), OURS)


async def test_a_block_without_a_broker_gets_its_controller(block):
    async with asyncio.timeout(5.0):
        assert await incumbent(block(**{"mqtt.url": f"mqtt://127.0.0.1:{free_port()}"}), OURS) == ""


async def test_a_start_on_a_block_that_is_led_ends_and_tells_nobody_anything(block, url, capfd):
    config = block()
    async with agent(url):
        assert await run(config) == LED_BY_ANOTHER
    assert not list(config.run_dir.glob("status*")), "whoever looks sees the one that leads"
    said = capfd.readouterr()
    assert "cannot start" in said.out + said.err


async def test_a_start_that_is_told_to_take_over_asks_nobody(block, url):
    config = block()
    async with agent(url):
        serving = asyncio.create_task(run(config, take_over=True))
        async with asyncio.timeout(10.0):
            while not list(config.run_dir.glob("status*")):  # noqa: ASYNC110  a file has no event
                await asyncio.sleep(0.02)
        while not serving.done():
            serving.cancel()
            await asyncio.wait({serving}, timeout=0.5)


# ---- two that were let in ----

NEWER = OURS + 1


def heard(newcomer: Newcomer, *reports: dict, from_s=100.0) -> str:
    """What it says at the end; ten reports a second."""
    answer = ""
    for count, fields in enumerate(reports):
        answer = newcomer.hear(said(count, **fields), from_s + count / 10)
    return answer


@pytest.mark.parametrize(
    "newer",
    [{"epoch": NEWER}, {"epoch": OURS, "echo_epoch": NEWER}, {"epoch": 0, "echo_epoch": NEWER}],
    ids=["obeyed", "obeyed, not written yet", "the first that it obeys"],
)
def test_a_newcomer_goes_when_agents_obey_a_newer_start_that_lives(newer):
    newcomer = Newcomer(OURS, 99.0)
    assert heard(newcomer, {"epoch": OURS, "echo_epoch": OURS}, newer) == "", "it may be dead"
    assert heard(newcomer, {}, {}, newer).startswith(f"node-a obeys start {NEWER} ")


@pytest.mark.parametrize(
    "others",
    [
        {"epoch": NEWER, "sent_at_s": 5.0},  # it has died, its lease has not run out
        {"epoch": OURS - 1},  # it will find us
        {"epoch": NEWER, "mode": "fallback"},
        {"epoch": OURS, "echo_epoch": OURS},
    ],
)
def test_a_newcomer_stays_beside_whoever_does_not_lead_in_its_place(others):
    assert heard(Newcomer(OURS, 99.0), others, others, others) == ""


def test_one_order_of_each_of_two_newer_starts_proves_the_life_of_neither():
    assert heard(Newcomer(OURS, 99.0), {"epoch": NEWER}, {"epoch": NEWER + 1}) == ""


@pytest.mark.parametrize(
    ("rivals_s", "times"), [(-1.0, 0), (0.1, 1), (50.0, 0)], ids=["never", "just now", "before our time"]
)
def test_a_newcomer_says_once_that_another_gives_orders_too(rivals_s, times, capfd):
    assert heard(Newcomer(OURS, 99.0), *[{"epoch": OURS, "rivals_s": rivals_s}] * 3) == ""
    assert "".join(capfd.readouterr()).count(f"refuses it and obeys this start, {OURS}") == times


def test_who_has_led_for_a_while_stays_as_heir_and_who_never_led_goes_whenever_it_is():
    newer = {"epoch": NEWER}
    for led, stays in (({"epoch": OURS}, True), ({"epoch": 0, "mode": "waiting"}, False)):
        newcomer = Newcomer(OURS, 99.0)
        heard(newcomer, led)
        assert (heard(newcomer, newer, newer, from_s=100.1 + NEWCOMER_S) == "") is stays


class Host:
    """Eight GPUs that hold what they should, under an agent's own lease; orders reach it in any order."""

    SETTINGS = LeaseSettings(
        fallback_w=(300.0,) * 8, fallback_ramp_w_per_s=50.0, lease_max_s=5.0, waiting_max_s=None
    )

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.led_by: list[int] = []  # starts, one after the other
        self.ear = Ear(name, self.SETTINGS, self._changed, observe=False)
        self.link = MqttLink(
            url,
            client_id=f"host-{name}",
            on_message=self.ear.on_message,
            subscriptions=(Subscription(agent_link.order_topic("hall-a", name)),),
        )

    def _changed(self) -> None:
        epoch = self.ear.lease.newest[0]
        if self.led_by[-1:] != [epoch]:
            self.led_by.append(epoch)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            ear, lease = self.ear, self.ear.lease
            gpu = agent_link.Gpu(power_w=300.0, limit_w=400.0, enforced_w=400.0, min_w=200.0, max_w=700.0)
            epoch, seq = lease.newest if lease.mode is Mode.LEASED else (0, 0)
            report = agent_link.Report(
                node=self.name,
                boot="b",
                at_s=now_s(),
                echo_sent_at_s=ear.heard_sent_at_s,
                echo_age_s=now_s() - ear.heard_at_s,
                echo_epoch=ear.heard_epoch,
                epoch=epoch,
                seq=seq,
                mode=lease.mode,
                gpus=(gpu,) * 8,
                rivals_s=-1.0 if lease.rival_at_s < 0 else now_s() - lease.rival_at_s,
            )
            self.link.publish(agent_link.report_topic("hall-a", self.name), agent_link.encode(report))


@contextlib.asynccontextmanager
async def hosts(url):
    both = [Host(name, url) for name in ("node-a", "node-b")]
    async with running(*(host.link for host in both)):
        speaking = [asyncio.create_task(host.run()) for host in both]
        try:
            yield both
        finally:
            for task in speaking:
                task.cancel()
            await asyncio.wait(speaking)


@pytest.fixture
def two(block_with, url, tmp_path):
    """The same block, as two hosts have it."""
    return [
        load_block(
            block_with(
                {
                    "mqtt.url": url,
                    "state_dir": f"{tmp_path}/{host}/state",
                    "run_dir": f"{tmp_path}/{host}/run",
                    "journal.path": f"{tmp_path}/{host}/journal.jsonl",
                }
            )
        )
        for host in ("x", "y")
    ]


def load_epoch(config) -> int:
    return json.loads((config.state_dir / "state.json").read_text())["epoch"]


async def test_of_two_that_start_at_once_the_older_goes_again_and_both_say_so(two, url, capfd):
    async with hosts(url) as nodes:
        serving = [asyncio.create_task(run(config)) for config in two]
        ended, leading = await asyncio.wait(serving, timeout=10.0, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert [task.result() for task in ended] == [LED_BY_ANOTHER], "both were let in, and both lead"
            await asyncio.sleep(1.0)
            assert len({host.led_by[-1] for host in nodes}) == 1, "they share the block"
        finally:
            for task in leading:
                while not task.done():
                    task.cancel()
                    await asyncio.wait({task}, timeout=0.5)
    said = "".join(capfd.readouterr())
    older, newer = sorted(load_epoch(config) for config in two)
    assert f"obeys start {newer} (UTC microseconds) of another controller" in said
    assert f"refuses it and obeys this start, {newer}" in said
    assert older != newer
