"""The agent as its host runs it: a process of its own, a real broker, the driver library through pynvml."""

import asyncio
import itertools
import json
import signal
import socket
import threading
import time

from structlog.testing import capture_logs

from controller.agent import service, waiting
from controller.agent.config import NodeConfig
from firmware_sim import gpu_firmware
from protocols import agent_link

LIMITS_W = (600.0, 550.0, 500.0, 450.0)


def holds(node, limits_w=LIMITS_W):
    return lambda: node.limits_w() == list(limits_w)


async def test_an_order_is_written_read_back_and_acknowledged_at_once(node):
    async with node(report_period_s=1.0) as n:
        n.start()
        first = await n.report()
        assert (first.mode, first.epoch, first.seq, first.echo_sent_at_s) == ("waiting", 0, 0, -1.0)
        took_s = []
        for _ in range(3):  # the machine may be busy once
            order = n.order(LIMITS_W)
            began_s = time.monotonic()
            answer = await n.report(lambda report, order=order: report.seq == order.seq)
            took_s.append(time.monotonic() - began_s)
        assert min(took_s) < 0.3  # nobody waits for the next report
        assert (answer.mode, answer.epoch, answer.echo_sent_at_s) == ("leased", 1, order.sent_at_s)
        assert [gpu.limit_w for gpu in answer.gpus] == n.limits_w() == list(LIMITS_W)
        assert not any(gpu.fault for gpu in answer.gpus)


async def test_a_repeated_order_writes_nothing(node):
    async with node() as n:
        n.start()
        await n.report()
        n.order(LIMITS_W)
        await n.until(holds(n))
        counts = list(n.memory.gpus["write_count"])
        for _ in range(5):
            n.order(LIMITS_W, newer=False)
            await n.report()
        assert list(n.memory.gpus["write_count"]) == counts


async def test_power_follows_the_meter_in_the_gpu(node):
    async with node() as n:
        n.start()
        await n.report()
        n.memory.gpus["instant_mw"][2] = 612_000
        n.memory.gpus["oob_limit_mw"][2] = 400_000  # the BMC steps in
        report = await n.report(lambda report: report.gpus[2].power_w == 612.0)
        assert (report.gpus[2].limit_w, report.gpus[2].enforced_w, report.gpus[2].fault) == (700.0, 400.0, "")


async def test_a_lease_that_runs_out_ramps_every_gpu_down_to_its_fallback(node):
    async with node(gpus={"count": 4}, fallback_w=[300, 300, 300, 250]) as n:
        n.start()
        await n.report()
        limits_w = (600.0, 550.0, 220.0, 450.0)
        n.order(limits_w, lease_s=0.5)
        await n.until(holds(n, limits_w))
        seen = [n.limits_w()]
        while seen[-1] != [300.0, 300.0, 220.0, 250.0]:
            await n.report()
            seen.append(n.limits_w())
            assert len(seen) < 200
        for before, after in itertools.pairwise(seen):
            assert all(b <= a for a, b in zip(before, after, strict=True))
        assert len({limits[0] for limits in seen}) >= 4  # a ramp, not a step
        report = await n.report(lambda report: report.gpus[0].limit_w == 300.0)
        assert (report.mode, report.epoch, report.seq) == ("fallback", 0, 0)


async def test_after_a_fallback_only_a_newer_order_raises(node):
    async with node() as n:
        n.start()
        await n.report()
        n.order(LIMITS_W, lease_s=0.3)
        await n.until(holds(n, (300.0,) * 4))
        n.order(LIMITS_W, newer=False)
        report = await n.report(lambda report: report.mode == "leased")
        report = await n.report(lambda report: report.seq == 1)
        assert [gpu.limit_w for gpu in report.gpus] == n.limits_w() == [300.0] * 4
        n.order(LIMITS_W)
        await n.until(holds(n))


async def test_an_order_without_a_report_behind_it_is_refused(node):
    async with node() as n:
        n.order(LIMITS_W)  # no report was heard: echo is below 0
        n.start()
        await n.report()
        n.reports.clear()
        n.order(LIMITS_W)
        report = await n.report(lambda report: report.echo_sent_at_s >= 0)
        assert report.mode == "waiting"
        assert n.limits_w() == [700.0] * 4
        assert "the controller must hear this agent first" in n.logged()


async def test_rubbish_on_the_order_topic_changes_nothing(node):
    async with node() as n:
        n.start()
        await n.report()
        for payload in (b"", b"{}", b"\xff" * 100, b"[" * 50_000):
            n.link.publish(agent_link.order_topic("b", n.folder.name), payload)
            await n.report()
        n.order(LIMITS_W)
        await n.until(holds(n))
        assert "order refused" in n.logged()


