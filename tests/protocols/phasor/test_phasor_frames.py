"""Frames of IEEE C37.118.2 and lines of JSON: what is read of them, and what is refused."""

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phasor_parts import CONFIG, DATA, PLAIN, TURN_ON, config, data, mhz, sealed

from protocols.phasor import Frames, JsonReadings, Moments, c37_118

ARRIVED_S = 500.0


def frames_with(configuration=PLAIN, **kwargs):
    found = Frames(**kwargs)
    found.take(configuration, ARRIVED_S)
    assert found.config is not None, found.refusals.counts
    return found


def test_the_worked_example_of_the_standard_is_read_as_it_says():
    frames = frames_with(CONFIG)
    assert (frames.config.rate_hz, frames.config.pmus[0].name) == (30.0, "Station A")
    sample = frames.take(DATA, ARRIVED_S)
    assert (sample.hz, sample.good, sample.taken_at_s, sample.doubt) == (62.5, True, ARRIVED_S, "")
    assert frames.refusals.total == 0


def test_a_command_differs_from_the_worked_one_in_nothing_but_its_time():
    ours = c37_118.command(7734, c37_118.DATA_ON, 0x44856030)
    assert ours[:10] == TURN_ON[:10]
    assert ours[14:16] == TURN_ON[14:16]
    assert c37_118.open_frame(ours).kind == c37_118.open_frame(TURN_ON).kind == c37_118.COMMAND


def test_integer_frequencies_are_deviations_from_nominal_in_mhz():
    assert frames_with().take(data(mhz(-300)), ARRIVED_S).hz == pytest.approx(49.7)
    assert frames_with(config((1, 0, 0, 0, 0, 0))).take(data(mhz(-150)), ARRIVED_S).hz == pytest.approx(59.85)


def test_float_frequencies_are_hz_behind_phasors_of_their_width():
    """FORMAT bits 1, 2 and 3 widen phasors, analogs and frequency, each for itself."""
    frames = frames_with(config((1, 0b1110, 2, 1, 1, 1), version=2))
    block = struct.pack(">H", 0) + bytes(16) + struct.pack(">ff", 49.625, 0.0) + bytes(4) + bytes(2)
    sample = frames.take(data(block, version=2), ARRIVED_S)
    assert (sample.hz, sample.good) == (49.625, True)


def test_narrow_phasors_and_analogs_leave_the_frequency_where_it_is():
    frames = frames_with(config((1, 0, 1, 2, 1, 1), (2, 0, 0, 0, 0, 1)), pmu=2)
    first = struct.pack(">H4xhh4x2x", 0, 10, 0)
    assert frames.take(data(first, mhz(-40)), ARRIVED_S).hz == pytest.approx(49.96)


def test_one_pmu_of_several_is_chosen_by_its_code():
    both = config((1, 0, 1, 0, 0, 1), (2, 0b1000, 0, 0, 0, 1))
    frame = data(struct.pack(">H4xhh", 0, 10, 0), struct.pack(">Hff", 0, 49.5, 0.0))
    assert frames_with(both).take(frame, ARRIVED_S).hz == pytest.approx(50.01)
    assert frames_with(both, pmu=2).take(frame, ARRIVED_S).hz == 49.5
    other = Frames(pmu=3)
    assert other.take(both, ARRIVED_S) is None
    assert other.refusals.counts == {"configuration without PMU 3; it has 1, 2": 1}


@pytest.mark.parametrize("stat", [0x8000, 0x4000, 0xC000])
def test_a_measurement_that_its_unit_disowns_is_bad(stat):
    assert not frames_with().take(data(mhz(-500, stat)), ARRIVED_S).good


def test_what_speaks_against_the_clock_is_told_and_spoils_no_frequency():
    frames = frames_with()
    told = frames.take(data(mhz(0, 0x3000), quality=0xF), ARRIVED_S)
    assert told.good
    assert told.doubt == "not synchronized, sorted by arrival, its clock has failed"


def test_no_number_is_bad_and_not_an_error():
    frames = frames_with(config((1, 8, 0, 0, 0, 1)))
    sample = frames.take(data(struct.pack(">Hff", 0, math.nan, 0.0)), ARRIVED_S)
    assert not sample.good


def test_data_say_nothing_before_their_configuration():
    frames = Frames()
    assert frames.take(data(mhz(0)), ARRIVED_S) is None
    assert frames.refusals.counts == {"data before a configuration": 1}


def test_data_of_another_shape_end_the_trust_in_the_configuration():
    frames = frames_with()
    assert frames.take(data(mhz(0) + bytes(4)), ARRIVED_S) is None
    assert frames.config is None


def test_another_stream_is_refused_where_one_is_named():
    frames = Frames(id_code=5)
    frames.take(PLAIN, ARRIVED_S)
    assert (frames.config, frames.refusals.newest) == (None, "of stream 7734; 5 is expected")


def test_repeated_and_overtaken_frames_are_dropped_until_the_sender_has_put_its_clock_back():
    frames = frames_with()
    assert frames.take(data(mhz(1), soc=2000), ARRIVED_S) is not None
    assert frames.take(data(mhz(1), soc=2000), ARRIVED_S + 0.02) is None
    assert frames.take(data(mhz(1), soc=1999), ARRIVED_S + 0.04) is None
    assert frames.refusals.counts == {"not newer than the one before": 2}
    assert frames.take(data(mhz(1), soc=1990), ARRIVED_S + 1.5) is not None


def test_a_stream_that_lay_in_a_buffer_has_its_true_age():
    frames = frames_with()
    for n in range(50):
        sample = frames.take(data(mhz(n), fraction=20_000 * n), ARRIVED_S + 0.02 * n)
    assert sample.taken_at_s == pytest.approx(ARRIVED_S + 0.98)
    late = frames.take(data(mhz(0), soc=2001), ARRIVED_S + 11.0)
    assert late.taken_at_s == pytest.approx(ARRIVED_S + 1.0)


