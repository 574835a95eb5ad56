"""A peer that stands in for `powerblock` in tests of the rig: obeys events open loop, knows nothing else.

Called as the rig calls the real one: `run block.yaml` or `agent node.yaml`. The scripted controller writes
limits straight into the GPU memories beside its configuration, since the wire between the real ones is
not what is tested here.
"""

import asyncio
import json
import sys
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiomqtt
import numpy as np
import yaml

from firmware_sim.gpu_firmware import GpuMemory

TICK_S = 0.02
BASE_W = 2900.0  # everything that is not a GPU
GPU_GAIN = 1.06  # block watts per GPU watt
REGULATION = 0.985


class ScriptedController:
    def __init__(self, config: dict, folder: Path) -> None:
        self.site = config["site"]
        self.address = urlsplit(config["mqtt"]["url"])
        self.memories = [GpuMemory(path) for path in sorted(folder.glob("*.gpus"))]
        self.gpus = sum(len(memory.gpus) for memory in self.memories)
        self.limit_w, self.ends_utc_s = None, 0.0
        self.budget_w = None
        self.status_path = Path(config["run_dir"]) / "status.json"
        self.status_path.parent.mkdir(parents=True)
        self.journal_path = Path(config["journal"]["path"])

    def measured_w(self) -> float:
        gpu_mw = sum(float(memory.gpus["average_mw"].sum()) for memory in self.memories)
        return BASE_W + GPU_GAIN * gpu_mw / 1000

    def tick(self) -> None:
        now_utc_s = time.time()
        limited = self.limit_w is not None and now_utc_s < self.ends_utc_s
        if limited:
            start_w = self.measured_w() if self.budget_w is None else self.budget_w
            self.budget_w = max(self.limit_w, start_w - self.site["ramp_down_kw_per_s"] * 1000 * TICK_S)
        elif self.budget_w is not None:
            self.budget_w += self.site["ramp_up_kw_per_s"] * 1000 * TICK_S
        if self.budget_w is not None:
            share_w = (self.budget_w - BASE_W) / GPU_GAIN / REGULATION / self.gpus
            for memory in self.memories:
                memory.gpus["requested_mw"][:] = np.clip(round(share_w * 1000), 200_000, 700_000)
        decided = {
            "budget_w": 99_000.0 if self.budget_w is None else self.budget_w,
            "binding": {"source": "site" if limited else "feed rating"},
            "mode": "limited" if limited else "controlled",
            "alarms": [],
        }
        with self.journal_path.open("a") as journal:
            journal.write(json.dumps({"now_utc_s": now_utc_s, "decided": decided}) + "\n")
        beside = self.status_path.with_suffix(".new")
        beside.write_text(json.dumps({"at_utc_s": now_utc_s, **decided}))
        beside.replace(self.status_path)

    async def listen(self) -> None:
        async with aiomqtt.Client(self.address.hostname, self.address.port) as client:
            await client.subscribe(self.site["openadr_topics"][0], qos=1)
            async for message in client.messages:
                event = json.loads(message.payload)["object"]
                start = datetime.fromisoformat(event["intervalPeriod"]["start"]).timestamp()
                self.limit_w = event["intervals"][0]["payloads"][0]["values"][0] * 1000
                self.ends_utc_s = start + float(event["intervalPeriod"]["duration"].strip("PTS"))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.listen())
            at_s = time.monotonic()
            while True:
                self.tick()
                at_s += TICK_S
                await asyncio.sleep(max(0.0, at_s - time.monotonic()))


if __name__ == "__main__":
    _, command, path = sys.argv
    if command == "run":
        asyncio.run(ScriptedController(yaml.safe_load(Path(path).read_text()), Path(path).parent).run())
    time.sleep(3600)
