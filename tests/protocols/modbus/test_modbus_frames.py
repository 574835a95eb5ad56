"""Bytes to readings without a socket: whatever comes, nothing escapes and nothing false is good."""

import asyncio
import itertools
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import PROFILE, Readings, healthy, unit

from protocols.modbus import ModbusLink, Replay, read_identification
from protocols.modbus.frames import Mbap, Rtu, sealed
from protocols.modbus.questions import LostError, RefusedError, identification_question, read_question
from protocols.profile import Block, Point

WORDS = [0x459C, 0x4000, 11, 12, 2305, *range(100, 115)]
TRUTH = {"power_w": 5000.0, "voltage_v": 230.5, "current_a": 1.05, "running": 0.0}
DUMB = replace(PROFILE, reply_wait_max_s=0.01)


def answer_to(pdu):
    code, address, count = struct.unpack(">BHH", pdu[:5])
    if code == 1:
        return bytes((1, (count + 7) // 8)) + bytes((count + 7) // 8)
    return struct.pack(f">BB{count}H", code, 2 * count, *WORDS[address : address + count])


def honest(frame, *, rtu):
    """What a right device answers to a request frame."""
    if rtu:
        return sealed(frame[:1] + answer_to(frame[1:-2]))
    pdu = answer_to(frame[7:])
    return frame[:4] + struct.pack(">HB", len(pdu) + 1, frame[6]) + pdu


async def replayed(peer, rounds=1, *, rtu=False, profile=DUMB):
    readings = Readings()
    ticks = itertools.count()
    link = ModbusLink(
        Replay(peer, rtu=rtu), [unit(readings, profile=profile)], clock=lambda: float(next(ticks))
    )
    try:
        await link.look(rounds)
    except LostError as lost:
        return [*readings, str(lost)]
    return list(readings)


@pytest.mark.parametrize("rtu", [False, True])
async def test_a_recorded_device_gives_its_readings_again(rtu):
    first, second = await replayed(lambda frame: honest(frame, rtu=rtu), 2, rtu=rtu)
    assert first.values == pytest.approx(TRUTH)
    assert healthy(first)
    assert healthy(second)
    assert second.doubt == ""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.booleans())
def test_no_bytes_escape_as_an_error_and_none_become_a_value(chunks, rtu):
    """Random bytes that happen to be a right frame would be one in 2**64."""
    told = itertools.cycle(chunks)
    for reading in asyncio.run(replayed(lambda _frame: next(told), 3, rtu=rtu)):
        assert isinstance(reading, str) or set(reading.values.values()) == {None}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_rtu_frame_is_never_believed(data):
    """Bits flipped, bytes lost, doubled or put before it: what is good is true."""

    def damaged(frame):
        right = bytearray(honest(frame, rtu=True))
        match data.draw(st.sampled_from(["right", "flip", "cut", "twice", "before", "after", "nothing"])):
            case "flip":
                right[data.draw(st.integers(0, len(right) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del right[data.draw(st.integers(0, len(right) - 1)) :]
            case "twice":
                right = right * 2
            case "before":
                right[:0] = data.draw(st.binary(max_size=4))
            case "after":
                right += data.draw(st.binary(max_size=4))
            case "nothing":
                right.clear()
        return bytes(right)

    for reading in asyncio.run(replayed(damaged, 3, rtu=True)):
        if not isinstance(reading, str):
            assert all(value in (None, pytest.approx(TRUTH[name])) for name, value in reading.values.items())


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 8), st.integers(1, 255))
def test_a_tcp_frame_with_one_wrong_byte_in_its_head_is_never_believed(place, by):
    """Transaction, protocol, length, unit, function and byte count: one comparison, and all of them count."""

    def bent(frame):
        right = bytearray(honest(frame, rtu=False))
        right[place] = (right[place] + by) % 256
        return bytes(right)

    for reading in asyncio.run(replayed(bent, 2)):
        assert isinstance(reading, str) or set(reading.values.values()) == {None}


@given(st.lists(st.integers(1, 40), max_size=10))
def test_an_answer_may_come_in_any_pieces(cuts):
    question = read_question("holding", 0, 20)
    for framing in (Mbap(), Rtu()):
        frame = honest(framing.ask(1, question), rtu=isinstance(framing, Rtu))
        rest, answer = b"", None
        edges = [0, *sorted({min(c, len(frame)) for c in cuts}), len(frame)]
        for a, b in itertools.pairwise(edges):
            rest += frame[a:b]
            used, answer = framing.feed(rest) if rest else (0, None)
            rest = rest[used:]
        assert answer == answer_to(question.pdu)


def test_answers_that_came_in_one_piece_are_told_apart():
    """A late one before ours, ours, and one more of it."""
    mbap, question = Mbap(), read_question("holding", 0, 2)
    late = honest(mbap.ask(1, question), rtu=False)
    mbap.give_up()
    ours = honest(mbap.ask(1, question), rtu=False)
    used, answer = mbap.feed(late + ours)
    assert (used, answer) == (len(late + ours), answer_to(question.pdu))
    assert mbap.unasked == ""
    mbap.feed(ours)
    assert "two devices with one unit id" in mbap.unasked


def test_an_rtu_refusal_of_another_unit_is_not_ours():
    rtu, question = Rtu(), read_question("holding", 0, 2)
    frame = rtu.ask(1, question)
    assert rtu.feed(sealed(bytes((2, 0x83, 2)))) == (5, None)
    assert rtu.came == "an answer of unit 2"
    with pytest.raises(RefusedError, match="illegal data address"):
        rtu.feed(sealed(bytes((1, 0x83, 2))))
    assert frame == sealed(bytes((1, 3, 0, 0, 0, 2)))


def test_noise_without_end_is_not_kept():
    rtu = Rtu()
    rtu.ask(1, read_question("holding", 0, 2))
    rest = b""
    for _ in range(50):
        rest += bytes((1, 3, 250)) * 30
        used, _ = rtu.feed(rest)
        rest = rest[used:]
        assert len(rest) <= 520


async def test_scale_factors_read_once_serve_the_fast_points():
    points = {
        "power_w": Point(name="power_w", unit="W", address=4, type="u16", scale_factor="power_sf"),
        "power_sf": Point(name="power_sf", unit="count", address=10, type="i16", poll="once"),
    }

    def device(frame):
        WORDS[10] = 0xFFFF  # -1
        return honest(frame, rtu=False)

    first, second = await replayed(device, 2, profile=replace(DUMB, points=points))
    WORDS[10] = 105
    assert first.values == {"power_sf": -1.0, "power_w": 230.5}
    assert second.values == {"power_w": 230.5}


TWINS = replace(
    DUMB,
    blocks=tuple(Block(table="holding", first=a, last=b) for a, b in ((2, 2), (12, 12), (8, 9))),
    points={
        "first": Point(name="first", unit="count", address=2, type="u16"),
        "second": Point(name="second", unit="count", address=12, type="u16"),
        "third": Point(name="third", unit="count", address=8, type="u32"),
    },
)
TWINS_TRUTH = {"first": 11, "second": 107, "third": 103 * 65536 + 104}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40))
def test_p05_rtu_answers_late_by_any_number_of_requests_are_never_taken_for_others(script):
    """The device answers in order, refuses now and then, and its answers come when they come."""
    moves = itertools.cycle(script)
    on_their_way = []

    def dawdling(frame):
        delivered, luck = next(moves)
        refusal = sealed(bytes((frame[0], frame[1] | 0x80, 2)))
        on_their_way.append(refusal if luck == 0 else honest(frame, rtu=True))
        now, on_their_way[:] = on_their_way[:delivered], on_their_way[delivered:]
        return b"".join(now)

    for reading in asyncio.run(replayed(dawdling, 12, rtu=True, profile=TWINS)):
        if not isinstance(reading, str):
            assert all(value in (None, TWINS_TRUTH[name]) for name, value in reading.values.items())


