"""Simulated BMCs for tests: in real time, only thirty times as quick as they come."""

from pathlib import Path

from firmware_sim.gpu_firmware import GpuMemory
from firmware_sim.redfish_bmc import Certificate, RedfishBmc
from protocols.redfish import Bmc, BmcSettings

QUICK_S = (0.002, 0.01)
USER, PASSWORD = "powerblock", "rig password"


def gpus(folder: Path, count: int = 4, node: str = "n01", max_w: float = 1200.0) -> GpuMemory:
    """A GB200 compute tray has four."""
    path = folder / f"{node}.gpus"
    return GpuMemory.create(path, count, node=node, min_w=200, max_w=max_w, default_w=max_w, idle_w=140)


def simulated(memory: GpuMemory, certificate: Certificate, **kwargs) -> RedfishBmc:
    return RedfishBmc(memory, certificate, **{"answer_s": QUICK_S, **kwargs})


def client(simulated_bmc: RedfishBmc, certificate: Certificate, **kwargs) -> Bmc:
    wanted = {"user": USER, "password": PASSWORD, "fingerprint": certificate.fingerprint, **kwargs}
    return Bmc(BmcSettings(url=simulated_bmc.url, **wanted))
