"""The `backstop` part of `block.yaml`: where the BMCs are, and what a silent host is held at.

    backstop:
      after_s: 10
      limit_w: 300                                   # each GPU of a silent host
      url_template: https://{node}-bmc.mgmt.example
      user: powerblock
      password_file: /run/credentials/powerblock.service/mqtt_bmc-password  # of /etc/powerblock/credentials
      ca: /etc/powerblock/bmc-ca.crt
      bmcs:
        n07: {url: https://10.0.7.1, fingerprint: "9f:86:..."}    # signed by itself, as BMCs come

`limit_w` should be the agents' own fallback: then a host that went silent and fell back is not moved at all.
`lever` names the door to the limit: `gpu` (GB200, GB300, HGX with EnvironmentMetrics), `control` (HPE Cray
EX), `domain` (Node Manager of DGX H100 and B200: an OEM door, opened only when asked for; it shows no power,
so a host that is capped through it still counts at its maximum).
"""

import ssl
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from controller.yaml_config import ConfigError, File
from protocols.redfish import BmcSettings, RedfishConfigError

PASSWORD_MAX_CHARS: Final = 1024  # a file larger than this is not a password
FAULTS_SHOWN_MAX: Final = 3  # what is wrong with all 144 is said once, twice, and enough
NODE: Final = "{node}"
ANY_PIN: Final = "00" * 32  # stands for a CA whose file is not opened

Seconds = Annotated[float, Field(gt=0, le=3600)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BmcEntry(_Strict):
    """What is special about one node's BMC; what is not given is as for all."""

    url: str | None = None
    ca: File | None = None
    fingerprint: str | None = None


class BackstopConfig(_Strict):
    """Settings of the backstop."""

    after_s: Annotated[float, Field(ge=2, le=600)] = 10.0  # a restarted agent is back within 2 s
    limit_w: Annotated[float, Field(gt=0, le=10_000)]
    lever: Literal["gpu", "control", "domain"] = "gpu"
    url_template: str | None = None
    bmcs: dict[str, BmcEntry] = {}
    user: str
    password_file: Path
    ca: File | None = None
    fingerprint: str | None = None
    # Talked to at the same time. A round of eight GPUs takes a BMC 6 s: 144 silent hosts are read every 15 s.
    # With 16 at a time their proofs would grow old between two rounds.
    bmcs_max: Annotated[int, Field(ge=1, le=256)] = 64
    request_max_s: Annotated[float, Field(ge=0.5, le=60)] = 10.0
    reread_s: Annotated[float, Field(ge=0.5, le=60)] = 3.0  # while a node is held
    proof_age_max_s: Annotated[float, Field(ge=1, le=60)] = 30.0  # a round of a slow BMC takes ten
    release_after_s: Seconds = 30.0  # the agent obeys again for so long
    release_w_per_s: Annotated[float, Field(gt=0, le=10_000)] = 20.0  # each GPU, upwards

    def password(self) -> str:
        """The password, read now. Raises ConfigError."""
        try:
            text = self.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"backstop.password_file: {self.password_file}: {error}; make it readable"
            ) from None
        if not 0 < len(text) <= PASSWORD_MAX_CHARS:
            raise ConfigError(
                f"backstop.password_file: {self.password_file} holds no password; write it there"
            )
        return text

    def ca_files(self, nodes: Collection[str]) -> dict[str, str]:
        """Files of CAs that vouch for BMCs of these nodes, by the first place that names each."""
        places: dict[str, str] = {}
        for node in nodes:
            own = self.bmcs.get(node, BmcEntry())
            if own.ca is not None:
                places.setdefault(own.ca, f"backstop.bmcs.{node}.ca")
            elif own.fingerprint is None and self.ca is not None:
                places.setdefault(self.ca, "backstop.ca")
        return {place: file for file, place in places.items()}

    def settings(self, node: str, password: str, *, opens_ca: bool = True) -> BmcSettings:
        """How to reach the BMC of `node`. Raises RedfishConfigError."""
        own = self.bmcs.get(node, BmcEntry())
        url = own.url or (self.url_template or "").replace(NODE, node)
        if not url:
            raise RedfishConfigError("url: missing; give url_template, or bmcs with a url of this node")
        has_own_trust = own.ca is not None or own.fingerprint is not None
        ca, pin = (own.ca, own.fingerprint) if has_own_trust else (self.ca, self.fingerprint)
        if not opens_ca and ca is not None and pin is None:
            ca, pin = None, ANY_PIN
        return BmcSettings(
            url=url,
            user=self.user,
            password=password,
            ca_file=ca,
            fingerprint=pin,
            request_max_s=self.request_max_s,
        )


def read_ca(place: str, file: str) -> None:
    """Raises ConfigError: the file is no CA's."""
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        why = str(getattr(error, "reason", None) or error.strerror).lower().replace("_", " ")
        raise ConfigError(f"{place}: {file}: {why}; give a PEM file of who signed the BMCs") from None


def backstop_errors(config: BackstopConfig | None, nodes: Collection[str]) -> Iterator[str]:
    """What only shows beside the rest of the file. `nodes`: all of the block.

    Files that are named are not opened: whoever reads block.yaml need not be the service, nor on its host.
    """
    if config is None:
        return
    if config.url_template is not None and NODE not in config.url_template:
        yield f"backstop.url_template: one BMC for all nodes; write {NODE} where the node's name belongs"
    for name in config.bmcs:
        if name not in nodes:
            yield f"backstop.bmcs.{name}: no such node under racks; correct the name"
    faults: list[str] = []
    of_bmc: dict[tuple[str, int], list[str]] = defaultdict(list)
    for node in nodes:
        try:
            of_bmc[_address(config.settings(node, "not read yet", opens_ca=False).url)].append(node)
        except RedfishConfigError as error:
            faults.append(f"backstop: BMC of {node}: {error}")
    faults += [_shared(bmc, names) for bmc, names in of_bmc.items() if len(names) > 1]
    yield from faults[:FAULTS_SHOWN_MAX]
    if len(faults) > FAULTS_SHOWN_MAX:
        yield f"backstop: BMCs of {len(faults) - FAULTS_SHOWN_MAX} more nodes: likewise"


def _address(url: str) -> tuple[str, int]:
    """Host and port of a BMC, the same however they are written."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    with suppress(ValueError):  # a name; urlsplit has made it lower case
        host = str(ip_address(host))
    return host, parts.port or 443


def _shared(bmc: tuple[str, int], nodes: list[str]) -> str:
    """One host would be capped, and both would count so."""
    more = f", as do {len(nodes) - 2} more" if len(nodes) > 2 else ""
    return (
        f"backstop: {nodes[0]} and {nodes[1]} have the same BMC {bmc[0]}:{bmc[1]}{more}: "
        "give each its own url in backstop.bmcs"
    )
