"""Who comes in over OPC UA, and what he may: each fence around the library, and what happens without it."""

import asyncio
import contextlib
import struct
import time
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from asyncua import Client, ua
from asyncua.crypto import security_policies, uacrypto
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from pydantic import ValidationError

from controller.facility.config import OpcUaServerConfig
from controller.facility.opcua.server import OpcUaFacility
from controller.image.feed import ImageFeed
from controller.yaml_config import ConfigError
from protocols.opcua.server_access import Guesses
from tests.brokers import until
from tests.controller.facility.opcua_site import Site, write_users
from tests.controller.facility.test_facility_opcua import Raw, call, read, value, write

pytestmark = pytest.mark.asyncio(loop_scope="module")
POWER, FLOW = "devices/pdu-1/power_w", "devices/pdu-1/flow_target"
REFUSED = (ua.UaError, ConnectionError, TimeoutError, asyncio.TimeoutError)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory):
    """The strictest there is, but for guesses: a test may be wrong now and then."""
    async with Site(tmp_path_factory.mktemp("opcua"), guesses_per_minute=100) as site:
        await site.told("devices/pdu-1", 5000.0, 22.5, 16.0, 120.0, 8.0)
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lax(tmp_path_factory):
    """Unsecured, and open to whoever only wants to read."""
    folder = tmp_path_factory.mktemp("lax")
    async with Site(
        folder, unsecured=True, anonymous="observe", guesses_per_minute=3, sessions_max=4
    ) as site:
        await site.told("devices/pdu-1", 5000.0, 22.5, 16.0, 120.0, 8.0)
        yield site


@contextlib.asynccontextmanager
async def channel(site, *, application=None, mode="SignAndEncrypt"):
    """A secured channel without a session."""
    client = Client(site.url, timeout=5)
    if mode is not None:
        certificate, key = application or (site.certificate, site.key)
        policy = security_policies.SecurityPolicyBasic256Sha256
        await client.set_security(policy, certificate, key, mode=getattr(ua.MessageSecurityMode, mode))
    await client.connect_socket()
    try:
        await client.send_hello()
        await client.open_secure_channel()
        yield client
    finally:
        client.disconnect_socket()


# --- channels -------------------------------------------------------------------------------------------


async def test_only_secured_endpoints_are_offered_unless_the_settings_say_more(site, lax):
    secured = {
        (policy, mode)
        for policy in ("Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss")
        for mode in ("Sign", "SignAndEncrypt")
    }
    for one, more in ((site, set()), (lax, {("None", "None_")})):
        offered = await Client(one.url).connect_and_get_server_endpoints()
        assert {
            (end.SecurityPolicyUri.split("#")[1], end.SecurityMode.name) for end in offered
        } == secured | more


@pytest.mark.parametrize("policy", ["Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"])
@pytest.mark.parametrize("mode", ["Sign", "SignAndEncrypt"])
async def test_every_policy_carries_a_session(site, policy, mode):
    client = Client(site.url, timeout=20)
    kind = getattr(security_policies, f"SecurityPolicy{policy}")
    await client.set_security(kind, site.certificate, site.key, mode=getattr(ua.MessageSecurityMode, mode))
    client.set_user("eyes")
    client.set_password("look")
    async with client:
        assert await value(client, POWER) == 5000.0


async def test_an_unsecured_channel_is_good_for_discovery_alone(site):
    """The library opens one whatever the endpoints say, and would let a session begin on it."""
    async with channel(site, mode=None) as client:
        assert await client.get_endpoints()
        with pytest.raises(ua.uaerrors.BadSecurityModeRejected):
            await client.create_session()


async def test_whoever_asks_without_a_session_is_told_so(site):
    """P19: clients begin a new session on this status, and only on this one."""
    async with channel(site) as client:
        with pytest.raises(ua.uaerrors.BadSessionIdInvalid):
            await client.uaclient.protocol.send_request(ua.ReadRequest())
        with pytest.raises(ua.uaerrors.BadSessionIdInvalid):
            await client.uaclient.protocol.send_request(ua.ActivateSessionRequest())


