"""From the arrival of a call to the last of eight limits read back, as the agent itself measures it."""

import asyncio
import time

from protocols.agent_link import Level

CALLS = 40
LIMITS_W = (600.0,) * 8


async def test_a_call_is_executed_within_milliseconds(node):
    """Generous bounds: a loaded machine must not fail it. Print the figures with `pytest -rP`."""
    async with node(gpu_count=8, lease_max_s=60.0, report_period_s=0.02) as n:
        n.start()
        await n.report()
        await n.table(Level(limits_w=(400.0,) * 8), Level(limits_w=(400.0,) * 8, clocks_mhz=(1200,) * 8))
        for level, name in enumerate(("limits", "limits and clocks")):
            obeyed_ms = []
            for _ in range(CALLS):
                await n.lead(LIMITS_W, lease_s=30.0)
                called_s = time.monotonic()
                seq = n.call(level).seq
                report = await n.report(lambda report, seq=seq: report.seq == seq)
                assert n.limits_w() == [400.0] * 8
                obeyed_ms.append(report.obeyed_in_s * 1e3)
                assert report.obeyed_in_s <= report.came_ago_s <= time.monotonic() - called_s
                await asyncio.sleep(0.003)
            obeyed_ms.sort()
            p50, p99 = obeyed_ms[CALLS // 2], obeyed_ms[CALLS * 99 // 100]
            print(f"call to last of 8 read back, {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
            assert p50 < 20.0
