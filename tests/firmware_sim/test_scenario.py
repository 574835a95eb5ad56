"""Scenario files load whole or not at all, and a refusal names every error."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from firmware_sim.cli import app
from firmware_sim.scenario import ScenarioError, load_scenario, parse_scenario

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
SCENARIOS = [path for path in EXAMPLES if "timeline" in path.read_text()]
GPUS = {"block_1152": 1152, "emergency": 72, "rough_block": 72}


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
def test_every_example_loads_takes_under_two_minutes_and_expects_something(path):
    scenario = load_scenario(path)
    assert scenario.warm_up_s + scenario.duration_s <= 112
    assert scenario.expect, "a scenario that expects nothing proves nothing"
    assert scenario.plant_type().gpu_count == GPUS.get(path.stem, 16)


def test_all_scenarios_are_shipped():
    calm = {"curtailment", "openadr_mtls", "openadr_ven", "dsx_flex", "dsx_flex_nats"}
    rough = {"broker_lost", "pdu_frozen", "agent_killed", "chiller_derate", "controller_killed"}
    rough |= {"dsx_broker_lost", "vtn_lost", "certificate_replaced", "gateway", "plain_gateway"}
    rough |= {"block_1152", "emergency", "rough_block"}
    assert calm | rough <= {p.stem for p in SCENARIOS}


def test_the_demonstration_needs_no_system_package():
    site = load_scenario(next(path for path in SCENARIOS if path.stem == "curtailment")).site
    assert (site.signals, site.broker, site.tls) == (("bare",), "embedded", False)


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
        "test.yaml: timeline.4.fault.name: no gpu 'n1/2'; use n1/0, n1/1, n1/*",
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


# ---- site -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "signals"),
    [("dsx", ("dsx",)), ("mixed", ("bare", "vtn", "dsx")), (["dsx", "bare"], ("dsx", "bare"))],
)
def test_signals_are_one_word_or_a_list_or_all(said, signals):
    site = {"signals": said, "broker": "mosquitto", "tls": "mutual"}
    assert parse_scenario(a_document(site=site), "test.yaml").site.signals == signals


@pytest.mark.parametrize(
    ("site", "word"),
    [
        ({"signals": "bell"}, "'bare', 'vtn' or 'dsx'"),
        ({"signals": []}, "at least 1"),
        ({"signals": ["dsx", "dsx"]}, "stands there twice"),
        ({"tls": "mutual"}, "the embedded broker knows no TLS; use broker: mosquitto or nats"),
        ({"signals": "vtn", "broker": "mosquitto"}, "a VTN speaks https and mqtts alone; use tls: mutual"),
        ({"tls": True, "broker": "nats"}, "site.tls"),
    ],
)
def test_a_site_that_cannot_be_is_refused(site, word):
    assert any(word in error for error in errors_of(a_document(site=site)))


def test_what_only_shows_between_the_parts_of_a_site_is_told_at_once():
    timeline = [
        {"at_s": 1, "event": {"id": "e", "limit_kw": 3, "via": "dsx"}},
        {"at_s": 1, "event": {"id": "f", "limit_kw": 3}},
        {"at_s": 1, "fault": {"target": "vtn", "mode": "silent"}},
        {"at_s": 1, "fault": {"target": "certificate", "mode": "replaced"}},
    ]
    document = a_document(
        timeline=timeline, broker_url="mqtt://there", site={"broker": "nats"}, status_events=["target_set"]
    )
    document["block"]["nodes"][0]["name"] = "n1.example"
    document["workloads"] = []
    assert errors_of(document) == [
        "test.yaml: broker_url: the rig cannot set up somebody else's broker; leave site.broker and site.tls out",
        "test.yaml: site.broker: to NATS a dot is a level of the topic; take the dots out of block and node names",
        "test.yaml: status_events: an ISV hears them, and there is none; add dsx to site.signals",
        "test.yaml: timeline.0.event.via: nobody speaks dsx here; use bare, or add it to site.signals",
        "test.yaml: timeline.2.fault.target: there is no VTN; add vtn to site.signals",
        "test.yaml: timeline.3.fault.target: the broker has no certificate; use site.tls: mutual",
    ]


def test_an_event_stays_with_whoever_told_it():
    timeline = [
        {"at_s": 1, "event": {"id": "e", "limit_kw": 3, "via": "dsx"}},
        {"at_s": 2, "event": {"id": "e", "limit_kw": 2}},
        {"at_s": 3, "fault": {"target": "operator", "mode": "silent"}},
    ]
    site = {"signals": ["bare", "dsx"]}
    errors = errors_of(a_document(timeline=timeline, site=site))
    assert errors == ["test.yaml: timeline.1.event.id: 'e' came by dsx before; give this one its own id"]
    vtn_alone = {"signals": "vtn", "broker": "mosquitto", "tls": "mutual"}
    errors = errors_of(a_document(timeline=timeline[2:], site=vtn_alone))
    assert errors == ["test.yaml: timeline.0.fault.target: a VTN speaks for the operator; use target: vtn"]


@pytest.mark.parametrize("folder", ["examples", "."])
def test_a_scenario_that_is_not_there_is_answered_with_those_that_are(folder, monkeypatch):
    monkeypatch.chdir(EXAMPLES[0].parents[1])
    found = CliRunner().invoke(app, ["run", f"{folder}/gatway.yaml"])
    assert found.exit_code == 2
    assert "there are " in found.stderr
    assert "examples/gateway.yaml" in found.stderr


# ---- sentences ------------------------------------------------------------------------------------------


def test_a_misspelt_figure_is_refused_at_once_with_the_one_that_was_meant():
    errors = errors_of(
        a_document(expect={"setle_s": {"max": 2}, "modbus_lags_s": {"max": 2}, "joy": {"min": 1}})
    )
    assert sorted(errors) == [
        "test.yaml: expect.joy: no such figure; docs/figures.md has them all",
        "test.yaml: expect.modbus_lags_s: no such figure; docs/figures.md has them all (did you mean modbus_lag_s?)",
        "test.yaml: expect.setle_s: no such figure; docs/figures.md has them all (did you mean settle_s?)",
    ]


def test_a_misspelt_setting_is_answered_with_the_one_that_was_meant():
    document = a_document(
        durtion_s=5,
        timeline=[{"at_s": 1, "event": {"id": "e", "limit_kv": 3}}],
        expect={"settle_s": {"mx": 2}},
        workloads=[7],
    )
    del document["name"]
    document["block"]["racks"][0]["ratng_a"] = 5
    unknown = "no such setting; remove it or correct its spelling"
    assert sorted(errors_of(document)) == [
        f"test.yaml: block.racks.0.ratng_a: {unknown} (did you mean rating_a?)",
        f"test.yaml: durtion_s: {unknown} (did you mean duration_s?)",
        f"test.yaml: expect.settle_s.mx: {unknown} (did you mean max?)",
        "test.yaml: name: missing; add it",
        f"test.yaml: timeline.0.event.limit_kv: {unknown} (did you mean limit_kw?)",
        "test.yaml: workloads.0: must be settings of the form `name: value`",
    ]


@pytest.mark.parametrize(("file", "runs"), [("block", "powerblock run"), ("node", "powerblock agent")])
def test_a_file_of_the_controller_is_answered_with_what_runs_it(file, runs):
    path = EXAMPLES[0].parent / "site" / f"{file}.yaml"
    with pytest.raises(ScenarioError) as refused:
        load_scenario(path)
    assert str(refused.value) == (
        f"{path}: this is a {file}.yaml, which `{runs}` runs; `powerblock-rig` plays scenarios, as in examples/"
    )
