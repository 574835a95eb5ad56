"""SunSpec by discovery, against pysunspec2: its devices encode, our profiles decode.

pysunspec2 is the SunSpec Alliance's own library. Only its definitions are shared with the code under test; how it
lays models out, counts groups, scales and marks what is not implemented is its own.
"""

import asyncio
import json
import math
import random
import struct
from importlib.resources import files

import pytest
import sunspec2.file.client as oracle
import sunspec2.mdef as mdef
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import codec, sunspec
from protocols.profile import ProfileError, complaints, load_profile
from protocols.reading import DeviceError
from protocols.sunspec import names
from protocols.sunspec.definitions import definition

MODELS = (
    1, 101, 102, 103, 111, 112, 113, 120, 121, 122, 123, 124, 201, 202, 203, 204, 211, 212, 213, 214,
    701, 702, 703, 704, 713, 714, 715, 802, 803, 804,
)  # fmt: skip
COUNTS = {"NPrt": 3, "NStr": 2, "NMod": 4}
INTEGERS = {
    "int16": (-32_767, 32_767), "uint16": (0, 65_534), "count": (0, 3), "acc16": (1, 65_535),
    "int32": (-(2**31) + 1, 2**31 - 1), "uint32": (0, 2**32 - 2), "acc32": (1, 2**32 - 1),
    "int64": (-(2**52), 2**52), "uint64": (0, 2**52), "acc64": (1, 2**52),
    "bitfield16": (0, 0x7FFF), "bitfield32": (0, 0x7FFF_FFFF), "sunssf": (-4, 4),
}  # fmt: skip


class RefusedError(DeviceError):
    """As the Modbus client raises it."""

    code = 2


class Device:
    """Registers of a SunSpec device; whatever is not there is refused, and so is a read across a model's edge."""

    def __init__(self, models, base=40_000, end=True):
        self.words = {base + i: word for i, word in enumerate(sunspec.chain.MARKER)}
        self.edges = []
        self.reads = []
        self.silent_at = None
        address = base + 2
        for registers in models:
            self.edges.append(address)
            self.words.update(enumerate(registers, start=address))
            address += len(registers)
        self.edges.append(address)
        if end:
            self.words.update({address: 0xFFFF, address + 1: 0})

    async def read(self, address, count):
        self.reads.append((address, count))
        if self.silent_at == address:
            raise DeviceError("no answer")
        wanted = range(address, address + count)
        if not all(a in self.words for a in wanted) or any(edge in wanted[1:] for edge in self.edges):
            raise RefusedError(f"illegal data address {address}")
        return [self.words[a] for a in wanted]

    def values(self, profile):
        """All values, read block by block as a poll would."""
        values = {}
        for block in profile.blocks:
            points = [p for p in profile.points.values() if block.holds(p)]
            count = block.last - block.first + 1
            words = [self.words[a] for a in range(block.first, block.last + 1)]
            values.update(codec.SpanDecoder(points, block.first, count).values(words))
        return values


def registers(model):
    data = model.get_mb()
    return list(struct.unpack(f">{len(data) // 2}H", data))


def some(point, rng):
    """A value that the type can carry and that is not its mark for 'not implemented'."""
    kind = point["type"]
    if point["name"] in COUNTS:
        return COUNTS[point["name"]]
    if kind.startswith("enum"):
        return rng.choice([s["value"] for s in point["symbols"]]) if point.get("symbols") else 7
    if kind == "string":
        return "".join(rng.choices("ABCxyz019-", k=rng.randint(1, 2 * point["size"])))
    if kind == "float32":
        return struct.unpack(">f", struct.pack(">f", rng.uniform(-1e6, 1e6)))[0]
    if kind == "float64":
        return rng.uniform(-1e6, 1e6)
    return rng.randint(*INTEGERS[kind]) if kind in INTEGERS else None


def some_group(group, rng):
    data = {
        p["name"]: some(p, rng)
        for p in group["points"]
        if p["type"] != "pad" and p["name"] not in ("ID", "L")
    }
    for inner in group.get("groups", ()):
        count = inner.get("count")
        if count is None:
            data[inner["name"]] = some_group(inner, rng)
        elif count != 0:
            data[inner["name"]] = [some_group(inner, rng) for _ in range(data[count])]
    return data


def made(model_id, data):
    return oracle.FileClientModel(model_id=model_id, data={"ID": model_id, **data})


