"""The Redfish client against a BMC on loopback, over TLS, that behaves as badly as BMCs do."""

import asyncio
import contextlib
import math
import random
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_sim.redfish_bmc import RedfishBmc, self_signed
from protocols.redfish import (
    BmcSettings,
    Lever,
    RedfishConfigError,
    RedfishFault,
    Unreachable,
    change,
    discover,
    read,
    set_limit,
)
from protocols.redfish import (
    client as http,
)
from protocols.redfish.client import Answer, uri_fault
from protocols.redfish.levers import _natural, _parsed
from tests.bmcs import PASSWORD, client, gpus, simulated
from tests.brokers import Authority

# Connections are cut and handshakes refused here: what the library then leaves to the collector is closed by
# it, with a warning that lands in whichever test runs by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def memory(tmp_path):
    return gpus(tmp_path)


@pytest.fixture
async def bmc(memory, certificate):
    async with simulated(memory, certificate) as made:
        yield made


@pytest.fixture
async def ours(bmc, certificate):
    made = client(bmc, certificate)
    yield made
    await made.close()


def settings(**kwargs) -> BmcSettings:
    return BmcSettings(
        **{"url": "https://n01-bmc", "user": "u", "password": "p", "fingerprint": "ab" * 32, **kwargs}
    )


# -- levers -----------------------------------------------------------------------------------------------


async def test_every_gpu_is_found_with_its_limits_in_the_order_of_its_names(ours):
    found = await discover(ours, "gpu")
    assert [(one.gpu, one.uri.split("/")[-2]) for one in found] == [(n, f"GPU_{n}") for n in range(4)]
    assert {(one.min_w, one.max_w, one.setpoint_w, one.reading_w) for one in found} == {
        (200, 1200, 1200, 140)
    }
    assert sorted(["GPU_SXM_10", "GPU_SXM_2"], key=_natural) == ["GPU_SXM_2", "GPU_SXM_10"]


async def test_what_is_set_ends_at_the_boards_and_is_read_back(ours, memory):
    lever = (await discover(ours, "gpu"))[2]
    assert (await set_limit(ours, lever, 655.7)).setpoint_w == 655  # whole watts, never above
    assert memory.enforced_mw().tolist() == [1_200_000, 1_200_000, 655_000, 1_200_000]


async def test_controls_of_cpus_percentages_and_frequencies_are_no_levers(ours, memory):
    found = await discover(ours, "control")
    assert [one.uri.rpartition("/")[2] for one in found] == [f"Accelerator{n}PowerLimit" for n in range(4)]
    assert (await set_limit(ours, found[0], 300)).bound_w == 300
    assert memory.enforced_mw()[0] == 300_000


async def test_a_policy_of_a_domain_limits_all_gpus_together(ours, memory):
    (lever,) = await discover(ours, "domain")
    assert (lever.gpu, lever.domain, lever.setpoint_w) == (None, "0", 4800)
    await set_limit(ours, lever, 2000)
    assert memory.enforced_mw().tolist() == [500_000] * 4


async def test_a_policy_that_is_not_in_effect_is_never_taken_for_a_limit(ours, bmc, monkeypatch):
    bmc.policy_enabled = False
    (lever,) = await discover(ours, "domain")
    assert lever.bound_w == math.inf
    with pytest.raises(RedfishFault, match="policy is Disabled: enable its domain"):
        await set_limit(ours, lever, 2000, within_s=0)


async def test_a_disabled_control_is_enabled_by_the_write_and_disabled_by_its_restoration(ours, bmc, memory):
    bmc._modes[1] = "Disabled"
    lever = (await discover(ours, "control"))[1]
    assert (lever.mode, lever.bound_w) == ("Disabled", math.inf)
    held = await set_limit(ours, lever, 400)
    assert (held.mode, held.bound_w, memory.enforced_mw()[1]) == ("Automatic", 400, 400_000)
    await set_limit(ours, held, 1200, mode="Disabled")
    assert bmc._modes[1] == "Disabled"


async def test_a_control_that_stays_on_though_it_was_to_be_off_is_found_out(ours, bmc, monkeypatch):
    lever = (await discover(ours, "control"))[1]
    monkeypatch.setattr(bmc, "_modes", _AlwaysOn(bmc._modes))
    with pytest.raises(RedfishFault, match="the control is Automatic: set it to Disabled"):
        await set_limit(ours, lever, 1200, mode="Disabled", within_s=0)


