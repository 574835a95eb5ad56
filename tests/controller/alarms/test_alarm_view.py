"""`powerblock alarms`: what a person reads, on a narrow and on a wide terminal."""

import msgspec
import pytest
from rich.console import Console

from controller.alarms import AlarmDesk
from controller.views import alarms as view
from tests.controller.alarms.alarm_play import UTC_0

CASCADE = [
    ("broker", "refused"),
    ("agent n0", "agent on n0 silent"),
    ("inlet r1-a", "carries 9.12 of 8.83 kW"),
]


@pytest.fixture
def desk(tmp_path):
    it = AlarmDesk(tmp_path, clock=(lambda: 0.0, lambda: UTC_0))
    for number in range(1, 3):
        it.update(CASCADE[:number], float(number), UTC_0 + number)
    yield it
    it.close()


def drawn(desk, columns, now_utc_s=UTC_0 + 60.0, age_s=0.0):
    alarms = msgspec.to_builtins(desk.view())
    told = {"block": "hall-a", "at_utc_s": now_utc_s - age_s, "alarms": alarms}
    console = Console(width=columns, force_terminal=False)
    with console.capture() as capture:
        console.print(view.render(told, now_utc_s, columns))
    return capture.get()


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_every_alarm_says_what_it_is_and_what_to_do(desk, columns):
    desk.update(CASCADE, 3.0, UTC_0 + 3.0)
    shown = drawn(desk, columns)
    assert all(len(line) <= columns for line in shown.splitlines())
    assert words(shown).startswith("hall-a 3 active, 3 not acknowledged ● critical inlet r1-a unacknowledged")
    for said in (
        "carries 9.12 of 8.83 kW",
        "followed broker",
        "came first; 2 followed",
        "systemctl status mosquitto",
    ):
        assert said in words(shown), said


def test_alarms_of_a_controller_that_was_killed_say_how_old_they_are_first(desk):
    shown = words(drawn(desk, 80, age_s=95.0))
    assert shown.startswith("controller not running or stuck: last written 1 min 35 s ago; what follows was")
    assert "hall-a 2 active" in shown


def test_what_is_over_says_so_and_asks_for_nothing_but_a_look(desk):
    for at_s in (10.0, 20.0):
        desk.update([], at_s, UTC_0 + at_s)
    shown = words(drawn(desk, 80))
    assert "0 active, 2 not acknowledged" in shown
    assert "over: agent on n0 silent" in shown
    assert "→" not in shown


def test_a_latched_alarm_says_that_it_is_to_be_reset(desk):
    desk.update(CASCADE, 3.0, UTC_0 + 3.0)
    assert "latches: to be reset when it is over" in words(drawn(desk, 80))
    for at_s in (10.0, 20.0):
        desk.update([], at_s, UTC_0 + at_s)
    assert "latched: to be reset" in words(drawn(desk, 80))


def test_hidden_alarms_come_last_and_say_who_hid_them_and_why(desk):
    desk.command("shelve", "ben", key="broker", for_s=3600.0, reason="being updated")
    desk.command("out_of_service", "carla", key="cooling", reason="chiller is being replaced")
    shown = words(drawn(desk, 80))
    assert "1 active, 1 not acknowledged, 2 hidden" in shown
    assert "came 14:13:21 UTC" not in shown.partition("agent n0")[0]
    for said in (
        "broker shelved until 15:13:20 UTC",
        "by ben: being updated",
        "cooling out of service by carla: chiller is being replaced did not come so far",
    ):
        assert said in shown, said
    assert shown.index("agent n0") < shown.index("broker shelved")


def test_a_flood_of_alarms_fills_no_more_than_a_few_screens(tmp_path):
    desk = AlarmDesk(tmp_path, clock=(lambda: 0.0, lambda: UTC_0))
    desk.update(
        [(f"{kind} n{n}", "…") for kind in ("gpu", "excess", "report") for n in range(60)], 1.0, UTC_0 + 1.0
    )
    assert "… 80 more: see --json" in drawn(desk, 80)
    desk.close()


def test_no_alarms_and_no_status_are_not_the_same(tmp_path):
    desk = AlarmDesk(tmp_path)
    assert words(drawn(desk, 80)) == "hall-a no alarms"
    desk.close()
    assert view.render({}, UTC_0, 80).plain == "nothing is known of any alarm"


def test_programs_get_every_field(desk):
    told = {"alarms": msgspec.to_builtins(desk.view())}
    assert view.as_json(told) == told
    assert set(told["alarms"][0]) >= {"key", "state", "priority", "response", "first_out", "count", "by"}
    assert view.as_json({}) == {"alarms": None}
