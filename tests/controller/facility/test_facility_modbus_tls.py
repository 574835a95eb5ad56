"""Modbus/TCP Security: who has no certificate gets no connection, who has no role writes nothing."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
import struct
import time

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sunspec2.modbus.modbus import ModbusClientException

from controller.commands import writer_of
from controller.facility.modbus import native, sunspec
from controller.facility.modbus.registers import REQUEST, REQUEST_AT
from controller.facility.modbus.server import ModbusFacility
from controller.image.model import Role
from protocols.modbus.server import ROLE, holder
from tests.controller.facility.modbus_site import Site, config, serving
from tests.controller.facility.test_facility_modbus import master_of
from tests.controller.facility.test_facility_modbus_sunspec import Client

# handshakes are refused here: what the loop then leaves to the collector is closed by it, with a warning
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LOOPBACK = ipaddress.ip_address("127.0.0.1")
NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
SEQ = struct.pack(">BHH", 6, 112, 1)


class Authority:
    """Issues certificates with a role, and revokes them."""

    def __init__(self, folder):
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "site CA")])
        self._serial = 100
        usage = x509.KeyUsage(*[True, *[False] * 4, True, True, False, False])
        self.certificate = (
            self._begun(self._name, self._key.public_key(), NOW + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.path = self._written("ca.pem", self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name, roles=(), *, ends=NOW + DAY, raw=None):
        """Paths of certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = self._begun(subject, key.public_key(), ends).add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(LOOPBACK)]), critical=False
        )
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        for role in roles:
            value = bytes((0x0C, len(role))) + role.encode() if raw is None else raw
            made = made.add_extension(x509.UnrecognizedExtension(ROLE, value), critical=False)
        certificate = made.sign(self._key, hashes.SHA256())
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        cert = self._written(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        return certificate, cert, self._written(f"{name}.key", secret)

    def revoke(self, *certificates):
        """Path of a revocation list."""
        made = x509.CertificateRevocationListBuilder(self._name, NOW - DAY, NOW + DAY)
        for one in certificates:
            made = made.add_revoked_certificate(
                x509.RevokedCertificateBuilder(one.serial_number, NOW - DAY).build()
            )
        return self._written(
            "crl.pem", made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )

    def _begun(self, subject, key, ends):
        self._serial += 1
        return x509.CertificateBuilder(self._name, subject, key, self._serial, min(NOW, ends) - DAY, ends)

    def _written(self, name, content):
        path = self._folder / name
        path.write_bytes(content)
        return path


@pytest.fixture
def ca(tmp_path):
    return Authority(tmp_path)


@contextlib.asynccontextmanager
async def secured(site, ca, crl=None, **changes):
    _, cert, key = ca.issue("server")
    tls = {"port": 0, "ca": ca.path, "cert": cert, "key": key, "crl": crl}
    async with serving(site, port=None, tls=tls, **changes) as facility:
        yield facility


async def ask(facility, ca, cert, key, pdu, unit=2):
    """The reply to one request. Raises OSError or EOFError where there is no connection."""
    context = ssl.create_default_context(cafile=ca.path)
    if cert is not None:
        context.load_cert_chain(cert, key)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", facility.servers[0].port, ssl=context, server_hostname="localhost"
    )
    try:
        writer.write(struct.pack(">HHHB", 1, 0, len(pdu) + 1, unit) + pdu)
        async with asyncio.timeout(5):
            head = await reader.readexactly(7)
            return await reader.readexactly(struct.unpack(">H", head[4:6])[0] - 1)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


READ = bytes((3, 0, 0, 0, 2))


async def test_the_certificates_role_decides_and_its_name_is_in_the_command(ca):
    site = Site()
    async with secured(site, ca) as facility:
        for name, roles, refused in (
            ("viewer", ("observe",), True),
            ("nobody", (), True),
            ("unknown", ("king",), True),
            ("operator", ("operate",), False),
            ("chief", ("engineer",), False),
        ):
            _, cert, key = ca.issue(name, roles)
            assert (await ask(facility, ca, cert, key, READ))[0] == 3
            written = await ask(facility, ca, cert, key, bytes((16, 0, 100, 0, 1, 2, 0, 2)))
            assert written == (bytes((0x90, 1)) if refused else bytes((16, 0, 100, 0, 1)))
            await ask(facility, ca, cert, key, SEQ)
            await asyncio.sleep(0.05)
        assert [(command.by, command.role) for command in site.commands] == [
            ("operator", Role.OPERATE),
            ("chief", Role.ENGINEER),
        ]


async def test_a_sites_own_role_names_are_mapped(ca):
    site = Site()
    _, cert, key = ca.issue("plc", ("GridService",))
    async with secured(site, ca, roles={"GridService": "operate"}) as facility:
        assert (await ask(facility, ca, cert, key, SEQ))[0] == 6


async def test_the_right_role_from_the_wrong_network_writes_nothing(ca):
    site = Site()
    _, cert, key = ca.issue("operator", ("operate",))
    async with secured(site, ca, write_allow=("127.0.0.9",)) as facility:
        assert await ask(facility, ca, cert, key, SEQ) == bytes((0x86, 1))
    assert site.commands == []


async def test_without_a_certificate_of_the_sites_authority_there_is_no_connection(ca, tmp_path):
    foreign = trustme.CA()
    stranger = foreign.issue_cert("stranger")
    stranger.private_key_pem.write_to_path(tmp_path / "stranger.key")
    stranger.cert_chain_pems[0].write_to_path(tmp_path / "stranger.pem")
    _, expired, expired_key = ca.issue("expired", ("operate",), ends=NOW - DAY)
    async with secured(Site(), ca) as facility:
        for cert, key in (
            (None, None),
            (tmp_path / "stranger.pem", tmp_path / "stranger.key"),
            (expired, expired_key),
        ):
            with pytest.raises((OSError, EOFError)):
                await ask(facility, ca, cert, key, READ)
        assert facility.servers[0].connections == 0
        assert facility.servers[0].counts.requests == 0


