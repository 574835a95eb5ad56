"""The controller as a whole, without wires: what a restart holds, and what the north cannot do to it."""

import json
from datetime import UTC, datetime

import pytest

from controller.clock import now_utc_s
from controller.config import load_block
from controller.service import Controller


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


async def test_faults_that_an_agent_tells_of_are_shown(start):
    controller = start()
    controller._board.gpu_faults["node-b"] = ["GPU 3 is lost", "GPU 4 is lost"]
    said = status(controller)
    assert said["nodes"][1]["faults"] == ["GPU 3 is lost", "GPU 4 is lost"]
    (alarm,) = [alarm for alarm in said["alarms"] if alarm["key"] == "faults node-b"]
    assert alarm["text"] == "GPU 3 is lost; GPU 4 is lost"
    assert alarm["state"] == "unacknowledged"
