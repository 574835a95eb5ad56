"""Metrics: read over HTTP by the parsers of Prometheus' own client library."""

import asyncio
import json
import math

import aiohttp
import pytest
from facility_feed import Plant, pdu, served

from controller.config import load_block
from controller.facility.config import PrometheusConfig
from controller.facility.prometheus import BLOCK as BLOCK_PATH
from controller.facility.prometheus import CHUNK, CONNECTIONS_MAX, SHED_STEPS, Fact, Name, Prometheus, named
from controller.gateway import catalogue
from controller.image.block import FACILITY
from controller.image.model import AlarmView, Group, Point
from controller.steps import STEPS, Histogram
from protocols.profile import builtin_profiles, load_profile
from tests.brokers import until

prometheus_client = pytest.importorskip(
    "prometheus_client", reason="pip install prometheus-client to read metrics"
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families as plain_families  # noqa: E402

OPEN = {"Accept": "application/openmetrics-text; version=1.0.0"}


def server_of(plant, **more):
    return Prometheus(PrometheusConfig(port=0), plant.feed, **more)


async def scrape(server, headers=None):
    await until(lambda: server.port != 0)
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.port}/metrics"
        async with session.get(url, headers=headers or {}) as answer:
            assert answer.status == 200
            return answer.headers["Content-Type"], await answer.text()


def samples(text, families=plain_families):
    """(name, labels) -> value, each series once."""
    read = {}
    for family in families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in read
            read[key] = sample.value
    return read


def series(metric, /, **labels):
    return metric, tuple(sorted({"block": "hall-a", **labels}.items()))


STATES = {0: "unlimited", 1: "limited"}
BLOCK = Group(
    path="block",
    kind="block",
    title='Hall "A"\\north',
    points=(
        Point(name="power_w", unit="W"),
        Point(name="mode", states=STATES),
        Point(name="why", text=True),
        Point(name="quality", unit="ratio"),
    ),
)


async def test_points_are_metrics_in_base_units_with_quality_and_age(tmp_path):
    async with Plant(tmp_path, [pdu(rack="r1"), BLOCK]) as plant:
        server = server_of(plant)
        async with served(server):
            plant.tell("devices/pdu-1", 5000.0, 100.5, None, 1.0, faults={2: "refused"}, age_s=1.0)
            plant.tell("block", 8000.0, 1.0, "because", 0.5, doubt="frozen?")
            await until(lambda: plant.feed.image.groups[1].values[0] == 8000.0)
            kind, text = await scrape(server)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    read = samples(text)
    of = {"kind": "device", "name": "pdu-1"}
    assert read[series("powerblock_power_watts", **of, part="")] == 5000.0
    assert read[series("powerblock_power_watts", **of, part="outlet_0")] == 100.5
    assert series("powerblock_power_watts", **of, part="outlet_1") not in read
    assert read[series("powerblock_quality", **of, part="", quantity="power_watts")] == 2
    assert read[series("powerblock_quality", **of, part="outlet_1", quantity="power_watts")] == 0
    assert 1.0 <= read[series("powerblock_age_seconds", **of, part="", quantity="power_watts")] < 20.0
    block = {"kind": "block", "name": "block", "part": ""}
    assert read[series("powerblock_quality", **block, quantity="mode")] == 1
    assert read[series("powerblock_mode", **block)] == 1
    assert read[series("powerblock_state", **block, quantity="mode", state="limited")] == 1
    assert series("powerblock_state", **block, quantity="mode", state="unlimited") not in read
    assert read[series("powerblock_quality_ratio", **block)] == 0.5
    info = {dict(key[1])["name"]: dict(key[1]) for key in read if key[0] == "powerblock_device_info"}
    assert info["block"]["title"] == 'Hall "A"\\north'
    assert info["pdu-1"]["rack"] == "r1"
    assert read[series("powerblock_controller_up")] == 1
    assert "because" not in text


async def test_who_asks_for_openmetrics_gets_it(tmp_path):
    async with Plant(tmp_path, [pdu(), BLOCK, FACILITY]) as plant:
        server = server_of(plant)
        async with served(server):
            plant.tell("devices/pdu-1", 5000.0, 100.5, 2.0, 1.0)
            await until(lambda: plant.feed.image.groups[0].values[0] == 5000.0)
            kind, text = await scrape(server, OPEN)
            _, plain = await scrape(server)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    assert "# UNIT powerblock_power_watts watts" in text
    read = samples(text, open_families)
    assert read.keys() == samples(plain).keys()


