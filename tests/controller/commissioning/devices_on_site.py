"""Devices on a loop of their own, in a thread: the commands under test run their own loop, as for a person."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading

import typer
from typer.testing import CliRunner

from controller.commissioning.cli import register
from firmware_sim.modbus_device import ModbusDevice
from protocols.profile import load_profile
from tests.protocols.modbus.modbus_peers import Device

PDU = load_profile("xerus_pdu")
PDU_VALUES = {
    "voltage_v": 231.25, "current_a": 11.5, "power_w": 2650.5, "apparent_power_va": 2700.0,
    "power_factor_ratio": 0.9375, "frequency_hz": 50.0, "ocp_1_current_a": 5.5, "outlet_1_voltage_v": 230.0,
    "outlet_1_current_a": 2.25, "outlet_1_power_w": 500.0, "register_set": 1.0, "inlets": 1.0, "outlets": 24.0,
}  # fmt: skip
RPU = load_profile("orv3_rpu")

APP = typer.Typer()
register(APP)
PROGRAM = (
    "import typer; from controller.commissioning.cli import register; a = typer.Typer(); register(a); a()"
)


class Meter(Device):
    """A device written by hand that refuses functions it does not know."""

    def answer(self, unit, pdu):
        return bytes((pdu[0] | 0x80, 1)) if pdu[0] == 43 else super().answer(unit, pdu)


class Site:
    """Runs async context managers of devices in a thread; `add` gives what entering one gives."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.do(asyncio.sleep(0.02))  # connections that have just been made, or dropped
        self.do(self._stack.aclose())
        self.do(asyncio.sleep(0.02))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def do(self, what):
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(30)

    def add(self, device):
        return self.do(self._stack.enter_async_context(device))

    def pdu(self, values=PDU_VALUES, profile=PDU, unit=1):
        return self.add(ModbusDevice(profile, lambda: values, unit=unit))


@contextlib.asynccontextmanager
async def served(server):
    """A server with `run` and `listening`."""
    task = asyncio.create_task(server.run())
    await server.listening.wait()
    try:
        yield server
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def powerblock(*words):
    result = CliRunner().invoke(APP, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def _hears_ctrl_c():
    """A shell's background jobs ignore it, and so would whatever they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def process(*words, **options):
    """The same as a process of its own, to interrupt it."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"},
        preexec_fn=_hears_ctrl_c, **options,  # noqa: PLW1509  no threads here yet
    )  # fmt: skip


def block(folder, *devices):
    """A gateway's file with these devices."""
    (folder / "run").mkdir(exist_ok=True)
    path = folder / "block.yaml"
    lines = "".join(f"  - {device}\n" for device in devices)
    path.write_text(
        f"block: hall-a\nstate_dir: {folder}/state\nrun_dir: {folder}/run\ndevices:\n{lines}"
        if devices
        else f"block: hall-a\nstate_dir: {folder}/state\nrun_dir: {folder}/run\n"
    )
    return path
