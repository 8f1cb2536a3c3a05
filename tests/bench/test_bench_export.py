"""The latency of an exported step: what is measured, and what is refused."""

from __future__ import annotations

import json

import pytest

from hpcrl.bench.export import bench_export, render
from hpcrl.types import HpcrlError


@pytest.mark.slow
def test_the_default_model_is_measured_beside_torch(hpcrl):
    code, out, err = hpcrl("bench", "export", "--steps", 20, "--batches", "1,3", "--json")
    assert code == 0 and err == ""
    found = json.loads(out)
    assert found["subject"] == "the default model, untrained" and found["threads"] == 1
    assert found["model"] == {"model_type": "transformer", "d_model": 256, "layers": 4, "window": 64}
    assert [row["batch"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        assert 0 < row["onnx_p50_ms"] <= row["onnx_p99_ms"] and 0 < row["torch_p50_ms"] <= row["torch_p99_ms"]
    assert render(found).row_count == 2


@pytest.mark.parametrize("batches", ["", "0", "1,x", "-1", "9999999", "1.5"])
def test_batch_sizes_that_are_none_are_refused(batches):
    with pytest.raises(HpcrlError, match=r"--batches '.*whole numbers from 1 to 4096"):
        bench_export(None, batches=batches)


def test_a_file_that_is_not_there_is_named(hpcrl, tmp_path):
    code, _, err = hpcrl("bench", "export", tmp_path / "gone.onnx")
    assert code == 2 and "gone.onnx: no such file" in err and err.count("\n") == 1
