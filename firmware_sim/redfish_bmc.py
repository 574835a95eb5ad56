"""The BMC of one GPU host, as a Redfish server on loopback: slow, with few connections, on command worse.

Its tree is that of an HGX or GB200 host, as far as power is limited in it:

    Systems/HGX_Baseboard_0/Processors/GPU_0...    EnvironmentMetrics.PowerLimitWatts
    Chassis/Node0/Controls/Accelerator0PowerLimit...  the same limit through another door, and decoys
    Managers/BMC/NodeManager/Domains/0/Policies/0...  one limit for all GPUs together, shared out equally

What is set here ends in the column `oob_limit_mw` of the host's GPU memory, beside the limits that the driver
sets: the boards obey the lower of both, and the host's software can be dead by then.

Faults are states, not scripts: `fault = "deaf"` holds until it is taken away. `connections_peak`, `logins`
and `requests` are for whoever wants to know how it is treated.

Sources: NVIDIA DPS guide (four connections, X-Auth-Token sessions), DGX B200 user guide 9.3.13, a GB300
capture in github.com/spyroot/redfish_ctl (PowerLimitWatts 200 to 1400 W, 400 below it), DMTF DSP0266.
"""

import asyncio
import hashlib
import itertools
import json
import random
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, Self

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firmware_sim.gpu_firmware import NONE, GpuMemory

LOOPBACK: Final = "127.0.0.1"
ROOT: Final = "/redfish/v1"
SYSTEM: Final = f"{ROOT}/Systems/HGX_Baseboard_0"
NODE: Final = f"{ROOT}/Chassis/Node0"
DOMAIN: Final = f"{ROOT}/Managers/BMC/NodeManager/Domains/0"
SESSIONS: Final = f"{ROOT}/SessionService/Sessions"
TASKS: Final = f"{ROOT}/TaskService/TaskMonitors"
OPEN_PATHS: Final = frozenset({"/redfish", ROOT, SESSIONS})  # without a session
CONNECTIONS_MAX: Final = 4  # simultaneous clients of a GB200 BMC
SESSIONS_MAX: Final = 16
STOP_WAIT_MAX_S: Final = 0.2  # for requests that hang on purpose
HUGE_BODY_BYTES: Final = 4 * 1024 * 1024
BOOT_S: Final = 30  # Retry-After while booting
CERTIFICATE_LIFE: Final = timedelta(days=3650)  # what BMCs sign for themselves
MW: Final = 1000

Json = dict[str, Any]
Fault = Literal["", "ignores", "mirrors", "booting", "deaf", "huge", "garbage", "forgets_token", "forbids"]


@dataclass(frozen=True)
class Certificate:
    """Signed by itself, as BMCs come. `fingerprint`: SHA-256, hexadecimal."""

    cert_file: Path
    key_file: Path
    fingerprint: str

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


