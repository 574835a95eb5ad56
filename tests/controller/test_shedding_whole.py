"""The controller as a whole over a real broker: what calls, and in which order things leave it."""

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime

from controller import other_limits
from controller.clock import now_s, now_utc_s
from controller.config import load_block
from controller.core.model import Measurement
from controller.gateway import FIRST_OWN
from controller.image.model import Command, Result, Role
from controller.service import Controller
from controller.steps import STEPS
from protocols import agent_link
from protocols.agent_link import Gpu, Report
from protocols.mqtt import MqttLink, Subscription
from tests.brokers import Mosquitto, needs_mosquitto, open_folder, until

pytestmark = needs_mosquitto

GPUS, MIN_W, MAX_W = 8, 200.0, 700.0
DEEP_GPU_W = (
    1.01 * (8_900.0 - 5_000.0) / 1.06
)  # what the deep level leaves them beside an unmetered base load
SHED = {
    "levels": [{"name": "gentle", "kw": 10.0}, {"name": "deep", "kw": 8.9}],
    "alerts": {"ALERT_GRID_EMERGENCY": "deep"},
    "contacts": [
        {
            "name": "stop",
            "profile": "liebert_branch",
            "url": "modbus+tcp://127.0.0.1:9",
            "point": "neutral_overcurrent",
            "level": "deep",
        }
    ],
}


class Host:
    """A node that does as it is told, and says so: tables kept, calls obeyed, orders confirmed."""

    def __init__(self, name: str, say) -> None:
        self.name, self._say = name, say
        self.limits_w = (MAX_W,) * GPUS
        self.epoch = self.seq = self.table_epoch = self.version = 0
        self.levels: tuple = ()
        self.sent_at_s = -1.0
        self.heard_at_s = 0.0
        self.obeyed_in_s = -1.0
        self.enforced_w: float | None = None  # by its BMC

    def order(self, said: agent_link.Order) -> None:
        self.epoch, self.seq, self.limits_w = said.epoch, said.seq, said.limits_w
        self._heard(said.sent_at_s)

    def table(self, said: agent_link.Table) -> None:
        self.table_epoch, self.version, self.levels = said.epoch, said.version, said.levels
        self.report()

    def call(self, said: agent_link.Call) -> None:
        entry = self.levels[said.level].limits_w
        self.limits_w = tuple(map(min, self.limits_w, entry))
        self.epoch, self.seq = said.epoch, said.seq
        self._heard(said.sent_at_s)

    def _heard(self, sent_at_s: float) -> None:
        self.sent_at_s, self.heard_at_s, self.obeyed_in_s = sent_at_s, time.monotonic(), 0.0005
        self.report()

    def report(self) -> None:
        at_s = time.monotonic()
        gpus = tuple(
            Gpu(power_w=min(w, 500.0), limit_w=w, enforced_w=self.enforced_w or w, min_w=MIN_W, max_w=MAX_W)
            for w in self.limits_w
        )
        self._say(
            Report(
                node=self.name,
                boot="b",
                at_s=at_s,
                echo_sent_at_s=self.sent_at_s,
                echo_age_s=at_s - self.heard_at_s,
                epoch=self.epoch,
                seq=self.seq,
                mode="leased",
                gpus=gpus,
                table_epoch=self.table_epoch,
                table=self.version,
                came_ago_s=time.monotonic() - self.heard_at_s,
                obeyed_in_s=self.obeyed_in_s,
            )
        )


class Hall:
    """Both hosts of the block behind one connection, and all that the controller said, in the order it came."""

    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker
        self.heard: list[tuple[str, object]] = []
        self.hosts = {name: Host(name, self._say) for name in ("node-a", "node-b")}
        base = "powerblock/hall-a"
        self.link = MqttLink(
            broker.url,
            client_id="hall",
            on_message=self._on_message,
            subscriptions=(Subscription(f"{base}/agent/+/+"), Subscription(f"{base}/agents/call")),
        )

    def _say(self, report: Report) -> None:
        self.link.publish(agent_link.report_topic("hall-a", report.node), agent_link.encode(report))

    def _on_message(self, topic: str, payload: bytes, _retained: bool) -> None:
        *_, node, kind = topic.split("/")
        decode = {
            "order": agent_link.decode_order,
            "table": agent_link.decode_table,
            "call": agent_link.decode_call,
        }.get(kind)
        if decode is None:
            return
        said = decode(payload)
        self.heard.append((kind, said))
        for host in self.hosts.values() if kind == "call" else [self.hosts[node]]:
            getattr(host, kind)(said)

    def calls(self) -> list[agent_link.Call]:
        return [said for kind, said in self.heard if kind == "call"]

    @property
    def sum_w(self) -> float:
        return sum(sum(host.limits_w) for host in self.hosts.values())


