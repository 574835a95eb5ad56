"""A block of many racks: patterns, farms, emergencies, broken links, frequency, and what is said of it all."""

import asyncio
import io
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from pymodbus.client import AsyncModbusTcpClient
from rich.console import Console

from controller.agent.farm import load_farm
from controller.config import load_block
from firmware_sim import emergency
from firmware_sim.broken_link import BrokenLink, Packets
from firmware_sim.contact_plc import ContactPlc, point_name
from firmware_sim.emergency import Shed
from firmware_sim.facility import Excess, Facility, Fine, Sample
from firmware_sim.gpu_power import MODELS
from firmware_sim.grid_operator import GridEvent, notification
from firmware_sim.live import LiveView
from firmware_sim.live_racks import RackRow, rack_rows, rack_table
from firmware_sim.mains import FrequencyStream, Mains
from firmware_sim.plant import STEP_S
from firmware_sim.recorder import Mark
from firmware_sim.rig import Rig, View
from firmware_sim.scenario import Fault, ScenarioError, parse_scenario
from firmware_sim.verdict import Trace, over_budget_ratio
from firmware_sim.workload import Job, Workload
from protocols.phasor import Frames, JsonReadings
from protocols.profile import load_profile

H100 = MODELS["H100"]
HERE = Path(__file__).parent
SHED = {"levels": [{"name": "gentle", "kw": 40}, {"name": "deep", "kw": 30}], "contacts": {"trip": "deep"}}


def a_scenario(**changes):
    block = {
        "racks": {"count": 3},
        "nodes": {"per_rack": 3, "gpus": 4, "critical_per_rack": 1},
        "farm": {"processes": 2, "apart": 2},
        "feed_rating_kw": 60,
        "base_load_max_kw": 10,
        "failsafe_kw": 25,
        **changes.pop("block", {}),
    }
    return parse_scenario(
        {
            "name": "block",
            "warm_up_s": 0.2,
            "duration_s": 10,
            "block": block,
            "workloads": [{"racks": "1-2", "kind": "training"}, {"racks": 3, "kind": "decode"}],
            **changes,
        },
        "block.yaml",
    )


def errors_of(**changes):
    with pytest.raises(ScenarioError) as refused:
        a_scenario(**changes)
    return str(refused.value).splitlines()


# ---- scenario -------------------------------------------------------------------------------------------


def test_patterns_are_spelt_out_before_anybody_else_looks():
    block = a_scenario().block
    assert [rack.name for rack in block.racks] == ["r01", "r02", "r03"]
    assert [node.name for node in block.nodes[:4]] == ["r01-n1", "r01-n2", "r01-n3", "r02-n1"]
    assert [node.tier for node in block.nodes[:4]] == ["critical", "standard", "standard", "critical"]


def test_every_node_has_one_process_and_those_apart_are_spread():
    block = a_scenario().block
    assert [node.name for node in block.apart] == ["r01-n1", "r02-n2"]
    farmed = [node.name for nodes in block.farms.values() for node in nodes]
    assert sorted([*farmed, "r01-n1", "r02-n2"]) == sorted(node.name for node in block.nodes)
    assert {name: len(nodes) for name, nodes in block.farms.items()} == {"farm-1": 3, "farm-2": 4}
    assert a_scenario(block={"farm": None}).block.farms == {}


