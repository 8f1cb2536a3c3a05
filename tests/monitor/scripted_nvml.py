"""A stand-in for the module pynvml whose GPUs follow a script: UUIDs, figures, failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml

IDLE, POWER_CAP, HEAT_DRIVER, HEAT_HARDWARE = 0x01, 0x04, 0x20, 0x40


@dataclass
class Card:
    uuid: str
    utilisation: int = 95
    used_gib: float = 60.0
    total_gib: float = 80.0
    celsius: int = 60
    watts: float = 500.0
    mhz: int = 1900
    reasons: int = 0
    lost: bool = False


@dataclass
class Nvml:
    """Handles are indexes into ``cards``, in NVML's own order."""

    cards: list[Card]
    driver: bool = True
    asked: list[str] = field(default_factory=list)

    NVMLError = pynvml.NVMLError
    NVML_ERROR_GPU_IS_LOST = pynvml.NVML_ERROR_GPU_IS_LOST
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM

    def nvmlInit(self) -> None:
        if not self.driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        self.asked.append(uuid)
        for index, card in enumerate(self.cards):
            if card.uuid == uuid:
                return index
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _card(self, handle: int) -> Card:
        if self.cards[handle].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        card = self._card(handle)
        return SimpleNamespace(used=int(card.used_gib * 2**30), total=int(card.total_gib * 2**30))

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._card(handle).utilisation)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._card(handle).celsius

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self._card(handle).watts * 1000)

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        assert clock == self.NVML_CLOCK_SM
        return self._card(handle).mhz

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self._card(handle).reasons
