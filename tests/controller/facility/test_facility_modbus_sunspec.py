"""The block as a SunSpec device, read and commanded by pysunspec2's own client."""

import asyncio
import contextlib
import math
import time

import pytest
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP
from sunspec2.modbus.modbus import ModbusClientException

from controller.facility.modbus import sunspec
from controller.facility.modbus.server import ModbusFacility
from controller.image.model import Outcome, Result
from protocols.modbus.answer import ExceptionCode, Peer, Refusal
from tests.controller.facility.modbus_site import RATING_W, Site, config, serving


class Client:
    """The blocking client in a thread, so that the server can live in this one."""

    def __init__(self, port, **more):
        self.device = SunSpecModbusClientDeviceTCP(
            slave_id=1, ipaddr="127.0.0.1", ipport=port, timeout=5, **more
        )

    async def __aenter__(self):
        await asyncio.to_thread(self.device.scan, connect=True, full_model_read=True)
        return self

    async def __aexit__(self, *_):
        await asyncio.to_thread(self.device.close)

    def model(self, number):
        return self.device.models[number][0]

    async def read(self, number):
        model = self.model(number)
        await asyncio.to_thread(model.read)
        return model

    async def write(self, number, **points):
        model = self.model(number)
        for name, value in points.items():
            model.points[name].cvalue = value
        await asyncio.to_thread(model.write)


@contextlib.asynccontextmanager
async def connected(site, now_s=time.monotonic, **changes):
    async with serving(site, now_s, **changes) as facility, Client(facility.servers[0].port) as client:
        yield client


async def test_a_sunspec_client_finds_the_models_and_their_lengths_agree():
    async with connected(Site()) as client:
        found = [number for number in client.device.models if isinstance(number, int)]
        assert found == [1, 213, 702, 704, 715]
        assert all(not client.model(number).error_info for number in found)
        common = client.model(1)
        assert common.Mn.value == "powerblock"
        assert common.SN.value == "hall-a"
        assert common.Vr.value == "1.2.3"


async def test_a_sunspec_client_reads_the_meter_and_what_is_100_percent():
    async with connected(Site()) as client:
        meter = client.model(213)
        assert meter.W.cvalue == pytest.approx(9001.5)
        assert meter.Hz.cvalue == pytest.approx(50.02, rel=1e-6)
        assert meter.PhVphA.cvalue == pytest.approx(230.5)
        assert meter.A.value is None  # this meter has none: not implemented
        assert meter.Evt.value == 0
        assert client.model(702).WMax.cvalue == RATING_W
        assert client.model(715).LocRemCtl.value == 0


@pytest.mark.parametrize("doubt", ["framing lost lately", ""])
async def test_a_doubted_or_missing_measurement_is_none_for_a_client_that_cannot_see_quality(doubt):
    site = Site()
    site.tell("devices/meter", [8000.0 if doubt else None, *[None] * 6], doubt=doubt)
    site.tell("block", [None] * 6)
    async with connected(site) as client:
        assert client.model(213).W.value is None
        assert client.model(213).Evt.value == sunspec.MISSING_SENSOR


@pytest.mark.parametrize(
    ("key", "name"),
    [("W", "power_w"), ("PPVphAB", "voltage_l1_l2_v"), ("WphC", "power_l3_w"), ("TotWhImp", "energy_imported_wh"),
     ("PF", "power_factor_ratio"), ("VA", "apparent_power_va"), ("W", "m203_power_w")],
)  # fmt: skip
def test_the_meter_is_found_by_the_names_that_profiles_use(key, name):
    assert name in sunspec.meter_names()[key]


async def test_a_stale_measurement_is_none():
    site = Site()
    for path, count in (("devices/meter", 7), ("block", 6)):
        site.tell(path, [9000.0] * count, taken_at_s=time.monotonic() - 60)
    async with connected(site) as client:
        assert client.model(213).W.value is None


async def test_a_sunspec_client_limits_the_block_and_lets_go_again():
    site = Site()
    async with connected(site) as client:
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        assert site.asked == [("set_power_limit", {"limit_w": 7000.0})]
        assert (site.commands[0].via, site.commands[0].by) == ("sunspec", "registers")
        read = await client.read(704)
        assert (read.WMaxLimPctEna.value, read.WMaxLimPct.cvalue) == (1, 50)
        await client.write(704, WMaxLimPctEna=0)
        assert site.asked[1:] == [("release", {})]
        assert (await client.read(704)).WMaxLimPctEna.value == 0


