"""Redfish, as far as it limits power: one BMC, its few levers, and what it says about them.

A BMC is a small computer: it answers in one to two seconds, carries four client connections at most (GB200,
GB300), shows a certificate that nobody signed, and locks the account after a few wrong passwords. So there
is one session per BMC, kept and renewed, never credentials with every request; two connections at most; the
certificate is pinned or vouched for, there is no third way; and whatever it says it did is read back.

    bmc = Bmc(BmcSettings(url="https://n01-bmc", user="powerblock", password=..., fingerprint="ab:cd:..."))
    for lever in await discover(bmc, "gpu"):
        lever = await set_limit(bmc, lever, 300.0)
    await bmc.close()

Sources: DMTF DSP0266 1.21 (sessions, ETags, tasks), DSP0268 (EnvironmentMetrics, Control), NVIDIA DPS guide
"Redfish API", NVIDIA DGX B200 user guide 9.3.13 (Node Manager).
"""

from protocols.redfish.client import Answer, Bmc
from protocols.redfish.faults import RedfishConfigError, RedfishFault, Unreachable
from protocols.redfish.levers import OFF, Kind, Lever, change, discover, read, set_limit
from protocols.redfish.settings import BmcSettings

__all__ = [
    "OFF",
    "Answer",
    "Bmc",
    "BmcSettings",
    "Kind",
    "Lever",
    "RedfishConfigError",
    "RedfishFault",
    "Unreachable",
    "change",
    "discover",
    "read",
    "set_limit",
]
