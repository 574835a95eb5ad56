"""The VEN against a real VTN over HTTPS and a real mosquitto over TLS, both on loopback, both behaving badly."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firmware_sim.vtn import Broker, Vtn
from protocols.ven import Ven, VenConfigError, VenSettings, client, faults, notifier, outbox, reading
from protocols.ven import ven as rounds
from tests.brokers import Authority, Mosquitto, Pair, free_port, needs_mosquitto, open_folder, write

# Brokers are killed and handshakes refused here: what the libraries then leave to the collector is closed by
# it, with a warning that lands in whichever test runs by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CLIENT, SECRET = "block-1-client", "very secret"
PREFIX = "operator/7/"
LIMIT = {
    "programID": "p1",
    "intervalPeriod": {"start": "2026-11-21T18:00:00Z", "duration": "PT1H"},
    "intervals": [{"id": 0, "payloads": [{"type": "IMPORT_CAPACITY_LIMIT", "values": [4200.0]}]}],
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The same behaviour at thirty times the pace."""
    for module, name, value in (
        (client, "REQUEST_WAIT_MAX_S", 0.4),
        (rounds, "ROUND_GAP_S", 0.02),
        (client, "RETRY_MIN_S", 0.05),
        (client, "RETRY_MAX_S", 0.2),
        (notifier, "BROKER_LOOK_S", 0.05),
        (reading, "TOKEN_LIFE_MIN_S", 0.1),
    ):
        monkeypatch.setattr(module, name, value)


# -- the world --------------------------------------------------------------------------------------------


