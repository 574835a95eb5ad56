"""What a BMC lets us limit: found by following its links, read, written, read back.

    gpu      Systems/*/Processors/GPU* -> EnvironmentMetrics, PowerLimitWatts.SetPoint   (GB200, GB300, HGX)
    control  Chassis/*/Controls/*, ControlType Power in W, SetPoint                       (HPE Cray EX)
    domain   Managers/*/NodeManager -> Domains/* -> Policies/*, Limit, for the GPUs       (DGX H100, B200)

One kind is asked for, none is tried out: these are three doors to the same limit, and Node Manager is an OEM
one. GPUs are counted in the order of their names on the BMC, which need not be the order of NVML; what is
said of all GPUs of a node together is right all the same.

A lever that exists need not bind: a control may be disabled, a policy may not be in effect, and a set point
of 0, or below the least that the lever takes, is how some say "no limit" (HPE Cray EX: 0 removes it). A
control is enabled by the write that needs it (and disabled again by its restoration); the policies of a
domain are switched by whoever set up the domain.

Sources: Cray-HPE/docs-csm, Liquid_Cooled_Node_Card_Power_Management.md, "Remove node power limit" (the 0);
NVIDIA DGX B200 user guide 9.3.13 (ComponentId, Limit, Status.State of a policy). It also says that "the
algorithm always uses PercentageOfDomainBudget"; whether a change of Limit alone moves power is to be seen on
the machine: only a reading below the limit says so, and a policy gives none.
"""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from protocols.redfish.client import Answer, Bmc, uri_fault
from protocols.redfish.faults import RedfishFault, shown

ROOT: Final = "/redfish/v1/"  # with its slash: some firmware redirects without
MEMBERS_MAX: Final = 256  # of one collection; an NVL72 tray has some 40 chassis
LEVERS_MAX: Final = 128  # of one BMC
READ_BACK_MAX_S: Final = 5.0  # NVIDIA's own health check allows 1 s; a BMC that answers in 2 s needs more
READ_BACK_PAUSE_S: Final = 0.3
SAME_W: Final = 0.5  # limits are whole watts
POWER_MAX_W: Final = 1_000_000.0  # no host
OFF: Final = "Disabled"  # ControlMode, and state of a policy

Kind = Literal["gpu", "control", "domain"]
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Lever:
    """One limit of one BMC, as read.

    Attributes:
        uri: of the resource that is read and patched.
        kind: which door it is.
        gpu: 0, 1, ... in the order of the BMC's names; None: it limits all GPUs of the host together.
        domain: of Node Manager, by its id; empty for the other kinds.
        setpoint_w: what it is set to; None: to nothing.
        min_w: the least it takes; None: not told.
        max_w: the most it takes; None: not told.
        reading_w: power drawn, as the BMC measures it; None: not told.
        mode: ControlMode, or the state of a policy; empty: not told.
        asked_at_s: when that was asked, on the clock of the `Bmc`.
    """

    uri: str
    kind: Kind
    gpu: int | None = None
    domain: str = ""
    setpoint_w: float | None = None
    min_w: float | None = None
    max_w: float | None = None
    reading_w: float | None = None
    mode: str = ""
    asked_at_s: float = -math.inf

    @property
    def limit_w(self) -> float | None:
        """Its set point; None: that is none, or says so by being 0 or less than the least it takes."""
        least_w = max((self.min_w or 0.0) - SAME_W, SAME_W)
        return None if self.setpoint_w is None or self.setpoint_w < least_w else self.setpoint_w

    @property
    def bound_w(self) -> float:
        """The most it lets through; inf: it binds nothing."""
        binds = self.mode == "Enabled" if self.kind == "domain" else self.mode != OFF
        return self.limit_w if binds and self.limit_w is not None else math.inf

    def clamped_w(self, limit_w: float) -> float:
        """The whole watts that this lever would be set to, W: below its least it cannot go."""
        return float(max(math.floor(min(limit_w, self.max_w or limit_w)), math.ceil(self.min_w or 0.0)))


# -- reading and writing ----------------------------------------------------------------------------------


async def read(bmc: Bmc, lever: Lever) -> Lever:
    """The lever as it is now. Raises RedfishFault, Unreachable."""
    return _parsed(await bmc.get(lever.uri), lever)


