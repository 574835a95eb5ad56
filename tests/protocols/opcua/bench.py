"""A device under test on a bench: its readings, a line that can fail, certificates, and the plant's server."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols.opcua import OpcUaDevice
from protocols.profile import Point, load_profile
from protocols.reading import Reading
from tests.brokers import free_port
from tests.node_peers import NodePeer

WITHIN_S = 12.0  # a machine that is busy with everybody's tests
SILENCE_MAX_S = 1.0
SPACE = "nsu=urn:powerblock:cdu;"


def point(name: str, node: str, unit: str, **fields: Any) -> Point:
    return Point(name=name, node=SPACE + node, unit=unit, **fields)


TEMPLATE = load_profile("opcua_cdu")
EXTRA = (
    point("name", "s=Cdu.Name", "text"),
    point("mode", "s=Cdu.Mode", "enum", access="rw", enum={0: "off", 1: "auto", 2: "manual"}),
    point("setpoint_c", "s=Cdu.Setpoint", "degC", access="rw", lowest=10, highest=60),
    point("stubborn", "s=Cdu.Stubborn", "count", access="rw"),
    point("locked", "s=Cdu.Locked", "count", access="rw"),
    point("serial", "s=Cdu.Serial", "count"),
    point("enabled", "s=Cdu.Running", "bool", access="rw"),
    point("speed_ratio", "s=Cdu.PumpSpeedPercent", "ratio", access="rw", scale=0.01, lowest=0, highest=1),
    point(
        "set_flow_l_per_min", "s=Cdu", "L/min", access="w", read_back=False, method=SPACE + "s=Cdu.SetFlow"
    ),
)
PROFILE = replace(TEMPLATE, points={**TEMPLATE.points, **{p.name: p for p in EXTRA}})


class Readings(list[Reading]):
    """All that was told; `now` holds the newest value of every point, as a consumer keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()
        self.now: dict[str, Any] = {}

    def put(self, reading: Reading) -> None:
        self.append(reading)
        self.now |= reading.values
        self._more.set()

    async def until(
        self, wanted: Callable[[Reading], Any] = lambda _reading: True, within_s: float = WITHIN_S
    ) -> Reading:
        """The first from now on that is wanted."""
        seen = len(self)
        try:
            async with asyncio.timeout(within_s):
                while True:
                    for reading in self[seen:]:
                        if wanted(reading):
                            return reading
                    seen = len(self)
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s; the last three: {self[-3:]}") from None

    async def until_whole(self) -> Reading:
        """The next that holds all points."""
        return await self.until(lambda r: "heat_w" in r.values and "flow_l_per_min" in r.values)


@contextlib.asynccontextmanager
async def watching(url: str, readings: Readings, **options: Any) -> AsyncIterator[OpcUaDevice]:
    """A device at work; a fault of the program comes out at the end."""
    options = {"profile": PROFILE, "silence_max_s": SILENCE_MAX_S, "clock": time.monotonic} | options
    device = OpcUaDevice("cdu", url, options.pop("profile"), on_reading=readings.put, **options)
    task = asyncio.create_task(device.run())
    try:
        yield device
        assert not task.done(), task.result()
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def healthy(reading: Reading) -> bool:
    return reading.link == "up" and not reading.fault


def whole(reading: Reading) -> bool:
    return healthy(reading) and "heat_w" in reading.values and "flow_l_per_min" in reading.values


def down(reading: Reading) -> bool:
    return reading.link == "down"


class Relay:
    """Stands between client and server: can fall silent without closing anything, or be slow.

    `mute`: what the client says still arrives, and no answer comes back.
    """

    def __init__(self, target_port: int, delay_s: float = 0.0) -> None:
        self.target_port, self.frozen, self.delay_s, self.tasks = target_port, False, delay_s, []
        self.mute = False
        self.connections = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"opc.tcp://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
        self.tasks += [
            asyncio.create_task(self._pump(reader, back)),
            asyncio.create_task(self._pump(there, writer, answers=True)),
        ]

    async def _pump(self, reader, writer, *, answers=False):
        try:
            while chunk := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not (self.frozen or (answers and self.mute)):
                    writer.write(chunk)
        except OSError:
            pass
        finally:
            writer.transport.abort()


class Plant(NodePeer):
    """The plant's server on node-opcua; see tests/node/plant_server.js for what it can be told."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.port = free_port()
        self.url = f"opc.tcp://127.0.0.1:{self.port}"
        settings = {"port": self.port, "pki": str(folder / f"pki-{self.port}"), **options}
        super().__init__("plant_server.js", PLANT=json.dumps(settings))

    async def __aenter__(self):
        await super().__aenter__()
        await self.until(lambda line: line.get("ready"), within_s=40.0)
        return self

    async def say(self, name: str, value: Any, **more: Any) -> None:
        await self.ask("set", name=name, value=value, **more)


class Pair(NamedTuple):
    """A certificate (PEM) and its key, in memory and as files."""

    cert: x509.Certificate
    key: rsa.RSAPrivateKey
    cert_file: Path
    key_file: Path

    @property
    def der(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.DER)


@cache  # making one takes longer than most tests
def private_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def pair(
    folder: Path,
    name: str,
    *,
    uri: str = "urn:plant:cdu",
    issuer: Pair | None = None,
    authority: bool = False,
    days: tuple[float, float] = (-1, 30),
    hosts: tuple[str, ...] = ("127.0.0.1",),
    key: rsa.RSAPrivateKey | None = None,
) -> Pair:
    """Self-signed, or issued by an authority; with all that OPC UA asks of a certificate."""
    key = key or private_key(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True,
        key_agreement=False, key_cert_sign=True, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    names = [x509.UniformResourceIdentifier(uri), x509.DNSName("localhost")]
    names += [x509.IPAddress(ip_address(host)) for host in hosts]
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer.key if issuer else key).public_key()),
            False,
        )
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key.pem"
    cert_file.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Pair(built, key, cert_file, key_file)


def revocation_list(authority: Pair, *revoked: Pair) -> bytes:
    """A list of the authority, in DER."""
    now = datetime.now(UTC)
    made = x509.CertificateRevocationListBuilder(authority.cert.subject, now, now + timedelta(days=1))
    for one in revoked:
        made = made.add_revoked_certificate(
            x509.RevokedCertificateBuilder(one.cert.serial_number, now).build()
        )
    return made.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def trust_folder(folder: Path, *trusted: Pair) -> Path:
    path = folder / "trust"
    for name in ("trusted", "issuers", "crl", "rejected"):
        (path / name).mkdir(parents=True, exist_ok=True)
    for one in trusted:
        (path / "trusted" / one.cert_file.name).write_bytes(one.cert_file.read_bytes())
    return path
