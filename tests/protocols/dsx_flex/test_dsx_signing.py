"""Signatures: the right key opens, everything else is refused with a sentence."""

import base64
import contextlib
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from dsx_parts import FUZZ, T0_UTC_S, private_key, private_pem, public_pem
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, RSAKey

from protocols.dsx_flex.signing import KeySet, Signer, open_data, read_jwks, read_public_pem
from protocols.dsx_flex.wire import PAYLOAD_MAX_BYTES, DsxFlexError

DATA = {"targets": [{"interval": {}, "load_constraint": None}]}
KEYS = KeySet([read_public_pem("ec-1", public_pem("EC")), read_public_pem("rsa-1", public_pem("RSA"))])
SIGNERS = {"ec-1": Signer("ec-1", private_pem("EC")), "rsa-1": Signer("rsa-1", private_pem("RSA"))}


def b64(said):
    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def reheaded(header, kid="ec-1"):
    """A sound signature under another header."""
    _, body, signature = SIGNERS[kid].sign(DATA).split(".")
    return f"{b64(header)}.{body}.{signature}"


def refused(compact, reason, keys=KEYS, now_utc_s=T0_UTC_S):
    with pytest.raises(DsxFlexError, match=reason):
        keys.verify(compact, now_utc_s)


@pytest.mark.parametrize("kid", SIGNERS)
def test_what_was_signed_is_what_is_read(kid):
    compact = SIGNERS[kid].sign(DATA)
    assert KEYS.verify(compact, T0_UTC_S) == DATA
    header = json.loads(base64.urlsafe_b64decode(compact.split(".")[0] + "=="))
    assert header == {"alg": {"ec-1": "ES256", "rsa-1": "RS256"}[kid], "kid": kid}


def test_our_signatures_hold_by_the_letter_of_rfc_7518():
    """Without the library: r and s side by side in 64 bytes; PKCS #1 v1.5; both over SHA-256."""
    for kid, kind in (("ec-1", "EC"), ("rsa-1", "RSA")):
        signed, _, signature = SIGNERS[kid].sign(DATA).rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        public = private_key(kind).public_key()
        if kind == "EC":
            assert len(raw) == 64
            der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
            public.verify(der, signed.encode(), ec.ECDSA(hashes.SHA256()))
        else:
            public.verify(raw, signed.encode(), padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize(("kid", "kind"), [("ec-1", "EC"), ("rsa-1", "RSA")])
def test_another_key_under_a_known_kid_is_refused(kid, kind):
    refused(Signer(kid, private_pem(kind, 1)).sign(DATA), f"does not match key '{kid}'")


def test_an_unknown_kid_is_refused_and_the_known_ones_are_named():
    refused(Signer("ec-2", private_pem("EC")).sign(DATA), "'ec-2' is unknown; known: ec-1, rsa-1")
    refused(SIGNERS["ec-1"].sign(DATA), "known: none", keys=KeySet(()))


@pytest.mark.parametrize("kid", [..., None, 7, ["ec-1"], {}])
def test_a_missing_kid_is_refused(kid):
    header = {"alg": "ES256", "kid": kid}
    refused(reheaded({k: v for k, v in header.items() if v is not ...}), "name the signing key")


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "ES384", "PS256", "ES256K", "", None, 5, ["ES256"]])
def test_any_other_algorithm_is_refused(alg):
    refused(reheaded({"alg": alg, "kid": "ec-1"}), "refused; sign with ES256 or RS256")


@pytest.mark.parametrize(("alg", "kid"), [("RS256", "ec-1"), ("ES256", "rsa-1")])
def test_the_algorithm_is_the_keys_and_not_the_headers(alg, kid):
    refused(reheaded({"alg": alg, "kid": kid}, kid), f"algorithm {alg}, but key '{kid}'")


def test_our_public_key_is_no_shared_secret():
    """The classic confusion: HMAC with the PEM of the public key, which everybody has."""
    signed = f"{b64({'alg': 'HS256', 'kid': 'rsa-1'})}.{b64(DATA)}"
    mac = hmac.new(public_pem("RSA"), signed.encode(), hashlib.sha256).digest()
    refused(f"{signed}.{b64(mac)}", "HS256' refused")


