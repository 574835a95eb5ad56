"""Devices around the block answer independent masters, show the plant, and change it when they are written."""

import asyncio
import struct
from contextlib import asynccontextmanager

import pytest
from pymodbus import FramerType
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusIOException
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

from firmware_sim.device_fault import DeviceFault
from firmware_sim.facility import Facility
from firmware_sim.field_devices import tie
from firmware_sim.modbus_device import ModbusDevice, ModbusLine, ModbusUnit
from firmware_sim.plant import STEP_S, Plant
from firmware_sim.scenario import Fault, parse_scenario
from firmware_sim.scenario_facility import DEVICE_KINDS, FieldDevice

DOCUMENT = {
    "name": "rooms",
    "duration_s": 10,
    "block": {
        "racks": [{"name": "r1"}, {"name": "r2"}],
        "nodes": [{"name": "n1", "rack": "r1", "gpus": 8}, {"name": "n2", "rack": "r2", "gpus": 8}],
    },
    "workloads": [{"node": "n1", "kind": "inference"}, {"node": "n2", "kind": "inference"}],
    "facility": {
        "devices": [
            {"name": "rpu", "type": "rpu", "line": "hall", "unit": 3},
            {"name": "pumps", "type": "em24", "line": "hall", "unit": 4},
            {"name": "chiller", "type": "chiller"},
            {"name": "branch", "type": "branch", "of": "r1"},
            {"name": "battery", "type": "battery"},
        ]
    },
}
RPU_SUPPLY, RPU_FLOW_TARGET, RPU_CONTROL, DEMAND_LIMIT = 36_865, 37_888, 37_904, 0x400E


@pytest.fixture
def plant():
    made = Plant(parse_scenario(DOCUMENT, "rooms.yaml").plant_type())
    passes(made, 3.0)
    return made


def passes(plant, for_s):
    limits_w = plant.bank.power_w * 0 + 700.0
    for _ in range(round(for_s / STEP_S)):
        plant.step(STEP_S, limits_w)


def unit_of(kind, plant, **changes):
    device = FieldDevice(name=kind, type=kind, **changes)
    tied = tie(device, plant)
    return ModbusUnit(tied.layout, tied.values, unit=device.unit, write=tied.write)


@asynccontextmanager
async def a_client(port, framer=FramerType.SOCKET):
    client = AsyncModbusTcpClient(
        "127.0.0.1", port=port, framer=framer, timeout=0.3, retries=0, reconnect_delay=0
    )
    assert await client.connect()
    try:
        yield client
    finally:
        client.close()


async def registers(client, address, count=1, unit=1, table="holding"):
    read = {"holding": client.read_holding_registers, "input": client.read_input_registers}[table]
    reply = await read(address, count=count, device_id=unit)
    assert not reply.isError(), reply
    return reply.registers


# ---- lines ----------------------------------------------------------------------------------------------


async def test_two_units_share_an_rtu_line_and_each_answers_for_itself(plant):
    line = ModbusLine([unit_of("rpu", plant, unit=3), unit_of("em24", plant, unit=4)], "rtu")
    async with line, a_client(line.port, FramerType.RTU) as client:
        assert line.url.startswith("modbus+rtu+tcp://")
        (supply,) = await registers(client, RPU_SUPPLY, unit=3)
        assert supply / 10 == pytest.approx(plant.cdu.supply_c, abs=0.06)
        low, high = await registers(client, 0x28, 2, unit=4, table="input")
        assert (high << 16 | low) / 10 == pytest.approx(plant.cdu.pump_w, abs=0.06)


async def test_a_silent_unit_leaves_its_line_to_the_others(plant):
    rpu, em24 = unit_of("rpu", plant, unit=3), unit_of("em24", plant, unit=4)
    async with ModbusLine([rpu, em24], "rtu") as line, a_client(line.port, FramerType.RTU) as client:
        for mode in ("silent", "refusing"):
            await em24.set_fault(DeviceFault(mode))
            with pytest.raises(ModbusIOException):
                await registers(client, 0x28, 2, unit=4, table="input")
            assert await registers(client, RPU_SUPPLY, unit=3)
        await em24.set_fault(None)
        assert await registers(client, 0x28, 2, unit=4, table="input")


async def test_nobody_answers_for_a_unit_that_is_not_on_the_line(plant):
    async with (
        ModbusLine([unit_of("rpu", plant, unit=3)], "rtu") as line,
        a_client(line.port, FramerType.RTU) as client,
    ):
        with pytest.raises(ModbusIOException):
            await registers(client, RPU_SUPPLY, unit=9)
        assert await registers(client, RPU_SUPPLY, unit=3), "on the same connection"


# ---- writes ---------------------------------------------------------------------------------------------


async def test_a_written_setpoint_changes_the_plant_and_reads_back(plant):
    line = ModbusLine([unit_of("rpu", plant)])
    async with line, a_client(line.port) as client:
        assert not (await client.write_register(RPU_FLOW_TARGET, 425, device_id=1)).isError()
        assert plant.cdu.flow_lpm == pytest.approx(42.5)
        assert await registers(client, RPU_FLOW_TARGET) == [425]
        assert not (await client.write_registers(RPU_FLOW_TARGET, [400, 330], device_id=1)).isError()
        assert (plant.cdu.flow_lpm, plant.cdu.setpoint_c) == (pytest.approx(40), 33)


