"""``hpcrl bench export``: what one step of an exported policy costs, beside torch's step of the same policy.

Tokens are random: a step's cost does not depend on them. Memory is that of a process after many steps.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from rich.table import Table

from hpcrl.bench.machine import machine
from hpcrl.export.metadata import Metadata, open_policy
from hpcrl.export.stream import Stream
from hpcrl.types import HpcrlError

WARM_UP = 20
"""Steps before the measured ones."""
BARS = 2_000
"""Synthetic bars of the default model's data."""


def bench_export(
    run: Path | None, *, steps: int = 500, batches: str = "1,8,64", threads: int = 1
) -> dict[str, Any]:
    """``run``: an ONNX file, a run or a checkpoint (exported for it); None: the default model, untrained.

    Milliseconds a step, of onnxruntime and (but for an ONNX file) of torch, by batch size.
    """
    import torch

    sizes = _sizes(batches)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            session, metadata, policy = _subject(run, Path(folder), threads)
            rows = []
            for size in sizes:
                row = {"batch": size} | _times("onnx", _onnx_step(session, metadata, size), steps)
                if policy is not None:
                    row |= _times("torch", _torch_step(policy, metadata, size), steps)
                rows.append(row)
            found = {"machine": machine()}
    finally:
        torch.set_num_threads(before)
    return found | {
        "onnxruntime": ort.__version__,
        "threads": threads,
        "subject": "the default model, untrained" if run is None else str(run),
        "model": {
            key: metadata.config["policy"][key] for key in ("model_type", "d_model", "layers", "window")
        },
        "entries": metadata.n_entries,
        "assets": metadata.n_assets,
        "steps": steps,
        "rows": rows,
    }


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise HpcrlError(f"--batches {text!r}: whole numbers from 1 to 4096 were expected, such as 1,8,64")
    return [int(part) for part in parts]


def _subject(run: Path | None, folder: Path, threads: int) -> tuple[ort.InferenceSession, Metadata, Any]:
    from hpcrl.checkpoint.load import load_run
    from hpcrl.export.export import export_policy

    if run is not None and run.suffix == ".onnx":
        return *open_policy(run, threads=threads), None
    path = folder / "policy.onnx"
    if run is None:
        run = _untrained(folder)
    export_policy(run, path)
    return *open_policy(path, threads=threads), load_run(run).policy


def _untrained(folder: Path) -> Path:
    """A run folder of the default config on synthetic bars, with the weights that training begins with."""
    import torch

    from hpcrl.config.load import load_config
    from hpcrl.env.simulator import Simulator
    from hpcrl.market.load import load_market
    from hpcrl.market.scaler import fit_scaler
    from hpcrl.market.stage import stage_synthetic
    from hpcrl.policy import build_policy

    data = folder / "market.h5"
    stage_synthetic(data, symbols=("MSFT",), bars=BARS)
    config = load_config(None, [f"market.path={data}", "train.world_size=1"], environment={})
    market = load_market(config.market)
    scaler = fit_scaler(market, *market.split_range("train"))
    bars = market.split_range("train")
    tensors = market.to("cpu", scaler)
    probe = Simulator(tensors, config.env, env_ids_N=torch.arange(1), seed=0, bars=bars, history=1)
    policy = build_policy(config.policy, probe.n_entries, probe.n_assets)
    portable = {
        "format": 1,
        "epoch": 0,
        "env_steps": 0,
        "attempt": 1,
        "model": {"format": 1, "weights": policy.state_dict()},
        "return_scale": {},
        "feature_scaler": scaler.state(),
        "pbt": None,
        "config": config.model_dump(mode="json"),
        "data": {"sha256": market.sha256, "source": market.source},
        "n_entries": probe.n_entries,
        "n_assets": probe.n_assets,
    }
    torch.save(portable, folder / "untrained.pt")
    return folder / "untrained.pt"


def _onnx_step(session: ort.InferenceSession, metadata: Metadata, accounts: int) -> Any:
    stream = Stream(session, metadata, accounts)
    token_NE = np.random.default_rng(0).standard_normal((accounts, metadata.n_entries), dtype=np.float32)
    return lambda t: stream.step(token_NE, np.full(accounts, t, dtype=np.int64))


def _torch_step(policy: Any, metadata: Metadata, accounts: int) -> Any:
    import torch

    memory = policy.empty_memory(accounts)
    token_NE = torch.randn(accounts, metadata.n_entries)

    def step(t: int) -> None:
        with torch.inference_mode():
            params, _ = policy.step(token_NE, torch.full((accounts,), t), memory)
            policy.distribution.weights(policy.distribution.mode(params))

    return step


def _times(name: str, step: Any, steps: int) -> dict[str, float]:
    """Milliseconds: median and 99th percentile."""
    seconds = []
    for t in range(WARM_UP + steps):
        began = time.perf_counter()
        step(t)
        seconds.append(time.perf_counter() - began)
    low, high = np.percentile(seconds[WARM_UP:], (50, 99)) * 1e3
    return {f"{name}_p50_ms": round(float(low), 4), f"{name}_p99_ms": round(float(high), 4)}


def resident_mib(
    session: ort.InferenceSession, metadata: Metadata, steps: int, accounts: int = 1, every: int = 1000
) -> list[float]:
    """This process's resident MiB after each ``every`` steps, an episode ending every 977."""
    step, process, seen = _onnx_step(session, metadata, accounts), psutil.Process(), []
    for t in range(1, steps + 1):
        step(t % 977)
        if t % every == 0:
            seen.append(process.memory_info().rss / 2**20)
    return seen


def render(result: dict[str, Any]) -> Table:
    table = Table(title=f"one step of {result['subject']}, ms, {result['threads']} thread(s)")
    columns = [key for key in result["rows"][0] if key != "batch"]
    for name in ("batch", *(key.removesuffix("_ms").replace("_", " ") for key in columns)):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(str(row["batch"]), *(f"{row[key]:.3f}" for key in columns))
    return table
