"""Shedding by tables: what one message makes of a block whose agents were prepared."""

import numpy as np
import pytest

from controller.core import shed
from controller.core.model import NO_LIMIT_W, Contact, ShedLevel, ShedRequest, Site
from tests.core.blocks import MAX_W, good, settings
from tests.core.test_law import BASE_W, TICK_S, Block, setpoint

LEVELS = (ShedLevel("gentle", 2400.0), ShedLevel("deep", 1800.0))
GENTLE, DEEP = 0, 1


class Prepared(Block):
    """A block whose agents have the newest table, and obey calls by it."""

    def __init__(self, **changes) -> None:
        super().__init__(settings(shed_levels=LEVELS, **changes))
        self.under_control(30.0)

    def tick(self, **told):
        table = self.state.shedding.table.node_version
        return super().tick(**({"table": table} | told))

    def ask(self, *requests, **told):
        """One beat in which these levels are asked for."""
        return self.tick(
            site=self.site(), sheds=tuple(ShedRequest(source, level) for source, level in requests), **told
        )


@pytest.fixture
def block() -> Prepared:
    return Prepared()


def test_tables_keep_every_level_under_its_power(block):
    table = block.state.shedding.table
    assert table.version > 0
    for level, limits_w in zip(LEVELS, table.limits_w, strict=True):
        assert limits_w.sum() + BASE_W <= 1.01 * level.limit_w
        assert limits_w.sum() + BASE_W >= 0.95 * level.limit_w


def test_a_level_is_one_call_and_every_gpu_goes_to_its_entry_in_that_beat(block):
    before = block.state.ledger.seq
    decision = block.ask(("contact", DEEP))
    call = decision.state.shedding.call
    assert (call.level, call.seq, call.nodes.tolist()) == (DEEP, before + 1, [True, True])
    assert decision.gpu_limits_w.tolist() == block.state.shedding.table.limits_w[DEEP].tolist()
    assert decision.binding.source == "shed deep (contact)"
    assert decision.binding.protection


def test_a_call_is_made_once(block):
    block.ask(("contact", DEEP))
    assert block.ask(("contact", DEEP)).state.shedding.call is None


def test_a_deeper_level_is_called_on_top_and_a_gentler_one_is_not(block):
    assert block.ask(("operator", GENTLE)).state.shedding.call.level == GENTLE
    assert block.ask(("operator", GENTLE), ("contact", DEEP)).state.shedding.call.level == DEEP
    assert block.ask(("operator", GENTLE)).state.shedding.call is None
    assert block.decision.binding.source == "shed gentle (operator)"


def test_every_node_gets_a_new_number_so_that_renewals_are_not_taken_for_old_orders(block):
    block.limit_w = np.full(4, 200.0)  # the deepest table would change nothing
    decision = block.ask(("contact", DEEP))
    assert (decision.node_seq == decision.state.shedding.call.seq).all()


def test_a_shed_never_raises_a_gpu(block):
    block.ask(("contact", DEEP))
    held_w = block.limit_w.copy()
    assert (block.ask(("contact", DEEP), ("operator", GENTLE)).gpu_limits_w <= held_w).all()


def test_nodes_without_the_table_are_ordered_as_ever(block):
    decision = block.ask(("contact", DEEP), table=[block.state.shedding.table.node_version[0], 0])
    assert decision.state.shedding.call.nodes.tolist() == [True, False]
    assert decision.gpu_limits_w.sum() + decision.base_w <= LEVELS[DEEP].limit_w + 4


def test_without_any_table_the_law_sheds_by_orders_alone(block):
    decision = block.ask(("contact", DEEP), table=0)
    assert decision.state.shedding.call is None
    assert decision.gpu_limits_w.sum() + decision.base_w <= LEVELS[DEEP].limit_w + 4


def test_a_level_that_was_never_divided_is_not_called_by_a_table_that_keeps_everything_up():
    """A second after the start the gentlest level is in the table, and the deepest has not had its turn."""
    block = Prepared()
    block.state = block.state._replace(
        shedding=shed.start(block.settings)._replace(
            turn=1,
            turned_at_s=block.now_s,
            table=shed.start(block.settings).table._replace(version=1, node_version=np.array([1, 1])),
        )
    )
    decision = block.ask(("contact", DEEP))
    assert decision.state.shedding.call is None
    assert decision.gpu_limits_w.sum() + decision.base_w <= LEVELS[DEEP].limit_w + 4