class _AlwaysOn(list):
    """Modes that nothing changes."""

    def __setitem__(self, gpu, mode):
        pass


async def test_below_what_the_board_takes_the_least_is_set(ours, memory):
    lever = (await discover(ours, "gpu"))[0]
    assert (await set_limit(ours, lever, 90)).setpoint_w == 200


async def test_a_refusal_is_quoted(ours):
    lever = (await discover(ours, "gpu"))[0]
    with pytest.raises(RedfishFault, match=r"400.*not in the supported range 200-1200"):
        await set_limit(ours, replace(lever, min_w=None), 90)


@pytest.mark.parametrize("has_tasks", [False, True])
async def test_a_bmc_that_says_yes_and_does_nothing_is_found_out(ours, bmc, has_tasks):
    lever = (await discover(ours, "gpu"))[0]
    bmc.fault, bmc.has_tasks = "ignores", has_tasks
    with pytest.raises(RedfishFault, match="accepted 300 W and still shows 1200 W"):
        await set_limit(ours, lever, 300, within_s=0.4)


async def test_a_change_that_is_accepted_for_later_is_waited_for(ours, bmc, memory):
    lever = (await discover(ours, "gpu"))[0]
    bmc.has_tasks = True
    await set_limit(ours, lever, 300)
    assert memory.enforced_mw()[0] == 300_000
    assert any("TaskMonitors" in request for request in bmc.requests)


async def test_a_task_that_never_ends_is_not_waited_for_for_ever(ours, bmc, monkeypatch):
    monkeypatch.setattr(http, "TASK_MAX_S", 0.3)
    lever = (await discover(ours, "gpu"))[0]
    bmc.has_tasks = True
    monkeypatch.setattr(bmc, "_tasks", _Endless())
    with pytest.raises(RedfishFault, match=r"not done after 0.3 s"):
        await set_limit(ours, lever, 300)


class _Endless(dict):
    """Task monitors with one more step whenever one is done."""

    def __setitem__(self, monitor, steps):
        super().__setitem__(monitor, [lambda: None] * 1000)


async def test_a_bmc_that_wants_an_etag_gets_the_newest_from_then_on(ours, bmc, memory):
    bmc.wants_etag = True
    found = await discover(ours, "gpu")
    for lever in found:  # each write changes the ETag of all
        await set_limit(ours, lever, 300)
    assert memory.enforced_mw().tolist() == [300_000] * 4
    assert sum(request.startswith("PATCH") for request in bmc.requests) == 5  # one was refused


def test_what_is_patched_is_what_the_vendors_show():
    gpu = Lever("/redfish/v1/x", "gpu", 0, mode="Automatic")
    assert change(gpu, 700.0) == {"PowerLimitWatts": {"SetPoint": 700}}
    assert change(replace(gpu, kind="control", mode="Disabled"), 700.0) == {
        "SetPoint": 700,
        "ControlMode": "Automatic",
    }
    assert change(replace(gpu, kind="domain"), 7000.0) == {"Limit": 7000}


def test_a_captured_gb300_answer_reads_as_its_owner_says():
    """Values of github.com/spyroot/redfish_ctl, EnvironmentMetrics of a GB300."""
    said = {
        "Reading": 231.939,
        "SetPoint": 1400,
        "DefaultSetPoint": 1400,
        "AllowableMin": 200,
        "AllowableMax": 1400,
    }
    answer = Answer("/u", 200, {}, {"PowerLimitWatts": {**said, "ControlMode": "Automatic"}}, 5.0)
    lever = _parsed(answer, Lever("/u", "gpu", 0))
    assert (lever.setpoint_w, lever.min_w, lever.max_w, lever.reading_w) == (1400, 200, 1400, 231.939)
    assert (lever.bound_w, lever.asked_at_s) == (1400, 5.0)


def test_a_control_reads_as_in_dmtfs_own_mockup():
    """Values of github.com/DMTF/Redfish-Mockup-Server, public-rackmount1, Chassis/1U/Controls/PowerLimit."""
    said = {
        "ControlType": "Power",
        "ControlMode": "Automatic",
        "PhysicalContext": "Chassis",
        "SetPointUnits": "W",
    }
    limits = {"SetPoint": 500, "AllowableMin": 150, "AllowableMax": 1000, "Sensor": {"Reading": 374}}
    lever = _parsed(Answer("/u", 200, {}, {**said, **limits}, 0.0), Lever("/u", "control"))
    assert (lever.bound_w, lever.min_w, lever.max_w, lever.reading_w) == (500, 150, 1000, 374)


