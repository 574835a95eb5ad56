"""What the Modbus server remembers beyond its own life, in one small file.

A PLC that writes its request block in every cycle asks for nothing while `SP_Seq` stands still; a server that
began anew with 0 would take the first of those writes for a new request. So the request of every master that
writes is kept, with its answer, before the request leaves: one that was in hand when this process died is
answered "may be in force or not", and never sent a second time. Heartbeats alone are not worth a write.

Of the SunSpec registers the settings are kept: what holds is the controller's to say, but the length of a
timer and a reversion that is not in use yet are known here alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import structlog

from controller.facility.modbus.native import Handshake
from controller.facility.modbus.sunspec import Controls
from controller.image.model import Outcome, Result

FILE_NAME: Final = "modbus.json"
IN_DOUBT: Final = Outcome(
    result=Result.REJECTED, reason="the server was started anew meanwhile: it may be in force or not"
)

log = structlog.get_logger(__name__)


class Kept(msgspec.Struct):
    """Handshakes by master, whoever wrote longest ago first; and the SunSpec registers."""

    masters: dict[str, Handshake] = {}
    controls: Controls = Controls()

    def write(self, folder: Path) -> None:
        """Onto the disk; a fault of it is only logged."""
        path = folder / FILE_NAME
        part = path.with_suffix(".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.encode(self))
            part.replace(path)
        except OSError as error:
            log.error("modbus: requests cannot be kept: a restart may repeat the last ones", why=str(error))


def read(folder: Path) -> Kept:
    """As the last one left it."""
    path = folder / FILE_NAME
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except (OSError, msgspec.DecodeError) as error:
        log.error("modbus: requests before the restart cannot be read", path=str(path), why=str(error))
        return Kept()
    for master in kept.masters.values():
        if master.is_busy:
            master.decided(master.said["SP_Seq"], IN_DOUBT)
    kept.controls = replace(kept.controls, beat_at_s=None, ends_at_s=None)  # of another process's clock
    return kept
