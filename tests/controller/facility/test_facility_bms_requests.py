"""Requests of an integration: clamped, ramped, taken back. Time and plant are the test's own."""

import pytest

from controller.facility.config import BmsRequestConfig
from controller.facility.dsx_bms.requests import RETRY_S, STEP_S, Ask, Present
from protocols.bms import BAD, GOOD, Value


class Loop:
    """An ask and the plant it writes, a second a step."""

    def __init__(self, present=25.0, **settings):
        fields = {
            "point": "LiquidTemperatureSpRequest",
            "at": "devices/cdu-1",
            "writes": "devices/cdu-1/supply_target_c",
            "lowest": 20.0,
            "highest": 40.0,
        }
        self.config = BmsRequestConfig(**fields | settings)
        self.at_s, self.present, self.refusal = 1000.0, present, ""
        self.ask = Ask(self.config, self.at_s)
        self.written = []

    def hears(self, value, quality=GOOD):
        self.ask.hear(Value(value, 0, quality))

    def steps(self, count):
        for _ in range(count):
            self.at_s += STEP_S
            present = Present(self.present, self.at_s)
            value = self.ask.next_value(present, self.at_s)
            if value is None:
                continue
            self.ask.writes(value, present)
            if self.refusal:
                self.ask.was_refused(self.refusal, self.at_s)
            else:
                self.written.append(value)
                self.present = value
                self.ask.wrote(value, self.at_s)

    def writes_and_hears_nothing(self):
        """The plant takes one more step, and its answer is lost."""
        self.at_s += STEP_S
        present = Present(self.present, self.at_s)
        self.present = self.ask.next_value(present, self.at_s)
        self.ask.writes(self.present, present)

    def restarts(self):
        self.ask = Ask(self.config, self.at_s, self.ask.kept)


def test_what_is_asked_is_written_once():
    loop = Loop()
    loop.hears(30.0)
    loop.steps(5)
    loop.hears(30.0)
    loop.steps(5)
    assert loop.written == [30.0]
    assert loop.ask.why_not == ""


@pytest.mark.parametrize(("asked", "held"), [(99.0, 40.0), (-5.0, 20.0)])
def test_what_is_asked_is_held_within_its_limits_and_said(asked, held):
    loop = Loop()
    loop.hears(asked)
    loop.steps(3)
    assert loop.written == [held]
    assert f"held at {held:g}" in loop.ask.why_not


def test_what_is_written_moves_no_faster_than_its_rate():
    loop = Loop(present=25.0, rate_per_s=0.5)
    loop.hears(27.0)
    loop.steps(10)
    assert loop.written == [25.5, 26.0, 26.5, 27.0]


def test_silence_leads_back_to_where_it_was_as_slowly():
    loop = Loop(present=25.0, rate_per_s=1.0)
    loop.hears(27.0)
    loop.steps(10)
    loop.ask.silence()
    loop.steps(10)
    assert loop.written == [26.0, 27.0, 26.0, 25.0]
    assert loop.ask.kept is None


def test_silence_leads_to_the_safe_value_where_there_is_one():
    loop = Loop(present=25.0, safe=22.0)
    loop.hears(30.0)
    loop.steps(2)
    loop.ask.silence()
    loop.steps(2)
    assert loop.written == [30.0, 22.0]


@pytest.mark.parametrize("withdrawn", [(None, BAD), (30.0, BAD), (30.0, 7), (None, GOOD)])
def test_a_value_that_is_not_good_takes_the_request_back(withdrawn):
    loop = Loop()
    loop.hears(30.0)
    loop.steps(2)
    loop.hears(*withdrawn)
    loop.steps(2)
    assert loop.written == [30.0, 25.0]


def test_who_never_asked_moves_nothing():
    loop = Loop(safe=22.0)
    loop.ask.silence()
    loop.steps(100)
    assert loop.written == []


def test_nothing_is_written_without_a_way_back():
    loop = Loop(present=None)
    loop.hears(30.0)
    loop.steps(3)
    assert loop.written == []
    assert "no way back" in loop.ask.why_not
    loop.present = 25.0
    loop.steps(1)
    assert loop.written == [30.0]


def test_a_safe_value_is_a_way_back():
    loop = Loop(present=None, safe=22.0)
    loop.hears(30.0)
    loop.steps(1)
    assert loop.written == [30.0]


def test_a_rate_needs_a_present_value():
    loop = Loop(present=None, safe=22.0, rate_per_s=1.0)
    loop.hears(30.0)
    loop.steps(3)
    assert loop.written == []
    assert "cannot be ramped" in loop.ask.why_not


def test_a_refused_request_is_tried_again_later_and_says_why():
    loop = Loop()
    loop.refusal = "the block is switched to LOCAL"
    loop.hears(30.0)
    loop.steps(3)
    assert "LOCAL" in loop.ask.why_not
    loop.refusal = ""
    loop.steps(int(RETRY_S))
    assert loop.written == [30.0]


