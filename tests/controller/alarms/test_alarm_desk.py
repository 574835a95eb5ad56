"""The desk: all of it together, over restarts, with its journal and its view."""

import json
import time

import pytest

from controller.alarms import AlarmDesk, AlarmSettings, journal
from controller.alarms.book import SETTLE_S
from controller.alarms.desk import EVENTS_KEPT
from controller.alarms.journal import AlarmJournal
from controller.alarms.model import Happening
from controller.image.model import Result
from tests.controller.alarms.alarm_play import UTC_0, entry

SETTINGS = AlarmSettings(
    (entry("a"), entry("l", latching=True), entry("g", group="p"), entry("h", group="p"))
)


class Desk:
    """A desk with a clock that is turned by hand."""

    def __init__(self, folder):
        self.folder, self.at_s, self.desk = folder, 100.0, None
        self.start()

    def start(self):
        if self.desk is not None:
            self.desk.close()
        clock = (lambda: self.at_s), (lambda: UTC_0 + self.at_s)
        self.desk = AlarmDesk(self.folder, SETTINGS, clock=clock)

    def update(self, *keys, after_s=1.0):
        self.at_s += after_s
        self.desk.update([(key, f"{key} holds") for key in keys], self.at_s, UTC_0 + self.at_s)

    def shown(self):
        return {view.key: view for view in self.desk.view()}

    def lines(self):
        self.desk.close()
        files = sorted(self.folder.glob("alarms.jsonl*"), reverse=True)
        return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


@pytest.fixture
def desk(tmp_path):
    it = Desk(tmp_path)
    yield it
    it.desk.close()


def test_a_quiet_block_has_no_alarms_and_writes_nothing(desk, tmp_path):
    desk.update()
    desk.desk.close()
    assert desk.desk.view() == ()
    assert list(tmp_path.iterdir()) == []


def test_an_alarm_is_shown_with_what_it_means_and_what_to_do(desk):
    desk.update("inlet r1-a")
    desk.update("inlet r1-a")
    (view,) = desk.desk.view()
    assert (view.key, view.text, view.priority, view.state) == (
        "inlet r1-a",
        "inlet r1-a holds",
        "critical",
        "unacknowledged",
    )
    assert (view.active, view.acknowledged, view.latched, view.count) == (True, False, True, 1)
    assert view.since_utc_s == UTC_0 + 101.0
    assert "Shed by hand before the breaker does" in view.response
    assert "`" not in view.response


def test_the_most_urgent_come_first_then_what_nobody_has_seen_and_hidden_ones_last(desk):
    desk.update("a")
    desk.update("a", "journal", "inlet r1", "pdu r1", "broker")
    desk.desk.command("shelve", "anna", key="broker", for_s=60.0, reason="known")
    desk.desk.command("acknowledge", "anna", key="a")
    assert list(desk.shown()) == ["inlet r1", "pdu r1", "a", "journal", "broker"]


def test_an_order_is_answered_with_what_came_of_it(desk):
    desk.update("a")
    assert desk.desk.command("acknowledge", "anna", key="a").result is Result.ACCEPTED
    refused = desk.desk.command("acknowledge", "anna", key="a")
    assert (refused.result, refused.reason) == (
        Result.REJECTED,
        "a is acknowledged: there is nothing to acknowledge",
    )
    assert desk.shown()["a"].by == "anna"


def test_an_order_without_a_name_is_for_all(desk):
    desk.update("a", "l")
    assert desk.desk.command("acknowledge", "anna").result is Result.ACCEPTED
    assert all(view.acknowledged for view in desk.desk.view())
    desk.update()
    assert desk.desk.command("reset", "anna").result is Result.ACCEPTED
    assert desk.desk.view() == ()


def test_an_order_that_is_none_is_the_callers_fault(desk):
    with pytest.raises(ValueError, match="explode"):
        desk.desk.command("explode", "anna", key="a")


def test_a_shelved_alarm_says_until_when_by_whom_and_why(desk):
    desk.update("a")
    desk.desk.command("shelve", "anna", key="a", for_s=60.0, reason="rebuilt")
    view = desk.shown()["a"]
    assert (view.state, view.shelved_until_utc_s, view.by) == ("shelved", UTC_0 + 161.0, "anna: rebuilt")
    assert (view.active, view.out_of_service) == (True, False)
    desk.desk.command("out_of_service", "ben", key="a", reason="sent in")
    view = desk.shown()["a"]
    assert (view.state, view.shelved_until_utc_s, view.out_of_service) == ("out of service", None, True)


def test_the_first_of_a_cascade_is_named(desk):
    desk.update("g")
    desk.update("g", "h")
    assert {key: view.first_out for key, view in desk.shown().items()} == {"g": "g", "h": "g"}


