"""The OPC UA server over the wire, with asyncua's client; an independent one is in test_facility_opcua_peer."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from asyncua import ua
from structlog.testing import capture_logs

from controller.image.model import AlarmView, Group, Outcome, Point, Result, Role
from controller.verbs import OPERATOR
from tests.brokers import until
from tests.controller.facility.opcua_site import GROUPS, Heard, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")
POWER, FLOW, STAGE = "devices/pdu-1/power_w", "devices/pdu-1/flow_target", "devices/pdu-1/stage"
DEVICE = (5000.0, 22.5, 16.0, 120.0, 8.0)
LIMIT = "Control/SetPowerLimit"
GUARDED = "Control/SetGuardedPowerLimit"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory):
    async with Site(tmp_path_factory.mktemp("opcua"), history_period_s=0.1) as site:
        yield site


@pytest_asyncio.fixture(loop_scope="module")
async def site(whole):
    """The one site, as at the start."""
    whole.plant.commands.clear()
    whole.plant.outcome = lambda command: Outcome(
        result=Result.ACCEPTED, value=command.arguments.get("limit_w", command.arguments.get("value"))
    )
    await whole.told("block", 90_000.0, "feed rating", 1.0)
    await whole.told("devices/pdu-1", *DEVICE)
    return whole


@pytest_asyncio.fixture(loop_scope="module")
async def client(site):
    async with site.client("hands") as client:
        yield client


async def read(client, id_, attribute=ua.AttributeIds.Value):
    return await client.get_node(ua.NodeId(id_, 2)).read_attribute(attribute, raise_on_bad_status=False)


async def value(client, id_):
    return (await read(client, id_)).Value.Value


async def call(client, id_, *inputs):
    """Status and outputs, as they came."""
    request = ua.CallMethodRequest(
        ua.NodeId("Control", 2),
        ua.NodeId(id_, 2),
        [one if isinstance(one, ua.Variant) else ua.Variant(one) for one in inputs],
    )
    (result,) = await client.uaclient.call([request])
    return result.StatusCode.name, [one.Value for one in result.OutputArguments], result


async def write(client, id_, variant):
    asked = ua.WriteValue(ua.NodeId(id_, 2), ua.AttributeIds.Value, Value=ua.DataValue(variant))
    (status,) = await client.uaclient.write(ua.WriteParameters([asked]))
    return status.name


async def watching(client, *ids, period=50, **options):
    heard = Heard()
    subscription = await client.create_subscription(period, heard)
    if ids:
        await subscription.subscribe_data_change(
            [client.get_node(ua.NodeId(id_, 2)) for id_ in ids], **options
        )
    return heard, subscription


class Raw:
    """A subscription as it is on the wire."""

    def __init__(self, client):
        self._client, self.answers = client, []

    @classmethod
    async def watching(cls, client, *wanted, times=ua.TimestampsToReturn.Both, most=0):
        self = cls(client)
        asked = ua.CreateSubscriptionParameters(50.0, 1000, 10, most, True, 0)
        self.number = (await client.uaclient.create_subscription(asked, self.answers.append)).SubscriptionId
        requests = [
            ua.MonitoredItemCreateRequest(
                ua.ReadValueId(ua.NodeId(id_, 2), ua.AttributeIds.Value),
                ua.MonitoringMode.Reporting,
                ua.MonitoringParameters(handle, 50.0, wish, 1, True),
            )
            for handle, (id_, wish) in enumerate(wanted)
        ]
        items = ua.CreateMonitoredItemsParameters(self.number, times, requests)
        self.results = await client.uaclient.create_monitored_items(items)
        return self

    @property
    def told(self):
        """Notifications, oldest first."""
        parts = [part for answer in self.answers for part in answer.NotificationMessage.NotificationData]
        return [item for part in parts for item in part.MonitoredItems]

    async def close(self):
        await self._client.uaclient.delete_subscriptions([self.number])


# --- what is shown --------------------------------------------------------------------------------------


async def test_a_value_comes_with_its_unit_its_range_its_status_and_both_times(client):
    answer = await read(client, POWER)
    assert (answer.Value.Value, answer.Value.VariantType) == (5000.0, ua.VariantType.Double)
    assert answer.StatusCode.is_good()
    assert abs(answer.SourceTimestamp - datetime.now(UTC)) < timedelta(seconds=10)
    assert abs(answer.ServerTimestamp - datetime.now(UTC)) < timedelta(seconds=10)
    node = client.get_node(ua.NodeId(POWER, 2))
    assert (await node.read_type_definition()).Identifier == ua.ObjectIds.AnalogItemType
    unit = await (await node.get_child("0:EngineeringUnits")).read_value()
    assert (unit.UnitId, unit.DisplayName.Text) == (5_723_220, "W")  # "WTT": UNECE Recommendation 20
    assert await (await node.get_child("0:EURange")).read_value() == ua.Range(0.0, 20_000.0)


async def test_the_devices_own_time_is_the_source_time(site, client):
    await site.told("devices/pdu-1", *DEVICE, sources_utc_s={0: 1_700_000_000.0})
    answer = await read(client, POWER)
    assert answer.SourceTimestamp == datetime.fromtimestamp(1_700_000_000, UTC)
    assert answer.ServerTimestamp > answer.SourceTimestamp


async def test_states_texts_and_flags_have_the_types_of_the_standard(client):
    async def shown(id_):
        node = client.get_node(ua.NodeId(id_, 2))
        return (await node.read_type_definition()).Identifier, await node.read_value()

    assert await shown("block/mode") == (ua.ObjectIds.MultiStateDiscreteType, 1)
    names = await value(client, "block/mode#EnumStrings")
    assert [one.Text for one in names] == ["init", "limited", "free"]
    assert await shown(STAGE) == (ua.ObjectIds.MultiStateValueDiscreteType, 8)  # 1, 2, 8: with gaps
    assert [(one.Value, one.DisplayName.Text) for one in await value(client, f"{STAGE}#EnumValues")] == [
        (1, "one"), (2, "two"), (8, "all"),
    ]  # fmt: skip
    assert (await value(client, f"{STAGE}#ValueAsText")).Text == "all"
    assert await shown("devices/pdu-1/alarms") == (ua.ObjectIds.OptionSetType, 16)
    flags = await value(client, "devices/pdu-1/alarms#OptionSetValues")
    assert [one.Text for one in flags] == ["leak", "", "", "", "fan failed"]
    assert await shown("block/limit_source") == (ua.ObjectIds.DataItemType, "feed rating")
    assert (await shown("devices/pdu-1/current_a"))[0] == ua.ObjectIds.AnalogUnitType  # a unit and no range


async def test_everything_hangs_under_power_block_by_its_path(client):
    node = await client.nodes.objects.get_child(
        ["2:PowerBlock", "2:nodes", "2:n1", "2:gpus", "2:1", "2:limit_w"]
    )
    assert node.nodeid == ua.NodeId("nodes/n1/gpus/1/limit_w", 2)
    kind = await client.get_node(ua.NodeId("nodes/n1/gpus/1", 2)).read_type_definition()
    assert (await client.get_node(kind).read_browse_name()).Name == "GpuType"
    assert (await client.get_node(kind).get_parent()).nodeid.Identifier == ua.ObjectIds.BaseObjectType
    assert await value(client, "devices/pdu-1#profile") == "xerus_pdu"
    parents = await client.get_node(ua.NodeId(POWER, 2)).get_path(as_string=True)
    assert parents == ["0:Root", "0:Objects", "2:PowerBlock", "2:devices", "2:pdu-1", "2:power_w"]


async def test_what_is_not_there_is_said_not_to_be_there(client):
    for id_ in ("devices/none", f"{POWER}#Nothing", "", "#", "devices/pdu-1/power_w/x"):
        assert (await read(client, id_)).StatusCode.name == "BadNodeIdUnknown"
    assert (
        await read(client, POWER, ua.AttributeIds.EventNotifier)
    ).StatusCode.name == "BadAttributeIdInvalid"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, "Good"),
        ({"doubt": "RTU framing was lost"}, "Uncertain"),
        ({"doubt": "frozen: all registers the same for 30 s"}, "UncertainLastUsableValue"),
        ({"doubt": "out of service"}, "BadOutOfService"),
        ({"faults": {0: "sentinel 0xFFFF"}}, "BadSensorFailure"),
        ({"faults": {-1: "no answer"}}, "BadNoCommunication"),
        ({"faults": {-1: "not heard yet"}}, "BadWaitingForInitialData"),
        ({"age_s": 700.0}, "BadNoCommunication"),
    ],
)
async def test_every_quality_has_its_status(site, client, more, status):
    """The same for a client that reads and for one that subscribes; a bad value is none."""
    given = (None if "faults" in more else 5000.0, *DEVICE[1:])
    heard, subscription = await watching(client, POWER)
    await until(lambda: heard.values, within_s=10)
    await site.told("devices/pdu-1", *given, **more)
    answer = await read(client, POWER)
    assert answer.StatusCode.name == status
    await until(lambda: heard.status(POWER)[-1] == status, within_s=10)
    expected = None if status.startswith("Bad") else 5000.0
    assert (answer.Value.Value, heard.of(POWER)[-1]) == (expected, expected)
    await subscription.delete()


async def test_a_value_that_was_never_told_waits_for_its_first(client):
    assert (await read(client, "racks/r1/power_w")).StatusCode.name == "BadWaitingForInitialData"


async def test_p15_a_silent_devices_value_turns_bad_by_itself(site, client):
    heard, subscription = await watching(client, "devices/quick/power_w")
    await site.told("devices/quick", 7.0)
    await until(lambda: heard.status("devices/quick/power_w")[-1:] == ["BadNoCommunication"], within_s=10)
    assert "Good" in heard.status("devices/quick/power_w")
    await subscription.delete()


async def test_when_the_controller_dies_every_value_is_bad_at_once_and_comes_back_with_it(site, client):
    heard, subscription = await watching(client, POWER, "block/mode", "block/limit_source")
    await until(lambda: len(heard.values) == 3, within_s=10)
    died_s = time.monotonic()
    await site.plant.die()
    await until(
        lambda: [one.StatusCode.name for *_, one in heard.values[3:]] == ["BadNoCommunication"] * 3,
        within_s=10,
    )
    assert time.monotonic() - died_s < 3.0
    assert (await read(client, POWER)).StatusCode.name == "BadNoCommunication"
    level = client.get_node(ua.NodeId(ua.ObjectIds.Server_ServiceLevel))
    assert await level.read_value() < 200
    assert (await call(client, LIMIT, 1e5, 0.0, 0.0))[0] == "BadNoCommunication"
    assert await write(client, FLOW, ua.Variant(120.0)) == "BadNoCommunication"
    await site.plant.live_again()
    await until(lambda: site.plant.feed.alive, within_s=20)
    await site.told("devices/pdu-1", *DEVICE)
    await until(lambda: heard.status(POWER)[-1] == "Good", within_s=10)
    assert await level.read_value() == 255
    await subscription.delete()


async def test_a_new_device_changes_no_identifier_and_no_subscription(site, client):
    heard, subscription = await watching(client, POWER)
    await until(lambda: heard.of(POWER) == [5000.0], within_s=10)
    events = await subscription.subscribe_events()
    new = Group(
        path="devices/quick", kind="device", points=(Point(name="added_w"), Point(name="power_w", unit="W"))
    )
    site.plant.regroup(2, new)
    await until(lambda: heard.events, within_s=10)
    assert "come or gone" in heard.events[0].Message.Text
    assert (await read(client, "devices/quick/added_w")).StatusCode.name == "BadWaitingForInitialData"
    assert await value(client, POWER) == 5000.0
    await site.told("devices/pdu-1", 6000.0, *DEVICE[1:])
    await until(lambda: heard.of(POWER)[-1] == 6000.0, within_s=10)
    site.plant.regroup(2, GROUPS[2])
    await until(lambda: "devices/quick/added_w" not in site.facility._server.space.entries, within_s=10)
    assert (await read(client, "devices/quick/added_w")).StatusCode.name == "BadNodeIdUnknown"
    await subscription.unsubscribe(events)
    await subscription.delete()


# --- subscriptions --------------------------------------------------------------------------------------


async def test_a_change_within_the_points_deadband_is_not_worth_telling(site, client):
    heard, subscription = await watching(client, POWER)
    await until(lambda: heard.values, within_s=10)
    for power_w in (5003.0, 4996.0, 5004.9, 5006.0):
        await site.told("devices/pdu-1", power_w, *DEVICE[1:])
        await asyncio.sleep(0.15)
    await until(lambda: heard.of(POWER)[-1] == 5006.0, within_s=10)
    assert heard.of(POWER) == [5000.0, 5006.0]
    await subscription.delete()


async def test_a_client_may_have_a_wider_deadband_of_its_own(site, client):
    wide = ua.DataChangeFilter(ua.DataChangeTrigger.StatusValue, ua.DeadbandType.Absolute, 100.0)
    percent = ua.DataChangeFilter(ua.DataChangeTrigger.StatusValue, ua.DeadbandType.Percent, 1.0)  # of 20 kW
    wanted = [(POWER, wide), (POWER, percent), ("block/mode", wide), ("devices/pdu-1/current_a", percent)]
    raw = await Raw.watching(client, *wanted)
    assert [one.StatusCode.name for one in raw.results] == [
        "Good", "Good", "BadFilterNotAllowed", "BadDeadbandFilterInvalid",
    ]  # fmt: skip
    await until(lambda: len(raw.told) == 2, within_s=10)
    for power_w in (5050.0, 5150.0, 5190.0, 5360.0):
        await site.told("devices/pdu-1", power_w, *DEVICE[1:])
        await asyncio.sleep(0.25)
    await until(lambda: raw.told[-1].Value.Value.Value == 5360.0 and len(raw.told) >= 5, within_s=10)
    values = {
        handle: [one.Value.Value.Value for one in raw.told if one.ClientHandle == handle] for handle in (0, 1)
    }
    assert values == {0: [5000.0, 5150.0, 5360.0], 1: [5000.0, 5360.0]}
    await raw.close()


async def test_a_queue_keeps_what_was_sampled_between_two_publishings(site, client):
    heard, subscription = await watching(client, period=1500)
    await subscription.subscribe_data_change(
        client.get_node(ua.NodeId(POWER, 2)), queuesize=3, sampling_interval=100
    )
    await until(lambda: heard.of(POWER) == [5000.0], within_s=10)
    for power_w in (5100.0, 5200.0, 5300.0, 5400.0, 5500.0):
        await site.told("devices/pdu-1", power_w, *DEVICE[1:])
        await asyncio.sleep(0.22)
    await until(lambda: heard.of(POWER)[-1] == 5500.0, within_s=10)
    values = [(value, data.StatusCode.value & 0x480 == 0x480) for _, value, data in heard.values[1:]]
    assert values[-3:] == [(5300.0, values[-3][1]), (5400.0, False), (5500.0, False)]
    assert any(lost for _, lost in values) == (
        len(values) < 5
    )  # the overflow bit stands where something is missing
    await subscription.delete()


async def test_a_client_that_does_not_ask_for_a_while_gets_the_newest_and_nothing_is_kept_for_it(
    site, client
):
    subscription = await client.create_subscription(100, Heard())
    service = site.facility._server._iserver.service
    await subscription.subscribe_data_change(client.get_node(ua.NodeId(POWER, 2)))
    one = service.subscriptions[subscription.subscription_id]
    one.pub_request_callback = lambda _number: None
    for power_w in range(5100, 6100, 100):
        await site.told("devices/pdu-1", float(power_w), *DEVICE[1:])
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert not one._pending
    (changed,) = one._changed(time.monotonic())
    assert changed.variable.value == 6000.0
    await subscription.delete()


async def test_a_subscription_nobody_asks_for_ends_after_its_lifetime(site, client):
    service = site.facility._server._iserver.service
    asked = ua.CreateSubscriptionParameters(100.0, 3, 1, 0, True, 0)
    result = await client.uaclient.create_subscription(asked, lambda _: None)
    one = service.subscriptions[result.SubscriptionId]
    assert (one.keep_alive, one.lifetime) == (1, 3)
    one.pub_request_callback = lambda _number: None
    one.asked = lambda: None
    await until(lambda: result.SubscriptionId not in service.subscriptions, within_s=10)


async def test_a_client_may_be_told_each_time_and_not_only_each_change(site, client):
    stamp = ua.DataChangeFilter(ua.DataChangeTrigger.StatusValueTimestamp, ua.DeadbandType.None_, 0.0)
    only = ua.DataChangeFilter(ua.DataChangeTrigger.Status, ua.DeadbandType.None_, 0.0)
    raw = await Raw.watching(client, (POWER, None), (POWER, stamp), (POWER, only))
    await until(lambda: len(raw.told) == 3, within_s=10)
    for power_w in (5000.0, 5000.0, 5100.0):
        await site.told("devices/pdu-1", power_w, *DEVICE[1:])
        await asyncio.sleep(0.25)
    await until(lambda: len(raw.told) == 7, within_s=10)
    assert [[one.ClientHandle for one in raw.told].count(handle) for handle in range(3)] == [2, 4, 1]
    await raw.close()


async def test_a_slow_sampling_interval_is_kept(site, client):
    heard, subscription = await watching(client)
    await subscription.subscribe_data_change(client.get_node(ua.NodeId(POWER, 2)), sampling_interval=700)
    began_s = time.monotonic()
    power_w = 5000.0
    while time.monotonic() - began_s < 2.0:
        power_w += 10.0
        await site.told("devices/pdu-1", power_w, *DEVICE[1:])
        await asyncio.sleep(0.05)
    assert 2 <= len(heard.of(POWER)) <= 5
    await subscription.delete()


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (ua.TimestampsToReturn.Both, (True, True)),
        (ua.TimestampsToReturn.Source, (True, False)),
        (ua.TimestampsToReturn.Server, (False, True)),
        (ua.TimestampsToReturn.Neither, (False, False)),
    ],
)
async def test_only_the_times_that_were_asked_for_are_told(client, times, expected):
    stamp = ua.DataChangeFilter(ua.DataChangeTrigger.StatusValueTimestamp, ua.DeadbandType.None_, 0.0)
    wanted = ((POWER, None), ("devices/pdu-1#profile", None), (POWER, stamp))
    raw = await Raw.watching(client, *wanted, times=times)
    await until(lambda: {one.ClientHandle for one in raw.told} == {0, 1, 2}, within_s=10)
    for one in raw.told:
        assert (one.Value.SourceTimestamp is not None, one.Value.ServerTimestamp is not None) == expected
    assert {one.Value.Value.Value for one in raw.told} == {5000.0, "xerus_pdu"}
    await raw.close()


async def test_a_client_that_wants_small_answers_gets_all_in_several(site, client):
    ids = [f"devices/pdu-1/{point.name}" for point in GROUPS[1].points] + ["devices/pdu-1#profile"]
    raw = await Raw.watching(client, *((id_, None) for id_ in ids), most=2)
    await until(lambda: len(raw.told) == 6, within_s=10)
    sizes = [
        sum(len(part.MonitoredItems) for part in one.NotificationMessage.NotificationData)
        for one in raw.answers
    ]
    assert max(sizes) == 2
    assert any(one.MoreNotifications for one in raw.answers)
    assert {one.ClientHandle for one in raw.told} == set(range(6))
    await raw.close()


async def test_a_subscription_that_fails_is_gone_so_that_its_client_begins_anew(site, client):
    service = site.facility._server._iserver.service
    raw = await Raw.watching(client, (POWER, None))
    service.subscriptions[raw.number]._sample = lambda _now_s: 1 / 0
    await until(lambda: raw.number not in service.subscriptions, within_s=10)
    with pytest.raises(ua.uaerrors.BadTimestampsToReturnInvalid):
        await Raw.watching(client, (POWER, None), times=ua.TimestampsToReturn.Invalid)


async def test_one_node_that_does_not_exist_stops_none_of_the_others(site, client):
    heard, subscription = await watching(client)
    nodes = [client.get_node(ua.NodeId(id_, 2)) for id_ in ("devices/none/x", POWER)]
    results = await subscription.subscribe_data_change(nodes)
    assert isinstance(results[0], ua.StatusCode)
    assert results[0].name == "BadNodeIdUnknown"
    await until(lambda: heard.of(POWER) == [5000.0], within_s=10)
    await subscription.delete()


# --- orders ---------------------------------------------------------------------------------------------


async def test_a_limit_goes_to_the_controller_and_its_outcome_comes_back(site, client):
    status, outputs, _ = await call(client, LIMIT, 80_000.0, 500.0, 60.0)
    assert (status, outputs) == ("Good", [1, "", 80_000.0])
    (command,) = site.plant.commands
    assert (command.verb, command.by, command.via, command.role) == (
        "set_power_limit", "hands", "opcua", Role.OPERATE,
    )  # fmt: skip
    assert command.arguments == {"limit_w": 80_000.0, "ramp_w_per_s": 500.0, "valid_for_s": 60.0}


async def test_nought_leaves_an_argument_out(site, client):
    await call(client, LIMIT, 80_000, 0.0, 0.0)
    await call(client, GUARDED, 7e4, 0.0, 60.0, 5.0, 30.0, 0.0)
    first, second = site.plant.commands
    assert first.arguments == {"limit_w": 80_000.0}
    assert second.arguments == {
        "limit_w": 7e4,
        "valid_for_s": 60.0,
        "priority": 5,
        "heartbeat_timeout_s": 30.0,
    }


async def test_clamped_and_rejected_are_told_with_their_reasons(site, client):
    site.plant.outcome = lambda _: Outcome(result=Result.CLAMPED, reason="to 75 kW", value=75_000.0)
    assert (await call(client, LIMIT, 1.0, 0.0, 0.0))[:2] == ("GoodClamped", [2, "to 75 kW", 75_000.0])
    assert await write(client, FLOW, ua.Variant(120.0)) == "GoodClamped"
    site.plant.outcome = lambda _: Outcome(result=Result.REJECTED, reason="the block is switched to LOCAL")
    status, outputs, _ = await call(client, LIMIT, 1.0, 0.0, 0.0)
    assert (status, outputs[:2]) == ("BadRequestNotAllowed", [3, "the block is switched to LOCAL"])
    assert math.isnan(outputs[2])
    assert await write(client, FLOW, ua.Variant(120.0)) == "BadRequestNotAllowed"


async def test_wrong_arguments_never_reach_the_controller(site, client):
    assert (await call(client, LIMIT, 1.0))[0] == "BadArgumentsMissing"
    assert (await call(client, LIMIT, 1.0, 2.0, 3.0, 4.0))[0] == "BadTooManyArguments"
    status, _, result = await call(client, LIMIT, 1.0, "fast", True)
    assert status == "BadInvalidArgument"
    assert [one.name for one in result.InputArgumentResults] == ["Good", "BadTypeMismatch", "BadTypeMismatch"]
    assert (await call(client, LIMIT, math.inf, 0.0, 0.0))[0] == "BadOutOfRange"
    assert (await call(client, LIMIT, math.nan, 0.0, 0.0))[0] == "BadOutOfRange"
    assert (await call(client, "Control/Acknowledge", "k" * 301))[0] == "BadOutOfRange"
    assert (await call(client, "Control/Nothing"))[0] == "BadMethodInvalid"
    assert not site.plant.commands


async def test_a_number_that_is_none_is_refused_and_no_smaller_order_is_made_of_it(site, client):
    for place in range(6):
        inputs = [7e4, 0.0, 600.0, 8.0, 30.0, 5e4]
        inputs[place] = math.nan
        assert (await call(client, GUARDED, *inputs))[0] == "BadOutOfRange"
    assert (await call(client, "Control/ReleasePriority", math.nan))[0] == "BadOutOfRange"
    assert not site.plant.commands


@pytest.mark.parametrize("priority", [5.9, 7.0, -1.0, 1e300, math.inf])
async def test_a_priority_that_there_is_not_is_refused_and_none_near_it_is_taken(site, client, priority):
    assert (await call(client, GUARDED, 7e4, 0.0, 0.0, priority, 0.0, 0.0))[0] == "BadOutOfRange"
    assert (await call(client, "Control/ReleasePriority", priority))[0] == "BadOutOfRange"
    assert not site.plant.commands


async def test_priority_nought_is_the_operators_and_never_all(site, client):
    await call(client, "Control/ReleasePriority", 0.0)
    await call(client, GUARDED, 7e4, 0.0, 0.0, 0.0, 0.0, 0.0)
    released, limited = (command.arguments for command in site.plant.commands)
    assert released == {"priority": OPERATOR}
    assert limited == {"limit_w": 7e4, "priority": OPERATOR}


@pytest.mark.parametrize(
    ("method", "inputs", "arguments"),
    [
        ("Release", (), {}),
        ("ReleasePriority", (10.0,), {"priority": 10}),
        ("Heartbeat", (), {}),
        ("Acknowledge", ("",), {"key": ""}),
        ("Reset", ("a",), {"key": "a"}),
        ("Shelve", ("a", 600.0, "being repaired"), {"key": "a", "for_s": 600.0, "reason": "being repaired"}),
        ("Unshelve", ("a",), {"key": "a"}),
    ],
)
async def test_every_order_is_a_method(site, client, method, inputs, arguments):
    assert (await call(client, f"Control/{method}", *inputs))[0] == "Good"
    (command,) = site.plant.commands
    assert command.arguments == arguments


async def test_what_only_an_engineer_may_is_refused_to_an_operator(site, client):
    for method, inputs in (
        ("SetMode", ("local",)),
        ("OutOfService", ("a", "b")),
        ("ReturnToService", ("a",)),
    ):
        assert (await call(client, f"Control/{method}", *inputs))[0] == "BadUserAccessDenied"
        executable = await read(client, f"Control/{method}", ua.AttributeIds.UserExecutable)
        assert executable.Value.Value is False
    assert not site.plant.commands
    async with site.client("head") as engineer:
        assert (await call(engineer, "Control/SetMode", "local"))[0] == "Good"
    assert site.plant.commands[0].role is Role.ENGINEER


async def test_nobody_without_the_role_writes_or_calls(site):
    async with site.client("eyes") as client:
        assert await value(client, POWER) == 5000.0
        assert await write(client, FLOW, ua.Variant(120.0)) == "BadUserAccessDenied"
        level = (await read(client, FLOW, ua.AttributeIds.UserAccessLevel)).Value.Value
        assert not level & ua.AccessLevel.CurrentWrite.mask
        browsed = await client.get_node(ua.NodeId("Control", 2)).get_methods()
        assert len(browsed) == 15
        for node in browsed:
            inputs = [ua.Variant(1.0) for _ in range(6)]
            asked = ua.CallMethodRequest(ua.NodeId("Control", 2), node.nodeid, inputs)
            (result,) = await client.uaclient.call([asked])
            assert result.StatusCode.name == "BadUserAccessDenied"
        for number in (ua.ObjectIds.AcknowledgeableConditionType_Acknowledge,):
            asked = ua.CallMethodRequest(ua.NodeId("alarms/x", 2), ua.NodeId(number), [])
            assert (await client.uaclient.call([asked]))[0].StatusCode.name == "BadUserAccessDenied"
    assert not site.plant.commands


async def test_a_write_is_an_order_and_says_what_became_of_it(site, client):
    assert await write(client, FLOW, ua.Variant(150.0)) == "Good"
    assert await write(client, STAGE, ua.Variant(2, ua.VariantType.UInt32)) == "Good"
    assert [command.arguments for command in site.plant.commands] == [
        {"device": "pdu-1", "point": "flow_target", "value": 150.0},
        {"device": "pdu-1", "point": "stage", "value": 2.0},
    ]


async def test_a_write_that_cannot_be_is_refused_with_its_reason(site, client):
    for id_, variant, status in (
        (POWER, ua.Variant(1.0), "BadNotWritable"),
        ("devices/pdu-1", ua.Variant(1.0), "BadNotWritable"),
        (f"{POWER}#EURange", ua.Variant(1.0), "BadNotWritable"),
        ("devices/none/x", ua.Variant(1.0), "BadNodeIdUnknown"),
        (FLOW, ua.Variant(181.0), "BadOutOfRange"),
        (FLOW, ua.Variant(99.0), "BadOutOfRange"),
        (FLOW, ua.Variant(math.nan), "BadOutOfRange"),
        (STAGE, ua.Variant(3.0), "BadOutOfRange"),
        (FLOW, ua.Variant("120"), "BadTypeMismatch"),
        (FLOW, ua.Variant(True), "BadTypeMismatch"),
        (FLOW, ua.Variant([120.0]), "BadTypeMismatch"),
        (FLOW, ua.Variant(None), "BadTypeMismatch"),
    ):
        assert await write(client, id_, variant) == status, (id_, variant)
    for attribute in (ua.AttributeIds.DisplayName, ua.AttributeIds.AccessLevel, ua.AttributeIds.Historizing):
        asked = ua.WriteValue(ua.NodeId(FLOW, 2), attribute, Value=ua.DataValue(ua.Variant(1.0)))
        assert (await client.uaclient.write(ua.WriteParameters([asked])))[0].name == "BadNotWritable"
    standard = ua.WriteValue(ua.NodeId(2267), ua.AttributeIds.Value, Value=ua.DataValue(ua.Variant(1.0)))
    assert (await client.uaclient.write(ua.WriteParameters([standard])))[0].name == "BadNotWritable"
    assert not site.plant.commands


async def test_p23_an_order_that_waits_for_plant_holds_up_no_read_of_the_same_client(site, client):
    done = asyncio.Event()

    async def slow(command):
        site.plant.commands.append(command)
        await done.wait()
        return Outcome(result=Result.ACCEPTED, value=1.0)

    listener_command, site.plant._server._on_command = site.plant._server._on_command, slow
    writing = asyncio.create_task(write(client, FLOW, ua.Variant(150.0)))
    await until(lambda: site.plant.commands, within_s=10)
    assert await value(client, POWER) == 5000.0
    assert not writing.done()
    done.set()
    assert await writing == "Good"
    site.plant._server._on_command = listener_command


async def test_too_many_operations_in_one_request_are_refused(client):
    node = ua.NodeId(FLOW, 2)
    write_value = ua.WriteValue(node, ua.AttributeIds.Value, Value=ua.DataValue(ua.Variant(120.0)))
    with pytest.raises(ua.uaerrors.BadTooManyOperations):
        await client.uaclient.write(ua.WriteParameters([write_value] * 51))
    with pytest.raises(ua.uaerrors.BadNothingToDo):
        await client.uaclient.write(ua.WriteParameters([]))


# --- alarms ---------------------------------------------------------------------------------------------


def leak(**changes):
    told = {
        "key": "devices/pdu-1/leak",
        "text": "water",
        "priority": "critical",
        "state": "unacknowledged",
        "active": True,
        "acknowledged": False,
        "since_utc_s": 1_700_000_000.0,
        "response": "close the valve",
    }
    return AlarmView(**(told | changes))


async def hearing(client, kind=ua.ObjectIds.AlarmConditionType):
    heard = Heard()
    subscription = await client.create_subscription(50, heard)
    await subscription.subscribe_alarms_and_conditions(evtypes=ua.NodeId(kind), queuesize=100)
    return heard, subscription


async def test_an_alarm_is_an_object_and_an_event(site, client):
    heard, subscription = await hearing(client)
    site.plant.alarms(leak())
    await until(lambda: heard.events, within_s=10)
    event = heard.events[0]
    assert (event.Message.Text, event.Severity, event.SourceName) == ("water", 900, "devices/pdu-1")
    assert event.SourceNode == ua.NodeId("devices/pdu-1", 2)
    assert event.Time == datetime.fromtimestamp(1_700_000_000, UTC)
    assert (event.Retain, getattr(event, "ActiveState/Id"), getattr(event, "AckedState/Id")) == (
        True,
        True,
        False,
    )
    shown = "alarms/devices/pdu-1/leak"
    assert await value(client, f"{shown}#ActiveState/Id") is True
    assert (await value(client, f"{shown}#AckedState")).Text == "Unacknowledged"
    assert (await value(client, f"{shown}#Response")).Text == "close the valve"
    state = await client.get_node(ua.NodeId(shown, 2)).get_child(["0:ActiveState", "0:Id"])
    assert await state.read_value() is True
    site.plant.alarms(leak(active=False, state="returned"))
    await until(lambda: len(heard.events) == 2, within_s=10)
    site.plant.alarms()
    await until(lambda: len(heard.events) == 3, within_s=10)
    assert (heard.events[2].Retain, getattr(heard.events[2], "ActiveState/Id")) == (False, False)
    assert len({one.EventId for one in heard.events}) == 3
    assert (await read(client, shown)).StatusCode.name == "BadNodeIdUnknown"
    await subscription.delete()


async def test_the_log_counts_the_points_of_the_image_whatever_alarms_stand(tmp_path):
    """Else a server would seem to have one more after a restart."""

    def counts():
        return [line["points"] for line in lines if line["event"] == "opc ua: serving"]

    with capture_logs() as lines:
        async with Site(tmp_path) as site:
            await until(lambda: len(counts()) == 1, within_s=10)
            site.plant.alarms(leak())
            await until(lambda: site.plant.feed.alarms, within_s=10)
            await site.stop()
            await site.start()
            await until(lambda: len(counts()) == 2, within_s=10)
    assert counts() == 2 * [sum(len(group.points) for group in GROUPS)]


async def test_a_number_in_the_text_of_an_alarm_is_no_event(site, client):
    heard, subscription = await hearing(client)
    site.plant.alarms(leak())
    await until(lambda: heard.events, within_s=10)
    site.plant.alarms(leak(text="water: 2 mm"))
    shown = client.get_node(ua.NodeId("alarms/devices/pdu-1/leak#Message", 2))
    await until(lambda: site.facility._shown["devices/pdu-1/leak"].alarm.text == "water: 2 mm", within_s=10)
    assert (await shown.read_value()).Text == "water: 2 mm"
    site.plant.alarms()
    await until(lambda: len(heard.events) >= 2, within_s=10)
    assert [one.Retain for one in heard.events] == [True, False]
    await subscription.delete()


async def test_acknowledge_of_the_standard_needs_the_event_that_was_seen(site, client):
    heard, subscription = await hearing(client)
    site.plant.alarms(leak())
    await until(lambda: heard.events, within_s=10)

    async def acknowledge(event_id):
        inputs = [ua.Variant(event_id, ua.VariantType.ByteString), ua.Variant(ua.LocalizedText("seen"))]
        method = ua.NodeId(ua.ObjectIds.AcknowledgeableConditionType_Acknowledge)
        asked = ua.CallMethodRequest(ua.NodeId("alarms/devices/pdu-1/leak", 2), method, inputs)
        return (await client.uaclient.call([asked]))[0].StatusCode.name

    assert await acknowledge(b"another") == "BadEventIdUnknown"
    assert await acknowledge(heard.events[0].EventId) == "Good"
    assert site.plant.commands[0].arguments == {"key": "devices/pdu-1/leak"}
    site.plant.alarms(leak(acknowledged=True, state="acknowledged"))
    await until(lambda: len(heard.events) == 2, within_s=10)
    assert await acknowledge(heard.events[1].EventId) == "BadConditionBranchAlreadyAcked"
    site.plant.alarms()
    await subscription.delete()


async def test_a_client_that_comes_later_gets_what_stands_by_condition_refresh(site, client):
    site.plant.alarms(leak(), leak(key="other", active=False, acknowledged=True, state="normal"))
    await until(lambda: len(site.facility._shown) == 2, within_s=10)
    heard, subscription = await hearing(client)
    asked = ua.CallMethodRequest(
        ua.NodeId(ua.ObjectIds.ConditionType),
        ua.NodeId(ua.ObjectIds.ConditionType_ConditionRefresh),
        [ua.Variant(subscription.subscription_id, ua.VariantType.UInt32)],
    )
    assert (await client.uaclient.call([asked]))[0].StatusCode.is_good()
    await until(lambda: heard.events, within_s=10)
    assert [one.Message.Text for one in heard.events] == ["water"]
    async with site.client("head") as another:
        (result,) = await another.uaclient.call([asked])
        assert result.StatusCode.name == "BadSubscriptionIdInvalid"
    site.plant.alarms()
    await subscription.delete()


async def test_who_did_what_is_told_to_engineers_alone(site, client):
    async with site.client("head") as engineer:
        told, other = Heard(), Heard()
        first = await engineer.create_subscription(50, told)
        await first.subscribe_events()
        second = await client.create_subscription(50, other)
        await second.subscribe_events()
        await call(client, LIMIT, 80_000.0, 0.0, 0.0)
        await until(lambda: told.events, within_s=10)
        assert told.events[0].Message.Text == "hands: Control/SetPowerLimit(limit_w=80000.0): accepted"
        await asyncio.sleep(0.3)
        assert not other.events
        await second.delete()


# --- history --------------------------------------------------------------------------------------------


async def test_the_last_hours_of_the_main_values_can_be_read(site, client):
    for power_w in range(1000, 6000, 1000):
        await site.told("block", float(power_w), "x", 1.0)
        await asyncio.sleep(0.2)
    node = client.get_node(ua.NodeId("block/power_w", 2))
    now = datetime.now(UTC)
    values = await node.read_raw_history(now - timedelta(minutes=5), now + timedelta(minutes=1))
    found = [one.Value.Value for one in values if one.StatusCode.is_good()]
    assert found[-5:] == [1000.0, 2000.0, 3000.0, 4000.0, 5000.0]
    stamps = [one.SourceTimestamp for one in values]
    assert stamps == sorted(stamps)
    newest = await node.read_raw_history(None, now + timedelta(minutes=1), numvalues=2)
    assert [one.Value.Value for one in newest] == [5000.0, 4000.0]
    assert (await node.read_attribute(ua.AttributeIds.Historizing)).Value.Value is True


async def test_history_comes_in_pages_and_none_is_lost_between_them(site, client):
    for power_w in range(7):
        await site.told("block", float(power_w), "x", 1.0)
        await asyncio.sleep(0.15)
    now = datetime.now(UTC)
    details = ua.ReadRawModifiedDetails(
        False, now - timedelta(minutes=5), now + timedelta(minutes=1), 3, False
    )
    pages, point = [], None
    while True:
        asked = ua.HistoryReadValueId(ua.NodeId("block/power_w", 2), ContinuationPoint=point)
        parameters = ua.HistoryReadParameters(details, ua.TimestampsToReturn.Both, False, [asked])
        (result,) = await client.uaclient.history_read(parameters)
        pages += [one.Value.Value for one in result.HistoryData.DataValues]
        assert len(result.HistoryData.DataValues) <= 3
        point = result.ContinuationPoint
        if not point:
            break
    assert pages[-7:] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


async def test_history_that_is_not_kept_is_said_not_to_be(client):
    for id_, status in ((POWER, "BadHistoryOperationUnsupported"), ("devices/pdu-1", "BadNodeIdUnknown")):
        details = ua.ReadRawModifiedDetails(False, datetime.now(UTC), datetime.now(UTC), 0, False)
        asked = ua.HistoryReadParameters(
            details, ua.TimestampsToReturn.Both, False, [ua.HistoryReadValueId(ua.NodeId(id_, 2))]
        )
        assert (await client.uaclient.history_read(asked))[0].StatusCode.name == status


async def test_a_level_of_shedding_is_called_by_its_name_and_ended(site, client):
    """An outage is no time to look numbers up."""
    assert (await call(client, "Control/Shed", "deep", 600.0))[0] == "Good"
    assert (await call(client, "Control/Shed", "gentle", 0.0))[0] == "Good"
    assert (await call(client, "Control/EndShed"))[0] == "Good"
    assert [(one.verb, one.arguments) for one in site.plant.commands] == [
        ("shed", {"level": "deep", "valid_for_s": 600.0}),
        ("shed", {"level": "gentle"}),
        ("end_shed", {}),
    ]
    assert (await call(client, "Control/Shed", 2.0, 0.0))[0] == "BadInvalidArgument"
