"""What the server makes itself, against the library's own decoder; and that the library is still as fenced."""

import inspect
import math

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.server.internal_server import InternalServer
from asyncua.server.internal_session import InternalSession
from asyncua.server.server import Server
from asyncua.server.uaprocessor import UaProcessor
from asyncua.ua.ua_binary import struct_from_binary, variant_from_binary
from hypothesis import given
from hypothesis import strategies as st

from protocols.opcua.server_events import CONDITION_ID, Event, EventFilter, FilterError
from protocols.opcua.server_space import UNITS, properties_of
from protocols.opcua.server_values import ENCODERS, Meaning, moment, overflowed, stamped, ticks

UNCERTAIN, BAD, AT_S = 0x40000000, 0x80310000, 1_700_000_000.25


def decoded(encoded):
    buffer = Buffer(encoded)
    answer = struct_from_binary(ua.DataValue, buffer)
    assert len(buffer) == 0
    return answer


# --- values ---------------------------------------------------------------------------------------------


@given(value=st.floats(), status=st.sampled_from([0, UNCERTAIN, BAD]))
def test_a_number_is_on_the_wire_what_the_standard_says(value, status):
    answer = decoded(ENCODERS[ua.VariantType.Double](value, status, ticks(AT_S), ticks(AT_S + 1)))
    shown = answer.Value.Value
    assert (shown is None) == bool(status & 0x80000000)
    assert shown is None or shown == value or (math.isnan(shown) and math.isnan(value))
    assert (answer.StatusCode.value if answer.StatusCode else 0) == status
    assert (answer.SourceTimestamp, answer.ServerTimestamp) == (moment(AT_S), moment(AT_S + 1))


@given(
    value=st.floats(),
    kind=st.sampled_from([ua.VariantType.UInt32, ua.VariantType.Int32, ua.VariantType.UInt64]),
)
def test_a_number_that_does_not_fit_its_type_has_no_value_and_breaks_nothing(value, kind):
    answer = decoded(ENCODERS[kind](value, 0, 1, 1))
    if answer.Value.Value is None:
        assert answer.StatusCode.name == "BadOutOfRange"
    else:
        assert answer.Value.VariantType is kind
        assert abs(answer.Value.Value - value) <= 0.5


@given(text=st.text(), status=st.sampled_from([0, UNCERTAIN, BAD]))
def test_a_text_is_on_the_wire_what_the_standard_says(text, status):
    answer = decoded(ENCODERS[ua.VariantType.String](text, status, 1, 1))
    assert answer.Value.Value == (None if status & 0x80000000 else text.encode("utf-8", "replace").decode())


@given(
    value=st.floats(allow_nan=False),
    status=st.sampled_from([0, UNCERTAIN, BAD]),
    times=st.sampled_from(list(ua.TimestampsToReturn)[:4]),
    marked=st.booleans(),
)
def test_times_can_be_left_out_and_a_loss_marked_without_encoding_anew(value, status, times, marked):
    encoded = ENCODERS[ua.VariantType.Double](value, status, ticks(AT_S), ticks(AT_S))
    answer = decoded(stamped(overflowed(encoded) if marked else encoded, times))
    assert (answer.StatusCode.value if answer.StatusCode else 0) == status | (0x480 if marked else 0)
    wanted = {"Source": (1, 0), "Server": (0, 1), "Both": (1, 1), "Neither": (0, 0)}[times.name]
    assert (answer.SourceTimestamp is not None, answer.ServerTimestamp is not None) == wanted
    assert status or answer.Value.Value == value


def test_units_have_the_codes_of_unece():
    """OPC 10000-8, 5.6.4.3: the characters of the code, one byte each."""
    assert int.from_bytes(UNITS["W"][0].encode(), "big") == 5_723_220
    assert int.from_bytes(UNITS["degC"][0].encode(), "big") == 4_408_652
    assert int.from_bytes(UNITS["%"][0].encode(), "big") == 20_529
    unknown = properties_of(Meaning(unit="furlong"))["EngineeringUnits"].Value
    assert (unknown.UnitId, unknown.DisplayName.Text) == (-1, "furlong")


# --- events ---------------------------------------------------------------------------------------------


def clause(*path, attribute=ua.AttributeIds.Value):
    return ua.SimpleAttributeOperand(ua.NodeId(2041), [ua.QualifiedName(name) for name in path], attribute)


def element(operator, *operands):
    made = [one if not isinstance(one, int | str | ua.NodeId) else literal(one) for one in operands]
    return ua.ContentFilterElement(operator, made)


def literal(value):
    return ua.LiteralOperand(ua.Variant(value))


def wanting(*elements, fields=(("Message",),)):
    return EventFilter(ua.EventFilter([clause(*path) for path in fields], ua.ContentFilter(list(elements))))


