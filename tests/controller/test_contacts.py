"""Dry contacts: what closes calls, what cannot be read is said, and all of it from a real PLC."""

import asyncio
from itertools import count

import pytest
from pymodbus.client import AsyncModbusTcpClient

from controller.clock import now_s
from controller.config import ContactConfig, ShedConfig, devices, load_block
from controller.contacts import FOUND_S, Contacts
from controller.core.model import Measurement
from controller.field import Field
from firmware_sim.device_fault import DeviceFault
from firmware_sim.modbus_device import ModbusDevice
from protocols.profile import load_profile
from tests.brokers import until

LEVELS = ({"name": "gentle", "kw": 10.0}, {"name": "deep", "kw": 8.6})
PLC = """title: A PLC with dry contacts
protocol: modbus
provenance: {document: made up for tests, page: "1", evidence: document}
blocks:
  - {table: discrete, first: 0, last: 7}
points:
  stop: {unit: bool, table: discrete, address: 3, type: bool}
  ready: {unit: bool, table: discrete, address: 4, type: bool}
examples:
  - {point: stop, registers: [1], value: 1.0, source: a bit is a bit}
"""


def config(**changes) -> ShedConfig:
    contact = {"name": "stop", "profile": "plc", "url": "modbus+tcp://h", "point": "stop", "level": "deep"}
    healthy = contact | {"name": "ready", "point": "ready", "closed": 0.0, "level": "gentle"}
    return ShedConfig(levels=LEVELS, contacts=(contact | changes, healthy))


class Wired:
    """Two contacts, `stop` that closes and `ready` that opens, and how often they woke anybody."""

    def __init__(self, **changes) -> None:
        self.wakes = 0
        self.now_s = 10.0
        self._changes = changes
        self.start(now_s=0.0)
        self.read(ready=1.0)
        self.wakes = 0

    def start(self, now_s, called=()) -> None:
        self.contacts = Contacts(config(**self._changes), self.wake, now_s, called)
        self.takers = self.contacts.takers()

    def restart(self) -> None:
        """What called is all that the next process knows."""
        called = [name for name, _ in self.calls()]
        self.now_s += 20.0
        self.start(self.now_s, called)

    def wake(self) -> None:
        self.wakes += 1

    def read(self, *, good=True, **values) -> None:
        for name, value in values.items():
            self.takers[name](Measurement(value, good, self.now_s))

    def calls(self) -> list[tuple[str, int]]:
        return [(one.source, one.level) for one in self.contacts.requests(self.now_s)]

    def wrong(self) -> dict[str, str]:
        return dict(self.contacts.conditions(self.now_s))


def test_a_contact_calls_for_as_long_as_it_is_closed():
    wired = Wired()
    wired.read(stop=0.0)
    assert (wired.calls(), wired.wakes) == ([], 0)
    wired.read(stop=1.0)
    assert (wired.calls(), wired.wakes) == ([("stop", 1)], 1)
    wired.read(stop=1.0)
    assert (wired.calls(), wired.wakes) == ([("stop", 1)], 1), "a repeat wakes nobody"
    wired.read(stop=0.0)
    assert (wired.calls(), wired.wakes) == ([], 2)


def test_a_relay_that_was_closed_all_the_while_is_seen_with_the_first_reading():
    wired = Wired()
    wired.read(stop=1.0)
    assert (wired.calls(), wired.wakes) == ([("stop", 1)], 1)


def test_a_contact_may_call_by_opening():
    wired = Wired()
    wired.read(stop=0.0, ready=0.0)
    assert wired.calls() == [("ready", 0)]


def test_two_closed_contacts_are_two_calls():
    wired = Wired()
    wired.read(stop=1.0, ready=0.0)
    assert wired.calls() == [("stop", 1), ("ready", 0)]


def test_a_contact_that_bounces_calls_as_it_stands_and_every_edge_wakes():
    wired = Wired()
    for number in range(7):
        wired.read(stop=float(number % 2 == 0))
    assert (wired.calls(), wired.wakes) == ([("stop", 1)], 7)


@pytest.mark.parametrize(
    ("last", "lost_calls", "calls", "says"),
    [
        (0.0, False, False, "cannot be read, counts as open"),
        (1.0, False, True, "cannot be read, counts as closed: level deep is called"),
        (0.0, True, True, "cannot be read, counts as closed: level deep is called"),
        (1.0, True, True, "cannot be read, counts as closed: level deep is called"),
        (None, False, False, "has not been read since the start, counts as open"),
        (None, True, True, "has not been read since the start, counts as closed: level deep is called"),
    ],
)
@pytest.mark.parametrize("how", ["bad", "silent"])
def test_a_contact_that_is_lost_is_what_it_last_was_or_closed_where_that_was_agreed(
    last, lost_calls, calls, says, how
):
    wired = Wired(lost_calls=lost_calls)
    if last is not None:
        wired.read(stop=last)
        assert wired.wrong() == {}
    if how == "bad":
        wired.read(stop=0.0, good=False)
    else:
        wired.now_s += 1.01
        wired.read(ready=1.0)
    assert (("stop", 1) in wired.calls()) is calls
    assert wired.wrong() == {"contact stop": says}
    wired.read(stop=0.0)
    assert (wired.calls(), wired.wrong()) == ([], {})


