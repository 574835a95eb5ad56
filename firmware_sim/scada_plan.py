"""What the rig and its SCADA side agree on: where everything is served, who may come in, what is looked at.

The SCADA side is a process of its own, so it gets all of this as a file.
"""

import csv
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from asyncua.crypto.cert_gen import setup_self_signed_certificate
from cryptography.x509.oid import ExtendedKeyUsageOID

from firmware_sim.facility import free_port
from firmware_sim.scenario_facility import Way
from firmware_sim.watched import WatchedPoint

LOOPBACK: Final = "127.0.0.1"
USER: Final = "scada-1"
APPLICATION_URI: Final = "urn:rig:scada"
BUS_REPEAT_S: Final = 10.0  # as a site with few points would have it; the contract allows 100 s
MIRROR_PREFIX: Final = "points"
BUS_TOPICS: Final = "BMS/v1/PUB/#"


@dataclass(frozen=True)
class ServedAt:
    """Addresses on loopback, and the one user that may come in."""

    opcua_port: int
    modbus_port: int
    prometheus_port: int
    opcua_folder: Path
    users: Path
    password: str
    certificate: Path
    key: Path

    @classmethod
    async def prepare(cls, work_dir: Path) -> Self:
        """Free ports, a password, and a certificate of ours in the server's folder of those it trusts."""
        folder = work_dir / "opcua"
        trusted = folder / "trusted"
        trusted.mkdir(parents=True, exist_ok=True)
        certificate, key = trusted / "scada.der", work_dir / "scada-key.pem"
        await setup_self_signed_certificate(
            key,
            certificate,
            APPLICATION_URI,
            LOOPBACK,
            [ExtendedKeyUsageOID.CLIENT_AUTH],
            {"commonName": USER},
        )
        return cls(
            opcua_port=free_port(), modbus_port=free_port(), prometheus_port=free_port(),
            opcua_folder=folder, users=work_dir / "users.yaml", password=secrets.token_urlsafe(16),
            certificate=certificate, key=key,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the SCADA side needs to know.

    Attributes:
        report_port: where the rig listens to what is seen, and gives its orders.
        site: first part of the bus' tag paths, and of the mirror's topics.
        mqtt: url of the bus, and certificates where it wants some.
        register_map: as `powerblock map` wrote it, CSV.
    """

    report_port: int
    site: str
    ways: tuple[Way, ...]
    points: tuple[WatchedPoint, ...]
    mqtt: Mapping[str, str]
    register_map: Path
    bms_schema: Path | None
    opcua_port: int
    modbus_port: int
    prometheus_port: int
    password: str
    certificate: Path
    key: Path

    def write(self, path: Path) -> None:
        path.touch(mode=0o600)  # there is a password in it
        path.write_text(json.dumps(asdict(self), default=str, indent=2) + "\n")


def read_plan(path: Path) -> Plan:
    """What `Plan.write` wrote."""
    document: dict[str, Any] = json.loads(path.read_text())
    for name in ("register_map", "bms_schema", "certificate", "key"):
        document[name] = None if document[name] is None else Path(document[name])
    document["points"] = tuple(WatchedPoint(**one) for one in document["points"])
    document["ways"] = tuple(document["ways"])
    return Plan(**document)


def published_map(path: Path) -> dict[str, tuple[int, int, str]]:
    """Name -> unit, address and type, from the map as it is given to whoever configures a SCADA system."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        head = next((row for row in rows if row[:2] == ["unit id", "address"]), [])
        listed = [dict(zip(head, row, strict=False)) for row in rows]
    return {row["name"]: (int(row["unit id"]), int(row["address"]), row["type"]) for row in listed if row}
