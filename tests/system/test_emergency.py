"""An emergency in real processes and real time: a relay calls a level, lets go, and then the grid's frequency dips.

Judged by the plant's own power and by the records that an operator would show afterwards. The bounds here are
that it happens, on a busy machine as well; how fast, examples/emergency.yaml and examples/block_1152.yaml say.
"""

import csv
import json
from typing import NamedTuple

import pytest

from firmware_sim.bench_config import sheds_path
from tests.brokers import needs_mosquitto
from tests.system.runs import life_of, played

pytestmark = [
    needs_mosquitto,
    # paho leaves sockets to the collector where a broker hangs up in a handshake
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DEEP_KW, COMMITTED_KW = 8.5, 3.0
CLOSED_S, OPENED_S, DIP_S, BACK_S, END_S = 1.0, 6.0, 9.5, 12.0, 17.0
THERE_S = 3.0  # by then even a busy machine is where it was told to be

EMERGENCY = {
    "name": "short emergency",
    "seed": 5,
    "warm_up_s": 8,
    "duration_s": END_S,
    "response_s": 2.0,
    "site": {"broker": "mosquitto"},
    "block": {
        "feed_rating_kw": 18,
        "base_load_min_kw": 2,
        "base_load_max_kw": 5,
        "failsafe_kw": 9,
        "ramp_down_kw_per_s": 3,
        "ramp_up_kw_per_s": 3,
        "racks": {"count": 2, "rating_a": 32},
        "nodes": {"per_rack": 2, "gpus": 4},
        "farm": {"processes": 1, "apart": 1},
        "shed": {
            "levels": [{"name": "gentle", "kw": 11}, {"name": "deep", "kw": DEEP_KW}],
            "contacts": {"trip": "deep"},
        },
        "frequency": {"preset": "nordic_ffr_a_short", "committed_kw": COMMITTED_KW, "trigger_hz": 49.7},
    },
    "workloads": [{"racks": "1-2", "kind": "training", "exchange_demand_ratio": 0.9}],
    "timeline": [
        {"at_s": CLOSED_S, "contact": {"name": "trip", "closed": True}},
        {"at_s": OPENED_S, "contact": {"name": "trip", "closed": False}},
        {"at_s": DIP_S, "frequency": {"to_hz": 49.6, "within_s": 0.3}},
        {"at_s": BACK_S, "frequency": {"to_hz": 50.0, "within_s": 1}},
    ],
    "expect": {
        "shed_reaction_s": {"max": OPENED_S - CLOSED_S},
        "frequency_reaction_s": {"max": 4},
        "over_budget_ratio": {"max": 0.02},
        "over_rating_s": {"max": 0},
        "gpus_in_excess": {"max": 0},
        "gpus_unleased": {"max": 0},
    },
}


class Power(NamedTuple):
    mean_w: float
    highest_w: float  # of quarters of a second


def power(rig, from_s, until_s):
    """What the block truly drew then."""
    with (rig.report_dir / "record.csv").open() as file:
        rows = [(float(row["t_s"]), float(row["block_w"])) for row in csv.DictReader(file)]
    drawn_w = [power_w for at_s, power_w in rows if from_s < at_s <= until_s]
    quarters_w = [sum(drawn_w[first : first + 5]) / 5 for first in range(len(drawn_w) - 4)]
    return Power(sum(drawn_w) / len(drawn_w), max(quarters_w))


def read(status):
    """Beside the alarms."""
    return {
        "binding": status["binding"]["source"],
        "level": status["shed"]["level"] or "",
        "frequency": status["frequency"]["why"].rpartition(": ")[2],
    }


def test_a_relay_sheds_at_once_and_a_dip_of_the_frequency_sheds_what_was_committed(tmp_path, powerblock):
    rig, told, _ = played(EMERGENCY, tmp_path, powerblock, read)
    assert_power_moved(rig)
    assert_the_call_is_recorded(rig)
    assert_the_response_is_recorded(rig)
    assert_the_operator_knew(rig, told)


def assert_power_moved(rig):
    before, shed, after, respond, at_end = (
        power(rig, *span)
        for span in (
            (CLOSED_S - 1, CLOSED_S),
            (CLOSED_S + THERE_S, OPENED_S),
            (DIP_S - 0.5, DIP_S),
            (DIP_S + THERE_S, DIP_S + 5),
            (END_S - 0.5, END_S),
        )
    )
    assert before.mean_w > 1.4e3 * DEEP_KW, "there was something to shed"
    assert shed.highest_w <= 1.02e3 * DEEP_KW
    assert after.mean_w > 0.9 * before.mean_w, "the relay let go; fans take their time"
    assert respond.highest_w <= after.mean_w - 0.9e3 * COMMITTED_KW
    assert at_end.mean_w > respond.mean_w + 0.2e3 * COMMITTED_KW, "held for 5 s, and on the way back"


def assert_the_call_is_recorded(rig):
    """One line, of every step in its order."""
    (line,) = [json.loads(text) for text in sheds_path(rig.work_dir).read_text().splitlines()]
    assert (line["level"], line["source"], line["nodes"]) == ("deep", "shed deep (trip)", 4)
    assert (line["without_table"], line["unconfirmed"]) == ([], [])
    assert None not in line.values(), line
    assert 0 <= line["decided_s"] <= line["sent_s"] < line["confirmed_s"] < THERE_S, line
    assert 0 < line["obeyed_s"] < THERE_S, line
    assert line["moved_s"] > line["decided_s"], line


def assert_the_response_is_recorded(rig):
    """One file, with the seconds before the crossing, and the controller's own end as its last row."""
    (path,) = (rig.work_dir / "state" / "records").glob("frequency-*.csv")
    lines = path.read_text().splitlines()
    head, rows = (
        dict(line[2:].split(": ", 1) for line in lines if line.startswith("#")),
        list(csv.DictReader(line for line in lines if not line.startswith("#"))),
    )
    assert float(head["committed_w"]) == 1e3 * COMMITTED_KW
    assert head["score"].startswith("95 % after"), head
    assert float(rows[0]["t_s"]) < -4.0
    assert float(rows[-1]["t_s"]) > END_S - DIP_S - 1.0
    assert min(float(row["hz"]) for row in rows) < 49.65
    assert {"ready", "active", "recovering"} <= {row["phase"] for row in rows}
    assert max(float(row["share"]) for row in rows) == 1.0


def assert_the_operator_knew(rig, told):
    assert told.alarms["shed"] == ["level deep is called: trip"]
    assert life_of(rig, "shed") == ["raised", "cleared"]
    assert set(told.words["level"]) == {"", "deep"}
    less = told.alarms["frequency commitment"]  # while shed there is less to give than was sold
    assert any(f"{COMMITTED_KW:.2f} kW are committed and" in text for text in less), less
    assert life_of(rig, "frequency commitment")[-2:] == ["raised", "cleared"]
    assert {"feed rating", "shed deep (trip)"} < set(told.words["binding"])
    assert any(source.startswith("frequency: ") for source in told.words["binding"]), told.words
    stood = told.words["frequency"]
    assert f"armed with {COMMITTED_KW:.2f} kW" in stood
    assert any(text.startswith(f"active with {COMMITTED_KW:.2f} kW below the baseline") for text in stood), (
        stood
    )
    assert any(text.startswith("recovering with") for text in stood), stood
