"""Device servers answer independent clients, and misbehave on demand."""

import asyncio
import struct
from contextlib import asynccontextmanager

import pytest
from asyncua import Client, ua
from pymodbus.client import AsyncModbusTcpClient

from firmware_sim.device_fault import DeviceFault, distort
from firmware_sim.facility import free_port
from firmware_sim.modbus_device import ModbusDevice
from firmware_sim.opcua_device import OpcuaDevice
from protocols.profile import load_profile

METER_POWER = 3059  # wire address of the PM5000's total active power, kW as float32
PDU_POWER = 12306  # Xerus inlet 1 active power, W as float32


@asynccontextmanager
async def a_client(device, *, timeout_s=0.5):
    client = AsyncModbusTcpClient(
        "127.0.0.1", port=device.port, timeout=timeout_s, retries=0, reconnect_delay=0
    )
    assert await client.connect()
    try:
        yield client
    finally:
        client.close()


async def read_float(client, address):
    """Read without the profile: two registers, big-endian."""
    reply = await client.read_holding_registers(address, count=2, device_id=1)
    assert not reply.isError(), reply
    return struct.unpack(">f", struct.pack(">HH", *reply.registers))[0]


async def test_a_meter_says_kilowatts_where_its_manual_says_so():
    meter = ModbusDevice(load_profile("pm5000_meter"), lambda: {"power_w": 13_250.0})
    async with meter, a_client(meter) as client:
        assert await read_float(client, METER_POWER) == pytest.approx(13.25)


async def test_a_pdu_says_watts_and_follows_the_plant_between_two_reads():
    power_w = 6100.0
    async with (
        ModbusDevice(load_profile("xerus_pdu"), lambda: {"power_w": power_w}) as pdu,
        a_client(pdu) as client,
    ):
        assert await read_float(client, PDU_POWER) == 6100.0
        power_w = 5900.0
        assert await read_float(client, PDU_POWER) == 5900.0


async def test_a_device_says_states_texts_flags_and_coils_as_its_profile_has_them():
    """Read without the profile: numbers as the documents print them."""
    values = {"model": "RDF040", "leak_alarms": 16.0, "auto_flow_control": 1.0, "auto_pressure_control": 1.0}
    async with ModbusDevice(load_profile("orv3_rpu"), lambda: values) as rpu, a_client(rpu) as client:
        reply = await client.read_holding_registers(0x19CC, count=8, device_id=1)
        assert b"".join(r.to_bytes(2, "big") for r in reply.registers).rstrip(b"\0") == b"RDF040"
        assert (await client.read_holding_registers(37378, count=1, device_id=1)).registers == [16]
        assert (await client.read_holding_registers(37904, count=1, device_id=1)).registers == [0x0018]
    states = {"system_status": 16.0, "subfeed_2_ground_overcurrent": 1.0, "power_w": 12_000.0}
    async with ModbusDevice(load_profile("liebert_branch"), lambda: states) as feed, a_client(feed) as client:
        assert (await client.read_input_registers(5898, count=1, device_id=1)).registers == [16]
        assert (await client.read_input_registers(5884, count=1, device_id=1)).registers == [12]
        assert (await client.read_discrete_inputs(4514, count=4, device_id=1)).bits[:4] == [False] * 3 + [
            True
        ]
        assert (await client.read_holding_registers(5884, count=1, device_id=1)).isError()


async def test_registers_that_no_profile_block_names_do_not_exist():
    async with (
        ModbusDevice(load_profile("xerus_pdu"), lambda: {"power_w": 1.0}) as pdu,
        a_client(pdu) as client,
    ):
        reply = await client.read_holding_registers(12302, count=2, device_id=1)
        assert reply.isError()


async def test_a_frozen_device_repeats_one_moment_and_heals():
    power_w = 100.0
    async with (
        ModbusDevice(load_profile("xerus_pdu"), lambda: {"power_w": power_w}) as pdu,
        a_client(pdu) as client,
    ):
        await pdu.set_fault(DeviceFault("frozen"))
        power_w = 200.0
        assert await read_float(client, PDU_POWER) == 100.0
        await pdu.set_fault(None)
        assert await read_float(client, PDU_POWER) == 200.0


