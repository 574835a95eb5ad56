"""The map as data: addresses that stay, and documents that say what runs."""

import csv
import io
import zipfile
from dataclasses import replace
from xml.etree import ElementTree as ET

import msgspec
import pytest

from controller.facility.modbus import export
from controller.facility.modbus.registers import (
    ANSWER,
    ANSWER_AT,
    HEADER,
    HEADER_WORDS,
    REGIONS,
    REQUEST,
    REQUEST_AT,
    STATUS,
    fingerprint,
    native_registers,
    pages,
    size,
)
from controller.facility.modbus.shown import register_map
from controller.image.model import KINDS, Group, Point
from tests.controller.facility.modbus_site import FACILITY, GROUPS, METER

MAP = register_map(GROUPS)
HEAD = list(export.notes(MAP, "hall-a"))


def device(name, points=3):
    return Group(
        path=f"devices/{name}",
        kind="device",
        points=tuple(Point(name=f"p{n}_w", unit="W") for n in range(points)),
    )


def places(groups):
    return {register.name: (register.unit_id, register.address) for register in native_registers(groups)}


def test_no_two_registers_share_an_address():
    taken = [
        (register.unit_id, register.address + word) for register in MAP for word in range(register.words)
    ]
    assert len(set(taken)) == len(taken)
    assert all(0 <= address < 0x10000 for _, address in taken)


def test_every_kind_of_group_has_its_region_and_no_two_regions_share_a_unit():
    assert REGIONS.keys() == KINDS.keys()
    units = [unit for region in REGIONS.values() for unit in range(region.first_unit, region.last_unit + 1)]
    assert len(set(units)) == len(units)
    assert max(units) <= 247


def test_fixed_blocks_leave_room_for_what_comes_after():
    assert size(STATUS) <= REQUEST_AT
    assert REQUEST_AT + size(REQUEST) <= ANSWER_AT
    assert ANSWER_AT + size(ANSWER) <= REGIONS["block"].base
    assert size(HEADER) == HEADER_WORDS
    assert size(REQUEST) <= 123  # one write
    assert size(ANSWER) <= 125  # one read


def test_another_device_at_the_end_moves_nobody():
    before, after = places(GROUPS), places((*GROUPS, device("new")))
    assert before.items() <= after.items()


def test_a_device_that_turns_out_to_have_other_points_moves_nobody_else():
    before = places((*GROUPS, device("found", 0), device("last")))
    after = places((*GROUPS, device("found", 400), device("last")))
    assert before.items() <= after.items()


def test_another_point_at_the_end_of_a_group_moves_nothing_in_it():
    longer = msgspec.structs.replace(METER, points=(*METER.points, Point(name="new_w", unit="W")))
    assert places(GROUPS).items() <= places((*GROUPS[:-1], longer)).items()


def test_another_rack_does_not_move_devices():
    rack = Group(path="racks/r2", kind="rack", points=(Point(name="power_w", unit="W"),))
    assert places(GROUPS).items() <= places((*GROUPS[:-1], rack, METER)).items()


def test_a_block_of_four_hundred_devices_and_a_hundred_and_forty_four_nodes_has_room():
    nodes = [Group(path=f"nodes/n{n}", kind="node", points=tuple(Point(name=f"gpus/{g}/power_w") for g in range(72)))
             for n in range(144)]  # fmt: skip
    devices = [device(f"d{n}", 60) for n in range(400)]
    placed = list(pages([*nodes, *devices]))
    assert len(placed) == 544
    assert not any(page.left_out for page in placed)


def test_what_has_no_room_is_left_out_and_known():
    (page,) = pages([device("huge", 600)])
    assert len(page.records) + page.left_out == 600
    assert page.left_out > 0
    assert max(record.at + record.words for record in page.records) <= page.length
    many = [device(f"d{n}", 1) for n in range(5000)]
    assert len(list(pages(many))) < 5000


def test_the_fingerprint_changes_with_an_address_or_a_meaning_and_with_nothing_else():
    assert fingerprint(MAP) == fingerprint(register_map(GROUPS))
    for change in ({"address": 9}, {"unit": "kW"}, {"description": "else"}):
        assert fingerprint([replace(MAP[0], **change), *MAP[1:]]) != fingerprint(MAP)


def test_csv_has_a_row_for_every_register_and_says_how_to_read_them():
    text = export.as_csv(MAP, HEAD).decode()
    assert f"{fingerprint(MAP):08x}" in text
    assert "addresses count from 0" in text
    rows = list(csv.DictReader(line for line in io.StringIO(text) if not line.startswith("#")))
    assert len(rows) == len(MAP)
    assert {row["function codes"] for row in rows} == {
        "3",
        "3, 16, 23",
        "3, 6, 16, 22, 23",
        "3, 4",
        "3, 4, 16, 23",
        "3, 4, 6, 16, 22, 23",
    }
    writable = [row["name"] for row in rows if row["access"] == "rw"]
    assert {"704.WMaxLimPct", "SP_Seq", "devices/meter/setpoint_c"} <= set(writable)
    assert "devices/meter/power_w" not in writable


def test_markdown_is_one_table_whose_cells_hold_no_bar():
    bar = Group(path="devices/a", kind="device", points=(Point(name="x", title="a | b"),))
    text = export.as_markdown(register_map((*GROUPS, bar)), HEAD).decode()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "a \\| b" in text


def test_the_spreadsheet_holds_the_same_rows_and_no_formula():
    evil = Group(path="devices/=cmd()", kind="device", points=(Point(name="x_w", title="=1+1"),))
    registers = register_map((*GROUPS, evil))
    with zipfile.ZipFile(io.BytesIO(export.as_spreadsheet(registers, HEAD))) as book:
        sheet = ET.fromstring(book.read("xl/worksheets/sheet2.xml"))
        texts = book.read("xl/sharedStrings.xml").decode()
    space = {"x": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    assert len(sheet.findall(".//x:row", space)) == len(registers) + 1
    assert sheet.findall(".//x:f", space) == []
    assert "addresses count from 0" in texts


def test_a_form_that_is_not_known_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"\*\.csv, \*\.md, \*\.xlsx"):
        export.write(tmp_path / "map.pdf", MAP, HEAD)
    for form in export.FORMS:
        export.write(tmp_path / f"map{form}", MAP, HEAD)
        assert (tmp_path / f"map{form}").stat().st_size > 1000


def test_the_facility_group_has_the_points_that_are_served():
    names = {point.name for point in FACILITY.points}
    assert {"mode", "limit_w", "remaining_s", "by", "alarms_active", "alarms_unacknowledged"} <= names
