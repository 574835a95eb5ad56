"""block.yaml: what it becomes, and every error at once with its place and its remedy."""

import copy

import pytest

from controller.config import ConfigError, GatewayConfig, devices, load_block, load_config, settings_of


def errors(path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_block(path)
    return str(caught.value).splitlines()


def test_kilowatts_in_the_file_are_watts_in_the_law(settings):
    assert settings.feed_rating_w == 14_000.0
    assert [(one.source, one.limit_w) for one in settings.failsafes] == [("openadr", 9_000.0)]
    assert (settings.base_min_w, settings.base_max_w) == (500.0, 5_000.0)
    assert settings.tick_s == 0.05
    assert settings.cooling_blind_w is None


def test_commanded_ramps_stay_below_the_agreed_ones(block_with):
    settings = settings_of(load_block(block_with({"site.ramp_margin_ratio": 0.1})))
    assert settings.ramp == pytest.approx((540.0, 360.0))


def test_an_inlet_carries_four_fifths_of_its_rating_for_hours(settings):
    assert settings.topology.inlet_continuous_w.tolist() == pytest.approx(
        [0.8 * 32 * 230 * 3, *[0.8 * 16 * 230 * 3] * 3]
    )


def test_gpus_know_their_node_their_rack_and_their_tier(block_with):
    path = block_with({"racks.0.nodes.0.gpus": 2, "racks.1.nodes.0.gpus": 3})
    topology = settings_of(load_block(path)).topology
    assert topology.gpu_node.tolist() == topology.gpu_rack.tolist() == [0, 0, 1, 1, 1]
    assert topology.gpu_floor_w.tolist() == [250.0] * 2 + [500.0] * 3
    assert topology.gpu_weight.tolist() == [1.0] * 2 + [4.0] * 3
    assert topology.inlet_rack.tolist() == [0, 0, 1, 1]
    assert topology.gpu_name(3) == "node-b/1"


def test_a_rack_without_a_word_of_its_own_gets_its_share_of_the_base_load(block_with):
    settings = settings_of(load_block(block_with({"racks.1.base_max_kw": 1.5})))
    assert settings.rack_base_max_w.tolist() == [2_500.0, 1_500.0]


def test_the_margin_is_a_share_of_the_rating_or_what_is_said_nothing_included(block_with):
    assert settings_of(load_block(block_with())).base_margin_w == pytest.approx(14.0)
    assert settings_of(load_block(block_with({"base_load.margin_kw": 0}))).base_margin_w == 0.0


def test_readings_of_slow_agents_are_believed_for_as_long_as_the_block_says(block_with):
    assert settings_of(load_block(block_with())).report_age_max_s == 0.5
    path = block_with({"agents": {"report_age_max_s": 1.2}})
    assert settings_of(load_block(path)).report_age_max_s == 1.2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"feed": ...}, "feed: missing; add it"),
        ({"feed.ratng_kw": 14}, "feed.ratng_kw: no such setting; remove it or correct its spelling"),
        ({"feed.rating_kw": "14"}, "feed.rating_kw: Input should be a valid number (here: '14')"),
        ({"feed.rating_kw": -1}, "feed.rating_kw: Input should be greater than 0 (here: -1)"),
        (
            {"racks.1.nodes.0.tier": "gold"},
            "racks[1].nodes[0].tier: no tier 'gold'; name one of: standard, critical",
        ),
        (
            {"racks.1.nodes.0.max_w": 150},
            "racks[1].nodes[0].min_w: 200 is above max_w 150; swap or correct them",
        ),
        ({"racks.1.name": "r1"}, "racks: racks: 'r1' is used twice; give each its own name"),
        ({"racks.1.nodes.0.name": "node-a"}, "racks: nodes: 'node-a' is used twice; give each its own name"),
        (
            {"racks.1.inlets.0.name": "r1-a"},
            "racks[0].inlets[0], racks[1].inlets[0]: 'r1-a' is used 2 times; give each device its own name",
        ),
        ({"meter.poll_s": 0.6}, "meter.age_max_s: 1 is less than two polls of 0.6 s; poll more often"),
        ({"meter.profile": "nix"}, "meter.profile: no built-in profile 'nix'"),
        ({"meter.point": "frequency_hz"}, "meter: point 'frequency_hz' is in Hz; W is needed"),
        ({"meter.point": "nix"}, "meter: profile pm5000_meter has no point 'nix'; it has"),
        (
            {"meter.url": "modbus://10.0.0.1"},
            "meter.url: 'modbus://10.0.0.1': unknown scheme 'modbus'; use modbus+tcp://host:502, modbus+tls",
        ),
        (
            {"meter.url": "opc.tcp://10.0.0.1"},
            "meter.url: profile pm5000_meter needs modbus+tcp:// or another of Modbus, not opc.tcp://",
        ),
        (
            {"meter.url": "modbus+tcp://"},
            "meter.url: 'modbus+tcp://': give host and port and nothing more; use modbus+tcp://host:502",
        ),
        (
            {"meter.url": "modbus+rtu:///dev/ttyS0?baud=fast"},
            "meter.url: 'modbus+rtu:///dev/ttyS0?baud=fast': baud 'fast'; use 300 to 4000000",
        ),
        ({"base_load.min_kw": 6}, "base_load.min_kw: 6 is above max_kw 5; swap or correct them"),
        ({"site.failsafe_kw": 15}, "site.failsafe_kw: 15 is above feed.rating_kw 14"),
        (
            {"site.failsafe_kw": 8},
            "site.failsafe_kw: 8 cannot be reached: base load and GPUs at their lowest",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(block_with, changes, sentence):
    found = errors(block_with(changes))
    assert len(found) == 1
    assert found[0].startswith(f"block.yaml: {sentence}")


def test_all_errors_come_at_once(block_with):
    wrong = {
        "racks.0.nodes.0.tier": "gold",
        "meter.point": "nix",
        "site.failsafe_kw": 8,
        "racks.1.name": "r1",
    }
    assert len(errors(block_with(wrong))) == 4


@pytest.mark.parametrize("url", ["modbus+tcp://h:notaport", "modbus+tcp://h:99999", "modbus+tcp://[::1"])
def test_a_broken_url_is_an_error_and_not_a_crash(block_with, url):
    assert errors(block_with({"meter.url": url}))[0].startswith("block.yaml: meter.url: ")


def openadr_source(**changes):
    return {"kind": "openadr_mqtt", "name": "a", "topics": ["t"], "heartbeat_topic": "h"} | changes


def dsx_source(name="a", **changes):
    return {
        "kind": "dsx_flex",
        "name": name,
        "agent_id": "block-1",
        "feeds": {"main-a": 1.0},
        "publishers": {name: None},
        "accept_unsigned": True,
    } | changes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heartbeat_topic": "site/+/h"}, "heartbeat_topic: messages go to one topic each; name it without"),
        ({"canary_topic": "site/#"}, "canary_topic: messages go to one topic each; name it without + and #"),
        ({"canary_topic": ""}, "canary_topic: no MQTT topic; write 1 to 65535 bytes"),
        ({"canary_topic": "h"}, "canary_topic: the same as heartbeat_topic; give the canary a topic"),
        ({"topics": ["a", "a/#/b"]}, "topics[1]: a wildcard stands for whole levels"),
        ({"topics": ["a/b+"]}, "topics[0]: a wildcard stands for whole levels"),
        ({"topics": ["a\0b"]}, "topics[0]: no MQTT topic"),
        ({"topics": ["a" * 65_536]}, "topics[0]: no MQTT topic"),
    ],
)
def test_a_topic_that_mqtt_does_not_know_is_named(block_with, changes, sentence):
    assert any(sentence in one for one in errors(block_with({"site.sources": [openadr_source(**changes)]})))


