"""The MQTT link against real brokers on loopback: mosquitto as in production, amqtt as in the demo."""

import asyncio
import contextlib
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiomqtt
import pytest

from protocols import mqtt
from protocols.mqtt import MqttConfigError, MqttLink, Outgoing, Subscription, Tls
from tests.brokers import (
    Heard,
    Mosquitto,
    flood,
    free_port,
    listener,
    needs_mosquitto,
    open_folder,
    running,
    speaker,
    until,
)

# Brokers are killed and frozen here, handshakes refused: what the libraries then leave to the collector is
# closed by it, with a warning that lands in whichever test runs by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as it:
        yield it


@pytest.fixture
def broker(folder: Path) -> Iterator[Mosquitto]:
    with Mosquitto(folder) as it:
        yield it


# -- what passes ------------------------------------------------------------------------------------------


@needs_mosquitto
@pytest.mark.parametrize("qos", [0, 1])
async def test_a_message_arrives_with_its_topic_and_its_bytes(broker, qos):
    ear, heard = listener(broker.url, "block/+/order", qos=qos)
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("block/a/order", b"\x00\xff", qos)
        await until(lambda: len(heard) == 1)
    assert heard == [("block/a/order", b"\x00\xff", False)]


@needs_mosquitto
async def test_a_retained_message_says_that_it_is_retained(broker):
    mouth = speaker(broker.url)
    ear, heard = listener(broker.url, "plan")
    async with running(mouth):
        mouth.publish("plan", b"1", qos=1, retain=True)
        await until(lambda: mouth.connected and not mouth.waiting)
        await asyncio.sleep(0.05)
        async with running(ear):
            await until(lambda: len(heard) == 1)
            mouth.publish("plan", b"2", qos=1, retain=True)
            await until(lambda: len(heard) == 2)
    assert heard == [("plan", b"1", True), ("plan", b"2", False)]


@needs_mosquitto
async def test_of_one_topic_only_the_newest_waits_for_a_broker(broker):
    ear, heard = listener(broker.url, "#")
    mouth = speaker(broker.url)
    for value in range(100):
        mouth.publish("order/a", b"%d" % value)
        mouth.publish("order/b", b"%d" % value)
    async with running(ear):
        await until(lambda: ear.connected)
        async with running(mouth):
            await until(lambda: len(heard) >= 2)
            await asyncio.sleep(0.05)
    assert sorted(heard.payloads) == [b"99", b"99"]


@needs_mosquitto
async def test_while_connected_a_burst_over_many_topics_arrives_complete_and_in_order(broker):
    ear, heard = listener(broker.url, "order/#")
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        for node in range(144):
            mouth.publish(f"order/{node}", b"%d" % node)
        await until(lambda: len(heard) == 144)
    assert heard.payloads == [b"%d" % node for node in range(144)]


@needs_mosquitto
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_kept_messages_of_an_outage_arrive_each_and_in_order(broker, qos):
    ear, heard = listener(broker.url, "alert/#", qos=1)
    mouth = speaker(broker.url)
    async with running(mouth):
        await until(lambda: mouth.connected)
        broker.kill()
        await until(lambda: not mouth.connected)
    for number in range(50):
        mouth.publish(f"alert/{'ab'[number % 2]}", b"%d" % number, qos, keep=True)
    assert mouth.waiting == 50
    broker.start()
    async with running(ear):
        await until(lambda: ear.connected)  # first the listener, or it would miss what is not retained
        async with running(mouth):
            await until(lambda: mouth.waiting == 0 and len(heard) == 50)
    assert heard.payloads == [b"%d" % number for number in range(50)]


@needs_mosquitto
@pytest.mark.parametrize(("said", "arrives"), [("1A23B4", "AB4"), ("1A23B", "AB"), ("1A", "A")])
async def test_kept_and_newest_messages_of_one_topic_keep_their_order(broker, said, arrives):
    """A newest one (a figure here) is replaced by whatever follows; a kept one (a letter) by nothing."""
    ear, heard = listener(broker.url, "state", qos=1)
    mouth = speaker(broker.url)
    for letter in said:
        mouth.publish("state", letter.encode(), qos=1, keep=letter.isalpha())
    async with running(ear):
        await until(lambda: ear.connected)
        async with running(mouth):
            await until(lambda: mouth.connected and mouth.waiting == 0)
            await until(lambda: len(heard) >= len(arrives))
    assert b"".join(heard.payloads).decode() == arrives


