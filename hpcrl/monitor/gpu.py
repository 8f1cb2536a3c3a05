"""One GPU's state through NVML (package nvidia-ml-py, module pynvml), found by the device's UUID.

Without a GPU, or without a driver that answers, there is nothing to say: an empty dict.
"""

from __future__ import annotations

import torch


def gpu_stats(device: torch.device) -> dict[str, float]:
    """gpu/utilisation [0, 1], gpu/memory_gib, gpu/temperature_c, gpu/power_w of ``device``."""
    if device.type != "cuda":
        return {}
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        return {
            "gpu/utilisation": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu/memory_gib": pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
            "gpu/temperature_c": float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "gpu/power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        }
    except pynvml.NVMLError:
        return {}
