"""The record of an activation: what is in the file, what it says of the response, and what a bad disk does."""

import csv
import time
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from controller.core.frequency_model import FrequencySettings, Point
from controller.frequency import record as records
from controller.frequency.record import Recorder
from controller.frequency.score import Row, score

BEGAN_UTC_S = datetime(2026, 3, 4, 5, 6, 7, 125_000, UTC).timestamp()
SETTINGS = FrequencySettings("Test FFR", 50.0, 100e3, 0.7, 5.0, 20e3, steps=(Point(49.7, 1.0),))


def row(t_s, block_w=400e3, share=0.0, *, hz=50.0):
    """`t_s`: since the crossing, which is moment 1000."""
    limit_w = None if share == 0.0 else 400e3 - share * 100e3
    return Row(
        1000.0 + t_s, BEGAN_UTC_S + t_s, hz, block_w, 400e3, limit_w, share, "active" if share else "ready"
    )


def response(t_s):
    """Seen after 0.1 s, shed in a line until 0.5 s."""
    if t_s < 0.1:
        return row(t_s, hz=49.6)
    return row(t_s, 400e3 - 100e3 * min(1.0, max(0.0, (t_s - 0.1) / 0.4)), 1.0, hz=49.6)


def written(folder, recorder):
    deadline_s = time.monotonic() + 10.0
    while recorder.written + recorder.lost == 0 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return sorted(folder.glob("*.csv"))


def play(recorder, ends_s=61.0):
    for n in range(-200, 3):
        recorder.add(response(n / 20))
    recorder.begin(1000.0, BEGAN_UTC_S, 400e3)
    for n in range(3, int(ends_s * 20)):
        recorder.add(response(n / 20))


def test_a_record_has_five_seconds_before_and_sixty_after_at_twenty_rows_a_second(tmp_path):
    recorder = Recorder(tmp_path / "records", SETTINGS)
    play(recorder)
    (path,) = written(tmp_path / "records", recorder)
    assert path.name == "frequency-20260304T050607.125Z.csv"
    lines = path.read_text().splitlines()
    assert lines[0] == "# product: Test FFR"
    assert lines[4].startswith("# score: 95 % after 0.50 s; delivered 100.0 %")
    table = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    at_s = [float(line["t_s"]) for line in table]
    assert -6.0 < at_s[0] <= -5.0
    assert at_s[-1] == pytest.approx(60.0)
    steps_s = {round(after - before, 3) for before, after in pairwise(at_s)}
    assert steps_s == {0.05}
    began = next(line for line in table if float(line["t_s"]) == 0.0)
    assert began["utc"] == "2026-03-04T05:06:07.125Z"
    assert (began["hz"], began["limit_w"], began["phase"]) == ("49.6000", "", "ready")
    assert table[-1]["limit_w"] == "300000"
    recorder.close()


@pytest.mark.parametrize(("later_s", "files"), [(9.0, 1), (10.0, 2), (59.0, 2)])
def test_an_event_right_after_another_is_part_of_it_and_a_later_one_has_its_own_record(
    tmp_path, later_s, files
):
    recorder = Recorder(tmp_path, SETTINGS)
    recorder.begin(1000.0, BEGAN_UTC_S, 400e3)
    for n in range(125 * 20):
        if n / 20 == later_s:
            recorder.begin(1000.0 + later_s, BEGAN_UTC_S + later_s, 400e3)
        recorder.add(response(n / 20))
    assert not recorder.is_busy
    recorder.close()
    found = sorted(tmp_path.glob("*.csv"))
    assert len(found) == files
    for path in found:
        assert path.read_text().splitlines()[-1].split(",")[1] == "60.000"


def test_what_is_under_way_at_a_stop_is_written_as_far_as_it_is(tmp_path):
    recorder = Recorder(tmp_path, SETTINGS)
    play(recorder, ends_s=3.0)
    recorder.close()
    (path,) = tmp_path.glob("*.csv")
    assert "# score: 95 % after 0.50 s" in path.read_text()


def test_the_oldest_records_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FILES_MAX", 3)
    for n in range(5):
        (tmp_path / f"frequency-2025010{n}T000000.000Z.csv").touch()
    recorder = Recorder(tmp_path, SETTINGS)
    play(recorder, ends_s=3.0)
    recorder.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "frequency-20250103T000000.000Z.csv",
        "frequency-20250104T000000.000Z.csv",
        "frequency-20260304T050607.125Z.csv",
    ]


def test_a_disk_that_takes_nothing_is_an_alarm_and_costs_no_beat(tmp_path):
    (tmp_path / "records").write_text("a file where the folder should be")
    recorder = Recorder(tmp_path / "records", SETTINGS)
    play(recorder)
    written(tmp_path, recorder)
    assert "1 records of activations are lost" in recorder.fault
    (tmp_path / "records").unlink()
    play(recorder)
    recorder.close()
    assert (recorder.fault, recorder.written, recorder.lost) == ("", 1, 1)


def judged(rows):
    return score(rows, began_at_s=1000.0, baseline_w=400e3, committed_w=100e3, full_s=0.7, over_max_ratio=1.1)


def test_a_response_too_small_is_said_to_be():
    said = judged([row(n / 20, 350e3, 1.0) for n in range(100)])
    assert (said.response_s, said.least_ratio, said.mean_ratio) == (None, 0.5, 0.5)
    assert (
        str(said)
        == "95 % not reached; delivered 50.0 % of what was asked (least 50.0 %, most 50.0 %); under-delivery"
    )


def test_a_response_too_large_is_said_to_be():
    said = judged([row(n / 20, 260e3, 1.0) for n in range(100)])
    assert said.most_ratio == pytest.approx(1.4)
    assert str(said).endswith("; over-delivery, 110 % is allowed")


def test_without_a_power_meter_nothing_is_judged():
    assert (
        str(judged([row(n / 20, None, 1.0) for n in range(100)])) == "95 % not reached; delivery not judged"
    )
