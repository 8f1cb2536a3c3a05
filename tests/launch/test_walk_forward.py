"""Walk-forward: the run's own config on other rows, each fold an ordinary run, stitched without overlap."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import environment, furnish, hpcrl, only_run

from hpcrl.cli_evaluate import evaluate
from hpcrl.config.root import changed_keys
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT
from hpcrl.evaluate.sealed import JOURNAL
from hpcrl.launch import walk_forward as room
from hpcrl.launch.population import is_finished
from hpcrl.launch.walk_forward import WalkForward, walk_forward
from hpcrl.market.load import load_market
from hpcrl.market.stage import stage_synthetic
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed

TWO = WalkForward(folds=2, split="validation")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A real run of six epochs on 900 made-up bars."""
    folder = tmp_path_factory.mktemp("walk")
    stage_synthetic(folder / "m.h5", symbols=("AAA", "BBB"), bars=900, seed=5)
    furnish(folder, folder / "m.h5")
    hpcrl("train", "--config", "tiny.yaml", cwd=folder)
    return only_run(folder)


def plan_of(run: Path, options: WalkForward):
    config, market = room._config_and_market(RunDir.open(run))
    return config, market, room._folds(config, market, options)


@pytest.mark.slow
def test_a_fold_is_the_runs_config_with_the_folds_rows_to_the_row(trained, tmp_path):
    for options in (TWO, WalkForward(folds=3, split="test", window="rolling", embargo=7)):
        config, market, folds = plan_of(trained, options)
        for fold in folds:
            own = room.fold_config(config, market, fold, tmp_path)
            cut = load_market(own.market)
            for name, rows in (
                ("train", fold.train[0]), ("validation", fold.validation), ("test", fold.test)
            ):  # fmt: skip
                assert cut.split_range(name) == rows
            keys = changed_keys(config, own)
            assert set(keys) == {f"market.{split}_between" for split in ("train", "validation", "test")}
            assert fold.test[0] - fold.validation[1] == 2 + options.embargo
    assert folds[-1].test[1] == market.n_bars


@pytest.mark.slow
def test_validation_leaves_the_runs_test_split_alone(trained):
    _, market, folds = plan_of(trained, TWO)
    assert folds[-1].test[1] == market.split_range("validation")[1] <= market.split_range("test")[0]


@pytest.mark.slow
def test_folds_are_trained_once_and_stitched(trained):
    told: list[str] = []
    found = walk_forward(trained, TWO, told.append)
    parent = trained / "walk_forward_validation_2"
    folders = [parent / "fold_01", parent / "fold_02"]
    assert all(is_finished(folder) for folder in folders)
    assert not (trained.parent / JOURNAL).exists() and found.meta["test_openings"] == 0
    singles = [evaluate_run(folder, "test", draws=1, seal=False) for folder in folders]
    curves = [single.curves.equity[AGENT] for single in singles]
    wanted = np.concatenate([curve[1:] / curve[:-1] - 1 for curve in curves])
    np.testing.assert_allclose(found.agent_T, wanted, rtol=0, atol=1e-12)
    assert (np.diff(found.ts_T) > 0).all() and len(found.ts_T) == len(wanted)
    _, market, folds = plan_of(trained, TWO)
    for fold, single in zip(folds, singles, strict=True):
        assert single.curves.ts_T[0] == market.ts_B[fold.test[0]]
        assert single.curves.ts_T[-1] == market.ts_B[fold.test[1] - 1]
    own = found.meta["statistics"]
    assert own["total_return"] == pytest.approx(np.prod(1 + wanted) - 1)
    assert own["total_return_interval"][0] < own["total_return"] < own["total_return_interval"][1]
    assert json.loads((parent / "result.json").read_text()) == found.to_json()
    assert (parent / "result.png").read_bytes().startswith(b"\x89PNG")
    again = walk_forward(trained, TWO, told.append)
    assert sum("trained in" in line for line in told) == 2 == sum("trained already" in line for line in told)
    np.testing.assert_array_equal(again.agent_T, found.agent_T)
    with pytest.raises(HpcrlError, match="another options, folds"):
        walk_forward(trained, replace(TWO, embargo=3), told.append)