# ---- what a device says that it is ----

PLATE = bytes((43, 14, 2, 0x82, 0, 0, 2)) + b"\x00\x04ACME" + b"\x01\x03PDU"


def framed(sent, pdu, *, rtu):
    return sealed(sent[:1] + pdu) if rtu else sent[:4] + struct.pack(">HB", len(pdu) + 1, sent[6]) + pdu


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("rtu", [False, True])
def test_an_identification_comes_whole_in_pieces_of_any_size(rtu, size):
    framing = Rtu() if rtu else Mbap()
    sent = framing.ask(5, identification_question(0))
    late = sealed(bytes((6,)) + PLATE) if rtu else b"\x00\x63\x00\x00\x00\x03\x05\x83\x02"
    stream, rest, answer = late + framed(sent, PLATE, rtu=rtu), b"", None
    for at in range(0, len(stream), size):
        assert answer is None
        rest += stream[at : at + size]
        used, answer = framing.feed(rest)
        rest = rest[used:]
    assert answer == PLATE


@pytest.mark.parametrize(
    ("pdu", "sentence"),
    [
        (b"\xab\x01", "illegal function"),
        (bytes((3, 2, 0, 1)), "asked with function 43, answered with 3"),
        (bytes((43, 13, 0)), "ends in the middle"),
        (PLATE[:-1], "ends in the middle"),
        (PLATE + b"\0", "goes on behind its end"),
    ],
)
def test_what_is_no_identification_is_refused(pdu, sentence):
    framing = Mbap()
    sent = framing.ask(5, identification_question(0))
    with pytest.raises(RefusedError, match=sentence):
        framing.feed(framed(sent, pdu, rtu=False))


@pytest.mark.parametrize("cut", range(len(PLATE)))
def test_an_rtu_identification_that_is_cut_is_never_taken(cut):
    framing = Rtu()
    sent = framing.ask(5, identification_question(0))
    whole = framed(sent, PLATE, rtu=True)
    assert framing.feed(whole[: cut + 3])[1] is None


@pytest.mark.parametrize("rtu", [False, True])
async def test_an_identification_is_asked_for_until_it_is_whole_and_no_longer(rtu):
    first = bytes((43, 14, 2, 0x82, 0xFF, 1, 1)) + b"\x00\x04ACME"
    second = bytes((43, 14, 2, 0x82, 0, 0, 1)) + b"\x01\x05P\xffU\0x"
    again = [first, second]
    asked = []

    async def ask(question):
        asked.append(question.pdu)
        framing = Rtu() if rtu else Mbap()
        sent = framing.ask(5, question)
        _, answer = framing.feed(framed(sent, again[min(len(asked), len(again)) - 1], rtu=rtu))
        return answer

    assert await read_identification(ask) == {0: "ACME", 1: "P\ufffdU"}
    assert [pdu[3] for pdu in asked] == [0, 1]
    again[:] = [first]
    with pytest.raises(RefusedError, match="never ends"):
        await read_identification(ask)
