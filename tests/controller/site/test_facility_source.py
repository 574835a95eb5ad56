"""Limits that operators set by hand: slots, priorities, ends, fallbacks, and the switch."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from controller.core import schedule
from controller.core.model import FOREVER_S, Ramp, Setpoint
from controller.site.facility import CRITICAL_EQUIPMENT, Facility, Slot

LEAST_W = 3000.0
ALICE = Slot("opcua alice", 8, 9000.0)
BMS = Slot("bms site", 10, 7000.0)
PANEL = Slot("panel bob", 8, 11_000.0, local=True)


class Block:
    """The facility's windows as the law runs them."""

    def __init__(self, facility: Facility | None = None) -> None:
        self.facility = facility or Facility(LEAST_W)
        self.now_s, self.now_utc_s = 10.0, 100.0
        self.running: tuple = ()
        self.ended: frozenset[Setpoint] = frozenset()

    def wait(self, seconds: float, wall_steps_s: float = 0.0) -> None:
        self.now_s += seconds
        self.now_utc_s += seconds + wall_steps_s

    def limit_w(self) -> float | None:
        """As one beat finds it."""
        facility = self.facility
        facility.beat(self.now_s)
        keys = frozenset(schedule._window(entry.setpoint) for entry in self.running)
        setpoints = tuple(facility.outlook.near(self.now_utc_s, keys, self.ended))
        self.running, self.ended = schedule.open_windows(
            self.running, self.ended, setpoints, self.now_s, self.now_utc_s
        )
        facility.hold(frozenset(entry.setpoint.id for entry in self.running))
        limits = schedule.limits(
            self.running, self.ended, setpoints, now_utc_s=self.now_utc_s, lead_s=0.0, ramp=Ramp(1.0, 1.0)
        )
        return min((limit.power_w for limit in limits), default=None)

    def put(self, slot: Slot) -> None:
        assert self.facility.put(slot, self.now_s) == ""


def test_the_highest_occupied_priority_counts_and_relinquishing_lets_the_next_one_count():
    block = Block()
    block.put(BMS)
    assert block.limit_w() == 7000.0
    block.put(ALICE)
    assert block.limit_w() == 9000.0  # an operator stands above the site, as in BACnet
    assert block.facility.release("opcua alice", None) == 1
    assert block.limit_w() == 7000.0
    assert block.facility.release("bms site", 10) == 1
    assert block.limit_w() is None
    assert block.facility.release("bms site", 10) == 0


def test_of_two_writers_at_one_priority_the_lower_limit_counts():
    block = Block()
    block.put(ALICE)
    block.put(replace(ALICE, writer="modbus plc", limit_w=8000.0))
    assert block.limit_w() == 8000.0


def test_a_limit_ends_when_its_time_is_up():
    block = Block()
    block.put(replace(ALICE, ends_utc_s=160.0))
    assert block.limit_w() == 9000.0
    block.wait(59.0)
    assert block.limit_w() == 9000.0
    block.wait(1.5)
    assert block.limit_w() is None
    assert block.facility.slots == ()


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_step_of_the_wall_clock_neither_ends_nor_stretches_it(step_s: float):
    block = Block()
    block.put(replace(ALICE, ends_utc_s=160.0, then_w=5000.0))
    assert block.limit_w() == 9000.0
    block.wait(30.0, wall_steps_s=step_s)
    assert block.limit_w() == 9000.0
    block.wait(31.0)
    assert block.limit_w() == 5000.0
    assert block.limit_w() == 5000.0


def test_its_fallback_holds_from_then_on_until_it_is_released():
    block = Block()
    block.put(replace(ALICE, ends_utc_s=160.0, then_w=5000.0))
    assert block.limit_w() == 9000.0
    block.wait(61.0)
    assert block.limit_w() == 5000.0
    block.wait(100_000.0)
    assert block.limit_w() == 5000.0
    assert block.facility.limit_w == 5000.0
    block.facility.release("opcua alice", 8)
    assert block.limit_w() is None


def test_a_writer_whose_promised_heartbeat_stays_away_loses_its_limit():
    block = Block()
    block.put(replace(ALICE, heartbeat_timeout_s=5.0, then_w=4000.0))
    for _ in range(5):
        block.wait(4.0)
        assert block.facility.heartbeat("opcua alice", block.now_s)
        assert block.limit_w() == 9000.0
    block.wait(5.1)
    assert block.limit_w() == 4000.0
    assert not block.facility.heartbeat("nobody", block.now_s)