def test_a_policy_reads_as_in_the_users_guide_of_the_dgx_b200():
    """Values of section 9.3.13: a policy that is shown there is not in effect."""
    said = {
        "ComponentId": "COMP_MEMORY",
        "Limit": 800,
        "PercentageOfDomainBudget": 15,
        "Status": {"State": "Disabled"},
    }
    lever = _parsed(Answer("/u", 200, {}, said, 0.0), Lever("/u", "domain", domain="0"))
    assert (lever.setpoint_w, lever.mode, lever.bound_w) == (800, "Disabled", math.inf)


async def test_a_chassis_control_is_a_lever_of_the_whole_host_where_no_gpu_has_its_own():
    def control(context):
        return {"ControlType": "Power", "PhysicalContext": context, "SetPointUnits": "W", "SetPoint": 500}

    one, two = "/redfish/v1/Chassis/1U/Controls/PowerLimit", "/redfish/v1/Chassis/1U/Controls/Second"
    tree = {
        "/redfish/v1": {"Chassis": {"@odata.id": "/redfish/v1/Chassis"}},
        "/redfish/v1/Chassis": {"Members": [{"@odata.id": "/redfish/v1/Chassis/1U"}]},
        "/redfish/v1/Chassis/1U": {"Controls": {"@odata.id": "/redfish/v1/Chassis/1U/Controls"}},
        "/redfish/v1/Chassis/1U/Controls": {"Members": [{"@odata.id": one}, {"@odata.id": two}]},
        one: control("Chassis"),
        two: control("CPU"),
    }
    for other in ("CPU", [], {}, None):
        (lever,) = await discover(Told({**tree, two: control(other)}), "control")
        assert (lever.uri, lever.gpu, lever.bound_w) == (one, None, 500)
    with pytest.raises(RedfishFault, match="which of these carries the GPUs"):
        await discover(Told({**tree, two: control("Chassis")}), "control")


@pytest.mark.parametrize("least", [{}, {"AllowableMin": 350}])
@pytest.mark.parametrize(("shown_w", "binds"), [(0, False), (200, None), (349.6, True), (350, True)])
def test_a_set_point_of_zero_or_below_the_least_limits_nothing(least, shown_w, binds):
    """docs-csm of HPE Cray EX: 0 removes the limit."""
    said = {"PowerLimitWatts": {"SetPoint": shown_w, "ControlMode": "Automatic", **least}}
    lever = _parsed(Answer("/u", 200, {}, said, 0), Lever("/u", "gpu", 0))
    does_bind = not least if binds is None else binds
    assert lever.bound_w == (shown_w if does_bind else math.inf)


@pytest.mark.parametrize("value", [None, "300", True, -1, 1e9, [], {}])
def test_a_set_point_that_is_no_power_limits_nothing(value):
    lever = _parsed(Answer("/u", 200, {}, {"PowerLimitWatts": {"SetPoint": value}}, 0), Lever("/u", "gpu", 0))
    assert (lever.setpoint_w, lever.bound_w) == (None, math.inf)


async def test_a_bmc_without_gpus_says_where_they_were_looked_for(tmp_path, certificate):
    async with simulated(gpus(tmp_path), certificate, count=0) as bare:
        bmc = client(bare, certificate)
        with pytest.raises(RedfishFault, match="no processor under Systems"):
            await discover(bmc, "gpu")
        await bmc.close()


# -- sessions and connections ------------------------------------------------------------------------------


async def test_one_login_and_two_connections_serve_everything(ours, bmc):
    found = await discover(ours, "gpu")
    await asyncio.gather(*(set_limit(ours, lever, 300) for lever in found))
    await asyncio.gather(*(read(ours, lever) for lever in found * 5))
    assert bmc.connections_peak == 2
    assert (bmc.logins, bmc.basic_auths, bmc.refused) == (1, 0, 0)
    assert len(bmc.requests) > 40


