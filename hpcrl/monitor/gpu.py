"""One GPU's state through NVML (package nvidia-ml-py, module pynvml), found by the device's UUID.

CUDA numbers the devices that CUDA_VISIBLE_DEVICES shows it, in the order given there; NVML numbers all of the
node's. Only the UUID names the same one in both.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
"""NVML's reasons for lower clocks that are no wish of the user's; idle, set clocks and sync boost are."""
HEAT = ("heat (driver)", "heat (hardware)")


@dataclass(frozen=True)
class Sample:
    utilisation: float  # [0, 1], of NVML's last period in which a kernel ran
    memory_gib: float  # used, by all processes
    memory_total_gib: float
    temperature_c: float
    power_w: float
    clock_mhz: float  # of the multiprocessors
    throttles: tuple[str, ...]  # of THROTTLES' names


def decode(reasons: int) -> tuple[str, ...]:
    """Names of the bits that throttle."""
    return tuple(name for bit, name in THROTTLES.items() if reasons & bit)


class NoGpu(Exception):
    """There is nothing to sample, or no more; the message says why."""


class Gpu:
    """NoGpu where the device is none, or NVML does not know it."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise NoGpu("no GPU here: CPU and memory figures only")
        self._nvml: Any = importlib.import_module("pynvml")
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        self.uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except self._nvml.NVMLError as error:
            raise NoGpu(f"{self.uuid}: NVML does not answer ({error}): no GPU figures") from None

    def sample(self) -> Sample:
        """NoGpu where the GPU is lost."""
        nvml, handle = self._nvml, self._handle
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return Sample(
                utilisation=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                memory_gib=memory.used / 2**30,
                memory_total_gib=memory.total / 2**30,
                temperature_c=float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
                clock_mhz=float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                throttles=decode(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            )
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                raise NoGpu(
                    f"{self.uuid} has fallen off the bus (see the node's dmesg for an Xid): this job "
                    "cannot go on there; have the node drained and submit the run again with --resume"
                ) from None
            raise NoGpu(f"{self.uuid}: NVML does not answer any more ({error}): no GPU figures") from None
