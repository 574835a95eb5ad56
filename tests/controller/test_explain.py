"""Signals as a utility sends them, and what the explanation makes of them."""

import json
from datetime import datetime

import pytest

from tests.controller.test_cli import powerblock, words

NOW = "2026-11-21T17:55:00Z"

DEMAND_RESPONSE = {
    "objectType": "EVENT",
    "operation": "CREATE",
    "object": {
        "id": "dr-2026-11-21",
        "objectType": "EVENT",
        "createdDateTime": "2026-11-21T12:00:00Z",
        "modificationDateTime": "2026-11-21T12:00:00Z",
        "programID": "44",
        "priority": 1,
        "intervalPeriod": {"start": "2026-11-21T18:00:00Z", "duration": "PT15M"},
        "payloadDescriptors": [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"}],
        "intervals": [
            {"id": 0, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [12.0]}]},
            {"id": 1, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [9.5]}]},
            {"id": 2, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [12.0]}]},
        ],
    },
    "targets": ["block-01"],
}

# As the reference VTN writes it: snake case, bare, and with a payload that asks for no power.
EMERGENCY = {
    "id": "emergency-7",
    "object_type": "EVENT",
    "modification_date_time": "2026-11-21T17:50:00Z",
    "program_id": "44",
    "priority": 0,
    "interval_period": {"start": "2026-11-21T18:20:00Z", "duration": "PT20M"},
    "payload_descriptors": [
        {"payload_type": "IMPORT_CAPACITY_LIMIT", "units": "KW"},
        {"payload_type": "DISPATCH_SETPOINT", "units": "KW"},
    ],
    "intervals": [
        {
            "id": 0,
            "payloads": [
                {"type": "IMPORT_CAPACITY_LIMIT", "values": [10.5]},
                {"type": "DISPATCH_SETPOINT", "values": [8.6]},
                {"type": "ALERT_GRID_EMERGENCY", "values": ["be quick"]},
            ],
        }
    ],
}

MEGAWATTS = {
    **DEMAND_RESPONSE["object"],
    "id": "dr-mw",
    "payloadDescriptors": [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "MW"}],
}


@pytest.fixture
def sent(tmp_path):
    """Files of signals, in order of arrival."""

    def write(*signals):
        paths = [tmp_path / f"{number}.json" for number in range(len(signals))]
        for path, said in zip(paths, signals, strict=True):
            path.write_text(json.dumps(said))
        return paths

    return write


def explained(*arguments, now=NOW, exit_code=0):
    found = powerblock("explain", *arguments, "--now", now, "--json")
    assert found.exit_code == exit_code, found.output
    return json.loads(found.stdout)


def clock(at_utc_s) -> str:
    return (
        datetime.fromtimestamp(at_utc_s).astimezone(datetime.fromisoformat(NOW).tzinfo).strftime("%H:%M:%S")
    )


def timeline(found):
    """(from, limit in kW, source, sources overridden)."""
    return [
        (
            clock(s["starts_utc_s"]),
            None if s["limit_w"] is None else s["limit_w"] / 1000,
            s["source"].removeprefix("openadr "),
            [(o["source"].removeprefix("openadr "), o["kind"], o["why"]) for o in s["overridden"]],
        )
        for s in found["stretches"]
    ]


def test_one_event_becomes_a_time_line(sent):
    assert timeline(explained(*sent(DEMAND_RESPONSE))) == [
        ("17:55:00", None, "no limit", []),
        ("18:00:00", 12.0, "dr-2026-11-21/0", []),
        ("18:15:00", 9.5, "dr-2026-11-21/1", []),
        ("18:30:00", 12.0, "dr-2026-11-21/2", []),
        ("18:45:00", None, "no limit", []),
    ]


def test_kinds_are_independent_and_priority_counts_within_one(sent):
    found = timeline(explained(*sent(DEMAND_RESPONSE, EMERGENCY)))
    dr_1 = ("dr-2026-11-21/1", "limit", "priority 1 yields to 0")
    dr_2 = ("dr-2026-11-21/2", "limit", "priority 1 yields to 0")
    own = ("emergency-7/0", "limit", "not the lowest")
    assert [(at, limit_kw, source) for at, limit_kw, source, _ in found[3:6]] == [
        ("18:20:00", 8.6, "emergency-7/0"),
        ("18:30:00", 8.6, "emergency-7/0"),
        ("18:40:00", 12.0, "dr-2026-11-21/2"),
    ]
    assert set(found[3][3]) == {dr_1, own}
    assert set(found[4][3]) == {dr_2, own}


