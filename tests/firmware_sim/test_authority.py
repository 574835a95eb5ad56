"""Certificates of the run, tried in real handshakes."""

import asyncio
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from firmware_sim.authority import Authority


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"), "rig")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("foreign"), "foreigner")


async def handshake(server_context, client_context):
    """One connection; returns the name in the client's certificate. Raises what either side raises."""
    names = []

    async def meet(reader, writer):
        names.append(dict(part for (part,) in writer.get_extra_info("peercert")["subject"])["commonName"])
        writer.write(b"!")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=server_context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context)
        try:
            if await reader.read() != b"!":
                raise ConnectionResetError("the server would not have it")
        finally:
            writer.close()
    return names[0]


def mutual(authority, identity):
    context = authority.serving(identity)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def test_both_sides_believe_each_other_and_the_client_has_its_name(ours):
    server = mutual(ours, ours.server("broker", ["127.0.0.1"]))
    client = ours.calling(ours.client("agent-n1"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    assert await handshake(server, client) == "agent-n1"


async def test_a_foreign_server_is_not_believed_though_its_certificate_is_sound(ours, foreign):
    server = mutual(foreign, foreign.server("broker", ["127.0.0.1"]))
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(server, ours.calling(ours.client("agent-n1")))


async def test_a_foreign_client_is_not_believed(ours, foreign):
    server = mutual(ours, ours.server("broker", ["127.0.0.1"]))
    stranger = ours.calling(foreign.client("controller"))
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await handshake(server, stranger)


async def test_a_client_is_no_server(ours):
    server = mutual(ours, ours.client("controller"))
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(server, ours.calling(ours.client("agent-n1")))


def test_keys_are_for_their_owner_and_clients_have_one_name_alone(ours):
    identity = ours.client("vtn")
    assert stat.S_IMODE(identity.key.stat().st_mode) == 0o600
    made = x509.load_pem_x509_certificate(identity.cert.read_bytes())
    (name,) = made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "vtn"
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