def test_the_view_is_made_anew_only_when_something_changed(desk):
    desk.update("a")
    assert desk.desk.view() is desk.desk.view()
    before = desk.desk.view()
    desk.update("a")
    assert desk.desk.view() == before


# --- restarts ----------------------------------------------------------------------------------------------


def test_a_restart_forgets_nothing(desk):
    desk.update("a", "l", "g")
    desk.update("a", "g")
    desk.desk.command("acknowledge", "anna", key="a")
    desk.desk.command("shelve", "anna", key="g", for_s=60.0, reason="known")
    before = desk.desk.view()
    desk.start()
    assert desk.desk.view() == before
    desk.update("a", "g", after_s=10.0)
    assert {key: view.state for key, view in desk.shown().items()} == {
        "a": "acknowledged",
        "l": "latched, unacknowledged",
        "g": "shelved",
    }
    desk.update("a", "g", after_s=50.0)
    assert desk.shown()["g"].state == "unacknowledged"


def test_a_process_that_is_killed_forgets_nothing_either(desk, tmp_path):
    desk.update("l")
    deadline_s = time.monotonic() + 10.0
    while not (tmp_path / "alarms.json").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    other = Desk(tmp_path)  # the first one is not closed
    other.update(after_s=SETTLE_S)
    other.update(after_s=SETTLE_S)
    assert other.shown()["l"].state == "latched, unacknowledged"
    other.desk.close()


def test_a_memory_that_cannot_be_read_is_an_alarm_until_somebody_has_seen_it(tmp_path):
    (tmp_path / "alarms.json").write_bytes(b"{")
    desk = Desk(tmp_path)
    for _ in range(3):
        desk.update()
    view = desk.shown()["alarm memory"]
    assert (view.state, view.active) == ("returned", False)
    assert "alarms.json" in view.text
    desk.desk.command("acknowledge", "anna", key="alarm memory")
    assert desk.desk.view() == ()
    desk.desk.close()


def test_a_disk_that_fails_is_an_alarm_and_not_an_end(tmp_path):
    (tmp_path / "alarms.json.new").mkdir()
    desk = Desk(tmp_path)
    desk.update("a")
    deadline_s = time.monotonic() + 10.0
    while "alarm file" not in desk.shown():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
        desk.update("a", after_s=0.01)
    assert "alarms.json.new" in desk.desk.fault or "alarms.json" in desk.desk.fault
    assert desk.shown()["a"].state == "unacknowledged"
    desk.desk.close()


# --- what is told ------------------------------------------------------------------------------------------


def test_the_journal_says_who_did_what_and_why(desk):
    desk.update("a")
    desk.desk.command("acknowledge", "anna", key="a", reason="on my way")
    desk.desk.command("reset", "ben", key="a")
    desk.update()
    lines = desk.lines()
    assert [(one["what"], one["was"], one["now"], one.get("by", "")) for one in lines] == [
        ("raised", "normal", "unacknowledged", ""),
        ("acknowledge", "unacknowledged", "acknowledged", "anna"),
        ("reset refused", "acknowledged", "acknowledged", "ben"),
        ("cleared", "acknowledged", "normal", ""),
    ]
    assert lines[1]["why"] == "on my way"
    assert lines[2]["why"] == "a cannot be reset while it lasts: a holds"
    assert [one.what for one in desk.desk.events] == [one["what"] for one in lines]


def test_what_is_kept_for_servers_is_bounded(desk):
    for _ in range(3):
        desk.update(
            *(f"{kind} n{number}" for kind in ("gpu", "excess", "report", "faults") for number in range(50))
        )
    assert len(desk.desk.events) == EVENTS_KEPT


def happening(number, by=""):
    return Happening(UTC_0 + number, f"a{number}", "raised", "normal", "unacknowledged", by)


def test_a_flood_is_counted_in_the_journal_and_hides_no_order(tmp_path):
    kept = AlarmJournal(tmp_path)
    for number in range(5000):
        kept.record(happening(number), 0.001 * number)
    while not kept._lines._waiting.empty():
        time.sleep(0.001)
    kept.record(happening(7777, "anna"), 5.0)
    kept.close()
    lines = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_bytes().splitlines()]
    assert lines[-1]["by"] == "anna"
    assert len(lines) + sum(line.get("untold_before", 0) for line in lines) == 5001
    assert len(lines) < 250


def test_files_of_the_journal_are_bounded_in_size_and_number(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "FILE_MAX_BYTES", 1000)
    kept = AlarmJournal(tmp_path)
    for number in range(100):
        kept.record(happening(number), 10.0 * number)
        while not kept._lines._waiting.empty():
            time.sleep(0.001)
    kept.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["alarms.jsonl", *(f"alarms.jsonl.{n}" for n in range(1, journal.FILES_MAX))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