class Site:
    """The certificates of a site and its folder, and what a server or a client makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = Authority(folder)
        self.server = self.ca.server()
        self.stranger = self.ca.server("somewhere.else.example")
        self.client = self.ca.client("block-1")
        self.operator = self.ca.client("vtn")

    def serving(self, files: Pair | None = None, *, wants_client: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca.ca_file)
        context.load_cert_chain(*(files or self.server))
        context.verify_mode = ssl.CERT_REQUIRED if wants_client else ssl.CERT_NONE
        return context

    def calling(self, files: Pair | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca.ca_file)
        if files is not None:
            context.load_cert_chain(*files)
        return context

    def mosquitto(self, **kwargs) -> Mosquitto:
        return Mosquitto(self.folder, authority=self.ca, **kwargs)


@pytest.fixture(scope="session")
def pki() -> Iterator[Site]:
    with open_folder() as folder:
        yield Site(folder)


@pytest.fixture
def broker(pki: Site) -> Iterator[Mosquitto]:
    with pki.mosquitto() as it:
        yield it


def told(broker: Mosquitto, pki: Site, **kwargs) -> Broker:
    return Broker(broker.url, tls=pki.calling(), **kwargs)


def vtn_of(pki: Site, broker: Broker | None = None, **kwargs) -> Vtn:
    kwargs = {"tls": pki.serving(), "topic_prefix": PREFIX, "clients": {CLIENT: SECRET}, **kwargs}
    return Vtn(broker=broker, **kwargs)


class Receiver:
    """What a receiver makes of the callbacks: newest modificationDateTime wins, duplicates are nothing."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bool]] = []
        self.programs: dict[str, dict[str, Any]] = {}
        self.standing: dict[str, dict[str, Any]] = {}

    def on_program(self, program: dict[str, Any]) -> None:
        self.programs[program["id"]] = program

    def on_message(self, payload: bytes, retained: bool) -> None:
        assert not retained
        self.messages.append((payload, retained))
        try:
            said = json.loads(payload)
            event = {key.replace("_", "").lower(): value for key, value in said["object"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
        if "id" not in event:
            return
        known = self.standing.get(event["id"])
        date = event.get("modificationdatetime", "9999")
        if known is not None and date < known.get("modificationdatetime", "0001"):
            return
        if said["operation"] == "DELETE":
            self.standing.pop(event["id"], None)
        else:
            self.standing[event["id"]] = event

    @property
    def deletions(self) -> list[str]:
        said = [json.loads(payload) for payload, _ in self.messages if b'"DELETE"' in payload]
        return [one["object"]["id"] for one in said]


def ven_at(vtn: Vtn, pki: Site, **changes) -> tuple[Ven, Receiver]:
    receiver = Receiver()
    settings = {"url": vtn.url, "client_id": CLIENT, "client_secret": SECRET, "ven_name": "block-1"}
    settings |= {"ca_file": pki.ca.ca_file, "poll_s": 30.0, **changes}
    ven = Ven(VenSettings(**settings), on_message=receiver.on_message, on_program=receiver.on_program)
    return ven, receiver


@contextlib.asynccontextmanager
async def running(ven: Ven) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(ven.run())
    try:
        yield task
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done, "the VEN does not stop"


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  any condition, not one event
            await asyncio.sleep(0.005)


# -- enrolment, seed, notifications -----------------------------------------------------------------------


def password_file(pki: Site, **passwords: str) -> str:
    """Mosquitto's own format: PBKDF2 with SHA-512."""
    lines = []
    for user, password in passwords.items():
        salt = os.urandom(12)
        digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
        lines.append(f"{user}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n")
    return str(write(pki.folder / "passwords", "".join(lines)))


def bearer_setup(pki: Site) -> tuple[Mosquitto, Broker]:
    passwords = password_file(pki, vtn="own", **{CLIENT: "token-1"})
    it = pki.mosquitto(extra=f"allow_anonymous false\npassword_file {passwords}")
    authentication = {"method": "OAUTH2_BEARER_TOKEN", "username": "{clientID}"}
    return it, told(it, pki, username="vtn", password="own", authentication=authentication)


def certificate_setup(pki: Site) -> tuple[Mosquitto, Broker]:
    it = pki.mosquitto(
        wants_client=True, acl=f"user vtn\ntopic write #\nuser block-1\ntopic read {PREFIX}#\n"
    )
    cert, key = (Path(name).read_text() for name in pki.client)
    authentication = {"method": "CERTIFICATE", "clientCert": cert, "clientKey": key}
    authentication["caCert"] = pki.ca.ca_pem
    return it, Broker(it.url, tls=pki.calling(pki.operator), authentication=authentication)


def anonymous_setup(pki: Site) -> tuple[Mosquitto, Broker]:
    it = pki.mosquitto()
    return it, told(it, pki)


@needs_mosquitto
@pytest.mark.parametrize("setup", [anonymous_setup, bearer_setup, certificate_setup])
async def test_events_are_seeded_then_followed_with_each_authentication_of_the_standard(pki, setup):
    mosquitto, told_broker = setup(pki)
    with mosquitto:
        async with vtn_of(pki, told_broker) as vtn:
            vtn.issue_token = lambda: "token-1"
            vtn.create_program({"id": "p1", "programName": "capacity", "payloadDescriptors": []})
            before = vtn.create_event(LIMIT)["id"]
            ven, receiver = ven_at(vtn, pki)
            async with running(ven):
                await until(lambda: ven.status.state == "following")
                assert receiver.programs["p1"]["programName"] == "capacity"
                assert set(receiver.standing) == {before}
                after = vtn.create_event(LIMIT)["id"]
                await until(lambda: after in receiver.standing)
                vtn.update_event(after, {"priority": 3})
                await until(lambda: receiver.standing[after].get("priority") == 3)
                vtn.delete_event(after)
                await until(lambda: after not in receiver.standing)
                assert ven.status.notifications == 3
                assert ven.status.fault == ""
                assert ven.status.broker == f"127.0.0.1:{mosquitto.port}"


async def test_ven_and_resources_are_registered_once_and_found_again(pki):
    async with vtn_of(pki) as vtn:
        for _ in range(2):
            ven, _ = ven_at(vtn, pki, resources=("hall-a", "hall-b"))
            async with running(ven):
                await until(lambda ven=ven: ven.status.state == "polling")
                assert ven.status.ven_id == vtn.objects("VEN")[0]["id"]
        assert [one["venName"] for one in vtn.objects("VEN")] == ["block-1"]
        assert [one["resourceName"] for one in vtn.objects("RESOURCE")] == ["hall-a", "hall-b"]
        assert vtn.requests.count("POST /vens") == 1


async def test_a_name_that_is_taken_is_told_and_costs_no_event(pki):
    async with vtn_of(pki, clients={CLIENT: SECRET, "other": "s"}) as vtn:
        other, _ = ven_at(vtn, pki, client_id="other", client_secret="s")
        async with running(other):
            await until(lambda: other.status.ven_id)
        event = vtn.create_event(LIMIT)["id"]
        ven, receiver = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: event in receiver.standing)
            await until(lambda: "409, the name is taken by another client" in ven.status.fault)
            assert ven.status.state == "polling"


async def test_events_for_targets_we_were_granted_are_found_and_others_are_not(pki):
    async with vtn_of(pki) as vtn:
        ven, receiver = ven_at(vtn, pki, poll_s=0.05)
        async with running(ven):
            await until(lambda: ven.status.ven_id)
            vtn.grant("block-1", ["north", "feeder-7"])
            ours = [vtn.create_event({**LIMIT, "targets": [name]})["id"] for name in ("north", "feeder-7")]
            vtn.create_event({**LIMIT, "targets": ["south"]})
            await until(lambda: len(receiver.standing) >= 2)
            await asyncio.sleep(0.1)
            assert sorted(receiver.standing) == sorted(ours)
            vtn.grant("block-1", ["north"])  # the feeder's events are no longer ours
            await until(lambda: list(receiver.standing) == ours[:1])


async def test_all_pages_are_read(pki):
    async with vtn_of(pki) as vtn:
        made = {vtn.create_event(LIMIT)["id"] for _ in range(3 * client.PAGE_ITEMS)}
        ven, receiver = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: ven.status.state == "polling")
            assert set(receiver.standing) == made


