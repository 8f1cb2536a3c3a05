"""What a resumed, an initialised and a stopped run refuse, say and keep; in this process, on small runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.checkpoint.provenance import check_resumable, read_record
from hpcrl.config.load import load_config
from hpcrl.launch.start import begin, resume
from hpcrl.market.load import load_market
from hpcrl.market.stage import stage_synthetic
from hpcrl.monitor.console import TrainingConsole
from hpcrl.monitor.metrics import MetricsFile, read_metrics
from hpcrl.storage.attempts import Attempt, read_attempts, who_begins
from hpcrl.storage.lock import hold
from hpcrl.storage.run_dir import RunDir
from hpcrl.train import learn
from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.stop import StopFlag

TINY = {
    "train": {"world_size": 1, "epochs": 3},
    "env": {"envs_per_gpu": 2, "lot": 1},
    "policy": {"d_model": 16, "layers": 1, "heads": 1, "window": 8},
    "learn": {"rollout": 16, "sequence_length": 8, "batch_size": 16, "ppo_epochs": 1},
    "engine": {"precision": "fp32"},
}


@pytest.fixture(scope="module")
def market_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("job") / "market.h5"
    stage_synthetic(path, symbols=("AAPL",), bars=300)
    return path


@pytest.fixture
def config(tmp_path, market_path):
    sets = [f"market.path={market_path}", f"checkpoint.dir={tmp_path / 'checkpoints'}"]
    return load_config(base=TINY, overrides=sets, environment={})


class StopAt(StopFlag):
    """Asked to stop just before the k-th look at the flag."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.left = k

    def agreed(self, world) -> bool:
        self.left -= 1
        if self.left == 0:
            self.request(signal.SIGTERM)
        return super().agreed(world)


def finished_run(config, world) -> RunDir:
    trainer, run = begin(world, config, load_market(config.market), None)
    manager = CheckpointManager(run, world, 2)
    console = TrainingConsole(0, config.train.epochs, "plain")
    assert learn(trainer, manager, MetricsFile(run.metrics, 0), StopFlag(), console) == 0
    return run


def test_a_stop_at_any_moment_leaves_a_checkpoint_of_the_last_finished_epoch(config, one_rank):
    for k in range(1, 6):
        trainer, run = begin(one_rank, config, load_market(config.market), None)
        manager = CheckpointManager(run, one_rank, 2)
        console = TrainingConsole(0, 3, "plain")
        code = learn(trainer, manager, MetricsFile(run.metrics, 0), StopAt(k), console)
        assert code == (0 if trainer.epoch == 3 else 75)
        assert manager.newest().epoch == trainer.epoch == min(k - 1, 3)
        assert [line["epoch"] for line in read_metrics(run.metrics)] == list(range(1, trainer.epoch + 1))


@pytest.fixture
def run(config, one_rank) -> RunDir:
    return finished_run(config, one_rank)


def again(run: RunDir, config, world):
    console = TrainingConsole(0, 3, "plain")
    market = load_market(config.market)
    check_resumable(run, read_record(run), config, market.sha256)
    return resume(world, config, market, run, run, CheckpointManager(run, world, 2), console)


def test_an_altered_config_is_refused(run, config, one_rank):
    record = json.loads(run.config.read_text())
    record["config"]["learn"]["lr"] = 0.3
    run.config.write_text(json.dumps(record))
    with pytest.raises(HpcrlError, match="altered by hand"):
        again(run, config, one_rank)


def test_another_config_or_other_data_is_refused_by_name(run, config, one_rank, tmp_path):
    other = load_config(
        base=config.model_dump(mode="json"), overrides=["learn.lr=0.1", "train.epochs=9"], environment={}
    )
    with pytest.raises(HpcrlError, match=r"another learn\.lr;") as caught:
        again(run, other, one_rank)
    assert "--init" in str(caught.value) and "train.epochs" not in str(caught.value)
    stage_synthetic(tmp_path / "other.h5", symbols=("AAPL",), bars=300, seed=7)
    moved = load_config(
        base=config.model_dump(mode="json"),
        overrides=[f"market.path={tmp_path / 'other.h5'}"],
        environment={},
    )
    with pytest.raises(HpcrlError, match="trained on data with sha256"):
        again(run, moved, one_rank)


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(run, config, one_rank):
    for file in run.path.glob("*.pt"):
        file.write_bytes(b"broken")
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(RunFailed, match="none of its 2 checkpoints is whole"):
        again(run, config, one_rank)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_init_from_a_run_whose_newest_checkpoint_is_broken_is_refused(run, config, one_rank):
    run.portable(3).write_bytes(run.portable(3).read_bytes()[:-1])
    with pytest.raises(RunFailed, match=r"checkpoint_epoch_3\.pt.*name a checkpoint file"):
        begin(one_rank, config, load_market(config.market), run.path)