def flat(group, path=()):
    """(path, point) of everything in an oracle's group, in its order."""
    for name, point in group.points.items():
        if path or name not in ("ID", "L"):
            yield (*path, name), point
    for name, inner in group.groups.items():
        if isinstance(inner, list):
            for i, one in enumerate(inner, start=1):
                yield from flat(one, (*path, name, str(i)))
        else:
            yield from flat(inner, (*path, name))


def common(**changes):
    return made(1, {"Mn": "Acme", "Md": "M1", "Opt": "o", "Vr": "1", "SN": "7", "DA": 1, **changes})


async def discovered(*models, **how):
    device = Device([registers(m) if hasattr(m, "get_mb") else m for m in models], **how)
    return await sunspec.discover(device.read, name="d"), device


@pytest.mark.parametrize("model_id", MODELS)
@pytest.mark.parametrize("seed", range(3))
async def test_every_value_of_a_model_is_what_the_alliance_own_library_makes_of_it(model_id, seed):
    """Layout, types, scale factors and repeating groups agree with pysunspec2 point by point."""
    group = mdef.from_json_str(json.dumps({"id": model_id, "group": definition(model_id)}))["group"]
    model = made(model_id, some_group(group, random.Random(f"{model_id}/{seed}")))
    assert not model.error_info
    profile, device = await discovered(*([model] if model_id == 1 else [common(), model]))
    values = device.values(profile)
    compared = 0
    mine = {p.address: p for p in profile.points.values()}
    base = next(b.first for b in profile.blocks if device.words[b.first] == model_id and b.first >= 40_002)
    for path, point in flat(model):
        kind = point.pdef["type"]
        if kind not in names.TYPES:
            assert base + point.offset not in mine, path
            continue
        ours = mine[base + point.offset]
        expected = point.cvalue
        _, factor = names.unit_of(point.pdef)
        got = values[ours.name]
        if kind == "string":
            assert got == expected.rstrip("\0"), path
        elif expected is None:
            assert got is None, path
        else:
            assert got == pytest.approx(expected * factor, rel=1e-9, abs=1e-12), path
        compared += 1
    assert compared == sum(p.offset is not None and p.pdef["type"] in names.TYPES for _, p in flat(model))
    assert not profile.provenance.note


@pytest.mark.parametrize("model_id", MODELS)
async def test_what_a_device_does_not_implement_has_no_value(model_id):
    """pysunspec2 fills a model with its marks for 'not implemented'; nothing of it may look like a number."""
    model = oracle.FileClientModel(model_id=model_id, data={"ID": model_id, **COUNTS})
    profile, device = await discovered(*([model] if model_id == 1 else [common(), model]))
    prefix = f"m{model_id}_"
    counted = [f"{prefix}{names.snake(name)}" for name in COUNTS]
    for name, value in device.values(profile).items():
        if name.startswith(prefix) and name not in counted:
            assert value is None, name


@pytest.mark.parametrize("base", [0, 40_000, 50_000])
async def test_the_map_is_found_at_each_of_its_three_addresses(base):
    profile, device = await discovered(common(), made(713, {"SoC": 55, "Pct_SF": 0}), base=base)
    assert device.values(profile)["m713_state_of_charge_ratio"] == 0.55
    assert profile.points["m1_model"].address == base + 2 + 18


async def test_the_devices_that_come_with_the_alliance_library_are_understood():
    for file in ("device_1547.json", "inverter_123.json"):
        text = (files("sunspec2") / "tests" / "test_data" / file).read_text(encoding="utf-8")
        listed = [m for m in json.loads(text)["models"] if m["ID"] != 0xFFFF]
        models = [oracle.FileClientModel(model_id=m["ID"], data=m) for m in listed]
        profile, device = await discovered(*models)
        values = device.values(profile)
        assert values["m1_manufacturer"] == models[0].points["Mn"].value.rstrip("\0")
        assert not list(complaints.of_profile(profile))
        for model in models:
            if model.model_id in (103, 701):
                assert values[f"m{model.model_id}_power_w"] == pytest.approx(model.points["W"].cvalue)


async def test_a_discovered_profile_would_pass_as_a_file_and_carries_its_worked_examples():
    profile, _ = await discovered(common(), made(203, {}), made(704, {}), made(715, {}))
    assert not list(complaints.of_profile(profile))
    assert not [text for point in profile.points.values() for text in complaints.of_point(point)]
    assert {e.value for e in profile.examples} >= {"Acme", "M1", "7"}
    assert profile.identity[0].accepts(float(0x53756E53))
    assert profile.identity[1].accepts("M1")
    assert not profile.identity[1].accepts("M2")


