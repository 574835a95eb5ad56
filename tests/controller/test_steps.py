"""How long the steps of a call took: one line per call, and histograms."""

import json

import msgspec
import numpy as np
import pytest

from controller.core import law
from controller.core.model import UNKNOWN, Limit, Setpoint, ShedCall, ShedLevel, ShedRequest, Site
from controller.steps import BUCKETS_S, FILE_NAME, GIVE_UP_S, STEPS, Histogram, Steps
from protocols.agent_link import Gpu, Report
from tests.core.blocks import UTC_0, good, settings, snapshot

LEVELS = (ShedLevel("gentle", 2400.0), ShedLevel("deep", 1800.0))
NOW_S = 50.0
BOTH = (True, True)
CALLED_W = 300.0


class Decided:
    """As much of a decision as the steps are taken from."""

    def __init__(self, call: ShedCall | None) -> None:
        self.state = self.shedding = self
        self.call = call
        self.gpu_limits_w = np.full(4, CALLED_W)
        self.limits = (Limit(2400.0, "shed gentle (alice)"), Limit(1800.0, "shed deep (contact stop)"))


def report(node, limits_w, *, seq=7, obeyed_in_s=0.004, came_ago_s=0.005):
    """As an agent says it."""
    gpus = tuple(
        Gpu(power_w=250.0, limit_w=limit_w, enforced_w=limit_w, min_w=200.0, max_w=700.0)
        for limit_w in limits_w
    )
    return Report(
        node=f"n{node}",
        boot="b",
        at_s=1.0,
        echo_sent_at_s=1.0,
        echo_age_s=0.0,
        epoch=1,
        seq=seq,
        mode="leased",
        gpus=gpus,
        came_ago_s=came_ago_s,
        obeyed_in_s=obeyed_in_s,
    )


class Followed:
    """Steps of a block with two nodes; times count from the signal."""

    def __init__(self, folder) -> None:
        self.path = folder / FILE_NAME
        self.steps = Steps(settings(shed_levels=LEVELS), folder)

    def call(
        self,
        *,
        asked=True,
        at_s=0.0,
        level=1,
        seq=7,
        nodes=BOTH,
        meter_w=2500.0,
        written=True,
    ):
        now_s = NOW_S + at_s
        if asked:
            self.steps.asked(now_s)
        seen = snapshot(now_s, meter=good(meter_w, now_s) if meter_w else UNKNOWN)
        call = ShedCall(seq=seq, level=level, version=3, nodes=np.array(nodes))
        written_s = now_s + 0.003 if written else None
        self.steps.sent(seen, Decided(call), now_s + 0.001, written_s)
        self.steps.beat(seen)

    def heard(self, node, at_s, *limits_w, **said):
        """Limits of its two GPUs as read back; without them it has done as called."""
        self.steps.heard(node, report(node, limits_w or (CALLED_W, CALLED_W), **said), NOW_S + at_s)

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


def silent(name):
    return {"node": name, "gpus": [], "limit_w": None}


@pytest.fixture
def followed(tmp_path):
    made = Followed(tmp_path)
    yield made
    made.steps.close()


def test_a_call_is_followed_from_the_signal_to_the_watt(followed):
    followed.call()
    followed.heard(0, 0.010)
    followed.heard(1, 0.015, obeyed_in_s=0.006, came_ago_s=0.008)
    followed.beat(0.1, 2300.0)
    followed.beat(0.2, 1830.0)
    assert {step: followed.last[f"{step}_s"] for step in STEPS} == pytest.approx(
        {
            "decided": 0.001,
            "sent": 0.003,
            "received": 0.007,
            "confirmed": 0.015,
            "obeyed": 0.006,
            "moved": 0.2,
        }
    )
    assert (followed.last["level"], followed.last["source"]) == ("deep", "shed deep (contact stop)")
    assert (followed.last["before_w"], followed.last["nodes"]) == (2500.0, 2)
    assert (followed.last["without_table"], followed.last["unconfirmed"]) == ([], [])
    assert followed.counts() == dict.fromkeys(STEPS, 1)
    assert followed.lines() == [followed.steps.told()["last"]]


