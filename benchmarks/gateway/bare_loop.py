"""The least that does the work, as a point of reference: pymodbus to MQTT on uvloop, a task per device.

    python -m benchmarks.gateway.bare_loop BROKER_PORT POLL_S PORT...

It has no reconnect, no checks, no limits and nothing to configure.
"""

import asyncio
import socket
import sys
import time
from typing import Final

import aiomqtt
import msgspec
import uvloop
from pymodbus.client import AsyncModbusTcpClient

from benchmarks.gateway.farm import PER_UNIT, REGISTERS

NAMES: Final = tuple(f"r{at}" for at in range(REGISTERS))


async def _device(number: int, port: int, poll_s: float, broker: aiomqtt.Client) -> None:
    client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=1, retries=0)
    await client.connect()
    due_s = time.monotonic()
    while True:
        reply = await client.read_holding_registers(0, count=REGISTERS)
        values = {name: word / PER_UNIT for name, word in zip(NAMES, reply.registers, strict=True)}
        content = {"device": number, "taken_at": time.time(), "quality": "good", "values": values}
        await broker.publish(f"bench/{number}", msgspec.json.encode(content))
        due_s += poll_s
        await asyncio.sleep(due_s - time.monotonic())


async def _run(broker_port: int, poll_s: float, ports: list[int]) -> None:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    async with (
        aiomqtt.Client("127.0.0.1", broker_port, socket_options=options) as broker,
        asyncio.TaskGroup() as devices,
    ):
        for number, port in enumerate(ports):
            devices.create_task(_device(number, port, poll_s, broker))


if __name__ == "__main__":
    uvloop.run(_run(int(sys.argv[1]), float(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
