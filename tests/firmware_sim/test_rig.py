"""Broker, operator, facility and rig, with real sockets and real child processes."""

import asyncio
import io
import json
import os
import shutil
import stat
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import aiomqtt
import numpy as np
import pytest
from rich.console import Console

from controller.agent.config import load_node
from controller.config import load_block
from firmware_sim.child import Child
from firmware_sim.facility import Facility, Sample, free_port
from firmware_sim.figure_names import FIGURE_NAMES
from firmware_sim.gpu_firmware import GPU_IS_LOST, GpuMemory
from firmware_sim.grid_operator import GridEvent, GridOperator, notification
from firmware_sim.live import LiveView
from firmware_sim.recorder import Beat, Mark, align, read_journal, read_status
from firmware_sim.rig import Rig, RigError, View, end_tasks
from firmware_sim.scenario import Fault, load_scenario, parse_scenario
from firmware_sim.verdict import RIG_LOST_MAX_S

ROOT = Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
EVENTS, HEARTBEATS = "openadr/events", "site/heartbeat"


BLOCK = {
    "racks": [{"name": "r1"}, {"name": "r2"}],
    "nodes": [{"name": "n1", "rack": "r1", "gpus": 8}, {"name": "n2", "rack": "r2", "gpus": 8}],
}


def a_scenario(**changes):
    return parse_scenario(
        {
            "name": "short",
            "warm_up_s": 0.6,
            "duration_s": 1.4,
            "block": BLOCK,
            "workloads": [{"node": "n1", "kind": "training"}, {"node": "n2", "kind": "training"}],
            **changes,
        },
        "short.yaml",
    )


# ---- broker and operator --------------------------------------------------------------------------------


@asynccontextmanager
async def a_broker(tmp_path):
    port = free_port()
    broker = Child(
        "broker", [sys.executable, "-m", "firmware_sim.broker", "--port", str(port)], tmp_path / "broker.log"
    )
    broker.start()
    try:
        await until_listening(port)
        yield broker, port
    finally:
        await broker.stop()


async def until(happened, wait_s=5.0):
    for _ in range(round(wait_s / 0.01)):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def until_listening(port):
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise AssertionError("the broker does not listen")


@asynccontextmanager
async def an_operator(port):
    operator = GridOperator(host="127.0.0.1", port=port, event_topic=EVENTS, heartbeat_topic=HEARTBEATS)
    task = asyncio.create_task(operator.run())
    try:
        yield operator
    finally:
        await end_tasks([task])


async def hear(port, topic, count=1, wait_s=4.0):
    heard = []
    async with asyncio.timeout(wait_s), aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe(topic, qos=1)
        async for message in client.messages:
            heard.append(json.loads(message.payload))
            if len(heard) == count:
                return heard
    return heard


def an_event(**changes):
    given = {
        "id": "dr-1",
        "type": "IMPORT_CAPACITY_LIMIT",
        "limit_kw": 9.9,
        "starts_utc_s": time.time(),
        "duration_s": 30.0,
    }
    return GridEvent(**{**given, **changes})


def test_a_notification_is_openadr_3_1():
    sent = notification(an_event(starts_utc_s=1_767_225_600.0), "CREATE")
    assert (sent["objectType"], sent["operation"]) == ("EVENT", "CREATE")
    event = sent["object"]
    assert event["intervalPeriod"] == {"start": "2026-01-01T00:00:00.000Z", "duration": "PT30S"}
    assert event["intervals"] == [{"id": 0, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [9.9]}]}]
    assert event["payloadDescriptors"][0]["units"] == "KW"
    assert event["programID"]
    endless = notification(an_event(duration_s=None), "CREATE")
    assert endless["object"]["intervalPeriod"]["duration"] == "P9999Y"


async def test_the_heartbeat_says_what_stands_and_events_return_after_the_broker_was_killed(tmp_path):
    async with a_broker(tmp_path) as (broker, port), an_operator(port) as operator:
        (beat,) = await hear(port, HEARTBEATS)
        assert beat["event_ids"] == []
        assert abs(datetime.fromisoformat(beat["sent_at"]).timestamp() - time.time()) < 2
        listening = asyncio.create_task(hear(port, EVENTS))
        await asyncio.sleep(0.1)
        assert await operator.publish(an_event())
        (heard,) = await listening
        assert heard["object"]["id"] == "dr-1"
        assert operator.standing == ("dr-1",)

        broker.kill()
        await asyncio.sleep(0.05)
        broker.start()
        await until_listening(port)
        (again,) = await hear(port, EVENTS)
        assert again["object"]["id"] == "dr-1", "a broker that forgot is told again"
        assert (await hear(port, HEARTBEATS))[0]["event_ids"] == ["dr-1"]