@needs_mosquitto
async def test_a_kept_message_equal_to_one_on_the_wire_is_a_message_of_its_own(broker):
    ear, heard = listener(broker.url, "state", qos=1)
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("state", b"on", qos=1)
        while not mouth._on_wire:  # noqa: ASYNC110  for two turns of the loop
            await asyncio.sleep(0)
        mouth.publish("state", b"on", qos=1, keep=True)
        await until(lambda: len(heard) == 2)


async def test_kept_messages_that_wait_are_bounded_and_the_oldest_make_room():
    link = speaker("mqtt://127.0.0.1:1")
    for number in range(mqtt.KEPT_MESSAGES_MAX + 3):
        link.publish("alert", b"%d" % number, keep=True)
    assert link.waiting == mqtt.KEPT_MESSAGES_MAX
    assert link.overflowed == 3
    assert link._kept[0].payload == b"3"


@pytest.mark.parametrize("topic", ["", "a/+", "a/#"])
async def test_a_topic_that_is_none_is_the_fault_of_the_caller(topic):
    with pytest.raises(ValueError, match="messages go to one topic each"):
        speaker("mqtt://127.0.0.1:1").publish(topic, b"")


async def test_topics_that_wait_are_bounded_and_the_loss_is_counted():
    link = speaker("mqtt://127.0.0.1:1")
    for number in range(mqtt.OUTBOX_TOPICS_MAX + 3):
        link.publish(f"t/{number}", b"")
    assert len(link._newest) == mqtt.OUTBOX_TOPICS_MAX
    assert link.overflowed == 3
    assert "t/2" not in link._newest
    assert f"t/{mqtt.OUTBOX_TOPICS_MAX + 2}" in link._newest


async def test_an_oversized_payload_is_the_fault_of_the_caller():
    with pytest.raises(ValueError, match="262145 bytes, 262144 at most"):
        speaker("mqtt://127.0.0.1:1").publish("t", bytes(mqtt.PAYLOAD_MAX_BYTES + 1))


@needs_mosquitto
async def test_an_oversized_payload_from_outside_is_dropped_counted_and_told(broker, monkeypatch):
    told = []
    ear, heard = listener(broker.url, "t", on_oversized=lambda *it: told.append(it))
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        monkeypatch.setattr(mqtt, "PAYLOAD_MAX_BYTES", 20)
        mouth.publish("t", bytes(20))
        await until(lambda: len(heard) == 1)
        monkeypatch.setattr(mqtt, "PAYLOAD_MAX_BYTES", 10)
        mouth._newest["t"] = Outgoing("t", bytes(11))
        mouth._wake.set()
        await until(lambda: ear.oversized == 1)
        mouth.publish("t", bytes(10))
        await until(lambda: len(heard) == 2)
    assert heard.payloads == [bytes(20), bytes(10)]
    assert told == [("t", 11)]


@needs_mosquitto
async def test_orders_at_20_hz_do_not_stall_for_40_ms(broker):
    """Without TCP_NODELAY every other message of a fresh connection waits for a delayed ACK."""
    arrived_s: list[float] = []
    ear = MqttLink(
        broker.url,
        client_id="ear",
        on_message=lambda *_: arrived_s.append(time.perf_counter()),
        subscriptions=(Subscription("t"),),
    )
    mouth = speaker(broker.url)
    sent_s = []
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        for number in range(40):
            sent_s.append(time.perf_counter())
            mouth.publish("t", bytes(100))
            await until(lambda: len(arrived_s) > number)  # noqa: B023
            await asyncio.sleep(0.003)
    latency_s = [b - a for a, b in zip(sent_s, arrived_s, strict=True)]
    assert statistics.median(latency_s) < 0.030, "a stall, not the speed of this machine"


@needs_mosquitto
async def test_a_flood_arrives_whole_and_the_link_stays_up(broker):
    """10,000 messages a second over 2 s, from a publisher that knows no bounds."""
    ear, heard = listener(broker.url, "flood")
    async with running(ear):
        await until(lambda: ear.connected)
        await asyncio.to_thread(flood, broker.port, "flood", messages_per_s=10_000, for_s=2.0)
        await until(lambda: len(heard) == 20_000, within_s=20)
    assert heard.payloads == [b"%d" % number for number in range(20_000)]
    assert ear.sessions == 1


