"""Names of all figures that a verdict can have, so that a scenario which expects another is refused at once.

docs/figures.md explains each of them.
"""

from typing import Final, get_args

from firmware_sim.scenario_facility import Way
from firmware_sim.verdict import FIGURES, RIG_LOST

ALWAYS: Final = (
    "over_rating_s", "over_capacity_s", "over_capacity_ratio", "over_budget_ratio", "peak_w",
    "gpus_in_excess", "gpus_unleased", "second_controllers", "orders_refused", RIG_LOST,
    "rig_core_ratio", "controller_core_ratio", "agents_core_ratio", "broker_core_ratio",
    "controller_memory_mib",
)  # fmt: skip
EMERGENCY: Final = (
    "shed_reaction_s", "shed_limits_s", "shed_over_ratio", "shed_decided_s", "shed_sent_s", "shed_received_s",
    "shed_obeyed_s", "shed_written_s", "shed_moved_s", "frequency_reaction_s",
)  # fmt: skip
GRID: Final = ("status_events_missing", "status_refused", "reports_received")
SCADA: Final = (
    "ways_back_s", "devices_back_s", "dead_good_s", "write_s", "bms_messages", "bms_invalid",
    *(f"{way}_{what}" for way in get_args(Way) for what in ("agreement_ratio", "lag_s", "bad_s")),
)  # fmt: skip
FIGURE_NAMES: Final = frozenset((*FIGURES, *EMERGENCY, *ALWAYS, *GRID, *SCADA))
