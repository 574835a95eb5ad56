"""The grid's side of the run: authority, broker, and whoever speaks for the grid.

    bare   grid operator  -- notifications, heartbeat -->  broker  -->  controller
    vtn    VTN            -- REST over https ----------------------->  its VEN
                          -- notifications ------------->  broker  -->
    dsx    ISV            -- load targets -------------->  broker  -->  its DSX Flex agent
                          <-- power states, breaches ----          <--

One broker carries them all, and the block's own link as well. What each client may do there stands in one
table, `rights_of`: least privilege, by the name in its certificate. The VEN's certificate is handed to it by
the VTN, as OpenADR's CERTIFICATE method has it; the controller's own one opens none of the VTN's topics.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol, Self

from joserfc.jwk import ECKey, KeySet

from firmware_sim import vtn
from firmware_sim.authority import Authority
from firmware_sim.facility import Heal
from firmware_sim.grid_operator import PROGRAM_ID, GridEvent, GridOperator, event_object
from firmware_sim.isv import Isv, agent_topics, load_target_topic, missing_events
from firmware_sim.scada_plan import BUS_TOPICS, MIRROR_PREFIX
from firmware_sim.scenario import Fault, Scenario, Signal
from firmware_sim.site_broker import LOOPBACK, Rights, SiteBroker

EVENT_TOPIC: Final = "openadr/events"
HEARTBEAT_TOPIC: Final = "site/heartbeat"
CANARY_TOPIC: Final = "site/canary"  # for the controller alone: who hears itself there can read the broker
VTN_PREFIX: Final = "vtn/"
VTN_POLL_S: Final = 2.0
VTN_ROUNDS_MISSED_MAX: Final = 5  # a round is ten requests; one that fails says little
ORDERS: Final = ("order", "table")  # of the block's own link: what an agent is told, and what it tells
REPORTS: Final = ("report", "facts")
CLIENT_ID: Final = "block-1"
ISV_ID: Final = "isv-1"
FEED_TAG: Final = "main-a"
ISV_KID, AGENT_KID = "isv-1-key", "agent-key"
REPORTS_TOLD_MAX: Final = 1000  # in the record of a run
REPORTS_ASKED: Final = (  # with every event: what was drawn in it
    {"payloadType": "DEMAND", "readingType": "MEAN", "units": "KW"},
    {"payloadType": "USAGE", "units": "KWH"},
)
VTN_FAULTS: Final[Mapping[str, vtn.Fault]] = {"silent": "hang", "error": "error"}


class Speaker(Protocol):
    """Somebody who tells the block what the grid wants."""

    async def publish(self, event: GridEvent) -> bool: ...

    async def cancel(self, event_id: str) -> bool: ...


class BusinessLogic:
    """Puts the operator's events onto a VTN."""

    def __init__(self, server: vtn.Vtn) -> None:
        self._server = server
        server.create_program({"id": PROGRAM_ID, "programName": PROGRAM_ID})

    async def publish(self, event: GridEvent) -> bool:
        said = event_object(event) | {"reportDescriptors": list(REPORTS_ASKED)}
        if any(one["id"] == event.id for one in self._server.objects("EVENT")):
            self._server.update_event(event.id, said)
        else:
            self._server.create_event(said)
        return True

    async def cancel(self, event_id: str) -> bool:
        self._server.delete_event(event_id)
        return True


