"""The heartbeat: a sign of life that says when, and perhaps the whole plan."""

import pytest

from protocols import openadr
from protocols.openadr import OpenAdrError, parse_heartbeat
from tests.protocols.openadr_said import START, T0_UTC_S


def test_a_heartbeat_says_when_and_perhaps_which_and_what():
    assert parse_heartbeat(f'{{"sent_at": "{START}"}}') == openadr.Heartbeat(T0_UTC_S, None, None)
    full = parse_heartbeat(f'{{"sent_at": "{START}", "seq": 7, "event_ids": ["a", "b"], "from": "site"}}')
    assert full == openadr.Heartbeat(T0_UTC_S, 7, frozenset({"a", "b"}))
    assert parse_heartbeat(f'{{"sent_at": "{START}", "event_ids": []}}').event_ids == frozenset()


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ("{}", "sent_at: missing"),
        ('{"sent_at": 5}', "sent_at: 5"),
        ('{"sent_at": "2026-11-21T18:00:00"}', "no offset"),
        ('{"sent_at": "0001-01-01"}', "the time of sending"),
        (f'{{"sent_at": "{START}", "seq": -1}}', "seq: -1"),
        (f'{{"sent_at": "{START}", "seq": true}}', "seq: True"),
        (f'{{"sent_at": "{START}", "seq": 1.5}}', "seq: 1.5"),
        (f'{{"sent_at": "{START}", "event_ids": "a"}}', "event_ids: 'a'"),
        (f'{{"sent_at": "{START}", "event_ids": [1]}}', r"event_ids\[0\].*: 1"),
        ("7", "heartbeat: 7; send an object"),
        ("online", "not JSON"),
    ],
)
def test_a_heartbeat_that_is_not_one_is_refused(payload, says):
    with pytest.raises(OpenAdrError, match=says):
        parse_heartbeat(payload)
