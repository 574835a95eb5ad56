"""The grid's side over real brokers with mutual TLS, heard by a client that shares no code with it."""

import asyncio
import json
import os
import shutil
import ssl
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest

from firmware_sim.authority import Authority
from firmware_sim.grid_operator import GridEvent
from firmware_sim.grid_side import EVENT_TOPIC, HEARTBEAT_TOPIC, ISV_ID, GridSide, rights_of
from firmware_sim.lifetime import RigError, end_tasks
from firmware_sim.scenario import Fault, parse_scenario
from firmware_sim.site_broker import Rights, SiteBroker, mosquitto_acl, nats_users
from protocols.dsx_flex import envelope, load_target, power_state, topics
from protocols.dsx_flex.power_state import FeedRating, FeedState, Happening
from protocols.dsx_flex.signing import KeySet, Signer, read_jwks
from protocols.ven import Ven, VenSettings

PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
BINARIES = {"mosquitto": "mosquitto", "nats": "nats-server"}
BEAT_S = 0.1
ORDER, REPORT = "powerblock/demo/agent/n1/order", "powerblock/demo/agent/n1/report"
TABLE, FACTS = "powerblock/demo/agent/n1/table", "powerblock/demo/agent/n1/facts"
CALL = "powerblock/demo/agents/call"
LOAD_TARGET = f"grid/v1/isv/{ISV_ID}/loadtarget/set"
STATUS, BREACH = (f"grid/v1/dsx-flex-agent/demo/{tail}" for tail in ("powerstate/status", "powerbreach"))


@pytest.fixture(autouse=True)
def _quick_beats(monkeypatch):
    for module, constant in (("isv", "REPEAT_S"), ("grid_operator", "HEARTBEAT_PERIOD_S")):
        monkeypatch.setattr(f"firmware_sim.{module}.{constant}", BEAT_S)


def a_scenario(signals="bare", broker="mosquitto", tls="mutual", **changes):
    if broker in BINARIES and shutil.which(BINARIES[broker], path=PATH) is None:
        pytest.skip(f"no {BINARIES[broker]} here")
    return parse_scenario(
        {
            "name": "short",
            "duration_s": 10,
            "site": {"signals": signals, "broker": broker, "tls": tls},
            "block": {
                "racks": [{"name": "r1"}],
                "nodes": [{"name": "n1", "rack": "r1"}, {"name": "n2", "rack": "r1"}],
            },
            **changes,
        },
        "short.yaml",
    )


@asynccontextmanager
async def a_grid(tmp_path, *args, **kwargs):
    async with GridSide(a_scenario(*args, **kwargs), tmp_path) as grid:
        tasks = grid.speak()
        try:
            yield grid
        finally:
            await end_tasks(tasks)


def client_of(grid, name):
    """A client as its configuration file would make it."""
    config = grid.broker.mqtt_config(name)
    tls = None
    if "ca" in config:
        tls = ssl.create_default_context(cafile=config["ca"])
        tls.load_cert_chain(config["cert"], config["key"])
    return aiomqtt.Client(grid.broker.host, grid.broker.port, tls_context=tls, timeout=2)


@asynccontextmanager
async def listening(grid, name, *filters):
    """What that client hears there; None: the broker refused one of them."""
    heard = []

    async def listen():
        async with client_of(grid, name) as client:
            granted = await client.subscribe([(one, 1) for one in filters])
            ready.set_result(max(code.value for code in granted))
            async for message in client.messages:
                heard.append((message.topic.value, bytes(message.payload)))  # noqa: PERF401  as they come

    ready = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(5):
            heard_qos = await ready
        yield heard if heard_qos < 0x80 else None
    finally:
        await end_tasks([task])


async def until(happened, wait_s=5.0):
    async with asyncio.timeout(wait_s):
        while not happened():  # noqa: ASYNC110  any condition, not one event
            await asyncio.sleep(0.01)


def an_event(name="dr-1", limit_kw=9.9, duration_s=30.0):
    return GridEvent(
        id=name, type="IMPORT_CAPACITY_LIMIT", limit_kw=limit_kw, starts_utc_s=time.time(), duration_s=duration_s
    )  # fmt: skip


# ---- rights ---------------------------------------------------------------------------------------------

