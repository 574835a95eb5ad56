"""What was committed to the grid is held against what the block could shed, before anybody counts on it.

GPUs of 700 W beside a base load of 600 W draw 3,400 W, and 1,400 W at their minima of 200 W: 2,000 W can be shed.
"""

from dataclasses import replace

import numpy as np
import pytest

from controller.core.model import NEVER_S, Alarm
from tests.core.blocks import good, settings
from tests.core.test_law import RESPONSE, TICK_S, Block, hear

SHEDDABLE_W = 2000.0
KEY = "frequency commitment"


def committed(power_w: float) -> Block:
    """Under control at full power, and armed."""
    block = Block(settings(frequency=replace(RESPONSE, committed_w=power_w)))
    block.under_control(40.0)
    hear(block, 50.0, 8.0)
    return block


def said(block: Block, seconds_s: float = 8.0, hz: float = 50.0, **told) -> Alarm | None:
    """The alarm after so long; `told` is what agents report instead of the truth."""
    for beat in range(round(seconds_s / TICK_S)):
        live_hz = hz + 0.001 * (beat % 2)
        block.tick(site=block.site(), frequency=good(live_hz, block.now_s + TICK_S), **told)
    return next((alarm for alarm in block.decision.alarms if alarm.key == KEY), None)


def test_what_gpus_can_shed_may_be_committed():
    assert said(committed(0.95 * SHEDDABLE_W)) is None


def test_a_commitment_below_the_draw_and_above_what_minima_leave_is_said_before_it_is_called():
    """The block draws 3.4 kW, and 3 kW were committed: that looks enough, and is not."""
    assert "3.00 kW are committed and 2.00 kW of the 3.40 kW that the block draws could be shed" in (
        said(committed(3000.0)).text
    )


def test_a_commitment_above_the_draw_is_said():
    assert said(committed(5000.0)) is not None


def test_a_floor_of_power_smoothing_forbids_a_shed_and_is_said():
    """Two GPUs are kept up at 650 W, whatever their limit: 0.9 kW less to give."""
    block, floors_w = committed(1500.0), np.array([650.0, 650.0, 0.0, 0.0])
    assert said(block) is None
    assert "1.10 kW of the 3.40 kW" in said(block, floor_w=floors_w).text
    assert said(block) is None


@pytest.mark.parametrize("told", [{"at_s": NEVER_S}, {"limit_w": np.array([np.nan, np.nan, 700.0, 700.0])}])
def test_gpus_out_of_reach_shed_nothing(told):
    """Those that are silent, or cannot be read, count at what they may hold."""
    block = committed(1500.0)
    assert said(block, **told) is not None


def test_one_bad_second_is_not_said():
    block = committed(1500.0)
    assert said(block, 1.0, at_s=NEVER_S) is None


def test_while_it_responds_it_is_said_of_the_baseline():
    """What has been shed already is not wanted a second time."""
    block = committed(0.95 * SHEDDABLE_W)
    assert said(block, 1.5, hz=49.5) is None
    assert block.decision.state.frequency.share == 1.0
    block = committed(3000.0)
    assert said(block, 1.5, hz=49.5) is not None
