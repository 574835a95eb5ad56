"""The open driver: every call that an agent makes, by GPU index, each ending in a value or an `NvmlFault`.

Threads: NVML is thread-safe, and ctypes releases the interpreter lock during calls. One thread may read while
another writes the same GPU; two threads that read the same GPU may count a generation twice, no worse. A call
that does not return keeps its thread, and nothing else: no lock is held here.

A GPU that fails is looked up anew on its next call: after a reset it has another handle, and another board
may sit in its place. What we remember of it (its clock ceiling) ends with that.

Divided GPUs (MIG): indices are those of whole GPUs, since power and clocks of an instance do not exist;
`index_of` finds the GPU behind an instance.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import pynvml

from protocols.nvml import clocks, place, power, profiles, smoothing
from protocols.nvml.clocks import Clocks
from protocols.nvml.facts import Device, Profiles, Reading, Smoothing
from protocols.nvml.faults import NOT_SUPPORTED, NvmlFault, checked, if_known
from protocols.nvml.fields import SCOPE_GPU, SCOPE_MODULE, Stamped
from protocols.nvml.power import Range

T = TypeVar("T")


class _Gpu:
    """One GPU as opened: its handle, and what is remembered until it is opened again."""

    __slots__ = ("ceiling_mhz", "clocks", "device", "energy_j", "handle", "range", "scope")

    def __init__(self, handle: object, allowed: Range, listed: Clocks, device: Device) -> None:
        self.handle = handle
        self.scope = SCOPE_MODULE if allowed.module else SCOPE_GPU
        self.range = allowed
        self.clocks = listed
        self.device = device
        self.energy_j = 0.0
        self.ceiling_mhz: int | None = None  # ours


class Nvml:
    """An open driver. GPUs are named by NVML index; a faulty one is looked up anew on its next call."""

    def __init__(self) -> None:
        """Opens the driver. Raises NvmlFault: no library, no driver, wrong versions."""
        checked("open the driver", pynvml.nvmlInit)
        self.driver_version: str = checked("read the driver version", pynvml.nvmlSystemGetDriverVersion)
        self.gpu_count: int = checked("count the GPUs", pynvml.nvmlDeviceGetCount)
        self.first = 0  # NVML index of our GPU 0, see `node_slice`
        self._forget()

    def close(self) -> None:
        """Lets go of the driver. Limits and locks stay as they are."""
        checked("close the driver", pynvml.nvmlShutdown)

    # ---- reading ----

    def read(self, index: int) -> Reading:
        """Power, limits, clock and their reasons of one GPU. Raises NvmlFault."""
        return self._with(index, "read", lambda gpu: self._read(index, gpu))

    def read_limit_w(self, index: int) -> float:
        """Requested limit of one GPU, W. Raises NvmlFault."""
        return self._with(index, "read the limit of", lambda gpu: power.requested_w(gpu.handle, gpu.scope))

    def read_sensors(self, index: int) -> dict[int, Stamped]:
        """What measures power of one GPU, by field, with the driver's time stamps; see `power.sensors`.

        Raises NvmlFault.
        """
        return self._with(index, "read the sensors of", lambda gpu: power.sensors(gpu.handle, gpu.scope))

    def describe(self, index: int) -> Device:
        """Read anew what does change of the lasting facts: MIG, persistence, smoothing. Raises NvmlFault.

        Readings from then on bring it. The same object as before: nothing has changed.
        """

        def describe(gpu: _Gpu) -> Device:
            device = gpu.device
            now = replace(
                device,
                mig=_is_divided(gpu.handle),
                persistence=_persistence(gpu.handle),
                smoothing=None if device.smoothing is None else self._smoothing(gpu.handle),
            )
            if now != device:
                gpu.device = now
            return gpu.device

        return self._with(index, "describe", describe)

    def index_of(self, uuid: str) -> int:
        """The GPU of this UUID, or the one behind the MIG instance of this UUID. Raises NvmlFault."""
        return checked(f"find {uuid}", lambda: _nvml_index(uuid)) - self.first

    # ---- the first lever: power ----

    def set_limit_w(self, index: int, limit_w: float) -> float:
        """Request a limit, clamped to what the GPU allows; returns the limit written, W. Raises NvmlFault."""

        def write(gpu: _Gpu) -> float:
            clamped_w = gpu.range.clamped_w(limit_w)
            power.request(gpu.handle, gpu.scope, clamped_w)
            return clamped_w

        return self._limiting(index, f"set {limit_w:.0f} W on", write)

    def lower_limit_w(self, index: int, limit_w: float) -> float:
        """Request a limit, clamped as above, only if that lowers it; returns the limit then requested, W.

        For a GPU whose limit the caller has not seen: it never raises. Raises NvmlFault.
        """

        def lower(gpu: _Gpu) -> float:
            found_w = power.requested_w(gpu.handle, gpu.scope)
            clamped_w = gpu.range.clamped_w(limit_w)
            if clamped_w >= found_w:
                return found_w
            power.request(gpu.handle, gpu.scope, clamped_w)
            return clamped_w

        return self._limiting(index, f"lower to {limit_w:.0f} W", lower)

    def limit_by_module(self, index: int) -> None:
        """Know the limits of this GPU as its module's from its next call on.

        For one that shares a module with a GPU whose own limit could be read and not be set. Calls no driver.
        """
        self._module_only.add(index)
        self._opened.pop(index, None)

    def probe_permission(self, index: int) -> None:
        """Write back the limit just read: changes nothing, and raises NvmlFault where a real write would."""

        def write_back(gpu: _Gpu) -> None:
            power.request(gpu.handle, gpu.scope, power.requested_w(gpu.handle, gpu.scope))

        self._limiting(index, "write back the limit of", write_back)

    # ---- the second lever: clocks ----

    def set_clock_ceiling(self, index: int, ceiling_mhz: int | None) -> int:
        """Let the SM clock not pass a ceiling, or take any lock away (None).

        Returns the ceiling written, MHz: rounded down to a clock the GPU has; after a reset its highest one
        (0: unknown).
        A reset takes a lock away that was there before us, too: see `clocks`. Raises NvmlFault, ValueError.
        """
        if ceiling_mhz is None:
            return self._with(index, "reset the clock lock of", _unlock)
        if ceiling_mhz <= 0:
            raise ValueError(f"a clock ceiling of {ceiling_mhz} MHz: use None for no ceiling")

        def lock(gpu: _Gpu) -> int:
            written_mhz = gpu.clocks.step_below(ceiling_mhz)
            clocks.lock(gpu.handle, gpu.clocks.min_mhz, written_mhz)
            gpu.ceiling_mhz = written_mhz
            return written_mhz

        return self._with(index, f"set a clock ceiling of {ceiling_mhz} MHz on", lock)

    def set_clock_lock(self, index: int, min_mhz: int, max_mhz: int) -> None:
        """Put back a lock that the site has set, as it is: no longer ours. Raises NvmlFault."""

        def lock(gpu: _Gpu) -> None:
            clocks.lock(gpu.handle, min_mhz, max_mhz)
            gpu.ceiling_mhz = None

        self._with(index, f"lock the clocks to {min_mhz}-{max_mhz} MHz on", lock)

    # ---- what Blackwell adds ----

    def read_profiles(self, index: int) -> Profiles | None:
        """Workload power profiles; None where the GPU has none. Raises NvmlFault."""
        return self._with(index, "read the power profiles of", lambda gpu: profiles.profiles_of(gpu.handle))

    def request_profiles(self, index: int, numbers: Iterable[int]) -> Profiles | None:
        """Request profiles beside those requested; returns what is in force then. Raises NvmlFault."""

        def change(gpu: _Gpu) -> Profiles | None:
            profiles.request(gpu.handle, numbers)
            return profiles.profiles_of(gpu.handle)

        return self._with(index, "request power profiles of", change)

    def clear_profiles(self, index: int, numbers: Iterable[int]) -> Profiles | None:
        """Take requested profiles away, whoever requested them. Raises NvmlFault."""

        def change(gpu: _Gpu) -> Profiles | None:
            profiles.clear(gpu.handle, numbers)
            return profiles.profiles_of(gpu.handle)

        return self._with(index, "clear power profiles of", change)

    def read_smoothing(self, index: int) -> Smoothing | None:
        """State of power smoothing, its floor first of all; None where there is none. Raises NvmlFault."""
        return self._with(index, "read power smoothing of", lambda gpu: self._smoothing(gpu.handle))

    def activate_preset(self, index: int, number: int) -> None:
        """Make this smoothing preset the active one. Raises NvmlFault."""
        self._with(
            index,
            f"activate smoothing preset {number} of",
            lambda gpu: smoothing.activate(gpu.handle, number),
        )

    # ---- how ----

    def _forget(self) -> None:
        self._opened: dict[int, _Gpu] = {}
        self._generations: dict[int, int] = {}
        self._module_only: set[int] = set()  # GPUs whose own limit can be read and not written

    def _limiting(self, index: int, verb: str, call: Callable[[_Gpu], T]) -> T:
        """Like `_with`, for writes of limits: a board that refuses them for its GPU is tried as a module."""
        try:
            return self._with(index, verb, call)
        except NvmlFault as fault:
            if fault.code != NOT_SUPPORTED or index in self._module_only:
                raise
            self._module_only.add(index)
            try:
                return self._with(index, verb, call)
            except NvmlFault:
                self._module_only.discard(index)
                raise fault from None

    def _with(self, index: int, verb: str, call: Callable[[_Gpu], T]) -> T:
        try:
            gpu = self._opened.get(index) or self._open(index)
            return checked(f"{verb} GPU {index}", lambda: call(gpu))
        except NvmlFault:
            self._opened.pop(index, None)  # back again, it may have another handle and other constraints
            raise

    def _open(self, index: int) -> _Gpu:
        if not 0 <= index < self.gpu_count:
            raise NvmlFault(2, f"cannot open GPU {index}: there are {self.gpu_count}")
        gpu = checked(f"open GPU {index}", lambda: self._found(index))
        self._generations[index] = self._generations.get(index, -1) + 1
        self._opened[index] = gpu
        return gpu

    def _found(self, index: int) -> _Gpu:
        handle = pynvml.nvmlDeviceGetHandleByIndex(self.first + index)
        allowed = power.allowed(handle, try_gpu=index not in self._module_only)
        listed = clocks.clocks_of(handle)
        return _Gpu(handle, allowed, listed, self._described(index, handle, allowed, listed))

    def _described(self, index: int, handle: object, allowed: Range, listed: Clocks) -> Device:
        found = profiles.profiles_of(handle)
        return Device(
            index=index,
            uuid=pynvml.nvmlDeviceGetUUID(handle),
            name=pynvml.nvmlDeviceGetName(handle),
            min_w=allowed.min_w,
            max_w=allowed.max_w,
            default_w=allowed.default_w,
            module=allowed.module,
            clock_min_mhz=listed.min_mhz,
            clock_max_mhz=listed.max_mhz,
            mig=_is_divided(handle),
            persistence=_persistence(handle),
            platform=place.place_of(handle),
            smoothing=self._smoothing(handle),
            profiles=() if found is None else found.supported,
        )

    def _smoothing(self, handle: object) -> Smoothing | None:
        return smoothing.smoothing_of(handle, smoothing.first_field(self.driver_version))

    def _read(self, index: int, gpu: _Gpu) -> Reading:
        now = power.read(gpu.handle, gpu.scope)
        if now.energy_j is not None and now.energy_j < gpu.energy_j:
            gpu = self._open(index)  # the driver, or the GPU, has started again under our feet
        gpu.energy_j = now.energy_j or 0.0
        return Reading(
            device=gpu.device,
            power_w=now.power_w,
            averaged=now.averaged,
            limit_w=now.limit_w,
            enforced_w=now.enforced_w,
            clock_mhz=clocks.sm_mhz(gpu.handle),
            reasons=clocks.event_reasons(gpu.handle),
            energy_j=now.energy_j,
            ceiling_mhz=gpu.ceiling_mhz,
            generation=self._generations[index],
        )


def _unlock(gpu: _Gpu) -> int:
    clocks.unlock(gpu.handle)
    gpu.ceiling_mhz = None
    return gpu.clocks.max_mhz


def _is_divided(handle: object) -> bool:
    return bool(if_known(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0]))


def _persistence(handle: object) -> bool | None:
    mode = if_known(lambda: pynvml.nvmlDeviceGetPersistenceMode(handle))
    return None if mode is None else bool(mode)


def _nvml_index(uuid: str) -> int:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    if if_known(lambda: pynvml.nvmlDeviceIsMigDeviceHandle(handle).value):
        handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    index: int = pynvml.nvmlDeviceGetIndex(handle)
    return index
