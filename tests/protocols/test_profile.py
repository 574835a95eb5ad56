"""Profiles load whole or not at all, and say everything that is wrong at once."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from protocols import codec
from protocols.profile import UNITS, Identity, Point, ProfileError, builtin_profiles, load_profile

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
        wanted = example.value if isinstance(example.value, str) else pytest.approx(example.value, rel=1e-6)
        if profile.protocol == "modbus":
            assert codec.decode(point, example.registers) == wanted
            assert tuple(codec.encode(point, example.value, onto=example.registers)) == example.registers
        else:
            assert codec.from_raw(point, example.raw) == wanted
            assert codec.to_raw(point, example.value) == pytest.approx(example.raw)


def test_the_builtin_profiles_are_there_and_claim_no_more_than_a_document():
    assert builtin_profiles() == (
        "carrier_30xv", "eaton_pxg", "eaton_pxg_panel", "em24_e1_meter", "em24_meter", "iem3000_meter",
        "janitza_umg", "liebert_branch", "liebert_hpc", "liebert_pdu", "liebert_ups", "opcua_cdu", "opcua_cdu_control",
        "orv3_bbu", "orv3_psu", "orv3_rpu", "pm5000_meter", "sdm630_meter", "xerus_pdu", "york_ycal",
    )  # fmt: skip
    assert {load_profile(name).provenance.evidence for name in builtin_profiles()} == {"document"}


@pytest.mark.parametrize("name", builtin_profiles())
def test_every_builtin_profile_can_be_read_in_one_go_by_the_compiled_decoder(name):
    """Each block's points fit together; nothing overlaps that a decoder could not take apart."""
    profile = load_profile(name)
    for block in profile.blocks:
        points = [p for p in profile.points.values() if p.readable and block.holds(p)]
        assert points, f"{block} holds nothing"
        count = block.last - block.first + 1
        values = codec.SpanDecoder(points, block.first, count).values([0] * count)
        assert list(values) == [p.name for p in points]


@pytest.mark.parametrize(
    ("name", "point", "printed", "wire"),
    [
        ("pm5000_meter", "power_w", 3060, 0x0BF3),
        ("pm5000_meter", "current_l1_a", 3000, 0x0BB7),
        ("iem3000_meter", "power_w", 3060, 0x0BF3),
        ("iem3000_meter", "voltage_l1_v", 3028, 0x0BD3),
        ("iem3000_meter", "energy_imported_wh", 3204, 0x0C83),
        ("sdm630_meter", "power_w", 30053 - 30000, 0x34),
        ("sdm630_meter", "frequency_hz", 30071 - 30000, 0x46),
        ("liebert_hpc", "coolant_supply_c", 30493 - 30000, 492),
        ("liebert_pdu", "current_l1_a", 40010 - 40000, 9),
    ],
)
def test_document_numbers_that_start_at_one_are_wire_addresses_here(name, point, printed, wire):
    """Schneider prints 3060 for total active power; mbmd and ESPHome read it at 0x0BF3 = 3059."""
    assert load_profile(name).points[point].address == printed - 1 == wire


@pytest.mark.parametrize("name", ["pm5000_meter", "iem3000_meter"])
def test_a_meter_read_one_register_off_gives_no_plausible_power(name):
    """The trap: a driver that takes 3060 for the wire reads the second half of one float and half of the next.

    The meter says 123.5 kW; read at 3060 instead of 3059 the pattern is 0x0000 and what follows: 0 at best.
    """
    point = load_profile(name).points["power_w"]
    held = {point.address: 0x42F7, point.address + 1: 0x0000}
    assert codec.decode(point, [held[point.address], held[point.address + 1]]) == 123_500.0
    assert codec.decode(point, [held[point.address + 1], held.get(point.address + 2, 0)]) != 123_500.0


def test_the_two_em24_differ_where_it_hurts_and_only_one_can_be_told_by_its_code():
    """With the wrong one of the two, frequency comes out as something else, plausibly."""
    serial, ethernet = load_profile("em24_meter"), load_profile("em24_e1_meter")
    assert serial.points["frequency_hz"].address == 0x37
    assert ethernet.points["frequency_hz"].address == 0x33
    assert serial.points["power_w"].address == ethernet.points["power_w"].address
    code = ethernet.points["model_code"]
    assert ethernet.identity[0].accepts(codec.decode(code, [1653]))
    assert not ethernet.identity[0].accepts(codec.decode(code, [57]))  # an EM21


