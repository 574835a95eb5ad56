"""Shed tables and calls on the wire: what is sent is what is read, and nothing else is acted on."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import agent_link
from protocols.agent_link import (
    Call,
    Level,
    LinkError,
    Table,
    call_topic,
    decode_call,
    decode_order,
    decode_table,
    encode,
    table_topic,
)

TABLE = Table(epoch=3, version=9, levels=(Level(limits_w=(300.0, 250.0)), Level(limits_w=(200.0, 0.0))))
CALL = Call(epoch=3, seq=7, version=9, level=1, sent_at_s=100.5)
counts = st.integers(0, 2**53 - 1)
watts = st.floats(0, 999_999, allow_nan=False)


def changed(message: Table | Call, **fields: object) -> bytes:
    said = json.loads(encode(message)) | fields
    return json.dumps({key: value for key, value in said.items() if value is not ...}).encode()


def test_a_table_and_a_call_are_read_as_they_were_sent():
    assert decode_table(encode(TABLE)) == TABLE
    assert decode_call(encode(CALL)) == CALL


@given(st.builds(Table, v=st.just(agent_link.VERSION), epoch=counts, version=counts,
                 levels=st.lists(st.lists(watts, max_size=72).map(lambda w: Level(limits_w=tuple(w))), max_size=8).map(tuple)))  # fmt: skip
def test_every_table_survives_the_wire(table):
    assert decode_table(encode(table)) == table


@given(st.builds(Call, v=st.just(agent_link.VERSION), epoch=counts, seq=counts, version=counts, level=counts,
                 sent_at_s=st.floats(0, 1e9)))  # fmt: skip
def test_every_call_survives_the_wire(call):
    assert decode_call(encode(call)) == call


def test_eight_levels_of_a_full_rack_fit_into_one_message_and_a_call_into_one_frame():
    full = msgspec.structs.replace(TABLE, levels=(Level(limits_w=(1234.5,) * 72),) * 8)
    assert len(encode(full)) < agent_link.MESSAGE_MAX_BYTES / 4
    assert len(encode(CALL)) < 200


@pytest.mark.parametrize("limit_w", [-1.0, 1e6, 1e300])
def test_one_limit_that_is_no_power_refuses_the_whole_table(limit_w):
    with pytest.raises(LinkError, match="table 3/9: a limit is not a power in W"):
        decode_table(changed(TABLE, levels=[{"limits_w": [300.0, 250.0]}, {"limits_w": [200.0, limit_w]}]))


@pytest.mark.parametrize("limit_w", [math.nan, math.inf])
def test_a_limit_that_is_no_number_does_not_cross_the_wire(limit_w):
    with pytest.raises(LinkError, match="not a Table"):
        decode_table(encode(msgspec.structs.replace(TABLE, levels=(Level(limits_w=(limit_w,)),))))


@pytest.mark.parametrize(
    ("decode", "message", "fields"),
    [
        *((decode_call, CALL, {name: value}) for name in ("epoch", "seq", "version", "level")
          for value in (-1, 2**53, 1.5, "1", None, ...)),
        *((decode_table, TABLE, {name: value}) for name in ("epoch", "version") for value in (-1, 2**53, ...)),
        (decode_call, CALL, {"sent_at_s": None}),
        (decode_table, TABLE, {"levels": None}),
        (decode_table, TABLE, {"levels": ...}),
        (decode_table, TABLE, {"levels": [[300.0]]}),
        (decode_table, TABLE, {"levels": [{}]}),
    ],
)  # fmt: skip
def test_a_message_of_another_shape_is_refused_and_the_field_is_named(decode, message, fields):
    with pytest.raises(LinkError, match=next(iter(fields))):
        decode(changed(message, **fields))


@pytest.mark.parametrize(("decode", "message"), [(decode_table, TABLE), (decode_call, CALL)])
def test_another_version_is_refused_with_both_numbers(decode, message):
    with pytest.raises(LinkError, match=f"version 99, this side speaks {agent_link.VERSION}"):
        decode(changed(message, v=99))


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b"[" * 10_000, b'{"x":' + b"[" * 60_000]
)
@pytest.mark.parametrize("decode", [decode_table, decode_call])
def test_garbage_is_refused_with_a_sentence(decode, payload):
    with pytest.raises(LinkError):
        decode(payload)


def test_a_call_is_no_order_and_an_order_no_call():
    with pytest.raises(LinkError):
        decode_order(encode(CALL))
    with pytest.raises(LinkError):
        decode_call(encode(TABLE))


def test_a_table_goes_to_one_node_and_a_call_to_all_of_a_block():
    assert table_topic("b1", "n7") == "powerblock/b1/agent/n7/table"
    assert call_topic("b1") == "powerblock/b1/agents/call"