async def set_limit(
    bmc: Bmc, lever: Lever, limit_w: float, *, mode: str = "", within_s: float = READ_BACK_MAX_S
) -> Lever:
    """Set a lever and return it as read back.

    Args:
        bmc: whose lever it is.
        lever: as last read: what it takes and which mode it is in.
        limit_w: wished for; becomes whole watts within what the lever takes, see `Lever.clamped_w`.
        mode: ControlMode to leave it in, for a policy the state it is in; empty: one that binds.
        within_s: how long the BMC may go on to show the old value.

    Raises:
        RedfishFault: refused, or said to be done and not shown within `within_s`.
        Unreachable: no answer.
    """
    wanted_w = lever.clamped_w(limit_w)
    await bmc.patch(lever.uri, change(lever, wanted_w, mode))
    ends_at_s = asyncio.get_running_loop().time() + within_s
    while True:
        seen = await read(bmc, lever)
        is_set = seen.setpoint_w is not None and abs(seen.setpoint_w - wanted_w) <= SAME_W
        if is_set and (seen.mode == mode if mode else math.isfinite(seen.bound_w)):
            return seen
        if asyncio.get_running_loop().time() >= ends_at_s:
            raise RedfishFault(f"{bmc.name} {lever.uri}: {_not_taken(seen, wanted_w, is_set, mode)}")
        await asyncio.sleep(READ_BACK_PAUSE_S)


def change(lever: Lever, limit_w: float, mode: str = "") -> dict[str, Any]:
    """The body that sets a lever to `limit_w`, and its mode where that must change."""
    whole_w = round(limit_w)
    if lever.kind == "domain":
        return {"Limit": whole_w}
    wanted_mode = mode or ("Automatic" if lever.mode == OFF else lever.mode)
    said = {"SetPoint": whole_w} | ({"ControlMode": wanted_mode} if wanted_mode != lever.mode else {})
    return {"PowerLimitWatts": said} if lever.kind == "gpu" else said


def _not_taken(seen: Lever, wanted_w: float, is_set: bool, mode: str) -> str:
    if not is_set:
        shown_w = "none" if seen.setpoint_w is None else f"{seen.setpoint_w:g} W"
        return f"it accepted {wanted_w:g} W and still shows {shown_w}: its GPUs do not obey it; reset the BMC"
    if seen.kind == "domain":
        return (
            f"set to {wanted_w:g} W, and the policy is {shown(seen.mode) or 'in no state'}: enable its domain"
        )
    remedy = f"set it to {shown(mode)}" if mode else "enable it"
    return f"set to {wanted_w:g} W, and the control is {shown(seen.mode)}: {remedy}"


# -- what a BMC says --------------------------------------------------------------------------------------


def _parsed(answer: Answer, lever: Lever) -> Lever:
    body = answer.body
    if lever.kind == "domain":
        state = _member(body, "Status").get("State")
        return Lever(
            lever.uri,
            "domain",
            None,
            lever.domain,
            _watts(body, "Limit"),
            lever.min_w,
            lever.max_w,
            mode=state if isinstance(state, str) else "",
            asked_at_s=answer.asked_at_s,
        )
    said = _member(body, "PowerLimitWatts") if lever.kind == "gpu" else body
    mode, source = said.get("ControlMode"), said if lever.kind == "gpu" else _member(body, "Sensor")
    return Lever(
        lever.uri,
        lever.kind,
        lever.gpu,
        setpoint_w=_watts(said, "SetPoint"),
        min_w=_watts(said, "AllowableMin"),
        max_w=_watts(said, "AllowableMax"),
        reading_w=_watts(source, "Reading"),
        mode=mode if isinstance(mode, str) else "",
        asked_at_s=answer.asked_at_s,
    )


def _watts(said: Json, key: str) -> float | None:
    value = said.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value <= POWER_MAX_W else None


def _member(said: Json, key: str) -> Json:
    value = said.get(key)
    return value if isinstance(value, dict) else {}


def _link(said: Json, key: str) -> str:
    value = _member(said, key).get("@odata.id")
    return value if isinstance(value, str) else ""


# -- discovery --------------------------------------------------------------------------------------------


async def discover(bmc: Bmc, kind: Kind) -> tuple[Lever, ...]:
    """All levers of one kind, as read, in the order of the BMC's names.

    For `gpu` that is 5 + 2 requests per GPU, two at a time: at 1.5 s each 15 s for a host of eight. So it is
    done before it is needed.

    Raises:
        RedfishFault: it has none; the text says where they were looked for.
        Unreachable: no answer.
    """
    found = await DISCOVERIES[kind](bmc, (await bmc.get(ROOT)).body)
    if not found:
        raise RedfishFault(f"{bmc.name}: {NOTHING_FOUND[kind]}")
    return tuple(found[:LEVERS_MAX])


