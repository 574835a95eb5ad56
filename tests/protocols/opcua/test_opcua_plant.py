"""The OPC UA client against an independent server, node-opcua: values, dates, losses, restarts, limits."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from protocols.opcua import Sampling, client, watch
from protocols.profile import Identity
from tests.protocols.opcua.bench import (
    PROFILE,
    SILENCE_MAX_S,
    Plant,
    Readings,
    Relay,
    down,
    healthy,
    point,
    watching,
    whole,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")  # a server takes a second or two: most tests share one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(node_modules, tmp_path_factory):
    async with Plant(tmp_path_factory.mktemp("plant"), trustAll=True) as plant:
        yield plant


@pytest_asyncio.fixture(loop_scope="module")
async def plant(shared):
    """The shared server, and the values as they should be afterwards."""
    yield shared
    for name, value in (("Cdu.HeatKw", 812.5), ("Cdu.Flow", 1200), ("Cdu.Name", "north")):
        await shared.say(name, value)


async def test_every_kind_of_value_comes_across_with_the_devices_own_date(plant):
    readings = Readings()
    async with watching(plant.url, readings):
        first = await readings.until(whole)
        assert first.values["coolant_supply_c"] == 32.0
        assert first.values["heat_w"] == 812_500.0
        assert first.values["speed_ratio"] == 0.65
        assert first.values["running"] == 1.0
        assert first.values["name"] == "north"
        assert first.values["mode"] == 1.0
        assert first.values["serial"] == 77.0
        assert "set_flow_l_per_min" not in first.values  # it can only be written
        moment_s = time.time() - 3600
        await plant.say("Cdu.HeatKw", 900, source=moment_s)  # changed an hour ago, and says so
        changed = await readings.until(lambda r: r.values.get("heat_w") == 900_000.0)
        assert changed.source_at_utc_s["heat_w"] == pytest.approx(moment_s, abs=0.01)
        assert time.monotonic() - changed.taken_at_s < 5.0  # and our date is the one of the conversation
        assert not changed.fault


async def test_a_change_makes_a_reading_of_that_point_alone_and_dated_before_it_came(plant):
    readings = Readings()
    async with watching(plant.url, readings, silence_max_s=30):
        await readings.until(whole)
        await readings.until(lambda r: "running" in r.values)  # the subscription has begun
        await asyncio.sleep(0.5)
        begun_s = time.monotonic()
        await plant.say("Cdu.HeatKw", 700)
        changed = await readings.until(lambda r: r.values.get("heat_w") == 700_000.0)
        assert changed.values.keys() == {"heat_w"}
        assert changed.unchanged_since_s == changed.taken_at_s
        assert begun_s - 2.0 < changed.taken_at_s < time.monotonic()


async def test_p18_a_bad_node_stops_neither_its_neighbours_nor_their_subscription(plant):
    """ThingsBoard #2093: one bad node ended all updates, and nothing subscribed again."""
    bad = {
        "nowhere": point("nowhere", "s=Cdu.Nowhere", "count"),
        "elsewhere": replace(point("elsewhere", "", "count"), node="nsu=urn:elsewhere;s=x"),
        "folder": point("folder", "s=Cdu", "count"),  # an object has no value
    }
    readings = Readings()
    async with watching(plant.url, readings, profile=replace(PROFILE, points={**bad, **PROFILE.points})):
        await readings.until_whole()
        for fault in ("nowhere: BadNodeIdUnknown", "elsewhere: the server has no namespace", "folder: Bad"):
            assert fault in readings[-1].fault
        for heat_kw in (1, 2, 3):
            await plant.say("Cdu.HeatKw", heat_kw)
            await readings.until(lambda r, kw=heat_kw: r.values.get("heat_w") == 1000 * kw)
            assert readings.now["nowhere"] is readings.now["elsewhere"] is readings.now["folder"] is None
            assert readings[-1].link == "up"
        await plant.say("Cdu.Flow", 5, status="BadSensorFailure")  # one that goes bad later
        await readings.until(lambda r: "flow_l_per_min: BadSensorFailure" in r.fault)
        await plant.say("Cdu.HeatKw", 4)
        await readings.until(lambda r: r.values.get("heat_w") == 4000)
        await plant.say("Cdu.Flow", 6)
        await readings.until(lambda r: r.values.get("flow_l_per_min") == 6)
        assert "flow" not in readings[-1].fault