@pytest.mark.parametrize("topic", ["a/+/b", "#", "+", "a/#", "/", "+/+/c"])
def test_topics_of_events_may_have_wildcards(block_with, topic):
    assert load_block(block_with({"site.sources": [openadr_source(topics=[topic])]}))


def test_two_operators_in_one_source_would_overrule_each_other(block_with):
    source = dsx_source(publishers={"one": None, "two": None})
    found = errors(block_with({"site.sources": [source]}))
    assert "give each operator a source of its own: the lowest limit binds" in found[0]


def test_two_operators_of_one_agent_are_two_sources_of_which_one_tells(block_with):
    sources = [dsx_source("a"), dsx_source("b")]
    (sentence,) = errors(block_with({"site.sources": sources}))
    assert "agent_id 'block-1': two sources would tell its status" in sentence
    assert "set tells: false on all but the first" in sentence
    assert load_block(block_with({"site.sources": [sources[0], sources[1] | {"tells": False}]}))


PDU = {"name": "pdu-9", "profile": "xerus_pdu", "url": "modbus+tcp://10.9.0.9"}
CDU = {"name": "cdu-9", "profile": "opcua_cdu", "url": "opc.tcp://10.9.0.8", "security": "none"}
RPU = {"name": "rpu-9", "profile": "orv3_rpu", "url": "modbus+rtu:///dev/ttyUSB0", "unit": 3}
FLOW = {"flow_target_l_per_min": {"lowest": 100, "highest": 180}}


