"""Messages whose sender learns that the broker has them: posts."""

import asyncio
import time

import pytest

from protocols.mqtt import REPLY_WAIT_MAX_S, NotDeliveredError, Outgoing
from tests.brokers import Mosquitto, listener, needs_mosquitto, open_folder, running, speaker, until

pytestmark = needs_mosquitto


@pytest.fixture
def broker():
    with open_folder() as folder, Mosquitto(folder) as broker:
        yield broker


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_post_is_done_when_the_broker_has_all_of_it_in_order(broker, qos):
    mouth = speaker(broker.url)
    ear, heard = listener(broker.url, "p/#", qos=1)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        await mouth.post([Outgoing("p/a", b"%d" % number, qos) for number in range(200)])
        await until(lambda: len(heard) == 200)
    assert heard.payloads == [b"%d" % number for number in range(200)]


async def test_without_a_session_a_post_fails_at_once(broker):
    mouth = speaker(broker.url)
    with pytest.raises(NotDeliveredError, match="not called yet"):
        await mouth.post([Outgoing("p", b"")])


async def test_a_broker_that_dies_fails_what_it_has_not_confirmed(broker):
    mouth = speaker(broker.url)
    async with running(mouth):
        await until(lambda: mouth.connected)
        broker.freeze()
        post = mouth.post([Outgoing("p", b"x", 1)])
        broker.kill()
        with pytest.raises(NotDeliveredError, match="session ended"):
            await post


async def test_a_frozen_broker_fails_the_post_in_time_and_loses_the_session(broker):
    mouth = speaker(broker.url)
    async with running(mouth):
        await until(lambda: mouth.connected)
        broker.freeze()
        begun_s = time.monotonic()
        with pytest.raises(NotDeliveredError, match="nor confirm"):
            await mouth.post([Outgoing("p", b"x", 1)])
        assert time.monotonic() - begun_s < REPLY_WAIT_MAX_S + 2.0
        await until(lambda: not mouth.connected)
        broker.thaw()
        await until(lambda: mouth.connected, within_s=15.0)
        await mouth.post([Outgoing("p", b"x", 1)])


async def test_posts_may_overlap_and_leave_what_is_published_alone(broker):
    mouth = speaker(broker.url)
    ear, heard = listener(broker.url, "p/#", qos=1)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        posts = [mouth.post([Outgoing(f"p/{number}", b"x", 1)] * 10) for number in range(20)]
        mouth.publish("p/newest", b"y", 1)
        await asyncio.gather(*posts)
        await until(lambda: len(heard) == 201)
    assert mouth.waiting == 0
