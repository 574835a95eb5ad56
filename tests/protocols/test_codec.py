"""Registers to values and back, for every type, order and scale."""

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.codec import FLOATS, TYPES, CodecError, decode, encode, from_raw, is_absent, width
from protocols.profile import Point

ORDERS = st.sampled_from(["big", "little"])


def point(type_="f32", **fields):
    return Point(name="power_w", unit="W", address=0, type=type_, **fields)


@st.composite
def points(draw):
    return point(
        draw(st.sampled_from(sorted(TYPES))),
        word_order=draw(ORDERS),
        byte_order=draw(ORDERS),
        scale=draw(st.sampled_from([1.0, 0.1, 0.001, 1000.0, 2.0**-6, -1.0])),
        offset=draw(st.sampled_from([0.0, -273.15, 100.0])),
    )


@settings(deadline=None)  # the machine is shared
@given(points(), st.data())
def test_every_pattern_of_bits_survives_decode_and_encode(p, data):
    registers = data.draw(st.lists(st.integers(0, 0xFFFF), min_size=width(p), max_size=width(p)))
    value = decode(p, registers)
    if value is None:
        assert p.type in FLOATS
        return
    raw_bits = 53 if p.type in ("u64", "i64") else 32
    back = decode(p, encode(p, value)) if abs((value - p.offset) / p.scale) < 2**raw_bits else value
    assert back is not None
    assert math.isclose(back, value, rel_tol=1e-6, abs_tol=1e-3 + abs(p.scale))


@settings(deadline=None)  # the machine is shared
@given(points(), st.integers(-30_000, 30_000))
def test_a_value_comes_back_to_the_nearest_step_of_its_type(p, raw):
    raw = abs(raw) if p.type.startswith("u") else raw
    value = raw * p.scale + p.offset
    back = decode(p, encode(p, value))
    step = 0 if p.type in FLOATS else abs(p.scale) / 2
    assert back == pytest.approx(value, rel=1e-6, abs=step + 1e-4 * abs(p.scale) + 1e-9)


@pytest.mark.parametrize(
    ("fields", "registers"),
    [
        ({}, [0x459C, 0x4000]),
        ({"word_order": "little"}, [0x4000, 0x459C]),
        ({"byte_order": "little"}, [0x9C45, 0x0040]),
        ({"word_order": "little", "byte_order": "little"}, [0x0040, 0x9C45]),
        ({"scale": 1000.0, "offset": 0.0}, [0x40A0, 0x0000]),
    ],
)
def test_five_thousand_watts_in_all_orders_both_ways(fields, registers):
    """0x459C4000 is the IEEE 754 single 5000.0; 0x40A00000 is 5.0."""
    p = point(**fields)
    assert decode(p, registers) == 5000.0
    assert encode(p, 5000.0) == registers


@pytest.mark.parametrize("type_", sorted(TYPES))
@pytest.mark.parametrize("word_order", ["big", "little"])
@pytest.mark.parametrize("byte_order", ["big", "little"])
def test_p14_a_write_takes_all_words_in_the_order_of_the_read(type_, word_order, byte_order):
    """Drivers wrote one word of a float, or both in the wrong order, while reading was right.

    The expected registers are laid out here byte by byte, not by the code under test.
    """
    p = point(type_, word_order=word_order, byte_order=byte_order)
    value = 12_345.0
    _, code, _ = TYPES[type_]
    data = struct.pack(f">{code}", value if type_ in FLOATS else int(value))
    words = [data[i : i + 2] for i in range(0, len(data), 2)]
    words = words[::-1] if word_order == "little" else words
    expected = [int.from_bytes(word, byte_order) for word in words]
    assert encode(p, value) == expected
    assert len(expected) == width(p)
    assert decode(p, expected) == value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_float_that_is_no_number_is_no_value(bad):
    assert decode(point(), list(struct.unpack(">2H", struct.pack(">f", bad)))) is None


def test_a_mark_for_not_present_is_no_value_and_cannot_be_written():
    p = point("i32", word_order="little", sentinels=(0x7FFFFFFF,))
    assert decode(p, [0xFFFF, 0x7FFF]) is None
    assert decode(p, [0xFFFE, 0x7FFF]) == 0x7FFFFFFE
    with pytest.raises(CodecError, match="not present"):
        encode(p, 0x7FFFFFFF)


