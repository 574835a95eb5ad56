"""Some GPUs of one driver as if they were a host of their own: many agents in one process.

An agent farm loads the driver library once and gives each of its nodes a slice. A slice shares the open
driver and nothing else: it has its own handles and its own memory of what it set, so that slices never wait
for each other.
"""

from protocols.nvml.driver import Nvml
from protocols.nvml.faults import NvmlFault


class NodeSlice(Nvml):
    """GPUs `first` to `first + count - 1` of an open driver, named 0 to count - 1."""

    def __init__(self, driver: Nvml, first: int, count: int) -> None:
        """Raises ValueError when the driver has no such GPUs."""
        if first < 0 or count < 1 or first + count > driver.gpu_count:
            raise ValueError(f"GPUs {first} to {first + count - 1}: the driver has {driver.gpu_count}")
        self.driver_version = driver.driver_version
        self.gpu_count = count
        self.first = driver.first + first
        self._forget()

    def index_of(self, uuid: str) -> int:
        """As of any driver, but a GPU of another slice is not found. Raises NvmlFault."""
        index = super().index_of(uuid)
        if not 0 <= index < self.gpu_count:
            raise NvmlFault(6, f"cannot find {uuid}: it belongs to another node")
        return index

    def close(self) -> None:
        """Does nothing: the driver belongs to whoever opened it."""
