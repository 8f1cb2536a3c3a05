"""Checkpoint files hold tensors and plain containers, and nothing in them is ever executed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcrl.checkpoint.contents import load_plain, plain
from hpcrl.types import RunFailed


def test_plain_values_come_back_the_same(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": [1, 2.5, None, True, "x"], "c": {"d": (torch.zeros(1),)}, 7: b"raw"}
    torch.save(plain(state), tmp_path / "x.pt")
    back = load_plain(tmp_path / "x.pt")
    assert torch.equal(back["a"], state["a"]) and back["b"] == state["b"] and back[7] == b"raw"
    assert torch.equal(back["c"]["d"][0], torch.zeros(1))


def test_a_view_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    big = torch.zeros(100_000)
    torch.save(plain({"a": big[:3], "b": torch.nn.Parameter(torch.ones(2))}), tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 10_000


@pytest.mark.parametrize("value", [np.zeros(2), np.float64(1.0), {1, 2}, object(), {(1, 2): 3}, Path("x")])
def test_anything_else_is_refused_with_its_key(value) -> None:
    with pytest.raises(TypeError, match=r"state\['outer'\]\['inner'\]"):
        plain({"outer": {"inner": value}})


class _Planted:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_planted_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weights": _Planted(tmp_path / "owned")}, tmp_path / "x.pt")
    with pytest.raises(RunFailed, match=r"x\.pt: holds more than tensors"):
        load_plain(tmp_path / "x.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 torn"])
def test_garbage_is_one_error_naming_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(RunFailed, match=r"x\.pt"):
        load_plain(tmp_path / "x.pt")
