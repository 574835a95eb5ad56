"""From readings to cells and measurements: what is doubted, missing, partial or frozen stays what it is."""

import msgspec
import pytest
from structlog.testing import capture_logs

from controller.clock import now_s
from controller.core.model import Measurement
from controller.field import Field, group_of
from controller.gateway_config import Device, NamedDeviceConfig
from controller.image.image import Image
from controller.image.model import Quality
from controller.yaml_config import FileName
from protocols.profile import load_profile
from protocols.reading import DeviceError, Reading


class Plant:
    """One PDU and a CDU without sockets: readings are handed in as the adapters would."""

    def __init__(self) -> None:
        self.taken: list[Measurement] = []
        pdu = NamedDeviceConfig(
            name="pdu",
            profile="xerus_pdu",
            url="modbus+tcp://10.0.0.7",
            points=("power_w", "current_a"),
            frozen_after_s=30.0,
        )
        rpu = NamedDeviceConfig(
            name="rpu",
            profile="orv3_rpu",
            url="modbus+tcp://10.0.0.8",
            writes={"flow_target_l_per_min": {"lowest": 100.0, "highest": 180.0}},
        )
        devices = [Device("a", "pdu", pdu, "pdu", needs="power_w"), Device("b", "rpu", rpu, "cdu")]
        self.image = Image([group_of(device, load_profile(device.config.profile)) for device in devices])
        self.field = Field(
            devices,
            first=0,
            takers={"pdu": self.taken.append},
            on_update=self.image.take,
            on_group=self.image.regroup,
        )

    def read(self, link="up", still_s=0.0, device="pdu", fault="", doubt="", absent=(), **values) -> None:
        at_s = now_s()
        reading = Reading(
            device=device,
            values=values,
            taken_at_s=at_s,
            unchanged_since_s=at_s - still_s,
            link=link,
            fault=fault,
            doubt=doubt,
            absent=frozenset(absent),
        )
        self.field._take(self.field._live[device], reading)

    def cell(self, name: str):
        return self.image.cell("devices/pdu", name, now_s())

    @property
    def link(self):
        return self.field.links[0]


@pytest.fixture
def plant() -> Plant:
    return Plant()


def test_a_good_reading_is_a_good_cell_and_a_measurement(plant: Plant):
    plant.read(power_w=5000.0, current_a=8.0)
    assert (plant.cell("power_w").value, plant.cell("power_w").quality) == (5000.0, Quality.GOOD)
    assert (plant.taken[-1].value, plant.taken[-1].good) == (5000.0, True)
    assert (plant.link.up, plant.link.fault) == (True, "")


def test_what_a_device_does_not_have_is_no_fault_of_it(plant: Plant):
    plant.read(power_w=5000.0, current_a=None, absent=["current_a"])
    assert (plant.cell("current_a").quality, plant.cell("current_a").why) == (
        Quality.BAD,
        "the device does not have it",
    )
    assert plant.cell("power_w").quality is Quality.GOOD
    assert (plant.link.up, plant.link.fault) == (True, "")


def test_what_a_device_does_not_have_keeps_its_reason_beside_a_fault(plant: Plant):
    plant.read(power_w=None, current_a=None, absent=["current_a"], fault="power_w: NaN")
    assert plant.cell("current_a").why == "the device does not have it"
    assert plant.cell("power_w").why == "power_w: NaN"


def test_a_device_without_what_the_law_needs_says_so(plant: Plant):
    plant.read(power_w=None, current_a=8.0, absent=["power_w"])
    assert not plant.taken[-1].good
    assert (plant.link.up, plant.link.fault) == (False, "power_w: the device does not have it")


def test_a_missing_value_is_bad_for_everybody_with_its_reason(plant: Plant):
    plant.read(power_w=None, current_a=8.0, fault="power_w: NaN")
    assert (plant.cell("power_w").quality, plant.cell("power_w").why) == (Quality.BAD, "power_w: NaN")
    assert plant.cell("current_a").quality is Quality.GOOD
    assert not plant.taken[-1].good


