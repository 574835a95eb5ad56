"""The frequency's desk: its input, the wake of the beat, the record, and what is told of it all.

A sample goes to the board the moment it comes, and wakes the beat when it asks for clearly more than is held.
The decision is the core's; here nothing is decided. Rows for the record are taken on a clock of their own, so
that a late beat shows in the record instead of thinning it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from controller.core import frequency
from controller.core.frequency_model import FrequencySettings, FrequencyState
from controller.core.model import UNKNOWN, Measurement
from controller.frequency.config import (
    FrequencyConfig,
    JsonUdpInput,
    MqttInput,
    PhasorTcpInput,
    PhasorUdpInput,
)
from controller.frequency.record import RATE_HZ, Recorder
from controller.frequency.score import Row
from protocols.mqtt import Subscription
from protocols.phasor import Frames, FrequencyUdp, JsonReadings, PhasorTcp, Sample

RECORD_SHARE: Final = 0.05  # a droop is nearly always a little active; so much more of it is an event


class FrequencyDesk:
    """Everything of frequency response that is not the decision.

    Args:
        config: as written.
        settings: the same, as the core has it.
        clock: monotonic, s; and since 1970, s.
        on_measurement: where the newest frequency goes: the board.
        wake: called when a sample is worth a beat of its own.
        folder: of the records.

    Attributes:
        newest: frequency, as last heard.
    """

    def __init__(
        self,
        config: FrequencyConfig,
        settings: FrequencySettings,
        *,
        clock: tuple[Callable[[], float], Callable[[], float]],
        on_measurement: Callable[[Measurement], None],
        wake: Callable[[], None],
        folder: Path,
    ) -> None:
        self._settings = settings
        self._clock, self._clock_utc = clock
        self._on_measurement, self._wake = on_measurement, wake
        self.newest = UNKNOWN
        self._state: FrequencyState | None = None
        self._known_share = 0.0  # held, and no news: the least since the last record, or the most in this one
        self._block_w: float | None = None
        self._budget_w = 0.0
        self._recorder = Recorder(folder, settings)
        self._readings = JsonReadings()
        self._topic = config.input.topic if isinstance(config.input, MqttInput) else None
        self._wire = self._wire_of(config)

    def _wire_of(self, config: FrequencyConfig) -> FrequencyUdp | PhasorTcp | None:
        """None: the samples come through the field or the block's broker."""
        one, clock, clock_utc = config.input, self._clock, self._clock_utc
        if isinstance(one, PhasorTcpInput):
            host, port = _host_port(one.connect)
            frames = Frames(id_code=one.id, pmu=one.pmu)
            return PhasorTcp(
                host,
                port,
                id_code=one.id,
                frames=frames,
                on_sample=self._take,
                clock=clock,
                clock_utc=clock_utc,
            )
        if isinstance(one, PhasorUdpInput):
            return FrequencyUdp(
                _host_port(one.listen),
                Frames(id_code=one.id, pmu=one.pmu),
                only_from=one.sender,
                on_sample=self._take,
                clock=clock,
                clock_utc=clock_utc,
                ask=one.ask,
                id_code=one.id or 0,
            )
        if isinstance(one, JsonUdpInput):
            return FrequencyUdp(
                _host_port(one.listen),
                self._readings,
                only_from=one.sender,
                on_sample=self._take,
                clock=clock,
                clock_utc=clock_utc,
            )
        return None

    # --- what comes in ----------------------------------------------------------------------------------

    def runs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Endless tasks, by name."""
        found: dict[str, Callable[[], Awaitable[None]]] = {"frequency record": self._record_for_ever}
        if self._wire is not None:
            found["frequency"] = self._wire.run
        return found

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        return () if self._topic is None else (Subscription(self._topic),)

    def on_message(self, topic: str, payload: bytes, retained: bool) -> bool:
        """A message of the block's broker; False: not for this desk. A retained one is of the past."""
        if topic != self._topic:
            return False
        if retained:
            self._readings.refusals.add("retained: of the past")
            return True
        sample = self._readings.take(payload, self._clock())
        if sample is not None:
            self._take(sample)
        return True

    def put(self, measurement: Measurement) -> None:
        """The newest frequency, whatever way it came; a meter's comes here from the field."""
        before, self.newest = self.newest, measurement
        self._on_measurement(measurement)
        state = self._state
        if state is not None and any(
            one.good and frequency.wakes(self._settings, state, one.value) for one in (before, measurement)
        ):
            self._wake()  # also by the one after a spike, lest spikes be all that is seen

    def _take(self, sample: Sample) -> None:
        self.put(Measurement(sample.hz, sample.good, sample.taken_at_s))

    # --- what was decided -------------------------------------------------------------------------------

    def after_beat(self, state: FrequencyState, block_w: float | None, budget_w: float) -> None:
        """The response as the beat left it, block power as last measured, and what is promised."""
        before, self._state = self._state, state
        if before is None:
            self._known_share = state.share  # what goes on over a restart is no news
        self._block_w, self._budget_w = block_w, budget_w
        if before is not None and state.share >= self._known_share + RECORD_SHARE:
            began_at_s = self._crossed_at_s(before, state)
            began_utc_s = self._clock_utc() - (self._clock() - began_at_s)
            self._recorder.begin(began_at_s, began_utc_s, state.baseline_w)
        known = max if self._recorder.is_busy else min
        self._known_share = known(self._known_share, state.share)

    def _crossed_at_s(self, before: FrequencyState, state: FrequencyState) -> float:
        """The first sample that asked for so much, of this beat or the one before; or where a wait began."""
        event_share = self._known_share + RECORD_SHARE
        samples = (*before.heard.samples, *state.heard.samples)
        asked = (one.at_s for one in samples if frequency.share(self._settings, one.hz) >= event_share)
        return min(before.crossed_at_s, *asked)

    async def _record_for_ever(self) -> None:
        due_s = self._clock()
        while True:
            due_s = max(due_s + 1.0 / RATE_HZ, self._clock())
            await asyncio.sleep(due_s - self._clock())
            if self._state is not None:
                self._recorder.add(self._row(self._state))

    def _row(self, state: FrequencyState) -> Row:
        now_s = self._clock()
        heard = self.newest.is_usable(now_s, self._settings.age_max_s)
        limit = frequency.limit(self._settings, state)
        return Row(
            at_s=now_s,
            at_utc_s=self._clock_utc(),
            hz=self.newest.value if heard else None,
            block_w=self._block_w,
            budget_w=self._budget_w,
            limit_w=None if limit is None else limit.power_w,
            share=state.share,
            phase=state.phase,
        )

    # --- what is told -----------------------------------------------------------------------------------

    def alarms(self) -> Iterator[tuple[str, str]]:
        """By key and text; those of the response itself come from the core."""
        if self._state is not None:
            for alarm in frequency.alarms(self._settings, self._state):
                fault = "" if self._wire is None else self._wire.fault
                text = f"{alarm.text} ({fault})" if fault and alarm.key == "frequency" else alarm.text
                yield alarm.key, text
        if self._recorder.fault:
            yield "frequency record", self._recorder.fault

    def told(self) -> dict[str, Any]:
        """For the status."""
        state, wire = self._state, self._wire
        return {
            "product": self._settings.product,
            "committed_w": self._settings.committed_w,
            "hz": self.newest.value if self.newest.good else None,
            "phase": None if state is None else str(state.phase),
            "share": 0.0 if state is None else state.share,
            "why": "" if state is None else frequency.why(self._settings, state),
            "activations": 0 if state is None else state.activations,
            "refused": self._readings.refusals.counts if wire is None else wire.refused,
            "records": {"written": self._recorder.written, "lost": self._recorder.lost},
            "newest_record": self._recorder.newest,
        }

    def close(self) -> None:
        self._recorder.close()


def _host_port(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)
