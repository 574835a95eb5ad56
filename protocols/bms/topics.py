"""Where points live: `BMS/v1/<publisher>/<Value or Metadata>/<object type>/<point type>/<tag path>`.

The tag path is the vendor's own and may have several levels; here it is site, object and point, so it stays
the same for good. The publisher is `PUB` for the BMS, else the integration's name: brokers grant rights by
it, and nothing else says who speaks.
"""

import re
from typing import Final

from protocols.bms.catalogue import OBJECTS, BmsError

PREFIX: Final = "BMS/v1"
BMS: Final = "PUB"
TOPIC_MAX_BYTES: Final = 1024  # far less than MQTT allows, far more than a tag needs

_LEVEL: Final = re.compile(r"[^/+#\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def value_topic(object_type: str, point_type: str, tag: str) -> str:
    """Where the BMS tells values. Raises BmsError."""
    return _topic(BMS, "Value", object_type, point_type, tag)


def metadata_topic(object_type: str, point_type: str, tag: str) -> str:
    """Where the BMS tells metadata. Raises BmsError."""
    return _topic(BMS, "Metadata", object_type, point_type, tag)


def request_topic(integration: str, object_type: str, point_type: str, tag: str) -> str:
    """Where an integration tells values. Raises BmsError."""
    return _topic(checked_name(integration), "Value", object_type, point_type, tag)


def request_filter(integration: str) -> str:
    """Everything that an integration tells. Raises BmsError."""
    return f"{PREFIX}/{checked_name(integration)}/Value/#"


def checked_name(integration: str) -> str:
    """Raises BmsError."""
    if not _LEVEL.fullmatch(integration) or integration == BMS:
        raise BmsError(f"integration {integration!r}: use a name without / + # that is not {BMS}")
    return integration


def _topic(publisher: str, sort: str, object_type: str, point_type: str, tag: str) -> str:
    if point_type not in OBJECTS.get(object_type, ()):
        raise BmsError(f"{object_type}/{point_type}: not in the contract")
    if not all(map(_LEVEL.fullmatch, tag.split("/"))):
        raise BmsError(f"tag path {tag!r}: an empty level, or one with + # or control characters")
    topic = f"{PREFIX}/{publisher}/{sort}/{object_type}/{point_type}/{tag}"
    if len(topic.encode()) > TOPIC_MAX_BYTES:
        raise BmsError(f"tag path {tag[:40]!r}...: the topic takes more than {TOPIC_MAX_BYTES} bytes")
    return topic