async def test_a_silent_device_accepts_connections_and_never_answers():
    async with ModbusDevice(load_profile("xerus_pdu"), lambda: {"power_w": 7.0}) as pdu:
        await pdu.set_fault(DeviceFault("silent"))
        async with a_client(pdu, timeout_s=0.1) as client:
            with pytest.raises(Exception, match="No response"):
                await client.read_holding_registers(PDU_POWER, count=2, device_id=1)
        await pdu.set_fault(None)
        async with a_client(pdu) as client:
            assert await read_float(client, PDU_POWER) == 7.0


async def test_a_refusing_device_drops_its_clients_and_comes_back_on_its_port():
    async with ModbusDevice(load_profile("xerus_pdu"), lambda: {"power_w": 7.0}) as pdu:
        port = pdu.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.02)
        await pdu.set_fault(DeviceFault("refusing"))
        assert await asyncio.wait_for(reader.read(1), 1) == b"", "the connection is dropped"
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await pdu.set_fault(None)
        assert pdu.port == port
        async with a_client(pdu) as client:
            assert await read_float(client, PDU_POWER) == 7.0


async def test_a_lying_device_is_wrong_by_its_factor_in_powers_and_currents_alone():
    values = {"power_w": 1000.0, "voltage_v": 230.0}
    assert distort(values, DeviceFault("lying", 0.5)) == {"power_w": 500.0, "voltage_v": 230.0}
    async with ModbusDevice(load_profile("xerus_pdu"), lambda: values) as pdu, a_client(pdu) as client:
        await pdu.set_fault(DeviceFault("lying", 0.5))
        assert await read_float(client, PDU_POWER) == 500.0
        assert await read_float(client, 12296) == 230.0


async def test_a_device_can_answer_not_a_number():
    async with (
        ModbusDevice(load_profile("pm5000_meter"), lambda: {"power_w": 7.0}) as meter,
        a_client(meter) as client,
    ):
        await meter.set_fault(DeviceFault("nan"))
        value = await read_float(client, METER_POWER)
        assert value != value


async def test_devices_fail_one_at_a_time():
    profile = load_profile("xerus_pdu")
    async with (
        ModbusDevice(profile, lambda: {"power_w": 1.0}) as sick,
        ModbusDevice(profile, lambda: {"power_w": 2.0}) as well,
    ):
        await sick.set_fault(DeviceFault("refusing"))
        async with a_client(well) as client:
            assert await read_float(client, PDU_POWER) == 2.0


async def test_the_cdu_serves_its_profile_freezes_goes_nan_and_comes_back():
    capacity_w = 22_000.0
    port = free_port()
    async with OpcuaDevice(load_profile("opcua_cdu"), lambda: {"capacity_w": capacity_w}, port=port) as cdu:

        async def read_kw():
            async with Client(url=f"opc.tcp://127.0.0.1:{port}/") as client:
                index = await client.get_namespace_index("urn:powerblock:cdu")
                return await client.get_node(ua.NodeId("Cdu.CapacityKw", index)).read_value()

        assert await read_kw() == 22.0
        capacity_w = 10_000.0
        await cdu.push()
        assert await read_kw() == 10.0
        await cdu.set_fault(DeviceFault("frozen"))
        capacity_w = 5_000.0
        await cdu.push()
        assert await read_kw() == 10.0
        await cdu.set_fault(DeviceFault("nan"))
        assert (value := await read_kw()) != value
        await cdu.set_fault(DeviceFault("refusing"))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await cdu.set_fault(None)
        assert await read_kw() == 5.0


async def test_an_opcua_device_that_shall_be_silent_says_why_not():
    cdu = OpcuaDevice(load_profile("opcua_cdu"), dict, port=free_port())
    with pytest.raises(ValueError, match="use 'refusing'"):
        await cdu.set_fault(DeviceFault("silent"))
