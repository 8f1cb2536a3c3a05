"""``hpcrl bench env``: steps per second of the simulator alone, beside gym-trading-env on the same bars.

A step is ``Simulator.step`` and ``Simulator.observe`` of one environment; every cost and check is on. All
measurements of one round stand side by side and rounds alternate, so that a busy machine slows both parts
alike: the ratio is what counts, absolute rates only on a quiet machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from hpcrl.config.load import load_config
from hpcrl.types import HpcrlError, RunFailed

ALL_COSTS = (
    "env.costs.slippage=5e-5",
    "env.costs.bps=0.5",
    "env.costs.credit_rate=0.03",
    "env.costs.debit_rate=0.06",
    "env.maintenance=0.25",
    "env.max_leverage=2",
)
"""What the defaults leave off. Half-spread, impact, participation, commission, borrow fee, whole lots and the
intrabar check are on by default."""
BARS = 20_000
SYMBOLS = ("AAPL", "MSFT")
ACTIONS = 64  # precomputed rows, used in turn
PEERS = Path(".venv-peers/bin/python")
PEER_SCRIPT = Path(__file__).with_name("peer_gym_trading_env.py")
PEER_ENVS = (10, 100)  # each copies the bars: at 1,000 it would need 10 GB


def numbers(text: str) -> tuple[int, ...]:
    """ "1,100" as (1, 100). HpcrlError: something else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise HpcrlError(
            f"--envs {text}: whole numbers with commas between are needed, as 1,100,1000"
        ) from None


def bench_env(
    envs: tuple[int, ...],
    *,
    overrides: tuple[str, ...] = (),
    threads: int = 1,
    rounds: int = 5,
    seconds: float = 1.0,
    peers: Path | None = None,
) -> dict[str, Any]:
    """Medians over ``rounds`` of ``seconds`` each, for every number of environments in ``envs``.

    ``overrides``: config keys on top of ``ALL_COSTS``. ``peers``: a Python that has gym-trading-env; one
    from ``make peers`` is taken where it is there. HpcrlError: a number below 1, or that Python is missing;
    RunFailed: the peer fails.
    """
    for what, value in (("envs", min(envs, default=0)), ("threads", threads), ("rounds", rounds)):
        if value < 1:
            raise HpcrlError(f"bench env: {what} is {value}; at least 1 is needed")
    if not seconds > 0:
        raise HpcrlError(f"bench env: seconds is {seconds}; more than 0 is needed")
    if peers is not None and not peers.exists():
        raise HpcrlError(f"bench env: {peers} is not there; make peers sets up {PEERS}")
    if peers is None and PEERS.exists():
        peers = PEERS
    import torch

    from hpcrl.bench.machine import machine

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = {"bench": "env", "machine": machine()}
            return result | _measure(envs, overrides, rounds, seconds, peers, Path(folder))
    finally:
        torch.set_num_threads(before)


def _measure(
    envs: tuple[int, ...],
    overrides: tuple[str, ...],
    rounds: int,
    seconds: float,
    peers: Path | None,
    folder: Path,
) -> dict[str, Any]:
    from hpcrl.config.market import MarketConfig
    from hpcrl.market.load import load_market
    from hpcrl.market.scaler import fit_scaler
    from hpcrl.market.stage import stage_synthetic

    config = load_config(None, [*ALL_COSTS, *overrides], environment={}).env
    path = folder / "market.h5"
    stage_synthetic(path, symbols=SYMBOLS, bars=BARS)
    market = load_market(MarketConfig(path=str(path)))
    tensors = market.to("cpu", fit_scaler(market, *market.split_range("train")))
    runs = {n: _Run(n, tensors, config) for n in envs}
    found = []
    for _ in range(rounds):
        for run in runs.values():
            run.measure(seconds)
        if peers is not None:
            found.append(_run_peer(peers, _table(tensors, folder), seconds))
    ours = [run.result() for run in runs.values()]
    return {
        "rounds": rounds,
        "seconds": seconds,
        "market": {"source": market.source, "bars": market.n_bars, "features": tensors.n_features},
        "config": config.model_dump(mode="json"),
        "envs": ours,
        "peer": against_peer(ours, found) if found else None,
    }