# --- applications ---------------------------------------------------------------------------------------


async def test_a_stranger_is_let_in_once_a_person_has_moved_his_certificate(site):
    stranger = site.application("stranger")
    with pytest.raises(ua.uaerrors.BadSecurityChecksFailed):
        async with site.client(application=stranger):
            pass
    fingerprint = x509.load_pem_x509_certificate(stranger[0].read_bytes()).fingerprint(hashes.SHA256()).hex()
    (copy,) = (site.pki / "rejected").glob(f"{fingerprint[:40]}*")
    copy.rename(site.pki / "trusted" / copy.name)
    async with site.client(application=stranger) as client:
        assert await value(client, POWER) == 5000.0
    (site.pki / "trusted" / copy.name).unlink()
    with pytest.raises(ua.uaerrors.BadSecurityChecksFailed):
        async with site.client(application=stranger):
            pass


async def test_the_channels_own_certificate_counts_and_not_the_one_that_is_named(site):
    """The library would check the named one alone, and nothing if none is named."""
    async with channel(site, application=site.application("liar")) as client:
        trusted = uacrypto.der_from_x509(x509.load_pem_x509_certificate(site.certificate.read_bytes()))
        for named in (trusted, None):
            asked = ua.CreateSessionRequest()
            asked.Parameters.ClientCertificate = named
            asked.Parameters.ClientNonce = bytes(32)
            with pytest.raises(ua.uaerrors.BadSecurityChecksFailed):
                await client.uaclient.protocol.send_request(asked)


def _signed(folder, name, issuer=None, days=(-2, 10)):
    """A certificate of somebody, by an issuer, valid from and until these days."""
    key_file = folder / f"{name}-key.pem"
    key = load_pem_private_key(key_file.read_bytes(), None)
    issuer_name, issuer_key = issuer or (name, key)
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(
            x509.BasicConstraints(ca=name.startswith("authority"), path_length=None), critical=True
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:test:{name}")]), False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM))
    return made, key, (path, key_file)


async def test_an_expired_certificate_is_refused_even_when_it_is_trusted(site):
    site.application("old")
    _, _, old = _signed(site.folder, "old", days=(-20, -1))
    site.trust(old[0])
    with pytest.raises(ua.uaerrors.BadSecurityChecksFailed):
        async with site.client(application=old):
            pass


async def test_an_authority_speaks_for_its_applications_until_it_revokes_one(site):
    site.application("authority")
    site.application("member")
    authority, authority_key, files = _signed(site.folder, "authority")
    member, _, member_files = _signed(site.folder, "member", ("authority", authority_key))
    site.trust(files[0])
    async with site.client(application=member_files) as client:
        assert await value(client, POWER) == 5000.0
    now = datetime.now(UTC)
    revoked = (
        x509.RevokedCertificateBuilder().serial_number(member.serial_number).revocation_date(now).build()
    )
    issued = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(now)
    issued = issued.next_update(now + timedelta(days=1)).add_revoked_certificate(revoked)
    (site.pki / "crl").mkdir(exist_ok=True)
    (site.pki / "crl" / "authority.crl").write_bytes(
        issued.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.DER)
    )
    with pytest.raises(ua.uaerrors.BadSecurityChecksFailed):
        async with site.client(application=member_files):
            pass


# --- users ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "password"), [("hands", "wrong"), ("nobody", "touch"), ("hands", ""), ("", "touch")]
)
async def test_a_wrong_name_or_password_does_not_come_in(site, user, password):
    with pytest.raises(REFUSED):
        async with site.client(user, password):
            pass


async def test_nobody_comes_in_without_saying_who_he_is_unless_the_settings_say_so(site):
    with pytest.raises(ua.UaError):
        async with site.client(user=None):
            pass