def test_a_chiller_takes_a_demand_limit_only_from_the_network():
    profile = load_profile("carrier_30xv")
    (condition,) = profile.control.requires
    assert condition.point == "control_type"
    assert [condition.accepts(codec.decode(profile.points["control_type"], [n])) for n in (0, 1, 2, 9)] == [
        False, True, False, False,
    ]  # fmt: skip
    assert [(s.point, s.value) for s in profile.control.release] == [("demand_limit_ratio", 1)]


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
        ({"points__voltage_v__type": "string"}, "a string is not a V; type: string and unit: text go together"),
        ({"points__label": {"unit": "text", "address": 14, "type": "string"}}, "points.label.registers: 0; give the length"),
        ({"points__label": {"unit": "text", "address": 14, "type": "string", "registers": 65}}, "1 to 64"),
        ({"points__voltage_v__registers": 2}, "points.voltage_v.registers: belong to a string"),
        ({"points__voltage_v__mask": 0x1FFFF}, "points.voltage_v.mask: 0x1ffff is not within a u16"),
        ({"points__power_w__mask": 1}, "points.power_w.mask: 0x1 is not within a f32"),
        ({"points__mode": {"unit": "enum", "address": 14, "type": "u16"}}, "points.mode.enum: missing; list number"),
        ({"points__voltage_v__enum": {1: "on"}}, "points.voltage_v.enum: V has no states; use unit: enum"),
        ({"points__mode": {"unit": "enum", "address": 14, "type": "u16", "scale": 0.1, "enum": {1: "on"}}},
         "points.mode.scale: a text, a state or bits cannot be scaled"),
        ({"points__voltage_v__bits": {0: {"name": "a"}}}, "points.voltage_v.bits: V has none; use unit: bits"),
        ({"points__flags": {"unit": "bits", "address": 14, "type": "u16", "bits": {16: {"name": "a"}}}},
         "points.flags.bits: [16] lie beyond the value"),
        ({"points__flags": {"unit": "bits", "address": 14, "type": "u16", "mask": 0xF0, "bits": {4: {"name": "a"}}}},
         "points.flags.bits: [4] lie beyond the value"),
        ({"points__flags": {"unit": "bits", "address": 14, "type": "u16", "bits": {0: {"name": "a"}, 1: {"name": "a"}}}},
         "points.flags.bits: 'a' stands twice"),
        ({"points__flags": {"unit": "bits", "address": 14, "type": "u64", "bits": {0: {"name": "a"}}}}, "use u16 or u32"),
        ({"points__voltage_v__sentinels": [-1]}, "points.voltage_v.sentinels: [-1] are no patterns of 16 bits"),
        ({"points__voltage_v__scale_factor": "voltage_sf"}, "points.voltage_v.scale_factor: no point 'voltage_sf'"),
        ({"points__voltage_v__scale_factor": "power_w"}, "power_w must be a plain i16"),
        ({"points__voltage_v__deadband": -1}, "points.voltage_v.deadband: -1.0; use 0"),
        ({"points__power_w__write": "single"}, "points.power_w.write: function code 6 carries one register, not 2"),
        ({"points__voltage_v__access": "w"}, "points.voltage_v.read_back: nothing can be read back"),
        ({"points__power_w__method": "i=1"}, "points.power_w.node: belongs to OPC UA"),
        ({"identity": [{"point": "nobody", "equals": 1}]}, "identity[0].point: no point 'nobody'"),
        ({"identity": [{"point": "power_w"}]}, "identity[0]: any power_w would do; give equals or matches"),
        ({"identity": [{"point": "power_w", "matches": "x"}]}, "identity[0].point: power_w is no text"),
        ({"identity": [{"point": "power_w", "equals": 1, "matches": "("}]}, "identity[0].matches: not a regular expression"),
        ({"identity": "power_w"}, "identity: must be a list"),
        ({"control": {"arm": [{"point": "power_w", "value": 1}]}}, "control.arm[0]: power_w is read-only"),
        ({"control": {"release": [{"point": "nobody", "value": 1}]}}, "control.release[0]: no point 'nobody'"),
        ({"control": {"heartbeat": {"point": "nobody", "period_s": 1}}}, "control.heartbeat.point: no point 'nobody'"),
        ({"control": {"heartbeat": {"point": "power_w", "period_s": 0}}}, "control.heartbeat.period_s: 0.0; use"),
        ({"control": {"reversion": {"timer_point": "power_w", "seconds": 0}}}, "control.reversion.seconds: 0.0; use 1"),
        ({"control": {"reversion": {"timer_point": "power_w", "seconds": 60, "value": 1}}},
         "control.reversion.value: goes nowhere; add value_point"),
        ({"control": {"requires": [{"point": "nobody", "equals": 1}]}}, "control.requires[0].point: no point"),
        ({"control": {"arm": [{"point": "power_w"}]}}, "control.arm.0.value: missing; add it"),
        ({"points__voltage_v__access": "rw", "control": {"arm": [{"point": "voltage_v", "value": 70_000}]}},
         "control.arm[0]: voltage_v: 700000 does not fit a u16"),
        ({"points__voltage_v__access": "rw", "control": {"heartbeat": {"point": "voltage_v", "period_s": 1}}},
         "control.heartbeat.wraps_at: voltage_v: 655350 does not fit a u16"),
        ({"line": {"baud": 3}}, "line.baud: 3; use 300 to 4000000"),
        ({"line": {"parity": "odd"}}, "line.parity: 'odd' is not known; use 'N', 'E' or 'O'"),
        ({"max_bits_per_read": 0}, "max_bits_per_read: 0; use 1 to 2000"),
        ({"write_gap_s": -1}, "write_gap_s: -1.0; use 0 to 3600 s"),
        ({"pause_after_connect_s": 11}, "pause_after_connect_s: 11.0; use 0 to 10 s"),
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


