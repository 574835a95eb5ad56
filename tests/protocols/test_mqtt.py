"""The MQTT link against real brokers on loopback: mosquitto as in production, amqtt as in the demo."""

import asyncio
import contextlib
import gc
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from protocols import mqtt
from protocols.mqtt import MqttConfigError, MqttLink, Outgoing, Subscription, Tls

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mosquitto:
    """A real broker that can be killed, frozen and brought back on the same port."""

    def __init__(self, folder: Path, extra: str = "allow_anonymous true\n") -> None:
        self.port = free_port()
        self._config = folder / f"mosquitto-{self.port}.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\npersistence false\nset_tcp_nodelay true\nlog_dest none\n{extra}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.005)
        raise AssertionError("mosquitto did not start")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


# Brokers are killed and frozen here, handshakes refused: what the libraries then leave to the collector is
# closed by it, with a warning that lands in whichever test runs by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    it = Mosquitto(tmp_path)
    it.start()
    yield it
    it.kill()


@contextlib.asynccontextmanager
async def running(*links: MqttLink) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(link.run()) for link in links]
    try:
        yield
    finally:
        done, waiting = set(), set(tasks)
        while waiting:  # as the services do: a cancellation may be lost in the farewell
            for task in waiting:
                task.cancel()
            ended, waiting = await asyncio.wait(waiting, timeout=0.5)
            done |= ended
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  any condition, not one event
            await asyncio.sleep(0.002)


class Heard(list[tuple[str, bytes, bool]]):
    def __call__(self, topic: str, payload: bytes, retained: bool) -> None:
        self.append((topic, payload, retained))

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self]


def listener(
    url: str, *topics: str, qos: int = 0, client_id: str = "ear", **kwargs
) -> tuple[MqttLink, Heard]:
    heard = Heard()
    subscriptions = tuple(Subscription(topic, qos) for topic in topics)
    return MqttLink(url, client_id=client_id, on_message=heard, subscriptions=subscriptions, **kwargs), heard


def speaker(url: str, **kwargs) -> MqttLink:
    return MqttLink(url, client_id="mouth", on_message=Heard(), **kwargs)


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
        await until(lambda: mouth.connected and not mouth._outbox)
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


async def test_topics_that_wait_are_bounded_and_the_loss_is_counted():
    link = speaker("mqtt://127.0.0.1:1")
    for number in range(mqtt.OUTBOX_TOPICS_MAX + 3):
        link.publish(f"t/{number}", b"")
    assert len(link._outbox) == mqtt.OUTBOX_TOPICS_MAX
    assert link.overflowed == 3
    assert "t/2" not in link._outbox
    assert f"t/{mqtt.OUTBOX_TOPICS_MAX + 2}" in link._outbox


async def test_an_oversized_payload_is_the_fault_of_the_caller():
    with pytest.raises(ValueError, match="262145 bytes, 262144 at most"):
        speaker("mqtt://127.0.0.1:1").publish("t", bytes(mqtt.PAYLOAD_MAX_BYTES + 1))


@needs_mosquitto
async def test_an_oversized_payload_from_outside_is_dropped_and_counted(broker, monkeypatch):
    ear, heard = listener(broker.url, "t")
    mouth = speaker(broker.url)
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        monkeypatch.setattr(mqtt, "PAYLOAD_MAX_BYTES", 20)
        mouth.publish("t", bytes(20))
        await until(lambda: len(heard) == 1)
        monkeypatch.setattr(mqtt, "PAYLOAD_MAX_BYTES", 10)
        mouth._outbox["t"] = Outgoing("t", bytes(11))
        mouth._wake.set()
        await until(lambda: ear.oversized == 1)
        mouth.publish("t", bytes(10))
        await until(lambda: len(heard) == 2)
    assert heard.payloads == [bytes(20), bytes(10)]


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
async def test_the_socket_does_not_wait_for_an_ack_before_it_sends(broker):
    link = speaker(broker.url)
    async with link._connect() as client:
        sock = mqtt._wire(client).socket()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


# -- what breaks ------------------------------------------------------------------------------------------


@needs_mosquitto
async def test_after_a_broker_restart_the_link_has_subscribed_again_and_delivers_the_newest(broker):
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
async def test_a_link_started_before_its_broker_says_why_it_waits_and_connects_when_it_comes(tmp_path):
    broker = Mosquitto(tmp_path)
    link = speaker(broker.url)
    async with running(link):
        await until(lambda: "refused" in link.fault)
        assert link.fault.startswith(
            f"broker 127.0.0.1:{broker.port} refused the connection: is mosquitto running"
        )
        assert not link.connected
        assert link.connected_since_s < 0
        broker.start()
        try:
            await until(lambda: link.connected)
            assert link.fault == ""
            assert 0 <= time.monotonic() - link.connected_since_s < 5
        finally:
            broker.kill()


@needs_mosquitto
async def test_a_frozen_broker_is_noticed_by_silence(broker):
    link = speaker(broker.url, keepalive_s=1)
    async with running(link):
        await until(lambda: link.connected)
        broker.send(signal.SIGSTOP)
        try:
            link.publish("t", b"x", qos=1)
            await until(lambda: not link.connected, within_s=4)
            assert "does not answer" in link.fault or "Keep alive" in link.fault
        finally:
            broker.send(signal.SIGCONT)
        await until(lambda: link.connected, within_s=8)


@needs_mosquitto
async def test_a_wrong_password_is_a_sentence_and_not_the_end(tmp_path):
    broker = Mosquitto(tmp_path, "allow_anonymous false\n")
    broker.start()
    link = speaker(broker.url, username="someone", password="unknown")
    try:
        async with running(link):
            await until(lambda: "login" in link.fault)
            assert "check user name, password and client id" in link.fault
    finally:
        broker.kill()


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
        ({"tls": Tls()}, "not mqtts://"),
        ({"url": "mqtts://h", "tls": Tls(ca_file="/nowhere/ca.pem")}, "/nowhere/ca.pem"),
    ],
)
async def test_what_no_reconnect_could_cure_is_refused_at_once(kwargs, says):
    with pytest.raises(MqttConfigError, match=says):
        MqttLink(**{"url": "mqtt://h", "client_id": "x", "on_message": Heard()} | kwargs)


# -- TLS --------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_broker(tmp_path: Path) -> Iterator[tuple[Mosquitto, Path]]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, no certificate to test with")
    ca = tmp_path / "ca.pem"
    key = tmp_path / "key.pem"
    request = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    )
    request += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {ca}"
    subprocess.run(request.split(), check=True, capture_output=True)
    key.chmod(0o644)  # mosquitto drops root
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    broker = Mosquitto(tmp_path, f"allow_anonymous true\ncertfile {ca}\nkeyfile {key}\n")
    broker.start()
    yield broker, ca
    broker.kill()


@needs_mosquitto
async def test_tls_works_with_the_ca_and_is_refused_without(tls_broker):
    broker, ca = tls_broker
    url = f"mqtts://127.0.0.1:{broker.port}"
    ear, heard = listener(url, "t", tls=Tls(ca_file=str(ca)))
    stranger = speaker(url)
    async with running(ear, stranger):
        await until(lambda: ear.connected)
        ear.publish("t", bytes(50_000))
        await until(lambda: len(heard) == 1)
        await until(lambda: "certificate" in stranger.fault)
        assert not stranger.connected
    gc.collect()


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