MAY_NOT_WRITE = {  # client: what it would like to say
    "agent-n2": (REPORT, FACTS, ORDER, CALL, EVENT_TOPIC, HEARTBEAT_TOPIC, LOAD_TARGET, STATUS),
    "agent-n1": (ORDER, TABLE, CALL, HEARTBEAT_TOPIC),
    "controller": (EVENT_TOPIC, HEARTBEAT_TOPIC, LOAD_TARGET, REPORT, FACTS, "vtn/events/x/create"),
    "operator": (ORDER, LOAD_TARGET, "vtn/events/x/create"),
    "isv": (EVENT_TOPIC, HEARTBEAT_TOPIC, STATUS, "grid/v1/isv/isv-2/loadtarget/set", ORDER),
    "vtn": (EVENT_TOPIC, HEARTBEAT_TOPIC, LOAD_TARGET, ORDER),
    "ven": ("vtn/events/x/create", ORDER),
    "observer": (ORDER, EVENT_TOPIC, HEARTBEAT_TOPIC, LOAD_TARGET),
}
MAY_WRITE = {
    "agent-n1": REPORT,
    "controller": ORDER,
    "operator": EVENT_TOPIC,
    "isv": LOAD_TARGET,
    "vtn": "vtn/events/vens/ven-1/create",
}
MAY_NOT_READ = {
    "agent-n1": ("powerblock/demo/agent/n2/order", REPORT, EVENT_TOPIC),
    "operator": (EVENT_TOPIC, ORDER),
    "ven": (EVENT_TOPIC, ORDER, LOAD_TARGET),
    "isv": (ORDER, EVENT_TOPIC),
}


@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
async def test_each_client_may_do_its_part_and_no_more(tmp_path, broker):
    scenario = a_scenario("mixed", broker)
    async with (
        GridSide(scenario, tmp_path) as grid,
        listening(grid, "observer", *rights_of(scenario)["observer"].read) as heard,
        listening(grid, "controller", "grid/v1/isv/+/loadtarget/set") as targets,
    ):
        for name, wishes in MAY_NOT_WRITE.items():
            async with client_of(grid, name) as client:
                for topic in wishes:
                    await client.publish(topic, f"{name} must not", qos=1)
        for name, topic in MAY_WRITE.items():
            async with client_of(grid, name) as client:
                await client.publish(topic, name, qos=1)
        await until(lambda: {(t, n.encode()) for n, t in MAY_WRITE.items()} <= set(heard))
        await until(lambda: targets)
        assert not [said for _, said in heard + targets if b"must not" in said]


@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
async def test_nobody_hears_what_is_not_for_him(tmp_path, broker):
    async with GridSide(a_scenario("mixed", broker), tmp_path) as grid:
        writers = {EVENT_TOPIC: "operator", ORDER: "controller", LOAD_TARGET: "isv", REPORT: "agent-n1"}
        writers["powerblock/demo/agent/n2/order"] = "controller"
        for name, wishes in MAY_NOT_READ.items():
            for topic in wishes:
                async with (
                    listening(grid, name, topic) as heard,
                    listening(grid, "observer", topic) as public,
                ):
                    async with client_of(grid, writers[topic]) as client:
                        await client.publish(topic, b"secret", qos=1)
                    await until(lambda public=public: public)
                    assert not heard, f"{name} hears {topic}"


@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
async def test_strangers_and_the_nameless_are_shut_out(tmp_path, broker):
    async with GridSide(a_scenario("bare", broker), tmp_path) as grid:
        strangers = Authority(tmp_path / "strangers", "strangers")
        forged = ssl.create_default_context(cafile=grid.authority.ca)
        mine = strangers.client("controller")
        forged.load_cert_chain(mine.cert, mine.key)
        nameless = ssl.create_default_context(cafile=grid.authority.ca)

        async def knock(context):
            with pytest.raises(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    grid.broker.host, grid.broker.port, tls_context=context, timeout=0.5
                ) as client:
                    await client.publish(EVENT_TOPIC, b"up with it", qos=1)

        await asyncio.gather(knock(nameless), knock(forged), knock(None))


def test_an_empty_right_is_no_right():
    """NATS takes an empty list of allowed subjects for all of them."""
    (user,) = nats_users({"ven": Rights(read=("vtn/events/#",))})
    assert user["permissions"]["publish"] == {"deny": [">"]}
    assert user["permissions"]["subscribe"]["allow"] == ["vtn.events.>", "vtn.events", "$MQTT.sub.>"]
    assert mosquitto_acl({"ven": Rights(read=("a/+",))}) == "user ven\ntopic read a/+\n"


def test_who_does_not_speak_has_no_rights():
    rights = rights_of(a_scenario("dsx"))
    assert set(rights) == {"controller", "observer", "agent-n1", "agent-n2", "isv"}
    assert EVENT_TOPIC not in rights["controller"].read


