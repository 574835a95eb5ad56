"""When the backstop acts: three phases, as a table."""

import pytest

from controller.backstop.phase import TRANSITIONS, Guard, Heard, Phase, step

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
    assert after(Guard(phase), (0, heard)).phase is then


def test_a_host_is_released_only_when_its_agent_has_obeyed_without_a_break():
    held = Guard(HOLDING)
    assert after(held, (0, OBEYS), (29, OBEYS)).phase is HOLDING
    assert after(held, (0, OBEYS), (30, OBEYS)).phase is RELEASING
    assert after(held, (0, OBEYS), (20, DISOBEYS), (31, OBEYS), (60, OBEYS)).phase is HOLDING
    assert after(held, (0, OBEYS), (20, SILENT), (31, OBEYS), (61, OBEYS)).phase is RELEASING


def test_it_is_released_until_everything_is_restored():
    rising = Guard(RELEASING, 0.0)
    assert after(rising, (40, OBEYS)).phase is RELEASING
    assert after(rising, (40, OBEYS), restored=True).phase is WATCHING


def test_no_phase_is_a_dead_end():
    for phase in Phase:
        assert phase in {then for (before, _), then in TRANSITIONS.items() if before is not phase}
        assert phase in {before for before, _ in TRANSITIONS}