@needs_mosquitto
async def test_without_topics_per_ven_those_of_the_programmes_are_heard_and_strangers_events_ignored(
    pki, broker
):
    async with vtn_of(pki, told(broker, pki), ven_topics=False) as vtn:
        vtn.create_program({"id": "p1", "programName": "one"})
        ven, receiver = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: ven.status.state == "following")
            vtn.create_event({**LIMIT, "targets": ["south"]})
            ours = vtn.create_event(LIMIT)["id"]
            await until(lambda: ours in receiver.standing)
            assert ven.status.notifications == 2
            assert list(receiver.standing) == [ours]


@needs_mosquitto
async def test_a_new_programme_is_followed_as_soon_as_it_is_announced(pki, broker):
    async with vtn_of(pki, told(broker, pki), ven_topics=False) as vtn:
        ven, receiver = ven_at(vtn, pki, poll_s=0.3)
        async with running(ven):
            await until(lambda: ven.status.state == "following")
            vtn.create_program({"id": "p2", "programName": "two"})
            await until(lambda: "p2" in receiver.programs)
            await until(lambda: vtn.requests.count("GET /notifiers/mqtt/topics/programs/p2/events") > 1)
            await until(lambda: ven.status.state == "following")
            event = vtn.create_event({**LIMIT, "programID": "p2"})["id"]
            await until(lambda: event in receiver.standing)


@needs_mosquitto
async def test_garbage_from_the_broker_is_passed_on_for_the_record(pki, broker):
    async with vtn_of(pki, told(broker, pki)) as vtn:
        ven, receiver = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: ven.status.state == "following")
            topic = f"{PREFIX}events/vens/{ven.status.ven_id}/create"
            for payload in (b"\xff", b"[]", b"{}", b'{"object": 7}', b"[" * 10_000):
                vtn._outbox.put_nowait((topic, payload))
            await until(lambda: len(receiver.messages) == 5)
            assert receiver.messages[0] == (b"\xff", False)
            assert ven.status.state == "following"


# -- what a VTN does to notifications ---------------------------------------------------------------------


@needs_mosquitto
@pytest.mark.parametrize("notify", ["snake", "duplicate", "reorder", "drop"])
async def test_however_notifications_come_the_receiver_ends_up_with_the_truth(pki, broker, notify):
    async with vtn_of(pki, told(broker, pki)) as vtn:
        ven, receiver = ven_at(vtn, pki, poll_s=0.3)
        async with running(ven):
            await until(lambda: ven.status.state == "following")
            vtn.notify = notify
            kept, gone = vtn.create_event(LIMIT)["id"], vtn.create_event(LIMIT)["id"]
            for priority in range(4):
                vtn.update_event(kept, {"priority": priority})
            vtn.delete_event(gone)
            await until(lambda: receiver.standing.get(kept, {}).get("priority") == 3)
            await until(lambda: gone not in receiver.standing)
            await asyncio.sleep(0.4)
            assert list(receiver.standing) == [kept]