async def test_only_a_good_plausible_single_value_counts(plant):
    lies = [
        ("Cdu.Flow", {"value": 7, "status": "UncertainLastUsableValue"}, "UncertainLastUsableValue"),
        ("Cdu.Flow", {"value": 7, "status": "BadNoCommunication"}, "BadNoCommunication"),
        ("Cdu.Flow", {"value": "NaN"}, "nan is implausible"),
        ("Cdu.Flow", {"value": "Infinity"}, "inf is implausible"),
        ("Cdu.Flow", {"value": -5}, "-5.0 is implausible; expected 0.0 to 20000.0 L/min"),
        ("Cdu.Mode", {"value": 9}, "9 is implausible; expected one of its states"),
    ]
    names, good = {"Cdu.Flow": "flow_l_per_min", "Cdu.Mode": "mode"}, {"Cdu.Flow": 1200, "Cdu.Mode": 1}
    readings = Readings()
    async with watching(plant.url, readings):
        await readings.until(whole)
        for node, said, sentence in lies:
            await plant.say(node, **said)
            await readings.until(lambda r, s=sentence, n=node: f"{names[n]}: {s}" in r.fault)
            assert readings.now[names[node]] is None, said
            assert readings.now["coolant_supply_c"] == 32.0
            await plant.say(node, good[node])
            await readings.until(healthy)


async def test_an_array_and_a_wrong_kind_are_faults_of_the_profile(plant):
    wrong = {
        "namespaces": replace(point("namespaces", "", "text"), node="i=2255"),  # an array in every server
        "flow": point("flow", "s=Cdu.Flow", "text"),
        "name": point("name", "s=Cdu.Name", "count"),
        "status": replace(point("status", "", "count"), node="i=2256"),  # a structure
    }
    readings = Readings()
    async with watching(plant.url, readings, profile=replace(PROFILE, points=wrong)):
        told = await readings.until(lambda r: len(r.values) == 4)
        assert set(told.values.values()) == {None}
        assert "namespaces: an array where a text belongs; check the profile's node" in told.fault
        assert "flow: a float where a text belongs" in told.fault
        assert "name: a str where a number belongs" in told.fault
        assert "status: a ServerStatusDataType where a number belongs" in told.fault


async def test_a_stuck_value_shows_since_when_even_if_its_dates_go_on(plant):
    readings = Readings()
    async with watching(plant.url, readings, silence_max_s=0.5):
        first = await readings.until(whole)
        for value in ("NaN", "NaN", 812.5):
            await plant.say("Cdu.HeatKw", value)
        await readings.until(lambda r: r.values.get("heat_w") == 812_500.0)
        await asyncio.sleep(0.3)
        since_s = readings[-1].unchanged_since_s
        assert since_s >= first.taken_at_s
        for _ in range(3):  # the same value, dated anew each time
            await plant.say("Cdu.HeatKw", 812.5)
            stuck = await readings.until(whole)
        assert stuck.unchanged_since_s == since_s < stuck.taken_at_s


async def test_a_device_whose_clock_is_wrong_is_found_out_and_our_times_count(plant):
    for error_s, direction in ((3600.0, "ahead"), (-600.0, "behind")):
        readings = Readings()
        async with watching(plant.url, readings, utc_now_s=lambda e=error_s: time.time() - e):
            reading = await readings.until_whole()
            assert f"its clock: {abs(error_s):.0f} s {direction}; our times count" in reading.fault
            assert reading.values["heat_w"] == 812_500.0  # a wrong clock takes no value away
            assert not reading.source_at_utc_s
            assert abs(time.monotonic() - reading.taken_at_s) < 5.0
            await asyncio.sleep(0.5)
            before_s = time.monotonic()
            await plant.say("Cdu.HeatKw", 1.0)
            changed = await readings.until(lambda r: r.values.get("heat_w") == 1000.0)
            assert before_s - 2.0 < changed.taken_at_s < time.monotonic()
            assert not changed.source_at_utc_s
            await plant.say("Cdu.HeatKw", 812.5)


async def test_a_value_dated_in_the_future_counts_without_its_date(plant):
    readings = Readings()
    async with watching(plant.url, readings):
        await readings.until(whole)
        await plant.say("Cdu.HeatKw", 5, source=time.time() + 900)
        told = await readings.until(lambda r: r.values.get("heat_w") == 5000.0)
        assert "heat_w: dated 900 s ahead" in told.fault or "heat_w: dated 899 s ahead" in told.fault
        assert "heat_w" not in told.source_at_utc_s


