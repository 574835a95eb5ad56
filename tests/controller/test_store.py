"""What survives a kill, and on which clock."""

import json

import msgspec
import pytest

from controller.core import law
from controller.core.frequency_model import Phase, Underway
from controller.core.model import FOREVER_S, Carried, Limit, Running, Setpoint, Snapshot
from controller.store import Store, StoreError
from tests.core.blocks import SETTINGS, snapshot

UTC_S = 1_790_000_000.0
WISH = Setpoint("openadr", "e/0", "limit", 1800.0, UTC_S - 60, UTC_S + 600)


def decision(limit_w=1800.0, source="openadr e/0", ends_at_s=700.0, **changes):
    seen: Snapshot = snapshot(100.0)
    made = law.tick(SETTINGS, law.start(SETTINGS, 100.0), seen)
    state = made.state._replace(running=(Running(WISH, ends_at_s),))
    return made._replace(binding=Limit(limit_w, source), state=state, **{"budget_w": limit_w} | changes)


def killed_and_started_again(store) -> Store:
    """Nothing is flushed; the kernel opens the lock of a process that is gone."""
    store.close()
    return Store(store.path.parent)


def test_a_first_start_inherits_nothing(tmp_path):
    assert Store(tmp_path).inherited(0.0, UTC_S) == (None, ())


def test_what_bound_is_inherited_with_its_source(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(budget_w=2000.0), UTC_S)
    carried, running = killed_and_started_again(store).inherited(200.0, UTC_S)
    assert (carried.limit_w, carried.budget_w, carried.source) == (1800.0, 2000.0, "openadr e/0")
    assert carried.ends_at_s == 700.0
    assert running == (Running(WISH, 700.0),)


