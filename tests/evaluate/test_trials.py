"""The number of trials comes from the journals: all members x generations that were scored, each once."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluate_runs import make_config, make_data, make_run
from made_populations import begin, make_population, publish

from hpcrl.evaluate.trials import count_trials, window_bars
from hpcrl.market.load import load_market
from hpcrl.pbt.history import read_past
from hpcrl.pbt.population import Population
from hpcrl.types import HpcrlError

SETS = ("pbt.members=4", "pbt.objective.window_bars=65")


@pytest.fixture(scope="module")
def population(tmp_path_factory) -> Population:
    return make_population(tmp_path_factory.mktemp("pbt"), *SETS, generations=3)


def test_every_scored_generation_of_every_member_is_a_trial(population):
    found = count_trials(population.path)
    assert found.count == 12 and found.reason == ""
    assert found.source == f"{population.path.name}: 12 scored generations of 4 members"


def test_the_variance_is_that_of_the_trials_sharpe_ratios_per_bar(population):
    scores = np.array([turn.record.scores for past in read_past(population) for turn in past.turns])
    ratios = scores.mean(1) / scores.std(1, ddof=1) / math.sqrt(64)
    assert count_trials(population.path).variance == pytest.approx(ratios.var(ddof=1), rel=1e-12)


def test_a_run_in_a_population_counts_all_of_it(population):
    member = population.folder(2)
    file = member / "checkpoint_epoch_5.pt"
    file.touch()
    for path in (member, file, str(member), [member, population.folder(0), population.path]):
        assert count_trials(path) == count_trials(population.path)
    file.unlink()


def test_no_way_to_write_its_path_hides_the_population(population, tmp_path, monkeypatch):
    link = tmp_path / "best"
    link.symlink_to(population.folder(3))
    monkeypatch.chdir(population.folder(1))
    for path in (link, ".", "../02", population.path / "members" / "00" / ".." / "01"):
        assert count_trials(path).count == 12
    assert count_trials([link, "../03", population.path]).count == 12


def test_trials_of_several_populations_and_runs_add_up(population, tmp_path):
    other = make_population(tmp_path, *SETS, generations=2, seed=1)
    found = count_trials([population.path, other.path, tmp_path / "run_a", tmp_path / "run_b"])
    assert found.count == 12 + 8 + 2 and found.source.endswith("; 2 runs: no journal")
    ratios = []
    for each in (population, other):
        for past in read_past(each):
            scores = np.array([turn.record.scores for turn in past.turns])
            ratios += list(scores.mean(1) / scores.std(1, ddof=1) / 8)
    assert found.variance == pytest.approx(np.var(ratios, ddof=1), rel=1e-12)


def test_a_run_of_its_own_is_one_trial(tmp_path):
    data = make_data(tmp_path / "market.h5")
    run = make_run(tmp_path / "runs", make_config(data))
    for path in (run, run / "checkpoint_epoch_4.pt"):
        found = count_trials(path)
        assert (found.count, found.source, found.reason) == (1, "one run: no journal", "")
        assert math.isnan(found.variance)
    several = count_trials([run, tmp_path / "other"])
    assert several.count == 2 and "0 of 2 trials tell" in several.reason


def test_a_file_outside_a_run_does_not_tell_its_trials(population, tmp_path):
    run = make_run(tmp_path / "runs", make_config(make_data(tmp_path / "market.h5")))
    copied = tmp_path / "best.pt"
    shutil.copy(run / "checkpoint_epoch_4.pt", copied)
    exported = tmp_path / "best.onnx"
    exported.touch()
    for path, said in (
        (copied, "outside its run"),
        (exported, "an ONNX file"),
        ([population.path, copied], ""),
    ):
        found = count_trials(path)
        assert found.count == 0 and math.isnan(found.variance)
        assert said in found.reason and "not known: best." in found.source
    link = tmp_path / "newest.pt"
    link.symlink_to(run / "checkpoint_epoch_4.pt")
    assert count_trials(link).count == 1


def test_a_members_checkpoint_that_is_a_link_to_its_attempts_counts_the_population(population):
    member = population.folder(1)
    (attempt,) = (member / "attempts").iterdir()
    file, link = attempt / "checkpoint_epoch_7.pt", member / "checkpoint_epoch_7.pt"
    file.touch()
    (member / "config.json").touch()
    link.symlink_to(file)
    try:
        assert count_trials(link).count == count_trials(file).count == 12
    finally:
        for made in (link, file, member / "config.json"):
            made.unlink()


def test_a_record_that_cannot_be_read_is_told(population, tmp_path):
    copy = tmp_path / population.path.name
    shutil.copytree(population.path, copy)
    record = sorted(copy.glob("members/01/attempts/*/pbt/records/000002.json"))[-1]
    record.write_text(record.read_text()[:-20])
    found = count_trials(copy)
    assert found.count == 11 and "(1 records could not be read)" in found.source


def test_a_superseded_attempt_is_not_counted_twice(tmp_path):
    population = make_population(tmp_path, *SETS, generations=2)
    taker = begin(population, 0)
    publish(taker, [0.001 * window for window in range(population.windows)])
    assert count_trials(population.path).count == 4 * 2 + 1


def test_a_population_without_a_score_is_one_trial(tmp_path):
    population = make_population(tmp_path, *SETS, generations=1, late=(0, 1, 2, 3))
    found = count_trials(population.path)
    assert found.count == 1 and "0 scored generations" in found.source


def test_trials_that_never_trade_count_but_have_no_ratio(tmp_path):
    population = make_population(tmp_path, *SETS, generations=2, late=(3,))
    publish(begin(population, 3), [0.0] * population.windows)
    found = count_trials(population.path)
    assert found.count == 7 and math.isfinite(found.variance)


def test_windows_of_sessions_have_the_sessions_bars(tmp_path):
    data = make_data(tmp_path / "market.h5", bars=1000)
    config = make_config(data)
    market = load_market(config.market)
    assert window_bars(config) == pytest.approx(78 - 1)
    assert len(market.ts_B) / len(np.unique(market.session_B)) == pytest.approx(78, rel=0.1)
    assert window_bars(config, 24.0) == 23.0


def test_without_the_market_file_there_is_a_count_and_a_reason(tmp_path):
    population = make_population(tmp_path, "pbt.members=4", "market.path=nowhere.h5", generations=2)
    found = count_trials(population.path)
    assert found.count == 8 and math.isnan(found.variance)
    assert "bars of a window are not known" in found.reason and "nowhere.h5" in found.reason
    assert math.isfinite(count_trials(population.path, bars_per_session=78).variance)


def test_a_population_of_another_format_is_one_error(population, tmp_path):
    (tmp_path / "population.json").write_text('{"format": 9}')
    with pytest.raises(HpcrlError, match="format 9, this version reads 1"):
        count_trials(tmp_path)


def test_counting_changes_nothing_and_knows_no_torch(population):
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in population.path.rglob("*") if path.is_file()}

    before = files()
    program = (
        "import sys; from hpcrl.evaluate.trials import count_trials; print(count_trials(sys.argv[1]).count); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, population.path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "12\n"), done.stderr
    assert files() == before
