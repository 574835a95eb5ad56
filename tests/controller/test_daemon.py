"""The controller as a whole, without wires: what a restart holds, and what the north cannot do to it."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from controller.clock import now_s, now_utc_s
from controller.config import load_block
from controller.service import Controller
from protocols import agent_link
from protocols.agent_link import Facts, Gpu, GpuFacts, Report, encode, report_topic


def at(utc_s) -> str:
    return datetime.fromtimestamp(utc_s, UTC).isoformat()


def event(limit_kw) -> bytes:
    """A window that opened a minute ago and lasts ten."""
    descriptors = [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"}]
    payloads = [{"type": "IMPORT_CAPACITY_LIMIT", "values": [limit_kw]}]
    said = {
        "id": "dr-1",
        "modificationDateTime": at(now_utc_s()),
        "programID": "44",
        "intervalPeriod": {"start": at(now_utc_s() - 60.0), "duration": "PT10M"},
        "payloadDescriptors": descriptors,
        "intervals": [{"id": 0, "payloads": payloads}],
    }
    return json.dumps({"objectType": "EVENT", "operation": "CREATE", "object": said}).encode()


@pytest.fixture
def start(block_with):
    """`start()`: a controller on always the same files; the one before is gone."""
    started = []

    def again() -> Controller:
        if started:
            started[-1].close()
        started.append(Controller(load_block(block_with())))
        return started[-1]

    yield again
    started[-1].close()


async def test_readings_that_echo_the_start_before_a_crash_are_of_known_age(start):
    """The same clock: a restart takes no node for unknown."""
    first = start()
    first._beat()
    second, at_s = start(), now_s()
    gpu = Gpu(power_w=300.0, limit_w=400.0, enforced_w=400.0, min_w=200.0, max_w=700.0)
    report = Report(
        node="node-a",
        boot="b",
        at_s=1.0,
        echo_sent_at_s=at_s,
        echo_age_s=0.0,
        echo_epoch=first._epoch,
        epoch=first._epoch,
        seq=1,
        mode="leased",
        gpus=(gpu,) * 8,
    )
    second._on_message(report_topic("hall-a", "node-a"), encode(report), False)
    assert second._board.heard("node-a") == (at_s, 0, False)


def status(controller) -> dict:
    controller._due["status"] = -1e12
    controller._beat()
    return json.loads(controller._status.path.read_text())


async def test_a_controller_killed_in_an_event_holds_its_limit_when_it_is_back(start):
    first = start()
    first._on_message("openadr/events", event(8.5), False)
    first._beat()
    second = start()
    assert [entry.setpoint.limit_w for entry in second._state.running] == [8_500.0]
    said = status(second)
    assert said["binding"]["power_w"] == 8_500.0
    assert said["site"]["setpoints"][0]["id"] == "dr-1/0"
    assert said["epoch"] > first._epoch


async def test_a_restart_in_an_event_does_not_wait_for_the_clock_to_agree(start, monkeypatch):
    """The wall clock goes two hours back while the window is open, and the controller restarts then."""
    first = start()
    first._on_message("openadr/events", event(8.5), False)
    first._beat()
    true_utc_s = now_utc_s
    monkeypatch.setattr("controller.service.now_utc_s", lambda: true_utc_s() - 7200.0)
    for controller in (first, start()):
        controller._due["refresh"] = -1e12
        controller._beat()
        assert status(controller)["binding"]["power_w"] == 8_500.0


async def test_reports_that_cannot_be_read_are_counted_and_shown_with_their_node(start):
    controller = start()
    for _ in range(3):
        controller._on_message("powerblock/hall-a/agent/node-a/report", b"{", False)
    assert list(controller._board.refused.values()) == [3]
    said = status(controller)
    assert said["nodes"][0]["refused"]
    assert said["nodes"][1]["refused"] == ""
    assert "report node-a" in [alarm["key"] for alarm in said["alarms"]]


GPU = Gpu(power_w=200.0, limit_w=200.0, enforced_w=200.0, min_w=200.0, max_w=700.0)
POSED = (
    Report(
        node="node-b", boot="b", at_s=1.0, epoch=0, seq=1, mode="leased", gpus=(GPU,) * 8,
        echo_sent_at_s=-1.0, echo_age_s=0.0,
    ),
    Facts(
        node="node-b", boot="b", at_s=1.0, driver="1", lease_max_s=10.0, waiting_max_s=30.0,
        fallback_ramp_w_per_s=50.0, gpus=(GpuFacts(fallback_w=200.0, uuid="u", clock_max_mhz=1980),) * 8,
    ),
)  # fmt: skip


@pytest.mark.parametrize("told", POSED, ids=["report", "facts"])
@pytest.mark.parametrize("speaker", ["node-a", "node-x"])
async def test_a_host_cannot_speak_for_another(start, told, speaker):
    """Brokers grant rights by topic: what is told on that of one node is no word of another."""
    controller = start()
    topic = agent_link.facts_topic if isinstance(told, Facts) else agent_link.report_topic
    controller._on_message(topic("hall-a", speaker), agent_link.encode(told), False)
    seen = controller._board.snapshot(0.0, 0.0).gpus
    assert np.isnan(seen.limit_w).all()
    assert not seen.clock_max_mhz.any()
    assert controller._grouping.told()["nodes"] == []
    said = status(controller)
    assert "'node-b'" in {alarm["key"]: alarm["text"] for alarm in said["alarms"]}["false name"]
    controller._on_message(topic("hall-a", "node-b"), agent_link.encode(told), False)
    assert len(controller._board.refused) == 1, "it may speak for itself"


async def test_faults_that_an_agent_tells_of_are_shown(start):
    controller = start()
    controller._board.gpu_faults["node-b"] = ["GPU 3 is lost", "GPU 4 is lost"]
    said = status(controller)
    assert said["nodes"][1]["faults"] == ["GPU 3 is lost", "GPU 4 is lost"]
    (alarm,) = [alarm for alarm in said["alarms"] if alarm["key"] == "faults node-b"]
    assert alarm["text"] == "GPU 3 is lost; GPU 4 is lost"
    assert alarm["state"] == "unacknowledged"
