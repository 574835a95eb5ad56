"""The promises hold in random histories; the soak runs thousands more (`make soak`)."""

import pytest

from tests.world.kept_seeds import KEPT
from tests.world.world import run


@pytest.mark.parametrize("block", range(8))
def test_no_promise_is_broken_in_random_histories(block):
    for seed in range(10_000 + block * 12, 10_000 + (block + 1) * 12):
        run(seed)


@pytest.mark.parametrize("seed", KEPT, ids=[f"{seed}: {reason}" for seed, reason in KEPT.items()])
def test_a_mended_seed_stays_mended(seed):
    run(seed, later=False)


def test_a_seed_gives_the_same_history_twice():
    first, second = run(4711), run(4711)
    assert first.log == second.log
    assert first.truth.limit_w.tolist() == second.truth.limit_w.tolist()
    assert first.controller.decision.budget_w == second.controller.decision.budget_w


def test_a_world_without_faults_keeps_every_promise():
    for seed in range(5):
        run(seed, faults=False)