async def test_every_builtin_profile_makes_metrics_that_both_formats_allow(tmp_path):
    groups = []
    for name in builtin_profiles():
        points = tuple(
            Point(name=one.name, unit=one.unit, text=one.type == "string", states=dict(one.enum))
            for one in load_profile(name).points.values()
        )
        groups.append(Group(path=f"devices/{name}", kind="device", points=points))
    async with Plant(tmp_path, groups) as plant:
        server = server_of(plant)
        async with served(server):
            for group in groups:
                plant.tell(group.path, *[None if point.text else 1.0 for point in group.points])
            await until(lambda: all(cells.revision for cells in plant.feed.image.groups))
            texts = [(await scrape(server, headers))[1] for headers in (None, OPEN)]
    counted = [len(samples(texts[0])), len(samples(texts[1], open_families))]
    assert counted[0] == counted[1] > 300


@pytest.mark.parametrize(
    ("name", "unit", "quantity", "part"),
    [
        ("power_w", "W", "power_watts", ""),
        ("gpus/0/limit_w", "W", "limit_watts", "gpus/0"),
        ("outlet_12_power_w", "W", "power_watts", "outlet_12"),
        ("current_l1_a", "A", "current_amperes", "l1"),
        ("voltage_l1_l2_v", "V", "voltage_volts", "l1_l2"),
        ("voltage_l1_n_v", "V", "voltage_volts", "l1_n"),
        ("temperature_3_c", "degC", "temperature_celsius", "3"),
        ("power_factor_ratio", "ratio", "power_factor_ratio", ""),
        ("flow_l_per_min", "L/min", "flow_liters_per_second", ""),
        ("alarms", "bits", "alarms_value", ""),
        ("Ünï", "", "_n_", ""),
    ],
)
def test_names_follow_the_conventions(name, unit, quantity, part):
    assert named(Point(name=name, unit=unit)) == Name(quantity, part)


async def test_two_points_never_become_one_series(tmp_path):
    points = (Point(name="l1/current_a", unit="A"), Point(name="current_l1_a", unit="A"))
    group = Group(path="devices/x", kind="device", points=points)
    async with Plant(tmp_path, [group]) as plant:
        server = server_of(plant)
        async with served(server):
            plant.tell("devices/x", 1.0, 2.0)
            await until(lambda: plant.feed.image.groups[0].values[0] == 1.0)
            read = samples((await scrape(server))[1])
    values = sorted(value for (name, _), value in read.items() if name == "powerblock_current_amperes")
    assert values == [1.0, 2.0]


async def test_a_stale_value_has_no_sample(tmp_path):
    group = Group(
        path="devices/x", kind="device", points=(Point(name="power_w", unit="W", stale_after_s=0.2),)
    )
    async with Plant(tmp_path, [group]) as plant:
        server = server_of(plant)
        async with served(server):
            plant.tell("devices/x", 1.0)
            await asyncio.sleep(0.5)
            read = samples((await scrape(server))[1])
    assert not any(name == "powerblock_power_watts" for name, _ in read)
    of = {"kind": "device", "name": "x", "part": "", "quantity": "power_watts"}
    assert read[series("powerblock_quality", **of)] == 0


async def test_a_dead_controller_shows(tmp_path):
    async with Plant(tmp_path, [pdu()]) as plant:
        server = server_of(plant)
        async with served(server):
            await plant.die()
            await until(lambda: not plant.feed.alive)
            read = samples((await scrape(server))[1])
    assert read[series("powerblock_controller_up")] == 0


async def test_alarms_are_counted_and_facts_of_others_shown(tmp_path):
    def alarm(key):
        return AlarmView(
            key=key,
            text="",
            priority="high",
            state="unacknowledged",
            active=True,
            acknowledged=False,
            since_utc_s=0.0,
        )

    facts = [Fact("mirror_stored_messages", "that wait on disk", lambda: [({}, 7.0)])]
    async with Plant(tmp_path, [pdu()]) as plant:
        server = server_of(plant, facts=facts)
        async with served(server):
            plant.alarms(alarm("a"), alarm("b"))
            await until(lambda: len(plant.feed.alarms) == 2)
            read = samples((await scrape(server, OPEN))[1], open_families)
    assert read[series("powerblock_alarms", priority="high", state="unacknowledged")] == 2
    assert read[series("powerblock_mirror_stored_messages")] == 7


async def test_a_new_catalogue_makes_new_metrics(tmp_path):
    async with Plant(tmp_path, [pdu()]) as plant:
        server = server_of(plant)
        async with served(server):
            plant.regroup(
                0, Group(path="devices/pdu-1", kind="device", points=(Point(name="current_a", unit="A"),))
            )
            await until(lambda: len(plant.feed.image.groups[0].values) == 1)
            plant.tell("devices/pdu-1", 7.0)
            await until(lambda: plant.feed.image.groups[0].values == [7.0])
            read = samples((await scrape(server))[1])
    assert any(name == "powerblock_current_amperes" for name, _ in read)
    assert not any(name == "powerblock_power_watts" for name, _ in read)