@needs_mosquitto
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_what_mosquitto_is_told_with_each_qos_arrives_once(broker, qos):
    ear, heard = listener(broker.url, "breach", qos=min(qos, 1))
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        for number in range(20):
            mouth.publish("breach", b"%d" % number, qos, keep=True)
        await until(lambda: mouth.waiting == 0 and len(heard) == 20)
        await asyncio.sleep(0.02)
    assert heard.payloads == [b"%d" % number for number in range(20)]


@needs_mosquitto
async def test_the_socket_does_not_wait_for_an_ack_before_it_sends(broker):
    link = speaker(broker.url)
    async with link._connect() as client:
        sock = mqtt._wire(client).socket()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


# -- what breaks ------------------------------------------------------------------------------------------


@needs_mosquitto
async def test_p20_after_a_broker_restart_the_link_has_subscribed_again_and_delivers_the_newest(broker):
    ear, heard = listener(broker.url, "order", qos=1)
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order", b"before", qos=1)
        await until(lambda: heard.payloads == [b"before"])

        broker.kill()
        await until(lambda: not ear.connected and not mouth.connected, within_s=1)
        for value in (b"old", b"older than the newest", b"newest"):
            mouth.publish("order", value, qos=1)
        await until(lambda: "refused the connection: is mosquitto running" in ear.fault)

        broker.start()
        await until(lambda: ear.connected)
        await until(lambda: mouth.connected)
        mouth.publish("order", b"newest", qos=1)  # the first may have come before the ear was back
        await until(lambda: b"newest" in heard.payloads)
    assert set(heard.payloads) == {b"before", b"newest"}
    assert ear.sessions == mouth.sessions == 2
    assert not ear.connected


@needs_mosquitto
async def test_what_was_said_while_the_link_was_away_is_not_replayed_to_it(broker):
    """A persistent session would deliver the old command as if it were fresh."""
    ear, heard = listener(broker.url, "order", qos=1)
    mouth = speaker(broker.url)
    async with running(mouth):
        async with running(ear):
            await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order", b"old command", qos=1)
        await asyncio.sleep(0.05)
        async with running(ear):
            await until(lambda: ear.connected)
            mouth.publish("order", b"fresh command", qos=1)
            await until(lambda: len(heard) > 0)
    assert heard.payloads == [b"fresh command"]


@needs_mosquitto
async def test_of_an_outage_of_ours_only_what_is_retained_reaches_us_and_says_so(broker):
    mouth = speaker(broker.url)
    ear, heard = listener(broker.url, "order", "plan", qos=1)
    async with running(mouth):
        await until(lambda: mouth.connected)
        async with running(ear):
            await until(lambda: ear.connected)
        for number in range(10):
            mouth.publish("order", b"old %d" % number, qos=1, keep=True)
        mouth.publish("plan", b"standing", qos=1, retain=True)
        await until(lambda: mouth.waiting == 0)
        async with running(ear):
            await until(lambda: len(heard) > 0)
            await asyncio.sleep(0.05)
    assert heard == [("plan", b"standing", True)]


@needs_mosquitto
async def test_a_broker_that_dies_during_a_burst_costs_no_topic_its_newest_value(broker):
    mouth = speaker(broker.url)
    ear, heard = listener(broker.url, "order/#", qos=1)
    async with running(mouth):
        await until(lambda: mouth.connected)
        for node in range(200):
            mouth.publish(f"order/{node}", b"%d" % node, qos=1, retain=True)
        await asyncio.sleep(0)
        broker.kill()
        await until(lambda: not mouth.connected)
        broker.start()
        async with running(ear):
            await until(lambda: len({topic for topic, _, _ in heard}) == 200)


@needs_mosquitto
async def test_a_link_started_before_its_broker_says_why_it_waits_and_connects_when_it_comes(folder):
    broker = Mosquitto(folder)
    link = speaker(broker.url)
    async with running(link):
        await until(lambda: "refused" in link.fault)
        assert link.fault.startswith(
            f"broker 127.0.0.1:{broker.port} refused the connection: is mosquitto running"
        )
        assert not link.connected
        assert link.connected_since_s < 0
        with broker:
            await until(lambda: link.connected)
            assert link.fault == ""
            assert 0 <= time.monotonic() - link.connected_since_s < 5


