"""What the block answers in DSX Flex: the right event at the right moment, and the truth about the meter."""

from dataclasses import replace

import numpy as np
import pytest

from controller.core import law
from controller.core.model import UNKNOWN
from tests.controller.site.dsx_site import NOW_S, UTC_S, Site, target
from tests.core.blocks import SETTINGS, good, snapshot

DECIDED = law.tick(SETTINGS, law.start(SETTINGS, 0.0), snapshot(0.0))
BEAT_S = 0.05


class Block(Site):
    """A block of the law's making: aim and meter are whatever the test says."""

    limits_ratio = 0.5  # of what each GPU may have at most

    def beat(self, at_s, aim_w, metered_w=None, shortfall_w=0.0):
        now_s = NOW_S + at_s
        state = DECIDED.state._replace(pace=DECIDED.state.pace._replace(aim_w=aim_w))
        decision = DECIDED._replace(
            state=state,
            budget_w=aim_w,
            shortfall_w=shortfall_w,
            gpu_limits_w=self.limits_ratio * self.settings.topology.gpu_max_w,
        )
        meter = UNKNOWN if metered_w is None else good(metered_w, now_s)
        seen = snapshot(now_s, now_utc_s=UTC_S + at_s, meter=meter)
        gpus = replace(seen.gpus, power_w=np.array([300.0] * 8 + [600.0] * 8))
        seen = seen._replace(gpus=gpus)
        self.source.tell(seen, decision)

    def run(self, from_s, until_s, aim_w, metered_w=None):
        """Beats from one moment to another; `aim_w` and `metered_w` are functions of the time."""
        at_s = from_s
        while at_s < until_s:
            self.beat(at_s, aim_w(at_s), None if metered_w is None else metered_w(at_s))
            at_s += BEAT_S

    @property
    def events(self):
        return [said["feeds"]["main-a"]["event"] for said in self.wire.data("powerstate/status")]

    @property
    def newest(self):
        return self.wire.data("powerstate/status")[-1]["feeds"]["main-a"]


@pytest.fixture
def block(block_with, tmp_path):
    return Block(block_with, tmp_path)


def at(power_w):
    return lambda _: power_w


def down(at_s):
    return max(9_500.0, 13_000.0 - 600.0 * (at_s - 1.0))


def test_an_event_is_told_from_target_to_recovery_in_its_right_order(block):
    block.run(0.0, 1.0, at(13_000.0), at(12_900.0))
    block.send(target(9.5, ends=30.0), at_s=1.0)
    block.run(1.0, 20.0, down, lambda s: down(s) - 50.0)
    block.run(20.0, 35.0, lambda s: min(13_000.0, 9_500.0 + 400.0 * (s - 20.0)), at(9_400.0))
    assert [one for one in block.events if one != "periodic"] == [
        "target_set",
        "start_ramp_down",
        "end_ramp_down",
        "start_ramp_up",
        "end_ramp_up",
    ]
    assert block.events[0] == "periodic", "told at once, so that nobody waits for the first one"


@pytest.mark.parametrize("metered_w", [9_400.0, 4_000.0, None])
def test_limits_that_rise_are_a_ramp_up_whatever_the_meter_shows(block, metered_w):
    """At the end of an event swings may have the meter far below the aim: the ramp is told all the same."""
    meter = None if metered_w is None else at(metered_w)
    block.run(0.0, 10.0, lambda s: min(13_000.0, 9_500.0 + 400.0 * s), meter)
    block.run(10.0, 12.0, at(13_000.0), meter)
    assert block.events == ["periodic", "start_ramp_up", "end_ramp_up"]


def test_a_budget_that_rises_over_gpus_at_their_most_moves_nothing(block):
    block.limits_ratio = 1.0
    block.run(0.0, 9.0, lambda s: 9_500.0 + 400.0 * s, at(9_400.0))
    assert block.events == ["periodic"]


def test_compliant_is_what_the_meter_says(block):
    block.send(target(9.5), at_s=0.0)
    block.run(0.0, 12.0, at(9_500.0), at(9_900.0))
    assert block.newest["compliant"] is False
    block.run(12.0, 24.0, at(9_500.0), at(9_450.0))
    assert block.newest["compliant"] is True


def test_unmetered_is_not_compliant(block):
    block.send(target(9.5), at_s=0.0)
    block.run(0.0, 12.0, at(9_500.0))
    assert block.newest["compliant"] is False