def test_work_by_racks_is_a_job_per_rack_or_one_for_all():
    jobs = a_scenario().plant_type().jobs
    assert [(job.kind, len(job.gpus)) for job in jobs] == [("training", 12), ("training", 12), ("decode", 12)]
    together = a_scenario(workloads=[{"racks": "1-3", "kind": "training", "together": True}])
    assert [len(job.gpus) for job in together.plant_type().jobs] == [36]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"workloads": [{"racks": "2-9", "kind": "idle"}]}, "there are racks 1 to 3"),
        ({"workloads": [{"kind": "idle"}]}, "either node or racks"),
        ({"workloads": [{"racks": 1, "kind": "idle"}, {"node": "r01-n2", "kind": "idle"}]}, "two for node"),
        ({"block": {"shed": {**SHED, "contacts": {"trip": "abyss"}}}}, "trip calls 'abyss'"),
        ({"timeline": [{"at_s": 1, "contact": {"name": "trip"}}]}, "no contact 'trip'"),
        ({"timeline": [{"at_s": 1, "event": {"id": "a", "type": "ALERT_GRID_EMERGENCY"}}]}, "calls nothing"),
        (
            {"timeline": [{"at_s": 1, "fault": {"target": "agent", "name": "r01-n2", "mode": "kill"}}]},
            "use r01-n1, r02-n2, farm-1, farm-2",
        ),
        (
            {"timeline": [{"at_s": 1, "fault": {"target": "link", "name": "r01 r7", "mode": "partition"}}]},
            "no link 'r01 r7'",
        ),
        ({"timeline": [{"at_s": 1, "fault": {"target": "phasor", "mode": "silent"}}]}, "add block.frequency"),
        (
            {
                "timeline": [
                    {"at_s": 1, "command": {"id": "a", "via": "modbus", "shed": "x", "duration_s": 5}}
                ]
            },
            "no level 'x'",
        ),
    ],
)
def test_what_does_not_fit_together_is_told_with_its_remedy(changes, word):
    assert any(word in error for error in errors_of(**changes)), errors_of(**changes)


def test_an_alert_is_told_in_words():
    alert = GridEvent(
        id="a", type="ALERT_GRID_EMERGENCY", limit_kw=None, starts_utc_s=time.time(), duration_s=5
    )
    told = notification(alert, "CREATE")["object"]
    assert isinstance(told["intervals"][0]["payloads"][0]["values"][0], str)
    assert "units" not in told["payloadDescriptors"][0]


# ---- work and plant -------------------------------------------------------------------------------------


def run_job(job, ceiling_w=700.0, clock_ratio=None, steps=400):
    count = len(job.gpus)
    work, alive = Workload([job], H100, count, np.random.default_rng(2)), np.ones(count, dtype=bool)
    clock = None if clock_ratio is None else np.full(count, clock_ratio)
    demand_w, tokens = [], []
    for i in range(steps):
        work.step(i * STEP_S, STEP_S, np.full(count, ceiling_w), alive, clock)
        demand_w.append(work.demand_w.copy())
        tokens.append(work.tokens_per_s.sum())
    return np.array(demand_w), np.mean(tokens), work


def test_a_cap_does_nothing_to_decoding_and_a_slow_clock_costs_it_little():
    job = Job(kind="decode", gpus=tuple(range(16)), intensity_ratio=0.42)
    demand_w, free, work = run_job(job)
    assert demand_w.mean() == pytest.approx(294, rel=0.03)
    assert run_job(job, ceiling_w=400)[1] == pytest.approx(free, rel=1e-6)
    assert run_job(job, clock_ratio=0.3)[1] == pytest.approx(free * 0.958, rel=0.01)
    assert work.memory_w.mean() == pytest.approx(0.6 * (294 - H100.idle_w), rel=0.03)


def test_a_slow_clock_costs_training_what_the_power_that_it_saves_would():
    job = Job(kind="training", gpus=tuple(range(8)))
    full_w = 0.92 * H100.max_w
    clocked_w = H100.idle_w + (full_w - H100.idle_w) * 0.7**2.4
    capped, clocked = run_job(job, ceiling_w=clocked_w)[1], run_job(job, clock_ratio=0.7)[1]
    assert clocked == pytest.approx(capped, rel=1e-6)


def test_prompts_come_gpu_by_gpu_and_take_their_share_of_the_time():
    job = Job(kind="prefill", gpus=tuple(range(64)), intensity_ratio=0.4, swing_ratio=0.3)
    reading = run_job(job, steps=2000)[0] > 600
    assert reading.mean() == pytest.approx(0.3, abs=0.04)
    assert 0.05 < reading[-1].mean() < 0.6, "not all at once"


def test_gpus_that_know_nothing_of_each_other_are_one_job_to_the_plant():
    jobs = [Job(kind="decode", gpus=(i,)) for i in range(40)] + [
        Job(kind="training", gpus=(40 + i,)) for i in (0, 1)
    ]
    assert len(Workload(jobs, H100, 42, np.random.default_rng(1))._jobs) == 3


