"""An exported policy stepped bar by bar: holds the memory, hands on what the graph gives. Torch stays out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from hpcrl.export.metadata import NEXT, Metadata


class Outputs(NamedTuple):
    params_NAP: np.ndarray
    value_N: np.ndarray
    weight_NA: np.ndarray


class Stream:
    """N accounts that have seen no token yet."""

    def __init__(self, session: ort.InferenceSession, metadata: Metadata, accounts: int) -> None:
        self.memory = metadata.empty_memory(accounts)
        """By name, arrays of the shapes that ``metadata.memory`` gives; replaced at every step."""
        self._session = session
        self._wanted = [*("params", "value", "weight"), *(NEXT + name for name in self.memory)]

    def step(self, token_NE: np.ndarray, age_N: np.ndarray) -> Outputs:
        """``token_NE`` float32 with raw features, ``age_N`` int64: 0 at an episode's first token."""
        feed = {"token": token_NE, "age": age_N, **self.memory}
        params, value, weight, *after = self._session.run(self._wanted, feed)
        self.memory = dict(zip(self.memory, after, strict=True))
        return Outputs(params, value, weight)
