"""Frequency response around the pure core: where the frequency comes from, and the record of what was done.

config   the `frequency` part of block.yaml: a preset or own numbers, the commitment, one input
desk     the input's task, the wake of the beat, alarms, and when a record begins
record   twenty rows a second around every activation, one CSV file each
score    what such a record says of the response: how fast, how much
"""

from controller.frequency.config import (
    FrequencyConfig,
    frequency_device,
    frequency_errors,
    frequency_settings,
)
from controller.frequency.desk import FrequencyDesk

__all__ = [
    "FrequencyConfig",
    "FrequencyDesk",
    "frequency_device",
    "frequency_errors",
    "frequency_settings",
]