async def test_a_restart_leaves_the_limits_as_they_are_and_then_waits_only_so_long(node):
    async with node(waiting_max_s=1.0) as n:
        n.start()
        await n.report()
        n.order(LIMITS_W)
        await n.until(holds(n))
        n.stop(signal.SIGKILL)
        boot = n.newest.boot
        n.start()
        report = await n.report(lambda report: report.boot != boot)
        assert report.mode == "waiting"
        assert n.limits_w() == list(LIMITS_W)
        await n.until(holds(n, (300.0,) * 4))
        assert (await n.report()).mode == "fallback"


async def test_an_agent_that_dies_again_and_again_waits_no_longer_than_one_that_lives(node):
    async with node(waiting_max_s=4.0) as n:
        n.start()
        await n.report()
        n.order(LIMITS_W)
        await n.until(holds(n))
        began_s = time.monotonic()
        while time.monotonic() < began_s + 4.0:  # none of them lives as long as it may wait
            n.stop(signal.SIGKILL)
            boot = n.newest.boot
            n.start()
            await n.report(lambda report, boot=boot: report.boot != boot)
            assert n.newest.mode == "waiting" or time.monotonic() > began_s + 4.0
            await asyncio.sleep(0.5)
        await n.until(holds(n, (300.0,) * 4), within_s=2.0)
        await n.report(lambda report: report.mode == "fallback")
        assert (n.folder / "state" / waiting.NAME).exists()
        await n.lead(LIMITS_W)  # a controller is back
        await n.until(lambda: not (n.folder / "state" / waiting.NAME).exists())


async def test_a_stop_changes_no_limit(node):
    async with node() as n:
        n.start()
        await n.report()
        n.order(LIMITS_W)
        await n.until(holds(n))
        assert n.stop(signal.SIGTERM) == 0
        assert n.limits_w() == list(LIMITS_W)


async def test_found_limits_are_on_disk_before_the_first_write(node):
    async with node() as n:
        n.memory.gpus["requested_mw"] = [650_000, 640_000, 630_000, 620_000]
        n.memory.gpus["blocked"] = gpu_firmware.BLOCK_WRITES  # the first write cannot get through
        file = n.folder / "state" / "found-limits.jsonl"
        n.start()
        await n.until(lambda: file.exists() and file.read_text().count("\n") == 4)
        assert list(n.memory.gpus["write_count"]) == [0, 0, 0, 0]
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["limit_w"] for line in lines] == [650.0, 640.0, 630.0, 620.0]
        assert lines[3]["uuid"] == gpu_firmware.gpu_uuid(n.folder.name, 3)


async def test_limits_found_while_the_disk_was_full_are_on_record_as_soon_as_it_is_well_again(node):
    async with node(lease_max_s=60) as n:
        state = n.folder / "state"
        state.write_text("in the way")
        n.start()
        await n.report()
        await n.lead(LIMITS_W, lease_s=60.0)
        assert n.limits_w() == list(LIMITS_W)  # a disk keeps no limit from being lowered
        assert n.logged().count("found limits not on disk") == 1
        state.unlink()
        file = state / "found-limits.jsonl"
        await n.until(lambda: file.exists() and file.read_text().count("\n") == 4)
        assert [json.loads(line)["limit_w"] for line in file.read_text().splitlines()] == [700.0] * 4


async def test_a_lost_gpu_has_a_fault_and_the_others_obey(node):
    async with node() as n:
        n.start()
        await n.report()
        n.memory.gpus["forced_error"][1] = gpu_firmware.GPU_IS_LOST
        await n.report(lambda report: "fallen off the bus" in report.gpus[1].fault)
        n.order(LIMITS_W)
        report = await n.report(lambda report: report.seq == 1)
        assert [gpu.limit_w for gpu in report.gpus] == [600.0, None, 500.0, 450.0]
        assert report.gpus[1].power_w is None
        n.memory.gpus["forced_error"][1] = 0
        await n.until(holds(n))  # it comes back and gets what the order says
        await n.report(lambda report: report.gpus[1].fault == "")


async def test_a_gpu_lost_before_the_start_counts_with_the_widest_limits(node):
    async with node() as n:
        n.memory.gpus["forced_error"][0] = gpu_firmware.GPU_IS_LOST
        n.start()
        report = await n.report()
        lost = report.gpus[0]
        assert (lost.power_w, lost.limit_w, lost.min_w, lost.max_w) == (
            None,
            None,
            200.0,
            700.0,
        )
        n.order(LIMITS_W)
        await n.until(holds(n, (700.0, *LIMITS_W[1:])))
        file = n.folder / "state" / "found-limits.jsonl"
        assert file.read_text().count("\n") == 3
        n.memory.gpus["forced_error"][0] = 0
        await n.until(holds(n))
        assert (
            json.loads(file.read_text().splitlines()[-1])["gpu"] == 0
        )  # recorded before its own first write


