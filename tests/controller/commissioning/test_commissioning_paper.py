"""On paper: points, captures and their playback, and the checkout sheet."""

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from controller.commissioning import capture, files, playback, recording
from controller.commissioning.checkout import Line, Part, Sheet
from controller.commissioning.sheet import as_csv, as_html
from controller.commissioning.target import ToolError
from controller.config import load_block
from firmware_sim.modbus_device import ModbusDevice
from protocols.modbus.answer import ExceptionCode, Refusal
from protocols.profile import builtin_profiles, load_profile
from tests.brokers import free_port
from tests.controller.commissioning.devices_on_site import (
    PDU,
    PDU_VALUES,
    Meter,
    block,
    powerblock,
    process,
    served,
)
from tests.protocols.modbus.libmodbus_peer import FaultServer, needs_libmodbus

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "devices" / "simulated_pdu.yaml"
CONTACT = ROOT / "examples" / "devices" / "contact_plc.yaml"
SHEDDING = (ROOT / "docs" / "shedding.md").read_text()

# --- points --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", builtin_profiles())
def test_every_profile_is_shown_whole(name):
    found = powerblock("points", name, "--json")
    assert found.exit_code == 0
    assert all(one["address"] and one["type"] for one in json.loads(found.stdout)["points"])
    assert powerblock("points", name).exit_code == 0


def test_points_without_a_profile_lists_all_of_them():
    said = powerblock("points").stdout
    assert all(name in said for name in builtin_profiles())


def test_points_tells_address_order_and_evidence():
    said = powerblock("points", "em24_meter").stdout
    assert "input 40..41" in said
    assert "low word first" in said
    assert "evidence: document" in said


def test_an_unknown_profile_is_bad_input():
    assert powerblock("points", "nix").exit_code == 2


# --- capture and playback ------------------------------------------------------------------------------------


def values(url, *words):
    found = powerblock("read", url, "--profile", "xerus_pdu", "--json", *words)
    return {one["point"]: (one["value"], one["raw"]) for one in json.loads(found.stdout)["values"]}


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_captured_device_plays_back_the_same_values(site, tmp_path, ending):
    pdu, file = site.pdu(), tmp_path / f"pdu.{ending}"
    found = powerblock("capture", pdu.url, "--profile", "xerus_pdu", "-o", file, "--rate", "50")
    assert found.exit_code == 0, found.stderr
    taken = recording.loaded(file)
    server = playback.server_of(taken, time.monotonic)
    site.add(served(server))
    again = values(f"modbus+tcp://127.0.0.1:{server.port}")
    assert again == values(pdu.url)
    assert again["power_w"] == (2650.5, "4525 A800")


def test_a_range_is_recorded_with_its_holes(site, tmp_path):
    pdu, file = site.pdu(), tmp_path / "pdu.yaml"
    powerblock("capture", pdu.url, "--range", "holding:12294-12303", "-o", file, "--rate", "50")
    taken = recording.loaded(file)
    assert [(one.first, one.count, one.refused) for one in taken.reads if one.refused] == [
        (12294, 2, 2),
        (12302, 2, 2),
    ]
    words = {at: word for one in taken.reads for at, word in zip(one.addresses, one.words, strict=False)}
    assert words[12296], words[12297] == (0x4367, 0x4000)
    assert set(words) == set(range(12296, 12302))


@needs_libmodbus
def test_a_capture_of_libmodbus_is_what_libmodbus_has(site, tmp_path):
    """libmodbus sleeps for half a second after a function that it does not know: the name plate."""
    peer, file = site.add(FaultServer()), tmp_path / "c.yaml"
    url = f"modbus+tcp://127.0.0.1:{peer.port}"
    wanted = ("--unit", "3", "--range", "holding:0-49", "--range", "input:7", "--rate", "50")
    found = powerblock("capture", url, *wanted, "-o", file)
    assert found.exit_code == 0, found.stderr
    words = {
        (one.table, at): word
        for one in recording.loaded(file).reads
        for at, word in zip(one.addresses, one.words, strict=True)
    }
    assert words == {("holding", at): 600 + at for at in range(50)} | {("input", 7): 607}