def test_a_command_that_cannot_be_read_needs_no_block(tmp_path):
    reset = {"unit": "count", "address": 500, "type": "u16", "access": "w", "read_back": False}
    profile = load_profile(write(tmp_path, points__reset=reset))
    assert profile.points["reset"].writable
    assert not profile.points["reset"].readable


def test_a_setting_out_of_the_range_of_its_point_is_refused(tmp_path):
    changes = {
        "points__voltage_v__access": "rw", "points__voltage_v__highest": 10,
        "control": {"arm": [{"point": "voltage_v", "value": 11}]},
    }  # fmt: skip
    with pytest.raises(ProfileError, match=r"control.arm\[0\]: 11.0 V is out of the range of voltage_v"):
        load_profile(write(tmp_path, **changes))


def test_a_method_of_opc_ua_is_called_and_never_read(tmp_path):
    point = {"unit": "bool", "node": "nsu=urn:a;s=Cdu", "method": "nsu=urn:a;s=Cdu.Reset"}
    document = {
        **GOOD, "protocol": "opcua", "blocks": [],
        "points": {"reset": point, "heat_w": {"unit": "W", "node": "nsu=urn:a;s=Heat"}},
        "examples": [{"point": "heat_w", "raw": 1.5, "value": 1.5, "source": "none"}],
    }  # fmt: skip
    file = tmp_path / "cdu.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ProfileError, match="a call cannot be read; set access: w"):
        load_profile(file)
    point.update(access="w", read_back=False)
    file.write_text(yaml.safe_dump(document))
    assert load_profile(file).points["reset"].method == "nsu=urn:a;s=Cdu.Reset"


@pytest.mark.parametrize(
    ("identity", "value", "accepted"),
    [
        (Identity(point="model", equals="EM24"), "EM24", True),
        (Identity(point="model", equals="EM24"), "EM21", False),
        (Identity(point="model", matches="EM24.*"), "EM24DINAV", True),
        (Identity(point="model", matches="EM24"), "EM24DINAV", False),  # from beginning to end
        (Identity(point="model", matches="7"), 7.0, False),
        (Identity(point="code", equals=7), 7.0, True),
        (Identity(point="code", equals=7), None, False),
        (Identity(point="code"), 3.0, True),
        (Identity(point="code"), None, False),
    ],
)
def test_an_identity_accepts_the_device_that_is_meant_and_no_other(identity, value, accepted):
    assert identity.accepts(value) is accepted


def test_scale_factors_come_along_with_what_rests_on_them():
    def point(name, **fields):
        return Point(name=name, unit="count", address=0, type="i16", **fields)

    factor, value = point("sf"), point("value", scale_factor="sf")
    profile = replace(load_profile("pm5000_meter"), points={p.name: p for p in (factor, value)})
    assert [p.name for p in profile.with_scale_factors((value,))] == ["value", "sf"]
    assert [p.name for p in profile.with_scale_factors((factor, value))] == ["sf", "value"]


def test_a_point_written_twice_is_refused_and_does_not_replace_the_first(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("points:\n  power_w: {unit: W}\n  power_w: {unit: V}\n")
    with pytest.raises(ProfileError, match="'power_w' stands twice; remove one"):
        load_profile(file)


def test_a_merge_key_is_named_with_its_line_and_its_remedy(tmp_path):
    file = tmp_path / "merged.yaml"
    file.write_text("points:\n  power_w: &one {unit: W}\n  heat_w:\n    <<: *one\n    address: 4\n")
    with pytest.raises(ProfileError, match=r"(?s)merged\.yaml.*'<<' .* write them out.*line 4"):
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
