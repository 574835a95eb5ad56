"""Messages between controller and node agents: what is sent is what is read, and nothing else is acted on."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import agent_link
from protocols.agent_link import (
    Gpu,
    LinkError,
    Order,
    Report,
    decode_order,
    decode_report,
    encode,
    order_topic,
    report_topic,
)

ORDER = Order(
    epoch=3,
    seq=7,
    sent_at_s=100.5,
    echo_at_s=42.25,
    known_at_s=42.0,
    lease_s=1.0,
    limits_w=(300.0, 1000.0),
)
GPU = Gpu(uuid="GPU-1", power_w=250.5, limit_w=300.0, enforced_w=300.0, min_w=200.0, max_w=1000.0)
SILENT = Gpu(
    uuid="GPU-2", power_w=None, limit_w=None, enforced_w=None, min_w=200.0, max_w=1000.0, fault="gone"
)
REPORT = Report(
    node="a1",
    boot="f00d",
    at_s=42.25,
    echo_sent_at_s=100.5,
    echo_age_s=0.02,
    epoch=3,
    seq=7,
    mode="leased",
    gpus=(GPU, SILENT),
)

watts = st.floats(0, 999_999, allow_nan=False)
seconds = st.floats(-1, 1e9, allow_nan=False)
readings = st.none() | watts


def changed(message: Order | Report, **fields: object) -> bytes:
    said = json.loads(encode(message)) | fields
    return json.dumps({key: value for key, value in said.items() if value is not ...}).encode()


def test_an_order_and_a_report_are_read_as_they_were_sent():
    assert decode_order(encode(ORDER)) == ORDER
    assert decode_report(encode(REPORT)) == REPORT


@given(st.builds(Order, v=st.just(agent_link.VERSION), boot=st.text(), sent_at_s=seconds, echo_at_s=seconds, known_at_s=seconds, lease_s=seconds,
                 limits_w=st.lists(watts, max_size=72).map(tuple), epoch=st.integers(0, 2**53 - 1), seq=st.integers(0, 2**53 - 1)))  # fmt: skip
def test_every_order_survives_the_wire(order):
    assert decode_order(encode(order)) == order


@given(st.builds(Gpu, uuid=st.text(), power_w=readings, limit_w=readings, enforced_w=readings, min_w=watts, max_w=watts, fault=st.text()))  # fmt: skip
def test_every_gpu_survives_the_wire(gpu):
    report = msgspec.structs.replace(REPORT, gpus=(gpu,))
    assert decode_report(encode(report)) == report


PLACE = agent_link.Place(chassis_serial="1821324190003", slot=5, tray=3, host_id=1, module_id=2)
SMOOTHING = agent_link.Smoothing(
    enabled=True, floor_w=1259.0, ceiling_w=1400.0, preset=0, ramp_up_w_per_s=20.0, immediate=False
)
FACTS = agent_link.Facts(
    node="a1",
    boot="f00d",
    at_s=42.25,
    driver="595.71.05",
    lease_max_s=10.0,
    waiting_max_s=None,
    fallback_ramp_w_per_s=50.0,
    gpus=(
        agent_link.GpuFacts(fallback_w=300.0),
        agent_link.GpuFacts(
            fallback_w=300.0,
            uuid="GPU-11111111-2222-3333-4444-555555555555",
            name="NVIDIA GB300",
            min_w=200.0,
            max_w=1400.0,
            default_w=1400.0,
            found_w=1400.0,
            clock_min_mhz=345,
            clock_max_mhz=1980,
            module=3,
            mig=True,
            persistence=False,
            place=PLACE,
            smoothing=SMOOTHING,
            profiles=tuple(range(25)),
            profiles_requested=(6,),
            locked_mhz=(345, 1410),
        ),
    ),
)


def test_facts_are_read_as_they_were_sent_and_those_of_a_rack_fit_the_bound():
    assert agent_link.decode_facts(encode(FACTS)) == FACTS
    rack = msgspec.structs.replace(FACTS, gpus=FACTS.gpus[1:] * 72)
    assert len(encode(rack)) < agent_link.MESSAGE_MAX_BYTES


def test_what_stands_at_its_default_is_not_sent_and_an_unknown_floor_is():
    plain = json.loads(encode(REPORT))["gpus"][0]
    assert plain.keys() == {"uuid", "power_w", "limit_w", "enforced_w", "min_w", "max_w"}
    hidden = msgspec.structs.replace(GPU, floor_w=None)
    report = msgspec.structs.replace(REPORT, gpus=(hidden,))
    assert decode_report(encode(report)).gpus[0].floor_w is None


@pytest.mark.parametrize("clocks_mhz", [[1200], [1200, 1200, 1200], [1200, -1], [1200, 10_001], [1200.5, 0]])
def test_clock_ceilings_that_cannot_be_meant_refuse_the_whole_order(clocks_mhz):
    with pytest.raises(LinkError, match=r"clock|order"):
        decode_order(changed(ORDER, clocks_mhz=clocks_mhz))


def test_a_full_rack_fits_many_times_into_the_bound():
    report = msgspec.structs.replace(REPORT, gpus=(SILENT,) * 72)
    assert len(encode(report)) < agent_link.MESSAGE_MAX_BYTES / 4


def test_a_field_of_a_newer_side_is_passed_over():
    assert decode_order(changed(ORDER, reason="new in 1.1")) == ORDER


@pytest.mark.parametrize("limit_w", [-1.0, -0.001, 1e6, 1e300])
def test_a_limit_that_is_no_power_refuses_the_whole_order(limit_w):
    with pytest.raises(LinkError, match="order 3/7: a limit is not a power in W"):
        decode_order(changed(ORDER, limits_w=[300.0, limit_w]))


@pytest.mark.parametrize("limit_w", [math.nan, math.inf])
def test_a_limit_that_is_no_number_does_not_cross_the_wire(limit_w):
    order = msgspec.structs.replace(ORDER, limits_w=(300.0, limit_w))
    with pytest.raises(LinkError, match="not a Order"):
        decode_order(encode(order))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"v": 3}, "version 3, this side speaks 2: update the older side"),
        ({"v": 0}, "version 0"),
        ({"limits_w": None}, "limits_w"),
        ({"limits_w": ["300"]}, "limits_w"),
        ({"limits_w": [True]}, "limits_w"),
        ({"limits_w": ...}, "limits_w"),
        ({"epoch": "3"}, "epoch"),
        ({"epoch": 3.5}, "epoch"),
        ({"seq": None}, "seq"),
        ({"lease_s": ...}, "lease_s"),
    ],
)
def test_an_order_of_another_shape_is_refused_and_the_field_is_named(fields, says):
    with pytest.raises(LinkError, match=says):
        decode_order(changed(ORDER, **fields))


@pytest.mark.parametrize("field", ["epoch", "seq"])
@pytest.mark.parametrize("count", [-1, 2**53, 2**63, 2**64, 10**30])
@pytest.mark.parametrize(("decode", "message"), [(decode_order, ORDER), (decode_report, REPORT)])
def test_a_count_that_no_array_can_hold_is_refused_and_the_field_is_named(decode, message, field, count):
    with pytest.raises(LinkError, match=rf"not a {type(message).__name__}: .*\.{field}"):
        decode(changed(message, **{field: count}))


@pytest.mark.parametrize("field", ["node", "boot", "at_s", "echo_sent_at_s", "epoch", "seq", "mode", "gpus"])
def test_a_report_with_a_field_missing_is_refused_and_the_field_is_named(field):
    with pytest.raises(LinkError, match=field):
        decode_report(changed(REPORT, **{field: ...}))


def test_sides_of_one_version_understand_each_other_whichever_was_updated_first():
    assert decode_report(changed(REPORT, echo_epoch=...)).echo_epoch == 0, "an agent that does not tell"
    assert decode_report(changed(REPORT, of_tomorrow=1)) == REPORT
    assert decode_order(changed(ORDER, of_tomorrow=1)) == ORDER


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"{}", b"[" * 10_000, b'{"limits_w":[NaN]}']
)
@pytest.mark.parametrize("decode", [decode_order, decode_report])
def test_garbage_is_refused_with_a_sentence(decode, payload):
    with pytest.raises(LinkError):
        decode(payload)


@pytest.mark.parametrize("payload", [b'{"x":' + b"[" * 60_000, b'{"node":"\xff"}'])
@pytest.mark.parametrize("decode", [decode_order, decode_report])
def test_garbage_made_to_break_a_decoder_is_refused_with_a_sentence_too(decode, payload):
    with pytest.raises(LinkError):
        decode(payload)


def test_an_order_is_no_report_and_a_report_is_no_order():
    with pytest.raises(LinkError, match="not a Report"):
        decode_report(encode(ORDER))
    with pytest.raises(LinkError, match="not a Order"):
        decode_order(encode(REPORT))


def test_an_oversized_message_is_refused_before_it_is_read():
    blown_up = encode(ORDER) + b" " * agent_link.MESSAGE_MAX_BYTES
    with pytest.raises(LinkError, match=r"bytes refused, 65536 at most"):
        decode_order(blown_up)
    assert decode_order(blown_up[: agent_link.MESSAGE_MAX_BYTES]) == ORDER


def test_each_node_has_topics_of_its_own_and_plus_hears_them_all():
    assert order_topic("b1", "n7") == "powerblock/b1/agent/n7/order"
    assert report_topic("b1", "n7") == "powerblock/b1/agent/n7/report"
    assert report_topic("b1", "+") == "powerblock/b1/agent/+/report"
