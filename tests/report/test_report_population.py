"""Which checkpoint of a population a page shows: that of the best record, as a comparison does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_populations import begin, publish
from report_runs import make_config, make_data, make_run, metrics_line, write_metrics

from hpcrl.evaluate.compare import compare
from hpcrl.pbt.population import Population
from hpcrl.report.gather import find_target, gather
from hpcrl.report.words import warnings

WINDOWS = 19


@pytest.fixture
def population(tmp_path) -> tuple[Path, int]:
    """(folder, epoch of the best record): member 1 is the best; since then it has trained two epochs more."""
    config = make_config(make_data(tmp_path / "market.h5", ("AAA",)))
    objective = config.pbt.objective.model_copy(update={"window_bars": 3})
    pbt = config.pbt.model_copy(update={"dir": str(tmp_path), "members": 2, "objective": objective})
    train = config.train.model_copy(update={"epochs": 10, "world_size": 1})
    config = config.model_copy(update={"pbt": pbt, "train": train})
    made = Population.create(config, "0" * 64, WINDOWS)
    luck_W = np.random.default_rng(0).normal(0, 1e-3, WINDOWS)
    scored = [publish(begin(made, number), luck_W + 0.01 * number) for number in made.members][1].epoch
    for epoch in (scored, scored + 2):
        run = make_run(tmp_path / "made", config, epoch=epoch, seed=epoch)
        for file in (*run.glob("checkpoint_*"), run / "config.json"):
            shutil.copy(file, made.folder(1))
    write_metrics(made.folder(1), [metrics_line(epoch) for epoch in range(1, scored + 3)])
    return made.path, scored


def test_the_best_member_is_shown_as_it_was_when_it_became_the_best(population):
    folder, scored = population
    found = gather(find_target(folder), "validation", draws=2)
    best = compare([folder], "validation", draws=10).standings[0]
    assert found.target.member == 1 and found.evaluation.meta["epoch"] == scored
    assert found.evaluation.row("agent")["total_return"] == pytest.approx(best.metrics["total_return"])
    newest = gather(find_target(folder), "validation", epoch=scored + 2, draws=2)
    assert newest.evaluation.meta["epoch"] == scored + 2 and not newest.said


def test_where_that_checkpoint_is_gone_the_page_says_which_one_is_played(population):
    folder, scored = population
    for file in (folder / "members/01").glob(f"checkpoint*_{scored}*"):
        file.unlink()
    found = gather(find_target(folder), "validation", draws=2)
    said = f"record is of epoch {scored}, whose checkpoint is gone: epoch {scored + 2} is played"
    assert any(said in one.words for one in warnings(found, []))


def test_a_member_named_by_itself_is_shown_at_its_newest_checkpoint(population):
    folder, scored = population
    found = gather(find_target(folder / "members/01"), "validation", draws=2)
    assert found.evaluation.meta["epoch"] == scored + 2 and not found.said
