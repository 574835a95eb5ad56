"""Profiles load whole or not at all, and say everything that is wrong at once."""

from pathlib import Path

import pytest
import yaml

from protocols import codec
from protocols.profile import UNITS, ProfileError, builtin_profiles, load_profile

GOOD = {
    "title": "Test meter",
    "protocol": "modbus",
    "provenance": {"document": "bench", "page": "1", "evidence": "document"},
    "blocks": [{"table": "holding", "first": 10, "last": 19}],
    "points": {
        "power_w": {"unit": "W", "address": 10, "type": "f32"},
        "voltage_v": {"unit": "V", "address": 12, "type": "u16", "scale": 0.1},
    },
    "examples": [{"point": "power_w", "registers": [0x459C, 0x4000], "value": 5000, "source": "IEEE 754"}],
}


def write(tmp_path: Path, **changes):
    document = yaml.safe_load(yaml.safe_dump(GOOD))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = document
        for key in parents:
            place = place[int(key) if key.isdigit() else key]
        if value is None:
            del place[last]
        else:
            place[int(last) if last.isdigit() else last] = value
    file = tmp_path / "test_meter.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.mark.parametrize("name", builtin_profiles())
def test_every_builtin_profile_turns_its_examples_into_values_and_back(name):
    profile = load_profile(name)
    assert profile.examples
    for example in profile.examples:
        point = profile.points[example.point]
        assert example.source
        if profile.protocol == "modbus":
            assert codec.decode(point, example.registers) == pytest.approx(example.value, rel=1e-6)
            assert tuple(codec.encode(point, example.value)) == example.registers
        else:
            assert codec.from_raw(point, example.raw) == pytest.approx(example.value)
            assert codec.to_raw(point, example.value) == pytest.approx(example.raw)


def test_the_five_builtin_profiles_are_there_and_claim_no_more_than_a_document():
    assert builtin_profiles() == ("em24_meter", "opcua_cdu", "orv3_rpu", "pm5000_meter", "xerus_pdu")
    assert {load_profile(name).provenance.evidence for name in builtin_profiles()} == {"document"}


def test_document_numbers_that_start_at_one_are_wire_addresses_here():
    """Schneider prints 3060 for total active power; mbmd reads it at 0x0BF3."""
    assert load_profile("pm5000_meter").points["power_w"].address == 3060 - 1 == 0x0BF3