async def test_no_read_crosses_the_edge_of_a_model():
    """Devices refuse reads across models; the fake does, and the profile's blocks end where models end."""
    profile, device = await discovered(common(), made(203, {}), made(714, {"NPrt": 3}))
    for block in profile.blocks[1:]:
        assert block.first in device.edges
        assert block.last + 1 in device.edges
    assert all(count <= 125 for _, count in device.reads)


async def test_scale_factors_are_read_as_often_as_what_rests_on_them():
    """Inverters change their scale factors while they run: a factor read once would be wrong by ten."""
    profile, _ = await discovered(common(), made(103, {}), made(704, {}))
    for point in profile.points.values():
        if point.scale_factor:
            order = ("fast", "slow", "once")
            factor = profile.points[point.scale_factor]
            assert order.index(factor.poll) <= order.index(point.poll)
    assert profile.points["m103_w_sf"].poll == "fast"


async def test_two_models_of_one_number_have_names_of_their_own():
    profile, device = await discovered(
        common(), made(203, {"W": 100, "W_SF": 0}), made(203, {"W": 200, "W_SF": 1})
    )
    values = device.values(profile)
    assert values["m203_power_w"] == 100
    assert values["m203_2_power_w"] == 2000


@pytest.mark.parametrize(
    ("name", "unit", "ours"),
    [
        ("W", "W", "m203_power_w"),
        ("WphA", "W", "m203_power_l1_w"),
        ("PhVphBC", "V", "m203_voltage_l2_l3_v"),
        ("PPVphCA", "V", "m203_voltage_l3_l1_v"),
        ("VL1L2", "V", "m203_voltage_l1_l2_v"),
        ("TotWhImpPhC", "Wh", "m203_energy_imported_l3_wh"),
        ("TotVArhImpQ1phA", "varh", "m203_reactive_energy_imported_q1_l1_varh"),
        ("SoC", "ratio", "m203_state_of_charge_ratio"),
        ("WMaxLimPct_SF", "count", "m203_w_max_lim_pct_sf"),
        ("WMaxLimPctRvrtTms", "s", "m203_w_max_lim_pct_rvrt_tms_s"),
        ("StVnd", "count", "m203_st_vnd"),
        ("Cell_V", "enum", "m203_cell_v_state"),
    ],
)
def test_names_follow_the_rule(name, unit, ours):
    assert names.point_name("m203", (), name, unit) == ours


def test_no_model_that_the_definitions_know_gives_two_points_one_name_or_a_name_a_wrong_unit():
    folder = files("sunspec2") / "models" / "json"
    ids = [
        int(f.name[6:-5])
        for f in folder.iterdir()
        if f.name.startswith("model_") and f.name.endswith(".json")
    ]
    assert len(ids) > 100
    for model_id in ids:
        group = definition(model_id)
        places, _ = sunspec.lay_out(group, 1500, [2] * 1500)
        points = list(sunspec.points_of(model_id, f"m{model_id}", 0, places).values())
        assert len({p.name for p in points}) == len(points), model_id
        assert not [(p.name, text) for p in points for text in complaints.of_point(p)]


# ---- what devices do wrong ----


async def test_an_unknown_model_is_skipped_by_its_length_and_named():
    profile, device = await discovered(common(), [64_999, 3, 1, 2, 3], made(713, {"SoC": 50, "Pct_SF": 0}))
    assert device.values(profile)["m713_state_of_charge_ratio"] == 0.5
    assert "model 64999 is not known; skipped" in profile.provenance.note


async def test_a_model_shorter_than_its_definition_gives_what_fits():
    words = registers(made(103, {"A": 5, "A_SF": 0, "W": 100, "W_SF": 0}))[:30]
    words[1] = 28
    profile, device = await discovered(common(), words)
    assert device.values(profile)["m103_power_w"] == 100
    assert "m103_state" not in profile.points
    assert "28 registers long where 50 are defined; took what fits" in profile.provenance.note


async def test_a_model_longer_than_its_definition_is_read_as_far_as_it_is_defined():
    words = registers(made(713, {"SoC": 50, "Pct_SF": 0}))
    words = [words[0], words[1] + 4, *words[2:], 1, 2, 3, 4]
    profile, device = await discovered(common(), words, made(103, {"W": 7, "W_SF": 0}))
    assert device.values(profile)["m713_state_of_charge_ratio"] == 0.5
    assert device.values(profile)["m103_power_w"] == 7
    assert "4 registers longer than defined" in profile.provenance.note


async def test_the_common_model_of_65_registers_is_no_fault():
    words = registers(common())[:-1]
    words[1] = 65
    profile, device = await discovered(words, made(713, {"SoC": 1, "Pct_SF": 0}))
    assert not profile.provenance.note
    assert device.values(profile)["m1_serial_number"] == "7"


