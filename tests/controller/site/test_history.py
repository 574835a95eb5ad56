"""The history of signals: complete in the small, bounded in the large."""

import json
import time
from dataclasses import replace

import pytest

from controller.core import law
from controller.core.model import Contact, Setpoint, Site
from controller.site import history
from controller.site.history import History
from controller.site.source import Signal
from controller.views import signals as view
from tests.controller.test_cli import powerblock, words
from tests.core.blocks import SETTINGS, UTC_0, good, snapshot

WISH = Setpoint("openadr", "dr-1/0", "limit", 2000.0, UTC_0 + 1.0, UTC_0 + 3.0)


def signal(number=0, *, accepted=True, reason="accepted"):
    return Signal(UTC_0 + number, "openadr", "openadr/events", f"create dr-{number}", accepted, reason)


def written(kept):
    """Wait for the thread that writes."""
    while not kept._lines._waiting.empty():
        time.sleep(0.001)


@pytest.fixture
def kept(tmp_path):
    it = History(tmp_path)
    yield it
    it.close()


def lines(kept, folder):
    kept.close()
    return list(history.read(folder))


def test_every_signal_is_kept_with_its_sender_and_its_reason(kept, tmp_path):
    kept.signal(signal(), 0.0)
    kept.signal(signal(1, accepted=False, reason="intervals: missing"), 1.0)
    first, second = lines(kept, tmp_path)
    assert (first["sender"], first["about"], first["accepted"]) == ("openadr/events", "create dr-0", True)
    assert (second["accepted"], second["reason"]) == (False, "intervals: missing")


def test_what_came_of_a_setpoint_is_told_from_opening_to_end(kept, tmp_path):
    state = law.start(SETTINGS, 0.0)
    for beat in range(100):
        now_s = 0.05 * beat
        site = Site(
            (Contact(now_s, now_s),), (WISH, replace(WISH, id="low/0", kind="target", limit_w=1900.0))
        )
        seen = snapshot(now_s, meter=good(1500.0, now_s), site=site)
        decision = law.tick(SETTINGS, state, seen)
        state = decision.state
        kept.decided(decision, seen.now_utc_s)
    came = [(line["about"], line["came"]) for line in lines(kept, tmp_path)]
    assert came == [
        ("dr-1/0", "opens"),
        ("low/0", "opens"),
        ("low/0", "binds"),
        ("dr-1/0", "ends"),
        ("low/0", "ends"),
    ]


def test_a_setpoint_that_is_outbid_yields_by_name(kept, tmp_path):
    state = law.start(SETTINGS, 0.0)
    for beat in range(60):
        now_s = 0.05 * beat
        wishes = (replace(WISH, starts_utc_s=UTC_0),)
        if beat > 30:
            wishes += (Setpoint("dsx", "t", "feed a", 1800.0, UTC_0, UTC_0 + 9.0),)
        seen = snapshot(now_s, meter=good(1500.0, now_s), site=Site((Contact(now_s, now_s),), wishes))
        decision = law.tick(SETTINGS, state, seen)
        state = decision.state
        kept.decided(decision, seen.now_utc_s)
    came = [(line["source"], line["came"]) for line in lines(kept, tmp_path)]
    assert came == [
        ("openadr", "opens"),
        ("openadr", "binds"),
        ("dsx", "opens"),
        ("openadr", "yields to dsx t"),
        ("dsx", "binds"),
    ] or came[-2:] == [("dsx", "binds"), ("openadr", "yields to dsx t")]


def test_a_flood_is_counted_and_not_written_down(kept, tmp_path):
    for number in range(10_000):
        kept.signal(signal(number), 0.001 * number)
    written(kept)
    kept.signal(signal(99_999), 100.0)
    found = lines(kept, tmp_path)
    assert len(found) < history.BURST_MAX + 10 * history.LINES_PER_S_MAX + 2
    assert sum(line.get("untold_before", 0) for line in found) + len(found) == 10_001


def test_refusals_without_end_do_not_hide_what_was_accepted(kept, tmp_path):
    for number in range(5000):
        kept.signal(signal(number, accepted=False, reason="noise"), 0.001 * number)
    written(kept)
    kept.signal(signal(7_777), 5.0)
    assert lines(kept, tmp_path)[-1]["about"] == "create dr-7777"


def test_files_are_bounded_in_size_and_number(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "FILE_MAX_BYTES", 2000)
    kept = History(tmp_path)
    for number in range(400):
        kept.signal(signal(number), 10.0 * number)
        written(kept)
    kept.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["signals.jsonl", *(f"signals.jsonl.{n}" for n in range(1, history.FILES_MAX))]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    numbers = [int(line["about"].removeprefix("create dr-")) for line in history.read(tmp_path)]
    assert numbers == list(range(numbers[0], 400)), "the newest, without a gap"


def test_a_line_that_a_crash_cut_off_hides_no_other(tmp_path):
    (tmp_path / "signals.jsonl").write_bytes(b'{"at_utc_s": 1.0}\n{"at_utc')
    assert list(history.read(tmp_path)) == [{"at_utc_s": 1.0}]


# --- for people ------------------------------------------------------------------------------------------


def test_the_command_shows_what_was_said_and_what_came_of_it(block_with, tmp_path):
    path = block_with()
    kept = History(tmp_path / "state")
    kept.signal(signal(), 0.0)
    kept.signal(signal(1, accepted=False, reason="units: 'MW' for IMPORT_CAPACITY_LIMIT; send KW"), 1.0)
    kept.close()
    shown = words(powerblock("signals", path, "--since", "2020-01-01T00:00:00Z").stdout)
    for said in ("create dr-0", "accepted", "refused", "'MW'", "from openadr/events"):
        assert said in shown
    told = json.loads(powerblock("signals", path, "--json", "--since", "2020-01-01T00:00:00Z").stdout)
    assert [line["accepted"] for line in told["signals"]] == [True, False]
    assert words(powerblock("signals", path, "--since", "1s").stdout) == "no signals in that time"


def test_a_block_without_a_history_is_said(block_with):
    found = powerblock("signals", block_with())
    assert found.exit_code == 2
    assert "nothing was ever kept there" in found.stderr


@pytest.mark.parametrize(("text", "ago_s"), [("90s", 90.0), ("15m", 900.0), ("2h", 7200.0), ("1d", 86_400.0)])
def test_since_takes_a_length_of_time(text, ago_s):
    assert view.moment_of(text, 1e9) == 1e9 - ago_s


def test_a_since_that_is_no_time_is_bad_input(block_with):
    assert "write 15m" in powerblock("signals", block_with(), "--since", "yesterday").stderr