async def test_a_blocked_gpu_is_left_alone_until_its_call_returns(node):
    async with node(call_deadline_s=2.0) as n:
        n.start()
        await n.report()
        n.memory.gpus["blocked"][0] = gpu_firmware.BLOCK_READS | gpu_firmware.BLOCK_WRITES
        await n.report(lambda report: "has not returned" in report.gpus[0].fault)
        began_s = time.monotonic()
        n.order(LIMITS_W)
        report = await n.report(lambda report: report.seq == 1)
        assert time.monotonic() - began_s < 1.5  # nobody waits for the stuck one any more
        assert n.limits_w() == [700.0, *LIMITS_W[1:]]
        assert (report.gpus[0].power_w, report.gpus[0].limit_w) == (None, None)
        assert report.gpus[1].power_w is not None
        n.memory.gpus["blocked"][0] = 0
        await n.until(holds(n))
        await n.report(lambda report: report.gpus[0].fault == "")


async def test_a_blocked_write_stops_neither_the_other_gpus_nor_the_reports(node):
    async with node() as n:
        n.start()
        await n.report()
        n.memory.gpus["blocked"][0] = gpu_firmware.BLOCK_WRITES
        n.order(LIMITS_W)
        await n.until(lambda: n.limits_w()[1:] == list(LIMITS_W[1:]), within_s=1.0)
        report = await n.report(lambda report: report.seq == 1)
        assert "has not returned" in report.gpus[0].fault
        assert report.gpus[0].limit_w is None  # the write may still land
        n.memory.gpus["blocked"][0] = 0
        await n.until(holds(n))
        await n.report(lambda report: report.gpus[0].fault == "", within_s=1.0)  # the late write did its work


async def test_limits_that_somebody_resets_are_written_again_within_a_beat(node):
    async with node() as n:
        n.start()
        await n.report()
        n.order(LIMITS_W)
        await n.report(lambda report: report.seq == 1)
        n.memory.gpus["energy_mj"] = 5_000_000
        await n.report()
        await n.report()
        n.memory.reset_limits()  # a driver reload
        await n.until(holds(n), within_s=1.0)  # 20 reports
        report = await n.report(lambda report: report.gpus[0].notice != "")
        assert "had become 700 W instead of 600 W and was written again" in report.gpus[0].notice
        assert report.gpus[0].fault == ""  # put right
        await n.report(lambda report: report.gpus[0].notice == "")


async def test_a_gpu_that_ignores_its_limit_is_reported_with_what_it_really_holds(node):
    async with node() as n:
        n.memory.gpus["ignores_writes"][3] = 1
        n.start()
        await n.report()
        n.order(LIMITS_W)
        report = await n.report(lambda report: report.seq == 1)
        assert report.gpus[3].limit_w == 700.0
        assert "450 W were written, the driver shows 700 W" in report.gpus[3].fault
        n.memory.gpus["ignores_writes"][3] = 0
        await n.until(holds(n))


async def test_a_gpu_that_refuses_a_limit_is_asked_again_but_not_at_every_beat(node):
    async with node() as n:
        n.start()
        await n.report()
        n.memory.gpus["write_error"][3] = gpu_firmware.NO_PERMISSION
        n.order(LIMITS_W)
        report = await n.report(lambda report: report.seq == 1)
        assert "grant CAP_SYS_ADMIN" in report.gpus[3].fault
        for _ in range(10):
            await n.report()
        assert n.memory.gpus["refused_count"][3] == 1
        await n.until(lambda: n.memory.gpus["refused_count"][3] == 2, within_s=1.5)
        n.memory.gpus["write_error"][3] = 0
        await n.until(holds(n))


async def test_a_driver_that_blocks_every_call_does_not_silence_the_node(node):
    async with node() as n:
        n.start()
        await n.report()
        n.memory.header["serialised"][0] = 1  # as behind the real driver's lock
        n.memory.gpus["blocked"][0] = gpu_firmware.BLOCK_READS
        n.order(LIMITS_W, lease_s=1.0)
        await n.report(lambda report: all(gpu.fault for gpu in report.gpus))
        await n.report(lambda report: report.mode == "fallback")
        n.memory.gpus["blocked"][0] = 0
        await n.until(lambda: max(n.limits_w()) == 300.0)
        await n.report(lambda report: not any(gpu.fault for gpu in report.gpus))


