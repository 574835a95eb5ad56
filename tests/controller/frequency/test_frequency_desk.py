"""The desk: samples go to the board and wake the beat, activations are recorded, troubles are told."""

import asyncio
import contextlib
import json
import socket

import pytest
from pydantic import TypeAdapter

from controller.clock import now_s, now_utc_s
from controller.core import frequency
from controller.core.model import Measurement, Ramp
from controller.frequency import FrequencyConfig, FrequencyDesk, frequency_settings

HOST = "127.0.0.1"
WAIT_MAX_S = 10.0


class Block:
    """The part of a block that a desk sees."""

    def __init__(self, tmp_path, one):
        config = TypeAdapter(FrequencyConfig).validate_python(
            {"preset": "nordic_ffr_c_short", "committed_kw": 100.0, "input": one}
        )
        self.settings = frequency_settings(config, Ramp(1e6, 1e6))
        self.heard, self.wakes = [], 0
        self.desk = FrequencyDesk(
            config,
            self.settings,
            clock=(now_s, now_utc_s),
            on_measurement=self.heard.append,
            wake=self.woken,
            folder=tmp_path,
        )
        self.state = frequency.start(self.settings, now_s())

    def woken(self):
        self.wakes += 1

    def beat(self):
        self.state = frequency.step(self.settings, self.state, self.desk.newest, 400e3, now_s())
        self.desk.after_beat(self.state, 400e3, 500e3)

    @contextlib.asynccontextmanager
    async def running(self):
        tasks = [asyncio.create_task(run()) for run in self.desk.runs().values()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.desk.close()


def line(hz):
    return json.dumps({"hz": hz, "at": now_utc_s()}).encode()


@pytest.fixture
def mqtt_block(tmp_path):
    return Block(tmp_path, {"way": "mqtt", "topic": "grid/hz"})


async def test_a_dip_on_the_wire_wakes_the_beat_and_leaves_a_record(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    block = Block(tmp_path, {"way": "json_udp", "listen": f"{HOST}:{port}", "from": HOST})
    meter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    async with asyncio.timeout(WAIT_MAX_S), block.running():
        n, woken = 0, 0
        while block.state.activations == 0:
            n += 1
            hz = 50.0 + n % 2 / 1e4 if n < 20 else max(49.45, 50.0 - 0.05 * (n - 20))
            meter.sendto(line(hz), (HOST, port))
            await asyncio.sleep(0.02)
            block.beat()
            woken = block.wakes
        for _ in range(20):
            await asyncio.sleep(0.01)
    meter.close()
    assert woken >= 1
    assert block.heard[-1].good
    (path,) = tmp_path.glob("frequency-*.csv")
    rows = [row for row in path.read_text().splitlines() if row[0].isdigit()]
    assert len(rows) >= 3
    assert rows[-1].endswith("1.0000,active")


def test_a_message_of_the_broker_is_a_sample_and_a_retained_one_is_of_the_past(mqtt_block):
    desk = mqtt_block.desk
    assert [one.topic for one in desk.subscriptions] == ["grid/hz"]
    assert not desk.on_message("other", line(49.0), False)
    assert desk.on_message("grid/hz", line(49.9), False)
    assert desk.on_message("grid/hz", line(49.0), True)
    assert desk.on_message("grid/hz", b"what", False)
    assert [one.value for one in mqtt_block.heard] == [49.9]
    assert sum(desk.told()["refused"].values()) == 2
    desk.close()


def test_samples_at_rest_do_not_wake_the_beat(mqtt_block):
    mqtt_block.beat()
    mqtt_block.desk.put(Measurement(49.97, True, now_s()))
    mqtt_block.desk.put(Measurement(49.0, False, now_s()))
    assert mqtt_block.wakes == 0
    mqtt_block.desk.close()


def test_silence_is_told_with_the_reason_that_the_wire_knows(tmp_path):
    block = Block(tmp_path, {"way": "phasor_tcp", "connect": "127.0.0.1:1", "id": 7})
    block.state = frequency.start(block.settings, now_s() - 100.0)
    block.beat()
    ((key, text),) = block.desk.alarms()
    assert key == "frequency"
    assert "127.0.0.1:1 was not called yet" in text
    assert block.desk.told()["phase"] == "waiting"
    block.desk.close()
