"""The SCADA side as a process: reads every way that is served, tells the rig what it sees, obeys its orders.

A process of its own, because the rig keeps the plant's real time and must not wait for cryptography or for
somebody's address space. It speaks lines of JSON with the rig over loopback:

    ["opcua", "block/power_w", 13250.0, 1234.56]       seen; null: nothing good; the host's monotonic clock, s
    {"bus": [messages, invalid, "the first fault"]}
    {"order": 1, "via": "opcua", "limit_w": 10000.0, "for_s": 20.0}                     from the rig
    {"order": 2, "via": "opcua", "address": "devices/chiller/demand_limit_ratio", "value": 0.35}
    {"answer": 1, "refused": ""}                                                        to the rig

    python -m firmware_sim.scada_client plan.json
"""

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from firmware_sim.scada_plan import LOOPBACK, Plan, read_plan
from firmware_sim.scada_ways import READERS, BusReader, OrderRefusedError, Reader
from firmware_sim.scenario_facility import Way

BUS_PERIOD_S: Final = 1.0


class ScadaClient:
    """Everything at once, until the rig hangs up."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._readers: dict[Way, Reader] = {way: READERS[way](plan, self._see) for way in plan.ways}
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        reader, self._writer = await asyncio.open_connection(LOOPBACK, self._plan.report_port)
        tasks = [asyncio.create_task(one.run(), name=way) for way, one in self._readers.items()]
        tasks += [asyncio.create_task(self._count_bus()), asyncio.create_task(self._listen(reader))]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # the rig has hung up, or a reader failed in a way that it does not know

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        pending = set()
        while line := await reader.readline():
            task = asyncio.create_task(self._carry_out(json.loads(line)))
            pending.add(task)
            task.add_done_callback(pending.discard)

    async def _carry_out(self, order: Mapping[str, Any]) -> None:
        reader, refused = self._readers[order["via"]], ""
        try:
            if "limit_w" in order:
                await reader.limit(order["limit_w"], order["for_s"])
            elif "shed" in order:
                await reader.shed(order["shed"], order["for_s"])
            else:
                await reader.write(order["address"], order["value"])
        except (OrderRefusedError, OSError, TimeoutError) as error:
            refused = str(error) or type(error).__name__
        self._say({"answer": order["order"], "refused": refused})

    async def _count_bus(self) -> None:
        bus = self._readers.get("bms")
        while True:
            await asyncio.sleep(BUS_PERIOD_S)
            if isinstance(bus, BusReader):
                self._say({"bus": [bus.messages, bus.invalid, bus.first_fault]})

    def _see(self, way: Way, address: str, value: float | None) -> None:
        self._say([way, address, value, time.monotonic()])

    def _say(self, what: Any) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(what).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m firmware_sim.scada_client", description="SCADA side of the rig"
    )
    parser.add_argument("plan", type=Path, help="what to read, and where")
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # tells every outage with its stack
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
    asyncio.run(ScadaClient(read_plan(parser.parse_args().plan)).run())


if __name__ == "__main__":
    main()
