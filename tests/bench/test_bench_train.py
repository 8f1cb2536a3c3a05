"""``hpcrl bench train`` says which bars it measured, and never swaps a missing file for others silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hpcrl.bench.train import bench_train, render
from hpcrl.types import HpcrlError

TINY = """
train: {world_size: 1}
env: {envs_per_gpu: 2}
policy: {d_model: 16, layers: 1, heads: 2, window: 8}
learn: {rollout: 16, sequence_length: 16, batch_size: 32, ppo_epochs: 1}
engine: {precision: fp32, device: cpu}
"""


def test_a_data_file_that_was_asked_for_and_is_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HpcrlError, match=r"market\.path = data/tpyo\.h5: no such file"):
        bench_train(None, ("market.path=data/tpyo.h5",), 1)
    with pytest.raises(HpcrlError, match=r"market\.path = data/market\.h5: no such file"):
        bench_train(None, ("market.path=data/market.h5",), 1)
    (tmp_path / "c.yaml").write_text("market: {path: data/other.h5}\n")
    with pytest.raises(HpcrlError, match=r"market\.path = data/other\.h5: no such file"):
        bench_train(tmp_path / "c.yaml", (), 1)


@pytest.mark.slow
def test_without_any_file_the_result_says_that_the_bars_are_synthetic(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-m", "hpcrl", "bench", "train", "--config", "tiny.yaml", "--epochs", "1", "--json"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["data"]["source"] == "synthetic" and result["data"]["bars"] >= 20_000
    assert render(result).row_count > 4
