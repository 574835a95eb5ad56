"""Real brokers on loopback, and a certificate authority for them: what tests of MQTT need.

Two brokers, because sites have two: mosquitto is the block's own, nats-server is what NVIDIA's DSX Exchange
speaks MQTT with. Both run as nobody, on a free port of their own, and can be killed, frozen and brought back
on the same port. Their certificates are files under fixed names: `present` puts others there, and the next
start shows them.

Everything lies in a folder of `open_folder`, which nobody may read; pytest's own are closed to it.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from protocols.mqtt import MqttLink, Subscription

SBIN = "/usr/sbin:/usr/local/sbin"  # where Debian puts servers, and not every PATH leads
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path=SBIN)
NATS = shutil.which("nats-server") or shutil.which("nats-server", path=SBIN)
START_WAIT_MAX_S = (
    10.0  # mosquitto takes 10 ms, nats-server with its store 50 ms; a busy machine takes longer
)

needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None, reason="no mosquitto here: install the package mosquitto"
)
needs_nats = pytest.mark.skipif(NATS is None, reason="no nats-server here: install the package nats-server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that any user may read and write, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="brokers-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o644)
    return path


# -- certificates -----------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A certificate with its chain and its key, as PEM files."""

    cert_file: str
    key_file: str


class Authority:
    """A certificate authority and all that it ever issued."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name = folder, name
        self._ca = trustme.CA()
        self.ca_pem = self._ca.cert_pem.bytes().decode()
        self.ca_file = str(write(folder / f"{name}.pem", self.ca_pem))
        self._issued = 0

    def server(self, host: str = "127.0.0.1") -> Pair:
        return self._issue(self._ca.issue_cert(host))

    def client(self, common_name: str) -> Pair:
        return self._issue(self._ca.issue_cert(f"{common_name}.example", common_name=common_name))

    def expired_client(self, common_name: str) -> Pair:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        made = self._ca.issue_cert(f"{common_name}.example", common_name=common_name, not_after=yesterday)
        return self._issue(made)

    def revocation_list(self, *revoked: Pair) -> str:
        """A CRL that names these; returns its file."""
        now = datetime.now(UTC)
        authority = x509.load_pem_x509_certificate(self.ca_pem.encode())
        key: Any = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        crl = x509.CertificateRevocationListBuilder(
            authority.subject, now - timedelta(hours=1), now + timedelta(days=1)
        )
        for pair in revoked:
            serial = x509.load_pem_x509_certificate(Path(pair.cert_file).read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder(serial, now - timedelta(hours=1)).build()
            crl = crl.add_revoked_certificate(entry)
        text = crl.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return str(write(self._folder / f"{self._name}.crl", text))

    def _issue(self, made: trustme.LeafCert) -> Pair:
        self._issued += 1
        stem = self._folder / f"{self._name}-{self._issued}"
        chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
        write(stem.with_suffix(".crt"), chain)
        write(stem.with_suffix(".key"), made.private_key_pem.bytes())
        return Pair(f"{stem}.crt", f"{stem}.key")


# -- brokers ----------------------------------------------------------------------------------------------


class _Broker:
    """A child process with a port. Used as a context it is started, and gone afterwards."""

    def __init__(self, folder: Path, command: list[str], *, encrypted: bool) -> None:
        self.port = free_port()
        self._stem = folder / f"broker-{self.port}"
        self._command = command
        self.url = f"{'mqtts' if encrypted else 'mqtt'}://127.0.0.1:{self.port}"
        self.log_file = self._stem.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def present(self, server: Pair) -> None:
        """From the next start on, this is the certificate that clients see."""
        for source, suffix in zip(server, (".crt", ".key"), strict=True):
            write(self._stem.with_suffix(suffix), Path(source).read_bytes())

    def start(self) -> None:
        as_nobody: dict[str, Any] = (
            {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        )
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, **as_nobody)
        deadline_s = time.monotonic() + START_WAIT_MAX_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.005)
        raise AssertionError(f"{self._command[0]} did not start: {self.log_file.read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Mosquitto(_Broker):
    """Debian's mosquitto.

    Args:
        folder: of `open_folder`.
        authority: with it the broker speaks TLS alone; whom it lets in then depends on `wants_client`.
        wants_client: a certificate of the authority is demanded, its common name is the user's name.
        acl: text of the access list; empty: everybody may everything.
        revoked: a list of revoked certificates is consulted, empty at first; see `revoke`.
        extra: further lines of configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authority: Authority | None = None,
        wants_client: bool = False,
        acl: str = "",
        revoked: bool = False,
        extra: str = "",
    ) -> None:
        assert MOSQUITTO is not None
        super().__init__(folder, [MOSQUITTO, "-c"], encrypted=authority is not None)
        config = self._stem.with_suffix(".conf")
        self._command.append(str(config))
        lines = ["persistence false", "set_tcp_nodelay true", "log_dest stderr", "log_type error"]
        lines += [f"listener {self.port} 127.0.0.1"]
        if authority is not None:
            self.present(authority.server())
            lines += [f"cafile {authority.ca_file}"]
            lines += [f"certfile {self._stem}.crt", f"keyfile {self._stem}.key"]
        if wants_client:
            lines += ["require_certificate true", "use_identity_as_username true"]
        if revoked:
            assert authority is not None
            lines += [f"crlfile {authority.revocation_list()}"]
        if acl:
            lines += [f"acl_file {write(self._stem.with_suffix('.acl'), acl)}"]
        if "allow_anonymous" not in extra:
            lines += [f"allow_anonymous {'false' if wants_client else 'true'}"]
        write(config, "\n".join([*lines, extra, ""]))