async def test_reversion_timer_value_and_ramp_go_with_the_command_so_the_controller_can_keep_them():
    site = Site()
    async with connected(site) as client:
        await client.write(704, WMaxLimPctRvrt=80, WMaxLimPctEnaRvrt=1, WMaxLimPctRvrtTms=60, WRmp=2)
        assert site.asked == []
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        assert site.asked == [
            (
                "set_power_limit",
                {"limit_w": 7000.0, "ramp_w_per_s": 280.0, "valid_for_s": 60.0, "then_w": 11_200.0},
            )
        ]
        assert 55 <= (await client.read(704)).WMaxLimPctRvrtRem.value <= 60


async def test_registers_show_the_reversion_when_its_time_has_come():
    site, skipped_s = Site(), [0.0]
    async with connected(site, lambda: time.monotonic() + skipped_s[0]) as client:
        await client.write(704, WMaxLimPctRvrt=80, WMaxLimPctEnaRvrt=1, WMaxLimPctRvrtTms=8)
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        skipped_s[0] = 9.0
        read = await client.read(704)
        assert (read.WMaxLimPctEna.value, read.WMaxLimPct.cvalue, read.WMaxLimPctRvrtRem.value) == (1, 80, 0)
        await client.write(704, WMaxLimPctEnaRvrt=0, WMaxLimPct=40)
        skipped_s[0] = 18.0
        assert (await client.read(704)).WMaxLimPctEna.value == 0


async def test_what_the_block_clamps_is_what_the_registers_say():
    site = Site()
    site.outcomes["set_power_limit"] = Outcome(result=Result.CLAMPED, reason="least", value=4200.0)
    async with connected(site) as client:
        await client.write(704, WMaxLimPct=1, WMaxLimPctEna=1)
        assert (await client.read(704)).WMaxLimPct.cvalue == 30


async def test_in_local_a_write_is_refused_and_changes_no_register():
    site = Site()
    site.put("facility", mode=1.0)
    site.outcomes["set_power_limit"] = Outcome(
        result=Result.REJECTED, reason="the block is switched to LOCAL"
    )
    async with connected(site) as client:
        assert (await client.read(715)).LocRemCtl.value == 1
        with pytest.raises(ModbusClientException, match="4"):
            await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        read = await client.read(704)
        assert (read.WMaxLimPctEna.value, read.WMaxLimPct.cvalue) == (0, 100)


async def test_a_limit_that_has_ended_already_can_still_be_switched_off():
    """The controller has let go a moment earlier and knows nothing to release."""
    site = Site()
    async with connected(site) as client:
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        site.outcomes["release"] = Outcome(result=Result.REJECTED, reason="holds no such limit")
        await client.write(704, WMaxLimPctEna=0)
        assert (await client.read(704)).WMaxLimPctEna.value == 0


async def test_a_release_refused_in_local_leaves_the_register_as_it_is():
    site = Site()
    async with connected(site) as client:
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        site.put("facility", mode=1.0)
        site.outcomes["release"] = Outcome(result=Result.REJECTED, reason="LOCAL")
        with pytest.raises(ModbusClientException):
            await client.write(704, WMaxLimPctEna=0)
        assert (await client.read(704)).WMaxLimPctEna.value == 1


async def test_alarms_are_reset_and_the_register_falls_back():
    site = Site()
    async with connected(site) as client:
        await client.write(715, AlarmReset=1)
        assert site.asked == [("reset", {})]
        assert (await client.read(715)).AlarmReset.value == 0