async def test_a_scrape_of_a_large_block_leaves_the_loop_its_turns(tmp_path):
    groups = [pdu(f"pdu-{number}", count=60) for number in range(40)]
    async with Plant(tmp_path, groups) as plant:
        server = server_of(plant)
        for group in groups:
            plant.tell(group.path, *[1.0] * 60)
        await until(lambda: plant.feed.image.groups[-1].values[0] == 1.0)
        turns = 0

        async def others():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        text = "".join([part async for part in server._text(is_open=False)])
        other.cancel()
    assert len(samples(text)) > 7200
    assert turns >= 2400 // CHUNK


# --- histograms of the steps of a shed -------------------------------------------------------------------

SHED_POINTS = (
    Point(name="shed_level", states={0: "none", 1: "gentle", 2: "deep"}),
    Point(name="shed_by", text=True),
    Point(name="shed_armed"),
    Point(name="shed_steps", text=True),
)
SHED = Group(path="block", kind="block", points=(Point(name="power_w", unit="W"), *SHED_POINTS))


def told_steps(*lengths_s):
    """What the controller tells after calls whose nodes had all confirmed after so long, each."""
    histograms = {step: Histogram() for step in STEPS}
    for length_s in lengths_s:
        histograms["confirmed"].add(length_s)
    return json.dumps({step: histogram.told() for step, histogram in histograms.items()})


@pytest.mark.parametrize(("headers", "families"), [(None, plain_families), (OPEN, open_families)])
async def test_the_steps_of_calls_are_histograms_as_prometheus_knows_them(tmp_path, headers, families):
    async with Plant(tmp_path, [SHED]) as plant:
        server = server_of(plant)
        async with served(server):
            plant.tell("block", 8000.0, 2.0, "contact", 144.0, told_steps(0.004, 0.019, 0.02, 0.03, 99.0))
            await until(lambda: plant.feed.image.groups[0].values[0] == 8000.0)
            _, text = await scrape(server, headers)
    (family,) = [one for one in families(text) if one.name == "powerblock_shed_step_seconds"]
    assert family.type == "histogram"
    read = samples(text, families)
    bucket = {
        float(dict(labels)["le"]): value
        for (name, labels), value in read.items()
        if name == "powerblock_shed_step_seconds_bucket" and dict(labels)["step"] == "confirmed"
    }
    assert (bucket[0.002], bucket[0.005], bucket[0.02], bucket[0.05]) == (0, 1, 3, 4)
    assert (bucket[5.0], bucket[math.inf]) == (4, 5)
    assert list(bucket.values()) == sorted(bucket.values()), "buckets count all that is not longer"
    assert 'powerblock_shed_step_seconds_bucket{block="hall-a",step="confirmed",le="0.02"} 3' in text
    assert read[series("powerblock_shed_step_seconds_count", step="confirmed")] == 5
    assert read[series("powerblock_shed_step_seconds_sum", step="confirmed")] == pytest.approx(99.073)
    assert read[series("powerblock_shed_step_seconds_count", step="moved")] == 0
    assert read[series("powerblock_shed_level", kind="block", name="block", part="")] == 2


async def test_without_a_controller_and_without_calls_there_are_no_histograms(tmp_path):
    async with Plant(tmp_path, [SHED]) as plant:
        server = server_of(plant)
        async with served(server):
            plant.tell("block", 8000.0, 0.0, "", 0.0, None)
            await until(lambda: plant.feed.image.groups[0].values[0] == 8000.0)
            assert "shed_step" not in (await scrape(server))[1]
            plant.tell("block", 8001.0, 0.0, "", 0.0, told_steps(0.01))
            await until(lambda: plant.feed.image.groups[0].values[0] == 8001.0)
            assert "shed_step" in (await scrape(server))[1]
            await plant.die()
            await until(lambda: not plant.feed.alive)
            assert "shed_step" not in (await scrape(server))[1]


def test_the_blocks_own_group_has_the_point_that_histograms_are_made_from(block_with):
    group = next(one for one in catalogue(load_block(block_with())) if one.path == BLOCK_PATH)
    assert [point.name for point in group.points][-4:] == [point.name for point in SHED_POINTS]
    assert SHED_POINTS[-1].name == SHED_STEPS


async def test_idle_connections_make_room_for_the_newest(tmp_path):
    """Whoever reaches the address may connect; he must not use up what all other ways out need, too."""
    async with Plant(tmp_path, [pdu()]) as plant:
        server, idle = server_of(plant), []
        async with served(server):
            await until(lambda: server.port != 0)
            try:
                for _ in range(3 * CONNECTIONS_MAX):
                    idle.append(await asyncio.open_connection("127.0.0.1", server.port))
                    idle[-1][1].write(b"GET /met")
                    await asyncio.sleep(0)
                await until(lambda: sum(not reader.at_eof() for reader, _ in idle) <= CONNECTIONS_MAX)
                _, text = await scrape(server)
                assert "powerblock_controller_up" in text
            finally:
                for _, writer in idle:
                    writer.close()
