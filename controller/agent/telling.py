"""What the agent tells of its GPUs: a short report ten times a second, the lasting facts now and then.

A GPU that has never been read is given the widest limits among the others: nobody knows better, and its
controller must count with the worst.
"""

from collections.abc import Sequence

from controller.agent.config import NodeConfig
from controller.agent.gpu_view import GpuView
from controller.agent.levers import lever
from protocols import agent_link, nvml


def described(views: Sequence[GpuView], now_s: float) -> tuple[agent_link.Gpu, ...]:
    """All GPUs as a report tells them; empty while not one has been read since the start."""
    unread = [view for view in views if view.device is None]
    widest = (0.0, 0.0)
    if unread:
        devices = [view.device for view in views if view.device is not None]
        if not devices:
            return ()
        widest = (min(device.min_w for device in devices), max(device.max_w for device in devices))
    return tuple(_described(view, widest, now_s) for view in views)


def _described(view: GpuView, widest: tuple[float, float], now_s: float) -> agent_link.Gpu:
    device, reading = view.device, view.reading
    min_w, max_w = widest if device is None else (device.min_w, device.max_w)
    asked_mhz, sure = view.ceiling
    ceiling_mhz = asked_mhz if asked_mhz and sure else 0
    if reading is None:
        return agent_link.Gpu(
            power_w=None,
            limit_w=view.limit_w,
            enforced_w=None,
            min_w=min_w,
            max_w=max_w,
            fault=view.fault(),
            notice=view.notice(now_s),
            ceiling_mhz=ceiling_mhz,
            floor_w=view.floor_w(),
        )
    return agent_link.Gpu(
        power_w=reading.power_w,
        limit_w=view.limit_w,
        enforced_w=reading.enforced_w,
        min_w=min_w,
        max_w=max_w,
        fault=view.fault(),
        notice=view.notice(now_s),
        clock_mhz=reading.clock_mhz,
        ceiling_mhz=ceiling_mhz,
        capped=reading.capped,
        lever=lever(view.learned),
        floor_w=view.floor_w(),
    )


def facts(
    config: NodeConfig, driver_version: str, boot: str, views: Sequence[GpuView], now_s: float
) -> agent_link.Facts:
    """What this node is; two of it are equal but for `at_s` while nothing changes."""
    fallback_w = config.fallback_limits_w(len(views))
    module_of = {gpu: module for module, gpus in enumerate(modules(config, views)) for gpu in gpus}
    return agent_link.Facts(
        node=config.node,
        boot=boot,
        at_s=now_s,
        driver=driver_version,
        lease_max_s=config.lease_max_s,
        waiting_max_s=config.waiting_max_s,
        fallback_ramp_w_per_s=config.fallback_ramp_w_per_s,
        gpus=tuple(
            _facts(config, view, fallback_w[gpu], module_of.get(gpu, -1)) for gpu, view in enumerate(views)
        ),
    )


def modules(config: NodeConfig, views: Sequence[GpuView]) -> tuple[tuple[int, ...], ...]:
    """GPUs by the module whose limit they share; empty where every GPU has its own."""
    if not any(view.device is not None and view.device.module for view in views):
        return ()
    per_module = 1 if config.gpus is None else config.gpus.per_module
    gpus = tuple(range(len(views)))
    return tuple(gpus[first : first + per_module] for first in range(0, len(views), per_module))


def _facts(config: NodeConfig, view: GpuView, fallback_w: float, module: int) -> agent_link.GpuFacts:
    device = view.device
    if device is None:
        return agent_link.GpuFacts(fallback_w=fallback_w, module=module)
    return agent_link.GpuFacts(
        fallback_w=fallback_w,
        uuid=device.uuid,
        name=device.name,
        min_w=device.min_w,
        max_w=device.max_w,
        default_w=device.default_w,
        found_w=view.first_w,
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