def self_signed(folder: Path, name: str = "bmc") -> Certificate:
    """A certificate for loopback, written into `folder`; several BMCs may share it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + CERTIFICATE_LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    der = made.public_bytes(serialization.Encoding.DER)
    return Certificate(cert_file, key_file, hashlib.sha256(der).hexdigest())


class RedfishBmc:
    """A BMC on loopback: `async with RedfishBmc(memory, certificate) as bmc:`.

    Args:
        memory: of the host's GPUs.
        certificate: of its TLS server.
        first: the host's first GPU in `memory`.
        count: of its GPUs; None: all from there on.
        user: of its one account.
        password: of that.
        answer_s: least and most time it takes to answer.
        session_s: a session ends after so much silence.
        seed: of the answering times.
        port: 0: any free one.

    Attributes:
        fault: `ignores` (204, and nothing happens), `mirrors` (shows the new limit, and nothing happens),
            `booting` (503), `deaf` (never answers), `huge`, `garbage`, `forgets_token` (401 to all, and the
            session is gone), `forbids` (401 to all, and the session stays).
        lost: GPUs that have fallen off the bus: their resources are gone, what they hold is not.
        wants_etag: a PATCH without If-Match is refused with 428, one with an old ETag with 412.
        has_tasks: a PATCH is accepted with 202, done when its task monitor is asked for the second time.
        policy_enabled: the domain's policies are in effect.
        connections: open now.
        connections_peak: most at a time so far, refused ones included.
        refused: connections beyond CONNECTIONS_MAX.
        logins: sessions begun so far.
        requests: method and path of each, the oldest first.
        basic_auths: requests that carried a password in their head.
    """

    def __init__(
        self,
        memory: GpuMemory,
        certificate: Certificate,
        *,
        first: int = 0,
        count: int | None = None,
        user: str = "powerblock",
        password: str = "rig password",  # noqa: S107  of a simulated BMC
        answer_s: tuple[float, float] = (1.0, 2.0),
        session_s: float = 1800.0,
        seed: int = 0,
        port: int = 0,
    ) -> None:
        self.fault: Fault = ""
        self.lost: set[int] = set()
        self.wants_etag = False
        self.has_tasks = False
        self.policy_enabled = True
        self.connections_peak = 0
        self.refused = 0
        self.logins = 0
        self.basic_auths = 0
        self.requests: list[str] = []
        self.answer_s = answer_s
        self.session_s = session_s
        count = len(memory.gpus) - first if count is None else count
        self._gpus = memory.gpus[first : first + count]
        self._shown_w = [max_mw / MW for max_mw in self._gpus["max_mw"]]  # set points, enforced or not
        self._modes = ["Automatic"] * count
        self._policy_w = float(sum(self._shown_w))
        self._account = (user, password)
        self._certificate = certificate
        self._port = port
        self._rng = random.Random(seed)  # noqa: S311  answering times
        self._sessions: dict[str, tuple[str, float]] = {}  # token -> its uri, when it was last used
        self._ids = itertools.count(1)
        self._tasks: dict[str, list[Callable[[], None]]] = {}  # monitor -> what is still to be done
        self._version = itertools.count(1)
        self._etag = f'W/"{next(self._version)}"'
        self._server: _Server | None = None
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self._port}"

    @property
    def connections(self) -> int:
        return 0 if self._server is None else self._server.open

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens. A BMC that was stopped comes back on its port, without its sessions."""
        self._server = _Server(self)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=STOP_WAIT_MAX_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port, ssl_context=self._certificate.context()).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Dead: nobody listens any more. What was limited stays limited."""
        self._sessions.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = self._server = None

    def expire_sessions(self) -> None:
        self._sessions.clear()

    def reset_limits(self) -> None:
        """What a cold start of the host does to limits that were not stored."""
        for gpu, max_mw in enumerate(self._gpus["max_mw"]):
            self._set_gpu(gpu, max_mw / MW)

    def setpoints_w(self) -> list[float]:
        """As shown, per GPU."""
        return list(self._shown_w)

    # -- what it limits ------------------------------------------------------------------------------------

    def _set_gpu(self, gpu: int, limit_w: float) -> None:
        if self.fault == "ignores":
            return
        self._shown_w[gpu] = limit_w
        self._enforce()

    def _set_policy(self, limit_w: float) -> None:
        if self.fault == "ignores":
            return
        self._policy_w = limit_w
        self._enforce()

    def _enforce(self) -> None:
        self._etag = f'W/"{next(self._version)}"'
        if self.fault == "mirrors":
            return
        share_w = self._policy_w / len(self._gpus) if self.policy_enabled else float("inf")
        for gpu, max_mw in enumerate(self._gpus["max_mw"]):
            is_set = self._shown_w[gpu] > 0 and self._modes[gpu] != "Disabled"  # 0: no limit, as HPE has it
            own_w = self._shown_w[gpu] if is_set else float("inf")
            limit_mw = round(min(own_w, share_w) * MW) if min(own_w, share_w) < float("inf") else NONE
            self._gpus["oob_limit_mw"][gpu] = NONE if limit_mw >= max_mw else limit_mw

    # -- HTTP ----------------------------------------------------------------------------------------------

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Faults first, then the session, then what was asked for; always late."""
        path = request.path.rstrip("/")
        self.requests.append(f"{request.method} {path}")
        self.basic_auths += request.headers.get("Authorization", "").startswith("Basic")
        await asyncio.sleep(self._rng.uniform(*self.answer_s))
        if self.fault in HTTP_FAULTS:
            return await HTTP_FAULTS[self.fault](request)
        if request.method == "POST" and path == SESSIONS:
            return await self._login(request)
        if path not in OPEN_PATHS and not self._is_in_session(request):
            return _error(401, "NoValidSession", "There is no valid session established.")
        if path in self._tasks:
            return self._monitor(path)
        if request.method == "DELETE" and path.startswith(SESSIONS):
            return self._logout(path)
        return await self._resource(request, path)

    async def _resource(self, request: web.BaseRequest, path: str) -> web.Response:
        if self.fault == "forbids":
            return _error(401, "InsufficientPrivilege", "There are insufficient privileges for the account.")
        resource = self._tree().get(path)
        if resource is None:
            return _error(404, "ResourceMissingAtURI", f"The resource at the URI {path} was not found.")
        if request.method == "GET":
            said = {"@odata.id": path, "Id": path.rpartition("/")[2], **resource}
            return web.json_response(said, headers={"ETag": self._etag})
        if request.method == "PATCH":
            return await self._patch(request, path)
        return _error(405, "OperationNotAllowed", f"{request.method} is not allowed.")

    async def _login(self, request: web.BaseRequest) -> web.Response:
        said = await _said(request)
        if (said.get("UserName"), said.get("Password")) != self._account:
            return _error(401, "ResourceAtUriUnauthorized", "Invalid username or password.")
        if len(self._sessions) >= SESSIONS_MAX:
            return _error(503, "SessionLimitExceeded", "The session limit has been exceeded.")
        token, uri = secrets.token_urlsafe(24), f"{SESSIONS}/{next(self._ids)}"
        self._sessions[token] = (uri, time.monotonic())
        self.logins += 1
        made = {"@odata.id": uri, "Id": uri.rpartition("/")[2], "UserName": said["UserName"]}
        return web.json_response(made, status=201, headers={"X-Auth-Token": token, "Location": uri})

    def _is_in_session(self, request: web.BaseRequest) -> bool:
        token = request.headers.get("X-Auth-Token", "")
        uri, used_at_s = self._sessions.get(token, ("", float("-inf")))
        if self.fault == "forgets_token" or time.monotonic() - used_at_s > self.session_s:
            self._sessions.pop(token, None)
            return False
        self._sessions[token] = (uri, time.monotonic())
        return True

    def _logout(self, path: str) -> web.Response:
        self._sessions = {token: one for token, one in self._sessions.items() if one[0] != path}
        return web.Response(status=204)

    async def _patch(self, request: web.BaseRequest, path: str) -> web.Response:
        wanted = request.headers.get("If-Match", "")
        if self.wants_etag and not wanted:
            return _error(428, "PreconditionRequired", "A precondition header is required.")
        if self.wants_etag and wanted not in ("*", self._etag):
            return _error(412, "PreconditionFailed", "The ETag supplied did not match.")
        change = self._change(path, await _said(request))
        if isinstance(change, web.Response):
            return change
        if not self.has_tasks:
            change()
            return web.Response(status=204)
        monitor = f"{TASKS}/{next(self._ids)}"
        self._tasks[monitor] = [lambda: None, change]
        return web.Response(status=202, headers={"Location": monitor, "Retry-After": "0"})

    def _monitor(self, path: str) -> web.Response:
        steps = self._tasks[path]
        steps.pop(0)()
        if steps:
            return web.Response(status=202, headers={"Location": path, "Retry-After": "0"})
        del self._tasks[path]
        return web.Response(status=204)

    def _change(self, path: str, said: Json) -> Callable[[], None] | web.Response:
        """What a PATCH would do, or why not."""
        for gpu in self._present():
            if path == f"{SYSTEM}/Processors/GPU_{gpu}/EnvironmentMetrics":
                return self._gpu_change(gpu, said.get("PowerLimitWatts", {}))
            if path == f"{NODE}/Controls/Accelerator{gpu}PowerLimit":
                return self._gpu_change(gpu, said)
        if path == f"{DOMAIN}/Policies/2":
            limit_w = said.get("Limit")
            most_w = float(self._gpus["max_mw"].sum()) / MW
            least_w = float(self._gpus["min_mw"].sum()) / MW
            if not isinstance(limit_w, int) or not least_w <= limit_w <= most_w:
                return _out_of_range("Limit", limit_w, least_w, most_w)
            return lambda: self._set_policy(limit_w)
        return _error(405, "PropertyNotWritable", "Nothing here can be changed.")

    def _gpu_change(self, gpu: int, said: Json) -> Callable[[], None] | web.Response:
        row = self._gpus[gpu]
        least_w, most_w = row["min_mw"] / MW, row["max_mw"] / MW
        limit_w, mode = said.get("SetPoint"), said.get("ControlMode", self._modes[gpu])
        if not isinstance(limit_w, int | float) or not least_w <= limit_w <= most_w:
            return _out_of_range("SetPoint", limit_w, least_w, most_w)
        if mode not in ("Automatic", "Disabled"):
            return _error(400, "PropertyValueNotInList", f"The value {mode} for ControlMode is not listed.")

        def change() -> None:
            self._modes[gpu] = mode
            self._set_gpu(gpu, float(limit_w))

        return change

    # -- the tree ------------------------------------------------------------------------------------------

    def _tree(self) -> dict[str, Json]:
        gpus = self._present()
        processors = [f"{SYSTEM}/Processors/{name}" for name in ("CPU_0", *(f"GPU_{gpu}" for gpu in gpus))]
        controls = [f"{NODE}/Controls/{name}" for name in (*CONTROL_DECOYS, *map(_control_name, gpus))]
        policies = [f"{DOMAIN}/Policies/{index}" for index in range(len(COMPONENTS))]
        tree: dict[str, Json] = {
            "/redfish": {"v1": f"{ROOT}/"},
            ROOT: {
                "@odata.type": "#ServiceRoot.v1_11_0.ServiceRoot",
                "RedfishVersion": "1.15.0",
                "Links": {"Sessions": _to(SESSIONS)},
                **{name: _to(f"{ROOT}/{name}") for name in ("Systems", "Chassis", "Managers")},
            },
            f"{ROOT}/Systems": _collection([SYSTEM]),
            f"{ROOT}/Chassis": _collection([NODE, f"{ROOT}/Chassis/Riser"]),
            f"{ROOT}/Managers": _collection([f"{ROOT}/Managers/BMC"]),
            SYSTEM: {"Processors": _to(f"{SYSTEM}/Processors"), "PowerState": "On"},
            f"{SYSTEM}/Processors": _collection(processors),
            processors[0]: {"ProcessorType": "CPU"},
            NODE: {"Controls": _to(f"{NODE}/Controls")},
            f"{ROOT}/Chassis/Riser": {},
            f"{NODE}/Controls": _collection(controls),
            f"{ROOT}/Managers/BMC": {"ManagerType": "BMC"},
            f"{DOMAIN.rpartition('/')[0]}": _collection([DOMAIN]),
            DOMAIN: {"Policies": _to(f"{DOMAIN}/Policies")},
            f"{DOMAIN}/Policies": _collection(policies),
        }
        sessions = [uri for uri, _ in self._sessions.values()]
        tree |= {SESSIONS: _collection(sessions), **{uri: {"UserName": self._account[0]} for uri in sessions}}
        tree |= {f"{NODE}/Controls/{name}": decoy for name, decoy in CONTROL_DECOYS.items()}
        tree |= {uri: self._policy(COMPONENTS[index]) for index, uri in enumerate(policies)}
        for gpu, uri in zip(gpus, processors[1:], strict=True):
            tree[uri] = {"ProcessorType": "GPU", "EnvironmentMetrics": _to(f"{uri}/EnvironmentMetrics")}
            tree[f"{uri}/EnvironmentMetrics"] = self._metrics(gpu)
            tree[f"{NODE}/Controls/{_control_name(gpu)}"] = self._control(gpu)
        return tree

    def _present(self) -> list[int]:
        return [gpu for gpu in range(len(self._gpus)) if gpu not in self.lost]

    def _limit(self, gpu: int) -> Json:
        row = self._gpus[gpu]
        return {
            "SetPoint": round(self._shown_w[gpu]),
            "AllowableMin": int(row["min_mw"]) // MW,
            "AllowableMax": int(row["max_mw"]) // MW,
            "ControlMode": self._modes[gpu],
        }

    def _metrics(self, gpu: int) -> Json:
        reading_w = round(float(self._gpus[gpu]["average_mw"]) / MW, 3)
        default_w = round(float(self._gpus[gpu]["default_mw"]) / MW)
        limit = {"Reading": reading_w, "DefaultSetPoint": default_w, **self._limit(gpu)}
        return {
            "@odata.type": "#EnvironmentMetrics.v1_3_0.EnvironmentMetrics",
            "PowerWatts": {"Reading": reading_w},
            "PowerLimitWatts": limit,
        }

    def _control(self, gpu: int) -> Json:
        return {
            "@odata.type": "#Control.v1_2_0.Control",
            "ControlType": "Power",
            "PhysicalContext": "Accelerator",
            "SetPointUnits": "W",
            **self._limit(gpu),
        }

    def _policy(self, component: str) -> Json:
        limit_w = self._policy_w if component == "COMP_GPU" else 800.0
        return {
            "@odata.type": "#NvidiaNmPolicy.v1_2_0.NvidiaNmPolicy",
            "AssociatedDomainID": _to(DOMAIN),
            "ComponentId": component,
            "Limit": round(limit_w),
            "Status": {"State": "Enabled" if self.policy_enabled else "Disabled"},
        }