def test_what_is_never_answered_is_said_and_noted_in_the_file(site, tmp_path):
    device, file = site.add(Meter()), tmp_path / "c.yaml"
    device.fault = lambda _tid, _unit, pdu, frame: None if pdu[2] == 8 else frame
    url = f"modbus+tcp://127.0.0.1:{device.port}"
    found = powerblock(
        "capture", url, "--range", "holding:0-3", "--range", "holding:8-9", "-o", file, "--rate", "50"
    )
    assert found.exit_code == 1
    assert "not answered: holding 8..9" in found.stderr
    taken = recording.loaded(file)
    assert taken.note == "not answered: holding 8..9"
    assert taken.reads[0].first == 0


@pytest.mark.skipif(shutil.which("mbpoll") is None, reason="mbpoll is not installed (Debian: mbpoll)")
def test_mbpoll_reads_a_recorded_device(site, tmp_path):
    taken = recording.Recording(
        url="modbus+tcp://10.0.0.7", unit=5, began_utc="2026-11-21T10:00:00+00:00",
        reads=[recording.Taken(at_s=0.0, table="holding", first=100, words=[11, 22, 33])],
    )  # fmt: skip
    server = playback.server_of(taken, time.monotonic)
    site.add(served(server))
    command = ["mbpoll", "-m", "tcp", "-p", str(server.port), "-a", "5", "-0", "-r", "100", "-c", "3", "-1"]
    found = subprocess.run([*command, "127.0.0.1"], check=False, capture_output=True, text=True, timeout=20)
    assert found.returncode == 0, found.stdout + found.stderr
    assert [line.split()[1] for line in found.stdout.splitlines() if line.startswith("[")] == [
        "11",
        "22",
        "33",
    ]
    beyond = subprocess.run(
        [*command[:-2], "4", "-1", "127.0.0.1"], check=False, capture_output=True, text=True, timeout=20
    )
    assert "Illegal data address" in beyond.stdout + beyond.stderr


def test_a_recording_says_at_each_moment_what_was_said_then():
    moments = [(0.0, 1), (10.0, 2), (20.0, 3)]
    taken = recording.Recording(
        url="u", unit=1, began_utc="x",
        reads=[recording.Taken(at_s=at_s, table="holding", first=0, words=[word]) for at_s, word in moments],
    )  # fmt: skip
    clock = [0.0]
    bank = playback.RecordedBank(taken, lambda: clock[0])
    again = playback.RecordedBank(taken, lambda: clock[0], again=True)
    said = []
    for now_s in (0.0, 9.9, 10.0, 19.0, 1e6, 25.0):
        clock[0] = now_s
        said.append((bank.read("holding", 1, 0, 1, None)[0], again.read("holding", 1, 0, 1, None)[0]))
    assert said == [(1, 1), (1, 1), (2, 2), (2, 2), (3, 1), (3, 1)]


def test_an_interrupted_capture_keeps_what_it_has(site, tmp_path):
    answered = []

    def values():
        answered.append(True)
        return PDU_VALUES

    pdu, file = site.add(ModbusDevice(PDU, values)), tmp_path / "pdu.yaml"
    capturing = process(
        "capture", pdu.url, "--profile", "xerus_pdu", "-o", file, "--rounds", "1000", "--rate", "20"
    )
    try:
        while len(answered) < 10 and capturing.poll() is None:
            time.sleep(0.05)
        capturing.send_signal(2)
        _, err = capturing.communicate(timeout=60)
    finally:
        capturing.kill()
    assert capturing.returncode == 1, err
    assert recording.loaded(file).reads


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    file = tmp_path / "there.yaml"
    file.write_text("signed")
    found = powerblock("capture", "modbus+tcp://127.0.0.1", "--profile", "xerus_pdu", "-o", file)
    assert (found.exit_code, "exists" in found.stderr) == (2, True)
    with pytest.raises(ToolError, match="exists"):  # also one that came while we were reading
        files.written(file, "mine")
    assert file.read_text() == "signed"


