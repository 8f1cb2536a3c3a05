"""What a new population freezes, how one can be gone on with, and what is refused before it is made."""

from __future__ import annotations

import re
import resource
import subprocess
from pathlib import Path

import pytest
import runs
import yaml
from local_populations import made_on

from hpcrl.launch.population import PopulationRequest, known_population
from hpcrl.launch.population_run import Runner
from hpcrl.market.stage import stage_planted
from hpcrl.pbt.population import Population
from hpcrl.types import HpcrlError


def asked(population: Population, *sets: str, config: Path | None = None, members: int | None = None):
    return known_population(PopulationRequest(config, sets, population.path, members))


def test_a_population_goes_on_with_the_live_keys_that_are_said_and_no_others(place, market, tmp_path):
    population = made_on(market, place, "done", "done")
    assert asked(population) == (population, ())
    assert asked(population, "checkpoint.every_minutes=3", "monitor.progress=plain")[1] == (
        "--set", "checkpoint.every_minutes=3.0", "--set", "monitor.progress=plain",
    )  # fmt: skip
    other = tmp_path / "moved.h5"
    other.write_bytes(market.read_bytes())
    assert asked(population, f"market.path={other}")[1] == ("--set", f"market.path={other}")
    with pytest.raises(HpcrlError, match=r"of another config: learn\.lr = 0\.001 \(was 0\.0003\)"):
        asked(population, "learn.lr=0.001")
    with pytest.raises(HpcrlError, match=r"of another config: pbt\.members = 3 \(was 2\)"):
        asked(population, members=3)
    with pytest.raises(HpcrlError, match=r"train\.epochs = 40, but .* is one of 20"):
        asked(population, "train.epochs=40")


def test_a_population_is_known_by_the_config_that_it_was_made_of_in_any_folder(place, market, tmp_path):
    written = tmp_path / "c.yaml"
    written.write_text(
        yaml.safe_dump(
            {
                "market": {"path": str(market)},
                "train": {"world_size": 4, "epochs": 20},
                "pbt": {"members": 2, "dir": "somewhere/else"},
            }
        )
    )
    population = made_on(market, place, "done", "done")
    assert asked(population, "engine.device=cpu", config=written)[0] == population
    written.write_text(written.read_text().replace("members: 2", "members: 2\n  quantile: 0.5"))
    with pytest.raises(HpcrlError, match=r"of another config: pbt\.quantile = 0\.5 \(was 0\.25\)"):
        asked(population, config=written)


def test_other_data_and_data_that_are_gone_are_refused(place, market, tmp_path):
    population = made_on(market, place, "done", "done")
    other = tmp_path / "other.h5"
    stage_planted(other, "L2", bars=1500, seed=7)
    with pytest.raises(HpcrlError, match=r"is a population of other data: sha256 \w{12}\.\.\., that of"):
        asked(population, f"market.path={other}")
    with pytest.raises(HpcrlError, match=r"gone\.h5: no such file"):
        asked(population, "market.path=gone.h5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set pbt.space.learn.ll.low=1e-5", "pbt.space: learn.ll is no key that may change while a run "
         "trains; nearest: learn.lr"),
        ("--set pbt.space.policy.d_model.low=2", "policy.d_model is no key that may change while a run"),
        ("--set pbt.space.learn.lr.low=0.002", "learn.lr = 0.001 is outside its bounds, 0.002 to 0.003"),
        ("--set pbt.space.learn.lr.low=1", "low = 1 must be below high = 0.003"),
        ("--members 1", "pbt.members = 1: must be greater than or equal to 2"),
        ("--set pbt.objective.window_bars=50", "the validation split holds 11 windows of 50 bars; a "
         "population needs at least 16"),
        ("--set pbt.interval=7", "train.epochs = 6 is less than pbt.interval = 7"),
        ("--set market.path=gone.h5", "gone.h5: no such file; `hpcrl stage` makes market files"),
        ("--set env.episode_rollouts=100", "market data too short"),
        ("--set pbt.dir=small.yaml", "small.yaml is no folder"),
        ("--set train.training_mode=single --ranks 2", "each member is to have 2 ranks"),
        ("--ranks 2 --set train.world_size=3", "--ranks 2 disagrees with train.world_size = 3"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_nothing_is_left_behind(small, hpcrl, words, message):
    before = sorted(small.iterdir())
    code, out, err = hpcrl("pbt", "run", "--local", "--config", "small.yaml", *words.split())
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert err.startswith("error: ") and message in err, err
    assert sorted(small.iterdir()) == before


def test_neither_a_config_nor_a_population_nor_local_are_told(hpcrl):
    assert "needs --config FILE" in hpcrl("pbt", "run", "--local")[2]
    assert "add --local; on a cluster it is a job array: hpcrl submit --pbt" in hpcrl("pbt", "run")[2]
    code, _, err = hpcrl("pbt", "run", "--local", "--population", "gone")
    told = "error: gone: no population (there is no such folder); hpcrl pbt run makes one\n"
    assert code == 2 and err == told


def test_a_full_disk_leaves_no_half_a_population(small):
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    child = subprocess.run(
        runs.command("pbt", "run", "--local", "--config", "small.yaml"),
        env=runs.environment(),
        capture_output=True,
        text=True,
        preexec_fn=full,
        timeout=60,
    )
    assert child.returncode == 1 and child.stdout == ""
    assert re.fullmatch(r"error: cannot write .*: File too large \([\d,]+ bytes free\)\n", child.stderr)
    assert not list((small / "checkpoints").iterdir())


def test_what_a_new_population_freezes(small, hpcrl, monkeypatch):
    ran = []
    monkeypatch.setattr(Runner, "run", lambda self: ran.append(self) or 0)
    assert hpcrl("pbt", "run", "--local", "--config", "small.yaml", "--at-once", 3, "--ranks", 2)[0] == 0
    (runner,) = ran
    config = runner.population.config
    assert config.market.path == str(small / "market.h5") and config.pbt.dir == str(small / "checkpoints")
    assert config.train.world_size == 2 and config.pbt.slice == 2 and runner.places.count == 3
    assert hpcrl("pbt", "run", "--local", "--config", "small.yaml", "--at-once", 9)[0] == 0
    assert ran[1].population.pbt.slice is None and ran[1].places.count == 4
    assert ran[1].population.config.train.world_size == 1, "not the default of yaml/base.yaml, 8"
    assert ran[1].population.path != runner.population.path


def test_a_rank_of_a_launcher_does_not_start_a_population(hpcrl, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = hpcrl("pbt", "run", "--local", "--config", "small.yaml")
    assert code == 2 and "pbt run --local starts its members itself, but torchrun started this rank" in err
