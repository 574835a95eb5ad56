"""Readings and writes of one GPU that come from two threads in any order."""

import pytest

from controller.agent.gpu_view import GpuView
from controller.agent.lease import Found
from controller.agent.telling import described
from protocols.nvml import Device, NvmlFault, Reading

DEVICE = Device(index=0, uuid="GPU-1", name="g", min_w=200.0, max_w=700.0, default_w=700.0)
LATE = NvmlFault(999, "late")


def reading(limit_w: float) -> Reading:
    return Reading(device=DEVICE, power_w=400.0, averaged=False, limit_w=limit_w, enforced_w=limit_w)


def test_a_reading_that_began_before_a_write_ended_does_not_undo_it():
    view = GpuView()
    view.wrote(300.0, (300.0, 300.0), now_s=10.0)
    view.swept(reading(700.0), began_at_s=9.99)
    assert view.found() == Found(300.0, 200.0, 700.0)
    view.swept(reading(700.0), began_at_s=10.01)
    assert view.found() == Found(700.0, 200.0, 700.0)


def test_of_a_gpu_that_cannot_be_read_nothing_is_told_but_its_fault():
    view = GpuView()
    assert view.found() is None
    view.swept(reading(600.0), began_at_s=1.0)
    view.swept(LATE, began_at_s=2.0)
    assert view.found() is None
    (told,) = described([view], 2.0)
    assert (told.power_w, told.limit_w, told.enforced_w, told.fault) == (None, None, None, "late")


def test_a_failed_write_that_took_effect_after_all_is_no_fault_any_more():
    view = GpuView()
    view.wrote(300.0, LATE, now_s=1.0)
    assert view.fault() == "late"
    assert not view.may_write(300.0, now_s=1.5)
    assert view.may_write(290.0, now_s=1.5)  # another limit may be tried at once
    assert view.may_write(300.0, now_s=2.0)
    view.settle()
    assert view.fault() == ""
    assert view.may_write(300.0, now_s=1.5)


def test_a_call_that_hung_is_made_again_as_soon_as_it_may_be():
    view = GpuView()
    view.wrote(300.0, NvmlFault(10, "has not returned"), now_s=1.0)
    assert view.fault() == "has not returned"
    assert view.may_write(300.0, now_s=1.0)


def test_a_gpu_that_comes_back_is_written_at_once():
    view = GpuView()
    view.swept(LATE, began_at_s=1.0)
    view.wrote(300.0, LATE, now_s=1.0)
    view.swept(reading(700.0), began_at_s=1.1)
    assert view.may_write(300.0, now_s=1.1)


def test_after_a_failed_write_the_limit_is_unknown_until_it_is_read_again():
    """A raise that hangs in the driver may land at any moment: the limit before it proves nothing."""
    view = GpuView()
    view.swept(reading(300.0), began_at_s=1.0)
    view.wrote(600.0, LATE, now_s=2.0)
    assert described([view], 2.0)[0].limit_w is None
    view.swept(reading(300.0), began_at_s=1.9)  # this reading is older than the end of the write
    assert described([view], 2.0)[0].limit_w is None
    view.swept(reading(600.0), began_at_s=2.1)
    assert described([view], 2.1)[0].limit_w == 600.0


@pytest.mark.parametrize(("confirmed_w", "noticed"), [(300.0, True), (350.0, False)])
def test_only_a_limit_that_was_confirmed_before_can_have_been_changed_by_others(confirmed_w, noticed):
    view = GpuView()
    view.swept(reading(700.0), began_at_s=0.9)
    view.wrote(confirmed_w, (confirmed_w, confirmed_w), now_s=1.0)
    view.swept(reading(700.0), began_at_s=1.1)
    view.about_to_write(300.0, now_s=1.1)
    assert ("set to 700 W by someone else, 400 W above ours" in view.notice(1.1)) is noticed
    assert view.notice(3.0) == ""
    assert view.fault() == ""


def test_nothing_is_told_before_one_gpu_was_read():
    assert described([GpuView(), GpuView()], 1.0) == ()