def test_the_way_back_is_the_agreed_ramp(block):
    for _ in range(40):
        block.ask(("contact", DEEP))
    shed_w = block.decision.budget_w
    block.run(1.0, site=block.site())
    risen_w = block.decision.budget_w - shed_w
    assert 0.0 < risen_w <= block.settings.ramp.up_w_per_s * (1.0 + 2 * TICK_S)


def test_a_table_is_not_sent_again_for_a_watt(block):
    versions = []
    for _ in range(100):
        block.tick(site=block.site())
        versions.append(block.state.shedding.table.version)
    assert len(set(versions)) == 1


def test_a_table_follows_what_the_gpus_have_come_to_need(block):
    before = block.state.shedding.table
    needs_w = np.array([MAX_W, MAX_W, 220.0, 220.0])
    for _ in range(400):
        block.tick(site=block.site(), meter=False, power_w=np.minimum(needs_w, block.limit_w))
    after = block.state.shedding.table
    assert (after.node_version > before.node_version).any()
    assert after.limits_w[GENTLE][0] > after.limits_w[GENTLE][2]


def test_caps_on_single_gpus_hold_in_the_tables_too():
    block = Prepared()
    cap_w = np.array([250.0, NO_LIMIT_W, NO_LIMIT_W, NO_LIMIT_W])
    for _ in range(60):
        block.tick(site=block.site(), cap_w=cap_w)
    assert block.state.shedding.table.limits_w[GENTLE][0] <= 250.0


def test_a_call_by_a_window_is_the_same_call_and_of_it_and_a_power_limit_the_lower_binds(block):
    called = setpoint(2400.0, source="facility", kind="shed", shed_level=GENTLE)
    contact = Contact(block.now_s, block.now_s)
    decision = block.tick(site=Site((contact,), (called,)))
    assert decision.state.shedding.call.level == GENTLE
    assert (decision.binding.source, decision.binding.power_w) == ("shed gentle (facility e/0)", 2400.0)
    limit = setpoint(1700.0, source="facility", kind="power limit")
    for _ in range(40):
        contact = Contact(block.now_s, block.now_s)
        decision = block.tick(site=Site((contact,), (called, limit)))
    assert decision.binding.power_w == 1700.0
    assert [one.power_w for one in decision.limits if one.source.startswith("shed")] == [2400.0]


def test_a_level_that_floors_keep_out_of_reach_is_said_before_it_is_called():
    """Power smoothing keeps two GPUs at 650 W, whatever their limit: 2 x 650 + 2 x 200 + 600 W are not 1.8 kW."""
    block = Prepared()
    for _ in range(round(8.0 / TICK_S)):
        decision = block.tick(site=block.site(), floor_w=np.array([650.0, 650.0, 0.0, 0.0]))
    said = {alarm.key: alarm.text for alarm in decision.alarms}
    assert "would end 0.50 kW above its 1.80 kW" in said["shed plan deep"]
    assert "shed plan gentle" not in said
    assert block.state.shedding.table.limits_w[DEEP].tolist() == [650.0, 650.0, 200.0, 200.0]


def test_what_a_floor_keeps_up_counts_whatever_the_limit(block):
    """The one that is heard of too late: its limit is lower already, its power is not."""
    block.under_control(20.0, 2000.0)
    decision = block.tick(site=block.site(2000.0), floor_w=np.array([650.0, 0.0, 0.0, 0.0]))
    assert decision.shortfall_w > 200.0


def test_a_call_beside_a_lower_limit_is_followed_by_that_limit_in_the_next_beat():
    """The table knows nothing of a cooling plant that trips in the same beat."""
    block = Prepared(cooling_blind_w=4000.0)
    for _ in range(round(20.0 / TICK_S)):
        block.tick(site=block.site(), cooling=good(6000.0, block.now_s + TICK_S))
    for _ in range(2):
        decision = block.ask(("contact", GENTLE), cooling=good(1700.0, block.now_s + TICK_S))
    assert decision.binding.source == "cooling capacity"
    assert block.limit_w.sum() + BASE_W <= 1700.0 + 20.0