def test_an_unsigned_token_that_says_so_is_refused():
    refused(f"{b64({'alg': 'none', 'kid': 'ec-1'})}.{b64(DATA)}.AA", "'none' refused")
    refused(f"{b64({'alg': 'none', 'kid': 'ec-1'})}.{b64(DATA)}.", "no JWS")


def test_a_key_that_comes_with_the_message_is_not_used():
    stranger = ECKey.import_key(private_key("EC", 1))
    header = {"alg": "ES256", "kid": "ec-1", "jwk": stranger.as_dict(private=False)}
    refused(jws.serialize_compact(header, json.dumps(DATA), stranger), "does not match key 'ec-1'")


@pytest.mark.parametrize(
    "member", [{"crit": ["exp"], "exp": 1}, {"b64": False, "crit": ["b64"]}, {"b64": True}]
)
def test_extensions_of_the_signature_are_refused(member):
    refused(reheaded({"alg": "ES256", "kid": "ec-1"} | member), "without crit and b64")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_changed_character_is_noticed(part):
    parts = SIGNERS["ec-1"].sign(DATA).split(".")
    parts[part] = ("A" if parts[part][0] != "A" else "B") + parts[part][1:]
    with pytest.raises(DsxFlexError):
        KEYS.verify(".".join(parts), T0_UTC_S)


@pytest.mark.parametrize(
    "compact",
    [
        "",
        "..",
        "a.b",
        "a.b.c.d",
        "a b.c.d",
        "ä.b.c",
        "a=.b.c",
        "!.b.c",
        "a.b.c\n",
        f"{b64([])}.b.c",
        "a.b.c",
        "YQ.b.c",
    ],
)
def test_what_is_no_jws_is_refused(compact):
    refused(compact, "data:")


def test_a_signed_text_that_is_no_object_is_refused():
    key = ECKey.import_key(private_key("EC"))
    for text, reason in [
        (b"[]", "data: .* send an object"),
        (b"\xff", "data: not JSON"),
        (b"7", "data: 7; send an object"),
        (b'{"a":1,"a":2}', "given twice"),
    ]:
        refused(jws.serialize_compact({"alg": "ES256", "kid": "ec-1"}, text, key), reason)


def test_sizes_are_bounded_before_anything_is_decoded():
    refused("a" * (PAYLOAD_MAX_BYTES + 1), "send 262144 at most")
    refused(f"{'a' * 3000}.b.c", "header over")
    refused(f"{b64({'alg': 'ES256', 'kid': 'ec-1'})}.b.{'c' * 1500}", "signature over")
    with pytest.raises(DsxFlexError, match="bytes to send"):
        SIGNERS["ec-1"].sign({"x": "y" * PAYLOAD_MAX_BYTES})


def test_a_thousand_targets_fit_through():
    one = {"interval": {"start_time": "2026-11-21T18:00:00Z", "end_time": "2026-11-21T18:05:00Z"}}
    one |= {"feed_tags": ["main-a"], "load_constraint": {"value": 4.5, "unit": "megawatt"}}
    data = {"targets": [one] * 1000}
    assert KEYS.verify(SIGNERS["rsa-1"].sign(data), T0_UTC_S) == data


@pytest.mark.parametrize(
    ("exp", "reason"), [(T0_UTC_S, "expired"), (-1, "expired"), ("soon", "exp"), (True, "exp")]
)
def test_signed_data_that_has_expired_is_refused(exp, reason):
    assert KEYS.verify(SIGNERS["ec-1"].sign({"exp": T0_UTC_S + 1}), T0_UTC_S)
    refused(SIGNERS["ec-1"].sign({"exp": exp}), reason)


def test_plain_data_counts_only_where_the_site_says_so():
    assert open_data(DATA, KEYS, T0_UTC_S, accept_unsigned=True) == DATA
    assert open_data(SIGNERS["ec-1"].sign(DATA), KEYS, T0_UTC_S, accept_unsigned=False) == DATA
    with pytest.raises(DsxFlexError, match="not signed"):
        open_data(DATA, KEYS, T0_UTC_S, accept_unsigned=False)
    with pytest.raises(DsxFlexError, match="does not match"):  # a bad signature is not an absent one
        open_data(Signer("ec-1", private_pem("EC", 1)).sign(DATA), KEYS, T0_UTC_S, accept_unsigned=True)