class _Server(web.Server):
    """An HTTP server that counts its connections and hangs up on those it has no place for."""

    def __init__(self, bmc: RedfishBmc) -> None:
        super().__init__(bmc.answer)
        self.open = 0
        self._bmc = bmc
        self._counted: set[web.RequestHandler] = set()

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.open += 1
        self._counted.add(handler)
        self._bmc.connections_peak = max(self._bmc.connections_peak, self.open)
        if self.open > CONNECTIONS_MAX:
            self._bmc.refused += 1
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        if handler in self._counted:
            self._counted.remove(handler)
            self.open -= 1
        super().connection_lost(handler, exc)


COMPONENTS: Final = ("COMP_MEMORY", "COMP_CPU", "COMP_GPU")
# What a client must not take for a power limit of a GPU.
CONTROL_DECOYS: Final[Mapping[str, Json]] = {
    "CPU0Frequency": {"ControlType": "FrequencyMHz", "PhysicalContext": "CPU", "SetPoint": 3400},
    "CPU0PowerLimit": {
        "ControlType": "Power",
        "PhysicalContext": "CPU",
        "SetPoint": 500,
        "SetPointUnits": "W",
    },
    "DpuPowerLimit": {
        "ControlType": "Power",
        "PhysicalContext": "Accelerator",
        "SetPoint": 50,
        "SetPointUnits": "%",
    },
}