@pytest.mark.parametrize(
    ("devices", "sentence"),
    [
        ([PDU, PDU | {"url": "modbus+tcp://10.9.0.7"}], "devices[0], devices[1]: 'pdu-9' is used 2 times"),
        ([PDU | {"name": "meter"}], "meter, devices[0]: 'meter' is used 2 times"),
        ([PDU, PDU | {"name": "b"}], "devices[1].unit: 1 at 10.9.0.9:502 is devices[0] already"),
        ([PDU, PDU | {"name": "b", "url": "modbus+rtu+tcp://10.9.0.9:502"}], "10.9.0.9:502: opened twice"),
        ([PDU | {"points": ["nix"]}], "devices[0].points: profile xerus_pdu has no point 'nix'; it has"),
        (
            [PDU | {"writes": {"power_w": {"lowest": 0, "highest": 1}}}],
            "devices[0].writes: 'power_w' is read-only",
        ),
        ([PDU | {"alarms": {"nix": {"high": 1}}}], "devices[0].alarms: profile xerus_pdu has no point 'nix'"),
        (
            [PDU | {"alarms": {"power_w": {"high": 1, "low": 2}}}],
            "devices[0].alarms.power_w: limits must fall",
        ),
        ([PDU | {"alarms": {"power_w": {}}}], "devices[0].alarms.power_w: no limit; give"),
        ([RPU | {"writes": {"flow_target_l_per_min": {"lowest": 2, "highest": 1}}}], "devices[0].writes"),
        ([CDU | {"security": None}], "devices[0].security: missing; name our certificate"),
        ([CDU | {"profile": "xerus_pdu"}], "devices[0].url: profile xerus_pdu needs modbus+tcp"),
    ],
)
def test_what_is_wrong_with_devices_is_named_with_its_place(block_with, devices, sentence):
    found = errors(block_with({"devices": devices}))
    assert len(found) == 1
    assert sentence in found[0]


def test_a_file_without_gpus_is_a_gateway_and_commands_for_blocks_say_what_is_missing(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(
        f"block: hall-a\nstate_dir: {tmp_path}\nrun_dir: {tmp_path}\n"
        f"devices: {[PDU, CDU, RPU | {'writes': FLOW}]}\n".replace("'", '"')
    )
    config = load_config(path)
    assert type(config) is GatewayConfig
    assert [device.name for device in config.devices] == ["pdu-9", "cdu-9", "rpu-9"]
    with pytest.raises(ConfigError, match="has no GPUs"):
        load_block(path)


def test_a_block_that_lost_its_racks_is_told_so_and_not_taken_for_a_gateway(block_with):
    path = block_with({})
    text = path.read_text()
    path.write_text(text.replace("racks:", "rakcs:"))
    assert any("racks: missing" in line for line in errors(path))


# --- levels of shedding --------------------------------------------------------------------------------

CONTACT = {
    "name": "stop",
    "profile": "liebert_branch",
    "url": "modbus+tcp://10.0.0.9",
    "point": "neutral_overcurrent",
    "level": "deep",
}
SHED = {
    "levels": [{"name": "gentle", "kw": 10.0}, {"name": "deep", "kw": 8.6}],
    "alerts": {"ALERT_GRID_EMERGENCY": "deep"},
    "critical_breach": "gentle",
    "contacts": [CONTACT],
}


def test_levels_of_shedding_are_watts_in_the_law_and_contacts_are_devices(block_with):
    config = load_block(block_with({"shed": SHED}))
    levels = settings_of(config).shed_levels
    assert [(level.name, level.limit_w) for level in levels] == [("gentle", 10_000.0), ("deep", 8_600.0)]
    assert ("shed.contacts[0]", "stop", "contact") in [
        (device.where, device.name, device.kind) for device in devices(config)
    ]
    assert settings_of(load_block(block_with())).shed_levels == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shed.levels": []}, "shed.levels: Tuple should have at least 1 item"),
        ({"shed.levels.1.kw": -1}, "shed.levels[1].kw: Input should be greater than 0"),
        ({"shed.levels.1.name": "a/b"}, "shed.levels[1].name: "),
        ({"shed.levels.1.kw": 11.0}, "shed.levels: order them by kw, the gentlest first"),
        ({"shed.levels.1.kw": 10.0}, "shed.levels: order them by kw, the gentlest first"),
        ({"shed.levels.0.kw": 14.0}, "shed.levels: 'gentle' sheds nothing: the feed carries 14 kW anyway"),
        ({"shed.alerts": {"ALERT_NIX": "deep"}}, "shed.alerts.ALERT_NIX"),
        (
            {"shed.alerts": {"ALERT_BLACK_START": "nix"}},
            "shed.alerts.ALERT_BLACK_START: no level 'nix'; name one of: gentle, deep",
        ),
        ({"shed.critical_breach": "nix"}, "shed.critical_breach: no level 'nix'; name one of: gentle, deep"),
        (
            {"shed.contacts.0.level": "nix"},
            "shed.contacts[0].level: no level 'nix'; name one of: gentle, deep",
        ),
        (
            {"site.meanings": {"alerts_kw": {"ALERT_GRID_EMERGENCY": 9}}},
            "shed.alerts.ALERT_GRID_EMERGENCY: site.meanings.alerts_kw has it, too; leave one of them out",
        ),
        ({"shed.contacts.0.point": "nix"}, "shed.contacts[0]: profile liebert_branch has no point"),
        ({"shed.contacts.0.age_max_s": 0.05}, "shed.contacts[0].age_max_s: 0.05 is less than two polls"),
        ({"shed.contacts.0.name": "r1-a"}, "racks[0].inlets[0], shed.contacts[0]: 'r1-a' is used 2 times"),
        ({"shed.contacts.0.lost_cals": True}, "shed.contacts[0].lost_cals: no such setting"),
        (
            {"shed.contacts.0.closed": 2},
            "shed.contacts[0].closed: 'neutral_overcurrent' is never 2, and nobody could call by it",
        ),
        ({"shed.contacts.0.point": "power_w"}, "shed.contacts[0].point: 'power_w' is no state but a number"),
    ],
)
def test_what_is_wrong_with_shedding_is_named_with_its_remedy(block_with, changes, sentence):
    shed = {"shed": copy.deepcopy(SHED)}
    found = errors(block_with(shed | changes))
    assert len(found) == 1
    assert found[0].startswith(f"block.yaml: {sentence}")