def test_clocks_that_drift_apart_cost_nothing():
    moments = Moments()
    for n in range(20_000):
        stamp_s, arrived_s = n * 0.02, n * 0.02 * (1 + 1e-4) + 7.0
        age_s = arrived_s - moments.moment_s(stamp_s, arrived_s)
        assert 0.0 <= age_s < 0.015


@pytest.mark.parametrize("ahead_s", [0.5, 3600.0, 1e9])
def test_one_stamp_from_the_future_makes_nothing_look_late(ahead_s):
    moments = Moments()
    for n in range(500):
        moments.moment_s(n * 0.02, n * 0.02 + 7.0)
    assert moments.moment_s(10.0 + ahead_s, 17.0) == 17.0
    for n in range(501, 20_000):
        assert moments.moment_s(n * 0.02, n * 0.02 + 7.0) == pytest.approx(n * 0.02 + 7.0)


def test_a_sender_whose_clock_was_put_forward_is_believed_at_its_second_sample():
    moments = Moments()
    moments.moment_s(0.0, 7.0)
    for n in range(1, 5):
        moments.moment_s(n * 0.02 + 3600.0, n * 0.02 + 7.0)
    late_s = moments.moment_s(3600.1, 17.1)
    assert late_s == pytest.approx(7.1)


REFUSED = {
    b"": "too short",
    b"\xaa\x01": "too short",
    b"\xab" + DATA[1:]: "does not begin",
    b"\xaa\x81" + DATA[2:]: "does not begin",
    b"\xaa\x04" + DATA[2:]: "unknown version",
    DATA + b"\0": "another length",
    DATA[:-4] + DATA[-2:]: "another length",
    DATA[:-1] + b"\0": "check sum",
    sealed(CONFIG[:-4]): "ends too soon",
    sealed(CONFIG[:-2] + b"\0\0"): "more in it",
    sealed(CONFIG[:18] + b"\xff\xff" + CONFIG[20:-2]): "65535 PMUs",
    sealed(CONFIG[:18] + b"\0\0" + CONFIG[20:-2]): "0 PMUs",
    sealed(CONFIG[:14] + bytes(4) + CONFIG[18:-2]): "time base",
}


@pytest.mark.parametrize("frame", REFUSED, ids=list(range(len(REFUSED))))
def test_what_is_no_whole_frame_is_counted_by_its_reason(frame):
    frames = Frames()
    assert frames.take(frame, ARRIVED_S) is None
    assert REFUSED[frame] in frames.refusals.newest


def test_every_single_damaged_bit_is_noticed():
    frames = frames_with(CONFIG)
    for bit in range(8 * len(DATA)):
        damaged = bytearray(DATA)
        damaged[bit // 8] ^= 1 << bit % 8
        assert frames.take(bytes(damaged), ARRIVED_S) is None
    assert frames.refusals.total == 8 * len(DATA)


@given(st.binary(max_size=200), st.integers(0, 5), st.booleans())
def test_no_bytes_at_all_raise(body, kind, known):
    frames = Frames()
    if known:
        frames.take(PLAIN, ARRIVED_S)
    frames.take(body, ARRIVED_S)
    frames.take(sealed(bytes([0xAA, kind << 4 | 1]) + b"\0\0" + body), ARRIVED_S)
    assert len(frames.refusals.counts) <= 32


def test_header_and_foreign_configurations_are_nothing_to_refuse():
    frames = frames_with()
    assert frames.take(sealed(struct.pack(">HHHII", 0xAA11, 0, 7734, 1, 1) + b"hello"), ARRIVED_S) is None
    assert frames.refusals.total == 0


# --- JSON -------------------------------------------------------------------------------------------


def test_a_line_of_json_is_a_frequency_with_its_moment():
    readings = JsonReadings()
    sample = readings.take(b'{"hz": 49.98, "at": 1767225600.02}', ARRIVED_S)
    assert (sample.hz, sample.good, sample.taken_at_s) == (49.98, True, ARRIVED_S)
    assert not readings.take(b'{"hz": 49.4, "at": 1767225600.04, "good": false}', ARRIVED_S + 0.02).good


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"49.98",
        b"[]",
        b'{"hz": 49.98}',
        b'{"at": 1767225600}',
        b'{"hz": "49.98", "at": 1767225600}',
        b'{"hz": 49.98, "at": 1767225600, "unit": "Hz"}',
        b'{"hz": null, "at": 1767225600}',
        b'{"hz": NaN, "at": 1767225600}',
        b'{"hz": 49.98, "at": -1}',
        b'{"hz": 49.98, "at": 1767225600000}',
        b'{"hz": true, "at": 1767225600}',
        b"\xff\xfe",
        b"[" * 250,
        b'{"hz": 49.98, "at": 1767225600}' + b" " * 300,
    ],
)
def test_any_other_line_is_refused_and_counted(payload):
    readings = JsonReadings()
    assert readings.take(payload, ARRIVED_S) is None
    assert readings.refusals.total == 1


def test_a_line_that_comes_twice_or_late_counts_once():
    readings = JsonReadings()
    lines = [json.dumps({"hz": 50.0, "at": at_s}).encode() for at_s in (10.0, 10.02, 10.02, 10.0, 10.04)]
    taken = [readings.take(line, ARRIVED_S + 0.02 * n) for n, line in enumerate(lines)]
    assert [sample is not None for sample in taken] == [True, True, False, False, True]


@given(st.binary(max_size=300))
def test_no_line_raises(payload):
    JsonReadings().take(payload, ARRIVED_S)