def test_a_missing_broker_is_a_sentence_with_its_remedy(tmp_path, monkeypatch):
    scenario = a_scenario()
    monkeypatch.setattr("firmware_sim.site_broker.SYSTEM_PATHS", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RigError, match=r"no mosquitto here: .*apt-get install mosquitto.*embedded"):
        GridSide(scenario, tmp_path)


async def test_a_broker_that_will_not_start_is_quoted(tmp_path):
    broker = SiteBroker("mosquitto", tmp_path, {})
    (tmp_path / "mosquitto.conf").write_text("nonsense true\n")
    with pytest.raises(RigError, match="nonsense"):
        await broker.start()


# ---- bare -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broker", "tls"), [("embedded", False), ("mosquitto", "mutual"), ("nats", "mutual")]
)
async def test_the_operator_beats_and_tells_over_every_broker(tmp_path, broker, tls):
    async with a_grid(tmp_path, "bare", broker, tls) as grid:
        async with listening(grid, "controller", HEARTBEAT_TOPIC) as beats:
            await until(lambda: beats)
        async with listening(grid, "controller", EVENT_TOPIC) as events:
            assert await grid.publish(an_event(), "bare")
            await until(lambda: events)
            assert json.loads(events[0][1])["object"]["id"] == "dr-1"
            await grid.cancel("dr-1")
            await until(lambda: len(events) == 2)
            assert json.loads(events[1][1])["operation"] == "DELETE"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho forgets refused sockets
async def test_nobody_talks_to_a_broker_with_a_foreign_certificate_and_all_come_back(tmp_path):
    async with a_grid(tmp_path) as grid:
        async with listening(grid, "controller", HEARTBEAT_TOPIC) as beats:
            await until(lambda: beats)
        heal = await grid.break_certificate(Fault(target="certificate", mode="replaced"))
        with pytest.raises(aiomqtt.MqttError, match="certificate verify failed"):
            async with client_of(grid, "controller"):
                pass
        assert not await grid.publish(an_event(), "bare"), "the operator does not believe it either"
        await heal()
        async with listening(grid, "controller", HEARTBEAT_TOPIC) as beats:
            await until(lambda: beats)
            assert json.loads(beats[-1][1])["event_ids"] == ["dr-1"]


@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
async def test_a_broker_that_was_killed_or_frozen_is_back_with_all_its_clients(tmp_path, broker):
    async with a_grid(tmp_path, "bare", broker) as grid:
        child = grid.broker.child
        child.kill()
        child.start()
        await until(lambda: grid.operator._client is not None)
        async with listening(grid, "controller", HEARTBEAT_TOPIC) as beats:
            await until(lambda: beats)
            child.freeze()
            await asyncio.sleep(BEAT_S)
            before = len(beats)
            await asyncio.sleep(5 * BEAT_S)
            assert len(beats) == before
            child.thaw()
            await until(lambda: len(beats) > before)


# ---- DSX Flex -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broker", "tls", "alert_qos"),
    [("embedded", False, 2), ("mosquitto", "mutual", 2), ("nats", "mutual", 1)],
)
async def test_the_isv_sets_repeats_and_hears(tmp_path, broker, tls, alert_qos):
    async with a_grid(tmp_path, "dsx", broker, tls) as grid:
        (source,) = grid.sources()
        assert source["alert_qos"] == alert_qos
        keys = keys_of(source)

        def limits_w(heard):
            said = [envelope.read(payload) for _, payload in heard]
            return [load_target.read(keys.verify(one.data, time.time()))[0].limit_w for one in said]

        async with listening(grid, "controller", LOAD_TARGET) as heard:
            await until(lambda: heard)
            assert limits_w(heard) == [None]
            assert await grid.publish(an_event(), "dsx")
            await until(lambda: limits_w(heard)[-1] == 9900)
            count = len(heard)
            await until(lambda: len(heard) > count)
            assert limits_w(heard)[-1] == 9900, "repeated without being asked"
            await grid.cancel("dr-1")
            await until(lambda: limits_w(heard)[-1] is None)

        async with client_of(grid, "controller") as agent:
            for event in ("target_set", "start_ramp_down", "end_ramp_down"):
                await agent.publish(STATUS, a_status(source, event), qos=1)
            await agent.publish(STATUS, b"{}", qos=1)
        await until(lambda: grid.isv.refused)
        assert [status.event for status in grid.isv.statuses] == [
            "target_set",
            "start_ramp_down",
            "end_ramp_down",
        ]
        assert grid.figures() == {"status_events_missing": 0.0, "status_refused": 1.0}
        record = grid.record(time.time())["dsx"]
        assert -5 < record["statuses"][0]["t_s"] < 0
        json.dumps(record)


def keys_of(source):
    return KeySet(read_jwks(Path(source["publishers"][ISV_ID]).read_bytes()))