@needs_mosquitto
async def test_a_frozen_broker_is_noticed_by_silence(broker):
    link = speaker(broker.url, keepalive_s=1)
    async with running(link):
        await until(lambda: link.connected)
        broker.freeze()
        try:
            link.publish("t", b"x", qos=1)
            await until(lambda: "does not answer" in link.fault or "Keep alive" in link.fault, within_s=4)
            assert not link.connected
        finally:
            broker.thaw()
        await until(lambda: link.connected, within_s=8)


@needs_mosquitto
async def test_a_wrong_password_is_a_sentence_and_not_the_end(folder):
    with Mosquitto(folder, extra="allow_anonymous false") as broker:
        link = speaker(broker.url, username="someone", password="unknown")
        async with running(link):
            await until(lambda: "login" in link.fault)
            assert "check user name, password and client id" in link.fault


@needs_mosquitto
async def test_two_clients_of_one_id_are_told_so(broker):
    one, two = speaker(broker.url), speaker(broker.url)
    async with running(one, two):
        await until(lambda: "another client uses the id 'mouth'" in one.fault + two.fault)


@needs_mosquitto
async def test_the_will_speaks_for_a_client_that_vanishes_but_not_for_one_that_leaves(broker):
    ear, heard = listener(broker.url, "gone/#")
    left = MqttLink(broker.url, client_id="a", on_message=Heard(), will=Outgoing("gone/a", b"x"))
    vanished = MqttLink(broker.url, client_id="b", on_message=Heard(), will=Outgoing("gone/b", b"x"))
    async with running(ear):
        await until(lambda: ear.connected)
        async with running(left):
            await until(lambda: left.connected)
        async with vanished._connect() as client:
            mqtt._wire(client).socket().shutdown(socket.SHUT_RDWR)
            await until(lambda: len(heard) == 1)
    assert heard == [("gone/b", b"x", False)]


@needs_mosquitto
async def test_a_fault_of_the_program_in_the_callback_ends_the_link(broker):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    link = MqttLink(broker.url, client_id="x", on_message=broken, subscriptions=(Subscription("t"),))
    async with asyncio.timeout(5):
        task = asyncio.create_task(link.run())
        await until(lambda: link.connected)
        link.publish("t", b"")
        with pytest.raises(ExceptionGroup) as caught:
            await task
    assert caught.group_contains(ZeroDivisionError)
    assert not link.connected


class PickyBroker:
    """Speaks just enough MQTT to refuse: `judge(topic, qos)` says 'take', 'hang up' or 'silence'."""

    def __init__(self, judge: Callable[[str, int], str]) -> None:
        self._judge = judge
        self.taken: list[tuple[str, int]] = []  # topic, QoS
        self.sessions = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._session, "127.0.0.1", 0)
        async with server:
            yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, length = await reader.readexactly(2)
                assert length < 128
                body = await reader.readexactly(length)
                if kind == 0x10:
                    writer.write(b"\x20\x02\x00\x00")
                if kind & 0xF0 == 0x30 and not self._take(kind >> 1 & 3, body, writer):
                    break
            writer.write_eof()
            await reader.read()  # a socket closed over unread bytes takes back what it has confirmed
        writer.close()

    def _take(self, qos: int, body: bytes, writer: asyncio.StreamWriter) -> bool:
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        verdict = self._judge(topic, qos)
        if verdict == "take":
            self.taken.append((topic, qos))
            if qos > 0:
                writer.write(b"\x40\x02" + body[end : end + 2])
        return verdict != "hang up"


async def test_after_a_break_in_mid_burst_only_what_was_not_confirmed_is_sent_again_in_order():
    broker = PickyBroker(
        lambda _topic, _qos: "hang up" if broker.sessions == 1 and len(broker.taken) == 100 else "take"
    )
    async with broker.serving() as url:
        link = speaker(url)
        for number in range(300):
            link.publish(f"alert/{number}", b"", qos=1, keep=True)
        async with running(link):
            await until(lambda: link.waiting == 0)
    assert broker.sessions == 2
    assert broker.taken == [(f"alert/{number}", 1) for number in range(300)]