async def test_a_revoked_certificate_is_refused_from_its_next_connection_on(ca):
    certificate, cert, key = ca.issue("operator", ("operate",))
    crl = ca.revoke()
    async with secured(Site(), ca, crl=crl) as facility:
        assert (await ask(facility, ca, cert, key, READ))[0] == 3
        ca.revoke(certificate)
        with pytest.raises((OSError, EOFError)):
            await ask(facility, ca, cert, key, READ)


async def test_a_plain_master_on_the_secure_port_is_let_go_and_others_are_served(ca, monkeypatch):
    monkeypatch.setattr("protocols.modbus.server.HANDSHAKE_S", 0.3)
    _, cert, key = ca.issue("operator", ("operate",))
    async with secured(Site(), ca) as facility:
        reader, writer = await asyncio.open_connection("127.0.0.1", facility.servers[0].port)
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", facility.servers[0].port)
        writer.write(struct.pack(">HHHB", 1, 0, 6, 2) + READ)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert len(await reader.read()) < 9  # at most a TLS alert
            with contextlib.suppress(ConnectionError):
                assert await silent.read() == b""  # who says nothing is let go, too
        assert (await ask(facility, ca, cert, key, READ))[0] == 3
        writer.close()
        silent_writer.close()


def test_a_name_holds_nothing_that_a_terminal_would_obey():
    made = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a\x1b[2J")])
    key = ec.generate_private_key(ec.SECP256R1())
    evil = x509.CertificateBuilder(made, made, key.public_key(), 1, NOW - DAY, NOW + DAY).sign(
        key, hashes.SHA256()
    )
    assert holder(evil.public_bytes(serialization.Encoding.DER)) == ("a[2J", "")
    assert holder(b"no certificate") == ("", "")


async def test_a_certificate_that_is_not_there_is_known_at_the_start(ca, tmp_path):
    missing = {"port": 0, "ca": ca.path, "cert": tmp_path / "none.pem", "key": tmp_path / "none.key"}
    facility = ModbusFacility(config(port=None, tls=missing), Site(), version="1", now_s=time.monotonic)
    with pytest.raises(ExceptionGroup) as failed:
        await facility.run()
    assert failed.group_contains(FileNotFoundError)


async def test_a_sunspec_client_in_tls_limits_the_block_as_its_role_allows(ca):
    site = Site()
    _, cert, key = ca.issue("operator", ("operate",))
    _, viewer, viewer_key = ca.issue("viewer", ("observe",))
    async with secured(site, ca) as facility:
        port = facility.servers[0].port
        async with Client(port, tls=True, cafile=ca.path, certfile=cert, keyfile=key) as client:
            await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
            assert site.asked == [("set_power_limit", {"limit_w": 7000.0})]
        async with Client(port, tls=True, cafile=ca.path, certfile=viewer, keyfile=viewer_key) as client:
            assert client.model(213).W.cvalue == pytest.approx(9001.5)
            with pytest.raises(ModbusClientException, match="1"):
                await client.write(704, WMaxLimPctEna=0)
        assert len(site.commands) == 1


@pytest.mark.parametrize(
    ("roles", "raw", "expected"),
    [
        (("operate",), None, "operate"),
        ((), None, ""),
        (("operate",), b"\x13\x07operate", ""),  # a PrintableString
        (("operate",), b"\x0c\x09operate", ""),  # cut short
        (("operate",), b"\x0c\x07operate\x00", ""),
        (("operate",), b"", ""),
        (("operate",), b"operate", ""),
    ],
)
def test_only_a_single_well_formed_role_counts(ca, roles, raw, expected):
    certificate, _, _ = ca.issue("one", roles, raw=raw)
    assert holder(certificate.public_bytes(serialization.Encoding.DER)) == ("one", expected)


AT = {field.name: field.at for field in sunspec.layout() if field.model == 704}
REQUEST_WORDS = native.encode(REQUEST, {"SP_Request": 1.0, "SP_Limit_W": 6000.0, "SP_Seq": 1.0})
SETS_LIMIT = struct.pack(
    f">BHHB{len(REQUEST_WORDS)}H", 16, REQUEST_AT, len(REQUEST_WORDS), 2 * len(REQUEST_WORDS), *REQUEST_WORDS
)


@pytest.mark.parametrize("name", ["sunspec", "registers", "sunspec registers", "127.0.0.1"])
async def test_no_name_in_a_certificate_is_that_of_another_writer(ca, name):
    """A limit is held by way and name: SunSpec's registers and the masters without TLS have their own."""
    site = Site()
    _, cert, key = ca.issue(name, ("operate",))
    async with secured(site, ca) as secure, serving(site) as plain:
        assert (await ask(secure, ca, cert, key, SETS_LIMIT))[0] == 16
        enable = struct.pack(">BHH", 6, AT["WMaxLimPctEna"], 1)
        assert (await ask(secure, ca, cert, key, enable, unit=1))[0] == 6
        async with master_of(plain) as master:
            assert (await master.ask(2, SETS_LIMIT))[0] == 16
        async with asyncio.timeout(5):
            while len(site.commands) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    writers = {writer_of(command) for command in site.commands}
    assert len(writers) == 3, writers