async def test_groups_repeat_as_often_as_their_count_says_but_never_without_bound():
    words = registers(made(714, {"NPrt": 1}))
    words[4] = 5_000  # NPrt
    profile, _ = await discovered(common(), words)
    assert "group Prt 5000 times; took the first 64" in profile.provenance.note
    assert [n for n in profile.points if n.startswith("m714_prt_1_")]
    assert not [n for n in profile.points if n.startswith("m714_prt_2_")]  # the length has room for one


async def test_a_count_that_is_not_implemented_counts_nothing():
    words = registers(made(714, {"NPrt": 1}))
    words[4] = 0xFFFF
    profile, _ = await discovered(common(), words)
    assert not [n for n in profile.points if n.startswith("m714_prt_1_")]
    assert "times" not in profile.provenance.note


async def test_a_counter_that_says_zero_is_not_implemented():
    """SunSpec: the accumulators' mark for 'not implemented' is 0."""
    profile, device = await discovered(common(), made(203, {"TotWhExp": 0, "TotWhImp": 7, "TotWh_SF": 0}))
    values = device.values(profile)
    assert values["m203_energy_exported_wh"] is None
    assert values["m203_energy_imported_wh"] == 7


async def test_a_chain_without_its_end_mark_ends_where_the_device_refuses():
    profile, _ = await discovered(common(), made(713, {}), end=False)
    assert "without its end mark" in profile.provenance.note
    assert "m713_state_of_charge_ratio" in profile.points


async def test_an_endless_chain_has_an_end():
    device = Device([registers(common()), *([64_999, 0] for _ in range(300))])
    profile = await sunspec.discover(device.read, name="d")
    assert "took the first 100 models" in profile.provenance.note
    assert len(device.reads) < 120


async def test_a_model_that_claims_more_registers_than_there_are_is_left_out():
    profile, _ = await discovered(common(), [103, 60_000, *([0] * 10)])
    assert "claims 60000 registers; left out" in profile.provenance.note
    assert not [n for n in profile.points if n.startswith("m103")]


async def test_a_device_that_falls_silent_gives_no_half_profile():
    """A chain cut off by a lost answer would look like a smaller device."""
    device = Device([registers(common()), registers(made(103, {}))])
    for address in (40_000, 40_002, device.edges[1], device.edges[2]):
        device.silent_at = address
        with pytest.raises(DeviceError, match="no answer"):
            await sunspec.discover(device.read, name="d")


async def test_a_device_without_a_map_is_refused_with_what_was_tried():
    async def read(address, count):
        if address == 50_000:
            raise RefusedError("illegal data address")
        return [1] * count

    with pytest.raises(
        ProfileError, match=r"d: no SunSpec map .*40000 says 0x0001 0x0001, 50000 refused, 0 says"
    ):
        await sunspec.discover(read, name="d")


async def test_a_device_of_unknown_models_alone_is_refused():
    device = Device([[64_999, 1, 0]])
    with pytest.raises(ProfileError, match="models 64999, none of them known"):
        await sunspec.discover(device.read, name="d")


async def test_an_answer_of_the_wrong_length_is_no_answer():
    async def read(address, count):
        return [0x5375] * (count - 1)

    with pytest.raises(DeviceError, match="1 registers where 2 were asked for"):
        await sunspec.discover(read, name="d")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from((1, 103, 160, 203, 701, 704, 705, 714, 715, 802, 804, 64_999)), st.integers(0, 0xFFFF)),
            st.one_of(st.integers(0, 200), st.sampled_from((0xFFFF, 40_000))),
            st.integers(0, 2**32),
        ),
        max_size=8,
    ),
)  # fmt: skip
def test_whatever_a_device_says_of_itself_makes_a_sound_profile_or_a_sentence(chain):
    """Any ids, any lengths, any content: no other exception, bounded reads, and nothing but numbers in range."""
    models = []
    for model_id, length, seed in chain:
        rng = random.Random(seed)
        held = min(length, 400)  # a device that claims more than it holds refuses the rest
        models.append(
            [model_id, length, *(rng.choice((0, 1, 3, 0xFFFF, rng.getrandbits(16))) for _ in range(held))]
        )
    device = Device(models)
    try:
        profile = asyncio.run(sunspec.discover(device.read, name="d"))
    except (ProfileError, DeviceError):
        return
    assert len(device.reads) < 1000
    assert not list(complaints.of_profile(profile))
    for block in profile.blocks:
        held = [device.words.get(a) for a in range(block.first, block.last + 1)]
        if None in held:
            continue
        points = [p for p in profile.points.values() if block.holds(p)]
        for name, value in codec.SpanDecoder(points, block.first, len(held)).values(held).items():
            point = profile.points[name]
            if isinstance(value, float):
                assert math.isfinite(value)
                assert not point.enum or value in point.enum