def rewrite(run: RunDir, change) -> None:
    """Other contents under a right sha256, as a mistaken tool would leave them."""
    path = run.portable(3)
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    manifest = json.loads(run.manifest(3).read_text())
    data = path.read_bytes()
    manifest["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    run.manifest(3).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.update(format=9), "format 9"),
        (lambda s: s.pop("model"), "lacks model"),
        (lambda s: s.update(model=None), "does not hold what a checkpoint holds"),
        (lambda s: s.update(return_scale={}), "does not hold what a checkpoint holds"),
        (lambda s: s.update(epoch=7), "holds epoch 7"),
        (lambda s: s["config"]["learn"].update(lr=0.5), "another config"),
    ],
)
def test_contents_that_are_no_checkpoint_are_refused_with_a_way_on(run, config, one_rank, change, part):
    rewrite(run, change)
    with pytest.raises(RunFailed, match=part) as caught:
        again(run, config, one_rank)
    assert "checkpoint_epoch_3.json away" in str(caught.value)


def test_weights_that_are_not_finite_end_the_run_unsaved(run, config, one_rank):
    rewrite(run, lambda s: s["model"]["weights"]["embed.weight"].fill_(float("nan")))
    more = load_config(base=config.model_dump(mode="json"), overrides=["train.epochs=5"], environment={})
    trainer = again(run, more, one_rank)
    manager = CheckpointManager(run, one_rank, 2)
    with pytest.raises(RunFailed, match="weights are not finite"):
        learn(trainer, manager, MetricsFile(run.metrics, 3), StopFlag(), TrainingConsole(0, 5, "plain"))
    assert not run.manifest(4).exists()


def test_a_run_with_a_relative_data_path_resumes_from_any_folder(hpcrl, market_path, tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    shutil.copy(market_path, tmp_path / "here.h5")
    code, _, err = hpcrl("train", "--config", "tiny.yaml", "--set", "market.path=here.h5")
    assert code == 0, err
    (made,) = tmp_path.glob("checkpoints/dist_run_*")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = hpcrl("train", "--resume", made, "--set", "train.epochs=4")
    assert code == 0 and "Finished 4 epochs" in out, err


@pytest.mark.parametrize(("schedule", "told"), [("linear", True), ("constant", False)])
def test_other_epochs_under_a_decaying_rate_are_told(config, one_rank, capsys, schedule, told):
    base = config.model_dump(mode="json")
    decaying = load_config(base=base, overrides=[f"learn.lr_schedule={schedule}"], environment={})
    run = finished_run(decaying, one_rank)
    longer = load_config(base=decaying.model_dump(mode="json"), overrides=["train.epochs=9"], environment={})
    again(run, longer, one_rank)
    assert ("schedule of learn.lr is another from here on" in capsys.readouterr().out) == told


def test_two_processes_cannot_train_one_run(run):
    held = hold(run.lock)
    with pytest.raises(HpcrlError, match=r"is being trained by process \d+ on "):
        hold(run.lock)
    held.close()
    hold(run.lock).close()


def test_the_command_that_resumes_carries_the_live_keys(hpcrl, run, market_path, tmp_path):
    moved = tmp_path / "elsewhere.h5"
    shutil.copy(market_path, moved)
    sets = ["--set", "train.epochs=4", "--set", f"market.path={moved}"]
    code, out, _ = hpcrl("train", "--resume", run.path, *sets)
    assert code == 0 and "Finished 4 epochs" in out
    from hpcrl.launch.job import resume_command
    from hpcrl.world.world import World

    config = load_config(
        base=json.loads(run.config.read_text())["config"],
        overrides=["train.epochs=4", f"market.path={moved}"],
        environment={},
    )
    command = resume_command(run, config, World(0, 2, 0, torch.device("cpu"), "torchrun"))
    assert f"train --resume {run.path} --set market.path={moved} --set train.epochs=4 --ranks 2" in command


def test_an_explicit_world_size_or_environment_is_not_ignored_on_resume(hpcrl, run, monkeypatch):
    code, _, err = hpcrl("train", "--resume", run.path, "--set", "train.world_size=5")
    assert code == 2 and "train.world_size = 5" in err and "1 ranks" in err
    monkeypatch.setenv("ENVS_PER_GPU", "7")
    code, _, err = hpcrl("train", "--resume", run.path)
    assert code == 2 and "env.envs_per_gpu" in err


def test_short_symbols_are_named_and_a_shared_account_without_common_bars_makes_no_run(hpcrl, tmp_path):
    import pandas as pd

    from hpcrl.market.stage import stage_frame
    from hpcrl.market.synthetic import random_walk

    long = random_walk("LONG", 700, 0, "24/7", 300)
    late = random_walk("LATE", 700, 1, "24/7", 300).iloc[-300:]
    path = tmp_path / "late.h5"
    stage_frame(pd.concat([long, late]), path, source="synthetic", calendar="24/7")
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    arguments = ("train", "--config", "tiny.yaml", "--set", f"market.path={path}", "--set", "train.epochs=1")
    code, _, err = hpcrl(*arguments, "--set", "env.assets=all")
    assert code == 2 and "learn.rollout" in err and err.count("\n") == 1, err
    assert not (tmp_path / "checkpoints").exists()
    code, out, _ = hpcrl(*arguments)
    assert code == 0 and "LATE is left out of training" in out


# What a requeued job goes on with


def job_of_slurm(monkeypatch, restarts: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))