async def test_an_event_deleted_while_the_list_was_on_its_way_stays_deleted(pki):
    async with vtn_of(pki) as vtn:
        ven, receiver = ven_at(vtn, pki)
    event = {"id": "e1", "objectType": "EVENT"}
    ven._on_notification("t", json.dumps({"operation": "DELETE", "object": event}).encode(), False)
    ven._tell_event(json.dumps(event).encode(), event)
    assert len(receiver.messages) == 1


# -- what vanishes ----------------------------------------------------------------------------------------


async def test_an_event_that_vanished_without_a_word_is_reported_as_deleted(pki):
    async with vtn_of(pki) as vtn:
        stays, goes = vtn.create_event(LIMIT)["id"], vtn.create_event(LIMIT)["id"]
        ven, receiver = ven_at(vtn, pki, poll_s=0.05)
        async with running(ven):
            await until(lambda: len(receiver.standing) == 2)
            vtn.delete_event(goes)
            await until(lambda: list(receiver.standing) == [stays])
            await asyncio.sleep(0.2)
            assert receiver.deletions == [goes]


async def test_an_event_missing_from_the_list_but_known_by_its_id_is_kept(pki):
    """A page boundary, or a VTN that lost its index, must not release anybody from a limit."""
    async with vtn_of(pki) as vtn:
        event = vtn.create_event(LIMIT)["id"]
        ven, receiver = ven_at(vtn, pki, poll_s=0.05)
        async with running(ven):
            await until(lambda: event in receiver.standing)
            vtn.faults["events"] = "empty"
            seen = vtn.requests.count(f"GET /events/{event}")
            await until(lambda: vtn.requests.count(f"GET /events/{event}") > seen + 2)
            assert receiver.deletions == []
            vtn.faults["events/"] = "error"
            await until(lambda: "the database is on fire" in ven.status.fault)
            assert receiver.deletions == []


# -- outages ----------------------------------------------------------------------------------------------


@needs_mosquitto
async def test_a_broker_that_comes_back_finds_us_with_all_that_was_missed(pki, broker):
    async with vtn_of(pki, told(broker, pki)) as vtn:
        goes = vtn.create_event(LIMIT)["id"]
        ven, receiver = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: ven.status.state == "following")
            await asyncio.sleep(0.1)  # the round that follows the connect
            broker.kill()
            await until(lambda: ven.status.state == "polling")
            assert "broker 127.0.0.1" in ven.status.fault
            vtn.notify = "drop"
            missed = vtn.create_event(LIMIT)["id"]
            vtn.delete_event(goes)
            await asyncio.sleep(0.1)
            assert missed not in receiver.standing
            broker.start()
            await until(lambda: list(receiver.standing) == [missed])
            assert ven.status.state == "following"
            assert ven.status.fault == ""


@needs_mosquitto
async def test_a_vtn_that_dies_leaves_the_broker_heard_and_is_found_again(pki, broker):
    async with vtn_of(pki, told(broker, pki)) as vtn:
        event = vtn.create_event(LIMIT)["id"]
        ven, receiver = ven_at(vtn, pki, poll_s=0.1)
        async with running(ven):
            await until(lambda: ven.status.state == "following")
            read_at_s = ven.status.last_success_s
            await vtn.stop()
            await until(lambda: "cannot be reached" in ven.status.fault)  # at first it may hang up
            assert ven.status.state == "listening"
            assert list(receiver.standing) == [event]
            await vtn.start()
            await until(lambda: ven.status.state == "following")
            assert ven.status.last_success_s > read_at_s
            assert ven.status.fault == ""
            assert receiver.deletions == []


async def test_a_vtn_that_is_not_there_yet_is_waited_for(pki):
    vtn = vtn_of(pki, port=free_port())
    ven, _ = ven_at(vtn, pki)
    assert ven.status.state == "starting"
    async with running(ven):
        await until(lambda: ven.status.state == "blind")
        assert ven.status.last_success_s < 0
        async with vtn:
            await until(lambda: ven.status.state == "polling")