# ---- facility -------------------------------------------------------------------------------------------


def test_nodes_of_a_farm_share_a_driver_and_faults_hit_their_own_gpus(tmp_path):
    facility = Facility(a_scenario(), tmp_path)
    assert {name: len(memory.gpus) for name, memory in facility.memories.items()} == {
        "r01-n1": 4, "r02-n2": 4, "farm-1": 12, "farm-2": 16,
    }  # fmt: skip
    facility.gpus_of("r01-n3")["requested_mw"][1] = 250_000
    row = facility.gpu_names().index("r01-n3/1")
    assert facility.limits_w()[row] == 250
    assert (facility.limits_w() == 250).sum() == 1
    facility.gpus_of("r02-n1")["locked_clock_max_mhz"] = 990
    assert (facility._clock_limit_hz() == 990e6).sum() == 4


async def test_what_others_do_to_a_gpu_is_undone_again(tmp_path):
    facility = Facility(a_scenario(), tmp_path)
    gpus = facility.gpus_of("r03-n2")
    heal = await facility.break_gpu(Fault(target="gpu", mode="foreign", name="r03-n2/*", limit_w=310))
    assert (gpus["foreign_mw"] == 310_000).all()
    assert (gpus["requested_mw"] == 310_000).all()
    await heal()
    assert (gpus["foreign_mw"] == 0xFFFF_FFFF).all()
    heal = await facility.break_gpu(Fault(target="gpu", mode="inert", name="r03-n2/2"))
    assert gpus["inert"].tolist() == [0, 0, 1, 0]
    await heal()
    assert not gpus["inert"].any()


def test_a_host_without_power_forgets_its_limits_and_comes_back_at_all_it_can(tmp_path):
    facility = Facility(a_scenario(), tmp_path)
    gpus = facility.gpus_of("r02-n2")
    gpus["requested_mw"] = 300_000
    facility.power_off("r02-n2")
    for _ in range(60):
        facility._step()
    rows = facility._rows_of("r02-n2")
    assert facility.plant.bank.power_w[rows].max() < 80
    assert (gpus["requested_mw"] == 700_000).all()
    facility.power_on("r02-n2")
    for _ in range(60):
        facility._step()
    assert facility.plant.bank.power_w[rows].min() > 400


def test_a_gpu_that_draws_more_than_it_shows_is_named_and_a_falling_one_is_not():
    excess = Excess(3)
    for i in range(100):
        excess.step(0.05, np.array([690.0, 400.0, 700.0 if i < 4 else 395.0]), np.full(3, 400.0))
    assert excess.for_s[0] > 4
    assert excess.worst_w[0] > 250
    assert max(excess.for_s[1:]) <= 0.2


async def test_a_relay_shows_at_the_wire_as_a_bit(tmp_path):

    plc = ContactPlc(("undervoltage", "gen-trip"), tmp_path)
    assert set(load_profile(plc.profile_path).points) == {"undervoltage_closed", "gen_trip_closed"}
    assert point_name("gen-trip") == "gen_trip_closed"
    async with plc.device as device:
        client = AsyncModbusTcpClient("127.0.0.1", port=device.port)
        await client.connect()
        assert (await client.read_discrete_inputs(0, count=2)).bits[:2] == [False, False]
        plc.set("gen-trip", closed=True)
        assert (await client.read_discrete_inputs(0, count=2)).bits[:2] == [False, True]
        client.close()


# ---- frequency ------------------------------------------------------------------------------------------


def test_the_grid_moves_at_an_even_rate_and_wanders_by_millihertz():
    mains = Mains(np.random.default_rng(1))
    before = [mains.step(STEP_S) or mains.frequency_hz for _ in range(4000)]
    assert np.mean(before) == pytest.approx(50, abs=0.004)
    assert 0.001 < np.std(before) < 0.01
    mains.move(49.5, within_s=1.0)
    for _ in range(100):
        mains.step(STEP_S)
    assert mains.frequency_hz == pytest.approx(49.75, abs=0.03)