# -- keys ---------------------------------------------------------------------------------------------------


def jwk(kind, number=0, **changes):
    wrap = RSAKey if kind.startswith("RSA") else ECKey
    return wrap(private_key(kind, number).public_key(), None).as_dict() | {"kid": kind.lower()} | changes


def test_keys_come_from_a_jwk_set_too_and_those_for_other_ends_are_passed_over():
    others = [
        OctKey.import_key("x" * 32).as_dict() | {"kid": "o"},
        jwk("P384"),
        jwk("EC", use="enc", kid="e"),
    ]
    others += [jwk("RSA", alg="PS256", kid="p"), {"kty": ["EC"], "crv": {}}]
    keys = KeySet(
        read_jwks(json.dumps({"keys": [jwk("EC"), jwk("RSA", use="sig", alg="RS256"), *others]}).encode())
    )
    for kind in ("EC", "RSA"):
        assert keys.verify(Signer(kind.lower(), private_pem(kind)).sign(DATA), T0_UTC_S) == DATA
    refused(Signer("e", private_pem("EC")).sign(DATA), "unknown; known: ec, rsa", keys=keys)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([], "no key for ES256 or RS256"),
        ([jwk("P384")], "no key for ES256 or RS256"),
        ([jwk("EC", kid=None)], "kid"),
        ([jwk("EC", x="AAAA")], "sound key"),
        ([jwk("EC", x=7)], r"keys\[0\].x"),
        ([jwk("EC", y="*")], "no base64url"),
        ([jwk("RSA", n="")], r"keys\[0\].n"),
        ([jwk("RSA", e="AA")], "sound key"),
        ([jwk("RSA1024")], "RSA of 1024 bits"),
        ([jwk("EC", d="secret")], "a private key"),
        (["x"], "send an object"),
        ("x", "send a list"),
    ],
)
def test_a_jwk_set_that_cannot_be_trusted_is_refused(keys, reason):
    with pytest.raises(DsxFlexError, match=reason):
        read_jwks(json.dumps({"keys": keys}).encode())


def test_a_pem_of_the_wrong_kind_is_refused_with_a_remedy():
    for pem, reason in [
        (public_pem("P384"), "ES256 takes P-256"),
        (public_pem("RSA1024"), "RSA of 1024 bits"),
        (private_pem("EC"), "BEGIN PUBLIC KEY"),
        (b"no pem", "BEGIN PUBLIC KEY"),
    ]:
        with pytest.raises(DsxFlexError, match=reason):
            read_public_pem("k", pem)
    for pem, reason in [
        (private_pem("P384"), "ES256 takes P-256"),
        (private_pem("RSA1024"), "RSA of 1024 bits"),
        (public_pem("EC"), "private key"),
        (b"", "private key"),
    ]:
        with pytest.raises(DsxFlexError, match=reason):
            Signer("k", pem)


def test_a_kid_names_one_key():
    key = read_public_pem("k", public_pem("EC"))
    with pytest.raises(DsxFlexError, match="twice"):
        KeySet([key, key])
    with pytest.raises(DsxFlexError, match="at most"):
        KeySet([read_public_pem(f"k{number}", public_pem("EC")) for number in range(65)])


@FUZZ
@given(st.text(alphabet="ABab01-_.= \n", max_size=80))
def test_no_text_raises_anything_but_the_packages_error(compact):
    with pytest.raises(DsxFlexError):
        KEYS.verify(compact, T0_UTC_S)


JSONISH = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=2)
)


@FUZZ
@given(st.dictionaries(st.sampled_from(["alg", "kid", "crit", "typ", "jku", "jwk", "x5c", "zip"]), JSONISH))
def test_no_header_opens_what_it_did_not_sign(header):
    with pytest.raises(DsxFlexError):
        KEYS.verify(reheaded({"alg": "ES256", "kid": "ec-1"} | header), T0_UTC_S)


@FUZZ
@given(st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "kid", "alg", "use"]), JSONISH))
def test_no_jwk_raises_anything_but_the_packages_error(changes):
    for kind in ("EC", "RSA"):
        with contextlib.suppress(DsxFlexError):
            read_jwks(json.dumps({"keys": [jwk(kind) | changes]}).encode())
