"""The compiled decoder of a read says what the decoder of single points says, for every profile there could be."""

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.codec import FLOATS, TYPES, CodecError, SpanDecoder, decode, width
from protocols.profile import Bit, Point

FIRST = 1000
SPAN = 24  # registers of the read
ORDERS = st.sampled_from(["big", "little"])
SCALES = st.sampled_from([1.0, 0.1, 0.001, 1000.0, 2.0**-7, -0.5, 1 / 3])
FACTORS = ("sf_a", "sf_b")


@st.composite
def points(draw):
    """Points that lie anywhere in the span, overlaps included, with everything a profile can say of them."""
    factors = [
        Point(
            name=name,
            unit="count",
            address=FIRST + i,
            type="i16",
            sentinels=(0x8000,),
            lowest=-10,
            highest=10,
        )
        for i, name in enumerate(FACTORS)
    ]
    drawn = [draw(point(f"p{i}")) for i in range(draw(st.integers(1, 12)))]
    kept = draw(st.lists(st.sampled_from(factors), unique_by=lambda p: p.name))
    return draw(st.permutations([*drawn, *kept]))


@st.composite
def point(draw, name):
    kind = draw(st.sampled_from([*sorted(TYPES), "string"]))
    order = {"word_order": draw(ORDERS), "byte_order": draw(ORDERS)}
    if kind == "string":
        length = draw(st.integers(1, 6))
        address = FIRST + draw(st.integers(0, SPAN - length))
        return Point(name=name, unit="text", type=kind, registers=length, address=address, **order)
    size = TYPES[kind][0]
    address = FIRST + draw(st.integers(0, SPAN - size))
    marks = draw(st.lists(st.integers(0, 2 ** (16 * size) - 1), max_size=2))
    fields = {"type": kind, "address": address, "sentinels": tuple(marks), **order}
    shape = draw(st.sampled_from(["plain", "masked", "enum", "factor", "bits"]))
    if shape == "masked" and kind not in FLOATS:
        mask, factor = draw(st.integers(1, 2 ** (16 * size) - 1)), draw(st.sampled_from(["", *FACTORS]))
        return Point(name=name, unit="count", mask=mask, scale_factor=factor, **fields)
    if shape == "enum" and kind not in FLOATS:
        states = draw(st.dictionaries(st.integers(0, 3), st.just("state"), min_size=1))
        return Point(name=name, unit="enum", enum=states, **fields)
    if shape == "bits" and size <= 2:
        return Point(name=name, unit="bits", bits={0: Bit(name="a")}, **fields)
    factor = draw(st.sampled_from([*FACTORS, "elsewhere"])) if shape == "factor" else ""
    bounds = draw(st.sampled_from([(-math.inf, math.inf), (0.0, 1e5), (-100.0, 100.0)]))
    return Point(
        name=name, unit="count", scale=draw(SCALES), offset=draw(st.sampled_from([0.0, -273.15])),
        scale_factor=factor, lowest=bounds[0], highest=bounds[1], **fields,
    )  # fmt: skip


WORDS = st.lists(
    st.one_of(st.integers(0, 0xFFFF), st.integers(0, 3), st.sampled_from([0x8000, 0xFFFF, 0x7FC0, 0x4142])),
    min_size=SPAN,
    max_size=SPAN,
)


@settings(max_examples=400, deadline=None)
@given(
    points(),
    WORDS,
    st.sampled_from([{}, {"elsewhere": 2.0}, {"elsewhere": -11.0}, {"sf_a": 1.0, "sf_b": None}]),
)
def test_the_compiled_decoder_equals_decoding_point_by_point(span_points, words, outside):
    decoder = SpanDecoder(span_points, FIRST, SPAN)
    known = dict(outside)
    for p in span_points:  # what the read itself carries counts before what was known
        if p.name in FACTORS:
            known[p.name] = decode(p, words[p.address - FIRST : p.address - FIRST + 1])
    expected = {}
    for p in span_points:
        at = p.address - FIRST
        expected[p.name] = decode(p, words[at : at + width(p)], known)
    got = decoder.values(words, outside)
    assert got == expected
    assert list(got) == [p.name for p in span_points]
    assert decoder.values(struct.pack(f">{SPAN}H", *words), outside) == expected


