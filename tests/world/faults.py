"""What can go wrong in the world: a table of faults, each with its weight, its length, and how it heals."""

import heapq
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from protocols.agent_link import Order
from tests.world.nodes import MAX_W, MIN_W

if TYPE_CHECKING:
    from tests.world.nodes import Agent
    from tests.world.world import World

Heal = Callable[[], object] | None


class Fault(NamedTuple):
    weight: int
    shortest_s: float
    longest_s: float
    strike: Callable[["World", int, "Agent"], Heal]  # (world, a GPU, an agent) -> how it heals, or None
    room_s: float = 0.0  # it begins so long before all faults end


def _meter(mode: str, world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.meter.mode = mode
    return partial(setattr, world.meter, "mode", "good")


def _inlet_silent(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    inlet = world.rng.choice(world.inlets)
    inlet.mode = "silent"
    return partial(setattr, inlet, "mode", "good")


def _cooling_silent(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.cooling.mode = "silent"
    return partial(setattr, world.cooling, "mode", "good")


def _site_silent(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.site_up = False
    return partial(setattr, world, "site_up", True)


def _agent_cut_off(world: "World", _gpu: int, agent: "Agent") -> Heal:
    world.network.cut.add(agent.name)
    return partial(world.network.cut.discard, agent.name)


def _agent_killed(world: "World", _gpu: int, agent: "Agent") -> Heal:
    agent.up = False
    return lambda: agent.start(world.now_s)


def _driver_blocks(_world: "World", _gpu: int, agent: "Agent") -> Heal:
    agent.deaf_to_writes = True
    return partial(setattr, agent, "deaf_to_writes", False)


def _gpu_lost(world: "World", gpu: int, _agent: "Agent") -> Heal:
    world.truth.lost[gpu] = True
    return partial(world.truth.lost.__setitem__, gpu, False)


def _limit_lowered_out_of_band(world: "World", gpu: int, _agent: "Agent") -> Heal:
    world.truth.oob_w[gpu] = world.rng.uniform(MIN_W, 500.0)
    return partial(world.truth.oob_w.__setitem__, gpu, 1e6)


def _limit_reset_by_driver(world: "World", _gpu: int, agent: "Agent") -> Heal:
    world.truth.forget_settings(agent.members)
    world.disturbed_at_s = world.now_s
    return None


def _controller_killed(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.controller = None
    return world.start_controller


def _broker_gone(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    ends = {agent.name for agent in world.agents} | {"site"}
    world.network.cut |= ends
    return partial(world.network.cut.difference_update, ends)


def _wall_clock_stepped(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.utc_step_s += world.rng.choice((-3600.0, -10.0, 10.0, 3600.0))
    return None


def _network_bad(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    network, rng = world.network, world.rng
    network.loss, network.twice, network.late_s = rng.uniform(0.0, 0.3), 0.2, rng.uniform(0.0, 5.0)
    return network.heal


def _gpu_disobeys(world: "World", gpu: int, _agent: "Agent") -> Heal:
    world.truth.wild[gpu] = True
    return partial(world.truth.wild.__setitem__, gpu, False)


def _gpu_takes_all(world: "World", gpu: int, agent: "Agent") -> Heal:
    world.truth.demand_w[gpu] = MAX_W
    return _gpu_disobeys(world, gpu, agent)


def _cooling_derates(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    before_w, world.cooling_w = world.cooling_w, 0.55 * world.cooling_w
    return partial(setattr, world, "cooling_w", before_w)


def _plan_replaced(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    """The same windows, with other limits."""
    world.replan(tuple(replace(s, limit_w=s.limit_w * 0.9) for s in world.plan))
    return None


def _plan_withdrawn(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.replan(())
    return None


def _base_load_high(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    """More than the settings ever assumed."""
    world.truth.base_target_w = 1.2 * world.settings.base_max_w
    return partial(setattr, world.truth, "base_target_w", 1500.0)


def _statement_missing(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.site_states = False
    return partial(setattr, world, "site_states", True)


def _host_reboots(world: "World", _gpu: int, agent: "Agent") -> Heal:
    """The agent is gone, the driver forgot its limits, and the work comes back at full power before anyone."""
    agent.up = False
    world.truth.forget_settings(agent.members)
    world.work_fully(agent.members)
    world.disturbed_at_s = world.now_s
    return lambda: agent.start(world.now_s)


def _driver_forgets_and_blocks(world: "World", _gpu: int, agent: "Agent") -> Heal:
    """It was reloaded, and takes no limit: what was confirmed holds no more, and everybody can see it."""
    world.truth.forget_settings(agent.members)
    world.work_fully(agent.members)
    world.disturbed_at_s = world.now_s
    agent.deaf_to_writes = True
    return partial(setattr, agent, "deaf_to_writes", False)


def _messages_lost(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    """Three of ten, in both directions; what arrives is neither late nor told twice."""
    world.network.loss = 0.3
    return partial(setattr, world.network, "loss", 0.0)


def _racks_partitioned(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    """Some nodes lose the network all at once."""
    names = {agent.name for agent in world.agents[: max(1, len(world.agents) // 2)]}
    world.network.cut |= names
    return partial(world.network.cut.difference_update, names)


def _agent_acts_not(_world: "World", _gpu: int, agent: "Agent") -> Heal:
    """It confirms what it is told, shows it as its limit, and leaves the GPUs as they are."""
    agent.inert = True
    return partial(setattr, agent, "inert", False)


def _lowered_by_another(world: "World", gpu: int, _agent: "Agent") -> Heal:
    """Somebody else on the host writes limits, too."""
    world.truth.limit_w[gpu] = min(world.truth.limit_w[gpu], world.scale_rng.uniform(MIN_W, 500.0))
    return None


def _stale_flood(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    """A broker that was replaced, or a bad script, sends again what was sent before."""
    world.network.again = 8
    return partial(setattr, world.network, "again", 0)


def _second_controller(world: "World", _gpu: int, _agent: "Agent") -> Heal:
    """Started by mistake. An older one is refused; a newer one takes the block, until somebody restarts ours."""
    newer = world.scale_rng.random() < 0.5
    epoch = max(0, world.disk.epoch + (1 if newer else -1))
    for number, agent in enumerate(world.agents):
        own_s = world.now_s + agent.clock_offset_s
        order = Order(
            epoch=epoch,
            seq=1,
            sent_at_s=world.now_s,
            echo_at_s=own_s,
            known_at_s=own_s,
            lease_s=1.0,
            limits_w=(MAX_W,) * len(agent.members),
        )
        world.network.send(world.now_s, str(number), order, via=agent.name)
    if not newer:
        return None
    world.disturbed_at_s = world.now_s
    world.disk.epoch = epoch
    return world.start_controller


def _instrument(mode: str, world: "World", _gpu: int, _agent: "Agent") -> Heal:
    world.grid.mode = mode
    return partial(setattr, world.grid, "mode", "good")


def _host_dead(world: "World", _gpu: int, agent: "Agent") -> Heal:
    """No agent, no network, GPUs that keep their limits and work at full power."""
    agent.up = False
    world.work_fully(agent.members)
    return lambda: agent.start(world.now_s)


def _host_dead_at_full_power(world: "World", gpu: int, agent: "Agent") -> Heal:
    """The same after a reload of the driver, which forgot the limits."""
    world.truth.forget_settings(agent.members)
    world.disturbed_at_s = world.now_s
    return _host_dead(world, gpu, agent)


def _bmc(mode: str, world: "World", gpu: int, agent: "Agent") -> Heal:
    """Of a host that then falls silent."""
    world.bmcs.modes[agent.name] = mode
    heal = _host_dead_at_full_power(world, gpu, agent)

    def healed() -> None:
        world.bmcs.heal(agent.name)
        heal()

    return healed


def _held_host_reboots(world: "World", gpu: int, agent: "Agent") -> Heal:
    """What its BMC held goes with it, some seconds into the outage; often nobody can ask the BMC then."""
    loses_at_s = world.now_s + world.bmc_rng.uniform(10.5, 14.0)
    lose = partial(world.bmcs.forget, agent.name)
    heapq.heappush(world.ending, (loses_at_s, -len(world.log), "cap lost", lose))
    mode = world.bmc_rng.choice(("good", "dies"))
    return _bmc(mode, world, gpu, agent)


def _work_changes(world: "World", gpu: int, _agent: "Agent") -> Heal:
    """From decoding to training or back; its agent takes a while to learn which lever moves it now."""
    truth = world.truth
    truth.decodes[gpu] = not truth.decodes[gpu]
    truth.demand_w[gpu] = MAX_W
    return world.learn_levers


WORK = {"work changes": Fault(1, 2.0, 10.0, _work_changes)}
"""What moves power besides the law without being broken; only in worlds whose agents tell of levers."""

DEAD_HOSTS = {
    "host dead": Fault(2, 12.0, 20.0, _host_dead, room_s=12.0),
    "host dead at full power": Fault(3, 12.0, 20.0, _host_dead_at_full_power, room_s=12.0),
    "held host reboots": Fault(3, 18.0, 24.0, _held_host_reboots, room_s=18.0),
    "bmc mirrors": Fault(2, 12.0, 20.0, partial(_bmc, "mirrors"), room_s=12.0),
    "bmc ignores": Fault(1, 12.0, 20.0, partial(_bmc, "ignores"), room_s=12.0),
    "bmc slow": Fault(2, 12.0, 20.0, partial(_bmc, "slow"), room_s=12.0),
    "bmc dead": Fault(2, 12.0, 20.0, partial(_bmc, "dead"), room_s=12.0),
    "bmc dies while it holds": Fault(2, 14.0, 20.0, partial(_bmc, "dies"), room_s=14.0),
}
"""Hosts that are silent for longer than the law believes in them; only in worlds with BMCs."""

INSTRUMENT = {
    "frequency silent": Fault(2, 0.1, 8.0, partial(_instrument, "silent")),
    "frequency frozen": Fault(2, 1.0, 8.0, partial(_instrument, "frozen")),
    "frequency bad": Fault(1, 0.1, 8.0, partial(_instrument, "bad")),
    "frequency late": Fault(2, 0.5, 8.0, partial(_instrument, "late")),
    "frequency broken": Fault(2, 0.5, 8.0, partial(_instrument, "broken")),
    "frequency spiky": Fault(3, 2.0, 15.0, partial(_instrument, "spiky")),
}
"""What can be wrong with the instrument of the grid's frequency; only in worlds with a commitment."""

BLOCK_SCALE = {
    "host reboots": Fault(2, 3.0, 12.0, _host_reboots),
    "racks partitioned": Fault(3, 2.0, 2.0, _racks_partitioned),
    "agent acts not": Fault(2, 1.0, 12.0, _agent_acts_not),
    "lowered by another": Fault(2, 0.0, 0.0, _lowered_by_another),
    "stale flood": Fault(2, 1.0, 10.0, _stale_flood),
    "second controller": Fault(2, 0.5, 3.0, _second_controller),
}
"""What many hosts bring with them; drawn from a stream of their own as well."""

ROUGHER = {
    "gpu takes all": Fault(2, 4.0, 15.0, _gpu_takes_all),
    "driver forgets and blocks": Fault(2, 1.0, 12.0, _driver_forgets_and_blocks),
    "host reboots fast": Fault(1, 3.0, 3.0, _host_reboots, room_s=3.0),  # before the law gives it up
    "three of ten lost": Fault(1, 2.0, 15.0, _messages_lost),
}
"""Added last; drawn from a stream of their own, for the same reason."""

LATER = {
    "gpu disobeys": Fault(2, 2.0, 15.0, _gpu_disobeys),
    "cooling derates": Fault(2, 2.0, 15.0, _cooling_derates),
    "plan replaced": Fault(3, 0.0, 0.0, _plan_replaced),
    "plan withdrawn": Fault(1, 0.0, 0.0, _plan_withdrawn),
    "base load high": Fault(2, 2.0, 15.0, _base_load_high),
    "statement missing": Fault(2, 2.0, 15.0, _statement_missing),
}
"""Added when seeds had been kept already: drawn from a stream of their own, so that those still mean the same."""

FAULTS = {
    "meter silent": Fault(2, 0.5, 20.0, partial(_meter, "silent")),
    "meter frozen": Fault(1, 1.0, 10.0, partial(_meter, "frozen")),
    "meter lying": Fault(1, 1.0, 10.0, partial(_meter, "lying")),
    "inlet silent": Fault(1, 1.0, 20.0, _inlet_silent),
    "cooling silent": Fault(1, 1.0, 20.0, _cooling_silent),
    "site silent": Fault(2, 1.0, 20.0, _site_silent),
    "agent cut off": Fault(3, 0.2, 15.0, _agent_cut_off),
    "agent killed": Fault(3, 0.2, 15.0, _agent_killed),
    "driver blocks": Fault(2, 0.2, 10.0, _driver_blocks),
    "gpu lost": Fault(2, 0.5, 10.0, _gpu_lost),
    "limit lowered out of band": Fault(1, 1.0, 20.0, _limit_lowered_out_of_band),
    "limit reset by driver": Fault(1, 0.0, 0.0, _limit_reset_by_driver),
    "controller killed": Fault(3, 0.1, 8.0, _controller_killed),
    "broker gone": Fault(2, 0.2, 12.0, _broker_gone),
    "wall clock stepped": Fault(2, 0.0, 0.0, _wall_clock_stepped),
    "network bad": Fault(3, 1.0, 20.0, _network_bad),
}