async def test_whoever_does_not_say_who_he_is_may_read_and_nothing_else(lax):
    async with lax.client(user=None, mode=None) as client:
        assert await value(client, POWER) == 5000.0
        assert await write(client, FLOW, ua.Variant(120.0)) == "BadUserAccessDenied"
        assert (await call(client, "Control/Release"))[0] == "BadUserAccessDenied"
    assert not lax.plant.commands


async def test_a_password_never_travels_in_the_clear(site, lax):
    """A client that would send it so is refused, right or not; one that encrypts it is not."""
    for one, mode in ((site, "Sign"), (lax, None)):
        async with channel(one, mode=mode) as client:
            await client.create_session()
            asked = ua.ActivateSessionRequest()
            asked.Parameters.UserIdentityToken = ua.UserNameIdentityToken("username", "hands", b"touch", None)
            challenge = (client.security_policy.peer_certificate or b"") + client._server_nonce
            policy = client.security_policy
            asked.Parameters.ClientSignature = ua.SignatureData(
                policy.AsymmetricSignatureURI, policy.asymmetric_cryptography.signature(challenge)
            )
            with pytest.raises(ua.uaerrors.BadIdentityTokenRejected):
                await client.uaclient.protocol.send_request(asked)
    async with lax.client("hands", mode=None) as client:
        assert await write(client, FLOW, ua.Variant(120.0)) == "Good"
    lax.plant.commands.clear()


async def test_after_a_few_wrong_passwords_an_address_has_to_wait(lax):
    for _ in range(3):
        with pytest.raises(ua.UaError):
            async with lax.client("hands", "wrong", mode=None):
                pass
    with pytest.raises(ua.uaerrors.BadUserAccessDenied):
        async with lax.client("hands", mode=None):
            pass
    lax.facility._server._iserver.guesses = Guesses(3)


async def test_guesses_are_counted_per_address_and_of_all_together():
    now_s = 0.0
    guesses = Guesses(2, lambda: now_s)
    for _ in range(2):
        guesses.wrong("a")
    assert (guesses.may("a"), guesses.may("b")) == (False, True)
    now_s = 61.0
    assert guesses.may("a")
    for number in range(12):
        guesses.wrong(f"address {number}")
    assert not guesses.may("somebody else")
    now_s = 130.0
    assert guesses.may("somebody else")


async def test_a_user_may_prove_himself_by_his_certificate(site):
    certificate, key = site.application("jane")
    fingerprint = x509.load_pem_x509_certificate(certificate.read_bytes()).fingerprint(hashes.SHA256()).hex()
    users = site.settings["users"]
    before = users.read_text()
    with pytest.raises(ua.UaError):
        await _by_certificate(site, certificate, key)
    users.write_text(before + f"  - {{name: jane, role: engineer, certificate: {fingerprint}}}\n")
    assert await _by_certificate(site, certificate, key) == "jane"
    users.write_text(before)


async def _by_certificate(site, certificate, key):
    client = Client(site.url, timeout=20)
    policy = security_policies.SecurityPolicyBasic256Sha256
    await client.set_security(policy, site.certificate, site.key)
    await client.load_client_certificate(certificate)
    await client.load_private_key(key)
    async with client:
        assert await value(client, POWER) == 5000.0
        ((_, identity),) = site.facility._server.sessions
        return identity.name


async def test_the_file_of_users_is_read_again_and_a_broken_one_lets_nobody_in(site):
    users = site.settings["users"]
    before = users.read_text()
    users.write_text(before[:-20])
    with pytest.raises(ua.uaerrors.BadUserAccessDenied):
        async with site.client("hands"):
            pass
    users.write_text(before)
    async with site.client("hands"):
        pass
    users.chmod(0o644)
    with pytest.raises(ua.uaerrors.BadUserAccessDenied):  # everybody can read it
        async with site.client("hands"):
            pass
    users.chmod(0o640)
    async with site.client("hands"):
        pass


# --- sessions -------------------------------------------------------------------------------------------


