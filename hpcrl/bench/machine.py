"""On what a measurement was made: enough to judge it, nothing private."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from hpcrl.storage.revision import git_commit


def machine() -> dict[str, Any]:
    """CPU model, cores, versions, date, commit, and how busy the machine was when this was called."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": git_commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