def test_a_request_that_was_never_carried_out_is_not_taken_back():
    """In LOCAL the operator's value stands, and stays when the integration dies."""
    loop = Loop()
    loop.refusal = "the block is switched to LOCAL"
    loop.hears(30.0)
    loop.steps(3)
    loop.present = 23.0
    loop.refusal = ""
    loop.ask.silence()
    loop.steps(30)
    assert loop.written == []
    assert loop.present == 23.0


def test_what_somebody_else_has_set_is_theirs():
    loop = Loop()
    loop.hears(30.0)
    loop.steps(3)
    loop.present = 27.0
    loop.steps(3)
    assert loop.written == [30.0]
    assert "somebody else has set it to 27" in loop.ask.why_not
    loop.ask.silence()
    loop.steps(3)
    assert loop.written == [30.0]
    loop.hears(31.0)
    loop.steps(3)
    assert loop.written == [30.0, 31.0]


def test_a_plant_that_rounds_is_not_somebody_else():
    loop = Loop()
    loop.hears(30.004)
    loop.steps(1)
    loop.present = 30.0
    loop.steps(10)
    assert loop.written == [30.004]
    loop.ask.silence()
    loop.steps(5)
    assert loop.written == [30.004, 25.0]


def test_a_restart_remembers_what_it_holds_and_the_way_back():
    loop = Loop(rate_per_s=1.0)
    loop.hears(28.0)
    loop.steps(2)
    loop.restarts()
    loop.steps(5)
    assert loop.written == [26.0, 27.0, 28.0]
    loop.restarts()
    loop.ask.silence()
    loop.steps(5)
    assert loop.written[3:] == [27.0, 26.0, 25.0]


def test_a_restart_between_write_and_answer_finds_out_what_became_of_it():
    loop = Loop()
    loop.hears(30.0)
    loop.ask.next_value(Present(25.0, loop.at_s), loop.at_s)
    loop.ask.writes(30.0, Present(25.0, loop.at_s))
    loop.restarts()
    loop.present = 30.0  # it was carried out
    loop.ask.silence()
    loop.steps(5)
    assert loop.written == [25.0]


@pytest.mark.parametrize(("said", "asked"), [(1.0, 1.0), (0.0, 0.0), (-1.0, None), (3.0, None), (None, None)])
def test_an_isolation_request_is_yes_no_or_unknown(said, asked):
    loop = Loop(point="RackLiquidIsolationRequest", at="racks/r1", writes=None, lowest=None, highest=None)
    loop.hears(said)
    loop.steps(3)
    assert loop.ask.asked == asked
    assert loop.written == []


def test_a_way_back_that_was_refused_is_tried_again():
    loop = Loop()
    loop.hears(30.0)
    loop.steps(5)
    loop.ask.silence()
    loop.refusal = "the block is switched to LOCAL"
    loop.steps(1)
    loop.refusal = ""
    loop.steps(60)
    assert loop.written == [30.0, 25.0]
    assert loop.ask.kept is None


def test_a_change_that_was_refused_is_tried_again():
    loop = Loop()
    loop.hears(30.0)
    loop.steps(5)
    loop.hears(32.0)
    loop.refusal = "device busy"
    loop.steps(1)
    loop.refusal = ""
    loop.steps(60)
    assert loop.written == [30.0, 32.0]
    assert loop.ask.why_not == ""


def test_refusals_do_not_walk_the_ramp():
    loop = Loop(rate_per_s=0.5)
    loop.hears(30.0)
    loop.steps(2)
    loop.refusal = "the block is switched to LOCAL"
    loop.steps(200)
    loop.refusal = ""
    loop.steps(12)
    assert loop.written[:4] == [25.5, 26.0, 26.5, 27.0]


@pytest.mark.parametrize("ends", ["refused", "killed"])
def test_a_write_in_force_whose_answer_is_lost_is_still_ours(ends):
    loop = Loop(rate_per_s=1.0)
    loop.hears(30.0)
    loop.steps(2)
    loop.writes_and_hears_nothing()
    if ends == "killed":
        loop.restarts()
    else:
        loop.ask.was_refused("no reply within 5 s: may be in force", loop.at_s)
    loop.steps(20)
    assert loop.written == [26.0, 27.0, 29.0, 30.0]
    loop.ask.silence()
    loop.steps(60)
    assert loop.present == 25.0
    assert loop.ask.kept is None


def test_a_ramp_waits_until_the_plant_shows_what_became_of_a_write():
    loop = Loop(rate_per_s=1.0)
    loop.hears(30.0)
    loop.steps(2)
    loop.writes_and_hears_nothing()
    loop.restarts()
    assert loop.ask.next_value(Present(27.0, loop.at_s - 1.0), loop.at_s + 1.0) is None
    assert loop.ask.next_value(Present(28.0, loop.at_s + 2.0), loop.at_s + 2.0) == 29.0


def test_a_request_that_is_only_shown_is_remembered_over_a_restart():
    loop = Loop(point="RackLeakDetectTray", at="racks/r1", writes=None, lowest=None, highest=None)
    loop.hears(1.0)
    loop.restarts()
    loop.steps(3)
    assert loop.ask.asked == 1.0
    loop.hears(None, BAD)
    assert loop.ask.kept is None