def test_a_recording_answers_for_its_own_unit_alone():
    bank = playback.RecordedBank(recording.Recording(url="u", unit=5, began_utc="x"), lambda: 0.0)
    with pytest.raises(Refusal) as refused:
        bank.read("holding", 6, 0, 1, None)
    assert refused.value.code == ExceptionCode.GATEWAY_TARGET_SILENT


@pytest.mark.parametrize("word", ["holding", "holding:9-3", "nix:0-3", "holding:0-70000", "holding:0-20000"])
def test_a_range_that_cannot_be_is_refused(word):
    with pytest.raises(ToolError):
        capture.ranges([word])


@pytest.mark.parametrize(
    "content", ["", "[]", "reads: 3", "powerblock_capture: 2", "powerblock_capture: 1\nurl: u\nunit: 1\nbegan_utc: x\nreads: [{at_s: 0, table: holding, first: 0, words: [70000]}]"]
)  # fmt: skip
def test_a_file_that_is_no_capture_is_bad_input(tmp_path, content):
    file = tmp_path / "x.yaml"
    file.write_text(content)
    found = powerblock("playback", file)
    assert found.exit_code == 2
    assert "x.yaml" in found.stderr


def test_the_recorded_example_is_found_to_be_what_it_is(site):
    server = playback.server_of(recording.loaded(EXAMPLE), time.monotonic, again=True)
    site.add(served(server))
    url = f"modbus+tcp://127.0.0.1:{server.port}"
    said = json.loads(powerblock("probe", url, "--json").stdout)
    assert said["chosen"] == ["xerus_pdu"]
    assert said["nameplate"] == {"vendor": "powerblock", "product": "simulated PDU"}
    assert powerblock("read", url, "--profile", "xerus_pdu").exit_code == 0


# --- the example of a contact ----------------------------------------------------------------------------------


def test_the_page_about_shedding_prints_the_example_of_a_contact_as_it_is():
    assert CONTACT.read_text() in SHEDDING


def test_the_contact_of_the_page_about_shedding_can_be_used_with_the_example(block_with):
    (written, *_) = re.findall(r"```yaml\n(shed:.*?)```", SHEDDING, re.DOTALL)
    shed = yaml.safe_load(written)["shed"]
    (contact,) = shed["contacts"]
    here = {
        "levels": [{"name": level["name"], "kw": level["kw"] / 100} for level in shed["levels"]],
        "contacts": [contact | {"profile": str(CONTACT)}],
    }
    (loaded,) = load_block(block_with({"shed": here})).shed.contacts
    assert (loaded.point, loaded.closed) == ("stop_closed", 1.0)


def test_a_relay_that_closes_is_read_as_the_page_about_shedding_says(site):
    seen = {"stop_closed": 0.0}
    plc = site.add(ModbusDevice(load_profile(CONTACT), lambda: seen))

    def read():
        found = powerblock("read", plc.url, "--profile", CONTACT, "stop_closed", "--json")
        (one,) = json.loads(found.stdout)["values"]
        return one["value"], one["quality"]

    assert read() == (0, "good")
    seen["stop_closed"] = 1.0
    assert read() == (1, "good")


# --- checkout ------------------------------------------------------------------------------------------------


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.links = [], 0, []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "col"):
            self.open.append(tag)
        self.rows += tag == "tr"
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def sheet(site, tmp_path):
    pdu = site.pdu(values=PDU_VALUES | {"voltage_v": 231.25})
    return block(
        tmp_path,
        f"{{name: pdu-a1, profile: xerus_pdu, url: '{pdu.url}', kind: pdu, title: 'Rack A1'}}",
        f"{{name: pdu-b1, profile: xerus_pdu, url: 'modbus+tcp://127.0.0.1:{free_port()}'}}",
        "{name: meter-1, profile: pm5000_meter, url: 'modbus+rtu:///dev/nowhere'}",
    )  # fmt: skip


