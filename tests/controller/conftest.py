"""A block as an operator would write it, and what goes with it."""

from pathlib import Path

import pytest
import yaml

from controller.config import load_block, settings_of

BLOCK = """
block: hall-a
state_dir: {folder}/state
run_dir: {folder}/run
journal: {{path: {folder}/journal.jsonl}}
mqtt: {{url: "mqtt://127.0.0.1"}}
site:
  failsafe_kw: 9
  ramp: {{down_kw_per_s: 0.6, up_kw_per_s: 0.4}}
  sources:
    - {{kind: openadr_mqtt, name: openadr, topics: [openadr/events], heartbeat_topic: site/heartbeat}}
feed: {{rating_kw: 14}}
base_load: {{min_kw: 0.5, max_kw: 5}}
meter: {{profile: pm5000_meter, url: "modbus+tcp://10.0.0.1", poll_s: 0.2}}
racks:
  - name: r1
    inlets:
      - {{name: r1-a, feed: A, rating_a: 32, voltage_v: 230, profile: xerus_pdu, url: "modbus+tcp://10.0.0.11"}}
      - {{name: r1-b, feed: B, rating_a: 16, voltage_v: 230, profile: xerus_pdu, url: "modbus+tcp://10.0.0.12"}}
    nodes:
      - {{name: node-a, gpus: 8, min_w: 200, max_w: 700}}
  - name: r2
    inlets:
      - {{name: r2-a, feed: A, rating_a: 16, voltage_v: 230, profile: xerus_pdu, url: "modbus+tcp://10.0.0.21"}}
      - {{name: r2-b, feed: B, rating_a: 16, voltage_v: 230, profile: xerus_pdu, url: "modbus+tcp://10.0.0.22"}}
    nodes:
      - {{name: node-b, gpus: 8, min_w: 200, max_w: 700, tier: critical}}
tiers:
  standard: {{floor_w: 250}}
  critical: {{weight: 4, floor_w: 500}}
"""


@pytest.fixture
def block_with(tmp_path):
    """`block_with({"feed.rating_kw": 20, "racks.0.nodes.0.gpus": 4, "tiers": ...})`: path of the file; `...` removes."""

    def write(changes=None) -> Path:
        content = yaml.safe_load(BLOCK.format(folder=tmp_path))
        for place, value in (changes or {}).items():
            inner, *outer = reversed(place.split("."))
            part = content
            for key in reversed(outer):
                part = part[int(key) if isinstance(part, list) else key]
            inner = int(inner) if isinstance(part, list) else inner
            if value is ...:
                del part[inner]
            else:
                part[inner] = value
        path = tmp_path / "block.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def config(block_with):
    return load_block(block_with())


@pytest.fixture
def settings(config):
    return settings_of(config)
