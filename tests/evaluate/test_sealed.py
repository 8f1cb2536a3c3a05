"""The journal of the seal: one for a run, however its path is written whichever command opens it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from evaluate_runs import make_config, make_data, make_run

from hpcrl.evaluate.compare import compare
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.sealed import JOURNAL, journal_folder, run_folder
from hpcrl.report.gather import find_target, gather


@pytest.fixture
def made(tmp_path) -> Path:
    """A run, an attempt of it, and a fold of its walk-forward: only the files that tell which is which."""
    run = tmp_path / "checkpoints" / "A"
    for folder in (run / "jobs", run / "attempts" / "1", run / "walk_forward_test_2" / "fold_01"):
        folder.mkdir(parents=True)
    for file in ("config.json", "policy.onnx", "attempts/1/checkpoint_epoch_4.pt"):
        (run / file).touch()
    (run / "walk_forward_test_2" / "folds.json").touch()
    (run / "walk_forward_test_2" / "fold_01" / "config.json").touch()
    (run / "checkpoint_epoch_4.pt").symlink_to("attempts/1/checkpoint_epoch_4.pt")
    return run


@pytest.mark.parametrize(
    ("where", "path"),
    [
        (".", "A"),
        ("A", "."),
        ("A/jobs", ".."),
        ("A", "../A/jobs/.."),
        (".", "A/policy.onnx"),
        ("A", "policy.onnx"),
        (".", "A/checkpoint_epoch_4.pt"),
        (".", "A/attempts/1/checkpoint_epoch_4.pt"),
        ("A/jobs", "../../../best"),
        (".", "../best.onnx"),
        (".", "../best.pt"),
    ],
)
def test_every_way_to_write_a_run_is_one_journal(made, monkeypatch, where, path):
    home = made.parent
    for name, target in (("best", ""), ("best.onnx", "policy.onnx"), ("best.pt", "checkpoint_epoch_4.pt")):
        (home.parent / name).symlink_to(made / target)
    monkeypatch.chdir(home / where)
    assert run_folder(path) == made and journal_folder(path) == home


def test_a_fold_counts_where_its_run_does(made):
    fold = made / "walk_forward_test_2" / "fold_01"
    assert run_folder(fold) == fold and journal_folder(fold) == made.parent
    inner = fold / "walk_forward_test_2" / "fold_02"
    inner.mkdir(parents=True)
    (inner / "config.json").touch()
    (inner.parent / "folds.json").touch()
    assert journal_folder(inner) == journal_folder(inner / "policy.onnx") == made.parent


def test_a_file_in_no_run_counts_in_its_own_folder(made, monkeypatch):
    monkeypatch.chdir(made.parents[1])
    (made.parents[1] / "alone.pt").touch()
    assert run_folder("alone.pt") is None and journal_folder("alone.pt") == made.parents[1]


def test_all_commands_log_in_the_runs_journal(tmp_path, monkeypatch):
    config = make_config(make_data(tmp_path / "m.h5"))
    one, other = (make_run(tmp_path / "checkpoints", config, seed=seed) for seed in (0, 1))
    (one / "jobs").mkdir()
    monkeypatch.chdir(one / "jobs")
    assert evaluate_run("..", draws=1).meta["test_openings"] == 1
    os.symlink(one, tmp_path / "best")
    monkeypatch.chdir(tmp_path)
    assert evaluate_run("best", draws=1).meta["test_openings"] == 2
    monkeypatch.chdir(one)
    assert compare([".", f"../{other.name}"], draws=50).meta["test_openings"] == 3
    inside = other / "mine.pt"
    inside.write_bytes((other / "checkpoint_epoch_4.pt").read_bytes())
    assert compare([inside], draws=50).meta["test_openings"] == 4
    assert gather(find_target(inside), "validation", draws=1).openings == 4
    assert gather(find_target(tmp_path / "best"), "validation", draws=1).openings == 4
    (journal,) = tmp_path.rglob(JOURNAL)
    lines = [json.loads(line)["run"] for line in journal.read_text().splitlines()]
    assert journal.parent == one.parent and lines[:2] == [one.name, one.name] and len(lines) == 4