def test_a_step_that_was_not_seen_is_null_and_in_no_histogram(followed):
    followed.call(nodes=(True, False))
    followed.beat(GIVE_UP_S - 0.1, 2300.0)
    assert followed.last is None
    followed.beat(GIVE_UP_S + 0.1, 2300.0)
    assert [followed.last[f"{step}_s"] for step in ("received", "confirmed", "obeyed", "moved")] == [None] * 4
    assert (followed.last["without_table"], followed.last["unconfirmed"]) == (["n1"], [silent("n0")])
    assert followed.counts() == dict.fromkeys(STEPS, 0) | {"decided": 1, "sent": 1}


def test_the_last_agent_that_had_the_call_is_the_step_whatever_it_then_did(followed):
    """A node that could not lower a GPU had its call all the same, and one that took long had it early."""
    followed.call()
    followed.heard(0, 0.010, CALLED_W, 650.0, came_ago_s=0.002)
    followed.heard(1, 0.500, came_ago_s=0.496)
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["received_s"] == pytest.approx(0.008)
    assert followed.last["confirmed_s"] is None


@pytest.mark.parametrize(
    "said",
    [{"came_ago_s": -1.0}, {"seq": 8}, {"came_ago_s": 0.0095}],
    ids=["an older agent", "overtaken by the next order", "before anything was decided"],
)
def test_when_one_agent_had_the_call_is_not_known_while_it_does_not_say_so(followed, said):
    followed.call()
    followed.heard(0, 0.010, **said)
    followed.heard(1, 0.015)
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["received_s"] is None
    assert (followed.counts()["received"], followed.counts()["confirmed"]) == (0, 1)


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
    assert followed.last["unconfirmed"] == [silent("n0"), silent("n1")]


def test_a_node_that_confirms_a_later_order_has_confirmed_the_call_but_tells_nothing_of_its_length(followed):
    followed.call()
    followed.heard(0, 0.01, seq=8, obeyed_in_s=5.0)
    followed.heard(1, 0.02, obeyed_in_s=-1.0)
    followed.beat(GIVE_UP_S + 1.0)
    assert (followed.last["confirmed_s"], followed.last["obeyed_s"]) == (pytest.approx(0.02), None)


@pytest.mark.parametrize("seq", [7, 8])
def test_a_gpu_that_was_never_lowered_keeps_its_call_unconfirmed_and_is_named(followed, seq):
    """Its agent confirms the order all the same: everything due was written or has a fault."""
    followed.call()
    followed.heard(0, 0.010, CALLED_W, 650.0, seq=seq)
    followed.heard(1, 0.015)
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["unconfirmed"] == [{"node": "n0", "gpus": [1], "limit_w": 650.0}]
    assert (followed.last["confirmed_s"], followed.last["obeyed_s"]) == (None, None)
    assert (followed.counts()["confirmed"], followed.counts()["obeyed"]) == (0, 0)


@pytest.mark.parametrize("limit_w", [None, 0.0])
def test_a_limit_that_cannot_be_read_or_be_true_confirms_nothing(followed, limit_w):
    followed.call()
    followed.heard(0, 0.010, limit_w, 301.0)
    followed.heard(1, 0.015)
    followed.beat(GIVE_UP_S + 1.0)
    assert followed.last["unconfirmed"] == [{"node": "n0", "gpus": [0], "limit_w": limit_w}]
    assert followed.last["confirmed_s"] is None


def test_a_gpu_that_goes_down_late_confirms_then_and_its_first_length_does_not_count(followed):
    followed.call()
    followed.heard(0, 0.010, CALLED_W, 650.0)
    followed.heard(1, 0.015)
    followed.heard(0, 2.0)
    followed.beat(GIVE_UP_S + 1.0)
    assert (followed.last["confirmed_s"], followed.last["unconfirmed"]) == (pytest.approx(2.0), [])
    assert followed.last["obeyed_s"] is None, "4 ms were told before its last GPU was down"