class GridSide:
    """Use as an async context manager: broker and VTN serve inside it. `speak()` lets the others talk.

    Attributes:
        broker: where the site speaks.
        block_broker: where controller and agents speak: the same one, unless the scenario keeps them apart.
    """

    def __init__(self, scenario: Scenario, work_dir: Path) -> None:
        """Write keys, certificates and the broker's configuration. Raises RigError without its binary."""
        site = scenario.site
        self._scenario = scenario
        self._work_dir = work_dir
        self.authority = Authority(work_dir / "pki", "rig") if site.tls else None
        self.broker = SiteBroker(
            site.broker, work_dir, rights_of(scenario), self.authority, scenario.broker_url
        )
        self.block_broker = (
            SiteBroker("embedded", work_dir, {}, name="block-broker") if site.own_bus else self.broker
        )
        self.operator: GridOperator | None = self._operator() if "bare" in site.signals else None
        self.vtn: vtn.Vtn | None = self._vtn() if "vtn" in site.signals else None
        self.isv: Isv | None = self._isv() if "dsx" in site.signals else None
        logic = None if self.vtn is None else BusinessLogic(self.vtn)
        speakers: dict[Signal, Speaker | None] = {"bare": self.operator, "vtn": logic, "dsx": self.isv}
        self._speakers = {signal: one for signal, one in speakers.items() if one is not None}
        self._via: dict[str, Signal] = {}  # event id -> who told it
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self._stack.push_async_callback(self.broker.stop)
            await self.broker.start()
            if self.block_broker is not self.broker:
                self._stack.push_async_callback(self.block_broker.stop)
                await self.block_broker.start()
            if self.vtn is not None:
                await self._stack.enter_async_context(self.vtn)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def speak(self) -> list[asyncio.Task[None]]:
        """Operator and ISV in business, until these tasks are ended; the VTN speaks by itself."""
        talking = [one for one in (self.operator, self.isv) if one is not None]
        return [asyncio.create_task(one.run(), name=type(one).__name__) for one in talking]

    async def publish(self, event: GridEvent, via: Signal) -> bool:
        """Tell the block; False: it cannot hear it now."""
        self._via[event.id] = via
        return await self._speakers[via].publish(event)

    async def cancel(self, event_id: str) -> bool:
        return await self._speakers[self._via[event_id]].cancel(event_id)

    # ---- who they are ---------------------------------------------------------------------------------

    def _operator(self) -> GridOperator:
        return GridOperator(
            host=self.broker.host, port=self.broker.port, tls=self.broker.calling("operator"),
            event_topic=EVENT_TOPIC, heartbeat_topic=HEARTBEAT_TOPIC,
        )  # fmt: skip

    def _vtn(self) -> vtn.Vtn:
        assert self.authority is not None  # the scenario was checked: no VTN without TLS
        secret = secrets.token_urlsafe(24)
        _write_secret(self._secret_path, secret.encode())
        ven = self.broker.identity("ven")
        notifier = vtn.Broker(
            self.broker.url,
            tls=self.broker.calling("vtn"),
            authentication={
                "method": "CERTIFICATE",
                "caCert": self.authority.ca.read_text(),
                "clientCert": ven.cert.read_text(),
                "clientKey": ven.key.read_text(),
            },
        )
        https = self.authority.serving(self.authority.server("vtn-https", [LOOPBACK]))
        return vtn.Vtn(clients={CLIENT_ID: secret}, tls=https, broker=notifier, topic_prefix=VTN_PREFIX)

    def _isv(self) -> Isv:
        own, agents = (ECKey.generate_key("P-256", {"kid": kid}) for kid in (ISV_KID, AGENT_KID))
        self._isv_keys_path.write_text(json.dumps(KeySet([own]).as_dict(private=False), indent=2) + "\n")
        _write_secret(self._agent_key_path, agents.as_pem(private=True))
        return Isv(
            host=self.broker.host, port=self.broker.port, tls=self.broker.calling("isv"),
            isv_id=ISV_ID, kid=ISV_KID, key=own, agent_id=self._scenario.block.name,
            agent_keys={AGENT_KID: agents}, feed_tags=(FEED_TAG,), alert_qos=self.broker.qos_max,
        )  # fmt: skip

    # ---- what the device under test is told -----------------------------------------------------------

    @property
    def _secret_path(self) -> Path:
        return self._work_dir / "vtn-client-secret"

    @property
    def _isv_keys_path(self) -> Path:
        return self._work_dir / f"{ISV_ID}.jwks.json"

    @property
    def _agent_key_path(self) -> Path:
        return self._work_dir / f"{AGENT_KID}.pem"

    def sources(self) -> list[dict[str, Any]]:
        """The `site.sources` of the controller's configuration, in the order of `site.signals`."""
        made = {"bare": self._bare_source, "vtn": self._vtn_source, "dsx": self._dsx_source}
        return [made[signal]() for signal in self._scenario.site.signals]

    def _bare_source(self) -> dict[str, Any]:
        return {
            "kind": "openadr_mqtt",
            "name": "utility",
            "topics": [EVENT_TOPIC],
            "heartbeat_topic": HEARTBEAT_TOPIC,
            "heartbeat_timeout_s": self._scenario.block.heartbeat_timeout_s,
            **({"canary_topic": CANARY_TOPIC} if self.authority else {}),
            **self._own_bus(),
        }

    def _own_bus(self) -> dict[str, Any]:
        """Where a source finds the site's broker, if that is not the block's."""
        return {"mqtt": self.broker.mqtt_config("controller")} if self._scenario.site.own_bus else {}

    def _vtn_source(self) -> dict[str, Any]:
        assert self.vtn is not None
        assert self.authority is not None
        return {
            "kind": "openadr_vtn",
            "name": "vtn",
            "url": self.vtn.url,
            "client_id": CLIENT_ID,
            "client_secret_file": str(self._secret_path),
            "ven_name": self._scenario.block.name,
            "resources": [self._scenario.block.name],
            "ca": str(self.authority.ca),
            "poll_s": VTN_POLL_S,
            "heartbeat_timeout_s": VTN_POLL_S * VTN_ROUNDS_MISSED_MAX,
        }

    def _dsx_source(self) -> dict[str, Any]:
        return {
            "kind": "dsx_flex",
            "name": "dsx",
            "agent_id": self._scenario.block.name,
            "feeds": {FEED_TAG: 1.0},
            "publishers": {ISV_ID: str(self._isv_keys_path)},
            "signing_key": str(self._agent_key_path),
            "signing_kid": AGENT_KID,
            "heartbeat_timeout_s": self._scenario.block.heartbeat_timeout_s,
            "alert_qos": self.broker.qos_max,
            **self._own_bus(),
        }

    def endpoints(self) -> dict[str, str]:
        """What somebody needs who wants to listen or talk by hand."""
        observer = self.broker.mqtt_config("observer")
        said = {"mqtt": self.broker.url}
        if self.authority is not None:
            said |= {key: observer[key] for key in ("ca", "cert", "key")}
        if self.vtn is not None:
            said["vtn"] = self.vtn.url
        return said

    def agent_mqtt(self, node: str, through_port: int | None = None) -> dict[str, Any]:
        """The `mqtt` of that node's configuration. `through_port`: of a link that breaks, on loopback."""
        config = self.block_broker.mqtt_config(agent_identity(node))
        if through_port is not None:
            scheme = config["url"].partition("://")[0]
            config["url"] = f"{scheme}://{LOOPBACK}:{through_port}"
        return config

    # ---- faults ---------------------------------------------------------------------------------------

    async def break_operator(self, _fault: Fault) -> Heal:
        """Whoever publishes wishes himself falls silent."""
        silenced = [one for one in (self.operator, self.isv) if one is not None]
        for one in silenced:
            one.silent = True

        async def heal() -> None:
            for one in silenced:
                one.silent = False

        return heal

    async def break_vtn(self, fault: Fault) -> Heal:
        """silent: takes requests and never answers; error: answers 500; refusing: not there at all."""
        server = self.vtn
        assert server is not None
        if fault.mode == "refusing":
            await server.stop()
            return server.start
        server.faults[vtn.ALL_PATHS] = VTN_FAULTS[fault.mode]

        async def heal() -> None:
            del server.faults[vtn.ALL_PATHS]

        return heal

    async def break_certificate(self, _fault: Fault) -> Heal:
        """The broker comes back with a certificate that nobody here has a reason to believe."""
        own = self.authority
        assert own is not None
        await self.broker.show_certificate_of(Authority(self._work_dir / "pki-foreign", "foreigner"))
        return lambda: self.broker.show_certificate_of(own)

    # ---- what they heard ------------------------------------------------------------------------------

    def figures(self) -> dict[str, float | None]:
        """For the verdict."""
        said: dict[str, float | None] = {}
        if self.isv is not None:
            heard = [status.event for status in self.isv.statuses]
            said["status_events_missing"] = float(len(missing_events(heard, self._scenario.status_events)))
            said["status_refused"] = float(len(self.isv.refused))
        if self.vtn is not None:
            said["reports_received"] = float(len(self.vtn.reports))
        return said

    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """What is always expected: nothing that cannot be believed, everything that was to come."""
        if self.isv is None:
            return {}
        return dict.fromkeys(("status_events_missing", "status_refused"), (None, 0.0))

    def record(self, started_utc_s: float) -> dict[str, Any]:
        """What they heard, in seconds since `started_utc_s`; for the report."""
        said: dict[str, Any] = {}
        if self.isv is not None:
            said["dsx"] = {
                kind: [{"t_s": one.heard_utc_s - started_utc_s, **_without_time(one)} for one in heard]
                for kind, heard in (
                    ("statuses", self.isv.statuses),
                    ("breaches", self.isv.breaches),
                    ("refused", self.isv.refused),
                )
            }
        if self.vtn is not None:
            said["vtn"] = {"reports": self.vtn.reports[-REPORTS_TOLD_MAX:]}
        return said