def test_a_status_carries_the_trace_and_the_thread_of_the_command_that_caused_it(block):
    thread = "0b9f6f43-6a4e-4c0e-9f7a-1c1d6a1f5e11"
    block.beat(0.0, 13_000.0, 12_000.0)
    block.send(target(9.5), at_s=1.0, correlation_id=thread)
    block.beat(1.0, 13_000.0, 12_000.0)
    first, second = (said for _, said, _ in block.wire.sent)
    assert second["correlationid"] == thread
    assert second["traceparent"].split("-")[1] == bytes(range(1, 17)).hex()
    assert first["traceparent"] != second["traceparent"]
    assert "correlationid" not in first


def test_the_topic_names_the_agent_in_the_spelling_of_the_site(block_with, tmp_path):
    block = Block(block_with, tmp_path, role="poweragent")
    block.beat(0.0, 13_000.0, 12_000.0)
    (topic, said, qos) = block.wire.sent[0]
    assert (topic, qos) == ("grid/v1/poweragent/block-1/powerstate/status", 1)
    assert said["source"] == "//grid/v1/poweragent/block-1"


def test_a_breach_lives_from_active_to_resolved_with_one_id_and_advice(block):
    block.send(target(9.5), at_s=0.0)
    block.run(0.0, 10.0, at(9_500.0), at(10_200.0))
    block.run(10.0, 20.0, at(9_500.0), at(9_400.0))
    first, last = block.wire.data("powerbreach")
    assert (first["status"], first["severity"], last["status"]) == ("active", "warning", "resolved")
    assert first["breach"]["breach_id"] == last["breach"]["breach_id"]
    assert [one["resource_id"] for one in first["shed_hints"]] == ["node-a", "node-b"], "light tiers first"
    assert "shed_hints" not in last
    assert {qos for topic, _, qos in block.wire.sent if topic.endswith("powerbreach")} == {2}


def test_above_the_target_on_the_agreed_ramp_is_no_breach(block):
    block.send(target(9.5), at_s=1.0)
    block.run(1.0, 6.0, down, lambda s: down(s) + 20.0)
    assert block.wire.data("powerbreach") == []


def test_a_broker_without_qos_2_gets_qos_1(block_with, tmp_path):
    block = Block(block_with, tmp_path, alert_qos=1)
    block.send(target(9.5), at_s=0.0)
    block.run(0.0, 5.0, at(9_500.0), at(12_000.0))
    assert {qos for topic, _, qos in block.wire.sent} == {1}
    assert block.wire.data("powerbreach")[0]["severity"] == "critical"


def test_a_restart_begins_no_event_that_was_told_before(block, block_with, tmp_path):
    block.send(target(9.5), at_s=0.0)
    block.run(0.0, 3.0, at(9_500.0), at(9_400.0))
    again = Block(block_with, tmp_path, kept=block.source.kept())
    again.run(3.0, 6.0, at(9_500.0), at(9_400.0))
    assert again.events == ["periodic"]
    assert again.newest["targets"][0]["active"] is True


def test_a_plan_of_a_thousand_targets_is_told_as_far_as_it_is_near(block_with, tmp_path):
    block = Block(block_with, tmp_path)
    block.send(*(target(9.0 + number % 3, 300.0 * number, 300.0 * (number + 1)) for number in range(1000)))
    block.beat(1.0, 13_000.0, 12_000.0)
    assert len(block.newest["targets"]) == 21
    assert "status dsx" not in dict(block.source.alarms(NOW_S))


def test_what_cannot_be_told_is_an_alarm_until_the_next_one_is(block):
    block.beat(0.0, 13_000.0, 1e15)
    assert "powerstate.status.v1 could not be told: power" in dict(block.source.alarms(NOW_S))["status dsx"]
    block.run(0.05, 11.0, at(13_000.0), at(12_000.0))
    assert "status dsx" not in dict(block.source.alarms(NOW_S))


def test_where_another_source_tells_this_one_is_silent(block_with, tmp_path):
    block = Block(block_with, tmp_path, tells=False, signing_key=None, signing_kid=None)
    block.send(target(9.5), at_s=0.0)
    block.run(0.0, 5.0, at(9_500.0), at(12_000.0))
    assert block.wire.sent == []
    assert len(block.setpoints()) == 1
