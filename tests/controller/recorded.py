"""A few seconds of a block at work, beat by beat, for those who write beats down or read them back."""

from collections.abc import Iterator

import numpy as np

from controller.core import law
from controller.core.model import Contact, Decision, Setpoint, Settings, Site, Snapshot, State
from tests.core.blocks import SETTINGS, UTC_0, good, snapshot

WISH = Setpoint("openadr", "e/0", "limit", 1800.0, UTC_0 + 101.0, UTC_0 + 102.0)


def beats(count: int, settings: Settings = SETTINGS) -> Iterator[tuple[State, Snapshot, Decision]]:
    """State before, snapshot and decision; instruments change now and then, a GPU is unreadable for a while."""
    state, seen = law.start(settings, 100.0), None
    limit_w, seq = np.full(4, 300.0), np.ones(2, dtype=np.int64)
    for number in range(count):
        now_s = 100.0 + 0.05 * number
        power_w = np.where(np.arange(4) == (number // 20) % 8, np.nan, limit_w)
        site = Site(contacts=(Contact(now_s // 1.0, 100.0),), setpoints=(WISH,))
        fresh = snapshot(
            now_s,
            meter=good(600.0 + float(limit_w.sum()), now_s),
            limit_w=limit_w,
            power_w=power_w,
            seq=seq,
            revision=number // 2,
            site=site,
        )
        if seen is not None and number % 2:  # nothing new from agents and PDUs every other beat
            fresh = Snapshot(
                now_s, fresh.now_utc_s, fresh.meter, seen.inlets, seen.cooling, seen.gpus, fresh.site
            )
        decision = law.tick(settings, state, fresh)
        yield state, fresh, decision
        state, seen = decision.state, fresh
        limit_w, seq = decision.gpu_limits_w, decision.node_seq
