"""The server: what is shown, what is told of alarms, and what becomes of an order.

An order goes to the controller over the image socket and is answered with what became of it: Good,
GoodClamped, or a bad status and the reason in words. A write of a device's point is such an order. Nothing is
accepted here on the controller's behalf, and while it is not heard, every value is Bad_NoCommunication.

Who did what is told as an audit event to engineers, besides the controller's own log.
"""

import asyncio
import gc
import math
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from asyncua import ua

from controller.facility.config import OpcUaServerConfig
from controller.facility.door import Door
from controller.facility.opcua import alarms
from controller.facility.opcua.control import METHODS, OUTPUTS, Order
from controller.facility.opcua.history import History
from controller.facility.opcua.space import BLOCK, FOLDER, ROOT, TYPES, GroupBatch, add_groups, add_types
from controller.facility.opcua.users import Users
from controller.image.feed import ImageFeed
from controller.image.model import AlarmView, Command, Outcome, Result, Role
from controller.verbs import VERBS
from controller.yaml_config import ConfigError
from protocols.opcua.server import UNSECURED, OpcUaServer, Settings
from protocols.opcua.server_access import ClientFolder, Identity, Own, RefusedError, own_certificate
from protocols.opcua.server_events import Event
from protocols.opcua.server_session import Caller, Rules
from protocols.opcua.server_space import Answer, Argument, Method, Thing
from protocols.opcua.server_values import Variable

NAMESPACE: Final = "urn:powerblock:image"  # with the identifiers in it, an interface for good
CONTROL: Final = "Control"
GATHER_S: Final = 0.2  # a gateway that starts learns what its devices are one after the other
VIA: Final = "opcua"
DEVICES: Final = "devices/"
SERVICE_LEVEL, SERVICE_LEVEL_BLIND = 255, 50  # OPC 10000-4, 6.6.2.4.2: full, and degraded
AUDIT_SEVERITY, LOSS_SEVERITY, MODEL_SEVERITY = 200, 900, 100

STATUS: Final = {
    Result.ACCEPTED: int(ua.StatusCodes.Good),
    Result.CLAMPED: int(ua.StatusCodes.GoodClamped),
    Result.REJECTED: int(ua.StatusCodes.BadRequestNotAllowed),
}

log = structlog.get_logger(__name__)


POLICIES: Final = {
    (policy, mode): getattr(ua.SecurityPolicyType, f"{policy}_{mode}")
    for policy in ("Aes256Sha256RsaPss", "Aes128Sha256RsaOaep", "Basic256Sha256")
    for mode in ("SignAndEncrypt", "Sign")
}


