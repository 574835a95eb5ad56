"""Mutual TLS in mid-life: what changes on either side is a sentence, and cures itself when mended."""

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols import mqtt
from protocols.mqtt import MqttLink, Subscription, Tls
from tests.brokers import (
    Authority,
    Mosquitto,
    Nats,
    Pair,
    listener,
    needs_mosquitto,
    needs_nats,
    open_folder,
    running,
    speaker,
    until,
    write,
)

# Handshakes are refused here: what the libraries then leave to the collector is closed by it, with a warning
# that lands in whichever test runs by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(mqtt, "REPLY_WAIT_MAX_S", 0.3)
    monkeypatch.setattr(mqtt, "BACKOFF_MAX_S", 0.2)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as it:
        yield it


@pytest.fixture
def ca(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture
def foreign(folder: Path) -> Authority:
    return Authority(folder, "foreign")


@pytest.fixture(params=[pytest.param(Mosquitto, marks=needs_mosquitto), pytest.param(Nats, marks=needs_nats)])
def broker(request, folder: Path, ca: Authority) -> Iterator[Mosquitto | Nats]:
    """Demands a certificate of its own authority."""
    more = {"wants_client": True} if request.param is Mosquitto else {}
    with request.param(folder, authority=ca, **more) as it:
        yield it


class OurFiles:
    """Certificate and key under fixed names, as the link is configured, and as a renewal overwrites them."""

    def __init__(self, folder: Path, ca_file: str, pair: Pair) -> None:
        self._paths = folder / "our.crt", folder / "our.key"
        self.tls = Tls(ca_file, str(self._paths[0]), str(self._paths[1]))
        self.renew(pair)

    def renew(self, pair: Pair) -> None:
        for path, source in zip(self._paths, pair, strict=True):
            write(path, Path(source).read_bytes())


def both(url: str, tls: Tls):
    ear, heard = listener(url, "order", qos=1, tls=tls)
    return ear, speaker(url, tls=tls), heard


async def test_with_the_right_certificates_both_ways_work_and_a_restart_is_survived(broker, ca):
    ear, mouth, heard = both(broker.url, Tls(ca.ca_file, *ca.client("node-1")))
    async with running(ear, mouth):
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order", bytes(50_000), qos=1)
        await until(lambda: heard.payloads == [bytes(50_000)])
        ear.publish("order", b"own", qos=0)
        await until(lambda: heard.payloads[1:] == [b"own"])
        broker.kill()
        await until(lambda: not ear.connected and not mouth.connected)
        broker.start()
        await until(lambda: ear.connected and mouth.connected)
        mouth.publish("order", b"after", qos=1)
        await until(lambda: heard.payloads[2:] == [b"after"])


async def test_a_broker_that_comes_back_with_a_foreign_certificate_is_refused_until_it_shows_its_own(
    broker, ca, foreign
):
    ear, _ = listener(broker.url, "order", tls=Tls(ca.ca_file, *ca.client("node-1")))
    async with running(ear):
        await until(lambda: ear.connected)
        broker.present(foreign.server())
        broker.restart()
        await until(lambda: "shows a certificate that our CA file or its host name disproves" in ear.fault)
        assert not ear.connected
        broker.present(ca.server("somewhere.else.example"))
        broker.restart()
        await until(lambda: "IP address mismatch" in ear.fault)
        broker.present(ca.server())
        broker.restart()
        await until(lambda: ear.connected)
        assert ear.fault == ""


EXPIRED, STRANGE, NONE = (
    "finds our certificate expired",
    "does not know who issued",
    "wants a certificate from us",
)
AT_NATS = "will not have our certificate: check that it is of the right CA and not expired"  # says no more


@pytest.mark.parametrize(("wrong", "says"), [("expired", EXPIRED), ("foreign", STRANGE)])
async def test_a_certificate_of_ours_that_turns_wrong_is_named_and_its_renewal_needs_no_restart(
    broker, folder, ca, foreign, wrong, says
):
    files = OurFiles(folder, ca.ca_file, ca.client("node-1"))
    ear, _ = listener(broker.url, "order", tls=files.tls)
    async with running(ear):
        await until(lambda: ear.connected)
        files.renew(ca.expired_client("node-1") if wrong == "expired" else foreign.client("node-1"))
        broker.restart()
        await until(lambda: says in ear.fault or (isinstance(broker, Nats) and AT_NATS in ear.fault))
        assert not ear.connected
        files.renew(ca.client("node-1"))
        await until(lambda: ear.connected)
        assert ear.fault == ""


async def test_without_a_certificate_of_ours_we_are_told_to_configure_one(broker, ca):
    ear, _ = listener(broker.url, "order", tls=Tls(ca.ca_file))
    async with running(ear):
        await until(lambda: NONE in ear.fault or (isinstance(broker, Nats) and AT_NATS in ear.fault))


@needs_mosquitto
async def test_a_revoked_certificate_of_ours_is_named_and_a_new_one_needs_no_restart(folder, ca):
    first = ca.client("node-1")
    files = OurFiles(folder, ca.ca_file, first)
    with Mosquitto(folder, authority=ca, wants_client=True, revoked=True) as broker:
        ear, _ = listener(broker.url, "order", tls=files.tls)
        async with running(ear):
            await until(lambda: ear.connected)
            ca.revocation_list(first)
            broker.restart()
            await until(lambda: "finds our certificate revoked: get a new one" in ear.fault)
            files.renew(ca.client("node-1"))
            await until(lambda: ear.connected)


@needs_mosquitto
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("other key", "key values mismatch"),
        ("half a file", "PEM lib"),
        ("gone", "No such file"),
    ],
)
async def test_files_that_are_caught_in_the_middle_of_a_renewal_are_a_sentence(folder, ca, broken, says):
    files = OurFiles(folder, ca.ca_file, ca.client("node-1"))
    with Mosquitto(folder, authority=ca, wants_client=True) as broker:
        ear, _ = listener(broker.url, "order", tls=files.tls)
        async with running(ear):
            await until(lambda: ear.connected)
            other = ca.client("node-1")
            if broken == "other key":
                files.renew(Pair(other.cert_file, ca.client("node-1").key_file))
            elif broken == "half a file":
                write(folder / "our.key", "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ")
            else:
                (folder / "our.crt").unlink()
            broker.restart()
            await until(
                lambda: "was not called, our TLS files are no good" in ear.fault and says in ear.fault
            )
            files.renew(other)
            await until(lambda: ear.connected)


