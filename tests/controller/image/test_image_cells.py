"""The image: newest wins, age is judged by whoever looks, and nothing bad looks good."""

import pytest

from controller.image.image import ALL, Image, MisfitError
from controller.image.model import Group, Point, Quality
from controller.image.wire import Update

PDU = Group(
    path="devices/pdu",
    kind="device",
    points=(
        Point(name="power_w", unit="W"),
        Point(name="state", stale_after_s=1e9),
        Point(name="serial", text=True),
    ),
)


def image() -> Image:
    return Image([PDU])


def test_a_point_that_was_never_heard_is_bad_and_says_so():
    cell = image().cell("devices/pdu", "power_w", now_s=5.0)
    assert (cell.value, cell.quality, cell.why) == (None, Quality.BAD, "not heard yet")


def test_the_newest_update_wins_and_leaves_the_other_points_alone():
    known = image()
    known.take(Update(0, [5000.0, 1.0, "A1"], 10.0, 1000.0))
    known.take(Update(0, [4000.0], 11.0, 1001.0, points=[0]))
    assert [cell.value for _, cell in known.groups[0].cells(11.5)] == [4000.0, 1.0, "A1"]
    assert known.cell("devices/pdu", "power_w", 11.5).received_at_utc_s == 1001.0
    assert known.cell("devices/pdu", "state", 11.5).age_s == 1.5


def test_a_value_grows_stale_although_nobody_says_so():
    known = image()
    known.take(Update(0, [5000.0, 1.0, "A1"], 10.0, 1000.0))
    assert known.cell("devices/pdu", "power_w", 20.0).quality is Quality.GOOD
    late = known.cell("devices/pdu", "power_w", 20.1)
    assert (late.value, late.quality) == (None, Quality.BAD)
    assert "stale" in late.why
    assert known.cell("devices/pdu", "state", 20.1).quality is Quality.GOOD


def test_a_doubted_value_is_uncertain_and_a_missing_one_bad_each_with_its_reason():
    known = image()
    known.take(Update(0, [5000.0, None, "A1"], 10.0, 1000.0, faults={1: "NaN", ALL: "down"}, doubt="frozen?"))
    cells = [cell for _, cell in known.groups[0].cells(10.0)]
    assert [cell.quality for cell in cells] == [Quality.UNCERTAIN, Quality.BAD, Quality.UNCERTAIN]
    assert [cell.why for cell in cells] == ["frozen?", "NaN", "frozen?"]


def test_times_of_the_source_are_kept_where_it_has_a_clock():
    known = image()
    known.take(Update(0, [1.0, 2.0, ""], 10.0, 1000.0, sources_utc_s={1: 990.0}))
    assert [cell.source_at_utc_s for _, cell in known.groups[0].cells(10.0)] == [1000.0, 990.0, 1000.0]


@pytest.mark.parametrize(
    "update",
    [
        Update(1, [1.0], 0.0, 0.0),
        Update(-1, [1.0], 0.0, 0.0),
        Update(0, [1.0], 0.0, 0.0),
        Update(0, [1.0], 0.0, 0.0, points=[3]),
        Update(0, [1.0], 0.0, 0.0, points=[0, 1]),
    ],
)
def test_an_update_that_does_not_fit_the_catalogue_is_refused(update: Update):
    with pytest.raises(MisfitError):
        image().take(update)


def test_whoever_knows_nothing_is_brought_up_to_date_with_the_right_times():
    known, other = image(), image()
    known.take(Update(0, [5000.0, None, "A1"], 10.0, 1000.0, faults={1: "NaN"}))
    known.take(Update(0, [4000.0], 11.0, 1001.0, points=[0], doubt="late"))
    for update in known.groups[0].all_updates():
        other.take(update)
    assert list(other.groups[0].cells(12.0)) == list(known.groups[0].cells(12.0))


def test_changes_since_a_revision_are_found_and_a_new_group_counts_as_one():
    other = Group(path="devices/cdu", kind="device")
    known = Image([PDU, other])
    seen = known.revision
    known.take(Update(0, [1.0, 1.0, ""], 1.0, 1.0))
    assert [cells.group.path for cells in known.changed_since(seen)] == ["devices/pdu"]
    seen = known.revision
    known.regroup(1, Group(path="devices/cdu", kind="device", points=(Point(name="flow"),)))
    assert [cells.group.path for cells in known.changed_since(seen)] == ["devices/cdu"]
    assert known.shaped_at == known.revision
    with pytest.raises(MisfitError):
        known.regroup(0, other)


def test_forgetting_empties_the_cells_that_others_hold_and_leaves_the_catalogue():
    known = image()
    known.take(Update(0, [5000.0, 1.0, "A1"], 10.0, 1000.0))
    held, shaped_at = known.groups[0], known.shaped_at
    known.forget()
    assert known.groups[0] is held
    assert held.cell(0, 10.0).why == "not heard yet"
    assert (known.shaped_at, held.revision) == (shaped_at, known.revision)
    known.take(Update(0, [6000.0, 1.0, "A1"], 11.0, 1001.0))
    assert held.cell(0, 11.0).value == 6000.0
