"""From a SunSpec client to the controller's own desk and back, over the image socket."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import msgspec
import pytest
from sunspec2.modbus.modbus import ModbusClientException

from controller.commands import CommandDesk
from controller.gateway import Gateway
from controller.image.block import FACILITY, BlockPoints
from controller.image.feed import ImageFeed
from controller.image.image import Image
from controller.image.server import ImageServer
from controller.image.wire import Update
from controller.site.facility import Facility
from controller.verbs import MODES
from tests.controller.facility.modbus_site import BLOCK, serving
from tests.controller.facility.modbus_site import FACILITY as FACILITY_THERE
from tests.controller.facility.test_facility_modbus_sunspec import Client

RATING_W = 14_000.0  # of the block in conftest


def block_group(settings):
    made = BlockPoints(settings, 6000.0, [], {}, first=1)
    return next(group for group in made.groups if group.kind == "block")


class Controller:
    """The part of the controller that hears commands and tells the image, with the law left out."""

    def __init__(self, folder, settings):
        self.facility = Facility(6000.0)
        self.skipped_s = 0.0
        self.socket = folder / "image.sock"
        self._desk = CommandDesk(
            folder,
            write=None,
            withdraw=None,
            alarms=None,
            facility=self.facility,
            settings=settings,
            on_moved=self.tell,
            clock=(self.now_s, lambda: time.time() + self.skipped_s),
        )
        block = block_group(settings)
        self.server = ImageServer(
            self.socket,
            Image([FACILITY, block]),
            block="hall-a",
            epoch=1,
            on_command=self._desk.carry_out,
            now_s=time.monotonic,
        )
        self.tell()

    def now_s(self):
        return time.monotonic() + self.skipped_s

    def tell(self):
        slot = next(iter(self.facility.slots), None)
        slots = Gateway.told(SimpleNamespace(_facility=self.facility))["slots"]
        values = {"mode": float(MODES.index(self.facility.mode)), "alarms_active": 0.0}
        values["slots"] = msgspec.json.encode(slots).decode()
        if slot is not None:
            values |= {"limit_w": slot.limit_w, "priority": float(slot.priority), "by": slot.writer}
            values["remaining_s"] = self.facility.remaining_s(slot, self.now_s())
        told = [values.get(point.name) for point in FACILITY.points]
        self.server.update(Update(0, told, time.monotonic(), time.time()))

    def close(self):
        self._desk.close()


@contextlib.asynccontextmanager
async def everything(tmp_path, settings):
    controller = Controller(tmp_path, settings)
    feed = ImageFeed(controller.socket)
    tasks = [asyncio.create_task(controller.server.run())]
    await asyncio.sleep(0.05)
    tasks.append(asyncio.create_task(feed.run()))
    try:
        async with asyncio.timeout(10):
            while not feed.alive:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with serving(feed) as modbus, Client(modbus.servers[0].port) as client:
            yield controller, client
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        controller.close()


async def test_a_limit_of_a_sunspec_client_stands_in_the_facilitys_slots_with_its_fallback(
    tmp_path, settings
):
    async with everything(tmp_path, settings) as (controller, client):
        await client.write(704, WMaxLimPctRvrt=60, WMaxLimPctEnaRvrt=1, WMaxLimPctRvrtTms=30)
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        (slot,) = controller.facility.slots
        assert (slot.writer, slot.priority) == ("sunspec registers", 8)
        assert (slot.limit_w, slot.then_w) == (0.5 * RATING_W, pytest.approx(0.6 * RATING_W))
        assert slot.ends_utc_s - time.time() == pytest.approx(30.0, abs=10.0)
        await client.write(704, WMaxLimPctEna=0)
        assert controller.facility.slots == ()


async def test_below_what_the_block_can_do_the_register_says_what_holds(tmp_path, settings):
    async with everything(tmp_path, settings) as (controller, client):
        await client.write(704, WMaxLimPct=10, WMaxLimPctEna=1)
        assert controller.facility.slots[0].limit_w == 6000.0
        assert (await client.read(704)).WMaxLimPct.cvalue == pytest.approx(42.86)


async def test_in_local_the_controller_refuses_and_remote_obeys_again(tmp_path, settings):
    async with everything(tmp_path, settings) as (controller, client):
        controller.facility.switch("local", "panel", time.time(), local=True)
        controller.tell()
        with pytest.raises(ModbusClientException, match="4"):
            await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        async with asyncio.timeout(5):
            while (await client.read(715)).LocRemCtl.value != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        controller.facility.switch("remote", "panel", time.time(), local=True)
        controller.tell()
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        assert controller.facility.slots[0].limit_w == 7000.0


async def test_a_silent_client_loses_its_limit_in_the_controller(tmp_path, settings):
    async with everything(tmp_path, settings) as (controller, client):
        await client.write(715, ControllerHb=1)
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        assert controller.facility.slots[0].heartbeat_timeout_s == 40.0
        controller.skipped_s = 30.0
        await client.write(715, ControllerHb=2)
        controller.skipped_s = 60.0
        controller.facility.beat(controller.now_s())
        assert len(controller.facility.slots) == 1
        controller.skipped_s = 80.0
        controller.facility.beat(controller.now_s())
        assert controller.facility.slots == ()
        with pytest.raises(ModbusClientException, match="4"):
            await client.write(715, ControllerHb=3)


async def test_a_server_started_anew_takes_up_what_the_controller_really_tells(tmp_path, settings):
    async with everything(tmp_path, settings) as (controller, client):
        await client.write(715, ControllerHb=1)
        await client.write(704, WMaxLimPctRvrt=60, WMaxLimPctEnaRvrt=1)
        await client.write(704, WMaxLimPct=50, WMaxLimPctEna=1)
        controller.tell()
        feed = ImageFeed(controller.socket)
        mirror = asyncio.create_task(feed.run())
        try:
            async with serving(feed) as modbus:
                async with asyncio.timeout(10):
                    while not feed.alive:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                async with Client(modbus.servers[0].port) as again:
                    read = again.model(704)
                    assert (read.WMaxLimPctEna.value, read.WMaxLimPctEnaRvrt.value) == (1, 1)
                    assert (read.WMaxLimPct.cvalue, read.WMaxLimPctRvrt.cvalue) == (50, 60)
                    await again.write(704, WMaxLimPct=48)
        finally:
            mirror.cancel()
        (slot,) = controller.facility.slots
        assert slot.limit_w == pytest.approx(0.48 * RATING_W)
        assert (slot.then_w, slot.heartbeat_timeout_s) == (pytest.approx(0.6 * RATING_W), 40.0)


def test_the_tests_use_the_names_that_the_controller_tells(settings):
    block = block_group(settings)
    assert {point.name for point in BLOCK.points} <= {point.name for point in block.points}
    assert [point.name for point in FACILITY_THERE.points] == [point.name for point in FACILITY.points]
    assert set(BLOCK.about) <= set(block.about)