@contextlib.asynccontextmanager
async def running(block_with):
    """A controller and its hall on a broker of their own, with tables in every memory."""
    with open_folder() as folder, Mosquitto(folder) as broker:
        changes = {"shed": SHED, "mqtt": {"url": broker.url}, "site.failsafe_kw": 13}
        controller = Controller(load_block(block_with(changes)))
        hall = Hall(broker)
        tasks = [
            asyncio.create_task(one)
            for one in (controller._link.run(), hall.link.run(), controller._beat_for_ever(), reporting(hall))
        ]
        try:
            await until(lambda: controller._link.connected and hall.link.connected)
            await until(lambda: told(controller)["armed"] == 2, within_s=20.0)
            yield controller, hall
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            controller.close()


async def reporting(hall: Hall) -> None:
    """As agents do, and the meter beside them."""
    while True:
        for host in hall.hosts.values():
            host.report()
        await asyncio.sleep(0.05)


def told(controller) -> dict:
    path = controller._status.path
    if not path.exists():
        return {"armed": 0}
    return json.loads(path.read_text())["shed"]


def close_contact(controller, closed=1.0) -> None:
    controller._contacts.takers()["stop"](Measurement(closed, good=True, taken_at_s=now_s()))


async def test_a_contact_that_closes_is_one_call_before_all_orders_and_before_the_disk(
    block_with, monkeypatch
):
    async with running(block_with) as (controller, hall):
        done: list[str] = []
        publish, keep = controller._link.publish, controller._store.keep_decision
        monkeypatch.setattr(
            controller._link,
            "publish",
            lambda topic, payload: (done.append(topic.rpartition("/")[2]), publish(topic, payload)),
        )
        monkeypatch.setattr(
            controller._store,
            "keep_decision",
            lambda decision, *beside: (
                done.append("disk" if "shed" in decision.binding.source else "-"),
                keep(decision, *beside),
            ),
        )
        before = len(hall.heard)
        close_contact(controller)
        await until(lambda: len(hall.calls()) == 1)
        shed = done[done.index("call") :]
        assert shed[1] == "disk", f"after the call: {shed[:5]}"
        assert "disk" not in done[: done.index("call")]
        kinds = [kind for kind, _ in hall.heard[before:]]
        assert "order" not in kinds[kinds.index("call") :][:2], "the call stands for the orders of both hosts"
        await until(lambda: hall.sum_w < DEEP_GPU_W)
        await until(lambda: told(controller)["level"] == "deep")
        assert told(controller)["called"] == [{"level": "deep", "by": "stop"}]
        block = controller._gateway.image.cells(FIRST_OWN)
        level, by, armed, steps = block.values[-4:]
        assert (block.group.path, level, by, armed) == ("block", 2.0, "level deep is called: stop", 2.0)
        assert set(json.loads(steps)) == set(STEPS)


async def test_what_a_call_took_is_told_with_every_confirmation(block_with):
    async with running(block_with) as (controller, hall):
        close_contact(controller)
        await until(lambda: len(hall.calls()) == 1)
        controller._board.meter = Measurement(8_000.0, good=True, taken_at_s=now_s())
        await until(lambda: told(controller)["last"] is not None)
        last = told(controller)["last"]
        assert (last["level"], last["source"], last["nodes"]) == ("deep", "shed deep (stop)", 2)
        assert (last["unconfirmed"], last["without_table"]) == ([], [])
        assert 0.0 <= last["decided_s"] <= last["sent_s"] <= last["received_s"] <= last["confirmed_s"] < 1.0
        assert last["obeyed_s"] == 0.0005
        assert last["moved_s"] < 2.0


async def test_hosts_whose_tables_are_not_confirmed_are_shed_by_orders_and_that_is_on_record(block_with):
    async with running(block_with) as (controller, hall):
        for host in hall.hosts.values():
            host.version = 0  # as if the newest table had just been sent
            host.table = lambda _said: None
        await until(lambda: told(controller)["armed"] == 0)
        close_contact(controller)
        await until(lambda: hall.sum_w < DEEP_GPU_W)
        assert hall.calls() == []
        assert controller._steps._open is not None
        assert set(controller._steps._open.since_asked_s) >= {"decided"}
        controller._steps.close()
        last = controller._steps.told()["last"]
        assert (last["level"], last["nodes"]) == ("deep", 0)
        assert last["without_table"] == ["node-a", "node-b"]


async def test_what_a_restart_finds_called_is_no_new_line(block_with):
    controller = Controller(load_block(block_with({"shed": SHED, "site.failsafe_kw": 13})))
    close_contact(controller)  # as it was before the start
    task = asyncio.create_task(controller._beat_for_ever())
    try:
        await until(lambda: controller._beats > 2)
        assert controller._state.shedding.level == 1
        assert (controller._steps._open, controller._steps.told()["last"]) == (None, None)
    finally:
        task.cancel()
        await asyncio.wait([task])
        controller.close()


