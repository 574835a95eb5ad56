"""Secured connections to an independent server: policies, users, and certificates that are not what they seem."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from protocols.opcua import UNSECURED, Security, client
from protocols.opcua.security import POLICIES
from tests.protocols.opcua.bench import (
    Pair,
    Plant,
    Readings,
    down,
    pair,
    private_key,
    revocation_list,
    trust_folder,
    watching,
    whole,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERY_POLICY = [
    "Basic256Sha256",
    "Aes128_Sha256_RsaOaep",
    "Aes256_Sha256_RsaPss",
]  # as node-opcua spells them
USERS = {"powerblock": "correct horse"}


class Site(NamedTuple):
    plant: Plant
    ours: Pair
    theirs: Pair
    authority: Pair
    user: Pair
    pki: Path  # the server's: whom it trusts


def settings(folder: Path, theirs: Pair, pki: Path) -> dict:
    return {
        "policies": EVERY_POLICY, "modes": ["Sign", "SignAndEncrypt"], "users": USERS, "anonymous": True,
        "certificate": str(theirs.cert_file), "key": str(theirs.key_file), "pki": str(pki),
        "userPki": str(folder / "users"),
    }  # fmt: skip


def admit(pki: Path, *pairs: Pair) -> None:
    certs = pki / "trusted" / "certs"
    certs.mkdir(parents=True, exist_ok=True)
    for one in pairs:
        shutil.copy(one.cert_file, certs)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(node_modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    authority = pair(folder, "plant-ca", authority=True)
    ours = pair(folder, "ours", uri="urn:block-7:gateway")
    theirs = pair(folder, "theirs", issuer=authority)
    user = pair(folder, "operator", uri="urn:operator")
    admit(folder / "pki", ours)
    admit(folder / "users", user)
    async with Plant(folder, **settings(folder, theirs, folder / "pki")) as plant:
        yield Site(plant, ours, theirs, authority, user, folder / "pki")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(client, "REFUSED_WAIT_S", 0.3)


@pytest.fixture
def security(site, tmp_path):
    """What works; tests change one thing about it."""
    return Security(
        certificate=site.ours.cert_file, key=site.ours.key_file, trust=trust_folder(tmp_path, site.authority)
    )


async def fault(url, security, words) -> Readings:
    """It stays down, and says why."""
    readings = Readings()
    async with watching(url, readings, security=security):
        told = await readings.until(lambda r: words in r.fault)
        assert told.link == "down"
        assert set(told.values.values()) == {None}
    assert all(down(r) for r in readings)
    return readings


@pytest.mark.parametrize("mode", ["Sign", "SignAndEncrypt"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_every_policy_and_mode_carries_values_and_changes(site, security, policy, mode):
    readings = Readings()
    async with watching(site.plant.url, readings, security=replace(security, policy=policy, mode=mode)):
        await readings.until(whole)
        await asyncio.sleep(0.5)
        await site.plant.say("Cdu.HeatKw", 5)
        await readings.until(lambda r: r.values.get("heat_w") == 5000.0)
        await site.plant.say("Cdu.HeatKw", 812.5)


@pytest.mark.parametrize("as_whom", ["password", "password_file", "certificate"])
async def test_a_user_is_let_in_by_password_or_certificate(site, security, tmp_path, as_whom):
    file = tmp_path / "password"
    file.write_text(USERS["powerblock"] + "\n")
    user = {
        "password": {"user": "powerblock", "password": USERS["powerblock"]},
        "password_file": {"user": "powerblock", "password_file": file},
        "certificate": {"user_certificate": site.user.cert_file, "user_key": site.user.key_file},
    }[as_whom]
    for mode in ("Sign", "SignAndEncrypt"):
        readings = Readings()
        async with watching(site.plant.url, readings, security=replace(security, mode=mode, **user)):
            await readings.until(whole)


async def test_a_wrong_password_is_said_and_not_tried_again_at_once(site, security, monkeypatch):
    monkeypatch.setattr(client, "REFUSED_WAIT_S", 30.0)
    wrong = replace(security, user="powerblock", password="battery staple")
    readings = Readings()
    async with watching(site.plant.url, readings, security=wrong):
        told = await readings.until(down)
        assert "Bad" in told.fault
        assert "check name, password" in told.fault
        assert "battery" not in told.fault
        await asyncio.sleep(1.0)
        assert len(readings) == 1  # an account is not locked by us


async def test_a_user_certificate_that_the_server_does_not_know_is_said(site, security, tmp_path):
    stranger = pair(tmp_path, "stranger")
    who = replace(security, user_certificate=stranger.cert_file, user_key=stranger.key_file)
    await fault(site.plant.url, who, "BadIdentityTokenRejected")


async def test_an_untrusted_server_is_refused_kept_and_let_in_once_a_person_says_so(site, security, tmp_path):
    path = trust_folder(tmp_path / "empty")
    readings = Readings()
    async with watching(site.plant.url, readings, security=replace(security, trust=path)):
        told = await readings.until(down)
        assert "'CN=theirs': neither it nor its issuer is trusted; move it to trusted/" in told.fault
        (copy,) = (path / "rejected").iterdir()
        copy.rename(path / "trusted" / copy.name)
        await readings.until(whole)
    assert (await site.plant.ask("sessions"))["sessions"] == 0


async def test_a_pinned_server_is_the_only_one(site, security, tmp_path):
    readings = Readings()
    pinned = replace(security, trust=None, server_certificate=site.theirs.cert_file)
    async with watching(site.plant.url, readings, security=pinned):
        await readings.until(whole)
    another = pair(tmp_path, "another")
    await fault(site.plant.url, replace(pinned, server_certificate=another.cert_file), "")


async def test_a_revoked_server_loses_a_standing_connection(site, security, monkeypatch):
    monkeypatch.setattr(client, "TRUST_AGAIN_S", 0.2)
    readings = Readings()
    async with watching(site.plant.url, readings, security=security):
        await readings.until(whole)
        (security.trust / "crl" / "plant.crl").write_bytes(revocation_list(site.authority, site.theirs))
        told = await readings.until(down)
        assert "revoked by crl/plant.crl" in told.fault
        (security.trust / "crl" / "plant.crl").write_bytes(revocation_list(site.authority))
        await readings.until(whole)


async def test_an_expired_server_is_refused_with_its_date(site, security, node_modules, tmp_path):
    old = pair(tmp_path, "old", issuer=site.authority, days=(-30, -2))
    async with Plant(tmp_path, **settings(tmp_path, old, tmp_path / "pki")) as plant:
        await fault(plant.url, security, "'CN=old': expired on")
        pinned = replace(security, trust=None, server_certificate=old.cert_file)
        await fault(plant.url, pinned, "old.pem expired on")


async def test_our_own_certificate_expired_or_with_another_key_is_said(site, security, tmp_path):
    old = pair(tmp_path, "old", days=(-30, -2))
    mine = replace(security, certificate=old.cert_file, key=old.key_file)
    await fault(site.plant.url, mine, "our own certificate")
    await fault(site.plant.url, replace(security, key=old.key_file), "is not the key of")
    await fault(site.plant.url, replace(security, key=tmp_path / "gone.pem"), "gone.pem cannot be read")


async def test_a_server_that_does_not_trust_us_says_so_and_lets_us_in_when_it_does(
    security, site, node_modules, tmp_path
):
    theirs = pair(tmp_path, "theirs", issuer=site.authority, key=site.theirs.key)
    async with Plant(tmp_path, **settings(tmp_path, theirs, tmp_path / "pki")) as plant:
        await fault(plant.url, security, "have the server trust our certificate")
        await plant.ask("stop")
        shutil.rmtree(tmp_path / "pki" / "rejected")
        admit(tmp_path / "pki", site.ours)
        await plant.ask("start")
        readings = Readings()
        async with watching(plant.url, readings, security=security):
            await readings.until(whole)


async def test_a_policy_that_is_not_offered_is_said_with_those_that_are(
    site, security, node_modules, tmp_path
):
    only = {"policies": ["Basic256Sha256"], "modes": ["Sign"]}
    async with Plant(tmp_path, **{**settings(tmp_path, site.theirs, tmp_path / "pki"), **only}) as plant:
        words = "does not offer Basic256Sha256/SignAndEncrypt; it offers Basic256Sha256/Sign"
        await fault(plant.url, security, words)
        await fault(plant.url, UNSECURED, "")


async def test_p17_certificates_and_user_survive_every_reconnect(site, security):
    """ThingsBoard #701: after a reconnect the certificates were forgotten."""
    readings = Readings()
    who = replace(security, user="powerblock", password=USERS["powerblock"])
    async with watching(site.plant.url, readings, security=who):
        for end in ("drop", "stop"):
            await readings.until(whole)
            await site.plant.ask(end)
            await readings.until(down)
            if end == "stop":
                await site.plant.ask("start")
            await readings.until(whole, within_s=20)
            await asyncio.sleep(0.5)
            await site.plant.say("Cdu.HeatKw", 7)
            await readings.until(lambda r: r.values.get("heat_w") == 7000.0)
            await site.plant.say("Cdu.HeatKw", 812.5)


async def test_p17_a_renewed_certificate_of_ours_holds_from_the_next_connect_on(site, security, tmp_path):
    first = pair(tmp_path, "gateway", uri="urn:block-7:gateway")
    admit(site.pki, first)
    await site.plant.ask("stop")
    await site.plant.ask("start")
    readings = Readings()
    mine = replace(security, certificate=first.cert_file, key=first.key_file)
    async with watching(site.plant.url, readings, security=mine):
        await readings.until(whole)
        renewed = pair(tmp_path, "gateway", uri="urn:block-7:gateway", key=private_key("renewed"))
        shutil.copy(renewed.cert_file, site.pki / "trusted" / "certs" / "renewed.pem")
        await site.plant.ask("stop")
        await site.plant.ask("start")
        await readings.until(whole, within_s=20)