async def test_what_one_tls_record_holds_is_read_to_its_end_and_others_have_their_turn(ca, monkeypatch):
    """What is decrypted already wakes nobody, and in a flood there is always more of it."""
    monkeypatch.setattr(mqtt, "READ_TURN_PACKETS_MAX", 2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = 0
        while kind != 0xE0:  # DISCONNECT
            kind, length = await reader.readexactly(2)
            body = await reader.readexactly(length)
            if kind == 0x10:
                writer.write(b"\x20\x02\x00\x00")
            if kind == 0x82:
                writer.write(b"\x90\x03" + body[:2] + b"\x00" + 100 * b"\x30\x04\x00\x01tx")
        writer.close()

    turns = 0
    heard_in_turn = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*ca.server())
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    link = MqttLink(
        f"mqtts://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        client_id="ear",
        on_message=lambda *_: heard_in_turn.append(turns),
        subscriptions=(Subscription("t"),),
        tls=Tls(ca.ca_file),
    )
    async with server, running(link), asyncio.timeout(5):
        while len(heard_in_turn) < 100:
            turns += 1
            await asyncio.sleep(0)
    assert max(heard_in_turn.count(turn) for turn in heard_in_turn) <= 2


@needs_mosquitto
async def test_a_plain_port_and_a_plain_client_are_told_apart_from_a_dead_broker(folder, ca):
    with Mosquitto(folder) as plain, Mosquitto(folder, authority=ca) as encrypted:
        hopeful = speaker(plain.url.replace("mqtt:", "mqtts:"), tls=Tls(ca.ca_file))
        careless = speaker(encrypted.url.replace("mqtts:", "mqtt:"))
        async with running(hopeful, careless):
            await until(lambda: "check that the port speaks TLS" in hopeful.fault)
            await until(lambda: "does not answer" in careless.fault and "wants TLS" in careless.fault)


@needs_mosquitto
async def test_without_the_ca_of_the_broker_its_certificate_is_not_believed(folder, ca):
    with Mosquitto(folder, authority=ca) as broker:
        stranger = speaker(broker.url)
        async with running(stranger):
            await until(lambda: "shows a certificate that our CA file" in stranger.fault)
            assert not stranger.connected


@needs_mosquitto
def test_a_key_behind_a_password_is_refused_instead_of_asked_for_at_a_console(folder, ca):
    from cryptography.hazmat.primitives import serialization

    pair = ca.client("node-1")
    key = serialization.load_pem_private_key(Path(pair.key_file).read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    write(Path(pair.key_file), locked)
    with pytest.raises(mqtt.MqttConfigError, match="give readable PEM files that belong together"):
        speaker("mqtts://127.0.0.1:1", tls=Tls(ca.ca_file, *pair))