async def test_what_queued_at_the_server_comes_out_in_order(plant):
    readings = Readings()
    sampling = Sampling(publishing_s=1.0, sampling_s=0.02, queue_size=20)
    async with watching(plant.url, readings, silence_max_s=30, sampling=sampling):
        await readings.until(whole)
        await readings.until(lambda r: "running" in r.values)
        for heat_kw in range(5):
            await plant.say("Cdu.HeatKw", heat_kw)
            await asyncio.sleep(0.08)
        await readings.until(lambda r: r.values.get("heat_w") == 4000.0)
        told = [r.values["heat_w"] / 1000 for r in readings if r.values.keys() == {"heat_w"}]
        assert told[-5:] == [0, 1, 2, 3, 4]


async def test_another_device_behind_the_address_is_not_used(plant, monkeypatch):
    monkeypatch.setattr(client, "REFUSED_WAIT_S", 0.2)
    readings = Readings()
    identity = (Identity(point="name", matches="north|south"), Identity(point="serial", equals=77))
    async with watching(plant.url, readings, profile=replace(PROFILE, identity=identity)):
        await readings.until(whole)
        await plant.say("Cdu.Name", "west")
        await plant.ask("drop")
        told = await readings.until(lambda r: "another device?" in r.fault)
        assert told.link == "down"
        assert "name is 'west', expected 'north|south'" in told.fault
        assert set(told.values.values()) == {None}


async def test_p18_a_lost_session_is_made_anew_with_its_subscription(plant):
    readings = Readings()
    async with watching(plant.url, readings):
        for heat_kw in (1, 2):
            await readings.until(whole)
            await plant.ask("drop")
            await readings.until(down)
            await readings.until(whole)
            await asyncio.sleep(0.5)
            await plant.say("Cdu.HeatKw", heat_kw)
            await readings.until(
                lambda r, kw=heat_kw: r.values == {"heat_w": 1000 * kw}
            )  # no read: it is watched
    await asyncio.sleep(0.3)
    assert (await plant.ask("sessions"))["sessions"] == 0  # and we took our leave


async def test_p18_a_subscription_that_the_server_forgot_is_made_anew_without_a_gap(plant, monkeypatch):
    monkeypatch.setattr(watch, "SOON_S", 1.2)  # long enough to be seen in a reading
    monkeypatch.setattr(watch, "KEEPALIVE_S", 0.3)
    readings = Readings()
    async with watching(plant.url, readings):
        await readings.until(whole)
        await asyncio.sleep(0.5)
        made = (await plant.ask("sessions"))["made"]
        await plant.ask("forget")
        told = await readings.until(lambda r: "no subscription" in r.fault)
        assert told.link == "up"
        assert None not in told.values.values()  # the reads went on
        await readings.until(whole)  # of its fault, too
        assert (await plant.ask("sessions"))["made"] > made
        await asyncio.sleep(0.5)
        await plant.say("Cdu.HeatKw", 3)
        await readings.until(lambda r: r.values == {"heat_w": 3000.0})
    assert not any(down(r) for r in readings)


async def test_p18_a_slow_server_is_read_and_watched_in_its_own_time(plant):
    """A race on slow servers left the client without updates for ever."""
    async with Relay(plant.port, delay_s=0.1) as relay:
        readings = Readings()
        async with watching(relay.url, readings, silence_max_s=2.0):
            await readings.until(whole, within_s=20)
            for heat_kw in (1, 2):
                await plant.say("Cdu.HeatKw", heat_kw)
                await readings.until(lambda r, kw=heat_kw: r.values.get("heat_w") == 1000 * kw)
            await asyncio.sleep(1.0)
            assert not any(down(r) for r in readings)
            assert relay.connections == 1


async def test_p18_a_server_stopped_in_its_tracks_is_found_and_found_again(plant):
    """Half open: the system goes on acknowledging what the frozen process never reads."""
    readings = Readings()
    async with watching(plant.url, readings):
        await readings.until(whole)
        plant.freeze()
        try:
            frozen_at_s = time.monotonic()
            told = await readings.until(down)
            assert time.monotonic() - frozen_at_s < SILENCE_MAX_S + 2.0
            assert set(told.values.values()) == {None}
            assert "no answer within" in told.fault
            await asyncio.sleep(0.5)
        finally:
            plant.thaw()
        await readings.until(whole, within_s=30)
        await asyncio.sleep(0.5)
        await plant.say("Cdu.HeatKw", 1)
        await readings.until(lambda r: r.values.get("heat_w") == 1000.0)


async def test_a_server_that_is_not_running_makes_its_values_doubtful(plant):
    readings = Readings()
    async with watching(plant.url, readings):
        await readings.until(whole)
        await plant.ask("state", name="Suspended")
        told = await readings.until(lambda r: r.doubt)
        assert told.doubt == "the server says that it is suspended"
        assert told.values["heat_w"] == 812_500.0
        await plant.ask("state", name="Running")
        await readings.until(lambda r: whole(r) and not r.doubt)


