"""A small block to ask the law about: two racks, one node of two GPUs in each, power supplies without loss."""

from dataclasses import replace

import numpy as np

from controller.core.model import (
    NO_LIMIT_W,
    UNKNOWN,
    FailsafeSettings,
    Gpus,
    Inlets,
    Measurement,
    Ramp,
    Settings,
    Site,
    Snapshot,
    Topology,
)

SILENT = Site()
UTC_0 = 1_790_000_000.0
MIN_W, MAX_W, FLOOR_W = 200.0, 700.0, 250.0

TOPOLOGY = Topology(
    node_names=("n0", "n1"),
    rack_names=("r0", "r1"),
    inlet_names=("r0-a", "r0-b", "r1-a", "r1-b"),
    gpu_node=np.array([0, 0, 1, 1]),
    gpu_rack=np.array([0, 0, 1, 1]),
    inlet_rack=np.array([0, 0, 1, 1]),
    inlet_continuous_w=np.full(4, 3000.0),
    gpu_min_w=np.full(4, MIN_W),
    gpu_max_w=np.full(4, MAX_W),
    gpu_floor_w=np.full(4, FLOOR_W),
    gpu_weight=np.ones(4),
)

SETTINGS = Settings(
    topology=TOPOLOGY,
    failsafes=(FailsafeSettings(limit_w=2400.0, heartbeat_timeout_s=5.0, source="openadr"),),
    tick_s=0.05,
    feed_rating_w=5000.0,
    ramp=Ramp(down_w_per_s=500.0, up_w_per_s=250.0),
    block_w_per_gpu_w=1.0,
    base_min_w=200.0,
    base_max_w=1000.0,
    base_margin_w=0.0,
    rack_base_max_w=np.full(2, 500.0),
    cooling_blind_w=None,
)


def gpus(
    limit_w=MAX_W,
    power_w=300.0,
    *,
    at_s=0.0,
    seq=1,
    leased=True,
    revision=1,
    min_w=MIN_W,
    max_w=MAX_W,
    cap_w=NO_LIMIT_W,
    table=0,
    proven_w=NO_LIMIT_W,
    floor_w=0.0,
    capped=False,
    by_clock=False,
    clock_max_mhz=1980,
    ceiling_mhz=0,
) -> Gpus:
    """What the agents report; numbers stand for all GPUs or nodes alike."""
    return Gpus(
        revision=revision,
        power_w=np.broadcast_to(power_w, 4).astype(float),
        limit_w=np.broadcast_to(limit_w, 4).astype(float),
        min_w=np.full(4, min_w),
        max_w=np.full(4, max_w),
        cap_w=np.broadcast_to(cap_w, 4).astype(float),
        proven_w=np.broadcast_to(proven_w, 4).astype(float),
        floor_w=np.broadcast_to(floor_w, 4).astype(float),
        capped=np.broadcast_to(capped, 4).astype(bool),
        by_clock=np.broadcast_to(by_clock, 4).astype(bool),
        clock_max_mhz=np.broadcast_to(clock_max_mhz, 4).astype(np.int64),
        ceiling_mhz=np.broadcast_to(ceiling_mhz, 4).astype(np.int64),
        node_at_s=np.broadcast_to(at_s, 2).astype(float),
        node_seq=np.broadcast_to(seq, 2).astype(np.int64),
        node_leased=np.broadcast_to(leased, 2).astype(bool),
        node_table=np.broadcast_to(table, 2).astype(np.int64),
    )


def snapshot(
    now_s: float,
    *,
    now_utc_s=None,
    meter=UNKNOWN,
    inlets=None,
    cooling=UNKNOWN,
    site=SILENT,
    sheds=(),
    frequency=UNKNOWN,
    **told,
):
    """`told` goes to `gpus`; PDUs read 500 W each, freshly, unless said otherwise."""
    fresh = Inlets(np.full(4, 500.0), np.ones(4, dtype=bool), np.full(4, now_s))
    return Snapshot(
        now_s=now_s,
        now_utc_s=UTC_0 + now_s if now_utc_s is None else now_utc_s,
        meter=meter,
        inlets=fresh if inlets is None else inlets,
        cooling=cooling,
        gpus=gpus(**{"at_s": now_s, **told}),
        site=site,
        sheds=sheds,
        frequency=frequency,
    )


def good(value: float, at_s: float) -> Measurement:
    return Measurement(value, good=True, taken_at_s=at_s)


def settings(**changes) -> Settings:
    return replace(SETTINGS, **changes)
