"""What survives a kill, and on which clock."""

import json
import os
from dataclasses import replace

import pytest

from controller.core import law
from controller.core.model import FOREVER_S, Limit, Running, Setpoint, Snapshot
from controller.store import Store, StoreError
from tests.core.blocks import SETTINGS, snapshot

UTC_S = 1_790_000_000.0
WISH = Setpoint("openadr", "e/0", "limit", 1800.0, UTC_S - 60, UTC_S + 600)


def decision(limit_w=1800.0, source="openadr e/0", ends_at_s=700.0, **changes):
    seen: Snapshot = snapshot(100.0)
    made = law.tick(SETTINGS, law.start(SETTINGS, 100.0), seen)
    state = replace(made.state, running=(Running(WISH, ends_at_s),))
    return replace(made, binding=Limit(limit_w, source), state=state, **{"budget_w": limit_w} | changes)


def killed_and_started_again(store) -> Store:
    """Nothing is closed or flushed."""
    return Store(store.path.parent)


def test_a_first_start_inherits_nothing(tmp_path):
    assert Store(tmp_path).inherited(0.0, UTC_S) == (None, ())


def test_what_bound_is_inherited_with_its_source(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(budget_w=2000.0))
    carried, running = killed_and_started_again(store).inherited(200.0, UTC_S)
    assert (carried.limit_w, carried.budget_w, carried.source) == (1800.0, 2000.0, "openadr e/0")
    assert carried.ends_at_s == 700.0
    assert running == (Running(WISH, 700.0),)


def test_within_one_boot_a_stepped_wall_clock_changes_nothing(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision())
    carried, running = killed_and_started_again(store).inherited(200.0, UTC_S + 1e6)
    assert (carried.ends_at_s, running[0].ends_at_s) == (700.0, 700.0)


def test_after_a_reboot_only_the_wall_clock_is_left(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision())
    said = json.loads(store.path.read_text())
    store.path.write_text(json.dumps(said | {"boot_id": "another"}))
    carried, running = killed_and_started_again(store).inherited(30.0, UTC_S + 100.0)
    assert (carried.ends_at_s, running[0].ends_at_s) == (530.0, 530.0)


def test_a_limit_without_a_window_is_carried_until_the_site_speaks(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision(2400.0, "failsafe: site heartbeat lost"))
    carried, _ = killed_and_started_again(store).inherited(200.0, UTC_S)
    assert carried.ends_at_s == FOREVER_S


def test_the_same_decision_is_not_written_twice(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision())
    written = store.path.stat().st_ino
    store.keep_decision(decision())
    assert store.path.stat().st_ino == written
    store.keep_decision(decision(1700.0))
    assert store.path.stat().st_ino != written


def test_the_number_of_starts_grows_even_when_the_file_was_lost(tmp_path):
    one = Store(tmp_path)
    first = one.begin(UTC_S)
    second = killed_and_started_again(one).begin(UTC_S)
    one.path.unlink()
    third = Store(tmp_path).begin(UTC_S + 60.0)
    assert first < second < third


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_content(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision())
    (tmp_path / "state.json.new").write_bytes(b'{"v":1,"lim')
    assert killed_and_started_again(store).kept.limit_w == 1800.0


@pytest.mark.parametrize("content", [b"", b"{", b'{"v": 9}', b'{"v":1,"limit_w":"x"}', b"\xff\xfe"])
def test_an_unreadable_file_is_set_aside_and_the_block_starts_in_failsafe(tmp_path, content):
    (tmp_path / "state.json").write_bytes(content)
    assert Store(tmp_path).inherited(0.0, UTC_S) == (None, ())
    assert (tmp_path / "state.json.unreadable").read_bytes() == content


def test_accepted_signals_are_kept_beside_the_limit(tmp_path):
    store = Store(tmp_path)
    store.keep_decision(decision())
    store.keep_book({"v": 1, "events": {}})
    again = killed_and_started_again(store)
    assert again.kept.book == {"v": 1, "events": {}}
    assert again.kept.limit_w == 1800.0


def test_a_disk_that_fails_is_a_fault_and_not_an_end(tmp_path):
    store = Store(tmp_path)
    store._temporary = tmp_path / "gone" / "state.json.new"
    store.keep_decision(decision())
    assert "a restart now would forget the limits in force" in store.fault
    store._temporary = tmp_path / "state.json.new"
    store.keep_decision(decision(1700.0))
    assert store.fault == ""


def test_a_state_directory_that_cannot_be_is_said_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give this user a writable state_dir"):
        Store(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_directory_without_permission_is_said_at_the_start(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError):
        Store(tmp_path).begin(UTC_S)