def test_a_sheet_has_a_line_for_every_point_and_a_reason_for_every_failure(sheet, tmp_path):
    found = powerblock("checkout", sheet, "-o", tmp_path / "sheet")
    assert found.exit_code == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sheet.csv").read_text(encoding="utf-8-sig"))))
    passed = [row for row in rows if row["device"] == "pdu-a1"]
    assert len(passed) == len(PDU.points)
    assert {row["result"] for row in passed} == {"pass"}
    power = next(row for row in passed if row["point"] == "power_w")
    assert (power["read"], power["unit"], power["raw"]) == ("2650.5", "W", "4525 A800")
    assert power["address"] == "holding 12306..12307"
    assert power["expected"] == "\u2212500,000 to 500,000 W"
    lost = [row for row in rows if row["device"] == "pdu-b1"]
    assert len(lost) == len(PDU.points)
    assert {row["result"] for row in lost} == {"fail"}
    assert "connection refused" in lost[0]["reason"]
    assert "/dev/nowhere" in next(row for row in rows if row["device"] == "meter-1")["reason"]
    assert [row["no."] for row in rows] == [str(number + 1) for number in range(len(rows))]
    assert rows[0]["instrument reading"] == rows[0]["initials"] == rows[0]["date"] == ""


def test_the_printed_sheet_stands_alone_and_has_room_for_signatures(sheet, tmp_path):
    powerblock("checkout", sheet, "-o", tmp_path / "sheet.html")
    assert not (tmp_path / "sheet.csv").exists()
    text = (tmp_path / "sheet.html").read_text()
    tags = Tags(text)
    assert tags.links == []
    assert "url(" not in text
    assert "A4 landscape" in text
    assert all(
        words in text
        for words in ("Tested by", "Witnessed by", "Accepted by", "calibrated until", "initials")
    )
    assert "Rack A1" in text


def test_one_device_can_be_checked_alone(sheet):
    found = powerblock("checkout", sheet, "--device", "pdu-a1", "--json")
    assert found.exit_code == 0
    assert [part["device"] for part in json.loads(found.stdout)["devices"]] == ["pdu-a1"]
    assert powerblock("checkout", sheet, "--device", "nix").exit_code == 2


def test_a_signed_sheet_is_never_overwritten(sheet, tmp_path):
    (tmp_path / "sheet.html").write_text("signed")
    found = powerblock("checkout", sheet, "-o", tmp_path / "sheet")
    assert (found.exit_code, "never overwritten" in found.stderr) == (2, True)
    assert (tmp_path / "sheet.html").read_text() == "signed"


def hostile(text):
    line = Line(
        number=1, device="d", point="p", title=text, address="holding 0", form="u16", expected="any number",
        access="r", read=text, unit="W", raw="0000", quality="good", verdict="pass", why="",
    )  # fmt: skip
    part = Part(
        name="d", title=text, place=text, namespaces="", where=text, profile="x", evidence="document",
        fault="", lines=(line,),
    )  # fmt: skip
    return Sheet(block="b", file=text, digest="0", program="p", began_utc="now", parts=[part], complete=True)


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "</style><b>", '"};*{x:url(http://e)}', "a%sb %"]
)
def test_what_devices_and_files_say_is_never_markup(text):
    page = as_html(hostile(text))
    Tags(page)
    assert "<script" not in page
    assert page.count("</style>") == 1


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3"])
def test_what_devices_and_files_say_is_never_a_formula(text):
    _, row = list(csv.reader(io.StringIO(as_csv(hostile(text)))))
    assert f"'{text}" in row
    assert not any(cell.startswith(tuple("=@+")) for cell in row)


def test_a_negative_number_stays_a_number_in_the_list():
    _, row = list(csv.reader(io.StringIO(as_csv(hostile("-12.5")))))
    assert "-12.5" in row


def test_the_capture_format_is_what_the_documentation_shows(tmp_path):
    shown = recording.__doc__.split("\n\n")[1]
    file = tmp_path / "shown.yaml"
    file.write_text(
        yaml.safe_dump(
            yaml.safe_load(shown.replace("10:00:00+00:00", "'x'").replace("2026-11-21T'x'", "'x'"))
        )
    )
    taken = recording.loaded(file)
    assert [list(one.addresses) for one in taken.reads] == [[12296, 12297], [12302, 12303]]
