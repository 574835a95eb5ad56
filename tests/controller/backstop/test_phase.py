"""When the backstop acts: three phases, as a table."""

import numpy as np
import pytest

from controller.backstop.phase import TRANSITIONS, Guard, Heard, Phase, obeys, step
from controller.core.model import FOREVER_S, Ledger

SILENT, DISOBEYS, OBEYS = Heard(99, False), Heard(0.1, False), Heard(0.1, True)
WATCHING, HOLDING, RELEASING = Phase.WATCHING, Phase.HOLDING, Phase.RELEASING


def after(guard: Guard, *looks: tuple[float, Heard], restored: bool = False) -> Guard:
    for now_s, heard in looks:
        guard = step(guard, heard, now_s, after_s=10, release_after_s=30, restored=restored)
    return guard


@pytest.mark.parametrize(
    ("phase", "heard", "then"),
    [
        (WATCHING, SILENT, HOLDING),
        (WATCHING, Heard(9.9, False), WATCHING),
        (WATCHING, DISOBEYS, WATCHING),
        (HOLDING, SILENT, HOLDING),
        (HOLDING, DISOBEYS, HOLDING),
        (HOLDING, OBEYS, HOLDING),
        (RELEASING, SILENT, HOLDING),
        (RELEASING, DISOBEYS, RELEASING),
    ],
)
def test_one_look_moves_it_so(phase, heard, then):
    assert after(Guard(phase, obeyed_at_s=-9.9), (0, heard)).phase is then


def test_a_host_is_released_only_when_its_agent_has_obeyed_without_a_break():
    held = Guard(HOLDING)
    assert after(held, (0, OBEYS), (29, OBEYS)).phase is HOLDING
    assert after(held, (0, OBEYS), (30, OBEYS)).phase is RELEASING
    assert after(held, (0, OBEYS), (20, DISOBEYS), (31, OBEYS), (60, OBEYS)).phase is HOLDING
    assert after(held, (0, OBEYS), (20, SILENT), (31, OBEYS), (61, OBEYS)).phase is RELEASING


def test_an_order_that_is_not_confirmed_yet_is_no_disobedience():
    """On a ramp there is one with every beat, and a look now and then falls into those milliseconds."""
    looks = [(n / 2, DISOBEYS if n % 3 == 2 else OBEYS) for n in range(61)]
    assert after(Guard(HOLDING), *looks).phase is RELEASING
    looks = [(n / 2, DISOBEYS if 20 <= n <= 25 else OBEYS) for n in range(61)]
    assert after(Guard(HOLDING), *looks).phase is HOLDING


def test_a_host_that_is_two_orders_behind_on_a_ramp_obeys():
    """An order with every beat, 50 ms apart, each confirmed within 120 ms: the newest never is."""
    at_s = np.arange(10) * 0.05
    seq = np.arange(1, 11).reshape(10, 1)
    ramp = Ledger(10, np.zeros((10, 1)), np.full((10, 1), FOREVER_S), seq, at_s)
    assert obeys(ramp, 0, 8, 0.46, leased=True, wait_s=0.4)
    assert not obeys(ramp, 0, 8, 0.46, leased=False, wait_s=0.4)
    assert not obeys(ramp, 0, 8, 0.81, leased=True, wait_s=0.4), "the ninth is 0.41 s old"
    assert obeys(ramp, 0, 10, 99.0, leased=True, wait_s=0.4)


def test_it_is_released_until_everything_is_restored():
    rising = Guard(RELEASING, 0.0)
    assert after(rising, (40, OBEYS)).phase is RELEASING
    assert after(rising, (40, OBEYS), restored=True).phase is WATCHING


def test_a_release_ends_in_a_hold_when_the_agent_obeys_no_more():
    rising = Guard(RELEASING, 0.0, 40.0)
    assert after(rising, (49.9, DISOBEYS)).phase is RELEASING
    assert after(rising, (49.9, DISOBEYS), (50, DISOBEYS)).phase is HOLDING
    assert after(rising, (50, DISOBEYS), (51, OBEYS), (80, OBEYS)).phase is HOLDING
    assert after(rising, (50, DISOBEYS), (51, OBEYS), (81, OBEYS)).phase is RELEASING


def test_no_phase_is_a_dead_end():
    for phase in Phase:
        assert phase in {then for (before, _), then in TRANSITIONS.items() if before is not phase}
        assert phase in {before for before, _ in TRANSITIONS}
