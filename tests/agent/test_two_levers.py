"""Clock ceilings, modules, smoothing, profiles and other writers, on real driver calls."""

import asyncio
import json
import signal

from controller.agent.contest import REASSERTS_PER_MINUTE_MAX
from firmware_sim import gpu_firmware
from protocols.agent_link import Level

LIMITS_W = (600.0, 550.0, 500.0, 450.0)
CLOCKS_MHZ = (1200, 0, 1410, 0)


async def test_a_ceiling_is_obeyed_with_the_limit_and_taken_away_when_the_order_says_none(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, CLOCKS_MHZ)
        assert n.ceilings_mhz() == [1200, None, 1410, None]
        report = await n.report()
        assert [gpu.ceiling_mhz for gpu in report.gpus] == [1200, 0, 1410, 0]
        await n.lead(LIMITS_W, (900, 1000, 0, 0))
        assert n.ceilings_mhz() == [900, 990, None, None]  # rounded down to a clock that it has
        await n.lead(LIMITS_W)
        assert n.ceilings_mhz() == [None] * 4
        assert n.memory.gpus["clock_write_count"][3] == 0  # never ours, never touched


async def test_a_lapse_ramps_the_limits_and_keeps_the_ceilings(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, CLOCKS_MHZ, lease_s=0.6)
        await n.until(lambda: n.limits_w() == [300.0] * 4)
        assert n.ceilings_mhz() == [1200, None, 1410, None]
        n.order(LIMITS_W, newer=False)
        await n.report(lambda report: report.mode == "leased")
        assert n.ceilings_mhz() == [1200, None, 1410, None]  # an order that knows nothing new raises none
        await n.lead(LIMITS_W)
        assert n.ceilings_mhz() == [None] * 4


async def test_the_lock_of_the_site_is_a_ceiling_of_ours_too_and_comes_back_on_release(node):
    async with node(clock_lock_mhz=[600, 1305]) as n:
        n.memory.gpus["locked_clock_min_mhz"], n.memory.gpus["locked_clock_max_mhz"] = 600, 1305
        n.start()
        await n.report()
        await n.lead(LIMITS_W, (1500, 900, 0, 0))
        assert n.ceilings_mhz() == [1305, 900, 1305, 1305]
        await n.lead(LIMITS_W)
        assert n.ceilings_mhz() == [1305] * 4
        assert list(n.memory.gpus["locked_clock_min_mhz"]) == [600] * 4
        assert list(n.memory.gpus["clock_write_count"])[2:] == [0, 0]
        assert n.facts[-1].gpus[0].locked_mhz == (600, 1305)


async def test_a_driver_reload_forgets_limits_and_ceilings_and_both_are_back_within_a_beat(node):
    async with node() as n:
        n.memory.gpus["energy_mj"] = 5_000_000
        n.start()
        await n.report()
        await n.lead(LIMITS_W, CLOCKS_MHZ)
        await n.report()
        n.memory.reset_limits()
        await n.until(
            lambda: n.limits_w() == list(LIMITS_W) and n.ceilings_mhz() == [1200, None, 1410, None],
            within_s=1.0,
        )


async def test_a_ceiling_is_on_disk_when_it_is_set_and_not_while_a_table_has_it_in_store(node):
    async with node() as n:
        n.start()
        await n.report()
        file = n.folder / "state" / "found-limits.jsonl"
        await n.lead(LIMITS_W)
        await n.table(Level(limits_w=(400.0,) * 4), Level(limits_w=(300.0,) * 4, clocks_mhz=(1200,) * 4))
        await n.report()
        assert "ceiling_mhz" not in file.read_text()
        assert list(n.memory.gpus["clock_write_count"]) == [0] * 4
        seq = n.call(1).seq
        await n.report(lambda report: report.seq == seq)
        assert (n.limits_w(), n.ceilings_mhz()) == ([300.0] * 4, [1200] * 4)
        assert file.read_text().count("ceiling_mhz") == 4


