"""OpenADR messages as truth tables: what is read, in all its spellings, and what is refused with its place."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import openadr
from protocols.openadr import FOREVER_UTC_S, OpenAdrError, parse, parse_program, resolve
from tests.protocols.openadr_said import DESCRIPTOR, START, T0_UTC_S, event, interval, notification, told


def test_snake_case_means_the_same():
    """The reference VTN sends it."""
    snake = {
        "object_type": "EVENT",
        "operation": "CREATE",
        "object": {
            "id": "ev-1",
            "object_type": "EVENT",
            "program_id": "44",
            "modification_date_time": "2026-11-21T17:00:00Z",
            "interval_period": {"start": "2026-11-21T18:00:00Z", "duration": "PT1H"},
            "payload_descriptors": [{"payload_type": "IMPORT_CAPACITY_LIMIT", "units": "KW"}],
            "intervals": [{"id": 0, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [4200.0]}]}],
        },
    }
    assert parse(json.dumps(snake)) == notification()


def test_a_bare_event_object_is_read_as_just_created():
    assert parse(json.dumps(event())) == notification()


@pytest.mark.parametrize(
    ("name", "event_id"), [("evening peak", "evening peak"), (..., "unnamed"), ("", "unnamed")]
)
def test_a_bare_event_without_an_id_is_called_by_its_name(name, event_id):
    said = {key: value for key, value in event(eventName=name).items() if key != "id"}
    assert parse(json.dumps(said)).event.id == event_id


def test_bytes_with_a_byte_order_mark_are_read():
    assert parse(b"\xef\xbb\xbf" + json.dumps(event()).encode()).event.id == "ev-1"


@pytest.mark.parametrize(
    ("operation", "means"),
    [
        ("CREATE", "CREATE"),
        ("UPDATE", "UPDATE"),
        ("DELETE", "DELETE"),
        ("POST", "CREATE"),
        ("PUT", "UPDATE"),
        ("update", "UPDATE"),
    ],
)
def test_operations_of_3_0_and_of_3_1_are_understood(operation, means):
    assert notification(operation=operation).operation == means


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": "a b"}, r"id: 'a b'; send 1 to 128 letters"),
        ({"id": 5}, "id: 5"),
        ({"id": "x" * 129}, "id: 'x"),
        ({"priority": -1}, "priority: -1"),
        ({"priority": "1"}, "priority: '1'"),
        ({"priority": True}, "priority: True"),
        ({"priority": 1.5}, "priority: 1.5"),
        ({"objectType": "PROGRAM"}, "objectType: 'PROGRAM'"),
        ({"intervals": {}}, "intervals: {}; send a list"),
        ({"intervals": [1]}, r"intervals\[0\]: 1; send an object"),
        ({"intervals": [{"id": "a"}]}, r"intervals\[0\].id: 'a'"),
        ({"intervals": [{"id": 0, "payloads": [{"values": [1]}]}]}, r"payloads\[0\].type: missing"),
        ({"intervalPeriod": []}, r"intervalPeriod: \[\]"),
        ({"intervalPeriod": {"start": 5}}, "intervalPeriod.start: 5"),
        ({"intervalPeriod": {"start": "2026-11-21T18:00:00"}}, "intervalPeriod.start: .* no offset"),
        ({"intervalPeriod": {"duration": "5 min"}}, "intervalPeriod.duration: '5 min'"),
        ({"duration": "1h"}, "duration: '1h'"),
        ({"modificationDateTime": "17:15:16"}, "modificationDateTime: '17:15:16'"),
        (
            {"payloadDescriptors": [DESCRIPTOR, DESCRIPTOR | {"units": "KWH"}]},
            r"payloadDescriptors\[1\].units",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(fields, says):
    with pytest.raises(OpenAdrError, match=says):
        notification(event() | fields)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "send an object"),
        (b"null", "send an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * (openadr.PAYLOAD_MAX_BYTES + 1), "262144 at most"),
        (
            b'{"objectType":"EVENT","operation":"CREATE","ID":"1"}',
            "subscribe to the topic that carries whole",
        ),
        (b'{"objectType":"EVENT","operation":"READ","object":{}}', "operation: 'READ'"),
        (b'{"objectType":"EVENT","object":{}}', "operation: missing"),
        (b'{"objectType":"VEN","operation":"CREATE","object":{}}', "objectType: 'VEN'"),
        (b'{"operation":"CREATE","object":{}}', "objectType: missing"),
        (b'{"objectType":"EVENT","operation":"CREATE","object":{}}', "object.id: missing"),
        (b'{"objectType":"EVENT","object_type":"VEN"}', "object_type: given twice"),
    ],
)
def test_what_is_no_event_is_refused_with_a_sentence(payload, says):
    with pytest.raises(OpenAdrError, match=says):
        parse(payload)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just("PT1H") | st.just("0001-01-01"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "intervals", "payloads", "type", "values", "intervalPeriod", "start", "duration"]),
        inner, max_size=5,
    ),
    max_leaves=15,
))  # fmt: skip
def test_whatever_comes_is_read_or_refused_and_never_crashes(said):
    with contextlib.suppress(OpenAdrError):
        resolve(parse(json.dumps(said)).event, T0_UTC_S)


@pytest.mark.parametrize("depth", range(700, 1000, 9))
def test_no_depth_of_nesting_gets_past_the_sentence(depth):
    with pytest.raises(OpenAdrError):
        parse('{"id":' + "[" * depth + "]" * depth + "}")


# -- the traps that the standard's own text sets ------------------------------------------------------------------


def trap(**fields):
    """A bare event with some fields as the guide or a server prints them, resolved at 18:00."""
    return [(w.type, w.value, w.starts_utc_s - T0_UTC_S, w.ends_utc_s) for w in told(event(**fields))]


LIMIT = [("IMPORT_CAPACITY_LIMIT", 4.2e6, 0.0, T0_UTC_S + 3600)]


@pytest.mark.parametrize(
    ("trap_name", "fields", "windows"),
    [
        ("a date without its time means at once", {"intervalPeriod": {"start": "0001-01-01", "duration": "PT1H"}}, LIMIT),
        ("a naive year 1 means at once", {"intervalPeriod": {"start": "0001-01-01T00:00:00", "duration": "PT1H"}}, LIMIT),
        ("year 0 of the drafts means at once", {"intervalPeriod": {"start": "0000-00-00", "duration": "PT1H"}}, LIMIT),
        ("a space instead of T", {"intervalPeriod": {"start": "2026-11-21 18:00:00.000Z", "duration": "PT1H"}}, LIMIT),
        ("PT0H is nothing", {"intervalPeriod": {"start": START, "duration": "PT0H"}}, []),
        ("P0S of the prose calls it off", {"intervalPeriod": {"start": "0001-01-01", "duration": "P0S"}}, []),
        ("P12H of the prose cuts it", {"intervalPeriod": {"start": START, "duration": "P1D"}, "duration": "P12H"}, [("IMPORT_CAPACITY_LIMIT", 4.2e6, 0.0, T0_UTC_S + 12 * 3600)]),
        ("P9999Y overflows every calendar", {"intervalPeriod": {"start": START, "duration": "P9999Y"}}, [("IMPORT_CAPACITY_LIMIT", 4.2e6, 0.0, FOREVER_UTC_S)]),
        ("randomizeStart P0S of the prose", {"intervalPeriod": {"start": START, "duration": "PT1H", "randomizeStart": "P0S"}}, LIMIT),
        ("descriptors without an objectType", {"payloadDescriptors": [{"payloadType": "IMPORT_CAPACITY_LIMIT", "units": "KW"}]}, LIMIT),
        ("a time of day as createdDateTime", {"createdDateTime": "17:15:16"}, LIMIT),
        ("a report-only event", {"intervals": ..., "reportDescriptors": [{"payLoadType": "USAGE"}]}, []),
        ("intervals with empty payloads, for reports alone", {"intervals": [{"id": 0, "payloads": []}, {"id": 1, "payloads": None}]}, []),
        ("a capacity without its IMPORT_ is a private word", {"intervals": [interval(1.0, payload_type="CAPACITY_SUBSCRIPTION"), interval(1.0, payload_type="CAPACITY_RESERVATION")]}, []),
        ("a relative CONTROL_SETPOINT in KWH is not ours", {"intervals": [interval(-0.15, payload_type="CONTROL_SETPOINT")], "payloadDescriptors": [{"payloadType": "CONTROL_SETPOINT", "units": "KWH"}]}, []),
        ("units VOLTAGE of a type that is not ours", {"payloadDescriptors": [DESCRIPTOR, {"payloadType": "CONTROL_SETPOINT", "units": "VOLTAGE"}]}, LIMIT),
        ("targets as objects, of 3.0", {"targets": [{"type": "VEN_NAME", "values": ["block-01"]}]}, LIMIT),
        ("targets as texts, of 3.1", {"targets": ["block-01"]}, LIMIT),
        ("targets as nobody writes them", {"targets": {"a": [1]}}, LIMIT),
        ("defaults written down as null", {"priority": None, "duration": None, "targets": None, "reportDescriptors": None}, LIMIT),
        ("an interval without a label", {"intervals": [{"payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [4200]}]}]}, LIMIT),
    ],
)  # fmt: skip
def test_traps_of_the_standards_own_text_are_understood(trap_name, fields, windows):
    assert trap(**fields) == windows, trap_name


def test_examples_of_the_guide_that_are_not_json_are_refused_with_a_sentence():
    for text in ('{"duration": "P9999Y”}', '{"id": 0, "values": [1],}'):
        with pytest.raises(OpenAdrError, match="not JSON"):
            parse(text)


def test_the_http_verb_of_figure_6_is_a_create():
    assert notification(operation="POST") == notification(operation="CREATE")


def test_a_schema_default_of_no_duration_beside_intervals_that_last_calls_nothing_off():
    """Servers may write the default PT0S where the sender said nothing."""
    said = event(interval(duration="PT1H"), intervalPeriod={"start": "0001-01-01", "duration": "PT0S"})
    assert len(told(said)) == 1


def test_targets_of_both_generations_become_texts():
    said = notification(event(targets=["a", {"type": "GROUP", "values": ["b", "c", 1]}, 7, {"values": "d"}]))
    assert said.event.targets == ("a", "GROUP:b", "GROUP:c")


# -- reports and programmes -----------------------------------------------------------------------------------------


def test_a_report_descriptor_says_its_defaults_when_the_message_does_not():
    (short,) = notification(event(reportDescriptors=[{"payLoadType": "USAGE"}])).event.report_descriptors
    assert short == openadr.ReportDescriptor("USAGE")
    full = {
        "payload_type": "DEMAND", "reading_type": "MEAN", "units": "KW", "targets": ["a"], "aggregate": True,
        "start_interval": 2, "num_intervals": 3, "historical": False, "frequency": 0, "repeat": -1,
        "report_intervals": "OPEN_INTERVALS",
    }  # fmt: skip
    (read,) = notification(event(reportDescriptors=[full])).event.report_descriptors
    wanted = ("DEMAND", "MEAN", "KW", ("a",), True, 2, 3, False, 0, -1, "OPEN_INTERVALS")
    assert read == openadr.ReportDescriptor(*wanted)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"payloadType": None}, r"reportDescriptors\[0\].payloadType: missing"),
        ({"repeat": "1"}, "repeat: '1'; send a count, or -1 for ever"),
        ({"frequency": -2}, "frequency: -2; send a count of intervals, or -1"),
        ({"aggregate": 1}, "aggregate: 1; send true or false"),
        ({"historical": "no"}, "historical: 'no'"),
        ({"startInterval": True}, "startInterval: True"),
    ],
)
def test_a_report_that_cannot_be_understood_is_refused_with_its_place(fields, says):
    with pytest.raises(OpenAdrError, match=says):
        notification(event(reportDescriptors=[{"payloadType": "USAGE"} | fields]))


PROGRAM = {
    "id": "44",
    "objectType": "PROGRAM",
    "programName": "flex",
    "createdDateTime": "17:15:16",
    "modificationDateTime": "2026-11-21T17:00:00Z",
    "payloadDescriptors": [DESCRIPTOR],
    "targets": ["a"],
}


def test_a_programme_is_read_bare_and_within_a_notification():
    wanted = openadr.Program("44", T0_UTC_S - 3600, "flex", {"IMPORT_CAPACITY_LIMIT": "KW"}, ("a",))
    assert parse_program(json.dumps(PROGRAM)) == wanted
    told_so = {"objectType": "PROGRAM", "operation": "UPDATE", "object": PROGRAM}
    assert parse_program(json.dumps(told_so)) == wanted
    assert parse_program('{"id": "0", "object_type": "PROGRAM"}') == openadr.Program("0", None)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({}, "program.id: missing"),
        (PROGRAM | {"objectType": "EVENT"}, "program.objectType: 'EVENT'; only PROGRAM"),
        (
            {"objectType": "EVENT", "operation": "CREATE", "object": {}},
            "subscribe to topics of PROGRAM alone",
        ),
        (PROGRAM | {"programName": 5}, "program.programName: 5; send a text"),
        (PROGRAM | {"payloadDescriptors": [{}]}, r"program.payloadDescriptors\[0\].payloadType: missing"),
    ],
)
def test_what_is_no_programme_is_refused_with_a_sentence(said, says):
    with pytest.raises(OpenAdrError, match=says):
        parse_program(json.dumps(said))