def test_an_implausible_value_is_none_and_never_clamped():
    p = point("u16", lowest=0, highest=1000)
    assert decode(p, [1000]) == 1000
    assert decode(p, [1001]) is None


@pytest.mark.parametrize(
    ("p", "value"),
    [
        (point("u16"), -1),
        (point("u16"), 65536),
        (point("i16", scale=0.1), 3277),
        (point("f32"), 1e39),
        (point("f32"), math.nan),
        (point("u64"), math.inf),
        (point("u16", highest=10), 11),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_the_point(p, value):
    with pytest.raises(CodecError, match="power_w"):
        encode(p, value)


@pytest.mark.parametrize("registers", [[], [1], [1, 2, 3], [1, 65536], [-1, 0]])
def test_wrong_registers_are_refused_not_guessed_at(registers):
    with pytest.raises(CodecError, match="2 register"):
        decode(point(), registers)


def test_a_coil_is_one_or_nothing():
    coil = Point(name="running", unit="bool", table="coil", address=7, type="bool", access="rw")
    assert [decode(coil, [0]), decode(coil, [1])] == [0.0, 1.0]
    assert [encode(coil, 0.0), encode(coil, 1.0)] == [[0], [1]]


@settings(deadline=None)  # the machine is shared
@given(st.sampled_from(["i16", "u16", "i32", "f32"]), st.floats(-500, 500), st.floats(-500, 500), st.data())
def test_what_is_written_never_lies_outside_the_range_of_its_point(type_, one, other, data):
    """Rounding to a step of the type must not carry a limit over its bound, not by half a step."""
    lowest, highest = sorted((one, other))
    p = point(type_, scale=data.draw(st.sampled_from([0.1, 7.0, -0.3, 1.0])), lowest=lowest, highest=highest)
    value = data.draw(st.floats(lowest, highest))
    try:
        registers = encode(p, value)
    except CodecError:
        return  # no step of the type lies in so narrow a range, or the type ends before it
    back = decode(p, registers)
    assert back is not None
    assert lowest <= back <= highest
    assert abs(back - value) <= abs(p.scale) + 1e-3


def test_a_value_just_inside_its_range_does_not_wrap_around_its_type():
    """0.3 rounds to 0, which is below the range; the step below 0 would be 65535."""
    with pytest.raises(CodecError, match="no step"):
        encode(point("u16", lowest=0.3, highest=0.4), 0.35)
    assert encode(point("u16", lowest=0.3), 0.35) == [1]


@settings(deadline=None)  # the machine is shared
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12), ORDERS)
def test_a_text_survives_encode_and_decode(text, order):
    p = Point(name="model", unit="text", address=0, type="string", registers=6, byte_order=order)
    assert decode(p, encode(p, text)) == text


@pytest.mark.parametrize(
    ("registers", "text"),
    [
        ([0x4142, 0x4300], "ABC"),
        ([0x4142, 0x2020], "AB"),
        ([0x4100, 0x4242], "A"),  # what stands behind the end was never cleared
        ([0x0000, 0x0000], None),
        ([0x2020, 0x2020], None),
        ([0xFFFF, 0xFFFF], None),
        ([0x41C4, 0x4200], None),  # not ASCII
        ([0x4107, 0x4200], None),  # a bell
    ],
)
def test_a_text_ends_at_nul_and_is_none_where_it_is_no_text(registers, text):
    p = Point(name="model", unit="text", address=0, type="string", registers=2)
    assert decode(p, registers) == text


@pytest.mark.parametrize("value", ["", "too long", "Ä", " a", "a\n", 7.0])
def test_a_text_that_does_not_fit_is_refused(value):
    p = Point(name="model", unit="text", address=0, type="string", registers=2)
    with pytest.raises(CodecError, match="1 to 4 printable ASCII"):
        encode(p, value)


def test_a_state_without_a_name_is_no_value_and_is_not_written():
    p = Point(name="mode", unit="enum", address=0, type="u16", enum={0: "off", 2: "auto"})
    assert [decode(p, [n]) for n in (0, 1, 2, 0xFFFF)] == [0.0, None, 2.0, None]
    assert encode(p, 2) == [2]
    with pytest.raises(CodecError, match="1 is none of its states; use 0 off, 2 auto"):
        encode(p, 1)


