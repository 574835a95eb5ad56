"""Topics of the four channels, in both spellings of the agent's role."""

import pytest

from protocols.dsx_flex import topics
from protocols.dsx_flex.topics import (
    CHANNELS,
    POWER_BREACH_ALERT,
    POWER_STATE_STATUS,
    check_source,
    read_topic,
)
from protocols.dsx_flex.wire import DsxFlexError

WRITTEN = {
    "grid.loadtarget.set.v1": ("grid/v1/isv/me/loadtarget/set", 1),
    "grid.powerstate.status.v1": ("grid/v1/dsx-flex-agent/me/powerstate/status", 1),
    "grid.powerbreach.alert.v1": ("grid/v1/dsx-flex-agent/me/powerbreach", 2),
    "grid.powerbreach.enforcement.v1": ("grid/v1/infra/me/powerbreach/enforcement", 2),
}


@pytest.mark.parametrize("message_type", CHANNELS)
def test_each_message_has_its_topic_and_its_quality_of_service(message_type):
    assert (topics.topic(message_type, "me"), CHANNELS[message_type].qos) == WRITTEN[message_type]


def test_the_agents_role_is_written_as_configured_and_read_in_both_spellings():
    old = topics.topic(POWER_STATE_STATUS, "me", agent_spelling="poweragent")
    assert old == "grid/v1/poweragent/me/powerstate/status"
    assert topics.source("agent", "me", agent_spelling="poweragent") == "//grid/v1/poweragent/me"
    assert topics.filters(POWER_BREACH_ALERT) == (
        "grid/v1/dsx-flex-agent/+/powerbreach",
        "grid/v1/poweragent/+/powerbreach",
    )
    for name in topics.filters(POWER_STATE_STATUS, "me"):
        assert read_topic(name).type == POWER_STATE_STATUS
        assert topics.topic(POWER_STATE_STATUS, "me", agent_spelling=read_topic(name).spelling) == name


@pytest.mark.parametrize("message_type", CHANNELS)
def test_a_topic_reads_back_as_it_was_written(message_type):
    address = read_topic(topics.topic(message_type, "me"))
    assert (address.type, address.identifier) == (message_type, "me")
    assert address.source == topics.source(CHANNELS[message_type].role, "me")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "grid/v1",
        "grid/v2/isv/me/loadtarget/set",
        "grid/v1/isv/me/loadtarget",
        "grid/v1/isv//loadtarget/set",
        "grid/v1/isv/+/loadtarget/set",
        "grid/v1/dsx-flex-agent/me/loadtarget/set",
        "isv/me/loadtarget/set",
        "grid/v1/infra/me/powerbreach",
    ],
)
def test_a_topic_that_is_none_of_the_four_is_refused(name):
    with pytest.raises(DsxFlexError, match="none of DSX Flex"):
        read_topic(name)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "a\x00", "x" * 129])
def test_a_name_that_would_be_a_wildcard_or_a_level_is_no_identifier(name):
    with pytest.raises(DsxFlexError, match="identifier"):
        topics.topic(POWER_STATE_STATUS, name)


def test_nobody_speaks_in_the_name_of_another():
    address = read_topic("grid/v1/isv/acme/loadtarget/set")
    check_source(address, message_type="grid.loadtarget.set.v1", source="//grid/v1/isv/acme")
    with pytest.raises(DsxFlexError, match="under your own name"):
        check_source(address, message_type="grid.loadtarget.set.v1", source="//grid/v1/isv/rival")
    with pytest.raises(DsxFlexError, match="on a topic of grid"):
        check_source(address, message_type=POWER_BREACH_ALERT, source="//grid/v1/isv/acme")


def test_an_unknown_role_or_type_is_refused_when_writing():
    with pytest.raises(DsxFlexError, match="role"):
        topics.topic(POWER_STATE_STATUS, "me", agent_spelling="agent")
    with pytest.raises(DsxFlexError, match="type"):
        topics.topic("grid.other.v1", "me")
