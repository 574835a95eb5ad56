"""A PLC that shows relay contacts as discrete inputs: how an emergency comes without any signal.

Which bit is which relay is the PLC programmer's choice, so there is no vendor's map: the profile is written
with the run's configuration, as an integrator would write it for his own program.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import yaml

from firmware_sim.modbus_device import ModbusDevice
from protocols.profile import load_profile

FIRST_INPUT: Final = 0


class ContactPlc:
    """Contacts, all open at first.

    Args:
        names: of the relays, in the order of the PLC's inputs.
        work_dir: for the profile.
    """

    NAME: ClassVar[str] = "contacts"

    def __init__(self, names: Sequence[str], work_dir: Path) -> None:
        self.profile_path = work_dir / "plc.yaml"
        self.profile_path.write_text(yaml.safe_dump(_profile(names), sort_keys=False))
        self._closed = dict.fromkeys(names, False)
        self.device = ModbusDevice(load_profile(self.profile_path), self._values)

    def set(self, name: str, closed: bool) -> None:
        self._closed[name] = closed

    def _values(self) -> Mapping[str, float]:
        return {point_name(name): float(closed) for name, closed in self._closed.items()}


def point_name(contact: str) -> str:
    return f"{contact.replace('-', '_')}_closed"


def _profile(names: Sequence[str]) -> dict[str, object]:
    last = FIRST_INPUT + len(names) - 1
    return {
        "title": "Contacts of this site, on the inputs of its PLC",
        "protocol": "modbus",
        "provenance": {
            "document": "the PLC program of this run",
            "page": "its list of inputs",
            "evidence": "document",
        },
        "blocks": [{"table": "discrete", "first": FIRST_INPUT, "last": last}],
        "points": {
            point_name(name): {"unit": "bool", "table": "discrete", "address": number, "type": "bool"}
            for number, name in enumerate(names, start=FIRST_INPUT)
        },
        "examples": [
            {
                "point": point_name(names[0]),
                "registers": [1],
                "value": 1,
                "source": "a closed contact reads 1",
            }
        ],
    }
