"""The real controller and agents, as child processes, on the simulated facility: short runs in real time.

The scenarios in examples/ take a minute and a half each; these ramp five times as fast to fit a test.
"""

import pytest

from controller.site import history
from firmware_sim.bench_config import journal_path
from firmware_sim.recorder import read_journal
from tests.brokers import needs_mosquitto, needs_nats
from tests.system.runs import played

# Handshakes are refused here: what paho, which the simulated site uses, then leaves to the collector is closed by
# it, with a warning that lands in whichever test runs by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SCENARIO = {
    "name": "short",
    "seed": 3,
    "warm_up_s": 9,
    "duration_s": 11,
    "block": {
        "ramp_down_kw_per_s": 3,
        "ramp_up_kw_per_s": 3,
        "racks": [{"name": "r1"}, {"name": "r2"}],
        "nodes": [{"name": "node-a", "rack": "r1", "gpus": 8}, {"name": "node-b", "rack": "r2", "gpus": 8}],
    },
    "workloads": [
        {"node": "node-a", "kind": "training", "exchange_demand_ratio": 0.9},
        {"node": "node-b", "kind": "inference", "swing_ratio": 0.1},
    ],
    "expect": {
        # no reaction_s: on a slow machine the block may still be on its way up when the signal comes
        "overshoot_ratio": {"max": 0.01},
        "above_line_ratio": {"max": 0.03},
        "over_rating_s": {"max": 0},
        "tokens_kept_ratio": {"min": 0.5},
    },
}


def beats_of(rig):
    return read_journal(journal_path(rig.work_dir))


EVENT = {"at_s": 1, "event": {"id": "dr-1", "reduce_ratio": 0.25, "duration_s": 6}}


def breaking(**fault):
    return [EVENT, {"at_s": 3, "fault": fault | {"for_s": 2}}]


@needs_mosquitto
def test_a_ven_hears_its_vtn_over_mutual_tls_and_outlives_its_loss(tmp_path, powerblock):
    site = {"signals": "vtn", "broker": "mosquitto", "tls": "mutual"}
    timeline = breaking(target="vtn", mode="refusing")
    rig, _, verdict = played(SCENARIO | {"site": site, "timeline": timeline}, tmp_path, powerblock)
    assert {beat.mode for beat in beats_of(rig)} >= {"init", "controlled", "limited"}
    assert verdict["reports_received"] >= 2, "what the event asked for was told"
    came = [line["came"] for line in history.read(rig.work_dir / "state") if "came" in line]
    assert came == ["opens", "binds", "ends"]


@needs_nats
def test_a_dsx_target_holds_while_the_brokers_certificate_is_not_to_be_believed(tmp_path, powerblock):
    site = {"signals": "dsx", "broker": "nats", "tls": "mutual", "own_bus": True}
    timeline = breaking(target="certificate", mode="replaced")
    scenario = SCENARIO | {
        "site": site,
        "timeline": timeline,
        "duration_s": 14,
        "status_events": ["target_set", "start_ramp_down", "start_ramp_up"],
    }
    rig, _, _ = played(scenario, tmp_path, powerblock)
    beats = beats_of(rig)
    assert {beat.mode for beat in beats} >= {"init", "controlled", "limited"}
    started = [beat for beat in beats if beat.mode == "limited"]
    assert not any(key.startswith("agent") for beat in started for key in beat.alarms), "loss of the north"
    signals = [line for line in history.read(rig.work_dir / "state") if "accepted" in line]
    assert all(line["accepted"] for line in signals)
    assert len(signals) < 10, "repeats are not worth a line"
