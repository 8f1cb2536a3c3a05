"""A run folder, or one checkpoint file, as something that can be played: config, policy, scaler, data.

Weights are float32 and load with ``weights_only=True``. Refuses checkpoints of another format, altered
ones, and data whose hash is not the run's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpcrl.checkpoint.find import find_portable, read_portable
from hpcrl.checkpoint.manifest import Manifest
from hpcrl.checkpoint.provenance import read_record
from hpcrl.config.load import validate
from hpcrl.config.root import Config
from hpcrl.market.dataset import Market
from hpcrl.market.load import load_market
from hpcrl.market.scaler import Scaler
from hpcrl.policy import Player, Policy, build_policy
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed

_FILE = re.compile(r"^checkpoint_epoch_(\d+)\.pt$")


@dataclass(frozen=True)
class LoadedRun:
    path: Path
    """The run folder, or the folder of a checkpoint file (or exported policy) that stands alone."""
    checkpoint: Path
    """The file with the weights."""
    epoch: int
    env_steps: int
    config: Config
    policy: Player
    scaler: Scaler
    n_entries: int
    n_assets: int
    data_sha256: str
    data_source: str
    data_path: str
    record: dict[str, Any] | None
    """config.json of the run folder; None for a file that stands alone."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.path.name if self.record is not None else self.checkpoint.stem


def pick_device(name: str) -> torch.device:
    """auto: cuda where there is a GPU. HpcrlError for an unknown name or a GPU that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise HpcrlError(f"device {name!r} is not known; use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise HpcrlError("device cuda was asked for, but torch sees no GPU; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def load_run(path: str | Path, *, epoch: int | None = None, device: torch.device | str = "cpu") -> LoadedRun:
    """The newest good checkpoint of a run folder (or that of ``epoch``), or the given checkpoint file.

    HpcrlError: no such run, no such or no whole checkpoint; RunFailed: a checkpoint that is broken.
    """
    path = Path(path)
    if path.is_file():
        return _load_file(path, epoch, device)
    run = RunDir.open(path)
    record = read_record(run)
    checkpoint, warnings = find_portable(run, epoch)
    return _assemble(run.path, checkpoint, record, warnings, device)


def _load_file(path: Path, epoch: int | None, device: torch.device | str) -> LoadedRun:
    if epoch is not None:
        raise HpcrlError(f"{path} is one checkpoint; an epoch ({epoch}) can be chosen in a run folder only")
    if path.suffix != ".pt" or ".rank_" in path.name:
        raise HpcrlError(f"{path}: a run folder or its checkpoint_epoch_X.pt was expected")
    match = _FILE.match(path.name)
    record, folder, warnings = None, path.absolute().parent, []
    if match and (folder / "config.json").is_file():
        run = RunDir.open(folder)
        record = read_record(run)
        if run.manifest(int(match[1])).is_file():
            Manifest.read(run.manifest(int(match[1]))).check_file(folder, path.name)
        else:
            warnings.append(f"{path.name} has no manifest: it was never committed, or its manifest is lost")
    return _assemble(folder, path.absolute(), record, warnings, device)


def _assemble(
    folder: Path, checkpoint: Path, record: dict | None, warnings: list[str], device: torch.device | str
) -> LoadedRun:
    saved = read_portable(checkpoint)
    # The checkpoint's own config: a run folder that was resumed may say other epochs by now.
    config = validate(saved["config"], f"config in {checkpoint.name}")
    data = (record or {}).get("data", {}) | saved["data"]
    return LoadedRun(
        path=folder,
        checkpoint=checkpoint,
        epoch=int(saved["epoch"]),
        env_steps=int(saved["env_steps"]),
        config=config,
        policy=_policy(config, saved, checkpoint).to(device),
        scaler=Scaler.from_state(saved["feature_scaler"]),
        n_entries=int(saved["n_entries"]),
        n_assets=int(saved["n_assets"]),
        data_sha256=str(data["sha256"]),
        data_source=str(data.get("source", "unknown")),
        data_path=str(data.get("path", config.market.path)),
        record=record,
        warnings=tuple(warnings),
    )


def _policy(config: Config, saved: dict, checkpoint: Path) -> Policy:
    policy = build_policy(config.policy, saved["n_entries"], saved["n_assets"])
    try:
        policy.load_state_dict(saved["model"]["weights"])
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunFailed(f"{checkpoint}: its weights do not fit its config ({' '.join(lines[:2])})") from None
    return policy.eval().requires_grad_(False)


def load_data(run: LoadedRun, override: str | Path | None = None) -> Market:
    """The run's own data, by hash; or another file's, with the run's features.

    HpcrlError naming both hashes where the run's data set is not what lies at its path.
    """
    path = str(override) if override is not None else run.data_path
    if override is None and not Path(path).is_file():
        raise HpcrlError(
            f"the run's data {path} is not there (its sha256 is {run.data_sha256[:12]}...); "
            "give the file with --data"
        )
    wanted = run.config.market.model_copy(update={"path": path, "features": run.scaler.feature_names})
    any_symbols = override is not None and run.config.env.assets == "single" and wanted.symbols
    if any_symbols:  # of other data every symbol can be played, one account each
        market = load_market(wanted.model_copy(update={"symbols": ()}))
        market = market if market.sha256 != run.data_sha256 else load_market(wanted)
    else:
        market = load_market(wanted)
    if override is None and market.sha256 != run.data_sha256:
        raise HpcrlError(
            f"{path} is not the run's data: its sha256 is {market.sha256[:12]}..., the run was trained on "
            f"{run.data_sha256[:12]}...; restore the file, or name another one with --data to play that"
        )
    if run.config.env.assets == "all" and len(market.symbols) != run.n_assets:
        raise HpcrlError(
            f"{path} has {len(market.symbols)} symbols, the policy trades {run.n_assets} from one account"
        )
    return market