async def test_what_is_flushed_is_on_its_way_before_the_caller_goes_on():
    """A beat that flushes its orders and then computes for long has sent them."""
    broker = PickyBroker(lambda _topic, _qos: "take")
    heard: list[float] = []
    async with broker.serving() as url:
        link = speaker(url)
        async with running(link):
            await until(lambda: link.connected)
            wire = link._open_wire.socket()
            link.publish("order/1", b"x")
            link.publish("order/2", b"x")
            link.flush()
            assert link.waiting == 0, "the socket has them"
            link.flush()
            assert wire.fileno() >= 0
            before_s = time.process_time()
            await asyncio.sleep(0.3)
            heard.append(time.process_time() - before_s)
            await until(lambda: len(broker.taken) == 2)
    assert heard[0] < 0.1, "nobody waits for a socket that nothing is left for"


async def test_a_flush_into_a_broken_line_costs_the_session_and_nothing_else():
    broker = PickyBroker(lambda _topic, _qos: "hang up" if broker.sessions == 1 else "take")
    async with broker.serving() as url:
        link = speaker(url)
        async with running(link), asyncio.timeout(10):
            while len(broker.taken) < 3:
                link.publish(f"order/{len(broker.taken)}", b"x", qos=1)
                link.flush()
                await asyncio.sleep(0.01)
    assert broker.sessions >= 2


INNOCENT = {"alert/1", "alert/2", "status/c"}


def publish_among_innocents(link: MqttLink, qos: int) -> None:
    link.publish("alert/1", b"", qos=1, keep=True)
    link.publish("status/a.b", b"", qos=qos)
    link.publish("alert/2", b"", qos=1, keep=True)
    link.publish("status/c", b"", qos=1)


@pytest.mark.parametrize("verdict", ["hang up", "silence"])
async def test_a_message_the_broker_will_not_have_costs_itself_alone(monkeypatch, verdict):
    monkeypatch.setattr(mqtt, "REPLY_WAIT_MAX_S", 0.1)
    broker = PickyBroker(lambda topic, _qos: verdict if topic == "status/a.b" else "take")
    async with broker.serving() as url:
        link = speaker(url)
        faults = []
        publish_among_innocents(link, qos=1)
        async with running(link), asyncio.timeout(5):
            while link.waiting:
                faults.append(link.fault)
                await asyncio.sleep(0.001)
    assert {topic for topic, _ in broker.taken} == INNOCENT
    assert link.refused == 1
    assert link.refusal == "it takes no message to status/a.b, dropped: check topic and rights there"
    assert broker.sessions <= mqtt.REFUSALS_MAX + 2
    assert all("another client" not in fault for fault in faults)


async def test_nobody_innocent_is_dropped_for_one_who_offends_again_and_again_with_qos_0():
    """The socket takes such a message, and the broker hangs up while the next one waits for its answer."""
    broker = PickyBroker(lambda topic, _qos: "hang up" if topic == "status/a.b" else "take")
    async with broker.serving() as url:
        link = speaker(url)
        async with running(link), asyncio.timeout(10):
            while link.refused < 3:
                publish_among_innocents(link, qos=0)
                assert "status/a.b" in link.refusal or not link.refusal
                await asyncio.sleep(0.01)
    assert {topic for topic, _ in broker.taken} == INNOCENT


async def test_a_broker_without_qos_2_gets_qos_1_in_its_place():
    broker = PickyBroker(lambda _, qos: "hang up" if qos == 2 else "take")
    async with broker.serving() as url:
        link = speaker(url)
        async with running(link):
            link.publish("alert", b"breach", qos=2, keep=True)
            await until(lambda: broker.taken == [("alert", 1)] and link.waiting == 0)
            assert (link.qos_max, link.refused) == (1, 0)
            assert link.refusal == "it takes no QoS 2 (to alert), we go on with 1: set qos_max"
            link.publish("alert", b"breach", qos=2, keep=True)
            await until(lambda: len(broker.taken) == 2)
        assert broker.sessions == mqtt.REFUSALS_MAX + 2


