"""What a VEN tells its owner of rounds, when it makes them, and what it makes of odd answers in between."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest

from firmware_sim.vtn import Vtn
from protocols.ven import Ven, VenSettings, client, ven

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

    def __init__(self, vtn: Vtn, *, poll_s: float = 30.0, fails: bool = False) -> None:
        self.rounds: list[bool] = []
        self.messages: list[dict] = []
        self.fails = fails
        settings = VenSettings(
            url=vtn.url, client_id="c", client_secret="s", ven_name="block-1", plain=True, poll_s=poll_s
        )
        self.ven = Ven(
            settings,
            on_message=lambda payload, _: self.messages.append(json.loads(payload)),
            on_program=lambda _: None,
            on_round=self.on_round,
        )

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