@needs_mosquitto
async def test_a_dead_address_of_the_broker_gives_way_to_the_next(pki, broker, monkeypatch):
    monkeypatch.setattr(notifier, "BROKER_DOWN_MAX_S", 0.2)
    uris = (f"mqtts://127.0.0.1:{free_port()}", broker.url)
    async with vtn_of(pki, told(broker, pki, told_uris=uris)) as vtn:
        ven, _ = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: ven.status.state == "following")
            assert ven.status.broker == f"127.0.0.1:{broker.port}"


@needs_mosquitto
async def test_a_broker_that_moves_is_followed(pki, broker):
    with pki.mosquitto() as new:
        async with vtn_of(pki, told(broker, pki)) as vtn:
            ven, _ = ven_at(vtn, pki, poll_s=0.1)
            async with running(ven):
                await until(lambda: ven.status.state == "following")
                vtn.broker = told(new, pki)
                await until(lambda: ven.status.broker == f"127.0.0.1:{new.port}")
                await until(lambda: ven.status.state == "following")


@pytest.mark.parametrize("fault", [None, "absent"])
async def test_a_vtn_without_notifier_is_polled_and_that_is_no_fault(pki, fault):
    async with vtn_of(pki) as vtn:
        if fault:
            vtn.faults["notifiers"] = fault
        ven, receiver = ven_at(vtn, pki, poll_s=0.05)
        async with running(ven):
            await until(lambda: ven.status.state == "polling")
            event = vtn.create_event(LIMIT)["id"]
            await until(lambda: event in receiver.standing)
            assert ven.status.fault == ""


# -- tokens -----------------------------------------------------------------------------------------------


async def test_a_token_that_expires_in_mid_life_is_renewed_without_a_fault(pki):
    async with vtn_of(pki) as vtn:
        ven, _ = ven_at(vtn, pki, poll_s=0.05)
        async with running(ven):
            await until(lambda: ven.status.state == "polling")
            vtn.expire_tokens()
            read_at_s = ven.status.last_success_s
            await until(lambda: ven.status.last_success_s > read_at_s)
            assert ven.status.fault == ""
            assert vtn.tokens_issued == 2


async def test_a_token_is_renewed_before_it_expires(pki):
    async with vtn_of(pki, token_life_s=0.4) as vtn:
        ven, _ = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: vtn.tokens_issued == 4)
            assert ven.status.fault == ""
        expired = [one for one in vtn.requests if one == "POST /auth/token"]
        assert len(expired) == vtn.tokens_issued


@needs_mosquitto
async def test_a_broker_that_wants_the_token_gets_the_newest_one(pki):
    mosquitto, told_broker = bearer_setup(pki)
    with mosquitto:
        async with vtn_of(pki, told_broker) as vtn:
            vtn.issue_token = lambda: f"token-{vtn.tokens_issued + 1}"
            ven, receiver = ven_at(vtn, pki, poll_s=0.1)
            async with running(ven):
                await until(lambda: ven.status.state == "following")
                password_file(pki, vtn="own", **{CLIENT: "token-2"})
                vtn.expire_tokens()
                mosquitto.restart()
                await until(lambda: ven.status.state == "following" and vtn.tokens_issued == 2)
                event = vtn.create_event(LIMIT)["id"]
                await until(lambda: event in receiver.standing)


@needs_mosquitto
async def test_a_token_that_only_the_broker_dislikes_is_renewed_as_well(pki, monkeypatch):
    monkeypatch.setattr(notifier, "BROKER_DOWN_MAX_S", 0.3)
    mosquitto, told_broker = bearer_setup(pki)
    password_file(pki, vtn="own", **{CLIENT: "token-2"})
    with mosquitto:
        async with vtn_of(pki, told_broker) as vtn:
            vtn.issue_token = lambda: f"token-{vtn.tokens_issued + 1}"
            ven, _ = ven_at(vtn, pki)
            async with running(ven):
                await until(lambda: "refused the login" in ven.status.fault)
                await until(lambda: ven.status.state == "following")
                assert vtn.tokens_issued == 2


async def test_a_wrong_secret_is_a_sentence_that_does_not_repeat_it(pki):
    async with vtn_of(pki) as vtn:
        ven, _ = ven_at(vtn, pki, client_secret="a wrong one")
        async with running(ven):
            await until(lambda: "gives no token: 401 (invalid_client)" in ven.status.fault)
            assert "check client id and secret" in ven.status.fault
            assert "a wrong one" not in ven.status.fault + repr(ven._settings)