def test_an_event_that_is_over_stands_no_more():
    operator = GridOperator(host="127.0.0.1", port=1, event_topic=EVENTS, heartbeat_topic=HEARTBEATS)
    asyncio.run(operator.publish(an_event(starts_utc_s=time.time() - 60)))
    assert operator.standing == ()
    asyncio.run(operator.publish(an_event(id="later", starts_utc_s=time.time() + 60)))
    assert operator.standing == ("later",)
    asyncio.run(operator.cancel("later"))
    assert operator.standing == ()


# ---- children -------------------------------------------------------------------------------------------


async def test_a_child_is_asked_then_killed_and_its_words_are_kept(tmp_path):
    # Short sleeps: Python's handler does not interrupt one that began between the signal and the handler.
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(3)); print('hello', flush=True)\n"
        "while True: time.sleep(0.02)"
    )
    child = Child("polite", [sys.executable, "-c", code], tmp_path / "polite.log")
    child.start()
    await until(lambda: "hello" in child.tail())
    child.freeze()
    await child.stop()
    assert child.returncode == 3, "thawed and asked"
    assert not child.died


async def test_a_child_that_ends_by_itself_has_died(tmp_path):
    child = Child("frail", [sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "frail.log")
    child.start()
    await until(lambda: child.returncode is not None)
    assert child.died
    assert child.returncode == 7


# ---- facility -------------------------------------------------------------------------------------------


@pytest.fixture
async def facility(tmp_path):
    """Devices not served: only what the plant and the GPU memories share."""
    return Facility(a_scenario(), tmp_path)


def advance(facility, duration_s):
    for _ in range(round(duration_s / 0.005)):
        facility._step()


async def test_limits_written_through_the_driver_reach_the_plant_and_readings_come_back(facility):
    advance(facility, 0.3)
    memory = facility.memories["n2"]
    memory.gpus["requested_mw"][:] = 400_000
    advance(facility, 0.5)
    assert memory.gpus["instant_mw"].astype(float) == pytest.approx(394_000, rel=0.03)
    assert facility.memories["n1"].gpus["instant_mw"].mean() > 600_000
    assert (memory.gpus["energy_mj"] > 0).all()
    assert (memory.gpus["clock_reasons"] == 4).all(), "the driver says why it throttles"


async def test_gpu_faults_show_in_driver_and_plant_and_heal(facility):
    memory = facility.memories["n1"]
    heal_lost = await facility.break_gpu(Fault(target="gpu", mode="lost", name="n1/3"))
    heal_oob = await facility.break_gpu(Fault(target="gpu", mode="oob_limit", name="n1/4", limit_w=300))
    advance(facility, 0.3)
    assert memory.gpus["forced_error"][3] == GPU_IS_LOST
    assert facility.plant.bank.power_w[3] == pytest.approx(70, abs=5)
    assert memory.enforced_mw()[4] == 300_000
    await heal_lost()
    await heal_oob()
    advance(facility, 0.6)
    assert facility.plant.bank.power_w[3:5] == pytest.approx(640, abs=30)
    memory.gpus["requested_mw"][5] = 250_000
    await facility.break_gpu(Fault(target="gpu", mode="reset", name="n1/5"))
    assert memory.gpus["requested_mw"][5] == 700_000


async def test_a_derated_chiller_and_a_lost_feed_show_in_the_plant(facility):
    heal_chiller = await facility.break_chiller(Fault(target="chiller", mode="derate", facility_c=40))
    assert facility.plant.cdu.facility_target_c == 40
    await heal_chiller()
    assert facility.plant.cdu.facility_target_c == facility.plant.cdu.type.facility_c


async def test_the_facility_serves_all_devices_and_keeps_real_time(tmp_path):
    async with Facility(a_scenario(), tmp_path) as facility:
        assert set(facility.devices) == {"r1-a", "r1-b", "r2-a", "r2-b", "meter", "cdu"}
        heal_feed = await facility.break_feed(Fault(target="feed", mode="lost", name="a"))
        assert facility.devices["r1-a"].fault is not None
        running = asyncio.create_task(facility.run())
        await asyncio.sleep(0.5)
        behind_s = facility.now_s() - facility.plant.now_s
        running.cancel()
        assert -0.005 <= behind_s < 0.1
        assert len(facility.samples) == pytest.approx(10, abs=2)
        assert facility.plant.electrical.inlet_w[:, 0].sum() == 0
        await heal_feed()
        assert facility.devices["r1-a"].fault is None


# ---- record ---------------------------------------------------------------------------------------------


def test_a_journal_with_a_torn_last_line_is_read_up_to_it(tmp_path):
    path = tmp_path / "journal.jsonl"
    decided = {"budget_w": 9900, "binding": {"source": "dr-1"}, "mode": "limited", "alarms": [{"key": "x"}]}
    line = json.dumps({"now_utc_s": 5.0, "decided": decided})
    path.write_text(line + "\n" + '{"v": 1, "settings": {}}\n' + "garbage\n" + line[:40])
    path.with_name("journal.jsonl.1").write_text(line.replace("5.0", "4.0") + "\n")
    path.with_name("journal.jsonl.10").write_text(line.replace("5.0", "3.0") + "\n")
    read = read_journal(path)
    assert [beat.utc_s for beat in read] == [3.0, 4.0, 5.0]
    assert read[-1] == Beat(5.0, 9900.0, "dr-1", "limited", ("x",))
    assert read_journal(tmp_path / "absent") == []
    assert read_status(tmp_path / "absent") == {}


def test_each_sample_gets_the_newest_decision_before_it():
    samples = [Sample(t, t, 0, 0, 0, 0, 0, 0, 0, ()) for t in (1.0, 2.0, 3.0)]
    beats = [Beat(2.5, 2, "b", "m"), Beat(1.5, 1, "a", "m")]
    assert [beat and beat.budget_w for beat in align(samples, beats)] == [None, 1, 2]


def test_the_live_view_shows_power_budget_and_what_happened():
    status = {
        "at_utc_s": 5.0,
        "budget_w": 9900.0,
        "binding": {"source": "openadr dr-1"},
        "mode": "limited",
        "alarms": [{"key": "site lost"}],
    }
    sample = Sample(1.0, 5.0, 9700.0, 9720.0, 7000.0, 12_900.0, 22_000.0, 22.0, 7200.0, (4800.0, 4900.0))
    view = View(1.0, sample, status, (Mark(0.5, "dr-1: 9.9 kW", "event"),))
    console = Console(width=100, record=True, file=io.StringIO())
    live = LiveView(a_scenario())
    console.print(live.render(view))
    console.print(live.render(replace(view, status={})))
    text = console.export_text()
    for word in ("9.70 kW", "9.90 kW", "openadr dr-1", "site lost", "dr-1: 9.9 kW", "12,900", "running"):
        assert word in text
    assert any(set(line) <= set("│ ━╸╺") and "━" in line for line in text.splitlines()), (
        "the bar has its own line"
    )


# ---- the rig --------------------------------------------------------------------------------------------


@pytest.fixture
def powerblock(tmp_path):
    """A scripted stand-in for the device under test, called by the same command line."""
    script = Path(__file__).parent / "scripted_powerblock.py"
    command = tmp_path / "powerblock"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {script} "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return command


async def test_a_run_plays_the_time_line_and_leaves_a_report(tmp_path, powerblock):
    scenario = a_scenario(
        warm_up_s=2.0,
        duration_s=1.6,
        timeline=[
            {"at_s": 0.3, "event": {"id": "dr-1", "reduce_ratio": 0.2, "duration_s": 5}},
            {"at_s": 0.8, "fault": {"target": "agent", "name": "n1", "mode": "kill", "for_s": 0.2}},
        ],
        expect={"over_rating_s": {"max": 0}, "tokens_kept_ratio": {"min": 2}},
    )
    views = []
    outcome = await Rig(scenario, tmp_path / "report", powerblock).run(views.append)
    assert not outcome.verdict.passed, "nobody keeps twice the tokens"
    document = json.loads((tmp_path / "report" / "verdict.json").read_text())
    assert document["passed"] is False
    assert document["judged"] is (document["rig_lost_s"] <= RIG_LOST_MAX_S)
    assert outcome.verdict.figures.keys() <= FIGURE_NAMES
    assert [mark["text"].split(":")[0] for mark in document["marks"]] == [
        "dr-1",
        "agent n1 kill",
        "agent n1 back",
    ]
    assert document["requests"]["dr-1"]["limit_w"] == pytest.approx(0.8 * 13_000, rel=0.05)
    assert document["journal_beats"] > 10
    rows = (tmp_path / "report" / "record.csv").read_text().splitlines()
    assert len(rows) > 40
    assert rows[0].startswith("t_s,utc_s,block_w")
    assert (tmp_path / "report" / "plot.png").stat().st_size > 10_000
    assert {view.status.get("mode") for view in views} >= {"controlled", "limited"}


async def test_a_run_over_dsx_flex_hears_the_story_of_the_ramps_in_order(tmp_path, powerblock):
    """Over mutual TLS where there is a mosquitto, else over the embedded broker."""
    mosquitto = shutil.which("mosquitto", path=PATH)
    over = {"broker": "mosquitto", "tls": "mutual"} if mosquitto else {}
    scenario = a_scenario(
        block={**BLOCK, "ramp_down_kw_per_s": 6, "ramp_up_kw_per_s": 6},
        warm_up_s=1.2,
        duration_s=2.8,
        site={"signals": "dsx", **over},
        timeline=[{"at_s": 0.3, "event": {"id": "dr-1", "limit_kw": 10, "duration_s": 1.5}}],
        status_events=["target_set", "start_ramp_down", "end_ramp_down", "start_ramp_up", "end_ramp_up"],
    )
    await Rig(scenario, tmp_path / "report", powerblock).run(lambda _view: None)
    document = json.loads((tmp_path / "report" / "verdict.json").read_text())
    heard = document["heard"]["dsx"]
    assert (document["status_events_missing"], document["status_refused"]) == (0, 0), heard
    by_event = {status["event"]: status for status in heard["statuses"]}
    assert by_event["start_ramp_down"]["active_w"] == 10_000
    assert 0.3 < by_event["start_ramp_down"]["t_s"] < 0.6
    assert by_event["end_ramp_down"]["compliant"]
    assert by_event["end_ramp_up"]["active_w"] is None


async def test_who_is_not_told_misses_it(tmp_path, powerblock):
    """The scripted one listens to its first source alone, which is not the ISV."""
    scenario = a_scenario(
        warm_up_s=0.6,
        duration_s=0.8,
        site={"signals": ["bare", "dsx"]},
        timeline=[{"at_s": 0.2, "event": {"id": "dr-1", "limit_kw": 9, "via": "dsx", "duration_s": 5}}],
        status_events=["start_ramp_down", "end_ramp_down"],
    )
    views = []
    outcome = await Rig(scenario, tmp_path / "report", powerblock).run(views.append)
    assert {view.status.get("mode") for view in views} <= {None, "controlled"}
    unmet = [expectation.key for expectation in outcome.verdict.expectations if not expectation.met]
    assert unmet == ["status_events_missing"]
    document = json.loads((tmp_path / "report" / "verdict.json").read_text())
    assert document["heard"] == {"dsx": {"statuses": [], "breaches": [], "refused": []}}
    assert document["requests"]["dr-1"]["limit_w"] == 9000


async def test_a_device_under_test_that_dies_ends_the_run_with_its_last_words(tmp_path, powerblock):
    powerblock.write_text("#!/bin/sh\necho cannot read block.yaml\nexit 3\n")
    with pytest.raises(RigError, match=r"ended by itself with status 3.*\n.*cannot read block"):
        await Rig(a_scenario(), tmp_path / "report", powerblock).run(lambda _view: None)


@pytest.mark.parametrize(
    "name", ["curtailment", "openadr_mtls", "openadr_ven", "dsx_flex_nats", "certificate_replaced", "mixed"]
)
async def test_the_generated_configuration_is_what_controller_and_agent_accept(tmp_path, name):
    site = {"signals": "mixed", "broker": "mosquitto", "tls": "mutual"}
    scenario = a_scenario(site=site) if name == "mixed" else load_scenario(ROOT / "examples" / f"{name}.yaml")
    binary = {"embedded": "python3", "nats": "nats-server"}.get(scenario.site.broker, scenario.site.broker)
    if shutil.which(binary, path=PATH) is None:
        pytest.skip(f"no {binary} here")
    rig = Rig(scenario, tmp_path / "report", None)
    async with rig.facility() as facility:
        block = load_block(rig.block_path)
        assert block.meter.url == facility.devices["meter"].url
        assert [source.name for source in block.site.sources] == [
            {"bare": "utility"}.get(signal, signal) for signal in scenario.site.signals
        ]
        for path in rig.node_paths.values():
            node = load_node(path)
            memory = GpuMemory(facility.memories[node.node].path)
            assert (np.array(node.fallback_limits_w(8)) * 1000 >= memory.gpus["min_mw"]).all()
            shared = scenario.site.tls and not scenario.site.own_bus
            assert (node.mqtt.tls() is not None) == bool(shared)