async def test_a_link_told_of_its_broker_lowers_qos_from_the_start():
    broker = PickyBroker(lambda _, qos: "hang up" if qos == 2 else "take")
    async with broker.serving() as url:
        link = speaker(url, qos_max=1)
        async with running(link):
            link.publish("alert", b"breach", qos=2, keep=True)
            await until(lambda: broker.taken == [("alert", 1)] and link.waiting == 0)
        assert broker.sessions == 1


async def test_of_qos_2_one_message_alone_is_on_the_wire_and_holds_up_its_own_topic_only():
    link = speaker("mqtt://127.0.0.1:1")
    for topic, qos, keep in (
        ("a", 2, True),
        ("b", 1, True),
        ("a", 1, True),
        ("c", 2, True),
        ("c", 0, False),
        ("d", 0, False),
    ):
        link.publish(topic, b"%d" % qos, qos, keep=keep)
    assert [(message.topic, message.qos) for message in link._batch()] == [
        ("a", 2),
        ("b", 1),
        ("a", 1),
        ("d", 0),
    ]


async def test_a_silent_listener_does_not_hold_a_stop_for_more_than_its_bound():
    """Something accepts and never answers: the wait for CONNACK is bounded, and a stop closes the socket."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    link = speaker(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server:
        begun_s = time.monotonic()
        async with running(link):
            await asyncio.sleep(0.05)
        assert time.monotonic() - begun_s < mqtt.CONNECT_WAIT_MAX_S + mqtt.REPLY_WAIT_MAX_S + 1


async def test_garbage_from_the_broker_is_an_outage_and_not_a_crash():
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    link = speaker(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server, running(link):
        await asyncio.sleep(0.3)
        assert not link.connected


@needs_mosquitto
@pytest.mark.parametrize(
    ("login", "why"),
    [
        ({"username": "u", "password": "p" * 65_536}, "check host name, client id, user name"),
        ({"username": "u" * 65_536}, "check host name, client id, user name"),
    ],
)
async def test_a_login_that_no_packet_can_hold_is_an_outage_that_ends_with_it(broker, login, why):
    link = speaker(broker.url, **login)
    async with running(link):
        await until(lambda: why in link.fault)
        link._username, link.password = None, None  # as a renewed token takes the place of an old one
        await until(lambda: link.connected)


async def test_a_host_that_the_resolver_cannot_be_asked_for_is_an_outage_too(monkeypatch):
    link = speaker("mqtt://127.0.0.1")
    monkeypatch.setattr(link, "_host", "a..b")
    async with running(link):
        await until(lambda: "cannot be logged in to" in link.fault)


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_host_that_no_resolver_takes_is_refused_at_once(host):
    with pytest.raises(MqttConfigError, match=r"idna.*use mqtt://host:port"):
        speaker(f"mqtt://{host}")


def test_a_subscription_longer_than_mqtt_can_carry_is_refused_at_once():
    with pytest.raises(MqttConfigError, match="more than 65535 bytes"):
        listener("mqtt://127.0.0.1", "\u20ac" * 30_000)


async def test_a_broker_that_answers_too_few_subscriptions_is_an_outage():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(256)
        writer.write(b"\x20\x02\x00\x00")
        subscribe = await reader.read(256)
        writer.write(b"\x90\x03" + subscribe[2:4] + b"\x00")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link, _ = listener(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", "a", "b")
    async with server, running(link):
        await until(lambda: "2 subscriptions with 1 codes" in link.fault)


async def test_the_wait_between_attempts_grows_is_bounded_and_jittered():
    waits_s = [mqtt._backoff_s(failures) for failures in range(1000)]
    assert max(waits_s) <= mqtt.BACKOFF_MAX_S
    assert waits_s[0] <= mqtt.BACKOFF_MIN_S
    assert min(waits_s[20:]) >= mqtt.BACKOFF_MAX_S / 2
    assert len(set(waits_s[20:])) > 900


@needs_mosquitto
async def test_nothing_is_left_open_after_a_stop(broker):
    """A leaked socket is a ResourceWarning, and warnings are errors here; a leaked task is counted."""
    before = asyncio.all_tasks()
    link, _ = listener(broker.url, "#")
    async with running(link):
        await until(lambda: link.connected)
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


@needs_mosquitto
@pytest.mark.parametrize("step", ["subscribe", "__aexit__"])
async def test_a_cancellation_that_an_answer_swallows_ends_the_link_all_the_same(broker, monkeypatch, step):
    """As `asyncio.wait_for` of Python 3.11 does when both come at once; a TaskGroup cancels but once."""
    real, reached = getattr(aiomqtt.Client, step), asyncio.Event()

    async def answered(client, *args):
        try:
            return await real(client, *args)
        finally:
            reached.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60.0)

    async def part():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(link.run())

    monkeypatch.setattr(aiomqtt.Client, step, answered)
    link, _ = listener(broker.url, "#")
    running_part = asyncio.create_task(part())
    if step == "__aexit__":
        await until(lambda: link.connected)
        link._end_session(mqtt._Fault("is told to go"))
    await reached.wait()
    running_part.cancel()
    assert (await asyncio.wait({running_part}, timeout=10.0))[0]
    assert running_part.cancelled()


# -- configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:1883", "use mqtt://host:port"),
        ("http://127.0.0.1", "use mqtt://host:port"),
        ("mqtt://", "use mqtt://host:port"),
        ("mqtt://h:99999", "use mqtt://host:port"),
        ("mqtt://me:secret@h", "ends up in logs"),
    ],
)
async def test_a_wrong_url_is_refused_with_the_remedy_and_without_the_password(url, says):
    with pytest.raises(MqttConfigError, match=says) as caught:
        speaker(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"), [("mqtt://h", "h:1883"), ("mqtts://h", "h:8883"), ("mqtt://h:7", "h:7")]
)
async def test_a_port_has_its_default(url, address):
    assert speaker(url).address == address


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"client_id": ""}, "client_id is empty"),
        ({"subscriptions": (Subscription("a/#/b"),)}, "subscription 'a/#/b'"),
        ({"subscriptions": (Subscription("a", 2),)}, "qos 2; use 0 or 1"),
        ({"qos_max": 3}, "qos_max 3; use 0, 1 or 2"),
        ({"tls": Tls()}, "not mqtts://"),
        ({"url": "mqtts://h", "tls": Tls(ca_file="/nowhere/ca.pem")}, "/nowhere/ca.pem"),
    ],
)
async def test_what_no_reconnect_could_cure_is_refused_at_once(kwargs, says):
    with pytest.raises(MqttConfigError, match=says):
        MqttLink(**{"url": "mqtt://h", "client_id": "x", "on_message": Heard()} | kwargs)


# -- another broker, another loop -------------------------------------------------------------------------


async def test_the_demo_broker_understands_the_link():
    """amqtt, as embedded in the demo: QoS 0 and 1, retained messages, a reconnect."""
    amqtt_broker = pytest.importorskip("amqtt.broker", reason="amqtt comes with the rig extra")
    port = free_port()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = amqtt_broker.Broker(config)
    await broker.start()
    url = f"mqtt://127.0.0.1:{port}"
    ear, heard = listener(url, "order/+", qos=1)
    mouth = speaker(url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order/a", b"0", qos=0)
        mouth.publish("order/b", b"1", qos=1)
        await until(lambda: sorted(heard.payloads) == [b"0", b"1"])
        await broker.shutdown()
        await until(lambda: not ear.connected and not mouth.connected)
        broker = amqtt_broker.Broker(config)
        await broker.start()
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order/a", b"2", qos=1)
        await until(lambda: b"2" in heard.payloads)
    await broker.shutdown()


@needs_mosquitto
def test_under_uvloop_the_same_things_happen(broker):
    uvloop = pytest.importorskip("uvloop", reason="uvloop is for linux")

    async def scene() -> list[bytes]:
        ear, heard = listener(broker.url, "order")
        mouth = speaker(broker.url)
        async with running(ear, mouth):
            await until(lambda: ear.connected and mouth.connected)
            mouth.publish("order", b"1")
            await until(lambda: heard.payloads == [b"1"])
            broker.kill()
            await until(lambda: not ear.connected and not mouth.connected)
            broker.start()
            await until(lambda: ear.connected and mouth.connected)
            mouth.publish("order", b"2")
            await until(lambda: heard.payloads == [b"1", b"2"])
        return heard.payloads

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scene()) == [b"1", b"2"]