async def test_a_ceiling_that_a_dead_agent_left_stays_until_an_order_that_knows(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, CLOCKS_MHZ)
        n.stop(signal.SIGKILL)
        boot = n.newest.boot
        n.start()
        await n.report(lambda report: report.boot != boot)
        n.order(LIMITS_W, lease_s=0.3)  # its first order raises nothing, and then it lapses
        await n.report(lambda report: report.boot != boot and report.mode == "fallback")
        assert n.ceilings_mhz() == [1200, None, 1410, None]
        await n.lead(LIMITS_W)
        assert n.ceilings_mhz() == [None] * 4


async def test_a_gpu_without_a_clock_lever_says_so_and_is_not_asked_again(node):
    async with node() as n:
        n.memory.gpus["unsupported_calls"][0] = gpu_firmware.NO_CLOCK_LOCK
        n.start()
        await n.report()
        await n.lead(LIMITS_W, (1200,) * 4)
        report = await n.report()
        assert "does not have it" in report.gpus[0].fault
        assert [gpu.ceiling_mhz for gpu in report.gpus] == [0, 1200, 1200, 1200]
        refused = int(n.memory.gpus["refused_count"][0])
        for _ in range(5):
            await n.report()
        assert n.memory.gpus["refused_count"][0] == refused
        await n.lead(LIMITS_W)
        assert n.newest.gpus[0].fault == ""  # nothing is asked of that lever any more


async def test_a_board_that_knows_only_its_module_is_limited_as_one_and_a_refusal_is_heard(node):
    async with node(gpus={"count": 4, "per_module": 1}) as n:
        n.memory.gpus["power_scopes"] = gpu_firmware.MODULE_SCOPE
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        assert n.limits_w() == list(LIMITS_W)
        assert [gpu.module for gpu in n.facts[-1].gpus] == [0, 1, 2, 3]
        n.memory.gpus["write_error"][1] = gpu_firmware.NO_PERMISSION
        n.order((500.0,) * 4)
        report = await n.report(lambda report: report.gpus[1].fault != "")
        assert "grant CAP_SYS_ADMIN" in report.gpus[1].fault