def test_a_frozen_device_is_in_doubt_and_nothing_for_the_law(plant: Plant):
    plant.read(power_w=5000.0, current_a=8.0, still_s=31.0)
    assert plant.cell("power_w").quality is Quality.UNCERTAIN
    assert "frozen?" in plant.cell("power_w").why
    assert not plant.taken[-1].good
    assert not plant.link.up


def test_a_reading_in_doubt_is_shown_and_nothing_for_the_law(plant: Plant):
    plant.read(power_w=5000.0, current_a=8.0, doubt="framing lost")
    assert plant.cell("power_w").quality is Quality.UNCERTAIN
    assert not plant.taken[-1].good


def test_a_lost_link_is_bad_at_once(plant: Plant):
    plant.read(power_w=5000.0, current_a=8.0)
    plant.read("down", power_w=None, current_a=None, fault="connection refused")
    assert plant.cell("current_a").why == "connection refused"
    assert not plant.taken[-1].good
    assert (plant.link.up, plant.link.fault) == (False, "connection refused")


def test_news_of_another_point_says_nothing_about_the_one_the_law_needs(plant: Plant):
    plant.read(power_w=5000.0, current_a=8.0)
    plant.read(current_a=9.0)
    assert len(plant.taken) == 1
    assert plant.cell("current_a").value == 9.0
    assert plant.cell("power_w").value == 5000.0
    assert plant.link.up


def test_what_may_be_written_shows_in_the_catalogue_with_the_range_of_its_rule(plant: Plant):
    points = {point.name: point for point in plant.image.groups[1].group.points}
    flow = points["flow_target_l_per_min"]
    assert (flow.writable, flow.lowest, flow.highest) == (True, 100.0, 180.0)
    assert not points["coolant_supply_target_c"].writable
    assert points["leak_alarms"].bits


async def test_a_write_to_a_device_that_is_not_there_names_those_that_are(plant: Plant):
    with pytest.raises(DeviceError, match="configured are pdu, rpu"):
        await plant.field.write("pump", "p", 1.0, 1.0)
    with pytest.raises(DeviceError):
        await plant.field.write("pdu", "power_w", 1.0, 0.2)


def test_who_answers_and_is_not_believed_is_in_doubt_and_not_down(plant: Plant):
    plant.read(power_w=5000.0, current_a=8.0, still_s=31.0)
    assert (plant.link.up, plant.link.in_doubt) == (False, True)
    plant.read("down", power_w=None, current_a=None, still_s=31.0, fault="connection refused")
    assert (plant.link.up, plant.link.in_doubt) == (False, False)


def test_a_device_that_does_not_answer_is_not_called_frozen(plant: Plant):
    plant.read("down", still_s=60.0, power_w=None, current_a=None, fault="connection refused")
    assert plant.link.fault == "connection refused"
    assert plant.cell("power_w").why == "connection refused"


def test_faults_that_come_and_go_with_every_poll_do_not_fill_the_log(plant: Plant):
    with capture_logs() as lines:
        for number in range(100):
            plant.read(power_w=5000.0, current_a=None, fault=f"current_a: NaN {number % 2}")
    assert len(lines) == 1
    assert plant.link.fault == "current_a: NaN 1"


def test_a_profile_of_a_file_of_ones_own_is_plain_text_in_the_catalogue():
    """A frame takes texts alone: one device of a kind of its own would cost every client the whole image."""
    config = NamedDeviceConfig(name="pdu", profile="mine.yaml", url="modbus+tcp://10.0.0.7")
    config = config.model_copy(update={"profile": FileName("/etc/powerblock/mine.yaml")})
    group = group_of(Device("a", "pdu", config, "pdu"), load_profile("xerus_pdu"))
    assert b"/etc/powerblock/mine.yaml" in msgspec.msgpack.encode(group)
