"""What the law decided and the agents told, as points of the process image.

Names and units here are an interface: SCADA clients are configured with them. A new point goes to the end of
its group, and none is ever renamed. Powers are W. What is not known is None, never a number that looks like
one.

The block's own group is told a few times a second. Nodes and their GPUs come once a second, a share of them
at a time, so that a block of a thousand GPUs does not make one beat late.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any, Final

import msgspec
import numpy as np

from controller.core.model import NO_LIMIT_W, Decision, Mode, Settings, Snapshot
from controller.image.model import WORDS_MAX, Group, Point, Value
from controller.image.wire import Update
from controller.status import shed_words
from controller.verbs import MODES

STALE_S: Final = 5.0
NODE_STALE_S: Final = 10.0
NODES_PER_TURN: Final = 0.25  # of all nodes each time: four turns a second make one round

YES_NO: Final = {0: "no", 1: "yes"}
MODE_STATES: Final = dict(enumerate(mode.value for mode in Mode))
MODE_NUMBERS: Final = {name: float(number) for number, name in MODE_STATES.items()}
SWITCH_STATES: Final = dict(enumerate(MODES))


def _power(name: str, title: str, highest: float | None = None) -> Point:
    return Point(name=name, unit="W", title=title, highest=highest, stale_after_s=STALE_S)


FACILITY: Final = Group(
    path="facility",
    kind="facility",
    title="The block's own operators",
    points=(
        Point(name="mode", title="who may move plant and power", states=SWITCH_STATES, stale_after_s=STALE_S),
        _power("limit_w", "limit of the slot that counts"),
        Point(name="priority", title="of that slot, as in BACnet", stale_after_s=STALE_S),
        Point(name="remaining_s", unit="s", title="until that slot ends", stale_after_s=STALE_S),
        Point(name="by", title="way and name of its writer", text=True, stale_after_s=STALE_S),
        Point(name="alarms_active", stale_after_s=STALE_S),
        Point(name="alarms_unacknowledged", stale_after_s=STALE_S),
        Point(
            name="slots", title="all that are set, strongest first; JSON", text=True, stale_after_s=STALE_S
        ),
    ),
)


class BlockPoints:
    """Groups of a block with GPUs, and what they hold now.

    Args:
        settings: of the law.
        least_w: the least that the block can be brought to.
        sources: names of the site's.
        feeds: share of the block's power that each carries.
        first: index of the first of these groups in the catalogue.
    """

    def __init__(
        self,
        settings: Settings,
        least_w: float,
        sources: Sequence[str],
        feeds: Mapping[str, float],
        *,
        first: int,
    ) -> None:
        self.groups = _groups(settings, least_w, sources, feeds)
        self._settings, self._least_w, self._feeds, self._first = settings, least_w, feeds, first
        self._members = [
            np.flatnonzero(settings.topology.gpu_node == node)
            for node in range(len(settings.topology.node_names))
        ]
        self._next_node = 0

    def updates(
        self, told: Mapping[str, Any], snapshot: Snapshot, decision: Decision, now_utc_s: float
    ) -> Iterator[Update]:
        """What has to be told now.

        Args:
            told: the status of this moment: see controller/status.py.
            snapshot: what that beat saw,
            decision: and what it decided.
            now_utc_s: now.
        """
        now_s, group = snapshot.now_s, self._first
        rows: list[list[Value]] = [
            self._block(told, decision),
            *(
                [_times(told["power_w"], share), share * told["feed_rating_w"]]
                for share in self._feeds.values()
            ),
            *([rack[name] for name in RACK] for rack in told["racks"]),
        ]
        for row in rows:
            yield Update(group, row, now_s, now_utc_s)
            group += 1
        nodes = told["nodes"]
        for node in self._turn(len(nodes)):
            yield Update(group + node, self._node(nodes[node], node, snapshot, decision), now_s, now_utc_s)
        group += len(nodes)
        for row in _sources(told):
            yield Update(group, row, now_s, now_utc_s)
            group += 1

    def _block(self, told: Mapping[str, Any], decision: Decision) -> list[Value]:
        gpu_w = [rack["gpu_w"] for rack in told["racks"]]
        power_w = told["power_w"]
        return [
            power_w,
            told["budget_w"],
            told["binding"]["power_w"],
            told["binding"]["source"][:WORDS_MAX],
            told["aim_w"],
            told["base_w"],
            None if None in gpu_w else sum(gpu_w),
            None if power_w is None else told["budget_w"] - power_w,
            told["shortfall_w"],
            told["feed_rating_w"],
            self._least_w,
            MODE_NUMBERS[decision.mode.value],
            told["why"][:WORDS_MAX],
            *self._shed(told["shed"]),
        ]

    def _shed(self, told: Mapping[str, Any]) -> list[Value]:
        """Level, who calls it, how many nodes would obey a call, and how long the steps of calls took."""
        names = [level["name"] for level in told["levels"]]
        level = 0 if told["level"] is None else 1 + names.index(told["level"])
        steps = msgspec.json.encode(told["steps"]).decode()
        return [float(level), shed_words(told)[:WORDS_MAX], float(told["armed"]), steps]

    def _turn(self, nodes: int) -> Iterator[int]:
        """The nodes whose turn it is."""
        for _ in range(ceil(nodes * NODES_PER_TURN)):
            yield self._next_node
            self._next_node = (self._next_node + 1) % nodes

    def _node(
        self, told: Mapping[str, Any], node: int, snapshot: Snapshot, decision: Decision
    ) -> list[Value]:
        members = self._members[node]
        pairs = np.column_stack((snapshot.gpus.power_w[members], decision.gpu_limits_w[members]))
        pairs[~np.isfinite(pairs) | (not told["heard"])] = np.nan
        gpus: list[Value] = [None if value != value else value for value in pairs.ravel().tolist()]  # noqa: PLR0124  NaN
        return [told["power_w"], told["limit_w"], float(told["heard"]), float(told["leased"]), *gpus]


RACK: Final = ("power_w", "gpu_w", "gpu_limit_w", "gpu_room_w")


def _sources(told: Mapping[str, Any]) -> Iterator[list[Value]]:
    """Mode, limit in force, age of the last sign of life, open windows; in the order of the status."""
    for source in told["site"]["sources"]:
        opened = [
            one for one in told["site"]["setpoints"] if one["source"] == source["name"] and one["stands"]
        ]
        limits_w = [one["limit_w"] for one in opened if one["limit_w"] < NO_LIMIT_W]
        mode = source["mode"]
        yield [
            None if mode is None else MODE_NUMBERS[mode],
            min(limits_w, default=None),
            source["heartbeat_age_s"],
            float(len(opened)),
        ]


def _times(power_w: float | None, share: float) -> float | None:
    return None if power_w is None else power_w * share


def _groups(
    settings: Settings, least_w: float, sources: Sequence[str], feeds: Mapping[str, float]
) -> list[Group]:
    topology, rating_w = settings.topology, settings.feed_rating_w
    block = Group(
        path="block",
        kind="block",
        title="Power block",
        about={"feed_rating_w": f"{rating_w:g}", "least_w": f"{least_w:g}"},
        points=(
            _power("power_w", "drawn, at the block's meter", 1.2 * rating_w),
            _power("budget_w", "the line that the block promises to stay under", rating_w),
            _power("limit_w", "the limit that binds", rating_w),
            Point(name="limit_source", title="whose limit that is", text=True, stale_after_s=STALE_S),
            _power("aim_w", "where the ramp stands", rating_w),
            _power("base_w", "upper estimate of what no GPU limit moves", rating_w),
            _power("gpu_w", "drawn by GPUs, as they say", rating_w),
            _power("headroom_w", "budget less power", rating_w),
            _power("shortfall_w", "what should be shed and cannot be", rating_w),
            _power("feed_rating_w", "what the feed carries"),
            _power("least_w", "the least that the block can be brought to"),
            Point(name="mode", title="towards the site", states=MODE_STATES, stale_after_s=STALE_S),
            Point(name="why", title="the last decision in a sentence", text=True, stale_after_s=STALE_S),
            Point(
                name="shed_level",
                title="of shedding, called now",
                states={
                    0: "none",
                    **dict(enumerate((level.name for level in settings.shed_levels), start=1)),
                },
                stale_after_s=STALE_S,
            ),
            Point(name="shed_by", title="who calls it", text=True, stale_after_s=STALE_S),
            Point(name="shed_armed", title="nodes that would obey a call at once", stale_after_s=STALE_S),
            Point(name="shed_steps", title="how long calls took; JSON", text=True, stale_after_s=STALE_S),
        ),
    )
    return [
        block,
        *(_feed(name, share * rating_w) for name, share in feeds.items()),
        *(_rack(name) for name in topology.rack_names),
        *(
            _node(name, topology.gpu_max_w[topology.gpu_node == node].tolist())
            for node, name in enumerate(topology.node_names)
        ),
        *(_source(name) for name in sources),
    ]


def _feed(name: str, rating_w: float) -> Group:
    points = (
        _power("power_w", "its share of the block's power", 1.2 * rating_w),
        _power("rating_w", "its share of the rating"),
    )
    return Group(path=f"feeds/{name}", kind="feed", title=f"Feed {name}", points=points)


def _rack(name: str) -> Group:
    points = (
        _power("power_w", "drawn, at its inlets"),
        _power("gpu_w", "drawn by its GPUs, as they say"),
        _power("gpu_limit_w", "sum of its GPUs' limits"),
        _power("gpu_room_w", "what its inlets have left for GPUs"),
    )
    return Group(path=f"racks/{name}", kind="rack", title=f"Rack {name}", points=points)


def _node(name: str, gpu_max_w: Sequence[float]) -> Group:
    def power(point: str, title: str, highest_w: float) -> Point:
        return Point(name=point, unit="W", title=title, highest=highest_w, stale_after_s=NODE_STALE_S)

    most_w = sum(gpu_max_w)
    own = (
        power("power_w", "drawn by its GPUs", 1.5 * most_w),
        power("limit_w", "sum of their limits", most_w),
        Point(name="heard", title="its agent reports", states=YES_NO, stale_after_s=NODE_STALE_S),
        Point(name="leased", title="its agent obeys", states=YES_NO, stale_after_s=NODE_STALE_S),
    )
    gpus = (
        power(f"gpus/{gpu}/{point}", title, ratio * max_w)
        for gpu, max_w in enumerate(gpu_max_w)
        for point, title, ratio in (("power_w", "drawn", 1.5), ("limit_w", "its limit", 1.0))
    )
    return Group(path=f"nodes/{name}", kind="node", title=f"GPU host {name}", points=(*own, *gpus))


def _source(name: str) -> Group:
    points = (
        Point(name="mode", title="where the block stands with it", states=MODE_STATES, stale_after_s=STALE_S),
        _power("limit_w", "what it asks now"),
        Point(name="heartbeat_age_s", unit="s", title="since its last sign of life", stale_after_s=STALE_S),
        Point(name="windows_open", title="of its signals", stale_after_s=STALE_S),
    )
    return Group(path=f"sources/{name}", kind="source", title=f"Source {name}", points=points)