@settings(max_examples=100, deadline=None)
@given(points(), WORDS)
def test_no_value_that_is_not_a_number_comes_out(span_points, words):
    for p, value in zip(
        span_points, SpanDecoder(span_points, FIRST, SPAN).values(words).values(), strict=True
    ):
        if isinstance(value, float | int):
            assert math.isfinite(value)
            assert p.lowest <= value <= p.highest
            assert not p.enum or value in p.enum
        elif value is not None:
            assert value.isprintable()
            assert value == value.strip() != ""


@settings(deadline=None)  # the machine is shared
@given(st.lists(st.integers(0, 1), min_size=19, max_size=19))
def test_coils_come_as_bits_or_as_the_bytes_of_the_reply(bits):
    coils = [
        Point(name=f"c{i}", unit="bool", table="coil", address=FIRST + i, type="bool") for i in (0, 7, 8, 18)
    ]
    decoder = SpanDecoder(coils, FIRST, 19)
    packed = bytes(sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, 19, 8))
    expected = {f"c{i}": float(bits[i]) for i in (0, 7, 8, 18)}
    assert decoder.values(bits) == decoder.values(packed) == expected


def a(name="p", **fields):
    return Point(name=name, unit="count", address=FIRST, type="u16", **fields)


def test_swapped_words_are_taken_backwards_wherever_they_lie():
    """The same value in all four orders, in one read, at odd places."""
    orders = [("big", "big"), ("little", "big"), ("big", "little"), ("little", "little")]
    words = [9, 0x459C, 0x4000, 0x4000, 0x459C, 9, 0x9C45, 0x0040, 0x0040, 0x9C45]
    spots = [1, 3, 6, 8]
    span = [
        Point(name=f"p{i}", unit="count", type="f32", address=FIRST + at, word_order=word, byte_order=byte)
        for i, ((word, byte), at) in enumerate(zip(orders, spots, strict=True))
    ]
    assert SpanDecoder(span, FIRST, 10).values(words) == dict.fromkeys(("p0", "p1", "p2", "p3"), 5000.0)


@pytest.mark.parametrize("words", [(0x7F80, 0), (0xFF80, 0), (0x7FC0, 0), (0xFFFF, 0xFFFF)])
def test_infinity_and_nan_are_no_values_even_where_any_number_would_do(words):
    p = Point(name="p", unit="count", type="f32", address=FIRST)
    assert SpanDecoder([p], FIRST, 2).values(words) == {"p": None}


def test_flags_that_share_a_register_each_have_their_own_value():
    span = [a("flow", mask=0x0008), a("speed", mask=0x0FF0), a("whole")]
    assert SpanDecoder(span, FIRST, 1).values([0x0AB8]) == {"flow": 1.0, "speed": 0xAB, "whole": 0x0AB8}


def test_a_scale_factor_of_another_read_is_the_known_one_and_without_it_there_is_no_value():
    decoder = SpanDecoder([a(scale_factor="sf")], FIRST, 1)
    assert decoder.values([25], {"sf": -1.0}) == {"p": 2.5}
    assert decoder.values([25]) == {"p": None}
    assert decoder.values([25], {"sf": None}) == {"p": None}
    assert decoder.values([25], {"sf": "x"}) == {"p": None}


@pytest.mark.parametrize("count", [1, 2, 23])
def test_a_point_outside_its_read_is_a_fault_of_the_program(count):
    far = Point(name="p", unit="count", address=FIRST + 22, type="u32")
    with pytest.raises(CodecError, match=r"p: lies outside the read 1000\.\."):
        SpanDecoder([far], FIRST, count)


@pytest.mark.parametrize("words", [[], [1], [1, 2, 3], [1, 65_536], [-1, 0], b"", b"abc", b"abcdef"])
def test_registers_that_do_not_fit_are_refused_not_guessed_at(words):
    decoder = SpanDecoder([a()], FIRST, 2)
    with pytest.raises(CodecError, match="registers"):
        decoder.values(words)


def test_too_few_coils_are_refused():
    coil = Point(name="c", unit="bool", table="coil", address=FIRST, type="bool")
    with pytest.raises(CodecError, match="1 bits are not the 2"):
        SpanDecoder([coil], FIRST, 2).values([1])
    with pytest.raises(CodecError, match="coils and registers"):
        SpanDecoder([coil, a()], FIRST, 2)