def test_a_good_file_loads_with_its_name_and_order(tmp_path):
    profile = load_profile(write(tmp_path))
    assert profile.name == "test_meter"
    assert list(profile.points) == ["power_w", "voltage_v"]
    assert profile.points["power_w"].last_address == 11
    assert [p.name for p in profile.select(("voltage_v",))] == ["voltage_v"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"points__power_w__unit": "kW"}, "points.power_w.unit: 'kW' is not known; use W with scale: 1000"),
        ({"points__power_w__unit": "V"}, "points.power_w.unit: the name does not say V; end the name in '_v'"),
        ({"points__power_w__unit": "count"}, "drop the ending '_w'"),
        ({"points__power_w__scale": 0}, "points.power_w.scale: 0.0 would lose the value"),
        ({"points__power_w__offset": float("nan")}, "points.power_w.offset"),
        ({"points__power_w__lowest": 9, "points__power_w__highest": 1}, "points.power_w.lowest"),
        ({"points__power_w__type": "f16"}, "points.power_w.type: 'f16' is not known; use 'u16'"),
        ({"points__power_w__type": None}, "points.power_w.type: missing; use one of u16"),
        ({"points__power_w__address": None}, "points.power_w.address: -1 is missing"),
        ({"points__power_w__address": 19}, "points.power_w.address: holding 19..20 lies in no block"),
        ({"points__power_w__adress": 1}, "points.power_w.adress: unknown key"),
        ({"points__power_w__table": "coil"}, "points.power_w.type: a coil cannot be a f32"),
        ({"points__power_w__table": "input", "points__power_w__access": "rw"}, "a input cannot be written"),
        ({"points__power_w__node": "i=1"}, "points.power_w.node: belongs to OPC UA"),
        ({"blocks__0__last": 9}, "blocks[0]: 10..9 is not a range"),
        ({"blocks": [{"table": "holding", "first": 5, "last": 12}, {"table": "holding", "first": 12, "last": 20}]},
         "blocks[1]: overlaps 5..12"),
        ({"blocks": "all"}, "blocks: must be a list"),
        ({"examples": []}, "examples: none; add at least one"),
        ({"examples__0__value": 5}, "examples[0]: power_w comes out as 5000.0 W, the example says 5"),
        ({"examples__0__registers": [1]}, "examples[0]: power_w: [1] is not 2 register(s)"),
        ({"examples__0__point": "powr_w"}, "examples[0].point: no point 'powr_w'"),
        ({"max_registers_per_read": 126}, "max_registers_per_read: 126; use 1 to 125"),
        ({"reply_wait_max_s": 0}, "reply_wait_max_s"),
        ({"min_gap_s": -1}, "min_gap_s"),
        ({"provenance": None}, "provenance: missing; add it"),
        ({"provenance__evidence": "trust me"}, "'trust me' is not known; use 'document', 'interop' or 'hardware'"),
        ({"protocol": "bacnet"}, "protocol: 'bacnet' is not known"),
        ({"points": {}}, "points: none"),
        ({"points": [1]}, "points: must be a mapping"),
        ({"points__power_w": 7}, "points.power_w: must be a mapping"),
        ({"colour": "red"}, "colour: unknown key"),
    ],
)  # fmt: skip
def test_each_error_names_place_and_remedy(tmp_path, changes, sentence):
    with pytest.raises(ProfileError) as refused:
        load_profile(write(tmp_path, **changes))
    assert sentence in str(refused.value)
    assert all(line.startswith("test_meter.yaml: ") for line in str(refused.value).splitlines())


def test_all_errors_come_at_once(tmp_path):
    changes = {
        "points__power_w__unit": "kW",
        "points__voltage_v__type": "f16",
        "provenance__evidence": "hearsay",
        "blocks__0__table": "shelf",
        "examples__0__source": None,
    }
    with pytest.raises(ProfileError) as refused:
        load_profile(write(tmp_path, **changes))
    lines = str(refused.value).splitlines()
    for place in ("points.voltage_v.type", "provenance.evidence", "blocks[0].table", "examples[0].source"):
        assert sum(place in line for line in lines) == 1, lines
    assert any("points.power_w.unit" in line for line in lines), lines


def test_an_opc_ua_node_names_its_namespace_by_uri(tmp_path):
    point = {"unit": "W", "node": "nsu=urn:a;b;s=Heat"}
    document = {
        **GOOD, "protocol": "opcua", "blocks": [], "points": {"heat_w": point},
        "examples": [{"point": "heat_w", "raw": 1.5, "value": 1.5, "source": "none"}],
    }  # fmt: skip
    file = tmp_path / "cdu.yaml"
    file.write_text(yaml.safe_dump(document))
    loaded = load_profile(file).points["heat_w"]
    assert (loaded.namespace_uri, loaded.identifier) == ("urn:a;b", "s=Heat")
    point["node"] = "ns=2;s=Heat"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ProfileError, match="names no namespace by URI; write nsu="):
        load_profile(file)


@pytest.mark.parametrize("content", ["{", "- 1", "", "a: !!python/object:os.system {}"])
def test_a_file_that_is_no_profile_says_so(tmp_path, content):
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(ProfileError, match=r"broken\.yaml"):
        load_profile(file)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ProfileError, match=r"no built-in profile 'pdu'; use .*xerus_pdu"):
        load_profile("pdu")
    with pytest.raises(ProfileError, match="cannot be read: No such file"):
        load_profile(tmp_path / "none.yaml")


def test_an_unknown_point_is_refused_with_the_list(tmp_path):
    with pytest.raises(ProfileError, match=r"no point 'powr_w'; use power_w, voltage_v"):
        load_profile(write(tmp_path)).select(("powr_w",))


def test_no_two_units_share_an_ending():
    endings = [ending for ending in UNITS.values() if ending]
    assert len(endings) == len(set(endings))