@settings(deadline=None)  # the machine is shared
@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(1, 0xFFFF))
def test_a_masked_point_changes_its_own_bits_and_no_other(before, value, mask):
    p = point("u16", mask=mask)
    value &= (1 << mask.bit_count()) - 1
    shift = (mask & -mask).bit_length() - 1
    if value << shift & ~mask:
        with pytest.raises(CodecError, match="does not fit the mask"):
            encode(p, value, onto=[before])
        return
    after = encode(p, value, onto=[before])
    assert decode(p, after) == value
    assert after[0] & ~mask == before & ~mask


def test_a_masked_point_is_never_rounded_out_of_its_range():
    p = point("u16", mask=0x0F, highest=2.7)
    assert encode(p, 2.6, onto=[0]) == [2]


@pytest.mark.parametrize("onto", [0xFFFF, 0xFFF0])
def test_a_masked_point_neither_reads_nor_makes_a_mark_for_not_present(onto):
    """Onto 'not present', every neighbour would be switched on."""
    p = point("u16", mask=0x0F, sentinels=(0xFFFF,))
    with pytest.raises(CodecError, match="'not present'"):
        encode(p, 15.0, onto=[onto])


def test_a_masked_point_is_never_written_onto_nothing():
    """The other bits of the register would be cleared: a pump stopped by a lamp."""
    with pytest.raises(CodecError, match="shares its register with other points"):
        encode(point("u16", mask=8), 1)


def test_a_scale_factor_is_a_power_of_ten_that_must_be_known():
    p = point("i16", scale_factor="power_sf", sentinels=(0x8000,))
    assert decode(p, [2305], {"power_sf": -1.0}) == 230.5
    assert decode(p, [2305], {"power_sf": 2.0}) == 230_500.0
    assert decode(p, [2305]) is None
    assert decode(p, [2305], {"power_sf": 11.0}) is None
    assert decode(p, [0x8000], {"power_sf": 0.0}) is None
    assert encode(p, 230.5, {"power_sf": -1.0}) == [2305]
    with pytest.raises(CodecError, match="scale factor power_sf is not known"):
        encode(p, 230.5)


@pytest.mark.parametrize("raw", [1, 3, 7, 2305, 9999])
@pytest.mark.parametrize(("scale", "divisor"), [(0.1, 10), (0.01, 100), (0.001, 1000)])
def test_decimal_scales_give_the_decimal_numbers_that_people_expect(raw, scale, divisor):
    """3 of a tenth is 0.3, not 0.30000000000000004: these numbers are read by people."""
    assert decode(point("u16", scale=scale), [raw]) == raw / divisor


def test_a_q_format_is_a_scale():
    assert decode(point("i16", scale=2.0**-10), [0xC000]) == -16.0


def test_a_number_from_opc_ua_takes_the_same_scale_and_range():
    p = Point(name="heat_w", unit="W", node="nsu=urn:x;s=h", scale=1000.0, highest=1e6)
    assert from_raw(p, 812.5) == 812_500.0
    assert from_raw(p, 1000.1) is None
    assert from_raw(p, 10**400) is None
    assert from_raw(p, "812.5") is None


def test_a_text_from_opc_ua_is_text_where_the_point_is_one():
    p = Point(name="model", unit="text", node="nsu=urn:x;s=m")
    assert from_raw(p, " CDU 7 ") == "CDU 7"
    assert from_raw(p, "") is None
    assert from_raw(p, 7.0) is None


@pytest.mark.parametrize(
    ("fields", "words", "absent"),
    [
        ({"type": "u16", "sentinels": (0xFFFF,)}, [0xFFFF], True),
        ({"type": "u16", "sentinels": (0xFFFF,)}, [0xFFFE], False),
        ({"type": "u16", "sentinels": (0xFFFF,), "highest": 5}, [9], False),
        ({"type": "f32"}, [0x7FC0, 0], True),
        ({"type": "f32"}, [0x7F80, 0], False),  # infinity is a fault
        ({"type": "string", "unit": "text", "registers": 2}, [0, 0], True),
        ({"type": "string", "unit": "text", "registers": 2}, [0x2020, 0], True),
        ({"type": "string", "unit": "text", "registers": 2}, [0xFF00, 0], False),
    ],
)
def test_absent_is_what_the_device_says_it_does_not_have(fields, words, absent):
    p = Point(**({"name": "value", "unit": "count", "address": 0} | fields))
    assert is_absent(p, words) is absent
    assert decode(p, words) is None or not absent
