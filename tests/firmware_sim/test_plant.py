"""Workload, hosts, feeds, meters and cooling, alone and together."""

import numpy as np
import pytest

from firmware_sim.cooling import Cdu, CduType
from firmware_sim.electrical import Electrical, Host, Rack
from firmware_sim.gpu_power import MODELS
from firmware_sim.metering import BLOCK_METER, PDU, Meter, MeterType
from firmware_sim.plant import STEP_S, Plant, PlantType
from firmware_sim.workload import CURVE_SPEED_RATIO, Job, Workload, speed_ratio

H100 = MODELS["H100"]


def a_plant(nodes=2, *, seed=1, jobs=None):
    rows = [tuple(range(8 * i, 8 * i + 8)) for i in range(nodes)]
    return Plant(
        PlantType(
            gpu=H100,
            hosts=tuple(Host(name=f"n{i}", rack=f"r{i % 2}", gpus=row) for i, row in enumerate(rows)),
            racks=(Rack(name="r0"), Rack(name="r1", share_a_ratio=0.4)),
            jobs=jobs
            or tuple(Job(kind="training" if i % 2 else "inference", gpus=row) for i, row in enumerate(rows)),
            cdu=CduType(),
            seed=seed,
        )
    )


def run(plant, duration_s, limit_w=700.0):
    powers_w = []
    limits_w = np.full(plant.bank.count, limit_w)
    for _ in range(round(duration_s / STEP_S)):
        plant.step(STEP_S, limits_w)
        powers_w.append(plant.block_w)
    return np.array(powers_w)


# ---- workload -------------------------------------------------------------------------------------------


def run_job(job, duration_s, ceiling_w=700.0, alive=None):
    count = len(job.gpus)
    work = Workload([job], H100, count, np.random.default_rng(3))
    alive = np.ones(count, dtype=bool) if alive is None else alive
    demands_w, tokens = [], []
    for i in range(round(duration_s / STEP_S)):
        work.step(i * STEP_S, STEP_S, np.full(count, ceiling_w), alive)
        demands_w.append(work.demand_w.copy())
        tokens.append(work.tokens_per_s.sum())
    return np.array(demands_w), np.array(tokens)


@pytest.mark.parametrize("kind", ["training", "finetuning", "inference"])
def test_throughput_is_concave_above_half_the_limit_and_collapses_below(kind):
    ratios = np.array([0.25, 0.50, 0.625, 0.75, 0.875, 1.0])
    speed = speed_ratio(kind, ratios)
    gains = np.diff(speed) / np.diff(ratios)
    assert gains[1:3].mean() > 1.3 * gains[3:].mean(), "less for each further watt above half"
    assert gains[0] > gains[1], "below half every watt counts most"
    assert (speed / ratios).argmax() in (1, 2), "tokens per watt peak between half and two thirds"
    assert speed[-1] == 1.0


def test_the_curves_carry_the_published_points():
    assert speed_ratio("inference", np.array([0.75]))[0] == 0.931
    assert speed_ratio("training", np.array([0.5]))[0] == 0.629
    assert all(len(points) == 7 for points in CURVE_SPEED_RATIO.values())


def test_bursts_of_inference_have_the_measured_spread_and_no_memory():
    job = Job(kind="inference", gpus=tuple(range(8)), intensity_ratio=0.74)
    demands_w, _ = run_job(job, 60)
    ratio = demands_w / H100.max_w
    assert ratio.mean() == pytest.approx(0.74, abs=0.02)
    assert ratio.std() == pytest.approx(0.15, abs=0.03)  # 50 W of 335 W in the trace
    assert np.quantile(ratio, 0.05) == pytest.approx(0.52, abs=0.04)
    assert abs(np.corrcoef(ratio.T)[0, 1]) < 0.2, "GPUs burst independently"
    later = round(0.37 / STEP_S)
    assert abs(np.corrcoef(ratio[:-later, 0], ratio[later:, 0])[0, 1]) < 0.2