async def _gpus(bmc: Bmc, root: Json) -> list[Lever]:
    systems = await _all(bmc, await _members(bmc, _link(root, "Systems")))
    listings = [_link(system.body, "Processors") for system in systems]
    uris = [uri for listing in listings for uri in await _members(bmc, listing)]
    named = [uri for uri in uris if "GPU" in _name(uri).upper()]
    processors = await _all(bmc, sorted(named or uris, key=_natural))
    gpus = [one for one in processors if one.body.get("ProcessorType", "GPU") in ("GPU", "Accelerator")]
    metrics = await _all(bmc, [_link(gpu.body, "EnvironmentMetrics") for gpu in gpus])
    limited = [one for one in metrics if _member(one.body, "PowerLimitWatts")]
    return [_parsed(one, Lever(one.uri, "gpu", gpu)) for gpu, one in enumerate(limited)]


async def _controls(bmc: Bmc, root: Json) -> list[Lever]:
    """Those of single GPUs, else those of whole chassis."""
    chassis = await _all(bmc, await _members(bmc, _link(root, "Chassis")))
    listings = [_link(one.body, "Controls") for one in chassis]
    uris = [uri for listing in listings for uri in await _members(bmc, listing)]
    controls = [one for one in await _all(bmc, sorted(uris, key=_natural)) if _limits_watts(one.body)]
    of_gpus = [one for one in controls if _is_of_gpu(one)]
    if of_gpus:
        return [_parsed(one, Lever(one.uri, "control", gpu)) for gpu, one in enumerate(of_gpus)]
    whole = [one for one in controls if one.body.get("PhysicalContext") in WHOLE_HOST]
    if len(whole) > 1:
        names = ", ".join(shown(one.uri) for one in whole)
        raise RedfishFault(
            f"{bmc.name}: which of these carries the GPUs? {names}; set lever to gpu or domain"
        )
    return [_parsed(one, Lever(one.uri, "control")) for one in whole]


async def _policies(bmc: Bmc, root: Json) -> list[Lever]:
    """Those in effect, else all, so that whoever uses them hears that none is."""
    found: list[Lever] = []
    for manager in await _members(bmc, _link(root, "Managers")):
        # Named by the user guide, linked from nowhere that it shows.
        domains = await _all(bmc, await _members(bmc, f"{manager}/NodeManager/Domains", may_lack=True))
        for domain in domains:
            listing = _link(domain.body, "Policies") or f"{domain.uri}/Policies"
            policies = await _all(bmc, await _members(bmc, listing))
            name = _name(domain.uri)
            found += [_parsed(p, Lever(p.uri, "domain", domain=name)) for p in policies if _is_of_gpu(p)]
    return [lever for lever in found if math.isfinite(lever.bound_w)] or found


async def _members(bmc: Bmc, uri: str, *, may_lack: bool = False) -> list[str]:
    """What a collection links to, all pages of it; nothing of a link that is not there."""
    found: list[str] = []
    while uri and len(found) < MEMBERS_MAX:
        try:
            body = (await bmc.get(uri)).body
        except RedfishFault as fault:
            if may_lack and fault.status in ABSENT:
                return []
            raise
        listed = body.get("Members")
        members = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        links = [one.get("@odata.id") for one in members]
        fresh = [one for one in links if isinstance(one, str) and not uri_fault(one) and one not in found]
        found += fresh
        following = body.get("Members@odata.nextLink")
        uri = following if isinstance(following, str) and fresh else ""
    return found[:MEMBERS_MAX]


async def _all(bmc: Bmc, uris: Iterable[str]) -> list[Answer]:
    """All of these, as many at a time as the BMC may be asked. The first fault ends it."""
    tasks = [asyncio.ensure_future(bmc.get(uri)) for uri in uris if uri]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _limits_watts(control: Json) -> bool:
    return control.get("ControlType") == "Power" and control.get("SetPointUnits", "W") == "W"


def _is_of_gpu(one: Answer) -> bool:
    words = (one.body.get("PhysicalContext"), one.body.get("ComponentId"), _name(one.uri))
    return any(sign in str(word).upper() for word in words for sign in ("GPU", "ACCELERATOR"))


def _name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def _natural(uri: str) -> list[tuple[int, str]]:
    """GPU_2 before GPU_10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", uri)]


ABSENT: Final = frozenset({404, 405, 501})
WHOLE_HOST: Final = ("Chassis", "SystemBoard", "ComputeBay", "PowerSubsystem")  # no set: a list has no hash
DISCOVERIES: Final[Mapping[Kind, Callable[[Bmc, Json], Awaitable[list[Lever]]]]] = {
    "gpu": _gpus,
    "control": _controls,
    "domain": _policies,
}
NOTHING_FOUND: Final[Mapping[Kind, str]] = {
    "gpu": "no processor under Systems has EnvironmentMetrics with PowerLimitWatts; is the host powered on? "
    "Else set lever to control or domain",
    "control": "no chassis has a power control in W for its GPUs or the whole; "
    "is the host powered on? Else set lever to gpu or domain",
    "domain": "no Node Manager domain has a policy for GPUs; set one up, or set lever to gpu",
}
