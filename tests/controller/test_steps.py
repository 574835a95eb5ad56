"""How long the steps of a call took: one line per call, and histograms."""

import json

import msgspec
import numpy as np
import pytest

from controller.core.model import UNKNOWN, ShedCall, ShedLevel
from controller.steps import BUCKETS_S, FILE_NAME, GIVE_UP_S, STEPS, Histogram, Steps
from tests.core.blocks import good, settings, snapshot

LEVELS = (ShedLevel("gentle", 2400.0), ShedLevel("deep", 1800.0))
NOW_S = 50.0
BOTH = (True, True)


class Decided:
    """As much of a decision as the steps are taken from."""

    def __init__(self, call: ShedCall) -> None:
        self.state = self.shedding = self
        self.call = call
        self.binding = type("Binding", (), {"source": "shed deep (contact)"})


class Followed:
    """Steps of a block with two nodes; times count from the signal."""

    def __init__(self, folder) -> None:
        self.path = folder / FILE_NAME
        self.steps = Steps(settings(shed_levels=LEVELS), folder)

    def call(self, *, asked=True, at_s=0.0, level=1, seq=7, nodes=BOTH, meter_w=2500.0):
        now_s = NOW_S + at_s
        if asked:
            self.steps.asked(now_s)
        seen = snapshot(now_s, meter=good(meter_w, now_s) if meter_w else UNKNOWN)
        call = ShedCall(seq=seq, level=level, version=3, nodes=np.array(nodes))
        self.steps.sent(seen, Decided(call), now_s + 0.001, now_s + 0.003)
        self.steps.beat(seen)

    def heard(self, node, at_s, *, seq=7, obeyed_in_s=0.004):
        self.steps.heard(node, seq, obeyed_in_s, NOW_S + at_s)

    def beat(self, at_s, meter_w=None, taken_s=None):
        taken_s = NOW_S + (at_s if taken_s is None else taken_s)
        meter = UNKNOWN if meter_w is None else good(meter_w, taken_s)
        self.steps.beat(snapshot(NOW_S + at_s, meter=meter))

    @property
    def last(self):
        return self.steps.told()["last"]

    def counts(self):
        return {step: sum(told["counts"]) for step, told in self.steps.told()["steps"].items()}

    def lines(self):
        self.steps.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def followed(tmp_path):
    made = Followed(tmp_path)
    yield made
    made.steps.close()


def test_a_call_is_followed_from_the_signal_to_the_watt(followed):
    followed.call()
    followed.heard(0, 0.010)
    followed.heard(1, 0.015, obeyed_in_s=0.006)
    followed.beat(0.1, 2300.0)
    followed.beat(0.2, 1830.0)
    assert {step: followed.last[f"{step}_s"] for step in STEPS} == pytest.approx(
        {"decided": 0.001, "sent": 0.003, "confirmed": 0.015, "obeyed": 0.006, "moved": 0.2}
    )
    assert (followed.last["level"], followed.last["source"]) == ("deep", "shed deep (contact)")
    assert (followed.last["before_w"], followed.last["nodes"]) == (2500.0, 2)
    assert (followed.last["without_table"], followed.last["unconfirmed"]) == ([], [])
    assert followed.counts() == dict.fromkeys(STEPS, 1)
    assert followed.lines() == [followed.steps.told()["last"]]


def test_a_step_that_was_not_seen_is_null_and_in_no_histogram(followed):
    followed.call(nodes=(True, False))
    followed.beat(GIVE_UP_S - 0.1, 2300.0)
    assert followed.last is None
    followed.beat(GIVE_UP_S + 0.1, 2300.0)
    assert [followed.last[f"{step}_s"] for step in ("confirmed", "obeyed", "moved")] == [None] * 3
    assert (followed.last["without_table"], followed.last["unconfirmed"]) == (["n1"], ["n0"])
    assert followed.counts() == {"decided": 1, "sent": 1, "confirmed": 0, "obeyed": 0, "moved": 0}


def test_power_that_was_measured_before_the_signal_has_not_moved(followed):
    followed.call()
    followed.beat(0.05, 1700.0, taken_s=-0.1)
    followed.beat(0.30, 1700.0)
    followed.heard(0, 0.31)
    followed.heard(1, 0.32)
    followed.beat(0.35)
    assert followed.last["moved_s"] == pytest.approx(0.30)


def test_an_answer_to_an_earlier_order_confirms_nothing(followed):
    followed.call()
    followed.heard(0, 0.01, seq=6)
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["unconfirmed"] == ["n0", "n1"]


def test_a_node_that_confirms_a_later_order_has_confirmed_the_call_but_tells_nothing_of_its_length(followed):
    followed.call()
    followed.heard(0, 0.01, seq=8, obeyed_in_s=5.0)
    followed.heard(1, 0.02, obeyed_in_s=-1.0)
    followed.beat(GIVE_UP_S + 1.0)
    assert (followed.last["confirmed_s"], followed.last["obeyed_s"]) == (pytest.approx(0.02), None)


def test_a_deeper_level_ends_the_line_of_the_one_before(followed):
    followed.call(level=0)
    followed.call(level=1, at_s=1.0, seq=9)
    followed.heard(0, 1.01, seq=9)
    followed.heard(1, 1.02, seq=9)
    followed.beat(1.1, 1700.0)
    lines = followed.lines()
    assert [line["level"] for line in lines] == ["gentle", "deep"]
    assert lines[1]["confirmed_s"] == pytest.approx(0.02)


def test_only_what_came_since_the_last_beat_is_taken_for_the_signal(followed):
    followed.steps.asked(NOW_S - 1.0)
    followed.beat(-0.5)
    followed.call(asked=False)
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["decided_s"] == pytest.approx(0.0), "nobody is known to have asked before"


def test_of_two_signals_in_one_beat_the_first_counts(followed):
    followed.steps.asked(NOW_S - 0.010)
    followed.call()
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["decided_s"] == pytest.approx(0.011)


def test_a_meter_that_is_not_usable_is_unknown_and_not_zero(followed):
    followed.call(meter_w=None)
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["before_w"] is None


def test_a_call_that_is_still_open_is_written_down_when_the_controller_stops(followed):
    followed.call()
    followed.heard(0, 0.01)
    assert [line["unconfirmed"] for line in followed.lines()] == [["n1"]]


@pytest.mark.parametrize(
    ("length_s", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (0.02, 4), (5.0, 11), (5.1, 12), (99.0, 12)]
)
def test_a_length_falls_into_the_first_bucket_that_is_not_shorter(length_s, bucket):
    histogram = Histogram()
    histogram.add(length_s)
    told = histogram.told()
    assert told["counts"].index(1) == bucket
    assert (sum(told["counts"]), told["sum_s"]) == (1, length_s)
    assert len(told["counts"]) == len(BUCKETS_S) + 1


def test_what_is_told_is_json(followed):
    followed.call()
    followed.beat(GIVE_UP_S + 1.0)
    assert msgspec.json.decode(msgspec.json.encode(followed.steps.told()))["last"]["nodes"] == 2