async def test_closing_gives_session_and_connections_back(ours, bmc):
    await discover(ours, "gpu")
    await ours.close()
    await until(lambda: bmc.connections == 0)
    assert (bmc.sessions, bmc.requests[-1]) == (0, "DELETE /redfish/v1/SessionService/Sessions/1")


async def test_a_session_that_ended_is_renewed_once_for_all_who_wait(ours, bmc):
    found = await discover(ours, "gpu")
    bmc.expire_sessions()
    assert {one.setpoint_w for one in await asyncio.gather(*(read(ours, lever) for lever in found))} == {1200}
    assert bmc.logins == 2


async def test_a_bmc_that_forgets_its_sessions_is_not_asked_for_ever(ours, bmc):
    lever = (await discover(ours, "gpu"))[0]
    bmc.fault = "forgets_token"
    with pytest.raises(RedfishFault, match="401, it does not accept the session it has just given"):
        await read(ours, lever)
    assert bmc.logins == 2


async def test_a_bmc_that_lets_us_in_and_answers_nothing_gets_no_login_with_every_request(ours, bmc):
    lever = (await discover(ours, "gpu"))[0]
    bmc.fault = "forbids"
    for _ in range(10):
        with pytest.raises(RedfishFault, match="401, it does not accept the session"):
            await read(ours, lever)
    assert (bmc.logins, bmc.sessions) == (2, 1)
    bmc.fault = ""
    assert (await read(ours, lever)).setpoint_w == 1200


async def test_a_session_that_is_renewed_is_ended_first(ours, bmc, monkeypatch):
    monkeypatch.setattr(http, "LOGIN_AGAIN_S", 0.0)
    lever = (await discover(ours, "gpu"))[0]
    bmc.fault = "forbids"
    for _ in range(20):  # a BMC has places for 16
        with pytest.raises(RedfishFault, match="401, it does not accept the session"):
            await read(ours, lever)
    assert (bmc.logins, bmc.sessions) == (21, 1)


async def test_a_refused_password_is_sent_once_lest_the_account_be_locked(bmc, certificate):
    ours = client(bmc, certificate, password="wrong")
    for _ in range(3):
        with pytest.raises(Unreachable, match="login as powerblock: 401, refused: check user and password"):
            await discover(ours, "gpu")
    assert bmc.requests == ["POST /redfish/v1/SessionService/Sessions"]
    await ours.close()


async def test_others_who_hold_connections_leave_us_none_and_we_say_so(ours, bmc, memory):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            writer = await _connected(bmc)
            stack.push_async_callback(_hung_up, writer)
        await until(lambda: bmc.connections == 4)
        with pytest.raises(Unreachable, match=r"may have no connection left|cannot be"):
            await discover(ours, "gpu")
    await until(lambda: bmc.connections == 0)
    assert len(await discover(ours, "gpu")) == 4


async def test_requests_that_time_out_do_not_pile_up_connections(bmc, certificate):
    ours = client(bmc, certificate, request_max_s=0.1)
    await ours.get("/redfish/v1/")
    bmc.fault = "deaf"
    for _ in range(3):
        results = await asyncio.gather(*(ours.get("/redfish/v1/") for _ in range(4)), return_exceptions=True)
        assert {type(one) for one in results} == {Unreachable}
    assert bmc.connections_peak == 2
    bmc.fault = ""
    assert (await ours.get("/redfish/v1/")).status == 200
    await ours.close()


# -- who answers --------------------------------------------------------------------------------------------


async def test_another_certificate_than_the_pinned_one_gets_no_password(bmc, tmp_path, certificate):
    ours = client(bmc, self_signed(tmp_path, "other"))
    with pytest.raises(Unreachable, match=f"another certificate.*{certificate.fingerprint}"):
        await discover(ours, "gpu")
    assert bmc.requests == []
    await ours.close()