async def _never(_request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def _booting(_request: web.BaseRequest) -> web.StreamResponse:
    refused = _error(503, "ServiceTemporarilyUnavailable", f"Retry in {BOOT_S} seconds.")
    refused.headers["Retry-After"] = str(BOOT_S)
    return refused


async def _huge(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b" " * HUGE_BODY_BYTES, content_type="application/json")


async def _garbage(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"<html>\xff\x00 BMC web server", content_type="text/html")


HTTP_FAULTS: Final = {"booting": _booting, "deaf": _never, "huge": _huge, "garbage": _garbage}


def _control_name(gpu: int) -> str:
    return f"Accelerator{gpu}PowerLimit"


def _to(uri: str) -> Json:
    return {"@odata.id": uri}


def _collection(uris: list[str]) -> Json:
    return {"Members": [_to(uri) for uri in uris], "Members@odata.count": len(uris)}


async def _said(request: web.BaseRequest) -> Json:
    try:
        said = await request.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _error(status: int, message_id: str, message: str) -> web.Response:
    told = {"MessageId": f"Base.1.15.{message_id}", "Message": message, "Resolution": "None."}
    body = {"error": {"code": told["MessageId"], "message": message, "@Message.ExtendedInfo": [told]}}
    return web.Response(status=status, body=json.dumps(body).encode(), content_type="application/json")


def _out_of_range(name: str, value: object, least_w: float, most_w: float) -> web.Response:
    text = f"The value {value} for the property {name} is not in the supported range {least_w:g}-{most_w:g}."
    return _error(400, "PropertyValueOutOfRange", text)
