"""What a VEN tells its owner of rounds, when it makes them, and what it makes of odd answers in between."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest

from firmware_sim.vtn import Broker, Vtn
from protocols.ven import Ven, VenSettings, client, notifier, reading, register, ven
from protocols.ven.faults import VtnFault

LIMIT = {"programID": "p1", "intervals": [{"id": 0, "payloads": []}]}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    for module, name, value in (
        (client, "REQUEST_WAIT_MAX_S", 0.4),
        (client, "RETRY_MIN_S", 0.05),
        (client, "RETRY_MAX_S", 0.1),
        (ven, "ROUND_GAP_S", 0.02),
    ):
        monkeypatch.setattr(module, name, value)


class Owner:
    """Writes down what it is told."""

    def __init__(self, vtn: Vtn, *, poll_s: float = 30.0, fails: bool = False, resources=(), **more) -> None:
        self.rounds: list[bool] = []
        self.messages: list[dict] = []
        self.programs: list[str] = []
        self.fails = fails
        settings = VenSettings(
            url=vtn.url,
            client_id="c",
            client_secret="s",
            ven_name="block-1",
            resources=resources,
            plain=True,
            poll_s=poll_s,
        )
        self.ven = Ven(
            settings,
            on_message=lambda payload, _: self.messages.append(json.loads(payload)),
            on_program=lambda said: self.programs.append(said["id"]),
            on_round=self.on_round,
            **more,
        )

    def told(self, operation: str) -> list[str]:
        return [one["object"]["id"] for one in self.messages if one["operation"] == operation]

    def on_round(self, ok: bool) -> None:
        if self.fails:
            raise ZeroDivisionError
        self.rounds.append(ok)


def vtn() -> Vtn:
    return Vtn(clients={"c": "s"})


@contextlib.asynccontextmanager
async def running(owner: Owner) -> AsyncIterator[None]:
    task = asyncio.create_task(owner.ven.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=5)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  any condition, not one event
            await asyncio.sleep(0.005)


async def test_each_round_says_whether_all_events_were_read():
    async with vtn() as it:
        owner = Owner(it, poll_s=0.05)
        async with running(owner):
            await until(lambda: owner.rounds[:2] == [True, True])
            it.faults["events"] = "error"
            await until(lambda: not owner.rounds[-1])
            assert owner.ven.status.state == "blind"
            it.faults = {"programs": "error"}  # a fault, but none that costs an event
            await until(lambda: owner.rounds[-1])
            assert "programs: 500" in owner.ven.status.fault
            assert owner.ven.status.state == "polling"


async def test_a_vtn_that_is_not_there_is_a_round_that_failed():
    it = vtn()
    async with it:
        owner = Owner(it)
    async with running(owner):
        await until(lambda: len(owner.rounds) >= 2)
    assert set(owner.rounds) == {False}


async def test_an_owner_that_fails_on_a_round_ends_the_run():
    async with vtn() as it:
        with pytest.raises(ExceptionGroup) as caught:
            await Owner(it, fails=True).ven.run()
    assert caught.group_contains(ZeroDivisionError)


async def test_a_round_comes_soon_when_asked_for_and_as_one_however_often():
    async with vtn() as it:
        owner = Owner(it)
        async with running(owner):
            await until(lambda: owner.rounds == [True])
            event = it.create_event(LIMIT)["id"]
            for _ in range(100):
                owner.ven.refresh()
            await until(lambda: event in [one["object"]["id"] for one in owner.messages])
            await until(lambda: len(owner.rounds) == 2)
            await asyncio.sleep(0.1)
            assert owner.rounds == [True, True]


async def test_a_round_asked_for_during_a_round_follows_it():
    async with vtn() as it:
        owner = Owner(it)
        async with running(owner):
            await until(lambda: it.requests)
            owner.ven.refresh()
            await until(lambda: owner.rounds == [True, True])


@pytest.mark.parametrize("answer", [{}, {"id": "another"}, {"id": 7}])
async def test_an_event_is_not_called_off_by_an_answer_about_something_else(answer, monkeypatch):
    async with vtn() as it:
        event = it.create_event(LIMIT)["id"]
        owner = Owner(it, poll_s=0.05)
        async with running(owner):
            await until(lambda: owner.messages)
            call = owner.ven._vtn.call

            async def odd(method, path, **request):
                if path == "events":
                    return b"[]"
                return (
                    json.dumps(answer).encode()
                    if path == f"events/{event}"
                    else await call(method, path, **request)
                )

            monkeypatch.setattr(owner.ven._vtn, "call", odd)
            await until(lambda: not owner.rounds[-1])
            assert "about something else" in owner.ven.status.fault
            assert owner.ven.status.events == 1
            assert {one["operation"] for one in owner.messages} == {"UPDATE"}


@pytest.mark.parametrize("program_id", [[], {}, 7, None])
async def test_a_notification_that_names_no_programme_is_passed_on_all_the_same(program_id):
    async with vtn() as it:
        owner = Owner(it)
        said = {"objectType": "EVENT", "operation": "CREATE", "object": {"id": "e", "programID": program_id}}
        owner.ven._on_notification("t", json.dumps(said).encode(), False)
        assert owner.messages == [said]


# -- what the receiver knows, and what it can take ---------------------------------------------------------


async def test_an_event_deleted_while_we_were_down_is_reported_as_deleted_and_one_that_stands_is_not():
    async with vtn() as it:
        stands = it.create_event(LIMIT)["id"]
        owner = Owner(it, poll_s=0.05, known_event_ids=["gone", stands])
        async with running(owner):
            await until(lambda: len(owner.rounds) >= 3)
        assert owner.told("DELETE") == ["gone"]
        assert set(owner.told("UPDATE")) == {stands}


async def test_a_receiver_that_lost_a_deletion_hears_of_it_again_when_it_says_what_it_stands_by():
    async with vtn() as it:
        owner = Owner(it)
        async with running(owner):
            await until(lambda: owner.rounds == [True])
            owner.ven.refresh({"gone"})
            await until(lambda: owner.told("DELETE") == ["gone"])


def test_what_a_receiver_stands_by_is_remembered_within_bounds():
    known = register.Register(())
    known.remember([str(number) for number in range(register.KNOWN_MAX + 10)])
    assert known.event_count == register.KNOWN_MAX


@pytest.mark.parametrize("path", ["vens", "resources"])
async def test_nobody_is_released_from_an_event_for_a_target_while_what_we_are_granted_is_unknown(path):
    async with vtn() as it:
        first = Owner(it, resources=("hall-a",))
        async with running(first):
            await until(lambda: first.rounds == [True])
        it.objects({"vens": "VEN", "resources": "RESOURCE"}[path])[0]["targets"] = ["north"]
        event = it.create_event({**LIMIT, "targets": ["north"]})["id"]
        it.faults[path] = "forbid"
        again = Owner(it, poll_s=0.05, resources=("hall-a",), known_event_ids=[event])
        async with running(again):
            await until(lambda: len(again.rounds) >= 3)
            assert again.messages == []
            it.faults.clear()
            await until(lambda: event in again.told("UPDATE"))
        assert again.told("DELETE") == []


async def test_a_round_waits_for_an_owner_that_is_busy_and_ends_after_its_last_event(monkeypatch):
    monkeypatch.setattr(ven, "ROOM_LOOK_S", 0.005)
    room = 3
    async with vtn() as it:
        made = [it.create_event(LIMIT)["id"] for _ in range(10)]
        owner = Owner(it, has_room=lambda: len(owner.messages) < room, known_event_ids=["gone"])
        async with running(owner):
            await until(lambda: len(owner.messages) == room)
            await asyncio.sleep(0.05)
            assert len(owner.messages) == room
            assert owner.rounds == []
            room = len(made)
            await until(lambda: len(owner.messages) == room)
            await asyncio.sleep(0.05)
            assert (owner.rounds, owner.told("DELETE")) == ([], [])
            room += 1
            await until(lambda: owner.rounds == [True])
            assert owner.told("UPDATE") == made
            assert owner.told("DELETE") == ["gone"]


async def test_an_owner_that_never_has_room_fails_the_round_and_is_named(monkeypatch):
    monkeypatch.setattr(ven, "ROUND_WAIT_MAX_S", 0.3)
    async with vtn() as it:
        it.create_event(LIMIT)
        owner = Owner(it, has_room=lambda: False)
        async with running(owner):
            await until(lambda: owner.rounds == [False])
            assert "the site, told too much at once, took more than 0.3 s" in owner.ven.status.fault
        assert owner.messages == []


# -- programmes -------------------------------------------------------------------------------------------


def announced(program_id: str) -> bytes:
    said = {"id": program_id, "programName": "x"}
    return json.dumps({"objectType": "PROGRAM", "operation": "CREATE", "object": said}).encode()


async def test_a_programme_that_is_announced_is_neither_told_nor_kept_but_read_by_a_round():
    async with vtn() as it:
        owner = Owner(it)
        async with running(owner):
            await until(lambda: owner.rounds == [True])
            it.create_program({"id": "p1", "programName": "one"})
            for number in range(100):
                owner.ven._on_notification("t", announced(f"flood-{number}"), False)
            assert owner.programs == []
            assert owner.ven._register.program_ids == ()
            await until(lambda: owner.programs == ["p1"])
            await asyncio.sleep(0.1)
            assert owner.rounds == [True, True]
            assert owner.messages == []


def test_an_announced_programme_is_not_decoded():
    assert reading.notification(announced("p1")) == reading.Notification("PROGRAM", False, {})
    event = announced("p1").replace(b"PROGRAM", b"EVENT")
    assert reading.notification(event).said == {"id": "p1", "programname": "x"}


async def test_a_programme_is_told_once_again_when_changed_and_forgotten_when_no_longer_listed():
    async with vtn() as it:
        it.create_program({"id": "p1", "programName": "one"})
        it.create_program({"id": "p2", "programName": "two"})
        owner = Owner(it, poll_s=0.05)
        async with running(owner):
            await until(lambda: len(owner.rounds) >= 3)
            assert owner.programs == ["p1", "p2"]
            it.update_program("p1", {"programName": "uno"})
            await until(lambda: owner.programs == ["p1", "p2", "p1"])
            it.faults["programs"] = "mixed"  # a spoiled list proves nothing
            seen = len(owner.rounds)
            await until(lambda: len(owner.rounds) >= seen + 2)
            assert set(owner.ven._register.program_ids) >= {"p1", "p2"}
            it.faults["programs"] = "empty"
            await until(lambda: owner.ven._register.program_ids == ())


# -- nothing from outside ends the run ---------------------------------------------------------------------

BINDING_FAULTS = {
    "label too long": ({"uris": ["mqtt://" + "a" * 64 + ".example"]}, "label empty or too long"),
    "label empty": ({"uris": ["mqtt://a..b:1883"]}, "label empty or too long"),
    "user name too long": (
        {"authentication": {"method": "OAUTH2_BEARER_TOKEN", "username": "{clientID}" * 65_536}},
        "a user name of more than 65535 bytes",
    ),
}


@pytest.mark.parametrize("fault", BINDING_FAULTS)
def test_a_broker_that_cannot_be_called_is_refused_when_it_is_named(fault):
    said, why = BINDING_FAULTS[fault]
    settings = Owner(Vtn(clients={})).ven._settings
    with pytest.raises(VtnFault, match=why) as caught:
        reading.binding({"uris": ["mqtt://127.0.0.1"], **said}, ("t",), settings, shared=False)
    assert len(str(caught.value)) < 400


def test_a_token_longer_than_mqtt_can_carry_is_no_token():
    said = {"access_token": "t" * 65_535, "expires_in": 60}
    assert reading.token(200, json.dumps(said).encode())[1] == 60.0
    with pytest.raises(VtnFault, match="no usable access_token"):
        reading.token(200, json.dumps(said | {"access_token": "t" * 65_536}).encode())


async def test_no_place_for_the_certificates_of_a_broker_is_a_sentence_and_polling_goes_on(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(notifier.tempfile, "tempdir", str(tmp_path / "gone"))
    broker = Broker("mqtts://127.0.0.1:1", authentication={"method": "CERTIFICATE", "caCert": "pem"})
    async with Vtn(clients={"c": "s"}, broker=broker) as it:
        owner = Owner(it, poll_s=0.05)
        async with running(owner):
            await until(lambda: "no place for its certificates" in owner.ven.status.fault)
            await until(lambda: len(owner.rounds) >= 2 and owner.rounds[-1])
