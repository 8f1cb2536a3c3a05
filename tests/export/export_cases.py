"""Exported policies of every kind, untrained but decided: weights large enough that actions change often."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from evaluate.evaluate_runs import add_checkpoint, make_config, make_data, make_run

from hpcrl.checkpoint.load import LoadedRun, load_data, load_run
from hpcrl.config.load import validate
from hpcrl.config.root import Config
from hpcrl.export.export import Exported, export_policy
from hpcrl.export.metadata import Metadata, open_policy
from hpcrl.market.dataset import Market
from hpcrl.market.stage import stage_files
from hpcrl.policy import Policy
from hpcrl.storage.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data/sample/MSFT_5min.csv"
KINDS = [(model, head) for model in ("transformer", "lightweight") for head in ("discrete", "continuous")]
CASES = [
    pytest.param(("lightweight", "discrete", "single"), id="lightweight-discrete-single"),
    pytest.param(
        ("transformer", "discrete", "single"), marks=pytest.mark.slow, id="transformer-discrete-single"
    ),
    pytest.param(
        ("transformer", "continuous", "all"), marks=pytest.mark.slow, id="transformer-continuous-all"
    ),
    pytest.param(
        ("lightweight", "continuous", "all"), marks=pytest.mark.slow, id="lightweight-continuous-all"
    ),
]
"""torch's exporter takes seconds: the fast tests look at one kind."""
FAST = ("lightweight", "discrete", "single")
REAL = ("transformer", "discrete", "single")
"""On real bars."""


@dataclass(frozen=True)
class Case:
    run: LoadedRun
    market: Market
    exported: Exported
    session: ort.InferenceSession
    metadata: Metadata

    @property
    def path(self) -> Path:
        return self.exported.path

    @property
    def policy(self) -> Policy:
        assert isinstance(self.run.policy, Policy)
        return self.run.policy


def config_of(data: Path, model: str, head: str, assets: str, **policy: Any) -> Config:
    tree = make_config(data, assets=assets).model_dump(mode="json")
    tree["policy"] |= {"model_type": model, "head": head, "positions": [-1, -0.3, 0, 0.3, 1]} | policy
    window = tree["policy"]["window"]
    tree["learn"] |= {"rollout": 4 * window, "sequence_length": window, "batch_size": 2 * window}
    return validate(tree, "test")


def decided_run(parent: Path, config: Config, seed: int = 0) -> Path:
    """A run folder whose critic is not 0 either."""
    folder = make_run(parent, config, seed=seed)
    saved = torch.load(RunDir(folder).portable(4), weights_only=True)
    loaded = load_run(folder)
    assert isinstance(loaded.policy, Policy)
    loaded.policy.critic.weight.normal_(std=0.3)
    size = (saved["n_entries"], saved["n_assets"])
    add_checkpoint(RunDir(folder), config, loaded.policy, saved["feature_scaler"], saved["data"], size, 4)
    return folder


def export_case(data: Path, model: str, head: str, assets: str, **policy: Any) -> Case:
    folder = Path(mkdtemp(prefix="exported-", dir=data.parent))
    run = decided_run(folder, config_of(data, model, head, assets, **policy))
    exported = export_policy(run, folder / "policy.onnx")
    loaded = load_run(run)
    return Case(loaded, load_data(loaded), exported, *open_policy(exported.path))


@cache
def _made_up_data(base: Path) -> Path:
    return make_data(base / "market.h5", bars=700)


@cache
def _small(base: Path, case: tuple[str, str, str]) -> Case:
    return export_case(stage_sample(base) if case == REAL else _made_up_data(base), *case)


def small_case(tmp_path_factory: pytest.TempPathFactory, case: tuple[str, str, str]) -> Case:
    """The same objects for all tests of a session: none of them may change them."""
    base = tmp_path_factory.getbasetemp() / "export_cases"
    base.mkdir(exist_ok=True)
    return _small(base, case)


def stage_sample(folder: Path) -> Path:
    stage_files(SAMPLE, folder / "MSFT.h5")
    return folder / "MSFT.h5"


def scaled(case: Case, token_NE: np.ndarray) -> np.ndarray:
    """As training sees the token."""
    columns = case.metadata.n_assets * len(case.metadata.features)
    feature = token_NE[:, :columns].reshape(-1, len(case.metadata.features))
    out = token_NE.copy()
    out[:, :columns] = case.run.scaler.apply(feature).reshape(len(token_NE), -1)
    return out
