"""The simulated BMC, as a client sees it that somebody else wrote: DMTF's own Python library."""

import asyncio

import pytest

from firmware_sim.redfish_bmc import SESSIONS, RedfishBmc, self_signed
from tests.bmcs import PASSWORD, USER, gpus, simulated

redfish = pytest.importorskip("redfish", reason="DMTF's client is not here: pip install redfish")
GPU_0 = "/redfish/v1/Systems/HGX_Baseboard_0/Processors/GPU_0/EnvironmentMetrics"

# The library leaves its sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def memory(tmp_path):
    return gpus(tmp_path)


@pytest.fixture
async def bmc(memory, tmp_path):
    async with simulated(memory, self_signed(tmp_path)) as made:
        yield made


async def logged_in(bmc: RedfishBmc):
    """A session of DMTF's library, which blocks and so lives in a thread."""
    return await asyncio.to_thread(_login, bmc.url, str(bmc._certificate.cert_file))


def _login(url: str, ca_file: str):
    client = redfish.redfish_client(
        base_url=url, username=USER, password=PASSWORD, cafile=ca_file, timeout=5, max_retry=1
    )
    client.login(auth="session")
    return client


async def test_dmtfs_client_logs_in_reads_sets_and_logs_out(bmc, memory):
    client = await logged_in(bmc)
    assert (bmc.logins, bmc.sessions) == (1, 1)
    read = await asyncio.to_thread(client.get, GPU_0)
    limit = read.dict["PowerLimitWatts"]
    assert (read.status, limit["SetPoint"], limit["AllowableMin"], limit["AllowableMax"]) == (
        200,
        1200,
        200,
        1200,
    )
    wanted = {"PowerLimitWatts": {"SetPoint": 700}}
    assert (await asyncio.to_thread(client.patch, GPU_0, body=wanted)).status == 204
    assert memory.enforced_mw().tolist() == [700_000, 1_200_000, 1_200_000, 1_200_000]
    await asyncio.to_thread(client.logout)
    assert (bmc.sessions, bmc.basic_auths) == (0, 0)


async def test_dmtfs_client_finds_every_resource_of_the_tree(bmc):
    client = await logged_in(bmc)
    left, seen = ["/redfish/v1/"], set()
    while left:
        uri = left.pop()
        read = await asyncio.to_thread(client.get, uri)
        assert (uri, read.status) == (uri, 200)
        seen.add(uri)
        left += [link for link in _links(read.dict) if link not in seen]
    assert {GPU_0, SESSIONS} <= seen
    await asyncio.to_thread(client.logout)


def _links(said) -> set[str]:
    """All that a body links to, at any depth."""
    if isinstance(said, list):
        return set().union(*map(_links, said))
    if not isinstance(said, dict):
        return set()
    own = {said["@odata.id"]} if isinstance(said.get("@odata.id"), str) else set()
    return own.union(*(_links(value) for value in said.values()))


async def test_dmtfs_client_understands_a_refusal_and_a_task(bmc, memory):
    client = await logged_in(bmc)
    low = await asyncio.to_thread(client.patch, GPU_0, body={"PowerLimitWatts": {"SetPoint": 100}})
    assert low.status == 400
    assert "not in the supported range" in low.dict["error"]["@Message.ExtendedInfo"][0]["Message"]
    bmc.has_tasks = True
    started = await asyncio.to_thread(client.patch, GPU_0, body={"PowerLimitWatts": {"SetPoint": 500}})
    assert started.is_processing
    while started.is_processing:
        started = await asyncio.to_thread(started.monitor, client)
    assert memory.enforced_mw()[0] == 500_000
    await asyncio.to_thread(client.logout)


async def test_without_the_newest_etag_nothing_is_changed_where_one_is_wanted(bmc, memory):
    bmc.wants_etag = True
    client = await logged_in(bmc)
    wanted = {"PowerLimitWatts": {"SetPoint": 500}}
    etag = (await asyncio.to_thread(client.get, GPU_0)).getheader("ETag")
    for headers, status in (
        (None, 428),
        ({"If-Match": '"old"'}, 412),
        ({"If-Match": etag}, 204),
        ({"If-Match": etag}, 412),
    ):
        answer = await asyncio.to_thread(client.patch, GPU_0, body=wanted, headers=headers)
        assert answer.status == status
    assert memory.enforced_mw()[0] == 500_000
    await asyncio.to_thread(client.logout)


async def test_the_driver_and_the_bmc_limit_the_same_boards_and_the_lower_wins(bmc, memory):
    client = await logged_in(bmc)
    await asyncio.to_thread(client.patch, GPU_0, body={"PowerLimitWatts": {"SetPoint": 700}})
    memory.gpus["requested_mw"][0] = 600_000
    assert memory.enforced_mw()[0] == 600_000
    memory.gpus["requested_mw"][0] = 1_200_000
    assert memory.enforced_mw()[0] == 700_000
    bmc.reset_limits()
    assert memory.enforced_mw()[0] == 1_200_000
    await asyncio.to_thread(client.logout)


async def test_one_bmc_may_serve_a_part_of_the_gpus(memory, tmp_path):
    async with simulated(memory, self_signed(tmp_path), first=2, count=2) as bmc:
        bmc._set_gpu(0, 500.0)
        assert memory.enforced_mw().tolist() == [1_200_000, 1_200_000, 500_000, 1_200_000]


async def test_sessions_end_by_silence(memory, tmp_path):
    async with simulated(memory, self_signed(tmp_path), session_s=0.0) as bmc:
        client = await logged_in(bmc)
        await asyncio.sleep(0.01)
        assert (await asyncio.to_thread(client.get, GPU_0)).status == 401
