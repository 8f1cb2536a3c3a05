"""Populations in a comparison: the best member by validation, or all; trials and overfitting of all of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluate_runs import make_config, make_data, make_run
from made_populations import begin, publish

from hpcrl.evaluate.compare import compare
from hpcrl.evaluate.compare_table import closing
from hpcrl.evaluate.contenders import read_contenders
from hpcrl.evaluate.overfitting import population_overfitting
from hpcrl.evaluate.trials import count_trials
from hpcrl.pbt.population import Population
from hpcrl.types import HpcrlError

WINDOWS, MEMBERS, GENERATIONS = 19, 3, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "market.h5")


@pytest.fixture(scope="module")
def population(tmp_path_factory, data) -> Population:
    """Members with made-up scores, member 1 the best of the last generation, and real checkpoints."""
    folder = tmp_path_factory.mktemp("pbt")
    config = make_config(data)
    pbt = config.pbt.model_copy(
        update={
            "dir": str(folder),
            "members": MEMBERS,
            "objective": config.pbt.objective.model_copy(update={"window_bars": 3}),
        }
    )
    train = config.train.model_copy(update={"epochs": 10, "world_size": 1})
    config = config.model_copy(update={"pbt": pbt, "train": train})
    made = Population.create(config, "0" * 64, WINDOWS)
    takers = [begin(made, number) for number in made.members]
    rng = np.random.default_rng(0)
    for generation in range(1, GENERATIONS + 1):
        for number, taker in enumerate(takers):
            # In the first generation member 0 is the best of all, which must not count.
            lift = 0.1 if (generation, number) == (1, 0) else 0.01 * (number == 1)
            publish(taker, lift + rng.normal(0, 1e-3, WINDOWS))
    for number in made.members:
        run = make_run(folder / "made", config, epoch=10, seed=number)
        for file in (*run.glob("checkpoint_*"), run / "config.json"):
            shutil.copy(file, made.folder(number))
    return made


def test_a_population_is_its_best_member_by_the_newest_validation_scores(population):
    found = compare([population.path], "validation", draws=50)
    best, _hold = found.standings
    assert best.name == f"{population.path.name} (best: 01)" and not best.notes
    assert any("validation split" in warning for warning in found.meta["warnings"])


def test_all_members_on_demand(population):
    found = compare([population.path], "validation", members=True, draws=50)
    assert [each.name for each in found.standings[:-1]] == [
        f"{population.path.name}/{number:02d}" for number in range(MEMBERS)
    ]


def test_trials_and_overfitting_are_of_everything_compared(population, data, tmp_path):
    other = make_run(tmp_path, make_config(data))
    found = compare([population.path, other], "validation", draws=50)
    assert found.meta["trials"] == MEMBERS * GENERATIONS + 1
    assert found.meta["trials_variance"] == count_trials([population.path, other]).variance
    (told,) = found.meta["overfitting"]
    assert told["probability"] == population_overfitting(population).probability
    assert told["trials"] == MEMBERS * GENERATIONS and told["rows"] == WINDOWS
    assert any("probability of overfitting" in line for line in closing(found))


def test_a_member_given_by_its_folder_is_no_seed_of_another(population):
    found = compare([population.folder(0), population.folder(2)], "validation", draws=50)
    assert [len(each.runs) for each in found.standings] == [1, 1, 0]
    with pytest.raises(HpcrlError, match="the same policy"):
        compare([population.path, population.folder(1)], "validation")


def test_a_checkpoint_that_is_gone_is_told(population, data, tmp_path):
    copy = tmp_path / population.path.name
    shutil.copytree(population.path, copy)
    for file in (copy / "members" / "01").glob("checkpoint_*"):
        file.unlink()
    with pytest.raises(HpcrlError, match="no whole checkpoint"):
        compare([copy], "validation")
    newer = make_run(tmp_path / "newer", population.config, epoch=12, seed=1)
    for file in newer.glob("checkpoint_*"):
        shutil.copy(file, copy / "members" / "01")
    (best, _hold) = compare([copy], "validation", draws=50).standings
    (note,) = best.notes
    assert "epoch 10" in note and "epoch 12 is played" in note


def test_the_checkpoint_of_the_record_is_played_though_a_newer_one_is_there(population, tmp_path):
    copy = tmp_path / population.path.name
    shutil.copytree(population.path, copy)
    newer = make_run(tmp_path / "newer", population.config, epoch=12, seed=8)
    for file in newer.glob("checkpoint_*"):
        shutil.copy(file, copy / "members" / "01")
    (best,) = read_contenders([copy], members=False, device="cpu").candidates
    assert best.epoch == best.loaded.epoch == 10 and not best.notes


def test_a_population_that_nobody_has_scored_is_refused(data, tmp_path):
    config = make_config(data)
    pbt = config.pbt.model_copy(update={"dir": str(tmp_path), "members": 2})
    made = Population.create(config.model_copy(update={"pbt": pbt}), "0" * 64, WINDOWS)
    with pytest.raises(HpcrlError, match="no member has been scored yet"):
        compare([made.path], "validation")
