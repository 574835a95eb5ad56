"""Whose certificate is let in, and which settings are: without a wire."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.opcua import OpcUaDevice, Security, TrustFolder, trust
from protocols.opcua.trust import RefusedError
from tests.protocols.opcua.bench import PROFILE, pair, revocation_list, trust_folder

NOW = datetime.now(UTC)
HOST = "127.0.0.1"


def refusal(path, content, **more):
    with pytest.raises(RefusedError) as caught:
        TrustFolder(path).check(content, **{"host": HOST, "now": NOW, **more})
    return str(caught.value)


def admitted(path, content, **more):
    TrustFolder(path).check(content, **{"host": HOST, "now": NOW, **more})


@pytest.fixture
def root(tmp_path):
    return pair(tmp_path, "root", authority=True)


def test_a_certificate_in_the_folder_is_let_in_and_another_is_kept_for_a_person(tmp_path):
    known, stranger = pair(tmp_path, "known"), pair(tmp_path, "stranger")
    path = trust_folder(tmp_path, known)
    admitted(path, known.der)
    told = refusal(path, stranger.der)
    assert "'CN=stranger': neither it nor its issuer is trusted; move it to trusted/" in told
    (copy,) = (path / "rejected").iterdir()
    assert str(copy) in told
    assert copy.read_bytes() == stranger.der
    copy.rename(path / "trusted" / copy.name)  # a person decides, and it holds at once
    admitted(path, stranger.der)


def test_an_issuer_in_the_folder_speaks_for_its_certificates_and_no_others(tmp_path, root):
    path = trust_folder(tmp_path, root)
    admitted(path, pair(tmp_path, "leaf", issuer=root).der)
    impostor = pair(tmp_path / "..", "root", authority=True, key=pair(tmp_path, "x").key)  # the same name
    assert "neither it nor its issuer" in refusal(path, pair(tmp_path, "leaf", issuer=impostor).der)
    no_authority = pair(tmp_path, "leaf", issuer=root)
    below = pair(tmp_path, "below", issuer=no_authority)
    assert "neither it nor its issuer" in refusal(path, below.der + no_authority.der)


def test_authorities_in_between_come_from_the_folder_or_from_the_server(tmp_path, root):
    path = trust_folder(tmp_path, root)
    middle = pair(tmp_path, "middle", issuer=root, authority=True)
    leaf = pair(tmp_path, "leaf", issuer=middle)
    assert "neither it nor its issuer" in refusal(path, leaf.der)
    admitted(path, leaf.der + middle.der + root.der)
    (path / "issuers" / "middle.der").write_bytes(middle.der)
    admitted(path, leaf.der)


def test_an_expired_certificate_is_refused_with_its_date_even_if_trusted(tmp_path, root):
    old = pair(tmp_path, "old", days=(-30, -1))
    path = trust_folder(tmp_path, old, root)
    assert f"expired on {NOW - timedelta(days=1):%Y-%m-%d}" in refusal(path, old.der)
    early = pair(tmp_path, "early", days=(1, 30), issuer=root)
    assert "holds only from" in refusal(path, early.der)
    dead_root = pair(tmp_path, "dead", authority=True, days=(-30, -1))
    path = trust_folder(tmp_path / "other", dead_root)
    assert "'CN=dead' expired on" in refusal(path, pair(tmp_path, "leaf", issuer=dead_root).der)


def test_a_revoked_certificate_is_refused_even_if_trusted_itself(tmp_path, root):
    leaf, other = pair(tmp_path, "leaf", issuer=root), pair(tmp_path, "other", issuer=root)
    path = trust_folder(tmp_path, root, leaf)
    admitted(path, leaf.der)
    (path / "crl" / "root.crl").write_bytes(revocation_list(root, leaf))
    assert "revoked by crl/root.crl" in refusal(path, leaf.der)
    admitted(path, other.der)
    middle = pair(tmp_path, "middle", issuer=root, authority=True)
    (path / "crl" / "root.crl").write_bytes(revocation_list(root, middle))
    below = pair(tmp_path, "below", issuer=middle)
    assert "'CN=middle' revoked by crl/root.crl" in refusal(path, below.der + middle.der)


def test_a_list_of_another_issuer_with_the_same_number_revokes_nothing(tmp_path, root):
    leaf = pair(tmp_path, "leaf", issuer=root)
    path = trust_folder(tmp_path, root)
    stranger = pair(tmp_path, "stranger", authority=True)
    (path / "crl" / "stranger.crl").write_bytes(revocation_list(stranger, leaf))
    admitted(path, leaf.der)


def test_a_list_that_cannot_be_read_stops_everything(tmp_path, root):
    path = trust_folder(tmp_path, root)
    (path / "crl" / "root.crl").write_bytes(b"half of a fi")
    assert "root.crl is no revocation list" in refusal(path, pair(tmp_path, "leaf", issuer=root).der)


def test_what_an_issuer_speaks_for_must_name_the_host_that_was_dialled(tmp_path, root):
    leaf = pair(tmp_path, "leaf", issuer=root, hosts=("10.0.0.7",))
    path = trust_folder(tmp_path, root)
    assert "does not name the host 127.0.0.1; dial by its name, or move it" in refusal(path, leaf.der)
    admitted(path, leaf.der, host="10.0.0.7")
    admitted(path, leaf.der, host="LOCALHOST")
    trust_folder(tmp_path, leaf)  # known by itself
    admitted(path, leaf.der)


def test_a_certificate_of_another_application_or_with_a_weak_key_is_refused(tmp_path):
    known = pair(tmp_path, "known", uri="urn:plant:cdu")
    path = trust_folder(tmp_path, known)
    admitted(path, known.der, application_uri="urn:plant:cdu")
    assert "issued to urn:plant:cdu, shown by urn:other" in refusal(
        path, known.der, application_uri="urn:other"
    )
    weak = pair(tmp_path, "weak", key=trust.rsa.generate_private_key(65537, 1024))
    trust_folder(tmp_path, weak)
    assert "no RSA key of 2048 bits" in refusal(path, weak.der)


def test_copies_of_the_refused_are_bounded_and_the_oldest_give_way(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "REJECTED_MAX", 3)
    path = trust_folder(tmp_path)
    for number in range(6):
        refusal(path, pair(tmp_path, f"stranger-{number}", key=pair(tmp_path, "one").key).der)
    assert len(list((path / "rejected").iterdir())) == 3
    (path / "rejected" / "note.txt").write_text("a person's")
    refusal(path, pair(tmp_path, "last", key=pair(tmp_path, "one").key).der)
    assert (path / "rejected" / "note.txt").exists()


def test_a_folder_that_is_not_there_or_holds_rubbish_lets_nobody_in(tmp_path):
    stranger = pair(tmp_path, "stranger")
    assert "neither it nor its issuer is trusted; move it" in refusal(tmp_path / "nowhere", stranger.der)
    path = trust_folder(tmp_path)
    (path / "trusted" / "rubbish.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense")
    (path / "trusted" / "rubbish.der").write_bytes(b"\x30\x82")
    (path / "trusted" / "readme.txt").write_bytes(stranger.der)
    assert "neither it nor its issuer" in refusal(path, stranger.der)


def test_security_that_cannot_work_or_only_looks_safe_is_refused_when_built(tmp_path):
    good = {"certificate": tmp_path, "key": tmp_path, "trust": tmp_path}
    wrong = {
        "give certificate and key": {"trust": tmp_path},
        "give either server_certificate or a trust folder": {"certificate": tmp_path, "key": tmp_path},
        "or anybody could be the server": good | {"server_certificate": tmp_path},
        "policy None goes with mode None alone": {"policy": "None"},
        "policy None uses no certificates": good | {"policy": "None", "mode": "None"},
        "the password would travel unguarded": {
            "policy": "None",
            "mode": "None",
            "user": "a",
            "password": "b",
        },
        "policy 'Basic128Rsa15'; use Basic256Sha256": good | {"policy": "Basic128Rsa15"},
        "mode 'None'; use Sign": good | {"mode": "None"},
        "user and password go together": good | {"user": "a"},
        "password or password_file, not both": good
        | {"user": "a", "password": "b", "password_file": tmp_path},
        "user_certificate and user_key go together": good | {"user_key": tmp_path},
        "a user or a user certificate": good
        | {"user": "a", "password": "b", "user_certificate": tmp_path, "user_key": tmp_path},
    }
    for sentence, fields in wrong.items():
        with pytest.raises(ValueError, match="security: ") as caught:
            Security(**fields)
        assert sentence in str(caught.value)
    secret = Security(**good, user="a", password="sesame")
    assert "sesame" not in repr(secret)
    with pytest.raises(ValueError, match="would show in every fault"):
        OpcUaDevice("cdu", "opc.tcp://a:b@host:4840", PROFILE, on_reading=print, clock=time.monotonic)


@given(st.binary(max_size=200), st.integers(0, 900), st.integers(0, 255))
def test_whatever_a_server_shows_is_refused_and_nothing_worse(tmp_path_factory, noise, place, byte):
    path, known = _once(tmp_path_factory)
    assert refusal(path, noise)
    bent = bytearray(known.der)
    bent[place % len(bent)] ^= byte or 1
    assert refusal(path, bytes(bent))


def _once(factory, made=[]):  # noqa: B006  (made once for all examples)
    if not made:
        folder = factory.mktemp("trust")
        made.append((trust_folder(folder, pair(folder, "known")), pair(folder, "known")))
    return made[0]