@pytest.mark.parametrize("meanwhile", ["edited", "removed", "nothing"])
def test_a_requeued_job_goes_on_with_what_it_began_whatever_became_of_its_yaml(
    monkeypatch, tmp_path, market_path, hpcrl, meanwhile
):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(json.dumps(TINY | {"market": {"path": str(market_path)}}))
    job_of_slurm(monkeypatch, 0)
    code, _, err = hpcrl("train", "--config", yaml, "--set", "train.epochs=1")
    assert code == 0, err
    (run,) = tmp_path.glob("checkpoints/dist_run_*")
    if meanwhile == "edited":
        yaml.write_text(yaml.read_text().replace('"ppo_epochs": 1', '"ppo_epochs": 2'))
    elif meanwhile == "removed":
        yaml.unlink()
    job_of_slurm(monkeypatch, 1)
    code, out, err = hpcrl("train", "--config", yaml, "--set", "train.epochs=1")
    assert code == 0 and "Resumed after epoch 1" in out, err
    assert [a.trigger for a in read_attempts(run)] == ["user", "requeue"]


def test_the_next_attempt_keeps_the_epochs_that_the_last_one_was_given(tmp_path, market_path, hpcrl):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(json.dumps(TINY | {"market": {"path": str(market_path)}}))
    assert hpcrl("train", "--config", yaml, "--set", "train.epochs=1")[0] == 0
    (run,) = tmp_path.glob("checkpoints/dist_run_*")
    assert hpcrl("train", "--resume", run, "--set", "train.epochs=2")[0] == 0
    code, out, _ = hpcrl("train", "--resume", run)
    assert code == 0 and "Finished 2 epochs" in out
    assert [a.live for a in read_attempts(run)] == [{}, {"train.epochs": 2}, {"train.epochs": 2}]


def test_a_run_whose_newest_attempt_cannot_be_read_is_left_alone(tmp_path, market_path, hpcrl):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(json.dumps(TINY | {"market": {"path": str(market_path)}}))
    assert hpcrl("train", "--config", yaml, "--set", "train.epochs=1")[0] == 0
    (run,) = tmp_path.glob("checkpoints/dist_run_*")
    assert hpcrl("train", "--resume", run, "--set", "train.epochs=2")[0] == 0
    torn = run / "attempts/2/attempt.json"
    torn.write_text(torn.read_text()[:40])
    before = sorted(run.rglob("*"))
    code, _, err = hpcrl("train", "--resume", run)
    assert code == 1 and f"{torn}: not whole JSON" in err and "nothing was changed" in err
    assert sorted(run.rglob("*")) == before


def test_a_strangers_folder_is_not_trained_into(tmp_path, market_path, hpcrl):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(json.dumps(TINY | {"market": {"path": str(market_path)}}))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/thesis.tex").touch()
    code, _, err = hpcrl("train", "--config", yaml, "--run", tmp_path / "theirs")
    assert code == 2 and "it holds thesis.tex" in err
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]


def test_no_watchdog_is_left_behind_when_the_set_up_fails(tmp_path, hpcrl):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(json.dumps(TINY | {"market": {"path": "nowhere.h5"}}))
    assert hpcrl("train", "--config", yaml)[0] == 2
    assert not [thread.name for thread in threading.enumerate() if "watchdog" in thread.name]


def test_who_fails_after_a_newer_attempt_began_says_that_it_is_superseded(
    monkeypatch, tmp_path, market_path, hpcrl
):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(json.dumps(TINY | {"market": {"path": str(market_path)}}))

    def overtaken(trainer, manager, *_rest):
        (run,) = tmp_path.glob("checkpoints/dist_run_*")
        Attempt.claim(RunDir(run), 1, who_begins({}, None))
        raise RunFailed("cannot write checkpoint_epoch_1.pt: No such file or directory")

    monkeypatch.setattr("hpcrl.train.learn", overtaken)
    code, _, err = hpcrl("train", "--config", yaml)
    assert code == 1 and "superseded by attempt 2" in err and "cannot write" not in err
    (run,) = tmp_path.glob("checkpoints/dist_run_*")
    assert "superseded by attempt 2" in read_attempts(run)[0].end["reason"]
