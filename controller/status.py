"""`status.json`: what the daemon tells people and programs on its own host, four times a second.

Replaced as a whole in the run directory (tmpfs), so a reader sees one moment or none. `powerblock status`
draws it; anything else may read it too. Powers are in W, keys carry their units, times are UTC.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np
import structlog

from controller.core import base_load, schedule, shed, watch
from controller.core.model import Decision, Floats, Ints, Limit, Settings, Snapshot

VERSION: Final = 4
PERIOD_S: Final = 0.25

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

log = structlog.get_logger(__name__)


def limit_status(limit: Limit) -> dict[str, Any]:
    return {"power_w": limit.power_w, "source": limit.source, "protection": limit.protection}


def block_status(
    settings: Settings,
    snapshot: Snapshot,
    decision: Decision,
    refused: Mapping[str, str] = NOTHING,
    faults: Mapping[str, Sequence[str]] = NOTHING,
) -> dict[str, Any]:
    """The law's part: power, budget, binding limit and why, racks and nodes, alarms.

    By node name: why its last report was `refused`, and the `faults` that its agent tells of its GPUs.
    """
    topology, gpus = settings.topology, snapshot.gpus
    fresh = snapshot.now_s - gpus.node_at_s <= settings.report_age_max_s
    gpu_w = np.where(fresh[topology.gpu_node], gpus.power_w, np.nan)
    inlet_w = np.where(base_load.inlets_usable(settings, snapshot), snapshot.inlets.power_w, np.nan)
    known = ~np.isnan(gpu_w)
    racks, nodes = len(topology.rack_names), len(topology.node_names)
    return {
        "at_utc_s": snapshot.now_utc_s,
        "mode": decision.mode.value,
        "power_w": snapshot.meter.value
        if snapshot.meter.is_usable(snapshot.now_s, settings.meter_age_max_s)
        else None,
        "budget_w": decision.budget_w,
        "aim_w": decision.state.pace.aim_w,
        "feed_rating_w": settings.feed_rating_w,
        "base_w": decision.base_w,
        "shortfall_w": decision.shortfall_w,
        "binding": limit_status(decision.binding),
        "limits": [limit_status(limit) for limit in decision.limits],
        "why": watch.why(settings, decision),
        "racks": [
            {
                "name": name,
                "power_w": power_w,
                "gpu_w": drawn_w,
                "gpu_known_w": known_w,
                "gpus_unknown": unknown,
                "gpu_limit_w": limit_w,
                "gpu_room_w": room_w,
            }
            for name, power_w, drawn_w, known_w, unknown, limit_w, room_w in zip(
                topology.rack_names,
                _sums(topology.inlet_rack, inlet_w, racks),
                _sums(topology.gpu_rack, gpu_w, racks),
                _sums(topology.gpu_rack, np.where(known, gpu_w, 0.0), racks),
                np.bincount(topology.gpu_rack[~known], minlength=racks).tolist(),
                _sums(topology.gpu_rack, decision.gpu_limits_w, racks),
                decision.state.shares.rack_budget_w.tolist(),
                strict=True,
            )
        ],
        "nodes": [
            {
                "name": name,
                "heard": bool(fresh[node]),
                "leased": bool(gpus.node_leased[node]),
                "gpus": int((topology.gpu_node == node).sum()),
                "power_w": drawn_w,
                "limit_w": limit_w,
                "order": int(decision.node_seq[node]),
                "confirmed": int(gpus.node_seq[node]),
                "refused": refused.get(name, ""),
                "faults": list(faults.get(name, ())),
            }
            for node, (name, drawn_w, limit_w) in enumerate(
                zip(
                    topology.node_names,
                    _sums(topology.gpu_node, gpu_w, nodes),
                    _sums(topology.gpu_node, decision.gpu_limits_w, nodes),
                    strict=True,
                )
            )
        ],
    }


def shed_status(settings: Settings, snapshot: Snapshot, decision: Decision) -> dict[str, Any]:
    """Levels of shedding, what is called now and by whom, and how many nodes would obey a call."""
    levels = settings.shed_levels
    requests = (*snapshot.sheds, *schedule.called(decision.state.running))
    deepest = max((request.level for request in requests), default=shed.NO_LEVEL)
    return {
        "level": None if deepest == shed.NO_LEVEL else levels[deepest].name,
        "called": [{"level": levels[one.level].name, "by": one.source} for one in requests],
        "levels": [level._asdict() for level in levels],
        "armed": int(shed.armed(decision.state.shedding, snapshot).sum()),
        "nodes": len(settings.topology.node_names),
    }


def shed_words(told: Mapping[str, Any]) -> str:
    """Who calls what, of `shed_status`; empty: nobody calls."""
    if told["level"] is None:
        return ""
    return f"level {told['level']} is called: " + ", ".join(
        one["by"] + ("" if one["level"] == told["level"] else f" ({one['level']})") for one in told["called"]
    )


def _sums(members: Ints, power_w: Floats, count: int) -> list[float | None]:
    """Sum per rack or node; None where some of it is not known."""
    sums = np.bincount(members, weights=power_w, minlength=count)
    return [None if np.isnan(sum_w) else float(sum_w) for sum_w in sums]


class StatusFile:
    """Writer of `status.json`, or another file that is replaced as a whole.

    A full or read-only run directory is said once and does not stop the beat.
    """

    def __init__(self, run_dir: Path, name: str = "status.json") -> None:
        self.path = run_dir / name
        self._temporary = run_dir / f"{name}.new"
        self._fault = ""

    def write(self, content: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.write_bytes(msgspec.json.encode({"v": VERSION, **content}))
            self._temporary.replace(self.path)
            self._fault = ""
        except OSError as error:
            if not self._fault:
                log.error("status not written", path=str(self.path), why=error.strerror)
            self._fault = str(error)