def turn(block: Block, mode: str, local: bool = True) -> None:
    block.facility.switch(mode, "panel bob", block.now_utc_s, local=local)


def test_turning_the_switch_to_local_and_back_moves_no_power_and_drops_no_limit():
    block = Block()
    block.put(replace(BMS, ends_utc_s=1000.0, then_w=5000.0))
    block.put(replace(ALICE, heartbeat_timeout_s=500.0))
    for mode in ("local", "remote", "local", "remote"):
        turn(block, mode)
        assert block.limit_w() == 9000.0
    assert len(block.facility.slots) == 2


def test_in_local_the_panel_stands_before_all_others_and_in_remote_priority_decides():
    block = Block()
    block.put(BMS)
    block.put(PANEL)
    turn(block, "local")
    assert block.limit_w() == 11_000.0
    block.put(replace(BMS, priority=1))
    assert block.limit_w() == 11_000.0
    assert block.facility.limit_w == 11_000.0
    turn(block, "remote")
    assert block.limit_w() == 7000.0
    assert block.facility.limit_w == 7000.0


def test_a_limit_of_the_panel_counts_in_remote_too():
    block = Block()
    block.put(PANEL)
    assert block.limit_w() == 11_000.0


def test_what_was_promised_before_local_happens_in_local_too():
    block = Block()
    block.put(replace(BMS, ends_utc_s=160.0, then_w=5000.0))
    turn(block, "local")
    assert block.limit_w() == 7000.0
    block.wait(61.0)
    assert block.limit_w() == 5000.0


def test_off_leads_to_the_least_whoever_wants_what():
    block = Block()
    block.put(ALICE)
    turn(block, "off")
    assert block.limit_w() == LEAST_W
    assert dict(block.facility.alarms(0.0))["facility mode"]


@pytest.mark.parametrize("mode", ["remote", "local"])
def test_turning_off_back_starts_nothing_until_somebody_releases_it(mode: str):
    block = Block()
    block.put(ALICE)
    turn(block, "off")
    block.limit_w()
    turn(block, mode)
    assert block.limit_w() == LEAST_W
    assert block.facility.release("panel bob", None) == 1
    assert block.limit_w() == 9000.0


def test_a_fallback_keeps_the_priority_of_its_slot():
    block = Block()
    block.put(replace(ALICE, limit_w=8000.0, heartbeat_timeout_s=5.0, then_w=3500.0))
    block.put(replace(ALICE, writer="opcua bob", limit_w=12_000.0))
    assert block.limit_w() == 8000.0
    block.wait(6.0)
    assert block.limit_w() == 3500.0
    assert block.facility.limit_w == 3500.0


def test_a_writer_that_fell_silent_is_an_alarm_until_it_speaks_again():
    block = Block()
    guarded = replace(ALICE, heartbeat_timeout_s=5.0, then_w=4000.0)
    block.put(guarded)
    block.wait(6.0)
    block.limit_w()
    ((key, text),) = block.facility.alarms(block.now_s)
    assert key == "lapsed opcua alice"
    assert "9.00 kW ended, 4.00 kW holds" in text
    assert not block.facility.heartbeat("opcua alice", block.now_s)
    block.put(guarded)
    assert list(block.facility.alarms(block.now_s)) == []


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_time_that_is_left_is_told_by_the_clock_that_does_not_step(step_s: float):
    block = Block()
    block.put(replace(ALICE, ends_utc_s=700.0))
    block.facility.tell(seen(block), None)
    block.wait(100.0, wall_steps_s=step_s)
    assert block.facility.remaining_s(block.facility.slots[0], block.now_s) == 500.0


def seen(block: Block):
    return SimpleNamespace(now_s=block.now_s, now_utc_s=block.now_utc_s)


def test_a_wall_clock_that_steps_back_at_once_keeps_no_limit_from_opening():
    block = Block()
    block.put(ALICE)
    block.wait(0.01, wall_steps_s=-90.0)
    assert block.limit_w() == 9000.0