async def test_a_limit_without_a_timer_lives_on_the_clients_heartbeat_once_it_has_one():
    site, skipped_s = Site(), [0.0]
    async with connected(site, lambda: time.monotonic() + skipped_s[0], heartbeat_timeout_s=30) as client:
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        await client.write(715, ControllerHb=1)
        await client.write(715, ControllerHb=2)
        assert site.asked == [
            ("set_power_limit", {"limit_w": 7000.0}),
            ("set_power_limit", {"limit_w": 7000.0, "heartbeat_timeout_s": 30.0}),
            ("heartbeat", {}),
        ]
        skipped_s[0] = 29.0
        assert (await client.read(704)).WMaxLimPctEna.value == 1
        await client.write(715, ControllerHb=2)  # written, and stands still
        skipped_s[0] = 31.0
        assert (await client.read(704)).WMaxLimPctEna.value == 0


async def test_our_heartbeat_stands_still_while_the_controller_is_not_heard(monkeypatch):
    monkeypatch.setattr("controller.facility.modbus.server.BEAT_S", 0.02)
    site = Site()
    async with connected(site) as client:
        first = (await client.read(715)).DERHb.value
        await asyncio.sleep(0.3)
        assert (await client.read(715)).DERHb.value > first
        site.alive = False
        await asyncio.sleep(0.2)
        still = (await client.read(715)).DERHb.value
        await asyncio.sleep(0.3)
        assert (await client.read(715)).DERHb.value == still


async def test_after_a_restart_the_registers_take_up_what_still_holds():
    site = Site()
    site.holds(limit_w=7000.0, remaining_s=42.0)
    async with connected(site) as client:
        read = await client.read(704)
        assert (read.WMaxLimPctEna.value, read.WMaxLimPct.cvalue) == (1, 50)
        assert 40 <= read.WMaxLimPctRvrtRem.value <= 42


async def test_a_restart_loses_neither_timer_nor_reversion_of_a_limit_that_is_renewed_afterwards(tmp_path):
    site = Site()
    async with connected(site, state_dir=tmp_path) as client:
        await client.write(704, WMaxLimPctRvrt=30, WMaxLimPctEnaRvrt=1, WMaxLimPctRvrtTms=600)
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
    site.holds(limit_w=7000.0, then_w=4200.0, remaining_s=30.0)
    async with connected(site, state_dir=tmp_path) as client:
        read = client.model(704)
        assert (read.WMaxLimPctEnaRvrt.value, read.WMaxLimPctRvrt.cvalue) == (1, 30)
        assert 20 <= read.WMaxLimPctRvrtRem.value <= 30
        await client.write(704, WMaxLimPct=49)
    renewed = {"limit_w": 6860.0, "valid_for_s": 600.0, "then_w": 4200.0}
    assert site.asked[1:] == [("set_power_limit", renewed)]


async def test_a_restart_leaves_a_limit_on_its_clients_heartbeat():
    site = Site()
    site.holds(limit_w=7000.0, heartbeat_timeout_s=40.0)
    async with connected(site) as client:
        await client.write(704, WMaxLimPct=49)
        await client.write(715, ControllerHb=1)
    assert site.asked == [
        ("set_power_limit", {"limit_w": 6860.0, "heartbeat_timeout_s": 40.0}),
        ("heartbeat", {}),
    ]


async def test_a_restart_keeps_settings_of_a_limit_that_is_not_switched_on(tmp_path):
    site = Site()
    async with connected(site, state_dir=tmp_path) as client:
        await client.write(704, WMaxLimPctRvrt=30, WMaxLimPctEnaRvrt=1, WMaxLimPctRvrtTms=600)
    async with connected(site, state_dir=tmp_path) as client:
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
    limit = {"limit_w": 7000.0, "valid_for_s": 600.0, "then_w": 4200.0}
    assert site.asked == [("set_power_limit", limit)]


async def test_a_limit_that_others_outrank_or_that_has_reverted_is_taken_up_too():
    site = Site()
    site.put("facility", by="opcua boss", limit_w=2800.0, priority=1.0)
    site.holds(limit_w=7000.0, then_w=9800.0, over=True)
    async with connected(site) as client:
        read = client.model(704)
        assert (read.WMaxLimPctEna.value, read.WMaxLimPct.cvalue) == (1, 70)