def test_a_token_in_the_wrong_format_is_not_shown():
    with pytest.raises(faults.VtnFault) as caught:
        reading.token(200, b"access_token=abc&token_type=Bearer")
    assert str(caught.value) == "the answer is not a JSON object"


@pytest.mark.parametrize(
    ("expires_in", "life_s"),
    [(3600, 3600.0), ("90", 90.0), (None, 86_400.0), ("soon", 86_400.0), (-5, 0.1), (1e300, 86_400.0)],
)
def test_the_life_of_a_token_is_taken_with_salt(expires_in, life_s):
    assert reading.life_s(expires_in) == life_s


# -- certificates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["ca", "host"])
async def test_a_vtn_with_a_wrong_certificate_gets_neither_secret_nor_token(pki, wrong):
    with open_folder() as folder:
        other = Site(folder)
        serving = other.serving() if wrong == "ca" else pki.serving(pki.stranger)
        async with vtn_of(pki, tls=serving) as vtn:
            ven, _ = ven_at(vtn, pki)
            async with running(ven):
                await until(lambda: "shows a certificate that our CA file or its host" in ven.status.fault)
                assert ven.status.state == "blind"
            assert vtn.requests == []


async def test_a_vtn_that_wants_our_certificate_gets_it(pki):
    async with vtn_of(pki, tls=pki.serving(wants_client=True)) as vtn:
        cert, key = pki.client
        ven, _ = ven_at(vtn, pki, cert_file=cert, key_file=key)
        async with running(ven):
            await until(lambda: ven.status.state == "polling")
        bare, _ = ven_at(vtn, pki)
        async with running(bare):
            await until(lambda: bare.status.state == "blind")
            assert bare.status.fault


async def test_a_certificate_renewed_on_disk_after_a_refusal_is_shown_without_a_restart(pki):
    with open_folder() as folder:
        stranger = Site(folder).client
        cert, key = folder / "our.crt", folder / "our.key"

        def renew(pair: Pair) -> None:
            for path, source in zip((cert, key), pair, strict=True):
                write(path, Path(source).read_bytes())

        renew(stranger)
        async with vtn_of(pki, tls=pki.serving(wants_client=True)) as vtn:
            ven, _ = ven_at(vtn, pki, cert_file=str(cert), key_file=str(key), poll_s=0.05)
            async with running(ven):
                await until(lambda: ven.status.state == "blind" and ven.status.fault)
                renew(pki.client)
                await until(lambda: ven.status.state == "polling" and not ven.status.fault)


@needs_mosquitto
async def test_a_broker_with_a_wrong_certificate_is_not_listened_to_but_polling_goes_on(pki, broker):
    with open_folder() as folder:
        other = Site(folder)
        authentication = {"method": "CERTIFICATE", "caCert": other.ca.ca_pem}
        async with vtn_of(pki, told(broker, pki, authentication=authentication)) as vtn:
            event = vtn.create_event(LIMIT)["id"]
            ven, receiver = ven_at(vtn, pki, poll_s=0.1)
            async with running(ven):
                await until(lambda: "certificate that our CA file" in ven.status.fault)
                assert ven.status.state == "polling"
                assert event in receiver.standing


@pytest.mark.parametrize(
    ("authentication", "uris", "says"),
    [
        ({"method": "CERTIFICATE", "clientCert": "no PEM"}, (), "notifier cannot be used"),
        ({"method": "KERBEROS"}, (), "wants authentication by KERBEROS, which OpenADR 3.1 has not"),
        ({"method": "ANONYMOUS"}, ("mqtt://127.0.0.1:1883",), "is not encrypted; use mqtts://"),
        ({"method": "ANONYMOUS"}, ("wss://127.0.0.1/x",), "use mqtts://host"),
        ({"method": "ANONYMOUS"}, ("mqtts://[",), "use mqtts://host"),
    ],
)
async def test_a_notifier_that_cannot_be_used_is_a_sentence_and_polling_goes_on(
    pki, authentication, uris, says
):
    told_broker = Broker(
        "mqtts://127.0.0.1:1", tls=pki.calling(), told_uris=uris, authentication=authentication
    )
    async with vtn_of(pki, told_broker) as vtn:
        ven, _ = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: says in ven.status.fault and ven.status.state == "polling")


