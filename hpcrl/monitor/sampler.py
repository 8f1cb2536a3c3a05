"""The state of a rank's GPU, and of its process, sampled in a thread and averaged from read to read."""

from __future__ import annotations

import os
import threading
from collections import Counter
from types import TracebackType
from typing import Any

import psutil
import torch

from hpcrl.monitor.gpu import Gpu, NoGpu, Sample

EVERY_SECONDS = 1.0
"""NVML's own figures cover up to a second."""


class Sampler:
    """A context: the thread runs within it. ``problem`` is what keeps the GPU from being read, "" if nothing
    does; ``news`` gives it once."""

    def __init__(self, device: torch.device, every_seconds: float = EVERY_SECONDS) -> None:
        self._every = every_seconds
        self._samples: list[Sample] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._process = psutil.Process()
        self._cores = len(os.sched_getaffinity(0))
        self._thread = threading.Thread(target=self._run, name="gpu sampler", daemon=True)
        self.problem, self._told = "", False
        self._gpu: Gpu | None = None
        try:
            self._gpu = Gpu(device)
        except NoGpu as reason:
            self.problem = str(reason)

    def __enter__(self) -> Sampler:
        self._process.cpu_percent()  # from here on
        if self._gpu is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10 * self._every)

    def _run(self) -> None:
        while not self._over.is_set() and self.take():
            self._over.wait(self._every)

    def take(self) -> bool:
        """One sample more; False where there will be none any more."""
        assert self._gpu is not None
        try:
            sample = self._gpu.sample()
        except NoGpu as reason:
            self.problem, self._told = str(reason), False
            return False
        with self._lock:
            self._samples.append(sample)
        return True

    def news(self) -> str:
        """The problem, the first time that it is asked for; else ""."""
        said, self._told = "" if self._told else self.problem, True
        return said

    def read(self) -> dict[str, Any]:
        """Since the last read: keys under gpu/ (where there is one) and host/.

        utilisation, power and clock are means, memory and temperature the highest; gpu/throttled is the share
        of samples with any of ``gpu/throttles``. host/cpu: this process's share of the cores it may use.
        """
        with self._lock:
            samples, self._samples = self._samples, []
        found: dict[str, Any] = {
            "host/cpu": self._process.cpu_percent() / 100 / self._cores,
            "host/memory_gib": self._process.memory_info().rss / 2**30,
            "host/available_gib": psutil.virtual_memory().available / 2**30,
        }
        return found | (average(samples) if samples else {})


def average(samples: list[Sample]) -> dict[str, Any]:
    """Of at least one sample."""
    count = len(samples)
    throttles = Counter(name for sample in samples for name in sample.throttles)
    return {
        "gpu/utilisation": sum(sample.utilisation for sample in samples) / count,
        "gpu/memory_gib": max(sample.memory_gib for sample in samples),
        "gpu/memory_total_gib": samples[-1].memory_total_gib,
        "gpu/temperature_c": max(sample.temperature_c for sample in samples),
        "gpu/power_w": sum(sample.power_w for sample in samples) / count,
        "gpu/clock_mhz": sum(sample.clock_mhz for sample in samples) / count,
        "gpu/throttled": sum(bool(sample.throttles) for sample in samples) / count,
        "gpu/throttles": sorted(throttles),
    }