async def test_a_call_while_the_broker_is_away_is_told_as_decided_and_not_as_sent(block_with):
    async with running(block_with) as (controller, hall):
        hall.broker.kill()
        await until(lambda: not controller._link.connected)
        close_contact(controller)
        await until(lambda: controller._steps._open is not None)
        assert set(controller._steps._open.since_asked_s) == {"decided"}


async def test_what_another_start_has_ordered_confirms_no_call_of_ours(block_with, monkeypatch):
    """Its numbers may be higher than ours."""
    async with running(block_with) as (controller, hall):

        def obeys_another(host: Host, said: agent_link.Call) -> None:
            host.epoch, host.seq, host.limits_w = said.epoch - 1, said.seq + 100, (MIN_W,) * GPUS

        monkeypatch.setattr(Host, "call", obeys_another)
        monkeypatch.setattr(Host, "order", lambda *_: None)
        close_contact(controller)
        await until(lambda: len(hall.calls()) == 1)
        heard_s, board = controller._board.report_at_s.max(), controller._board
        await until(lambda: board.report_at_s.min() > heard_s + 0.1)
        assert controller._steps._open.waiting.all()


async def test_a_limit_that_only_a_bmc_enforces_is_an_alarm_of_the_whole_block(block_with, monkeypatch):
    monkeypatch.setattr(other_limits, "SPAN_S", 0.2)
    async with running(block_with) as (controller, hall):
        hall.hosts["node-b"].enforced_w = 250.0

        def others() -> list[str]:
            alarms = json.loads(controller._status.path.read_text())["alarms"]
            return [one["text"] for one in alarms if one["key"] == "other limits"]

        await until(others, within_s=20.0)
        names = "node-b/0, node-b/1, node-b/2 and 5 more"
        assert f"8 of 16 GPUs ({names}) hold" in others()[0]
        assert "kW less than their share: work is lost" in others()[0]


async def test_an_alert_an_operator_and_a_contact_all_call_by_the_same_table(block_with):
    async with running(block_with) as (controller, hall):
        shed = Command(
            verb="shed", arguments={"level": "gentle"}, by="alice", role=Role.OPERATE, via="opcua", id=1
        )
        outcome = await controller._gateway.commands.carry_out(shed)
        assert outcome.result is Result.ACCEPTED
        await until(lambda: [call.level for call in hall.calls()] == [0])
        controller._on_message("openadr/events", alert(), False)
        await until(lambda: [call.level for call in hall.calls()] == [0, 1])
        close_contact(controller)
        await until(lambda: len(told(controller)["called"]) == 3)
        assert [call.level for call in hall.calls()] == [0, 1], "one level is called once"
        keys = [alarm["key"] for alarm in json.loads(controller._status.path.read_text())["alarms"]]
        assert "shed" in keys
        seqs = [(kind, said.seq) for kind, said in hall.heard if kind in ("call", "order")]
        for place, (kind, seq) in enumerate(seqs):
            before = max((one for _, one in seqs[:place]), default=0)
            assert kind == "order" or seq > before, f"a call is numbered among the orders: {seqs}"


async def test_when_nobody_calls_any_more_the_power_comes_back_by_the_ramp(block_with):
    async with running(block_with) as (controller, hall):
        close_contact(controller)
        await until(lambda: len(hall.calls()) == 1)
        await until(lambda: told(controller)["level"] == "deep" and hall.sum_w < DEEP_GPU_W)
        shed_w = hall.sum_w
        close_contact(controller, 0.0)
        opened_s = time.monotonic()
        await until(lambda: hall.sum_w > shed_w + 50.0, within_s=10.0)
        elapsed_s = time.monotonic() - opened_s
        assert (hall.sum_w - shed_w) * 1.06 <= 400.0 * (elapsed_s + 0.3), "0.4 kW/s were agreed"
        await until(lambda: told(controller)["level"] is None)


def alert() -> bytes:
    def at(utc_s: float) -> str:
        return datetime.fromtimestamp(utc_s, UTC).isoformat()

    payloads = [{"type": "ALERT_GRID_EMERGENCY", "values": ["shed now"]}]
    said = {
        "id": "em-1",
        "modificationDateTime": at(now_utc_s()),
        "programID": "44",
        "intervalPeriod": {"start": at(now_utc_s() - 1.0), "duration": "PT10M"},
        "intervals": [{"id": 0, "payloads": payloads}],
    }
    return json.dumps({"objectType": "EVENT", "operation": "CREATE", "object": said}).encode()
