"""What agents tell of the levers of their GPUs, as arrays over the block."""

from controller.gpu_levers import Levers
from protocols.agent_link import Facts, Gpu, GpuFacts, Report

SLICES = (slice(0, 2), slice(2, 4))


def report(*gpus: dict) -> Report:
    told = tuple(
        Gpu(power_w=300.0, limit_w=700.0, enforced_w=700.0, min_w=200.0, max_w=700.0, **gpu) for gpu in gpus
    )
    return Report(
        node="b",
        boot="x",
        at_s=1.0,
        echo_sent_at_s=1.0,
        echo_age_s=0.0,
        epoch=1,
        seq=1,
        mode="leased",
        gpus=told,
    )


def levers() -> Levers:
    return Levers(SLICES, 4)


def test_what_a_node_tells_lands_on_its_gpus_and_goes_when_it_is_told_no_more():
    board = levers()
    board.put_report(report({"lever": "clock", "ceiling_mhz": 990}, {"capped": True, "floor_w": 650.0}), 1)
    assert board.by_clock.tolist() == [False, False, True, False]
    assert board.ceiling_mhz.tolist() == [0, 0, 990, 0]
    assert board.capped.tolist() == [False, False, False, True]
    assert board.floor_w.tolist() == [0.0, 0.0, 0.0, 650.0]
    board.put_report(report({}, {}), 1)
    assert not any(array.any() for array in (board.by_clock, board.ceiling_mhz, board.capped, board.floor_w))


def test_the_highest_clock_comes_with_the_facts():
    board = levers()
    gpus = (GpuFacts(fallback_w=300.0, clock_max_mhz=1980), GpuFacts(fallback_w=300.0, clock_max_mhz=1755))
    board.put_facts(
        Facts(
            node="a", boot="x", at_s=1.0, driver="", lease_max_s=5.0, waiting_max_s=None,
            fallback_ramp_w_per_s=50.0, gpus=gpus,
        ),
        0,
    )  # fmt: skip
    assert board.clock_max_mhz.tolist() == [1980, 1755, 0, 0]


def test_a_floor_that_is_hidden_is_said_and_counts_when_it_is_seen():
    board = levers()
    assert list(board.conditions()) == []
    board.put_report(report({"floor_w": None}, {"floor_w": None}), 0)
    assert board.floor_w.tolist() == [0.0] * 4
    ((key, text),) = board.conditions()
    assert key == "floors unknown"
    assert "2 GPUs" in text