def test_a_level_that_is_named_twice_is_an_error(block_with):
    levels = [{"name": "deep", "kw": 10.0}, {"name": "deep", "kw": 8.6}]
    found = errors(block_with({"shed": {"levels": levels}}))
    assert found == ["block.yaml: shed.levels: 'deep' is used twice; give each its own name"]


def test_of_a_contacts_plc_only_its_own_point_is_read_unless_more_are_named(block_with):
    """A whole PLC twenty times a second would be slow, and the call late."""
    for points, read in ((None, ("neutral_overcurrent",)), (["neutral_overcurrent", "power_w"],) * 2):
        shed = copy.deepcopy(SHED)
        shed["contacts"][0] |= {} if points is None else {"points": points}
        (contact,) = [one for one in devices(load_block(block_with({"shed": shed}))) if one.name == "stop"]
        assert contact.config.points == tuple(read)


WORD = """title: A PLC whose inputs are one word
protocol: modbus
provenance: {document: made up for tests, page: "1", evidence: document}
blocks:
  - {table: holding, first: 0, last: 0}
points:
  inputs: {unit: bool, table: holding, address: 0, type: u16}
  second: {unit: bool, table: holding, address: 0, type: u16, mask: 2}
  position: {unit: enum, table: holding, address: 0, type: u16, enum: {3: tripped, 5: rests}}
examples:
  - {point: second, registers: [2], value: 1.0, source: a bit is a bit}
"""


@pytest.mark.parametrize(
    ("point", "closed", "says"),
    [
        ("inputs", 1, "shed.contacts[0].point: 'inputs' is no state but a number"),
        ("second", 0, ""),
        ("second", 2, "write one of 0, 1"),
        ("position", 3, ""),
        ("position", 1, "write one of 3, 5"),
    ],
)
def test_a_contact_is_one_bit_or_a_state(block_with, tmp_path, point, closed, says):
    """A word of several relays is at 3 when two of them are closed: `closed: 1` would end the call."""
    (tmp_path / "word.yaml").write_text(WORD)
    shed = copy.deepcopy(SHED)
    shed["contacts"][0] |= {"profile": str(tmp_path / "word.yaml"), "point": point, "closed": closed}
    path = block_with({"shed": shed})
    if not says:
        assert load_block(path).shed is not None
        return
    (found,) = errors(path)
    assert says in found


def test_watts_are_not_kilowatts_and_a_brokers_url_is_whole(block_with):
    found = errors(block_with({"racks.0.nodes.0.min_w": 0.2, "racks.0.nodes.0.max_w": 0.7}))
    assert found == [
        "block.yaml: racks[0].nodes[0].max_w: 0.7 W is no GPU's; write watts, as its driver does"
    ]
    (found_url,) = errors(block_with({"mqtt.url": "mqtts:/broker"}))
    assert found_url.startswith("block.yaml: mqtt.url: ")
    assert "mqtts:/broker: use mqtt://host:port or mqtts://host:port" in found_url
