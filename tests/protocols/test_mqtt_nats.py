"""The MQTT link at nats-server, the broker of NVIDIA's DSX Exchange. What differs from mosquitto stands here."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.mqtt import MqttLink, Outgoing, Subscription, Tls
from tests.brokers import (
    Authority,
    Heard,
    Nats,
    listener,
    needs_nats,
    open_folder,
    running,
    speaker,
    until,
)

# Brokers are killed and frozen here: what the libraries then leave to the collector is closed by it, with a
# warning that lands in whichever test runs by then.
pytestmark = [needs_nats, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as it:
        yield it


@pytest.fixture
def broker(folder: Path) -> Iterator[Nats]:
    with Nats(folder) as it:
        yield it


@pytest.mark.parametrize("qos", [0, 1])
async def test_messages_pass_with_wildcards_and_come_in_order(broker, qos):
    ear, heard = listener(broker.url, "grid/v1/isv/+/loadtarget/set", "status/#", qos=qos)
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("grid/v1/isv/a/loadtarget/set", b"\x00\xff", qos)
        for number in range(200):
            mouth.publish("status/deep/er", b"%d" % number, qos, keep=True)
        await until(lambda: len(heard) == 201)
    target = ("grid/v1/isv/a/loadtarget/set", b"\x00\xff", False)
    heard.remove(target)
    assert heard.payloads == [b"%d" % number for number in range(200)]


async def test_a_link_survives_a_restart_and_what_is_retained_survives_it_too(broker):
    ear, heard = listener(broker.url, "plan", "order", qos=1)
    mouth = speaker(broker.url)
    async with running(mouth):
        mouth.publish("plan", b"standing", qos=1, retain=True)
        await until(lambda: mouth.connected and mouth.waiting == 0)
        async with running(ear):
            await until(lambda: heard == [("plan", b"standing", True)])
            broker.kill()
            await until(lambda: not ear.connected and not mouth.connected)
            broker.start()
            await until(lambda: ear.connected and mouth.connected, within_s=10)
            await until(lambda: heard == [("plan", b"standing", True)] * 2)
            mouth.publish("order", b"new", qos=1)
            await until(lambda: heard[-1] == ("order", b"new", False))


async def test_what_was_said_while_the_link_was_away_is_not_replayed_to_it(broker):
    ear, heard = listener(broker.url, "order", qos=1)
    mouth = speaker(broker.url)
    async with running(mouth):
        async with running(ear):
            await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order", b"old command", qos=1)
        await until(lambda: mouth.waiting == 0)
        async with running(ear):
            await until(lambda: ear.connected)
            mouth.publish("order", b"fresh command", qos=1)
            await until(lambda: len(heard) > 0)
    assert heard.payloads == [b"fresh command"]


async def test_qos_2_is_lowered_where_the_link_is_told_and_where_it_finds_out(broker):
    """nats-server 2.9 hangs up on a QoS 2 message, and 2.10 takes it: either way all arrive."""
    told = speaker(broker.url, qos_max=1)
    ear, heard = listener(broker.url, "breach", qos=1)
    async with running(ear, told):
        await until(lambda: ear.connected and told.connected)
        told.publish("breach", b"1", qos=2, keep=True)
        await until(lambda: heard.payloads == [b"1"])
        assert told.sessions == 1
    unwarned = speaker(broker.url)
    async with running(ear, unwarned):
        await until(lambda: ear.connected and unwarned.connected)
        unwarned.publish("breach", b"2", qos=2, keep=True)
        unwarned.publish("breach", b"3", qos=1, keep=True)
        await until(lambda: unwarned.waiting == 0)
        await until(lambda: heard.payloads[1:] == [b"2", b"3"])
        assert unwarned.refused == 0
        settled = unwarned.sessions
        unwarned.publish("breach", b"4", qos=2, keep=True)
        await until(lambda: heard.payloads[-1:] == [b"4"])
        assert unwarned.sessions == settled


async def test_a_topic_that_is_no_utf_8_is_dropped_and_counted(broker):
    """The standard forbids it, mosquitto refuses it, nats-server passes it on."""
    ear, heard = listener(broker.url, "openadr/#")
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x1e\x00\x04raw1")
        writer.write(b"\x30\x0d\x00\x09openadr/\xff{}")
        await writer.drain()
        await until(lambda: ear.garbled == 1)
        mouth.publish("openadr/x", b"good")
        await until(lambda: heard.payloads == [b"good"])
        assert ear.sessions == 1
        writer.close()


async def test_a_topic_it_does_not_know_costs_one_message_and_says_so(broker):
    """nats-server 2.9 hangs up on dots and blanks in topics; with 2.10 the message would simply arrive."""
    ear, heard = listener(broker.url, "status/#", qos=1)
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("status/block 1", b"poison", qos=1)
        mouth.publish("status/block-1", b"good", qos=1)
        await until(lambda: mouth.waiting == 0)
        await until(lambda: ("status/block-1", b"good", False) in heard)
        assert mouth.refused == 1
        await until(lambda: mouth.connected)


async def test_a_frozen_broker_is_noticed_by_silence(broker):
    link = speaker(broker.url, keepalive_s=1)
    async with running(link):
        await until(lambda: link.connected)
        broker.freeze()
        try:
            await until(lambda: not link.connected, within_s=4)
        finally:
            broker.thaw()
        await until(lambda: link.connected, within_s=8)


async def test_bursts_with_qos_0_do_not_stall_for_40_ms(broker):
    """It sets TCP_NODELAY by itself."""
    arrived_s: list[float] = []
    loop = asyncio.get_running_loop()
    ear = MqttLink(
        broker.url,
        client_id="ear",
        on_message=lambda *_: arrived_s.append(loop.time()),
        subscriptions=(Subscription("t"),),
    )
    mouth = speaker(broker.url)
    latency_s = []
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        for number in range(40):
            sent_s = loop.time()
            mouth.publish("t", bytes(100))
            await until(lambda: len(arrived_s) > number)  # noqa: B023
            latency_s.append(arrived_s[-1] - sent_s)
            await asyncio.sleep(0.003)
    assert sorted(latency_s)[20] < 0.030, "a stall, not the speed of this machine"


# -- permissions ------------------------------------------------------------------------------------------

USERS = """authorization { users = [
    { user: "node-1.example", permissions: {
        publish: { allow: ["status.>", "canary.>"] }, subscribe: { allow: ["order", "order.>", "$MQTT.sub.>"] } } }
    { user: "site.example" }
] }
"""


@pytest.fixture
def strict(folder: Path) -> Iterator[tuple[Nats, Tls, Tls]]:
    """Broker, and the certificates of one who may little and of one who may all."""
    ca = Authority(folder)
    with Nats(folder, authority=ca, users=USERS) as it:
        yield it, Tls(ca.ca_file, *ca.client("node-1")), Tls(ca.ca_file, *ca.client("site"))


async def test_a_denied_subscription_is_said_at_once(strict):
    broker, tls, _ = strict
    allowed, _ = listener(broker.url, "order/#", tls=tls)
    partly, _ = listener(broker.url, "order/#", "secret/#", tls=tls, client_id="curious")
    wholly, _ = listener(broker.url, "secret/#", tls=tls, client_id="spy")
    async with running(allowed, partly, wholly):
        await until(lambda: allowed.connected and partly.connected)
        assert (allowed.denied, partly.denied) == ((), ("secret/#",))
        assert "denies the subscription to secret/#: check its ACL" in partly.denial
        await until(lambda: "denies the subscription to secret/#: check its ACL" in wholly.fault)
        assert not wholly.connected


async def test_a_denied_subscription_costs_the_granted_ones_nothing(strict):
    broker, tls, site = strict
    ear, heard = listener(broker.url, "order/#", "secret/#", tls=tls)
    mouth = speaker(broker.url, tls=site)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order/1", b"go", qos=1)
        await until(lambda: heard.payloads == [b"go"])


async def test_a_denied_message_is_confirmed_and_lost(strict):
    """With MQTT 3.1.1 no broker can say so: only the receiver's silence tells."""
    broker, tls, site = strict
    ear, heard = listener(broker.url, "status/#", "order/#", qos=1, tls=site)
    mouth = speaker(broker.url, tls=tls)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order/1", b"denied", qos=1, keep=True)
        mouth.publish("status/1", b"allowed", qos=1, keep=True)
        await until(lambda: heard.payloads == [b"allowed"])
        assert mouth.waiting == 0
        assert mouth.sessions == 1


async def test_an_unknown_certificate_is_a_login_refused(folder):
    ca = Authority(folder)
    with Nats(folder, authority=ca, users=USERS) as broker:
        stranger = speaker(broker.url, tls=Tls(ca.ca_file, *ca.client("node-2")))
        async with running(stranger):
            await until(lambda: "refused the login" in stranger.fault)


async def test_the_will_of_a_link_that_vanishes_is_published(broker):
    ear, heard = listener(broker.url, "gone", qos=1)
    will = Outgoing("gone", b"x", qos=2)
    vanishing = MqttLink(broker.url, client_id="a", on_message=Heard(), will=will, qos_max=1)
    async with running(ear):
        await until(lambda: ear.connected)
        async with vanishing._connect() as client:
            client._client.socket().shutdown(2)
            await until(lambda: heard == [("gone", b"x", False)])
