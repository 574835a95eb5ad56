"""Scenario files load whole or not at all, and a refusal names every error."""

from pathlib import Path

import pytest

from firmware_sim.scenario import ScenarioError, load_scenario, parse_scenario
from firmware_sim.verdict import FIGURES

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
SCENARIOS = [path for path in EXAMPLES if "timeline" in path.read_text()]
OTHER_FIGURES = {"over_rating_s", "over_capacity_s", "over_capacity_ratio", "peak_w", "rig_lost_s"}


def a_document(**changes):
    return {
        "name": "test",
        "duration_s": 10,
        "block": {"racks": [{"name": "r1"}], "nodes": [{"name": "n1", "rack": "r1", "gpus": 2}]},
        "workloads": [{"node": "n1", "kind": "training"}],
        **changes,
    }


def errors_of(document):
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(document, "test.yaml")
    return str(refused.value).splitlines()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_example_loads_takes_under_two_minutes_and_expects_figures_that_exist(path):
    scenario = load_scenario(path)
    assert scenario.warm_up_s + scenario.duration_s <= 110
    assert set(scenario.expect) <= set(FIGURES) | OTHER_FIGURES
    assert scenario.expect, "a scenario that expects nothing proves nothing"
    assert scenario.plant_type().gpu_count == 16


def test_all_five_scenarios_are_shipped():
    assert {"curtailment", "broker_lost", "pdu_frozen", "agent_killed", "chiller_derate"} <= {
        p.stem for p in SCENARIOS
    }


def test_errors_of_shape_come_all_at_once():
    document = a_document(duration_s=-1, colour="red", workloads=[{"node": "n1", "kind": "dreaming"}])
    errors = errors_of(document)
    assert len(errors) == 3
    for what in ("duration_s", "colour", "workloads.0.kind"):
        assert any(what in error for error in errors), errors


def test_errors_of_meaning_come_all_at_once_with_their_remedy():
    timeline = [
        {"at_s": 99, "event": {"id": "e", "reduce_ratio": 0.2}},
        {"at_s": 1, "cancel": "nobody"},
        {"at_s": 1, "fault": {"target": "device", "name": "r9-a", "mode": "frozen"}},
        {"at_s": 1, "fault": {"target": "agent", "name": "n1", "mode": "sulk"}},
        {"at_s": 1, "fault": {"target": "gpu", "name": "n1/2", "mode": "lost"}},
        {"at_s": 1, "fault": {"target": "device", "name": "cdu", "mode": "silent"}},
    ]
    errors = errors_of(a_document(timeline=timeline, workloads=[{"node": "n7", "kind": "idle"}]))
    assert errors == [
        "test.yaml: workloads.0.node: no node 'n7'; use one of n1",
        "test.yaml: timeline.0.at_s: 99.0 is after the end at 10.0 s",
        "test.yaml: timeline.1.cancel: no event 'nobody' before it",
        "test.yaml: timeline.2.fault.name: no device 'r9-a'; use r1-a, r1-b, meter, cdu",
        "test.yaml: timeline.3.fault.mode: a agent cannot 'sulk'; use kill, freeze",
        "test.yaml: timeline.4.fault.name: no gpu 'n1/2'; use n1/0, n1/1",
        "test.yaml: timeline.5.fault.mode: the CDU cannot be silent; use refusing",
    ]


@pytest.mark.parametrize(
    ("moment", "word"),
    [
        ({"at_s": 1}, "exactly one of event, cancel, fault"),
        ({"at_s": 1, "cancel": "e", "event": {"id": "e", "limit_kw": 3}}, "exactly one of"),
        ({"at_s": 1, "event": {"id": "e"}}, "either reduce_ratio or limit_kw"),
        ({"at_s": 1, "event": {"id": "e", "limit_kw": 3, "reduce_ratio": 0.1}}, "either reduce_ratio"),
        ({"at_s": 1, "event": {"id": "e", "limit_kw": 3, "type": "HUGS"}}, "IMPORT_CAPACITY_LIMIT"),
    ],
)
def test_a_moment_is_one_thing_with_one_size(moment, word):
    assert word in errors_of(a_document(timeline=[moment]))[0]


def test_a_file_that_is_no_scenario_is_refused_with_a_sentence(tmp_path):
    for text, word in (("- a\n- b\n", "mapping"), ("a: [", "not YAML"), ("name: x\n", "duration_s")):
        path = tmp_path / "s.yaml"
        path.write_text(text)
        with pytest.raises(ScenarioError, match=word):
            load_scenario(path)
    with pytest.raises(ScenarioError, match="check the path"):
        load_scenario(tmp_path / "absent.yaml")


def test_numbers_of_gpus_run_through_all_nodes():
    document = a_document()
    document["block"]["nodes"].append({"name": "n2", "rack": "r1", "gpus": 3})
    scenario = parse_scenario(document, "test.yaml")
    assert [host.gpus for host in scenario.plant_type().hosts] == [(0, 1), (2, 3, 4)]