# ---- commanding ----


async def test_a_limit_with_a_reversion_timer_is_armed_so_that_the_plant_falls_back_by_itself():
    profile, _ = await discovered(
        common(), made(704, {"WMaxLimPctEna": 0, "WMaxLimPctRvrtTms": 0}),
        made(715, {"LocRemCtl": 0, "DERHb": 1, "ControllerHb": 0}),
    )  # fmt: skip
    control = profile.control
    assert control.reversion.timer_point == "m704_w_max_lim_pct_rvrt_tms_s"
    assert [(s.point, s.value) for s in control.arm] == [("m704_w_max_lim_pct_ena", 1)]
    assert control.release == ()  # the timer withdraws it; the enable may carry somebody else's limit
    assert control.heartbeat.point == "m715_controller_hb"
    assert control.requires[0].accepts(0.0)
    assert not control.requires[0].accepts(1.0)  # LOCAL
    for name in (control.heartbeat.point, control.reversion.timer_point, control.arm[0].point):
        assert profile.points[name].writable
    assert not profile.points["m715_controller_hb"].read_back


async def test_a_limit_without_a_timer_is_released_by_its_enable():
    profile, _ = await discovered(common(), made(704, {"WMaxLimPctEna": 0}))
    assert profile.control.reversion is None
    assert [(s.point, s.value) for s in profile.control.release] == [("m704_w_max_lim_pct_ena", 0)]


async def test_a_battery_has_its_heartbeat_and_its_switch():
    profile, _ = await discovered(common(), made(802, {"LocRemCtl": 0, "CtrlHb": 4}))
    assert profile.control.heartbeat.point == "m802_ctrl_hb"
    assert profile.control.heartbeat.wraps_at < 0xFFFF  # which would say 'not implemented'
    assert profile.control.requires[0].point == "m802_loc_rem_ctl"


async def test_what_is_not_implemented_is_not_commanded():
    profile, _ = await discovered(common(), made(704, {}), made(715, {}), made(203, {}))
    assert profile.control is None


async def test_a_limit_is_written_as_the_alliance_library_reads_it():
    model = made(704, {"WMaxLimPctEna": 0, "WMaxLimPctRvrtTms": 0, "WMaxLimPct_SF": -1})
    profile, device = await discovered(common(), model)
    point = profile.points["m704_w_max_lim_pct_ratio"]
    words = codec.encode(point, 0.625, device.values(profile))
    at = point.address - (40_002 + 68)
    data = bytearray(model.get_mb())
    data[2 * at : 2 * at + 2] = struct.pack(">H", *words)
    model.set_mb(bytes(data))
    assert model.points["WMaxLimPct"].cvalue == 62.5
    with pytest.raises(codec.CodecError, match="scale factor m704_w_max_lim_pct_sf is not known"):
        codec.encode(point, 0.625)


def test_sunspec_is_no_file():
    with pytest.raises(ProfileError, match="no built-in profile 'sunspec'"):
        load_profile("sunspec")


def test_a_factor_out_of_its_range_makes_no_value():
    places, _ = sunspec.lay_out(definition(203), 105)
    points = sunspec.points_of(203, "m203", 0, places)
    for factor, value in ((0, 5.0), (-2, 0.05), (10, 5e10), (11, None), (0x8000 - 0x10000, None)):
        words = [0] * 107
        words[points["W"].address] = 5
        words[points["W_SF"].address] = factor & 0xFFFF
        got = codec.SpanDecoder([points["W"], points["W_SF"]], 0, 107).values(words)["m203_power_w"]
        assert (got is None) if value is None else math.isclose(got, value)


async def test_a_chain_without_measure_is_cut():
    """A hundred batteries in one device: possible for a standard, not for a device that is one."""
    link = [802, 62, *[0] * 62]
    words = [*sunspec.chain.MARKER, *link * 100, 0xFFFF, 0]

    async def read(address: int, count: int) -> list[int]:
        if not 40_000 <= address < 40_000 + len(words):
            raise RefusedError("nothing there")
        return words[address - 40_000 :][:count]

    profile = await sunspec.discover(read, name="hostile")
    assert len(profile.points) < sunspec.chain.POINTS_MAX + 100
    assert f"{sunspec.chain.POINTS_MAX} points are enough" in profile.provenance.note
