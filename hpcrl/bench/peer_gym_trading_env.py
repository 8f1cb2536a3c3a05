"""Steps per second of gym-trading-env. Runs in the peers' environment (``make peers``), without hpcrl.

    .venv-peers/bin/python peer_gym_trading_env.py TABLE.npz ENVS,ENVS,... SECONDS

TABLE.npz holds the bars that hpcrl was measured on: open, high, low, close, volume [B], feature [B, F] and
ts [B] in unix seconds. Prints one JSON object: steps per second of one environment without wrappers, and of
``gymnasium.make_vec`` (sync, one process) for each number of environments; resets are part of it, as they
are of the peer's own loop. Positions are -1, 0 and 1 at random, fees and borrowing are on.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gym_trading_env  # noqa: F401  (registers the environment)
import gymnasium
import numpy as np
import pandas as pd

POSITIONS = (-1, 0, 1)
FEE = 2e-4  # half-spread and commission in one, its only trading cost
BORROW = 0.003 / (252 * 78)  # a step


def main() -> None:
    # The package turns every warning of the process into an error; newer pandas and gymnasium warn.
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    path, envs, seconds = sys.argv[1], [int(n) for n in sys.argv[2].split(",")], float(sys.argv[3])
    options = {
        "df": _frame(path),
        "positions": list(POSITIONS),
        "initial_position": 0,
        "trading_fees": FEE,
        "borrow_interest_rate": BORROW,
        "verbose": 0,
    }
    vectorised = [_vectorised(n, seconds, options) for n in envs]
    result = {
        "version": version("gym-trading-env"),
        "pandas": version("pandas"),
        "gymnasium": version("gymnasium"),
        "single": _single(seconds, options),
        "vectorised": vectorised,
    }
    print(json.dumps(result))


def _frame(path: str) -> pd.DataFrame:
    table = np.load(path)
    columns = {name: table[name] for name in ("open", "high", "low", "close", "volume")}
    for index, feature_B in enumerate(table["feature"].T):
        columns[f"feature_{index}"] = feature_B
    return pd.DataFrame(columns, index=pd.to_datetime(table["ts"], unit="s"))


def _single(seconds: float, options: dict[str, Any]) -> dict[str, float]:
    env = gymnasium.make("TradingEnv", **options).unwrapped
    env.reset()
    actions = iter(_actions(1 << 20))

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if terminated or truncated:
            env.reset()

    return {"steps_per_second": _rate(step, seconds)}


def _vectorised(n: int, seconds: float, options: dict[str, Any]) -> dict[str, float]:
    gc.collect()
    before = _resident()
    envs = gymnasium.make_vec("TradingEnv", num_envs=n, vectorization_mode="sync", **options)
    envs.reset(seed=0)
    table = np.array(_actions(256 * n)).reshape(256, n)
    count = 0

    def step() -> None:
        nonlocal count
        envs.step(table[count % 256])  # resets by itself
        count += 1

    rate = n * _rate(step, seconds)
    grown = (_resident() - before) / n
    envs.close()
    return {"envs": n, "steps_per_second": rate, "resident_bytes_per_env": grown}


def _actions(n: int) -> list[int]:
    return np.random.default_rng(0).integers(0, len(POSITIONS), n).tolist()


def _rate(step: Callable[[], None], seconds: float) -> float:
    """Calls per second, after a short warm-up."""
    for _ in range(10):
        step()
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(10):
            step()
        calls += 10
    return calls / passed


def _resident() -> int:
    """Bytes in memory now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