def test_within_one_boot_a_stepped_wall_clock_changes_nothing(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    carried, running = killed_and_started_again(store).inherited(200.0, UTC_S + 1e6)
    assert (carried.ends_at_s, running[0].ends_at_s) == (700.0, 700.0)


def test_after_a_reboot_only_the_wall_clock_is_left(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    said = json.loads(store.path.read_text())
    store.path.write_text(json.dumps(said | {"boot_id": "another"}))
    carried, running = killed_and_started_again(store).inherited(30.0, UTC_S + 100.0)
    assert (carried.ends_at_s, running[0].ends_at_s) == (530.0, 530.0)


def test_a_limit_without_a_window_is_carried_until_the_site_speaks(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(2400.0, "failsafe: site heartbeat lost"), UTC_S)
    carried, _ = killed_and_started_again(store).inherited(200.0, UTC_S)
    assert carried.ends_at_s == FOREVER_S


def restarted(store, now_s, *, utc_s=UTC_S, rebooted=False):
    """What the next process inherits, `now_s` on its own clock and `utc_s` by the wall's."""
    if rebooted:
        said = json.loads(store.path.read_text())
        store.path.write_text(json.dumps(said | {"boot_id": "another"}))
    again = killed_and_started_again(store)
    carried, _ = again.inherited(now_s, utc_s)
    again.close()
    return carried


HELD = Underway(Phase.ACTIVE, 9000.0, 600.0, raised_at_s=80.0, ready_from_s=980.0)  # at 100.0, see `decision`


def test_a_response_to_the_grid_is_inherited_beside_the_limit_that_binds(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S, HELD)
    assert restarted(store, 200.0, utc_s=UTC_S + 1e6).response == HELD, "a stepped wall clock changes nothing"


@pytest.mark.parametrize(
    ("down_s", "counted_s"),
    [(60.0, 60.0), (-6 * 365 * 86_400.0, 0.0)],
    ids=["by the wall clock", "a clock in the past: none"],
)
def test_after_a_reboot_the_time_of_a_response_has_gone_on(tmp_path, down_s, counted_s):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S, HELD)
    went_on = restarted(store, 30.0, utc_s=UTC_S + down_s, rebooted=True).response
    assert (went_on.raised_at_s, went_on.ready_from_s) == (10.0 - counted_s, 910.0 - counted_s)
    assert (went_on.phase, went_on.baseline_w, went_on.shed_w) == (Phase.ACTIVE, 9000.0, 600.0)


def test_a_response_that_is_over_is_forgotten(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S, HELD)
    store.keep_decision(decision(), UTC_S, None)
    assert restarted(store, 200.0).response is None


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_cooling_capacity_that_falls_is_kept_at_once(tmp_path, rebooted):
    """Though nothing that binds has changed; one that rises goes with the next write."""
    store = Store(tmp_path)
    for cooling_w in (9000.0, 4000.0, 7000.0):
        store.keep_decision(cooled(cooling_w), UTC_S)
    assert restarted(store, 200.0, rebooted=rebooted).cooling_w == 4000.0


def cooled(cooling_w):
    made = decision()
    return made._replace(state=made.state._replace(cooling_w=cooling_w))


def test_contacts_that_call_are_kept_by_name_though_nothing_that_binds_has_changed(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    for called in (("stop",), ("stop", "ready"), ()):
        store.keep_decision(decision(), UTC_S, contacts=called)
        assert json.loads(store.path.read_text())["contacts"] == list(called)
    store.keep_decision(decision(), UTC_S, contacts=("stop",))
    assert killed_and_started_again(store).kept.contacts == ("stop",)


def test_a_state_of_a_program_that_kept_less_is_read(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S, HELD, ("stop",))
    said = json.loads(store.path.read_text())
    for name in ("at_s", "at_utc_s", "response", "cooling_w", "contacts"):
        del said[name]
    store.path.write_text(json.dumps(said))
    assert restarted(store, 200.0) == Carried(1800.0, 1800.0, "openadr e/0", 700.0, **_base(said))
    assert restarted(store, 30.0, rebooted=True).response is None
    assert killed_and_started_again(store).kept.contacts == ()


def _base(said):
    return {name: said[name] for name in ("base_w", "base_at_s", "up_w_per_s")}


def test_the_same_decision_is_not_written_twice(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    written = store.path.stat().st_ino
    store.keep_decision(decision(), UTC_S)
    assert store.path.stat().st_ino == written
    store.keep_decision(decision(1700.0), UTC_S)
    assert store.path.stat().st_ino != written


def test_the_number_of_starts_grows_even_when_the_file_was_lost(tmp_path):
    one = Store(tmp_path)
    first = one.begin(UTC_S)
    two = killed_and_started_again(one)
    second = two.begin(UTC_S)
    two.close()
    one.path.unlink()
    third = Store(tmp_path).begin(UTC_S + 60.0)
    assert first < second < third


def test_two_hosts_that_start_in_one_second_have_two_numbers(tmp_path):
    """Or agents could not tell the newer start, and half of them might obey the one, half the other."""
    one, other = (
        Store(tmp_path / host).begin(int(UTC_S) + tenths / 10) for tenths, host in ((1, "x"), (2, "y"))
    )
    assert one < other < 2**53


def test_who_started_before_us_by_the_same_clock_is_known_until_the_host_reboots(tmp_path):
    store = Store(tmp_path)
    assert store.same_clock() == frozenset(), "nobody has started here yet"
    epoch = store.begin(UTC_S)
    store.keep_decision(decision(), UTC_S)
    again = killed_and_started_again(store)
    assert again.same_clock() == {epoch}
    again.kept = msgspec.structs.replace(again.kept, boot_id="of another life")
    assert again.same_clock() == frozenset()


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_content(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    (tmp_path / "state.json.new").write_bytes(b'{"v":1,"lim')
    assert killed_and_started_again(store).kept.limit_w == 1800.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"v": 9}',
        b'{"v":1,"limit_w":"x"}',
        b"\xff\xfe",
        b'{"v":1,"boot_id":"\xff"}',
        b"[" * 100_000,
        b'{"v":1,"epoch":-1}',
        b'{"v":1,"epoch":9007199254740992}',
    ],
)
def test_an_unreadable_file_is_set_aside_and_the_block_starts_in_failsafe(tmp_path, content):
    (tmp_path / "state.json").write_bytes(content)
    assert Store(tmp_path).inherited(0.0, UTC_S) == (None, ())
    assert (tmp_path / "state.json.unreadable").read_bytes() == content


def test_accepted_signals_are_kept_beside_the_limit(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    store.keep_book({"v": 1, "events": {}})
    again = killed_and_started_again(store)
    assert again.book == {"v": 1, "events": {}}
    assert again.kept.limit_w == 1800.0


def test_a_disk_that_fails_is_a_fault_and_not_an_end(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "state.json.new").mkdir()
    store.keep_decision(decision(), UTC_S)
    assert "a restart now would forget the limits in force" in store.fault
    (tmp_path / "state.json.new").rmdir()
    store.keep_decision(decision(1700.0), UTC_S)
    assert store.fault == ""


@pytest.mark.parametrize("blocked", ["state.json.new", "book.json.new"])
def test_what_could_not_be_written_is_written_later_though_nothing_changed(tmp_path, blocked):
    store = Store(tmp_path)
    (tmp_path / blocked).mkdir()
    store.keep_book({"v": 1, "events": {}})
    store.keep_decision(decision(), UTC_S)
    assert store.fault
    (tmp_path / blocked).rmdir()
    store.keep_decision(decision(), UTC_S)
    assert store.fault == ""
    again = killed_and_started_again(store)
    assert (again.kept.limit_w, again.book) == (1800.0, {"v": 1, "events": {}})


def test_a_state_directory_that_cannot_be_is_an_alarm_and_not_an_end(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    assert "give this user a writable state_dir" in store.fault
    assert store.begin(UTC_S) == int(UTC_S * 1e6)
    assert store.inherited(0.0, UTC_S) == (None, ())
    assert store.fault


def test_one_state_directory_has_one_controller(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="another controller runs on this state_dir"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_step_of_a_ramp_does_not_write_the_book(tmp_path):
    store = Store(tmp_path)
    store.keep_book({"v": 1, "events": {}})
    written = store.book_path.stat().st_ino
    store.keep_decision(decision(), UTC_S)
    assert store.book_path.stat().st_ino == written
    assert b"events" not in store.path.read_bytes()


def test_an_unreadable_book_costs_no_limit_and_an_unreadable_state_no_book(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    store.keep_book({"v": 1, "events": {}})
    store.book_path.write_bytes(b"\xff")
    again = killed_and_started_again(store)
    assert (again.book, again.kept.limit_w) == (None, 1800.0)
    assert (tmp_path / "book.json.unreadable").exists()
    again.keep_book({"v": 1, "events": {}})
    again.path.write_bytes(b"{")
    last = killed_and_started_again(again)
    assert (last.book, last.kept.limit_w) == ({"v": 1, "events": {}}, None)


@pytest.mark.parametrize(
    ("clock_off_s", "left_s"),
    [(-6 * 365 * 86_400.0, 660.0), (86_400.0, None)],
    ids=["in the past: no longer than the window is", "in the future: nothing runs"],
)
def test_a_reboot_with_a_wrong_clock_stretches_no_limit(tmp_path, clock_off_s, left_s):
    store = Store(tmp_path)
    store.keep_decision(decision(), UTC_S)
    said = json.loads(store.path.read_text())
    store.path.write_text(json.dumps(said | {"boot_id": "another"}))
    carried, running = killed_and_started_again(store).inherited(30.0, UTC_S + clock_off_s)
    if left_s is None:
        assert running == ()
        assert carried.ends_at_s < 30.0
    else:
        assert (carried.ends_at_s, running[0].ends_at_s) == (30.0 + left_s, 30.0 + left_s)
