"""What `hpcrl export` refuses, each in one line and without a file; and what it tells when all is well."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from evaluate.evaluate_runs import make_config, make_data, make_run
from export_cases import FAST, small_case

from hpcrl.export.export import _check_size
from hpcrl.storage.atomic import sha256_of
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return small_case(tmp_path_factory, FAST)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder of its own, that a test may spoil."""
    data = make_data(tmp_path / "market.h5")
    return make_run(tmp_path / "runs", make_config(data))


class Executed:
    def __reduce__(self):
        return (Path.write_text, (Path("executed"), "a pickle ran"))


def test_a_pickle_payload_is_never_executed(run, tmp_path, hpcrl):
    saved = torch.load(RunDir(run).portable(4), weights_only=True)
    alone = tmp_path / "elsewhere" / "checkpoint_epoch_4.pt"
    alone.parent.mkdir()
    torch.save(saved | {"pbt": Executed()}, alone)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Executed()))
    for path, words in (
        (alone, "refused, nothing was run"),
        (tmp_path / "plain.pt", "not a checkpoint file"),
    ):
        code, out, err = hpcrl("export", path, "--out", tmp_path / "policy.onnx")
        assert code == 1 and out == "" and words in err and err.count("\n") == 1
    assert not Path("executed").exists() and not (tmp_path / "executed").exists()
    assert not (tmp_path / "policy.onnx").exists()


@pytest.mark.slow
def test_checkpoints_that_cannot_be_exported(run, tmp_path, hpcrl):
    saved = torch.load(RunDir(run).portable(4), weights_only=True)
    torch.save(saved | {"format": 2}, tmp_path / "newer.pt")
    torch.save(saved | {"n_entries": 12}, tmp_path / "narrow.pt")
    fewer = {name: tensor for name, tensor in saved["model"]["weights"].items() if name != "norm.weight"}
    torch.save(saved | {"model": {"format": 1, "weights": fewer}}, tmp_path / "fewer.pt")
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    for file in bare.glob("checkpoint_*"):
        file.unlink()
    data = make_data(tmp_path / "other.h5", seed=9)
    for target, options, code, words in (
        (tmp_path / "newer.pt", (), 1, "format 2, this version reads format 1"),
        (tmp_path / "narrow.pt", (), 1, "its weights do not fit its config"),
        (tmp_path / "fewer.pt", (), 1, "its weights do not fit its config"),
        (bare, (), 2, "no whole checkpoint yet"),
        (run, ("--epoch", 9), 2, "no checkpoint of epoch 9; there are 4"),
        (tmp_path / "nowhere", (), 2, "nowhere"),
        (run, ("--data", data), 2, "is not the run's data"),
        (run, ("--data", tmp_path / "gone.h5"), 2, "no such file"),
    ):
        found, out, err = hpcrl("export", target, "--out", tmp_path / "policy.onnx", *options)
        assert found == code and out == "" and words in err and err.count("\n") == 1, (target, err)
        assert list(tmp_path.glob("*policy.onnx*")) == []
    Path(make_config(data).market.path).unlink()
    (tmp_path / "market.h5").unlink()
    found, _, err = hpcrl("export", run, "--out", tmp_path / "policy.onnx")
    assert found == 2 and "market.h5 is not there" in err and "--data" in err


def test_places_that_are_not_written_to(run, tmp_path, hpcrl):
    checkpoint, config = RunDir(run).portable(4), run / "config.json"
    before = {path: sha256_of(path) for path in (checkpoint, config, tmp_path / "market.h5")}
    linked = tmp_path / "linked.onnx"
    linked.symlink_to(checkpoint)
    data_link = tmp_path / "data.onnx"
    data_link.hardlink_to(tmp_path / "market.h5")
    (tmp_path / "folder.onnx").mkdir()
    for out, words in (
        (checkpoint, "ends in .onnx was expected"),
        (linked, "is one of the inputs"),
        (data_link, "is one of the inputs"),
        (tmp_path / "nowhere" / "policy.onnx", "there is no folder"),
        (tmp_path / "market.h5" / "policy.onnx", "is no folder"),
        (tmp_path / "folder.onnx", "a folder"),
        (Path("/dev/null"), "ends in .onnx"),
    ):
        code, shown, err = hpcrl("export", run, "--out", out)
        assert code == 2 and shown == "" and words in err and err.count("\n") == 1, (out, err)
    assert {path: sha256_of(path) for path in before} == before


def test_policies_beyond_one_file_are_refused_before_any_work():
    _check_size(500_000_000, Path("small.pt"))
    with pytest.raises(
        HpcrlError, match=r"large.pt: 600,000,000 parameters take 2.2 GiB; .* less than 2 GiB"
    ):
        _check_size(600_000_000, Path("large.pt"))


@pytest.mark.slow
def test_weights_that_are_no_numbers_leave_an_older_file_alone(run, tmp_path, hpcrl):
    saved = torch.load(RunDir(run).portable(4), weights_only=True)
    weights = dict(saved["model"]["weights"])
    weights["actor.bias"] = torch.full_like(weights["actor.bias"], float("inf"))
    torch.save(saved | {"model": {"format": 1, "weights": weights}}, tmp_path / "inf.pt")
    out = tmp_path / "policy.onnx"
    out.write_bytes(b"an older export")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a user would see it beside the one line
        code, shown, err = hpcrl("export", tmp_path / "inf.pt", "--out", out)
    assert code == 1 and shown == "" and err.count("\n") == 1
    assert "differ by nan in params" in err and "nothing was written" in err
    assert out.read_bytes() == b"an older export"


@pytest.mark.slow
def test_the_command_tells_json_of_a_checkpoint_file(case, tmp_path, hpcrl):
    code, out, _ = hpcrl("export", case.run.checkpoint, "--out", tmp_path / "two.onnx", "--json")
    told = json.loads(out)
    assert code == 0 and told["sha256"] == sha256_of(tmp_path / "two.onnx")
    assert told["differences"]["params"] <= 1e-4
