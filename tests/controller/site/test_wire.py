"""Heartbeats held against what stands here: what the site's plan and ours disagree about is said."""

import json

import pytest

from controller.core.model import Contact
from controller.site.config import OpenAdrMqttConfig
from controller.site.source import Arrival
from controller.site.wire import MqttWire
from tests.controller.site.dsx_site import NOW_S, time_text

STANDING = frozenset({"dr-1", "dr-2"})
TOPIC = "site/heartbeat"


@pytest.fixture
def wire():
    config = OpenAdrMqttConfig(kind="openadr_mqtt", name="openadr", topics=("events",), heartbeat_topic=TOPIC)
    return MqttWire(config, "hall-a", (), lambda *_: None, lambda *_: None)


def hear(wire, second, listed, standing=STANDING, known=STANDING):
    said = {"sent_at": time_text(float(second))} | ({} if listed is None else {"event_ids": listed})
    arrival = Arrival(TOPIC, json.dumps(said).encode(), False, NOW_S + second, 0.0)
    contact, refusal = wire.heartbeat(arrival, known, Contact(), standing)
    assert refusal == ""
    return contact


def alarm(wire):
    return dict(wire.alarms(NOW_S)).get("plan openadr", "")


def test_a_lost_deletion_is_an_alarm_after_five_heartbeats_and_releases_nothing(wire):
    for second in range(4):
        assert hear(wire, second, ["dr-2"]) == Contact(NOW_S + second, NOW_S + second)
        assert alarm(wire) == ""
    hear(wire, 4, ["dr-2"])
    assert alarm(wire) == (
        "openadr no longer lists dr-1, which stands here; if it is over, let the site delete it"
    )


def test_once_listed_again_or_deleted_here_it_counts_anew(wire):
    for second in range(10):
        hear(wire, second, ["dr-1", "dr-2"] if second == 4 else ["dr-2"])
    assert "dr-1" in alarm(wire)
    hear(wire, 10, ["dr-2"], standing=frozenset({"dr-2"}))
    assert alarm(wire) == ""
    for second in range(11, 15):
        hear(wire, second, ["dr-2"])
    assert alarm(wire) == ""


def test_heartbeats_that_list_nothing_at_all_say_nothing_about_the_plan(wire):
    for second in range(20):
        hear(wire, second, None)
    assert alarm(wire) == ""


def test_both_doubts_stand_in_one_alarm(wire):
    for second in range(5):
        hear(wire, second, ["new"])
    assert alarm(wire).startswith("openadr names events that never arrived: new; ask it to send them again; ")
    assert "no longer lists dr-1, dr-2, which stands here" in alarm(wire)


def test_a_long_list_of_events_does_not_fill_the_panel(wire):
    hear(wire, 0, [f"event-{number:04}" for number in range(1000)])
    assert alarm(wire).count("event-") == 8
    assert "and 992 more" in alarm(wire)