async def test_a_ticket_cannot_be_guessed_and_is_of_no_use_to_another_application(site):
    other = site.application("other")
    site.trust(other[0])
    async with site.client("hands") as client:
        (session,) = site.facility._server._iserver.sessions
        assert len(session.auth_token.Identifier) == 32
        async with channel(site, application=other) as thief:
            thief.uaclient.protocol.authentication_token = session.auth_token
            asked = ua.ActivateSessionRequest()
            policy = thief.security_policy
            challenge = policy.peer_certificate + session.nonce
            asked.Parameters.ClientSignature = ua.SignatureData(
                policy.AsymmetricSignatureURI, policy.asymmetric_cryptography.signature(challenge)
            )
            asked.Parameters.UserIdentityToken = ua.UserNameIdentityToken("username", "head", b"think", None)
            with pytest.raises(ua.uaerrors.BadSecurityChecksFailed):
                await thief.uaclient.protocol.send_request(asked)
        assert session.identity.name == "hands"
        assert await value(client, POWER) == 5000.0


async def test_nobody_touches_a_subscription_that_is_not_his(site):
    async with site.client("hands") as client, site.client("eyes") as other:
        raw = await Raw.watching(client, (POWER, None))
        with pytest.raises(ua.uaerrors.BadSubscriptionIdInvalid):
            await other.uaclient.create_monitored_items(
                ua.CreateMonitoredItemsParameters(
                    raw.number, ua.TimestampsToReturn.Both, [ua.MonitoredItemCreateRequest()]
                )
            )
        with pytest.raises(ua.UaError):
            await other.uaclient.modify_subscription(
                ua.ModifySubscriptionParameters(raw.number, 1000.0, 10, 10, 0, 0)
            )
        (status,) = await other.uaclient.delete_subscriptions([raw.number])
        assert status.name == "BadSubscriptionIdInvalid"
        asked = ua.TransferSubscriptionsRequest()
        asked.Parameters.SubscriptionIds = [raw.number, 999]
        answer = await other.uaclient.protocol.send_request(asked)
        from asyncua.ua.ua_binary import struct_from_binary

        results = struct_from_binary(ua.TransferSubscriptionsResponse, answer).Parameters.Results
        assert [one.StatusCode.name for one in results] == ["BadUserAccessDenied", "BadSubscriptionIdInvalid"]
        before = len(raw.told)
        await site.told("devices/pdu-1", 9000.0, 22.5, 16.0, 120.0, 8.0)
        await until(lambda: len(raw.told) > before, within_s=10)
        await raw.close()
        await site.told("devices/pdu-1", 5000.0, 22.5, 16.0, 120.0, 8.0)


async def test_nobody_changes_the_address_space_or_registers_a_server(site):
    async with site.client("head") as client:
        for asked in (
            ua.AddNodesRequest(),
            ua.DeleteNodesRequest(),
            ua.AddReferencesRequest(),
            ua.DeleteReferencesRequest(),
            ua.RegisterServerRequest(),
            ua.RegisterServer2Request(),
        ):
            with pytest.raises(ua.uaerrors.BadServiceUnsupported):
                await client.uaclient.protocol.send_request(asked)


async def test_there_are_no_more_sessions_than_allowed_and_one_that_ends_makes_room(lax):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(lax.client(user=None, mode=None))
        with pytest.raises(ua.uaerrors.BadTooManySessions):
            async with lax.client(user=None, mode=None):
                pass
    await until(lambda: not lax.facility._server.sessions, within_s=10)
    async with lax.client(user=None, mode=None) as client:
        assert await value(client, POWER) == 5000.0


async def test_a_client_that_creates_session_after_session_has_one(lax):
    async with channel(lax, mode=None) as client:
        for _ in range(20):
            await client.create_session()
        assert len(lax.facility._server._iserver._external_sessions) == 1
    await until(lambda: not lax.facility._server._iserver._external_sessions, within_s=10)