async def test_only_what_can_be_written_is(plant):
    rpu, em24 = unit_of("rpu", plant, unit=1), unit_of("em24", plant, unit=2)
    line = ModbusLine([rpu, em24])
    async with line, a_client(line.port) as client:
        for unit, address, values in (
            (1, RPU_SUPPLY, [300]),  # a reading
            (1, RPU_FLOW_TARGET, [400, 330, 1]),  # one register too many
            (2, 0x28, [1, 0]),  # nothing there to write at all
        ):
            assert (await client.write_registers(address, values, device_id=unit)).isError()
        assert plant.cdu.flow_lpm == 30


async def test_a_value_beyond_the_points_range_is_refused_by_the_device(plant):
    line = ModbusLine([unit_of("rpu", plant)])
    async with line, a_client(line.port) as client:
        reply = await client.write_register(RPU_FLOW_TARGET, 20_001, device_id=1)  # 2000.1 L/min
        assert (reply.isError(), reply.exception_code) == (True, 3)


async def test_a_bit_is_written_onto_its_register(plant):
    line = ModbusLine([unit_of("rpu", plant)])
    async with line, a_client(line.port) as client:
        assert await registers(client, RPU_CONTROL) == [0x0008]
        assert not (await client.write_register(RPU_CONTROL, 0x0018, device_id=1)).isError()


# ---- the plant ------------------------------------------------------------------------------------------


def test_a_chiller_that_may_take_less_makes_warmer_water_and_the_block_can_be_cooled_less(plant):
    before_w, load_ratio = plant.cdu.capacity_w, plant.chiller.load_ratio
    assert load_ratio == pytest.approx(plant.cdu.heat_w / plant.chiller.capacity_w, rel=0.3)
    plant.chiller.demand_limit_ratio = 0.32
    passes(plant, 25.0)
    assert plant.chiller.load_ratio == pytest.approx(0.32, abs=0.01)
    missing_ratio = plant.cdu.heat_w / plant.chiller.capacity_w - 0.32
    assert before_w - plant.cdu.capacity_w == pytest.approx(
        20 * missing_ratio * plant.type.cdu.ua_w_per_k, rel=0.25
    )


def test_a_chiller_without_a_limit_changes_nothing(plant):
    assert plant.chiller.warmer_k == 0


async def test_the_chiller_takes_its_demand_limit_in_percent(plant):
    line = ModbusLine([unit_of("chiller", plant)])
    async with line, a_client(line.port) as client:
        assert not (await client.write_register(DEMAND_LIMIT, 45, device_id=1)).isError()
        assert plant.chiller.demand_limit_ratio == pytest.approx(0.45)


async def test_currents_of_a_branch_follow_its_rack(plant):
    line = ModbusLine([unit_of("branch", plant, of="r1")])
    async with line, a_client(line.port) as client:
        amperes = (await registers(client, 5878, 3, table="input"))[0]
        rack_w = sum(meter.reading_w for meter in plant.inlet_meters[0])
        assert amperes == pytest.approx(rack_w / 0.98 / 3 / 230, abs=0.51)


async def test_a_sunspec_client_finds_the_battery_and_reads_what_it_carries(plant):
    def scanned(port):
        device = SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=port, timeout=2)
        device.connect()
        device.scan(connect=False)
        device.disconnect()
        return device

    line = ModbusLine([unit_of("battery", plant)])
    async with line:
        device = await asyncio.to_thread(scanned, line.port)
    nameplate, ac, storage = (device.models[model][0] for model in (1, 701, 713))
    assert (nameplate.Mn.value, nameplate.Md.value, nameplate.SN.value) == ("Rig", "Battery", "battery")
    assert pytest.approx(0.1 * plant.block_meter.reading_w, abs=0.51) == ac.W.cvalue
    assert ac.Hz.cvalue == 50
    assert ac.PF.value is None, "not implemented is not 0"
    assert storage.SoC.cvalue == pytest.approx(100, abs=0.2)


async def test_a_battery_whose_sensor_is_gone_says_not_implemented(plant):
    device = FieldDevice(name="battery", type="battery")
    tied = tie(device, plant)
    async with ModbusDevice(tied.layout, tied.values) as battery, a_client(battery.port) as client:
        assert (await registers(client, 40_080))[0] == round(0.1 * plant.block_meter.reading_w)
        await battery.set_fault(DeviceFault("nan"))
        (power,) = struct.unpack(">h", struct.pack(">H", *(await registers(client, 40_080))))
        assert power == -0x8000
        assert (await client.write_register(40_080, 1, device_id=1)).isError(), "it only measures"


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_every_watched_point_has_a_truth_and_every_write_an_effect(kind, plant):
    tied = tie(FieldDevice(name="d", type=kind), plant)
    for point in DEVICE_KINDS[kind].watched:
        assert tied.true_value(point) > 0
    for point, (lowest, highest) in DEVICE_KINDS[kind].writes.items():
        for value in (lowest, highest):
            tied.write(point, value)
            assert tied.true_value(point) == pytest.approx(value)


async def test_a_fault_of_the_scenario_reaches_a_unit_on_a_line(tmp_path):
    scenario = parse_scenario(DOCUMENT, "rooms.yaml")
    async with Facility(scenario, tmp_path) as facility:
        assert facility.urls["rpu"] == facility.urls["pumps"]
        assert facility.urls["chiller"] != facility.urls["branch"]
        heal = await facility.break_device(Fault(target="device", name="pumps", mode="silent"))
        assert facility.devices["pumps"].fault == DeviceFault("silent", 0.5)
        await heal()
        assert facility.devices["pumps"].fault is None
