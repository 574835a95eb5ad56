"""BMS event bus 1.0.0 of NVIDIA DSX Exchange: topics, metadata and values, without a wire.

    catalogue   object types, the point types that each has, and their units or states
    metadata    what a point is: told, retained, before any of its values
    value       one reading of a point, either way
    topics      where these live, and who may publish there

The building management system (BMS) publishes below `BMS/v1/PUB`. An integration, which is a program of the
IT side, publishes values alone, below `BMS/v1/<its name>`, and only for points whose metadata names it.
Everything is JSON over MQTT 3.1.1.
"""

from protocols.bms.catalogue import OBJECTS, POINTS, BmsError, Kind, PointType
from protocols.bms.metadata import Metadata
from protocols.bms.topics import metadata_topic, request_filter, request_topic, value_topic
from protocols.bms.value import BAD, GOOD, UNCERTAIN, Value, read_value

__all__ = [
    "BAD",
    "GOOD",
    "OBJECTS",
    "POINTS",
    "UNCERTAIN",
    "BmsError",
    "Kind",
    "Metadata",
    "PointType",
    "Value",
    "metadata_topic",
    "read_value",
    "request_filter",
    "request_topic",
    "value_topic",
]