# --- what is no client ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100_000),
        struct.pack("<3ssI", b"HEL", b"F", 0xFFFF_FFFF) + bytes(200_000),
        struct.pack("<3ssI", b"HEL", b"F", 0) + bytes(100),
        struct.pack("<3ssIIIIII", b"HEL", b"F", 32, 0, 8192, 8192, 0, 0) + b"\xff" * 4
        + struct.pack("<3ssI", b"MSG", b"F", 200) + b"\xff" * 192,
        struct.pack("<3ssI", b"OPN", b"F", 300) + b"\xff" * 292,
    ],
    ids=["http", "a message of 4 GB", "an empty message", "a message of ones", "a channel of ones"],
)  # fmt: skip
async def test_what_is_no_opc_ua_is_closed_and_hurts_nobody(site, sent):
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(15):
            while await reader.read(65536):
                pass
    writer.close()
    async with site.client("eyes") as client:
        assert await value(client, POWER) == 5000.0


async def test_a_client_that_never_reads_is_not_listened_to_either(lax):
    """Otherwise what it asks for would pile up in memory."""
    async with lax.client(user=None, mode=None) as client:
        protocol = client.uaclient.protocol
        protocol.transport.pause_reading()
        ids = [ua.ReadValueId(ua.NodeId("block/limit_source", 2), ua.AttributeIds.Value)] * 5000
        asked = ua.ReadRequest(Parameters=ua.ReadParameters(NodesToRead=ids))
        began_s, most = time.monotonic(), 0
        (connection,) = lax.facility._server._server.bserver.clients
        for _ in range(100):
            protocol._send_request(asked)
            most = max(most, connection.transport.get_write_buffer_size())
            await asyncio.sleep(0.01)
            if not connection._may_answer.is_set() and time.monotonic() - began_s > 2:
                break
        assert not connection._may_answer.is_set()
        assert not connection.transport.is_reading()
        size = connection.transport.get_write_buffer_size()
        await asyncio.sleep(0.3)
        assert connection.transport.get_write_buffer_size() == size < 4 * 1024 * 1024
        async with lax.client(user=None, mode=None) as another:
            assert await value(another, POWER) == 5000.0
        protocol.transport.abort()


# --- configuration --------------------------------------------------------------------------------------


async def test_our_certificate_is_made_once_and_its_key_is_for_its_owner_alone(site):
    own = site.pki / "own"
    before = (own / "cert.der").read_bytes(), (own / "key.pem").read_bytes()
    assert (own / "key.pem").stat().st_mode & 0o777 == 0o600
    config = OpcUaServerConfig(folder=site.pki, users=site.settings["users"])
    OpcUaFacility(config, ImageFeed(site.folder / "none.sock"), block="hall-a", state_dir=site.folder)
    assert ((own / "cert.der").read_bytes(), (own / "key.pem").read_bytes()) == before


async def test_what_cannot_work_is_said_before_anything_starts(tmp_path):
    users = write_users(tmp_path / "users.yaml", eyes="observe")
    for wrong, words in (
        ({}, "nobody could come in"),
        ({"users": users, "certificate": tmp_path / "c"}, "go together"),
        ({"users": users, "port": 70_000}, "65535"),
        ({"users": users, "policies": ()}, "at least 1"),
    ):
        with pytest.raises(ValidationError, match=words):
            OpcUaServerConfig(**wrong)
    for wrong, words in (
        ({"users": tmp_path / "none.yaml"}, "none.yaml: cannot be read"),
        (
            {"users": users, "certificate": tmp_path / "c.der", "key": tmp_path / "k.pem"},
            "c.der: No such file",
        ),
    ):
        config = OpcUaServerConfig(folder=tmp_path / "pki", **wrong)
        with pytest.raises(ConfigError, match=words):
            OpcUaFacility(config, ImageFeed(tmp_path / "s"), block="b", state_dir=tmp_path)
    users.write_text("users:\n  - {name: eyes, role: observe, password: secret}\n")
    with pytest.raises(ConfigError, match="is no hash; make one with `powerblock password`"):
        OpcUaFacility(
            OpcUaServerConfig(folder=tmp_path / "pki", users=users),
            ImageFeed(tmp_path / "s"),
            block="b",
            state_dir=tmp_path,
        )


__all__ = ["read"]