def a_status(source, event):
    rating = FeedRating(3000.0, 20_000.0, 16_000.0)
    feed = FeedState(rating, (), 12_000.0, Happening(event, event != "end_ramp_down", None, True))
    signer = Signer(source["signing_kid"], Path(source["signing_key"]).read_bytes())
    out = envelope.Envelope(
        "00000000-0000-4000-8000-000000000001",
        topics.source("agent", source["agent_id"]),
        topics.POWER_STATE_STATUS,
        time.time(),
        envelope.start_trace(bytes(range(1, 25))),
        signer.sign(power_state.data({"main-a": feed}, time.time())),
    )
    return envelope.write(out)


async def test_a_silent_operator_says_nothing_and_comes_back(tmp_path):
    async with (
        a_grid(tmp_path, ["bare", "dsx"]) as grid,
        listening(grid, "observer", HEARTBEAT_TOPIC, LOAD_TARGET) as heard,
    ):
        await until(lambda: {topic for topic, _ in heard} == {HEARTBEAT_TOPIC, LOAD_TARGET})
        heal = await grid.break_operator(Fault(target="operator", mode="silent"))
        await asyncio.sleep(2 * BEAT_S)
        heard.clear()
        assert not await grid.publish(an_event(), "dsx")
        await asyncio.sleep(5 * BEAT_S)
        assert heard == []
        await heal()
        await until(lambda: {topic for topic, _ in heard} == {HEARTBEAT_TOPIC, LOAD_TARGET})


# ---- VTN ------------------------------------------------------------------------------------------------


class Standing:
    """What a VEN has been told."""

    def __init__(self):
        self.events = {}

    def on_message(self, payload, _retained):
        said = json.loads(payload)
        if said["operation"] == "DELETE":
            self.events.pop(said["object"]["id"], None)
        else:
            self.events[said["object"]["id"]] = said["object"]

    def limits_kw(self):
        return {key: event["intervals"][0]["payloads"][0]["values"][0] for key, event in self.events.items()}


def ven_settings(source):
    return VenSettings(
        url=source["url"],
        client_id=source["client_id"],
        client_secret=Path(source["client_secret_file"]).read_text(),
        ven_name=source["ven_name"],
        resources=tuple(source["resources"]),
        ca_file=source["ca"],
        poll_s=source["poll_s"],
    )


@asynccontextmanager
async def a_ven(grid):
    standing = Standing()
    ven = Ven(
        ven_settings(grid.sources()[0]), on_message=standing.on_message, on_program=lambda _program: None
    )
    task = asyncio.create_task(ven.run())
    try:
        await until(lambda: ven.status.state == "following")
        yield ven, standing
    finally:
        await end_tasks([task])


@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
async def test_a_ven_enrols_with_its_configuration_and_is_notified_at_once(tmp_path, broker):
    async with a_grid(tmp_path, "vtn", broker) as grid, a_ven(grid) as (ven, standing):
        await grid.publish(an_event(), "vtn")
        await until(lambda: standing.limits_kw() == {"dr-1": 9.9}, wait_s=0.5)
        await grid.publish(an_event(limit_kw=8.0), "vtn")
        await until(lambda: standing.limits_kw() == {"dr-1": 8.0}, wait_s=0.5)
        await grid.cancel("dr-1")
        await until(lambda: not standing.events, wait_s=0.5)
        assert ven.status.notifications >= 3
        grid.vtn.reports.append({"eventID": "dr-1"})
        assert grid.figures() == {"reports_received": 1.0}
        assert grid.record(0.0) == {"vtn": {"reports": [{"eventID": "dr-1"}]}}


@pytest.mark.parametrize("mode", ["error", "refusing", "silent"])
async def test_a_vtn_that_fails_fails_and_comes_back_with_its_events(tmp_path, mode):
    async with a_grid(tmp_path, "vtn") as grid:
        await grid.publish(an_event(), "vtn")
        async with a_ven(grid) as (ven, standing):
            assert standing.limits_kw() == {"dr-1": 9.9}
            heal = await grid.break_vtn(Fault(target="vtn", mode=mode))
            if mode != "silent":  # whose request just hangs: ten seconds, says the VEN
                await until(lambda: ven.status.fault)
                assert standing.limits_kw() == {"dr-1": 9.9}, "a VTN that fails releases nobody"
            else:
                asked = len(grid.vtn.requests)
                await until(lambda: len(grid.vtn.requests) > asked)
            await heal()
            if mode != "silent":
                await until(lambda: not ven.status.fault and ven.status.state == "following")
                assert standing.limits_kw() == {"dr-1": 9.9}