class _Run:
    """One number of environments: a simulator, its random actions, and the rates of the rounds."""

    def __init__(self, n: int, tensors: Any, config: Any) -> None:
        import torch

        from hpcrl.env.simulator import Simulator

        self.n = n
        self._bars = tensors.n_bars
        self._simulator = Simulator(
            tensors, config, env_ids_N=torch.arange(n), seed=0, bars=(0, tensors.n_bars), history=1
        )
        draw = torch.Generator().manual_seed(0)
        shape = (ACTIONS, n, self._simulator.n_assets)
        self._actions_KNA = torch.randint(-1, 2, shape, generator=draw).to(torch.float32)
        self._rates: list[float] = []
        self._steps = 0

    def measure(self, seconds: float) -> None:
        if not self._steps:
            self._steps = 1
            self._time(20)
            self._steps = max(int(seconds / self._time(20) * 20), 20)
        self._rates.append(self.n * self._steps / self._time(self._steps))

    def _time(self, steps: int) -> float:
        """Seconds of so many steps; what it takes to begin episodes is not part of it."""
        import torch

        simulator, passed = self._simulator, 0.0
        length = self._bars // 2
        with torch.inference_mode():  # as in evaluation
            for first in range(0, steps, length):
                count = min(length, steps - first)
                simulator.begin_episodes(count)
                start = time.perf_counter()
                for step in range(count):
                    simulator.step(self._actions_KNA[step % ACTIONS])
                    simulator.observe()
                passed += time.perf_counter() - start
        return passed

    def result(self) -> dict[str, Any]:
        state = self._simulator.state_dict()
        sized = [x for x in state.values() if len(x) == self.n and x.dim()]
        return {
            "envs": self.n,
            "steps_per_second": statistics.median(self._rates),
            "rounds": self._rates,
            "steps_per_round": self._steps,
            "microseconds_per_step": 1e6 * self.n / statistics.median(self._rates),
            "state_bytes_per_env": sum(x.nbytes for x in sized) // self.n,
            "token_bytes_per_env": 4 * self._simulator.n_entries,
        }


def _table(tensors: Any, folder: Path) -> Path:
    """The first symbol's bars for the peer, as it wants them: no missing ones, features computed."""
    import numpy as np

    path = folder / "bars.npz"
    if not path.exists():
        first = int(tensors.first_bar_S[0])
        names = ("open", "high", "low", "close", "volume")
        columns = {name: getattr(tensors, f"{name}_BS")[first:, 0].numpy() for name in names}
        feature_BF = tensors.feature_BSF[first:, 0].numpy()
        np.savez(path, ts=tensors.ts_B[first:].numpy(), feature=feature_BF, **columns)
    return path


def _run_peer(python: Path, table: Path, seconds: float) -> dict[str, Any]:
    envs = ",".join(map(str, PEER_ENVS))
    # One thread, as for us; its process is single-threaded but for numpy's libraries.
    command = ["env", "OMP_NUM_THREADS=1", str(python), str(PEER_SCRIPT), str(table), envs, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"gym-trading-env did not run in {python}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def against_peer(ours: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the peer's rounds, and how many times its rate ours is: medians over the rounds of the ratio
    to what it did in the same round, alone and at the number of environments that suits it best."""
    singles = [found["single"]["steps_per_second"] for found in rounds]
    bests = [max(row["steps_per_second"] for row in found["vectorised"]) for found in rounds]
    vectorised = [
        {
            "envs": rows[0]["envs"],
            "steps_per_second": statistics.median(row["steps_per_second"] for row in rows),
            "rounds": [row["steps_per_second"] for row in rows],
            "resident_bytes_per_env": rows[0]["resident_bytes_per_env"],
        }
        for rows in zip(*(found["vectorised"] for found in rounds), strict=True)
    ]
    return {
        "name": "gym-trading-env",
        "versions": {name: rounds[0][name] for name in ("version", "pandas", "gymnasium")},
        "single_steps_per_second": statistics.median(singles),
        "vectorised": vectorised,
        "ratio_to_best_vectorised": {str(row["envs"]): _ratio(row["rounds"], bests) for row in ours},
        "ratio_to_single": {str(row["envs"]): _ratio(row["rounds"], singles) for row in ours},
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def render(result: dict[str, Any]) -> Table:
    """The result for a person."""
    machine, peer = result["machine"], result["peer"]
    table = Table(
        title=f"simulator alone, all costs on: {machine['cpu']}, {machine['threads']} of {machine['cores']} "
        f"cores, load {machine['load_1min']}"
    )
    for name in ("environments", "steps per second", "us per batch", "state, B/env", "over the peer's best"):
        table.add_column(name, justify="right")
    for row in result["envs"]:
        ratio = f"{peer['ratio_to_best_vectorised'][str(row['envs'])]:,.1f} x" if peer else "not run"
        table.add_row(
            f"{row['envs']:,}",
            f"{row['steps_per_second']:,.0f}",
            f"{row['microseconds_per_step']:,.0f}",
            f"{row['state_bytes_per_env']:,} + token {row['token_bytes_per_env']:,}",
            ratio,
        )
    if peer:
        name = f"{peer['name']} {peer['versions']['version']}"
        table.add_row(f"{name}: 1", f"{peer['single_steps_per_second']:,.0f}", "", "", "")
        for row in peer["vectorised"]:
            size = f"{row['resident_bytes_per_env']:,.0f}"
            table.add_row(f"{name}: {row['envs']}", f"{row['steps_per_second']:,.0f}", "", size, "")
    return table