async def test_a_limit_out_of_range_becomes_the_nearest_the_device_allows(node):
    async with node() as n:
        n.start()
        await n.report()
        n.order((100.0, 900.0, 500.0, 450.0))
        report = await n.report(lambda report: report.seq == 1)
        assert [gpu.limit_w for gpu in report.gpus] == [200.0, 700.0, 500.0, 450.0]
        assert not any(gpu.fault for gpu in report.gpus)


async def test_without_permission_it_refuses_to_start_and_says_what_to_grant(node):
    async with node() as n:
        n.memory.gpus["write_error"] = gpu_firmware.NO_PERMISSION
        assert n.start().wait(10) == 2
        assert "AmbientCapabilities=CAP_SYS_ADMIN" in n.logged()
        assert "--observe" in n.logged()


async def test_an_observer_needs_no_permission_and_never_writes(node):
    async with node() as n:
        n.memory.gpus["write_error"] = gpu_firmware.NO_PERMISSION
        n.start("--observe")
        await n.report()
        n.order(LIMITS_W)
        report = await n.report(lambda report: report.echo_sent_at_s >= 0)
        assert (report.mode, report.seq) == ("observe", 0)
        assert list(n.memory.gpus["refused_count"]) == [0] * 4
        assert not (n.folder / "state").exists()


async def test_nobody_observes_beside_an_agent_whose_place_at_the_broker_he_would_take(node):
    async with node() as n:
        agent, log = n.start(), n.log
        await n.report()
        assert n.start("--observe").wait(10) == 2
        assert "an agent of this node is running" in n.logged()
        n.log.close()
        n.process, n.log = agent, log
        n.order(LIMITS_W)
        await n.report(lambda report: report.mode == "leased")


async def test_a_missing_library_is_waited_for(node, tmp_path):
    async with node() as n:
        empty = tmp_path / "driver"
        empty.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.settimeout(10)
            n.start(LD_LIBRARY_PATH=str(empty), NOTIFY_SOCKET=str(tmp_path / "notify"))
            waiting = systemd.recv(4096).decode()
            assert "STATUS=waiting for the driver" in waiting
            assert "EXTEND_TIMEOUT_USEC=" in waiting
            assert "install the NVIDIA driver" in n.logged()
            assert n.process.poll() is None
            (empty / "libnvidia-ml.so.1").symlink_to(n.library / "libnvidia-ml.so.1")
            assert systemd.recv(4096) == b"READY=1"
            assert systemd.recv(4096).startswith(b"WATCHDOG=1\nSTATUS=waiting, 4 GPUs, 0 with a fault")


async def test_a_driver_whose_opening_never_returns_ends_the_process_for_a_new_one(tmp_path, monkeypatch):
    """The call holds the library: in this process nothing else would ever open it."""
    released, called, said = threading.Event(), [], []

    class Hangs:
        def __init__(self) -> None:
            called.append(1)
            released.wait(30)

    monkeypatch.setattr(service, "Nvml", Hangs)
    monkeypatch.setattr(service, "DRIVER_OPEN_MAX_S", 0.05)
    monkeypatch.setattr(service, "DRIVER_RETRY_S", 0.02)
    monkeypatch.setattr(service, "DRIVER_HUNG_MAX_S", 0.3)
    monkeypatch.setattr(service, "notify", said.append)
    config = NodeConfig(
        block="b", node="n", mqtt={"url": "mqtt://127.0.0.1"}, fallback_w=300, state_dir=tmp_path
    )
    with capture_logs() as logged:
        code = await service.run([config], lambda driver: [driver], observe=True)
    released.set()
    assert (code, called) == (1, [1])
    assert "has not returned for 0 s, a new process must try" in logged[-1]["why"]
    assert [line["event"] for line in logged[:-1]] == ["driver not usable, trying again"]  # once
    assert said[0].startswith("STATUS=waiting for the driver")
    assert said[-1] == "STOPPING=1"


async def test_a_driver_that_goes_away_ends_the_process_for_a_new_one(node):
    async with node() as n:
        n.start()
        await n.report()
        n.memory.header["driver_error"][0] = gpu_firmware.DRIVER_NOT_LOADED
        assert n.process.wait(10) == 1
        assert "the driver is gone" in n.logged()


async def test_a_broken_configuration_lists_all_its_errors_and_ends(node):
    async with node(fallback_w=-1, report_period_s="fast", colour="red") as n:
        assert n.start().wait(10) == 2
        for line in ("fallback_w[0]: ", "report_period_s: ", "colour: no such setting; remove it"):
            assert f"node.yaml: {line}" in n.logged()