def test_slots_and_switch_survive_a_restart():
    block = Block()
    block.put(replace(ALICE, ends_utc_s=160.0, then_w=5000.0, ramp=Ramp(100.0, 50.0)))
    turn(block, "local")
    kept = msgspec.json.decode(msgspec.json.encode(block.facility.kept()))
    again = Facility(LEAST_W, kept)
    assert again.mode == "local"
    assert again.slots == block.facility.slots
    assert again.kept() == block.facility.kept()


@pytest.mark.parametrize(
    "kept", [[], {"mode": "sideways"}, {"mode": "local", "since_utc_s": 0, "slots": [{}]}]
)
def test_what_was_kept_by_another_program_is_refused_whole(kept: object):
    with pytest.raises(msgspec.ValidationError):
        Facility(LEAST_W, kept)


def test_slots_are_bounded_and_a_full_house_still_lets_a_writer_change_its_own():
    facility = Facility(LEAST_W)
    refusals = [facility.put(replace(ALICE, writer=f"w{number}"), 0.0) for number in range(40)]
    assert refusals.count("") == 32
    assert "release one" in refusals[-1]
    assert facility.put(replace(ALICE, writer="w0", limit_w=1.0), 0.0) == ""
    assert facility.limit_w == 1.0
    assert facility.put(replace(ALICE, writer="safety", priority=1), 0.0) == ""
    assert ALICE.ends_utc_s == FOREVER_S


# --- calls of levels of shedding ----------------------------------------------------------------------

LEVELS_W = (10_000.0, 8_600.0)
CALL = Slot("opcua alice", CRITICAL_EQUIPMENT, 8_600.0, shed_level=1)


def called(block: Block) -> list[tuple[str, int]]:
    """What one beat calls."""
    block.limit_w()
    return [(request.source, request.level) for request in schedule.called(block.running)]


def test_a_call_is_a_level_and_no_power_limit_and_a_limit_beside_it_holds():
    block = Block()
    block.put(CALL)
    assert (block.limit_w(), block.facility.limit_w) == (None, None)
    assert called(block) == [("facility opcua alice's call", 1)]
    block.put(replace(ALICE, limit_w=6000.0))
    assert block.limit_w() == 6000.0
    assert called(block) == [("facility opcua alice's call", 1)]
    block.facility.release("opcua alice", None)
    assert len(called(block)) == 1, "a released limit ends no call"
    assert block.facility.release("opcua alice", None, shed=True) == 1
    assert called(block) == []


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_call_ends_when_its_time_is_up_whatever_the_wall_clock_does(step_s: float):
    block = Block()
    block.put(replace(CALL, ends_utc_s=160.0))
    assert len(called(block)) == 1
    block.wait(59.0, wall_steps_s=step_s)
    assert len(called(block)) == 1
    block.wait(1.5)
    assert called(block) == []
    block.limit_w()
    assert block.facility.slots == ()


def test_in_remote_the_deeper_call_counts_and_in_local_that_of_the_panel():
    block = Block()
    block.put(CALL)
    block.put(Slot("panel bob", CRITICAL_EQUIPMENT, 10_000.0, local=True, shed_level=0))
    assert called(block) == [("facility opcua alice's call", 1)]
    turn(block, "local")
    assert called(block) == [("facility panel bob's call", 0)]


def restarted(facility: Facility, levels_w: tuple[float, ...]) -> Facility:
    return Facility(LEAST_W, msgspec.json.decode(msgspec.json.encode(facility.kept())), levels_w)


@pytest.mark.parametrize(
    ("levels_w", "level", "limit_w"),
    [
        (LEVELS_W, 1, None),
        ((12_000.0, *LEVELS_W), 2, None),  # a level was put before it
        ((9_000.0, 8_000.0), 1, None),  # the gentlest that sheds as much
        ((9_000.0,), 0, None),  # none does: the deepest
        ((), None, 8_600.0),  # none is left: what was meant is a power
    ],
)
def test_a_call_survives_a_restart_by_its_power_even_when_the_levels_have_changed(levels_w, level, limit_w):
    block = Block()
    block.put(CALL)
    again = Block(restarted(block.facility, levels_w))
    assert [one for _, one in called(again)] == ([] if level is None else [level])
    assert again.limit_w() == limit_w