# -- a VTN that misbehaves --------------------------------------------------------------------------------

SAYS = {
    "cut": "broke off in the middle",
    "endless": "more than 1000 items",
    "error": "500 (Internal Server Error, the database is on fire)",
    "forbid": "403, it forbids that",
    "garbage": "not a JSON list",
    "hang": "does not answer within",
    "html": "not a JSON list: <html>",
    "huge": f"an answer of more than {client.BODY_MAX_BYTES} bytes",
    "mixed": "4 items without a readable id",
    "redirect": "302, a redirection: our token goes only where the settings say",
}


@pytest.mark.parametrize("fault", SAYS)
async def test_a_listing_that_goes_wrong_is_a_sentence_releases_nobody_and_passes(pki, fault):
    async with vtn_of(pki) as vtn:
        event = vtn.create_event(LIMIT)["id"]
        ven, receiver = ven_at(vtn, pki, poll_s=0.1)
        async with running(ven):
            await until(lambda: event in receiver.standing)
            vtn.faults["events"] = fault
            await until(lambda: SAYS[fault] in ven.status.fault)
            assert ven.status.state == ("polling" if fault == "mixed" else "blind")
            assert event in receiver.standing
            assert receiver.deletions == []
            vtn.faults.clear()
            await until(lambda: ven.status.state == "polling" and not ven.status.fault)
            assert event in receiver.standing


@pytest.mark.parametrize("path", ["auth/server", "auth/token", "vens", "programs", "notifiers", "resources"])
@pytest.mark.parametrize("fault", ["error", "hang", "garbage", "huge", "redirect"])
async def test_a_fault_elsewhere_is_a_sentence_and_costs_events_only_when_it_costs_the_token(
    pki, path, fault
):
    async with vtn_of(pki) as vtn:
        vtn.faults[path] = fault
        event = vtn.create_event(LIMIT)["id"]
        ven, receiver = ven_at(vtn, pki, resources=("hall-a",))
        async with running(ven):
            await until(lambda: ven.status.fault)
            if path.startswith("auth/"):
                assert "gives no token" in ven.status.fault
                assert ven.status.state == "blind"
                vtn.faults.clear()
            await until(lambda: event in receiver.standing and ven.status.state == "polling")


async def test_a_vtn_that_cannot_skip_is_read_once_and_not_for_ever(pki):
    async with vtn_of(pki) as vtn:
        vtn.faults["events"] = "stuck"
        ven, receiver = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: ven.status.state == "polling")
            assert len(receiver.standing) == client.PAGE_ITEMS
            assert vtn.requests.count("GET /events") == 2


async def test_a_round_that_takes_too_long_ends_and_says_so(pki, monkeypatch):
    monkeypatch.setattr(rounds, "ROUND_WAIT_MAX_S", 0.2)
    async with vtn_of(pki) as vtn:
        vtn.faults["programs"] = "hang"
        ven, _ = ven_at(vtn, pki)
        async with running(ven):
            await until(lambda: "needs more than 0.2 s for all we ask" in ven.status.fault)


async def test_what_a_vtn_says_is_shown_short_and_on_one_line(pki):
    assert faults.shown("a\nb\x1b[31m" + "x" * 500) == "a?b?[31m" + "x" * 112 + "..."


# -- reports ----------------------------------------------------------------------------------------------

REPORT = {"eventID": "e1", "resources": [{"resourceName": "AGGREGATED_REPORT", "intervals": []}]}


async def test_a_report_reaches_the_vtn_in_our_name(pki):
    async with vtn_of(pki) as vtn:
        ven, _ = ven_at(vtn, pki)
        async with running(ven):
            ven.report(REPORT)
            await until(lambda: vtn.reports)
            assert vtn.reports == [{**REPORT, "clientName": "block-1"}]
            await until(lambda: ven.status.reports_sent == 1)