def test_a_value_that_is_not_good_closes_nothing():
    wired = Wired()
    wired.read(stop=0.0)
    wired.read(stop=1.0, good=False)
    assert wired.calls() == []


def test_a_start_sheds_nothing_before_the_contact_could_be_found():
    wired = Wired(lost_calls=True)
    wired.now_s = FOUND_S - 0.1
    wired.read(stop=0.0, good=False)  # its PLC is not up yet, either
    assert ("stop", 1) not in wired.calls()
    assert "contact stop" not in wired.wrong()
    wired.now_s = FOUND_S
    assert ("stop", 1) in wired.calls()
    assert "contact stop" in wired.wrong()


@pytest.mark.parametrize("lost_s", [0.0, 90.0])
@pytest.mark.parametrize("lost_calls", [False, True])
def test_a_restart_goes_on_with_the_call_of_a_contact_until_it_is_read(lost_calls, lost_s):
    """Whether its PLC is silent since the restart or was silent before it: a restart ends no shed."""
    wired = Wired(lost_calls=lost_calls)
    wired.read(stop=1.0)
    wired.now_s += lost_s
    for _ in range(2):
        wired.restart()
        for waited_s in (0.0, FOUND_S, 900.0):
            wired.now_s += waited_s
            wired.read(ready=1.0)
            wired.read(stop=0.0, good=False)
            assert wired.calls() == [("stop", 1)]
    says = "has not been read since the start, counts as closed: level deep is called"
    assert wired.wrong() == {"contact stop": says}
    wired.wakes = 0
    wired.read(stop=0.0)
    assert (wired.calls(), wired.wrong(), wired.wakes) == ([], {}, 1)


def test_a_contact_that_called_by_being_lost_calls_on_over_a_restart():
    """It would be lost again seconds later, and power would rise until then."""
    wired = Wired(lost_calls=True)
    assert wired.calls() == [("stop", 1)]
    wired.restart()
    assert ("stop", 1) in wired.calls()


def test_a_restart_closes_no_contact_that_was_open():
    wired = Wired()
    wired.read(stop=0.0)
    wired.restart()
    assert wired.calls() == []
    wired.now_s += 900.0
    wired.read(ready=1.0)
    assert (wired.calls(), list(wired.wrong())) == ([], ["contact stop"])


def test_what_called_and_is_not_in_the_configuration_any_more_calls_nothing():
    contacts = Contacts(config(), lambda: None, now_s=0.0, called=("removed",))
    assert contacts.requests(1.0) == ()


def test_a_block_without_contacts_has_none():
    contacts = Contacts(None, lambda: None, now_s=0.0)
    assert (contacts.takers(), contacts.requests(1.0), list(contacts.conditions(1.0))) == ({}, (), [])


def test_a_relay_that_rests_for_years_is_not_frozen():
    assert ContactConfig(name="c", profile="p", url="u", point="x", level="deep").frozen_after_s is None


# --- over the wire -------------------------------------------------------------------------------------


@pytest.fixture
def plc(tmp_path):
    path = tmp_path / "plc.yaml"
    path.write_text(PLC)
    return str(path)


async def test_a_discrete_input_of_a_real_plc_calls_through_the_real_field(block_with, plc):
    """Closed, open, PLC away, and back: read by function 2 over TCP."""
    values = {"stop": 0.0, "ready": 1.0}
    async with ModbusDevice(load_profile(plc), lambda: values) as device:
        where = {"profile": plc, "url": device.url, "poll_s": 0.05, "age_max_s": 0.3, "level": "deep"}
        contact = where | {"name": "stop", "point": "stop", "lost_calls": True}
        ready = where | {"name": "ready", "point": "ready", "closed": 0.0}
        shed = {"levels": list(LEVELS), "contacts": [contact, ready]}
        block = load_block(block_with({"shed": shed}))
        woken = count()
        contacts = Contacts(block.shed, lambda: next(woken), now_s())
        theirs = [device for device in devices(block) if device.name in ("stop", "ready")]
        assert [device.kind for device in theirs] == ["contact", "contact"]
        field = Field(
            theirs, first=0, takers=contacts.takers(), on_update=lambda _: None, on_group=lambda *_: None
        )
        running = [asyncio.create_task(run()) for run in field.runs.values()]
        assert len(running) == 1, "contacts of one PLC share its connection"

        def called():
            return {one.source for one in contacts.requests(asyncio.get_running_loop().time())}

        try:
            await until(lambda: all(link.up for link in field.links))
            assert called() == set()
            values["stop"] = 1.0
            await until(lambda: called() == {"stop"})
            async with AsyncModbusTcpClient("127.0.0.1", port=device.port) as client:
                assert (await client.read_discrete_inputs(3, count=1)).bits[0], "a PLC as others see it"
            values["stop"] = 0.0
            await until(lambda: called() == set())
            await device.set_fault(DeviceFault(mode="refusing"))
            await until(lambda: called() == {"stop"})  # lost: it counts as closed, `ready` as it was
            assert set(dict(contacts.conditions(asyncio.get_running_loop().time()))) == {
                "contact stop",
                "contact ready",
            }
            await device.set_fault(None)
            await until(lambda: called() == set())
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
    assert next(woken) >= 2, "closing and opening each woke a beat"