def _sockets():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_reconnects_leave_neither_tasks_nor_sockets_behind(plant):
    readings = Readings()
    tasks, sockets = len(asyncio.all_tasks()), _sockets()
    async with watching(plant.url, readings):
        for _ in range(8):
            await readings.until(whole)
            await plant.ask("drop")
            await readings.until(down)
    await asyncio.sleep(0.2)
    assert len(asyncio.all_tasks()) == tasks
    assert _sockets() == sockets
    assert (await plant.ask("sessions"))["sessions"] == 0


async def test_keys_are_renewed_under_way(plant, monkeypatch):
    monkeypatch.setattr(client, "CHANNEL_LIFE_S", 0.8)
    readings = Readings()
    async with watching(plant.url, readings):
        for _ in range(4):
            await readings.until(whole)
            await asyncio.sleep(0.4)
        assert not any(down(r) for r in readings)


async def test_two_thousand_nodes_come_in_pieces_and_changes_alone_afterwards(plant):
    await plant.ask("many", count=2000)
    points = {f"many_{i}": point(f"many_{i}", f"s=Many.{i}", "count") for i in range(2000)}
    readings = Readings()
    async with watching(plant.url, readings, profile=replace(PROFILE, points=points), silence_max_s=20):
        first = await readings.until(lambda r: len(r.values) == 2000)
        assert first.values["many_1999"] == 1999.0
        await readings.until(
            lambda r: "many_1999" in r.values, within_s=30
        )  # the last of its first notifications
        await asyncio.sleep(1.5)
        begun = len(readings)
        await plant.ask("stir", count=300, **{"from": 5000})
        await readings.until(lambda _: readings.now["many_299"] == 5299.0)
        assert all(readings.now[f"many_{i}"] == 5000.0 + i for i in range(300))
        assert all(len(r.values) <= watch.NEWS_MAX for r in readings[begun:])


# ---- servers of their own ----


async def test_p17_a_server_that_restarts_is_found_again_with_its_subscription(node_modules, tmp_path):
    """ThingsBoard #1641: no reconnect after the server had restarted."""
    readings = Readings()
    async with Plant(tmp_path, trustAll=True) as plant, watching(plant.url, readings):
        for heat_kw in (1, 2):
            await readings.until(whole)
            await plant.ask("stop")
            await readings.until(down)
            await plant.ask("start")
            await readings.until(whole, within_s=20)
            await asyncio.sleep(0.5)
            await plant.say("Cdu.HeatKw", heat_kw)
            await readings.until(lambda r, kw=heat_kw: r.values == {"heat_w": 1000 * kw})


async def test_a_server_that_refuses_subscriptions_is_read_instead(node_modules, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "FALLBACK_S", 0.1)
    readings, plant = Readings(), Plant(tmp_path, trustAll=True, noSubscriptions=True)
    async with plant, watching(plant.url, readings, silence_max_s=20):
        told = await readings.until(lambda r: "no subscription: BadTooManySubscriptions" in r.fault)
        assert told.link == "up"
        await plant.say("Cdu.HeatKw", 1)
        await readings.until(lambda r: r.values.get("heat_w") == 1000.0, within_s=5.0)


async def test_nodes_that_a_server_does_not_watch_are_read_and_its_limits_kept(
    node_modules, tmp_path, monkeypatch
):
    monkeypatch.setattr(client, "FALLBACK_S", 0.1)
    limits = {
        "maxMonitoredItemsPerSubscription": 5,
        "operationLimits": {"maxNodesPerRead": 4, "maxMonitoredItemsPerCall": 3},
    }
    readings, plant = Readings(), Plant(tmp_path, trustAll=True, limits=limits)
    async with plant, watching(plant.url, readings, silence_max_s=20):
        told = await readings.until(lambda r: "not watched" in r.fault)
        assert "BadTooManyMonitoredItems" in told.fault
        watched = {"coolant_supply_c", "coolant_return_c", "flow_l_per_min", "heat_w", "capacity_w"}
        assert set(PROFILE.points) - watched - {"set_flow_l_per_min"} == told.values.keys()
        await plant.say("Cdu.Name", "south")
        await readings.until(lambda r: r.values.get("name") == "south", within_s=5.0)
        await plant.say("Cdu.HeatKw", 1)
        await readings.until(lambda r: r.values.get("heat_w") == 1000.0, within_s=5.0)