async def test_a_ca_vouches_for_certificate_and_host_name(memory, tmp_path, certificate):
    ca = Authority(tmp_path)
    good, strange = ca.server("127.0.0.1"), ca.server("somewhere.else.example")
    for pair, is_good in ((good, True), (strange, False)):
        shown = replace(certificate, cert_file=Path(pair.cert_file), key_file=Path(pair.key_file))
        async with simulated(memory, shown) as bmc:
            ours = client(bmc, certificate, fingerprint=None, ca_file=ca.ca_file)
            if is_good:
                assert len(await discover(ours, "gpu")) == 4
            else:
                with pytest.raises(Unreachable, match="our CA file or its host name disproves"):
                    await discover(ours, "gpu")
                assert bmc.requests == []
            await ours.close()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"fingerprint": None}, "exactly one of ca and fingerprint"),
        ({"ca_file": "/ca.pem"}, "exactly one of ca and fingerprint"),
        ({"fingerprint": "ab:cd"}, "is no SHA-256"),
        ({"fingerprint": None, "ca_file": "/no/such.pem"}, "give a readable PEM file"),
        ({"url": "http://n01-bmc"}, "use https"),
        ({"url": "https://root:calvin@n01-bmc"}, "ends up in logs"),
        ({"url": "https://n01-bmc/redfish/v1"}, "host and port alone"),
        ({"url": "https://n01-bmc:port"}, "use https://host"),
        ({"password": ""}, "password: empty"),
        ({"request_max_s": 0}, "give 0 to 60 s"),
    ],
)
def test_a_bmc_that_cannot_be_used_is_refused_with_a_remedy(wrong, told):
    with pytest.raises(RedfishConfigError, match=told):
        settings(**wrong)


def test_the_password_is_not_shown():
    assert "secret" not in repr(settings(password="secret"))


# -- what a BMC may do to us --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("booting", "503, it is busy or still booting"),
        ("deaf", "no answer within 0.2 s"),
        ("huge", "an answer of more than 262144 bytes"),
        ("garbage", "gives no X-Auth-Token|no processor under Systems"),
    ],
)
async def test_every_fault_is_a_sentence_that_names_the_bmc(bmc, certificate, fault, told):
    ours = client(bmc, certificate, request_max_s=0.2)
    bmc.fault = fault
    with pytest.raises(RedfishFault, match=told) as caught:
        await discover(ours, "gpu")
    assert str(caught.value).startswith("BMC 127.0.0.1:")
    assert PASSWORD not in str(caught.value)
    await ours.close()


async def test_nobody_there_is_said_at_once(bmc, certificate):
    ours = client(bmc, certificate)
    await bmc.stop()
    with pytest.raises(Unreachable, match="cannot be reached: check address, management network"):
        await discover(ours, "gpu")
    await ours.close()


async def test_a_bmc_that_comes_back_is_used_again(ours, bmc):
    await discover(ours, "gpu")
    await bmc.stop()
    with pytest.raises(Unreachable):
        await discover(ours, "gpu")
    await bmc.start()
    assert len(await discover(ours, "gpu")) == 4
    assert bmc.logins == 2


@pytest.fixture
def misdirected(monkeypatch):
    """Every `Location` that the BMC names is no address."""
    exchange = http.Bmc._exchange

    async def spoilt(self, *args) -> Answer:
        answer = await exchange(self, *args)
        if "Location" not in answer.headers:
            return answer
        return replace(answer, headers={**answer.headers, "Location": "https://[bmc]/redfish/v1/x"})

    monkeypatch.setattr(http.Bmc, "_exchange", spoilt)


async def test_a_session_whose_address_is_none_serves_and_is_ended_by_what_its_body_says(
    ours, bmc, misdirected
):
    assert len(await discover(ours, "gpu")) == 4
    await ours.close()
    assert (bmc.logins, bmc.sessions) == (1, 0)


async def test_a_task_whose_address_is_none_is_a_fault_of_this_change_alone(ours, bmc, misdirected):
    lever = (await discover(ours, "gpu"))[0]
    bmc.has_tasks = True
    with pytest.raises(
        RedfishFault, match=r"how it ends is told at https://\[bmc\]/redfish/v1/x: no address"
    ):
        await set_limit(ours, lever, 300)
    bmc.has_tasks = False
    assert (await set_limit(ours, lever, 300)).setpoint_w == 300


@pytest.mark.parametrize(
    ("told", "path"),
    [
        ("/redfish/v1/x", "/redfish/v1/x"),
        ("https://bmc/redfish/v1/x?y=1", "/redfish/v1/x"),
        ("https://bmc:port/redfish/v1/x", "/redfish/v1/x"),
        ("https://[bmc]/x", ""),
        ("https://[::1/x", ""),
        ("https://bmc\u2100/x", ""),  # which means more than it shows, and is refused for it
        ("", ""),
        (None, ""),
        ([], ""),
    ],
)
def test_what_is_no_address_leads_nowhere(told, path):
    assert http.path_of(told) == path