def test_training_swings_together_and_slows_with_its_slowest_gpu():
    job = Job(kind="training", gpus=tuple(range(8)), step_s=0.25)
    demands_w, tokens = run_job(job, 5)
    assert (demands_w == demands_w[:, :1]).all(), "all GPUs of a job exchange at the same moment"
    exchanges = (np.diff(demands_w[:, 0]) < 0).sum()
    assert exchanges == pytest.approx(20, abs=1)
    one_slow_w = np.full(8, 700.0)
    one_slow_w[3] = 350.0
    _, slowed = run_job(job, 5, ceiling_w=one_slow_w)
    _, all_slow = run_job(job, 5, ceiling_w=350.0)
    assert slowed.mean() == pytest.approx(all_slow.mean(), rel=0.01)
    assert slowed.mean() / tokens.mean() == pytest.approx(0.629 / 0.95, abs=0.03)


def test_a_checkpoint_and_a_lost_gpu_both_stop_the_tokens_of_a_training_job():
    job = Job(kind="training", gpus=tuple(range(4)), checkpoint_every_s=5, checkpoint_s=1)
    demands_w, tokens = run_job(job, 5)
    assert (tokens == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert demands_w[tokens == 0].max() < 200
    alive = np.array([True, True, False, True])
    demands_w, tokens = run_job(job, 1, alive=alive)
    assert tokens.sum() == 0
    assert (demands_w[:, 2] == H100.idle_w).all()


# ---- electrical -----------------------------------------------------------------------------------------


def an_electrical():
    hosts = (Host(name="a", rack="r", gpus=tuple(range(8))),)
    electrical = Electrical(hosts, (Rack(name="r", share_a_ratio=0.55),), np.random.default_rng(1))
    electrical.settle(np.full(8, 600.0))
    return electrical


def test_a_watt_at_the_gpu_is_more_than_a_watt_at_the_feed():
    electrical = an_electrical()
    electrical.step(STEP_S, np.full(8, 600.0))
    high_w = electrical.rack_w[0]
    electrical.step(STEP_S, np.full(8, 500.0))
    assert 1.005 < (high_w - electrical.rack_w[0]) / 800.0 < 1.12


def test_fans_follow_the_heat_late():
    electrical = an_electrical()
    for _ in range(20):
        electrical.step(STEP_S, np.full(8, 300.0))
    at_once_w = electrical.rack_w[0]
    for _ in range(round(20 / STEP_S)):
        electrical.step(STEP_S, np.full(8, 300.0))
    assert at_once_w - electrical.rack_w[0] > 50


def test_a_lost_feed_moves_the_whole_rack_to_the_other():
    electrical = an_electrical()
    electrical.step(STEP_S, np.full(8, 600.0))
    both_w = electrical.inlet_w[0].copy()
    assert both_w[0] / both_w.sum() == pytest.approx(0.55)
    electrical.feed_live[0] = False
    electrical.step(STEP_S, np.full(8, 600.0))
    assert electrical.inlet_w[0, 0] == 0
    assert electrical.inlet_w[0, 1] == pytest.approx(both_w.sum(), rel=0.03)
    electrical.feed_live[1] = False
    electrical.step(STEP_S, np.full(8, 600.0))
    assert electrical.rack_w[0] == 0


# ---- meters ---------------------------------------------------------------------------------------------


def meter_steps(meter_type, duration_s, before_w, after_w):
    """Readings while the truth steps after 2 s."""
    meter = Meter(meter_type, np.random.default_rng(4))
    readings = []
    for i in range(round(duration_s / STEP_S)):
        now_s = i * STEP_S
        meter.step(now_s, STEP_S, before_w if now_s < 2 else after_w)
        readings.append(meter.reading_w)
    return np.array(readings)


@pytest.mark.parametrize(("meter_type", "late_max_s"), [(PDU, 2.5), (BLOCK_METER, 0.5)])
def test_a_meter_stands_still_between_refreshes_and_reaches_the_truth(meter_type, late_max_s):
    readings = meter_steps(meter_type, 8, 5000, 4000)
    assert (np.diff(readings) != 0).sum() == pytest.approx(8 / meter_type.refresh_s, abs=2)
    assert readings[round(1.9 / STEP_S)] == pytest.approx(5000, rel=0.005)
    assert readings[round((2 + late_max_s) / STEP_S)] == pytest.approx(4000, rel=0.02)


def test_a_meter_lags_by_its_own_filter():
    readings = meter_steps(MeterType(lag_s=0.3, refresh_s=STEP_S), 4, 1000, 0)
    assert readings[round(2.3 / STEP_S)] == pytest.approx(1000 / np.e, rel=0.05)


def test_a_meter_does_not_alias_the_steps_of_a_training_job():
    meter = Meter(BLOCK_METER, np.random.default_rng(4))
    readings = []
    for i in range(4000):
        meter.step(i * STEP_S, STEP_S, 10_000.0 if i % 50 < 45 else 8_000.0)  # a dip every 0.25 s
        readings.append(meter.reading_w)
    assert np.mean(readings[400:]) == pytest.approx(9_800, rel=0.002)


# ---- cooling --------------------------------------------------------------------------------------------


def test_the_loop_holds_its_setpoint_and_warms_slowly_when_it_cannot():
    cdu = Cdu(CduType(), np.random.default_rng(1))
    for _ in range(round(30 / STEP_S)):
        cdu.step(STEP_S, 12_000)
    assert cdu.loop_c == pytest.approx(cdu.type.setpoint_c, abs=0.5)
    assert cdu.return_c - cdu.supply_c == pytest.approx(12_000 / (0.5 * 4180), rel=0.01)
    for _ in range(round(1 / STEP_S)):
        cdu.step(STEP_S, 40_000)
    assert cdu.type.setpoint_c < cdu.loop_c < cdu.type.setpoint_c + 0.5, "inertia: no jump within a second"


def test_capacity_wanders_a_little_and_falls_as_facility_water_warms():
    cdu = Cdu(CduType(), np.random.default_rng(1))

    def capacities_w(duration_s):
        values_w = []
        for _ in range(round(duration_s / STEP_S)):
            cdu.step(STEP_S, 10_000)
            values_w.append(cdu.capacity_w)
        return np.array(values_w)

    steady_w = capacities_w(2)
    assert steady_w == pytest.approx(22_000, rel=0.02)
    assert np.ptp(steady_w) > 0, "registers that never move look frozen"
    cdu.facility_target_c = 34.0
    falling_w = capacities_w(40)
    assert falling_w[round(cdu.type.facility_tau_s / STEP_S)] == pytest.approx(
        10_000 + 12_000 / np.e, rel=0.02
    )
    assert falling_w[-1] == pytest.approx(10_000, rel=0.02)


# ---- the whole plant ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_plant_and_another_seed_another():
    first, again, other = run(a_plant(), 1), run(a_plant(), 1), run(a_plant(seed=2), 1)
    assert (first == again).all()
    assert (first != other).any()


def test_block_energy_is_the_integral_of_block_power_and_power_is_the_sum_of_its_parts():
    plant = a_plant()
    powers_w = run(plant, 2)
    assert plant.block_energy_j == pytest.approx(powers_w.sum() * STEP_S)
    assert plant.block_w == pytest.approx(plant.electrical.inlet_w.sum() + plant.cdu.pump_w)
    assert plant.electrical.rack_w.sum() > plant.bank.power_w.sum()


def test_limits_at_half_lower_the_block_and_raise_tokens_per_watt():
    plant = a_plant()
    full_w, full_tokens = run(plant, 3)[200:].mean(), plant.tokens_per_s
    half_w, half_tokens = run(plant, 3, limit_w=400)[200:].mean(), plant.tokens_per_s
    assert half_w < 0.75 * full_w
    assert half_tokens / half_w > 1.1 * full_tokens / full_w


def test_time_zero_finds_the_plant_at_work():
    powers_w = run(a_plant(jobs=(Job(kind="training", gpus=tuple(range(16))),)), 4)
    assert powers_w[:200].mean() == pytest.approx(powers_w[-200:].mean(), rel=0.01)


def test_a_step_longer_than_a_gpus_fall_is_refused():
    with pytest.raises(ValueError, match=r"at most 0\.02 s"):
        a_plant().step(0.05, np.full(16, 700.0))
