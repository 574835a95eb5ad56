"""What `make fuzz` looks for at length, for some seconds and always the same."""

import itertools
import json

import pytest

from tests.fuzz.modbus_client import MOVES
from tests.fuzz.mutate import inputs
from tests.fuzz.properties import PROPERTIES, cost_s
from tests.fuzz.seeds import SAID, SEEDS
from tests.protocols.openadr_said import event, interval

INPUTS = 4000
FEWER = {  # where an input is a whole conversation, or a file
    "modbus-tcp": 150, "modbus-rtu": 150, "modbus-server": 1000, "sunspec": 100, "profile": 40, "config": 40,
}  # fmt: skip
SEED = 7


@pytest.mark.parametrize("name", PROPERTIES)
def test_whatever_comes_is_refused_with_a_sentence_or_understood_soundly(name):
    for payload in itertools.islice(inputs(name, SEED), FEWER.get(name, INPUTS)):
        try:
            cost_s(name, payload)
        except BaseException:
            print(f"{name}: {payload!r}")
            raise


def of_size(head, body, tail, size=262_144):
    return head + body * ((size - len(head) - len(tail)) // len(body)) + tail


LARGEST = {
    "a list": of_size(b"[", b"[],", b"0]"),
    "a list in a list": of_size(b"", b"[", b""),
    "an object of many names": b"{" + b",".join(b'"%x":0' % number for number in range(26_000)) + b"}",
    "one name many times": of_size(b"{", b'"a":0,', b'"a":0}'),
    "one text": of_size(b'{"id":"', b"x", b'"}'),
    "escapes": of_size(b'{"id":"', rb"\ud83d\ude00", b'"}'),
    "a number": of_size(b'{"id":', b"9", b"}"),
    "a base64": of_size(b'{"data":"', b"A", b'.A.A"}'),
    "an event": json.dumps(event(*(interval(n, n) for n in range(2000)), priority=0)).encode(),
    "events that repeat for ever": json.dumps(
        event(
            *(interval(n, n) for n in range(500)),
            intervalPeriod={"start": "2026-11-21T18:00:00Z", "duration": "PT1S"},
            duration="P9999Y",
        )
    ).encode(),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("payload", LARGEST.values(), ids=LARGEST)
def test_the_largest_of_messages_costs_no_more_than_a_moment(name, payload):
    cost_s(name, payload)


def test_the_properties_bite(monkeypatch):
    """A reader that lets one thing through is found out."""
    for name in PROPERTIES:
        for payload in SEEDS[name]:
            cost_s(name, payload)
    monkeypatch.setattr("tests.fuzz.properties.INPUT_MAX_S", 0.0)
    with pytest.raises(AssertionError, match="bytes took"):
        cost_s("ven", SEEDS["ven"][0])
    monkeypatch.undo()
    monkeypatch.setattr("tests.fuzz.properties.POWER_MAX_W", 1e3)
    with pytest.raises(AssertionError, match="no power"):
        cost_s("dsx", SEEDS["dsx"][0])


def test_the_same_seed_makes_the_same_inputs():
    once, again = (list(itertools.islice(inputs("dsx", SEED), 200)) for _ in range(2))
    assert once == again
    assert len(set(once)) > 190


@pytest.mark.parametrize("name", ["modbus-tcp", "modbus-rtu"])
def test_a_device_that_makes_one_mistake_for_ever_is_neither_believed_nor_waited_for_in_a_spin(name):
    for move in range(len(MOVES)):
        cost_s(name, bytes([move]) * 1000)


BROKEN = {
    "a late RTU answer passes for another": (
        "modbus-rtu",
        "protocols.modbus.station.Station.owe",
        lambda *_: None,
    ),
    "a wrong checksum does not matter": ("modbus-rtu", "protocols.modbus.frames.is_sealed", lambda _: True),
    "function and count are not looked at": ("modbus-tcp", "protocols.modbus.frames.check", lambda *_: None),
    "a device in doubt is good": ("modbus-rtu", "protocols.modbus.station.Station.slipped", lambda *_: None),
    "anybody may write": ("modbus-server", "protocols.modbus.server.Access.may_write", lambda *_: True),
    "a length is believed": ("modbus-server", "protocols.modbus.answer._demand", lambda _: None),
    "roles do not matter": ("command", "controller.commands.CommandDesk._refusal", lambda *_: ""),
    "a value need not be plausible": ("opcua", "protocols.codec.from_raw", lambda _point, raw, *_: raw),
    "guardrails are off": (
        "bms",
        "controller.facility.dsx_bms.requests.Ask._clamped",
        lambda _, asked: asked,
    ),
    "a frame of a stranger is a program's": (
        "image",
        "controller.image.wire._decoded",
        lambda one, body: one.decode(body),
    ),
    "a limit need not be a power": ("link", "protocols.agent_link._check_limits", lambda *_: None),
    "aliases are followed": ("profile", "protocols.plain_yaml._size", lambda *_: 0),
}
BOMB = (
    b"a: &a [" + b"x," * 219 + b"x]\nb: &b [" + b"*a," * 219 + b"*a]\nprotocol: [" + b"*b," * 219 + b"*b]\n"
)
TRIES = 3000


@pytest.mark.parametrize(("name", "place", "broken"), BROKEN.values(), ids=BROKEN)
def test_a_reader_with_a_hole_in_it_is_found_out(name, place, broken, monkeypatch):
    monkeypatch.setattr(place, broken)
    monkeypatch.setattr("tests.fuzz.properties.FILE_MAX_S", 1.0)  # the bomb of this size takes a few
    own = [bytes([move]) * 1000 for move in range(len(MOVES))] if name.startswith("modbus") else [BOMB]
    tries = own if name == "profile" else itertools.chain(own, itertools.islice(inputs(name, SEED), TRIES))
    assert any(is_found(name, payload) for payload in tries)


def is_found(name, payload):
    try:
        cost_s(name, payload)
    except Exception:  # noqa: BLE001  whatever it is, it is what the fuzzer looks for
        return True
    return False