class OpcUaFacility:
    """Serves an image over OPC UA.

    Args:
        config: of the server.
        feed: the mirror; its callbacks are extended.
        block: its name.
        state_dir: where certificates lie if the configuration names no folder.

    Raises:
        ConfigError: certificate, key or users cannot be used; says which and what to do.
    """

    def __init__(self, config: OpcUaServerConfig, feed: ImageFeed, *, block: str, state_dir: Path) -> None:
        self._config, self._feed = config, feed
        uri = config.uri or f"urn:{socket.gethostname()}:powerblock:{block}"
        folder = config.folder or state_dir / "opcua"
        anonymous = Role.OBSERVE if config.anonymous == "observe" else Role.NOBODY
        self._history = History(round(config.history_h * 3600.0 / config.history_period_s))
        rules = Rules(
            clients=_clients(folder),
            users=Users(config.users, anonymous),
            write=self._write,
            keeper=self._history,
            standard_calls={
                ua.ObjectIds.ConditionType_ConditionRefresh: self._refresh,
                ua.ObjectIds.ConditionType_ConditionRefresh2: self._refresh,
                ua.ObjectIds.AcknowledgeableConditionType_Acknowledge: self._acknowledge,
            },
        )
        self._uri = uri
        self._server = OpcUaServer(_settings(config, uri, block), _own(config, folder, uri), rules)
        self._door = Door("facility.opcua", config.host, config.port)
        self._shown: dict[str, alarms.Shown] = {}
        self._rebuilding: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """That it listens on, once it runs."""
        return self._server.port

    @property
    def fault(self) -> str:
        """Why nobody can connect; "": one can."""
        return self._door.fault

    async def run(self) -> None:
        """Serve for ever, as soon as the port is to be had."""
        server, feed = self._server, self._feed
        await server.prepare()
        add_types(server.space)
        self._build()
        feed.on_shape.append(self._reshaped)
        feed.on_alarms.append(self._tell_alarms)
        feed.on_alive.append(self._tell_life)
        server.serve_level(lambda: SERVICE_LEVEL if feed.alive else SERVICE_LEVEL_BLIND)
        gc.collect()
        gc.freeze()  # 40,000 standard nodes that stay: looking through them takes 0.1 s each time
        await self._door.is_free()
        await server.start()
        log.info("opc ua: serving", host=self._config.host, port=server.port, points=self._points)
        try:
            while True:
                await asyncio.sleep(self._config.history_period_s)
                self._history.sample()
        finally:
            if self._rebuilding is not None:
                self._rebuilding.cancel()
            await server.stop()

    # --- what is shown ----------------------------------------------------------------------------------

    @property
    def _points(self) -> int:
        """Of the image: alarms come and go, and types and methods are none."""
        return sum(isinstance(entry, Variable) for entry in self._server.space.entries.values())

    def _reshaped(self) -> None:
        if self._rebuilding is None:
            self._rebuilding = asyncio.get_running_loop().call_later(GATHER_S, self._rebuild)

    def _rebuild(self) -> None:
        self._rebuilding = None
        self._server.space.clear_things()
        self._build()
        self._server.rebuilt()
        kinds = (ua.ObjectIds.BaseModelChangeEventType,)
        self._tell(
            alarms.plain_event(kinds, "points have come or gone", self._notifiers, severity=MODEL_SEVERITY)
        )

    def _build(self) -> None:
        space = self._server.space
        space.add(Thing(BLOCK, ROOT, BLOCK, self._feed.block, TYPES["block"], is_notifier=True))
        space.add(Thing(alarms.FOLDER, BLOCK, alarms.FOLDER, type=FOLDER, is_notifier=True))
        space.add(Thing(CONTROL, BLOCK, CONTROL, "orders", TYPES["control"]))
        for name, verb, title, given in METHODS:
            inputs = tuple(Argument(one.name, one.kind, one.title) for one in given)
            needs = int(VERBS[verb].role)
            call = Order(self, f"{CONTROL}/{name}", verb, given)
            space.add(Method(f"{CONTROL}/{name}", CONTROL, name, title, needs, inputs, OUTPUTS, call))
        self._history.keep(add_groups(space, self._feed, self._config.history))
        self._shown = {}
        self._show_alarms()

    # --- alarms -----------------------------------------------------------------------------------------

    def _tell_alarms(self) -> None:
        for event in self._show_alarms():
            self._tell(event)

    def _show_alarms(self) -> list[Event]:
        """Their objects as they should be now; the transitions since."""
        space, events = self._server.space, []
        before, self._shown = self._shown, {}
        keys = {alarm.key for alarm in self._feed.alarms}
        for one, is_news in alarms.news(before, self._feed.alarms, space.node_id, self._source):
            key, id_ = one.alarm.key, alarms.id_of(one.alarm)
            if is_news:
                events.append(alarms.alarm_event(one, self._notifiers))
            if key not in keys:
                space.remove(id_)
                continue
            self._shown[key] = one
            entry = space.entries.get(id_)
            if entry is None:
                values = alarms.properties(one)
                kind = ua.ObjectIds.AlarmConditionType
                space.add(Thing(id_, alarms.FOLDER, key, one.alarm.text, kind, values))
            elif isinstance(entry, Thing):
                entry.values = alarms.properties(one)
        return events

    def _source(self, alarm: AlarmView) -> str:
        """What it is of: the object whose identifier is in its key, or the block."""
        parts = alarm.key.replace(":", "/").split("/")
        ids = (
            "/".join(parts[start:end]) for start in range(len(parts)) for end in range(len(parts), start, -1)
        )
        return next((id_ for id_ in ids if isinstance(self._server.space.entries.get(id_), Thing)), BLOCK)

    def _tell_life(self) -> None:
        alive = self._feed.alive
        text = "the controller is heard" if alive else "the controller is not heard: no value is known"
        kinds = (ua.ObjectIds.DeviceFailureEventType, ua.ObjectIds.SystemEventType)
        severity = MODEL_SEVERITY if alive else LOSS_SEVERITY
        self._tell(alarms.plain_event(kinds, text, self._notifiers, severity=severity))

    @property
    def _notifiers(self) -> frozenset[ua.NodeId]:
        node_id = self._server.space.node_id
        return frozenset({ua.NodeId(ua.ObjectIds.Server), node_id(BLOCK), node_id(alarms.FOLDER)})

    def _tell(self, event: Event) -> None:
        self._server.tell(event)

    async def _refresh(self, caller: Caller, _object: ua.NodeId, given: list[Any]) -> Answer:
        """ConditionRefresh: what is retained, to one subscription, or to one item of it."""
        if not 1 <= len(given) <= 2 or not all(isinstance(one, int) for one in given):
            return Answer(ua.StatusCodes.BadInvalidArgument)
        number, item = given[0], given[1] if len(given) > 1 else None
        begin, end = (
            alarms.plain_event((kind, ua.ObjectIds.SystemEventType), "refresh", self._notifiers, severity=1)
            for kind in (ua.ObjectIds.RefreshStartEventType, ua.ObjectIds.RefreshEndEventType)
        )
        retained = [
            alarms.alarm_event(one, self._notifiers) for one in self._shown.values() if one.is_retained
        ]
        if not all(caller.hears(number, event, item) for event in (begin, *retained, end)):
            return Answer(ua.StatusCodes.BadSubscriptionIdInvalid)
        return Answer(ua.StatusCodes.Good)

    async def _acknowledge(self, caller: Caller, condition: ua.NodeId, given: list[Any]) -> Answer:
        """Acknowledge of the standard: the transition that was seen, and a comment."""
        if caller.identity.role < VERBS["acknowledge"].role:
            return Answer(ua.StatusCodes.BadUserAccessDenied)
        if len(given) != 2:
            return Answer(ua.StatusCodes.BadArgumentsMissing)
        node_id = self._server.space.node_id
        one = next((o for o in self._shown.values() if node_id(alarms.id_of(o.alarm)) == condition), None)
        if one is None:
            return Answer(ua.StatusCodes.BadNodeIdUnknown)
        if given[0] != one.event_id:
            return Answer(ua.StatusCodes.BadEventIdUnknown)
        if one.alarm.acknowledged:
            return Answer(ua.StatusCodes.BadConditionBranchAlreadyAcked)
        outcome = await self.order(caller.identity, "acknowledge", {"key": one.alarm.key}, "Acknowledge")
        return Answer(self.status_of(outcome))

    # --- orders -----------------------------------------------------------------------------------------

    async def order(
        self, identity: Identity, verb: str, arguments: Mapping[str, float | str], what: str
    ) -> Outcome:
        """Have it done, and tell who wanted it."""
        command = Command(
            verb=verb, arguments=dict(arguments), by=identity.name, role=Role(identity.role), via=VIA
        )
        outcome = await self._feed.command(command)
        if verb != "heartbeat":
            self._audit(identity, what, arguments, outcome)
        return outcome

    def status_of(self, outcome: Outcome) -> int:
        if outcome.result is Result.REJECTED and not self._feed.alive:
            return int(ua.StatusCodes.BadNoCommunication)
        return STATUS[outcome.result]

    async def _write(self, identity: Identity, variable: Variable, value: Any) -> int:
        """A write of a device's point."""
        meaning = variable.meaning
        low = meaning.lowest is not None and value < meaning.lowest
        high = meaning.highest is not None and value > meaning.highest
        unknown = bool(meaning.states) and value not in meaning.states
        if low or high or unknown or not math.isfinite(value):
            return int(ua.StatusCodes.BadOutOfRange)
        assert isinstance(variable.batch, GroupBatch)
        group = variable.batch.group
        point = group.points[variable.place].name
        arguments = {"device": group.path.removeprefix(DEVICES), "point": point, "value": value}
        outcome = await self.order(identity, "write", arguments, variable.id)
        return self.status_of(outcome)

    def _audit(
        self, identity: Identity, what: str, arguments: Mapping[str, float | str], outcome: Outcome
    ) -> None:
        said = ", ".join(f"{name}={value}" for name, value in arguments.items())
        done = Result(outcome.result).name.lower() + (f": {outcome.reason}" if outcome.reason else "")
        fields = {
            "ActionTimeStamp": ua.Variant(None, ua.VariantType.Null),
            "Status": ua.Variant(outcome.result is not Result.REJECTED, ua.VariantType.Boolean),
            "ServerId": ua.Variant(self._uri, ua.VariantType.String),
            "ClientAuditEntryId": ua.Variant("", ua.VariantType.String),
            "ClientUserId": ua.Variant(identity.name, ua.VariantType.String),
            "MethodId": ua.Variant(self._server.space.node_id(what), ua.VariantType.NodeId),
        }
        kinds = (ua.ObjectIds.AuditUpdateMethodEventType, ua.ObjectIds.AuditEventType)
        self._tell(
            alarms.plain_event(
                kinds,
                f"{identity.name}: {what}({said}): {done}",
                frozenset({ua.NodeId(ua.ObjectIds.Server)}),
                severity=AUDIT_SEVERITY,
                needs=int(Role.ENGINEER),
                fields=fields,
            )
        )


def _settings(config: OpcUaServerConfig, uri: str, block: str) -> Settings:
    policies = [POLICIES[policy, mode] for policy in config.policies for mode in config.modes]
    return Settings(
        host=config.host,
        port=config.port,
        uri=uri,
        name=config.name or f"powerblock {block}",
        namespace=NAMESPACE,
        policies=[*policies, UNSECURED] if config.unsecured else policies,
        sessions_max=config.sessions_max,
        guesses_per_minute=config.guesses_per_minute,
        fastest_s=config.fastest_s,
    )


def _clients(folder: Path) -> ClientFolder:
    for name in ("trusted", "rejected"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return ClientFolder(folder)


def _own(config: OpcUaServerConfig, folder: Path, uri: str) -> Own:
    own = folder / "own"
    certificate, key = config.certificate or own / "cert.der", config.key or own / "key.pem"
    try:
        return own_certificate(certificate, key, uri, may_make=config.certificate is None)
    except RefusedError as error:
        raise ConfigError(f"facility.opcua: {error}") from error
