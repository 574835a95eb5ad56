"""The canary, as pure arithmetic and at a real broker that withholds or freezes."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.canary import ANSWER_WAIT_MAX_S, PROBE_EVERY_S, Canary
from protocols.mqtt import MqttLink, Subscription, Tls
from tests.brokers import (
    Authority,
    Mosquitto,
    Nats,
    needs_mosquitto,
    needs_nats,
    open_folder,
    running,
    until,
)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def canary(**kwargs) -> Canary:
    numbers = itertools.count()
    return Canary("canary/me", nonce=lambda: f"probe {next(numbers)}", **kwargs)


def test_a_probe_is_due_at_once_and_then_once_a_second():
    it = canary()
    due_s = [now_s for now_s in (number / 20 for number in range(100)) if it.due(now_s) is not None]
    assert due_s == pytest.approx([0, 1, 2, 3, 4])


def test_probes_that_come_back_are_no_fault():
    it = canary()
    for second in range(60):
        it.heard(it.due(second), second + 0.5)
        assert it.fault(second + 0.9) == ""
    assert it.answers == 60


def test_silence_from_the_start_points_to_the_acl():
    it = canary()
    for second in range(5):
        it.due(second)
        assert it.fault(second) == ""
    assert "took our subscription to canary/me but delivered nothing for 5 s" in it.fault(4.6)
    assert "ACL" in it.fault(4.6)


def test_silence_after_answers_points_to_a_frozen_broker_and_ends_with_the_next_answer():
    it = canary()
    it.heard(it.due(0), 0.1)
    for second in range(1, 6):
        probe = it.due(second)
    assert it.fault(5) == ""
    assert it.fault(5.5).startswith(
        "nothing has come back on canary/me for 4 s, though the connection stands"
    )
    it.heard(probe, 5.6)
    assert it.fault(5.6) == ""
    assert it.fault(60) == ""  # none is away: nobody asked


def test_one_lost_probe_is_no_fault():
    it = canary()
    for second in range(30):
        probe = it.due(second)
        if second != 10:
            it.heard(probe, second + 0.1)
        assert it.fault(second + 0.5) == ""


def test_an_answer_to_an_older_probe_leaves_the_newer_ones_waiting():
    it = canary()
    older, _newer = it.due(0), it.due(1)
    it.heard(older, 1.5)
    assert it.fault(1 + ANSWER_WAIT_MAX_S) == ""
    assert it.fault(1.1 + ANSWER_WAIT_MAX_S)


def test_copies_strangers_and_memories_are_no_answer():
    it = canary()
    before = it.due(0)
    it.heard(before, 0.1)
    it.forget()
    late = it.due(10)
    for second in range(11, 20):
        it.due(second)
        it.heard(before, second)  # retained, or of the connection before
        it.heard(b"probe 999", second)  # of another client
        it.heard(b"", second)
        it.heard(b"\xff" * 1000, second)
    it.heard(late, 19.5)  # ours, but far too old
    assert it.answers == 1
    assert it.fault(19.5)


def test_an_answer_that_comes_too_late_is_none_even_if_nothing_was_asked_meanwhile():
    it = canary()
    it.heard(it.due(0), ANSWER_WAIT_MAX_S + 0.1)
    assert it.answers == 0


def test_a_copy_of_a_probe_that_was_answered_counts_once():
    it = canary()
    probe = it.due(0)
    it.heard(probe, 0.1)
    it.due(1)
    it.heard(probe, 1.1)
    assert it.answers == 1
    assert it.fault(1.1 + ANSWER_WAIT_MAX_S)


def test_a_new_connection_starts_with_a_clean_slate_and_a_probe():
    it = canary()
    before = it.due(99)
    assert it.fault(200)
    it.forget()
    assert it.fault(200) == ""
    assert it.due(100) is not None
    it.heard(before, 100.1)
    assert it.answers == 0


def test_memory_is_bounded_however_long_the_silence():
    it = canary()
    for second in range(10_000):
        it.due(second)
    assert len(it._sent_s) <= ANSWER_WAIT_MAX_S / PROBE_EVERY_S + 1
    assert "9999 s" in it.fault(9_999)


@pytest.mark.parametrize(("every_s", "wait_s"), [(0, 1), (-1, 1), (2, 1), (float("nan"), 1)])
def test_seconds_that_make_no_sense_are_the_fault_of_the_caller(every_s, wait_s):
    with pytest.raises(ValueError, match="the second at least the first"):
        canary(probe_every_s=every_s, answer_wait_max_s=wait_s)


# -- at a broker ------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as it:
        yield it


class Owner:
    """A link with a canary, as a service would run it; impatient."""

    def __init__(self, url: str, topic: str, tls: Tls | None = None) -> None:
        numbers = itertools.count()
        self.canary = Canary(
            topic, nonce=lambda: f"{id(self)} {next(numbers)}", probe_every_s=0.05, answer_wait_max_s=0.3
        )
        self.link = MqttLink(
            url,
            client_id="owner",
            on_message=self._on_message,
            on_connect=self.canary.forget,
            subscriptions=(Subscription(topic),),
            tls=tls,
        )

    def _on_message(self, _topic: str, payload: bytes, _retained: bool) -> None:
        self.canary.heard(payload, time.monotonic())

    async def beat(self, for_s: float) -> str:
        """The fault after so many seconds of the usual rhythm."""
        end_s = time.monotonic() + for_s
        while time.monotonic() < end_s:
            if (probe := self.canary.due(time.monotonic())) is not None:
                self.link.publish(self.canary.topic, probe)
            await asyncio.sleep(0.02)
        return self.canary.fault(time.monotonic())


ACL = "user node-1\ntopic readwrite canary/node-1\ntopic write secret\n"


@needs_mosquitto
async def test_p20_a_subscription_that_is_granted_and_yet_denied_falls_silent_and_is_found_out(folder):
    ca = Authority(folder)
    with Mosquitto(folder, authority=ca, wants_client=True, acl=ACL) as broker:
        tls = Tls(ca.ca_file, *ca.client("node-1"))
        for topic in ("canary/node-1", "secret", "canary/another"):
            owner = Owner(broker.url, topic, tls)
            async with running(owner.link):
                await until(lambda owner=owner: owner.link.connected)
                fault = await owner.beat(0.5)
                assert owner.link.connected  # the broker said yes to all three
                assert owner.link.sessions == 1
            if topic == "canary/node-1":
                assert fault == ""
                assert owner.canary.answers > 3
            else:
                assert f"took our subscription to {topic} but delivered nothing" in fault
                assert owner.canary.answers == 0


@pytest.mark.parametrize(
    "make", [pytest.param(Mosquitto, marks=needs_mosquitto), pytest.param(Nats, marks=needs_nats)]
)
async def test_a_frozen_broker_silences_the_canary_long_before_the_keepalive(folder, make):
    with make(folder) as broker:
        owner = Owner(broker.url, "canary/me")
        async with running(owner.link):
            await until(lambda: owner.link.connected)
            assert await owner.beat(0.3) == ""
            broker.freeze()
            try:
                assert "nothing has come back on canary/me" in await owner.beat(0.6)
                assert owner.link.connected  # it has not noticed yet
            finally:
                broker.thaw()
            assert await owner.beat(0.5) == ""