def test_a_gpu_that_was_seen_down_may_be_given_more_before_the_others_are(followed):
    followed.call()
    followed.heard(0, 0.010)
    followed.heard(0, 0.900, 350.0, 350.0, seq=9)
    followed.heard(1, 1.0)
    followed.beat(GIVE_UP_S + 1.0)
    assert (followed.last["confirmed_s"], followed.last["unconfirmed"]) == (pytest.approx(1.0), [])


@pytest.mark.parametrize("told_s", [-1.0, 1e300], ids=["overtaken by the next order", "beyond belief"])
def test_how_long_the_slowest_took_is_not_known_while_one_has_not_told(followed, told_s):
    followed.call()
    followed.heard(0, 0.010, obeyed_in_s=told_s)
    followed.heard(1, 0.015)
    followed.beat(GIVE_UP_S + 1.0)
    assert (followed.last["confirmed_s"], followed.last["obeyed_s"]) == (pytest.approx(0.015), None)


def test_a_shed_by_orders_alone_leaves_a_line_that_says_so(followed):
    """All tables were just renewed, and nobody had confirmed his yet."""
    decided = Decided(None)
    decided.level = 1
    followed.steps.asked(NOW_S)
    followed.steps.sent(snapshot(NOW_S, meter=good(2500.0, NOW_S)), decided, NOW_S + 0.002, None)
    followed.steps.heard(0, report(0, (250.0, 250.0)), NOW_S + 0.05)
    followed.steps.beat(snapshot(NOW_S + 0.3, meter=good(1790.0, NOW_S + 0.3)))
    followed.steps.beat(snapshot(NOW_S + GIVE_UP_S + 0.1))
    followed.steps.close()
    (line,) = followed.lines()
    assert (line["level"], line["nodes"], line["unconfirmed"]) == ("deep", 0, [])
    assert line["without_table"] == ["n0", "n1"]
    assert (line["decided_s"], line["moved_s"]) == (pytest.approx(0.002), pytest.approx(0.3))
    assert [line[f"{step}_s"] for step in ("sent", "received", "confirmed", "obeyed")] == [None] * 4


def test_a_call_that_no_connection_took_was_not_sent(followed):
    followed.call(written=False)
    followed.beat(GIVE_UP_S + 1.0)
    assert (followed.last["decided_s"], followed.last["sent_s"]) == (pytest.approx(0.001), None)
    assert followed.counts()["sent"] == 0


def test_a_call_has_the_names_of_those_who_asked_for_its_level_whatever_binds(tmp_path):
    """Cooling leaves less than the level; a window and a contact ask for it, and an operator for a gentler one."""
    block = settings(shed_levels=LEVELS, cooling_blind_w=1500.0)
    window = Setpoint("openadr", "em-1", "shed", 1800.0, UTC_0 + 8.0, UTC_0 + 600.0, shed_level=1)
    sheds, site = (ShedRequest("alice", 0), ShedRequest("contact stop", 1)), Site(setpoints=(window,))
    state = law.start(block, 0.0)
    for beat in range(1, 200):
        now_s = beat * block.tick_s
        seen = snapshot(
            now_s,
            cooling=good(1600.0, now_s),
            meter=good(1400.0, now_s),
            sheds=sheds if now_s >= 8.0 else (),
            site=site,
            limit_w=state.ledger.limits_w[-1],
            seq=state.ledger.seq,
            table=state.shedding.table.version,
            revision=beat,
        )
        decision = law.tick(block, state, seen)
        state = decision.state
        if state.shedding.call is not None:
            break
    steps = Steps(block, tmp_path)
    steps.sent(seen, decision, now_s, now_s)
    steps.close()
    assert decision.binding.source == "cooling capacity"
    assert steps.told()["last"]["source"] == "shed deep (contact stop), shed deep (openadr em-1)"


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
    assert [line["unconfirmed"] for line in followed.lines()] == [[silent("n1")]]


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
