"""A peer that stands in for `powerblock` in tests of the rig: obeys events open loop, knows nothing else.

Called as the rig calls the real one: `run block.yaml`, `agent node.yaml`, `agent-farm` or `shed` (which it obeys in no
way). The scripted controller writes
limits straight into the GPU memories beside its configuration, since the wire between the real ones is
not what is tested here. It hears bare OpenADR notifications, or the load targets of a DSX Flex ISV, whom it
answers with the power states that belong to its ramps.
"""

import asyncio
import json
import ssl
import sys
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import aiomqtt
import numpy as np
import yaml

from firmware_sim.gpu_firmware import GpuMemory
from protocols.dsx_flex import envelope, load_target, power_state, topics
from protocols.dsx_flex.power_state import FeedRating, FeedState, PowerEvents
from protocols.dsx_flex.signing import KeySet, Signer, read_jwks

TICK_S = 0.02
BASE_W = 2900.0  # everything that is not a GPU
GPU_GAIN = 1.06  # block watts per GPU watt
REGULATION = 0.985


class ScriptedController:
    def __init__(self, config: dict, folder: Path) -> None:
        self.ramp, self.source = config["site"]["ramp"], config["site"]["sources"][0]
        self.mqtt = config["mqtt"]
        self.story = PowerEvents(period_s=60, calm_s=0.1)
        if self.source["kind"] == "dsx_flex":
            ((self.publisher, path),) = self.source["publishers"].items()
            self.isv_keys = KeySet(read_jwks(Path(path).read_bytes()))
            self.signer = Signer(self.source["signing_kid"], Path(self.source["signing_key"]).read_bytes())
        self.book = load_target.LoadTargetBook(self.source.get("feeds", {}))
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
            self.budget_w = max(self.limit_w, start_w - self.ramp["down_kw_per_s"] * 1000 * TICK_S)
        elif self.budget_w is not None:
            self.budget_w += self.ramp["up_kw_per_s"] * 1000 * TICK_S
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

    def client(self) -> aiomqtt.Client:
        address, tls = urlsplit(self.mqtt["url"]), None
        if address.scheme == "mqtts":
            tls = ssl.create_default_context(cafile=self.mqtt["ca"])
            tls.load_cert_chain(self.mqtt["cert"], self.mqtt["key"])
        return aiomqtt.Client(address.hostname, address.port, tls_context=tls)

    async def listen(self) -> None:
        async with self.client() as client:
            await client.subscribe(self.source["topics"][0], qos=1)
            async for message in client.messages:
                event = json.loads(message.payload)["object"]
                start = datetime.fromisoformat(event["intervalPeriod"]["start"]).timestamp()
                (value,) = event["intervals"][0]["payloads"][0]["values"]
                if isinstance(value, str):  # an alert, in words
                    continue
                self.limit_w = value * 1000
                self.ends_utc_s = start + float(event["intervalPeriod"]["duration"].strip("PTS"))

    async def obey_isv(self) -> None:
        async with self.client() as client, asyncio.TaskGroup() as tasks:
            await client.subscribe(f"grid/v1/isv/{self.publisher}/loadtarget/set", qos=1)
            tasks.create_task(self.tell(client))
            async for message in client.messages:
                said, now_utc_s = envelope.read(message.payload), time.time()
                targets = load_target.read(self.isv_keys.verify(said.data, now_utc_s))
                assert self.book.apply(said, targets, now_utc_s).accepted
                (feed,) = self.book.feeds
                if (window := self.book.effective(feed, now_utc_s)) is not None:
                    self.limit_w, self.ends_utc_s = window.limit_w, window.ends_utc_s

    async def tell(self, client: aiomqtt.Client) -> None:
        """Power states as `PowerEvents` asks for them; who repeats a wish has not set a new one."""
        (feed,) = self.book.feeds
        own = self.source["agent_id"]
        before_w, wishes = 99_000.0, set()
        while True:
            await asyncio.sleep(TICK_S)
            window, now_utc_s = self.book.effective(feed, time.time()), time.time()
            wishes.add(window and window.limit_w)
            budget_w = 99_000.0 if self.budget_w is None else min(self.budget_w, 14_000.0)
            direction = "steady" if budget_w == before_w else "down" if budget_w < before_w else "up"
            before_w = budget_w
            self.story, happenings = self.story.step(
                now_s=time.monotonic(), now_utc_s=now_utc_s, metered_w=self.measured_w(),
                target_w=window and window.limit_w, direction=direction, revision=len(wishes),
            )  # fmt: skip
            for happening in happenings:
                state = FeedState(
                    FeedRating(3e3, 2e4, 2e4), self.book.windows(now_utc_s), budget_w, happening
                )
                out = envelope.Envelope(
                    str(uuid4()), topics.source("agent", own), topics.POWER_STATE_STATUS, now_utc_s,
                    envelope.start_trace(bytes(range(1, 25))),
                    self.signer.sign(power_state.data({feed: state}, now_utc_s)),
                )  # fmt: skip
                topic = topics.topic(topics.POWER_STATE_STATUS, own)
                await client.publish(topic, envelope.write(out), qos=1)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.obey_isv() if self.source["kind"] == "dsx_flex" else self.listen())
            at_s = time.monotonic()
            while True:
                self.tick()
                at_s += TICK_S
                await asyncio.sleep(max(0.0, at_s - time.monotonic()))


if __name__ == "__main__":
    _, command, path, *_ = sys.argv
    if command == "shed":
        sys.exit()
    if command == "run":
        asyncio.run(ScriptedController(yaml.safe_load(Path(path).read_text()), Path(path).parent).run())
    time.sleep(3600)