class Nats(_Broker):
    """Debian's nats-server, speaking MQTT 3.1.1 over its JetStream store, which survives a restart.

    Args:
        folder: of `open_folder`.
        authority: with it the MQTT port speaks TLS and demands a certificate of this authority.
        users: text of the `users` list; with it the certificate's subject picks the user and what it may.
    """

    def __init__(self, folder: Path, *, authority: Authority | None = None, users: str = "") -> None:
        assert NATS is not None
        super().__init__(folder, [NATS, "-c"], encrypted=authority is not None)
        config = self._stem.with_suffix(".conf")
        self._command.append(str(config))
        tls = ""
        if authority is not None:
            self.present(authority.server())
            tls = (
                f'tls {{ cert_file: "{self._stem}.crt", key_file: "{self._stem}.key", '
                f'ca_file: "{authority.ca_file}", {"verify_and_map" if users else "verify"}: true }}'
            )
        write(
            config,
            f'server_name: "block"\nlisten: "127.0.0.1:-1"\n'
            f'jetstream {{ store_dir: "{self._stem}", max_mem: 64M, max_file: 256M }}\n'
            f'mqtt {{ listen: "127.0.0.1:{self.port}"\n{tls} }}\n' + users,
        )


# -- links ------------------------------------------------------------------------------------------------


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


FLOOD_TURN_S = 0.002  # what falls due in this time is written at once


def flood(port: int, topic: str, *, messages_per_s: float, for_s: float) -> None:
    """Publishes numbers with QoS 0, by hand: no client library is in its way. Blocks."""
    name = topic.encode()
    count, sent, begun_s = int(messages_per_s * for_s), 0, time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 5.0) as sock:
        sock.sendall(b"\x10\x11\0\4MQTT\4\2\0\0\0\5flood")  # CONNECT, clean session, no keepalive
        assert sock.recv(4) == b"\x20\2\0\0"  # CONNACK
        while sent < count:
            due = min(count, int((time.monotonic() - begun_s) * messages_per_s))
            bodies = (struct.pack("!H", len(name)) + name + b"%d" % number for number in range(sent, due))
            sock.sendall(b"".join(b"\x30" + bytes([len(body)]) + body for body in bodies))
            sent = due
            time.sleep(FLOOD_TURN_S)
        sock.sendall(b"\xe0\0")
