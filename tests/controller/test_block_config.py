"""block.yaml: what it becomes, and every error at once with its place and its remedy."""

import pytest

from controller.config import ConfigError, endpoint, load_block, settings_of


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
        ({"racks.1.inlets.0.name": "r1-a"}, "racks: inlets: 'r1-a' is used twice; give each its own name"),
        ({"meter.poll_s": 0.6}, "meter.age_max_s: 1 is less than two polls of 0.6 s; poll more often"),
        ({"meter.profile": "nix"}, "meter.profile: no built-in profile 'nix'"),
        ({"meter.point": "frequency_hz"}, "meter: point 'frequency_hz' is in Hz; a power in W is needed"),
        ({"meter.point": "nix"}, "meter: profile pm5000_meter has no point 'nix'; it has"),
        (
            {"meter.url": "modbus://10.0.0.1"},
            "meter.url: unknown scheme 'modbus'; use modbus+tcp:// or opc.tcp://",
        ),
        (
            {"meter.url": "opc.tcp://10.0.0.1"},
            "meter.url: profile pm5000_meter needs modbus+tcp://, not opc.tcp://",
        ),
        (
            {"meter.url": "modbus+tcp://"},
            "meter.url: no host in 'modbus+tcp://'; write modbus+tcp://host:port",
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


@pytest.mark.parametrize(
    ("url", "port"), [("modbus+tcp://h", 502), ("modbus+tcp://h:1502", 1502), ("opc.tcp://h", 4840)]
)
def test_a_url_without_port_means_the_standard_one(url, port):
    assert endpoint(url).port == port


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