@pytest.mark.parametrize("state", [[], {}, ["Running"], None, 7])
async def test_a_task_in_no_state_that_there_is_has_not_been_done(ours, bmc, monkeypatch, state):
    """A list has no hash: it cannot even be looked up among the states."""
    lever = (await discover(ours, "gpu"))[0]
    bmc.has_tasks = True
    exchange = http.Bmc._exchange

    async def spoilt(self, method, uri, *args) -> Answer:
        answer = await exchange(self, method, uri, *args)
        if "TaskMonitors" not in uri:
            return answer
        return replace(answer, status=200, body={"TaskState": state})

    monkeypatch.setattr(http.Bmc, "_exchange", spoilt)
    with pytest.raises(RedfishFault, match="accepted, then its task ended as"):
        await set_limit(ours, lever, 300)


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/redfish/v1",
        "//evil.example/redfish/v1",
        "/admin",
        "/redfish/v1/../../x",
        "/redfish/v1/a b",
    ],
)
async def test_links_lead_nowhere_but_into_redfish(ours, bmc, uri):
    assert uri_fault(uri)
    with pytest.raises(RedfishFault, match=r"no path below|not a path"):
        await ours.get(uri)
    assert not [request for request in bmc.requests if "GET" in request]


async def test_a_collection_that_links_to_itself_ends(ours, bmc, monkeypatch):
    tree = bmc._tree()
    listing = "/redfish/v1/Systems"
    looped = {**tree, listing: {**tree[listing], "Members@odata.nextLink": listing}}
    monkeypatch.setattr(bmc, "_tree", lambda: looped)
    assert len(await discover(ours, "gpu")) == 4


async def test_a_cancelled_discovery_leaves_no_request_behind(bmc, certificate):
    bmc.answer_s = (0.05, 0.05)
    ours = client(bmc, certificate)
    task = asyncio.create_task(discover(ours, "gpu"))
    await until(lambda: len(bmc.requests) > 6)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ours.close()
    await until(lambda: bmc.connections == 0)
    asked = len(bmc.requests)
    await asyncio.sleep(0.2)
    assert len(bmc.requests) == asked


class Told:
    """A BMC that only ever says what is written down here."""

    name = "BMC told"

    def __init__(self, tree) -> None:
        self.tree = tree

    async def get(self, uri: str) -> Answer:
        if uri.rstrip("/") not in self.tree:
            raise RedfishFault(f"{uri}: 404", 404)
        return Answer(uri, 200, {}, self.tree[uri.rstrip("/")], 0.0)


JUNK = (
    None,
    0,
    -1.5,
    1e300,
    10**40,
    True,
    "",
    "x",
    "/redfish/v1",
    "/redfish/v1/" + "9" * 6000,
    [],
    [[]],
    {},
    {"@odata.id": 7},
    [{"@odata.id": "/x"}],
)


def spoiled(value, rng: random.Random):
    """The same JSON, with something else in some places."""
    if rng.random() < 0.03:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        return {key: spoiled(one, rng) for key, one in value.items()}
    return [spoiled(one, rng) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["gpu", "control", "domain"])
async def test_whatever_a_bmc_says_is_a_lever_or_a_sentence(bmc, kind):
    tree = bmc._tree()
    assert len(await discover(Told(tree), kind)) in (1, 4)
    for seed in range(300):
        rng = random.Random(seed)
        said = {uri: one if isinstance(one := spoiled(body, rng), dict) else {} for uri, body in tree.items()}
        with contextlib.suppress(RedfishFault):
            for lever in await discover(Told(said), kind):
                assert lever.bound_w >= 0
                assert change(lever, lever.clamped_w(300))


# -- help ---------------------------------------------------------------------------------------------------


async def until(holds, wait_max_s: float = 10.0) -> None:
    async with asyncio.timeout(wait_max_s):
        while not holds():  # noqa: ASYNC110  what is waited for is in another program in real life
            await asyncio.sleep(0.01)


async def _connected(bmc: RedfishBmc) -> asyncio.StreamWriter:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", int(bmc.url.rpartition(":")[2]), ssl=context)
    return writer


async def _hung_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
