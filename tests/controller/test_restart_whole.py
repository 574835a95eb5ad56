"""The controller as a whole, killed and started again on the same disk: what it goes on with from its first beat."""

import contextlib

import pytest

from controller.clock import now_s, now_utc_s
from controller.config import load_block
from controller.core import frequency, law
from controller.core.frequency_model import Phase, Underway
from controller.core.model import Measurement
from controller.service import Controller
from tests.controller.test_shedding_whole import SHED, close_contact

RESPONDS = {
    "preset": "nordic_ffr_c_long",
    "committed_kw": 3.0,
    "input": {"way": "mqtt", "topic": "grid/hz"},
}


@pytest.fixture
def killed(block_with):
    """Beats once as `first` has left it, then dies; what comes next has beaten once as well."""
    with contextlib.ExitStack() as living:

        def controller(path) -> Controller:
            made = Controller(load_block(path))
            living.callback(made.close)
            return made

        def lives(changes, first) -> Controller:
            path = block_with({"mqtt.url": "mqtt://127.0.0.1:9", **changes})
            one = controller(path)
            first(one)
            one._beat()
            one._store.close()  # the kernel opens the lock of a process that is gone
            other = controller(path)
            other._beat()
            return other

        yield lives


async def test_a_contact_that_called_is_called_for_before_its_plc_is_found(killed):
    again = killed({"shed": SHED}, close_contact)
    assert [one.source for one in again._board.sheds] == ["stop"]
    assert "shed deep (stop)" in {one.source for one in limits(again)}


async def test_a_response_to_the_grid_goes_on(killed):
    raised_at_s = now_s() - 5.0
    held = Underway(Phase.ACTIVE, 12_000.0, 3_000.0, raised_at_s, ready_from_s=now_s() + 900.0)

    def responds(controller):
        settings = controller._settings.frequency
        response = frequency.start(settings, now_s(), held)
        controller._state = controller._state._replace(frequency=response)

    again = killed({"frequency": RESPONDS, "site.failsafe_kw": 13}, responds)
    goes_on = again._state.frequency
    assert (goes_on.phase, goes_on.raised_at_s) == (Phase.ACTIVE, raised_at_s)
    assert goes_on.ready_from_s == held.ready_from_s
    (limit,) = [one for one in limits(again) if one.source.startswith(frequency.SOURCE)]
    assert limit.power_w == pytest.approx(9_000.0)


async def test_a_cooling_capacity_that_was_low_is_held_until_the_plant_is_heard(killed):
    def derated(controller):
        controller._board.cooling = Measurement(7_000.0, good=True, taken_at_s=now_s())

    assert killed({}, derated)._state.cooling_w == 7_000.0


def limits(controller):
    """Of a beat as it would be now."""
    snapshot = controller._board.snapshot(now_s(), now_utc_s())
    return law.tick(controller._settings, controller._state, snapshot).limits