async def test_reports_wait_for_a_vtn_and_the_oldest_make_room(pki):
    async with vtn_of(pki) as vtn:
        vtn.faults["auth/token"] = "error"
        ven, _ = ven_at(vtn, pki)
        async with running(ven):
            for number in range(outbox.REPORTS_MAX + 3):
                ven.report({**REPORT, "reportName": str(number)})
            await until(lambda: "report: " in ven.status.fault)
            assert (ven.status.reports_waiting, ven.status.reports_lost) == (outbox.REPORTS_MAX, 3)
            vtn.faults.clear()
            await until(lambda: ven.status.reports_waiting == 0)
            assert [one["reportName"] for one in vtn.reports] == [
                str(number) for number in range(3, outbox.REPORTS_MAX + 3)
            ]
            assert "report" not in ven.status.fault


@pytest.mark.parametrize("fault", ["forbid", "error"])
async def test_a_report_the_vtn_will_not_have_does_not_block_the_next(pki, fault):
    async with vtn_of(pki) as vtn:
        vtn.faults["reports"] = fault
        ven, _ = ven_at(vtn, pki)
        async with running(ven):
            ven.report(REPORT)
            await until(lambda: ven.status.reports_lost == 1)
            tries = {"forbid": 1, "error": outbox.REPORT_TRIES_MAX}[fault]
            assert vtn.requests.count("POST /reports") == tries
            vtn.faults.clear()
            ven.report({**REPORT, "eventID": "e2"})
            await until(lambda: vtn.reports)
            assert [one["eventID"] for one in vtn.reports] == ["e2"]


@pytest.mark.parametrize("report", [{}, {"eventID": "e"}, {**REPORT, "x": object()}, {**REPORT, "x": float}])
async def test_a_report_that_is_none_is_the_fault_of_the_caller(pki, report):
    async with vtn_of(pki) as vtn:
        ven, _ = ven_at(vtn, pki)
    with pytest.raises(ValueError, match="report: "):
        ven.report(report)


# -- settings, faults of the program ----------------------------------------------------------------------

GOOD = VenSettings(url="https://vtn.example/x", client_id="c", client_secret="s", ven_name="v")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "http://vtn.example"}, "url: .* is not encrypted; use https://, or set plain"),
        ({"url": "vtn.example"}, "url: .*use https://host"),
        ({"url": "https://me:secret@vtn.example"}, "a password in a url ends up in logs"),
        ({"token_url": "http://vtn.example/t"}, "token_url: .* is not encrypted"),
        ({"ven_name": ""}, "ven_name: empty"),
        ({"client_secret": ""}, "client_secret: empty"),
        ({"poll_s": 0.0}, "poll_s: 0; give seconds above 0"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file /nowhere/ca.pem"),
    ],
)
def test_wrong_settings_are_refused_at_once_with_the_remedy(change, says):
    with pytest.raises(VenConfigError, match=says):
        replace(GOOD, **change)


async def test_plain_http_works_where_the_settings_say_so(pki):
    async with vtn_of(pki, tls=None) as vtn:
        ven, _ = ven_at(vtn, pki, plain=True)
        async with running(ven):
            await until(lambda: ven.status.state == "polling")


async def test_a_receiver_that_fails_ends_the_run(pki):
    def fail(_payload: bytes, _retained: bool) -> None:
        raise ZeroDivisionError

    async with vtn_of(pki) as vtn:
        vtn.create_event(LIMIT)
        ven, receiver = ven_at(vtn, pki)
        broken = Ven(ven._settings, on_message=fail, on_program=receiver.on_program)
        async with asyncio.timeout(5):
            with pytest.raises(ExceptionGroup) as caught:
                await broken.run()
        assert caught.group_contains(ZeroDivisionError)


@needs_mosquitto
async def test_a_receiver_that_fails_on_a_notification_ends_the_run_too(pki, broker):
    def fail(payload: bytes, _retained: bool) -> None:
        if b'"CREATE"' in payload:  # never so in what a round tells
            raise ZeroDivisionError

    async with vtn_of(pki, told(broker, pki)) as vtn:
        ven, receiver = ven_at(vtn, pki)
        broken = Ven(ven._settings, on_message=fail, on_program=receiver.on_program)
        run = asyncio.create_task(broken.run())
        await until(lambda: broken.status.state == "following")
        vtn.create_event(LIMIT)
        await asyncio.wait({run}, timeout=5)
        assert run.done()
        with pytest.raises(ExceptionGroup) as caught:
            run.result()
        assert caught.group_contains(ZeroDivisionError)
