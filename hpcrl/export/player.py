"""An exported policy in place of a checkpoint, so that evaluation plays the very file that is deployed.

The history before the first decision is stepped through token by token, as a trading system would.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from hpcrl.checkpoint.load import LoadedRun
from hpcrl.config.load import validate
from hpcrl.config.root import Config, tree_digest
from hpcrl.export.metadata import NEXT, Metadata, open_policy
from hpcrl.market.scaler import identity_scaler
from hpcrl.policy.base import Memory, history_age
from hpcrl.policy.distributions import build_distribution
from hpcrl.types import HpcrlError


class OnnxPlayer:
    """See ``policy.Player``. Tokens hold raw features. Computes on the CPU, wherever the tokens are."""

    def __init__(self, session: ort.InferenceSession, metadata: Metadata, config: Config) -> None:
        self.distribution = build_distribution(config.policy)
        self._session, self._metadata = session, metadata
        self._memory_names = [note.name for note in metadata.memory]
        self._outputs = ["params", "value", *(NEXT + name for name in self._memory_names)]

    def rebuild(self, history_NME: Tensor, length_N: Tensor) -> Memory:
        n_envs, tokens, _ = history_NME.shape
        empty = self._metadata.empty_memory(n_envs)
        memory = tuple(torch.from_numpy(empty[name]) for name in self._memory_names)
        age_NM = history_age(length_N, tokens)
        for token in range(tokens):
            self.step(history_NME[:, token], age_NM[:, token], memory)
        return memory

    def step(self, token_NE: Tensor, age_N: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        feed = {"token": _array(token_NE), "age": _array(age_N)}
        feed |= {name: tensor.numpy() for name, tensor in zip(self._memory_names, memory, strict=True)}
        params, value, *after = self._session.run(self._outputs, feed)
        for tensor, array in zip(memory, after, strict=True):
            tensor.copy_(torch.from_numpy(array))
        return torch.from_numpy(params).to(token_NE.device), torch.from_numpy(value).to(token_NE.device)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def load_onnx_run(path: str | Path, *, threads: int = 1) -> LoadedRun:
    """An ONNX file of `hpcrl export` as something that can be played. HpcrlError: see ``open_policy``."""
    path = Path(path)
    session, metadata = open_policy(path, threads=threads)
    config = validate(metadata.config, f"config in {path.name}")
    _check_config(path, metadata, config)
    return LoadedRun(
        path=path.absolute().parent,
        checkpoint=path.absolute(),
        epoch=metadata.epoch,
        env_steps=metadata.env_steps,
        config=config,
        policy=OnnxPlayer(session, metadata, config),
        scaler=identity_scaler(metadata.feature_names),
        n_entries=metadata.n_entries,
        n_assets=metadata.n_assets,
        data_sha256=metadata.data["sha256"],
        data_source=metadata.data.get("source", "unknown"),
        data_path=metadata.data.get("path", config.market.path),
        record=None,
    )


def _check_config(path: Path, metadata: Metadata, config: Config) -> None:
    """HpcrlError where the metadata contradict themselves, as after an edit by hand."""
    for name, said, found in (
        ("config_sha256", metadata.config_sha256, tree_digest(metadata.config)),
        ("model_type", metadata.model_type, config.policy.model_type),
        ("assets", metadata.assets, config.env.assets),
    ):
        if said != found:
            raise HpcrlError(
                f"{path}: {name} in its metadata is {said!r}, its config gives {found!r}: it was altered; "
                "export the checkpoint again"
            )