async def test_a_limit_beyond_the_driver_is_told_with_what_it_costs(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        n.memory.gpus["oob_limit_mw"][2] = 450_000
        report = await n.report(lambda report: report.gpus[2].notice != "")
        assert report.gpus[2].notice.startswith("is held at 450 W by someone else: 50 W below ours")
        assert report.gpus[2].fault == ""


async def test_another_writer_is_corrected_at_once_but_not_fought_for_ever(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W, lease_s=9.0)
        written = int(n.memory.gpus["write_count"][0])

        def meddle() -> bool:
            if n.limits_w()[0] == 600.0:
                n.memory.gpus["requested_mw"][0] = 450_000
            return any("find the other writer" in report.gpus[0].notice for report in n.reports[-3:])

        await n.until(meddle, within_s=8.0)
        assert "is held at 450 W by someone else: 150 W below ours" in n.newest.gpus[0].notice
        await n.until(lambda: n.newest.gpus[0].fault == "")  # the last write may have been undone at once
        corrections = int(n.memory.gpus["write_count"][0]) - written
        # a write that is undone before it is read back counts twice
        assert REASSERTS_PER_MINUTE_MAX / 2 <= corrections <= REASSERTS_PER_MINUTE_MAX
        await asyncio.sleep(0.5)
        assert int(n.memory.gpus["write_count"][0]) - written == corrections
        assert n.limits_w() == [450.0, *LIMITS_W[1:]]


async def test_another_writer_above_ours_is_lowered_again_and_again(node):
    async with node() as n:
        n.start()
        await n.report()
        await n.lead(LIMITS_W)
        n.memory.gpus["foreign_mw"][3] = 650_000
        n.memory.gpus["requested_mw"][3] = 650_000
        report = await n.report(lambda report: report.gpus[3].fault != "")
        assert report.gpus[3].limit_w == 650.0  # what it really holds
        assert "is there another writer?" in report.gpus[3].fault
        n.memory.gpus["foreign_mw"][3] = gpu_firmware.NONE
        await n.until(lambda: n.limits_w() == list(LIMITS_W))


async def test_a_smoothing_floor_above_the_limit_is_told_before_anyone_counts_on_it(node):
    async with node() as n:
        n.memory.add_smoothing(1400.0)
        n.memory.gpus["smoothing_enabled"][1] = 1
        n.memory.gpus["smoothing_privilege"][2] = 0
        n.start()
        report = await n.report()
        assert [gpu.floor_w for gpu in report.gpus] == [
            0.0,
            1259.0,
            None,
            0.0,
        ]  # None: hidden, may be anything
        assert "power smoothing keeps it at 12" in report.gpus[1].notice
        await n.until(lambda: bool(n.facts))
        assert n.facts[-1].gpus[1].smoothing.enabled
        assert n.facts[-1].gpus[1].smoothing.ramp_down_w_per_s == 20.0


async def test_profiles_and_preset_of_node_yaml_are_requested_beside_what_was_found(node):
    async with node(profiles=[6], smoothing={"preset": 2}) as n:
        n.memory.add_smoothing(1400.0)
        n.memory.gpus["profiles_supported"] = 0b1111111
        n.memory.gpus["profiles_requested"] = 0b10
        n.memory.gpus["energy_mj"] = 5_000_000
        n.start()
        await n.until(lambda: list(n.memory.gpus["profiles_requested"]) == [0b1000010] * 4)
        await n.until(lambda: list(n.memory.gpus["smoothing_preset"]) == [2] * 4)
        lines = [
            json.loads(line) for line in (n.folder / "state" / "found-limits.jsonl").read_text().splitlines()
        ]
        settings = [line for line in lines if "asked" in line]
        assert [(line["profiles"], line["asked"], line["preset"]) for line in settings] == [([1], [6], 0)] * 4
        await n.report()
        await n.report()
        n.memory.reset_limits()  # a driver reload forgets them
        await n.until(lambda: list(n.memory.gpus["profiles_requested"]) == [0b1000000] * 4)
        await n.until(lambda: list(n.memory.gpus["smoothing_preset"]) == [2] * 4)


async def test_facts_say_what_the_gpus_are(node):
    async with node(gpus={"count": 4}, fallback_w=[300, 300, 300, 250]) as n:
        n.memory.place("1821324190003", slot=5, tray=3)
        n.memory.gpus["persistence_mode"][0] = 0
        n.memory.gpus["mig_mode"][1] = 1
        n.memory.gpus["requested_mw"] = 650_000
        n.start()
        await n.until(lambda: bool(n.facts))
        gpus = n.facts[-1].gpus
        assert [gpu.uuid for gpu in gpus] == [uuid.decode() for uuid in n.memory.gpus["uuid"]]
        assert [gpu.fallback_w for gpu in gpus] == [300.0, 300.0, 300.0, 250.0]
        assert [gpu.found_w for gpu in gpus] == [650.0] * 4
        assert [gpu.persistence for gpu in gpus] == [False, True, True, True]
        assert [gpu.mig for gpu in gpus] == [False, True, False, False]
        assert (gpus[2].place.chassis_serial, gpus[2].place.slot, gpus[2].place.module_id) == (
            "1821324190003",
            5,
            3,
        )
        assert {gpu.clock_max_mhz for gpu in gpus} == {1980}
        assert "persistence mode is off" in n.logged()
        await n.until(lambda: len(n.facts) > 0 and n.newest.at_s > n.facts[0].at_s + 1.5)
        assert len(n.facts) == 1  # again only when something changes, or after ten seconds
        n.memory.gpus["forced_error"][3] = gpu_firmware.GPU_IS_LOST
        await n.report(lambda report: report.gpus[3].fault != "")
        n.memory.gpus["forced_error"][3] = 0
        n.memory.gpus["mig_mode"][3] = 1
        await n.until(lambda: n.facts[-1].gpus[3].mig)


async def test_a_gpu_whose_work_is_held_down_by_its_limit_says_that_this_is_the_lever(node):
    async with node() as n:
        n.memory.gpus["instant_mw"], n.memory.gpus["clock_mhz"] = 280_000, 1500
        n.memory.gpus["clock_reasons"][0] = 0x4  # power cap
        n.memory.gpus["clock_reasons"][2] = 0x1  # idle
        n.start()
        report = await n.report(lambda report: report.gpus[0].lever != "", within_s=8.0)
        assert [gpu.lever for gpu in report.gpus[:3]] == ["cap", "", "none"], (
            "a clock takes longer to be proven"
        )
        assert [gpu.capped for gpu in report.gpus[:3]] == [True, False, False]
        assert report.gpus[1].clock_mhz == 1500