def rights_of(scenario: Scenario) -> dict[str, Rights]:
    """What each client of the broker may do; those whose signal is not spoken are not there."""
    block, signals = scenario.block, scenario.site.signals
    link = f"powerblock/{block.name}/agent"
    own = agent_topics(block.name)
    told: dict[Signal, Rights] = {  # to the controller, itself
        "bare": Rights(read=(EVENT_TOPIC, HEARTBEAT_TOPIC, CANARY_TOPIC), write=(CANARY_TOPIC,)),
        "vtn": Rights(),
        "dsx": Rights(read=(load_target_topic("+"),), write=tuple(own)),
    }
    telling: dict[Signal, dict[str, Rights]] = {
        "bare": {"operator": Rights(write=(EVENT_TOPIC, HEARTBEAT_TOPIC))},
        "vtn": {
            "vtn": Rights(write=(f"{VTN_PREFIX}#",)),
            "ven": Rights(read=(f"{VTN_PREFIX}events/#", f"{VTN_PREFIX}programs/#")),
        },
        "dsx": {"isv": Rights(read=tuple(own), write=(load_target_topic(ISV_ID),))},
    }
    everybody = f"powerblock/{block.name}/agents/call"
    controller = Rights(
        read=(
            *(f"{link}/+/{kind}" for kind in REPORTS),
            *(topic for signal in signals for topic in told[signal].read),
        ),
        write=(
            *(f"{link}/+/{kind}" for kind in ORDERS),
            everybody,
            *(topic for signal in signals for topic in told[signal].write),
        ),
    )
    agents = {
        agent_identity(node.name): Rights(
            read=(*(f"{link}/{node.name}/{kind}" for kind in ORDERS), everybody),
            write=tuple(f"{link}/{node.name}/{kind}" for kind in REPORTS),
        )
        for node in block.nodes
    }
    served = _served_rights(scenario)
    speakers = {name: rights for signal in signals for name, rights in telling[signal].items()}
    all_but_one = {"controller": controller, **agents, **speakers, **served}
    # who looks on hears what anybody may say; `#` would show NATS' own subjects as well
    said = dict.fromkeys(topic for rights in all_but_one.values() for topic in rights.write)
    return {"observer": Rights(read=tuple(said)), **all_but_one}


def _served_rights(scenario: Scenario) -> dict[str, Rights]:
    """Of the facility server, and of those who read what it publishes."""
    if not scenario.facility.serve:
        return {}
    own = (f"{MIRROR_PREFIX}/{scenario.block.name}/#", BUS_TOPICS)
    return {"facility": Rights(write=own), "scada": Rights(read=own)}


def agent_identity(node: str) -> str:
    """The name in the certificate of a node's agent."""
    return f"agent-{node}"


def _without_time(one: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(one).items() if key != "heard_utc_s"}


def _write_secret(path: Path, text: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(text)