@pytest.mark.slow
def test_the_test_split_is_opened_once_for_all_folds_and_a_stop_can_be_gone_on_from(trained):
    code = (
        "import sys; from hpcrl.launch.walk_forward import *; "
        "sys.exit(show_walk_forward(sys.argv[1], WalkForward(folds=2, split='test'), as_json=True))"
    )
    command = [sys.executable, "-c", code, str(trained)]
    options = {"env": environment(), "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    begun = trained / "walk_forward_test_2" / "fold_01" / "config.json"
    deadline = time.monotonic() + 120
    while not begun.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 75 and "the same command again" in told, told
    assert not (begun.parents[1] / "fold_02" / "config.json").exists()
    assert not (trained.parent / JOURNAL).exists()
    done = subprocess.run(command, timeout=300, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert "fold 1 of 2: goes on" in done.stderr or "fold 1 of 2: trained already" in done.stderr
    assert json.loads(done.stdout)["meta"]["test_openings"] == 1
    again = subprocess.run(command, timeout=300, **options)  # type: ignore[call-overload]
    assert json.loads(again.stdout)["meta"]["test_openings"] == 1
    (line,) = (trained.parent / JOURNAL).read_text().splitlines()
    assert "walk-forward" in line
    assert evaluate_run(begun.parent, "test", draws=1).meta["test_openings"] == 2
    assert [path.parent for path in trained.parent.rglob(JOURNAL)] == [trained.parent]


@pytest.mark.slow
def test_sealed_rows_are_opened_before_a_fold_is_trained_on_them_and_once(trained, tmp_path):
    run = tmp_path / "checkpoints" / trained.name
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("walk_forward_*"), symlinks=True)
    journal = run.parent / JOURNAL

    def fail_in_fold_1(options: WalkForward) -> None:
        jobs = room.fold_folder(room.parent_of(run, options), 1) / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        (jobs / "config.yaml").write_text("market: {path: nowhere.h5}\n")
        with pytest.raises(RunFailed, match="fold 1 of"):
            walk_forward(run, options)

    before, within = (WalkForward(folds=n, split="test", first=share) for n, share in ((2, 0.8), (1, 0.9)))
    sealed = plan_of(run, before)[1].split_range("test")[0]
    assert plan_of(run, before)[2][0].validation[1] <= sealed < plan_of(run, within)[2][0].validation[1]
    fail_in_fold_1(before)
    assert not journal.exists()
    for _ in range(2):
        fail_in_fold_1(within)
        (line,) = journal.read_text().splitlines()
        assert json.loads(line)["run"] == f"{run.name}: walk-forward"


@pytest.mark.slow
def test_a_training_that_fails_is_named_with_its_log(trained, monkeypatch):
    folder = trained / "walk_forward_validation_2" / "fold_09" / "jobs"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("market: {path: nowhere.h5}\n")
    with pytest.raises(
        RunFailed, match=r"fold 9 of 9: training ended with exit code 2: .*nowhere\.h5.*local\.log"
    ):
        room._train(folder.parents[1], 9, 9, None, print)


@pytest.mark.slow
def test_bad_input_is_one_clear_line_before_any_work(trained, tmp_path):
    cases = [
        (WalkForward(split="train"), "'train'"),
        (WalkForward(folds=0), "folds = 0"),
        (WalkForward(folds=400), "no 400 test blocks"),
        (WalkForward(first=0.05, folds=2), "an episode of the run needs 65"),
        (WalkForward(embargo=5000), "leave no training rows"),
    ]
    before = sorted(path.name for path in trained.iterdir())
    for options, said in cases:
        with pytest.raises(HpcrlError, match=said) as found:
            walk_forward(trained, options)
        assert "\n" not in str(found.value)
    with pytest.raises(HpcrlError, match="run folder was expected"):
        walk_forward(next(trained.glob("checkpoint_epoch_*.pt")), TWO)
    with pytest.raises(HpcrlError, match="no such run folder"):
        walk_forward(tmp_path / "nothing", TWO)
    assert sorted(path.name for path in trained.iterdir()) == before


def test_folds_are_of_the_runs_own_data():
    with pytest.raises(HpcrlError, match="--data and --walk-forward exclude each other"):
        evaluate(Path("run"), data=Path("other.h5"), walk_forward=True)
