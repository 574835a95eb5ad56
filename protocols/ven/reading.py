"""What a VTN says, made ours: answers to HTTP requests and notifications, out of bytes of any kind.

Read here is only what the VEN itself acts on: ids, names, targets, topics, tokens. What an event asks of the
block is the receiver's to judge, strictly, on the bytes as they came. So this is tolerant: camelCase,
snake_case and UPPER CASE keys are all met in the field, and so are the targets of two generations.

All functions are pure. What cannot be used is a `VtnFault` with a sentence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

import msgspec

from protocols.ven.faults import Refusal, VtnFault, shown
from protocols.ven.settings import VenSettings, url_fault

ITEMS_MAX: Final = 1000  # of one listing; a site has tens of events
TOKEN_LIFE_MIN_S: Final = 2.0  # whatever `expires_in` says: tokens are not fetched in a tight loop
TOKEN_LIFE_MAX_S: Final = 86_400.0
URIS_MAX: Final = 8  # of a broker, tried in turn; the rest is not looked at
LOGIN_MAX_BYTES: Final = 65_535  # of a user name or token: MQTT has room for no more
JSON_FAULTS: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

_items_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])
_members_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


# -- JSON ---------------------------------------------------------------------------------------------------


def decoded(raw: bytes) -> dict[str, Any]:
    """Raises VtnFault when it is no JSON object."""
    try:
        said = msgspec.json.decode(raw)
    except JSON_FAULTS as error:
        raise VtnFault(f"the VTN does not speak JSON: {shown(raw)}") from error
    if not isinstance(said, dict):
        raise VtnFault(f"the VTN says {shown(said)} where a JSON object belongs")
    return cast("dict[str, Any]", said)


def decoded_list(raw: bytes, what: str) -> list[msgspec.Raw]:
    """The items of a JSON list as they came. Raises VtnFault when it is none."""
    try:
        return _items_decoder.decode(raw)
    except JSON_FAULTS as error:
        raise VtnFault(f"{what}: not a JSON list: {shown(raw)}") from error


def folded(key: str) -> str:
    return key.replace("_", "").lower()


def fold(said: Mapping[str, Any]) -> dict[str, Any]:
    return {folded(key): value for key, value in said.items()}


def text(said: Mapping[str, Any], key: str) -> str | None:
    """A member, `key` as folded; None: missing, empty or no text."""
    value = said.get(key)
    return value if isinstance(value, str) and value else None


# -- objects ------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """One object that a VTN listed."""

    raw: bytes  # as it came
    said: dict[str, Any]  # what that says, keys folded; has an id

    @property
    def id(self) -> str:
        return cast("str", self.said["id"])


class Listing(NamedTuple):
    """What a VTN listed, all pages of it."""

    source: str
    items: tuple[Item, ...]
    spoiled: int  # how many were no object with an id

    def check(self) -> None:
        """One bad item does not hide the others, but neither does it pass unnoticed. Raises VtnFault."""
        if self.spoiled:
            raise VtnFault(f"{self.source}: {self.spoiled} items without a readable id; the others count")


def item(raw: bytes) -> Item | None:
    """None: not an object with an id."""
    try:
        said = fold(decoded(raw))
    except VtnFault:
        return None
    return Item(raw, said) if text(said, "id") else None


def wrapped(raw: bytes, operation: str) -> bytes:
    """A notification about an event, whose bytes stay as they came: no number is rounded on the way."""
    return b'{"objectType":"EVENT","operation":"' + operation.encode() + b'","object":' + raw + b"}"


def target_names(said: Mapping[str, Any]) -> Iterator[str]:
    """Strings in 3.1; {type, values} in 3.0, where the values are what names us."""
    targets = said.get("targets")
    for target in targets if isinstance(targets, list) else ():
        values = target.get("values") if isinstance(target, dict) else [target]
        yield from (value for value in values if isinstance(value, str)) if isinstance(values, list) else ()


@dataclass(frozen=True)
class Notification:
    """What a notification is about.

    Attributes:
        type: of the object, as the VTN writes it: "EVENT", "PROGRAM".
        deleted: the object is no more.
        said: the object, keys folded; empty: there is none, or it is a programme.
    """

    type: str
    deleted: bool
    said: dict[str, Any]


def notification(payload: bytes) -> Notification:
    """What it is about. A programme in it is not decoded: a round reads those, however many are announced.

    Raises:
        VtnFault: it is no JSON object.
    """
    try:
        raw = fold(_members_decoder.decode(payload))
        said: dict[str, Any] = {
            key: msgspec.json.decode(raw[key]) for key in ("objecttype", "operation") if key in raw
        }
        about = text(said, "objecttype") or ""
        thing = msgspec.json.decode(raw["object"]) if "object" in raw and about != "PROGRAM" else None
    except JSON_FAULTS as error:
        raise VtnFault(f"the VTN notifies of what is no JSON object: {shown(payload)}") from error
    deleted = str(said.get("operation")).upper() == "DELETE"
    return Notification(about, deleted, fold(thing) if isinstance(thing, dict) else {})


# -- the notifier -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binding:
    """Where and as whom to hear notifications, as the VTN says."""

    uris: tuple[str, ...]
    topics: tuple[str, ...]
    shared: bool  # the topics carry events for other VENs, too
    username: str | None = None
    bearer: bool = False  # the token is the password
    ca_pem: str | None = field(default=None, repr=False)
    cert_pem: str | None = field(default=None, repr=False)
    key_pem: str | None = field(default=None, repr=False)


def binding(
    said: Mapping[str, Any], topics: tuple[str, ...], settings: VenSettings, *, shared: bool
) -> Binding:
    """A broker we may use, out of an answer to GET /notifiers.

    Args:
        said: its `MQTT` member, keys folded.
        topics: filters to subscribe to.
        settings: say what we may use.
        shared: the topics carry events for other VENs, too.

    Raises:
        VtnFault: nothing in it that we may use.
    """
    if text(said, "serialization") not in (None, "JSON"):
        raise VtnFault(f"the VTN's notifier speaks {shown(said['serialization'])}, not JSON")
    uris = said.get("uris")
    offered = [uri for uri in uris[:URIS_MAX] if isinstance(uri, str)] if isinstance(uris, list) else []
    faults = [url_fault(uri, "mqtts", plain=settings.plain) for uri in offered]
    usable = tuple(uri for uri, fault in zip(offered, faults, strict=True) if not fault)
    if not usable:
        raise VtnFault(f"the VTN's notifier: {faults[0] if faults else 'no address at all'}")
    if not topics:
        raise VtnFault("the VTN names a notifier, but no topic to hear on it")
    auth = said.get("authentication")
    auth = fold(auth) if isinstance(auth, dict) else {}
    method = text(auth, "method") or "ANONYMOUS"
    if method == "ANONYMOUS":
        return Binding(usable, topics, shared)
    if method == "OAUTH2_BEARER_TOKEN":
        username = (text(auth, "username") or "{clientID}").replace("{clientID}", settings.client_id)
        if len(username.encode()) > LOGIN_MAX_BYTES:
            raise VtnFault(f"the VTN's notifier wants a user name of more than {LOGIN_MAX_BYTES} bytes")
        return Binding(usable, topics, shared, username=username, bearer=True)
    if method == "CERTIFICATE":
        ca_pem, cert_pem, key_pem = (text(auth, name) for name in ("cacert", "clientcert", "clientkey"))
        return Binding(usable, topics, shared, ca_pem=ca_pem, cert_pem=cert_pem, key_pem=key_pem)
    raise VtnFault(f"the VTN's notifier wants authentication by {shown(method)}, which OpenADR 3.1 has not")


def topic_names(raw: bytes, what: str) -> tuple[str, ...]:
    """The VTN's names for CREATE, UPDATE and DELETE, or for all; empty: it has none for that.

    Raises:
        VtnFault: no such answer.
    """
    topics = fold(decoded(raw)).get("topics")
    if not isinstance(topics, dict):
        raise VtnFault(f"{what}: its answer has no `topics`")
    names = fold(topics)
    single = tuple(name for verb in ("create", "update", "delete") if (name := text(names, verb)))
    every = text(names, "all")
    return single or (() if every is None else (every,))


# -- tokens and problems ------------------------------------------------------------------------------------


def token(status: int, body: bytes) -> tuple[str, float]:
    """The token in an answer of the token endpoint, and for how many seconds it is good.

    Raises:
        VtnFault: there is none; the sentence never shows what there is.
    """
    if not 200 <= status < 300:
        raise Refusal(f"{status}{problem(body)}; check client id and secret", status)
    try:
        answer = fold(decoded(body))
    except VtnFault:  # whose sentence would show it, and a token in the wrong format is still a token
        raise VtnFault("the answer is not a JSON object") from None
    said = text(answer, "accesstoken")
    if not said or not said.isascii() or not said.isprintable() or len(said) > LOGIN_MAX_BYTES:
        raise VtnFault("the answer has no usable access_token")
    return said, life_s(answer.get("expiresin"))


def life_s(expires_in: object) -> float:
    """`expires_in` of a token: seconds, as a number or, against the standard, as text; else a day."""
    try:
        said_s = float(cast("Any", expires_in))
    except (TypeError, ValueError, OverflowError):
        return TOKEN_LIFE_MAX_S
    # Of a NaN, min takes the first: a day.
    return max(min(TOKEN_LIFE_MAX_S, said_s), TOKEN_LIFE_MIN_S)


def problem(body: bytes) -> str:
    """What the VTN's `problem` object says, as the end of a sentence."""
    try:
        said = fold(decoded(body))
    except VtnFault:
        return ""
    texts = [told for key in ("title", "detail", "error", "errordescription") if (told := text(said, key))]
    return f" ({shown(', '.join(texts))})" if texts else ""