def test_a_higher_priority_may_raise_a_limit_and_that_is_said(sent):
    relief = json.loads(json.dumps(EMERGENCY))
    relief["intervals"][0]["payloads"] = [{"type": "IMPORT_CAPACITY_LIMIT", "values": [13.0]}]
    found = timeline(explained(*sent(DEMAND_RESPONSE, relief)))
    assert found[3][:3] == ("18:20:00", 13.0, "emergency-7/0")
    assert found[3][3] == [("dr-2026-11-21/1", "limit", "priority 1 yields to 0")]


def test_a_refused_signal_is_named_with_its_reason_and_changes_nothing(sent):
    found = explained(*sent(DEMAND_RESPONSE, MEGAWATTS), exit_code=1)
    assert [heard["accepted"] for heard in found["heard"]] == [True, False]
    assert "units 'MW' for IMPORT_CAPACITY_LIMIT; send KW" in found["heard"][1]["reason"]
    assert timeline(found) == timeline(explained(*sent(DEMAND_RESPONSE)))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"objectType":"REPORT","operation":"CREATE","object":{}}']
)
def test_a_file_that_is_no_event_is_a_refusal_and_not_a_crash(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    assert explained(tmp_path / "x.json", exit_code=1)["heard"][0]["reason"]


def test_an_update_replaces_and_a_delete_withdraws(sent):
    later = json.loads(json.dumps(DEMAND_RESPONSE))
    later["operation"] = "UPDATE"
    later["object"]["modificationDateTime"] = "2026-11-21T13:00:00Z"
    later["object"]["intervals"] = later["object"]["intervals"][:1]
    assert len(explained(*sent(DEMAND_RESPONSE, later))["stretches"]) == 3
    assert explained(*sent(later, DEMAND_RESPONSE), exit_code=1)["heard"][1]["reason"].endswith(
        "older than known"
    )
    gone = {"objectType": "EVENT", "operation": "DELETE", "object": {"id": "dr-2026-11-21"}}
    assert timeline(explained(*sent(DEMAND_RESPONSE, gone))) == [("17:55:00", None, "no limit", [])]


def test_in_the_middle_of_an_event_only_the_rest_is_shown(sent):
    found = timeline(explained(*sent(DEMAND_RESPONSE), now="2026-11-21T18:20:00Z"))
    assert [at for at, *_ in found] == ["18:20:00", "18:30:00", "18:45:00"]


def test_with_a_block_the_feed_rating_caps_and_the_failsafe_limit_waits(sent, block_with):
    found = explained(*sent(DEMAND_RESPONSE, EMERGENCY), "--block", block_with({"feed.rating_kw": 11}))
    assert [(kw, source) for _, kw, source, _ in timeline(found)][:3] == [
        (11.0, "feed rating"),
        (11.0, "feed rating"),
        (9.5, "dr-2026-11-21/1"),
    ]
    assert [s["site_lost_w"] / 1000 for s in found["stretches"]] == [9.0, 9.0, 9.0, 8.6, 8.6, 9.0, 9.0]


def test_ramps_say_when_they_begin_and_when_the_limit_is_met(sent, block_with):
    plain = {"site.ramp_margin_ratio": 0}
    found = explained(*sent(DEMAND_RESPONSE), "--block", block_with(plain))
    first, second, third, last = found["ramps"]
    assert clock(first["begins_utc_s"]) == "18:00:00"
    assert (first["from_w"], first["to_w"]) == (14_000.0, 12_000.0)
    assert first["done_utc_s"] - first["begins_utc_s"] == pytest.approx(2000.0 / 600.0 + 0.6, abs=0.06)
    assert second["done_utc_s"] - second["begins_utc_s"] == pytest.approx(2500.0 / 600.0 + 0.6, abs=0.06)
    assert third["done_utc_s"] - third["begins_utc_s"] == pytest.approx(2500.0 / 400.0, abs=0.06)
    assert (clock(last["begins_utc_s"]), last["to_w"], last["towards"]) == (
        "18:45:00",
        14_000.0,
        "full power",
    )
    ahead = explained(
        *sent(DEMAND_RESPONSE), "--block", block_with(plain | {"site.ramp.arrive_at_start": True})
    )
    assert clock(ahead["ramps"][0]["done_utc_s"]) == "18:00:00"
    assert clock(ahead["ramps"][0]["begins_utc_s"]) == "17:59:56"


@pytest.mark.parametrize("columns", [80, 120])
def test_people_get_a_table_that_fits(sent, block_with, columns):
    files = sent(DEMAND_RESPONSE, EMERGENCY, MEGAWATTS)
    shown = powerblock("explain", *files, "--block", block_with(), "--now", NOW, columns=columns)
    assert shown.exit_code == 1
    assert max(len(line.rstrip()) for line in shown.stdout.splitlines()) <= columns
    for said in ("in 25 min", "8.60 kW", "refused", "ignored: ALERT_GRID_EMERGENCY", "ramp begins", "no end"):
        assert said in words(shown.stdout), said


def test_a_limit_without_end_is_said_to_have_none(sent):
    for_good = json.loads(json.dumps(DEMAND_RESPONSE))
    for_good["object"]["intervals"] = for_good["object"]["intervals"][:1]
    for_good["object"]["intervalPeriod"] = {"start": "0001-01-01", "duration": "P9999Y"}
    shown = powerblock("explain", *sent(for_good), "--now", NOW)
    assert "17:55:00 no end now 12.00 kW limit openadr dr-2026-11-21/0" in words(shown.stdout)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.json"], "none.json: cannot be read: No such file or directory"),
        (["{file}", "--now", "yesterday"], "--now: 'yesterday' is not a time"),
        (["{file}", "--now", "2026-11-21T17:55:00"], "has no offset; append Z"),
        (["{file}", "--block", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_bad_input_is_a_sentence(sent, arguments, sentence):
    (file,) = sent(DEMAND_RESPONSE)
    found = powerblock("explain", *(a.format(file=file) for a in arguments))
    assert found.exit_code == 2
    assert sentence in found.stderr


# --- DSX Flex, and both standards mixed --------------------------------------------------------------------


def dsx(*targets, data=None, **fields):
    return {
        "specversion": "1.0.2",
        "id": "0b9f6f43-6a4e-4c0e-9f7a-1c1d6a1f5e11",
        "source": "//grid/v1/isv/isv-1",
        "type": "grid.loadtarget.set.v1",
        "time": "2026-11-21T17:50:00Z",
        "datacontenttype": "application/json",
        "subject": "loadtarget",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "correlationid": "5b9f6f43-6a4e-4c0e-9f7a-1c1d6a1f5e22",
        "data": {"targets": list(targets)} if data is None else data,
    } | fields


def load_target(start, end, kilowatts, **fields):
    power = None if kilowatts is None else {"value": kilowatts, "unit": "kilowatt"}
    return {"interval": {"start_time": start, "end_time": end}, "load_constraint": power} | fields


AT_SIX = load_target("2026-11-21T18:05:00Z", "2026-11-21T18:20:00Z", 11.0)


def test_a_load_target_is_explained_and_its_signature_said_to_be_unchecked(sent):
    found = explained(*sent(dsx(AT_SIX)))
    assert [(at, limit) for at, limit, *_ in timeline(found)] == [
        ("17:55:00", None),
        ("18:05:00", 11.0),
        ("18:20:00", None),
    ]
    assert "signature not checked" in found["heard"][0]["reason"]


def test_of_both_standards_the_lowest_binds_and_the_loser_is_named(sent):
    found = timeline(explained(*sent(DEMAND_RESPONSE, dsx(AT_SIX))))
    assert [(at, limit, source.split()[0]) for at, limit, source, _ in found[1:6]] == [
        ("18:00:00", 12.0, "dr-2026-11-21/0"),
        ("18:05:00", 11.0, "dsx"),
        ("18:15:00", 9.5, "dr-2026-11-21/1"),
        ("18:20:00", 9.5, "dr-2026-11-21/1"),
        ("18:30:00", 12.0, "dr-2026-11-21/2"),
    ]
    assert found[2][3] == [("dr-2026-11-21/0", "limit", "not the lowest")]


def test_a_later_target_paints_over_an_earlier_one(sent):
    newer = dsx(
        load_target("2026-11-21T18:10:00Z", "2026-11-21T18:15:00Z", None),
        id="1b9f6f43-6a4e-4c0e-9f7a-1c1d6a1f5e33",
    )
    found = timeline(explained(*sent(dsx(AT_SIX), newer)))
    assert [(at, limit) for at, limit, *_ in found] == [
        ("17:55:00", None),
        ("18:05:00", 11.0),
        ("18:10:00", None),
        ("18:15:00", 11.0),
        ("18:20:00", None),
    ]


def dsx_block(block_with, tmp_path, **changes):
    from tests.controller.site.dsx_site import source_config

    return block_with({"site.sources": [source_config(tmp_path, **changes)]})


def test_with_the_block_a_signature_is_checked_against_its_publishers(sent, block_with, tmp_path):
    from protocols.dsx_flex import signing
    from tests.controller.site.dsx_site import KEYS

    block = dsx_block(block_with, tmp_path)
    good = signing.Signer("isv-1.pub", KEYS["isv-1"][0]).sign({"targets": [AT_SIX]})
    bad = signing.Signer("isv-1.pub", KEYS["stranger"][0]).sign({"targets": [AT_SIX]})
    assert explained(*sent(dsx(data=good)), "--block", block)["heard"][0]["reason"] == "accepted"
    refused = explained(*sent(dsx(data=bad)), "--block", block, exit_code=1)["heard"][0]
    assert "altered, or signed with another key" in refused["reason"]
    plain = explained(*sent(dsx(AT_SIX)), "--block", block, exit_code=1)["heard"][0]
    assert "not signed" in plain["reason"]


def test_with_the_block_levels_and_alerts_have_a_meaning(sent, block_with):
    agreed = {"site.meanings": {"levels_kw": [12, 11, 10], "alerts_kw": {"ALERT_GRID_EMERGENCY": 8}}}
    level = {
        "id": "simple",
        "modificationDateTime": "2026-11-21T12:00:00Z",
        "intervalPeriod": {"start": "2026-11-21T18:00:00Z", "duration": "PT10M"},
        "intervals": [{"id": 0, "payloads": [{"type": "SIMPLE", "values": [2]}]}],
    }
    found = explained(*sent(level, EMERGENCY), "--block", block_with(agreed))
    assert [(at, limit, source.split()[0]) for at, limit, source, _ in timeline(found)] == [
        ("17:55:00", 14.0, "feed"),
        ("18:00:00", 11.0, "simple/0"),
        ("18:10:00", 14.0, "feed"),
        ("18:20:00", 8.0, "emergency-7/0"),
        ("18:40:00", 14.0, "feed"),
    ]
    unset = explained(*sent(level))
    assert "asks for no power" in unset["heard"][0]["reason"]


def test_dsx_noise_is_refused_with_its_place(sent):
    refused = explained(*sent(dsx(load_target("x", "y", 1.0))), exit_code=1)["heard"][0]
    assert "targets[0].interval" in refused["reason"]


def test_a_block_that_does_not_hear_a_standard_says_so(sent, block_with, tmp_path):
    refused = explained(*sent(dsx(AT_SIX)), "--block", block_with(), exit_code=1)["heard"][0]
    assert (
        "no source of the block hears DSX Flex; site.sources has openadr (openadr_mqtt)" in refused["reason"]
    )
    block = dsx_block(block_with, tmp_path)
    refused = explained(*sent(DEMAND_RESPONSE), "--block", block, exit_code=1)["heard"][0]
    assert "no source of the block hears OpenADR" in refused["reason"]


def test_the_examples_are_what_they_are_said_to_be():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "examples" / "signals"
    found = timeline(explained(folder / "event.json", folder / "load_target.json"))
    assert [(at, limit) for at, limit, *_ in found] == [
        ("17:55:00", None),
        ("18:00:00", 11.0),
        ("18:05:00", 10.0),
        ("18:15:00", 9.5),
        ("18:20:00", 9.5),
        ("18:30:00", None),
    ]
