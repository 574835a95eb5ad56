"""OpenADR 3 events: what the site asks of this block, in W and UTC seconds.

The notification payload of OpenADR 3.1 (and 3.0.1), wherever it comes from: a VTN's topics, its REST side, or
bare topics that the site configures. Four steps, each a module without IO or clock:

* `parse`: bytes to what is said (`model`). Tolerant of how an event is written.
* `timing`: where its intervals stand on the time axis.
* `resolve`: what it means: for each payload type a value and a window. Strict, and as a whole or not at all.
* `book`: the events in force, their versions and the windows that are left, across restarts.

Events also ask to be told: `request` says what and when, `readings` what can be told, `reports` tells it.
Beside them `heartbeat`, which the standard lacks. Targets of an event are read and not judged: the topic
decides.
"""

from protocols.openadr.book import EventBook, Rules, Verdict
from protocols.openadr.fields import PAYLOAD_MAX_BYTES, OpenAdrError
from protocols.openadr.heartbeat import Heartbeat, parse_heartbeat
from protocols.openadr.model import (
    AT_ONCE_UTC_S,
    PRIORITY_LOWEST,
    Duration,
    Event,
    Interval,
    Notification,
    Payload,
    Period,
    Program,
    ReportDescriptor,
    Units,
)
from protocols.openadr.parse import parse, parse_program
from protocols.openadr.readings import MISSING, Metered, Quality, Reading
from protocols.openadr.reports import Reports
from protocols.openadr.request import Request
from protocols.openadr.resolve import ALL_TYPES, TYPES, Meaning, Window, ignored_types, resolve, winners
from protocols.openadr.timing import FOREVER_UTC_S, parse_duration, parse_time

__all__ = [
    "ALL_TYPES",
    "AT_ONCE_UTC_S",
    "FOREVER_UTC_S",
    "MISSING",
    "PAYLOAD_MAX_BYTES",
    "PRIORITY_LOWEST",
    "TYPES",
    "Duration",
    "Event",
    "EventBook",
    "Heartbeat",
    "Interval",
    "Meaning",
    "Metered",
    "Notification",
    "OpenAdrError",
    "Payload",
    "Period",
    "Program",
    "Quality",
    "Reading",
    "ReportDescriptor",
    "Reports",
    "Request",
    "Rules",
    "Units",
    "Verdict",
    "Window",
    "ignored_types",
    "parse",
    "parse_duration",
    "parse_heartbeat",
    "parse_program",
    "parse_time",
    "resolve",
    "winners",
]
