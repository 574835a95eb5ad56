"""Registers to values and back, for every type, order and scale."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.codec import FLOATS, TYPES, CodecError, decode, encode, from_raw, width
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


def test_a_q_format_is_a_scale():
    assert decode(point("i16", scale=2.0**-10), [0xC000]) == -16.0


def test_a_number_from_opc_ua_takes_the_same_scale_and_range():
    p = Point(name="heat_w", unit="W", node="nsu=urn:x;s=h", scale=1000.0, highest=1e6)
    assert from_raw(p, 812.5) == 812_500.0
    assert from_raw(p, 1000.1) is None
