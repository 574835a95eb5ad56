"""The desk: samples go to the board and wake the beat, activations are recorded, troubles are told."""

import asyncio
import contextlib
import csv
import json
import socket
from itertools import pairwise

import pytest
from pydantic import TypeAdapter

from controller.clock import now_s, now_utc_s
from controller.core import frequency
from controller.core.frequency_model import Phase, Underway
from controller.core.model import Measurement, Ramp
from controller.frequency import FrequencyConfig, FrequencyDesk, frequency_settings
from controller.frequency.desk import RECORD_SHARE
from controller.frequency.record import RATE_HZ

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


class Played:
    """Dynamic Containment of 100 kW on a clock of its own: a grid is played, and `records` are left.

    The block does what it is told, a beat later.
    """

    def __init__(self, folder, preset="gb_dynamic_containment_low", **changes):
        config = TypeAdapter(FrequencyConfig).validate_python(
            {"preset": preset, **changes, "committed_kw": 100.0, "input": {"way": "mqtt", "topic": "grid/hz"}}
        )
        self.settings = frequency_settings(config, Ramp(1e6, 1e6))
        self.folder, self.beats = folder, 0
        self.desk = FrequencyDesk(
            config,
            self.settings,
            clock=(lambda: self.now_s, lambda: now_utc_s() + self.now_s),
            on_measurement=lambda _: None,
            wake=lambda: None,
            folder=folder,
        )
        self.state = frequency.start(self.settings, self.now_s)

    @property
    def now_s(self):
        return self.beats * 0.05

    def play(self, *course, from_hz=50.0):
        """`course`: (until, Hz) in order; in between the frequency is on the way."""
        course = ((self.now_s, from_hz), *course)
        for (from_s, from_hz), (until_s, until_hz) in pairwise(course):
            while self.now_s < until_s:
                self.beats += 1
                part = min(1.0, (self.now_s - from_s) / (until_s - from_s))
                hz = from_hz + part * (until_hz - from_hz)
                self.desk.newest = Measurement(hz + self.beats % 2 * 1e-5, True, self.now_s)
                block_w = 400e3 - 100e3 * self.state.share
                self.state = frequency.step(self.settings, self.state, self.desk.newest, block_w, self.now_s)
                self.desk.after_beat(self.state, block_w, 500e3)
                self.desk._recorder.add(self.desk._row(self.state))
        self.desk.close()

    @property
    def records(self):
        """By file: (t_s, share) of all rows; and what the score says."""
        found = []
        for path in sorted(self.folder.glob("*.csv")):
            lines = path.read_text().splitlines()
            (said,) = [line for line in lines if line.startswith("# score")]
            table = csv.DictReader(line for line in lines if not line.startswith("#"))
            found.append(([(float(one["t_s"]), float(one["share"])) for one in table], said))
        return found


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


def test_a_response_that_goes_on_over_a_restart_is_not_recorded_as_one_that_begins(tmp_path):
    """Its seconds before and its crossing are gone: such a record would have a score of its own making."""
    grid = Played(tmp_path, "nordic_ffr_c_short")
    held = Underway(Phase.ACTIVE, 400e3, 100e3, raised_at_s=0.0, ready_from_s=900.0)
    grid.state = frequency.start(grid.settings, 0.0, held)
    grid.play((4.0, 49.3), from_hz=49.3)
    assert grid.state.share == 1.0
    assert grid.records == []


def test_a_fall_after_minutes_a_little_below_the_dead_band_is_recorded_from_its_own_crossing(tmp_path):
    """A droop is active all the while; its clock would have run for two minutes before the event."""
    grid = Played(tmp_path)
    grid.play((5.0, 50.0), (5.5, 49.96), (125.0, 49.96), (125.8, 49.6), (190.0, 49.6))
    ((rows, said),) = grid.records
    assert grid.state.activations == 1
    assert rows[0][0] <= -5.0
    assert rows[-1][0] == pytest.approx(60.0, abs=0.06)
    assert all(0.0 < share < RECORD_SHARE for t_s, share in rows if t_s < -0.1)
    assert sum(share >= RECORD_SHARE for _, share in rows) > 59 * RATE_HZ
    assert "95 % after 0." in said


@pytest.mark.parametrize("hz", [49.81, 49.79], ids=["below what is an event", "an event of its own"])
def test_a_fall_in_the_last_seconds_of_a_record_has_one_of_its_own(tmp_path, hz):
    grid = Played(tmp_path)
    grid.play((5.0, 50.0), (5.5, 49.79), (55.0, hz), (63.0, hz), (63.5, 49.55), (140.0, 49.55))
    (_, (rows, _)) = grid.records
    assert rows[0][0] <= -5.0
    assert rows[-1][0] == pytest.approx(60.0, abs=0.06)
    assert max(share for t_s, share in rows if t_s < -0.1) < 0.1
    assert sum(share > 0.8 for _, share in rows) > 59 * RATE_HZ


def test_a_fall_that_goes_on_from_an_event_long_over_is_an_event(tmp_path):
    grid = Played(tmp_path)
    grid.play((5.0, 50.0), (5.5, 49.78), (150.0, 49.78), (151.0, 49.55), (215.0, 49.55))
    (first, _), (second, _) = grid.records
    assert max(share for _, share in first) < 0.15
    assert max(share for t_s, share in second if t_s < -0.1) < 0.15
    assert sum(share > 0.8 for _, share in second) > 58 * RATE_HZ


def test_a_slow_fall_is_one_event_and_one_record(tmp_path):
    grid = Played(tmp_path)
    grid.play((5.0, 50.0), (14.0, 49.55), (80.0, 49.55))
    assert len(grid.records) == 1


def test_a_frequency_that_sways_about_the_threshold_makes_a_record_a_minute(tmp_path):
    grid = Played(tmp_path)
    swings = [(5.0 + n, 49.78 if n % 2 else 49.9) for n in range(300)]
    grid.play(*swings)
    assert 4 <= len(grid.records) <= 6


def test_a_response_that_waits_on_purpose_has_five_seconds_before_its_crossing_as_well(tmp_path):
    grid = Played(tmp_path, "eirgrid_ffr", trigger_hz=49.7, delay_s=1.5)
    grid.play((20.0, 50.0), (20.5, 49.6), (40.0, 49.6))
    ((rows, said),) = grid.records
    assert rows[0][0] <= -5.0
    assert next(t_s for t_s, share in rows if share) == pytest.approx(1.5, abs=0.2)
    assert "95 % after 1.5" in said
