"""What the agent tells of its GPUs: a short report ten times a second, the lasting facts now and then.

A GPU that has never been read is given the widest limits among the others: nobody knows better, and its
controller must count with the worst. All powers and limits are a GPU's own, or its share of its module's.
"""

from collections.abc import Collection, Sequence

from controller.agent.config import NodeConfig
from controller.agent.gpu_view import GpuView
from controller.agent.levers import lever
from controller.agent.shares import WHOLE, Modules, Range, Share
from protocols import agent_link, nvml


def described(
    views: Sequence[GpuView],
    now_s: float,
    shares: Sequence[Share] = (),
    unsure: Collection[int] = (),
) -> tuple[agent_link.Gpu, ...]:
    """All GPUs as a report tells them; empty while not one has been read since the start.

    Args:
        views: what is known of each GPU.
        now_s: this moment.
        shares: of each GPU, of what its driver tells; empty: all of it.
        unsure: GPUs whose limit may change by itself; it is told as not known.
    """
    parts = shares or (WHOLE,) * len(views)
    ranges = [_range(view, share) for view, share in zip(views, parts, strict=True)]
    widest = Range(0.0, 0.0)
    if None in ranges:
        known = [one for one in ranges if one is not None]
        if not known:
            return ()
        widest = Range(min(one.min_w for one in known), max(one.max_w for one in known))
    return tuple(
        _described(view, share, allowed or widest, now_s, sure=gpu not in unsure)
        for gpu, (view, share, allowed) in enumerate(zip(views, parts, ranges, strict=True))
    )


def _range(view: GpuView, share: Share) -> Range | None:
    device, ratio = view.device, share.range_ratio
    return None if device is None else Range(ratio * device.min_w, ratio * device.max_w)


def _described(view: GpuView, share: Share, allowed: Range, now_s: float, *, sure: bool) -> agent_link.Gpu:
    reading, (min_w, max_w) = view.reading, allowed
    limit_w = share.held_ratio * view.limit_w if sure and view.limit_w is not None else None
    asked_mhz, sure = view.ceiling
    ceiling_mhz = asked_mhz if asked_mhz and sure else 0
    if reading is None:
        return agent_link.Gpu(
            power_w=None,
            limit_w=limit_w,
            enforced_w=None,
            min_w=min_w,
            max_w=max_w,
            fault=view.fault(),
            notice=view.notice(now_s, share.held_ratio),
            ceiling_mhz=ceiling_mhz,
            floor_w=view.floor_w(),
        )
    return agent_link.Gpu(
        power_w=share.held_ratio * reading.power_w,
        limit_w=limit_w,
        enforced_w=share.held_ratio * reading.enforced_w,
        min_w=min_w,
        max_w=max_w,
        fault=view.fault(),
        notice=view.notice(now_s, share.held_ratio),
        clock_mhz=reading.clock_mhz,
        ceiling_mhz=ceiling_mhz,
        capped=reading.capped,
        lever=lever(view.learned),
        floor_w=view.floor_w(),
    )


def facts(
    config: NodeConfig,
    driver_version: str,
    boot: str,
    views: Sequence[GpuView],
    modules: Modules,
    now_s: float,
) -> agent_link.Facts:
    """What this node is; two of it are equal but for `at_s` while nothing changes."""
    fallback_w = config.fallback_limits_w(len(views))
    module_of = {gpu: (number, gpus) for number, gpus in enumerate(modules) for gpu in gpus}
    return agent_link.Facts(
        node=config.node,
        boot=boot,
        at_s=now_s,
        driver=driver_version,
        lease_max_s=config.lease_max_s,
        waiting_max_s=config.waiting_max_s,
        fallback_ramp_w_per_s=config.fallback_ramp_w_per_s,
        gpus=tuple(
            _facts(config, view, fallback_w[gpu], *module_of.get(gpu, (-1, (gpu,))))
            for gpu, view in enumerate(views)
        ),
    )


def _facts(
    config: NodeConfig, view: GpuView, fallback_w: float, module: int, members: tuple[int, ...]
) -> agent_link.GpuFacts:
    device, sharing = view.device, len(members)
    if device is None:
        return agent_link.GpuFacts(fallback_w=fallback_w, module=module)
    return agent_link.GpuFacts(
        fallback_w=fallback_w,
        uuid=device.uuid,
        name=device.name,
        min_w=device.min_w / sharing,
        max_w=device.max_w / sharing,
        default_w=device.default_w / sharing,
        found_w=None if view.first_w is None else view.first_w / sharing,
        clock_min_mhz=device.clock_min_mhz,
        clock_max_mhz=device.clock_max_mhz,
        module=module,
        mig=device.mig,
        persistence=device.persistence,
        place=_place(device.platform),
        smoothing=_smoothing(view.smoothing),
        profiles=device.profiles,
        profiles_requested=() if view.profiles is None else view.profiles.requested,
        locked_mhz=config.clock_lock_mhz,
    )


def _place(platform: nvml.Platform | None) -> agent_link.Place | None:
    if platform is None:
        return None
    return agent_link.Place(
        chassis_serial=platform.chassis_serial,
        slot=platform.slot,
        tray=platform.tray,
        host_id=platform.host_id,
        module_id=platform.module_id,
    )


def _smoothing(smoothing: nvml.Smoothing | None) -> agent_link.Smoothing | None:
    if smoothing is None:
        return None
    in_force = smoothing.in_force
    return agent_link.Smoothing(
        enabled=smoothing.enabled,
        floor_w=smoothing.floor_w,
        ceiling_w=smoothing.ceiling_w,
        preset=smoothing.preset,
        ramp_up_w_per_s=None if in_force is None else in_force.ramp_up_w_per_s,
        ramp_down_w_per_s=None if in_force is None else in_force.ramp_down_w_per_s,
        hysteresis_s=None if in_force is None else in_force.hysteresis_s,
        immediate=smoothing.immediate,
        lifetime_ratio=smoothing.lifetime_ratio,
    )