@pytest.mark.parametrize("form", ["json", "c37_118"])
async def test_the_instrument_tells_it_fifty_times_a_second_as_the_block_reads_it(form):
    heard, mains = [], Mains(np.random.default_rng(1))
    reader = Frames(id_code=7) if form == "c37_118" else JsonReadings()

    class Ear(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            heard.append(reader.take(data, time.monotonic()))

    ear, _ = await asyncio.get_running_loop().create_datagram_endpoint(Ear, local_addr=("127.0.0.1", 0))
    try:
        async with FrequencyStream(mains, ear.get_extra_info("sockname")[1], form) as stream:
            await asyncio.sleep(0.5)
            samples = [sample for sample in heard if sample]
            assert 10 <= len(samples) <= 28
            assert all(sample.good and sample.hz == pytest.approx(50, abs=0.001) for sample in samples)
            stream.silent = True
            await asyncio.sleep(0.05)
            heard.clear()
            await asyncio.sleep(0.1)
            assert not heard
    finally:
        ear.close()
    assert not reader.refusals.counts


# ---- links ----------------------------------------------------------------------------------------------


def a_packet(kind, body):
    head, length = bytes([kind << 4]), len(body)
    while length >= 128:
        head, length = head + bytes([length % 128 | 128]), length // 128
    return head + bytes([length]) + body


def test_packets_are_whole_whatever_the_chunks_and_only_some_pass():
    chance = random.Random(4)
    sent = [a_packet(chance.choice((3, 12)), bytes(chance.randrange(400))) for _ in range(60)]
    packets, stream, passed = Packets(lambda packet: packet[0] >> 4 != 3), b"".join(sent), b""
    while stream:
        size = chance.randrange(1, 90)
        passed += packets.kept(stream[:size])
        stream = stream[size:]
    assert passed == b"".join(packet for packet in sent if packet[0] >> 4 != 3)


async def test_a_cut_off_link_stays_open_and_delivers_late():
    async def echo(reader, writer):
        while chunk := await reader.read(100):
            writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with BrokenLink("127.0.0.1", port, sees_packets=False) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        link.partitioned = True
        writer.write(b"b")
        late = asyncio.create_task(reader.readexactly(1))
        await asyncio.sleep(0.1)
        assert not late.done()
        link.partitioned = False
        async with asyncio.timeout(2):
            assert await late == b"b"
        writer.close()
        await writer.wait_closed()
    server.close()


# ---- figures --------------------------------------------------------------------------------------------


def a_fine(block_w, hz=50.0):
    t_s = np.arange(len(block_w)) * STEP_S
    return Fine(t_s.tolist(), list(block_w), list(block_w), np.broadcast_to(hz, len(block_w)).tolist())


def test_a_shed_is_answered_when_power_stays_there_not_when_it_dips():
    power_w = np.full(1200, 50e3)
    power_w[210:220] = 20e3  # an exchange, right after the call
    power_w[240:] = 30.3e3
    told = [{"decided_s": 0.001, "confirmed_s": 0.012}, {"decided_s": 0.003, "confirmed_s": 0.009}]
    said = emergency.figures(a_fine(power_w), [Shed("trip", 30e3, 1.0, 5.0)], None, told)
    assert said["shed_reaction_s"] == pytest.approx(0.2, abs=0.011)
    assert said["shed_written_s"] == 0.012
    assert said["shed_limits_s"] == pytest.approx(0.05, abs=0.011)
    assert said["shed_over_ratio"] == pytest.approx(0.01, abs=0.001)
    power_w[900:910] = 50e3
    late = emergency.figures(a_fine(power_w), [Shed("trip", 30e3, 1.0, 5.0)], None, told)
    assert late["shed_over_ratio"] > 0.1


def test_a_shed_that_nobody_answers_has_no_figure():
    said = emergency.figures(a_fine(np.full(800, 50e3)), [Shed("trip", 30e3, 1.0, np.inf)], None, [])
    assert said["shed_reaction_s"] is None
    assert said["shed_written_s"] is None


def test_frequency_response_counts_from_the_crossing():
    power_w, hz = np.full(1000, 50e3), np.full(1000, 50.0)
    hz[400:] = 49.6
    power_w[460:] = 39e3
    said = emergency.figures(a_fine(power_w, hz), [], (49.7, 10e3), [])
    assert said == {"frequency_reaction_s": pytest.approx(0.3, abs=0.011)}


def test_a_budget_is_held_against_a_whole_second_and_the_time_to_settle():
    t_s = np.arange(0, 20, 0.05)
    budget_w = np.where(t_s < 10, 50e3, 30e3)
    for late_s, over in ((0.4, 0.0), (2.5, 20 / 30)):
        block_w = np.where(t_s < 10 + late_s, 50e3, 30e3)
        trace = Trace(t_s, block_w, np.zeros(len(t_s)), np.zeros(len(t_s)))
        assert over_budget_ratio(trace, budget_w, 0.5) == pytest.approx(over, abs=0.01)


# ---- view and configuration -----------------------------------------------------------------------------


def a_status(block):
    racks = [{"name": r.name, "power_w": 9e3, "gpu_w": 7e3, "gpu_limit_w": 8e3} for r in block.racks]
    nodes = [{"name": n.name, "gpus": n.gpus, "leased": n.name != "r02-n3"} for n in block.nodes]
    shed = {"level": "deep", "called": [{"level": "deep", "by": "trip"}], "armed": 8, "nodes": 9}
    return {"racks": racks, "nodes": nodes, "shed": {**shed, "last": {"level": "deep", "confirmed_s": 0.014}}}


A_BEAT = {
    "at_utc_s": 1.0, "budget_w": 7e5, "binding": {"source": "shed deep (trip)"}, "mode": "limited",
    "alarms": [{"key": "agent r02-n3", "active": True}, {"key": "shed", "active": True}],
}  # fmt: skip


def test_a_rack_shows_what_it_draws_what_it_may_and_who_is_missing():
    block = a_scenario().block
    rows = rack_rows(block, [9e3, 10.5e3, 1e3], a_status(block), ["agent r02-n3", "inlet r02-a", "meter"])
    most_w = rows[0].most_w
    assert most_w == pytest.approx(12 * 700 + block.base_load_max_kw * 1000 / len(block.racks))
    assert rows[1] == RackRow("r02", 10.5e3, 10e3, most_w, leased=8, gpus=12, alarms=2)
    assert [row.alarms for row in rows] == [0, 2, 0]
    drawn = Console(width=80).render_lines(rack_table(rows, 80))
    spans = [segment for line in drawn for segment in line if "█" in segment.text]
    assert any(segment.style and "red" in str(segment.style) for segment in spans), "2 % above what it may"


@pytest.mark.parametrize("width", [80, 120])
def test_a_block_of_sixteen_racks_fits_the_terminal(width):
    scenario = a_scenario(
        block={
            "racks": {"count": 16},
            "shed": SHED,
            "frequency": {"preset": "x", "committed_kw": 5, "trigger_hz": 49.7},
        }
    )
    sample = Sample(1, 1, 7e5, 7e5, 5e5, 1e5, 1e6, 22, 6e5, tuple(4e4 for _ in range(16)), (), 49.91)
    status = {**a_status(scenario.block), **A_BEAT}
    marks = tuple(Mark(float(at), f"fault {at}: broker replaced", "fault") for at in range(9))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(LiveView(scenario, width).render(View(3.0, sample, status, marks)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= 24 - 1, "the prompt needs a line"
    assert all(f"r{number:02}" in text for number in range(1, 17))
    for word in ("deep is called by trip", "8 of 9 nodes armed", "confirmed 14", "49.910 Hz"):
        assert word in text, text


async def test_the_configuration_of_a_block_is_what_controller_and_farm_accept(tmp_path):
    scenario = a_scenario(
        block={
            "shed": {**SHED, "alerts": {"ALERT_GRID_EMERGENCY": "gentle"}},
            "frequency": {"preset": "nordic_ffr_a_short", "committed_kw": 5, "trigger_hz": 49.7},
        },
        timeline=[{"at_s": 1, "fault": {"target": "link", "name": "r02", "mode": "lossy"}}],
    )
    rig = Rig(scenario, tmp_path / "report", None)
    async with rig.facility():
        block = load_block(rig.block_path)
        assert [contact.level for contact in block.shed.contacts] == ["deep"]
        assert block.frequency.input.way == "phasor_udp"
        agents = rig.written.agents(node.name for node in scenario.block.apart)
        assert [verb for verb, _ in agents.values()] == ["agent", "agent", "agent-farm", "agent-farm"]
        _, nodes = load_farm(rig.written.farms["farm-2"])
        memory = rig._facility.memories["farm-2"]
        assert sum(node.gpus.count for node in nodes) == len(memory.gpus)
        urls = {path: yaml.safe_load(path.read_text())["mqtt"]["url"] for path in rig.node_paths.values()}
        through = {path.stem for path, url in urls.items() if url != rig.grid.broker.url}
        assert through == {"r02-n1", "r02-n2", "r02-n3"}, "a healthy rack is not led through the rig"


def test_what_the_device_says_of_its_calls_is_read_line_by_line(tmp_path):
    path = tmp_path / "sheds.jsonl"
    assert emergency.read_told(path) == []
    path.write_text(json.dumps({"head": 1}) + "\n" + json.dumps({"level": "deep"}) + "\n" + '{"level": "to')
    assert emergency.read_told(path) == [{"level": "deep"}]


# ---- a whole run ----------------------------------------------------------------------------------------


async def test_a_run_with_everything_in_it_ends_with_a_verdict_on_all_of_it(tmp_path):
    """Against the scripted one, which knows no emergencies: what happens is the rig's own doing."""
    peer = tmp_path / "powerblock"
    peer.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "scripted_powerblock.py"} "$@"\n')
    peer.chmod(0o755)
    faults = (
        {"target": "host", "mode": "reboot", "name": "r02-n2", "dark_s": 0.2, "for_s": 0.4},
        {"target": "link", "mode": "partition", "name": "r01", "for_s": 0.3},
        {"target": "gpu", "mode": "inert", "name": "r01-n1/0", "for_s": 0.5},
        {"target": "controller", "mode": "twice", "for_s": 0.5},
        {"target": "phasor", "mode": "silent", "for_s": 0.3},
    )
    scenario = a_scenario(
        warm_up_s=1,
        duration_s=3,
        block={
            "shed": {**SHED, "alerts": {"ALERT_GRID_EMERGENCY": "gentle"}},
            "frequency": {"preset": "nordic_ffr_a_short", "committed_kw": 5, "trigger_hz": 49.7},
        },
        timeline=[
            {"at_s": 0.2, "contact": {"name": "trip", "closed": True}},
            {"at_s": 0.6, "contact": {"name": "trip", "closed": False}},
            {"at_s": 0.7, "event": {"id": "alert", "type": "ALERT_GRID_EMERGENCY", "duration_s": 0.5}},
            {"at_s": 0.8, "command": {"id": "hand", "via": "panel", "shed": "deep", "duration_s": 1}},
            {"at_s": 1.0, "frequency": {"to_hz": 49.5, "within_s": 0.1}},
            *({"at_s": 1.2 + 0.1 * i, "fault": fault} for i, fault in enumerate(faults)),
        ],
    )
    await Rig(scenario, tmp_path / "report", peer).run(lambda _view: None)
    said = json.loads((tmp_path / "report" / "verdict.json").read_text())
    asked = {one["by"]: one for one in said["sheds"]["asked"]}
    assert asked["trip"]["ends_s"] - asked["trip"]["at_s"] == pytest.approx(0.4, abs=0.15)
    assert (asked["alert"]["level_w"], asked["hand"]["level_w"]) == (40_000, 30_000)
    assert said["shed_reaction_s"] is None, "nobody obeyed"
    assert said["orders_refused"] == 0
    assert said["frequency_reaction_s"] is None
    assert {"rig", "controller", "agent farm-1", "agent r01-n1"} <= said["usage"].keys()
    texts = [mark["text"] for mark in said["marks"]]
    for text in (
        "trip: deep",
        "trip over",
        "49.5 Hz",
        "r02-n2 at full power",
        "host r02-n2 back",
        "link r01 back",
    ):
        assert text in texts, texts
