"""What several rooms' tests share: running a Python script on several ranks, with a limit on its time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run_on_ranks() -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """``run(script, args, ranks=2, expect=0)``: the script on so many ranks; results in rank order."""

    def run(
        script: Path, *args: object, ranks: int = 2, expect: int | None = 0, timeout: float = 120
    ) -> list[subprocess.CompletedProcess[str]]:
        base = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK"))}
        base |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        command = [sys.executable, str(script), *map(str, args)]
        running = [
            subprocess.Popen(
                command,
                env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        done = []
        try:
            for process in running:
                out, err = process.communicate(timeout=timeout)
                done.append(subprocess.CompletedProcess(command, process.returncode, out, err))
        finally:
            for process in running:
                process.kill()
        if expect is not None:
            for rank, result in enumerate(done):
                assert result.returncode == expect, f"rank {rank}: {result.stdout}\n{result.stderr}"
        return done

    return run