EVENT = Event(
    {
        "Severity": ua.Variant(900, ua.VariantType.UInt16),
        "Message": ua.Variant(ua.LocalizedText("water")),
        "ActiveState/Id": ua.Variant(True),
        CONDITION_ID: ua.Variant(ua.NodeId("alarms/leak", 2)),
    },
    frozenset({2041, 2915}),
    frozenset(),
)
OPERATOR = ua.FilterOperator


@pytest.mark.parametrize(
    ("elements", "wanted"),
    [
        ([], True),
        ([element(OPERATOR.OfType, ua.NodeId(2915))], True),
        ([element(OPERATOR.OfType, ua.NodeId(2041))], True),  # derived from it
        ([element(OPERATOR.OfType, ua.NodeId(2052))], False),
        ([element(OPERATOR.OfType, ua.NodeId(2915, 3))], False),
        ([element(OPERATOR.GreaterThanOrEqual, clause("Severity"), 500)], True),
        ([element(OPERATOR.LessThan, clause("Severity"), 500)], False),
        ([element(OPERATOR.GreaterThan, clause("Severity"), "500")], False),  # a text is no number
        ([element(OPERATOR.GreaterThan, clause("Nothing"), 500)], False),
        ([element(OPERATOR.IsNull, clause("Nothing"))], True),
        ([element(OPERATOR.Between, clause("Severity"), 100, 900)], True),
        ([element(OPERATOR.InList, clause("Severity"), 1, 900)], True),
        ([element(OPERATOR.Equals, clause("ActiveState", "Id"), ua.LiteralOperand(ua.Variant(True)))], True),
        (
            [
                element(OPERATOR.And, ua.ElementOperand(1), ua.ElementOperand(2)),
                element(OPERATOR.Not, ua.ElementOperand(2)),
                element(OPERATOR.OfType, ua.NodeId(2052)),
            ],
            False,
        ),
        (
            [
                element(OPERATOR.Or, ua.ElementOperand(1), ua.ElementOperand(2)),
                element(OPERATOR.OfType, ua.NodeId(2052)),
                element(OPERATOR.OfType, ua.NodeId(2915)),
            ],
            True,
        ),
    ],
)
def test_a_client_hears_what_its_filter_wants(elements, wanted):
    assert wanting(*elements).wants(EVENT) is wanted


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ([element(OPERATOR.Like, clause("Message"), "%")], "is not known here"),
        ([element(OPERATOR.And, ua.ElementOperand(0), ua.ElementOperand(0))], "only to later ones"),
        ([element(OPERATOR.Not, ua.ElementOperand(7))], "only to later ones"),
        ([element(OPERATOR.Equals, clause("Severity"))], "is not known here"),
        ([element(OPERATOR.OfType, ua.AttributeOperand())], "AttributeOperand is not known"),
        ([element(OPERATOR.IsNull, clause("Severity"))] * 65, "at most 64"),
    ],
)
def test_a_filter_that_could_not_be_told_is_refused_at_once(elements, words):
    with pytest.raises(FilterError, match=words):
        wanting(*elements)


def test_an_event_is_encoded_once_for_all_that_want_the_same_fields():
    wanted = wanting(fields=(("Severity",), ("Nothing",), ("ActiveState", "Id"))).fields
    buffer = Buffer(EVENT.encoded(wanted))
    assert int.from_bytes(buffer.read(4), "little") == 3
    assert [variant_from_binary(buffer).Value for _ in range(3)] == [900, None, True]
    assert EVENT.encoded(wanted) is EVENT.encoded(tuple(wanted))
    condition = EventFilter(ua.EventFilter([clause(attribute=ua.AttributeIds.NodeId)], ua.ContentFilter()))
    assert condition.fields == (CONDITION_ID,)


# --- the library ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (InternalServer.create_session, ("user: User", "external: bool")),
        (InternalSession.activate_session, ("self.iserver.user_manager is not None", "self.user = user")),
        (InternalSession.__init__, ("if self.external:", "register_external_session")),
        (InternalSession.close_session, ("await self.delete_subscriptions(",)),
        (UaProcessor.process_message, ("nodeid_from_binary(body)", "await self._process_message(")),
        (UaProcessor._process_message, ("self.iserver.create_session(self.name, external=True)",
                                        "await self.session.create_subscription(",
                                        "self.session.subscription_service.subscriptions.get(subscription_id)",
                                        "await sub.publish_results(data)")),
        (UaProcessor.forward_publish_response, ("self.send_response(",)),
        (OPCUAProtocol.connection_made, ("self.processor = UaProcessor(", "self.processor.set_policies(self.policies)")),
        (OPCUAProtocol.data_received, ("self._buffer += data",)),
        (BinaryServer.start, ("self._make_protocol",)),
        (Server.start, ("await self._setup_server_nodes()", "await self.iserver.start()", "BinaryServer(")),
    ],
)  # fmt: skip
def test_the_library_is_still_what_our_fences_were_built_around(function, words):
    """If this fails after an update of asyncua: read that function anew, then protocols/opcua/server*.py."""
    source = inspect.getsource(function)
    for one in words:
        assert one in source