async def test_until_the_controller_has_said_what_holds_the_registers_are_neither_read_nor_written():
    site = Site()
    site.put("facility", slots=None)
    facility = ModbusFacility(config(), site, version="1", now_s=time.monotonic)
    somebody = Peer(address="127.0.0.1", name="somebody", may_write=True)
    enable = next(field.at for field in sunspec.layout() if field.name == "WMaxLimPctEna")
    with pytest.raises(Refusal) as unread:
        facility.read("holding", 1, enable, 1, somebody)
    with pytest.raises(Refusal) as unwritten:
        await facility.write("holding", 1, enable, [1], somebody)
    assert unread.value.code is unwritten.value.code is ExceptionCode.SERVER_DEVICE_BUSY
    site.put("facility", slots="[]")
    assert facility.read("holding", 1, enable, 1, somebody) == [0]


async def test_what_was_written_here_is_not_overwritten_by_what_the_controller_says_of_it():
    site = Site()
    async with connected(site) as client:
        await client.write(704, WMaxLimPctRvrt=80, WMaxLimPctEnaRvrt=1, WMaxLimPctRvrtTms=60)
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        site.holds(limit_w=7000.0, remaining_s=42.0)
        assert (await client.read(704)).WMaxLimPctEnaRvrt.value == 1


async def test_a_limit_of_somebody_else_is_not_taken_for_ours():
    site = Site()
    site.holds(writer="opcua alice", limit_w=7000.0, remaining_s=42.0)
    async with connected(site) as client:
        assert (await client.read(704)).WMaxLimPctEna.value == 0


async def test_nobody_without_the_right_moves_a_register():
    site = Site()
    async with connected(site, write_allow=()) as client:
        for model, point in ((704, {"WMaxLimPct": 50}), (715, {"AlarmReset": 1}), (715, {"ControllerHb": 1})):
            with pytest.raises(ModbusClientException, match="1"):
                await client.write(model, **point)
    assert site.commands == []


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ((704, "WMaxLimPct"), [10_001], ExceptionCode.ILLEGAL_DATA_VALUE),
        ((704, "WMaxLimPctEna"), [2], ExceptionCode.ILLEGAL_DATA_VALUE),
        ((704, "WMaxLimPctRvrtTms"), [0], ExceptionCode.ILLEGAL_DATA_ADDRESS),  # half of it
        ((704, "WMaxLimPctRvrtRem"), [0, 1], ExceptionCode.ILLEGAL_DATA_ADDRESS),  # read-only
        ((704, "WSetEna"), [1], ExceptionCode.ILLEGAL_DATA_ADDRESS),  # not implemented
        ((704, "WRmp"), [0, 0], ExceptionCode.ILLEGAL_DATA_ADDRESS),  # and its reference, read-only
        ((715, "OpCtl"), [0], ExceptionCode.ILLEGAL_DATA_ADDRESS),
        ((1, "DA"), [2], ExceptionCode.ILLEGAL_DATA_ADDRESS),
        ((213, "W"), [0, 0], ExceptionCode.ILLEGAL_DATA_ADDRESS),
    ],
)
def test_only_whole_writable_points_in_range_are_written(name, words, code):
    at = next(field.at for field in sunspec.layout() if (field.model, field.name) == name)
    with pytest.raises(Refusal) as refused:
        sunspec.changes_of(at, words)
    assert refused.value.code is code


def test_what_we_do_not_have_is_marked_as_the_standard_marks_it():
    words = sunspec.encode({})
    at = {(field.model, field.name): field.at - sunspec.BASE for field in sunspec.layout()}
    assert words[at[704, "WSetEna"]] == 0xFFFF
    assert words[at[704, "WSet_SF"]] == 0x8000
    assert words[at[704, "WSetRvrtTms"] : at[704, "WSetRvrtTms"] + 2] == (0xFFFF, 0xFFFF)
    assert words[at[213, "W"]] & 0x7FC0 == 0x7FC0  # NaN
    assert words[-2:] == (0xFFFF, 0)


@pytest.mark.parametrize(
    ("rating_w", "shown"),
    [(14_000.0, 14_000.0), (65_534.0, 65_534.0), (1.5e6, 1.5e6), (98_765_432.0, 98_760_000.0)],
)
def test_a_rating_of_any_size_fits_and_is_never_told_too_high(rating_w, shown):
    told = sunspec.capacity(rating_w)
    assert told[702, "WMax"] * 10 ** told[702, "W_SF"] == shown
    assert not math.isnan(shown)
